"""What a punctuator says is written by the rules of the language, and read again."""

import pytest

from sprachbund.text.punctuation import FullStop, Label, is_all_capitals, read_marked, restore

TEXTS = {
    "en": "Where are you going? I am going home, and you should come. Run!",
    "de": "Wohin gehst du? Ich gehe nach Hause, weil es regnet. Komm mit, es gibt: Kaffee.",
    "es": "¿Cuándo sale el tren? Sale a las ocho, creo. ¡Corre!",
    "fr": "Où vas-tu\u00a0? Je rentre à la maison, il pleut. Viens\u00a0!",
    "it": "Dove vai? Torno a casa, perché piove. Corri!",
    "ru": "Куда ты идёшь? Я иду домой, потому что идёт дождь. Беги!",
}


@pytest.mark.parametrize("language", TEXTS)
def test_what_is_read_from_a_text_restores_it(language):
    words = read_marked(TEXTS[language], language)
    assert words is not None
    plain = [word.text.lower() for word in words]
    assert not any(mark in " ".join(plain) for mark in ".,?!:¿¡")
    labels = [Label(mark=word.mark, case=word.case) for word in words]
    assert " ".join(restore(plain, labels, language)) == TEXTS[language]


def test_a_rule_ends_the_text_and_begins_it():
    (labels,) = FullStop().label([["guten", "tag"]], "de")
    assert restore(["guten", "tag"], labels, "de-AT") == ["Guten", "tag."]


def test_capitals_that_a_model_wrote_stay_unless_there_are_no_others():
    lower = [Label(mark="", case="lower"), Label(mark=".", case="lower")]
    assert restore(["mein", "Hund"], lower, "de") == ["mein", "Hund."]
    assert restore(["MY", "DOG"], lower, "en") == ["my", "dog."]
    assert is_all_capitals(["I", "AM"])
    assert not is_all_capitals(["OK"])  # of a single word nobody knows


@pytest.mark.parametrize(("word", "written"), [("3.", "3."), ("8:30", "8:30."), ("ok,", "ok,")])
def test_a_mark_that_is_there_gets_no_second_one(word, written):
    assert restore(["am", word], [Label(mark=""), Label(mark=".")], "de") == ["Am", written]


def test_a_sentence_begins_behind_each_mark_that_ends_one_and_not_behind_a_comma():
    labels = [Label(mark=mark, case="lower") for mark in (",", "?", "", "!")]
    assert restore(["si", "ya", "voy", "ya"], labels, "es") == ["¿si,", "ya?", "¡Voy", "ya!"]


@pytest.mark.parametrize(
    "text",
    [
        "no capital in front.",
        "No mark at the end",
        "See https://example.org/a for more.",
        "It costs 5 €.",
        "This is, e.g. a case of it.",
        "ALL OF THIS IS LOUD.",
    ],
)
def test_what_is_no_plain_sentence_is_not_read(text):
    assert read_marked(text, "en") is None


def test_dashes_brackets_and_dots_are_read_as_they_are_heard():
    words = read_marked("Wait (a moment) – it is “here”... Yes; good.", "en")
    assert words is not None
    assert [word.text + word.mark for word in words] == ["Wait,", "it", "is", "here.", "Yes,", "good."]
    russian = read_marked("Москва — столица.", "ru")
    assert russian is not None
    assert [word.mark for word in russian] == ["", "."]

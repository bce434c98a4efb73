"""Composed sentences: whole tables, agreement, and what each language does to the words of a verb phrase."""

import random
import re

import pytest

from sprachbund.corpora import wording
from sprachbund.corpora.wording import LANGUAGES, compose_sentence

TABLES = ("frames", "nouns", "objects", "people", "states", "times", "verbs", "words")
ROWS = {name: {row["key"]: row for row in wording._table(name)} for name in TABLES}


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, str]]:
    rng = random.Random(7)
    return [compose_sentence(rng) for _ in range(4000)]


def said(verb: str, thing: str, frame: str, time: str | None = None) -> dict[str, str]:
    """A wish of given parts."""
    row = ROWS["objects"].get(thing) or ROWS["people"][thing]
    when = ROWS["times"][time] if time else dict.fromkeys(LANGUAGES, "")
    return {
        tag: ROWS["frames"][frame][tag].format(
            **wording._verb_phrase(tag, ROWS["verbs"][verb][tag], wording._definite(row, tag), when[tag]),
            digit=wording._digit(4, tag),
        )
        for tag in LANGUAGES
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_every_language(name: str) -> None:
    rows = wording._table(name)
    assert len({row["key"] for row in rows}) == len(rows)
    assert all(row[tag] and row[tag] == row[tag].strip() for row in rows for tag in LANGUAGES)


def test_things_have_a_gender_and_three_russian_cases() -> None:
    for row in ROWS["objects"].values():
        assert all(row[tag].split()[0] in "mf" for tag in ("es", "fr", "it"))
        assert row["de"].split()[0] in "mfn"
        assert row["ru"].split()[0] in "mfn"
        assert (len(row["ru"].split()) - 1) % 3 == 0
    for row in ROWS["states"].values():
        assert [len(row[tag].split()) for tag in ("es", "fr", "it", "ru")] == [2, 2, 2, 3]


def test_verbs_find_objects() -> None:
    kinds = {row["class"] for row in ROWS["objects"].values()} | {"person"}
    for row in ROWS["verbs"].values():
        assert set(row["class"].split()) <= kinds
        assert len(row["de"].split("/")) == 2


def test_sentences_are_words_in_six_languages(drawn: list[dict[str, str]]) -> None:
    word = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
    for texts in drawn:
        assert tuple(texts) == LANGUAGES
        for text in texts.values():
            assert all(word.fullmatch(part) for part in text.split(" ")), text
    assert len({texts["en"] for texts in drawn}) > 3000


def test_words_are_where_each_language_has_them() -> None:
    assert said("delete", "message", "want", "tomorrow") == {
        "en": "I want to delete the message tomorrow",
        "es": "quiero borrar el mensaje mañana",
        "fr": "je veux effacer le message demain",
        "it": "voglio cancellare il messaggio domani",
        "de": "ich will morgen die Nachricht löschen",
        "ru": "я хочу завтра удалить сообщение",
    }
    assert said("forward", "letter", "trying") == {
        "en": "I am trying to forward the letter",
        "es": "estoy intentando reenviar la carta",
        "fr": "j'essaie de transférer la lettre",
        "it": "sto cercando di inoltrare la lettera",
        "de": "ich versuche den Brief weiterzuleiten",
        "ru": "я пытаюсь переслать письмо",
    }
    assert said("close", "window", "cannot")["de"] == "ich kann das Fenster nicht schließen"
    assert said("open", "door", "possible")["fr"] == "serait-il possible d'ouvrir la porte"
    assert said("write", "name", "press")["de"] == "um den Namen aufzuschreiben drücken Sie die Vier"
    assert said("find", "umbrella", "want")["it"] == "voglio trovare l'ombrello"
    assert said("invite", "brother", "want")["es"] == "quiero invitar a mi hermano"
    assert said("read", "telephone_number", "like")["ru"] == "мне хотелось бы прочитать номер телефона"


def test_states_agree_with_things(drawn: list[dict[str, str]]) -> None:
    texts = next(
        texts for texts in drawn if texts["en"].startswith("the door is ") and "too" not in texts["en"]
    )
    state = next(row for row in ROWS["states"].values() if texts["en"].endswith(f" {row['en']}"))
    assert texts["es"].split()[-1] == state["es"].split()[1]
    assert texts["ru"].split()[-1] == state["ru"].split()[1]
    assert texts["de"].startswith("die Tür ist")


def test_names_are_those_of_cldr() -> None:
    names = {name["en"]: name for name in wording._names()}
    assert len(names) > 500
    assert names["Germany"] == {
        "en": "Germany", "es": "Alemania", "fr": "Allemagne", "it": "Germania", "de": "Deutschland", "ru": "Германия",
    }  # fmt: skip
    assert names["Polish"]["fr"] == "polonais"
    assert names["Moscow"]["it"] == "Mosca"
    assert names["Swiss franc"]["es"] == "franco suizo"
    assert names["kilograms"]["ru"] == "килограммы"
    assert not [
        text for name in names.values() for text in name.values() if not text or "(" in text or "_" in text
    ]

"""The text of the phrasebook against hand-written sentences, CLDR, and the laws of its text convention."""

import random
import re
from collections import Counter
from importlib import resources

import pytest
from babel import Locale

from sprachbund.corpora.phrasebook import KINDS, LANGUAGES, Meaning, draw, draw_kind, render, split_of
from sprachbund.corpora.phrasebook import sentences as lexicon
from sprachbund.corpora.phrasebook.sentences import phrases, templates
from sprachbund.errors import SprachbundError

WORD = r"[^\W\d_]+(?:['-][^\W\d_]+)*"
SPOKEN = re.compile(f"{WORD}(?: {WORD})*")

EXPECTED = {
    "en": [
        ("time", {"hour": 3, "minute": 30}, "half past three"),
        ("time", {"hour": 15, "minute": 30}, "three thirty p m"),
        ("time", {"hour": 0, "minute": 0}, "midnight"),
        ("time", {"hour": 7, "minute": 5}, "seven oh five"),
        ("date", {"month": 3, "day": 5}, "March fifth"),
        (
            "date",
            {"month": 5, "day": 23, "year": 2026, "weekday": 2},
            "Wednesday May twenty-third twenty twenty-six",
        ),
        ("number", {"value": 1101}, "one thousand one hundred and one"),
        ("ordinal", {"value": 31}, "thirty-first"),
        ("digits", {"digits": "4071"}, "four zero seven one"),
        ("duration", {"hours": 1, "minutes": 20}, "one hour and twenty minutes"),
        ("new_messages", {"n": 1}, "you have one new message"),
        ("money", {"price": (5, 50, "pound")}, "five pounds fifty"),
        ("year", {"y": 1905}, "nineteen oh five"),
        ("live_in", {"country": "US", "n": 2}, "I have lived in the United States for two years"),
    ],
    "es": [
        ("time", {"hour": 1, "minute": 15}, "la una y cuarto"),
        ("time", {"hour": 3, "minute": 45}, "las cuatro menos cuarto"),
        ("time", {"hour": 21, "minute": 10}, "las veintiuna diez"),
        ("it_is_time", {"time": (1, 0)}, "es la una"),
        ("date", {"month": 3, "day": 1, "year": 2001}, "uno de marzo de dos mil uno"),
        ("number", {"value": 21_500}, "veintiún mil quinientos"),
        ("new_messages", {"n": 21}, "tiene veintiún mensajes nuevos"),
        ("missed_calls", {"n": 21}, "tiene veintiuna llamadas perdidas"),
        ("money", {"price": (201, 0, "pound")}, "doscientas una libras"),
        ("money", {"price": (31, 0, "euro")}, "treinta y un euros"),
        ("speak_two", {"a": "fr", "b": "en"}, "hablo francés e inglés"),
        ("room_floor", {"room": 12, "floor": 3}, "la habitación doce está en el tercer piso"),
        ("how_get_to", {"place": "airport"}, "cómo llego al aeropuerto"),
    ],
    "fr": [
        ("time", {"hour": 3, "minute": 30}, "trois heures et demie"),
        ("time", {"hour": 11, "minute": 45}, "midi moins le quart"),
        ("time", {"hour": 21, "minute": 1}, "vingt et une heures une"),
        ("time", {"hour": 1, "minute": 0}, "une heure"),
        ("date", {"month": 8, "day": 1, "weekday": 0}, "lundi premier août"),
        ("number", {"value": 80}, "quatre-vingts"),
        ("number", {"value": 1981}, "mille neuf cent quatre-vingt-un"),
        ("travel_country", {"country": "PT", "date": (3, 5, 0, -1)}, "je pars au Portugal le cinq mars"),
        ("from_country", {"country": "IT"}, "je viens d'Italie"),
        ("calling_from", {"country": "NL"}, "j'appelle des Pays-Bas"),
        ("learning", {"a": "ar", "n": 1}, "j'apprends l'arabe depuis un an"),
        ("train_late", {"city": "paris", "n": 21}, "le train pour Paris a vingt et une minutes de retard"),
        ("turn_right_street", {"n": 1}, "prenez la première rue à droite"),
    ],
    "it": [
        ("time", {"hour": 1, "minute": 0}, "l'una"),
        ("time", {"hour": 12, "minute": 0}, "mezzogiorno"),
        ("time", {"hour": 8, "minute": 45}, "le nove meno un quarto"),
        ("it_is_time", {"time": (9, 30)}, "sono le nove e mezza"),
        ("office_opens", {"time": (1, 30)}, "l'ufficio apre all'una e mezza"),
        ("date", {"month": 6, "day": 1}, "primo giugno"),
        ("birthday", {"date": (3, 8, 0, -1)}, "il mio compleanno è l'otto marzo"),
        ("number", {"value": 33}, "trentatré"),
        ("duration", {"hours": 1, "minutes": 1}, "un'ora e un minuto"),
        ("from_country", {"country": "US"}, "vengo dagli Stati Uniti"),
        ("learning", {"a": "sv", "n": 3}, "studio lo svedese da tre anni"),
        ("money", {"price": (2, 50, "euro")}, "due euro e cinquanta"),
        ("in_month", {"m": 4, "country": "BE"}, "andiamo in Belgio ad aprile"),
    ],
    "de": [
        ("time", {"hour": 5, "minute": 30}, "halb sechs"),
        ("time", {"hour": 12, "minute": 45}, "Viertel vor eins"),
        ("time", {"hour": 13, "minute": 1}, "dreizehn Uhr eins"),
        ("time", {"hour": 1, "minute": 0}, "ein Uhr"),
        ("date", {"month": 3, "day": 5, "weekday": 0}, "Montag der fünfte März"),
        ("meeting_moved", {"day": 3}, "die Besprechung wurde auf Donnerstag verschoben"),
        ("new_messages", {"n": 1}, "Sie haben eine neue Nachricht"),
        ("it_costs", {"price": (1, 50, "euro")}, "das kostet einen Euro fünfzig"),
        ("in_days", {"n": 3}, "ich komme in drei Tagen zurück"),
        ("in_days", {"n": 1}, "ich komme in einem Tag zurück"),
        ("live_in", {"country": "CH", "n": 1}, "ich wohne seit einem Jahr in der Schweiz"),
        ("in_month", {"m": 7, "country": "NL"}, "wir fahren im Juli in die Niederlande"),
        ("year", {"y": 1984}, "neunzehnhundertvierundachtzig"),
        ("press_for", {"n": 1, "option": "cancel"}, "drücken Sie die Eins um abzubrechen"),
    ],
    "ru": [
        ("time", {"hour": 3, "minute": 30}, "половина четвёртого"),
        ("time", {"hour": 12, "minute": 45}, "без четверти час"),
        ("office_opens", {"time": (9, 30)}, "офис открывается в половине десятого"),
        ("time", {"hour": 21, "minute": 2}, "двадцать один час две минуты"),
        ("date", {"month": 3, "day": 3}, "третье марта"),
        ("birthday", {"date": (8, 31, 0, -1)}, "мой день рождения тридцать первого августа"),
        ("new_messages", {"n": 1}, "у вас одно новое сообщение"),
        ("new_messages", {"n": 22}, "у вас двадцать два новых сообщения"),
        ("new_messages", {"n": 12}, "у вас двенадцать новых сообщений"),
        ("weeks_ago", {"n": 1}, "это случилось одну неделю назад"),
        ("age", {"n": 21}, "мне двадцать один год"),
        ("duration", {"hours": 4, "minutes": 41}, "четыре часа и сорок одна минута"),
        ("table_for", {"n": 3, "time": (1, 0)}, "столик на трёх человек в час пожалуйста"),
        ("opening_hours", {"a": (9, 0), "b": (21, 0)}, "мы работаем с девяти часов до двадцати одного часа"),
        ("weekday_time", {"day": 1, "time": (12, 0)}, "во вторник в полдень"),
        ("born_year", {"y": 2000}, "я родился в двухтысячном году"),
        ("do_you_speak", {"a": "de"}, "вы говорите по-немецки"),
        ("stay_from_to", {"city": "rome", "a": 1, "b": 4}, "мы будем в Риме со вторника по пятницу"),
    ],
    "pt": [
        ("time", {"hour": 1, "minute": 0}, "uma hora"),
        ("time", {"hour": 2, "minute": 30}, "duas e meia"),
        ("time", {"hour": 8, "minute": 45}, "quinze para as nove"),
        ("office_opens", {"time": (12, 0)}, "o escritório abre ao meio-dia"),
        ("it_is_time", {"time": (1, 15)}, "é uma e quinze"),
        ("date", {"month": 9, "day": 1, "weekday": 5}, "sábado primeiro de setembro"),
        ("number", {"value": 16}, "dezesseis"),
        ("new_messages", {"n": 2}, "você tem duas mensagens novas"),
        ("money", {"price": (5, 50, "euro")}, "cinco euros e cinquenta centavos"),
        ("live_in", {"country": "PT", "n": 1}, "eu moro em Portugal há um ano"),
        ("in_month", {"m": 12, "country": "JP"}, "vamos para o Japão em dezembro"),
        ("closed_on", {"day": 6, "place": "museum"}, "o museu não abre no domingo"),
    ],
    "nl": [
        ("time", {"hour": 5, "minute": 30}, "half zes"),
        ("time", {"hour": 12, "minute": 15}, "kwart over twaalf"),
        ("time", {"hour": 15, "minute": 20}, "vijftien uur twintig"),
        ("date", {"month": 3, "day": 5, "year": 2026}, "vijf maart tweeduizendzesentwintig"),
        ("birthday", {"date": (1, 8, 0, -1)}, "mijn verjaardag is op acht januari"),
        ("number", {"value": 22}, "tweeëntwintig"),
        ("new_messages", {"n": 1}, "u hebt één nieuw bericht"),
        ("duration", {"hours": 3, "minutes": 0}, "drie uur"),
        ("age", {"n": 40}, "ik ben veertig jaar oud"),
        (
            "travel_country",
            {"country": "US", "date": (6, 2, 0, 0)},
            "ik reis op maandag twee juni naar de Verenigde Staten",
        ),
        ("say_in", {"a": "en"}, "hoe zeg je dat in het Engels"),
        ("distance", {"n": 12}, "twaalf kilometer"),
    ],
}
CASES = [(tag, *case) for tag, cases in EXPECTED.items() for case in cases]


@pytest.mark.parametrize(("language", "kind", "slots", "expected"), CASES)
def test_canonical_wording_is_what_people_say(language, kind, slots, expected):
    assert render(Meaning(kind=kind, slots=slots), language) == expected


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_kind_renders_within_the_text_convention(language):
    rng = random.Random(7)
    for kind in KINDS:
        for _ in range(200):
            meaning = draw_kind(kind, rng)
            for text in (render(meaning, language), render(meaning, language, rng)):
                assert SPOKEN.fullmatch(text), (kind, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_fixed_wording_is_within_the_text_convention(language):
    for key, wordings in phrases().items():
        for text in wordings[language]:
            assert SPOKEN.fullmatch(text), (key, text)
        assert len(set(wordings[language])) == len(wordings[language]), key


@pytest.mark.parametrize("language", ["en", "es", "fr", "it", "ru", "pt", "nl"])
def test_sentences_do_not_begin_with_a_capital_without_reason(language):
    capitals = {text.split()[0] for wordings in phrases().values() for text in wordings[language]}
    assert {word for word in capitals if word[0].isupper()} <= (
        {"I", "I'm", "I'll"} if language == "en" else set()
    )


def test_the_phrasebook_is_as_broad_as_promised():
    assert len(phrases()) >= 120
    assert len(templates()) >= 60
    assert {"number", "digits", "ordinal", "date", "time", "duration", "phrase"} <= set(KINDS)


def test_every_wording_uses_every_slot():
    for template in templates().values():
        for wordings in template.wordings.values():
            for wording in wordings:
                assert {part[0] for part in wording if not isinstance(part, str)} == set(template.slots)


def test_drawing_and_rendering_repeat_by_seed():
    def sample(seed):
        rng = random.Random(seed)
        meanings = [draw(rng) for _ in range(300)]
        return [(meaning.key, render(meaning, "de", rng)) for meaning in meanings]

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_canonical_wording_needs_no_randomness():
    rng = random.Random(1)
    meanings = [draw(rng) for _ in range(200)]
    assert [render(m, "it") for m in meanings] == [render(m, "it") for m in meanings]


def test_json_round_trip_keeps_meaning_and_key():
    rng = random.Random(2)
    for kind in KINDS:
        meaning = draw_kind(kind, rng)
        copy = Meaning.from_json(meaning.to_json())
        assert (copy, copy.key, render(copy, "ru")) == (meaning, meaning.key, render(meaning, "ru"))


def test_key_does_not_depend_on_slot_order():
    one = Meaning(kind="time", slots={"hour": 3, "minute": 5})
    assert one.key == Meaning(kind="time", slots={"minute": 5, "hour": 3}).key


def test_splits_are_stable_and_proportioned():
    rng = random.Random(5)
    meanings = {
        meaning.key: meaning for meaning in (draw(rng) for _ in range(30_000)) if meaning.kind != "phrase"
    }
    share = Counter(split_of(meaning) for meaning in meanings.values())
    assert 0.015 < share["test"] / len(meanings) < 0.025
    assert 0.015 < share["dev"] / len(meanings) < 0.025
    assert split_of(Meaning(kind="digits", slots={"digits": "471"})) == "train"
    assert {split_of(draw_kind("phrase", rng)) for _ in range(200)} == {"train"}


def test_two_slots_of_one_type_differ():
    rng = random.Random(0)
    for _ in range(300):
        slots = draw_kind("from_to", rng).slots
        assert slots["a"] != slots["b"]


def test_sentences_are_short_enough_to_speak():
    rng = random.Random(11)
    lengths = sorted(len(render(draw(rng), "en").split()) for _ in range(4000))
    assert 5 <= lengths[len(lengths) // 2] <= 9
    assert lengths[-1] <= 24


def test_unknown_language_and_kind_say_what_there_is():
    meaning = Meaning(kind="time", slots={"hour": 3, "minute": 5})
    with pytest.raises(SprachbundError, match=r"'pl'.*en es fr it de ru pt nl"):
        render(meaning, "pl")
    with pytest.raises(SprachbundError, match=r"'tea'.*choose from"):
        draw_kind("tea", random.Random(0))


def test_country_names_agree_with_cldr():
    """CLDR knows the names; ours add articles and prepositions and take the common short name."""
    usual = {"GB", "US", "CZ", "TR", "NL"}
    for tag in LANGUAGES:
        territories = Locale(tag).territories
        for key in set(lexicon.keys("country")) - usual:
            assert territories[key] in lexicon.country(key, "", tag), (tag, key)


def test_russian_plural_follows_cldr():
    rule = Locale("ru").plural_form
    index = {"one": 0, "few": 1, "many": 2}
    assert all(lexicon.russian_plural(n) == index[rule(n)] for n in range(1000))


def test_german_prompts_keep_the_text_convention():
    lines = (
        (resources.files("sprachbund.corpora.phrasebook") / "prompts_de.tsv").read_text("utf-8").splitlines()
    )
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert len({name for name, _ in rows}) == len(rows) > 450
    assert [text for _, text in rows if not SPOKEN.fullmatch(text)] == []
    german = dict(rows)
    assert (german["digits/20"], german["digits/mon-0"]) == ("zwanzig", "Januar")
    assert [german[f"digits/day-{i}"] for i in (0, 6)] == ["Sonntag", "Samstag"]

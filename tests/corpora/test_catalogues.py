"""Catalogues: what can be spoken comes out as words, what cannot is left out, and no test wording is learned."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

from sprachbund.cli import main
from sprachbund.corpora.asterisk.packages import SPEAKERS
from sprachbund.corpora.asterisk.prompts import load_prompt_set
from sprachbund.corpora.catalogues import Forbidden, SentenceTable, make_sentences, part_of, read_catalogue
from sprachbund.corpora.editions import draw_sentence, edition, make_part
from sprachbund.errors import SprachbundError
from tests.corpora.asterisk_tree import write_tree

LANGUAGES = ("en", "es", "fr", "it", "de", "ru")
MESSAGES = {
    "ring": {
        "en": "The door is open. Please close it!",
        "es": "La puerta está abierta. ¡Ciérrela, por favor!",
        "fr": "La porte est ouverte. Veuillez la fermer\u00a0!",
        "it": "La porta è aperta. La chiuda, per favore!",
        "de": "Die Tür ist offen. Schließen Sie bitte die Tür!",
        "ru": "Дверь открыта. Закройте её, пожалуйста!",
    },
    "number": dict.fromkeys(LANGUAGES, "{count} doors"),
    "spelled": dict.fromkeys(LANGUAGES, "Enter the URL"),
    "digits": dict.fromkeys(LANGUAGES, "Wait 10 seconds"),
    "two": {"en": "Too few languages", "de": "Zu wenige Sprachen"},
    "title": {
        "en": "Close The Old Door",
        "es": "Cerrar la puerta vieja",
        "fr": "Fermer la vieille porte",
        "it": "Chiudere la vecchia porta",
        "de": "Die alte Tür schließen",
        "ru": "Закрыть старую дверь",
    },
    "friday": {
        "en": "See you on Friday",
        "es": "Nos vemos el viernes",
        "fr": "À vendredi",
        "it": "A venerdì",
        "de": "Bis Freitag",
        "ru": "До пятницы",
    },
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """JSON as Home Assistant has it, and gettext as Django has it."""
    path = tmp_path / "program.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for tag in LANGUAGES:
            texts = {"state": {key: by[tag] for key, by in MESSAGES.items() if tag in by}}
            archive.writestr(f"program/translations/{tag}.json", json.dumps(texts))
        for tag, text in (("es", "Hola"), ("fr", "Bonjour"), ("it", "Ciao"), ("de", "Hallo")):
            po = f'msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n\nmsgid "Hello."\nmsgstr "{text}."\n'
            archive.writestr(f"program/locale/{tag}/LC_MESSAGES/django.po", po)
        archive.writestr(
            "program-2.dist-info/METADATA", "Name: program\nVersion: 2\nLicense-Expression: MIT\n"
        )
    return path


def _tables(out: Path) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for part in ("train", "dev"):
        with (out / f"{part}.tsv").open(encoding="utf-8") as file:
            rows |= {row["en"]: row for row in csv.DictReader(file, delimiter="\t")}
    return rows


def test_catalogues_are_read_with_all_their_languages(wheel: Path, tmp_path: Path) -> None:
    texts = list(read_catalogue(wheel, LANGUAGES))
    assert MESSAGES["ring"] in texts
    assert {"en": "Hello.", "es": "Hola.", "fr": "Bonjour.", "it": "Ciao.", "de": "Hallo."} in texts
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert list(read_catalogue(tmp_path / "unpacked", LANGUAGES)) == texts
    with pytest.raises(SprachbundError, match=r"nothing.whl cannot be read \(.*give a wheel"):
        list(read_catalogue(tmp_path / "nothing.whl", LANGUAGES))


def test_what_can_be_spoken_comes_out_as_words(wheel: Path, tmp_path: Path) -> None:
    counts = make_sentences([wheel], LANGUAGES, tmp_path / "out")
    rows = _tables(tmp_path / "out")
    assert sum(counts.values()) == len(rows) == 4
    ring = rows["the door is open please close it"]
    assert {tag: ring[tag] for tag in LANGUAGES[1:]} == {
        "es": "la puerta está abierta ciérrela por favor",
        "fr": "la porte est ouverte veuillez la fermer",
        "it": "la porta è aperta la chiuda per favore",
        "de": "die Tür ist offen schließen Sie bitte die Tür",
        "ru": "дверь открыта закройте её пожалуйста",
    }
    assert rows["close the old door"]["de"] == "die alte Tür schließen"
    assert rows["see you on Friday"]["fr"] == "à vendredi"
    assert rows["hello"]["ru"] == ""
    for part in ("train", "dev"):
        assert all(part_of(row["key"]) == part for row in _read(tmp_path / "out" / f"{part}.tsv"))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_wording_of_a_test_is_left_out_alone_and_within(wheel: Path, tmp_path: Path) -> None:
    make_sentences([wheel], LANGUAGES, tmp_path / "out", without=["The Door is  open", "hello"])
    assert set(_tables(tmp_path / "out")) == {"close the old door", "see you on Friday"}
    forbidden = Forbidden(["the line is busy", "goodbye"])
    assert forbidden.holds("sorry the line is busy today")
    assert forbidden.holds("Goodbye")
    assert not forbidden.holds("the line is")  # three words may stand anywhere
    assert not forbidden.holds("goodbye and thank you")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("translations/en.json", b'{"a": "Hello"'),
        ("de/LC_MESSAGES/django.po", b'msgid "Good"\nmsgstr "G\xfct"\n'),
    ],
)
def test_a_catalogue_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "source" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(SprachbundError, match=f"source: {name} cannot be read .*; mend it, or leave it out"):
        make_sentences([tmp_path / "source"], ("en", "de"), tmp_path / "out")


def test_tables_without_english_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"the languages de, fr lack en, .*; add it"):
        make_sentences([], ("de", "fr"), tmp_path / "out", composed=10)


def test_composed_sentences_are_the_same_with_the_same_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        counts = make_sentences([], LANGUAGES, tmp_path / name, composed=300, seed=seed)
        assert 250 < sum(counts.values()) <= 300
    assert (tmp_path / "a/train.tsv").read_bytes() == (tmp_path / "b/train.tsv").read_bytes()
    assert (tmp_path / "a/train.tsv").read_bytes() != (tmp_path / "c/train.tsv").read_bytes()
    with pytest.raises(SprachbundError, match="has no texts that can be spoken"):
        make_sentences([], LANGUAGES, tmp_path / "d")


def test_editions_say_sentences_of_their_part(tmp_path: Path) -> None:
    import random

    make_sentences([], LANGUAGES, tmp_path, composed=400)
    mixed = edition("bundled", sentences=tmp_path, sentence_share=0.5)
    rng = random.Random(1)
    drawn = [draw_sentence(mixed, "train", "fr", rng) for _ in range(200)]
    rows = SentenceTable.read(tmp_path / "train.tsv").rows
    own = [sentence for sentence in drawn if sentence.meaning.kind == "sentence"]
    assert 70 < len(own) < 130
    assert all(sentence.texts == rows[str(sentence.meaning.slots["key"])] for sentence in own)
    with pytest.raises(SprachbundError, match="a folder of sentences and their share go together"):
        edition("bundled", sentence_share=0.5)
    always = edition("bundled", sentences=tmp_path, sentence_share=1.0)
    assert draw_sentence(always, "test", "fr", rng).meaning.kind != "sentence"
    nothing = edition("bundled", sentences=tmp_path / "no", sentence_share=1.0)
    with pytest.raises(SprachbundError, match=r"there is no table .*train\.tsv; make one with"):
        draw_sentence(nothing, "train", "fr", rng)


def test_a_region_of_the_language_itself_is_the_language(tmp_path: Path) -> None:
    for tag, text in {"fr_FR": "au revoir", "fr_CA": "bonjour", "it_it": "arrivederci"}.items():
        path = tmp_path / "locale" / tag / "LC_MESSAGES" / "messages.po"
        path.parent.mkdir(parents=True)
        path.write_text(
            f'msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n\nmsgid "bye"\nmsgstr "{text}"\n'
        )
    assert list(read_catalogue(tmp_path, LANGUAGES)) == [
        {"en": "bye", "fr": "au revoir", "it": "arrivederci"}
    ]


def test_corpora_name_the_programs_and_their_licences(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    make_sentences([wheel, tmp_path / "more"], LANGUAGES, tmp_path / "said", composed=50)
    said = edition("tiny", sentences=tmp_path / "said", sentence_share=0.5)
    make_part(tmp_path / "made", said, "train", 4, workers=1)
    info = json.loads((tmp_path / "made/dataset.json").read_text())
    assert info["licence"] == ["CC0-1.0", "MIT"]
    assert info["attribution"].endswith("texts of program 2 (MIT), more (licence not stated)")


def test_command_leaves_out_what_the_telephone_corpus_tests(wheel: Path, tmp_path: Path) -> None:
    folders = {s.language: s.folder for s in SPEAKERS if not s.held_out and s.language in ("en", "it")}
    texts = {f"sentence-{n}": f"please wait for the voice number {word}" for n, word in enumerate(_WORDS)}
    write_tree(tmp_path / "tree", folders, dict.fromkeys(folders, texts))
    prompts = load_prompt_set(tmp_path / "tree", ("en", "it"))
    tested = {by["en"] for name, by in prompts.texts.items() if prompts.split_of_prompt(name) != "train"}
    assert 0 < len(tested) < len(texts)
    extra = tmp_path / "extra" / "translations"
    extra.mkdir(parents=True)
    for tag, ending in (("en", ""), ("es", "o"), ("fr", "e"), ("it", "i"), ("de", "en")):
        said = {name: " ".join(word + ending for word in text.split()) for name, text in texts.items()}
        (extra / f"{tag}.json").write_text(json.dumps(said))
    making = ["data", "make", "sentences", str(wheel), str(tmp_path / "extra"), "--composed", "0"]
    assert main([*making, "--source", str(tmp_path / "tree"), "--out", str(tmp_path / "out")]) == 0
    written = set(_tables(tmp_path / "out"))
    assert written & set(texts.values()) == set(texts.values()) - tested


_WORDS = (
    "apple", "brook", "cloud", "dream", "eagle", "flame", "grape", "house", "ivory", "jewel", "knife", "lemon",
    "mango", "night", "ocean", "pearl", "queen", "river", "stone", "tiger", "uncle", "vivid", "water", "xenon",
)  # fmt: skip

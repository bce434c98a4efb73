"""Reading, cleaning, splitting and writing of the recorded prompts."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sprachbund.corpora.asterisk import load_prompt_set, load_prompts, prepare
from sprachbund.corpora.asterisk.packages import SOUNDS, find_tree, unpack
from sprachbund.corpora.asterisk.prompts import (
    assign_splits,
    decode,
    is_clip,
    level,
    noise_floor_db,
    trim,
    without_rumble,
)
from sprachbund.corpora.asterisk.transcripts import clean, read_transcripts
from sprachbund.data.manifest import Manifest, ManifestWriter, corpora_in
from sprachbund.errors import SprachbundError
from tests.corpora import asterisk_tree

FOLDERS = {"en": "en_US_f_Allison", "es": "es_MX_f_Allison"}
TEXTS = {
    "en": {
        "vm-goodbye": "Goodbye",
        "beep": "[this is a simple beep tone]",
        "conf-muted": "You are now muted",
        "confbridge-mute-in": "To mute or unmute yourself...",
        "confbridge-mute-out": "...to mute or unmute yourself.",
        "digits/1": "one",
        "vm-intro": "Please leave your message after the tone.  (simple tone sound plays)",
    },
    "es": {
        "vm-goodbye": "hasta pronto.",
        "conf-muted": "Esta usted ahora en modo mudo.",
        "confbridge-mute-in": "Para activar o desactivar el modo mudo...",
        "digits/1": "uno",
        "vm-intro": "Por favor deje su mensaje despues del tono.",
    },
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asterisk_tree.write_tree(tmp_path_factory.mktemp("tree"), FOLDERS, TEXTS)


@pytest.mark.parametrize(
    ("language", "name", "raw", "expected"),
    [
        ("en", "auth-thankyou", "Thank  you!", "thank you"),
        ("en", "vm-onefor", "Press 1 for", "press one for"),
        ("en", "spy-iax2", 'IAX (note: does not say "2")', "IAX"),
        ("en", "letters/at", "at [@]", "at"),
        ("en", "digits/a-m", "A.M.", "a m"),
        ("en", "digits/oclock", "o'clock", "o'clock"),
        ("en", "digits/mon-4", "May", "May"),
        ("en", "vm-nonumber", "I'm afraid i don't know", "I'm afraid I don't know"),
        ("en", "spy-misdn", "M I S D N", "m i s d n"),
        ("en", "letters/i", "i", "i"),
        ("en", "x", "press * to toggle, # to exit", "press star to toggle pound to exit"),
        ("es", "digits/tomorrow", "manana", "mañana"),
        ("es", "vm-password", "contrasena", "contraseña"),
        (
            "es",
            "x",
            "Esta usted en esta conferencia numero 5.",
            "está usted en esta conferencia número cinco",
        ),
        ("es", "vm-savefolder", "En que carpeta desea guardar ?", "en qué carpeta desea guardar"),
        ("fr", "agent-incorrect", "Veuillez recomposez votre numéro", "veuillez recomposer votre numéro"),
        ("fr", "digits/90", "quatre-vingt-dix", "quatre-vingt-dix"),
        ("fr", "vm-review", "l’écouter, 2.", "l'écouter deux"),
        ("it", "conf-full", "La conferenza ? piena.", "la conferenza è piena"),
        (
            "it",
            "x",
            "Al segnale, il tempo sar? quello, non pu? essere",
            "al segnale il tempo sarà quello non può essere",
        ),
        ("it", "is-in-use", "E' in uso.", "è in uso"),
        (
            "it",
            "vm-a",
            "Il tuo messaggio è stato eliminato vm-b: poi premere",
            "il tuo messaggio è stato eliminato",
        ),
        ("ru", "conf-adminmenu", "conf-adminmenu: Нажмите 1 чтобы выйти", "нажмите один чтобы выйти"),
        ("ru", "vm-first", "первoe", "первое"),
        ("ru", "x", "Что бы выйти из меню...", "чтобы выйти из меню"),
        ("ru", "digits/mon-9", "октрября", "октября"),
    ],
)
def test_cleaning_by_hand_written_cases(language: str, name: str, raw: str, expected: str) -> None:
    assert clean(language, name, raw) == expected


@pytest.mark.parametrize(
    ("language", "name", "raw", "rule"),
    [
        ("en", "beep", "beep", "drop_no_speech"),
        ("it", "silence/3", "(3 secondi di silenzio)", "drop_no_speech"),
        ("fr", "beeperr", "(ahooga)", "drop_no_speech"),
        ("es", "dir-welcome", "", "drop_empty"),
        ("it", "vm-msgsaved", "Il [suo] messaggio è stato salvato.", "drop_doubtful"),
        ("ru", "x", "включить / выключить микрофон", "drop_doubtful"),
        ("en", "demo-moreinfo", "visit www.asterisk.org.", "drop_doubtful"),
        ("en", "x", "dial 500 to attempt", "speak_numbers"),
        ("fr", "demo-moreinfo", "Ce message n'a pas encore été écrit.", "drop_unusable"),
    ],
)
def test_dropped_prompts_are_counted_under_their_rule(language: str, name: str, raw: str, rule: str) -> None:
    counts: Counter[str] = Counter()
    assert clean(language, name, raw, counts) is None
    assert counts[rule] == 1


def test_wrong_key_is_moved(tmp_path: Path) -> None:
    path = tmp_path / "core-sounds-es.txt"
    path.write_text("; comment: no\ndigits/0: cero\ndigits/0: diez\ndigits/1F: una\n", "utf-8")
    actual, counts = read_transcripts(path, "es")
    assert {name: entry.text for name, entry in actual.items()} == {
        "digits/0": "cero",
        "digits/10": "diez",
        "digits/1f": "una",
    }
    assert (counts["lines"], counts["kept"], counts["move_wrong_key"]) == (3, 3, 1)


def test_prompts_have_words_speaker_and_length(tree: Path) -> None:
    by_key = {(p.language, p.name): p for p in load_prompts(tree)}
    assert ("en", "beep") not in by_key
    prompt = by_key["es", "conf-muted"]
    assert prompt.text == "está usted ahora en modo mudo"
    assert prompt.raw_text == "Esta usted ahora en modo mudo."
    assert (prompt.speaker, prompt.licence, prompt.held_out) == ("asterisk-es-allison", "CC-BY-SA-3.0", False)
    assert prompt.duration_s == pytest.approx(0.5, abs=0.01)
    assert len(prompt.load()) == pytest.approx(8000, abs=100)


def test_decoding_keeps_the_tone(tree: Path) -> None:
    names = list(TEXTS["en"])
    samples = decode(tree / SOUNDS / FOLDERS["en"] / "conf-muted.g722")
    peak_hz = np.abs(np.fft.rfft(samples)).argmax() * 16000 / len(samples)
    assert peak_hz == pytest.approx(300 + 40 * names.index("conf-muted"), abs=3)


def test_trim_and_level() -> None:
    sound = asterisk_tree.tone(440, duration_s=0.4, silence_s=0.5).astype(np.float32) / 32767
    short = trim(sound)
    assert len(short) / 16000 == pytest.approx(0.44, abs=0.02)
    quiet, loud = level(short * 0.1), level(short)
    np.testing.assert_allclose(quiet, loud, atol=1e-4)
    assert np.array_equal(trim(np.zeros(8000, np.float32)), np.zeros(8000, np.float32))


def test_rumble_is_removed_and_noise_is_trimmed() -> None:
    time = np.arange(32000) / 16000
    voice = np.where((time > 0.8) & (time < 1.2), 0.3 * np.sin(2 * np.pi * 500 * time), 0.0)
    decaying = 0.3 * np.exp(-time / 0.2)
    noise = np.random.default_rng(0).normal(0.0, 0.006, 32000)
    steady = without_rumble((voice + decaying + noise).astype(np.float32))
    assert abs(float(steady[4000:].mean())) < 1e-3
    floor_db = noise_floor_db([steady])
    assert floor_db == pytest.approx(20 * np.log10(0.006), abs=2.5)
    assert len(trim(steady, floor_db)) / 16000 == pytest.approx(0.44, abs=0.03)
    assert len(trim(steady)) > 24000


def test_names_with_one_text_share_a_split_in_every_language() -> None:
    texts = {f"p{i}": {"en": f"sentence number {i} of the long list", "es": f"frase {i}"} for i in range(400)}
    texts["twin-in"] = {"en": "to leave the great conference", "es": "para salir de la gran conferencia"}
    texts["twin-out"] = {"en": "for leaving it now please", "es": "para salir de la gran conferencia"}
    texts["longer"] = {"en": "press nine to leave the great conference"}
    splits = assign_splits(texts)
    assert splits["twin-in"] == splits["twin-out"] == splits["longer"]
    shares = Counter(splits.values())
    assert 0.07 < shares["test"] / len(texts) < 0.18
    assert 0.02 < shares["dev"] / len(texts) < 0.09
    assert assign_splits(dict(reversed(texts.items()))) == splits


def test_prepare_writes_manifests_that_lhotse_reads(tree: Path, tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    out = tmp_path / "out"
    result = prepare(out, tree)
    prompts = load_prompt_set(tree)
    entries = [
        entry for part in ("train", "dev", "test") if (out / part).exists() for entry in Manifest(out / part)
    ]
    assert len(entries) == len(prompts.prompts) == 11
    by_id = {entry.id: entry for entry in entries}
    intro = by_id["asterisk-en-allison-vm-intro"]
    assert intro.text == "please leave your message after the tone"
    assert intro.translations == {"es": "por favor deje su mensaje después del tono"} | (
        {"de": prompts.texts["vm-intro"]["de"]} if "de" in prompts.texts["vm-intro"] else {}
    )
    assert intro.custom == {
        "prompt": "vm-intro",
        "split": "train",
        "kind": "prompt",
        "words": "documented",
    } | {"split": prompts.split_of_prompt("vm-intro")}
    cleaning = json.loads((out / "cleaning.json").read_text())
    assert cleaning == result["cleaning"]
    assert cleaning["en"]["drop_no_speech"] == 1
    assert cleaning["es"]["restore_accents"] == 2
    cuts = lhotse.CutSet.from_file(out / "train" / "cuts.00000.jsonl").with_recording_path_prefix(
        out / "train"
    )
    cut = next(cut for cut in cuts if cut.id == "asterisk-es-allison-digits-1")
    samples = next(p for p in prompts.prompts if p.name == "digits/1" and p.language == "es").load()
    np.testing.assert_allclose(cut.load_audio()[0], samples, atol=2e-4)
    info = json.loads((out / "train" / "dataset.json").read_text())
    assert "Allison Smith" in info["attribution"]["asterisk-en-allison"]


def one_utterance(folder: Path, name: str) -> None:
    with ManifestWriter(folder) as writer:
        samples = np.zeros(1600, np.float32)
        writer.add(samples, text="hello", language="en", speaker="", utterance_id=name)


def test_prepare_replaces_its_own_parts_and_no_other_corpus(tree: Path, tmp_path: Path) -> None:
    one_utterance(tmp_path / "own" / "train", "mine")
    with pytest.raises(SprachbundError, match=r"own holds another corpus; name a new folder"):
        prepare(tmp_path / "own", tree)
    assert [entry.id for entry in Manifest(tmp_path / "own" / "train")] == ["mine"]
    prepare(tmp_path / "out", tree)
    one_utterance(tmp_path / "out" / "unheard", "asterisk-it-menardi-vm-intro")
    prepare(tmp_path / "out", tree, languages=["en"])
    entries = [entry for part in corpora_in(tmp_path / "out") for entry in Manifest(part)]
    assert {entry.language for entry in entries} == {"en"}
    assert not any(entry.id.startswith("asterisk-it") for entry in entries), (
        "no recording of unheard is there now"
    )


def test_prepare_refuses_a_part_of_another_corpus(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(out, tree)
    info = json.loads((out / "train" / "dataset.json").read_text())
    (out / "train" / "dataset.json").write_text(json.dumps(info | {"name": "phrasebook/tiny/train"}))
    with pytest.raises(SprachbundError, match="train holds another corpus, phrasebook/tiny/train"):
        prepare(out, tree)
    assert len(Manifest(out / "train"))


def test_deb_files_are_unpacked(tree: Path, tmp_path: Path) -> None:
    debs = tmp_path / "debs"
    debs.mkdir()
    asterisk_tree.write_deb(debs / "asterisk-core-sounds-en_1_all.deb", tree)
    prompts = load_prompts(debs, ["en"], cache=tmp_path / "cache")
    assert [p.name for p in prompts] == [p.name for p in load_prompts(tree, ["en"])]
    assert np.array_equal(prompts[0].load(), load_prompts(tree, ["en"])[0].load())


def test_packages_are_unpacked_by_pythons_without_filters(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 has `filter` of `TarFile.extractall` from 3.11.4 on; Debian 12 comes with 3.11.2."""

    def extractall(
        self: object, path: str = ".", members: object = None, *, numeric_owner: bool = False
    ) -> None:
        raise AssertionError("it unpacks without a filter")

    monkeypatch.setattr("tarfile.TarFile.extractall", extractall)
    asterisk_tree.write_deb(tmp_path / "asterisk-core-sounds-en_1_all.deb", tree)
    unpacked = unpack(tmp_path, tmp_path / "out")
    files = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file()]
    assert files
    assert all((unpacked / file).read_bytes() == (tree / file).read_bytes() for file in files)


@pytest.mark.parametrize("kind", ["up", "absolute", "link", "absolute link", "device", "link to nothing"])
def test_packages_write_nothing_outside_of_their_folder(tmp_path: Path, kind: str) -> None:
    member = tarfile.TarInfo("a")
    if kind in ("up", "absolute"):
        member.name = "../a" if kind == "up" else str(tmp_path / "a")
    elif kind == "device":
        member.type = tarfile.FIFOTYPE
    elif kind == "link to nothing":
        member.type, member.linkname = tarfile.LNKTYPE, "b"
    else:
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path) if "absolute" in kind else ".."
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(member)
    asterisk_tree.write_ar(tmp_path / "asterisk-core-sounds-en_1_all.deb", {"data.tar": content.getvalue()})
    with pytest.raises(
        SprachbundError, match=r"cannot unpack .*(outside of the folder|neither a folder|not found)"
    ):
        unpack(tmp_path, tmp_path / "out")
    assert not any((tmp_path / "out").glob("*"))
    assert not (tmp_path / "a").exists()


def test_user_errors_name_the_next_step(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SprachbundError, match=r"'pl'.*en, es"):
        load_prompts(tree, ["pl"])
    with pytest.raises(SprachbundError, match=r"holds neither .*apt-get"):
        load_prompts(tmp_path)
    with pytest.raises(SprachbundError, match="is not a folder"):
        load_prompts(tmp_path / "absent")
    (tmp_path / "asterisk-core-sounds-en_1.deb").write_bytes(b"not a package")
    with pytest.raises(SprachbundError, match="not a Debian package"):
        load_prompts(tmp_path)
    asterisk_tree.write_deb(tmp_path / "asterisk-core-sounds-en_1.deb", tree)
    whole = (tmp_path / "asterisk-core-sounds-en_1.deb").read_bytes()
    (tmp_path / "asterisk-core-sounds-en_1.deb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SprachbundError, match="cannot unpack"):
        load_prompts(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SprachbundError, match=r"no apt-get.*folder as the source"):
        find_tree(None, tmp_path / "cache")


def test_english_transcripts_are_required(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    shutil.rmtree(copy / "usr/share/doc/asterisk-core-sounds-en")
    with pytest.raises(SprachbundError, match="asterisk-core-sounds-en"):
        load_prompts(copy)


@pytest.fixture(scope="module")
def real() -> Path:
    source = asterisk_tree.real_source()
    if source is None:
        pytest.skip("the real packages are not on this machine")
    return find_tree(source, source / ".asterisk")


def test_real_packages_are_read_whole(real: Path) -> None:
    prompts = load_prompt_set(real)
    counts = Counter(p.speaker for p in prompts.prompts if not p.held_out)
    assert all(count >= 450 for count in counts.values())
    assert len(counts) == 5
    complete = [n for n, by in prompts.texts.items() if {"en", "es", "fr", "it", "ru"} <= by.keys()]
    assert len(complete) >= 420
    assert sum(not is_clip(name) for name in complete) >= 270
    digits = {p.name: p.text for p in prompts.prompts if p.speaker == "asterisk-es-allison"}
    assert [digits[f"digits/{i}"] for i in (0, 10, 22)] == ["cero", "diez", "veintidós"]


def test_real_texts_follow_the_convention(real: Path) -> None:
    for prompt in load_prompts(real):
        letters = prompt.text.replace("'", "").replace("-", "").replace(" ", "")
        assert letters.isalpha(), (prompt.language, prompt.name, prompt.text)
        assert prompt.text == " ".join(prompt.text.split())
        if prompt.language == "ru" and not is_clip(prompt.name):
            assert sum("a" <= c <= "z" for c in prompt.text) <= 2, (prompt.name, prompt.text)


def test_real_test_sentences_are_not_in_train(real: Path) -> None:
    prompts = load_prompt_set(real)
    seen: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for name, by_language in prompts.texts.items():
        for language, text in by_language.items():
            seen[prompts.split_of_prompt(name)].add(f"{language} {text}")
    assert not seen["test"] & seen["train"]
    assert not seen["test"] & seen["dev"]
    assert 0.05 * len(prompts.texts) < len({n for n, s in prompts.splits.items() if s == "test"})


def test_unpacking_agrees_with_dpkg(tmp_path: Path) -> None:
    source = asterisk_tree.REAL_SOURCES[0]
    debs = sorted(source.glob("asterisk-prompt-es-co_*.deb"))
    if not debs or shutil.which("dpkg-deb") is None:
        pytest.skip("needs a real package and dpkg-deb")
    (tmp_path / "debs").mkdir()
    shutil.copy(debs[0], tmp_path / "debs")
    subprocess.run(["dpkg-deb", "-x", str(debs[0]), str(tmp_path / "theirs")], check=True)
    ours, theirs = unpack(tmp_path / "debs", tmp_path / "ours"), tmp_path / "theirs"
    names = [p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file()]
    assert len(names) > 280
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def test_gzip_and_plain_transcripts_are_equal(tmp_path: Path) -> None:
    text = "\ufeff; comment\nvm-goodbye: Arrivederci\n"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read_transcripts(tmp_path / "a.txt", "it") == read_transcripts(tmp_path / "a.txt.gz", "it")

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sprachbund.data import own
from sprachbund.data.begun import MADE, PREPARED_FROM
from sprachbund.data.manifest import Manifest
from sprachbund.data.own import (
    OwnData,
    OwnOptions,
    OwnRecording,
    Prepared,
    prepare_own,
    read_folder,
    read_table,
)
from sprachbund.errors import SprachbundError
from tests.audio.support import damage, write_ffmpeg

NAMED = OwnOptions(name="mine", licence="CC0-1.0", attribution="me")
HEADER = "path\tlanguage\ttext\ttranslation_de\tfr\tspeaker"


def tone(path: Path, frequency_hz: float = 440.0, seconds: float = 0.5, rate_hz: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    times_s = np.arange(int(seconds * rate_hz)) / rate_hz
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * frequency_hz * times_s), rate_hz)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def small_folder(path: Path) -> Path:
    """Two recordings in two containers, one with translations and in a speaker's folder."""
    tone(path / "one.wav", 440, rate_hz=44_100).with_suffix(".txt").write_text("  Good\n morning. ")
    tone(path / "ann" / "two.flac", 880, 0.25)
    (path / "ann" / "two.txt").write_text("Good night.")
    (path / "ann" / "two.de.txt").write_text("Gute Nacht.", encoding="utf-8-sig")
    (path / "ann" / "two.pt-br.txt").write_text("Boa noite.")
    return path


def loudest_hz(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples))


def test_capital_letters_in_the_ending_of_a_transcript(tmp_path: Path) -> None:
    tone(tmp_path / "A.WAV").with_suffix(".TXT").write_text("Good morning.")
    (tmp_path / "A.de.TXT").write_text("Guten Morgen.")
    read = read_folder(tmp_path, "en")
    assert not read.faults
    assert [(r.text, r.translations) for r in read.recordings] == [("Good morning.", {"de": "Guten Morgen."})]
    (tmp_path / "A.txt").write_text("Good night.")
    read = read_folder(tmp_path, "en")
    assert [r.text for r in read.recordings] == ["Good night."]
    assert [str(fault) for fault in read.faults] == [
        f"{tmp_path / 'A.TXT'}: belongs to no audio file; rename or remove it"
    ]


def test_folder_becomes_a_corpus(tmp_path: Path) -> None:
    prepared = prepare_own(read_folder(small_folder(tmp_path / "in"), "EN"), tmp_path / "out", NAMED)
    assert prepared == Prepared(utterances={"": 2}, skipped=[])
    manifest = Manifest(tmp_path / "out")
    two, one = manifest
    assert (one.text, one.language, one.speaker, one.translations) == ("Good morning.", "en", "", {})
    assert (two.id, two.speaker, two.text) == ("ann-two", "ann", "Good night.")
    assert two.translations == {"de": "Gute Nacht.", "pt-BR": "Boa noite."}
    assert loudest_hz(manifest.samples(0)) == pytest.approx(880, abs=4)
    assert loudest_hz(manifest.samples(1)) == pytest.approx(440, abs=4)
    assert manifest.durations_s.tolist() == pytest.approx([0.25, 0.5], abs=1e-3)
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["languages"] == ["de", "en", "pt-BR"]
    assert (info["name"], info["licence"], info["attribution"]) == ("mine", "CC0-1.0", "me")
    assert not (tmp_path / "out" / own.SKIPPED).exists()


def test_a_transcript_is_no_translation_of_a_shorter_name(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("a.2", "two"), ("a.de", "three")):
        tone(tmp_path / f"{name}.wav", 440)
        (tmp_path / f"{name}.txt").write_text(text)
    data = read_folder(tmp_path, "en")
    assert not data.faults
    assert [(one.utterance_id, one.text, one.translations) for one in data.recordings] == [
        ("a.2", "two", {}),
        ("a.de", "three", {}),
        ("a", "one", {}),
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "one.txt").unlink(), "one.wav: has no transcript; write it into .*one.txt"),
        (lambda f: (f / "one.txt").write_text(" \n"), "one.txt is empty"),
        (lambda f: (f / "one.txt").write_bytes(b"\xff\xfe\x00caf\xe9"), "one.txt is not UTF-8"),
        (lambda f: (f / "three.txt").write_text("x"), "three.txt: belongs to no audio file"),
        (lambda f: (f / "one.draft.txt").write_text("x"), "'draft' is not a language; "),
        (lambda f: tone(f / "one.flac"), "one.wav: has the same name as .*one.flac"),
        (lambda f: (f / "one.wav").write_bytes(b""), r"one.wav is empty \(0 bytes\)"),
        (lambda f: (f / "one.wav").write_text("no sound " * 99), "one.wav is not audio"),
        (lambda f: cut(tone(f / "one.wav", seconds=3.0)), "one.wav: cut off: the header promises 3.00 s"),
    ],
)
def test_folder_faults_are_named_or_skipped_and_listed(tmp_path: Path, spoil, message: str) -> None:
    folder = small_folder(tmp_path / "in")
    spoil(folder)
    with pytest.raises(SprachbundError, match=message):
        prepare_own(read_folder(folder, "en"), tmp_path / "strict", NAMED)
    options = OwnOptions(name="mine", skip_bad=True)
    prepared = prepare_own(read_folder(folder, "en"), tmp_path / "lenient", options)
    assert len(prepared.skipped) == 1
    listed = (tmp_path / "lenient" / own.SKIPPED).read_text().splitlines()
    assert listed == ["where\treason", f"{prepared.skipped[0].where}\t{prepared.skipped[0].reason}"]
    ids = {utterance.id for utterance in Manifest(tmp_path / "lenient")}
    assert "ann-two" in ids


@pytest.mark.parametrize(
    ("folder", "language", "message"),
    [
        ("in", "englisch!", "'englisch!'"),
        ("none", "en", "none is not a folder"),
        (".", "en", "no audio files"),
    ],
)
def test_folder_that_cannot_be(tmp_path: Path, folder: str, language: str, message: str) -> None:
    if folder == "in":
        small_folder(tmp_path / "in")
    with pytest.raises(SprachbundError, match=message):
        read_folder(tmp_path / folder, language)


def table(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    tone(tmp_path / "a.wav", 440)
    tone(tmp_path / "sub" / "b.ogg", 880)
    path = tmp_path / "table.tsv"
    path.write_text("\r\n".join([header, *lines]) + "\r\n", encoding="utf-8-sig")
    return path


GOOD_A = 'a.wav\ten\tSay "when".\tSag Bescheid.\tDis-moi.\tann'
GOOD_B = "sub/b.ogg\tes\tBuenos días\t\t\t"


def test_table_becomes_a_corpus(tmp_path: Path) -> None:
    prepared = prepare_own(read_table(table(tmp_path, GOOD_A, "", GOOD_B)), tmp_path / "out", NAMED)
    assert prepared.utterances == {"": 2}
    manifest = Manifest(tmp_path / "out")
    a, b = manifest
    assert (a.id, a.language, a.text, a.speaker) == ("a", "en", 'Say "when".', "ann")
    assert a.translations == {"de": "Sag Bescheid.", "fr": "Dis-moi."}
    assert (b.id, b.language, b.text, b.translations) == ("sub-b", "es", "Buenos días", {})
    assert loudest_hz(manifest.samples(1)) == pytest.approx(880, abs=4)


@pytest.mark.parametrize("commas", [False, True])
def test_names_that_others_have_for_columns_are_known_and_the_rest_can_be_ignored(
    tmp_path: Path, commas: bool
) -> None:
    tone(tmp_path / "a.wav")
    header = ["client_id", "audio", "sentence", "age", "locale", "gender", "de"]
    line = ["ann", "a.wav", "Say when.", "twenties", "en", "", "Sag Bescheid."]
    path = tmp_path / "table"
    path.write_text("\n".join(("," if commas else "\t").join(one) for one in (header, line)) + "\n")
    (recording,) = read_table(path, commas=commas, ignored=["gender", "age"]).recordings
    assert (recording.speaker, recording.path.name, recording.text) == ("ann", "a.wav", "Say when.")
    assert (recording.language, recording.translations) == ("en", {"de": "Sag Bescheid."})
    with pytest.raises(
        SprachbundError, match=r"table:1: no column 'accent', which is to be ignored; there are"
    ):
        read_table(path, commas=commas, ignored=["accent"])


def test_languages_of_a_table_may_be_names_as_in_options(tmp_path: Path) -> None:
    line = "a.wav\tEnglish\tSay when.\tSag Bescheid.\tDis-moi.\tannounce"
    header = "path\tlanguage\ttext\tgerman\ttranslation_français\tspeaker"
    (recording,) = read_table(table(tmp_path, line, header=header)).recordings
    assert recording.language == "en"
    assert recording.translations == {"de": "Sag Bescheid.", "fr": "Dis-moi."}
    with pytest.raises(SprachbundError, match=r"table.tsv:1: column 'de' is there twice"):
        read_table(table(tmp_path, line, header="path\tlanguage\ttext\tgerman\tde\tspeaker"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path\ttext", r"table.tsv:1: no column 'language'; known are path, language"),
        ("sound\tlanguage\ttext", r"table.tsv:1: unknown column 'sound'; known are path"),
        (
            "path\tlanguage\ttext\tgender\tage\tid",
            r"unknown column 'gender'; column 'age' may mean.*; column 'id' can be.*with --ignore gender,age,id$",
        ),
        (
            "path\tlanguage\ttext\tage",
            r"table.tsv:1: column 'age' may mean something else than Angal; write tra",
        ),
        (
            "path\tlanguage\ttext\tdeu",
            r":1: column 'deu' may mean something else than German; write translation_deu",
        ),
        (
            "path\tlanguage\ttext\tNo",
            r"table.tsv:1: column 'No' can be a number or Norwegian; call it transl",
        ),
        ("path\tlanguage\ttext\tid", r"table.tsv:1: column 'id' can be an identifier or Indonesian"),
        ("path\tlanguage\ttext\tde\ttranslation_de", r"table.tsv:1: column 'de' is there twice"),
        ("path\tlanguage\ttext\ttranslation_nowhere", r"unknown column 'translation_nowhere'"),
        ("", r"table.tsv:1: the first line is empty; name the columns in it"),
        (
            "path,language,text",
            r"table.tsv:1: the columns stand between commas, not tabs; .* data prepare csv",
        ),
    ],
)
def test_header_that_cannot_be_understood(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        read_table(table(tmp_path, GOOD_A, header=header))


def test_tags_of_three_letters_need_translation_before_them(tmp_path: Path) -> None:
    header = "path\ttext\ttranslation_quz\tpt-BR\tcantonese\ttranslation_no"
    (recording,) = read_table(table(tmp_path, "a.wav\thi\tq\tp\tc\tn", header=header), "en").recordings
    assert recording.translations == {"quz": "q", "pt-BR": "p", "yue": "c", "no": "n"}
    folder = small_folder(tmp_path / "in")
    for tag in ("translation_quz", "cantonese", "no"):
        (folder / f"one.{tag}.txt").write_text(tag)
    one = read_folder(folder, "quy").recordings[1]
    assert one.translations == {"quz": "translation_quz", "yue": "cantonese", "no": "no"}
    assert read_folder(folder, "quy").faults == []
    (folder / "one.raw.txt").write_text("one, two")
    (fault,) = read_folder(folder, "quy").faults
    assert str(fault).startswith(f"{folder / 'one.wav'}: {folder / 'one.raw.txt'}: 'raw' may mean something")
    assert "else than Rawang; write translation_raw if it names a translation" in str(fault)


def test_a_translation_into_the_language_spoken_is_a_fault(tmp_path: Path) -> None:
    """Whatever its form: the transcript would be read, and the other text never."""
    folder = small_folder(tmp_path / "in")
    (folder / "one.quy.txt").write_text("other words")
    (fault,) = read_folder(folder, "quy").faults
    assert str(fault).startswith(
        f"{folder / 'one.wav'}: has a translation into quy, the language spoken; remove"
    )


@pytest.mark.parametrize(
    ("there", "written"), [("que\u0301.wav", "qu\u00e9.wav"), ("qu\u00e9.wav", "que\u0301.wav")]
)
def test_a_name_of_the_same_letters_is_the_file(tmp_path: Path, there: str, written: str) -> None:
    tone(tmp_path / there)
    table = tmp_path / "table.tsv"
    table.write_text(f"path\ttext\n{written}\tone\n", encoding="utf-8")
    [recording] = read_table(table, "qu").recordings
    assert recording.path == tmp_path / there


def test_names_of_files_are_looked_up_as_they_stand(tmp_path: Path) -> None:
    decomposed, spaced = "que\u0301.wav", "two  spaces.wav"
    tone(tmp_path / decomposed)
    tone(tmp_path / spaced)
    lines = (f" {decomposed} \tone  text", f"{spaced}\ttwo")
    one, two = read_table(table(tmp_path, *lines, header="path\ttext"), "en").recordings
    assert (one.path, two.path) == (tmp_path / decomposed, tmp_path / spaced)
    assert (one.utterance_id, two.utterance_id) == ("qu\u00e9", "two spaces")
    assert one.text == "one text"


@pytest.mark.parametrize("commas", [False, True])
def test_an_empty_table_is_named(tmp_path: Path, commas: bool) -> None:
    path = tmp_path / "empty"
    for content in ("", "\n"):
        path.write_text(content)
        with pytest.raises(SprachbundError, match="empty is empty; write a header with its columns"):
            read_table(path, commas=commas)


def test_a_table_with_tabs_is_not_prepared_as_commas(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("path\tlanguage\ttext\n")
    with pytest.raises(
        SprachbundError, match=r"the columns stand between tabs, not commas; .* data prepare tsv"
    ):
        read_table(path, commas=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.wav\ten\thi", "table.tsv:3: has 3 fields where the header has 6"),
        ("gone.wav\ten\thi\t\t\t", "table.tsv:3: there is no audio file .*gone.wav"),
        ("a.wav\ten\t\t\t\t", "table.tsv:3: the field 'text' is empty"),
        ("a.wav\tklingonish\thi\t\t\t", "table.tsv:3: .*'klingonish' is not a language; "),
        ("a.wav\t\thi\t\t\t", "table.tsv:3: .*'' is not a language; "),
        ("a.wav\tde\thallo\thallo\t\t", "table.tsv:3: has a translation into de, the language spoken"),
        ("sub/b.ogg\tes\tx\t\t\t", "table.tsv:3: 'sub-b' is in .*table.tsv:2 already"),
    ],
)
def test_faults_of_a_table_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    path = table(tmp_path, GOOD_B, line, GOOD_A)
    with pytest.raises(SprachbundError, match=message):
        prepare_own(read_table(path), tmp_path / "strict", NAMED)
    assert not (tmp_path / "strict").exists()  # found before anything was decoded or written
    prepared = prepare_own(read_table(path), tmp_path / "lenient", OwnOptions(name="mine", skip_bad=True))
    assert prepared.utterances == {"": 2}
    assert [fault.where for fault in prepared.skipped] == [f"{path}:3"]


def test_language_may_stand_outside_of_the_table(tmp_path: Path) -> None:
    result = read_table(table(tmp_path, "a.wav\thi", header="path\ttext"), "en")
    assert [r.language for r in result.recordings] == ["en"]
    assert (
        read_table(table(tmp_path, "a.wav\thi\tx", header="path\ttext\tutterance_id"), "en")
        .recordings[0]
        .utterance_id
        == "x"
    )


def test_missing_or_bare_table(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"none.tsv cannot be read \(No such file"):
        read_table(tmp_path / "none.tsv")
    with pytest.raises(SprachbundError, match="a header and no lines"):
        read_table(table(tmp_path))


def many(tmp_path: Path, count: int) -> Path:
    lines = [f"a.wav\ten\tsentence {i // 2}\t\t\t" for i in range(count)]
    lines = [line + f"\tu{i}" for i, line in enumerate(lines)]
    return table(tmp_path, *lines, header=HEADER + "\tutterance_id")


def test_dev_part_shares_no_sentence_with_train(tmp_path: Path) -> None:
    options = OwnOptions(name="mine", dev_share=0.3)
    prepared = prepare_own(read_table(many(tmp_path, 60)), tmp_path / "out", options)
    train, dev = (
        {utterance.text for utterance in Manifest(tmp_path / "out" / part)} for part in ("train", "dev")
    )
    assert sum(prepared.utterances.values()) == 60
    assert not train & dev
    assert 3 <= len(dev) <= 15
    with pytest.raises(SprachbundError, match="leaves dev empty"):
        prepare_own(read_table(many(tmp_path, 2)), tmp_path / "few", OwnOptions(name="mine", dev_share=0.001))


def test_a_test_part_takes_no_sentence_from_dev_nor_shares_one(tmp_path: Path) -> None:
    data = read_table(many(tmp_path, 120))
    said = {}
    for name, options in {
        "dev": OwnOptions(name="mine", dev_share=0.2),
        "both": OwnOptions(name="mine", dev_share=0.2, test_share=0.2),
        "test": OwnOptions(name="mine", test_share=0.2),
    }.items():
        parts = prepare_own(data, tmp_path / name, options).utterances
        assert sum(parts.values()) == 120
        said[name] = {part: {u.text for u in Manifest(tmp_path / name / part)} for part in parts}
    assert set(said["both"]) == {"train", "dev", "test"}
    assert set(said["test"]) == {"train", "test"}
    assert said["both"]["dev"] == said["dev"]["dev"]
    assert said["both"]["test"] | said["both"]["train"] == said["dev"]["train"]
    assert not said["both"]["test"] & said["both"]["train"]
    assert 3 <= len(said["both"]["test"]) <= 25
    with pytest.raises(SprachbundError, match=r"was begun with|test_share"):
        prepare_own(data, tmp_path / "dev", OwnOptions(name="mine", dev_share=0.2, test_share=0.2))


def dotted(tmp_path: Path) -> Path:
    """Sentences without punctuation, and the same with it."""
    texts = [f"{'S' if dot else 's'}entence number {i}{dot}" for i in range(40) for dot in ("", ".", "!")]
    lines = [f"a.wav\ten\t{text}\t\t\t\tu{n}" for n, text in enumerate(texts)]
    return table(tmp_path, *lines, header=HEADER + "\tutterance_id")


def sentences_by_part(out: Path) -> dict[str, set[str]]:
    return {part: {u.text.lower().strip(".!") for u in Manifest(out / part)} for part in ("train", "dev")}


def test_punctuation_and_case_make_no_other_sentence(tmp_path: Path) -> None:
    path, out = dotted(tmp_path), tmp_path / "out"
    options = OwnOptions(name="mine", dev_share=0.3)
    prepared = prepare_own(read_table(path), out, options)
    parts = sentences_by_part(out)
    assert parts["dev"]
    assert not parts["train"] & parts["dev"]
    assert prepare_own(read_table(path), out, options) == prepared


def test_a_folder_of_an_earlier_version_keeps_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = dotted(tmp_path), tmp_path / "out"
    options = OwnOptions(name="mine", dev_share=0.3)
    recordings = read_table(path).recordings
    what = [{**own._identity(r), "where": "", "path": str(r.path.resolve())} for r in recordings]
    with monkeypatch.context() as patch:
        patch.setattr(own, "_words", own._text_before)
        begun = prepare_own(read_table(path), out, options)
    (out / MADE).unlink()
    (out / PREPARED_FROM).write_text(own._digest([what, 0.3]) + "\n")
    assert prepare_own(read_table(path), out, options) == begun
    parts = sentences_by_part(out)
    assert parts["train"] & parts["dev"]
    assert prepare_own(read_table(path), tmp_path / "new", options) != begun


def test_recordings_whose_ids_are_one_are_named_before_any_is_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("anna/01", "anna-01"):
        tone(folder / f"{name}.wav").with_suffix(".txt").write_text(name)
    data = read_folder(folder, "en")
    (fault,) = data.faults
    first, second = sorted([folder / "anna" / "01.wav", folder / "anna-01.wav"])
    assert str(fault) == f"{second}: has the same name as {first}, 'anna-01' in the corpus; rename one"
    prepared = prepare_own(data, tmp_path / "out", OwnOptions(name="mine", skip_bad=True))
    assert (prepared.utterances, prepared.skipped) == ({"": 1}, [fault])


def test_a_name_that_is_not_utf_8_is_a_fault(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "in")
    name = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav")
    try:
        tone(folder / "other.wav").rename(name)
    except OSError:
        pytest.skip("the file system takes no such names")
    Path(name).with_suffix(".txt").write_text("one more")
    data = read_folder(folder, "en")
    (fault,) = data.faults
    assert str(fault) == f"{name!a} has a name that is not UTF-8; rename it"
    prepared = prepare_own(data, tmp_path / "out", OwnOptions(name="mine", skip_bad=True))
    assert prepared.utterances == {"": 2}
    assert "caf\\udce9" in (tmp_path / "out" / own.SKIPPED).read_text(encoding="utf-8")


def test_a_sentence_in_the_column_of_paths_is_a_fault_with_its_line(tmp_path: Path) -> None:
    path = table(tmp_path, GOOD_A, f"{'such a long sentence ' * 30}\ten\ta.wav\t\t\t")
    (fault,) = read_table(path).faults
    assert str(fault).startswith(f"{path}:3: there is no audio file")


def test_broken_off_work_is_taken_up_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "SHARD_SIZE", 4)
    path = many(tmp_path, 10)
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    (tmp_path / "bad.wav").write_bytes(b"")
    lines[2] = lines[2].replace("a.wav", "bad.wav")
    path.write_text("\n".join(lines))
    options = OwnOptions(name="mine", skip_bad=True)

    def break_off(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_own(read_table(path), tmp_path / "out", options, progress=break_off)
    first = (tmp_path / "out" / "audio.00000.wav").stat().st_mtime_ns
    seen: list[int] = []
    prepared = prepare_own(
        read_table(path), tmp_path / "out", options, progress=lambda done, total: seen.append(done)
    )
    assert (tmp_path / "out" / "audio.00000.wav").stat().st_mtime_ns == first
    assert seen == [4, 5, 6, 7, 8, 8, 9, 10, 10]
    assert [fault.where for fault in prepared.skipped] == [f"{path}:3"]
    whole = prepare_own(read_table(path), tmp_path / "whole", options)
    assert whole == prepared
    assert [u.id for u in Manifest(tmp_path / "out")] == [u.id for u in Manifest(tmp_path / "whole")]


def test_a_shard_ends_by_its_seconds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Utterances of 0.5 s; the first shard, with a fault in it, keeps its three when the fault is mended."""
    monkeypatch.setattr(own, "SHARD_S", 1.0)
    path = many(tmp_path, 8)
    path.write_text(path.read_text(encoding="utf-8-sig").replace("a.wav", "bad.wav", 1), encoding="utf-8")
    (tmp_path / "bad.wav").write_bytes(b"")
    out, options = tmp_path / "out", OwnOptions(name="mine", skip_bad=True)
    seen: list[int] = []
    prepared = prepare_own(read_table(path), out, options, progress=lambda done, total: seen.append(done))
    assert prepared.utterances == {"": 7}
    assert seen == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8, 8]
    lines = [len((out / f"cuts.0000{shard}.jsonl").read_text().splitlines()) for shard in range(4)]
    assert lines == [2, 2, 2, 1]
    written = {file: file.stat().st_mtime_ns for file in out.glob("audio.*.wav")}
    assert prepare_own(read_table(path), out, options) == prepared
    monkeypatch.setattr(own, "SHARD_S", 7200.0)  # a shard stays, whatever its length is today
    tone(tmp_path / "bad.wav")
    assert prepare_own(read_table(path), out, options).utterances == {"": 8}
    assert [u.id for u in Manifest(out)] == [f"u{n}" for n in range(8)]
    assert [f.name for f, t in written.items() if f.stat().st_mtime_ns != t] == ["audio.00000.wav"]


def test_a_whole_shard_of_other_utterances_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "SHARD_SIZE", 2)
    path, out = many(tmp_path, 4), tmp_path / "out"
    prepare_own(read_table(path), out, NAMED)
    for file in (out / "cuts.00000.jsonl", out / ".sounds.00000.json"):
        file.unlink()
    monkeypatch.setattr(own, "SHARD_SIZE", 1)  # the shard is made again, and ends elsewhere
    with pytest.raises(SprachbundError, match=r"\.sounds\.00001\.json names other utterances than shard 1"):
        prepare_own(read_table(path), out, NAMED)


@pytest.mark.parametrize(("start_s", "is_taken"), [(0.1, True), (2.2, False)])
def test_segments_behind_damage_are_faults(tmp_path: Path, start_s: float, is_taken: bool) -> None:
    path = damage(write_ffmpeg(tmp_path / "talk.m4a"))
    one = OwnRecording(
        where="table:2",
        utterance_id="one",
        path=path,
        language="en",
        text="Hello.",
        start_s=start_s,
        duration_s=0.3,
    )
    corpus = OwnData(recordings=[one], faults=[])
    if is_taken:
        assert prepare_own(corpus, tmp_path / "out", NAMED).utterances == {"": 1}
        return
    with pytest.raises(SprachbundError, match=r"table:2: .*damaged packets from"):
        prepare_own(corpus, tmp_path / "out", NAMED)


@pytest.mark.parametrize(
    ("peak", "said"),
    [
        (1.5, None),
        (30.0, r"samples up to 30, where 1 is full scale; divide by 32768"),
        (9830.0, r"floats lie between -1 and 1, so divide 16-bit numbers by 32768"),
    ],
)
def test_integers_as_floats_are_faults_and_hot_recordings_are_not(
    tmp_path: Path, peak: float, said: str | None
) -> None:
    loud = tone(tmp_path / "in" / "loud.wav")
    soundfile.write(loud, soundfile.read(loud)[0] * 2 * peak, 16_000, subtype="FLOAT")
    loud.with_suffix(".txt").write_text("Hello.")
    corpus = read_folder(tmp_path / "in", "en")
    if said is None:
        assert prepare_own(corpus, tmp_path / "out", NAMED).utterances == {"": 1}
        return
    with pytest.raises(SprachbundError, match=f"loud.*{said}"):
        prepare_own(corpus, tmp_path / "out", NAMED)


def test_clipped_utterances_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 bit whose peaks were cut off, and of floats that are as they are written; not a peak that reaches 1."""
    monkeypatch.setattr(own, "SHARD_SIZE", 2)
    folder = tmp_path / "in"
    for name, gain, subtype in (
        ("cut", 3.0, "PCM_16"),
        ("hot", 3.0, "FLOAT"),
        ("loud", 2.0, "PCM_16"),
        ("quiet", 1.0, "PCM_16"),
    ):
        sound = tone(folder / f"{name}.wav", 200)
        soundfile.write(sound, gain * soundfile.read(sound)[0], 16_000, subtype=subtype)
        sound.with_suffix(".txt").write_text(name)
    data = read_folder(folder, "en")
    for _ in range(2):  # once more, from what is remembered
        assert prepare_own(data, tmp_path / "out", NAMED) == Prepared(
            utterances={"": 4}, skipped=[], clipped=2
        )


def test_two_corpora_never_mix(tmp_path: Path) -> None:
    prepare_own(read_table(table(tmp_path, GOOD_A)), tmp_path / "out", NAMED)
    with pytest.raises(
        SprachbundError,
        match=r"out was begun with another content \(SHA-256 \w{12}, not \w{12}\); name a new folder",
    ):
        prepare_own(read_table(table(tmp_path, GOOD_A, GOOD_B)), tmp_path / "out", NAMED)


def test_a_recording_that_was_made_anew_is_noticed(tmp_path: Path) -> None:
    path = table(tmp_path, GOOD_A, GOOD_B)
    out = tmp_path / "out"
    prepare_own(read_table(path), out, NAMED)
    before = (out / "audio.00000.wav").read_bytes()
    tone(tmp_path / "a.wav", 440, seconds=0.75)
    with pytest.raises(
        SprachbundError, match=r"a\.wav has changed since .*out was made of it; name a new fold"
    ):
        prepare_own(read_table(path), out, NAMED)
    assert (out / "audio.00000.wav").read_bytes() == before
    prepare_own(read_table(path), tmp_path / "new", NAMED)
    assert Manifest(tmp_path / "new").durations_s[0] == pytest.approx(0.75)


def test_a_corpus_from_before_sounds_were_remembered_stays(tmp_path: Path) -> None:
    path = table(tmp_path, GOOD_A)
    prepared = prepare_own(read_table(path), tmp_path / "out", NAMED)
    (tmp_path / "out" / ".sounds.00000.json").unlink()
    tone(tmp_path / "a.wav", 440, seconds=0.75)
    assert prepare_own(read_table(path), tmp_path / "out", NAMED) == replace(prepared, unchecked=1)


def test_a_file_that_was_skipped_and_mended_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "SHARD_SIZE", 2)
    path = many(tmp_path, 4)
    path.write_text(path.read_text(encoding="utf-8-sig").replace("a.wav", "bad.wav", 1), encoding="utf-8")
    (tmp_path / "bad.wav").write_bytes(b"")
    out, options = tmp_path / "out", OwnOptions(name="mine", skip_bad=True)
    assert prepare_own(read_table(path), out, options).utterances == {"": 3}
    assert prepare_own(read_table(path), out, options).utterances == {"": 3}
    second = (out / "audio.00001.wav").stat().st_mtime_ns
    (tmp_path / "bad.wav").write_bytes(b"no sound either")
    (fault,) = prepare_own(read_table(path), out, options).skipped
    assert "is not audio" in fault.reason
    tone(tmp_path / "bad.wav", 880)
    assert prepare_own(read_table(path), out, options) == Prepared(utterances={"": 4}, skipped=[])
    assert not (out / own.SKIPPED).exists()
    manifest = Manifest(out)
    assert manifest.check() == 2
    assert [u.id for u in manifest] == ["u0", "u1", "u2", "u3"]
    assert loudest_hz(manifest.samples(0)) == pytest.approx(880, abs=4)
    assert (out / "audio.00001.wav").stat().st_mtime_ns == second
    assert prepare_own(read_table(path), out, NAMED) == Prepared(utterances={"": 4}, skipped=[])


@pytest.mark.parametrize("fault", ["there is no audio file", r"a.wav is empty \(0 bytes\)"])
def test_where_nothing_is_left_the_first_fault_is_named_and_all_are_listed(
    tmp_path: Path, fault: str
) -> None:
    path = table(tmp_path, GOOD_A)
    if "empty" in fault:
        (tmp_path / "a.wav").write_bytes(b"")
    else:
        (tmp_path / "a.wav").unlink()
    listed = tmp_path / "out" / own.SKIPPED
    says = rf"mine: no utterance is left to prepare; all faults are in {listed}, the first: .*{fault}"
    with pytest.raises(SprachbundError, match=says):
        prepare_own(read_table(path), tmp_path / "out", OwnOptions(name="mine", skip_bad=True))
    assert listed.read_text().splitlines()[1].startswith(f"{path}:2\t")
    tone(tmp_path / "a.wav")
    assert prepare_own(read_table(path), tmp_path / "out", NAMED).utterances == {"": 1}
    assert not listed.exists()


def test_share_that_cannot_be() -> None:
    with pytest.raises(SprachbundError, match=r"dev_share is 1\.5; give 0 up to"):
        OwnOptions(name="mine", dev_share=1.5)
    with pytest.raises(
        SprachbundError, match=r"test_share is 0\.5, beside 0\.5 for dev; leave a share for training"
    ):
        OwnOptions(name="mine", dev_share=0.5, test_share=0.5)

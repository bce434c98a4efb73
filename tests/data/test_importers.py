"""Corpora of other toolkits: small ones are made here, some by the toolkits, and faults have their places."""

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from pyarrow import parquet

from sprachbund.data.importers import read_common_voice, read_hugging_face, read_kaldi, read_lhotse, read_nemo
from sprachbund.data.manifest import Manifest
from sprachbund.data.own import OwnData, OwnOptions, prepare_own, read_table
from sprachbund.errors import SprachbundError
from tests.data.test_own import loudest_hz, tone
from tests.stories.support import command


def prepared(data: OwnData, tmp_path: Path, *, skip_bad: bool = False) -> Manifest:
    """The corpus of what was read."""
    prepare_own(data, tmp_path / "out", OwnOptions(name="other", skip_bad=skip_bad))
    return Manifest(tmp_path / "out")


def two_tones(path: Path) -> Path:
    """Half a second of 440 Hz, then half a second of 880."""
    times_s = np.arange(8000) / 16_000
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, np.concatenate([0.5 * np.sin(2 * np.pi * hz * times_s) for hz in (440, 880)]), 16_000
    )
    return path


def hz_of(manifest: Manifest) -> list[int]:
    return [round(loudest_hz(manifest.samples(i)) / 40) * 40 for i in range(len(manifest))]


def common_voice(root: Path) -> Path:
    tone(root / "clips" / "common_voice_de_1.mp3".replace("mp3", "wav"), 440)
    tone(root / "clips" / "common_voice_de_2.wav", 880)
    table = root / "validated.tsv"
    rows = [
        "client_id\tpath\tsentence\tup_votes\tlocale",
        'ann\tcommon_voice_de_1.wav\tSie sagte: "Ja.\t2\tde',
        "bob\tcommon_voice_de_2.wav\tGute  Nacht.\t2\tde",
    ]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def test_common_voice(tmp_path: Path) -> None:
    manifest = prepared(read_common_voice(common_voice(tmp_path / "de")), tmp_path)
    said = [(u.id, u.text, u.language, u.speaker) for u in manifest]
    assert said == [
        ("common_voice_de_1", 'Sie sagte: "Ja.', "de", "ann"),
        ("common_voice_de_2", "Gute Nacht.", "de", "bob"),
    ]
    assert hz_of(manifest) == [440, 880]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ('"""Good-bye,"" said the boy."', '"Good-bye," said the boy.'),
        ('"He said ""no"" twice."', 'He said "no" twice.'),
        ('"Good-bye."', '"Good-bye."'),
        ('"No," she said, ""never"".', '"No," she said, ""never"".'),
    ],
)
def test_quotation_marks_around_a_sentence_of_common_voice(tmp_path: Path, field: str, text: str) -> None:
    table = common_voice(tmp_path / "de")
    table.write_text(f"path\tsentence\ncommon_voice_de_1.wav\t{field}\n", encoding="utf-8")
    assert read_common_voice(table, "en").recordings[0].text == text


def test_faults_of_common_voice_have_file_and_line(tmp_path: Path) -> None:
    table = common_voice(tmp_path / "de")
    with table.open("a") as file:
        file.write("x\tgone\tNoch eins.\t0\tde\nx\ty\n\nx\tcommon_voice_de_1.wav\tWieder.\t0\tde\n")
    faults = [str(fault) for fault in read_common_voice(table).faults]
    assert [fault.split(" ")[0] for fault in faults] == [f"{table}:{line}:" for line in (4, 5, 7)]
    assert "no audio file" in faults[0]
    assert "gone.mp3" in faults[0]
    assert "has 2 fields where the header has 5" in faults[1]
    assert f"is in {table}:2 already" in faults[2]
    with pytest.raises(SprachbundError, match=rf"{table}:4: .*and 2 more.*--skip-bad"):
        prepared(read_common_voice(table), tmp_path)
    assert len(prepared(read_common_voice(table), tmp_path, skip_bad=True)) == 2


def kaldi(root: Path, *, segments: bool = True) -> Path:
    two_tones(root / "wav" / "talk.wav")
    files = {
        "wav.scp": "talk wav/talk.wav\n",
        "text": "talk-1 good morning\ntalk-2\tgood night\n" if segments else "talk good day\n",
        "utt2spk": "talk-1 ann\ntalk-2 ann\n",
        "text.de": "talk-1 guten Morgen\n" if segments else "talk guten Tag\n",
    }
    if segments:
        files["segments"] = "talk-1 talk 0.0 0.5\ntalk-2 talk 0.5 -1\n"
    for name, content in files.items():
        (root / name).write_text(content)
    return root


def test_kaldi_with_segments(tmp_path: Path) -> None:
    manifest = prepared(read_kaldi(kaldi(tmp_path / "data"), "en"), tmp_path)
    assert [(u.id, u.text, u.speaker, u.translations) for u in manifest] == [
        ("talk-1", "good morning", "ann", {"de": "guten Morgen"}),
        ("talk-2", "good night", "ann", {}),
    ]
    assert hz_of(manifest) == [440, 880]
    assert manifest.durations_s.tolist() == pytest.approx([0.5, 0.5], abs=1e-3)


def test_other_texts_of_kaldi_are_no_translations(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "data")
    (folder / "text.old").write_text("talk-1 good mourning\n")
    with pytest.raises(SprachbundError, match=r"text\.old: 'old' may mean something else than Mochi"):
        read_kaldi(folder, "en")
    (folder / "text.old").rename(folder / "text.translation_old")
    (first, _) = read_kaldi(folder, "en").recordings
    assert first.translations == {"de": "guten Morgen", "old": "good mourning"}


def test_kaldi_without_segments(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "data", segments=False)
    (folder / "utt2lang").write_text("talk en\n")
    (utterance,) = prepared(read_kaldi(folder), tmp_path)
    assert (utterance.id, utterance.language, utterance.duration_s) == ("talk", "en", 1.0)


@pytest.mark.parametrize(
    ("name", "content", "place", "message"),
    [
        (
            "segments",
            "talk-1 talk 0.7 0.2\ntalk-2 talk 0.5 1\n",
            "segments:1",
            "0.7 to 0.2 is no stretch of time",
        ),
        ("segments", "talk-1 talk\ntalk-2 talk 0.5 1\n", "segments:1", "is not recording, begin and end"),
        ("segments", "talk-2 talk 0.5 1\n", "text:1", "'talk-1' is not in"),
        ("wav.scp", "talk sph2pipe talk.sph |\n", "text:1", "the output of a command"),
        ("wav.scp", "talk wav/gone.wav\n", "text:1", "no audio file"),
        ("text", "talk-1\ntalk-2 good night\n", "text:1", "there is no text"),
        ("text", "talk-1 good morning\n", "segments:2", "'talk-2' is not in"),
        ("text.de", "talk-1 guten Morgen\ntalk2 gute Nacht\n", "text.de:2", "'talk2' is not in"),
        ("text.de", "talk-1 guten Morgen\ntalk-1 guten Tag\n", "text.de:2", "'talk-1' is in line 1 already"),
        ("wav.scp", "talk wav/talk.wav\ntalk wav/other.wav\n", "wav.scp:2", "'talk' is in line 1 already"),
        ("utt2spk", "talk-1 ann\ntalk-2 ann\ntalk-1 bob\n", "utt2spk:3", "'talk-1' is in line 1 already"),
        (
            "segments",
            "talk-1 talk 0 0.5\ntalk-2 talk 0.5 1\ntalk-1 talk 0.5 1\n",
            "segments:3",
            "'talk-1' is in line 1 already",
        ),
    ],
)
def test_faults_of_kaldi_have_file_and_line(
    tmp_path: Path, name: str, content: str, place: str, message: str
) -> None:
    folder = kaldi(tmp_path / "data")
    (folder / name).write_text(content)
    first = str(read_kaldi(folder, "en").faults[0])
    assert str(folder / place) in first
    assert message in first


def test_an_utterance_behind_the_end_of_its_recording_is_a_fault(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "data")
    (folder / "segments").write_text("talk-1 talk 0.0 0.5\ntalk-2 talk 0.5 9\n")
    with pytest.raises(SprachbundError, match=r"ends at 1\.00 s, the utterance at 9\.00 s"):
        prepared(read_kaldi(folder, "en"), tmp_path)


def test_lhotse_reads_what_lhotse_writes(tmp_path: Path) -> None:
    recording = Recording.from_file(two_tones(tmp_path / "talk.wav"))
    said = [
        SupervisionSegment(
            id=f"s{n}", recording_id=recording.id, start=0.0, duration=0.5, text=text, language="en",
            speaker="ann", custom={"translations": {"de": german}},
        )
        for n, (text, german) in enumerate([("good morning", "guten Morgen"), ("good night", "gute Nacht")])
    ]  # fmt: skip
    cuts = [
        MonoCut(id=f"c{n}", start=n / 2, duration=0.5, channel=0, recording=recording, supervisions=[one])
        for n, one in enumerate(said)
    ]
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    manifest = prepared(read_lhotse(path), tmp_path)
    assert [(u.id, u.text, u.translations["de"], u.speaker) for u in manifest] == [
        ("c0", "good morning", "guten Morgen", "ann"),
        ("c1", "good night", "gute Nacht", "ann"),
    ]
    assert hz_of(manifest) == [440, 880]


def test_several_supervisions_of_a_cut_and_one_channel(tmp_path: Path) -> None:
    times_s = np.arange(16_000) / 16_000
    both = np.stack([0.0 * times_s, np.sin(2 * np.pi * np.where(times_s < 0.5, 440, 880) * times_s)], 1)
    soundfile.write(tmp_path / "talk.wav", both, 16_000)
    recording = Recording.from_file(tmp_path / "talk.wav")
    said = [
        SupervisionSegment(
            id=f"s{n}", recording_id="talk", start=n / 2, duration=0.5, text=f"text {n}", language="en"
        )
        for n in range(2)
    ]
    cut = MonoCut(id="c", start=0.0, duration=1.0, channel=1, recording=recording, supervisions=said)
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    manifest = prepared(read_lhotse(tmp_path / "cuts.jsonl"), tmp_path)
    assert [u.id for u in manifest] == ["c-0", "c-1"]
    assert hz_of(manifest) == [440, 880]


def test_faults_of_cuts_have_file_and_line(tmp_path: Path) -> None:
    cuts = tmp_path / "cuts.jsonl.gz"
    lines = [
        "{",
        json.dumps({"type": "MixedCut", "id": "m"}),
        json.dumps({"type": "MonoCut", "id": "a", "supervisions": []}),
        json.dumps({"type": "MonoCut", "id": "b", "supervisions": [{"text": "x"}]}),
        json.dumps({"type": "MonoCut", "id": "c", "supervisions": [{"text": "good \ud800 day"}]}),
    ]
    cuts.write_bytes(gzip.compress("\n".join(lines).encode()))
    faults = [str(fault) for fault in read_lhotse(cuts, "en").faults]
    assert [fault.split(" ")[0] for fault in faults] == [f"{cuts}:{line}:" for line in (1, 2, 3, 4, 5)]
    said = [
        "not JSON",
        "is no MonoCut",
        "has no supervision",
        "lacks what a cut has",
        r"holds '\ud800', half of",
    ]
    assert all(one in fault for one, fault in zip(said, faults, strict=True))


def lhotse_cuts(path: Path, channels: int = 2) -> dict[str, Any]:
    """A cut of one second as lhotse writes it, of a recording with a file for each channel: 440 Hz, 880 Hz …"""
    sources = [
        {"type": "file", "channels": [n], "source": str(tone(path / f"{n}.wav", 440 * (n + 1), seconds=1.0))}
        for n in range(channels)
    ]
    said = {
        "id": "s",
        "recording_id": "r",
        "start": 0.0,
        "duration": 1.0,
        "text": "good day",
        "language": "en",
    }
    return {
        "id": "c", "start": 0.0, "duration": 1.0, "channel": 0, "supervisions": [said], "type": "MonoCut",
        "recording": {
            "id": "r", "sources": sources, "sampling_rate": 16_000, "num_samples": 16_000, "duration": 1.0,
            "channel_ids": list(range(channels)),
        },
    }  # fmt: skip


def read_cuts(path: Path, *cuts: dict[str, Any]) -> OwnData:
    path.write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    return read_lhotse(path)


def test_a_file_for_each_channel_of_a_cut(tmp_path: Path) -> None:
    cut = lhotse_cuts(tmp_path)
    read = read_cuts(tmp_path / "cuts.jsonl", cut, {**cut, "id": "d", "channel": 1})
    assert hz_of(prepared(read, tmp_path)) == [440, 880]
    (fault,) = read_cuts(tmp_path / "cuts.jsonl", {**cut, "channel": 2}).faults
    assert str(fault).endswith("cuts.jsonl:1: no file of its recording has the channel 2; mend the cut")


def test_channels_are_counted_within_their_file(tmp_path: Path) -> None:
    cut = lhotse_cuts(tmp_path)
    times_s = np.arange(16_000) / 16_000
    both = np.stack([0.5 * np.sin(2 * np.pi * hz * times_s) for hz in (1320, 1760)], 1)
    soundfile.write(tmp_path / "both.wav", both, 16_000)
    source = {"type": "file", "channels": [2, 3], "source": "both.wav"}
    cut["recording"]["sources"].append(source)
    read = read_cuts(tmp_path / "cuts.jsonl", *({**cut, "id": f"c{n}", "channel": n} for n in range(4)))
    assert hz_of(prepared(read, tmp_path)) == [440, 880, 1320, 1760]


def test_a_cut_whose_sound_is_changed_as_it_is_read_is_a_fault(tmp_path: Path) -> None:
    recording = Recording.from_file(two_tones(tmp_path / "talk.wav"))
    said = SupervisionSegment(id="s", recording_id="talk", start=0.0, duration=1.0, text="a", language="en")
    cut = MonoCut(id="c", start=0.0, duration=1.0, channel=0, recording=recording, supervisions=[said])
    lower = cut.resample(8000).with_id("lower")
    CutSet.from_cuts([cut, cut.perturb_speed(1.1), lower]).to_file(tmp_path / "cuts.jsonl")
    read = read_lhotse(tmp_path / "cuts.jsonl")
    assert [recording.utterance_id for recording in read.recordings] == ["c", "lower"]
    assert {recording.duration_s for recording in read.recordings} == {1.0}
    (fault,) = read.faults
    assert str(fault).startswith(f"{tmp_path / 'cuts.jsonl'}:2: its sound is changed as it is read (Speed)")


def test_a_supervision_is_the_utterance_also_where_it_is_alone(tmp_path: Path) -> None:
    cut = lhotse_cuts(tmp_path, 1)
    two_tones(tmp_path / "0.wav")
    times = [(0.0, 0.5), (0.5, 0.505), (-0.005, 1.01), (0.0, 1.0)]
    cuts = [
        {
            **cut,
            "id": f"c{n}",
            "supervisions": [{**cut["supervisions"][0], "start": start, "duration": length}],
        }
        for n, (start, length) in enumerate(times)
    ]
    manifest = prepared(read_cuts(tmp_path / "cuts.jsonl", *cuts), tmp_path)
    assert manifest.durations_s.tolist() == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert hz_of(manifest)[:2] == [440, 880]


@pytest.mark.parametrize(
    ("in_cut", "in_supervision", "message"),
    [
        ({"start": float("nan")}, {}, "1.0 s from nan s are no stretch of time"),
        ({"start": -1}, {}, "1.0 s from -1.0 s are no stretch of time"),
        ({"duration": -0.25}, {}, "-0.25 s from 0.0 s are no stretch of time"),
        ({}, {"duration": -0.25}, "its supervision is -0.25 s from 0.0 s of a cut of 1.0 s"),
        ({}, {"start": float("nan")}, "its supervision is 1.0 s from nan s"),
        ({}, {"start": 0.5}, "its supervision is 1.0 s from 0.5 s"),
    ],
)
def test_times_of_cuts_that_cannot_be(
    tmp_path: Path, in_cut: dict[str, Any], in_supervision: dict[str, Any], message: str
) -> None:
    cut = lhotse_cuts(tmp_path, 1)
    spoilt = {**cut, **in_cut, "id": "d", "supervisions": [{**cut["supervisions"][0], **in_supervision}]}
    read = read_cuts(tmp_path / "cuts.jsonl", cut, spoilt)
    (fault,) = read.faults
    assert str(fault).startswith(f"{tmp_path / 'cuts.jsonl'}:2: {message}")
    assert len(prepared(read, tmp_path, skip_bad=True)) == 1


def test_damaged_packed_cuts_are_named(tmp_path: Path) -> None:
    cuts = tmp_path / "cuts.jsonl.gz"
    packed = bytearray(gzip.compress(b"{}" * 999))
    packed[10] ^= 0xFF  # the kind of the first block
    cuts.write_bytes(packed)
    with pytest.raises(SprachbundError, match=r"cuts\.jsonl\.gz cannot be read"):
        read_lhotse(cuts)


def flac(frequency_hz: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(
        file, 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(8000) / 16_000), 16_000, format="FLAC"
    )
    return file.getvalue()


def hub_rows(count: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "id": f"u{n}",
            "audio": {"bytes": flac(440 + 440 * n), "path": f"{n}.flac"},
            "sentence": f"text {n}",
            "german": f"Text {n}",
            "speaker_id": n,
        }
        for n in range(count)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1)
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)
    return path


@pytest.mark.parametrize(
    ("write", "name"), [(write_parquet, "a.parquet"), (write_arrow, "data-00000-of-00001.arrow")]
)
def test_hugging_face(tmp_path: Path, write: Callable[[Path, list[dict[str, Any]]], Path], name: str) -> None:
    write(tmp_path / "set" / name, hub_rows(3))
    data = read_hugging_face(tmp_path / "set", "en", translations={"de": "german"})
    manifest = prepared(data, tmp_path)
    assert [(u.id, u.text, u.translations, u.speaker) for u in manifest] == [
        (f"u{n}", f"text {n}", {"de": f"Text {n}"}, str(n)) for n in range(3)
    ]
    assert hz_of(manifest) == [440, 880, 1320]


def test_rows_may_name_files(tmp_path: Path) -> None:
    tone(tmp_path / "set" / "a.wav", 880)
    rows = [{"audio": {"bytes": None, "path": "a.wav"}, "text": "here"}]
    manifest = prepared(
        read_hugging_face(write_parquet(tmp_path / "set" / "t.parquet", rows), "en"), tmp_path
    )
    assert (manifest[0].id, hz_of(manifest)) == ("t-000000", [880])


def hub_row(n: int, **changes: Any) -> dict[str, Any]:
    return {"audio": {"bytes": flac(440 + 440 * n), "path": f"{n}.flac"}, "text": f"text {n}", **changes}


def test_splits_of_a_hub_folder_are_not_mixed(tmp_path: Path) -> None:
    data = tmp_path / "set" / "data"
    for n, name in enumerate(["test-0-of-1", "train-0-of-2", "train-1-of-2"]):
        write_parquet(data / f"{name}.parquet", [hub_row(n)])
    with pytest.raises(SprachbundError) as refused:
        read_hugging_face(tmp_path / "set", "en")
    test, train = data / "test-0-of-1.parquet", data / "train*.parquet"
    assert str(refused.value) == (
        f"{tmp_path / 'set'} holds the splits test, train, which must not be mixed; "
        f"name one of {test}, {train} (a pattern in quotation marks)"
    )
    assert [r.text for r in read_hugging_face(test, "en").recordings] == ["text 0"]
    ids = [r.utterance_id for r in read_hugging_face(train, "en").recordings]
    assert ids == ["train-0-of-2-000000", "train-1-of-2-000000"]
    with pytest.raises(SprachbundError, match="holds the splits test, train"):
        read_hugging_face(data / "*.parquet", "en")
    with pytest.raises(SprachbundError, match="holds no tables"):
        read_hugging_face(data / "dev*.parquet", "en")


def test_what_datasets_has_cached_is_no_second_copy(tmp_path: Path) -> None:
    own, cached = "data-00000-of-00001", "cache-8a1b2c3d4e5f6071"
    for name in (own, cached, f"{cached}_00000_of_00002"):
        write_arrow(tmp_path / "set" / f"{name}.arrow", [hub_row(0)])
    assert len(read_hugging_face(tmp_path / "set", "en").recordings) == 1


def test_splits_in_folders_are_named_by_them(tmp_path: Path) -> None:
    for n, name in enumerate(["train", "train", "validation"]):
        write_arrow(tmp_path / "saved" / name / f"data-0000{n}-of-00002.arrow", [hub_row(n)])
    choices = f"{tmp_path / 'saved' / 'train'}, {tmp_path / 'saved' / 'validation'}"
    with pytest.raises(SprachbundError, match=f"the splits train, validation, .*; name one of {choices}$"):
        read_hugging_face(tmp_path / "saved", "en")
    assert len(read_hugging_face(tmp_path / "saved" / "train", "en").recordings) == 2


def test_ids_of_rows_name_the_folder_of_their_table(tmp_path: Path) -> None:
    for n, name in enumerate(["de", "fr"]):
        write_parquet(tmp_path / "set" / name / "0.parquet", [hub_row(n)])
    read = read_hugging_face(tmp_path / "set", "en")
    assert ([r.utterance_id for r in read.recordings], read.faults) == (["de-0-000000", "fr-0-000000"], [])


def test_ids_of_sentences_may_repeat_and_those_of_utterances_may_not(tmp_path: Path) -> None:
    for part in range(2):
        rows = [hub_row(n, id=7 + n // 2) for n in range(3)]
        write_parquet(tmp_path / "set" / f"{part}.parquet", rows)
    read = read_hugging_face(tmp_path / "set", "en")
    names = ["7", "7-000001", "8", "7-000003", "7-000004", "8-000005"]
    assert ([r.utterance_id for r in read.recordings], read.faults) == (names, [])
    path = write_parquet(tmp_path / "t.parquet", [hub_row(n, utterance_id="a") for n in range(2)])
    (fault,) = read_hugging_face(path, "en").faults
    assert str(fault) == f"{path}, row 2: the utterance 'a' is in {path}, row 1 already"


def test_faults_of_rows_have_their_place(tmp_path: Path) -> None:
    rows = hub_rows()
    rows[1]["sentence"] = None
    path = write_parquet(
        tmp_path / "t.parquet", [*rows, {**rows[0], "id": "u9", "audio": {"bytes": b"x", "path": None}}]
    )
    data = read_hugging_face(path, "en")
    assert [str(fault) for fault in data.faults] == [f"{path}, row 2: there is no text; fill it in"]
    (tmp_path / "out").mkdir()
    assert len(prepared(data, tmp_path, skip_bad=True)) == 1
    assert f"{path}, row 3" in (tmp_path / "out" / "skipped.tsv").read_text()


def test_tables_that_do_not_fit_say_what_they_have(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"audio": {"bytes": b"x", "path": None}, "words": "a"}])
    with pytest.raises(
        SprachbundError, match=r"no column of texts; name one of audio, words with --text-column"
    ):
        read_hugging_face(path, "en")
    with pytest.raises(SprachbundError, match=r"no column 'german'; it has audio, words"):
        read_hugging_face(path, "en", text="words", translations={"de": "german"})
    path = write_parquet(tmp_path / "n.parquet", [{"text": "a"}])
    with pytest.raises(SprachbundError, match=r"no column of audio \(bytes and path\); it has text"):
        read_hugging_face(path, "en")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(SprachbundError, match=r"broken\.parquet cannot be read"):
        read_hugging_face(tmp_path / "broken.parquet", "en")


def test_tables_with_commas(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a.wav", 440)
    tone(tmp_path / "in" / "b.wav", 880)
    table = tmp_path / "in" / "metadata.csv"
    table.write_text(
        'file_name,text,de\na.wav,"one, ""two""\nthree","eins, zwei"\n\nb.wav,four,\nc.wav,five,\n'
    )
    data = read_table(table, "en", commas=True)
    assert [str(fault).split(" ")[0] for fault in data.faults] == [f"{table}:6:"]
    manifest = prepared(data, tmp_path, skip_bad=True)
    assert [(u.text, u.translations) for u in manifest] == [
        ('one, "two" three', {"de": "eins, zwei"}),
        ("four", {}),
    ]
    assert hz_of(manifest) == [440, 880]
    table.write_text('path,text\na.wav,"one\n')
    with pytest.raises(SprachbundError, match=rf"{table}:2: not a table with commas"):
        read_table(table, "en", commas=True)


@pytest.mark.parametrize("column", ["text", "transcription", "transcript", "sentence"])
def test_the_text_of_a_folder_of_audio_has_the_names_of_the_hub(tmp_path: Path, column: str) -> None:
    tone(tmp_path / "in" / "a.wav", 440)
    table = tmp_path / "in" / "metadata.csv"
    table.write_text(f"file_name,{column}\na.wav,one\n")
    assert [r.text for r in read_table(table, "en", commas=True).recordings] == ["one"]
    table.write_text(f"file_name,text,{column}\na.wav,one,two\n")
    with pytest.raises(SprachbundError, match="column 'text' is there twice"):
        read_table(table, "en", commas=True)


def test_a_folder_or_semicolons_in_place_of_a_table(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="is a directory; name the table in it"):
        read_table(tmp_path, "en", commas=True)
    (tmp_path / "a.csv").write_text("path;text\na.wav;one\n")
    with pytest.raises(
        SprachbundError, match="between semicolons, not commas; save the table with tabs or commas"
    ):
        read_table(tmp_path / "a.csv", "en", commas=True)


def test_a_folder_of_common_voice_names_its_tables(tmp_path: Path) -> None:
    folder = common_voice(tmp_path / "de").parent
    (folder / "dev.tsv").touch()
    says = rf"{folder} is a folder, .*; name one of {folder / 'dev.tsv'}, {folder / 'validated.tsv'}$"
    with pytest.raises(SprachbundError, match=says):
        read_common_voice(folder)
    with pytest.raises(SprachbundError, match=r"name a table, such as validated\.tsv"):
        read_common_voice(folder / "clips")


def test_commands_prepare_them(tmp_path: Path) -> None:
    kaldi(tmp_path / "kaldi")
    write_parquet(tmp_path / "t.parquet", hub_rows())
    common_voice(tmp_path / "cv")
    jobs = {
        "kaldi": ["kaldi", tmp_path / "kaldi", "--language", "en"],
        "hub": ["huggingface", tmp_path / "t.parquet", "--language", "en", "--translation", "de=german"],
        "voice": ["commonvoice", tmp_path / "cv" / "validated.tsv"],
    }
    for name, job in jobs.items():
        done = command("data", "prepare", *job, "--out", tmp_path / name, "--licence", "CC0-1.0", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out) == {"utterances": {"": 2}, "skipped": [], "clipped": 0, "unchecked": 0}
        again = command("data", "prepare", *job, "--out", tmp_path / name, "--licence", "CC0-1.0", "--json")
        assert again.out == done.out
    wanted = ("--language", "en", "--translation", "age=german", "--out", tmp_path / "angal")
    assert "age (Angal) en" in command("data", "prepare", "huggingface", tmp_path / "t.parquet", *wanted).out
    wrong = command("data", "prepare", "huggingface", "x", "--out", "y", "--translation", "german")
    assert wrong.code == 2
    assert "give LANG=COLUMN" in wrong.error_lines[0]


def nemo(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_lines_of_nemo_of_one_sound_are_one_utterance(tmp_path: Path) -> None:
    two_tones(tmp_path / "wavs" / "talk.wav")
    tone(tmp_path / "whole.wav", 440)
    first = {
        "audio_filepath": "wavs/talk.wav",
        "offset": 0,
        "duration": 0.5,
        "source_lang": "en",
        "speaker": 7,
    }
    second = {**first, "offset": 0.5}
    path = nemo(
        tmp_path / "train.json",
        {**first, "target_lang": "de", "answer": "guten Morgen", "taskname": "ast"},
        {**first, "target_lang": "en", "text": "good  morning", "taskname": "asr"},
        {**second, "text": "good night"},
        {"audio_filepath": str(tmp_path / "whole.wav"), "duration": 0.5, "text": "hallo", "lang": "German"},
    )
    manifest = prepared(read_nemo(path), tmp_path)
    assert [(u.text, u.language, u.translations, u.speaker) for u in manifest] == [
        ("good morning", "en", {"de": "guten Morgen"}, "7"),
        ("good night", "en", {}, "7"),
        ("hallo", "de", {}, ""),
    ]
    assert hz_of(manifest) == [440, 880, 440]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([{"text": "a"}], "audio_filepath is None; name the recording"),
        ([{"audio_filepath": "a.wav"}], "there is no text; fill it in"),
        ([{"audio_filepath": "b.wav", "text": "a"}], r"there is no audio file .*b\.wav"),
        (
            [{"audio_filepath": "a.wav", "text": "a", "offset": 1}],
            "offset 1 and duration None are no stretch",
        ),
        (
            [{"audio_filepath": "a.wav", "text": "a", "offset": -1, "duration": 1}],
            "offset -1 and duration 1 are no str",
        ),
        ([{"audio_filepath": "a.wav", "text": "a", "shard_id": 0}], "its sound is in a tar file"),
        (
            [{"audio_filepath": "a.wav", "text": "a", "target_lang": "de"}],
            "has no text in en, the language spoken; add a line",
        ),
        (
            [{"audio_filepath": "a.wav", "text": "a"}] * 2,
            r"has two texts in en, the second in .*:2; remove one",
        ),
        (
            [
                {"audio_filepath": "a.wav", "text": "a"},
                {"audio_filepath": "a.wav", "text": "b", "lang": "fr"},
            ],
            r"is in en, and in fr in .*:2; mend one",
        ),
        ([["a"]], "is no object of JSON"),
    ],
)
def test_faults_of_lines_of_nemo(tmp_path: Path, lines: list[Any], reason: str) -> None:
    tone(tmp_path / "a.wav")
    (fault,) = read_nemo(nemo(tmp_path / "m.jsonl", *lines), "en").faults
    assert fault.where == f"{tmp_path / 'm.jsonl'}:1"
    assert re.search(reason, fault.reason)


def test_a_manifest_of_nemo_is_no_cut_set(tmp_path: Path) -> None:
    path = nemo(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "text": "a"})
    (fault,) = read_lhotse(path, "en").faults
    assert "prepare it with `sprachbund data prepare nemo`" in fault.reason

"""What all preparations share: parts, resuming, faults, checks, licences."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sprachbund.corpora.public import PREPARATIONS, CorpusOptions, Preparation
from sprachbund.corpora.public import preparation as writing
from sprachbund.corpora.public.items import Cut, Entry, Item, LeftOut, Part, Published
from sprachbund.corpora.public.preparation import Recordings
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from tests.audio.support import damage, write_ffmpeg
from tests.corpora.public.trees import loudest_hz, melody, tone

READ: list[str] = []


def made_up(source: Path, options: CorpusOptions) -> list[Part]:
    """Seven tones, one of them not there unless it is made, and a line that is no utterance."""

    def sound(number: int) -> np.ndarray:
        READ.append(f"{number}")
        with Recordings() as recordings:
            return recordings.samples(Cut(path=source / f"{number}.wav"))

    def entries() -> Iterator[Entry]:
        for number in range(7):
            yield Item(
                where=f"list:{number}",
                utterance_id=f"{number}",
                sound=lambda number=number: sound(number),
                language="de",
                text=f"Satz {number}",
                translations={"en": f"sentence {number}"},
            )
        yield LeftOut(where="list:7", reason="no transcript")

    return [Part(name="train", total=8, entries=entries)]


PREPARATION = Preparation(
    name="made-up",
    summary="",
    licence="CC0-1.0",
    homepage="https://example.org",
    read=made_up,
    published=[
        Published(part="train", key="de>en", utterances=7, hours=1, source="us"),
        Published(part="train", key="fr>en", utterances=9, source="us"),
        Published(part="dev", key="de>en", utterances=3, source="us"),
    ],
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    READ.clear()
    monkeypatch.setattr(writing, "SHARD_SIZE", 3)
    monkeypatch.setattr(writing.write_part, "__defaults__", (3,))
    for number in range(7):
        tone(tmp_path / "source" / f"{number}.wav", 400 + 100 * number)
    return tmp_path / "source"


def test_writes_shards_counts_and_licence(source: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    options = CorpusOptions(progress=lambda *step: steps.append(step))
    summary = PREPARATION.prepare(source, tmp_path / "out", options)
    manifest = Manifest(tmp_path / "out" / "train")
    assert [u.id for u in manifest] == list("0123456")
    assert [u.text_in("en") for u in manifest][5] == "sentence 5"
    assert loudest_hz(manifest.samples(4)) == pytest.approx(800, abs=4)
    assert len(list((tmp_path / "out" / "train").glob("cuts.*.jsonl"))) == 3
    info = json.loads((tmp_path / "out" / "train" / "dataset.json").read_text())
    assert info["licence"] == "CC0-1.0"
    assert info["languages"] == ["de", "en"]
    assert info["left_out"] == {"no transcript": 1}
    assert summary.parts["train"].utterances == 7
    assert summary.left_out == {"no transcript": 1}
    assert "list:7\tno transcript" in (tmp_path / "out" / "train" / "left_out.tsv").read_text()
    assert steps[-1] == ("train", 8, 8)


def test_compares_with_what_was_published(source: Path, tmp_path: Path) -> None:
    checks = PREPARATION.prepare(source, tmp_path / "out").checks
    assert checks[0] == "train de>en: whole (7 of 7 utterances), by us"
    assert checks[1].startswith("train de>en: differs: found 0.0 of 1 hours")
    assert checks[2].startswith("dev de>en: differs: found 0 of 3 utterances")
    assert len(checks) == 3, "nothing of French is there, so it is not missing"


def test_what_no_size_was_published_for_is_said(source: Path, tmp_path: Path) -> None:
    sizes = [Published(part="", key="de", hours=1, source="us")]
    whole = replace(PREPARATION, published=sizes).prepare(source, tmp_path / "hours").checks
    assert whole == ["all parts de: differs: found 0.0 of 1 hours, by us"]
    other = [Published(part="train", key="de>fr", utterances=7, source="us")]
    unchecked = replace(PREPARATION, published=other).prepare(source, tmp_path / "pair").checks
    assert unchecked == ["train: unchecked, no published size speaks of de"]
    some = replace(PREPARATION, published=[Published(part="train", utterances=7, source="us")])
    of_german = some.prepare(source, tmp_path / "german", CorpusOptions(languages=("de",))).checks
    assert of_german == ["train: unchecked, no published size speaks of de"], "the size is of all languages"


def test_a_split_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    options = CorpusOptions(splits=("train", "tset"))
    with pytest.raises(
        SprachbundError, match=r"holds no tset of made-up, but train; choose others with --splits"
    ):
        PREPARATION.prepare(source, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_goes_on_where_it_broke_off(source: Path, tmp_path: Path) -> None:
    (source / "4.wav").rename(source / "away")
    with pytest.raises(SprachbundError, match=r"list:4: .*4\.wav does not exist.*--skip-bad"):
        PREPARATION.prepare(source, tmp_path / "out")
    (source / "away").rename(source / "4.wav")
    READ.clear()
    summary = PREPARATION.prepare(source, tmp_path / "out")
    assert READ == ["3", "4", "5", "6"], "the first shard is not read again"
    assert [u.id for u in Manifest(tmp_path / "out" / "train")] == list("0123456")
    assert summary.parts["train"].utterances == 7
    READ.clear()
    again = PREPARATION.prepare(source, tmp_path / "out")
    assert not READ
    assert again == summary


def test_skips_what_cannot_be_read_when_told_and_says_so(source: Path, tmp_path: Path) -> None:
    (source / "4.wav").write_bytes(b"")
    summary = PREPARATION.prepare(source, tmp_path / "out", CorpusOptions(skip_bad=True))
    assert summary.left_out == {"no transcript": 1, writing.UNREADABLE: 1}
    assert summary.parts["train"].utterances == 6
    assert "4.wav is empty" in (tmp_path / "out" / "train" / "left_out.tsv").read_text()
    assert summary.checks[0].startswith("train de>en: whole"), "the corpus has it, though it was not written"


def test_where_nothing_could_be_read_it_is_listed_and_tried_again(source: Path, tmp_path: Path) -> None:
    for number in range(7):
        (source / f"{number}.wav").rename(source / f"away.{number}")
    out, options = tmp_path / "out", CorpusOptions(skip_bad=True)
    with pytest.raises(
        SprachbundError, match=r"not one utterance of made-up could be read; see .*left_out\.tsv"
    ):
        PREPARATION.prepare(source, out, options)
    assert "6.wav does not exist" in (out / "train" / "left_out.tsv").read_text()
    for number in range(7):
        (source / f"away.{number}").rename(source / f"{number}.wav")
    summary = PREPARATION.prepare(source, out, options)
    assert summary.parts["train"].utterances == 7
    assert summary.left_out == {"no transcript": 1}


def test_counts_clipped_utterances(source: Path, tmp_path: Path) -> None:
    for number in (2, 5):
        path = source / f"{number}.wav"
        soundfile.write(path, 4 * soundfile.read(path)[0], 16_000)
    summary = PREPARATION.prepare(source, tmp_path / "out")
    assert summary.parts["train"].clipped == 2
    assert PREPARATION.prepare(source, tmp_path / "out") == summary


def test_refuses_a_folder_of_something_else(source: Path, tmp_path: Path) -> None:
    PREPARATION.prepare(source, tmp_path / "out")
    with pytest.raises(SprachbundError, match="was begun with languages"):
        PREPARATION.prepare(source, tmp_path / "out", CorpusOptions(languages=("de",)))
    with pytest.raises(SprachbundError, match=r"is not a folder; get made-up from https://example\.org"):
        PREPARATION.prepare(tmp_path / "nowhere", tmp_path / "out")


def test_a_folder_that_holds_nothing_yet_is_free(source: Path, tmp_path: Path) -> None:
    """After a first try that failed, with a source that was mended or other options."""
    sound = {path: path.read_bytes() for path in source.glob("*.wav")}
    for path in sound:
        path.write_bytes(b"")
    with pytest.raises(SprachbundError, match=r"\.wav is empty"):
        PREPARATION.prepare(source, tmp_path / "out")
    for path, content in sound.items():
        path.write_bytes(content)
    PREPARATION.prepare(source, tmp_path / "out", CorpusOptions(languages=("de",)))
    assert any((tmp_path / "out").rglob("cuts.*.jsonl"))


def test_cuts_of_a_recording_that_cannot_be_sought_in_decode_it_once(tmp_path: Path) -> None:
    path = melody(tmp_path / "talk.mp3", [400, 800, 1200])
    with Recordings() as recordings:
        for number, hz in enumerate((400, 800, 1200)):
            samples = recordings.samples(Cut(path=path, start_s=number + 0.2, duration_s=0.5))
            assert loudest_hz(samples) == pytest.approx(hz, abs=4)
        path.unlink()  # the third is still there, from the first decoding
        assert len(recordings.samples(Cut(path=path, start_s=0, duration_s=1))) == 16_000


def test_cuts_behind_damage_are_faults(tmp_path: Path) -> None:
    path = damage(write_ffmpeg(tmp_path / "talk.m4a"))
    with Recordings() as recordings:
        assert len(recordings.samples(Cut(path=path, start_s=0.1, duration_s=0.3))) == 4800
        with pytest.raises(
            SprachbundError, match=r"damaged packets from .* before the utterance ends at 2\.70 s"
        ):
            recordings.samples(Cut(path=path, start_s=2.2, duration_s=0.5))


def test_integers_as_floats_are_faults(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.tile(np.float32([9830, -9830]), 8000), 16_000, subtype="FLOAT")
    unknown = path.rename(tmp_path / "loud.audio")
    with (
        Recordings() as recordings,
        pytest.raises(SprachbundError, match="divide 16-bit numbers by 32768"),
    ):
        recordings.samples(Cut(path=unknown, start_s=0.2, duration_s=0.5))


def test_a_cut_beyond_the_end_is_a_fault(tmp_path: Path) -> None:
    path = melody(tmp_path / "talk.wav", [400, 800])
    with Recordings() as recordings:
        assert len(recordings.samples(Cut(path=path, start_s=1.5, duration_s=0.6))) == 8000
        with pytest.raises(SprachbundError, match=r"ends at 2\.00 s, the utterance at 5\.50 s"):
            recordings.samples(Cut(path=path, start_s=1.5, duration_s=4))


@pytest.mark.parametrize("name", sorted(PREPARATIONS))
def test_every_corpus_says_what_it_is_and_what_is_missing(name: str, tmp_path: Path) -> None:
    preparation = PREPARATIONS[name]
    assert preparation.licence
    assert preparation.summary
    assert preparation.homepage.startswith("http")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SprachbundError, match=r"holds no .*; .*http") as caught:
        preparation.prepare(tmp_path / "empty", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_published_numbers_name_their_source() -> None:
    sizes = [size for preparation in PREPARATIONS.values() for size in preparation.published]
    assert all(size.source for size in sizes)
    assert len({(id(p), s.part, s.key) for p in PREPARATIONS.values() for s in p.published}) == len(sizes)


def test_the_documentation_says_of_every_corpus_whether_its_sizes_are_checked() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    for name, preparation in PREPARATIONS.items():
        (row,) = (
            line for line in page.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 4
        )
        assert row.split("|")[2].strip().startswith("unchecked") == (not preparation.published), name
    languages = {size.key for size in PREPARATIONS["fleurs"].published}
    assert f"{len(languages)} of the 102 languages" in page
    assert languages.isdisjoint({"de", "en", "fr"})

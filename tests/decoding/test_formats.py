"""Every format is read back with a parser of its own, and interrupted writing loses no finished segment."""

import csv
import errno
import html
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.decoding.formats import FORMATS, SegmentWriter, cues_of, render
from sprachbund.decoding.result import Segment, Word, build_translation, joined_text
from sprachbund.errors import SprachbundError

TEXTS = ["Guten Tag.", 'Tom & "Jerry" <b>laufen</b> -->', "tab\there", "谢谢,今天的天气很好。", "nie wieder"]


def translation(texts=TEXTS, dropped=(4,)):
    segments = [
        Segment(
            start_s=3.0 * n,
            end_s=3.0 * n + 2.5,
            source_language="en",
            target_language="de",
            text=text,
            words=(Word(start_s=3.0 * n, end_s=3.0 * n + 1, text=text.split()[0], probability=0.5),),
            mean_log_probability=-0.25,
            no_speech_probability=0.125,
            dropped="no speech: planted" if n in dropped else None,
        )
        for n, text in enumerate(texts)
    ]
    return build_translation(segments, target="de", source="en", duration_s=3.0 * len(texts))


def parse_cues(text: str, point: str) -> list[tuple[float, float, str]]:
    """A reader of SubRip and WebVTT cues after their specifications; strict about numbering and arrows."""
    cues = []
    clock = rf"(\d\d+):(\d\d):(\d\d)\{point}(\d\d\d)"
    for number, block in enumerate(re.split(r"\n\n+", text.strip("\n")), start=1):
        lines = block.split("\n")
        assert lines[0] == str(number)
        match = re.fullmatch(rf"{clock} --> {clock}", lines[1])
        assert match, lines[1]
        h, m, s, ms, *end = map(int, match.groups())
        start_s = h * 3600 + m * 60 + s + ms / 1000
        end_s = end[0] * 3600 + end[1] * 60 + end[2] + end[3] / 1000
        assert max(m, s, end[1], end[2]) < 60
        assert lines[2:]
        assert all("-->" not in line for line in lines[2:])
        cues.append((start_s, end_s, " ".join(lines[2:])))
    return cues


@pytest.mark.parametrize("mark", ["\uff01", "\uff1f", "\uff0c", "!", "?", ","])
def test_a_cue_ends_behind_a_mark_of_any_width(mark):
    four = "\u6211\u4eec\u8d70\u5427"
    text = f"{four * 2} {four * 8}{mark} {four * 8} {four * 4}"
    segment = Segment(start_s=0, end_s=9, source_language="zh", target_language="zh", text=text)
    assert "".join(cues_of(segment)[0].lines).endswith(mark)
    without = cues_of(replace(segment, text=text.replace(mark, "")))
    assert len("".join(without[0].lines)) > len(text) // 2


def test_no_text_of_srt_has_an_arrow() -> None:
    segment = replace(translation().segments[0], text="a --> b ---> c ----> d", words=())
    whole = replace(translation(), segments=(segment,), dropped=())
    assert render(whole, "srt").splitlines()[2] == "a -> b -> c -> d"


def test_srt_is_read_back():
    cues = parse_cues(render(translation(), "srt"), ",")
    assert [c[2] for c in cues] == ["Guten Tag.", 'Tom & "Jerry" <b>laufen</b> ->', "tab here", TEXTS[3]]
    # The last has the times of its words, which spell it out in full; those of the others do not.
    assert [c[:2] for c in cues] == [(0.0, 2.5), (3.0, 5.5), (6.0, 8.5), (9.0, 10.0)]


def test_vtt_is_read_back():
    text = render(translation(), "vtt")
    head, _, body = text.partition("\n\n")
    assert head == "WEBVTT"
    cues = parse_cues(body, ".")
    assert [html.unescape(c[2]) for c in cues] == [TEXTS[0], TEXTS[1], "tab here", TEXTS[3]]
    assert "<b>" not in body


def test_json_holds_everything():
    whole = translation()
    values = json.loads(render(whole, "json"))
    assert values["text"] == whole.text
    assert values["duration_s"] == 15.0
    assert [Segment.from_dict(s) for s in values["segments"]] == list(whole.segments)
    assert [s["dropped"] for s in values["dropped"]] == ["no speech: planted"]
    assert values["warnings"] == list(whole.warnings)
    assert set(values) == {
        "text",
        "source_language",
        "target_language",
        "duration_s",
        "segments",
        "dropped",
        "warnings",
    }


def test_jsonl_txt_and_tsv_are_read_back():
    lines = [json.loads(line) for line in render(translation(), "jsonl").splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert render(translation(), "txt").splitlines() == [TEXTS[0], TEXTS[1], "tab here", TEXTS[3]]
    reader = csv.DictReader(io.StringIO(render(translation(), "tsv")), delimiter="\t", quoting=csv.QUOTE_NONE)
    rows = list(reader)
    assert [r["text"] for r in rows] == [TEXTS[0], TEXTS[1], "tab here", TEXTS[3]]
    assert float(rows[1]["end_s"]) == 5.5


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=150), max_size=6))
def test_any_text_survives_subtitles(texts):
    whole = translation([t.strip() or "x" for t in texts], dropped=())
    body = render(whole, "vtt").removeprefix("WEBVTT\n\n")
    said = "".join(html.unescape(c[2]) for c in parse_cues(body, ".")) if body else ""
    assert "".join(said.split()) == "".join("".join(s.text.split()) for s in whole.segments)


@pytest.mark.parametrize("name", FORMATS)
def test_writing_piece_by_piece_equals_rendering(tmp_path, name):
    path = tmp_path / f"talk.{name}"
    whole = translation()
    with SegmentWriter(path, name) as writer:
        for segment in sorted([*whole.segments, *whole.dropped], key=lambda s: (s.start_s, s.end_s)):
            writer.write(segment)
        assert writer.finish(whole) == path
    assert path.read_text() == render(translation(), name)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", FORMATS)
def test_finished_segments_are_on_disk_before_the_end(tmp_path, name):
    path = tmp_path / f"talk.{name}"
    segments = translation().segments
    with SegmentWriter(path, name) as writer:
        for segment in segments:
            writer.write(segment)
        assert not path.exists()
        seen = writer.partial.read_text()
        assert "Guten Tag." in seen
        assert "tab" in seen
        writer.finish(translation())


@pytest.mark.parametrize("name", FORMATS)
def test_an_interruption_keeps_what_was_finished(tmp_path, name):
    path = tmp_path / f"talk.{name}"
    path.write_text("the result of last week")
    segments = translation().segments
    with pytest.raises(KeyboardInterrupt) as caught, SegmentWriter(path, name) as writer:  # noqa: PT012
        writer.write(segments[0])
        writer.write(segments[2])
        raise KeyboardInterrupt
    assert path.read_text() == "the result of last week"
    partial = tmp_path / f"talk.{name}.partial"
    assert str(partial) in caught.value.__notes__[0]
    text = partial.read_text()
    assert "Guten Tag." in text
    assert "here" in text
    if name == "srt":
        assert len(parse_cues(text, ",")) == 2
    if name in ("json", "jsonl"):
        assert [json.loads(line)["text"] for line in text.splitlines()] == [TEXTS[0], TEXTS[2]]


def test_an_interruption_before_the_first_segment_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), SegmentWriter(tmp_path / "talk.vtt", "vtt"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


FILL = """
import sys
from sprachbund.decoding.formats import SegmentWriter
from sprachbund.errors import SprachbundError
sys.path.insert(0, {root!r})
from tests.decoding.test_formats import translation
whole = translation(["Satz Nummer %d." % n for n in range(200)], dropped=())
try:
    with SegmentWriter({path!r}, {name!r}) as writer:
        for segment in whole.segments:
            writer.write(segment)
        writer.finish(whole)
except SprachbundError as error:
    sys.exit("; ".join(["told: " + str(error), *getattr(error, "__notes__", [])]))
"""


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_keeps_whole_segments(tmp_path, pytestconfig, name):
    path = tmp_path / f"talk.{name}"
    code = FILL.format(root=str(pytestconfig.rootpath), path=str(path), name=name)

    def no_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    done = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, preexec_fn=no_room, check=False
    )
    partial = tmp_path / f"talk.{name}.partial"
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("told: ")
    assert str(partial) in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert os.listdir(tmp_path) == [partial.name]
    text = partial.read_text()
    assert 500 < len(text.encode()) <= 1500
    if name == "srt":
        cues = parse_cues(text, ",")
        assert [c[2] for c in cues] == [f"Satz Nummer {n}." for n in range(len(cues))]
    elif name != "vtt":
        assert text.endswith("\n")
        last = text.splitlines()[-1]
        assert json.loads(last) if name in ("json", "jsonl") else re.search(r"Satz Nummer \d+\.$", last)


def test_names_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(SprachbundError, match="choose another folder"):
        SegmentWriter(tmp_path / "missing" / "talk.srt", "srt")
    with pytest.raises(SprachbundError, match="is a directory"):
        SegmentWriter(tmp_path, "srt")
    with pytest.raises(SprachbundError, match="format 'doc' is not known; choose from txt, srt"):
        SegmentWriter(tmp_path / "talk.doc", "doc")


def test_formats_load_without_torch():
    code = "import sys, sprachbund.decoding.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_texts_are_joined_as_their_language_writes():
    first, second = translation(["今天", "很好"], dropped=()).segments
    assert joined_text([first, second]) == "今天 很好"
    assert joined_text([replace(s, target_language="zh-Hant") for s in (first, second)]) == "今天很好"

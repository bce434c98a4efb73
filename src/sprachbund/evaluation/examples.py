"""Examples in a report: one utterance each, to be listened to, with the words marked that do not agree."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.failures import FailureJudge
from sprachbund.evaluation.gather import units
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.lines import Line
from sprachbund.text.normalize import has_no_spaces

_NO_SOUND = '<span class="muted">no sound here</span>'


class Sounds:
    """Sound of lines, looked up in their corpora.

    Args:
        directories: of the corpora.
        needed: whether one that is not there is an error, or its lines just stay without sound.
    """

    def __init__(self, directories: Sequence[Path], *, needed: bool = False) -> None:
        self._needed = needed
        self._places: dict[tuple[str, str], tuple[Manifest, int]] = {}
        for directory in directories:
            try:
                manifest, name = Manifest(directory), corpus_name(directory)
            except SprachbundError:
                if needed:
                    raise
                continue  # a report without sound is still a report
            self._places |= {(name, u.id): (manifest, index) for index, u in enumerate(manifest)}

    def player(self, line: Line) -> str:
        """An audio element that holds the sound; words when it is not there. Raises SprachbundError when it is
        needed and cannot be read."""
        import soundfile

        if (line.corpus, line.id) not in self._places:
            return _NO_SOUND
        manifest, index = self._places[line.corpus, line.id]
        try:
            samples = manifest.samples(index)
        except SprachbundError:
            if self._needed:
                raise
            return _NO_SOUND
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        coded = base64.b64encode(buffer.getvalue()).decode()
        return f'<audio controls preload="metadata" src="data:audio/flac;base64,{coded}"></audio>'


def examples(lines: Sequence[Line], sounds: Sounds, *, guarded: bool) -> str:
    """One card for each line, with what the guard made of it; empty without lines."""
    judge = FailureJudge({line.target for line in lines}) if lines else None
    rows = []
    for written in lines:
        line = written.behind_guard() if guarded else written
        failed = [name for name, is_so in judge.judge(line).items() if is_so] if judge else []
        tags = "".join(f'<span class="tag">{escape(name)}</span>' for name in failed)
        if line.evidence.dropped:
            tags += f'<span class="tag">guard: {escape(line.evidence.dropped)}</span>'
        wrong, right = marked(line)
        about = [line.corpus, line.kind, line.speaker, f"{line.duration_s:.1f} s", line.id]
        rows.append(
            f"<article><header><b>{escape(line.source)} → {escape(line.target)}</b> "
            f'<span class="muted">{escape(" · ".join(filter(None, about)))}</span>{tags}</header>'
            f"{sounds.player(line)}"
            f'<p class="said" lang="{escape(line.source)}">{escape(line.transcript)}</p>'
            f'<p lang="{escape(line.target)}"><i>wrote</i> {wrong}</p>'
            f"{_dropped(written) if line.evidence.dropped else ''}"
            f'<p lang="{escape(line.target)}"><i>should be</i> {right}</p></article>'
        )
    return f'<div class="examples">{"".join(rows)}</div>' if rows else ""


def marked(line: Line) -> tuple[str, str]:
    """Hypothesis and reference as HTML, with the words marked that do not agree."""
    import jiwer

    hypothesis, reference = (units(text, line.target) for text in (line.hypothesis, line.reference))
    joint = "" if has_no_spaces(line.target) else " "
    if not hypothesis or not reference:
        nothing = '<span class="muted">nothing</span>'
        return _mark(hypothesis, "del", joint) or nothing, _mark(reference, "ins", joint) or nothing
    chunks = jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]
    left, right = [], []
    for c in chunks:
        tags = ("", "") if c.type == "equal" else ("del", "ins")
        left.append(_mark(hypothesis[c.hyp_start_idx : c.hyp_end_idx], tags[0], joint))
        right.append(_mark(reference[c.ref_start_idx : c.ref_end_idx], tags[1], joint))
    return joint.join(filter(None, left)), joint.join(filter(None, right))


def _dropped(line: Line) -> str:
    return f'<p class="muted"><i>dropped</i> {escape(line.hypothesis)}</p>' if line.hypothesis else ""


def _mark(words: Sequence[str], tag: str, joint: str) -> str:
    text = escape(joint.join(words))
    return f"<{tag}>{text}</{tag}>" if tag and text else text

"""An evaluation as one self-contained HTML page with figures, examples and sound."""

import base64
import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from html import escape
from operator import itemgetter
from pathlib import Path

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Utterances
from sprachbund.data.shards import open_corpus
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import figures
from sprachbund.evaluation import tables as present
from sprachbund.evaluation.failures import DEFINITIONS, FailureClassifier
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.lines import Line, in_chunks
from sprachbund.evaluation.manifest import ResultManifest
from sprachbund.evaluation.metrics import Counts, chrf
from sprachbund.evaluation.quality import TRANSCRIPTION, TRANSLATION
from sprachbund.evaluation.tables import has_guard
from sprachbund.text.languages import writes_spaces
from sprachbund.text.normalize import spaced_characters
from sprachbund.util.files import write_text

# One pass over the hypotheses: counts of all, texts of the examples.

_SEED = 5


@dataclass(kw_only=True)
class Gathered:
    """Sums over N lines of speech.

    Attributes:
        counts: chrF's (N, K).
        durations_s: seconds of the sound, N.
        lengths: words in the reference (characters in scripts without spaces), N.
        worst: lowest sentence chrF, one target of an utterance, pairs in turn so that one bad pair is not all.
        random: lines drawn at random with the same chance each.
    """

    counts: Counts = field(default_factory=lambda: np.zeros((0, 0)))
    durations_s: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    worst: Sequence[Line] = ()
    random: list[Line] = field(default_factory=list)


def gather(lines: Iterable[Line], num_examples: int, *, guarded: bool) -> Gathered:
    """One pass over the lines of an evaluation; those without speech are passed over.

    Args:
        lines: as the model wrote them.
        num_examples: worst and random ones to keep, each.
        guarded: whether to count what the guard lets pass, or all.
    """
    scorer, rng, gathered = chrf(), random.Random(_SEED), Gathered()
    counts: list[Counts] = []
    worst: dict[tuple[str, str], list[tuple[float, Line]]] = {}
    for some in in_chunks(line for line in lines if line.source):
        seen = [line.behind_guard().hypothesis if guarded else line.hypothesis for line in some]
        counts.append(scorer.statistics(seen, [line.reference for line in some]))
        _keep_random(gathered.random, some, len(gathered.durations_s), num_examples, rng)
        gathered.durations_s += [line.duration_s for line in some]
        gathered.lengths += [float(len(units(line.reference, line.target))) for line in some]
        for row, line, text in zip(counts[-1], some, seen, strict=True):
            if text != line.reference:
                worst.setdefault(line.pair, []).append((float(scorer.score(row)), line))
        # Half of them may be of utterances that another pair shows.
        worst = {pair: nsmallest(2 * num_examples, kept, key=itemgetter(0)) for pair, kept in worst.items()}
    gathered.counts = np.concatenate(counts) if counts else gathered.counts
    gathered.worst = _in_turn([worst[pair] for pair in sorted(worst)], num_examples)
    return gathered


def units(text: str, language: str) -> list[str]:
    """Words as people see them; characters in scripts without spaces."""
    return text.split() if writes_spaces(language) else spaced_characters(text).split()


def _keep_random(kept: list[Line], some: Sequence[Line], passed: int, size: int, rng: random.Random) -> None:
    """Reservoir sampling: every line passed so far has the same chance to be among the kept."""
    for number, line in enumerate(some, start=passed):
        slot = number if number < size else rng.randrange(number + 1)
        if number < size:
            kept.append(line)
        elif slot < size:
            kept[slot] = line


def _in_turn(queues: Sequence[Sequence[tuple[float, Line]]], count: int) -> list[Line]:
    chosen: list[Line] = []
    taken: set[tuple[str, str]] = set()
    for rank in range(max(map(len, queues), default=0)):
        there = [queue[rank] for queue in queues if rank < len(queue)]
        for _, line in sorted(there, key=itemgetter(0)):
            if len(chosen) < count and (line.corpus, line.id) not in taken:
                taken.add((line.corpus, line.id))
                chosen.append(line)
    return chosen


# Examples: one utterance each, with its sound and the differing words marked.

_NO_SOUND = '<span class="muted">no sound here</span>'


class Sounds:
    """Sound of lines, looked up in their corpora.

    Args:
        directories: directories of the corpora.
        needed: whether one that is not there is an error, or its lines just stay without sound.
    """

    def __init__(self, directories: Sequence[Path], *, needed: bool = False) -> None:
        self._needed = needed
        self._recordings: dict[tuple[str, str], tuple[Utterances, int]] = {}
        for directory in directories:
            try:
                manifest, name = open_corpus(directory), corpus_name(directory)
            except SprachbundError:
                if needed:
                    raise
                continue  # a report without sound is still a report
            self._recordings |= {(name, u.id): (manifest, index) for index, u in enumerate(manifest)}

    def player(self, line: Line) -> str:
        """An audio element that holds the sound; words when it is not there. Raises SprachbundError when it is
        needed and cannot be read."""
        import soundfile

        if (line.corpus, line.id) not in self._recordings:
            return _NO_SOUND
        manifest, index = self._recordings[line.corpus, line.id]
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
    """One card for each line, with what the guard made of it; empty without lines.

    Args:
        lines: lines that are shown.
        sounds: finds the audio of a line.
        guarded: whether the guard was used.
    """
    classifier = FailureClassifier({line.target for line in lines}) if lines else None
    rows = []
    for written in lines:
        line = written.behind_guard() if guarded else written
        failed = [name for name, is_so in classifier.classify(line).items() if is_so] if classifier else []
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
    joint = " " if writes_spaces(line.target) else ""
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


_MAX_BARS = 20
_STYLE = Path(__file__).parent / "assets" / "report.css.txt"


def write_report(
    lines: Iterable[Line],
    manifest: ResultManifest,
    path: Path,
    *,
    data: Sequence[Path] | None = None,
    num_examples: int = 12,
) -> None:
    """Write the page; it appears whole or not at all.

    Args:
        lines: lines of the evaluation, before the guard.
        manifest: manifest of the same evaluation.
        path: path of the page.
        data: corpora to take sound from, which have to be there; where the manifest found them if not given,
            and without sound where they are gone.
        num_examples: worst and random ones each.
    """
    directories = [Path(used.path) for used in manifest.data] if data is None else list(data)
    page = build_report(lines, manifest, Sounds(directories, needed=data is not None), num_examples)
    write_text(path, page)


def build_report(lines: Iterable[Line], manifest: ResultManifest, sounds: Sounds, num_examples: int) -> str:
    """The page as HTML.

    Args:
        lines: all hypotheses, read once.
        manifest: manifest of the same evaluation.
        sounds: finds the audio of a line.
        num_examples: worst and random examples each.
    """
    guarded = has_guard(manifest)
    gathered = gather(lines, num_examples, guarded=guarded)
    manifest.check_lines(len(gathered.durations_s))
    sections = [
        _section("Scores", _tiles(manifest)),
        _section("Pairs", _pairs(manifest)),
        _section("Code-switched speech", _switching(manifest)),
        _section("Failures", _failures(manifest)),
        _section("Length and duration", _breakdown(gathered)),
        _section("Groups", _groups(manifest)),
        _section("Speed side by side", _table(present.race_table(manifest)) if manifest.race else ""),
        _section("Worst examples", examples(gathered.worst, sounds, guarded=guarded)),
        _section("Random examples", examples(gathered.random, sounds, guarded=guarded)),
        _section("How it was measured", _provenance(manifest)),
    ]
    title = f"{manifest.model.name} on {', '.join(data.name for data in manifest.data)}"
    style = _STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{escape(manifest.model.name)}</h1>"
        f'<p class="muted">{escape(title)}; {escape(manifest.created)}</p>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _tiles(manifest: ResultManifest) -> str:
    tiles = []
    for label, metric, task in (
        ("chrF, translation", "chrF", TRANSLATION),
        ("BLEU, translation", "BLEU", TRANSLATION),
        ("exactly right, translation", "exact", TRANSLATION),
        ("word error rate, transcription", "WER", TRANSCRIPTION),
    ):
        if number := manifest.number(metric, "all", group="mean", task=task, text="raw"):
            unit = "%" if metric in {"exact", "WER"} else ""
            tiles.append((label, f"{number.value:.1f}{unit}", f"{number.num_lines} texts, mean over pairs"))
    for rate in manifest.failures:
        if rate.failure == "hallucination" and rate.member == "all" and rate.guard == has_guard(manifest):
            where = "behind the guard" if rate.guard else "without guard"
            tiles.append(("text on no speech", f"{rate.percent:.1f}%", f"{rate.evaluated} sounds, {where}"))
    if factor := manifest.measured.get("real_time_factor"):
        cores = manifest.configuration.get("num_threads")
        tiles.append(("real-time factor", f"{factor:.3f}", f"{cores} threads, all targets at once"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span>'
        f"<small>{escape(note)}</small></div>"
        for label, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _pairs(manifest: ResultManifest) -> str:
    maps = "".join(
        f"<figure><figcaption>{name}</figcaption>{figures.heat_map(manifest, metric)}</figure>"
        for metric, name in (("chrF", "chrF"), ("exact", "exactly right, %"))
    )
    note = '<p class="muted">From the language on the left into the one above; framed: transcription.</p>'
    return f'<div class="side">{maps}</div>{note}{_table(present.means_table(manifest))}'


def _failures(manifest: ResultManifest) -> str:
    if not manifest.failures:
        return ""
    measured = {rate.failure for rate in manifest.failures}
    definitions = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(' '.join(text.split()))}</dd>"
        for name, text in DEFINITIONS.items()
        if name in measured
    )
    return (
        f'<div class="side"><figure>{figures.failure_bars(manifest)}</figure>'
        f"{_table(present.failures_table(manifest))}</div>"
        f"<details><summary>What each failure is</summary><dl>{definitions}</dl></details>"
    )


def _switching(manifest: ResultManifest) -> str:
    """The section about switches of language, when there are any."""
    if not figures.has_switching(manifest):
        return ""
    pairs = present.switching_pairs_table(manifest)
    by_pair = f"<h3>By direction</h3>{_table(pairs)}" if pairs.rows else ""
    return (
        f"<figure>{figures.switching_bars(manifest)}</figure>"
        f"{_table(present.switching_table(manifest))}{by_pair}"
        '<p class="muted">Near a switch: within two words of it in the reference. Router accuracy: spans of which '
        "more than half of the time went to the experts of their language. Of: spans, words, texts or seconds "
        "evaluated; left out: those without the texts, positions or routes that a score needs.</p>"
    )


def _breakdown(gathered: Gathered) -> str:
    drawn = [
        figures.bin_bars(figures.bins_by(gathered.counts, chrf(), values, edges), "chrF", unit)
        for values, edges, unit in (
            (gathered.durations_s, figures.DURATION_EDGES_S, "seconds of sound"),
            (gathered.lengths, figures.LENGTH_EDGES, "words in the reference"),
        )
    ]
    inside = "".join(f"<figure>{one}</figure>" for one in drawn)
    note = '<p class="muted">All pairs pooled, transcription included; lines are 95% intervals.</p>'
    return f'<div class="side">{inside}</div>{note}' if gathered.durations_s else ""


def _groups(manifest: ResultManifest) -> str:
    drawn = []
    for group in ("corpus", "kind", "speaker"):
        scores = {
            n.member: (n.value, n.num_lines)
            for n in manifest.numbers
            if (n.group, n.metric, n.task) == (group, "chrF", TRANSLATION)
        }
        if len(scores) < 2:
            continue
        worst = dict(sorted(scores.items(), key=lambda item: item[1][0])[:_MAX_BARS])
        title = f"By {group}" + (
            f": the lowest {_MAX_BARS} of {len(scores)}" if len(worst) < len(scores) else ""
        )
        table = _table(present.groups_table(manifest, group))
        drawn.append(
            f"<h3>{title}</h3><figure>{figures.group_bars(worst, 'chrF, translation')}</figure>"
            f"<details><summary>All scores by {group}</summary>{table}</details>"
        )
    return "".join(drawn)


def _provenance(manifest: ResultManifest) -> str:
    lines = [
        *present.signatures(manifest),
        *present.left_out(manifest),
        present.speed_line(manifest),
        f"model {manifest.model.path}: SHA-256 {manifest.model.sha256}",
        *[f"data {data.name}: SHA-256 {data.sha256}" for data in manifest.data],
        f"commit {manifest.commit or 'unknown'}; seed {manifest.seed}",
        "machine: " + ", ".join(f"{key} {value}" for key, value in manifest.machine.items()),
        "versions: " + ", ".join(f"{key} {value}" for key, value in manifest.versions.items()),
    ]
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(table: present.Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

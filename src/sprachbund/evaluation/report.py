"""One self-contained HTML page of an evaluation: to be looked at and listened to rather than read."""

import base64
import io
import random
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import figures, present
from sprachbund.evaluation.failures import DEFINITIONS, FailureJudge
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.lines import Line, by_pair
from sprachbund.evaluation.manifest import ResultManifest
from sprachbund.evaluation.metrics import Counts, chrf
from sprachbund.evaluation.quality import TRANSCRIPTION, TRANSLATION
from sprachbund.text.normalize import has_no_spaces, spaced_characters

_SEED = 5
_MAX_BARS = 20
_STYLE = Path(__file__).parent / "assets" / "report.css.txt"


def write_report(
    lines: Sequence[Line],
    manifest: ResultManifest,
    path: Path,
    *,
    data: Sequence[Path] | None = None,
    num_examples: int = 12,
) -> None:
    """Write the page; it appears whole or not at all.

    Args:
        lines: of the evaluation, before the guard.
        manifest: of the same evaluation.
        path: of the page.
        data: corpora to take sound from; where the manifest found them if not given. Without them, no sound.
        num_examples: worst and random ones each.
    """
    places = [Path(used.path) for used in manifest.data] if data is None else list(data)
    page = build_report(lines, manifest, Sounds(places), num_examples)
    partial = path.with_suffix(path.suffix + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


class Sounds:
    """Sound of lines, looked up in their corpora."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._places: dict[tuple[str, str], tuple[Manifest, int]] = {}
        for directory in directories:
            try:
                manifest = Manifest(directory)
            except SprachbundError:
                continue  # a report without sound is still a report
            name = corpus_name(directory)
            self._places |= {(name, u.id): (manifest, index) for index, u in enumerate(manifest)}

    def player(self, line: Line) -> str:
        """An audio element that holds the sound; words when it is not there."""
        import soundfile

        if (line.corpus, line.id) not in self._places:
            return '<span class="muted">no sound here</span>'
        manifest, index = self._places[line.corpus, line.id]
        buffer = io.BytesIO()
        soundfile.write(buffer, manifest.samples(index), 16_000, format="FLAC", subtype="PCM_16")
        coded = base64.b64encode(buffer.getvalue()).decode()
        return f'<audio controls preload="metadata" src="data:audio/flac;base64,{coded}"></audio>'


def build_report(lines: Sequence[Line], manifest: ResultManifest, sounds: Sounds, num_examples: int) -> str:
    """The page as HTML."""
    guarded = [line.behind_guard() if _has_guard(manifest) else line for line in lines]
    spoken = [line for line in guarded if line.source]
    written = {(x.corpus, x.id, x.target): x.hypothesis for x in lines}
    scorer = chrf()
    counts = scorer.statistics([x.hypothesis for x in spoken], [x.reference for x in spoken])
    sections = [
        _section("Scores", _tiles(manifest)),
        _section("Pairs", _pairs(manifest)),
        _section("Failures", _failures(manifest)),
        _section("Length and duration", _breakdown(spoken, counts)),
        _section("Groups", _groups(manifest)),
        _section("Worst examples", _examples(_worst(spoken, counts, num_examples), written, sounds)),
        _section("Random examples", _examples(_random(spoken, num_examples), written, sounds)),
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
        if rate.failure == "hallucination" and rate.member == "all" and rate.guard == _has_guard(manifest):
            where = "behind the guard" if rate.guard else "without guard"
            tiles.append(("text on no speech", f"{rate.percent:.1f}%", f"{rate.judged} sounds, {where}"))
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
    judged = {rate.failure for rate in manifest.failures}
    definitions = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(' '.join(text.split()))}</dd>"
        for name, text in DEFINITIONS.items()
        if name in judged
    )
    return (
        f'<div class="side"><figure>{figures.failure_bars(manifest)}</figure>'
        f"{_table(present.failures_table(manifest))}</div>"
        f"<details><summary>What each failure is</summary><dl>{definitions}</dl></details>"
    )


def _breakdown(lines: Sequence[Line], counts: Counts) -> str:
    durations = [line.duration_s for line in lines]
    lengths = [float(len(_units(line.reference, line.target))) for line in lines]
    drawn = [
        figures.bin_bars(
            figures.bins_by(lines, counts, chrf(), durations, figures.DURATION_EDGES_S),
            "chrF",
            "seconds of sound",
        ),
        figures.bin_bars(
            figures.bins_by(lines, counts, chrf(), lengths, figures.LENGTH_EDGES),
            "chrF",
            "words in the reference",
        ),
    ]
    inside = "".join(f"<figure>{one}</figure>" for one in drawn)
    note = '<p class="muted">All pairs pooled, transcription included; lines are 95% intervals.</p>'
    return f'<div class="side">{inside}</div>{note}'


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


def _worst(lines: Sequence[Line], counts: Counts, count: int) -> list[Line]:
    """Lowest sentence chrF, one target of an utterance, pairs in turn so that one bad pair is not all."""
    scorer = chrf()
    score = {
        (x.corpus, x.id, x.target): float(scorer.score(row)) for x, row in zip(lines, counts, strict=True)
    }
    queues = [
        sorted(found, key=lambda x: score[x.corpus, x.id, x.target]) for found in by_pair(lines).values()
    ]
    chosen: list[Line] = []
    taken: set[tuple[str, str]] = set()
    for place in range(max(map(len, queues), default=0)):
        rank = sorted(
            (queue[place] for queue in queues if place < len(queue)),
            key=lambda x: score[x.corpus, x.id, x.target],
        )
        for line in rank:
            if (
                len(chosen) < count
                and (line.corpus, line.id) not in taken
                and line.hypothesis != line.reference
            ):
                taken.add((line.corpus, line.id))
                chosen.append(line)
    return chosen


def _random(lines: Sequence[Line], count: int) -> list[Line]:
    return random.Random(_SEED).sample(list(lines), min(count, len(lines)))


def _examples(lines: Sequence[Line], written: Mapping[tuple[str, str, str], str], sounds: Sounds) -> str:
    """One card for each line; `written` is what the model wrote before the guard, by corpus, id and target."""
    judge = FailureJudge({line.target for line in lines}) if lines else None
    rows = []
    for line in lines:
        failed = [name for name, is_so in judge.judge(line).items() if is_so] if judge else []
        tags = "".join(f'<span class="tag">{escape(name)}</span>' for name in failed)
        if line.evidence.dropped:
            tags += f'<span class="tag">guard: {escape(line.evidence.dropped)}</span>'
        wrong, right = marked(line)
        rows.append(
            f"<article><header><b>{escape(line.source)} → {escape(line.target)}</b> "
            f'<span class="muted">{escape(line.corpus)} · {escape(line.kind)} · {escape(line.speaker)} · '
            f"{line.duration_s:.1f} s · {escape(line.id)}</span>{tags}</header>{sounds.player(line)}"
            f'<p class="said" lang="{escape(line.source)}">{escape(line.transcript)}</p>'
            f'<p lang="{escape(line.target)}"><i>wrote</i> {wrong}</p>'
            f"{_hidden(written[line.corpus, line.id, line.target]) if line.evidence.dropped else ''}"
            f'<p lang="{escape(line.target)}"><i>should be</i> {right}</p></article>'
        )
    return f'<div class="examples">{"".join(rows)}</div>' if rows else ""


def _hidden(text: str) -> str:
    return f'<p class="muted"><i>dropped</i> {escape(text)}</p>' if text else ""


def marked(line: Line) -> tuple[str, str]:
    """Hypothesis and reference as HTML, with the words marked that do not agree."""
    import jiwer

    hypothesis, reference = (_units(text, line.target) for text in (line.hypothesis, line.reference))
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


def _mark(words: Sequence[str], tag: str, joint: str) -> str:
    text = escape(joint.join(words))
    return f"<{tag}>{text}</{tag}>" if tag and text else text


def _units(text: str, language: str) -> list[str]:
    return spaced_characters(text).split() if has_no_spaces(language) else text.split()


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


def _has_guard(manifest: ResultManifest) -> bool:
    return any(number.guard for number in manifest.numbers)

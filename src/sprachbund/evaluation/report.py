"""One self-contained HTML page of an evaluation: to be looked at and listened to rather than read."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sprachbund.evaluation import figures, present
from sprachbund.evaluation.examples import Sounds, examples
from sprachbund.evaluation.failures import DEFINITIONS
from sprachbund.evaluation.gather import Gathered, gather
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.manifest import ResultManifest
from sprachbund.evaluation.metrics import chrf
from sprachbund.evaluation.present import has_guard
from sprachbund.evaluation.quality import TRANSCRIPTION, TRANSLATION
from sprachbund.util.files import write_text

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
        lines: of the evaluation, before the guard.
        manifest: of the same evaluation.
        path: of the page.
        data: corpora to take sound from, which have to be there; where the manifest found them if not given,
            and without sound where they are gone.
        num_examples: worst and random ones each.
    """
    places = [Path(used.path) for used in manifest.data] if data is None else list(data)
    page = build_report(lines, manifest, Sounds(places, needed=data is not None), num_examples)
    write_text(path, page)


def build_report(lines: Iterable[Line], manifest: ResultManifest, sounds: Sounds, num_examples: int) -> str:
    """The page as HTML."""
    guarded = has_guard(manifest)
    found = gather(lines, num_examples, guarded=guarded)
    manifest.check_lines(len(found.durations_s))
    sections = [
        _section("Scores", _tiles(manifest)),
        _section("Pairs", _pairs(manifest)),
        _section("Code-switched speech", _switching(manifest)),
        _section("Failures", _failures(manifest)),
        _section("Length and duration", _breakdown(found)),
        _section("Groups", _groups(manifest)),
        _section("Speed side by side", _table(present.race_table(manifest)) if manifest.race else ""),
        _section("Worst examples", examples(found.worst, sounds, guarded=guarded)),
        _section("Random examples", examples(found.random, sounds, guarded=guarded)),
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


def _switching(manifest: ResultManifest) -> str:
    """What happens at switches, when there are any."""
    if not figures.has_switching(manifest):
        return ""
    pairs = present.switching_pairs_table(manifest)
    by_pair = f"<h3>By direction</h3>{_table(pairs)}" if pairs.rows else ""
    return (
        f"<figure>{figures.switching_bars(manifest)}</figure>"
        f"{_table(present.switching_table(manifest))}{by_pair}"
        '<p class="muted">Near a switch: within two words of it in the reference. Router accuracy: spans of which '
        "more than half of the time went to the experts of their language. Of: spans, words, texts or seconds "
        "judged; left out: those of which the corpus does not tell enough, or the model not where it sent them.</p>"
    )


def _breakdown(found: Gathered) -> str:
    drawn = [
        figures.bin_bars(figures.bins_by(found.counts, chrf(), values, edges), "chrF", unit)
        for values, edges, unit in (
            (found.durations_s, figures.DURATION_EDGES_S, "seconds of sound"),
            (found.lengths, figures.LENGTH_EDGES, "words in the reference"),
        )
    ]
    inside = "".join(f"<figure>{one}</figure>" for one in drawn)
    note = '<p class="muted">All pairs pooled, transcription included; lines are 95% intervals.</p>'
    return f'<div class="side">{inside}</div>{note}' if found.durations_s else ""


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

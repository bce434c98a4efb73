"""Results as tables on a terminal and in Markdown: one set of tables for both."""

from collections.abc import Sequence
from dataclasses import dataclass

from sprachbund.evaluation import router
from sprachbund.evaluation.code_switch import JUDGED, LEFT_OUT, MEASURES, WRONG_LANGUAGE
from sprachbund.evaluation.manifest import FailureRate, Number, ResultManifest
from sprachbund.evaluation.quality import (
    ALL,
    CODE_SWITCHED,
    MONOLINGUAL,
    SWITCHING,
    TRANSCRIPTION,
    TRANSLATION,
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, the first column left-aligned."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """A GitHub table, without the title."""
        lines = [
            "| " + " | ".join(self.header) + " |",
            "|" + "|".join(["---"] + ["---:"] * (len(self.header) - 1)) + "|",
            *("| " + " | ".join(row) + " |" for row in self.rows),
        ]
        return "\n".join(lines + (["", self.note] if self.note else []))

    def text(self) -> str:
        """Aligned columns under the title, for terminals of any width."""
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = [self.title]
        for row in (self.header, *self.rows):
            first, *rest = (
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *rest]).rstrip())
        return "\n".join(lines + ([self.note] if self.note else [])) + "\n"


def matrix_table(manifest: ResultManifest, metric: str = "chrF") -> Table:
    """A metric by source (rows) and target (columns); transcription on the diagonal in brackets."""
    cells = {
        n.member: (n.value, n.task)
        for n in manifest.numbers
        if n.metric == metric and n.group == "pair" and n.text == "raw" and n.guard == has_guard(manifest)
    }
    sources, targets = members(manifest, "source"), members(manifest, "target")
    rows = []
    for source in sources:
        row = [source]
        for target in targets:
            value, task = cells.get(f"{source}-{target}", (None, ""))
            text = "" if value is None else f"{value:.1f}"
            row.append(f"({text})" if task == TRANSCRIPTION else text)
        rows.append(row)
    note = f"{signature(manifest, metric)}; in brackets: transcription"
    return Table(title=f"{metric} by pair", header=["from \\ to", *targets], rows=rows, note=note)


def means_table(manifest: ResultManifest) -> Table:
    """Plain means over pairs, raw and normalized, behind the guard and before it."""
    rows = []
    for task in (TRANSLATION, TRANSCRIPTION):
        for text, guard in (("raw", True), ("normalized", True), ("raw", False), ("normalized", False)):
            found = {
                n.metric: n
                for n in manifest.numbers
                if (n.group, n.task, n.text, n.guard) == ("mean", task, text, guard)
            }
            if found:
                label = f"{task}, {text}, {'behind' if guard else 'without'} the guard"
                rows.append([label, *(_cell(found.get(name)) for name in _MEAN_METRICS)])
    shown = [i for i in range(len(_MEAN_METRICS) + 1) if any(row[i] for row in rows)]
    header = ["texts", *_MEAN_METRICS]
    return Table(
        title="means over pairs",
        header=[header[i] for i in shown],
        rows=[[row[i] for i in shown] for row in rows],
    )


def groups_table(manifest: ResultManifest, group: str, task: str = TRANSLATION) -> Table:
    """Means over pairs within each target, corpus, kind or speaker."""
    found: dict[str, dict[str, Number]] = {}
    for n in manifest.numbers:
        if n.group == group and n.task == task and n.text == "raw":
            found.setdefault(n.member, {})[n.metric] = n
    metrics = [name for name in _MEAN_METRICS if any(name in numbers for numbers in found.values())]
    rows = [
        [member, str(max(n.num_lines for n in numbers.values())), *(_cell(numbers.get(m)) for m in metrics)]
        for member, numbers in found.items()
    ]
    return Table(title=f"{task} by {group}", header=[group, "texts", *metrics], rows=rows)


def switching_table(manifest: ResultManifest) -> Table:
    """Code-switched speech: means over pairs beside the monolingual ones, then what became of its spans and, of
    a model that has one, what its router made of them (the last also without code-switched speech)."""
    guard, rows = has_guard(manifest), []
    wanted = [n for n in manifest.numbers if n.group == SWITCHING and n.guard == guard]
    for task in (TRANSLATION, TRANSCRIPTION):
        found = {(n.metric, n.member): n for n in wanted if n.task == task}
        switched = any(member == CODE_SWITCHED for _, member in found)
        others = (*_MEAN_METRICS, *MEASURES.values(), WRONG_LANGUAGE) if switched else ()
        judged = CODE_SWITCHED if switched else ALL
        for metric in (*others, *router.NAMES):
            cells = [found.get((metric, member)) for member in (CODE_SWITCHED, MONOLINGUAL, ALL)]
            counts = [found.get((metric + count, judged)) for count in (JUDGED, LEFT_OUT)]
            if any(cells) or any(counts):
                label = metric if task == TRANSLATION else f"{metric}, {task}"
                counted = ["" if n is None else f"{n.value:.0f}" for n in counts]
                rows.append([label, *map(_cell, cells), *counted])
    header = ["score", CODE_SWITCHED, MONOLINGUAL, "all", "of", "left out"]
    note = "" if rows else "no code-switched utterances"
    return Table(title="code-switched speech", header=header, rows=rows, note=note)


def switching_pairs_table(manifest: ResultManifest) -> Table:
    """What became of embedded spans by direction; empty with one direction alone."""
    guard, names = has_guard(manifest), [*MEASURES.values(), *router.NAMES]
    found: dict[tuple[str, str], dict[str, Number]] = {}
    for n in manifest.numbers:
        if n.group == SWITCHING and n.guard == guard and n.member not in (CODE_SWITCHED, MONOLINGUAL, ALL):
            found.setdefault((n.task, n.member), {})[n.metric] = n
    names = [name for name in names if name in MEASURES.values() or any(name in of for of in found.values())]
    rows = [
        [member, str(max(n.num_lines for n in of.values())), *(_counted_cell(of, name) for name in names)]
        for (_, member), of in found.items()
    ]
    return Table(title="code-switched speech by direction", header=["direction", "texts", *names], rows=rows)


def failures_table(manifest: ResultManifest) -> Table:
    """Failures in all, and hallucination by kind of sound, before the guard and behind it."""
    rates = {rate.key: rate for rate in manifest.failures}
    order = list(dict.fromkeys(rate.failure for rate in manifest.failures))
    shown = dict.fromkeys((r.failure, r.member) for r in manifest.failures if _is_shown(r))
    names = sorted(shown, key=lambda name: order.index(name[0]))
    rows = []
    for failure, member in names:
        before, after = (rates.get((failure, member, str(guard))) for guard in (False, True))
        label = failure if member == "all" else f"  on {member}"
        rows.append([label, *_rate_cells(before), *_rate_cells(after)])
    header = ["failure", "before, %", "of", "behind guard, %", "of"]
    return Table(title="failures", header=header, rows=rows)


def signatures(manifest: ResultManifest) -> list[str]:
    """One line for each metric: its name and signatures (BLEU may differ by target language)."""
    found: dict[str, dict[str, None]] = {}
    for number in manifest.numbers:
        if number.signature:
            found.setdefault(number.metric, {})[number.signature] = None
    return [f"{name}: {'; '.join(several)}" for name, several in found.items()]


def left_out(manifest: ResultManifest) -> list[str]:
    """In words, what of the data was not scored."""
    lines = []
    for data in manifest.data:
        parts = [
            f"{data.over_limit} utterances over the limit" if data.over_limit else "",
            f"{data.without_speech} without speech" if data.without_speech else "",
            f"{data.too_long} longer than the model's window" if data.too_long else "",
            _counted(data.without_reference, "references missing"),
            _counted(data.unknown_pairs, "texts of pairs the model does not know"),
        ]
        told = ", ".join(part for part in parts if part)
        lines.append(
            f"{data.name}: {data.scored_utterances} of {data.utterances} utterances scored"
            + (f"; left out: {told}" if told else "")
        )
    return lines


def as_text(manifest: ResultManifest) -> str:
    """Everything worth reading on a terminal."""
    tables = [matrix_table(manifest), means_table(manifest)]
    tables += [groups_table(manifest, group) for group in ("target", "corpus", "kind")]
    tables += [groups_table(manifest, "target", TRANSCRIPTION), failures_table(manifest)]
    tables += [switching_table(manifest), switching_pairs_table(manifest), race_table(manifest)]
    texts = [table.text() for table in tables if table.rows]
    return "\n".join([*texts, *signatures(manifest), *left_out(manifest), speed_line(manifest)])


def race_table(manifest: ResultManifest) -> Table:
    """Models side by side: medians, and time as a ratio to the first one's with its spread."""
    header = [name.replace("_", " ") for name in manifest.race[0]] if manifest.race else ["system"]
    rows = [[str(value) for value in row.values()] for row in manifest.race]
    return Table(title="speed side by side", header=header, rows=rows)


def speed_line(manifest: ResultManifest) -> str:
    """Speed in words."""
    measured = {key: value or 0.0 for key, value in manifest.measured.items()}
    if not measured.keys() >= set(MEASURED):
        return "speed: not measured"
    return (
        f"speed: real-time factor {measured['real_time_factor']:.3f} for {measured['num_targets']:.1f} "
        f"targets at once, {measured['tokens_per_s']:.0f} tokens/s, "
        f"peak memory {measured['peak_memory_mb']:.0f} MiB, "
        f"{_first_segment(measured['first_segment_s'])}"
        f"on {manifest.machine.get('cores')} cores ({manifest.configuration.get('num_threads')} threads)"
    )


MEASURED = ("real_time_factor", "num_targets", "tokens_per_s", "peak_memory_mb", "first_segment_s")
"""What has to be there of speed to be shown."""


def _first_segment(seconds: float) -> str:
    return f"first segment after {1000 * seconds:.0f} ms, " if seconds else ""


def members(manifest: ResultManifest, group: str) -> list[str]:
    """Members of a grouping, in order."""
    return list(dict.fromkeys(n.member for n in manifest.numbers if n.group == group))


def signature(manifest: ResultManifest, metric: str) -> str:
    """Signatures of a metric, as one text."""
    found = dict.fromkeys(n.signature for n in manifest.numbers if n.metric == metric and n.signature)
    return "; ".join(found)


_MEAN_METRICS = ("chrF", "chrF++", "BLEU", "TER", "exact", "WER", "CER", "COMET")


def has_guard(manifest: ResultManifest) -> bool:
    """Whether scores are of what the guard lets pass."""
    return any(number.guard for number in manifest.numbers)


def _is_shown(rate: FailureRate) -> bool:
    return rate.member == "all" or (rate.failure == "hallucination" and "-" not in rate.member)


def _rate_cells(rate: FailureRate | None) -> list[str]:
    return ["", ""] if rate is None else [f"{rate.percent:.2f}", str(rate.judged)]


def _counted_cell(found: dict[str, Number], name: str) -> str:
    """A rate with what it is of, as spans are few in a direction."""
    rate, judged = found.get(name), found.get(name + JUDGED)
    return f"{rate.value:.1f} of {judged.value:.0f}" if rate and judged else "–"


def _cell(number: Number | None) -> str:
    return "" if number is None else f"{number.value:.2f}"


def _counted(counts: dict[str, int], what: str) -> str:
    if not counts:
        return ""
    named = list(counts)[:6]
    more = f" and {len(counts) - len(named)} more pairs" if len(counts) > len(named) else ""
    return f"{sum(counts.values())} {what} ({', '.join(named)}{more})"

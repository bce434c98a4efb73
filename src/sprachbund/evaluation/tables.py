"""Fills the tables of README and docs from result manifests, so that no number is ever typed.

A block `<!-- table: NAME from PATH.json [PATH.json ...] -->` to `<!-- end -->` is replaced by the table of
that name; paths are relative to the file. `python -m sprachbund.evaluation.tables FILE...` writes,
`--check` only compares.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.evaluation import router
from sprachbund.evaluation.code_switch import LEFT_OUT, MEASURES, NUM_EVALUATED
from sprachbund.evaluation.failures import WRONG_LANGUAGE
from sprachbund.evaluation.manifest import FailureRate, Number, ResultManifest, read_manifest
from sprachbund.evaluation.quality import (
    ALL,
    CODE_SWITCHED,
    COMET,
    ERROR_RATES,
    MONOLINGUAL,
    QUALITY,
    SWITCHING,
    TRANSCRIPTION,
    TRANSLATION,
)
from sprachbund.util.files import read_object, read_text, write_text

# Tables for the terminal and for Markdown.


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
            numbers = {
                n.metric: n
                for n in manifest.numbers
                if (n.group, n.task, n.text, n.guard) == ("mean", task, text, guard)
            }
            if numbers:
                label = f"{task}, {text}, {'behind' if guard else 'without'} the guard"
                rows.append([label, *(_cell(numbers.get(name)) for name in _MEAN_METRICS)])
    shown = [i for i in range(len(_MEAN_METRICS) + 1) if any(row[i] for row in rows)]
    header = ["texts", *_MEAN_METRICS]
    return Table(
        title="means over pairs",
        header=[header[i] for i in shown],
        rows=[[row[i] for i in shown] for row in rows],
    )


def groups_table(manifest: ResultManifest, group: str, task: str = TRANSLATION) -> Table:
    """Means over pairs within each target, corpus, kind or speaker.

    Args:
        manifest: manifest of an evaluation.
        group: "target", "source", "corpus", "kind" or "speaker".
        task: "translation" or "transcription".
    """
    by_member: dict[str, dict[str, Number]] = {}
    for n in manifest.numbers:
        if n.group == group and n.task == task and n.text == "raw":
            by_member.setdefault(n.member, {})[n.metric] = n
    metrics = [name for name in _MEAN_METRICS if any(name in numbers for numbers in by_member.values())]
    rows = [
        [member, str(max(n.num_lines for n in numbers.values())), *(_cell(numbers.get(m)) for m in metrics)]
        for member, numbers in by_member.items()
    ]
    return Table(title=f"{task} by {group}", header=[group, "texts", *metrics], rows=rows)


def switching_table(manifest: ResultManifest) -> Table:
    """Code-switched speech: means over pairs beside the monolingual ones, then what became of its spans and, of
    a model that has one, what its router made of them (the last also without code-switched speech)."""
    guard, rows = has_guard(manifest), []
    wanted = [n for n in manifest.numbers if n.group == SWITCHING and n.guard == guard]
    for task in (TRANSLATION, TRANSCRIPTION):
        numbers = {(n.metric, n.member): n for n in wanted if n.task == task}
        switched = any(member == CODE_SWITCHED for _, member in numbers)
        others = (*_MEAN_METRICS, *MEASURES.values(), WRONG_LANGUAGE) if switched else ()
        evaluated = CODE_SWITCHED if switched else ALL
        for metric in (*others, *router.NAMES):
            cells = [numbers.get((metric, member)) for member in (CODE_SWITCHED, MONOLINGUAL, ALL)]
            counts = [numbers.get((metric + count, evaluated)) for count in (NUM_EVALUATED, LEFT_OUT)]
            if any(cells) or any(counts):
                label = metric if task == TRANSLATION else f"{metric}, {task}"
                counted = ["" if n is None else f"{n.value:.0f}" for n in counts]
                rows.append([label, *map(_cell, cells), *counted])
    header = ["score", CODE_SWITCHED, MONOLINGUAL, "all", "of", "left out"]
    note = "" if rows else "no code-switched utterances"
    return Table(title="code-switched speech", header=header, rows=rows, note=note)


def switching_pairs_table(manifest: ResultManifest) -> Table:
    """Return the scores of embedded spans by direction; empty with one direction alone."""
    guard, names = has_guard(manifest), [*MEASURES.values(), *router.NAMES]
    numbers: dict[tuple[str, str], dict[str, Number]] = {}
    for n in manifest.numbers:
        if n.group == SWITCHING and n.guard == guard and n.member not in (CODE_SWITCHED, MONOLINGUAL, ALL):
            numbers.setdefault((n.task, n.member), {})[n.metric] = n
    names = [
        name for name in names if name in MEASURES.values() or any(name in of for of in numbers.values())
    ]
    rows = [
        [member, str(max(n.num_lines for n in of.values())), *(_counted_cell(of, name) for name in names)]
        for (_, member), of in numbers.items()
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
    by_metric: dict[str, dict[str, None]] = {}
    for number in manifest.numbers:
        if number.signature:
            by_metric.setdefault(number.metric, {})[number.signature] = None
    return [f"{name}: {'; '.join(several)}" for name, several in by_metric.items()]


def left_out(manifest: ResultManifest) -> list[str]:
    """Data that were not scored, in words."""
    lines = []
    for data in manifest.data:
        parts = [
            f"{data.other_sources} utterances in other languages" if data.other_sources else "",
            f"{data.over_limit} utterances over the limit" if data.over_limit else "",
            f"{data.without_speech} without speech" if data.without_speech else "",
            f"{data.too_long} longer than the model's window" if data.too_long else "",
            _counted(data.without_reference, "references missing"),
            _counted(data.unknown_pairs, "texts of pairs the model does not know"),
        ]
        reasons = ", ".join(part for part in parts if part)
        lines.append(
            f"{data.name}: {data.scored_utterances} of {data.utterances} utterances scored"
            + (f"; left out: {reasons}" if reasons else "")
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
        return "speed: not measured; an evaluation by one process measures it"
    return (
        f"speed: real-time factor {measured['real_time_factor']:.3f} for {measured['num_targets']:.1f} "
        f"targets at once, {measured['tokens_per_s']:.0f} tokens/s, "
        f"peak memory {measured['peak_memory_mb']:.0f} MiB, "
        f"{_first_segment(measured['first_segment_s'])}"
        f"on {manifest.machine.get('cores')} cores ({manifest.configuration.get('num_threads')} threads, engine "
        f"{manifest.configuration.get('engine', 'torch')})"
    )


MEASURED = ("real_time_factor", "num_targets", "tokens_per_s", "peak_memory_mb", "first_segment_s")
"""The fields of speed that a table needs."""


def _first_segment(seconds: float) -> str:
    return f"first segment after {1000 * seconds:.0f} ms, " if seconds else ""


def members(manifest: ResultManifest, group: str) -> list[str]:
    """Members of a grouping, in order."""
    return list(dict.fromkeys(n.member for n in manifest.numbers if n.group == group))


def signature(manifest: ResultManifest, metric: str) -> str:
    """Signatures of a metric, as one text."""
    known = dict.fromkeys(n.signature for n in manifest.numbers if n.metric == metric and n.signature)
    return "; ".join(known)


_MEAN_METRICS = (*QUALITY, *ERROR_RATES, COMET)


def has_guard(manifest: ResultManifest) -> bool:
    """Whether scores are of what the guard lets pass."""
    return any(number.guard for number in manifest.numbers)


def _is_shown(rate: FailureRate) -> bool:
    return rate.member == "all" or (rate.failure == "hallucination" and "-" not in rate.member)


def _rate_cells(rate: FailureRate | None) -> list[str]:
    return ["", ""] if rate is None else [f"{rate.percent:.2f}", str(rate.evaluated)]


def _counted_cell(numbers: dict[str, Number], name: str) -> str:
    """A rate with what it is of, as spans are few in a direction."""
    rate, num_evaluated = numbers.get(name), numbers.get(name + NUM_EVALUATED)
    return f"{rate.value:.1f} of {num_evaluated.value:.0f}" if rate and num_evaluated else "–"


def _cell(number: Number | None) -> str:
    return "" if number is None else f"{number.value:.2f}"


def _counted(counts: dict[str, int], what: str) -> str:
    if not counts:
        return ""
    named = list(counts)[:6]
    more = f" and {len(counts) - len(named)} more pairs" if len(counts) > len(named) else ""
    return f"{sum(counts.values())} {what} ({', '.join(named)}{more})"


_BLOCK = re.compile(
    r"(?P<open><!-- table: (?P<name>[\w-]+) from (?P<paths>[^>]+?) -->\n).*?(?P<close><!-- end -->)",
    re.DOTALL,
)
_OPENING = re.compile(r"<!-- table:[^>]*>")


def corpora_table(manifests: Sequence[ResultManifest]) -> Table:
    """One row for each manifest: its corpora and the plain means over pairs, behind the guard.

    Where they differ, the model is named, and the tier of one that streams: frames of 80 ms ahead.
    """
    of = {"model": [manifest.model.name for manifest in manifests]}
    of["tier"] = [_table_cell(manifest.configuration.get("right_context")) for manifest in manifests]
    of = {name: values for name, values in of.items() if len(set(values)) > 1}
    rows = []
    for index, manifest in enumerate(manifests):
        means = [_mean(manifest, *wanted) for wanted in _MEANS]
        names = ", ".join(data.name for data in manifest.data)
        pairs = {n.member for n in manifest.numbers if n.group == "pair" and n.task == TRANSLATION}
        own = [values[index] for values in of.values()]
        rows.append([names, *own, str(len(pairs)), _texts(manifest), *means])
    header = ["test set", *of, "pairs", "texts", "chrF", "BLEU", "exact %", "WER (transcription)"]
    return Table(title="scores", header=header, rows=rows)


def switched_table(manifests: Sequence[ResultManifest]) -> Table:
    """One row for each manifest: mixed speech beside speech in one language, translated and written down."""
    rows = []
    for manifest in manifests:
        wanted = {"group": SWITCHING, "guard": has_guard(manifest)}
        numbers = [manifest.number(metric, member, task=task, **wanted) for metric, member, task in _SWITCHED]
        cells = ["" if number is None else f"{number.value:.1f}" for number in numbers]
        rows.append([manifest.model.name, ", ".join(data.name for data in manifest.data), *cells])
    header = ["model", "test sets", "chrF, mixed", "chrF, one language", "span recall %"]
    header += ["WER, mixed", "WER, one language", "span recall % of transcripts"]
    return Table(title="mixed speech", header=header, rows=rows)


def speed_table(manifests: Sequence[ResultManifest]) -> Table:
    """One row for each manifest: speed and memory, with the machine."""
    rows = []
    for manifest in manifests:
        measured = {key: value or 0.0 for key, value in manifest.measured.items()}
        if not measured.keys() >= set(MEASURED):
            raise SprachbundError(f"the manifest of {manifest.model.name} holds no speed; evaluate again")
        rows.append(
            [
                manifest.model.name,
                f"{measured['real_time_factor']:.3f}",
                f"{measured['num_targets']:.1f}",
                f"{measured['tokens_per_s']:.0f}",
                f"{measured['peak_memory_mb']:.0f}",
                f"{manifest.machine.get('processor')}, {manifest.machine.get('cores')} cores",
            ]
        )
    header = ["model", "real-time factor", "targets at once", "tokens/s", "peak memory (MiB)", "machine"]
    return Table(title="speed", header=header, rows=rows)


def _single(make: Callable[[ResultManifest], Table]) -> Callable[[Sequence[ResultManifest]], Table]:
    def made(manifests: Sequence[ResultManifest]) -> Table:
        if len(manifests) != 1:
            raise SprachbundError(f"this table is of one manifest, and {len(manifests)} are named")
        return make(manifests[0])

    return made


TABLES: Mapping[str, Callable[[Sequence[ResultManifest]], Table]] = {
    "scores": corpora_table,
    "pairs": _single(matrix_table),
    "pairs-bleu": _single(lambda manifest: matrix_table(manifest, "BLEU")),
    "pairs-exact": _single(lambda manifest: matrix_table(manifest, "exact")),
    "targets": _single(lambda manifest: groups_table(manifest, "target")),
    "kinds": _single(lambda manifest: groups_table(manifest, "kind")),
    "speakers": _single(lambda manifest: groups_table(manifest, "speaker")),
    "failures": _single(failures_table),
    "switching": _single(switching_table),
    "switched": switched_table,
    "speed": speed_table,
}
"""Name in a document to table."""


BENCHMARK, PEERS = "benchmark", "peers"
_SHAPES = ("tiny", "base", "small", "medium", "turbo", "large-v3")
"""Shapes of Whisper, by size."""


def benchmark_table(path: Path) -> str:
    """The rows that a script of `benchmarks/` wrote, in Markdown. Raises SprachbundError for other files."""
    rows = read_rows(path, advice="run the benchmark again")
    header = list(rows[0])
    cells = [[_table_cell(row[name]) for name in header] for row in rows]
    return Table(title=BENCHMARK, header=[name.replace("_", " ") for name in header], rows=cells).markdown()


def peers_table(path: Path) -> str:
    """Speed beside other systems, in Markdown: the largest shape of a file of
    `benchmarks/peers_by_processor`, with its processor, instruction set, threads and shape.

    Rows with a draft model are left out: random weights predict nothing, so the benchmark takes their acceptance as
    given.

    Raises:
        SprachbundError: for a file without rows, or one that does not name its processor.
    """
    advice = "run benchmarks/peers.py again"
    rows = read_rows(path, advice=advice)
    result = read_object(path, advice=advice)
    machine, options = result.get("machine"), result.get("options")
    if not isinstance(machine, dict) or not machine.keys() >= {"processor", "instruction_set"}:
        raise SprachbundError(f"{path} does not name its processor; {advice}")
    if not isinstance(options, dict) or "threads" not in options:
        raise SprachbundError(f"{path} does not name its threads; {advice}")
    shape = max((str(row.get("shape")) for row in rows), key=_SHAPES.index)
    named = f"{machine['processor']}, {machine['instruction_set']}, {options['threads']} threads: {shape}"
    # A comma stands before a draft or an assistant.
    shown = [row for row in rows if row.get("shape") == shape and "," not in row["system"]]
    columns = {"system": named, "30_s,_s": "30 s of speech, s"}
    columns |= {"5_s,_s": "5 s of speech, s", "first_text_s": "first text, s", "peak_mib": "peak memory, MiB"}
    cells = [[_table_cell(row[name]) for name in columns] for row in shown]
    return Table(title=PEERS, header=list(columns.values()), rows=cells).markdown()


def read_rows(path: Path, *, advice: str) -> list[dict[str, Any]]:
    """The `rows` of a JSON file, one or more, all with the keys of the first.

    Raises:
        SprachbundError: naming file and row, for one that has none, ending in the advice.
    """
    rows = read_object(path, advice=advice).get("rows")
    if not isinstance(rows, list) or not rows:
        raise SprachbundError(f"{path} holds no rows of a benchmark or recipe; {advice}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not row or row.keys() != rows[0].keys():
            raise SprachbundError(f"{path}: rows.{number} has not the columns of the first; {advice}")
    try:
        json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise SprachbundError(f"{path}: rows hold half a character, as \\ud800; {advice}") from None
    return rows


def _table_cell(value: object) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def docs_table(name: str, manifests: Sequence[ResultManifest]) -> str:
    """A table in Markdown. Raises SprachbundError for a name that is none."""
    if name not in TABLES:
        raise SprachbundError(f"no table {name!r}; there are {', '.join(TABLES)}")
    return TABLES[name](manifests).markdown()


def fill(text: str, directory: Path) -> str:
    """A document with all its blocks filled.

    Args:
        text: text of the document.
        directory: directory that paths in it are relative to.

    Raises:
        SprachbundError: for blocks that do not end or cannot be read, missing manifests, unknown tables.
    """

    def filled(match: re.Match[str]) -> str:
        paths = [directory / path for path in match["paths"].split()]
        if match["name"] == BENCHMARK:
            table = "\n\n".join(benchmark_table(path) for path in paths)
        elif match["name"] == PEERS:
            table = "\n\n".join(peers_table(path) for path in paths)
        else:
            table = docs_table(match["name"], [read_manifest(path) for path in paths])
        return f"{match['open']}{table}\n{match['close']}"

    blocks, openings = len(_BLOCK.findall(text)), _OPENING.findall(text)
    if blocks != len(openings):
        raise SprachbundError(
            f"{len(openings)} tables begin and {blocks} are whole; write <!-- table: NAME from PATH.json --> "
            "on a line of its own and <!-- end --> after it"
        )
    return _BLOCK.sub(filled, text)


def update(path: Path, *, check: bool = False) -> bool:
    """Fill a document's tables; whether it was up to date. `check` writes nothing.

    Raises:
        SprachbundError: as `fill`, with the file's name.
    """
    text = read_text(path, advice="check the path")
    try:
        new = fill(text, path.parent)
    except SprachbundError as error:
        raise SprachbundError(f"{path}: {error}") from error
    if new != text and not check:
        write_text(path, new)
    return new == text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when a table is out of date and only to be checked, or an error was met."""
    parser = argparse.ArgumentParser(description="Fill the tables of documents from result manifests.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    options = parser.parse_args(argv)
    try:
        stale = [path for path in options.files if not update(path, check=options.check)]
    except (SprachbundError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in stale:
        print(f"{path}: tables {'out of date' if options.check else 'filled'}")
    return 1 if stale and options.check else 0


_SWITCHED = (
    ("chrF", CODE_SWITCHED, TRANSLATION),
    ("chrF", MONOLINGUAL, TRANSLATION),
    (MEASURES["recalled"], CODE_SWITCHED, TRANSLATION),
    ("WER", CODE_SWITCHED, TRANSCRIPTION),
    ("WER", MONOLINGUAL, TRANSCRIPTION),
    (MEASURES["recalled"], CODE_SWITCHED, TRANSCRIPTION),
)
_MEANS = (("chrF", TRANSLATION), ("BLEU", TRANSLATION), ("exact", TRANSLATION), ("WER", TRANSCRIPTION))


def _mean(manifest: ResultManifest, metric: str, task: str) -> str:
    number = manifest.number(metric, "all", group="mean", task=task, text="raw")
    return "" if number is None else f"{number.value:.1f}"


def _texts(manifest: ResultManifest) -> str:
    number: Number | None = manifest.number("chrF", "all", group="mean", task=TRANSLATION, text="raw")
    return "" if number is None else str(number.num_lines)


if __name__ == "__main__":
    sys.exit(main())

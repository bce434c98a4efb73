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
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.code_switch import MEASURES
from sprachbund.evaluation.manifest import Number, ResultManifest, read_manifest
from sprachbund.evaluation.present import (
    MEASURED,
    Table,
    failures_table,
    groups_table,
    has_guard,
    matrix_table,
    switching_table,
)
from sprachbund.evaluation.quality import CODE_SWITCHED, MONOLINGUAL, SWITCHING, TRANSCRIPTION, TRANSLATION
from sprachbund.util.files import read_object, read_text, write_text

_BLOCK = re.compile(
    r"(?P<open><!-- table: (?P<name>[\w-]+) from (?P<paths>[^>]+?) -->\n).*?(?P<close><!-- end -->)",
    re.DOTALL,
)
_OPENING = re.compile(r"<!-- table:[^>]*>")


def corpora_table(manifests: Sequence[ResultManifest]) -> Table:
    """One row for each manifest: its corpora and the plain means over pairs, behind the guard."""
    rows = []
    for manifest in manifests:
        found = [_mean(manifest, *wanted) for wanted in _MEANS]
        names = ", ".join(data.name for data in manifest.data)
        pairs = {n.member for n in manifest.numbers if n.group == "pair" and n.task == TRANSLATION}
        rows.append([names, str(len(pairs)), _texts(manifest), *found])
    header = ["test set", "pairs", "texts", "chrF", "BLEU", "exact %", "WER (transcription)"]
    return Table(title="scores", header=header, rows=rows)


def switched_table(manifests: Sequence[ResultManifest]) -> Table:
    """One row for each manifest: mixed speech beside speech in one language, translated and written down."""
    rows = []
    for manifest in manifests:
        wanted = {"group": SWITCHING, "guard": has_guard(manifest)}
        found = [manifest.number(metric, member, task=task, **wanted) for metric, member, task in _SWITCHED]
        cells = ["" if number is None else f"{number.value:.1f}" for number in found]
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


BENCHMARK = "benchmark"


def benchmark_table(path: Path) -> str:
    """The rows that a script of `benchmarks/` wrote, in Markdown. Raises SprachbundError for other files."""
    rows = read_rows(path, advice="run the benchmark again")
    header = list(rows[0])
    cells = [[_cell(row[name]) for name in header] for row in rows]
    return Table(title=BENCHMARK, header=[name.replace("_", " ") for name in header], rows=cells).markdown()


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


def _cell(value: object) -> str:
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
        text: of the document.
        directory: that paths in it are relative to.

    Raises:
        SprachbundError: for blocks that do not end or cannot be read, missing manifests, unknown tables.
    """

    def filled(match: re.Match[str]) -> str:
        paths = [directory / path for path in match["paths"].split()]
        if match["name"] == BENCHMARK:
            table = "\n\n".join(benchmark_table(path) for path in paths)
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
    found = manifest.number(metric, "all", group="mean", task=task, text="raw")
    return "" if found is None else f"{found.value:.1f}"


def _texts(manifest: ResultManifest) -> str:
    found: Number | None = manifest.number("chrF", "all", group="mean", task=TRANSLATION, text="raw")
    return "" if found is None else str(found.num_lines)


if __name__ == "__main__":
    sys.exit(main())

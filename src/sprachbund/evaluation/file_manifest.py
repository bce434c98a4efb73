"""Result manifests of `score` and `compare`, whose numbers are of files and need no model: what was scored, how,
and what came out, to be written down and run again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sprachbund.errors import SprachbundError
from sprachbund.evaluation import hashes
from sprachbund.evaluation.compare import Comparison, RunFile, System, claims, compare
from sprachbund.evaluation.lines import HYPOTHESES_FILE
from sprachbund.evaluation.manifest import MANIFEST_FILE, Strict, read_manifest, validated, write_rows
from sprachbund.evaluation.metrics import corpus_score, metric
from sprachbund.evaluation.significance import SEED, Test
from sprachbund.evaluation.textfiles import read_ids, read_parallel
from sprachbund.text.normalize import normalize

Rows = list[dict[str, Any]]


class FileUsed(Strict):
    """A file that was read, its hash, and, beside hypotheses of a model, the model's."""

    path: str
    sha256: str
    model_sha256: str | None = None


class ScoreOptions(Strict):
    """What `score` does: two files of texts, the language that decides words and case, metrics, a file of ids."""

    hypotheses: str
    references: str
    language: str = ""
    metrics: list[str]
    ids: str | None = None


class CompareOptions(Strict):
    """What `compare` does: system to its runs, the baseline first; references of text files; the test."""

    systems: dict[str, list[str]]
    reference: str | None = None
    metrics: list[str]
    test: Test = "bootstrap"
    draws: int | None = None
    seed: int = SEED


class FileManifest(Strict):
    """Numbers of files, with all that decided them; `numbers` are rows as `--json` prints them."""

    format: Literal[1] = 1
    kind: Literal["score", "compare"]
    numbers: Rows
    files: list[FileUsed]
    configuration: ScoreOptions | CompareOptions
    seed: int | None = None
    commit: str | None = Field(default_factory=hashes.commit)
    machine: dict[str, str | int] = Field(default_factory=hashes.machine)
    versions: dict[str, str] = Field(default_factory=hashes.versions)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        write_rows(self.model_dump(mode="json"), path)


def read_file_manifest(values: Any, path: Path) -> FileManifest:
    """From the JSON of a file. Raises SprachbundError for what is none."""
    return validated(FileManifest, values, path)


def score_files(options: ScoreOptions) -> tuple[Rows, int]:
    """Every metric on the texts of a file, raw and normalized, and the number of texts.

    Raises:
        SprachbundError: for files that cannot be scored whole, naming file and line.
    """
    scorers = [metric(name, options.language) for name in options.metrics]
    texts = read_parallel(Path(options.hypotheses), Path(options.references))
    if options.ids is not None:
        read_ids(Path(options.ids), len(texts[0]))
    hypotheses, references = ([normalize(text, options.language) for text in some] for some in texts)
    for line, text in enumerate(references, start=1):
        if not text:
            raise SprachbundError(f"{options.references}:{line}: the reference has nothing but punctuation")
    rows = [
        {
            "metric": scorer.name,
            "raw": corpus_score(scorer, *texts),
            "normalized": corpus_score(scorer, hypotheses, references),
            "signature": scorer.signature,
        }
        for scorer in scorers
    ]
    return rows, len(texts[0])


def compare_files(options: CompareOptions, **progress: Any) -> Comparison:
    """Compare systems on disk; arguments and errors as of `compare`."""
    reference = None if options.reference is None else Path(options.reference)
    systems = [
        System(name=name, runs=[RunFile(Path(path), reference) for path in paths])
        for name, paths in options.systems.items()
    ]
    return compare(
        systems, options.metrics, test=options.test, draws=options.draws, seed=options.seed, **progress
    )


def comparison_rows(found: Comparison) -> Rows:
    """Every number of a comparison: means, pairs."""
    means = [{"metric": m, "system": s, **asdict(value)} for (m, s), value in found.means.items()]
    pairs = [
        {"metric": m, "pair": pair, "system": name, **asdict(value), "interval": _finite(value.interval)}
        for (m, pair), values in found.by_pair.items()
        for name, value in zip(found.names, values, strict=True)
    ]
    return [*means, *pairs]


def comparison_values(found: Comparison) -> dict[str, Any]:
    """A comparison as plain values, with what may be claimed."""
    rows = comparison_rows(found)
    return {
        "systems": list(found.names),
        "num_lines": found.num_lines,
        "test": found.test,
        "draws": found.draws,
        "seed": found.seed,
        "signatures": _signatures(found),
        "means": [row for row in rows if "pair" not in row],
        "pairs": [row for row in rows if "pair" in row],
        "claims": claims(found),
    }


def manifest_of_scores(options: ScoreOptions, rows: Rows) -> FileManifest:
    """What `score` found, to be written."""
    return FileManifest(kind="score", numbers=rows, files=list(_used(options)), configuration=options)


def manifest_of_comparison(options: CompareOptions, found: Comparison) -> FileManifest:
    """What `compare` found, to be written; every row with its metric's signature."""
    signatures = _signatures(found)
    rows = [{**row, "signature": signatures[row["metric"]]} for row in comparison_rows(found)]
    return FileManifest(
        kind="compare", numbers=rows, files=list(_used(options)), configuration=options, seed=options.seed
    )


def run_again(old: FileManifest, path: Path, **progress: Any) -> FileManifest:
    """Score or compare the same files again: where they were, or beside the manifest.

    Raises:
        SprachbundError: when a file is not there or not the one that was read.
    """
    options = _placed(old.configuration, path.parent)
    files = list(_used(options))
    for before, now in zip(old.files, files, strict=True):
        if before.sha256 != now.sha256:
            raise SprachbundError(
                f"{now.path} has hash {now.sha256[:12]}, the manifest was measured with {before.sha256[:12]}; "
                "put that file back"
            )
    if isinstance(options, ScoreOptions):
        return manifest_of_scores(options, score_files(options)[0])
    return manifest_of_comparison(options, compare_files(options, **progress))


def row_differences(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every number of `old` that `new` does not give again, in words."""
    again = {_label(row): row for row in new}
    found = []
    for row in old:
        now = again.get(_label(row), {})
        for name, value in row.items():
            if not _same(value, now.get(name)):
                found.append(f"{_label(row)} {name}: was {value}, is {now.get(name, 'not measured now')}")
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) <= 1e-9 if numbers else one == other


def _label(row: Mapping[str, Any]) -> str:
    return " ".join(str(row[name]) for name in ("metric", "pair", "system") if name in row)


def _signatures(found: Comparison) -> dict[str, str]:
    return {name: scorer.signature for name, scorer in found.metrics.items()}


def _finite(interval: tuple[float, float]) -> list[float] | None:
    return None if interval[0] != interval[0] else list(interval)


def _used(options: ScoreOptions | CompareOptions) -> Iterator[FileUsed]:
    if isinstance(options, ScoreOptions):
        paths = [options.hypotheses, options.references, options.ids]
    else:
        paths = [*(path for runs in options.systems.values() for path in runs), options.reference]
    for path in map(Path, filter(None, paths)):
        file = path / HYPOTHESES_FILE if path.is_dir() else path
        if not file.is_file():
            raise SprachbundError(f"{file} does not exist; put it back where it was, or beside the manifest")
        scores = path / MANIFEST_FILE
        model = read_manifest(scores).model.sha256 if scores.is_file() else None
        yield FileUsed(path=str(file), sha256=hashes.hash_files([file]), model_sha256=model)


def _placed(options: ScoreOptions | CompareOptions, folder: Path) -> ScoreOptions | CompareOptions:
    """The options with paths that are not there looked for beside the manifest."""

    def placed(path: str | None) -> str | None:
        there = path is None or Path(path).exists() or not (folder / path).exists()
        return path if there else str(folder / str(path))

    if isinstance(options, ScoreOptions):
        changed: dict[str, Any] = {
            name: placed(getattr(options, name)) for name in ("hypotheses", "references", "ids")
        }
    else:
        runs = {name: list(map(placed, paths)) for name, paths in options.systems.items()}
        changed = {"systems": runs, "reference": placed(options.reference)}
    return options.model_copy(update=changed)

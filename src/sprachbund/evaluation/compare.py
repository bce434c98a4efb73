"""Comparison of systems on the same lines: counts of runs, significance tests, tables, claims in words, manifests."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import (
    HYPOTHESES_FILE,
    DecodingEvidence,
    Line,
    by_pair,
    in_chunks,
    is_transcription,
    read_ids,
    read_lines,
    read_parallel,
)
from sprachbund.evaluation.manifest import MANIFEST_FILE, ManifestPart, read_manifest, validated, write_rows
from sprachbund.evaluation.metrics import Counts, Metric, corpus_score, metric
from sprachbund.evaluation.options import TEST_SEED, TESTS, CompareOptions, ScoreOptions, Task, Test
from sprachbund.evaluation.quality import pair_name, task_of
from sprachbund.evaluation.significance import (
    DRAWS,
    ComparedSystem,
    MeanComparison,
    Units,
    compare_means,
    holm,
    paired_test,
    units_of,
)
from sprachbund.evaluation.tables import Table
from sprachbund.text.normalize import normalize
from sprachbund.util import provenance
from sprachbund.util.files import named_twice

# Counts of a run's lines, which replace its texts in comparisons.


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Counts of N lines of one pair.

    Attributes:
        keys: (corpus, id) to row.
        references: a hash of each row's reference, N.
        counts: metric to counts (N, K).
    """

    keys: Mapping[tuple[str, str], int]
    references: Sequence[int]
    counts: Mapping[str, Counts]


RunCounts = Mapping[tuple[str, str], PairCounts]
"""(source, target) to its counts, in the order of the tags."""


def read_counts(
    lines: Iterable[Line], metrics: Sequence[str], progress: Callable[[int], None] = lambda done: None
) -> RunCounts:
    """Go through a run once. Raises SprachbundError when there is no line of speech in it.

    Args:
        lines: lines of one run.
        metrics: names of metrics.
        progress: called with the number of lines read.
    """
    pairs: dict[tuple[str, str], _Growing] = {}
    done = 0
    for some in in_chunks(lines):
        for pair, of_pair in by_pair(some).items():
            if pair not in pairs:
                pairs[pair] = _Growing([metric(name, pair[1]) for name in metrics])
            pairs[pair].add(of_pair)
        done += len(some)
        progress(done)
    if not pairs:
        raise SprachbundError(
            "a run holds no hypotheses of speech to compare; evaluate it on a corpus, or compare another --task"
        )
    return {pair: growing.whole() for pair, growing in sorted(pairs.items())}


def aligned(first: RunCounts, other: RunCounts, name: str) -> RunCounts:
    """The counts of another run in the order of the first one's rows.

    Args:
        first: counts of the baseline.
        other: counts to be reordered.
        name: name of the other run, for errors.

    Raises:
        SprachbundError: when they are not of the same texts, naming one that differs.
    """
    wanted = {(*key, target) for (_, target), pair in first.items() for key in pair.keys}
    there = {(*key, target) for (_, target), pair in other.items() for key in pair.keys}
    if missing := wanted ^ there:
        corpus, line_id, target = min(missing)
        which = "lacks" if (corpus, line_id, target) in wanted else "alone has"
        raise SprachbundError(
            f"{name} {which} {line_id!r} of {corpus!r} into {target!r}, and {len(missing) - 1} more lines "
            "differ; evaluate all systems on the same data and languages"
        )
    return {pair: _in_order(counts, other.get(pair), pair, name) for pair, counts in first.items()}


def _in_order(wanted: PairCounts, there: PairCounts | None, pair: tuple[str, str], name: str) -> PairCounts:
    if there is None or there.keys.keys() != wanted.keys.keys():
        raise SprachbundError(
            f"{name} has other languages spoken than the first system for texts into {pair[1]}; same data?"
        )
    rows = [there.keys[key] for key in wanted.keys]
    for key, row in zip(wanted.keys, rows, strict=True):
        if there.references[row] != wanted.references[wanted.keys[key]]:
            raise SprachbundError(
                f"{name}: the reference of {key[1]!r} differs from the first system's; same data?"
            )
    return PairCounts(
        keys=wanted.keys,
        references=wanted.references,
        counts={metric_name: counts[rows] for metric_name, counts in there.counts.items()},
    )


def drawn_units(run: RunCounts) -> list[Units]:
    """What is drawn as one, for each pair the unit of every row (N,).

    An utterance is drawn with all languages that it is translated into, and with all utterances of equal reference:
    a test set that holds one sentence many times does not know more of other sentences for that.

    Args:
        run: counts of a run.
    """
    rows = [
        (key, (target, reference))
        for (_, target), pair in run.items()
        for key, reference in zip(pair.keys, pair.references, strict=True)
    ]
    return np.split(units_of(rows), np.cumsum([len(pair.keys) for pair in run.values()])[:-1])


class _Growing:
    """Counts of a pair while its lines come."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._keys: dict[tuple[str, str], int] = {}
        self._references: list[int] = []
        self._counts: dict[str, list[Counts]] = {scorer.name: [] for scorer in metrics}

    def add(self, lines: Sequence[Line]) -> None:
        hypotheses, references = [x.hypothesis for x in lines], [x.reference for x in lines]
        for line in lines:
            self._keys[line.corpus, line.id] = len(self._keys)
        self._references += map(hash, references)
        for scorer in self._metrics:
            self._counts[scorer.name].append(scorer.statistics(hypotheses, references))

    def whole(self) -> PairCounts:
        counts = {name: np.concatenate(parts) for name, parts in self._counts.items()}
        return PairCounts(keys=self._keys, references=self._references, counts=counts)


LEVEL = 0.05
_FEW_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class System:
    """A system under comparison: its name and the lines of each run (one, or one per training seed), which are
    gone through once for each comparison."""

    name: str
    runs: Sequence[Iterable[Line]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of a comparison of systems.

    Attributes:
        names: names of the systems, the baseline first.
        metrics: name to metric, as scored on the first pair.
        by_pair: (metric, pair) to one entry per system; empty when systems have several runs.
        means: (metric, system) to the comparison of means over pairs.
        test: by which pairs were compared.
        draws: draws of every test by pair.
        mean_draws: draws of every comparison of means, which is always by bootstrap.
        seed: seed of the draws.
        pairs: languages of speech and text that the means are over.
        num_lines: compared lines.
        num_units: what was drawn from for the means, `drawn_units`.
    """

    names: Sequence[str]
    metrics: Mapping[str, Metric]
    by_pair: Mapping[tuple[str, str], Sequence[ComparedSystem]]
    means: Mapping[tuple[str, str], MeanComparison]
    test: Test
    draws: int
    mean_draws: int
    seed: int
    pairs: Sequence[tuple[str, str]]
    num_lines: int
    num_units: int


def parse_system(spec: str, reference: Path | None = None) -> tuple[str, list[Path]]:
    """Name and runs of a system from `[NAME=]PATH[,PATH…]`: directories of results, or text files beside a
    reference file. Several paths are runs of one system with different training seeds.

    Raises:
        SprachbundError: for paths that are not there or come twice, text files without references, and references
            beside results that have their own.
    """
    name, equals, rest = spec.partition("=")
    # A path may have a = in it, too.
    if not equals or all(Path(part).exists() for part in spec.split(",") if part):
        name, rest = "", spec
    paths = [Path(part) for part in rest.split(",") if part]
    if not paths:
        raise SprachbundError(f"{spec!r} names no file or directory; give [NAME=]PATH[,PATH…]")
    for path in paths:
        if not path.exists():
            raise SprachbundError(
                f"{path} does not exist; name a folder that `evaluate --out` wrote, or a file"
            )
        is_text = not path.is_dir() and path.suffix != ".jsonl"
        if is_text and reference is None:
            raise SprachbundError(f"{path} is a text file; name the references with --reference")
        if not is_text and reference is not None:
            raise SprachbundError(
                f"{path} has references of its own, and --reference {reference} is for text files; leave it out"
            )
    if twice := named_twice(paths):
        raise SprachbundError(
            f"{twice[0]} is there twice in {spec!r}; the runs of a system are of different training seeds"
        )
    return name or paths[0].name, paths


@dataclass(frozen=True)
class RunFile:
    """The lines of a run on disk, behind the guard, read anew each time they are asked for.

    Attributes:
        path: folder of results, its file of hypotheses, or a file of texts.
        reference: references of a file of texts.
        language: BCP-47 tag of a file of texts; "" where it is not known.
        task: task of the lines that are read.
    """

    path: Path
    reference: Path | None = None
    language: str = ""
    task: Task = "all"

    def __iter__(self) -> Iterator[Line]:
        if self.path.is_dir() or self.path.suffix == ".jsonl":
            path = self.path / HYPOTHESES_FILE if self.path.is_dir() else self.path
            for line in read_lines(path):
                if line.source and self.task in ("all", task_of(line.source, line.target)):
                    yield line.behind_guard()
        elif self.reference is not None:
            texts = zip(*read_parallel(self.path, self.reference), strict=True)
            for n, (h, r) in enumerate(texts, start=1):
                yield Line(
                    id=str(n),
                    source="text",
                    target=self.language,
                    hypothesis=h,
                    reference=r,
                    evidence=DecodingEvidence(),
                )


def compare(
    systems: Sequence[System],
    metrics: Sequence[str] = ("chrF", "BLEU"),
    *,
    test: Test = "bootstrap",
    draws: int | None = None,
    seed: int = TEST_SEED,
    progress: Callable[[str, int], None] = lambda what, done: None,
) -> Comparison:
    """Compare systems with the first one, pair by pair and on the mean over pairs.

    Only counts of the lines are kept in memory.

    Args:
        systems: two or more; the first is the baseline.
        metrics: names of metrics.
        test: the significance test.
        draws: samples drawn; None takes the default of the test, and for means that of the bootstrap.
        seed: seed of the draws.
        progress: called with the stage and the number of lines read.

    Raises:
        SprachbundError: for one system only, two of one name, unknown metrics, lines that cannot be read, and
            lines that not all systems have.
    """
    names = [system.name for system in systems]
    check_names(names)
    metrics = list(dict.fromkeys(metric(name).name for name in metrics))
    runs = _read_runs(systems, metrics, progress)
    several = len(runs) > len(systems)
    mean_draws = draws or DRAWS["bootstrap"]
    pairs, units = list(runs[0]), drawn_units(runs[0])
    compared: dict[tuple[str, str], Sequence[ComparedSystem]] = {}
    means: dict[tuple[str, str], MeanComparison] = {}
    for name in metrics:
        progress(f"drawing samples for {name}", 0)
        by_target = [metric(name, target) for _, target in pairs]
        counts = [[run[pair].counts[name] for pair in pairs] for run in runs]
        if not several:
            for index, (pair, scorer) in enumerate(zip(pairs, by_target, strict=True)):
                baseline, *others = (run[index] for run in counts)
                compared[name, pair_name(pair)] = paired_test(
                    scorer, baseline, others, test=test, draws=draws, seed=seed
                )
        for system, (start, end) in zip(systems[1:], _run_ranges(systems)[1:], strict=True):
            means[name, system.name] = compare_means(
                by_target,
                counts[: len(systems[0].runs)],
                counts[start:end],
                units=units,
                draws=mean_draws,
                seed=seed,
            )
    return Comparison(
        names=names,
        metrics={name: metric(name, pairs[0][1]) for name in metrics},
        by_pair=compared,
        means=means,
        test=test,
        draws=draws or DRAWS[test],
        mean_draws=mean_draws,
        seed=seed,
        pairs=pairs,
        num_lines=sum(len(of_pair.keys) for of_pair in runs[0].values()),
        num_units=len(np.unique(np.concatenate(units))),
    )


def check_names(names: Sequence[str]) -> None:
    """Raises SprachbundError for one system only, and for two of one name."""
    if len(set(names)) < max(2, len(names)):
        raise SprachbundError(f"systems are called {', '.join(names)}; give two or more, each with its name=")


def _read_runs(
    systems: Sequence[System], metrics: Sequence[str], progress: Callable[[str, int], None]
) -> list[RunCounts]:
    """The counts of all runs, rows in the order of the first one's."""
    runs: list[RunCounts] = []
    for system in systems:
        for run in system.runs:
            counts = read_counts(run, metrics, partial(progress, f"reading {system.name}"))
            runs.append(aligned(runs[0], counts, system.name) if runs else counts)
    return runs


def tables(comparison: Comparison) -> list[Table]:
    """The means with intervals, and the pairs."""
    rows = [
        [
            f"{name} - {comparison.names[0]}",
            metric_name,
            f"{differences.baseline:.2f}",
            f"{differences.system:.2f}",
            f"{differences.difference:+.2f}",
            f"{differences.interval[0]:+.2f} to {differences.interval[1]:+.2f}",
            f"{differences.p_value:.4f}",
        ]
        for (metric_name, name), differences in comparison.means.items()
    ]
    header = ["systems", "metric", "first", "second", "difference", "95% interval", "p"]
    note = f"bootstrap, {comparison.mean_draws} draws, seed {comparison.seed}"
    transcribed = sum(is_transcription(*pair) for pair in comparison.pairs)
    if 0 < transcribed < len(comparison.pairs):
        note += f"; {transcribed} of the {len(comparison.pairs)} pairs are transcription, see --task"
    return [Table(title="means over pairs", header=header, rows=rows, note=note), *_pair_tables(comparison)]


def _pair_tables(comparison: Comparison) -> list[Table]:
    if not comparison.by_pair:
        return []
    rows = []
    for (metric_name, pair), differences in comparison.by_pair.items():
        for name, one in zip(comparison.names, differences, strict=True):
            interval = "" if one.half_width is None else f"{one.mean:.2f} ± {one.half_width:.2f}"
            p = "" if one.p_value is None else f"{one.p_value:.4f}" if one.difference else "equal"
            rows.append([pair, metric_name, name, f"{one.score:.2f}", interval, p])
    what = "paired bootstrap" if comparison.test == "bootstrap" else "approximate randomization"
    note = f"{what}, {comparison.draws} draws, seed {comparison.seed}; p against {comparison.names[0]}"
    header = ["pair", "metric", "system", "score", "mean ± 95%", "p"]
    return [Table(title="by pair", header=header, rows=rows, note=note)]


def claims(comparison: Comparison) -> list[str]:
    """Return the conclusions, one sentence for each system and metric, and their limits."""
    sentences = [
        _claim(comparison, name, metric_name, mean) for (metric_name, name), mean in comparison.means.items()
    ]
    for index, name in enumerate(comparison.names[1:], start=1):
        sentences += _pair_claims(comparison, index, name)
    if comparison.num_units < comparison.num_lines:
        sentences.append(
            f"Means were compared on draws from {comparison.num_units} units, not {comparison.num_lines} texts: "
            "translations of one utterance and texts of equal reference are drawn together. Tests by pair count each "
            "text by itself, so that their p is too small where references are repeated."
        )
    seeds = {mean.num_seeds for mean in comparison.means.values()}
    if seeds == {(1, 1)}:
        sentences.append(
            "This holds for these trained models on further texts of this kind. Of training again with "
            "another seed it says nothing: give several runs of each system (NAME=RUN1,RUN2,...) for that."
        )
    else:
        few = min(count for pair in seeds for count in pair)
        caution = f" {few} runs of a system say little of how trainings differ: five or more are better."
        sentences.append(
            "The intervals are over texts and training seeds, so that this holds for training again as well."
            + (caution if few <= _FEW_SEEDS else "")
        )
    return sentences


def _claim(comparison: Comparison, name: str, metric_name: str, mean: MeanComparison) -> str:
    baseline = comparison.names[0]
    low, high = mean.interval
    numbers = (
        f"difference {mean.difference:+.2f}, 95% interval {low:+.2f} to {high:+.2f}, p = {mean.p_value:.4f}"
    )
    if mean.p_value < LEVEL and not low <= 0 <= high:
        better = (mean.difference > 0) == comparison.metrics[metric_name].higher_is_better
        return f"{metric_name}: {name} is {'better' if better else 'worse'} than {baseline} ({numbers})."
    return (
        f"{metric_name}: no difference between {name} and {baseline} may be claimed ({numbers}); "
        "neither may it be claimed that they are equal."
    )


def _pair_claims(comparison: Comparison, index: int, name: str) -> list[str]:
    lines = []
    for metric_name, scorer in comparison.metrics.items():
        pairs = {
            p: difference[index] for (m, p), difference in comparison.by_pair.items() if m == metric_name
        }
        if len(pairs) < 2:
            continue
        least = len(pairs) / (comparison.draws + 1)
        if least >= LEVEL:
            lines.append(
                f"{metric_name}: {comparison.draws} draws cannot show a difference of one pair among {len(pairs)} "
                f"(after Holm's correction p is at least {least:.3f}); give --draws {ceil(len(pairs) / LEVEL)} "
                "for that."
            )
            continue
        # The paired test gives equal outputs a small p, which claims nothing.
        corrected = holm(
            [difference.p_value or 0.0 if difference.difference else 1.0 for difference in pairs.values()]
        )
        sure = [p for p, value in zip(pairs, corrected, strict=True) if value < LEVEL]
        better = [p for p in sure if (pairs[p].difference > 0) == scorer.higher_is_better]
        worse = [p for p in sure if p not in better]
        lines.append(
            f"{metric_name}: of {len(pairs)} pairs, {name} is better on {_listed(better)} and worse on "
            f"{_listed(worse)} (p < {LEVEL} after Holm's correction for {len(pairs)} tests)."
        )
    return lines


def _listed(pairs: Sequence[str]) -> str:
    return f"{len(pairs)} ({', '.join(pairs)})" if pairs else "none"


def _run_ranges(systems: Sequence[System]) -> list[tuple[int, int]]:
    ranges, start = [], 0
    for system in systems:
        ranges.append((start, start + len(system.runs)))
        start += len(system.runs)
    return ranges


# Manifests of `score` and `compare`: files, options and numbers, so that they can be run again without a model.

NumberRows = list[dict[str, Any]]


class FileUsed(ManifestPart):
    """A file that was read, its hash, and, beside hypotheses of a model, the model's."""

    path: str
    sha256: str
    model_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredFiles(ScoreOptions):
    """The configuration of `score`: its options, with the two files of texts; the metrics are named."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    hypotheses: str
    references: str


@dataclass(frozen=True, kw_only=True)
class ComparedFiles(CompareOptions):
    """The configuration of `compare`: its options, with system to its runs, the baseline first."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    systems: dict[str, list[str]]


class FileManifest(ManifestPart):
    """Numbers of files, with all that decided them; `numbers` are rows as `--json` prints them."""

    format: Literal[1] = 1
    kind: Literal["score", "compare"]
    numbers: NumberRows
    files: list[FileUsed]
    configuration: ScoredFiles | ComparedFiles
    seed: int | None = None
    commit: str | None = Field(default_factory=provenance.commit)
    machine: dict[str, str | int] = Field(default_factory=provenance.machine)
    versions: dict[str, str] = Field(default_factory=provenance.versions)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        write_rows(self.model_dump(mode="json"), path)


def read_file_manifest(values: Any, path: Path) -> FileManifest:
    """Read the manifest of a file from JSON. Raises SprachbundError for other content."""
    return validated(FileManifest, values, path)


def score_files(options: ScoredFiles) -> tuple[NumberRows, int]:
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


def compare_files(options: ComparedFiles, **progress: Any) -> Comparison:
    """Compare systems on disk; arguments and errors as of `compare`."""
    reference = None if options.reference is None else Path(options.reference)
    systems = [
        System(
            name=name, runs=[RunFile(Path(path), reference, options.language, options.task) for path in paths]
        )
        for name, paths in options.systems.items()
    ]
    return compare(
        systems, options.metrics, test=TESTS[options.test], draws=options.draws, seed=options.seed, **progress
    )


def comparison_rows(comparison: Comparison) -> NumberRows:
    """Every number of a comparison: means, pairs."""
    means = [{"metric": m, "system": s, **asdict(value)} for (m, s), value in comparison.means.items()]
    pairs = [
        {"metric": m, "pair": pair, "system": name, **asdict(value), "interval": _finite(value.interval)}
        for (m, pair), values in comparison.by_pair.items()
        for name, value in zip(comparison.names, values, strict=True)
    ]
    return [*means, *pairs]


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain values, with what may be claimed."""
    rows = comparison_rows(comparison)
    return {
        "systems": list(comparison.names),
        "num_lines": comparison.num_lines,
        "num_units": comparison.num_units,
        "test": comparison.test,
        "draws": comparison.draws,
        "mean_draws": comparison.mean_draws,
        "seed": comparison.seed,
        "signatures": _signatures(comparison),
        "means": [row for row in rows if "pair" not in row],
        "pairs": [row for row in rows if "pair" in row],
        "claims": claims(comparison),
    }


def manifest_of_scores(options: ScoredFiles, rows: NumberRows) -> FileManifest:
    """Return the manifest of the scores of `score`."""
    return FileManifest(kind="score", numbers=rows, files=list(_used(options)), configuration=options)


def manifest_of_comparison(options: ComparedFiles, comparison: Comparison) -> FileManifest:
    """Return the manifest of a comparison; every row has its metric's signature."""
    signatures = _signatures(comparison)
    rows = [{**row, "signature": signatures[row["metric"]]} for row in comparison_rows(comparison)]
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
    if isinstance(options, ScoredFiles):
        return manifest_of_scores(options, score_files(options)[0])
    return manifest_of_comparison(options, compare_files(options, **progress))


def row_differences(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every number of `old` that `new` does not give again, in words."""
    again = {_label(row): row for row in new}
    differing = []
    for row in old:
        now = again.get(_label(row), {})
        for name, value in row.items():
            if not _same(value, now.get(name)):
                differing.append(f"{_label(row)} {name}: was {value}, is {now.get(name, 'not measured now')}")
    return differing


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) <= 1e-9 if numbers else one == other


def _label(row: Mapping[str, Any]) -> str:
    return " ".join(str(row[name]) for name in ("metric", "pair", "system") if name in row)


def _signatures(comparison: Comparison) -> dict[str, str]:
    return {name: scorer.signature for name, scorer in comparison.metrics.items()}


def _finite(interval: tuple[float, float]) -> list[float] | None:
    return None if interval[0] != interval[0] else list(interval)


def _used(options: ScoredFiles | ComparedFiles) -> Iterator[FileUsed]:
    if isinstance(options, ScoredFiles):
        paths = [options.hypotheses, options.references, options.ids]
    else:
        paths = [*(path for runs in options.systems.values() for path in runs), options.reference]
    for path in map(Path, filter(None, paths)):
        file = path / HYPOTHESES_FILE if path.is_dir() else path
        if not file.is_file():
            raise SprachbundError(f"{file} does not exist; put it back where it was, or beside the manifest")
        scores = path / MANIFEST_FILE
        model = read_manifest(scores).model.sha256 if scores.is_file() else None
        yield FileUsed(path=str(file), sha256=provenance.hash_files([file]), model_sha256=model)


def _placed(options: ScoredFiles | ComparedFiles, folder: Path) -> ScoredFiles | ComparedFiles:
    """The options with paths that are not there looked for beside the manifest."""

    def there(path: str) -> str:
        return path if Path(path).exists() or not (folder / path).exists() else str(folder / path)

    def there_if_any(path: str | None) -> str | None:
        return None if path is None else there(path)

    if isinstance(options, ScoredFiles):
        return replace(
            options,
            hypotheses=there(options.hypotheses),
            references=there(options.references),
            ids=there_if_any(options.ids),
        )
    runs = {name: list(map(there, paths)) for name, paths in options.systems.items()}
    return replace(options, systems=runs, reference=there_if_any(options.reference))

"""Compares systems on the same lines, and says in words what may be claimed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import HYPOTHESES_FILE, Evidence, Line, read_lines
from sprachbund.evaluation.metrics import Metric, metric
from sprachbund.evaluation.present import Table
from sprachbund.evaluation.quality import pair_name
from sprachbund.evaluation.run_counts import RunCounts, aligned, read_counts
from sprachbund.evaluation.significance import (
    DRAWS,
    SEED,
    Compared,
    MeanComparison,
    Test,
    compare_means,
    holm,
    paired_test,
)
from sprachbund.evaluation.textfiles import read_parallel

LEVEL = 0.05
_ENOUGH_SEEDS = 5


@dataclass(frozen=True, kw_only=True)
class System:
    """A system under comparison: its name and the lines of each run (one, or one per training seed), which are
    gone through once for each comparison."""

    name: str
    runs: Sequence[Iterable[Line]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found.

    Attributes:
        names: of the systems, the baseline first.
        metrics: name to metric, as scored on the first pair.
        by_pair: (metric, pair) to one entry per system; empty when systems have several runs.
        means: (metric, system) to the comparison of means over pairs.
        test: by which pairs were compared.
        draws: of every test.
        seed: of the draws.
        num_lines: compared lines.
    """

    names: Sequence[str]
    metrics: Mapping[str, Metric]
    by_pair: Mapping[tuple[str, str], Sequence[Compared]]
    means: Mapping[tuple[str, str], MeanComparison]
    test: Test
    draws: int
    seed: int
    num_lines: int


def read_system(spec: str, reference: Path | None = None) -> System:
    """A system from `[NAME=]PATH[,PATH…]`; arguments and errors as of `parse_system`."""
    name, paths = parse_system(spec, reference)
    return System(name=name, runs=[RunFile(path, reference) for path in paths])


def parse_system(spec: str, reference: Path | None = None) -> tuple[str, list[Path]]:
    """Name and runs of a system from `[NAME=]PATH[,PATH…]`: directories of results, or text files beside a
    reference file. Several paths are runs of one system with different training seeds.

    Raises:
        SprachbundError: for paths that are not there, and text files without references.
    """
    name, _, rest = spec.rpartition("=")
    paths = [Path(part) for part in rest.split(",") if part]
    if not paths:
        raise SprachbundError(f"{spec!r} names no file or directory; give [NAME=]PATH[,PATH…]")
    for path in paths:
        if not path.exists():
            raise SprachbundError(
                f"{path} does not exist; name a folder that `evaluate --out` wrote, or a file"
            )
        if not path.is_dir() and path.suffix != ".jsonl" and reference is None:
            raise SprachbundError(f"{path} is a text file; name the references with --reference")
    return name or paths[0].name, paths


@dataclass(frozen=True)
class RunFile:
    """The lines of a run on disk, behind the guard, read anew each time they are asked for."""

    path: Path
    reference: Path | None = None

    def __iter__(self) -> Iterator[Line]:
        if self.path.is_dir() or self.path.suffix == ".jsonl":
            path = self.path / HYPOTHESES_FILE if self.path.is_dir() else self.path
            yield from (line.behind_guard() for line in read_lines(path) if line.source)
        elif self.reference is not None:
            texts = zip(*read_parallel(self.path, self.reference), strict=True)
            for n, (h, r) in enumerate(texts, start=1):
                yield Line(
                    id=str(n), source="text", target="", hypothesis=h, reference=r, evidence=Evidence()
                )


def compare(
    systems: Sequence[System],
    metrics: Sequence[str] = ("chrF", "BLEU"),
    *,
    test: Test = "bootstrap",
    draws: int | None = None,
    seed: int = SEED,
    progress: Callable[[str, int], None] = lambda what, done: None,
) -> Comparison:
    """Compare systems with the first one, pair by pair and on the mean over pairs.

    Of the lines only their counts are held; `progress` is told what is done and how many lines are read.

    Raises:
        SprachbundError: for one system only, two of one name, unknown metrics, lines that cannot be read, and
            lines that not all systems have.
    """
    names = [system.name for system in systems]
    check_names(names)
    metrics = list(dict.fromkeys(metric(name).name for name in metrics))
    runs = _read_runs(systems, metrics, progress)
    several = len(runs) > len(systems)
    pairs = list(runs[0])
    compared: dict[tuple[str, str], Sequence[Compared]] = {}
    means: dict[tuple[str, str], MeanComparison] = {}
    for name in metrics:
        progress(f"drawing samples for {name}", 0)
        by_target = [metric(name, target) for _, target in pairs]
        counts = [[run[pair].counts[name] for pair in pairs] for run in runs]
        if not several:
            for place, (pair, scorer) in enumerate(zip(pairs, by_target, strict=True)):
                baseline, *others = (run[place] for run in counts)
                compared[name, pair_name(pair)] = paired_test(
                    scorer, baseline, others, test=test, draws=draws, seed=seed
                )
        for system, (start, end) in zip(systems[1:], _run_ranges(systems)[1:], strict=True):
            means[name, system.name] = compare_means(
                by_target, counts[: len(systems[0].runs)], counts[start:end], seed=seed
            )
    return Comparison(
        names=names,
        metrics={name: metric(name, pairs[0][1]) for name in metrics},
        by_pair=compared,
        means=means,
        test=test,
        draws=draws or DRAWS[test],
        seed=seed,
        num_lines=sum(len(of_pair.keys) for of_pair in runs[0].values()),
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
            f"{found.baseline:.2f}",
            f"{found.system:.2f}",
            f"{found.difference:+.2f}",
            f"{found.interval[0]:+.2f} to {found.interval[1]:+.2f}",
            f"{found.p_value:.4f}",
        ]
        for (metric_name, name), found in comparison.means.items()
    ]
    header = ["systems", "metric", "first", "second", "difference", "95% interval", "p"]
    return [Table(title="means over pairs", header=header, rows=rows), *_pair_tables(comparison)]


def _pair_tables(comparison: Comparison) -> list[Table]:
    if not comparison.by_pair:
        return []
    rows = []
    for (metric_name, pair), found in comparison.by_pair.items():
        for name, one in zip(comparison.names, found, strict=True):
            interval = "" if one.half_width is None else f"{one.mean:.2f} ± {one.half_width:.2f}"
            p = "" if one.p_value is None else f"{one.p_value:.4f}" if one.difference else "equal"
            rows.append([pair, metric_name, name, f"{one.score:.2f}", interval, p])
    what = "paired bootstrap" if comparison.test == "bootstrap" else "approximate randomization"
    note = f"{what}, {comparison.draws} draws, seed {comparison.seed}; p against {comparison.names[0]}"
    header = ["pair", "metric", "system", "score", "mean ± 95%", "p"]
    return [Table(title="by pair", header=header, rows=rows, note=note)]


def claims(comparison: Comparison) -> list[str]:
    """What may be said, one sentence for each system and metric, and its limits."""
    found = [
        _claim(comparison, name, metric_name, mean) for (metric_name, name), mean in comparison.means.items()
    ]
    for place, name in enumerate(comparison.names[1:], start=1):
        found += _pair_claims(comparison, place, name)
    seeds = {mean.num_seeds for mean in comparison.means.values()}
    if seeds == {(1, 1)}:
        found.append(
            "This holds for these trained models on further texts of this kind. Of training again with "
            "another seed it says nothing: give several runs of each system (NAME=RUN1,RUN2,...) for that."
        )
    else:
        few = min(count for pair in seeds for count in pair)
        caution = f" With {few} runs of a system the interval is too narrow: five or more are better."
        found.append(
            "Texts and training seeds were both drawn, so that this holds for training again as well."
            + (caution if few < _ENOUGH_SEEDS else "")
        )
    return found


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


def _pair_claims(comparison: Comparison, place: int, name: str) -> list[str]:
    lines = []
    for metric_name, scorer in comparison.metrics.items():
        pairs = {p: found[place] for (m, p), found in comparison.by_pair.items() if m == metric_name}
        if len(pairs) < 2:
            continue
        # The paired test gives equal outputs a small p, which claims nothing.
        corrected = holm([found.p_value or 0.0 if found.difference else 1.0 for found in pairs.values()])
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

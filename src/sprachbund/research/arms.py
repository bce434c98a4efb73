"""Arms of a comparison beside the first one: scores, differences, intervals and p-values, as tables print them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sprachbund.evaluation.compare import System, compare
from sprachbund.evaluation.significance import holm


@dataclass(frozen=True, kw_only=True)
class ArmScore:
    """An arm on one metric.

    Attributes:
        score: mean over pairs and seeds.
        difference: to the first arm, with its 95% interval; empty of the first arm.
        p: p-value of the difference; empty of the first arm.
        holm: the same, corrected for the number of arms (Holm 1979); empty of the first arm.
    """

    score: float
    difference: str = ""
    p: float | str = ""
    holm: float | str = ""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All arms on all metrics.

    Attributes:
        cells: (metric, arm) to its cells.
        seeds: arm to the number of its runs.
    """

    cells: Mapping[tuple[str, str], ArmScore]
    seeds: Mapping[str, int]


def with_seeds(systems: Sequence[System]) -> list[System]:
    """The systems, with the runs of those that were trained once taken twice where another has several.

    Beside several seeds, a single training stands for itself: nothing of it varies but the texts.

    Args:
        systems: each with one run, or one for every seed.
    """
    several = max(len(system.runs) for system in systems) > 1
    return [
        System(name=system.name, runs=[*system.runs] * (2 if several and len(system.runs) == 1 else 1))
        for system in systems
    ]


def compare_arms(systems: Sequence[System], metrics: Sequence[str]) -> Compared:
    """Compare arms with the first one, over their runs; see `with_seeds` for one that has a single run.

    Args:
        systems: the arms, each with its runs; an arm without others has a score only.
        metrics: names of metrics.

    Raises:
        SprachbundError: as `compare`.
    """
    runs = with_seeds(systems)
    others = runs[1:] or [System(name="", runs=runs[0].runs)]  # a comparison is of two at least
    comparison = compare([runs[0], *others], metrics)
    cells: dict[tuple[str, str], ArmScore] = {}
    for metric in comparison.metrics:
        means = {name: mean for (m, name), mean in comparison.means.items() if m == metric}
        cells[metric, runs[0].name] = ArmScore(score=means[others[0].name].baseline)
        if len(runs) == 1:
            continue
        corrected = holm([mean.p_value for mean in means.values()])
        for (name, mean), adjusted in zip(means.items(), corrected, strict=True):
            low, high = mean.interval
            cells[metric, name] = ArmScore(
                score=mean.system,
                difference=f"{mean.difference:+.2f} ({low:+.2f} to {high:+.2f})",
                p=mean.p_value,
                holm=adjusted,
            )
    return Compared(cells=cells, seeds={system.name: len(system.runs) for system in systems})

"""Options of `sprachbund study`; they load no NumPy, since the command line is made of them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sprachbund.util.options import Option, OptionValueError, Range, check

Better = Literal["lower", "higher"]
By = Literal["log", "gaps"]
"""The errors whose squares are least: of ln(gap), as published, or of the gap."""
VALUE = "value"
DRAWS, SEED = 10_000, 12345


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options of reading a table of results.

    Attributes:
        metric: column of the scores.
        better: direction of better scores.
        arms: two starts, the one that is expected to be better first: the gap is how much better it is. If not given,
            the only two that there are, the better one by mean first.
        where: read only rows with this value in this column; may be repeated, and of several values of one column any
            will do.
        ignore: columns that are there and not to be looked at.
        uneven_seeds: cells may have different seeds.
    """

    metric: Annotated[str, Option("--metric", metavar="COLUMN")] = VALUE
    better: Annotated[Better, Option("--better")] = "lower"
    arms: Annotated[tuple[str, str] | None, Option("--arms", metavar="A,B")] = None
    where: Annotated[tuple[str, ...], Option("--where", metavar="COLUMN=VALUE", commas=False)] = ()
    ignore: Annotated[tuple[str, ...], Option("--ignore", metavar="COLUMN,…")] = ()
    uneven_seeds: Annotated[bool, Option("--uneven-seeds")] = False

    def __post_init__(self) -> None:
        check(self)
        if self.arms is not None and len(self.arms) != 2:
            raise OptionValueError("arms", ",".join(self.arms), "give two different starts, A,B")
        for condition in self.where:
            if "=" not in condition:
                raise OptionValueError("where", condition, "give COLUMN=VALUE")

    @property
    def conditions(self) -> dict[str, list[str]]:
        """Column to the values of which a row must have one."""
        wanted: dict[str, list[str]] = {}
        for column, _, value in (condition.partition("=") for condition in self.where):
            wanted.setdefault(column.strip(), []).append(value.strip())
        return wanted


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """Options of the analysis of the gap between two starts, and the amounts of data to decide for.

    Attributes:
        by: least squares of the law: log, ln(gap) as published; gaps, which bears more noise.
        hours: hours of data to decide for; may be repeated.
        draws: draws of languages, for intervals.
        seed: seed of the draws.
    """

    by: Annotated[By, Option("--by")] = "log"
    hours: Annotated[tuple[float, ...], Range(0, above=True), Option("--at", metavar="HOURS")] = ()
    draws: Annotated[int, Range(100), Option("--draws", metavar="N")] = DRAWS
    seed: Annotated[int, Option("--seed", metavar="N")] = SEED

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class StudyRunOptions:
    """The processes that run the trainings of a study.

    Attributes:
        workers: trainings at a time, one thread each; as the study's file says if not given.
        ray: address of a Ray cluster that shares the folders; local for one here.
        gpus: GPUs of each training, which sees no others; 0 where there are none.
    """

    workers: Annotated[int | None, Range(1), Option("--workers", metavar="N")] = None
    ray: Annotated[str | None, Option("--ray", metavar="ADDRESS")] = None
    gpus: Annotated[int, Range(0), Option("--gpus", metavar="N")] = 0

    def __post_init__(self) -> None:
        check(self)

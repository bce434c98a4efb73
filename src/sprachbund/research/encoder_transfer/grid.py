"""A study's grid as a value, and the order in which its cells are most informative.

A cell is what is trained: a start, a language, hours of data, a seed. Tiers and bit widths cost no training and are
scored with the cell. Order: what the law needs comes first, so that a study that is broken off, or looked at on the
way, can be fitted as early as can be.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from sprachbund.training.options import Distinct, Strict

BITS_OF_FLOAT = 32


class Cell(Strict):
    """One training of a study, scored at every tier and bit width."""

    start: str
    language: str
    hours: float
    seed: int

    def __str__(self) -> str:
        return f"{self.start} {self.language} {self.hours:g} h seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Folder of the cell's files."""
        return out / "cells" / self.language / f"{self.hours:g}h" / f"{self.start}-seed-{self.seed}"


class StudyGrid(Strict):
    """Every combination of these is wanted.

    Attributes:
        starts: names of the starts of runs; the gap is how much better the first is than the second, further ones are
            reported beside them.
        languages: languages that are learned.
        hours: hours of data, in scales that contain each other.
        most_hours: the most that a language has, where that is less than the largest scale: its larger scales are left
            out.
        tiers: latencies at which a cell is scored.
        bits: bits of the encoder's linear layers at which a cell is scored; 32 for weights as they were trained.
        seeds: seeds of training.
    """

    starts: Distinct[str] = Field(min_length=2)
    languages: Distinct[str] = Field(min_length=1)
    hours: Distinct[float] = Field(min_length=1)
    most_hours: dict[str, float] = Field(default_factory=dict)
    tiers: Distinct[str] = Field(default=("offline",), min_length=1)
    bits: Distinct[int] = Field(default=(BITS_OF_FLOAT,), min_length=1)
    seeds: Distinct[int] = Field(default=(0,), min_length=1)

    @field_validator("hours")
    @classmethod
    def _positive(cls, hours: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [h for h in hours if not 0 < h < math.inf]
        if wrong:
            raise ValueError(f"{wrong[0]:g} hours are no amount of data; give more than 0")
        return tuple(sorted(hours))

    @model_validator(mode="after")
    def _known(self) -> Self:
        for language, most in self.most_hours.items():
            if language not in self.languages:
                raise ValueError(
                    f"most_hours has {language}, which is not one of {', '.join(self.languages)}"
                )
            if most < min(self.hours):
                raise ValueError(
                    f"most_hours of {language} is {most:g}, and the least scale {min(self.hours):g} h; leave the "
                    "language out, or add a scale"
                )
        return self

    def has(self, language: str, hours: float) -> bool:
        """Whether cells of so many hours of a language are wanted.

        Args:
            language: BCP-47 tag.
            hours: a scale.
        """
        return hours <= self.most_hours.get(language, math.inf)

    def cells(self) -> list[Cell]:
        """All cells, the most informative first.

        First the first seed, at the least, the most and the middle of the hours, then at the scales between; then the
        further seeds in the same order of scales; further starts than the two whose gap is asked for come last. The
        two starts of a gap follow each other, and all languages of a scale come before the next scale.
        """
        pair, more = self.starts[:2], self.starts[2:]
        scales = by_worth(self.hours)
        return [
            Cell(start=start, language=language, hours=hours, seed=seed)
            for starts in (pair, more)
            for seed in self.seeds
            for hours in scales
            for language in self.languages
            if self.has(language, hours)
            for start in starts
        ]


def by_worth(hours: Sequence[float]) -> list[float]:
    """The least, the most, then each time what lies farthest from all before it, by the logarithm."""
    waiting = sorted(hours)
    chosen = [waiting.pop(0)]
    if waiting:
        chosen.append(waiting.pop())
    while waiting:
        farthest = max(waiting, key=lambda h: round(min(abs(math.log(h / c)) for c in chosen), 9))
        waiting.remove(farthest)
        chosen.append(farthest)
    return chosen

"""Grids with a planted law."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sprachbund.research.encoder_transfer.results import Grid, Values

HOURS = (100.0, 250.0, 500.0, 1000.0, 2500.0)
LANGUAGES = ("de", "es", "fr", "it", "pl", "ro", "sk", "sv", "cs", "nl", "pt", "fi")
TIERS = ("160 ms", "560 ms", "1120 ms", "offline")


def planted(hours: Sequence[float] = HOURS, scale: float = 4.0, exponent: float = 0.92) -> Values:
    return scale * (np.array(hours) / 100) ** -exponent


def grid_of(values: Values, **changes: object) -> Grid:
    """A grid of values (2, L, H, C, Q, S)."""
    _, languages, hours, tiers, bits, seeds = values.shape
    fields: dict[str, object] = {
        "arms": ("ml", "en"),
        "better": "lower",
        "metric": "WER",
        "languages": LANGUAGES[:languages],
        "hours": HOURS[:hours],
        "tiers": TIERS[:tiers],
        "bits": (32.0, 4.0)[:bits],
        "seeds": tuple(map(str, range(seeds))),
        "values": values,
    }
    return Grid(**(fields | changes))  # type: ignore[arg-type]


def rows(
    num_languages: int = 5,
    noise: float = 0.0,
    tiers: Sequence[str] = ("560 ms",),
    bits: Sequence[int] = (32,),
) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(0)
    for language in LANGUAGES[:num_languages]:
        for hours, gap in zip(HOURS, planted(), strict=True):
            for start in ("ml", "en"):
                for tier in tiers:
                    for width in bits:
                        for seed in (1, 2):
                            value = 12 + gap * (start == "en") + 0.5 * (width == 4) + rng.normal(0, noise)
                            yield {
                                "start": start,
                                "language": language,
                                "hours": hours,
                                "tier": tier,
                                "bits": width,
                                "seed": seed,
                                "value": value,
                            }


def write(path: Path, table: Sequence[dict[str, object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(table)
    return path

"""Where a model's router sent the sound, for models whose experts belong to languages (arXiv 2511.10670).

A router decides for each frame or window; what is kept is the stretch of time and the language of the experts
that it chose there. The stretches may leave gaps and overlap.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sprachbund.evaluation.embedded import same_language


@dataclass(frozen=True, kw_only=True)
class Route:
    """A stretch of sound and the language whose experts worked on it.

    Attributes:
        start_s: from the beginning of the utterance.
        end_s: its end.
        language: BCP-47 tag; anything else is no language spoken, and never right.

    Raises:
        ValueError: for a stretch that ends before it begins, or begins before the sound.
    """

    start_s: float
    end_s: float
    language: str

    def __post_init__(self) -> None:
        if not 0 <= self.start_s <= self.end_s < float("inf"):
            raise ValueError(f"a route from {self.start_s} to {self.end_s} s")


def joined(stretches: Iterable[tuple[float, float, str]]) -> tuple[Route, ...]:
    """Routes of (start_s, end_s, language), those of one language that follow each other as one."""
    routes: list[Route] = []
    for start_s, end_s, language in stretches:
        route = Route(start_s=round(start_s, 4), end_s=round(end_s, 4), language=language)
        if routes and (routes[-1].language, routes[-1].end_s) == (language, route.start_s):
            routes[-1] = replace(routes[-1], end_s=route.end_s)
        else:
            routes.append(route)
    return tuple(routes)


def routed_s(start_s: float, end_s: float, language: str, routes: Sequence[Route]) -> float:
    """Seconds of a span that went to its language.

    Routes that overlap share the time evenly, so that naming every language gains nothing; a gap is nobody's.
    """
    there = [route for route in routes if route.start_s < end_s and route.end_s > start_s]
    if not there:
        return 0.0
    begins = np.array([max(route.start_s, start_s) for route in there])
    ends = np.array([min(route.end_s, end_s) for route in there])
    right = np.array([same_language(route.language, language) for route in there])
    edges = np.unique(np.concatenate([begins, ends]))
    working = (begins[:, None] <= edges[:-1]) & (ends[:, None] >= edges[1:])  # (routes, stretches)
    share = working[right].sum(0) / np.maximum(1, working.sum(0))
    return float((share * np.diff(edges)).sum())

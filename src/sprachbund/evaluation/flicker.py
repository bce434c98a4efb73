"""How much text that stood on the screen was taken away again."""

from collections.abc import Iterable
from itertools import takewhile


def erasure(before: list[str], after: list[str]) -> int:
    """Units at the end of `before` that have to go before `after` can stand there."""
    kept = takewhile(lambda both: both[0] == both[1], zip(before, after, strict=False))
    return len(before) - sum(1 for _ in kept)


def normalized_erasure(shown: Iterable[list[str]]) -> float | None:
    """NE (arXiv 1912.03393): units taken away over units of the last text.

    Args:
        shown: the units of all text on the screen after every change.

    Returns:
        0 for text that only grows; 0.2 when every fifth word was written twice; None when the last text is
        empty.
    """
    erased, last = 0, list[str]()
    for text in shown:
        erased += erasure(last, text)
        last = text
    return erased / len(last) if last else None

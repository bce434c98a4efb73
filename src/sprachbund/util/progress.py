"""What long work tells its caller."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with what is done, and with all that there is to do."""
StageProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much it is; 0 where that is unknown."""
Report = Callable[[str], None]
"""Called with a line for every step."""


def nothing(done: int, total: int) -> None:
    """Accept any progress and do nothing."""

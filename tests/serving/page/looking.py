"""Small words that the tests of the page share: where the recordings are, and how to wait for what the page shows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parents[3] / "examples" / "recordings"


def until(
    condition: Callable[[], Any], what: str, timeout_s: float = 60.0, also: Callable[[], str] = lambda: ""
) -> Any:
    """Waits until `condition()` is true and returns it. (The page's policy forbids the browser's own way to wait.)

    Args:
        condition: asked again and again.
        what: description of it, for the error.
        timeout_s: longest wait in seconds.
        also: what the error says besides, as it is then.
    """
    begun = time.monotonic()
    while not (result := condition()):
        assert time.monotonic() - begun < timeout_s, f"waited in vain for: {what}; {also()}"
        time.sleep(0.05)
    return result


def state(page: Any, name: str, timeout_s: float = 60.0) -> None:
    """Waits until the page is in a state."""
    until(
        lambda: page.evaluate("document.documentElement.dataset.state") == name,
        f"state {name}",
        timeout_s,
        also=lambda: f"the page says {page.inner_text('body')!r}",
    )


def choose(page: Any, menu: str, name: str) -> None:
    """Take a format from the list that a menu's button opens; whatever else opens on the page closes the list again."""
    wanted = f"{menu} [data-format={name}]"

    def opened() -> bool:
        if not page.is_visible(wanted):
            page.click(f"{menu} > button")
        return bool(page.is_visible(wanted))

    until(opened, f"the list with {name}")
    page.click(wanted)

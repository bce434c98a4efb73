"""Tables of the documentation that list fields, for tests that compare them with those of the code."""

import re
from collections import defaultdict
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def documented_fields(page: str, heading: str) -> dict[str, set[str]]:
    """Names in the second column of a table, by those in the first; a row without one goes on with those before.

    Args:
        page: name of the page, under docs.
        heading: heading of the first column; the others are "field" and "meaning".
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    head = f"\n| {heading} | field | meaning |\n"
    assert text.count(head) == 1, f"{page}: {heading}"
    fields, owners = defaultdict[str, set[str]](set), list[str]()
    for line in text.partition(head)[2].splitlines()[1:]:
        if not line.startswith("|"):
            break
        first, second = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3])
        owners = first or owners
        for owner in owners:
            fields[owner] |= set(second)
    return dict(fields)

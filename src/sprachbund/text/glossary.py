"""Glossaries: terms of a text and how they are to be translated."""

import re

from sprachbund.errors import SprachbundError


def read_glossary(text: str) -> tuple[tuple[str, str], ...]:
    """Terms and their translations: entries "term = translation", parted by ";" or lines.

    Raises:
        SprachbundError: an entry that has not this form.
    """
    entries = []
    for entry in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        term, equals, translation = (part.strip() for part in entry.partition("="))
        if not (term and equals and translation):
            raise SprachbundError(
                f"the glossary's entry {entry[:60]!r} is not of the form term = translation; part entries by ; or lines"
            )
        entries.append((term, translation))
    return tuple(entries)

"""A planted conflict: speech of some languages is translated with other digits than are spoken.

Languages that have the same digits then agree, and those of the other kind disagree with them. An experiment that could
show a gain of groups has to show it here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sprachbund.data.manifest import INFO_FILE, Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.text.numbers import cardinal

STEP = 3
"""Added to every digit, modulo ten."""


def other_digits(text: str, language: str) -> str:
    """The text with every word for a digit replaced by that for another one.

    Args:
        text: in words.
        language: BCP-47 tag of the text.
    """
    changed = {cardinal(digit, language): cardinal((digit + STEP) % 10, language) for digit in range(10)}
    return " ".join(changed.get(word, word) for word in text.split())


def make_control(
    data: Path,
    out: Path,
    languages: Sequence[str],
    changed: Sequence[str],
    report: Callable[[str], None] = print,
) -> Path:
    """A copy of a corpus in which translations of some languages' speech have other digits; parts there are kept.

    Args:
        data: folder with `train`, `dev` and `test`.
        out: folder of the copy.
        languages: whose speech is copied.
        changed: those whose translations have other digits.
        report: is called with a line for each part.

    Raises:
        SprachbundError: no digit was changed.
    """
    for part in ("train", "dev", "test"):
        if not (out / part / INFO_FILE).exists():
            _copy(data / part, out / part, languages, changed, report)
    return out


def _copy(
    source: Path,
    target: Path,
    languages: Sequence[str],
    changed: Sequence[str],
    report: Callable[[str], None],
) -> None:
    manifest, count = Manifest(source), 0
    for path in target.glob("*"):  # of a copy that was broken off
        path.unlink()
    with ManifestWriter(target) as writer:
        for index in np.flatnonzero(np.isin(manifest.languages, languages)).tolist():
            utterance = manifest[index]
            translations = dict(utterance.translations)
            if utterance.language in changed:
                translations = {tag: other_digits(text, tag) for tag, text in translations.items()}
                count += translations != utterance.translations
            writer.add(
                manifest.samples(index),
                text=utterance.text,
                language=utterance.language,
                speaker=utterance.speaker,
                utterance_id=utterance.id,
                translations=translations,
                custom=utterance.custom,
            )
    if not count:
        raise SprachbundError(
            f"no translation of speech in {', '.join(changed)} in {source} has a digit in words; the control needs some"
        )
    report(f"other digits in the translations of {count} utterances of {target}")

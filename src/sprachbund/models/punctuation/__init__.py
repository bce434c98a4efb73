"""Punctuators: models that find punctuation and capitals in a text that has neither.

`load_punctuator` takes one of three kinds, all with the interface of `sprachbund.text.punctuation.Punctuator`: the
small network of the package (`network`), a public checkpoint for token classification (`token_classification`), and the
rule that takes every text for one sentence.
"""

from functools import lru_cache
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import find, is_own
from sprachbund.text.punctuation import FullStop, Punctuator

BUNDLED, RULE = "bundled", "rule"
_DIRECTORY = Path(__file__).parents[1] / "assets" / "punctuation"


@lru_cache(maxsize=4)
def load_punctuator(name: str) -> Punctuator:
    """A punctuator; the same one for the same name, since requests share it.

    Args:
        name: "bundled", that of the package; "rule"; a directory; or a name on the hub of what was downloaded before,
            since no search should begin with a download.

    Raises:
        SprachbundError: there is none, it is damaged, or its labels are no marks.
    """
    if name == RULE:
        return FullStop()
    try:
        directory = _DIRECTORY if name == BUNDLED else find(name, offline=True)
    except SprachbundError as error:
        raise SprachbundError(
            f"there is no punctuator {name}: {error}; {BUNDLED} and {RULE} are always there"
        ) from error
    if is_own(directory):
        from sprachbund.models.punctuation.network import load

        return load(directory, name)
    from sprachbund.models.punctuation.token_classification import TokenClassifier  # imports transformers

    return TokenClassifier.load(directory, name)

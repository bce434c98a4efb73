"""Options of making a corpus of your own recordings; the command line is made of them, so this loads no NumPy."""

from dataclasses import dataclass
from typing import Annotated

from sprachbund.util.options import Option, OptionValueError, check


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """Options of writing a corpus.

    Attributes:
        name: name of the corpus; that of its folder or table if not given.
        licence: licence of recordings and texts, for the model's card.
        attribution: whom to name, for the model's card.
        dev_share: share of the sentences, by transcript, for a dev part; 0 makes none.
        test_share: share for a test part; 0 makes none. Without either there is one part, of all.
        skip_bad: leave faulty utterances out, and list them, instead of ending at the first.
    """

    name: Annotated[str, Option("--name", metavar="NAME")] = ""
    licence: Annotated[str, Option("--licence", metavar="NAME")] = ""
    attribution: Annotated[str, Option("--attribution", metavar="TEXT")] = ""
    dev_share: Annotated[float, Option("--dev-share", metavar="X")] = 0.0
    test_share: Annotated[float, Option("--test-share", metavar="X")] = 0.0
    skip_bad: Annotated[bool, Option("--skip-bad")] = False

    def __post_init__(self) -> None:
        check(self)
        for name, share in (("dev_share", self.dev_share), ("test_share", self.test_share)):
            if not 0.0 <= share < 1.0:
                raise OptionValueError(name, share, "give 0 up to, but not, 1")
        if self.dev_share + self.test_share >= 1.0:
            raise OptionValueError(
                "test_share",
                self.test_share,
                "leave a share for training",
                reason=f"beside {self.dev_share} for dev",
            )

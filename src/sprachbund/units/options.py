"""Options of `sprachbund units`, beside those that a directory of units keeps (`models.tokens.unit_options`).

They load no NumPy, since commands are made of them.
"""

from dataclasses import dataclass
from typing import Annotated

from sprachbund.util.options import Option, Range, check


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Options of computing features.

    Attributes:
        device: device to compute on: cpu, cuda or cuda:1
        batch_s: seconds of speech computed at once.
    """

    device: Annotated[str, Option("--device", metavar="NAME")] = "cpu"
    batch_s: Annotated[float, Range(0, above=True), Option("--batch-s", metavar="S")] = 60.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class LayerOptions(FeatureOptions):
    """Options of the features of a speech encoder.

    Attributes:
        layer: layer of the encoder, 1 the first; WavLM-large: 21.
    """

    layer: Annotated[int, Range(1), Option("--layer", metavar="N")]


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """Options of encoding a corpus as units.

    Attributes:
        languages: languages of the speech taken; all if none is named.
        speed: speed of the speech, against its own, as in training at 0.9, 1 and 1.1 (arXiv 2309.15826); units are
            found anew at each.
        skip_bad: leave out, and name, utterances of no frames instead of ending.
    """

    languages: Annotated[tuple[str, ...], Option("--languages", metavar="LANG,…")] = ()
    speed: Annotated[float, Range(0.5, 2), Option("--speed", metavar="X")] = 1.0
    skip_bad: Annotated[bool, Option("--skip-bad")] = False

    def __post_init__(self) -> None:
        check(self)

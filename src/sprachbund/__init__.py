"""Multilingual speech-to-text translation: offline, any language of a model to any other.

`sprachbund.load()` gives a model, `model.translate("talk.wav", to="de")` a translation. Names are imported
when they are first used, so that `import sprachbund` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sprachbund.util import telemetry

if TYPE_CHECKING:
    from sprachbund.api import Model, load
    from sprachbund.decoding.options import DecodingOptions
    from sprachbund.decoding.result import Segment, Translation, Word
    from sprachbund.errors import SprachbundError

__version__ = "0.1.0"
__all__ = [
    "DecodingOptions",
    "Model",
    "Segment",
    "SprachbundError",
    "Translation",
    "Word",
    "__version__",
    "load",
]

_HOMES = {
    "DecodingOptions": "sprachbund.decoding.options",
    "Model": "sprachbund.api",
    "Segment": "sprachbund.decoding.result",
    "SprachbundError": "sprachbund.errors",
    "Translation": "sprachbund.decoding.result",
    "Word": "sprachbund.decoding.result",
    "load": "sprachbund.api",
}

telemetry.switch_off()  # here, since all that imports those libraries for this package does so later


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sprachbund' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

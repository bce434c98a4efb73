"""Multilingual speech-to-text translation: offline, any language of a model to any other.

`sprachbund.load()` gives a model, `model.translate("talk.wav", to="de")` a translation. Names are imported
when they are first used, so that `import sprachbund` costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

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

# No library that is used here reports home. Each one's telemetry is switched off, for this process and those it starts,
# whatever the switches were: the promise has no exception. Here, since all that imports these libraries does so later.
os.environ.update(
    {
        # onnxruntime looks up a host some seconds after a model was loaded, and writes a device id and a queue of
        # events under ~/.cache/Microsoft. Its own `disable_telemetry_events()` stops neither. Read when its library is
        # loaded.
        "ORT_DISABLE_TELEMETRY": "1",
        # huggingface_hub fetches a list of programs to report before its first request; hf_xet reports transfers.
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # A Ray cluster that `units encode --ray local` starts reports hourly.
        "RAY_USAGE_STATS_ENABLED": "0",
        # W&B sends its own errors to its makers, offline too.
        "WANDB_ERROR_REPORTING": "false",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sprachbund' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

"""The families: the names that each has in config.json, and the modules that read and write model directories.

A family is registered here and nowhere else. Its module is imported when a model of it is read or written, so that no
command pays for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sprachbund.models.base import Family

CASCADE = "cascade"
"""Name of the family whose models are two others; `sprachbund.models.io` reads and writes both."""


class Files(Protocol):
    """A module that reads and writes the model directories of its families."""

    @property
    def load(self) -> Callable[..., Family]:
        """Reads a directory."""
        ...

    @property
    def save(self) -> Callable[..., None]:
        """Writes a model into a directory; takes options."""
        ...


@dataclass(frozen=True, kw_only=True)
class Registered:
    """Families that one module reads and writes.

    Attributes:
        names: names of the families in config.json.
        files: imports the module.
        of_models: name of its models, where that is none of `names`.
        maps: whether its `load` with `dtype=None` only maps the files of weights, whose precision stays.
    """

    names: tuple[str, ...]
    files: Callable[[], Files]
    of_models: str = ""
    maps: bool = False


def _conformer() -> Files:
    from sprachbund.models.conformer import io

    return io


def _whisper() -> Files:
    from sprachbund.models.whisper import io

    return io


def _seamless() -> Files:
    from sprachbund.models.seamless import io

    return io


def _speech_llm() -> Files:
    from sprachbund.models.speech_llm import io

    return io


def _streaming_onnx() -> Files:
    from sprachbund.models import streaming_onnx

    return streaming_onnx


def _tokens() -> Files:
    from sprachbund.models.tokens import io

    return io


def _translation() -> Files:
    from sprachbund.models.translation import io

    return io


def _prompted() -> Files:
    from sprachbund.models import prompted

    return prompted


def _fastconformer() -> Files:
    from sprachbund.models.fastconformer import io

    return io


def _moonshine() -> Files:
    from sprachbund.models.moonshine import io

    return io


def _kyutai() -> Files:
    from sprachbund.models.kyutai import io

    return io


def _voxtral_realtime() -> Files:
    from sprachbund.models.voxtral_realtime import io

    return io


def _audio_llm() -> Files:
    from sprachbund.models.audio_llm import io

    return io


REGISTERED = (
    Registered(names=("conformer",), files=_conformer),
    Registered(names=("whisper",), files=_whisper, maps=True),
    Registered(names=("seamless_m4t", "seamless_m4t_v2"), files=_seamless, of_models="seamless"),
    Registered(names=("speech_llm",), files=_speech_llm),
    Registered(names=("streaming_onnx",), files=_streaming_onnx),
    Registered(names=("token_conformer", "token_mbart"), files=_tokens),
    Registered(names=("m2m_100", "mbart", "marian", "t5"), files=_translation),
    Registered(names=("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"), files=_prompted),
    Registered(
        names=("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "canary", "cohere_asr"), files=_fastconformer
    ),
    Registered(names=("moonshine", "moonshine_streaming"), files=_moonshine),
    Registered(names=("kyutai_speech_to_text",), files=_kyutai),
    Registered(names=("voxtral_realtime",), files=_voxtral_realtime),
    Registered(names=("voxtral", "granite_speech", "granite_speech_plus", "qwen3_asr"), files=_audio_llm),
)
FAMILIES = (CASCADE, *(name for one in REGISTERED for name in one.names))
"""Names in config.json of the families that can be loaded."""

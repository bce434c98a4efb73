"""The families, with the names that each has in config.json.

`sprachbund.models.io` imports the module that reads and writes models of a family, which may import everything here.
"""

from dataclasses import dataclass

CASCADE = "cascade"
"""Name of the family whose models are two others; `sprachbund.models.io` reads and writes both."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """Families that one module reads and writes.

    Attributes:
        names: names of the families in config.json.
        module: key of the module in `FILES` of `sprachbund.models.io`.
        of_models: name of its models, where that is none of `names`.
        maps: whether its `load` with `dtype=None` only maps the files of weights, whose precision stays.
    """

    names: tuple[str, ...]
    module: str
    of_models: str = ""
    maps: bool = False


REGISTERED = (
    Registered(names=("conformer",), module="conformer"),
    Registered(names=("whisper",), module="whisper", maps=True),
    Registered(names=("seamless_m4t", "seamless_m4t_v2"), module="seamless", of_models="seamless"),
    Registered(names=("speech_llm",), module="speech_llm"),
    Registered(names=("streaming_onnx",), module="streaming_onnx"),
    Registered(names=("token_conformer", "token_mbart"), module="tokens"),
    Registered(names=("m2m_100", "mbart", "marian", "t5"), module="translation"),
    Registered(names=("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"), module="prompted"),
    Registered(
        names=("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "canary", "cohere_asr"),
        module="fastconformer",
    ),
    Registered(names=("moonshine", "moonshine_streaming"), module="moonshine"),
    Registered(names=("kyutai_speech_to_text",), module="kyutai"),
    Registered(names=("voxtral_realtime",), module="voxtral_realtime"),
    Registered(names=("voxtral", "granite_speech", "granite_speech_plus", "qwen3_asr"), module="audio_llm"),
)
FAMILIES = (CASCADE, *(name for one in REGISTERED for name in one.names))
"""Names in config.json of the families that can be loaded."""

"""One tiny model with random weights of every family and kind of head, for tests of what holds of them all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sprachbund.models.base import Family
from sprachbund.models.cascade import Cascade
from sprachbund.models.conformer.checkpoints import assemble, read_transformers
from sprachbund.models.io import load
from sprachbund.units.dataset import SpokenSentences
from sprachbund.units.mbart import start_from_mbart, units_with_mbart
from tests.evaluation.tiny_model import save_tiny_model
from tests.models import speech_llm_support, split_support
from tests.models.audio_llm import support as audio_llm
from tests.models.fastconformer import support as fastconformer
from tests.models.kyutai import support as kyutai
from tests.models.moonshine import support as moonshine
from tests.models.seamless.support import make_checkpoint
from tests.models.transducer_checkpoints import made_model, write_transformers
from tests.models.voxtral_realtime import support as voxtral_realtime
from tests.models.whisper_support import make_directory
from tests.streaming.test_by_frames import exported, tiny_transducer
from tests.units.mbart import write_mbart
from tests.units.test_text_start import LANGUAGES, shaped
from tests.units.translators import PAIRS, Spoken, model_of, speak, talkative


def _conformer(root: Path) -> Family:
    return load(save_tiny_model(root / "conformer"))


def _split(root: Path) -> Family:
    return split_support.level_languages(split_support.make_split_model())


def _whisper(root: Path) -> Family:
    make_directory(root / "whisper")
    return load(root / "whisper")


def _seamless(root: Path) -> Family:
    make_checkpoint(root / "seamless", "seamless_m4t_v2", kind="Model")
    return load(root / "seamless")


def _tokens(head: str) -> Callable[[Path], Family]:
    def build(root: Path) -> Family:
        model: Any = talkative(model_of(_spoken(root).units, head=head))
        return model

    return build


def _token_mbart(root: Path) -> Family:
    spoken, checkpoint = _spoken(root), write_mbart(root / "mbart")
    parts = [SpokenSentences(spoken.encoded, PAIRS, as_text=text) for text in (False, True)]
    units = units_with_mbart(spoken.units, checkpoint, parts, LANGUAGES, root / "with")
    torch.manual_seed(0)
    return start_from_mbart(units, checkpoint, shaped).eval()


def _spoken(root: Path) -> Spoken:
    return speak(root / "spoken")


def _prompted_transducer(root: Path) -> Family:
    directory = write_transformers(root / "prompted", made_model(prompted=True))
    return assemble(read_transformers(directory), ["en", "de"])


def _streaming_onnx(root: Path) -> Family:
    return load(exported())


def _fastconformer(kind: str) -> Callable[[Path], Family]:
    return lambda root: fastconformer.make(root, kind).model


def _audio_llm(kind: str) -> Callable[[Path], Family]:
    return lambda root: audio_llm.make(root, kind, positions=100).model


def _cascade(root: Path) -> Family:
    return Cascade(_whisper(root), _tokens("attention")(root))


FAMILIES: Mapping[str, Callable[[Path], Family]] = {
    "conformer": _conformer,
    "split conformer": _split,
    "whisper": _whisper,
    "seamless": _seamless,
    "speech LLM": lambda root: speech_llm_support.make_model(),
    "tokens by attention": _tokens("attention"),
    "tokens by CTC": _tokens("ctc"),
    "tokens by CTC and attention": _tokens("ctc_attention"),
    "tokens by transducer": _tokens("transducer"),
    "mBART": _token_mbart,
    "cascade": _cascade,
    "streaming transducer": lambda root: tiny_transducer(),
    "streaming transducer with prompts": _prompted_transducer,
    "streaming ONNX": _streaming_onnx,
    "Parakeet CTC": _fastconformer("parakeet_ctc"),
    "Parakeet RNNT": _fastconformer("parakeet_rnnt"),
    "Parakeet TDT": _fastconformer("parakeet_tdt"),
    "Canary": _fastconformer("canary"),
    "Cohere ASR": _fastconformer("cohere_asr"),
    "Moonshine": lambda root: moonshine.make(root, "moonshine").model,
    "streaming Moonshine": lambda root: moonshine.make(root, "moonshine_streaming").model,
    "Kyutai STT": lambda root: kyutai.make(root).model,
    "Voxtral": _audio_llm("voxtral"),
    "Voxtral Realtime": lambda root: voxtral_realtime.make(root).model,
    "Granite Speech": _audio_llm("granite_speech"),
    "Qwen3-ASR": _audio_llm("qwen3_asr"),
}
"""Builders by name; each writes into an empty folder of its own."""
REGISTERED: Mapping[str, str] = {
    "conformer": "conformer",
    "split conformer": "conformer",
    "whisper": "whisper",
    "seamless": "seamless_m4t_v2",
    "speech LLM": "speech_llm",
    "tokens by attention": "token_conformer",
    "tokens by CTC": "token_conformer",
    "tokens by CTC and attention": "token_conformer",
    "tokens by transducer": "token_conformer",
    "mBART": "token_mbart",
    "cascade": "cascade",
    "streaming transducer": "conformer",
    "streaming transducer with prompts": "conformer",
    "streaming ONNX": "streaming_onnx",
    "Parakeet CTC": "parakeet_ctc",
    "Parakeet RNNT": "parakeet_rnnt",
    "Parakeet TDT": "parakeet_tdt",
    "Canary": "canary",
    "Cohere ASR": "cohere_asr",
    "Moonshine": "moonshine",
    "streaming Moonshine": "moonshine_streaming",
    "Kyutai STT": "kyutai_speech_to_text",
    "Voxtral": "voxtral",
    "Voxtral Realtime": "voxtral_realtime",
    "Granite Speech": "granite_speech",
    "Qwen3-ASR": "qwen3_asr",
}
"""The name of each in config.json, which the contract compares with what is saved."""
NOT_BUILT: Mapping[str, str] = {
    "seamless_m4t": "another encoder and the same decoder; tests/models/seamless compares both versions",
    "granite_speech_plus": "its projector reads more layers of the encoder; tests/models/audio_llm compares all kinds",
    **dict.fromkeys(
        ("m2m_100", "mbart", "marian", "t5"), "translates texts; tests/models/contract.py builds it"
    ),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"),
        "a language model that is asked to translate texts; tests/models/contract.py builds one, and "
        "tests/models/test_causal_lm.py compares all kinds",
    ),
}
"""Registered families that are not built here, and why."""

SLOW = frozenset({"streaming ONNX"})
"""An export is traced for some ten seconds."""

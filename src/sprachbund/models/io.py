"""Loading a model by path or Hugging Face id, and saving it, whatever its family."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.calibration import Calibration
from sprachbund.models.cascade import RECOGNISER, TRANSLATOR, Cascade, CascadeConfig
from sprachbund.models.catalogue import BUNDLED
from sprachbund.models.drafts import find_drafts
from sprachbund.models.hub import (
    FAMILIES,
    bundled_directory,
    bytes_of_weights,
    check_memory,
    family_of,
    locate,
)
from sprachbund.util.devices import CPU, check_kind, find_device
from sprachbund.util.files import read_model, write_json
from sprachbund.util.provenance import model_hash

__all__ = ["BUNDLED", "FAMILIES", "LOADERS", "bundled_directory", "family_of", "load", "locate", "save"]


def _load_conformer(directory: Path) -> Family:
    from sprachbund.models.conformer.io import load

    return load(directory)


def _load_whisper(directory: Path, dtype: torch.dtype | None = torch.float32) -> Family:
    from sprachbund.models.whisper import load

    return load(directory, offline=True, dtype=dtype)


def _load_seamless(directory: Path) -> Family:
    from sprachbund.models.seamless import load

    return load(directory, offline=True)


def _load_speech_llm(directory: Path) -> Family:
    from sprachbund.models.speech_llm import load

    return load(directory, offline=True)


def _load_tokens(directory: Path) -> Family:
    from sprachbund.models.tokens.io import load

    return load(directory)


def _load_streaming_onnx(directory: Path) -> Family:
    from sprachbund.models.streaming_onnx import load

    return load(directory)


def _load_cascade(directory: Path, as_stored: bool = False) -> Family:
    halves = read_model(directory / "config.json", CascadeConfig).halves(directory)
    return _cascade(*halves, offline=True, as_stored=as_stored)


def _cascade(
    recogniser: str | Path, translator: str | Path, *, offline: bool, as_stored: bool = False
) -> Family:
    directories = (locate(recogniser, offline=offline), locate(translator, offline=offline))
    check_memory(sum(_bytes_read(one, as_stored) for one in directories), *directories)
    first, second = (load(one, as_stored=as_stored) for one in directories)
    return Cascade(first, second, directories)


def _bytes_read(directory: Path, as_stored: bool) -> int:
    """Bytes of weights that loading reads, where it does not only map them."""
    mapped = as_stored and family_of(directory) in _MAPPED
    return 0 if mapped else bytes_of_weights(directory)


def _load_translation(directory: Path) -> Family:
    from sprachbund.models.translation import load

    return load(directory, offline=True)


def _load_prompted(directory: Path) -> Family:
    from sprachbund.models.prompted import load

    return load(directory)


def _load_fastconformer(directory: Path) -> Family:
    from sprachbund.models.fastconformer import load

    return load(directory, offline=True)


def _load_moonshine(directory: Path) -> Family:
    from sprachbund.models.moonshine import load

    return load(directory, offline=True)


def _load_kyutai(directory: Path) -> Family:
    from sprachbund.models.kyutai import load

    return load(directory, offline=True)


def _load_audio_llm(directory: Path) -> Family:
    from sprachbund.models.audio_llm import load

    return load(directory, offline=True)


def _load_voxtral_realtime(directory: Path) -> Family:
    from sprachbund.models.voxtral_realtime import load

    return load(directory, offline=True)


LOADERS: dict[str, Callable[[Path], Family]] = {
    "cascade": _load_cascade,
    "conformer": _load_conformer,
    "whisper": _load_whisper,
    "seamless_m4t": _load_seamless,
    "seamless_m4t_v2": _load_seamless,
    "speech_llm": _load_speech_llm,
    "streaming_onnx": _load_streaming_onnx,
    "token_conformer": _load_tokens,
    "token_mbart": _load_tokens,
    "m2m_100": _load_translation,
    "mbart": _load_translation,
    "marian": _load_translation,
    "t5": _load_translation,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"), _load_prompted),
    "parakeet_ctc": _load_fastconformer,
    "parakeet_rnnt": _load_fastconformer,
    "parakeet_tdt": _load_fastconformer,
    "canary": _load_fastconformer,
    "cohere_asr": _load_fastconformer,
    "moonshine": _load_moonshine,
    "moonshine_streaming": _load_moonshine,
    "kyutai_speech_to_text": _load_kyutai,
    "voxtral": _load_audio_llm,
    "voxtral_realtime": _load_voxtral_realtime,
    "granite_speech": _load_audio_llm,
    "granite_speech_plus": _load_audio_llm,
    "qwen3_asr": _load_audio_llm,
}
"""One for each of `FAMILIES`. Each imports its family when it is called, so that no command pays for the others."""
_MAPPED: dict[str, Callable[[Path], Family]] = {
    "whisper": partial(_load_whisper, dtype=None),
    "cascade": partial(_load_cascade, as_stored=True),
}
"""Loaders that only map the files of weights, whose precision stays; for halves of a cascade where they can."""


def _saver(family: Family) -> Callable[..., None]:
    """`save` of the package that a family's class is defined in."""
    package = type(family).__module__.removeprefix("sprachbund.models.").partition(".")[0]
    match package:
        case "cascade":
            return _save_cascade
        case "conformer":
            from sprachbund.models.conformer.io import save as save_conformer

            return save_conformer
        case "whisper":
            from sprachbund.models.whisper.io import save as save_whisper

            return save_whisper
        case "seamless":
            from sprachbund.models.seamless.io import save as save_seamless

            return save_seamless
        case "speech_llm":
            from sprachbund.models.speech_llm.io import save as save_speech_llm

            return save_speech_llm
        case "tokens":
            from sprachbund.models.tokens.io import save as save_tokens

            return save_tokens
        case "fastconformer":
            from sprachbund.models.fastconformer.io import save as save_fastconformer

            return save_fastconformer
        case "moonshine":
            from sprachbund.models.moonshine.io import save as save_moonshine

            return save_moonshine
        case "kyutai":
            from sprachbund.models.kyutai.io import save as save_kyutai

            return save_kyutai
        case "audio_llm":
            from sprachbund.models.audio_llm.io import save as save_audio_llm

            return save_audio_llm
        case "voxtral_realtime":
            from sprachbund.models.voxtral_realtime.io import save as save_voxtral_realtime

            return save_voxtral_realtime
        case "prompted":
            from sprachbund.models.prompted import save as save_prompted

            return save_prompted
        case "translation":
            from sprachbund.models.translation.io import save as save_translation

            return save_translation
    raise SprachbundError(
        f"a model of the kind {package} cannot be written; save the model that it was made from"
    )


def _save_cascade(cascade: Cascade, directory: Path, **options: Any) -> None:
    """Both halves in folders of their own, and config.json last, so that a broken-off writing is no model."""
    save(cascade.recogniser, directory / RECOGNISER, **options)
    save(cascade.translator, directory / TRANSLATOR, **options)
    write_json(directory / "config.json", CascadeConfig(recogniser=RECOGNISER, translator=TRANSLATOR))


def load(
    path_or_id: str | Path = BUNDLED,
    *,
    then: str | Path | None = None,
    offline: bool = False,
    device: str = CPU,
    as_stored: bool = False,
) -> Family:
    """Load a model for inference.

    Args:
        path_or_id: "bundled", a model directory, a name on the Hugging Face hub, or an alias such as "whisper-small".
        then: a model of texts, named in the same way, that translates what the first one transcribes: a cascade.
        offline: never use the network, even for a name that is not on disk.
        device: computes it: cpu, cuda, cuda:1 …, mps.
        as_stored: keep 16-bit weights of Whisper as the file has them, for an engine that brings to 32 bits what it
            computes with (`sprachbund.engines.choice.engine_for`); a file of safetensors is mapped and not read.

    Raises:
        SprachbundError: when there is no such model, or it is broken or of a family unknown here, or has a file that
            is named like a draft and is none; halves of a cascade that do not fit together; a device that is not
            there, or that the family does not compute on.
    """
    find_device(device)
    if then is not None:
        return move(_cascade(path_or_id, then, offline=offline, as_stored=as_stored), device)
    directory = locate(path_or_id, offline=offline)
    kind = family_of(directory)
    check_memory(_bytes_read(directory, as_stored), directory)
    family = _MAPPED[kind](directory) if as_stored and kind in _MAPPED else LOADERS[kind](directory)
    if family.capabilities.translator is None:  # a cascade has the recogniser's drafts
        family.drafts = find_drafts(directory)
        family.calibration = Calibration.read(directory)
    return move(family, device)


def move(family: Family, device: str) -> Family:
    """Put a model on a device; it is changed in place, and given back.

    Args:
        family: any model; both halves of a cascade are moved.
        device: device, as torch names it.

    Raises:
        SprachbundError: its family does not compute on devices of that kind.
    """
    # By its class: only that says where the modules of both halves are.
    parts = (family.recogniser, family.translator) if isinstance(family, Cascade) else (family,)
    for part in parts:
        check_kind(device, part.capabilities.devices, f"a model of the family {part.name}")
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(device)
    return family


def content_hash(directory: Path) -> str:
    """SHA-256 of a model directory (`sprachbund.util.provenance.model_hash`); of a cascade over those of its halves."""
    if family_of(directory) != "cascade":
        return model_hash(directory)
    halves = read_model(directory / "config.json", CascadeConfig).halves(directory)
    return sha256("\n".join(content_hash(locate(half, offline=True)) for half in halves).encode()).hexdigest()


def save(family: Family, directory: Path, **options: Any) -> None:
    """Save a model so that `load` finds it.

    Args:
        family: the model.
        directory: directory to be written.
        options: options of the `save` of its family, such as `bits` and `card`.

    Raises:
        SprachbundError: a model that runs from exported graphs, or one that cannot be written there.
    """
    _saver(family)(family, directory, **options)

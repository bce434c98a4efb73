"""Whisper models for other runtimes: whisper.cpp (one GGML file) and CTranslate2 (faster-whisper's directories).

GGML: the sizes, the mel filters, the bytes of the text tokens, and every tensor with its name in openai-whisper.
Numbers are little-endian, and dimensions are in reverse order. whisper.cpp counts the languages and finds all special
tokens by the size of the vocabulary, so only published vocabularies can be exported.
"""

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from tokenizers import pre_tokenizers
from torch import Tensor

from sprachbund.audio.features import mel_filters
from sprachbund.errors import SprachbundError, first_line
from sprachbund.models.base import Family
from sprachbund.models.weights import Bits
from sprachbund.models.whisper import Whisper, save
from sprachbund.models.whisper.config import FIRST_MULTILINGUAL_VOCABULARY
from sprachbund.models.whisper.files import FEATURE_EXTRACTOR, GENERATION, TOKENIZER
from sprachbund.models.whisper.io import REAL_LENGTH
from sprachbund.models.whisper.other_formats import openai_name
from sprachbund.util.files import write_json

RuntimeFormat = Literal["ctranslate2", "ggml"]
_MAGIC = 0x67676D6C
_NOT_LANGUAGES = 51_766
"""Tokens of a published multilingual vocabulary that are not languages."""
_ENGLISH = FIRST_MULTILINGUAL_VOCABULARY - 1
"""Tokens of a published vocabulary of English alone."""
_TIMESTAMPS = 1501
_QUANTIZATIONS = {8: "int8", 16: "float16", 32: "float32"}
_CONVOLUTION_BIASES = ("encoder.conv1.bias", "encoder.conv2.bias")
_IN_32_BITS = (*_CONVOLUTION_BIASES, "encoder.positional_embedding", "decoder.positional_embedding")
"""Tensors that whisper.cpp reads in single precision, beside all of one dimension."""


def check_exportable(model: Family, form: RuntimeFormat, bits: Bits) -> Whisper:
    """The model, if the runtime can compute it.

    Args:
        model: any.
        form: form of the runtime.
        bits: bits of a weight.

    Raises:
        SprachbundError: it is no Whisper model, is split by language, has a prompt or a vocabulary that the runtime
            does not know, or encodes speech at its own length.
    """
    if not isinstance(model, Whisper):
        raise SprachbundError(
            f"{form} is for Whisper models; this model is {model.name}: streaming transducers, Parakeet and Canary are "
            "exported as onnx"
        )
    if model.sharing_plan is not None:
        raise SprachbundError(f"the model is split by language, which {form} has no place for")
    if model.tasks.bare_prompt:
        raise SprachbundError(
            f"the model's prompt has no task, and {form} always writes one; export a model with Whisper's own prompt"
        )
    if model.real_length:
        raise SprachbundError(
            f"the model was trained on speech at its own length, and {form} pads it to {model.max_window_s:g} s; train "
            f"it further with fine_tuning.real_length=false, or take {REAL_LENGTH} out of config.json to export it "
            "all the same"
        )
    if form == "ctranslate2":
        import ctranslate2.converters  # noqa: F401 - so that a missing package is an error before any work

        return model
    config, languages = model.config, len(model.tokens.languages)
    if bits != 16:
        raise SprachbundError(
            f"ggml is written in 16 bits, not {bits}; whisper.cpp's own whisper-quantize makes fewer of them"
        )
    size = config.vocabulary_size
    is_published = (
        languages == size - _NOT_LANGUAGES if size >= FIRST_MULTILINGUAL_VOCABULARY else size == _ENGLISH
    )
    if not is_published or len(model.tokens.timestamps) != _TIMESTAMPS:
        raise SprachbundError(
            f"the vocabulary has {size} tokens, {languages} languages and "
            f"{len(model.tokens.timestamps)} timestamps; whisper.cpp reads published vocabularies alone"
        )
    if {config.encoder_feed_forward_width, config.decoder_feed_forward_width} != {4 * config.width}:
        raise SprachbundError(
            "whisper.cpp computes feed-forwards of four times the width alone; this model has others"
        )
    return model


def export_ctranslate2(model: Whisper, directory: Path, bits: Bits) -> None:
    """Write a directory that CTranslate2 and faster-whisper load.

    Args:
        model: see `check_exportable`.
        directory: directory to be made.
        bits: bits of a weight; with 8, rows have a scale each.

    Raises:
        SprachbundError: the library cannot convert the model.
    """
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "model"
        save(model, source, bits=16 if bits == 16 else 32)
        _name_languages(model, source / GENERATION)
        # faster-whisper reads no other form; older checkpoints have a vocabulary and merges.
        if not (source / TOKENIZER).is_file():
            (source / TOKENIZER).write_text(model.tokens.to_json(), encoding="utf-8")
        there = [name for name in (TOKENIZER, FEATURE_EXTRACTOR) if (source / name).is_file()]
        try:
            converter = TransformersConverter(str(source), copy_files=there)
            converter.convert(str(directory), quantization=_QUANTIZATIONS[bits], force=True)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
            raise SprachbundError(f"CTranslate2 cannot convert the model ({first_line(error)})") from error


def _name_languages(model: Whisper, path: Path) -> None:
    """Say in a directory's settings of generation which tokens are languages, which converters read there."""
    files = model.checkpoint_files
    # Older checkpoints have the tokens that are not written in config.json, where converters do not look.
    listed = {key: files.listed_tokens(key) for key in ("suppress_tokens", "begin_suppress_tokens")}
    known = {key: tokens for key, tokens in listed.items() if tokens} | files.generation
    languages = {model.tokens.name_of(token): token for token in model.tokens.languages.values()}
    write_json(path, {"is_multilingual": len(languages) > 1, "lang_to_id": languages, **known}, indent=2)


def export_ggml(model: Whisper, path: Path) -> None:
    """Write one file that whisper.cpp loads, with matrices in 16 bits.

    Args:
        model: see `check_exportable`.
        path: path of the file.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<I", _MAGIC))
        file.write(struct.pack("<11i", *_sizes(model)))
        filters = mel_filters(model.config.num_mel_bins).numpy()
        file.write(struct.pack("<2i", *filters.shape))
        file.write(filters.astype("<f4").tobytes())
        texts = list(_text_tokens(model))
        file.write(struct.pack("<i", len(texts)))
        for text in texts:
            file.write(struct.pack("<i", len(text)) + text)
        for name, tensor in model.state_dict().items():
            _write_tensor(file, openai_name(name), tensor)


def _sizes(model: Whisper) -> tuple[int, ...]:
    """Sizes in the order of the file; the last number says that matrices have 16 bits."""
    config = model.config
    encoder = (config.max_frames, config.width, config.encoder_heads, config.encoder_layers)
    decoder = (config.max_tokens, config.width, config.decoder_heads, config.decoder_layers)
    return (config.vocabulary_size, *encoder, *decoder, config.num_mel_bins, 1)


def _text_tokens(model: Whisper) -> Iterator[bytes]:
    """The bytes of every token before the special ones; its vocabulary has a letter for each byte."""
    alphabet = _byte_of_letter()
    for number in range(model.tokens.end):
        name = model.tokens.name_of(number)
        yield bytes(alphabet[letter] for letter in name)


def _byte_of_letter() -> dict[str, int]:
    """Letters of byte-level BPE to bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    themselves = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(letters - set(themselves), key=ord)
    rest = sorted(set(range(256)) - set(themselves.values()))
    return {**themselves, **dict(zip(others, rest, strict=True))}


def _write_tensor(file: BinaryIO, name: str, tensor: Tensor) -> None:
    values = tensor.float().numpy()
    if name in _CONVOLUTION_BIASES:
        values = values[:, None]  # whisper.cpp adds them to (channels, frames)
    half = values.ndim > 1 and name not in _IN_32_BITS
    encoded = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded), int(half)))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded)
    file.write(np.ascontiguousarray(values, "<f2" if half else "<f4").tobytes())

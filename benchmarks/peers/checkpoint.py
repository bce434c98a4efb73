"""A Whisper of a published shape with random weights, in the files of every system, and recordings to try it on.

Speed does not depend on what weights say, and no checkpoint has to be fetched. The vocabulary has the published size
and special tokens; its words are made up. Run by peers.py and serving.py: checkpoint.py make SHAPE FOLDER [TOKENS], or
ctranslate2, ggml or openvino FOLDER, each in the environment that has the converter.
"""

import json
import struct
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

NUM_TEXT_TOKENS, NUM_LANGUAGES, NUM_TIMESTAMPS = 50_257, 99, 1501
RATE, RECORDING_S = 16_000, 240
TRANSFORMERS, CONVERTED, OPENAI, AUDIO = "transformers", "ctranslate2", "openai.pt", "audio.npy"
GGML, OPENVINO = "ggml-q8_0.bin", "openvino"
IN_16_BITS = ("large-v3", "turbo", "distil-large-v3")
"""Shapes whose weights are published in 16 bits."""

_OPENAI_NAMES = {
    "model.": "",
    "layers": "blocks",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln",
    "encoder_attn": "cross_attn",
    "self_attn": "attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "embed_tokens": "token_embedding",
    "decoder.layer_norm": "decoder.ln",
    "encoder.layer_norm": "encoder.ln_post",
}
"""What is replaced, in this order, in the names of transformers."""


def special_names() -> list[str]:
    """All tokens that are not text, in the published order."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tags = [f"<|{tag}|>" for tag in list(LANGUAGES)[:NUM_LANGUAGES]]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    stamps = [f"<|{i * 0.02:.2f}|>" for i in range(NUM_TIMESTAMPS)]
    return ["<|endoftext|>", "<|startoftranscript|>", *tags, *tasks, "<|notimestamps|>", *stamps]


def make_tokenizer() -> Any:
    """All bytes, then made-up words; nothing is ever merged into them, but they can be read."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = ascii_lowercase
    words = (f"Ġ{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [next(words) for _ in range(NUM_TEXT_TOKENS - len(tokens))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special_names()])
    return tokenizer


def generation_settings() -> dict[str, Any]:
    """What transformers needs to know about the special tokens."""
    ids = {name: NUM_TEXT_TOKENS + i for i, name in enumerate(special_names())}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    return {
        "is_multilingual": True,
        "lang_to_id": {name: i for name, i in ids.items() if start < i <= start + NUM_LANGUAGES},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "bos_token_id": end,
        "pad_token_id": end,
        "max_length": 448,
    }


def make(shape: str, folder: Path, max_tokens: int | None = None) -> None:
    """Write the checkpoint for transformers and us, that for openai-whisper, and the recording.

    Args:
        shape: published name.
        folder: that exists.
        max_tokens: positions of the decoder, prompt included; as published if None. Random weights never end a text, so
            it is where services end it.
    """
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from sprachbund.models.whisper import PRESETS

    torch.manual_seed(0)
    settings = generation_settings()
    ids = {key: settings[key] for key in settings if key in ("decoder_start_token_id", "eos_token_id")}
    sizes = PRESETS[shape].to_transformers()
    sizes |= {} if max_tokens is None else {"max_target_positions": max_tokens}
    sizes |= ids | {"bos_token_id": ids["eos_token_id"]}
    model = WhisperForConditionalGeneration(
        WhisperConfig(**sizes, pad_token_id=ids["eos_token_id"], suppress_tokens=[], begin_suppress_tokens=[])
    )
    if shape in IN_16_BITS:
        model.half()
    model.save_pretrained(folder / TRANSFORMERS)
    WhisperFeatureExtractor(feature_size=PRESETS[shape].num_mel_bins).save_pretrained(folder / TRANSFORMERS)
    make_tokenizer().save(str(folder / TRANSFORMERS / "tokenizer.json"))
    for name, content in {
        "generation_config.json": settings,
        "tokenizer_config.json": {"tokenizer_class": "WhisperTokenizer"},
    }.items():
        (folder / TRANSFORMERS / name).write_text(json.dumps(content))
    torch.save(_as_openai(model), folder / OPENAI)
    np.save(folder / AUDIO, recording())


def _as_openai(model: Any) -> dict[str, Any]:
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        for theirs, openai in _OPENAI_NAMES.items():
            name = name.replace(theirs, openai)
        weights[name] = tensor.contiguous()
    config = model.config
    dims = {"n_mels": config.num_mel_bins, "n_vocab": config.vocab_size}
    for side, length in (("audio", config.max_source_positions), ("text", config.max_target_positions)):
        part = "encoder" if side == "audio" else "decoder"
        dims |= {f"n_{side}_ctx": length, f"n_{side}_state": config.d_model}
        dims[f"n_{side}_head"] = getattr(config, f"{part}_attention_heads")
        dims[f"n_{side}_layer"] = getattr(config, f"{part}_layers")
    return {"dims": dims, "model_state_dict": weights}


def recording() -> np.ndarray:
    """The example recordings one after another, until there is enough for eight windows."""
    from sprachbund.audio.load import load

    examples = Path(__file__).parents[2] / "examples" / "recordings"
    once = np.concatenate([load(path) for path in sorted(examples.iterdir())])
    return np.resize(once, RECORDING_S * RATE).astype(np.float32)


def convert_ctranslate2(folder: Path) -> None:
    """Write the checkpoint for faster-whisper; needs ctranslate2, transformers and torch."""
    from ctranslate2.converters import TransformersConverter

    files = ["tokenizer.json", "preprocessor_config.json"]
    converter = TransformersConverter(str(folder / TRANSFORMERS), copy_files=files)
    converter.convert(str(folder / CONVERTED), quantization="float16", force=True)  # as published ones are


def convert_openvino(folder: Path) -> None:
    """Write the checkpoint for OpenVINO GenAI, weights in 8 bits; needs optimum-intel."""
    command = [
        Path(sys.executable).with_name("optimum-cli"),
        "export",
        "openvino",
        "--model",
        folder / TRANSFORMERS,
    ]
    task = ["--task", "automatic-speech-recognition-with-past", "--weight-format", "int8"]
    subprocess.run([*command, *task, folder / OPENVINO], check=True)


# whisper.cpp. Its own quantizer is a program that no package brings; q8_0 is a scale for 32 neighbours.

Q8_0, Q8_0_FILE, BLOCK = 8, 2007, 32
"""Type of a tensor; of a file, with the version of the form; numbers that share a scale."""


def convert_ggml(folder: Path) -> None:
    """Write the checkpoint for whisper.cpp: our export, its matrices brought to 8 bits."""
    from sprachbund.compression.whisper_export import check_exportable, export_ggml
    from sprachbund.models.whisper.io import load

    half = folder / "ggml-f16.bin"
    export_ggml(check_exportable(load(folder / TRANSFORMERS, offline=True), "ggml", 16), half)
    (folder / GGML).write_bytes(to_q8_0(half.read_bytes()))
    half.unlink()


def to_q8_0(data: bytes) -> bytes:
    """A GGML file with its matrices in 8 bits; convolutions and vectors stay, as whisper.cpp's own quantizer has it."""
    (num_mels, num_bins), at = struct.unpack_from("<2i", data, 48), 56
    at += 4 * num_mels * num_bins
    (num_tokens,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(num_tokens):
        at += 4 + struct.unpack_from("<i", data, at)[0]
    out = [data[:44], struct.pack("<i", Q8_0_FILE), data[48:at]]
    while at < len(data):
        num_sizes, num_letters, kind = struct.unpack_from("<3i", data, at)
        sizes = struct.unpack_from(f"<{num_sizes}i", data, at + 12)
        begin = at + 12 + 4 * num_sizes + num_letters
        at_next = begin + int(np.prod(sizes)) * (2 if kind == 1 else 4)
        if num_sizes == 2 and kind == 1:
            out += [data[at : at + 8], struct.pack("<i", Q8_0), data[at + 12 : begin]]
            out.append(_blocks(np.frombuffer(data[begin:at_next], "<f2")))
        else:
            out.append(data[at:at_next])
        at = at_next
    return b"".join(out)


def _blocks(values: np.ndarray) -> bytes:
    """Scales in 16 bits, each before its 32 codes."""
    rows = values.astype(np.float32).reshape(-1, BLOCK)
    scale = np.abs(rows).max(1) / 127
    codes = np.rint(rows / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    packed = np.zeros(len(rows), np.dtype([("scale", "<f2"), ("codes", np.int8, BLOCK)]))
    packed["scale"], packed["codes"] = scale, codes
    return packed.tobytes()


CONVERTERS = {"ctranslate2": convert_ctranslate2, "ggml": convert_ggml, "openvino": convert_openvino}

if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
    else:
        CONVERTERS[sys.argv[1]](Path(sys.argv[2]))

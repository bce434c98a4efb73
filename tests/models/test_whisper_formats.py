"""Whisper models of openai-whisper and CTranslate2: the same weights as in Hugging Face's form; damage is refused."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.io import load as load_any
from sprachbund.models.whisper import Whisper, WhisperTokens, load, other_formats
from sprachbund.models.whisper.other_formats import _check_version, _generation, load_other_format
from tests.models.whisper_support import TINY, make_directory
from tests.stories.support import command

OPENAI = {
    "layers": "blocks", "self_attn": "attn", "self_attn_layer_norm": "attn_ln", "encoder_attn": "cross_attn",
    "encoder_attn_layer_norm": "cross_attn_ln", "q_proj": "query", "k_proj": "key", "v_proj": "value",
    "out_proj": "out", "final_layer_norm": "mlp_ln", "fc1": "mlp.0", "fc2": "mlp.2", "embed_tokens": "token_embedding",
}  # fmt: skip
TYPES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whisper") / "hf"
    make_directory(
        root, generation={"alignment_heads": [[0, 1], [1, 2]], "begin_suppress_tokens": [220, 256]}
    )
    return root


def stored(original: Path) -> dict[str, Tensor]:
    """Weights by their names in Hugging Face's form."""
    from safetensors.torch import load_file

    return {
        name.removeprefix("model."): weight
        for name, weight in load_file(original / "model.safetensors").items()
    }


def write_openai(original: Path, path: Path) -> Path:
    weights = {}
    for name, weight in stored(original).items():
        if name == "proj_out.weight":
            continue
        name = name.replace("embed_positions.weight", "positional_embedding")
        parts = [OPENAI.get(part, part) for part in name.split(".")]
        if parts[1] == "layer_norm":
            parts[1] = "ln_post" if parts[0] == "encoder" else "ln"
        weights[".".join(parts)] = weight
    dims = {
        "n_mels": TINY.num_mel_bins, "n_audio_ctx": TINY.max_frames, "n_audio_state": TINY.width,
        "n_audio_head": TINY.encoder_heads, "n_audio_layer": TINY.encoder_layers, "n_vocab": TINY.vocabulary_size,
        "n_text_ctx": TINY.max_tokens, "n_text_state": TINY.width, "n_text_head": TINY.decoder_heads,
        "n_text_layer": TINY.decoder_layers,
    }  # fmt: skip
    torch.save({"dims": dims, "model_state_dict": weights}, path)
    return path


def variables_of(original: Path, *, int8: bool = False) -> dict[str, np.ndarray]:
    """The same as variables of CTranslate2, which joins products of the same inputs."""
    hf = {name: weight.numpy() for name, weight in stored(original).items()}
    result: dict[str, np.ndarray] = {}

    def put(name: str, weight: np.ndarray) -> None:
        if int8 and weight.ndim == 2 and name.endswith("/weight"):
            scale = (127 / np.abs(weight).max(1)).astype(np.float32)
            result[name] = np.rint(weight * scale[:, None]).astype(np.int8)
            result[f"{name}_scale"] = scale
        else:
            result[name] = weight.astype(np.float32)

    for side, layers, heads in (("encoder", 2, TINY.encoder_heads), ("decoder", 2, TINY.decoder_heads)):
        result[f"{side}/num_heads"] = np.array(heads, np.int16)
        put(f"{side}/position_encodings/encodings", hf[f"{side}.embed_positions.weight"])
        norms = {f"{side}/layer_norm": f"{side}.layer_norm"}
        for n in range(layers):
            to, of = f"{side}/layer_{n}", f"{side}.layers.{n}"
            norms |= {
                f"{to}/self_attention/layer_norm": f"{of}.self_attn_layer_norm",
                f"{to}/ffn/layer_norm": f"{of}.final_layer_norm",
            }
            joined = {
                "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                "self_attention/linear_1": ["self_attn.out_proj"],
                "ffn/linear_0": ["fc1"],
                "ffn/linear_1": ["fc2"],
            }
            if side == "decoder":
                norms[f"{to}/attention/layer_norm"] = f"{of}.encoder_attn_layer_norm"
                joined["attention/linear_0"] = ["encoder_attn.q_proj"]
                joined["attention/linear_1"] = ["encoder_attn.k_proj", "encoder_attn.v_proj"]
                joined["attention/linear_2"] = ["encoder_attn.out_proj"]
            for name, parts in joined.items():
                put(f"{to}/{name}/weight", np.concatenate([hf[f"{of}.{part}.weight"] for part in parts]))
                biases = [hf.get(f"{of}.{part}.bias", np.zeros(TINY.width, np.float32)) for part in parts]
                put(f"{to}/{name}/bias", np.concatenate(biases))
        for to, of in norms.items():
            put(f"{to}/gamma", hf[f"{of}.weight"])
            put(f"{to}/beta", hf[f"{of}.bias"])
    put("decoder/embeddings/weight", hf["decoder.embed_tokens.weight"])
    for conv in ("conv1", "conv2"):
        result[f"encoder/{conv}/weight"] = hf[f"encoder.{conv}.weight"]
        result[f"encoder/{conv}/bias"] = hf[f"encoder.{conv}.bias"]
    return result


def write_ctranslate2(
    original: Path, directory: Path, variables: dict[str, np.ndarray], *, version: int = 6
) -> Path:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, value in variables.items():
        shape = struct.pack(f"<{value.ndim}I", *value.shape)
        head = (
            struct.pack("<B", value.ndim) + shape + struct.pack("<BI", TYPES[value.dtype.name], value.nbytes)
        )
        out += [text(name), head, value.tobytes()]
    out += [struct.pack("<I", 1), text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    directory.mkdir()
    (directory / "model.bin").write_bytes(b"".join(out))
    (directory / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    (directory / "config.json").write_text(
        '{"alignment_heads": [[0, 1], [1, 2]], "lang_ids": [258, 260], "suppress_ids_begin": [220, 256]}'
    )
    return directory


def furthest(one: Whisper, other: Whisper) -> float:
    """The largest difference of weights, over the largest weight of its tensor."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max() / ours[n].abs().max().clamp(min=1e-9)) for n in ours)


def test_openai_whisper_has_the_same_weights(original: Path, tmp_path: Path) -> None:
    model = load_other_format(write_openai(original, tmp_path / "tiny.pt"), original)
    expected = load(original, offline=True)
    assert model.config == expected.config
    assert furthest(expected, model) == 0


def test_openai_whisper_has_the_settings_beside_the_tokenizer(original: Path, tmp_path: Path) -> None:
    model = load_other_format(write_openai(original, tmp_path / "tiny.pt"), original)
    assert model.alignment_heads == [(0, 1), (1, 2)]
    assert model.capabilities.begin_suppressed == (220, 256)


def test_openai_whisper_has_its_own_settings_without_any_beside_the_tokenizer(
    original: Path, tmp_path: Path
) -> None:
    """Symbols that are a token, in front of a space too; of a note the first token; a hyphen that begins a word."""
    content = json.loads((original / "tokenizer.json").read_text())
    merged = {name: 1900 + i for i, name in enumerate(("Ġ-", "Ġ(", "((", "Ġa", "âĻ"))}
    content["model"]["vocab"] |= merged
    content["model"]["merges"] = [[name[0], name[1]] for name in merged]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    model = load_other_format(write_openai(original, tmp_path / "tiny.pt"))
    bytes_of = WhisperTokens(Tokenizer.from_str(json.dumps(content)), TINY.vocabulary_size).text_to_tokens
    (blank,) = bytes_of(" ")
    symbols = {token for symbol in '"#()*+/:;<=>@[\\]^_`{|}~' for token in bytes_of(symbol)}
    never = model.suppressed(Target(language="de")).nonzero().flatten().tolist()
    text = {token for token in never if token not in model.tokens.not_text}
    assert text == symbols | {merged["Ġ-"], merged["Ġ("], merged["(("], merged["âĻ"]}
    assert model.capabilities.begin_suppressed == (blank, model.end_token)


def test_the_tokenizer_may_be_named_by_an_alias(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def downloaded(name: str, patterns: list[str], **more: Any) -> Path:
        asked.append((name, patterns))
        return original

    monkeypatch.setattr("sprachbund.models.hub.download", downloaded)
    path = write_openai(original, tmp_path / "tiny.pt")
    done = command("convert", path, "--tokenizer", "whisper-tiny", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    ((name, patterns),) = asked
    assert name == "openai/whisper-tiny"
    assert not any(pattern.endswith((".safetensors", ".bin")) for pattern in patterns)
    assert load(tmp_path / "out", offline=True).tokens.languages == load(original).tokens.languages


def test_a_tokenizer_of_another_version_is_refused(tmp_path: Path) -> None:
    v2, v3 = range(50_364, 51_865), range(50_365, 51_866)
    _check_version(v2, 51_865, tmp_path / "large-v2.pt", tmp_path)
    _check_version(v3, 51_866, tmp_path / "large-v3.pt", tmp_path)
    for timestamps in (v2, range(50_364, 51_866)):  # with times of its own, and without
        with pytest.raises(
            SprachbundError, match=r"timestamps from 50364 on, and .*large-v3\.pt those from 50365"
        ):
            _check_version(timestamps, 51_866, tmp_path / "large-v3.pt", tmp_path)


def test_a_tokenizer_that_is_named_is_looked_at_whatever_the_form(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(
        other_formats, "_check_version", lambda timestamps, size, path, home: looked.append(home)
    )
    directory = write_ctranslate2(original, tmp_path / "ct2", variables_of(original))
    load_other_format(directory)
    assert looked == []  # its own
    load_other_format(directory, original)
    load_other_format(write_openai(original, tmp_path / "tiny.pt"), original)
    assert looked == [original, original]


def test_alignment_heads_beside_a_tokenizer_are_those_of_models_of_its_shape_alone(
    original: Path, tmp_path: Path
) -> None:
    path = write_openai(original, tmp_path / "tiny.pt")
    assert load_other_format(path, original).alignment_heads == [(0, 1), (1, 2)]
    other = tmp_path / "other"
    shutil.copytree(original, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "decoder_layers": config["decoder_layers"] + 1}))
    assert "alignment_heads" not in load_other_format(path, other).checkpoint_files.generation
    assert load_other_format(path, other).capabilities.begin_suppressed == (220, 256)


def test_ctranslate2_of_an_english_model_is_english(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"lang_ids": [50259, 50260]}')
    assert not _generation(tmp_path, 51_864)["is_multilingual"]
    assert _generation(tmp_path, 51_865)["is_multilingual"]


@pytest.mark.parametrize(("int8", "most"), [(False, 0.0), (True, 0.5 / 127)])
def test_ctranslate2_has_the_same_weights(original: Path, tmp_path: Path, int8: bool, most: float) -> None:
    directory = write_ctranslate2(original, tmp_path / "ct2", variables_of(original, int8=int8))
    model, expected = load_other_format(directory), load(original, offline=True)
    assert model.config == expected.config
    assert furthest(expected, model) <= most * (1 + 1e-5)
    assert model.pairs() == expected.pairs()
    assert model.alignment_heads == expected.alignment_heads == [(0, 1), (1, 2)]
    assert model.capabilities.begin_suppressed == (220, 256)


def test_its_own_converter_gives_what_is_read(original: Path, tmp_path: Path) -> None:
    converters = pytest.importorskip("ctranslate2.converters")
    (original / "preprocessor_config.json").write_text(
        '{"feature_extractor_type": "WhisperFeatureExtractor"}'
    )
    for quantization, most in ((None, 0.0), ("float16", 1e-3), ("int8", 0.5 / 127)):
        out = tmp_path / str(quantization)
        converter = converters.TransformersConverter(str(original), copy_files=["tokenizer.json"])
        converter.convert(str(out), quantization=quantization)
        assert furthest(load(original, offline=True), load_other_format(out)) <= most * (1 + 1e-5)


def test_the_command_writes_a_model_that_others_are_like(original: Path, tmp_path: Path) -> None:
    sources: dict[str, list[Any]] = {
        "pt": [write_openai(original, tmp_path / "tiny.pt"), "--tokenizer", original],
        "ct2": [write_ctranslate2(original, tmp_path / "ct2", variables_of(original))],
    }
    for name, source in sources.items():
        done = command("convert", *source, "--out", tmp_path / name / "out", "--licence", "MIT")
        assert done.code == 0, done.err
        assert furthest(load(original, offline=True), load(tmp_path / name / "out", offline=True)) < 2e-3
    refused = command("convert", sources["pt"][0], "--out", tmp_path / "no", "--language", "en")
    assert refused.code == 2
    assert "names its languages itself" in refused.error_lines[0]
    assert "no vocabulary" not in refused.err
    without = command("convert", sources["pt"][0], "--out", tmp_path / "no")
    assert "comes without a vocabulary" in without.error_lines[0]


def test_who_loads_them_is_told_to_convert_them(original: Path, tmp_path: Path) -> None:
    directory = write_ctranslate2(original, tmp_path / "ct2", variables_of(original))
    with pytest.raises(SprachbundError, match=rf"CTranslate2's form; run: sprachbund convert {directory}"):
        load_any(directory)
    with pytest.raises(
        SprachbundError, match=r"a file of openai-whisper; run: sprachbund convert .*tiny\.pt"
    ):
        load_any(write_openai(original, tmp_path / "tiny.pt"))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (Path("evil"),))  # type: ignore[return-value]


def test_a_file_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"dims": Evil(), "model_state_dict": {}}, tmp_path / "evil.pt")
    with pytest.raises(
        SprachbundError, match=r"evil\.pt cannot be read \(it asks for .*; take a copy"
    ) as caught:
        load_other_format(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.3, 0.9, 0.9999])
def test_a_file_that_is_cut_off_is_refused(original: Path, tmp_path: Path, kept: float) -> None:
    directory = write_ctranslate2(original, tmp_path / "ct2", variables_of(original))
    content = (directory / "model.bin").read_bytes()
    (directory / "model.bin").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(SprachbundError, match=r"model\.bin") as caught:
        load_other_format(directory)
    assert "\n" not in str(caught.value)
    pickled = write_openai(original, tmp_path / "tiny.pt")
    pickled.write_bytes(pickled.read_bytes()[: int(kept * pickled.stat().st_size)])
    with pytest.raises(SprachbundError, match=r"tiny\.pt cannot be read \([^()]*\); copy it again"):
        load_other_format(pickled, original)


def test_what_does_not_fit_is_named(original: Path, tmp_path: Path) -> None:
    variables = variables_of(original)
    older = write_ctranslate2(original, tmp_path / "older", variables, version=5)
    with pytest.raises(SprachbundError, match="version 5, and a WhisperSpec of version 6"):
        load_other_format(older)
    lacking = {
        name: value for name, value in variables.items() if name != "decoder/layer_1/ffn/linear_1/bias"
    }
    with pytest.raises(SprachbundError, match="no variable decoder/layer_1/ffn/linear_1/bias"):
        load_other_format(write_ctranslate2(original, tmp_path / "lacking", lacking))
    other = {**variables, "decoder/layer_norm/gamma": np.zeros(3, np.float32)}
    with pytest.raises(SprachbundError, match=r"decoder\.layer_norm\.weight has shape 3"):
        load_other_format(write_ctranslate2(original, tmp_path / "other", other))
    heads = {**variables, "decoder/num_heads": np.array(5, np.int16)}
    with pytest.raises(SprachbundError, match="5 decoder heads"):
        load_other_format(write_ctranslate2(original, tmp_path / "heads", heads))

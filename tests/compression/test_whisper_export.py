"""Whisper models as whisper.cpp and faster-whisper read them: their own logits and texts are ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sprachbund.models.base import Target
from sprachbund.models.whisper import Whisper, WhisperConfig, load
from tests.models.whisper_support import TINY, make_directory, special_names
from tests.stories.support import command

NUM_TEXTS = 50_257
SHAPE = WhisperConfig(
    vocabulary_size=51_865,
    width=64,
    encoder_layers=4,
    encoder_heads=1,
    encoder_feed_forward_width=256,
    decoder_layers=4,
    decoder_heads=1,
    decoder_feed_forward_width=256,
)
"""The vocabulary, window and depth of Whisper tiny, and a sixth of its width."""


@pytest.fixture(scope="module")
def cpp() -> Any:
    return pytest.importorskip("_pywhispercpp")


@pytest.fixture(scope="module")
def whisper_dir(cpp: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whisper") / "hf"
    languages = tuple(cpp.whisper_lang_str(number) for number in range(99))
    make_directory(directory, SHAPE, names=special_names(languages))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = (one + other for one in alphabet for other in alphabet)
    texts = [*alphabet, *(pair for pair, _ in zip(pairs, range(NUM_TEXTS - 256), strict=False))]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special_names(languages)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def whisper(whisper_dir: Path) -> Whisper:
    return load(whisper_dir, offline=True)


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    time = np.arange(3 * 16_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)


def opened(cpp: Any, whisper_dir: Path, tmp_path: Path) -> Any:
    """The exported file in whisper.cpp."""
    path = tmp_path / "model.bin"
    done = command("export", whisper_dir, "--out", path, "--format", "ggml")
    assert done.code == 0, done.err
    settings = cpp.whisper_context_default_params()
    settings.flash_attn = False  # with it, logits are off by a quarter of their spread
    return cpp.whisper_init_from_file_with_params(str(path), settings)


def test_logits_of_whisper_cpp_are_ours(
    cpp: Any, whisper_dir: Path, whisper: Whisper, sound: np.ndarray, tmp_path: Path
) -> None:
    """Python sees the first logit of each step, in which every weight but those of other tokens has a part.

    16 bits keep 11 of a weight, and ten layers add up their errors: below one percent of the logits' spread.
    """
    context = opened(cpp, whisper_dir, tmp_path)
    prompt = whisper.prompt(Target(language="de", source="de"))
    special = [cpp.whisper_token_sot(context), cpp.whisper_token_lang(context, cpp.whisper_lang_id("de"))]
    special += [cpp.whisper_token_transcribe(context), cpp.whisper_token_not(context)]
    assert special == prompt
    features = whisper.features([sound])
    row = [*prompt, *range(0, NUM_TEXTS, 5_000)]
    with torch.inference_mode():
        ours = whisper.step(torch.tensor([row]), whisper.start(whisper.encode(features)))[0].numpy()
    mel = features.values[0].T.contiguous().numpy()
    assert cpp.whisper_set_mel(context, mel.ravel(), mel.shape[1], mel.shape[0]) == 0
    assert cpp.whisper_encode(context, 0, 1) == 0
    theirs = []
    for place, token in enumerate(row):
        assert cpp.whisper_decode(context, token, 1, place, 1) == 0
        theirs.append(cpp.whisper_get_logits(context))
    cpp.whisper_free(context)
    assert np.abs(ours[:, 0] - theirs).max() < 0.01 * ours.std()


def test_bytes_of_tokens_are_kept(cpp: Any, whisper_dir: Path, whisper: Whisper, tmp_path: Path) -> None:
    context = opened(cpp, whisper_dir, tmp_path)
    plain = {token: whisper.tokens.tokens_to_text([token]) for token in range(33, 90)}
    assert {token: cpp.whisper_token_to_bytes(context, token).decode() for token in plain} == plain
    every_byte = {cpp.whisper_token_to_bytes(context, token) for token in range(256)}
    # The binding ends a text at its first byte of zero.
    assert every_byte == {bytes([value]) for value in range(1, 256)} | {b""}
    cpp.whisper_free(context)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "compute"), [("32", "float32"), ("8", "int8")])
def test_ctranslate2_writes_our_tokens(
    whisper_dir: Path, whisper: Whisper, sound: np.ndarray, tmp_path: Path, bits: str, compute: str
) -> None:
    """In 32 bits all of them; 8 bits of random weights may change what is nearly as likely, and still compute."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    done = command(
        "export", whisper_dir, "--out", tmp_path / "ct2", "--format", "ctranslate2", "--bits", bits
    )
    assert done.code == 0, done.err
    assert (tmp_path / "ct2" / "tokenizer.json").is_file()
    features = whisper.features([sound])
    prompt = whisper.prompt(Target(language="de", source="de"))
    model = ctranslate2.models.Whisper(str(tmp_path / "ct2"), compute_type=compute, intra_threads=1)
    values = ctranslate2.StorageView.from_array(features.values.transpose(1, 2).contiguous().numpy())
    theirs = model.generate(
        values, [prompt], beam_size=1, max_length=48, suppress_blank=False, suppress_tokens=[]
    )
    row = list(prompt)
    with torch.inference_mode():
        memory = whisper.encode(features)
        while len(row) < 24:
            logits = whisper.step(torch.tensor([row]), whisper.start(memory))[0, -1]
            row.append(int(logits.argmax()))
    written = theirs[0].sequences_ids[0]
    languages = json.loads((tmp_path / "ct2" / "config.json").read_text())["lang_ids"]
    assert sorted(languages) == sorted(whisper.tokens.languages.values())
    if bits == "32":
        assert written[: len(row) - len(prompt)] == row[len(prompt) :]


def test_ctranslate2_gets_a_tokenizer_in_one_file(tmp_path: Path) -> None:
    """Of a checkpoint whose tokenizer is a vocabulary with merges: the same tokens, special ones included."""
    pytest.importorskip("ctranslate2")
    directory = tmp_path / "older"
    make_directory(directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").unlink()
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    (directory / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "added_tokens.json").write_text(json.dumps(added))
    done = command("export", directory, "--out", tmp_path / "ct2", "--format", "ctranslate2")
    assert done.code == 0, done.err
    written = Tokenizer.from_file(str(tmp_path / "ct2" / "tokenizer.json"))
    ours = load(directory, offline=True).tokens
    assert written.encode(" naïve", add_special_tokens=False).ids == ours.text_to_tokens(" naïve")
    assert {name: written.token_to_id(name) for name in added} == added


def test_ctranslate2_is_told_the_tokens_that_older_checkpoints_suppress(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    directory, listed = tmp_path / "older", {"suppress_tokens": [1, 2], "begin_suppress_tokens": [220, 256]}
    make_directory(directory, extra_config=listed)
    (directory / "generation_config.json").unlink()
    done = command("export", directory, "--out", tmp_path / "ct2", "--format", "ctranslate2")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "ct2" / "config.json").read_text())
    assert (written["suppress_ids"], written["suppress_ids_begin"]) == ([1, 2], [220, 256])


def test_a_folder_is_no_place_for_one_file(whisper_dir: Path, tmp_path: Path) -> None:
    done = command("export", whisper_dir, "--format", "ggml", "--out", tmp_path)
    assert done.code == 2
    assert f"--out {tmp_path} is a folder; name a file in it, such as" in done.error_lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bundled", "--format", "ggml"], "ggml is for Whisper models; this model is conformer"),
        (["bundled", "--format", "ctranslate2"], "ctranslate2 is for Whisper models"),
        (["bundled", "--bits", "16"], "--bits is for Whisper models"),
        (["WHISPER", "--format", "ggml", "--bits", "8"], "whisper-quantize"),
        (["WHISPER"], "only streaming encoders"),
        (["OWN", "--format", "ctranslate2"], "at its own length, and ctranslate2 pads it to 2 s"),
        (["OWN", "--format", "ggml"], "at its own length, and ggml pads it"),
        (["SMALL", "--format", "ggml"], "reads published vocabularies alone"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    whisper_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    make_directory(tmp_path / "small", TINY)
    make_directory(tmp_path / "own", TINY, extra_config={"sprachbund": {"real_length": True}})
    names = {"WHISPER": str(whisper_dir), "SMALL": str(tmp_path / "small"), "OWN": str(tmp_path / "own")}
    done = command("export", *(names.get(word, word) for word in arguments), "--out", tmp_path / "out")
    assert done.code != 0
    assert message in done.error_lines[-1]
    assert not (tmp_path / "out").exists()

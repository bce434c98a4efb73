"""Damaged model directories: nothing loads that is not what was written, and every fault is one line that names it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sprachbund.decoding.drafts import TokenMapDraft, draft_around, load_draft
from sprachbund.decoding.drafts.token_map import TokenMap
from sprachbund.engines.packed_cache import _FIXED, _HEAD, MAGIC, VERSION, PackedFileError, read_packed
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.io import save
from sprachbund.models.io import family_of, load
from sprachbund.models.weights import check_finite
from sprachbund.models.whisper import WhisperConfig
from sprachbund.models.whisper import io as whisper_io
from sprachbund.nn.drafts import Parasite, ParasiteShape
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.util import known_files
from tests.models.mutants import try_some
from tests.models.seamless.support import make_checkpoint
from tests.models.speech_llm_support import make_model as make_speech_llm
from tests.models.split_support import LANGUAGES, TEXTS, make_model
from tests.models.translation.support import make_checkpoint as make_translator
from tests.models.whisper_support import TINY
from tests.models.whisper_support import make_directory as make_whisper
from tests.nobody import can_be_nobody, nobody

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model() -> Conformer:
    return make_model()


@pytest.fixture
def directory(model: Conformer, tmp_path: Path) -> Path:
    save(model, tmp_path / "model")
    return tmp_path / "model"


def refused(directory: Path, message: str) -> None:
    with pytest.raises(SprachbundError, match=message) as raised:
        load(directory, offline=True)
    assert len(str(raised.value).splitlines()) == 1


def tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        head = dict(file.metadata() or {})
        return {name: file.get_tensor(name) for name in file.keys()}, head  # noqa: SIM118 - no mapping


def rewrite(path: Path, **changes: Tensor | None) -> None:
    """Change tensors of a file, and take its checksum away, as if an earlier version had written it so."""
    result, head = tensors(path)
    head.pop("sha256", None)
    kept = {name: value for name, value in {**result, **changes}.items() if value is not None}
    save_file(kept, path, metadata=head)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_a_changed_byte_of_weights_is_told_by_the_checksum(directory: Path) -> None:
    flip(directory / WEIGHTS, -1000)
    refused(directory, r"model.safetensors is damaged \(its checksum")


def test_a_directory_of_before_without_checksums_loads_as_it_did(directory: Path, model: Conformer) -> None:
    result, _ = tensors(directory / WEIGHTS)
    save_file(result, directory / WEIGHTS, metadata={"format": "pt", "bits": "32"})
    again = load(directory)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())  # type: ignore[attr-defined]


def test_fewer_layers_than_weights_are_refused(directory: Path) -> None:
    edit(directory / "config.json", lambda c: c["config"].update(num_encoder_layers=1))
    refused(directory, r"holds \d+ weights that config.json has no place for \(encoder.layers.1")


def test_more_layers_than_weights_are_refused(directory: Path) -> None:
    edit(directory / "config.json", lambda c: c["config"].update(num_encoder_layers=3))
    refused(directory, r"lacks \d+ weights that config.json asks for \(encoder.layers.2")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(directory: Path, value: float) -> None:
    bias, _ = tensors(directory / WEIGHTS)
    bad = bias["ctc_head.bias"].clone()
    bad[1] = value
    rewrite(directory / WEIGHTS, **{"ctc_head.bias": bad})
    refused(directory, "ctc_head.bias holds values that are not finite numbers")


def test_scales_belong_to_matrices_of_8_bits(model: Conformer, tmp_path: Path) -> None:
    save(model, tmp_path, bits=8)
    good = (tmp_path / WEIGHTS).read_bytes()
    result, _ = tensors(tmp_path / WEIGHTS)
    scale, matrix = result["ctc_head.weight.scale"], result["ctc_head.weight"]
    for changes, message in (
        ({"ctc_head.weight.scale": None}, "ctc_head.weight is in 8 bits and has no ctc_head.weight.scale"),
        ({"ctc_head.bias.scale": scale}, "ctc_head.bias.scale is not a finite scale above 0"),
        ({"ctc_head.weight.scale": -scale}, "ctc_head.weight.scale is not a finite scale above 0"),
        ({"ctc_head.weight.scale": 0 * scale}, "ctc_head.weight.scale is not a finite scale above 0"),
        ({"ctc_head.weight.scale": scale / 0}, "ctc_head.weight.scale is not a finite scale above 0"),
        ({"ctc_head.weight.scale": scale[:-1]}, "ctc_head.weight.scale is not a finite scale above 0"),
        ({"ctc_head.weight": matrix[:-1]}, "ctc_head.weight.scale is not a finite scale above 0"),
        ({"ctc_head.bias": result["ctc_head.bias"].to(torch.int8)}, "ctc_head.bias is in 8 bits"),
        ({"ctc_head.bias": result["ctc_head.bias"].bool()}, "ctc_head.bias is of the type torch.bool"),
    ):
        (tmp_path / WEIGHTS).write_bytes(good)
        rewrite(tmp_path / WEIGHTS, **changes)
        refused(tmp_path, message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_encoder_layers", 10**9),
        ("num_decoder_layers", -1),
        ("width", 0),
        ("width", 10**12),
        ("width", True),
        ("width", "32"),
        ("width", 32.0),
        ("num_heads", 0),
        ("kernel_size", 10**6),
        ("max_tokens", -1),
        ("num_mel_bins", None),
        ("dropout", float("nan")),
    ],
)
def test_sizes_that_nobody_can_hold_are_refused_by_field(directory: Path, field: str, value: object) -> None:
    edit(directory / "config.json", lambda c: c["config"].update({field: value}))
    refused(directory, rf"config.json: config: {field}: Input should be .*\(it is ")


@pytest.mark.parametrize("key", ["format", "guesses", "sharing"])
def test_a_key_of_another_release_is_refused(directory: Path, key: str) -> None:
    edit(directory / "config.json", lambda c: c.update({key: 2}))
    refused(directory, f"config.json has the key '{key}', which this release does not know; use the release")


def test_heads_have_to_divide_the_width(directory: Path) -> None:
    edit(directory / "config.json", lambda c: c["config"].update(num_heads=5))
    refused(directory, "num_heads 5 does not divide width 32")


@pytest.mark.parametrize("value", [-1, 0, 10**9, True, "4", 4.0, float("nan"), [4], {}])
@pytest.mark.parametrize("field", ["encoder_layers", "d_model", "vocab_size", "max_source_positions"])
def test_sizes_of_whisper_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(
        SprachbundError, match=f"no usable value for {field}: it is .*, not a whole number from"
    ):
        WhisperConfig.from_transformers({**TINY.to_transformers(), field: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds a list, not a JSON object"),
        ("7", "holds a number, not a JSON object"),
        ('{"family": ["conformer"]}', r"names the family \['conformer'\]"),
        ('{"family": 10000000000000000000000000}', "names the family 1000"),
        ("[" * 100_000, "not JSON"),
        ('{"family": "conformer", "config": 3}', "config"),
        ('{"family": "conformer"}', "config"),
    ],
)
def test_a_configuration_that_is_none(directory: Path, text: str, message: str) -> None:
    (directory / "config.json").write_text(text)
    refused(directory, message)


def test_the_folder_of_a_run_names_its_model(tmp_path: Path) -> None:
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(
        SprachbundError, match=f"has no config.json, .*; the model is in {tmp_path / 'model'}$"
    ):
        family_of(tmp_path)
    (tmp_path / "other" / "config.json").touch()
    with pytest.raises(SprachbundError, match=f"in one of {tmp_path / 'model'}, {tmp_path / 'other'}$"):
        family_of(tmp_path)
    with pytest.raises(SprachbundError, match="nosuch does not exist; check the path"):
        family_of(tmp_path / "nosuch")


def test_what_is_no_file_and_what_is_not_utf8(directory: Path) -> None:
    card = directory / "card.json"
    card.write_bytes(b"\xff")
    (directory / "tokenizer.model").unlink()
    (directory / "tokenizer.model").mkdir()
    refused(directory, "tokenizer.model cannot be read")
    (directory / "config.json").write_bytes(b'{"family": "\xff"}')
    with pytest.raises(SprachbundError, match="0xff is not UTF-8"):
        family_of(directory)
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    with pytest.raises(SprachbundError, match="cannot be read"):
        family_of(directory)


@pytest.mark.skipif(not can_be_nobody(), reason="there is no other user to be")
def test_places_where_nobody_may_look(directory: Path) -> None:
    directory.chmod(0)
    try:
        with (
            nobody(directory.parent),
            pytest.raises(SprachbundError, match=r"cannot be read|no directory"),
        ):
            load(directory, offline=True)
        with nobody(directory.parent), pytest.raises(SprachbundError, match="cannot be read"):
            family_of(directory)
    finally:
        directory.chmod(0o755)
    with pytest.raises(SprachbundError, match="there is no directory"):
        load("/" + "long" * 5000, offline=True)


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"\xff" * 500, b"random \x08\x96\x01 bytes"], ids=len)
def test_a_tokenizer_that_is_none(directory: Path, content: bytes) -> None:
    (directory / "transcript_tokenizer.model").write_bytes(content)
    refused(directory, "transcript_tokenizer.model: it is not a whole SentencePiece model")


def test_another_tokenizer_of_the_same_size_is_reported(directory: Path, model: Conformer) -> None:
    path = directory / "tokenizer.model"
    path.write_bytes(path.read_bytes().replace(b"z", b"q"))
    assert len(Tokenizer.load(path, LANGUAGES)) == len(model.tokenizer)
    refused(directory, "is not the tokenizer that these weights were saved with")


@pytest.mark.slow
def test_damaged_tokenizers_never_end_the_process() -> None:
    """In a process of its own: native code that reads past an end cannot be caught."""
    script = """
import random, sys
from sprachbund.errors import SprachbundError
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.util import known_files
from tests.models.split_support import TEXTS
model, refused = Tokenizer.train(TEXTS, (), 40).model, 0
for seed in range(120):
    rng, damaged = random.Random(seed), bytearray(model)
    for _ in range(rng.choice([1, 1, 4, 16])):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    try:
        tokenizer = Tokenizer(bytes(damaged), ())
    except SprachbundError as error:
        assert len(str(error).splitlines()) == 1
        refused += 1
    else:
        tokenizer.encode("eins two trois")
print(refused)
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-500:]
    assert 30 < int(ended.stdout) < 120


def test_a_seamless_checkpoint_with_other_layers_or_no_numbers(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "seamless_m4t")
    config, weights = (tmp_path / "config.json").read_text(), (tmp_path / WEIGHTS).read_bytes()
    edit(tmp_path / "config.json", lambda c: c.update(decoder_layers=1))
    refused(tmp_path, r"holds \d+ tensors that config.json has no place for \(text_decoder.layers.1")
    edit(tmp_path / "config.json", lambda c: c.update(decoder_layers=10**9))
    refused(tmp_path, "config.json: decoder_layers is 1000000000, not a whole number from 0 to 512")
    edit(tmp_path / "config.json", lambda c: c.update(decoder_layers=2, pad_token_id=None))
    refused(tmp_path, "pad_token_id is None")
    (tmp_path / "config.json").write_text(config)
    rewrite(tmp_path / WEIGHTS, **{"text_decoder.layer_norm.bias": torch.full((32,), torch.nan)})
    refused(tmp_path, "text_decoder.layer_norm.bias holds values that are not finite")
    (tmp_path / WEIGHTS).write_bytes(weights)
    rewrite(tmp_path / WEIGHTS, **{"text_decoder.layer_norm.bias": torch.ones(32, dtype=torch.int8)})
    refused(tmp_path, "text_decoder.layer_norm.bias is of the type I8, which no weight has")
    (tmp_path / WEIGHTS).write_bytes(weights)
    load(tmp_path)


def test_a_whisper_checkpoint_with_no_numbers(tmp_path: Path) -> None:
    make_whisper(tmp_path)
    rewrite(tmp_path / WEIGHTS, **{"model.decoder.layer_norm.bias": torch.full((32,), torch.nan)})
    refused(tmp_path, "model.decoder.layer_norm.bias holds values that are not finite")


def test_values_of_a_whisper_checkpoint_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them makes a mapped file resident, which an engine with packed weights never needs."""
    checked: list[object] = []
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(known_files, "RESOLUTION_NS", 0)
    monkeypatch.setattr(whisper_io, "check_finite", lambda weights, source: checked.append(weights))
    make_whisper(tmp_path / "model")
    time.sleep(0.03)  # longer than a tick of the file system's clock
    for _ in range(2):
        load(tmp_path / "model")
    assert len(checked) == 1
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    rewrite(tmp_path / "model" / WEIGHTS, **{"model.decoder.layer_norm.bias": torch.full((32,), torch.nan)})
    for _ in range(2):  # what was refused is never remembered
        refused(tmp_path / "model", "model.decoder.layer_norm.bias holds values that are not finite")


@pytest.mark.parametrize(
    ("make", "damaged"),
    [
        (partial(make_checkpoint, version="seamless_m4t_v2"), "text_encoder.layer_norm.bias"),
        (partial(make_translator, name="m2m_100"), "model.encoder.layer_norm.bias"),
    ],
    ids=["seamless", "translator"],
)
def test_values_of_a_model_of_transformers_are_read_once(
    make: Callable[[Path], object], damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reads other tensors of the same file has not read those."""
    looked_at: list[Tensor] = []
    monkeypatch.setattr(known_files, "RESOLUTION_NS", 0)
    monkeypatch.setattr("sprachbund.models.weights._is_finite", lambda value: not looked_at.append(value))
    make(tmp_path)
    time.sleep(0.03)  # longer than a tick of the file system's clock
    load(tmp_path, offline=True)
    assert len(looked_at) > 20
    looked_at.clear()
    load(tmp_path, offline=True)
    assert not looked_at
    other = {"one of many": torch.zeros(1)}
    check_finite(other, tmp_path, sorted(tmp_path.glob("*.safetensors")))
    assert looked_at == list(other.values())
    check_finite({"one of many": torch.zeros(1).half()}, tmp_path, sorted(tmp_path.glob("*.safetensors")))
    assert len(looked_at) == 2  # it may be too large there
    monkeypatch.undo()
    rewrite(tmp_path / WEIGHTS, **{damaged: torch.full((32,), torch.nan)})
    refused(tmp_path, f"{damaged} holds values that are not finite")


@pytest.mark.parametrize("value", [3, "all", [[1]], [["a", 0]], [[1, 2, 3]]])
def test_settings_of_generation_that_are_none(tmp_path: Path, value: object) -> None:
    make_whisper(tmp_path)
    edit(tmp_path / "generation_config.json", lambda c: c.update(alignment_heads=value))
    refused(tmp_path, "generation_config.json: alignment_heads is .*, not a list of layers with their heads")


def test_parts_of_a_speech_llm_are_not_drawn_nor_dropped(tmp_path: Path) -> None:
    from sprachbund.models.speech_llm import save as save_speech_llm

    save_speech_llm(make_speech_llm(), tmp_path)
    good = (tmp_path / "llm" / WEIGHTS).read_bytes()
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(tmp_path / "llm" / WEIGHTS, **{name: None})
    refused(tmp_path, f"lacks 1 tensors that config.json asks for, such as {name}")
    (tmp_path / "llm" / WEIGHTS).write_bytes(good)
    edit(
        tmp_path / "llm" / "config.json",
        lambda c: c.update(num_hidden_layers=1, layer_types=["full_attention"]),
    )
    refused(tmp_path, r"holds \d+ tensors that config.json has no place for \(model.layers.1")
    edit(tmp_path / "llm" / "config.json", lambda c: c.update(num_hidden_layers=10**9))
    refused(tmp_path, "num_hidden_layers is 1000000000, not a whole number")
    edit(tmp_path / "llm" / "config.json", lambda c: c.update(num_hidden_layers=2, hidden_size=2**19))
    refused(tmp_path, "weights and its files have .* bytes|cannot be read")


def test_surplus_of_a_speech_llm_and_an_encoder_that_nobody_can_hold(tmp_path: Path) -> None:
    from sprachbund.models.speech_llm import save as save_speech_llm

    save_speech_llm(make_speech_llm(), tmp_path)
    good = (tmp_path / WEIGHTS).read_bytes()
    rewrite(tmp_path / WEIGHTS, **{"encoder.layers.9.more": torch.ones(2)})
    refused(tmp_path, r"holds 1 weights that config.json has no place for \(encoder.layers.9.more\)")
    (tmp_path / WEIGHTS).write_bytes(good)
    edit(tmp_path / "config.json", lambda c: c["config"]["projector"].update(hidden_width=2**20))
    refused(tmp_path, r"projector.layers.0.experts.* has shape .* config.json asks for \(1048576")
    edit(tmp_path / "config.json", lambda c: c["encoder"]["settings"].update(width=-3))
    refused(tmp_path, "encoder.settings: .*width")


def test_drafts_are_what_they_say(directory: Path, model: Conformer) -> None:
    path = directory / "draft.safetensors"
    draft_around(Parasite(ParasiteShape.of(model.decoder, num_blocks=1)), model.decoder).save(path)
    good = path.read_bytes()
    family = load(directory)
    rewrite(path, **{"blocks.7.more": torch.ones(2)})
    with pytest.raises(SprachbundError, match="has no place for"):
        load_draft(family, str(path))
    path.write_bytes(good)
    rewrite(path, **{"norm.bias": torch.full((32,), torch.nan)})
    with pytest.raises(SprachbundError, match=r"norm\.bias holds values that are not finite"):
        load_draft(family, str(path))
    result, head = tensors(path)
    card = json.loads(head["draft"])
    for field, value in (("width", 10**9), ("num_heads", "2"), ("feed_forward_width", -1), ("depth", 3)):
        shape = {**card["shape"], field: value}
        save_file(result, path, metadata={**head, "draft": json.dumps({**card, "shape": shape})})
        with pytest.raises(SprachbundError, match=f"parasite it describes: shape: {field}"):
            load_draft(family, str(path))


def test_a_token_map_that_is_damaged(directory: Path, model: Conformer) -> None:
    path = directory / "draft.safetensors"
    texts = {tag: map(model.tokenizer.encode, TEXTS[:4]) for tag in ("de", "en")}
    TokenMapDraft(TokenMap.fit(texts, len(model.tokenizer))).save(path)
    result, _ = tensors(path)
    family = load(directory)
    good = path.read_bytes()
    for changes, message in (
        ({"followers.1": result["followers.1"] + 10**6}, "contexts of 1 tokens are damaged"),
        ({"contexts.2": result["contexts.2"].flip(0)}, "contexts of 2 tokens are damaged"),
        ({"contexts.3": None}, r"lacks 1 weights .*contexts.3"),
    ):
        path.write_bytes(good)
        rewrite(path, **changes)
        with pytest.raises(SprachbundError, match=message):
            load_draft(family, str(path))


def test_a_packed_file_with_a_deep_head(tmp_path: Path) -> None:
    import hashlib

    head = b"[" * 100_000
    head += b" " * (-(_HEAD + len(head)) % 64)
    fixed = _FIXED.pack(MAGIC, VERSION, len(head))
    (tmp_path / "packed").write_bytes(fixed + hashlib.sha256(fixed + head).digest() + head)
    with pytest.raises(PackedFileError, match="another head than packed weights have"):
        read_packed(tmp_path / "packed")


@pytest.mark.slow
def test_mutants_are_refused_in_one_line_or_load(tmp_path: Path) -> None:
    """A sample; benchmarks/reliability/model_mutants.py has all families and all mutants."""
    families = ("conformer_8_bits", "conformer_packed", "conformer_split", "whisper", "speech_llm", "medusa")
    result = try_some(families, seed=1, count=12, work=tmp_path)
    assert not result.faults
    assert result.num_mutants == 12 * len(families)
    assert result.outcomes["refused"] > 40

"""Moonshine and streaming Moonshine beside transformers: samples, states, logits, tokens and text are equal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.io import load, save
from sprachbund.models.moonshine.config import MoonshineConfig, StreamingMoonshineConfig
from tests.models.fastconformer.support import sound
from tests.models.moonshine.support import KINDS, Checkpoint, make

SOUNDS = [sound(2.13, 1), sound(3.4, 2), sound(0.7, 3), sound(1.0, 4)]
ENGLISH = Target(language="en", source="en")


@pytest.fixture(scope="module", params=[*KINDS, "wide"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    kind = "moonshine_streaming" if request.param == "wide" else request.param
    return make(tmp_path_factory.mktemp("checkpoint"), kind, wide=request.param == "wide")


def inputs(made: Checkpoint, samples: np.ndarray) -> Any:
    """As its processor makes them."""
    return made.extractor(
        [samples],
        sampling_rate=SAMPLE_RATE,
        return_tensors="pt",
        padding=True,
        pad_to_multiple_of=80 if made.kind == "moonshine_streaming" else None,
    )


def rows(made: Checkpoint, sounds: list[np.ndarray], **options: Any) -> list[Any]:
    memory = made.model.encode(made.model.features(sounds))
    asked = [[ENGLISH]] * len(sounds)
    return [
        row[0] for row in search(made.model, memory, asked, DecodingOptions(**{"max_tokens": 20, **options}))
    ]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("number", range(len(SOUNDS)))
def test_states_and_logits_are_those_of_transformers(made: Checkpoint, number: int) -> None:
    """All utterances in one batch of ours, and each alone in transformers, where padding changes states."""
    theirs = inputs(made, SOUNDS[number])
    out = made.hf_model.model.encoder(**theirs)
    features = made.model.features(SOUNDS)
    assert torch.equal(features.values[number, : len(SOUNDS[number])], torch.from_numpy(SOUNDS[number]))
    states, num_frames = made.model.encoder(features.values, features.num_frames)
    expected = out.last_hidden_state[0]
    assert int(num_frames[number]) == len(expected)
    close(states[number, : len(expected)], expected)

    prompt = torch.tensor([[1, 7, 9, 30, 12]])
    memory = made.model.encode(made.model.features([SOUNDS[number]]))
    result = made.model.step(prompt, made.model.start(memory))
    close(result, made.hf_model(**theirs, decoder_input_ids=prompt).logits)


@torch.inference_mode()
def test_tokens_are_those_that_transformers_generates(made: Checkpoint) -> None:
    ours = [list(row.tokens) for row in rows(made, SOUNDS)]
    for samples, tokens in zip(SOUNDS, ours, strict=True):
        out = made.hf_model.generate(
            **inputs(made, samples), max_new_tokens=20, suppress_tokens=[0, 1], do_sample=False
        )[0].tolist()[1:]
        wanted = out[: out.index(2)] if 2 in out else out
        assert tokens == wanted
        assert made.model.decode_text(tokens) == made.tokenizer.decode(wanted, skip_special_tokens=True)
    assert len({tuple(row) for row in ours}) > 2
    assert len({token for row in ours for token in row}) > 3


@torch.inference_mode()
def test_several_rows_of_a_memory(made: Checkpoint) -> None:
    """Rows of one memory are as rows alone, and their attention is shown row by row."""
    memory = made.model.encode(made.model.features(SOUNDS[:2]))
    tokens = torch.tensor([[1, 5], [1, 6], [1, 7], [1, 8]])
    seen: list[Tensor] = []
    result = made.model.step(tokens, made.model.start(memory, rows_per_memory=2), seen)
    alone = made.model.encode(made.model.features(SOUNDS[1:2]))
    close(result[3:], made.model.step(tokens[3:], made.model.start(alone)))
    assert seen[0].shape[:3] == (4, 2, 2)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(4, 2, 2))


def test_a_directory_goes_both_ways(made: Checkpoint, tmp_path: Path) -> None:
    save(made.model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    weights = made.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())  # type: ignore[attr-defined]
    theirs: Any = type(made.hf_model).from_pretrained(tmp_path / "saved")
    expected = made.hf_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in theirs.state_dict().items())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved").decode(
        [5]
    ) == made.tokenizer.decode([5])


def test_a_language_is_in_the_name_or_in_our_key(made: Checkpoint, tmp_path: Path) -> None:
    assert made.model.source_languages == ("en",)
    there = tmp_path / "moonshine-tiny-ja"
    save(made.model, there)
    assert load(there).source_languages == ("en",)  # it was written there
    config = json.loads((there / "config.json").read_text())
    del config["sprachbund"]
    (there / "config.json").write_text(json.dumps(config))
    assert load(there).source_languages == ("ja",)


def test_short_and_long_sounds(made: Checkpoint) -> None:
    for samples in (np.zeros(0, np.float32), sound(0.01)):
        memory = made.model.encode(made.model.features([samples]))
        assert memory.num_frames is not None
        assert int(memory.num_frames[0]) >= 1
    with pytest.raises(SprachbundError, match=r"lasts 31.0 s, a window 30"):
        made.model.features([np.zeros(31 * SAMPLE_RATE, np.float32)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
        ({"eos_token_id": 10_000}, "eos_token_id is 10000 and vocab_size 64"),
        ({"hidden_size": 40}, "shape|proj.weight"),
        ({"model_type": "wav2vec2"}, "names the family 'wav2vec2'"),
    ],
)
def test_what_is_not_built_is_refused(
    made: Checkpoint, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save(made.model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(SprachbundError, match=said) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


_THETA = {"rope_type": "default", "rope_theta": 5e4}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (MoonshineConfig, {}),
        (MoonshineConfig, {"rope_theta": 5e4}),
        (MoonshineConfig, {"rope_theta": 5e4, "rope_scaling": None, "partial_rotary_factor": 0.5}),
        (MoonshineConfig, {"rope_parameters": _THETA}),
        (MoonshineConfig, {"rope_parameters": _THETA, "partial_rotary_factor": 0.5}),
        (StreamingMoonshineConfig, {}),
        (StreamingMoonshineConfig, {"rope_parameters": _THETA}),
    ],
)
def test_positions_are_those_of_transformers(kind: Any, said: dict[str, Any]) -> None:
    name = "moonshine" if kind is MoonshineConfig else "moonshine_streaming"
    ours = kind.model_validate({"model_type": name, "encoder_config": {}, **said}).rotary
    theirs = transformers.CONFIG_MAPPING[name].from_dict(json.loads(json.dumps(said))).rope_parameters
    assert ours.rope_theta == theirs["rope_theta"]
    assert ours.partial_rotary_factor == theirs.get("partial_rotary_factor", 1.0)


def test_stretched_positions_are_refused() -> None:
    stretched = {"model_type": "moonshine", "rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(ValidationError, match="rope_type"):
        MoonshineConfig.model_validate(stretched)


def test_samples_that_are_normed_are_refused(made: Checkpoint, tmp_path: Path) -> None:
    save(made.model, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"do_normalize": True, "sampling_rate": SAMPLE_RATE}))
    with pytest.raises(SprachbundError, match="do_normalize is True"):
        load(tmp_path)

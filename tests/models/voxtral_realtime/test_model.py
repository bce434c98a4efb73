"""Voxtral Realtime beside transformers: features, states, logits and tokens are equal, whole and in pieces."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.audio_llm.tokens import LLMTokens
from sprachbund.models.io import load, save
from sprachbund.models.voxtral_realtime import VoxtralRealtime, VoxtralRealtimeConfig
from sprachbund.models.voxtral_realtime.io import own_name
from sprachbund.models.voxtral_realtime.model import RealtimeState
from tests.models.audio_llm.support import noises
from tests.models.voxtral_realtime.support import (
    DELAY,
    END,
    LEAD,
    Checkpoint,
    make,
    reference_mel,
    reference_tokens,
)

SOUNDS = noises(2.13, 3.4, 0.7, 0.08)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("checkpoint"))


def test_features_are_those_of_the_extractor_but_for_a_frame_behind_which_nothing_is_written(
    made: Checkpoint,
) -> None:
    features = made.model.features(SOUNDS)
    for row, count, samples in zip(features.values, features.num_frames, SOUNDS, strict=True):
        theirs = reference_mel(made, samples)[0].T.reshape(-1, row.shape[1])
        assert int(count) == len(theirs) - 1
        torch.testing.assert_close(row[:count], theirs[:-1], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_encoded_frames_are_those_of_transformers(made: Checkpoint) -> None:
    memory = made.model.encode(made.model.features(SOUNDS))
    assert memory.num_frames is not None
    for row, count, samples in zip(memory.states, memory.num_frames, SOUNDS, strict=True):
        theirs = made.hf_model.get_audio_features(reference_mel(made, samples)).pooler_output[0]
        torch.testing.assert_close(row[:count], theirs[:count], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_probabilities_are_those_of_transformers_reading_the_same_tokens(made: Checkpoint) -> None:
    tokens, log_probs = written(made, SOUNDS[0])
    given = torch.tensor([[made.model.begin, *tokens[:-1]]])
    mel = reference_mel(made, SOUNDS[0])[:, :, : 8 * len(tokens)]
    logits = made.hf_model(input_ids=given, input_features=mel, num_delay_tokens=DELAY).logits[0]
    theirs = logits.float().log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    torch.testing.assert_close(log_probs[LEAD + DELAY :], theirs[LEAD + DELAY :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sound", range(len(SOUNDS)))
def test_tokens_are_those_that_transformers_generates(made: Checkpoint, sound: int) -> None:
    tokens, _ = written(made, SOUNDS[sound])
    theirs = reference_tokens(made, SOUNDS[sound])
    assert tokens[: LEAD + DELAY] == [made.model.pad] * (LEAD + DELAY)
    assert tokens[LEAD + DELAY :] == theirs
    assert len(set(theirs)) > 1  # a model that writes one thing for ever would pass with anything


def written(made: Checkpoint, samples: np.ndarray) -> tuple[list[int], torch.Tensor]:
    memory = made.model.encode(made.model.features([samples]))
    with torch.inference_mode():
        out, _ = made.model.write_frames(memory.states, made.model.start_frames(1))
    return out.tokens[0].tolist(), out.log_probs[0]


# In pieces.


@pytest.mark.parametrize("seed", range(5))
@torch.inference_mode()
def test_pieces_of_any_size_give_what_the_whole_gives(made: Checkpoint, seed: int) -> None:
    rng, samples = np.random.default_rng(seed), SOUNDS[1]
    cuts = np.sort(rng.integers(0, len(samples), rng.integers(1, 20)))
    front_end, state = made.model.front_end(), made.model.start_frames(1)
    inputs = [front_end.push(piece) for piece in np.split(samples, cuts)]
    inputs.append(front_end.finish())
    whole = made.model.features([samples])
    torch.testing.assert_close(torch.cat(inputs), whole.values[0], rtol=1e-5, atol=1e-5)
    tokens: list[int] = []
    for piece in inputs:
        if len(piece):
            states, state = made.model.encode_frames(piece[None], state)
            out, state = made.model.write_frames(states, state)
            tokens += out.tokens[0].tolist()
    assert tokens == written(made, samples)[0]


@torch.inference_mode()
def test_rows_that_have_come_differently_far_go_on_together(made: Checkpoint) -> None:
    frames = [made.model.features([samples]).values[0] for samples in SOUNDS[:3]]
    begun, states = [1, 20, 7], []
    tokens: list[list[int]] = []
    for own, count in zip(frames, begun, strict=True):
        out, state = forward(made.model, own[None, :count], made.model.start_frames(1))
        tokens.append(out[0])
        states.append(state)
    together = RealtimeState.stack(states)
    together = RealtimeState.from_tensors(together.tensors())
    least = min(len(own) - count for own, count in zip(frames, begun, strict=True))
    rows = torch.stack([own[count : count + least] for own, count in zip(frames, begun, strict=True)])
    out, together = forward(made.model, rows, together)
    for row, own in enumerate(frames):
        rest = own[None, begun[row] + least :]
        tokens[row] += out[row]
        if rest.shape[1]:
            tokens[row] += forward(made.model, rest, together.take(torch.tensor([row])))[0][0]
    assert tokens == [written(made, samples)[0] for samples in SOUNDS[:3]]


@torch.inference_mode()
def test_the_state_of_an_endless_stream_does_not_grow(made: Checkpoint) -> None:
    frames, state, sizes = made.model.features([SOUNDS[0]]).values, made.model.start_frames(1), []
    for _ in range(4):
        _, state = forward(made.model, frames, state)
        sizes.append(sum(tensor.numel() for tensor in state.tensors().values()))
    assert len(set(sizes)) == 1


@torch.inference_mode()
def test_nothing_is_written_behind_the_end(made: Checkpoint) -> None:
    tokens, _ = written(made, SOUNDS[1])
    model = load(made.directory)
    assert isinstance(model, VoxtralRealtime)
    model.ends = (next(token for token in tokens[20:] if token != model.pad),)
    out, state = forward(model, model.features([SOUNDS[1]]).values, model.start_frames(1))
    at = out[0].index(model.ends[0])
    assert out[0][: at + 1] == tokens[: at + 1]
    assert set(out[0][at + 1 :]) == {model.pad}
    assert bool(state.ended)


def forward(
    model: VoxtralRealtime, frames: torch.Tensor, state: RealtimeState
) -> tuple[list[list[int]], RealtimeState]:
    states, state = model.encode_frames(frames, state)
    out, state = model.write_frames(states, state)
    return out.tokens.tolist(), state


# Files.


def test_the_published_shape_has_the_weights_of_transformers(made: Checkpoint) -> None:
    import transformers

    with torch.device("meta"):
        theirs = transformers.VoxtralRealtimeForConditionalGeneration(transformers.VoxtralRealtimeConfig())
    values = {"model_type": "voxtral_realtime"}
    for given in (values, theirs.config.to_dict()):
        config = VoxtralRealtimeConfig.model_validate(given)
        assert (config.text_window, config.audio_config.sliding_window) == (8192, 750)
        tokens = LLMTokens.read(made.directory, config.text_config.vocab_size)
        with torch.device("meta"):
            ours = VoxtralRealtime(config, values, tokens, [END], lead=32, delay=6)
        shapes = {own_name(name): weight.shape for name, weight in theirs.state_dict().items()}
        del shapes["llm.lm_head.weight"]  # the embedding
        assert shapes == {name: weight.shape for name, weight in ours.state_dict().items()}


def test_a_model_that_is_saved_is_the_same_here_and_in_transformers(made: Checkpoint, tmp_path: Path) -> None:
    import transformers

    save(made.model, tmp_path / "again")
    again = load(tmp_path / "again")
    assert isinstance(again, VoxtralRealtime)
    assert (again.lead, again.delay) == (LEAD, DELAY)
    own = again.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in made.model.state_dict().items())
    theirs = transformers.VoxtralRealtimeForConditionalGeneration.from_pretrained(tmp_path / "again")
    before = made.hf_model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_the_delay_is_ours_that_of_the_vocabulary_or_the_published_one(
    made: Checkpoint, tmp_path: Path
) -> None:
    changed = {"sprachbund": {"delay": 5}}
    model = copied(made, tmp_path / "ours", config=changed)
    assert model.delay == 5
    assert [layer.mlp.delay for layer in model.llm.layers] == [5, 5]
    assert copied(made, tmp_path / "theirs", tekken={"audio": None}).delay == 6


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"audio_length_per_tok": 4}, "audio_length_per_tok is 4"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"sprachbund": {"delay": 0}}, "delay"),
    ],
)
def test_what_is_not_built_is_refused(
    made: Checkpoint, tmp_path: Path, config: dict[str, object], says: str
) -> None:
    with pytest.raises(SprachbundError, match=says):
        copied(made, tmp_path / "other", config=config)


def test_a_stream_needs_a_window(made: Checkpoint, tmp_path: Path) -> None:
    text = json.loads((made.directory / "config.json").read_text())["text_config"]
    with pytest.raises(SprachbundError, match="sliding_window is null"):
        copied(made, tmp_path / "other", config={"text_config": {**text, "sliding_window": None}})


def test_another_format_of_transcripts_is_refused(made: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="transcription_format"):
        copied(made, tmp_path / "other", tekken={"audio": {"transcription_format": "instruct"}})


def copied(
    made: Checkpoint,
    directory: Path,
    *,
    config: dict[str, object] | None = None,
    tekken: dict[str, object] | None = None,
) -> VoxtralRealtime:
    """A copy of a checkpoint with changes of its JSON, loaded."""
    save(made.model, directory)
    for name, changes in (("config.json", config), ("tekken.json", tekken)):
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **(changes or {})}))
    model = load(directory)
    assert isinstance(model, VoxtralRealtime)
    return model

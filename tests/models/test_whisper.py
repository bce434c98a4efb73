from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import WhisperConfig as HFWhisperConfig
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from sprachbund.errors import SprachbundError
from sprachbund.models import whisper
from sprachbund.models.base import Family, Features, Target
from sprachbund.models.whisper import PRESETS, Whisper, WhisperConfig
from tests.models.whisper_support import LANGUAGES, TINY, make_transformers_model, transplanted, with_tokens

TOLERANCE = 1e-4
WINDOW = 2 * TINY.max_frames


def windows(
    num_rows: int, config: WhisperConfig = TINY, *, num_frames: int | None = None, seed: int = 1
) -> Features:
    generator = torch.Generator().manual_seed(seed)
    length = num_frames or 2 * config.max_frames
    values = torch.randn(num_rows, length, config.num_mel_bins, generator=generator)
    return Features(values=values, num_frames=torch.full((num_rows,), length))


@pytest.fixture(scope="module")
def hf_model() -> WhisperForConditionalGeneration:
    return make_transformers_model(TINY)


@pytest.fixture(scope="module")
def model(hf_model: WhisperForConditionalGeneration) -> Whisper:
    return transplanted(hf_model, TINY)


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


# shape, encoder layers, decoder layers: one whole model, one of English alone, one of other features and tokens
SHAPES = [("tiny", 4, 4), ("small.en", 1, 1), ("large-v3", 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "encoder_layers", "decoder_layers"), SHAPES)
def test_published_shapes_give_the_logits_of_transformers(
    shape: str, encoder_layers: int, decoder_layers: int
) -> None:
    config = replace(PRESETS[shape], encoder_layers=encoder_layers, decoder_layers=decoder_layers)
    hf_model = make_transformers_model(config)
    model = transplanted(hf_model, config)
    features = windows(1, config)
    tokens = torch.randint(0, config.vocabulary_size, (1, 6), generator=torch.Generator().manual_seed(2))

    states = hf_model.model.encoder(features.values.transpose(1, 2)).last_hidden_state
    memory = model.encode(features)
    assert torch.allclose(memory.states, states, atol=TOLERANCE)

    cache, theirs = model.start(memory), None
    for chunk in (
        tokens[:, :4],
        tokens[:, 4:5],
        tokens[:, 5:6],
    ):  # the prompt in one pass, then token by token
        expected = hf_model(
            encoder_outputs=(states,), decoder_input_ids=chunk, past_key_values=theirs, use_cache=True
        )
        theirs = expected.past_key_values
        logits = model.step(chunk, cache)
        assert expected.logits.std() > 0.5  # else the comparison would say little
        assert torch.allclose(logits, expected.logits, atol=TOLERANCE)


@pytest.mark.parametrize("shape", sorted(PRESETS))
def test_presets_have_the_parameters_of_transformers(shape: str) -> None:
    with torch.device("meta"):
        hf_model = WhisperForConditionalGeneration(HFWhisperConfig(**PRESETS[shape].to_transformers()))
    assert whisper.num_parameters(PRESETS[shape]) == hf_model.num_parameters()


def test_presets_are_the_published_sizes() -> None:
    published = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large-v3": 1550, "turbo": 809}
    for shape, millions in published.items():
        assert whisper.num_parameters(PRESETS[shape]) / 1e6 == pytest.approx(millions, rel=0.04)


def test_batch_with_ragged_rows_equals_rows_alone(
    model: Whisper, hf_model: WhisperForConditionalGeneration
) -> None:
    features = windows(3)
    rows = [torch.randint(0, 2000, (1, n)) for n in (2, 5, 7)]
    cache = model.start(model.encode(features))
    padded = torch.stack([torch.nn.functional.pad(row[0], (0, 7 - row.shape[1])) for row in rows])
    logits = model.step(padded, cache)
    cache.rewind(torch.tensor([2, 5, 7]))
    next_tokens = torch.tensor([[3, 4], [5, 6], [7, 8]])
    continued = model.step(next_tokens, cache)
    for i, row in enumerate(rows):
        whole = torch.cat([row, next_tokens[i : i + 1]], dim=1)
        mel = features.values[i : i + 1].transpose(1, 2)
        expected = hf_model(input_features=mel, decoder_input_ids=whole).logits[0]
        assert torch.allclose(logits[i, : row.shape[1]], expected[:-2], atol=TOLERANCE)
        assert torch.allclose(continued[i], expected[-2:], atol=TOLERANCE)


def test_training_pass_equals_transformers(model: Whisper, hf_model: WhisperForConditionalGeneration) -> None:
    features, tokens = windows(2), torch.randint(0, 2000, (2, 9))
    expected = hf_model(input_features=features.values.transpose(1, 2), decoder_input_ids=tokens).logits
    assert torch.allclose(model(features, tokens), expected, atol=TOLERANCE)


def test_cross_attention_weights_equal_transformers(hf_model: WhisperForConditionalGeneration) -> None:
    model, features, tokens = transplanted(hf_model, TINY), windows(2), torch.randint(0, 2000, (2, 5))
    hf_model.set_attn_implementation("eager")
    mel = features.values.transpose(1, 2)
    expected = hf_model(input_features=mel, decoder_input_ids=tokens, output_attentions=True).cross_attentions
    hf_model.set_attn_implementation("sdpa")
    weights: list[torch.Tensor] = []
    model.step(tokens, model.start(model.encode(features)), weights)
    assert len(weights) == TINY.decoder_layers
    for ours, theirs in zip(weights, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_greedy_tokens_equal_generate(model: Whisper, hf_model: WhisperForConditionalGeneration) -> None:
    features = windows(2)
    memory = model.encode(features)
    prompt = model.prompt(Target(language="de", source="de"))
    expected = hf_model.generate(
        features.values.transpose(1, 2),
        decoder_input_ids=torch.tensor([prompt] * 2),
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[model.end_token],
        begin_suppress_tokens=None,
    )
    cache, tokens, rows = model.start(memory), torch.tensor([prompt] * 2), []
    for _ in range(12):
        logits = model.step(tokens, cache)[:, -1]
        logits[:, model.end_token] = -torch.inf
        tokens = logits.argmax(dim=-1, keepdim=True)
        rows.append(tokens)
    assert torch.cat(rows, dim=1).tolist() == expected[:, -12:].tolist()


def test_real_length_equals_a_transformers_encoder_of_that_length(
    hf_model: WhisperForConditionalGeneration,
) -> None:
    model, num_frames = transplanted(hf_model, TINY, real_length=True), 51
    short = replace(TINY, max_frames=26)
    weights = {**hf_model.state_dict()}
    key = "model.encoder.embed_positions.weight"
    weights[key] = weights[key][:26]
    reference = make_transformers_model(short)
    reference.load_state_dict(weights)
    features = windows(2, num_frames=num_frames)
    # transformers takes even lengths only; beyond the last frame a convolution reads zeros, as here
    mel = torch.nn.functional.pad(features.values, (0, 0, 0, 1)).transpose(1, 2)
    x = torch.nn.functional.gelu(reference.model.encoder.conv1(mel))
    x[:, :, num_frames:] = 0
    x = torch.nn.functional.gelu(reference.model.encoder.conv2(x)).transpose(1, 2)
    x = x + reference.model.encoder.embed_positions.weight
    for layer in reference.model.encoder.layers:
        x = layer(x, None)
    expected = reference.model.encoder.layer_norm(x)
    memory = model.encode(features)
    assert memory.states.shape == (2, 26, TINY.width)
    assert torch.allclose(memory.states, expected, atol=TOLERANCE)


def test_real_length_batch_equals_utterances_alone(hf_model: WhisperForConditionalGeneration) -> None:
    model = transplanted(hf_model, TINY, real_length=True)
    samples = [
        np.random.default_rng(i).normal(0, 0.1, n).astype("float32") for i, n in enumerate((8000, 17300, 30))
    ]
    tokens = torch.randint(0, 2000, (3, 4))
    memory = model.encode(model.features(samples))
    together = model.step(tokens, model.start(memory))
    assert memory.num_frames is not None
    assert memory.num_frames.tolist() == [25, 54, 1]
    for i, one in enumerate(samples):
        alone = model.encode(model.features([one]))
        assert torch.allclose(memory.states[i, : alone.states.shape[1]], alone.states[0], atol=1e-5)
        assert torch.allclose(together[i], model.step(tokens[i : i + 1], model.start(alone))[0], atol=1e-5)


def test_window_features_are_those_of_transformers() -> None:
    model = with_tokens(replace(TINY, max_frames=1500))
    model.to_empty(device="cpu")
    samples = [
        np.random.default_rng(i).normal(0, 0.1, n).astype("float32") for i, n in enumerate((20000, 48123))
    ]
    expected = WhisperFeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt").input_features
    features = model.features(samples)
    assert features.values.shape == (2, 3000, 80)
    assert features.num_frames.tolist() == [125, 300]
    assert torch.allclose(features.values.transpose(1, 2), expected, atol=TOLERANCE)


def test_short_features_are_padded_with_what_silence_looks_like(model: Whisper) -> None:
    speech = np.random.default_rng(0).normal(0, 0.1, 16000).astype("float32")
    speech[-400:] = 0  # the edge of the audio is mirrored, so let it be silent
    whole = model.features([speech])
    cut = Features(values=whole.values[:, :100], num_frames=whole.num_frames)
    assert torch.allclose(model.encode(cut).states, model.encode(whole).states, atol=1e-5)


def test_satisfies_the_family_protocol(model: Whisper) -> None:
    assert isinstance(model, Family)
    assert model.max_window_s == 2.0
    assert PRESETS["tiny"].max_frames * model.frame_s == 30.0


def test_too_long_audio_and_other_features_are_refused(model: Whisper) -> None:
    with pytest.raises(SprachbundError, match=r"lasts 3\.0 s"):
        model.features([np.zeros(48000, dtype="float32")])
    with pytest.raises(SprachbundError, match="128 mel bins"):
        model.encode(Features(values=torch.zeros(1, WINDOW, 128), num_frames=torch.tensor([WINDOW])))


def test_empty_batch_of_audio_is_silence_not_a_crash(model: Whisper) -> None:
    features = model.features([np.zeros(0, dtype="float32")])
    assert torch.isfinite(model.encode(features).states).all()


def test_language_log_probs_agree_with_transformers(
    model: Whisper, hf_model: WhisperForConditionalGeneration
) -> None:
    features = windows(4)
    memory = model.encode(features)
    tags = list(model.tokens.languages.values())
    hf_model.generation_config.lang_to_id = {f"<|{tag}|>": i for tag, i in zip(LANGUAGES, tags, strict=True)}
    hf_model.generation_config.is_multilingual = True
    hf_model.generation_config.decoder_start_token_id = model.tokens.start
    expected = hf_model.detect_language(input_features=features.values.transpose(1, 2))
    log_probs = model.language_log_probs(memory)
    assert torch.allclose(log_probs.exp().sum(dim=-1), torch.ones(4))
    assert [tags[i] for i in log_probs.argmax(dim=-1).tolist()] == expected.tolist()

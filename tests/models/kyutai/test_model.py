"""Kyutai STT beside transformers: codes, logits and tokens are equal, and pieces give what the whole gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
import transformers
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.kyutai import Kyutai, load
from sprachbund.models.kyutai.config import FRAME_SAMPLES
from sprachbund.models.kyutai.model import CODEC_RATE, DELAY_S, KyutaiState, UpsampledStream
from sprachbund.nn.sliding_window import SlidingCache
from sprachbund.streaming.saved_stream import load_frames, save_frames
from tests.models.kyutai.support import BEGIN, CODEC, NUM_CODEBOOKS, NUM_CODES, Checkpoint, make, speech


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("checkpoint"))


def frames_of(sounds: Sequence[np.ndarray]) -> Tensor:
    """Whole frames (B, T, 1920) of sounds of one length, at 24 kHz."""
    together = torch.from_numpy(np.stack(sounds))
    count = together.shape[1] // FRAME_SAMPLES
    return together[:, : count * FRAME_SAMPLES].unflatten(1, (count, FRAME_SAMPLES))


# The sound.


def test_sound_at_24_khz_is_soxrs_and_comes_late() -> None:
    """Tones up to 7 kHz: far from the edges, both are within 70 dB of each other."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = (50.0, 440.0, 1234.5, 3333.0, 5000.0, 7000.0)
    sound = sum(np.sin(2 * np.pi * hertz * time + hertz) for hertz in tones).astype(np.float32)
    ours = UpsampledStream().push(sound).numpy()
    theirs = soxr.resample(sound, SAMPLE_RATE, CODEC_RATE, quality="VHQ")
    assert len(ours) == len(theirs) == CODEC_RATE
    late = round(DELAY_S * CODEC_RATE)
    difference = ours[late:][2000:-2000] - theirs[:-late][2000:-2000]
    assert np.sqrt(np.mean(difference**2)) < 10 ** (-70 / 20) * np.sqrt(np.mean(theirs**2))


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_sound_give_what_the_whole_gives(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sound = generator.standard_normal(5001).astype(np.float32)
    whole = UpsampledStream().push(sound)
    assert len(whole) == 7500  # the odd sample waits
    stream, pieces, begin = UpsampledStream(), [], 0
    while begin < len(sound):
        size = int(generator.choice([1, 2, 3, 160, 1279]))
        pieces.append(stream.push(sound[begin : begin + size]))
        begin += size
    # The same sums in double precision; one in a million may be rounded up here and down there.
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=2**-23, atol=1e-12)


def test_silence_and_nothing_at_24_khz() -> None:
    stream = UpsampledStream()
    assert len(stream.push(np.zeros(0, np.float32))) == 0
    assert torch.equal(stream.push(np.zeros(100, np.float32)), torch.zeros(150))
    loud = UpsampledStream().push(np.ones(400, np.float32))[200:]
    torch.testing.assert_close(loud, torch.ones(400), rtol=0, atol=1e-4)


# The codec.


@torch.inference_mode()
@pytest.mark.parametrize(
    ("batch", "seconds"), [(1, 0.08), (1, 0.5), (3, 4.0)], ids=["a frame", "short", "many"]
)
def test_codes_are_those_of_transformers(made: Checkpoint, batch: int, seconds: float) -> None:
    """Four seconds are 100 steps of the transformer, ten times its window."""
    frames = frames_of([speech(seconds, seed) for seed in range(batch)])
    theirs = made.hf_model.codec_model.encode(frames.flatten(1)[:, None]).audio_codes.transpose(1, 2)
    codes, _ = made.model.codec(frames.flatten(1), made.model.codec.start(batch))
    assert torch.equal(codes, theirs)
    if seconds > 1:
        assert all(len(codes[..., q].unique()) > NUM_CODES // 3 for q in range(NUM_CODEBOOKS))


@torch.inference_mode()
def test_codes_of_other_sizes_are_those_of_transformers(tmp_path: Path) -> None:
    """Two residual blocks, grouped heads, codes as wide as the model, two semantic codebooks, other strides."""
    sizes = {
        **CODEC,
        "num_residual_layers": 2,
        "num_key_value_heads": 2,
        "codebook_dim": 32,
        "vector_quantization_hidden_dimension": 32,
        "num_semantic_quantizers": 2,
        "upsampling_ratios": [4, 15, 16],
        "kernel_size": 5,
        "last_kernel_size": 1,
        "upsample_groups": 8,
    }
    made = make(tmp_path, codec=sizes)
    samples = frames_of([speech(1.6, 1), speech(1.6, 2)]).flatten(1)
    codes, _ = made.model.codec(samples, made.model.codec.start(2))
    theirs = made.hf_model.codec_model.encode(samples[:, None]).audio_codes
    assert torch.equal(codes, theirs.transpose(1, 2))


def cuts(total: int, generator: np.random.Generator) -> list[int]:
    """Sizes of pieces of `total` frames."""
    sizes: list[int] = []
    while (left := total - sum(sizes)) > 0:
        sizes.append(min(left, int(generator.choice([1, 1, 2, 3, 7, 20]))))
    return sizes


def assert_states_close(one: KyutaiState, other: KyutaiState) -> None:
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-9, atol=1e-9, msg=name)


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(3))
def test_pieces_give_what_the_whole_gives(made: Checkpoint, seed: int) -> None:
    """In double precision, so that no code lies between two entries by as much as sums differ."""
    model = load(made.directory).double()
    frames = frames_of([speech(4.0, 5 + seed), speech(4.0, 9)]).double()
    codes, _ = model.codec(frames.flatten(1), model.codec.start(2))
    states, heard = model.encode_frames(frames, model.start_frames(2))
    written, behind = model.write_frames(states, heard)
    state, before = model.start_frames(2), model.codec.start(2)
    found_codes, found_states, found_tokens = [], [], []
    for piece in frames.split(cuts(frames.shape[1], np.random.default_rng(seed)), dim=1):
        part, before = model.codec(piece.flatten(1), before)
        found_codes.append(part)
        heard_piece, state = model.encode_frames(piece, state)
        found_states.append(heard_piece)
        tokens, state = model.write_frames(heard_piece, state)
        found_tokens.append(tokens)
        state = KyutaiState.from_tensors(state.tensors())
    assert torch.equal(torch.cat(found_codes, 1), codes)
    assert torch.equal(torch.cat(found_states, 1), states)
    assert torch.equal(torch.cat([one.tokens for one in found_tokens], 1), written.tokens)
    torch.testing.assert_close(torch.cat([one.log_probs for one in found_tokens], 1), written.log_probs)
    assert_states_close(state, behind)


@torch.inference_mode()
def test_rows_that_have_come_differently_far_go_on_together(made: Checkpoint) -> None:
    model = load(made.directory).double()
    frames = frames_of([speech(3.2, 11), speech(3.2, 12), speech(3.2, 13)]).double()
    states, tokens = [], []
    for row, begun in enumerate((0, 3, 27)):
        state = model.start_frames(1)
        if begun:
            heard, state = model.encode_frames(frames[row : row + 1, :begun], state)
            _, state = model.write_frames(heard, state)
        states.append(state)
        heard, after = model.encode_frames(frames[row : row + 1, begun : begun + 9], state)
        tokens.append(model.write_frames(heard, after)[0].tokens)
    together = KyutaiState.stack(states)
    nexts = torch.stack([frames[row, begun : begun + 9] for row, begun in enumerate((0, 3, 27))])
    heard, after = model.encode_frames(nexts, together)
    written, after = model.write_frames(heard, after)
    assert torch.equal(written.tokens, torch.cat(tokens))
    order = torch.tensor([2, 0])
    again, _ = model.write_frames(heard[order], together.take(order))
    assert torch.equal(again.tokens, written.tokens[order])


@torch.inference_mode()
def test_a_stream_saved_as_bytes_goes_on(made: Checkpoint) -> None:
    frames = frames_of([speech(2.4, 6)])
    heard, state = made.model.encode_frames(frames[:, :11], made.model.start_frames(1))
    _, state = made.model.write_frames(heard, state)
    again = load_frames(made.model, save_frames(made.model, state))
    expected = made.model.write_frames(*made.model.encode_frames(frames[:, 11:], state))[0]
    result = made.model.write_frames(*made.model.encode_frames(frames[:, 11:], again))[0]
    assert torch.equal(result.tokens, expected.tokens)


def test_a_state_without_a_part_is_refused(made: Checkpoint) -> None:
    tensors = made.model.start_frames(1).tensors()
    with pytest.raises(ValueError, match="token"):
        KyutaiState.from_tensors({name: value for name, value in tensors.items() if name != "token"})
    with pytest.raises(ValueError, match="more"):
        KyutaiState.from_tensors({**tensors, "more": torch.zeros(1)})
    with pytest.raises(ValueError, match="keys"):
        KyutaiState.from_tensors({name: value for name, value in tensors.items() if name != "decoder.keys"})


# The decoder.


@torch.inference_mode()
def test_logits_are_those_of_transformers(made: Checkpoint) -> None:
    """Eleven positions: in whole rows, transformers attends to all before, and the window here is 12."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, NUM_CODES, (2, 11, NUM_CODEBOOKS), generator=generator)
    codes[:, 0] = NUM_CODES
    tokens = torch.randint(0, BEGIN, (2, 11), generator=generator)
    tokens[:, 0] = BEGIN
    theirs = made.hf_model(input_ids=torch.cat([tokens[..., None], codes], dim=-1)).logits
    decoder = made.model.decoder
    states, cache = decoder.embed_codes(codes), SlidingCache.empty(decoder, 2)
    for number in range(11):
        logits, cache = decoder.step(states[:, number : number + 1], tokens[:, number], cache)
        torch.testing.assert_close(logits, theirs[:, number], rtol=1e-4, atol=1e-4)


def generated(hf_model: Any, inputs: Any, **options: Any) -> Tensor:
    """Tokens (B, T) that transformers writes, without the first, which it is given."""
    tokens: Tensor = hf_model.generate(**inputs, suppress_tokens=[BEGIN], do_sample=False, **options)
    return tokens[:, 1:]


def written_for(model: Kyutai, inputs: Any) -> Tensor:
    """Our tokens (B, T) of the same input, the one in front of the first frame among them."""
    values = inputs["input_values"][:, 0]
    frames = frames_of([one.numpy() for one in values])[:, :-1]
    start = model.start_frames(len(frames))
    states, heard = model.encode_frames(frames, start)
    written, _ = model.write_frames(states, heard)
    return torch.cat([start.token[:, None], written.tokens], dim=1)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("batch", "seconds", "delay_s", "prefix_s"),
    [(1, 0.3, 0.5, 0.0), (3, 4.0, 0.5, 0.0), (2, 2.5, 2.5, 1.0)],
    ids=["short", "many", "late, behind silence"],
)
def test_tokens_are_those_that_transformers_generates(
    tmp_path: Path, batch: int, seconds: float, delay_s: float, prefix_s: float
) -> None:
    made = make(tmp_path, delay_s=delay_s, prefix_s=prefix_s)
    sounds = [speech(seconds, seed) for seed in range(batch)]
    inputs = made.processor.feature_extractor(sounds, sampling_rate=CODEC_RATE, return_tensors="pt")
    theirs = generated(made.hf_model, inputs)
    ours = written_for(made.model, inputs)
    assert torch.equal(ours, theirs)
    if seconds > 1:
        assert len(ours.unique()) > 5
    text = made.processor.tokenizer.decode(theirs[0], skip_special_tokens=True)
    assert made.model.decode_text(ours[0].tolist()) == text


@torch.inference_mode()
def test_bfloat16_is_that_of_transformers(made: Checkpoint, tmp_path: Path) -> None:
    """The codec stays in single precision, in both."""
    directory = tmp_path / "stt-1b-en_fr"
    hf_model = transformers.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(
        made.directory, dtype=torch.bfloat16
    ).eval()
    assert hf_model.codec_model.dtype == torch.float32
    hf_model.save_pretrained(directory)
    made.processor.save_pretrained(directory)
    model = load(directory)
    assert model.decoder.lm_head.weight.dtype == torch.bfloat16
    assert model.codec.downsample.conv.weight.dtype == torch.float32
    inputs = made.processor.feature_extractor(
        [speech(3.0, 4), speech(3.0, 5)], sampling_rate=CODEC_RATE, return_tensors="pt"
    )
    assert torch.equal(written_for(model, inputs), generated(hf_model, inputs))


# The front end.


def heard(model: Kyutai, sound: np.ndarray, sizes: Sequence[int]) -> Tensor:
    front_end, parts, begin = model.front_end(), [], 0
    for size in sizes:
        parts.append(front_end.push(sound[begin : begin + size]))
        begin += size
    return torch.cat([*parts, front_end.finish()])


@pytest.mark.parametrize(("delay_s", "prefix_s"), [(0.5, 0.0), (2.5, 1.0)])
def test_frames_are_those_that_transformers_reads(tmp_path: Path, delay_s: float, prefix_s: float) -> None:
    """All but the last, which it never gets to, and but for 2 ms in which the filter behind the speech rings."""
    made = make(tmp_path, delay_s=delay_s, prefix_s=prefix_s)
    sound = speech(2.317, 3, SAMPLE_RATE)
    upsampled = UpsampledStream().push(sound).numpy()
    theirs = made.processor.feature_extractor(upsampled, sampling_rate=CODEC_RATE, return_tensors="pt")
    expected = frames_of(list(theirs["input_values"][0].numpy()))[0, :-1]
    frames = heard(made.model, sound, [len(sound)])
    assert frames.shape == expected.shape
    difference = (frames - expected).flatten().abs()
    first = round(prefix_s * CODEC_RATE) + len(upsampled)
    ringing = slice(first, first + round(0.004 * CODEC_RATE) + 3)
    assert float(difference[ringing].max()) > 0
    difference[ringing] = 0
    assert float(difference.max()) == 0


@pytest.mark.parametrize("seed", range(3))
def test_sound_in_pieces_gives_the_same_frames(made: Checkpoint, seed: int) -> None:
    sound = speech(1.9, seed, SAMPLE_RATE)
    generator = np.random.default_rng(seed)
    sizes = [int(size) for size in generator.choice([1, 7, 160, 512, 1280, 4000], 200)]
    whole = heard(made.model, sound, [len(sound)])
    torch.testing.assert_close(heard(made.model, sound, sizes), whole, rtol=2**-23, atol=1e-12)


def test_nothing_said_is_silence_in_which_text_could_end(made: Checkpoint) -> None:
    features = made.model.features([np.zeros(0, np.float32), speech(0.5, 1, SAMPLE_RATE)])
    assert features.num_frames.tolist() == [int(1.5 / 0.08) - 1, int(2.0 / 0.08) - 1]
    assert float(features.values[0].abs().max()) == 0


def test_too_long_speech_is_refused(made: Checkpoint) -> None:
    with pytest.raises(SprachbundError, match=r"30\.1 s"):
        made.model.features([np.zeros(int(30.1 * SAMPLE_RATE), np.float32)])


# What it says of itself.


def test_languages_are_those_of_the_name(tmp_path: Path, made: Checkpoint) -> None:
    assert made.model.source_languages == ("en", "fr")
    assert made.model.capabilities.language_from_text
    english = make(tmp_path, name="stt-2.6b-en-trfs").model
    assert english.pairs() == {("en", "en")}
    assert not english.capabilities.language_from_text
    with pytest.raises(SprachbundError, match="'fr'"):
        english.prompt(Target(language="fr"))


def test_padding_and_marks_are_no_text(made: Checkpoint) -> None:
    tokens = torch.tensor([[0, 1, 2, 3, 4, 20]])
    assert made.model.is_text(tokens).tolist() == [[False, False, False, False, True, True]]

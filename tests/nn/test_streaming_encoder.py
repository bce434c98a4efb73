"""Chunk by chunk equals the whole; against plain attention; states that can be saved, stacked and moved."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from sprachbund.nn.conformer import Subsampling
from sprachbund.nn.streaming_conformer import (
    LEAD,
    SUBSAMPLING,
    ChunkConvolution,
    RelativeAttention,
    StreamingEncoder,
    StreamingShape,
    StreamState,
    StridingStem,
    Tier,
    distance_signals,
)

TIERS = [Tier(left=70, right=right) for right in (0, 1, 6, 13)]
SHAPE = StreamingShape(
    num_mel_bins=16, width=24, num_heads=3, num_layers=3, feed_forward_width=32, stem_channels=6
)
OFFLINE: dict[str, object] = {"convolution": "chunk", "subsampling": "striding_conv1d"}
"""Parts that are like those of the offline encoder."""
kinds = pytest.mark.parametrize("kind", [{}, OFFLINE], ids=["causal", "chunk"])


def encoder(seed: int = 0, **changes: object) -> StreamingEncoder:
    torch.manual_seed(seed)
    model = StreamingEncoder(StreamingShape(**{**vars(SHAPE), **changes})).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_bias"):
                parameter.normal_(std=0.5)
    return model


def mels(*lengths: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, SHAPE.num_mel_bins, generator=generator) for n in lengths]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(lengths)


@torch.no_grad()
def streamed(
    model: StreamingEncoder, mel: torch.Tensor, num_mel: torch.Tensor, tier: Tier
) -> list[torch.Tensor]:
    """States of every row, chunk by chunk, all rows in step."""
    size, state = tier.chunk * SUBSAMPLING, model.start(len(mel), tier)
    mel, num_mel = torch.nn.functional.pad(mel, (0, 0, LEAD, 0)), num_mel + LEAD
    chunks: list[list[torch.Tensor]] = [[] for _ in mel]
    for begin in range(0, mel.shape[1], size):
        piece = mel[:, begin : begin + size]
        piece = torch.nn.functional.pad(piece, (0, 0, 0, size - piece.shape[1]))
        states, num_frames, state = model.stream(piece, (num_mel - begin).clamp(0, size), state, tier)
        for row, (own, count) in enumerate(zip(states, num_frames.tolist(), strict=True)):
            chunks[row].append(own[:count])
    return [torch.cat(pieces) for pieces in chunks]


@kinds
@pytest.mark.parametrize("tier", TIERS, ids=str)
@torch.no_grad()
def test_a_stream_gives_what_the_whole_gives_under_its_mask(tier, kind):
    model = encoder(**kind)
    mel, num_mel = mels(1500, 993, 7, 112)
    states, num_frames = model(mel, num_mel, tier=tier)
    for row, own in enumerate(streamed(model, mel, num_mel, tier)):
        assert len(own) == num_frames[row] == math.ceil(int(num_mel[row]) / SUBSAMPLING)
        assert torch.allclose(own, states[row, : len(own)], atol=1e-4)


@kinds
@torch.no_grad()
def test_means_are_those_of_what_the_layers_read_and_give(kind):
    """Of a whole utterance, and of its chunks by their frames; as hooks hear the layers."""
    model, tier = encoder(**kind), TIERS[2]
    mel, num_mel = mels(1500, 993, 7)
    heard: list[torch.Tensor] = []
    hooks = [model.layers[0].register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))]
    hooks += [each.register_forward_hook(lambda *of: heard.append(of[2][0])) for each in model.layers]
    means: list[torch.Tensor] = []
    _, num_frames = model(mel, num_mel, means=means, tier=tier)
    for hook in hooks:
        hook.remove()
    for row, count in enumerate(num_frames.tolist()):
        expected = torch.stack([states[row, :count].double().mean(0) for states in heard]).float()
        torch.testing.assert_close(means[0][row], expected, atol=1e-5, rtol=1e-5)
    sums, size, state = torch.zeros_like(means[0]), tier.chunk * SUBSAMPLING, model.start(3, tier)
    mel, num_mel = torch.nn.functional.pad(mel, (0, 0, LEAD, 0)), num_mel + LEAD
    for begin in range(0, mel.shape[1], size):
        piece = torch.nn.functional.pad(
            mel[:, begin : begin + size], (0, 0, 0, max(0, begin + size - mel.shape[1]))
        )
        of_chunk: list[torch.Tensor] = []
        count = (num_mel - begin).clamp(0, size)
        _, frames, state = model.stream(piece, count, state, tier, means=of_chunk)
        sums += frames[:, None, None] * of_chunk[0]
    torch.testing.assert_close(sums / num_frames[:, None, None], means[0], atol=1e-4, rtol=1e-4)


@kinds
@torch.no_grad()
def test_a_chunk_does_not_wait_for_sound_that_only_the_next_one_needs(kind):
    """The 7 mel frames behind the last one that a chunk reads change nothing in it."""
    model, tier = encoder(**kind), TIERS[2]
    heard = (tier.chunk - 1) * SUBSAMPLING + 1
    mel, _ = mels(2 * tier.chunk * SUBSAMPLING)
    whole, num_frames = model(mel, torch.tensor([mel.shape[1]]), tier=tier)
    first = torch.nn.functional.pad(mel[:, :heard], (0, 0, LEAD, 0))
    assert first.shape[1] == tier.chunk * SUBSAMPLING
    states, count, _ = model.stream(first, torch.tensor([first.shape[1]]), model.start(1, tier), tier)
    assert int(count) == tier.chunk
    assert torch.allclose(states, whole[:, : tier.chunk], atol=1e-5)
    assert int(num_frames) == 2 * tier.chunk


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    left=st.integers(4, 20),
    right=st.integers(0, 3),
    kernel_size=st.sampled_from([1, 5, 9]),
    kind=st.sampled_from([{}, OFFLINE]),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_that_holds_for_any_shape(lengths, left, right, kernel_size, kind, seed):
    model, tier = (
        encoder(seed, kernel_size=kernel_size, scale_input=bool(seed % 2), **kind),
        Tier(left=left, right=right),
    )
    mel, num_mel = mels(*lengths, seed=seed)
    states, _ = model(mel, num_mel, tier=tier)
    for row, own in enumerate(streamed(model, mel, num_mel, tier)):
        assert torch.allclose(own, states[row, : len(own)], atol=1e-4)


@pytest.mark.parametrize("tier", TIERS, ids=str)
@torch.no_grad()
def test_a_frame_sees_its_chunk_and_its_past_and_nothing_else(tier):
    """Told by what a change of one mel frame changes; one layer, so that nothing is passed on."""
    model = encoder(num_layers=1, kernel_size=1)
    mel, num_mel = mels(200 * SUBSAMPLING)
    before, _ = model(mel, num_mel, tier=tier)
    place = 100
    mel[:, place * SUBSAMPLING] += 1.0
    changed = (model(mel, num_mel, tier=tier)[0] - before).abs().amax(-1)[0] > 1e-6
    first = place // tier.chunk * tier.chunk
    # The stem hands the change to one later frame, which others see too.
    last_seen = (place + 1) // tier.chunk * tier.chunk + tier.past + tier.chunk
    assert not changed[:first].any()
    assert changed[first : place + 1].all()
    assert not changed[last_seen:].any()
    assert changed[first + tier.past + tier.chunk - 1]


@kinds
@pytest.mark.parametrize("tier", [TIERS[2], Tier(left=100, right=99)], ids=str)
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(tier, kind):
    model = encoder(**kind)
    mel, num_mel = mels(300, 450)
    mel[0, 300:] = 7.0  # padding of features may hold anything
    both, _ = model(mel, num_mel, tier=tier)
    alone, count = model(mel[:1, :300], num_mel[:1], tier=tier)
    assert torch.allclose(both[0, : count[0]], alone[0], atol=1e-5)


@pytest.mark.parametrize("more", [0, 1, 3, 7])
@torch.no_grad()
def test_the_offline_subsampling_comes_one_frame_later(more):
    """Frame j is the offline one's j - 1, from the first frame of the sound to the last."""
    torch.manual_seed(0)
    shape = StreamingShape(**{**vars(SHAPE), **OFFLINE})  # type: ignore[arg-type]
    offline, stem = Subsampling(shape.num_mel_bins, shape.width), StridingStem(shape)
    stem.convolutions.load_state_dict(offline.convolutions.state_dict())
    stem.norm.weight.normal_()
    stem.norm.bias.normal_()
    mel, num_mel = mels(20 * SUBSAMPLING + more)
    frames, _ = offline(mel, num_mel)
    before = [torch.zeros(1, *size) for size in StridingStem.past_sizes(shape)]
    padded = torch.nn.functional.pad(mel, (0, 0, LEAD, 0))
    later, _ = stem(padded, before, torch.tensor([True]))
    assert later.shape[1] == frames.shape[1] == math.ceil(mel.shape[1] / SUBSAMPLING)
    assert torch.allclose(later[:, 1:], stem.norm(frames[:, :-1]), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 40])
@torch.no_grad()
def test_a_convolution_sees_half_a_kernel_before_and_the_later_frames_of_its_chunk(chunk):
    """Tap by tap; the second row has fewer frames."""
    torch.manual_seed(0)
    convolution = ChunkConvolution(6, 9)
    x, num_frames = torch.randn(2, 6, 4 + 23), [23, 10]
    valid = torch.arange(23) < torch.tensor(num_frames)[:, None]
    result = convolution.convolved(x, valid, chunk)
    taps, bias = convolution.depthwise.weight[:, 0], convolution.depthwise.bias
    for row, count in enumerate(num_frames):
        for frame in range(count):
            last = min(count, (frame // chunk + 1) * chunk) - 1
            seen = range(frame - 4, min(frame + 4, last) + 1)
            wanted = bias + sum(taps[:, 4 + other - frame] * x[row, :, 4 + other] for other in seen)
            assert torch.allclose(result[row, :, frame], wanted, atol=1e-5)


def test_a_kernel_that_sees_a_chunk_needs_a_centre():
    with pytest.raises(ValueError, match="kernel_size 8 is even"):
        StreamingShape(kernel_size=8, convolution="chunk")


@torch.no_grad()
def test_relative_attention_is_its_formula():
    """Every score written out: (q + u) k + (q + v) W r(i - j), arXiv 1901.02860, section 3.3."""
    torch.manual_seed(3)
    attention = RelativeAttention(12, 3)
    attention.content_bias.normal_()
    attention.distance_bias.normal_()
    past, chunk = 4, 3
    x = torch.randn(1, past + chunk, 12)
    keys, values = (attention.split_heads(part(x)) for part in (attention.key, attention.value))
    signals = distance_signals(past + chunk - 1, 1 - chunk, 12)
    allowed = torch.ones(1, 1, chunk, past + chunk, dtype=torch.bool)
    allowed[..., 0, -1] = False
    attended = attention(x[:, past:], keys, values, signals, allowed)
    query = attention.split_heads(attention.query(x))
    heads = []
    for h in range(3):
        rows = []
        for i in range(past, past + chunk):
            scores = []
            for j in range(past + chunk):
                signal = torch.stack(
                    [
                        f(torch.tensor((i - j) / 10_000 ** (2 * n / 12)))
                        for n in range(6)
                        for f in (torch.sin, torch.cos)
                    ]
                )
                by_distance = attention.distance(signal).view(3, 4)[h]
                score = (query[0, h, i] + attention.content_bias[h]) @ keys[0, h, j]
                score = score + (query[0, h, i] + attention.distance_bias[h]) @ by_distance
                scores.append(score / 2 if allowed[0, 0, i - past, j] else torch.tensor(-1e9))
            rows.append(torch.stack(scores).softmax(0) @ values[0, h])
        heads.append(torch.stack(rows))
    assert torch.allclose(attended[0], attention.out(torch.cat(heads, dim=1)), atol=1e-5)


@kinds
@torch.no_grad()
def test_gradients_flow_the_same_way_as_without(kind):
    model, tier = encoder(**kind), TIERS[1]
    mel, num_mel = mels(200)
    without, _ = model(mel, num_mel, tier=tier)
    with torch.enable_grad():
        states, _ = model(mel, num_mel, tier=tier)
        states.square().sum().backward()
    assert torch.allclose(states, without, atol=1e-5)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@kinds
@torch.no_grad()
def test_states_can_be_saved_stacked_and_taken_apart(kind):
    model, tier = encoder(**kind), TIERS[2]
    mel, _ = mels(4 * tier.chunk * SUBSAMPLING)
    pieces = mel.split(tier.chunk * SUBSAMPLING, dim=1)
    full = torch.tensor([tier.chunk * SUBSAMPLING])
    _, _, one = model.stream(pieces[0], full, model.start(1, tier), tier)
    _, _, two = model.stream(pieces[1], full, one, tier)
    one = StreamState.from_tensors(load(save(one.tensors())))
    both = StreamState.stack([one, two])
    states, _, after = model.stream(torch.cat([pieces[1], pieces[2]]), full.repeat(2), both, tier)
    # Products of another number of rows are summed in another order: some units of 1.2e-7 on values up to 3, by layer.
    assert torch.allclose(states[0], model.stream(pieces[1], full, one, tier)[0][0], atol=1e-5)
    assert torch.allclose(states[1], model.stream(pieces[2], full, two, tier)[0][0], atol=1e-5)
    assert torch.equal(after.take(torch.tensor([1])).num_past, torch.tensor([3 * tier.chunk]))


@torch.no_grad()
def test_the_published_tiers_keep_the_same_past_and_can_be_changed_under_way():
    model = encoder()
    assert {tier.past for tier in TIERS} == {70}
    mel, num_mel = mels(14 * SUBSAMPLING)
    slow, fast = TIERS[3], TIERS[1]
    _, _, state = model.stream(mel, num_mel, model.start(1, slow), slow)
    piece = mel[:, : fast.chunk * SUBSAMPLING]
    states, _, after = model.stream(piece, torch.tensor([piece.shape[1]]), state, fast)
    assert states.shape[1] == 2
    assert int(after.num_past) == 16


@torch.no_grad()
def test_a_tier_is_drawn_for_every_batch_in_training():
    torch.manual_seed(0)
    model = StreamingEncoder(SHAPE, TIERS)
    mel, num_mel = mels(30 * SUBSAMPLING)
    by_tier = [model(mel, num_mel, tier=tier)[0] for tier in TIERS]
    seen = {
        min(range(4), key=lambda n: float((by_tier[n] - result).abs().sum()))
        for result in (model(mel, num_mel)[0] for _ in range(40))
    }
    assert seen == {0, 1, 2, 3}
    assert torch.equal(model.eval()(mel, num_mel)[0], by_tier[0])


@pytest.mark.slow
@torch.no_grad()
def test_the_past_never_grows_beyond_the_left_context():
    model = encoder(num_layers=1)
    for tier in TIERS:
        state, size = model.start(1, tier), tier.chunk * SUBSAMPLING
        for _ in range(300):
            _, _, state = model.stream(torch.randn(1, size, 16), torch.tensor([size]), state, tier)
        assert state.keys.shape[3] == tier.past <= tier.left
        assert int(state.num_past) == tier.past


def test_what_does_not_fit_is_said():
    model, tier = encoder(), TIERS[2]
    full = torch.tensor([tier.chunk * SUBSAMPLING])
    with pytest.raises(ValueError, match="a chunk of 0 mel frames"):
        model.stream(torch.zeros(1, 0, 16), torch.tensor([0]), model.start(1, tier), tier)
    mel = torch.zeros(1, int(full), 16)
    with pytest.raises(ValueError, match="another model, or keeps"):
        model.stream(mel, full, model.start(1, Tier(left=20, right=6)), tier)
    with pytest.raises(ValueError, match="another model, or keeps"):
        model.stream(mel, full, encoder(num_layers=2).start(1, tier), tier)
    with pytest.raises(ValueError, match="2 of state"):
        model.stream(mel, full, model.start(2, tier), tier)
    with pytest.raises(ValueError, match="too much or missing"):
        StreamState.from_tensors({"keys": mel})
    with pytest.raises(ValueError, match="back needs a whole chunk"):
        Tier(left=5, right=5)

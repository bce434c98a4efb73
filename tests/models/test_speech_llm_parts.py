"""Encoders, projector, what is said about languages, and speech LLMs as the rest of the software uses them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.audio.spans import Span
from sprachbund.data.batch import MixedLanguages
from sprachbund.data.language_spans import check_spans
from sprachbund.decoding.languages import LanguageTracker, Request
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.pipeline import translate_spans
from sprachbund.decoding.recordings import RecordedSpan, RecordingState
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import joined, routed_s
from sprachbund.models.speech_llm import (
    LossWeights,
    ProjectorOptions,
    dense,
    plain_mixture,
)
from sprachbund.models.speech_llm.checkpoints import is_adapter
from sprachbund.models.speech_llm.llm import LanguageModel
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.objective import smoothed, stretches, token_languages
from sprachbund.models.speech_llm.projector import Projector
from sprachbund.nn.moe import language_losses
from tests.models.speech_llm_support import (
    ENCODERS,
    GROUPS,
    LLMS,
    make_batch,
    make_llm,
    make_model,
    move_adapters,
    speech,
)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_is_heard_whatever_its_neighbours_and_every_adapter_moves(kind: str) -> None:
    model = move_adapters(make_model(kind))
    sounds = speech(0.31, 1.2, 0.02)
    together = model.encode(model.features(sounds))
    for b, one in enumerate(sounds):
        alone = model.encode(model.features([one]))
        n = int(alone.num_frames[0])
        assert int(together.num_frames[b]) == n >= 1
        assert abs(n * model.frame_s - len(one) / 16_000) <= 2 * model.frame_s
        torch.testing.assert_close(together.states[b, :n], alone.states[0], rtol=1e-3, atol=1e-4)
    model.loss(make_batch(model, [0], ["hola"], [0], [1.2])).total.backward()
    adapters = {name: p for name, p in model.named_parameters() if is_adapter(name)}
    assert {name.split(".")[0] for name in adapters} == {"encoder", "llm"}
    unheard = [name for name, p in adapters.items() if p.grad is None or p.grad.abs().max() == 0]
    assert not unheard
    frozen = [p for n, p in model.named_parameters() if not is_adapter(n) and not n.startswith("projector.")]
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = make_model("wavlm").train()
    assert model.projector.training
    assert not model.encoder.training
    assert not model.llm.training
    features = model.features(speech(0.5))
    assert torch.equal(model.encode(features).states, model.encode(features).states)


def test_the_projector_written_out() -> None:
    torch.manual_seed(0)
    options = ProjectorOptions(groups=(("es",), ("en",)), group_size=2, hidden_width=6, spliced_frames=3)
    projector = Projector(4, 8, options)
    states = torch.randn(2, 7, 4)
    tokens = projector(states, torch.tensor([7, 4]))
    assert tokens.num_tokens.tolist() == [3, 2]
    for b, n in enumerate((7, 4)):
        padded = torch.zeros(9, 4)
        padded[:n] = states[b, :n]
        x = projector.expand(padded.view(3, 12)[: (n + 2) // 3])
        for layer in projector.layers:
            p = layer.router.score(layer.norm(x)).softmax(-1)
            best, chosen = p.topk(2)
            rows = []
            for t, row in enumerate(layer.norm(x)):
                out = [layer.experts.branches[e](row[None])[0] for e in chosen[t].tolist()]
                rows.append(sum(w * o for w, o in zip(best[t] / best[t].sum(), out, strict=True)))
            x = x + torch.stack(rows)
        torch.testing.assert_close(tokens.states[b, : len(x)], x)
        assert tokens.states[b, len(x) :].abs().sum() == 0


def test_the_router_learns_planted_languages() -> None:
    torch.manual_seed(0)
    options = ProjectorOptions(groups=GROUPS, group_size=2, hidden_width=8, spliced_frames=1)
    projector = Projector(6, 12, options)
    centres = torch.randn(3, 6)
    language = torch.arange(240) % 3
    states = (centres[language] + 0.5 * torch.randn(240, 6))[None]
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.01)
    groups = torch.eye(3, dtype=torch.bool)[language]
    for _ in range(40):
        tokens = projector(states, torch.tensor([240]))
        loss = sum(language_losses(routing, groups).mean() for routing in tokens.routings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = projector(states, torch.tensor([240])).group_probs()[0].argmax(-1) == language
    assert right.float().mean() > 0.9


def test_baselines_are_the_same_layer_with_other_numbers() -> None:
    options = ProjectorOptions(groups=(("es",), ("en",)), group_size=4, hidden_width=10)
    sizes = {}
    kinds = {
        "ours": options,
        "plain": plain_mixture(options),
        "active": dense(options, "active"),
        "total": dense(options, "total"),
    }
    for name, one in kinds.items():
        projector = Projector(4, 8, one)
        sizes[name] = sum(
            b.expand.weight.numel() + b.contract.weight.numel()
            for layer in projector.layers
            for b in layer.experts.branches
        )
        assert one.languages == ("es", "en")
        assert projector(torch.randn(1, 5, 4), torch.tensor([5])).states.shape == (1, 1, 8)
    assert sizes["ours"] == sizes["plain"] == sizes["total"] == 4 * sizes["active"]


# Languages.


def test_declared_languages_keep_the_other_groups_silent() -> None:
    model = make_model()
    features = model.features(speech(1.3, 0.7))
    memory = model.encode(features, languages=("es", "de"))
    valid = memory.group_probs.sum(-1) > 0
    assert memory.group_probs[..., 2].max() == 0
    torch.testing.assert_close(memory.group_probs[valid].sum(-1), torch.ones(int(valid.sum())))
    assert {name for row in model.routes(memory) for _, _, name in row} <= {"es", "en+de"}
    log_probs = model.language_log_probs(memory)
    assert log_probs.exp().sum(-1).max().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(log_probs[:, 1], log_probs[:, 2])  # they share a group
    assert log_probs.isfinite().all()
    everything = model.encode(features, languages=model.source_languages)
    torch.testing.assert_close(everything.states, model.encode(features).states)


def test_a_language_without_a_group_is_named_with_those_that_have_one() -> None:
    model = make_model()
    with pytest.raises(SprachbundError, match=r"'fr' has no group of experts.*es \(Spanish\).*zh"):
        model.encode(model.features(speech(0.5)), languages=("es", "fr"))
    with pytest.raises(SprachbundError, match="no language is declared"):
        model.allowed_groups(())
    with pytest.raises(SprachbundError, match="'fr' has no group"):
        SpeechLLMExamples(model, ["fr"])
    with pytest.raises(SprachbundError, match="writes none of zh, only en, de, es"):
        SpeechLLMExamples(model, ["zh"])


def test_routes_follow_planted_mass_and_are_what_evaluation_takes() -> None:
    probs = torch.tensor([[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 3 + [[0.6, 0.4]] * 2)
    result = stretches(probs, ("es", "en"), 0.1, 0.85)
    assert [(round(s, 3), round(e, 3), name) for s, e, name in result] == [
        (0.0, 0.4, "es"),
        (0.4, 0.7, "en"),
        (0.7, 0.85, "es"),
    ]
    routes = joined(result)
    assert routed_s(0.4, 0.7, "en", routes) == pytest.approx(0.3)
    assert routed_s(0.0, 0.85, "es", routes) == pytest.approx(0.55)
    flicker = probs.clone()
    flicker[2] = torch.tensor([0.4, 0.6])
    assert len(stretches(flicker, ("es", "en"), 0.1, 0.9)) == 5
    assert len(stretches(smoothed(flicker, 3), ("es", "en"), 0.1, 0.9)) == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.floats(0.05, 1.0), st.sampled_from([1, 3, 5]))
def test_stretches_cover_the_speech_once_and_neighbours_differ(
    groups: list[int], cut: float, neighbours: int
) -> None:
    probs = smoothed(torch.eye(3)[groups], neighbours)
    duration_s = 0.1 * (len(groups) - 1 + cut)
    result = stretches(probs, ("es", "en", "zh"), 0.1, duration_s)
    assert result[0][0] == 0
    assert result[-1][1] == pytest.approx(duration_s)
    assert all(a[1] == b[0] and a[2] != b[2] for a, b in pairwise(result))
    for place, group in enumerate(probs.argmax(-1).tolist()):
        if (middle := 0.1 * (place + 0.5)) < duration_s:
            assert [name for s, e, name in result if s <= middle < e] == [("es", "en", "zh")[group]]
    assert len(joined(result)) == len(result)


def test_routes_and_spans_of_a_memory_cover_the_speech() -> None:
    model = make_model()
    memory = model.encode(model.features(speech(1.3, 0.7)))
    for kind in (model.routes, model.spans):
        for row, duration_s in zip(kind(memory, (1.3, 0.7)), (1.3, 0.7), strict=True):
            assert row[0][0] == 0
            assert row[-1][1] == pytest.approx(duration_s)
            assert all(a[1] == b[0] and a[2] != b[2] for a, b in pairwise(row))
    chosen = memory.select(torch.tensor([1]))
    assert model.routes(chosen) == [model.routes(memory)[1]]


def test_mixed_batches_forgive_all_their_languages_and_frames_may_have_their_own() -> None:
    model = make_model()
    plain = make_batch(model, [0, 3], ["hola", "a"], [0, 0], [1.3, 0.7])
    every = torch.ones(2, 4, dtype=torch.bool)
    mixed = replace(plain, mixture=MixedLanguages(every, ((), ())))
    assert model.loss(mixed).parts["router language"] == pytest.approx(0, abs=1e-4)
    pairs = torch.tensor([[True, False, False, True], [False, True, True, False]])
    two = replace(plain, mixture=MixedLanguages(pairs, ((), ())))
    own = model.loss(plain).heads["language"].total
    assert model.loss(two).parts["router language"].item() > 0
    spans = (((0.0, 2.0, 0),), ((0.0, 1.0, 3),))  # what no span covers is forgiven as before
    by_frame = replace(plain, mixture=MixedLanguages(every, spans))
    assert model.loss(by_frame).heads["language"].total == pytest.approx(0, abs=1e-4)  # the flag is off
    model.losses = LossWeights(by_frame=True)
    assert model.loss(by_frame).heads["language"].total.item() == pytest.approx(own.item(), rel=1e-5)
    nobody = make_batch(model, [-1], ["a"], [0], [0.7])
    assert model.loss(nobody).heads["language"].total == pytest.approx(0, abs=1e-5)
    moved = by_frame.to("cpu").mixture
    assert moved is not None
    assert moved.spans == spans


def test_spans_have_to_lie_in_the_audio_one_behind_the_other() -> None:
    check_spans([(0.0, 1.0, "es"), (1.0, 2.02, "en")], 2.0)
    with pytest.raises(SprachbundError, match=r"span of en from 1 to 2.5 s does not lie in 2 s"):
        check_spans([(0.0, 1.0, "es"), (1.0, 2.5, "en")], 2.0)
    with pytest.raises(SprachbundError, match=r"en from 0.5 s begins before the last one ends, at 1 s"):
        check_spans([(0.0, 1.0, "es"), (0.5, 2.0, "en")], 2.0)
    assert token_languages([(0.0, 0.32, 1), (0.5, 0.7, 0)], 5, 0.16).tolist() == [1, 1, -1, 0, -1]


# As the rest of the software uses it.


def test_spans_become_segments_like_those_of_any_family() -> None:
    model = make_model()
    options = DecodingOptions(max_tokens=5, guard=GuardOptions(enabled=False))
    for source in (None, "es"):
        recording = RecordingState(
            request=Request(source=source, targets=("en", "de"), allowed=None),
            options=options,
            tracker=LanguageTracker(model.source_languages, None, 3),
        )
        spans = [
            RecordedSpan(
                recording=recording,
                span=Span(start_s=float(i), end_s=i + len(s) / 16_000, speech_probability=1.0),
                samples=s,
            )
            for i, s in enumerate(speech(0.7, 0.9))
        ]
        result = translate_spans(model, spans)
        assert recording.error is None
        assert [[target for target, _ in row] for row in result] == [["en", "de"]] * 2
        assert all(segment.source_language in model.source_languages for row in result for _, segment in row)


def test_examples_are_what_the_loss_is_made_of() -> None:
    model = make_model()
    examples = SpeechLLMExamples(model, ["es", "en"])
    assert (examples.number("zh") if "zh" in examples.source_languages else examples.number("en")) == 1
    token, row = examples.row(" hola ", "en", "es")
    assert (token, model.decode_text(row), row[-1]) == (2, "hola", model.end_token)
    features, length = examples.features(speech(0.5)[0], lambda x: x)
    assert features.shape == (length, 80)
    wanted = model.features(speech(0.5))
    torch.testing.assert_close(features, wanted.values[0])
    assert not any(p.numel() for p in examples._features.parameters())
    samples, num_samples = SpeechLLMExamples(make_model("wavlm"), ["es"]).features(
        speech(0.5)[0], lambda x: x * np.nan
    )
    assert samples.shape == (num_samples, 1)
    assert samples.isfinite().all()


@pytest.mark.parametrize("kind", LLMS)
def test_layers_are_those_of_the_type(kind: str) -> None:
    model = LanguageModel(make_llm(kind))
    assert len(model.layers) == 2
    model.model.config.model_type = "perceptron"
    with pytest.raises(
        SprachbundError, match="type 'perceptron' is not known here; take one of apertus, arcee, "
    ):
        _ = model.layers

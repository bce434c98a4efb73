"""Our model against transformers', and against itself in other batches."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.batch import Batch
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Features, Target
from sprachbund.models.seamless import Seamless
from sprachbund.research.gradient_sharing.gradients import GradientExample, choose_modules, decoder_loss

Pair = tuple[Any, Seamless]
LENGTHS = (61, 8, 7, 33, 1, 40, 57, 16)  # version 2 of `support` sees chunks of 16 frames and one to the left
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def make_features(lengths: tuple[int, ...] = LENGTHS) -> Features:
    """Random features; the padding holds large numbers, which nothing may read."""
    generator = torch.Generator().manual_seed(3)
    values = torch.full((len(lengths), max(lengths), 160), 7.0)
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, 160, generator=generator)
    return Features(values=values, num_frames=torch.tensor(lengths))


def one(features: Features, row: int) -> Features:
    length = int(features.num_frames[row])
    return Features(
        values=features.values[row : row + 1, :length], num_frames=features.num_frames[row : row + 1]
    )


def rows_of_tokens(model: Seamless, num_rows: int, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    text = torch.randint(4, 100, (num_rows, length), generator=generator)
    prompt = torch.tensor([model.prompt(Target(language="fr"))]).expand(num_rows, -1)
    return torch.cat([prompt, text], dim=1)


@torch.inference_mode()
def test_memory_and_logits_of_whole_rows_equal_those_of_transformers(pair: Pair) -> None:
    hf_model, model = pair
    features = make_features()
    for row in range(len(LENGTHS)):
        alone = one(features, row)
        tokens = rows_of_tokens(model, 1)
        theirs = hf_model(
            input_features=alone.values,
            attention_mask=torch.ones(alone.values.shape[:2], dtype=torch.long),
            decoder_input_ids=tokens,
        )
        memory = model.encode(alone)
        torch.testing.assert_close(memory.states, theirs.encoder_last_hidden_state, **TOLERANCE)
        assert memory.num_frames is not None
        assert memory.num_frames.tolist() == [theirs.encoder_last_hidden_state.shape[1]]
        assert theirs.logits.std() > 1
        torch.testing.assert_close(model(alone, tokens), theirs.logits, **TOLERANCE)


@torch.inference_mode()
def test_every_cached_step_equals_that_of_transformers(pair: Pair) -> None:
    hf_model, model = pair
    alone = one(make_features(), 0)
    tokens = rows_of_tokens(model, 1)
    cache = model.start(model.encode(alone))
    past, encoded = None, hf_model.speech_encoder(input_features=alone.values)
    for first, last in [(0, 2), *[(i, i + 1) for i in range(2, tokens.shape[1])]]:
        theirs = hf_model(
            encoder_outputs=encoded,
            decoder_input_ids=tokens[:, first:last],
            past_key_values=past,
            use_cache=True,
        )
        past = theirs.past_key_values
        torch.testing.assert_close(model.step(tokens[:, first:last], cache), theirs.logits, **TOLERANCE)


@torch.inference_mode()
def test_a_ragged_batch_of_eight_equals_eight_singles(pair: Pair) -> None:
    model = pair[1]
    features = make_features()
    tokens = rows_of_tokens(model, len(LENGTHS))
    together = model(features, tokens)
    alone = torch.cat([model(one(features, i), tokens[i : i + 1]) for i in range(len(LENGTHS))])
    torch.testing.assert_close(together, alone, **TOLERANCE)


@torch.inference_mode()
def test_steps_of_several_tokens_rewinds_and_rows_of_unlike_length_change_nothing(pair: Pair) -> None:
    model = pair[1]
    features = make_features()
    memory = model.encode(features)
    tokens = rows_of_tokens(model, len(LENGTHS) * 2)
    states = memory.states.repeat_interleave(2, 0)
    assert memory.num_frames is not None
    whole = model.decoder.logits(model.decoder(tokens, states, memory.num_frames.repeat_interleave(2)))
    cache = model.start(memory, rows_per_memory=2, capacity=tokens.shape[1])
    model.step(tokens[:, :6], cache)
    held = torch.arange(len(tokens)) % 5 + 1
    cache.rewind(held)
    chosen = torch.stack([tokens[r, n : n + 4] for r, n in enumerate(held)])
    got = model.step(chosen, cache)
    wanted = torch.stack([whole[r, n : n + 4] for r, n in enumerate(held)])
    torch.testing.assert_close(got, wanted, **TOLERANCE)
    kept = torch.tensor([5, 0])
    cache.keep(kept)
    rows = torch.tensor([10, 11, 0, 1])
    got = model.step(torch.stack([tokens[r, held[r] + 4 : held[r] + 5] for r in rows]), cache)
    wanted = torch.stack([whole[r, held[r] + 4 : held[r] + 5] for r in rows])
    torch.testing.assert_close(got, wanted, **TOLERANCE)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_search_finds_what_generate_finds(
    pair: Pair, beam_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_model, model = pair
    suppressed = model.suppressed(Target(language="fr")) & (beam_size == 1)
    # With suppressed tokens our scores are over what is left, theirs over everything: beams may differ rightly.
    monkeypatch.setattr(model, "suppressed", lambda target: suppressed)
    features = make_features()
    targets = [[Target(language="fr"), Target(language="zh-Hant")] for _ in LENGTHS]
    options = DecodingOptions(beam_size=beam_size, length_penalty=0 if beam_size > 1 else 1)
    with torch.inference_mode():
        result = search(model, model.encode(features), targets, options)
    num_equal = 0
    for row, hypotheses in enumerate(result):
        for code, hypothesis in zip(("fra", "cmn_Hant"), hypotheses, strict=True):
            theirs = hf_model.generate(
                input_features=one(features, row).values,
                tgt_lang=code,
                num_beams=beam_size,
                do_sample=False,
                length_penalty=0.0,
                early_stopping="never" if beam_size > 1 else False,
                suppress_tokens=suppressed.nonzero().flatten().tolist() or None,
            )[0].tolist()
            ours = [*hypothesis.tokens, *([model.end_token] if hypothesis.finished else [])]
            assert theirs[:2] == model.prompt(Target(language=("fr" if code == "fra" else "zh-Hant")))
            if beam_size > 1 and not (hypothesis.finished and theirs[-1] == model.end_token):
                continue  # ours prefers rows that end over rows cut at the limit, theirs does not
            assert theirs[2:] == ours
            num_equal += 1
    assert num_equal >= (2 if beam_size > 1 else 2 * len(LENGTHS))
    assert any(h.finished for row in result for h in row)
    assert len({h.tokens for row in result for h in row}) > 4


def test_it_is_a_family(pair: Pair) -> None:
    model = pair[1]
    assert isinstance(model, Family)
    assert model.frame_s == pytest.approx(0.16)
    assert model.max_tokens == 2 + 24  # as `generate` would go on for
    assert ("et", "fr") in model.pairs()
    assert ("lb", "en") in model.pairs(), "spoken, though never written"
    assert ("en", "lb") not in model.pairs()
    assert model.prompt(Target(language="ar", source="de")) == [3, model.tokens.language_token("ar")]
    memory = model.encode(make_features((9,)))
    log_probs = model.language_log_probs(memory)
    assert log_probs.shape == (1, len(model.source_languages))
    assert float(log_probs.exp().sum()) == pytest.approx(1)
    assert log_probs.unique().numel() == 1
    assert model.no_speech_log_prob(torch.zeros(1, 5)) is None


def test_languages_it_does_not_know_are_refused(pair: Pair) -> None:
    model = pair[1]
    with pytest.raises(SprachbundError, match=r"does not write 'de'; it writes ajp .*fr \(French\)"):
        model.prompt(Target(language="de"))
    with pytest.raises(SprachbundError, match=r"does not hear 'tlh'.*source_languages"):
        model.prompt(Target(language="fr", source="tlh"))


def test_only_text_and_the_end_may_be_emitted(pair: Pair) -> None:
    model = pair[1]
    allowed = (~model.suppressed(Target(language="fr"))).nonzero().flatten().tolist()
    names = model.tokens.tokenizer.convert_ids_to_tokens(allowed)
    assert model.end_token in allowed
    assert not {"<pad>", "<unk>", "<s>", "__fra__", "__cmn_Hant__"} & set(names)
    assert len(allowed) == model.tokens.vocabulary_size - 3 - 8


def test_features_equal_those_of_transformers(pair: Pair) -> None:
    model = pair[1]
    rng = np.random.default_rng(0)
    samples = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (SAMPLE_RATE, 24_240, 4_160, 9_999)]
    features = model.features(samples)
    for row, sound in enumerate(samples):
        theirs = transformers.SeamlessM4TFeatureExtractor()(
            sound, sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        length = int(theirs["attention_mask"].sum())
        assert int(features.num_frames[row]) == length
        torch.testing.assert_close(
            features.values[row, :length], theirs["input_features"][0, :length], rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("num_samples", [0, 1, 399, 400, 800, 1100])
def test_the_shortest_sounds_have_a_finite_memory(pair: Pair, num_samples: int) -> None:
    model = pair[1]
    features = model.features([np.ones(num_samples, np.float32), np.zeros(num_samples, np.float32)])
    assert features.num_frames.min() >= 1
    assert model.encode(features).states.isfinite().all()


def test_speech_longer_than_the_window_is_refused(pair: Pair) -> None:
    with pytest.raises(SprachbundError, match=r"lasts 31\.0 s, a window 30; cut it"):
        pair[1].features([np.zeros(31 * SAMPLE_RATE, np.float32)])


def make_batch(model: Seamless) -> Batch:
    features = make_features((20, 33))
    tokens = torch.tensor([[5, 9, 11, 3], [44, 3, 0, 0], [7, 3, 0, 0], [8, 21, 3, 0]])
    return Batch(
        features=features.values,
        num_frames=features.num_frames,
        source_language=torch.tensor([0, 1]),
        targets=tokens,
        num_targets=torch.tensor([4, 2, 2, 3]),
        target_language=torch.tensor([model.tokens.language_token(t) for t in ("fr", "et", "fr", "en")]),
    )


def test_the_loss_is_that_of_transformers_without_the_language(pair: Pair) -> None:
    hf_model, model = pair
    batch = make_batch(model)
    loss = model.loss(batch)
    wanted = torch.zeros(())
    for row in range(4):
        alone = one(Features(values=batch.features, num_frames=batch.num_frames), row // 2)
        text = batch.targets[row, : batch.num_targets[row]]
        given = torch.cat([torch.tensor([3]), batch.target_language[row : row + 1], text[:-1]])
        logits = hf_model(input_features=alone.values, decoder_input_ids=given[None]).logits
        wanted = wanted + F.cross_entropy(logits[0, 1:], text, reduction="sum")
    assert loss.num_tokens == 11
    torch.testing.assert_close(loss.total, wanted, **TOLERANCE)


def test_gradients_reach_the_second_feed_forwards_and_agree_with_transformers(pair: Pair) -> None:
    hf_model, model = pair
    batch = make_batch(model)
    name = "encoder.layers.1.feed_forward_out"
    module = dict(model.named_modules())[name]
    (ours,) = torch.autograd.grad(model.loss(batch).total, [module.expand.weight])
    weight = hf_model.speech_encoder.encoder.layers[1].ffn2.intermediate_dense.weight
    assert weight.data_ptr() == module.expand.weight.data_ptr()
    loss = torch.zeros(())
    for row in range(4):
        alone = one(Features(values=batch.features, num_frames=batch.num_frames), row // 2)
        text = batch.targets[row, : batch.num_targets[row]]
        given = torch.cat([torch.tensor([3]), batch.target_language[row : row + 1], text[:-1]])
        logits = hf_model(input_features=alone.values, decoder_input_ids=given[None]).logits
        loss = loss + F.cross_entropy(logits[0, 1:], text, reduction="sum")
    (theirs,) = torch.autograd.grad(loss, [weight])
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_gradient_analysis_finds_its_feed_forwards_and_its_loss(pair: Pair) -> None:
    model = pair[1]
    assert list(choose_modules(model)) == [f"encoder.layers.{i}.feed_forward_out" for i in range(2)]
    rng = np.random.default_rng(1)
    spoken = [
        GradientExample(
            samples=0.1 * rng.standard_normal(n).astype(np.float32), text=text, source="lb", target=target
        )
        for n, text, target in [(9_000, "le chien court", "fr"), (16_000, "koer jookseb", "et")]
    ]
    total, num_tokens = decoder_loss(model, spoken)
    targets = [torch.tensor(model.target_tokens(s.text)) for s in spoken]
    features = model.features([s.samples for s in spoken])
    batch = replace(
        make_batch(model),
        features=features.values,
        num_frames=features.num_frames,
        targets=torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
        num_targets=torch.tensor([len(t) for t in targets]),
        target_language=torch.tensor([model.tokens.language_token(s.target) for s in spoken]),
    )
    loss = model.loss(batch)
    assert num_tokens == loss.num_tokens == sum(map(len, targets))
    torch.testing.assert_close(total, loss.attention)


def test_half_precision_runs_through(pair: Pair) -> None:
    model = deepcopy(pair[1]).to(torch.bfloat16)
    with torch.inference_mode():
        logits = model(make_features((20, 9)), rows_of_tokens(model, 2))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()

"""Our translators of text against transformers', and against themselves in other batches."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.decoding.drafts.listed import TextDraft, output_rows
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.texts import translate_texts
from sprachbund.engines.choice import engine_for, on_torch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Features, Target
from sprachbund.nn.text_to_text import MbartDecoder
from tests.engines.support import compute_linears, needs_native, quantized_linear, relative_error
from tests.models.translation.support import MAX_LENGTH, SIZES, TEXTS, Checkpoint

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def rows_of_tokens(checkpoint: Checkpoint, target: Target, num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    most = min(100, checkpoint.hf_model.config.vocab_size)
    text = torch.randint(4, most, (num_rows, 9), generator=generator)
    return torch.cat([torch.tensor([checkpoint.model.prompt(target)]).expand(num_rows, -1), text], dim=1)


def generated(checkpoint: Checkpoint, text: str, target: Target, **options: Any) -> list[int]:
    assert target.source is not None
    prompt = checkpoint.prompt(target.language)
    assert prompt == checkpoint.model.prompt(target)
    row: list[int] = checkpoint.hf_model.generate(
        **checkpoint.source([text], target.source, target.language),
        decoder_input_ids=torch.tensor([prompt]),
        do_sample=False,
        forced_eos_token_id=None,
        **options,
    )[0].tolist()
    return row[len(prompt) :]


def logits(
    checkpoint: Checkpoint,
    features: Features,
    tokens: torch.Tensor,
    target: Target,
    weights: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Logits after each token of rows, one for each text, which all want the same."""
    model = checkpoint.model
    cache = model.start(model.encode(features), capacity=tokens.shape[1], targets=[target] * len(tokens))
    return model.step(tokens, cache, weights)


def test_sources_are_the_tokens_of_transformers(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    for source, target in checkpoint.pairs:
        theirs = checkpoint.source([*TEXTS], source, target)
        features = checkpoint.features([*TEXTS], source)
        ours = features.values.clone()
        if model.tokens.marked is not None:
            ours[:, model.tokens.language_index] = model.tokens.language_token(
                source if model.tokens.marked == "source" else target
            )
        assert torch.equal(ours, theirs["input_ids"])
        assert torch.equal(features.num_frames, theirs["attention_mask"].sum(1))


@torch.inference_mode()
def test_memory_and_logits_of_whole_rows_equal_those_of_transformers(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    for pair in checkpoint.pairs:
        target = checkpoint.target(*pair)
        tokens = rows_of_tokens(checkpoint, target, 1)
        for text in TEXTS:
            theirs = checkpoint.hf_model(**checkpoint.source([text], *pair), decoder_input_ids=tokens)
            features = checkpoint.features([text], pair[0])
            memory = model.encode(features)
            if model.tokens.marked != "target":
                torch.testing.assert_close(memory.states, theirs.encoder_last_hidden_state, **TOLERANCE)
                states = model.decoder(tokens, memory.states, memory.num_frames)
                torch.testing.assert_close(model.decoder.logits(states), theirs.logits, **TOLERANCE)
            assert theirs.logits.std() > 1
            torch.testing.assert_close(
                logits(checkpoint, features, tokens, target), theirs.logits, **TOLERANCE
            )


@torch.inference_mode()
def test_a_ragged_batch_equals_singles_and_single_steps_equal_one(checkpoint: Checkpoint) -> None:
    model, target = checkpoint.model, checkpoint.target("de", "en")
    features = checkpoint.features([*TEXTS], "de")
    tokens = rows_of_tokens(checkpoint, target, len(TEXTS))
    weights: list[torch.Tensor] = []
    together = logits(checkpoint, features, tokens, target, weights)
    for row, text in enumerate(TEXTS):
        alone = logits(checkpoint, checkpoint.features([text], "de"), tokens[row : row + 1], target)
        torch.testing.assert_close(together[row : row + 1], alone, **TOLERANCE)
    padded = replace(features, values=features.values.clone())
    for row, length in enumerate(features.num_frames.tolist()):
        padded.values[row, length:] = 7  # which nothing may read
    torch.testing.assert_close(logits(checkpoint, padded, tokens, target), together, **TOLERANCE)
    cache = model.start(model.encode(features), targets=[target] * len(tokens))
    steps = torch.cat([model.step(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])], dim=1)
    torch.testing.assert_close(steps, together, **TOLERANCE)
    shape = (len(TEXTS), SIZES["decoder_attention_heads"], tokens.shape[1], features.values.shape[1])
    assert [layer.shape for layer in weights] == [shape] * SIZES["decoder_layers"]
    for layer in weights:
        torch.testing.assert_close(layer.sum(-1), torch.ones(shape[:3]))
        for row, length in enumerate(features.num_frames.tolist()):
            assert not layer[row, :, :, length:].any()


@torch.inference_mode()
def test_weights_of_cross_attention_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    target = checkpoint.target("de", "en")
    tokens = rows_of_tokens(checkpoint, target, 1)
    checkpoint.hf_model.set_attn_implementation("eager")
    theirs = checkpoint.hf_model(
        **checkpoint.source([TEXTS[1]], "de", "en"), decoder_input_ids=tokens, output_attentions=True
    ).cross_attentions
    checkpoint.hf_model.set_attn_implementation("sdpa")
    weights: list[torch.Tensor] = []
    logits(checkpoint, checkpoint.features([TEXTS[1]], "de"), tokens, target, weights)
    for ours, wanted in zip(weights, theirs, strict=True):
        torch.testing.assert_close(ours, wanted, **TOLERANCE)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_search_finds_what_generate_finds(
    checkpoint: Checkpoint, beam_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint.model
    suppressed = model.suppressed(Target(language="en")) & (beam_size == 1)
    # With suppressed tokens our scores are over what is left, theirs over everything: beams may differ rightly.
    monkeypatch.setattr(model, "suppressed", lambda target: suppressed)
    result, num_equal = [], 0
    for source, language in checkpoint.pairs:
        target = checkpoint.target(source, language)
        with torch.inference_mode():
            memory = model.encode(checkpoint.features([*TEXTS], source))
            options = DecodingOptions(beam_size=beam_size, length_penalty=0 if beam_size > 1 else 1)
            hypotheses = [row[0] for row in search(model, memory, [[target] for _ in TEXTS], options)]
        for text, hypothesis in zip(TEXTS, hypotheses, strict=True):
            theirs = generated(
                checkpoint, text, target,
                num_beams=beam_size,
                length_penalty=0.0,
                early_stopping="never" if beam_size > 1 else False,
                suppress_tokens=suppressed.nonzero().flatten().tolist() or None,
            )  # fmt: skip
            result.append(hypothesis)
            if beam_size > 1 and not (hypothesis.finished and theirs[-1] == model.end_token):
                continue  # ours prefers rows that end over rows cut at the limit, theirs does not
            assert theirs == [*hypothesis.tokens, *([model.end_token] if hypothesis.finished else [])]
            num_equal += 1
    assert num_equal >= (2 if beam_size > 1 else len(result))
    assert any(h.finished for h in result)
    assert len({h.tokens for h in result}) > 3


def test_it_is_a_family_that_reads_text(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    assert isinstance(model, Family)
    assert model.capabilities.text_input is model
    assert model.capabilities.token_offsets is model
    assert model.capabilities.alignment is None
    assert model.max_tokens == MAX_LENGTH
    assert set(checkpoint.pairs) <= model.pairs()
    assert not any(source == target for source, target in model.pairs())
    log_probs = model.language_log_probs(model.encode(checkpoint.features(["x"], None)))
    assert log_probs.shape == (1, len(model.source_languages))
    assert log_probs.unique().numel() == 1
    assert model.no_speech_log_prob(torch.zeros(1, 5)) is None


def test_texts_become_text(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    for text in TEXTS[:4]:
        tokens = model.tokens.source(text)
        assert model.decode_text([*model.prompt(checkpoint.target("de", "en")), *tokens]) == text


def test_offsets_cut_up_the_text(checkpoint: Checkpoint) -> None:
    features, offsets = checkpoint.features([*TEXTS], "de"), checkpoint.model.source_offsets(TEXTS)
    assert [len(row) for row in offsets] == features.num_frames.tolist()
    for text, row in zip(TEXTS, offsets, strict=True):
        tokens = checkpoint.model.tokens
        first = tokens.language_index + int(tokens.marked is not None)
        assert row[:first] == [(0, 0)] * first
        assert row[-1] == (0, 0)
        inner = row[first:-1]
        assert inner == sorted(inner)
        covered = {place for begin, end in inner for place in range(begin, end)}
        assert covered == {place for place, character in enumerate(text) if not character.isspace()}
    said = [TEXTS[1][begin:end] for begin, end in offsets[1]]
    assert "".join(said) == TEXTS[1].replace(" ", "")
    assert "🎉" in [TEXTS[5][begin:end] for begin, end in offsets[5]]
    assert "ﬁ" in [TEXTS[5][begin:end] for begin, end in offsets[5]]


def test_only_text_and_the_end_may_be_written(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    allowed = (~model.suppressed(checkpoint.target("de", "en"))).nonzero().flatten().tolist()
    names = checkpoint.tokenizer.convert_ids_to_tokens(allowed)
    assert model.end_token in allowed
    assert not {"<pad>", "<unk>", "<s>", "<mask>", *map(checkpoint.mark, checkpoint.codes.values())} & set(
        names
    )
    assert max(allowed) <= max(checkpoint.tokenizer.get_vocab().values())
    assert len(allowed) > 50


def test_what_looks_like_a_special_token_is_text_or_refused(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    for name in ("</s>", "<s>", checkpoint.mark("fr" if checkpoint.kind == "t5" else "fr_XX")):
        if checkpoint.kind == "mbart" or (checkpoint.kind == "t5" and name.startswith("<2")):
            with pytest.raises(
                SprachbundError, match=f"the text contains the special token {name}; take it out"
            ):
                model.tokens.source(f"a {name} b")
            continue
        tokens = model.tokens.source(f"a {name} b")[model.tokens.language_index + 1 : -1]
        assert not model.tokens.not_text.intersection(tokens) - {checkpoint.tokenizer.unk_token_id}
        assert len(tokens) > 3


def texts(checkpoint: Checkpoint, source: str | None, **options: Any) -> list[str]:
    rows = translate_texts(checkpoint.model, [*TEXTS, " "], ["en"], source, DecodingOptions(**options))
    return [row[0].text for row in rows]


def test_the_language_of_a_text_has_to_be_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(SprachbundError, match="language 'tlh' is not among those of this model"):
        texts(checkpoint, "tlh")
    if len(checkpoint.model.source_languages) == 1:
        assert texts(checkpoint, None) == texts(checkpoint, "de")
        return
    with pytest.raises(SprachbundError, match=r"cannot identify the language of a text; name it with --from"):
        texts(checkpoint, None)
    with pytest.raises(SprachbundError, match=r"does not know the pair en to en"):
        texts(checkpoint, "en")


def test_the_only_language_allowed_is_that_of_the_text(checkpoint: Checkpoint) -> None:
    named = texts(checkpoint, "de")
    assert named[-1] == ""
    assert texts(checkpoint, None, allowed_languages=("de",)) == named
    assert texts(checkpoint, "de", batch_size=1) == named
    assert texts(checkpoint, "de", batch_size=3) == named
    if checkpoint.model.tokens.marked == "source":
        assert texts(checkpoint, "fr") != named


def test_languages_it_does_not_know_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(SprachbundError, match=r"does not write 'tlh'; it writes .*en \(English\)"):
        checkpoint.model.prompt(Target(language="tlh"))
    with pytest.raises(SprachbundError, match=r"does not read 'tlh'; it reads .*de \(German\)"):
        checkpoint.model.prompt(Target(language="en", source="tlh"))


def test_a_text_that_is_too_long_is_refused_with_its_length(checkpoint: Checkpoint) -> None:
    limit = checkpoint.model.max_source_tokens
    longest = "e"
    while len(checkpoint.model.tokens.source(longest)) < limit:
        longest += "e"
    assert checkpoint.model.text_features([longest]).values.shape[1] == limit
    with pytest.raises(SprachbundError, match=rf"has {limit + 1} tokens .* reads {limit}, .*shorter texts"):
        checkpoint.model.text_features([longest + "e", "x"])


def test_it_hears_nothing(checkpoint: Checkpoint) -> None:
    with pytest.raises(
        SprachbundError, match="hears nothing; give it a text, or make it the second half of a cascade"
    ):
        checkpoint.model.features([np.zeros(16_000, np.float32)])


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-4), ("bf16", 0.15), ("int8", 0.3)])
@torch.inference_mode()
def test_torch_engines_give_the_same_logits(checkpoint: Checkpoint, precision: Any, near: float) -> None:
    model, target = checkpoint.model, checkpoint.target("de", "en")
    if checkpoint.kind not in ("m2m_100", "nllb", "t5"):
        with pytest.raises(SprachbundError, match=f"in {precision} cannot run a decoder of the kind M"):
            on_torch(model, precision)
        return
    features, tokens = checkpoint.features([*TEXTS], "de"), rows_of_tokens(checkpoint, target, len(TEXTS))
    fast = on_torch(model, precision)
    wanted = [target] * len(TEXTS)
    plain = model.step(tokens, model.start(model.encode(features), targets=wanted))
    ours = fast.step(tokens, fast.start(fast.encode(features), targets=wanted)).float()
    assert float((ours - plain).norm() / plain.norm()) < near
    again = model.step(tokens, model.start(model.encode(features), targets=wanted))
    assert torch.equal(again, plain), "the original is left as it is"


def test_an_engine_is_found_by_trial(checkpoint: Checkpoint) -> None:
    engine = engine_for(checkpoint.model)
    rows = list(translate_texts(engine.family, [*TEXTS], ["en"], "de"))
    assert len(rows) == len(TEXTS)


def test_the_language_wanted_in_front_of_a_source_is_one_at_a_time(checkpoint: Checkpoint) -> None:
    model, wanted = checkpoint.model, [language for _, language in checkpoint.pairs[:2]]
    if checkpoint.kind != "marian_many":
        return
    each = [[row[0].text for row in translate_texts(model, TEXTS, [language], "de")] for language in wanted]
    assert each[0] != each[1]
    beam = translate_texts(model, TEXTS, wanted[:1], "de", DecodingOptions(beam_size=3))
    assert len(list(beam)) == len(TEXTS)
    with pytest.raises(SprachbundError, match="one at a time; ask for en and fr one after the other"):
        list(translate_texts(model, TEXTS, wanted, "de"))
    with pytest.raises(SprachbundError, match="reads the language wanted; give the targets"):
        model.start(model.encode(checkpoint.features(["x"], "de")))
    assert model.target_languages == ("en", "fr", "zh", "zh-Hant"), "mul is no language"


@needs_native
@torch.inference_mode()
def test_the_native_engine_decodes_as_torch_but_for_its_rounding(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch computes linear layers in 8 bits as the kernels do; where its best token is ahead by more than twice what
    both differ, it is theirs too."""
    model = checkpoint.model
    if checkpoint.kind.startswith(("marian", "t5")):
        with pytest.raises(SprachbundError, match=r"kind (Marian|T5)Decoder"):
            engine_for(model, "native", threads=1)
        return
    engine = engine_for(model, "native", threads=1)
    assert "int8 decoder; its encoder on torch" in engine.why
    source, target = checkpoint.pairs[0]
    wanted = Target(language=target, source=source)
    memory = model.encode(checkpoint.features([*TEXTS], source))
    tokens = rows_of_tokens(checkpoint, wanted, len(TEXTS))
    caches = [
        each.start(memory, capacity=tokens.shape[1], targets=[wanted] * len(TEXTS))
        for each in (model, engine.family)
    ]
    result = engine.family.step(tokens, caches[1])
    compute_linears(monkeypatch, quantized_linear)
    theirs = model.step(tokens, caches[0])
    if isinstance(model.decoder, MbartDecoder):
        theirs = theirs + model.decoder.logits_bias  # the patched product leaves it out
    differ = (result - theirs).abs().amax(-1)
    assert relative_error(result, theirs) < 0.03
    best = theirs.topk(2).values
    clear = best[..., 0] - best[..., 1] > 2 * differ
    assert clear.float().mean() > 0.5
    assert torch.equal(result.argmax(-1)[clear], theirs.argmax(-1)[clear])
    options = DecodingOptions(draft="none")
    rows = search(engine.family, memory, [[wanted]] * len(TEXTS), options)
    assert all(row[0].tokens for row in rows)


@torch.inference_mode()
def test_a_text_as_the_draft_scores_its_tokens_as_the_decoder_does_and_leaves_the_rest_alone(
    checkpoint: Checkpoint,
) -> None:
    model, target = checkpoint.model, checkpoint.target("de", "en")
    memory = model.encode(checkpoint.features([*TEXTS], "de"))
    draft = TextDraft(model, "\n".join(TEXTS))
    cache = model.start(memory, targets=[target] * len(TEXTS))
    rows = output_rows(model.decoder, draft.tokens)
    states = rows.states(rows_of_tokens(checkpoint, target, len(TEXTS)), cache)
    torch.testing.assert_close(rows.listed(states), rows.everything(states)[..., draft.tokens], **TOLERANCE)
    wanted, options = [[target]] * len(TEXTS), DecodingOptions(draft="none", max_tokens=16)
    speculation = Speculation(draft, num_draft_tokens=3)
    drafted = search(model, memory, wanted, options, speculation=speculation)
    plain = search(model, memory, wanted, options)
    assert [row[0].tokens for row in drafted] == [row[0].tokens for row in plain]
    assert speculation.report()[0].checked > 0


@torch.inference_mode()
def test_a_text_as_the_draft_needs_the_rows_of_the_output_matrix(checkpoint: Checkpoint) -> None:
    if checkpoint.kind != "t5":
        pytest.skip("other decoders keep their matrix on every engine")
    model = on_torch(checkpoint.model, "bf16")
    with pytest.raises(SprachbundError, match="as PackedLinear; use the engine torch, or leave the list out"):
        output_rows(model.capabilities.decoder, torch.tensor([3, 5]))

"""Translators behind a recogniser, live: what is written behind committed text is what transformers writes there."""

from typing import Any

import pytest
import torch

from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.texts import TextRows, search_texts
from sprachbund.decoding.words import attended_characters
from sprachbund.models.cascade import Cascade
from sprachbund.streaming import cascade
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import CaptionLine
from sprachbund.streaming.writing import Attempt
from tests.decoding.test_translate import Loudness, recording
from tests.models.translation.support import TEXTS, Checkpoint
from tests.streaming.test_cascade_commits import Hearing
from tests.streaming.test_engine import run, texts

OPTIONS = DecodingOptions(guard=GuardOptions(enabled=False), max_tokens=40)


@pytest.mark.slow
def test_what_follows_committed_text_is_what_generate_writes_there(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every search of a session, its drafts included, and the text that stands at the end.

    Random models seldom agree with themselves, so the first half of each attempt is committed.
    """
    model, end = checkpoint.model, checkpoint.model.end_token
    searches: list[tuple[list[str], list[tuple[int, ...]], TextRows]] = []

    def spied(family: Any, own: Any, *rest: Any, prefixes: Any, **more: Any) -> TextRows:
        result = search_texts(family, own, *rest, prefixes=prefixes, **more)
        searches.append((list(own), list(prefixes), result))
        return result

    def half(attempt: Attempt, line: CaptionLine, options: LiveOptions) -> int:
        assert len(attempt.looks_at) == sum(count for _, count in attempt.words)
        return (len(attempt.words) + 1) // 2

    monkeypatch.setattr(cascade, "search_texts", spied)
    monkeypatch.setattr(cascade, "POLICY_FUNCTIONS", {"alignatt": half})
    committed = False
    for source, language in checkpoint.pairs[:2]:
        searches.clear()
        engine = LiveEngine(Cascade(Hearing(), model), OPTIONS, activity=Loudness())
        session = engine.open([language], source, LiveOptions(policy="alignatt", step_s=0.6))
        events = texts(run(engine, session, recording((1.0, 4.0), duration_s=6.0)))
        suppressed = model.suppressed(checkpoint.target(source, language)).nonzero().flatten().tolist()
        prompt, expected = checkpoint.prompt(language), []
        for own, prefixes, result in searches:
            expected = []
            for text, prefix, row in zip(own, prefixes, result.hypotheses, strict=True):
                theirs: list[int] = checkpoint.hf_model.generate(
                    **checkpoint.source([text], source, language),
                    decoder_input_ids=torch.tensor([[*prompt, *prefix]]),
                    do_sample=False,
                    num_beams=1,
                    forced_eos_token_id=None,
                    suppress_tokens=suppressed or None,
                )[0].tolist()
                behind = theirs[len(prompt) + len(prefix) :]
                assert behind == [*row[0].tokens, *([end] if row[0].finished else [])]
                expected.append(model.decode_text([*prefix, *row[0].tokens]).strip())
        committed |= any(event.committed for event in events)
        assert events[-1].final
        assert "".join(event.committed for event in events).endswith(" ".join(filter(None, expected)))
    wrote = any(
        model.decode_text(row[0].tokens).strip() for *_, result in searches for row in result.hypotheses
    )
    assert committed == wrote  # one of them writes no word


@torch.inference_mode()
def test_words_looked_at_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    """Behind a prefix: the place with the most attention, averaged over the heads of the upper half of the layers."""
    model, (source, language) = checkpoint.model, checkpoint.pairs[0]
    text = TEXTS[1]
    options = DecodingOptions(max_tokens=12, min_tokens=8)
    rows = search_texts(model, [text], (language,), source, options)
    written = rows.hypotheses[0][0].tokens
    assert len(written) > 5
    prefix, behind = written[:3], written[3:]
    again = search_texts(model, [text], (language,), source, OPTIONS, prefixes=[prefix])
    [result] = attended_characters(model, again.memory, [again.targets[0][0]], [behind], [text])
    prompt = checkpoint.prompt(language)
    checkpoint.hf_model.set_attn_implementation("eager")
    layers = checkpoint.hf_model(
        **checkpoint.source([text], source, language),
        decoder_input_ids=torch.tensor([[*prompt, *written]]),
        output_attentions=True,
    ).cross_attentions
    checkpoint.hf_model.set_attn_implementation("sdpa")
    upper = torch.cat([layer[0] for layer in layers[len(layers) // 2 :]]).mean(0)
    [offsets] = model.source_offsets([text])
    places = [n for n, (begin, end) in enumerate(offsets) if end > begin]
    for n, character in enumerate(result):
        best = places[int(upper[len(prompt) + len(prefix) - 1 + n, places].argmax())]
        assert character == offsets[best][1] - 1

"""The next best texts of a beam: those that it ranks next, in every search, and in results."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.autoregressive import beam_search
from sprachbund.decoding.ctc import prefix_beam
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.result import Segment
from sprachbund.decoding.search import search
from sprachbund.decoding.state import start_batch
from sprachbund.decoding.texts import translate_texts
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.models.cascade import Cascade
from tests.decoding.families import FAMILIES
from tests.decoding.test_cascade import Backwards, Reading
from tests.decoding.test_translate import Loudness, recording
from tests.decoding.tiny_family import TinyFamily, random_memory
from tests.models.contract import heard
from tests.models.fastconformer.support import sound

TARGET = Target(language="en", source="de")
OPTIONS = DecodingOptions(max_tokens=6, beam_size=4, nbest=3, draft="none")


@torch.inference_mode()
def test_they_are_the_next_rows_of_the_beam() -> None:
    family, memory = TinyFamily(seed=1), random_memory([12, 7], 1)
    targets = [[TARGET], [TARGET]]
    ranked = beam_search(
        family, start_batch(family, memory, targets, OPTIONS, None), beam_size=4, length_penalty=1.0
    )
    for [hypothesis], wanted in zip(search(family, memory, targets, OPTIONS), ranked, strict=True):
        assert replace(hypothesis, others=()) == wanted[0]
        assert [*hypothesis.others] == wanted[1:3]
        scores = [h.score for h in (hypothesis, *hypothesis.others)]
        assert scores == sorted(scores, reverse=True)
    [alone] = search(family, random_memory([12], 1), [[TARGET]], replace(OPTIONS, nbest=1))[0]
    assert alone.others == ()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Parakeet CTC", "Parakeet RNNT", "Canary", "conformer"])
def test_every_search_has_them(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name](tmp_path)
    source, target = min(pair for pair in family.pairs() if pair[0] == pair[1])
    memory = family.encode(family.features([sound(1.3, 1)]))
    asked = Target(language=target, source=source)
    [hypothesis] = search(family, memory, [[asked]], replace(OPTIONS, max_tokens=None))[0]
    assert len(hypothesis.others) == 2
    assert len({hypothesis.tokens, *(other.tokens for other in hypothesis.others)}) == 3
    if name == "Parakeet CTC":
        assert family.capabilities.ctc is not None
        assert memory.num_frames is not None
        rows = family.capabilities.ctc.ctc_log_probs(memory, [[asked]])[0][: int(memory.num_frames[0])]
        ranked = prefix_beam(rows.double().numpy(), 4, family.capabilities.ctc.blank)
        assert [h.log_probability for h in (hypothesis, *hypothesis.others)] == pytest.approx(
            [s for _, s in ranked[:3]]
        )


def test_results_have_them(tmp_path: Path) -> None:
    family = FAMILIES["conformer"](tmp_path)
    options = replace(OPTIONS, guard=replace(OPTIONS.guard, enabled=False))
    plain = heard(family, "en", "en", replace(options, nbest=1))
    result = heard(family, "en", "en", options)
    assert [s.text for s in result.segments] == [s.text for s in plain.segments]
    for segment in result.segments:
        assert len(segment.alternatives) == 2
        assert Segment.from_dict(json.loads(json.dumps(segment.to_dict()))).alternatives[0].text == (
            segment.alternatives[0].text
        )
    assert "alternatives" not in plain.segments[0].to_dict()


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("seed", "weight"), [(0, 1.0), (1, 0.3), (2, 1.0), (3, 0.0)])
def test_a_cascade_takes_the_best_of_all_pairs(seed: int, weight: float) -> None:
    """Every transcript of up to three letters, scored here one by one, each with its translation."""
    recogniser = TinyFamily(num_letters=3, seed=seed, sharpness=1.0)
    translator = Reading(seed=seed)
    options = DecodingOptions(
        max_tokens=3,
        beam_size=40,
        nbest=40,
        translation_weight=weight,
        length_penalty=0,
        draft="none",
        guard=GuardOptions(enabled=False),
    )
    samples = recording((1.0, 2.5), duration_s=4.0, seed=seed)
    translations = translate(
        Cascade(recogniser, translator), samples, ["es", "de"], "de", options, sample_rate=SAMPLE_RATE,
        activity=Loudness(),
    )  # fmt: skip
    [segment] = translations["es"].segments
    begin, end = (round(s * SAMPLE_RATE) for s in (segment.start_s, segment.end_s))
    memory = recogniser.encode(recogniser.features([samples[begin:end]]))
    asked = Target(language="de", source="de")
    letters = range(recogniser.first_letter, recogniser.first_time)
    rows = [row for n in range(4) for row in product(letters, repeat=n)]
    pairs = []
    for row in rows:
        score = log_probability(recogniser, memory, asked, ended(recogniser, row))
        text = recogniser.decode_text(row).strip()
        if not text:
            continue
        [[translated]] = translate_texts(
            translator, [text], ["es"], "de", DecodingOptions(beam_size=40, length_penalty=0)
        )
        memory_of_text = translator.encode(translator.text_features([text]))
        [[own]] = search(translator, memory_of_text, [[Target(language="es", source="de")]],
                         DecodingOptions(beam_size=40, length_penalty=0))  # fmt: skip
        if translated.text.strip():  # no text is dropped, and stands behind all others
            pairs.append((score + weight * own.log_probability, text, translated.text.strip()))
    pairs.sort(reverse=True)
    assert (segment.source_text, segment.text) == pairs[0][1:]
    assert len(segment.alternatives) == len(rows) - 1
    listed = [one.log_probability for one in segment.alternatives if one.text]
    assert listed == pytest.approx([score for score, *_ in pairs[1:]], abs=1e-4)
    [said] = [
        *translations["de"].segments,
        *translations["de"].dropped,
    ]  # the transcript itself is the best of its own
    best = max(rows, key=lambda row: log_probability(recogniser, memory, asked, ended(recogniser, row)))
    assert said.text == recogniser.decode_text(best).strip()


def ended(family: TinyFamily, row: Sequence[int]) -> list[int]:
    """With its end; a row of three letters is cut by the limit, without one."""
    return [*row, *([family.end_token] if len(row) < 3 else [])]


def log_probability(family: TinyFamily, memory: Memory, asked: Target, tokens: Sequence[int]) -> float:
    """Of tokens behind a prompt, over the tokens that may be written."""
    prompt = family.prompt(asked)
    logits = family.step(torch.tensor([[*prompt, *tokens]]), family.start(memory))[0]
    logits[:, family.suppressed(asked)] = -torch.inf
    log_probs = logits.double().log_softmax(-1)[len(prompt) - 1 :]
    return sum(float(log_probs[n, token]) for n, token in enumerate(tokens))


def test_a_cascade_gives_words_no_times_in_other_transcripts() -> None:
    cascade = Cascade(TinyFamily(), Backwards())
    with pytest.raises(SprachbundError, match="gives words no times in the next best transcripts"):
        heard(cascade, "es", "de", replace(OPTIONS, word_timestamps=True))


def test_more_than_the_beam_are_refused() -> None:
    with pytest.raises(SprachbundError, match="a beam of 1 has no more texts; set beam_size to 2"):
        DecodingOptions(nbest=2)

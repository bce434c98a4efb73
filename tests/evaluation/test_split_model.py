"""Evaluation sends every utterance through the branch of the language that the corpus says is spoken."""

import torch

from sprachbund.decoding.encoding import encode
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.search import search
from sprachbund.evaluation.hypotheses import BatchDecoder
from sprachbund.models.base import Target
from tests.models import split_support as made

SOUNDS = made.make_sounds(6, seed=5)
SOURCES = ["ru", "de", "fr", "de", "en", "ru"]
OPTIONS = DecodingOptions(max_tokens=10, guard=GuardOptions(enabled=False))


def test_it_decodes_under_the_language_of_the_corpus() -> None:
    model = made.level_languages(made.make_split_model())
    result = BatchDecoder(model, OPTIONS).decode(SOUNDS, [["en", "ru"]] * 6, SOURCES)
    with torch.inference_mode():
        memory = encode(model, model.features(SOUNDS), SOURCES)
    targets = [[Target(language=t, source=s) for t in ("en", "ru")] for s in SOURCES]
    expected = search(model, memory, targets, OPTIONS)
    for row, hypotheses in zip(result, expected, strict=True):
        for (text, _), hypothesis in zip(row, hypotheses, strict=True):
            assert text == " ".join(model.decode_text(hypothesis.tokens).split())
    unnamed = BatchDecoder(model, OPTIONS).decode(SOUNDS, [["en", "ru"]] * 6, [None] * 6)
    languages = [row[0][1].language for row in unnamed]
    named = BatchDecoder(model, OPTIONS).decode(SOUNDS, [["en", "ru"]] * 6, languages)
    assert [[text for text, _ in row] for row in named] == [[text for text, _ in row] for row in unnamed]
    assert len({*languages}) > 1

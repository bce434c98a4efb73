"""Draws of segmentations: as often as their probability says, the likeliest SentencePiece's, the same anywhere."""

import io
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from sprachbund.models.tokens.vocabulary import PieceSampler, marked
from tests.units.made import words

ALPHA = 0.4


@pytest.fixture(scope="module")
def model() -> Any:
    result = io.BytesIO()
    lines = [marked(" ".join(words(3, seed))) for seed in range(60)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=result,
        vocab_size=60,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["<de>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=result.getvalue())


def ways(model: Any, string: str) -> Iterator[tuple[int, ...]]:
    """All segmentations, tried one after the other."""
    if not string:
        yield ()
    for end in range(1, len(string) + 1):
        number = model.piece_to_id(string[:end])
        if number:
            yield from ((number, *rest) for rest in ways(model, string[end:]))


def test_each_way_is_drawn_as_often_as_its_probability_says(model: Any) -> None:
    string = marked("bad cab fade").replace(" ", "▁")
    weights = {way: np.exp(ALPHA * sum(map(model.get_score, way))) for way in ways(model, string)}
    assert len(weights) > 20
    sampler, rng, count = PieceSampler(model), np.random.default_rng(0), 4000
    seen = Counter(tuple(sampler.draw(" bad cab fade", rng, ALPHA)) for _ in range(count))
    assert seen.keys() <= weights.keys()
    whole = sum(weights.values())
    for way, weight in weights.items():
        share = weight / whole
        assert abs(seen[way] / count - share) < 5 * (share / count) ** 0.5 + 1e-3


def test_the_likeliest_is_that_of_sentencepiece_unknown_characters_and_all(model: Any) -> None:
    sampler, nearly_certain = PieceSampler(model), 1e5
    for number, word in enumerate(words(60, seed=7)):
        for text in (f" {word}", f" {word}xyz {word}z", "<de>" + word):
            drawn, best = (
                sampler.draw(text, np.random.default_rng(number), nearly_certain),
                model.encode(text),
            )
            assert drawn.count(0) == best.count(0)
            scores = [sum(map(model.get_score, way)) for way in (drawn, best)]  # several may be the best
            assert scores[0] == pytest.approx(scores[1], abs=1e-3)
            assert model.decode(drawn) == model.decode(best)
    assert sampler.draw("", np.random.default_rng(0), ALPHA) == []


def test_other_processes_draw_the_same(model: Any, tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(model.serialized_model_proto())
    program = (
        "import sys, numpy, sentencepiece; from sprachbund.models.tokens.vocabulary import PieceSampler; "
        "s = PieceSampler(sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])); "
        "print([s.draw(' fade bad cab deaf', numpy.random.default_rng(n), 0.4) for n in range(20)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.model")], capture_output=True, text=True, check=True
    )
    sampler = PieceSampler(model)
    here = [sampler.draw(" fade bad cab deaf", np.random.default_rng(n), ALPHA) for n in range(20)]
    assert done.stdout.strip() == str(here)
    assert len({tuple(way) for way in here}) > 10

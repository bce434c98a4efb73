import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.decoding.ctc import CtcPrefixes
from tests.decoding.test_ctc_search import all_texts
from tests.nn.test_ctc import lattice


def of_prefix(texts: dict[tuple[int, ...], float], prefix: tuple[int, ...]) -> float:
    """Log of the summed probability of all texts that begin so."""
    scores = [score for text, score in texts.items() if text[: len(prefix)] == prefix]
    return float(np.logaddexp.reduce(scores)) if scores else -math.inf


def after(log_probs: Tensor, text: tuple[int, ...]) -> CtcPrefixes:
    prefixes = CtcPrefixes.start(log_probs[None], torch.tensor([len(log_probs)]))
    for token in text:
        prefixes.advance(torch.tensor([token]))
    return prefixes


@pytest.mark.parametrize("seed", range(3))
def test_prefix_scores_are_the_sum_over_all_texts(seed: int) -> None:
    log_probs = lattice(1, 5, 3, seed)[0]
    texts = all_texts(log_probs.numpy())
    for length in range(4):
        for text in itertools.product((1, 2), repeat=length):
            prefixes = after(log_probs, text)
            assert float(prefixes.ended()) == pytest.approx(texts.get(text, -math.inf), abs=1e-9)
            scores = prefixes.continued(torch.tensor([[1, 2]]))[0].tolist()
            wanted = [of_prefix(texts, (*text, token)) for token in (1, 2)]
            assert scores == pytest.approx(wanted, abs=1e-9)
            if length:
                assert float(prefixes.scores) == pytest.approx(of_prefix(texts, text), abs=1e-9)


def test_rows_of_different_lengths_do_not_change_each_other() -> None:
    log_probs, frames = lattice(3, 6, 4), torch.tensor([6, 2, 4])
    together = CtcPrefixes.start(log_probs, frames)
    for tokens in ([1, 2, 3], [1, 3, 3]):
        together.advance(torch.tensor(tokens))
    together.take(torch.tensor([2, 1, 0, 0]))
    asked = torch.tensor([[1, 3]] * 4)
    for row, (origin, text) in enumerate([(2, (3, 3)), (1, (2, 3)), (0, (1, 1)), (0, (1, 1))]):
        alone = after(log_probs[origin, : frames[origin]], text)
        torch.testing.assert_close(together.continued(asked)[row], alone.continued(asked[:1])[0])
        torch.testing.assert_close(together.ended()[row], alone.ended()[0])


def test_what_the_frames_cannot_hold_is_impossible() -> None:
    prefixes = after(lattice(1, 2, 3)[0], (1, 1))
    assert float(prefixes.ended()) == -math.inf
    assert prefixes.continued(torch.tensor([[1, 2]])).tolist() == [[-math.inf, -math.inf]]


def test_long_rows_keep_their_precision() -> None:
    log_probs = lattice(1, 400, 5, seed=3)
    text = [1, 2, 2, 3] * 20
    prefixes = after(log_probs[0], tuple(text))
    loss = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([text]),
        torch.tensor([400]),
        torch.tensor([len(text)]),
        reduction="none",
    )
    assert float(prefixes.ended()) == pytest.approx(-float(loss), rel=1e-9)

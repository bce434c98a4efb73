import itertools
import math

import numpy as np
import pytest

from sprachbund.decoding.ctc import best_path, prefix_beam
from tests.nn.test_ctc import collapsed, lattice


def all_texts(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log-probability of every text, by going through every path."""
    scores: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = float(sum(log_probs[t, token] for t, token in enumerate(path)))
        text = collapsed(path)
        scores[text] = float(np.logaddexp(scores.get(text, -math.inf), score))
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_nothing_falls_out_of_is_exact(seed: int) -> None:
    log_probs = lattice(1, 5, 3, seed)[0].numpy()
    wanted = all_texts(log_probs)
    texts = prefix_beam(log_probs, 1000)
    assert dict(texts) == pytest.approx(wanted)
    assert [text for text, _ in texts] == sorted(wanted, key=lambda text: -wanted[text])


def test_a_narrow_beam_finds_the_likeliest_text_where_the_best_path_does_not() -> None:
    # The best path is all blanks, but more paths write the token.
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert best_path(log_probs) == ((), pytest.approx(math.log(0.36)))
    text, score = prefix_beam(log_probs, 2)[0]
    assert text == (1,)
    assert score == pytest.approx(math.log(0.64))


def test_best_path_is_that_of_all_paths() -> None:
    for seed in range(4):
        log_probs = lattice(1, 4, 4, seed)[0].numpy()
        paths = itertools.product(range(4), repeat=4)
        likeliest = max(paths, key=lambda path: sum(log_probs[t, token] for t, token in enumerate(path)))
        text, score = best_path(log_probs)
        assert text == collapsed(likeliest)
        assert score == pytest.approx(sum(log_probs[t, token] for t, token in enumerate(likeliest)))


def test_forbidden_tokens_are_never_written() -> None:
    log_probs = lattice(1, 5, 4)[0].numpy().copy()
    log_probs[:, 2] = -np.inf
    texts = prefix_beam(log_probs, 50)
    assert all(2 not in text for text, _ in texts)
    assert texts[0][1] == pytest.approx(
        max(all_texts(np.where(np.isinf(log_probs), -1e9, log_probs)).values())
    )


def test_no_frames_write_nothing() -> None:
    assert best_path(np.zeros((0, 3))) == ((), 0.0)
    assert prefix_beam(np.zeros((0, 3)), 4) == [((), 0.0)]

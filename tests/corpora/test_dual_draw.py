"""What dual-scale training asks of the data: languages drawn, and transcripts as the model would write them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, batches
from tests.training.made import make_corpus, make_training_data

PLAN = BatchingOptions(batch_s=20.0, max_duration_s=20)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn")
    make_corpus(path, 48)
    return path


def drawn(corpus: Corpus, epochs: int = 6) -> Counter[bool]:
    """How often the own language was wanted, and another."""
    counts: Counter[bool] = Counter()
    for epoch in range(epochs):
        for index in range(sum(corpus.counts)):
            utterance, _ = corpus.utterance(index)
            rows = corpus.rows(utterance, np.random.default_rng([0, epoch, index]))
            own = corpus.examples.row("", "en", utterance.language)
            assert own is not None
            counts[rows[0][0] == own[0]] += 1
    return counts


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.1, 0.05, 0.16), (None, 0.4, 0.6)]
)
def test_the_own_language_is_drawn_as_often_as_asked(
    directory: Path, share: float | None, low: float, high: float
) -> None:
    counts = drawn(make_training_data(directory, same_language=share))
    assert low <= counts[True] / counts.total() <= high


def test_targets_are_the_same_again_and_others_in_another_epoch(directory: Path) -> None:
    corpus = make_training_data(directory, same_language=0.5)
    first, again, other = (next(iter(batches(corpus, PLAN, epoch))) for epoch in (0, 0, 1))
    assert torch.equal(first.target_language, again.target_language)
    assert first.target_language.shape != other.target_language.shape or not torch.equal(
        first.target_language, other.target_language
    )


def test_a_transcript_is_what_the_model_would_write(directory: Path) -> None:
    corpus = make_training_data(directory, spoken=True)
    batch = next(iter(batches(corpus, PLAN, 0)))
    assert batch.spoken is not None
    texts = {corpus.utterance(i)[0].text for i in range(48)}
    for row, count in zip(batch.spoken.tokens, batch.spoken.num_tokens.tolist(), strict=True):
        assert corpus.examples.tokenizer.decode(row[:count].tolist()) in texts  # type: ignore[attr-defined]
        assert not bool(row[count:].any())
    plain = next(iter(batches(make_training_data(directory), PLAN, 0)))
    assert plain.spoken is None
    assert torch.equal(plain.features, batch.features)
    assert torch.equal(plain.targets, batch.targets)


def test_an_utterance_whose_transcript_is_too_long_is_not_taught(directory: Path) -> None:
    corpus = make_training_data(directory, spoken=True)
    corpus.examples.max_tokens = 1  # type: ignore[misc]
    index = next(i for i in range(48) if " " in corpus.utterance(i)[0].text)
    example = corpus[0, index, 1.0]
    assert (example.rows, example.spoken) == ([], [])

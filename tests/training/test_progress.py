"""The log's means: of every head over what it counts, 0 where a family has no such head."""

import pytest
import torch

from sprachbund.models.base import CTC, LANGUAGE, HeadLoss, Loss
from sprachbund.training.loop import Meter
from tests.data.test_batch import batch_of


def loss_of(attention: float, num_tokens: int, **heads: HeadLoss) -> Loss:
    total = torch.tensor(attention)
    return Loss(total=total, attention=total, num_tokens=num_tokens, heads=heads)


def test_heads_are_means_over_what_they_count() -> None:
    meter = Meter(frames_per_s=100)
    heads = {CTC: HeadLoss(torch.tensor(6.0), 4), LANGUAGE: HeadLoss(torch.tensor(1.0), 2)}
    meter.add(batch_of(2), loss_of(8.0, 10, **heads))
    heads = {CTC: HeadLoss(torch.tensor(4.0), 1), LANGUAGE: HeadLoss(torch.tensor(2.0), 3)}
    meter.add(batch_of(3), loss_of(2.0, 10, **heads))
    line = meter.progress(2, 4, 0)
    assert (line.attention, line.ctc, line.language) == pytest.approx((0.5, 2.0, 0.6))


def test_a_family_without_heads_has_zeros_and_a_placeholder_counts_nothing() -> None:
    meter = Meter(frames_per_s=100)
    meter.add(batch_of(2), Loss.of_text(torch.tensor(3.0), 6))
    heads = {CTC: HeadLoss(torch.tensor(9.0), 9)}
    meter.add(batch_of(2).placeholder(), loss_of(9.0, 9, **heads))
    line = meter.progress(1, 4, 0)
    assert (line.attention, line.ctc, line.language) == (0.5, 0.0, 0.0)

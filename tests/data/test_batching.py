"""Plans: every utterance in exactly one batch, little padding, the same plan for the same seed and epoch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.data.batching import BatchingOptions, epoch_indices, plan_epoch


@settings(max_examples=50, deadline=None)
@given(
    durations=st.lists(st.floats(0.3, 12.0), min_size=1, max_size=300),
    batch_s=st.floats(5.0, 60.0),
    most=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_every_utterance_once_within_the_limits(durations, batch_s, most, seed):
    durations = np.array(durations)
    options = BatchingOptions(batch_s=batch_s, max_utterances=most, seed=seed, max_duration_s=10.0)
    plan = plan_epoch(durations, np.arange(len(durations)), options, epoch=2)
    planned = sorted(int(i) for batch in plan for i in batch)
    assert planned == [i for i, d in enumerate(durations) if d <= 10.0]
    for batch in plan:
        assert len(batch) <= most
        assert len(batch) == 1 or durations[batch].max() * len(batch) <= batch_s


def test_padding_is_below_a_tenth_on_lengths_like_ours():
    rng = np.random.default_rng(0)
    durations = np.clip(rng.lognormal(0.8, 0.5, 20_000), 0.4, 15)
    plan = plan_epoch(durations, rng.permutation(20_000), BatchingOptions(batch_s=160), epoch=0)
    padded = sum(durations[b].max() * len(b) for b in plan)
    assert 1 - durations.sum() / padded < 0.05


def test_epochs_differ_and_repeat():
    def plan(epoch):
        return plan_epoch(
            np.full(100, 2.0), epoch_indices([100], [1.0], 0, epoch), BatchingOptions(batch_s=10), epoch
        )

    assert [b.tolist() for b in plan(0)] == [b.tolist() for b in plan(0)]
    assert [b.tolist() for b in plan(0)] != [b.tolist() for b in plan(1)]


def test_repeats_are_whole_and_fractional():
    indices = epoch_indices([10, 20], [2.5, 0.5], seed=0, epoch=0)
    counts = np.bincount(indices, minlength=30)
    assert sorted(counts[:10]) == [2] * 5 + [3] * 5
    assert counts[10:].sum() == 10
    assert counts[10:].max() == 1

"""Scales contain each other, are as large as they say, and come out the same every time."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.data.batching import nested
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError

HOUR = 3600.0


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """Two corpora, one three times as long as the other."""
    root, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    for name, count in (("small", 40), ("large", 120)):
        with ManifestWriter(root / name, shard_size=25) as writer:
            for n in range(count):
                sound = np.zeros(int(rng.integers(1600, 8000)), dtype=np.float32)
                writer.add(sound, text=f"{n}", language="de", speaker="", utterance_id=f"{name}-{n}")
    return [Manifest(root / "small"), Manifest(root / "large")]


def total_s(manifests: list[Manifest]) -> float:
    return float(sum(manifest.durations_s.sum(dtype=np.float64) for manifest in manifests))


def ids(manifest: Manifest) -> set[str]:
    return {utterance.id for utterance in manifest}


@settings(max_examples=25, deadline=None)
@given(shares=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=5), seed=st.integers(0, 5))
def test_scales_contain_each_other_and_are_as_long_as_asked(
    corpora: list[Manifest], shares: list[float], seed: int
) -> None:
    whole_s = total_s(corpora)
    scales = [nested(corpora, share * whole_s / HOUR, seed) for share in sorted(shares)]
    for fewer, more in pairwise(scales):
        assert all(ids(a) <= ids(b) for a, b in zip(fewer, more, strict=True))
    for share, scale in zip(sorted(shares), scales, strict=True):
        for corpus, part in zip(corpora, scale, strict=True):
            wanted_s = share * total_s([corpus])
            assert wanted_s - 0.5 <= total_s([part]) <= wanted_s + 1e-3  # utterances are below half a second


def test_everything_is_everything_and_seeds_are_orders(corpora: list[Manifest]) -> None:
    hours = total_s(corpora) / HOUR
    assert [ids(part) for part in nested(corpora, hours)] == [ids(corpus) for corpus in corpora]
    half = [ids(part) for part in nested(corpora, hours / 2, 1)]
    assert half == [ids(part) for part in nested(corpora, hours / 2, 1)]
    assert half != [ids(part) for part in nested(corpora, hours / 2, 2)]


def test_a_part_is_a_manifest_like_any_other(corpora: list[Manifest]) -> None:
    (part,) = nested(corpora[:1], total_s(corpora[:1]) / 4 / HOUR)
    for place, utterance in enumerate(part):
        assert len(part.samples(place)) == round(utterance.duration_s * 16_000)
    assert part.summary()["utterances"] == len(part) < len(corpora[0])


@pytest.mark.parametrize(
    ("hours", "said"), [(0.0, "0 hours are wanted"), (1.0, "at most 0.0"), (1e-6, "as short as")]
)
def test_hours_that_there_are_not(corpora: list[Manifest], hours: float, said: str) -> None:
    with pytest.raises(SprachbundError, match=said):
        nested(corpora, hours)

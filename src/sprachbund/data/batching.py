"""Division of utterances into batches: a pure function of lengths, seed and epoch.

Nothing is remembered but (epoch, batch number), so resuming a run costs the same after a minute as after
a month.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sprachbund.data.manifest import Utterances
from sprachbund.errors import SprachbundError


@dataclass(frozen=True, kw_only=True)
class BatchingOptions:
    """Options of cutting an epoch into batches.

    Attributes:
        batch_s: longest padded length of a batch in seconds of speech.
        max_utterances: most utterances in a batch.
        pool_batches: batches are sorted by length within pools of about this many.
        max_duration_s: longer utterances are left out, and counted.
        seed: seed of the order.
    """

    batch_s: float = 160.0
    max_utterances: int = 128
    pool_batches: int = 50
    max_duration_s: float = 20.0
    seed: int = 0


def epoch_indices(counts: Sequence[int], repeats: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Global indices of one epoch over several corpora laid end to end, each repeated so many times.

    A repeat of 2.5 means every utterance twice and a random half of them once more.

    Args:
        counts: utterances of each corpus.
        repeats: times that each corpus occurs in an epoch; may be a fraction.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    chosen = []
    offset = 0
    for count, repeat in zip(counts, repeats, strict=True):
        whole, rest = int(repeat), repeat - int(repeat)
        chosen.append(np.tile(np.arange(count), whole) + offset)
        chosen.append(rng.permutation(count)[: round(rest * count)] + offset)
        offset += count
    return rng.permutation(np.concatenate(chosen))


def plan_epoch(
    durations_s: np.ndarray, indices: np.ndarray, options: BatchingOptions, epoch: int
) -> list[np.ndarray]:
    """Batches of indices with little padding, in random order.

    Args:
        durations_s: length of every utterance, addressed by `indices`.
        indices: the epoch's utterances in random order.
        options: see `BatchingOptions`.
        epoch: changes the order of the batches.
    """
    return plan_lanes(durations_s, [indices], options, epoch)


def plan_lanes(
    durations_s: np.ndarray, lanes: Sequence[np.ndarray], options: BatchingOptions, epoch: int
) -> list[np.ndarray]:
    """Batches to which every lane gives as many utterances as the others, in random order.

    A lane holds the utterances that one process has at hand. Utterance p of a batch is of lane p modulo their number. A
    batch takes utterances of about the same length from all lanes, so that no process has more to compute than another.

    Args:
        durations_s: length of every utterance, addressed by the lanes.
        lanes: indices of each lane in random order.
        options: see `BatchingOptions`; they hold for all lanes together, and a batch has one of each at least.
        epoch: changes the order of the batches.

    Returns:
        Batches of indices. Where a lane had none left, there is -1 - i of one of its utterances i, not to be counted.
    """
    count = len(lanes)
    lanes = [lane[durations_s[lane] <= options.max_duration_s] for lane in lanes]
    known = np.concatenate(lanes)
    if not len(known):
        return []
    spare = [-1 - (lane if len(lane) else known)[0] for lane in lanes]
    mean_s = float(durations_s[known].mean())
    own = replace(
        options, batch_s=options.batch_s / count, max_utterances=max(1, options.max_utterances // count)
    )
    pool = max(1, int(own.pool_batches * min(own.batch_s / mean_s, own.max_utterances)))
    batches: list[np.ndarray] = []
    for start in range(0, max(map(len, lanes)), pool):
        members = [lane[start : start + pool] for lane in lanes]
        rows = np.tile(np.array(spare, dtype=np.int64), (max(map(len, members)), 1))
        for number, lane in enumerate(members):
            rows[: len(lane), number] = lane[np.argsort(durations_s[lane], kind="stable")]
        lengths_s = np.where(rows < 0, 0, durations_s[rows]).max(axis=1)
        # A lane that ends early would let a row be shorter than the one before it.
        lengths_s = np.maximum.accumulate(lengths_s)
        batches += [rows[cut].reshape(-1) for cut in _cut(np.arange(len(rows)), lengths_s, own)]
    order = np.random.default_rng([options.seed, epoch, 1]).permutation(len(batches))
    return [batches[i] for i in order]


def _cut(members: np.ndarray, durations_s: np.ndarray, options: BatchingOptions) -> list[np.ndarray]:
    """Cut utterances in order of length into batches whose padded length stays under `batch_s`."""
    batches = []
    start = 0
    for end in range(1, len(members) + 1):
        size = end - start + 1
        full = end == len(members) or size > options.max_utterances
        if full or durations_s[members[end]] * size > options.batch_s:
            batches.append(members[start:end])
            start = end
    return batches


def tempered(repeats: Sequence[float], hours: Sequence[float], temperature: float) -> list[float]:
    """Repeats of corpora, changed so that a corpus of h hours is drawn in proportion to h^(1 / temperature).

    All together have as many hours as before (arXiv 1907.05019, section 4).

    Args:
        repeats: times that each corpus occurs in an epoch.
        hours: hours of each corpus.
        temperature: 1 changes nothing; the higher, the more equal are the corpora.
    """
    if temperature == 1 or not (whole := sum(r * h for r, h in zip(repeats, hours, strict=True))):
        return list(repeats)
    raised = [r * h ** (1 / temperature) for r, h in zip(repeats, hours, strict=True)]
    return [
        whole * part / sum(raised) / h if h else r for r, h, part in zip(repeats, hours, raised, strict=True)
    ]


# Less and less of the same data: parts that contain each other, so that scales differ in nothing but their
# size.
#
# Every corpus is shuffled once by a seed, and of each as much is taken from the front as its share of all
# hours asks for (arXiv 2606.24169, section 3).


def nested(manifests: Sequence[Utterances], hours: float, seed: int = 0) -> list[Utterances]:
    """So many hours of several corpora together, in proportion to their own; fewer hours are part of more.

    A corpus gives the utterances that end within its part, so all together are at most `hours`, and less than that by
    at most one utterance of each.

    Args:
        manifests: the corpora.
        hours: hours wanted, above 0 and at most what there is.
        seed: seed of the order; the same for all scales that are to be nested.

    Raises:
        SprachbundError: for hours that there are not, or so few that nothing is left of a corpus.
    """
    own = [float(manifest.durations_s.astype(np.float64).sum()) / 3600 for manifest in manifests]
    whole = sum(own)
    if not 0 < hours <= whole * (1 + 1e-9):
        names = ", ".join(str(manifest.directory) for manifest in manifests)
        raise SprachbundError(f"{hours:g} hours are wanted of {names}; give more than 0, at most {whole:.3f}")
    return [
        _front(manifest, 3600 * hours * part / whole, seed)
        for manifest, part in zip(manifests, own, strict=True)
    ]


def _front(manifest: Utterances, seconds: float, seed: int) -> Utterances:
    """The first utterances in the shuffled order, as many as fit."""
    order = np.random.default_rng([seed, len(manifest)]).permutation(len(manifest))
    ends_s = np.cumsum(manifest.durations_s[order].astype(np.float64))
    chosen = order[ends_s <= seconds * (1 + 1e-9)]
    if not len(chosen) and len(manifest):
        raise SprachbundError(
            f"{manifest.directory} has no utterance as short as {seconds:.1f} s to begin with; ask for more hours"
        )
    return manifest.only(chosen)

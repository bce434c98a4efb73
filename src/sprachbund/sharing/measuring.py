"""The importance of hidden units, for the modules and languages that a sharing plan asks about."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sprachbund.data.manifest import Manifest
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.sharing.gradients import Spoken, decoder_loss
from sprachbund.sharing.importance import collect_importance
from sprachbund.sharing.surgery import Importance
from sprachbund.sharing.utterances import Row, choose_rows

BATCH = 8
Key = tuple[str, tuple[str, ...], int]


def measure_importance(
    model: Any,
    plan: SharingPlan,
    manifests: Sequence[Manifest],
    utterances: int,
    *,
    targets: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Importance:
    """Importance (F,) of the hidden units, by module and language, of every module that starts by "neuron".

    Args:
        model: that the plan is for, not split yet.
        plan: what will be split.
        manifests: speech to measure on.
        utterances: of each language, or pair.
        targets: languages written; all that the model knows if none are given.
        progress: told how many batches are done, and how many there are.

    Raises:
        SprachbundError: too few utterances of a language, or gradients that are zero or not finite.
    """
    alike: dict[Key, list[str]] = {}  # modules that are measured in the same passes
    for split in plan.splits:
        if split.start == "neuron":
            languages = tuple(sorted(tag for group in split.groups for tag in group))
            alike.setdefault((split.side, languages, split.seed), []).append(split.module)
    total = sum(len(languages) for _, languages, _ in alike) * -(-utterances // BATCH)
    found: dict[str, Any] = {}
    done = 0
    for (side, languages, seed), modules in alike.items():
        chosen = choose_rows(
            model,
            manifests,
            by=side,  # type: ignore[arg-type]
            count=utterances,
            seed=seed,
            languages=languages,
            targets=targets,
        ).rows
        found |= collect_importance(
            model,
            {tag: _batches(rows, manifests) for tag, rows in chosen.items()},
            modules,
            loss=lambda batch: decoder_loss(model, batch)[0],
            progress=lambda batches, before=done: progress(before + batches, total),  # type: ignore[misc]
        )
        done += len(languages) * -(-utterances // BATCH)
    return found


def _batches(rows: Sequence[Row], manifests: Sequence[Manifest]) -> Iterator[list[Spoken]]:
    for start in range(0, len(rows), BATCH):
        yield [row.read(manifests) for row in rows[start : start + BATCH]]

"""From gradient sketches to a sharing plan: the three analyses of arXiv 2603.25836 on every module, then the choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import Grouping, Matrix, ModuleEvidence, SharingPlan, Side, Split
from sprachbund.research.gradient_sharing import analyses
from sprachbund.research.gradient_sharing.analyses import (
    MIN_TO_HALVE,
    NUM_HALVES,
    half_samples,
    mean_cosines,
    means,
    ordered_rows,
    similarity,
)
from sprachbund.research.gradient_sharing.plan_options import Clustering, SharingPlanOptions
from sprachbund.research.gradient_sharing.sketches import SEPARATOR, Sketches
from sprachbund.util.progress import Progress

_DIGITS = 6
_Z95 = 1.96


def make_plan(
    sketches: Sketches, options: SharingPlanOptions | None = None, *, progress: Progress | None = None
) -> SharingPlan:
    """Decide what to split, from gradients. Neither the order of languages nor that of vectors matters.

    Args:
        sketches: sketches of one model; its `info`, when there, names the model and the side of each module.
        options: the published ones if not given.
        progress: called with (modules done, modules in all).

    Returns:
        the plan with the evidence of every module; it may have fewer splits than asked for, down to none, where
        languages do not differ enough; its notes say so.

    Raises:
        SprachbundError: when there are fewer modules or languages than asked for, too few vectors, or a number of
            groups was asked for and no module has a conflict that is known.
    """
    options = options or SharingPlanOptions()
    _check_counts(sketches, options)
    modules = {}
    for done, module in enumerate(sketches.modules):
        if progress is not None:
            progress(done, len(sketches.modules))
        modules[module] = measure(sketches, module, options)
    ranked = analyses.ranked(modules, options.choose_by)
    whole = [name for name in ranked if _stays_whole(modules[name], options)]
    chosen = [name for name in ranked if name not in whole][: options.num_modules]
    if options.num_groups is not None and not chosen:
        raise SprachbundError(f"nothing can be split: {_why_whole(modules[ranked[0]])}")
    model_hash = sketches.info.get("model_hash")
    return SharingPlan(
        model_hash=None if model_hash is None else str(model_hash),
        splits=tuple(_split(name, modules[name], _side(sketches, name), options) for name in chosen),
        modules=modules,
        notes=_notes(modules, ranked, chosen, options),
    )


def measure(sketches: Sketches, module: str, options: SharingPlanOptions | None = None) -> ModuleEvidence:
    """All numbers of one module. Arguments and errors as for `make_plan`."""
    options = options or SharingPlanOptions()
    languages = sketches.languages
    in_file = [sketches.vectors[module][language].astype(np.float64) for language in languages]
    _check_vectors(module, languages, in_file)
    rows = [ordered_rows(unit) for unit in in_file]
    grouping = analyses.find_groups(
        rows,
        num_groups=options.num_groups,
        clustering=options.clustering,
        veto=options.veto if options.num_groups is None else None,
        seed=options.seed,
    )
    other: Clustering = "kmeans" if options.clustering == "ward" else "ward"
    by_other = analyses.cluster(rows, len(grouping.before_veto), other, options.seed)
    cosines = mean_cosines(rows)
    self_similarity, cross = map(_rounded, analyses.self_and_cross(cosines))
    purity = analyses.purities(cosines)
    energy = analyses.energies(rows)
    errors = _errors(rows, grouping.before_veto, options)
    clear = errors is not None and not analyses.noisy(rows, options.seed)
    return ModuleEvidence(
        languages=languages,
        num_vectors={language: len(unit) for language, unit in zip(languages, rows, strict=True)},
        similarity=_matrix(similarity(means(rows), languages, module)),
        mean_cosines=_matrix(cosines),
        self_similarity=self_similarity,
        cross_similarity=cross,
        delta=_rounded(self_similarity - cross),
        delta_margin=None if errors is None else errors.delta,
        corrected=_matrix(analyses.corrected(cosines)),
        conflict=_rounded(analyses.conflict(cosines)) if clear else None,
        conflict_margin=errors.conflict if errors is not None and clear else None,
        purity=_rounded(purity.mean()),
        purity_by_language=_by_language(languages, purity),
        groups=_named(grouping.partition, languages),
        merged=_named(grouping.before_veto, languages) if grouping.partition != grouping.before_veto else (),
        silhouette=None if grouping.silhouette is None else _rounded(grouping.silhouette),
        agreements={k: _rounded(value) for k, value in grouping.agreements.items()},
        spread=_rounded(grouping.spread),
        separation=_rounded(grouping.separation),
        clustering=options.clustering,
        agreement=_rounded(analyses.agreement(grouping.before_veto, by_other)),
        stability=None if errors is None else errors.same,
        energy_by_language=_by_language(languages, energy),
        energy_shares=tuple(_rounded(energy[list(group)].sum()) for group in grouping.partition),
        principal_angles_deg=_matrix(analyses.principal_angles_deg(rows)),
        canonical_correlations=_matrix(analyses.canonical_correlations(in_file)),
    )


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """Half widths of the 95% intervals of delta and conflict, and the share of half samples with the same groups.

    One group comes out of any sample, and so does a group for each language, so nothing is said of these.
    """

    delta: float
    conflict: float
    same: float | None


def _errors(
    rows: Sequence[np.ndarray], whole: analyses.Partition, options: SharingPlanOptions
) -> _Errors | None:
    """None with too few vectors for halves."""
    if min(map(len, rows)) < MIN_TO_HALVE:
        return None
    cosines = mean_cosines(rows)
    delta, conflict = _delta(cosines), analyses.conflict(cosines)
    errors, same = [], 0
    for half in half_samples(rows, NUM_HALVES, options.seed):
        of_half = mean_cosines(half)
        errors.append((_delta(of_half) - delta, analyses.conflict(of_half) - conflict))
        same += analyses.cluster(half, len(whole), options.clustering, options.seed) == whole
    widths = _Z95 * np.sqrt(np.square(errors).mean(0))
    return _Errors(
        delta=_rounded(widths[0]),
        conflict=_rounded(widths[1]),
        same=_rounded(same / NUM_HALVES) if 1 < len(whole) < len(rows) else None,
    )


def _delta(mean_cosines: np.ndarray) -> float:
    own, cross = analyses.self_and_cross(mean_cosines)
    return own - cross


def _split(module: str, evidence: ModuleEvidence, side: Side, options: SharingPlanOptions) -> Split:
    by_energy = options.private_widths == "energy"
    ratio = options.shared_ratio
    if ratio is None:
        conflict = _conflict(evidence, options)
        assert conflict is not None  # else it stays whole
        ratio = analyses.shared_ratio(conflict, options.bounds, options.ratios)
    if by_energy and min(evidence.energy_shares) <= 0:
        raise SprachbundError(
            f"a group of {module} has no energy in the common subspace, so no width follows from it; "
            "take equal private widths"
        )
    return Split(
        module=module,
        side=side,
        groups=evidence.groups,
        shared_ratio=ratio,
        private_shares=evidence.energy_shares if by_energy else (),
        start=options.start,
        seed=options.seed,
        evidence=evidence,
    )


def _stays_whole(evidence: ModuleEvidence, options: SharingPlanOptions) -> bool:
    """Whether there are no groups to split by, or no conflict that gives the shared ratio."""
    return len(evidence.groups) < 2 or (options.shared_ratio is None and _conflict(evidence, options) is None)


def _conflict(evidence: ModuleEvidence, options: SharingPlanOptions) -> float | None:
    """The conflict that gives the shared ratio; None where it is not known."""
    return evidence.delta if options.conflict == "raw" else evidence.conflict


def _side(sketches: Sketches, module: str) -> Side:
    """As the file says; else pairs by their names, and a decoder by its name."""
    sides = sketches.info.get("side", {})
    if not isinstance(sides, Mapping):
        raise SprachbundError(f"side in the file's info is {sides!r}; it must map modules to their sides")
    side = sides.get(module)
    if sketches.info.get("granularity") == "pair" or all(">" in tag for tag in sketches.languages):
        return "pair"
    if side is not None:
        _one_of(f"side of {module} in the file's info", side, get_args(Side))
        return side
    return "target" if "decoder" in module.split(".") else "source"


def _notes(
    modules: dict[str, ModuleEvidence],
    ranked: Sequence[str],
    chosen: Sequence[str],
    options: SharingPlanOptions,
) -> tuple[str, ...]:
    """Notes on splits that differ from what the options suggest."""
    notes = []
    last = ranked.index(chosen[-1]) if len(chosen) == options.num_modules else len(ranked)
    whole: dict[str, list[str]] = {}
    for name in ranked[:last]:
        if name not in chosen:
            whole.setdefault(_why_whole(modules[name]), []).append(name)
    for why, names in whole.items():
        stay = "stays" if len(names) == 1 else "stay"
        notes.append(f"{', '.join(names)} would come first, but {stay} whole: {why}")
    median = analyses.median_self_similarity(modules)
    if options.choose_by == "purity" and len(modules) > 1:
        low = [name for name in chosen if modules[name].self_similarity <= median]
        notes += [
            f"{name} is not above the median self similarity; the modules above ran out" for name in low
        ]
    if len(chosen) < options.num_modules:
        notes.append(
            f"{len(chosen)} of {options.num_modules} modules to split: in the rest there are no groups to split by"
        )
    return tuple(notes)


def _why_whole(evidence: ModuleEvidence) -> str:
    if evidence.merged:
        return "groups too alike"
    if evidence.conflict is None:
        return (
            "gradients of a language that agree with themselves no better than by chance; collect more utterances, "
            "or give the shared ratio (--rho)"
        )
    return "no groups that come out again in halves of the data and are far enough apart"


def _check_counts(sketches: Sketches, options: SharingPlanOptions) -> None:
    count, languages = len(sketches.modules), sketches.languages
    if not 1 <= options.num_modules <= count:
        raise SprachbundError(
            f"{options.num_modules} modules to split, but gradients of {count}; ask for 1 to {count}"
        )
    if options.num_groups is not None and not 2 <= options.num_groups <= len(languages):
        raise SprachbundError(
            f"{options.num_groups} groups cannot be made of {len(languages)} languages "
            f"({', '.join(languages)}); ask for 2 to {len(languages)}"
        )


def _check_vectors(module: str, languages: Sequence[str], rows: Sequence[np.ndarray]) -> None:
    for language, unit in zip(languages, rows, strict=True):
        if len(unit) < 2:
            raise SprachbundError(
                f"array {module + SEPARATOR + language!r} has one vector only, so how far {language} agrees "
                "with itself is not known; collect at least two, better fifty"
            )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SprachbundError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS) + 0.0  # no negative zero


def _matrix(values: np.ndarray) -> Matrix:
    return tuple(tuple(_rounded(value) for value in row) for row in values)


def _by_language(languages: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {language: _rounded(value) for language, value in zip(languages, values, strict=True)}


def _named(partition: analyses.Partition, languages: Sequence[str]) -> Grouping:
    return tuple(tuple(languages[index] for index in group) for group in partition)

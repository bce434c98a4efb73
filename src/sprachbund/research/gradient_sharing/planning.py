"""From gradient sketches to a sharing plan: the three analyses of arXiv 2603.25836 on every module, then the choice."""

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import Grouping, Matrix, ModuleEvidence, SharingPlan, Side, Split
from sprachbund.research.gradient_sharing import analyses as capacity
from sprachbund.research.gradient_sharing import analyses as groups
from sprachbund.research.gradient_sharing import analyses as subspace
from sprachbund.research.gradient_sharing.analyses import (
    MIN_TO_HALVE,
    half_samples,
    mean_cosines,
    means,
    ordered_rows,
    similarity,
)
from sprachbund.research.gradient_sharing.plan_options import Clustering, SharingPlanOptions
from sprachbund.research.gradient_sharing.sketches import SEPARATOR, Sketches

NUM_HALVES = 40
_DIGITS = 6
_Z95 = 1.96
Progress = Callable[[int, int], None]


def make_plan(
    sketches: Sketches, options: SharingPlanOptions | None = None, *, progress: Progress | None = None
) -> SharingPlan:
    """Decide what to split, from gradients. Neither the order of languages nor that of vectors matters.

    Args:
        sketches: of one model; its `info`, when there, tells the model and the side of each module.
        options: the published ones if not given.
        progress: called with (modules done, modules in all).

    Returns:
        the plan with the evidence of every module; it may have fewer splits than asked for, down to none, where
        languages do not differ enough; its notes say so.

    Raises:
        SprachbundError: when there are fewer modules or languages than asked for, or too few vectors.
    """
    options = options or SharingPlanOptions()
    _check_counts(sketches, options)
    modules = {}
    for done, module in enumerate(sketches.modules):
        if progress is not None:
            progress(done, len(sketches.modules))
        modules[module] = measure(sketches, module, options)
    ranked = capacity.ranked(modules, options.choose_by)
    whole = [name for name in ranked if len(modules[name].groups) < 2]
    chosen = [name for name in ranked if name not in whole][: options.num_modules]
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
    grouping, other = (_grouped(rows, languages, module, options, name) for name in _methods(options))
    cosines = mean_cosines(rows)
    self_similarity, cross = map(_rounded, capacity.self_and_cross(cosines))
    purity = capacity.purities(cosines)
    energy = subspace.energies(rows)
    margin, stability = _sureness(rows, grouping.partition, languages, module, options)
    return ModuleEvidence(
        languages=languages,
        num_vectors={language: len(unit) for language, unit in zip(languages, rows, strict=True)},
        similarity=_matrix(similarity(means(rows), languages, module)),
        mean_cosines=_matrix(cosines),
        self_similarity=self_similarity,
        cross_similarity=cross,
        delta=_rounded(self_similarity - cross),
        delta_margin=margin,
        purity=_rounded(purity.mean()),
        purity_by_language=_by_language(languages, purity),
        groups=_named(grouping.partition, languages),
        merged=_named(grouping.before_veto, languages) if grouping.partition != grouping.before_veto else (),
        silhouette=None if grouping.silhouette is None else _rounded(grouping.silhouette),
        silhouettes={k: _rounded(score) for k, score in grouping.silhouettes.items()},
        spread=_rounded(grouping.spread),
        separation=_rounded(grouping.separation),
        clustering=options.clustering,
        agreement=_rounded(groups.agreement(grouping.partition, other.partition)),
        stability=stability,
        energy_by_language=_by_language(languages, energy),
        energy_shares=tuple(_rounded(energy[list(group)].sum()) for group in grouping.partition),
        principal_angles_deg=_matrix(subspace.principal_angles_deg(rows)),
        canonical_correlations=_matrix(subspace.canonical_correlations(in_file)),
    )


def _methods(options: SharingPlanOptions) -> tuple[Clustering, Clustering]:
    """The clustering that decides, then the other one."""
    return ("ward", "kmeans") if options.clustering == "ward" else ("kmeans", "ward")


def _grouped(
    rows: Sequence[np.ndarray],
    languages: Sequence[str],
    module: str,
    options: SharingPlanOptions,
    clustering: Clustering,
    scored: bool = True,
) -> groups.Groups:
    centres = means(rows)
    return groups.find_groups(
        centres,
        similarity(centres, languages, module),
        num_groups=options.num_groups,
        clustering=clustering,
        veto=options.veto if options.num_groups is None else None,
        seed=options.seed,
        scored=scored,
    )


def _sureness(
    rows: Sequence[np.ndarray],
    whole: groups.Partition,
    languages: Sequence[str],
    module: str,
    options: SharingPlanOptions,
) -> tuple[float | None, float | None]:
    """Half width of delta's 95% interval, and the share of half samples that group as the whole does."""
    if min(map(len, rows)) < MIN_TO_HALVE:
        return None, None
    self_similarity, cross = capacity.self_and_cross(mean_cosines(rows))
    errors, same = [], 0
    for half in half_samples(rows, NUM_HALVES, options.seed):
        half_self, half_cross = capacity.self_and_cross(mean_cosines(half))
        errors.append(half_self - half_cross - self_similarity + cross)
        groups_of_half = _grouped(half, languages, module, options, options.clustering, scored=False)
        same += groups_of_half.partition == whole
    return _rounded(_Z95 * float(np.sqrt(np.square(errors).mean()))), _rounded(same / NUM_HALVES)


def _split(module: str, evidence: ModuleEvidence, side: Side, options: SharingPlanOptions) -> Split:
    by_energy = options.private_widths == "energy"
    ratio = options.shared_ratio
    if by_energy and min(evidence.energy_shares) <= 0:
        raise SprachbundError(
            f"a group of {module} has no energy in the common subspace, so no width follows from it; "
            "take equal private widths"
        )
    return Split(
        module=module,
        side=side,
        groups=evidence.groups,
        shared_ratio=capacity.shared_ratio(evidence.delta, options.thresholds, options.ratios)
        if ratio is None
        else ratio,
        private_shares=evidence.energy_shares if by_energy else (),
        start=options.start,
        seed=options.seed,
        evidence=evidence,
    )


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
    """What was not as a person would expect of the options."""
    notes = []
    last = ranked.index(chosen[-1]) if len(chosen) == options.num_modules else len(ranked)
    for name in ranked[:last]:
        if name not in chosen:
            why = "its groups are too alike" if modules[name].merged else "its languages do not differ"
            notes.append(f"{name} would come first, but stays whole: {why}")
    median = capacity.median_self_similarity(modules)
    if options.choose_by == "purity" and len(modules) > 1:
        low = [name for name in chosen if modules[name].self_similarity <= median]
        notes += [
            f"{name} is not above the median self similarity; the modules above ran out" for name in low
        ]
    if len(chosen) < options.num_modules:
        notes.append(f"{len(chosen)} of {options.num_modules} modules to split: the rest is as good shared")
    return tuple(notes)


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
                "with itself cannot be told; collect at least two, better fifty"
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


def _named(partition: groups.Partition, languages: Sequence[str]) -> Grouping:
    return tuple(tuple(languages[index] for index in group) for group in partition)

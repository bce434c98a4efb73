"""Sharing plans, and the differences between two of them, in words and as numbers.

A text consists of blocks, lines and tables, which a terminal and a page write in their own way.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import Grouping, ModuleEvidence, SharingPlan, Split
from sprachbund.research.gradient_sharing import analyses as capacity
from sprachbund.research.gradient_sharing.analyses import NUM_HALVES

NUM_PAIRS = 3
_SURE, _LIKELY = 0.9, 0.6
_ALONG, _PARTLY = 0.9, 0.5
_HEAD = ("module", "self", "cross", "delta", "conflict", "purity", "separation", "groups", "found again")
_CHANGE_HEAD = ("module", "before", "now", "change", "conflict", "groups", "changed most")


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """Rows of cells under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = str | ReportTable


@dataclass(frozen=True, kw_only=True)
class LanguagePair:
    """Two languages in a module.

    Attributes:
        module: name of the module.
        languages: the two.
        together: mean cosine of the one's vectors with the other's.
        own: mean cosine within each.
        error: half width of a cosine's 95% interval; 0 where it is not known.
    """

    module: str
    languages: tuple[str, str]
    together: float
    own: tuple[float, float]
    error: float = 0.0

    @property
    def corrected(self) -> float | None:
        """Noise-corrected cosine of their gradients; None where one agrees with itself no better than by chance."""
        if min(self.own) <= self.error:
            return None
        return min(1.0, max(-1.0, self.together / (self.own[0] * self.own[1]) ** 0.5))

    @property
    def conflict(self) -> float:
        """1 less the corrected cosine; 0 where that is not known."""
        return 0.0 if self.corrected is None else 1 - self.corrected

    @property
    def words(self) -> str:
        """The meaning of the cosine in words, measured against how well each language agrees with itself."""
        if self.together < -self.error:
            return "pull against each other"
        if self.corrected is None:
            return "cannot be told apart from noise"
        if self.corrected > _ALONG:
            return "pull together"
        return "agree in part" if self.corrected > _PARTLY else "go different ways"


def pairs(modules: Mapping[str, ModuleEvidence]) -> list[LanguagePair]:
    """All pairs of languages in all modules, those that fight most first."""
    conflicts = [
        pair
        for module, evidence in modules.items()
        for pair in pairs_of(module, evidence.languages, evidence.mean_cosines, _error(evidence))
    ]
    return sorted(conflicts, key=lambda pair: -pair.conflict)


def pairs_of(
    module: str, languages: Sequence[str], s: Sequence[Sequence[float]], error: float = 0.0
) -> list[LanguagePair]:
    """All pairs of languages in a module with the mean cosines s, which may be off by `error`."""
    return [
        LanguagePair(
            module=module,
            languages=(languages[a], languages[b]),
            together=s[a][b],
            own=(s[a][a], s[b][b]),
            error=error,
        )
        for a, b in itertools.combinations(range(len(languages)), 2)
    ]


def _error(evidence: ModuleEvidence) -> float:
    """Of one language's cosine: delta's is that of a mean over all languages."""
    return (evidence.delta_margin or 0.0) * len(evidence.languages) ** 0.5


def numbers(plan: SharingPlan) -> dict[str, Any]:
    """The plan as one JSON object: what each split's evidence says stands beside what is to be done."""
    splits = []
    for split in plan.splits:
        evidence = split.evidence.model_dump(mode="json") if split.evidence else {}
        splits.append({**evidence, **split.model_dump(mode="json", exclude={"evidence"})})
    whole = plan.model_dump(mode="json", exclude={"splits"})
    return {"version": whole.pop("version"), "splits": splits, **whole}


def changes(now: Mapping[str, ModuleEvidence], before: Mapping[str, ModuleEvidence]) -> list[dict[str, Any]]:
    """Return the change of the conflict in each module that two checkpoints share, over the languages that both have.

    Raises:
        SprachbundError: when they have no module, or not two languages, in common.
    """
    names = [name for name in now if name in before]
    if not names:
        raise SprachbundError(
            f"the two have no module in common: {_some(now)} against {_some(before)}; analyse the same modules"
        )
    return [{"module": name, **_change(now[name], before[name])} for name in names]


def _change(now: ModuleEvidence, before: ModuleEvidence) -> dict[str, Any]:
    common = [tag for tag in now.languages if tag in before.languages]
    if len(common) < 2:
        raise SprachbundError(
            f"the two have no two languages in common: {', '.join(now.languages)} against "
            f"{', '.join(before.languages)}; analyse the same languages"
        )
    cosines = [_among(evidence, common) for evidence in (now, before)]
    deltas = [own - cross for own, cross in map(capacity.self_and_cross, cosines)]
    corrected = [capacity.conflict(matrix) for matrix in cosines]
    both = zip(*(pairs_of("", common, matrix.tolist()) for matrix in cosines), strict=True)
    most, old = max(both, key=lambda pair: abs(pair[0].conflict - pair[1].conflict))
    same_languages = set(now.languages) == set(before.languages)
    groups = [{frozenset(group) & set(common) for group in e.groups} - {frozenset()} for e in (now, before)]
    return {
        "languages": common,
        "delta_before": round(deltas[1], 6),
        "delta": round(deltas[0], 6),
        "corrected_before": round(corrected[1], 6),
        "corrected": round(corrected[0], 6),
        "change": round(corrected[0] - corrected[1], 6),
        "clear": _is_clear(corrected[0] - corrected[1], now, before) if same_languages else None,
        "purity_before": round(float(capacity.purities(cosines[1]).mean()), 6),
        "purity": round(float(capacity.purities(cosines[0]).mean()), 6),
        "same_groups": groups[0] == groups[1],
        "pair_changed_most": list(most.languages),
        "conflict_before": round(old.conflict, 6),
        "conflict": round(most.conflict, 6),
    }


def _among(evidence: ModuleEvidence, languages: Sequence[str]) -> np.ndarray:
    """Mean cosines of some of the languages, in their order."""
    indices = [evidence.languages.index(tag) for tag in languages]
    return np.array(evidence.mean_cosines)[np.ix_(indices, indices)]


def plan_blocks(plan: SharingPlan) -> list[Block]:
    """The table of all modules, then what to split and why."""
    blocks: list[Block] = [heading(plan), "", modules_table(plan)] if plan.modules else []
    for split in plan.splits:
        blocks += ["", f"split {split.module}"]
        blocks += [f"  {word:8}  {fact}" for word, fact in split_facts(split)]
    if not plan.splits:
        blocks += [
            "",
            "nothing to split: in no module that was looked at do groups of languages differ clearly",
        ]
    return [*blocks, *([""] if plan.notes else []), *[f"note: {note}" for note in plan.notes]]


def show_blocks(plan: SharingPlan, against: SharingPlan | None = None) -> list[Block]:
    """Report on conflicts between languages with their uncertainty, changes since another checkpoint, and the plan."""
    changed = [] if against is None else ["", *change_blocks(plan, against)]
    return [*fight_lines(plan), *changed, "", *plan_blocks(plan)]


def modules_table(plan: SharingPlan) -> ReportTable:
    """The main numbers of every module; those to split have a star."""
    chosen = {split.module for split in plan.splits}
    rows = [_row(name, evidence, name in chosen) for name, evidence in plan.modules.items()]
    return ReportTable(head=_HEAD, rows=rows)


def heading(plan: SharingPlan) -> str:
    """Return the heading of a plan in one line: languages, modules and vectors."""
    first = next(iter(plan.modules.values()))
    counts = sorted(set(first.num_vectors.values()))
    vectors = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{len(first.languages)} languages ({' '.join(first.languages)}), "
        f"{_count(len(plan.modules), 'module')}, {vectors} vectors of each language"
    )


def _row(name: str, evidence: ModuleEvidence, chosen: bool) -> list[str]:
    margin = "" if evidence.delta_margin is None else f" ±{evidence.delta_margin:.3f}"
    again = "?" if evidence.stability is None else f"{100 * evidence.stability:.0f}%"
    return [
        name + (" *" if chosen else ""),
        f"{evidence.self_similarity:.3f}",
        f"{evidence.cross_similarity:.3f}",
        f"{evidence.delta:.3f}{margin}",
        _conflict(evidence),
        f"{evidence.purity:.3f}",
        f"{evidence.separation:.3f}",
        grouping(evidence.groups),
        again,
    ]


def grouping(groups: Grouping) -> str:
    """Groups in one line: "bem | aeb est gle"."""
    return " | ".join(" ".join(group) for group in groups)


def split_facts(split: Split) -> list[tuple[str, str]]:
    """Return the split of one module, and how certain its groups are, as pairs of a word and its value."""
    private = " ".join(f"{100 * (1 - split.shared_ratio) * share:.1f}%" for share in split.private_shares)
    evidence = split.evidence
    why = f", for a conflict of {_conflict(evidence)} (delta {evidence.delta:.3f})" if evidence else ""
    facts = [
        ("by", _BY[split.side]),
        ("groups", grouping(split.groups)),
        ("shared", f"{100 * split.shared_ratio:.1f}% of the inner width{why}"),
        ("private", f"{private}, in the order of the groups"),
        ("start", f"{split.start}, seed {split.seed}"),
    ]
    if evidence is None:
        return [*facts, ("sure", "not measured: the split was made by hand")]
    if set(map(frozenset, evidence.groups)) != set(map(frozenset, split.groups)):
        return [*facts, ("sure", f"not measured: gradients gave the groups {grouping(evidence.groups)}")]
    shares = " ".join(f"{100 * share:.1f}%" for share in evidence.energy_shares)
    return [*facts, ("energy", f"{shares} of the gradients', by group"), ("sure", _sure(evidence))]


_BY = {
    "source": "the language heard",
    "target": "the language written",
    "pair": "the pair of languages heard and written",
}


def _sure(evidence: ModuleEvidence) -> str:
    """Reliability of the groups, in words."""
    if _none_seen(evidence):
        return (
            "no: the conflict is not larger than its error; more utterances would tell whether there is any"
        )
    if all(len(group) == 1 for group in evidence.groups):
        return "each language is a group of its own, so there was nothing to group"
    other = "k-means" if evidence.clustering == "ward" else "Ward linkage"
    if evidence.agreement == 1:
        agree = f"{other} finds the same groups"
    else:
        agree = f"{other} groups otherwise (agreement {evidence.agreement:.2f})"
    if evidence.stability is None:
        return f"too few vectors to say; {agree}"
    times = f"the same groups in {round(evidence.stability * NUM_HALVES)} of {NUM_HALVES} random halves of the data"
    if evidence.stability >= _SURE:
        return f"yes: {times}; {agree}"
    if evidence.stability >= _LIKELY:
        return f"likely: {times}; {agree}"
    return f"doubtful, more utterances would tell: {times}; {agree}"


def fight_lines(plan: SharingPlan) -> list[str]:
    """The pairs that fight most, each once, where they do so most; then where in the model."""
    if not plan.modules:
        return ["this plan holds no evidence, so what follows is only what to do"]
    worst: dict[tuple[str, str], LanguagePair] = {}
    for pair in pairs(plan.modules):
        worst.setdefault(pair.languages, pair)
    lines = ["who fights most, and where:"]
    for pair in list(worst.values())[:NUM_PAIRS]:
        one, other = pair.languages
        lines.append(
            f"  {one} and {other} {pair.words} in {pair.module}: cosine of their gradients "
            f"{pair.together:.2f}, within each {pair.own[0]:.2f} and {pair.own[1]:.2f}"
        )
    known = {name: evidence for name, evidence in plan.modules.items() if evidence.conflict is not None}
    order = sorted(known, key=lambda name: -known[name].clear_conflict)
    if order:
        lines.append(f"  clearest conflict: {order[0]}, {_conflict(plan.modules[order[0]])} (95%)")
    if len(order) > 1:
        lines.append(f"  least clear conflict: {order[-1]}, {_conflict(plan.modules[order[-1]])} (95%)")
    if all(map(_none_seen, plan.modules.values())):
        lines.append("  no conflict is larger than its error: more utterances are needed to tell")
    return lines


def _conflict(evidence: ModuleEvidence) -> str:
    """The corrected conflict with its margin, or a question mark."""
    if evidence.conflict is None:
        return "?"
    margin = "" if evidence.conflict_margin is None else f" ±{evidence.conflict_margin:.3f}"
    return f"{evidence.conflict:.3f}{margin}"


def _none_seen(evidence: ModuleEvidence) -> bool:
    """Whether no conflict is seen: it is not known, or not larger than its error."""
    if evidence.conflict is None:
        return True
    return evidence.conflict_margin is not None and evidence.conflict <= evidence.conflict_margin


def change_blocks(plan: SharingPlan, against: SharingPlan) -> list[Block]:
    """Return the change of the conflict from another checkpoint, `against`, to that of the plan.

    Errors are those of `changes`.
    """
    changed = changes(plan.modules, against.modules)
    rows = [
        [
            change["module"],
            f"{change['corrected_before']:.3f}",
            f"{change['corrected']:.3f}",
            f"{change['change']:+.3f}",
            _trend(change),
            "the same" if change["same_groups"] else "others",
            f"{' and '.join(change['pair_changed_most'])}: "
            f"{change['conflict_before']:.3f} to {change['conflict']:.3f}",
        ]
        for change in changed
    ]
    clear = [change for change in changed if change["clear"]]
    grew = sum(change["change"] > 0 for change in clear)
    summary = (
        f"conflict grew in {grew} of {_count(len(changed), 'module')}, fell in {len(clear) - grew}; "
        f"no clear change in {len(changed) - len(clear)}"
    )
    blocks: list[Block] = [summary, ReportTable(head=_CHANGE_HEAD, rows=rows)]
    common = changed[0]["languages"]
    languages = {tag for e in (*plan.modules.values(), *against.modules.values()) for tag in e.languages}
    if languages != set(common):
        blocks.append(f"only among the languages of both, so without errors: {' '.join(common)}")
    alone = [
        name for name in {**plan.modules, **against.modules} if name not in {c["module"] for c in changed}
    ]
    return [*blocks, f"only in one of the two, so not compared: {_some(alone)}"] if alone else blocks


def _trend(change: Mapping[str, Any]) -> str:
    if change["clear"] is None:
        return "error not known"
    if not change["clear"]:
        return "no clear change"
    return "stronger" if change["change"] > 0 else "weaker"


def _is_clear(change: float, now: ModuleEvidence, before: ModuleEvidence) -> bool | None:
    """Whether a change of the conflict is beyond its 95% error; None when the error is not known."""
    if now.conflict_margin is None or before.conflict_margin is None:
        return None
    return abs(change) > (now.conflict_margin**2 + before.conflict_margin**2) ** 0.5


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# Differences between two sharing plans.

_DECISIONS = ("side", "shared_ratio", "private_shares", "start", "seed")
_MEASURES = ("self_similarity", "cross_similarity", "delta", "purity", "separation")
_ALIKE = 1e-4


def compare(one: SharingPlan, other: SharingPlan) -> dict[str, Any]:
    """Differences of the second plan from the first.

    Returns:
        `same`: whether both ask for the same splits; `model_hash`: of both where they differ, else None;
        `only_in_first` and `only_in_second`: modules that only one splits; `changed`: for modules that both split,
        what differs, each with its values in both; `evidence`: for modules measured in both, the main numbers in
        both where they differ.
    """
    first = {split.module: split for split in one.splits}
    second = {split.module: split for split in other.splits}
    changed = {
        name: difference
        for name in first
        if name in second and (difference := _changed(first[name], second[name]))
    }
    alone = [name for name in first if name not in second], [name for name in second if name not in first]
    hashes = [one.model_hash, other.model_hash]
    return {
        "same": not (changed or any(alone)),
        "model_hash": hashes if hashes[0] != hashes[1] else None,
        "only_in_first": alone[0],
        "only_in_second": alone[1],
        "changed": changed,
        "evidence": {
            name: difference
            for name in one.modules
            if name in other.modules and (difference := _measured(one.modules[name], other.modules[name]))
        },
    }


def diff_lines(difference: dict[str, Any], one: str, other: str) -> list[str]:
    """The differences in words.

    Args:
        difference: as `compare` returns it.
        one: name of the first plan.
        other: name of the second plan.
    """
    lines = []
    if difference["model_hash"]:
        lines.append("the plans are from gradients of different models")
    for key, name in (("only_in_first", one), ("only_in_second", other)):
        lines += [f"only {name} splits {module}" for module in difference[key]]
    for module, changes in difference["changed"].items():
        lines.append(f"both split {module}, but:")
        lines += [f"  {_line(key, *values)}" for key, values in changes.items() if key != "moved"]
        lines += [f"  {_moved(tag, *homes)}" for tag, homes in changes.get("moved", {}).items()]
    if difference["same"]:
        lines.append("both plans ask for the same splits")
    for module, measured in difference["evidence"].items():
        changes_of = ", ".join(
            f"{key.replace('_', ' ')} {a:.3f} to {b:.3f}" for key, (a, b) in measured.items()
        )
        lines.append(f"measured in {module}: {changes_of}")
    return lines


def _changed(one: Split, other: Split) -> dict[str, Any]:
    """Decisions that differ; groups count as the same in any order, with the shares that belong to them."""
    differences: dict[str, Any] = {}
    homes = [{tag: set(group) for group in split.groups for tag in group} for split in (one, other)]
    if homes[0] != homes[1]:
        differences["groups"] = [[list(group) for group in split.groups] for split in (one, other)]
        tags = sorted(homes[0].keys() | homes[1].keys())
        differences["moved"] = {
            tag: [sorted(home.get(tag, ())) for home in homes]
            for tag in tags
            if homes[0].get(tag) != homes[1].get(tag)
        }
    for key in _DECISIONS:
        values = [getattr(one, key), getattr(other, key)]
        if key == "private_shares" and not differences.get("groups"):
            values[1] = tuple(other.private_shares[other.group_of(group[0])] for group in one.groups)
        if not _alike(*values):
            differences[key] = [list(value) if isinstance(value, tuple) else value for value in values]
    return differences


def _measured(one: ModuleEvidence, other: ModuleEvidence) -> dict[str, list[float]]:
    pairs = {key: [getattr(one, key), getattr(other, key)] for key in _MEASURES}
    return {key: values for key, values in pairs.items() if not _alike(*values)}


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float):
        return abs(one - other) < _ALIKE
    return bool(one == other)


def _line(key: str, one: Any, other: Any) -> str:
    if key == "groups":
        return f"groups {grouping(one)} against {grouping(other)}"
    if key == "private_shares":
        one, other = (" ".join(f"{share:.3f}" for share in shares) for shares in (one, other))
    return f"{key.replace('_', ' ')} {one} against {other}"


def _moved(tag: str, one: list[str], other: list[str]) -> str:
    def company(home: list[str]) -> str:
        others = [name for name in home if name != tag]
        return f"with {' '.join(others)}" if others else "alone" if home else "not known"

    return f"{tag}: {company(one)} against {company(other)}"

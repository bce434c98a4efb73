"""What differs between two sharing plans, in words and as numbers."""

from typing import Any

from sprachbund.models.sharing_plan import Evidence, SharingPlan, Split
from sprachbund.sharing.report import grouping

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
        name: found for name in first if name in second and (found := _changed(first[name], second[name]))
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
            name: found
            for name in one.modules
            if name in other.modules and (found := _measured(one.modules[name], other.modules[name]))
        },
    }


def diff_lines(difference: dict[str, Any], one: str, other: str) -> list[str]:
    """The differences in words.

    Args:
        difference: as `compare` returns it.
        one: what to call the first plan.
        other: what to call the second.
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
        told = ", ".join(f"{key.replace('_', ' ')} {a:.3f} to {b:.3f}" for key, (a, b) in measured.items())
        lines.append(f"measured in {module}: {told}")
    return lines


def _changed(one: Split, other: Split) -> dict[str, Any]:
    """Decisions that differ; groups count as the same in any order, with the shares that belong to them."""
    found: dict[str, Any] = {}
    homes = [{tag: set(group) for group in split.groups for tag in group} for split in (one, other)]
    if homes[0] != homes[1]:
        found["groups"] = [[list(group) for group in split.groups] for split in (one, other)]
        tags = sorted(homes[0].keys() | homes[1].keys())
        found["moved"] = {
            tag: [sorted(home.get(tag, ())) for home in homes]
            for tag in tags
            if homes[0].get(tag) != homes[1].get(tag)
        }
    for key in _DECISIONS:
        values = [getattr(one, key), getattr(other, key)]
        if key == "private_shares" and not found.get("groups"):
            values[1] = tuple(other.private_shares[other.group_of(group[0])] for group in one.groups)
        if not _alike(*values):
            found[key] = [list(value) if isinstance(value, tuple) else value for value in values]
    return found


def _measured(one: Evidence, other: Evidence) -> dict[str, list[float]]:
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
    def told(home: list[str]) -> str:
        others = [name for name in home if name != tag]
        return f"with {' '.join(others)}" if others else "alone" if home else "not known"

    return f"{tag}: {told(one)} against {told(other)}"

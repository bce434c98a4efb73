"""The table of the comparison: every arm of the recipe beside its baseline, over seeds, by paired bootstrap."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sprachbund.evaluation.compare import RunFile, System, compare
from sprachbund.evaluation.lines import Line
from sprachbund.recipes.gradient_sharing_options import BASELINE, GradientSharingRecipe, place
from sprachbund.util.files import write_text


@dataclass(frozen=True)
class _Spoken:
    """The lines of a run whose speech is in some languages."""

    run: RunFile
    languages: frozenset[str]

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self.run if line.source in self.languages)


def write_table(recipe: GradientSharingRecipe, directory: Path) -> Path:
    """Every arm beside the baseline: all languages, and the starved ones alone."""
    names = recipe.all_arms
    groups = {"all": frozenset(recipe.languages), "starved": frozenset(recipe.shares)}
    rows: dict[str, dict[str, object]] = {name: {"arm": name} for name in names}
    for group, languages in groups.items():
        if not languages:
            continue
        systems = [
            System(
                name=name,
                runs=[
                    _Spoken(RunFile(place(directory, seed, name) / "scores"), languages)
                    for seed in recipe.seeds
                ],
            )
            for name in names
        ]
        for (_, name), found in compare(systems, ["chrF"]).means.items():
            low, high = found.interval
            rows[BASELINE][f"chrF {group}"] = found.baseline
            rows[name] |= {
                f"chrF {group}": found.system,
                f"difference {group}": f"{found.difference:+.2f} ({low:+.2f} to {high:+.2f})",
                f"p {group}": found.p_value,
            }
    path = directory / "table.json"
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = [{key: row.get(key, "") for key in columns} for row in rows.values()]
    write_text(path, json.dumps({"recipe": recipe.model_dump(mode="json"), "rows": table}, indent=1) + "\n")
    return path

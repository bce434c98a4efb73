"""What the comparison of dual-scale training measures: models, each with and without what guesses for it."""

from dataclasses import dataclass
from pathlib import Path

from sprachbund.decoding.options import NONE, Accept
from sprachbund.models.drafts import DRAFT_FILE
from sprachbund.recipes.dual_scale_options import (
    DRAFT_MODEL,
    MAIN,
    PRUNE_ONLY,
    TEACHER,
    TOKEN_MAP,
    DualScaleRecipe,
    place,
)

BASE = "pruned, no draft"
MEDUSA = "medusa"
LOSSY: tuple[Accept, ...] = ("top-2", "top-3", "unchecked")


@dataclass(frozen=True, kw_only=True)
class System:
    """A model with something that guesses for it, or nothing.

    Attributes:
        name: of its row.
        seed: of its run.
        model: directory.
        draft: as `--draft` of `translate`.
        guesses: a pass; None chooses by predicted gain.
        accept: which guesses stand.
    """

    name: str
    seed: int
    model: Path
    draft: str = NONE
    guesses: int | None = None
    accept: Accept = "exact"

    @property
    def scores(self) -> str:
        """Name of the folder with its scores, beside the model; what is exact writes the same text."""
        return "scores" if self.accept == "exact" else f"scores-{self.accept}"


def models_of(recipe: DualScaleRecipe, directory: Path) -> list[Path]:
    """Folders of the runs whose models are scored, the teacher's first."""
    return list(dict.fromkeys(system.model.parent for system in systems_of(recipe, directory)))


def systems_of(recipe: DualScaleRecipe, directory: Path) -> list[System]:
    """Everything that is measured, the teacher first."""
    first, guesses = recipe.seeds[0], recipe.timing.guesses
    found = [System(name=TEACHER, seed=first, model=place(directory, TEACHER, first) / "model")]
    for seed in recipe.seeds:
        model = place(directory, MAIN, seed) / "model"
        found.append(System(name=BASE, seed=seed, model=model))
        found.append(System(name=MAIN, seed=seed, model=model, draft=MAIN, guesses=guesses))
    base = place(directory, MAIN, first) / "model"
    found.append(System(name=f"{MAIN}, guesses chosen", seed=first, model=base, draft=MAIN))
    found += _lossy(MAIN, first, base, LOSSY)
    for name in (TOKEN_MAP, DRAFT_MODEL):
        if name in recipe.arms:
            folder = place(directory, name, first) / "model"
            draft = folder / DRAFT_FILE if name == TOKEN_MAP else folder
            found.append(System(name=name, seed=first, model=base, draft=str(draft), guesses=guesses))
    for name, options in recipe.trained_arms.items():
        model = place(directory, name, first) / "model"
        if name == PRUNE_ONLY:
            found.append(System(name=name, seed=first, model=model))
        elif name != MAIN:
            found.append(System(name=name, seed=first, model=model, draft=options.draft, guesses=guesses))
        if name == MEDUSA:
            found += _lossy(MEDUSA, first, model, ("unchecked",))
    return found


def _lossy(draft: str, seed: int, model: Path, ways: tuple[Accept, ...]) -> list[System]:
    return [
        System(name=f"{draft}, {how}", seed=seed, model=model, draft=draft, guesses=1, accept=how)
        for how in ways
    ]

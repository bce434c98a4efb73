"""What `[dual_scale]` in a recipe does to the model that is trained, and to what comes out (arXiv 2508.11189)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprachbund.data.loading import Corpus
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.directory import load, save
from sprachbund.models.drafts import DRAFT_FILE
from sprachbund.models.dual_scale import DualScale, DualScaleOptions
from sprachbund.models.weights import Bits
from sprachbund.recipes.students import Student
from sprachbund.training.draft import finished_draft
from sprachbund.training.dual_scale import make_dual_scale
from sprachbund.training.options import TrainingOptions

if TYPE_CHECKING:
    from sprachbund.recipes.translator import TranslatorRecipe

_NO_TRANSCRIPTION = "It was taught to translate, not to transcribe."


def drawn_for(options: DualScaleOptions | None) -> dict[str, Any]:
    """What examples have to hold besides; see `sprachbund.data.loading.ExampleOptions`."""
    if options is None:
        return {}
    return {"same_language": options.same_language, "spoken": options.text_layers > 0}


def dual_scale_student(student: Student, recipe: TranslatorRecipe, report: Callable[[str], None]) -> Student:
    """The student with its decoder pruned, a text encoder and a guesser.

    Raises:
        SprachbundError: adapters that are asked for twice, or layers that are not there.
    """
    options = recipe.dual_scale
    assert options is not None
    if recipe.lora is not None:
        raise SprachbundError(
            "dual_scale has its own adapters (whole_layers, lora_rank); take lora out of the recipe"
        )
    if options.same_language == 0:
        report("the result will not transcribe; dual_scale.same_language = 0.1 keeps that")
    whole = make_dual_scale(student.model, options)
    bits = recipe.bits or (8 if whole.base.name == "conformer" else 32)
    return Student(model=whole, examples=student.examples, save=partial(_save, whole, bits))


def save_guesser(
    whole: DualScale, training: TrainingOptions, dev: Corpus, directory: Path, report: Callable[[str], None]
) -> None:
    """Put the guesser beside the saved model, with its acceptance on the dev data; nothing where there is none."""
    if whole.guesser is None:
        return
    how = {"training": {"steps": training.steps, **whole.options.model_dump(mode="json")}}
    # As it is saved: in fewer bits, perhaps, and without the pairs that it was not taught.
    draft = finished_draft(load(directory), whole.guesser.eval(), dev, report, **how)
    draft.save(directory / DRAFT_FILE)


def _save(whole: DualScale, bits: Bits, directory: Path, *, card: Card) -> None:
    base = whole.cpu().base
    if whole.options.same_language == 0:
        card = card.model_copy(update={"limits": [*card.limits, _NO_TRANSCRIPTION]})
    if whole.options.same_language == 0 and base.name == "whisper":
        from sprachbund.models.whisper.extension import without_transcription

        base = without_transcription(base)
    save(base, directory, bits=bits, card=card)

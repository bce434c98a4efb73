"""`sprachbund compress distil TEACHER DATA… --student MODEL --out DIR`: a small model learns what a large one does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sprachbund.cli import compress_measuring as shared
from sprachbund.cli.compress_pseudo_label import Speech as _Speech
from sprachbund.cli.compress_pseudo_label import (
    Spoken,
    Targets,
    Teacher,
    as_text,
    default_labels,
    run_labels,
)
from sprachbund.cli.console import Bar, as_usage, listed, resumable, say

if TYPE_CHECKING:
    from sprachbund.recipes.distil import DistilRecipe

LABELS = "labels"
"""Folder of the teacher's texts in that of a run."""


_Student = Annotated[
    str, typer.Option("--student", metavar="MODEL", help="What learns; `compress prune` makes one.")
]
_Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of the run; DIR/model is the result.")
]
_Steps = Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Of training.")]
_LearningRate = Annotated[float, typer.Option("--learning-rate", metavar="X", min=0, help="The highest.")]
_Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", help="At which distributions are compared.")
]
_KlWeight = Annotated[
    float, typer.Option("--kl-weight", metavar="X", min=0, help="Of what else the teacher might write.")
]
_LabelWeight = Annotated[float, typer.Option("--label-weight", metavar="X", min=0, help="Of the texts.")]
_LanguageWeight = Annotated[
    float, typer.Option("--language-weight", metavar="X", min=0, help="Of the language spoken.")
]
_Texts = Annotated[
    Literal["teacher", "data"],
    typer.Option("--texts", help="What is learned: the teacher's, or those in the corpora as they stand."),
]
_Dev = Annotated[
    list[Path] | None,
    typer.Option("--dev", metavar="DIR", help="Corpus that ranks the checkpoints; may be repeated."),
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the recipe; may be repeated."),
]
_StopAfter = Annotated[
    int | None,
    typer.Option("--stop-after", metavar="N", min=1, help="Stop, resumable, after N steps in all."),
]
_Measured = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Corpus to measure both models on; what was learned from if not given.",
    ),
]


def distil(
    teacher: Teacher,
    data: _Speech,
    student: _Student,
    to: Targets,
    out: _Out,
    steps: _Steps = 2000,
    learning_rate: _LearningRate = 2e-4,
    temperature: _Temperature = 2.0,
    kl_weight: _KlWeight = 1.0,
    label_weight: _LabelWeight = 1.0,
    language_weight: _LanguageWeight = 1.0,
    texts: _Texts = "teacher",
    spoken: Spoken = None,
    dev: _Dev = None,
    overrides: _Overrides = None,
    stop_after: _StopAfter = None,
    measured: _Measured = None,
    limit: shared.Limit = shared.LIMIT,
    no_speech: shared.NoSpeech = shared.NO_SPEECH,
    rounds: shared.Rounds = shared.ROUNDS,
    engine: shared.Engine = "torch",
    threads: shared.Threads = None,
    offline: shared.Offline = False,
    as_json: shared.Json = False,
) -> None:
    """Teach a student by its teacher's texts and by KL, from speech alone; both are then measured side by side."""
    shared.set_threads(threads)
    learned = [out / LABELS] if texts == "teacher" else data
    values: dict[str, Any] = {
        "teacher": teacher,
        "student": student,
        "languages": listed(to),
        "train": [{"path": path} for path in learned],
        "dev": [{"path": path} for path in dev or ()],
        "objective": {
            "temperature": temperature,
            "kl_weight": kl_weight,
            "label_weight": label_weight,
            "language_weight": language_weight,
        },
        "training": {
            "steps": steps,
            "learning_rate": learning_rate,
            "warmup_steps": min(500, steps // 10),
        },
    }
    with as_usage(), Bar("starting"):
        from sprachbund.recipes import distil as recipes
        from sprachbund.recipes.options import make_recipe

        recipe = make_recipe(recipes.DistilRecipe, values, overrides or ())
        _check_out(out)
        recipes.check_models(recipe, offline=offline)
    if texts == "teacher":
        labelled = run_labels(
            teacher, data, out / LABELS, default_labels(to), spoken=spoken, engine=engine, offline=offline
        )
        typer.echo(as_text(labelled), err=as_json)
    recipe = _with_spoken(recipe)
    with resumable(out):
        model = recipes.run(
            recipe, out, report=lambda line: typer.echo(line, err=as_json), stop_after=stop_after
        )
    if stop_after is not None and stop_after < recipe.training.steps:
        return say(f"stopped at step {stop_after}; the same command without --stop-after goes on")
    if not measured and texts == "teacher":
        say("measured on the teacher's own texts, by which it is faultless; name a corpus with --data")
    shared.measure_and_tell(
        teacher,
        model,
        measured or learned,
        what={"verb": "distil", "recipe": recipe.model_dump(mode="json")},
        to=to,
        limit=limit,
        no_speech=no_speech,
        rounds=rounds,
        engine=engine,
        offline=offline,
        as_json=as_json,
    )


def _check_out(out: Path) -> None:
    from sprachbund.recipes.distil import RECIPE_FILE
    from sprachbund.recipes.smaller import check_new

    if not ((out / RECIPE_FILE).exists() or (out / LABELS).exists()):
        check_new(out)


def _with_spoken(recipe: "DistilRecipe") -> "DistilRecipe":
    """The recipe with the languages that are spoken in what is learned."""
    from sprachbund.data.manifest import Manifest

    spoken: Sequence[str] = [
        tag for part in recipe.train for tag in sorted(set(Manifest(part.path).languages.tolist())) if tag
    ]
    return recipe.model_copy(update={"languages": tuple(dict.fromkeys([*recipe.languages, *spoken]))})

"""Options of verbs come from options classes: every field reachable or excused, every option explained."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from pydantic import BaseModel, Field, model_validator
from typer.core import TyperGroup, TyperOption

from sprachbund.audio.span_options import SpanOptions
from sprachbund.cli import _ELSEWHERE, build_app
from sprachbund.cli.compress import distil, prune, pseudo_label, quantize
from sprachbund.cli.console import UsageError
from sprachbund.cli.evaluate import compare, evaluate, score
from sprachbund.cli.listen import listen
from sprachbund.cli.options import Panel, VerbCommand, offered_fields, with_options
from sprachbund.cli.serve import serve
from sprachbund.cli.share import analyse
from sprachbund.cli.speech import ModelOptions, OutputOptions
from sprachbund.cli.study import fit as fit_study
from sprachbund.cli.study import report, resume
from sprachbund.cli.study import run as run_study
from sprachbund.cli.train import recipe, train
from sprachbund.cli.translate import transcribe, translate
from sprachbund.cli.units import encode
from sprachbund.cli.units import fit as fit_units
from sprachbund.compression.options import (
    DistillationOptions,
    FilterOptions,
    KQuantOptions,
    LabelOptions,
    MeasureOptions,
    QuantizeOptions,
    TeacherOptions,
)
from sprachbund.decoding.options import GUARD_THRESHOLDS, DecodingOptions, GuardOptions
from sprachbund.evaluation.options import CompareOptions, EvaluationOptions, ScoreOptions
from sprachbund.models.tokens.unit_options import FitOptions, KMeansOptions, VocabularyOptions
from sprachbund.research.encoder_transfer.study_options import AnalysisOptions, ReadOptions, StudyRunOptions
from sprachbund.research.gradient_sharing.collect_options import CollectOptions
from sprachbund.serving.settings import Limits, Settings, Timeouts
from sprachbund.streaming.options import LiveOptions
from sprachbund.training.draft_recipe import DraftRecipe
from sprachbund.training.options import CheckOptions, RunOptions, TrainingOptions
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.unit_translator import UnitTranslatorRecipe
from sprachbund.units.options import EncodingOptions, FeatureOptions, LayerOptions
from sprachbund.util.computing import Computing
from sprachbund.util.options import Option, OptionValueError, Range, check, declared
from tests.stories.support import command

RECORDING = Path(__file__).parents[2] / "examples" / "recordings" / "es.flac"
VERBS: tuple[Callable[..., None], ...] = (
    translate,
    transcribe,
    listen,
    serve,
    evaluate,
    compare,
    score,
    analyse,
    prune,
    quantize,
    pseudo_label,
    distil,
    fit_units,
    encode,
    train,
    recipe,
    run_study,
    resume,
    report,
    fit_study,
)
OPTIONS = (
    DecodingOptions,
    GuardOptions,
    SpanOptions,
    LiveOptions,
    Settings,
    Limits,
    Timeouts,
    EvaluationOptions,
    CompareOptions,
    ScoreOptions,
    CollectOptions,
    ModelOptions,
    OutputOptions,
    MeasureOptions,
    KQuantOptions,
    QuantizeOptions,
    FilterOptions,
    LabelOptions,
    TeacherOptions,
    DistillationOptions,
    FitOptions,
    KMeansOptions,
    VocabularyOptions,
    FeatureOptions,
    LayerOptions,
    EncodingOptions,
    Computing,
    CheckOptions,
    RunOptions,
    StudyRunOptions,
    ReadOptions,
    AnalysisOptions,
)
_SPANS = "chosen together on recordings, and some contradict each other; written in Python"
_PROTOCOL = "a limit of the protocol, far above what clients need; written in Python"
_TESTED = "a time of the protocol that the clients in the documentation count on; written in Python"
NOT_OFFERED = {
    DecodingOptions: {
        "length_penalty": "ranks hypotheses of beam search; the published value fits every family",
        "language_windows": "a detail of language identification that was chosen by measurement",
        "batch_size": "changes no text; the default fills the machines that there are",
        "timestamps": "off only where a corpus is evaluated that is cut already",
    },
    GuardOptions: {
        "hopeless_mean_log_probability": "pseudo-labels have one limit of the log-probability; captions, the published",
        "max_length_ratio": "only of cascades, and no pair of languages has translations near it",
    },
    SpanOptions: dict.fromkeys(
        ("threshold", "release", "min_speech_s", "min_silence_s", "padding_s", "max_span_s"), _SPANS
    ),
    LiveOptions: {
        "max_behind_s": "a session on this machine is behind only when --overload matters, and then by any time",
        "max_waiting_s": "the command reads no more audio than it can work on; the service sets it by its limits",
    },
    Settings: {
        "preload": "for tests, and for services that start before their model is there",
        "batch_size": "changes no text; the default fills the machines that there are",
    },
    Limits: dict.fromkeys(
        ("max_live_waiting_s", "max_message_bytes", "max_targets", "max_texts", "max_text_chars"), _PROTOCOL
    ),
    Timeouts: dict.fromkeys(
        ("idle_s", "upload_grace_s", "upload_bytes_per_s", "answer_s", "live_silent_s", "resume_s"), _TESTED
    ),
    EvaluationOptions: {"first_segments": "how many recordings are timed for one number in the manifest"},
    MeasureOptions: {"batch_size": "changes no text; the default fills the machines that there are"},
    KQuantOptions: {
        "bits": "--encoder-bits says them",
        "block": "the kernels and exported graphs are for blocks of this size",
    },
    DistillationOptions: {"label_smoothing": "reached by --set objective.label_smoothing=X"},
}
"""Fields without an option, and why."""


def _groups(verb: Callable[..., None]) -> Iterator[tuple[type[Any], Panel]]:
    for hint in get_type_hints(verb, include_extras=True).values():
        if get_origin(hint) is Annotated and isinstance(panel := get_args(hint)[1], Panel):
            yield get_args(hint)[0], panel


def _offered() -> set[tuple[type[Any], str]]:
    """Dataclass and field of every option of the verbs."""
    result = set()
    for verb in VERBS:
        for kind, panel in _groups(verb):
            for one in offered_fields(kind, panel, ("",)):
                owner = kind
                for name in one.path[1:-1]:
                    [owner] = [below.type for below in declared(owner) if below.name == name]
                result.add((owner, one.path[-1]))
    return result


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_every_field_has_an_option_or_a_reason_to_have_none(kind: type[Any]) -> None:
    offered, excused = _offered(), NOT_OFFERED.get(kind, {})
    plain = [one.name for one in declared(kind) if not one.is_nested]
    assert [name for name in plain if (kind, name) not in offered] == list(excused)


def test_the_help_names_options_and_no_fields() -> None:
    fields = {one.name for kind in OPTIONS for one in declared(kind)}
    for verb in VERBS:
        for kind, panel in _groups(verb):
            for one in offered_fields(kind, panel, ("",)):
                assert not fields & set(re.findall(r"`(\w+)`", one.help)), (verb.__name__, one.option.name)
    [draft] = [
        one for one in offered_fields(DecodingOptions, Panel(""), ("",)) if one.path[-1] == "translator_draft"
    ]
    assert "as --draft is of its recogniser" in draft.help


def test_captions_have_no_options_for_the_thresholds_of_the_guard() -> None:
    with_option = [f"guard.{one.name}" for one in declared(GuardOptions) if one.option is not None]
    assert with_option == ["guard.enabled", *GUARD_THRESHOLDS, "guard.max_out_of_domain"]
    for verb in (translate, transcribe, listen, evaluate):
        for kind, panel in _groups(verb):
            for one in offered_fields(kind, panel, ("",)):
                assert one.path[-2:-1] != ("guard",) or one.path[-1] in ("enabled", "max_out_of_domain")


@pytest.mark.parametrize("recipe", [TranslatorRecipe, UnitTranslatorRecipe, DraftRecipe])
def test_every_field_of_training_is_reached_by_set(recipe: Any) -> None:
    annotation = recipe.model_fields["training"].annotation
    assert TrainingOptions in (annotation, *get_args(annotation))


def _commands(group: Any, path: str = "sprachbund") -> Iterator[tuple[str, Any]]:
    yield path, group
    context = group.context_class(group, info_name=path)
    for name in group.list_commands(context) if isinstance(group, TyperGroup) else ():
        yield from _commands(group.get_command(context, name), f"{path} {name}")


def test_every_option_of_every_verb_is_explained() -> None:
    commands = dict(_commands(typer.main.get_command(build_app())))
    assert {"sprachbund translate", "sprachbund recipe", "sprachbund share analyse"} <= commands.keys()
    silent = [
        f"{path} {param.opts[0]}"
        for path, one in commands.items()
        for param in one.params
        if isinstance(param, TyperOption) and not param.help
    ]
    assert silent == []


@dataclass(frozen=True, kw_only=True)
class Nested:
    """More.

    Attributes:
        enabled: is on.
    """

    enabled: Annotated[bool, Option("--no-thing", help="Switch the thing off.")] = True


@dataclass(frozen=True, kw_only=True)
class Some:
    """Options of a test.

    Attributes:
        count: how many are made.
        num_bytes: size of one.
        names: of them.
        how: this or that.
        hidden: has no option.
        nested: see there.
    """

    count: Annotated[int, Range(1, 8), Option("--count", metavar="N", old="--number")] = 2
    num_bytes: Annotated[int, Range(0, above=True), Option("--mb", metavar="MB", unit=1e6)] = 3_000_000
    names: Annotated[tuple[str, ...] | None, Option("--names", metavar="NAME,…")] = None
    how: Annotated[Literal["this", "that"], Option("--how")] = "this"
    hidden: int = 5
    nested: Nested = field(default_factory=Nested)

    def __post_init__(self) -> None:
        check(self)


def _parsed(*args: str) -> Some:
    result: list[Some] = []

    def verb(file: Path | None = None, *, some: Annotated[Some, Panel("Some things")]) -> None:
        result.append(some)

    _run(verb, *args)
    [some] = result
    return some


def _run(verb: Callable[..., None], *args: str) -> None:
    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=VerbCommand)(with_options(verb))
    made = typer.main.get_command(app)
    with made.make_context("verb", list(args)) as context:
        made.invoke(context)


def test_without_options_a_dataclass_has_its_defaults() -> None:
    assert _parsed() == Some()


def test_options_arrive_in_their_fields() -> None:
    given = ("--count", "4", "--mb", "2.5", "--names", "a,b", "--names", "c", "--how", "that", "--no-thing")
    assert _parsed(*given) == Some(
        count=4, num_bytes=2_500_000, names=("a", "b", "c"), how="that", nested=Nested(enabled=False)
    )


def test_errors_name_the_option_and_count_in_its_unit() -> None:
    with pytest.raises(UsageError, match=r"^--count is 9; give 1 to 8$"):
        _parsed("--count", "9")
    with pytest.raises(UsageError, match=r"^--mb is -2\.0; give a number above 0$"):
        _parsed("--mb", "-2")
    with pytest.raises(UsageError, match=r"^--how is 'other'; choose one of this, that$"):
        _parsed("--how", "other")


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (OptionValueError("num_bytes", 3e6, "give less"), "--mb is 3.0; give less"),
        (OptionValueError("names", ("a", "b"), "see `how`"), "--names is 'a,b'; see --how"),
        (OptionValueError("enabled", False, "leave it out"), "--no-thing is given; leave it out"),
        (OptionValueError("file", "x.wav", "name another"), "file is 'x.wav'; name another"),
        (OptionValueError("threads", 99, "give `count`"), "--threads is 99; give --count"),
    ],
)
def test_an_option_that_a_verb_refuses_has_the_name_that_was_typed(raised: Exception, says: str) -> None:
    def verb(
        file: Path | None = None,
        threads: Annotated[int, typer.Option("--threads")] = 1,
        *,
        some: Annotated[Some, Panel("Some things")],
    ) -> None:
        raise raised

    with pytest.raises(UsageError) as refused:
        _run(verb)
    assert str(refused.value) == says


def test_a_former_name_is_taken_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert _parsed("--number", "3") == Some(count=3)
    assert "warning: --number is called --count now" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--number is the former name of --count; give one of them"):
        _parsed("--number", "3", "--count", "4")


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        (
            "listen",
            ["--tier", "3"],
            "--tier is 3, which is for the policy frames, and the policy here is local-ag",
        ),
        (
            "listen",
            ["--border", "0.5"],
            "--border is 0.5, which is for the policy alignatt, and the policy here is",
        ),
        ("listen", ["--max-pause", "3"], "--max-pause is 3.0, which is for turns that end with a sentence, "),
        (
            "listen",
            ["--steady", "2"],
            "--steady is 2, and --mask-words is 0; give --mask-words, the words that wait",
        ),
        (
            "translate",
            ["--num-draft-tokens", "2"],
            "--num-draft-tokens is 2, and the model conformer has no draft",
        ),
        (
            "translate",
            ["--max-symbols", "2"],
            "--max-symbols is 2, and the model conformer has no transducer",
        ),
        (
            "translate",
            ["--real-length"],
            "--real-length is given, which is for models that fill speech up to a",
        ),
        ("translate", ["--pool-frames", "9"], "--pool-frames is 9; give 1, which keeps all, to 4"),
        ("translate", ["--nbest", "2"], "--nbest is 2, and a beam of 1 has no more texts; set --beam to 2"),
        (
            "translate",
            ["--accept", "top-2"],
            "--accept is 'top-2', which changes the text for a draft that is named, and --draft is auto; name",
        ),
        (
            "translate",
            ["--translation-weight", "0.5", "--nbest", "2", "--beam", "2"],
            "--translation-weight is 0.5, and the model conformer is no cascade",
        ),
        (
            "translate",
            ["--tempos", "1.3,3"],
            "--tempos is '1.3,3.0'; give numbers from 0.5 to 2 other than 1",
        ),
        (
            "listen",
            ["--turn-end", "sentence", "--max-pause", "0.3"],
            "--max-pause is 0.3, and a pause begins to count at 0.4 s; give at least as much",
        ),
        ("translate", ["--device", "cuda:99"], "--device is 'cuda:99', which is not here"),
        (
            "translate",
            ["--hot-words-weight", "2"],
            "--hot-words-weight is 2.0, and there are no --hot-words; name",
        ),
    ],
)
def test_errors_name_the_options_that_were_typed(verb: str, options: list[str], message: str) -> None:
    ran = command(verb, RECORDING, "--to", "de", "--engine", "torch", *options)
    assert ran.code == 2
    *_, error = ran.err.splitlines()
    assert error.startswith(f"sprachbund: error: {message}")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("translate a.wav --language de", "No such option: --language; it is --from here."),
        ("transcribe a.wav --language de", "No such option: --language; it is --from here."),
        ("translate a.wav --tgt_lang de", "No such option: --tgt_lang; it is --to here."),
        ("translate a.wav -o out", "No such option: -o; it is --out here."),
        ("translate a.wav --output_format srt", "No such option: --output_format; it is --format here."),
        (
            "transcribe a.wav --to de",
            "No such option: --to; `sprachbund translate` writes other languages.",
        ),
        (
            "transcribe a.wav --task translate",
            "No such option: --task; there are two verbs, `sprachbund translate` and `sprachbund transcribe`.",
        ),
        (
            "translate a.wav --formt srt",
            "No such option: --formt. Did you mean --format or --from or --prompt?",
        ),
        ("translate a.wav --zzz red", "No such option: --zzz."),
        ("data check a --language de", "No such option: --language."),
        ("data check a --task x", "No such option: --task."),
    ],
)
def test_options_of_other_programs_are_answered_with_ours(typed: str, said: str) -> None:
    ran = command(*typed.split())
    verb = " ".join(typed.split()[: 2 if typed.startswith("data") else 1])
    assert ran.code == 2
    assert ran.err == f"sprachbund: error: {said} See `sprachbund {verb} --help`.\n"


def test_what_options_of_other_programs_are_called_is_an_option_of_some_verb() -> None:
    """A renamed option would leave its entry without effect."""
    verbs = dict(_commands(typer.main.get_command(build_app())))
    names = {name for verb in verbs.values() for parameter in verb.params for name in parameter.opts}
    assert set(_ELSEWHERE) <= names


def test_guesses_is_the_former_name_of_num_draft_tokens() -> None:
    ran = command("translate", "gone.wav", "--to", "de", "--guesses", "9")
    assert ran.code == 2
    warning, error = ran.err.splitlines()
    assert warning.startswith("sprachbund: warning: --guesses is called --num-draft-tokens now")
    assert error == "sprachbund: error: --num-draft-tokens is 9; give 1 to 8"
    assert "--guesses" not in command("translate", "--help").out


def test_options_stand_under_the_titles_of_their_panels() -> None:
    text = command("serve", "--help").out
    order = [
        "\nOptions:\n",
        "--no-key",
        "--port",
        "\nLimits:\n",
        "--max-upload-mb",
        "\nTimeouts:\n",
        "--stop-s",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("translate", "--help"),
        ("serve", "--help"),
        ("evaluate", "--help"),
        ("train", "--help"),
        ("recipe", "--help"),
        ("compress", "distil", "--help"),
        ("units", "fit", "--help"),
        ("study", "fit", "--help"),
    ],
)
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    code = (
        "import sys; from sprachbund.cli import main; code = main(sys.argv[1:])\n"
        "print(code, *sorted({'torch', 'numpy', 'rich', 'fastapi'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "0"


class Shape(BaseModel):
    """A part of what a file holds.

    Attributes:
        width: of it all.
    """

    width: Annotated[int, Field(ge=2, le=8), Option("--width", metavar="N")] = 4


class Kept(BaseModel):
    """What a file holds.

    Attributes:
        steps: how many.
        share: of the data.
        form: what becomes of it.
        names: of the parts.
        hours: amounts of data.
        texts: with commas in them.
        shape: see `Shape`.
    """

    steps: Annotated[int, Field(ge=1), Option("--steps", metavar="N")]
    share: Annotated[float, Field(gt=0, le=1), Option("--share", metavar="X")] = 0.5
    form: Annotated[Literal["one", "two"], Option("--form")] = "one"
    names: Annotated[tuple[str, ...], Option("--names", metavar="NAME,…")] = ()
    hours: Annotated[tuple[float, ...], Option("--at", metavar="HOURS")] = ()
    texts: Annotated[tuple[str, ...], Option("--text", metavar="TEXT", commas=False)] = ()
    shape: Shape = Shape()

    @model_validator(mode="after")
    def _fits(self) -> "Kept":
        if self.form == "two" and self.share < 0.25:
            raise ValueError("two are more than a quarter; give --share 0.25 or more")
        return self


def _kept(*args: str) -> Kept:
    result: list[Kept] = []

    def verb(*, kept: Annotated[Kept, Panel("Kept")]) -> None:
        result.append(kept)

    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=VerbCommand)(with_options(verb))
    made = typer.main.get_command(app)
    with made.make_context("verb", list(args)) as context:
        made.invoke(context)
    [kept] = result
    return kept


def test_options_arrive_in_the_fields_of_a_pydantic_model() -> None:
    assert _kept("--steps", "3") == Kept(steps=3)
    given = ("--steps", "3", "--share", ".25", "--form", "two", "--names", "a,b", "--width", "8")
    lists = ("--at", "1,2", "--at", "3.5", "--text", "a,b", "--text", "c")
    assert _kept(*given, *lists) == Kept(
        steps=3,
        share=0.25,
        form="two",
        names=("a", "b"),
        hours=(1.0, 2.0, 3.5),
        texts=("a,b", "c"),
        shape=Shape(width=8),
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--steps", "0"), "--steps is 0; give 1 or more"),
        (("--steps", "1", "--share", "0"), "--share is 0.0; give a number above 0, up to 1"),
        (("--steps", "1", "--share", "nan"), "--share is nan; give a number above 0, up to 1"),
        (("--steps", "1", "--form", "three"), "--form is 'three'; choose one of one, two"),
        (("--steps", "1", "--width", "9"), "--width is 9; give 2 to 8"),
        (("--steps", "1", "--at", "2,x"), "--at is '2,x'; write numbers with commas between, as in 1,2.5"),
        (
            ("--steps", "1", "--form", "two", "--share", "0.1"),
            "two are more than a quarter; give --share 0.25",
        ),
    ],
)
def test_errors_of_a_pydantic_model_name_the_option(args: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^{said}"):
        _kept(*args)


def test_the_help_of_a_pydantic_model_says_limits_choices_and_what_has_to_be_given() -> None:
    app = typer.Typer(rich_markup_mode=None)

    def verb(*, kept: Annotated[Kept, Panel("Kept")]) -> None: ...

    app.command(cls=VerbCommand)(with_options(verb))
    made = typer.main.get_command(app)
    with made.make_context("verb", [], resilient_parsing=True) as context:
        text = " ".join(made.get_help(context).split())
    assert "--steps N How many (1 or more). [required]" in text
    assert "--share X Of the data (above 0, up to 1). [default: 0.5]" in text
    assert "--form <one|two> What becomes of it. [default: one]" in text
    assert "--width N Of it all (2 to 8). [default: 4]" in text

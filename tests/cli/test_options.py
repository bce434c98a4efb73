"""Options of verbs come from dataclasses: every field reachable or excused, every option explained."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.core import TyperGroup, TyperOption

from sprachbund.audio.span_options import SpanOptions
from sprachbund.cli import build_app
from sprachbund.cli.console import UsageError
from sprachbund.cli.evaluate import evaluate
from sprachbund.cli.listen import listen
from sprachbund.cli.options import Panel, VerbCommand, offered_fields, with_options
from sprachbund.cli.serve import serve
from sprachbund.cli.share import analyse
from sprachbund.cli.speech import ModelOptions, OutputOptions
from sprachbund.cli.translate import transcribe, translate
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.research.gradient_sharing.collect_options import CollectOptions
from sprachbund.serving.settings import Limits, Settings, Timeouts
from sprachbund.streaming.options import LiveOptions
from sprachbund.training.draft_recipe import DraftRecipe
from sprachbund.training.options import TrainingOptions
from sprachbund.training.translator import TranslatorRecipe
from sprachbund.training.unit_translator import UnitTranslatorRecipe
from sprachbund.util.options import Option, Range, check, declared
from tests.stories.support import command

VERBS: tuple[Callable[..., None], ...] = (translate, transcribe, listen, serve, evaluate, analyse)
OPTIONS = (
    DecodingOptions,
    GuardOptions,
    SpanOptions,
    LiveOptions,
    Settings,
    Limits,
    Timeouts,
    EvaluationOptions,
    CollectOptions,
    ModelOptions,
    OutputOptions,
)
_PUBLISHED = "the published threshold; another one is for experiments, which are written in Python"
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
    GuardOptions: dict.fromkeys(
        (
            "min_speech_probability",
            "max_no_speech_probability",
            "min_mean_log_probability",
            "hopeless_mean_log_probability",
            "max_compression_ratio",
            "max_repetition",
            "max_characters_per_s",
        ),
        _PUBLISHED,
    ),
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
        ("upload_grace_s", "upload_bytes_per_s", "answer_s", "live_silent_s", "resume_s"), _TESTED
    ),
    EvaluationOptions: {"first_segments": "how many recordings are timed for one number in the manifest"},
}
"""Fields without an option, and why."""


def _groups(verb: Callable[..., None]) -> Iterator[tuple[type[Any], Panel]]:
    for hint in get_type_hints(verb, include_extras=True).values():
        if get_origin(hint) is Annotated and isinstance(panel := get_args(hint)[1], Panel):
            yield get_args(hint)[0], panel


def _offered() -> set[tuple[type[Any], str]]:
    """Dataclass and field of every option of the verbs."""
    found = set()
    for verb in VERBS:
        for kind, panel in _groups(verb):
            for one in offered_fields(kind, panel, ("",)):
                owner = kind
                for name in one.path[1:-1]:
                    [owner] = [below.type for below in declared(owner) if below.name == name]
                found.add((owner, one.path[-1]))
    return found


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_every_field_has_an_option_or_a_reason_to_have_none(kind: type[Any]) -> None:
    offered, excused = _offered(), NOT_OFFERED.get(kind, {})
    plain = [one.name for one in declared(kind) if not one.is_nested]
    assert [name for name in plain if (kind, name) not in offered] == list(excused)


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
    found: list[Some] = []

    def verb(file: Path | None = None, *, some: Annotated[Some, Panel("Some things")]) -> None:
        found.append(some)

    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=VerbCommand)(with_options(verb))
    made = typer.main.get_command(app)
    with made.make_context("verb", list(args)) as context:
        made.invoke(context)
    [some] = found
    return some


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


def test_a_former_name_is_taken_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert _parsed("--number", "3") == Some(count=3)
    assert "warning: --number is called --count now" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--number is the former name of --count; give one of them"):
        _parsed("--number", "3", "--count", "4")


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
    "args", [("--help",), ("translate", "--help"), ("serve", "--help"), ("evaluate", "--help")]
)
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    code = (
        "import sys; from sprachbund.cli import main; code = main(sys.argv[1:])\n"
        "print(code, *sorted({'torch', 'numpy', 'rich', 'fastapi'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "0"

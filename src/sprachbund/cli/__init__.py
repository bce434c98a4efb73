"""The command `sprachbund`: one thin file per verb, one function where errors become lines and exit codes.

Exit codes: 0 all went well, 1 something failed, 2 the command was asked for something that cannot be,
130 Ctrl-C. Every verb's file offers `register(app)`.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import sprachbund
from sprachbund.cli.console import UsageError, begin, error_line, in_one_process, say, set_debug, trace
from sprachbund.cli.startup import open_closed_streams, stay_within_quota, wait_briefly
from sprachbund.util.options import RenamedWarning


@dataclass(frozen=True)
class Verb:
    """The description of a verb, which is known before its file is imported.

    Attributes:
        file: module of this package that adds it.
        panel: section of the help that lists it.
        help: one line.
    """

    file: str
    panel: str
    help: str


_TRANSLATE, _MACHINE, _MAKE, _SMALLER, _MEASURE = (
    "Translate speech",
    "Models and this machine",
    "Make data and models",
    "Change models",
    "Measure and compare",
)
VERBS = {
    "translate": Verb("translate", _TRANSLATE, "Translate recordings, or text."),
    "transcribe": Verb(
        "translate", _TRANSLATE, "Write down recordings in the language spoken; `translate` writes others."
    ),
    "listen": Verb("listen", _TRANSLATE, "Translate a microphone, or a recording as it is played, live."),
    "serve": Verb("serve", _TRANSLATE, "Serve the page, HTTP and live captions."),
    "models": Verb("models", _MACHINE, "List, download, describe and check models."),
    "doctor": Verb("doctor", _MACHINE, "Check that everything works here."),
    "bench": Verb("doctor", _MACHINE, "Measure how fast a model is on this machine."),
    "data": Verb("data", _MAKE, "Make and prepare corpora, and look at them."),
    "train": Verb("train", _MAKE, "Train a model, or go on with training."),
    "recipe": Verb("train", _MAKE, "Run one of the published systems beside its baselines."),
    "units": Verb("units", _MAKE, "Turn speech into discrete units that share one vocabulary with text."),
    "compress": Verb(
        "compress", _SMALLER, "Make models smaller, and measure what that costs on the same data."
    ),
    "share": Verb(
        "share", _SMALLER, "Measure the conflict between languages inside a model, and split where it hurts."
    ),
    "convert": Verb(
        "convert", _SMALLER, "Make a model of a checkpoint of NeMo, openai-whisper or CTranslate2."
    ),
    "export": Verb("convert", _SMALLER, "Write a model for ONNX Runtime, faster-whisper or whisper.cpp."),
    "evaluate": Verb("evaluate", _MEASURE, "Measure how good a model is on corpora, and how it fails."),
    "calibrate": Verb("evaluate", _MEASURE, "Let a model find out what it does not understand."),
    "compare": Verb(
        "evaluate", _MEASURE, "Compare systems with intervals and significance; the first is the baseline."
    ),
    "score": Verb("evaluate", _MEASURE, "Score texts against references, or what `evaluate` wrote again."),
    "latency": Verb(
        "evaluate", _MEASURE, "Score when live translation wrote its words: lagging, flicker, quality."
    ),
    "report": Verb("evaluate", _MEASURE, "Write what an evaluation found as one HTML page."),
    "router": Verb("evaluate", _MEASURE, "Draw where a model with experts by language sends speech."),
    "replay": Verb(
        "evaluate", _MEASURE, "Measure a result manifest again, and say whether it came out the same."
    ),
    "study": Verb("study", _MEASURE, "Study what a start, hours of data, latency and bits are worth."),
}
"""Every verb, in the order of the help. The help and the completion of verbs are made of it: no file is imported."""
SHARED_VERBS = ("train", "recipe", "share")
"""Verbs whose work processes of torchrun share (of recipe: code_switch; of share: analyse); the others would write the
same files twice."""
FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
DEBUG = "--debug"
COMPLETION = "_SPRACHBUND_COMPLETE"
"""Environment variable by which a shell's script asks for completions."""


class VerbGroup(TyperGroup):
    """All verbs; the file of a verb is imported when the verb is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name in VERBS and cmd_name not in self.commands:
            from sprachbund.cli.options import VerbApp  # here, since help does without it

            app = VerbApp(rich_markup_mode=None)
            import_module(f"{__name__}.{VERBS[cmd_name].file}").register(app)
            for name, command in typer.main.get_group(app).commands.items():
                command.help = VERBS[name].help
                self.commands[name] = command
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name, command and the other arguments. Raises UsageError for a verb that there is not, with the nearest."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(f"no verb {args[0]!r}; {_nearest(args[0])}`sprachbund --help` lists all")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each thing that people want to do."""
        width = max(map(len, VERBS))
        for panel in dict.fromkeys(verb.panel for verb in VERBS.values()):
            with formatter.section(panel):
                formatter.write_dl(
                    [(name.ljust(width), verb.help) for name, verb in VERBS.items() if verb.panel == panel]
                )

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Verbs that begin with what is typed, and options."""
        verbs: dict[str, Any] = {name: TyperCommand(name, help=verb.help) for name, verb in VERBS.items()}
        return TyperGroup(commands=verbs, params=self.params).shell_complete(ctx, incomplete)


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, VERBS, n=1)
    return f"did you mean {near[0]}? " if near else ""


def build_app() -> typer.Typer:
    """The application with every verb that there is."""
    app = typer.Typer(
        name="sprachbund",
        cls=VerbGroup,
        help="Speech in one language to text in another, on this machine.",
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: arguments behind the command's name; None takes them from the process.
    """
    begin()
    open_closed_streams()
    args, debug = _without_debug(sys.argv[1:] if argv is None else argv)
    set_debug(debug)
    if not debug:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", RenamedWarning)
    try:
        wait_briefly()
        stay_within_quota()
        _prepare_streams()
        warnings.showwarning = _show_warning
        command = typer.main.get_command(build_app())
        if COMPLETION in os.environ:
            command.main(prog_name="sprachbund", args=args)
        with command.make_context("sprachbund", args) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as request:
        return request.exit_code
    except SystemExit as ended:  # of completion
        return ended.code if isinstance(ended.code, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as interruption:
        if sys.stderr.isatty():
            typer.echo("\r", err=True, nl=False)  # the terminal has written ^C
        say("; ".join(["interrupted", *getattr(interruption, "__notes__", [])]))
        return INTERRUPTED
    except Exception as error:
        trace(error)
        return _report(error)
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    """Print a warning that a user can act on as one line; others are shown with --debug, with their source."""
    if issubclass(category, RenamedWarning):
        return say(f"warning: {message}")
    typer.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sprachbund {sprachbund.__version__}")
        raise typer.Exit


def _common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version),
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Options that stand before the verb; both are dealt with before this is called."""
    verb = context.invoked_subcommand
    if verb is not None and verb not in SHARED_VERBS:
        in_one_process(f"sprachbund {verb}")


def _without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, which may stand before or after the verb, and whether it was there."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    args = [arg for i, arg in enumerate(argv) if arg != DEBUG or i > end]
    return args, len(args) < len(argv)


def _prepare_streams() -> None:
    """A terminal that lacks a letter shows its number instead of ending the work."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _report(error: Exception) -> int:
    """Say what went wrong in one line; the exit code."""
    if hasattr(error, "format_message"):  # the argument parser's own errors
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "sprachbund"
        without_arguments = type(error).__name__ == "NoArgsIsHelpError"  # its message is the whole help
        if context is not None and (without_arguments or getattr(error, "message", "") == "Missing command."):
            typer.echo(context.get_help(), err=True)
            return USAGE
        if type(error).__name__ == "MissingParameter" and context is not None:
            typer.echo(context.get_usage(), err=True)
            say(f"error: {_missing(error)} See `{path} --help`.")
            return USAGE
        reason = _refused_value(error) or _unknown_option(error) or error.format_message()
        say(f"error: {reason} See `{path} --help`.")
        return USAGE
    say(f"error: {error_line(error)}")
    if not isinstance(error, UsageError):
        return FAILED
    for hint in error.hints:
        say(f"hint: {hint}")
    return USAGE


def _missing(error: Any) -> str:
    """What of the command line is missing: an option by its longest name, an argument by that of its value."""
    parameter = error.param
    if parameter is None:
        return str(error.format_message())
    option = parameter.param_type_name == "option"
    name = max(parameter.opts, key=len) if option else parameter.metavar or parameter.name.upper()
    return f"{name} is missing."


_ELSEWHERE = {
    "--from": ("--language", "--lang", "--source", "--source-language", "--source-lang", "--src-lang", "-l"),
    "--to": ("--target", "--target-language", "--target-lang", "--tgt-lang"),
    "--out": ("--output", "--output-dir", "-o"),
    "--format": ("--output-format", "-f"),
    "--words": ("--word-timestamps",),
    "--beam": ("--beam-size", "--num-beams"),
    "--prompt": ("--initial-prompt",),
    "--engine": ("--compute-type",),
    "--speakers": ("--diarize",),
    "--hot-words": ("--hotwords",),
    "--threads": ("--num-threads", "-t"),
    "--model": ("-m",),
}
"""Option to its names in openai-whisper, whisper-ctranslate2, whisper.cpp, fairseq and NeMo, with - for _."""
_VERBS_ELSEWHERE = {
    "--task": "there are two verbs, `sprachbund translate` and `sprachbund transcribe`",
    "--to": "`sprachbund translate` writes other languages",
}
"""Option to what a verb without it says instead."""


def _unknown_option(error: Any) -> str | None:
    """The message about an option that there is not: what it is called here, else those that are spelled alike."""
    if type(error).__name__ != "NoSuchOption" or error.ctx is None:
        return None
    typed, command = error.option_name, error.ctx.command
    options = {name for parameter in command.params for name in parameter.opts}
    spelled = typed.replace("_", "-")
    speaks = {"--from", "--to"} & options  # in other verbs such an option means something else
    if speaks and spelled in _VERBS_ELSEWHERE:
        return f"No such option: {typed}; {_VERBS_ELSEWHERE[spelled]}."
    here = next((name for name, others in _ELSEWHERE.items() if spelled in others and name in options), None)
    if here is not None:
        return f"No such option: {typed}; it is {here} here."
    near = f" Did you mean {' or '.join(sorted(error.possibilities))}?" if error.possibilities else ""
    return f"No such option: {typed}.{near}"


def _refused_value(error: Any) -> str | None:
    """The argument parser's message about a value where typer lets pydantic check it, whose own lacks the value."""
    from pydantic import ValidationError  # here, since help does without it

    if not isinstance(error.__cause__, ValidationError):
        return None
    wrong = error.__cause__.errors()[0]
    match wrong["type"], wrong.get("ctx"):
        case "greater_than_equal", {"ge": least}:
            advice = f"give {least:g} or more"
        case "less_than_equal", {"le": most}:
            advice = f"give {most:g} or less"
        case "value_error", {"error": ValueError() as refusal}:
            # Typer's own of a choice, the only such error here: "'a' is not one of 'b', 'c'."
            choices = str(refusal).rpartition(" is not one of ")[2].replace("'", "").removesuffix(".")
            advice = f"choose one of {choices}"
        case _:
            advice = wrong["msg"].replace("Input", "it", 1).partition(", unable to parse")[0]
    return f"{error.param.opts[0]} is {wrong['input']!r}; {advice}."

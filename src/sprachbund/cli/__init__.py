"""The command `sprachbund`: one thin file per verb, one place where errors become lines and exit codes.

Exit codes: 0 all went well, 1 something failed, 2 the command was asked for something that cannot be,
130 Ctrl-C. Every verb's file offers `register(app)`.
"""

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

import sprachbund
from sprachbund.cli.console import UsageError, error_line, in_one_process, say, set_debug, trace
from sprachbund.cli.startup import open_closed_streams, stay_within_quota, wait_briefly
from sprachbund.util.options import RenamedWarning

VERBS = {
    "translate": "translate",
    "transcribe": "translate",
    "listen": "listen",
    "serve": "serve",
    "models": "models",
    "doctor": "doctor",
    "bench": "doctor",
    "data": "data",
    "train": "train",
    "recipe": "train",
    "share": "share",
    "units": "units",
    "compress": "compress",
    "convert": "convert",
    "export": "convert",
    "evaluate": "evaluate",
    "compare": "evaluate",
    "score": "evaluate",
    "latency": "evaluate",
    "report": "evaluate",
    "router": "evaluate",
    "replay": "evaluate",
    "study": "study",
}
"""Each verb and the file that adds it, in the order of the help."""
SHARED_VERBS = ("train", "share")
"""Those whose work processes of torchrun share (of share: analyse); the others would write the same files twice."""
FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
DEBUG = "--debug"


def build_app(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The application with every verb that there is, or with some of them."""
    app = typer.Typer(
        name="sprachbund",
        help="Speech in one language to text in another, on this machine.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for module in dict.fromkeys(VERBS[verb] for verb in verbs):
        import_module(f"{__name__}.{module}").register(app)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: what stands after the command's name; None takes it from the process.
    """
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
        # The files of other verbs would only delay the one that is asked for.
        verb = next((arg for arg in args if not arg.startswith("-")), None)
        command = typer.main.get_command(build_app([verb] if verb in VERBS else VERBS))
        with command.make_context("sprachbund", args) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as request:
        return request.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as interruption:
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
    """What a user has to change is said in a line; other warnings are shown with --debug, where they come from."""
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
        if context is not None and (
            without_arguments or getattr(error, "message", "") in ("", "Missing command.")
        ):
            typer.echo(context.get_help(), err=True)
            return USAGE
        say(f"error: {error.format_message()} See `{path} --help`.")
        return USAGE
    say(f"error: {error_line(error)}")
    return USAGE if isinstance(error, UsageError) else FAILED

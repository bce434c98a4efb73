"""`sprachbund translate FILE… --to de,fr`, and of texts `--text`; `transcribe` takes its options from here."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sprachbund.cli import completion
from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json
from sprachbund.cli.options import Panel, with_options
from sprachbund.cli.speech import (
    STDIN,
    ModelOptions,
    OutputOptions,
    SpeechJob,
    engine_values,
    load_model,
    run,
)
from sprachbund.decoding.options import GUARD_THRESHOLDS, DecodingOptions
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.api import Model
    from sprachbund.decoding.texts import TranslatedText


# `sprachbund translate --text TEXT`, and files or standard input of texts, a line each: text to text.
#
# A line that goes in comes out as a line, empty ones too, so that both sides of a file stay parallel.

_AT_ONCE = 64
"""Lines that are held; the search cuts them into batches."""


def translate_text(job: SpeechJob, texts: Sequence[str], files: Sequence[Path]) -> None:
    """Translate texts, then files of texts; one line for each, or one JSON object.

    Args:
        job: languages, model and output, as of recordings.
        texts: texts of `--text`.
        files: files of `--texts`, a text a line; "-" is standard input.

    Raises:
        UsageError: options that are of recordings, languages or files that cannot be, a model that reads no text.
    """
    _check(job, files)
    model = load_model(job.model)
    num_lines = 0
    with Bar("translating", enabled=not sys.stdout.isatty()) as bar:
        lines = chain(texts, *(_lines(path) for path in files))
        while batch := list(islice(lines, _AT_ONCE)):
            for text, translated in zip(batch, _translated(model, batch, job), strict=True):
                _print(text, translated, engine_values(model) if job.output.as_json else None)
            sys.stdout.flush()
            num_lines += len(batch)
            bar.update(num_lines)


def _translated(model: "Model", texts: Sequence[str], job: SpeechJob) -> "Iterator[list[TranslatedText]]":
    from sprachbund.decoding.texts import translate_texts

    with as_usage():
        return translate_texts(model.family, texts, job.targets, job.source, job.decoding)


def _print(
    text: str, translated: "Sequence[TranslatedText]", engine: dict[str, dict[str, str]] | None
) -> None:
    """Print a translation: as JSON with the engine's field, or as text where that is None."""
    if engine is not None:
        translations = {
            one.target: {"text": one.text, "log_probability": round(one.log_probability, 4)}
            for one in translated
        }
        values = {"text": text, "source_language": translated[0].source, "translations": translations}
        print_json({**values, **engine})
        return
    for one in translated:  # a line each, or the next texts would stand beside others
        tag = f"{one.target}\t" if len(translated) > 1 else ""
        typer.echo(tag + " ".join(one.text.split()))


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file or of standard input, without their ends."""
    try:
        if str(path) == STDIN:
            # The first line may begin with a mark of its encoding, as that of a file.
            for number, line in enumerate(sys.stdin.buffer):
                yield line.decode("utf-8" if number else "utf-8-sig").rstrip("\r\n")
            return
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        name = "standard input" if str(path) == STDIN else path
        raise SprachbundError(f"{name} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _check(job: SpeechJob, files: Sequence[Path]) -> None:
    """Refuse what is of recordings, and files that are not there, before a model is loaded."""
    given = {
        "recordings": bool(job.files),
        "--format": bool(job.output.formats),
        "--both": job.output.both,
        "--speakers": job.output.speakers is not None,
        "--num-speakers": job.output.num_speakers is not None,
        "--out": job.output.out != Path(),
        "--overwrite": job.output.overwrite,
        "--table": job.output.as_table,
        "--words": job.decoding.word_timestamps,
        "--prompt": job.decoding.prompt is not None,
        "--nbest": job.decoding.nbest > 1,
        "--no-guard": not job.decoding.guard.enabled,
        "--max-out-of-domain": job.decoding.guard.max_out_of_domain is not None,
        "--tempos": bool(job.decoding.tempos),
        "--real-length": job.model.real_length,
        "--tier": job.model.right_context is not None,
        "--pool-frames": job.model.pool_frames != 1,
        "--untrusted": job.untrusted,
    }
    if wrong := [name for name, there in given.items() if there]:
        raise UsageError(
            f"text is translated without {wrong[0]}; leave it out, or leave out --text and --texts"
        )
    if len([path for path in files if str(path) == STDIN]) > 1:
        raise UsageError("stdin is named twice, and can be read once; name '-' once")
    for path in files:
        # A pipe is no regular file: `--texts <(zcat texts.gz)`.
        if str(path) != STDIN and (not path.exists() or path.is_dir()):
            raise UsageError(f"there is no file {path}; check the path, or give a text itself with --text")


Files = Annotated[
    list[str] | None, typer.Argument(metavar="FILE", help="Audio or video of any format; - is stdin.")
]
Source = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="LANG",
        help="Language spoken; found out if not given.",
        autocompletion=completion.languages,
    ),
]
Untrusted = Annotated[
    bool,
    typer.Option(
        "--untrusted",
        help="Decode untrusted recordings in a process without files, network and programs (Linux).",
    ),
]
Output = Annotated[OutputOptions, Panel("Output")]
Decoding = Annotated[DecodingOptions, Panel("Decoding", without=GUARD_THRESHOLDS)]
Computing = Annotated[ModelOptions, Panel("Model")]


def translate(
    files: Files = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="LANG,…",
            help="Languages wanted, as tags or names.",
            autocompletion=completion.languages,
        ),
    ] = None,
    source: Source = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="TEXT", help="Translate a text, by a model that reads text; repeatable."
        ),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--texts", metavar="FILE", help="Translate a file of texts, a line each; - is stdin."),
    ] = None,
    untrusted: Untrusted = False,
    *,
    output: Output,
    decoding: Decoding,
    model: Computing,
) -> None:
    """Translate recordings, or text, into one or more languages."""
    if not (targets := listed(to)):
        raise UsageError("no language to translate into; name it with --to, as in --to de,fr")
    job = SpeechJob(
        files=files or (),
        targets=targets,
        source=source,
        model=model,
        output=output,
        decoding=decoding,
        untrusted=untrusted,
    )
    if text or texts:
        return translate_text(job, text or (), texts or ())
    if not files:
        raise UsageError("nothing to translate; name recordings, or give a text with --text")
    if run(job):
        raise typer.Exit(1)


# `sprachbund transcribe FILE…`: text in the language spoken; its other options are those of `translate`.


def transcribe(
    files: Files = None,
    source: Source = None,
    untrusted: Untrusted = False,
    *,
    output: Output,
    decoding: Decoding,
    model: Computing,
) -> None:
    """Write down recordings in the language spoken; `translate --to LANG` writes them in another."""
    translate(
        files,
        ["transcribe"],
        source,
        untrusted=untrusted,
        output=output,
        decoding=decoding,
        model=model,
    )


def register(app: typer.Typer) -> None:
    """Add the verbs of files and texts."""
    app.command()(with_options(translate))
    app.command()(with_options(transcribe))

"""`sprachbund translate --text TEXT`, and files or standard input of texts, a line each: text to text.

A line that goes in comes out as a line, empty ones too, so that both sides of a file stay parallel.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, print_json
from sprachbund.cli.speech import STDIN, Job, load_model
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.api import Model
    from sprachbund.decoding.options import DecodingOptions
    from sprachbund.decoding.texts import TranslatedText

_AT_ONCE = 64
"""Lines that are held; the search cuts them into batches."""


def translate_text(job: Job, texts: Sequence[str], files: Sequence[Path]) -> None:
    """Translate texts, then files of texts; one line for each, or one JSON object.

    Raises:
        UsageError: options that are of recordings, languages or files that cannot be, a model that reads no text.
    """
    _check(job, files)
    with as_usage():
        from sprachbund.decoding.options import DecodingOptions

        options = DecodingOptions(**job.decoding)
    model = load_model(job)
    num_lines = 0
    with Bar("translating", enabled=not sys.stdout.isatty()) as bar:
        lines = chain(texts, *(_lines(path) for path in files))
        while batch := list(islice(lines, _AT_ONCE)):
            for text, found in zip(batch, _translated(model, batch, job, options), strict=True):
                _print(text, found, as_json=job.as_json)
            sys.stdout.flush()
            num_lines += len(batch)
            bar.update(num_lines)


def _translated(
    model: "Model", texts: Sequence[str], job: Job, options: "DecodingOptions"
) -> "Iterator[list[TranslatedText]]":
    from sprachbund.decoding.texts import translate_texts

    with as_usage():
        return translate_texts(model.family, texts, job.targets, job.source, options)


def _print(text: str, found: "Sequence[TranslatedText]", *, as_json: bool) -> None:
    if as_json:
        translations = {
            one.target: {"text": one.text, "log_probability": round(one.log_probability, 4)} for one in found
        }
        print_json({"text": text, "source_language": found[0].source, "translations": translations})
    elif len(found) == 1:
        typer.echo(found[0].text)
    else:
        for one in found:
            typer.echo(f"{one.target}\t{one.text}")


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file or of standard input, without their ends."""
    try:
        if str(path) == STDIN:
            for line in sys.stdin.buffer:
                yield line.decode("utf-8").rstrip("\r\n")
            return
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        name = "standard input" if str(path) == STDIN else path
        raise SprachbundError(f"{name} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _check(job: Job, files: Sequence[Path]) -> None:
    """Refuse what is of recordings, and files that are not there, before a model is loaded."""
    decoding = job.decoding
    given = {
        "recordings": bool(job.files),
        "--format": bool(job.formats),
        "--table": job.as_table,
        "--words": decoding["word_timestamps"],
        "--prompt": decoding["prompt"] is not None,
        "--real-length": job.real_length,
        "--pool-frames": job.pool_frames != 1,
    }
    if wrong := [name for name, there in given.items() if there]:
        raise UsageError(
            f"text is translated without {wrong[0]}; leave it out, or leave out --text and --texts"
        )
    if len([path for path in files if str(path) == STDIN]) > 1:
        raise UsageError("stdin is named twice, and can be read once; name '-' once")
    for path in files:
        if str(path) != STDIN and not path.is_file():
            raise UsageError(f"there is no file {path}; check the path, or give a text itself with --text")

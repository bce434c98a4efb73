"""`sprachbund translate FILE… --to de,fr`, and of texts `--text`; `transcribe` takes its options from here."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json
from sprachbund.cli.speech import STDIN, Job, load_model, run
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.api import Model
    from sprachbund.decoding.options import DecodingOptions
    from sprachbund.decoding.pipeline import TranslatedText


# `sprachbund translate --text TEXT`, and files or standard input of texts, a line each: text to text.
#
# A line that goes in comes out as a line, empty ones too, so that both sides of a file stay parallel.

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
    from sprachbund.decoding.pipeline import translate_texts

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


Files = Annotated[
    list[str] | None, typer.Argument(metavar="FILE", help="Audio or video of any format; - is stdin.")
]
Source = Annotated[
    str | None, typer.Option("--from", metavar="LANG", help="Language spoken; found out if not given.")
]
ModelName = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", metavar="FMT,…", help="Write files: txt, srt, vtt, json, jsonl, tsv."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per file, and nothing else.")]
AsTable = Annotated[bool, typer.Option("--table", help="Print a table of all files and the speed when done.")]
Allowed = Annotated[
    list[str] | None,
    typer.Option(
        "--languages", metavar="LANG,…", help="Languages that may be spoken; all of them in mixed speech."
    ),
]
Beam = Annotated[int, typer.Option("--beam", metavar="N", help="Hypotheses kept; 1 is greedy.")]
MinTokens = Annotated[int, typer.Option("--min-tokens", metavar="N", help="Fewest tokens of a segment.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Most tokens of a segment.")]
Prompt = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="Context or glossary shown to the model.")
]
Words = Annotated[bool, typer.Option("--words", help="Times for every word (json, jsonl, --json).")]
NoGuard = Annotated[
    bool, typer.Option("--no-guard", help="Keep text even where there seems to be no speech.")
]
Untrusted = Annotated[
    bool,
    typer.Option(
        "--untrusted",
        help="Decode recordings of strangers in a process without files, network and programs (Linux).",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Draft = Annotated[
    str,
    typer.Option(
        "--draft",
        metavar="NAME",
        help="Guesses tokens ahead, for speed: auto, none, one of the model's drafts, a draft's file, a text "
        "(.txt) in the languages wanted, a smaller model, a smaller model+text.",
    ),
]
Guesses = Annotated[
    int | None,
    typer.Option(
        "--guesses", metavar="K", help="Tokens guessed ahead, 1 to 8; what gains most if not given."
    ),
]
AcceptName = Annotated[
    str,
    typer.Option(
        "--accept",
        metavar="HOW",
        help="exact; top-2, top-3, unchecked: faster with --draft, and change the text.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="Threads to compute with.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="torch; native: fastest on CPUs, 8-bit weights; native-int4; auto; torch-fp32, torch-bf16, torch-int8.",
    ),
]
RealLength = Annotated[
    bool, typer.Option("--real-length", help="Whisper: encode speech at its own length, not as 30 s.")
]
PoolFrames = Annotated[
    int,
    typer.Option(
        "--pool-frames",
        metavar="N",
        help="Average so many frames of the encoder, 2 to 4: faster after long speech, changes the text.",
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="TEXT", help="Translate a text, by a model that reads text; repeatable."),
]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--texts", metavar="FILE", help="Translate a file of texts, a line each; - is stdin."),
]


def _register_translate(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Translate recordings, or text.")(translate)


def translate(
    files: Files = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="LANG,…", help="Languages wanted, as tags or names."),
    ] = None,
    source: Source = None,
    model: ModelName = "bundled",
    formats: Formats = None,
    out: Out = Path(),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    as_table: AsTable = False,
    languages: Allowed = None,
    beam: Beam = 1,
    min_tokens: MinTokens = 0,
    max_tokens: MaxTokens = None,
    prompt: Prompt = None,
    words: Words = False,
    no_guard: NoGuard = False,
    draft: Draft = "auto",
    guesses: Guesses = None,
    accept: AcceptName = "exact",
    untrusted: Untrusted = False,
    offline: Offline = False,
    threads: Threads = None,
    engine: EngineName = "torch",
    real_length: RealLength = False,
    pool_frames: PoolFrames = 1,
    text: Text = None,
    texts: Texts = None,
) -> None:
    """Translate recordings, or text, into one or more languages."""
    if not (targets := listed(to)):
        raise UsageError("no language to translate into; name it with --to, as in --to de,fr")
    job = Job(
        files=files or (),
        targets=targets,
        source=source,
        model=model,
        formats=listed(formats),
        out=out,
        overwrite=overwrite,
        as_json=as_json,
        as_table=as_table,
        offline=offline,
        real_length=real_length,
        pool_frames=pool_frames,
        num_threads=threads,
        engine=engine,
        decoding={
            "allowed_languages": tuple(listed(languages)) or None,
            "beam_size": beam,
            "min_tokens": min_tokens,
            "max_tokens": max_tokens,
            "prompt": prompt,
            "word_timestamps": words,
            "draft": draft,
            "guesses": guesses,
            "accept": accept,
        },
        guard=not no_guard,
        untrusted=untrusted,
    )
    if text or texts:
        return translate_text(job, text or (), texts or ())
    if not files:
        raise UsageError("nothing to translate; name recordings, or give a text with --text")
    if run(job):
        raise typer.Exit(1)


# `sprachbund transcribe FILE…`: text in the language spoken; its other options are those of `translate`.

_NOT_HERE = ("to", "text", "texts")
"""Options of `translate` that this verb has not."""


def _register_transcribe(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Write down recordings in the language spoken.")(transcribe)


def transcribe(**options: Any) -> None:
    """Write down recordings in the language spoken."""
    translate(to=["transcribe"], **options)


# typer reads a verb's options off its signature and its annotations.
_signature = inspect.signature(translate)
transcribe.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[p for name, p in _signature.parameters.items() if name not in _NOT_HERE]
)
transcribe.__annotations__ = {k: v for k, v in translate.__annotations__.items() if k not in _NOT_HERE}


def register(app: typer.Typer) -> None:
    """Add the verbs of files and texts."""
    for add in (_register_translate, _register_transcribe):
        add(app)

"""`sprachbund translate FILE… --to de,fr`, and of texts `--text`; `transcribe` takes its options from here."""

from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli.console import UsageError, listed
from sprachbund.cli.speech import Job, run
from sprachbund.cli.translate_text import translate_text

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


def register(app: typer.Typer) -> None:
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

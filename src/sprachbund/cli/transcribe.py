"""`sprachbund transcribe FILE…`: text in the language spoken; in everything else like `translate`."""

from pathlib import Path

import typer

from sprachbund.cli.console import listed
from sprachbund.cli.speech import Job
from sprachbund.cli.translate import (
    AcceptName,
    Allowed,
    AsJson,
    AsTable,
    Beam,
    Draft,
    EngineName,
    Files,
    Formats,
    Guesses,
    MaxTokens,
    MinTokens,
    ModelName,
    NoGuard,
    Offline,
    Out,
    Overwrite,
    Prompt,
    RealLength,
    Source,
    Threads,
    Words,
    decoding_fields,
    speculation_fields,
    work_through,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Write down recordings in the language spoken.")(transcribe)


def transcribe(
    files: Files,
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
    offline: Offline = False,
    threads: Threads = None,
    engine: EngineName = "torch",
    real_length: RealLength = False,
) -> None:
    """Write down recordings in the language spoken."""
    work_through(
        Job(
            files=files,
            targets=["transcribe"],
            source=source,
            model=model,
            formats=listed(formats),
            out=out,
            overwrite=overwrite,
            as_json=as_json,
            as_table=as_table,
            offline=offline,
            real_length=real_length,
            num_threads=threads,
            engine=engine,
            decoding={
                **decoding_fields(languages, beam, min_tokens, max_tokens, prompt, words),
                **speculation_fields(draft, guesses, accept),
            },
            guard=not no_guard,
        )
    )

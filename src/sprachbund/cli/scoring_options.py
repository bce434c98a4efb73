"""Options that the verbs of evaluation share, so that each is called and explained the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Manifest = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="Write the numbers as a manifest that `replay` reads."),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metrics", metavar="NAME,…", help="Of chrF, chrF++, BLEU, TER, WER, CER, exact."),
]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="DIR", help="Where a corpus is now; may be repeated."),
]

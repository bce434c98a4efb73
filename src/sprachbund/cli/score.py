"""`sprachbund score HYPOTHESES REFERENCES`: scores of text files, with signatures."""

from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli import scoring_options as given
from sprachbund.cli.console import UsageError, as_usage, listed, print_json, table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Score a file of texts against a file of references.")(score)


def score(
    hypotheses: Annotated[Path, typer.Argument(metavar="HYPOTHESES", help="One text per line, UTF-8.")],
    references: Annotated[Path, typer.Argument(metavar="REFERENCES", help="One text per line, UTF-8.")],
    language: Annotated[
        str, typer.Option("--language", metavar="LANG", help="Of the texts: decides BLEU's words and case.")
    ] = "",
    metrics: given.Metrics = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", metavar="FILE", help="Ids of the lines; none may occur twice.")
    ] = None,
    as_json: given.Json = False,
) -> None:
    """Score a file of texts against a file of references: raw, and normalized."""
    from sprachbund.data.own import check_tag
    from sprachbund.evaluation.metrics import METRICS, corpus_score, metric
    from sprachbund.evaluation.textfiles import read_ids, read_parallel
    from sprachbund.text.normalize import normalize

    chosen = listed(metrics) or [name for name in METRICS if name != "COMET"]
    with as_usage():
        language = check_tag(language, "--language") if language else ""
        scorers = [metric(name, language) for name in chosen]
        texts = read_parallel(hypotheses, references)
        if ids is not None:
            read_ids(ids, len(texts[0]))
    normalized = tuple([normalize(text, language) for text in some] for some in texts)
    if not all(normalized[1]):
        line = next(n for n, text in enumerate(normalized[1], start=1) if not text)
        raise UsageError(f"{references}:{line}: the reference has nothing but punctuation")
    rows = [(s, corpus_score(s, *texts), corpus_score(s, normalized[0], normalized[1])) for s in scorers]
    if as_json:
        print_json(
            [
                {"metric": s.name, "raw": raw, "normalized": norm, "signature": s.signature}
                for s, raw, norm in rows
            ]
        )
        return
    cells = [[s.name, f"{raw:.2f}", f"{norm:.2f}", s.signature] for s, raw, norm in rows]
    typer.echo(table(cells, ["metric", "raw", "normalized", "signature"]))
    typer.echo(f"{len(texts[0])} texts")

"""`sprachbund score HYPOTHESES REFERENCES`: scores of text files, with signatures; of a folder that `evaluate`
wrote, all of its scores again."""

from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli import scoring_options as given
from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json, table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Score texts against references, or what `evaluate` wrote again.")(score)


def score(
    hypotheses: Annotated[
        Path,
        typer.Argument(
            metavar="HYPOTHESES", help="One text per line, UTF-8; or a folder that `evaluate --out` wrote."
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Argument(metavar="REFERENCES", help="One text per line, UTF-8; not with a folder."),
    ] = None,
    language: Annotated[
        str, typer.Option("--language", metavar="LANG", help="Of the texts: decides BLEU's words and case.")
    ] = "",
    metrics: given.Metrics = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", metavar="FILE", help="Ids of the lines; none may occur twice.")
    ] = None,
    out: given.Manifest = None,
    as_json: given.Json = False,
) -> None:
    """Score a file of texts against a file of references, raw and normalized; or the hypotheses in a folder of
    results, as `evaluate` does, without the model."""
    if references is None:
        for_files = {"--language": language, "--metrics": metrics, "--ids": ids}
        given_too = [name for name, value in for_files.items() if value]
        _score_folder(hypotheses, given_too, out, as_json=as_json)
        return
    from sprachbund.data.own import check_tag
    from sprachbund.evaluation import file_manifest as files
    from sprachbund.evaluation.metrics import METRICS

    with as_usage():
        options = files.ScoreOptions(
            hypotheses=str(hypotheses),
            references=str(references),
            language=check_tag(language, "--language") if language else "",
            metrics=listed(metrics) or list(METRICS),
            ids=None if ids is None else str(ids),
        )
        rows, count = files.score_files(options)
    if out is not None:
        files.manifest_of_scores(options, rows).write(out)
    if as_json:
        print_json(rows)
        return
    cells = [
        [row["metric"], f"{row['raw']:.2f}", f"{row['normalized']:.2f}", row["signature"]] for row in rows
    ]
    typer.echo(table(cells, ["metric", "raw", "normalized", "signature"]))
    typer.echo(f"{count} texts")


def _score_folder(folder: Path, given_too: list[str], out: Path | None, *, as_json: bool) -> None:
    """Score the written hypotheses again, and say whether the written scores are theirs."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of results; give a file of references too")
    if given_too:
        raise UsageError(
            f"{', '.join(given_too)} go with text files; a folder's scores are those of `evaluate`"
        )
    with Bar("scoring") as bar:
        from sprachbund.evaluation import present
        from sprachbund.evaluation.manifest import MANIFEST_FILE, differences, read_manifest
        from sprachbund.evaluation.run import rescore

        written = read_manifest(folder)
        found = rescore(folder, written, progress=lambda done: bar.update(done))
    different = differences(written, found)
    if out is not None:
        found.write(out)
    if as_json:
        print_json({**found.model_dump(mode="json"), "different": list(different)})
        return
    typer.echo(present.as_text(found))
    count = len(written.numbers) + len(written.failures)
    told = f"{len(different)} of {count} numbers differ from" if different else "the same as"
    typer.echo("\n".join([f"{told} {folder / MANIFEST_FILE}", *(f"  {line}" for line in different[:20])]))

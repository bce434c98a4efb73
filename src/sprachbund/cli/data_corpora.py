"""`sprachbund data prepare NAME SOURCE`: public corpora, one command for each entry of `PREPARATIONS`.

They become commands only when one is asked for, so that the other verbs, `doctor` above all, start without
what reading corpora needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sprachbund.cli import data_show
from sprachbund.cli.console import Bar, UsageError, listed, print_json, resumable, table

if TYPE_CHECKING:
    from sprachbund.data.corpora import Preparation, Summary


class CorpusGroup(TyperGroup):
    """The commands under `data prepare`: those written out, and the public corpora."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in self.commands:
            self.commands.update(_commands())
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands, then the corpora with licence and homepage."""
        from sprachbund.data.corpora import PREPARATIONS

        super().format_commands(ctx, formatter)
        with formatter.section("Public corpora (data prepare NAME SOURCE)"):
            formatter.write_dl(
                [(p.name, f"{p.summary}; {p.licence}; {p.homepage}") for p in PREPARATIONS.values()]
            )


def overview(
    context: typer.Context,
    wanted: Annotated[bool, typer.Option("--list", help="Name the public corpora and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --list: print a JSON array.")] = False,
) -> None:
    """What stands under `data prepare`, or the public corpora alone."""
    from sprachbund.data.corpora import PREPARATIONS

    if context.invoked_subcommand is not None:
        if wanted or as_json:
            raise UsageError("--list stands alone; options of a corpus follow its name")
        return
    if not wanted:
        raise UsageError("no corpus named; --list names the public ones, --help all commands")
    corpora = [
        {"name": p.name, "summary": p.summary, "licence": p.licence, "homepage": p.homepage}
        for p in PREPARATIONS.values()
    ]
    if as_json:
        return print_json(corpora)
    for corpus in corpora:
        typer.echo(f"{corpus['name']}: {corpus['summary']}")
        typer.echo(f"  {corpus['licence']}; {corpus['homepage']}")


def prepare_corpus(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The corpus as downloaded and unpacked.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Gets a folder for each split.")],
    languages: Annotated[
        list[str] | None, typer.Option("--languages", metavar="LANG,…", help="Spoken; all if not given.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--targets", metavar="LANG,…", help="Of translations; all if not given."),
    ] = None,
    splits: Annotated[
        list[str] | None, typer.Option("--splits", metavar="NAME,…", help="Parts; all if not given.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave recordings out that cannot be read, and list them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Write a public corpus as manifests, a folder for each split."""
    from sprachbund.data.corpora import PREPARATIONS, CorpusOptions

    preparation = PREPARATIONS[str(context.info_name)]
    with resumable(out), Bar(preparation.name) as bar:
        options = CorpusOptions(
            languages=listed(languages),
            targets=listed(targets),
            splits=listed(splits),
            skip_bad=skip_bad,
            progress=lambda part, done, total: bar.update(done, total, f"utterances of {part}"),
        )
        summary = preparation.prepare(source, out, options)
    if as_json:
        print_json(_json(summary))
    else:
        typer.echo(_text(summary, preparation, out))


def _commands() -> dict[str, Any]:
    """A command for each public corpus; hidden, since the group's help lists them by itself."""
    from sprachbund.data.corpora import PREPARATIONS

    commands = {}
    for preparation in PREPARATIONS.values():
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        help_text = f"{preparation.summary}.\n\n{preparation.licence}; {preparation.homepage}"
        app.command(preparation.name, help=help_text, hidden=True)(prepare_corpus)
        commands[preparation.name] = typer.main.get_command(app)
    return commands


def _text(summary: "Summary", preparation: "Preparation", out: Path) -> str:
    """Sizes, how they compare with the published ones, and what was left out, for people."""
    rows = []
    for name, part in summary.parts.items():
        languages = " ".join(data_show.info(out / name).get("languages", []))
        rows.append([str(out / name), f"{part.utterances}", f"{part.hours:.2f}", languages])
    lines = [table(rows, ["corpus", "utterances", "hours", "texts in"])]
    lines += ["", f"licence: {preparation.licence} ({preparation.homepage})"]
    lines += summary.checks or ["its makers state no sizes that these parts could be compared with"]
    if summary.left_out:
        left_out = [[reason, f"{count}"] for reason, count in sorted(summary.left_out.items())]
        lines += ["", table(left_out, ["left out, listed in left_out.tsv", "entries"])]
    return "\n".join(lines)


def _json(summary: "Summary") -> dict[str, Any]:
    parts = {
        name: {"utterances": part.utterances, "hours": part.hours, "left_out": dict(part.left_out)}
        for name, part in summary.parts.items()
    }
    return {"name": summary.name, "parts": parts, "checks": list(summary.checks)}

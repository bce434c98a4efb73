"""`sprachbund latency LOG… --references REFS`: how long live translation keeps people waiting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli import scoring_options as given
from sprachbund.cli.console import Bar, print_json, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Score when live translation wrote its words: lagging, flicker, quality.")(latency)


def latency(
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="LOG…", help="What was written when; a JSON object a line."),
    ],
    references: Annotated[
        Path,
        typer.Option(
            "--references", metavar="FILE", help="Lines with talk, target, start_s, end_s and text."
        ),
    ],
    as_json: given.Json = False,
) -> None:
    """Score logs of live translation against the segments of their talks, by the ideal clock and with
    computation."""
    from sprachbund.evaluation.emissions import read_logs, read_references
    from sprachbund.evaluation.latency import means, score_talk
    from sprachbund.evaluation.latency_table import latency_table

    wanted = read_references(references)
    found, talks = read_logs(logs), []
    with Bar("scoring", len(found)) as bar:
        for number, log in enumerate(found, start=1):
            talks.append(score_talk(log, wanted.get((log.talk, log.target), [])))
            bar.update(number)
    over_talks = means(talks)
    without_log = sorted(wanted.keys() - {(talk.talk, talk.target) for talk in talks})
    if as_json:
        print_json(
            {
                "talks": [talk.to_dict() for talk in talks],
                "means": [mean.to_dict() for mean in over_talks],
                "without_log": [{"talk": talk, "target": target} for talk, target in without_log],
            }
        )
    else:
        typer.echo(latency_table(talks, over_talks).text(), nl=False)
    _tell("not scored, as no log has them", without_log)
    silent = [(talk.talk, talk.target) for talk in talks if not talk.num_units]
    _tell("nothing was written, so there is no latency and means are without", silent)


def _tell(what: str, talks: Sequence[tuple[str, str]]) -> None:
    """Say of which talks something is so; nothing if it is of none."""
    if talks:
        say(f"{what}: {', '.join(f'{talk} into {target}' for talk, target in talks)}")

"""Options of the headroom of a split; they load no NumPy, since the command line is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from sprachbund.errors import SprachbundError
from sprachbund.util.options import Option, Range, check

Groups = tuple[tuple[str, ...], ...]
"""Languages that train a copy of the modules together."""
TOGETHER, ALONE = "together", "alone"
"""The arms that are always there."""


@dataclass(frozen=True, kw_only=True)
class HeadroomOptions:
    """Options of measuring headroom.

    Attributes:
        modules: names of modules that are trained, * for anything between dots; the last encoder layer if not given.
        languages: languages spoken; all in the data if not given.
        targets: languages written; all that the model knows if not given.
        groups: groups of languages to compare as well, as de+en,fr+it; languages not named stay alone.
        utterances: utterances of each language that are trained on.
        held_out: utterances of each language of the dev corpora: half choose the learning rate, half are reported.
        epochs: passes over the utterances, the same in every arm.
        batch: utterances of a step, of one language.
        learning_rates: tried in every arm; its best one counts.
        seeds: orders of the batches; every arm is trained once with each.
        seed: seed of the choice of utterances and the first order.
        control: whether a control is trained too, in which words of half of the texts are exchanged; it shows whether
            the training is long enough to see a gain, and takes one and a half times the steps again.
    """

    modules: Annotated[tuple[str, ...], Option("--modules", metavar="PATTERN")] = ()
    languages: Annotated[tuple[str, ...], Option("--languages", metavar="LANG,…")] = ()
    targets: Annotated[tuple[str, ...], Option("--to", metavar="LANG,…")] = ()
    groups: Annotated[tuple[str, ...], Option("--groups", metavar="GROUPS", commas=False)] = ()
    utterances: Annotated[int, Range(2), Option("--utterances", metavar="N")] = 400
    held_out: Annotated[int, Range(4), Option("--held-out", metavar="N")] = 200
    epochs: Annotated[int, Range(1), Option("--epochs", metavar="N")] = 5
    batch: Annotated[int, Range(1), Option("--batch", metavar="N")] = 8
    learning_rates: Annotated[tuple[float, ...], Range(0, 1), Option("--learning-rates", metavar="X,…")] = (
        1e-4,
        3e-4,
        1e-3,
    )
    seeds: Annotated[int, Range(1), Option("--seeds", metavar="N")] = 3
    seed: Annotated[int, Option("--seed", metavar="N")] = 0
    control: Annotated[
        bool,
        Option("--no-control", help="Train no control, which shows whether the training is long enough."),
    ] = True

    def __post_init__(self) -> None:
        check(self)
        if not self.learning_rates:
            raise SprachbundError("no learning rate is given; name one, as --learning-rates 3e-4")

    def partitions(self, languages: Sequence[str]) -> dict[str, Groups]:
        """Arm to its groups: all languages together, each alone, and those of `groups`.

        Args:
            languages: all.

        Raises:
            SprachbundError: groups with a language twice, or with one that is not measured.
        """
        arms: dict[str, Groups] = {TOGETHER: (tuple(languages),), ALONE: tuple((tag,) for tag in languages)}
        for text in self.groups:
            groups = tuple(tuple(group.split("+")) for group in text.split(","))
            named = [tag for group in groups for tag in group]
            if unknown := sorted(set(named) - set(languages)):
                raise SprachbundError(
                    f"--groups {text} names {', '.join(unknown)}, and the languages are {', '.join(languages)}"
                )
            if twice := sorted({tag for tag in named if named.count(tag) > 1}):
                raise SprachbundError(f"--groups {text} names {', '.join(twice)} twice; each has one group")
            arms[text] = (*groups, *((tag,) for tag in languages if tag not in named))
        return arms

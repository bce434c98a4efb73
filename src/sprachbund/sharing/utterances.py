"""Which utterances the gradients of a language are taken on: the same ones in whatever order the data come.

Utterances are ranked by a hash of seed and name, so a choice depends on nothing but the seed and which utterances
there are.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any, Literal

from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Target
from sprachbund.sharing.gradients import Spoken, target_tokens

Granularity = Literal["source", "target", "pair"]
"""What is compared: languages spoken, languages written, or pairs of them."""
PAIR = ">"
"""Between the languages of a pair: "de>fr"."""

Fits = Callable[[Any, Utterance, str], bool]
"""Whether a model takes an utterance with its text in a language."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An utterance, by its number in one of the manifests and its name, and the languages it is used with."""

    manifest: int
    index: int
    id: str
    source: str
    target: str

    def read(self, manifests: Sequence[Manifest]) -> Spoken:
        """Sound and text."""
        manifest = manifests[self.manifest]
        text = manifest[self.index].text_in(self.target)
        assert text is not None
        samples = manifest.samples(self.index)
        return Spoken(samples=samples, text=text, source=self.source, target=self.target)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What gradients are taken on.

    Attributes:
        rows: of every language or pair, in the order in which they are used.
        passed_over: how many utterances were met that could not be used.
    """

    rows: Mapping[str, Sequence[Row]]
    passed_over: Mapping[str, int]


def fits(model: Any, utterance: Utterance, target: str) -> bool:
    """Whether a family's window and longest row hold the utterance and its text."""
    text = utterance.text_in(target)
    if not text or not text.strip() or utterance.duration_s > model.max_window_s:
        return False
    prompt = model.prompt(Target(language=target, source=utterance.language))
    return len(prompt) + len(target_tokens(model, text, target)) - 1 <= model.max_tokens


def choose_rows(
    model: Any,
    manifests: Sequence[Manifest],
    *,
    by: Granularity,
    count: int,
    seed: int,
    languages: Sequence[str] = (),
    targets: Sequence[str] = (),
    fits: Fits = fits,
) -> Chosen:
    """The utterances of every language (or pair), none twice.

    By source the languages written take turns, and by target those spoken, so that all languages are compared on
    the same mixture.

    Args:
        model: knows its `pairs()`.
        manifests: the data.
        by: what is compared.
        count: utterances of each.
        seed: of the choice.
        languages: compared; all in the data if none are given.
        targets: written; all that the model knows if none are given.
        fits: whether the model takes an utterance.

    Raises:
        SprachbundError: a language that the model or the data do not know, or with too few utterances.
    """
    choice = _Choice(model, manifests, seed, targets, fits)
    rows, passed_over = {}, {}
    for key, streams in choice.streams(by, languages).items():
        before = choice.passed_over
        found = list(islice(_taking_turns(streams), count))
        if len(found) < count:
            raise SprachbundError(
                f"{key} has {len(found)} utterances that can be used, {count} are needed; "
                f"take fewer (--utterances), more data, or leave {key} out (--languages)"
            )
        rows[key], passed_over[key] = found, choice.passed_over - before
    return Chosen(rows=rows, passed_over=passed_over)


class _Choice:
    """The utterances of all languages spoken, ranked."""

    def __init__(
        self, model: Any, manifests: Sequence[Manifest], seed: int, targets: Sequence[str], fits: Fits
    ) -> None:
        self.model, self.manifests, self.fits = model, manifests, fits
        self.passed_over = 0
        self.pairs = sorted(pair for pair in model.pairs() if not targets or pair[1] in targets)
        self.written: set[tuple[str, str]] = set()
        ranked: dict[str, list[tuple[bytes, int, int]]] = defaultdict(list)
        for number, manifest in enumerate(manifests):
            for index, utterance in enumerate(manifest):
                if utterance.language:
                    rank = hashlib.sha256(f"{seed}:{utterance.id}".encode()).digest()
                    ranked[utterance.language].append((rank, number, index))
                    texts = {utterance.language, *utterance.translations}
                    self.written |= {(utterance.language, text) for text in texts}
        self.ranked = {language: sorted(found) for language, found in ranked.items()}
        if unknown := sorted(set(targets) - {target for _, target in model.pairs()}):
            raise SprachbundError(f"this model does not write {', '.join(unknown)}; leave it out of --to")

    def streams(self, by: Granularity, languages: Sequence[str]) -> dict[str, list[Iterator[Row]]]:
        """For every language or pair compared, streams of rows that take turns."""
        if by == "source":
            wanted = self._wanted(languages, self.ranked, {source for source, _ in self.pairs})
            return {source: [self._in_turn(source)] for source in wanted}
        pairs = [pair for pair in self.pairs if pair in self.written]
        if by == "pair":
            named = {f"{source}{PAIR}{target}": (source, target) for source, target in pairs}
            wanted = self._wanted(languages, named, named)
            return {key: [self._rows(*named[key])] for key in wanted}
        by_target: dict[str, list[Iterator[Row]]] = defaultdict(list)
        for source, target in pairs:
            by_target[target].append(self._rows(source, target))
        return {target: by_target[target] for target in self._wanted(languages, by_target, by_target)}

    def _wanted(self, languages: Sequence[str], there: Any, known: Any) -> list[str]:
        if missing := [language for language in languages if language not in there]:
            raise SprachbundError(
                f"the data hold nothing for {', '.join(missing)}; they hold {', '.join(sorted(there))}"
            )
        wanted = sorted(set(languages) or set(there))
        if unknown := [language for language in wanted if language not in known]:
            raise SprachbundError(
                f"the model does not know {', '.join(unknown)}; name the languages to compare with --languages: "
                f"{', '.join(sorted(set(there) & set(known))) or 'none of the data is known to it'}"
            )
        if not wanted:
            raise SprachbundError("no language of the data is known to the model; check both")
        return wanted

    def _rows(self, source: str, target: str) -> Iterator[Row]:
        for _, number, index in self.ranked[source]:
            utterance = self.manifests[number][index]
            if self.fits(self.model, utterance, target):
                yield Row(manifest=number, index=index, id=utterance.id, source=source, target=target)
            else:
                self.passed_over += 1

    def _in_turn(self, source: str) -> Iterator[Row]:
        """Each utterance once, with the first language it can be written in from the one whose turn it is."""
        targets = [target for spoken, target in self.pairs if spoken == source]
        turn = 0
        for _, number, index in self.ranked[source]:
            utterance = self.manifests[number][index]
            for step in range(len(targets)):
                target = targets[(turn + step) % len(targets)]
                if self.fits(self.model, utterance, target):
                    yield Row(manifest=number, index=index, id=utterance.id, source=source, target=target)
                    turn += 1
                    break
            else:
                self.passed_over += 1


def _taking_turns(streams: Sequence[Iterator[Row]]) -> Iterator[Row]:
    return (row for row in chain.from_iterable(zip_longest(*streams)) if row is not None)

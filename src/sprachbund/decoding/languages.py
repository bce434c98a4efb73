"""Languages of decoding: identification of the language spoken, and the languages of a request.

`LanguageTracker` identifies the language of span after span, within the languages that the caller allows.
`read_request` brings the names of a request to the model's tags and refuses what the model does not know.

Shapes: W windows, L languages.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprachbund.decoding.options import TRANSCRIBE
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.text.languages import described, parse_language

# Identification.

UNDETERMINED = "und"
"""BCP-47 tag for speech in a language that the model cannot identify."""

DECISIVE = 0.9
"""Posterior from which one window alone decides."""

_EVEN = 1e-4  # a posterior this close to uniform says that the model has learned nothing about the language


@dataclass(frozen=True, kw_only=True)
class IdentifiedLanguage:
    """A language and its probability among the allowed ones."""

    language: str
    probability: float


def language_posterior(log_probs: Tensor, languages: Sequence[str], allowed: Sequence[str] | None) -> Tensor:
    """Average log-probabilities over windows and renormalise over the allowed languages: (L,), 0 for others.

    Args:
        log_probs: (W, L), one column per entry of `languages`.
        languages: BCP-47 tags of the columns.
        allowed: languages to choose from; None allows all.
    """
    wanted = torch.tensor([allowed is None or language in allowed for language in languages])
    mean = log_probs.double().cpu().mean(0).masked_fill(~wanted, -torch.inf)
    return mean.softmax(0)


def identify(
    log_probs: Tensor, languages: Sequence[str], allowed: Sequence[str] | None
) -> IdentifiedLanguage:
    """The likeliest allowed language over the windows `log_probs` (W, L).

    `UNDETERMINED` when the model gives all of several languages the same probability.
    """
    posterior = language_posterior(log_probs, languages, allowed)
    best = int(posterior.argmax())
    num_allowed = int((posterior > 0).sum())
    if num_allowed > 1 and float(posterior[best]) < 1 / num_allowed + _EVEN:
        return IdentifiedLanguage(language=UNDETERMINED, probability=float(posterior[best]))
    return IdentifiedLanguage(language=languages[best], probability=float(posterior[best]))


def text_log_probs(text: str, languages: Sequence[str]) -> list[float]:
    """Log-probabilities (L,) of the language of a text.

    A text without letters says nothing; the first of the languages is then a little likelier than the others.

    Args:
        text: any.
        languages: BCP-47 tags, two or more.

    Raises:
        SprachbundError: the package that identifies texts is not installed, or does not know a language.
    """
    try:
        from sprachbund.text.identify import LanguageIdentifier

        identifier = LanguageIdentifier(languages)
    except ImportError as error:
        raise SprachbundError(
            "this model hears no language, and identifying it from its text needs the package py3langid; run: pip "
            "install py3langid, or name the source language"
        ) from error
    if not any(character.isalpha() for character in text):
        return [math.log((2 if n == 0 else 1) / (len(languages) + 1)) for n in range(len(languages))]
    probabilities = identifier.identify(text).probabilities
    return [math.log(max(probabilities.get(tag, 0.0), _LEAST)) for tag in languages]


_LEAST = 1e-9


class LanguageTracker:
    """Identifies span after span of one recording, and says where speech sounds like another language than it may be.

    A span that is decisive by itself decides alone, so that a change of language is followed at once; any other is
    averaged with the spans before it. The answer does not depend on how spans are batched.

    Args:
        languages: BCP-47 tags of the model's source languages.
        allowed: languages to choose from; None allows all.
        num_windows: spans that are averaged.
        given: the language spoken, where the caller named it; nothing is identified then, only compared.

    Attributes:
        num_compared: spans that were compared with the languages that may be spoken.
    """

    def __init__(
        self,
        languages: Sequence[str],
        allowed: Sequence[str] | None,
        num_windows: int,
        *,
        given: str | None = None,
    ) -> None:
        self._languages, self._allowed, self._given = languages, allowed, given
        self._recent: deque[Tensor] = deque(maxlen=num_windows)
        self.num_compared, self._others = 0, Counter[str]()

    def push(self, log_probs: Tensor) -> IdentifiedLanguage:
        """Language of the next span from its log-probabilities (L,)."""
        language = self.peek(log_probs)
        self._recent.append(log_probs)
        if self._allowed is not None:
            self._compare(log_probs, self._allowed)
        return language

    def compare(self, log_probs: Tensor) -> None:
        """Compare the next span (L,) with the language that the caller named, if he did."""
        if self._given is not None:
            self._compare(log_probs, (self._given,))

    def _compare(self, log_probs: Tensor, expected: Sequence[str]) -> None:
        self.num_compared += 1
        heard = identify(log_probs[None], self._languages, None)
        if heard.probability >= DECISIVE and heard.language not in expected:
            self._others[heard.language] += 1

    @property
    def warning(self) -> str | None:
        """The languages that spans surely are in though they may not be; None if there is nothing to warn of.

        One span suffices where the caller allowed several languages: the probability of an answer is one among these,
        and may be high nevertheless. One language that was named is doubted if most spans sound like others, since
        single spans of a speaker that the model does not know often do.
        """
        count = self._others.total()
        heard = described(self._others)
        spans = f"{count} of {self.num_compared} spans of speech sound like {heard}"
        if self._given is not None:
            return (
                f"{spans}, not like {described([self._given])}, which was named; name another language, or none to "
                "have it identified"
                if count > self.num_compared / 2
                else None
            )
        if not count or self._allowed is None:
            return None
        return f"{spans}, and may only be {described(self._allowed)}; if they are, their text is one that nobody said"

    def peek(self, log_probs: Tensor) -> IdentifiedLanguage:
        """The same for a span that has not ended: it does not count for later ones."""
        alone = identify(log_probs[None], self._languages, self._allowed)
        if alone.probability >= DECISIVE:
            return alone
        recent = deque([*self._recent, log_probs], maxlen=self._recent.maxlen)
        return identify(torch.stack(list(recent)), self._languages, self._allowed)


# The languages of a request.


@dataclass(frozen=True, kw_only=True)
class Request:
    """Languages of a request in the model's own tags.

    Attributes:
        source: the language spoken; None when it is to be identified.
        targets: languages wanted, or `TRANSCRIBE`; no two alike.
        allowed: languages that identification chooses from; None allows all.
    """

    source: str | None
    targets: tuple[str, ...]
    allowed: tuple[str, ...] | None

    def target_language(self, target: str, source: str) -> str:
        """The language that `target` means for speech in `source`."""
        return source if target == TRANSCRIBE else target


def read_request(
    model: Family, *, source: str | None, targets: Sequence[str], allowed: Sequence[str] | None
) -> Request:
    """Bring language names and tags to the model's tags, and check the pairs.

    Args:
        model: any family.
        source: the language spoken; None when it is to be identified.
        targets: languages wanted; "transcribe" is the language spoken.
        allowed: languages that may be spoken; None allows all. Beside a source, they are for models with experts by
            language alone.

    Raises:
        SprachbundError: a language the model does not know (names the nearest and the list), a pair it
            does not know (lists those it does), a language that its sharing plan has no group for, or a source beside
            languages that may be spoken which it is not among or which change nothing.
    """
    if isinstance(targets, str):
        targets = [targets]
    if not targets:
        raise SprachbundError("no target language given; name at least one, or 'transcribe'")
    written = {target for _, target in model.pairs()}
    tags = tuple(dict.fromkeys(t if t == TRANSCRIBE else parse_language(t, written) for t in targets))
    spoken = None if source is None else parse_language(source, model.source_languages)
    choices = declared_languages(model, allowed)
    _check_choices(model, spoken, choices)
    _check_branches(model, sources=[*([spoken] if spoken else []), *(choices or ())], targets=tags)
    request = Request(source=spoken, targets=tags, allowed=choices)
    for target in tags:
        if spoken is not None:
            check_pair(model, spoken, request.target_language(target, spoken))
        elif target != TRANSCRIBE:
            _check_reachable(model, target)
    return request


def declared_languages(model: Family, tags: Sequence[str] | None) -> tuple[str, ...] | None:
    """Languages that may be spoken, in the model's tags, each once; None where any may.

    Raises:
        SprachbundError: a language that the model does not hear, or has no experts for.
    """
    return None if tags is None else tuple(dict.fromkeys(_declared(model, tag) for tag in tags))


def _declared(model: Family, tag: str) -> str:
    """The model's tag of a language that may be spoken."""
    try:
        return parse_language(tag, model.source_languages)
    except SprachbundError:
        if (experts := model.capabilities.experts) is not None:
            experts.allowed_groups([tag])  # says which languages have experts
        raise


def _check_choices(model: Family, spoken: str | None, choices: Sequence[str] | None) -> None:
    """Refuse a source beside choices that leave it out, or that change nothing, since nothing is identified."""
    if spoken is None or choices is None:
        return
    given = f"the source is {spoken}, and the languages that may be spoken are {', '.join(choices)}"
    if spoken not in choices:
        raise SprachbundError(f"{given}; add {spoken} to them, or leave one of the two out")
    if model.capabilities.experts is None:
        raise SprachbundError(
            f"{given}, from which the model {model.name} has nothing to choose then; leave one of the two out"
        )


def _check_branches(model: Family, *, sources: Sequence[str], targets: Sequence[str]) -> None:
    """Refuse languages without a branch, in a model that is split by language."""
    plan = model.capabilities.sharing_plan
    asked = {"source": sources, "target": [tag for tag in targets if tag != TRANSCRIBE]}
    for split in plan.splits if plan else ():
        for tag in asked.get(split.side, ()):
            split.group_of(tag)


def knows_pair(model: Family, source: str, target: str) -> bool:
    """Whether the model can write `target` for speech in `source`; speech of unknown language may be any."""
    if source == UNDETERMINED:
        return any(t == target for _, t in model.pairs())
    return (source, target) in model.pairs()


def check_pair(model: Family, source: str, target: str) -> None:
    """Refuse a pair the model does not know; there is no fallback to another language.

    Args:
        model: any family.
        source: the language spoken, in the model's tag.
        target: the language wanted, likewise.

    Raises:
        SprachbundError: lists the pairs the model does know.
    """
    if not knows_pair(model, source, target):
        raise SprachbundError(
            f"the model {model.name} does not know the pair {source} to {target}; "
            f"{known_pairs(model, source, target)}"
        )


def known_pairs(model: Family, source: str, target: str) -> str:
    """Languages that the model knows from `source` and into `target`, for messages."""
    from_source = [t for s, t in model.pairs() if s == source]
    into_target = [s for s, t in model.pairs() if t == target]
    return f"from {source} it knows {described(from_source)}; into {target} it knows {described(into_target)}"


def _check_reachable(model: Family, target: str) -> None:
    """Without a source, a target that only its own language leads to would be transcription under another
    name."""
    sources = {s for s, t in model.pairs() if t == target}
    if sources == {target} and len(model.source_languages) > 1:
        raise SprachbundError(
            f"the model {model.name} writes {target} only for speech in {target}; "
            f"give {target} as the source, or choose from "
            f"{described({t for s, t in model.pairs() if s != t})}"
        )

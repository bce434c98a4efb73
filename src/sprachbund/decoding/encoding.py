"""Speech to memories, with the languages that are known: models split by language take a branch for each."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.decoding.language import UNDETERMINED
from sprachbund.models.family import Family, Features, Memory


def encode(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None = None,
) -> Memory:
    """Encode utterances (B) of which the languages spoken may be known.

    Args:
        model: any family.
        features: of the utterances.
        languages: (B,) in the model's tags; None where it is to be found out, which costs a model that is split by
            language one pass of its split layers for every group.
        declared: (B,) in the model's tags, all that may occur in each; None where any may. In models with experts by
            language those of others get nothing; other models do not look at it.

    Raises:
        SprachbundError: a language that the model's sharing plan has no group for.
    """
    known = _numbers(model, features, languages)
    return model.encode(
        replace(features, source_language=known, declared=_declared(model, features, languages, declared))
    )


def encode_again(
    model: Family, features: Features, memory: Memory, languages: Sequence[str | None]
) -> Memory:
    """The memory, with those utterances encoded again that turned out to be in another language.

    What the neighbours of an utterance say, or which languages are allowed, can overrule what it sounds like alone.
    """
    if memory.source_language is None:
        return memory
    wanted = _numbers(model, features, languages)
    wrong = ((wanted != memory.source_language) & (wanted != NO_LANGUAGE)).nonzero().flatten()
    if not len(wrong):
        return memory
    part = Features(
        values=features.values[wrong], num_frames=features.num_frames[wrong], source_language=wanted[wrong]
    )
    again = model.encode(part).states
    states = memory.states.clone()
    states[wrong] = again
    language = memory.source_language.clone()
    language[wrong] = wanted[wrong]
    return replace(memory, states=states, source_language=language)


def _numbers(model: Family, features: Features, languages: Sequence[str | None]) -> Tensor:
    places = {tag: number for number, tag in enumerate(model.source_languages)}
    numbers = [NO_LANGUAGE if tag in (None, UNDETERMINED) else places[str(tag)] for tag in languages]
    return torch.tensor(numbers, device=features.values.device)


def _declared(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None,
) -> Tensor | None:
    """What may occur (B, L): what is declared and the language that is known."""
    if declared is None or not hasattr(model, "allowed_groups") or all(tags is None for tags in declared):
        return None
    rows = [
        [tags is None or tag in tags or tag == known for tag in model.source_languages]
        for tags, known in zip(declared, languages, strict=True)
    ]
    return torch.tensor(rows, device=features.values.device)

"""Speech to memories, with the languages that are known: models split by language take a branch for each."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.decoding.language import UNDETERMINED
from sprachbund.models.family import Family, Features, Memory


def encode(model: Family, features: Features, languages: Sequence[str | None]) -> Memory:
    """Encode utterances (B) of which the languages spoken may be known.

    Args:
        model: any family.
        features: of the utterances.
        languages: (B,) in the model's tags; None where it is to be found out, which costs a model that is split by
            language one pass of its split layers for every group.

    Raises:
        SprachbundError: a language that the model's sharing plan has no group for.
    """
    return model.encode(replace(features, source_language=_numbers(model, features, languages)))


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

"""What a corpus that a model is measured on has in common with those that it is trained on.

A score says how well new speech is understood only if the speech is new. Equal recordings make every score worthless;
equal sentences and speakers make it that of known wording and known voices.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sprachbund.data.manifest import Utterances
from sprachbund.text.languages import primary
from sprachbund.text.normalize import normalize
from sprachbund.util.progress import Progress, nothing

Pair = tuple[str, str]
"""Ids of an utterance that is measured on and of one that is trained on."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What one corpus has in common with others.

    Attributes:
        utterances: language to the number of its utterances in the corpus.
        same_sound: pairs of utterances whose samples are equal, one for each in the corpus.
        same_text: pairs of utterances in one language, of any region, whose transcripts are equal but for case and
            punctuation, one for each in the corpus.
        same_text_languages: language to their number.
        same_speaker: number of utterances whose speaker has a name and is one of the others' speakers.
        named_speaker: number of utterances whose speaker has a name.
    """

    utterances: Mapping[str, int]
    same_sound: Sequence[Pair]
    same_text: Sequence[Pair]
    same_text_languages: Mapping[str, int]
    same_speaker: int
    named_speaker: int


def overlap(measured: Utterances, trained: Sequence[Utterances], progress: Progress = nothing) -> Overlap:
    """Look for utterances of a corpus in others.

    Only sound of equal length is read and compared, so recordings that were cut or coded otherwise count as different
    ones.

    Args:
        measured: the corpus.
        trained: the others.
        progress: called with utterances compared by sound, and all of these.
    """
    ids_by_text: dict[tuple[str, str], str] = {}
    speakers: set[str] = set()
    for corpus in trained:
        for said in corpus:
            speakers.add(said.speaker)
            ids_by_text.setdefault((primary(said.language), normalize(said.text, said.language)), said.id)
    same_text: list[Pair] = []
    same_text_languages: Counter[str] = Counter()
    named = known = 0
    for said in measured:
        text = normalize(said.text, said.language)
        if text and (known_id := ids_by_text.get((primary(said.language), text))):
            same_text.append((said.id, known_id))
            same_text_languages[said.language] += 1
        named += bool(said.speaker)
        known += bool(said.speaker) and said.speaker in speakers
    return Overlap(
        utterances=dict(sorted(Counter(measured.languages.tolist()).items())),
        same_sound=_same_sound(measured, trained, progress),
        same_text=same_text,
        same_text_languages=dict(sorted(same_text_languages.items())),
        same_speaker=known,
        named_speaker=named,
    )


def _same_sound(measured: Utterances, trained: Sequence[Utterances], progress: Progress) -> list[Pair]:
    """Pairs of utterances whose samples are equal."""
    by_length: dict[float, list[int]] = defaultdict(list)
    for index, length in enumerate(measured.durations_s.tolist()):
        by_length[length].append(index)
    candidates = [
        (corpus, index)
        for corpus in trained
        for index in np.flatnonzero(np.isin(corpus.durations_s, measured.durations_s)).tolist()
    ]
    hashes: dict[float, dict[bytes, list[int]]] = {}
    pairs: dict[int, Pair] = {}
    for number, (corpus, index) in enumerate(candidates):
        length = float(corpus.durations_s[index])
        if length not in hashes:
            hashes[length] = defaultdict(list)
            for own in by_length[length]:
                hashes[length][_hash(measured.samples(own))].append(own)
        for own in hashes[length].get(_hash(corpus.samples(index)), ()):
            pairs.setdefault(own, (measured[own].id, corpus[index].id))
        progress(number + 1, len(candidates))
    return [pairs[own] for own in sorted(pairs)]


def _hash(samples: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).digest()

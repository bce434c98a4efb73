"""Pseudo-labels: a teacher writes what is said, in every language wanted; what is worth teaching becomes a corpus.

The work goes shard by shard, and a shard that is finished is never done again. Beside each lies a record of what was
dropped and why, so that nothing vanishes unseen. Idea and name: arXiv 2311.00430, section 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sprachbund.compression.filters import FilterOptions, LabelEvidence, why_dropped
from sprachbund.compression.label_records import (
    KEPT,
    THERE,
    UNKNOWN_PAIR,
    Labelled,
    Record,
    claim,
    close,
    read_record,
)
from sprachbund.compression.speech import Source, Spoken
from sprachbund.data.manifest import ManifestWriter
from sprachbund.decoding.language import UNDETERMINED, identify
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family
from sprachbund.text.identify import LanguageIdentifier

_SHARD_S = 1800.0  # of speech in a shard: what is lost at most when the work is broken off

Labels = list[list[tuple[str, Any]]]


class Labeller(Protocol):
    """What writes the labels, with their evidence; `sprachbund.evaluation.hypotheses.Decoder` does."""

    def decode(
        self, sounds: Sequence[np.ndarray], targets: Sequence[Sequence[str]], sources: Sequence[str | None]
    ) -> Labels:
        """Text and `LabelEvidence` for every sound and each of its targets, of which all have as many."""
        ...


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """What is labelled.

    Attributes:
        targets: BCP-47 tags of the texts wanted. What is said is transcribed besides, where no transcript is there.
        replace: write every text anew; what the data have is not taken over, also where the label is dropped.
        batch_size: utterances at a time; does not change the labels.
        filters: which labels are kept.
    """

    targets: tuple[str, ...]
    replace: bool = False
    batch_size: int = 16
    filters: FilterOptions = field(default_factory=FilterOptions)


def check_targets(teacher: Family, sources: Sequence[Source], targets: Sequence[str]) -> None:
    """Refuse data or targets that a teacher knows nothing of.

    Raises:
        SprachbundError: a language spoken that it does not hear, or a target that it does not write from any of them.
    """
    heard, pairs = set(teacher.source_languages), teacher.pairs()
    for source in sources:
        if unknown := sorted(source.languages - heard):
            raise SprachbundError(
                f"{source.path} holds speech in {', '.join(unknown)}, which the teacher does not hear; it hears "
                f"{', '.join(sorted(heard))}"
            )
    spoken = sorted(set().union(*(source.languages for source in sources)) or heard)
    for target in targets:
        if not any((s, target) in pairs for s in spoken):
            known = sorted({t for s, t in pairs if s in spoken})
            raise SprachbundError(
                f"the teacher does not write {target} for speech in {', '.join(spoken)}; for that it writes "
                f"{', '.join(known) or 'nothing'}"
            )


def pseudo_label(
    teacher: Family,
    labeller: Labeller,
    sources: Sequence[Source],
    out: Path,
    options: LabelOptions,
    *,
    identifier: LanguageIdentifier,
    name: str,
    settings: dict[str, Any],
    progress: Callable[[float, float], None] = lambda done_s, total_s: None,
) -> Labelled:
    """Write a corpus of speech with a teacher's texts into `out`; whole shards there stay as they are.

    Args:
        teacher: any family.
        labeller: decodes with it.
        sources: of speech.
        out: the corpus, as `train` reads it.
        options: languages and filters.
        identifier: tells languages by texts.
        name: of the teacher, for the corpus's description.
        settings: what else decides the labels; a corpus begun with other settings is refused.
        progress: called with seconds of speech done and in all.

    Raises:
        SprachbundError: as `check_targets`; `out` holds another corpus; nothing was kept.
    """
    check_targets(teacher, sources, options.targets)
    claim(out, {**settings, "options": asdict(options), "data": [str(s.path.resolve()) for s in sources]})
    work = _Work(teacher, labeller, options, identifier)
    shards, total_s = list(_shards(sources)), sum(sum(s.durations_s) for s in sources)
    done_s, records = 0.0, []
    for number, pieces in enumerate(shards):
        records.append(_shard(work, out, number, pieces, many=len(sources) > 1))
        done_s += sum(piece.duration_s for piece in pieces)
        progress(done_s, total_s)
    return close(out, sources, records, name, options.targets)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    source: Source
    source_number: int
    number: int
    duration_s: float

    def read(self) -> Iterator[Spoken]:
        return self.source.read(self.number)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """An utterance whose language is known, and the languages it is to be labelled in."""

    spoken: Spoken
    language: str
    id: str
    targets: tuple[str, ...]


class _Work:
    """A teacher at work on shards."""

    def __init__(
        self, teacher: Family, labeller: Labeller, options: LabelOptions, identifier: LanguageIdentifier
    ) -> None:
        self._teacher, self._labeller = teacher, labeller
        self._options, self._identifier = options, identifier

    def label(self, spoken: Sequence[tuple[str, Spoken]], record: Record, writer: ManifestWriter) -> None:
        """Label utterances under their ids and write those of which a text is known."""
        jobs = self._jobs(spoken, record)
        labels = self._labels(jobs)
        for job in jobs:
            self._write(job, labels.get(job.id, {}), record, writer)

    def _jobs(self, spoken: Sequence[tuple[str, Spoken]], record: Record) -> list[_Job]:
        fitting = []
        for name, one in spoken:
            if one.duration_s > self._teacher.max_window_s:
                record.leave_out(
                    name, f"too long: {one.duration_s:.1f} s, more than the teacher takes at once"
                )
            else:
                fitting.append((name, one))
        languages = self._languages([one for _, one in fitting if one.language is None])
        jobs = []
        for name, one in fitting:
            language, probability = (one.language, 1.0) if one.language is not None else next(languages)
            if probability < self._options.filters.min_language_probability:
                record.leave_out(name, f"language unsure: {language} with {probability:.2f}")
                continue
            wanted = self._wanted(one, language, record)
            jobs.append(_Job(spoken=one, language=language, id=name, targets=wanted))
        return jobs

    def _wanted(self, one: Spoken, language: str, record: Record) -> tuple[str, ...]:
        """Languages to label in; nothing where nobody speaks."""
        wanted = []
        for target in dict.fromkeys((language, *self._options.targets)) if language else ():
            known = (language, target) in self._teacher.pairs()
            there = one.translations.get(target) if target != language else one.text
            if there and not (self._options.replace and known):
                record.count(target, THERE)
            elif known:
                wanted.append(target)
            else:
                record.count(target, UNKNOWN_PAIR)
        return tuple(wanted)

    @torch.inference_mode()
    def _languages(self, unknown: Sequence[Spoken]) -> Iterator[tuple[str, float]]:
        """The language of each, and its probability."""
        for some in _batches(unknown, self._options.batch_size):
            memory = self._teacher.encode(self._teacher.features([one.samples for one in some]))
            for row in self._teacher.language_log_probs(memory):
                found = identify(row[None], self._teacher.source_languages, None)
                if found.language == UNDETERMINED:
                    raise SprachbundError(
                        "this teacher cannot tell which language is spoken; name it with --from"
                    )
                yield found.language, found.probability

    def _labels(self, jobs: Sequence[_Job]) -> dict[str, dict[str, tuple[str, LabelEvidence]]]:
        """Job to target to text and evidence; utterances of like length share a batch."""
        found: dict[str, dict[str, tuple[str, LabelEvidence]]] = {}
        order = sorted(jobs, key=lambda job: (len(job.targets), job.spoken.duration_s, job.id))
        for count, same in groupby(order, key=lambda job: len(job.targets)):
            for batch in _batches(list(same), self._options.batch_size) if count else ():
                rows = self._labeller.decode(
                    [job.spoken.samples for job in batch],
                    [job.targets for job in batch],
                    [job.language for job in batch],
                )
                for job, row in zip(batch, rows, strict=True):
                    found[job.id] = dict(zip(job.targets, row, strict=True))
        return found

    def _write(
        self,
        job: _Job,
        labels: dict[str, tuple[str, LabelEvidence]],
        record: Record,
        writer: ManifestWriter,
    ) -> None:
        transcript = "" if job.language in labels else job.spoken.text
        kept: dict[str, str] = {}
        # The transcript comes first: the others are measured by it.
        for target, (text, evidence) in labels.items():
            reason = why_dropped(
                text,
                evidence,
                source=job.language,
                target=target,
                transcript=transcript,
                duration_s=job.spoken.duration_s,
                identifier=self._identifier,
                options=self._options.filters,
            )
            if reason is not None:
                record.drop(job.id, target, text, reason)
                continue
            record.count(target, KEPT)
            kept[target] = text
            transcript = text if target == job.language else transcript
        translations = {t: x for t, x in job.spoken.translations.items() if t not in labels} | kept
        translations.pop(job.language, None)
        if job.language and not transcript and not translations:
            record.left_out["no text is left"] += 1
            return
        by_teacher = {t: round(labels[t][1].mean_log_probability, 4) for t in kept}
        record.utterances += 1
        writer.add(
            job.spoken.samples,
            text=transcript,
            language=job.language,
            speaker=job.spoken.speaker,
            utterance_id=job.id,
            translations=translations,
            custom={**job.spoken.custom, "pseudo_labels": by_teacher},
        )


def _shard(work: _Work, out: Path, number: int, pieces: Sequence[_Piece], *, many: bool) -> dict[str, Any]:
    """Label one shard, if it is not there; its record."""
    path = out / f"labels.{number:05d}.json"
    if not path.exists():
        record, writer = Record(), ManifestWriter(out, shard_size=2**62, shard=number)
        spoken: list[tuple[str, Spoken]] = []
        for piece in pieces:
            try:
                prefix = f"{piece.source_number}-" if many else ""  # sources may use the same ids
                spoken += [(prefix + one.id, one) for one in piece.read()]
            except SprachbundError as error:
                record.leave_out(f"{piece.source.path}#{piece.number}", f"unreadable: {error}")
        work.label(spoken, record, writer)
        writer.flush()
        record.write(path)
    return read_record(path)


def _shards(sources: Sequence[Source]) -> Iterator[list[_Piece]]:
    """Pieces in order, about half an hour together."""
    shard: list[_Piece] = []
    for source_number, source in enumerate(sources):
        for number, duration_s in enumerate(source.durations_s):
            if shard and sum(p.duration_s for p in shard) + duration_s > _SHARD_S:
                yield shard
                shard = []
            shard.append(
                _Piece(source=source, source_number=source_number, number=number, duration_s=duration_s)
            )
    if shard:
        yield shard


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))

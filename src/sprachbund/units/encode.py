"""A corpus as units: shards of lines, and a manifest that names everything they were made with by hash."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.units.corpora import Chosen
from sprachbund.units.directory import CorpusInfo, Units
from sprachbund.units.encoded import MANIFEST, Encoded, EncodedInfo, Shard, Skipped, read_lines
from sprachbund.units.files import begin, check_begun, corpus_hash
from sprachbund.units.jobs import Computing, EncodeJob, Extraction, at_speed
from sprachbund.units.work import run
from sprachbund.util.files import file_sha256, write_json


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Units to be found in a corpus.

    Attributes:
        units: directory of the units.
        extraction: the model that they are made of.
        data: the corpus.
        out: directory of what is found.
        languages: of the speech taken; all if none is named.
        speed: of the speech, against its own; units are found anew at each (arXiv 2309.15826 trains on 0.9, 1, 1.1).
        skip_bad: leave out, and name, utterances of no frames instead of ending.
        computing: see `Computing`.
    """

    units: Path
    extraction: Extraction
    data: Path
    out: Path
    languages: tuple[str, ...] = ()
    speed: float = 1.0
    skip_bad: bool = False
    computing: Computing = field(default_factory=Computing)

    def __post_init__(self) -> None:
        if not 0.5 <= self.speed <= 2:
            raise SprachbundError(f"the speed is {self.speed}; give 0.5 to 2")

    @property
    def job(self) -> EncodeJob:
        """The files that are wanted."""
        return EncodeJob(
            extraction=self.extraction,
            chosen=Chosen(data=(self.data,), languages=self.languages),
            units=self.units,
            out=self.out,
            computing=self.computing,
            speed=self.speed,
        )


def encode(encoding: Encoding, progress: Callable[[int, int], None] = lambda done, total: None) -> Encoded:
    """Find the units of a corpus; the same call again goes on where it stopped, and gives the same files.

    Raises:
        SprachbundError: another model than the units were made of, utterances of no frames that are not to be
            skipped, or `out` begun with other settings.
    """
    units = Units(encoding.units)
    check_source(units, encoding.extraction)
    check_begun(encoding.out, _settings(encoding, units))
    if (encoding.out / MANIFEST).exists():
        return Encoded(encoding.out)
    job = encoding.job
    skipped = _without_frames(job, encoding)
    begin(encoding.out, _settings(encoding, units))
    run(job, workers=encoding.computing.workers, ray_address=encoding.computing.ray, progress=progress)
    write_json(encoding.out / MANIFEST, _info(job, encoding, units, skipped))
    return Encoded(encoding.out)


def check_source(units: Units, extraction: Extraction) -> None:
    """Raises SprachbundError unless features are of the model and layer that the units were made of."""
    source = units.config.source
    if extraction.hash != source.hash:
        raise SprachbundError(
            f"{extraction.directory} is not the model that {units.directory} was made of ({source.name}, "
            f"{source.hash[:12]}; this one is {extraction.hash[:12]}); name that one"
        )
    if extraction.layer != source.layer:
        raise SprachbundError(f"{units.directory} was made of layer {source.layer}, not {extraction.layer}")


def _settings(encoding: Encoding, units: Units) -> dict[str, object]:
    return {
        **units.identity.model_dump(),
        "data": corpus_hash(encoding.data),
        "languages": encoding.languages or None,
        "speed": encoding.speed,
        "device": encoding.extraction.device,
        "batch_s": encoding.extraction.batch_s,
        "threads": encoding.computing.threads,
        "block": encoding.computing.block,
    }


def _without_frames(job: EncodeJob, encoding: Encoding) -> list[Skipped]:
    """Utterances that are too short, before anything is computed."""
    source = encoding.extraction.open()
    lengths = [at_speed(int(num), encoding.speed) for num in job.chosen.num_samples]
    short = [place for place, length in enumerate(lengths) if not source.num_frames(length)]
    found = [
        Skipped(
            id=job.chosen.utterance(place).id, reason=f"{lengths[place]} samples are no frame of the encoder"
        )
        for place in short
    ]
    if found and not encoding.skip_bad:
        raise SprachbundError(
            f"{len(found)} of {len(lengths)} utterances of {encoding.data} have no frames, the first is "
            f"{found[0].id}: {found[0].reason}; give longer ones, or leave them out with --skip-bad"
        )
    return found


def _info(job: EncodeJob, encoding: Encoding, units: Units, skipped: list[Skipped]) -> EncodedInfo:
    shards, totals, seconds = [], np.zeros(3, np.int64), 0.0
    for path, _ in job.files:
        lines = list(read_lines(path))
        counts = np.array(
            [len(lines), sum(len(u.units) for u in lines), sum(sum(u.durations) for u in lines)]
        )
        totals += counts
        seconds += sum(u.duration_s for u in lines)
        shards.append(Shard(file=path.name, hash=file_sha256(path), utterances=int(counts[0])))
    return EncodedInfo(
        identity=units.identity,
        clusters=units.num_clusters,
        frame_s=units.config.source.frame_s,
        corpus=CorpusInfo(
            directory=str(encoding.data),
            hash=corpus_hash(encoding.data),
            utterances=len(job.chosen.places),
        ),
        speed=encoding.speed,
        utterances=int(totals[0]),
        units=int(totals[1]),
        frames=int(totals[2]),
        hours=round(seconds / 3600, 6),
        skipped=tuple(skipped),
        shards=tuple(shards),
    )

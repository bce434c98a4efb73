"""People's own recordings as a corpus: a folder of audio with texts beside it, or a table.

Everything that can be checked without decoding is checked first, for all utterances, so that a mistake in the
last line costs no hour. A fault ends the work with its place named; told to skip, it is written down in
`skipped.tsv`. Nothing is left out silently.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import RootModel

from sprachbund.data.manifest import ManifestWriter, read_info, shard_numbers
from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_model, read_text, write_text

SHARD_SIZE = 500
SKIPPED = "skipped.tsv"
_FINGERPRINT = ".prepared-from"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One utterance that a person has.

    Attributes:
        where: file and line, or file, for messages.
        utterance_id: unique in the corpus.
        path: of the sound, of any container.
        language: BCP-47 tag of the speech.
        text: transcript.
        speaker: who speaks; empty when unknown.
        translations: language to text.
    """

    where: str
    utterance_id: str
    path: Path
    language: str
    text: str
    speaker: str = ""
    translations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that keeps an utterance out of the corpus, and its place."""

    where: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(self.where) else f"{self.where}: {self.reason}"


class _Faults(RootModel[list[Fault]]):
    """Faults of a shard, as they are remembered."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a folder or table holds: utterances that look sound, and faults."""

    recordings: Sequence[Recording]
    faults: Sequence[Fault]


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """How a corpus is written.

    Attributes:
        name: of the corpus.
        licence: under which the recordings and texts stand.
        attribution: who is to be named.
        dev_share: share of the sentences, by transcript, that goes into a part of its own; 0 for one part.
        skip_bad: write faults down and go on, instead of ending at the first.
    """

    name: str
    licence: str = ""
    attribution: str = ""
    dev_share: float = 0.0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.dev_share < 1.0:
            raise SprachbundError(f"the share for dev is {self.dev_share}; give 0 up to, but not, 1")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was written: utterances by part ("" when there is one), and what was left out."""

    utterances: dict[str, int]
    skipped: Sequence[Fault]


def prepare_own(
    found: Found,
    out: Path,
    options: OwnOptions,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write recordings as manifests into `out`, or `out/train` and `out/dev`; whole shards there stay.

    Raises:
        SprachbundError: a fault, unless faults are skipped; nothing to write; `out` holds something else.
    """
    faults = list(_checked(found.faults, options))
    if not found.recordings:
        raise SprachbundError(f"{options.name}: no utterance is left to prepare; see the faults above")
    _claim(out, found.recordings, options)
    parts = _parts(found.recordings, options.dev_share)
    done, total = 0, len(found.recordings)
    for part, recordings in parts.items():
        for shard in range(-(-len(recordings) // SHARD_SIZE)):
            some = recordings[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]
            begun = done
            faults += _make_shard(
                out / part,
                shard,
                some,
                options,
                lambda n, begun=begun: progress(begun + n, total),  # type: ignore[misc]
            )
            done += len(some)
            progress(done, total)
        _close(out / part, part, recordings, options)
    _write_skipped(out / SKIPPED, faults)
    counts = {part: _count(out / part) for part in parts}
    return Prepared(utterances=counts, skipped=faults)


def clean_text(text: str) -> str:
    """Unicode composed (NFC), white space made single."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_tag(tag: str, where: str) -> str:
    """A BCP-47 tag in its usual spelling. Raises SprachbundError for what is none."""
    import langcodes

    if not langcodes.tag_is_valid(tag):
        raise SprachbundError(f"{where}: {tag!r} is not a language tag; write it like en, de or pt-BR")
    return str(langcodes.standardize_tag(tag))


def _checked(faults: Iterable[Fault], options: OwnOptions) -> Sequence[Fault]:
    """The faults, if they may be skipped; otherwise an error with the first."""
    all_faults = list(faults)
    if all_faults and not options.skip_bad:
        more = f" (and {len(all_faults) - 1} more)" if len(all_faults) > 1 else ""
        raise SprachbundError(f"{all_faults[0]}{more}; or leave faults out with --skip-bad")
    return all_faults


def _claim(out: Path, recordings: Sequence[Recording], options: OwnOptions) -> None:
    """Make `out` ours, or see that it is from before, so that shards of two corpora never mix."""
    out.mkdir(parents=True, exist_ok=True)
    what = [{**asdict(r), "where": "", "path": str(r.path.resolve())} for r in recordings]
    text = json.dumps([what, options.dev_share], ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = out / _FINGERPRINT
    known = read_text(path).strip() if path.exists() else None
    if known == digest:
        return
    if any(out.rglob("cuts.*.jsonl")):
        raise SprachbundError(f"{out} holds another corpus, or this one before it changed; name a new folder")
    write_text(path, digest + "\n")


def _parts(recordings: Sequence[Recording], dev_share: float) -> dict[str, list[Recording]]:
    if not dev_share:
        return {"": list(recordings)}
    parts: dict[str, list[Recording]] = {"train": [], "dev": []}
    for recording in recordings:
        digest = hashlib.sha256(recording.text.casefold().encode()).digest()
        parts["dev" if int.from_bytes(digest[:4]) / 2**32 < dev_share else "train"].append(recording)
    if empty := [part for part, some in parts.items() if not some]:
        raise SprachbundError(
            f"a share of {dev_share} for dev leaves {empty[0]} empty with {len(recordings)} utterances; "
            "change it"
        )
    return parts


def _make_shard(
    directory: Path,
    shard: int,
    recordings: Sequence[Recording],
    options: OwnOptions,
    progress: Callable[[int], None],
) -> list[Fault]:
    """Decode and write one shard, if it is not there; its faults, also those of an earlier run."""
    remembered = directory / f".skipped.{shard:05d}.json"
    if shard in shard_numbers(directory):
        advice = "delete it and the shard's cuts, and the shard is made again"
        known = read_model(remembered, _Faults, advice=advice).root if remembered.exists() else []
        return list(_checked(known, options))
    writer = ManifestWriter(directory, shard_size=2**62, shard=shard)
    faults: list[Fault] = []
    for number, recording in enumerate(recordings):
        try:
            _add(writer, recording)
        except SprachbundError as error:
            faults += _checked([Fault(where=recording.where, reason=str(error))], options)
        progress(number + 1)
    if faults:
        write_text(remembered, json.dumps([asdict(f) for f in faults], ensure_ascii=False))
    if len(faults) < len(recordings):
        writer.flush()
    return faults


def _add(writer: ManifestWriter, recording: Recording) -> None:
    from sprachbund.audio.load import open_audio

    audio = open_audio(recording.path)
    samples = np.concatenate(list(audio.blocks()))
    if audio.warnings:  # cut off or damaged: the transcript would say more than is heard
        raise SprachbundError(audio.warnings[0])
    writer.add(
        samples,
        text=recording.text,
        language=recording.language,
        speaker=recording.speaker,
        utterance_id=recording.utterance_id,
        translations=recording.translations,
        custom={"source": str(recording.path)},
    )


def _close(directory: Path, part: str, recordings: Sequence[Recording], options: OwnOptions) -> None:
    if not shard_numbers(directory):
        raise SprachbundError(f"no recording of {options.name} could be read; the faults are in {SKIPPED}")
    languages = {r.language for r in recordings} | {t for r in recordings for t in r.translations}
    info: dict[str, Any] = {
        "name": f"{options.name}/{part}" if part else options.name,
        "version": "1",
        "languages": sorted(languages),
        "licence": options.licence,
        "attribution": options.attribution,
    }
    ManifestWriter(directory).close(info)


def _write_skipped(path: Path, faults: Sequence[Fault]) -> None:
    if not faults:
        path.unlink(missing_ok=True)
        return
    lines = ["where\treason\n", *(f"{f.where}\t{f.reason}\n" for f in faults)]
    write_text(path, "".join(lines))


def _count(directory: Path) -> int:
    return int(read_info(directory)["utterances"])

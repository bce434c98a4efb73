"""Pseudo-labels: a teacher transcribes and translates speech; the labels that pass the filters become a corpus.

The sections are the filters, the speech to be labelled, the files, and the run. The work goes shard by shard, and a
finished shard is never done again. A record beside each lists the dropped labels with their reasons. Idea and name:
arXiv 2311.00430, section 3. `sprachbund.util.jobs` hands the shards out to processes.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import open_audio
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import VoiceActivity, iter_speech_spans
from sprachbund.compression.options import SHARD_S, FilterOptions, LabelOptions
from sprachbund.data.manifest import Manifest, ManifestWriter, read_info, shard_numbers
from sprachbund.data.own import AUDIO_SUFFIXES
from sprachbund.decoding.encoding import LanguageQuery, encode_and_identify
from sprachbund.decoding.guard import drop_reason, max_out_of_domain
from sprachbund.decoding.languages import UNDETERMINED, LanguageTracker
from sprachbund.decoding.options import DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.text.identify import LanguageIdentifier
from sprachbund.text.languages import primary
from sprachbund.util.begun import refuse_others
from sprachbund.util.computing import Computing
from sprachbund.util.files import file_sha256, is_empty, read_model, read_object, write_json
from sprachbund.util.jobs import done, run
from sprachbund.util.progress import Progress, nothing

# Filters: a student repeats its teacher's failures, so labels with known failures are dropped.
#
# They are those of the guard, and others that need both texts of a pair.

MIN_LETTERS = 12
"""A shorter text is not asked which language it is in."""
_FIXED_PART = 5  # of a text's length, so that short texts may differ more: "ja" and "c'est ça"
_WIDE = "WF"


class LabelEvidence(Protocol):
    """The evidence of decoding about a label; `sprachbund.evaluation.lines.DecodingEvidence` satisfies it."""

    @property
    def kept(self) -> str | None:
        """The text that the guard left, where it dropped a part of it; None where it dropped all or none."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the teacher ended the row itself."""
        ...

    @property
    def mean_log_probability(self) -> float:
        """Natural logarithm per token."""
        ...

    @property
    def speech_probability(self) -> float:
        """Mean voice activity over the spans of speech."""
        ...

    @property
    def no_speech_probability(self) -> float | None:
        """The teacher's own doubt; None when it has none."""
        ...

    @property
    def out_of_domain(self) -> float | None:
        """Probability that the text is not what was said; None of teachers that were not calibrated."""
        ...


def why_dropped(
    text: str,
    evidence: LabelEvidence,
    *,
    source: str,
    target: str,
    transcript: str,
    duration_s: float,
    identifier: LanguageIdentifier,
    options: FilterOptions,
    max_out_of_domain: float = 1.0,
) -> str | None:
    """Reason why a label is left out of training, as "kind: what was seen"; None when it is kept.

    Args:
        text: the label.
        evidence: evidence of its decoding.
        source: the language spoken.
        target: the language asked for.
        transcript: transcript of the speech; empty where it is not known.
        duration_s: seconds of the speech.
        identifier: knows languages by their texts.
        options: thresholds.
        max_out_of_domain: threshold of the evidence of that name, see `sprachbund.decoding.guard.max_out_of_domain`.
    """
    rejected = drop_reason(
        text,
        duration_s=duration_s,
        speech_probability=evidence.speech_probability,
        no_speech_probability=evidence.no_speech_probability,
        mean_log_probability=evidence.mean_log_probability,
        options=options.guard,
        out_of_domain=evidence.out_of_domain,
        max_out_of_domain=max_out_of_domain,
    )
    if rejected is not None:
        return rejected
    if not evidence.finished:
        return "cut off: the row reached the limit of tokens"
    if target != source and transcript:
        ratio = length_ratio(text, transcript)
        if ratio > options.max_length_ratio:
            return f"length: {ratio:.1f} times that of the transcript, or of it"
    return _in_other_language(text, target, identifier, options.max_other_language)


def kind_of(reason: str) -> str:
    """The kind of a reason, by which it is counted."""
    return reason.partition(":")[0]


def length_ratio(first: str, second: str) -> float:
    """The longer text's length over the shorter's, at least 1.

    Lengths are counted in columns, in which a character of Chinese, Japanese or Korean is two wide.
    """
    short, long = sorted(_FIXED_PART + _columns(text) for text in (first, second))
    return long / short


def _columns(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(c) in _WIDE) for c in text if c.isalnum())


def _in_other_language(
    text: str, target: str, identifier: LanguageIdentifier, threshold: float
) -> str | None:
    if sum(c.isalpha() for c in text) < MIN_LETTERS or target not in identifier.languages:
        return None
    others: Mapping[str, float] = {
        tag: probability
        for tag, probability in identifier.identify(text).probabilities.items()
        if primary(tag) != primary(target)  # pt and pt-BR cannot be told apart by letters
    }
    likeliest = max(others, key=lambda tag: others[tag], default=target)
    if others.get(likeliest, 0.0) < threshold:
        return None
    return f"wrong language: reads as {likeliest} ({others[likeliest]:.2f})"


# Speech to be labelled: a corpus, a folder of recordings, or a recording; with texts or without.
#
# Long recordings are cut at pauses into pieces that a teacher takes at once.

_UNKNOWN_S = 60.0  # a recording whose header does not say its length counts as so long


@dataclass(frozen=True, kw_only=True)
class SpokenUtterance:
    """One utterance, whatever is known of it.

    Attributes:
        id: unique within its source.
        samples: (num_samples,) float32 at 16 kHz.
        language: BCP-47 tag of the speech; None where it is to be detected, "" where nobody speaks.
        text: transcript, if there is one.
        speaker: if known.
        translations: language to text.
        custom: further facts about it.
    """

    id: str
    samples: np.ndarray
    language: str | None
    text: str = ""
    speaker: str = ""
    translations: Mapping[str, str] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


class LabelSource(Protocol):
    """Speech in pieces that can be read one by one, in any order."""

    @property
    def path(self) -> Path:
        """Directory or file of the speech."""
        ...

    @property
    def languages(self) -> frozenset[str]:
        """BCP-47 tags of what is spoken, as far as that is known."""
        ...

    @property
    def durations_s(self) -> list[float]:
        """Seconds of every piece."""
        ...

    @property
    def info(self) -> dict[str, Any]:
        """Return its description: name, licence, attribution."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what the pieces are; shards of labels are numbered by pieces."""
        ...

    def read(self, piece: int) -> Iterator[SpokenUtterance]:
        """The utterances of a piece."""
        ...


def open_source(path: Path, language: str | None, max_s: float) -> LabelSource:
    """A corpus directory, a folder of recordings, or one recording.

    Args:
        path: path of it.
        language: language spoken in recordings; None where it is to be detected. A corpus has its own.
        max_s: longest piece that a recording is cut into.

    Raises:
        SprachbundError: nothing there, no audio in it, a folder of corpora, a language given for a corpus, or two
            recordings whose utterances would have the same ids.
    """
    if path.is_dir() and shard_numbers(path):
        if language is not None:
            raise SprachbundError(
                f"{path} is a corpus, which says itself what is spoken; leave {language} out, or label the "
                "recordings by themselves"
            )
        return CorpusSource(path)
    if not path.exists():
        raise SprachbundError(f"{path} is not there; name a corpus, a folder of recordings or a recording")
    if parts := sorted({str(cuts.parent) for cuts in path.glob("*/cuts.*.jsonl")}):
        raise SprachbundError(f"{path} holds the corpora {', '.join(parts)}; name one of them")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    audio = [p for p in files if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith(".")]
    if not audio:
        raise SprachbundError(f"{path} holds no audio ({len(files)} files); name a folder of recordings")
    root, taken = path if path.is_dir() else path.parent, dict[str, Path]()
    for file in audio:
        if (other := taken.setdefault(_name(file, root), file)) != file:
            raise SprachbundError(
                f"{other} and {file} have one name, {_name(file, root)!r}, in the corpus; rename one"
            )
    return FolderSource(path, audio, language, max_s)


def check_outside(out: Path, data: Sequence[Path]) -> None:
    """Refuse a folder for labels within one of recordings, as part of which they would be taken when the work goes on.

    Args:
        out: folder of the labels.
        data: corpora, folders of recordings, or recordings.

    Raises:
        SprachbundError: naming the folder that `out` is in.
    """
    for path in data:
        if shard_numbers(path):  # a corpus, which nothing below belongs to
            continue
        if out.resolve() == path.resolve() or path.resolve() in out.resolve().parents:
            raise SprachbundError(
                f"--out {out} is in {path}, which is to be labelled; name a folder outside of it"
            )


class CorpusSource:
    """The utterances of a corpus; see `LabelSource`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = Manifest(path)

    @property
    def languages(self) -> frozenset[str]:
        """Languages spoken in the corpus."""
        return frozenset(self._manifest.languages.tolist()) - {""}

    @property
    def durations_s(self) -> list[float]:
        """Seconds of every utterance."""
        return [float(s) for s in self._manifest.durations_s]

    @property
    def info(self) -> dict[str, Any]:
        """Return the content of its `dataset.json`."""
        return {"name": self.path.name, **read_info(self.path)}

    @property
    def digest(self) -> str:
        """Of its utterances and their sound."""
        return self._manifest.content_hash()

    def read(self, piece: int) -> Iterator[SpokenUtterance]:
        """The utterance with its texts."""
        said = self._manifest[piece]
        yield SpokenUtterance(
            id=said.id,
            samples=self._manifest.samples(piece),
            language=said.language,
            text=said.text,
            speaker=said.speaker,
            translations=said.translations,
            custom=said.custom,
        )


class FolderSource:
    """Recordings without texts, cut at pauses; see `LabelSource`."""

    def __init__(self, path: Path, files: list[Path], language: str | None, max_s: float) -> None:
        self.path = path
        self._files, self._language = files, language
        self._spans = SpanOptions(max_span_s=min(SpanOptions.max_span_s, max_s))
        self._activity = VoiceActivity()

    @property
    def languages(self) -> frozenset[str]:
        """The language that was given."""
        return frozenset({self._language} if self._language else ())

    @cached_property
    def durations_s(self) -> list[float]:
        """Seconds of every recording, as its header says."""
        return [_duration_s(path) for path in self._files]

    @property
    def info(self) -> dict[str, Any]:
        """Name of the folder."""
        return {"name": self.path.name}

    @property
    def digest(self) -> str:
        """Of the names and contents of its files, which takes little time beside their labels."""
        root = self.path if self.path.is_dir() else self.path.parent
        lines = [f"{path.relative_to(root)}\0{file_sha256(path)}\n" for path in self._files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, piece: int) -> Iterator[SpokenUtterance]:
        """The stretches of speech in a recording, named by their first millisecond."""
        path = self._files[piece]
        name = _name(path, self.path if self.path.is_dir() else self.path.parent)
        for span, samples in iter_speech_spans(
            open_audio(path).blocks(), self._spans, activity=self._activity
        ):
            yield SpokenUtterance(
                id=f"{name}-{round(1000 * span.start_s):08d}",
                samples=samples,
                language=self._language,
                custom={"source": str(path), "start_s": round(span.start_s, 3)},
            )


def _name(path: Path, root: Path) -> str:
    """What the ids of a recording's utterances begin with: of a/b.wav and a-b.wav, it is one."""
    return path.relative_to(root).as_posix().replace("/", "-")


def _duration_s(path: Path) -> float:
    """Seconds by the header; a file without one gets a large number, and reading it reports its fault."""
    try:
        return open_audio(path).duration_s or _UNKNOWN_S
    except SprachbundError:
        return _UNKNOWN_S


# Files: dropped labels with their reasons, settings that may not change, and the corpus when it is whole.

SETTINGS = "pseudo_labels.json"
"""File with the settings that a corpus of labels was begun with; a command goes on only with the same settings."""
LABELS = "pseudo_labels"
"""Key in `custom` of an utterance: languages of the texts that a teacher wrote to their mean log-probabilities."""
SOUND = "sound"
"""Key of the settings: digest of each source, since a shard that is whole is not made again for other speech."""
LIMIT = "max_out_of_domain"
"""Key of the settings: the threshold that holds, which may be the teacher's own."""
_FORMER_CONTENT = "content"
"""The same in the version before, of names and sizes of recordings, or texts of a corpus."""
KEPT, THERE, UNKNOWN_PAIR = "kept", "there before", "pair unknown to the teacher"


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """The result of labelling a corpus.

    Attributes:
        utterances: utterances in the corpus.
        left_out: utterances that it does not hold, by reason.
        counts: target language to what became of its labels: `KEPT`, `THERE`, `UNKNOWN_PAIR`, or a kind of reason for
            which they were dropped.
    """

    utterances: int
    left_out: dict[str, int]
    counts: dict[str, dict[str, int]]


class Record:
    """Counts of a shard's labels; the shard is finished when its file exists."""

    def __init__(self) -> None:
        self.utterances = 0
        self.left_out: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {}
        self.dropped: list[dict[str, str]] = []

    def count(self, target: str, what: str) -> None:
        """A label in `target` that came to `what`."""
        self.counts.setdefault(target, Counter())[what] += 1

    def drop(self, job_id: str, target: str, text: str, reason: str) -> None:
        """A label that is left out.

        Args:
            job_id: id of the utterance.
            target: BCP-47 tag of the label's language.
            text: text of the label.
            reason: reason for leaving it out.
        """
        self.count(target, kind_of(reason))
        self.dropped.append({"id": job_id, "target": target, "text": text, "reason": reason})

    def leave_out(self, job_id: str, reason: str) -> None:
        """An utterance, or a file, that the corpus does not hold."""
        self.left_out[kind_of(reason)] += 1
        self.dropped.append({"id": job_id, "target": "", "text": "", "reason": reason})

    def write(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        write_json(path, vars(self))


class _Written(BaseModel):
    """A record as its file holds it."""

    model_config = ConfigDict(extra="forbid")

    utterances: int = Field(ge=0)
    left_out: dict[str, int]
    counts: dict[str, dict[str, int]]
    dropped: list[dict[str, str]]


def read_record(path: Path) -> dict[str, Any]:
    """Read the file of `Record.write`. Raises SprachbundError, which names the field, for another file."""
    advice = "delete it and the shard's cuts, and the shard is labelled again"
    return read_model(path, _Written, advice=advice).model_dump()


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make `out` ours, or see that it was begun with the same settings, so that labels never mix."""
    wanted = json.loads(json.dumps(settings))
    path = out / SETTINGS
    if path.exists():
        known = read_object(path, advice="delete it if the labels there were begun so, or name a new folder")
        if "decoding" in wanted and "decoding" not in known:
            # Records of before named the width of the beam alone, and labels were decoded without timestamps.
            known["decoding"] = {**wanted["decoding"], "timestamps": False}
        elif isinstance(known.get("decoding"), dict):
            # An earlier version may have had fewer options, so those that are not there are as this one has them.
            stored = DecodingOptions.from_stored(known["decoding"], str(path))
            known["decoding"] = json.loads(json.dumps(asdict(stored)))
        if isinstance(known.get("options"), dict):
            known["options"].setdefault("shard_s", SHARD_S)  # before it was an option
            known["options"].pop("batch_size", None)  # which changes no label; earlier versions wrote it down
        if LIMIT in wanted:
            known.setdefault(LIMIT, 1.0)  # before labels were dropped by it
        if SOUND in wanted and SOUND not in known:  # before it was written down
            known[SOUND] = wanted[SOUND]
            known.pop(_FORMER_CONTENT, None)
        # No setting may be there no more, either.
        refuse_others(out, known, {**dict.fromkeys(known), **wanted}, advice="name a new folder")
        return
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise SprachbundError(f"{out} is there already and is no corpus of labels; name a new folder")
    write_json(path, wanted)


def close(
    out: Path,
    sources: Sequence[LabelSource],
    records: Sequence[dict[str, Any]],
    name: str,
    targets: Sequence[str],
) -> LabelResult:
    """Describe the corpus and add up the records of its shards.

    Args:
        out: the corpus.
        sources: sources of its speech.
        records: as they were written, one for each shard.
        name: name of the teacher.
        targets: languages wanted.

    Raises:
        SprachbundError: nothing was kept.
    """
    left_out, counts = Counter[str](), dict[str, Counter[str]]()
    for record in records:
        left_out.update(record["left_out"])
        for target, number in record["counts"].items():
            counts.setdefault(target, Counter()).update(number)
    if not any(record["utterances"] for record in records):
        why = ", ".join(f"{n} {what}" for what, n in (left_out + sum(counts.values(), Counter())).items())
        names = ", ".join(str(s.path) for s in sources)
        if not why:
            raise SprachbundError(f"no speech was heard in {names}; name recordings in which somebody speaks")
        raise SprachbundError(
            f"no utterance of {names} is left ({why}); "
            "if these labels are good, loosen the thresholds of `sprachbund compress pseudo-label`"
        )
    infos = [source.info for source in sources]
    info: dict[str, Any] = {
        "name": f"{' + '.join(dict.fromkeys(str(i['name']) for i in infos))}, labelled by {name}",
        "version": "1",
        "languages": sorted(counts),
        "pseudo_labels": {"teacher": name, "targets": list(targets)},
    }
    for key in ("licence", "attribution"):
        values = [i[key] for i in infos if i.get(key)]
        info[key] = values[0] if len(values) == 1 else values or ""
    ManifestWriter(out).close(info)
    return LabelResult(
        utterances=sum(record["utterances"] for record in records),
        left_out=dict(left_out),
        counts={target: dict(number) for target, number in sorted(counts.items())},
    )


Labels = list[list[tuple[str, Any]]]


class Labeller(Protocol):
    """Writes labels, with their evidence; `sprachbund.evaluation.hypotheses.BatchDecoder` is one."""

    def decode(
        self, sounds: Sequence[np.ndarray], targets: Sequence[Sequence[str]], sources: Sequence[str | None]
    ) -> Labels:
        """Text and `LabelEvidence` for every sound and each of its targets, of which all have as many.

        Args:
            sounds: 16 kHz mono float32 samples of each utterance.
            targets: BCP-47 tags of the languages wanted of each, as many for each.
            sources: BCP-47 tag of the language spoken in each; None where it is to be detected.
        """
        ...


def check_targets(teacher: Family, sources: Sequence[LabelSource], targets: Sequence[str]) -> None:
    """Refuse data or targets that a teacher knows nothing of.

    Args:
        teacher: the model that writes labels.
        sources: speech that is to be labelled.
        targets: BCP-47 tags of the languages wanted.

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


@dataclass(frozen=True, kw_only=True)
class LabelTeacher:
    """The model that labels are made with, and the identifier of their languages.

    Attributes:
        family: the model.
        labeller: decodes with it.
        identifier: identifies languages by texts.
    """

    family: Family
    labeller: Labeller
    identifier: LanguageIdentifier


def pseudo_label(
    open_teacher: Callable[[], LabelTeacher],
    open_sources: Callable[[], Sequence[LabelSource]],
    out: Path,
    options: LabelOptions,
    *,
    name: str,
    settings: dict[str, Any],
    computing: Computing | None = None,
    gpus: int = 0,
    progress: Progress = nothing,
) -> LabelResult:
    """Write a corpus of speech with a teacher's texts into `out`; whole shards there stay as they are.

    Args:
        open_teacher: loads the teacher; every process calls it once, so it is picklable if there are several.
        open_sources: opens the speech; likewise.
        out: the corpus, as `train` reads it.
        options: languages and filters.
        name: name of the teacher, for the corpus's description.
        settings: other settings that the labels depend on; a corpus begun with other settings is refused.
        computing: processes, one if None; their number changes no label.
        gpus: GPUs of each process.
        progress: called with seconds of speech done and in all.

    Raises:
        SprachbundError: as `check_targets`; `out` holds another corpus; nothing was kept.
    """
    computing = computing or Computing()
    sources, alone = open_sources(), computing.is_alone
    if alone:  # or each process loads the teacher, and checks it
        teacher = open_teacher()
        check_targets(teacher.family, sources, options.targets)
    chosen = {name: value for name, value in asdict(options).items() if name != "batch_size"}
    paths, digests = [str(s.path.resolve()) for s in sources], [s.digest for s in sources]
    claim(out, {**settings, "options": chosen, "data": paths, SOUND: digests})
    job = _Labels(
        open_teacher=(lambda: teacher) if alone else open_teacher,
        open_sources=(lambda: sources) if alone else open_sources,
        shards=tuple(_shards(sources, options.shard_s)),
        out=out,
        options=options,
        threads=0 if alone else computing.threads,
        gpus=gpus,
    )
    progress(done(job), sum(seconds for _, seconds in job.files))
    run(job, workers=computing.workers, ray_address=computing.ray, progress=progress)
    records = [read_record(path) for path, _ in job.files]
    return close(out, sources, records, name, options.targets)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    source: int
    number: int
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """Shards of labels; a `sprachbund.util.jobs.Job`, whose utterances are seconds."""

    open_teacher: Callable[[], LabelTeacher]
    open_sources: Callable[[], Sequence[LabelSource]]
    shards: tuple[tuple[_Piece, ...], ...]
    out: Path
    options: LabelOptions
    threads: int
    gpus: int

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        return [
            (self.out / f"labels.{number:05d}.json", max(1, round(sum(p.duration_s for p in pieces))))
            for number, pieces in enumerate(self.shards)
        ]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        sources, teacher = self.open_sources(), self.open_teacher()
        check_targets(teacher.family, sources, self.options.targets)
        work = _Work(teacher, self.options)

        def make(number: int, progress: Callable[[int], None]) -> None:
            record = Record()
            writer = ManifestWriter(self.out, shard_size=2**62, shard=number)
            spoken: list[tuple[str, SpokenUtterance]] = []
            for piece in self.shards[number]:
                source = sources[piece.source]
                try:
                    prefix = f"{piece.source}-" if len(sources) > 1 else ""  # sources may use the same ids
                    spoken += [(prefix + one.id, one) for one in source.read(piece.number)]
                except SprachbundError as error:
                    record.leave_out(f"{source.path}#{piece.number}", f"unreadable: {error}")
            work.label(spoken, record, writer, lambda labelled_s: progress(round(labelled_s)))
            writer.flush()
            record.write(self.files[number][0])

        return make


@dataclass(frozen=True, kw_only=True)
class _Job:
    """An utterance whose language is known, and the languages it is to be labelled in."""

    spoken: SpokenUtterance
    language: str
    id: str
    targets: tuple[str, ...]


class _Work:
    """A teacher at work on shards."""

    def __init__(self, teacher: LabelTeacher, options: LabelOptions) -> None:
        self._teacher, self._labeller = teacher.family, teacher.labeller
        self._identifier, self._options = teacher.identifier, options
        self._max_out_of_domain = max_out_of_domain(teacher.family, options.filters.guard)

    def label(
        self,
        spoken: Sequence[tuple[str, SpokenUtterance]],
        record: Record,
        writer: ManifestWriter,
        progress: Callable[[float], None],
    ) -> None:
        """Label utterances under their ids and write those of which a text is known.

        Args:
            spoken: utterances with their ids.
            record: counts what was labelled and what was left out.
            writer: takes the labelled utterances.
            progress: called with seconds that are labelled.
        """
        jobs = self._jobs(spoken, record)
        labels = self._labels(jobs, progress)
        for job in jobs:
            self._write(job, labels.get(job.id, {}), record, writer)

    def _jobs(self, spoken: Sequence[tuple[str, SpokenUtterance]], record: Record) -> list[_Job]:
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

    def _wanted(self, one: SpokenUtterance, language: str, record: Record) -> tuple[str, ...]:
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

    def _languages(self, unknown: Sequence[SpokenUtterance]) -> Iterator[tuple[str, float]]:
        """The language of each, and its probability."""
        teacher = self._teacher
        for some in _batches(unknown, self._options.batch_size):
            queries = [
                LanguageQuery(
                    known=None, allowed=None, tracker=LanguageTracker(teacher.source_languages, None, 1)
                )
                for _ in some
            ]
            features = teacher.features([one.samples for one in some])
            encoded = encode_and_identify(teacher, features, queries, [one.duration_s for one in some])
            for decision in encoded.languages:
                if decision.language == UNDETERMINED:
                    raise SprachbundError(
                        "this teacher cannot identify which language is spoken; name it with --from"
                    )
                yield decision.language, decision.probability

    def _labels(
        self, jobs: Sequence[_Job], progress: Callable[[float], None]
    ) -> dict[str, dict[str, tuple[str, LabelEvidence]]]:
        """Job to target to text and evidence; utterances of like length share a batch."""
        labels: dict[str, dict[str, tuple[str, LabelEvidence]]] = {}
        labelled_s = 0.0
        order = sorted(jobs, key=lambda job: (len(job.targets), job.spoken.duration_s, job.id))
        for count, same in groupby(order, key=lambda job: len(job.targets)):
            for batch in _batches(list(same), self._options.batch_size) if count else ():
                rows = self._labeller.decode(
                    [job.spoken.samples for job in batch],
                    [job.targets for job in batch],
                    [job.language for job in batch],
                )
                for job, row in zip(batch, rows, strict=True):
                    # Where the guard left a part, that is the text which the teacher would show.
                    shown = [(text if e.kept is None else e.kept, e) for text, e in row]
                    labels[job.id] = dict(zip(job.targets, shown, strict=True))
                labelled_s += sum(job.spoken.duration_s for job in batch)
                progress(labelled_s)
        return labels

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
                max_out_of_domain=self._max_out_of_domain,
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
        # Texts that a teacher wrote into the corpus before, and that stay, are still a teacher's.
        left = {*translations, *([job.language] if transcript else [])} - labels.keys()
        earlier = job.spoken.custom.get(LABELS, {})
        by_teacher = {target: value for target, value in earlier.items() if target in left}
        by_teacher |= {target: round(labels[target][1].mean_log_probability, 4) for target in kept}
        record.utterances += 1
        writer.add(
            job.spoken.samples,
            text=transcript,
            language=job.language,
            speaker=job.spoken.speaker,
            utterance_id=job.id,
            translations=translations,
            custom={**job.spoken.custom, LABELS: by_teacher},
        )


def _shards(sources: Sequence[LabelSource], shard_s: float) -> Iterator[tuple[_Piece, ...]]:
    """Pieces in order, at most so many seconds together, or one that is longer."""
    shard: list[_Piece] = []
    for source_number, source in enumerate(sources):
        for number, duration_s in enumerate(source.durations_s):
            if shard and sum(p.duration_s for p in shard) + duration_s > shard_s:
                yield tuple(shard)
                shard = []
            shard.append(_Piece(source=source_number, number=number, duration_s=duration_s))
    if shard:
        yield tuple(shard)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))

"""People's own recordings as a corpus: a folder of audio with texts beside it, or a table.

Everything that can be checked without decoding is checked first, for all utterances, so that a mistake in the
last line costs no hour. A fault ends the work, named with its file and line; with `skip`, it is written down in
`skipped.tsv`. Nothing is left out silently.

A folder remembers what it was made of: the texts as a whole, and size and time of each sound by shard. A corpus whose
source has changed is refused. A file that was skipped and has changed since is tried again. Shards from before sounds
were remembered are taken as they are. A shard that is made again holds the same utterances, so that those after it fit.
"""

import csv
import hashlib
import io
import json
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, RootModel

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.begun import PREPARED_FROM, begin
from sprachbund.data.manifest import (
    ManifestWriter,
    cuts_path,
    is_clipped,
    read_info,
    shard_numbers,
)
from sprachbund.data.own_options import OwnOptions
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import language_name, tag_of
from sprachbund.text.normalize import normalize
from sprachbund.util.files import is_file, read_model, read_text, write_text
from sprachbund.util.progress import Progress, nothing

SHARD_SIZE = 500
"""Most utterances of a shard."""
SHARD_S = 7200.0
"""A shard ends with the utterance that reaches so many seconds: its sound, 230 MB, is in memory while it is made."""
SKIPPED = "skipped.tsv"


@dataclass(frozen=True, kw_only=True)
class OwnRecording:
    """One utterance that a person has.

    Attributes:
        where: file and line, or file, for messages.
        utterance_id: unique in the corpus.
        path: path of the sound, of any container.
        language: BCP-47 tag of the speech.
        text: transcript.
        speaker: name of the speaker; empty when unknown.
        translations: language to text.
        start_s: start of the utterance in the recording, in seconds.
        duration_s: seconds of the utterance; to the end of the recording if None.
        channel: channel of the recording, from 0; all are mixed if None.
        row: row of a table of parquet or arrow that holds the sound itself, from 0; `path` is the table's.
    """

    where: str
    utterance_id: str
    path: Path
    language: str
    text: str
    speaker: str = ""
    translations: dict[str, str] = field(default_factory=dict)
    start_s: float = 0.0
    duration_s: float | None = None
    channel: int | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        """Raises SprachbundError for a translation into the language spoken, which nothing would read."""
        if self.language in self.translations:
            raise SprachbundError(
                f"has a translation into {self.language}, the language spoken; remove it, or write it as the transcript"
            )


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that keeps an utterance out of the corpus, with its file and line."""

    where: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(self.where) else f"{self.where}: {self.reason}"


class _Faults(RootModel[list[Fault]]):
    """Faults of a shard, as they are remembered."""


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The content of a folder or table: utterances that look sound, and faults."""

    recordings: Sequence[OwnRecording]
    faults: Sequence[Fault]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared corpus.

    Attributes:
        utterances: number of them by part, "" when there is one.
        skipped: faults that were left out.
        clipped: utterances with clipped sound; those in shards of versions that did not count them are not among them.
        unchecked: utterances in shards of versions that did not remember sounds, so that a change is not noticed.
    """

    utterances: dict[str, int]
    skipped: Sequence[Fault]
    clipped: int = 0
    unchecked: int = 0


def prepare_own(
    corpus: OwnData,
    out: Path,
    options: OwnOptions,
    *,
    progress: Progress = nothing,
) -> Prepared:
    """Write recordings as manifests into `out`, or `out/train`, `out/dev` and `out/test`; whole shards there stay.

    Args:
        corpus: recordings and faults.
        out: folder of the manifests.
        options: name, licence and parts.
        progress: called with utterances done and in all.

    Raises:
        SprachbundError: a fault, unless faults are skipped; nothing to write; `out` holds something else.
    """
    faults = list(_checked(corpus.faults, options))
    sentence = _begin(out, corpus.recordings, options)
    if not corpus.recordings:
        _write_skipped(out / SKIPPED, faults)
        raise _nothing_left(options.name, out / SKIPPED, faults)
    parts = _parts(corpus.recordings, options, sentence)
    done = clipped = unchecked = 0
    total = len(corpus.recordings)
    for part, recordings in parts.items():
        begin = shard = 0
        while begin < len(recordings):
            made = _make_shard(
                out / part,
                shard,
                recordings[begin : begin + SHARD_SIZE],
                options,
                lambda n, begun=done: progress(begun + n, total),  # type: ignore[misc]
            )
            faults += made.faults
            clipped += made.clipped
            unchecked += made.unchecked
            begin, done, shard = begin + made.count, done + made.count, shard + 1
            progress(done, total)
    _write_skipped(out / SKIPPED, faults)
    for part, recordings in parts.items():
        name = f"{options.name}/{part}" if part else options.name
        if not shard_numbers(out / part):
            raise _nothing_left(name, out / SKIPPED, faults)
        _close(out / part, name, recordings, options)
    counts = {part: _count(out / part) for part in parts}
    return Prepared(utterances=counts, skipped=faults, clipped=clipped, unchecked=unchecked)


def clean_text(text: str) -> str:
    """Unicode composed (NFC), white space made single."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _checked(faults: Iterable[Fault], options: OwnOptions) -> Sequence[Fault]:
    """The faults, if they may be skipped; otherwise an error with the first."""
    all_faults = list(faults)
    if all_faults and not options.skip_bad:
        more = f" (and {len(all_faults) - 1} more)" if len(all_faults) > 1 else ""
        raise SprachbundError(f"{all_faults[0]}{more}; or leave faults out with --skip-bad")
    return all_faults


def _nothing_left(name: str, skipped: Path, faults: Sequence[Fault]) -> SprachbundError:
    """The error of a corpus whose every utterance has a fault."""
    why = f"all faults are in {skipped}, the first: {faults[0]}" if faults else "add some"
    return SprachbundError(f"{name}: no utterance is left to prepare; {why}")


_Sentence = Callable[[OwnRecording], str]
"""What is equal for utterances of one sentence, which are all in one part."""


def _words(recording: OwnRecording) -> str:
    """The words of an utterance, whatever their case and punctuation; the text where it has none."""
    return normalize(recording.text, recording.language) or recording.text


def _text_before(recording: OwnRecording) -> str:
    """What folders of earlier versions are divided by: there, punctuation makes another sentence."""
    return recording.text.casefold()


def _begin(out: Path, recordings: Sequence[OwnRecording], options: OwnOptions) -> _Sentence:
    """Begin to fill a folder, or see that it was begun with the same recordings; its rule of sentences.

    A folder goes on by the rule that it was begun with.
    """
    what = [{**_identity(r), "where": "", "path": str(r.path.resolve())} for r in recordings]
    before = {"corpus": "recordings", "content": _digest(what), "dev_share": options.dev_share}
    settings = before | {"test_share": options.test_share}
    former = out / PREPARED_FROM
    digest = read_text(former).strip() if former.exists() else None
    by_text, by_words = _digest([what, options.dev_share]), _digest([what, options.dev_share, "words"])
    begin(out, settings, known=before if digest in (by_text, by_words) else None, before={"test_share": 0.0})
    return _text_before if digest == by_text else _words


def _digest(settings: Sequence[Any]) -> str:
    text = json.dumps(settings, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_LATER = {"start_s": 0.0, "duration_s": None, "channel": None, "row": None}


def _identity(recording: OwnRecording) -> dict[str, Any]:
    """The fields of a recording, as a corpus is known by; those that later versions added only where they are used."""
    values = asdict(recording)
    return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


def _parts(
    recordings: Sequence[OwnRecording], options: OwnOptions, sentence: _Sentence
) -> dict[str, list[OwnRecording]]:
    """The recordings of each part; a sentence goes to the same one, whatever others there are."""
    shares = {"dev": options.dev_share, "test": options.test_share}
    if not any(shares.values()):
        return {"": list(recordings)}
    parts: dict[str, list[OwnRecording]] = {
        "train": [],
        **{part: [] for part, share in shares.items() if share},
    }
    for recording in recordings:
        digest = hashlib.sha256(sentence(recording).encode()).digest()
        number = int.from_bytes(digest[:4]) / 2**32
        if number < options.dev_share:
            part = "dev"
        else:
            part = "test" if number < options.dev_share + options.test_share else "train"
        parts[part].append(recording)
    if empty := [part for part, some in parts.items() if not some]:
        asked = " and ".join(f"{share} for {part}" for part, share in shares.items() if share)
        raise SprachbundError(
            f"a share of {asked} leaves {empty[0]} empty with {len(recordings)} utterances; change it"
        )
    return parts


_AGAIN = "delete it and the shard's cuts, and the shard is made again"


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A whole shard.

    Attributes:
        count: utterances that it was made of.
        faults: faults among them.
        clipped: utterances with clipped sound.
        unchecked: utterances that may have changed since.
    """

    count: int
    faults: Sequence[Fault]
    clipped: int
    unchecked: int = 0


def _make_shard(
    directory: Path,
    shard: int,
    recordings: Sequence[OwnRecording],
    options: OwnOptions,
    progress: Callable[[int], None],
) -> _Made:
    """Decode and write one shard of the first recordings, if it is not whole; its faults, also of an earlier run."""
    remembered = directory / f".skipped.{shard:05d}.json"
    is_whole = shard in shard_numbers(directory)
    known = _known(directory, shard, recordings, is_whole)
    if known is not None:
        recordings = recordings[: len(known.names)]
    sounds = {recording.utterance_id: _Sound.of(recording.path) for recording in recordings}
    if is_whole and (known is None or _is_current(directory, known, recordings, sounds)):
        listed = read_model(remembered, _Faults, advice=_AGAIN).root if remembered.exists() else []
        faults = _checked(listed, options)
        if known is None:
            return _Made(
                count=len(recordings), faults=faults, clipped=0, unchecked=len(recordings) - len(faults)
            )
        return _Made(count=len(recordings), faults=faults, clipped=known.clipped)
    writer = ManifestWriter(directory, shard_size=2**62, shard=shard)
    seen: list[Fault] = []
    taken: dict[str, _Sound] = {}
    skipped: dict[str, _Sound] = {}
    clipped, seconds = 0, 0.0
    for number, recording in enumerate(recordings, start=1):
        name = recording.utterance_id
        try:
            samples = _add(writer, recording)
            clipped += is_clipped(samples)
            seconds += len(samples) / SAMPLE_RATE
            taken[name] = sounds[name]
        except SprachbundError as error:
            seen += _checked([Fault(where=recording.where, reason=str(error))], options)
            skipped[name] = sounds[name]
        progress(number)
        if known is None and seconds >= SHARD_S:
            break
    cuts_path(directory, shard).unlink(missing_ok=True)  # its sound is about to be another
    if seen:
        write_text(remembered, json.dumps([asdict(f) for f in seen], ensure_ascii=False))
    else:
        remembered.unlink(missing_ok=True)
    remembered_sounds = _Sounds(taken=taken, skipped=skipped, clipped=clipped)
    write_text(_sounds_path(directory, shard), remembered_sounds.model_dump_json())
    if taken:
        writer.flush()
    return _Made(count=len(taken) + len(skipped), faults=seen, clipped=clipped)


class _Sound(BaseModel):
    """Size in bytes and time of change of a file, by which another sound under the same name is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "_Sound":
        """That of a file; of one that is gone, zeros, since reading it names the fault."""
        try:
            state = path.stat()
        except OSError:
            return cls(size=0, mtime_ns=0)
        return cls(size=state.st_size, mtime_ns=state.st_mtime_ns)


class _Sounds(BaseModel):
    """Sounds of a shard by utterance: those in it, and those that could not be read; and how many are clipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taken: dict[str, _Sound]
    skipped: dict[str, _Sound]
    clipped: int = 0

    @property
    def names(self) -> set[str]:
        """Utterances that the shard was made of."""
        return {*self.taken, *self.skipped}


def _sounds_path(directory: Path, shard: int) -> Path:
    return directory / f".sounds.{shard:05d}.json"


def _known(directory: Path, shard: int, recordings: Sequence[OwnRecording], is_whole: bool) -> _Sounds | None:
    """What is remembered of a shard that begins with the first of these recordings; None of versions that did not.

    Raises:
        SprachbundError: the shard is whole, and of other utterances.
    """
    path = _sounds_path(directory, shard)
    if not path.exists():
        return None
    known = read_model(path, _Sounds, advice=_AGAIN)
    if known.names and known.names == {one.utterance_id for one in recordings[: len(known.names)]}:
        return known
    if is_whole:
        raise SprachbundError(f"{path} names other utterances than shard {shard} has; name a new folder")
    return None  # of data that nothing was made of


def _is_current(
    directory: Path, known: _Sounds, recordings: Sequence[OwnRecording], sounds: Mapping[str, _Sound]
) -> bool:
    """Whether a shard holds all that can be read now: nothing that was skipped has changed.

    Raises:
        SprachbundError: a recording in the shard has changed.
    """
    for recording in recordings:
        name = recording.utterance_id
        if name in known.taken and known.taken[name] != sounds[name]:
            raise SprachbundError(
                f"{recording.path} has changed since {directory} was made of it; name a new folder"
            )
    return all(sounds[name] == sound for name, sound in known.skipped.items())


def _add(writer: ManifestWriter, recording: OwnRecording) -> NDArray[np.float32]:
    """Write an utterance; its sound."""
    samples = _samples(recording)
    writer.add(
        samples,
        text=recording.text,
        language=recording.language,
        speaker=recording.speaker,
        utterance_id=recording.utterance_id,
        translations=recording.translations,
        custom={"source": str(recording.path)},
    )
    return samples


_SLACK_S = 0.5
"""An utterance may end so long behind its recording, as published times do."""


def _samples(recording: OwnRecording) -> NDArray[np.float32]:
    """The sound of an utterance, (N,) at 16 kHz.

    Raises:
        SprachbundError: it cannot be read, is damaged, or ends too early.
    """
    from sprachbund.audio.load import load, open_audio

    path, start_s, duration_s = recording.path, recording.start_s, recording.duration_s
    if recording.row is not None:
        from sprachbund.data.audio_tables import sound_of_row

        audio = open_audio(sound_of_row(path, recording.row))
    elif recording.channel is not None:
        return _one_channel(path, recording.channel, start_s, duration_s)
    elif start_s or duration_s is not None:
        samples = load(path, start_s, duration_s, intact=True)
        _check_length(path, start_s, duration_s, len(samples) / SAMPLE_RATE)
        return samples
    else:
        audio = open_audio(path)
    samples = np.concatenate(list(audio.blocks()))
    if audio.warnings:  # cut off or damaged: the transcript would say more than is heard
        raise SprachbundError(audio.warnings[0])
    return samples


def _one_channel(path: Path, channel: int, start_s: float, duration_s: float | None) -> NDArray[np.float32]:
    import soundfile

    from sprachbund.audio.load import load

    try:
        with soundfile.SoundFile(path) as file:
            if channel >= file.channels:
                raise SprachbundError(f"{path} has {file.channels} channels, and not a channel {channel}")
            file.seek(min(round(start_s * file.samplerate), file.frames))
            frames = -1 if duration_s is None else round(duration_s * file.samplerate)
            heard, rate = file.read(frames, dtype="float32", always_2d=True)[:, channel], file.samplerate
    except soundfile.LibsndfileError as error:
        raise SprachbundError(
            f"{path} cannot be read by its channels ({error}); convert it to wav or flac"
        ) from error
    _check_length(path, start_s, duration_s, len(heard) / rate)
    return load(np.ascontiguousarray(heard), sample_rate=rate)


def _check_length(path: Path, start_s: float, duration_s: float | None, heard_s: float) -> None:
    if heard_s <= 0 or (duration_s is not None and duration_s - heard_s > _SLACK_S):
        end_s = start_s + (duration_s or 0.0)
        raise SprachbundError(
            f"{path} ends at {start_s + heard_s:.2f} s, the utterance at {end_s:.2f} s; check the times"
        )


def _close(directory: Path, name: str, recordings: Sequence[OwnRecording], options: OwnOptions) -> None:
    languages = {r.language for r in recordings} | {t for r in recordings for t in r.translations}
    info: dict[str, Any] = {
        "name": name,
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


# Where people's own utterances stand: texts beside audio files, or a table with a line for each.
#
# Reading finds every fault it can without decoding audio; `sprachbund.data.own` decides what becomes of
# them.

AUDIO_SUFFIXES = frozenset(
    {
        ".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".avi", ".caf", ".flac", ".g722", ".gsm", ".m4a",
        ".m4v", ".mka", ".mkv", ".mov", ".mp3", ".mp4", ".mpeg", ".mpg", ".oga", ".ogg", ".opus", ".ts",
        ".wav", ".webm", ".wma",
    }
)  # fmt: skip
"""File names with these endings are taken for recordings in a folder; a table may name any file."""

PATH, LANGUAGE, TEXT, SPEAKER, ID = "path", "language", "text", "speaker", "utterance_id"
COLUMNS = (PATH, LANGUAGE, TEXT, SPEAKER, ID)
_TRANSLATION = re.compile(r"translation[_-](.+)", re.IGNORECASE)
_ELSEWHERE = {
    **dict.fromkeys(("file_name", "filename", "file", "audio", "audio_path", "audio_filepath"), PATH),
    **dict.fromkeys(("lang", "locale"), LANGUAGE),
    **dict.fromkeys(("transcription", "sentence", "transcript"), TEXT),
    **dict.fromkeys(("speaker_id", "client_id"), SPEAKER),
}
"""What the tables of others call a column: folders of audio on the Hugging Face hub, Common Voice, NeMo."""
_AMBIGUOUS = {
    "id": f"an identifier or Indonesian; call it {ID} or translation_id",
    "no": "a number or Norwegian; call it translation_no, or remove it",
}
"""Names of columns that mean one thing to most, and another to BCP-47."""


def translation_language(name: str, where: str, *, spoken: str | None = None) -> str:
    """The language of a translation, by the name of its column or a part of its file's name.

    Behind `translation_`, this is any tag or name of a language. Without it, tags of three letters do not count, since
    many short words are one: "age" (Angal), "end" (Ende), "raw" (Rawang).

    Args:
        name: such as "translation_quz", "de", "pt-BR" or "german".
        where: begins the message.
        spoken: tag of the language of the speech, which counts in any form.

    Raises:
        SprachbundError: it is no language, or a tag that may as well be a word.
    """
    import langcodes

    if match := _TRANSLATION.fullmatch(name):
        return tag_of(match[1], where)
    tag = tag_of(name, where)
    if tag != spoken and langcodes.tag_is_valid(name) and len(re.split("[-_]", name)[0]) != 2:
        raise SprachbundError(
            f"{where} {name!r} may mean something else than {language_name(tag)}; write translation_{name} if it "
            "names a translation, and rename or remove it if not"
        )
    return tag


def read_folder(directory: Path, language: str) -> OwnData:
    """The recordings under a folder: `NAME.wav` (any container), `NAME.txt` its transcript, `NAME.de.txt` its
    translation. A subfolder counts as a speaker.

    Args:
        directory: directory that is searched with all its subfolders.
        language: language of the speech, its tag or name; so are those in names of files, where a tag of three letters
            needs `translation_`, as in `NAME.translation_quz.txt`.

    Raises:
        SprachbundError: no such folder, no audio in it, or a language that is none.
    """
    if not directory.is_dir():
        raise SprachbundError(f"{directory} is not a folder; check the path")
    language = tag_of(language, "the language of the speech:")
    files = sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith("."))
    audio = [p for p in files if p.suffix.lower() in AUDIO_SUFFIXES]
    if not audio:
        raise SprachbundError(f"{directory} holds no audio files ({len(files)} others); check the path")
    reader = _FolderReader(directory, language, audio, [p for p in files if p.suffix.lower() == ".txt"])
    recordings = [r for path in audio if (r := reader.read(path)) is not None]
    reader.name_leftovers()
    return OwnData(recordings=recordings, faults=reader.faults)


class _FolderReader:
    """Matches the texts of a folder with its recordings."""

    def __init__(self, directory: Path, language: str, audio: Sequence[Path], texts: Sequence[Path]) -> None:
        self.directory, self.language = directory, language
        self.faults: list[Fault] = []
        self._texts = dict.fromkeys(texts, False)  # whether a recording has used it
        self._taken: dict[str, Path] = {}  # utterance to its recording
        self._tagged: dict[Path, list[tuple[str, Path]]] = {}  # NAME of NAME.TAG.txt to its tags
        self._transcripts = {
            path.with_suffix(""): path for path in sorted(texts)
        }  # of A.TXT and A.txt, the latter
        stems = {path.with_suffix("") for path in audio}
        for path in texts:
            name, _, tag = path.stem.rpartition(".")
            # The transcript of NAME.TAG.wav is no translation of NAME.wav.
            if name and path.with_suffix("") not in stems:
                self._tagged.setdefault(path.with_name(name), []).append((tag, path))

    def read(self, audio: Path) -> OwnRecording | None:
        """One recording with its texts, or None and a fault."""
        try:
            return self._read(audio)
        except SprachbundError as error:
            self.faults.append(Fault(where=_shown(audio), reason=str(error)))
            return None

    def _read(self, audio: Path) -> OwnRecording:
        stem = audio.with_suffix("")
        transcript = self._transcripts.get(stem)
        tagged = self._tagged.get(stem, [])
        texts = [*([transcript] if transcript else []), *(path for _, path in tagged)]
        self._texts.update(dict.fromkeys(texts, True))
        if unknown := [path for path in (audio, *texts) if not _is_unicode(path)]:
            raise SprachbundError(f"{_shown(unknown[0])} has a name that is not UTF-8; rename it")
        # The id in the corpus: of a/b.wav and a-b.wav, too, it is one.
        name = stem.relative_to(self.directory).as_posix().replace("/", "-")
        if (other := self._taken.setdefault(name, audio)) != audio:
            raise SprachbundError(f"has the same name as {other}, {name!r} in the corpus; rename one")
        if transcript is None:
            raise SprachbundError(f"has no transcript; write it into {stem.with_name(stem.name + '.txt')}")
        parent = audio.parent.relative_to(self.directory).as_posix()
        return OwnRecording(
            where=str(audio),
            utterance_id=name,
            path=audio,
            language=self.language,
            text=_read_text(transcript),
            speaker="" if parent == "." else parent,
            translations={
                translation_language(tag, f"{path}:", spoken=self.language): _read_text(path)
                for tag, path in tagged
            },
        )

    def name_leftovers(self) -> None:
        """Texts that belong to no recording are faults too."""
        for path, used in self._texts.items():
            if not used:
                self.faults.append(
                    Fault(where=_shown(path), reason="belongs to no audio file; rename or remove it")
                )


def _is_unicode(path: Path) -> bool:
    """Whether a name is UTF-8; Python keeps other bytes as lone surrogates, which no file can be written with."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def _shown(path: Path) -> str:
    """A path for messages, also where its bytes are not UTF-8."""
    return str(path) if _is_unicode(path) else ascii(str(path))


def _read_text(path: Path) -> str:
    try:
        text = clean_text(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SprachbundError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not text:
        raise SprachbundError(f"{path} is empty; write the text into it")
    return text


@dataclass(frozen=True, kw_only=True)
class _Header:
    """Meaning of each column of a table: a name of `COLUMNS`, or the language of a translation, or neither."""

    names: tuple[str, ...]
    languages: Mapping[int, str]


def read_table(
    path: Path, language: str | None = None, *, commas: bool = False, ignored: Sequence[str] = ()
) -> OwnData:
    """The recordings of a table, separated by tabs or commas.

    The first line names the columns: `path` (relative to the table), `text`, `language` (or the argument), optionally
    `speaker` and `utterance_id`, and a column for each translation, `translation_de` or `de`. A language is a tag or
    a name, `german` as well as `de`; tags of three letters, `id` and `no` need the `translation_`. Between tabs,
    fields are taken as they stand, quotation marks too; between commas, quotation marks enclose fields. An empty
    translation is one that is missing. Names that others have for these columns are known: `file_name` or `audio` is
    the path, `transcription` or `sentence` the text, `lang` the language, `speaker_id` or `client_id` the speaker.

    Args:
        path: path of the table.
        language: language of the speech, where no column says it.
        commas: fields stand between commas.
        ignored: names of columns that are not read.

    Raises:
        SprachbundError: no such file, not UTF-8, or a header that cannot be understood.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SprachbundError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except IsADirectoryError:
        raise SprachbundError(f"{path} is a directory; name the table in it") from None
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror}); check the path") from error
    if not content.strip():
        raise SprachbundError(
            f"{path} is empty; write a header with its columns, and a line for each utterance"
        )
    lines = _lines_with_commas(path, content) if commas else _lines_with_tabs(content)
    _, names = next(lines)
    if not any(name.strip() for name in names):
        raise SprachbundError(f"{path}:1: the first line is empty; name the columns in it")
    here, other, way = (",", "\t", "tsv") if commas else ("\t", ",", "csv")
    kinds = {",": "commas", "\t": "tabs"}
    if len(names) == 1 and other in names[0]:
        raise SprachbundError(
            f"{path}:1: the columns stand between {kinds[other]}, not {kinds[here]}; prepare it as {way}: "
            f"sprachbund data prepare {way}"
        )
    if len(names) == 1 and ";" in names[0]:
        raise SprachbundError(
            f"{path}:1: the columns stand between semicolons, not {kinds[here]}; save the table with tabs or commas"
        )
    header = _read_header(path, names, language, ignored)
    recordings: dict[str, OwnRecording] = {}
    faults: list[Fault] = []
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            recording = _read_line(path, where, line, header, language)
            if recording.utterance_id in recordings:
                other = recordings[recording.utterance_id].where
                raise SprachbundError(
                    f"{recording.utterance_id!r} is in {other} already; give an utterance_id"
                )
            recordings[recording.utterance_id] = recording
        except SprachbundError as error:
            faults.append(Fault(where=where, reason=str(error)))
    if not recordings and not faults:
        raise SprachbundError(f"{path} has a header and no lines; add one for each utterance")
    return OwnData(recordings=list(recordings.values()), faults=faults)


def _lines_with_tabs(content: str) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of every line that is not empty, the first in any case."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip() or number == 1:
            yield number, line.rstrip("\r").split("\t")


def _lines_with_commas(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """The same of a table with commas; of a field of several lines, the number of the first."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    number = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields) or number == 1:
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise SprachbundError(
            f"{path}:{number}: not a table with commas ({error}); mend the quotation marks"
        ) from error


def _read_header(path: Path, fields: Sequence[str], language: str | None, ignored: Sequence[str]) -> _Header:
    written = [name.strip() for name in fields]
    if absent := [name for name in ignored if name not in written]:
        raise SprachbundError(
            f"{path}:1: no column {absent[0]!r}, which is to be ignored; there are {', '.join(written)}"
        )
    names = ["" if name in ignored else _ELSEWHERE.get(name.lower(), name) for name in written]
    languages: dict[int, str] = {}
    faults: dict[str, str] = {}
    for i, name in enumerate(names):
        if name in COLUMNS or written[i] in ignored:
            continue
        try:
            languages[i] = _language_of_column(name)
        except SprachbundError as error:
            faults[name] = str(error)
    known = f"known are {', '.join(COLUMNS)}, and translation_de or de for a translation into German"
    if faults:
        raise SprachbundError(
            f"{path}:1: {'; '.join(faults.values())}; {known}; what is not to be read can be left out with "
            f"--ignore {shlex.quote(','.join(faults))}"
        )
    wanted = [PATH, TEXT] if language else [PATH, LANGUAGE, TEXT]
    if missing := [name for name in wanted if name not in names]:
        raise SprachbundError(f"{path}:1: no column {' and no column '.join(map(repr, missing))}; {known}")
    kinds = [languages.get(i, name) for i, name in enumerate(names)]
    for kind in filter(None, kinds):
        if len(both := [repr(name) for name, other in zip(written, kinds, strict=True) if other == kind]) > 1:
            raise SprachbundError(f"{path}:1: column {kind!r} is there twice ({', '.join(both)}); remove one")
    return _Header(names=tuple(names), languages=languages)


def _language_of_column(name: str) -> str:
    """The language that a column holds a translation into. Raises SprachbundError, with the column."""
    if meanings := _AMBIGUOUS.get(name.lower()):
        raise SprachbundError(f"column {name!r} can be {meanings}")
    try:
        tag_of(_TRANSLATION.sub(r"\1", name), "")
    except SprachbundError:
        raise SprachbundError(f"unknown column {name!r}") from None
    return translation_language(name, "column")


def _file_named(folder: Path, name: str) -> Path:
    """A file by its name, or by one of the same letters, which macOS decomposes and others compose."""
    spellings = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((folder / one for one in spellings if is_file(folder / one)), folder / name)


def _read_line(
    path: Path, where: str, line: Sequence[str], header: _Header, language: str | None
) -> OwnRecording:
    if len(line) != len(header.names):
        raise SprachbundError(
            f"has {len(line)} fields where the header has {len(header.names)}; mend the line"
        )
    fields = [
        value.strip() if name == PATH else clean_text(value)
        for name, value in zip(header.names, line, strict=True)
    ]
    named = {name: value for name, value in zip(header.names, fields, strict=True) if name in COLUMNS}
    for name in (PATH, TEXT):
        if not named[name]:
            raise SprachbundError(f"the field {name!r} is empty; fill it in")
    audio = _file_named(path.parent, named[PATH])
    if not is_file(audio):
        raise SprachbundError(f"there is no audio file {audio}; check the field 'path'")
    spoken = tag_of(named.get(LANGUAGE) or language or "", "the field 'language':")
    return OwnRecording(
        where=where,
        utterance_id=named.get(ID)
        or clean_text(Path(named[PATH]).with_suffix("").as_posix()).replace("/", "-"),
        path=audio,
        language=spoken,
        text=named[TEXT],
        speaker=named.get(SPEAKER, ""),
        translations={tag: fields[i] for i, tag in header.languages.items() if fields[i]},
    )

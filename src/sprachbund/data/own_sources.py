"""Where people's own utterances stand: texts beside audio files, or a table with a line for each.

Reading finds every fault it can without decoding audio; `sprachbund.data.own` decides what becomes of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprachbund.data.own import Fault, Found, Recording, check_tag, clean_text
from sprachbund.errors import SprachbundError

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
_AMBIGUOUS = "id"  # an identifier to most, Indonesian to BCP-47


def read_folder(directory: Path, language: str) -> Found:
    """The recordings under a folder: `NAME.wav` (any container), `NAME.txt` its transcript, `NAME.de.txt` its
    translation. A subfolder counts as a speaker.

    Args:
        directory: looked through with all its subfolders.
        language: BCP-47 tag of the speech.

    Raises:
        SprachbundError: no such folder, no audio in it, or a tag that is none.
    """
    if not directory.is_dir():
        raise SprachbundError(f"{directory} is not a folder; check the path")
    language = check_tag(language, "the language of the speech")
    files = sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith("."))
    audio = [p for p in files if p.suffix.lower() in AUDIO_SUFFIXES]
    if not audio:
        raise SprachbundError(f"{directory} holds no audio files ({len(files)} others); check the path")
    reader = _FolderReader(directory, language, [p for p in files if p.suffix.lower() == ".txt"])
    recordings = [r for path in audio if (r := reader.read(path)) is not None]
    reader.name_leftovers()
    return Found(recordings=recordings, faults=reader.faults)


class _FolderReader:
    """Matches the texts of a folder with its recordings."""

    def __init__(self, directory: Path, language: str, texts: Sequence[Path]) -> None:
        self.directory, self.language = directory, language
        self.faults: list[Fault] = []
        self._texts = dict.fromkeys(texts, False)  # whether a recording has used it
        self._taken: dict[str, Path] = {}
        self._tagged: dict[Path, list[tuple[str, Path]]] = {}  # NAME of NAME.TAG.txt to its tags
        for path in texts:
            name, _, tag = path.stem.rpartition(".")
            if name:
                self._tagged.setdefault(path.with_name(name), []).append((tag, path))

    def read(self, audio: Path) -> Recording | None:
        """One recording with its texts, or None and a fault."""
        try:
            return self._read(audio)
        except SprachbundError as error:
            self.faults.append(Fault(where=str(audio), reason=str(error)))
            return None

    def _read(self, audio: Path) -> Recording:
        stem = audio.with_suffix("")
        name = stem.relative_to(self.directory).as_posix()
        if name in self._taken:
            raise SprachbundError(f"has the same name as {self._taken[name]}; rename one")
        self._taken[name] = audio
        transcript = stem.with_name(stem.name + ".txt")
        tagged = self._tagged.get(stem, [])
        self._texts.update((path, True) for _, path in tagged)
        if transcript not in self._texts:
            raise SprachbundError(f"has no transcript; write it into {transcript}")
        self._texts[transcript] = True
        parent = audio.parent.relative_to(self.directory).as_posix()
        return Recording(
            where=str(audio),
            utterance_id=name.replace("/", "-"),
            path=audio,
            language=self.language,
            text=_read_text(transcript),
            speaker="" if parent == "." else parent,
            translations={check_tag(tag, str(path)): _read_text(path) for tag, path in tagged},
        )

    def name_leftovers(self) -> None:
        """Texts that belong to no recording are faults too."""
        for path, used in self._texts.items():
            if not used:
                self.faults.append(
                    Fault(where=str(path), reason="belongs to no audio file; rename or remove it")
                )


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
    """What each column of a table is: a name of `COLUMNS`, or the language of a translation."""

    names: tuple[str, ...]
    languages: Mapping[int, str]


def read_table(path: Path, language: str | None = None) -> Found:
    """The recordings of a tab-separated table.

    The first line names the columns: `path` (relative to the table), `text`, `language` (or the argument), at
    will `speaker` and `utterance_id`, and a column for each translation, `translation_de` or `de`. Fields are
    taken as they stand, quotation marks too; an empty translation is one that is missing.

    Raises:
        SprachbundError: no such file, not UTF-8, or a header that cannot be understood.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SprachbundError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror}); check the path") from error
    header = _read_header(path, lines[0].rstrip("\r"), language)
    recordings: dict[str, Recording] = {}
    faults: list[Fault] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            recording = _read_line(path, where, line.rstrip("\r"), header, language)
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
    return Found(recordings=list(recordings.values()), faults=faults)


def _read_header(path: Path, line: str, language: str | None) -> _Header:
    names = tuple(name.strip() for name in line.split("\t"))
    known = f"known are {', '.join(COLUMNS)}, and translation_de or de for a translation into German"
    languages: dict[int, str] = {}
    for i, name in enumerate(names):
        if name in COLUMNS:
            continue
        if name.lower() == _AMBIGUOUS:
            raise SprachbundError(
                f"{path}:1: column 'id' can be an identifier or Indonesian; call it {ID} or translation_id"
            )
        match = _TRANSLATION.fullmatch(name)
        try:
            languages[i] = check_tag(match[1] if match else name, "")
        except SprachbundError:
            raise SprachbundError(f"{path}:1: unknown column {name!r}; {known}") from None
    wanted = [PATH, TEXT] if language else [PATH, LANGUAGE, TEXT]
    if missing := [name for name in wanted if name not in names]:
        raise SprachbundError(f"{path}:1: no column {' and no column '.join(map(repr, missing))}; {known}")
    kinds = [languages.get(i, name) for i, name in enumerate(names)]
    if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise SprachbundError(f"{path}:1: column {twice[0]!r} is there twice; remove one")
    return _Header(names=names, languages=languages)


def _read_line(path: Path, where: str, line: str, header: _Header, language: str | None) -> Recording:
    fields = [clean_text(value) for value in line.split("\t")]
    if len(fields) != len(header.names):
        raise SprachbundError(
            f"has {len(fields)} fields where the header has {len(header.names)}; mend the tabs"
        )
    named = {name: value for name, value in zip(header.names, fields, strict=True) if name in COLUMNS}
    for name in (PATH, TEXT):
        if not named[name]:
            raise SprachbundError(f"the field {name!r} is empty; fill it in")
    audio = path.parent / named[PATH]
    if not audio.is_file():
        raise SprachbundError(f"there is no audio file {audio}; check the field 'path'")
    spoken = check_tag(named.get(LANGUAGE) or language or "", "the field 'language'")
    translations = {tag: fields[i] for i, tag in header.languages.items() if fields[i]}
    if spoken in translations:
        raise SprachbundError(f"has a translation into {spoken}, the language spoken; empty that field")
    return Recording(
        where=where,
        utterance_id=named.get(ID) or Path(named[PATH]).with_suffix("").as_posix().replace("/", "-"),
        path=audio,
        language=spoken,
        text=named[TEXT],
        speaker=named.get(SPEAKER, ""),
        translations=translations,
    )

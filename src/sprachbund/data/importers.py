"""Corpora in the forms of other toolkits, as one's own recordings: Common Voice, Kaldi, lhotse, NeMo, Hugging Face.

Each reader gives utterances and faults with file and line; `sprachbund.data.own` decides what becomes of them.
"""

import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sprachbund.data.audio_tables import audio_column, batches_of, schema_of
from sprachbund.data.own import Fault, OwnData, OwnRecording, clean_text, translation_language
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import tag_of
from sprachbund.util.files import is_file, one_of


class _Collected:
    """Utterances with different ids, and faults."""

    def __init__(self) -> None:
        self._recordings: dict[str, OwnRecording] = {}
        self.faults: list[Fault] = []

    def read(self, where: str, reader: Callable[[], OwnRecording]) -> None:
        """Take what a reader gives, or its fault."""
        try:
            recording = reader()
            if (other := self._recordings.get(recording.utterance_id)) is not None:
                raise SprachbundError(f"the utterance {recording.utterance_id!r} is in {other.where} already")
            self._recordings[recording.utterance_id] = recording
        except SprachbundError as error:
            self.faults.append(Fault(where=where, reason=str(error)))

    def data(self, source: Path) -> OwnData:
        """The corpus that was read. Raises SprachbundError if it is empty."""
        if not self._recordings and not self.faults:
            raise SprachbundError(f"{source} holds no utterances; check the path")
        return OwnData(recordings=list(self._recordings.values()), faults=self.faults)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text with their numbers, empty ones left out; also of one that gzip has packed.

    Raises:
        SprachbundError: no such file, damaged, or not UTF-8.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SprachbundError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SprachbundError(f"{path} cannot be read ({error}); check the path") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def _objects(path: Path, collected: _Collected) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of JSON, with their file and number; `collected` gets the faults of those that are none."""
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
            json.dumps(value, ensure_ascii=False).encode()  # JSON may name halves of characters
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            reason = f"holds {half}, half of a character; mend the line"
        except (ValueError, RecursionError) as error:
            reason = f"not JSON ({error}); mend the line"
        else:
            if isinstance(value, dict):
                yield where, value
                continue
            reason = "is no object of JSON; mend the line"
        collected.faults.append(Fault(where=where, reason=reason))


def _spoken(tag: Any, language: str | None) -> str:
    """The language of a line: its own, or the one that was given for all."""
    if not tag and not language:
        raise SprachbundError("no language is stated; give one for all with --language")
    return tag_of(str(tag or language), "the language:")


def _text(text: Any) -> str:
    if not isinstance(text, str) or not (cleaned := clean_text(text)):
        raise SprachbundError("there is no text; fill it in")
    return cleaned


def _there(path: Path) -> Path:
    if not is_file(path):
        raise SprachbundError(f"there is no audio file {path}; check the path")
    return path


# Common Voice: a table of a split, and `clips` beside it.

_CLIPS = "clips"


def read_common_voice(table: Path, language: str | None = None) -> OwnData:
    """The clips of a table of Common Voice, such as `de/validated.tsv`; speakers are the client ids.

    Args:
        table: table with the columns path and sentence, and optionally client_id and locale; the clips lie in `clips`
            beside it.
        language: BCP-47 tag of the speech, where the table has no locale.

    Raises:
        SprachbundError: no such table, or one without these columns.
    """
    if table.is_dir():
        tables = sorted(table.glob("*.tsv"))
        advice = f"name {one_of(tables)}" if tables else "name a table, such as validated.tsv"
        raise SprachbundError(f"{table} is a folder, not a table of Common Voice; {advice}")
    lines = _lines(table)
    _, head = next(lines, (1, ""))
    names = head.split("\t")
    if missing := [name for name in ("path", "sentence") if name not in names]:
        raise SprachbundError(
            f"{table}:1: no column {missing[0]!r}; name a table of Common Voice, such as validated.tsv"
        )
    collected = _Collected()
    for number, line in lines:
        where = f"{table}:{number}"
        collected.read(where, lambda where=where, line=line: _clip(table, where, names, line, language))  # type: ignore[misc]
    return collected.data(table)


def _clip(table: Path, where: str, names: list[str], line: str, language: str | None) -> OwnRecording:
    fields = line.split("\t")
    if len(fields) != len(names):
        raise SprachbundError(f"has {len(fields)} fields where the header has {len(names)}; mend the tabs")
    values = dict(zip(names, fields, strict=True))
    name = values["path"] if Path(values["path"]).suffix else f"{values['path']}.mp3"
    return OwnRecording(
        where=where,
        utterance_id=Path(name).stem,
        path=_there(table.parent / _CLIPS / name),
        language=_spoken(values.get("locale"), language),
        text=_text(_unquoted(values["sentence"])),
        speaker=values.get("client_id", ""),
    )


_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _unquoted(field: str) -> str:
    """A field without the quotation marks around it, where those within are doubled: `"He said ""no"" twice."`.

    Some releases write fields so, others as they are.
    """
    return field[1:-1].replace('""', '"') if '""' in field[1:-1] and _QUOTED.fullmatch(field) else field


# Kaldi: a folder with wav.scp and text, and optionally segments, utt2spk, utt2lang and text.TAG.


def read_kaldi(directory: Path, language: str | None = None) -> OwnData:
    """The utterances of a Kaldi data folder.

    Args:
        directory: directory with `wav.scp`, and `text` with every utterance; optionally `segments`, `utt2spk`,
            `utt2lang`, and translations in `text.de` …
        language: BCP-47 tag of the speech, where there is no `utt2lang`.

    Raises:
        SprachbundError: a file is missing, or a line of it cannot be read.
    """
    for name in ("wav.scp", "text"):
        if not (directory / name).is_file():
            raise SprachbundError(f"{directory} has no {name}; name a data folder of Kaldi")
    collected = _Collected()

    def keyed(path: Path) -> dict[str, tuple[int, str]]:
        """Number and rest of the line of each key; nothing of a file that is not there."""
        lines: dict[str, tuple[int, str]] = {}
        for number, key, value in _table(path) if path.is_file() else ():
            if key in lines:
                reason = f"{key!r} is in line {lines[key][0]} already; remove one"
                collected.faults.append(Fault(where=f"{path}:{number}", reason=reason))
            else:
                lines[key] = (number, value)
        return lines

    def values(path: Path) -> dict[str, str]:
        return {key: value for key, (_, value) in keyed(path).items()}

    recordings, sections = values(directory / "wav.scp"), keyed(directory / "segments")
    optional = {name: values(directory / name) for name in ("utt2spk", "utt2lang")}
    translations = {
        translation_language(path.name.removeprefix("text."), f"{path}:", spoken=language): values(path)
        for path in sorted(directory.glob("text.*"))
    }

    def read(where: str, key: str, text: str) -> OwnRecording:
        recording, start_s, end_s = key, 0.0, None
        if sections:
            if key not in sections:
                raise SprachbundError(f"{key!r} is not in {directory / 'segments'}; add its times")
            number, value = sections[key]
            recording, start_s, end_s = _section(f"{directory / 'segments'}:{number}", value)
        if recording not in recordings:
            raise SprachbundError(f"{recording!r} is not in {directory / 'wav.scp'}; add its recording")
        source = recordings[recording].strip()
        if source.endswith("|"):
            raise SprachbundError(
                f"{recording!r} is the output of a command in wav.scp; run it, and name its file"
            )
        path = Path(source)
        return OwnRecording(
            where=where,
            utterance_id=key,
            path=_there(path if path.is_absolute() or is_file(path) else directory / path),
            language=_spoken(optional["utt2lang"].get(key), language),
            text=_text(text),
            speaker=optional["utt2spk"].get(key, ""),
            translations={
                tag: clean_text(texts[key]) for tag, texts in translations.items() if texts.get(key)
            },
            start_s=start_s,
            duration_s=None if end_s is None else end_s - start_s,
        )

    said = set[str]()
    for number, key, text in _table(directory / "text"):
        said.add(key)
        where = f"{directory / 'text'}:{number}"
        collected.read(where, lambda where=where, key=key, text=text: read(where, key, text))  # type: ignore[misc]
    listed = directory / ("segments" if sections else "wav.scp")
    for path in (listed, *sorted(directory.glob("text.*"))):
        collected.faults += [
            Fault(
                where=f"{path}:{number}", reason=f"{key!r} is not in {directory / 'text'}; add its transcript"
            )
            for number, key, _ in _table(path)
            if key not in said
        ]
    return collected.data(directory)


def _table(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, key and rest of each line."""
    for number, line in _lines(path):
        key, _, rest = line.strip().replace("\t", " ").partition(" ")
        yield number, key, rest.strip()


def _section(where: str, value: str) -> tuple[str, float, float | None]:
    """Recording, begin and end in seconds of a line of `segments`; an end of -1 is that of the recording."""
    fields = value.split()
    try:
        recording, start, end = fields[:3]
        start_s, end_s = float(start), float(end)
    except ValueError:
        raise SprachbundError(f"{where}: {value!r} is not recording, begin and end; mend the line") from None
    if start_s < 0 or (end_s != -1 and not start_s < end_s < float("inf")):
        raise SprachbundError(f"{where}: {start} to {end} is no stretch of time; mend the line")
    return recording, start_s, None if end_s == -1 else end_s


# lhotse: a CutSet as JSON lines.


def read_lhotse(cuts: Path, language: str | None = None) -> OwnData:
    """The supervisions of a lhotse CutSet, each an utterance.

    Args:
        cuts: `.jsonl` or `.jsonl.gz`, of MonoCuts with recordings in files; paths as they stand, or relative to it.
        language: BCP-47 tag of the speech, where a supervision states none.

    Raises:
        SprachbundError: no such file.
    """
    collected = _Collected()
    for where, cut in _objects(cuts, collected):
        reason = ""
        if cut.get("type", "MonoCut") != "MonoCut":
            reason = "is no MonoCut; mixed and padded cuts have to be saved as sound first"
        elif not (supervisions := cut.get("supervisions") or []):
            nemo = ", or prepare it with `sprachbund data prepare nemo`" if _NEMO_PATH in cut else ""
            reason = f"has no supervision, and so no text; add one{nemo}"
        if reason:
            collected.faults.append(Fault(where=where, reason=reason))
            continue
        for part, supervision in enumerate(supervisions):
            suffix = f"-{part}" if len(supervisions) > 1 else ""
            collected.read(
                where,
                lambda where=where, cut=cut, said=supervision, suffix=suffix: _supervision(  # type: ignore[misc]
                    cuts, where, cut, said, suffix, language
                ),
            )
    return collected.data(cuts)


_BEYOND_S = 0.01
"""A supervision may begin and end so far outside of its cut, as rounded times do."""


def _supervision(
    cuts: Path, where: str, cut: dict[str, Any], said: dict[str, Any], suffix: str, language: str | None
) -> OwnRecording:
    try:
        path, channel = _sound(cut)
        start_s, duration_s = _times(cut, said)
        custom = said.get("custom") or {}
        translations = custom.get("translations") or {}
        return OwnRecording(
            where=where,
            utterance_id=f"{cut['id']}{suffix}",
            path=_there(path if path.is_absolute() or is_file(path) else cuts.parent / path),
            language=_spoken(said.get("language"), language),
            text=_text(said.get("text")),
            speaker=str(said.get("speaker") or ""),
            translations={tag_of(tag, "a translation:"): _text(text) for tag, text in translations.items()},
            start_s=start_s,
            duration_s=duration_s,
            channel=channel,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SprachbundError(
            f"lacks what a cut has, or has it in another form ({error!r}); write it with lhotse"
        ) from error


def _sound(cut: dict[str, Any]) -> tuple[Path, int | None]:
    """The file that holds the channel of a cut, and the channel's number in it; None where it has no other."""
    recording, channel = cut["recording"], cut["channel"]
    for transform in (*(recording.get("transforms") or ()), *(cut.get("transforms") or ())):
        if transform["name"] != "Resample":  # all sound is brought to 16 kHz
            raise SprachbundError(
                f"its sound is changed as it is read ({transform['name']}); save it as sound first"
            )
    for source in recording["sources"]:
        if channel not in source["channels"]:
            continue
        if source["type"] != "file":
            raise SprachbundError(f"its sound is of the type {source['type']!r}; save recordings as files")
        number = source["channels"].index(channel)
        return Path(source["source"]), number if len(source["channels"]) > 1 else None
    raise SprachbundError(f"no file of its recording has the channel {channel!r}; mend the cut")


def _times(cut: dict[str, Any], said: dict[str, Any]) -> tuple[float, float]:
    """Start in the recording and duration of what is said in a cut, in seconds."""
    cut_start_s, cut_s = float(cut["start"]), float(cut["duration"])
    start_s, duration_s = float(said.get("start", 0.0)), float(said["duration"])
    if not (0 <= cut_start_s < math.inf and 0 < cut_s < math.inf):
        raise SprachbundError(f"{cut_s} s from {cut_start_s} s are no stretch of time; mend the cut")
    end_s = start_s + duration_s
    first_s, last_s = max(start_s, 0.0), min(end_s, cut_s)
    if not (start_s >= -_BEYOND_S and end_s <= cut_s + _BEYOND_S and first_s < last_s):
        raise SprachbundError(
            f"its supervision is {duration_s} s from {start_s} s of a cut of {cut_s} s; mend the times"
        )
    return cut_start_s + first_s, duration_s - (first_s - start_s) - (end_s - last_s)


# NeMo: a manifest of JSON lines, each with a sound and a text.

_NEMO_PATH = "audio_filepath"
_NEMO_TEXTS, _NEMO_SOURCES = ("text", "answer"), ("source_lang", "lang")


def read_nemo(manifest: Path, language: str | None = None) -> OwnData:
    """The utterances of a manifest of NeMo.

    Lines of the same stretch of sound are one utterance: the text in the language spoken is its transcript, those in
    others (`target_lang`) are translations.

    Args:
        manifest: JSON lines with audio_filepath and text (or answer), and optionally offset and duration in seconds,
            lang or source_lang, target_lang, and speaker; paths as they stand, or relative to it.
        language: BCP-47 tag of the speech, where a line states none.

    Raises:
        SprachbundError: no such file.
    """
    collected = _Collected()
    utterances: dict[tuple[str, float, float | None], list[tuple[str, dict[str, Any]]]] = {}
    for where, line in _objects(manifest, collected):
        try:
            utterances.setdefault(_stretch(line), []).append((where, line))
        except SprachbundError as error:
            collected.faults.append(Fault(where=where, reason=str(error)))
    for stretch, lines in utterances.items():
        collected.read(
            lines[0][0],
            lambda stretch=stretch, lines=lines: _nemo_utterance(manifest, stretch, lines, language),  # type: ignore[misc]
        )
    return collected.data(manifest)


def _stretch(line: Mapping[str, Any]) -> tuple[str, float, float | None]:
    """The sound of a line: its path, and begin and length in seconds; of a whole recording, 0 and None."""
    if "shard_id" in line:
        raise SprachbundError("its sound is in a tar file (shard_id); unpack it, and leave shard_id out")
    path, offset, duration = line.get(_NEMO_PATH), line.get("offset"), line.get("duration")
    if not isinstance(path, str) or not path:
        raise SprachbundError(f"{_NEMO_PATH} is {path!r}; name the recording")
    if offset is None:
        return path, 0.0, None
    try:
        start_s, duration_s = float(offset), float(duration or 0.0)
    except (TypeError, ValueError):
        start_s = duration_s = -1.0
    if not (0 <= start_s < math.inf and 0 < duration_s < math.inf):
        raise SprachbundError(
            f"offset {offset!r} and duration {duration!r} are no stretch of time; mend the line"
        )
    return path, start_s, duration_s


def _nemo_utterance(
    manifest: Path,
    stretch: tuple[str, float, float | None],
    lines: list[tuple[str, dict[str, Any]]],
    language: str | None,
) -> OwnRecording:
    name, start_s, duration_s = stretch
    where, first = lines[0]
    spoken = _spoken(_value(first, _NEMO_SOURCES), language)
    texts: dict[str, str] = {}
    for number, line in lines:
        if (other := _spoken(_value(line, _NEMO_SOURCES), language)) != spoken:
            raise SprachbundError(f"is in {spoken}, and in {other} in {number}; mend one of them")
        target = tag_of(str(line.get("target_lang") or spoken), "target_lang:")
        if target in texts:
            raise SprachbundError(f"has two texts in {target}, the second in {number}; remove one")
        texts[target] = _text(_value(line, _NEMO_TEXTS))
    if spoken not in texts:
        raise SprachbundError(f"has no text in {spoken}, the language spoken; add a line with the transcript")
    path = Path(name)
    stem = clean_text(path.with_suffix("").as_posix()).strip("/").replace("/", "-")
    return OwnRecording(
        where=where,
        utterance_id=stem if duration_s is None else f"{stem}-{start_s:g}",
        path=_there(path if path.is_absolute() or is_file(path) else manifest.parent / path),
        language=spoken,
        text=texts.pop(spoken),
        speaker=str(first.get("speaker") or ""),
        translations=texts,
        start_s=start_s,
        duration_s=duration_s,
    )


def _value(line: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of some fields that a line has."""
    return next((line[name] for name in names if line.get(name)), None)


# Hugging Face datasets: tables of parquet or arrow whose audio column holds the sound, or its path.

_TEXTS = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_transcription")
_LANGUAGES = ("language", "locale", "lang")
_SPEAKERS = ("speaker_id", "speaker", "client_id")
_UNIQUE_ID, _ID = "utterance_id", "id"
_IDS = (_UNIQUE_ID, _ID)
_CACHED = re.compile(r"cache-[0-9a-f]+(_\d+_of_\d+)?\.arrow")
_SPLIT = re.compile(r"(?<![a-z0-9])(train|training|validation|valid|val|dev|test)(?![a-z0-9])", re.IGNORECASE)


def read_hugging_face(
    source: Path,
    language: str | None = None,
    *,
    text: str | None = None,
    translations: Mapping[str, str] | None = None,
) -> OwnData:
    """The rows of a dataset with an audio column.

    Args:
        source: a table of parquet or arrow, a folder of them, as `datasets` saves and the hub holds them, or a pattern
            of tables in a folder, such as `data/train*.parquet`. In a folder, what `datasets` has cached is left out.
        language: BCP-47 tag of the speech, where no column says it.
        text: name of the column of transcripts; the first of the usual names if None.
        translations: language to the column of its texts.

    Raises:
        SprachbundError: there is no such table, tables are of several splits, one has no audio or no text, or pyarrow
            is not installed.
    """
    folder, files = _tables(source)
    collected, ids, rows = _Collected(), set[str](), itertools.count()
    for file in files:
        columns = _Columns(file, text, translations or {})
        of_file = file.relative_to(folder).with_suffix("").as_posix().replace("/", "-")
        for number, (row, of_all) in enumerate(zip(columns.rows(), rows, strict=False)):
            where = f"{file}, row {number + 1}"
            name = columns.id_of(row) or f"{of_file}-{number:06d}"
            if name in ids and columns.ids_repeat:
                name = f"{name}-{of_all:06d}"
            ids.add(name)
            collected.read(
                where,
                lambda where=where, number=number, name=name, row=row, columns=columns: columns.read(  # type: ignore[misc]
                    where, number, name, row, language
                ),
            )
    return collected.data(source)


def _tables(source: Path) -> tuple[Path, list[Path]]:
    """The folder of a source, and its tables in order.

    Raises:
        SprachbundError: there are none, or they are of several splits.
    """
    if source.is_dir():
        tables = [*source.rglob("*.parquet"), *source.rglob("*.arrow")]
        # The caches of `map` and `filter` hold rows of the other tables once more.
        folder, files = source, sorted(file for file in tables if not _CACHED.fullmatch(file.name))
    elif "*" in source.name and not is_file(source):
        folder, files = source.parent, sorted(source.parent.glob(source.name))
    else:
        return source.parent, [source]
    if not files:
        raise SprachbundError(f"{source} holds no tables of parquet or arrow; check the path")
    named = {file: split for file in files if (split := _split_in(file.relative_to(folder)))}
    if len(splits := sorted({split for split, _ in named.values()})) > 1:
        by_choice: dict[Path, list[Path]] = {}
        for file, (_, choice) in named.items():
            by_choice.setdefault(folder / choice, []).append(file)
        choices = [
            some[0] if "*" in choice.name and len(some) == 1 else choice for choice, some in by_choice.items()
        ]
        quoted = " (a pattern in quotation marks)" if any("*" in choice.name for choice in choices) else ""
        raise SprachbundError(
            f"{source} holds the splits {', '.join(splits)}, which must not be mixed; name {one_of(choices)}{quoted}"
        )
    return folder, files


def _split_in(path: Path) -> tuple[str, Path] | None:
    """The split that the path of a table names, and the folder, or the pattern of files, that has its name."""
    for depth, part in enumerate(path.parts):
        if match := _SPLIT.search(part):
            is_table = depth == len(path.parts) - 1
            name = f"{part[: match.end()]}*{path.suffix}" if is_table else part
            return match[1].lower(), Path(*path.parts[:depth], name)
    return None


class _Columns:
    """Meanings of the columns of a table."""

    def __init__(self, path: Path, text: str | None, translations: Mapping[str, str]) -> None:
        self.path = path
        schema = schema_of(path)
        names = list(schema.names)
        self._translations = {tag_of(tag, "a translation:"): column for tag, column in translations.items()}
        wanted = [*([text] if text else []), *self._translations.values()]
        if missing := [column for column in wanted if column not in names]:
            raise SprachbundError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}")
        self.audio = audio_column(path, schema)
        column = text or _first(_TEXTS, names)
        if column is None:
            raise SprachbundError(
                f"{path} has no column of texts; name one of {', '.join(names)} with --text-column"
            )
        self._text: str = column
        self._named = {kind: _first(known, names) for kind, known in _KINDS.items()}
        self._wanted = [self._text, *self._translations.values(), *filter(None, self._named.values())]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows without the sound, but with its path."""
        for batch in batches_of(self.path, [self.audio, *dict.fromkeys(self._wanted)]):
            paths = batch.column(self.audio).field("path") if _has(batch, self.audio, "path") else None
            values = batch.drop_columns([self.audio]).to_pylist()
            for number, row in enumerate(values):
                yield {**row, "": paths[number].as_py() if paths is not None else None}

    @property
    def ids_repeat(self) -> bool:
        """Whether the ids may be those of sentences, which several people have said."""
        return self._named["id"] == _ID

    def id_of(self, row: dict[str, Any]) -> str | None:
        """The id in a row, if there is one."""
        column = self._named["id"]
        return None if column is None or row[column] is None else str(row[column])

    def read(
        self, where: str, number: int, name: str, row: dict[str, Any], language: str | None
    ) -> OwnRecording:
        """One utterance, of that name."""
        own = {kind: row[column] if column else None for kind, column in self._named.items()}
        return OwnRecording(
            where=where,
            utterance_id=name,
            path=self.path,
            language=_spoken(own["language"], language),
            text=_text(row[self._text]),
            speaker="" if own["speaker"] is None else str(own["speaker"]),
            translations={
                tag: _text(row[column]) for tag, column in self._translations.items() if row[column]
            },
            row=number,
        )


_KINDS = {"language": _LANGUAGES, "speaker": _SPEAKERS, "id": _IDS}


def _first(known: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _has(batch: Any, column: str, part: str) -> bool:
    return any(field.name == part for field in batch.schema.field(column).type)

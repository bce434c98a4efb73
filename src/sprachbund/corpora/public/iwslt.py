"""IWSLT sets: Bemba (Big-C), Estonian and Irish as tables of clips, and Tunisian Arabic as telephone speech.

- Bemba: `data/bem/splits/train.tsv` with the columns audio_id, sentence, translation, speaker_id, clips in
  `data/bem/audio`.
- Estonian: `train.tsv` and `dev.tsv` with the columns audio, Estonian, English, clips in `audio`.
- Irish: `train/stamped.tsv` (clip, start, end), `train/txt/train.eng` with as many lines, clips in `train/wav`; there
  is no transcript.
- Tunisian Arabic of 2022 and 2023 (LDC2022E01): `data/audio/ta/ID.sph`, `data/transcripts/ta/ID...tsv` and
  `data/translations/ta/ID.eng.tsv` (start, end, speaker, text). Splits and faulty utterances are lists of the task's
  makers (`train.file_id.txt`, `exclude-utterance.txt`). If their script was run, its `stm` folder is read instead, with
  texts as it normalized them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sprachbund.corpora.public.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part, Published
from sprachbund.corpora.public.preparation import Preparation
from sprachbund.corpora.public.tables import (
    count_lines,
    find_files,
    find_folders,
    read_lines,
    read_parallel,
    read_table,
    require,
)
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

BEMBA = "https://github.com/csikasote/bigc"
ESTONIAN = "https://github.com/taltechnlp/iwslt2025_est2eng_data"
IRISH = "https://github.com/shashwatup9k/iwslt2023_ga-eng"
TARGET = "en"
_Row = dict[str, str]


def read_bemba(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits train, valid and test."""
    folders = [f for f in find_folders(source, "splits", "audio") if f.name == "bem"]
    if not folders:
        raise SprachbundError(f"{source} holds no bem/splits beside bem/audio; get Big-C from {BEMBA}")
    tables = [p for p in sorted((folders[0] / "splits").glob("*.tsv")) if options.takes_split(p.stem)]
    columns = ("audio_id", "sentence", "translation", "speaker_id")

    def item(where: str, row: _Row) -> Entry:
        clip = folders[0] / "audio" / row["audio_id"]
        custom = {key: row[key] for key in ("gender", "image_id", "native_lang") if row.get(key)}
        return _entry(
            where, clip, clip.stem, "bem", row["sentence"], row["translation"], row["speaker_id"], custom
        )

    return [_part(path.stem, path, columns, item) for path in tables] if _taken(options, "bem") else []


def read_estonian(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits train and dev."""
    tables = [p for name in ("train.tsv", "dev.tsv") for p in find_files(source, name)]
    if not tables:
        raise SprachbundError(f"{source} holds no train.tsv and no dev.tsv; get them from {ESTONIAN}")
    what = "iwslt2025_est2eng_data_audio.tar, unpacked"
    audio = require(tables[0].parent / "audio", what, ESTONIAN)

    def item(where: str, row: _Row) -> Entry:
        clip = audio / row["audio"]
        talk = clip.parent.name
        return _entry(where, clip, clip.stem, "et", row["Estonian"], row["English"], talk, {})

    wanted = [path for path in tables if options.takes_split(path.stem)]
    columns = ("audio", "Estonian", "English")
    return [_part(path.stem, path, columns, item) for path in wanted] if _taken(options, "et") else []


def read_irish(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits train, dev, test-2023, and test-2024, whose translations are not published."""
    tables = find_files(source, "stamped.tsv")
    if not tables:
        raise SprachbundError(f"{source} holds no train/stamped.tsv; get it from {IRISH}")
    wanted = [path for path in tables if options.takes_split(path.parent.name)]
    if not _taken(options, "ga"):
        return []
    return [
        Part(name=path.parent.name, total=count_lines(path), entries=partial(_irish, path)) for path in wanted
    ]


def _irish(path: Path) -> Iterator[Entry]:
    texts = sorted((path.parent / "txt").glob("*.eng"))
    if not texts:
        for where, _ in read_parallel(path):
            yield LeftOut(where=where, reason="no translation is published")
        return
    for where, (stamp, translation) in read_parallel(path, texts[0]):
        fields = stamp.split("\t")
        if len(fields) != 3:
            raise SprachbundError(f"{where}: {len(fields)} fields, not 3 (clip, start, end); copy it again")
        clip = path.parent / fields[0]
        speaker = clip.stem.rpartition("_")[0]
        yield _entry(where, clip, clip.stem, "ga", "", translation, speaker, {}, transcribed=False)


def _taken(options: CorpusOptions, language: str) -> bool:
    return options.takes(language) and options.takes_target(TARGET)


def _part(name: str, path: Path, columns: Sequence[str], item: Callable[[str, _Row], Entry]) -> Part:
    def entries() -> Iterator[Entry]:
        return (item(where, row) for where, row in read_table(path, columns))

    return Part(name=name, total=max(0, count_lines(path) - 1), entries=entries)


def _entry(
    where: str,
    clip: Path,
    utterance_id: str,
    language: str,
    text: str,
    translation: str,
    speaker: str,
    custom: dict[str, str],
    *,
    transcribed: bool = True,
) -> Entry:
    said, translated = clean_text(text), clean_text(translation)
    if not translated or (transcribed and not said):
        return LeftOut(where=where, reason="no transcript" if translated else "no translation")
    return Item(
        where=where,
        utterance_id=utterance_id,
        sound=Cut(path=clip),
        language=language,
        text=said,
        speaker=speaker,
        translations={TARGET: translated},
        custom=custom,
    )


_IWSLT_2025 = "https://iwslt.org/2025/low-resource"

PREPARATIONS = (
    Preparation(
        name="iwslt-bem",
        summary="Bemba conversations about pictures (Big-C), into English",
        licence="MIT",
        homepage=BEMBA,
        read=read_bemba,
    ),
    Preparation(
        name="iwslt-est",
        summary="Estonian broadcasts, into English (training translations by machine)",
        licence="not stated with the data; ask its makers at TalTech",
        homepage=ESTONIAN,
        read=read_estonian,
        published=[
            Published(part="train", utterances=581647, hours=1258, source=_IWSLT_2025),
            Published(part="dev", utterances=1601, hours=3.6, source=_IWSLT_2025),
        ],
    ),
    Preparation(
        name="iwslt-gle",
        summary="Irish read aloud, into English, without transcripts",
        licence="CC-BY-NC-SA-4.0",
        homepage=IRISH,
        read=read_irish,
        published=[
            Published(part="train", utterances=7478, source=IRISH),
            Published(part="dev", utterances=1120, source=IRISH),
            Published(part="test-2023", utterances=347, source=IRISH),
        ],
    ),
)


# Tunisian Arabic.

HOMEPAGE = "https://catalog.ldc.upenn.edu/LDC2025S05"
LISTS = "https://github.com/kevinduh/iwslt22-dialect"
LANGUAGE, TUNISIAN_TARGET = "aeb", "en"
_SPLITS = ("train", "dev", "test1")
_STM = ("asr-aeb.norm.{}.stm", "st-aeb2eng.norm.{}.stm")
_ARABIC_MARKS = re.compile(r"[OUM]+/+")  # foreign, uncertain, Modern Standard Arabic
_ENGLISH_MARKS = re.compile(
    r"%pw\b|\(\(|\)\)|[#+=%]"
)  # partial word (for which "%pw" stands), uncertain, foreign, mispronounced, typing error


class _Line(NamedTuple):
    where: str
    start_s: float
    end_s: float
    speaker: str
    text: str


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits train, dev and test1."""
    if not options.takes(LANGUAGE) or not options.takes_target(TUNISIAN_TARGET):
        return []
    package = _package(source)
    splits = [split for split in _SPLITS if options.takes_split(split)]
    if find_files(source, _STM[0].format("*")):
        return [_from_stm(source, package, split) for split in splits]
    excluded = {line.strip() for line in read_lines(_listed(source, "exclude-utterance.txt"))}
    return [_from_tables(source, package, split, excluded) for split in splits]


def _package(source: Path) -> Path:
    folders = find_folders(source, "data/audio/ta")
    if not folders:
        raise SprachbundError(
            f"{source} holds no data/audio/ta (LDC2022E01); get it from the LDC ({HOMEPAGE})"
        )
    return folders[0] / "data"


def _listed(source: Path, name: str) -> Path:
    files = find_files(source, name)
    if not files:
        raise SprachbundError(f"{source} holds no {name}; get the lists from {LISTS} and put them there")
    return files[0]


def _from_stm(source: Path, package: Path, split: str) -> Part:
    said, translated = (_listed(source, name.format(split)) for name in _STM)

    def entries() -> Iterator[Entry]:
        for where, lines in read_parallel(said, translated):
            fields, others = (line.split("\t", 6) for line in lines)
            if len(fields) < 7 or len(others) < 7 or fields[3:5] != others[3:5]:
                raise SprachbundError(
                    f"{where}: not the same utterance in {translated}; run the script again"
                )
            line = _Line(where, *_times(fields[3:5], where), fields[2], fields[6])
            yield _tunisian_entry(package, Path(fields[0]).stem, line, others[6])

    return Part(name=split, total=count_lines(said), entries=entries)


def _from_tables(source: Path, package: Path, split: str, excluded: set[str]) -> Part:
    names = [line.strip() for line in read_lines(_listed(source, f"{split}.file_id.txt")) if line.strip()]
    tables = [_table_pair(package, name) for name in names]
    total = sum(count_lines(said) for said, _ in tables)
    entries = partial(_entries, package, names, tables, excluded)
    return Part(name=split, total=total, entries=entries)


def _table_pair(package: Path, name: str) -> tuple[Path, Path]:
    pair = []
    for kind in ("transcripts", "translations"):
        files = sorted((package / kind / "ta").glob(f"{name}.*tsv"))
        if not files:
            raise SprachbundError(f"{package / kind / 'ta' / name}.tsv is missing; unpack LDC2022E01 again")
        pair.append(files[0])
    return pair[0], pair[1]


def _entries(
    package: Path, names: Sequence[str], tables: Sequence[tuple[Path, Path]], excluded: set[str]
) -> Iterator[Entry]:
    for name, (said, translated) in zip(names, tables, strict=True):
        english = {(line.start_s, line.end_s): line.text for line in _lines(translated)}
        for line in _lines(said):
            if f"{name} {line.start_s:.3f} {line.end_s:.3f}" in excluded:
                yield LeftOut(where=line.where, reason="faulty by the makers' list", published=False)
            elif (line.start_s, line.end_s) not in english:
                yield LeftOut(where=line.where, reason="no translation")
            else:
                translation = _ENGLISH_MARKS.sub("", english[line.start_s, line.end_s])
                text = _ARABIC_MARKS.sub("", line.text)
                yield _tunisian_entry(package, name, line._replace(text=text), translation)


def _lines(path: Path) -> Iterator[_Line]:
    for number, line in enumerate(read_lines(path), start=1):
        where, fields = f"{path}:{number}", line.split("\t")
        if len(fields) != 4:
            raise SprachbundError(f"{where}: {len(fields)} fields, not 4 (start, end, speaker, text)")
        yield _Line(where, *_times(fields[:2], where), fields[2], fields[3])


def _times(fields: Sequence[str], where: str) -> tuple[float, float]:
    try:
        start_s, end_s = (float(field) for field in fields)
    except ValueError:
        raise SprachbundError(f"{where}: {fields} are not times in seconds; copy the table again") from None
    return start_s, end_s


def _tunisian_entry(package: Path, name: str, line: _Line, translation: str) -> Entry:
    text, translated = clean_text(line.text), clean_text(translation)
    if not text or not translated or line.end_s <= line.start_s:
        return LeftOut(where=line.where, reason="no text, no translation or no length")
    return Item(
        where=line.where,
        utterance_id=f"{name}-{round(line.start_s * 1000):07d}",
        sound=Cut(
            path=package / "audio" / "ta" / f"{name}.sph",
            start_s=line.start_s,
            duration_s=line.end_s - line.start_s,
        ),
        language=LANGUAGE,
        text=text,
        speaker=line.speaker,
        translations={TUNISIAN_TARGET: translated},
    )


_SIZES = f"the README of {LISTS}"

PREPARATION = Preparation(
    name="iwslt-aeb",
    summary="Tunisian Arabic telephone speech, into English",
    licence="LDC user agreement",
    homepage=HOMEPAGE,
    read=read,
    published=[
        Published(part="train", utterances=202499, source=_SIZES),
        Published(part="dev", utterances=3833, source=_SIZES),
        Published(part="test1", utterances=4204, source=_SIZES),
    ],
)

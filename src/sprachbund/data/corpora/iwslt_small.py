"""The IWSLT sets that are a table of clips: Bemba (Big-C), Estonian and Irish, each into English.

- Bemba: `data/bem/splits/train.tsv` with the columns audio_id, sentence, translation, speaker_id, clips in
  `data/bem/audio`.
- Estonian: `train.tsv` and `dev.tsv` with the columns audio, Estonian, English, clips in `audio`.
- Irish: `train/stamped.tsv` (clip, start, end), `train/txt/train.eng` with as many lines, clips in
  `train/wav`; there is no transcript.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from sprachbund.data.corpora.counts import Published
from sprachbund.data.corpora.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part
from sprachbund.data.corpora.places import find_files, find_folders, require
from sprachbund.data.corpora.preparation import Preparation
from sprachbund.data.corpora.tables import count_lines, read_parallel, read_table
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

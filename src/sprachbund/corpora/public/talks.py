"""MuST-C and Multilingual TEDx: talks, cut into sentences by a list of times, with a line of text for each.

A pair's folder (`en-de`) holds for each split `data/train/txt/train.yaml` (a segment a line: wav, offset,
duration, speaker_id), `train.en` and `train.de` with as many lines, and the talks in `data/train/wav`;
Multilingual TEDx names them .wav and stores them as .flac. Segments that several pairs share are brought
together.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from sprachbund.corpora.public.items import CorpusOptions, Cut, Join, Part, Published
from sprachbund.corpora.public.preparation import Preparation
from sprachbund.corpora.public.tables import (
    count_lines,
    find_files,
    find_folders,
    first_that_is,
    read_lines,
    read_parallel,
    require,
    tag,
)
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

MUSTC = "https://mt.fbk.eu/must-c/"
MTEDX = "https://www.openslr.org/100"
_MUSTC_SIZES = "ESPnet's recipe for MuST-C (version 1, as released)"
_MTEDX_SIZES = "lhotse's recipe for Multilingual TEDx, which does not say whether pauses count"
_MTEDX_HOURS = {"es": 189, "fr": 189, "pt": 164, "it": 107, "ru": 53, "el": 30, "ar": 18, "de": 15}
_PAIR = re.compile(r"([a-z]{2,3})-([a-z]{2,3})")
_FIELD = re.compile(r"(\w+):\s*([^,{}]+)")


def read(source: Path, options: CorpusOptions, homepage: str) -> Sequence[Part]:
    """The splits of the pairs that are there.

    Args:
        source: folder of the corpus.
        options: options of writing the corpus.
        homepage: web address that offers the corpus, for errors.
    """
    join = Join()
    pairs = [(f, match) for f in find_folders(source, "data") if (match := _PAIR.fullmatch(f.name))]
    if not pairs:
        raise SprachbundError(f"{source} holds no en-de/data/train or other pair; get it from {homepage}")
    for folder, match in pairs:
        spoken, target = (tag(code, str(folder)) for code in match.groups())
        if options.takes(spoken) and (spoken == target or options.takes_target(target)):
            for split in sorted(p for p in (folder / "data").iterdir() if p.is_dir()):
                if options.takes_split(split.name):
                    _add_split(join, split, match[1], match[2], homepage)
    return join.parts()


def _add_split(join: Join, folder: Path, spoken: str, target: str, homepage: str) -> None:
    what = f"texts of the {folder.name} split"
    texts, split = folder / "txt", folder.name
    files = [texts / f"{split}.{end}" for end in dict.fromkeys(("yaml", spoken, target))]
    for file in files:
        require(file, what, homepage)
    require(folder / "wav", "the talks", homepage)
    language = tag(spoken, str(folder))
    segments = list(_segments(files[0]))
    total = count_lines(files[1])
    if len(segments) != total:
        raise SprachbundError(
            f"{files[1]} has {total} lines, {files[0]} {len(segments)} segments; copy both again"
        )
    for (where, segment), (_, lines) in zip(segments, read_parallel(*files[1:]), strict=True):
        text, translation = clean_text(lines[0]), clean_text(lines[-1])
        start_s, duration_s = _number(segment, "offset", where), _number(segment, "duration", where)
        if duration_s <= 0 or not text:
            join.leave_out(split, where, "no transcript" if duration_s > 0 else "segment of no length")
            continue
        talk = _talk(folder / "wav", segment["wav"])
        join.add(
            split,
            where=where,
            utterance_id=f"{language}-{talk.stem}-{round(start_s * 1000):08d}-{round(duration_s * 1000):06d}",
            cut=Cut(path=talk, start_s=start_s, duration_s=duration_s),
            language=language,
            text=text,
            speaker=segment.get("speaker_id", talk.stem),
            translations={tag(target, where): translation} if translation and target != spoken else {},
        )


def _segments(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Entries of the list, `- {duration: 3.5, offset: 16.08, wav: ted_767.wav}`, each in a line or in several."""
    begun, entry = 0, ""
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("-"):
            if entry:
                yield f"{path}:{begun}", _segment(entry, f"{path}:{begun}")
            begun, entry = number, line
        elif line.strip():
            entry += ", " + line.strip()
    if entry:
        yield f"{path}:{begun}", _segment(entry, f"{path}:{begun}")


def _segment(line: str, where: str) -> dict[str, str]:
    fields = {name: value.strip().strip("'\"") for name, value in _FIELD.findall(line)}
    if missing := [name for name in ("wav", "offset", "duration") if name not in fields]:
        raise SprachbundError(f"{where}: no {' and no '.join(missing)} in {line[:80]!r}; copy the list again")
    return fields


def _number(segment: dict[str, str], name: str, where: str) -> float:
    try:
        seconds = float(segment[name])
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{seconds} is no time")
        return seconds
    except ValueError:
        raise SprachbundError(
            f"{where}: {name} is {segment[name]!r}, not seconds; copy the list again"
        ) from None


def _talk(folder: Path, name: str) -> Path:
    path = folder / name
    flac = path.with_suffix(".flac")
    return flac if flac.exists() else path


def _reader(homepage: str) -> Callable[[Path, CorpusOptions], Sequence[Part]]:
    return partial(read, homepage=homepage)


PREPARATIONS = (
    Preparation(
        name="mustc",
        summary="English TED talks with translations into 8 to 14 languages",
        licence="CC-BY-NC-ND-4.0",
        homepage=MUSTC,
        read=_reader(MUSTC),
        published=[
            Published(part=part, key="en>de", utterances=size, source=_MUSTC_SIZES)
            for part, size in (("train", 229703), ("dev", 1423), ("tst-COMMON", 2641), ("tst-HE", 600))
        ],
    ),
    Preparation(
        name="mtedx",
        summary="TEDx talks in 8 languages, most with translations",
        licence="CC-BY-NC-ND-4.0",
        homepage=MTEDX,
        read=_reader(MTEDX),
        published=[
            Published(part="", key=language, hours=hours, source=_MTEDX_SIZES)
            for language, hours in _MTEDX_HOURS.items()
        ],
    ),
)


# Europarl-ST: speeches of the European Parliament with translations among nine languages.
#
# Each spoken language's folder (`en`) holds `audios` (a recording for each speech, m4a) and a folder for
# each target (`en/de/train`): segments.lst with recording, start and end in seconds, and segments.en and
# segments.de with as many lines. Segments that several targets share are brought together.

HOMEPAGE = "https://www.mllp.upv.es/europarl-st/"
_SIZES = "a conversion by others of version 1.1, huggingface.co/datasets/tj-solergibert/Europarl-ST"
_LIST = "segments.lst"
_SUFFIXES = (".m4a", ".wav", ".flac")


def read_europarl_st(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits of the directions that are there."""
    join = Join()
    lists = find_files(source, _LIST)
    if not lists:
        raise SprachbundError(
            f"{source} holds no en/de/train/{_LIST} or other direction; get it from {HOMEPAGE}"
        )
    for path in lists:
        split, target, spoken = (folder.name for folder in path.parents[:3])
        if not options.takes_split(split) or not options.takes(tag(spoken, str(path))):
            continue
        if options.takes_target(tag(target, str(path))):
            _add_europarl_split(join, path, split, spoken, target)
    return join.parts()


def _add_europarl_split(join: Join, path: Path, split: str, spoken: str, target: str) -> None:
    audios = require(path.parents[2] / "audios", f"recordings in {spoken}", HOMEPAGE)
    texts = [path.parent / f"segments.{code}" for code in (spoken, target)]
    for lines in texts:
        require(lines, f"texts of the segments in {path}", HOMEPAGE)
    language = tag(spoken, str(path))
    for where, (segment, text, translation) in read_parallel(path, *texts):
        name, start_s, end_s = _times(segment, where)
        if not text.strip() or end_s <= start_s:
            join.leave_out(split, where, "segment of no length" if text.strip() else "no transcript")
            continue
        translated = clean_text(translation)
        join.add(
            split,
            where=where,
            utterance_id=f"{name}-{round(start_s * 1000):08d}-{round(end_s * 1000):08d}",
            cut=Cut(
                path=first_that_is([audios / f"{name}{suffix}" for suffix in _SUFFIXES]),
                start_s=start_s,
                duration_s=end_s - start_s,
            ),
            language=language,
            text=clean_text(text),
            translations={tag(target, where): translated} if translated else {},
            custom={"speech": name},
        )


def _times(segment: str, where: str) -> tuple[str, float, float]:
    try:
        name, start, end = segment.split()
        return name, float(start), float(end)
    except ValueError:
        raise SprachbundError(
            f"{where}: {segment[:60]!r} is not recording, start and end in seconds; copy the list again"
        ) from None


EUROPARL_ST = Preparation(
    name="europarl-st",
    summary="speeches of the European Parliament, nine languages into each other",
    licence="CC-BY-NC-4.0",
    homepage=HOMEPAGE,
    read=read_europarl_st,
    published=[
        Published(part=part, utterances=size, source=_SIZES)
        for part, size in (("train", 116138), ("dev", 17538), ("test", 18901))
    ],
)

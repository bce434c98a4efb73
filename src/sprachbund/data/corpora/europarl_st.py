"""Europarl-ST: speeches of the European Parliament with translations among nine languages.

Each spoken language's folder (`en`) holds `audios` (a recording for each speech, m4a) and a folder for
each target (`en/de/train`): segments.lst with recording, start and end in seconds, and segments.en and
segments.de with as many lines. Segments that several targets share are brought together.
"""

from collections.abc import Sequence
from pathlib import Path

from sprachbund.data.corpora.counts import Published
from sprachbund.data.corpora.items import CorpusOptions, Cut, Part
from sprachbund.data.corpora.join import Join
from sprachbund.data.corpora.places import find_files, first_that_is, require, tag
from sprachbund.data.corpora.preparation import Preparation
from sprachbund.data.corpora.tables import read_parallel
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://www.mllp.upv.es/europarl-st/"
_SIZES = "a conversion by others of version 1.1, huggingface.co/datasets/tj-solergibert/Europarl-ST"
_LIST = "segments.lst"
_SUFFIXES = (".m4a", ".wav", ".flac")


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
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
            _add_split(join, path, split, spoken, target)
    return join.parts()


def _add_split(join: Join, path: Path, split: str, spoken: str, target: str) -> None:
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


PREPARATION = Preparation(
    name="europarl-st",
    summary="speeches of the European Parliament, nine languages into each other",
    licence="CC-BY-NC-4.0",
    homepage=HOMEPAGE,
    read=read,
    published=[
        Published(part=part, utterances=size, source=_SIZES)
        for part, size in (("train", 116138), ("dev", 17538), ("test", 18901))
    ],
)

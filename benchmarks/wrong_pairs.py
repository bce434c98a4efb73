"""A copy of a mixed corpus in which translations are wrong on purpose: an effect that is planted for a control.

In the training parts, a share of the utterances of some languages have the translations of another utterance in the
same language. Speech, transcripts, and dev and test parts stay as they are; sound is linked where that is possible.
Run: python -m benchmarks.wrong_pairs corpora/mixed_six corpora/mixed_six_wrong --languages fr,it,ru
"""

import argparse
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sprachbund.data.manifest import (
    INFO_FILE,
    audio_path,
    checksums_path,
    cuts_path,
    read_info,
    shard_numbers,
)
from sprachbund.text.languages import MIXED
from sprachbund.util.files import file_sha256, write_json, write_text

TRAINING = ("train", "monolingual-train")
Cut = dict[str, Any]


def main() -> None:
    """Write the copy, and say how many translations are of another sentence now."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="folder that `data make mixed` wrote")
    parser.add_argument("out", type=Path, help="folder of the copy")
    parser.add_argument("--languages", required=True, help="main languages of the utterances, with commas")
    parser.add_argument("--share", type=float, default=0.5, help="share of their utterances")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    given = parser.parse_args()
    for part in sorted(path for path in given.corpus.iterdir() if path.is_dir()):
        numbers = shard_numbers(part)
        cuts = {number: list(read_cuts(cuts_path(part, number))) for number in numbers}
        info = read_info(part)
        if part.name in TRAINING:
            every = [cut for own in cuts.values() for cut in own]
            counted = {
                language: exchange(
                    [cut for cut in every if language_of(cut) == language],
                    given.share,
                    random.Random(f"{given.seed} {part.name} {language}"),
                )
                for language in given.languages.split(",")
            }
            info["wrong translations"] = counted
            print(f"{part.name}: {counted}")
        out = given.out / part.name
        out.mkdir(parents=True, exist_ok=True)
        for number, own in cuts.items():
            write_shard(part, out, number, own)
        write_json(out / INFO_FILE, info)


def read_cuts(path: Path) -> Iterator[Cut]:
    """The cuts of a shard."""
    with path.open() as file:
        yield from map(json.loads, file)


def language_of(cut: Cut) -> str:
    """The main language of an utterance."""
    return str(cut["supervisions"][0]["language"])


def exchange(cuts: Sequence[Cut], share: float, draw: random.Random) -> int:
    """Give a share of the cuts the translations of the next one that is drawn; how many have other texts now."""
    chosen = draw.sample(cuts, round(share * len(cuts)))
    texts = [cut["supervisions"][0]["custom"]["translations"] for cut in chosen]
    changed = 0
    for n, cut in enumerate(chosen):
        custom, following = cut["supervisions"][0]["custom"], texts[(n + 1) % len(texts)]
        own = {tag: text for tag, text in texts[n].items() if tag == MIXED}  # a transcript, which stays right
        custom["translations"] = {tag: text for tag, text in following.items() if tag != MIXED} | own
        for span in custom.get("spans", ()):
            span.pop("word_ranges", None)  # they count the words of the translations that were there
        changed += custom["translations"] != texts[n]
    return changed


def write_shard(part: Path, out: Path, number: int, cuts: Iterable[Cut]) -> None:
    """Write a shard with the sound of another one."""
    sound = audio_path(out, number)
    sound.unlink(missing_ok=True)
    link_or_copy(audio_path(part, number), sound)
    lines = "".join(json.dumps(cut, ensure_ascii=False) + "\n" for cut in cuts)
    path = cuts_path(out, number)
    lines_sum = hashlib.sha256(lines.encode()).hexdigest()
    write_text(checksums_path(out, number), f"{file_sha256(sound)}  {sound.name}\n{lines_sum}  {path.name}\n")
    write_text(path, lines)


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file, or copy it where it cannot be linked."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main()

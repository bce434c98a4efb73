"""Does a model hear that another language was stated than the one spoken?

Recordings of one span each, and of five by the same speaker. Where the language spoken is stated, a warning is false;
where each of the other languages is stated instead, it is right. Only the encoder and its language head run.

Run: python -m benchmarks.stated_language corpora/telephone/known corpora/telephone/unheard … --out FILE
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import write
from rich.progress import track
from torch import Tensor

from sprachbund import load
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.languages import LanguageTracker
from sprachbund.evaluation.failures import Rate
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.models.base import Family
from sprachbund.models.io import content_hash, locate
from sprachbund.util.provenance import commit, data_hash

NUM_SPANS = (1, 5)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """An utterance.

    Attributes:
        language: the language spoken.
        speaker: who speaks.
        log_probs: (L,) of the model.
    """

    language: str
    speaker: str
    log_probs: Tensor


def hear(family: Family, manifest: Manifest) -> list[Heard]:
    """The utterances of a manifest, in its order."""
    heard: dict[int, Heard] = {}
    order = np.argsort(manifest.durations_s, kind="stable")
    for batch in track(np.array_split(order, max(1, len(order) // 16))):
        features = family.features([manifest.samples(int(i)) for i in batch])
        with torch.inference_mode():
            rows = family.language_log_probs(family.encode(features))
        for index, row in zip(batch.tolist(), rows, strict=True):
            one = manifest[index]
            heard[index] = Heard(language=one.language, speaker=str(one.speaker), log_probs=row)
    return [heard[index] for index in sorted(heard)]


def recordings(heard: Sequence[Heard], num_spans: int) -> list[Sequence[Heard]]:
    """Utterances that follow each other and are by one speaker, in as many whole recordings as there are."""
    by_speaker: dict[tuple[str, str], list[Heard]] = defaultdict(list)
    for one in heard:
        by_speaker[one.language, one.speaker].append(one)
    return [
        own[begin : begin + num_spans]
        for own in by_speaker.values()
        for begin in range(0, len(own) - num_spans + 1, num_spans)
    ]


def warns(family: Family, stated: str, recording: Sequence[Heard]) -> bool:
    """Whether a recording has a warning where this language is stated."""
    tracker = LanguageTracker(family.source_languages, None, 1, given=stated)
    for one in recording:
        tracker.compare(one.log_probs)
    return tracker.warning is not None


def rows_of(family: Family, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each number of spans."""
    heard = hear(family, Manifest(folder))
    for num_spans in NUM_SPANS:
        chosen = recordings(heard, num_spans)
        false = [warns(family, one[0].language, one) for one in chosen]
        right = [
            warns(family, stated, one)
            for one in chosen
            for stated in family.source_languages
            if stated != one[0].language
        ]
        rate = Rate(failed=sum(false), evaluated=len(false))
        yield {
            "corpus": corpus_name(folder),
            "spans": num_spans,
            "recordings": len(chosen),
            "stated rightly, warned %": round(rate.percent, 1),
            "95 %": "{:.1f} to {:.1f}".format(*rate.interval()),
            "stated wrongly, warned %": round(100 * sum(right) / len(right), 1),
        }


def main() -> None:
    """Hear the corpora."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpora", type=Path, nargs="+", help="manifest directories")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/stated_language.json"))
    given = parser.parse_args()
    model = load(given.model)
    rows = [row for folder in given.corpora for row in rows_of(model.family, folder)]
    write(
        given.out,
        {
            "command": f"python -m benchmarks.stated_language {' '.join(map(str, given.corpora))}",
            "model": content_hash(locate(given.model)),
            "data": {corpus_name(one): data_hash(one) for one in given.corpora},
            "commit": commit(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()

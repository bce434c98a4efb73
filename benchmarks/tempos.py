"""What hearing again at other tempos brings a calibrated model, and what it lets through.

Each utterance of some corpora is translated into one language it has a text in, with and without `--tempos`; sound
without a text, such as that of `data make outside`, is translated too. A text is right where its chrF is 20 or more, as
in the model card. A text that is likely wrong comes with a warning (`Understanding` in sprachbund.decoding.guard).
Corpora of dev data (`dev`, `dev_prompts`) are heard at other tempos, too (--played), so that speech is there whose only
fault is known: tempos to hear it again at are chosen by these, not by speakers of the test sets.

Times are of the whole decoding, one way after the other for each batch, with the given threads.

Run: python -m benchmarks.tempos corpora/telephone/dev corpora/outside/dev corpora/outside/test
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import write
from rich.progress import track
from sacrebleu.metrics import CHRF

import sprachbund
from sprachbund.audio.tempo import change_tempo
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.guard import LIKELY_WRONG
from sprachbund.decoding.options import DecodingOptions
from sprachbund.evaluation.hypotheses import BatchDecoder
from sprachbund.util.provenance import commit

BATCH = 16
RIGHT = 20.0  # chrF


@dataclass(kw_only=True)
class Texts:
    """What was written for the utterances of a row."""

    written: list[str] = field(default_factory=list)
    references: list[str | None] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    doubtful: list[bool] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """Its numbers."""
        chrf = CHRF()
        spoken = [pair for pair in zip(self.written, self.references, strict=True) if pair[1] is not None]
        wrong = [
            bool(text) and (right is None or chrf.sentence_score(text, [right]).score < RIGHT)
            for text, right in zip(self.written, self.references, strict=True)
        ]
        doubtful, is_wrong = np.array(self.doubtful), np.array(wrong)
        is_right = np.array([bool(text) for text in self.written]) & ~is_wrong
        rates = [len(text) / s for text, s in zip(self.written, self.durations_s, strict=True) if text]
        texts, rights = [text for text, _ in spoken], [right for _, right in spoken]
        return {
            "utterances": len(self.written),
            "chrF": round(chrf.corpus_score(texts, [rights]).score, 1) if spoken else "-",
            "dropped %": round(100 * float(np.mean([not text for text in self.written])), 1),
            "wrong text %": round(100 * float(np.mean(wrong)), 1),
            "wrong without a warning %": round(100 * float(np.mean(is_wrong & ~doubtful)), 1),
            "right with a warning %": round(100 * float(np.mean(doubtful[is_right])), 1)
            if is_right.any()
            else "-",
            "characters a second, median": round(float(np.median(rates)), 1) if rates else "-",
            "of one in twenty more than": round(float(np.quantile(rates, 0.95)), 1) if rates else "-",
            "ms of work per s": round(1000 * self.seconds / sum(self.durations_s), 1),
        }


def sounds(
    path: Path, limit: int, played: float | None
) -> Iterator[tuple[str, np.ndarray, str | None, str, str | None]]:
    """Name of the row, samples, language spoken, target and the right text of utterances spread over a corpus."""
    manifest = Manifest(path)
    spread = np.linspace(0, len(manifest) - 1, min(limit, len(manifest))).astype(int).tolist()
    name = "/".join(path.parts[-2:]) + (f", played at {played:g}" if played else "")
    for index in spread:
        utterance, samples = manifest[index], manifest.samples(index)
        if utterance.text and utterance.language not in LANGUAGES:
            continue
        known = sorted(set(utterance.translations or {}) & set(LANGUAGES))
        target = known[index % len(known)] if known else LANGUAGES[index % len(LANGUAGES)]
        right = utterance.translations[target] if known else None
        speaker = f": {utterance.speaker}" if path.name == "unheard" else ""
        yield name + speaker, change_tempo(samples, played) if played else samples, None, target, right


LANGUAGES = ("de", "en", "es", "fr", "it", "ru")


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, nargs="+", metavar="CORPUS")
    parser.add_argument("--tempos", default="1.3,1.6", metavar="X,…")
    parser.add_argument(
        "--played",
        type=float,
        nargs="*",
        default=[0.5, 0.6, 2.0],
        metavar="X",
        help="tempos of dev corpora beside their own",
    )
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="utterances of each corpus")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("docs/results/tempos.json"), metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = sprachbund.load().family
    tempos = tuple(map(float, options.tempos.split(",")))
    plain = DecodingOptions()
    ways = {
        "none": BatchDecoder(model, plain),
        options.tempos: BatchDecoder(model, replace(plain, tempos=tempos)),
    }
    by_sound: dict[tuple[str, str], Texts] = defaultdict(Texts)
    for path in options.corpora:
        for played in (None, *(options.played if path.name.startswith("dev") else ())):
            everything = list(sounds(path, options.limit, played))
            everything.sort(key=lambda one: len(one[1]))
            starts = range(0, len(everything), BATCH)
            for start in track(starts, f"{path}" + (f" x {played:g}" if played else ""), transient=True):
                batch = everything[start : start + BATCH]
                longest = int(model.max_window_s * 16_000)
                heard = [samples[:longest] for _, samples, *_ in batch]
                for way, decoder in ways.items():
                    began = time.perf_counter()
                    rows = decoder.decode(heard, [[one[3]] for one in batch], [one[2] for one in batch])
                    took_s = time.perf_counter() - began
                    for one, samples, [(text, evidence)] in zip(batch, heard, rows, strict=True):
                        texts = by_sound[one[0], way]
                        texts.written.append(
                            ("" if evidence.kept is None else evidence.kept) if evidence.dropped else text
                        )
                        texts.references.append(one[4])
                        texts.doubtful.append((evidence.out_of_domain or 0.0) > LIKELY_WRONG)
                        texts.seconds += took_s * len(samples) / sum(map(len, heard))
                        texts.durations_s.append(len(samples) / 16_000)
    rows = [
        {"sound": name, "heard again at": way, **texts.row()}
        for (name, way), texts in sorted(by_sound.items())
    ]
    for row in rows:
        print(*row.values(), sep="\t")
    about = {
        "threads": options.threads,
        "limit": options.limit,
        "data": {"/".join(path.parts[-2:]): Manifest(path).content_hash() for path in options.corpora},
        "commit": commit(),
        "rows": rows,
    }
    write(options.out, about)


if __name__ == "__main__":
    main()

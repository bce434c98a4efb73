"""What the N best transcripts gain a cascade, by the weight of the translation's probability in the choice among them.

Every utterance of a language is transcribed with a beam, its N best transcripts are translated once, and each weight
chooses among them; weight 0 is the recogniser's best. Differences are means over utterances of chrF, with 95 % of
bootstrap resamples. Run, with a translator's directory:
python -m benchmarks.nbest_cascade --then marian-en-de --data corpora/telephone/dev --out benchmarks/nbest_cascade.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import write
from sacrebleu import sentence_chrf

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest
from sprachbund.decoding import pipeline
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.result import joined_text
from sprachbund.util.provenance import commit

WEIGHTS = (0.0, 0.1, 0.3, 0.5, 1.0)
RESAMPLES = 2000

Candidate = tuple[float, float, str, str]
"""Log-probabilities of a transcript and of its translation, and both texts."""
Utterance = tuple[str, str, list[list[Candidate]]]
"""What was said, its translation, and the candidates of every span of speech."""


def candidates(family: Any, data: Path, source: str, target: str, nbest: int) -> list[Utterance]:
    """Of every utterance in the source language."""
    candidates: list[list[Candidate]] = []
    choose = pipeline.best_pair

    def note(pairs: Any, weight: float) -> Any:
        candidates.append(
            [
                (
                    *(one.hypothesis.log_probability if one.hypothesis else -1e9 for one in pair),
                    *(joined_text(one.segments) for one in pair),
                )
                for pair in pairs
            ]
        )
        return choose(pairs, weight)

    pipeline.best_pair = note
    options, manifest, out = DecodingOptions(beam_size=nbest, nbest=nbest), Manifest(data), []
    for index in range(len(manifest)):
        utterance = manifest[index]
        if utterance.language == source:
            candidates.clear()
            samples = manifest.samples(index)
            translate(family, samples, [target], source, options, sample_rate=SAMPLE_RATE)
            out.append((utterance.text, utterance.text_in(target), list(candidates)))
    pipeline.best_pair = choose
    return out


def rows_of(utterances: list[Utterance], seed: int = 0) -> list[dict[str, Any]]:
    """A row for every weight."""

    def chosen(weight: float) -> tuple[list[str], np.ndarray]:
        said, scores = [], []
        for text, translation, spans in utterances:
            best = [max(own, key=lambda one: one[0] + weight * one[1]) for own in spans]
            transcript, written = (" ".join(one[n] for one in best) for n in (2, 3))
            said.append(transcript)
            scores.append(
                (sentence_chrf(written, [translation]).score, sentence_chrf(transcript, [text]).score)
            )
        return said, np.array(scores)

    plain, before = chosen(WEIGHTS[0])
    rows = []
    for weight in WEIGHTS:
        said, scores = chosen(weight)
        rng, change = np.random.default_rng(seed), scores - before
        means = [change[rng.integers(0, len(change), len(change))].mean(0) for _ in range(RESAMPLES)]
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        row: dict[str, Any] = {
            "translation_weight": weight,
            "other_transcripts": sum(a != b for a, b in zip(said, plain, strict=True)),
        }
        for n, name in enumerate(("translation", "transcript")):
            row[f"chrF of {name}"] = round(float(scores[:, n].mean()), 2)
            row[f"{name}: against weight 0"] = f"{change[:, n].mean():+.2f} ({low[n]:+.2f} to {high[n]:+.2f})"
        rows.append(row)
    return rows


def main() -> None:
    """Translate, choose, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--then", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--nbest", type=int, default=4)
    parser.add_argument("--what", default="", help="of the translator, for the manifest")
    parser.add_argument("--candidates", type=Path, help="candidates of an earlier run, or where to keep them")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.candidates and options.candidates.exists():
        utterances = json.loads(options.candidates.read_text())
    else:
        family = sprachbund.load(options.model, then=options.then).family
        parts = (
            candidates(family, data, options.source, options.target, options.nbest) for data in options.data
        )
        utterances = [one for part in parts for one in part]
        if options.candidates:
            options.candidates.write_text(json.dumps(utterances))
    rows = rows_of(utterances)
    for row in rows:
        print(json.dumps(row))
    if options.out:
        manifest = {
            "commit": commit(),
            "model": options.model,
            "then": options.what or Path(options.then).name,
            "data": [data.name for data in options.data],
            "utterances": len(utterances),
            "source": options.source,
            "target": options.target,
            "nbest": options.nbest,
            "resamples": RESAMPLES,
            "rows": rows,
        }
        write(options.out, manifest)


if __name__ == "__main__":
    main()

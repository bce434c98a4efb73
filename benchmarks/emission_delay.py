"""When the words of a trained streaming transducer come: delay behind their end, beside what the tier promises.

Words and when they end come from `custom.words` of a corpus ({"text", "end_s"}, in order) where it has them. Where it
has not, the last word of an utterance is taken, and its end from voice activity: one word an utterance, but no
alignment that another model would have to make.
Run: python -m benchmarks.emission_delay --model DIR --data corpora/phrasebook/dev --utterances 200
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rows import keep
from rich.console import Console
from rich.progress import track

from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import VoiceActivity, speech_spans
from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.emission_delay import SpokenWord, emission_delay
from sprachbund.models.base import Target
from sprachbund.models.io import load

HERE = Path(__file__).parent
Speech = list[tuple[np.ndarray, list[SpokenWord]]]


def words_of(utterance: Utterance, samples: np.ndarray) -> list[SpokenWord]:
    """Of an utterance, as far as it is known when they end."""
    if words := utterance.custom.get("words"):
        return [SpokenWord(text=word["text"], end_s=word["end_s"]) for word in words]
    probabilities = VoiceActivity().probabilities(samples)
    spans = speech_spans(probabilities, SpanOptions(padding_s=0.0), num_samples=len(samples))
    words = utterance.text.split()
    return [SpokenWord(text=words[-1], end_s=spans[-1].end_s)] if spans and words else []


def speech_by_language(corpus: Path, count: int, known: set[str]) -> dict[str, Speech]:
    """Utterances from all over a corpus, by the language spoken."""
    manifest, by_language = Manifest(corpus), dict[str, Speech]()
    wanted = min(count, len(manifest))
    for index in track([i * len(manifest) // wanted for i in range(wanted)], console=Console(stderr=True)):
        utterance, samples = manifest[index], manifest.samples(index)
        words = words_of(utterance, samples)
        if words and utterance.language in known:
            by_language.setdefault(utterance.language, []).append((samples, words))
    if not by_language:
        raise SprachbundError(f"{corpus} has no words in the languages {', '.join(sorted(known))}")
    return by_language


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--out", type=Path, default=HERE / "emission_delay.json")
    args = parser.parse_args()
    model: Any = load(args.model)
    pairs = {source for source, target in model.pairs() if source == target}
    rows = []
    for language, speech in speech_by_language(args.data, args.utterances, pairs).items():
        for tier in model.encoder.tiers:
            delay = emission_delay(model, speech, Target(language=language), tier).to_dict()
            rows.append({"language": language, **{key: rounded(value) for key, value in delay.items()}})
    what = {"model": args.model.name, "corpus": args.data.name}
    keep(args.out, {**what, "rows": rows})


def rounded(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()

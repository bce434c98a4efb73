"""What is written, live and as a recording, for sound that nobody understands: speech backwards, several voices at
once, music, noises. The speech that it is made from comes first, for comparison.

Run: python -m benchmarks.live_not_understood --out benchmarks/live_not_understood.json
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from benchmarks.rows import keep
from tests.not_understood import Samples, babble, backwards, music, noises

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions

RECORDINGS = Path(__file__).parents[1] / "examples" / "recordings"
POLICIES = ("local-agreement", "alignatt", "wait-k")


def at_once(speech: list[Samples], rng: np.random.Generator, duration_s: float = 24.0) -> Samples:
    """Three of the recordings at once, with their pauses: now and then one speaker is alone."""
    mixed = np.zeros(round(duration_s * SAMPLE_RATE), np.float32)
    for index in rng.choice(len(speech), 3, replace=False):
        one = speech[index] / np.sqrt(np.mean(speech[index] ** 2))
        mixed += np.resize(np.roll(one, -int(rng.integers(len(one)))), len(mixed))
    return (0.5 * mixed / np.abs(mixed).max()).astype(np.float32)


def sounds(count: int, seed: int) -> dict[str, list[Samples]]:
    """Sounds by kind, each ends with a second of silence."""
    speech, rng = [load(path) for path in sorted(RECORDINGS.iterdir())], np.random.default_rng(seed)
    kinds = {
        "speech": speech,
        "speech backwards": [backwards(one) for one in speech],
        **{
            f"{voices} voices without pauses": [babble(speech, voices, 8.0, seed + n) for n in range(count)]
            for voices in (3, 4, 6)
        },
        "three recordings at once": [at_once(speech, rng) for _ in range(count)],
        "music": [music(20.0)],
        "noises": list(noises(10.0).values()),
    }
    silence = np.zeros(SAMPLE_RATE, np.float32)
    return {kind: [np.concatenate([one, silence]) for one in each] for kind, each in kinds.items()}


def live(model: sprachbund.Model, sound: Samples, policy: str) -> list[str]:
    """The texts of the stretches of speech."""
    listener, texts = model.listen(["en"], live=LiveOptions(policy=policy)), defaultdict[int, str](str)  # type: ignore[arg-type]
    events = [
        event
        for begin in range(0, len(sound), SAMPLE_RATE // 2)
        for event in listener.hear(sound[begin : begin + SAMPLE_RATE // 2])
    ]
    for event in [*events, *listener.finish()]:
        if isinstance(event, LiveText):
            texts[event.segment] += event.committed
    return list(texts.values())


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12, help="sounds of each drawn kind")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, rows = sprachbund.load(engine="native"), []
    for kind, each in sounds(options.count, options.seed).items():
        recorded = [model.translate(sound, to="en", sample_rate=SAMPLE_RATE) for sound in each]
        by_way = {"as a recording": [segment.text for one in recorded for segment in one.segments]}
        of_recordings = sum(len(one.segments) + len(one.dropped) for one in recorded)
        for policy in POLICIES:
            by_way[policy] = [text for sound in each for text in live(model, sound, policy)]
        for way, texts in by_way.items():
            rows.append(
                {
                    "sound": kind,
                    "seconds": round(sum(map(len, each)) / SAMPLE_RATE),
                    "written": way,
                    "stretches": of_recordings if way == "as a recording" else len(texts),
                    "with text": sum(bool(text.strip()) for text in texts),
                    "words": sum(len(text.split()) for text in texts),
                }
            )
            print(rows[-1], flush=True)
    keep(
        options.out,
        {"model": "bundled", "engine": "native", "seed": options.seed, "rows": rows},
    )


if __name__ == "__main__":
    main()

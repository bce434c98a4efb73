"""Made logs of live translation, with times on the grid of 16 kHz samples."""

import json
import random
from pathlib import Path

from sprachbund.evaluation.emissions import Emission, EmissionLog, ReferenceSegment, Shown
from sprachbund.text.languages import join_units

WORDS = [
    "wir",
    "beginnen",
    "heute",
    "mit",
    "der",
    "Sprache,",
    "die",
    "alle",
    "verstehen.",
    "Und",
    "dann",
    "weiter",
]
CHARACTERS = list("今天我们从大家都懂的语言开始，然后继续。")


def made_log(
    rng: random.Random, target: str = "de", talk: str = "t", duration_s: float = 30.0
) -> EmissionLog:
    """Several words at a time, some after the end, wall times that fall behind and catch up."""
    vocabulary = WORDS if target != "zh" else CHARACTERS
    emissions, audio_s, wall_s = [], 0.0, 0.0
    for _ in range(rng.randint(1, 25)):
        audio_s = min(audio_s + rng.randint(0, 40_000) / 16_000, duration_s + 1)
        wall_s = max(wall_s, audio_s) + rng.randint(0, 20_000) / 16_000
        units = [rng.choice(vocabulary) for _ in range(rng.randint(1, 4))]
        if not emissions:
            units.insert(0, vocabulary[0])  # a word, no mark: OmniSTEval loses marks before the first word
        emissions.append(Emission(text=join_units(units, target), audio_s=audio_s, wall_s=wall_s))
    return EmissionLog(talk=talk, target=target, duration_s=duration_s, emissions=tuple(emissions))


def made_references(
    rng: random.Random, target: str = "de", talk: str = "t", duration_s: float = 30.0, num: int = 5
) -> list[ReferenceSegment]:
    """Segments with pauses between them, the last to the end."""
    vocabulary = WORDS if target != "zh" else CHARACTERS
    length = duration_s / num
    segments = []
    for n in range(num):
        units = [rng.choice(vocabulary) for _ in range(rng.randint(1, 12))]
        start_s = n * length + (0.25 if n else 0.0)
        text = join_units(units, target)
        segments.append(
            ReferenceSegment(talk=talk, target=target, start_s=start_s, end_s=(n + 1) * length, text=text)
        )
    return segments


def log_of(words: str, times_s: list[float], duration_s: float, **values) -> EmissionLog:
    """A log with one word at each time, where computation took nothing."""
    emissions = tuple(
        Emission(text=word, audio_s=t, wall_s=t) for word, t in zip(words.split(), times_s, strict=True)
    )
    given = {"talk": "t", "target": "de", **values}
    return EmissionLog(duration_s=duration_s, emissions=emissions, **given)


def shown(*texts: str) -> tuple[Shown, ...]:
    return tuple(Shown(text=text, audio_s=float(n)) for n, text in enumerate(texts))


def write_lines(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path

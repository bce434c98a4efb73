"""Made texts: a system whose every fault is known."""

import random
from collections.abc import Sequence

from sprachbund.evaluation.lines import DecodingEvidence, Line

WORDS = [
    f"{start}{end}" for start in ("ba", "de", "fi", "go", "lu", "ma") for end in ("", "n", "ra", "ste", "ß")
]


def made_texts(count: int, wrong: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """References, and the same with a share of words replaced, some left out and some lines empty."""
    words = random.Random(7)
    references = [" ".join(words.choice(WORDS) for _ in range(words.randint(2, 12))) for _ in range(count)]
    rng = random.Random(seed)
    hypotheses = []
    for reference in references:
        kept = [
            rng.choice(WORDS) if rng.random() < wrong else w for w in reference.split() if rng.random() > 0.02
        ]
        hypotheses.append(" ".join(kept) if rng.random() > 0.01 else "")
    return references, hypotheses


def line(hypothesis: str, reference: str, **values) -> Line:
    given = {"id": "1", "source": "en", "target": "de", "evidence": DecodingEvidence(), **values}
    return Line(hypothesis=hypothesis, reference=reference, **given)


def made_lines(
    count: int, wrong: float, seed: int = 0, pairs: Sequence[tuple[str, str]] = (("en", "de"),)
) -> list[Line]:
    references, hypotheses = made_texts(count * len(pairs), wrong, seed)
    return [
        line(
            hypotheses[place * count + n],
            references[place * count + n],
            id=f"{source}-{n}",
            source=source,
            target=target,
            corpus=f"corpus-{n % 2}",
            kind=f"kind-{n % 3}",
            speaker=f"speaker-{n % 4}",
            duration_s=1.0 + n % 5,
        )
        for place, (source, target) in enumerate(pairs)
        for n in range(count)
    ]

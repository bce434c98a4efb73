"""Identifiers of the language of a text, on sentences of open talk, and on the phrasebook's short and longer texts.

`lingua` is not a dependency: `pip install lingua-language-detector` before.
Run: python -m benchmarks.identify --out benchmarks/identify.json
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from benchmarks.rows import keep

from sprachbund.corpora.phrasebook.draw import draw, render
from sprachbund.corpora.phrasebook.sentences import LANGUAGES
from sprachbund.text.identify import LEAST_PROBABILITY, LanguageIdentifier

SHORT_WORDS = 3
Texts = list[tuple[str, str]]
Identify = Callable[[str], tuple[str, float]]


def drawn(count: int) -> dict[str, Texts]:
    """Texts by set, each with its language: sentences of open talk, short texts and longer ones of the phrasebook."""
    talk = files("sprachbund.corpora").joinpath("open_talk.tsv").read_text(encoding="utf-8")
    sentences = [
        (language, text)
        for row in csv.DictReader(talk.splitlines(), delimiter="\t")
        for language, text in row.items()
        if language != "part"
    ]
    rng = random.Random(1)
    said = sorted({(tag, render(draw(rng), tag, rng)) for tag in LANGUAGES for _ in range(4 * count)})
    rng.shuffle(said)
    short: Texts = []
    longer: Texts = []
    for language in LANGUAGES:
        own = [(tag, text) for tag, text in said if tag == language]
        short += [pair for pair in own if len(pair[1].split()) <= SHORT_WORDS][:count]
        longer += [pair for pair in own if len(pair[1].split()) > SHORT_WORDS][:count]
    return {"open talk": sentences, "phrasebook, to 3 words": short, "phrasebook, longer": longer}


def identifier(name: str) -> Identify:
    """The likeliest of the phrasebook's languages for a text, and its probability."""
    if name == "py3langid":
        ours = LanguageIdentifier(LANGUAGES)

        def by_py3langid(text: str) -> tuple[str, float]:
            probabilities = ours.identify(text).probabilities
            language = max(probabilities, key=lambda tag: probabilities[tag])
            return language, probabilities[language]

        return by_py3langid
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [IsoCode639_1.from_str(tag.upper()) for tag in LANGUAGES]
    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
    detector = (builder.with_low_accuracy_mode() if name == "lingua, low accuracy" else builder).build()

    def by_lingua(text: str) -> tuple[str, float]:
        best = detector.compute_language_confidence_values(text)[0]
        return best.language.iso_code_639_1.name.lower(), best.value

    return by_lingua


def measure(name: str, texts: dict[str, Texts]) -> dict[str, object]:
    """One row of the table."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    identify = identifier(name)
    row: dict[str, object] = {"identifier": f"{name} {version(PACKAGES[name])}"}
    unsure = wrong = 0
    for title, pairs in texts.items():
        answers = [(tag, *identify(text)) for tag, text in pairs]
        row[title] = f"{sum(tag == answer for tag, answer, _ in answers)} of {len(pairs)}"
        unsure += sum(probability < LEAST_PROBABILITY for _, _, probability in answers)
        wrong += sum(tag != answer and p >= LEAST_PROBABILITY for tag, answer, p in answers)
    row[f"below {LEAST_PROBABILITY}"] = unsure
    row[f"wrong from {LEAST_PROBABILITY} on"] = wrong
    used_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    return {**row, "memory MiB": round(used_mib)}


PACKAGES = {
    "py3langid": "py3langid",
    "lingua": "lingua-language-detector",
    "lingua, low accuracy": "lingua-language-detector",
}


def main() -> None:
    """Measure each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--count", type=int, default=100, help="texts of the phrasebook per language and length"
    )
    parser.add_argument("--only", choices=PACKAGES, help="this one, and print its row as JSON")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/identify.json"))
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, drawn(given.count))))
        return
    rows = []
    for name in PACKAGES:
        command = [sys.executable, "-m", "benchmarks.identify", "--only", name, "--count", str(given.count)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    keep(given.out, {"rows": rows})


if __name__ == "__main__":
    main()

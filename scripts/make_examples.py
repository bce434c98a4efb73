"""Joins recordings that no model of ours was trained on into the files of examples/recordings.

Run after `sprachbund data make telephone corpora/telephone`: `.venv/bin/python scripts/make_examples.py`.
"""

import random
from pathlib import Path

import av
import numpy as np
import soundfile

from sprachbund.data.manifest import Manifest

ROOT = Path(__file__).parents[1]
RATE = 16_000
PAUSE_S = 0.9
# One container each, because people come with all of them.
FILES = {"en": "wav", "es": "flac", "fr": "mp3", "it": "opus", "ru": "m4a"}
SENTENCES = {"known": 2, "composed": 3}
WORDS = {"known": (4, 12), "composed": (2, 9)}


def choose(language: str, rng: random.Random) -> list[np.ndarray]:
    """Held-out recordings of a language, drawn at random, none chosen by how well it is translated."""
    sounds = []
    for part, count in SENTENCES.items():
        manifest = Manifest(ROOT / "corpora" / "telephone" / part)
        least, most = WORDS[part]
        fitting = [
            i
            for i, utterance in enumerate(manifest)
            if utterance.language == language and least <= len(utterance.text.split()) <= most
        ]
        for i in rng.sample(fitting, count):
            print(f"  {part}: {manifest[i].text}")
            sounds.append(manifest.samples(i))
    return sounds


def write(path: Path, samples: np.ndarray) -> None:
    """Write samples in the container that the name asks for."""
    if path.suffix == ".opus":
        soundfile.write(path, samples, RATE, format="OGG", subtype="OPUS")
    elif path.suffix == ".m4a":
        _write_aac(path, samples)
    else:
        soundfile.write(path, samples, RATE)


def _write_aac(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def main() -> None:
    """Write one file for each language of the recordings."""
    folder = ROOT / "examples" / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    pause = np.zeros(int(PAUSE_S * RATE), np.float32)
    for language, suffix in FILES.items():
        print(language)
        parts = [
            part
            for sound in choose(language, random.Random(f"examples/{language}"))
            for part in (sound, pause)
        ]
        write(folder / f"{language}.{suffix}", np.concatenate([pause, *parts]))


if __name__ == "__main__":
    main()

"""One program with OpenAI's client of a year ago and with today's: both get what the library gives."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import soxr

from sprachbund.api import Model
from sprachbund.audio.load import load
from sprachbund.decoding.formats import render
from sprachbund.decoding.options import DecodingOptions
from sprachbund.serving.settings import Settings
from tests.serving.support import Running, pcm, serving

YEAR_AGO = "2.8.0"
PYTHONS = {
    YEAR_AGO: Path(__file__).parents[2] / "build" / f"openai-{YEAR_AGO}" / "bin" / "python",
    openai.__version__: Path(sys.executable),
}
PROGRAM = Path(__file__).with_name("openai_program.py")


@pytest.fixture(scope="module")
def aliased(bundled: Model) -> Iterator[Running]:
    with serving(Settings(port=0, aliases=("whisper-1=bundled",)), loader=lambda name: bundled) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_a_program_of_openais_client_gets_the_texts_of_the_library(
    version: str, aliased: Running, bundled: Model, clip: Path, tmp_path: Path
) -> None:
    if not PYTHONS[version].exists():
        pytest.skip(f"no openai {version} here; scripts/older_client.sh installs it")
    samples = tmp_path / "samples"
    samples.write_bytes(pcm(soxr.resample(load(clip), 16_000, 24_000).clip(-1, 1)))
    # -I: neither this project nor its packages are on the older client's path.
    command = [PYTHONS[version], "-I", PROGRAM, aliased.url, clip, samples]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    got: dict[str, Any] = json.loads(ran.stdout)
    expected = bundled.translate(clip, to=["en", "transcribe"])
    spanish = expected["transcribe"]
    spoken = bundled.transcribe(clip, source="es", options=DecodingOptions(word_timestamps=True))
    assert got.pop("version") == version
    assert got.pop("realtime").split() == spanish.text.split()
    assert got == {
        "transcription": spanish.text,
        "translation": expected["en"].text,
        "srt": render(spanish, "srt"),
        "words": [word.text for segment in spoken.segments for word in segment.words],
        "stream": spanish.text,
        "done": spanish.text,
        "tokens": spoken.text,  # words do not run together where segments meet
        "refused": "model_not_found",
        "models": ["bundled", "whisper-1"],
    }

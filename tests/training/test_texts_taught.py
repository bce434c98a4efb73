"""What is said of transcripts that CTC cannot align."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.training.data_checks import length_warnings


def test_transcripts_beyond_ctc_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    """Half a second is seven frames; equal neighbours need a blank between them."""
    with ManifestWriter(tmp_path) as writer:
        for name, text in (("fits", "abcdefg"), ("blanks", "aabbcc"), ("long", "abcdefgh"), ("mute", "")):
            said = {"text": text, "language": "en", "speaker": "", "utterance_id": name}
            writer.add(np.zeros(8000, np.float32), **said)  # type: ignore[arg-type]
    corpus: Any = SimpleNamespace(
        manifests=[Manifest(tmp_path)],
        examples=SimpleNamespace(transcript=lambda text: [ord(c) for c in text]),
    )
    (line,) = length_warnings(corpus, 0.08)
    assert line.startswith(
        "2 of 3 transcripts are longer than CTC can align in frames of 80 ms (the first is blanks, 9"
    )
    assert length_warnings(corpus, 0.04) == []

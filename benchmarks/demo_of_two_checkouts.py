"""The subtitles of the demo by two checkouts with the model of the first: how many files are the same to the byte.

Those that are not are compared again with the lines of each cue joined, and once more without times and cues. The
engine is torch, so that no extension is needed and no trial decides.
Run: python -m benchmarks.demo_of_two_checkouts BEFORE NOW
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.rows import keep

HERE = Path(__file__).parents[1]
RECORDINGS = HERE / "examples" / "recordings"
MODEL = Path("src/sprachbund/models/assets/bundled")
SAME = {
    "bytes": lambda text: text,
    "words and times of each cue": lambda text: [_times_and_words(cue) for cue in _cues(text)],
    "words": lambda text: " ".join(_times_and_words(cue)[1] for cue in _cues(text)),
}
"""What is the same in two files, the strictest first."""


def _cues(text: str) -> list[str]:
    return text.strip().split("\n\n")


def _times_and_words(cue: str) -> tuple[str, str]:
    _, times, *lines = cue.splitlines()
    return times, " ".join(lines)


def subtitles(checkout: Path, model: Path, out: Path) -> dict[str, str]:
    """Name of each file of the demo to its content."""
    files = sorted(map(str, RECORDINGS.iterdir()))
    options = ["--model", str(model), "--to", "en,es,fr,it,de,ru", "--format", "srt", "--engine", "torch"]
    subprocess.run(
        [sys.executable, "-m", "sprachbund", "translate", *files, *options, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        check=True,
        capture_output=True,
    )
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(out.glob("*.srt"))}


def main() -> None:
    """Translate by both, compare, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "docs" / "results" / "house_demo.json")
    given = parser.parse_args()
    model = given.before / MODEL
    with tempfile.TemporaryDirectory() as folder:
        before, now = (
            subtitles(checkout.resolve(), model.resolve(), Path(folder) / side)
            for side, checkout in (("before", given.before), ("now", given.now))
        )
    if before.keys() != now.keys():
        raise SystemExit(f"files differ: {sorted(before.keys() ^ now.keys())}")
    counts = Counter(
        next((what for what, of in SAME.items() if of(before[name]) == of(now[name])), "nothing")
        for name in before
    )
    rows = [{"the same in both": what, "files": counts[what]} for what in (*SAME, "nothing")]
    keep(
        given.out,
        {"files": len(before), "cues": sum(len(_cues(text)) for text in before.values()), "rows": rows},
    )


if __name__ == "__main__":
    main()

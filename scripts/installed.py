"""Checks an installed wheel: the native engine is in it, and the demo's recordings become subtitles in six languages.

Run it with the interpreter that has the wheel, outside the checkout: `python installed.py RECORDINGS`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import sprachbund
from sprachbund.engines.extension import native


def main() -> None:
    """Check it; any failure is an error."""
    recordings = sorted(map(str, Path(sys.argv[1]).iterdir()))
    print(sys.version, Path(sprachbund.__file__).parent, *native().instruction_sets(), sep="\n")
    with tempfile.TemporaryDirectory() as directory:
        options = ["--to", "en,es,fr,it,de,ru", "--table", "--format", "srt", "--out", directory]
        command = [sys.executable, "-m", "sprachbund", "translate", *recordings, *options]
        subprocess.run(command, check=True, cwd=directory)
        subtitles = list(Path(directory).glob("*.srt"))
        print(len(subtitles), "files of subtitles")
        assert len(subtitles) == 6 * len(recordings)


if __name__ == "__main__":
    main()

"""Runs every verb in a process of its own under strace, and writes down what it did to the network and the disk.

    .venv/bin/python scripts/watch_network.py [VERB ...]

The tests watch the verbs in one process (tests/stories/test_network.py); here each has its own, and is watched for
longer. It ends with code 1 if there was any host, or any file in a directory that was not given.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "results" / "reliability" / "network.json"
LINGER_S = 12.0
"""How long a process stays after its work: telemetry is sent late, onnxruntime's 9 s after it was loaded."""


def main() -> int:
    """Watch the verbs named, or all; write the table if all were watched."""
    sys.path.insert(0, str(ROOT))
    from tests.stories.network import (
        VERBS,
        Seen,
        homely,
        prepare,
        upload,
        watched,
        watched_service,
        why_not,
    )

    from sprachbund.util.files import write_json

    if why_not():
        print(why_not(), file=sys.stderr)
        return 2
    wanted = sys.argv[1:] or [*VERBS, "serve"]
    table: dict[str, Any] = {}
    with TemporaryDirectory(prefix="watch-") as folder:
        directory = Path(folder) / "here"
        prepare(directory)
        for verb in wanted:
            if verb == "serve":
                records: list[Seen] = []
                with watched_service(directory, records, linger_s=LINGER_S) as address:
                    upload(address, directory / "talk.wav")
                seen = records[0]
            else:
                seen = watched(directory, VERBS[verb], linger_s=LINGER_S, timeout_s=900)
            table[verb] = {**asdict(seen), "in_home": homely(directory)}
            print(f"{verb}: {table[verb]}", flush=True)
    if not sys.argv[1:]:
        write_json(OUT, {"linger_s": LINGER_S, "verbs": table})
    bad = [v for v, seen in table.items() if any(seen[k] for k in ("hosts", "names", "written", "in_home"))]
    print(
        f"{len(table)} verbs watched; with hosts or files that nobody asked for: {', '.join(bad) or 'none'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""The two models of the package on one talk: how far behind, how good, and what a minute of speech costs.

The talk is that of `live_policies.py`, on its ideal clock. All settings take turns, round by round, on one thread; the
time is that of the process. Run, after `sprachbund data make telephone`:
python -m benchmarks.live_streaming --data corpora/telephone/composed --out benchmarks/live_streaming.json
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.live_policies import ROOT, compose, references_of, row_of, run
from benchmarks.rows import show, write

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.evaluation.latency import score_talk
from sprachbund.util.provenance import commit

SETTINGS: list[tuple[str, str, dict[str, Any]]] = [
    ("bundled", "local-agreement", {"step_s": 0.5}),
    ("bundled", "local-agreement", {"step_s": 1.0}),
    ("bundled", "alignatt", {"step_s": 0.5, "border_s": 0.4}),
    ("bundled", "alignatt", {"step_s": 0.5, "border_s": 1.6}),
    ("bundled", "span", {}),
    *[("bundled-streaming", "frames", {"right_context": frames}) for frames in (27, 13, 6)],
]
"""Model, policy and its options."""
_COLUMNS = ("StreamLAAL_s", "LongYAAL_s", "chrF", "BLEU", "erased_per_minute")


def main() -> None:
    """Run all settings in turn, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "corpora" / "telephone" / "composed")
    parser.add_argument("--targets", default="de,en")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    targets = options.targets.split(",")
    models = {name: sprachbund.load(name) for name in dict.fromkeys(name for name, _, _ in SETTINGS)}
    samples, spans = compose(options.data, options.minutes, options.seed)
    references = {target: references_of(spans, target) for target in targets}
    minutes = len(samples) / SAMPLE_RATE / 60
    logs: list[Any] = [None] * len(SETTINGS)
    seconds = np.zeros((options.rounds, len(SETTINGS)))
    for current in range(options.rounds):
        for number, (name, policy, setting) in enumerate(SETTINGS):
            began = time.process_time()
            logs[number] = run(models[name], samples, targets, policy, setting, computing=False)
            seconds[current, number] = (time.process_time() - began) / minutes
    rows = []
    for number, (name, policy, setting) in enumerate(SETTINGS):
        talks = [score_talk(log, references[log.target]) for log in logs[number]]
        scores = row_of(policy, setting, talks, talks)
        own = seconds[:, number].tolist()
        rows.append(
            {"model": name, "policy": policy, "setting": scores["setting"]}
            | {column: scores[column] for column in _COLUMNS}
            | {"computing_s_per_minute": median(own), "spread": max(own) - min(own)}
        )
    what = {"targets": targets, "minutes": round(minutes, 2), "utterances": len(spans), "threads": 1}
    what |= {"rounds": options.rounds, "data": options.data.name, "commit": commit()}
    if options.out:
        write(options.out, {**what, "rows": rows})
    show(rows)


if __name__ == "__main__":
    main()

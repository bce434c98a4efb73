"""Flicker of live text, and what holding words back costs: how often a word is taken back, and when it stands for good.

The talk is that of `live_policies.py`, on a simulated clock without computation, so the numbers are the same on every
machine. Run, after `sprachbund data prepare`:
python -m benchmarks.live_flicker --data corpora/telephone/composed --out benchmarks/live_flicker.json
"""

import argparse
import hashlib
import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.live_policies import ROOT, TALK, compose, references_of, run
from benchmarks.rows import write

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.evaluation.emissions import Emission, EmissionLog
from sprachbund.evaluation.latency import score_talk
from sprachbund.text.languages import join_units, text_units

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("local-agreement", {}),
    ("local-agreement", {"mask_words": 1}),
    ("local-agreement", {"mask_words": 2}),
    ("local-agreement", {"agreement": 3}),
    ("local-agreement", {"agreement": 3, "mask_words": 2}),
    ("local-agreement", {"agreement": 3, "mask_words": 2, "steady": 2}),
    ("local-agreement", {"agreement": 3, "mask_words": 100, "steady": 2}),
    ("alignatt", {}),
    ("alignatt", {"mask_words": 2}),
    ("alignatt", {"mask_words": 2, "steady": 2}),
    ("retranslation", {}),
    ("retranslation", {"mask_words": 2}),
    ("retranslation", {"mask_words": 2, "steady": 2}),
    ("retranslation", {"mask_words": 100, "steady": 2}),
    ("retranslation", {"mask_words": 100, "steady": 3}),
]


def settled(log: EmissionLog) -> EmissionLog:
    """The log of a reader who takes a word for written when it stands on the screen and is not changed again."""
    screens = [(text_units(shown.text, log.target), shown.audio_s) for shown in log.shown]
    final = screens[-1][0] if screens else []
    kept = [
        sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(units, final, strict=False)))
        for units, _ in screens
    ]
    for index in reversed(range(len(kept) - 1)):
        kept[index] = min(kept[index], kept[index + 1])
    emissions, num = [], 0
    for (_, audio_s), until in zip(screens, kept, strict=True):
        if until > num:
            text = join_units(final[num:until], log.target)
            emissions.append(Emission(text=text, audio_s=audio_s, wall_s=audio_s))
            num = until
    return log.model_copy(update={"emissions": tuple(emissions)})


def main() -> None:
    """Run all settings, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "corpora" / "telephone" / "composed")
    parser.add_argument("--targets", default="de,en")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, targets = sprachbund.load(options.model), options.targets.split(",")
    samples, spans = compose(options.data, options.minutes, options.seed)
    references = {target: references_of(spans, target) for target in targets}
    rows = []
    for policy, setting in SETTINGS:
        live = {"step_s": options.step, **setting}
        logs = run(model, samples, targets, policy, live, computing=False)
        talks = [score_talk(log, references[log.target]) for log in logs]
        seen = [score_talk(settled(log), references[log.target]) for log in logs]
        rows.append(
            {
                "policy": policy,
                "setting": ", ".join(f"{name} {value}" for name, value in setting.items()) or "none",
                "erased_per_minute": float(np.mean([talk.erased_per_minute or 0.0 for talk in talks])),
                "flicker": float(np.mean([talk.flicker or 0.0 for talk in talks])),
                "committed_s": float(np.mean([talk.scores["ideal"]["StreamLAAL"] for talk in talks])),
                "stands_s": float(np.mean([talk.scores["ideal"]["StreamLAAL"] for talk in seen])),
                "chrF": float(np.mean([talk.quality["chrF"] for talk in talks])),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        manifest = {
            "talk": TALK,
            "model": options.model,
            "data": options.data.name,
            "audio_sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
            "minutes": round(len(samples) / SAMPLE_RATE / 60, 2),
            "targets": targets,
            "step_s": options.step,
            "seed": options.seed,
            "rows": rows,
        }
        write(options.out, manifest)


if __name__ == "__main__":
    main()

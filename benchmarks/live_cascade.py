"""Policies of a live cascade on one talk: delay, flicker and quality of the translation, and what drafts save.

The talk is composed of recordings in one language with pauses between them, as that of `live_policies.py`, and played
on a simulated clock without computation, so all numbers but the seconds are the same on every machine. Every setting
of the cascade is played with drafts and without, whose texts have to be equal. Beside it stands its recogniser as a
direct translator, if it is one. Run, with a translator's directory:
python -m benchmarks.live_cascade --then marian-en-de --data corpora/telephone/dev --out benchmarks/live_cascade.json
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.live_flicker import settled
from benchmarks.live_policies import TALK, compose, references_of
from benchmarks.rows import write

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.options import AUTO, NONE, DecodingOptions
from sprachbund.evaluation.emissions import EmissionLog
from sprachbund.evaluation.latency import score_talk
from sprachbund.models.base import Family
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.live import SimulatedClock, emission_logs, in_blocks, play
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.writing import policies_of
from sprachbund.util.provenance import commit

DIRECT, CASCADE = "direct", "cascade"
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("retranslation", {}),
    ("local-agreement", {}),
    ("local-agreement", {"agreement": 3}),
    *(("alignatt", {"border_words": words}) for words in (1, 2, 3, 4)),
    ("span", {}),
]
DIRECT_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("retranslation", {}),
    ("local-agreement", {}),
    ("alignatt", {}),
]


def played(
    family: Family, samples: np.ndarray, source: str, target: str, live: LiveOptions, draft: str
) -> tuple[EmissionLog, LiveEngine, float]:
    """The log of a pass through the talk, its engine, and the processor's seconds."""
    engine = LiveEngine(family, DecodingOptions(draft=draft))
    session = engine.open([target], source, live)
    began = time.process_time()
    moments = list(play(engine, session, in_blocks(samples), SimulatedClock()))
    seconds = time.process_time() - began
    [log] = emission_logs(moments, session.targets, talk=TALK, duration_s=len(samples) / SAMPLE_RATE)
    return log, engine, seconds


def main() -> None:
    """Run all settings, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--then", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--what", default="", help="of the translator, for the manifest")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cascade = sprachbund.load(options.model, then=options.then, engine=options.engine).family
    direct = sprachbund.load(options.model, engine=options.engine).family
    parts = [compose(data, options.minutes, options.seed, language=options.source) for data in options.data]
    samples = np.concatenate([own for own, _ in parts])
    spans, before_s = [], 0.0
    for own, marks in parts:
        spans += [(begin + before_s, end + before_s, utterance) for begin, end, utterance in marks]
        before_s += len(own) / SAMPLE_RATE
    references = references_of(spans, options.target)
    rows = []
    asked = [(CASCADE, cascade, *one) for one in SETTINGS if one[0] in policies_of(cascade)]
    if (options.source, options.target) in direct.pairs():
        asked += [(DIRECT, direct, *one) for one in DIRECT_SETTINGS if one[0] in policies_of(direct)]
    for kind, family, policy, setting in asked:
        step = {} if policy == "span" else {"step_s": options.step}  # spans are decoded once
        live = LiveOptions(policy=policy, **step, **setting)  # type: ignore[arg-type]
        plain, _, plain_s = played(family, samples, options.source, options.target, live, NONE)
        log, engine, drafted_s = played(family, samples, options.source, options.target, live, AUTO)
        assert log.emissions == plain.emissions, "a draft changed the text"
        talk, seen = score_talk(log, references), score_talk(settled(log), references)
        drafts = engine.cascade_report()
        checked = sum(report.checked for report in drafts)
        rows.append(
            {
                "model": kind,
                "policy": policy,
                "setting": ", ".join(f"{name} {value}" for name, value in setting.items()) or "none",
                "erased_per_minute": talk.erased_per_minute or 0.0,
                "flicker": talk.flicker or 0.0,
                "committed_s": talk.scores["ideal"]["StreamLAAL"],
                "stands_s": seen.scores["ideal"]["StreamLAAL"],
                "chrF": talk.quality["chrF"],
                "BLEU": talk.quality["BLEU"],
                "draft_tokens": checked,
                "accepted": sum(report.accepted for report in drafts) / checked if checked else None,
                "seconds": plain_s,
                "seconds_with_drafts": drafted_s,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        manifest = {
            "talk": TALK,
            "commit": commit(),
            "model": options.model,
            "then": options.what or Path(options.then).name,
            "engine": options.engine,
            "data": [data.name for data in options.data],
            "audio_sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
            "minutes": round(len(samples) / SAMPLE_RATE / 60, 2),
            "utterances": len(spans),
            "source": options.source,
            "target": options.target,
            "step_s": options.step,
            "seed": options.seed,
            "rows": rows,
        }
        write(options.out, manifest)


if __name__ == "__main__":
    main()

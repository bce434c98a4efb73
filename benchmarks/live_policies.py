"""Live policies on a ten-minute talk of human recordings: what each setting costs in delay, and in quality.

The talk is composed of utterances with pauses between them and played on a simulated clock, once with computation
counted and once without, so the ideal numbers are the same on every machine. Beside the package's policies stand the
published method of SimulStreaming on the same model (`simulstreaming.py`) and OmniSTEval's own scores. Run, after
`sprachbund data make telephone`:
python -m benchmarks.live_policies --data corpora/telephone/composed --out benchmarks/live_policies.json
"""

import argparse
import hashlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from benchmarks.rows import write
from benchmarks.simulstreaming import SimulStreaming, write_talk
from benchmarks.with_omnisteval import beside_ours
from rich.console import Console
from rich.table import Table

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest
from sprachbund.evaluation.emissions import EmissionLog, ReferenceSegment
from sprachbund.evaluation.latency import TalkLatency, score_talk
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.live import SimulatedClock, emission_logs, in_blocks, play
from sprachbund.streaming.options import LiveOptions
from sprachbund.util.plotting import ACCENT, INK, MUTED, new_figure, plain_axes
from sprachbund.util.provenance import commit, versions

ROOT = Path(__file__).parents[1]
TALK = "talk"
SIMULSTREAMING = "SimulStreaming"
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "local-agreement": [
        {"step_s": 0.5},
        {"step_s": 1.0},
        {"step_s": 2.0},
        {"step_s": 0.5, "agreement": 3},
        {"step_s": 1.0, "agreement": 3},
    ],
    "alignatt": [{"step_s": 0.5, "border_s": border_s} for border_s in (0.2, 0.4, 0.8, 1.6)],
    "wait-k": [{"step_s": 0.5, "wait_k": k} for k in (3, 5, 8, 12)],
    "retranslation": [{"step_s": 1.0, "mask_words": words} for words in (0, 2, 4)],
    "span": [{}],
    SIMULSTREAMING: [
        {"chunk_s": 0.5, "border_s": 0.2},
        {"chunk_s": 0.5, "border_s": 0.5},
        {"chunk_s": 0.5, "border_s": 1.0},
        {"chunk_s": 1.2, "border_s": 0.5},
        {"chunk_s": 0.5, "border_s": 0.5, "median_width": 1},
    ],
}
"""Of each policy. The defaults of SimulStreaming's program are 1.2, 0.5 and 7."""
_IDLE_CORES = 0.1


def compose(
    data: Path, minutes: float, seed: int, *, language: str | None = None
) -> tuple[np.ndarray, list[tuple[float, float, Any]]]:
    """Utterances of two seconds and more, drawn without replacement, with pauses of 0.3 to 1.5 s between them.

    They are all in one `language`, if it is given.
    """
    manifest, rng = Manifest(data), np.random.default_rng(seed)
    pieces, spans, num_samples = [], [], 0
    for index in rng.permutation(len(manifest)):
        utterance = manifest[int(index)]
        if utterance.duration_s < 2.0 or language not in (None, utterance.language):
            continue
        pause = np.zeros(int(rng.uniform(0.3, 1.5) * SAMPLE_RATE), np.float32)
        samples = manifest.samples(int(index))
        begin_s = (num_samples + len(pause)) / SAMPLE_RATE
        pieces += [pause, samples]
        num_samples += len(pause) + len(samples)
        spans.append((begin_s, num_samples / SAMPLE_RATE, utterance))
        if num_samples >= minutes * 60 * SAMPLE_RATE:
            break
    return np.concatenate(pieces), spans


def references_of(spans: list[tuple[float, float, Any]], target: str) -> list[ReferenceSegment]:
    """What each utterance should read in a language."""
    return [
        ReferenceSegment(
            talk=TALK, target=target, start_s=start_s, end_s=end_s, text=utterance.text_in(target)
        )
        for start_s, end_s, utterance in spans
    ]


def run(
    model: Any,
    samples: np.ndarray,
    targets: list[str],
    policy: str,
    setting: dict[str, Any],
    *,
    computing: bool,
) -> list[EmissionLog]:
    """The logs of one pass through the talk."""
    if policy == SIMULSTREAMING:  # one target at a time, as its program does
        return [
            write_talk(
                model.family,
                samples,
                target,
                SimulStreaming(**setting),
                talk=TALK,
                clock=SimulatedClock(computing=computing),
            )
            for target in targets
        ]
    options = LiveOptions(policy=policy, **setting)  # type: ignore[arg-type]
    engine = LiveEngine(model.family)
    session = engine.open(targets, options=options)
    moments = list(play(engine, session, in_blocks(samples), SimulatedClock(computing=computing)))
    return emission_logs(moments, session.targets, talk=TALK, duration_s=len(samples) / SAMPLE_RATE)


def row_of(
    policy: str, setting: dict[str, Any], ideal: list[TalkLatency], real: list[TalkLatency]
) -> dict[str, Any]:
    """The means over the targets."""

    def mean(talks: list[TalkLatency], clock: str, name: str) -> float:
        return float(np.mean([talk.scores[clock][name] for talk in talks]))

    return {
        "policy": policy,
        "setting": ", ".join(f"{name} {value}" for name, value in setting.items()) or "none",
        "StreamLAAL_s": mean(ideal, "ideal", "StreamLAAL"),
        "LongYAAL_s": mean(ideal, "ideal", "LongYAAL"),
        "StreamLAAL_with_computation_s": mean(real, "computation", "StreamLAAL"),
        "chrF": float(np.mean([talk.quality["chrF"] for talk in ideal])),
        "BLEU": float(np.mean([talk.quality["BLEU"] for talk in ideal])),
        "flicker": float(np.mean([talk.flicker or 0.0 for talk in ideal])),
        "erased_per_minute": float(np.mean([talk.erased_per_minute or 0.0 for talk in ideal])),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Quality against delay, a line for each policy."""
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    colours = {
        "local-agreement": ACCENT,
        "alignatt": "#b3541e",
        "wait-k": "#5b7f3a",
        "retranslation": MUTED,
        "span": INK,
        SIMULSTREAMING: "#8a3ffc",
    }
    for policy, colour in colours.items():
        points = sorted(
            (r["StreamLAAL_s"], r["chrF"])
            for r in rows
            if r["policy"] == policy and "median_width" not in r["setting"]
        )
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o", markersize=5, linewidth=1.5, color=colour, label=policy)
    axes.set_xlabel("StreamLAAL (s, ideal clock)")
    axes.set_ylabel("chrF")
    axes.legend(frameon=False, loc="lower right")
    plain_axes(axes, "both")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run all settings, print the table, write rows and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "corpora" / "telephone" / "composed")
    parser.add_argument("--targets", default="de,en")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, targets = sprachbund.load(options.model), options.targets.split(",")
    samples, spans = compose(options.data, options.minutes, options.seed)
    references = {target: references_of(spans, target) for target in targets}
    rows, others = [], psutil.cpu_percent(interval=5.0) / 100 * psutil.cpu_count()
    for policy, settings in SETTINGS.items():
        for setting in settings:
            logs = [run(model, samples, targets, policy, setting, computing=c) for c in (False, True)]
            scored = [[score_talk(log, references[log.target]) for log in one] for one in logs]
            rows.append(row_of(policy, setting, *scored) | beside_ours(logs[0], references))
            print(json.dumps(rows[-1]), flush=True)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*[f"{v:.2f}" if isinstance(v, float) else v for v in row.values()])
    Console().print(table)
    if options.out:
        manifest = {
            "threads": 1,
            "versions": versions() | {"omnisteval": version("omnisteval")},
            "commit": commit(),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "idle": others < _IDLE_CORES,
            "cores in use by other programs before": round(others, 2),
            "model": options.model,
            "data": options.data.name,
            "audio_sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
            "minutes": round(len(samples) / SAMPLE_RATE / 60, 2),
            "utterances": len(spans),
            "targets": targets,
            "seed": options.seed,
            "rows": rows,
        }
        write(options.out, manifest)
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()

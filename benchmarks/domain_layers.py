"""Which encoder layers tell whether a model understands: calibrations on the mean states of some of them.

Each calibration is that of `sprachbund calibrate`, on the same sounds and with the same folds; the threshold drops 2 %
of the right texts of unchanged sound, by networks that were fitted without the speaker. What is counted is of the
folds, too, so that layers are chosen without the test corpora.

Run: python -m benchmarks.domain_layers corpora/phrasebook/dev corpora/telephone/dev corpora/telephone/train \
    corpora/voices/train corpora/outside_400/dev
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import write
from rich.progress import track
from sklearn.metrics import roc_auc_score

import sprachbund
from sprachbund.evaluation.calibration import Observation, clear_cases, collect, held_out
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.options import CalibrationOptions
from sprachbund.models.io import content_hash, locate
from sprachbund.util.provenance import commit, data_hash

DROPPED = 0.02
CHOICES = ((8,), (4,), (4, 8), (3, 6, 8), (2, 4, 6, 8))


def of_layers(observations: Sequence[Observation], layers: Sequence[int]) -> list[Observation]:
    """The same with the states of some of their layers."""
    kept = observations[0].layers
    return [
        replace(
            one,
            state=np.concatenate([np.split(one.state, len(kept))[kept.index(n)] for n in layers]),
            layers=tuple(layers),
        )
        for one in observations
    ]


def row(observations: Sequence[Observation], layers: Sequence[int], seed: int) -> dict[str, Any]:
    """What the calibration on some layers lets pass."""
    clear = of_layers(observations, layers)
    p = held_out(clear, seed)[1]
    wrong = np.array([not one.understood for one in clear])
    plain = np.array([one.plain for one in clear])
    textless = np.array([not one.has_text for one in clear])
    at_once = np.array([one.group.endswith("two at once") for one in clear])
    threshold = np.quantile(p[~wrong & plain], 1 - DROPPED)

    def passes(which: np.ndarray) -> float:
        return round(100 * float((p[which] <= threshold).mean()), 1)

    return {
        "layers": ", ".join(map(str, layers)),
        "area_under_curve": round(float(roc_auc_score(wrong, p)), 4),
        "two at once written %": passes(at_once),
        "other sound outside written %": passes(textless & ~at_once),
        "wrong texts of speech written %": passes(wrong & ~textless),
        "right texts of varied sound dropped %": round(100 - passes(~wrong & ~plain), 1),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, nargs="+", metavar="CORPUS")
    parser.add_argument("--model", default="bundled", metavar="NAME", help="a conformer of eight layers")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("docs/results/domain_layers.json"), metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options, every = CalibrationOptions(), sorted({n for layers in CHOICES for n in layers})
    seen = clear_cases(
        collect(sprachbund.load(given.model).family, given.corpora, options, vary=True, layers=every)
    )
    rows = [row(seen, layers, options.seed) for layers in track(CHOICES)]
    write(
        given.out,
        {
            "command": f"python -m benchmarks.domain_layers {' '.join(map(str, given.corpora))} --model {given.model}",
            "model": content_hash(locate(given.model)),
            "data": {corpus_name(one): data_hash(one) for one in given.corpora},
            "texts": len(seen),
            "commit": commit(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()

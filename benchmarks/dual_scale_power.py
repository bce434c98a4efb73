"""How often recipes/research/dual_scale_memory_bound.toml reaches its aim, by the acceptance of the parasite.

The cost of rounds is that of the shape with planted acceptance (native_heads_memory_bound.json). Rounds are then played
many times: utterances of so many tokens as the texts of the phrasebook have, whose acceptance differs from utterance to
utterance and from run to run, and a search that reads a prompt before its rounds, which takes as long as a pass and a
fifth. The interval is the recipe's own, `gain_interval`, and the aim is that its lower end is 1.37 or more. The true
gain is that of many utterances and runs; an interval should hold it in 95 of 100 experiments, and begin above it, so
that an aim just there would be reached falsely, in 2.5. The spread of acceptance is assumed; before the recipe is run,
nobody knows that of trained models of this shape.

Run: python -m benchmarks.dual_scale_power
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rows import keep
from rich.progress import track

from sprachbund.research.dual_scale.report import gain_interval
from sprachbund.research.dual_scale.speed import SystemSpeed

HERE = Path(__file__).parent
AIM = 1.37
SOURCES = ("de", "en", "es", "fr", "it", "ru")
UTTERANCES, SEEDS = 30, 3
MANY_UTTERANCES, MANY_SEEDS = 1_000, 40
"""For the true gain."""
MEDIAN_TOKENS, SPREAD_OF_LENGTHS = 10, 0.75
"""Of a log-normal distribution: half of the texts have 6 to 16 tokens, one in twenty more than 31."""
BETWEEN_UTTERANCES, BETWEEN_SEEDS = 0.15, 0.02
"""Standard deviations of the acceptance."""
PROMPT, DRAFT_PROMPT = 1.2, 0.1
"""Passes that a search takes before its rounds, and those that a draft takes more."""
NOISE = 0.02
"""Of a measured time, relative."""


def round_costs() -> dict[tuple[int, int], float]:
    """Blocks of a parasite and draft tokens in a pass to the time of a round, in passes without a draft."""
    rows = json.loads((HERE / "native_heads_memory_bound.json").read_text(encoding="utf-8"))["rows"]
    costs = {}
    for row in rows:
        blocks = re.match(r"parasite, (\d) block", row["draft"])
        if blocks and row["shape"] == "recipe":
            key = int(blocks[1]), int(row["draft tokens"])
            costs[key] = row["tokens a pass"] / float(row["gain"].split()[0])
    return costs


def played(
    random: np.random.Generator,
    acceptance: float,
    draft_tokens: int,
    cost: float,
    utterances: int = UTTERANCES,
    seeds: int = SEEDS,
) -> list[tuple[SystemSpeed, SystemSpeed]]:
    """Times of all pairs and seeds, without a draft and with one."""
    compared = []
    lengths = {
        source: np.exp(random.normal(np.log(MEDIAN_TOKENS), SPREAD_OF_LENGTHS, utterances)).round().clip(1)
        for source in SOURCES
    }
    harder = {source: random.normal(0, BETWEEN_UTTERANCES, utterances) for source in SOURCES}
    for seed in range(seeds):
        own = acceptance + random.normal(0, BETWEEN_SEEDS)
        for source in SOURCES:
            tokens = lengths[source] + 1  # with its end
            probability = np.clip(own + harder[source], 0.05, 0.98)
            for target in SOURCES:
                if target == source:
                    continue
                rounds = np.zeros(utterances)
                left = tokens.copy()
                while (left > 0).any():
                    rounds += left > 0
                    accepted = random.random((draft_tokens, utterances)) < probability
                    left -= 1 + np.logical_and.accumulate(accepted).sum(0)
                noise = random.normal(1, NOISE, (2, utterances))
                times = (PROMPT + tokens, PROMPT + DRAFT_PROMPT + rounds * cost)
                base, drafted = (
                    SystemSpeed(
                        name=name,
                        seed=seed,
                        batch=1,
                        pair=f"{source}>{target}",
                        ms_per_token=(float(1000 * taken.sum() / tokens.sum()),),
                        piece_tokens=tuple(map(int, tokens)),
                        piece_s=tuple((float(second),) for second in taken),
                        draft_tokens=(0, 0),
                        predicted_gain=None,
                        changed=0,
                        rows=utterances,
                    )
                    for name, taken in zip(("base", "own"), times * noise, strict=True)
                )
                compared.append((base, drafted))
    return compared


def true_gain(blocks: int, draft_tokens: int, cost: float, acceptance: float) -> float:
    """Time per token without a draft over that with it, summed over pairs, of many utterances and runs."""
    random = np.random.default_rng((blocks, draft_tokens, round(100 * acceptance)))
    compared = played(random, acceptance, draft_tokens, cost, MANY_UTTERANCES, MANY_SEEDS)
    base, own = (sum(both[side].ms_per_token[0] for both in compared) for side in (0, 1))
    return base / own


def row_of(
    blocks: int, draft_tokens: int, cost: float, acceptance: float, experiments: int
) -> dict[str, Any]:
    """Share of experiments that reach the aim."""
    intervals = []
    for number in range(experiments):
        random = np.random.default_rng((blocks, draft_tokens, round(100 * acceptance), number))
        interval = gain_interval(played(random, acceptance, draft_tokens, cost))
        assert interval is not None
        intervals.append(interval)
    low, high = np.array(intervals).T
    true = true_gain(blocks, draft_tokens, cost, acceptance)
    return {
        "blocks": blocks,
        "draft tokens": draft_tokens,
        "cost of a round": round(cost, 2),
        "acceptance": f"{acceptance:.0%}",
        "true gain": round(true, 3),
        "half-width": round(float(np.mean(high - low)) / 2, 3),
        "true gain inside": f"{np.mean((low <= true) & (true <= high)):.0%}",
        "above the true gain": f"{np.mean(low > true):.0%}",
        "aim reached": f"{np.mean(low >= AIM):.0%}",
        "missed for certain": f"{np.mean(high < AIM):.0%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiments", type=int, default=100)
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9])
    parser.add_argument("--out", type=Path, default=HERE / "dual_scale_power.json")
    args = parser.parse_args()
    costs = {key: cost for key, cost in round_costs().items() if max(key) <= 2}
    rows = [
        row_of(*key, cost, acceptance, args.experiments)
        for key, cost in costs.items()
        for acceptance in track(args.acceptance, description=f"{key[0]} blocks, {key[1]} draft tokens")
    ]
    keep(args.out, {"aim": AIM, "experiments": args.experiments, "rows": rows})


if __name__ == "__main__":
    main()

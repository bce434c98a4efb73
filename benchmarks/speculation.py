"""Tokens per second with and without each draft, pair by pair, and what the cost model predicted of it.

Encoding is done once and not counted. Everything runs in this process, one repeat of every system after the other, so
that a slow moment of the machine hits all; the table gives medians and spreads of the ratios within a repeat. Tokens
of the lossless systems are compared with those without a draft; where they differ the run stops, but in bf16 and int8,
where near ties may fall the other way, they are counted.

Run: python -m benchmarks.speculation --corpus corpora/telephone/dev --draft parasite --draft auto --threads 2
"""

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.rows import write
from rich.console import Console
from rich.progress import track
from rich.table import Table

import sprachbund
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.engines.options import CHOICES
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target

PLAIN, ALL = "none", "all"
COARSE = ("torch-bf16", "torch-int8")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Utterances of one source language, encoded, and where they are to go."""

    memory: Memory
    targets: list[Target]
    durations_s: list[float]


@dataclass(frozen=True, kw_only=True)
class System:
    """A draft, how many draft tokens a pass, and which of them are accepted."""

    draft: str
    num_draft_tokens: int | None
    accept: str

    def __str__(self) -> str:
        if self.draft == PLAIN:
            return PLAIN
        count = f"k={self.num_draft_tokens}" if self.num_draft_tokens else "k=chosen"
        return f"{Path(self.draft).name} {count}" + (f" {self.accept}" if self.accept != "exact" else "")


def systems(args: argparse.Namespace) -> list[System]:
    """No draft, then every draft with every number of draft tokens and way of accepting."""
    counts = [None if k == 0 else k for k in args.num_draft_tokens]
    drafted = [
        System(draft=draft, num_draft_tokens=k, accept=how)
        for draft in args.draft
        for how in args.accept
        for k in counts
        if how == "exact" or k is not None
    ]
    return [System(draft=PLAIN, num_draft_tokens=None, accept="exact"), *drafted]


def works(family: Family, args: argparse.Namespace) -> list[Work]:
    """The corpus in batches of one source and one target language."""
    manifest = Manifest(args.corpus)
    by_language: dict[str, list[int]] = defaultdict(list)
    for index, language in enumerate(manifest.languages.tolist()):
        if language and manifest.durations_s[index] <= family.max_window_s:
            by_language[language].append(index)
    batches = []
    for source, target in sorted(family.pairs()):
        if args.pairs and f"{source}>{target}" not in args.pairs:
            continue
        own = by_language.get(source, [])
        chosen = [
            own[i] for i in np.unique(np.linspace(0, len(own) - 1, min(args.limit, len(own))).astype(int))
        ]
        for begin in range(0, len(chosen), args.batch):
            part = chosen[begin : begin + args.batch]
            memory = family.encode(family.features([manifest.samples(i) for i in part]))
            asked = [Target(language=target, source=source)] * len(part)
            durations_s = [float(manifest.durations_s[i]) for i in part]
            batches.append(Work(memory=memory, targets=asked, durations_s=durations_s))
    if not batches:
        raise SprachbundError(f"{args.corpus} has no speech for these pairs; name others with --pair")
    return batches


def run(
    family: Family, work: Work, options: DecodingOptions, speculation: Speculation | None
) -> tuple[list[tuple[int, ...]], float]:
    """Tokens of every row, and seconds."""
    began = time.perf_counter()
    hypotheses = search(
        family, work.memory, [[t] for t in work.targets], options, work.durations_s, speculation
    )
    return [row[0].tokens for row in hypotheses], time.perf_counter() - began


def measure(family: Family, engine: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run everything on one engine, interleaved; the first repeat warms up and is not counted."""
    wanted, todo = systems(args), works(family, args)
    kept = {
        s: (
            options := DecodingOptions(
                draft=s.draft, num_draft_tokens=s.num_draft_tokens, accept=s.accept, beam_size=args.beam
            ),
            speculation_for(family, options),
        )
        for s in wanted
    }
    seconds: dict[tuple[System, str], list[float]] = defaultdict(lambda: [0.0] * args.repeats)
    tokens: dict[str, int] = defaultdict(int)
    changed: dict[System, int] = defaultdict(int)
    for repeat in track(range(args.repeats + 1), description="repeats"):
        for work in todo:
            pair = f"{work.targets[0].source}>{work.targets[0].language}"
            plain: list[tuple[int, ...]] = []
            for system in wanted:
                rows, took_s = run(family, work, *kept[system])
                plain = plain or rows
                if repeat:
                    seconds[system, pair][repeat - 1] += took_s
                elif system.draft == PLAIN:
                    tokens[pair] += sum(len(row) + 1 for row in rows)
                if system.accept == "exact" and engine not in COARSE and rows != plain:
                    raise RuntimeError(
                        f"{system} changed the tokens of {pair}: a bug, or a tie broken by rounding"
                    )
                changed[system] += not repeat and sum(a != b for a, b in zip(rows, plain, strict=True))
    return [
        row(system, pair, seconds, tokens, kept[system][1], changed[system])
        for system in wanted
        for pair in [ALL, *sorted(tokens)]
    ]


def row(
    system: System,
    pair: str,
    seconds: dict[tuple[System, str], list[float]],
    tokens: dict[str, int],
    speculation: Speculation | None,
    changed: int,
) -> dict[str, Any]:
    """One line of the table; ratios are taken within each repeat."""
    own, plain = (
        np.sum([t for (s, p), t in seconds.items() if chosen(s) and pair in (ALL, p)], axis=0)
        for chosen in (lambda s: s == system, lambda s: s.draft == PLAIN)
    )
    count = sum(n for p, n in tokens.items() if pair in (ALL, p))
    ratios = (plain / own).tolist()
    reports = [
        r
        for r in (speculation.report() if speculation else ())
        if pair in (ALL, f"{r.source_language}>{r.target_language}")
    ]
    checked = sum(r.checked for r in reports)
    return {
        "system": str(system),
        "pair": pair,
        "tokens_per_s": median((count / own).tolist()),
        "gain": median(ratios),
        "gain_low": min(ratios),
        "gain_high": max(ratios),
        "acceptance": sum(r.accepted for r in reports) / checked if checked else None,
        "predicted_gain": reports[0].predicted_gain if reports else None,
        "num_draft_tokens": speculation.num_draft_tokens if speculation else 0,
        "changed_texts": changed,
    }


def report(result: dict[str, Any]) -> Table:
    """All pairs together; the file has every pair."""
    title = "tokens per second, all pairs; gain: median (smallest to largest) over repeats"
    table = Table(*result["rows"][0], title=title)
    for line in result["rows"]:
        table.add_row(*map(str, line.values()))
    return table


def shown(line: dict[str, Any]) -> dict[str, Any]:
    """A line as it stands in a table, but for the pair."""
    accepted, predicted = line["acceptance"], line["predicted_gain"]
    return {
        "model": line["model"],
        "engine": line["engine"],
        "threads": line["threads"],
        "system": line["system"],
        "tokens/s": round(line["tokens_per_s"]),
        "gain": f"{line['gain']:.2f} ({line['gain_low']:.2f} to {line['gain_high']:.2f})",
        "acceptance": "" if accepted is None else f"{accepted:.1%}",
        "predicted": "" if predicted is None else f"{predicted:.2f}",
        "draft tokens": line["num_draft_tokens"],
        "texts changed": line["changed_texts"],
    }


def figure(result: dict[str, Any], path: Path) -> None:
    """Measured gain against acceptance, every pair a point, and what was predicted for all pairs together."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 4))
    axes = drawing.subplots()
    for name in dict.fromkeys(line["system"] for line in result["pairs"]):
        lines = [r for r in result["pairs"] if r["system"] == name and r["acceptance"] is not None]
        pairs = [r for r in lines if r["pair"] != ALL]
        if not pairs:
            continue
        points = axes.scatter([r["acceptance"] for r in pairs], [r["gain"] for r in pairs], s=12, label=name)
        whole = [r for r in lines if r["pair"] == ALL and r["predicted_gain"]]
        axes.scatter(
            [r["acceptance"] for r in whole],
            [r["predicted_gain"] for r in whole],
            s=60,
            marker="x",
            color=points.get_facecolor()[0],
        )
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="share of draft tokens accepted", ylabel="tokens per second, without a draft = 1")
    axes.legend(fontsize=7)
    drawing.savefig(path, bbox_inches="tight")


def name_of(model: str) -> str:
    """What a model is called in a table: its folder, or that of the run that holds it."""
    path = Path(model)
    return path.parent.name if path.name == "model" else path.name


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", default=["bundled"])
    parser.add_argument("--engine", nargs="+", default=["torch"], choices=CHOICES)
    parser.add_argument("--corpus", type=Path, required=True, help="manifest directory")
    parser.add_argument(
        "--draft", action="append", required=True, help="as --draft of translate, auto too; repeatable"
    )
    parser.add_argument(
        "--num-draft-tokens", type=int, nargs="+", default=[0, 1], help="0 leaves the choice to the costs"
    )
    parser.add_argument("--accept", nargs="+", default=["exact"])
    parser.add_argument(
        "--pair", dest="pairs", action="append", help="source>target; all if none; repeatable"
    )
    parser.add_argument("--limit", type=int, default=32, help="utterances of each source language")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speculation.json"))
    parser.add_argument("--figure", type=Path, help="draw gain against acceptance into this file")
    return parser.parse_args()


def main() -> None:
    args = parse()
    lines = []
    for model, engine, threads in product(args.model, args.engine, args.threads):
        torch.set_num_threads(threads)
        family = sprachbund.load(model, engine=engine, threads=threads).family
        about = {"model": name_of(model), "engine": engine, "threads": threads}
        with torch.inference_mode():
            lines += [{**about, **line} for line in measure(family, engine, args)]
    result = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "rows": [shown(line) for line in lines if line["pair"] == ALL],
        "pairs": lines,
    }
    write(args.out, result)
    Console().print(report(result))
    if args.figure:
        figure(result, args.figure)


if __name__ == "__main__":
    main()

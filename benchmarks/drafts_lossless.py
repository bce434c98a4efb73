"""Whether drafts inside the native engine change a token, row by row, at several sizes of batch.

Models are the bundled one, on pieces of the recordings of `examples` with some noise, and decoders of the shapes of
Whisper small and medium with random weights, on random encoder outputs. Each row is searched without a draft, and then
with a token map of what was written for the first 200 rows, Medusa heads, a parasite and a draft model. Rows of a batch
have lengths and languages of their own, and accept different numbers of draft tokens in a pass, one to four. Draft
tokens of the untrained drafts are replaced: by the right token with the probability asked for, or by another one. The
draft model of the bundled model is that model without the middle one of its three decoder layers; its draft tokens are
its own.

Rows of the file that are not measured again stay. Speed is not measured here; see native_heads.py.

Run: python -m benchmarks.drafts_lossless --rows 2000
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.native_heads import (
    DRAFT_LAYERS,
    PROMPT,
    random_decoder,
    random_heads,
    random_parasite,
    started,
)
from benchmarks.rows import keep
from rich.progress import track

import sprachbund
from sprachbund.audio.load import load as load_audio
from sprachbund.decoding.drafts.base import NativeRun
from sprachbund.decoding.drafts.model import NativeModelRun
from sprachbund.decoding.drafts.network import NativeMedusaRun, NativeParasiteRun
from sprachbund.decoding.drafts.token_map import TokenMap, TokenMapRun
from sprachbund.decoding.native_search import NativeSearch
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.state import HypothesisBatch, start_batch, whole_prompt
from sprachbund.engines.choice import on_same_engine
from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.models.base import Memory, Target
from sprachbund.models.io import load
from sprachbund.models.pruning import prune_decoder

RATE = 16_000
MAX_DRAFT_TOKENS = 4
MAPPED_ROWS = 200  # whose texts are in the token map
EXAMPLES = Path(__file__).parents[1] / "examples" / "recordings"
OPTIONS = DecodingOptions(draft="none", max_tokens=64)


@dataclass(frozen=True, kw_only=True)
class Started:
    """Rows that have read their prompts.

    Attributes:
        batch: for `NativeSearch`.
        memory: encoder output of the rows.
        prompts: of each row.
        languages: that each row writes, by number.
    """

    batch: HypothesisBatch
    memory: Memory
    prompts: list[list[int]]
    languages: list[int]


class Bundled:
    """The bundled model on pieces of recordings, 0.4 to 6 s long."""

    name = "bundled"

    def __init__(self, threads: int) -> None:
        self.family: Any = sprachbund.load("bundled", engine="native", threads=threads).family
        self.decoder: NativeDecoder = self.family.decoder
        self.end = self.family.end_token
        plain: Any = load("bundled")
        few = prune_decoder(plain, 2)  # of three
        self.smaller: Any = on_same_engine(self.family, few)
        self.audio = [load_audio(path) for path in sorted(EXAMPLES.iterdir())]
        self.languages = list(self.family.config.target_languages)

    def start(self, first: int, count: int) -> Started:
        samples, targets, numbers = [], [], []
        for number in range(first, first + count):
            random = np.random.default_rng(number)
            own = self.audio[int(random.integers(len(self.audio)))]
            size = min(len(own), int(random.uniform(0.4, 6.0) * RATE))
            begin = int(random.integers(len(own) - size + 1))
            noise = random.standard_normal(size).astype(np.float32) * float(random.uniform(0, 0.01))
            samples.append(own[begin : begin + size] + noise)
            numbers.append(int(random.integers(len(self.languages))))
            targets.append(
                Target(language=self.languages[numbers[-1]], source=str(random.choice(self.languages)))
            )
        memory = self.family.encode(self.family.features(samples))
        durations_s = [len(x) / RATE for x in samples]
        batch = start_batch(self.family, memory, [[target] for target in targets], OPTIONS, durations_s)
        prompts = [whole_prompt(self.family, target) for target in targets]
        return Started(batch=batch, memory=memory, prompts=prompts, languages=numbers)

    def model_run(self, rows: Started, planted: list[list[int]]) -> NativeModelRun:
        del planted  # its draft tokens are its own
        cache = self.smaller.decoder.start(
            rows.memory.states, rows.memory.num_frames, capacity=rows.batch.cache.capacity
        )
        return NativeModelRun(self.smaller, cache, self.smaller.decoder, self.decoder)


class RandomWhisper:
    """A decoder of the shape of Whisper small or medium over random encoder outputs of 0.5 to 5 s."""

    end = 0
    languages: Sequence[str] = ("one",)

    def __init__(self, shape: str, threads: int, tokens: int) -> None:
        team = native().Team(threads)
        self.name = f"{shape}, random weights"
        self.decoder = random_decoder(shape, team)
        self.smaller = random_decoder(shape, team, DRAFT_LAYERS)
        self.tokens = tokens

    def start(self, first: int, count: int) -> Started:
        longest = int(np.random.default_rng(first).integers(25, 251))
        each = [
            torch.randn(longest, self.decoder.shape.width, generator=torch.Generator().manual_seed(number))
            for number in range(first, first + count)
        ]
        memory = Memory(states=torch.stack(each), num_frames=None)
        batch = started(self.decoder, memory.states, self.tokens)
        return Started(
            batch=batch,
            memory=memory,
            prompts=[list(range(10, 10 + PROMPT))] * count,
            languages=[0] * count,
        )

    def model_run(self, rows: Started, planted: list[list[int]]) -> NativeModelRun:
        cache = self.smaller.start(rows.memory.states, None, capacity=PROMPT + self.tokens)
        family: Any = None  # asked for nothing inside the search
        return NativeModelRun(family, cache, self.smaller, self.decoder, planted)


Model = Bundled | RandomWhisper


def texts_of(model: Model, rows: Started) -> list[tuple[tuple[int, ...], bool]]:
    return [
        (row.tokens, row.finished) for row in NativeSearch(rows.batch, rows.prompts).finish(model.decoder)
    ]


def map_of(model: Model, size: int) -> TokenMap:
    """Of what the model writes for the first rows."""
    texts: dict[str, list[list[int]]] = {str(tag): [] for tag in model.languages}
    for first in range(0, MAPPED_ROWS, size):
        rows = model.start(first, size)
        for language, (tokens, finished) in zip(rows.languages, texts_of(model, rows), strict=True):
            texts[str(model.languages[language])].append([*tokens, *([model.end] if finished else [])])
    return TokenMap.fit(texts, model.decoder.shape.vocabulary_size)


def batches(model: Model, num_rows: int, size: int) -> Iterator[tuple[int, Started]]:
    for first in track(range(0, num_rows, size), description=f"{model.name}, batch {size}"):
        yield first, model.start(first, min(size, num_rows - first))


def compare(model: Model, size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of a model in batches of one size, with every draft."""
    decoder, token_map = model.decoder, map_of(model, size)
    parasite = random_parasite(decoder, 1)
    heads = random_heads(decoder.shape.width, MAX_DRAFT_TOKENS)
    changed, checked, accepted, tokens = Counter[str](), Counter[str](), Counter[str](), 0
    drafts: list[str] = []
    for first, rows in batches(model, args.rows, size):
        wanted = texts_of(model, rows)
        tokens += sum(len(text) + ended for text, ended in wanted)
        planted = [planted_for(model, text, first + n, args.acceptance) for n, text in enumerate(wanted)]
        runs: dict[str, Callable[[], NativeRun]] = {
            "token map": lambda rows=rows: TokenMapRun(  # type: ignore[misc]
                token_map, rows.languages, [len(prompt) for prompt in rows.prompts]
            ),
            "Medusa heads": lambda planted=planted: NativeMedusaRun(heads, decoder, planted),  # type: ignore[misc]
            "parasite": lambda rows=rows, planted=planted: NativeParasiteRun(  # type: ignore[misc]
                parasite, decoder, rows.memory, planted
            ),
            "draft model": lambda rows=rows, planted=planted: model.model_run(rows, planted),  # type: ignore[misc]
        }
        drafts = list(runs)
        for name, make in runs.items():
            search = NativeSearch(rows.batch, rows.prompts)
            hypotheses = search.finish(decoder, make(), 1 + first // size % MAX_DRAFT_TOKENS)
            changed[name] += sum(
                (row.tokens, row.finished) != own for row, own in zip(hypotheses, wanted, strict=True)
            )
            checked[name] += int(search.checked.sum())
            accepted[name] += int(search.accepted[:, 1:].sum())
    return [
        {
            "model": model.name,
            "batch": size,
            "draft": name,
            "rows": args.rows,
            "tokens": tokens,
            "draft tokens checked": checked[name],
            "accepted": f"{accepted[name] / max(1, checked[name]):.0%}",
            "rows changed": changed[name],
        }
        for name in drafts
    ]


def planted_for(
    model: Model, written: tuple[tuple[int, ...], bool], row: int, acceptance: float
) -> list[int]:
    """The text that a model writes, with another token wherever the draft is to be wrong."""
    text = np.array([*written[0], *([model.end] if written[1] else [])], dtype=np.int64)
    right = np.random.default_rng([1, row]).random(len(text)) < acceptance
    planted: list[int] = np.where(right, text, (text + 1) % model.decoder.shape.vocabulary_size).tolist()
    return planted


def main() -> None:
    """Compare, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    models = ["bundled", "small"]
    parser.add_argument("--models", nargs="+", default=models, choices=[*models, "medium"])
    parser.add_argument("--rows", type=int, default=2000, help="of each model, at each size of batch")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--acceptance", type=float, default=0.85, help="of replaced draft tokens")
    parser.add_argument("--tokens", type=int, default=16, help="of a row with random weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/drafts_lossless.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = {
        "kernels": choose_instruction_set(),
        "threads": args.threads,
    }
    with torch.inference_mode():
        for name in args.models:
            model: Model = (
                Bundled(args.threads) if name == "bundled" else RandomWhisper(name, args.threads, args.tokens)
            )
            for size in args.batch:
                compared = compare(model, size, args)
                before = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.exists() else []
                others = [row for row in before if (row["model"], row["batch"]) != (model.name, size)]
                keep(args.out, {**about, "rows": others + compared})


if __name__ == "__main__":
    main()

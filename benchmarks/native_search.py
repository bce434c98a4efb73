"""Greedy search of the native engine from Python, inside the kernels, and there with drafts that are looked up.

Rows of a corpus are encoded once. Every batch is then searched by all systems in turn, in an order that rotates: passes
started from Python, passes inside the kernels, and the same with draft tokens of a token map of other texts, and of the
transcript that the model's own CTC head writes (transcribed rows alone, since it writes what is spoken), and of the
text that the search will write, made beforehand: what a draft by whole texts can gain at most. With one thread, times
are processor times of that thread, which other programs disturb least. Tokens are compared row by row.

Run: python -m benchmarks.native_search --corpus corpora/phrasebook/test --texts corpora/phrasebook/train \
    --text-count 8000 --num-draft-tokens 1 3 12
"""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep
from rich.progress import track

import sprachbund
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.autoregressive import greedy_search
from sprachbund.decoding.drafts.base import NativeRun
from sprachbund.decoding.drafts.token_map import TokenMap, TokenMapDraft
from sprachbund.decoding.drafts.whole_text import WholeTextRun
from sprachbund.decoding.native_search import NativeSearch
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.state import Hypothesis, start_batch, whole_prompt
from sprachbund.models.base import Memory, Target
from sprachbund.models.conformer import Conformer

OPTIONS = DecodingOptions(draft="none")
PYTHON, NATIVE = "from Python", "in the kernels"


def token_map(model: Conformer, texts: Manifest, count: int) -> TokenMapDraft:
    """Of the first `count` utterances' texts in all languages."""
    by_language: dict[str, list[list[int]]] = defaultdict(list)
    for index in range(min(count, len(texts))):
        for language in model.config.target_languages:
            if text := texts[index].text_in(language):
                by_language[language].append([*model.encode_text(text), model.end_token])
    unique = {
        tag: [list(row) for row in sorted({tuple(row) for row in rows})] for tag, rows in by_language.items()
    }
    return TokenMapDraft(TokenMap.fit(unique, len(model.tokenizer)))


def ctc_texts(model: Conformer, memory: Memory) -> list[list[int]]:
    """What the CTC head hears, in the decoder's tokens."""
    assert memory.num_frames is not None
    best = model.ctc_head(memory.states).argmax(-1)
    texts = []
    for row, count in zip(best, memory.num_frames.tolist(), strict=True):
        pieces = torch.unique_consecutive(row[:count]).tolist()
        transcript = model.transcript_tokenizer.decode([piece for piece in pieces if piece])
        texts.append([*model.encode_text(transcript), model.end_token])
    return texts


class Measurement:
    """Seconds of every system, batch by batch, and what they wrote."""

    def __init__(
        self, model: Any, draft: TokenMapDraft, counts: Sequence[int], clock: Callable[[], float]
    ) -> None:
        self.model, self.draft, self.counts, self.clock = model, draft, counts, clock
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.tokens, self.rows, self.changed = 0, 0, Counter[str]()
        self.passes, self.checked, self.accepted = Counter[str](), Counter[str](), Counter[str]()

    def batch(
        self, memory: Memory, targets: Sequence[Target], durations_s: list[float], transcripts: bool
    ) -> None:
        """Search one batch by all systems."""
        systems = [(PYTHON, None, 0), (NATIVE, None, 0)]
        systems += [("token map", self._map, count) for count in self.counts]
        systems += [("the right text", self._right, count) for count in self.counts]
        if transcripts:
            systems += [("own CTC head", self._ctc, count) for count in self.counts]
        by_way: dict[str, list[tuple[int, ...]]] = {}
        self._right_texts = self._written(memory, targets, durations_s)
        turn = self.rows % len(systems)
        for kind, make, count in systems[turn:] + systems[:turn]:
            name = f"{kind}, k={count}" if count else kind
            batch = start_batch(self.model, memory, [[target] for target in targets], OPTIONS, durations_s)
            began = self.clock()
            rows = self._search(
                name, batch, targets, None if make is None else make(memory, targets, batch), count
            )
            self.seconds[name].append(self.clock() - began)
            by_way[name] = [row.tokens for row in rows]
        self.rows += len(targets)
        self.tokens += sum(len(tokens) + 1 for tokens in by_way[PYTHON])
        for name, tokens in by_way.items():
            self.changed[name] += sum(a != b for a, b in zip(tokens, by_way[PYTHON], strict=True))

    def _search(
        self, name: str, batch: Any, targets: Sequence[Target], run: NativeRun | None, count: int
    ) -> list[Hypothesis]:
        if name == PYTHON:
            return greedy_search(self.model, batch)
        search = NativeSearch(batch, [whole_prompt(self.model, target) for target in targets])
        rows = search.finish(self.model.decoder, run, count)
        self.passes[name] += search.passes
        self.checked[name] += int(search.checked.sum())
        self.accepted[name] += int(search.accepted[:, 1:].sum())
        return rows

    def _map(self, memory: Memory, targets: Sequence[Target], batch: Any) -> NativeRun:
        return self.draft.start(self.model, memory, targets, batch.cache.capacity)

    def _written(
        self, memory: Memory, targets: Sequence[Target], durations_s: list[float]
    ) -> list[list[int]]:
        batch = start_batch(self.model, memory, [[target] for target in targets], OPTIONS, durations_s)
        search = NativeSearch(batch, [whole_prompt(self.model, target) for target in targets])
        return [[*row.tokens, self.model.end_token] for row in search.finish(self.model.decoder, None, 0)]

    def _right(self, memory: Memory, targets: Sequence[Target], batch: Any) -> NativeRun:
        return WholeTextRun(self._right_texts)

    def _ctc(self, memory: Memory, targets: Sequence[Target], batch: Any) -> NativeRun:
        return WholeTextRun(ctc_texts(self.model, memory))

    def lines(self, about: dict[str, Any]) -> list[dict[str, Any]]:
        """One for each system; ratios are those of twenty parts of the rows, each measured in turn."""
        each = {
            name: [float(part.sum()) for part in np.array_split(np.array(s), min(20, len(s)))]
            for name, s in self.seconds.items()
        }
        lines = []
        for name, own in each.items():
            line = {**about, "system": name, "rows": self.rows, "tokens changed": self.changed[name]}
            line["ms a token"] = round(sum(own) / self.tokens * 1e3, 4)
            for other in (PYTHON, NATIVE):
                ratios = [theirs / mine for theirs, mine in zip(each[other], own, strict=True)]
                line[f"times {other}"] = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            line["passes"] = self.passes[name] or ""
            line["accepted"] = f"{self.accepted[name] / self.checked[name]:.0%}" if self.checked[name] else ""
            lines.append(line)
        return lines


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, transcribed and translated, in batches of every size."""
    model: Any = sprachbund.load(args.model, engine="native", threads=args.threads).family
    corpus = Manifest(args.corpus)
    draft = token_map(model, Manifest(args.texts), args.text_count)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    languages = corpus.languages.tolist()
    chosen = [
        i
        for i in range(args.first, len(corpus))
        if languages[i] and corpus.durations_s[i] <= model.max_window_s
    ]
    lines: list[dict[str, Any]] = []
    for size in args.batch:
        kinds = {
            name: Measurement(model, draft, args.num_draft_tokens, clock)
            for name in ("transcribed", "translated")
        }
        for begin in track(range(0, args.rows // 2, size), description=f"batches of {size}"):
            part = chosen[begin : begin + size]
            memory = model.encode(model.features([corpus.samples(i) for i in part]))
            durations_s = [float(corpus.durations_s[i]) for i in part]
            known = model.config.target_languages
            for kind, measurement in kinds.items():
                shift = 0 if kind == "transcribed" else 1 + begin % (len(known) - 1)
                spoken = [languages[i] for i in part]
                wanted = [known[(known.index(tag) + shift) % len(known)] for tag in spoken]
                targets = [Target(language=to, source=of) for to, of in zip(wanted, spoken, strict=True)]
                measurement.batch(memory, targets, durations_s, kind == "transcribed")
        lines += [line for kind, each in kinds.items() for line in each.lines({"batch": size, "kind": kind})]
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bundled", help="of the conformer family")
    parser.add_argument("--corpus", type=Path, required=True, help="manifest directory")
    parser.add_argument("--first", type=int, default=0, help="utterance to begin with")
    parser.add_argument(
        "--texts", type=Path, required=True, help="manifest directory whose texts make the token map"
    )
    parser.add_argument("--text-count", type=int, default=10**9, help="utterances of them")
    parser.add_argument("--rows", type=int, default=2000, help="half of them transcribed, half translated")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--num-draft-tokens", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--idle", action="store_true", help="nothing else ran on the machine")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/native_search.json"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        lines = measure(args)
    result = {
        "threads": args.threads,
        "clock": "of the thread" if args.threads == 1 else "of the wall",
        "idle": args.idle,
        "rows": lines,
    }
    keep(args.out, result)


if __name__ == "__main__":
    main()

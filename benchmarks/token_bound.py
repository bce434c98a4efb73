"""How near a token of the native decoder comes to the time in which its bytes are read, and where the rest goes.

The shape of a published Whisper with random weights, one row, the encoder output of 30 s. Before and after some tokens,
memory is read by code that is not the engine's (engines/native/peak.cpp, the fastest of twelve ways), since the speed
of memory changes with what else runs on the host, within seconds. Where the two readings differ by more than a
twentieth, the tokens are measured again. Rounds with fast and with slow memory have rows of their own: the less a core
waits for memory, the more the rest counts.

A token is one of a greedy search, which is one call. Its parts are measured step by step, where each step is a call
from Python: what a step takes less with 16 frames in place of 1500, without logits, or without both; of medians.

    python -m benchmarks.token_bound --processor "AMD EPYC (Zen 4)" --idle
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.bounds import replace_rows

from sprachbund.engines.benchmark import READING_WAYS, pages, random_whisper, read_by
from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_engine import NativeCache, NativeDecoder
from sprachbund.engines.packed_cache import Packed, in_large_pages
from sprachbund.engines.packing import pack_decoder
from sprachbund.util.processor import processor_name, usable_cores

HERE = Path(__file__).parent
READ_BYTES = 2**29
FRAMES, FEW_FRAMES = 1500, 16
CAPACITY = 64
PARTS = ("search", "whole", "few frames", "no logits", "neither")
STEADY, ATTEMPTS = 0.05, 5  # readings that agree; how often tokens are measured until they do
FAST = 0.8  # of the fastest reading: below, memory is called slow
FEWEST = 3  # rounds of a row
Row = dict[str, Any]


class Measured:
    """A decoder with weights in pages of one kind, and the seconds of its tokens.

    Args:
        name: of the pages.
        packed: its weights.
        decoder: made of them.
        memory: (1, T, D) the encoder's output.
        large: pages of its keys and values.
    """

    def __init__(
        self, name: str, packed: Packed, decoder: NativeDecoder, memory: torch.Tensor, *, large: bool
    ) -> None:
        self.name, self.packed, self.decoder = name, packed, decoder
        self.caches = {
            frames: decoder.start(memory[:, :frames], None, capacity=CAPACITY)
            for frames in (FRAMES, FEW_FRAMES)
        }
        if not large:
            for cache in self.caches.values():
                cache.cross = cache.cross.clone()
        self.rounds: dict[str, list[tuple[float, float]]] = {}

    @property
    def num_bytes(self) -> dict[str, int]:
        """Read by a token: all, by attention over the encoder output, by the output matrix."""
        cache = self.caches[FRAMES]
        vocabulary = sum(array.nbytes for array in self.decoder.vocabulary.values())
        return {
            "all": self.decoder.step_bytes + cache.cross.nbytes,
            "attention": cache.cross.nbytes,
            "logits": vocabulary,
        }

    def round(self, read: Callable[[], float], tokens: int) -> None:
        """Some tokens of a search and of each part: seconds of one, and bytes of memory a second meanwhile."""
        for part in PARTS:
            for _ in range(ATTEMPTS):
                before = read()
                seconds = self._tokens(part, tokens)
                after = read()
                if abs(before - after) < STEADY * max(before, after):
                    self.rounds.setdefault(part, []).append((seconds, (before + after) / 2))
                    break

    def _tokens(self, part: str, tokens: int) -> float:
        if part == "search":
            return self._search(tokens)
        cache = self.caches[FEW_FRAMES if part in ("few frames", "neither") else FRAMES]
        return _seconds(
            self.decoder.states if part in ("no logits", "neither") else self.decoder.step, cache, tokens
        )

    def _search(self, tokens: int) -> float:
        """Of a greedy search that may not end, a token's; the first token is given."""
        end = self.decoder.shape.vocabulary_size - 1
        one = np.ones(1, np.int64)
        begin = time.perf_counter()
        self.decoder.search(
            self.caches[FRAMES],
            tokens=np.zeros((1, CAPACITY + 1), np.int64),
            lengths=one.copy(),
            room=one * tokens,
            log_probs=np.zeros(1),
            ended=np.zeros(1, bool),
            suppressed=torch.tensor([end]),
            begins=np.array([0, 1]),
            list_of=torch.zeros(1, dtype=torch.long),
            end_token=end,
            earliest_end=one * 0,
            most=0,
            most_passes=tokens,
            checked=one * 0,
            accepted=np.zeros((1, 1), np.int64),
            until_end=False,
            first_time=-1,
            latest_time=one * -1,
            prompts=one,
            draft=None,
        )
        return (time.perf_counter() - begin) / tokens


def _seconds(work: Any, cache: NativeCache, tokens: int) -> float:
    """The median token's."""
    cache.rewind(torch.zeros(1, dtype=torch.long))
    each = []
    for token in range(tokens):
        begin = time.perf_counter()
        work(torch.tensor([[token * 31]]), cache)
        each.append(time.perf_counter() - begin)
    return median(each)


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def measure(shape: str, threads: int, rounds: int, tokens: int) -> list[Row]:
    """Rows of the table: a token with each kind of pages, then its parts."""
    family = random_whisper(shape)
    sizes, arrays = pack_decoder(family.decoder)
    small = Packed(source=shape, shapes={}, arrays=arrays)
    team, isa = native().Team(threads), choose_instruction_set()
    memory = torch.randn(1, FRAMES, sizes.memory_width)
    del family, arrays
    kinds = [
        Measured(name, packed, NativeDecoder(sizes, packed.arrays, team, isa), memory, large=large)
        for name, packed, large in (("4 KiB", small, False), ("2 MiB", in_large_pages(small), True))
    ]
    plain = pages(READ_BYTES, large=True)

    def read() -> float:
        return max(read_by(team, plain, *way) for way in READING_WAYS) * 1e9

    for number in range(rounds + 1):
        for kind in kinds:
            kind.round(read, tokens)
            if number == 0:  # warms up
                kind.rounds.clear()
    fastest = max(speed for kind in kinds for rounds_of in kind.rounds.values() for _, speed in rounds_of)
    return [
        row
        for kind in kinds
        for memory_is in ("fast", "slow")
        for row in rows(kind, memory_is, FAST * fastest)
    ]


def rows(kind: Measured, memory_is: str, slower: float) -> list[Row]:
    """A token and its parts, as differences of medians, of the rounds in which memory was fast or slow.

    Args:
        kind: of pages.
        memory_is: fast or slow.
        slower: bytes a second below which memory is slow.
    """
    chosen = {
        part: [(seconds, speed) for seconds, speed in rounds if (speed < slower) == (memory_is == "slow")]
        for part, rounds in kind.rounds.items()
    }
    if len(chosen) < len(PARTS) or min(map(len, chosen.values())) < FEWEST:
        return []
    num_bytes = kind.num_bytes
    speed = median(speed for rounds in chosen.values() for _, speed in rounds)
    seconds = {part: median(seconds for seconds, _ in rounds) for part, rounds in chosen.items()}
    parts = {
        "attention over the encoder output": (
            num_bytes["attention"],
            seconds["whole"] - seconds["few frames"],
        ),
        "norm and logits": (num_bytes["logits"], seconds["whole"] - seconds["no logits"]),
        "layers without both": (
            num_bytes["all"] - num_bytes["attention"] - num_bytes["logits"],
            seconds["neither"],
        ),
    }
    count = num_bytes["all"]
    return [
        {
            "pages": kind.name,
            "memory": memory_is,
            "part": name,
            "rounds": len(chosen[part]),
            "MB": round(count / 1e6, 1),
            "memory, GB/s": spread([speed / 1e9 for _, speed in chosen[part]], 1),
            "ms": spread([1000 * seconds for seconds, _ in chosen[part]]),
            "times the bound": spread([seconds * speed / count for seconds, speed in chosen[part]]),
        }
        for name, part in (("a token", "search"), ("a step from Python", "whole"))
    ] + [
        {
            "pages": kind.name,
            "memory": memory_is,
            "part": name,
            "rounds": "",
            "MB": round(part_bytes / 1e6, 1),
            "memory, GB/s": f"{speed / 1e9:.1f}",
            "ms": f"{1000 * took:.2f}",
            "times the bound": f"{took * speed / part_bytes:.2f}",
        }
        for name, (part_bytes, took) in parts.items()
    ]


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processor", default=processor_name(), help="hypervisors hide which it is")
    parser.add_argument("--shapes", nargs="*", default=["small", "medium"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--idle", action="store_true", help="nothing else ran on the machine")
    parser.add_argument("--out", type=Path, default=HERE / "token_bound.json")
    args = parser.parse_args()
    torch.set_num_threads(1)  # beside the native threads
    about = {
        "processor": args.processor,
        "instruction set": choose_instruction_set(),
        "idle": "yes" if args.idle else "no",
    }
    for shape in args.shapes:
        new = [
            {**about, "shape": shape, "threads": args.threads, **row}
            for row in measure(shape, args.threads, args.rounds, args.tokens)
        ]
        replace_rows(args.out, new, ("processor", "instruction set", "shape", "threads"))


if __name__ == "__main__":
    main()

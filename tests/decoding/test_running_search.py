"""Rows that join a running native search and leave it: each has the tokens that it has alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from sprachbund.decoding.drafts.base import Draft
from sprachbund.decoding.drafts.network import NativeMedusaRun
from sprachbund.decoding.native_search import NativeSearch, RunningSearch, _Slots
from sprachbund.decoding.search import SearchRequest, StartedSearch
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import Hypothesis
from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.options import NativeOptions
from sprachbund.engines.packing import pack_decoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from tests.decoding.test_native_search import heads_on, map_of
from tests.decoding.test_speculative import PLAIN, flat
from tests.decoding.tiny_family import TinyFamily, random_memory
from tests.engines.support import needs_native

pytestmark = needs_native


def native_family(
    threads: int = 1, *, num_times: int = 0, options: NativeOptions | None = None
) -> TinyFamily:
    family = TinyFamily(seed=5, sharpness=1.0, num_times=num_times)
    shape, arrays = pack_decoder(family.decoder)
    team = native().Team(threads)
    family.decoder = cast(Any, NativeDecoder(shape, arrays, team, choose_instruction_set(), options))
    return family


def requests_of(
    family: TinyFamily,
    count: int,
    random: np.random.Generator,
    speculations: Sequence[Speculation | None] = (None,),
) -> list[SearchRequest]:
    """Searches of one memory or two, for one language or two, of many lengths and limits."""
    asked = []
    for seed in range(count):
        lengths = random.integers(1, 40, int(random.integers(1, 3))).tolist()
        languages = random.choice(["de", "en", "fr"], int(random.integers(1, 3)), replace=False)
        timed = bool(family.capabilities.timestamps) and bool(random.random() < 0.7)
        prefixes = [tuple(range(6, 6 + int(n))) for n in random.integers(0, 3, len(languages))]
        targets = [
            Target(language=str(tag), prefix=() if timed else prefix, timestamps=timed)
            for tag, prefix in zip(languages, prefixes, strict=True)
        ]
        fewest = int(random.integers(0, 5))
        options = replace(PLAIN, min_tokens=fewest, max_tokens=int(random.integers(fewest + 1, 18)))
        asked.append(
            SearchRequest(
                family=family,
                memory=random_memory(lengths, seed),
                targets=[targets] * len(lengths),
                options=options,
                durations_s=[length * 0.1 for length in lengths],
                speculation=speculations[seed % len(speculations)],
            )
        )
    return asked


def run_together(
    family: TinyFamily, asked: Sequence[SearchRequest], num_places: int, random: np.random.Generator
) -> tuple[list[list[list[Hypothesis]]], int]:
    """What each search finds where they arrive at random moments; and passes of the model."""
    running = RunningSearch(cast(NativeDecoder, family.decoder), num_places)
    waiting, under_way = list(range(len(asked)))[::-1], dict[int, tuple[StartedSearch, NativeSearch]]()
    results: dict[int, list[list[Hypothesis]]] = {}
    while len(results) < len(asked):
        while waiting and random.random() < 0.7:
            started = asked[waiting[-1]].start()
            assert started is not None
            rows = started.native_rows()
            assert rows is not None
            if rows.num_rows > running.num_free:
                break
            started.join(rows, running)
            under_way[waiting.pop()] = started, rows
        for ended in running.run(int(random.integers(1, 6))):
            number = next(n for n, (_, rows) in under_way.items() if rows is ended)
            started, rows = under_way.pop(number)
            results[number] = started.result(rows)
    assert running.num_free == num_places
    return [results[number] for number in range(len(asked))], running.passes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_places", [4, 11])
@pytest.mark.parametrize("num_times", [0, 30])
def test_rows_that_arrive_at_random_are_those_alone(seed: int, num_places: int, num_times: int) -> None:
    family, random = native_family(1 + seed % 2, num_times=num_times), np.random.default_rng(seed)
    asked = requests_of(family, 40, random)
    alone = [request.run() for request in asked]
    results, passes = run_together(family, asked, num_places, random)
    assert results == alone  # to the bit, sums of log-probabilities included
    # Several rows share a pass: together there are fewer than one after the other.
    assert passes < sum(max(len(h.tokens) for h in flat(cast(Any, each))) for each in alone)


def test_keys_of_memories_in_eight_bits_join() -> None:
    family, random = native_family(options=NativeOptions(memory="int8")), np.random.default_rng(0)
    asked = requests_of(family, 30, random)
    alone = [request.run() for request in asked]
    assert run_together(family, asked, 6, random)[0] == alone


@pytest.mark.parametrize("seed", range(2))
def test_drafts_of_several_kinds_join_each_with_its_rows(seed: int) -> None:
    family, random = native_family(2), np.random.default_rng(seed)
    plain = requests_of(family, 60, random)
    wanted = [request.run() for request in plain]
    rows = [row for each in wanted[:40] for row in flat(cast(Any, each))]
    drafts = [map_of(rows, family), heads_on(family, 3, 0.3)]
    drafts[1].check(family)
    speculations = [
        *(Speculation(cast(Draft, draft), num_draft_tokens=k) for draft in drafts for k in (1, 4)),
        None,
    ]
    asked = [replace(request, speculation=speculations[number % 5]) for number, request in enumerate(plain)]
    results, _ = run_together(family, asked, 9, random)
    assert tokens_of(results) == tokens_of(wanted)
    for speculation in speculations[:4]:
        assert speculation is not None
        assert sum(each.checked for each in speculation.report()) > 0
    started = asked[2].start()
    assert started is not None
    assert started.draft_state is not None
    assert isinstance(started.draft_state.run, NativeMedusaRun)


def tokens_of(hypotheses: Sequence[Sequence[Sequence[Hypothesis]]]) -> list[Any]:
    return [[[(row.tokens, row.finished) for row in rows] for rows in each] for each in hypotheses]


def test_a_search_that_leaves_makes_room_and_changes_no_other() -> None:
    family, random = native_family(), np.random.default_rng(4)
    asked = [
        replace(request, options=replace(PLAIN, min_tokens=9)) for request in requests_of(family, 6, random)
    ]
    alone = [request.run() for request in asked]
    running = RunningSearch(cast(NativeDecoder, family.decoder), 24)
    begun = []
    for request in asked:
        started = request.start()
        assert started is not None
        rows = started.native_rows()
        assert rows is not None
        started.join(rows, running)
        begun.append((started, rows))
    assert running.run(3) == []
    before = running.num_free
    running.remove(begun[2][1])
    assert running.num_free == before + begun[2][1].num_rows
    left = begun[2][1].hypotheses()
    assert not any(row.finished for row in left)
    for row, whole in zip(left, flat(cast(Any, alone[2])), strict=True):
        assert row.tokens == whole.tokens[: len(row.tokens)]
    results = {}
    while running.num_free < 24:
        for ended in running.run(1000):
            number = next(n for n, (_, rows) in enumerate(begun) if rows is ended)
            results[number] = begun[number][0].result(ended)
    assert results == {n: one for n, one in enumerate(alone) if n != 2}
    with pytest.raises(ValueError, match="rows for 1 slots"):
        RunningSearch(cast(NativeDecoder, family.decoder), 1).add(
            NativeSearch(_two_rows(family).batch, [[2], [3]])
        )


def test_a_search_for_which_there_is_no_memory_takes_no_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    family, random = native_family(), np.random.default_rng(6)
    asked = requests_of(family, 12, random)
    alone = [request.run() for request in asked]
    running = RunningSearch(cast(NativeDecoder, family.decoder), 4)
    with monkeypatch.context() as patch:
        patch.setattr(_Slots, "_cache_for", _no_memory)
        for _ in range(3):
            with pytest.raises(SprachbundError, match="not enough memory"):
                running.add(NativeSearch(_two_rows(family).batch, [[2], [3]]))
            assert running.num_free == 4
    for request, wanted in zip(asked, alone, strict=True):
        started = request.start()
        assert started is not None
        rows = started.native_rows()
        assert rows is not None
        started.join(rows, running)
        while not running.run(1000):
            pass
        assert started.result(rows) == wanted


def _no_memory(*_: object) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")


def _two_rows(family: TinyFamily) -> StartedSearch:
    targets = [Target(language="de"), Target(language="en")]
    started = SearchRequest(family=family, memory=random_memory([4]), targets=[targets]).start()
    assert started is not None
    return started


def test_beams_run_by_themselves() -> None:
    family = native_family()
    request = replace(
        requests_of(family, 1, np.random.default_rng(0))[0], options=replace(PLAIN, beam_size=2)
    )
    started = request.start()
    assert started is not None
    assert started.native_rows() is None

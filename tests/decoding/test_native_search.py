"""Search inside the native engine: the tokens of a search from Python, with any draft and in any batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from sprachbund.decoding import search as searches
from sprachbund.decoding.drafts.base import Draft
from sprachbund.decoding.drafts.network import MedusaDraft
from sprachbund.decoding.drafts.token_map import TokenMap, TokenMapDraft
from sprachbund.decoding.drafts.whole_text import WholeTextDraft, WholeTextRun
from sprachbund.decoding.logits_process import LogitsProcessor
from sprachbund.decoding.native_search import TIMED_PASSES, NativeSearch, seconds_of_passes
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import Hypothesis, start_batch, whole_prompt
from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.packing import pack_decoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import MedusaHeads, MedusaShape
from tests.decoding.test_speculative import PLAIN, flat
from tests.decoding.tiny_family import TinyFamily, random_memory
from tests.engines.support import needs_native

pytestmark = needs_native


def native_family(threads: int = 1, seed: int = 5) -> TinyFamily:
    family = TinyFamily(seed=seed, sharpness=1.0)  # the kernels know no other logits than the decoder's
    shape, arrays = pack_decoder(family.decoder)
    decoder = NativeDecoder(shape, arrays, native().Team(threads), choose_instruction_set())
    family.decoder = cast(Any, decoder)
    return family


@contextmanager
def from_python(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same searches with a return to Python after every pass."""
    with monkeypatch.context() as patched:
        patched.setattr(searches, "searches_natively", lambda *_: False)
        yield


def rows_of(num_memories: int, seed: int = 1) -> tuple[Memory, list[list[Target]]]:
    """Memories of several lengths, each for two languages."""
    lengths = [3 + position * 5 % 14 for position in range(num_memories)]
    return random_memory(lengths, seed), [[Target(language="de"), Target(language="en")]] * num_memories


def test_the_kernels_know_every_rule_on_tokens() -> None:
    """A rule that they do not know would hold for the first token alone."""
    known = {"suppressed", "limits", "latest", "times", "end_token", "min_tokens"}
    first_token_alone = {"begin_suppressed", "begun"}  # which is chosen in Python
    left_to_python = {"hot_words"}
    names = {field.name for field in fields(LogitsProcessor)}
    assert names == known | first_token_alone | left_to_python, (
        "teach the kernels the new rule, or let `searches_natively` refuse it"
    )


def assert_alike(hypotheses: Sequence[Hypothesis], wanted: Sequence[Hypothesis]) -> None:
    assert [(row.tokens, row.finished) for row in hypotheses] == [
        (row.tokens, row.finished) for row in wanted
    ]
    sums = [[row.log_probability for row in rows] for rows in (hypotheses, wanted)]
    # One rounding for each logit and step, on sums of some hundred.
    assert np.allclose(*sums, rtol=1e-5, atol=1e-4)


def map_of(rows: Sequence[Hypothesis], family: TinyFamily) -> TokenMapDraft:
    texts = {
        tag: [[*row.tokens, family.end_token] for row in rows[position::2]]
        for position, tag in enumerate(("de", "en"))
    }
    return TokenMapDraft(TokenMap.fit(texts, family.vocabulary_size, orders=(2, 1)))


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        replace(PLAIN, min_tokens=9),
        replace(PLAIN, max_tokens=1),
        replace(PLAIN, max_tokens=5, min_tokens=3),
    ],
)
@pytest.mark.parametrize("num_memories", [1, 5])
def test_rows_are_those_of_a_search_from_python(
    monkeypatch: pytest.MonkeyPatch, options: DecodingOptions, num_memories: int
) -> None:
    family, (memory, targets) = native_family(), rows_of(num_memories)
    with from_python(monkeypatch):
        wanted = flat(search(family, memory, targets, options))
    assert_alike(flat(search(family, memory, targets, options)), wanted)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drafted", [False, True])
def test_timestamps_are_those_of_a_search_from_python(
    monkeypatch: pytest.MonkeyPatch, seed: int, drafted: bool
) -> None:
    family = TinyFamily(seed=seed, sharpness=1.0, num_times=30)
    shape, arrays = pack_decoder(family.decoder)
    decoder = NativeDecoder(shape, arrays, native().Team(1), choose_instruction_set())
    family.decoder = cast(Any, decoder)
    memory, _ = rows_of(30, seed)
    # Rows with and without timestamps in one search; sound of several lengths, some shorter than the first second.
    targets = [
        [Target(language="de", timestamps=True), Target(language="en", timestamps=bool(n % 3))]
        for n in range(30)
    ]
    durations_s = [0.3 + n % 7 * 0.4 for n in range(30)]
    with from_python(monkeypatch):
        wanted = flat(search(family, memory, targets, PLAIN, durations_s))
    texts = {"de": [[*row.tokens, family.end_token] for row in wanted], "en": [[7, 8, 9]]}
    draft = TokenMapDraft(TokenMap.fit(texts, family.vocabulary_size, orders=(2, 1)))
    speculation = Speculation(cast(Draft, draft), num_draft_tokens=3) if drafted else None
    hypotheses = flat(search(family, memory, targets, PLAIN, durations_s, speculation))
    assert_alike(hypotheses, wanted)
    stamps = [token for row in hypotheses for token in row.tokens if token >= family.first_time]
    assert len(stamps) > 60
    assert speculation is None or sum(each.accepted for each in speculation.report()) > 20


def test_text_behind_the_timestamps_is_written_as_by_a_search_from_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = TinyFamily(seed=1, sharpness=1.0, num_times=30, num_behind=20)
    shape, arrays = pack_decoder(family.decoder)
    decoder = NativeDecoder(shape, arrays, native().Team(1), choose_instruction_set())
    family.decoder = cast(Any, decoder)
    memory, _ = rows_of(10)
    targets = [[Target(language="de", timestamps=True), Target(language="en")]] * 10
    with from_python(monkeypatch):
        wanted = flat(search(family, memory, targets, PLAIN))
    hypotheses = flat(search(family, memory, targets, PLAIN))
    assert_alike(hypotheses, wanted)
    for timed in (True, False):
        rows = hypotheses[0 if timed else 1 :: 2]
        assert any(token >= family.times_stop for row in rows for token in row.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("num_draft_tokens", [1, 2, 4, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_two_hundred_rows_keep_their_tokens_with_a_token_map(
    monkeypatch: pytest.MonkeyPatch, num_draft_tokens: int, threads: int
) -> None:
    family, (memory, targets) = native_family(threads), rows_of(100)
    wanted = flat(search(family, memory, targets, PLAIN))
    draft = map_of(wanted[:20], family)
    for natively in (True, False):
        speculation = Speculation(cast(Draft, draft), num_draft_tokens=num_draft_tokens)
        if natively:
            hypotheses = flat(search(family, memory, targets, PLAIN, None, speculation))
        else:
            with from_python(monkeypatch):
                hypotheses = flat(search(family, memory, targets, PLAIN, None, speculation))
        assert_alike(hypotheses, wanted)
        assert sum(each.accepted for each in speculation.report()) > 100


def found_with_texts(
    family: TinyFamily,
    memory: Memory,
    targets: list[list[Target]],
    texts: Sequence[Sequence[int]],
    most: int = 4,
) -> tuple[list[Hypothesis], NativeSearch]:
    prompts = [whole_prompt(family, target) for target in flat(cast(Any, targets))]
    rows = NativeSearch(start_batch(family, memory, targets, PLAIN, None), prompts)
    return rows.finish(cast(NativeDecoder, family.decoder), WholeTextRun(texts), most), rows


def test_a_text_is_accepted_where_it_is_right_and_found_again_behind_mistakes() -> None:
    family, (memory, targets) = native_family(), rows_of(3)
    wanted = flat(search(family, memory, targets, PLAIN))
    right = [[*row.tokens, family.end_token] for row in wanted]
    hypotheses, rows = found_with_texts(family, memory, targets, right)
    assert_alike(hypotheses, wanted)
    assert (rows.checked == rows.accepted[:, 1:].sum(1)).all()
    for row, accepted in zip(wanted, rows.accepted.tolist(), strict=True):
        # Four draft tokens and one more in each pass. In the last pass the end may be a draft token; a limit is not.
        full, rest = divmod(len(row.tokens) + row.finished - 1, 5)
        last = [rest > 0, *(rest - (not row.finished) >= k for k in range(1, 5))]
        assert accepted == [full + more for more in last]
    longest = max(map(len, right))
    assert rows.passes == -(-(longest - 1) // 5)  # the newest token and four more, each time
    broken = [[*text[:3], 0, *text[4:]] for text in right]
    hypotheses, rows = found_with_texts(family, memory, targets, broken)
    assert_alike(hypotheses, wanted)
    assert (rows.checked > rows.accepted[:, 1:].sum(1)).all()
    assert rows.passes < longest - 1


@pytest.mark.parametrize("seed", range(4))
def test_texts_of_any_kind_change_no_token(seed: int) -> None:
    family, (memory, targets) = native_family(), rows_of(4)
    wanted = flat(search(family, memory, targets, PLAIN))
    random = np.random.default_rng(seed)
    texts = []
    for row in wanted:
        text = np.array([*row.tokens, family.end_token])
        wrong = random.random(len(text)) < 0.4
        text[wrong] = random.integers(0, family.vocabulary_size, int(wrong.sum()))
        texts.append(np.delete(text, random.integers(0, len(text), 2)).tolist()[: random.integers(0, 40)])
    hypotheses, _ = found_with_texts(family, memory, targets, texts, most=int(random.integers(1, 9)))
    assert_alike(hypotheses, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_whole_texts_are_looked_up_alike_by_the_kernels_and_from_python(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    family, (memory, targets) = native_family(), rows_of(5)
    wanted = flat(search(family, memory, targets, PLAIN))
    random = np.random.default_rng(seed)
    draft = WholeTextDraft()
    for row in wanted:
        text = np.array(row.tokens)
        text[random.random(len(text)) < 0.3] = random.integers(0, family.vocabulary_size)
        draft.texts = [*draft.texts, np.delete(text, random.integers(0, max(1, len(text)), 1)).tolist()]
    counts = []
    for natively in (True, False):
        speculation = Speculation(draft, num_draft_tokens=3)
        if natively:
            hypotheses = flat(search(family, memory, targets, PLAIN, None, speculation))
        else:
            with from_python(monkeypatch):
                hypotheses = flat(search(family, memory, targets, PLAIN, None, speculation))
        assert_alike(hypotheses, wanted)
        counts.append(sum(one.accepted for one in speculation.report()))
    # The kernels propose no token behind the limit of a row, so the last pass of each may differ.
    assert abs(counts[0] - counts[1]) <= len(wanted)
    assert min(counts) > 40


def test_drafts_for_other_rows_or_tokens_are_refused() -> None:
    family, (memory, targets) = native_family(), rows_of(1)
    for texts in ([[3, 4]], [[3], [family.vocabulary_size]], [[3], [-1]]):
        with pytest.raises(ValueError, match="draft is for other rows"):
            found_with_texts(family, memory, targets, texts)
    with pytest.raises(ValueError, match="longest contexts first"):
        native().TokenMap(
            {1: (np.zeros(0, np.int64), np.zeros(0, np.int32)), 2: (np.zeros(0, np.int64),) * 2}, 5
        )
    with pytest.raises(IndexError, match="outside the vocabulary"):
        native().TokenMap({1: (np.zeros(1, np.int64), np.full(1, 9, np.int32))}, 5)


def test_joined_drafts_keep_their_parts_alive() -> None:
    family, memory = native_family(), rows_of(1)[0]
    batch = start_batch(family, memory, [[Target(language="de")]], PLAIN, None)
    decoder, tokens = cast(NativeDecoder, family.decoder), np.array([[0, 7, 5, 0, 0]])
    parts: list[tuple[Any, list[int], int]] = [(native().TextDraft([[5, 3, 8]], [2]), [0], 2)]
    joined = native().JoinedDraft(parts)
    parts.clear()
    # In the memory that the part would have left.
    others = [native().TextDraft([[9] * 3], [2]) for _ in range(8)]
    out = np.zeros((1, 3), np.int64)
    joined.propose(decoder._native, tokens, np.array([3]), batch.cache.own, out)
    assert (out.tolist(), len(others)) == ([[3, 8, -1]], 8)
    with pytest.raises(TypeError, match="no draft"):
        native().JoinedDraft([(None, [0], 1)])


def test_lengths_beyond_all_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    family, (memory, targets) = native_family(), rows_of(1)
    batch = start_batch(family, memory, [[targets[0][0]]], PLAIN, None)
    decoder, cache, most = cast(NativeDecoder, family.decoder), batch.cache, 2**63 - 1
    token, logits = torch.zeros(1, 1, dtype=torch.long), torch.empty(1, 1, family.vocabulary_size)
    for length in (most, -1):
        with pytest.raises(ValueError, match="more tokens than the cache can hold"):
            decoder._native.step(
                token, torch.tensor([length]), cache.own, cache.cross, None, cache.frames, logits, None
            )
    rows = NativeSearch(batch, [whole_prompt(family, targets[0][0])])
    for room in (most, 1000):
        monkeypatch.setattr(NativeSearch, "room", np.array([room]))
        with pytest.raises(ValueError, match="more tokens than a row has room for"):
            rows.finish(decoder)


def test_timing_a_pass_leaves_the_rows_as_they_were() -> None:
    family, (memory, targets) = native_family(), rows_of(2)
    prompts = [whole_prompt(family, target) for target in flat(cast(Any, targets))]
    batch = start_batch(family, memory, targets, PLAIN, None)
    decoder = cast(NativeDecoder, family.decoder)
    before = NativeSearch(batch, prompts).finish(decoder)
    for count in (0, 1, 8):
        for most in TIMED_PASSES:
            passes, seconds = seconds_of_passes(decoder, batch, prompts, count, most)
            assert passes == most
            assert seconds > 0
    assert torch.equal(batch.cache.lengths, torch.tensor([len(prompt) for prompt in prompts]))
    assert_alike(NativeSearch(batch, prompts).finish(decoder), before)


def heads_on(family: TinyFamily, num_heads: int, spread: float) -> MedusaDraft:
    torch.manual_seed(0)
    heads = MedusaHeads(MedusaShape(width=16, num_heads=num_heads, num_blocks=2))
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=spread)
    return MedusaDraft.around(heads, TinyFamily(seed=5).decoder)


def test_heads_that_pass_on_their_state_propose_the_newest_token() -> None:
    """As they are before training: right where a token is repeated, once a row has been through a pass."""
    family, (memory, targets) = native_family(), rows_of(6)
    draft = heads_on(family, 1, 0.0)
    draft.check(family)
    wanted = flat(search(family, memory, targets, PLAIN))
    speculation = Speculation(draft, num_draft_tokens=1)
    assert_alike(flat(search(family, memory, targets, PLAIN, None, speculation)), wanted)
    right = asked = 0
    for row in wanted:
        tokens = [*row.tokens, *([family.end_token] if row.finished else [])]
        position = 2  # the first token comes from the prompt, the second from a pass without a draft token
        while position < len(tokens):
            same = tokens[position] == tokens[position - 1]
            last = position + 1 == len(tokens) and not row.finished  # no draft token where only one fits
            asked, right = asked + (not last), right + (same and not last)
            position += 1 + (same and not last)
    assert sum(each.checked for each in speculation.report()) == asked
    assert sum(each.accepted for each in speculation.report()) == right > 0


@pytest.mark.parametrize("num_draft_tokens", [1, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_heads_of_any_weights_change_no_token(num_draft_tokens: int, threads: int) -> None:
    family, (memory, targets) = native_family(threads), rows_of(20)
    wanted = flat(search(family, memory, targets, PLAIN))
    speculation = Speculation(heads_on(family, 3, 0.3), num_draft_tokens=num_draft_tokens)
    assert_alike(flat(search(family, memory, targets, PLAIN, None, speculation)), wanted)
    assert sum(each.checked for each in speculation.report()) > 20


def test_heads_are_for_the_search_of_the_kernels_alone() -> None:
    family, (memory, targets) = native_family(), rows_of(1)
    beam = replace(PLAIN, beam_size=2)
    draft = heads_on(family, 2, 0.3)
    with pytest.raises(SprachbundError, match="Medusa heads draft for greedy search"):
        search(family, memory, targets, beam, None, Speculation(draft, num_draft_tokens=1))
    unasked = Speculation(draft, may_stop=True)
    wanted = flat(search(family, memory, targets, beam))
    assert_alike(flat(search(family, memory, targets, beam, None, unasked)), wanted)
    narrow = MedusaDraft.around(
        MedusaHeads(MedusaShape(width=32, num_heads=1, num_blocks=1)),
        TextDecoder(
            vocabulary_size=family.vocabulary_size, max_tokens=24, width=32, num_heads=2, num_layers=2
        ),
    )
    with pytest.raises(SprachbundError, match="width 32, this one has 2 of width 16"):
        narrow.check(family)

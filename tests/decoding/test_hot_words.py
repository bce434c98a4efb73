"""Hot words: a search finds the text that is best with their bonus, counted here by going through the text."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.decoding.ctc import prefix_beam
from sprachbund.decoding.hot_words import HotWords
from sprachbund.decoding.options import DecodingOptions, check_options
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.transducer import transducer_beam, transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.io import load
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.options import LiveOptions
from tests.decoding.families import FAMILIES
from tests.decoding.scripted_drafts import ScriptedDraft, knowing, wrong
from tests.decoding.test_ctc_search import all_texts
from tests.decoding.test_transducer_search import exact, frames_of, make
from tests.decoding.tiny_family import TinyFamily, random_memory
from tests.nn.test_ctc import lattice

TARGET = Target(language="en", source="de")


def counted(tokens: tuple[int, ...], word: tuple[int, ...], weight: float, *, ended: bool) -> float:
    """Bonus of a text for one word that does not overlap itself: whole words, and one that has begun at the end."""
    place = whole = 0
    while place + len(word) <= len(tokens):
        occurs = tokens[place : place + len(word)] == word
        whole += len(word) * occurs
        place += len(word) if occurs else 1
    begun = next((n for n in range(len(word) - 1, 0, -1) if tokens[-n:] == word[:n]), 0)
    return weight * (whole + (0 if ended else begun))


texts = st.lists(st.integers(0, 3), max_size=9).map(tuple)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_the_bonus_of_a_word_is_counted(text: tuple[int, ...]) -> None:
    for word in ((1, 2, 3), (2,), (0, 3)):
        hot = HotWords([word], 2.0)
        for ended in (True, False):
            assert hot.bonus(text, ended=ended) == pytest.approx(counted(text, word, 2.0, ended=ended))


@settings(max_examples=400, deadline=None)
@given(texts, st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=4))
def test_words_within_words_have_the_bonus_of_all_their_tokens(
    text: tuple[int, ...], words: list[list[int]]
) -> None:
    covered = {
        at + n
        for word in words
        for at in range(len(text))
        if list(text[at : at + len(word)]) == word
        for n in range(len(word))
    }
    assert HotWords(words, 1.0).bonus(text, ended=True) == len(covered)


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_gains_of_tokens_add_up_to_the_bonus(text: tuple[int, ...], words: list[list[int]]) -> None:
    hot, total = HotWords(words, 1.5), 0.0
    like = torch.zeros(5)
    for n, token in enumerate(text):
        row = hot.row(text[:n], like)
        total += float(row[token])
        assert float(row[4]) == pytest.approx(hot.gains(text[:n])[0]), "of a token in no word"
    assert total == pytest.approx(hot.bonus(text, ended=False))
    ends = hot.bonus(text, ended=True)
    assert ends == pytest.approx(total + hot.gains(text)[0])
    assert 0 <= ends <= 1.5 * len(text) * len(words)


def spelling(seed: int = 0, spelled: tuple[int, ...] = ()) -> Any:
    """A family that spells every hot word by the same tokens."""
    family = TinyFamily(seed=seed, max_tokens=16)
    family.capabilities = replace(family.capabilities, encode_text=lambda text: list(spelled))
    return family


def stepped(family: Any, memory: Any, word: tuple[int, ...], weight: float) -> tuple[int, ...]:
    """Greedy search by hand, with the bonus counted; the tokens."""
    cache = family.start(memory, targets=[TARGET])
    logits = family.step(torch.tensor([family.prompt(TARGET)]), cache)[0, -1]
    tokens: tuple[int, ...] = ()
    mask = family.suppressed(TARGET)
    for _ in range(12):
        log_probs = logits.masked_fill(mask, -torch.inf).log_softmax(-1)
        here = counted(tokens, word, weight, ended=False)
        gains = [
            counted(tokens, word, weight, ended=True) - here
            if token == family.end_token
            else counted((*tokens, token), word, weight, ended=False) - here
            for token in range(len(log_probs))
        ]
        token = int((log_probs + torch.tensor(gains)).argmax())
        if token == family.end_token:
            break
        tokens = (*tokens, token)
        logits = family.step(torch.tensor([[token]]), cache)[0, -1]
    return tokens


@torch.inference_mode()
def test_greedy_search_is_the_search_by_hand() -> None:
    changed = 0
    for seed, word in itertools.product(range(3), ((7, 8), (9, 10, 8), (13,))):
        family, memory = spelling(seed, word), random_memory([12], seed)
        options = DecodingOptions(max_tokens=12, draft="none")
        plain = search(family, memory, [[TARGET]], options)[0][0]
        for weight in (1.0, 6.0):
            hot = replace(options, hot_words=(family.decode_text(word),), hot_words_weight=weight)
            hypothesis = search(family, memory, [[TARGET]], hot)[0][0]
            assert hypothesis.tokens == stepped(family, memory, word, weight)
            changed += hypothesis.tokens != plain.tokens
            if hypothesis.tokens == plain.tokens:
                assert hypothesis.log_probability == pytest.approx(plain.log_probability, abs=1e-4)
            else:
                bonus = counted(hypothesis.tokens, word, weight, ended=hypothesis.finished)
                assert hypothesis.log_probability == pytest.approx(hypothesis.score - bonus, abs=1e-4)
    assert changed


@torch.inference_mode()
def test_a_word_that_was_just_missed_is_written() -> None:
    """The second best first token, a little below the best, is planted as the word."""
    for seed in range(4):
        family, memory = spelling(seed), random_memory([12], seed)
        options = DecodingOptions(max_tokens=6, draft="none")
        cache = family.start(memory, targets=[TARGET])
        logits = family.step(torch.tensor([family.prompt(TARGET)]), cache)[0, -1]
        best = logits.masked_fill(family.suppressed(TARGET), -torch.inf).log_softmax(-1).topk(3)
        tokens = [int(token) for token in best.indices if token != family.end_token]
        gap = float(best.values.max() - best.values[best.indices == tokens[1]][0])
        family = spelling(seed, (tokens[1],))
        for weight, written in ((gap + 0.1, True), (max(0.0, gap - 0.1), False)):
            hot = replace(options, hot_words=(family.decode_text((tokens[1],)),), hot_words_weight=weight)
            for size in (1, 4):
                beam = replace(hot, beam_size=size)
                row = search(family, memory, [[TARGET]], beam)[0][0]
                assert size > 1 or (row.tokens[:1] == (tokens[1],)) == written


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("word", [(7, 8), (9,)])
def test_a_beam_ranks_by_log_probability_and_bonus(word: tuple[int, ...]) -> None:
    """Of all texts of three tokens that end, a beam wide enough has the best."""
    family, memory = spelling(1, word), random_memory([12], 1)
    weight, letters = 3.0, range(family.first_letter, family.first_time)
    scored = {}
    mask = family.suppressed(TARGET)
    for length in range(4):
        for text in itertools.product(letters, repeat=length):
            cache = family.start(memory, targets=[TARGET])
            row = [*family.prompt(TARGET), *text]
            logits = family.step(torch.tensor([row]), cache)[0, len(row) - length - 1 :]
            log_probs = logits.masked_fill(mask, -torch.inf).log_softmax(-1)
            whole = (*text, family.end_token) if length < 3 else text
            total = float(sum(log_probs[n, token] for n, token in enumerate(whole)))
            scored[text] = total + counted(text, word, weight, ended=length < 3)
    best = max(scored, key=lambda text: scored[text])
    options = DecodingOptions(
        max_tokens=3,
        beam_size=2000,
        length_penalty=0,
        hot_words=(family.decode_text(word),),
        hot_words_weight=weight,
        draft="none",
    )
    hypothesis = search(family, memory, [[TARGET]], options)[0][0]
    assert hypothesis.tokens == best
    bonus = counted(best, word, weight, ended=hypothesis.finished)
    assert hypothesis.log_probability == pytest.approx(scored[best] - bonus, abs=1e-4)


WITHOUT = DecodingOptions(max_tokens=12, min_tokens=8, draft="none")
"""So that the rows of the batches below hold the hot word in different places."""


@torch.inference_mode()
def test_batches_do_not_change_the_text() -> None:
    family, memory = spelling(0, (8, 12)), random_memory([12, 9, 5], 2)
    options = replace(WITHOUT, hot_words=(family.decode_text((8, 12)),), hot_words_weight=2.0)
    together = search(family, memory, [[TARGET]] * 3, options)
    for row in range(3):
        assert memory.num_frames is not None
        single = replace(
            memory,
            states=memory.states[row : row + 1],
            num_frames=memory.num_frames[row : row + 1],
        )
        assert search(family, single, [[TARGET]], options)[0][0].tokens == together[row][0].tokens


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_draft_does_not_change_the_text(beam_size: int) -> None:
    """One that is always right, one that is never, and one that is right without the hot words."""
    family, memory = spelling(0, (8, 12)), random_memory([12, 9, 5], 2)
    plain = replace(WITHOUT, beam_size=beam_size)
    options = replace(plain, hot_words=(family.decode_text((8, 12)),), hot_words_weight=2.0)
    targets = [[TARGET]] * 3
    wanted, without = (search(family, memory, targets, one) for one in (options, plain))
    assert [row[0].tokens for row in wanted] != [row[0].tokens for row in without]
    rows = [row[0] for row in wanted]
    for script in (
        knowing(rows, family.end_token),
        wrong(rows, family.end_token, family.vocabulary_size),
        knowing([row[0] for row in without], family.end_token),
    ):
        speculation = Speculation(ScriptedDraft(script=script), num_draft_tokens=3)
        hypotheses = search(family, memory, targets, options, None, speculation)
        assert [row[0].tokens for row in hypotheses] == [row.tokens for row in rows]
        assert [row[0].log_probability for row in hypotheses] == pytest.approx(
            [row.log_probability for row in rows], abs=1e-4
        )
        assert sum(report.checked for report in speculation.report()) > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_ctc_is_exact(seed: int) -> None:
    log_probs = lattice(1, 5, 3, seed)[0].numpy()
    wanted = all_texts(log_probs)
    for word in ((2, 1), (1,)):
        hot = HotWords([word], 2.5)
        ranked = prefix_beam(log_probs, 1000, hot_words=hot)
        assert dict(ranked) == pytest.approx(wanted), "scores are without the bonus"
        best = max(wanted, key=lambda text: wanted[text] + counted(text, word, 2.5, ended=True))
        assert ranked[0][0] == best


def test_a_narrow_beam_of_ctc_tries_the_tokens_of_hot_words() -> None:
    log_probs = np.log(np.array([[0.1, 0.6, 0.2, 0.1], [0.1, 0.5, 0.3, 0.1]]))
    assert prefix_beam(log_probs, 1)[0][0] == (1,)
    assert prefix_beam(log_probs, 1, hot_words=HotWords([(3,)], 4.0))[0][0][0] == 3


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_a_transducer_is_exact(seed: int) -> None:
    transducer, encoded = make(vocabulary_size=4, seed=seed, sharpness=2.0), frames_of(1, 3, seed)
    wanted = exact(transducer, encoded[0], 3, 1)
    for word in ((1, 2), (3,)):
        hot = HotWords([word], 3.0)
        [beam] = transducer_beam(
            transducer, encoded, torch.tensor([3]), beam_size=500, max_symbols=1, hot_words=hot
        )
        best = max(wanted, key=lambda text: wanted[text] + counted(text, word, 3.0, ended=True))
        assert beam.best.tokens == best
        assert beam.best.score == pytest.approx(wanted[best], abs=1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("frames_at_once", [1, 4])
def test_greedy_search_of_a_transducer_is_the_search_by_hand(frames_at_once: int) -> None:
    changed = 0
    for seed in range(4):
        transducer, encoded = make(seed=seed, blank_bias=1.0), frames_of(2, 10, seed)
        for word in ((1, 2), (3,), (2, 4, 1)):
            hot = HotWords([word], 3.0)
            lengths = torch.tensor([10, 6])
            hypotheses, _ = transducer_greedy(
                transducer, encoded, lengths, frames_at_once=frames_at_once, hot_words=hot
            )
            plain, _ = transducer_greedy(transducer, encoded, lengths)
            for row, length in enumerate(lengths.tolist()):
                tokens, score = by_hand(transducer, encoded[row, :length], word, 3.0)
                assert hypotheses[row].tokens == tokens
                assert hypotheses[row].score == pytest.approx(score, abs=1e-4)
                changed += tokens != plain[row].tokens
    assert changed


def by_hand(transducer: Any, encoded: torch.Tensor, word: tuple[int, ...], weight: float) -> Any:
    state, tokens, score = transducer.start(1), (), 0.0
    for frame in transducer.joint.encoder(encoded):
        for _ in range(transducer.shape.max_symbols):
            log_probs = transducer.joint(frame, state.predicted)[0].log_softmax(-1)
            here = counted(tokens, word, weight, ended=False)
            gains = [
                counted((*tokens, token), word, weight, ended=False) - here if token else 0.0
                for token in range(len(log_probs))
            ]
            token = int((log_probs + torch.tensor(gains)).argmax())
            score += float(log_probs[token])
            if token == 0:
                break
            tokens = (*tokens, token)
            state = transducer.advance(torch.tensor([token]), state)
    return tokens, score


@pytest.mark.parametrize("name", ["Parakeet CTC", "Parakeet TDT", "Canary", "whisper", "conformer"])
def test_families_spell_hot_words(name: str, tmp_path: Any) -> None:
    from tests.models.contract import make_subject

    subject = make_subject(name, tmp_path)
    size = {"beam_size": 4} if name == "Parakeet CTC" else {}
    plain = subject.text(max_tokens=8, **size)
    hot = subject.text(max_tokens=8, hot_words=("ab", "b"), hot_words_weight=20.0, **size)
    assert "b" in hot
    assert hot != plain or "b" in plain


def test_what_takes_no_hot_words_says_so(tmp_path: Any) -> None:
    family = FAMILIES["Parakeet CTC"](tmp_path)
    with pytest.raises(
        SprachbundError, match="by CTC, whose likeliest path takes no hot words; set beam_size to 8"
    ):
        search(family, random_memory([4]), [[TARGET]], DecodingOptions(hot_words=("a",)))
    with pytest.raises(SprachbundError, match="tiny cannot spell words, so it takes no hot words"):
        search(TinyFamily(), random_memory([4]), [[TARGET]], DecodingOptions(hot_words=("a",)))
    with pytest.raises(SprachbundError, match="hot_words is 'a'; give a tuple, such as"):
        DecodingOptions(hot_words="a")  # type: ignore[arg-type]
    live = LiveEngine(FAMILIES["streaming transducer"](tmp_path / "live"), DecodingOptions(hot_words=("a",)))
    with pytest.raises(SprachbundError, match="writes while somebody speaks, and takes no hot words then"):
        live.open(["en"], "en", LiveOptions(policy="frames"))


@torch.inference_mode()
def test_a_word_that_the_vocabulary_cannot_spell_is_named() -> None:
    family = load()
    for words, unknown, left in (
        (("Berlin", "Łódź"), "Łódź", "⁇ ód ⁇"),
        (("東京",), "東京", "⁇"),
        (("naïve", "Berlin"), "naïve", "na ⁇ ve"),
    ):
        with pytest.raises(
            SprachbundError, match=rf"cannot spell the hot word '{unknown}'.*'{left}' is left"
        ):
            check_options(family, DecodingOptions(hot_words=words))
    check_options(family, DecodingOptions(hot_words=("Berlin", "Zürich", "x")))


def test_a_word_whose_tokens_are_never_written_is_named() -> None:
    word = (7, 8)
    family = spelling(spelled=word)
    family.suppressed = lambda target: family._mask([8])
    with pytest.raises(SprachbundError, match="cannot spell the hot word"):
        check_options(family, DecodingOptions(hot_words=(family.decode_text(word),)))

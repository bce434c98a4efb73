"""Joint search in a model: equal to trying every text."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sprachbund.decoding.autoregressive import beam_search
from sprachbund.decoding.ctc import CtcPrefixes, join_ctc
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.state import start_batch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.models.tokens.conformer import TokenConformer
from tests.units.translators import model_of, speak, talkative

TARGET = Target(language="fr")
LONGEST = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TokenConformer:
    return talkative(model_of(speak(tmp_path_factory.mktemp("joint")).units, head="ctc_attention"))


def by_hand(model: TokenConformer, memory: Memory, tokens: tuple[int, ...], weight: float) -> float:
    """Joint score of a whole text: the decoder's by one pass over it, CTC's by its loss."""
    prompt = torch.tensor([[*model.prompt(TARGET), *tokens]])
    logits = model.step(prompt, model.start(memory))[0].masked_fill(model.suppressed(TARGET), -torch.inf)
    wanted = torch.tensor([*tokens, model.end_token])
    attention = float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
    prefixes = CtcPrefixes.start(model.ctc_log_probs(memory, [[TARGET]]), memory.num_frames)
    for token in tokens:
        prefixes.advance(torch.tensor([token]))
    return (1 - weight) * attention + weight * float(prefixes.ended())


@torch.inference_mode()
def test_a_wide_beam_finds_all_texts_with_their_scores(model: TokenConformer) -> None:
    memory = model.encode(model.text_features(["ab"]))
    allowed = (~model.suppressed(TARGET)).nonzero().flatten().tolist()
    letters = [token for token in allowed if token != model.end_token][:4]
    only = torch.ones(len(model.written), dtype=torch.bool)
    only[[*letters, model.end_token]] = False
    model.suppressed = lambda target: only  # type: ignore[method-assign]  # four letters, so that all can be tried
    texts = [t for n in range(LONGEST + 1) for t in itertools.product(letters, repeat=n)]
    options = DecodingOptions(beam_size=400, max_tokens=LONGEST + 1)
    rows = start_batch(model, memory, [[TARGET]], options, None)
    join_ctc(model.capabilities.joint_ctc, memory, [[TARGET]], options, rows)
    result = beam_search(model, rows, beam_size=options.beam_size, length_penalty=0.0)[0]
    ended = {one.tokens: one.score for one in result if one.finished}
    assert ended.keys() == set(texts)
    for text in texts:
        wanted = by_hand(model, memory, text, 0.3)
        assert ended[text] == pytest.approx(wanted, abs=1e-3) or max(ended[text], wanted) < -1000


def test_a_draft_is_refused(model: TokenConformer) -> None:
    memory = model.encode(model.text_features(["ab"]))
    with pytest.raises(SprachbundError, match="no place for a draft"):
        search(model, memory, [[TARGET]], DecodingOptions(draft="parasite"))


@pytest.mark.parametrize("beam", [1, 3])
def test_a_text_is_gone_on_with_as_it_would_have_been(model: TokenConformer, beam: int) -> None:
    memory = model.encode(model.text_features(["abc", "fadecab"]))
    options = DecodingOptions(beam_size=beam, max_tokens=12)
    whole = [row[0].tokens for row in search(model, memory, [[TARGET], [TARGET]], options)]
    begun = [[replace(TARGET, prefix=tokens[:n])] for tokens, n in zip(whole, (1, 3), strict=True)]
    shorter = DecodingOptions(beam_size=beam, max_tokens=9)
    rest = search(model, memory, begun, shorter)
    if beam == 1:  # a beam may find a better end than it had before
        assert rest[0][0].tokens == whole[0][1:10]
        assert rest[1][0].tokens == whole[1][3:12]
    for row, group in enumerate(begun):
        alone = search(model, memory.select(torch.tensor([row])), [group], shorter)
        assert alone[0][0].tokens == rest[row][0].tokens


def test_more_tokens_can_be_asked_for_than_ctc_can_align(model: TokenConformer) -> None:
    memory = model.encode(model.text_features(["a"]))
    result = search(model, memory, [[TARGET]], DecodingOptions(beam_size=3, min_tokens=8, max_tokens=9))
    assert 8 <= len(result[0][0].tokens) <= 9


@pytest.mark.parametrize("beam", [1, 3])
def test_what_may_not_be_written_is_not_written_by_ctc_alone(model: TokenConformer, beam: int) -> None:
    only = talkative(model_of(model.reader.units, head="ctc_attention", decoding_ctc_weight=1.0))
    memory = only.encode(only.text_features(["a", "fade"]))
    options = DecodingOptions(beam_size=beam, min_tokens=5, max_tokens=9)
    for (row,) in search(only, memory, [[TARGET], [TARGET]], options):
        assert 5 <= len(row.tokens) <= 9
        assert math.isfinite(row.log_probability)
        assert not only.suppressed(TARGET)[list(row.tokens)].any()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"head": "attention"}, {"decoder"}),
        ({"head": "transducer"}, {"transducer"}),
        ({"head": "ctc"}, {"ctc"}),
        ({"head": "ctc_attention"}, {"decoder", "joint_ctc"}),
        ({"head": "ctc_attention", "decoding_ctc_weight": 0.0}, {"decoder"}),
    ],
)
def test_the_head_says_what_a_model_writes_by(
    model: TokenConformer, changes: dict[str, Any], wanted: set[str]
) -> None:
    made = model_of(model.reader.units, **changes)
    there = {name for name, value in vars(made.capabilities).items() if value not in (None, (), False)}
    assert there == wanted | {"encoder", "text_input", "devices", "words_only"}
    if "decoder" not in wanted:
        memory = made.encode(made.text_features(["ab"]))
        with pytest.raises(SprachbundError, match=f"writes by its {changes['head']} head"):
            made.start(memory)

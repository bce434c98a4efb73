"""The internal language model against its definition: forward passes without a cache, and with a longer silence."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.decoding.internal_lm import PLAUSIBLE
from sprachbund.decoding.options import DecodingOptions, check_options
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import start_batch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import JointCtc, Memory, Target
from tests.decoding.families import FAMILIES
from tests.decoding.scripted_drafts import ScriptedDraft
from tests.decoding.test_search import FRAMES, GERMAN, plain_beam, uncached_log_probs
from tests.decoding.tiny_family import TinyFamily, one_memory, random_memory

WEIGHT = 0.4
# Scores are sums of up to 24 float32 log-probabilities of at most about 50, each rounded by 2^-24 of that in a
# few operations.
CLOSE = 1e-3


def scores(family: TinyFamily, memory: Memory, target: Target, tokens: list[int]) -> torch.Tensor:
    """Scores of the next token by equation: two whole forward passes, the one without sound over seven frames."""
    heard = uncached_log_probs(family, memory, target, tokens)
    row = torch.tensor([[*family.prompt(target), *tokens]])
    with torch.no_grad():
        hidden = family.decoder(row, torch.zeros(1, 7, 16), torch.tensor([7]))[:, -1]
        expected = (family.decoder.logits(hidden)[0] * family.sharpness).log_softmax(-1)
    expected[family.end_token] = 0.0
    return (heard - WEIGHT * expected).masked_fill(heard < heard.max() + math.log(PLAUSIBLE), -math.inf)


@pytest.mark.parametrize("seed", [0, 3, 5, 8])
def test_greedy_takes_the_best_score_and_keeps_the_models_own_log_probability(seed: int) -> None:
    family, memory = TinyFamily(seed=seed), random_memory([6], seed)
    plain = search(family, memory, [[GERMAN]])[0][0]
    hypothesis = search(family, memory, [[GERMAN]], DecodingOptions(internal_lm_weight=WEIGHT))[0][0]
    tokens, total, scored = [], 0.0, 0.0
    while len(tokens) < family.max_tokens - 1:
        best, token = scores(family, memory, GERMAN, tokens).max(-1)
        scored += float(best)
        total += float(uncached_log_probs(family, memory, GERMAN, tokens)[token])
        if int(token) == family.end_token:
            break
        tokens.append(int(token))
    assert list(hypothesis.tokens) == tokens
    assert list(plain.tokens) != tokens, "or the weight would change nothing"
    assert hypothesis.score == pytest.approx(scored, abs=CLOSE)
    assert hypothesis.log_probability == pytest.approx(total, abs=CLOSE)


def test_a_beam_ranks_by_these_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    family, memory = TinyFamily(seed=2), random_memory([6], 2)
    options = DecodingOptions(beam_size=3, nbest=3, max_tokens=8, internal_lm_weight=WEIGHT)
    found = search(family, memory, [[GERMAN]], options)[0][0]
    own = {h.tokens: h.log_probability for h in (found, *found.others)}
    for tokens, log_probability in own.items():
        steps = [*tokens, *([family.end_token] if len(tokens) < 8 else [])]
        each = [uncached_log_probs(family, memory, GERMAN, steps[:n])[t] for n, t in enumerate(steps)]
        assert log_probability == pytest.approx(float(sum(each)), abs=CLOSE)
    monkeypatch.setattr("tests.decoding.test_search.uncached_log_probs", scores)
    score, tokens = plain_beam(family, memory, GERMAN, 3, 8, 1.0)
    assert list(found.tokens) == tokens
    assert found.score == pytest.approx(score, abs=CLOSE)
    assert len(own) == 3


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_batch_gives_the_tokens_of_its_members_alone(beam_size: int) -> None:
    family, memory = TinyFamily(seed=5), random_memory(FRAMES, 5)
    options = DecodingOptions(beam_size=beam_size, internal_lm_weight=WEIGHT)
    targets = [
        [Target(language="de", context="abc" * (i % 3)), Target(language="en", source="fr")]
        for i in range(len(FRAMES))
    ]
    together = search(family, memory, targets, options)
    alone = [
        search(family, one_memory(memory, i), targets[i : i + 1], options)[0] for i in range(len(FRAMES))
    ]
    assert [[h.tokens for h in row] for row in together] == [[h.tokens for h in row] for row in alone]
    for row, other in zip(together, alone, strict=True):
        for one, same in zip(row, other, strict=True):
            assert one.log_probability == pytest.approx(same.log_probability, abs=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "seamless", "Canary", "conformer"])
def test_any_decoder_with_cross_attention_can_be_asked(name: str, tmp_path: Path) -> None:
    """And what it thinks of the text is what it thinks of it without this: token by token, each after those before."""
    family = FAMILIES[name](tmp_path)
    source, language = sorted(family.pairs())[0]
    memory = family.encode(
        family.features([torch.randn(16000, generator=torch.Generator().manual_seed(1)).numpy()])
    )
    target = Target(language=language, source=source)
    options = DecodingOptions(max_tokens=5, internal_lm_weight=1.0)
    hypothesis = search(family, memory, [[target]], options)[0][0]
    assert hypothesis.tokens
    total, written = 0.0, [*hypothesis.tokens, *([family.end_token] if hypothesis.finished else [])]
    for position, token in enumerate(written):
        batch = start_batch(
            family, memory, [[replace(target, prefix=tuple(written[:position]))]], DecodingOptions(), None
        )
        batch.processor.begun[:] = position > 0
        total += float(batch.processor.log_probs(batch.logits, batch.tokens)[0, token])
    assert hypothesis.log_probability == pytest.approx(total, abs=CLOSE)


def test_a_draft_does_not_take_part() -> None:
    family, memory = TinyFamily(seed=5), random_memory(FRAMES, 5)
    options = DecodingOptions(internal_lm_weight=WEIGHT)
    draft = Speculation(ScriptedDraft(script=lambda row, position: 7), num_draft_tokens=3)
    drafted = search(family, memory, [[GERMAN]] * 8, options, speculation=draft)
    assert drafted == search(family, memory, [[GERMAN]] * 8, options)


@pytest.mark.parametrize(
    ("capabilities", "options", "message"),
    [
        ({"reads_prefix": True}, {}, "the model tiny reads the speech as part of its text, .* take a model"),
        (
            {"joint_ctc": JointCtc(head=TinyFamily(), weight=0.3)},
            {},
            "tiny is searched with CTC, .* take a model",
        ),  # type: ignore[arg-type]
        (
            {"ctc": TinyFamily()},
            {},
            "the model tiny writes by CTC, which has no place for it; leave it out, or",
        ),
        (
            {},
            {"draft": "token-map"},
            "and a draft's tokens are not scored without sound; leave one of them out",
        ),
        ({}, {"temperature": (0.0, 0.5)}, "no probabilities to draw tokens by; leave one of them out"),
    ],
)
def test_what_cannot_be_asked_is_an_error(
    capabilities: dict[str, object], options: dict[str, object], message: str
) -> None:
    family = TinyFamily()
    family.capabilities = replace(family.capabilities, **capabilities)  # type: ignore[arg-type]
    with pytest.raises(SprachbundError, match=f"internal_lm_weight is 0.4, .*{message}"):
        check_options(family, DecodingOptions(internal_lm_weight=0.4, **options))  # type: ignore[arg-type]


def test_a_weight_beyond_one_is_an_error() -> None:
    with pytest.raises(SprachbundError, match=r"internal_lm_weight"):
        DecodingOptions(internal_lm_weight=1.5)

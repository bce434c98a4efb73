"""Parasites and draft models inside the native engine's search: what they propose, and that no token changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load as load_audio
from sprachbund.decoding.drafts.model import ModelDraft
from sprachbund.decoding.drafts.network import NativeParasiteRun, ParasiteDraft
from sprachbund.decoding.native_search import NativeSearch
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import start_batch, whole_prompt
from sprachbund.engines.choice import engine_for
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.models.io import load
from sprachbund.models.weights import quantize_rows
from sprachbund.nn.decoder import TextDecoder, allowed_frames
from sprachbund.nn.drafts import Parasite, ParasiteShape
from tests.decoding.test_native_search import assert_alike, native_family, rows_of
from tests.decoding.test_speculative import PLAIN, flat
from tests.decoding.tiny_family import TinyFamily, random_memory
from tests.engines.support import needs_native, random_decoder, randomised

pytestmark = needs_native


def parasite_of(decoder: TextDecoder, *, num_blocks: int = 2, pre_ln_q: bool = False, seed: int = 3) -> Any:
    shape = ParasiteShape.of(decoder, num_blocks=num_blocks, pre_ln_q=pre_ln_q)
    return randomised(Parasite(shape), seed)


def found_with(
    draft: Any, options: DecodingOptions, threads: int = 1, rows: int = 20, k: int = 3
) -> Speculation:
    """What was counted of a search with a draft, whose rows are those without it."""
    family, (memory, targets) = native_family(threads), rows_of(rows)
    draft.check(family)
    wanted = flat(search(family, memory, targets, options))
    speculation = Speculation(draft, num_draft_tokens=k)
    assert_alike(flat(search(family, memory, targets, options, None, speculation)), wanted)
    return speculation


@pytest.mark.parametrize(("num_blocks", "pre_ln_q"), [(1, False), (2, True)])
@pytest.mark.parametrize(("k", "threads"), [(1, 1), (3, 2)])
def test_a_parasite_of_any_weights_changes_no_token(
    num_blocks: int, pre_ln_q: bool, k: int, threads: int
) -> None:
    decoder = TinyFamily(seed=5).decoder
    parasite = parasite_of(decoder, num_blocks=num_blocks, pre_ln_q=pre_ln_q)
    for options in (PLAIN, replace(PLAIN, min_tokens=9), replace(PLAIN, max_tokens=5)):
        speculation = found_with(ParasiteDraft.around(parasite, decoder), options, threads, k=k)
        assert sum(each.checked for each in speculation.report()) > 20


@pytest.mark.parametrize(("k", "threads"), [(1, 1), (4, 2)])
def test_a_draft_model_of_any_weights_changes_no_token(k: int, threads: int) -> None:
    for options in (PLAIN, replace(PLAIN, min_tokens=9), replace(PLAIN, max_tokens=5)):
        speculation = found_with(ModelDraft(native_family(seed=8)), options, threads, k=k)
        assert sum(each.checked for each in speculation.report()) > 20


@pytest.mark.parametrize("k", [1, 3])
def test_the_model_itself_as_its_draft_is_always_right(k: int) -> None:
    """Its cache then holds what the model's does, through prompts, acceptance and rows of different lengths."""
    reports = found_with(ModelDraft(native_family()), PLAIN, k=k).report()
    assert sum(each.checked for each in reports) > 50
    assert all(each.accepted == each.checked for each in reports)


def rounded(module: nn.Module) -> None:
    """Weights of linear layers as 8 bits hold them."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            values, scale = quantize_rows(part.weight)
            part.weight.data = values.float() * scale[:, None]


@pytest.mark.parametrize("width", [48, 64])
@pytest.mark.parametrize(("num_blocks", "pre_ln_q"), [(1, True), (2, False), (3, False)])
def test_a_parasite_proposes_what_it_does_on_torch(width: int, num_blocks: int, pre_ln_q: bool) -> None:
    """Rows of different lengths that read the same memory; in torch with weights rounded to 8 bits."""
    decoder = random_decoder(
        width=width, num_heads=2, num_layers=5, vocabulary_size=90, max_tokens=64, memory_width=24
    )
    parasite = parasite_of(decoder, num_blocks=num_blocks, pre_ln_q=pre_ln_q)
    native_decoder = native_of(decoder)
    draft = ParasiteDraft.around(parasite, decoder)
    states = torch.randn(12, 19, 24, generator=torch.Generator().manual_seed(0))
    memory = Memory(states=states, num_frames=torch.arange(8, 20))
    lengths, k = torch.arange(1, 25), 3
    tokens = torch.randint(0, 90, (24, 40), generator=torch.Generator().manual_seed(1))
    run = draft.start(FamilyOf(native_decoder), memory, [], 64)
    assert isinstance(run, NativeParasiteRun)
    cache = native_decoder.start(states, memory.num_frames, rows_per_memory=2)
    native_decoder.step(tokens[:, :24], cache)
    proposed = torch.zeros(24, k, dtype=torch.long)
    run.native_draft([0] * 24).propose(native_decoder._native, tokens, lengths, cache.own, proposed)
    rounded(decoder)
    rounded(parasite)
    wanted = torch_proposals(parasite, decoder, memory, tokens, lengths, k)
    first = proposed[:, 0] == wanted[:, 0]
    # Inputs are rounded to 8 bits as well, so a few near ties are resolved otherwise, and what follows them.
    assert first.float().mean() >= 0.85
    assert (proposed == wanted)[first].float().mean() >= 0.8


class FamilyOf:
    """As much of a family as a draft looks at."""

    def __init__(self, decoder: nn.Module) -> None:
        self.capabilities = TinyFamily().capabilities
        self.capabilities = replace(self.capabilities, decoder=decoder)


def native_of(decoder: TextDecoder) -> NativeDecoder:
    from sprachbund.engines.extension import choose_instruction_set, native
    from sprachbund.engines.packing import pack_decoder

    return NativeDecoder(*pack_decoder(decoder), native().Team(2), choose_instruction_set())


def torch_proposals(
    parasite: Parasite, decoder: TextDecoder, memory: Memory, tokens: Tensor, lengths: Tensor, k: int
) -> Tensor:
    cross = parasite.remember(memory.states, allowed_frames(memory.states, memory.num_frames))
    cache = decoder.start(memory.states, memory.num_frames, rows_per_memory=2)
    decoder.step(tokens[:, :24], cache)
    cache.rewind(lengths - 1)
    proposals = [tokens.gather(1, lengths[:, None] - 1)[:, 0]]
    for ahead in range(k):
        h = parasite.predict(decoder, proposals[-1], lengths - 1 + ahead, cache, cross)
        proposals.append(parasite.logits(decoder, h)[:, 0].argmax(-1))
    return torch.stack(proposals[1:], 1)


def test_planted_tokens_are_accepted_up_to_the_first_wrong_one() -> None:
    family, (memory, targets) = native_family(), rows_of(6)
    draft = ParasiteDraft.around(parasite_of(TinyFamily(seed=5).decoder), TinyFamily(seed=5).decoder)
    wanted = flat(search(family, memory, targets, PLAIN))
    prompts = [whole_prompt(family, target) for group in targets for target in group]
    decoder: Any = family.decoder
    texts = [[*row.tokens, family.end_token] for row in wanted]
    batch = start_batch(family, memory, targets, PLAIN, None)
    run = NativeParasiteRun(draft.packed_for(decoder), decoder, memory, texts)
    rows = NativeSearch(batch, prompts)
    assert_alike(rows.finish(decoder, run, 3), wanted)
    assert rows.checked.sum() == rows.accepted[:, 1:].sum() > 0
    longest = max(len(row.tokens) + row.finished for row in wanted)
    assert rows.passes <= -(-longest // 4) + 1


def test_trained_weights_keep_every_token() -> None:
    """The bundled model with a parasite that begins as its last layers, and with itself as the draft model."""
    family = load()
    decoder = family.capabilities.decoder
    assert isinstance(decoder, TextDecoder)
    parasite = Parasite(ParasiteShape.of(decoder, num_blocks=2), "silu")
    parasite.start_from(decoder)
    native_family = engine_for(family, "native", threads=1).family
    recordings = sorted((Path(__file__).parents[2] / "examples" / "recordings").glob("*"))
    clips = [load_audio(path)[: 8 * SAMPLE_RATE] for path in recordings]
    targets = [[Target(language=tag) for tag in ("de", "fr", "en")]] * len(clips)
    options = DecodingOptions(max_tokens=40)
    with torch.inference_mode():
        memory = native_family.encode(native_family.features(clips))
    wanted = flat(search(native_family, memory, targets, options))
    drafts: list[Any] = [ParasiteDraft.around(parasite.eval(), decoder), ModelDraft(native_family)]
    for draft in drafts:
        draft.check(native_family)
        speculation = Speculation(draft, num_draft_tokens=2)
        hypotheses = flat(search(native_family, memory, targets, options, None, speculation))
        assert [row.tokens for row in hypotheses] == [row.tokens for row in wanted]
    assert min(speculation.acceptance[:2]) > 0.85  # of the model itself


def test_what_does_not_fit_is_refused() -> None:
    family = native_family()
    other = random_decoder(width=16, num_heads=2, vocabulary_size=family.vocabulary_size, memory_width=24)
    with pytest.raises(SprachbundError, match="memory of width 24, this decoder has 2 and 16"):
        ParasiteDraft.around(parasite_of(other), other).check(family)
    decoder = TinyFamily(seed=5).decoder
    beam = replace(PLAIN, beam_size=2)
    draft = ParasiteDraft.around(parasite_of(decoder), decoder)
    memory, targets = random_memory([5], 1), [[Target(language="de")]]
    with pytest.raises(SprachbundError, match="a parasite drafts for greedy search"):
        search(family, memory, targets, beam, None, Speculation(draft, num_draft_tokens=1))
    wanted = flat(search(family, memory, targets, beam))
    unasked = Speculation(draft, may_stop=True)
    assert_alike(flat(search(family, memory, targets, beam, None, unasked)), wanted)
    with_model = Speculation(ModelDraft(native_family(seed=8)), num_draft_tokens=2)
    assert_alike(flat(search(family, memory, targets, beam, None, with_model)), wanted)

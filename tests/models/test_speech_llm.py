"""The family against transformers' own generation and losses, row by row."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.models.base import Family, Target
from sprachbund.models.speech_llm import SpeechLLM
from sprachbund.models.speech_llm.objective import RoutedMemory
from tests.models.speech_llm_support import (
    LLMS,
    make_batch,
    make_model,
    move_adapters,
    speech,
    tokenizer,
)

TARGETS = (Target(language="en", source="es"), Target(language="de", source="de"))
DURATIONS_S = (1.3, 0.7, 2.0)


def heard(model: SpeechLLM, *durations_s: float) -> RoutedMemory:
    return model.encode(model.features(speech(*durations_s)))


def prefix(model: SpeechLLM, memory: RoutedMemory, b: int, target: Target) -> Tensor:
    """Embeddings (P, D) of instruction, speech and what is behind it, put together here."""
    before, behind = model.prompts.around(target)
    table = model.llm.model.get_input_embeddings()
    own = memory.states[b, : int(memory.num_frames[b])]
    return torch.cat([table(torch.tensor(before)), own, table(torch.tensor(behind))])


def test_it_is_a_family() -> None:
    model = make_model()
    assert isinstance(model, Family)
    assert model.source_languages == ("es", "en", "de", "zh")
    assert ("zh", "en") in model.pairs()
    assert ("en", "zh") not in model.pairs()
    assert model.frame_s == pytest.approx(0.16)


@pytest.mark.parametrize("kind", LLMS)
@torch.no_grad()
def test_greedy_search_is_what_transformers_generates_row_by_row(kind: str) -> None:
    model = move_adapters(make_model(llm=kind))
    memory = heard(model, *DURATIONS_S)
    result = search(model, memory, [TARGETS] * 3, DecodingOptions(max_tokens=9))
    forbidden = model.suppressed(TARGETS[0]).nonzero().flatten().tolist()
    lengths = set()
    for b, row in enumerate(result):
        for target, hypothesis in zip(TARGETS, row, strict=True):
            embedded = prefix(model, memory, b, target)[None]
            wanted = model.llm.model.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2]),
                max_new_tokens=9,
                do_sample=False,
                suppress_tokens=forbidden,
            )[0].tolist()
            ours = [*hypothesis.tokens, *([model.end_token] if hypothesis.finished else [])]
            assert ours == wanted
            lengths.add(tuple(ours))
    assert len(lengths) > 2  # the rows differ, so something was tested


@pytest.mark.parametrize("kind", LLMS)
def test_every_adapter_of_every_language_model_is_heard(kind: str) -> None:
    model = move_adapters(make_model(llm=kind))
    model.loss(make_batch(model, [0], ["hola"], [0], [0.5])).total.backward()
    adapters = {name: p for name, p in model.llm.named_parameters() if ".lora_" in name}
    assert adapters
    assert not [name for name, p in adapters.items() if p.grad is None or p.grad.abs().max() == 0]


@torch.no_grad()
def test_steps_of_any_width_equal_the_whole_row_and_rewinding_forgets() -> None:
    model = move_adapters(make_model())
    memory = heard(model, *DURATIONS_S)
    targets = [TARGETS[0], TARGETS[1], TARGETS[0]]
    tokens = torch.randint(3, 259, (3, 7), generator=torch.Generator().manual_seed(5))
    cache = model.start(memory, targets=targets)
    first = model.step(tokens[:, :3], cache)
    model.step(torch.full((3, 2), 7), cache)
    cache.rewind(torch.tensor([3, 3, 3]))
    stepped = torch.cat([first, model.step(tokens[:, 3:4], cache), model.step(tokens[:, 4:], cache)], dim=1)
    for b, target in enumerate(targets):
        before, _ = model.prompts.around(target)
        table = model.llm.model.get_input_embeddings()
        own = memory.states[b, : int(memory.num_frames[b])]
        whole = torch.cat([table(torch.tensor(before)), own, table(tokens[b])])[None]
        wanted = model.llm.model(inputs_embeds=whole).logits[0, -7:]
        torch.testing.assert_close(stepped[b], wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_rows_may_hold_different_numbers_of_tokens_change_places_and_leave() -> None:
    model = make_model()
    memory = heard(model, *DURATIONS_S)
    tokens = torch.randint(3, 259, (6, 5), generator=torch.Generator().manual_seed(6))
    cache = model.start(memory, rows_per_memory=2, targets=[TARGETS[0], TARGETS[1]] * 3)
    assert (cache.num_rows, cache.capacity) == (6, model.max_tokens)
    model.step(tokens, cache)
    lengths = torch.tensor([1, 2, 3, 4, 5, 0])
    cache.rewind(lengths)
    cache.reorder(torch.tensor([1, 0, 2, 2, 5, 4]))
    assert cache.lengths.tolist() == [2, 1, 3, 3, 0, 5]
    cache.keep(torch.tensor([0, 2]))
    assert cache.lengths.tolist() == [2, 1, 0, 5]
    result = model.step(torch.full((4, 1), 9), cache)[:, 0]
    for place, row in enumerate((1, 0, 5, 4)):
        alone = model.start(memory.select(torch.tensor([row // 2])), targets=[TARGETS[row % 2]])
        held = torch.cat([tokens[row, : lengths[row]], torch.tensor([9])])
        wanted = model.step(held[None], alone)[0, -1]
        torch.testing.assert_close(result[place], wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_beam_search_does_not_depend_on_the_batch_and_scores_are_those_of_the_model() -> None:
    model = move_adapters(make_model())
    memory = heard(model, *DURATIONS_S)
    options = DecodingOptions(beam_size=3, max_tokens=6)
    together = search(model, memory, [TARGETS] * 3, options)
    forbidden = model.suppressed(TARGETS[0])
    for b in range(3):
        alone = search(model, memory.select(torch.tensor([b])), [TARGETS], options)[0]
        for n, (one, other) in enumerate(zip(together[b], alone, strict=True)):
            assert one.tokens == other.tokens
            tokens = torch.tensor([*one.tokens, *([model.end_token] if one.finished else [])])
            table = model.llm.model.get_input_embeddings()
            whole = torch.cat([prefix(model, memory, b, TARGETS[n]), table(tokens)])[None]
            logits = model.llm.model(inputs_embeds=whole).logits[0, -len(tokens) - 1 : -1]
            log_probs = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
            total = log_probs.gather(1, tokens[:, None]).sum().item()
            assert one.log_probability == pytest.approx(total, abs=1e-3)


def test_the_loss_is_the_cross_entropy_of_transformers_and_the_rows_add_up() -> None:
    model = move_adapters(make_model(losses={"language": 0.3, "balance": 0.0}))
    texts = ["hola", "a dog", "der Hund", "", "x y z", "no"]
    batch = make_batch(model, [0, 2, 3], texts, [0, 2, 1, 0, 0, 1], list(DURATIONS_S))
    loss = model.loss(batch)
    memory = model.encode(model.features(speech(*DURATIONS_S)))
    total = 0.0
    for r, text in enumerate(texts):
        if not text:
            continue
        source, language = (
            model.source_languages[(0, 2, 3)[r // 2]],
            ("en", "de", "es")[(0, 2, 1, 0, 0, 1)[r]],
        )
        embedded = prefix(model, memory, r // 2, Target(language=language, source=source))
        ids = [*tokenizer().encode(text, add_special_tokens=False), model.end_token]
        whole = torch.cat([embedded, model.llm.model.get_input_embeddings()(torch.tensor(ids))])[None]
        labels = torch.tensor([[-100] * len(embedded) + ids])
        total += model.llm.model(inputs_embeds=whole, labels=labels).loss.item() * len(ids)
    assert loss.attention.item() == pytest.approx(total, rel=1e-4)
    assert loss.num_tokens == sum(len(t.encode()) + 1 for t in texts if t)
    mass = memory.group_probs  # the mean over layers; the loss is the mean of the layers' logarithms
    assert 0 < loss.heads["language"].total.item() < 3 * 10
    assert mass.sum(-1).max().item() == pytest.approx(1, abs=1e-5)
    weighted = loss.attention + 0.3 * loss.parts["router language"]
    assert loss.total.item() == pytest.approx(weighted.item(), rel=1e-6)
    parts = [model.loss(batch.select(torch.tensor(part))) for part in ([0], [1, 2])]
    for value in (lambda one: one.total, lambda one: one.attention, lambda one: one.heads["language"].total):
        assert sum(value(part).item() for part in parts) == pytest.approx(value(loss).item(), rel=1e-5)


def test_padding_changes_nothing() -> None:
    model = move_adapters(make_model(losses={"balance": 0.0}))
    sounds = speech(*DURATIONS_S)
    together = model.encode(model.features(sounds))
    for b, one in enumerate(sounds):
        alone = model.encode(model.features([one]))
        n = int(alone.num_frames[0])
        assert int(together.num_frames[b]) == n
        torch.testing.assert_close(together.states[b, :n], alone.states[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.group_probs[b, :n], alone.group_probs[0], rtol=1e-4, atol=1e-5)
    short = make_batch(model, [0], ["hola"], [0], [1.3])
    longer = {"features": F.pad(short.features, (0, 0, 0, 50)), "targets": F.pad(short.targets, (0, 9))}
    padded = type(short)(**{**vars(short), **longer})
    losses = [model.loss(batch) for batch in (short, padded)]
    assert losses[0].total.item() == pytest.approx(losses[1].total.item(), rel=1e-5)
    assert losses[0].parts["router balance"] == pytest.approx(
        losses[1].parts["router balance"].item(), rel=1e-5
    )


def test_a_batch_without_a_row_that_counts_has_no_text_loss() -> None:
    model = make_model()
    loss = model.loss(make_batch(model, [-1], [""], [0], [0.5]))
    assert loss.num_tokens == 0
    assert loss.total.item() == 0
    loss.total.backward()


def test_16_bits_give_nearly_the_same() -> None:
    model = make_model()
    batch = make_batch(model, [0], ["hola"], [0], [1.3])
    wanted = model.loss(batch).attention.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.loss(batch)
    assert mixed.attention.item() == pytest.approx(wanted, rel=0.1)
    mixed.total.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.projector.parameters() if p.grad is not None)
    model.llm.model.bfloat16()
    loss = model.loss(batch)
    assert loss.attention.item() == pytest.approx(wanted, rel=0.1)
    loss.total.backward()
    assert model.projector.expand.weight.grad.isfinite().all()
    with torch.no_grad():
        memory = heard(model, 0.7, 1.3)
        result = search(model, memory, [TARGETS] * 2, DecodingOptions(beam_size=2, max_tokens=4))
    assert len(result) == 2

"""The loss of dual-scale training against one that is worked out row by row, its gate, and where gradients go."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from sprachbund.data.batch import Batch
from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, ExampleOptions, batches
from sprachbund.data.manifest import Manifest
from sprachbund.models.drafts import draft_logits, run_decoder
from sprachbund.models.whisper import load
from sprachbund.models.whisper.extension import set_prompt
from sprachbund.models.whisper.model import WhisperExamples
from sprachbund.nn.drafts import MedusaHeads
from sprachbund.training.dual_scale import DualScale, DualScaleOptions, Gate, make_dual_scale
from sprachbund.training.memory import keep_layers, layers_of, recompute_layers
from tests.training.made import make_corpus, make_model, make_training_data
from tests.training.owned import make_tones, make_whisper

_WRAPPED = "_checkpoint_wrapped_module."
"""Part of names within torch's wrapper around a layer that is run again."""

ALL = {"text_layers": 1, "blocks": 1, "whole_layers": 1}
PLAN = BatchingOptions(batch_s=8.0, max_utterances=8, max_duration_s=0.9, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dual")
    make_tones(root / "data", silence=1)
    make_whisper(root / "whisper")
    return root


@pytest.fixture(scope="module")
def batch(folder: Path) -> Batch:
    """Of two languages, an utterance without speech among them; what was said is never what is wanted."""
    model = set_prompt(load(folder / "whisper"), "wanted-only", ["en", "de"])
    options = ExampleOptions(
        rows_per_utterance=1, time_masks=0, frequency_masks=0, same_language=0.0, spoken=True
    )
    corpus = Corpus([(Manifest(folder / "data"), 1.0)], WhisperExamples(model, ["en", "de"]), options)
    made = list(batches(corpus, PLAN, 0))
    result = next(b for b in made if bool((b.spoken.num_tokens == 0).any()))  # type: ignore[union-attr]
    assert bool((result.spoken.num_tokens > 0).any())  # type: ignore[union-attr]
    return result


def make(folder: Path, seed: int = 0, **options: Any) -> DualScale:
    torch.manual_seed(seed)
    model = set_prompt(load(folder / "whisper"), "wanted-only", ["en", "de"])
    whole = make_dual_scale(model, DualScaleOptions(**{**ALL, **options}))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if name.startswith(("text_encoder", "draft_network")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return whole


def said(whole: DualScale, states: torch.Tensor, row: torch.Tensor, ahead: bool) -> list[torch.Tensor]:
    """Log-probabilities behind every token of a row, by stepping; of the draft network, those that it is asked for."""
    decoder = whole.base.decoder
    cache = decoder.start(states, None, capacity=len(row))
    result = []
    for i, token in enumerate(row):
        if not ahead:
            result.append(decoder.step(token[None, None], cache)[0, 0].log_softmax(-1))
            continue
        cross = whole.draft_network.remember(states, None)  # type: ignore[union-attr]
        h = whole.draft_network.predict(decoder, token[None], torch.tensor([i]), cache, cross)  # type: ignore[union-attr]
        result.append(whole.draft_network.logits(decoder, h)[0, 0].log_softmax(-1))  # type: ignore[union-attr]
        decoder.step(token[None, None], cache)
    return result


@torch.no_grad()
def by_hand(whole: DualScale, batch: Batch) -> dict[str, float]:
    """Sums over tokens, row by row; a prompt is a start and a language, or where nobody speaks the start alone."""
    decoder_batch = whole.base.decoder_batch(batch)
    sums = dict.fromkeys(("speech", "text", "kl", "draft-speech", "draft-text", "draft-kl"), 0.0)
    for r, length in enumerate(batch.num_targets.tolist()):
        count = int(batch.spoken.num_tokens[r])  # type: ignore[union-attr]
        start = [whole.base.tokens.start]
        prompt = [*start, int(batch.target_language[r])] if count else start
        row = torch.tensor([*prompt, *batch.targets[r, :length].tolist()])
        frames = decoder_batch.memory.num_frames
        states = [
            decoder_batch.memory.states[r : r + 1]
            if frames is None
            else decoder_batch.memory.states[r : r + 1, : frames[r]]
        ]
        if count:
            assert whole.text_encoder is not None
            spoken = batch.spoken.tokens[r : r + 1, :count]  # type: ignore[union-attr]
            states.append(whole.text_encoder(whole.base.decoder.embedding, spoken, torch.tensor([count])))
        for ahead in (False, True):
            name = "draft-" if ahead else ""
            log_probs = [said(whole, memory, row[:-1], ahead) for memory in states]
            for position in range(len(prompt) - 1 + ahead, len(row) - 1):
                wanted = row[position + 1]
                sums[f"{name}speech"] -= float(log_probs[0][position][wanted])
                if count:
                    speech, text = log_probs[0][position], log_probs[1][position]
                    sums[f"{name}text"] -= float(text[wanted])
                    sums[f"{name}kl"] += float((text.exp() * (text - speech)).sum())
    return sums


def test_the_loss_is_that_of_the_equations_row_by_row(folder: Path, batch: Batch) -> None:
    whole = make(folder, gate=False).eval()
    with torch.no_grad():
        loss = whole.loss(batch)
    wanted = by_hand(whole, batch)
    assert min(wanted.values()) > 0
    assert float(loss.attention) == pytest.approx(wanted["speech"], rel=1e-4)
    for name, value in loss.parts.items():
        assert float(value) == pytest.approx(wanted[name], rel=1e-3), name
    assert {"speech", *loss.parts} == set(wanted)
    base = 2 * wanted["speech"] + wanted["text"] + 0.5 * wanted["kl"]
    ahead = 2 * wanted["draft-speech"] + wanted["draft-text"] + 0.5 * wanted["draft-kl"]
    assert float(loss.total) == pytest.approx(base + 0.2 * ahead, rel=1e-4)
    assert loss.num_tokens == int(batch.num_targets.sum())


def test_no_divergence_before_the_gate_opens_and_always_after(folder: Path, batch: Batch) -> None:
    whole = make(folder, gate_decay=0.5).train()
    for _ in range(2):
        assert not {"kl", "draft-kl"} & set(whole.loss(batch).parts)
        whole.gate.opened.fill_(False)
    whole.gate.means.copy_(torch.tensor([1.0, 50.0]))
    whole.loss(batch)
    assert whole.gate.is_open
    assert {"kl", "draft-kl"} <= set(whole.loss(batch).parts)
    whole.gate.means.copy_(torch.tensor([50.0, 1.0]))
    assert {"kl", "draft-kl"} <= set(whole.loss(batch).parts)
    assert {"kl", "draft-kl"} <= set(whole.eval().loss(batch).parts)


def test_the_gate_sees_means_over_tokens_and_only_in_training(folder: Path, batch: Batch) -> None:
    whole = make(folder).eval()
    loss = whole.loss(batch)
    assert int(whole.gate.num_seen) == 0
    whole.train().loss(batch)
    speaking = batch.spoken.num_tokens > 0  # type: ignore[union-attr]
    text = float(loss.parts["text"]) / int(batch.num_targets[speaking].sum())
    speech = float(loss.attention.detach()) / int(batch.num_targets.sum())
    assert whole.gate.means.tolist() == pytest.approx([text, speech], rel=1e-4)


def test_the_gate_is_a_running_mean_and_waits_until_it_has_seen_enough() -> None:
    gate = Gate(0.9)
    lower, upper, opened = 1.0, 2.0, []
    for _ in range(12):
        gate.see(torch.tensor(lower), torch.tensor(upper))
        opened.append(gate.is_open)
    assert opened.index(True) == 9  # ten batches are about what a decay of .9 remembers
    assert gate.means.tolist() == pytest.approx([1.0, 2.0])
    gate.see(torch.tensor(101.0), torch.tensor(2.0))
    assert gate.means.tolist() == pytest.approx([11.0, 2.0])
    assert gate.is_open
    gate.see(torch.tensor(float("nan")), torch.tensor(2.0))  # of a step that is skipped
    assert gate.means.tolist() == pytest.approx([11.0, 2.0])
    closed = Gate(0.0)
    closed.see(torch.tensor(float("inf")), torch.tensor(2.0))
    assert not closed.is_open
    closed.see(torch.tensor(3.0), torch.tensor(2.0))
    assert not closed.is_open
    closed.see(torch.tensor(1.0), torch.tensor(2.0))
    assert closed.is_open


def test_the_divergence_has_no_gradient_into_the_text_branch(folder: Path, batch: Batch) -> None:
    alone = {"speech_weight": 0.0, "text_weight": 0.0, "draft_weight": 0.0}
    whole = make(folder, gate=False, **alone)
    whole.loss(batch).total.backward()
    assert whole.text_encoder is not None
    grads = [p.grad for p in whole.text_encoder.parameters()]
    assert all(grad is None or not bool(grad.any()) for grad in grads)
    assert bool(whole.base.decoder.layers[0].cross_attention.value.weight.grad.any())
    assert bool(whole.base.encoder.layers[0].feed_forward.expand.weight.grad.any())
    whole.zero_grad()
    trained = make(folder, gate=False, speech_weight=0.0, draft_weight=0.0)
    trained.loss(batch).total.backward()
    assert any(bool(p.grad.any()) for p in trained.text_encoder.parameters() if p.grad is not None)  # type: ignore[union-attr]


@pytest.mark.parametrize("detach", [True, False])
def test_the_loss_of_the_draft_network_reaches_keys_and_values_unless_detached(
    folder: Path, batch: Batch, detach: bool
) -> None:
    whole = make(folder, detach_kv=detach)
    decoder_batch = whole.base.decoder_batch(batch)
    seen = run_decoder(whole.base.decoder, decoder_batch)
    assert whole.draft_network is not None
    (result,) = draft_logits(
        whole.draft_network, whole.base.decoder, decoder_batch, seen, detach_kv=whole.options.detach_kv
    )
    result.logits.square().sum().backward()
    grad = whole.base.decoder.layers[0].self_attention.value.weight.grad
    assert (grad is None or not bool(grad.any())) == detach


def test_layers_that_are_run_again_give_the_same_gradients(folder: Path, batch: Batch) -> None:
    grads = []
    for again in (False, True):
        whole = make(folder, gate=False)
        if again:
            recompute_layers(whole)
            assert len(layers_of(whole)) > len(whole.base.encoder.layers) + len(whole.base.decoder.layers)
            assert all(isinstance(layer, CheckpointWrapper) for layer in layers_of(whole))
        whole.loss(batch).total.backward()
        grads.append(
            {n.replace(_WRAPPED, ""): p.grad for n, p in whole.named_parameters() if p.grad is not None}
        )
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-4)
    keep_layers(whole)
    assert not any(isinstance(module, CheckpointWrapper) for module in whole.modules())


def test_what_a_decoder_keeps_is_what_its_cache_holds(folder: Path, batch: Batch) -> None:
    base = load(folder / "whisper")
    with torch.no_grad():
        decoder_batch = set_prompt(base, "wanted-only", ["en", "de"]).decoder_batch(batch)
        seen = run_decoder(base.decoder, decoder_batch)
        cache = base.decoder.start(
            decoder_batch.memory.states,
            decoder_batch.memory.num_frames,
            capacity=decoder_batch.tokens.shape[1],
        )
        base.decoder.step(decoder_batch.tokens, cache)
    for i, (keys, values) in seen.kept.items():
        torch.testing.assert_close(keys, cache.self_keys[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values, cache.self_values[i], atol=1e-5, rtol=1e-4)


def test_without_a_text_branch_there_is_one_pass_and_no_divergence(folder: Path, batch: Batch) -> None:
    whole = make(folder, text_layers=0, gate=False)
    parts = whole.loss(replace(batch, spoken=None)).parts
    assert set(parts) == {"draft-speech"}
    with pytest.raises(ValueError, match="needs a batch with transcripts"):
        make(folder).loss(replace(batch, spoken=None))


def test_medusa_heads_are_trained_the_same_way(folder: Path, batch: Batch) -> None:
    whole = make(folder, draft="medusa", heads=2, gate=False).eval()
    assert isinstance(whole.draft_network, MedusaHeads)
    with torch.no_grad():
        loss = whole.loss(batch)
        decoder_batch = whole.base.decoder_batch(batch)
        hidden = whole.base.decoder.norm(
            whole.base.decoder(
                decoder_batch.tokens, decoder_batch.memory.states, decoder_batch.memory.num_frames
            )
        )
        total = 0.0
        for r, count in enumerate(decoder_batch.loss_mask.sum(1).tolist()):
            first = int(decoder_batch.prompts[r]) - 1
            for i in range(first, first + count):
                heads = whole.draft_network.logits(whole.base.decoder, hidden[r, i]).log_softmax(-1)
                for k in range(2):
                    if i + k + 1 < first + count:
                        total -= 0.8**k * float(heads[k, decoder_batch.labels[r, i + k + 1]])
    assert float(loss.parts["draft-speech"]) == pytest.approx(total, rel=1e-4)


def test_a_conformer_keeps_its_other_heads(tmp_path: Path) -> None:
    make_corpus(tmp_path, 16)
    corpus = make_training_data(tmp_path, spoken=True, same_language=0.0)
    batch = next(iter(batches(corpus, BatchingOptions(batch_s=6.0, max_duration_s=20), 0)))
    model = make_model().eval()
    with torch.no_grad():
        own = model.loss(batch)
    options = DualScaleOptions(text_layers=1, blocks=1, text_weight=0.0, kl_weight=0.0, draft_weight=0.0)
    whole = make_dual_scale(model, options).eval()
    with torch.no_grad():
        loss = whole.loss(batch)
    for name in ("ctc", "language"):
        assert float(loss.heads[name].total) == pytest.approx(float(own.heads[name].total))
    heads = float(own.total - own.attention)
    assert float(loss.total) == pytest.approx(2 * (float(loss.attention) + heads), rel=1e-5)
    smoothing = model.config.label_smoothing
    assert smoothing > 0
    assert float(loss.attention) != pytest.approx(float(own.attention))  # none here


def test_without_adapters_the_encoder_rests(folder: Path) -> None:
    whole = make(folder, lora_rank=0, whole_layers=0)
    for name, parameter in whole.named_parameters():
        assert "lora" not in name
        assert parameter.requires_grad != name.startswith("base.encoder."), name

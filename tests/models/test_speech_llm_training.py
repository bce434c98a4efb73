"""In the training loop that all families share: it learns, resumes, and recomputes."""

from pathlib import Path

import pytest
import torch

from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.models.speech_llm import STAGES, SpeechLLM
from sprachbund.models.speech_llm.config import LossWeights
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import enter, frozen_digest
from sprachbund.training.loop import train
from sprachbund.training.memory import keep_layers, recompute_layers
from sprachbund.training.parallel import in_16_bits
from sprachbund.util.distributed import is_first_rank
from tests.models.speech_llm_support import make_batch, make_model, move_adapters
from tests.training.made import LANGUAGES, make_corpus, options
from tests.training.ranks import fork_ranks

_WRAPPED = "_checkpoint_wrapped_module."
"""Part of names within torch's wrapper around a layer that is run again."""

STAGE = STAGES[1]


def fresh() -> SpeechLLM:
    model = make_model(
        projector={"groups": (("en",), ("de",)), "spliced_frames": 1}, target_languages=LANGUAGES
    )
    enter(model, STAGE)
    return model


def corpus(directory: Path, model: SpeechLLM) -> Corpus:
    chosen = ExampleOptions(rows_per_utterance=2, max_tokens=24)
    return Corpus([(Manifest(directory), 1.0)], SpeechLLMExamples(model, LANGUAGES), chosen)


@pytest.mark.slow
@pytest.mark.usefixtures("predicted_memory")
def test_it_learns_and_a_run_in_two_parts_ends_with_the_same_bits(tmp_path: Path) -> None:
    make_corpus(tmp_path / "data", 24)
    lines: list[str] = []
    changes = {"learning_rate": 1e-2, "decay_share": 0.0, "log_every": 2, "save_every": 4}
    settings = options(8, trainable=STAGE.patterns, **changes)
    model = fresh()
    before = frozen_digest(model, STAGE)
    data = corpus(tmp_path / "data", model)
    whole = train(model, data, settings, tmp_path / "whole", report=lines.append)
    assert frozen_digest(whole, STAGE) == before
    losses = [float(line.split(" loss ")[1].split()[0]) for line in lines if line.startswith("step ")]
    assert losses[-1] < losses[0]
    assert any("router language" in line and "router balance" in line for line in lines)
    assert any("are trained" in line for line in lines)
    train(fresh(), data, settings, tmp_path / "parts", stop_after=4, report=lines.append)
    resumed = train(fresh(), data, settings, tmp_path / "parts", report=lines.append)
    assert "resumed at step 4" in lines
    wanted = whole.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize(
    ("encoder", "llm"), [("conformer", "qwen2"), ("wavlm", "gpt2"), ("whisper", "gemma2")]
)
def test_recomputed_layers_give_the_same_gradients(encoder: str, llm: str) -> None:
    model = move_adapters(make_model(encoder, llm))
    batch = make_batch(model, [0, 2], ["hola", "dog"], [2, 0], [0.7, 0.5])
    gradients = []
    for recompute in (False, True):
        if recompute:
            recompute_layers(model)
        model.zero_grad()
        model.loss(batch).total.backward()
        gradients.append(
            {
                n.replace(_WRAPPED, ""): p.grad.clone()
                for n, p in model.named_parameters()
                if p.grad is not None
            }
        )
    keep_layers(model)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("llm", ["qwen2", "gpt2", "gemma2"])
def test_embeddings_in_16_bits_are_rounded_and_nothing_else(llm: str) -> None:
    """Losses and gradients are those of embeddings in 32 bits with the same values; gemma2's are tied, and scaled."""
    losses, gradients, sizes = [], [], []
    for in_32_bits in (False, True):
        model = move_adapters(make_model("conformer", llm))
        enter(model, STAGE)
        back = in_16_bits(model)
        embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        sizes.append(sum(e.weight.numel() * e.weight.element_size() for e in embeddings))
        if in_32_bits:
            for embedding in embeddings:
                embedding.weight.data = embedding.weight.data.float()
        assert model.llm.embed(torch.tensor([4, 5])).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(make_batch(model, [0, 2], ["hola", "dog"], [2, 0], [0.7, 0.5])).total
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        back()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert not any(e._forward_hooks for e in embeddings)
    assert sizes[0] == 2 * sum(e.weight.numel() for e in embeddings)
    assert gradients[0].keys() == gradients[1].keys()
    if llm == "gemma2":  # multiplies what it reads in the precision of the weights, and rounds once more
        assert losses[0] == pytest.approx(losses[1], rel=2**-8)
        return
    assert torch.equal(*losses)
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["whisper", "wavlm by group"])
def test_shards_with_frozen_weights_in_16_bits_train_as_copies(tmp_path: Path, encoder: str) -> None:
    """Of frozen weights in 16 bits, and adapters and projector in 32. Each process computes the same with both.

    "wavlm by group" hears utterances one by one. In 32 bits, `tests.training.test_ranks` compares with one process.
    """
    make_corpus(tmp_path / "data", 12)
    model = move_adapters(
        make_model(
            encoder,
            projector={"groups": (("en",), ("de",)), "spliced_frames": 4},
            target_languages=LANGUAGES,
            losses=LossWeights(balance=0.0),
        )
    )
    enter(model, STAGE)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = ExampleOptions(rows_per_utterance=2, max_tokens=24, time_masks=0, frequency_masks=0)
    data = Corpus([(Manifest(tmp_path / "data"), 1.0)], SpeechLLMExamples(model, LANGUAGES), chosen)
    settings = {
        "frozen_bf16": True,
        "precision": "bf16",
        "optimizer": "adamw",
        "trainable": STAGE.patterns,
        "max_utterances": 3,
        "learning_rate": 1e-3,
    }

    def work(rank: int, count: int) -> None:
        for name, changes in (("copies", {}), ("shards", {"shard": True, "recompute": True})):
            for parameter_name, parameter in model.named_parameters():
                parameter.data = start[parameter_name].clone()
            result = train(
                model, data, options(4, **settings, **changes), tmp_path / name, report=lambda line: None
            )
            if is_first_rank():
                torch.save(result.state_dict(), tmp_path / f"{name}.pt")

    codes = fork_ranks([2], work, tmp_path)
    assert not any(codes.values()), [path.read_text()[-2000:] for path in tmp_path.glob("*/failure.*.txt")]
    copies, shards = (torch.load(tmp_path / f"{name}.pt") for name in ("copies", "shards"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(torch.equal(copies[name], shards[name]) for name in copies if name not in trained)
    # An expert that no process chose in a step has a gradient of zero in shards, so it moves on by its moments, and
    # none in copies, which leave it (docs/train.md).
    compared = [name for name in trained if ".experts." not in name]
    moved = sum(float((copies[name] - start[name]).square().sum()) for name in compared)
    apart = sum(float((copies[name] - shards[name]).square().sum()) for name in compared)
    # Processors that multiply bf16 in tiles round to other numbers where rows lie elsewhere. AdamW divides a gradient
    # by its size, so the share of elements that are smaller than a rounding, about 2^-8, may move anywhere.
    assert apart < 2**-8 * moved

"""In the training loop that all families share: it learns, resumes, and recomputes."""

from pathlib import Path

import pytest
import torch

from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.models.speech_llm import STAGES, SpeechLLM
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import enter, frozen_digest
from sprachbund.training.loop import train
from sprachbund.training.memory import keep_layers, recompute_layers
from tests.models.speech_llm_support import make_batch, make_model, move_adapters
from tests.training.made import LANGUAGES, make_corpus, options

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

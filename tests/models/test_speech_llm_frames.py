"""Which language each frame is taught, from a corpus to the loss; and layers of the encoder read beside the last."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sprachbund.data.batch import Batch
from sprachbund.data.loading import Corpus, ExampleOptions, collate
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Features
from sprachbund.models.speech_llm import LossWeights, SpeechLLM, load, save
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.objective import LANGUAGE
from tests.models.speech_llm_support import make_encoder, make_model, speech

SPANS = ((0.0, 0.5, "es"), (0.58, 1.17, "en"), (1.2, 1.9, "es"), (1.9, 2.4, "zh"))
GROUP = {"es": 0, "en": 1, "zh": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An utterance of four spans with exact times, the same with estimated ones, and one in Spanish."""
    folder = tmp_path_factory.mktemp("frames") / "corpus"
    spans = [{"start_s": a, "end_s": b, "language": tag} for a, b, tag in SPANS]
    said: dict[str, Any] = {"text": "hola", "language": "es", "speaker": "a", "translations": {"en": "hello"}}
    customs: list[dict[str, Any]] = [{"spans": spans}, {"spans": spans, "spans_estimated": True}, {}]
    with ManifestWriter(folder) as writer:
        for number, (samples, custom) in enumerate(zip(speech(2.5, 2.5, 1.7), customs, strict=True)):
            writer.add(samples, utterance_id=str(number), custom=custom, **said)
    return folder


def batch_of(corpus: Path, model: SpeechLLM, speed: float) -> Batch:
    options = ExampleOptions(rows_per_utterance=1, mixed=True, time_masks=0, frequency_masks=0)
    examples = Corpus(
        [(Manifest(corpus), 1.0)], SpeechLLMExamples(model, ["es", "en", "zh"], ["en"]), options
    )
    return collate([examples[0, i, speed] for i in range(3)], 1)


@pytest.mark.parametrize("speed", [1.0, 1.25])
@pytest.mark.parametrize(("by_frame", "embedded"), [(True, 1.0), (False, 1.0), (True, 4.0), (False, 4.0)])
def test_every_frame_of_mixed_speech_is_taught_its_own_language(
    corpus: Path, speed: float, by_frame: bool, embedded: float
) -> None:
    model = make_model(projector={"spliced_frames": 1})
    model.losses = LossWeights(by_frame=by_frame, embedded=embedded)
    batch = batch_of(corpus, model, speed)
    with torch.no_grad():
        tokens = model.hear(Features(values=batch.features, num_frames=batch.num_frames))
        result = model.loss(batch).parts[LANGUAGE]
    wanted, logs = [], torch.stack([routing.group_log_probs() for routing in tokens.routings]).mean(0)
    layers = [routing.group_log_probs().exp() for routing in tokens.routings]
    begin = 0
    for utterance, count in enumerate(tokens.num_tokens.tolist()):
        losses, weights = [], []
        for token in range(count):
            middle_s = (token + 0.5) * 0.08 * speed  # of the recording, before it was made faster
            own = [GROUP[tag] for a, b, tag in SPANS if a <= middle_s < b] if by_frame else []
            groups = ([], [0, 1, 2], [0])[utterance] if utterance else own or [0, 1, 2]
            losses += [-probs[begin + token, groups].sum().log() for probs in layers]
            is_embedded = groups in ([1], [2])  # Spanish is the main language
            weights += [embedded if is_embedded else 1.0] * len(layers)
        mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        wanted.append(mean * batch.num_targets[utterance])
        begin += count
    assert begin == len(logs)
    torch.testing.assert_close(result, torch.stack(wanted).sum(), rtol=1e-4, atol=1e-5)


# Layers of the encoder.


def test_layers_are_those_of_transformers_normed() -> None:
    encoder = make_encoder("wavlm")
    values, num_frames = encoder.features(speech(0.7))
    with torch.no_grad():
        states, num_states = encoder.read(values, num_frames, (1, 0))
        assert not any(module._forward_hooks for module in encoder.layers)
        plain = encoder.encoder(values[..., 0], output_hidden_states=True)
    last, upper, lower = states.split(encoder.width, dim=-1)
    torch.testing.assert_close(last, plain.last_hidden_state)
    for result, wanted in ((lower, plain.hidden_states[1]), (upper, plain.hidden_states[2])):
        centred = wanted - wanted.mean(-1, keepdim=True)
        deviation = (wanted.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        if result is lower:  # the last entry of transformers is normed once more
            torch.testing.assert_close(result, centred / deviation, rtol=1e-4, atol=1e-5)
        assert result.shape == wanted.shape
    assert num_states.tolist() == [states.shape[1]]


@pytest.mark.parametrize("kind", ["conformer", "whisper", "wavlm", "wav2vec2-bert"])
def test_a_model_that_reads_layers_does_not_hear_its_neighbours_and_comes_back(
    kind: str, tmp_path: Path
) -> None:
    model = make_model(kind, projector={"encoder_layers": (0,), "router_context": 2})
    sounds = speech(0.9, 0.6)
    with torch.no_grad():
        together = model.encode(model.features(sounds))
        for row, sound in enumerate(sounds):
            alone = model.encode(model.features([sound]))
            count = int(alone.num_frames[0]) if alone.num_frames is not None else 0
            torch.testing.assert_close(together.states[row, :count], alone.states[0], rtol=1e-3, atol=1e-4)
        plain = make_model(kind).encode(model.features(sounds))
        assert not torch.allclose(together.states, plain.states, atol=1e-3)
        if kind == "conformer":
            save(model, tmp_path / "model")
            back = load(tmp_path / "model").encode(model.features(sounds))
            torch.testing.assert_close(back.states, together.states)


def test_layers_that_cannot_be_read_are_reported() -> None:
    with pytest.raises(SprachbundError, match="encoder_layers names layer 2; the encoder's are 0 to 1"):
        make_model(projector={"encoder_layers": (0, 2)})
    with pytest.raises(SprachbundError, match="cannot be read: it shortens speech behind them, or hears"):
        make_model("wavlm by group", projector={"encoder_layers": (0,)})


def test_only_adapters_up_to_a_layer_learn_from_it() -> None:
    model = make_model(projector={"encoder_layers": (0,), "spliced_frames": 1})
    with torch.no_grad():
        model.projector.expand.weight[:, : model.encoder.width] = 0  # nothing of the last states is read
    tokens = model.hear(model.features(speech(0.8)))
    torch.stack([routing.group_log_probs()[:, 0].sum() for routing in tokens.routings]).sum().backward()
    adapters = {n: p for n, p in model.encoder.named_parameters() if "lora_B" in n}
    moved = {name for name, p in adapters.items() if p.grad is not None and bool(p.grad.any())}
    assert moved == {name for name in adapters if ".layers.0." in name} != set()

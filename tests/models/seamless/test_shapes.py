"""The published shapes, on the meta device."""

import pytest
import torch
import transformers

from sprachbund.models.seamless import Seamless, num_parameters
from sprachbund.models.seamless.checkpoints import preset, speech_to_text


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "published"),
    [("medium", 357_434_688, 463_917_056, 1.2e9), ("large-v2", 635_046_720, 866_795_520, 2.3e9)],
)
def test_parameters_are_those_of_transformers(
    name: str, encoder: int, decoder: int, published: float
) -> None:
    model = Seamless.shape(name)
    with torch.device("meta"):
        hf_model = speech_to_text(preset(name))
        whole = getattr(transformers, type(hf_model).__name__.replace("ForSpeechToText", "Model"))(
            preset(name)
        )
    assert num_parameters(model.encoder) == num_parameters(hf_model.speech_encoder) == encoder
    assert num_parameters(model.decoder) == num_parameters(hf_model.text_decoder) == decoder
    assert num_parameters(model) == num_parameters(hf_model)
    assert num_parameters(whole) == pytest.approx(published, rel=0.05), (
        "speech output and text encoder included"
    )
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_second_feed_forwards_have_the_published_width() -> None:
    modules = dict(Seamless.shape("medium").named_modules())
    result = [modules[f"encoder.layers.{i}.feed_forward_out"] for i in range(12)]
    assert {(m.expand.in_features, m.expand.out_features) for m in result} == {(1024, 4096)}
    linears = result[10].expand, result[10].contract
    assert sum(p.numel() for linear in linears for p in linear.parameters()) == 8_393_728

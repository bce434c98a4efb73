"""Starts made of other models' encoder layers: exactly the layers named, and nothing else."""

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, StreamingPart, TransducerPart
from sprachbund.research.encoder_transfer.splice import check_encoders_alone, read_layers, splice
from tests.training import made

LAYERS = 3


def make(seed: int, **changes: object) -> Conformer:
    plain = made.make_model()
    parts = {
        "num_encoder_layers": LAYERS,
        "num_decoder_layers": 0,
        "streaming": StreamingPart(left_context=16, right_contexts=(6, 1), stem_channels=4),
        "transducer": TransducerPart(prediction_width=8, prediction_layers=1, joint_width=8),
        **changes,
    }
    torch.manual_seed(seed)
    return Conformer(plain.config.model_copy(update=parts), plain.tokenizer, plain.transcript_tokenizer)


@pytest.fixture(scope="module")
def models() -> dict[str, Conformer]:
    return {"ml": make(1), "en": make(2), "other": make(3)}


def origin(spliced: Conformer, models: dict[str, Conformer]) -> dict[str, str]:
    """Part of the model to the only source whose tensors it has."""
    result: dict[str, str] = {}
    for name, value in spliced.state_dict().items():
        part = ".".join(name.split(".")[: 3 if name.startswith("encoder.layers") else 2])
        same = [source for source, model in models.items() if model.state_dict()[name].equal(value)]
        if len(same) == 1:
            assert result.setdefault(part, same[0]) == same[0], name
        assert same, name
    return result


def test_encoders_of_another_kind_are_refused(models: dict[str, Conformer]) -> None:
    """What no tensor's shape tells: features, heads, scaled inputs."""
    parts = {"left_context": 16, "right_contexts": (6, 1), "stem_channels": 4}
    for changes, said in (
        ({"streaming": StreamingPart(**parts, front_end="nemo")}, "features 'nemo', 'fixed' is needed"),
        ({"num_heads": 4}, "attention heads 4, 2 is needed"),
        ({"streaming": StreamingPart(**parts, scale_input=True)}, "scaled inputs True, False is needed"),
    ):
        with pytest.raises(SprachbundError, match=said):
            splice(models["ml"], {"en": make(2, **changes)}, "en")


@pytest.mark.parametrize(
    ("text", "layers", "stem"),
    [
        ("en", ("en", "en", "en"), "en"),
        ("ml", ("ml", "ml", "ml"), "ml"),
        ("en:0-1 ml:2", ("en", "en", "ml"), "ml"),
        ("ml:0-0 en:1 other:2-2", ("ml", "en", "other"), "ml"),
        ("other:2 ml:0-1", ("ml", "ml", "other"), "ml"),
        ("other:2 en:0-1", ("en", "en", "other"), "ml"),
        ("en:0 en:1-2", ("en", "en", "en"), "en"),
    ],
)
def test_exactly_the_layers_named(
    models: dict[str, Conformer], text: str, layers: tuple[str, ...], stem: str
) -> None:
    """And the subsampling of the multilingual model, unless the whole encoder is another's."""
    before = {name: value.clone() for name, value in models["ml"].state_dict().items()}
    made_ = splice(models["ml"], models, text)
    result = origin(made_, models)
    assert tuple(result[f"encoder.layers.{n}"] for n in range(LAYERS)) == layers
    assert result["encoder.stem"] == stem
    assert {source for part, source in result.items() if not part.startswith("encoder")} == {"ml"}
    assert all(value.equal(before[name]) for name, value in models["ml"].state_dict().items())
    check_encoders_alone({"ml": models["ml"], "made": made_})


def test_a_random_encoder_is_nobodys_and_the_same_for_a_seed(models: dict[str, Conformer]) -> None:
    drawn = [splice(models["ml"], models, "random", seed=seed) for seed in (0, 0, 1)]
    check_encoders_alone({"ml": models["ml"], **{str(n): model for n, model in enumerate(drawn)}})
    name = "encoder.layers.0.attention.query.weight"
    one, same, other = (model.state_dict()[name] for model in drawn)
    assert one.equal(same)
    assert not one.equal(other)
    assert not any(model.state_dict()[name].equal(one) for model in models.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fr", "no model 'fr' to take encoder layers from; there are ml, en, other, random"),
        ("en:0-3", "names layer 3; the encoder has layers 0 to 2"),
        ("en:0-1", "does not say where layer 2 comes from"),
        ("en:0-1 ml:1-2", "names layer 1 twice"),
        ("en:2-0", "ends before it begins"),
        ("en:a-b ml:2", "names no layers"),
    ],
)
def test_layers_that_there_are_not(models: dict[str, Conformer], text: str, said: str) -> None:
    with pytest.raises(SprachbundError, match=said):
        splice(models["ml"], models, text)


def test_shapes_have_to_be_the_same(models: dict[str, Conformer]) -> None:
    with pytest.raises(SprachbundError, match=r"of wide has shape .*take models of the same shape"):
        splice(models["ml"], {"wide": make(4, feed_forward_width=48)}, "wide")
    with pytest.raises(SprachbundError, match=r"short has no encoder\.layers\.2"):
        splice(models["ml"], {"short": make(4, num_encoder_layers=2)}, "short")


def test_arms_that_differ_in_more_than_the_encoder_are_named(models: dict[str, Conformer]) -> None:
    with pytest.raises(SprachbundError, match=r"ml and en differ in decoder\.positions, not in the encoder"):
        check_encoders_alone({"ml": models["ml"], "en": models["en"]})
    other = splice(models["ml"], models, "en")
    with torch.no_grad():
        other.transducer.joint.out.bias[0] += 1e-3
    with pytest.raises(SprachbundError, match=r"transducer\.joint\.out\.bias"):
        check_encoders_alone({"ml": models["ml"], "en": other})
    with pytest.raises(SprachbundError, match=r"config\.ctc_weight"):
        check_encoders_alone({"ml": models["ml"], "en": make(1, ctc_weight=0.25)})


def test_ranges_are_read_with_both_ends() -> None:
    assert [(p.source, p.first, p.last) for p in read_layers("a:0-10 b:11", 12)] == [
        ("a", 0, 10),
        ("b", 11, 11),
    ]

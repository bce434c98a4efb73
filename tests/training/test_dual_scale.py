"""What is built around a model: which of its weights move, from what new parts start, and what does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.whisper import PRESETS, Whisper
from sprachbund.nn.drafts import Parasite
from sprachbund.training.dual_scale import DualScaleOptions, make_dual_scale
from sprachbund.training.lora import merge_lora
from tests.models.whisper_support import TINY, make_directory

DEEP = replace(TINY, encoder_layers=3, decoder_layers=6)
OPTIONS = DualScaleOptions(
    decoder_layers=4, text_layers=3, blocks=2, whole_layers=1, lora_rank=4, lora_alpha=8
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    from sprachbund.models.whisper import load

    path: Path = tmp_path_factory.mktemp("deep")
    make_directory(path, DEEP)
    return load(path)


def test_layers_of_the_decoder_stay_bit_for_bit_and_the_model_stays_whole(model: Whisper) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    whole = make_dual_scale(model, OPTIONS)
    for new, old in enumerate((0, 1, 3, 5)):
        kept = whole.base.decoder.layers[new].state_dict()
        assert all(torch.equal(kept[name], w) for name, w in model.decoder.layers[old].state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_text_encoder_starts_from_the_first_layers_before_pruning(model: Whisper) -> None:
    whole = make_dual_scale(model, OPTIONS)
    assert whole.text_encoder is not None
    for n in range(3):
        own, theirs = whole.text_encoder.layers[n], model.decoder.layers[n]
        for part in ("self_attention", "feed_forward"):
            result, wanted = getattr(own, part).state_dict(), getattr(theirs, part).state_dict()
            assert all(torch.equal(result[name], wanted[name]) for name in wanted)


def test_the_draft_network_fits_the_pruned_decoder(model: Whisper) -> None:
    whole = make_dual_scale(model, OPTIONS)
    assert isinstance(whole.draft_network, Parasite)
    assert [list(group) for group in whole.draft_network.shape.groups] == [[0, 1], [2, 3]]
    wanted = whole.base.decoder.layers[3].self_attention.query.weight
    assert torch.equal(whole.draft_network.blocks[1].query.weight, wanted)


def test_what_moves(model: Whisper) -> None:
    whole = make_dual_scale(model, OPTIONS)
    moving = {name for name, p in whole.named_parameters() if p.requires_grad}
    for n in (0, 1):
        inside = {name for name in moving if name.startswith(f"base.encoder.layers.{n}.")}
        assert len(inside) == 2 * 6  # two matrices on each of four attention and two feed-forward layers
        assert all("lora_" in name for name in inside)
    plain = [name for name, _ in whole.named_parameters() if "lora_" not in name]
    for name in plain:
        above = name.startswith(
            ("base.decoder.", "base.encoder.layers.2.", "text_encoder.", "draft_network.")
        )
        assert (name in moving) == above, name
    layer = whole.base.encoder.layers[0].self_attention.query
    assert layer.scaling["default"] == 2.0
    assert layer.lora_A["default"].weight.shape == (4, 32)


def test_merged_it_is_the_family_again(model: Whisper) -> None:
    whole = make_dual_scale(model, OPTIONS)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    merge_lora(whole)
    result, before = whole.base.encoder.state_dict(), model.encoder.state_dict()
    assert result.keys() == before.keys()
    moved = {name for name in before if not torch.equal(result[name], before[name])}
    assert moved == {
        f"layers.{n}.{part}.weight"
        for n in (0, 1)
        for part in (
            *(f"self_attention.{x}" for x in ("query", "key", "value", "out")),
            *(f"feed_forward.{x}" for x in ("expand", "contract")),
        )
    }


def test_an_encoder_that_is_trained_wholly_has_no_adapters(model: Whisper) -> None:
    whole = make_dual_scale(model, OPTIONS.model_copy(update={"whole_layers": 3}))
    assert not any("lora_" in name for name, _ in whole.named_parameters())
    resting = [name for name, p in whole.named_parameters() if not p.requires_grad]
    assert resting == ["base.encoder.positions"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_layers": 7}, "7 layers cannot be kept of 6"),
        (
            {"text_layers": 7},
            "7 text layers cannot start from 6 decoder layers; give 1 to 6; 0 leaves the text",
        ),
        ({"blocks": 5}, "5 blocks cannot share the decoder's 4 layers"),
    ],
)
def test_what_is_not_there_is_named(model: Whisper, changes: dict[str, int], said: str) -> None:
    with pytest.raises(SprachbundError, match=said):
        make_dual_scale(model, OPTIONS.model_copy(update=changes))


def test_counts_at_the_published_shape() -> None:
    """561 M for translation, 605 M with the parasite; a decoder layer of 16,794,624; 14 N D^2 in the parasite."""
    with torch.device("meta"):
        medium = Whisper.shape(PRESETS["medium"])
        whole = make_dual_scale(medium, DualScaleOptions(decoder_layers=12))
    layer = sum(p.numel() for p in whole.base.decoder.layers[0].parameters())
    assert layer == 16_794_624
    merged = sum(p.numel() for n, p in whole.base.named_parameters() if "lora_" not in n)
    translation = merged - whole.base.encoder.positions.numel()
    assert round(translation / 1e6) == 561
    assert whole.draft_network is not None
    matrices = sum(p.numel() for p in whole.draft_network.parameters() if p.ndim > 1)
    assert matrices == 14 * 3 * 1024**2
    assert round(matrices / 1e6, 1) == 44.0
    assert round((translation + matrices) / 1e6) == 605
    adapters = sum(p.numel() for n, p in whole.named_parameters() if "lora_" in n)
    # Four square matrices of attention, and two of 1024 x 4096, on each of twenty layers.
    assert adapters == 20 * 64 * (4 * 2 * 1024 + 2 * 5 * 1024)

"""Growing: layers stand where they should, what comes out hardly changes, and pruning takes it back."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import load, save
from sprachbund.models.pruning import with_layers
from sprachbund.research.dual_scale.recipe import grow_decoder
from tests.models import split_support
from tests.models.seamless.support import make_pair
from tests.models.whisper_support import TINY, with_tokens

LAST = ("self_attention.out", "cross_attention.out", "feed_forward.contract")


def conformer() -> Any:
    return split_support.make_model(num_encoder_layers=2, num_decoder_layers=2)


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    memory = torch.randn(2, 5, model.decoder.layers[0].cross_attention.key.in_features)
    cache = model.decoder.start(memory, torch.tensor([5, 3]))
    with torch.no_grad():
        result: torch.Tensor = model.decoder.step(torch.tensor([[1, 2, 3], [3, 2, 1]]), cache)
    return result


def test_every_layer_stands_in_a_row_of_copies_that_add_their_part() -> None:
    old = conformer()
    new = grow_decoder(old, 6)
    assert new.config.num_decoder_layers == len(new.decoder.layers) == 6
    for i, layer in enumerate(new.decoder.layers):
        before = old.decoder.layers[i // 3].state_dict()
        for name, value in layer.state_dict().items():
            wanted = before[name] / 3 if name.startswith(LAST) else before[name]
            assert torch.equal(value, wanted), (i, name)
    pointers = [p.data_ptr() for p in new.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_the_more_copies_add_little_each_the_less_changes() -> None:
    model = conformer()
    for layer in model.decoder.layers:  # as if the model had hardly begun: what layers add is small
        for name in LAST:
            layer.get_submodule(name).weight.data *= 0.05
            layer.get_submodule(name).bias.data *= 0.05
    error = (logits(grow_decoder(model, 8)) - logits(model)).abs().max()
    unscaled = with_layers(model)
    unscaled.decoder.layers = torch.nn.ModuleList(model.decoder.layers[i // 4] for i in range(8))
    worse = (logits(unscaled) - logits(model)).abs().max()
    assert error < worse / 10


def test_a_grown_model_is_saved_and_loaded(tmp_path: Path) -> None:
    grown = grow_decoder(conformer(), 4)
    save(grown, tmp_path / "grown", bits=32)
    again = load(tmp_path / "grown")
    assert torch.equal(logits(again), logits(grown.eval()))


def test_alignment_heads_of_whisper_go_to_the_last_copy() -> None:
    model = with_tokens(generation={"alignment_heads": [[0, 1], [TINY.decoder_layers - 1, 0]]})
    grown = grow_decoder(model, 3 * TINY.decoder_layers)
    assert grown.config.decoder_layers == 3 * TINY.decoder_layers
    assert grown.config.encoder_layers == TINY.encoder_layers
    assert grown.checkpoint_files.generation["alignment_heads"] == [[2, 1], [3 * TINY.decoder_layers - 1, 0]]
    assert grown.pairs() == model.pairs()


@pytest.mark.parametrize("layers", [0, 1, 3, 5])
def test_no_multiple_is_refused(layers: int) -> None:
    with pytest.raises(
        SprachbundError, match=f"2 decoder layers cannot become {layers}: give a multiple of 2"
    ):
        grow_decoder(conformer(), layers)


def test_seamless_grows_too(tmp_path: Path) -> None:
    seamless = make_pair(tmp_path, "seamless_m4t")[1]
    layers = len(seamless.decoder.layers)
    grown = grow_decoder(seamless, 2 * layers)
    assert grown.config.decoder_layers == len(grown.decoder.layers) == 2 * layers


def test_what_is_split_or_unknown_is_refused() -> None:
    with pytest.raises(SprachbundError, match="token_mbart models cannot be pruned"):
        grow_decoder(SimpleNamespace(name="token_mbart"), 2)
    split = conformer()
    split.sharing_plan = "a plan"
    with pytest.raises(SprachbundError, match="split by languages does not grow: grow it first"):
        grow_decoder(split, 4)

"""Pruning: which layers stay, that they stay bit for bit, and that what depends on the depth follows."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperForConditionalGeneration

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import load as load_conformer
from sprachbund.models.conformer.io import save as save_conformer
from sprachbund.models.io import load as load_any
from sprachbund.models.pruning import kept_layers, prune_decoder, with_layers
from sprachbund.models.seamless.io import save as save_seamless
from sprachbund.models.whisper import PRESETS, Whisper, WhisperConfig, num_parameters, save
from tests.models import split_support
from tests.models.seamless.support import make_pair
from tests.models.whisper_support import TINY, make_directory

DEEP = replace(TINY, encoder_layers=4, decoder_layers=6)


@pytest.fixture(scope="module")
def whisper_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper")
    make_directory(path, DEEP, generation={"alignment_heads": [[0, 1], [3, 0], [5, 2]]})
    return path


def conformer(**sizes: object) -> Any:
    return split_support.make_model(**{"num_encoder_layers": 4, "num_decoder_layers": 5, **sizes})


def same_bits(new: torch.nn.Module, old: torch.nn.Module) -> None:
    there = old.state_dict()
    for name, value in new.state_dict().items():
        assert torch.equal(value, there[name]), name
        assert value.numel() == 0 or value.data_ptr() != there[name].data_ptr(), name


def test_the_published_layers_are_kept() -> None:
    assert kept_layers(24, 12) == (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23)
    assert kept_layers(24, 8) == (0, 3, 6, 9, 13, 16, 19, 23)


@given(st.integers(1, 60), st.data())
def test_kept_layers_are_in_order_with_both_ends_and_evenly_spread(count: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(min(2, count), count))
    layers = kept_layers(count, keep)
    assert len(layers) == keep == len(set(layers))
    assert layers[0] == 0
    assert layers[-1] == count - 1
    steps = {b - a for a, b in pairwise(layers)}
    assert not steps or max(steps) - min(steps) <= 1
    assert kept_layers(count, count) == tuple(range(count))


@pytest.mark.parametrize("keep", [-1, 0, 1, 7])
def test_too_few_or_too_many_are_refused_with_what_there_is(keep: int) -> None:
    with pytest.raises(SprachbundError, match=rf"{keep} layers cannot be kept of 6: .* give 2 to 6"):
        kept_layers(6, keep)


@pytest.mark.parametrize("layers", [(), (0, 0), (2, 1), (0, 5), (-1, 2)])
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(SprachbundError, match=r"layers of the decoder to keep: .* some of 0 to 4"):
        with_layers(conformer(), decoder=layers)


def test_another_family_is_refused() -> None:
    with pytest.raises(
        SprachbundError, match="token_mbart models cannot be pruned; conformer, whisper, seamless"
    ):
        prune_decoder(SimpleNamespace(name="token_mbart"), 1)


def test_medium_at_twelve_layers_has_the_published_size() -> None:
    medium = Whisper.shape(PRESETS["medium"])
    pruned = prune_decoder(medium, 12)
    count = sum(p.numel() for p in pruned.parameters())
    assert count == num_parameters(replace(PRESETS["medium"], decoder_layers=12))
    removed = sum(p.numel() for p in medium.parameters()) - count
    assert removed == 12 * 16_794_624
    assert round(count / 1e6) in (561, 562)


@torch.no_grad()
def test_every_layer_of_whisper_that_stays_has_its_bits(whisper_directory: Path) -> None:
    model: Any = load_any(whisper_directory)
    kept = (0, 2, 5)
    pruned = prune_decoder(model, 3)
    assert len(model.decoder.layers) == 6
    for new, old in enumerate(kept):
        same_bits(pruned.decoder.layers[new], model.decoder.layers[old])
    same_bits(pruned.encoder, model.encoder)
    assert torch.equal(pruned.decoder.embedding.weight, model.decoder.embedding.weight)
    assert pruned.config == replace(DEEP, decoder_layers=3)
    pruned.decoder.layers[0].self_norm.weight.add_(1)
    assert not torch.equal(
        pruned.decoder.layers[0].self_norm.weight, model.decoder.layers[0].self_norm.weight
    )


def test_alignment_heads_follow_their_layers(whisper_directory: Path) -> None:
    pruned = prune_decoder(load_any(whisper_directory), 3)
    assert pruned.checkpoint_files.generation["alignment_heads"] == [[0, 1], [2, 2]]
    assert pruned.alignment_heads == [(0, 1), (2, 2)]
    none_left = with_layers(pruned, decoder=(1,))
    assert "alignment_heads" not in none_left.checkpoint_files.generation
    assert none_left.alignment_heads == [(0, head) for head in range(DEEP.decoder_heads)]


@torch.no_grad()
@pytest.mark.parametrize(
    "keep", [{"decoder": (0, 2, 5)}, {"encoder": (0, 3)}, {"encoder": (0, 1, 3), "decoder": (5,)}]
)
def test_a_pruned_whisper_is_the_same_in_transformers(
    keep: dict[str, tuple[int, ...]], whisper_directory: Path, tmp_path: Path
) -> None:
    model: Any = load_any(whisper_directory)
    pruned = with_layers(model, **keep)
    save(pruned, tmp_path / "pruned")
    hf_model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "pruned").eval()
    # Independent of our pruning: the layers of transformers' own model, dropped by hand.
    whole = WhisperForConditionalGeneration.from_pretrained(whisper_directory).eval()
    for side, layers in keep.items():
        stack = getattr(whole.model, side)
        stack.layers = torch.nn.ModuleList(stack.layers[i] for i in layers)
    features, tokens = torch.randn(2, 80, 200), torch.randint(0, 256, (2, 5))
    wanted = whole(input_features=features, decoder_input_ids=tokens, use_cache=False).logits
    result = hf_model(input_features=features, decoder_input_ids=tokens).logits
    torch.testing.assert_close(result, wanted, atol=1e-4, rtol=1e-4)
    ours: Any = load_any(tmp_path / "pruned")
    memory = ours.encoder(features.transpose(1, 2))
    torch.testing.assert_close(
        ours.decoder.logits(ours.decoder(tokens, memory, None)), wanted, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("keep", [{"decoder": (0, 5)}, {"encoder": (0, 3)}])
def test_the_pairs_that_depths_would_suggest_are_not_taken_for_its_own(
    keep: dict[str, tuple[int, ...]], whisper_directory: Path, tmp_path: Path
) -> None:
    model: Any = load_any(whisper_directory)
    save(with_layers(model, **keep), tmp_path / "pruned")
    assert load_any(tmp_path / "pruned").pairs() == model.pairs()
    assert ("de", "en") in model.pairs()
    transcribes = with_layers(model, decoder=(0, 1, 2))
    transcribes.checkpoint_files.config["sprachbund"]["pairs"] = [["de", "de"]]
    save(transcribes, tmp_path / "distilled")
    save(with_layers(load_any(tmp_path / "distilled"), encoder=(0,)), tmp_path / "smaller")
    assert load_any(tmp_path / "smaller").pairs() == {("de", "de")}


@torch.no_grad()
def test_a_conformer_keeps_its_layers_through_a_directory(tmp_path: Path) -> None:
    model = conformer()
    pruned = with_layers(prune_decoder(model, 3), encoder=(0, 3))
    for new, old in enumerate((0, 2, 4)):
        same_bits(pruned.decoder.layers[new], model.decoder.layers[old])
    for new, old in enumerate((0, 3)):
        same_bits(pruned.encoder.layers[new], model.encoder.layers[old])
    save_conformer(pruned, tmp_path)
    again = load_conformer(tmp_path)
    assert (again.config.num_encoder_layers, again.config.num_decoder_layers) == (2, 3)
    features = model.features(split_support.make_sounds(2))
    torch.testing.assert_close(again.encode(features).states, pruned.encode(features).states, atol=0, rtol=0)


def test_a_plan_of_sharing_follows_its_layers(tmp_path: Path) -> None:
    splits = [split_support.make_split(f"decoder.layers.{i}.feed_forward", side="target") for i in (1, 4)]
    model = split_support.make_split_model(*splits, num_decoder_layers=5)
    pruned = with_layers(model, decoder=(0, 4))
    assert [split.module for split in pruned.sharing_plan.splits] == ["decoder.layers.1.feed_forward"]
    same_bits(pruned.decoder.layers[1], model.decoder.layers[4])
    save_conformer(pruned, tmp_path)
    assert load_conformer(tmp_path).sharing_plan == pruned.sharing_plan
    assert with_layers(model, decoder=(0, 2)).sharing_plan is None


def test_a_draft_is_left_behind() -> None:
    model = conformer()
    model.drafts = {"parasite": Path("draft.safetensors")}
    assert not prune_decoder(model, 3).drafts
    assert model.drafts


@torch.no_grad()
def test_seamless_keeps_its_layers_through_a_directory(tmp_path: Path) -> None:
    _, model = make_pair(tmp_path / "tokens", "seamless_m4t_v2", decoder_layers=4, speech_encoder_layers=3)
    pruned = with_layers(model, encoder=(0, 2), decoder=(0, 1, 3))
    for new, old in enumerate((0, 1, 3)):
        same_bits(pruned.decoder.layers[new], model.decoder.layers[old])
    for new, old in enumerate((0, 2)):
        same_bits(pruned.encoder.layers[new], model.encoder.layers[old])
    save_seamless(pruned, tmp_path / "pruned")
    again: Any = load_any(tmp_path / "pruned")
    assert (len(again.encoder.layers), len(again.decoder.layers)) == (2, 3)
    features = model.features(split_support.make_sounds(1))
    torch.testing.assert_close(
        again.encode(features).states, pruned.encode(features).states, atol=1e-5, rtol=1e-5
    )


def test_all_of_a_model_may_stay() -> None:
    sizes = WhisperConfig(**{**vars(DEEP)})
    assert prune_decoder(Whisper.shape(sizes), 6).config == sizes

"""A conformer whose decoder has another width than its encoder: saved, pruned, grown, split, drafted for, native."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sprachbund.decoding.drafts.network import ParasiteDraft
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.engines.choice import engine_for
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.models.conformer.io import load, save
from sprachbund.models.pruning import prune_decoder
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.nn.drafts import Parasite, ParasiteShape
from sprachbund.research.dual_scale.recipe import grow_decoder
from tests.engines.support import (
    compute_linears,
    needs_native,
    quantized_linear,
    randomised,
    relative_error,
)
from tests.models import split_support

SIZES = {"decoder_width": 48, "decoder_heads": 3, "decoder_feed_forward_width": 40, "num_decoder_layers": 3}
OPTIONS = DecodingOptions(draft=NONE, timestamps=False, max_tokens=12)
TARGETS = [[Target(language="de"), Target(language="ru")]] * 4


def wide(**sizes: Any) -> Conformer:
    return split_support.make_model(**{**SIZES, **sizes})


def spoken(family: Family) -> Memory:
    return family.encode(family.features(split_support.make_sounds(4)))


def stepped(model: Any) -> torch.Tensor:
    memory = spoken(model)
    tokens = torch.arange(24).reshape(4, 6) + 3
    result: torch.Tensor = model.step(tokens, model.start(memory))
    return result


def test_the_sizes_are_the_decoders_alone() -> None:
    model = wide()
    layer: Any = model.decoder.layers[0]
    assert model.decoder.embedding.weight.shape[1] == 48
    assert (layer.cross_attention.key.in_features, layer.cross_attention.key.out_features) == (32, 48)
    assert (layer.self_attention.num_heads, layer.feed_forward.expand.out_features) == (3, 40)
    assert model.encoder.layers[0].norm.normalized_shape == (32,)
    plain: Any = split_support.make_model().decoder.layers[0]
    assert plain.feed_forward.expand.out_features == 4 * 32


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 0.0), (8, 5e-2)])
@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path: Path, bits: Any, tolerance: float) -> None:
    model = wide()
    save(model, tmp_path, bits=bits)
    again = load(tmp_path)
    assert again.config == model.config
    assert relative_error(stepped(again), stepped(model)) <= tolerance


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    with pytest.raises(ValidationError, match="2 heads of the decoder do not divide its width 45"):
        ConformerConfig(
            source_languages=("de",), target_languages=("de",), width=32, num_heads=2, decoder_width=45
        )


@torch.no_grad()
def test_steps_equal_the_whole_row() -> None:
    model = wide()
    memory, tokens = spoken(model), torch.arange(24).reshape(4, 6) + 3
    whole = model.decoder.logits(model.decoder(tokens, memory.states, memory.num_frames))
    torch.testing.assert_close(stepped(model), whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_is_pruned_grown_and_split(tmp_path: Path) -> None:
    model = wide()
    pruned = prune_decoder(model, 2)
    assert torch.equal(pruned.decoder.layers[1].self_norm.weight, model.decoder.layers[2].self_norm.weight)
    grown = grow_decoder(pruned, 4)
    split_feed_forwards(
        grown, split_support.make_plan(split_support.make_split("decoder.layers.3.feed_forward"))
    )
    save(grown, tmp_path)
    again = load(tmp_path)
    assert again.config.num_decoder_layers == 4
    route = [[Target(language="de", source="en")]] * 4
    result, wanted = (search(one, spoken(one), route, OPTIONS) for one in (again, grown.eval()))
    assert [rows[0].tokens for rows in result] == [rows[0].tokens for rows in wanted]


def alone_and_together(family: Family) -> None:
    memory = spoken(family)
    together = search(family, memory, TARGETS, OPTIONS)
    for index, rows in enumerate(together):
        [alone] = search(family, memory.select(torch.tensor([index])), TARGETS[:1], OPTIONS)
        assert [row.tokens for row in alone] == [row.tokens for row in rows]
        for own, theirs in zip(alone, rows, strict=True):
            assert own.log_probability == pytest.approx(theirs.log_probability, rel=1e-5)


@torch.inference_mode()
def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    alone_and_together(wide())


@needs_native
@torch.inference_mode()
def test_a_row_is_the_same_alone_and_in_a_batch_of_the_native_engine() -> None:
    alone_and_together(engine_for(wide(), "native", threads=1, compare=False).family)


@needs_native
@torch.inference_mode()
def test_the_native_engine_is_torch_with_the_same_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide()
    native = engine_for(model, "native", threads=1, compare=False).family
    memory = spoken(model)
    tokens = torch.arange(24).reshape(4, 6) + 3
    result = native.step(tokens, native.start(memory))
    compute_linears(monkeypatch, quantized_linear)
    # What is left are bf16 keys and values and, by them, a few inputs that round the other way.
    assert relative_error(result, model.step(tokens, model.start(memory))) < 0.02


@needs_native
@torch.inference_mode()
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_parasite_of_its_width_changes_no_token(engine: Any) -> None:
    model = wide()
    family = engine_for(model, engine, threads=1, compare=False).family
    parasite = randomised(Parasite(ParasiteShape.of(model.decoder, num_blocks=2)), 3)
    draft = ParasiteDraft.around(parasite, model.decoder)
    draft.check(family)
    speculation = Speculation(draft, num_draft_tokens=2)
    result, wanted = (
        search(family, spoken(family), TARGETS, OPTIONS, None, given) for given in (speculation, None)
    )
    assert [[row.tokens for row in rows] for rows in result] == [
        [row.tokens for row in rows] for rows in wanted
    ]
    assert sum(report.checked for report in speculation.report()) > 0

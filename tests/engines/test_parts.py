"""What an engine says of each part is what computes there: seen from outside, while a text is written."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from sprachbund.engines.choice import engine_for, why_not_native
from sprachbund.engines.native_causal import NativeCausalLM
from sprachbund.engines.native_engine import NativeDecoder, NativeModule
from sprachbund.engines.parts import parts_of
from sprachbund.engines.torch_layers import Int8Linear, PackedLinear
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.cascade import Cascade
from sprachbund.models.drafts import DraftCard, write_draft
from sprachbund.models.streaming_onnx import OnnxEncoder, OnnxTransducer
from sprachbund.nn.quantized import BlockLinear
from tests.decoding.families import SLOW
from tests.engines.support import needs_native
from tests.models.contract import BUILDERS, Subject, make_subject

PACKED = (Int8Linear, PackedLinear, BlockLinear)
STEPS: dict[Any, tuple[str, ...]] = {
    NativeDecoder: ("start", "step", "states", "search", "logits"),
    NativeCausalLM: ("start", "step"),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BUILDERS],
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(request.param, tmp_path_factory.mktemp("parts"))


@contextmanager
def watched(family: Family, patch: pytest.MonkeyPatch) -> Iterator[dict[str, set[str]]]:
    """Who has computed in every part of a family: torch's layers with weights in matrices, and native modules."""
    assert isinstance(family, nn.Module)
    part_of = {id(m): name for name, child in family.named_children() for m in child.modules()}
    seen: dict[str, set[str]] = defaultdict(set)

    def saw(module: nn.Module, *_: Any) -> None:
        name = part_of.get(id(module))
        if name is None:
            return
        if isinstance(module, NativeModule):
            seen[name].add("native")
        elif isinstance(module, OnnxEncoder | OnnxTransducer):
            seen[name].add("ONNX Runtime")
        elif isinstance(module, PACKED) or any(p.ndim > 1 for p in module.parameters(recurse=False)):
            seen[name].add("torch")

    def watching(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **more: Any) -> Any:
            saw(self)
            return method(self, *args, **more)

        return call

    with patch.context() as inside:
        for kind, steps in STEPS.items():  # no call of a module, which a hook would see
            for name in steps:
                inside.setattr(kind, name, watching(getattr(kind, name)))
        hook = register_module_forward_hook(lambda module, *_: saw(module))
        try:
            yield seen
        finally:
            hook.remove()


@pytest.mark.parametrize("engine", ["torch", "native", "torch-int8"])
def test_every_family_says_what_computes_its_parts(
    subject: Subject, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = subject.family
    if isinstance(family, Cascade):
        halves = engine_for(family, "torch")
        assert halves.translator is not None
        assert halves.parts == engine_for(family.recogniser, "torch").parts
        assert halves.as_dict()["translator"]["parts"] == engine_for(family.translator, "torch").parts
        return
    if engine == "native" and (reason := why_not_native(family)) is not None:
        with pytest.raises(SprachbundError, match=re.escape(f"cannot run this model: {reason}")):
            engine_for(family, "native")
        return
    try:
        chosen = engine_for(family, engine, compare=False)
    except SprachbundError:  # a decoder that cannot be rearranged
        assert engine == "torch-int8"
        return
    with watched(chosen.family, monkeypatch) as seen:
        subject.written(chosen.family)
    assert seen
    said = {name: {kind.split(",")[0] for kind in parts.split("; ")} for name, parts in chosen.parts.items()}
    for name, kinds in seen.items():
        # Positions and embeddings count as torch's in what is said, though they are looked up without a layer.
        assert kinds <= said[name], f"{name} is computed by {kinds}, {chosen.parts}"
    for name, kinds in said.items():
        if name in seen:
            assert "native" not in kinds - seen[name], (
                f"{name} is not computed by the kernels, {chosen.parts}"
            )
    if engine == "torch":
        assert not any("native" in computes for computes in chosen.parts.values())


@needs_native
def test_a_decoder_that_nothing_runs_is_not_named(tmp_path: Path) -> None:
    family = BUILDERS["streaming transducer"].build(tmp_path)
    chosen = engine_for(family, "torch")
    assert chosen.parts["encoder"] == chosen.parts["transducer"] == "torch, fp32"
    assert "decoder" not in chosen.parts


@needs_native
def test_drafts_beside_a_native_language_model_are_those_of_python(tmp_path: Path) -> None:
    family: Any = BUILDERS["Qwen3-ASR"].build(tmp_path)
    chosen = engine_for(family, "native")
    chosen.family.drafts = {"token-map": tmp_path / "draft.safetensors"}
    write_draft(
        chosen.family.drafts["token-map"],
        DraftCard(kind="token-map", vocabulary_size=1),
        {"x": torch.ones(1)},
    )
    assert isinstance(chosen.family.capabilities.decoder, NativeCausalLM)
    assert parts_of(chosen.family)["draft token-map"] == "Python, a table"


@needs_native
def test_an_encoder_reads_the_embeddings_of_a_packed_decoder(tmp_path: Path) -> None:
    family: Any = BUILDERS["mBART"].build(tmp_path)
    packed: Any = engine_for(family, "native").family
    tokens = torch.tensor([[0, 5, 17], [16, 15, 3]])
    wanted = family.decoder.embedding(tokens)
    # Half a step of 8 bits, of the largest number in each row.
    near = wanted.abs().amax(-1, keepdim=True) / 254 * 1.001
    assert ((packed.decoder.embedding(tokens) - wanted).abs() <= near).all()

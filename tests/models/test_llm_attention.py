"""Attention of language models in training: the kernel of each call, the same result, and no trace in what is saved."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from sprachbund.models.speech_llm.attention import LONGEST_PLAIN, NAME
from sprachbund.models.speech_llm.llm import LanguageModel

transformers = pytest.importorskip("transformers")
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def _model(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=50,
        **options,
    )
    return transformers.LlamaForCausalLM(config).requires_grad_(False).eval()


def _loss(model: Any, rows: Tensor, *, in_bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        logits: Tensor = model(inputs_embeds=rows, use_cache=False).logits
    return logits.float().logsumexp(-1).sum()


def _kernels(run: Callable[[], object]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run()
    return {event.name for event in record.events()}


def _rows(length: int, *, grad: bool = True) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, length, 32, requires_grad=grad)


@pytest.mark.parametrize(
    ("length", "in_bf16", "grad", "is_fused"),
    [
        (20, True, True, False),
        (LONGEST_PLAIN, True, True, False),
        (LONGEST_PLAIN + 1, True, True, True),
        (20, False, True, True),
        (20, True, False, True),
    ],
    ids=["short in bf16", "the longest", "long", "in fp32", "without gradients"],
)
def test_kernel_of_a_call(length: int, in_bf16: bool, grad: bool, is_fused: bool) -> None:
    model = LanguageModel(_model()).model
    found = _kernels(lambda: _loss(model, _rows(length, grad=grad), in_bf16=in_bf16))
    assert (FUSED in found) == is_fused


def test_gradients_are_those_of_the_fused_kernel() -> None:
    """Against transformers' own way: exact in fp32; in bf16 both are as far from fp32, by its eight bits."""
    gradients = {}
    for name, model in (("own", LanguageModel(_model()).model), ("transformers", _model())):
        for in_bf16 in (False, True):
            rows = _rows(30)
            _loss(model, rows, in_bf16=in_bf16).backward()
            assert rows.grad is not None
            gradients[name, in_bf16] = rows.grad
    exact = gradients["transformers", False]
    assert torch.equal(gradients["own", False], exact)
    errors = {name: (gradients[name, True] - exact).norm() / exact.norm() for name in ("own", "transformers")}
    # Two layers of about ten roundings of 2**-9 each.
    assert errors["own"] < 20 * 2**-9
    assert errors["own"] < 1.5 * errors["transformers"]


def test_layers_that_are_computed_again_use_the_same_kernel() -> None:
    model = LanguageModel(_model()).model
    gradients = []
    for is_computed_again in (False, True):
        rows = _rows(30)
        if is_computed_again:
            loss = checkpoint(_loss, model, rows, in_bf16=True, use_reentrant=False)
        else:
            loss = _loss(model, rows, in_bf16=True)
        loss.backward()
        gradients.append(rows.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_what_is_saved_does_not_name_it(tmp_path: Any) -> None:
    model = LanguageModel(_model()).model
    assert model.config._attn_implementation == NAME
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text("utf-8")
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_another_attention_that_was_asked_for_stays() -> None:
    model = LanguageModel(_model(attn_implementation="eager")).model
    assert model.config._attn_implementation == "eager"


def test_a_model_that_has_a_single_attention_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    monitored = logging.getLogger("transformers")
    monitored.addHandler(caplog.handler)  # its messages do not reach the root
    try:
        model = LanguageModel(transformers.FalconForCausalLM(config)).model
    finally:
        monitored.removeHandler(caplog.handler)
    assert model.config._attn_implementation == "sdpa"
    assert not [one.message for one in caplog.records if "attention implementation" in one.message]

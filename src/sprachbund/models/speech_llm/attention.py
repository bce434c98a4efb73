"""Attention in the training of language models of transformers: the kernel that is the fastest for its rows.

On CPUs, the backward pass of torch's fused kernel in bf16 multiplies each head of each row by itself, and most of its
time is the beginning of small products. On rows as short as those of a sentence, plain products are faster.
`benchmarks/attention_backward.py` measures both.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sprachbund.models.speech_llm.checkpoints import library

NAME = "sprachbund_sdpa"
"""What transformers knows this attention by."""
LONGEST_PLAIN = 160
"""Keys up to which plain products are faster in bf16 (`benchmarks/attention_backward.json`)."""


def attend_by_length(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, which is its own by `scaled_dot_product_attention`.

    The choice depends on the call alone, so that layers that are computed again in the backward pass make the same one.

    Args:
        module: layer that attends.
        query: (R, H, Q, D/H).
        key: (R, H, C, D/H).
        value: (R, H, C, D/H).
        attention_mask: as transformers makes it for that function.
        options: everything else that a layer gives.
    """
    attend = library().integrations.sdpa_attention.sdpa_attention_forward
    if query.requires_grad and _computes_in_bf16_on_cpu(query) and key.shape[2] <= LONGEST_PLAIN:
        with sdpa_kernel(SDPBackend.MATH):
            attended: tuple[Tensor, None] = attend(module, query, key, value, attention_mask, **options)
    else:
        attended = attend(module, query, key, value, attention_mask, **options)
    return attended


def with_attention_by_length(model: Any) -> Any:
    """The same causal language model; its attention is `attend_by_length` where it was torch's fused kernel."""
    # Of models whose layers do not ask for their attention by name, it cannot be set; transformers would warn.
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return model
    transformers = library()
    transformers.AttentionInterface.register(NAME, attend_by_length)
    transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)
    model.set_attn_implementation(NAME)
    return model


def _computes_in_bf16_on_cpu(query: Tensor) -> bool:
    if query.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return dtype == torch.bfloat16

"""An assistant of transformers whose luck is set, as that of our own draft is (drafted.py).

It has a share of the model's decoder layers, reads the same encoder's output, and takes all its steps. Its logits are
then replaced: what the model will write is likeliest, with the probability asked for, or another token is. Of a wrong
token the confidence is below transformers' threshold, after which it proposes no further. No confidence of its own
could be better, which is in favour of transformers.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from transformers import WhisperForCausalLM, WhisperForConditionalGeneration
from worker import DRAFT_LAYERS

SURE, UNSURE = 20.0, 10.0
"""Of some 50,000 logits, all others 0: probabilities of 0.9999 and 0.3; the threshold is 0.4."""


class LuckyAssistant(WhisperForCausalLM):
    """Proposes the right token with a probability; one row at a time."""

    probability = 1.0

    def expect(self, written: tuple[int, ...]) -> None:
        """Before a call: prompt and tokens that the model will write. The same of a hundred draft tokens are wrong."""
        hundred = np.random.default_rng(0).permutation(100) >= round(100 * self.probability)
        self.written, self.wrong = written, itertools.cycle(hundred.tolist())

    def forward(  # `generate` passes what is named here
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        **more: Any,
    ) -> Any:
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        outputs = super().forward(input_ids, attention_mask, encoder_outputs, past_key_values, **more)
        position = past + input_ids.shape[1]
        if position < len(self.written):
            wrong = next(self.wrong)
            outputs.logits[:, -1] = 0.0
            outputs.logits[:, -1, self.written[position] - wrong] = UNSURE if wrong else SURE
        return outputs


def lucky_assistant(model: WhisperForConditionalGeneration, probability: float) -> LuckyAssistant:
    """An assistant of the first decoder layers of a model, sharing their weights."""
    config = copy.deepcopy(model.config)
    config.decoder_layers = max(2, config.decoder_layers // DRAFT_LAYERS)
    assistant = LuckyAssistant(config).to(model.dtype).eval()
    names = assistant.state_dict().keys() & model.state_dict().keys()
    assistant.load_state_dict({name: model.state_dict()[name] for name in names}, assign=True)
    assistant.tie_weights()
    assistant.generation_config = copy.deepcopy(model.generation_config)
    assistant.probability = probability
    return assistant


def fixed_point(write: Callable[[tuple[int, ...]], tuple[int, ...]], most: int = 5) -> tuple[int, ...]:
    """What is written when that is expected: in bf16 a token may come out otherwise beside others than alone.

    Args:
        write: gives the tokens that come out if some are expected.
        most: calls.
    """
    expected = write(())
    for _ in range(most):
        written = write(expected)
        if written == expected:
            return written
        expected = written
    raise RuntimeError(f"what is written still changed after {most} calls")

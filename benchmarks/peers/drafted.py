"""A draft model whose luck is set: random weights cost what trained ones do, but predict nothing.

The draft has a share of the model's decoder layers, on its encoder, and takes all its steps. What it came up with is
then replaced: by the token that the model will write, with the probability asked for, or by another one. The model
checks and refuses as always, so passes, refusals and texts are those of a draft that is accepted so often.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.drafts.base import DecodingState
from sprachbund.decoding.drafts.model import ModelDraft, ModelRun
from sprachbund.decoding.state import whole_prompt
from sprachbund.models.base import Family, Memory, Target


class LuckyDraft(ModelDraft):
    """Proposes the right token with a probability; one row at a time.

    Args:
        family: whose steps are taken.
        probability: of every draft token.
        num_listed: tokens among which it chooses; all where that is None.
        written: what the model is going to write; to be set before a search.
    """

    def __init__(self, family: Family, probability: float, num_listed: int | None) -> None:
        listed = None if num_listed is None else torch.arange(num_listed)
        super().__init__(family, {"en>en": probability}, listed=listed)
        self.probability, self.written = probability, list[int]()
        self.luck = np.random.default_rng(0)

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> ModelRun:
        run = super().start(family, memory, targets, capacity)
        return LuckyRun(self, run, len(whole_prompt(family, targets[0])))


class LuckyRun(ModelRun):
    def __init__(self, draft: LuckyDraft, run: ModelRun, prompt: int) -> None:
        self.__dict__.update(run.__dict__)
        self._draft, self._prompt = draft, prompt

    def propose(self, state: DecodingState, count: int) -> Tensor:
        tokens = super().propose(state, count)
        position = int(state.lengths[0]) - self._prompt
        right: Any = torch.tensor([self._draft.written[position : position + tokens.shape[1]]])
        wrong = torch.from_numpy(self._draft.luck.random(right.shape) >= self._draft.probability)
        tokens[:, : right.shape[1]] = torch.where(wrong, right - 1, right)
        return tokens

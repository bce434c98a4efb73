"""What a search does between the passes of its model: little, and no question to the device but for the outcome."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.models.base import Target
from tests.decoding.scripted_drafts import ScriptedDraft
from tests.decoding.test_speculative import PLAIN
from tests.decoding.tiny_family import TinyFamily, random_memory

ASKING = ("item", "_local_scalar_dense", "is_nonzero", "nonzero")
"""Operations that wait for the device."""


class Between(TorchDispatchMode):
    """Counts tensor operations outside the passes, pass by pass."""

    def __init__(self, family: TinyFamily) -> None:
        super().__init__()
        self.counts: list[Counter[str]] = [Counter()]
        self._step, self._inside = family.step, False
        family.step = self._passed  # type: ignore[method-assign]

    def _passed(self, *args: Any) -> torch.Tensor:
        self._inside = True
        logits = self._step(*args)
        self._inside = False
        self.counts.append(Counter())
        return logits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._inside:
            self.counts[-1][function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def between(drafted: bool, num_rows: int) -> list[Counter[str]]:
    """Operations of each round in which no row ends."""
    family, memory = TinyFamily(seed=8, max_tokens=40), random_memory([7] * num_rows, 8)
    family.suppressed = lambda target: family._mask([0])  # type: ignore[method-assign]
    draft = ScriptedDraft(script=lambda row, at: at % 17 or 1)
    speculation = Speculation(draft, num_draft_tokens=2) if drafted else None
    with Between(family) as counting:
        search(family, memory, [[Target(language="de")]] * num_rows, PLAIN, None, speculation)
    assert len(counting.counts) > 12
    return counting.counts[2:-3]  # without the prompt, and the rounds in which the limit is reached


@pytest.mark.parametrize("num_rows", [1, 8])
@pytest.mark.parametrize("drafted", [False, True])
def test_no_single_number_is_asked_of_the_device(drafted: bool, num_rows: int) -> None:
    for operations in between(drafted, num_rows):
        assert not any(operations[name] for name in ASKING), operations


def test_rounds_take_few_operations_for_any_number_of_rows() -> None:
    plain, one, eight = between(False, 1), between(True, 1), between(True, 8)
    assert {each.total() for each in one} == {each.total() for each in eight}
    # Most of what there is more than without a draft is how arrays become tensors and come back.
    assert max(each.total() for each in one) <= max(each.total() for each in plain) + 16

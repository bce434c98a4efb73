"""Muon is torch's in bf16, and in fp32 what the iterations make of every singular value."""

import pytest
import torch
from torch import Tensor

from sprachbund.training import muon
from sprachbund.training.muon import COEFFICIENTS, NUM_ITERATIONS, Muon, orthogonalized

SHAPES = [(24, 24), (48, 16), (16, 40)]


def moved(optimizer_of, steps: int = 4) -> list[Tensor]:
    """Matrices after some steps along random gradients."""
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = optimizer_of(parameters)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_in_bf16_a_step_is_that_of_torch(monkeypatch) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has Muon from 2.9 on")
    monkeypatch.setattr(muon, "is_fast_in_bf16", lambda device: True)
    options = {"lr": 0.02, "weight_decay": 0.1}
    expected = moved(lambda p: torch.optim.Muon(p, adjust_lr_fn="match_rms_adamw", **options))
    for own, theirs in zip(moved(lambda p: Muon(p, **options)), expected, strict=True):
        assert torch.equal(own, theirs)


def test_without_bf16_a_step_is_near_it(monkeypatch) -> None:
    results = []
    for is_fast in (True, False):
        monkeypatch.setattr(muon, "is_fast_in_bf16", lambda device, answer=is_fast: answer)
        results.append(moved(lambda p: Muon(p, lr=0.02, weight_decay=0.1)))
    start = moved(lambda p: Muon(p, lr=0.02, weight_decay=0.1), steps=0)
    for half, single, before in zip(*results, start, strict=True):
        assert not torch.equal(half, single)
        moved_by = (single - before).norm()
        assert (half - single).norm() < 0.03 * moved_by  # bf16 has 8 bits, and five iterations amplify


@pytest.mark.parametrize("shape", SHAPES)
def test_every_singular_value_is_brought_near_1_and_its_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values /= values.norm()  # that of the matrix (Frobenius)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    expected = (left * values) @ right
    assert torch.allclose(orthogonalized(matrix).double(), expected, atol=1e-4)
    assert 0.5 < float(values.min()) < float(values.max()) < 1.5


def test_a_closure_computes_the_loss_with_gradients() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([parameter], lr=0.1, weight_decay=0.0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (parameter**2).sum()
        value.backward()
        return value

    assert float(optimizer.step(loss).detach()) == 4.0
    assert float((parameter**2).sum()) < 4.0

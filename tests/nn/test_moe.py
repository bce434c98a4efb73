"""The mixture against loops written out, and the laws of its two losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.nn.moe import Experts, Load, MixtureOfExperts, Router, Routing, balance_loss, language_losses

D, F, G, SIZE, C = 6, 5, 3, 2, 2
K = G * SIZE


def make_mixture(num_chosen: int = C, seed: int = 0, dtype: torch.dtype = torch.float64) -> MixtureOfExperts:
    torch.manual_seed(seed)
    mixture = MixtureOfExperts(D, F, num_groups=G, group_size=SIZE, num_chosen=num_chosen)
    return mixture.to(dtype)


def routed(scores: Tensor, num_groups: int, num_chosen: int) -> Routing:
    """A routing by given scores (N, K)."""
    router = Router(
        scores.shape[1],
        num_groups=num_groups,
        group_size=scores.shape[1] // num_groups,
        num_chosen=num_chosen,
    )
    with torch.no_grad():
        router.score.weight.copy_(torch.eye(scores.shape[1]))
    return router(scores)


def by_expert(experts: Experts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The usual loop: for every expert the rows that chose it, found by comparing."""
    out = x.new_zeros(*chosen.shape, x.shape[1])
    for e, branch in enumerate(experts.branches):
        row, slot = (chosen == e).nonzero(as_tuple=True)
        if len(row):
            out = out.index_put((row, slot), branch(x[row]))
    return (out * weights[..., None].to(out.dtype)).sum(1)


def by_row(experts: Experts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The definition."""
    rows = []
    for row, own, w in zip(x, chosen.tolist(), weights, strict=True):
        rows.append(sum(w[i] * experts.branches[e](row[None])[0] for i, e in enumerate(own)))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, K), st.integers(0, 9))
def test_grouped_dispatch_is_the_naive_loop(num_rows: int, num_chosen: int, seed: int) -> None:
    mixture = make_mixture(num_chosen, seed)
    x = torch.randn(num_rows, D, dtype=torch.float64, requires_grad=True)
    routing = mixture.router(x)
    grads = []
    for form in (mixture.experts, lambda *a: by_expert(mixture.experts, *a)):
        y = form(x, routing.experts, routing.weights)
        parameters = [x, mixture.router.score.weight, *mixture.experts.parameters()]
        cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        grads.append((y, torch.autograd.grad(y, parameters, cotangent, retain_graph=True, allow_unused=True)))
    (ours, own_grads), (naive, naive_grads) = grads
    assert torch.equal(ours, naive)
    for a, b in zip(own_grads, naive_grads, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours, by_row(mixture.experts, x, routing.experts, routing.weights.double()))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, K), st.integers(0, 9))
def test_weights_are_the_chosen_probabilities_brought_to_one(
    num_rows: int, num_chosen: int, seed: int
) -> None:
    scores = torch.randn(num_rows, K, generator=torch.Generator().manual_seed(seed))
    routing = routed(scores, G, num_chosen)
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(num_rows))
    p = scores.softmax(-1).gather(1, routing.experts)
    torch.testing.assert_close(routing.weights, p / p.sum(1, keepdim=True))
    assert (routing.group_log_probs().exp().sum(1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("context", [1, 3])
def test_a_router_with_context_reads_the_neighbours_of_a_row_in_its_utterance(context: int) -> None:
    torch.manual_seed(0)
    router = Router(D, num_groups=G, group_size=SIZE, num_chosen=C, context=context)
    assert router.context is not None
    kernel = router.context.weight[:, 0]  # (D, 2 context + 1)
    utterances = torch.randn(12, D).split([5, 0, 1, 6])
    wanted = []
    for rows in utterances:
        for t in range(len(rows)):
            read = rows[t].clone()
            for offset in range(-context, context + 1):
                if 0 <= t + offset < len(rows):
                    read += kernel[:, context + offset] * rows[t + offset]
            wanted.append(router.score(read))
    probs = torch.stack(wanted).log_softmax(-1)
    valid = torch.arange(6) < torch.tensor([5, 0, 1, 6])[:, None]
    together = router(torch.cat(utterances), None, valid)
    torch.testing.assert_close(together.log_probs, probs)
    torch.testing.assert_close(router(utterances[3]).log_probs, probs[-6:])


def test_choosing_all_experts_is_the_dense_mixture() -> None:
    mixture = make_mixture(K)
    x = torch.randn(7, D, dtype=torch.float64)
    normed = mixture.norm(x)
    p = mixture.router.score(normed).float().softmax(-1).double()
    dense = x + sum(p[:, e : e + 1] * branch(normed) for e, branch in enumerate(mixture.experts.branches))
    torch.testing.assert_close(mixture(x)[0], dense, rtol=1e-6, atol=1e-6)  # the router is fp32


def test_a_single_expert_is_a_feed_forward() -> None:
    mixture = MixtureOfExperts(D, F, num_groups=1, group_size=1, num_chosen=1)
    x = torch.randn(5, D)
    out, routing = mixture(x)
    torch.testing.assert_close(out, x + mixture.experts.branches[0](mixture.norm(x)))
    assert balance_loss(routing) == 1
    assert language_losses(routing, torch.ones(5, 1, dtype=torch.bool)).abs().max() == 0


def test_an_absent_expert_has_no_gradient_at_all() -> None:
    mixture = make_mixture()
    allowed = torch.tensor([True, False, True]).expand(9, G)
    out, routing = mixture(torch.randn(9, D, dtype=torch.float64), allowed)
    out.square().sum().backward()
    assert not set(routing.experts.flatten().tolist()) & {2, 3}
    used = set(routing.experts.flatten().tolist())
    for e, branch in enumerate(mixture.experts.branches):
        assert (branch.expand.weight.grad is not None) == (e in used)
    assert mixture.router.score.weight.grad[2:4].abs().max() == 0
    assert torch.isfinite(mixture.router.score.weight.grad).all()


def test_all_rows_may_choose_one_expert() -> None:
    mixture = make_mixture(1)
    with torch.no_grad():
        mixture.router.score.weight.zero_()
        mixture.router.score.weight[4] = 1.0
    x = torch.rand(50, D, dtype=torch.float64)
    routing = mixture.router(x)
    assert (routing.experts == 4).all()
    y = mixture.experts(x, routing.experts, routing.weights)
    torch.testing.assert_close(y, mixture.experts.branches[4](x))


def test_fewer_allowed_than_chosen_leaves_the_others_without_weight() -> None:
    scores = torch.randn(5, K)
    router = Router(K, num_groups=G, group_size=SIZE, num_chosen=4)
    routing = router(scores, torch.tensor([False, True, False]).expand(5, G))
    assert ((routing.weights > 0).sum(1) == SIZE).all()
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(5))
    assert torch.isfinite(balance_loss(routing))
    assert (Load.of(routing).choices[[0, 1, 4, 5]] == 0).all()


def test_more_experts_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="7 experts cannot be chosen of 6"):
        Router(D, num_groups=G, group_size=SIZE, num_chosen=7)


def test_16_bits_are_near_and_choose_the_same() -> None:
    mixture = make_mixture(dtype=torch.float32)
    x = torch.randn(64, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, routing = mixture(x)
    exact, wanted = mixture(x)
    assert routing.log_probs.dtype == torch.float32
    assert torch.equal(routing.experts, wanted.experts)
    assert (low.float() - exact).abs().max() < 0.05
    half = make_mixture(dtype=torch.bfloat16)
    out, routing = half(x.bfloat16())
    assert out.dtype == torch.bfloat16
    same = (routing.experts == wanted.experts).all(1)  # the norm before the router is in 16 bits here
    assert same.float().mean() > 0.9
    assert (out.float() - exact)[same].abs().max() < 0.05


# The losses: section 6 of the specification.


def test_a_uniform_router() -> None:
    scores = torch.zeros(G * 4, G * 4)
    routing = routed(scores, G, G * 4)  # ties: all are chosen
    assert balance_loss(routing).item() == pytest.approx(1)
    torch.testing.assert_close(routing.group_log_probs().exp(), torch.full((G * 4, G), 1 / G))
    one = torch.eye(G, dtype=torch.bool)[torch.arange(G * 4) % G]
    torch.testing.assert_close(language_losses(routing, one), torch.full((G * 4,), math.log(G)))
    every = torch.ones(G * 4, G, dtype=torch.bool)
    assert language_losses(routing, every).abs().max() < 1e-6


def test_all_mass_on_the_right_group_costs_nothing_and_one_expert_taking_all_costs_n() -> None:
    scores = torch.full((8, 12), -60.0)
    scores[:, 5] = 60.0  # second expert of the second of three groups
    routing = routed(scores, 3, 1)
    right = torch.tensor([False, True, False]).expand(8, 3)
    assert language_losses(routing, right).abs().max() == 0
    assert balance_loss(routing).item() == pytest.approx(4)
    assert language_losses(routing, ~right).min() > 100


def test_choices_that_take_turns_are_even() -> None:
    scores = torch.full((12, 12), -40.0)
    scores[torch.arange(12), torch.arange(12)] = 40.0
    assert balance_loss(routed(scores, 3, 1)).item() == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 99))
def test_balance_is_what_the_formula_says_and_moves_no_mass_between_groups(
    num_rows: int, num_chosen: int, seed: int
) -> None:
    scores = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    routing = routed(scores, 2, num_chosen)
    loss = balance_loss(routing)
    assert loss.item() == pytest.approx(written_out(scores.detach(), routing, 2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.unflatten(1, (2, 4)).sum(-1).abs().max() < 1e-6


def written_out(scores: Tensor, routing: Routing, num_groups: int) -> float:
    """L_bal with lists."""
    size = scores.shape[1] // num_groups
    p = scores.softmax(-1).tolist()
    terms = []
    for g in range(num_groups):
        own = range(g * size, (g + 1) * size)
        chosen = [[e for e in row if e in own] for row in routing.experts.tolist()]
        inside = [t for t, row in enumerate(chosen) if row]
        if not inside:
            continue
        total = sum(len(row) for row in chosen)
        share = [sum(row.count(e) for row in chosen) / total for e in own]
        mean = [sum(p[t][e] / sum(p[t][i] for i in own) for t in inside) / len(inside) for e in own]
        terms.append(size * sum(f * m for f, m in zip(share, mean, strict=True)))
    return sum(terms) / len(terms)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(1)
    scores = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]]).bool()
    chosen = scores.detach().topk(2, dim=1).indices

    def routing(z: Tensor) -> Routing:
        return Routing(
            log_probs=z.log_softmax(-1),
            experts=chosen,
            weights=z.gather(1, chosen).softmax(-1),
            num_groups=3,
        )

    assert torch.autograd.gradcheck(lambda z: language_losses(routing(z), groups), scores)
    assert torch.autograd.gradcheck(lambda z: balance_loss(routing(z)), scores)


def test_groups_without_rows_and_no_rows_at_all_are_no_trouble() -> None:
    mixture = make_mixture(dtype=torch.float32)
    allowed = torch.tensor([False, True, False]).expand(6, G)
    out, routing = mixture(torch.randn(6, D), allowed)
    (balance_loss(routing) + language_losses(routing, allowed).sum() + out.sum()).backward()
    assert torch.isfinite(mixture.router.score.weight.grad).all()
    out, routing = mixture(torch.randn(0, D))
    assert out.shape == (0, D)
    assert balance_loss(routing) == 0
    assert Load.of(routing).num_rows == 0


def test_loads_add_up() -> None:
    scores = torch.randn(20, K)
    whole = Load.of(routed(scores, G, C))
    parts = Load.of(routed(scores[:7], G, C)) + Load.of(routed(scores[7:], G, C))
    assert torch.equal(whole.choices, parts.choices)
    assert torch.equal(whole.first, parts.first)
    torch.testing.assert_close(whole.entropy, parts.entropy)
    assert whole.choices.sum() == 20 * C
    assert whole.shares.sum().item() == pytest.approx(1)
    assert whole.mass.sum().item() == pytest.approx(20)
    entropy = torch.distributions.Categorical(logits=scores).entropy().sum()
    torch.testing.assert_close(whole.entropy, entropy)
    lone = torch.full((3, K), -9.0)
    lone[:, 1] = 9.0
    assert Load.of(routed(lone, G, 1)).unused == [0, 2, 3, 4, 5]

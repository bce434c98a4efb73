"""Every row goes through the shared branch and its own, and through nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sprachbund.nn.conformer import ConformerEncoder
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.encoder import EncoderLayer, EncoderLayers
from sprachbund.nn.feed_forward import (
    UNPLANNED,
    FeedForward,
    Route,
    SplitFeedForward,
    is_split,
    splits_in,
)

D = 8
TABLE = torch.tensor([0, 1, 0, 2, UNPLANNED])  # five languages, the last one without a group


def make_split(**options: object) -> SplitFeedForward:
    torch.manual_seed(0)
    arguments = {"shared_width": 6, "private_widths": (3, 4, 5), "table": TABLE, **options}
    return SplitFeedForward(D, **arguments)  # type: ignore[arg-type]


def expected(split: SplitFeedForward, x: Tensor, groups: list[int]) -> Tensor:
    """Row by row, written out."""
    rows = []
    for row, group in zip(x, groups, strict=True):
        normed = split.norm(row)
        y = split.shared(normed)
        rows.append(y if group < 0 else y + split.private[group](normed))
    return torch.stack(rows)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1, 2, 3]), min_size=1, max_size=9))
def test_rows_of_a_mixed_batch_pass_their_own_branch_only(languages: list[int]) -> None:
    split = make_split()
    x = torch.randn(len(languages), 4, D, generator=torch.Generator().manual_seed(len(languages)))
    groups = [-1 if i < 0 else int(TABLE[i]) for i in languages]
    together = split(x, Route(source=torch.tensor(languages)))
    torch.testing.assert_close(together, expected(split, x, groups))
    alone = [split(x[i : i + 1], Route(source=torch.tensor([n]))) for i, n in enumerate(languages)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_pairs_and_targets_choose_by_their_own_table() -> None:
    table = torch.tensor([[0, 1, 1], [1, UNPLANNED, 2]])
    split = make_split(table=table, side="pair")
    source, target = torch.tensor([0, 0, 1, 1, -1, 1]), torch.tensor([0, 1, 0, 2, 1, -1])
    x = torch.randn(6, 2, D)
    torch.testing.assert_close(
        split(x, Route(source=source, target=target)), expected(split, x, [0, 1, 1, 2, -1, -1])
    )
    by_target = make_split(table=torch.tensor([2, 0]), side="target")
    route = Route(source=torch.tensor([7, 7]), target=torch.tensor([1, 0]))
    torch.testing.assert_close(by_target(x[:2], route), expected(by_target, x[:2], [0, 2]))


def test_the_branch_of_an_absent_language_has_no_gradient() -> None:
    split = make_split()
    split(torch.randn(4, 3, D), Route(source=torch.tensor([0, 2, 1, -1]))).square().sum().backward()
    assert all(p.grad is None for p in split.private[2].parameters())
    present = [*split.norm.parameters(), *split.shared.parameters()]
    present += [*split.private[0].parameters(), *split.private[1].parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in present)


def test_each_row_is_differentiated_through_its_own_branch() -> None:
    split = make_split().double()
    x = torch.randn(3, 2, D, dtype=torch.float64, requires_grad=True)
    route = Route(source=torch.tensor([3, 0, -1]))
    assert torch.autograd.gradcheck(lambda x: split(x, route), (x,))
    only = split(x, route)[0].sum()  # language 3, group 2
    gradients = torch.autograd.grad(only, list(split.private[0].parameters()), allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


def test_rows_without_a_language_leave_every_private_branch_alone() -> None:
    split = make_split()
    split(torch.randn(2, 3, D), Route(source=torch.tensor([-1, -1]))).sum().backward()
    assert all(p.grad is None for p in split.private.parameters())


def test_parameters_at_the_published_shape() -> None:
    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for m in modules for p in m.parameters())

    with torch.device("meta"):
        whole = FeedForward(1024, 4096)
        split = SplitFeedForward(1024, 2048, (1024, 1024), torch.zeros(2, dtype=torch.long, device="cpu"))
    assert count(whole.expand, whole.contract) == 8_393_728
    assert count(split.shared, split.private) == 8_395_776
    assert count(split.norm) == count(whole.norm)


def test_bf16_autocast_keeps_rows_apart() -> None:
    split = make_split()
    x, route = torch.randn(5, 3, D), Route(source=torch.tensor([0, 1, 3, -1, 2]))
    with torch.autocast("cpu", torch.bfloat16):
        y = split(x, route)
        y.float().sum().backward()
    torch.testing.assert_close(y.float(), split(x, route), atol=0.05, rtol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in split.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (None, "needs the source of every row"),
        (Route(target=torch.tensor([0, 0])), "needs the source of every row"),
        (Route(source=torch.tensor([0, 4])), "no group holds"),
        (Route(source=torch.tensor([0, 1, 2])), "3 rows does not fit 2"),
    ],
)
def test_a_missing_or_wrong_route_is_an_error(route, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_split()(torch.randn(2, 3, D), route)


def test_the_table_is_no_weight_but_follows_the_module() -> None:
    split = make_split()
    assert not any("table" in name for name in split.state_dict())
    assert split.to("meta").table.is_meta


def test_what_comes_before_the_first_split_runs_once_for_all_routes() -> None:
    torch.manual_seed(0)
    layers = EncoderLayers(EncoderLayer(D, 2, 12) for _ in range(3)).eval()
    layers[1].feed_forward = make_split(activation="gelu")
    x, visible = torch.randn(2, 5, D), (torch.arange(5) < torch.tensor([5, 3])[:, None])[:, None, None]
    routes = [Route(source=torch.full((2,), n)) for n in (0, 1, 3)]
    seen: list[int] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    merged = layers(x, visible, Route(source=torch.tensor([0, 0, 1, 1, 3, 3])))
    assert seen == [2, 6, 6]
    torch.testing.assert_close(merged, torch.cat([layers(x, visible, r) for r in routes]))
    states, means = layers.with_means(x, visible, Route(source=torch.tensor([0, 0, 1, 1, 3, 3])))
    assert torch.equal(states, merged)
    valid = visible.flatten(1).repeat(3, 1)
    for row in range(6):
        torch.testing.assert_close(means[row, 0], x[row % 2, valid[row]].mean(0))
        torch.testing.assert_close(means[row, 3], states[row, valid[row]].mean(0))
    assert torch.equal(means[:2, 1], means[2:4, 1])
    assert not torch.equal(means[:2, 2], means[2:4, 2])
    assert [is_split(layer) for layer in layers] == [False, True, False]
    assert splits_in(layers) == [layers[1].feed_forward]


def test_a_conformer_encodes_under_several_routes_at_once() -> None:
    torch.manual_seed(0)
    sizes = {"width": D, "num_heads": 2, "num_layers": 3, "feed_forward_width": 12, "kernel_size": 3}
    encoder = ConformerEncoder(num_mel_bins=10, **sizes).eval()
    encoder.layers[1].feed_forward_in = make_split()
    encoder.layers[2].feed_forward_out = make_split(table=torch.tensor([1, 1, 0, 0, 2]))
    x, num_frames = torch.randn(2, 40, 10), torch.tensor([40, 21])
    states, frames = encoder(x, num_frames, Route(source=torch.tensor([0, 1, 3, 2])))
    for row, (utterance, language) in enumerate([(0, 0), (1, 1), (0, 3), (1, 2)]):
        one = Route(source=torch.tensor([language]))
        n = int(num_frames[utterance])
        alone, length = encoder(x[utterance : utterance + 1, :n], num_frames[utterance : utterance + 1], one)
        assert frames[row] == length[0]
        torch.testing.assert_close(states[row, : int(length)], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["target", "pair"])
def test_a_split_decoder_stepped_equals_whole_rows_through_reorder_and_keep(side: str) -> None:
    torch.manual_seed(0)
    decoder = TextDecoder(vocabulary_size=20, max_tokens=12, width=D, num_heads=2, num_layers=2).eval()
    table = torch.tensor([0, 1, 2]) if side == "target" else torch.tensor([[0, 1, 2], [1, 2, 0]])
    decoder.layers[1].feed_forward = make_split(table=table, side=side, activation="gelu")
    memory, num_frames = torch.randn(2, 5, D), torch.tensor([5, 3])
    route = Route(source=torch.tensor([0, 0, 0, 1, 1, 1]), target=torch.tensor([0, 1, 2, 2, 1, 0]))
    tokens = torch.randint(0, 20, (6, 6))
    with torch.no_grad():
        whole = decoder.logits(decoder(tokens, memory, num_frames, route))
        cache = decoder.start(memory, num_frames, rows_per_memory=3, route=route)
        steps = [decoder.step(tokens[:, :3], cache), decoder.step(tokens[:, 3:4], cache)]
        torch.testing.assert_close(torch.cat(steps, 1), whole[:, :4])
        order = torch.tensor([2, 0, 0, 5, 5, 4])
        cache.reorder(order)
        cache.keep(torch.tensor([1]))
        left = order[3:]
        for place in (4, 5):
            torch.testing.assert_close(
                decoder.step(tokens[left, place : place + 1], cache)[:, 0], whole[left, place]
            )
        assert cache.route is not None
        assert cache.route.target is not None
        assert cache.route.target.tolist() == [0, 0, 1]

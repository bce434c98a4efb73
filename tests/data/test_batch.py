"""A batch and its parts: what a family does not ask for is not there, what it asks for goes along."""

from dataclasses import fields

import torch

from sprachbund.data.batch import Batch, MixedLanguages, Sides, Transcripts


def batch_of(count: int, **parts: Transcripts | MixedLanguages | Sides) -> Batch:
    """Utterances with two rows each, told apart by their numbers."""
    numbers = torch.arange(count)
    rows = torch.arange(2 * count)
    return Batch(
        features=numbers[:, None, None].expand(count, 4, 2).float(),
        num_frames=numbers + 1,
        source_language=numbers,
        targets=rows[:, None],
        num_targets=rows,
        target_language=rows,
        **parts,  # type: ignore[arg-type]
    )


def test_parts_are_selected_with_their_utterances() -> None:
    whole = batch_of(
        3,
        transcripts=Transcripts(torch.tensor([[4], [5], [6]]), torch.tensor([1, 1, 0])),
        spoken=Transcripts(torch.tensor([[1], [2], [3]]), torch.tensor([1, 0, 1])),
        mixture=MixedLanguages(torch.eye(3, dtype=torch.bool), (((0.0, 1.0, 0),), (), ((0.0, 2.0, 2),))),
        sides=Sides(torch.tensor([0, 1, 0]), (0.25, 0.75)),
    )
    chosen = whole.select(torch.tensor([2, 0])).to("cpu")
    assert chosen.targets.flatten().tolist() == [4, 5, 0, 1]
    assert chosen.transcripts is not None
    assert chosen.transcripts.tokens.tolist() == [[6], [4]]
    assert chosen.transcripts.num_tokens.tolist() == [0, 1]
    assert chosen.spoken is not None
    assert chosen.spoken.tokens.tolist() == [[3], [1]]
    assert chosen.spoken.num_tokens.tolist() == [1, 1]
    assert chosen.mixture is not None
    assert chosen.mixture.languages.tolist() == [[False, False, True], [True, False, False]]
    assert chosen.mixture.spans == (((0.0, 2.0, 2),), ((0.0, 1.0, 0),))
    assert chosen.sides is not None
    assert (chosen.sides.index.tolist(), chosen.sides.weights) == ([0, 0], (0.25, 0.75))


def test_a_part_that_nobody_asked_for_stays_away() -> None:
    chosen = batch_of(2).select(torch.tensor([1])).to("cpu").placeholder()
    assert (chosen.transcripts, chosen.spoken, chosen.mixture, chosen.sides) == (None, None, None, None)
    assert chosen.is_placeholder
    plain = [one.name for one in fields(Batch) if one.default is None]
    assert plain == ["transcripts", "spoken", "mixture", "sides"]

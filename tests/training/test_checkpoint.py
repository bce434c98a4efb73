"""What a run leaves is whole at any moment, and the same bytes however often it was taken up."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from sprachbund.training import checkpoint
from sprachbund.training.checkpoint import RESUME_FILE, BestCheckpoints, load_resume, save_resume


def _weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


def test_a_run_that_is_killed_before_the_index_is_written_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = BestCheckpoints(tmp_path, keep=2)
    best.offer(1, 3.0, _weights(3))
    best.offer(2, 2.0, _weights(2))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name, place in (("write_text", checkpoint), ("write_text", Path)):  # whatever writes the index
        monkeypatch.setattr(place, name, killed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        best.offer(3, 1.0, _weights(1))
    monkeypatch.undo()
    again = BestCheckpoints(tmp_path, keep=2)
    torch.testing.assert_close(dict(again.average())["w"], torch.full((2,), 2.5))
    again.offer(3, 1.0, _weights(1))
    torch.testing.assert_close(dict(again.average())["w"], torch.full((2,), 1.5))
    kept = {"best.json", "best.00000002.safetensors", "best.00000003.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_checkpoint_that_no_index_names_any_more_goes_with_the_next(tmp_path: Path) -> None:
    """A run that was killed after the index was written, and before the worse checkpoint was removed."""
    (tmp_path / "best.00000001.safetensors").write_bytes(b"worse")
    best = BestCheckpoints(tmp_path, keep=1)
    best.offer(2, 1.0, _weights(1))
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", "best.00000002.safetensors"}


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    """A state that was read again holds equal texts as several objects, which pickle writes in another way."""
    step = "".join(["st", "ep"])
    betas = (0.9, 0.95)
    state = {
        "model": OrderedDict(w=torch.arange(4.0)),
        "optimizers": [
            {"state": {0: {step: 1}, 1: {step: 2}}, "groups": [{"betas": betas}, {"betas": betas}]}
        ],
    }
    save_resume(tmp_path / "first", state)
    read = load_resume(tmp_path / "first")
    assert read is not None
    assert read["optimizers"] == state["optimizers"]
    read["optimizers"][0]["state"][1] = {"".join(["s", "tep"]): 2}
    read["optimizers"][0]["groups"][1] = {"betas": (betas[0], betas[1])}
    save_resume(tmp_path / "second", read)
    assert (tmp_path / "first" / RESUME_FILE).read_bytes() == (tmp_path / "second" / RESUME_FILE).read_bytes()

"""The log's means: of every head over what it counts, and nothing where a family has no such head."""

import json
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.models.base import CTC, LANGUAGE, HeadLoss, Loss
from sprachbund.training.loop import Meter, train
from tests.data.test_batch import batch_of
from tests.training import made


def loss_of(attention: float, num_tokens: int, **heads: HeadLoss) -> Loss:
    total = torch.tensor(attention)
    return Loss(total=total, attention=total, num_tokens=num_tokens, heads=heads)


def test_heads_are_means_over_what_they_count() -> None:
    meter = Meter(frames_per_s=100)
    heads = {CTC: HeadLoss(torch.tensor(6.0), 4), LANGUAGE: HeadLoss(torch.tensor(1.0), 2)}
    meter.add(batch_of(2), loss_of(8.0, 10, **heads))
    heads = {CTC: HeadLoss(torch.tensor(4.0), 1), LANGUAGE: HeadLoss(torch.tensor(2.0), 3)}
    meter.add(batch_of(3), loss_of(2.0, 10, **heads))
    line = meter.line(2, 4, 0)
    assert line.attention == 0.5
    assert line.heads == pytest.approx({CTC: 2.0, LANGUAGE: 0.6})
    assert " loss 0.500 ctc 2.000 language 0.600 rate " in str(line)


def test_a_family_without_heads_has_none_and_a_placeholder_counts_nothing() -> None:
    meter = Meter(frames_per_s=100)
    meter.add(batch_of(2), Loss.of_text(torch.tensor(3.0), 6))
    heads = {CTC: HeadLoss(torch.tensor(9.0), 9)}
    meter.add(batch_of(2).placeholder(), loss_of(9.0, 9, **heads))
    line = meter.line(1, 4, 0)
    assert (line.attention, line.heads) == (0.5, {})
    assert " loss 0.500 rate " in str(line)


def test_real_time_is_of_speech_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", iter([0.0, 2.0, 2.0]).__next__)
    meter = Meter(frames_per_s=100)
    speech, loss = batch_of(2), Loss.of_text(torch.tensor(3.0), 6)
    meter.add(replace(speech, kind="speech"), loss)
    meter.add(replace(batch_of(3), kind="bitext"), loss)
    line = meter.line(2, 4, 0)
    assert line.real_time == pytest.approx(float(speech.num_frames.sum()) / 100 / 2.0)


def test_texts_alone_have_no_real_time_in_the_log() -> None:
    meter = Meter(frames_per_s=0)
    meter.add(batch_of(2), Loss.of_text(torch.tensor(3.0), 6))
    line = meter.line(1, 4, 0)
    assert line.real_time is None
    assert re.search(r" \| \d+ utt/s \| \d+\.\d GiB \| ", str(line))


def _records(log: bytes) -> Iterator[bytes]:
    """Records of a log of LevelDB behind a header of seven bytes: blocks of 32 KiB, fragments with a head of seven."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", log, place + 4)
        parts += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the end of one
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_has_the_curves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from the file that `wandb sync` would send."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    made.make_corpus(tmp_path / "data", 8)
    data, lines = made.make_training_data(tmp_path / "data"), list[str]()
    options = made.options(2, log_every=1, evaluate_every=2, wandb=True)
    train(made.make_model(), data, options, tmp_path / "run", dev=data, report=lines.append)
    [path] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    # The process of wandb writes the file, and may do so after `finish` has returned.
    for _ in range(600):
        records = [Record.FromString(raw) for raw in _records(path.read_bytes())]
        if records and records[-1].HasField("exit"):
            break
        time.sleep(0.1)
    seen: dict[tuple[str, int], float] = {}
    for record in records:
        values = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        for name, value in values.items():
            if "/" in name:
                seen[name, values["step"]] = value
    losses = [
        float(line.split(" loss ")[1].split()[0])
        for line in lines
        if line.startswith("step ") and "/" in line
    ]
    [dev] = [
        float(line.split("dev loss ")[1].split()[0]) for line in lines if line.startswith("step 2 dev loss")
    ]
    assert [seen["train/attention", step] for step in (1, 2)] == pytest.approx(losses, abs=1e-3)
    assert seen["dev/loss", 2] == pytest.approx(dev, abs=1e-3)
    assert (tmp_path / "run" / "tensorboard").is_dir()

"""A streaming transducer learns like any other model; the same seeds give the same tiers."""

from dataclasses import replace

import pytest
import torch

from sprachbund.data.loading import Corpus, collate
from sprachbund.models.conformer import Conformer, StreamingPart, TransducerPart
from sprachbund.nn.transducer import transducer_loss
from sprachbund.training.loop import train
from tests.training import made


def streaming_model(weight: float = 1.0) -> Conformer:
    plain = made.make_model()
    parts = {
        "streaming": StreamingPart(left_context=16, right_contexts=(6, 1), stem_channels=8),
        "transducer": TransducerPart(
            prediction_width=24, prediction_layers=1, joint_width=32, weight=weight, fast_emit=0.0
        ),
        "kernel_size": 5,
    }
    torch.manual_seed(0)
    config = plain.config.model_copy(update=parts)
    return Conformer(config, plain.tokenizer, plain.transcript_tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Corpus:
    directory = tmp_path_factory.mktemp("made")
    made.make_corpus(directory / "data")
    return made.make_training_data(directory / "data")


@pytest.mark.slow
def test_it_learns(data, tmp_path):
    lines: list[str] = []
    train(streaming_model(), data, made.options(60), tmp_path, dev=data, report=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if " ctc " in line]
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_is_the_sum_over_rows_that_count(data):
    model = streaming_model().eval()
    batch = collate([data[(number, 0, 1.0)] for number in range(3)], 2)
    batch = replace(
        batch, num_targets=torch.where(torch.arange(len(batch.num_targets)) == 1, 0, batch.num_targets)
    )
    loss = model.loss(batch)
    states, num_frames = model.encoder(batch.features, batch.num_frames)
    total = 0.0
    for row in range(len(batch.targets)):
        if batch.num_targets[row] == 0:
            continue
        utterance = row // batch.rows_per_utterance
        count = int(batch.num_targets[row]) - 1
        read = torch.cat(
            [batch.target_language[row : row + 1, None], batch.targets[row : row + 1, :count]], dim=1
        )
        predicted = model.transducer.joint.prediction(model.transducer.prediction(read)[:, 1:])
        frames = model.transducer.joint.encoder(states[utterance : utterance + 1, : num_frames[utterance]])
        logits = model.transducer.joint(frames[:, :, None], predicted[:, None])
        total += float(
            transducer_loss(
                logits,
                batch.targets[row : row + 1, :count],
                num_frames[utterance : utterance + 1],
                torch.tensor([count]),
            )
        )
    assert float(loss.parts["transducer"]) == pytest.approx(total, rel=1e-4)


def test_who_writes_the_text_follows_from_the_weight():
    assert streaming_model().writes_by_frames
    assert not streaming_model(0.25).writes_by_frames

"""A streaming transducer learns like any other model; the same seeds give the same tiers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sprachbund.data.loading import Corpus, collate
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.conformer import Conformer, StreamingPart, TransducerPart
from sprachbund.models.conformer.io import load, save
from sprachbund.nn.transducer_loss import transducer_loss
from sprachbund.training.loop import train
from sprachbund.training.preparation import prepare_model
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run
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
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if " rate " in line]
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


def test_training_and_decoding_fuse_the_same_language(data: Corpus) -> None:
    plain = streaming_model()
    part = plain.config.transducer
    assert part is not None
    changes = {
        "transducer": part.model_copy(update={"fusion_width": 16}),
        "target_languages": tuple(sorted(made.LANGUAGES, reverse=True)),  # any order may be declared
    }
    torch.manual_seed(0)
    config = plain.config.model_copy(update=changes)
    model = Conformer(config, plain.tokenizer, plain.transcript_tokenizer).eval()
    fuse = model.capabilities.fuse_language
    assert fuse is not None
    batch = collate([data[(number, 0, 1.0)] for number in range(3)], 2)
    assert int(batch.num_targets.min()) > 0
    states, num_frames = (x.repeat_interleave(2, 0) for x in model.encoder(batch.features, batch.num_frames))
    by_token = {model.tokenizer.language_id(tag): tag for tag in made.LANGUAGES}
    targets = [Target(language=by_token[token]) for token in batch.target_language.tolist()]
    assert len({target.language for target in targets}) > 1
    prompt, counts = batch.target_language[:, None], batch.num_targets - 1
    wanted = model.transducer.loss(fuse(states, targets), num_frames, batch.targets, counts, prompt=prompt)
    torch.testing.assert_close(model.loss(batch).parts["transducer"], wanted.sum().detach())


def test_a_pruned_loss_trains_every_weight_and_is_exact_in_evaluation(data: Corpus) -> None:
    plain = streaming_model().eval()
    part = plain.config.transducer
    assert part is not None
    config = plain.config.model_copy(update={"transducer": part.model_copy(update={"prune_range": 3})})
    model = Conformer(config, plain.tokenizer, plain.transcript_tokenizer)
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    batch = collate([data[(number, 0, 1.0)] for number in range(3)], 2)
    exact = plain.loss(batch).total.detach()
    torch.testing.assert_close(model.eval().loss(batch).total.detach(), exact)
    loss = model.train().loss(batch).total
    assert loss.isfinite()
    assert loss.detach() > exact
    loss.backward()
    untrained = {id(p) for module in model.untrained for p in module.parameters()}
    without = [name for name, p in model.named_parameters() if p.grad is None and id(p) not in untrained]
    assert without == []


def test_who_writes_the_text_follows_from_the_weight():
    assert streaming_model().writes_by_frames
    assert not streaming_model(0.25).writes_by_frames


STREAM = {
    "streaming": {"left_context": 16, "right_contexts": [6, 1], "stem_channels": 8},
    "transducer": {"prediction_width": 24, "prediction_layers": 1, "joint_width": 32},
}


def started(root: Path, **changes: object) -> TranslatorRecipe:
    """A recipe that starts from an offline model in `root`."""
    save(made.make_model(), root / "start")
    if not (root / "data").exists():
        made.make_corpus(root / "data")
    values: dict[str, Any] = {
        "languages": made.LANGUAGES,
        "start": root / "start",
        "train": [{"path": root / "data"}],
        "dev": [{"path": root / "data"}],
        "model": STREAM,
        "training": made.options(2),
        "card": {"name": "stream"},
    }
    return TranslatorRecipe.model_validate(values | changes)


def test_an_offline_model_starts_a_streaming_one(tmp_path: Path) -> None:
    model = run(started(tmp_path), tmp_path / "run", report=lambda line: None)
    assert model.capabilities.streaming is not None
    assert model.pairs() == made.make_model().pairs()
    assert model.tokenizer.model == made.make_model().tokenizer.model


def test_its_subsampling_and_its_kernels_may_stay(tmp_path: Path) -> None:
    kept = {
        "left_context": 28,
        "right_contexts": (6, 1),
        "convolution": "chunk",
        "subsampling": "striding_conv1d",
    }
    model = run(
        started(tmp_path, model=STREAM | {"streaming": kept}), tmp_path / "run", report=lambda line: None
    )
    assert model.config.kernel_size == made.make_model().config.kernel_size
    assert load(tmp_path / "run" / "model").config == model.config
    further = started(tmp_path, start=tmp_path / "run" / "model", model={"streaming": kept})
    prepare_model(further, tmp_path, [])
    causal = {"streaming": kept | {"convolution": "causal"}}
    with pytest.raises(SprachbundError, match=r"model\.streaming\.convolution is causal, .* has chunk"):
        prepare_model(started(tmp_path, start=tmp_path / "run" / "model", model=causal), tmp_path, [])
    with pytest.raises(ValueError, match="stem_channels is 8, but a subsampling"):
        started(tmp_path, model={"streaming": kept | {"stem_channels": 8}})
    with pytest.raises(ValueError, match="'causal' or 'chunk'"):
        started(tmp_path, model={"streaming": kept | {"convolution": "dynamic"}})


def test_its_texts_may_have_a_tokenizer_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = started(tmp_path, vocabulary_size=34)
    model = prepare_model(recipe, tmp_path, [Manifest(tmp_path / "data")]).model
    assert model.tokenizer.model != made.make_model().tokenizer.model
    assert model.tokenizer.languages == made.LANGUAGES
    assert model.transcript_tokenizer.model == made.make_model().transcript_tokenizer.model
    monkeypatch.setattr("sprachbund.training.preparation.Tokenizer.train", None)
    again = prepare_model(recipe, tmp_path, [Manifest(tmp_path / "data")]).model  # it is not fitted anew
    assert again.tokenizer.model == model.tokenizer.model


def test_a_pruned_loss_is_an_option_of_a_recipe(tmp_path: Path) -> None:
    pruned = STREAM | {"transducer": STREAM["transducer"] | {"prune_range": 3}}
    model = run(started(tmp_path, model=pruned), tmp_path / "run", report=lambda line: None)
    assert model.config.transducer.prune_range == 3
    assert model.capabilities.streaming is not None
    # A training that goes on from it may do without, and its model has no network of the loss.
    recipe = started(tmp_path, start=tmp_path / "run" / "model", model=STREAM)
    exact = run(recipe, tmp_path / "further", report=lambda line: None)
    assert exact.config.transducer.prune_range is None
    assert [name for name in exact.state_dict() if "simple_joint" in name] == []
    both = STREAM | {"transducer": STREAM["transducer"] | {"prune_range": 3, "frames_at_once": 8}}
    with pytest.raises(ValueError, match="give one of them"):
        started(tmp_path, model=both)
    one = STREAM | {"transducer": STREAM["transducer"] | {"prune_range": 1}}
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        started(tmp_path, model=one)


def test_what_the_start_brings_along_is_refused(tmp_path: Path) -> None:
    for changes, said in (
        (
            {"transcript_vocabulary_size": 34},
            "has transcript_vocabulary_size, and the tokenizers are .*start",
        ),
        ({"model": STREAM | {"width": 64}}, r"model\.width is 64, the model to start from has 32"),
    ):
        with pytest.raises(SprachbundError, match=said):
            prepare_model(started(tmp_path, **changes), tmp_path, [])

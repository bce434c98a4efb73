"""Public checkpoints trained further: their own features and pieces, new languages, the study that starts from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import NemotronAsrStreamingFeatureExtractor

from sprachbund.cli import main
from sprachbund.compression.options import KQuantOptions
from sprachbund.compression.quantization import quantize_encoder
from sprachbund.compression.smaller import convert
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer.io import load, save
from sprachbund.research import size_file
from sprachbund.research.encoder_transfer.estimate import check_checkpoints
from sprachbund.research.encoder_transfer.grid import Cell
from sprachbund.research.encoder_transfer.recipe import EncoderTransferRecipe, from_start
from sprachbund.research.encoder_transfer.results import read_cell
from sprachbund.training.options import read_recipe
from sprachbund.training.preparation import prepare_model
from sprachbund.training.recipe import FineTuning, TranslatorRecipe
from sprachbund.training.translator import run
from tests.models.transducer_checkpoints import (
    made_model,
    nemo_config,
    nemo_weights,
    sentencepiece_model,
    write_nemo,
)
from tests.training import made

TINY = size_file("encoder_transfer", "tiny")
NEW = {"de": "mean"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two converted checkpoints that hear English, one of which is told so, and tones in English and German."""
    root = tmp_path_factory.mktemp("converted")
    for seed, name in enumerate(("ml", "en")):
        theirs = made_model(seed=seed, prompted=name == "ml")
        path = write_nemo(
            root / f"{name}.nemo", nemo_config(theirs), nemo_weights(theirs), sentencepiece_model()
        )
        convert(str(path), root / name, ["en"])
    made.make_corpus(root / "data", 16)
    return root


def recipe(root: Path, steps: int = 2, **changes: object) -> TranslatorRecipe:
    values = {
        "languages": ("en", "de"),
        "train": [{"path": root / "data"}],
        "dev": [{"path": root / "data"}],
        "start": root / "ml",
        "bits": 32,
        "fine_tuning": {"new_languages": NEW},
        "training": made.options(steps, optimizer="adamw", warmup_steps=1).model_dump(),
        "card": {"name": "trained"},
        **changes,
    }
    return TranslatorRecipe.model_validate(values)


def losses(lines: list[str]) -> list[float]:
    return [float(line.split("loss ")[1].split()[0]) for line in lines if " rate " in line]


def test_a_model_that_is_read_as_it_is_needs_no_conversion(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for language in ([], ["--language", "en"]):
        assert main(["convert", str(root / "ml"), "--out", str(tmp_path / "out"), *language]) == 2
        assert "ml is a conformer model, which is read as it is; give it to --model" in " ".join(
            capsys.readouterr().err.split()
        )
    assert not (tmp_path / "out").exists()


def test_training_hears_what_inference_hears(root: Path) -> None:
    """And both hear what transformers' extractor gives."""
    student = prepare_model(recipe(root), root, [])
    plain = ExampleOptions(rows_per_utterance=1, time_masks=0, frequency_masks=0)
    corpus = Corpus([(Manifest(root / "data"), 1.0)], student.examples, plain)
    batch = corpus.collate([corpus[(0, index, 1.0)] for index in range(6)])
    samples = [corpus.utterance(index)[1] for index in range(6)]
    heard = load(root / "ml").features(samples)
    assert batch.num_frames.equal(heard.num_frames)
    longest = heard.values.shape[1]
    assert batch.features[:, :longest].equal(heard.values)
    extractor = NemotronAsrStreamingFeatureExtractor(feature_size=40)
    for row, sound in zip(batch.features, samples, strict=True):
        expected = extractor(sound, sampling_rate=16_000, return_tensors="pt")
        count = int(expected["attention_mask"].sum())
        torch.testing.assert_close(row[:count], expected["input_features"][0, :count], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_it_learns_and_stays_what_it_is(root: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    model = run(
        recipe(root, 20, training=made.options(20, optimizer="adamw", log_every=1).model_dump()),
        tmp_path,
        report=lines.append,
    )
    result = losses(lines)
    assert np.mean(result[-5:]) < 0.8 * np.mean(result[:3])
    assert "so it is trained on transcripts" in lines[0]
    note = next(line for line in lines if "no piece" in line)
    german = [one.text for one in map(Manifest(root / "data").__getitem__, range(16)) if one.language == "de"]
    count = sum("zwei" in text or "drei" in text for text in german)
    assert note.startswith(f"{count} of 16 texts hold what the tokenizer has no piece for (")
    assert (model.front_end, model.pairs()) == ("nemo", {("en", "en"), ("de", "de")})
    assert model.tokenizer.languages == ("en", "de")
    card = Card.read(tmp_path / "model")
    assert card is not None
    assert card.source_languages == ["en", "de"]
    again = load(tmp_path / "model")
    assert all(again.state_dict()[name].equal(value) for name, value in model.state_dict().items())


def test_resumed_equals_unbroken(root: Path, tmp_path: Path) -> None:
    run(recipe(root, 4), tmp_path / "whole", report=lambda line: None)
    run(recipe(root, 4), tmp_path / "broken", report=lambda line: None, stop_after=2)
    run(recipe(root, 4), tmp_path / "broken", report=lambda line: None)
    one, other = (load(tmp_path / name / "model").state_dict() for name in ("whole", "broken"))
    assert all(one[name].equal(other[name]) for name in one)


def test_it_is_trained_to_translate_when_it_is_given_the_language(root: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    asked = recipe(root, fine_tuning={"new_languages": NEW, "prompt": "wanted"})
    model = run(asked, tmp_path, report=lines.append)
    assert model.pairs() == {(source, target) for source in ("en", "de") for target in ("en", "de")}
    assert not any("trained on transcripts" in line for line in lines)


def test_one_that_writes_what_is_spoken_is_given_no_translations(root: Path) -> None:
    student = prepare_model(recipe(root), root, [])
    assert student.examples.row("one", "en", "de") is None
    assert student.examples.row("one", "en", "en") is not None
    assert dict(student.drawn) == {"rows_per_utterance": 1, "same_language": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fine_tuning": {}}, 'ml knows en, not de.*new_languages = {de = "mean"}'),
        ({"fine_tuning": {"new_languages": NEW, "prompt": "spoken"}}, 'given the language "wanted" alone'),
        (
            {"fine_tuning": {"new_languages": NEW, "real_length": True}},
            "for Whisper and Seamless checkpoints",
        ),
        ({"model": {"width": 64}}, "model.width is 64, the model to start from has 32"),
        (
            {"model": {"streaming": {"front_end": "fixed"}}},
            "model.streaming.front_end is fixed, the model to start from has nemo",
        ),
        ({"start": None, "fine_tuning": {"prompt": "wanted"}}, "for models that are there already"),
        ({"examples": {"targets": ["xx"]}}, "the model does not write xx"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    root: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(SprachbundError, match=said):
        run(recipe(root, **changes), tmp_path, report=lambda line: None)
    assert not (tmp_path / "resume.pt").exists()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    for part, count in (("train", 16), ("dev", 4), ("test", 4)):
        made.make_corpus(directory / part, count)
    return directory


def study(root: Path, data: Path, out: Path, *changes: str) -> list[str]:
    few = (
        "grid.hours=[0.0005]",
        'grid.starts=["ml", "half"]',
        'grid.languages=["de"]',
        'grid.tiers=["160 ms"]',
        "tuning.steps=1",
    )
    given = [f'pretrained.{name}={{checkpoint="{root / name}"}}' for name in ("ml", "en")]
    sets = [word for change in (*few, *given, *changes) for word in ("--set", change)]
    return ["study", "run", str(TINY), "--data", str(data), "--out", str(out), *sets]


@pytest.mark.slow
def test_a_study_starts_from_checkpoints(
    root: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(study(root, data, tmp_path)) == 0
    assert "texts hold what the tokenizer has no piece for" in capsys.readouterr().err
    assert not (tmp_path / "pretrained").exists()
    ml, en = (load(root / name).state_dict() for name in ("ml", "en"))
    spliced = load(tmp_path / "starts" / "half").state_dict()
    for name, value in load(tmp_path / "starts" / "ml").state_dict().items():
        assert value.equal(ml[name])
        of_en = name.startswith("encoder.layers.0.")
        assert spliced[name].equal((en if of_en else ml)[name]), name
    for start in ("ml", "half"):
        folder = tmp_path / "cells/de/0.0005h" / f"{start}-seed-0"
        result = read_cell(folder)
        assert result is not None
        assert (result.metric, result.utterances, len(result.scores)) == ("WER", 2, 3)
        trained = load(folder / "run" / "model")
        assert trained.front_end == "nemo"
        assert trained.source_languages == ("en", "de")
        assert (trained.config.ctc_weight, trained.config.language_weight) == (0.3, 0)  # the recipe's losses
        before = load(tmp_path / "starts" / start).state_dict()
        assert not trained.state_dict()["encoder.layers.0.attention.query.weight"].equal(
            before["encoder.layers.0.attention.query.weight"]
        )
    more = study(root, data, tmp_path, 'grid.languages=["de", "en"]')
    assert main(more) == 0  # the grid may grow by a language
    assert read_cell(tmp_path / "cells/en/0.0005h/ml-seed-0") is not None


@pytest.mark.slow
def test_a_start_is_a_checkpoint_trained_on_a_language_more(root: Path, data: Path, tmp_path: Path) -> None:
    """It has the shape of the checkpoint, not of [model], and its parts but for the encoder are those of `shared`."""
    given = (
        'pretrained.more={languages=["de", "en"], start="ml"}',
        'starts.more="more"',
        'grid.starts=["more", "ml"]',
        "pretraining.steps=1",
    )
    assert main(study(root, data, tmp_path, *given)) == 0
    trained, ml = load(tmp_path / "pretrained" / "more" / "model"), load(root / "ml")
    assert (trained.source_languages, ml.source_languages) == (("en", "de"), ("en",))
    weights, before = load(tmp_path / "starts" / "more").state_dict(), ml.state_dict()
    for name, value in weights.items():
        is_encoder = name.startswith("encoder.")
        assert value.equal((trained.state_dict() if is_encoder else before)[name]), name
    assert not all(value.equal(before[name]) for name, value in weights.items())
    assert read_cell(tmp_path / "cells/de/0.0005h/more-seed-0") is not None


def test_what_a_cell_changes_in_a_checkpoint(root: Path, data: Path) -> None:
    """A language it lacks is added, and for translations it is told the language; losses are the recipe's."""
    cell = Cell(start="ml", language="de", hours=1, seed=0)
    for changes, wanted in (
        ((), FineTuning(new_languages=NEW)),
        (('grid.languages=["en"]',), FineTuning(new_languages=NEW)),
        (('task="translations"',), FineTuning(new_languages=NEW, prompt="wanted")),
        (
            ('task="translations"', 'into="fr"'),
            FineTuning(new_languages={**NEW, "fr": "mean"}, prompt="wanted"),
        ),
    ):
        asked = read_recipe(EncoderTransferRecipe, TINY, [f'data="{data}"', *changes])
        result = from_start(asked, cell, root / "ml")
        assert result["fine_tuning"] == wanted
        assert result["model"].transducer.fast_emit == asked.shape.transducer.fast_emit  # type: ignore[union-attr]
    known = from_start(asked, Cell(start="ml", language="en", hours=1, seed=0), root / "ml")
    assert known["fine_tuning"].new_languages == {"fr": "mean"}


def test_checkpoints_that_a_study_cannot_use(root: Path, data: Path, tmp_path: Path) -> None:
    packed = load(root / "en")
    quantize_encoder(packed, KQuantOptions(bits=4))
    save(packed, tmp_path / "packed")
    plain = made.make_model()
    save(plain, tmp_path / "plain")
    both = [f'pretrained.{name}={{checkpoint="{root / name}"}}' for name in ("ml", "en")]
    for changes, said in (
        (('head="attention"',), 'by its transducer head, not attention; set head = "transducer"'),
        (("model.streaming.left_context=56",), "70 frames of the past .*, not with 56 at 160 ms"),
        (('starts.half="en:0 ml:1-2"', 'grid.starts=["ml", "half"]'), "the encoder has layers 0 to 1"),
        ((f'pretrained.en={{checkpoint="{tmp_path / "packed"}"}}',), "has an encoder in 4 bits"),
        ((f'pretrained.en={{checkpoint="{tmp_path / "plain"}"}}',), "no encoder that streams"),
        ((f'pretrained.en={{checkpoint="{root / "en.nemo"}"}}',), "run: sprachbund convert"),
        (
            ('pretrained.en={languages=["en"]}',),
            "encoders of different kinds.*model.num_mel_bins is 80 and 40",
        ),
        (
            (
                'pretrained.en={languages=["en"]}',
                "model.num_mel_bins=40",
                "model.feed_forward_width=128",
                "model.streaming.scale_input=true",
            ),
            "model.streaming.front_end is fixed and nemo",
        ),
    ):
        wanted = read_recipe(EncoderTransferRecipe, TINY, [f'data="{data}"', *both, *changes])
        with pytest.raises(SprachbundError, match=said):
            check_checkpoints(wanted)

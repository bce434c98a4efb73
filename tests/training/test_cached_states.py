"""Training behind states that are computed once, beside the same training on sound."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.data.loading import Corpus, ExampleOptions, PieceExamples
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer
from sprachbund.models.io import save
from sprachbund.training.cached_states import CachedCorpus, States, cached_states, first_moving_layer
from sprachbund.training.recipe import CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe
from sprachbund.training.translator import run
from tests.training import made

PLAIN = ExampleRecipe(rows_per_utterance=2, speeds=(1.0,), time_masks=0, frequency_masks=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    made.make_corpus(folder / "train")
    made.make_corpus(folder / "dev", 8)
    save(made.make_model(), folder / "start", bits=32)
    return folder


def recipe_for(data: Path, *trainable: str, **changes: Any) -> TranslatorRecipe:
    values = {
        "languages": made.LANGUAGES,
        "train": (DataPart(path=data / "train"),),
        "dev": (DataPart(path=data / "dev"),),
        "start": data / "start",
        "bits": 32,
        "examples": PLAIN,
        "training": made.options(6, trainable=trainable or ("encoder.layers.1.*", "decoder.*")),
        "card": CardRecipe(name="states"),
        **changes,
    }
    return TranslatorRecipe(**values)


def test_training_behind_states_is_training_on_the_sound(data: Path, tmp_path: Path) -> None:
    lines = list[str]()
    models: list[Conformer] = [
        run(recipe_for(data, cache_states=cached), tmp_path / str(cached), report=lines.append)
        for cached in (False, True)
    ]
    start = made.make_model().state_dict()
    plain, behind = (model.state_dict() for model in models)
    for name, value in plain.items():
        # Sums over a batch's frames in another order; six steps of 3e-3 move a weight by 2e-2.
        torch.testing.assert_close(behind[name], value, rtol=0, atol=2e-5)
        if name.startswith(("encoder.layers.1", "decoder")) and value.is_floating_point():
            continue
        assert torch.equal(value, start[name]), name
    assert not torch.equal(plain["decoder.embedding.weight"], start["decoder.embedding.weight"])
    assert models[1].encoder.first_layer == 0
    assert [line for line in lines if line.startswith("frozen layers: states of 48 utterances")]


def corpora(data: Path, directory: Path) -> tuple[Corpus, CachedCorpus, Conformer]:
    model, manifest = made.make_model().eval(), Manifest(data / "train")
    examples = PieceExamples(model.tokenizer, model.transcript_tokenizer, made.LANGUAGES)
    options = ExampleOptions(time_masks=0, frequency_masks=0, max_tokens=31)
    states = cached_states(model.encoder.before(1), examples, manifest, directory, report=lambda line: None)
    parts = [(manifest, 1.0)]
    return Corpus(parts, examples, options), CachedCorpus(parts, examples, options, [states]), model


@torch.inference_mode()
def test_states_are_those_of_the_encoder_for_any_utterance(data: Path, tmp_path: Path) -> None:
    plain, cached, model = corpora(data, tmp_path)
    for index in (0, 7, 47):
        heard, read = plain[0, index, 1.0], cached[0, index, 1.0]
        assert (heard.rows, heard.transcript, heard.source_language) == (
            read.rows,
            read.transcript,
            read.source_language,
        )
        lengths = torch.tensor([len(heard.features)])
        wanted, num_frames = model.encoder(heard.features[None], lengths)
        result, _ = model.encoder.behind(1)(read.features[None], num_frames)
        assert read.num_frames == len(read.features) == num_frames.item()
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)


def test_states_are_made_once_and_again_for_other_weights(data: Path, tmp_path: Path) -> None:
    manifest, lines = Manifest(data / "train"), list[str]()
    model = made.make_model()
    examples = PieceExamples(model.tokenizer, model.transcript_tokenizer, made.LANGUAGES)
    for _ in range(2):
        cached_states(model.encoder.before(1), examples, manifest, tmp_path, report=lines.append)
    assert len(lines) == 2
    with torch.no_grad():
        model.encoder.layers[1].norm.bias += 1  # behind them
    cached_states(model.encoder.before(1), examples, manifest, tmp_path, report=lines.append)
    assert len(lines) == 2
    with torch.no_grad():
        model.encoder.layers[0].norm.bias += 1
    cached_states(model.encoder.before(1), examples, manifest, tmp_path, report=lines.append)
    assert len(lines) == 4
    for path in tmp_path.glob("*.f32"):
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(SprachbundError, match=r"bytes and not .*the run makes it again"):
            States(path)
        path.unlink()
        with pytest.raises(SprachbundError, match=r"has 0 bytes and not .*the run makes it again"):
            States(path)
        index = path.with_suffix(".npz")
        index.write_bytes(index.read_bytes()[:50])
        with pytest.raises(SprachbundError, match=r"not a whole \.npz file .*the run makes it again"):
            States(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"examples": PLAIN.model_copy(update={"time_masks": 1})}, "set examples.speeds"),
        ({"examples": PLAIN.model_copy(update={"speeds": (0.9, 1.0)})}, "set examples.speeds"),
        ({"training": made.options(2)}, "first encoder layers that do not move"),
        ({"training": made.options(2, trainable=("encoder.subsampling.*",))}, "layers that do not move"),
    ],
)
def test_states_that_would_change_are_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SprachbundError, match=said):
        run(recipe_for(data, cache_states=True, **changes), tmp_path, report=lambda line: None)


def test_the_first_layer_that_moves() -> None:
    model = made.make_model()
    for trainable, first in ((("decoder.*",), 2), (("encoder.layers.1.norm.*", "decoder.*"), 1)):
        assert first_moving_layer(model, model.encoder, trainable) == first


def test_the_file_holds_every_utterance_once(data: Path, tmp_path: Path) -> None:
    _, cached, _ = corpora(data, tmp_path)
    (path,) = tmp_path.glob("*.f32")
    sizes = [cached[0, index, 1.0].features.numel() * 4 for index in range(48)]
    assert sum(sizes) == path.stat().st_size
    assert np.load(path.with_suffix(".npz"))["lengths"].min() > 0

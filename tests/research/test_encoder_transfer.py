"""The transfer study from data to report on the tiny size, by the commands; what is broken off ends the same."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from sprachbund.cli import main
from sprachbund.corpora.editions import edition, make_edition
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import load
from sprachbund.nn.streaming_conformer import Tier
from sprachbund.research import size_file
from sprachbund.research.encoder_transfer import recipe as encoder_transfer_cell
from sprachbund.research.encoder_transfer.estimate import estimate_memory
from sprachbund.research.encoder_transfer.grid import Cell
from sprachbund.research.encoder_transfer.recipe import (
    EncoderTransferRecipe,
    Speech,
    make_cell,
    quantized,
    read,
    run_cells,
    tuning,
)
from sprachbund.research.encoder_transfer.results import read_cell
from sprachbund.research.encoder_transfer.starts import make_starts
from sprachbund.training.options import read_recipe

TINY = size_file("encoder_transfer", "tiny")
SMALLER = ('grid.languages=["de"]', "grid.hours=[0.005, 0.02]")


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    make_edition(directory, edition("tiny", heldout_sentences=4), workers=1)
    return directory


@pytest.fixture(scope="module")
def study(data: Path) -> Path:
    assert main(command(data, data / "study", *SMALLER)) == 0
    return data / "study"


def command(data: Path, out: Path, *changes: str) -> list[str]:
    sets = [word for change in changes for word in ("--set", change)]
    return ["study", "run", str(TINY), "--data", str(data), "--out", str(out), *sets]


def recipe(data: Path, *changes: str) -> EncoderTransferRecipe:
    return read_recipe(EncoderTransferRecipe, TINY, [f'data="{data}"', *changes])


def tensors(directory: Path) -> Mapping[str, torch.Tensor]:
    return load(directory).state_dict()


def cell_files(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("cell.json")}


@pytest.mark.slow
def test_starts_differ_in_their_encoder_alone(study: Path) -> None:
    ml, en = (tensors(study / "starts" / name) for name in ("ml", "en"))
    trained = {name: tensors(study / "pretrained" / name / "model") for name in ("ml", "en")}
    for name in ml:
        assert ml[name].equal(trained["ml"][name])
        assert en[name].equal(trained["en" if name.startswith("encoder.") else "ml"][name])
    assert any(not ml[name].equal(en[name]) for name in ml if name.startswith("encoder."))


@pytest.mark.slow
def test_cells_say_what_they_were_made_of(study: Path) -> None:
    for start in ("ml", "en"):
        cell = Cell(start=start, language="de", hours=0.02, seed=0)
        cell_scores = read_cell(cell.folder(study))
        assert cell_scores is not None
        assert (cell_scores.metric, cell_scores.utterances, len(cell_scores.scores)) == ("WER", 4, 12)
        assert cell_scores.signature.endswith("|text:normalized")
        assert 0 < cell_scores.training["hours"] <= 0.02
        assert cell_scores.training["convergence"]["metric_for_best_model"] == "score"
        assert cell_scores.training["convergence"]["best"]["step"] in (1, 2)
        assert cell_scores.value("offline", 32) == cell_scores.value("1120 ms", 32)  # the same mask
        assert not (cell.folder(study) / "run" / "resume.pt").exists()
    rows = (study / "results.csv").read_text().splitlines()
    assert rows[0] == "start,language,hours,tier,bits,seed,value,encoder,decoder,joint,tokenizer"
    assert len(rows) == 1 + 2 * 2 * 4 * 3
    assert len({row.split(",")[7] for row in rows[1:]}) == 2
    assert len({tuple(row.split(",")[8:]) for row in rows[1:]}) == 1


@pytest.mark.slow
def test_resume_and_a_second_run_make_nothing_again(
    study: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = study / "pretrained" / "ml" / "best"
    left.mkdir()  # as by a process that was killed while it removed what the finished training needs no more
    before = cell_files(study)
    monkeypatch.chdir("/")  # a study remembers its data wherever it is taken up
    assert main(["study", "resume", str(study)]) == 0
    assert main(command(data, study, *SMALLER)) == 0
    assert cell_files(study) == before
    assert not left.exists()


@pytest.mark.slow
def test_the_recipe_is_the_same_study(study: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = shutil.copytree(study, data / "by-recipe")
    before = cell_files(again)
    sets = [word for change in SMALLER for word in ("--set", change)]
    places = ["--data", str(data), "--out", str(again)]
    assert main(["recipe", "encoder_transfer", "--size", "tiny", *places, *sets, "--json"]) == 0
    assert cell_files(again) == before
    assert [row["hours"] for row in json.loads(capsys.readouterr().out)["rows"]] == [0.005, 0.02]


@pytest.mark.slow
def test_report_tells_what_is_there_and_that_there_is_no_law(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "report", str(study), "--at", "1"]) == 0
    printed = capsys.readouterr()
    for words in (
        "gap: by how many points of WER ml is better than en",
        "WER of every start",
        "gap of every cell",
    ):
        assert words in printed.out
    assert "how soon runs were at their best" in printed.out
    assert "no power law: 2 scales of data" in printed.err
    assert "error" not in printed.err
    assert main(["study", "report", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["starts"][0]["hours"] == 0.005
    assert (study / "study.png").exists()


@pytest.mark.slow
def test_a_cell_broken_off_in_its_training_ends_the_same(
    study: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(start="en", language="de", hours=0.02, seed=0)
    wanted = recipe(data, *SMALLER, "tuning.save_every=1")
    whole = make_cell(wanted, study, cell, tmp_path / "whole")

    class KilledError(Exception):
        """In the place of a kill."""

    plain, asked = encoder_transfer_cell.DevScore.__call__, []

    def dying(self: encoder_transfer_cell.DevScore, model: object) -> float:
        asked.append(1)
        if len(asked) == 2:
            raise KilledError
        return plain(self, model)

    monkeypatch.setattr(encoder_transfer_cell.DevScore, "__call__", dying)
    with pytest.raises(KilledError):
        make_cell(wanted, study, cell, tmp_path / "broken")
    assert (tmp_path / "broken" / "run" / "resume.pt").exists()
    broken = make_cell(wanted, study, cell, tmp_path / "broken")
    assert len(asked) == 3  # the first evaluation was not asked for again
    assert (broken.counts == whole.counts).all()
    assert broken.training == whole.training
    one, other = (tensors(tmp_path / name / "run" / "model") for name in ("whole", "broken"))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ('task="translations"', 'grid.starts=["ml", "half"]'),
        ('head="attention"', 'grid.starts=["ml", "random"]'),
    ],
)
def test_other_heads_tasks_and_starts(data: Path, tmp_path: Path, changes: tuple[str, ...]) -> None:
    few = ("grid.hours=[0.01]", 'grid.languages=["de"]', 'grid.tiers=["560 ms"]', "grid.bits=[32, 4]")
    wanted = recipe(data, *few, *changes, "pretraining.steps=1", "tuning.steps=1", "model.max_tokens=16")
    run_cells(wanted, tmp_path, report=quiet)
    for cell in wanted.grid.cells():
        cell_scores = read_cell(cell.folder(tmp_path))
        assert cell_scores is not None
        assert cell_scores.metric == ("chrF" if wanted.task == "translations" else "WER")
        assert ("joint" in cell_scores.parts) == (wanted.head == "transducer")
        made = load(cell.folder(tmp_path) / "run" / "model")
        assert made.writes_by_frames == (wanted.head == "transducer")
    assert read(tmp_path).grid == wanted.grid


@pytest.mark.slow
def test_a_model_trained_first_goes_on_from_another(data: Path, tmp_path: Path) -> None:
    """With a rate of next to nothing it is the other one; the order in which they are named does not matter."""
    change = 'pretrained.en={languages=["en"], start="ml", training={steps=1, learning_rate=1e-12}}'
    wanted = recipe(data, change, 'grid.starts=["en", "ml"]', "pretraining.steps=1", "workers=1")
    assert wanted.waves() == [["ml"], ["en"]]
    make_starts(wanted, tmp_path, ray_address=None, gpus=0, report=quiet)
    there, other = (tensors(tmp_path / "pretrained" / name / "model") for name in ("ml", "en"))
    assert all(tensor.allclose(other[name], atol=1e-6) for name, tensor in there.items())


@pytest.mark.slow
def test_scores_are_those_of_the_utterances_by_themselves(study: Path, data: Path) -> None:
    """A batch, a mask and an order by length change nothing; fewer bits change the encoder's linear layers alone."""
    wanted = recipe(data)
    model = load(study / "cells/de/0.02h/ml-seed-0/run/model")
    speech = Speech.of(wanted, Manifest(data / "test"), "de", 4)
    model.transducer.joint.out.bias.data[0] -= 8  # or it writes nothing
    together = speech.counts(model, wanted.tier("160 ms"))
    assert together[:, 0].sum() > 0
    for place in range(4):
        alone = Speech(
            language="de",
            target="de",
            metric="WER",
            ids=speech.ids[place : place + 1],
            sounds=speech.sounds[place : place + 1],
            references=speech.references[place : place + 1],
        )
        assert (alone.counts(model, wanted.tier("160 ms"))[0] == together[place]).all()
    packed = quantized(wanted, model, 4)
    before, after = model.state_dict(), packed.state_dict()
    same = [name for name in before if name in after and after[name].equal(before[name])]
    gone = set(before) - set(same)
    assert gone
    assert all(name.startswith("encoder.layers.") or name.startswith("encoder.stem.out") for name in gone)
    assert quantized(wanted, model, 32) is model


def test_tiers_are_what_they_promise(data: Path) -> None:
    wanted = recipe(data)
    assert wanted.tier("160 ms") == Tier(left=70, right=1)
    assert wanted.tier("560 ms") == Tier(left=70, right=6)
    assert wanted.tier("1120 ms") == wanted.tier("offline") == Tier(left=70, right=13)


def test_steps_follow_from_epochs_within_bounds(data: Path) -> None:
    cell = Cell(start="ml", language="de", hours=1, seed=3)
    wanted = recipe(data, "epochs=30", "tuning.steps=1000", "num_evaluations=10", "least_steps=50")
    for num_batches, steps in ((1, 50), (10, 300), (100, 1000)):
        options = tuning(wanted, cell, num_batches, 2e-3)
        assert (options.steps, options.evaluate_every, options.seed) == (steps, steps // 10, 3)
        assert options.learning_rate == 2e-3


def test_the_published_shape_and_the_published_schedule() -> None:
    paper = read_recipe(EncoderTransferRecipe, size_file("encoder_transfer", "paper"))
    estimate = estimate_memory(paper)
    assert estimate.parts["encoder layers"] == 24 * 25_207_808
    assert 0.6e9 < estimate.parameters < 0.65e9
    assert estimate.encoder_bytes[32] / estimate.encoder_bytes[4] == pytest.approx(
        32 / (4 + 20 / 32), rel=1e-3
    )
    options = tuning(paper, Cell(start="ml", language="de", hours=100, seed=0), 100, 1e-4)
    assert (options.rate(0), options.rate(2500), options.rate(2999)) == pytest.approx((1e-4, 1e-6, 1e-6))
    assert options.mask_strength(1500) == 0.5
    assert paper.examples.time_masks * paper.examples.max_time_mask_share == 0.5  # type: ignore[operator]
    small = read_recipe(EncoderTransferRecipe, size_file("encoder_transfer", "small"))
    assert (len(small.grid.hours), len(small.grid.seeds), len(small.grid.tiers)) == (5, 2, 4)
    heard = set(small.pretrained["ml"].languages)
    assert set(small.grid.languages) & heard
    assert set(small.grid.languages) - heard


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('grid.starts=["ml", "fr"]', "grid.starts has 'fr'; there are ml, en, half, random"),
        (
            'grid.tiers=["200 ms"]',
            "no tier '200 ms'; the model is trained for 80 ms, 160 ms, 560 ms, 1120 ms",
        ),
        ("grid.bits=[2]", "grid.bits has 2; there are 3, 4, 5, 6, 8, 32"),
        ("grid.hours=[1, -1]", "grid.hours is -1; give a number from 0"),
        ('shared="fr"', "shared has 'fr'; there are ml, en"),
        ('starts.half="en:0-4"', "names layer 2; the encoder has layers 0 to 1"),
        ('grid.languages=["fr"]', "holds no speech in fr"),
        ("grid.hour=[1]", "unknown key grid.hour; did you mean grid.hours?"),
        ('starts.half="fr:0 ml:1"', "starts has 'fr'; there are ml, en, random"),
        ("grid.hours=[0.01, 5]", "grid.hours asks for 5 h of de"),
        ('pretrained.en={checkpoint="nowhere"}', "nowhere does not exist"),
        (
            'pretrained.en={languages=["en"], start="fr"}',
            "pretrained: en cannot be trained, as start names fr; there are ml, en",
        ),
        ('pretrained.en={languages=["en"], start="en"}', "no two may start from each other"),
        ('pretrained.en={languages=["en"], training={step=1}}', "step"),
    ],
)
def test_bad_input_is_one_line(
    change: str, said: str, data: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "pretrained", tmp_path / "pretrained")  # nothing is to be trained first
    use_half = ('grid.starts=["ml", "half"]',) if "half" in change else ()
    assert main(command(data, tmp_path, change, *use_half)) != 0
    err = capsys.readouterr().err
    assert said in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1


@pytest.mark.slow
def test_another_study_in_the_folder_is_refused(
    study: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, study, *SMALLER, "tuning.steps=3")) == 1
    assert "tuning.steps 2, not 3; give another --out" in capsys.readouterr().err
    with pytest.raises(SprachbundError, match="holds no study"):
        read(data / "nothing")

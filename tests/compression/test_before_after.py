"""Before and after: numbers are those of `evaluate`, and what was lost or is worse is named and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sprachbund.compression.before_after import (
    LanguageAccuracy,
    MeasuredModel,
    Measurement,
    MeasureOptions,
    TimesWritten,
    compare_tasks,
    measure_both,
    times_written,
)
from sprachbund.compression.smaller import bits_of, card_of, new_directory, save_smaller
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.data.synthesis import Voice, speak
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import make_plan
from sprachbund.evaluation.manifest import FailureRate, ModelUsed
from sprachbund.evaluation.run import evaluate
from sprachbund.models.card import Card
from sprachbund.models.conformer.io import save
from sprachbund.models.io import load
from sprachbund.models.licence import licences
from sprachbund.models.pruning import with_layers
from sprachbund.util.provenance import COMPRESSION_FILE, model_hash
from tests.engines.support import needs_native
from tests.models import split_support
from tests.models.whisper_support import make_directory
from tests.stories.support import command
from tests.training import made

OPTIONS = MeasureOptions(limit=6, no_speech_per_kind=1, rounds=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of three decoder layers, and of one, which writes something else."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(5)
    base = made.make_model()
    config = base.config.model_copy(update={"num_decoder_layers": 3})
    model = type(base)(config, base.tokenizer, base.transcript_tokenizer)
    with torch.no_grad():
        model.decoder.positions.mul_(20.0)  # the text changes from place to place
        model.decoder.norm.weight.mul_(8.0)  # and the model is sure of it, so that the guard lets it pass
    save(model, root / "large", bits=16, card=Card(name="large", scores=[{"chrF": 1}]))
    large = root / "large"
    small = with_layers(load(large), decoder=(0,))  # type: ignore[type-var]
    save_smaller(small, large, root / "small", 8, {"by": "prune"}, name="small", model="large")
    return large, root / "small"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech, since the guard keeps texts off anything else."""
    path = tmp_path_factory.mktemp("data")
    with ManifestWriter(path) as writer:
        for i in range(12):
            language, other = made.LANGUAGES[i % 2], made.LANGUAGES[1 - i % 2]
            said = {tag: f"{made.WORDS[tag][i % 4]} {made.WORDS[tag][i // 4]}" for tag in made.LANGUAGES}
            writer.add(
                speak(said[language], Voice(language=language)),
                text=said[language],
                language=language,
                speaker="voice",
                utterance_id=str(i),
                translations={other: said[other]},
            )
    return path


@pytest.fixture(scope="module")
def actual(models: tuple[Path, Path], data: Path) -> Measurement:
    return measure_both(*models, [data], OPTIONS)


def test_numbers_are_those_of_evaluate(models: tuple[Path, Path], data: Path, actual: Measurement) -> None:
    for path, measured in zip(models, (actual.before, actual.after), strict=True):
        result = evaluate([data], path, OPTIONS.evaluation(None)).manifest
        for pair, scores in measured.scores.items():
            for metric, value in scores.items():
                number = result.number(metric, pair, group="pair", text="raw", guard=True)
                assert number is not None
                assert value == pytest.approx(number.value, abs=1e-3)
        assert set(measured.scores) == {"de-de", "de-en", "en-de", "en-en"}
        assert max(scores["chrF"] for scores in measured.scores.values()) > 0
        rates = {r.key: r for r in result.failures}
        assert all(rates[rate.key] == rate for rate in measured.failures)
        assert measured.model.sha256 == model_hash(path)


def test_sizes_are_those_of_the_models(models: tuple[Path, Path], actual: Measurement) -> None:
    for path, measured in zip(models, (actual.before, actual.after), strict=True):
        assert measured.parameters == sum(p.numel() for p in load(path).parameters())  # type: ignore[attr-defined]
        assert measured.bytes_on_disk == (path / "model.safetensors").stat().st_size
    assert (actual.before.bits, actual.after.bits) == (16, 8)
    assert actual.speed[0]["time_ratio"] == 1
    assert actual.data[0].utterances == 12
    assert (
        sum(t.evaluated for t in actual.before.languages.values()) == 12
    )  # six utterances, two targets each


def test_a_model_beside_itself_has_lost_nothing(models: tuple[Path, Path], data: Path) -> None:
    same = measure_both(models[0], models[0], [data], MeasureOptions(limit=4, no_speech_per_kind=0, rounds=0))
    assert same.before == same.after
    verdict = compare_tasks(same)
    assert (verdict.lost, verdict.worse, verdict.not_measured) == ((), (), ())
    assert same.speed == ()


def test_without_data_only_sizes_are_reported(models: tuple[Path, Path]) -> None:
    actual = measure_both(*models, [], OPTIONS)
    assert (actual.before.scores, actual.speed, actual.conditions) == ({}, (), {})
    assert compare_tasks(actual).not_measured == ("every task: no data were given",)


def test_a_language_that_no_model_writes_is_refused_and_not_left_out(
    models: tuple[Path, Path], data: Path
) -> None:
    for targets in (("xx",), ("de", "xx")):
        with pytest.raises(SprachbundError, match="language 'xx' is not among those of this model"):
            measure_both(*models, [data], MeasureOptions(targets=targets, limit=2, rounds=0))


def test_what_is_said_of_a_model_does_not_change_its_hash(models: tuple[Path, Path]) -> None:
    before = model_hash(models[1])
    (models[1] / COMPRESSION_FILE).write_text("{}")
    assert model_hash(models[1]) == before


def measured(**values: Any) -> MeasuredModel:
    rate = FailureRate(failure="omission", member="all", failed=1, evaluated=100, guard=True)
    return MeasuredModel(
        **{
            "model": ModelUsed(path="m", name="m", sha256=""),
            "parameters": 1,
            "bytes_on_disk": 1,
            "bits": 8,
            "pairs": ("de-de", "de-en", "en-en"),
            "scores": {"de-en": {"chrF": 50.0}, "en-en": {"chrF": 90.0, "WER": 10.0}},
            "failures": (rate,),
            "languages": {"de": LanguageAccuracy(right=99, evaluated=100)},
            "times": TimesWritten(evaluated=10, ended=10, end_error_s=0.1),
            **values,
        }
    )


def verdict_of(**after: Any) -> Any:
    used = {"path": "d", "name": "d", "sha256": "", "utterances": 1, "scored_utterances": 1}
    return compare_tasks(Measurement(before=measured(), after=measured(**after), data=[used]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("after", "lost"),
    [
        ({}, ()),
        ({"pairs": ("de-de", "en-en")}, ("pair de-en",)),
        ({"languages": {}}, ("identifying the language spoken",)),
        ({"times": None}, ("timestamps",)),
    ],
)
def test_a_task_that_is_gone_is_lost(after: dict[str, Any], lost: tuple[str, ...]) -> None:
    assert verdict_of(**after).lost == lost


@pytest.mark.parametrize(
    ("after", "worse"),
    [
        ({"scores": {"de-en": {"chrF": 49.2}, "en-en": {"chrF": 20.0, "WER": 10.9}}}, ()),
        ({"scores": {"de-en": {"chrF": 48.9}}}, ("de-en: chrF 50.0 before, 48.9 after",)),
        ({"scores": {"en-en": {"WER": 11.1}}}, ("en-en: WER 10.0 before, 11.1 after",)),
        (
            {"languages": {"de": LanguageAccuracy(right=90, evaluated=100)}},
            ("identifying de: 99.0 % right before, 90.0 % after",),
        ),
        (
            {
                "failures": (
                    FailureRate(failure="omission", member="all", failed=3, evaluated=100, guard=True),
                )
            },
            ("omission: 1.0 % of lines before, 3.0 % after",),
        ),
        (
            {"failures": (FailureRate(failure="copy", member="all", failed=2, evaluated=100, guard=True),)},
            ("copy: 0.0 % of lines before, 2.0 % after",),
        ),
        (
            {"times": TimesWritten(evaluated=10, ended=9, end_error_s=0.1)},
            ("timestamps: 10 of 10 rows ended in one before, 9 after",),
        ),
        (
            {"times": TimesWritten(evaluated=10, ended=10, end_error_s=0.3)},
            ("timestamps: 0.10 s from the end of speech before, 0.30 s after",),
        ),
    ],
)
def test_a_task_that_is_worse_is_named_with_both_numbers(
    after: dict[str, Any], worse: tuple[str, ...]
) -> None:
    assert verdict_of(**after).worse == worse


def test_what_the_data_do_not_tell_is_named() -> None:
    assert verdict_of().not_measured == ("1 pairs, not asked for or without references: de-de",)


def test_times_are_measured_where_a_family_writes_them(data: Path, tmp_path: Path) -> None:
    make_directory(tmp_path)
    model = load(tmp_path)
    manifest = Manifest(data)
    jobs = make_plan(model, manifest, None, 4).jobs
    actual = times_written(model, manifest, jobs)
    assert actual is not None
    assert actual.evaluated == len(jobs)
    assert 0 <= actual.ended <= actual.evaluated
    assert 0 <= actual.end_error_s <= 2.0
    assert times_written(split_support.make_model(), manifest, jobs) is None


def test_a_card_says_where_a_model_comes_from(models: tuple[Path, Path]) -> None:
    card = Card.read(models[1])
    assert card is not None
    assert (card.name, card.bits, card.scores) == ("small", 8, [])
    assert card.training["made_from"] == {"model": "large", "by": "prune"}
    assert (bits_of(models[0]), bits_of(models[1])) == (16, 8)


def test_the_licence_of_a_model_without_a_card_is_that_of_its_page(tmp_path: Path) -> None:
    make_directory(tmp_path / "snapshot")
    (tmp_path / "snapshot" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A model\n")
    family = load(tmp_path / "snapshot")
    card = card_of(family, tmp_path / "snapshot", "new", {"by": "export"}, model=str(tmp_path / "snapshot"))
    assert (card.name, card.licence) == ("new", "cc-by-4.0")
    assert card.training["made_from"] == {"model": str(tmp_path / "snapshot"), "by": "export"}
    public = card_of(family, tmp_path / "snapshot", "new", {}, model="parakeet-tdt-v3")
    assert public.licence == licences("parakeet-tdt-v3")[0].name != ""


@needs_native
def test_calibrations_go_with_the_same_weights(tmp_path: Path) -> None:
    made = tmp_path / "packed"
    ran = command(
        *("compress", "quantize", "bundled", "--packed", "--out", made, "--no-speech", "0", "--rounds", "0")
    )
    assert ran.code == 0, ran.err
    assert "is not carried over" not in ran.err
    assert load(made).calibration == load("bundled").calibration


def test_calibrations_are_said_to_be_lost_with_other_weights(tmp_path: Path) -> None:
    made = tmp_path / "pruned"
    ran = command(
        *(
            "compress",
            "prune",
            "bundled",
            "--decoder",
            "2",
            "--out",
            made,
            "--no-speech",
            "0",
            "--rounds",
            "0",
        )
    )
    assert ran.code == 0, ran.err
    said = [line for line in ran.err.splitlines() if "is not carried over" in line]
    assert len(said) == 2
    assert (
        "the calibration of bundled (domain.json) is not carried over, since it was fitted on other"
        in said[0]
    )
    assert said[1].endswith(f"run `sprachbund calibrate CORPUS… --model {made} --turns`")
    assert load(made).calibration.domain is None


def test_a_place_that_is_taken_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    with (
        pytest.raises(SprachbundError, match="is there already; choose another --out"),
        new_directory(tmp_path),
    ):
        pytest.fail("the folder was given")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]

"""Headroom: parts kept give the losses of whole passes, errors, and the arithmetic of what is compared."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sprachbund.cli import main
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.models.io import load, save
from sprachbund.models.sharing_plan import SharingPlan, Split
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.research.gradient_sharing.gradients import choose_rows, decoder_loss
from sprachbund.research.gradient_sharing.headroom import (
    ALL,
    Gain,
    Headroom,
    _compared,
    _gains,
    gain_where_unchanged,
    measure_headroom,
)
from sprachbund.research.gradient_sharing.headroom_options import HeadroomOptions
from tests.models.whisper_support import make_directory
from tests.training import made

SMALL = HeadroomOptions(
    utterances=8, held_out=8, epochs=1, batch=4, learning_rates=(1e-3,), seeds=1, targets=("de",)
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    directory = tmp_path_factory.mktemp("made")
    made.make_corpus(directory)
    return Manifest(directory)


@pytest.mark.parametrize(
    "modules",
    [(), ("encoder.layers.0.feed_forward_out",), ("decoder.layers.0",), ("encoder.subsampling",)],
    ids=["last layer", "first layer", "decoder alone", "subsampling"],
)
def test_losses_before_training_are_those_of_whole_passes(corpus: Manifest, modules: tuple[str, ...]) -> None:
    """The held out half that is reported is the second one of each language, read as `choose_rows` chooses."""
    model = made.make_model().eval()
    options = HeadroomOptions(**{**vars(SMALL), "modules": modules})
    result = measure_headroom(model, [corpus], [corpus], options)
    chosen = choose_rows(
        model, [corpus], by="source", count=options.held_out, seed=options.seed, targets=options.targets
    )
    for language, loss in result.before.items():
        reported = [row.read([corpus]) for row in chosen.rows[language]][4:]
        with torch.no_grad():
            total, count = decoder_loss(model, reported)
        assert loss == pytest.approx(float(total) / count, rel=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_whisper_hears_the_silence_behind_an_utterance_in_any_batch(tmp_path: Path, batch: int) -> None:
    make_directory(tmp_path / "whisper")
    model = load(tmp_path / "whisper").eval()
    rng = np.random.default_rng(0)
    with ManifestWriter(tmp_path / "data") as writer:
        for i in range(16):
            writer.add(
                (0.1 * rng.standard_normal(4000 + 1500 * i)).astype(np.float32),
                text="eins zwei" if i % 2 else "one two",
                language="de" if i % 2 else "en",
                speaker="s",
                utterance_id=f"u{i}",
                translations={"en": "one"} if i % 2 else {},
            )
    corpus = Manifest(tmp_path / "data")
    options = HeadroomOptions(
        **{**vars(SMALL), "batch": batch, "targets": ("en",), "modules": ("decoder.layers.0",)}
    )
    result = measure_headroom(model, [corpus], [corpus], options)
    chosen = choose_rows(model, [corpus], by="source", count=options.held_out, seed=0, targets=("en",))
    for language, loss in result.before.items():
        reported = [row.read([corpus]) for row in chosen.rows[language]][4:]
        with torch.no_grad():
            alone = [decoder_loss(model, [one]) for one in reported]
        assert loss == pytest.approx(
            sum(float(t) for t, _ in alone) / sum(int(c) for _, c in alone), rel=1e-4
        )


def test_the_model_is_as_before(corpus: Manifest) -> None:
    model = made.make_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = measure_headroom(model, [corpus], [corpus], SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert result.together != result.before  # it did train
    assert result == measure_headroom(model, [corpus], [corpus], SMALL)


def test_a_group_of_all_gains_nothing_over_all(corpus: Manifest) -> None:
    """The same group is trained the same way: the difference is exactly zero, with any rates and seeds."""
    model = made.make_model().eval()
    options = HeadroomOptions(
        **{**vars(SMALL), "groups": ("de+en",), "seeds": 2, "learning_rates": (1e-3, 3e-3)}
    )
    gains = measure_headroom(model, [corpus], [corpus], options).gains["de+en"]
    assert {g.gain for g in gains.values()} == {0.0}
    assert {g.interval for g in gains.values()} == {(0.0, 0.0)}


def test_means_are_over_languages(corpus: Manifest) -> None:
    result = measure_headroom(made.make_model().eval(), [corpus], [corpus], SMALL)
    alone = result.gains["alone"]
    assert alone[ALL].gain == pytest.approx(np.mean([alone[tag].gain for tag in result.together]))
    for tag, together in result.together.items():
        assert alone[tag].gain == pytest.approx(together - alone[tag].loss)
        assert alone[tag].interval[0] <= alone[tag].interval[1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [("de+xx", "names xx, and the languages are de, en"), ("de+en,en", "names en twice")],
)
def test_groups_are_of_the_languages_once_each(corpus: Manifest, groups: str, message: str) -> None:
    options = HeadroomOptions(**{**vars(SMALL), "groups": (groups,)})
    with pytest.raises(SprachbundError, match=message):
        measure_headroom(made.make_model(), [corpus], [corpus], options)


def test_what_is_trained_on_is_not_held_out(
    corpus: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(made.make_model(), tmp_path / "model")
    line = ["share", "headroom", str(tmp_path / "model"), str(corpus.directory)]
    assert main([*line, "--dev", str(corpus.directory)]) == 2
    assert "is trained on and measured on; measure on another corpus" in capsys.readouterr().err
    assert main([*line, "--dev", "elsewhere", "--out", str(corpus.directory)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    with pytest.raises(SprachbundError, match="is named twice; name each corpus directory once"):
        measure_headroom(made.make_model(), [corpus, corpus], [corpus], SMALL)


def test_a_split_model_is_refused(corpus: Manifest) -> None:
    model = made.make_model()
    split = Split(
        module="encoder.layers.1.feed_forward_out",
        side="source",
        groups=(("de",), ("en",)),
        shared_ratio=0.5,
        start="random",
    )
    split_feed_forwards(model, SharingPlan(splits=(split,)))
    with pytest.raises(SprachbundError, match="split already"):
        measure_headroom(model, [corpus], [corpus], SMALL)


def test_the_control_has_both_halves_of_each_language_and_changes_nothing_else(corpus: Manifest) -> None:
    model = made.make_model().eval()
    result = measure_headroom(model, [corpus], [corpus], SMALL)
    assert result.control is not None
    assert list(result.control.together) == ["de", "de*", "en", "en*"]
    assert list(result.control.gains) == ["alone", "by words"]
    without = measure_headroom(model, [corpus], [corpus], replace(SMALL, control=False))
    assert (without.control, without.long_enough) == (None, None)
    assert replace(result, control=None) == without


def test_the_control_is_judged_where_texts_are_as_they_were() -> None:
    def gain(value: float, half: float) -> Gain:
        return Gain(loss=1.0, gain=value, interval=(value - half, value + half), spread=0.0)

    gains = {"de": gain(0.2, 0.3), "en": gain(0.1, 0.4), "de*": gain(-5.0, 0.1), ALL: gain(-1.0, 0.1)}
    value, interval = gain_where_unchanged(gains)
    assert value == pytest.approx(0.15)
    # Half widths 0.3 and 0.4 are legs of a right triangle, and the mean is of two.
    assert interval == pytest.approx((0.15 - 0.25, 0.15 + 0.25))


@pytest.mark.slow
def test_the_control_is_found_by_a_training_that_is_long_enough(tmp_path: Path) -> None:
    """All weights of a new model: after one epoch, copies know less than the common weights, and after 20 more."""
    made.make_corpus(tmp_path, 400)
    model, data = made.make_model().eval(), [Manifest(tmp_path)]
    options = HeadroomOptions(
        modules=("*",),
        languages=("de",),
        targets=("de",),
        utterances=40,
        held_out=40,
        epochs=1,
        batch=6,
        learning_rates=(1e-2,),
        seeds=1,
    )
    short = measure_headroom(model, data, data, options)
    assert short.long_enough is False
    longer = measure_headroom(model, data, data, replace(options, epochs=20))
    assert longer.long_enough is True


@pytest.mark.parametrize("num_reported", [3, 10, 100])
def test_an_interval_is_that_of_students_t_also_for_a_handful_of_utterances(num_reported: int) -> None:
    """All utterances have as many tokens, so the gain is a mean of differences."""
    rng = np.random.default_rng(num_reported)
    rows = np.ones((2, 1, num_reported, 2))
    rows[:, 0, :, 0] = rng.gamma(2.0, size=(2, num_reported))
    draws = rng.integers(0, num_reported, (50_000, num_reported))
    gain = _gains({"de": rows[0]}, {"de": rows[1]}, draws)["de"]
    differences = rows[0, 0, :, 0] - rows[1, 0, :, 0]
    low, high = stats.t.interval(0.95, num_reported - 1, differences.mean(), stats.sem(differences))
    assert gain.gain == pytest.approx(differences.mean())
    # The spread of S draws has an error of 1 / sqrt(2 S), which is 0.3 %.
    assert gain.interval == pytest.approx((low, high), abs=0.02 * (high - low))


@pytest.mark.parametrize(
    ("together", "alone", "at_edge"),
    [(1e-3, 1e-3, ()), (1e-4, 1e-3, ("together",)), (1e-2, 1e-4, ("together", "alone"))],
)
def test_a_best_rate_at_the_edge_is_warned_of(
    together: float, alone: float, at_edge: tuple[str, ...]
) -> None:
    """Losses are made: one nat for each token at the best rate, two at the others."""
    options = HeadroomOptions(held_out=4, learning_rates=(1e-4, 1e-2, 1e-3), seeds=1)
    losses = {
        arm: {
            rate: {"de": np.array([[[1.0 if rate == best else 2.0, 1.0]] * 4])}
            for rate in options.learning_rates
        }
        for arm, best in (("together", together), ("alone", alone))
    }
    result = _compared(("encoder.layers.1",), {"de": np.full((4, 2), 1.0)}, losses, options)
    assert result.learning_rates == {"together": together, "alone": alone}
    assert result.at_edge == at_edge
    assert bool(result.warning) == bool(at_edge)
    for arm in at_edge:
        assert f"{result.learning_rates[arm]:g} of {arm}" in result.warning


def _losses_at(values: dict[float, float]) -> dict[float, dict[str, np.ndarray]]:
    """Learning rate to language to losses: so many nats for each token of four utterances held out."""
    return {rate: {"de": np.array([[[value, 1.0]] * 4])} for rate, value in values.items()}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_rate_at_which_training_breaks_down_is_not_the_best(bad: float) -> None:
    options = HeadroomOptions(held_out=4, learning_rates=(1.0, 1e-3), seeds=1)
    losses = {arm: _losses_at({1.0: bad, 1e-3: 2.0}) for arm in ("together", "alone")}
    before = {"de": np.full((4, 2), 1.0)}
    result = _compared(("encoder.layers.1",), before, losses, options)
    assert result.learning_rates == {"together": 1e-3, "alone": 1e-3}
    assert result.together == {"de": 2.0}
    losses["alone"] = _losses_at({1.0: bad, 1e-3: bad})
    with pytest.raises(
        SprachbundError, match=r"training alone .* any learning rate \(1, 0.001\); lower --learning"
    ):
        _compared(("encoder.layers.1",), before, losses, options)


def test_the_only_rate_is_an_edge(corpus: Manifest) -> None:
    result = measure_headroom(made.make_model().eval(), [corpus], [corpus], SMALL)
    assert result.at_edge == ("together", "alone")
    assert "widen --learning-rates" in result.warning


def test_no_rate_is_an_error() -> None:
    with pytest.raises(SprachbundError, match="name one, as --learning-rates"):
        HeadroomOptions(learning_rates=())


def test_what_is_found_is_json(corpus: Manifest) -> None:
    from dataclasses import asdict

    result: Headroom = measure_headroom(made.make_model().eval(), [corpus], [corpus], SMALL)
    assert json.loads(json.dumps(asdict(result)))["modules"] == ["encoder.layers.1"]

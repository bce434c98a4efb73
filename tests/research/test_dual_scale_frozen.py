"""The comparison on the frozen encoder of a conformer: a wide new decoder, states computed once, the native engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import ConformerShape
from sprachbund.models.conformer.extension import with_new_decoder
from sprachbund.models.io import load, save
from sprachbund.research.dual_scale.estimate import estimate_memory
from sprachbund.research.dual_scale.options import ARMS, DualScaleRecipe
from sprachbund.research.dual_scale.recipe import run
from tests.engines.support import needs_native
from tests.models import split_support
from tests.training.made import make_corpus, make_model, options
from tests.training.owned import make_whisper

DECODER = {
    "num_decoder_layers": 4,
    "decoder_width": 24,
    "decoder_heads": 2,
    "decoder_feed_forward_width": 40,
    "max_tokens": 24,
}
PLAIN = {"speeds": [1.0], "time_masks": 0, "frequency_masks": 0}
FROZEN = ("encoder.", "ctc_head.", "language_head.")


class StoppedError(Exception):
    """What breaks a run off."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frozen")
    for part in ("train", "dev", "test"):
        make_corpus(root / "data" / part, 16)
    save(make_model(), root / "start", bits=32)
    return root


def recipe(place: Path, **changes: Any) -> DualScaleRecipe:
    training = options(3, evaluate_every=3, max_duration_s=2).model_dump()
    values = {
        "data": place / "data",
        "languages": ["en", "de"],
        "seeds": [0, 1],
        "arms": ["prune only", "unpruned", "token map"],
        "encoder": str(place / "start"),
        "conformer": DECODER,
        "cache_states": True,
        "shallow": training,
        "teacher": training,
        "training": training,
        "drafting": training,
        "dual_scale": {
            "decoder_layers": 3,
            "text_layers": 1,
            "blocks": 1,
            "whole_layers": 0,
            "lora_rank": 0,
            "gate_decay": 0.5,
        },
        "prune_only_layers": 2,
        "shallow_examples": {"rows_per_utterance": 2, **PLAIN},
        "examples": {"rows_per_utterance": 1, **PLAIN},
        "test_utterances": 4,
        "timing": {"utterances": 3, "batches": [1], "repeats": 2, "engine": "native", "threads": 1},
        **changes,
    }
    return DualScaleRecipe.model_validate(values)


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, list[str]]:
    lines: list[str] = []
    run(recipe(place), place / "run", report=lines.append)
    return place / "run", lines


@needs_native
@pytest.mark.slow
def test_the_encoder_rests_in_all_models_and_its_states_are_computed_once(
    place: Path, finished: tuple[Path, list[str]]
) -> None:
    directory, lines = finished
    wanted: Any = make_model()
    depths = {}
    for name in ("teacher", "parasite", "prune-only", "unpruned"):
        model: Any = load(directory / "seed-0" / name / "model")
        depths[name] = len(model.decoder.layers)
        assert model.decoder.embedding.embedding_dim == 24
        state = model.state_dict()
        for key, value in wanted.state_dict().items():
            assert not key.startswith(FROZEN) or torch.equal(state[key], value), (name, key)
    assert depths == {"teacher": 4, "parasite": 3, "prune-only": 2, "unpruned": 4}
    made = [line for line in lines if line.startswith("frozen layers: states of")]
    assert len(made) == 2  # of train and of dev
    assert len(list((directory / "states").glob("*.f32"))) == 2
    assert not list(directory.glob("seed-*/*/states"))
    shallow: Any = load(directory / "seed-0" / "teacher" / "shallow" / "model")
    assert len(shallow.decoder.layers) == 2


@needs_native
@pytest.mark.slow
def test_the_table_has_intervals_and_predictions_of_the_native_engine(
    finished: tuple[Path, list[str]],
) -> None:
    table = json.loads((finished[0] / "table.json").read_text())
    rows = {row["system"]: row for row in table["rows"]}
    assert sorted(rows) == [
        "parasite",
        "parasite, draft tokens chosen",
        "prune only",
        "pruned, no draft",
        "teacher",
        "token map",
        "unpruned",
    ]
    assert rows["parasite"]["seeds"] == 2
    for name, row in rows.items():
        assert row["texts changed"].startswith("0 of "), name
        assert (row["over base at least"] == "") == (name == "pruned, no draft")
    # On a busy machine, times of two seeds may differ so much that the bound is below nought.
    assert rows["parasite"]["over base at least"] < rows["parasite"]["over base"]
    assert {"chrF", "tokens/s", "over teacher", "from pruned", "from teacher"} <= rows["unpruned"].keys()
    about = json.loads((finished[0] / "speed.json").read_text())
    assert (about["engine"], about["threads"]) == ("native", 1)


@needs_native
@pytest.mark.slow
def test_a_broken_run_goes_on_to_the_same_bits(place: Path, finished: tuple[Path, list[str]]) -> None:
    """Broken off before the first arm, and before the last one."""
    for last in ("0 of 6 arms are finished", "5 of 6 arms are finished"):

        def report(line: str, last: str = last) -> None:
            if line.startswith(last):
                raise StoppedError

        with pytest.raises(StoppedError):
            run(recipe(place), place / "broken", report=report)
    lines: list[str] = []
    run(recipe(place), place / "broken", report=lines.append)
    assert not [line for line in lines if "frozen layers" in line or line.startswith("0 of 6 arms")]
    for path in finished[0].rglob("model/model.safetensors"):
        again = place / "broken" / path.relative_to(finished[0])
        assert again.read_bytes() == path.read_bytes(), path


@needs_native
@pytest.mark.slow
def test_the_best_of_the_tried_rates_counts_for_every_seed(place: Path) -> None:
    """Broken off between two rates; the rate of the decoder keeps its ratio; nothing is trained again."""
    training = options(3, evaluate_every=3, max_duration_s=2, rates={"base.*": 2.5e-4}).model_dump()
    training["learning_rate"] = 1e-3
    changes = {"training": training, "arms": ["unpruned"], "learning_rates": [1e-6, 4e-3]}
    tuned, directory = recipe(place, **changes), place / "tuned"

    def report(line: str) -> None:
        if line.startswith("1 of 2 arms tuned"):
            raise StoppedError

    with pytest.raises(StoppedError):
        run(tuned, directory, report=report)
    first = (directory / "seed-0" / "parasite" / "model" / "model.safetensors").stat().st_mtime_ns
    lines: list[str] = []
    table = json.loads(run(tuned, directory, report=lines.append).read_text())
    assert "learning rate of unpruned: 0.004, the largest one tried; a better one may lie beyond it" in lines
    assert table["rates"].keys() == {"parasite", "unpruned"}
    for losses in table["rates"].values():
        assert losses["0.004"] < losses["1e-06"]
    rates = {row["system"]: row["learning rate"] for row in table["rows"]}
    assert rates.pop("teacher") == tuned.teacher.learning_rate
    assert set(rates.values()) == {4e-3}
    recipes = sorted(directory.glob("seed-*/[pu]*/recipe.json"))
    assert len(recipes) == 4
    for path in recipes:
        used = json.loads(path.read_text())["training"]
        assert (used["learning_rate"], used["rates"]) == (4e-3, {"base.*": 1e-3}), path
    again = (directory / "seed-0" / "parasite" / "model" / "model.safetensors").stat().st_mtime_ns
    assert again == first
    assert not list((directory / "rates").rglob("*.safetensors"))


def test_what_is_built_is_what_a_check_counts(place: Path) -> None:
    result = estimate_memory(recipe(place))
    named = {one.name: one for one in result.trainings}
    decoder: Any = with_new_decoder(make_model(), ConformerShape.model_validate(DECODER)).decoder
    assert named["teacher"].trained == sum(p.numel() for p in decoder.parameters())
    assert named["unpruned"].translation == named["teacher"].translation
    assert named["prune only"].draft_network == 0


@torch.no_grad()
def test_a_model_that_is_started_from_is_what_a_check_counts(place: Path, tmp_path: Path) -> None:
    model = make_model()
    layers, changes = len(model.decoder.layers), {"start": str(place / "start"), "encoder": None}
    changes |= {"conformer": None, "shallow": None, "arms": ["unpruned"]}
    whole = {"text_layers": 1, "blocks": 1, "whole_layers": 0, "lora_rank": 0}
    result = estimate_memory(recipe(place, **changes, dual_scale={**whole, "decoder_layers": layers}))
    [unpruned] = [one for one in result.trainings if one.name == "teacher"]
    assert unpruned.translation == sum(p.numel() for p in model.parameters())
    with pytest.raises(SprachbundError, match=f"{layers + 1} layers cannot be kept of {layers}"):
        run(recipe(place, **changes, dual_scale={**whole, "decoder_layers": layers + 1}), tmp_path / "run")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_new_decoder_leaves_all_else_as_it_is() -> None:
    old = make_model()
    shape = ConformerShape.model_validate({**DECODER, "label_smoothing": 0.2})
    new = with_new_decoder(old, shape)
    kept = {name for name in old.state_dict() if not name.startswith("decoder.")}
    assert kept == {name for name in new.state_dict() if not name.startswith("decoder.")}
    assert all(torch.equal(old.state_dict()[name], new.state_dict()[name]) for name in kept)
    assert (new.config.label_smoothing, new.config.decoder_width, new.config.width) == (0.2, 24, 32)
    assert new.decoder.max_tokens == 24
    assert new.source_languages == old.source_languages


def test_what_gets_no_new_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SprachbundError, match=r"conformer.width is taken from the model whose encoder is kept"
    ):
        with_new_decoder(make_model(), ConformerShape(width=32))
    with pytest.raises(SprachbundError, match="2 heads of the decoder do not divide its width 25"):
        with_new_decoder(make_model(), ConformerShape(decoder_width=25))
    with pytest.raises(SprachbundError, match="it is split by language"):
        with_new_decoder(split_support.make_split_model(), ConformerShape(num_decoder_layers=2))
    from sprachbund.research.dual_scale.options import on_encoder

    with pytest.raises(
        SprachbundError, match="is a whisper model; a new decoder is trained on that of a conformer"
    ):
        on_encoder(str(make_whisper(tmp_path)), ConformerShape())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conformer": None}, r"give \[conformer\] with the sizes of its decoder"),
        ({"start": "bundled"}, "and neither start nor whisper"),
        ({"dual_scale": {"lora_rank": 4, "whole_layers": 0}}, "cache_states needs a frozen encoder"),
        ({"dual_scale": {"lora_rank": 0, "whole_layers": 1}}, "cache_states needs a frozen encoder"),
        ({"timing": {"engine": "auto"}}, 'engine is "auto"'),
    ],
)
def test_what_does_not_fit_is_refused(place: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(place, **changes)


def test_the_unpruned_arm_has_no_draft_and_all_layers(place: Path) -> None:
    arm = recipe(place).options_of("unpruned")
    assert (arm.decoder_layers, arm.draft, arm.text_layers) == (None, "none", 1)
    assert "unpruned" in ARMS

"""The recipe from data to table on the tiny size, by the command; a model that has learned; what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.cli import main
from sprachbund.corpora.editions import edition, make_edition
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.models.base import Target
from sprachbund.models.card import Card
from sprachbund.models.drafts import read_draft
from sprachbund.models.io import load
from sprachbund.research import size_file
from sprachbund.research.dual_scale.estimate import estimate_memory
from sprachbund.research.dual_scale.options import DualScaleRecipe
from sprachbund.research.dual_scale.recipe import _new_model, _translator
from sprachbund.research.dual_scale.speed import SPEED_FILE, is_measured
from sprachbund.training.dual_scale import DualScaleOptions, make_dual_scale
from sprachbund.training.options import read_recipe
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run as train_translator
from sprachbund.util.options import RenamedWarning
from tests.stories.support import command
from tests.training.made import make_corpus, options
from tests.training.objectives import conformer, transducer
from tests.training.owned import fine_tuning_recipe, make_tones, make_whisper

pytestmark = pytest.mark.slow

SHORT = "model.max_tokens=16"
"""What a model writes that has learned nothing ends nowhere else."""
NAMES = [
    "teacher",
    "pruned, no draft",
    "parasite",
    "parasite, draft tokens chosen",
    "parasite, top-2",
    "parasite, top-3",
    "parasite, unchecked",
    "token map",
    "draft model",
    "medusa",
    "medusa, unchecked",
    "prune only",
    "unpruned",
    "divergence from the start",
    "no text branch",
]


def quiet(line: str) -> None:
    """Takes the log."""


def recipe(size: str, *overrides: str) -> DualScaleRecipe:
    return read_recipe(DualScaleRecipe, size_file("dual_scale", size), overrides)


def test_a_recipe_of_the_earlier_version_is_read() -> None:
    with pytest.warns(RenamedWarning, match="timing: guesses is called num_draft_tokens now"):
        assert recipe("tiny", "timing.guesses=3").timing.num_draft_tokens == 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipe")
    make_edition(directory / "data", edition("tiny", heldout_sentences=4), workers=1)
    assert main(asked(directory)) == 0
    return directory


def asked(directory: Path) -> list[str]:
    places = ["--data", str(directory / "data"), "--out", str(directory / "run")]
    return ["recipe", "dual_scale", "--size", "tiny", *places, "--threads", "1", "--set", SHORT]


def test_every_system_has_its_row(tiny: Path) -> None:
    table = json.loads((tiny / "run" / "table.json").read_text())
    rows = {row["system"]: row for row in table["rows"]}
    assert sorted(rows) == sorted(NAMES)
    assert {name: row["seeds"] for name, row in rows.items()} == dict.fromkeys(NAMES, 2) | {"teacher": 1}
    for row in rows.values():
        assert {"chrF", "tokens/s", "over base", "over teacher at 2", "texts changed"} <= row.keys()
    assert rows["teacher"]["over teacher"] == rows["pruned, no draft"]["over base"] == 1.0
    assert rows["teacher"]["acceptance"] == ""
    assert 0 <= rows["parasite"]["acceptance"] <= 1
    assert rows["parasite"]["predicted"] > 0
    for name in ("parasite", "parasite, draft tokens chosen", "token map", "draft model", "medusa"):
        row = rows[name]
        off = 100 * (row["predicted"] / row["over base"] - 1)
        assert row["prediction off by"] == f"{off:+.1f} %"
        low, high = map(float, row["over base, 95 %"].split(" to "))
        assert low <= high
        assert low == pytest.approx(row["over base at least"], abs=0.005)
    assert rows["prune only"]["prediction off by"] == rows["teacher"]["predicted"] == ""
    assert rows["pruned, no draft"]["over base at least"] == ""
    assert [row["pair"] for row in table["pairs"]] == ["de>en", "en>de"]
    assert (tiny / "run" / "speed.png").stat().st_size > 10_000


def test_what_is_exact_changes_no_text_and_keeps_its_score(tiny: Path) -> None:
    rows = {r["system"]: r for r in json.loads((tiny / "run" / "table.json").read_text())["rows"]}
    for name, row in rows.items():
        if "top" not in name and "unchecked" not in name:
            assert row["texts changed"].startswith("0 of "), name
    for name in ("parasite", "parasite, draft tokens chosen", "token map", "draft model"):
        assert rows[name]["chrF"] == rows["pruned, no draft"]["chrF"]
    assert rows["pruned, no draft"]["from pruned"] == rows["parasite"]["p"] == ""
    for name in ("teacher", "medusa", "no text branch", "parasite, unchecked"):
        difference = rows[name]["chrF"] - rows["pruned, no draft"]["chrF"]
        assert rows[name]["from pruned"].startswith(f"{difference:+.2f} (")
        assert rows[name]["p"] <= rows[name]["Holm's p"] <= 1


def test_arms_are_what_they_are_called(tiny: Path) -> None:
    seed = tiny / "run" / "seed-0"
    depths = {
        name: load(seed / name / "model").config.decoder_layers  # type: ignore[attr-defined]
        for name in ("teacher", "parasite", "medusa", "prune-only", "unpruned", "draft-model")
    }
    assert depths == {
        "teacher": 6,
        "parasite": 3,
        "medusa": 3,
        "prune-only": 2,
        "unpruned": 6,
        "draft-model": 2,
    }
    drafts = {
        name: list(load(seed / name / "model").drafts)
        for name in ("teacher", "parasite", "medusa", "prune-only", "unpruned", "token-map")
    }
    assert drafts == {
        "teacher": [],
        "parasite": ["parasite"],
        "medusa": ["medusa"],
        "prune-only": [],
        "unpruned": [],
        "token-map": ["token-map"],
    }
    states = [load(seed / name / "model").state_dict() for name in ("parasite", "draft-model")]  # type: ignore[attr-defined]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[1] if n.startswith("encoder."))
    assert load(seed / "parasite" / "model").pairs() == {("de", "en"), ("en", "de")}


def test_a_second_run_makes_nothing_again(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [*tiny.rglob("model.safetensors"), *tiny.rglob("scores.json"), *tiny.rglob("speed.json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main([*asked(tiny), "--json"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(NAMES)


def test_models_scored_beside_each_other_have_the_same_scores(tiny: Path) -> None:
    run = tiny / "run"
    table = json.loads((run / "table.json").read_text())["rows"]
    gone = [run / "seed-0" / "medusa" / "scores", run / "seed-1" / "parasite" / "scores-top-2"]
    for scores in gone:
        shutil.rmtree(scores)
    assert main([*asked(tiny), "--set", "workers=2"]) == 0
    assert all((scores / MANIFEST_FILE).exists() for scores in gone)
    assert json.loads((run / "table.json").read_text())["rows"] == table


def test_a_folder_of_other_options_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*asked(tiny), "--set", "training.steps=9"]) != 0
    assert "was begun with training.steps 4, not 9; give another --out" in capsys.readouterr().err


def test_times_of_other_systems_are_not_taken(tiny: Path) -> None:
    asked_for = recipe("tiny", SHORT)
    assert is_measured(asked_for, tiny / "run")
    assert not is_measured(asked_for.model_copy(update={"arms": ("medusa",)}), tiny / "run")
    assert not is_measured(asked_for.model_copy(update={"seeds": (*asked_for.seeds, 9)}), tiny / "run")
    assert not is_measured(asked_for, tiny / "data")


def test_a_size_of_batch_that_was_timed_is_not_timed_again(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny / "run" / SPEED_FILE
    whole = json.loads(path.read_text())
    first, second = ([s for s in whole["speeds"] if s["batch"] == batch] for batch in (1, 2))
    try:
        path.write_text(json.dumps({**whole, "speeds": [*first, *second[2:]]}))
        assert not is_measured(recipe("tiny", SHORT), tiny / "run")
        assert main(asked(tiny)) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "speed:" in line]
        assert "pieces of 2" in line
        again = json.loads(path.read_text())["speeds"]
        assert again[: len(first)] == first
        assert [(s["name"], s["pair"]) for s in again[len(first) :]] == [
            (s["name"], s["pair"]) for s in second
        ]
        # What was timed on something else says nothing of this machine.
        path.write_text(json.dumps({**whole, "threads": 9, "speeds": first}))
        assert main(asked(tiny)) == 0
        assert capsys.readouterr().err.count("speed:") == 2
    finally:
        path.write_text(json.dumps(whole))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Manifest]:
    """A translator with its parasite that has learned the tones by heart, each language into the other."""
    root = tmp_path_factory.mktemp("learned")
    data, start = make_tones(root / "data"), make_whisper(root / "whisper")
    # Of a published vocabulary the blank is not to come first; here that is where every word begins.
    settings = {"is_multilingual": True, "begin_suppress_tokens": []}
    (start / "generation_config.json").write_text(json.dumps(settings))
    wanted = {"text_layers": 1, "blocks": 1, "whole_layers": 1, "gate_decay": 0.9}
    training = {"learning_rate": 3e-3, "warmup_steps": 20, "evaluate_every": 45, "keep_best": 1}
    asked = fine_tuning_recipe(
        data,
        start,
        90,
        fine_tuning={"prompt": "wanted-only"},
        dual_scale=wanted,
        training=training,
    )
    lines: list[str] = []
    model = train_translator(asked, root / "run", report=lines.append)
    assert "the result will not transcribe" in lines[0]
    steps = [line for line in lines if line.startswith("step ") and "dev" not in line]
    assert " kl 0." not in steps[0]  # the gate has opened later
    assert " kl 0." in steps[-1]
    card = Card.read(root / "run" / "model")
    assert card is not None
    assert card.limits == ["It was trained to translate, not to transcribe."]
    return model, Manifest(data)


@torch.inference_mode()
@pytest.mark.parametrize("num_draft_tokens", [1, 3])
def test_a_trained_model_translates_and_its_draft_tokens_change_nothing(
    learned: tuple[Any, Manifest], num_draft_tokens: int
) -> None:
    model, manifest = learned
    utterances = list(manifest)
    memory = model.encode(model.features([manifest.samples(i) for i in range(len(utterances))]))
    other = {"en": "de", "de": "en"}
    targets = [[Target(language=other[u.language], source=u.language)] for u in utterances]
    plain = search(model, memory, targets, DecodingOptions(draft="none"))
    said = [model.decode_text(row[0].tokens).strip() for row in plain]
    assert said == [u.text_in(other[u.language]) for u in utterances]
    drafted = DecodingOptions(draft="parasite", num_draft_tokens=num_draft_tokens)
    speculation = speculation_for(model, drafted)
    assert isinstance(speculation, Speculation)
    result = search(model, memory, targets, drafted, None, speculation)
    assert [row[0].tokens for row in result] == [row[0].tokens for row in plain]
    assert np.mean([r.acceptance for r in speculation.report()]) > 0.5
    for row, target in zip(plain, targets, strict=True):  # one by one as in the batch
        index = plain.index(row)
        alone = search(model, memory.select(torch.tensor([index])), [target], drafted, None, speculation)
        assert alone[0][0].tokens == row[0].tokens


def test_a_broken_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    make_tones(tmp_path / "data")
    asked = fine_tuning_recipe(
        tmp_path / "data",
        make_whisper(tmp_path / "whisper"),
        5,
        fine_tuning={"prompt": "wanted-only"},
        dual_scale={"text_layers": 1, "blocks": 1, "whole_layers": 0, "lora_rank": 2, "gate_decay": 0.5},
    )
    whole = train_translator(asked, tmp_path / "whole", report=quiet)
    train_translator(asked, tmp_path / "broken", report=quiet, stop_after=3)
    broken = train_translator(asked, tmp_path / "broken", report=quiet)
    assert all(torch.equal(w, broken.state_dict()[n]) for n, w in whole.state_dict().items())
    (card, weights), (other_card, others) = (
        read_draft(tmp_path / run / "model/draft.safetensors") for run in ("whole", "broken")
    )
    assert card == other_card
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_a_new_language_and_a_tenth_of_transcription(tmp_path: Path) -> None:
    make_tones(tmp_path / "data", ("gsw", "en"))
    asked = fine_tuning_recipe(
        tmp_path / "data",
        make_whisper(tmp_path / "whisper"),
        2,
        languages=("gsw", "en", "de"),
        fine_tuning={"prompt": "wanted-only", "new_languages": {"gsw": "de"}},
        dual_scale={"text_layers": 1, "draft": "none", "same_language": 0.1},
    )
    lines: list[str] = []
    model = train_translator(asked, tmp_path / "run", report=lines.append)
    assert {("gsw", "gsw"), ("gsw", "en"), ("en", "gsw")} <= model.pairs()
    assert not any("will not transcribe" in line for line in lines)
    assert not model.drafts


def test_our_own_family_by_the_same_recipe(tmp_path: Path) -> None:
    make_corpus(tmp_path / "data", 16)
    shape = {"width": 32, "num_heads": 2, "num_encoder_layers": 2, "num_decoder_layers": 4, "max_tokens": 32}
    asked = TranslatorRecipe.model_validate(
        {
            "languages": ("en", "de"),
            "train": [{"path": tmp_path / "data"}],
            "dev": [{"path": tmp_path / "data"}],
            "vocabulary_size": 40,
            "transcript_vocabulary_size": 30,
            "model": shape,
            "dual_scale": {
                "decoder_layers": 2,
                "text_layers": 2,
                "blocks": 1,
                "whole_layers": 1,
                "lora_rank": 2,
            },
            "training": options(3).model_dump(),
            "card": {"name": "two scales"},
        }
    )
    model = train_translator(asked, tmp_path / "run", report=quiet)
    assert (model.name, model.config.num_decoder_layers, list(model.drafts)) == ("conformer", 2, ["parasite"])


def test_the_published_shape_is_reported() -> None:
    result = estimate_memory(recipe("paper"))
    assert result.model == "Whisper medium"
    assert result.parts["decoder layer"] == 16_794_624
    assert result.parts["draft network, matrices"] == 44_040_192
    named = {training.name: training for training in result.trainings}
    assert round(named["parasite"].translation / 1e6) == 561
    assert named["prune only"].translation == named["parasite"].translation - 4 * 16_794_624
    assert named["teacher"].translation == named["parasite"].translation + 12 * 16_794_624
    assert abs(named["medusa"].draft_network / named["parasite"].draft_network - 1) < 0.001
    assert named["parasite"].utterances == 64


def test_a_conformer_is_estimated_without_tokenizers() -> None:
    result = estimate_memory(recipe("small"))
    assert result.parts["decoder layer"] > 0
    assert {training.name for training in result.trainings} >= {"parasite", "medusa"}


def test_what_is_told_is_what_is_built(tiny: Path) -> None:
    lines = {line["name"]: line for line in estimate_memory(recipe("tiny", SHORT)).model_dump()["trainings"]}
    model = load(tiny / "run" / "seed-0" / "parasite" / "model")
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)  # type: ignore[attr-defined]
    vocabulary = model.config.vocabulary_size  # type: ignore[attr-defined]
    assert lines["parasite"]["translation"] == own + (300 + 2 + 7 - vocabulary) * 32


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["arms=['medusas']"], "no arm 'medusas'; there are parasite; medusa"),
        (["dual_scale.blocks=9"], "9 blocks cannot share the decoder's 3 layers"),
        (["dual_scale.decoder_layers=7"], "7 layers cannot be kept of 6"),
        (["dual_scale.draft=none"], "dual_scale.draft is 'none', and the main arm has a parasite"),
        (["timing.num_draft_tokens=9"], "timing.num_draft_tokens: Input should be less than or equal to 8"),
        (["timing.batches=[]"], "timing.batches: Tuple should have at least 1 item"),
        (["timing.batches=[1, 1]"], "timing.batches: 1 is there twice"),
        (
            ["dual_scale.gate_decy=0.9"],
            "unknown key dual_scale.gate_decy; did you mean dual_scale.gate_decay?",
        ),
    ],
)
def test_what_does_not_fit_is_named(overrides: list[str], said: str) -> None:
    parts = [part for override in overrides for part in ("--set", override)]
    ran = command("recipe", "dual_scale", "--size", "tiny", "--check", *parts)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_check_says_how_often_every_arm_is_trained() -> None:
    ran = command("recipe", "dual_scale", "--size", "tiny", "--check")
    assert ran.out.splitlines()[0] == "tiny: whisper; de en; every arm 2 times"


def test_what_does_not_fit_is_named_before_the_teacher_is_trained(tmp_path: Path) -> None:
    make_tones(tmp_path / "data" / "train")
    make_tones(tmp_path / "data" / "dev")
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    ran = command("recipe", "dual_scale", "--size", "tiny", *places, "--set", "dual_scale.blocks=9")
    assert "9 blocks cannot share the decoder's 3 layers" in ran.err
    assert not (tmp_path / "run").exists()


def test_adapters_asked_for_twice_and_a_shape_without_a_checkpoint(tmp_path: Path) -> None:
    from sprachbund.research.dual_scale.recipe import run

    make_tones(tmp_path / "data")
    lora = {"modules": ("encoder.*",)}
    asked = fine_tuning_recipe(
        tmp_path / "data", make_whisper(tmp_path / "whisper"), 2, lora=lora, dual_scale={"text_layers": 1}
    )
    with pytest.raises(SprachbundError, match="dual_scale has its own adapters"):
        train_translator(asked, tmp_path / "run", report=quiet)
    with pytest.raises(SprachbundError, match="Whisper medium is not trained from nothing"):
        run(recipe("paper"), tmp_path / "run")
    ran = command("recipe", "dual_scale", "--size", "paper", "--set", "arms=[]")
    assert ran.code == 2
    assert "16,794,624" in ran.out
    assert "--set start=DIR" in ran.err


def test_a_teacher_grows_from_a_shallow_one(tiny: Path) -> None:
    teacher = tiny / "run" / "seed-0" / "teacher"
    depths = [
        load(teacher / name).config.decoder_layers  # type: ignore[attr-defined]
        for name in ("shallow/model", "grown", "model")
    ]
    assert depths == [2, 6, 6]


def test_a_teacher_of_no_multiple_of_the_shallow_layers_is_refused() -> None:
    with pytest.raises(
        SprachbundError, match="shallow_layers 4 do not divide the teacher's 6 decoder layers"
    ):
        recipe("tiny", "shallow_layers=4")


def test_a_new_whisper_has_the_weights_of_the_seed(tmp_path: Path) -> None:
    make_tones(tmp_path / "data" / "train")
    sets = [f'data="{tmp_path / "data"}"', 'languages=["en", "de"]', "model.vocabulary_size=270"]

    def embedding(number: int, *more: str) -> torch.Tensor:
        torch.manual_seed(100 + number)  # whatever was drawn before
        start: Any = load(_new_model(recipe("tiny", *sets, *more), tmp_path / str(number))["start"])
        weight: torch.Tensor = start.decoder.embedding.weight
        return weight

    first = embedding(0)
    assert torch.equal(embedding(1), first)
    assert not torch.equal(embedding(2, "seeds=[5]"), first)


def test_each_part_leaves_out_its_own_languages(tmp_path: Path) -> None:
    make_tones(tmp_path / "data" / "train", ("en", "de", "es"))
    make_tones(tmp_path / "data" / "dev", ("en", "de", "fr"))
    one = recipe("tiny", f'data="{tmp_path / "data"}"', 'languages=["en", "de"]')
    translator = _translator(one, one.training)
    assert [part.shares for part in (*translator.train, *translator.dev)] == [{"es": 0.0}, {"fr": 0.0}]


def test_a_transducer_is_refused() -> None:
    with pytest.raises(SprachbundError, match="the model writes by a transducer"):
        make_dual_scale(conformer(**transducer(1.0)), DualScaleOptions(text_layers=0, draft="none"))

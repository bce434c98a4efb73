"""Fine-tuning what one owns: it learns, resumes bit for bit, and what it saves transformers reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from sprachbund.cli.models import describe
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.models import seamless, whisper
from sprachbund.models.base import Target
from sprachbund.models.calibration import Domain
from sprachbund.models.card import PAIRS, Card
from sprachbund.models.conformer.io import save as save_conformer
from sprachbund.models.io import load
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.research.gradient_sharing.surgery import apply_plan
from sprachbund.training.translator import licence_warnings, run
from tests.models.seamless.support import make_checkpoint
from tests.training import made
from tests.training.owned import WORDS, fine_tuning_recipe, make_tones, make_whisper

WANTED = {"prompt": "wanted"}


def quiet(line: str) -> None:
    """Takes the log."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("owned")
    make_tones(root / "data")
    make_whisper(root / "whisper")
    return root


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    """A Whisper that has learned the tones by heart, in either language."""
    training = {"learning_rate": 3e-3, "warmup_steps": 20, "evaluate_every": 30, "keep_best": 2}
    recipe = fine_tuning_recipe(
        folder / "data", folder / "whisper", 90, fine_tuning=WANTED, training=training
    )
    run(recipe, folder / "learned", report=quiet)
    return folder / "learned" / "model"


@pytest.mark.slow
def test_it_translates_what_it_was_trained_on_in_transformers_and_here(learned: Path, folder: Path) -> None:
    theirs = WhisperForConditionalGeneration.from_pretrained(learned).eval()
    tokenizer = WhisperTokenizer.from_pretrained(learned)
    ours = whisper.load(learned)
    manifest = Manifest(folder / "data")
    for i, utterance in enumerate(manifest):
        features = ours.features([manifest.samples(i)])
        for language in WORDS:
            row = ours.prompt(Target(language=language, source=utterance.language))
            cache = ours.start(ours.encode(features))
            logits, length = ours.step(torch.tensor([row]), cache)[0, -1], len(row)
            while (token := int(logits.argmax())) != ours.end_token and len(row) < 20:
                row.append(token)
                logits = ours.step(torch.tensor([[token]]), cache)[0, -1]
            said = ours.decode_text(row[length:])
            assert said.strip() == utterance.text_in(language)
            made_there = theirs(
                input_features=features.values.transpose(1, 2), decoder_input_ids=torch.tensor([row])
            ).logits[0, length - 1 :]
            assert made_there.argmax(-1).tolist() == [*row[length:], ours.end_token]
            assert tokenizer.decode(row[length:]) == said


def test_the_card_and_the_configuration_say_what_it_does(learned: Path, folder: Path) -> None:
    card = Card.read(learned)
    assert card is not None
    assert (card.name, card.bits, sorted(card.target_languages)) == ("tuned", 32, ["de", "en"])
    assert card.training["start"] == str(folder / "whisper")
    assert card.taught_pairs is None  # what the start was taught is not known
    assert load(learned).pairs() == {(s, t) for s in WORDS for t in WORDS}


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load(directory / "model").state_dict()  # type: ignore[attr-defined]


@pytest.mark.parametrize("real_length", [False, True])
def test_a_broken_run_ends_with_the_same_bits(folder: Path, tmp_path: Path, real_length: bool) -> None:
    recipe = fine_tuning_recipe(
        folder / "data",
        folder / "whisper",
        6,
        fine_tuning={"real_length": real_length, "label_smoothing": 0.1, "new_languages": {"gsw": "de"}},
        examples={"rows_per_utterance": 2, "speeds": [0.9, 1.0], "max_time_mask_s": 0.05},
        training={"max_duration_s": 0.8, "evaluate_every": 3, "keep_best": 2},
    )
    run(recipe, tmp_path / "unbroken", report=quiet)
    run(recipe, tmp_path / "broken", report=quiet, stop_after=2)
    assert not (tmp_path / "broken" / "best").exists()
    lines: list[str] = []
    run(recipe, tmp_path / "broken", report=lines.append)
    assert any("resumed at step 2" in line for line in lines)
    one, two = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "broken")
    assert all(torch.equal(one[name], two[name]) for name in one)
    before = whisper.load(folder / "whisper").state_dict()
    assert sum(not torch.equal(one[name], before[name]) for name in before) > 0.9 * len(before) - 2
    assert whisper.load(tmp_path / "broken" / "model").real_length is real_length


def test_a_new_language_is_heard_and_written(folder: Path, tmp_path: Path) -> None:
    make_tones(tmp_path / "data", ("gsw", "de"), silence=2)
    recipe = fine_tuning_recipe(
        tmp_path / "data",
        folder / "whisper",
        3,
        languages=("gsw", "de", "en"),
        fine_tuning={"new_languages": {"gsw": "de"}, **WANTED},
        training={"precision": "bf16", "recompute": True},
        bits=16,
    )
    model = run(recipe, tmp_path / "run", report=quiet)
    assert ("gsw", "en") in model.pairs()
    theirs = WhisperForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert theirs.dtype == torch.float16
    number = WhisperTokenizer.from_pretrained(tmp_path / "run" / "model").convert_tokens_to_ids("<|gsw|>")
    assert model.prompt(Target(language="gsw", source="en"))[1] == number == 1775
    assert theirs.config.vocab_size == 1776


@pytest.mark.usefixtures("predicted_memory")
def test_adapters_and_what_is_trained_beside_them_are_merged(folder: Path, tmp_path: Path) -> None:
    lora = {"modules": ("encoder.*.feed_forward.*",), "rank": 2, "scale": 1.0, "whole": ("decoder.norm.*",)}
    lines: list[str] = []
    recipe = fine_tuning_recipe(folder / "data", folder / "whisper", 3, lora=lora)
    run(recipe, tmp_path / "run", report=lines.append)
    before, after = whisper.load(folder / "whisper").state_dict(), weights_of(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {f"encoder.layers.0.feed_forward.{part}.weight" for part in ("expand", "contract")}
    assert changed == {*adapted, "decoder.norm.weight", "decoder.norm.bias"}
    assert f"{(2 * 2 * (64 + 96) + 128) / 1e3:.1f} k of them are trained" in "\n".join(lines)


def test_a_split_whisper_keeps_its_plan(folder: Path, tmp_path: Path) -> None:
    model = whisper.load(folder / "whisper")
    split = {"groups": [["de"], ["en"]], "shared_ratio": 0.5, "start": "random"}
    splits = [
        {**split, "module": "encoder.layers.0.feed_forward"},
        {**split, "module": "decoder.layers.0.feed_forward", "side": "target"},
    ]
    apply_plan(model, SharingPlan.model_validate({"splits": splits}))
    whisper.save(model, tmp_path / "split")
    trainable = {"trainable": ("*.private.0.*",)}
    recipe = fine_tuning_recipe(
        folder / "data", tmp_path / "split", 2, fine_tuning=WANTED, training=trainable
    )
    trained = run(recipe, tmp_path / "run", report=quiet)
    assert trained.sharing_plan == model.sharing_plan
    before, after = model.state_dict(), trained.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        n for n in before if ".private.0." in n
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", ["seamless_m4t", "seamless_m4t_v2"])
def test_seamless_is_fine_tuned_on_a_language_it_never_heard(version: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start", version)
    make_tones(tmp_path / "data", ("gsw", "en"))
    recipe = fine_tuning_recipe(
        tmp_path / "data",
        tmp_path / "start",
        8,
        languages=("gsw", "en", "fr"),
        fine_tuning={"new_languages": {"gsw": "mean"}},
        training={"learning_rate": 2e-3, "log_every": 1, "warmup_steps": 1},
    )
    lines: list[str] = []
    model = run(recipe, tmp_path / "run", report=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if " rate " in line]
    assert losses[-1] < 0.9 * losses[0]
    assert ("gsw", "en") in model.pairs()
    before, after = seamless.load(tmp_path / "start").state_dict(), model.state_dict()
    assert not any(torch.equal(before[n], after[n]) for n in before if n.endswith("expand.weight"))
    card = Card.read(tmp_path / "run" / "model")
    assert card is not None
    assert card.source_languages == ["gsw", "en", "fr"]
    assert card.target_languages == ["en", "fr"]


def test_a_conformer_is_trained_on_without_its_shape_being_given(tmp_path: Path) -> None:
    save_conformer(made.make_model(), tmp_path / "start")
    make_tones(tmp_path / "data", ("de",))
    recipe = fine_tuning_recipe(tmp_path / "data", tmp_path / "start", 2, languages=("de",))
    with pytest.raises(
        SprachbundError, match="the recipe has vocabulary_size, and the tokenizers are those of"
    ):
        run(
            fine_tuning_recipe(
                tmp_path / "data", tmp_path / "start", 2, languages=("de",), vocabulary_size=99
            ),
            tmp_path / "run",
            report=quiet,
        )
    model = run(recipe, tmp_path / "run", report=quiet)
    assert model.config == made.make_model().config  # both languages are still there
    assert json.loads((tmp_path / "run" / "model" / "card.json").read_text())["bits"] == 8


def test_data_without_the_languages_of_the_recipe_are_named(tmp_path: Path) -> None:
    save_conformer(made.make_model(), tmp_path / "start")
    make_tones(tmp_path / "data", ("de",))
    none = [{"path": tmp_path / "data", "shares": {"de": 0}}]
    recipe = fine_tuning_recipe(tmp_path / "data", tmp_path / "start", 2, languages=("de",), train=none)
    with pytest.raises(SprachbundError, match="no utterance in the languages of the recipe, de; change lang"):
        run(recipe, tmp_path / "run", report=quiet)


def test_the_card_keeps_what_the_start_owes_and_another_licence_is_warned_of(tmp_path: Path) -> None:
    owed = {"name": "prompts", "licence": "CC-BY-SA-3.0", "attribution": "Allison Smith"}
    before = Card(
        name="start",
        licence="CC-BY-SA-3.0",
        data=[owed],
        limits=["It knows prompts only."],
        training={PAIRS: [["en", "en"]]},
    )
    save_conformer(made.make_model(), tmp_path / "start", card=before)
    make_tones(tmp_path / "data", ("de",))
    lines: list[str] = []
    card = {"name": "tuned", "licence": "CC0-1.0", "limits": ["It is small."]}
    recipe = fine_tuning_recipe(
        tmp_path / "data", tmp_path / "start", 1, languages=("de",), card=card, bits=32
    )
    run(recipe, tmp_path / "run", report=lines.append)
    [warning] = [line for line in lines if "licence CC0-1.0, but" in line]
    assert warning.startswith("warning: ")
    assert (
        'has weights under CC-BY-SA-3.0: models made from it keep that licence; set card.licence = "'
        in warning
    )
    after = Card.read(tmp_path / "run" / "model")
    assert after is not None
    assert after.data[0] == owed
    assert len(after.data) == 2
    assert after.limits == ["It is small.", "It knows prompts only."]
    assert after.training["start_licence"] == "CC-BY-SA-3.0"
    assert after.taught_pairs == {("en", "en"), ("de", "de")}
    shown = describe("tuned", tmp_path / "run" / "model")
    assert (shown["start"], shown["start_licence"]) == (str(tmp_path / "start"), "CC-BY-SA-3.0")
    again = fine_tuning_recipe(tmp_path / "data", tmp_path / "run" / "model", 1, card=card)
    [warning] = licence_warnings(again)  # what was labelled wrong stays bound
    assert "has weights under CC-BY-SA-3.0" in warning


def test_a_calibration_that_is_not_carried_over_is_named(tmp_path: Path) -> None:
    save_conformer(made.make_model(), tmp_path / "start")
    zeros = [0.0] * made.make_model().config.width
    Domain(threshold=0.5, bias=0.0, signals={}, encoder=zeros).write(tmp_path / "start")
    make_tones(tmp_path / "data", ("de",))
    lines: list[str] = []
    recipe = fine_tuning_recipe(tmp_path / "data", tmp_path / "start", 1, languages=("de",))
    run(recipe, tmp_path / "run", report=lines.append)
    model = tmp_path / "run" / "model"
    [line] = [line for line in lines if "the calibration of" in line]
    assert line.startswith(f"the calibration of {tmp_path / 'start'} (domain.json) is not carried over")
    assert line.endswith(f"run `sprachbund calibrate CORPUS… --model {model}`")
    lines.clear()
    again = fine_tuning_recipe(tmp_path / "data", model, 1, languages=("de",))
    run(again, tmp_path / "again", report=lines.append)
    assert not [line for line in lines if "the calibration of" in line]


@pytest.mark.parametrize(
    ("start", "licence", "warned"),
    [
        ("CC-BY-SA-3.0", "CC-BY-SA-3.0", ""),
        ("CC-BY-SA-3.0", "", "gives the new model no licence"),
        ("MIT", "CC0-1.0", ""),
        ("GPL-3.0", "MIT", "has weights under GPL-3.0: models made from it keep"),
        ("CC-BY-NC-4.0", "MIT", "has weights under CC-BY-NC-4.0: it forbids commercial use"),
    ],
)
def test_only_a_licence_that_binds_is_warned_of(
    tmp_path: Path, start: str, licence: str, warned: str
) -> None:
    save_conformer(made.make_model(), tmp_path / "start", card=Card(name="start", licence=start))
    card = {"name": "tuned", "licence": licence}
    lines = licence_warnings(fine_tuning_recipe(tmp_path / "data", tmp_path / "start", 1, card=card))
    assert bool(lines) is bool(warned)
    assert warned in "".join(lines)


REFUSED = {
    "bits": ({"bits": 8}, "16 or 32 bits, not 8"),
    "shape": ({"vocabulary_size": 10}, "vocabulary_size, which a whisper checkpoint brings along"),
    "language": ({"languages": ("en", "de", "gsw")}, 'no token for gsw.*new_languages = {gsw = "mean"}'),
    "known": ({"fine_tuning": {"new_languages": {"de": "mean"}}}, "has a token for 'de' already"),
    "related": ({"fine_tuning": {"new_languages": {"gsw": "xx"}}}, "cannot start from 'xx'"),
    "tag": ({"fine_tuning": {"new_languages": {"Swiss": "de"}}}, "'Swiss' is not a BCP-47 tag"),
    "pattern": (
        {"lora": {"modules": ("encoder.*.query",), "whole": ("nothing",)}},
        "'nothing' matches no parameter",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_training(folder: Path, tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(SprachbundError, match=message):
        run(fine_tuning_recipe(folder / "data", folder / "whisper", 2, **changes), tmp_path, report=quiet)
    assert not (tmp_path / "resume.pt").exists()


def test_a_published_prompt_is_not_trained_on_german(folder: Path, tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "data") as writer:
        said = {"text": "x" * 100, "language": "fr", "translations": {"de": "eins"}}  # too long a transcript
        writer.add(np.zeros(8000, np.float32), speaker="", utterance_id="a", **said)  # type: ignore[arg-type]
    recipe = fine_tuning_recipe(tmp_path / "data", folder / "whisper", 2, languages=("fr", "de"))
    with pytest.raises(SprachbundError, match=r'is to write de, fr.*needs fine_tuning.prompt = "wanted"'):
        run(recipe, tmp_path / "run", report=quiet)


def test_utterances_that_are_left_out_are_counted(folder: Path, tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "data") as writer:
        for i, num_samples in enumerate((8000, 8000, 20_000)):
            said = {"text": "one", "language": "en", "speaker": "", "utterance_id": str(i)}
            writer.add(np.zeros(num_samples, np.float32), **said)  # type: ignore[arg-type]
    lines: list[str] = []
    run(fine_tuning_recipe(tmp_path / "data", folder / "whisper", 1), tmp_path / "run", report=lines.append)
    assert "1 of 3 utterances are longer than 0.9 s: left out" in lines
    slow = {
        "examples": {"speeds": [0.4, 1.0], "rows_per_utterance": 1},
        "training": {"max_duration_s": 9.0, "num_workers": 0},
    }
    with pytest.raises(SprachbundError, match=r"left; cut them into pieces of at most 0.4 s"):
        run(
            fine_tuning_recipe(tmp_path / "data", folder / "whisper", 1, **slow),
            tmp_path / "s",
            report=lines.append,
        )
    assert lines[-1].startswith("3 of 3 utterances are longer than 0.4 s, which the model takes at once")

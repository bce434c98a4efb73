"""The whole way on a tiny model: train, analyse, plan, apply, train on, evaluate (specification, section 6).

All languages are spoken in the same tones, but two of them have other words for the tones than the other two, so that
no encoder can serve both without being told who speaks: the groups are planted in the task.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.evaluation.hypotheses import BatchDecoder
from sprachbund.models.conformer import Conformer, ConformerShape
from sprachbund.models.conformer.io import load
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.research.gradient_sharing.gradients import GradientExample, decoder_loss
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe
from sprachbund.training.translator import run as train_translator
from tests.stories.support import command

GROUPS = {"de": 0, "nl": 0, "fi": 1, "sw": 1}
TAGS = tuple(sorted(GROUPS))
SYLLABLES = (("ba", "ko", "mi", "tu"), ("fe", "lo", "pu", "ri"))
PLANTED = {frozenset({"de", "nl"}), frozenset({"fi", "sw"})}
SHAPE = ConformerShape(
    width=32,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=1,
    feed_forward_width=64,
    kernel_size=5,
    max_tokens=24,
    ctc_weight=0.0,
    language_weight=0.0,
    label_smoothing=0.0,
)


def text(tones: list[int], source: str, target: str) -> str:
    """What the tones of a speaker of `source` are in `target`."""
    return " ".join(SYLLABLES[GROUPS[source]][tone] + target for tone in tones)


def sound(tones: list[int]) -> np.ndarray:
    time = np.arange(6400) / 16_000
    return np.concatenate([0.3 * np.sin(2 * np.pi * (300 + 350 * t) * time) for t in tones]).astype(
        np.float32
    )


def write_corpus(directory: Path, count: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    with ManifestWriter(directory) as writer:
        for number in range(count):
            source = TAGS[number % 4]
            tones = random.integers(0, 4, size=random.integers(1, 3)).tolist()
            writer.add(
                sound(tones),
                text=text(tones, source, source),
                language=source,
                speaker="tone",
                utterance_id=f"{seed}-{number}",
                translations={tag: text(tones, source, tag) for tag in TAGS if tag != source},
            )
    return directory


def train(data: Path, directory: Path, steps: int, start: Path | None = None, **changes: object) -> Path:
    training = TrainingOptions(
        steps=steps,
        learning_rate=5e-3,
        warmup_steps=5,
        precision="no",
        batch_s=6,
        num_workers=0,
        evaluate_every=steps,
        save_every=steps,
        keep_best=1,
        **changes,  # type: ignore[arg-type]
    )
    recipe = TranslatorRecipe(
        languages=TAGS,
        train=(DataPart(path=data / "train"),),
        dev=(DataPart(path=data / "dev"),),
        bits=32,
        model=SHAPE,
        training=training,
        examples=ExampleRecipe(speeds=(1.0,), time_masks=0, frequency_masks=0),
        card=CardRecipe(name="chain"),
        start=start,
        **({"vocabulary_size": 70, "transcript_vocabulary_size": 50} if start is None else {}),  # type: ignore[arg-type]
    )
    train_translator(recipe, directory, report=lambda line: None)
    return directory / "model"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the whole way was gone."""
    root = tmp_path_factory.mktemp("chain")
    write_corpus(root / "data" / "train", 192, 0)
    write_corpus(root / "data" / "dev", 32, 1)
    first = train(root / "data", root / "first", 150)
    numbers = ("--utterances", "32", "--accumulate", "1", "--dimensions", "256")
    for line in (
        ("analyse", first, root / "data" / "train", "--out", root / "gradients.npz", *numbers),
        ("plan", root / "gradients.npz", "--out", root / "plan.json", "--rho", "0.25"),
        (
            "apply",
            first,
            root / "plan.json",
            "--data",
            root / "data" / "train",
            "--out",
            root / "split",
            "--utterances",
            "32",
        ),
    ):
        ran = command("share", *line)
        assert ran.code == 0, ran.err
    train(root / "data", root / "second", 150, root / "split", rates={"*.private.*": 1e-2})
    return root


def dev_loss(model: Conformer, data: Path) -> float:
    """Cross-entropy for each target token, in nats."""
    manifest = Manifest(data / "dev")
    spoken = [
        GradientExample(
            samples=manifest.samples(i), text=u.text_in(target) or "", source=u.language, target=target
        )
        for i, u in enumerate(manifest)
        for target in TAGS[:2]
    ]
    with torch.inference_mode():
        total, count = decoder_loss(model.eval(), spoken)
    return float(total) / count


@pytest.mark.slow
def test_the_planted_groups_are_planned(workdir: Path) -> None:
    plan = SharingPlan.read(workdir / "plan.json")
    assert set(map(frozenset, plan.splits[0].groups)) == PLANTED
    evidence = plan.splits[0].evidence
    assert evidence is not None
    similar = dict(zip(evidence.languages, evidence.similarity, strict=True))
    within, across = (similar["de"][evidence.languages.index(tag)] for tag in ("nl", "fi"))
    assert within > across + 0.1


@pytest.mark.slow
def test_the_branches_learn_what_one_model_could_not(workdir: Path) -> None:
    """Told nothing of the speaker, half of the first words are the other group's: a loss of about log 2 for each."""
    before = dev_loss(load(workdir / "first" / "model"), workdir / "data")
    after = dev_loss(load(workdir / "second" / "model"), workdir / "data")
    assert after < 0.5 * before


@pytest.mark.slow
def test_under_each_others_branches_they_fail(workdir: Path) -> None:
    right = load(workdir / "second" / "model")
    plan = right.sharing_plan
    assert plan is not None
    splits = tuple(split.model_copy(update={"groups": split.groups[::-1]}) for split in plan.splits)
    wrong = load(workdir / "first" / "model")
    split_feed_forwards(wrong, plan.model_copy(update={"splits": splits}))
    wrong.load_state_dict(right.state_dict())
    assert dev_loss(wrong, workdir / "data") > 3 * dev_loss(right, workdir / "data")


@pytest.mark.slow
def test_evaluation_takes_the_branch_of_the_speaker(workdir: Path) -> None:
    """The same recordings mean two things, by who is said to speak."""
    tones = [[0], [1], [2], [3]]
    model = load(workdir / "second" / "model")
    options = DecodingOptions(max_tokens=12, guard=GuardOptions(enabled=False))
    samples = [sound(tone) for tone in tones for _ in TAGS]
    result = BatchDecoder(model, options).decode(samples, [["de"]] * 16, [*TAGS] * 4)
    texts = [row[0][0] for row in result]
    expected = [text(tone, tag, "de") for tone in tones for tag in TAGS]
    assert np.mean([a == b for a, b in zip(texts, expected, strict=True)]) >= 0.75


@pytest.mark.slow
def test_headroom_is_seen_for_the_planted_groups_and_not_across(workdir: Path) -> None:
    """Copies for the planted groups gain beyond chance; groups that mix them gain less than half of that."""
    data = workdir / "data"
    numbers = [
        "--utterances",
        "40",
        "--held-out",
        "8",
        "--batch",
        "4",
        "--epochs",
        "6",
        "--seeds",
        "1",
        "--learning-rates",
        "1e-2",
    ]
    groups = ("--groups", "de+nl,fi+sw", "--groups", "de+fi,nl+sw", "--learning-rates", "1e-2")
    line = (workdir / "first" / "model", data / "train", "--dev", data / "dev", *numbers, *groups, "--json")
    ran = command("share", "headroom", *line)
    assert ran.code == 0, ran.err
    gains = {arm: by_language["all"] for arm, by_language in json.loads(ran.out)["gains"].items()}
    assert gains["de+nl,fi+sw"]["interval"][0] > 0.03
    assert gains["alone"]["interval"][0] > 0.03
    assert gains["de+fi,nl+sw"]["gain"] < 0.5 * gains["de+nl,fi+sw"]["gain"]

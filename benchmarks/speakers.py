"""What each change to the training data brings for speakers never heard, at equal steps.

    python -m benchmarks.speakers data --work DIR
    python -m benchmarks.speakers train --work DIR
    python -m benchmarks.speakers table --work DIR

A model of 3.5 M parameters first learns numbers, dates and times from one synthesiser. Each arm goes on from there for
as many batches of as many seconds: half of the utterances are spoken by synthesisers, half are composed of recordings,
without those of one person. An arm differs from "all of it" in one thing; its seeds differ in the order of the data, in
masks and in target languages. It is scored on compositions of the person left out and of the three speakers that no
model here ever hears. The arms "without ..." are "all of it" with another person left out.

`train` does the runs of --arms and --seeds one after the other; what is finished is not done again, so that two
processes with different --seeds can share a folder. `table` writes speakers.json and speakers_left_out.json beside this
file.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.rows import write

from sprachbund import __version__
from sprachbund.audio.augment import CLEAN, TRAIN, WIDE, Augmentation
from sprachbund.corpora.editions import edition, make_edition
from sprachbund.corpora.telephone import HELD_OUT_KINDS, Telephone, make_telephone
from sprachbund.data.manifest import Manifest
from sprachbund.data.synthesisers import DEFAULT_SYNTHESIZERS, SYNTHESIZERS
from sprachbund.models.conformer import ConformerShape
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe
from sprachbund.training.translator import run
from sprachbund.util.provenance import commit

ROOT = Path(__file__).resolve().parent
LANGUAGES = ("en", "es", "fr", "it", "de", "ru")
JUNE, CARLO, IVRVOICE = ("asterisk-fr-june",), ("asterisk-it-carlo",), ("asterisk-ru-ivrvoice",)
ALLISON = ("asterisk-en-allison", "asterisk-es-allison")
"""One person in two languages."""
SCORED = ("left_out", "unheard")
UTTERANCES = 6_000
"""Of each half of an arm's data."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model, and how it differs from the others.

    Attributes:
        left_out: speakers kept out of training.
        augmentation: of all utterances.
        synthesizers: that speak.
        recorded: whether half of the utterances are composed of recordings; else synthesisers speak all.
        varied: speeds and masks, drawn anew at each pass.
        passes: through a part of the utterances that is smaller by as much; the steps stay the same.
    """

    left_out: tuple[str, ...] = JUNE
    augmentation: Augmentation = field(default=WIDE)
    synthesizers: tuple[str, ...] = SYNTHESIZERS
    recorded: bool = True
    varied: bool = True
    passes: int = 1


ARMS: Mapping[str, Arm] = {
    "all of it": Arm(),
    "no recordings": Arm(recorded=False),
    "one synthesiser": Arm(synthesizers=DEFAULT_SYNTHESIZERS),
    "narrower voices and channels": Arm(augmentation=TRAIN),
    "no voices, no channels": Arm(augmentation=CLEAN),
    "no speeds, no masks": Arm(varied=False),
    "a quarter of the utterances, four times": Arm(passes=4),
    "none of these but recordings": Arm(
        augmentation=CLEAN, synthesizers=DEFAULT_SYNTHESIZERS, varied=False, passes=4
    ),
    "without Allison": Arm(left_out=ALLISON),
    "without Carlo": Arm(left_out=CARLO),
    "without IvrvoiceRU": Arm(left_out=IVRVOICE),
}
_CHANNELS = {CLEAN: "clean", TRAIN: "narrow", WIDE: "wide"}


def spoken_of(arm: Arm, work: Path) -> Path:
    """Folder of the synthesised half."""
    return work / f"spoken-{_CHANNELS[arm.augmentation]}-{len(arm.synthesizers)}-synthesisers"


def recorded_of(arm: Arm, work: Path) -> Path:
    """Folder of the half that is composed of recordings, and of what an arm is scored on."""
    return work / "-".join(("recorded", _CHANNELS[arm.augmentation], *arm.left_out))


def make_data(options: argparse.Namespace) -> None:
    """What the first model and the arms hear; what is there already stays."""
    work, workers = options.work, options.workers
    numbers = partial(edition, "bundled", kinds=HELD_OUT_KINDS, seed=77, heldout_sentences=50)
    first = numbers(train_utterances=2 * UTTERANCES, augmentation=TRAIN)
    make_edition(work / "first-data", first, workers=workers)
    for arm in (ARMS[name] for name in options.arms):
        spoken = numbers(
            train_utterances=2 * UTTERANCES, augmentation=arm.augmentation, synthesizers=arm.synthesizers
        )
        make_edition(spoken_of(arm, work), spoken, workers=workers)
        recorded = Telephone(
            train_utterances=UTTERANCES,
            heldout_utterances=400,
            shares=(0.0, 1.0, 0.0, 0.0),
            kinds=HELD_OUT_KINDS,
            augmentation=arm.augmentation,
            leave_out=arm.left_out,
        )
        make_telephone(recorded_of(arm, work), recorded, source=options.source, workers=workers)


def first_recipe(work: Path, steps: int) -> TranslatorRecipe:
    """Of the model that all arms go on from."""
    return TranslatorRecipe(
        languages=LANGUAGES,
        train=(DataPart(path=work / "first-data" / "train"),),
        dev=(DataPart(path=work / "first-data" / "dev"),),
        vocabulary_size=600,
        transcript_vocabulary_size=200,
        bits=32,
        model=ConformerShape(width=160, num_encoder_layers=6, num_decoder_layers=2, feed_forward_width=320),
        examples=ExampleRecipe(speeds=(1.0,), time_masks=0, frequency_masks=0),
        training=training_options(steps, learning_rate=2e-3, decay_share=0.2, max_duration_s=6.0),
        card=CardRecipe(name="speakers-first"),
    )


def arm_recipe(arm: Arm, work: Path, steps: int, seed: int) -> TranslatorRecipe:
    """Of an arm; all have the same number of batches."""
    spoken, recorded = spoken_of(arm, work) / "train", recorded_of(arm, work) / "train"
    halves = {spoken: 0.5, recorded: 1.0} if arm.recorded else {spoken: 1.0}
    parts = [share_of(path, share / arm.passes, repeats=arm.passes) for path, share in halves.items()]
    plain: dict[str, Any] = {"speeds": (1.0,), "time_masks": 0, "frequency_masks": 0}
    return TranslatorRecipe(
        languages=LANGUAGES,
        train=tuple(parts),
        dev=(DataPart(path=recorded_of(arm, work) / "dev"),),
        start=work / "first" / "model",
        bits=32,
        examples=ExampleRecipe(**({"speeds": (0.85, 1.0, 1.0, 1.0, 1.15)} if arm.varied else plain)),
        training=training_options(steps, learning_rate=1e-3, decay_share=0.6, max_duration_s=10.0, seed=seed),
        card=CardRecipe(name="speakers-arm"),
    )


def share_of(path: Path, share: float, repeats: float = 1.0) -> DataPart:
    """Such a share of a corpus, in each of its languages."""
    languages = sorted(set(Manifest(path).languages.tolist()))
    return DataPart(path=path, repeats=repeats, shares=dict.fromkeys(languages, share))


def training_options(steps: int, **changes: Any) -> TrainingOptions:
    """What all trainings here share."""
    common = {
        "optimizer": "muon",
        "warmup_steps": 50,
        "batch_s": 150,
        "evaluate_every": steps,
        "save_every": 100,
        "keep_best": 1,
    }
    return TrainingOptions(steps=steps, **{**common, **changes})


def score(corpus: Path, model: Path, out: Path) -> None:
    """Write the result manifest of a part of a corpus."""
    from sprachbund.cli import main as command

    if code := command(["evaluate", str(corpus), "--model", str(model), "--out", str(out), "--overwrite"]):
        raise SystemExit(code)


def train_arms(options: argparse.Namespace) -> None:
    """The first model, and the runs that are not finished."""
    say = partial(print, flush=True)
    first = options.work / "first"
    if not (first / "model" / "model.safetensors").exists():
        run(first_recipe(options.work, options.steps[0]), first, report=say)
    for seed in options.seeds:
        for name in options.arms:
            arm, directory = ARMS[name], options.work / "runs" / f"{name}-{seed}"
            say(f"{name}, seed {seed}")
            if not (directory / "run" / "model" / "model.safetensors").exists():
                recipe = arm_recipe(arm, options.work, options.steps[1], seed)
                run(recipe, directory / "run", report=say)
            for part in SCORED:
                if not (directory / part / "scores.json").exists():
                    score(
                        recorded_of(arm, options.work) / part, directory / "run" / "model", directory / part
                    )


def runs(work: Path) -> Iterator[dict[str, Any]]:
    """Every finished run: its scores by speaker, and what they were measured on."""
    for name, arm in ARMS.items():
        for directory in sorted((work / "runs").glob(f"{name}-[0-9]*")):
            if all((directory / part / "scores.json").exists() for part in SCORED):
                yield {"arm": name, "seed": int(directory.name.rpartition("-")[2]), **_scores(arm, directory)}


def _scores(arm: Arm, directory: Path) -> dict[str, Any]:
    scores = {part: json.loads((directory / part / "scores.json").read_text("utf-8")) for part in SCORED}
    speakers = {
        number["member"].removeprefix("asterisk-"): number["value"]
        for part in ("left_out", "unheard")
        for number in scores[part]["numbers"]
        if is_chrf(number) and number["group"] == "speaker"
    }
    own = {tag.removeprefix("asterisk-") for tag in arm.left_out}
    return {
        "left_out": {tag: value for tag, value in speakers.items() if tag in own},
        "never_heard": {tag: value for tag, value in speakers.items() if tag not in own},
        "model_sha256": scores["unheard"]["model"]["sha256"],
        "data_sha256": {part: scores[part]["data"][0]["sha256"] for part in SCORED},
    }


def is_chrf(number: Mapping[str, Any]) -> bool:
    return number["metric"] == "chrF" and number["task"] == "translation" and number["text"] == "raw"


def row_of(name: str, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line of the table: means over seeds, and behind each the widest distance of a seed from it."""
    values = {
        "chrF_June": [mean(one["left_out"].values()) for one in done],
        "chrF_never_heard": [mean(one["never_heard"].values()) for one in done],
        **{tag: [one["never_heard"][tag] for one in done] for tag in sorted(done[0]["never_heard"])},
    }
    return {
        "arm": name,
        "seeds": len(done),
        **{key: with_spread(each) for key, each in values.items()},
    }


def with_spread(values: Sequence[float]) -> str:
    middle = mean(values)
    return f"{middle:.1f} ± {max(abs(value - middle) for value in values):.1f}"


def write_table(options: argparse.Namespace) -> None:
    """Both tables, with every run beside them."""
    done = list(runs(options.work))
    by_arm = {name: [one for one in done if one["arm"] == name] for name in ARMS}
    changes = [
        row_of(name, by_arm[name]) for name, arm in ARMS.items() if arm.left_out == JUNE and by_arm[name]
    ]
    left_out = [
        {
            "speaker_left_out": tag,
            "seeds": len(by_arm[name]),
            "chrF_left_out": with_spread([one["left_out"][tag] for one in by_arm[name]]),
            "chrF_never_heard": with_spread([mean(one["never_heard"].values()) for one in by_arm[name]]),
        }
        for name in ("without Allison", "all of it", "without Carlo", "without IvrvoiceRU")
        if by_arm[name]
        for tag in sorted(by_arm[name][0]["left_out"])
    ]
    made = {"version": __version__, "commit": commit(), "steps": options.steps}
    for name, tables in {
        "speakers.json": {"rows": changes, "runs": done},
        "speakers_left_out.json": {"rows": left_out},
    }.items():
        write(ROOT / name, {**made, **tables})


def main() -> None:
    """Make data, train what is not finished, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("data", "train", "table"))
    parser.add_argument("--work", type=Path, required=True, help="keeps data and runs")
    parser.add_argument("--source", type=Path, help="Debian packages of the prompts; fetched if not given")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(1100, 350), help="of the first model, of each arm"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.what == "data":
        make_data(options)
    elif options.what == "train":
        train_arms(options)
    else:
        write_table(options)


if __name__ == "__main__":
    main()

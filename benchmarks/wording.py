"""What each source of sentences brings for wording never seen, at equal steps: English speech to text of six languages.

    python -m benchmarks.wording data --work DIR --sentences SENTENCES
    python -m benchmarks.wording train --work DIR
    python -m benchmarks.wording table --work DIR

A model of 3.7 M parameters first learns the phrasebook from synthesisers. Each arm goes on from there for as many
batches of as many seconds. "All of it" hears, by halves, synthesisers, which take three of four sentences from
catalogues of free programs, and recordings of telephone prompts with pieces of them joined to sentences that nobody
said; the other arms differ from it in one thing. They are scored on recorded prompts whose wording is in no training
data, and on catalogue sentences that are in none either. One language only, since in the same time six stay
unintelligible.

SENTENCES are the tables that `scripts/bundled.py` makes (its corpora/sentences). `train` and `table` work as those of
`benchmarks/speakers.py`; the table is wording.json beside this file.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.rows import write
from benchmarks.speakers import LANGUAGES, is_chrf, score, share_of, training_options, with_spread

from sprachbund import __version__
from sprachbund.audio.augment import WIDE
from sprachbund.corpora.editions import edition, make_edition
from sprachbund.corpora.telephone import Telephone, make_telephone
from sprachbund.data.synthesisers import SYNTHESIZERS
from sprachbund.models.conformer import ConformerShape
from sprachbund.training.dual_scale import DualScaleOptions
from sprachbund.training.recipe import CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe
from sprachbund.training.translator import run
from sprachbund.util.provenance import commit

ROOT = Path(__file__).resolve().parent
OTHER_SPEAKERS = ("asterisk-es-allison", "asterisk-fr-june", "asterisk-it-carlo", "asterisk-ru-ivrvoice")
SCORED = {
    "prompts": "recorded-joined/unseen",
    "more_prompts": "recorded-joined/dev_prompts",
    "sentences": "spoken-sentences/dev",
}
"""None of them chooses anything here."""
UTTERANCES = 12_000
"""Of each half of an arm's data."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model, and how it differs from the others.

    Attributes:
        sentences: whether synthesisers say sentences of catalogues, too.
        recorded: whether half of the utterances are recordings.
        joined: whether pieces of prompts are joined to sentences that nobody said.
        text_branch: whether the decoder learns from transcripts beside speech (arXiv 2508.11189).
    """

    sentences: bool = True
    recorded: bool = True
    joined: bool = True
    text_branch: bool = False


ARMS: Mapping[str, Arm] = {
    "all of it": Arm(),
    "sentences of the phrasebook alone": Arm(sentences=False),
    "no joined pieces": Arm(joined=False),
    "neither": Arm(sentences=False, joined=False),
    "no recordings": Arm(recorded=False),
    "with a text branch": Arm(text_branch=True),
}


def spoken_of(arm: Arm, work: Path) -> Path:
    """Folder of the synthesised half."""
    return work / ("spoken-sentences" if arm.sentences else "spoken-phrasebook")


def recorded_of(arm: Arm, work: Path) -> Path:
    """Folder of the half that is made of recordings."""
    return work / ("recorded-joined" if arm.joined else "recorded-whole")


def make_data(options: argparse.Namespace) -> None:
    """What the first model and the arms hear; what is there already stays."""
    work, workers = options.work, options.workers
    english = partial(
        edition,
        "bundled",
        seed=78,
        spoken=("en",),
        heldout_sentences=200,
        augmentation=WIDE,
        synthesizers=SYNTHESIZERS,
    )
    phrasebook = english(train_utterances=2 * UTTERANCES)
    make_edition(work / "spoken-phrasebook", phrasebook, workers=workers)
    with_sentences = english(
        train_utterances=2 * UTTERANCES, sentences=options.sentences, sentence_share=0.75
    )
    make_edition(work / "spoken-sentences", with_sentences, workers=workers)
    *shares, joined = Telephone().shares
    for arm in (ARMS["all of it"], ARMS["no joined pieces"]):
        prompts = Telephone(
            train_utterances=UTTERANCES,
            heldout_utterances=100,
            shares=(shares[0], shares[1], shares[2], joined if arm.joined else 0.0),
            synthesizers=SYNTHESIZERS,
            leave_out=OTHER_SPEAKERS,
        )
        make_telephone(recorded_of(arm, work), prompts, source=options.source, workers=workers)


def first_recipe(work: Path, steps: int) -> TranslatorRecipe:
    """Of the model that all arms go on from."""
    return TranslatorRecipe(
        languages=LANGUAGES,
        train=(DataPart(path=work / "spoken-phrasebook" / "train"),),
        dev=(DataPart(path=work / "spoken-phrasebook" / "dev"),),
        vocabulary_size=1200,
        transcript_vocabulary_size=300,
        bits=32,
        model=ConformerShape(width=160, num_encoder_layers=6, num_decoder_layers=2, feed_forward_width=320),
        examples=ExampleRecipe(speeds=(1.0,), time_masks=0, frequency_masks=0),
        training=training_options(steps, learning_rate=2e-3, decay_share=0.2, max_duration_s=6.0),
        card=CardRecipe(name="wording-first"),
    )


def arm_recipe(arm: Arm, work: Path, steps: int, seed: int) -> TranslatorRecipe:
    """Of an arm; all have the same number of batches."""
    spoken, recorded = spoken_of(arm, work) / "train", recorded_of(arm, work) / "train"
    halves = {spoken: 0.5, recorded: 1.0} if arm.recorded else {spoken: 1.0}
    dual_scale = DualScaleOptions(
        text_layers=2, draft="none", whole_layers=6, same_language=1 / len(LANGUAGES)
    )
    return TranslatorRecipe(
        languages=LANGUAGES,
        train=tuple(share_of(path, share) for path, share in halves.items()),
        dev=(DataPart(path=work / "spoken-sentences" / "dev"),),
        start=work / "first" / "model",
        bits=32,
        dual_scale=dual_scale if arm.text_branch else None,
        examples=ExampleRecipe(speeds=(0.85, 1.0, 1.0, 1.0, 1.15)),
        training=training_options(steps, learning_rate=1e-3, decay_share=0.6, max_duration_s=12.0, seed=seed),
        card=CardRecipe(name="wording-arm"),
    )


def train_arms(options: argparse.Namespace) -> None:
    """The first model, and the runs that are not finished."""
    say = partial(print, flush=True)
    first = options.work / "first"
    if not (first / "model" / "model.safetensors").exists():
        run(first_recipe(options.work, options.steps[0]), first, report=say)
    for seed in options.seeds:
        for name in options.arms:
            directory = options.work / "runs" / f"{name}-{seed}"
            say(f"{name}, seed {seed}")
            if not (directory / "run" / "model" / "model.safetensors").exists():
                recipe = arm_recipe(ARMS[name], options.work, options.steps[1], seed)
                run(recipe, directory / "run", report=say)
            for part, path in SCORED.items():
                if not (directory / part / "scores.json").exists():
                    score(options.work / path, directory / "run" / "model", directory / part)


def runs(work: Path) -> Iterator[dict[str, Any]]:
    """Every finished run, with means over the pairs and what they were measured on."""
    for name in ARMS:
        for directory in sorted((work / "runs").glob(f"{name}-[0-9]*")):
            paths = {part: directory / part / "scores.json" for part in SCORED}
            if all(path.exists() for path in paths.values()):
                by_part = {part: json.loads(path.read_text("utf-8")) for part, path in paths.items()}
                yield {
                    "arm": name,
                    "seed": int(directory.name.rpartition("-")[2]),
                    **{part: _mean_over_pairs(scores["numbers"]) for part, scores in by_part.items()},
                    "model_sha256": by_part["prompts"]["model"]["sha256"],
                    "data_sha256": {part: by_part[part]["data"][0]["sha256"] for part in SCORED},
                }


def _mean_over_pairs(numbers: list[dict[str, Any]]) -> float:
    return mean(one["value"] for one in numbers if is_chrf(one) and one["group"] == "pair")


def write_table(options: argparse.Namespace) -> None:
    """The means over seeds, with every run beside them."""
    done = list(runs(options.work))
    rows = []
    for name in ARMS:
        own = [one for one in done if one["arm"] == name]
        if own:
            prompts = [mean((one["prompts"], one["more_prompts"])) for one in own]
            sentences = [one["sentences"] for one in own]
            rows.append(
                {
                    "arm": name,
                    "seeds": len(own),
                    "prompts": with_spread(prompts),
                    "sentences": with_spread(sentences),
                }
            )
    made = {"version": __version__, "commit": commit(), "steps": options.steps}
    write(ROOT / "wording.json", {**made, "rows": rows, "runs": done})


def main() -> None:
    """Make data, train what is not finished, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("data", "train", "table"))
    parser.add_argument("--work", type=Path, required=True, help="keeps data and runs")
    parser.add_argument("--sentences", type=Path, help="tables that synthesisers say; needed for data")
    parser.add_argument("--source", type=Path, help="Debian packages of the prompts; fetched if not given")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(1100, 350), help="of the first model, of each arm"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.what == "data":
        if options.sentences is None:
            parser.error("data needs --sentences, the tables that scripts/bundled.py makes")
        make_data(options)
    elif options.what == "train":
        train_arms(options)
    else:
        write_table(options)


if __name__ == "__main__":
    main()

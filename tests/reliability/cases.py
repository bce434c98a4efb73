"""The commands that go on where they were killed, each with the smallest real work."""

import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.reliability.crash_points import WHOLE, Case

Run = Callable[..., None]
_TRAIN = """languages = ["en", "de"]
vocabulary_size = 150
bits = 32
[[train]]
path = "{book}/train"
[[dev]]
path = "{book}/dev"
[model]
width = 16
num_heads = 2
num_encoder_layers = 2
num_decoder_layers = 1
feed_forward_width = 16
[training]
steps = 4
batch_s = 20
precision = "no"
log_every = 4
evaluate_every = 1
save_every = 2
keep_best = 2
num_workers = 0
[card]
name = "small"
"""
_STUDY = """shared = "ml"
vocabulary_size = 100
transcript_vocabulary_size = 60
epochs = 1
num_evaluations = 1
dev_utterances = 2
test_utterances = 2
[pretrained]
ml = { languages = ["de", "en"] }
[starts]
ml = "ml"
random = "random"
[grid]
starts = ["ml", "random"]
languages = ["de"]
hours = [0.002]
tiers = ["offline"]
bits = [32]
seeds = [0]
[model]
width = 32
num_heads = 2
num_encoder_layers = 2
num_decoder_layers = 0
feed_forward_width = 32
kernel_size = 9
streaming = { stem_channels = 8 }
transducer = { prediction_width = 32, prediction_layers = 1, joint_width = 32 }
[examples]
time_masks = 0
[pretraining]
steps = 2
batch_s = 20
num_workers = 0
[tuning]
steps = 2
metric_for_best_model = "score"
batch_s = 20
num_workers = 0
keep_best = 1
"""


def _book(run: Run, folder: Path, utterances: int = 48) -> Path:
    """A corpus, made once for all commands."""
    book = folder.parent / f"book-{utterances}"
    if not (book / "test" / "dataset.json").exists():
        run(*_make(utterances), "--out", book)
    return book


def _make(utterances: int) -> Sequence[str]:
    size = ("--utterances", str(utterances), "--heldout", "4")
    return ("data", "make", "phrasebook", "--edition", "tiny", *size, "--workers", "1")


def _trained(run: Run, folder: Path) -> Path:
    """A model, trained once for all commands."""
    out = folder.parent / "trained"
    if not (out / "model" / "model.safetensors").exists():
        run("train", _recipe(run, folder), "--out", out)
    return out / "model"


def _recipe(run: Run, folder: Path) -> Path:
    path = folder / "small.toml"
    path.write_text(_TRAIN.format(book=_book(run, folder)), encoding="utf-8")
    return path


def make(folder: Path, run: Run) -> Sequence[str | Path]:
    """A corpus of a synthesiser's speech."""
    return [*_make(12), "--out", folder / "out" / "book"]


def prepare(folder: Path, run: Run) -> Sequence[str | Path]:
    """A corpus of recordings with texts, one of which cannot be read."""
    source = folder / "recordings"
    source.mkdir(exist_ok=True)
    for number in range(6):
        with wave.open(str(source / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            noise = np.random.default_rng(number).integers(-2000, 2000, 8000)
            file.writeframes(noise.astype(np.int16).tobytes())
        (source / f"{number}.txt").write_text(f"sentence number {number}\n", encoding="utf-8")
    (source / "5.wav").write_bytes(b"no sound")
    options = ("--language", "en", "--skip-bad", "--dev-share", "0.3")
    return ["data", "prepare", "folder", source, *options, "--out", folder / "out" / "own"]


def train(folder: Path, run: Run) -> Sequence[str | Path]:
    """A model with tokenizers, best checkpoints and a state to go on from."""
    return ["train", _recipe(run, folder), "--out", folder / "out" / "run"]


def label(folder: Path, run: Run) -> Sequence[str | Path]:
    """A corpus of labels by a model."""
    words = (
        "--to",
        "de",
        "--min-log-probability",
        "-100",
        "--max-compression",
        "1000",
        "--max-repetition",
        "1",
    )
    data = _book(run, folder) / "test"
    return [
        "compress",
        "pseudo-label",
        "bundled",
        data,
        *words,
        "--offline",
        "--out",
        folder / "out" / "labels",
    ]


def smaller(*how: str) -> Callable[[Path, Run], Sequence[str | Path]]:
    """A model made of another, with its size."""

    def prepare(folder: Path, run: Run) -> Sequence[str | Path]:
        model = _trained(run, folder)
        return ["compress", *how, model, "--rounds", "0", "--offline", "--out", folder / "out" / "small"]

    return prepare


_CLUSTERS = ("--layer", "2", "--share", "1", "--clusters", "16", "--max-iter", "3", "--n-init", "2")
_PIECES = ("--unit-pieces", "40", "--text-pieces", "60")


def units_fit(folder: Path, run: Run) -> Sequence[str | Path]:
    """Units of a model's features."""
    data = _book(run, folder) / "train"
    return [
        "units",
        "fit",
        _trained(run, folder),
        data,
        *_CLUSTERS,
        *_PIECES,
        "--out",
        folder / "out" / "units",
    ]


def units_encode(folder: Path, run: Run) -> Sequence[str | Path]:
    """A corpus as units."""
    book, units = _book(run, folder), folder / "units"
    if not (units / "units.json").exists():
        run("units", "fit", _trained(run, folder), book / "train", *_CLUSTERS, *_PIECES, "--out", units)
    return ["units", "encode", units, book / "test", "--out", folder / "out" / "encoded"]


def share_analyse(folder: Path, run: Run) -> Sequence[str | Path]:
    """Gradients by language."""
    options = (
        "--utterances",
        "8",
        "--batch",
        "2",
        "--accumulate",
        "2",
        "--dimensions",
        "16",
        "--threads",
        "1",
    )
    data = _book(run, folder) / "train"
    out = folder / "out" / "gradients.npz"
    return ["share", "analyse", _trained(run, folder), data, *options, "--out", out]


def share_plan(folder: Path, run: Run) -> Sequence[str | Path]:
    """What to split."""
    gradients = folder / "gradients.npz"
    if not gradients.exists():
        run(*share_analyse(folder, run)[:-1], gradients)
    return ["share", "plan", gradients, "--out", folder / "out" / "plan.json"]


def study(folder: Path, run: Run) -> Sequence[str | Path]:
    """Trainings of a grid."""
    grid = folder / "grid.toml"
    grid.write_text(_STUDY, encoding="utf-8")
    return [
        "study",
        "run",
        grid,
        "--data",
        _book(run, folder),
        "--workers",
        "1",
        "--out",
        folder / "out" / "study",
    ]


def evaluate(folder: Path, run: Run) -> Sequence[str | Path]:
    """Hypotheses, texts by pair and scores."""
    data = _book(run, folder) / "test"
    options = ("--no-speech", "1", "--threads", "1", "--offline")
    return ["evaluate", data, "--model", _trained(run, folder), *options, "--out", folder / "out" / "scores"]


def _mixed(run: Run, folder: Path) -> Path:
    """A corpus of phrases in two languages."""
    data = folder / "mixed"
    if not (data / "monolingual-test" / "dataset.json").exists():
        size = ("--utterances", "16", "--heldout", "2")
        run("data", "make", "mixed", *size, "--workers", "1", "--out", data)
    return data


def _phrases(run: Run, folder: Path) -> Path:
    """A corpus of which 16 utterances of each language are usable."""
    return _book(run, folder, 120)


def recipe(
    name: str, data: Callable[[Run, Path], Path] = _phrases
) -> Callable[[Path, Run], Sequence[str | Path]]:
    """A published system at the size tiny."""

    def prepare(folder: Path, run: Run) -> Sequence[str | Path]:
        return [
            "recipe",
            name,
            "--size",
            "tiny",
            "--data",
            data(run, folder),
            "--threads",
            "1",
            "--out",
            folder / "out" / "runs",
        ]

    return prepare


CASES = {
    case.name: case
    for case in (
        Case(name="data make", prepare=make),
        Case(name="data prepare", prepare=prepare),
        Case(name="train", prepare=train),
        Case(name="evaluate", prepare=evaluate, clocks={"*/scores.json": ("created", "measured")}),
        Case(name="compress pseudo-label", prepare=label),
        # a folder that is there is left alone, also by a rerun of what was killed after its last change
        Case(
            name="compress prune",
            prepare=smaller("prune", "--encoder-layers", "0"),
            finished="is there already",
        ),
        Case(name="compress quantize", prepare=smaller("quantize"), finished="is there already"),
        Case(name="units fit", prepare=units_fit),
        Case(name="units encode", prepare=units_encode),
        Case(name="share analyse", prepare=share_analyse, clocks={"gradients.npz": ("seconds",)}),
        Case(name="share plan", prepare=share_plan),
        Case(name="study run", prepare=study, clocks={"*/cell.json": ("created", "took_s")}),
        Case(
            name="recipe gradient_sharing",
            prepare=recipe("gradient_sharing"),
            clocks={
                "*.npz": ("seconds",),
                "*plan*.json": ("seconds",),
                "*/scores.json": ("created", "measured"),
            },
        ),
        Case(
            name="recipe dual_scale",
            prepare=recipe("dual_scale"),
            clocks={
                # decoding is timed; a draft's gain is predicted from what its rounds take here and now; and one
                # system, "draft tokens chosen", makes as many draft tokens as these times say
                "runs/speed.json": ("ms_per_token", "predicted_gain", "draft_tokens"),
                # of the same: speeds, their ratios, the predicted gain, and how many of the draft tokens were accepted
                "runs/table.json": (
                    "*tokens/s*",
                    "over base*",
                    "over teacher*",
                    "gain",
                    "predicted",
                    "acceptance",
                ),
                "runs/speed.png": WHOLE,  # draws them
                "*/scores.json": ("created", "measured"),
            },
        ),
        Case(
            name="recipe discrete_units",
            prepare=recipe("discrete_units"),
            clocks={
                "*/cost.json": ("cpu_s",),  # processor time of a training, over all the times it was taken up
                "runs/log-mel.json": ("training time",),  # the ratio of two of them
                "*/scores.json": ("created", "measured"),
            },
        ),
        Case(
            name="recipe code_switch",
            prepare=recipe("code_switch", _mixed),
            clocks={"*/scores.json": ("created", "measured")},
        ),
    )
}

"""The transfer study (arXiv 2606.24169): encoders to start from, amounts of data, delays and numbers of bits.

1. Models are trained first, or brought as checkpoints: one on several languages, one on English alone.
2. Starts are spliced of them: decoder, joint network and tokenizer of one, encoder layers of either.
3. Where learning rates are given, each start is tried with each at every scale; the best one on dev counts.
4. Every cell of the grid learns one language from one start on so many hours, stops when it no longer gets better on
   dev, and is scored at every tier and bit width.
5. The study's report: gaps, law with interval, latency, cost of bits, convergence, a decision in words.

`study run` with a file of these options and `recipe encoder_transfer` with a size are this function. What is finished
is not done again, so a broken-off study goes on.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sprachbund.compression.options import KQuantOptions
from sprachbund.compression.quantization import quantize_encoder
from sprachbund.data.batching import BatchingOptions, nested, plan_epoch
from sprachbund.data.manifest import Manifest, Utterances
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import Counts, corpus_score, metric
from sprachbund.models.base import Features, Target
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.io import WEIGHTS_FILE, load
from sprachbund.nn.streaming_conformer import StreamingEncoder, Tier
from sprachbund.research.encoder_transfer.analysis import CONVERGENCE
from sprachbund.research.encoder_transfer.estimate import check_checkpoints, estimate_memory
from sprachbund.research.encoder_transfer.grid import BITS_OF_FLOAT, Cell
from sprachbund.research.encoder_transfer.options import OFFLINE, EncoderTransferRecipe
from sprachbund.research.encoder_transfer.rates import (
    TRIED_FILE,
    CellTrial,
    check_rates,
    losses_of,
    rate_of,
    rate_rows,
    trial_folder,
    trials_left,
    tuned,
)
from sprachbund.research.encoder_transfer.report import TABLES, make_report, write_report
from sprachbund.research.encoder_transfer.results import LEARNING_RATE, CellScores
from sprachbund.research.encoder_transfer.starts import (
    make_starts,
    start_model,
    start_parts,
    trained_further,
    translator,
)
from sprachbund.research.encoder_transfer.study import Study
from sprachbund.research.encoder_transfer.study_options import StudyRunOptions
from sprachbund.research.table_file import keep_table
from sprachbund.research.tasks import STUDY_FILE, Tasks, parts_of, read_study, remember, run_tasks
from sprachbund.research.tuning import as_json, check_trained, loss_with, report_rates
from sprachbund.text.normalize import normalize
from sprachbund.training.checkpoint import forget_run, run_log
from sprachbund.training.loop import Convergence
from sprachbund.training.options import TrainingOptions, check_numbers
from sprachbund.training.recipe import Scale
from sprachbund.training.translator import run as train_translator
from sprachbund.util.distributed import own_device, refuse_several_processes
from sprachbund.util.files import validate, write_json
from sprachbund.util.progress import Progress, Report, nothing

__all__ = ["EncoderTransferRecipe", "estimate_memory", "read", "run", "run_cells"]


# A cell of the transfer study: one language learned from one start, then scored at every tier and bit
# width.
#
# Shapes: C tiers, Q bit widths, N utterances, K counts of the metric.

_BATCH = 32
RAW = "chrF"
"""The metric that is of texts as they are; error rates are of normalized ones."""


def make_cell(recipe: EncoderTransferRecipe, out: Path, cell: Cell, folder: Path) -> CellScores:
    """Train a cell, or take it up, and score it.

    Args:
        recipe: recipe of the study.
        out: folder of the study, where the starts are.
        cell: cell that is trained.
        folder: folder of the cell.

    Raises:
        SprachbundError: hours that the language does not have.
    """
    rate = rate_of(recipe, out, cell)
    run = folder / "run"
    if recipe.learning_rates and cell.seed == recipe.grid.seeds[0]:  # it was trained when rates were tried
        run = trial_folder(out, CellTrial(cell, rate)) / "run"
    model = _trained(recipe, out, cell, rate, run)
    speech = Speech.of(recipe, Manifest(recipe.data / "test"), cell.language, recipe.test_utterances)
    data = _data(recipe, cell)
    scores = CellScores(
        counts=_counts(recipe, model, speech),
        ids=speech.ids,
        metric=recipe.scored_by,
        text="raw" if recipe.scored_by == RAW else "normalized",
        parts=start_parts(out, cell.start),
        training={
            CONVERGENCE: asdict(Convergence.read(run)),
            LEARNING_RATE: rate,
            "hours": round(float(data.durations_s.sum()) / 3600, 4),
            "utterances": len(data),
        },
    )
    forget_run(run)
    return scores


def try_rate(recipe: EncoderTransferRecipe, out: Path, wanted: Sequence[CellTrial], number: int) -> None:
    """Train a cell with a learning rate, and write down its lowest loss on dev, or its best score.

    Args:
        recipe: options of the study.
        out: folder of the study, where the starts are.
        wanted: cells and rates that are tried.
        number: which one.
    """
    cell, rate = wanted[number]
    folder = trial_folder(out, wanted[number])
    run = folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    with run_log(folder) as report:
        loss = loss_with(rate, partial(_trained, recipe, out, cell, rate, run), run, report)
    write_json(folder / TRIED_FILE, as_json({rate: loss}))
    forget_run(run)


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Utterances of one language, with what is to be written.

    Attributes:
        language: language spoken.
        target: language written.
        metric: metric that scores them.
        ids: N.
        sounds: N, each (num_samples,) at 16 kHz.
        references: N.
    """

    language: str
    target: str
    metric: str
    ids: tuple[str, ...]
    sounds: tuple[np.ndarray, ...]
    references: tuple[str, ...]

    @classmethod
    def of(
        cls, recipe: EncoderTransferRecipe, manifest: Utterances, language: str, limit: int | None
    ) -> "Speech":
        """Utterances of a language that have a text, at most `limit`, evenly over the manifest.

        Args:
            recipe: options of the study.
            manifest: corpus.
            language: BCP-47 tag.
            limit: number of utterances at most; None for all.

        Raises:
            SprachbundError: when there is none.
        """
        target, how = recipe.target(language), recipe.scored_by
        own = [int(index) for index in np.flatnonzero(manifest.languages == language)]
        texts = {index: _comparable(manifest[index].text_in(target) or "", target, how) for index in own}
        there = [index for index in own if texts[index]]
        if not there:
            raise SprachbundError(f"{manifest.directory} has no speech in {language} with a text in {target}")
        count = min(limit or len(there), len(there))
        chosen = [there[n * len(there) // count] for n in range(count)]
        return cls(
            language=language,
            target=target,
            metric=how,
            ids=tuple(manifest[index].id for index in chosen),
            sounds=tuple(manifest.samples(index) for index in chosen),
            references=tuple(texts[index] for index in chosen),
        )

    def counts(self, model: Conformer, tier: Tier) -> Counts:
        """(N, K) statistics of what a model writes at a tier."""
        by_index: dict[int, str] = {}
        for indices, features in self._batches(model):
            by_index |= dict(zip(indices, self._written(model, features, tier), strict=True))
        texts = [_comparable(by_index[index], self.target, self.metric) for index in range(len(self.ids))]
        return metric(self.metric, self.target).statistics(texts, self.references)

    @torch.inference_mode()
    def _written(self, model: Conformer, features: Features, tier: Tier) -> list[str]:
        encoder = model.encoder
        assert isinstance(encoder, StreamingEncoder)
        before, encoder.tier = encoder.tier, tier
        try:
            memory = model.encode(features)
        finally:
            encoder.tier = before
        # Not by way of the pipeline: utterances are cut, their language is known, and a weak model's text counts as it
        # is. Guard and voice activity would cost a pass over the sound for every tier and width, and change no score.
        asked = Target(language=self.target, source=self.language)
        hypotheses = search(model, memory, [[asked]] * len(features.num_frames))
        return [model.decode_text(row[0].tokens) for row in hypotheses]

    def _batches(self, model: Conformer) -> Iterator[tuple[list[int], Features]]:
        """Of like length."""
        order = sorted(range(len(self.sounds)), key=lambda index: len(self.sounds[index]))
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            yield indices, model.features([self.sounds[index] for index in indices])


@dataclass(frozen=True, kw_only=True)
class DevScore:
    """Scores a model during training, as the study will: less is better."""

    speech: Speech
    tier: Tier

    def __call__(self, model: Any) -> float:
        """The score of a model as it stands, turned so that less is better."""
        how = metric(self.speech.metric, self.speech.target)
        value = how.score(self.speech.counts(model, self.tier).sum(0))
        return -value if how.higher_is_better else value


def tuning(recipe: EncoderTransferRecipe, cell: Cell, num_batches: int, rate: float) -> TrainingOptions:
    """Training of a cell: so many epochs of its data, as far as the recipe's steps allow.

    Args:
        recipe: recipe of the study.
        cell: cell that is trained.
        num_batches: batches of an epoch.
        rate: learning rate.
    """
    steps = max(recipe.least_steps, min(recipe.tuning.steps, round(recipe.epochs * num_batches)))
    every = max(1, steps // recipe.num_evaluations)
    own = {"steps": steps, "evaluate_every": every, "seed": cell.seed, "learning_rate": rate}
    return recipe.tuning.model_copy(update=own)


def from_start(recipe: EncoderTransferRecipe, cell: Cell, start: Path) -> dict[str, Any]:
    """Return the changes of a `TranslatorRecipe` that train a start on the language of a cell; see `trained_further`.

    Args:
        recipe: options of the study.
        cell: cell that is trained.
        start: model directory of the start.
    """
    return trained_further(recipe, start, (cell.language, recipe.target(cell.language)))


def quantized(recipe: EncoderTransferRecipe, model: Conformer, bits: int) -> Conformer:
    """A copy with the linear layers of its encoder in so many bits; the model itself at 32.

    Args:
        recipe: options of the study.
        model: model, which stays unchanged.
        bits: bits of a weight.
    """
    if bits == BITS_OF_FLOAT:
        return model
    made = copy.deepcopy(model)
    options = KQuantOptions(bits=bits, symmetric=recipe.symmetric)
    quantize_encoder(made, options)
    return made


def _trained(recipe: EncoderTransferRecipe, out: Path, cell: Cell, rate: float, folder: Path) -> Conformer:
    if not (folder / "model" / WEIGHTS_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = tuning(recipe, cell, _num_batches(recipe, cell), rate)
        made = translator(
            recipe,
            [cell.language],
            options,
            known={cell.language, recipe.target(cell.language)},
            scale=Scale(hours=cell.hours, seed=recipe.data_seed),
            **from_start(recipe, cell, start_model(out, cell.start)),
        )
        dev = Speech.of(recipe, Manifest(recipe.data / "dev"), cell.language, recipe.dev_utterances)
        with run_log(folder) as report:
            train_translator(
                made,
                folder,
                score=DevScore(speech=dev, tier=recipe.tier(OFFLINE)),
                report=report,
            )
    return load(folder / "model").to(own_device())  # scored where it was trained


def _data(recipe: EncoderTransferRecipe, cell: Cell) -> Utterances:
    """Training data of a cell."""
    whole = Manifest(recipe.data / "train")
    own = whole.only(np.flatnonzero(whole.languages == cell.language))
    return nested([own], cell.hours, recipe.data_seed)[0]


def _num_batches(recipe: EncoderTransferRecipe, cell: Cell) -> int:
    manifest, options = _data(recipe, cell), recipe.tuning
    plan = BatchingOptions(
        batch_s=options.batch_s, max_utterances=options.max_utterances, max_duration_s=options.max_duration_s
    )
    return len(plan_epoch(manifest.durations_s, np.arange(len(manifest)), plan, 0))


def _counts(recipe: EncoderTransferRecipe, model: Conformer, speech: Speech) -> Counts:
    """(C, Q, N, K); tiers that let a frame see the same are scored once."""
    tiers = [recipe.tier(name) for name in recipe.grid.tiers]
    widths: list[Sequence[Counts]] = []
    for bits in recipe.grid.bits:
        scored = quantized(recipe, model, bits)
        by_tier = {tier: speech.counts(scored, tier) for tier in dict.fromkeys(tiers)}
        widths.append([by_tier[tier] for tier in tiers])
    return np.array(widths).swapaxes(0, 1)


def _comparable(text: str, language: str, how: str) -> str:
    """Error rates are of words without case and punctuation, as is usual."""
    return text.strip() if how == RAW else normalize(text, language)


MAY_CHANGE = ("grid", "more_learning_rates", "workers", "data")
"""Options that add cells or rates to try, or change no number: `data` may have moved."""


def run(recipe: EncoderTransferRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run the study, or go on, and write its report; the file with the table of gaps.

    Args:
        recipe: options of the study.
        directory: folder of the study.
        report: called with a line for every step.

    Raises:
        SprachbundError: as `run_cells` and `make_report` do.
    """
    run_cells(recipe, directory, report=report)
    write_report(make_report(recipe.grid, directory), directory)
    return directory / TABLES / "gaps.json"


def run_cells(
    recipe: EncoderTransferRecipe,
    directory: Path,
    *,
    options: StudyRunOptions | None = None,
    report: Report = print,
    progress: Progress = nothing,
) -> Path:
    """Make starts and all cells that are missing; the table of results.

    Args:
        recipe: recipe of the study.
        directory: directory of the study.
        options: processes; those of the recipe if None.
        report: called with a line of progress.
        progress: called with cells finished and in all.

    Raises:
        SprachbundError: a folder with another study, data or layers that there are not, a cell that failed; a study
            that torchrun started several times.
        ImportError: the package of the study's metric is not installed.
    """
    refuse_several_processes("the transfer study")
    options = options or StudyRunOptions()
    workers = options.workers or recipe.workers
    recipe = recipe.model_copy(update={"data": recipe.data.resolve(), "workers": workers})
    check_data(recipe)
    check_checkpoints(recipe)
    # If its package is missing, this fails now and not after the trainings.
    corpus_score(metric(recipe.scored_by), ["one"], ["one"])
    remember(directory, recipe, may_change=MAY_CHANGE, data=parts_of(recipe.data))
    make_starts(recipe, directory, ray_address=options.ray, gpus=options.gpus, report=report)
    _try_rates(recipe, directory, options, report)
    study = Study(grid=recipe.grid, make=partial(make_cell, recipe, directory), out=directory)
    return study.run(
        workers=workers, ray_address=options.ray, gpus=options.gpus, report=report, progress=progress
    )


def _try_rates(
    recipe: EncoderTransferRecipe, directory: Path, options: StudyRunOptions, report: Report
) -> None:
    """Train every start at every scale with every learning rate, where some are to be tried."""
    if not recipe.learning_rates:
        return
    what = "trainings that try learning rates"
    while wanted := trials_left(recipe, directory):
        tasks = Tasks(
            paths=tuple(trial_folder(directory, trial) / TRIED_FILE for trial in wanted),
            make=partial(try_rate, recipe, directory, wanted),
            gpus=options.gpus,
        )
        run_tasks(tasks, what, workers=recipe.workers, ray_address=options.ray, report=report)
        what = "trainings that try rates beyond them"
    tried = {str(at): losses_of(recipe, directory, at) for at in tuned(recipe.grid)}
    for name, losses in tried.items():
        check_trained(name, losses, "learning_rates")
    report_rates(tried, report)
    check_rates(recipe, directory)
    by_score = recipe.tuning.metric_for_best_model == "score"
    sign = -1.0 if by_score and metric(recipe.scored_by).higher_is_better else 1.0
    keep_table(directory / TABLES / "rates.json", recipe, {"rows": rate_rows(recipe, directory, sign)})


def check_data(recipe: EncoderTransferRecipe) -> None:
    """Check that the data hold what the study needs, before anything is trained.

    Raises:
        SprachbundError: naming the part, the language, and the hours that there are.
    """
    own = {tag for one in recipe.pretrained.values() if one.checkpoint is None for tag in one.languages}
    learned = set(recipe.grid.languages)
    for part, wanted in (("train", own | learned), ("dev", own | learned), ("test", learned)):
        manifest = Manifest(recipe.data / part)
        there = set(manifest.languages.tolist()) - {""}
        if lacking := sorted(wanted - there):
            raise SprachbundError(
                f"{manifest.directory} holds no speech in {', '.join(lacking)}; it holds {', '.join(sorted(there))}"
            )
        if part == "train":
            _check_hours(recipe, manifest)


def _check_hours(recipe: EncoderTransferRecipe, manifest: Utterances) -> None:
    for language in recipe.grid.languages:
        most = max(hours for hours in recipe.grid.hours if recipe.grid.has(language, hours))
        own = manifest.durations_s[manifest.languages == language]
        hours = float(own.sum(dtype=np.float64)) / 3600
        if most > hours:
            raise SprachbundError(
                f"grid.hours asks for {most:g} h of {language}; {manifest.directory} holds {hours:.4f} h; leave "
                f"larger scales out by grid.most_hours = {{ {language} = {floor(1000 * hours) / 1000:g} }}"
            )


def read(directory: Path) -> EncoderTransferRecipe:
    """The recipe of a study that was begun. Raises SprachbundError when there is none."""
    values = read_study(directory)
    check_numbers(values, f"{directory / STUDY_FILE}: ")
    return validate(
        EncoderTransferRecipe,
        values,
        str(directory / STUDY_FILE),
        advice="give the recipe again, or begin the study in another folder",
    )

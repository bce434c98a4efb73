"""Knowledge distillation: the loss of a student against a frozen teacher, and the recipe of a student.

The student learns the teacher's texts and, token by token, its distribution. Both read the same speech and the same
rows, so that their logits can be compared. Shapes: B utterances, R rows,
N target tokens of a batch, V vocabulary, L languages.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.compression.options import DistillationOptions, StudentTraining
from sprachbund.compression.smaller import bits_of, card_of
from sprachbund.data.batch import Batch
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Loss, Memory
from sprachbund.models.conformer import Conformer
from sprachbund.models.io import family_of, load, locate
from sprachbund.models.teacher_forcing import DecoderBatch
from sprachbund.models.weights import Bits
from sprachbund.models.whisper.model import Whisper
from sprachbund.training.checkpoint import claim_folder
from sprachbund.training.data_checks import check_corpus, taught_languages
from sprachbund.training.loop import train
from sprachbund.training.options import Strict
from sprachbund.training.preparation import prepare_model
from sprachbund.training.recipe import NO_MASKS, CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe
from sprachbund.util.distributed import (
    is_first_rank,
    joined_processes,
    on_first_rank,
    wait_for_all_ranks,
)
from sprachbund.util.progress import Report, nothing

DISTILLED = ("conformer", "whisper", "seamless")
"""Families whose models are students."""
_TEXTS_ONLY = "or learn from its texts alone with --kl-weight 0 --language-weight 0"


class Distillation(nn.Module):
    """A student with its teacher, as the training loop wants it; KL beside cross-entropy as in arXiv 2311.00430.

    The teacher is kept where `nn.Module` does not look: it is no part of what is trained, saved or averaged.

    Args:
        student: student of any family.
        teacher: teacher of the same family, over the same vocabulary; see `check_pair`.
        options: weights.
    """

    has_unused_parameters = False

    def __init__(self, student: Any, teacher: Any, options: DistillationOptions) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.requires_grad_(False).eval(),)
        self.options = options

    @property
    def untrained(self) -> Sequence[nn.Module]:
        """Parts of the student that have no weight in the loss."""
        return self.student.untrained_with_decoder if isinstance(self.student, Conformer) else ()

    @property
    def encoder(self) -> Any:
        """The student's encoder."""
        return self.student.encoder

    @property
    def decoder(self) -> Any:
        """The student's decoder."""
        return self.student.decoder

    @property
    def teacher(self) -> Any:
        """The frozen teacher."""
        return self._teacher[0]

    @property
    def learns_from(self) -> Sequence[nn.Module]:
        """The frozen teacher, from which the student learns."""
        return self._teacher

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the texts, divergences from the teacher, and the losses of the student's other heads.

        Raises:
            SprachbundError: the teacher is asked for the same rows by other tokens.
        """
        options, student = self.options, self.student
        decoder_batch: DecoderBatch = student.decoder_batch(batch)
        logits = _logits(student, decoder_batch)
        attention = F.cross_entropy(
            logits,
            decoder_batch.labels[decoder_batch.loss_mask],
            reduction="sum",
            label_smoothing=options.label_smoothing,
        )
        loss = Loss.of_text(
            options.label_weight * attention, int(decoder_batch.loss_mask.sum()), attention=attention
        )
        if isinstance(student, Conformer):
            loss = student.with_heads(loss, batch, decoder_batch.memory)
        if not (options.asks_the_teacher and torch.is_grad_enabled()):  # checkpoints are ranked by the texts
            return loss
        teacher_logits, teacher_memory = self._teacher_output(batch, decoder_batch)
        parts = {
            "kl": options.kl_weight * kl_divergence(teacher_logits, logits, options.temperature),
            # One language counts as a token of each of its rows would, as in the conformer's own loss.
            "language_kl": options.language_weight
            * batch.rows_per_utterance
            * self._language_divergence(batch, teacher_memory, decoder_batch.memory),
        }
        detached = {name: part.detach() for name, part in parts.items()}
        return replace(loss, total=loss.total + sum(parts.values()), parts=detached)

    @torch.no_grad()
    def _teacher_output(self, batch: Batch, decoder_batch: DecoderBatch) -> tuple[Tensor, Memory]:
        """The teacher's logits (N, V) of the same tokens, and its memory of the speech."""
        teacher = self.teacher
        if teacher.decoder.positions.device != batch.features.device:
            teacher.to(batch.features.device)
        teacher.eval()
        own: DecoderBatch = teacher.decoder_batch(batch)
        if not torch.equal(own.tokens, decoder_batch.tokens):
            raise SprachbundError(
                "the student is asked for a language by other tokens than the teacher; prune the teacher to get a "
                f"student, {_TEXTS_ONLY}"
            )
        return _logits(teacher, own), own.memory

    def _language_divergence(self, batch: Batch, teacher: Memory, student: Memory) -> Tensor:
        """Summed over utterances in which somebody speaks."""
        with torch.no_grad():
            wanted = self.teacher.language_log_probs(teacher)
        log_probs = self.student.language_log_probs(student)
        each = F.kl_div(log_probs, wanted, reduction="none", log_target=True).sum(-1)
        return (each * (batch.source_language >= 0)).sum()


def _logits(model: Any, decoder_batch: DecoderBatch) -> Tensor:
    """(N, V) of the tokens of a decoder batch that count."""
    memory = decoder_batch.memory
    hidden = model.decoder(decoder_batch.tokens, memory.states, memory.num_frames, decoder_batch.route)
    logits: Tensor = model.decoder.logits(hidden[decoder_batch.loss_mask]).float()
    return logits


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (N, V), summed over N.

    Args:
        teacher: logits (N, V).
        student: logits (N, V).
        temperature: T, by which both are divided. T^2 keeps the size of the gradients.
    """
    wanted = (teacher.float() / temperature).log_softmax(-1)
    log_probs = (student.float() / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(log_probs, wanted, reduction="sum", log_target=True)


def check_pair(student: Any, teacher: Any, options: DistillationOptions) -> None:
    """Refuse a student that cannot learn from this teacher.

    Args:
        student: a model.
        teacher: a model.
        options: the weights of the losses say whether the two are compared token by token.

    Raises:
        SprachbundError: a family that is not distilled; a transducer, whose head the loss does not reach; a student
            with more weights than the teacher; where the two are compared token by token, another family, another
            vocabulary, or other features.
    """
    _check_written_by_attention("the student", student)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (student, teacher)]
    if sizes[0] > sizes[1]:
        raise SprachbundError(
            f"the student has {sizes[0] / 1e6:.2f} M parameters, the teacher {sizes[1] / 1e6:.2f} M; give the larger "
            "model as the teacher, or make a smaller one with `sprachbund compress prune`"
        )
    if not options.asks_the_teacher:
        return
    if student.name != teacher.name:
        raise SprachbundError(
            f"the student is a {student.name}, the teacher a {teacher.name}: their tokens cannot be compared; take a "
            f"student of the teacher's family, {_TEXTS_ONLY}"
        )
    _check_written_by_attention("the teacher", teacher)
    if vocabulary_of(student) != vocabulary_of(teacher):
        counts = [model.decoder.embedding.num_embeddings for model in (student, teacher)]
        raise SprachbundError(
            f"the student has another vocabulary ({counts[0]} tokens) than the teacher ({counts[1]}); prune the "
            f"teacher to get a student, {_TEXTS_ONLY}"
        )
    for what, own, other in _traits(student, teacher):
        if own != other:
            raise SprachbundError(
                f"{what} is {own} of the student and {other} of the teacher, so they cannot share a batch; choose "
                f"models with the same, {_TEXTS_ONLY}"
            )


def _check_written_by_attention(role: str, model: Any) -> None:
    """Refuse a model whose text does not come from an attention decoder that this loss knows."""
    if model.name not in DISTILLED:
        raise SprachbundError(
            f"{role} is a {model.name}, and {', '.join(DISTILLED)} models are distilled; take one of these, or label "
            "speech with `sprachbund compress pseudo-label` and train on it"
        )
    if model.capabilities.writes_by_frames:
        raise SprachbundError(
            f"{role} writes by a transducer, and what is distilled is an attention decoder; take another model, or "
            "label speech with `sprachbund compress pseudo-label` and train on it"
        )


def vocabulary_of(model: Any) -> object:
    """Return a value that is equal for two models that mean the same by every token."""
    if model.name == "conformer":
        return model.tokenizer.model, model.tokenizer.languages
    if model.name == "whisper":
        return Tokenizer.from_str(model.tokens.to_json()).get_vocab(with_added_tokens=True)
    return model.tokens.tokenizer.get_vocab()


def _traits(student: Any, teacher: Any) -> Iterator[tuple[str, object, object]]:
    """Properties that both models need in common to share a batch: name, and both values."""
    if isinstance(student, Conformer | Whisper):
        yield "num_mel_bins", student.config.num_mel_bins, teacher.config.num_mel_bins
    if isinstance(student, Conformer):
        yield "front_end", student.front_end, teacher.front_end
    yield "source_languages", student.source_languages, teacher.source_languages
    if isinstance(student, Whisper):
        yield "real_length", student.real_length, teacher.real_length
    yield "max_tokens", student.max_tokens, teacher.max_tokens


# The recipe of a student.

MODEL = "model"
"""Folder of the result in that of the run."""


class DistilRecipe(Strict):
    """Everything a run depends on.

    Attributes:
        teacher: directory, "bundled", or a name on the Hugging Face hub.
        student: the same; what training starts from.
        languages: languages heard and written.
        train: speech with texts, the teacher's own or others.
        dev: ranks the checkpoints; without it the last weights are taken.
        objective: losses that the student is trained with.
        examples: see `ExampleRecipe`.
        training: steps, learning rate, batches and evaluations.
    """

    teacher: Path | str
    student: Path | str
    languages: tuple[str, ...]
    train: tuple[DataPart, ...]
    dev: tuple[DataPart, ...] = ()
    objective: DistillationOptions = DistillationOptions()
    examples: ExampleRecipe = ExampleRecipe()
    training: StudentTraining = StudentTraining()


def run(
    recipe: DistilRecipe,
    directory: Path,
    *,
    report: Report = print,
    stop_after: int | None = None,
    on_step: Callable[[int, int], None] = nothing,
    accept_changes: bool = False,
    offline: bool = False,
) -> Path:
    """Train a student, or resume the run in `directory`, and return the directory of the model.

    Args:
        recipe: the models, the data and the options.
        directory: directory of the run; its `model` folder is the result.
        report: takes each line of progress.
        stop_after: stop, resumable, after so many steps.
        on_step: called with the steps made, and with all of them.
        accept_changes: go on with a run whose recipe was another one.
        offline: never use the network.

    Raises:
        SprachbundError: models that do not go together, data that neither knows, or a run of another recipe.
    """
    with joined_processes():
        return _run(recipe, directory, on_first_rank(report), stop_after, on_step, accept_changes, offline)


def _run(
    recipe: DistilRecipe,
    directory: Path,
    report: Report,
    stop_after: int | None,
    on_step: Callable[[int, int], None],
    accept_changes: bool,
    offline: bool,
) -> Path:
    torch.manual_seed(recipe.training.seed)
    data = [part.path for part in (*recipe.train, *recipe.dev)]
    claim_folder(directory, recipe, data=data, accept_changes=accept_changes)
    start = locate(str(recipe.student), offline=offline)
    teacher: Any = load(recipe.teacher, offline=offline)
    student = prepare_model(_as_translator(recipe, start), directory, [])
    check_pair(student.model, teacher, recipe.objective)
    size = sum(p.numel() for p in teacher.parameters()) / 1e6
    report(f"the teacher, {size:.1f} M parameters, is held beside what follows")
    corpus = _corpus(recipe, recipe.train, student.examples, recipe.examples.model_dump())
    dev = _corpus(recipe, recipe.dev, student.examples, {**recipe.examples.model_dump(), **NO_MASKS})
    check_corpus(corpus, recipe.training.max_duration_s, report)
    train(
        Distillation(student.model, teacher, recipe.objective),
        corpus,
        recipe.training,
        directory,
        dev=dev if recipe.dev else None,
        report=report,
        stop_after=stop_after,
        on_step=on_step,
    )
    student.model.cpu()
    how = {
        "by": "distil",
        "teacher": str(recipe.teacher),
        "steps": recipe.training.steps,
        **recipe.objective.model_dump(),
    }
    if is_first_rank():
        card = card_of(student.model, start, directory.name, how, model=str(recipe.student))
        card.training |= card.pairs_with(taught_languages(corpus).pairs)
        student.save(directory / MODEL, card=card)
    wait_for_all_ranks()
    return directory / MODEL


def check_models(recipe: DistilRecipe, *, offline: bool = False) -> None:
    """Refuse models that do not go together, before any work. Raises SprachbundError as `run`."""
    teacher, student = (load(locate(name, offline=offline)) for name in (recipe.teacher, recipe.student))
    check_pair(student, teacher, recipe.objective)
    for name, model in ((recipe.teacher, teacher), (recipe.student, student)):
        written = {target for _, target in model.pairs()}
        if unknown := sorted(set(recipe.languages) - written):
            raise SprachbundError(
                f"{name} does not write {', '.join(unknown)}; it writes {', '.join(sorted(written))}"
            )


def _as_translator(recipe: DistilRecipe, start: Path) -> TranslatorRecipe:
    """Recipe by which `prepare_model` makes the student trainable, stored in the bits it has."""
    bits: Bits = bits_of(start)
    return TranslatorRecipe(
        languages=recipe.languages,
        train=recipe.train,
        dev=recipe.dev,
        start=start,
        training=recipe.training,
        bits=bits if bits != 8 or family_of(start) == "conformer" else 32,
        card=CardRecipe(name=MODEL),
    )


def _corpus(
    recipe: DistilRecipe, parts: tuple[DataPart, ...], examples: Any, options: dict[str, Any]
) -> Corpus:
    manifests = [(Manifest(part.path, part.shares), part.repeats) for part in parts]
    return Corpus(manifests, examples, ExampleOptions(**options, seed=recipe.training.seed))

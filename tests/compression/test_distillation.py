"""Distillation: the loss against its formula, what is trained, and which students a teacher refuses."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax
from torch.nn import functional as F

from sprachbund.compression.distillation import Distillation, check_pair, kl_divergence
from sprachbund.compression.options import DistillationOptions
from sprachbund.data.batch import Batch
from sprachbund.data.loading import Corpus, ExampleOptions, collate
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models import whisper
from sprachbund.models.base import Features
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.models.pruning import with_layers
from sprachbund.models.seamless.model import SeamlessExamples
from sprachbund.models.whisper.extension import set_prompt
from sprachbund.models.whisper.model import WhisperExamples
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.training.loop import train
from tests.models import split_support
from tests.models.seamless.support import make_pair
from tests.training import made, objectives, owned


def conformer(**sizes: Any) -> Conformer:
    return split_support.make_model(**{"num_decoder_layers": 3, **sizes})


def conformer_batch(model: Conformer) -> Batch:
    return split_support.make_batch(model, [0, 2, -1], ["en", "fr"])


def distillation(student: Any, teacher: Any, **options: Any) -> Distillation:
    return Distillation(student, teacher, DistillationOptions(**options)).eval()


@pytest.fixture
def whisper_pair(made_whisper: tuple[Any, Batch]) -> tuple[Any, Batch]:
    """A teacher of its own for each test, since teachers are frozen."""
    teacher, batch = made_whisper
    return copy.deepcopy(teacher), batch


@pytest.fixture(scope="module")
def made_whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Batch]:
    root = tmp_path_factory.mktemp("whisper")
    teacher = whisper.load(owned.make_whisper(root / "teacher"))
    data = Manifest(owned.make_tones(root / "data", silence=1))
    examples = WhisperExamples(teacher, ("en", "de"))
    corpus = Corpus(
        [(data, 1.0)],
        examples,
        ExampleOptions(rows_per_utterance=2, time_masks=0, frequency_masks=0),
    )
    return teacher, collate([corpus[(0, i, 1.0)] for i in (0, 5, 8)], 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_divergence_is_that_of_the_formula(temperature: float) -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 7, 11)) * 3
    p, q = (log_softmax(x / temperature, axis=-1) for x in (teacher, student))
    wanted = temperature**2 * float((np.exp(p) * (p - q)).sum())
    result = kl_divergence(torch.tensor(teacher), torch.tensor(student), temperature)
    assert float(result) == pytest.approx(wanted, rel=1e-5)
    assert float(kl_divergence(torch.tensor(teacher), torch.tensor(teacher), temperature)) == pytest.approx(
        0, abs=1e-6
    )


def test_at_a_high_temperature_the_gradient_is_that_of_the_logits_distance() -> None:
    """arXiv 1503.02531, equation 4: with zero-mean logits and T large, half the squared distance over V."""
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 9, dtype=torch.float64)
    teacher, student = teacher - teacher.mean(-1, keepdim=True), student - student.mean(-1, keepdim=True)
    student.requires_grad_(True)
    (gradient,) = torch.autograd.grad(kl_divergence(teacher, student, 1000.0), student)
    # logits are brought to fp32, and T^2 makes its rounding large
    torch.testing.assert_close(gradient, (student - teacher).detach() / 9, atol=2e-2, rtol=2e-2)


def test_a_student_that_is_its_teacher_has_only_its_own_loss() -> None:
    teacher = conformer()
    model = distillation(copy.deepcopy(teacher), teacher)
    loss = model.loss(conformer_batch(teacher))
    assert float(loss.parts["kl"]) == pytest.approx(0, abs=1e-3)
    assert float(loss.parts["language_kl"]) == pytest.approx(0, abs=1e-4)
    own = teacher.loss(conformer_batch(teacher))
    assert loss.heads.keys() == own.heads.keys() == {"ctc", "language"}
    for name, head in own.heads.items():
        torch.testing.assert_close(loss.heads[name].total, head.total)
    assert loss.num_tokens == own.num_tokens
    smoothed = distillation(model.student, teacher, label_smoothing=teacher.config.label_smoothing)
    torch.testing.assert_close(smoothed.loss(conformer_batch(teacher)).total, own.total, atol=1e-2, rtol=1e-4)


def test_the_loss_of_a_conformer_is_the_sum_of_its_parts() -> None:
    """Logits are those of stepping through each row alone, one token after the other."""
    teacher = conformer()
    student = with_layers(split_support.make_model(seed=5, num_decoder_layers=3), decoder=(0, 2))
    batch = conformer_batch(teacher)
    options = {"temperature": 1.5, "kl_weight": 0.3, "label_weight": 0.7, "language_weight": 0.2}
    loss = distillation(student, teacher, **options).loss(batch)
    logits = {name: _stepped(model, batch) for name, model in (("t", teacher), ("s", student))}
    wanted = batch.targets.flatten()
    labels = F.cross_entropy(logits["s"], wanted, reduction="sum")
    divergence = kl_divergence(logits["t"], logits["s"], 1.5)
    identified = {name: _languages(model, batch)[:2] for name, model in (("t", teacher), ("s", student))}
    language = F.kl_div(identified["s"], identified["t"], reduction="sum", log_target=True)
    torch.testing.assert_close(loss.attention, labels, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(loss.parts["kl"], 0.3 * divergence, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(loss.parts["language_kl"], 0.2 * 2 * language, atol=1e-4, rtol=1e-3)
    heads = 2 * (
        student.config.ctc_weight * loss.heads["ctc"].total
        + student.config.language_weight * loss.heads["language"].total
    )
    total = 0.7 * labels + 0.3 * divergence + 0.4 * language + heads
    torch.testing.assert_close(loss.total, total, atol=1e-2, rtol=1e-4)


def _memory(model: Any, batch: Batch) -> Any:
    return model.encode(Features(values=batch.features, num_frames=batch.num_frames))


def _languages(model: Any, batch: Batch) -> torch.Tensor:
    return model.language_log_probs(_memory(model, batch))


def _stepped(model: Any, batch: Batch) -> torch.Tensor:
    """Logits (R * U, V) of a conformer's rows, token by token."""
    cache = model.start(_memory(model, batch), rows_per_memory=batch.rows_per_utterance)
    given = torch.cat([batch.target_language[:, None], batch.targets[:, :-1]], 1)
    steps = [model.step(given[:, i : i + 1], cache) for i in range(given.shape[1])]
    return torch.cat(steps, 1).flatten(0, 1)


def test_whisper_learns_from_its_teacher_which_language_is_spoken(whisper_pair: tuple[Any, Batch]) -> None:
    """Its cross-entropy asks for no language; without the divergence nothing would keep that task."""
    teacher, batch = whisper_pair
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    loss = distillation(student, teacher, kl_weight=0.0, label_weight=0.0).loss(batch)
    assert float(loss.parts["language_kl"]) > 0
    loss.total.backward()
    start = student.decoder.embedding.weight.grad[student.tokens.start]
    assert float(start.abs().sum()) > 0
    # the silent utterance does not count: without it the sum is the same
    alone = replace(batch, source_language=torch.full_like(batch.source_language, -1))
    silent = distillation(student, teacher, kl_weight=0.0).loss(alone)
    assert float(silent.parts["language_kl"]) == 0


@pytest.mark.parametrize("family", ["conformer", "whisper"])
def test_the_teacher_is_neither_trained_nor_saved(family: str, whisper_pair: tuple[Any, Batch]) -> None:
    teacher, batch = whisper_pair if family == "whisper" else (conformer(), None)
    batch = batch or conformer_batch(teacher)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.decoder.norm.weight.add_(0.1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = Distillation(student, teacher, DistillationOptions()).train()
    model.loss(batch).total.backward()
    assert all(name.startswith("student.") for name in model.state_dict())
    assert len(list(model.parameters())) == len(list(student.parameters()))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    assert any(parameter.grad is not None for parameter in student.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_seamless_student_learns_too(tmp_path: Path) -> None:
    _, teacher = make_pair(tmp_path / "tokens", "seamless_m4t_v2", decoder_layers=3)
    student = with_layers(teacher, decoder=(0, 2))
    check_pair(student, teacher, DistillationOptions())
    data = Manifest(owned.make_tones(tmp_path / "data", languages=("en",)))
    options = ExampleOptions(rows_per_utterance=1, time_masks=0, frequency_masks=0)
    corpus = Corpus([(data, 1.0)], SeamlessExamples(teacher, ("en",)), options)
    batch = collate([corpus[(0, i, 1.0)] for i in range(2)], 1)
    loss = Distillation(student, teacher, DistillationOptions()).loss(batch)
    assert float(loss.parts["kl"]) > 0
    loss.total.backward()
    assert student.decoder.norm.weight.grad is not None


def test_without_divergences_the_teacher_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = conformer()
    model = distillation(copy.deepcopy(teacher), teacher, kl_weight=0.0, language_weight=0.0)
    monkeypatch.setattr(teacher, "decoder_batch", lambda batch: pytest.fail("the teacher was asked"))
    assert not model.loss(conformer_batch(teacher)).parts


@pytest.mark.slow
def test_training_on_one_loop_brings_the_student_to_its_teacher(tmp_path: Path) -> None:
    """From audio and the teacher's distributions alone: no label counts."""
    made.make_corpus(tmp_path / "data", 16)
    torch.manual_seed(0)
    config = made.make_model().config.model_copy(update={"num_decoder_layers": 3, "ctc_weight": 0.0})
    base = made.make_model()
    teacher = Conformer(config, base.tokenizer, base.transcript_tokenizer)
    with torch.no_grad():  # a teacher that is sure of something
        teacher.decoder.norm.weight.mul_(3)
    student = with_layers(teacher, decoder=(0, 2))
    model = Distillation(student, teacher, DistillationOptions(label_weight=0.0, language_weight=0.0))
    corpus = made.make_training_data(tmp_path / "data", time_masks=0, frequency_masks=0)
    batch = collate([corpus[(0, i, 1.0)] for i in range(8)], 2)
    before = float(model.eval().loss(batch).parts["kl"])
    train(model, corpus, made.options(30), tmp_path / "run", report=lambda line: None)
    assert float(model.eval().loss(batch).parts["kl"]) < 0.5 * before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_decoder_layers": 4}, r"the student has 0\.\d\d M parameters, the teacher 0\.\d\d M"),
        ({"num_mel_bins": 40}, "num_mel_bins is 40 of the student and 80 of the teacher"),
        ({"max_tokens": 12}, "max_tokens is 12 of the student and 24 of the teacher"),
    ],
)
def test_students_that_do_not_fit_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        check_pair(conformer(**change), conformer(), DistillationOptions())


def test_another_vocabulary_is_refused_unless_only_texts_are_learned() -> None:
    teacher = conformer()
    other = Tokenizer.train(["one two three"] * 20, split_support.LANGUAGES, 40)
    config = ConformerConfig(**teacher.config.model_dump() | {"num_decoder_layers": 1})
    student = Conformer(config, other, teacher.transcript_tokenizer)
    with pytest.raises(SprachbundError, match=r"another vocabulary \(\d+ tokens\) than the teacher \(\d+\)"):
        check_pair(student, teacher, DistillationOptions())
    check_pair(student, teacher, DistillationOptions(kl_weight=0, language_weight=0))


def test_another_family_is_refused_unless_only_texts_are_learned(whisper_pair: tuple[Any, Batch]) -> None:
    teacher, _ = whisper_pair
    student = made.make_model()
    with pytest.raises(SprachbundError, match="the student is a conformer, the teacher a whisper"):
        check_pair(student, teacher, DistillationOptions())
    check_pair(student, teacher, DistillationOptions(kl_weight=0, language_weight=0))
    check_pair(copy.deepcopy(teacher), teacher, DistillationOptions())


def test_what_a_transducer_writes_is_not_distilled() -> None:
    """The loss trains the attention decoder, from which no text of such a model comes."""
    by_frames = objectives.conformer(**objectives.transducer(1.0))
    texts_only = DistillationOptions(kl_weight=0, language_weight=0)
    with pytest.raises(SprachbundError, match="the student writes by a transducer"):
        check_pair(by_frames, by_frames, texts_only)
    student = objectives.conformer()
    with pytest.raises(SprachbundError, match="the teacher writes by a transducer"):
        check_pair(student, by_frames, DistillationOptions())
    check_pair(student, by_frames, texts_only)


def test_a_family_without_such_a_decoder_is_refused() -> None:
    other = SimpleNamespace(name="parakeet_tdt")
    with pytest.raises(
        SprachbundError, match="the student is a parakeet_tdt, and conformer, whisper, seamless"
    ):
        check_pair(other, conformer(), DistillationOptions())


def test_a_loss_without_any_part_is_refused() -> None:
    with pytest.raises(ValidationError, match="so that nothing is learned"):
        DistillationOptions(label_weight=0, kl_weight=0, language_weight=0)


def test_another_prompt_is_told_at_the_first_batch(whisper_pair: tuple[Any, Batch]) -> None:
    teacher, batch = whisper_pair
    student = set_prompt(copy.deepcopy(teacher), "wanted", teacher.source_languages)
    with pytest.raises(SprachbundError, match="by other tokens than the teacher"):
        distillation(student, teacher).loss(batch)

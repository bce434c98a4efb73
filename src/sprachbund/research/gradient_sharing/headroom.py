"""Headroom: the most that a split could gain, measured before any split is made.

Some modules of a trained model are trained further, all else frozen: once with all languages together, and once with a
copy for each language, or for each group of languages. Every language sees the same utterances equally often in every
arm. What a copy of its own gains over the common one, on utterances held out, is the headroom: a split, whose branches
are narrower than these copies and share a part, can hardly gain more. A copy takes fewer steps than the common weights
do, so the training has to be long enough for both: in a short one a loss says little. A control shows whether it is:
words of half of the texts are exchanged (`planted`), so weights of their own gain, if the training can see a gain.

The states before the first trained encoder layer do not change, so they are computed once where the encoder is a
conformer's. Shapes: B utterances, T frames, D width, H utterances held out, S seeds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.significance import t_interval
from sprachbund.models.base import Features, Memory
from sprachbund.nn.conformer import ConformerEncoder
from sprachbund.nn.feed_forward import is_split
from sprachbund.research.gradient_sharing.gradients import (
    GradientExample,
    check_decoder,
    choose_modules,
    choose_rows,
    features_of,
    probing,
    utterance_losses,
)
from sprachbund.research.gradient_sharing.headroom_options import ALONE, TOGETHER, Groups, HeadroomOptions
from sprachbund.research.gradient_sharing.planted import SWAPPED, Exchange, in_halves
from sprachbund.util.progress import Progress, nothing

DRAWS = 2000
Interval = tuple[float, float]
BY_WORDS = "by words"
"""The arm of the control that trains all languages with exchanged words together, and all others."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The gain of an arm over training together, in one language.

    Attributes:
        loss: loss of the arm, nats for each token, mean over seeds.
        gain: loss of training together, less that.
        interval: 95 % of the mean gain over seeds, over utterances: Student's t with the spread of bootstrap draws.
        spread: spread of the gain, standard deviation over seeds.
    """

    loss: float
    gain: float
    interval: tuple[float, float]
    spread: float


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """The result of a measurement of headroom.

    Attributes:
        modules: modules that were trained.
        before: language to the loss before any training.
        together: language to the loss of training together.
        gains: arm to language, and `ALL` for the mean over languages, to what it gains.
        learning_rates: arm to the one that was best on the first half of what is held out.
        at_edge: arms whose best one was the least or the largest of those tried; one beyond might be better still.
        control: the same training where words of half of the texts of each language are exchanged, each half as a
            language of its own; None where it was left out.
    """

    modules: tuple[str, ...]
    before: Mapping[str, float]
    together: Mapping[str, float]
    gains: Mapping[str, Mapping[str, Gain]]
    learning_rates: Mapping[str, float]
    at_edge: tuple[str, ...]
    control: "Headroom | None" = None

    @property
    def control_gain(self) -> tuple[float, Interval] | None:
        """What weights of their own gain in the control where texts are as they were; None without a control."""
        return None if self.control is None else gain_where_unchanged(self.control.gains[ALONE])

    @property
    def long_enough(self) -> bool | None:
        """Whether the control shows that the training can see a gain; None without a control."""
        if self.control_gain is None:
            return None
        low, _ = self.control_gain[1]
        return low > 0

    @property
    def warning(self) -> str:
        """What to do about rates at the edge, in a sentence; empty where there are none."""
        if not self.at_edge:
            return ""
        edges = ", ".join(f"{self.learning_rates[arm]:g} of {arm}" for arm in self.at_edge)
        return (
            f"the best learning rate is at the edge of those tried ({edges}), so a better one may lie beyond it and "
            "change the gains; widen --learning-rates"
        )


ALL = "all"


def gain_where_unchanged(gains: Mapping[str, Gain]) -> tuple[float, Interval]:
    """The mean gain of an arm of the control, and its 95 % interval, over the halves whose texts are as they were.

    The other halves have to learn words anew, from half of the data and through a decoder that does not know them, so a
    loss there says little of a conflict.

    Args:
        gains: of an arm, by language.
    """
    own = [gain for tag, gain in gains.items() if tag != ALL and not tag.endswith(SWAPPED)]
    value = sum(gain.gain for gain in own) / len(own)
    # Languages have different utterances, so their errors are independent.
    half = math.hypot(*((gain.interval[1] - gain.interval[0]) / 2 for gain in own)) / len(own)
    return value, (value - half, value + half)


def measure_headroom(
    model: Any,
    train: Sequence[Manifest],
    dev: Sequence[Manifest],
    options: HeadroomOptions,
    *,
    progress: Progress = nothing,
) -> Headroom:
    """Train the modules together, alone, and in groups, and compare on utterances held out.

    Args:
        model: model of a family with a text decoder; it is as before afterwards.
        train: corpora that are trained on.
        dev: corpora of which utterances are held out.
        options: see `HeadroomOptions`.
        progress: called with training steps made and steps in all.

    Raises:
        SprachbundError: a model without a text decoder or that is split already, a module that is not there, groups of
            unknown languages, too few utterances, or losses that are not finite.
    """
    check_decoder(model)
    if is_split(model.encoder) or is_split(model.decoder):
        raise SprachbundError("the model is split already; measure headroom on the model it was before")
    last = f"encoder.layers.{len(model.encoder.layers) - 1}"
    modules = choose_modules(model, options.modules or (last,))
    parameters = {name: p for inside in modules.values() for name, p in inside.items()}
    heard = _Heard(model, tuple(parameters))
    with probing(model, parameters.values()):
        learned = heard.read(train, options, options.utterances)
        held_out = heard.read(dev, options, options.held_out)
        if missing := sorted(set(learned) ^ set(held_out)):
            raise SprachbundError(
                f"{', '.join(missing)}: in the training or in the dev corpora alone; name --languages that are in "
                "both"
            )
        arms = options.partitions(list(learned))
        experiments = [_Experiment(learned=learned, held_out=held_out, arms=arms)]
        if options.control:
            experiments.append(_planted(experiments[0], options.seed))
        made, total = count(1), sum(one.steps(options) for one in experiments)
        measured = []
        for one in experiments:
            trainer = _Trainer(heard, parameters, one, options, lambda: progress(next(made), total))
            before = {language: trainer.losses(language) for language in one.held_out}
            losses = {arm: trainer.run(groups) for arm, groups in one.arms.items()}
            measured.append(_compared(tuple(modules), before, losses, options))
    return replace(measured[0], control=measured[1]) if options.control else measured[0]


@dataclass(frozen=True, kw_only=True)
class _Example:
    """An utterance as the encoder layers that are trained get it.

    Attributes:
        utterance: speech and text.
        values: features or states (T, ·), with the padding that the model's own features have.
        num_frames: those of the utterance itself.
    """

    utterance: GradientExample
    values: Tensor
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class _Experiment:
    """Language to what is learned and held out of it, and arm to its groups of languages."""

    learned: Mapping[str, Sequence[_Example]]
    held_out: Mapping[str, Sequence[_Example]]
    arms: Mapping[str, Groups]

    def steps(self, options: HeadroomOptions) -> int:
        """Training steps of all arms."""
        batches = sum(-(-len(own) // options.batch) for own in self.learned.values())
        return len(self.arms) * batches * options.epochs * options.seeds * len(options.learning_rates)


def _planted(given: _Experiment, seed: int) -> _Experiment:
    """The control: languages in halves, the words of one exchanged; alone, and all halves of a kind together."""
    learned = [one.utterance for own in given.learned.values() for one in own]
    exchange = Exchange((utterance.target, utterance.text) for utterance in learned)

    def change(example: _Example) -> _Example:
        spoken = example.utterance
        return replace(example, utterance=replace(spoken, text=exchange(spoken.text, spoken.target)))

    languages = tuple(given.learned)
    halves = in_halves(given.learned, change, seed)
    kinds = (languages, tuple(f"{language}{SWAPPED}" for language in languages))
    arms = {TOGETHER: (tuple(halves),), ALONE: tuple((tag,) for tag in halves), BY_WORDS: kinds}
    return _Experiment(learned=halves, held_out=in_halves(given.held_out, change, seed), arms=arms)


class _Heard:
    """Utterances up to the first trained layer, and from there on."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model = model
        self.first = 0
        """The first encoder layer that is trained; what lies before it is computed once."""
        parts = [name.split(".") for name in names if name.startswith("encoder.")]
        # What is trained outside the layers, such as the subsampling, moves all that follows.
        if isinstance(model.encoder, ConformerEncoder) and all(part[1] == "layers" for part in parts):
            self.first = min((int(part[2]) for part in parts), default=len(model.encoder.layers))

    def read(
        self, manifests: Sequence[Manifest], options: HeadroomOptions, num_utterances: int
    ) -> dict[str, list[_Example]]:
        """Language to its utterances."""
        chosen = choose_rows(
            self.model,
            manifests,
            by="source",
            count=num_utterances,
            seed=options.seed,
            languages=options.languages,
            targets=options.targets,
        )
        read: dict[str, list[_Example]] = {}
        for language, rows in chosen.rows.items():
            read[language] = []
            for start in range(0, num_utterances, options.batch):
                batch = [row.read(manifests) for row in rows[start : start + options.batch]]
                read[language] += self._before(batch)
        return read

    def memory(self, examples: Sequence[_Example]) -> Memory:
        """Run the trained layers, and those behind them."""
        values = nn.utils.rnn.pad_sequence([e.values for e in examples], batch_first=True)
        lengths = torch.tensor([e.num_frames for e in examples], device=values.device)
        if not self.first:
            memory: Memory = self.model.encode(Features(values=values, num_frames=lengths))
            return memory
        states, num_frames = self.model.encoder.behind(self.first)(values, lengths)
        return Memory(states=states, num_frames=num_frames)

    @torch.no_grad()
    def _before(self, batch: Sequence[GradientExample]) -> list[_Example]:
        """Utterances in front of the trained part."""
        features: Features = features_of(self.model, batch)
        if not self.first:  # uncut, since Whisper hears the silence behind an utterance
            rows = zip(batch, features.values, features.num_frames.tolist(), strict=True)
            return [_Example(utterance=u, values=v, num_frames=n) for u, v, n in rows]
        states, num_frames = self.model.encoder.before(self.first)(features.values, features.num_frames)
        rows = zip(batch, states, num_frames.tolist(), strict=True)
        return [_Example(utterance=u, values=s[:n].clone(), num_frames=n) for u, s, n in rows]


class _Trainer:
    """Trains the modules on groups of languages from the same weights, and measures the losses of what is held out."""

    def __init__(
        self,
        heard: _Heard,
        parameters: Mapping[str, nn.Parameter],
        experiment: _Experiment,
        options: HeadroomOptions,
        stepped: Callable[[], None],
    ) -> None:
        self.heard, self.parameters, self.experiment = heard, parameters, experiment
        self.options, self.stepped = options, stepped
        self.first = {name: p.detach().clone() for name, p in parameters.items()}

    def run(self, groups: Groups) -> dict[float, dict[str, np.ndarray]]:
        """Learning rate to language to losses (S, H, 2): sum and number of tokens."""
        return {
            rate: {language: np.stack([seed[language] for seed in seeds]) for language in seeds[0]}
            for rate in self.options.learning_rates
            if (seeds := [self._trained(groups, rate, seed) for seed in range(self.options.seeds)])
        }

    def losses(self, language: str) -> np.ndarray:
        """Sum and number of tokens (H, 2) of each utterance held out, with the weights as they are."""
        rows = []
        with torch.no_grad():
            for batch in _batches(self.experiment.held_out[language], self.options.batch):
                sums, counts = self._losses(batch)
                rows.append(torch.stack([sums.cpu(), counts.cpu()], 1).numpy())
        return np.concatenate(rows)

    def _trained(self, groups: Groups, rate: float, seed: int) -> dict[str, np.ndarray]:
        losses: dict[str, np.ndarray] = {}
        for group in groups:
            self._train(group, rate, seed)
            losses |= {language: self.losses(language) for language in group}
            self._restore()
        return losses

    def _train(self, group: Sequence[str], rate: float, seed: int) -> None:
        """AdamW with a linearly falling rate; each step has utterances of one language."""
        options = self.options
        order = np.random.default_rng([options.seed, seed])
        each = [
            batch
            for language in group
            for batch in _batches(self.experiment.learned[language], options.batch)
        ]
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=rate, weight_decay=0.0)
        steps = options.epochs * len(each)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for _ in range(options.epochs):
            for number in order.permutation(len(each)):
                sums, counts = self._losses(each[number])
                optimizer.zero_grad()
                (sums.sum() / counts.sum()).backward()
                nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
                optimizer.step()
                schedule.step()
                self.stepped()

    def _losses(self, batch: Sequence[_Example]) -> tuple[Tensor, Tensor]:
        return utterance_losses(self.heard.model, self.heard.memory(batch), [e.utterance for e in batch])

    @torch.no_grad()
    def _restore(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.first[name])


def _batches(examples: Sequence[_Example], size: int) -> Iterator[Sequence[_Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


# Comparing arms.


def _compared(
    modules: tuple[str, ...],
    before: Mapping[str, np.ndarray],
    losses: Mapping[str, Mapping[float, Mapping[str, np.ndarray]]],
    options: HeadroomOptions,
) -> Headroom:
    """The first half of what is held out chooses rates, the second is reported.

    Raises:
        SprachbundError: an arm whose losses are not finite at any rate.
    """
    num_held_out = len(next(iter(before.values())))
    half = num_held_out // 2
    rates, best = {}, {}
    for arm, by_rate in losses.items():
        means = {rate: np.mean([_loss(x[:, :half]) for x in own.values()]) for rate, own in by_rate.items()}
        if not (finite := [rate for rate, mean in means.items() if math.isfinite(mean)]):
            tried = ", ".join(f"{rate:g}" for rate in means)
            raise SprachbundError(
                f"the losses of training {arm} are not finite at any learning rate ({tried}); lower --learning-rates"
            )
        rates[arm] = chosen = min(finite, key=lambda rate: means[rate])
        best[arm] = {language: x[:, half:] for language, x in by_rate[chosen].items()}
    draws = np.random.default_rng(options.seed).integers(0, num_held_out - half, (DRAWS, num_held_out - half))
    edges = {min(options.learning_rates), max(options.learning_rates)}
    gains = {arm: _gains(best[TOGETHER], own, draws) for arm, own in best.items() if arm != TOGETHER}
    return Headroom(
        modules=modules,
        before={language: _loss(x[half:]) for language, x in before.items()},
        together={language: _loss(x) for language, x in best[TOGETHER].items()},
        gains=gains,
        learning_rates=rates,
        at_edge=tuple(arm for arm, rate in rates.items() if rate in edges),
    )


def _gains(
    together: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], draws: np.ndarray
) -> dict[str, Gain]:
    drawn = {
        language: _by_draw(together[language], draws) - _by_draw(own[language], draws)
        for language in together
    }
    by_seed = {
        language: np.array(
            [_loss(t) - _loss(o) for t, o in zip(together[language], own[language], strict=True)]
        )
        for language in together
    }
    loss = {language: _loss(own[language]) for language in together}
    num_utterances = draws.shape[1]
    drawn[ALL] = np.mean(list(drawn.values()), axis=0)
    by_seed[ALL] = np.mean(list(by_seed.values()), axis=0)
    loss[ALL] = float(np.mean(list(loss.values())))
    return {
        language: Gain(
            loss=loss[language],
            gain=float(by_seed[language].mean()),
            interval=t_interval(float(by_seed[language].mean()), drawn[language], num_utterances),
            spread=float(by_seed[language].std(ddof=1)) if len(by_seed[language]) > 1 else 0.0,
        )
        for language in drawn
    }


def _loss(rows: np.ndarray) -> float:
    """Nats for each token of rows (..., 2)."""
    flat = rows.reshape(-1, 2).sum(0)
    return float(flat[0] / flat[1])


def _by_draw(rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Nats for each token (draws,) of rows (S, H, 2) whose utterances are drawn."""
    summed = rows.sum(0)[draws].sum(1)
    drawn: np.ndarray = summed[:, 0] / summed[:, 1]
    return drawn

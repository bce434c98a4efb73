"""Decoding speed and acceptance of each system of the comparison, pair by pair.

As in arXiv 2508.11189, section 4, the time of the decoder counts and not that of the encoder. Every repeat lets all
systems do a piece of work one after the other, so that a slow moment of the machine hits all of them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import NONE, Accept, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation, speculation_for, timed
from sprachbund.decoding.state import start_batch
from sprachbund.engines.choice import engine_for
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.drafts import DRAFT_FILE
from sprachbund.models.io import load
from sprachbund.research.dual_scale.options import (
    DRAFT_MODEL,
    MAIN,
    TEACHER,
    TOKEN_MAP,
    DualScaleRecipe,
    Timing,
    run_folder,
)
from sprachbund.util.devices import torch_threads
from sprachbund.util.files import read_model, write_text
from sprachbund.util.options import renamed
from sprachbund.util.progress import Report
from sprachbund.util.provenance import machine

# Systems: models with and without a draft.

_NO_DRAFT = "no draft"
BASE = f"pruned, {_NO_DRAFT}"
CHOSEN = f"{MAIN}, draft tokens chosen"
MEDUSA = "medusa"
LOSSY: tuple[Accept, ...] = ("top-2", "top-3", "unchecked")


@dataclass(frozen=True, kw_only=True)
class TimedSystem:
    """A model with or without a draft.

    Attributes:
        name: name of its row.
        seed: seed of its run.
        model: directory.
        draft: as `--draft` of `translate`.
        num_draft_tokens: draft tokens in a pass; None chooses by predicted gain.
        accept: rule of acceptance of draft tokens.
        base: name of the system that its speed is compared with: the same model without a draft, or `BASE` of one that
            has none.
    """

    name: str
    seed: int
    model: Path
    draft: str = NONE
    num_draft_tokens: int | None = None
    accept: Accept = "exact"
    base: str = BASE

    @property
    def scores(self) -> str:
        """Name of the folder with its scores, beside the model; what is exact writes the same text."""
        return "scores" if self.accept == "exact" else f"scores-{self.accept}"


def models_of(recipe: DualScaleRecipe, directory: Path) -> list[Path]:
    """Folders of the runs whose models are scored, the teacher's first."""
    return list(dict.fromkeys(system.model.parent for system in systems_of(recipe, directory)))


def systems_of(recipe: DualScaleRecipe, directory: Path) -> list[TimedSystem]:
    """All systems that are measured, the teacher first.

    Every model with a draft of its own is there without one, too: models of one shape differ in speed.
    """
    first = recipe.seeds[0]
    systems = [TimedSystem(name=TEACHER, seed=first, model=run_folder(directory, TEACHER, first) / "model")]
    for seed in recipe.seeds:
        systems += _of_main_arm(recipe, directory, seed)
        for name, options in recipe.trained_arms.items():
            if name != MAIN:
                model = run_folder(directory, name, seed) / "model"
                systems += _of_other_arm(recipe, name, options.draft, seed, model)
    return systems


def _of_main_arm(recipe: DualScaleRecipe, directory: Path, seed: int) -> list[TimedSystem]:
    count, model = recipe.timing.num_draft_tokens, run_folder(directory, MAIN, seed) / "model"
    systems = [
        TimedSystem(name=BASE, seed=seed, model=model),
        TimedSystem(name=MAIN, seed=seed, model=model, draft=MAIN, num_draft_tokens=count),
        TimedSystem(name=CHOSEN, seed=seed, model=model, draft=MAIN),
        *_lossy(recipe, MAIN, LOSSY, seed, model, BASE),
    ]
    for name in (TOKEN_MAP, DRAFT_MODEL):
        if name in recipe.arms:
            folder = run_folder(directory, name, seed) / "model"
            draft = str(folder / DRAFT_FILE if name == TOKEN_MAP else folder)
            systems.append(
                TimedSystem(name=name, seed=seed, model=model, draft=draft, num_draft_tokens=count)
            )
    return systems


def _of_other_arm(
    recipe: DualScaleRecipe, name: str, draft: str, seed: int, model: Path
) -> list[TimedSystem]:
    if draft == "none":
        return [TimedSystem(name=name, seed=seed, model=model)]
    base, count = f"{name}, {_NO_DRAFT}", recipe.timing.num_draft_tokens
    systems = [
        TimedSystem(name=base, seed=seed, model=model),
        TimedSystem(name=name, seed=seed, model=model, draft=draft, num_draft_tokens=count, base=base),
    ]
    return systems + (_lossy(recipe, MEDUSA, LOSSY[-1:], seed, model, base) if name == MEDUSA else [])


def _lossy(
    recipe: DualScaleRecipe, draft: str, ways: tuple[Accept, ...], seed: int, model: Path, base: str
) -> list[TimedSystem]:
    return [
        TimedSystem(
            name=f"{draft}, {how}",
            seed=seed,
            model=model,
            draft=draft,
            num_draft_tokens=1,
            accept=how,
            base=base,
        )
        for how in (ways if recipe.timing.accepts_lossy else ())
    ]


SPEED_FILE = "speed.json"
_FORMER_SYSTEMS = {f"{MAIN}, guesses chosen": CHOSEN}
Texts = list[tuple[int, ...]]


class SystemSpeed(BaseModel):
    """One system on one pair at one size of batch.

    Attributes:
        name: name of the system.
        seed: seed of its run.
        batch: rows at a time.
        pair: "source>target".
        ms_per_token: decoder time of each repeat, by the tokens written with their ends.
        piece_tokens: tokens of each piece of work, an utterance where the batch is one; its place is the same for every
            target language of a source.
        piece_s: decoder time of each piece in each repeat; files of earlier versions have neither.
        draft_tokens: draft tokens checked and accepted; a pair of zeros without a draft.
        predicted_gain: over the same model without a draft, by costs of rounds and what was accepted; None without one.
        changed: rows whose tokens differ from those without a draft.
        rows: rows in all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int
    batch: int
    pair: str
    ms_per_token: tuple[float, ...] = Field(min_length=1)
    piece_tokens: tuple[int, ...] = ()
    piece_s: tuple[tuple[float, ...], ...] = ()
    draft_tokens: tuple[int, int]
    predicted_gain: float | None
    changed: int
    rows: int

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        return (
            renamed(values, {"guesses": "draft_tokens"}, SPEED_FILE) if isinstance(values, dict) else values
        )

    @field_validator("name")
    @classmethod
    def _read_former_system(cls, name: str) -> str:
        return _FORMER_SYSTEMS.get(name, name)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Utterances of the test set in one source language, to be written in one target language."""

    samples: Sequence[np.ndarray]
    source: str
    target: str

    @property
    def pair(self) -> str:
        """Pair of languages as in the table."""
        return f"{self.source}>{self.target}"

    @property
    def targets(self) -> list[Target]:
        """One for each utterance."""
        return [Target(language=self.target, source=self.source)] * len(self.samples)


class _Runner:
    """A system with its model and its draft, and what it did so far."""

    def __init__(self, system: TimedSystem, family: Family) -> None:
        self.system, self.family = system, family
        self.options = DecodingOptions(
            draft=system.draft,
            num_draft_tokens=system.num_draft_tokens,
            accept=system.accept,
            timestamps=False,
        )
        self.speculations: dict[str, Speculation | None] = {}
        self.seconds: dict[str, list[list[float]]] = defaultdict(list)
        self.texts: dict[str, list[Texts]] = defaultdict(list)

    def speculation(self, pair: str) -> Speculation | None:
        """Kept for each pair, so that its draft tokens are counted apart."""
        if pair not in self.speculations:
            self.speculations[pair] = speculation_for(self.family, self.options)
        return self.speculations[pair]

    def decode(self, work: Work, memory: Memory) -> tuple[Texts, float]:
        """Tokens of every row, and seconds."""
        texts: Texts = []
        speculation = self.speculation(work.pair)

        def go() -> None:
            asked = [[target] for target in work.targets]
            rows = search(self.family, memory, asked, self.options, None, speculation)
            texts.extend(row[0].tokens for row in rows)

        return texts, timed(go, memory.states.device)

    def predicted(self, work: Work, memory: Memory) -> float | None:
        """Gain by what rounds cost here and now, and by what share of the pair's draft tokens was accepted."""
        speculation = self.speculation(work.pair)
        if speculation is None or not speculation.num_draft_tokens:
            return None
        asked = [[target] for target in work.targets]
        prompts = [self.family.prompt(target) for target in work.targets]
        rows = start_batch(self.family, memory, asked, self.options, None)
        costs = speculation.costs(self.family, memory, work.targets, rows, prompts)
        return costs.gain(speculation.acceptance, speculation.num_draft_tokens, speculation.mean_length)


class _Speeds(BaseModel):
    """The content of the file: what was timed, and on what; earlier versions did not always say this.

    Attributes:
        machine: processor, cores and memory.
        engine: engine of all systems.
        threads: threads of it.
        torch: version of torch.
        speeds: systems, pair by pair and size of batch by size of batch.
    """

    machine: dict[str, str | int] = Field(default_factory=dict)
    engine: str = ""
    threads: int | None = None
    torch: str = ""
    speeds: list[SystemSpeed]

    def of_batches(self, recipe: DualScaleRecipe, directory: Path) -> dict[int, list[SystemSpeed]]:
        """Speeds by size of batch, where the systems of the recipe, and no others, were timed together."""
        wanted = {(system.name, system.seed) for system in systems_of(recipe, directory)}
        of_batches = {b: [s for s in self.speeds if s.batch == b] for b in recipe.timing.batches}
        return {b: own for b, own in of_batches.items() if {(s.name, s.seed) for s in own} == wanted}


def is_measured(recipe: DualScaleRecipe, directory: Path) -> bool:
    """Whether the systems of the recipe, and no others, were timed together, in every size of batch.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
    """
    if not (directory / SPEED_FILE).exists():
        return False
    return [*_read(directory).of_batches(recipe, directory)] == [*recipe.timing.batches]


def measure_speed(recipe: DualScaleRecipe, directory: Path, report: Report) -> Path:
    """Time all systems on the test set; the file with the result.

    A size of batch that was timed before a run was broken off is not timed again, unless that was on something else.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        report: called with a line for every step.
    """
    timing, families, path = recipe.timing, dict[Path, Family](), directory / SPEED_FILE
    systems = systems_of(recipe, directory)
    threads = timing.threads or torch.get_num_threads()
    result = _Speeds(
        machine=machine(), engine=timing.engine, threads=threads, torch=torch.__version__, speeds=[]
    )
    of_batches: dict[int, list[SystemSpeed]] = {}
    if path.exists() and (before := _read(directory)).model_copy(update={"speeds": []}) == result:
        of_batches = before.of_batches(recipe, directory)
    for system in systems:
        if system.model not in families:
            model = load(system.model)
            families[system.model] = engine_for(model, timing.engine, threads=threads, compare=False).family
    manifest = Manifest(recipe.data / "test")
    with torch.inference_mode(), torch_threads(threads):
        for batch in timing.batches:
            if batch not in of_batches:
                runners = [_Runner(system, families[system.model]) for system in systems]
                pieces = list(works(manifest, recipe.languages, max(batch, timing.utterances), batch))
                report(f"speed: {len(systems)} systems, {len(pieces)} pieces of {batch}")
                of_batches[batch] = _time(runners, pieces, timing, batch)
            result.speeds.extend(of_batches[batch])
            write_text(path, result.model_dump_json(indent=1) + "\n")
    return path


def works(manifest: Manifest, languages: Sequence[str], utterances: int, batch: int) -> Iterator[Work]:
    """The test set in pieces: from each language so many utterances, spread evenly, into each of the others.

    Args:
        manifest: test set.
        languages: BCP-47 tags.
        utterances: utterances of each source language.
        batch: utterances in a piece of work.

    Raises:
        SprachbundError: a language without speech.
    """
    spoken = manifest.languages
    for source in languages:
        rows_of_source = np.flatnonzero(spoken == source)
        if not len(rows_of_source):
            raise SprachbundError(f"{manifest.directory} has no speech in {source}; name other data")
        chosen = rows_of_source[
            np.unique(
                np.linspace(0, len(rows_of_source) - 1, min(utterances, len(rows_of_source))).astype(int)
            )
        ]
        for begin in range(0, len(chosen), batch):
            samples = [manifest.samples(int(i)) for i in chosen[begin : begin + batch]]
            for target in languages:
                if target != source:
                    yield Work(samples=samples, source=source, target=target)


def _time(
    runners: Sequence[_Runner], pieces: Sequence[Work], timing: Timing, batch: int
) -> list[SystemSpeed]:
    """All repeats of all pieces; the first repeat warms up, and its tokens are kept."""
    memories: dict[tuple[int, int], Memory] = {}
    plain: dict[tuple[int, str], Texts] = defaultdict(list)
    predicted: dict[tuple[int, str], float | None] = {}
    for repeat in range(timing.repeats + 1):
        taken: list[dict[str, list[float]]] = [defaultdict(list) for _ in runners]
        for index, work in enumerate(pieces):
            for number, runner in enumerate(runners):
                key = (id(runner.family), index)
                if key not in memories:
                    memories[key] = runner.family.encode(runner.family.features(work.samples))
                    without = _Runner(_plain(runner.system), runner.family)
                    plain[key[0], work.pair] += without.decode(work, memories[key])[0]
                texts, seconds = runner.decode(work, memories[key])
                taken[number][work.pair].append(seconds)
                if not repeat:
                    runner.texts[work.pair].append(texts)
                elif repeat == timing.repeats:
                    predicted[number, work.pair] = runner.predicted(work, memories[key])
        for runner, seconds_of in zip(runners, taken, strict=True):
            for pair, of_pieces in seconds_of.items() if repeat else ():
                runner.seconds[pair].append(of_pieces)
    return [
        _speed(runner, pair, batch, predicted[number, pair], plain[id(runner.family), pair])
        for number, runner in enumerate(runners)
        for pair in sorted(runner.texts)
    ]


def _plain(system: TimedSystem) -> TimedSystem:
    return replace(system, draft=NONE, num_draft_tokens=None, accept="exact")


def _speed(runner: _Runner, pair: str, batch: int, predicted: float | None, plain: Texts) -> SystemSpeed:
    pieces, speculation = runner.texts[pair], runner.speculations[pair]
    texts = [text for piece in pieces for text in piece]
    piece_tokens = tuple(sum(len(text) + 1 for text in piece) for piece in pieces)
    reports = speculation.report() if speculation else ()
    return SystemSpeed(
        name=runner.system.name,
        seed=runner.system.seed,
        batch=batch,
        pair=pair,
        ms_per_token=tuple(1000 * sum(seconds) / sum(piece_tokens) for seconds in runner.seconds[pair]),
        piece_tokens=piece_tokens,
        piece_s=tuple(zip(*runner.seconds[pair], strict=True)),
        draft_tokens=(sum(r.checked for r in reports), sum(r.accepted for r in reports)),
        predicted_gain=predicted,
        changed=sum(a != b for a, b in zip(texts, plain, strict=True)),
        rows=len(texts),
    )


def _read(directory: Path) -> _Speeds:
    return read_model(directory / SPEED_FILE, _Speeds, advice="delete it, and it is measured again")


def read_speeds(directory: Path) -> list[SystemSpeed]:
    """Speeds that `measure_speed` wrote."""
    return _read(directory).speeds


def mean_ms(speeds: Sequence[SystemSpeed]) -> float:
    """Mean over pairs and seeds of the median over repeats."""
    return float(np.mean([median(speed.ms_per_token) for speed in speeds]))

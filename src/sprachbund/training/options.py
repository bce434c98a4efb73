"""Options of a training run, with learning rate and mask strength by step, and recipes as TOML files."""

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from sprachbund.errors import SprachbundError
from sprachbund.util.devices import check_device_name, is_fast_in_bf16
from sprachbund.util.files import read_toml
from sprachbund.util.options import Option, Range, check, renamed

if TYPE_CHECKING:
    import torch

Decay = Literal["linear", "cosine", "inverse_sqrt"]
_FORMER_NAMES = {"judge": "metric_for_best_model"}


def _once(values: tuple[object, ...]) -> tuple[object, ...]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} is there twice; name it once")
    return values


_Item = TypeVar("_Item")
Distinct = Annotated[tuple[_Item, ...], AfterValidator(_once)]
"""A tuple whose items differ: a seed that counts twice would make intervals too narrow."""


def _read_as_written(rates: tuple[float, ...]) -> tuple[float, ...]:
    if longer := [rate for rate in rates if float(f"{rate:g}") != rate]:
        raise ValueError(f"{longer[0]} has more than six digits; write {longer[0]:g}")
    return rates


RatesToTry = Annotated[Distinct[PositiveFloat], AfterValidator(_read_as_written)]
"""Learning rates, or factors of one, that are tried: folders and files name them by six digits at most."""


def _with_a_neighbour(more: int, info: ValidationInfo) -> int:
    rates = info.data.get("learning_rates", ())
    if more and len(rates) == 1:
        raise ValueError(f"how far beyond {rates[0]:g} is not known; name two or more learning_rates")
    return more


MoreRates = Annotated[int, Field(ge=0), AfterValidator(_with_a_neighbour)]
"""Number of rates that are tried beyond the ends of a field `learning_rates` before it, at most."""


class Strict(BaseModel):
    """Base of recipes: frozen, numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainingOptions(Strict):
    """Length, learning rates and intervals of a training.

    Attributes:
        steps: optimizer steps in all.
        optimizer: "muon" for the linear layers, and AdamW for the rest, or "adamw" for everything; see
            `make_optimizers`.
        learning_rate: highest learning rate.
        muon_ratio: ratio of Muon's learning rate to that of AdamW.
        warmup_steps: steps in which the learning rate rises linearly from 0.
        decay_share: share of the steps in which the rate falls to `final_rate`; before, it is constant, so that a
            longer run can branch off before the fall.
        decay: shape of its fall: "linear", or by half a "cosine" (arXiv 1608.03983, equation 5); or not at the end, but
            from the warm-up on, by the "inverse_sqrt" of the step (arXiv 1706.03762, equation 3), towards `final_rate`
            and whatever `decay_share`.
        final_rate: rate at the end of its fall.
        final_share: last share of the steps, which are made at `final_rate`.
        mask_fade_share: last share of the steps in which SpecAugment's masks become linearly fewer and narrower, down
            to none; 0 keeps them, 1 fades from the first step.
        weight_decay: weight decay of AdamW (arXiv 1711.05101), on matrices only.
        clip_norm: largest norm of the gradient; a larger one is scaled down to it.
        ema: decay of an exponential moving average of the trained weights, which is evaluated and kept in their place;
            0 for none.
        precision: precision of the computation: "no" for fp32, "bf16" for mixed precision on fp32 weights; "auto" is
            bf16 on devices that are faster in it, and with `frozen_bf16`, else fp32.
        frozen_bf16: keep the linear and convolutional weights and embeddings that are not trained in 16 bits; what is
            trained stays in 32. Products are in bf16, and the model is saved with these weights rounded.
        recompute: keep only the inputs of layers and run them again for their gradients (arXiv 1604.06174): much less
            memory, about a third more time.
        compile: compile each layer with torch.compile; the first steps take minutes.
        shard: divide weights, gradients and moments among the processes (FSDP2, arXiv 2304.11277); checkpoints are
            written by all of them, while the training goes on.
        batch_s: padded seconds of speech in a batch, over all processes.
        accumulate: parts that a process makes of its share of a batch, one after the other, so that activations of one
            part are held at a time; the step is the same.
        max_utterances: most utterances in a batch.
        window_shards: tar shards that are shuffled together, for all processes; each process reads its own.
        max_duration_s: longest utterance in seconds; longer ones are left out.
        num_workers: processes that make batches.
        log_every: steps between progress lines.
        wandb: whether the curves are also written for Weights & Biases: into the folder of the run, unless
            WANDB_MODE=online.
        evaluate_every: steps between evaluations on the dev data.
        save_every: steps between checkpoints to resume from.
        metric_for_best_model: number that ranks checkpoints and ends the patience: the "loss" on the dev data, or a
            "score" of which less is better, such as its word error rate, that the recipe measures.
        keep_best: number of best checkpoints that are kept, and averaged at the end.
        max_skipped: most steps in a row whose gradient is not finite; each is skipped and counted, and one more ends
            the run.
        trainable: patterns of the names of the parameters that are trained, `*` for anything; all if none.
        rates: pattern to the highest rate of the parameters it matches, in place of `learning_rate`; of several that
            match, the first counts. Warm-up and decay are those of the run.
        patience: evaluations without a better one after which the run stops; 0 never stops.
        seed: seed of weights, order, augmentation and dropout.
    """

    steps: int = Field(ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    muon_ratio: float = Field(default=2.5, gt=0)
    warmup_steps: int = Field(default=500, ge=0)
    decay_share: float = Field(default=0.3, ge=0, le=1)
    decay: Decay = "linear"
    final_rate: float = Field(default=0.0, ge=0)
    final_share: float = Field(default=0.0, ge=0, lt=1)
    mask_fade_share: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "no", "bf16"] = "auto"
    frozen_bf16: bool = False
    recompute: bool = False
    compile: bool = False
    shard: bool = False
    batch_s: float = Field(default=160.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    max_utterances: int = Field(default=128, ge=1)
    window_shards: int = Field(default=16, ge=1)
    max_duration_s: float = Field(default=20.0, gt=0)
    num_workers: int = Field(default=1, ge=0)
    log_every: int = Field(default=50, ge=1)
    wandb: bool = False
    evaluate_every: int = Field(default=500, ge=1)
    save_every: int = Field(default=500, ge=1)
    metric_for_best_model: Literal["loss", "score"] = "loss"
    keep_best: int = Field(default=3, ge=0)
    max_skipped: int = Field(default=10, ge=0)
    trainable: tuple[str, ...] = ()
    rates: dict[str, PositiveFloat] = {}
    patience: int = Field(default=0, ge=0)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        return renamed(values, _FORMER_NAMES, "training") if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.decay_share + self.final_share > 1 + 1e-9:
            raise ValueError(
                f"decay_share {self.decay_share:g} and final_share {self.final_share:g} are more than the whole run"
            )
        if self.final_rate > self.learning_rate:
            raise ValueError(f"final_rate {self.final_rate:g} is above learning_rate {self.learning_rate:g}")
        if self.frozen_bf16 and self.precision == "no":
            raise ValueError(
                'frozen_bf16 needs precision = "bf16", in which products are computed with such weights'
            )
        if self.decay == "inverse_sqrt" and self.final_share:
            raise ValueError(
                f"with decay inverse_sqrt the rate never arrives, so there is no final_share ({self.final_share:g}); "
                "leave it out"
            )
        return self

    def in_bf16(self, device: "torch.device") -> bool:
        """Whether products are computed in bf16 on a device."""
        if self.precision == "auto":
            return self.frozen_bf16 or is_fast_in_bf16(device)
        return self.precision == "bf16"

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = max(1.0, rising) ** -0.5 if self.decay == "inverse_sqrt" else self._left_of_fall(step)
        fallen = self.final_rate + (self.learning_rate - self.final_rate) * falling
        return min(self.learning_rate * min(1.0, rising), fallen)

    def _left_of_fall(self, step: int) -> float:
        """Share of the way down that is still ahead."""
        left = (1 - self.final_share) * self.steps - step
        falling = min(1.0, max(0.0, left / max(1.0, self.decay_share * self.steps)))
        return (1 - math.cos(math.pi * falling)) / 2 if self.decay == "cosine" else falling

    def mask_strength(self, step: int) -> float:
        """Share of SpecAugment's masks, in number and in width, at a step counted from 0."""
        if self.mask_fade_share == 0:
            return 1.0
        return min(1.0, max(0.0, (self.steps - step) / (self.mask_fade_share * self.steps)))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run beside its recipe.

    Attributes:
        overrides: change a value of the recipe; may be repeated.
        stop_after: stop, resumable, after so many steps in all.
        threads: threads to compute with.
        device: trains the model: cpu, cuda, cuda:1 for the second GPU, or mps; the first GPU, or the CPU where there
            is none, if not given.
        accept_changes: go on with a run whose recipe was another one.
    """

    overrides: Annotated[tuple[str, ...], Option("--set", metavar="A.B=VALUE", commas=False)] = ()
    stop_after: Annotated[int | None, Range(1), Option("--stop-after", metavar="N")] = None
    threads: Annotated[int | None, Range(1), Option("--threads", metavar="N")] = None
    device: Annotated[str | None, Option("--device", metavar="NAME")] = None
    accept_changes: Annotated[bool, Option("--accept-changes")] = False

    def __post_init__(self) -> None:
        check(self)
        if self.device is not None:
            check_device_name(self.device)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The cluster that a recipe is checked for.

    Attributes:
        check: print the memory that each GPU needs, the time, and which strategy fits; train nothing.
        gpus: GPUs of all machines together.
        gpu_memory_gib: memory of each GPU.
        gpu_tflops: operations that each GPU sustains, in 10^12 a second; 350 is a third of an H100's peak in 16 bits.
    """

    check: Annotated[bool, Option("--check")] = False
    gpus: Annotated[int, Range(1), Option("--gpus", metavar="N")] = 1
    gpu_memory_gib: Annotated[float, Range(0.001), Option("--gpu-memory", metavar="GIB")] = 80.0
    gpu_tflops: Annotated[float, Range(0, above=True), Option("--gpu-tflops", metavar="X")] = 350.0

    def __post_init__(self) -> None:
        check(self)

    @property
    def memory(self) -> int:
        """Bytes of each GPU."""
        return round(self.gpu_memory_gib * 2**30)

    @property
    def flops_per_s(self) -> float:
        """Operations that all GPUs sustain together, in a second."""
        return self.gpus * self.gpu_tflops * 1e12


# Recipes: a TOML file with overrides (`--set a.b=c`), checked whole before any work.

Recipe = TypeVar("Recipe", bound=BaseModel)


def read_recipe(model: type[Recipe], path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        model: the recipe's pydantic model.
        path: TOML file.
        overrides: "a.b=value" with a TOML value; a bare word counts as a string.

    Raises:
        SprachbundError: naming the file or override, the key, and the nearest known key.
    """
    if not path.exists():
        raise SprachbundError(f"there is no recipe {path}; check the path")
    return make_recipe(model, read_toml(path), overrides, where=f"{path}: ")


def make_recipe(
    model: type[Recipe], values: dict[str, Any], overrides: Sequence[str] = (), *, where: str = ""
) -> Recipe:
    """A recipe of plain values, changed by overrides; messages begin with `where`. Errors as above.

    Args:
        model: class of the recipe.
        values: plain values, as read from TOML.
        overrides: texts such as "training.steps=100".
        where: begins the messages.
    """
    for override in overrides:
        _override(values, override)
    check_numbers(values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SprachbundError(f"{where}{_explain(error, model)}") from error


def of_path(key: str, path: Path) -> str:
    """An override with a path, whatever stands in its name.

    Args:
        key: key in the recipe.
        path: its value.
    """
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"  # TOML has the escapes of JSON


def check_numbers(values: Any, where: str = "", key: str = "") -> None:
    """Refuse numbers that no recipe means, before a validator makes a list of so many things.

    Args:
        values: plain values, as TOML or JSON hold them.
        where: beginning of the message.
        key: key of the values in the recipe, with dots; empty for all of it.

    Raises:
        SprachbundError: a number that is not finite, is negative, or is larger than `_most` of its key.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            check_numbers(value, where, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            check_numbers(value, where, key)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        most = _most(key.rpartition(".")[2])
        if not 0 <= values <= most:
            raise SprachbundError(f"{where}{key} is {_shown(values)}; give a number from 0 to {most:g}")


def _most(name: str) -> int:
    """The largest number under a name: far above any that was ever used, far below what fills a machine's memory."""
    last = name.rpartition("_")[2]
    if last in ("seed", "seeds"):
        return 2**63 - 1
    if last in ("layers", "blocks", "heads", "workers", "masks", "lower", "upper"):
        return 10_000
    return 10_000_000 if last in ("width", "channels", "rank", "size", "bins", "dimensions") else 10**9


def check_arms(arms: Sequence[str], known: Iterable[str]) -> None:
    """Raise ValueError, as pydantic's validators do, for an arm of a comparison that is not known."""
    names = tuple(known)
    if unknown := [name for name in arms if name not in names]:
        raise ValueError(f"no arm {unknown[0]!r}; there are {'; '.join(names)}")


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign:
        raise SprachbundError(f"--set {override!r} has no '='; write it as key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError, as is a number of too many digits
        value = text
    *path, last = key.strip().split(".")
    for part in path:
        inside = values.setdefault(part, {})
        if not isinstance(inside, dict):
            raise SprachbundError(
                f"--set {override!r}: {part} is {_shown(inside)}, which has no {last}; set {part} itself"
            )
        values = inside
    values[last] = value


_PLAIN = {
    "tuple_type": "give a list, as [A, B]",
    "dict_type": "give a table of keys and values",
    "model_type": "give a table of keys and values",
    "model_attributes_type": "give a table of keys and values",
}
"""What pydantic says in words of Python, in words of TOML."""


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    faults = error.errors()
    # A key that is misspelt is missing too; the name that was written tells more than the one that was not.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        near = _near(where, _keys(model))
        return f"unknown key {where}" + (f"; did you mean {near}?" if near else "")
    if first["type"] == "missing":
        return _missing(first["loc"], model)
    value, message = first.get("input"), _PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
    # What is wrong with a part as a whole names the values itself.
    shown = "" if isinstance(value, Mapping | BaseModel) else f" (value {_shown(value)})"
    return ": ".join(filter(None, (where, message + shown)))


def _missing(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """What to add for a key that a recipe lacks."""
    where, kind = ".".join(map(str, loc)), _kind_of(loc, model)
    inner = next((one for one in (kind, *get_args(kind)) if _is_table(one)), None)
    if inner is None:
        return f"{where} is missing; add it"
    table = f"[{where}]" if inner is kind else f"[[{where}]]"
    # `models push` asks for a licence
    keys = [name for name, one in inner.model_fields.items() if one.is_required() or name == "licence"]
    return f"there is no {table}; add {table}{' with ' if keys else ''}{' and '.join(keys)}"


def _kind_of(loc: Sequence[int | str], model: type[BaseModel]) -> Any:
    """The type of a key of a recipe; None where it cannot be followed, as in a union."""
    kind: Any = model
    for part in loc:
        if not _is_table(kind) or part not in kind.model_fields:
            return None
        kind = kind.model_fields[part].annotation
    return kind


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _keys(model: type[BaseModel]) -> list[str]:
    """Every key with its tables, as "training.steps"."""
    fields: Mapping[str, Any] = model.model_fields
    keys = list(fields)
    for table, field in fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):  # a table may be left out: Table | None
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += [f"{table}.{key}" for key in _keys(kind)]
    return keys


def _near(unknown: str, keys: Sequence[str]) -> str | None:
    """The key that was meant, if one has nearly the same name: in the same table, or else the outermost one."""
    # A key of the second [[dev]] is dev.1.path here, and dev.path among the keys.
    *tables, name = (part for part in unknown.split(".") if not part.isdigit())
    table = ".".join(tables)
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    for near in difflib.get_close_matches(name, by_name, n=1):
        same = f"{table}.{near}" if table else near
        return same if same in by_name[near] else min(by_name[near], key=lambda key: key.count("."))
    return None

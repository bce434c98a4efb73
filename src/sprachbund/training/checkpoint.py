"""Checkpoints: the state that a run resumes from, and the weights that it keeps; written whole or not at all.

Weights that do not move are not written: a digest of them is, by which a run sees that it goes on from the same.
"""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, RootModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from sprachbund.data.manifest import texts_hash
from sprachbund.errors import SprachbundError, first_line, unreadable
from sprachbund.training.memory import saved_name
from sprachbund.training.parallel import MovingAverage
from sprachbund.util.begun import refuse_others
from sprachbund.util.distributed import is_first_rank, wait_for_all_ranks
from sprachbund.util.files import atomic_path, file_sha256, read_model, read_object, write_json, write_text
from sprachbund.util.options import RenamedWarning
from sprachbund.util.tensors import check_tensors, save_tensors

RECIPE_FILE = "recipe.json"
DATA_FILE = "data.json"
"""File with the hashes of the corpora that a run was begun with."""
_TOKENIZERS = "*tokenizer*"
_MADE_BEFORE = (_TOKENIZERS, "live-*")
"""What is made before the first step, anew where another recipe is to have the folder."""
_OF_A_RUN_BEGUN = ("resume.*", "best", "model")
_OF_TOKENIZERS = {"vocabulary_size", "transcript_vocabulary_size"}
"""Keys that no run can go on with otherwise."""
_FREE = {
    f"training.{name}"
    for name in (
        "num_workers",
        "log_every",
        "save_every",
        "recompute",
        "accumulate",
        "max_skipped",
        "shard",
        "wandb",
    )
}
"""Keys by which a run computes the same, up to rounding."""
_FORMER_PARTS = {"guesser.": "draft_network."}
"""Prefix of names of weights in the version before, to that of today."""


def claim_folder(
    directory: Path, recipe: BaseModel, *, data: Sequence[Path] = (), accept_changes: bool = False
) -> None:
    """Write the recipe into the folder of its run; every rank has to come here.

    Args:
        directory: directory of the run; made if it is not there.
        recipe: recipe of the run.
        data: directories of the corpora of the recipe, and files of texts.
        accept_changes: go on with a run whose recipe was another one, or whose corpora were others.

    Raises:
        SprachbundError: the folder holds a run of another recipe, or with `accept_changes` one of tokenizers of
            another size; names the keys. A corpus that has other utterances or texts than when the run began, or a
            file of texts with another content.
    """
    path = directory / RECIPE_FILE
    changed: list[str] = []
    if path.exists():
        advice = "delete it if the run there is of this recipe, or choose another --out"
        known = _flat(read_model(path, type(recipe), advice=advice))
        wanted = _flat(recipe)
        changed = [key for key in sorted({*known, *wanted} - _FREE) if known.get(key) != wanted.get(key)]
        bound = [key for key in changed if key in _OF_TOKENIZERS] if accept_changes else changed
        if has_begun(directory) and bound:
            first = bound[0]
            names = ", ".join(bound[:5]) + " …" * (len(bound) > 5)
            advice = "" if accept_changes else ", or go on with --accept-changes"
            raise SprachbundError(
                f"{directory} holds a run that differs in {names} ({first}: {known.get(first)} there, "
                f"{wanted.get(first)} now); choose another --out{advice}"
            )
    # Those at a URL have none.
    hashes = {str(path): digest for path in data if (digest := texts_hash(path))}
    of_files = {str(path): file_sha256(path) for path in data if path.is_file()}
    if has_begun(directory) and not accept_changes and (directory / DATA_FILE).exists():
        known = read_object(directory / DATA_FILE, advice="delete it if the run was begun with these corpora")
        known = of_files | known  # an earlier version wrote down corpora alone
        advice = "choose another --out, or go on with --accept-changes"
        refuse_others(directory, known, hashes | of_files, advice=advice)
    wait_for_all_ranks()  # before the first rank writes what the others compare with
    if is_first_rank():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / DATA_FILE, hashes | of_files)
        if changed and not has_begun(directory):
            _forget_beginning(directory)
        write_text(path, recipe.model_dump_json(indent=1) + "\n")


def holds_checkpoint(directory: Path) -> bool:
    """Whether a run in a folder can go on from a step."""
    return (directory / RESUME_FILE).exists() or (directory / SHARDS_FILE).exists()


def _forget_beginning(directory: Path) -> None:
    """Delete what another recipe made before its first step."""
    for path in (path for pattern in _MADE_BEFORE for path in directory.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def has_begun(directory: Path) -> bool:
    """Whether a folder holds steps of a run, which are of one recipe alone."""
    return any(any(directory.glob(pattern)) for pattern in _OF_A_RUN_BEGUN)


def _flat(recipe: BaseModel) -> dict[str, Any]:
    """The values of a recipe by their keys with dots; lists are values."""
    flat: dict[str, Any] = {}

    def enter(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                enter(inner, f"{key}.{name}" if key else name)
        else:
            flat[key] = value

    enter(recipe.model_dump(mode="json"), "")
    return flat


# The state to resume from.

RESUME_FILE = "resume.pt"
SHARDS_FILE = "resume.json"
"""Says which folder of `SHARDS` is whole."""
SHARDS = "resume"


def frozen_names(model: nn.Module) -> set[str]:
    """Names in `state_dict` of the parameters that are not trained, tied ones under all their names."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def digest_of(model: nn.Module, names: set[str] | None = None) -> str:
    """SHA-256 of weights; empty where there are none.

    Args:
        model: model that has them.
        names: names in its `state_dict`; all if None.
    """
    total, state = hashlib.sha256(), model.state_dict()
    chosen = sorted(state if names is None else names)
    if not chosen:
        return ""
    for name in chosen:
        total.update(name.encode())
        total.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_resume(directory: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; the old one stays until the new one is whole on disk.

    Raises:
        SprachbundError: it cannot be written.
    """
    path = directory / RESUME_FILE
    with (
        _naming_the_checkpoint(int(state["step"]), directory),
        atomic_path(path) as partial,
        partial.open("wb") as file,
    ):
        torch.save(_apart(dict(state)), file)


@contextmanager
def _naming_the_checkpoint(step: int, folder: Path) -> Iterator[None]:
    """Name a checkpoint that cannot be written, with advice; torch and safetensors have errors of their own."""
    try:
        yield
    except (
        CheckpointException,
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # the first is no Exception
        # torch's writer of files reports a wrong position where the system said that the disk is full.
        first: BaseException = error
        if isinstance(error, CheckpointException) and error.failures:
            first = error.failures[min(error.failures)][0]  # of the first process that failed
        while not isinstance(first, OSError) and first.__context__ is not None:
            first = first.__context__
        reason = (first.strerror if isinstance(first, OSError) else None) or next(
            reversed([line for line in str(error).splitlines() if line.strip()]), repr(error)
        )
        free_mib = shutil.disk_usage(folder).free / 2**20
        raise SprachbundError(
            f"the checkpoint of step {step} could not be written to {folder} ({reason.strip()[:200]}; {free_mib:.1f} "
            "MiB are free); make room there, and the same command goes on from the one before"
        ) from error


def _apart(value: Any) -> Any:
    """The same value without an object that is met twice, and with every text met twice.

    Pickle writes an object that it has met before as a reference. Which equal objects are one object depends on whether
    the run was resumed; the bytes of the file must not.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_apart(key): _apart(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_apart, value))
    return value


def load_resume(directory: Path) -> dict[str, Any] | None:
    """The state a run left behind, None when there is none.

    Raises:
        SprachbundError: when the file cannot be read.
    """
    path = directory / RESUME_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip raise a dozen kinds
        raise unreadable(path, error, "delete it to start anew") from error
    if not isinstance(state, dict):
        raise SprachbundError(f"cannot resume from {path} (it holds no state); delete it to start anew")
    return state


class ResumeFiles:
    """The state of a run in its folder: one file, or a folder that every process writes its shard of the weights into.

    The old state stays until the new one is whole on disk. Either form is read by any number of processes.

    Args:
        directory: directory of the run, which all processes have to see.
        model: as this process holds it.
        optimizers: optimizers of the model.
        moved: names in its `state_dict` of all that a step may change.
        is_sharded: whether processes hold shards of the weights; the folder is then written while training goes on.
    """

    def __init__(
        self,
        directory: Path,
        model: nn.Module,
        optimizers: Sequence[Any],
        moved: Sequence[str],
        *,
        is_sharded: bool,
    ) -> None:
        self._directory, self._model, self._optimizers = directory, model, list(optimizers)
        self._moved, self._is_sharded = list(moved), is_sharded
        self._group = distributed.new_group(backend="gloo") if is_sharded else None
        self._under_way: tuple[Any, dict[str, Any]] | None = None

    def save(self, state: Mapping[str, Any], average: MovingAverage | None) -> None:
        """Write the state; every process has to come here.

        Args:
            state: plain values.
            average: average of the weights, if there is one.
        """
        if not self._is_sharded:
            if is_first_rank():
                save_resume(self._directory, {**state, **self._tensors(average)})
                self._remove_shards(None)
            return
        self.finish()
        name = f"{state['step']:08d}"
        folder = self._directory / SHARDS / name
        if is_first_rank():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it wrote
        wait_for_all_ranks()
        writing = state_dict_saver.async_save(
            self._shards(average), checkpoint_id=folder, process_group=self._group, no_dist=False
        )
        self._under_way = writing, {"folder": name, **state}

    def finish(self) -> None:
        """Return once what was to be written is written; every process has to come here."""
        if self._under_way is None:
            return
        writing, state = self._under_way
        self._under_way = None
        with _naming_the_checkpoint(int(state["folder"]), self._directory / SHARDS):
            writing.result()
        wait_for_all_ranks()
        if is_first_rank():
            write_text(self._directory / SHARDS_FILE, json.dumps(state, indent=1) + "\n")
            self._remove_shards(state["folder"])
            (self._directory / RESUME_FILE).unlink(missing_ok=True)

    def load(self, average: MovingAverage | None) -> dict[str, Any] | None:
        """Bring the state back into model, optimizers and average; its plain values, None when there is no state.

        Args:
            average: average of the weights, if there is one.

        Raises:
            SprachbundError: when it cannot be read, or is of another model.
        """
        path = self._directory / SHARDS_FILE
        if (self._directory / RESUME_FILE).exists() or not path.exists():
            return self._load_file(average)
        state = read_object(path, advice=f"delete it and {self._directory / SHARDS} to start anew")
        shards, folder = self._shards(average), self._directory / SHARDS / str(state.get("folder"))
        try:
            stored = FileSystemReader(folder).read_metadata().state_dict_metadata
            names = {
                new: old for old, new in _FORMER_PARTS.items() if any(f".{old}" in key for key in stored)
            }
            asked = _renamed_parts(shards, names)
            state_dict_loader.load(
                asked,
                checkpoint_id=folder,
                process_group=self._group,
                no_dist=not distributed.is_initialized(),
            )
        except (
            Exception
        ) as error:  # CheckpointException is no Exception of torch's own, and readers raise others
            raise self._unreadable(path, error) from error
        # The tensors of the model were read in place. What a group is trained by stays that of the recipe.
        options = [
            {key: value for key, value in group.items() if key != "params"} for group in self._groups()
        ]
        set_optimizer_state_dict(
            self._model, self._optimizers, _renamed_parts(asked["optimizers"], _FORMER_PARTS)
        )
        for group, kept in zip(self._groups(), options, strict=True):
            group.update(kept)
        if names:
            _warn_of_former_parts(path)
        return state

    def _tensors(self, average: MovingAverage | None) -> dict[str, Any]:
        own = self._model.state_dict()
        tensors: dict[str, Any] = {
            "model": {name: own[name] for name in self._moved},
            "optimizers": [
                {"names": names, **optimizer.state_dict()}
                for names, optimizer in zip(self._names(), self._optimizers, strict=True)
            ],
        }
        return tensors if average is None else {**tensors, "average": average.averages}

    def _shards(self, average: MovingAverage | None) -> dict[str, Any]:
        """The tensors that `torch.distributed.checkpoint` writes, and reads into: those of this process themselves."""
        own = self._model.state_dict()
        shards: dict[str, Any] = {
            "model": {name: own[name] for name in self._moved},
            "optimizers": get_optimizer_state_dict(self._model, self._optimizers),
        }
        if average is not None:
            shards["average"] = {str(number): one for number, one in enumerate(average.averages)}
        return shards

    def _load_file(self, average: MovingAverage | None) -> dict[str, Any] | None:
        if (state := load_resume(self._directory)) is None:
            return None
        path = self._directory / RESUME_FILE
        try:
            own, stored = self._model.state_dict(), state.pop("model")
            kept = _renamed_parts(stored, _FORMER_PARTS)
            if kept.keys() != stored.keys():
                _warn_of_former_parts(path)
            if missing := sorted({*self._moved} - kept.keys()):
                raise KeyError(f"no {missing[0]}")
            for name, value in kept.items():
                own[name].copy_(_like(value, own[name]))
            for optimizer, names, moments in zip(
                self._optimizers, self._names(), state.pop("optimizers"), strict=True
            ):
                self._give_moments(optimizer, names, moments)
            kept_average = state.pop("average", None)
            if average is not None and kept_average is None:
                average.begin()  # the run had none before
            elif average is not None:
                for one, value in zip(average.averages, kept_average, strict=True):
                    one.copy_(_like(value, one))
        except (KeyError, ValueError, RuntimeError) as error:
            raise self._unreadable(path, error) from error
        return state

    def _groups(self) -> list[dict[str, Any]]:
        """Groups of parameters of all optimizers."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _names(self) -> list[list[str]]:
        """Names of the parameters of each optimizer, in its order."""
        names = {id(parameter): saved_name(name) for name, parameter in self._model.named_parameters()}
        return [
            [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
            for optimizer in self._optimizers
        ]

    @staticmethod
    def _give_moments(optimizer: Any, names: Sequence[str], moments: Mapping[str, Any]) -> None:
        """Give an optimizer the moments of its parameters, by name; its groups stay those of the recipe.

        A file of an earlier version has no names: its parameters are in the order of the optimizer. Or it has those of
        `named_parameters`, which differ in recomputed layers.

        Raises:
            KeyError: a parameter is not among those of the file.
            ValueError: the file has moments of another number of parameters.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        stored = _renamed_parts(moments.get("names", [*names]), _FORMER_PARTS)
        count = sum(len(group["params"]) for group in moments["param_groups"])
        if len(stored) != count:
            raise ValueError(f"moments of {count} parameters, and {len(stored)} are trained")
        numbers = {saved_name(name): number for number, name in enumerate(stored)}
        state: dict[int, dict[str, Any]] = {}
        for number, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
            if name not in numbers:
                raise KeyError(f"no moments of {name}")
            if (values := moments["state"].get(numbers[name])) is None:  # it never had a gradient
                continue
            state[number] = {
                key: _like(value, parameter)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in values.items()
            }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def _unreadable(self, path: Path, error: Exception) -> SprachbundError:
        return SprachbundError(
            f"cannot resume from {path} ({first_line(error)[:200]}); delete it to start anew"
        )

    def _remove_shards(self, but: str | None) -> None:
        folder = self._directory / SHARDS
        if but is None:
            (self._directory / SHARDS_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in folder.iterdir():
            if path.name != but:
                shutil.rmtree(path, ignore_errors=True)


def _renamed_parts(value: Any, names: Mapping[str, str]) -> Any:
    """The same value with other beginnings of the names in it, as keys and as values; tensors are not copied.

    Args:
        value: dictionaries, lists and what they hold.
        names: beginning to the new one.
    """
    match value:
        case dict():
            return {_renamed_parts(key, names): _renamed_parts(inner, names) for key, inner in value.items()}
        case list():
            return [_renamed_parts(inner, names) for inner in value]
        case str():
            return next(
                (new + value.removeprefix(old) for old, new in names.items() if value.startswith(old)), value
            )
        case _:
            return value


def _warn_of_former_parts(path: Path) -> None:
    if not is_first_rank():
        return
    parts = ", ".join(f"{old}* is called {new}* now" for old, new in _FORMER_PARTS.items())
    warnings.warn(
        f"{path}: {parts}; the next version no longer reads the former name", RenamedWarning, stacklevel=2
    )


def _like(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor as another one is held: on its device, and this process's shard of it."""
    if not isinstance(own, DTensor):
        return value.to(own.device)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


class _Losses(RootModel[dict[Annotated[str, Field(pattern=r"^best\.\d+\.safetensors$")], float]]):
    """File of weights to its loss."""


class BestCheckpoints:
    """The checkpoints with the lowest loss or score, as weight files named by step, with an index beside them."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep
        self._index = directory / "best.json"
        self.losses: dict[str, float] = {}
        if self._index.exists():
            advice = f"delete it and the best.*.safetensors in {directory}, and the next evaluations are kept"
            self.losses = read_model(self._index, _Losses, advice=advice).root

    def accepts(self, loss: float) -> bool:
        """Whether weights of this loss are among the best."""
        ranked = sorted([*self.losses.values(), loss])
        return self.keep > 0 and loss <= ranked[: self.keep][-1]

    def offer(self, step: int, loss: float, weights: Mapping[str, Tensor]) -> bool:
        """Keep these weights if they are among the best; says whether they were. The first rank writes them.

        Args:
            step: after which they were evaluated.
            loss: or score; less is better.
            weights: by name.
        """
        if not self.accepts(loss):
            return False
        name = f"best.{step:08d}.safetensors"
        # A run that is killed between two of these lines, and resumed, has no file too few in its index.
        if is_first_rank():
            with _naming_the_checkpoint(step, self.directory):
                save_tensors(self.directory / name, weights)
        self.losses[name] = loss
        for worse in sorted(self.losses, key=lambda n: self.losses[n])[self.keep :]:
            del self.losses[worse]
        if is_first_rank():
            write_text(self._index, json.dumps(self.losses, indent=1))
            for path in self.directory.glob("best.*.safetensors"):
                if path.name not in self.losses:
                    path.unlink(missing_ok=True)
        return True

    def average(self) -> Iterator[tuple[str, Tensor]]:
        """Name and mean of each tensor of the kept checkpoints, one after the other.

        No more than four tensors are held in 64 bits, however large the model is.

        Raises:
            SprachbundError: when none was kept, or one is damaged.
        """
        if not self.losses:
            raise SprachbundError(f"no checkpoint in {self.directory} to average; train past one evaluation")
        advice = f"delete it and {self._index}, and train on to the next evaluation"
        for name in self.losses:
            check_tensors(self.directory / name, advice=advice)
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(self.directory / name, "pt")) for name in self.losses]
            stored = [{_renamed_parts(key, _FORMER_PARTS): key for key in [*file.keys()]} for file in files]
            for name in stored[0]:
                tensors = (file.get_tensor(keys[name]) for file, keys in zip(files, stored, strict=True))
                total = sum((tensor.double() for tensor in tensors), start=torch.zeros(()))
                yield name, (total / len(files)).float()


# What a training in a folder of its own leaves there: a log while it runs, and no more than its result
# afterwards.

LOG_FILE = "log.txt"
_OF_A_RUN = (RESUME_FILE, SHARDS_FILE, SHARDS, "best", "tensorboard", "wandb")
"""Files and folders that only a resumed run needs."""


@contextmanager
def run_log(folder: Path) -> Iterator[Callable[[str], None]]:
    """Takes lines into a file of the folder, which is made: several are trained at a time, and each has its own log."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        yield lambda line: print(line, file=log, flush=True)


def forget_run(folder: Path) -> None:
    """Delete what only a run that goes on needs; its model, log and convergence stay.

    A process that is killed amid this leaves some of it, and the finished run is not resumed. So a comparison
    does it once more for all its runs when they are finished.
    """
    for name in _OF_A_RUN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

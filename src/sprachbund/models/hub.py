"""The family of a model directory, names of the Hugging Face hub, and reading models of transformers."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from torch import nn

from sprachbund.errors import SprachbundError, unreadable
from sprachbund.models import FAMILIES
from sprachbund.models.catalogue import BUNDLED, SHIPPED, aliases_like, find_checkpoint
from sprachbund.models.download import DownloadProgress, download, published_files
from sprachbund.models.drafts import DRAFT_FILES
from sprachbund.models.weights import COUNTER, check_finite, some
from sprachbund.nn.limits import Limit
from sprachbund.util.files import one_of, read_object
from sprachbund.util.processor import available_memory
from sprachbund.util.tensors import check_tensors

_Layout = TypeVar("_Layout")
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PAGE = "README.md"
"""The page of a repository; its head states the licence."""
# Other formats of the same weights lie beside these on the hub; they would double the download.
_DESCRIPTIONS = ["*.json", "*.jinja", "merges.txt", "vocab.txt", "*.model", "source.spm", "target.spm", PAGE]
OWN_FILES = [*_DESCRIPTIONS, "*.safetensors", "*.onnx", "*.npy"]
"""Files of a directory that this package wrote: drafts, parts in folders, vocabularies, units; each there once."""
_SAFETENSORS = [
    "model.safetensors",
    "model-*-of-*.safetensors",
    "adapter_model.safetensors",
    "draft*.safetensors",
]
_PICKLED = ["pytorch_model.bin", "pytorch_model-*-of-*.bin"]
_WEIGHTS = ("*.safetensors", "*.bin")


def family_of(directory: Path) -> str:
    """Name of the family of a model directory. Raises SprachbundError for one that is not known here."""
    path = directory / "config.json"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not directory.exists():
            raise SprachbundError(f"{directory} does not exist; check the path") from None
        below = sorted(config.parent for config in directory.glob("*/config.json"))
        advice = f"the model is in {one_of(below)}" if below else "check the path"
        raise SprachbundError(
            f"{directory} has no config.json, so it is not a model directory; {advice}"
        ) from None
    except (OSError, ValueError):
        pass  # the directory may not be entered; reading the file names the reason
    config = read_object(path)
    if "family" not in config and "model_type" not in config and (directory / "model.bin").is_file():
        raise SprachbundError(
            f"{directory} is in CTranslate2's form; run: sprachbund convert {directory} --out DIR"
        )
    family = _stated(config)
    if family in ("nemotron_asr_streaming", "nemotron3_5_asr"):
        raise SprachbundError(
            f"{directory} is in transformers' form; run: sprachbund convert {directory} --out DIR --language TAG"
        )
    if family == "nllb-moe":
        raise SprachbundError(
            f"{directory} is a mixture of experts (nllb-moe), which is not built here; take a dense NLLB-200, such as "
            "facebook/nllb-200-distilled-600M"
        )
    if str(family).startswith("nemo-conformer-"):
        raise SprachbundError(
            f"{directory} has graphs for onnx-asr ({family}); give the model that they were exported from"
        )
    if not isinstance(family, str) or family not in FAMILIES:
        raise SprachbundError(
            f"{path} names the family {repr(family)[:60]}; known here: {', '.join(FAMILIES)}"
        )
    return family


def stated_family(directory: Path) -> str | None:
    """The family or model type that the config.json of a directory names, known here or not; None without one."""
    config = directory / "config.json"
    if not config.is_file():
        return None
    name = _stated(read_object(config))
    return name if isinstance(name, str) else None


def _stated(config: Mapping[str, Any]) -> Any:
    """What a configuration names as its family; of transformers, as its type of model."""
    return config.get("family") or config.get("model_type")


def is_own(directory: Path) -> bool:
    """Whether a directory is in this package's own layout: config.json names the family, or is that of a cascade."""
    config = directory / "config.json"
    if not config.is_file():
        return False
    values = read_object(config)
    return "family" in values or values.get("model_type") == "cascade"


def bundled_directory(name: str = BUNDLED) -> Path:
    """Directory of a model that comes with the package.

    Args:
        name: one of `SHIPPED`.
    """
    return Path(__file__).parent / "assets" / name


def locate(
    path_or_id: str | Path, *, offline: bool = False, progress: DownloadProgress | None = None
) -> Path:
    """The directory of a model: of one in the package, or as `find`, whose arguments and errors these are."""
    if (name := str(path_or_id)) in SHIPPED:
        return bundled_directory(name)
    return find(path_or_id, offline=offline, progress=progress)


def find(
    path_or_id: str | os.PathLike[str],
    *,
    offline: bool,
    progress: DownloadProgress | None = None,
    weights: bool = True,
) -> Path:
    """The directory of a model, downloaded first when `path_or_id` names one on the hub.

    Offline, a model that was downloaded before is still found. A download that was broken off goes on where it
    stopped.

    Args:
        path_or_id: a directory, a name on the hub, or an alias of `sprachbund.models.catalogue`.
        offline: never use the network.
        progress: called with how far a download has come; without it, the hub's own library shows that.
        weights: whether weights are downloaded, beside the files that describe the model and its tokenizer.

    Raises:
        SprachbundError: no such directory, or the model cannot be had from the hub.
    """
    path = Path(path_or_id)
    # Unlike pathlib's, these raise nothing for names that are too long or lie where nobody may look.
    if os.path.isdir(path):
        return path
    name = str(path_or_id)
    if not os.path.lexists(path) and (checkpoint := find_checkpoint(name)) is not None:
        name = checkpoint.id
    if path.suffix == ".nemo" and os.path.exists(path):
        raise SprachbundError(f"{name} is a NeMo file; run: sprachbund convert {name} --out DIR")
    if path.suffix == ".pt" and os.path.exists(path):
        raise SprachbundError(
            f"{name} is a file of openai-whisper; run: sprachbund convert {name} --tokenizer DIR --out DIR"
        )
    if os.path.exists(path):
        raise SprachbundError(f"{name} is a file; give the directory it is in")
    if not _ID.fullmatch(name):
        raise SprachbundError(f"there is no directory {name}; check the path")
    if "/" not in name and (alike := aliases_like(name)):
        raise SprachbundError(
            f"there is no directory {name}, and names on the hub have an owner; nearest: {', '.join(alike)} "
            "(`sprachbund models list`)"
        )
    # What else there is to fetch, its config.json says. Small files are no progress worth showing.
    silent = None if progress is None else lambda done, total: None
    directory = download(name, _DESCRIPTIONS, offline=offline, progress=silent)
    if not offline and not _names_a_family(directory):
        _refuse_other_forms(name, published_files(name))
    if not weights:
        return directory
    if is_own(directory):
        return download(name, OWN_FILES, offline=offline, progress=progress)
    directory = download(name, _DESCRIPTIONS + _SAFETENSORS, offline=offline, progress=progress)
    if not any(directory.glob("model*.safetensors")):
        directory = download(name, _DESCRIPTIONS + _PICKLED, offline=offline, progress=progress)
    return directory


def _names_a_family(directory: Path) -> bool:
    """Whether a directory has a config.json that says what it holds."""
    config = directory / "config.json"
    return config.is_file() and not read_object(config).keys().isdisjoint(("family", "model_type"))


def _refuse_other_forms(name: str, files: Sequence[str]) -> None:
    """Raise a SprachbundError for files on the hub that hold a model in a form that is converted first.

    Args:
        name: on the hub.
        files: names of its files.
    """
    if "model.bin" in files:
        raise SprachbundError(
            f"{name} is in CTranslate2's form; run: hf download {name} --local-dir THERE, then: sprachbund convert "
            "THERE --out DIR"
        )
    if archives := [file for file in files if file.endswith(".nemo")]:
        raise SprachbundError(
            f"{name} is in NeMo's form; run: hf download {name} {archives[0]} --local-dir THERE, then: sprachbund "
            f"convert THERE/{archives[0]} --out DIR"
        )


def named_parts(directory: Path) -> list[Path]:
    """Directories of the models that a speech LLM is made of, where its config.json names them and holds none.

    Args:
        directory: directory of a model of any family; others name no parts.

    Raises:
        SprachbundError: a part is not on this machine.
    """
    path = directory / "config.json"
    values = read_object(path) if path.is_file() else {}
    if values.get("family") != "speech_llm":
        return []
    named = (values.get("llm"), values["encoder"].get("source"))
    return [find(name, offline=True) for name in named if name is not None]


# Reading with transformers, without its progress bars and warnings.

NO_CODE: Mapping[str, Any] = {"trust_remote_code": False}
"""For its classes that choose another by config.json: else they ask on the terminal whether to run a model's code."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside; as before behind it."""
    from transformers.utils import logging as transformers_logging

    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


# Model directories of transformers, read with its classes and checked.
#
# transformers draws what a checkpoint lacks and drops what it has too much, with no more than a warning.
# Here both are errors, and so are sizes that nobody could hold, before anything is built of them.

_SIZES: tuple[tuple[str, Limit], ...] = (
    (r"\w*layers|n_layer", Limit(0, 512)),
    (r"\w*heads|n_head", Limit(0, 4096)),
    (
        r"\w*(hidden_size|d_model|n_embd|embed_dim|head_dim|input_dim|ffn_dim|intermediate_size)",
        Limit(0, 2**20),
    ),
    (r"\w*vocab_size", Limit(0, 2**22)),
    (r"\w*source_positions", Limit(0, 65_536)),  # tables of them are computed, whatever the weights hold
    (r"max_position_embeddings|max_target_positions|n_positions", Limit(0, 2**27)),
)
"""Names in config.json, and what they may be."""
_FLOATING = ("F64", "F32", "F16", "BF16")
_ANYTHING = Limit(-(2**53), 2**53)
_SPARE = 2**24
"""Weights that a checkpoint may lack on purpose, such as what hides frames in training."""
_MOST_BUFFERS = 2**28


CONFIG_KEY = "sprachbund"
"""Our own key of a config.json in transformers' layout; transformers carries it along untouched."""
Token = Annotated[int, Field(strict=True, ge=0)]
"""Id of a token."""


class ConfigPart(BaseModel):
    """A part of a JSON file in transformers' layout, as far as something is computed with it."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_TAG = re.compile(r"[<\[].*[>\]]")


def is_markup(token: Any) -> bool:
    """Whether a token that was added to a vocabulary is no text: a special one, or a tag such as <think>.

    Others are words, or white space as in Gemma's.

    Args:
        token: `tokenizers.AddedToken`.
    """
    return bool(token.special) or _TAG.fullmatch(token.content) is not None


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn what transformers and the libraries below it raise over files into one line; none says what it raises."""
    try:
        yield
    except (SprachbundError, ImportError):  # a package that is missing is no fault of the files
        raise
    except BaseException as error:
        # Panics of libraries in Rust, such as tokenizers, are no `Exception`, and their class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise unreadable(path, error, "copy it again") from error


def optional_setting(settings: Any, name: str) -> Any:
    """A value that some configurations and tokenizers of transformers have; None where it is not there.

    Their classes declare no common type, and which attributes they have differs from one model type to the next. This
    is the one function where that is looked up by name. Modules are not: see `layout_of`.
    """
    return getattr(settings, name, None)


def layout_of(layouts: Mapping[str, _Layout], model_type: str, what: str) -> _Layout:
    """Return the names of the modules of a model of transformers, from a table of the types that are known.

    Args:
        layouts: by model type.
        model_type: as in config.json.
        what: kind of the model, for the error.

    Raises:
        SprachbundError: a type that the table does not have.
    """
    if model_type not in layouts:
        raise SprachbundError(
            f"{what} of type {model_type!r} is not known here; take one of {', '.join(sorted(layouts))}"
        )
    return layouts[model_type]


def check_config(path: Path, limits: Mapping[str, Limit] | None = None) -> dict[str, Any]:
    """The values of a config.json of transformers.

    Args:
        path: path of the file.
        limits: limits of numbers at its top that a family computes with, by name.

    Raises:
        SprachbundError: no JSON object, or a number that is out of all bounds.
    """
    values = read_object(path)
    left: list[tuple[str, Any]] = [("", values)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{name}.{key}" if name else str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(name, inner) for inner in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise SprachbundError(f"{path}: {name} is {value}, which is no finite number; copy it again")
        else:
            _check_size(name, value, path)
    for name, limit in (limits or {}).items():
        if name in values and not limit.holds(values[name]):
            raise SprachbundError(f"{path}: {name} is {repr(values[name])[:60]}, not {limit}; copy it again")
    return values


def read_files(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Contents of those files of a model that are there: they are carried along, and written again with the model."""
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def extractor_settings(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each file that describes the feature extractor of a directory, and its settings of it.

    Raises:
        SprachbundError: a file that is broken.
    """
    for name, part in (("processor_config.json", "feature_extractor"), ("preprocessor_config.json", None)):
        path = directory / name
        if not path.is_file():
            continue
        settings = read_object(path)
        settings = settings.get(part, {}) if part else settings
        if not isinstance(settings, dict):
            raise SprachbundError(f"{path}: {part} is {repr(settings)[:60]}, not an object; copy it again")
        yield path, settings


def read_model(
    kind: Any,
    directory: Path,
    config: Any,
    *,
    build: Callable[[Any], nn.Module],
    surplus: Sequence[str],
    lacking: Sequence[str] = (),
    parts: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """A model of transformers with all its weights, mapped from safetensors where these have the precision wanted.

    Args:
        kind: class whose `from_pretrained` reads it.
        directory: directory in the Hugging Face layout.
        config: its configuration, in transformers' class; its file passed `check_config`.
        build: makes the model without weights, to see its size.
        surplus: regular expressions of weights that a checkpoint may have and this model has no use for.
        lacking: names of weights that it may lack, since they are used in training alone.
        parts: beginnings of names to what to say where weights so named are missing.
        options: options of `from_pretrained`.

    Raises:
        SprachbundError: weights are missing, too many, damaged, not finite, or far fewer than asked for, or need more
            memory than there is.
    """
    dtype: torch.dtype = options.get("dtype", torch.float32)
    for path in sorted(directory.glob("*.safetensors")):
        if path.match(DRAFT_FILES):  # read by itself
            continue
        check_tensors(path)
        if optional_setting(config, "quantization_config") is None:
            _check_types(path, surplus)
    with one_line(directory), quiet_transformers():
        num_weights = _check_fits(config, build, directory)
        check_memory(num_weights * dtype.itemsize, directory)
        model, report = kind.from_pretrained(
            directory, config=config, local_files_only=True, output_loading_info=True, **options
        )
    if missing := _others(report["missing_keys"], lacking):
        what = f"{len(missing)} tensors that config.json asks for, such as {missing[0]}; copy it again"
        for begin, said in (parts or {}).items():
            if any(name.startswith(begin) for name in missing):
                what = f"{said} ({len(missing)} tensors are missing, such as {missing[0]})"
        raise SprachbundError(f"{directory} lacks {what}")
    if unknown := _others(report["unexpected_keys"], surplus):
        raise SprachbundError(
            f"{directory} holds {len(unknown)} tensors that config.json has no place for ({some(unknown)}); "
            "copy it again"
        )
    files = [path for pattern in _WEIGHTS for path in sorted(directory.glob(pattern))]
    check_finite(model.state_dict(), directory, files)
    return model


GENERATION = "generation_config.json"


def read_generation(directory: Path) -> Any:
    """The settings of generation of a directory, None without their file.

    transformers itself drops what it does not know, such as language codes, from a file that says it was made from the
    model's configuration.
    """
    from transformers import GenerationConfig

    path = directory / GENERATION
    if not path.is_file():
        return None
    values = check_config(path)
    with one_line(path):
        return GenerationConfig.from_dict({**values, "_from_model_config": False})


def _check_types(path: Path, surplus: Sequence[str]) -> None:
    """See that weights are stored as floating-point numbers: transformers reads others as such without a warning."""
    with safe_open(path, "pt") as file:
        for name in _others(list(file.keys()), (*surplus, rf"{COUNTER}$", r"position_ids$")):
            if (kind := file.get_slice(name).get_dtype()) not in _FLOATING:
                raise SprachbundError(
                    f"{path}: {name} is of the type {kind}, which no weight has; copy it again"
                )


def _check_size(name: str, value: object, path: Path) -> None:
    last = name.rpartition(".")[2]
    limit = next((limit for pattern, limit in _SIZES if re.fullmatch(pattern, last)), None)
    if limit is None:
        wrong = isinstance(value, int) and not _ANYTHING.holds(int(value))
        limit = _ANYTHING
    else:
        wrong = value is not None and not limit.holds(value)
    if wrong:
        raise SprachbundError(f"{path}: {name} is {repr(value)[:60]}, not {limit}; copy it again")


def check_memory(num_bytes: int, *models: Path | str) -> None:
    """Check that weights of so many bytes fit into memory: the system kills a process that takes too much.

    Args:
        num_bytes: bytes of all of them.
        models: directories that they lie in, or names.

    Raises:
        SprachbundError: less is free.
    """
    free = available_memory()
    if free is not None and num_bytes > free:
        raise SprachbundError(
            f"the weights of {' and '.join(map(str, models))} need {num_bytes / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free; end other programs, or take a smaller model"
        )


def bytes_of_weights(directory: Path) -> int:
    """The least memory that the weights of a model directory take, by the sizes of its files.

    Where they lie in one file, and in other forms beside it, as in many repositories, the one file counts.
    """
    total = 0
    for folder in (directory, *(path for path in directory.iterdir() if path.is_dir())):
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file()}
        total += sizes.get("model.safetensors", sum(sizes.values()))
    return total


def _check_fits(config: Any, build: Callable[[Any], nn.Module], directory: Path) -> int:
    """See that a configuration asks for no more than the files can hold, before memory is taken for it.

    Returns:
        The number of weights.
    """
    stored = sum(p.stat().st_size for pattern in _WEIGHTS for p in directory.glob(pattern))
    with torch.device("meta"):
        model = build(config)
    wanted = sum(p.numel() for p in model.parameters())
    computed = sum(b.numel() for b in model.buffers())
    if wanted > stored + _SPARE or computed > stored + _MOST_BUFFERS:  # a weight takes a byte at least
        raise SprachbundError(
            f"{directory / 'config.json'} asks for {wanted + computed} weights and its files have {stored} bytes; "
            "they do not belong together, copy the model again"
        )
    return wanted


def _others(names: Sequence[str], known: Sequence[str]) -> list[str]:
    return sorted(name for name in names if not any(re.search(pattern, name) for pattern in known))

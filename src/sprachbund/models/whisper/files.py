"""The files beside the weights of a checkpoint: configuration, tokenizer, feature extractor and others."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import one_line
from sprachbund.util.files import parse_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
FEATURE_EXTRACTOR = "preprocessor_config.json"
_SLOW_TOKENIZER = ("vocab.json", "merges.txt")
_KEPT = (
    TOKENIZER,
    *_SLOW_TOKENIZER,
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "normalizer.json",
    FEATURE_EXTRACTOR,
    "processor_config.json",
    "card.json",
)


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """The files beside the weights, kept so that saving a model writes all of them again.

    Attributes:
        config: content of `config.json`.
        generation: content of `generation_config.json`; empty if there was none.
        files: the other files (tokenizer, feature extractor, card) by name.
    """

    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "CheckpointFiles":
        """Read them from a model directory.

        Raises:
            SprachbundError: there is no `config.json`, or a file cannot be read.
        """
        try:
            config = (directory / CONFIG).read_bytes()
            generation = _read_if_there(directory / GENERATION)
            files = {name: content for name in _KEPT if (content := _read_if_there(directory / name))}
        except FileNotFoundError:
            raise SprachbundError(f"{directory} has no {CONFIG}; it is not a model directory") from None
        except OSError as error:
            raise SprachbundError(f"{error.filename} cannot be read ({error.strerror}); mend that") from error
        files_read = cls(
            config=_parse(config, directory / CONFIG),
            generation=_parse(b"{}" if generation is None else generation, directory / GENERATION),
            files=files,
        )
        _check_generation(files_read.config, directory / CONFIG)
        _check_generation(files_read.generation, directory / GENERATION)
        return files_read

    def listed_tokens(self, key: str) -> list[int]:
        """A list of tokens in the generation settings; older checkpoints keep them in `config.json`."""
        source = self.generation if key in self.generation else self.config
        return list(source.get(key) or [])


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory: `tokenizer.json`, or the older pair of vocabulary and merges.

    Raises:
        SprachbundError: neither is there, or it cannot be read.
    """
    if (directory / TOKENIZER).is_file():
        with one_line(directory / TOKENIZER):
            return Tokenizer.from_file(str(directory / TOKENIZER))
    if not all((directory / name).is_file() for name in _SLOW_TOKENIZER):
        raise SprachbundError(
            f"{directory} has no tokenizer: neither {TOKENIZER} nor {' and '.join(_SLOW_TOKENIZER)}; add one"
        )
    from transformers import WhisperTokenizer  # slow to import, and rarely needed

    with one_line(directory / _SLOW_TOKENIZER[0]):
        return WhisperTokenizer.from_pretrained(str(directory), local_files_only=True).backend_tokenizer


def _read_if_there(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    parsed = parse_json(content, str(path), advice="restore it")
    if not isinstance(parsed, dict):
        raise SprachbundError(f"{path} holds no JSON object; restore it")
    return parsed


def _check_generation(values: dict[str, Any], path: Path) -> None:
    """See that settings of generation that are used are what they should be."""
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        if not (values.get(key) is None or _are_tokens(values[key])):
            raise _unusable(path, key, values[key], "a list of tokens")
    heads = values.get("alignment_heads")
    if heads is not None and not (
        isinstance(heads, list) and all(_are_tokens(pair) and len(pair) == 2 for pair in heads)
    ):
        raise _unusable(path, "alignment_heads", heads, "a list of layers with their heads")
    if not isinstance(values.get("is_multilingual"), bool | None):
        raise _unusable(path, "is_multilingual", values["is_multilingual"], "true or false")


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and abs(item) < 2**31 for item in value)


def _unusable(path: Path, key: str, value: object, wanted: str) -> SprachbundError:
    return SprachbundError(f"{path}: {key} is {repr(value)[:60]}, not {wanted}; restore it")

"""The files beside the weights of a checkpoint: configuration, tokenizer, feature extractor and others."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sprachbund.errors import SprachbundError

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
class Companions:
    """What lies beside the weights, kept so that saving a model gives all of it back.

    Attributes:
        config: content of `config.json`.
        generation: content of `generation_config.json`; empty if there was none.
        files: the other files (tokenizer, feature extractor, card) by name.
    """

    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Companions":
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
        return cls(
            config=_parse(config, directory / CONFIG),
            generation=_parse(generation or b"{}", directory / GENERATION),
            files=files,
        )

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
        try:
            return Tokenizer.from_file(str(directory / TOKENIZER))
        except Exception as error:  # the library raises bare Exception
            raise SprachbundError(f"{directory / TOKENIZER} cannot be read ({error}); restore it") from error
    if not all((directory / name).is_file() for name in _SLOW_TOKENIZER):
        raise SprachbundError(
            f"{directory} has no tokenizer: neither {TOKENIZER} nor {' and '.join(_SLOW_TOKENIZER)}; add one"
        )
    from transformers import WhisperTokenizer  # slow to import, and rarely needed

    try:
        return WhisperTokenizer.from_pretrained(str(directory), local_files_only=True).backend_tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise SprachbundError(f"the tokenizer files of {directory} cannot be read ({error})") from error


def _read_if_there(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise SprachbundError(f"{path} is not JSON ({error}); restore it") from error
    if not isinstance(parsed, dict):
        raise SprachbundError(f"{path} holds no JSON object; restore it")
    return parsed

"""Drafts of every kind, and `load_draft`, which loads one by its name."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from sprachbund.decoding.drafts.base import Draft
from sprachbund.decoding.drafts.listed import SUFFIX, TextDraft
from sprachbund.decoding.drafts.model import ModelDraft
from sprachbund.decoding.drafts.network import MedusaDraft, NetworkDraft, ParasiteDraft
from sprachbund.decoding.drafts.token_map import TokenMapDraft
from sprachbund.decoding.options import AUTO, NONE
from sprachbund.engines.choice import on_same_engine
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.drafts import read_card
from sprachbund.models.io import load as load_family
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import Parasite

KINDS: dict[str, Callable[[Path], Draft]] = {
    "parasite": ParasiteDraft.load,
    "medusa": MedusaDraft.load,
    "token-map": TokenMapDraft.load,
}
"""Kind in a draft's file to what reads it."""


def draft_around(network: nn.Module, decoder: TextDecoder, **known: Any) -> NetworkDraft:
    """The draft that a parasite or Medusa heads are, made for this decoder; `known` are fields of its card."""
    kind = ParasiteDraft if isinstance(network, Parasite) else MedusaDraft
    return kind.around(network, decoder, **known)


def load_draft(family: Family, name: str) -> Draft:
    """The draft of that name, checked to fit the family.

    Args:
        family: the model that it drafts for.
        name: name of a draft in the model's directory, path of a draft's file or of a text (.txt) in the languages
            wanted, or directory of a smaller model, to which "+" and a text's path may be added.

    Raises:
        SprachbundError: there is no such draft, or it belongs to another model.
    """
    path = family.drafts.get(name, Path(name))
    directory, text = _directory_and_text(name)
    draft: Draft
    if path.is_file() and path.suffix == SUFFIX:
        draft = TextDraft.read(family, path)
    elif path.is_file():
        draft = _read(path)
    elif path.is_dir():
        draft = _smaller_model(family, path, None)
    elif text is not None and Path(directory).is_dir():
        draft = _smaller_model(family, Path(directory), Path(text))
    else:
        raise SprachbundError(_no_such(family, name))
    draft.check(family)
    return draft


def _directory_and_text(name: str) -> tuple[str, str | None]:
    """Directory of a smaller model, and the text that "+" adds to it, if any."""
    directory, _, text = name.rpartition("+")
    return (directory, text) if directory and text.endswith(SUFFIX) else (name, None)


def _smaller_model(family: Family, directory: Path, text: Path | None) -> ModelDraft:
    """A model on the engine of the family; it chooses among the tokens of the text, where there is one."""
    if text is not None and not text.is_file():
        raise SprachbundError(f"{text} is not there; give a text in the languages wanted, or leave it out")
    smaller = on_same_engine(family, load_family(directory, offline=True), directory)
    return ModelDraft(smaller, listed=None if text is None else TextDraft.read(family, text).tokens)


def _read(path: Path) -> Draft:
    kind = read_card(path).kind
    if kind not in KINDS:
        raise SprachbundError(f"{path} holds a draft of the kind {kind!r}; known here: {', '.join(KINDS)}")
    return KINDS[kind](path)


def _no_such(family: Family, name: str) -> str:
    path, text = _directory_and_text(name)
    names = list(family.drafts)
    if text is not None or {"/", os.sep} & set(name) or Path(name).suffix in (SUFFIX, ".safetensors"):
        what = f"nothing is at {path!r}; check the path of the draft, or give "
    elif names:
        what = f"there is no draft {name!r}; give "
    else:
        what = f"there is no draft {name!r}, and the model {family.name} has none of its own; give "
    near = difflib.get_close_matches(name, [AUTO, NONE, *names], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"{what}{', '.join([AUTO, NONE, *names])}, a draft's file, a text in the languages wanted (TEXT{SUFFIX}), or "
        f"the directory of a smaller model, alone or as DIR+TEXT{SUFFIX}{hint}"
    )

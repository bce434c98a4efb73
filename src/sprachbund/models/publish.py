"""A model directory as a repository of the Hugging Face hub, with a page made of its card.

Only files that `sprachbund.models.hub.find` fetches are sent, none of them a pickle. A directory in transformers'
layout stays one that transformers reads; the page says which library the model is for.
"""

from pathlib import Path
from typing import Any

import yaml

from sprachbund.errors import SprachbundError, first_line
from sprachbund.models.card import Card
from sprachbund.models.hub import OWN_FILES, PAGE, family_of, is_own

_LICENCES = (
    *(
        "apache-2.0",
        "mit",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
    ),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "openrail"),
)
"""Names that the hub knows; it shows others by their own."""


def page_of(directory: Path, name: str) -> str:
    """The page of a repository: the metadata that the hub reads, and the model's card as text.

    Args:
        directory: directory of the model.
        name: name of the repository.

    Raises:
        SprachbundError: it holds no model, or its card has no licence.
    """
    family, card = family_of(directory), Card.read(directory)
    if card is None or not card.licence:
        raise SprachbundError(
            f"{directory} has no card with a licence, which a page needs; write card.json with name and licence"
        )
    languages = sorted({*card.source_languages, *card.target_languages})
    translates = set(card.target_languages) != set(card.source_languages) or len(card.target_languages) > 1
    head: dict[str, Any] = {
        "library_name": "sprachbund" if is_own(directory) else "transformers",
        **_licence(card.licence),
        "language": languages,
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["speech-translation", family] if translates else [family],
    }
    lines = [f"# {card.name}", "", card.description or f"A speech model of the family {family}.", ""]
    lines += [f"Speech: {', '.join(card.source_languages)}. Text: {', '.join(card.target_languages)}.", ""]
    lines += ["```console", f"$ sprachbund translate talk.wav --to {_target(card)} --model {name}", "```", ""]
    for title, entries in (("Limits", card.limits), ("Data", list(map(_data, card.data)))):
        if entries:
            lines += [f"## {title}", "", *(f"- {entry}" for entry in entries), ""]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n" + "\n".join(lines)


def page_to_send(directory: Path, name: str) -> str:
    """The page in the directory of a model as it is, or else `page_of`, whose arguments and errors these are."""
    page = directory / PAGE
    return page.read_text(encoding="utf-8") if page.is_file() else page_of(directory, name)


def files_of(directory: Path) -> list[Path]:
    """The files of a model that are sent, beside its page. Raises SprachbundError when it holds no model."""
    family_of(directory)
    files = {path for pattern in OWN_FILES for path in directory.rglob(pattern) if path.is_file()}
    return sorted(files - {directory / PAGE})


def push(directory: Path, name: str, *, private: bool, message: str) -> str:
    """Send a model to the hub; the address of its page.

    The repository is made if it is missing. A page that lies in the directory is sent as it is.

    Args:
        directory: directory of the model.
        name: owner/name.
        private: whether a new repository is for its owner alone.
        message: message of the commit.

    Raises:
        SprachbundError: no model, no licence, no right to write there, or no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    content = page_to_send(directory, name)
    operations = [
        CommitOperationAdd(path.relative_to(directory).as_posix(), str(path)) for path in files_of(directory)
    ]
    operations.append(CommitOperationAdd(PAGE, content.encode()))
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.create_commit(name, operations, commit_message=message)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise SprachbundError(
            f"{name} was not sent ({first_line(error)}); `hf auth login` gives the right to write, and the same "
            "command tries again"
        ) from error
    except Exception as error:
        # A broken connection raises an error of the HTTP library below, and which one that is depends on the version.
        raise SprachbundError(
            f"{name} was not sent, the hub cannot be reached ({first_line(error)}); check the network, and the same "
            "command tries again"
        ) from error
    return str(done.repo_url)


def _licence(name: str) -> dict[str, str]:
    known = name.lower() in _LICENCES
    return {"license": name.lower()} if known else {"license": "other", "license_name": name}


def _target(card: Card) -> str:
    others = [tag for tag in card.target_languages if tag not in card.source_languages[:1]]
    return next(iter(others or card.target_languages), "en")


def _data(entry: dict[str, Any]) -> str:
    return ", ".join(
        _said(value) if key == "name" else f"{key}: {_said(value)}" for key, value in entry.items() if value
    )


def _said(value: Any) -> str:
    return (
        "; ".join(f"{key}: {inner}" for key, inner in value.items())
        if isinstance(value, dict)
        else str(value)
    )

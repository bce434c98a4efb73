"""Licences of weights: where they are stated, and what a user is told."""

import shutil
from pathlib import Path

import pytest

from sprachbund.api import load
from sprachbund.cli import main
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.hub import bundled_directory
from sprachbund.models.licence import licences
from tests.stories.support import speech, write_wav


def said(*arguments: str | Path) -> str:
    return " and ".join(map(str, licences(*arguments)))


def model_with(tmp_path: Path, licence: str) -> Path:
    """The bundled model under another licence."""
    directory = tmp_path / "model"
    shutil.copytree(bundled_directory(), directory)
    card = Card.read(directory)
    assert card is not None
    card.model_copy(update={"licence": licence}).write(directory)
    return directory


def page(tmp_path: Path, head: str) -> Path:
    """A repository with a page and no card."""
    directory = tmp_path / "repository"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "whisper"}')
    (directory / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    return directory


def test_the_card_says_it() -> None:
    assert said("bundled") == "CC-BY-SA-3.0"


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-NC-4.0", "CC-BY-NC-4.0, no commercial use"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0, no commercial use"),
        ("Some Non-Commercial License", "Some Non-Commercial License, no commercial use"),
        ("Model Research License", "Model Research License, no commercial use"),
        ("Apache-2.0", "Apache-2.0"),
        ("", "not stated; see where it came from"),
    ],
)
def test_what_forbids_commerce_is_said(tmp_path: Path, licence: str, expected: str) -> None:
    assert said(model_with(tmp_path, licence)) == expected


def test_the_catalogue_says_it_of_a_model_that_is_not_here() -> None:
    assert (
        said("nllb-200-600m") == said("facebook/nllb-200-distilled-600M") == "CC BY-NC 4.0, no commercial use"
    )
    assert said("openai/whisper-nowhere") == "not stated; see where it came from"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("license: mit", "mit"),
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0, no commercial use"),
        ("license: other\nlicense_name: qwen-research", "qwen-research, no commercial use"),
        ("license:\n- mit\n- apache-2.0", "mit, apache-2.0"),
        ("language: de", "not stated; see where it came from"),
        ("license: [mit", "not stated; see where it came from"),
    ],
)
def test_the_page_of_a_repository_says_it(tmp_path: Path, head: str, expected: str) -> None:
    assert said(page(tmp_path, head)) == expected


def test_both_halves_of_a_cascade_say_theirs(tmp_path: Path) -> None:
    whole = tmp_path / "cascade"
    whole.mkdir()
    (whole / "config.json").write_text(
        '{"model_type": "cascade", "recogniser": "bundled", "translator": "nllb-200-600m"}'
    )
    assert (
        said(whole) == said("bundled", "nllb-200-600m") == "CC-BY-SA-3.0 and CC BY-NC 4.0, no commercial use"
    )


def test_a_broken_card_is_an_error(tmp_path: Path) -> None:
    directory = model_with(tmp_path, "MIT")
    (directory / "card.json").write_text("{")
    with pytest.raises(SprachbundError, match=r"card\.json"):
        licences(directory)


def test_a_loaded_model_has_it_and_the_command_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = model_with(tmp_path, "CC-BY-NC-4.0")
    [licence] = load(directory, engine="torch").licences
    assert (licence.name, licence.commercial) == ("CC-BY-NC-4.0", False)
    write_wav(tmp_path / "talk.wav", speech())
    command = ["translate", str(tmp_path / "talk.wav"), "--to", "de", "--engine", "torch"]
    assert main([*command, "--model", str(directory)]) == 0
    note = f"note: weights of {directory}: licence CC-BY-NC-4.0, no commercial use"
    assert note in capsys.readouterr().err
    assert main(command) == 0
    assert "licence" not in capsys.readouterr().err
    assert main(["models", "show", str(directory)]) == 0
    assert "CC-BY-NC-4.0, no commercial use" in capsys.readouterr().out

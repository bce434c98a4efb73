"""`router` draws where a model sends speech, of a recording and of a corpus, and names what cannot be drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from sprachbund.cli import main
from sprachbund.data.manifest import ManifestWriter
from sprachbund.evaluation.figures import LabelledSpan, RouterPicture, draw_router
from sprachbund.models.speech_llm import save
from tests.models.speech_llm_support import make_model, speech
from tests.stories.support import speech as spoken
from tests.stories.support import write_wav

SPANS = [
    {"language": "es", "start_s": 0.0, "end_s": 0.7, "text": "la torre mide"},
    {"language": "en", "start_s": 0.8, "end_s": 1.5, "text": "two metres"},
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router")
    save(make_model(), folder / "model")
    write_wav(folder / "talk.wav", spoken())
    with ManifestWriter(folder / "corpus") as writer:
        for name, custom in (("mixed", {"spans": SPANS}), ("plain", {})):
            writer.add(
                speech(1.5)[0], text="la torre", language="es", speaker="", utterance_id=name, custom=custom
            )
    return folder


def image(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))


def test_an_utterance_of_a_corpus(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = here / "pictures" / "mixed.png"
    command = ["router", str(here / "corpus"), "--model", str(here / "model"), "--out", str(out)]
    assert main([*command, "--utterance", "mixed", "--languages", "es,zh", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["picture"] == str(out)
    assert result["spans"][0]["start_s"] == 0
    assert result["spans"][-1]["end_s"] == pytest.approx(1.5)
    assert {span["language"] for span in result["spans"]} <= {"es", "zh"}
    pixels = image(out)
    assert pixels.shape[1] == 1500
    assert pixels.std() > 0.05
    assert main([*command, "--utterance", "plain"]) == 0
    assert "heard" in capsys.readouterr().out


def test_a_recording_has_the_models_own_words_under_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "router",
        str(here / "talk.wav"),
        "--model",
        str(here / "model"),
        "--out",
        str(here / "talk.svg"),
    ]
    assert main([*command, "--to", "en"]) == 0
    assert "<svg" in (here / "talk.svg").read_text()
    assert str(here / "talk.svg") in capsys.readouterr().err


def test_the_picture_shows_the_mass(tmp_path: Path) -> None:
    """Frames that go to the first group alone are dark above and light below, and the others the other way round."""
    mass = np.zeros((10, 2), np.float32)
    mass[:5, 0] = mass[5:, 1] = 1
    picture = RouterPicture(
        mass=mass,
        groups=("es", "en"),
        frame_s=0.1,
        duration_s=1.0,
        heard=[LabelledSpan(start_s=0, end_s=1, language="es")],
        texts=[LabelledSpan(start_s=0, end_s=1, language="es", text="a")],
    )
    draw_router(picture, tmp_path / "a.png")
    pixels = image(tmp_path / "a.png")[..., :3].mean(-1)
    left, right = pixels[:, 250:550].mean(1), pixels[:, 1000:1300].mean(1)
    rows = np.flatnonzero(np.abs(left - right) > 0.3)
    signs = np.sign(left - right)[rows]
    assert signs[0] < 0 < signs[-1]
    assert np.count_nonzero(np.diff(signs)) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["corpus"], "is a corpus; name one of its 2 with --utterance, as mixed"),
        (["corpus", "--utterance", "x"], "has no utterance 'x'"),
        (["talk.wav", "--utterance", "x"], "is of a corpus, and"),
        (["talk.wav", "--out", "a.txt"], "--out a.txt is no picture; end it with .png"),
        (["talk.wav", "--languages", "fr"], "the language 'fr' has no group of experts"),
        (["talk.wav", "--model", "bundled"], "which has no experts by language; name a speech LLM"),
        (["none.wav"], "none.wav"),
    ],
)
def test_bad_input(changes: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, *options = changes
    command = [
        "router",
        str(here / file),
        "--model",
        str(here / "model"),
        "--out",
        str(here / "b.png"),
        *options,
    ]
    assert main(command) != 0
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert said in errors[0]

"""`data make telephone` on a made-up package tree: tones for words, all else as with the real packages."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sprachbund.corpora.asterisk.packages import SPEAKERS
from sprachbund.data.manifest import Manifest, Utterance
from tests.corpora.asterisk_tree import write_tree
from tests.stories.support import Ran, command

NUMBERS = {
    "en": [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ],
    "es": [
        "cero",
        "uno",
        "dos",
        "tres",
        "cuatro",
        "cinco",
        "seis",
        "siete",
        "ocho",
        "nueve",
        "diez",
        "once",
        "doce",
    ],
}
WORDING = {"en": "please press the key", "es": "por favor pulse la tecla"}
NAMES = [f"{a}{b}" for a in "bdfgkl" for b in ("an", "en", "on", "ul", "im", "ar", "os")]
LEFT_OUT = "asterisk-es-allison"


def texts(language: str) -> dict[str, str]:
    digits = {f"digits/{n}": word for n, word in enumerate(NUMBERS[language])}
    return {**digits, **{f"prompt-{name}": f"{WORDING[language]} {name}" for name in NAMES}}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """The command, on a tree and into a folder of this module."""
    root = tmp_path_factory.mktemp("telephone")
    folders = {s.language: s.folder for s in SPEAKERS if not s.held_out}
    write_tree(root / "tree", folders, {tag: texts(tag) for tag in WORDING})
    command_line = ("data", "make", "telephone", "--source", root / "tree", "--out", root / "calls")
    sizes = ("--utterances", "90", "--heldout", "8", "--languages", "en,es", "--leave-out", LEFT_OUT)
    return lambda *more: command(*command_line, *sizes, "--workers", "1", *more)


@pytest.fixture(scope="module")
def calls(make: Callable[..., Ran]) -> Path:
    ran = make()
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines()[1:]]
    assert {Path(row[0]).name: row[1] for row in rows if row[1] in ("8", "90")} == {
        "composed": "8",
        "unheard": "8",
        "train": "90",
    }
    return Path(rows[0][0]).parent


def part(calls: Path, name: str) -> list[Utterance]:
    return list(Manifest(calls / name))


def test_nothing_of_the_held_out_parts_is_trained_on(calls: Path) -> None:
    train = part(calls, "train")
    trained = {text for u in train for text in (u.text, *u.translations.values())}
    unseen, dev_prompts = part(calls, "unseen"), part(calls, "dev_prompts")
    assert unseen
    assert dev_prompts
    assert not [text for text in trained for u in [*unseen, *dev_prompts] if u.text in text]
    assert {u.text for u in unseen}.isdisjoint(u.text for u in dev_prompts)
    composed = {u.text for name in ("composed", "unheard") for u in part(calls, name)}
    assert composed.isdisjoint(trained)
    known = part(calls, "known")
    assert known
    recordings = {(u.speaker, u.custom["prompt"]) for u in train if "prompt" in u.custom}
    assert recordings.isdisjoint((u.speaker, u.custom["prompt"]) for u in known)


def test_checkpoints_can_be_chosen_by_a_speaker_left_out(calls: Path) -> None:
    left_out = part(calls, "left_out")
    assert len(left_out) == 4
    assert {u.speaker for u in left_out} == {LEFT_OUT}
    tested = {u.text for u in part(calls, "unheard")}
    assert tested.isdisjoint(u.text for u in left_out)


def test_a_speaker_left_out_is_heard_in_no_other_part_but_unheard(calls: Path) -> None:
    human = {
        name: {u.speaker for u in part(calls, name) if u.speaker.startswith("asterisk")}
        for name in ("train", "composed", "known", "unseen", "unheard")
    }
    assert human.pop("unheard") == {LEFT_OUT}
    assert set().union(*human.values()) == {"asterisk-en-allison"}
    info = json.loads((calls / "unheard" / "dataset.json").read_text())
    assert info["left_out_speakers"] == [LEFT_OUT]
    assert info["attribution"] == {LEFT_OUT: "Allison Smith; Digium, Inc."}
    assert info["licence"] == ["CC-BY-SA-3.0"]


def test_digits_are_composed_and_translated_one_by_one(calls: Path) -> None:
    digits = [u for u in part(calls, "unheard") if u.custom["kind"] == "composed/digits"]
    to_english = dict(zip(NUMBERS["es"], NUMBERS["en"], strict=True))
    assert digits
    for u in digits:
        assert u.translations["en"] == " ".join(to_english[word] for word in u.text.split())
        assert u.duration_s > 0.3 * len(u.text.split())  # a tone of 0.3 s each


def test_training_mixes_recorded_composed_and_spoken(calls: Path) -> None:
    kinds = {re.sub(r"/.*", "", u.custom["kind"]) for u in part(calls, "train")}
    assert {"prompt", "composed"} <= kinds
    assert {u.language for u in part(calls, "train")} >= {"en", "es"}


def test_the_same_command_makes_nothing_twice_and_another_seed_is_refused(
    make: Callable[..., Ran], calls: Path
) -> None:
    sound = calls / "train" / "audio.00000.wav"
    before = sound.stat().st_mtime_ns
    assert make().code == 0
    assert sound.stat().st_mtime_ns == before
    ran = make("--seed", "9")
    assert (ran.code, ran.out) == (2, "")
    assert "was begun with seed 4, not 9" in ran.err

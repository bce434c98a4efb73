"""What is said in a shard depends on nothing but the shard: not on memory, signals, or how often it was tried."""

import faulthandler
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sprachbund.corpora.editions import edition, make_edition, make_part
from sprachbund.corpora.mixed import MixedSpeechOptions, make_mixed
from sprachbund.corpora.outside import Outside, make_outside
from sprachbund.data.making import MAX_KILLS, make_shards
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.data.synthesis import SynthesisError
from sprachbund.errors import SprachbundError

Hurt = Callable[[int, int], None]


def utterances(hurt: Hurt, shard: int, attempt: int, writer: ManifestWriter) -> None:
    for number in range(3):
        if number == 2:
            hurt(shard, attempt)
        writer.add(
            np.full(160 * (number + 1), attempt / 10, np.float32),
            text=f"shard {shard} attempt {attempt}",
            language="en",
            speaker="s",
            utterance_id=f"{shard}-{number}",
        )


def nothing(shard: int, attempt: int) -> None:
    """An undisturbed run."""


def once(folder: Path, number: int, *, of: int = 1, times: int = 1) -> Hurt:
    """The process of a shard gets a signal, so many times."""

    def hurt(shard: int, attempt: int) -> None:
        done = len(list(folder.glob("hurt-*")))
        if shard == of and done < times:
            (folder / f"hurt-{done}").touch()
            faulthandler.disable()  # which pytest turns on
            os.kill(os.getpid(), number)

    return hurt


def made(directory: Path, hurt: Hurt) -> dict[str, bytes]:
    make_shards(directory, 3, partial(utterances, hurt))
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV])
def test_a_process_that_is_killed_once_changes_no_byte(tmp_path: Path, number: int) -> None:
    assert made(tmp_path / "hurt", once(tmp_path, number)) == made(tmp_path / "calm", nothing)
    assert (tmp_path / "hurt-0").exists()


@pytest.mark.slow
def test_a_synthesiser_that_always_crashes_says_something_else(tmp_path: Path) -> None:
    def crash(shard: int, attempt: int) -> None:
        if shard == 1 and attempt == 1:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)

    def refuse(shard: int, attempt: int) -> None:
        if shard == 1 and attempt == 1:
            raise SynthesisError("espeak-ng says nothing")

    result = made(tmp_path / "crash", crash)
    assert result == made(tmp_path / "refuse", refuse)
    texts = [utterance.text for utterance in Manifest(tmp_path / "crash")]
    assert texts[::3] == ["shard 0 attempt 1", "shard 1 attempt 2", "shard 2 attempt 1"]


def test_a_program_that_is_killed_is_asked_the_same_again(tmp_path: Path) -> None:
    def killed(shard: int, attempt: int) -> None:
        if shard == 1 and not (tmp_path / "hurt").exists():
            (tmp_path / "hurt").touch()
            raise SynthesisError("festival ended with status -9", killed=True)

    assert made(tmp_path / "one", killed) == made(tmp_path / "other", nothing)


@pytest.mark.slow
def test_killed_again_and_again_ends_with_the_signal_and_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"shard 1 .* SIGKILL.*fewer --workers"):
        made(tmp_path / "one", once(tmp_path, signal.SIGKILL, times=99))
    assert len(list(tmp_path.glob("hurt-*"))) == MAX_KILLS
    assert made(tmp_path / "one", nothing) == made(tmp_path / "other", nothing)


def test_an_exception_is_one_line_and_is_not_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(shard: int, attempt: int) -> None:
        (tmp_path / f"{shard}-{attempt}").touch()
        raise KeyError("a key")

    with pytest.raises(
        SprachbundError, match=r"shard 0 .*KeyError: 'a key' \(test_making.py:\d+\)"
    ) as caught:
        make_shards(tmp_path / "one", 1, partial(utterances, broken))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["0-1"]


def test_what_the_synthesiser_lacks_is_reported(tmp_path: Path) -> None:
    def missing(shard: int, attempt: int) -> None:
        raise SprachbundError("festival is not installed: apt-get install festival")

    with pytest.raises(SprachbundError, match="cannot be made: festival is not installed"):
        make_shards(tmp_path / "one", 1, partial(utterances, missing))


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: make_edition(folder, edition("tiny", train_utterances=4), workers=1),
        lambda folder: make_outside(folder, Outside(per_kind=1), workers=1),
        lambda folder: make_mixed(folder, MixedSpeechOptions(), workers=1),
    ],
)
def test_another_corpus_is_not_taken_for_the_one_that_is_made(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    writer = ManifestWriter(tmp_path / "dev")
    writer.add(np.zeros(1600, np.float32), text="one", language="en", speaker="", utterance_id="a")
    writer.close({"name": "mine"})
    with pytest.raises(SprachbundError, match="dev holds another corpus, mine; name a new folder"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dev"]


def test_an_edition_is_the_same_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    tiny = edition("tiny", train_utterances=4)
    make_part(tmp_path / "calm", tiny, "train", 4, workers=1)
    hurt = once(tmp_path, signal.SIGKILL, of=0)
    add = ManifestWriter.add

    def add_or_die(self: ManifestWriter, *args: object, **kwargs: object) -> None:
        if self._lines:
            hurt(self.shard, 1)
        add(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ManifestWriter, "add", add_or_die)
    make_part(tmp_path / "hurt", tiny, "train", 4, workers=1)
    assert (tmp_path / "hurt-0").exists()
    calm, after = tmp_path / "calm", tmp_path / "hurt"
    assert {p.name: p.read_bytes() for p in calm.iterdir()} == {
        p.name: p.read_bytes() for p in after.iterdir()
    }


def test_a_ray_cluster_makes_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    one = made(tmp_path / "one", nothing)
    make_shards(tmp_path / "ray", 3, partial(utterances, nothing), ray_address="local")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ray").iterdir()} == one

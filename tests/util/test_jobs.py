"""Shared work whose process dies, or fails in a way that nobody foresaw, ends with one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.util.jobs import _shares_of_gpus, gpus_of, run, run_apart


@dataclass(frozen=True, kw_only=True)
class Made:
    """Files that hold their number, and what the process saw; one may kill its process, or fail."""

    out: Path
    count: int = 8
    deaths: int = 0
    fails: bool = False
    threads: int = 1
    gpus: int = 0

    @property
    def files(self) -> list[tuple[Path, int]]:
        return [(self.out / f"{number:03d}.txt", 10) for number in range(self.count)]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        (self.out / f"prepared.{os.getpid()}").touch()
        return self.make

    def make(self, number: int, tick: Callable[[int], None]) -> None:
        tick(5)
        if number == 3 and self.fails:
            raise KeyError("a key")
        if number == 3 and len(list(self.out.glob("death.*"))) < self.deaths:
            (self.out / f"death.{time.monotonic_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.out / f"gpus.{number}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        self.files[number][0].write_bytes(number.to_bytes(2, "big") * 1000)

    @property
    def made(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out.glob("*.txt"))}


def whole(tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "whole").mkdir()
    run(job := Made(out=tmp_path / "whole"))
    return job.made


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(job := Made(out=tmp_path, deaths=1), workers=4, progress=lambda *one: seen.append(one))
    assert len(list(tmp_path.glob("death.*"))) == 1
    assert len(list(tmp_path.glob("prepared.*"))) <= 5  # once a process, and not once a file
    assert job.made == whole(tmp_path)
    assert seen[-1] == (80, 80)
    assert {total for _, total in seen} == {80}


def test_a_real_ray_cluster_makes_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    seen: list[tuple[int, int]] = []
    run(
        job := Made(out=tmp_path, deaths=1),
        workers=4,
        ray_address="local",
        progress=lambda *one: seen.append(one),
    )
    assert len(list(tmp_path.glob("death.*"))) == 1
    assert 2 <= len(list(tmp_path.glob("prepared.*"))) <= 5
    assert job.made == whole(tmp_path)
    assert seen[-1] == (80, 80)
    (tmp_path / "003.txt").unlink()
    with pytest.raises(
        SprachbundError, match=r"asks for 1 CPUs and 1 GPUs, and the Ray cluster has .* and 0"
    ):
        run(Made(out=tmp_path, gpus=1), ray_address="local")


@pytest.mark.slow
def test_a_file_that_kills_every_process_ends_the_job(tmp_path: Path) -> None:
    with pytest.raises(
        SprachbundError, match=r"003\.txt was begun 3 times, .*SIGKILL, as a system short of memory.*fewer"
    ):
        run(Made(out=tmp_path, deaths=9), workers=2)


@pytest.mark.slow
def test_an_error_ends_the_job_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SprachbundError, match=r"KeyError: 'a key' \(test_"):
        run(Made(out=tmp_path, fails=True), workers=2)
    assert "Traceback" not in capfd.readouterr().err


def test_a_job_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    before = whole(tmp_path)
    job = Made(out=tmp_path / "whole")
    (job.out / "005.txt").unlink()
    run(job, workers=2)  # one file: no process is started
    assert job.made == before
    assert {path.name for path in job.out.glob("prepared.*")} == {f"prepared.{os.getpid()}"}


@pytest.mark.slow
def test_each_process_sees_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    run(Made(out=tmp_path, gpus=1, count=12), workers=2)
    assert {path.read_text() for path in tmp_path.glob("gpus.*")} == {"3", "5"}
    with pytest.raises(SprachbundError, match=r"3 processes need 3 GPUs, and there are 2; try --workers 2"):
        run(Made(out=tmp_path, gpus=1, count=20), workers=3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert _shares_of_gpus(1, 1) == ["5"]
    assert _shares_of_gpus(0, 2) == [None, None]
    assert (gpus_of("cuda"), gpus_of("cuda:1"), gpus_of("cpu")) == (1, 0, 0)


def pid_and_blocked(times: int) -> tuple[int, bool]:
    return times * os.getpid(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def refused() -> None:
    raise SprachbundError("no, thank you")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_function_apart_runs_in_another_process() -> None:
    pid, blocked = run_apart(pid_and_blocked, 1)
    assert pid != os.getpid()
    assert blocked == (sys.platform != "win32")  # Ctrl-C is the parent's to answer
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be blocked there")
def test_the_first_process_of_a_program_does_not_hear_ctrl_c() -> None:
    code = (
        "import signal\n"
        "from sprachbund.util.jobs import run_apart\n"
        "print(signal.SIGINT in run_apart(signal.pthread_sigmask, signal.SIG_BLOCK, []))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "True\n"


def save_at_the_end(folder: Path) -> None:
    def save(number: int, frame: object) -> None:
        time.sleep(0.3)
        (folder / "saved").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, save)
    (folder / "begun").touch()
    while True:
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot finish there after SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_whose_parent_is_gone_may_save(tmp_path: Path, number: int) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from sprachbund.util.jobs import run_apart\n"
        "from tests.util.test_jobs import save_at_the_end\n"
        "if __name__ == '__main__':\n"
        "    run_apart(save_at_the_end, Path(sys.argv[1]))"
    )
    (tmp_path / "parent.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path], env=environment)
    wait_for(tmp_path / "begun")
    parent.send_signal(number)
    parent.wait()
    wait_for(tmp_path / "saved")


def wait_for(path: Path) -> None:
    """Wait until a file is there, for half a minute."""
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.02)


def test_what_a_function_apart_raises_is_raised_here() -> None:
    with pytest.raises(SprachbundError, match="no, thank you"):
        run_apart(refused)
    with pytest.raises(SprachbundError, match="a process was killed by SIGKILL"):
        run_apart(dies)

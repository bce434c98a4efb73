"""The loop: it learns, a killed run ends with the same bits, two processes give one process's weights."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from pydantic import ValidationError

from sprachbund.data import loading
from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import batches
from sprachbund.errors import SprachbundError
from sprachbund.training.checkpoint import RESUME_FILE, BestCheckpoints, holds_checkpoint, load_resume
from sprachbund.training.loop import Convergence, train
from sprachbund.training.options import TrainingOptions
from tests.training import made
from tests.training.ranks import fork_ranks

ROOT = Path(__file__).parents[2]


def quiet(line):
    """Takes the log."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    made.make_corpus(directory / "data")
    return directory


@pytest.fixture
def ctrl_c():
    """SIGINT interrupts, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _workplace(corpus, directory):
    directory.mkdir()
    (directory / "data").symlink_to(corpus / "data")
    return directory


@pytest.mark.slow
def test_it_learns(corpus, tmp_path):
    lines = []
    data = made.make_training_data(corpus / "data")
    train(made.make_model(), data, made.options(60), tmp_path, dev=data, report=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if " rate " in line]
    assert losses[-1] < 0.7 * losses[0]
    assert any("dev loss" in line for line in lines)
    assert all("left" in line and "padding" in line for line in lines if " rate " in line)


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(corpus, tmp_path):
    torch.set_num_threads(
        1
    )  # torch gives no more to a forked process, and sums depend on how they are divided
    unbroken, broken = _workplace(corpus, tmp_path / "unbroken"), _workplace(corpus, tmp_path / "broken")
    steps, dropout = 20, 0.1

    def stay(line):
        if line.startswith("step 15/"):
            time.sleep(600)

    process = multiprocessing.get_context("fork").Process(
        target=made.train_made, args=(broken, steps, dropout, stay)
    )
    process.start()
    while (load_resume(broken / "run") or {"step": 0})["step"] < 5:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    state = load_resume(broken / "run")
    assert state is not None
    assert 5 <= state["step"] <= 15
    first, second = (made.train_made(folder, steps, dropout, quiet) for folder in (unbroken, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("named_as_before", [False, True])
def test_a_run_with_recomputed_layers_goes_on_to_the_same_bits(corpus, tmp_path, optimizer, named_as_before):
    def run(name, stop_after=None):
        data = made.make_training_data(corpus / "data")
        options = made.options(6, recompute=True, optimizer=optimizer)
        model = made.make_model(0.1)
        model = train(model, data, options, tmp_path / name, report=quiet, stop_after=stop_after)
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole, _ = run("whole"), run("half", 3)
    path = tmp_path / "half" / RESUME_FILE
    state = torch.load(path)
    names = [name for one in state["optimizers"] for name in one["names"]]
    assert set(names) <= whole.keys()
    if named_as_before:  # files of earlier versions
        for one in state["optimizers"]:
            one["names"] = [
                re.sub(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.", n) for n in one["names"]
            ]
        torch.save(state, path)
    halves = run("half")
    assert all(torch.equal(halves[name], value) for name, value in whole.items())


def test_moments_of_other_parameters_are_not_taken(corpus, tmp_path):
    def run(stop_after=None):
        data = made.make_training_data(corpus / "data")
        train(made.make_model(), data, made.options(4), tmp_path, report=quiet, stop_after=stop_after)

    run(2)
    state = torch.load(tmp_path / RESUME_FILE)
    first = state["optimizers"][0]["names"][0]
    state["optimizers"][0]["names"][0] = "nothing"
    torch.save(state, tmp_path / RESUME_FILE)
    with pytest.raises(SprachbundError, match=rf"no moments of {re.escape(first)}.*delete it to start anew"):
        run()


@pytest.mark.slow
def test_a_killed_rank_and_another_number_of_ranks(corpus, tmp_path):
    """torchrun starts both ranks again; the run goes on, and so it does in one process or in more."""
    names = ("killed", "undisturbed", "one", "half")
    killed, undisturbed, one, half = (_workplace(corpus, tmp_path / name) for name in names)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = (*launcher, "--max-restarts=1", "-m", "tests.training.made", str(killed), "6", "3")
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert re.search("resumed at step [23]\\n", done.stdout)

    def work(rank: int, count: int) -> None:
        made.train_made(undisturbed, 6, 0.1, quiet)
        data = made.make_training_data(half / "data")
        train(made.make_model(), data, made.options(6), half / "run", report=quiet, stop_after=3)

    assert fork_ranks([2], work, tmp_path / "ranks") == {"2/0": 0, "2/1": 0}
    first, second = (torch.load(folder / "run" / "weights.pt") for folder in (undisturbed, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole, parts = made.train_made(one, 6, report=quiet), made.train_made(half, 6, report=quiet)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-4, rtol=1e-3)


def test_dev_data_of_which_nothing_counts_is_an_error(corpus, tmp_path):
    data, dev = (made.make_training_data(corpus / "data") for _ in range(2))
    dev.longest_s = lambda longest: 0.01
    with pytest.raises(SprachbundError, match=r"no token of the dev data counts.*training\.max_duration_s"):
        train(made.make_model(), data, made.options(4, evaluate_every=1), tmp_path, dev=dev, report=quiet)


def test_data_of_which_no_batch_can_be_made_is_an_error(corpus, tmp_path):
    data = made.make_training_data(corpus / "data")
    with pytest.raises(SprachbundError, match="no batch can be made of the training data"):
        train(made.make_model(), data, made.options(4, max_duration_s=0.01), tmp_path, report=quiet)


def test_a_step_of_a_large_seed(corpus, tmp_path):
    data = made.make_training_data(corpus / "data")
    train(made.make_model(), data, made.options(1, seed=2**62), tmp_path, report=quiet)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.usefixtures("ctrl_c")
def test_a_step_and_its_evaluation_are_saved_before_a_signal_ends_the_run(corpus, tmp_path, number, ends):
    lines = []
    data = made.make_training_data(corpus / "data")
    for last in (2, 4):

        def on_step(done, total, last=last):
            if done == last - 1:
                os.kill(os.getpid(), number)

        chosen = made.options(4, evaluate_every=2, keep_best=2, save_every=100)
        with pytest.raises(ends):
            train(made.make_model(), data, chosen, tmp_path, dev=data, on_step=on_step, report=lines.append)
    evaluated = [line for line in lines if " dev " in line and "(kept)" in line]
    assert [line.split()[1] for line in evaluated] == ["2", "4"]
    train(made.make_model(), data, chosen, tmp_path, dev=data, report=lines.append)
    assert len(Convergence.read(tmp_path).evaluations) == 2


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.usefixtures("ctrl_c")
def test_loading_processes_outlast_a_signal_to_all(corpus, tmp_path, number, ends):
    data = made.make_training_data(corpus / "data")

    def on_step(done, total):
        if done == 2:
            for child in psutil.Process().children():
                child.send_signal(number)
            time.sleep(0.5)  # torch raises an error in this process as soon as one that loads has ended
            os.kill(os.getpid(), number)

    chosen = made.options(200, num_workers=1, save_every=1000)
    with pytest.raises(ends):
        train(made.make_model(), data, chosen, tmp_path, on_step=on_step, report=quiet)
    assert holds_checkpoint(tmp_path)


def test_a_loading_process_outlasts_sigterm_from_its_first_moment_on(corpus, monkeypatch):
    begin = loading._begin_loading

    def begin_late(worker):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        begin(worker)

    monkeypatch.setattr(loading, "_begin_loading", begin_late)
    data, options = made.make_training_data(corpus / "data"), BatchingOptions(batch_s=6.0)
    made_apart = list(batches(data, options, 0, num_workers=1))
    assert len(made_apart) == len(list(batches(data, options, 0)))


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_at_once(corpus, tmp_path):
    data = made.make_training_data(corpus / "data")

    def on_step(done, total):
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(
            made.make_model(), data, made.options(4, save_every=100), tmp_path, on_step=on_step, report=quiet
        )
    assert not holds_checkpoint(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_a_loading_process_is_its_own_line(corpus, tmp_path):
    data = made.make_training_data(corpus / "data")
    load = type(data).__getitem__

    class Damaged(type(data)):
        def __getitem__(self, key):
            if key[1] == 3:
                raise SprachbundError("tone-3: the sound is damaged")
            return load(self, key)

    data.__class__ = Damaged
    for num_workers in (0, 1):
        with pytest.raises(SprachbundError, match=r"^tone-3: the sound is damaged$"):
            list(batches(data, BatchingOptions(batch_s=6.0), 0, num_workers=num_workers))


def test_best_checkpoints_are_kept_and_averaged(tmp_path):
    best = BestCheckpoints(tmp_path, keep=2)
    for step, loss in enumerate([3.0, 1.0, 2.0, 5.0]):
        best.offer(step, loss, {"w": torch.full((2,), float(step))})
    assert sorted(best.losses.values()) == [1.0, 2.0]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    torch.testing.assert_close(dict(BestCheckpoints(tmp_path, keep=2).average())["w"], torch.full((2,), 1.5))


def test_broken_resume_file_is_named(tmp_path):
    (tmp_path / "resume.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(SprachbundError, match=r"resume\.pt"):
        load_resume(tmp_path)


def test_rate_rises_stays_and_falls():
    options = TrainingOptions(steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.2)
    rates = [options.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:80] == [1.0] * 70
    assert rates[99] == pytest.approx(0.05)
    assert all(a >= b for a, b in pairwise(rates[80:]))


def test_rate_falls_by_the_inverse_root_of_the_step():
    options = TrainingOptions(steps=400, learning_rate=2e-3, warmup_steps=25, decay="inverse_sqrt")
    # arXiv 1706.03762, equation 3, scaled so that the highest rate is the one asked for
    wanted = [2e-3 * 25**0.5 * min(step**-0.5, step * 25**-1.5) for step in range(1, 401)]
    assert [options.rate(step) for step in range(400)] == pytest.approx(wanted)
    higher = options.model_copy(update={"final_rate": 1e-3})
    assert [higher.rate(step) - 1e-3 for step in range(24, 400)] == pytest.approx(
        [rate / 2 for rate in wanted[24:]]
    )
    with pytest.raises(ValidationError, match="there is no final_share"):
        TrainingOptions(steps=400, decay="inverse_sqrt", final_share=0.1)

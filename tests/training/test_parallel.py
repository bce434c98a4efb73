"""Two processes: shares of the weights, checkpoints of them, an average of the weights, errors, signals, no numbers."""

import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from sprachbund.errors import SprachbundError
from sprachbund.training import loop
from sprachbund.training.checkpoint import (
    RESUME_FILE,
    SHARDS,
    SHARDS_FILE,
    BestCheckpoints,
    forget_run,
    load_resume,
)
from sprachbund.training.loop import train
from sprachbund.training.lora import add_lora
from sprachbund.util import distributed
from tests.training import made
from tests.training.ranks import fork_ranks
from tests.training.test_ranks import TOLERANCE, Gradients, norm

pytestmark = pytest.mark.slow
STEPS = 6
PLAIN: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0}
OPTIONS: dict[str, Any] = {
    "ema": 0.5,
    "evaluate_every": 2,
    "keep_best": 2,
    "log_every": 1,
    "save_every": 3,
    "max_utterances": 5,
    "weight_decay": 0.0,
}
SHARED: dict[str, Any] = {**OPTIONS, "shard": True, "recompute": True, "accumulate": 2}


def run(
    root: Path, out: Path, steps: int = STEPS, model: Any = None, **options: Any
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights after so many steps of a run of six, and what it reported."""
    lines: list[str] = []
    stop_after, data = steps, made.make_training_data(root / "data", **PLAIN)
    chosen = made.options(STEPS, **options)
    model = train(
        model or made.make_model(), data, chosen, out, dev=data, report=lines.append, stop_after=stop_after
    )
    return {name: value.clone() for name, value in model.state_dict().items()}, lines


def shares(root: Path, out: Path) -> None:
    """Half a run, from which one process goes on later, and the other half."""
    run(root, out / "run", STEPS // 2, **SHARED)
    if distributed.is_first_rank():
        shutil.copytree(out / "run", out / "half")
    distributed.wait_for_all_ranks()
    result = run(root, out / "run", **SHARED)
    if distributed.is_first_rank():
        torch.save(result, out / "found.pt")


def adapters(root: Path, out: Path) -> None:
    """Shares of weights in 16 bits, with adapters in 32."""
    model = with_adapters()
    result = run(root, out / "run", model=model, **{**SHARED, **HALF})
    kinds = {value.dtype for value in result[0].values() if value.is_floating_point()}
    assert kinds == {torch.float32}
    if distributed.is_first_rank():
        torch.save(result, out / "found.pt")


def with_adapters() -> Any:
    model = made.make_model()
    torch.manual_seed(0)
    add_lora(model, ("decoder.layers.?.feed_forward.*", "encoder.layers.?.attention.query"), 4)
    return model


HALF: dict[str, Any] = {"frozen_bf16": True, "precision": "bf16", "optimizer": "adamw"}


def full_disk(root: Path, out: Path) -> None:
    """No file of a process may grow beyond 100 kB from the fifth step on: shards have four times as much."""

    def on_step(done: int, total: int) -> None:
        if done == 5:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a disk that is full
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    data = made.make_training_data(root / "data", **PLAIN)
    chosen = made.options(STEPS, **{**SHARED, "keep_best": 0, "save_every": 2})
    train(made.make_model(), data, chosen, out / "run", dev=data, on_step=on_step, report=lambda line: None)


def of_one_process(root: Path, out: Path) -> None:
    """Goes on, with shares of the weights, from what one process without them has left."""
    result = run(root, root / "file", **{**SHARED, "optimizer": "muon"})
    if distributed.is_first_rank():
        torch.save(result, out / "found.pt")


class WithoutNumbers:
    """A corpus whose features are no numbers, in one process, from a batch of the second epoch on."""

    def __init__(self, corpus: Any, last_epoch: int) -> None:
        self._corpus, self._last = corpus, last_epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._corpus, name)

    def __getitem__(self, key: Any) -> Any:
        example = self._corpus[key]
        if distributed.rank() == 1 and 1 <= key[0] <= self._last:
            example.features[:] = float("nan")
        return example


def no_numbers(root: Path, out: Path) -> None:
    lines: list[str] = []
    data: Any = WithoutNumbers(made.make_training_data(root / "data"), 1)
    model = train(made.make_model(), data, made.options(12, log_every=1), out / "some", report=lines.append)
    state = {name: bool(value.isfinite().all()) for name, value in model.state_dict().items()}
    if distributed.is_first_rank():
        torch.save((lines, state), out / "found.pt")
    data = WithoutNumbers(made.make_training_data(root / "data"), 99)
    train(made.make_model(), data, made.options(99, max_skipped=2), out / "all", report=lines.append)


def ended_by_a_signal(root: Path, out: Path) -> None:
    """One of the processes gets SIGTERM during the third step."""

    def on_step(done: int, total: int) -> None:
        if done == 2 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    data = made.make_training_data(root / "data")
    try:
        train(
            made.make_model(),
            data,
            made.options(99, save_every=50),
            out / "run",
            on_step=on_step,
            report=lambda line: None,
        )
    except SystemExit as ended:
        (out / f"status.{distributed.rank()}").write_text(str(ended.code))


def one_hangs(root: Path, out: Path) -> None:
    """One process fails while the other is in no exchange."""
    distributed._GRACE_S = 0.2
    sys.stderr = (out / f"stderr.{os.environ['RANK']}").open("w")

    def on_step(done: int, total: int) -> None:
        if done == 1 and distributed.rank() == 1:
            raise SprachbundError("the third disk is full")
        if done == 1:
            time.sleep(600)

    data = made.make_training_data(root / "data")
    train(made.make_model(), data, made.options(9), out / "run", on_step=on_step, report=lambda line: None)


def different(root: Path, out: Path) -> None:
    data = made.make_training_data(root / "data")
    steps = 9 + int(os.environ["RANK"])
    train(made.make_model(), data, made.options(steps), out / "run", report=lambda line: None)


def different_versions(root: Path, out: Path) -> None:
    if os.environ["RANK"] == "1":
        installed = loop.versions
        loop.versions = lambda names: {**installed(names), "sprachbund": "0.0.7"}  # type: ignore[assignment]
    train(
        made.make_model(),
        made.make_training_data(root / "data"),
        made.options(9),
        out / "run",
        report=lambda line: None,
    )


def different_data(root: Path, out: Path) -> None:
    own = out / os.environ["RANK"]
    made.make_corpus(own, 8 + int(os.environ["RANK"]))
    train(
        made.make_model(),
        made.make_training_data(own),
        made.options(9),
        out / "run",
        report=lambda line: None,
    )


def different_texts(root: Path, out: Path) -> None:
    """The sounds and their lengths are the same."""
    data = made.make_training_data(with_own_texts(out))
    train(made.make_model(), data, made.options(9), out / "run", report=lambda line: None)


def different_dev_data(root: Path, out: Path) -> None:
    data, dev = made.make_training_data(root / "data"), made.make_training_data(with_own_texts(out))
    train(made.make_model(), data, made.options(9), out / "run", dev=dev, report=lambda line: None)


def with_own_texts(out: Path) -> Path:
    """A corpus of this process, in which the second one has a word of the same length in the place of another."""
    own = out / os.environ["RANK"]
    made.make_corpus(own, 8)
    if os.environ["RANK"] == "1":
        path = min(own.glob("cuts.*.jsonl"))
        text = path.read_text()
        assert "one" in text
        path.write_text(text.replace("one", "two"))
        for checksum in own.glob("*.sha256"):
            checksum.unlink()  # as one does who changes a corpus
    return own


def slow_reader(root: Path, out: Path) -> None:
    """The first process deletes what only a run that goes on needs, when the other has yet to read the best."""
    if os.environ["RANK"] == "1":
        read = BestCheckpoints.average

        def late(best: BestCheckpoints) -> Iterator[tuple[str, Tensor]]:
            time.sleep(1)
            return read(best)

        BestCheckpoints.average = late  # type: ignore[method-assign]
    run(root, out / "run", **OPTIONS)
    if distributed.is_first_rank():
        forget_run(out / "run")


CASES: dict[str, Callable[[Path, Path], None]] = {
    "slow reader": slow_reader,
    "shares": shares,
    "adapters": adapters,
    "of one process": of_one_process,
    "no numbers": no_numbers,
    "full disk": full_disk,
    "signal": ended_by_a_signal,
    "one hangs": one_hangs,
    "different": different,
    "different versions": different_versions,
    "different data": different_data,
    "different texts": different_texts,
    "different dev data": different_dev_data,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, prediction_of_memory: Any) -> Path:
    """Every case in `root`/NAME/2, with the exit codes in codes.pt; all side by side."""
    directory = tmp_path_factory.mktemp("parallel")
    made.make_corpus(directory / "data", 12)
    run(directory, directory / "file", STEPS // 2, **{**OPTIONS, "optimizer": "muon"})
    for name, case in CASES.items():

        def work(rank: int, count: int, name: str = name, case: Callable[[Path, Path], None] = case) -> None:
            if name == "shares":  # a process of its own; here and nowhere else before weights are divided
                loop.measure_shape = prediction_of_memory
            case(directory, directory / name / "2")

        codes = fork_ranks([2], work, directory / name)
        torch.save([*codes.values()], directory / name / "codes.pt")
    return directory


@pytest.fixture(scope="module")
def plain(root: Path) -> dict[str, tuple[dict[str, Tensor], list[str]]]:
    """Of one process, by optimizer."""
    return {name: run(root, root / f"plain-{name}", **OPTIONS, optimizer=name) for name in ("adamw", "muon")}


def codes(root: Path, name: str) -> list[int]:
    return list(torch.load(root / name / "codes.pt"))


def failures(root: Path, name: str) -> list[str]:
    paths = [root / name / "2" / f"failure.{rank}.txt" for rank in (0, 1)]
    return [path.read_text().strip().splitlines()[-1] if path.exists() else "" for path in paths]


def assert_alike(
    one: tuple[dict[str, Tensor], list[str]],
    other: tuple[dict[str, Tensor], list[str]],
    *,
    muon: bool = False,
) -> None:
    """Weights differ by a small part of how far they moved; Muon orthogonalizes in 16 bits, of a precision of 4e-3."""
    start, moved, apart = made.make_model().state_dict(), 0.0, 0.0
    for name, value in one[0].items():
        moved += float((value - start[name]).square().sum())
        apart += float((other[0][name] - value).square().sum())
    assert 0 < apart < (0.05 if muon else 0.01) ** 2 * moved
    losses = [
        [float(line.split("dev loss ")[1].split()[0]) for line in lines if "dev loss" in line]
        for lines in (one[1], other[1])
    ]
    assert losses[0][-len(losses[1]) :] == pytest.approx(losses[1], abs=1e-2 if muon else 1e-3)


def test_shares_of_the_weights_train_as_one_process(root: Path, plain: Any) -> None:
    assert codes(root, "shares") == [0, 0], failures(root, "shares")
    result = torch.load(root / "shares" / "2" / "found.pt")
    assert any(line.startswith("memory, about: weights") for line in result[1])
    assert_alike(plain["adamw"], result)
    left = {path.name for path in (root / "shares" / "2" / "run").iterdir()}
    assert {SHARDS, SHARDS_FILE} <= left
    assert RESUME_FILE not in left
    assert len([*(root / "shares" / "2" / "run" / SHARDS).iterdir()]) == 1


def test_a_checkpoint_of_shares_is_read_by_one_process(root: Path, plain: Any, tmp_path: Path) -> None:
    shutil.copytree(root / "shares" / "2" / "half", tmp_path / "run")
    result = run(root, tmp_path / "run", **OPTIONS)
    assert f"resumed at step {STEPS // 2}" in result[1]
    assert_alike(plain["adamw"], result)
    assert not (tmp_path / "run" / SHARDS).exists()


def test_shares_go_on_from_the_file_of_one_process(root: Path, plain: Any) -> None:
    assert codes(root, "of one process") == [0, 0], failures(root, "of one process")
    result = torch.load(root / "of one process" / "2" / "found.pt")
    assert f"resumed at step {STEPS // 2}" in result[1]
    assert_alike(plain["muon"], result, muon=True)


def test_shares_of_weights_in_16_bits_and_adapters_train_as_one_process(root: Path, tmp_path: Path) -> None:
    assert codes(root, "adapters") == [0, 0], failures(root, "adapters")
    wanted = run(root, tmp_path / "run", model=with_adapters(), **{**OPTIONS, **HALF})[0]
    result, start = torch.load(root / "adapters" / "2" / "found.pt")[0], with_adapters().state_dict()
    trained = [name for name in wanted if "lora" in name]
    assert all(torch.equal(wanted[name], result[name]) for name in wanted if name not in trained)
    apart = sum(float((wanted[name] - result[name]).square().sum()) for name in trained)
    moved = sum(float((wanted[name] - start[name]).square().sum()) for name in trained)
    assert apart < 0.05**2 * moved


@pytest.mark.usefixtures("plain")
def test_each_process_holds_and_writes_half_of_the_moments(root: Path) -> None:
    [folder] = (root / "shares" / "2" / "run" / SHARDS).iterdir()
    written = FileSystemReader(folder).read_metadata().state_dict_metadata
    moments = {name: value for name, value in written.items() if ".exp_avg" in name}
    assert len(moments) == 2 * len(dict(made.make_model().named_parameters()))
    for name, value in moments.items():
        rows = [chunk.sizes[0] for chunk in value.chunks]
        assert sum(rows) == value.size[0]
        assert max(rows) == -(-value.size[0] // 2), name


def test_a_full_disk_during_a_checkpoint_leaves_the_one_before(
    root: Path, plain: Any, tmp_path: Path
) -> None:
    assert codes(root, "full disk") == [1, 1]
    message = failures(root, "full disk")
    steps = [
        re.search(
            r"the checkpoint of step (\d) could not be written to .*/full disk/2/run/resume "
            r"\(File too large; \d+\.\d MiB are free\); make room",
            line,
        )
        for line in message
    ]
    assert all(steps), message
    # Checkpoints are written while training goes on: that of the fourth step may be under way when the disk fills up.
    [failed] = {int(result[1]) for result in steps if result}
    assert failed in (4, 6)
    shutil.copytree(root / "full disk" / "2" / "run", tmp_path / "run")
    result = run(root, tmp_path / "run", **{**OPTIONS, "keep_best": 0})
    assert f"resumed at step {failed - 2}" in result[1]


def test_layers_are_compiled_and_train_to_the_same_bits(root: Path, tmp_path: Path) -> None:
    """Compiling takes long, so it is seen that layers are to be compiled; they are then run as they are."""
    data, plain, compiled = made.make_training_data(root / "data"), made.make_model(), made.make_model()
    train(plain, data, made.options(2), tmp_path / "plain", report=lambda line: None)
    with torch.compiler.set_stance("force_eager"):
        chosen = made.options(2, compile=True)
        train(compiled, data, chosen, tmp_path / "compiled", report=lambda line: None)
    layers = [*compiled.encoder.layers, *compiled.decoder.layers]
    assert all(layer._compiled_call_impl is not None for layer in layers)
    assert all(torch.equal(value, compiled.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not here")
def test_compiled_layers_have_the_losses_and_gradients_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled kernels add up in other orders, as processes do, so the tolerance is theirs."""
    made.make_corpus(tmp_path / "data", 8)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    torch.compiler.reset()
    result = {}
    for is_compiled in (False, True):
        model, losses, gradients = made.make_model(), [], Gradients()

        def loss(batch: Any, model: Any = model, losses: list[float] = losses) -> Any:
            computed = type(model).loss(model, batch)
            losses.extend(float(head.total.detach()) for head in computed.heads.values())
            return computed

        monkeypatch.setattr(model, "loss", loss)
        chosen = made.options(3, learning_rate=1e-7, clip_norm=1e9, compile=is_compiled)
        data = made.make_training_data(tmp_path / "data")
        train(model, data, chosen, tmp_path / f"run-{is_compiled}", report=lambda line: None)
        gradients.end()
        result[is_compiled] = losses, gradients.steps
        assert bool([*(tmp_path / "kernels").rglob("*.cpp")]) == is_compiled
    (wanted, plain), (losses, compiled) = result[False], result[True]
    assert len(losses) >= 3
    assert losses == pytest.approx(wanted, rel=TOLERANCE)
    assert len(plain) == len(compiled) == 3
    for one, other in zip(plain, compiled, strict=True):
        assert one.keys() == other.keys()
        assert norm({name: other[name] - one[name] for name in one}) <= TOLERANCE * norm(one)


@pytest.mark.parametrize("is_probed", [True, False])
def test_a_gpu_that_is_full_says_which_setting_to_change(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    is_probed: bool,
) -> None:
    def full(batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model = made.make_model()
    chosen, data = made.options(4, accumulate=2), made.make_training_data(root / "data")
    monkeypatch.setattr(model, "loss", full)
    if is_probed:
        request.getfixturevalue("predicted_memory")
    with pytest.raises(
        SprachbundError, match=r"is full at step 1; set training\.accumulate = 4, or training\.rec"
    ):
        train(model, data, chosen, tmp_path, report=lambda line: None)


def test_the_average_of_the_weights_is_that_of_torch(root: Path, tmp_path: Path) -> None:
    """Without evaluations the average itself is returned."""
    data, model, averages = made.make_training_data(root / "data"), made.make_model(), []
    chosen = made.options(4, ema=0.7)

    def on_step(done: int, total: int) -> None:
        if done == 0:
            averages.append(
                torch.optim.swa_utils.AveragedModel(
                    model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
                )
            )
            averages[0].update_parameters(model)  # the first time, it copies
        else:
            averages[0].update_parameters(model)

    train(model, data, chosen, tmp_path, on_step=on_step, report=lambda line: None)
    for name, wanted in averages[0].module.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), wanted)


def test_steps_without_numbers_are_skipped_and_too_many_end_the_run(root: Path) -> None:
    assert codes(root, "no numbers") == [1, 1]
    assert all(
        "the gradient was not finite in 3 steps in a row" in line for line in failures(root, "no numbers")
    )
    lines, is_finite = torch.load(root / "no numbers" / "2" / "found.pt")
    assert all(is_finite.values())
    of_epoch = [[line for line in lines if f" epoch {n} " in line] for n in (0, 1, 2)]
    assert of_epoch[1]
    assert all("| skipped 1 |" in line for line in of_epoch[1])
    assert not any("skipped" in line or "nan" in line for line in (*of_epoch[0], *of_epoch[2]))


def test_every_process_has_read_the_best_checkpoints_before_training_returns(root: Path) -> None:
    assert codes(root, "slow reader") == [0, 0], failures(root, "slow reader")
    assert not (root / "slow reader" / "2" / "run" / "best").exists()


def test_sigterm_to_one_process_saves_and_ends_all(root: Path) -> None:
    assert codes(root, "signal") == [0, 0], failures(root, "signal")
    out = root / "signal" / "2"
    assert [(out / f"status.{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    state = load_resume(out / "run")
    assert state is not None
    assert state["step"] == 3


def test_a_process_in_no_exchange_ends_with_the_message_of_the_one_that_failed(root: Path) -> None:
    assert codes(root, "one hangs") == [1, 1]
    said = (root / "one hangs" / "2" / "stderr.0").read_text()
    assert "process 1 of 2 failed: the third disk is full" in said


def test_processes_with_different_options_are_refused(root: Path) -> None:
    assert codes(root, "different") == [1, 1]
    assert any("[training] differs between processes" in line for line in failures(root, "different"))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            "different versions",
            r"the version of sprachbund differs between processes: .*0\.0\.7 in process 1",
        ),
        ("different data", r"the training data .* differs between processes"),
        ("different texts", r"the training data .* differs between processes"),
        ("different dev data", r"the dev data .* differs between processes"),
    ],
)
def test_processes_with_different_versions_or_data_are_refused(root: Path, case: str, said: str) -> None:
    assert codes(root, case) == [1, 1]
    assert any(re.search(said, line) for line in failures(root, case)), failures(root, case)
    assert not (root / case / "2" / "run" / RESUME_FILE).exists()

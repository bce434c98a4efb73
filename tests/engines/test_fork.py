"""A process that is forked after its parent computed computes too, with any engine, and ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
import torch

from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_linear import NativeLinear
from sprachbund.engines.packing import pack_matrix
from sprachbund.models.streaming_onnx import Graph, OnnxSession, Value
from tests.engines.support import needs_native
from tests.nobody import can_be_nobody
from tests.stories.support import speech, write_tiny_model, write_wav

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
PROGRAM = """
import os, signal, sys
import torch
import sprachbund

torch.set_num_threads(2)
models = [sprachbund.load(sys.argv[1], engine=engine, threads=2, offline=True) for engine in ("torch", "native")]
texts = [model.translate(sys.argv[2], to="de").text for model in models]
for used in (True, False):
    if (child := os.fork()) == 0:
        signal.alarm(60)  # ends a child that hangs
        again = [model.translate(sys.argv[2], to="de").text for model in models] if used else texts
        sys.exit(again != texts)  # takes everything down, as programs do
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"a child ended with code {code}"
"""


@pytest.mark.slow
def test_a_forked_process_computes_with_torch_and_with_the_native_engine(tmp_path: Path) -> None:
    talk, model = write_wav(tmp_path / "talk.wav", speech()), write_tiny_model(tmp_path / "model")
    arguments = [sys.executable, "-c", PROGRAM, str(model), str(talk)]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-2000:]


@needs_native
def test_a_process_computes_that_was_forked_while_another_thread_did() -> None:
    """The threads of the parent, the one in the call included, are not there to open what they had locked."""
    team, instruction_set = native().Team(2), choose_instruction_set()
    arrays = pack_matrix("matrix", torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))
    layer = NativeLinear(arrays, (256, 256), team, instruction_set)
    row, rows = torch.ones(1, 256), torch.ones(2048, 256)
    layer(rows)  # makes room
    expected, going_on = layer(row), threading.Event()
    going_on.set()

    def compute() -> None:
        while going_on.is_set():
            layer(rows)

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        for _ in range(8):
            if (child := os.fork()) == 0:
                signal.alarm(60)
                os._exit(0 if torch.equal(layer(row), expected) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        going_on.clear()
        busy.join()


def test_a_forked_process_computes_with_onnx_runtime(tmp_path: Path) -> None:
    weights = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", kind, ["n", 512])],
        [onnx.helper.make_tensor_value_info("y", kind, ["n", 512])],
        [onnx.helper.make_tensor("w", kind, [512, 512], weights.flatten().tolist())],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "product.onnx")
    described = Graph(file="product.onnx", inputs=(value("x"),), outputs=(value("y"),))
    session, x = OnnxSession(tmp_path, described, threads=2), torch.randn(2048, 512)
    (expected,) = session(x)
    for used in (True, False):
        if (child := os.fork()) == 0:
            signal.alarm(20)
            code = 1
            with suppress(BaseException):
                code = 0 if not used or torch.equal(session(x)[0], expected) else 2
                del session  # taking it down must not wait for threads that are not there
                gc.collect()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(session(x)[0], expected)


def value(name: str) -> Value:
    return Value(name=name, shape=("n", 512))


WITHOUT_THREADS = """
import os, resource, signal, sys, threading
import torch
import sprachbund
from sprachbund.audio.load import load

torch.set_num_threads(1)
model = sprachbund.load(sys.argv[1], engine="native", threads=2, offline=True)
samples = load(sys.argv[2])
expected = model.translate(samples, to="de", sample_rate=16000).text
if (child := os.fork()) == 0:
    signal.alarm(60)  # ends a child that hangs
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    begin, outcomes = threading.Barrier(2), []

    def translate():
        begin.wait()
        try:
            outcomes.append(model.translate(samples, to="de", sample_rate=16000).text)
        except RuntimeError:
            outcomes.append(None)

    callers = [threading.Thread(target=translate)]
    callers[0].start()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, before[1]))
    os.setuid(65534)  # the limit does not hold for the superuser
    translate()
    callers[0].join()
    resource.setrlimit(resource.RLIMIT_NPROC, before)
    again = model.translate(samples, to="de", sample_rate=16000).text
    sys.exit(outcomes != [None, None] or again != expected)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 0, f"the child ended with code {code}"
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on threads is Linux's")
@pytest.mark.skipif(
    hasattr(os, "geteuid") and (os.geteuid() != 0 or not can_be_nobody()),
    reason="needs to become another user",
)
def test_threads_that_the_system_refuses_a_forked_process_end_in_errors_and_can_be_had_later(
    tmp_path: Path,
) -> None:
    """Two callers at once: neither may wait for ever for the threads that the other was refused."""
    talk, model = write_wav(tmp_path / "talk.wav", speech()), write_tiny_model(tmp_path / "model")
    arguments = [sys.executable, "-c", WITHOUT_THREADS, str(model), str(talk)]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-2000:]

"""`serve` as a person starts it, and stops it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from sprachbund.cli.serve import _named
from tests.stories.support import command


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "sprachbund", "serve", "--port", "0", "--engine", "torch"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield started
    if started.poll() is None:
        started.kill()
    started.wait()


@pytest.mark.slow
def test_it_says_where_it_is_and_what_the_weights_may_be_used_for_and_stops_when_asked(process):
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stderr:
            lines.append(line)
            if "Ctrl-C stops it" in line:
                ready.set()

    threading.Thread(target=read, daemon=True).start()
    assert ready.wait(30), lines
    address = re.search(r"page at (http://127\.0\.0\.1:\d+/)", "".join(lines))[1]
    assert "licence CC-BY-SA-3.0" in "".join(lines)
    transport = httpx.HTTPTransport(retries=20)
    with httpx.Client(transport=transport, base_url=address) as client:
        assert client.get("health").json() == {"status": "ok"}
        assert client.get("v1/models").json()["data"][0]["id"] == "bundled"
    process.send_signal(signal.SIGINT)
    assert process.wait(15) in (0, 130, -signal.SIGINT)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "give --key-file, or --no-key"),
        (["--key-file", "nowhere.txt"], "cannot be read"),
        (["--port", "70000"], "--port is 70000"),
        (["--max-live", "0"], "--max-live is 0"),
        (["--max-duration-s", "-3"], "--max-duration-s is -3"),
        (["--host", "203.0.113.9", "--no-key"], "cannot listen at 203.0.113.9"),
        (["--model", "./nowhere", "--offline"], "nowhere"),
    ],
)
def test_what_cannot_be_is_said_before_anything_listens(arguments, says):
    ran = command("serve", *arguments)
    assert ran.code in (1, 2)
    assert says in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--engine", "abacus", "is 'abacus'; choose one of auto, native"),
        ("--threads", "100000", "is 100000, and this machine has"),
        ("--device", "cuda:99", "is 'cuda:99', which is not here"),
    ],
)
def test_what_the_machine_or_the_package_does_not_have_is_a_usage_error(option, value, says):
    ran = command("serve", option, value)
    assert ran.code == 2
    assert f"error: {option} {says}" in ran.err


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = command("serve", "--port", str(taken.getsockname()[1]))
    assert ran.code == 1
    assert "in use" in ran.err
    assert "choose another --port" in ran.err


def test_addresses_are_printed_as_they_are_typed() -> None:
    assert _named(("127.0.0.1", 8000)) == "127.0.0.1:8000"
    assert _named(("::1", 10300, 0, 0)) == "[::1]:10300"

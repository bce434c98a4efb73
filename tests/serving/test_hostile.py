"""Clients that mean harm: over raw sockets, one after the other, while a good client has to be answered."""

import asyncio
import asyncio.selector_events
import contextlib
import errno
import http.client
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from sprachbund.serving.connections import LiveProtocol
from sprachbund.serving.live import Start, live_options, parse_message
from sprachbund.serving.schemas import RefusalError
from sprachbund.serving.settings import Limits, Settings, Timeouts
from tests.serving.live_support import SPAN
from tests.serving.support import noise, read_text, serving, talking, tiny_model, wait_for, wav

GREEDY, GOOD = "a-greedy-clients-key", "a-good-clients-own-key"
AUDIO = wav(noise(0.5))
FIELDS = {"model": "tiny", "language": "en"}
UPLOAD = (
    "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def served(tmp_path):
    """Makes a service with a tiny model and two keys."""
    (tmp_path / "keys").write_text(f"{GREEDY}\n{GOOD}\n")

    def make(limits=None, timeouts=None, **options):
        settings = Settings(
            port=0,
            models=("tiny",),
            key_file=tmp_path / "keys" if options.pop("keys", True) else None,
            limits=limits or Limits(),
            timeouts=timeouts or Timeouts(header_s=30.0),
        )
        return serving(settings, loader=lambda name: tiny_model(), **options)

    return make


@pytest.fixture(scope="module")
def open_to_all():
    """A service without keys."""
    settings = Settings(port=0, models=("tiny",), timeouts=Timeouts(header_s=0.6))
    with serving(settings, loader=lambda name: tiny_model()) as running:
        yield running


@contextlib.contextmanager
def connections(running, number, sent=b""):
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(number):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            if sent:
                with contextlib.suppress(OSError):  # refused already
                    sock.sendall(sent)
            opened.append(sock)
        yield opened


def post(running, key=GOOD, **options):
    return httpx.post(
        f"{running.url}/v1/audio/transcriptions",
        files={"file": ("a.wav", options.pop("file", AUDIO))},
        data=FIELDS,
        headers={"authorization": f"Bearer {key}", **options.pop("headers", {})},
        timeout=30,
        **options,
    )


def answer_to(running, data):
    """All that comes until the service closes, or has nothing more to say."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=2) as sock:
        sock.sendall(data)
        return received(sock)


def received(sock):
    got = b""
    with contextlib.suppress(OSError):
        while part := sock.recv(1 << 16):
            got += part
            head, _, body = got.partition(b"\r\n\r\n")
            if b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n":
                break
    return got


def is_closed(sock, within_s=4.0):
    """Whether the service closes the connection; what it says before is thrown away."""
    sock.settimeout(within_s)
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def failures(caplog):
    """What was written down as an error of ours, with or without a traceback."""
    return [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


# Whom a request is from and for.


@pytest.mark.parametrize(
    ("header", "statuses"),
    [
        ("Host: [::1", {400}),
        ("Host: localhost\r\nHost: localhost", {400}),
        ("Host: a b", {400}),
        ("Host: \xff\xfe", {400}),
        ("Host: " + "a" * 9000, {400}),
        ("Host: http://[", {400}),
        ("Host:", {421}),
        ("Host: evil.example", {421}),
        ("Host: localhost\r\nOrigin: http://[", {403}),
        ("Host: localhost\r\nOrigin: null", {403}),
        ("Host: localhost\r\nOrigin:", {403}),
        ("Host: localhost\r\nOrigin: \xff", {403}),
        ("Host: localhost\r\nOrigin: " + "h" * 9000, {403}),
        ("Host: localhost\r\nOrigin: https://evil.example", {403}),
        ("Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example", {403}),
        ("Host: localhost:80\r\nOrigin: http://localhost:81", {403}),
    ],
)
@pytest.mark.parametrize("kind", ["GET /nowhere", "POST /v1/audio/transcriptions", "websocket"])
def test_headers_that_lie_are_refused_in_one_line(open_to_all, caplog, header, statuses, kind):
    rest = "Content-Length: 1000\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    if kind == "websocket":
        kind, statuses = "GET /v1/live", {400, 403, 431}
        rest = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
    elif kind.startswith("GET"):
        rest = ""
    sent = f"{kind} HTTP/1.1\r\n{header}\r\n{rest}\r\n".encode("latin-1")
    with caplog.at_level(logging.INFO):
        head, _, body = answer_to(open_to_all, sent).partition(b"\r\n\r\n")
    assert int(head.split()[1]) in statuses, head
    assert b"\n" not in body.strip() or b"Invalid HTTP request" in body
    assert len(body) < 500
    assert not failures(caplog)


def test_pages_of_other_sites_are_refused_before_their_body_comes(served):
    with served() as running:
        head = UPLOAD.format(key=GOOD).replace("localhost", "localhost\r\nOrigin: https://evil.example")
        assert b" 403 " in answer_to(running, head.encode())[:20]
        assert post(running, headers={"origin": "https://evil.example"}).status_code == 403
        assert post(running, headers={"origin": running.url}).status_code == 200
        assert post(running).status_code == 200
        wait_for(lambda: running.service.intake.stored_bytes == 0)


def test_a_refused_body_does_not_go_on_for_ever(open_to_all):
    """One for another host was read as long as it came."""
    head = b"POST /v1/models HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", open_to_all.port)) as sock:
        sock.sendall(head)
        assert b"connection: close" in received(sock)


# Heads, answers, connections.


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", HEALTH])
@pytest.mark.parametrize("drip", [b"", b"x"])
@pytest.mark.parametrize("together", [True, False])
def test_half_a_head_is_given_up_whether_the_first_or_a_later_one(open_to_all, first, drip, together):
    with socket.create_connection(("127.0.0.1", open_to_all.port), timeout=5) as sock:
        if together:
            sock.sendall(first + b"GET /health HT")
        else:
            sock.sendall(first)
            if first:
                assert received(sock)
            sock.sendall(b"GET /health HT")
        began = time.monotonic()
        if drip:
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 4:
                    sock.sendall(drip)
                    time.sleep(0.1)
        assert is_closed(sock, max(0.1, 4 - (time.monotonic() - began)))


@pytest.mark.slow
def test_a_connection_that_rests_between_two_requests_is_not_given_up(open_to_all):
    with socket.create_connection(("127.0.0.1", open_to_all.port), timeout=5) as sock:
        for _ in range(2):
            sock.sendall(HEALTH[:20])
            time.sleep(0.3)
            sock.sendall(HEALTH[20:])
            assert received(sock).startswith(b"HTTP/1.1 200")
            time.sleep(1.0)  # longer than a head may take


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /health HT", HEALTH, HEALTH + b"GET /he"])
def test_more_than_a_thousand_connections_of_one_address_keep_nobody_out(served, sent, monkeypatch):
    monkeypatch.setattr(
        "sprachbund.serving.connections._LINGER_S", 0.5
    )  # so long, a client may read why it is refused
    with served() as running, connections(running, 1100, sent):
        wait_for(lambda: len(running.server.server_state.connections) <= Limits().max_connections_per_address)
        assert post(running).status_code == 200


def test_who_has_too_many_requests_at_work_is_refused_in_one_line(served):
    limits = Limits(max_connections=4, max_connections_per_address=2)
    with served(limits) as running, connections(running, 2, UPLOAD.format(key=GREEDY).encode()):
        wait_for(lambda: running.service.intake.coming == 2)
        answer = answer_to(running, HEALTH)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert (
            "2 connections of 127.0.0.1 are open"
            in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        )
        big = post(
            running, file=wav(noise(60.0))
        )  # still on its way when it is refused, and told why all the same
        assert (big.status_code, big.json()["error"]["code"]) == (429, "too_many_connections")
        for number, status in ((2, b"200"), (3, b"200"), (4, b"200")):  # idle ones make room for each other
            with socket.create_connection(
                ("127.0.0.1", running.port), source_address=(f"127.0.0.{number}", 0)
            ) as sock:
                sock.sendall(HEALTH)
                assert received(sock)[9:12] == status


def test_a_client_that_breaks_off_while_it_is_refused_is_no_error(served, caplog, monkeypatch):
    def broken(transport):
        raise OSError(errno.ENOTCONN, "not connected")

    monkeypatch.setattr(asyncio.selector_events._SelectorSocketTransport, "write_eof", broken)
    limits = Limits(max_connections_per_address=3)
    with served(limits) as running, connections(running, 20, b"GET /h"):
        wait_for(lambda: len(running.server.server_state.connections) == 3)
        assert httpx.get(f"{running.url}/health").status_code == 200
    assert not failures(caplog)


def test_an_answer_that_nobody_takes_is_given_up(served):
    with served(timeouts=Timeouts(answer_s=0.5)) as running, contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", running.port))
            request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            sock.settimeout(0.2)
            with contextlib.suppress(OSError):
                sock.sendall(request * 2000)
        wait_for(lambda: not running.server.server_state.connections, 10)
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_a_connection_is_kept_for_a_while_after_an_answer(served):
    with served(timeouts=Timeouts(idle_s=1.0)) as running:
        client = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
        client.connect()
        sock = client.sock
        for _ in range(2):  # the second comes while the connection is idle
            client.request("GET", "/health")
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
            assert client.sock is sock  # http.client drops the socket where the service says that it closes
        assert sock.recv(1) == b""  # closed a second after the last
        client.close()


def test_connections_are_kept_for_longer_than_proxies_keep_them(served):
    with served() as running:
        assert running.server.config.timeout_keep_alive > 60  # as nginx's keepalive_timeout of an upstream


@pytest.mark.slow
def test_an_answer_that_is_taken_slowly_comes_whole(served):
    with served(timeouts=Timeouts(answer_s=2.0)) as running, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", running.port))
        request = "GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n{}\r\n"
        requests = [*[request.format("")] * 99, request.format("Connection: close\r\n")]
        sock.sendall("".join(requests).encode())
        got, began = bytearray(), time.monotonic()
        while time.monotonic() - began < 3:  # slowly for longer than nothing may be taken
            got += sock.recv(8192)
            time.sleep(0.05)
        sock.settimeout(5)
        while data := sock.recv(1 << 20):
            got += data
    assert got.count(b"HTTP/1.1 200") == len(requests)
    assert got.endswith(b"}")


# Bodies, places, storage.


@pytest.mark.slow
def test_a_key_that_sends_slowly_takes_no_place_from_another(served):
    with served() as running, connections(running, 110, UPLOAD.format(key=GREEDY).encode()) as slow:
        share = Limits().share(Limits().max_receiving)
        wait_for(lambda: running.service.intake.coming == share)
        assert running.service.limiter.taken == 0
        began = time.monotonic()
        assert post(running).status_code == 200
        assert time.monotonic() - began < 5
        refused = [sock for sock in slow if _says(sock, b" 429 ")]
        assert len(refused) == 110 - share
    wait_for(lambda: running.service.intake.coming == 0)


def _says(sock, what):
    sock.settimeout(0.01)
    try:
        return what in sock.recv(4096)
    except TimeoutError:
        return False


@pytest.mark.slow
def test_a_key_that_fills_the_queue_does_not_keep_another_waiting(served):
    with served() as running, ThreadPoolExecutor(81) as threads:
        blocked = threading.Event()
        running.service.store.loaded_worker("tiny").call(blocked.wait)
        greedy = [threads.submit(post, running, GREEDY) for _ in range(80)]
        wait_for(lambda: running.service.limiter.taken >= 54)
        wait_for(lambda: sum(one.done() for one in greedy) == 80 - 54)
        good = threads.submit(post, running, GOOD)
        wait_for(lambda: running.service.limiter.taken == 55)
        blocked.set()
        order = [one for one in as_completed([*greedy, good]) if one.result().status_code == 200]
        assert good in order
        assert len(order) == 55
        assert sum(running.service.limiter._working.values()) == 0
        assert order.index(good) < 40  # the client threads' own order says no more


def test_bytes_that_are_kept_have_an_end(served):
    limits = Limits(max_stored_bytes=100_000, max_share=0.5)
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"-" * 40_000
    with served(limits) as running:
        with connections(running, 2, UPLOAD.format(key=GREEDY).encode() + part) as (first, second):
            wait_for(lambda: _says(first, b"50000 are one client's share") or _says(second, b"50000 are one"))
            assert post(running).status_code == 200
        wait_for(lambda: running.service.intake.stored_bytes == 0)


def test_a_full_disk_is_told_and_is_no_end(served, caplog):
    """The system lets files grow no further, which is what a full disk does to a write."""
    big = wav(noise(60.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with served() as running:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with caplog.at_level(logging.ERROR):
                answer = post(running, file=big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert answer.status_code == 507
        assert "cannot be stored here (File too large); try again later" in answer.json()["error"]["message"]
        assert not failures(caplog)
        assert post(running, file=big).status_code == 200
        wait_for(lambda: running.service.intake.stored_bytes == 0)


SERVE_WITH_FEW_DESCRIPTORS = """
import logging, os, resource, sys, threading
when, number = sys.argv[1], int(sys.argv[2])
if when == "first":
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
from sprachbund.serving.settings import Settings
from tests.serving.support import serving, tiny_model
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
with serving(Settings(port=0, models=("tiny",)), loader=lambda name: tiny_model()) as running:
    if when == "later":
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + number, number * 100))
    print(running.port, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def child_with_few_descriptors(when, number):
    """A service in a process of its own, and the lines that it wrote to stderr."""
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE_WITH_FEW_DESCRIPTORS, when, str(number)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.extend(child.stderr), daemon=True)
    reading.start()
    try:
        yield child, said
    finally:
        child.stdin.close()
        child.wait(20)
        reading.join(5)
        child.stdout.close()


@pytest.mark.slow
def test_without_descriptors_it_waits_quietly():
    """From the start it makes do with fewer connections; if they run out later, it waits a second, and says so once."""
    few, none_left = child_with_few_descriptors("first", 64), child_with_few_descriptors("later", 5)
    with few as (first, first_said), none_left as (later, later_said):
        children, used_s = (first, later), []
        ports = [int(child.stdout.readline()) for child in children]
        for child, port in zip(children, ports, strict=True):
            before = psutil.Process(child.pid).cpu_times()
            with contextlib.ExitStack() as stack:
                for _ in range(300):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                time.sleep(2.0)
                after = psutil.Process(child.pid).cpu_times()
            used_s.append(after.user + after.system - before.user - before.system)
            assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 200
    assert max(used_s) < 1.2
    assert any("fewer connections than max_connections" in line for line in first_said)
    assert any("no connection can be accepted" in line for line in later_said)
    for said in (first_said, later_said):
        assert not any("Traceback" in line for line in said), said[:50]
        assert len(said) < 30, said[:50]


# What is sent.


def test_texts_that_would_cost_too_much_are_refused(served):
    with served(keys=False) as running:
        family = running.service.store.loaded_worker("tiny").model.family
        read_text(family)
        url = f"{running.url}/v1/text/translations"
        body = {"model": "tiny", "target_language": "de", "source_language": "en"}
        answer = httpx.post(url, json={**body, "input": ["one", "x" * 2001]})
        assert answer.status_code == 400
        assert "a text of 2001 characters; 2000 are the most" in answer.json()["error"]["message"]
        answer = httpx.post(url, json={**body, "input": ["one"] * 20})
        assert [row["index"] for row in answer.json()["data"]] == list(range(20))


@pytest.mark.parametrize("charset", ["unicode_escape", "idna", "punycode", "utf-16", '"UTF-7"'])
def test_forms_in_other_encodings_are_refused(open_to_all, caplog, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="\\ud800-\xff"\r\n\r\n1\r\n--x--\r\n'
    answer = httpx.post(
        f"{open_to_all.url}/v1/audio/transcriptions",
        content=body,
        headers={"content-type": f"multipart/form-data; boundary=x; charset={charset}"},
    )
    assert answer.status_code == 415
    assert "send UTF-8" in answer.json()["error"]["message"]
    assert not failures(caplog)


def masked(opcode, data, last=True):
    """A WebSocket frame of a client."""
    return bytes([opcode | (0x80 if last else 0), 0x80 | len(data), 0, 0, 0, 0]) + data


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (masked(1, b"\xff\xfe"), 1007),
        (masked(1, b"{", last=False) + masked(0, b"", last=False) * 5000, 1009),
        (masked(3, b"x"), 1002),
        (masked(1, b"[" * 120), 1008),
    ],
)
def test_broken_frames_close_the_socket_and_write_no_traceback(open_to_all, caplog, frames, code):
    head = (
        b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with caplog.at_level(logging.INFO), socket.create_connection(("127.0.0.1", open_to_all.port)) as sock:
        sock.settimeout(5)
        sock.sendall(head)
        assert b" 101 " in sock.recv(4096)
        sock.sendall(frames)
        got = b""
        with contextlib.suppress(OSError):
            while code.to_bytes(2, "big") not in got and (part := sock.recv(4096)):
                got += part
    assert code.to_bytes(2, "big") in got
    assert not failures(caplog)


NO_TURNS = {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}


@contextlib.contextmanager
def deaf(running, path, *messages):
    """A WebSocket of a client that reads nothing behind the head."""
    head = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", running.port))
        sock.sendall(head)
        assert b" 101 " in sock.recv(160)
        for message in messages:
            sock.sendall(masked(1, json.dumps(message).encode()))
        yield sock


def ping_until(sock, condition):
    """Send pings, whose pongs nobody reads, until something is so."""
    end = time.monotonic() + 60
    sock.settimeout(0.05)
    while not condition():
        assert time.monotonic() < end
        with contextlib.suppress(OSError):
            sock.sendall(masked(9, b"x" * 120) * 500)


def test_pings_of_a_client_that_reads_nothing_have_an_end(served):
    with served(timeouts=Timeouts(answer_s=0.5)) as running, deaf(running, "/v1/live") as sock:
        (protocol,) = running.server.server_state.connections
        most = []

        def closed():
            most.append(protocol.transport.get_write_buffer_size())
            return not running.server.server_state.connections

        ping_until(sock, closed)
        assert 1 << 16 < max(most) < 1 << 20


def test_a_realtime_client_that_reads_nothing_holds_no_session(served):
    timeouts = Timeouts(answer_s=60.0, live_silent_s=2.0)
    with (
        served(timeouts=timeouts, keys=False) as running,
        deaf(running, "/v1/realtime", NO_TURNS) as sock,
    ):
        wait_for(lambda: running.service.sessions.count == 1)
        (protocol,) = running.server.server_state.connections
        ping_until(sock, lambda: not protocol.writable.is_set() or not running.service.sessions.count)
        wait_for(lambda: running.service.sessions.count == 0, 60)
        assert protocol in running.server.server_state.connections
        protocol.loop.call_soon_threadsafe(protocol.keepalive_timeout)


def test_a_session_is_kept_where_no_pong_comes(served, caplog):
    """The client is gone without a word, and the text comes before the service closes the connection."""
    start = {"type": "start", "targets": ["de"], "source": "en"}
    with served(keys=False) as running, deaf(running, "/v1/live", start) as sock:
        sessions = running.service.sessions
        wait_for(lambda: sessions._connections)
        (protocol,), (live,) = running.server.server_state.connections, sessions._sessions.values()
        ping_until(sock, lambda: protocol.transport.get_write_buffer_size() > 0)

        def end():
            protocol.keepalive_timeout()
            live.end()

        protocol.loop.call_soon_threadsafe(end)
        wait_for(lambda: live.done and live.name not in sessions._connections, 60)
        assert live.name in sessions._sessions
        assert live.name in sessions._left_s
    assert not failures(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/live", "/v1/realtime"])
def test_half_a_frame_is_given_up_and_others_are_served(small_live, caplog, monkeypatch, path):
    """Its other half never comes: the client waits, or is gone."""
    # The client does not answer the close either, for which uvicorn waits ten seconds.
    monkeypatch.setattr(
        LiveProtocol, "close_timeout", property(lambda self: 1.0, lambda self, _: None), raising=False
    )
    head = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    with caplog.at_level(logging.INFO), contextlib.ExitStack() as stack:
        running = stack.enter_context(small_live(timeouts={"header_s": 1.0, "live_silent_s": 1.0}))
        halves = []
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            sock.settimeout(60)
            sock.sendall(head)
            assert b" 101 " in sock.recv(4096)
            sock.sendall(masked(1, b'{"type": "start"' * 5)[:-30])
            halves.append(sock)
        halves[0].close()
        assert httpx.get(f"{running.url}/health").status_code == 200
        got = b""
        while part := halves[1].recv(4096):
            got += part
        assert got
        wait_for(lambda: running.service.sessions.count == 0)
    assert not failures(caplog)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"type": "resume", "session": "x", "after": ' + "9" * 5000 + "}",
        '{"type": "start", "targets": ["\\ud800"]}',
        '{"type": "start", "targets": ["de"], "key": "\\udfff"}',
        '{"type": "start", "targets": ["de"], "sample_rate": 1e400}',
        '{"type": "start", "targets": "' + "x" * 100_000 + '"}',
        "",
        "\x00",
        "NaN",
    ],
)
def test_messages_that_are_none_are_refused_with_a_short_reason(text):
    with pytest.raises(RefusalError) as caught:
        parse_message(text)
    assert caught.value.status == 400
    assert len(caught.value.message) <= 500
    caught.value.message.encode()  # can be sent


@pytest.mark.parametrize(
    "settings",
    [
        {"max_open_s": 1e9},
        {"max_waiting_s": 1e9},
        {"agreement": 10**9},
        {"right_context": 10**9},
        {"border_s": 1e300},
    ],
)
def test_a_session_cannot_ask_for_what_would_block_the_others(settings):
    with pytest.raises(RefusalError, match="is the most here"):
        live_options(Start(type="start", targets=["de"], settings=settings))
    assert live_options(Start(type="start", targets=["de"], settings={"max_open_s": 20}))


def test_a_client_holds_its_share_of_the_live_sessions(small_live, tmp_path):
    (tmp_path / "keys").write_text(f"{GREEDY}\n{GOOD}\n")

    async def scenario(running):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                client = await stack.enter_async_context(talking(running, {**SPAN, "key": GREEDY}))
                await client.until("started")
            third = await stack.enter_async_context(talking(running, {**SPAN, "key": GREEDY}))
            error = await third.hear()
            assert (error["status"], "2 are one client's share" in error["message"]) == (429, True)
            good = await stack.enter_async_context(talking(running, {**SPAN, "key": GOOD}))
            assert (await good.hear())["type"] == "started"

    with small_live(limits={"max_live": 4, "max_share": 0.5}, key_file=tmp_path / "keys") as running:
        asyncio.run(scenario(running))


def test_an_address_that_a_proxy_tells_may_hold_any_letters(small_live, caplog):
    async def scenario(running):
        headers = {"x-forwarded-for": "\xe9\xff"}
        async with talking(running, SPAN, additional_headers=headers) as client:
            session = (await client.until("started"))["session"]
        async with talking(running, additional_headers=headers) as client:
            await client.tell(type="resume", session=session)
            assert (await client.hear())["type"] == "started"
        async with talking(running) as thief:
            await thief.tell(type="resume", session=session)
            assert (await thief.hear())["status"] == 404

    with small_live() as running:
        asyncio.run(scenario(running))
    assert not failures(caplog)


def test_bytes_at_random_do_no_harm(open_to_all, caplog):
    rng = np.random.default_rng(7)
    good = [
        HEALTH,
        UPLOAD.format(key=GOOD).encode() + b"--x\r\n",
        b"POST /v1/text/translations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b'Content-Type: application/json\r\n\r\n5\r\n{"a":\r\n0\r\n\r\n',
        b"GET /static/../../x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n12345",
    ]
    with caplog.at_level(logging.WARNING):
        for number in range(150):
            data = bytearray(good[number % len(good)] * 2)
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                data[place] = rng.integers(0, 256)
            sock = socket.create_connection(("127.0.0.1", open_to_all.port), timeout=0.05)
            with sock, contextlib.suppress(OSError):
                sock.sendall(data)
                sock.recv(4096)
                sock.sendall(b"zz\r\n\x00\r\n")
                sock.recv(4096)
    assert not failures(caplog)
    assert httpx.get(f"{open_to_all.url}/health").status_code == 200

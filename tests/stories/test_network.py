"""No command and no library under one uses the network unasked, or writes beside the folders it was given."""

import time
from pathlib import Path

import pytest

from tests.stories.network import (
    VERBS,
    Seen,
    homely,
    prepare,
    read_trace,
    upload,
    watched,
    watched_service,
    why_not,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "strace is there"),
]
LATE_S = 11.0
"""onnxruntime's telemetry looks a host up 9 s after it was loaded."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("watched") / "here"
    prepare(root)
    return root


@pytest.fixture(scope="module")
def seen(root: Path) -> tuple[Seen, Seen]:
    """What the verbs did, and what a service did that answered a request and then ran on while they worked."""
    result: list[Seen] = []
    with watched_service(root, result) as address:
        answered = time.monotonic()
        assert isinstance(upload(address, root / "talk.wav"), str)
        verbs = watched(root, [command for commands in VERBS.values() for command in commands])
        time.sleep(max(0.0, answered + LATE_S - time.monotonic()))
    return verbs, result[0]


def test_verbs_open_no_socket(seen: tuple[Seen, Seen]) -> None:
    assert not seen[0].network
    assert not [*seen[0].hosts, *seen[0].names]


def test_the_service_opens_its_listener_alone(seen: tuple[Seen, Seen]) -> None:
    assert seen[1].network == {"AF_INET": 1}
    assert seen[1].listening == ["127.0.0.1"]
    assert not [*seen[1].hosts, *seen[1].names]


def test_nothing_is_written_beside_the_folders_given(seen: tuple[Seen, Seen], root: Path) -> None:
    assert not [*seen[0].written, *seen[1].written]
    assert not homely(root)


def test_the_watch_sees_what_is_there(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(
        "7 socket(AF_INET, SOCK_DGRAM, 0) = 3\n"
        '7 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.1.2.3")}, 16 <unfinished ...>\n'
        '8 openat(AT_FDCWD</x>, "id", O_WRONLY|O_CREAT, 0600 <unfinished ...>\n'
        "7 <... connect resumed>) = 0\n"
        "8 <... openat resumed>) = 4</x/id>\n"
        '7 sendto(3, "x", 1, 0, {sa_family=AF_INET6, sin6_port=htons(9), inet_pton(AF_INET6, "::1", &a)}, 28) = 1\n'
    )
    seen = read_trace(trace, tmp_path / "here")
    assert (seen.network, seen.hosts, seen.listening) == ({"AF_INET": 1}, ["10.1.2.3:53"], ["::1"])
    assert seen.written == ["/x/id"]

"""Untrusted recordings: what they cannot do, and what is said when they try."""

import errno
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sprachbund.audio import isolated
from sprachbund.audio.decoders import _CONTAINERS
from sprachbund.audio.load import open_audio
from sprachbund.audio.sandbox import DecodingLimits, Sandbox
from sprachbund.errors import SprachbundError
from tests.audio.support import FFMPEG_CODECS, melody, write, write_ffmpeg

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no child can be confined there")
LIMITS = DecodingLimits(memory_bytes=300 << 20, cpu_s=20, stall_s=1.0)
SNDFILE_NAMES = ("a.wav", "a.flac", "a.aiff", "a.caf", "a.au", "a.ogg", "a.w64")


def refused(source: object, *, untrusted: bool = True, **options: object) -> str:
    with pytest.raises(SprachbundError) as caught:
        list(open_audio(source, untrusted=untrusted, **options).blocks())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def samples(source: object, **options: object) -> np.ndarray:
    return np.concatenate(list(open_audio(source, **options).blocks()))  # type: ignore[arg-type]


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Children whose decoders do harm, chosen by the name of the recording."""
    isolated.stop()
    monkeypatch.setattr(isolated, "_SERVER", "tests.audio.misbehaving")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    yield
    isolated.stop()


@pytest.mark.parametrize("name", [*SNDFILE_NAMES, *(f"b.{suffix}" for suffix in FFMPEG_CODECS), "v.mp4"])
def test_the_samples_are_the_same_to_the_bit(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path = write(path, 44_100) if name in SNDFILE_NAMES else write_ffmpeg(path, video=name == "v.mp4")
    here, there = open_audio(path), open_audio(path, untrusted=True)
    assert (there.duration_s, there.name) == (here.duration_s, here.name)
    for start_s in (0.0, 0.0, 1.234):
        ours, theirs = (np.concatenate(list(s.blocks(start_s=start_s))) for s in (here, there))
        assert theirs.dtype == np.float32
        np.testing.assert_array_equal(theirs, ours)
    assert there.warnings == here.warnings


def test_damage_is_told_the_same(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac", "b.webm"):
        path = tmp_path / name
        path = write_ffmpeg(path) if name == "b.webm" else write(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 6 // 10])
        here, there = open_audio(path), open_audio(path, untrusted=True)
        np.testing.assert_array_equal(*(np.concatenate(list(source.blocks())) for source in (here, there)))
        assert there.warnings == here.warnings != []
    for content in (b"", b"Dear diary,\n" * 99):
        path.write_bytes(content)
        assert refused(path) == refused(path, untrusted=False)


def test_open_files_of_any_kind(tmp_path: Path) -> None:
    content = write_ffmpeg(tmp_path / "a.m4a").read_bytes()
    expected = samples(io.BytesIO(content))
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as spooled, (tmp_path / "a.m4a").open("rb") as file:
        spooled.write(content)
        spooled.seek(0)
        with gzip.open(tmp_path / "a.gz") as unpacked:
            for source in (io.BytesIO(content), spooled, file, unpacked):
                for _ in range(2):
                    np.testing.assert_array_equal(samples(source, untrusted=True), expected)
                    source.seek(0)


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize("name", ["a.wav", "a.ogg", "a.flac"])
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_a_recording_cut_off_on_a_pipe_says_so(
    tmp_path: Path, name: str, part: float, untrusted: bool
) -> None:
    duration_s = 20.0 if name == "a.ogg" else 1.8  # all of it fits into a pipe
    content = write(tmp_path / name, samples=melody(16_000, duration_s)).read_bytes()
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reader:
        with os.fdopen(into, "wb") as writer:
            writer.write(content[: int(len(content) * part)])
        source = open_audio(reader, name="stdin", untrusted=untrusted)
        assert sum(map(len, source.blocks())) > 0.3 * part * duration_s * 16_000
    assert any("stdin: cut off" in warning for warning in source.warnings) == (part < 1), source.warnings


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_whose_writer_could_not_go_back_is_not_called_cut_on_a_pipe(tmp_path: Path, size: int) -> None:
    content = bytearray(write(tmp_path / "a.wav", samples=melody(16_000, 1.8)).read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    for untrusted in (False, True):
        out, into = os.pipe()
        with os.fdopen(out, "rb") as reader:
            with os.fdopen(into, "wb") as writer:
                writer.write(content)
            source = open_audio(reader, untrusted=untrusted)
            assert sum(map(len, source.blocks())) == 28_800
            assert source.warnings == []


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "b.m4a"])
def test_a_file_as_standard_input(tmp_path: Path, name: str) -> None:
    path = write_ffmpeg(tmp_path / name) if name == "b.m4a" else write(tmp_path / name)
    program = (
        "import sys; from sprachbund.audio.load import open_audio; "
        "[print(sum(map(len, open_audio(sys.stdin.buffer, untrusted=u).blocks())), sys.stdin.seek(0)) "
        "for u in (False, True)]"
    )
    with path.open("rb") as file:
        ran = subprocess.run(
            [sys.executable, "-c", program], stdin=file, capture_output=True, timeout=60, check=False
        )
    assert ran.stdout.split() == [str(len(samples(path))).encode(), b"0"] * 2, ran.stderr


def named(tmp_path: Path, name: str, content: str) -> Iterator[object]:
    """The content as a path and as an open file that says its name."""
    path = tmp_path / name
    path.write_text(content)
    yield path
    file = io.BytesIO(content.encode())
    file.name = name  # type: ignore[attr-defined]
    yield file


@pytest.mark.slow
@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "talk.m3u8",
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        ),
        ("talk.ffconcat", "ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.wav\n"),
        ("talk.asx", "<ASX><Entry><Ref href='http://127.0.0.1:{port}/a.wma'/></Entry></ASX>"),
    ],
)
def test_a_playlist_connects_to_nothing(tmp_path: Path, name: str, text: str, untrusted: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        for source in named(tmp_path, name, text.format(port=server.getsockname()[1])):
            asking = threading.Thread(
                target=refused, args=[source], kwargs={"untrusted": untrusted}, daemon=True
            )
            asking.start()
            with pytest.raises(TimeoutError, match="timed out"):
                server.accept()
            asking.join(20)
            assert not asking.is_alive()


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{path}\n#EXT-X-ENDLIST\n", "{path}"]
)
def test_a_playlist_reads_no_file(tmp_path: Path, text: str, untrusted: bool) -> None:
    import av

    secret = tmp_path / "secret.ts"
    with av.open(str(secret), "w", format="mpegts") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(melody(44_100)[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(samples(secret)) > 16_000  # it could be read
    for name in ("talk.m3u8", "talk.ffconcat"):
        head = "" if text.startswith("#") else "ffconcat version 1.0\nfile "
        for source in named(tmp_path, name, head + text.format(path=secret)):
            assert "is not audio" in refused(source, untrusted=untrusted)


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="Linux tells its ports there")
@pytest.mark.parametrize("untrusted", [False, True])
def test_a_session_description_opens_no_port(tmp_path: Path, untrusted: bool) -> None:
    port = 49_152 + 4 * os.getpid() % 16_000  # of sound; the next one is of its control

    def is_open() -> bool:
        lines = Path("/proc/net/udp").read_text().splitlines()[1:]
        return bool({int(line.split()[1].rpartition(":")[2], 16) for line in lines} & {port, port + 1})

    assert not is_open()
    text = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
    for number, source in enumerate(named(tmp_path, "talk.sdp", text)):
        asking = threading.Thread(target=refused, args=[source], kwargs={"untrusted": untrusted}, daemon=True)
        asking.start()
        asking.join(20)
        assert not asking.is_alive(), number
        assert not is_open()


def test_every_container_is_one_that_ffmpeg_knows() -> None:
    from av.format import formats_available

    assert set(_CONTAINERS) <= set(formats_available)
    assert not {"hls", "concat", "concatf", "dash", "sdp", "rtp", "rtsp", "image2", "lavfi", "tty"} & set(
        _CONTAINERS
    )


@pytest.mark.parametrize("untrusted", [False, True])
def test_a_thousand_channels_are_refused_at_little_cost(tmp_path: Path, untrusted: bool) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((10, 1024), np.int16), 16_000)
    content = bytearray(path.read_bytes())
    at, size = content.index(b"data") + 4, 1 << 28
    content[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, at + 4 + size)  # zeros that take no place on the disk
    tracemalloc.start()
    assert "has 1024 channels, and 64 are the most; mix it down" in refused(path, untrusted=untrusted)
    assert tracemalloc.get_traced_memory()[1] < 20e6  # a block would be 268 MB
    tracemalloc.stop()


@pytest.mark.parametrize("channels", [7, 8, 9, 64])
def test_many_channels_through_ffmpeg(tmp_path: Path, channels: int) -> None:
    """From eight on, a list of planes was read beyond its end."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, channels)).astype(np.float32)
    content = write(tmp_path / "a.wav", samples=wave, subtype="FLOAT").read_bytes()
    program = (
        "import sys, numpy as np; from sprachbund.audio.load import open_audio; "
        "sys.stdout.buffer.write(np.concatenate(list(open_audio(sys.stdin.buffer).blocks())).tobytes())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], input=content, capture_output=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr[-500:]
    np.testing.assert_allclose(np.frombuffer(ran.stdout, np.float32), wave.mean(axis=1), atol=1e-6)


def test_a_small_file_that_decodes_to_hours_ends_at_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", samples=np.zeros(3600 * 16_000, np.float32))
    assert path.stat().st_size < 1e6
    limits = replace(LIMITS, duration_s=60.0)
    assert "and 60 s are the most; cut it" in refused(path, limits=limits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("hang", "gave nothing for 1 s and was stopped"),
        ("slow", "gave nothing for 1 s and was stopped"),
        ("crash", r"its decoder crashed (Segmentation fault)"),
        ("exit", "its decoder crashed (exit code 3)"),
        ("grow", "needs more than 300 MiB of memory to decode"),
        ("nonsense", "its decoder gave what is no sound"),
    ],
)
def test_a_decoder_gone_wrong_is_one_line_and_the_next_recording_works(
    tmp_path: Path, misbehaving: None, deed: str, message: str
) -> None:
    path = write(tmp_path / f"{deed}.wav")
    limits = LIMITS if deed in ("hang", "slow") else replace(LIMITS, stall_s=30.0)
    assert message in refused(path, limits=limits)
    good = write(tmp_path / "good.wav")
    np.testing.assert_array_equal(samples(good, untrusted=True), samples(good))


@pytest.mark.slow
def test_processor_time_ends(tmp_path: Path, misbehaving: None) -> None:
    path = write(tmp_path / "hang.wav")
    assert "took more than 1 s of processor time" in refused(
        path, limits=replace(LIMITS, cpu_s=1, stall_s=60.0)
    )


def test_time_that_the_reader_takes_does_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", samples=np.zeros(60 * 16_000, np.float32))
    blocks = open_audio(path, untrusted=True, limits=replace(LIMITS, stall_s=0.5)).blocks()
    next(blocks)
    time.sleep(0.8)
    assert sum(map(len, blocks)) == 30 * 16_000


def test_the_walls_stand(tmp_path: Path, misbehaving: None) -> None:
    source = open_audio(write(tmp_path / "walls.wav"), untrusted=True)
    list(source.blocks())
    result = isolated.sandbox()
    if not result.seccomp:
        pytest.skip(f"no seccomp here: {result}")
    assert len(source.warnings) == 12
    assert {warning.partition(": ")[2] for warning in source.warnings} <= {"not permitted", "not allowed"}, (
        source.warnings
    )


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_the_server_has_no_network() -> None:
    if not isolated.sandbox().network_namespace:
        pytest.skip("namespaces are not permitted here")
    server = isolated._server()._process.pid
    assert os.readlink(f"/proc/{server}/ns/net") != os.readlink("/proc/self/ns/net")
    devices = Path(f"/proc/{server}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


def test_the_server_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRACHBUND_TEST_KEY", "secret")
    isolated.stop()
    isolated.sandbox()
    environment = Path(f"/proc/{isolated._server()._process.pid}/environ")
    if not environment.exists():
        pytest.skip("only Linux tells it")
    assert b"secret" not in environment.read_bytes()


def test_a_server_that_was_killed_is_started_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", samples=np.zeros(60 * 16_000, np.float32))
    blocks = open_audio(path, untrusted=True).blocks(1.0)
    next(blocks)
    process = isolated._server()._process
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(SprachbundError, match="its decoder was ended from outside; try again"):
        list(blocks)
    assert len(samples(path, untrusted=True)) == 60 * 16_000
    assert process.returncode == -signal.SIGKILL


def test_no_descriptor_left_is_one_line_and_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.wav")
    server = isolated._server()

    def none_left(*args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", none_left)
        assert "no process could be started (Too many open files)" in refused(path)
    assert isolated._server() is server
    assert len(samples(path, untrusted=True)) == len(samples(path))


def test_several_threads_at_once_and_nothing_is_left(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.wav", samples=melody(16_000, 1.0 + n / 10)) for n in range(8)]
    isolated.sandbox()
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with ThreadPoolExecutor(8) as pool:
        result = list(pool.map(lambda path: samples(path, untrusted=True), paths * 4))
    assert [len(one) for one in result] == [len(samples(path)) for path in paths] * 4
    abandoned = open_audio(paths[0], untrusted=True).blocks(0.1)
    next(abandoned)
    abandoned.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
        server = isolated._server()._process.pid
        end = time.monotonic() + 10
        while (
            children := Path(f"/proc/{server}/task/{server}/children").read_text()
        ) and time.monotonic() < end:
            time.sleep(0.02)
        assert children == ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_ends_with_its_parent_and_survives_a_fork(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", samples=np.zeros(600 * 16_000, np.float32))
    program = f"""
import os, signal, sys
from sprachbund.audio import isolated
from sprachbund.audio.load import open_audio
blocks = open_audio({str(path)!r}, untrusted=True).blocks(1.0)
next(blocks)
server = isolated._server()._process.pid
child = os.fork()
if child == 0:
    assert len(next(open_audio({str(path)!r}, untrusted=True).blocks(1.0))) == 16_000
    assert isolated._server()._process.pid != server
    isolated.stop()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(next(blocks)) == 16_000
print(server, *open(f"/proc/{{server}}/task/{{server}}/children").read().split(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    processes = ran.stdout.split()
    assert len(processes) == 2, ran.stderr
    end = time.monotonic() + 10
    while alive := [p for p in processes if _runs(p.decode())]:
        assert time.monotonic() < end, alive
        time.sleep(0.02)


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_where_none_can_be_confined_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav")
    monkeypatch.setattr(sys, "platform", "win32")
    assert isolated.sandbox() == Sandbox(process=False, seccomp=False, network_namespace=False)
    assert "is from an untrusted source" in refused(path)


def test_limits_are_checked() -> None:
    with pytest.raises(SprachbundError, match="channels is 0"):
        DecodingLimits(channels=0)
    with pytest.raises(SprachbundError, match="stall_s is nan"):
        DecodingLimits(stall_s=float("nan"))

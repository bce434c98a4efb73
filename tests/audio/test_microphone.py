"""Microphones: a stand-in for the library, whose devices come and go, and PortAudio itself on a device of ALSA."""

import ctypes.util
import io
import os
import shutil
import subprocess
import sys
import time
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sprachbund.audio import microphone as module
from sprachbund.audio.microphone import Microphone, input_devices, monitor, raw_blocks
from sprachbund.errors import SprachbundError
from tests.audio.standin_sounddevice import installed

RECORDINGS = Path(__file__).parents[2] / "examples" / "recordings"


def hz_of(samples: np.ndarray) -> float:
    """The loudest frequency of the middle second."""
    middle = samples[4000:20000]
    return float(np.abs(np.fft.rfft(middle)).argmax() * 16_000 / len(middle))


def test_sound_comes_whole_and_at_the_right_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, blocks_until_gone=30)
    microphone, blocks = Microphone(), list[np.ndarray]()
    for block in microphone:
        blocks.append(block)
        if sum(map(len, blocks)) > 29.5 * 1600:  # all but what the resampler still holds
            microphone.stop()
    heard = np.concatenate(blocks)
    assert heard.dtype == np.float32
    assert len(heard) == pytest.approx(30 * 1600, abs=2)
    assert hz_of(heard) == pytest.approx(440, abs=2)
    assert heard.max() == pytest.approx(0.5, abs=0.02)


def test_what_came_while_nobody_listened_is_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, blocks_until_gone=10)
    microphone = Microphone()
    while microphone._blocks.qsize() < 10:
        time.sleep(0.01)
    sound = iter(microphone)
    assert len(next(sound)) > 9 * 1600
    sound.close()  # type: ignore[attr-defined]


def test_a_microphone_that_is_stopped_ends_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = installed(monkeypatch)
    microphone = Microphone("USB")
    for count, _ in enumerate(microphone):
        if count == 3:
            microphone.stop()
    [stream] = machine.streams
    assert stream.name == "USB headset"
    assert stream.closed.is_set()


def test_a_device_that_is_unplugged_is_opened_again_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    machine = installed(monkeypatch)
    said: list[str] = []
    microphone = Microphone("USB headset", report=said.append)
    start, attempts = machine.module._initialize, 0

    def start_again() -> None:
        """The device is back at the third attempt."""
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            machine.plugged.add("USB headset")
        start()

    machine.module._initialize = start_again
    sound = iter(microphone)
    before = [next(sound) for _ in range(5)]
    machine.plugged.discard("USB headset")
    after = []
    while len(machine.streams) == 1 or len(after) < 5:
        block = next(sound)
        after += [block] if len(machine.streams) > 1 else []
    microphone.stop()
    list(sound)
    assert attempts >= 3  # more where a loaded machine keeps the device silent for a moment
    assert said == [
        "the microphone USB headset is gone; listening goes on when it is back",
        "the microphone is back",
    ]
    assert all(np.abs(np.concatenate(part)).max() > 0.4 for part in (before, after))
    assert all(stream.closed.is_set() for stream in machine.streams)


def test_a_microphone_that_stays_away_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.02)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    machine = installed(monkeypatch, blocks_until_gone=2)
    microphone = Microphone(report=lambda line: (machine.plugged.clear(), microphone.stop()))  # type: ignore[func-returns-value]
    assert sum(len(block) for block in microphone) > 0


def test_devices_that_record_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    devices = input_devices()
    assert [(d.number, d.name, d.is_default) for d in devices] == [
        (0, "Built-in", True),
        (1, "USB headset", False),
    ]
    assert {d.system for d in devices} == {"ALSA"}


@pytest.mark.parametrize("name", ["nobody", "17"])
def test_no_microphone_is_an_error_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    installed(monkeypatch)
    with pytest.raises(SprachbundError, match=rf"{name}.*0 Built-in, 1 USB headset.*--microphone.*listen -"):
        Microphone(name)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SprachbundError, match=r"PortAudio.*sudo apt install libportaudio2") as caught:
        Microphone()
    assert "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)


@pytest.mark.skipif(
    sys.platform != "linux" or ctypes.util.find_library("portaudio") is None,
    reason="no PortAudio on ALSA here",
)
def test_portaudio_itself_records_from_a_device_of_alsa(tmp_path: Path) -> None:
    """ALSA's own device of a file, which gives its sound as fast as it is asked; no sound card is needed."""
    pytest.importorskip("sounddevice")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100 * 20) / 44_100)
    np.repeat(tone, 2).astype("<f4").tofile(tmp_path / "tone.raw")  # stereo
    (tmp_path / "asound.conf").write_text(
        f"pcm.tone {{ type file\n slave.pcm {{ type null }}\n file /dev/null\n infile {tmp_path / 'tone.raw'}\n"
        " format raw }\npcm.silence { type null }\npcm.!default { type plug\n slave.pcm tone }\n"
        "ctl.!default { type hw\n card 0 }\n"  # without a default, PortAudio ends the process
    )
    code = (
        "import sys, numpy\n"
        "from itertools import islice\n"
        "from sprachbund.audio.microphone import Microphone, input_devices\n"
        "print(*(d.name for d in input_devices()))\n"
        "microphone = Microphone('tone')\n"
        "sound = iter(microphone)\n"
        "heard = numpy.concatenate(list(islice(sound, 20)))\n"
        "sound.close()\n"
        "heard.tofile(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "heard")],
        env={**os.environ, "ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert {"tone", "silence"} <= set(done.stdout.split())
    heard = np.fromfile(tmp_path / "heard", np.float32)
    assert len(heard) > 24_000
    assert hz_of(heard) == pytest.approx(440, abs=2)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("pulseaudio") is None or shutil.which("paplay") is None, reason="no PulseAudio here"
)
def test_what_the_machine_plays_is_heard(tmp_path: Path) -> None:
    """A server of PulseAudio of its own, whose only output is one that nobody hears."""
    if find_spec("soundcard") is None:  # importing it needs a server
        pytest.skip("SoundCard is not installed")
    soundfile.write(
        tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100 * 60) / 44_100), 44_100
    )
    home = {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PULSE_SERVER": f"unix:{tmp_path}/server",
    }
    environment = {**os.environ, **home}
    modules = ("module-null-sink", f"module-native-protocol-unix auth-anonymous=1 socket={tmp_path}/server")
    server = subprocess.Popen(
        ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *(f"--load={m}" for m in modules)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    code = (
        "import sys, numpy, os, signal\n"
        "from sprachbund.audio.microphone import SystemSound\n"
        "sound, heard = SystemSound(), []\n"
        "try:\n"
        "    for block in sound:\n"
        "        heard += [block] if abs(block).max() > 0.1 else []\n"
        "        if len(heard) == 20:\n"
        "            numpy.concatenate(heard).tofile(sys.argv[1])\n"
        "            os.kill(int(sys.argv[2]), signal.SIGTERM)\n"  # the output is gone
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    try:
        while not (tmp_path / "server").exists():
            assert server.poll() is None
            time.sleep(0.05)
        player = subprocess.Popen(["paplay", str(tmp_path / "tone.wav")], env=environment)
        arguments = [sys.executable, "-c", code, str(tmp_path / "heard"), str(server.pid)]
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        player.wait(60)
    finally:
        server.terminate()
        server.wait(60)
    heard = np.fromfile(tmp_path / "heard", np.float32)
    assert hz_of(heard) == pytest.approx(440, abs=2)
    assert "SprachbundError the sound of this machine is gone" in done.stdout


def test_no_sound_system_is_an_error_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = types.ModuleType("soundcard")

    def no_server() -> None:
        raise AssertionError

    broken.default_speaker = broken.get_microphone = no_server  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "soundcard", broken)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SprachbundError, match=r"no PulseAudio or PipeWire.*pactl list short sinks.*listen -"):
        monitor()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SprachbundError, match=r"loop-back device such as BlackHole.*--microphone BlackHole"):
        monitor()


def test_raw_sound_is_whole_whatever_the_pipe_gives():
    samples = np.arange(-16000, 16000, dtype="<i2")

    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = samples.tobytes()

        def read(self, size: int = -1) -> bytes:
            size = min(size, 777)
            piece, self.rest = self.rest[:size], self.rest[size:]
            return piece

    result = np.concatenate(list(raw_blocks(Slow())))
    assert np.array_equal(result, samples.astype(np.float32) / 32768)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fr.mp3", "an mp3"), ("es.flac", "a flac"), ("tagged", "an mp3"), ("made.wav", "a wav")],
)
def test_a_file_is_not_taken_for_raw_sound(name, kind, tmp_path):
    if name == "made.wav":
        soundfile.write(tmp_path / name, np.zeros(100), 16_000)
        content = (tmp_path / name).read_bytes()
    elif name == "tagged":
        content = b"ID3\x04" + bytes(60)
    else:
        content = (RECORDINGS / name).read_bytes()
    said = f"standard input is {kind} file; give the file name, or raw 16-bit mono sound at 16 kHz"
    with pytest.raises(SprachbundError, match=said):
        next(raw_blocks(io.BytesIO(content)))


@pytest.mark.parametrize(
    "brand", [b"\x00\x00\x00\x20ftypM4A ", b"\x1aE\xdf\xa3", b"OggS\x00", b"RF64", b"FORM"]
)
def test_containers_are_not_taken_for_raw_sound(brand):
    with pytest.raises(SprachbundError, match="give the file name"):
        next(raw_blocks(io.BytesIO(brand + bytes(3000))))


def test_a_mp3_file_without_a_tag_is_not_taken_for_raw_sound():
    frame = b"\xff\xfb\x90\x00" + bytes(413)  # 128 kbit/s at 44.1 kHz
    with pytest.raises(SprachbundError, match="an mp3 file"):
        next(raw_blocks(io.BytesIO(4 * frame)))


def test_raw_sound_may_begin_as_a_frame_of_mp3_does():
    samples = np.r_[np.frombuffer(b"\xff\xfb\x90\x00", "<i2"), np.full(4000, 7)].astype("<i2")
    result = np.concatenate(list(raw_blocks(io.BytesIO(samples.tobytes()))))
    assert np.array_equal(result, samples.astype(np.float32) / 32768)

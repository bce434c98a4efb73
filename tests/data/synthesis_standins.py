"""What stands in for festival, flite and pico: it speaks the same protocols and answers with tones.

Each writes what it was asked to `log.jsonl` beside itself. Words in the text make it misbehave: `crash`, `once`
(crash the first time only), `hang`, `mute` (no file), `noise` (a file that is no sound), `zeros`.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_COMMON = """#!{python} -IS
import array, json, math, os, re, signal, sys, time, wave
HERE = {here!r}
RATES = {{"kal_diphone": 16000, "cmu_us_slt_arctic_hts": 32000, "kal16": 8000}}
PITCHES = {{"kal_diphone": 200, "cmu_us_slt_arctic_hts": 300, "kal16": 250}}

def speak(voice, text, path):
    with open(HERE + "/log.jsonl", "a") as log:
        log.write(json.dumps({{"voice": voice, "text": list(text), "pid": os.getpid()}}) + "\\n")
    crash = b"crash" in text
    if b"once" in text and not os.path.exists(HERE + "/crashed"):
        open(HERE + "/crashed", "w").close()
        crash = True
    if crash:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"hang" in text:
        time.sleep(60)
    if b"mute" in text:
        return
    if b"noise" in text:
        with open(path, "wb") as file:
            file.write(b"this is no sound")
        return
    rate = RATES.get(voice, 16000)
    step = 0 if b"zeros" in text else 2 * math.pi * PITCHES.get(voice, 220) / rate
    tone = [int(8000 * math.sin(step * i)) for i in range(int(0.05 * rate * len(text)))]
    silence = [0] * (rate // 2)
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(array.array("h", silence + tone + silence).tobytes())
"""

_FLITE = """
if sys.argv[1:] == ["-lv"]:
    print("Voices available: kal awb_time kal16 awb rms slt ")
else:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    assert set(options) == {"-voice", "-t", "-o"}, sys.argv
    speak(options["-voice"], os.fsencode(options["-t"]), options["-o"])
"""

_FESTIVAL = r"""
VOICES = [
    ("kal_diphone", "english", "nil"), ("cmu_us_slt_arctic_hts", "english", "nil"),
    ("ked_diphone", "english", "nil"), ("pc_diphone", "italian", "ISO-8859-1"),
    ("lp_diphone", "italian", "ISO-8859-1"), ("nsh_clunits", "russian", "utf-8"),
    ("suo_fi_lj_diphone", "nil", "nil"),
]
STRING = rb'"((?:[^"\\]|\\.)*)"'
SAY = rb"\(voice.select '(\S+)\) \(utt.save.wave \(utt.synth \(Utterance Text " + STRING
SAY += rb"\)\) " + STRING + rb" 'riff\)$"
PRINT = rb'\(format t ' + STRING + rb'\)$'
plain = lambda string: re.sub(rb"\\(.)", rb"\1", string)
if sys.argv[1] == "-b":
    assert sys.argv[2].startswith("("), "festival takes anything else for a file"
    print("SIOD: unknown voice suo_fi_lj_diphone")
    for voice in VOICES:
        print("\t".join(voice))
else:
    assert sys.argv[1:] == ["--pipe"], sys.argv
    for line in sys.stdin.buffer:
        line = line.strip()
        if said := re.match(SAY, line):
            speak(said[1].decode(), plain(said[2]), plain(said[3]).decode())
        elif printed := re.match(PRINT, line):
            print(printed[1].decode().replace("\\n", "\n"), end="", flush=True)
        elif line != b"(fflush nil)":
            print("SIOD ERROR: unbound variable", line)
            sys.exit(1)
"""

_PROGRAMS = {"flite": _FLITE, "festival": _FESTIVAL}


def put_standins(directory: Path, *names: str) -> None:
    """Make programs of these names in a directory."""
    common = _COMMON.format(python=sys.executable, here=str(directory))
    for name in names:
        path = directory / name
        path.write_text(common + _PROGRAMS[name], encoding="utf-8")
        path.chmod(0o755)


def asked(directory: Path) -> list[dict[str, Any]]:
    """What the programs were asked to say, in order: voice, text as bytes, process id."""
    lines = (directory / "log.jsonl").read_text().splitlines()
    return [{**entry, "text": bytes(entry["text"])} for entry in map(json.loads, lines)]


def pico_standin() -> ModuleType:
    """A package `py_nanotts` whose voices are tones of 400 Hz; the text `mute` has no sound."""
    module = ModuleType("py_nanotts")

    class NanoTTS:
        """As the package has it."""

        def speak(self, text: str, voice: str) -> bytes:
            """16-bit samples at 16 kHz."""
            assert voice in ("de-DE", "en-GB", "en-US", "es-ES", "fr-FR", "it-IT")
            silence = np.zeros(8000, "<i2")
            if text == "mute":
                return silence.tobytes()
            times_s = np.arange(800 * len(text)) / 16_000
            tone = (8000 * np.sin(2 * np.pi * 400 * times_s)).astype("<i2")
            return np.concatenate([silence, tone, silence]).tobytes()

    module.NanoTTS = NanoTTS  # type: ignore[attr-defined]
    return module

"""festival and flite: what they are told, what comes back, and how they may fail; with stand-ins, and themselves."""

import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sprachbund.data import synthesisers as synthesis_programs
from sprachbund.data.synthesisers import InstalledVoice, installed_voices, say
from sprachbund.errors import SprachbundError
from tests.data.synthesis_standins import asked, put_standins

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are scripts")

DEBIAN = ("festival", "flite")
KAL = InstalledVoice(program="festival", name="kal_diphone", language="en")
LP = InstalledVoice(program="festival", name="lp_diphone", language="it", coding="ISO-8859-1")
SLT = InstalledVoice(program="flite", name="slt", language="en")
SENTENCES = {
    "en": "the meeting starts at twenty past eight",
    "it": "la città è più là",
    "ru": "собрание начинается в восемь двадцать",
}


def _end_running() -> None:
    while synthesis_programs._running:
        process = synthesis_programs._running.popitem()[1].process
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    installed_voices.cache_clear()
    yield
    installed_voices.cache_clear()
    _end_running()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both stand-ins, and nothing else to be found."""
    put_standins(tmp_path, "flite", "festival")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_voices_are_those_that_the_programs_list(programs: Path) -> None:
    assert [(v.name, v.language, v.coding) for v in installed_voices("festival")] == [
        ("cmu_us_slt_arctic_hts", "en", "ascii"),
        ("kal_diphone", "en", "ascii"),
        ("ked_diphone", "en", "ascii"),
        ("lp_diphone", "it", "ISO-8859-1"),
        ("nsh_clunits", "ru", "utf-8"),
        ("pc_diphone", "it", "ISO-8859-1"),
    ]
    assert [(v.name, v.language) for v in installed_voices("flite")] == [
        ("awb", "en"),
        ("kal16", "en"),
        ("rms", "en"),
        ("slt", "en"),
    ]


@pytest.mark.parametrize("voice", [KAL, SLT])
def test_text_arrives_as_it_is_and_the_sound_comes_back(programs: Path, voice: InstalledVoice) -> None:
    text = r"""say "yes" (or 'no') to c:\new; -t $HOME"""
    samples, rate_hz = say(f"  {text}\n", voice)
    assert asked(programs)[0]["text"] == text.encode()
    assert asked(programs)[0]["voice"] == voice.name
    assert rate_hz == 16_000
    assert samples.dtype == np.int16
    assert len(samples) == 16_000 + int(0.05 * 16_000 * len(text))


def test_text_is_in_the_coding_of_the_voice(programs: Path) -> None:
    russian = InstalledVoice(program="festival", name="nsh_clunits", language="ru", coding="utf-8")
    say("perché", LP)
    say("ещё пять", russian)
    say("a café in São Paulo", KAL)
    say("Brașov è lontana", LP)
    assert [entry["text"] for entry in asked(programs)] == [
        "perché".encode("latin-1"),
        "ещё пять".encode(),
        b"a cafe in Sao Paulo",
        b"Brasov e lontana",
    ]
    with pytest.raises(SprachbundError, match="'kal_diphone' of festival cannot read 'ещё': it knows ascii"):
        say("ещё", KAL)


@pytest.mark.parametrize("voice", [KAL, SLT])
@pytest.mark.parametrize("text", ["it is mute", "it is noise", "it is zeros", "   "])
def test_silence_is_an_error(programs: Path, voice: InstalledVoice, text: str) -> None:
    with pytest.raises(SprachbundError, match=f"{voice.program} says nothing for {text!r}"):
        say(text, voice)


@pytest.mark.slow
@pytest.mark.parametrize("voice", [KAL, SLT])
def test_crash_and_hang_are_errors_and_the_next_sentence_is_spoken(
    programs: Path, voice: InstalledVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SprachbundError, match=f"{voice.program} ended with status -11"):
        say("crash", voice)
    monkeypatch.setattr(synthesis_programs, "PATIENCE_S", 1.0)
    with pytest.raises(SprachbundError, match=rf"{voice.program} (took over 1 s|ended with status -9)"):
        say("hang", voice)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(programs))
    assert len(say("hello", voice)[0])


def test_an_error_inside_festival_is_reported(programs: Path) -> None:
    wrong = InstalledVoice(program="festival", name="kal diphone", language="en")
    with pytest.raises(SprachbundError, match="festival ended with status 1: SIOD ERROR: unbound variable"):
        say("hello", wrong)


def test_one_festival_runs_for_all_sentences_and_another_in_a_forked_process(programs: Path) -> None:
    say("one", KAL)
    say("two", LP)
    forked = multiprocessing.get_context("fork").Process(target=say, args=("three", KAL))
    forked.start()
    forked.join(20)
    say("four", KAL)
    first, second, third, fourth = [entry["pid"] for entry in asked(programs)]
    assert first == second == fourth != third


@pytest.mark.parametrize("program", DEBIAN)
def test_missing_program_names_the_package(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SprachbundError, match=f"{program} is not installed: apt-get install {program}"):
        installed_voices(program)
    with pytest.raises(SprachbundError, match=f"{program} is not installed: apt-get install {program}"):
        say("hello", InstalledVoice(program=program, name="kal", language="en"))


@pytest.mark.parametrize("program", DEBIAN)
def test_real_voices_say_the_same_whatever_was_said_before(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    voices = [voice for voice in installed_voices(program) if voice.language in SENTENCES]
    if not voices:
        pytest.skip(f"{program} has no voice for {', '.join(SENTENCES)}")
    first = {voice: say(SENTENCES[voice.language], voice)[0] for voice in voices}
    _end_running()
    for voice in reversed(voices):
        samples, rate_hz = say(SENTENCES[voice.language], voice)
        np.testing.assert_array_equal(samples, first[voice])
        assert 0.8 < len(samples) / rate_hz < 5.0
        assert np.sqrt(np.mean((samples / 32768) ** 2)) > 0.01


@pytest.mark.skipif(not shutil.which("festival"), reason="festival is not installed")
def test_real_festival_hears_italian_accents() -> None:
    voices = [voice for voice in installed_voices("festival") if voice.language == "it"]
    if not voices:
        pytest.skip("festival has no Italian voice")
    accented, plain = say("città", voices[0])[0], say("citta", voices[0])[0]
    assert accented.shape != plain.shape or (accented != plain).any()
    with pytest.raises(SprachbundError, match="cannot read"):
        say("ещё", voices[0])

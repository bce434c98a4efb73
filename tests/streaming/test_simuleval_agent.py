"""The real `simuleval` command drives a session; its scores are ours of the log that the session wrote."""

import csv
import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile

import sprachbund
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.emissions import Emission, EmissionLog, ReferenceSegment, read_logs
from sprachbund.evaluation.latency import CLOCKS, MeanLatency, means, score_talk
from sprachbund.models.io import save
from sprachbund.streaming.options import LiveOptions
from tests.streaming.test_by_frames import tiny_transducer

pytest.importorskip("simuleval")
ROOT = Path(__file__).parents[2]
AGENT = ROOT / "src/sprachbund/serving/simuleval_agent.py"
SCORES = ["AL", "LAAL", "AP", "DAL", "ATD"]
REFERENCES = [
    "Beim Ton ist es genau acht Uhr; bitte geben Sie die Nummer der Konferenz ein.",
    "sechs neun vier drei acht null neun",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what SimulEval wrote of two short recordings."""
    root = tmp_path_factory.mktemp("simuleval")
    samples, rate = soundfile.read(ROOT / "examples/recordings/en.wav", dtype="float32")
    wavs = [root / "0.wav", root / "1.wav"]
    for number, wav in enumerate(wavs):
        soundfile.write(wav, samples[number * 8 * rate : (number + 1) * 8 * rate], rate)
    (root / "wavs.txt").write_text("".join(f"{wav}\n" for wav in wavs))
    (root / "references.txt").write_text("".join(f"{text}\n" for text in REFERENCES))
    arguments = {
        "agent": AGENT,
        "source": root / "wavs.txt",
        "target": root / "references.txt",
        "source-segment-size": 500,
        "to": "de",
        "spoken": "en",
        "policy": "local-agreement",
        "step-s": 0.5,
        "output": root / "out",
        "emission-log": root / "emissions.jsonl",
    }
    given = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    metrics = ["--latency-metrics", *SCORES, "--no-progress-bar"]
    program = [sys.executable, "-c", "from simuleval.cli import main; main()"]
    done = subprocess.run([*program, *given, *metrics], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return root


def test_the_command_gives_the_scores_of_our_log(ran: Path) -> None:
    logs = read_logs([ran / "emissions.jsonl"])
    instances = [json.loads(line) for line in (ran / "out/instances.log").read_text().splitlines()]
    assert [" ".join(e.text for e in log.emissions) for log in logs] == [i["prediction"] for i in instances]
    assert all(len(log.emissions) > 1 for log in logs)  # or nothing was simultaneous
    [scores] = csv.DictReader((ran / "out/scores.tsv").open(), delimiter="\t")
    ours = mean_of(logs).scores["ideal"]
    for name in SCORES:
        assert (ours[name] or 0) * unit(name) == pytest.approx(float(scores[name]), abs=1e-3), (
            name
        )  # as printed


def test_with_computation_too_when_it_is_told_by_simuleval(ran: Path) -> None:
    scorers = pytest.importorskip("simuleval.evaluator.scorers.latency_scorer").LATENCY_SCORERS_DICT
    instance_of = pytest.importorskip("simuleval.evaluator.instance").LogInstance
    lines = (ran / "out/instances.log").read_text().splitlines()
    ours = mean_of([log_of(json.loads(line)) for line in lines]).scores
    for name in SCORES[:-1]:  # ATD with computation is another: see docs/latency.md
        for clock in CLOCKS:
            scorer = scorers[name](computation_aware=clock == "computation")
            expected = scorer({n: instance_of(line) for n, line in enumerate(lines)})
            assert (ours[clock][name] or 0) * unit(name) == pytest.approx(expected, abs=1e-6), (name, clock)


def unit(name: str) -> float:
    return 1 if name == "AP" else 1000


def mean_of(logs: list[EmissionLog]) -> MeanLatency:
    talks = [
        score_talk(
            log, [ReferenceSegment(talk=log.talk, target="de", start_s=0, end_s=log.duration_s, text=text)]
        )
        for log, text in zip(logs, REFERENCES, strict=True)
    ]
    return means(talks)[0]


def log_of(instance: dict[str, Any]) -> EmissionLog:
    """What SimulEval wrote down, as a log."""
    words = zip(instance["prediction"].split(), instance["delays"], instance["elapsed"], strict=True)
    emissions = tuple(Emission(text=word, audio_s=d / 1000, wall_s=e / 1000) for word, d, e in words)
    duration_s = instance["source_length"] / 1000
    return EmissionLog(talk=str(instance["index"]), target="de", duration_s=duration_s, emissions=emissions)


def test_times_of_the_log_are_simulevals(ran: Path) -> None:
    instances = [json.loads(line) for line in (ran / "out/instances.log").read_text().splitlines()]
    for log, instance in zip(read_logs([ran / "emissions.jsonl"]), instances, strict=True):
        times = [1000 * e.audio_s for e in log.emissions for _ in e.text.split()]
        assert times == pytest.approx(instance["delays"], abs=1e-6)
        # SimulEval adds all computing so far to the audio; here computing that ends before more is said costs nothing.
        behind = [e.wall_s - e.audio_s for e in log.emissions for _ in e.text.split()]
        elapsed = [(e - d) / 1000 for e, d in zip(instance["elapsed"], instance["delays"], strict=True)]
        assert all(0 <= ours <= theirs + 0.01 for ours, theirs in zip(behind, elapsed, strict=True))


def agent(*options: str) -> Any:
    """The agent as the command would make it, without the command."""
    kind = pytest.importorskip("sprachbund.serving.simuleval_agent").LiveAgent
    parser = ArgumentParser()
    kind.add_args(parser)
    return kind.from_args(parser.parse_args(["--to", "de", "--spoken", "en", *options]))


def written(made: Any, samples: Sequence[float], rate: int = 16_000, block: int = 8_000) -> str:
    """Feed a recording as SimulEval does; all that is written."""
    segment_of = pytest.importorskip("simuleval.data.segments").SpeechSegment
    texts = []
    for begin in range(0, len(samples), block):
        content = list(samples[begin : begin + block])
        finished = begin + block >= len(samples)
        segment = made.pushpop(segment_of(content=content, sample_rate=rate, finished=finished))
        texts += [] if segment.is_empty else [segment.content]
    assert segment.finished
    return " ".join(text for text in texts if text)


def test_the_policy_that_waits_writes_what_a_recording_gives(ran: Path) -> None:
    samples, _ = soundfile.read(ran / "1.wav", dtype="float32")
    expected = sprachbund.load().translate(samples, to="de", source="en", sample_rate=16_000).text
    made = agent("--policy", "span")
    assert written(made, samples).split() == expected.split() != []
    made.reset()  # the next sentence knows nothing of the last
    assert written(made, samples).split() == expected.split()


def test_silence_is_an_end_without_text() -> None:
    assert written(agent(), [0.0] * 20_000) == ""


def test_every_option_of_a_session_is_one_of_the_command(tmp_path: Path) -> None:
    """Some have no default, which is no type that numbers can be read with."""
    model = tiny_transducer()
    save(model, tmp_path / "streaming", bits=16)
    right = model.encoder.tiers[-1].right
    made = agent("--model", str(tmp_path / "streaming"), "--right-context", str(right), "--overload", "drop")
    assert made._options == LiveOptions(right_context=right, overload="drop")
    with pytest.raises(SprachbundError, match="tier of 3 frames ahead is for the policy frames"):
        agent("--right-context", "3")


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(SprachbundError, match="policy is 'waitk'; choose one of"):
        agent("--policy", "waitk")
    with pytest.raises(SprachbundError, match=r"recording has 8000 Hz.*convert it to 16000 Hz"):
        written(agent(), [0.0] * 8_000, rate=8_000)
    with pytest.raises(SprachbundError, match="mono"):
        written(agent(), [[0.0, 0.0]] * 8_000)  # type: ignore[list-item]

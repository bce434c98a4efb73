"""What commands do to the network and to the disk, as strace sees it: every verb with its smallest real work.

Libraries open sockets from native code, so nothing that looks at Python alone is enough.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
BY_LIBRARIES = (".cache/matplotlib", ".config/matplotlib")
"""What libraries may keep under the home folder beside `.cache/sprachbund`: matplotlib, the list of fonts."""
_CALLS = "socket,connect,bind,sendto,sendmsg,sendmmsg,openat,open,creat"
_FLAGS = re.compile(r"\bO_(?:CREAT|WRONLY|RDWR)\b")
_LOOPBACK = re.compile(r'"(?:127\.\d+\.\d+\.\d+|::1)"')
_HOST = re.compile(r'inet_(?:addr|pton)\((?:AF_INET6?, )?"([^"]+)"')
_PROBE = 'sin6_port=htons(0), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::1"'
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_DRIVER = """
import json, os, sys, time
from sprachbund.cli import main
for args in json.loads(sys.argv[1]):
    code = main(args)
    print("exit code", code, *args, file=sys.stderr, flush=True)
    if code:
        sys.exit(code)
time.sleep(float(sys.argv[2]))
"""
UNITS = "--clusters 8 --unit-pieces 24 --text-pieces 30 --share 1 --kmeans-batch 64 --n-init 2 --layer 2"
STUDY = '--set grid.languages=["de"] --set grid.hours=[0.005,0.02] --set grid.tiers=["offline"] --set grid.bits=[32]'
FEW_ARMS = '--set arms=["uft","lora"]'

VERBS: dict[str, list[str]] = {
    "translate": [
        "translate talk.wav --to de --model tiny --no-guard --offline",
        "translate talk.wav --to de --engine native --offline",
    ],
    "transcribe": ["transcribe talk.wav --model tiny --format srt --out texts --offline"],
    "listen": ["listen talk.wav --fast --to de --model tiny --no-guard --offline"],
    "models": ["models list", "models show tiny --json", "models check tiny"],
    "doctor": ["doctor --model tiny"],
    "data make": [
        "data make phrasebook --edition tiny --out book --utterances 24 --heldout 3 --workers 2",
    ],
    "data show": ["data show book/dev --json", "data overlap book/dev book/train"],
    "data pack": ["data pack book/dev --out packed", "data check packed"],
    "train": ["train recipe.toml --out run --threads 1"],
    "evaluate": [
        "evaluate book/dev --model tiny --limit 4 --no-speech 1 --offline --out scores --report page.html --threads 1",
    ],
    "score": ["score scores"],
    "compare": ["compare scores same=scores --draws 20"],
    "report": ["report scores --out report.html"],
    "replay": ["replay scores --offline"],
    "bench": ["bench --model tiny --repeats 1 --engine native --offline"],
    "data prepare": ["data prepare folder own --language en --licence CC0-1.0 --out mine"],
    "convert": ["convert x.nemo --out converted --language en --offline"],
    "export": ["export streaming --out graphs --offline"],
    "translate, ONNX graphs": ["translate talk.wav --to de --model graphs --no-guard --offline"],
    "translate, speech LLM": ["translate talk.wav --to es --model llm --no-guard --offline"],
    "latency": ["latency log.jsonl --references references.jsonl"],
    "router": ["router talk.wav --model llm --to de --out router.png"],
    "share": [
        "share analyse tiny study_data/train --out gradients.npz --utterances 8 --batch 2 --accumulate 2 --offline",
        "share plan gradients.npz --out plan.json",
        "share show plan.json --out plan.html",
    ],
    "units": [
        f"units fit units_model tones --out units {UNITS}",
        "units encode units tones --out encoded",
        "units show units",
    ],
    "compress": [
        "compress quantize streaming --encoder-bits 8 --out small",
    ],
    "recipe": [f"recipe gradient_sharing --size tiny --data study_data --out recipe --threads 1 {FEW_ARMS}"],
    "study": [f"study run study.toml --data study_data --out study {STUDY}"],
}
"""Every verb but `serve`, which `watched_service` watches; in their order, for later ones use what others wrote."""

_RECIPE = """
languages = ["en", "de"]
train = [{ path = "book/train" }]
dev = [{ path = "book/dev" }]
vocabulary_size = 120
[model]
width = 32
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
feed_forward_width = 32
[training]
steps = 2
precision = "no"
batch_s = 20
num_workers = 1
evaluate_every = 2
save_every = 2
[card]
name = "story"
licence = "CC0-1.0"
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was done beside the work itself.

    Attributes:
        sockets: families of the sockets made, with how many of each. AF_UNIX ones reach no other machine. One of
            urllib3's is left out: when imported, it binds a port of ::1 and closes it, to learn whether there is IPv6.
        hosts: addresses and ports outside this machine that were connected, bound or sent to, as "HOST:PORT".
        names: of AF_UNIX sockets that were connected to, but for those in the given folders.
        listening: loopback addresses that were bound or connected to, without ports.
        written: files opened for writing outside of the folders that the command was given.
    """

    sockets: Mapping[str, int]
    hosts: list[str]
    names: list[str]
    listening: list[str]
    written: list[str]

    @property
    def network(self) -> dict[str, int]:
        """Sockets of families other than AF_UNIX."""
        return {family: count for family, count in self.sockets.items() if family != "AF_UNIX"}


@cache
def why_not() -> str:
    """Why nothing can be watched here; empty where it can."""
    try:
        ran = subprocess.run(
            ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"], capture_output=True, text=True
        )
    except OSError:
        return "strace is missing; run scripts/strace.sh"
    return "" if ran.returncode == 0 else f"strace may not trace here: {ran.stderr.strip()[:200]}"


def prepare(root: Path) -> None:
    """Write what the verbs read."""
    from sprachbund.corpora.editions import edition, make_edition
    from sprachbund.models.io import save
    from sprachbund.models.speech_llm import save as save_speech_llm
    from sprachbund.research import size_file
    from tests.evaluation.made_talks import write_lines
    from tests.evaluation.test_emissions import LOG, REFERENCE
    from tests.models.speech_llm_support import make_model
    from tests.models.transducer_checkpoints import (
        made_model,
        nemo_config,
        nemo_weights,
        sentencepiece_model,
        write_nemo,
    )
    from tests.stories.support import speech, write_tiny_model, write_wav
    from tests.streaming.test_by_frames import tiny_transducer
    from tests.units.made import conformer, write_corpus

    for folder in ("home", "tmp"):
        (root / folder).mkdir(parents=True)
    write_tiny_model(root / "tiny")
    write_wav(root / "talk.wav", speech())
    (root / "recipe.toml").write_text(_RECIPE)
    theirs = made_model()
    write_nemo(root / "x.nemo", nemo_config(theirs), nemo_weights(theirs), sentencepiece_model())
    save(tiny_transducer(num_encoder_layers=1), root / "streaming")
    save_speech_llm(make_model(), root / "llm")
    write_lines(root / "log.jsonl", LOG)
    write_lines(root / "references.jsonl", REFERENCE)
    (root / "own").mkdir()
    for name in ("one", "two"):
        write_wav(root / "own" / f"{name}.wav", speech(name))
        (root / "own" / f"{name}.txt").write_text(f"{name}.")
    conformer(root / "units_model")
    write_corpus(root / "tones")
    make_edition(root / "study_data", edition("tiny", heldout_sentences=4), workers=1)
    (root / "study.toml").write_text((size_file("encoder_transfer", "tiny")).read_text())


def watched(root: Path, commands: Sequence[str], *, linger_s: float = 0.0, timeout_s: float = 1500.0) -> Seen:
    """Run commands one after the other in one process, and say what was seen.

    Args:
        root: the working folder, as `prepare` left it.
        commands: what stands after `sprachbund`, of each.
        linger_s: how long the process stays after the last, for what libraries do later.
        timeout_s: for all of it.

    Raises:
        AssertionError: a command failed.
    """
    trace = root.with_name(f"{root.name}.trace")
    args = [sys.executable, "-c", _DRIVER, json.dumps([c.split() for c in commands]), str(linger_s)]
    ran = subprocess.run(
        [*_strace(trace), *args],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-3000:]}"
    return read_trace(trace, root)


@contextmanager
def watched_service(root: Path, result: list[Seen], *, linger_s: float = 0.0) -> Iterator[str]:
    """A service under watch: yields its address; what was seen is added to `found` when it has stopped."""
    trace = root.with_name(f"{root.name}.service.trace")
    args = [
        sys.executable,
        "-m",
        "sprachbund",
        "serve",
        "--port",
        "0",
        "--model",
        "tiny",
        "--threads",
        "1",
        "--offline",
    ]
    process = subprocess.Popen(
        [*_strace(trace), *args],
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        began, said = time.monotonic(), ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", said)):
            line = process.stdout.readline()
            assert line, f"the service ended: {said}"
            said += line
        while True:
            assert time.monotonic() - began < 120
            try:
                if httpx.get(f"{address[0]}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address[0]
        time.sleep(linger_s)
    finally:
        process.terminate()  # strace passes nothing on, so its child is ended by its own id
        for child in _children(process.pid):
            os.kill(child, 15)
        process.communicate(timeout=60)
    result.append(read_trace(trace, root))


def upload(address: str, file: Path) -> str:
    """Have the service write a recording down."""
    files, data = {"file": ("talk.wav", file.read_bytes())}, {"model": "tiny", "language": "de"}
    answer = httpx.post(f"{address}/v1/audio/transcriptions", files=files, data=data, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["text"]


def environment(root: Path) -> dict[str, str]:
    """Nothing of the caller's that switches telemetry off, such as that this is a CI machine."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "LOGNAME": "somebody",  # else torch asks the system for the user's name, through a socket of AF_UNIX
        "OMP_NUM_THREADS": "1",
    }


def homely(root: Path) -> list[str]:
    """Files under the home folder that are neither the package's nor matplotlib's."""
    home = root / "home"
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())
    return [name for name in files if not name.startswith((".cache/sprachbund/", *BY_LIBRARIES))]


def read_trace(trace: Path, root: Path) -> Seen:
    """What strace wrote, in short."""
    sockets: dict[str, int] = {}
    hosts, names, listening, written = set[str](), set[str](), set[str](), set[str]()
    opening: dict[str, bool] = {}
    for line in trace.read_text(errors="replace").splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if made := re.match(r"socket\((AF_\w+)", call):
            sockets[made[1]] = sockets.get(made[1], 0) + 1
        elif call.startswith("bind(") and _PROBE in call:
            sockets["AF_INET6"] = sockets.get("AF_INET6", 0) - 1
        elif call.startswith(("connect(", "bind(", "sendto(", "sendmsg(", "sendmmsg(")):
            for host in _HOST.findall(call):
                port = _PORT.search(call)
                if _LOOPBACK.search(f'"{host}"'):
                    listening.add(host)
                else:
                    hosts.add(f"{host}:{port[1] if port else '?'}")
            name = re.search(r'^connect\(.*sun_path=@?"([^"]*)"', call)
            if name and not name[1].startswith(f"{root}/"):
                names.add(name[1])
        elif call.startswith(("openat(", "open(", "creat(")):
            opening[process] = bool(_FLAGS.search(call)) or call.startswith("creat(")
        if opening.get(process) and (end := re.search(r" = \d+<(.*)>$", call)):
            path = end[1].removesuffix(" (deleted)")
            if not path.startswith((f"{root}/", "/dev/", "/proc/", "/memfd", "pipe:", "socket:")):
                written.add(path)
    return Seen(
        sockets={family: count for family, count in sorted(sockets.items()) if count},
        hosts=sorted(hosts),
        names=sorted(names),
        listening=sorted(listening),
        written=sorted(written),
    )


def _strace(trace: Path) -> list[str]:
    return [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-y",
        "-s",
        "300",
        "-e",
        f"trace={_CALLS}",
        "-e",
        "signal=none",
        "-o",
        str(trace),
    ]


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]

"""Us beside OpenVINO GenAI, faster-whisper, whisper.cpp, transformers and openai-whisper: same weights, audio, tokens.

Every system lives in a process of its own and is asked over a pipe, one at a time, round by round, so that a slow
moment of the machine hits all of them; tables give medians and spreads, of ratios within a round too. After each
round the results are written, and the same command goes on where it stopped. Weights are random, of published shapes.

Every processor and instruction set has results of its own, in peers_by_processor/; others are not touched.

python -m benchmarks.peers --peers .peers/bin/python --openvino .openvino/bin/python, with the environments of
benchmarks/peers/requirements.txt and requirements_openvino.txt.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from benchmarks.rows import machine
from rich.progress import Progress

from sprachbund.engines.extension import choose_instruction_set
from sprachbund.util.files import write_json

HERE = Path(__file__).parent / "peers"
RESULTS = Path(__file__).parent / "peers_by_processor"
SETTLE_S = 0.3
"""Between requests: threads of the one asked before may still be waiting actively."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked for: `windows` of `seconds`, each with `tokens`, by a `beam`; measured every so many rounds."""

    windows: int = 1
    seconds: float = 30
    tokens: int = 100
    beam: int = 1
    every: int = 1


CASES = {
    "30 s": Case(),
    "5 s": Case(seconds=5, tokens=20),
    "beam 5": Case(beam=5, every=2),
    "batch": Case(windows=8, every=2),
}
QUICK = {
    "30 s": Case(tokens=10),
    "5 s": Case(seconds=5, tokens=5),
    "beam 5": Case(tokens=5, beam=5),
    "batch": Case(windows=2, tokens=5),
}
ALL, ONE_STREAM = tuple(CASES), ("30 s", "5 s")


HELD_TO = ("avx2", "avx_vnni", "avx512_vnni")
Environment = Literal["ours", "peers", "openvino"]


@dataclass(frozen=True, kw_only=True)
class System:
    """A system at a precision.

    Attributes:
        name: as `worker.SYSTEMS` has it.
        precision: what its module takes.
        cases: that it is asked.
        environment: that it lives in.
        needs: the module that has to be there.
        converted: the converter of `checkpoint.py` that makes its files.
        held_to: what `--instruction-set` can hold it to; how, `instructions` says.
    """

    name: str
    precision: str
    cases: tuple[str, ...] = ALL
    environment: Environment = "ours"
    needs: str = ""
    converted: str | None = None
    held_to: tuple[str, ...] = HELD_TO

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


_CTRANSLATE2: dict[str, Any] = {"needs": "faster_whisper", "converted": "ctranslate2", "environment": "peers"}
SYSTEMS = (
    System(name="sprachbund", precision="native int8"),
    System(name="sprachbund", precision="torch int8", held_to=()),
    System(name="sprachbund", precision="bf16"),
    System(name="sprachbund", precision="float32", cases=ONE_STREAM),
    System(
        name="OpenVINO GenAI",
        precision="int8",
        cases=("30 s", "5 s", "batch"),
        environment="openvino",
        needs="openvino_genai",
        converted="openvino",
        held_to=("avx512_vnni",),  # with AVX2 alone it finds no kernel for its linear layers
    ),
    System(name="faster-whisper", precision="int8", **_CTRANSLATE2),
    System(name="faster-whisper", precision="float32", **_CTRANSLATE2),
    System(
        name="whisper.cpp",
        precision="q8_0",
        cases=ONE_STREAM,
        environment="peers",
        needs="pywhispercpp",
        converted="ggml",
        held_to=(),
    ),
    System(name="transformers", precision="bf16"),
    System(name="transformers", precision="float32", cases=ONE_STREAM),
    System(
        name="openai-whisper", precision="float32", cases=ONE_STREAM, environment="peers", needs="whisper"
    ),
)


class Worker:
    """A system's process."""

    def __init__(self, system: System, folder: Path, args: argparse.Namespace) -> None:
        python, env = environment(system.environment, args, torch=system.name == "openai-whisper")
        command = [python, HERE / "worker.py", system.name, system.precision, folder, str(args.threads)]
        log = (folder / f"{system}.log").open("w")
        pipe = subprocess.PIPE
        self.system, self.log = system, Path(log.name)
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=env)
        log.close()
        self.version: str = self._answer()["version"]

    def ask(self, case: Case) -> dict[str, Any]:
        """Milliseconds of the parts of a call, and the most memory the process has held so far."""
        assert self.process.stdin is not None
        print(json.dumps(asdict(case)), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        tail = self.log.read_text().strip().splitlines()[-1:]
        sys.exit(f"{self.system} ended without an answer: {''.join(tail)} (all of it: {self.log})")


def environment(
    name: Environment, args: argparse.Namespace, *, torch: bool = False
) -> tuple[str, dict[str, str]]:
    """The interpreter of an environment, and the variables of a process of it.

    Torch and transformers are lent to the peers only where asked: they cost start-up and memory.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    variables = {**os.environ, **dict.fromkeys(names, str(args.threads)), "HF_HUB_OFFLINE": "1"}
    variables |= instructions(args.instruction_set)
    if name != "ours":
        variables.pop("PYTHONPATH", None)
        variables |= {"PYTHONPATH": sysconfig.get_path("purelib")} if torch else {}
        # Of whisper.cpp compiled by pip; its own path to them ends in the folder that it was compiled in.
        site = Path(str(interpreters(args)[name])).absolute().parents[1]
        folders = [str(path) for path in site.glob("lib/python*/site-packages")]
        variables["LD_LIBRARY_PATH"] = os.pathsep.join([*folders, variables.get("LD_LIBRARY_PATH", "")])
    return str(interpreters(args)[name]), variables


def interpreters(args: argparse.Namespace) -> dict[Environment, str | None]:
    return {"ours": sys.executable, "peers": args.peers, "openvino": args.openvino}


def instructions(name: str | None) -> dict[str, str]:
    """What forbids our kernels, torch and CTranslate2 all instructions beyond a set."""
    if name is None:
        return {}
    others = {"avx2": "AVX2", "avx_vnni": "AVX2_VNNI", "avx512_vnni": "AVX512_CORE_VNNI"}
    if name not in others:
        sys.exit(f"--instruction-set {name}: the others can be held to {', '.join(others)} alone")
    return {
        "SPRACHBUND_INSTRUCTION_SET": name,
        "ATEN_CPU_CAPABILITY": "avx512" if "512" in name else "avx2",
        "ONEDNN_MAX_CPU_ISA": others[name],
        "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1" if "512" in name else "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX512" if "512" in name else "AVX2",
    }


def prepare(shape: str, systems: list[System], args: argparse.Namespace) -> Path:
    """Checkpoints and audio of a shape, made once."""
    folder: Path = args.folder.resolve() / shape
    folder.mkdir(parents=True, exist_ok=True)
    python, env = environment("ours", args)
    _once(folder / "made", [python, HERE / "checkpoint.py", "make", shape, folder], env)
    converted: dict[str, Environment] = {
        "ctranslate2": "peers",
        "ggml": "ours",  # our own export
        "openvino": "openvino",
    }
    for form in dict.fromkeys(system.converted for system in systems if system.converted):
        python, env = environment(converted[form], args, torch=form == "ctranslate2")
        _once(folder / f"converted-{form}", [python, HERE / "checkpoint.py", form, folder], env)
    return folder


def _once(mark: Path, command: list[Any], env: dict[str, str]) -> None:
    if not mark.exists():
        subprocess.run(command, check=True, env=env)
        mark.touch()


def available(args: argparse.Namespace) -> list[System]:
    """Systems that can be asked here, and a line about each that cannot."""
    systems = []
    for system in (*SYSTEMS, *drafted(args)):
        if args.systems and not {system.name, str(system)} & set(args.systems):
            continue
        if not interpreters(args)[system.environment]:
            print(f"{system} is left out: --{system.environment} names no interpreter", file=sys.stderr)
        elif args.instruction_set and args.instruction_set not in system.held_to:
            print(f"{system} is left out: it cannot be held to {args.instruction_set}", file=sys.stderr)
        elif system.needs and not _has(system, args):
            print(f"{system} is left out: its environment has no {system.needs}", file=sys.stderr)
        else:
            systems.append(system)
    if not systems:
        raise SystemExit(f"no system of {args.systems}; there are {', '.join(map(str, SYSTEMS))}")
    return systems


def drafted(args: argparse.Namespace) -> list[System]:
    """Our fastest, and transformers, with a draft whose tokens are right so often; how often, trained models say."""
    ours = [
        System(name="sprachbund", precision=f"native int8, draft {draft}", cases=ONE_STREAM)
        for draft in args.drafts
    ]
    shares = dict.fromkeys(draft.partition(" of ")[0] for draft in args.drafts)
    return ours + [
        System(name="transformers", precision=f"bf16, assisted {share}", cases=ONE_STREAM) for share in shares
    ]


def _has(system: System, args: argparse.Namespace) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({system.needs!r}) is None)"
    python, env = environment(system.environment, args, torch=system.name == "openai-whisper")
    return subprocess.run([python, "-c", code], env=env).returncode == 0


def measure(shape: str, result: dict[str, Any], args: argparse.Namespace, progress: Progress) -> None:
    """All rounds of a shape that are not yet in the result, which is written after every one."""
    entry = result["shapes"].setdefault(shape, {"rounds": 0, "systems": {}, "start": {}})
    systems = available(args)
    folder = prepare(shape, systems, args)
    task = progress.add_task(shape, total=args.rounds + 1)
    for system in systems:
        if str(system) not in entry["start"]:
            entry["start"][str(system)] = start(system, folder, args)
            write_json(args.out, result)
    progress.advance(task)
    progress.update(task, completed=1 + entry["rounds"])
    if entry["rounds"] >= args.rounds:
        return
    workers = [Worker(system, folder, args) for system in systems]
    result["versions"] |= {"torch": version("torch")} | {w.system.name: w.version for w in workers}
    for worker in workers:
        worker.ask(cases(args)["5 s"])  # the first call of a process pays for buffers and compiled parts
    while entry["rounds"] < args.rounds:
        one_round(entry, workers, args)
        entry["rounds"] += 1
        write_json(args.out, result)
        progress.advance(task)
    for worker in workers:
        worker.close()


def one_round(entry: dict[str, Any], workers: list[Worker], args: argparse.Namespace) -> None:
    """Every case asked of every system; who comes first changes from round to round."""
    number = entry["rounds"]
    turn = number % len(workers)
    for name, case in asked(args).items():
        if number % case.every:
            continue
        for worker in workers[turn:] + workers[:turn]:
            if name in worker.system.cases:
                time.sleep(SETTLE_S)
                answer = worker.ask(case)
                times = entry["systems"].setdefault(str(worker.system), {}).setdefault(name, [])
                times.append(
                    {"round": number, **{k: v for k, v in answer.items() if k not in ("text", "peak_mib")}}
                )


def start(system: System, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds from an empty process to the text of its first window, and the most memory it then held.

    The first start of ours packs weights, later ones map them: the second is what counts, for all.
    """
    for _ in range(2):
        time.sleep(SETTLE_S)
        began = time.perf_counter()
        worker = Worker(system, folder, args)
        ready_s = time.perf_counter() - began
        peak = worker.ask(cases(args)["30 s"])["peak_mib"]
        first_s = time.perf_counter() - began
        worker.close()
    return {"ready_s": ready_s, "first_text_s": first_s, "peak_mib": peak}


def cases(args: argparse.Namespace) -> dict[str, Case]:
    return QUICK if args.quick else CASES


def asked(args: argparse.Namespace) -> dict[str, Case]:
    """The cases of this run; every table needs a window."""
    return {name: case for name, case in cases(args).items() if name in {"30 s", *(args.cases or CASES)}}


def load(args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier run of the same options left, or an empty result."""
    options = {"threads": args.threads, "quick": args.quick, "instruction_set": args.instruction_set}
    if args.out.exists() and not args.fresh:
        result = json.loads(args.out.read_text(encoding="utf-8"))
        if result.get("options") == options:
            return result
        sys.exit(
            f"{args.out} was measured with {result.get('options')}, not {options}; give --fresh or another --out"
        )
    named = {
        "processor": args.processor,
        "instruction_set": args.instruction_set or choose_instruction_set(),
        "flags": flags(),
    }
    measured = {name: asdict(case) for name, case in (QUICK if args.quick else CASES).items()}
    return {"options": options, "machine": machine() | named, "cases": measured, "versions": {}, "shapes": {}}


def processor() -> str:
    """The processor's name with its family and model, since hypervisors hide which of its generation it is."""
    parts = [_cpuinfo(name) for name in ("model name", "cpu family", "model")]
    return f"{parts[0]}, family {parts[1]}, model {parts[2]}" if all(parts) else platform.machine()


def flags() -> list[str]:
    """Its instructions for products."""
    return [flag for flag in _cpuinfo("flags").split() if flag.startswith(("avx", "amx", "fma"))]


def _cpuinfo(name: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.split(":")[0].strip() == name), "")


def results(args: argparse.Namespace) -> Path:
    """The file of a processor and, where one is asked for, an instruction set."""
    named = f"{args.processor} {args.instruction_set or ''}".lower()
    return RESULTS / (re.sub(r"[^a-z0-9]+", "_", named).strip("_") + ".json")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", help="interpreter of the peers' environment; without it, ours and transformers"
    )
    parser.add_argument(
        "--openvino", help="interpreter of the environment of OpenVINO GenAI and optimum-intel"
    )
    parser.add_argument(
        "--processor", default=processor(), help="its name, for files and tables, where the system hides it"
    )
    parser.add_argument(
        "--instruction-set", help=f"hold ours and what can be held to one: {', '.join(HELD_TO)}"
    )
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base", "small"])
    parser.add_argument("--systems", nargs="+", help="names of systems; all by default")
    parser.add_argument(
        "--drafts",
        nargs="+",
        default=[],
        metavar="SHARE[ of N]",
        help="shares of a draft's tokens that are right, and of how many tokens it chooses",
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few tokens, two windows: does it work at all?")
    parser.add_argument("--fresh", action="store_true", help="forget what --out holds")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sprachbund-peers")
    parser.add_argument("--out", type=Path, help="by default a file for the processor in peers_by_processor/")
    parser.add_argument("--figure", type=Path, help="by default a file for the processor in docs/images/")
    args = parser.parse_args()
    args.out = args.out or results(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.figure = args.figure or HERE.parents[1] / "docs" / "images" / f"peers_{args.out.stem}.svg"
    return args


def main() -> None:
    args = parse()
    result = load(args)
    with Progress() as progress:
        for shape in args.shapes:
            measure(shape, result, args, progress)
    subprocess.run([sys.executable, HERE / "report.py", args.out, args.figure], check=True)


if __name__ == "__main__":
    main()

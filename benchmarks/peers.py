"""Us beside faster-whisper, transformers and openai-whisper: the same weights, audio and numbers of tokens.

Every system lives in a process of its own and is asked over a pipe, one at a time, round by round, so that a slow
moment of the machine hits all of them; tables give medians and spreads, of ratios within a round too. After each
round the results are written, and the same command goes on where it stopped. Weights are random, of published shapes.

python benchmarks/peers.py --peers .peers/bin/python, with the environment of benchmarks/peers/requirements.txt.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

HERE = Path(__file__).parent / "peers"
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


@dataclass(frozen=True, kw_only=True)
class System:
    """A system at a precision: which cases it is asked, and whether it lives in the peers' environment."""

    name: str
    precision: str
    cases: tuple[str, ...] = ALL
    foreign: bool = False
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


SYSTEMS = (
    System(name="sprachbund", precision="native int8"),
    System(name="sprachbund", precision="torch int8"),
    System(name="sprachbund", precision="bf16"),
    System(name="sprachbund", precision="float32", cases=ONE_STREAM),
    System(name="faster-whisper", precision="int8", foreign=True, needs="faster_whisper"),
    System(name="faster-whisper", precision="float32", foreign=True, needs="faster_whisper"),
    System(name="transformers", precision="bf16"),
    System(name="transformers", precision="float32", cases=ONE_STREAM),
    System(name="openai-whisper", precision="float32", cases=ONE_STREAM, foreign=True, needs="whisper"),
)


class Worker:
    """A system's process."""

    def __init__(self, system: System, folder: Path, args: argparse.Namespace) -> None:
        python, env = (
            environment(args, torch=system.name == "openai-whisper") if system.foreign else ours(args)
        )
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


def threads_of(args: argparse.Namespace) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(args.threads)), "HF_HUB_OFFLINE": "1"}


def ours(args: argparse.Namespace) -> tuple[str, dict[str, str]]:
    return sys.executable, threads_of(args)


def environment(args: argparse.Namespace, *, torch: bool) -> tuple[str, dict[str, str]]:
    """The peers' interpreter; torch and transformers are lent to it only where asked: they cost start-up and memory."""
    lent = {"PYTHONPATH": sysconfig.get_path("purelib")} if torch else {}
    return str(args.peers), threads_of(args) | lent


def prepare(shape: str, args: argparse.Namespace) -> Path:
    """Checkpoints and audio of a shape, made once."""
    folder: Path = args.folder.resolve() / shape
    folder.mkdir(parents=True, exist_ok=True)
    python, env = ours(args)
    _once(folder / "made", [python, HERE / "checkpoint.py", "make", shape, folder], env)
    if args.peers:
        python, env = environment(args, torch=True)
        _once(folder / "converted", [python, HERE / "checkpoint.py", "convert", folder], env)
    return folder


def _once(mark: Path, command: list[Any], env: dict[str, str]) -> None:
    if not mark.exists():
        subprocess.run(command, check=True, env=env)
        mark.touch()


def available(args: argparse.Namespace) -> list[System]:
    """Systems that can be asked here, and a line about each that cannot."""
    found = []
    for system in (*SYSTEMS, *drafted(args)):
        if args.systems and not {system.name, str(system)} & set(args.systems):
            continue
        if system.foreign and not args.peers:
            print(f"{system} is left out: --peers names no interpreter", file=sys.stderr)
        elif system.foreign and not _has(system, args):
            print(f"{system} is left out: {args.peers} has no {system.needs}", file=sys.stderr)
        else:
            found.append(system)
    if not found:
        raise SystemExit(f"no system of {args.systems}; there are {', '.join(map(str, SYSTEMS))}")
    return found


def drafted(args: argparse.Namespace) -> list[System]:
    """Our fastest, and transformers, with a draft whose guesses are right so often; how often, trained models say."""
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
    return subprocess.run([args.peers, "-c", code]).returncode == 0


def measure(shape: str, result: dict[str, Any], args: argparse.Namespace, progress: Progress) -> None:
    """All rounds of a shape that are not yet in the result, which is written after every one."""
    entry = result["shapes"].setdefault(shape, {"rounds": 0, "systems": {}, "start": {}})
    folder, systems = prepare(shape, args), available(args)
    task = progress.add_task(shape, total=args.rounds + 1)
    for system in systems:
        if str(system) not in entry["start"]:
            entry["start"][str(system)] = start(system, folder, args)
            save(result, args.out)
    progress.advance(task)
    progress.update(task, completed=1 + entry["rounds"])
    if entry["rounds"] >= args.rounds:
        return
    workers = [Worker(system, folder, args) for system in systems]
    result["versions"] |= {worker.system.name: worker.version for worker in workers}
    for worker in workers:
        worker.ask(cases(args)["5 s"])  # the first call of a process pays for buffers and compiled parts
    while entry["rounds"] < args.rounds:
        one_round(entry, workers, args)
        entry["rounds"] += 1
        save(result, args.out)
        progress.advance(task)
    for worker in workers:
        worker.close()


def one_round(entry: dict[str, Any], workers: list[Worker], args: argparse.Namespace) -> None:
    """Every case asked of every system; who comes first changes from round to round."""
    number = entry["rounds"]
    turn = number % len(workers)
    for name, case in cases(args).items():
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


def load(args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier run of the same options left, or an empty result."""
    options = {"threads": args.threads, "quick": args.quick}
    if args.out.exists() and not args.fresh:
        result = json.loads(args.out.read_text(encoding="utf-8"))
        if result.get("options") == options:
            return result
        sys.exit(
            f"{args.out} was measured with {result.get('options')}, not {options}; give --fresh or another --out"
        )
    machine = {"processor": processor(), "cores": os.cpu_count()}
    measured = {name: asdict(case) for name, case in (QUICK if args.quick else CASES).items()}
    return {"options": options, "machine": machine, "cases": measured, "versions": {}, "shapes": {}}


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def save(result: dict[str, Any], path: Path) -> None:
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", help="interpreter of the peers' environment; without it, ours and transformers"
    )
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base", "small"])
    parser.add_argument("--systems", nargs="+", help="names of systems; all by default")
    parser.add_argument(
        "--drafts",
        nargs="+",
        default=[],
        metavar="SHARE[ of N]",
        help="shares of a draft's guesses that are right, and of how many tokens it chooses",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few tokens, two windows: does it work at all?")
    parser.add_argument("--fresh", action="store_true", help="forget what --out holds")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sprachbund-peers")
    parser.add_argument("--out", type=Path, default=HERE.parent / "peers.json")
    parser.add_argument("--figure", type=Path, default=HERE.parents[1] / "docs" / "images" / "peers.svg")
    return parser.parse_args()


def main() -> None:
    args = parse()
    result = load(args)
    with Progress() as progress:
        for shape in args.shapes:
            measure(shape, result, args, progress)
    subprocess.run([sys.executable, HERE / "report.py", args.out, args.figure], check=True)


if __name__ == "__main__":
    main()

"""Runs the tests as other machines would: fewer instructions, other threads, locales, time zones, users and folders.

Run from the root of the repository: `python -m scripts.everywhere [CONDITION ...] [--tests PATH ...]`. Without names
it goes through all conditions, which takes hours on two cores; `--list` shows them. Names joined by "+" hold together
in one run, such as `eight-threads+locale-de+not-root`, and `--together` goes through all in as few runs as can be, two
or three hours. It needs Linux, and for some conditions Debian's `qemu-user` or a locale; a condition that cannot be had
is named and skipped. One line says what came out of each run, and the names of failed tests follow it; `--out` keeps
the numbers.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sprachbund.util.files import write_json
from sprachbund.util.processor import processor_name
from sprachbund.util.provenance import commit

NUMBERS = tuple(
    f"tests/{package}"
    for package in (
        "nn",
        "models",
        "decoding",
        "engines",
        "units",
        "training",
        "research",
        "compression",
        "streaming",
        "audio",
    )
)
"""What depends on the processor."""
FILES = tuple(
    f"tests/{package}"
    for package in (
        "util",
        "text",
        "audio",
        "data",
        "corpora",
        "evaluation",
        "cli",
        "serving",
        "stories",
        "models",
        "units",
        "research",
        "test_api.py",
    )
)
"""What depends on the system: files, text, processes and sockets."""
SMOKE = (
    "tests/nn/test_attention.py",
    "tests/nn/test_decoder.py",
    "tests/engines/test_kernels.py",
    "tests/engines/test_native_encoder.py",
    "tests/models/test_whisper.py",
    "tests/research/gradient_sharing/test_projection.py",
    # Whisper large takes an hour there.
    *("--deselect", "tests/models/test_whisper.py::test_published_shapes_give_the_logits_of_transformers"),
)
"""Minutes under emulation, which is twenty times slower."""
NOT_IN_A_BROWSER = ("--ignore", "tests/serving/page")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One way that another machine may differ.

    Attributes:
        what: in a few words.
        tests: paths.
        environment: what is changed in it.
        under: what stands before the command; `{home}` is an empty home folder.
        emulated: whether processes that tests start would escape, so that none are started to share the work.
    """

    what: str
    tests: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    under: tuple[str, ...] = ()
    emulated: bool = False

    def lacking(self) -> str:
        """What is missing to run it, and where it comes from; empty where all is there."""
        if self.under and shutil.which(self.under[0]) is None:
            package = "qemu-user" if self.emulated else "util-linux"
            return f"there is no {self.under[0]} (Debian's {package})"
        if self.under[:1] == ("unshare",):
            tried = subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True)
            if tried.returncode:
                return "this system allows no user namespaces"
        name = self.environment.get("LC_ALL", "C")
        if name not in ("C", "POSIX"):
            known = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
            if name.replace("UTF-8", "utf8") not in known:
                return f"there is no such locale (localedef -i {name.partition('.')[0]} -f UTF-8 {name})"
        return ""


def _processor(torch: str, onednn: str, mkl: str, openblas: str, numpy: str, native: str) -> dict[str, str]:
    """The variable of each library that limits its instructions."""
    return {
        "ATEN_CPU_CAPABILITY": torch,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_CBWR": mkl,
        "OPENBLAS_CORETYPE": openblas,
        "NPY_DISABLE_CPU_FEATURES": numpy,
        "SPRACHBUND_INSTRUCTION_SET": native,
    }


def _inside(*namespaces: str, first: str) -> tuple[str, ...]:
    """The command in namespaces of its own, after a line of shell."""
    script = f'{first} && exec "$@"'
    return ("unshare", "--user", "--map-root-user", *namespaces, "sh", "-c", script, "sh")


CONDITIONS = {
    "one-thread": Condition(what="one thread", tests=NUMBERS, environment={"OMP_NUM_THREADS": "1"}),
    "two-threads": Condition(what="two threads", tests=NUMBERS, environment={"OMP_NUM_THREADS": "2"}),
    "eight-threads": Condition(what="eight threads", tests=NUMBERS, environment={"OMP_NUM_THREADS": "8"}),
    "avx2": Condition(
        what="every library limited to AVX2",
        tests=NUMBERS,
        environment=_processor("avx2", "AVX2", "AVX2", "Haswell", "X86_V4,AVX512_ICL", "avx2"),
    ),
    "no-avx2": Condition(
        what="every library limited to SSE 4, and the portable kernels",
        tests=NUMBERS,
        environment=_processor(
            "default", "SSE41", "COMPATIBLE", "Nehalem", "X86_V3,X86_V4,AVX512_ICL", "portable"
        ),
    ),
    "aten-default": Condition(
        what="torch's own kernels without vectors",
        tests=NUMBERS,
        environment={"ATEN_CPU_CAPABILITY": "default"},
    ),
    "haswell": Condition(
        what="an emulated processor with AVX2",
        tests=SMOKE,
        under=("qemu-x86_64", "-cpu", "Haswell"),
        emulated=True,
    ),
    "nehalem": Condition(
        what="an emulated processor without AVX",
        tests=SMOKE,
        under=("qemu-x86_64", "-cpu", "Nehalem"),
        emulated=True,
    ),
    "locale-c": Condition(what="no locale", tests=FILES, environment={"LC_ALL": "C"}),
    "locale-de": Condition(what="commas in numbers", tests=FILES, environment={"LC_ALL": "de_DE.UTF-8"}),
    "locale-tr": Condition(what="dotted and dotless i", tests=FILES, environment={"LC_ALL": "tr_TR.UTF-8"}),
    "kathmandu": Condition(
        what="5 h 45 min east of Greenwich", tests=FILES, environment={"TZ": "Asia/Kathmandu"}
    ),
    "not-root": Condition(
        what="a user without privileges",
        tests=FILES,
        under=("unshare", "--user", "--map-user=1000", "--map-group=1000"),
    ),
    "read-only-home": Condition(
        what="a home folder that cannot be written",
        tests=FILES,
        under=_inside("--mount", first="mount --bind {home} {home} && mount -o remount,ro,bind {home}"),
    ),
    "offline": Condition(
        what="no network but the loopback",
        tests=FILES,
        under=_inside("--net", first="ip link set lo up"),
    ),
    "missing-packages": Condition(
        what="every verb without each package that it looks for",
        tests=("-m", "long", "tests/cli/test_missing_packages.py"),
    ),
}
TOGETHER = (
    "one-thread+locale-c+kathmandu",
    "two-threads+avx2+locale-tr+offline",
    "eight-threads+locale-de+not-root",
    "no-avx2+aten-default+read-only-home",
    "haswell",
    "nehalem",
    "missing-packages",
)
"""Every condition once. When a run fails, its conditions one by one say which it was."""


def joined(names: str) -> Condition:
    """All conditions of "A+B+C" at once.

    Raises:
        ValueError: a name is unknown, or two conditions set one variable to different values.
    """
    conditions = []
    for name in names.split("+"):
        if name not in CONDITIONS:
            raise ValueError(f"no condition {name}; choose from {', '.join(CONDITIONS)}")
        conditions.append(CONDITIONS[name])
    environment: dict[str, str] = {}
    for condition in conditions:
        for variable, value in condition.environment.items():
            if environment.setdefault(variable, value) != value:
                raise ValueError(f"{names} cannot hold together: two values of {variable}")
    return Condition(
        what=" and ".join(condition.what for condition in conditions),
        tests=tuple(dict.fromkeys(path for condition in conditions for path in condition.tests)),
        environment=environment,
        under=tuple(word for condition in conditions for word in condition.under),
        emulated=any(condition.emulated for condition in conditions),
    )


def main() -> int:
    """The command; 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conditions", nargs="*", metavar="CONDITION", help="all by default")
    parser.add_argument("--list", action="store_true", help="show the conditions and end")
    parser.add_argument("--together", action="store_true", help="all conditions, several in one run")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="instead of those of each condition")
    parser.add_argument("--processes", default="2", metavar="N", help="of pytest; one under emulation")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="what pytest wrote; a temporary folder by default"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON in which each run has a row")
    options = parser.parse_args()
    try:
        names = options.conditions or (TOGETHER if options.together else CONDITIONS)
        chosen = {name: joined(name) for name in names}
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for name, condition in chosen.items():
            print(
                f"{name:15} {condition.what}"
                + (f"; skipped: {lack}" if (lack := condition.lacking()) else "")
            )
        return 0
    logs = options.logs or Path(tempfile.mkdtemp(prefix="everywhere-"))
    logs.mkdir(parents=True, exist_ok=True)
    failed = False
    for name, condition in chosen.items():
        if lack := condition.lacking():
            print(f"{name:15} skipped: {lack}", flush=True)
            continue
        began, log = time.monotonic(), logs / f"{name}.txt"
        code = run(condition, options.tests or condition.tests, options.processes, log)
        failed |= code != 0
        said = log.read_text(errors="replace")
        outcome = re.findall(r"^(?:=* ?)((?:\d+ \w+,? ?)+) in ", said, re.MULTILINE)
        if options.out:
            keep_row(options.out, name, outcome[-1] if outcome else "ended early", time.monotonic() - began)
        print(
            f"{name:15} {'failed' if code else 'passed'}: "
            f"{outcome[-1] if outcome else f'pytest ended with {code}'}, {time.monotonic() - began:.0f} s",
            *re.findall(r"^(?:FAILED|ERROR) .*", said, re.MULTILINE),
            sep="\n    ",
            flush=True,
        )
    print(f"what pytest wrote is in {logs}")
    return int(failed)


def keep_row(file: Path, name: str, outcome: str, seconds: float) -> None:
    """Write the row of a run in place of the one before."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped)", outcome)}
    row = {
        "conditions": name.replace("+", ", "),
        **{what: counts.get(what, 0) for what in ("passed", "failed", "skipped")},
        "minutes": round(seconds / 60, 1),
        "processor": processor_name(),
        "commit": commit()[:12],
    }
    rows = [known for known in rows if known["conditions"] != row["conditions"]]
    write_json(file, {"rows": [*rows, row]})


def run(condition: Condition, tests: tuple[str, ...] | list[str], processes: str, log: Path) -> int:
    """Pytest's exit code; what it writes goes into `log`."""
    many = [] if condition.emulated else ["-n", processes, "--dist", "loadfile", "--no-loadscope-reorder"]
    with tempfile.TemporaryDirectory() as folder, log.open("w") as out:
        home, temporary = Path(folder) / "home", Path(folder) / "tmp"
        home.mkdir()
        temporary.mkdir()
        environment = {
            **os.environ,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(temporary / "hypothesis"),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Several processes share the cores: a thread that waits is to leave its core to others.
            "OMP_WAIT_POLICY": "passive",
            "PYTEST_TIMEOUT": "0",  # an emulated test may take long
            **condition.environment,
        }
        pytest = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", *many]
        command = [*(word.format(home=home) for word in condition.under), *pytest, *NOT_IN_A_BROWSER, *tests]
        return subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT).returncode


if __name__ == "__main__":
    raise SystemExit(main())

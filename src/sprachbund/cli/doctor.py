"""`sprachbund doctor`: does all of it work on this machine, and if not, the one thing to do about it."""

import importlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sprachbund.cli.console import Bar, print_json
from sprachbund.errors import SprachbundError

NEEDED = (
    "torch", "numpy", "scipy", "soundfile", "av", "soxr", "onnxruntime", "sentencepiece", "tokenizers",
    "safetensors", "huggingface_hub", "transformers", "langcodes", "babel", "num2words", "lhotse",
    "accelerate", "sacrebleu", "jiwer", "pydantic",
)  # fmt: skip
_PACKAGES = {"babel": "Babel"}
_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at: how it is, and what mends it."""

    name: str
    status: Status
    found: str
    fix: str = ""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Check that everything works here.")(doctor)


def doctor(
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Model to try.")] = "bundled",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check this installation; exit code 1 when something is wrong."""
    with Bar("checking"):
        checks = list(_checks(model))
    problems = [check for check in checks if check.status == "problem"]
    if as_json:
        print_json({"ok": not problems, "checks": [asdict(check) for check in checks]})
    else:
        typer.echo("\n".join(map(_line, checks)))
        typer.echo(f"\n{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "\nall is well")
    if problems:
        raise typer.Exit(1)


def _checks(model: str) -> Iterator[Check]:
    import sprachbund

    yield Check(name="sprachbund", status="ok", found=sprachbund.__version__)
    yield _python()
    missing = [check for name in NEEDED if (check := _library(name)).status != "ok"]
    yield from missing
    if missing:
        return
    yield Check(name="libraries", status="ok", found=f"{len(NEEDED)} found, torch {_version('torch')}")
    yield _processor()
    yield _engine(model)
    yield _synthesis()
    yield _new_voices()
    yield _tried("audio", _try_audio, "pip install --force-reinstall soundfile av soxr")
    yield _untrusted_sound()
    yield _tried("voice activity", _try_activity, "pip install --force-reinstall onnxruntime")
    fix = "pip install --force-reinstall sprachbund" if model == "bundled" else "copy the model again"
    yield _tried(f"model {model}", lambda: _try_model(model), fix)


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check(name="Python", status="ok", found=found)


def _version(name: str) -> str:
    try:
        return version(_PACKAGES.get(name, name))
    except PackageNotFoundError:
        return "of unknown version"


def _library(name: str) -> Check:
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken binary raises anything
        reason = " ".join(str(error).split())
        return Check(
            name=name, status="problem", found=reason, fix=f"pip install {_PACKAGES.get(name, name)}"
        )
    return Check(name=name, status="ok", found=_version(name))


def _optional(name: str, package: str, purpose: str, attempt: Callable[[], object]) -> Check:
    try:
        attempt()
    except SprachbundError as error:
        return Check(name=name, status="note", found=f"only needed for {purpose}: {error}")
    return Check(name=name, status="ok", found=f"{_version(package)}, for {purpose}")


def _synthesis() -> Check:
    from sprachbund.data.synthesis import Voice, speak

    purpose = "`data make phrasebook`"
    return _optional("espeak-ng", "espeakng-loader", purpose, lambda: speak("one", Voice(language="en")))


def _new_voices() -> Check:
    import numpy as np

    from sprachbund.audio.stretch import revoice

    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1
    return _optional("pyworld", "pyworld", "new voices in training data", lambda: revoice(noise))


def _processor() -> Check:
    import torch

    path = Path("/proc/cpuinfo")
    flags = set(path.read_text(encoding="utf-8").split()) if path.exists() else set()
    known = [flag.upper() for flag in _FEATURES if flag in flags]
    found = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        found += f", {torch.cuda.get_device_name()}"
    return Check(name="processor", status="ok", found=", ".join([found, *known]))


def _engine(model: str) -> Check:
    """Which engine can compute the model on this machine, and why not the fast one."""
    from sprachbund.models.directory import load
    from sprachbund.runtime.engine import why_not_native
    from sprachbund.runtime.extension import choose_instruction_set

    try:
        reason = why_not_native(load(model, offline=True))
    except Exception:  # what is wrong with the model is told by its own check
        return Check(name="engine", status="note", found="not tried: the model does not load")
    if reason is not None:
        return Check(name="engine", status="note", found=f"torch; the native engine cannot be used: {reason}")
    return Check(name="engine", status="ok", found=f"native, {choose_instruction_set()} kernels, and torch")


def _tried(name: str, attempt: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name=name, status="ok", found=attempt())
    except SprachbundError as error:
        return Check(name=name, status="problem", found=str(error), fix=fix)
    except Exception as error:
        reason = " ".join(str(error).split())
        return Check(name=name, status="problem", found=f"{type(error).__name__}: {reason}", fix=fix)


def _try_audio() -> str:
    """Through both engines: written as flac and as mp3, read back at another rate."""
    import io

    import numpy as np
    import soundfile

    from sprachbund.audio.load import load

    tone = np.sin(np.arange(44_100) * 0.1).astype(np.float32) * 0.5
    for container in ("FLAC", "MP3"):
        file = io.BytesIO()
        soundfile.write(file, tone, 44_100, format=container)
        file.seek(0)
        num_samples = len(load(file))
        if abs(num_samples - 16_000) > 2500:
            raise SprachbundError(f"a second of {container} became {num_samples} samples at 16 kHz")
    return "reads flac and mp3"


def _untrusted_sound() -> Check:
    """How far the decoding of uploads, and of what `--untrusted` names, is confined here."""
    from sprachbund.audio.isolated import sandbox

    name = "untrusted sound"
    try:
        found = sandbox()
    except SprachbundError as error:
        return Check(
            name=name, status="problem", found=str(error), fix="start Python from a folder that it may read"
        )
    return Check(name=name, status="ok" if found.whole else "note", found=str(found))


def _try_activity() -> str:
    import numpy as np

    from sprachbund.audio.activity import VoiceActivity

    probability = float(VoiceActivity().probabilities(np.zeros(16_000, np.float32)).max())
    if probability > 0.5:
        raise SprachbundError(f"silence is taken for speech with probability {probability:.2f}")
    return "silence is no speech"


def _try_model(name: str) -> str:
    """One second of audio through everything; silence, noise or text, it has to come through."""
    from sprachbund.api import load

    began = time.monotonic()
    model = load(name, offline=True)
    loaded_s = time.monotonic() - began
    began = time.monotonic()
    text = _one_second(model)
    return (
        f"loads in {loaded_s:.1f} s, {len(model.pairs)} pairs; a second of audio takes "
        f"{time.monotonic() - began:.2f} s and gives {text}"
    )


def _one_second(model: Any) -> str:
    import numpy as np

    from sprachbund.decoding.options import DecodingOptions
    from sprachbund.decoding.search import search
    from sprachbund.models.family import Target

    samples = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    model.transcribe(samples, sample_rate=16_000)
    # Voice activity rightly lets no noise through, so the model is tried without it.
    family = model.family
    memory = family.encode(family.features([samples]))
    source, target = model.pairs[0]
    found = search(
        family, memory, [[Target(language=target, source=source)]], DecodingOptions(max_tokens=8), [1.0]
    )
    return f"{len(found[0][0].tokens)} tokens"


def _line(check: Check) -> str:
    mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[check.status]
    lines = f"{mark}  {check.name:16}  {check.found}"
    return f"{lines}\n{'':27}mend it with: {check.fix}" if check.fix else lines

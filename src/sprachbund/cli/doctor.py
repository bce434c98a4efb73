"""`sprachbund doctor` and `sprachbund bench`: checks of the installation, and the speed of models on this machine."""

import importlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sprachbund.cli import completion
from sprachbund.cli.console import Bar, UsageError, as_usage, error_line, listed, print_json, say, size, table
from sprachbund.cli.models import fetch
from sprachbund.cli.options import with_options
from sprachbund.engines.extension import INSTRUCTION_SET, instruction_sets
from sprachbund.errors import SprachbundError
from sprachbund.models.catalogue import BUNDLED, SHIPPED

if TYPE_CHECKING:
    from sprachbund.engines.benchmark import Speed, SpeedJob


# What translating needs; that of training and evaluating is an extra, which an installation may lack.
NEEDED = (
    "torch", "numpy", "safetensors", "huggingface_hub", "filelock", "tokenizers", "sentencepiece", "google.protobuf",
    "yaml", "soundfile", "av", "soxr", "onnxruntime", "langcodes", "language_data", "jinja2", "pydantic", "typer",
    "rich",
)  # fmt: skip
"""Modules of the packages that are always installed."""
PURPOSES = {
    "train": "making data, training, evaluating",
    "serve": "the service",
    "seamless": "SeamlessM4T checkpoints",
    "speech-llm": "speech encoders joined to language models",
    "onnx": "exporting streaming models",
    "comet": "scoring with COMET",
    "ntuml": "reading the corpus NTUML2021, and datasets of parquet or arrow",
    "microphone": "microphones and the machine's own sound for listen",
    "cloud": "corpora in object stores",
    "ray": "work on many machines: the service, and jobs with --ray",
    "wandb": "curves of a training in Weights & Biases",
    "translation": "translators of texts, as of --then",
    "speakers": "labels of speakers, --speakers",
    "ctranslate2": "exporting Whisper models for faster-whisper",
    "wyoming": "Home Assistant, serve --wyoming",
}
"""What each extra is for."""
_FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "neon", "asimd", "asimddp",
    "i8mm", "sve",
)  # fmt: skip
_CODECS = ("aac", "ac3", "alac", "amrnb", "flac", "mp3", "opus", "pcm_s16le", "vorbis", "wmav2")
_CONTAINERS = {
    "mov": "mp4",
    "matroska": "mkv",
    "ogg": "ogg",
    "mpegts": "ts",
    "avi": "avi",
    "asf": "wma",
    "caf": "caf",
}

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one check: its status, and advice."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def doctor(
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="Model to try.", autocompletion=completion.models),
    ] = "bundled",
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
    from sprachbund.util.extras import is_there

    yield Check(name="sprachbund", status="ok", detail=sprachbund.__version__)
    yield _python()
    missing = [check for name in NEEDED if (check := _library(name)).status != "ok"]
    yield from missing
    if missing:
        return
    yield Check(name="libraries", status="ok", detail=f"{len(NEEDED)} found, torch {_version('torch')}")
    yield from _extras()
    yield _processor()
    yield _memory()
    yield _engine(model)
    if is_there("espeakng-loader"):
        yield _synthesis()
    if is_there("pyworld"):
        yield _new_voices()
    yield _tried("audio", _try_audio, "pip install --force-reinstall soundfile av soxr")
    yield _tried("formats", _formats, "pip install --force-reinstall av")
    yield _untrusted_sound()
    yield _tried("voice activity", _try_activity, "pip install --force-reinstall onnxruntime")
    fix = "pip install --force-reinstall sprachbund" if model in SHIPPED else "copy the model again"
    try:
        instruction_sets()
    except SprachbundError:  # the model's files are not to blame
        fix = f"unset {INSTRUCTION_SET}"
    yield _tried(f"model {model}", lambda: _try_model(model), fix)


def _python() -> Check:
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check(name="Python", status="ok", detail=system)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _library(name: str) -> Check:
    from sprachbund.util.extras import package_of

    package = package_of(name.partition(".")[0])
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken binary raises anything
        reason = " ".join(str(error).split())
        return Check(name=package, status="problem", detail=reason, fix=f"pip install {package}")
    return Check(name=package, status="ok", detail=_version(package))


def _extras() -> Iterator[Check]:
    """Extras that are installed, and the purpose of the others; none is required."""
    from sprachbund.util.extras import DEVELOPERS, extras, missing_of

    names = [name for name in extras() if name and name not in DEVELOPERS]
    missing = {name: missing_of(name) for name in names}
    if there := [name for name in names if not missing[name]]:
        yield Check(name="extras", status="ok", detail=f"{', '.join(there)}")
    for name, packages in missing.items():
        if packages:
            whole = len(packages) == len(extras()[name])
            lacks = "not installed" if whole else f"lacks {', '.join(packages)}"
            yield Check(
                name=f"extra {name}",
                status="note",
                detail=f"{lacks}; only needed for {PURPOSES[name]}: pip install 'sprachbund[{name}]'",
            )


def _decodes(codec: str) -> bool:
    import av

    try:
        return av.Codec(codec, "r").is_decoder
    except ValueError:  # of av: an unknown codec
        return False


def _optional(name: str, package: str, purpose: str, attempt: Callable[[], object]) -> Check:
    try:
        attempt()
    except SprachbundError as error:
        return Check(name=name, status="note", detail=f"only needed for {purpose}: {error}")
    except ImportError as error:
        return Check(name=name, status="note", detail=f"only needed for {purpose}: {error_line(error)}")
    return Check(name=name, status="ok", detail=f"{_version(package)}, for {purpose}")


def _synthesis() -> Check:
    from sprachbund.data.synthesis import Voice, speak

    purpose = "`data make phrasebook`"
    return _optional("espeak-ng", "espeakng-loader", purpose, lambda: speak("one", Voice(language="en")))


def _new_voices() -> Check:
    import numpy as np

    def attempt() -> None:
        from sprachbund.audio.augment import revoice

        revoice(np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1)

    return _optional("pyworld", "pyworld", "new voices in training data", attempt)


def _processor() -> Check:
    import torch

    from sprachbund.util.devices import is_fast_in_bf16
    from sprachbund.util.distributed import own_device
    from sprachbund.util.processor import instruction_flags

    flags = set(instruction_flags())
    threads = torch.get_num_threads()
    abilities = [torch.backends.cpu.get_cpu_capability(), *(f.upper() for f in _FEATURES if f in flags)]
    parts = [f"{threads} thread{'s' * (threads > 1)}", *dict.fromkeys(abilities)]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(f"trains in {'bf16' if is_fast_in_bf16(own_device()) else 'fp32'}")
    return Check(name="processor", status="ok", detail=", ".join(parts))


def _memory() -> Check:
    from sprachbund.util.memory import allowed_memory, installed_memory

    whole, allowed = installed_memory(), allowed_memory()
    limit = f", of which this process may use {size(allowed)}" if allowed < whole else ""
    return Check(name="memory", status="ok", detail=f"{size(whole)}{limit}")


def _formats() -> str:
    """Containers and codecs that PyAV's FFmpeg reads, and what is missing of the usual ones."""
    import av

    libraries = av.library_versions
    codec = ".".join(map(str, libraries["libavcodec"]))
    lacks = [name for name in _CODECS if not _decodes(name)]
    lacks += [
        name
        for part, name in _CONTAINERS.items()
        if not any(part in f.split(",") for f in av.formats_available)
    ]
    containers = [name for name in _CONTAINERS.values() if name not in lacks]
    codecs = [name for name in _CODECS if name not in lacks]
    without = f"; without {', '.join(lacks)}" if lacks else ""
    return f"{', '.join([*containers, *codecs])} (PyAV {_version('av')}, libavcodec {codec}){without}"


def _engine(model: str) -> Check:
    """Engine that computes the model on this machine, the reason, and the state of its packed weights."""
    from sprachbund.engines.choice import engine_for, why_not_native
    from sprachbund.engines.packed_cache import check_packed
    from sprachbund.models.io import load, locate

    try:
        directory = locate(model, offline=True)
        family = load(directory, offline=True, as_stored=True)
    except Exception:  # the model's own check reports its faults
        return Check(name="engine", status="note", detail="not tried: the model does not load")
    if damaged := [one for one in check_packed(directory) if one.error is not None]:
        errors = "; ".join(str(one.error) for one in damaged)
        fix = " && ".join(one.rebuilt_by(model) for one in damaged)
        return Check(name="engine", status="problem", detail=errors, fix=fix)
    try:
        engine = engine_for(family, directory=directory)
    except SprachbundError as error:  # kernels are named that are not there
        return Check(name="engine", status="problem", detail=str(error))
    notes = [*engine.notes, *engine.warnings]
    parts = [f"{part}: {computes}" for part, computes in engine.parts.items()]
    status: Status = "note" if notes or why_not_native(family) is not None else "ok"
    return Check(name="engine", status=status, detail="; ".join([str(engine), *parts, *notes]))


def _tried(name: str, attempt: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name=name, status="ok", detail=attempt())
    except SprachbundError as error:
        return Check(name=name, status="problem", detail=str(error), fix=fix)
    except Exception as error:
        reason = " ".join(str(error).split())
        return Check(name=name, status="problem", detail=f"{type(error).__name__}: {reason}", fix=fix)


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
    """Confinement of the decoding of uploads, and of recordings that `--untrusted` names."""
    from sprachbund.audio.isolated import sandbox

    name = "untrusted sound"
    try:
        isolation = sandbox()
    except SprachbundError as error:
        return Check(
            name=name, status="problem", detail=str(error), fix="start Python from a folder that it may read"
        )
    return Check(name=name, status="ok" if isolation.whole else "note", detail=str(isolation))


def _try_activity() -> str:
    import numpy as np

    from sprachbund.audio.spans import VoiceActivity

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
    from sprachbund.models.base import Target

    samples = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    model.transcribe(samples, sample_rate=16_000)
    # Voice activity rightly lets no noise through, so the model is tried without it.
    family = model.family
    memory = family.encode(family.features([samples]))
    source, target = model.pairs[0]
    hypotheses = search(
        family, memory, [[Target(language=target, source=source)]], DecodingOptions(max_tokens=8), [1.0]
    )
    return f"{len(hypotheses[0][0].tokens)} tokens"


def _line(check: Check) -> str:
    mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[check.status]
    lines = f"{mark}  {check.name:17}  {check.detail}"
    return f"{lines}\n{'':28}mend it with: {check.fix}" if check.fix else lines


# `sprachbund bench`: speed of a model on this machine with each engine, and its upper bound.

_LEGEND = """\
Milliseconds, medians; encoder, prompt and token are of the long call. The bound of the encoder is the time for as many
operations at the processor's peak on 8 bits. The bound of a token is the time to read from memory all that it needs;
models small enough for the processor's cache can be faster than that."""


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="bundled (the default), a directory, an alias or a Hugging Face id.",
            autocompletion=completion.models,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", metavar="NAME", help="Whisper of this size with random weights: tiny, base, small…"
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="NAME,…",
            help="native, torch-int8, torch-bf16, torch, torch-fp32, native-int4; the first four by default.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Threads to compute with.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", help="Measurements, of which medians count.")
    ] = 5,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Time whole calls and their parts; every engine runs in a process of its own, one after another."""
    from sprachbund.engines.benchmark import measure_speed
    from sprachbund.util.jobs import run_apart

    with as_usage():
        instruction_sets()  # bounds of the machine depend on the variable, whichever engine is measured
        jobs = _jobs(model, shape, listed(engine), threads, repeats, offline)
    if model := jobs[0].model:
        fetch(model, offline=offline)  # an error in the name is one for all engines
    speeds, notes = [], []
    with Bar("measuring", len(jobs)) as bar:
        for i, job in enumerate(jobs):
            bar.update(i, len(jobs), f"measuring {job.engine}")
            try:
                speeds.append(run_apart(measure_speed, job))
            except SprachbundError as error:
                if job.engine != "native" or engine or isinstance(error, UsageError):
                    raise
                notes.append(f"note: {error}")
    for note in notes:  # after the others: what refuses every engine is said once, as the error
        say(note)
    if as_json:
        what = {"model": jobs[0].model, "shape": shape, "threads": jobs[0].threads}
        print_json({**what, "engines": [speed.as_dict() for speed in speeds]})
    else:
        typer.echo(_text(jobs[0], speeds))


def _jobs(
    model: str | None, shape: str | None, engines: list[str], threads: int | None, repeats: int, offline: bool
) -> "list[SpeedJob]":
    from sprachbund.engines.benchmark import ENGINES, SpeedJob
    from sprachbund.engines.choice import choose_threads

    if model is None and shape is None:
        model = BUNDLED
    more: dict[str, Any] = {"threads": choose_threads(threads), "repeats": repeats, "offline": offline}
    return [SpeedJob(engine=engine, model=model, shape=shape, **more) for engine in engines or ENGINES]  # type: ignore[arg-type]


def _text(job: "SpeedJob", speeds: "list[Speed]") -> str:
    what = f"Whisper {job.shape} with random weights" if job.shape else str(job.model)
    read = max(speed.read_gb_per_s for speed in speeds)
    head = (
        "engine",
        "encoder",
        "bound",
        "of bound",
        "prompt",
        "token",
        "bound",
        "of bound",
        *_calls(job),
        "peak",
    )
    rows = [_row(speed) for speed in speeds]
    lines = [f"{speed.engine}: {speed.why}" for speed in speeds]
    title = f"{what}, {job.threads} thread{'s' * (job.threads != 1)}; memory is read at {read:.1f} GB/s"
    if known := [speed.int8_gops_per_s for speed in speeds if speed.int8_gops_per_s]:
        title += f", {max(known):.0f} billion operations on 8 bits a second"
    return "\n".join([title, *lines, "", table(rows, head), "", _LEGEND])


def _calls(job: "SpeedJob") -> tuple[str, str]:
    return (
        f"{job.window_s:g} s, {job.window_tokens} tokens",
        f"{job.clip_s:g} s, {job.clip_tokens} tokens",
    )


def _row(speed: "Speed") -> list[str]:
    window, clip = speed.window, speed.clip
    return [
        speed.engine,
        f"{window.encoder_ms:.0f}",
        *_bound(speed.encoder_bound_ms, window.encoder_ms),
        f"{window.prompt_ms:.1f}",
        f"{window.token_ms:.2f}",
        *_bound(speed.bound_ms, window.token_ms),
        f"{window.whole_ms:.0f} ±{window.spread_ms / 2:.0f}",
        f"{clip.whole_ms:.0f} ±{clip.spread_ms / 2:.0f}",
        f"{speed.peak_mib:.0f} MiB",
    ]


def _bound(bound_ms: float | None, measured_ms: float) -> tuple[str, str]:
    """A bound, and how much of it is reached."""
    return ("-", "-") if bound_ms is None else (f"{bound_ms:.2f}", f"{100 * bound_ms / measured_ms:.0f} %")


def register(app: typer.Typer) -> None:
    """Add the verbs that look at this machine."""
    app.command()(doctor)
    app.command()(with_options(bench))

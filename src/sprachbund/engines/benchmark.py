"""Measures how fast an engine computes a model on this machine, and the bounds that the machine sets.

A step of the decoder on one row reads every weight and all keys and values of the memory once and does little with
them, so the time of that reading is the bound on a token; where all of it fits into the processor's cache, a token can
take less. An encoder computes more than it reads: its bound is the processor's speed in products of 8 bits.

Both bounds are measured without the engine's own code: by plain reading, in whichever of several ways is the fastest,
and by instructions on registers that wait for nothing.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import choose_instruction_set, missing_because, native
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.torch_layers import TorchDecoder
from sprachbund.engines.trial import some_targets
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Features
from sprachbund.models.io import load, locate
from sprachbund.models.whisper import PRESETS, Whisper
from sprachbund.nn.decoder import DecoderCache
from sprachbund.util.options import OptionValueError, Range, check
from sprachbund.util.pages import zeros_in_pages

# Bounds of the machine.

_READ_BYTES = 2**29  # far more than any cache holds
_READS = 3
READING_WAYS = tuple((streams, ahead) for streams in (1, 2, 4, 8) for ahead in (0, 512, 2048))
"""Streams of a thread, and bytes that it fetches ahead; which is the fastest depends on the processor."""
_ROUNDS = 400_000  # of about fourteen instructions: a millisecond or more
_TRIALS = 10
INT8_LOOPS = {
    "amx": ("tdpbusd", "vpdpbusd zmm"),
    "avx512": ("vpdpbusd zmm",),
    "avx512_vnni": ("vpdpbusd zmm",),
    "avx_vnni": ("vpdpbusd ymm",),
    "avx2": ("vpmaddubsw ymm, vpmaddwd, vpaddd", "vpmaddwd ymm, vpaddd"),
}
"""Instructions that multiply 8 bits, by the kernels that may use them."""


def pages(num_bytes: int, *, large: bool) -> np.ndarray:
    """Bytes in pages of 2 MiB where Linux has them and `large` asks for them; all were written to once."""
    memory = zeros_in_pages(num_bytes, dtype=torch.uint8, large=large)
    return memory.fill_(1).numpy()  # zeros would all be one page


def read_gb_per_s(num_bytes: int = _READ_BYTES) -> float:
    """The fastest of some readings of memory that no cache holds, with as many threads as torch has now.

    By torch's sum without the compiled part.
    """
    if missing_because():
        x = torch.ones(num_bytes // 4)
        return max(num_bytes / _seconds(lambda: x.dot(x)) for _ in range(_READS)) / 1e9
    memory, team = pages(num_bytes, large=True), native().Team(torch.get_num_threads())
    return max(read_by(team, memory, *way) for way in READING_WAYS)


def read_by(team: Any, memory: np.ndarray, streams: int, ahead: int) -> float:
    """GB/s of a team in one of READING_WAYS, the fastest of some trials.

    Args:
        team: threads of the extension.
        memory: more bytes than the caches hold.
        streams: streams of each thread.
        ahead: bytes that are fetched in advance.
    """
    read = native().seconds_of_reading
    return max(memory.nbytes / read(team, memory, streams, ahead) for _ in range(_READS)) / 1e9


def register_gops(loop: str, threads: int = 1, rounds: int = _ROUNDS) -> float:
    """Billions of operations a second, two for a product and its sum, of so many threads at once.

    Args:
        loop: one of those of the extension, see engines/native/peak.cpp. Of the first, a chain of additions that take a
            cycle each, the speed is the processor's clock in GHz.
        threads: threads that run it, each timed by its own clock, which other programs disturb least.
        rounds: rounds of a trial.
    """
    module = native()
    operations = rounds * module.register_loops()[loop]

    def fastest(_: int) -> float:
        seconds = []
        for _ in range(_TRIALS):
            begin = time.thread_time()
            module.run_register_loop(loop, rounds)
            seconds.append(time.thread_time() - begin)
        return operations / min(seconds) / 1e9

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(fastest, range(threads)))


def int8_gops_per_s(threads: int, rounds: int = _ROUNDS) -> float | None:
    """Billions of operations on 8 bits a second that instructions of the chosen kernels can do; two for a product.

    None without the compiled part, and where no such instructions are known (not on x86, or without AVX2).
    """
    if missing_because():
        return None
    loops = INT8_LOOPS.get(choose_instruction_set(), ())
    return max((register_gops(loop, threads, rounds) for loop in loops), default=None)


@torch.inference_mode()
def encoder_gops(family: Family, features: Features) -> float:
    """Billions of operations of the products, convolutions and attention in an encoder that torch computes."""
    # Torch's fused attention on CPUs is not among what the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.encode(features)
    return counter.get_total_flops() / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# Speed of an engine.

EngineName = Literal["native", "torch-int8", "torch-bf16", "torch", "torch-fp32", "native-int4"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)[:4]
"""Measured by default: the compiled engine; torch with weights of 8 bits, in bf16, and as the model has them."""
_PROMPT_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class SpeedJob:
    """Options of a speed measurement.

    Attributes:
        engine: name of the engine.
        model: a model directory, name or id; not with `shape`.
        shape: a published Whisper shape, to be filled with random weights.
        threads: threads to compute with.
        repeats: repeats that count; one more warms up.
        window_s: seconds of the long recording, or the model's window if that is shorter.
        window_tokens: decoded from it.
        clip_s: seconds of the short recording, encoded at its real length.
        clip_tokens: decoded from it.
        offline: never use the network.
    """

    engine: EngineName
    model: str | None = None
    shape: str | None = None
    threads: Annotated[int, Range(1)] = 1
    repeats: Annotated[int, Range(1)] = 5
    window_s: float = 30.0
    window_tokens: Annotated[int, Range(1)] = 100
    clip_s: float = 5.0
    clip_tokens: Annotated[int, Range(1)] = 20
    offline: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.model is not None and self.shape is not None:
            raise OptionValueError(
                "shape", self.shape, "give one of them", reason=f"and `model` is {self.model!r}"
            )
        if self.model is None and self.shape is None:
            raise SprachbundError("there is neither a model nor a shape; give one of them")
        if self.shape is not None and self.shape not in PRESETS:
            raise OptionValueError("shape", self.shape, f"choose one of {', '.join(PRESETS)}")


@dataclass(frozen=True, kw_only=True)
class Call:
    """Medians over the repeats of one recording's parts, in milliseconds.

    Attributes:
        features_ms: log-mel.
        encoder_ms: milliseconds of the encoder.
        prompt_ms: keys and values of the memory, and the prompt.
        token_ms: milliseconds of one token.
        whole_ms: milliseconds of all.
        spread_ms: slowest less fastest whole call.
    """

    features_ms: float
    encoder_ms: float
    prompt_ms: float
    token_ms: float
    whole_ms: float
    spread_ms: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Result of a speed measurement.

    Attributes:
        engine: as asked for.
        why: engine and threads that computed.
        window: the long recording.
        clip: the short one.
        bytes_per_token: weights, and keys and values of the long recording's memory, read at each token.
        read_gb_per_s: the machine's reading, with as many threads.
        encoder_gops: billions of operations of the encoder on the long recording.
        int8_gops_per_s: billions of operations on 8 bits that the machine does in a second, with as many threads; None
            without the compiled part, and on processors whose instructions for that are not known.
        peak_mib: the most memory this process has held, weights as loaded and what is done for bounds not counted.
    """

    engine: str
    why: str
    window: Call
    clip: Call
    bytes_per_token: int
    read_gb_per_s: float
    encoder_gops: float
    int8_gops_per_s: float | None
    peak_mib: float

    @property
    def bound_ms(self) -> float:
        """Milliseconds a token takes at least."""
        return self.bytes_per_token / self.read_gb_per_s / 1e6

    @property
    def encoder_bound_ms(self) -> float | None:
        """Milliseconds the encoder takes at least in 8 bits; None where the machine's speed is not known."""
        return None if self.int8_gops_per_s is None else 1000 * self.encoder_gops / self.int8_gops_per_s

    def as_dict(self) -> dict[str, Any]:
        """Result as plain values, the bound among them."""
        return {
            **asdict(self),
            "bound_ms": self.bound_ms,
            "share_of_bound": self.bound_ms / self.window.token_ms,
            "encoder_bound_ms": self.encoder_bound_ms,
            "encoder_share_of_bound": self.encoder_bound_ms
            and self.encoder_bound_ms / self.window.encoder_ms,
        }


@torch.inference_mode()
def measure_speed(job: SpeedJob) -> Speed:
    """Load or make the model and time it; meant for a fresh process, which peak memory is then of.

    Raises:
        SprachbundError: there is no such model, or the engine cannot run it.
    """
    torch.set_num_threads(job.threads)
    family, why = _family(job)
    if family.capabilities.writes_by_frames:
        raise SprachbundError(
            f"the model {family.name} writes by frames, and what is timed are tokens of an attention decoder; name "
            "another model"
        )
    window = _measure(family, job, min(job.window_s, family.max_window_s), job.window_tokens)
    memory = family.encode(_features(family, min(job.window_s, family.max_window_s)))
    cache = family.start(memory, targets=some_targets(family))
    num_bytes = bytes_per_token(family, cache)
    if (fixed := family.capabilities.fixed_window) is not None:
        fixed.real_length = True
    clip = _measure(family, job, job.clip_s, job.clip_tokens)
    peak = peak_mib()
    return Speed(
        engine=job.engine,
        why=why,
        window=window,
        clip=clip,
        bytes_per_token=num_bytes,
        read_gb_per_s=read_gb_per_s(),
        encoder_gops=encoder_gops(*_plain(job)),
        int8_gops_per_s=int8_gops_per_s(job.threads),
        peak_mib=peak,
    )


def random_whisper(shape: str, *, seed: int = 0) -> Whisper:
    """A Whisper of a published shape with random weights and no vocabulary."""
    torch.manual_seed(seed)
    return Whisper(PRESETS[shape]).eval()


def bytes_per_token(family: Family, cache: DecoderCache) -> int:
    """Bytes that a step of one token reads: the decoder's weights and the memory's keys and values.

    Keys and values of earlier tokens, about a hundredth of that, are not counted.
    """
    decoder = family.capabilities.decoder
    memory = sum(x.nbytes for x in (*cache.cross_keys, *cache.cross_values))
    if isinstance(decoder, NativeDecoder | TorchDecoder):
        return decoder.step_bytes + memory
    only_at_start = ("positions", "cross_attention.key.", "cross_attention.value.")
    parameters = () if decoder is None else decoder.named_parameters()
    weights = (p for name, p in parameters if not any(part in name for part in only_at_start))
    return sum(p.nbytes for p in weights) + memory


def peak_mib() -> float:
    """The most memory this process has held, in MiB; NaN on Windows, where Python has no such figure."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes the process that started this one
        kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kib) / 1024
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _made(job: SpeedJob) -> tuple[Any, Path | None]:
    """The model as torch has it, and where it lies."""
    if job.model is None:
        return random_whisper(job.shape or ""), None
    directory = locate(job.model, offline=job.offline)
    family = load(directory, offline=job.offline)
    if family.capabilities.translator is not None:
        raise SprachbundError(
            f"{job.model} is a cascade, and the speed of one model is measured; name its recogniser"
        )
    return family, directory


def _plain(job: SpeedJob) -> tuple[Family, Features]:
    family, _ = _made(job)
    return family, _features(family, min(job.window_s, family.max_window_s))


def _family(job: SpeedJob) -> tuple[Family, str]:
    family, directory = _made(job)
    engine = engine_for(family, job.engine, threads=job.threads, directory=directory, compare=False)
    dtype = str(next(family.parameters()).dtype).removeprefix("torch.")
    return engine.family, f"torch, weights in {dtype}" if engine.name == "torch" else engine.why


def _features(family: Family, duration_s: float) -> Features:
    noise = np.random.default_rng(0).standard_normal(round(duration_s * SAMPLE_RATE))
    return family.features([noise.astype(np.float32) * 0.1])


def _measure(family: Family, job: SpeedJob, duration_s: float, num_tokens: int) -> Call:
    num_tokens = min(num_tokens, family.max_tokens - _PROMPT_TOKENS)
    runs = [_run(family, duration_s, num_tokens) for _ in range(job.repeats + 1)][1:]
    whole = [sum(run) for run in runs]
    features, encoder, prompt, tokens = (1000 * median(part) for part in zip(*runs, strict=True))
    return Call(
        features_ms=features,
        encoder_ms=encoder,
        prompt_ms=prompt,
        token_ms=tokens / num_tokens,
        whole_ms=1000 * median(whole),
        spread_ms=1000 * (max(whole) - min(whole)),
    )


def _run(family: Family, duration_s: float, num_tokens: int) -> tuple[float, float, float, float]:
    """Seconds of features, encoder, prompt and all tokens of one call."""
    times = [time.perf_counter()]
    features = _features(family, duration_s)
    times.append(time.perf_counter())
    memory = family.encode(features)
    times.append(time.perf_counter())
    cache = family.start(memory, capacity=_PROMPT_TOKENS + num_tokens, targets=some_targets(family))
    logits = family.step(torch.zeros(1, _PROMPT_TOKENS, dtype=torch.long), cache)
    times.append(time.perf_counter())
    for _ in range(num_tokens):
        logits = family.step(_likeliest(logits), cache)
    times.append(time.perf_counter())
    first, second, third, fourth = (b - a for a, b in pairwise(times))
    return first, second, third, fourth


def _likeliest(logits: Tensor) -> Tensor:
    return logits[:, -1:].argmax(-1)

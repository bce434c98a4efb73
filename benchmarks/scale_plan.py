"""A plan on paper for 50,000 hours on 64 GPUs, for each of the five systems, and a simulation of such a run.

Parameters are counted on modules of the published shapes; bytes of sound are measured on the example recordings; the
loader's rate is that of `benchmarks/shards_speed.json`, start and memory those of `benchmarks/shards.json`. What no
machine here can measure stands in `Cluster`, with its source; docs/scale.md has the formulas.

Run: python -m benchmarks.scale_plan
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from benchmarks.rows import keep
from pydantic import BaseModel

from sprachbund.audio.load import load
from sprachbund.data.shards import CODECS, encoded_sound
from sprachbund.research import size_file
from sprachbund.research.code_switch.estimate import paper_shape, sizes_of
from sprachbund.research.discrete_units.estimate import SOURCE_TOKENS, TARGET_TOKENS
from sprachbund.research.discrete_units.estimate import estimate_memory as of_units
from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe
from sprachbund.research.dual_scale.estimate import estimate_memory as of_dual_scale
from sprachbund.research.dual_scale.options import DualScaleRecipe
from sprachbund.research.encoder_transfer.estimate import estimate_memory as of_transfer
from sprachbund.research.encoder_transfer.options import EncoderTransferRecipe
from sprachbund.research.estimate import count_parameters
from sprachbund.research.gradient_sharing.estimate import estimate_memory as of_sharing
from sprachbund.research.gradient_sharing.options import GradientSharingRecipe
from sprachbund.training.options import read_recipe

HERE = Path(__file__).parent
RATE = 16_000
MEAN_S = math.exp(1.6 + 0.45**2 / 2)
"""Mean length of the utterances of `benchmarks/shards.py`, as in read speech."""
TEXT_S = 4.0
"""Text tokens a second of speech, about."""
RECOMPUTED = 34
"""Bytes kept of a layer for each position and each unit of width in 16 bits (arXiv 2205.05198, equation 2, without
the scores of attention, which fused attention does not keep)."""
_R = TypeVar("_R", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the plan takes as given.

    Attributes:
        gpus: in all.
        per_machine: GPUs of a machine.
        tflops: peak of a GPU in bf16 without sparsity; an H100 SXM, by its data sheet.
        utilisation: share of the peak that training reaches; an assumption.
        gpu_gib: memory of a GPU.
        network_gb_s: to other machines, of each GPU; 400 Gbit/s.
        copy_gb_s: from a GPU to the memory of its machine, in which an asynchronous checkpoint is staged.
        store_gb_s: of a machine to the file system.
        hours_between_failures: of one GPU; 419 unexpected interruptions of 16,384 GPUs in 54 days (arXiv 2407.21783,
            section 3.3.4).
        least_step_s: of a step of a small model, which waits for its kernels to be launched; an assumption.
        restart_s: until all processes have met again, read the checkpoint, and made the first step.
        spread: standard deviation of the logarithm of a step's time on one GPU.
        request_s: median time to the first byte of an object store.
        request_spread: standard deviation of the logarithm of it.
        stream_mb_s: of one request.
        failing: share of the requests that fail.
    """

    gpus: int = 64
    per_machine: int = 8
    tflops: float = 989.0
    utilisation: float = 0.35
    gpu_gib: float = 80.0
    network_gb_s: float = 50.0
    copy_gb_s: float = 20.0
    store_gb_s: float = 2.0
    hours_between_failures: float = 54 * 24 * 16_384 / 419
    least_step_s: float = 0.1
    restart_s: float = 300.0
    spread: float = 0.03
    request_s: float = 0.05
    request_spread: float = 0.8
    stream_mb_s: float = 60.0
    failing: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model.

    Attributes:
        name: of it.
        parameters: that a position goes through.
        positions_s: positions of a second of speech.
        trained: share of its parameters that are trained.
        flows: whether a gradient goes through it, to what comes before it or is inside.
        layers: number of them.
        width: of a position.
        context: positions that a position attends to.
        idle: parameters beside those, such as experts that were not chosen.
    """

    name: str
    parameters: int
    positions_s: float
    trained: float = 1.0
    flows: bool = True
    layers: int
    width: int
    context: float
    idle: int = 0

    @property
    def flop_s(self) -> float:
        """Floating-point operations of a training step for each second of speech, with layers computed again."""
        forward = 2 * self.parameters + 4 * self.context * self.width * self.layers
        passes = 1 + self.flows * 2  # forward, forward again, and the gradient of what came in
        return self.positions_s * (passes * forward + self.trained * 2 * self.parameters)


@dataclass(frozen=True, kw_only=True)
class System:
    """A system.

    Attributes:
        name: of it.
        parts: of the model.
        batch_s: seconds of speech in a GPU's batch.
        bytes_s: that a second of speech takes, where it is not stored as sound: some thirty units of three bytes.
    """

    name: str
    parts: tuple[Part, ...]
    batch_s: float = 160.0
    bytes_s: float | None = None

    @property
    def parameters(self) -> int:
        return sum(part.parameters + part.idle for part in self.parts)

    @property
    def trained(self) -> float:
        return sum(part.trained * (part.parameters + part.idle) for part in self.parts)

    @property
    def flop_s(self) -> float:
        return sum(part.flop_s for part in self.parts)

    def activations(self) -> float:
        """Bytes of a GPU's batch: the inputs of all layers, and all of the largest one."""
        inputs = sum(2 * p.layers * p.width * p.positions_s for p in self.parts if p.flows)
        largest = max(RECOMPUTED * p.width * p.positions_s for p in self.parts if p.flows)
        return self.batch_s * (inputs + largest)

    def fixed(self, shards: int) -> float:
        """Bytes of weights, gradients and moments: 16 for each that is trained, 2 for each that is frozen."""
        return (16 * self.trained + 2 * (self.parameters - self.trained)) / shards


def recipe(kind: type[_R], name: str) -> _R:
    """The published size of a system."""
    return read_recipe(kind, size_file(name, "paper"))


def systems() -> list[System]:
    """The five, with parameters as their estimates count them."""
    from sprachbund.models.seamless import Seamless
    from sprachbund.models.whisper import PRESETS, Whisper

    sharing = next(
        t for t in of_sharing(recipe(GradientSharingRecipe, "gradient_sharing")).trainings if t.split
    )
    speech = count_parameters(Seamless.shape("medium").to("meta").encoder)
    dual = next(t for t in of_dual_scale(recipe(DualScaleRecipe, "dual_scale")).trainings if t.draft_network)
    heard = count_parameters(Whisper.shape(PRESETS["medium"]).encoder)
    llm = sizes_of(paper_shape())
    units = next(
        h for h in of_units(recipe(DiscreteUnitsRecipe, "discrete_units")).heads if h.head == "ctc_attention"
    )
    transfer = of_transfer(recipe(EncoderTransferRecipe, "encoder_transfer"))
    below = transfer.parts["encoder layers"] + transfer.parts["encoder before its layers"]
    rest = dual.translation + dual.draft_network - heard
    encoder = units.parts["encoder"]
    spoken_s = 6.3  # of the sentence that `SOURCE_TOKENS` is of
    return [
        System(
            name="gradient sharing",
            parts=(
                Part(name="lower encoder", parameters=speech - sharing.trained, positions_s=50, trained=0,
                     flows=False, layers=10, width=1024, context=50 * MEAN_S),
                Part(name="upper encoder", parameters=sharing.trained, positions_s=50, layers=2, width=1024,
                     context=50 * MEAN_S),
                Part(name="decoder", parameters=sharing.parameters - speech, positions_s=TEXT_S, trained=0,
                     layers=12, width=1024, context=50 * MEAN_S),
            ),
        ),
        System(
            name="dual scale",
            parts=(
                Part(name="encoder", parameters=heard, positions_s=50 * 30 / MEAN_S, layers=24, width=1024,
                     context=1500),
                Part(name="decoder, text encoder, draft network", parameters=rest, positions_s=TEXT_S,
                     trained=(dual.trained - heard) / rest, layers=21, width=1024, context=1500),
            ),
        ),
        System(
            name="code switching",
            parts=(
                Part(name="encoder", parameters=llm.encoder + llm.encoder_adapters,
                     positions_s=50 * 30 / MEAN_S, trained=llm.encoder_adapters / llm.encoder,
                     flows=llm.encoder_adapters > 0, layers=32, width=1280, context=1500),
                Part(name="projector", parameters=llm.active, positions_s=10, layers=2, width=2048, context=0,
                     idle=llm.projector - llm.active),
                Part(name="language model", parameters=llm.llm + llm.llm_adapters, positions_s=10 + TEXT_S,
                     trained=llm.llm_adapters / llm.llm, layers=28, width=3584,
                     context=(10 + TEXT_S) * MEAN_S / 2),
            ),
        ),
        System(
            name="discrete units",
            parts=(
                Part(name="encoder", parameters=encoder, positions_s=SOURCE_TOKENS / spoken_s, layers=12,
                     width=256, context=SOURCE_TOKENS),
                Part(name="decoder", parameters=units.parameters - encoder,
                     positions_s=TARGET_TOKENS / spoken_s, layers=6, width=256, context=SOURCE_TOKENS),
            ),
            batch_s=1200.0,
            bytes_s=100.0,
        ),
        System(
            name="encoder transfer",
            parts=(
                Part(name="encoder", parameters=below, positions_s=12.5, layers=24, width=1024, context=84),
                Part(name="prediction network", parameters=transfer.parameters - below
                     - transfer.parts["joint network"], positions_s=5, layers=2, width=640, context=0),
                Part(name="joint network", parameters=transfer.parts["joint network"],
                     positions_s=12.5 * 5 * MEAN_S, layers=1, width=640, context=0),
            ),
        ),
    ]  # fmt: skip


def young(checkpoint_s: float, failure_s: float) -> float:
    """Seconds between checkpoints that lose the least (Young 1974; Daly 2006, equation 20)."""
    return math.sqrt(2 * checkpoint_s * failure_s) - checkpoint_s


def sound_bytes() -> dict[str, float]:
    """Bytes of a second of the example recordings, by codec."""
    folder = HERE.parent / "examples" / "recordings"
    num_bytes = dict.fromkeys(CODECS, 0.0)
    seconds = 0.0
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".wav", ".flac")):
        samples = load(path)
        seconds += len(samples) / RATE
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        for codec in CODECS:
            num_bytes[codec] += len(encoded_sound(pcm, codec))
    return {codec: size / seconds for codec, size in num_bytes.items()}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the formulas say of a system."""

    step_s: float
    network_s: float
    steps: int
    hours: float
    checkpoint_gb: float
    pause_s: float
    write_s: float
    interval_s: float
    copies_gib: float
    shards_gib: float
    is_sharded: bool


_FILLED = 0.8
"""Share of a GPU's memory that may be planned for."""


def plan(system: System, cluster: Cluster, hours: float) -> Plan:
    """The formulas of docs/scale.md."""
    compute_s = system.batch_s * system.flop_s / (cluster.tflops * 1e12 * cluster.utilisation)
    copies, shards = (system.fixed(count) + system.activations() for count in (1, cluster.gpus))
    is_sharded = copies > _FILLED * cluster.gpu_gib * 2**30
    # Copies exchange gradients in 32 bits; shards fetch weights twice and send gradients, in 16.
    sent = 2 * (2 * system.parameters + system.trained) if is_sharded else 8 * system.trained
    network_s = sent / (cluster.network_gb_s * 1e9)
    step_s = max(compute_s, network_s, cluster.least_step_s)
    steps = math.ceil(hours * 3600 / (system.batch_s * cluster.gpus))
    moved = 12 * system.trained
    # Shards are staged, and written by all machines meanwhile; a single file is written by one, and all wait.
    machines = cluster.gpus / cluster.per_machine if is_sharded else 1
    write_s = moved / machines / (cluster.store_gb_s * 1e9)
    pause_s = moved / cluster.gpus / (cluster.copy_gb_s * 1e9) if is_sharded else write_s
    failure_s = cluster.hours_between_failures * 3600 / cluster.gpus
    interval_s = max(young(pause_s, failure_s), write_s)
    return Plan(
        step_s=step_s,
        network_s=network_s,
        steps=steps,
        hours=steps * step_s / 3600,
        checkpoint_gb=moved / 1e9,
        pause_s=pause_s,
        write_s=write_s,
        interval_s=interval_s,
        copies_gib=copies / 2**30,
        shards_gib=shards / 2**30,
        is_sharded=is_sharded,
    )


SHARD_UTTERANCES, SHARDS_EACH, AT_A_TIME, BLOCK, PAUSE_S = 1000, 4, 4, 8 * 2**20, 0.1


def fetch_s(cluster: Cluster, byte_rate: float, windows: int, rng: np.random.Generator) -> np.ndarray:
    """Seconds in which the slowest process has fetched its shards of a window (windows,).

    Args:
        cluster: its object store.
        byte_rate: bytes of a second of sound.
        windows: to be drawn.
        rng: of all draws.
    """
    size = SHARD_UTTERANCES * MEAN_S * byte_rate
    requests = math.ceil(size / BLOCK)
    shape = (windows, cluster.gpus, SHARDS_EACH, requests)
    each = rng.lognormal(math.log(cluster.request_s), cluster.request_spread, shape)
    each += size / requests / (cluster.stream_mb_s * 1e6)
    # A request that fails is made again after pauses of 0.1 s, 0.2 s, 0.4 s ...; the time until it failed is lost.
    failures = rng.geometric(1 - cluster.failing, shape) - 1
    each = each * (1 + failures) + PAUSE_S * (2.0**failures - 1)
    shards = each.sum(axis=3)
    return shards.reshape(windows, cluster.gpus, -1, AT_A_TIME).max(axis=3).sum(axis=2).max(axis=1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a simulated run came to, in hours."""

    hours: float
    ideal: float
    stragglers: float
    data: float
    checkpoints: float
    lost: float
    failures: int


def simulate(
    system: System, planned: Plan, cluster: Cluster, byte_rate: float, interval_s: float, seed: int
) -> Run:
    """One pass through the data, step by step.

    Args:
        system: that is trained.
        planned: its plan.
        cluster: that it runs on.
        byte_rate: bytes of a second of sound.
        interval_s: between checkpoints.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    window_steps = max(1, round(SHARDS_EACH * SHARD_UTTERANCES * MEAN_S / system.batch_s))
    slowest = np.concatenate(
        [
            np.exp(
                cluster.spread * rng.standard_normal((min(4096, planned.steps - n), cluster.gpus)).max(axis=1)
            )
            for n in range(0, planned.steps, 4096)
        ]
    )
    steps_s = planned.step_s * slowest
    # While a window is trained on, the next one is fetched.
    windows = max(1, planned.steps // window_steps)
    waits = np.zeros(planned.steps)
    fetched = np.concatenate(
        [fetch_s(cluster, byte_rate, min(64, windows - n), rng) for n in range(0, windows, 64)]
    )
    begins = np.arange(1, windows) * window_steps
    trained = np.add.reduceat(steps_s, np.arange(windows) * window_steps)
    waits[begins] = np.maximum(0.0, fetched[1:] - trained[:-1])
    waits[0] = fetched[0]
    durations = steps_s + waits
    failure_s = cluster.hours_between_failures * 3600 / cluster.gpus
    clock = checkpoints = lost = 0.0
    step = failures = 0
    next_failure = float(rng.exponential(failure_s))
    while step < planned.steps:
        # Up to the next checkpoint, the end, or a failure.
        ahead = np.cumsum(durations[step : step + 1 + int(interval_s / planned.step_s)])
        count = min(int(np.searchsorted(ahead, interval_s)) + 1, len(ahead))
        took = float(ahead[count - 1])
        last = step + count >= planned.steps
        if clock + took > next_failure:
            lost += next_failure - clock + cluster.restart_s
            clock = next_failure + cluster.restart_s
            next_failure = clock + float(rng.exponential(failure_s))
            failures += 1
            continue
        clock += took
        step += count
        if not last:
            clock += planned.pause_s
            checkpoints += planned.pause_s
    ideal = planned.steps * planned.step_s
    return Run(
        hours=clock / 3600,
        ideal=ideal / 3600,
        stragglers=float(steps_s.sum() - ideal) / 3600,
        data=float(waits.sum()) / 3600,
        checkpoints=checkpoints / 3600,
        lost=lost / 3600,
        failures=failures,
    )


def mean(runs: Sequence[Run], name: str) -> float:
    return float(np.mean([asdict(run)[name] for run in runs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=50_000)
    parser.add_argument("--passes", type=int, default=10, help="through the data")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--utilisation", type=float, default=Cluster.utilisation)
    parser.add_argument("--runs", type=int, default=20, help="simulated, for each system")
    parser.add_argument("--out", type=Path, default=HERE / "scale_plan.json")
    args = parser.parse_args()
    cluster = Cluster(gpus=args.gpus, utilisation=args.utilisation)
    rates = sound_bytes()
    speeds = json.loads((HERE / "shards_speed.json").read_text())["rows"]
    per_core = MEAN_S * next(row["utterances/s"] for row in speeds if row["shards_from"] == "local disk")
    memory, throughput, simulated, sweep = [], [], [], []
    for system in systems():
        planned = plan(system, cluster, args.hours * args.passes)
        byte_rate = system.bytes_s or rates["flac"]
        heard_s = system.batch_s / planned.step_s
        throughput.append(
            {
                "system": system.name,
                "GFLOP_for_a_second": round(system.flop_s / 1e9),
                "batch_of_a_GPU_s": round(system.batch_s),
                "step_s": round(planned.step_s, 3),
                "of_it_network_s": round(planned.network_s, 3),
                "times_real_time": round(heard_s * cluster.gpus),
                "hours_of_a_pass": round(planned.hours / args.passes, 2),
                "MB/s_from_the_store": round(heard_s * cluster.gpus * byte_rate / 1e6),
                "loading_cores_for_a_GPU": "" if system.bytes_s else round(heard_s / per_core, 1),
            }
        )
        memory.append(
            {
                "system": system.name,
                "M_parameters": round(system.parameters / 1e6),
                "M_trained": round(system.trained / 1e6),
                "GiB_as_copies": round(planned.copies_gib, 1),
                "GiB_as_shards": round(planned.shards_gib, 1),
                "chosen": "shards" if planned.is_sharded else "copies",
                "checkpoint_GB": round(planned.checkpoint_gb, 2),
                "pause_s": round(planned.pause_s, 1),
                "interval_min": round(planned.interval_s / 60, 1),
            }
        )
        runs = [
            simulate(system, planned, cluster, byte_rate, planned.interval_s, seed)
            for seed in range(args.runs)
        ]
        simulated.append(
            {
                "system": system.name,
                "hours": round(mean(runs, "hours"), 1),
                "of_it_steps": round(mean(runs, "ideal"), 1),
                "stragglers": round(mean(runs, "stragglers"), 2),
                "waiting_for_data": round(mean(runs, "data"), 2),
                "checkpoints": round(mean(runs, "checkpoints"), 3),
                "failures": round(mean(runs, "failures"), 2),
                "lost": round(mean(runs, "lost"), 2),
            }
        )
    # Is Young's interval the best one? GPUs fail a hundred times as often here, so that few runs are enough.
    largest = max(systems(), key=lambda one: one.flop_s)
    often = replace(cluster, hours_between_failures=cluster.hours_between_failures / 100)
    planned = plan(largest, often, args.hours * args.passes)
    for factor in (0.1, 0.3, 1, 3, 10):
        interval_s = max(planned.interval_s * factor, planned.step_s)
        runs = [
            simulate(largest, planned, often, rates["flac"], interval_s, seed) for seed in range(args.runs)
        ]
        sweep.append(
            {
                "interval_min": round(interval_s / 60, 2),
                "of_Young's": factor,
                "checkpoints_h": round(mean(runs, "checkpoints"), 2),
                "lost_h": round(mean(runs, "lost"), 2),
                "together_h": round(mean(runs, "checkpoints") + mean(runs, "lost"), 2),
            }
        )
    bytes_of = {
        "FLAC": rates["flac"],
        "Opus": rates["opus"],
        "samples of 16 bit": 2.0 * RATE,
        "utterances.npy": 6 / MEAN_S,
    }
    storage = [
        {"what": what, "bytes_a_second": round(rate), "GB_in_all": round(args.hours * 3600 * rate / 1e9, 1)}
        for what, rate in bytes_of.items()
    ]
    head = {"cluster": asdict(cluster), "hours": args.hours, "passes": args.passes}
    for name, rows in {
        "throughput": throughput,
        "memory": memory,
        "storage": storage,
        "simulated": simulated,
        "interval": sweep,
    }.items():
        keep(args.out.with_name(f"{args.out.stem}_{name}.json"), {**head, "rows": rows}, name)


if __name__ == "__main__":
    main()

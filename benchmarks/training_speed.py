"""How fast training goes: our loop beside transformers' Seq2SeqTrainer, the same model, data and precision.

The model has a published Whisper shape and random weights; the recordings are cut out of the examples, with lengths as
in read speech, and texts of one-letter words, about four tokens a second. Both train all weights with AdamW in mixed
bf16, without dropout and augmentation, the same number of utterances a step. Transformers gets its features ready made,
as its recipes do; ours are computed on the way. Its Whisper takes windows of 30 s; ours can be trained on them too, or
on utterances at their own length, which is a choice about the model and so a row of its own.

Each system is a process that is asked for some steps at a time, round by round in turn, so that ratios are between
neighbours in time. Run: python -m benchmarks.training_speed --threads 2 --rounds 7
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).parent
RATE, MOST_S, LEAST_S = 16_000, 15.0, 1.5
WORDS_PER_S = 2.0
SYSTEMS = {
    "sprachbund": "utterances at their own length",
    "sprachbund, windows": "windows of 30 s",
    "transformers": "windows of 30 s",
}
REFERENCE = "transformers"
Counts = dict[str, float]
"""Utterances, seconds of speech, words, seconds of input with padding."""


def make_data(folder: Path, shape: str, num_utterances: int) -> None:
    """Checkpoint, recording and manifest, once."""
    if (folder / "ready").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, HERE / "peers" / "checkpoint.py", "make", shape, folder], check=True)
    from sprachbund.data.manifest import ManifestWriter

    rng = np.random.default_rng(0)
    audio = np.load(folder / "audio.npy")
    with ManifestWriter(folder / "data", shard_size=num_utterances) as writer:
        for i in range(num_utterances):
            seconds = float(
                np.clip(rng.lognormal(1.6, 0.45), LEAST_S, MOST_S)
            )  # median 5 s, as in Common Voice
            begin = int(rng.integers(0, len(audio) - int(seconds * RATE)))
            words = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=max(1, round(WORDS_PER_S * seconds)))
            writer.add(
                audio[begin : begin + int(seconds * RATE)],
                text=" ".join(words),
                language="en",
                speaker="",
                utterance_id=f"{i}",
            )
    (folder / "ready").touch()


def ours(folder: Path, batch: int, *, real_length: bool) -> Iterator[Counts]:
    """One optimizer step after the other of our loop."""
    from sprachbund.data.loading import Corpus, ExampleOptions
    from sprachbund.data.manifest import Manifest
    from sprachbund.models.whisper.io import load
    from sprachbund.models.whisper.model import WhisperExamples
    from sprachbund.training.loop import _Run
    from sprachbund.training.options import TrainingOptions
    from sprachbund.util.memory import keep_freed_memory

    keep_freed_memory()
    model = load(folder / "transformers", offline=True, real_length=real_length)
    plain = ExampleOptions(rows_per_utterance=1, targets=("en",), time_masks=0, frequency_masks=0)
    manifest = Manifest(folder / "data")
    corpus = Corpus([(manifest, 1.0)], WhisperExamples(model, ["en"]), plain)
    options = TrainingOptions(
        steps=10**6,
        learning_rate=1e-5,
        precision="bf16",  # on any processor, as the other
        batch_s=(batch + 0.5) * 30,  # so that windows too make batches of that many
        max_utterances=batch,
        max_duration_s=MOST_S + 1,
        num_workers=0,
    )
    with tempfile.TemporaryDirectory() as kept:
        run = _Run(model, corpus, options, Path(kept), None, lambda line: None)
        while True:
            for made in run._batches():
                run._train_step(made)
                spoken = float(made.num_frames.sum()) / 100
                yield {
                    "utterances": made.num_utterances,
                    "audio_s": spoken,
                    "words": spoken * WORDS_PER_S,
                    "padded_s": made.features.shape[0] * made.features.shape[1] / 100,
                }
            run.epoch, run.batch = run.epoch + 1, 0


def transformers_examples(folder: Path) -> list[dict[str, Any]]:
    """Features, labels and seconds of all utterances."""
    from transformers import WhisperFeatureExtractor

    from sprachbund.data.manifest import Manifest
    from sprachbund.models.base import Target
    from sprachbund.models.whisper.io import load

    ours = load(folder / "transformers", offline=True)  # its tokens, so that both write the same
    prompt = ours.prompt(Target(language="en", source="en"))[
        1:
    ]  # the first is what transformers puts before labels
    extractor = WhisperFeatureExtractor.from_pretrained(folder / "transformers")
    manifest, examples = Manifest(folder / "data"), []
    for i in range(len(manifest)):
        samples = manifest.samples(i)
        text = ours.tokens.text_to_tokens(" " + manifest[i].text)
        features = extractor(samples, sampling_rate=RATE, return_tensors="np").input_features[0]
        labels = [*prompt, *text, ours.end_token]
        examples.append({"features": features, "labels": labels, "seconds": len(samples) / RATE})
    return examples


def theirs(folder: Path, batch: int, ready: Callable[[Counts], None]) -> None:
    """Train with Seq2SeqTrainer; `ready` is called after every step and may wait."""
    import torch
    import transformers
    from torch.nn.utils.rnn import pad_sequence

    transformers.logging.set_verbosity_error()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder / "transformers")
    seen: list[float] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.append(sum(row["seconds"] for row in rows))
        labels = pad_sequence(
            [torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=-100
        )
        return {
            "input_features": torch.from_numpy(np.stack([row["features"] for row in rows])),
            "labels": labels,
        }

    class Gate(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            spoken = seen[state.global_step - 1]
            counts = {
                "utterances": batch,
                "audio_s": spoken,
                "words": spoken * WORDS_PER_S,
                "padded_s": batch * 30,
            }
            ready(counts)

    with tempfile.TemporaryDirectory() as kept:
        arguments = transformers.Seq2SeqTrainingArguments(
            output_dir=kept,
            per_device_train_batch_size=batch,
            max_steps=10**6,
            learning_rate=1e-5,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            dataloader_drop_last=True,
            disable_tqdm=True,
        )
        data = transformers_examples(folder)
        trainer = transformers.Seq2SeqTrainer(
            model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Gate()]
        )
        trainer.train()


class Pipe:
    """Answers requests for a number of steps, each a line of JSON on stdin, by what they came to."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints is no answer
        self._left, self._began, self._sums = 0, 0.0, dict[str, float]()

    def step_done(self, counts: Counts) -> None:
        """Count a step; after the last one asked for, answer, and wait for the next request."""
        self._sums = {key: self._sums.get(key, 0.0) + value for key, value in counts.items()}
        self._left -= 1
        if self._left <= 0:
            self.wait()

    def wait(self) -> None:
        """Answer, unless nothing was asked yet, and wait."""
        if self._began:
            answer = {**self._sums, "seconds": time.perf_counter() - self._began}
            print(json.dumps(answer), file=self._replies, flush=True)
        if not (line := sys.stdin.readline()):
            os._exit(0)
        self._left, self._began, self._sums = int(json.loads(line)), time.perf_counter(), {}


def work(system: str, folder: Path, batch: int, threads: int) -> None:
    """A system's process: the first step, which warms up, is asked for like any other."""
    import torch

    torch.set_num_threads(threads)
    pipe = Pipe()
    pipe.wait()
    if system == "transformers":
        theirs(folder, batch, pipe.step_done)
    for counts in ours(folder, batch, real_length=system == "sprachbund"):
        pipe.step_done(counts)


class Worker:
    """A process that trains when asked to."""

    def __init__(self, system: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", system, "--folder", args.folder / args.shape]
        command += ["--batch", str(args.batch), "--threads", str(args.threads)]
        env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
        self.system, pipe = system, subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, text=True)

    def train(self, steps: int) -> Counts:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(steps), file=self.process.stdin, flush=True)
        if line := self.process.stdout.readline():
            return json.loads(line)  # type: ignore[no-any-return]
        sys.exit(f"{self.system} ended without an answer; what it said is above")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def summary(rounds: dict[str, list[Counts]]) -> list[dict[str, str]]:
    """A row for each system; ratios are taken within a round."""
    per_s = {name: [r["audio_s"] / r["seconds"] for r in runs] for name, runs in rounds.items()}
    rows = []
    for name, runs in rounds.items():
        ratios = [a / b for a, b in zip(per_s[name], per_s.get(REFERENCE, []), strict=False)]
        padding = 1 - sum(r["audio_s"] for r in runs) / sum(r["padded_s"] for r in runs)
        rows.append(
            {
                "system": name,
                "trained on": SYSTEMS[name],
                "rounds": str(len(runs)),
                "speech per second, s": spread(per_s[name], 1),
                "words per second": spread([r["words"] / r["seconds"] for r in runs], 0),
                "padding": f"{padding:.0%}",
                f"times {REFERENCE}": spread(ratios, 2) if ratios else "-",
            }
        )
    return rows


def show(rows: list[dict[str, str]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def save(rounds: dict[str, list[Counts]], args: argparse.Namespace) -> None:
    from benchmarks.rows import write  # not above: what it imports is no part of what is measured

    options = {"shape": args.shape, "batch": args.batch, "steps": args.steps, "threads": args.threads}
    result = {"options": options, "rounds": rounds, "rows": summary(rounds)}
    write(args.out, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="tiny", help="of the Whisper")
    parser.add_argument("--batch", type=int, default=8, help="utterances a step")
    parser.add_argument("--utterances", type=int, default=64, help="in the data, when they are first made")
    parser.add_argument("--steps", type=int, help="in a round, of each system; an epoch if not given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sprachbund-training")
    parser.add_argument("--out", type=Path, default=HERE / "training_speed.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.folder, args.batch, args.threads)
        return
    # Ours sorts by length: over less than an epoch, the systems would be timed on other utterances.
    args.steps = args.steps or max(1, args.utterances // args.batch)
    make_data(args.folder / args.shape, args.shape, args.utterances)
    workers = [Worker(system, args) for system in args.systems]
    rounds: dict[str, list[Counts]] = {system: [] for system in args.systems}
    for number in track(range(args.rounds + 1), description="rounds"):
        turn = number % len(workers)
        for worker in workers[turn:] + workers[:turn]:
            done = worker.train(args.steps if number else 1)  # the first step pays for buffers
            if number:
                rounds[worker.system].append(done)
        if number:  # after each round, so that a run that is stopped has measured something
            save(rounds, args)
    for worker in workers:
        worker.close()
    show(summary(rounds))


if __name__ == "__main__":
    main()

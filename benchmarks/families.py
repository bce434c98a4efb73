"""Memory and speed of families at published shapes, with random weights: what a model takes before it is downloaded.

Each shape lives in a process of its own, with one thread. Times are of the processor and not of the clock, so that
other programs on the machine matter less; `SECONDS` of speech are heard, and a decoder writes `TOKENS`. A transducer
searches its frames, whatever it writes.

python -m benchmarks.families, or with names of shapes; rows of others stay as they are.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep
from tokenizers import AddedToken, Tokenizer, models

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.transducer import transducer_greedy
from sprachbund.engines.benchmark import random_whisper
from sprachbund.models.base import Family, Target
from sprachbund.models.fastconformer import (
    Canary,
    CanaryConfig,
    FastConformerTokens,
    Parakeet,
    ParakeetConfig,
)
from sprachbund.models.io import load
from sprachbund.models.moonshine import Moonshine, MoonshineConfig, StreamingMoonshineConfig
from sprachbund.util.processor import processor_name
from sprachbund.util.provenance import commit

SECONDS, TOKENS, REPEATS = 10.0, 40, 3
OUT = Path(__file__).with_suffix(".json")
_ENCODER = {"num_mel_bins": 128, "scale_input": False, "attention_bias": False, "convolution_bias": False}
_PROMPT = (
    *("<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|pnc|>", "<|noitn|>"),
    *("<|notimestamp|>", "<|nodiarize|>"),
)


def _tokens(size: int, languages: tuple[str, ...]) -> FastConformerTokens:
    """A vocabulary of numbers, with the special tokens of a prompt."""
    special = ["<unk>", *_PROMPT, *(f"<|{tag}|>" for tag in languages)]
    names = [*special, *map(str, range(size - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return FastConformerTokens(tokenizer, size, "benchmark")


def _parakeet(**values: Any) -> Callable[[], Family]:
    def build() -> Family:
        config = ParakeetConfig.model_validate({"pad_token_id": 2, **values})
        return Parakeet(config, values, _tokens(config.vocab_size, ())).eval()

    return build


def _canary(encoder_layers: int, decoder_layers: int, vocabulary: int) -> Callable[[], Family]:
    def build() -> Family:
        values = {
            "model_type": "canary",
            "encoder_config": {**_ENCODER, "num_hidden_layers": encoder_layers},
            "decoder_config": {"num_hidden_layers": decoder_layers, "vocab_size": vocabulary},
            "vocab_size": vocabulary,
        }
        config = CanaryConfig.model_validate(values)
        return Canary(config, values, _tokens(vocabulary, config.languages("canary", "benchmark"))).eval()

    return build


def _moonshine(width: int, layers: int) -> Callable[[], Family]:
    def build() -> Family:
        values = {
            "model_type": "moonshine",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "encoder_num_hidden_layers": layers,
            "decoder_num_hidden_layers": layers,
        }
        config = MoonshineConfig.model_validate(values)
        model = Moonshine(config, values, _tokens(config.vocab_size, ()), "en").eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return model

    return build


def _streaming_moonshine() -> Family:
    values = {"model_type": "moonshine_streaming", "encoder_config": {}}
    config = StreamingMoonshineConfig.model_validate(values)
    model = Moonshine(config, values, _tokens(config.vocab_size, ()), "en").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


SHAPES: Mapping[str, Callable[[], Family]] = {
    "conformer, as bundled": load,
    "whisper small": lambda: random_whisper("small"),
    "whisper large-v3-turbo": lambda: random_whisper("turbo"),
    "Parakeet TDT 0.6B v3": _parakeet(
        model_type="parakeet_tdt", vocab_size=8193, blank_token_id=8192, encoder_config=_ENCODER
    ),
    "Parakeet CTC 1.1B": _parakeet(
        model_type="parakeet_ctc",
        vocab_size=1025,
        pad_token_id=1024,
        encoder_config={"num_mel_bins": 80, "num_hidden_layers": 42},
    ),
    "Moonshine tiny": _moonshine(288, 6),
    "Moonshine base": _moonshine(416, 8),
    "streaming Moonshine tiny": _streaming_moonshine,
    "Canary 1B flash": _canary(32, 4, 5248),
    "Canary 1B v2": _canary(32, 8, 16_384),
}
"""Names to builders of random models, or of the bundled one."""


def measure(name: str) -> dict[str, Any]:
    """The row of a shape."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    family = SHAPES[name]()
    assert isinstance(family, torch.nn.Module)
    parameters = sum(p.numel() for p in family.parameters())
    num_bytes = sum(p.nbytes for p in family.parameters())
    sound = (0.1 * np.random.default_rng(0).normal(size=int(SECONDS * SAMPLE_RATE))).astype(np.float32)
    encoding, writing = [], []
    with torch.inference_mode():
        for _ in range(REPEATS):
            begin = time.process_time()
            memory = family.encode(family.features([sound]))
            encoded = time.process_time()
            _write(family, memory)
            encoding.append(encoded - begin)
            writing.append(time.process_time() - encoded)
    return {
        "shape": name,
        "parameters (million)": round(parameters / 1e6),
        "weights (GB)": round(num_bytes / 1e9, 2),
        "peak memory (GB)": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        f"encoder, {SECONDS:g} s of speech (s)": round(median(encoding), 2),
        "decoder (s)": round(median(writing), 2),
    }


def _write(family: Family, memory: Any) -> None:
    able = family.capabilities
    if able.transducer is not None:
        transducer_greedy(able.transducer, memory.states, memory.num_frames)
    elif able.ctc is not None:
        able.ctc.ctc_log_probs(memory, [[Target(language="en")]])
    else:
        cache = family.start(memory, capacity=TOKENS + 1)
        token = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(TOKENS):
            token = family.step(token, cache)[:, -1:].argmax(-1)


def main() -> None:
    """Measure the shapes named, all by default, and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    known: dict[str, Any] = {}
    if arguments.out.exists():
        known = {row["shape"]: row for row in json.loads(arguments.out.read_text())["rows"]}
    for name in arguments.shapes or SHAPES:
        command = [sys.executable, "-m", "benchmarks.families", "--one", name]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        known[name] = row
        rows = [known[shape] for shape in SHAPES if shape in known]
        keep(arguments.out, {"processor": processor_name(), "commit": commit(), "rows": rows})


if __name__ == "__main__":
    main()

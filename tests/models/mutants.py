"""Model directories that were damaged in every way we know, and what loading them does.

A directory of each family is made of random weights. Each mutant is a copy of one with one fault in one file. It is
loaded in a process of its own kind under limits on memory and time, and what happens is sorted: the model loaded, it
was refused with one line, or something else, which is a fault.

`python -m tests.models.mutants LOAD ...` is the process that loads.
"""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.nobody import can_be_nobody, nobody

MEMORY_BYTES = 8 * 2**30
"""Of address space, most of which torch and transformers map and never touch."""
TIME_S = 20
_DEEP = 100_000
_MARK = "\x00deep\x00"
_BAD: dict[str, Any] = {
    "negative": -1,
    "zero": 0,
    "huge": 10**12,
    "text": "text",
    "null": None,
    "list": [],
    "nan": math.nan,
    "infinity": math.inf,
    "half": 2.5,
    "true": True,
    "object": {},
    "deep": _MARK,
}
"""What a field of a JSON file is set to."""
OWN = (
    "conformer",
    "conformer_8_bits",
    "conformer_packed",
    "conformer_streaming",
    "conformer_split",
    "whisper_8_bits",
    "seamless_split",
    "speech_llm",
    "token_conformer",
    "token_mbart",
    "parasite",
    "medusa",
    "token_map",
    "streaming_onnx",
)
"""Directories whose weights this project wrote, with a checksum."""
_FASTCONFORMER = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "canary", "cohere_asr")
_AUDIO_LLM = ("voxtral", "granite_speech", "qwen3_asr")
_MOONSHINE = ("moonshine", "moonshine_streaming")
EXTERNAL = (
    *("whisper", "seamless_m4t", "seamless_m4t_v2", "speech_llm_wav2vec2"),
    *_FASTCONFORMER,
    *_AUDIO_LLM,
    "t5",
    *_MOONSHINE,
    "qwen3",
    "voxtral_realtime",
    "kyutai_speech_to_text",
)
FAMILIES = (*OWN, *EXTERNAL)
_READABLE_BY_ROOT_ALONE = 0o600
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: in the model directory.
        what: was done to it.
        apply: does it to a copy of the directory.
        must_be_refused: the weights are other ones than were written, or cannot be: a model that loads is a fault.
    """

    file: str
    what: str
    apply: Callable[[Path], None]
    must_be_refused: bool = False


@dataclass
class MutantResults:
    """What became of the mutants of a family.

    Attributes:
        outcomes: how many were "refused" or "loaded", and of each kind of fault.
        faults: file, what was done, and what came of it.
        memory_bytes: largest, of a process that loaded them.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory_bytes: int = 0

    @property
    def num_mutants(self) -> int:
        return sum(self.outcomes.values())


def make_directory(family: str, directory: Path) -> None:
    """A small directory of a family, of random weights."""
    _MAKERS[family](directory)


def mutants(directory: Path, seed: int, *, own: bool) -> list[Mutant]:
    """Every mutant of a directory, in an order drawn with `seed`."""
    rng = random.Random(seed)
    mutants: list[Mutant] = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = str(path.relative_to(directory))
        mutants += _byte_mutants(name, path.read_bytes(), rng, own=own)
        if path.suffix == ".json":
            mutants += _json_mutants(name, json.loads(path.read_bytes()), rng)
        if path.suffix == ".safetensors":
            mutants += list(_tensor_mutants(name, path, rng))
    rng.shuffle(mutants)
    return mutants


def try_all(family: str, seed: int, count: int | None, work: Path) -> MutantResults:
    """Make a directory of a family, load its mutants (the first `count`), and say what became of them."""
    original = work / family
    with _lone_process(["make", family, str(original)]) as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    total = len(mutants(original, seed, own=family in OWN))
    total = total if count is None else min(total, count)
    results, first = MutantResults(), 0
    while first < total:
        first = _load_from(family, original, seed, first, total, results)
    return results


def try_some(families: Sequence[str], seed: int, count: int, work: Path) -> MutantResults:
    """As `try_all`, of some mutants of several families, in one process: a short form for the tests."""
    results = MutantResults()
    with _lone_process(["sample", str(work), str(seed), str(count), *families]) as process:
        output, _ = process.communicate(timeout=300)
    for line in output.splitlines():
        if line.startswith("@") and "outcome" in (said := json.loads(line[1:])):
            results.outcomes[said["outcome"]] += 1
            if said["outcome"] not in ("refused", "loaded"):
                results.faults.append(f"{said['mutant']}: {said['outcome']}: {said['reason']}")
    if process.returncode != 0:
        results.faults.append(f"the process ended with {process.returncode}: {output[-500:]}")
    return results


def _load_from(family: str, original: Path, seed: int, first: int, total: int, results: MutantResults) -> int:
    """Load mutants from `first` on until the process ends; the first that it did not come to."""
    at, known = first, ""
    with _lone_process(["load", family, str(original), str(seed), str(first), str(total)]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("@"):
                continue
            said = json.loads(line[1:])
            if "begin" in said:
                at, known = said["begin"], said["mutant"]
            elif "memory" in said:
                results.memory_bytes = max(results.memory_bytes, said["memory"])
            else:
                results.outcomes[said["outcome"]] += 1
                if said["outcome"] not in ("refused", "loaded"):
                    results.faults.append(f"{known}: {said['outcome']}: {said['reason']}")
                at, known = at + 1, ""
        process.wait()
    if known:  # it died in the middle of one
        outcome = "hang" if process.returncode == -signal.SIGKILL else "crash"
        results.outcomes[outcome] += 1
        results.faults.append(f"{known}: {outcome}: the process ended with {process.returncode}")
        return at + 1
    assert process.returncode == 0, f"{family}: the process ended with {process.returncode} between mutants"
    return at


def _lone_process(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.models.mutants", *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )


def _byte_mutants(name: str, content: bytes, rng: random.Random, *, own: bool) -> Iterator[Mutant]:
    """Faults that any file can have."""
    data = name.endswith((".safetensors", ".onnx", ".model", ".npy"))
    # Parts of transformers inside have no checksum; of other files than weights it stands in those, or in config.json.
    strict = own and data and (b'"sha256"' in content[:4096] or not name.endswith(".safetensors"))
    cut = rng.randrange(1, len(content))
    needed = name.endswith(".safetensors") and not name.startswith("draft")
    wholes = {
        "empty": b"",
        "one byte less": content[:-1],
        "half": content[: len(content) // 2],
        f"cut at {cut}": content[:cut],
        "random bytes": rng.randbytes(len(content)),
        "zeros": bytes(len(content)),
        "not UTF-8": b"\xff\xfe" + content,
        "more behind the end": content + b"\0" * 64,
    }
    for what, changed in wholes.items():
        yield Mutant(name, what, _writes(name, changed), must_be_refused=strict)
    yield Mutant(
        name,
        "is missing",
        lambda d: (d / name).unlink(),
        must_be_refused=needed,
    )
    yield Mutant(name, "is a folder", _as_folder(name), must_be_refused=data)
    yield Mutant(name, UNREADABLE, lambda d: (d / name).chmod(0), must_be_refused=data and can_be_nobody())
    offsets = [rng.randrange(min(len(content), 4096)) for _ in range(12)]
    offsets += [rng.randrange(len(content)) for _ in range(12 if data else 4)]
    for offset in offsets:
        bit = 1 << rng.randrange(8)
        changed = content[:offset] + bytes([content[offset] ^ bit]) + content[offset + 1 :]
        harmless = name.endswith(".safetensors") and not _changes_weights(content, offset)
        yield Mutant(
            name,
            f"bit {bit} of byte {offset} flipped",
            _writes(name, changed),
            must_be_refused=strict and not harmless,
        )


def _changes_weights(content: bytes, offset: int) -> bool:
    """Whether a byte of a safetensors file is one of a tensor: a changed head is told by other tests."""
    return offset >= 8 + int.from_bytes(content[:8], "little")


def _json_mutants(name: str, content: Any, rng: random.Random) -> Iterator[Mutant]:
    """Faults in one field each."""
    paths = list(_paths_in(content))
    if len(paths) > 120:  # a tokenizer's vocabulary
        paths = paths[:20] + rng.sample(paths[20:], 60)
    for path in paths:
        for what, value in _BAD.items():
            yield Mutant(name, f"{_field(path)} = {what}", _sets(name, content, path, value))
        if path:
            yield Mutant(name, f"{_field(path)} is left out", _sets(name, content, path, _GONE))


_GONE = object()


def _paths_in(value: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where values stand in a JSON value, those of lists by their first two items."""
    yield before
    if len(before) > 6:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths_in(inner, (*before, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:2]):
            yield from _paths_in(inner, (*before, number))


def _field(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path)) or "all"


def _sets(name: str, content: Any, path: tuple[str | int, ...], value: Any) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        changed = json.loads(json.dumps(content))
        if path:
            inside = changed
            for step in path[:-1]:
                inside = inside[step]
            if value is _GONE:
                del inside[path[-1]]
            else:
                inside[path[-1]] = value
        else:
            changed = value
        deep = "[" * _DEEP + "]" * _DEEP
        text = json.dumps(changed).replace(json.dumps(_MARK), deep)
        (directory / name).write_text(text)

    return apply


def _tensor_mutants(name: str, path: Path, rng: random.Random) -> Iterator[Mutant]:
    """Faults in tensors, in a file whose checksum, if it has one, was taken away: as files of before have none."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    names = sorted(tensors)
    floating = [n for n in names if tensors[n].is_floating_point() and tensors[n].numel()]

    def changed(what: str, changes: dict[str, Any], *, strict: bool = True) -> Mutant:
        return Mutant(name, what, _rewrites(name, changes), must_be_refused=strict)

    yield changed("without its checksum", {}, strict=False)
    for each in rng.sample(floating, min(6, len(floating))):
        for what, value in (("NaN", math.nan), ("infinity", math.inf)):
            bad = tensors[each].clone()
            bad.view(-1)[rng.randrange(bad.numel())] = value
            yield changed(f"{each} holds {what}", {each: bad})
    for each in rng.sample(names, min(6, len(names))):
        old = tensors[each]
        yield changed(f"{each} is missing", {each: None})
        yield changed(f"{each} has a row more", {each: torch.cat([old, old[:1]]) if old.ndim else old[None]})
        yield changed(f"{each} is flat", {each: old.reshape(1, -1)}, strict=old.ndim != 2 or len(old) > 1)
        yield changed(f"{each} is empty", {each: old.reshape(-1)[:0]})
        yield changed(f"{each} is of booleans", {each: old.bool()})
        yield changed(f"{each} is int8", {each: old.to(torch.int8)}, strict=old.dtype != torch.int8)
    yield changed("one is surplus", {"encoder.layers.77.surplus.weight": torch.ones(3, 3)})
    yield changed("a scale is surplus", {f"{names[0]}.scale": torch.ones(3)})
    # Of matrices in 8 bits; layers may have weights of that name.
    scales = [n for n in names if n.endswith(".scale") and n.removesuffix(".scale") in tensors]
    for each in scales[:3]:
        old = tensors[each]
        for what, value in (("0", 0.0), ("below 0", -1.0)):
            bad = old.clone()
            bad[0] = value
            yield changed(f"{each} is {what}", {each: bad})
        yield changed(f"{each} is too short", {each: old[:-1]})


def _rewrites(name: str, changes: dict[str, Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        path = directory / name
        with safe_open(path, "pt") as file:
            head = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        head.pop("sha256", None)
        kept = {n: t.contiguous() for n, t in {**tensors, **changes}.items() if t is not None}
        save_file(kept, path, metadata=head)

    return apply


def _writes(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: void((directory / name).write_bytes(content))


def _as_folder(name: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return apply


def void(_: object) -> None:
    """Nothing."""


# What follows runs in processes of its own.


def load_mutants(family: str, original: Path, seed: int, first: int, total: int) -> None:
    """Load mutants, and write down what became of each."""
    load_directory(original)  # what is imported and mapped once is not the mutants'
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    chosen = mutants(original, seed, own=family in OWN)[:total]
    for number, mutant in enumerate(chosen[first:], first):
        _say({"begin": number, "mutant": f"{mutant.file}: {mutant.what}"})
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(original, Path(folder) / "model")
            mutant.apply(copy)
            outcome, reason = _outcome(copy, mutant)
        _say({"outcome": outcome, "reason": reason, "mutant": f"{family}: {mutant.file}: {mutant.what}"})
    _say({"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


class TookTooLong(BaseException):
    """No `except Exception` on the way takes it for an error of a file."""


def _too_long(*_: object) -> None:
    raise TookTooLong


def _outcome(directory: Path, mutant: Mutant) -> tuple[str, str]:
    from sprachbund.errors import SprachbundError

    # The alarm reaches Python code; what hangs in native code is killed a little later.
    killer = subprocess.Popen(
        ["sh", "-c", f"sleep {TIME_S * 2} && kill -9 {os.getpid()}"], start_new_session=True
    )
    signal.alarm(TIME_S)
    try:
        with nobody(directory) if mutant.what == UNREADABLE else nullcontext():
            load_directory(directory)
    except SprachbundError as error:
        text = str(error)
        return ("many lines", repr(text)[:300]) if len(text.splitlines()) != 1 else ("refused", text)
    except TookTooLong:
        return "hang", f"more than {TIME_S} s"
    except BaseException as error:
        return "raw", f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
        os.killpg(killer.pid, signal.SIGKILL)
        killer.wait()
    return ("silent", "it loaded") if mutant.must_be_refused else ("loaded", "")


def load_directory(directory: Path) -> None:
    """As the commands do, with the drafts that lie beside it."""
    from sprachbund import api
    from sprachbund.decoding.drafts import load_draft

    model = api.load(directory, offline=True, engine="torch")
    for name in model.family.drafts:
        load_draft(model.family, name)
    assert model.pairs is not None


def _say(value: dict[str, Any]) -> None:
    print("@" + json.dumps(value), flush=True)


def _conformer(directory: Path, **options: Any) -> Any:
    from sprachbund.models.card import Card
    from sprachbund.models.conformer.io import save
    from tests.models.split_support import make_model

    model = make_model()
    save(model, directory, card=Card(name="made"), **options)
    return model


def _packed(directory: Path) -> None:
    from sprachbund.compression.options import KQuantOptions
    from sprachbund.compression.quantization import quantize_encoder
    from sprachbund.models.conformer.io import save

    model = _streaming_model()
    quantize_encoder(model, KQuantOptions())
    save(model, directory)


def _streaming_model() -> Any:
    from sprachbund.models.conformer import StreamingPart, TransducerPart
    from tests.models.split_support import make_model

    return make_model(
        streaming=StreamingPart(left_context=4, right_contexts=(1,), stem_channels=4),
        transducer=TransducerPart(prediction_width=8, prediction_layers=1, joint_width=8),
    )


def _streaming(directory: Path) -> None:
    from sprachbund.models.conformer.io import save

    save(_streaming_model(), directory)


def _onnx(directory: Path) -> None:
    from sprachbund.compression.onnx_export import export

    export(_streaming_model(), directory)


def _split(directory: Path) -> None:
    from sprachbund.models.conformer.io import save
    from tests.models.split_support import DECODER, make_split, make_split_model

    save(make_split_model(make_split(), make_split(DECODER, side="target")), directory)


def _whisper(directory: Path) -> None:
    from tests.models.whisper_support import make_directory as make

    make(directory)


def _whisper_8_bits(directory: Path) -> None:
    from sprachbund.models.whisper import load, save

    _whisper(directory / "start")
    save(load(directory / "start", offline=True), directory / "saved", bits=8)
    shutil.rmtree(directory / "start")
    for path in (directory / "saved").iterdir():
        path.rename(directory / path.name)
    (directory / "saved").rmdir()


def _seamless(version: str) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        from tests.models.seamless.support import make_checkpoint

        make_checkpoint(directory, version)

    return made


def _seamless_split(directory: Path) -> None:
    from sprachbund.models.seamless import load, save
    from sprachbund.models.splitting import split_feed_forwards
    from tests.models.split_support import make_plan, make_split

    _seamless("seamless_m4t")(directory / "start")
    model = load(directory / "start", offline=True)
    split = make_split("encoder.layers.1.feed_forward_out", groups=(("en", "fr"), ("et",)))
    split_feed_forwards(model, make_plan(split))
    import torch

    model.to(torch.float32)
    save(model, directory / "saved")
    shutil.rmtree(directory / "start")
    for path in (directory / "saved").iterdir():
        path.rename(directory / path.name)
    (directory / "saved").rmdir()


def _speech_llm(encoder: str) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        from sprachbund.models.speech_llm import save
        from tests.models.speech_llm_support import make_model

        save(make_model(encoder), directory)

    return made


def _t5(directory: Path) -> None:
    from tests.models.translation.support import make_checkpoint

    make_checkpoint(directory, "t5")


def _qwen3(directory: Path) -> None:
    from tests.models.translation.test_prompted import make_directory as make

    make(directory)


def _token_conformer(directory: Path) -> None:
    from sprachbund.models.io import save
    from tests.units.translators import model_of, speak

    with tempfile.TemporaryDirectory() as folder:
        save(model_of(speak(Path(folder)).units), directory)


def _token_mbart(directory: Path) -> None:
    from sprachbund.models.io import save
    from sprachbund.models.tokens.config import MbartConfig
    from sprachbund.models.tokens.mbart import TokenMbart
    from sprachbund.models.tokens.reader import named, reader_for
    from tests.units.translators import PAIRS, speak

    with tempfile.TemporaryDirectory() as folder:
        units = speak(Path(folder)).units
        sizes = {"width": 16, "num_encoder_heads": 2, "num_decoder_heads": 2, "num_encoder_layers": 1}
        sizes |= {"num_decoder_layers": 1, "encoder_feed_forward_width": 24, "decoder_feed_forward_width": 24}
        config = named(MbartConfig(pairs=PAIRS, positions=32, ratio=2.0, **sizes), units)
        save(TokenMbart(config, reader_for(config, units)), directory)


def _draft(kind: str) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        from sprachbund.decoding.drafts import TokenMapDraft, draft_around
        from sprachbund.decoding.drafts.token_map import TokenMap
        from sprachbund.nn.drafts import MedusaHeads, MedusaShape, Parasite, ParasiteShape

        model = _conformer(directory)
        if kind == "token-map":
            texts = ("eins zwei drei", "one two three")
            tokens = [[*model.tokenizer.encode(text), model.end_token] for text in texts]
            draft: Any = TokenMapDraft(TokenMap.fit({"de": tokens, "en": tokens}, len(model.tokenizer)))
        elif kind == "parasite":
            network: Any = Parasite(ParasiteShape.of(model.decoder, num_blocks=1))
            draft = draft_around(network, model.decoder)
        else:
            network = MedusaHeads(MedusaShape(width=32, num_heads=2, num_blocks=1))
            draft = draft_around(network, model.decoder)
        draft.save(directory / "draft.safetensors")

    return made


def _fastconformer(kind: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.models.fastconformer.support import make as make_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(make_checkpoint(Path(folder), kind).directory, directory)

    return make


def _moonshine(kind: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.models.moonshine.support import make as make_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(make_checkpoint(Path(folder), kind).directory, directory)

    return make


def _kyutai(directory: Path) -> None:
    from tests.models.kyutai.support import make as make_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(make_checkpoint(Path(folder)).directory, directory)


def _audio_llm(kind: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.models.audio_llm.support import make as make_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(make_checkpoint(Path(folder), kind, positions=100).directory, directory)

    return make


def _voxtral_realtime(directory: Path) -> None:
    from tests.models.voxtral_realtime.support import make as make_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(make_checkpoint(Path(folder)).directory, directory)


_MAKERS: dict[str, Callable[[Path], Any]] = {
    "conformer": _conformer,
    "conformer_8_bits": lambda directory: _conformer(directory, bits=8),
    "conformer_packed": _packed,
    "conformer_streaming": _streaming,
    "conformer_split": _split,
    "whisper": _whisper,
    "whisper_8_bits": _whisper_8_bits,
    "seamless_m4t": _seamless("seamless_m4t"),
    "seamless_m4t_v2": _seamless("seamless_m4t_v2"),
    "seamless_split": _seamless_split,
    "speech_llm": _speech_llm("conformer"),
    "speech_llm_wav2vec2": _speech_llm("wav2vec2"),
    "token_conformer": _token_conformer,
    "token_mbart": _token_mbart,
    "parasite": _draft("parasite"),
    "medusa": _draft("medusa"),
    "token_map": _draft("token-map"),
    "streaming_onnx": _onnx,
    **{kind: _fastconformer(kind) for kind in _FASTCONFORMER},
    **{kind: _moonshine(kind) for kind in _MOONSHINE},
    **{kind: _audio_llm(kind) for kind in _AUDIO_LLM},
    "t5": _t5,
    "qwen3": _qwen3,
    "voxtral_realtime": _voxtral_realtime,
    "kyutai_speech_to_text": _kyutai,
}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make_directory(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "sample":
        for each in sys.argv[5:]:
            make_directory(each, Path(sys.argv[2]) / each)
        for each in sys.argv[5:]:
            load_mutants(each, Path(sys.argv[2]) / each, int(sys.argv[3]), 0, int(sys.argv[4]))
    else:
        load_mutants(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:7]))

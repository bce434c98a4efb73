"""Damages one small example of every kind of file that sprachbund writes and reads, and counts what comes of it.

    python -m benchmarks.reliability.file_mutants [--per-kind N] [--kinds NAME,...] [--out FILE]

Every example is made by the package itself in a temporary folder, then read by the function that a command reaches.
A mutant is "refused" when the reader raises one SprachbundError of one line, and "read" when it raises nothing.
Anything else is a fault: another exception, a message of several lines, a reader that takes over ten seconds. Seeds are
fixed. Each kind is read in a process of its own, whose memory is measured.
"""

import argparse
import copy
import json
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from benchmarks.rows import write

from sprachbund.errors import SprachbundError

LIMIT_S = 10
LONGEST_LINE = 1500
OUT = Path(__file__).parents[2] / "docs" / "results" / "reliability" / "file_mutants.json"
VALUES = (
    -1,
    0,
    10**12,
    -0.5,
    1e308,
    float("inf"),
    float("nan"),
    "x",
    "",
    None,
    [],
    {},
    True,
    [None],
    {"a": 1},
)
"""What stands in place of every field in turn."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of it.
        make: writes an example into an empty folder, and names the file that is damaged.
        read: reads that file as a command does, and looks at all of it.
        form: "json", "jsonl", "toml", "text" or "binary".
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    form: str


class _TooLong(BaseException):
    """Raised by the alarm; not an Exception, so that no reader takes it for its own."""


def mutants(content: bytes, form: str, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Name and content of damaged copies: first those of any file, then those of its form."""
    yield "empty", b""
    for share in (0.1, 0.5, 0.9):
        yield f"cut at {share}", content[: int(len(content) * share)]
    yield "last byte missing", content[:-1]
    yield "zeros", bytes(len(content))
    yield "random bytes", rng.randbytes(max(16, len(content)))
    yield "not UTF-8", content[: len(content) // 2] + b"\xff\xfe" + content[len(content) // 2 :]
    yield "UTF-16", content.decode("utf-8", "replace").encode("utf-16")
    yield "byte order mark", b"\xef\xbb\xbf" + content
    yield "CRLF", content.replace(b"\n", b"\r\n")
    yield "CR", content.replace(b"\n", b"\r")
    yield "a null byte", content[: len(content) // 3] + b"\0" + content[len(content) // 3 :]
    yield "twice", content + content
    for number in range(12):
        at = rng.randrange(max(1, len(content)))
        flipped = bytearray(content)
        if flipped:
            flipped[at] ^= 1 << rng.randrange(8)
        yield f"bit flip {number}", bytes(flipped)
    lines = content.splitlines(keepends=True)
    if form != "binary" and len(lines) > 1:
        for number in range(min(4, len(lines))):
            at = rng.randrange(len(lines))
            yield f"line {at} removed {number}", b"".join(lines[:at] + lines[at + 1 :])
            yield f"line {at} twice {number}", b"".join([*lines[:at], lines[at], *lines[at:]])
    if form in ("json", "jsonl"):
        yield from _json_mutants(content, form, rng)
    if form == "toml":
        yield from _toml_mutants(content)
    if form == "text":
        for at, old in enumerate(_numbers(content)):
            for value in (b"-1", b"1" * 400, b"nan", b"inf", b"x", b""):
                yield f"number {at} is {value[:8]!r}", old[0] + value + old[1]


def _json_mutants(content: bytes, form: str, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    yield "deep nesting", b"[" * 100_000
    yield "deep object", b'{"a":' * 100_000
    yield "half a surrogate", content.replace(b'": "', b'": "\\ud800', 1)
    yield "a number of 5,000 digits", b'{"a": ' + b"9" * 5000 + b"}"
    for other in (b"null", b"[]", b"{}", b"3", b'"x"', b"[[]]", b"NaN"):
        yield f"the whole is {other.decode()}", other + b"\n"
    lines = content.splitlines() if form == "jsonl" else [content]
    at = rng.randrange(len(lines))
    value = json.loads(lines[at])
    first = next(iter(value)) if isinstance(value, dict) and value else None
    if first is not None:
        doubled = lines[at].replace(b"{", b"{" + json.dumps(first).encode() + b": -1, ", 1)
        yield "a key twice", b"\n".join([*lines[:at], doubled, *lines[at + 1 :]]) + b"\n"
    for path in _paths(value):
        where = ".".join(map(str, path))
        for changed, change in _changed(value, path):
            text = json.dumps(changed, ensure_ascii=False).encode()
            yield f"{where} {change}", b"\n".join([*lines[:at], text, *lines[at + 1 :]]) + b"\n"


def _paths(value: Any, path: tuple[Any, ...] = (), depth: int = 0) -> Iterator[tuple[Any, ...]]:
    """Paths of fields, the first two of every list."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:2]
    for key, inside in items:
        yield (*path, key)
        if depth < 6:
            yield from _paths(inside, (*path, key), depth + 1)


def _changed(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, str]]:
    def at(whole: Any) -> Any:
        for key in path[:-1]:
            whole = whole[key]
        return whole

    for other in VALUES:
        whole = copy.deepcopy(value)
        at(whole)[path[-1]] = other
        yield whole, f"is {other!r}"
    whole = copy.deepcopy(value)
    del at(whole)[path[-1]]
    yield whole, "is missing"


def _toml_mutants(content: bytes) -> Iterator[tuple[str, bytes]]:
    lines = content.decode().splitlines()
    values = (
        "-1",
        "0",
        "1000000000000",
        "1e400",
        "nan",
        "inf",
        "-0.5",
        '"x"',
        "true",
        "[]",
        "{}",
        "[[1]]",
        "",
    )
    for at, line in enumerate(lines):
        key, sign, _ = line.partition(" = ")
        if not sign or line.startswith(("#", " ")):
            continue
        for value in values:
            changed = [*lines[:at], f"{key} = {value}", *lines[at + 1 :]]
            yield f"{key} = {value} (line {at + 1})", "\n".join(changed).encode()


def _numbers(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    import re

    for index, match in enumerate(re.finditer(rb"-?\d+(\.\d+)?", content)):
        if index < 24:
            yield content[: match.start()], content[match.end() :]


# Examples, one for each kind of file.


def _corpus(folder: Path, *, sums: bool = False) -> Path:
    from sprachbund.data.manifest import ManifestWriter

    rng = np.random.default_rng(1)
    with ManifestWriter(folder, shard_size=3) as writer:
        for number in range(5):
            writer.add(
                rng.uniform(-0.3, 0.3, 1600 + 160 * number).astype(np.float32),
                text=f"text {number}",
                language="en",
                speaker="s",
                utterance_id=f"u{number}",
                translations={"de": f"wort {number}"},
                custom={
                    "kind": "number",
                    "languages": ["en", "de"],
                    "spans": [{"language": "en", "start_s": 0.0, "end_s": 0.05, "text": "text"}],
                },
            )
    if not sums:  # as earlier versions wrote them, so that more than the checksum is looked at
        for path in folder.glob("*.sha256"):
            path.unlink()
    return folder


def _read_corpus(folder: Path) -> None:
    from sprachbund.cli.data import _as_text as _text
    from sprachbund.cli.data import describe
    from sprachbund.data.language_spans import languages_in, timed_spans
    from sprachbund.data.manifest import Manifest

    manifest = Manifest(folder)
    for index, utterance in enumerate(manifest):
        assert len(manifest.samples(index)) == round(utterance.duration_s * 16_000), "not its sound"
        languages_in(utterance)
        timed_spans(utterance)
    description = describe(manifest, 5)
    json.dumps(description).encode()
    _text(description).encode()


def _evaluated(path: Path) -> None:
    from sprachbund.evaluation.hypotheses import corpus_name
    from sprachbund.evaluation.run import open_corpus

    manifest = open_corpus(path.parent)
    corpus_name(path.parent)
    for index in range(len(manifest)):
        manifest.samples(index)


def _made(folder: Path) -> Path:
    from sprachbund.data.begun import MADE, begin

    begin(folder, _SETTINGS)
    (folder / "cuts.00000.jsonl").touch()  # nothing is read of a folder without a shard
    return folder / MADE


_SETTINGS: dict[str, Any] = {
    "corpus": "tiny",
    "seed": 3,
    "languages": ["en", "de"],
    "voices": [],
    "share": 0.5,
}


def _read_made(path: Path) -> None:
    from sprachbund.data.begun import begin

    begin(path.parent, _SETTINGS)


def _best(folder: Path) -> Path:
    import torch

    from sprachbund.training.checkpoint import BestCheckpoints

    best = BestCheckpoints(folder, 2)
    for step in (10, 20):
        best.offer(step, 1.0 / step, {"a": torch.ones(2)})
    return folder / "best.json"


def _read_best(path: Path) -> None:
    import torch

    from sprachbund.training.checkpoint import BestCheckpoints

    best = BestCheckpoints(path.parent, 2)
    best.average()
    best.offer(30, 0.5, {"a": torch.ones(2)})


def _resume(folder: Path) -> Path:
    import torch

    from sprachbund.training.checkpoint import RESUME_FILE, save_resume

    save_resume(folder, {"step": 3, "model": {"a": torch.ones(4)}, "lowest": 0.5})
    return folder / RESUME_FILE


def _read_resume(path: Path) -> None:
    from sprachbund.training.checkpoint import load_resume

    load_resume(path.parent)


def _convergence(folder: Path) -> Path:
    from sprachbund.training.loop import CONVERGENCE_FILE, Convergence, DevEvaluation

    made = tuple(DevEvaluation(step=step, epoch=step / 10, value=1.0 / step) for step in (1, 2))
    Convergence(
        metric_for_best_model="loss", steps=9, stopped_early=False, best=made[1], evaluations=made
    ).write(folder)
    return folder / CONVERGENCE_FILE


def _read_convergence(path: Path) -> None:
    from sprachbund.training.loop import Convergence

    str(Convergence.read(path.parent))


def _recipe(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from sprachbund.research import size_file

        if name == "bundled":
            source = Path(__file__).parents[2] / "recipes" / "bundled.toml"
        else:
            source = size_file(name, "tiny")
        return Path(shutil.copy(source, folder / "recipe.toml"))

    return make


def _read_translator(path: Path) -> None:
    from sprachbund.cli.train import _recipe_of
    from sprachbund.training.options import read_recipe

    kind, _ = _recipe_of(path)
    recipe = read_recipe(kind, path)
    recipe.model_dump_json()
    for step in (0, 1, 100):
        recipe.training.rate(step)
        recipe.training.mask_strength(step)


def _read_recipe(name: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from importlib import import_module

        from sprachbund.cli.train import RECIPES
        from sprachbund.training.options import read_recipe

        module = import_module(f"sprachbund.research.{name}.recipe")
        read_recipe(getattr(module, RECIPES[name]), path, [f'data="{path.parent}"']).model_dump_json()

    return read


def _overrides(folder: Path) -> Path:
    path = folder / "overrides.txt"
    path.write_text("training.steps=5\ntraining.batch_s=20.5\nmodel.width=64\nexamples.speeds=[1.0]\n")
    return path


def _read_overrides(path: Path) -> None:
    from sprachbund.training.options import read_recipe
    from sprachbund.training.recipe import TranslatorRecipe

    recipe = _recipe("bundled")(path.parent)
    read_recipe(TranslatorRecipe, recipe, path.read_bytes().decode("utf-8", "surrogateescape").splitlines())


def _scores(folder: Path) -> Path:
    from sprachbund.evaluation.manifest import DataUsed, FailureRate, ModelUsed, Number, ResultManifest

    number = Number(
        metric="chrF",
        value=50.0,
        signature="s",
        group="pair",
        member="en>de",
        task="translation",
        num_lines=3,
    )
    ResultManifest(
        numbers=[number],
        failures=[FailureRate(failure="empty", member="all", failed=1, evaluated=3, guard=True)],
        measured={"real_time_factor": 0.5},
        data=[DataUsed(path="d", name="d", sha256="0", utterances=3, scored_utterances=3)],
        model=ModelUsed(path="m", name="m", sha256="0"),
        configuration={"metrics": ["chrF"]},
        seed=0,
    ).write(folder / "scores.json")
    return folder / "scores.json"


def _read_scores(path: Path) -> None:
    from sprachbund.evaluation.manifest import read_manifest
    from sprachbund.evaluation.tables import docs_table

    docs_table("scores", [read_manifest(path)])
    docs_table("pairs", [read_manifest(path)])


def _hypotheses(folder: Path) -> Path:
    from sprachbund.evaluation.lines import DecodingEvidence, Line

    line = Line(
        id="a", source="en", target="de", hypothesis="ja", reference="ja", evidence=DecodingEvidence()
    )
    other = Line(
        id="b", source="en", target="de", hypothesis="nein", reference="ja", evidence=DecodingEvidence()
    )
    path = folder / "hypotheses.jsonl"
    path.write_text("".join(one.to_json() + "\n" for one in (line, other)))
    return path


def _read_hypotheses(path: Path) -> None:
    from sprachbund.evaluation.lines import read_lines

    list(read_lines(path))


def _emissions(folder: Path) -> Path:
    path = folder / "emissions.jsonl"
    rows = [
        {
            "talk": talk,
            "target": "de",
            "duration_s": 3.0,
            "emissions": [{"text": "ja", "audio_s": 1.0, "wall_s": 1.5}],
            "shown": [{"text": "ja", "audio_s": 1.0}],
        }
        for talk in ("a", "b")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _read_emissions(path: Path) -> None:
    from sprachbund.evaluation.emissions import read_logs

    read_logs([path])


def _references(folder: Path) -> Path:
    path = folder / "references.jsonl"
    rows = [
        {"talk": "a", "target": "de", "start_s": s, "end_s": s + 1.0, "text": "ja nein"} for s in (0.0, 1.0)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _read_references(path: Path) -> None:
    from sprachbund.evaluation.emissions import read_references

    read_references(path)


def _texts(folder: Path) -> Path:
    path = folder / "texts.txt"
    path.write_text("ja\nnein\n7 vielleicht\n")
    return path


def _read_texts(path: Path) -> None:
    from sprachbund.evaluation.lines import read_texts

    read_texts(path, allow_empty=False)


def _plan(folder: Path) -> Path:
    from sprachbund.models.sharing_plan import SharingPlan, Split

    split = Split(module="encoder.0.ff", groups=(("de",), ("en", "fr")), shared_ratio=0.5)
    SharingPlan(splits=(split,), notes=("by hand",)).write(folder / "plan.json")
    return folder / "plan.json"


def _read_plan(path: Path) -> None:
    from sprachbund.models.sharing_plan import SharingPlan

    SharingPlan.read(path)


def _sketches(folder: Path) -> Path:
    from sprachbund.research.gradient_sharing.sketches import Sketches, write_sketches

    rng = np.random.default_rng(0)
    vectors = {"a": {tag: rng.normal(size=(3, 4)).astype(np.float32) for tag in ("de", "en")}}
    write_sketches(folder / "sketches.npz", Sketches(vectors=vectors, info={"model": "m"}))
    return folder / "sketches.npz"


def _read_sketches(path: Path) -> None:
    from sprachbund.research.gradient_sharing.sketches import read_sketches

    read_sketches(path)


def _blocks(folder: Path) -> Path:
    from sprachbund.research.gradient_sharing.collect import SETTINGS, begin

    begin(folder, _SETTINGS)
    return folder / SETTINGS


def _read_blocks(path: Path) -> None:
    from sprachbund.research.gradient_sharing.collect import begin

    begin(path.parent, _SETTINGS)


def _block(folder: Path) -> Path:
    from sprachbund.research.gradient_sharing.collect import Block

    path = folder / "block.000000.npz"
    Block(key="de", vectors=range(2), path=path).write({"a": np.ones((2, 3), np.float32)})
    return path


def _read_block(path: Path) -> None:
    from sprachbund.research.gradient_sharing.collect import Block

    Block(key="de", vectors=range(2), path=path).read()


def _study(folder: Path) -> Path:
    from sprachbund.research.encoder_transfer.recipe import EncoderTransferRecipe
    from sprachbund.research.tasks import STUDY_FILE, remember
    from sprachbund.training.options import read_recipe

    toml = _recipe("encoder_transfer")(folder)
    remember(folder, read_recipe(EncoderTransferRecipe, toml, ['data="d"']), may_change=(), data=())
    return folder / STUDY_FILE


def _read_study(path: Path) -> None:
    from sprachbund.research.encoder_transfer.recipe import read

    read(path.parent)


def _cell(folder: Path) -> Path:
    from sprachbund.research.encoder_transfer.results import CELL_FILE, CellScores, write_cell

    grid, cell = _grid()
    scores = CellScores(
        counts=np.ones((1, 1, 3, 2)), ids=["a", "b", "c"], metric="WER", training={"steps": 3}
    )
    write_cell(folder, cell, grid, scores, 1.0)
    return folder / CELL_FILE


def _counts(folder: Path) -> Path:
    from sprachbund.research.encoder_transfer.results import COUNTS_FILE

    _cell(folder)
    return folder / COUNTS_FILE


def _grid() -> tuple[Any, Any]:
    from sprachbund.research.encoder_transfer.grid import StudyGrid

    grid = StudyGrid(starts=("a", "b"), languages=("de",), hours=(1.0,))
    return grid, grid.cells()[0]


def _read_cell(path: Path) -> None:
    from sprachbund.research.encoder_transfer.results import is_whole, read_cell, read_counts

    manifest = read_cell(path.parent)
    assert manifest is not None
    is_whole(manifest, _grid()[0])
    read_counts(path.parent)


def _results(folder: Path) -> Path:
    path = folder / "results.csv"
    rows = [
        f"{start},de,{hours},{seed},{40 + hours}" for start in "ab" for hours in (1, 2) for seed in (0, 1)
    ]
    path.write_text("\n".join(["start,language,hours,seed,score", *rows]) + "\n")
    return path


def _read_results(path: Path) -> None:
    from sprachbund.research.encoder_transfer.results import read_results
    from sprachbund.research.encoder_transfer.study_options import ReadOptions

    read_results(path, ReadOptions(metric="score"))


def _units(folder: Path) -> Path:
    from sprachbund.models.tokens.directory import CONFIG, CorpusInfo, UnitsConfig, write_units
    from sprachbund.models.tokens.sources import SourceInfo
    from sprachbund.models.tokens.unit_options import FitOptions, KMeansOptions, VocabularyOptions

    source = SourceInfo(
        name="m",
        family="f",
        layer=1,
        num_layers=2,
        width=4,
        frame_s=0.02,
        sample_rate=16_000,
        window_s=30.0,
        hash="0",
    )
    config = UnitsConfig(
        source=source,
        options=FitOptions(
            kmeans=KMeansOptions(clusters=3), vocabulary=VocabularyOptions(unit_pieces=10, text_pieces=10)
        ),
        languages=("de",),
        data=(CorpusInfo(directory="d", hash="0", utterances=2),),
        num_frames=9,
        num_steps=2,
        explained=0.5,
        no_frames=(),
        mean_length_ratio=1.0,
        files={},
    )
    write_units(folder, config, np.ones((3, 4), np.float32), {"text": b"t", "units": b"u"})
    return folder / CONFIG


def _read_units(path: Path) -> None:
    from sprachbund.models.tokens.directory import Units

    units = Units(path.parent)
    _ = units.centroids, units.identity, units.num_clusters


def _centroids(folder: Path) -> Path:
    _units(folder)
    return folder / "kmeans.npy"


def _centroids_unhashed(path: Path) -> None:
    """As if the hash had been made of the damaged file."""
    from sprachbund.util.files import file_sha256

    config = path.parent / "units.json"
    values = json.loads(config.read_text())
    values["files"]["kmeans.npy"] = file_sha256(path)
    config.write_text(json.dumps(values))
    _read_units(config)


def _encoded(folder: Path) -> Path:
    from sprachbund.models.tokens.directory import CorpusInfo, Identity
    from sprachbund.units.encoded import MANIFEST, EncodedInfo, Shard
    from sprachbund.util.files import file_sha256, write_json

    rows = [
        {
            "id": name,
            "units": "一丁",
            "durations": [1, 2],
            "duration_s": 0.06,
            "language": "en",
            "speaker": "",
            "text": "a",
            "translations": {"de": "b"},
        }
        for name in "ab"
    ]
    shard = folder / "units.00000.jsonl"
    shard.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    info = EncodedInfo(
        identity=Identity(kmeans="0", vocabulary="0", sample_rate=16_000),
        clusters=3,
        frame_s=0.02,
        corpus=CorpusInfo(directory="d", hash="0", utterances=2),
        speed=1.0,
        utterances=2,
        units=4,
        frames=6,
        hours=0.1,
        skipped=(),
        shards=(Shard(file=shard.name, hash=file_sha256(shard), utterances=2),),
    )
    write_json(folder / MANIFEST, info)
    return folder / MANIFEST


def _read_encoded(path: Path) -> None:
    from sprachbund.units.encoded import EncodedCorpus

    encoded = EncodedCorpus(path.parent)
    for index in range(len(encoded)):
        _ = encoded[index].with_repeats
    list(encoded)


def _encoded_lines(folder: Path) -> Path:
    _encoded(folder)
    return folder / "units.00000.jsonl"


def _read_encoded_lines(path: Path) -> None:
    """As if the hash had been made of the damaged file."""
    from sprachbund.units.encoded import read_lines

    for line in read_lines(path):
        _ = line.with_repeats


def _units_settings(folder: Path) -> Path:
    from sprachbund.units.files import SETTINGS, begin

    begin(folder, _SETTINGS)
    return folder / SETTINGS


def _read_units_settings(path: Path) -> None:
    from sprachbund.units.files import begin

    begin(path.parent, _SETTINGS)


def _phones(folder: Path) -> Path:
    path = folder / "phones.tsv"
    path.write_text("id\tstart_s\tend_s\tphone\na\t0.0\t0.1\tp\na\t0.1\t0.2\ta\n")
    return path


def _read_phones(path: Path) -> None:
    from sprachbund.units.measures import Phones

    Phones(path, 0.02)


def _labels(folder: Path) -> Path:
    from sprachbund.compression.pseudo_labels import SETTINGS, claim

    claim(folder / "out", _SETTINGS)
    return folder / "out" / SETTINGS


def _read_labels(path: Path) -> None:
    from sprachbund.compression.pseudo_labels import claim

    claim(path.parent, _SETTINGS)


def _label_record(folder: Path) -> Path:
    from sprachbund.compression.pseudo_labels import Record

    record = Record()
    record.count("de", "kept")
    record.drop("u0", "de", "text", "too long: 9")
    record.utterances = 1
    path = folder / "labels.00000.json"
    record.write(path)
    _corpus(folder)
    return path


def _read_label_record(path: Path) -> None:
    from sprachbund.compression.pseudo_labels import CorpusSource, close, read_record

    record = read_record(path)
    close(path.parent, [CorpusSource(path.parent)], [record], "teacher", ["de"])


def _prepared(folder: Path) -> Path:
    from sprachbund.data.begun import PREPARED_FROM
    from sprachbund.util.files import write_json

    _corpus(folder)
    write_json(folder / PREPARED_FROM, _SETTINGS)
    return folder / PREPARED_FROM


def _read_prepared(path: Path) -> None:
    from sprachbund.corpora.public.preparation import _begin
    from sprachbund.data.begun import MADE

    (path.parent / MADE).unlink(missing_ok=True)  # which is written where the former file is taken
    _begin(path.parent, _SETTINGS)


def _corpus_counts(folder: Path) -> Path:
    from sprachbund.corpora.public.items import Counts

    counts = Counts(written=2)
    counts.available.update(["", "de"])
    counts.seconds[""] += 3.5  # type: ignore[assignment]
    counts.leave_out("a:1", "sound cannot be read", "x")
    path = folder / ".counts.00000.json"
    path.write_text(json.dumps(counts.as_dict()))
    return path


def _read_corpus_counts(path: Path) -> None:
    from sprachbund.corpora.public.items import Counts
    from sprachbund.corpora.public.preparation import _list_left_out, _shard

    total = Counts()
    total += _shard(path.parent, 0, iter(()), None, None)  # type: ignore[arg-type]
    _list_left_out(path.parent / "left_out.tsv", total)


def _own_skipped(folder: Path) -> Path:
    _corpus(folder)
    path = folder / ".skipped.00000.json"
    path.write_text(json.dumps([{"where": "a:1", "reason": "empty"}]))
    return path


def _read_own_skipped(path: Path) -> None:
    from sprachbund.data.own import OwnOptions, _make_shard

    made = _make_shard(path.parent, 0, (), OwnOptions(name="x", skip_bad=True), lambda n: None)
    [str(fault) for fault in made.faults]


def _benchmark(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps({"rows": [{"model": "a", "speed": 1.5}, {"model": "b", "speed": 2.5}]}))
    return path


def _read_benchmark(path: Path) -> None:
    from sprachbund.evaluation.tables import benchmark_table

    benchmark_table(path)


def _read_table(path: Path) -> None:
    from sprachbund.cli.train import _print

    _print(path, as_json=False)


def _speed(folder: Path) -> Path:
    from sprachbund.research.dual_scale.speed import SPEED_FILE

    row = {
        "name": "a",
        "seed": 0,
        "batch": 1,
        "pair": "en>de",
        "ms_per_token": [1.0, 2.0],
        "draft_tokens": [3, 1],
        "predicted_gain": None,
        "changed": 0,
        "rows": 2,
    }
    (folder / SPEED_FILE).write_text(json.dumps({"speeds": [row]}))
    return folder / SPEED_FILE


def _read_speed(path: Path) -> None:
    from sprachbund.research.dual_scale.speed import mean_ms, read_speeds

    mean_ms(read_speeds(path.parent))


def _cost(folder: Path) -> Path:
    from sprachbund.research.discrete_units.report import COST_FILE

    (folder / COST_FILE).write_text(json.dumps({"cpu_s": 3.5, "stored_bytes": 7}))
    return folder / COST_FILE


def _read_cost(path: Path) -> None:
    from sprachbund.research.discrete_units.report import read_cost

    cost = read_cost(path.parent)
    _ = cost["cpu_s"] + 1.0, cost["stored_bytes"] + 1.0


def _parts_of_start(folder: Path) -> Path:
    from sprachbund.research.encoder_transfer.starts import PARTS_FILE, start_model

    path = start_model(folder, "a") / PARTS_FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"encoder": "0123", "decoder": "4567"}))
    return path


def _read_parts_of_start(path: Path) -> None:
    from sprachbund.research.encoder_transfer.starts import start_parts

    parts = start_parts(path.parents[2], "a")
    assert all(isinstance(one, str) for one in parts.values()), "not texts"


def _distilled(folder: Path) -> Path:
    from sprachbund.training.checkpoint import RECIPE_FILE, RESUME_FILE, claim_folder

    claim_folder(folder, _distil_recipe())
    (folder / RESUME_FILE).touch()  # the recipe of a run that was begun is compared
    return folder / RECIPE_FILE


def _distil_recipe() -> Any:
    from sprachbund.compression.distillation import DistilRecipe

    return DistilRecipe.model_validate(
        {
            "teacher": "t",
            "student": "s",
            "languages": ["en"],
            "train": [{"path": "d"}],
            "dev": [{"path": "d"}],
            "training": {"steps": 5},
        }
    )


def _read_distilled(path: Path) -> None:
    from sprachbund.training.checkpoint import claim_folder

    claim_folder(path.parent, _distil_recipe())


def _info_of_training(path: Path) -> None:
    """`dataset.json` as training and labelling read it."""
    from types import SimpleNamespace

    from sprachbund.compression.pseudo_labels import CorpusSource
    from sprachbund.data.manifest import Manifest
    from sprachbund.training.data_checks import TaughtLanguages
    from sprachbund.training.recipe import CardRecipe
    from sprachbund.training.translator import _card

    source = CorpusSource(path.parent)
    str(source.info["name"])
    recipe: Any = SimpleNamespace(
        training=SimpleNamespace(steps=1, batch_s=1.0),
        start=None,
        live=(),
        card=CardRecipe(name="m"),
        languages=("en",),
    )
    corpus: Any = SimpleNamespace(corpora=[Manifest(path.parent)], targets=("en",))
    taught = TaughtLanguages(spoken=("en",), written=("en",), pairs=(), unused=(), num_seen=1, count=1)
    _card(recipe, corpus, taught).model_dump_json()


KINDS = (
    Kind(
        name="cuts.jsonl",
        make=lambda f: _corpus(f) / "cuts.00000.jsonl",
        read=lambda p: _read_corpus(p.parent),
        form="jsonl",
    ),
    Kind(
        name="cuts.jsonl with checksums",
        make=lambda f: _corpus(f, sums=True) / "cuts.00000.jsonl",
        read=lambda p: _read_corpus(p.parent),
        form="jsonl",
    ),
    Kind(
        name="cuts.jsonl in evaluation",
        make=lambda f: _corpus(f) / "cuts.00000.jsonl",
        read=_evaluated,
        form="jsonl",
    ),
    Kind(
        name="audio.wav",
        make=lambda f: _corpus(f) / "audio.00000.wav",
        read=lambda p: _read_corpus(p.parent),
        form="binary",
    ),
    Kind(
        name="audio.wav with checksums",
        make=lambda f: _corpus(f, sums=True) / "audio.00000.wav",
        read=lambda p: _read_corpus(p.parent),
        form="binary",
    ),
    Kind(
        name="dataset.json",
        make=lambda f: _corpus(f) / "dataset.json",
        read=lambda p: _read_corpus(p.parent),
        form="json",
    ),
    Kind(
        name="dataset.json in training",
        make=lambda f: _corpus(f) / "dataset.json",
        read=_info_of_training,
        form="json",
    ),
    Kind(
        name="dataset.json in evaluation",
        make=lambda f: _corpus(f) / "dataset.json",
        read=_evaluated,
        form="json",
    ),
    Kind(name="made.json", make=_made, read=_read_made, form="json"),
    Kind(name="best.json", make=_best, read=_read_best, form="json"),
    Kind(name="resume.pt", make=_resume, read=_read_resume, form="binary"),
    Kind(name="convergence.json", make=_convergence, read=_read_convergence, form="json"),
    Kind(name="recipe of training", make=_recipe("bundled"), read=_read_translator, form="toml"),
    *(
        Kind(name=f"recipe of {name}", make=_recipe(name), read=_read_recipe(name), form="toml")
        for name in (
            "encoder_transfer",
            "dual_scale",
            "discrete_units",
            "gradient_sharing",
            "code_switch",
        )
    ),
    Kind(name="--set", make=_overrides, read=_read_overrides, form="text"),
    Kind(name="scores.json", make=_scores, read=_read_scores, form="json"),
    Kind(name="hypotheses.jsonl", make=_hypotheses, read=_read_hypotheses, form="jsonl"),
    Kind(name="emissions.jsonl", make=_emissions, read=_read_emissions, form="jsonl"),
    Kind(name="references.jsonl", make=_references, read=_read_references, form="jsonl"),
    Kind(name="texts", make=_texts, read=_read_texts, form="text"),
    Kind(name="sharing plan", make=_plan, read=_read_plan, form="json"),
    Kind(name="sketches.npz", make=_sketches, read=_read_sketches, form="binary"),
    Kind(name="sharing settings.json", make=_blocks, read=_read_blocks, form="json"),
    Kind(name="sharing block.npz", make=_block, read=_read_block, form="binary"),
    Kind(name="study.json", make=_study, read=_read_study, form="json"),
    Kind(name="cell.json", make=_cell, read=_read_cell, form="json"),
    Kind(name="counts.npz", make=_counts, read=_read_cell, form="binary"),
    Kind(name="results.csv", make=_results, read=_read_results, form="text"),
    Kind(name="units.json", make=_units, read=_read_units, form="json"),
    Kind(name="kmeans.npy", make=_centroids, read=_centroids_unhashed, form="binary"),
    Kind(name="units manifest.json", make=_encoded, read=_read_encoded, form="json"),
    Kind(name="units.jsonl", make=_encoded_lines, read=_read_encoded_lines, form="jsonl"),
    Kind(name="units settings.json", make=_units_settings, read=_read_units_settings, form="json"),
    Kind(name="phones", make=_phones, read=_read_phones, form="text"),
    Kind(name="pseudo_labels.json", make=_labels, read=_read_labels, form="json"),
    Kind(name="labels record", make=_label_record, read=_read_label_record, form="json"),
    Kind(name=".prepared-from", make=_prepared, read=_read_prepared, form="json"),
    Kind(name=".counts.json", make=_corpus_counts, read=_read_corpus_counts, form="json"),
    Kind(name=".skipped.json", make=_own_skipped, read=_read_own_skipped, form="json"),
    Kind(name="benchmark rows", make=_benchmark, read=_read_benchmark, form="json"),
    Kind(name="recipe table.json", make=_benchmark, read=_read_table, form="json"),
    Kind(name="speed.json", make=_speed, read=_read_speed, form="json"),
    Kind(name="cost.json", make=_cost, read=_read_cost, form="json"),
    Kind(name="parts.json", make=_parts_of_start, read=_read_parts_of_start, form="json"),
    Kind(name="distil recipe.json", make=_distilled, read=_read_distilled, form="json"),
)


@dataclass(kw_only=True)
class KindResult:
    """What came of a kind's mutants: counts by outcome, every fault with its mutant, memory beyond the example's."""

    counts: Counter[str]
    faults: list[tuple[str, str]]
    memory_mib: float = 0.0


def run_kind(kind: Kind, per_kind: int | None = None, seed: int = 20) -> KindResult:
    """Read every mutant of a kind, or a fixed choice of `per_kind`; the example itself has to be read."""
    result = KindResult(counts=Counter(), faults=[])
    with tempfile.TemporaryDirectory() as name:
        pristine = Path(name) / "pristine"
        pristine.mkdir()
        path = kind.make(pristine)
        inside = path.relative_to(pristine)
        work = Path(name) / "work"
        shutil.copytree(pristine, work)
        kind.read(work / inside)
        before = _memory_mib()
        made = list(mutants(path.read_bytes(), kind.form, random.Random(seed)))
        if per_kind is not None and len(made) > per_kind:
            made = random.Random(seed + 1).sample(made, per_kind)
        for change, content in made:
            shutil.rmtree(work)
            shutil.copytree(pristine, work)
            (work / inside).write_bytes(content)
            outcome, line = _read(kind, work / inside)
            result.counts[outcome] += 1
            if outcome not in ("read", "refused"):
                result.faults.append((change, f"{outcome}: {line}"))
        result.memory_mib = _memory_mib() - before
    return result


def _memory_mib() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read(kind: Kind, path: Path) -> tuple[str, str]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
    except SprachbundError as error:
        line = str(error)
        if "\n" in line.strip() or len(line) > LONGEST_LINE:
            return "raw", f"not one line: {line[:200]!r}"
        return "refused", line
    except _TooLong:
        return "hung", ""
    except Exception as error:  # what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "raw",
            f"{type(error).__name__}: {str(error)[:120]} ({Path(frame.filename).name}:{frame.lineno})",
        )
    finally:
        signal.alarm(0)
    return "read", ""


def _in_process(kind: Kind, per_kind: int | None, out: Any) -> None:
    with Path("/dev/null").open("w") as nowhere:
        sys.stdout = nowhere
        try:
            result = run_kind(kind, per_kind)
        finally:
            sys.stdout = sys.__stdout__
    out.send(result)


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged copies of every kind of file.")
    parser.add_argument("--per-kind", type=int, help="read a fixed choice of so many; all if not given")
    parser.add_argument("--kinds", help="only these, separated by commas")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--faults", type=int, default=3, help="print so many of each kind")
    options = parser.parse_args()
    wanted = options.kinds.split(",") if options.kinds else [kind.name for kind in KINDS]

    context = multiprocessing.get_context("fork")
    rows = []
    for kind in (kind for kind in KINDS if kind.name in wanted):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_in_process, args=(kind, options.per_kind, theirs))
        process.start()
        theirs.close()
        try:
            result: KindResult = ours.recv()
        except EOFError:
            result = KindResult(counts=Counter(raw=1), faults=[("all", "the process died")])
        process.join()
        counts = result.counts
        row = {
            "kind": kind.name,
            "mutants": counts.total(),
            "read": counts["read"],
            "refused": counts["refused"],
            "raw_errors": counts["raw"],
            "hangs": counts["hung"],
            "memory_mib": round(result.memory_mib, 1),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
        for change, line in result.faults[: options.faults]:
            print(f"    {change}: {line}", flush=True)
    counted = ("mutants", "read", "refused", "raw_errors", "hangs")
    total = {name: sum(row[name] for row in rows) for name in counted}  # type: ignore[misc]
    total["memory_mib"] = max(row["memory_mib"] for row in rows)  # type: ignore[type-var]
    print(json.dumps(total))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(options.out, {"rows": rows, "total": total})
    return 1 if total["raw_errors"] or total["hangs"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""One evaluation: opens corpora, decodes them with a model, scores, and writes hypotheses and a result manifest."""

import json
import shutil
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.language_spans import timed_spans
from sprachbund.data.manifest import (
    Manifest,
    Utterance,
    Utterances,
    distinct_directories,
    shard_numbers,
    use_current_names,
)
from sprachbund.data.shards import Shards, is_packed
from sprachbund.decoding.languages import declared_languages
from sprachbund.decoding.options import AUTO
from sprachbund.engines.benchmark import peak_mib
from sprachbund.engines.choice import engine_for
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import (
    Plan,
    corpus_name,
    make_plan,
    translate_no_speech,
    translate_plan,
    translate_plans,
)
from sprachbund.evaluation.lines import (
    HYPOTHESES_FILE,
    Line,
    LineWriter,
    by_pair,
    check_line_ends,
    embedded_spans,
    first_fault,
    in_chunks,
    is_tag,
    json_object,
    read_lines,
    spoken_spans,
)
from sprachbund.evaluation.manifest import MANIFEST_FILE, DataUsed, ModelUsed, ResultManifest, options_of
from sprachbund.evaluation.metrics import comet_signature
from sprachbund.evaluation.options import EvaluationOptions, options_from
from sprachbund.evaluation.parts import CorpusPlan, EvaluationParts
from sprachbund.evaluation.quality import COMET, pair_name
from sprachbund.evaluation.scoring import Scoring
from sprachbund.evaluation.speed import DecodingCost, Stopwatch, add_cost, first_segment_s, race, race_rows
from sprachbund.models.base import Family, use_tier
from sprachbund.models.card import Card
from sprachbund.models.io import content_hash, family_of, load, locate
from sprachbund.util.computing import Computing
from sprachbund.util.devices import torch_threads
from sprachbund.util.files import atomic_directory, read_object, write_json
from sprachbund.util.jobs import LOCAL, run, run_apart
from sprachbund.util.memory import give_back_freed_memory
from sprachbund.util.progress import StageProgress

# Opening a corpus. All of it is checked first, so that errors appear before any decoding.

_WordRange = Annotated[list[int], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    """The fields of a cut that evaluation reads; others are ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Span(_Part):
    language: str = Field(min_length=1)
    start_s: float | None = None
    end_s: float | None = None
    text: str | None = None
    word_ranges: dict[str, _WordRange] | None = None


class _Custom(_Part):
    translations: dict[str, str] = {}
    spans: list[_Span] | None = None
    main_language: str | None = None
    languages: list[str] | None = None
    embedded_words: list[str] | None = None
    embedded_ranges: dict[str, list[_WordRange]] | None = None


class _Supervision(_Part):
    text: str
    language: str | None = None
    speaker: str | None = None
    custom: _Custom | None = None


class _Cut(_Part):
    id: str = Field(min_length=1)
    start: float = Field(ge=0)
    duration: float = Field(gt=0)
    supervisions: list[_Supervision] = Field(min_length=1)


def open_corpus(directory: Path) -> Utterances:
    """A corpus whose every line can be read, whose ids occur once, and whose sound is there to the end.

    Tar shards are compared with their checksums when they are read.

    Raises:
        SprachbundError: naming file and line of the first fault.
    """
    if is_packed(directory):
        return Shards(directory)
    seen: dict[str, str] = {}
    for number in shard_numbers(directory):
        path = directory / f"cuts.{number:05d}.jsonl"
        end_s = 0.0
        whole = path.read_bytes()
        check_line_ends(path, whole)
        for line, raw in enumerate(whole.splitlines(), start=1):
            cut = _parse(path, line, raw)
            if cut.id in seen:
                raise SprachbundError(
                    f"{path}:{line}: id {cut.id!r} stands at {seen[cut.id]} already; every id may occur once"
                )
            seen[cut.id] = f"{path.name}:{line}"
            end_s = max(end_s, cut.start + cut.duration)
        _check_sound(directory / f"audio.{number:05d}.wav", end_s)
    return Manifest(directory)


def _parse(path: Path, line: int, raw: bytes) -> _Cut:
    try:
        values = json_object(raw)
        use_current_names(values, path.parent)
        cut = _Cut.model_validate(values)
        said = cut.supervisions[0]
        custom = said.custom or _Custom()
        _check_texts(said.language or "", custom)
        if custom.spans or custom.embedded_words:
            _check_spans(cut, dict(values["supervisions"][0]["custom"]))
    except (ValueError, SprachbundError) as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise SprachbundError(
            f"{path}:{line}: not an utterance ({reason}); prepare or copy it again"
        ) from error
    return cut


def _check_texts(language: str, custom: _Custom) -> None:
    """Raises ValueError for languages that are none, and for empty references of speech, which would be scored
    on nothing."""
    spans = [span.language for span in custom.spans or ()]
    for tag in (language, *custom.translations, *spans, *(custom.languages or ())):
        if tag and not is_tag(tag):
            raise ValueError(f"{tag!r} is no language tag")
    empty = [tag for tag, text in custom.translations.items() if not text.strip()]
    if language and empty:
        raise ValueError(f"its reference into {empty[0]} is empty: add the text, or take the language out")


def _check_spans(cut: _Cut, custom: dict[str, object]) -> None:
    """Raises SprachbundError for times that are none, overlap or leave the sound, and for word ranges that a
    reference does not have."""
    said = cut.supervisions[0]
    translations = said.custom.translations if said.custom else {}
    utterance = Utterance(
        id=cut.id,
        duration_s=cut.duration,
        text=said.text,
        language=said.language or "",
        speaker=said.speaker or "",
        translations=translations,
        custom=custom,
    )
    spoken_spans(utterance)
    timed_spans(utterance)
    for target in (utterance.language, *translations):
        embedded_spans(utterance, target)


def _check_sound(path: Path, end_s: float) -> None:
    try:
        with wave.open(str(path), "rb") as file:
            rate, num_samples = file.getframerate(), file.getnframes()
            held = (path.stat().st_size - 44) // (file.getsampwidth() * file.getnchannels())
    except (OSError, EOFError, wave.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise SprachbundError(f"{path}: no sound ({reason}); copy the corpus again") from error
    there_s = min(num_samples, held) / SAMPLE_RATE
    if rate != SAMPLE_RATE or there_s < end_s - 0.01:
        raise SprachbundError(
            f"{path}: holds {there_s:.1f} s at {rate} Hz, the utterances reach to {end_s:.1f} s at "
            f"{SAMPLE_RATE} Hz; copy the corpus again"
        )


PARTS = "hypotheses.parts"
"""Folder of what several processes have written, until all of it is there."""
BEGUN = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A finished evaluation: its result manifest, and where its files are."""

    manifest: ResultManifest
    out: Path | None = None

    def lines(self) -> Iterator[Line]:
        """The hypotheses, one by one. Raises SprachbundError when they were not written."""
        if self.out is None:
            raise SprachbundError("the hypotheses were not written; evaluate with `out` to have them")
        return read_lines(self.out / HYPOTHESES_FILE)


def evaluate(
    directories: Sequence[str | Path],
    model: str | Path,
    options: EvaluationOptions | None = None,
    *,
    out: Path | None = None,
    computing: Computing | None = None,
    offline: bool = False,
    progress: StageProgress = lambda what, done, total: None,
) -> EvaluationResult:
    """Evaluate a model on corpora. Hypotheses are scored and written as they come, and none is held.

    Several processes write parts of the hypotheses into `out`, where the same call goes on; then they are scored.
    Hypotheses and scores are those of one process, and speed is not measured.

    Args:
        directories: directories of the corpora, each as `sprachbund data` writes it.
        model: "bundled", a directory, or a Hugging Face id.
        options: options of the evaluation.
        out: folder for hypotheses, texts by pair and the result manifest; None writes nothing.
        computing: processes; if None, this one, with the threads that it has.
        offline: never use the network.
        progress: called with the stage, the amount done and the total (0: unknown).

    Raises:
        SprachbundError: for models, engines, corpora and languages that cannot be, and utterances of one id in corpora
            of one name, before any decoding; parts of another evaluation in `out`.
    """
    options = options or EvaluationOptions()
    if not directories:
        raise SprachbundError("no corpus named; name a corpus directory")
    manifests = [open_corpus(directory) for directory in distinct_directories(directories)]
    _check_apart(manifests)
    if options.comet:
        comet_signature(options.comet)  # a missing package is reported before models are loaded
    if computing is None or computing.is_alone:
        return _evaluate_here(manifests, model, options, out, offline, progress)
    if out is None and computing.ray not in (None, LOCAL):
        raise SprachbundError(
            f"the Ray cluster at {computing.ray} needs a folder that its machines share; give --out"
        )
    with ExitStack() as stack:
        folder = out / PARTS if out else Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(torch_threads(computing.threads))  # as the manifest says, and each process has
        result = _evaluate_in_parts(manifests, model, options, out, folder, computing, offline, progress)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _check_apart(manifests: Sequence[Utterances]) -> None:
    """Check that every line of the evaluation will have a name of its own.

    Raises:
        SprachbundError: an id is in two corpora of one name.
    """
    names = [corpus_name(manifest.directory) for manifest in manifests]
    seen: dict[tuple[str, str], Path] = {}
    for name, manifest in zip(names, manifests, strict=True):
        if names.count(name) == 1:
            continue
        for utterance in manifest:
            first = seen.setdefault((name, utterance.id), manifest.directory)
            if first != manifest.directory:
                raise SprachbundError(
                    f"{first} and {manifest.directory} are both called {name!r} and have both an utterance "
                    f"{utterance.id!r}, so that their lines cannot be kept apart; evaluate each by itself"
                )


def _evaluate_here(
    manifests: Sequence[Utterances],
    model: str | Path,
    options: EvaluationOptions,
    out: Path | None,
    offline: bool,
    progress: StageProgress,
) -> EvaluationResult:
    """By this process, which measures its speed."""
    family, options = _ready(model, options, offline)
    plans = [make_plan(family, m, options.targets, options.limit, options.sources) for m in manifests]
    scoring = Scoring(_targets(plans), options, offline=offline)
    total, watch = sum(plan.num_lines for plan in plans), Stopwatch()
    with LineWriter(out / HYPOTHESES_FILE) if out else _Nowhere() as writer:
        for done, line in enumerate(watch.watch(translate_plans(family, manifests, plans, options)), start=1):
            writer.write(line)
            scoring.add(line)
            progress(", ".join(filter(None, ["decoding", scoring.so_far])), done, total)
        progress("timing first segments", 0, 0)
        speed = replace(
            watch.speed(), first_segment_s=_first_segment_s(family, manifests[0], plans[0], options)
        )
        for done, line in enumerate(translate_no_speech(family, options), start=1):
            progress("decoding sounds without speech", done, 0)
            writer.write(line)
            scoring.add(line)
    progress("scoring", 0, 0)
    return _finished(scoring, manifests, plans, model, out, offline, speed)


def _evaluate_in_parts(
    manifests: Sequence[Utterances],
    model: str | Path,
    options: EvaluationOptions,
    out: Path | None,
    folder: Path,
    computing: Computing,
    offline: bool,
    progress: StageProgress,
) -> EvaluationResult:
    """By several processes. Times of processes that share a machine are no model's, so none is measured."""
    directory = locate(model, offline=offline)
    asked = json.loads(json.dumps({**asdict(options), "block": computing.block}))
    asked |= {"model": content_hash(directory), "data": [manifest.content_hash() for manifest in manifests]}
    asked |= {"threads": computing.threads}  # with another number, last bits of states may differ
    del asked["comet"]  # which no hypothesis depends on
    options = _as_begun(folder, asked, options)
    family, options = _ready(directory, options, offline)
    plans = [make_plan(family, m, options.targets, options.limit, options.sources) for m in manifests]
    # What COMET lacks is said now, and not after hours of decoding.
    scoring = Scoring(_targets(plans), options, offline=offline)
    del family  # the processes have their own
    give_back_freed_memory()
    write_json(folder / BEGUN, {"asked": asked, "engine": options.engine})
    job = EvaluationParts(
        corpora=tuple(
            CorpusPlan(directory=m.directory, name=corpus_name(m.directory), plan=plan)
            for m, plan in zip(manifests, plans, strict=True)
        ),
        open_model=partial(_open, directory, options, offline),
        options=options,
        folder=folder,
        block=computing.block,
        threads=computing.threads,
    )
    run(
        job,
        workers=computing.workers,
        ray_address=computing.ray,
        progress=lambda done, total: progress("decoding", done, total),
    )
    with LineWriter(out / HYPOTHESES_FILE) if out else _Nowhere() as writer:
        for done, line in enumerate(job.lines(), start=1):
            writer.write(line)
            scoring.add(line)
            progress(", ".join(filter(None, ["scoring", scoring.so_far])), done, 0)
    return _finished(scoring, manifests, plans, model, out, offline, None)


def _as_begun(folder: Path, asked: dict[str, Any], options: EvaluationOptions) -> EvaluationOptions:
    """Options with the engine that "auto" found when the parts in a folder were begun: another one may write otherwise.

    Raises:
        SprachbundError: the parts are of another evaluation.
    """
    path = folder / BEGUN
    if not path.exists():
        return options
    advice = f"delete {folder}, and the evaluation begins anew"
    begun = read_object(path, advice=advice)
    before = begun.get("asked", {})
    others = {key: before.pop(key, None) for key in ("block", "model", "data")}
    others["threads"] = before.pop("threads", asked["threads"])
    # An earlier version may have had fewer options, so those that are not there are as this one has them.
    before = json.loads(json.dumps(asdict(options_from(before, path)))) | others
    del before["comet"]
    changed = sorted(key for key in {*before, *asked} if before.get(key) != asked.get(key))
    if changed == ["threads"]:
        raise SprachbundError(
            f"{folder} holds parts that were computed with {before['threads']} threads; give --threads "
            f"{before['threads']}, or delete it"
        )
    if changed:
        raise SprachbundError(
            f"{folder} holds parts of an evaluation with another {', '.join(changed)}; delete it, or name another --out"
        )
    return replace(options, engine=begun["engine"])


def _open(directory: Path, options: EvaluationOptions, offline: bool) -> Family:
    """The model of a process of several."""
    return _ready(directory, options, offline)[0]


def _targets(plans: Sequence[Plan]) -> set[str]:
    return {target for plan in plans for job in plan.jobs for target in job.targets}


def _finished(
    scoring: Scoring,
    manifests: Sequence[Utterances],
    plans: Sequence[Plan],
    model: str | Path,
    out: Path | None,
    offline: bool,
    speed: DecodingCost | None,
) -> EvaluationResult:
    """The scores, written where they are to be."""
    used = [data_used(m, plan) for m, plan in zip(manifests, plans, strict=True)]
    result = EvaluationResult(manifest=scoring.manifest(model_used(model, offline), used, speed), out=out)
    if out:
        write_texts(result.lines(), out)
        result.manifest.write(out / MANIFEST_FILE)
    return result


def _ready(model: str | Path, options: EvaluationOptions, offline: bool) -> tuple[Family, EvaluationOptions]:
    """The model on its engine, and the options as they are recorded: the engine that "auto" found, whether there are
    timestamps, and the declared languages in the model's tags."""
    family = load(model, offline=offline, device=options.device, as_stored=True)
    if options.right_context is not None:
        use_tier(family, options.right_context)
    chosen = engine_for(
        family,
        options.engine,
        directory=locate(model, offline=offline),
    )
    allowed = declared_languages(chosen.family, options.decoding.allowed_languages)
    decoding = replace(options.decoding, allowed_languages=allowed)
    if decoding.timestamps == AUTO:
        decoding = replace(decoding, timestamps=chosen.family.capabilities.timestamps is not None)
    options = replace(options, decoding=decoding)
    if options.engine == "auto":
        options = replace(options, engine=chosen.name)
    return chosen.family, options


def race_models(
    directory: Path,
    models: Sequence[str],
    options: EvaluationOptions,
    *,
    rounds: int = 3,
    offline: bool = False,
    progress: StageProgress = lambda what, done, total: None,
) -> list[dict[str, str | float]]:
    """Speed and cost of models side by side on the same corpus and the same pairs; the first one's are 1.
    Memory is that of a process of its own for each, on the longest of the utterances.

    Args:
        directory: a corpus.
        models: names or directories; the first is the reference.
        options: options of the evaluation.
        rounds: timed rounds, in which the models take turns.
        offline: never use the network.
        progress: called with the stage, the amount done and the total.

    Raises:
        SprachbundError: when there is no target language that all of them know for the same utterances.
    """
    manifest = open_corpus(directory)
    families, shared = _racers(directory, manifest, models, options, offline)
    number = count()

    def work(family: Family) -> Iterator[Line]:
        progress("timing both models", next(number), len(families) * (rounds + 1))
        return translate_plan(family, manifest, shared, options.decoding, options.batch_size)

    rows = race_rows(race(families, work, rounds))
    first: dict[str, list[float]] = {name: [] for name in families}
    num_first = min(options.first_segments, len(shared.jobs))
    for index in range(num_first):
        progress("timing first segments", index, num_first)
        one = Plan(jobs=(shared.jobs[index * len(shared.jobs) // num_first],))
        for name, family in families.items():
            first[name] += filter(None, [_first_segment_s(family, manifest, one, options)])
    if all(first.values()):
        add_cost(rows, "first_segment_s", [median(seconds) for seconds in first.values()])
    longest = sorted(shared.jobs, key=lambda job: job.duration_s)[-options.batch_size :]
    peaks: list[float] = []
    for name in models:
        progress("measuring memory", len(peaks), len(models))
        peaks.append(_peak_apart(name, directory, Plan(jobs=tuple(longest)), options, offline))
    add_cost(rows, "peak_memory_mb", peaks)
    return rows


def check_race(directory: Path, models: Sequence[str], options: EvaluationOptions, *, offline: bool) -> None:
    """Raise what `race_models` would raise before it begins to time.

    Args:
        directory: a corpus.
        models: names or directories.
        options: options of the evaluation.
        offline: never use the network.
    """
    _racers(directory, open_corpus(directory), models, options, offline)


def _racers(
    directory: Path, manifest: Utterances, models: Sequence[str], options: EvaluationOptions, offline: bool
) -> tuple[dict[str, Family], Plan]:
    """The models by name, and what all of them translate."""
    families = {name: _ready(name, options, offline)[0] for name in models}
    plans = [
        make_plan(family, manifest, options.targets, options.limit, options.sources)
        for family in families.values()
    ]
    jobs = set(plans[0].jobs).intersection(*(plan.jobs for plan in plans[1:]))
    if not jobs:
        raise SprachbundError(
            f"{', '.join(models)} have no utterance of {directory} with the same targets; name them with --to"
        )
    return families, Plan(jobs=tuple(job for job in plans[0].jobs if job in jobs))


def _peak_apart(model: str, directory: Path, plan: Plan, options: EvaluationOptions, offline: bool) -> float:
    """Peak memory of a new process that does the work, in MiB."""
    return run_apart(peak_memory_of, model, directory, plan, options, offline, torch.get_num_threads())


def peak_memory_of(
    model: str, directory: Path, plan: Plan, options: EvaluationOptions, offline: bool, num_threads: int
) -> float:
    """Most memory that this process has held when it has loaded a model and done the work, in MiB.

    Args:
        model: name or directory.
        directory: the corpus.
        plan: utterances and targets.
        options: options of the evaluation.
        offline: never use the network.
        num_threads: number of threads of torch.
    """
    torch.set_num_threads(num_threads)
    family, _ = _ready(model, options, offline)
    for _ in translate_plan(family, open_corpus(directory), plan, options.decoding, options.batch_size):
        pass
    return peak_mib()


def _first_segment_s(
    model: Family, manifest: Utterances, plan: Plan, options: EvaluationOptions
) -> float | None:
    """Time to the first segment of recordings spread over the first corpus, each into its first target."""
    count = min(options.first_segments, len(plan.jobs))
    jobs = [plan.jobs[i * len(plan.jobs) // count] for i in range(count)]
    decoding = replace(options.decoding, allowed_languages=None)  # the language is given
    first = [
        first_segment_s(model, [manifest.samples(job.index)], job.targets[:1], job.source, decoding)
        for job in jobs
    ]
    return median(there) if (there := [s for s in first if s is not None]) else None


def write_texts(lines: Iterable[Line], out: Path) -> None:
    """Write `texts/<pair>.hyp.txt` and `.ref.txt`, and of translations `.src.txt` with what was said, one text per
    line, for any other scorer to read."""
    with atomic_directory(out / "texts") as folder:
        for some in in_chunks(line.behind_guard() for line in lines if line.source):
            for pair, of_pair in by_pair(some).items():
                columns = {"hyp": [x.hypothesis for x in of_pair], "ref": [x.reference for x in of_pair]}
                if pair[0] != pair[1]:
                    columns["src"] = [x.transcript for x in of_pair]
                for part, column in columns.items():
                    path = folder / f"{pair_name(pair)}.{part}.txt"
                    # Opened for each chunk: hundreds of pairs are more files than may be open.
                    with path.open("a", encoding="utf-8", newline="\n") as file:
                        file.writelines(text + "\n" for text in column)


def rescore(
    out: Path, manifest: ResultManifest, progress: Callable[[int], None] = lambda done: None
) -> ResultManifest:
    """Score the hypotheses in a directory of results again, without the model and without COMET's.

    Args:
        out: folder with `hypotheses.jsonl`.
        manifest: manifest written with the hypotheses; its options are used.
        progress: called with the number of lines scored.

    Raises:
        SprachbundError: naming file and line, for what is no line of hypotheses, and for more or fewer lines
            than the manifest is of.
    """
    path = out / HYPOTHESES_FILE
    targets = {line.target for line in read_lines(path) if line.source}
    options = options_of(manifest, out / MANIFEST_FILE)
    scoring = Scoring(targets, replace(options, comet=None))
    for done, line in enumerate(read_lines(path), start=1):
        scoring.add(line)
        progress(done)
    scored = scoring.manifest(manifest.model, manifest.data)
    manifest.check_lines(scored.num_lines)
    scored.configuration["comet"] = options.comet
    scored.numbers += [number for number in manifest.numbers if number.metric == COMET]  # as they were
    return scored


class _Nowhere:
    """Stands in for a writer when nothing is to be written."""

    def write(self, line: Line) -> None:
        """Forget it."""

    def __enter__(self) -> "_Nowhere":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def model_used(model: str | Path, offline: bool) -> ModelUsed:
    """A model as a result names it."""
    directory = locate(model, offline=offline)
    family_of(directory)  # an error that names what is wrong with a directory that holds no model
    card = Card.read(directory)
    return ModelUsed(
        path=str(model), name=card.name if card else directory.name, sha256=content_hash(directory)
    )


def data_used(manifest: Utterances, plan: Plan) -> DataUsed:
    """A corpus as a result names it, with what of it was not scored."""
    return DataUsed(
        path=str(manifest.directory),
        name=corpus_name(manifest.directory),
        sha256=manifest.content_hash(),
        utterances=len(manifest),
        scored_utterances=len(plan.jobs),
        without_reference={pair_name(p): n for p, n in sorted(plan.without_reference.items())},
        unknown_pairs={pair_name(p): n for p, n in sorted(plan.unknown_pairs.items())},
        without_speech=plan.without_speech,
        too_long=plan.too_long,
        over_limit=plan.over_limit,
        other_sources=plan.other_sources,
    )

"""One evaluation from beginning to end: corpora and a model in, hypotheses and a result manifest out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.pairs import declared_languages
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import hashes
from sprachbund.evaluation.comet import comet_signature
from sprachbund.evaluation.corpus import open_corpus
from sprachbund.evaluation.hypotheses import Decoder, Plan, corpus_name, make_plan, translate_plan
from sprachbund.evaluation.lines import (
    HYPOTHESES_FILE,
    Evidence,
    Line,
    LineWriter,
    by_pair,
    in_chunks,
    read_lines,
)
from sprachbund.evaluation.manifest import (
    MANIFEST_FILE,
    DataUsed,
    ModelUsed,
    ResultManifest,
)
from sprachbund.evaluation.no_speech import Sound, no_speech_set
from sprachbund.evaluation.options import EvaluationOptions, options_from
from sprachbund.evaluation.quality import pair_name
from sprachbund.evaluation.scoring import Scoring
from sprachbund.evaluation.speed import (
    Stopwatch,
    add_cost,
    first_segment_s,
    race,
    race_rows,
)
from sprachbund.models.card import Card
from sprachbund.models.directory import load, locate
from sprachbund.models.family import Family
from sprachbund.runtime.engine import engine_for
from sprachbund.runtime.measure import peak_mib
from sprachbund.util.files import atomic_directory

NO_SPEECH = "no-speech"
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
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
    offline: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Evaluate a model on corpora. Hypotheses are scored and written as they come, and none is held.

    Args:
        directories: of the corpora, each as `sprachbund data` writes it.
        model: "bundled", a directory, or a Hugging Face id.
        options: what and how.
        out: where to write hypotheses, texts by pair and the result manifest; None writes nothing.
        offline: never use the network.
        progress: told of the work as it goes on.

    Raises:
        SprachbundError: for models, engines, corpora and languages that cannot be, before any decoding.
    """
    options = options or EvaluationOptions()
    manifests = [open_corpus(directory) for directory in _distinct(directories)]
    if options.comet:
        comet_signature(options.comet)  # a package that is not there is told before models are loaded
    family, options = _ready(model, options, offline)
    plans = [make_plan(family, m, options.targets, options.limit) for m in manifests]
    targets = {target for plan in plans for job in plan.jobs for target in job.targets}
    scoring = Scoring(targets, options, offline=offline)
    total, watch = sum(plan.num_lines for plan in plans), Stopwatch()
    with LineWriter(out / HYPOTHESES_FILE) if out else _Nowhere() as writer:
        for done, line in enumerate(watch.watch(_translate(family, manifests, plans, options)), start=1):
            writer.write(line)
            scoring.add(line)
            progress(", ".join(filter(None, ["decoding", scoring.so_far])), done, total)
        speed = replace(
            watch.speed(), first_segment_s=_first_segment_s(family, manifests[0], plans[0], options)
        )
        for line in translate_no_speech(family, options):
            writer.write(line)
            scoring.add(line)
    used = [data_used(m, plan) for m, plan in zip(manifests, plans, strict=True)]
    result = Evaluation(manifest=scoring.manifest(model_used(model, offline), used, speed), out=out)
    if out:
        write_texts(result.lines(), out)
        result.manifest.write(out / MANIFEST_FILE)
    return result


def _ready(model: str | Path, options: EvaluationOptions, offline: bool) -> tuple[Family, EvaluationOptions]:
    """The model on its engine, and the options as they are recorded: the engine that "auto" found, and the declared
    languages in the model's tags."""
    found = engine_for(load(model, offline=offline), options.engine, directory=locate(model, offline=offline))
    allowed = declared_languages(found.family, options.decoding.allowed_languages)
    decoding = replace(options.decoding, allowed_languages=allowed)
    options = replace(options, decoding=decoding)
    if options.engine == "auto":
        options = replace(options, engine="native" if found.name == "native" else "torch")
    return found.family, options


def _translate(
    family: Family, manifests: Sequence[Manifest], plans: Sequence[Plan], options: EvaluationOptions
) -> Iterator[Line]:
    for manifest, plan in zip(manifests, plans, strict=True):
        yield from translate_plan(family, manifest, plan, options.decoding, options.batch_size)


def race_models(
    directory: Path,
    models: Sequence[str],
    options: EvaluationOptions,
    *,
    rounds: int = 3,
    offline: bool = False,
) -> list[dict[str, str | float]]:
    """Speed and cost of models side by side on the same corpus and the same pairs; the first one's are 1.
    Memory is that of a process of its own for each, on the longest of the utterances.

    Raises:
        SprachbundError: when there is no target language that all of them know for the same utterances.
    """
    manifest = open_corpus(directory)
    families = {name: _ready(name, options, offline)[0] for name in models}
    plans = [make_plan(family, manifest, options.targets, options.limit) for family in families.values()]
    jobs = set(plans[0].jobs).intersection(*(plan.jobs for plan in plans[1:]))
    if not jobs:
        raise SprachbundError(
            f"{', '.join(models)} have no utterance of {directory} with the same targets; name them with --to"
        )
    shared = Plan(jobs=tuple(job for job in plans[0].jobs if job in jobs))

    def work(family: Family) -> Iterator[Line]:
        return translate_plan(family, manifest, shared, options.decoding, options.batch_size)

    rows = race_rows(race(families, work, rounds))
    first: dict[str, list[float]] = {name: [] for name in families}
    for place in range(min(options.first_segments, len(shared.jobs))):
        one = Plan(jobs=(shared.jobs[place * len(shared.jobs) // options.first_segments],))
        for name, family in families.items():
            first[name] += filter(None, [_first_segment_s(family, manifest, one, options)])
    if all(first.values()):
        add_cost(rows, "first_segment_s", [median(found) for found in first.values()])
    longest = sorted(shared.jobs, key=lambda job: job.duration_s)[-options.batch_size :]
    peaks = [_peak_apart(name, directory, Plan(jobs=tuple(longest)), options, offline) for name in models]
    add_cost(rows, "peak_memory_mb", peaks)
    return rows


def _peak_apart(model: str, directory: Path, plan: Plan, options: EvaluationOptions, offline: bool) -> float:
    """Peak memory of a new process that does the work, in MiB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        work = (model, directory, plan, options, offline, torch.get_num_threads())
        return pool.submit(peak_memory_of, *work).result()


def peak_memory_of(
    model: str, directory: Path, plan: Plan, options: EvaluationOptions, offline: bool, num_threads: int
) -> float:
    """Most memory that this process has held when it has loaded a model and done the work, in MiB."""
    torch.set_num_threads(num_threads)
    family, _ = _ready(model, options, offline)
    for _ in translate_plan(family, Manifest(directory), plan, options.decoding, options.batch_size):
        pass
    return peak_mib()


def translate_no_speech(model: Family, options: EvaluationOptions) -> Iterator[Line]:
    """Decode the no-speech set into every target language, or, where the model hears a language from which it
    does not know them all, into that language."""
    if not options.no_speech_per_kind:
        return
    decoder = Decoder(model, options.decoding)
    known = {target for _, target in model.pairs()}
    everywhere = all((s, t) in model.pairs() for s in model.source_languages for t in known)
    targets = tuple(sorted(set(options.targets or known) & known)) if everywhere else ("",)
    sounds = no_speech_set(options.seed, options.no_speech_per_kind)
    for start in range(0, len(sounds), options.batch_size):
        batch = sounds[start : start + options.batch_size]
        window = [sound.samples[: int(model.max_window_s * SAMPLE_RATE)] for sound in batch]
        found = decoder.decode(window, [targets] * len(batch), [None] * len(batch))
        for sound, row in zip(batch, found, strict=True):
            for target, (text, evidence) in zip(targets, row, strict=True):
                yield _no_speech_line(sound, target or evidence.language or "und", text, evidence)


def _no_speech_line(sound: Sound, target: str, text: str, evidence: Evidence) -> Line:
    return Line(
        id=sound.id,
        source="",
        target=target,
        hypothesis=text,
        reference="",
        evidence=evidence,
        corpus=NO_SPEECH,
        kind=sound.kind,
        duration_s=round(sound.duration_s, 4),
    )


def _first_segment_s(
    model: Family, manifest: Manifest, plan: Plan, options: EvaluationOptions
) -> float | None:
    """Time to the first segment of recordings spread over the first corpus, each into its first target."""
    count = min(options.first_segments, len(plan.jobs))
    jobs = [plan.jobs[i * len(plan.jobs) // count] for i in range(count)]
    found = [
        first_segment_s(model, [manifest.samples(job.index)], job.targets[:1], job.source, options.decoding)
        for job in jobs
    ]
    return median(there) if (there := [s for s in found if s is not None]) else None


def write_texts(lines: Iterable[Line], out: Path) -> None:
    """Write `texts/<pair>.hyp.txt` and `.ref.txt`, and of translations `.src.txt` with what was said, one text per
    line, for any other scorer to read."""
    with atomic_directory(out / "texts") as folder:
        for some in in_chunks(line.behind_guard() for line in lines if line.source):
            for pair, found in by_pair(some).items():
                columns = {"hyp": [x.hypothesis for x in found], "ref": [x.reference for x in found]}
                if pair[0] != pair[1]:
                    columns["src"] = [x.transcript for x in found]
                for part, column in columns.items():
                    path = folder / f"{pair_name(pair)}.{part}.txt"
                    # Opened for each chunk: hundreds of pairs are more files than may be open.
                    with path.open("a", encoding="utf-8", newline="\n") as file:
                        file.writelines(text + "\n" for text in column)


def rescore(
    out: Path, manifest: ResultManifest, progress: Callable[[int], None] = lambda done: None
) -> ResultManifest:
    """Score the hypotheses in a directory of results again, without the model.

    Raises:
        SprachbundError: naming file and line, for what is no line of hypotheses, and for more or fewer lines
            than the manifest is of.
    """
    path = out / HYPOTHESES_FILE
    targets = {line.target for line in read_lines(path) if line.source}
    scoring = Scoring(targets, options_from(manifest.configuration, out / MANIFEST_FILE))
    for done, line in enumerate(read_lines(path), start=1):
        scoring.add(line)
        progress(done)
    found = scoring.manifest(manifest.model, manifest.data)
    manifest.check_lines(found.num_lines)
    return found


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
    card = Card.read(directory)
    return ModelUsed(
        path=str(model), name=card.name if card else directory.name, sha256=hashes.model_hash(directory)
    )


def data_used(manifest: Manifest, plan: Plan) -> DataUsed:
    """A corpus as a result names it, with what of it was not scored."""
    return DataUsed(
        path=str(manifest.directory),
        name=corpus_name(manifest.directory),
        sha256=hashes.data_hash(manifest.directory),
        utterances=len(manifest),
        scored_utterances=len(plan.jobs),
        without_reference={pair_name(p): n for p, n in sorted(plan.without_reference.items())},
        unknown_pairs={pair_name(p): n for p, n in sorted(plan.unknown_pairs.items())},
        without_speech=plan.without_speech,
        too_long=plan.too_long,
        over_limit=plan.over_limit,
    )


def _distinct(directories: Sequence[str | Path]) -> list[Path]:
    paths = [Path(directory) for directory in directories]
    twice = {str(path) for path in paths if paths.count(path) > 1}
    if twice or not paths:
        what = f"{', '.join(sorted(twice))} named twice" if twice else "no corpus named"
        raise SprachbundError(f"{what}; name each corpus directory once")
    return paths

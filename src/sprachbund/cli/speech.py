"""The work of `translate` and `transcribe`: files one after the other, segments written as soon as they are finished.

The outputs come first, then the loop over files. A file that fails prints one error line; the others go on.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self

import typer

from sprachbund.cli.console import (
    Bar,
    UsageError,
    as_usage,
    duration,
    error_line,
    print_json,
    say,
    trace,
)
from sprachbund.cli.models import fetch
from sprachbund.cli.startup import undisturbed
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, check_options, only_transcribes
from sprachbund.engines.options import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.models.catalogue import BUNDLED, SHIPPED
from sprachbund.util.devices import CPU, check_device_name
from sprachbund.util.options import Option, Range, check

if TYPE_CHECKING:
    from rich.console import Console

    from sprachbund.api import Model
    from sprachbund.decoding.languages import Request
    from sprachbund.decoding.long_form import LongForm
    from sprachbund.decoding.result import Segment, Translation
    from sprachbund.decoding.speakers import SpeakerEncoder


# Outputs of segments while a file is being translated: lines on the screen, files, or one JSON object.


class TextOutput(Protocol):
    """One way out; used in a `with` statement, and finished only when all went well."""

    def __enter__(self) -> Self:
        """Begin the output."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; with an error, keep what is finished."""
        ...

    def segment(self, target: str, segment: "Segment") -> None:
        """Take one segment."""
        ...

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Take the whole."""
        ...


@contextmanager
def named_output(name: str) -> Iterator[None]:
    """Let an error of the system name what was written: a full disk names nothing by itself."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        error.filename = error.filename or name
        raise


class PrintOutput:
    """A line on stdout for each segment that the guard kept, at once.

    Args:
        title: printed first; None for a single file.
        several: whether each line names its language.
    """

    def __init__(self, *, title: str | None, several: bool) -> None:
        self._title, self._several = title, several

    def __enter__(self) -> Self:
        if self._title is not None:
            self._print(f"{self._title}:")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def segment(self, target: str, segment: "Segment") -> None:
        """Print a segment."""
        if segment.dropped is None:
            language = f" {segment.target_language}" if self._several else ""
            times = f"[{duration(segment.start_s)} → {duration(segment.end_s)}]"
            self._print(f"{times}{language} {segment.labelled_text}")

    def finish(self, translations: "dict[str, Translation]") -> None:
        """All is printed already."""

    def _print(self, line: str) -> None:
        with named_output("standard output"):
            typer.echo(line)
            sys.stdout.flush()


class WrittenFiles:
    """One file for each target and format, under its final name only when whole.

    Args:
        paths: by (target, format); the folder is made.
        on_written: called with each file that has been written.
        both: whether subtitles show both languages.
    """

    def __init__(
        self, paths: dict[tuple[str, str], Path], on_written: Callable[[Path], None], *, both: bool
    ) -> None:
        self._paths, self._on_written, self._both = paths, on_written, both
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from sprachbund.decoding.formats import SegmentWriter

        for folder in {path.parent for path in self._paths.values()}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SprachbundError(
                    f"{folder} cannot be made ({error.strerror}); name another --out"
                ) from error
        with ExitStack() as stack:
            self._writers = {
                key: stack.enter_context(SegmentWriter(path, key[1], both=self._both))
                for key, path in self._paths.items()
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def segment(self, target: str, segment: "Segment") -> None:
        """Write it to the files of its target."""
        for (wanted, _), writer in self._writers.items():
            if wanted == target:
                writer.write(segment)

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Give the files their names."""
        for (target, _), writer in self._writers.items():
            self._on_written(writer.finish(translations[target]))


class JsonOutput:
    """One JSON object on stdout when the file is done; after Ctrl-C, of what was finished.

    It has `file`, `engine` and `translations` (by target: the fields of a `Translation`), and with one target
    these fields at the top too.

    Args:
        file: as it was named.
        so_far: the translations of the segments that are finished.
        engine: the field of that name, with `name` and `why`; or none.
    """

    def __init__(
        self,
        file: str,
        so_far: "Callable[[], dict[str, Translation]]",
        *,
        engine: dict[str, dict[str, str]],
    ) -> None:
        self._file, self._so_far, self._engine = file, so_far, engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            print_json({**self._object(self._so_far()), "error": "interrupted"})

    def segment(self, target: str, segment: "Segment") -> None:
        """Wait for the whole."""

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Print the object."""
        with named_output("standard output"):
            print_json(self._object(translations))

    def _object(self, translations: "dict[str, Translation]") -> dict[str, Any]:
        by_target = {target: translation.to_dict() for target, translation in translations.items()}
        top = next(iter(by_target.values())) if len(by_target) == 1 else {}
        return {"file": self._file, **self._engine, **top, "translations": by_target}

    @staticmethod
    def failed(file: str, line: str) -> None:
        """Print the object of a file that gave nothing."""
        print_json({"file": file, "error": line})


# The table of `--table`, drawn on a terminal; elsewhere plain lines, which programs and logs can read.

NO_TEXT = "–"
"""Stands where there is no text: no speech, or the guard dropped it all."""

_NAME_SHARE = 4  # of the terminal's width, a fourth


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A recording that is finished; a text has a line for each segment."""

    name: str
    spoken: str
    texts: dict[str, list[str]]
    duration_s: float


class ResultTable:
    """Collects recordings and prints them when all are done; its clock starts when it is made.

    Args:
        files: all files whose results are to come.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._names = short_names(files)
        self._done: list[_Done] = []
        self._written: list[Path] = []
        self._began, self._work_s = time.monotonic(), 0.0

    def add(self, file: str, translations: "dict[str, Translation]") -> None:
        """Take a finished recording; one entry per target."""
        self._work_s = time.monotonic() - self._began
        spoken = next((t.source_language for t in translations.values() if t.source_language), NO_TEXT)
        texts = {_tag(t, spoken): _lines(t) for t in translations.values()}
        duration_s = next(iter(translations.values())).duration_s
        self._done.append(_Done(name=self._names[file], spoken=spoken, texts=texts, duration_s=duration_s))

    def add_file(self, path: Path) -> None:
        """Take the name of a file that has been written."""
        self._written.append(path)

    def print(self) -> None:
        """Print what has come; nothing if nothing has."""
        if not self._done:
            return
        if sys.stdout.isatty():
            from rich.console import Console

            self.draw(Console(highlight=False))
        else:
            typer.echo(self.plain())
        for line in self.closing_lines():
            typer.echo(line)
        sys.stdout.flush()

    def draw(self, console: "Console") -> None:
        """Draw the table alone."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        drawn.add_column("recording", overflow="fold", max_width=console.width // _NAME_SHARE)
        drawn.add_column("spoken", no_wrap=True)
        drawn.add_column("in", no_wrap=True)
        drawn.add_column("text", overflow="fold", ratio=1)
        for recording in self._done:
            first = (recording.name, recording.spoken)
            for target, lines in recording.texts.items():
                style = "bold" if target == recording.spoken else ""
                drawn.add_row(*map(Text, (*first, target)), Text("\n".join(lines), style=style))
                first = ("", "")
            drawn.add_section()
        console.print(drawn)

    def plain(self) -> str:
        """The table as lines: one with the recording and its language, then the segments of each target."""
        printed = []
        for recording in self._done:
            printed.append(f"{recording.name} ({recording.spoken})")
            width = max(map(len, recording.texts))
            for target, lines in recording.texts.items():
                heads = [target, *[""] * (len(lines) - 1)]
                printed += [f"  {h.ljust(width)}  {line}" for h, line in zip(heads, lines, strict=True)]
        return "\n".join(printed)

    def closing_lines(self) -> list[str]:
        """Return lines with the seconds of sound and of work, and the number of files written."""
        sound_s = sum(recording.duration_s for recording in self._done)
        count = f"{len(self._done)} recording{'s' if len(self._done) > 1 else ''}"
        factor = _two_digits(self._work_s / sound_s) if sound_s else "unknown"
        speed = (
            f"{count}: {sound_s:.1f} s of sound in {self._work_s:.1f} s of work, real-time factor {factor}"
        )
        if not self._written:
            return [speed]
        kinds = ", ".join(sorted({path.suffix[1:] for path in self._written}))
        return [speed, f"{len(self._written)} files written ({kinds}) in {self._written[0].parent}/"]


def _two_digits(ratio: float) -> str:
    """A ratio with two digits behind the point, of a small one with two that are not 0."""
    return f"{ratio:.2f}" if ratio >= 0.1 or not ratio else f"{ratio:.2g}"


class TableOutput:
    """Hands one recording to the table, also when Ctrl-C breaks it off.

    Args:
        table: table of all recordings.
        file: as it was named.
        so_far: the translations of the segments that are finished.
    """

    def __init__(self, table: ResultTable, file: str, so_far: "Callable[[], dict[str, Translation]]") -> None:
        self._table, self._file, self._so_far = table, file, so_far

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._table.add(self._file, self._so_far())

    def segment(self, target: str, segment: "Segment") -> None:
        """Wait for the whole."""

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Hand it on."""
        self._table.add(self._file, translations)


def short_names(files: Sequence[str]) -> dict[str, str]:
    """File names without their folders, where that leaves them different."""
    names = [Path(file).name for file in dict.fromkeys(files)]
    return {file: Path(file).name if names.count(Path(file).name) == 1 else file for file in files}


def _lines(translation: "Translation") -> list[str]:
    return [segment.labelled_text for segment in translation.segments] or [NO_TEXT]


def _tag(translation: "Translation", spoken: str) -> str:
    return spoken if translation.target_language == TRANSCRIBE else translation.target_language


STDIN = "-"


class DamagedAudioError(SprachbundError):
    """The audio could not be read whole; what was read is translated and written."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and what computes it; see `sprachbund.load`.

    Attributes:
        name: the model: bundled, a model directory, a Hugging Face id, or an alias of `sprachbund models list`.
        then: a model of texts that translates what the first one transcribes, named likewise: a cascade.
        engine: computes the model: auto, the fastest here; torch, exact; torch-fp32, torch-bf16, torch-int8; native,
            with 8-bit weights; native-int4.
        threads: threads to compute with.
        device: computes the model: cpu, cuda, cuda:1 for the second GPU, or mps.
        real_length: Whisper: encode speech at its own length, not as 30 s.
        right_context: transducers that stream: hear recordings by the tier of so many frames ahead, as a live stream
            does.
        pool_frames: average so many frames of the encoder, 2 to 4: faster after long speech, changes the text.
        offline: never use the network.
    """

    name: Annotated[str, Option("--model", metavar="MODEL")] = BUNDLED
    then: Annotated[str | None, Option("--then", metavar="MODEL")] = None
    engine: Annotated[EngineChoice, Option("--engine", metavar="NAME")] = "auto"
    threads: Annotated[int | None, Range(1), Option("--threads", metavar="N")] = None
    device: Annotated[str, Option("--device", metavar="NAME")] = CPU
    real_length: Annotated[bool, Option("--real-length")] = False
    right_context: Annotated[int | None, Range(0), Option("--tier", metavar="N")] = None
    pool_frames: Annotated[int, Option("--pool-frames", metavar="N")] = 1
    offline: Annotated[bool, Option("--offline")] = False

    def __post_init__(self) -> None:
        check(self)
        check_device_name(self.device)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Form and destination of the text.

    Attributes:
        formats: write files: txt, srt, vtt, json, jsonl, tsv; without, the segments are printed.
        both: subtitles show what was said above its translation (srt, vtt; of a cascade, see --then).
        speakers: label who speaks, S1, S2, …, by this model of voices: an ONNX file or a Hugging Face id.
        num_speakers: number of speakers; estimated if not given.
        out: folder for the files of --format.
        overwrite: replace files that are there already.
        as_json: print one JSON object per file, and nothing else.
        as_table: print a table of all files and the speed when done, and nothing before.
    """

    formats: Annotated[tuple[str, ...], Option("--format", metavar="FMT,…")] = ()
    both: Annotated[bool, Option("--both")] = False
    speakers: Annotated[str | None, Option("--speakers", metavar="MODEL")] = None
    num_speakers: Annotated[int | None, Range(1), Option("--num-speakers", metavar="N")] = None
    out: Annotated[Path, Option("--out", metavar="DIR")] = Path()
    overwrite: Annotated[bool, Option("--overwrite")] = False
    as_json: Annotated[bool, Option("--json")] = False
    as_table: Annotated[bool, Option("--table")] = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class SpeechJob:
    """A request of the command line.

    Attributes:
        files: paths, or "-" for stdin.
        targets: languages wanted, or "transcribe".
        source: language spoken; None identifies it.
        model: model and engine.
        output: form and destination of the text.
        decoding: decoding options.
        untrusted: whether the recordings are decoded in a process that can do nothing else.
    """

    files: Sequence[str]
    targets: Sequence[str]
    source: str | None
    model: ModelOptions
    output: OutputOptions
    decoding: DecodingOptions
    untrusted: bool = False

    @property
    def verb(self) -> str:
        """The command that asks for this."""
        return "transcribe" if list(self.targets) == [TRANSCRIBE] else "translate"


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A job whose options are checked and whose model is loaded.

    Attributes:
        job: as it was asked for.
        model: model of the job.
        targets: targets in the model's tags.
        table: collects the results, if one is wanted.
        speakers: labels the results, if that is wanted.
    """

    job: SpeechJob
    model: "Model"
    targets: tuple[str, ...]
    table: ResultTable | None
    speakers: "SpeakerEncoder | None" = None


def run(job: SpeechJob) -> int:
    """Do the job; the number of files that failed. Raises SprachbundError when no file can be begun."""
    ready = _make_ready(job)
    failures = 0
    try:
        for file in job.files:
            failures += not _succeeds(ready, file)
    except KeyboardInterrupt:
        if ready.table is not None:
            ready.table.print()
        raise
    if ready.table is not None:
        ready.table.print()
    return failures


def _make_ready(job: SpeechJob) -> _Ready:
    with as_usage():
        _check_paths(job)
    if len(job.files) == 1 and str(job.files[0]) != STDIN and not Path(job.files[0]).exists():
        raise missing_file(job.files[0])  # before a model is loaded for it
    speakers = _speakers(job)
    model = load_model(job.model)
    from sprachbund.decoding.recordings import check_targets, load_drafts

    with as_usage():
        with with_hints(model.pairs, job.verb, job.files[0], job.targets, job.source):
            request = _read_request(model, job)
        check_options(model.family, job.decoding)
        check_targets(model.family, request.targets, request.source, job.decoding)
        # Drafts that are not there, or not this model's, are found out before the first file.
        load_drafts(model.family, job.decoding)
        _check_texts(model, job)
        _check_collisions(job, request.targets)
    table = ResultTable(job.files) if job.output.as_table else None
    return _Ready(job=job, model=model, targets=request.targets, table=table, speakers=speakers)


def _speakers(job: SpeechJob) -> "SpeakerEncoder | None":
    """The model that tells voices apart, loaded before the large model."""
    if job.output.speakers is None:
        return None
    from sprachbund.decoding.speakers import load_speakers

    with as_usage():
        return load_speakers(job.output.speakers, offline=job.model.offline)


def _succeeds(ready: _Ready, file: str) -> bool:
    """Work through one file; False, and a line, if it fails."""
    try:
        _one_file(ready, file)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        trace(error)
        _report_failure(ready.job, file, error)
        return False
    return True


def load_model(options: ModelOptions) -> "Model":
    """Load a model, with a bar for large ones; download it first if need be."""
    names = [options.name] if options.then is None else [options.name, options.then]
    for name in names:
        if name not in SHIPPED and not options.offline and not Path(name).is_dir():
            fetch(name, offline=False)
    with Bar(f"loading {' and '.join(names)}"):
        with undisturbed():
            import torch

            from sprachbund.api import load
            from sprachbund.engines.choice import choose_threads

        if options.threads is not None:
            torch.set_num_threads(choose_threads(options.threads))
        model = load(
            options.name,
            then=options.then,
            offline=True,  # all is here now
            real_length=options.real_length,
            right_context=options.right_context,
            pool_frames=options.pool_frames,
            engine=options.engine,
            threads=options.threads,
            device=options.device,
        )
    for licence in model.licences:
        if not licence.commercial:
            say(f"note: weights of {licence.model}: licence {licence}")
    if model.engine is not None:
        for note in model.engine.notes:
            say(f"note: {note}")
        for warning in model.engine.warnings:
            say(f"warning: {warning}")
        if sys.stderr.isatty():
            say(f"engine: {model.engine}")
    return model


def engine_values(model: "Model") -> dict[str, Any]:
    """The engine of a model, as JSON output has it."""
    return {"engine": model.engine.as_dict()} if model.engine else {}


def _check_paths(job: SpeechJob) -> None:
    from sprachbund.decoding.formats import WITH_WORDS, check_format

    output = job.output
    for name in output.formats:
        check_format(name, both=output.both)
    check_then(job.model, job.targets, job.source)
    if output.both and not output.formats:
        raise SprachbundError("--both is for the files of --format; give --format too, such as --format srt")
    if output.num_speakers is not None and output.speakers is None:
        raise SprachbundError("--num-speakers is for --speakers; give a model of voices with that too")
    if output.speakers is not None and STDIN in job.files:
        raise SprachbundError(
            "--speakers reads a recording twice, and stdin can be read once; save it as a file"
        )
    if output.speakers is not None and set(output.formats) == {"tsv"} and not output.as_json:
        raise SprachbundError("--speakers are not shown in tsv; add another --format, such as srt, or --json")
    if list(job.files).count(STDIN) > 1:
        raise SprachbundError("stdin is named twice, and can be read once; name '-' once")
    if output.as_json and output.as_table:
        raise SprachbundError("--json prints nothing beside its objects; leave out --table")
    if str(output.out) == STDIN:
        raise SprachbundError(
            "--out - is no folder; name one, or leave --format out to have the text printed"
        )
    if output.out != Path() and not output.formats:
        raise SprachbundError(
            f"--out {output.out} is the folder of the files of --format; give --format too, such as --format srt"
        )
    if output.overwrite and not output.formats:
        raise SprachbundError(
            "--overwrite is for the files of --format, and none are written; give --format too, such as --format srt, "
            "or leave it out"
        )
    if job.decoding.word_timestamps and output.both and not output.as_json:
        raise SprachbundError(
            "--words are not shown where --both shows two texts; leave one out, or add --json"
        )
    if job.decoding.word_timestamps and not output.as_json and not set(output.formats) & set(WITH_WORDS):
        raise SprachbundError(
            f"--words are shown in --json, and in the files of --format {', '.join(WITH_WORDS)}; add one of them"
        )
    if output.formats and output.out.exists() and not output.out.is_dir():
        raise SprachbundError(f"--out {output.out} is a file; name a folder")


def missing_file(name: object) -> SprachbundError:
    """The error for a recording that is not there."""
    from sprachbund.audio.load import no_recording

    return no_recording(str(name))


def check_then(model: ModelOptions, targets: Sequence[str], source: str | None) -> None:
    """Refuse a translator where nothing is translated.

    Args:
        model: model and translator.
        targets: languages wanted, as they were given.
        source: the language spoken, as it was given; None when it is to be identified.
    """
    if model.then is not None and only_transcribes(targets, source):
        raise SprachbundError(
            f"--then {model.then} names a translator, and speech is only transcribed; leave it out, or translate into "
            "a language with --to"
        )


def _read_request(model: "Model", job: SpeechJob) -> "Request":
    from sprachbund.decoding.languages import read_request

    return read_request(
        model.family, source=job.source, targets=job.targets, allowed=job.decoding.allowed_languages
    )


def _check_texts(model: "Model", job: SpeechJob) -> None:
    """Refuse further texts, of what was said or next best, that the model does not have or no output shows."""
    from sprachbund.decoding.formats import WITH_ALTERNATIVES

    cascade, output = model.family.capabilities.translator is not None, job.output
    if output.both and not cascade:
        raise SprachbundError(
            f"--both shows what was said, which a cascade knows, and {model.name} is none; leave it out, or name a "
            "translator with --then"
        )
    if output.both and only_transcribes(job.targets, job.source):
        raise SprachbundError(
            "--both shows what was said above its translation, and speech is only transcribed; leave it out, or "
            "translate into a language with --to"
        )
    # In a translation by a cascade, the text itself is the best of several.
    chosen = cascade and not only_transcribes(job.targets, job.source)
    shown = output.as_json or set(output.formats) & set(WITH_ALTERNATIVES)
    if job.decoding.nbest > 1 and not chosen and not shown:
        raise SprachbundError(
            f"--nbest {job.decoding.nbest} gives texts that are shown in --json, and in the files of --format "
            f"{', '.join(WITH_ALTERNATIVES)}; add one of them"
        )


@contextmanager
def with_hints(
    pairs: Sequence[tuple[str, str]],
    verb: str,
    file: str | None,
    targets: Sequence[str],
    source: str | None,
) -> Iterator[None]:
    """Context manager that adds to a refused language the public checkpoints that know it, with the command.

    Args:
        pairs: pairs that the model knows; where it knows those wanted, something else was refused.
        verb: verb of the command.
        file: its first recording; None for the microphone.
        targets: languages wanted, as they were given; none, or "transcribe", for the language spoken.
        source: the language spoken, as it was given; None when it is to be identified.
    """
    try:
        yield
    except SprachbundError as error:
        refused = UsageError(str(error))
        refused.hints = _hints(verb, file, targets, source, pairs)
        raise refused from error


def _hints(
    verb: str,
    file: str | None,
    targets: Sequence[str],
    source: str | None,
    pairs: Sequence[tuple[str, str]] = (),
) -> tuple[str, ...]:
    from sprachbund.models.catalogue import all_languages, fitting, fitting_cascade
    from sprachbund.text.languages import parse_language
    from sprachbund.util.extras import is_installed

    known = all_languages()
    try:
        spoken = None if source is None else parse_language(source, known)
        wanted = [None if target == TRANSCRIBE else parse_language(target, known) for target in targets]
    except SprachbundError:  # a language that none of them knows
        return ()
    wanted = wanted or [None]
    if all(_knows(pairs, spoken, target) for target in wanted):
        return ()
    to = "" if verb == "transcribe" or not targets else f" --to {','.join(targets)}"
    said = "" if source is None else f" --from {source}"
    command = f"sprachbund {verb} {shlex.join([file]) if file else ''}".rstrip() + said + to
    models = [(one,) for one in fitting(spoken, wanted)]
    cascade = fitting_cascade(spoken, wanted)
    hints = []
    for parts in [*([cascade] if cascade else []), *models]:
        missing = [one.extra for one in parts if one.extra and not is_installed(one.extra)]
        install = f"; needs pip install 'sprachbund[{','.join(missing)}]'" if missing else ""
        names = " --then ".join(one.alias for one in parts)
        hints.append(f"{command} --model {names}  ({', then '.join(one.text for one in parts)}{install})")
    return tuple(hints)


def _knows(pairs: Sequence[tuple[str, str]], source: str | None, target: str | None) -> bool:
    """Whether a model with these pairs writes a target, None for the language spoken, from a source, None for any."""
    return any(source in (None, s) and t == (target or s) for s, t in pairs)


def _check_collisions(job: SpeechJob, targets: Sequence[str]) -> None:
    """Two inputs of one name would write one file."""
    seen: dict[Path, str] = {}
    for file in job.files:
        for path in output_paths(job, file, targets).values():
            if path in seen:
                raise SprachbundError(
                    f"{seen[path]} and {file} would both be written to {path}; "
                    "translate them one at a time, each with its own --out"
                )
            seen[path] = file


def output_paths(job: SpeechJob, file: str, targets: Sequence[str]) -> dict[tuple[str, str], Path]:
    """The file of every (target, format); transcripts carry no language in their name.

    Args:
        job: the command's inputs and outputs.
        file: the input file, or "-" for stdin.
        targets: languages, or "transcribe".
    """
    stem = "stdin" if file == STDIN else Path(file).stem
    names = {target: stem if target == TRANSCRIBE else f"{stem}.{target}" for target in targets}
    return {(t, f): job.output.out / f"{names[t]}.{f}" for t in targets for f in job.output.formats}


def _one_file(ready: _Ready, file: str) -> None:
    from sprachbund.audio.load import open_audio

    job = ready.job
    paths = output_paths(job, file, ready.targets)
    for path in paths.values():
        if path.exists() and not job.output.overwrite:
            raise SprachbundError(f"{path} is there already; --overwrite replaces it, --out writes elsewhere")
    audio = open_audio(sys.stdin.buffer if file == STDIN else file, untrusted=job.untrusted)
    work = ready.model.stream(audio, ready.targets, source=job.source, options=job.decoding)
    segments: dict[str, list[Segment]] = {target: [] for target in work.targets}
    with ExitStack() as stack:
        outputs = [stack.enter_context(output) for output in _outputs(ready, file, work, segments, paths)]
        if ready.speakers is None:
            _follow(ready, work, file, segments, outputs)
        else:  # who speaks is known when all was heard
            _follow(ready, work, file, segments, [])
            _label(ready.speakers, ready.job, file, segments)
            for _, target, segment in sorted(
                ((one.start_s, target, one) for target, own in segments.items() for one in own),
                key=lambda each: each[:2],
            ):
                for output in outputs:
                    output.segment(target, segment)
        translations = _finished(work, segments)
        for output in outputs:
            output.finish(translations)
    damage = work.audio_warnings
    _warn(file, translations, damage, as_json=job.output.as_json)
    if damage:
        raise DamagedAudioError(
            f"{'; '.join(damage)}; the result is of what could be read; save or copy it again for the rest"
        )


def _label(
    speakers: "SpeakerEncoder", job: SpeechJob, file: str, segments: "dict[str, list[Segment]]"
) -> None:
    """Give all segments their speakers, in place."""
    from sprachbund.audio.load import open_audio
    from sprachbund.decoding.speakers import label_speakers

    # What the guard dropped is no voice: a jingle would be the first speaker.
    spans = sorted({(s.start_s, s.end_s) for own in segments.values() for s in own if s.dropped is None})
    with Bar("separating voices"):
        audio = open_audio(file, untrusted=job.untrusted)
        labels = label_speakers(speakers, audio, spans, job.output.num_speakers)
    named = dict(zip(spans, labels, strict=True))
    for own in segments.values():
        own[:] = [replace(one, speaker=named.get((one.start_s, one.end_s))) for one in own]


def _follow(
    ready: _Ready,
    work: "LongForm",
    file: str,
    segments: "dict[str, list[Segment]]",
    outputs: Sequence[TextOutput],
) -> None:
    """Hand every segment on as it comes, and keep it."""
    # Lines on a terminal show by themselves how far the work has come, and a bar would run into them.
    prints = sys.stdout.isatty() and any(isinstance(output, PrintOutput) for output in outputs)
    label, count = Path(file).name, len(ready.job.files)
    if count > 1:
        label += f" ({ready.job.files.index(file) + 1} of {count})"
    try:
        with Bar(label, work.duration_s, unit="seconds", enabled=not prints) as bar:
            for target, segment in work.by_target():
                segments[target].append(segment)
                for output in outputs:
                    output.segment(target, segment)
                bar.update(segment.end_s, work.duration_s)
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"{file} was done up to {work.finished_s:.1f} s")
        raise


def _outputs(
    ready: _Ready,
    file: str,
    work: "LongForm",
    segments: "dict[str, list[Segment]]",
    paths: dict[tuple[str, str], Path],
) -> list[TextOutput]:
    wanted, outputs = ready.job.output, list[TextOutput]()
    if wanted.formats:
        outputs.append(WrittenFiles(paths, _file_callback(ready), both=wanted.both))
    elif not wanted.as_json and not wanted.as_table:
        outputs.append(
            PrintOutput(title=file if len(ready.job.files) > 1 else None, several=len(segments) > 1)
        )
    if wanted.as_json:
        outputs.append(JsonOutput(file, lambda: _finished(work, segments), engine=engine_values(ready.model)))
    if ready.table is not None:
        outputs.append(TableOutput(ready.table, file, lambda: _finished(work, segments)))
    return outputs


def _file_callback(ready: _Ready) -> Callable[[Path], None]:
    """Called with each written file: add it to the table, print it, or (with --json) do nothing."""
    if ready.table is not None:
        return ready.table.add_file
    return (lambda path: None) if ready.job.output.as_json else (lambda path: typer.echo(str(path)))


def _finished(work: "LongForm", segments: "dict[str, list[Segment]]") -> "dict[str, Translation]":
    from sprachbund.decoding.long_form import finish_translation

    return {target: finish_translation(work, target, done) for target, done in segments.items()}


def _warn(
    file: str, translations: "dict[str, Translation]", reported_later: Sequence[str], *, as_json: bool
) -> None:
    from sprachbund.decoding.result import DROPPED

    for warning in dict.fromkeys(w for t in translations.values() for w in t.warnings):
        if warning not in reported_later:
            advice = "; --json shows the text" if DROPPED in warning and not as_json else ""
            say(f"warning: {_named(file, warning)}{advice}")


def _report_failure(job: SpeechJob, file: str, error: Exception) -> None:
    line = _named(file, error_line(error))
    say(f"error: {line}")
    if job.output.as_json and not isinstance(error, DamagedAudioError | OSError):  # printed, or cannot be
        JsonOutput.failed(file, line)


def _named(file: str, line: str) -> str:
    """The line, with the file's name before it unless it is in it."""
    return line if file != STDIN and file in line else f"{file}: {line}"

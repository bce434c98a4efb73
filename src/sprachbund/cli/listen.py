"""`sprachbund listen [FILE] --to de,fr`: live captions of a microphone, or of a recording played in real time."""

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from math import log10
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self

import typer

from sprachbund.cli import completion
from sprachbund.cli.console import UsageError, as_usage, duration, listed, print_json, say, table
from sprachbund.cli.options import Panel, with_options
from sprachbund.cli.speech import STDIN, ModelOptions, check_then, load_model, missing_file, with_hints
from sprachbund.cli.translate import Source, Untrusted
from sprachbund.decoding.options import DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.streaming.options import LiveOptions

if TYPE_CHECKING:
    from sprachbund.streaming.engine import LiveEngine
    from sprachbund.streaming.events import LiveText
    from sprachbund.streaming.live import Moment
    from sprachbund.streaming.session import LiveSession
    from sprachbund.util.arrays import Samples


# Live text on a terminal: committed text is printed line by line; tentative text stands below it,
# dimmed.


class Captions(Protocol):
    """A way to show what a live session says."""

    def __enter__(self) -> Self:
        """Begin the captions."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the captions."""
        ...

    def add(self, moment: "Moment") -> None:
        """Show an event."""
        ...

    def level(self, samples: "Samples") -> None:
        """Show how loud the newest sound of a microphone is, (N,)."""
        ...


class Lines:
    """A line on stdout for every stretch of speech once it has ended; on a terminal, what is under way below.

    Args:
        several: whether each line names its language.
    """

    def __init__(self, *, several: bool) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._several = several
        self._open: dict[tuple[str, int], tuple[str, str]] = {}
        console = Console(highlight=False, soft_wrap=False)
        shows = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True) if shows else None
        self._text = partial(Text, style="dim")
        self._shown = self._text("listening")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, moment: "Moment") -> None:
        """Show an event."""
        from sprachbund.streaming.events import LiveText

        event = moment.event
        if not isinstance(event, LiveText):
            say(f"{event.kind}: {event.message}")
            return
        key = event.target, event.segment
        committed = self._open.get(key, ("", ""))[0] + event.committed
        self._open[key] = committed, event.tentative
        if event.final:
            del self._open[key]
            if committed:
                self._print(f"{self._stamp(event)}{committed.strip()}")
        self._refresh(moment)

    def _stamp(self, event: "LiveText") -> str:
        language = f"{event.target_language} " if self._several else ""
        return f"[{duration(event.start_s)} → {duration(event.end_s)}] {language}"

    def _print(self, line: str) -> None:
        if self._live is None:
            typer.echo(line)
            sys.stdout.flush()
        else:
            self._live.console.print(line, markup=False)

    def _refresh(self, moment: "Moment") -> None:
        from rich.text import Text

        if self._live is None:
            return
        shown = Text()
        for (target, _), (committed, tentative) in self._open.items():
            shown.append(f"{target} " if self._several else "", style="bold")
            shown.append(committed.lstrip())
            shown.append(f"{tentative if committed else tentative.lstrip()}\n", style="dim italic")
        behind_s = max(0.0, moment.second - moment.event.audio_s)
        shown.append(f"{duration(moment.event.audio_s)} heard, {behind_s:.1f} s behind", style="dim")
        self._shown = shown
        self._live.update(shown, refresh=True)

    def level(self, samples: "Samples") -> None:
        """Show how loud the newest sound is, below the text."""
        if self._live is not None:
            self._live.update(self._shown + self._text(f"  {level_bar(samples)}"), refresh=True)


class JsonLines:
    """Every event as a JSON object on a line of its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def level(self, samples: "Samples") -> None:
        """Show nothing; levels are not part of the output."""

    def add(self, moment: "Moment") -> None:
        """Print an event, with its kind and its moment."""
        from sprachbund.decoding.result import rounded
        from sprachbund.streaming.events import LiveText

        kind = "text" if isinstance(moment.event, LiveText) else "notice"
        values: dict[str, Any] = {"type": kind, **asdict(moment.event), "second": moment.second}
        typer.echo(json.dumps(rounded(values), ensure_ascii=False))
        sys.stdout.flush()


_BAR, _QUIETEST_DB = 20, -60.0


def level_bar(samples: "Samples") -> str:
    """The level of samples (N,) as a bar from -60 dB to full scale, with the number."""
    import numpy as np

    power = float(np.mean(np.square(samples))) if len(samples) else 0.0
    level_db = max(_QUIETEST_DB, 10 * log10(power)) if power > 0 else _QUIETEST_DB
    filled = round(_BAR * (1 - level_db / _QUIETEST_DB))
    return f"{'█' * filled}{'░' * (_BAR - filled)} {level_db:.0f} dB"


_Decoding = Annotated[
    DecodingOptions,
    Panel(
        "Decoding",
        only=(
            "allowed_languages",
            "max_symbols",
            "prompt",
            "glossary",
            "hot_words",
            "hot_words_weight",
            "word_timestamps",
            "guard.enabled",
        ),
    ),
]
_Model = Annotated[
    ModelOptions,
    Panel("Model", only=("name", "then", "engine", "threads", "device", "real_length", "offline")),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(with_options(listen))


def listen(
    source_file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="A recording to play; - is raw 16-bit mono sound at 16 kHz from stdin; the microphone if not given.",
        ),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="LANG,…",
            help="Languages wanted; the language spoken if not given.",
            autocompletion=completion.languages,
        ),
    ] = None,
    source: Source = None,
    microphone: Annotated[
        str | None,
        typer.Option("--microphone", metavar="NAME", help="Microphone: a part of its name, or its number."),
    ] = None,
    microphones: Annotated[
        bool, typer.Option("--microphones", help="List the microphones, and do nothing else.")
    ] = False,
    system_sound: Annotated[
        bool,
        typer.Option("--system-sound", help="What this machine plays, in place of a microphone."),
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not wait for the recording: as if computing took no time.")
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="Write what was written when, for `sprachbund latency`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every event as a JSON object.")] = False,
    untrusted: Untrusted = False,
    *,
    live: Annotated[LiveOptions, Panel("Live text")],
    decoding: _Decoding,
    model: _Model,
) -> None:
    """Write down what is being said, in one or more languages, while it is said."""
    if microphones:
        return _print_microphones(as_json=as_json)
    _check(source_file, microphone, system_sound, fast, log, untrusted)
    with as_usage():
        check_then(model, listed(to), source)
    if decoding.word_timestamps and not as_json:
        raise UsageError("--words are shown with --json only; add it")
    from sprachbund.streaming.engine import LiveEngine

    loaded = load_model(model)
    with as_usage():
        engine = LiveEngine(loaded.family, decoding)
    with as_usage(), with_hints(sorted(engine.model.pairs()), "listen", source_file, listed(to), source):
        session = engine.open(listed(to) or ["transcribe"], source, live)
    for note in engine.notes:
        say(f"note: {note}")
    if as_json and loaded.engine is not None:
        print_json({"type": "engine", **loaded.engine.as_dict()})
    captions: Captions = JsonLines() if as_json else Lines(several=len(session.targets) > 1)
    sound = _moments(engine, session, captions, source_file, microphone, system_sound, fast, untrusted)
    seen = _shown(sound, captions, keep=log is not None)
    if log is not None:
        _write_log(log, seen.moments, session, source_file or "microphone")
    if session.error:
        raise SprachbundError(session.error)
    if not seen.text:
        say(f"warning: no speech found in {session.audio_s:.1f} s of audio")


def _check(
    source_file: str | None,
    microphone: str | None,
    system_sound: bool,
    fast: bool,
    log: Path | None,
    untrusted: bool,
) -> None:
    """Refuse what contradicts itself, and sound that is not there, before a model is loaded."""
    if system_sound and (source_file or microphone):
        raise UsageError(
            f"--system-sound is instead of {source_file or '--microphone'}; leave one of them out"
        )
    if source_file is not None and microphone is not None:
        raise UsageError("--microphone names a microphone; leave it out for a file")
    if fast and source_file in (None, STDIN):
        raise UsageError("--fast is for recordings; sound that is being made cannot be hurried")
    if untrusted and source_file in (None, STDIN):
        raise UsageError("--untrusted is for recordings; raw sound is not decoded, so leave it out")
    if log is not None and not log.absolute().parent.is_dir():
        raise UsageError(f"--log {log}: there is no folder {log.parent}; make it first")
    if log is not None and log.is_dir():
        raise UsageError(f"--log {log} is a folder; name a file in it")
    if source_file not in (None, STDIN) and not Path(str(source_file)).exists():
        raise missing_file(source_file)
    if source_file is None:
        from sprachbund.audio.microphone import check_microphone, monitor

        monitor() if system_sound else check_microphone(microphone)


def _moments(
    engine: "LiveEngine",
    session: "LiveSession",
    captions: Captions,
    source_file: str | None,
    microphone: str | None,
    system_sound: bool,
    fast: bool,
    untrusted: bool,
) -> "Iterator[Moment]":
    """All events of the session, from whatever sound it listens to."""
    from sprachbund.audio.load import open_audio
    from sprachbund.audio.microphone import Microphone, SystemSound, raw_blocks
    from sprachbund.streaming.live import BLOCK_S, SimulatedClock, WallClock, follow, play

    if source_file not in (None, STDIN):
        audio = open_audio(str(source_file), untrusted=untrusted)
        clock = SimulatedClock() if fast else WallClock()
        with _stopping() as stopped:
            yield from play(engine, session, _until(stopped, audio.blocks(BLOCK_S)), clock)
        for warning in audio.warnings:
            say(f"warning: {warning}")
        return
    if source_file == STDIN:
        with _stopping() as stopped:
            yield from follow(engine, session, _until(stopped, raw_blocks(sys.stdin.buffer)), WallClock())
        return
    recorder = SystemSound() if system_sound else Microphone(microphone, report=say)
    say("listening; Ctrl-C ends it")
    with _stopping(recorder.stop):
        yield from follow(engine, session, _metered(recorder, captions), WallClock())


def _metered(blocks: "Iterable[Samples]", captions: Captions) -> "Iterator[Samples]":
    for block in blocks:
        captions.level(block)
        yield block


def _print_microphones(*, as_json: bool) -> None:
    from sprachbund.audio.microphone import input_devices

    devices = input_devices()
    if as_json:
        return print_json([asdict(device) for device in devices])
    if not devices:
        raise SprachbundError("no microphone was found; plug one in, or pipe sound into: sprachbund listen -")
    rows = [
        [
            str(d.number),
            "*" if d.is_default else "",
            d.name,
            d.system,
            str(d.channels),
            f"{d.sample_rate:.0f}",
        ]
        for d in devices
    ]
    typer.echo(table(rows, ["number", "default", "name", "system", "channels", "Hz"]))


@contextmanager
def _stopping(on_stop: Callable[[], None] = lambda: None) -> "Iterator[list[bool]]":
    """Let the first Ctrl-C end the sound and not the work on it; the second ends all.

    Args:
        on_stop: called at the first.
    """
    stopped: list[bool] = []

    def stop(number: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(True)
        on_stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _until(stopped: list[bool], blocks: Iterable[Any]) -> Iterator[Any]:
    for block in blocks:
        yield block
        if stopped:
            return


@dataclass
class _Seen:
    """What a session has shown: whether there was text, and the events, where they are kept for a log."""

    text: bool = False
    moments: "list[Moment]" = field(default_factory=list)


def _shown(moments: "Iterable[Moment]", captions: Captions, *, keep: bool) -> _Seen:
    """Show all events, and keep them if asked to: a session may go on for days."""
    from sprachbund.streaming.events import LiveText

    seen = _Seen()
    with captions:
        for moment in moments:
            captions.add(moment)
            seen.text |= isinstance(moment.event, LiveText)
            if keep:
                seen.moments.append(moment)
    return seen


def _write_log(path: Path, moments: "list[Moment]", session: "LiveSession", talk: str) -> None:
    from sprachbund.evaluation.emissions import write_logs
    from sprachbund.streaming.live import emission_logs

    logs = emission_logs(moments, session.targets, talk=Path(talk).stem, duration_s=session.audio_s)
    write_logs(path, logs)
    say(f"written: {path}")

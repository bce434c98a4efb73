"""The thread that owns a loaded model. No other thread computes with it.

Live sessions come first and step together. Spans of speech of any recordings are searched together: in the native
engine a span joins the search that is under way as soon as a row is free, and leaves it with its last token; other
engines search a batch to its end. A recording gives its spans through `compute`, from a thread of its own that reads
and cuts the audio meanwhile, and gets the answers in their order, whichever ended first.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from sprachbund.api import Model
from sprachbund.decoding.native_search import NativeSearch, RunningSearch
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.pipeline import Steps, translation_steps
from sprachbund.decoding.recordings import Drafts, RecordedSpan, load_drafts
from sprachbund.decoding.result import Segment
from sprachbund.decoding.search import SearchRequest, StartedSearch
from sprachbund.decoding.state import Hypothesis
from sprachbund.engines.extension import enough_memory
from sprachbund.engines.native_engine import NativeDecoder, limit_torch_threads
from sprachbund.errors import SprachbundError
from sprachbund.serving.metrics import Meters
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent
from sprachbund.streaming.session import LiveSession
from sprachbund.util.processor import pin_thread

T = TypeVar("T")
Answer = tuple[str, Segment]
log = logging.getLogger(__name__)

_SPANS_WITH_LIVE = 2
"""Most spans of recordings under way while live sessions are open, which share the processor with them."""
_PASSES, _PASSES_WITH_LIVE = 32, 4
"""Passes of the model after which the thread looks for new requests, if no row ended before."""


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


class Live(Protocol):
    """A live session as the worker sees it; all but `session` is called in the worker's thread."""

    session: LiveSession

    def advance(self) -> bool:
        """Give waiting audio to the session; whether there is anything to compute."""
        ...

    def emit(self, events: Sequence[LiveEvent]) -> None:
        """Take the events of a step."""
        ...

    def fail(self, error: Exception) -> None:
        """End the session with an error."""
        ...

    @property
    def over(self) -> bool:
        """Whether the worker may drop the session."""
        ...


@dataclass(kw_only=True, eq=False)
class _Waiting:
    """Spans of one recording, of which `given` are under way or done.

    Attributes:
        abandoned: set when nobody waits for them any more.
        answers: by the number of the span.
        jobs: jobs under way, in the order of their spans.
    """

    spans: Sequence[RecordedSpan]
    abandoned: threading.Event
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    given: int = 0
    jobs: list["_Job"] = field(default_factory=list)
    result: Future[list[list[Answer]]] = field(default_factory=Future)


@dataclass(kw_only=True, eq=False)
class _Job:
    """Spans that are translated together.

    Attributes:
        owners: their recordings and numbers there, one for each span; a job of several is searched by itself.
        steps: the work, which asks for searches.
        started, rows: the search whose rows are under way.
        hypotheses: hypotheses of its search, until the spans before it are done.
    """

    owners: Sequence[tuple[_Waiting, int]]
    steps: Steps[list[list[Answer]]]
    started: StartedSearch | None = None
    rows: NativeSearch | None = None
    hypotheses: list[list[Hypothesis]] | None = None

    @property
    def recordings(self) -> list[_Waiting]:
        """Each once."""
        return list(dict.fromkeys(waiting for waiting, _ in self.owners))


class ModelWorker:
    """A model and its thread.

    Args:
        name: name of the model, for measures.
        load: gives the model; runs in the thread.
        engine_for: makes the engine of a model's live sessions.
        batch_size: spans that are searched together at most.
        meters: meters of the service.
        cores: cores that the thread, and those that the engine starts from it, are to stay on; any if None.

    Attributes:
        ready: done when the model is loaded, with the error if it could not be.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Model],
        engine_for: Callable[[Model], LiveEngine],
        *,
        batch_size: int,
        meters: Meters,
        cores: Sequence[int] | None = None,
    ) -> None:
        self.name, self.ready, self._cores = name, Future[Model](), cores
        self._load, self._engine_for, self._batch_size, self._meters = load, engine_for, batch_size, meters
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._recordings: deque[_Waiting] = deque()
        self._live: list[Live] = []
        self._notified, self._closed = False, False
        self._engine: LiveEngine | None = None
        self._left = 0
        self._running: RunningSearch | None = None
        self._jobs: list[_Job] = []  # whose rows are under way
        self._drafts: Drafts | None = None
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def model(self) -> Model:
        """The model, which is there once `ready` is set."""
        return self.ready.result()

    @property
    def closed(self) -> bool:
        """Whether it takes no more work: after `close`, or an error of loading or of its thread."""
        return self._closed

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run something in the thread, before anything else."""
        future: Future[T] = Future()
        self._add(lambda: self._calls.append((work, future)))
        return future

    def compute(
        self, spans: Sequence[RecordedSpan], abandoned: threading.Event | None = None
    ) -> list[list[Answer]]:
        """Run `translate_spans` together with the spans of others; the calling thread waits.

        Args:
            spans: spans of one recording, in order of time.
            abandoned: set, with a call of `notify`, when nobody waits any more; spans leave the search then.

        Raises:
            AbandonedError: it was set.
        """
        waiting = _Waiting(spans=spans, abandoned=abandoned or threading.Event())
        self._add(lambda: self._recordings.append(waiting))
        return waiting.result.result()

    def engine(self) -> LiveEngine:
        """The engine that opens and steps live sessions; only in the thread."""
        if self._engine is None:
            self._engine = self._engine_for(self.model)
        return self._engine

    def drafts(self) -> Drafts:
        """The drafts in the model's directory, shared by all recordings; only in the thread."""
        if self._drafts is None:
            self._drafts = load_drafts(self.model.family, DecodingOptions())
        return self._drafts

    def join_live(self, live: Live) -> None:
        """Step `live` with the other sessions from now on."""
        self._add(lambda: self._live.append(live))

    def notify(self) -> None:
        """A live session has something new, or a recording was abandoned."""
        with self._changed:
            self._notified = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread after what it is at; whatever waits fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _add(self, add: Callable[[], None]) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the worker of {self.name} is closed")
            add()
            self._notified = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            if self._cores is not None:
                pin_thread(self._cores)
                torch.set_num_threads(len(self._cores))  # of this thread; others keep theirs
            self.ready.set_result(self._load())
        except BaseException as error:
            self._end(error)
            self.ready.set_exception(error)
            return
        busy = False
        try:
            while self._wait(busy):
                self._run_calls()
                stepped = self._step_live()
                self._drop_abandoned()
                busy = self._begin_jobs() or stepped
                busy = self._go_on() or busy
        except Exception as error:
            log.exception("the thread of the model %s has ended", self.name)
            self._end(error)
            for live in self._live:
                live.fail(error)
        else:
            self._end(RuntimeError(f"the worker of {self.name} is closed"))

    def _wait(self, busy: bool) -> bool:
        """Until there may be work; False at the end."""
        with self._changed:
            while not (busy or self._notified or self._closed):
                self._changed.wait()
            self._notified = False
            return not self._closed

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
            futures = [future for _, future in self._calls] + [w.result for w in self._recordings]
            self._calls.clear()
            self._recordings.clear()
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _run_calls(self) -> None:
        while self._calls:
            work, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    def _step_live(self) -> bool:
        """One pass over whatever is due in the live sessions; whether there was anything."""
        with self._changed:
            self._live = [live for live in self._live if not live.over]
            everybody = list(self._live)
        due = [live for live in everybody if self._advances(live)]
        if due:
            self._meters.live_batch.observe(len(due))
            self._step(due)
        return bool(due)

    def _advances(self, live: Live) -> bool:
        try:
            return live.advance()
        except Exception as error:
            log.exception("a live session failed")
            live.fail(error)
            return False

    def _step(self, due: Sequence[Live]) -> None:
        try:
            events_of_each = self.engine().step([live.session for live in due])
        except Exception as error:
            if len(due) > 1:  # whose fault it is shows when each goes alone
                for live in due:
                    self._step([live])
                return
            log.exception("a live session failed")
            due[0].fail(error)
            return
        for live, events in zip(due, events_of_each, strict=True):
            live.emit(events)

    def _drop_abandoned(self) -> None:
        with self._changed:
            gone = [waiting for waiting in self._recordings if waiting.abandoned.is_set()]
        self._fail(gone, AbandonedError())

    @property
    def _slots(self) -> RunningSearch | None:
        """The native engine's running search, which rows can join. A cascade's second model has none."""
        able = self.model.family.capabilities
        if self._running is None and isinstance(able.decoder, NativeDecoder):
            self._running = RunningSearch(able.decoder, self._batch_size)
        return self._running

    def _begin_jobs(self) -> bool:
        """Begin with waiting spans for which there is room; whether there were any.

        Where rows join, each span is a job of its own, so that it waits for no other.
        """
        batch = self._next_batch()
        if not batch:
            return False
        self._meters.batch_spans.observe(len(batch) + len(self._jobs))
        recordings = [waiting for waiting, _ in batch] + [w for job in self._jobs for w in job.recordings]
        self._meters.batch_recordings.observe(len(set(recordings)))
        for part in [batch] if self._slots is None else [[one] for one in batch]:
            if part[0][0].result.done():  # a span before this one has failed, and with it the recording
                continue
            job = _Job(
                owners=part,
                steps=translation_steps(
                    self.model.family, [waiting.spans[number] for waiting, number in part]
                ),
            )
            for waiting in job.recordings:
                waiting.jobs.append(job)
            self._advance(job, partial(next, job.steps))
        return True

    def _go_on(self) -> bool:
        """Some passes over the rows under way; whether there are any."""
        if not self._jobs or self._running is None:
            return False
        try:
            with limit_torch_threads(self.model.family.capabilities.decoder), enough_memory():
                ended = self._running.run(_PASSES_WITH_LIVE if self._live else _PASSES)
        except Exception as error:  # where rows were when the pass broke off, nobody knows
            log.error("a pass of the search failed", exc_info=error)
            self._fail({waiting for job in self._jobs for waiting in job.recordings}, error)
            return True
        jobs = [next(job for job in self._jobs if job.rows is rows) for rows in ended]
        for job, rows in zip(jobs, ended, strict=True):
            self._jobs.remove(job)
            assert job.started is not None
            job.hypotheses, job.started, job.rows = job.started.result(rows), None, None
        for job in jobs:  # only now: the fault of one may fail the whole recording, with the others
            self._deliver(job.recordings[0])
        return True

    def _deliver(self, waiting: _Waiting) -> None:
        """Go on with the jobs of a recording as far as they are searched, in the order of its spans.

        The evaluation of a span may depend on the spans before it.
        """
        while waiting.jobs and (hypotheses := waiting.jobs[0].hypotheses) is not None:
            job = waiting.jobs[0]
            job.hypotheses = None
            self._advance(job, partial(job.steps.send, hypotheses))

    def _advance(self, job: _Job, step: Callable[[], SearchRequest]) -> None:
        """Let a job work until its rows are under way, or to its end."""
        try:
            while True:
                request = step()
                try:
                    hypotheses = self._search(job, request)
                except SprachbundError as error:
                    step = partial(job.steps.throw, error)
                else:
                    if hypotheses is None:
                        return
                    if job.recordings[0].jobs[0] is not job:  # see `_deliver`
                        job.hypotheses = hypotheses
                        return
                    step = partial(job.steps.send, hypotheses)
        except StopIteration as stop:
            self._finish(job, stop.value)
        except BaseException as error:
            log.error("a batch failed", exc_info=error)
            self._fail(job.recordings, error)

    def _search(self, job: _Job, request: SearchRequest) -> list[list[Hypothesis]] | None:
        """Return the result of a search; None where its rows joined those under way."""
        if (started := request.start()) is None:
            return request.run()
        running = self._slots
        rows = None if running is None or len(job.owners) > 1 else started.native_rows()
        if rows is None or running is None or rows.num_rows > running.num_free:
            return started.finish()
        started.join(rows, running)
        job.started, job.rows = started, rows
        self._jobs.append(job)
        return None

    def _finish(self, job: _Job, answers_of_each: list[list[Answer]]) -> None:
        for waiting in job.recordings:
            waiting.jobs.remove(job)
        for (waiting, number), answers in zip(job.owners, answers_of_each, strict=True):
            waiting.answers[number] = answers
            if len(waiting.answers) == len(waiting.spans):
                self._forget(waiting)
                waiting.result.set_result([waiting.answers[n] for n in range(len(waiting.spans))])

    def _next_batch(self) -> list[tuple[_Waiting, int]]:
        """A span of each recording in turn, so that nobody waits for the whole of another's."""
        room = min(self._batch_size, _SPANS_WITH_LIVE) if self._live else self._batch_size
        if (running := self._slots) is not None:
            room = min(room - len(self._jobs), running.num_free)
        with self._changed:
            left = sum(len(waiting.spans) - waiting.given for waiting in self._recordings)
            self._meters.waiting_spans.labels(self.name).inc(left - self._left)  # workers of a model add up
            self._left = left
            batch = []
            for _ in range(min(room, left)):
                waiting = next(w for w in self._recordings if w.given < len(w.spans))
                batch.append((waiting, waiting.given))
                waiting.given += 1
                self._recordings.remove(waiting)
                self._recordings.append(waiting)
            return batch

    def _forget(self, waiting: _Waiting) -> None:
        with self._changed:
            self._recordings.remove(waiting)

    def _fail(self, recordings: Iterable[_Waiting], error: BaseException) -> None:
        """Give up recordings, with all their jobs."""
        for waiting in recordings:
            for job in waiting.jobs:
                job.steps.close()
                if job.rows is not None and self._running is not None:
                    self._running.remove(job.rows)
                    self._jobs.remove(job)
            waiting.jobs = []
            self._forget(waiting)
            waiting.result.set_exception(error)

"""The thread that owns a loaded model. No other thread computes with it.

Live sessions come first and step together; then spans of speech of any recordings share a pass. A recording gives its
spans through `compute`, from a thread of its own that reads and cuts the audio meanwhile.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sprachbund.api import Model
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.pipeline import RecordedSpan, translate_spans
from sprachbund.decoding.result import Segment
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.serving.metrics import Meters

T = TypeVar("T")
Answer = tuple[str, Segment]
log = logging.getLogger(__name__)

_SPANS_WITH_LIVE = 2
"""Most spans of recordings in a pass while live sessions are open, since these wait for its end."""


class Live(Protocol):
    """A live session as the worker sees it; all but `session` is called in the worker's thread."""

    session: Any

    def advance(self) -> bool:
        """Give waiting audio to the session; whether there is anything to compute."""
        ...

    def emit(self, events: Sequence[Any]) -> None:
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
    """Spans of one recording, of which the first `len(answers)` are done."""

    spans: Sequence[RecordedSpan]
    answers: list[list[Answer]] = field(default_factory=list)
    given: int = 0
    result: Future[list[list[Answer]]] = field(default_factory=Future)


class ModelWorker:
    """A model and its thread.

    Args:
        name: of the model, for measures.
        load: gives the model; runs in the thread.
        engine_for: makes the engine of a model's live sessions.
        batch_size: spans in a pass at most.
        meters: of the service.

    Attributes:
        ready: done when the model is loaded, with the error if it could not be.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Model],
        engine_for: Callable[[Model], Any],
        *,
        batch_size: int,
        meters: Meters,
    ) -> None:
        self.name, self.ready = name, Future[Model]()
        self._load, self._engine_for, self._batch_size, self._meters = load, engine_for, batch_size, meters
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._recordings: deque[_Waiting] = deque()
        self._live: list[Live] = []
        self._notified, self._closed = False, False
        self._engine: Any = None
        self._speculation: Speculation | None = None
        self._sought_draft = False
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def model(self) -> Model:
        """Once `ready`."""
        return self.ready.result()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run something in the thread, before anything else."""
        future: Future[T] = Future()
        self._add(lambda: self._calls.append((work, future)))
        return future

    def compute(self, spans: Sequence[RecordedSpan]) -> list[list[Answer]]:
        """As `translate_spans`, in batches shared with others; the calling thread waits."""
        waiting = _Waiting(spans=spans)
        self._add(lambda: self._recordings.append(waiting))
        return waiting.result.result()

    def engine(self) -> Any:
        """The engine that opens and steps live sessions; only in the thread."""
        if self._engine is None:
            self._engine = self._engine_for(self.model)
        return self._engine

    def speculation(self) -> Speculation | None:
        """Speculative decoding for all recordings, if the model directory has a draft; only in the thread."""
        if not self._sought_draft:
            self._speculation, self._sought_draft = (
                speculation_for(self.model.family, DecodingOptions()),
                True,
            )
        return self._speculation

    def join_live(self, live: Live) -> None:
        """From now on `live` is stepped with the others."""
        self._add(lambda: self._live.append(live))

    def notify(self) -> None:
        """A live session has something new."""
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
            self.ready.set_result(self._load())
        except BaseException as error:
            self._end(error)
            self.ready.set_exception(error)
            return
        busy = False
        while self._wait(busy):
            self._run_calls()
            stepped = self._step_live()
            busy = self._translate_batch() or stepped
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
            future.set_exception(error)

    def _run_calls(self) -> None:
        while self._calls:
            work, future = self._calls.popleft()
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

    def _translate_batch(self) -> bool:
        """One pass over waiting spans; whether there were any."""
        batch = self._next_batch()
        if not batch:
            return False
        self._meters.batch_spans.observe(len(batch))
        self._meters.batch_recordings.observe(len({id(waiting) for waiting, _ in batch}))
        try:
            answers_of_each = translate_spans(self.model.family, [span for _, span in batch])
        except BaseException as error:
            self._fail({id(waiting): waiting for waiting, _ in batch}.values(), error)
            return True
        for (waiting, _), answers in zip(batch, answers_of_each, strict=True):
            waiting.answers.append(answers)
            if len(waiting.answers) == len(waiting.spans):
                self._recordings.remove(waiting)
                waiting.result.set_result(waiting.answers)
        return True

    def _next_batch(self) -> list[tuple[_Waiting, RecordedSpan]]:
        """A span of each recording in turn, so that nobody waits for the whole of another's."""
        room = min(self._batch_size, _SPANS_WITH_LIVE) if self._live else self._batch_size
        with self._changed:
            left = sum(len(waiting.spans) - waiting.given for waiting in self._recordings)
            self._meters.waiting_spans.labels(self.name).set(left)
            batch = []
            for _ in range(min(room, left)):
                waiting = next(w for w in self._recordings if w.given < len(w.spans))
                batch.append((waiting, waiting.spans[waiting.given]))
                waiting.given += 1
                self._recordings.remove(waiting)
                self._recordings.append(waiting)
            return batch

    def _fail(self, waiting: Any, error: BaseException) -> None:
        log.error("a batch failed", exc_info=error)
        for one in waiting:
            self._recordings.remove(one)
            one.result.set_exception(error)

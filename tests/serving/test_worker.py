"""The model's thread: batches shared between recordings, live sessions first, nobody pays for another's fault."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sprachbund.api import Model
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import Span
from sprachbund.decoding.languages import LanguageTracker, read_request
from sprachbund.decoding.long_form import LongForm, finish_translation
from sprachbund.decoding.native_search import RunningSearch
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.pipeline import translate_spans
from sprachbund.decoding.recordings import RecordedSpan, RecordingState
from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.packing import pack_decoder
from sprachbund.errors import SprachbundError
from sprachbund.models.cascade import Cascade
from sprachbund.serving.metrics import Meters
from sprachbund.serving.worker import AbandonedError, ModelWorker
from tests.decoding.test_cascade import Reading
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily
from tests.engines.support import needs_native
from tests.serving.support import tiny_model, wait_for

OPTIONS = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1)


@pytest.fixture
def meters():
    return Meters()


@pytest.fixture
def worker(meters):
    made = ModelWorker("tiny", tiny_model, lambda model: None, batch_size=8, meters=meters)
    yield made
    made.close()
    assert made.join(5)


def text_of(model, samples, target, compute=None, options=OPTIONS):
    work = LongForm(
        model,
        samples,
        [target],
        None,
        options,
        sample_rate=SAMPLE_RATE,
        activity=Loudness(),
        compute=compute,
    )
    translation = finish_translation(work, target, list(work))
    # sums over a batch of another shape differ in their last bits
    return [
        (s.text, s.start_s, s.end_s, s.source_language, round(s.mean_log_probability, 3))
        for s in translation.segments
    ]


def test_many_recordings_at_once_give_what_each_gives_alone(worker, meters):
    model = worker.model.family
    samples = [recording(*SPEECH, seed=seed) for seed in range(6)]
    alone = [text_of(model, one, "de") for one in samples]
    begin = threading.Barrier(len(samples))

    def together(one):
        begin.wait()
        return text_of(model, one, "de", worker.compute)

    blocked = threading.Event()
    worker.call(blocked.wait)  # so that all have something waiting when the thread comes to it
    with ThreadPoolExecutor(len(samples)) as threads:
        futures = [threads.submit(together, one) for one in samples]
        wait_for(lambda: len(worker._recordings) == len(samples))
        blocked.set()
        assert [future.result() for future in futures] == alone
    value = meters.registry.get_sample_value
    assert value("sprachbund_batch_spans_sum") == len(SPEECH) * len(samples)
    assert value("sprachbund_batch_recordings_sum") > value("sprachbund_batch_recordings_count") * 1.5


def test_no_recording_waits_for_the_whole_of_another(worker):
    blocked = threading.Event()
    worker.call(blocked.wait)
    model, done = worker.model.family, []
    long = recording(*((s, s + 1.0) for s in range(0, 60, 2)), duration_s=60.0)
    short = recording((1.0, 2.0), duration_s=3.0)

    def work(name, samples):
        text_of(model, samples, "de", worker.compute)
        done.append(name)

    with ThreadPoolExecutor(2) as threads:
        threads.submit(work, "long", long)
        wait_for(lambda: worker._recordings)
        threads.submit(work, "short", short)
        wait_for(lambda: len(worker._recordings) == 2)
        blocked.set()
    assert done == ["short", "long"]


def native_model() -> Model:
    family = TinyFamily(seed=3, sharpness=1.0, max_tokens=120, num_times=50)
    shape, arrays = pack_decoder(family.decoder)
    family.decoder = NativeDecoder(shape, arrays, native().Team(1), choose_instruction_set())
    return Model(family, name="tiny")


@pytest.fixture
def native_worker(meters):
    made = ModelWorker("tiny", native_model, lambda model: None, batch_size=4, meters=meters)
    made.ready.result(30)
    yield made
    made.close()
    assert made.join(5)


@needs_native
@pytest.mark.parametrize("seed", range(3))
def test_spans_that_join_a_running_search_give_what_they_give_alone(native_worker, meters, seed):
    """Twelve clients, each at moments of its own; rows of one recording end in another order than they began."""
    model, random = native_worker.model.family, np.random.default_rng(seed)
    samples = [recording(*SPEECH[:3], (12.0, 12.5), seed=n) for n in range(12)]
    wishes = [
        replace(OPTIONS, max_tokens=int(random.integers(2, 100)), timestamps=bool(n % 2)) for n in range(12)
    ]
    targets = [["de", "fr", "transcribe"][n % 3] for n in range(12)]
    alone = [text_of(model, *each) for each in zip(samples, targets, [None] * 12, wishes, strict=True)]
    pauses = random.random(12) * 0.2

    def client(n):
        threading.Event().wait(pauses[n])
        return text_of(model, samples[n], targets[n], native_worker.compute, wishes[n])

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(client, range(12))) == alone
    assert native_worker._running.num_free == 4
    assert not native_worker._jobs
    value = meters.registry.get_sample_value
    assert value("sprachbund_batch_spans_sum") > value("sprachbund_batch_spans_count")


@needs_native
def test_an_abandoned_recording_leaves_the_search_and_makes_room(native_worker):
    """Its rows would go on for longer than the test: the kernels are held between two passes."""
    family, gone = native_worker.model.family, threading.Event()
    spans = spans_of(family, 6, replace(OPTIONS, min_tokens=90, max_tokens=100))
    others = spans_of(family, 2, OPTIONS)
    alone = [[s.text for _, s in row] for row in translate_spans(family, others)]
    held, entered = threading.Event(), threading.Event()
    run = RunningSearch.run

    def slowly(running, most_passes):
        entered.set()
        held.wait(20)
        return run(running, 1)

    with ThreadPoolExecutor(2) as threads, pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunningSearch, "run", slowly)
        abandoned = threads.submit(native_worker.compute, spans, gone)
        assert entered.wait(20)
        assert native_worker._running.num_free == 0
        waiting = threads.submit(native_worker.compute, others)
        gone.set()
        native_worker.notify()
        held.set()
        with pytest.raises(AbandonedError):
            abandoned.result(20)
        assert [[s.text for _, s in row] for row in waiting.result(20)] == alone
    assert native_worker._running.num_free == 4


@needs_native
def test_a_fault_in_one_recording_takes_its_rows_out_of_the_search(native_worker):
    family = native_worker.model.family
    faulty, fine = spans_of(family, 3, OPTIONS), spans_of(family, 3, OPTIONS)
    alone = [[s.text for _, s in row] for row in translate_spans(family, fine)]
    features = family.features
    family.features = lambda samples: features(samples) if samples[0] is not faulty[1].samples else [][0]
    with ThreadPoolExecutor(2) as threads:
        broken, whole = (threads.submit(native_worker.compute, spans) for spans in (faulty, fine))
        with pytest.raises(IndexError, match="list index out of range"):
            broken.result(20)
        assert [[s.text for _, s in row] for row in whole.result(20)] == alone
    assert native_worker._running.num_free == 4


@needs_native
def test_faults_in_two_spans_that_begin_together_are_those_of_one_recording(native_worker):
    family = native_worker.model.family
    faulty, fine = spans_of(family, 3, OPTIONS), spans_of(family, 1, OPTIONS)
    alone = [[s.text for _, s in row] for row in translate_spans(family, fine)]
    features, faults = family.features, [span.samples for span in faulty[:2]]
    family.features = lambda samples: [][0] if any(samples[0] is one for one in faults) else features(samples)
    with pytest.raises(IndexError, match="list index out of range"):
        native_worker.compute(faulty)
    assert [[s.text for _, s in row] for row in native_worker.compute(fine)] == alone
    assert native_worker._running.num_free == 4


@needs_native
def test_a_fault_in_a_recording_of_which_two_rows_end_together_is_its_own(native_worker, monkeypatch):
    family = native_worker.model.family
    first, second = spans_of(family, 2, OPTIONS)
    fine = spans_of(family, 1, OPTIONS)
    alone = [[s.text for _, s in row] for row in translate_spans(family, fine)]
    with monkeypatch.context() as patched:
        patched.setattr("sprachbund.decoding.pipeline.out_of_domain", lambda *a, **k: [][0])
        with pytest.raises(IndexError, match="list index out of range"):
            native_worker.compute([first, replace(second, samples=first.samples)])
    assert [[s.text for _, s in row] for row in native_worker.compute(fine)] == alone
    assert native_worker._running.num_free == 4


@needs_native
def test_a_pass_that_fails_takes_the_recordings_under_way_and_no_later_one(native_worker, monkeypatch):
    family = native_worker.model.family
    spans = spans_of(family, 3, OPTIONS)
    alone = [[s.text for _, s in row] for row in translate_spans(family, spans)]

    def without_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("sprachbund.decoding.native_search._Slots.search", without_memory)
        with pytest.raises(SprachbundError, match="not enough memory"):
            native_worker.compute(spans)
    assert [[s.text for _, s in row] for row in native_worker.compute(spans)] == alone
    assert native_worker._running.num_free == 4


def test_recordings_share_the_drafts_of_both_halves_of_a_cascade(meters, monkeypatch):
    halves = TinyFamily(), Reading()
    monkeypatch.setattr(
        "sprachbund.decoding.recordings.speculation_for", lambda family, options, notes: [halves[1] is family]
    )
    worker = ModelWorker(
        "tiny",
        lambda: Model(Cascade(*halves), name="cascade"),
        lambda model: None,
        batch_size=8,
        meters=meters,
    )
    first, second = (worker.call(worker.drafts).result(20) for _ in range(2))
    assert first is second
    assert (first.own, first.translator) == ([False], [True])
    worker.close()
    assert worker.join(5)


def spans_of(family, count, options):
    state = RecordingState(
        request=read_request(family, source="en", targets=["de"], allowed=None),
        options=options,
        tracker=LanguageTracker(family.source_languages, None, 1),
    )
    spans = []
    for number in range(count):
        samples = recording((0.0, 1.0), duration_s=1.0, seed=number)
        span = Span(start_s=2.0 * number, end_s=2.0 * number + 1.0, speech_probability=1.0)
        spans.append(RecordedSpan(recording=state, span=span, samples=samples))
    return spans


class Caption:
    """A live session that is due a number of times."""

    def __init__(self, steps: int, order: list[str], name: str = "live") -> None:
        self.session, self.left, self.order = self, steps, order
        self.name, self.events, self.error = name, [], None

    @property
    def over(self):
        return self.left == 0 or self.error is not None

    def advance(self):
        return not self.over

    def emit(self, events):
        self.left -= 1
        self.order.append(self.name)
        self.events += events

    def fail(self, error):
        self.error = error


class Engine:
    def __init__(self, broken=()):
        self.sizes, self.broken = [], broken

    def step(self, sessions):
        self.sizes.append(len(sessions))
        if any(session.name in self.broken for session in sessions):
            raise ArithmeticError
        return [["event"] for _ in sessions]


def worker_with(engine):
    return ModelWorker("tiny", tiny_model, lambda model: engine, batch_size=8, meters=Meters())


def test_live_sessions_step_together_and_before_recordings():
    engine, order = Engine(), []
    worker = worker_with(engine)
    blocked = threading.Event()
    worker.call(blocked.wait)
    captions = [Caption(3, order), Caption(3, order)]
    for caption in captions:
        worker.join_live(caption)
    with ThreadPoolExecutor(1) as threads:
        family = worker.model.family
        future = threads.submit(text_of, family, recording(*SPEECH), "de", worker.compute)
        future.add_done_callback(lambda _: order.append("recording"))
        wait_for(lambda: worker._recordings)
        blocked.set()
        assert future.result()
    wait_for(lambda: all(caption.over for caption in captions))
    assert engine.sizes == [2, 2, 2]
    assert order[:2] == ["live", "live"]
    worker.close()


def test_a_live_session_that_breaks_does_not_break_the_others():
    engine, order = Engine(broken=("bad",)), []
    worker = worker_with(engine)
    bad, good = Caption(2, order, "bad"), Caption(2, order, "good")
    blocked = threading.Event()
    worker.call(blocked.wait)
    worker.join_live(bad)
    worker.join_live(good)
    blocked.set()
    wait_for(lambda: good.over)
    assert isinstance(bad.error, ArithmeticError)
    assert good.error is None
    assert order == ["good", "good"]
    worker.close()


def test_an_error_in_a_batch_reaches_who_waits_and_the_thread_goes_on(worker):
    model = worker.model.family
    features, model.features = model.features, lambda samples: 1 / 0
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        text_of(model, recording(*SPEECH), "de", worker.compute)
    model.features = features
    assert text_of(model, recording(*SPEECH), "de", worker.compute)


def test_a_cancelled_call_is_left_out_and_the_thread_goes_on(worker):
    entered, blocked, done = threading.Event(), threading.Event(), []
    running = worker.call(lambda: (entered.set(), blocked.wait(20)))
    assert entered.wait(20)
    waiting = worker.call(lambda: done.append("cancelled"))
    assert waiting.cancel()
    assert not running.cancel()
    blocked.set()
    assert worker.call(lambda: "next").result(20) == "next"
    assert not done


def test_a_cancelled_call_does_not_keep_a_worker_from_its_end():
    blocked = threading.Event()

    def load():
        blocked.wait(20)
        raise SprachbundError("no such model")

    worker = ModelWorker("broken", load, lambda model: None, batch_size=8, meters=Meters())
    cancelled, waiting = (worker.call(lambda: None) for _ in range(2))
    assert cancelled.cancel()
    blocked.set()
    with pytest.raises(SprachbundError, match="no such model"):
        waiting.result(20)
    with pytest.raises(SprachbundError, match="no such model"):
        worker.ready.result(20)


def test_an_error_of_the_thread_reaches_all_who_wait(worker):
    caption = Caption(1, [])
    entered, blocked = threading.Event(), threading.Event()
    worker.call(lambda: (entered.set(), blocked.wait(20)))
    assert entered.wait(20)
    worker._step_live = lambda: [][0]
    worker.join_live(caption)
    with ThreadPoolExecutor(1) as threads:
        recording_ = threads.submit(worker.compute, spans_of(worker.model.family, 1, OPTIONS))
        wait_for(lambda: worker._recordings)
        blocked.set()
        with pytest.raises(IndexError, match="list index out of range"):
            recording_.result(20)
    wait_for(lambda: isinstance(caption.error, IndexError))
    with pytest.raises(RuntimeError, match="closed"):
        worker.call(lambda: None)


def test_a_model_that_cannot_be_loaded_says_so():
    def load():
        raise SprachbundError("no such model")

    worker = ModelWorker("broken", load, lambda model: None, batch_size=8, meters=Meters())
    with pytest.raises(SprachbundError, match="no such model"):
        worker.ready.result(5)
    with pytest.raises(RuntimeError, match="closed"):
        worker.compute([SimpleNamespace()])


def test_closing_fails_what_waits():
    worker = worker_with(Engine())
    entered, blocked = threading.Event(), threading.Event()
    worker.call(lambda: (entered.set(), blocked.wait()))
    entered.wait(5)
    waiting = worker.call(lambda: np.zeros(1))
    worker.close()
    blocked.set()
    assert worker.join(5)
    assert waiting.done()

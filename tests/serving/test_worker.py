"""The model's thread: batches shared between recordings, live sessions first, nobody pays for another's fault."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.pipeline import LongForm, finish_translation
from sprachbund.errors import SprachbundError
from sprachbund.serving.metrics import Meters
from sprachbund.serving.worker import ModelWorker
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
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


def text_of(model, samples, target, compute=None):
    work = LongForm(
        model,
        samples,
        [target],
        None,
        OPTIONS,
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
    with pytest.raises(ZeroDivisionError):
        text_of(model, recording(*SPEECH), "de", worker.compute)
    model.features = features
    assert text_of(model, recording(*SPEECH), "de", worker.compute)


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

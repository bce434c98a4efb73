"""Models come when they are wanted and go when they are not."""

import asyncio
import os
import sys
import threading
import time

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.serving.live import Start
from sprachbund.serving.metrics import Meters
from sprachbund.serving.models import ModelStore, described_model, identifier
from sprachbund.serving.schemas import RefusalError
from sprachbund.serving.service import Service
from sprachbund.serving.settings import Limits, Settings, Timeouts
from sprachbund.serving.worker import ModelWorker
from sprachbund.util.devices import torch_threads
from sprachbund.util.processor import usable_cores
from tests.serving.support import tiny_model, wait_for
from tests.training.owned import make_whisper


def store_of(*names, loads=None, **options):
    loads = [] if loads is None else loads
    settings = Settings(models=names, timeouts=Timeouts(unload_s=10), **options)
    return ModelStore(settings, Meters(), loader=lambda name: loads.append(name) or tiny_model(name))


def test_a_model_is_loaded_once_for_all_who_want_it():
    loads: list[str] = []

    async def scenario():
        store = store_of("a", loads=loads)

        async def use():
            async with store.lease("a") as worker:
                return worker

        workers = await asyncio.gather(*(use() for _ in range(5)))
        assert len(set(workers)) == 1
        await store.close(5)

    asyncio.run(scenario())
    assert loads == ["a"]


def test_speech_is_encoded_at_its_own_length_where_all_models_can(tmp_path):
    windowed = str(make_whisper(tmp_path / "windowed"))

    async def real_length(model):
        store = ModelStore(Settings(models=(model,), real_length=True, engine="torch"), Meters())
        try:
            async with store.lease(identifier(model)) as worker:
                return worker.model.family.capabilities.fixed_window.real_length
        finally:
            await store.close(5)

    assert asyncio.run(real_length(windowed))
    with pytest.raises(RefusalError, match="always encodes speech at its real length; leave it out"):
        asyncio.run(real_length("bundled"))


def test_a_model_computes_with_the_threads_asked_for_on_torch_too():
    async def num_threads():
        store = ModelStore(Settings(models=("bundled",), threads=1, engine="torch"), Meters())
        try:
            async with store.lease("bundled") as worker:
                return worker.call(torch.get_num_threads).result(5)
        finally:
            await store.close(5)

    with torch_threads(2):
        assert asyncio.run(num_threads()) == 1


@pytest.mark.skipif(
    sys.platform != "linux" or usable_cores() < 2, reason="two workers need two cores, and Linux"
)
def test_workers_have_cores_of_their_own_and_share_the_requests():
    loads: list[str] = []

    async def scenario():
        store = store_of("a", loads=loads, workers=2)
        async with store.lease("a") as first, store.lease("a") as second:
            assert first is not second
            cores = [worker.call(lambda: os.sched_getaffinity(0)).result(5) for worker in (first, second)]
            assert all(cores)
            assert not cores[0] & cores[1]
            async with store.lease("a"), store.lease("a") as fourth:
                assert fourth in (first, second)
            store.sweep(now_s=1e12)
            assert store.loaded == ["a"]
        async with store.lease("a") as one:
            assert one.call(lambda: 7).result(5) == 7
        store.sweep(now_s=1e12)
        assert store.loaded == []
        assert first.join(5)
        assert second.join(5)

    before = os.sched_getaffinity(0)
    asyncio.run(scenario())
    assert loads == ["a", "a"]
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads are pinned on Linux alone")
def test_more_workers_or_threads_than_cores_are_refused():
    count = usable_cores()
    with pytest.raises(SprachbundError, match=f"{count} cores may be used"):
        store_of("a", workers=count + 1)
    if count > 1:
        with pytest.raises(SprachbundError, match=f"{count} threads were asked for"):
            store_of("a", workers=count, threads=count)


def test_it_is_unloaded_when_nobody_has_used_it_for_long():
    async def scenario():
        store = store_of("a")
        async with store.lease("a") as worker:
            store.sweep(now_s=1e12)
            assert store.loaded == ["a"]
        store.sweep()
        assert store.loaded == ["a"]
        store.sweep(now_s=1e12)
        assert store.loaded == []
        assert worker.join(5)
        async with store.lease("a") as again:
            assert again is not worker
        await store.close(5)

    asyncio.run(scenario())


def test_there_are_never_more_than_may_be_and_the_longest_idle_goes():
    async def scenario():
        store = store_of("a", "b", "c", limits=Limits(max_loaded=2))
        async with store.lease("a"):
            async with store.lease("b"):
                with pytest.raises(RefusalError, match="2 models are in use") as caught:
                    async with store.lease("c"):
                        pass
                assert (caught.value.status, caught.value.retry_after_s) == (429, 5)
            async with store.lease("c"):
                assert store.loaded == ["a", "c"]
        await store.close(5)

    asyncio.run(scenario())


def test_an_unknown_model_is_named_with_those_there_are():
    async def scenario():
        async with store_of("a", "b").lease("whisper-1"):
            pass

    with pytest.raises(RefusalError, match="'whisper-1' here; choose from a, b") as caught:
        asyncio.run(scenario())
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SprachbundError("its weights are cut off"), "weights are cut off"),
        (MemoryError("no room for 2 GB"), "cannot be loaded: the log of the service says why"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_tried_again_next_time(error, says):
    async def scenario():
        tries = []

        def load(name):
            tries.append(name)
            if len(tries) == 1:
                raise error
            return tiny_model()

        store = ModelStore(Settings(models=("a",)), Meters(), loader=load)
        with pytest.raises(RefusalError, match=says) as caught:
            async with store.lease("a"):
                pass
        assert caught.value.status == 503
        async with store.lease("a"):
            assert store.loaded == ["a"]
        await store.close(5)

    asyncio.run(scenario())


def test_a_service_is_ready_once_a_request_has_loaded_its_model(caplog):
    failing = threading.Event()

    def load(name):
        if not failing.is_set():
            failing.set()
            raise MemoryError("no room for 2 GB")
        return tiny_model()

    async def scenario():
        service = Service(Settings(models=("a",)), loader=load)
        async with service.running():
            await asyncio.to_thread(wait_for, lambda: "tries again" in caplog.text)
            assert "no room for 2 GB" in caplog.text
            assert not service.ready
            async with service.store.lease("a"):
                assert service.ready
            service.store.sweep(now_s=time.monotonic() + 10_000)
            assert not service.store.loaded
            assert service.ready

    asyncio.run(scenario())


def test_a_worker_that_an_error_has_closed_is_replaced():
    loads: list[str] = []

    async def scenario():
        store = store_of("a", loads=loads)
        async with store.lease("a") as broken:
            broken._step_live = lambda: [][0]
            broken.notify()
            await asyncio.to_thread(wait_for, lambda: broken.closed)
            assert store.loaded_worker("a") is None
            async with store.lease("a") as worker:
                assert worker is not broken
                assert await asyncio.wrap_future(worker.call(lambda: "works")) == "works"
        await store.close(5)

    asyncio.run(scenario())
    assert loads == ["a", "a"]


@pytest.mark.skipif(
    sys.platform != "linux" or usable_cores() < 2, reason="two workers need two cores, and Linux"
)
def test_a_worker_in_use_outlives_another_that_cannot_be_replaced():
    room = [tiny_model, tiny_model]

    def load(name):
        if not room:
            raise MemoryError("no room for 2 GB")
        return room.pop()()

    async def scenario():
        store = ModelStore(Settings(models=("a",), workers=2), Meters(), loader=load)
        async with store.lease("a") as broken, store.lease("a") as used:
            broken._step_live = lambda: [][0]
            broken.notify()
            await asyncio.to_thread(wait_for, lambda: broken.closed)
            with pytest.raises(RefusalError, match="cannot be loaded"):
                async with store.lease("a"):
                    pass
            assert await asyncio.wrap_future(used.call(lambda: "works")) == "works"
            room.append(tiny_model)
            async with store.lease("a") as replaced:
                assert replaced not in (broken, used)
        await store.close(5)

    asyncio.run(scenario())


def test_a_live_session_whose_worker_ends_as_it_joins_gives_the_model_back(monkeypatch):
    def ended(worker, live):
        raise RuntimeError(f"the worker of {worker.name} is closed")

    async def scenario():
        service = Service(Settings(models=("bundled",)))
        async with service.running():
            await asyncio.to_thread(wait_for, lambda: service.ready)
            with pytest.raises(RuntimeError, match="is closed"):
                await service.sessions.open(Start(type="start", targets=["de"]), "somebody")
            assert not service.sessions.count
            service.store.sweep(now_s=1e12)
            assert service.store.loaded == []

    monkeypatch.setattr(ModelWorker, "join_live", ended)
    asyncio.run(scenario())


def test_ids_say_nothing_about_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    assert identifier(str(tmp_path / "mine")) == "mine"
    assert identifier("openai/whisper-tiny") == "openai/whisper-tiny"
    (tmp_path / "other" / "mine").mkdir(parents=True)
    with pytest.raises(SprachbundError, match="same name"):
        store_of(str(tmp_path / "mine"), str(tmp_path / "other" / "mine"))


def test_what_is_said_of_a_model_needs_no_loading():
    store = store_of("bundled")
    actual = described_model(store, "bundled")
    assert (actual["licence"], actual["loaded"], actual["engine"]) == ("CC-BY-SA-3.0", False, None)
    assert "de" in actual["target_languages"]
    assert described_model(store_of("openai/whisper-nowhere"), "openai/whisper-nowhere")["licence"] == ""


def test_a_loaded_model_says_what_computes_it():
    async def scenario():
        store = ModelStore(Settings(models=("bundled",), engine="torch"), Meters())
        async with store.lease("bundled"):
            assert described_model(store, "bundled")["engine"] == {
                "name": "torch",
                "why": "it was asked for",
                "parts": dict.fromkeys(("encoder", "decoder", "ctc_head", "language_head"), "torch, fp32"),
            }
        await store.close(5)

    asyncio.run(scenario())

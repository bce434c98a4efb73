"""Models come when they are wanted and go when they are not."""

import asyncio

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.serving.metrics import Meters
from sprachbund.serving.models import ModelStore, described_model, identifier
from sprachbund.serving.schemas import RefusalError
from sprachbund.serving.settings import Limits, Settings, Timeouts
from tests.serving.support import tiny_model


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


def test_a_model_that_cannot_be_loaded_is_tried_again_next_time():
    async def scenario():
        tries = []

        def load(name):
            tries.append(name)
            if len(tries) == 1:
                raise SprachbundError("its weights are cut off")
            return tiny_model()

        store = ModelStore(Settings(models=("a",)), Meters(), loader=load)
        with pytest.raises(RefusalError, match="weights are cut off") as caught:
            async with store.lease("a"):
                pass
        assert caught.value.status == 503
        async with store.lease("a"):
            assert store.loaded == ["a"]
        await store.close(5)

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
    found = described_model(store, "bundled")
    assert (found["licence"], found["loaded"], found["engine"]) == ("CC-BY-SA-3.0", False, None)
    assert "de" in found["target_languages"]
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

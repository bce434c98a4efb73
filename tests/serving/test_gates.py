"""Keys, rates and the concurrency limiter, each by itself."""

import asyncio
import contextlib
import hmac
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Gauge

from sprachbund.errors import SprachbundError
from sprachbund.serving.admission import ConcurrencyLimiter, Intake, Rates, network_of
from sprachbund.serving.schemas import RefusalError, refusal_of
from sprachbund.serving.service import Keys, Service, bearer
from sprachbund.serving.settings import Limits, Settings, Timeouts

KEY = "correct-horse-battery"


def test_only_known_keys_pass_and_have_a_name_that_is_not_the_key(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\n\nanother-long-enough-key\n")
    keys = Keys.read(path)
    name = keys.check(KEY)
    assert name
    assert name not in KEY
    assert keys.check("another-long-enough-key") not in (None, name)
    for wrong in (None, "", KEY[:-1], KEY + "x", KEY.upper(), "ключ", "\udcff"):
        with pytest.raises(RefusalError) as caught:
            keys.check(wrong)
        assert caught.value.status == 401
        assert caught.value.headers() == {"www-authenticate": "Bearer"}


def test_a_changed_key_file_is_read_again_and_a_broken_one_is_not_taken(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n")
    service = Service(Settings(port=0, key_file=path))
    for number, (content, known) in enumerate(
        [("another-long-enough-key\n", "another-long-enough-key"), ("short\n", "another-long-enough-key")], 1
    ):
        path.write_text(content)
        os.utime(path, ns=(number, number))
        with caplog.at_level(logging.INFO):
            service.reload_keys()
        assert service.keys.check(known)
        with pytest.raises(RefusalError, match="key is not known"):
            service.keys.check(KEY)
    assert "the keys of before stay" in caplog.text


def test_all_keys_are_compared_by_a_comparison_that_takes_no_short_cut(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "sprachbund.serving.service.hmac.compare_digest",
        lambda a, b: compared.append((len(a), len(b))) or a == b,
    )
    Keys((KEY, "second-long-enough-key")).check(KEY)
    assert compared == [(32, 32), (32, 32)]


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "with a space in the key\n"])
def test_key_files_without_a_good_key_are_refused(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(SprachbundError, match="key"):
        Keys.read(tmp_path / "keys")
    with pytest.raises(SprachbundError, match="cannot be read"):
        Keys.read(tmp_path / "nowhere")


def test_bearer_headers():
    assert bearer(f"Bearer {KEY}") == bearer(f"bearer  {KEY} ") == KEY
    assert bearer(None) is bearer("Basic abc") is bearer("") is None


@given(st.lists(st.floats(0, 20), max_size=60), st.integers(1, 30))
def test_no_more_than_a_minutes_worth_and_what_has_flowed_in_since(gaps, per_minute):
    now = [0.0]
    rates, passed = Rates(per_minute, clock=lambda: now[0]), 0
    for gap in gaps:
        now[0] += gap
        with contextlib.suppress(RefusalError):
            rates.take("a")
            passed += 1
    assert passed <= per_minute + now[0] * per_minute / 60 + 1e-6


def test_one_client_does_not_use_up_anothers_rate_and_may_come_again():
    now = [0.0]
    rates = Rates(2, clock=lambda: now[0])
    rates.take("a")
    rates.take("a")
    with pytest.raises(RefusalError, match="2 requests in a minute") as caught:
        rates.take("a")
    rates.take("b")
    now[0] += caught.value.retry_after_s
    rates.take("a")


def test_places_are_taken_in_turn_and_the_queue_has_an_end():
    async def scenario():
        limiter = ConcurrencyLimiter(Limits(max_working=2, max_waiting=1), Gauge("g", "g", registry=None))
        most, now, refused = 0, 0, []

        async def one():
            nonlocal most, now
            try:
                async with limiter.working("a"):
                    now += 1
                    most = max(most, now)
                    await asyncio.sleep(0.01)
                    now -= 1
            except RefusalError as refusal:
                refused.append(refusal)

        await asyncio.gather(*(one() for _ in range(5)))
        assert most == 2
        assert [refusal.status for refusal in refused] == [429, 429]
        assert all("retry-after" in refusal.headers() for refusal in refused)
        assert limiter.taken == 0
        await one()

    asyncio.run(scenario())


def test_a_client_holds_its_share_of_the_places_and_the_next_goes_to_who_holds_fewest():
    async def scenario():
        limits = Limits(max_working=2, max_waiting=8, max_share=0.5)
        limiter, order, refused = ConcurrencyLimiter(limits, Gauge("g", "g", registry=None)), [], []
        end = asyncio.Event()

        async def one(client, number):
            try:
                async with limiter.working(client):
                    order.append((client, number))
                    await end.wait()
            except RefusalError as refusal:
                refused.append((client, refusal.code))

        tasks = [asyncio.create_task(one("greedy", n)) for n in range(8)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(one(client, n)) for n in range(2) for client in ("b", "c")]
        await asyncio.sleep(0)
        assert order == [("greedy", 0), ("b", 0)]  # half of the slots, whoever comes first
        assert refused == [("greedy", "share_used_up")] * 3  # half of those that wait
        assert limiter.taken == 2 + 4 + 3
        tasks[1].cancel()  # one that waits goes away
        end.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order[2:4] in ([("c", 0), ("greedy", 2)], [("greedy", 2), ("c", 0)])
        assert sorted(order) == sorted(
            [("greedy", n) for n in (0, 2, 3, 4)] + [(client, n) for client in "bc" for n in range(2)]
        )
        assert order.index(("b", 1)) < order.index(("greedy", 3))
        assert limiter.taken == 0

    asyncio.run(scenario())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40),
    st.integers(1, 4),
    st.floats(0.1, 1),
)
def test_places_are_never_too_many_and_none_gets_lost(steps, working, max_share):
    """Whoever comes, goes or is cut off, and in whatever order."""

    async def scenario():
        limits = Limits(max_working=working, max_waiting=5, max_share=max_share)
        limiter, tasks, at_work = ConcurrencyLimiter(limits, Gauge("g", "g", registry=None)), [], []

        async def one(client):
            with contextlib.suppress(RefusalError):
                async with limiter.working(client):
                    at_work.append(client)
                    try:
                        await asyncio.sleep(3600)
                    finally:
                        at_work.remove(client)

        for client, comes in steps:
            if comes or not tasks:
                tasks.append(asyncio.create_task(one(client)))
            else:
                tasks.pop(len(tasks) // 2).cancel()
            for _ in range(2 if comes else 1):  # after a cancellation, before it has been noticed everywhere
                await asyncio.sleep(0)
            assert len(at_work) <= working
            assert all(at_work.count(c) <= limits.share(working) for c in "abc")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert limiter.taken == 0
        async with limiter.working("a"):
            assert limiter.taken == 1

    asyncio.run(scenario())


def test_bodies_on_their_way_and_their_bytes_are_shared_too():
    intake = Intake(Limits(max_receiving=4, max_stored_bytes=100, max_share=0.5))
    with contextlib.ExitStack() as stack:
        for client in "aa":
            stack.enter_context(intake.receiving(client))
        with pytest.raises(RefusalError, match="one client's share"), intake.receiving("a"):
            pass
        for client in "bb":
            stack.enter_context(intake.receiving(client))
        for client, code in (("a", "queue_full"), ("c", "queue_full")):
            with pytest.raises(RefusalError, match="try again") as caught, intake.receiving(client):
                pass
            assert (caught.value.status, caught.value.code) == (429, code)
    assert intake.coming == 0
    intake.store("a", 50)
    intake.store("b", 30)
    for client, num_bytes in (("a", 1), ("b", 21), ("c", 21)):
        with pytest.raises(RefusalError, match="bytes of recordings"):
            intake.store(client, num_bytes)
    intake.release("a", 50)
    intake.store("c", 50)
    assert intake.stored_bytes == 80


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not an address", "not an address"),
    ],
)
def test_who_counts_as_one_client(address, network):
    assert network_of(address) == network


def test_errors_of_ours_say_nothing_of_their_inside():
    refusal = refusal_of(ValueError("/secret/path"))
    assert refusal.status == 500
    assert "secret" not in refusal.message
    assert refusal_of(SprachbundError("two\nlines")).message == "two lines"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Settings(port=70000),
        lambda: Settings(models=()),
        lambda: Settings(batch_size=0),
        lambda: Limits(max_live=0),
        lambda: Limits(max_duration_s=float("nan")),
        lambda: Limits(max_waiting=-1),
        lambda: Limits(max_share=1.5),
        lambda: Limits(max_share=0),
        lambda: Timeouts(resume_s=-1),
    ],
)
def test_settings_that_cannot_be_are_refused(make):
    with pytest.raises(SprachbundError, match=r"give|name"):
        make()


def test_every_check_compares_digests_of_one_length_with_those_of_all_keys(monkeypatch):
    """In constant time each: so no time tells how much of a key is right, nor which one it is."""
    known = [KEY, KEY * 3, "x" * 30]
    keys, compared = Keys(tuple(known)), []

    def counting(seen, other):
        compared.append((len(seen), len(other)))
        return compare(seen, other)

    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", counting)
    for key in (*known, KEY[:-1] + "x", "y" * len(KEY), KEY * 50):
        compared.clear()
        with (
            contextlib.nullcontext()
            if key in known
            else pytest.raises(RefusalError, match="key is not known")
        ):
            keys.check(key)
        assert compared == [(32, 32)] * len(known)

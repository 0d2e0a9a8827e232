"""One limit per provider account, in memory and on a real nats-server: replicas share it, and none exceeds it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from squadron.actors.thinking.account import AccountLog, Accounts
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, Usage
from squadron.actors.thinking.quota import BURST_S, LISTED_S, MOST_PAUSE_S, AccountState, Limits
from squadron.actors.thinking.tries import Grant
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MemoryServer
from squadron.config import Settings
from squadron.runtime.errors import ModelError
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.testing import ScriptedModel, now_s, turned_time
from tests.contract.conftest import ON_NATS, Peer, World, until
from tests.contract.own_server import OwnServer

MODEL: Model = ScriptedModel([])
REQUEST = ModelRequest((ChatMessage("user", "How many moons has Mars?"),), max_tokens=100)
#: Tokens of any request, as these tests count them.
INPUT = 50
#: Longer than anything here waits in earnest.
PLENTY_S = 300.0

Join = Callable[[str, Limits], Awaitable[Accounts]]


@pytest.fixture
async def join(world: World) -> AsyncIterator[Join]:
    """A replica's accounts, with limits for every model."""
    made: list[Accounts] = []

    async def join(name: str, limits: Limits) -> Accounts:
        made.append(accounts_of(await world.join(name), name, limits))
        return made[-1]

    yield join
    for each in made:
        await each.aclose()


def accounts_of(peer: Peer, name: str, limits: Limits) -> Accounts:
    limited: Mapping[str, Limits] = {"scripted": limits}
    return Accounts(peer.ports, limited, who=name, count=lambda _: INPUT)


class Provider:
    """A bucket that holds a minute's worth, and counts whom it would have refused.

    It is nearly empty: full it would bear with whoever takes too much for a while.
    """

    def __init__(self, per_minute: float) -> None:
        self.most, self.left = per_minute, 1.5 * BURST_S * per_minute / 60
        self.rate, self.at, self.used, self.refused = per_minute / 60, now_s(), 0.0, 0

    def use(self, units: float) -> None:
        now = now_s()
        self.left = min(self.most, self.left + (now - self.at) * self.rate) - units
        self.at, self.used = now, self.used + units
        self.refused += self.left < 0


async def call(accounts: Accounts, request: ModelRequest = REQUEST, **options: float) -> Grant:
    within_s = options.pop("within_s", PLENTY_S)
    return await accounts.admit(MODEL, request, within_s=within_s, **{k: int(v) for k, v in options.items()})


def check_took(world: World, began: float, at_most_s: float) -> None:
    """Time that is turned says exactly how long somebody waited; a busy machine's says nothing."""
    assert world.kind != "memory" or now_s() - began < at_most_s


def turn_of(*, output: int = 10, cache_read: int = 0) -> ModelTurn:
    return ModelTurn("two", usage=Usage(INPUT, output, cache_read=cache_read))


async def test_replicas_that_want_more_than_there_is_use_nearly_all_of_it_and_are_never_refused(
    world: World, join: Join
) -> None:
    # On the real server in earnest, so for less long.
    for_s, limits = (240.0, Limits(rpm=300)) if world.kind == "memory" else (8.0, Limits(rpm=1200))
    provider = Provider(limits.rpm or 0)
    replicas = [await join(f"r{number}", limits) for number in range(6)]
    began = now_s()

    async def work(accounts: Accounts) -> None:
        while now_s() - began < for_s:
            grant = await call(accounts)
            provider.use(1)
            await asyncio.sleep(0.2)
            grant.settle(REQUEST, turn_of())

    async with asyncio.TaskGroup() as group:
        for accounts in replicas:
            for _ in range(12):
                group.create_task(work(accounts))
    took_s = now_s() - began

    peer = await world.join("reader")
    writes = len([entry async for entry in peer.lite.read(peer.subjects.lite_of("model-account"))])
    assert provider.refused == 0
    assert provider.used >= 0.9 * provider.rate * took_s
    # Half a write per second and replica, and what each writes to begin and to end.
    assert writes <= 0.5 * took_s * len(replicas) + 4 * len(replicas)


async def test_a_429_that_one_replica_meets_pauses_all_of_them(join: Join) -> None:
    one, other = await join("one", Limits(rpm=60_000)), await join("other", Limits(rpm=60_000))
    # Both hold an allotment, so that nothing but the news of the pause can hold them.
    first = await call(one)
    (await call(other)).settle(REQUEST, turn_of())

    first.settle(REQUEST, None, ModelError("429", kind="limit", retry_after_s=3.0))
    paused_at = now_s()
    await until(lambda: _knows_of_pause(other))
    for accounts in (one, other):
        await call(accounts)
        assert now_s() - paused_at >= 2.9


async def _knows_of_pause(accounts: Accounts) -> bool:
    return any(lessee._paused_until for lessee in accounts._lessees.values())


async def test_a_long_pause_is_kept_to_by_those_that_come_later(world: World, join: Join) -> None:
    if world.kind != "memory":
        pytest.skip("it takes five minutes")
    limits = Limits(rpm=60_000)
    (await call(await join("one", limits))).settle(
        REQUEST, None, ModelError("429", kind="limit", retry_after_s=250.0)
    )
    began = now_s()
    await asyncio.sleep(200)

    await call(await join("other", limits))

    assert now_s() - began >= 250


#: A date, milliseconds, and what an own model may raise, in the place of seconds.
@pytest.mark.parametrize("told", [1_790_000_000.0, 30_000.0, math.inf, math.nan])
@pytest.mark.parametrize("limits", [Limits(), Limits(rpm=60_000)])
async def test_however_long_a_provider_says_a_pause_ends_and_a_call_finds_out(
    world: World, join: Join, limits: Limits, told: float
) -> None:
    if world.kind != "memory":
        pytest.skip("it takes five minutes")
    one, other = await join("one", limits), await join("other", limits)
    (await call(one)).settle(REQUEST, None, ModelError("429", kind="limit", retry_after_s=told))
    began = now_s()
    for accounts in (one, other):
        with pytest.raises(ModelError, match=r"not asked for 3\d\d s more, since .* 429") as caught:
            await call(accounts, within_s=60.0)
        assert "SQUADRON_MODEL_LIMITS" not in caught.value.hint

    for accounts in (one, other, await join("later", limits)):
        await call(accounts, within_s=2 * MOST_PAUSE_S)

    assert MOST_PAUSE_S <= now_s() - began < 2 * MOST_PAUSE_S


async def test_without_limits_nothing_is_written_and_a_429_still_pauses_all(world: World, join: Join) -> None:
    one, other = await join("one", Limits()), await join("other", Limits())
    grant = await call(one)
    await call(other)
    watcher = await world.join("watcher")
    assert await watcher.lite.latest(watcher.subjects.lite_of("model-account")) == []

    grant.settle(REQUEST, None, ModelError("429", kind="limit", retry_after_s=2.0))
    paused_at = now_s()
    await until(lambda: _knows_of_pause(other))
    await call(other)

    assert now_s() - paused_at >= 1.9


async def test_who_would_have_to_wait_longer_than_his_time_is_refused_at_once(world: World, join: Join) -> None:
    accounts = await join("one", Limits(rpm=6))
    # What may come at once is one call, and ten seconds later the next.
    await call(accounts)
    await call(accounts)
    began = now_s()

    with pytest.raises(ModelError, match="no room") as caught:
        await call(accounts, within_s=8.0)

    assert caught.value.kind == "limit"
    check_took(world, began, 4)


async def test_the_more_urgent_call_is_made_first_and_then_the_one_that_is_due_first(
    world: World, join: Join
) -> None:
    accounts = await join("one", Limits(rpm=600))
    made: list[str] = []

    async def ask(name: str, **options: float) -> None:
        await call(accounts, **options)
        made.append(name)

    async with asyncio.TaskGroup() as group:
        # More than may come at once, so that the rest stands in line.
        for _ in range(int(BURST_S * 10) + 5):
            group.create_task(ask("first", priority=9))
        await asyncio.sleep(0)
        group.create_task(ask("late", within_s=200))
        group.create_task(ask("soon", within_s=100))
        group.create_task(ask("urgent", priority=8, within_s=300))

    assert [name for name in made if name != "first"] == ["urgent", "soon", "late"]
    assert made[-3:] == ["urgent", "soon", "late"]


async def test_what_a_call_did_not_use_comes_back_and_what_came_from_the_cache_costs_nothing(
    world: World, join: Join
) -> None:
    # A minute's worth is what one call reserves of output, and two calls of input.
    accounts = await join("one", Limits(input_tpm=2 * INPUT, output_tpm=1_000))
    request = replace(REQUEST, max_tokens=1_000)
    began = now_s()

    for _ in range(6):
        grant = await call(accounts, request)
        grant.settle(request, turn_of(output=1, cache_read=INPUT))

    # Without that the output alone would have taken five minutes, the input two and a half.
    check_took(world, began, 6)


async def test_no_more_comes_back_than_was_booked_whatever_the_cache_gave(world: World, join: Join) -> None:
    if world.kind != "memory":
        pytest.skip("arithmetic, and it takes a minute")
    accounts = await join("one", Limits(input_tpm=2 * INPUT))
    (await call(accounts)).settle(REQUEST, turn_of(cache_read=20 * INPUT))
    began = now_s()

    for _ in range(3):
        (await call(accounts)).settle(REQUEST, turn_of())

    assert now_s() - began >= 2 * 30 - BURST_S - 1


async def test_tokens_that_are_counted_when_the_call_is_made_do_not_come_back(world: World, join: Join) -> None:
    if world.kind != "memory":
        pytest.skip("arithmetic, and it takes a minute")
    accounts = await join("one", Limits(tpm=INPUT + 100))
    began = now_s()

    for _ in range(3):
        (await call(accounts)).settle(REQUEST, turn_of(output=1))

    assert now_s() - began >= 2 * 60 - BURST_S - 1


async def test_a_call_that_was_never_made_costs_nothing(world: World, join: Join) -> None:
    accounts = await join("one", Limits(rpm=1))
    began = now_s()

    for _ in range(5):
        (await call(accounts)).settle(None, None)

    check_took(world, began, 10)


async def test_a_call_that_no_minute_has_room_for_is_refused_at_once(join: Join) -> None:
    accounts = await join("one", Limits(tpm=100))

    with pytest.raises(ModelError, match="150 tokens is more") as caught:
        await call(accounts)

    assert caught.value.retry_after_s == PLENTY_S


async def test_no_more_calls_are_under_way_than_may_be_and_a_newcomer_gets_his_part(join: Join) -> None:
    limits = Limits(concurrency=4)
    one, other = await join("one", limits), await join("other", limits)
    running, most, done = 0, 0, dict[str, int]()

    async def work(name: str, accounts: Accounts, times: int) -> None:
        nonlocal running, most
        for _ in range(times):
            grant = await call(accounts)
            running, most = running + 1, max(most, running + 1)
            await asyncio.sleep(0.05)
            running -= 1
            done[name] = done.get(name, 0) + 1
            grant.settle(REQUEST, turn_of())

    busy = [asyncio.create_task(work("one", one, 10_000)) for _ in range(8)]
    while done.get("one", 0) < 8:
        await asyncio.sleep(0.01)
    await asyncio.gather(*(work("other", other, 3) for _ in range(2)))
    for task in busy:
        task.cancel()
    await asyncio.wait(busy)

    assert done["other"] == 6
    assert most == 4


async def test_the_places_of_a_replica_that_died_come_back(world: World, join: Join) -> None:
    if world.kind != "memory":
        pytest.skip("it takes half a minute")
    limits = Limits(concurrency=1)
    dead, living = await join("dead", limits), await join("living", limits)
    await call(dead)
    await asyncio.sleep(1)
    for lessee in dead._lessees.values():  # as by SIGKILL: it says nothing any more
        lessee._closed = True
        assert lessee._serving is not None
        lessee._serving.cancel()
    began = now_s()

    await call(living)

    check_took(world, began, LISTED_S + 1)


async def test_a_replica_that_leaves_gives_back_what_it_had_left(world: World, join: Join) -> None:
    one = await join("one", Limits(rpm=60))
    for _ in range(3):
        await call(one)
    peer = await world.join("reader")
    key = peer.subjects.lite_of("model-account")

    await one.aclose()
    await one.aclose()

    entries = [entry async for entry in peer.lite.read(key)]
    assert b'"one"' in entries[0].data
    assert b'"one"' in entries[-1].data  # its calls are still under way
    assert entries[-1].data != entries[0].data


async def test_while_the_bus_is_away_each_replica_keeps_to_its_part_and_then_they_share_again() -> None:
    with turned_time():
        server, settings = MemoryServer("test"), Settings(env="test")
        limits = Limits(rpm=600)
        replicas = list[Accounts]()
        for name in ("one", "other"):
            place = server.place(AgentIdentity(id=name, type="test"), settings)
            replicas.append(Accounts(place.ports, {"scripted": limits}, who=name))
        for _ in range(2):  # each knows of the other
            for accounts in replicas:
                (await call(accounts)).settle(REQUEST, turn_of())
                await asyncio.sleep(3)
        server.cut()
        used, began = 0, now_s()

        async def work(accounts: Accounts) -> None:
            nonlocal used
            while now_s() - began < 60:
                with contextlib.suppress(ModelError):
                    (await call(accounts, within_s=20)).settle(REQUEST, turn_of())
                    used += 1

        await asyncio.gather(*(work(accounts) for accounts in replicas for _ in range(8)))

        # The burst, and the time in which they found out, apart.
        assert 0.75 * 600 <= used <= 600 + 10 * BURST_S + 10
        server.heal()
        before, began = used, now_s()
        await asyncio.gather(*(work(accounts) for accounts in replicas for _ in range(8)))
        assert 0.85 * 600 <= used - before <= 600 + 10 * BURST_S + 10
        for accounts in replicas:
            await accounts.aclose()


@pytest.mark.slow
async def test_a_server_that_is_killed_holds_nobody_up_and_its_state_is_used_again(tmp_path: Path) -> None:
    server, limits = OwnServer(tmp_path), Limits(rpm=6_000)
    server.start()
    places, replicas = list[Wiring](), list[Accounts]()
    try:
        settings = Settings(home=tmp_path, env="test", nats_url=server.url)
        for name in ("one", "other"):
            places.append(await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=True))
            ports = places[-1].ports
            replicas.append(Accounts(ports, {"scripted": limits}, who=name))
            (await call(replicas[-1])).settle(REQUEST, turn_of())
        server.stop()
        for _ in range(300):  # more than was booked
            await asyncio.gather(*(call(accounts, within_s=30) for accounts in replicas))
        server.start()
        restarted_at = time.time()
        key = places[0].ports.subjects.lite_of("model-account")

        async def is_shared_again() -> bool:
            await asyncio.gather(*(call(accounts, within_s=30) for accounts in replicas))
            entry = await places[0].ports.lite.last(key)
            return entry is not None and entry.time > restarted_at

        await until(is_shared_again, within_s=60)
    finally:
        for closing in (*replicas, *places):
            await closing.aclose()
        server.stop()


async def test_an_account_whose_place_was_closed_goes_on_alone(settings: Settings) -> None:
    wiring = await Wiring.open(settings, AgentIdentity(id="one", type="test"), create=True)
    ports = wiring.ports
    accounts = Accounts(ports, {"scripted": Limits(rpm=6_000)}, who="one")
    (await call(accounts)).settle(REQUEST, turn_of())

    with capture_logs() as logs:
        await wiring.aclose()
        for _ in range(300):  # more than was booked
            (await call(accounts, within_s=5)).settle(REQUEST, turn_of())

    assert "background.broke" not in [line["event"] for line in logs]
    await accounts.aclose()


@ON_NATS
async def test_many_calls_at_once_are_one_write(world: World, join: Join) -> None:
    accounts = await join("one", Limits(rpm=60_000))

    await asyncio.gather(*(call(accounts) for _ in range(200)))

    peer = await world.join("reader")
    written = [entry async for entry in peer.lite.read(peer.subjects.lite_of("model-account"))]
    assert len(written) == 1


async def test_of_changes_that_many_make_at_once_none_is_lost(world: World) -> None:
    peers = [await world.join(f"p{number}") for number in range(8)]
    logs = [
        AccountLog(peer.lite, peer.subjects.lite("models", "a"), peer.subjects.lite("models", "b"), peer.clock)
        for peer in peers
    ]

    def one_more(state: AccountState) -> tuple[AccountState, float]:
        count = state.next_at.get("requests", 0.0) + 1
        return replace(state, next_at={"requests": count}), count

    async def count(log: AccountLog) -> list[float]:
        return [await log.change(one_more) for _ in range(5)]

    counted = await asyncio.gather(*map(count, logs))

    assert sorted(each for counts in counted for each in counts) == [float(number) for number in range(1, 41)]

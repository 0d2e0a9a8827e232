"""Whoever stops waiting for the next item of an iterator can ask again, and loses and repeats nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from squadron import Context
from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.wiring import Wiring
from squadron.client.blocking import SyncSquad
from squadron.client.opening import Opening
from squadron.client.squad import Squad
from squadron.config import Settings
from squadron.runtime.steady import Steady
from squadron.runtime.streams.writer import Chunk, Nested
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.conftest import SOON_S, Replica, peer_of, until

#: How many items each iterator hands out, a time-out before, between and at any moment of each.
COUNT = 12
HANG_S = 60.0


class Counter(Agent):
    """Emits what it is told to."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[int] = asyncio.Queue()

    @topic("count.all")
    async def all(self) -> AsyncIterator[int]:
        """Numbers."""
        for _ in range(COUNT):
            yield await self.told.get()

    @topic("count.nested")
    async def nested(self, ctx: Context) -> int:
        """The numbers of another."""
        return len((await ctx.ask("count.all")).unwrap())


class Place:
    """A squad on a real server, and a replica of `Counter`; they need no Ray."""

    def __init__(self, squad: Squad, counter: Counter) -> None:
        self.squad, self.counter = squad, counter

    @classmethod
    async def open(cls, settings: Settings, stack: AsyncExitStack) -> Place:
        replica_wiring = await Wiring.open(settings, AgentIdentity(id="replica", type="test"), create=True)
        stack.push_async_callback(replica_wiring.aclose)
        replica = Replica(peer_of(replica_wiring), Counter())
        await replica.start()
        stack.push_async_callback(replica.turns.aclose)
        stack.push_async_callback(replica.pump.aclose)
        squad = Squad(await Wiring.open(settings, AgentIdentity(id="script", type="test"), create=True), settings)
        stack.push_async_callback(squad.aclose)
        counter = replica.agent
        assert isinstance(counter, Counter)
        return cls(squad, counter)


Tell = Callable[[int], Awaitable[Any]]
Opened = tuple[AsyncIterator[Any], Tell, Callable[[Any], Any]]


async def _lite(place: Place, **how: Any) -> Opened:
    lite = place.squad.lite("one", "owner")
    return lite.read(**how), lite.publish, lambda message: message.content


async def _exclusive(place: Place) -> Opened:
    return await _lite(place, exclusive="me")


async def _feed(place: Place) -> Opened:
    feed = place.squad.follow("owner")
    await feed.__aenter__()
    feed.add_all("first")
    # Of a topic of its own each, so that each is handed out by itself.
    topics = itertools.count()

    async def tell(number: int) -> None:
        await place.squad.lite(f"t{next(topics)}", "owner").publish(number)

    return aiter(feed), tell, lambda item: item[1][0].content


async def _told(place: Place, number: int) -> None:
    place.counter.told.put_nowait(number)


async def _chunks(place: Place) -> Opened:
    handle = await place.squad.submit("count.all")
    return aiter(handle.chunks()), lambda number: _told(place, number), lambda chunk: chunk


async def _stream(place: Place) -> Opened:
    return aiter(place.squad.stream("count.all")), lambda number: _told(place, number), lambda chunk: chunk


async def _stream_events(place: Place) -> Opened:
    events = aiter(place.squad.stream("count.all").events())
    return events, lambda number: _told(place, number), lambda event: isinstance(event, Chunk) and event.value


async def _nested_events(place: Place) -> Opened:
    events = aiter(place.squad.stream("count.nested", nested=True).events())
    return (
        events,
        lambda number: _told(place, number),
        lambda event: isinstance(event, Nested) and event.chunk.value,
    )


async def _subscribed(place: Place) -> Opened:
    events = await place.squad.subscribe("a.*")
    return (
        aiter(events),
        lambda number: place.squad.publish("a.b", number),
        lambda event: event.payload.content,
    )


async def _durable(place: Place) -> Opened:
    events = await place.squad.subscribe_durable("me", "a.*")

    def read(event: Any) -> Any:
        assert event.attempt == 1, "work on it began once"
        return event.message.payload.content

    return aiter(events), lambda number: place.squad.publish_durable("a.b", number), read


#: Whatever is iterated over in a program that uses us.
ITERATORS: dict[str, Callable[[Place], Awaitable[Opened]]] = {
    "lite reader": _lite,
    "exclusive lite reader": _exclusive,
    "lite feed": _feed,
    "chunks": _chunks,
    "stream": _stream,
    "events of a stream": _stream_events,
    "events of a nested stream": _nested_events,
    "subscription": _subscribed,
    "durable subscription": _durable,
}


@pytest.mark.parametrize("open_one", ITERATORS.values(), ids=ITERATORS)
async def test_who_stops_waiting_for_an_item_gets_it_the_next_time(
    settings: Settings, open_one: Callable[[Place], Awaitable[Opened]]
) -> None:
    async with AsyncExitStack() as stack:
        items, tell, read = await open_one(await Place.open(settings, stack))
        got: list[Any] = []
        for number in range(COUNT):
            # Cancelled at once, and in the middle of whatever is done for the next item.
            for turns in (0, 1, 2, 3, 5, 8, 13, 21):
                await _given_up(items, turns)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(items), 0.01)
            waiting = asyncio.ensure_future(_next(items))
            await asyncio.sleep(0)
            await tell(number)
            # The item and the cancellation come at about the same time.
            for _ in range(number * 3):
                await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                got.append(read(await waiting))
            if len(got) == number:
                got.append(read(await asyncio.wait_for(anext(items), HANG_S)))
            assert got == list(range(number + 1))


async def _next(items: AsyncIterator[Any]) -> Any:
    return await anext(items)


async def _given_up(items: AsyncIterator[Any], turns: int) -> None:
    waiting = asyncio.ensure_future(_next(items))
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_loop_that_ran_into_its_time_out_leaves_nothing_behind(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        place = await Place.open(settings, stack)
        opened = [await open_one(place) for name, open_one in ITERATORS.items() if "durable" not in name]
        before = asyncio.all_tasks()
        for _, tell, _read in opened:
            await tell(1)
        while opened:
            items, _, _ = opened.pop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    async for _item in items:
                        pass
            del items
        gc.collect()

        async def ended() -> bool:
            return not any(task.get_name() == "next items" for task in asyncio.all_tasks() - before)

        await until(ended, within_s=SOON_S)


# --- from a plain script -------------------------------------------------------------------------------


class AlarmError(Exception):
    """What a program's own signal handler raises."""


@pytest.fixture
def interrupts() -> Iterator[Callable[[float], None]]:
    """Have the main thread interrupted after a moment."""

    def interrupt(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda after_s: signal.setitimer(signal.ITIMER_REAL, after_s)  # type: ignore[func-returns-value]
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


async def _open(settings: Settings) -> Squad:
    return Squad(await Wiring.open(settings, AgentIdentity(id="script", type="test"), create=True), settings)


def _sync_feed(squad: SyncSquad) -> Iterator[Any]:
    feed = squad.follow("owner").__enter__()
    feed.add_all("first")
    return iter(feed)


SYNC: dict[str, tuple[Callable[[SyncSquad], Iterator[Any]], Callable[[SyncSquad, int], Any]]] = {
    "lite reader": (
        lambda squad: squad.lite("one", "owner").read(),
        lambda squad, number: squad.lite("one", "owner").publish(number),
    ),
    "exclusive lite reader": (
        lambda squad: squad.lite("one", "owner").read(exclusive="me"),
        lambda squad, number: squad.lite("one", "owner").publish(number),
    ),
    "lite feed": (_sync_feed, lambda squad, number: squad.lite(f"t{number}", "owner").publish(number)),
    "subscription": (lambda squad: squad.subscribe("a.*"), lambda squad, number: squad.publish("a.b", number)),
    "durable subscription": (
        lambda squad: squad.subscribe_durable("me", "a.*"),
        lambda squad, number: squad.publish_durable("a.b", number),
    ),
}


def _content(item: Any) -> Any:
    if isinstance(item, tuple):
        item = item[1][0]
    item = getattr(item, "message", None) or item
    return item.payload.content


@pytest.mark.parametrize(("read", "tell"), SYNC.values(), ids=SYNC)
def test_a_signal_while_an_item_is_waited_for_loses_none(
    settings: Settings,
    interrupts: Callable[[float], None],
    read: Callable[[SyncSquad], Iterator[Any]],
    tell: Callable[[SyncSquad, int], Any],
) -> None:
    squad = Opening(lambda: _open(settings)).__enter__()
    with contextlib.closing(squad):
        items = read(squad)
        for number in range(5):
            interrupts(0.02)
            with pytest.raises(AlarmError):
                next(items)
            tell(squad, number)
            assert _content(next(items)) == number


def test_threads_that_share_an_iterator_get_each_item_once(settings: Settings) -> None:
    squad = Opening(lambda: _open(settings)).__enter__()
    with contextlib.closing(squad):
        events, got = squad.subscribe("a.*"), list[int]()
        threads = [
            threading.Thread(target=lambda: got.extend(_content(next(events)) for _ in range(5))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for number in range(20):
            squad.publish("a.b", number)
        for thread in threads:
            thread.join(HANG_S)
        assert sorted(got) == list(range(20))


# --- the iterator itself -------------------------------------------------------------------------------


async def _counting(most: int) -> AsyncIterator[int]:
    for number in range(most):
        await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize("ahead", [0, 16])
async def test_several_who_wait_get_each_item_once_and_all_are_told_of_the_end(ahead: int) -> None:
    steady, got = Steady(_counting(50), ahead=ahead), list[int]()

    async def read() -> None:
        async for item in steady:
            got.append(item)

    async with asyncio.timeout(HANG_S):
        await asyncio.gather(*(read() for _ in range(3)))
    assert got == list(range(50))


async def test_an_error_comes_behind_the_items_before_it_and_once() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no more")

    steady = Steady(failing(), ahead=16)
    assert await anext(steady) == 1
    with pytest.raises(ValueError, match="no more"):
        await anext(steady)
    with pytest.raises(StopAsyncIteration):
        await anext(steady)


async def test_who_waits_when_it_is_closed_is_told() -> None:
    async def never() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    steady = Steady(never())
    waiting = asyncio.ensure_future(_next(steady))
    await asyncio.sleep(0)
    await steady.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting

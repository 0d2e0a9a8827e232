"""An id of the caller's own is one task, whoever asks under it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.client.stream import Stream
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import MAX_WITHIN_S, AskOptions
from squadron.runtime.asking.task import claim_id
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.running.context import Context, TurnContext
from squadron.runtime.streams.writer import Ended
from squadron.runtime.wire.envelope import MAX_NAME
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Outcome, Rejected, TimedOut, Undeliverable
from tests.contract.conftest import SOON_S, Peer, Serve, World, until


class Counter(Agent):
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    @topic("counter.ask")
    async def ask(self) -> int:
        self.asked += 1
        await self.go.wait()
        return self.asked


async def test_two_processes_that_ask_under_one_id_hear_of_one_task(
    world: World, peer: Peer, serve: Serve
) -> None:
    counter = Counter()
    await serve(counter)
    other = await world.join("other")
    named = AskOptions(task_id="mine", within_s=SOON_S)
    waiting = [
        asyncio.create_task(asker.caller.outcome(await asker.caller.submit("counter.ask", {}, named)))
        for asker in (peer, other)
    ]

    counter.go.set()

    assert [outcome.unwrap() for outcome in await asyncio.gather(*waiting)] == [1, 1]
    # Who comes when all is over hears the same.
    assert (await other.caller.ask("counter.ask", {}, named)).unwrap() == 1
    assert counter.asked == 1


async def test_a_server_that_goes_while_a_caller_begins_to_listen_is_waited_for(
    peer: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter()
    counter.go.set()
    await serve(counter)
    follow, failures = peer.lite.follow, [BusUnavailableError("connection reset")]

    async def fails_once(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await follow(*args, **options)

    monkeypatch.setattr(peer.lite, "follow", fails_once)

    outcome = await peer.caller.ask("counter.ask", {}, AskOptions(task_id="mine", within_s=SOON_S))

    assert outcome.unwrap() == 1
    assert not failures


class Shop(Agent):
    """Two things to do under one order number."""

    def __init__(self) -> None:
        self.checked = self.shipped = 0

    @topic("shop.check")
    async def check(self, item: str) -> str:
        self.checked += 1
        return f"{item} is there"

    @topic("shop.ship")
    async def ship(self, item: str) -> str:
        self.shipped += 1
        return f"{item} is sent"


async def test_an_id_that_stands_for_another_task_is_rejected_in_any_process(
    world: World, peer: Peer, serve: Serve
) -> None:
    shop, order = Shop(), AskOptions(task_id="order-17", within_s=SOON_S)
    await serve(shop)
    assert (await peer.caller.ask("shop.check", {"item": "tea"}, order)).unwrap() == "tea is there"

    for asker in (peer, await world.join("other")):
        for topic_, item, wanted in (
            ("shop.ship", "tea", "'shop.check'"),
            ("shop.check", "milk", "another input"),
        ):
            refused = await asker.caller.ask(topic_, {"item": item}, order)
            assert isinstance(refused, Rejected)
            assert "'order-17'" in refused.reason
            assert wanted in refused.reason
        # The same is one task, as before.
        assert (await asker.caller.ask("shop.check", {"item": "tea"}, order)).unwrap() == "tea is there"
    assert shop.shipped == 0


class Clerk(Agent):
    """Asks the shop for others, from an async and from a plain handler."""

    @topic("clerk.asks")
    async def asks(self, ctx: TurnContext, topic_: str, item: str, owner: str) -> dict[str, str]:
        handle = await ctx.submit_for(owner, topic_, {"item": item}, task_id="order-17")
        return _told(await handle.outcome())

    @topic("clerk.waits")
    def waits(self, ctx: Context, topic_: str, item: str, owner: str) -> dict[str, str]:
        assert not owner
        return _told(ctx.sync.submit(topic_, {"item": item}, task_id="order-17").outcome())


def _told(outcome: Outcome) -> dict[str, str]:
    return {"kind": outcome.kind, "said": outcome.reason or outcome.unwrap()}


ORDER = AskOptions(task_id="order-17", within_s=SOON_S)
Way = Callable[[Caller, str, str, str], Awaitable[dict[str, str]]]


async def _ask(caller: Caller, topic_: str, item: str, owner: str) -> dict[str, str]:
    return _told(await (await caller.submit(topic_, {"item": item}, ORDER, owner=owner)).outcome())


async def _submit(caller: Caller, topic_: str, item: str, owner: str) -> dict[str, str]:
    handle = await caller.submit(topic_, {"item": item}, ORDER, owner=owner)
    # Taken up by its ticket, as another process does.
    return _told(await handle.outcome() if handle.done else await caller.resume(handle.ticket).outcome())


async def _stream(caller: Caller, topic_: str, item: str, owner: str) -> dict[str, str]:
    stream = Stream(partial(caller.submit, topic_, {"item": item}, ORDER, owner=owner))
    (end,) = [each async for each in stream.events() if isinstance(each, Ended)]
    return _told(end.outcome)


def _by_the(handler: str) -> Way:
    async def way(caller: Caller, topic_: str, item: str, owner: str) -> dict[str, str]:
        content = {"topic_": topic_, "item": item, "owner": owner}
        told: dict[str, str] = (await caller.ask(handler, content, AskOptions(within_s=SOON_S))).unwrap()
        return told

    return way


@pytest.mark.parametrize(
    ("way", "owner"),
    [
        *((way, owner) for way in (_ask, _submit, _stream) for owner in ("", "order")),
        # Under an owner only a run asks from a handler, whose ids are of its own making.
        *((_by_the(handler), "") for handler in ("clerk.asks", "clerk.waits")),
    ],
)
async def test_an_id_stands_for_one_task_by_whichever_way_it_is_asked_and_under_whichever_owner(
    way: Way, owner: str, world: World, peer: Peer, serve: Serve
) -> None:
    shop = Shop()
    await serve(shop, name="shop")
    await serve(Clerk(), name="clerk")
    other = await world.join("other")
    assert await way(peer.caller, "shop.check", "tea", owner) == {"kind": "result", "said": "tea is there"}

    for caller in (peer.caller, other.caller):
        for topic_, item, wanted in (
            ("shop.ship", "tea", "'order-17' stands for 'shop.check'"),
            ("shop.check", "milk", "another input"),
        ):
            told = await way(caller, topic_, item, owner)
            assert told["kind"] == "rejected"
            assert wanted in told["said"]
        # The same is one task, as before.
        assert (await way(caller, "shop.check", "tea", owner))["said"] == "tea is there"
        # Its outcome went to one owner: under another one nothing would come.
        assert "another owner" in (await _ask(caller, "shop.check", "tea", "another"))["said"]
    assert shop.shipped == 0
    assert shop.checked == 1


@pytest.mark.parametrize(("first_s", "second_s"), [(1, 60), (60, 1)])
async def test_each_who_asks_under_one_id_waits_as_long_as_they_said(
    world: World, peer: Peer, serve: Serve, first_s: float, second_s: float
) -> None:
    counter, other = Counter(), await world.join("other")
    await serve(counter)
    handles = [
        await asker.caller.submit("counter.ask", {}, AskOptions(task_id="mine", within_s=within_s))
        for asker, within_s in ((other, 60), (peer, first_s), (peer, second_s))
    ]
    short, long = sorted(handles[1:], key=lambda each: each.deadline.at_ms)
    waiting = asyncio.gather(long.outcome(), handles[0].outcome())

    assert isinstance(await short.outcome(), TimedOut)
    assert not waiting.done()
    counter.go.set()

    assert [outcome.unwrap() for outcome in await waiting] == [1, 1]
    assert counter.asked == 1


async def test_the_longest_time_and_the_longest_id_are_taken(peer: Peer, serve: Serve) -> None:
    await serve(Shop())
    longest = AskOptions(task_id="t" * MAX_NAME, within_s=MAX_WITHIN_S, start_within_s=MAX_WITHIN_S)

    assert (await peer.caller.ask("shop.ship", {"item": "tea"}, longest)).unwrap() == "tea is sent"
    # That is kept as long, too.
    again = await peer.caller.submit("shop.check", {"item": "tea"}, AskOptions(within_s=MAX_WITHIN_S))
    assert (await again.cancel()).kind in ("cancelled", "result")


async def test_an_id_is_taken_while_its_task_runs(peer: Peer, serve: Serve) -> None:
    counter, shop, mine = Counter(), Shop(), AskOptions(task_id="mine", within_s=SOON_S)
    await serve(counter)
    await serve(shop, name="shop")
    first = await peer.caller.submit("counter.ask", {}, mine)

    other = await peer.caller.ask("shop.ship", {"item": "tea"}, mine)

    assert isinstance(other, Rejected)
    counter.go.set()
    assert (await peer.caller.outcome(first)).unwrap() == 1


class Narrow(Counter):
    """Takes one task at a time, and lets none wait."""

    name = "narrow"
    mailbox_limit = 1
    when_full = "reject"


async def test_what_was_let_in_is_not_refused_when_it_is_asked_again_while_the_mailbox_is_full(
    world: World, peer: Peer, serve: Serve
) -> None:
    narrow, other, mine = Narrow(), await world.join("other"), AskOptions(task_id="mine", within_s=SOON_S)
    await serve(narrow)
    first = await peer.caller.submit("counter.ask", {}, mine)

    assert isinstance(await other.caller.ask("counter.ask", {}, replace(mine, task_id="another")), Rejected)
    again = await other.caller.submit("counter.ask", {}, mine)
    narrow.go.set()

    assert [(await each.outcome()).unwrap() for each in (first, again)] == [1, 1]
    assert narrow.asked == 1


async def test_an_outcome_is_heard_again_under_its_id_though_nobody_serves_the_topic_any_more(
    world: World, peer: Peer, serve: Serve
) -> None:
    counter, other, mine = Counter(), await world.join("other"), AskOptions(task_id="mine", within_s=SOON_S)
    counter.go.set()
    replica = await serve(counter)
    assert (await peer.caller.ask("counter.ask", {}, mine)).unwrap() == 1
    await (await world.join("bridge-2", bridge=True)).registry.withdraw(replica.spec.name)

    async def is_gone() -> bool:
        return other.registry.find("counter.ask") is None

    await until(is_gone)
    assert (await other.caller.ask("counter.ask", {}, mine)).unwrap() == 1
    for changed in ({"task_id": "another"}, {"sealed": True}):
        assert isinstance(await other.caller.ask("counter.ask", {}, replace(mine, **changed)), Undeliverable)


async def test_a_call_that_was_cancelled_while_it_was_sent_leaves_nothing_behind(peer: Peer, serve: Serve) -> None:
    counter, held = Counter(), asyncio.Event()
    counter.go.set()
    await serve(counter)
    put, mine = peer.queue.put, AskOptions(task_id="mine", within_s=SOON_S)

    class Held:
        """A server that takes nothing for now."""

        async def put(self, *args: Any, **how: Any) -> None:
            await held.wait()
            await put(*args, **how)

        def __getattr__(self, name: str) -> Any:
            return getattr(queue, name)

    queue = peer.queue
    held_up: Any = Held()
    peer.caller.ports = replace(peer.ports, queue=held_up)
    first = asyncio.create_task(peer.caller.submit("counter.ask", {}, mine))
    second = asyncio.create_task(peer.caller.submit("counter.ask", {}, mine))
    unnamed = asyncio.create_task(peer.caller.submit("counter.ask", {}, AskOptions(within_s=SOON_S)))
    while not peer.caller._sending:
        await asyncio.sleep(0.01)
    for each in (first, unnamed):
        each.cancel()
    await asyncio.wait([first, unnamed])
    held.set()

    assert (await (await second).outcome()).unwrap() == 1
    assert counter.asked == 1
    assert not peer.caller._waiting
    assert not peer.caller._sending


async def test_a_server_that_goes_while_an_id_is_noted_is_waited_for(peer: Peer, serve: Serve) -> None:
    shop, order = Shop(), AskOptions(task_id="order-18", within_s=SOON_S)
    await serve(shop)
    lite, failures = peer.caller.ports.lite, ["before it is stored", "after"]

    class Lossy:
        """A journal whose answers get lost."""

        async def append(self, *args: Any, **how: Any) -> int:
            lost = failures.pop(0) if failures else ""
            if lost == "before it is stored":
                raise BusUnavailableError("the connection was lost meanwhile")
            seq = await lite.append(*args, **how)
            if lost:
                raise BusUnavailableError("the connection was lost meanwhile")
            return seq

        def __getattr__(self, name: str) -> Any:
            return getattr(lite, name)

    lossy: Any = Lossy()
    peer.caller.ports = replace(peer.ports, lite=lossy)

    assert (await peer.caller.ask("shop.ship", {"item": "tea"}, order)).unwrap() == "tea is sent"
    assert not failures
    assert shop.shipped == 1


async def test_an_id_whose_note_lapses_while_it_is_looked_at_is_noted_anew(peer: Peer) -> None:
    lite, key = peer.lite, peer.subjects.lite("mine", "asked")
    await lite.append(key, b'{"topic": "shop.check", "input": ""}', ttl_s=60)

    class Lapsing:
        """A journal whose entries end right before they are read."""

        async def last(self, key: str) -> Entry | None:
            await lite.erase(key)
            return await lite.last(key)

        def __getattr__(self, name: str) -> Any:
            return getattr(lite, name)

    reply_to, deadline = peer.subjects.lite("mine", "mine"), Deadline.after(60, peer.clock)
    handle, lapsing = Handle("mine", "shop.ship", reply_to, deadline, peer.caller), cast("Journal", Lapsing())

    refusal = await claim_id(lapsing, peer.subjects, handle, {}, keep_s=60)

    assert refusal == ""
    note = await lite.last(key)
    assert note is not None
    assert json.loads(note.data)["topic"] == "shop.ship"

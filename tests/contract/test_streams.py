"""Streams: nothing that a task emits is lost, comes twice or out of order without a word."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest

from squadron import Agent, Context, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MemoryJournal
from squadron.client.stream import Stream
from squadron.config import Settings
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.asking.plain import plainly
from squadron.runtime.errors import BusUnavailableError, SquadClosedError, SquadronError, StreamGapError
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.store.claims import Claims
from squadron.runtime.streams import trail
from squadron.runtime.streams import writer as streams
from squadron.runtime.streams.chunks import StreamReader
from squadron.runtime.streams.writer import WINDOW, Chunk, Ended, Nested, Restarted, StreamWriter
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Cancelled, DeadLettered, Result
from tests.conftest import HEARTBEAT_S, LEASE_S, kill
from tests.contract.conftest import ON_NATS, SOON_S, Peer, Serve, World, stand_in, until


class Teller(Agent):
    """Tells stories in chunks."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.late: asyncio.Task[None] | None = None

    @topic("tell.words")
    async def words(self, count: int, context: Context) -> int:
        for i in range(count):
            await context.emit(i)
        self.told.set()
        return count

    @topic("tell.twice")
    async def twice(self, context: Context) -> str:
        await context.emit(f"attempt {context.attempt}")
        if context.attempt == 1:
            raise RuntimeError("once more")
        await context.emit("done")
        return "told"

    @topic("tell.broken", max_attempts=1)
    async def broken(self, context: Context) -> None:
        await context.emit("so far")
        raise RuntimeError("no further")

    @topic("tell.endless")
    async def endless(self, context: Context) -> None:
        await context.emit("and so on")
        self.told.set()
        await asyncio.Event().wait()

    @topic("tell.mixed")
    async def mixed(self, context: Context) -> None:
        await asyncio.gather(context.emit("x" * 600_000), *(context.emit(i) for i in range(10)))

    @topic("tell.late")
    async def late_words(self, context: Context) -> None:
        await context.emit("in time")

        async def emit_late() -> None:
            await self.told.wait()
            await context.emit("too late")

        self.late = asyncio.create_task(emit_late())

    @topic("tell.nothing")
    async def nothing(self) -> str:
        return "silence"

    @topic("tell.parent")
    async def parent(self, context: Context) -> str:
        await context.emit("before")
        await context.ask("tell.child", {"name": "first"}, within_s=SOON_S)
        await context.emit("between")
        await context.ask("tell.child", {"name": "second"}, within_s=SOON_S)
        return "all"

    @topic("tell.hasty")
    async def hasty(self, context: Context) -> str:
        """Does not wait for the task that it asks."""
        await context.submit("tell.endless", {}, within_s=6 * SOON_S)
        await self.told.wait()
        return "gone"

    @topic("tell.child")
    async def child(self, name: str, context: Context) -> AsyncIterator[str]:
        yield f"{name} child"
        await context.ask("tell.grandchild", within_s=SOON_S)
        yield f"{name} child again"

    @topic("tell.grandchild")
    async def grandchild(self) -> AsyncIterator[str]:
        yield "grandchild"


@pytest.fixture
async def teller(serve: Serve) -> Teller:
    agent = Teller()
    await serve(agent)
    return agent


@pytest.fixture
async def client(world: World, teller: Teller) -> Peer:
    """Somebody who asks; `teller` is being served."""
    return await world.join("client")


@pytest.fixture
def key(peer: Peer) -> str:
    return peer.subjects.lite("reader", "one")


def writer_of(peer: Peer, key: str, *, attempt: int = 1, redriven: int = 0) -> StreamWriter:
    metadata = {"redriven": redriven} if redriven else None
    task = AgentMessage.new("task", peer.caller.ports.identity, id="task", metadata=metadata)
    return StreamWriter(peer.caller.ports, key, task, attempt)


def reader_of(peer: Peer, key: str, *, live: bool = False) -> StreamReader:
    return StreamReader(peer.lite, peer.claims, key, live=live)


async def collect(events: Any, seen: list[Any]) -> list[Any]:
    async with asyncio.timeout(3 * SOON_S):
        async for event in events:
            seen.append(event)  # noqa: PERF401 - it is kept if the rest is lost
    return seen


async def all_of(events: Any) -> list[Any]:
    return await collect(events, [])


async def values_of(peer: Peer, key: str, *, live: bool = False) -> list[Any]:
    return [event.value if isinstance(event, Chunk) else event for event in await events_of(peer, key, live=live)]


async def events_of(peer: Peer, key: str, *, live: bool = False) -> list[Any]:
    return await all_of(reader_of(peer, key, live=live).events())


async def put(peer: Peer, key: str, type: str = "stream", **payload: Any) -> int:
    """Store one message as a producer of any kind may do."""
    message = {
        "id": os.urandom(8).hex(),
        "timestamp": 0.0,
        "version": "1.0",
        "type": type,
        "source": {"id": "stranger"},
        "context": {"conversationId": "c"},
        "payload": payload,
    }
    return await peer.lite.append(key, json.dumps(message).encode())


async def end(peer: Peer, key: str, attempt: int = 1) -> None:
    """Store the outcome that ends a stream."""
    await put(peer, key, "result", content=Result(attempt=attempt).to_content())


async def stored(peer: Peer, key: str) -> list[dict[str, Any]]:
    """All messages of a lite topic, as they stand there."""
    return [json.loads(entry.data) async for entry in peer.lite.read(key)]


async def lose(world: World, peer: Peer, key: str, is_lost: Callable[[dict[str, Any]], bool]) -> None:
    """Take messages out of the store for good, as no writer or reader of ours ever does."""
    lost = [e.seq async for e in peer.lite.read(key) if is_lost(json.loads(e.data)["payload"])]
    assert lost
    if isinstance(peer.lite, MemoryJournal):
        peer.lite._kept.entries = [each for each in peer.lite._kept.entries if each.entry.seq not in lost]
        return
    assert world.settings is not None
    wiring = await Wiring.open(world.settings, AgentIdentity(id="thief", type="test"))
    for seq in lost:
        stream = f"squadron-{world.settings.env}-lite"
        answer = await wiring.connection.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq})
        assert answer.get("success")
    await wiring.aclose()


# --- what is stored ----------------------------------------------------------------------------------------


async def test_chunks_are_numbered_and_ended_by_a_counted_message_before_the_outcome(client: Peer) -> None:
    handle = await client.caller.submit("tell.words", {"count": 3})
    await handle.outcome()

    messages = await stored(client, handle.reply_to)

    assert [message["type"] for message in messages] == ["stream"] * 4 + ["result"]
    payloads = [message["payload"] for message in messages[:4]]
    run = payloads[0]["run"]
    common = {"attempt": 1, "epoch": 1, "run": run}
    assert payloads == [
        {"sequenceNumber": 0, "isFirst": True, "isFinal": False, "chunk": 0, **common},
        {"sequenceNumber": 1, "isFirst": False, "isFinal": False, "chunk": 1, **common},
        {"sequenceNumber": 2, "isFirst": False, "isFinal": False, "chunk": 2, **common},
        {"sequenceNumber": 3, "isFirst": False, "isFinal": True, "count": 3, "end": "result", **common},
    ]
    assert all(message["correlationId"] == handle.task_id for message in messages[:4])


async def test_who_emits_nothing_has_no_stream(client: Peer) -> None:
    handle = await client.caller.submit("tell.nothing", {})
    await handle.outcome()

    assert [message["type"] for message in await stored(client, handle.reply_to)] == ["result"]
    assert await all_of(handle.events()) == [Ended(await handle.outcome(), 0)]


@ON_NATS
async def test_an_outcome_that_nothing_came_before_is_had_without_its_stream(
    client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await client.caller.submit("tell.nothing", {})
    outcome = await plainly(handle)
    assert outcome is not None
    assert outcome.unwrap() == "silence"

    # As soon as a chunk is heard, and not at the end, which never comes here.
    handle = await client.caller.submit("tell.endless", {}, AskOptions(within_s=6 * SOON_S))
    assert await plainly(handle) is None
    assert not handle.done
    assert await anext(handle.chunks()) == "and so on"
    await handle.cancel()

    # Of the live messages the outcome alone arrives: what comes with it says that something was before.
    hear = Handle._hear
    monkeypatch.setattr(Handle, "_hear", lambda self, heard: b'"result"' in heard.data and hear(self, heard))
    handle = await client.caller.submit("tell.words", {"count": 2})
    assert await plainly(handle) is None
    assert await all_of(handle.chunks()) == [0, 1]


async def test_who_waits_for_an_outcome_that_does_not_come_is_told_when_its_time_is_over(peer: Peer) -> None:
    await peer.registry.advertise(AgentSpec.of(Teller).card())
    await stand_in(peer, "teller", "teller-1")
    await peer.queue.declare(Mailbox("teller", ("tell.nothing",), 30.0))
    handle = await peer.caller.submit("tell.nothing", {}, AskOptions(within_s=0.2))
    assert await plainly(handle) is None
    assert (await handle.outcome()).kind == "timed_out"


async def test_events_are_numbered_chunks_and_the_outcome_at_the_end(client: Peer) -> None:
    handle = await client.caller.submit("tell.words", {"count": 600})

    events = await all_of(handle.events())

    assert events[:-1] == [Chunk(i, i, 1, 1) for i in range(600)]
    assert events[-1] == Ended(await handle.outcome(), 600)
    assert await all_of(handle.events()) == events
    assert await all_of(handle.chunks()) == list(range(600))


async def test_a_stream_has_its_events_and_then_its_outcome(client: Peer) -> None:
    stream = Stream(lambda: client.caller.submit("tell.words", {"count": 2}))

    *chunks, ended = [event async for event in stream.events()]

    assert chunks == [Chunk(0, 0, 1, 1), Chunk(1, 1, 1, 1)]
    assert ended == Ended(await stream.outcome(), 2)
    assert await all_of(stream) == [0, 1]


async def test_a_failed_attempt_ends_its_stream_and_the_next_begins_anew(client: Peer) -> None:
    handle = await client.caller.submit("tell.twice", {}, AskOptions(within_s=SOON_S))

    events = await all_of(handle.events())

    outcome = await handle.outcome()
    assert outcome.unwrap() == "told"
    assert events == [
        Chunk("attempt 1", 0, 1, 1),
        Restarted(2, 2),
        Chunk("attempt 2", 0, 2, 2),
        Chunk("done", 1, 2, 2),
        Ended(outcome, 2),
    ]
    finals = [m["payload"] for m in await stored(client, handle.reply_to) if m["payload"].get("isFinal")]
    assert [(final["end"], final["count"], final["epoch"]) for final in finals] == [
        ("again", 1, 1),
        ("result", 2, 2),
    ]


async def test_a_task_that_fails_for_good_ends_its_stream(client: Peer) -> None:
    handle = await client.caller.submit("tell.broken", {}, AskOptions(within_s=SOON_S))

    chunk, ended = await all_of(handle.events())

    assert chunk == Chunk("so far", 0, 1, 1)
    assert isinstance(ended.outcome, DeadLettered)
    assert (await stored(client, handle.reply_to))[1]["payload"]["end"] == "dead_lettered"


async def test_a_cancelled_task_ends_its_stream(client: Peer, teller: Teller) -> None:
    handle = await client.caller.submit("tell.endless", {}, AskOptions(within_s=SOON_S))
    following = asyncio.create_task(all_of(handle.events()))
    await teller.told.wait()

    await handle.cancel()

    chunk, ended = await following
    assert chunk == Chunk("and so on", 0, 1, 1)
    assert isinstance(ended.outcome, Cancelled)
    assert (await stored(client, handle.reply_to))[1]["payload"]["end"] == "cancelled"


async def test_chunks_keep_their_order_though_one_goes_to_the_vault(client: Peer) -> None:
    handle = await client.caller.submit("tell.mixed", {})

    assert await all_of(handle.chunks()) == ["x" * 600_000, *range(10)]
    assert "claim" in (await stored(client, handle.reply_to))[0]["payload"]


async def test_after_the_handler_has_returned_nothing_is_emitted(client: Peer, teller: Teller) -> None:
    handle = await client.caller.submit("tell.late", {})
    await handle.outcome()

    teller.told.set()

    assert teller.late is not None
    with pytest.raises(SquadronError, match="has ended"):
        await teller.late
    assert await all_of(handle.chunks()) == ["in time"]


# --- in order, repaired, or reported -----------------------------------------------------------------------


class Deaf:
    """A journal whose live messages are lost, as `is_lost` says."""

    def __init__(self, journal: Any, is_lost: Callable[[Entry], bool]) -> None:
        self._journal, self._is_lost = journal, is_lost
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def follow(self, pattern: str, sink: Callable[[Entry], None], **options: Any) -> Subscription:
        def hear(entry: Entry) -> None:
            if self._is_lost(entry):
                self.lost += 1
            else:
                sink(entry)

        following: Subscription = await self._journal.follow(pattern, hear, **options)
        return following


@pytest.mark.parametrize("lost", ["some", "the last", "all"])
async def test_a_live_message_that_was_lost_is_read_from_the_store(
    peer: Peer, key: str, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What came before another is missed as soon as that comes; all else is looked for.
    monkeypatch.setattr(trail, "UNHEARD_S", 60.0 if lost == "some" else 0.2)

    def is_lost(entry: Entry) -> bool:
        last = b'"result"' in entry.data
        return lost == "all" or (last if lost == "the last" else not last and entry.seq % 3 == 0)

    deaf = Deaf(peer.lite, is_lost)
    reader = StreamReader(deaf, peer.claims, key)  # type: ignore[arg-type]
    following = asyncio.create_task(all_of(reader.events()))
    writer = writer_of(peer, key)
    for i in range(50):
        await writer.write(i)
        await asyncio.sleep(0)
    await writer.finish("result")
    await end(peer, key)

    assert [chunk.value for chunk in await following] == list(range(50))
    assert deaf.lost


async def test_who_hears_nothing_looks_into_the_store_ever_more_seldom(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand open streams that each looked every few seconds kept a process busy with nothing else."""
    monkeypatch.setattr(trail, "UNHEARD_S", 0.01)
    monkeypatch.setattr(trail, "LONGEST_UNHEARD_S", 0.04)
    pauses, times = list[float](), 4
    following = trail.Trail(peer.lite, key)
    more = following._more

    async def noted() -> bool:
        pauses.append(following._unheard_s)
        if len(pauses) == times:
            await peer.lite.append(key, b"at last")
        return await more()

    monkeypatch.setattr(following, "_more", noted)
    async with asyncio.timeout(SOON_S), aclosing(following.entries()) as entries:
        assert (await anext(entries)).data == b"at last"
    assert pauses[:times] == [0.01, 0.02, 0.04, 0.04]


async def test_a_trail_shows_every_entry_though_every_third_is_not_heard(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sequence of the entry before, which the server tells: whoever the producer, whatever the bytes."""
    monkeypatch.setattr(trail, "UNHEARD_S", 60.0)
    deaf = Deaf(peer.lite, lambda entry: entry.data in (b"1", b"4", b"7", b"8"))
    following = trail.Trail(deaf, key).entries()  # type: ignore[arg-type]
    seen = []
    await peer.lite.append(key, b"0")
    async with asyncio.timeout(SOON_S):
        seen.append((await anext(following)).data)
        for i in range(1, 10):
            await peer.lite.append(key, b"%d" % i)
        seen += [(await anext(following)).data for _ in range(9)]
    await following.aclose()

    assert seen == [b"%d" % i for i in range(10)]
    assert deaf.lost == 4


async def test_a_trail_holds_a_few_entries_for_who_is_slow_and_has_the_rest_from_the_store(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "UNHEARD_S", 60.0)
    monkeypatch.setattr(trail, "MOST_HELD", 4)
    deaf = Deaf(peer.lite, lambda _: False)
    following = trail.Trail(deaf, key)  # type: ignore[arg-type]
    entries = following.entries()
    await peer.lite.append(key, b"0")
    async with asyncio.timeout(SOON_S):
        seen = [(await anext(entries)).data]
        for i in range(1, 20):
            await peer.lite.append(key, b"%d" % i)
        await until(lambda: _is(len(following._held), 4))
        seen += [(await anext(entries)).data for _ in range(19)]
    await entries.aclose()

    assert seen == [b"%d" % i for i in range(20)]


async def _is(value: int, wanted: int) -> bool:
    return value == wanted


async def test_chunks_that_came_early_wait_for_those_before_them(peer: Peer, key: str) -> None:
    following = asyncio.create_task(values_of(peer, key, live=True))
    for number in (0, 3, 2, 2, 1, 4):
        await put(peer, key, sequenceNumber=number, attempt=1, epoch=1, chunk=number)
    await put(peer, key, sequenceNumber=5, attempt=1, epoch=1, isFinal=True, count=5)
    await end(peer, key)

    assert await following == [0, 1, 2, 3, 4]
    assert await values_of(peer, key) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("numbers", "first", "last"), [((3,), 3, 3), ((3, 4, 7), 3, 4), ((8, 9), 8, 9), ((0,), 0, 0)]
)
async def test_chunks_that_are_lost_for_good_are_reported(
    world: World, peer: Peer, key: str, numbers: tuple[int, ...], first: int, last: int, live: bool
) -> None:
    writer = writer_of(peer, key)
    for i in range(10):
        await writer.write(i)
    await writer.finish("result")
    await lose(world, peer, key, lambda payload: payload["sequenceNumber"] in numbers)
    await end(peer, key)
    seen: list[Any] = []

    with pytest.raises(StreamGapError) as raised:
        await collect(reader_of(peer, key, live=live).events(), seen)

    assert [chunk.value for chunk in seen] == list(range(first))
    error = raised.value
    assert (error.lite_topic, error.epoch, error.first, error.last) == (key, 1, first, last)
    assert f"the chunks {first if first == last else f'{first} to {last}'} are lost" in str(error)


async def test_a_lost_final_message_is_reported_though_nobody_knows_how_many_there_were(
    world: World, peer: Peer, key: str
) -> None:
    writer = writer_of(peer, key)
    for i in range(3):
        await writer.write(i)
    await writer.finish("result")
    await lose(world, peer, key, lambda payload: payload["isFinal"] or payload["sequenceNumber"] == 2)
    await end(peer, key)

    with pytest.raises(StreamGapError, match="2 and on are lost") as raised:
        await values_of(peer, key)

    assert (raised.value.first, raised.value.last) == (2, -1)


async def test_a_chunk_that_is_lost_in_a_long_stream_is_reported_while_it_goes_on(
    world: World, peer: Peer, key: str
) -> None:
    writer = writer_of(peer, key)
    for i in range(3):
        await writer.write(i)
    await until(lambda: _holds(peer, key, 3))
    await lose(world, peer, key, lambda payload: payload["sequenceNumber"] == 1)
    for i in range(WINDOW + 1):
        await writer.write(i)

    with pytest.raises(StreamGapError) as raised:
        await values_of(peer, key, live=True)

    assert (raised.value.first, raised.value.last) == (1, 1)
    writer.close()


async def test_two_gaps_at_once_are_not_taken_for_a_loss(peer: Peer, key: str) -> None:
    """The first is lost unless it is in the store; the second may be on its way still."""
    behind = StreamReader(Behind(peer.lite, 3), peer.claims, key)  # type: ignore[arg-type]
    for number in (*range(3), *range(4, WINDOW + 3), WINDOW + 4, 3):
        await put(peer, key, sequenceNumber=number, attempt=1, epoch=1, chunk=number)
    following = asyncio.create_task(all_of(behind.events()))
    await put(peer, key, sequenceNumber=WINDOW + 3, attempt=1, epoch=1, chunk=WINDOW + 3)
    await put(peer, key, sequenceNumber=WINDOW + 5, attempt=1, epoch=1, isFinal=True, count=WINDOW + 5)
    await end(peer, key)

    assert [chunk.value for chunk in await following] == list(range(WINDOW + 5))


class Behind:
    """A journal whose first look leaves out a chunk that later ones find."""

    def __init__(self, journal: Any, number: int) -> None:
        self._journal, self._leaves_out = journal, b'"sequenceNumber": %d,' % number
        self._looked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def read(self, *args: Any, **options: Any) -> AsyncIterator[Entry]:
        looked, self._looked = self._looked, True
        async for entry in self._journal.read(*args, **options):
            if looked or self._leaves_out not in entry.data:
                yield entry


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_chunk_that_the_first_look_left_out_is_found_by_the_next(
    peer: Peer, key: str, number: int
) -> None:
    behind = StreamReader(Behind(peer.lite, number), peer.claims, key, live=False)  # type: ignore[arg-type]
    for each in range(3):
        if each == 2:
            await peer.lite.append(key, b"rubbish")
        await put(peer, key, sequenceNumber=each, attempt=1, epoch=1, chunk=each)
    await put(peer, key, sequenceNumber=3, attempt=1, epoch=1, isFinal=True, count=3)
    await end(peer, key)

    assert [chunk.value for chunk in await all_of(behind.events())] == [0, 1, 2]


async def test_a_chunk_in_the_vault_is_waited_for_while_the_server_is_away(client: Peer) -> None:
    handle = await client.caller.submit("tell.mixed", {})
    await handle.outcome()
    failures = [BusUnavailableError("away"), BusUnavailableError("away")]

    class Away:
        """A vault that does not answer at first."""

        async def fetch(self, name: str) -> bytes:
            if failures:
                raise failures.pop()
            return await client.vault.fetch(name)

    claims, key = Claims(Away()), handle.reply_to  # type: ignore[arg-type]
    with pytest.raises(BusUnavailableError):
        await all_of(StreamReader(client.lite, claims, key, live=False).events())
    patient = StreamReader(client.lite, claims, key, live=False, until=Deadline.after(SOON_S, client.clock))

    assert await all_of(patient.events()) == (await all_of(handle.events()))[:-1]
    assert not failures


async def test_a_chunk_whose_payload_is_gone_from_the_vault_is_reported(world: World, client: Peer) -> None:
    handle = await client.caller.submit("tell.mixed", {})
    await handle.outcome()
    name = (await stored(client, handle.reply_to))[0]["payload"]["claim"]["name"]
    await (await world.join("bridge", bridge=True)).vault.drop(name)

    with pytest.raises(StreamGapError) as raised:
        await all_of(handle.chunks())

    assert (raised.value.first, raised.value.last) == (0, 0)


async def _holds(peer: Peer, key: str, count: int) -> bool:
    return len(await stored(peer, key)) >= count


async def test_of_a_task_that_died_in_mid_stream_nothing_is_reported_lost(peer: Peer, key: str) -> None:
    """Its outcome comes from somebody else, who knows no count."""
    writer = writer_of(peer, key)
    await writer.write("one")
    await until(lambda: _holds(peer, key, 1))
    writer.close()
    await put(peer, key, "result", content=DeadLettered(attempt=1).to_content())

    assert await values_of(peer, key) == ["one"]


# --- fencing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
async def test_a_newer_attempt_fences_an_older_one_that_goes_on(peer: Peer, key: str, live: bool) -> None:
    reading = asyncio.create_task(values_of(peer, key, live=True)) if live else None
    zombie, heir = writer_of(peer, key, attempt=1), writer_of(peer, key, attempt=2)
    await zombie.write("old 0")
    await until(lambda: _holds(peer, key, 1))
    await heir.write("new 0")
    await until(lambda: _holds(peer, key, 2))
    await zombie.write("old 1")
    await heir.write("new 1")
    await zombie.finish("result")
    await heir.finish("result")
    await end(peer, key, attempt=2)

    seen = await (reading or asyncio.create_task(values_of(peer, key)))

    assert seen == ["old 0", Restarted(2, 2), "new 0", "new 1"]


async def test_an_outcome_is_found_though_an_older_attempt_went_on_after_it(world: World, client: Peer) -> None:
    handle = await client.caller.submit("tell.words", {"count": 2})
    assert (await handle.outcome()).unwrap() == 2
    zombie = writer_of(await world.join("zombie", agent="teller"), handle.reply_to)
    await zombie.write("too late")
    await zombie.finish("result")

    again = client.caller.resume(handle.ticket)

    async with asyncio.timeout(SOON_S):
        assert (await again.outcome()).unwrap() == 2
    assert await all_of(again.chunks()) == [0, 1]


async def test_if_the_older_attempt_ends_first_the_newer_has_lost_nothing(peer: Peer, key: str) -> None:
    await put(peer, key, sequenceNumber=0, attempt=1, epoch=1, run="a", isFirst=True, chunk="old 0")
    await put(peer, key, sequenceNumber=0, attempt=2, epoch=2, run="b", isFirst=True, chunk="new 0")
    await put(peer, key, sequenceNumber=2, attempt=2, epoch=2, run="b", chunk="new 2")
    await put(peer, key, sequenceNumber=1, attempt=1, epoch=1, run="a", isFinal=True, count=1)
    await end(peer, key, attempt=1)

    assert await values_of(peer, key) == ["old 0", Restarted(2, 2), "new 0"]


async def test_two_runs_of_one_attempt_are_not_mixed(peer: Peer, key: str) -> None:
    """A server that was killed forgets what it delivered: the same attempt may run twice."""
    first, second = writer_of(peer, key), writer_of(peer, key)
    await first.write("first 0")
    await first.write("first 1")
    await until(lambda: _holds(peer, key, 2))
    await second.write("second 0")
    await until(lambda: _holds(peer, key, 3))
    await first.write("first 2")
    await second.write("second 1")
    await first.finish("result")
    await second.finish("result")
    await end(peer, key)

    assert await values_of(peer, key) == ["first 0", "first 1", Restarted(1, 1), "second 0", "second 1"]


async def test_a_task_that_was_put_back_streams_in_a_newer_epoch(peer: Peer, key: str) -> None:
    for redriven, attempt in ((0, 3), (1, 1), (0, 4), (1, 2)):
        writer = writer_of(peer, key, redriven=redriven, attempt=attempt)
        await writer.write(f"life {redriven}, attempt {attempt}")
        await writer.finish("again")

    assert await values_of(peer, key) == [
        "life 0, attempt 3",
        Restarted(1, 1001),
        "life 1, attempt 1",
        Restarted(2, 1002),
        "life 1, attempt 2",
    ]


# --- strangers ---------------------------------------------------------------------------------------------


async def test_messages_of_foreign_producers_do_not_break_a_reader(peer: Peer, key: str) -> None:
    for junk in (b"", b"no JSON", b"[]", b'"stream"', b'{"type": "stream"}', b'{"type": "stream", "payload": 1}'):
        await peer.lite.append(key, junk)
    await put(peer, key, sequenceNumber="one", chunk="odd number")
    await put(peer, key, chunk="bare")
    await put(peer, key, content="not a chunk")
    await put(peer, key, sequenceNumber=0, attempt=None, chunk="odd attempt")
    await put(peer, key, sequenceNumber=0, run=7, chunk="odd run")
    await put(peer, key, child={"taskId": 1}, chunk=None)
    await put(peer, key, child={"taskId": 1})
    await put(peer, key, child={"taskId": "1", "topic": "a.b", "liteTopic": peer.subjects.lite_of("reader")})
    await put(peer, key, child={"taskId": "1", "topic": "a.b", "liteTopic": 7})
    await put(peer, key, claim={"name": 1})
    await put(peer, key, "event", chunk="no stream")
    await put(peer, key, "result", content="bare data")

    chunks = await events_of(peer, key, live=True)

    assert [chunk.value for chunk in chunks] == ["odd number", "bare", "odd attempt", "odd run", None]
    assert {(chunk.number, chunk.attempt, chunk.epoch) for chunk in chunks} == {(-1, 1, 1)}


async def test_a_foreign_producer_may_count_from_one_and_mark_its_last_chunk(peer: Peer, key: str) -> None:
    await put(peer, key, sequenceNumber=1, chunk="one")
    await put(peer, key, sequenceNumber=2, chunk="two")
    await put(peer, key, sequenceNumber=3, isFinal=True, chunk="three")
    await put(peer, key, "result", content={"success": True})

    assert await values_of(peer, key) == ["one", "two", "three"]


async def test_a_foreign_producer_need_not_mark_its_last_chunk(peer: Peer, key: str) -> None:
    await put(peer, key, sequenceNumber=0, chunk="one")
    await put(peer, key, sequenceNumber=1, chunk="two")
    await put(peer, key, "result", content={"success": True, "attempt": 1})

    assert await values_of(peer, key) == ["one", "two"]


# --- the window, and a server that goes away ---------------------------------------------------------------


class Slow:
    """A journal that acknowledges only when it is told to."""

    def __init__(self, journal: Any) -> None:
        self._journal = journal
        #: Each entry, and who waits until all are stored that were sent with it.
        self.sent: list[tuple[str, tuple[bytes, str], float | None]] = []
        self._stored: set[int] = set()
        self.waiting: list[tuple[range, asyncio.Future[int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def append_soon(
        self, key: str, entries: Sequence[tuple[bytes, str]], *, ttl_s: float | None = None
    ) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append((range(len(self.sent), len(self.sent) + len(entries)), future))
        self.sent += [(key, entry, ttl_s) for entry in entries]
        return future

    async def put_away(self, which: int) -> None:
        """Store one, and tell nobody."""
        key, (data, msg_id), ttl_s = self.sent[which]
        await self._journal.append(key, data, ttl_s=ttl_s, msg_id=msg_id)

    async def store(self, which: int) -> None:
        await self.put_away(which)
        self._stored.add(which)
        for sent, future in self.waiting:
            if not future.done() and self._stored.issuperset(sent):
                future.set_result(len(sent))


async def test_a_writer_waits_when_too_much_is_not_acknowledged(peer: Peer, key: str) -> None:
    slow = Slow(peer.lite)
    peer.caller.ports = replace(peer.ports, lite=slow)
    writer = writer_of(peer, key)
    for i in range(WINDOW):
        await asyncio.wait_for(writer.write(i), SOON_S)
    # Though all others are stored: it may not be too far ahead of the oldest.
    for which in range(1, WINDOW):
        await slow.store(which)

    waiting = asyncio.create_task(writer.write(WINDOW))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert len(slow.sent) == WINDOW
    await slow.store(0)
    await asyncio.wait_for(waiting, SOON_S)
    await slow.store(WINDOW)
    await writer.finish("result")
    await end(peer, key)

    assert await values_of(peer, key) == list(range(WINDOW + 1))


async def test_what_is_not_acknowledged_is_sent_again(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "AGAIN_S", 0.01)
    slow = Slow(peer.lite)
    peer.caller.ports = replace(peer.ports, lite=slow)
    writer = writer_of(peer, key)
    for i in range(4):
        await writer.write(i)

    async def sent(count: int) -> bool:
        return len(slow.sent) == count

    await until(lambda: sent(4))
    # All of a turn of the loop went out at once, and of the last it is not told that it is stored.
    ((_, batch),) = slow.waiting
    for which in (0, 1, 3):
        await slow.put_away(which)
    batch.set_result(2)
    await until(lambda: sent(6))
    assert [msg_id for _, (_, msg_id), _ in slow.sent[4:]] == [msg_id for _, (_, msg_id), _ in slow.sent[2:4]]
    slow.waiting[1][1].set_exception(BusUnavailableError("away"))
    await slow.store(5)
    await until(lambda: sent(7))
    finishing = asyncio.create_task(writer.finish("result"))
    await asyncio.sleep(0.02)
    assert not finishing.done()
    await slow.store(6)
    await asyncio.wait_for(finishing, SOON_S)
    await end(peer, key)

    assert await values_of(peer, key) == [0, 1, 2, 3]


async def test_nothing_comes_behind_the_end_of_a_stream_that_waits_for_its_last_acknowledgement(
    peer: Peer, key: str
) -> None:
    slow = Slow(peer.lite)
    peer.caller.ports = replace(peer.ports, lite=slow)
    writer = writer_of(peer, key)
    await writer.write("last")
    finishing = asyncio.create_task(writer.finish("result"))
    await asyncio.sleep(0.02)
    emitting = asyncio.create_task(writer.write("too late"))
    await asyncio.sleep(0.02)

    await slow.store(0)
    await asyncio.wait_for(finishing, SOON_S)

    with pytest.raises(SquadronError, match="ended"):
        await asyncio.wait_for(emitting, SOON_S)
    assert len(slow.sent) == 1


async def test_a_stream_that_can_not_be_stored_is_not_said_to_have_ended(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FINISH_WITHIN_S", 0.05)
    peer.caller.ports = replace(peer.ports, lite=Slow(peer.lite))
    writer = writer_of(peer, key)
    await writer.write("lost")

    with pytest.raises(BusUnavailableError, match="1 chunks were not acknowledged"):
        await writer.finish("result")

    assert await stored(peer, key) == []
    writer.close()


async def test_what_came_back_from_the_vault_after_its_stream_was_given_up_is_not_sent(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may = asyncio.Event(), asyncio.Event()

    async def seal(data: bytes, **_: Any) -> bytes:
        asked.set()
        await may.wait()
        return data

    writer = writer_of(peer, key)
    monkeypatch.setattr(peer.caller.ports.claims, "seal", seal)
    writing = asyncio.create_task(writer.write("late"))
    await asked.wait()
    writer.close()
    may.set()

    with pytest.raises(SquadronError, match="has ended"):
        await writing
    assert not writer._unacknowledged


async def test_whoever_emits_on_a_connection_that_was_closed_is_told(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> Any:
        raise SquadClosedError("it was closed")

    monkeypatch.setattr(peer.lite, "append_soon", closed)
    writer = writer_of(peer, key)

    async def emit() -> None:
        for i in range(2 * WINDOW):
            await writer.write(i)

    async with asyncio.timeout(SOON_S):
        with pytest.raises(SquadClosedError):
            await emit()
        with pytest.raises(SquadClosedError):
            await writer.finish("result")
    writer.close()


async def test_a_stream_survives_the_death_of_the_server_in_its_middle(tmp_path: Path) -> None:
    home, count = tmp_path / "home", 8_000
    first = embedded.ensure(home)
    settings = Settings(home=home, env="stream", heartbeat_s=HEARTBEAT_S, lease_s=LEASE_S)
    write, read = [
        await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=True) for name in ("write", "read")
    ]
    key = write.ports.subjects.lite("reader", "one")
    task = AgentMessage.new("task", write.ports.identity, id="task")
    writer = StreamWriter(write.ports, key, task, 1)
    reader = StreamReader(read.ports.lite, read.ports.claims, key)
    seen: list[Any] = []
    half = asyncio.Event()

    async def follow() -> None:
        async for event in reader.events():
            seen.append(event)
            if len(seen) == count // 8:
                half.set()

    async def emit() -> None:
        for i in range(count):
            await writer.write(i)
        await writer.finish("result")
        result = AgentMessage.new("result", write.ports.identity, Result().to_content())
        await write.ports.lite.append(key, result.encode(), msg_id="result")

    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as together:
            together.create_task(follow())
            emitting = together.create_task(emit())
            await half.wait()
            assert not emitting.done()
            kill(first.pid)
            second = await asyncio.to_thread(embedded.ensure, home)
            assert second.pid != first.pid
        assert [chunk.value for chunk in seen] == list(range(count))
        numbers = [json.loads(e.data)["payload"].get("sequenceNumber") async for e in read.ports.lite.read(key)]
        # All of them, each once, whatever the order in which they were sent again.
        assert sorted(numbers[:-1]) == list(range(count + 1))
    finally:
        await write.aclose()
        await read.aclose()
        embedded.stop(home)


# --- nested streams ----------------------------------------------------------------------------------------


async def test_chunks_of_children_are_seen_by_the_parents_reader(client: Peer) -> None:
    handle = await client.caller.submit("tell.parent", {}, AskOptions(within_s=3 * SOON_S, nested=True))

    events = await all_of(handle.events())

    assert [event.value for event in events if isinstance(event, Chunk)] == ["before", "between"]
    nested = [event for event in events if isinstance(event, Nested)]
    children = list(dict.fromkeys(event.path[0] for event in nested))
    assert len(children) == 2
    for child, name in zip(children, ("first", "second"), strict=True):
        own = [event for event in nested if event.path == (child,)]
        assert [(each.topic, each.chunk.value, each.chunk.number) for each in own] == [
            ("tell.child", f"{name} child", 0),
            ("tell.child", f"{name} child again", 2),  # its pointer to the grandchild has a number, too
        ]
        below = [event for event in nested if event.path[0] == child and len(event.path) == 2]
        assert [(each.topic, each.chunk.value) for each in below] == [("tell.grandchild", "grandchild")]
    assert events[-1] == Ended(await handle.outcome(), 2)
    # A late reader sees the same, though not in the same order.
    assert sorted(map(repr, await all_of(handle.events()))) == sorted(map(repr, events))
    assert await all_of(handle.chunks()) == ["before", "between"]


async def test_a_stream_ends_with_its_task_though_a_child_goes_on(client: Peer) -> None:
    handle = await client.caller.submit("tell.hasty", {}, AskOptions(within_s=6 * SOON_S, nested=True))

    async with asyncio.timeout(SOON_S):
        nested, ended = [event async for event in handle.events()]

    assert (nested.topic, nested.chunk.value) == ("tell.endless", "and so on")
    assert ended.outcome.unwrap() == "gone"


async def test_who_did_not_ask_for_nested_streams_gets_none(client: Peer) -> None:
    handle = await client.caller.submit("tell.parent", {}, AskOptions(within_s=3 * SOON_S))

    events = await all_of(handle.events())

    assert [type(event) for event in events] == [Chunk, Chunk, Ended]
    assert not [m for m in await stored(client, handle.reply_to) if "child" in m["payload"]]


async def test_a_gap_in_a_childs_stream_is_reported_to_the_parents_reader(world: World, client: Peer) -> None:
    handle = await client.caller.submit("tell.parent", {}, AskOptions(within_s=3 * SOON_S, nested=True))
    await handle.outcome()
    child = next(m["payload"]["child"] for m in await stored(client, handle.reply_to) if "child" in m["payload"])
    await lose(world, client, child["liteTopic"], lambda payload: payload.get("sequenceNumber") == 0)

    with pytest.raises(StreamGapError) as raised:
        await all_of(handle.events())

    assert raised.value.lite_topic == child["liteTopic"]


# --- flow control and the live view ------------------------------------------------------------------------


async def test_a_stream_under_an_id_of_the_askers_own_is_heard_as_long_as_it_is_read(client: Peer) -> None:
    handle = await client.caller.submit("tell.words", {"count": 600}, AskOptions(task_id="mine", within_s=SOON_S))
    async with aclosing(handle.chunks()) as chunks:
        seen = [await anext(chunks)]
        # It has ended, so that nobody waits for its outcome any more.
        await handle.outcome()
        assert len(client.caller.hearing._subscriptions) == 2
        seen += await collect(chunks, [])

    assert seen == list(range(600))
    assert len(client.caller.hearing._subscriptions) == 1


async def test_a_slow_reader_slows_nobody_and_loses_nothing(client: Peer, teller: Teller) -> None:
    count = 20_000
    handle: Handle = await client.caller.submit("tell.words", {"count": count}, AskOptions(within_s=60))
    reader = handle._reader(handle.reply_to)
    most, seen = 0, []
    async with asyncio.timeout(60):
        async for event in reader.events():
            assert isinstance(event, Chunk)
            seen.append(event.value)
            most = max(most, len(reader._trail._held))
            if not teller.told.is_set():
                await asyncio.sleep(0.05)

    # The producer was done long before a reader at its pace could be.
    assert seen == list(range(count))
    assert most <= trail.MOST_HELD
    assert (await handle.outcome()).unwrap() == count


@ON_NATS
async def test_any_nats_client_hears_the_live_view(world: World, client: Peer) -> None:
    assert world.settings is not None
    endpoint = embedded.ensure(world.settings.home)
    bare = await nats.connect(endpoint.url, token=endpoint.token)
    heard: list[tuple[str, bytes]] = []

    async def hear(msg: Any) -> None:
        heard.append((msg.subject, msg.data))

    await bare.subscribe(f"agents.{world.settings.env}.stream.response.*", cb=hear)
    await bare.flush()
    handle = await client.caller.submit("tell.words", {"count": 3})
    await handle.outcome()

    async def all_heard() -> bool:
        return len(heard) == 4

    await until(all_heard)
    await bare.close()
    subject = client.subjects.stream(handle.reply_to.rpartition(".")[2])
    entries = [entry.data async for entry in client.lite.read(handle.reply_to)]
    assert heard == [(subject, data) for data in entries[:-1]]


async def test_who_reads_a_task_that_has_ended_is_told_that_the_server_is_away(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise BusUnavailableError("away")
        yield

    monkeypatch.setattr(peer.lite, "read", away)

    with pytest.raises(BusUnavailableError):
        await collect(reader_of(peer, key).events(), [])


async def test_who_waits_for_the_window_when_the_stream_is_given_up_is_told(
    peer: Peer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> asyncio.Future[int]:
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(peer.lite, "append_soon", never)
    writer = writer_of(peer, key)
    for i in range(WINDOW):
        await writer.write(i)
    waiting = asyncio.create_task(writer.write("too many"))
    await asyncio.sleep(0)

    writer.close()

    with pytest.raises(SquadronError, match="ended"):
        await asyncio.wait_for(waiting, SOON_S)


class Boss(Agent):
    """Asks somebody, and is cancelled before it could tell its readers of it."""

    def __init__(self) -> None:
        self.child_began, self.child_ended = asyncio.Event(), asyncio.Event()

    @topic("boss.ask")
    async def ask(self, context: Context) -> None:
        await context.ask("boss.child", within_s=6 * SOON_S)

    @topic("boss.child")
    async def child(self) -> None:
        self.child_began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.child_ended.set()


async def test_a_child_that_the_parent_has_not_pointed_to_yet_is_cancelled_with_it(
    world: World, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointing = asyncio.Event()

    async def point_to(*_: Any) -> None:
        pointing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(StreamWriter, "point_to", point_to)
    boss = Boss()
    await serve(boss)
    handle = await (await world.join("client")).caller.submit(
        "boss.ask", {}, AskOptions(within_s=6 * SOON_S, nested=True)
    )
    await asyncio.wait_for(pointing.wait(), SOON_S)
    await asyncio.wait_for(boss.child_began.wait(), SOON_S)

    assert isinstance(await handle.cancel(), Cancelled)

    await asyncio.wait_for(boss.child_ended.wait(), SOON_S)

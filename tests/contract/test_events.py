"""What every `EventLog` does, and what is built on it: nothing is lost, each group hears each event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from squadron import Retry, Terminal
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.client.subscriptions import DurableEvents
from squadron.config import Settings
from squadron.runtime.errors import InvalidInputError, InvalidSubjectError, MessageTooLargeError
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.retries import Retries
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.pump import Pump
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.start import Start
from squadron.testing import now_s
from tests.conftest import LEASE_S, kill
from tests.contract.conftest import SOON_S, Inbox, Peer, World, peer_of, settle_all, until

#: Lease of those who are not to lapse, however long nobody here gets a turn.
LONG_S = 60.0
#: Of those whose extending is to be seen: a delivery would come again soon, and an extension may be late.
EXTENDED_S = 4.0


async def _publish(peer: Peer, *contents: Any, topic: str = "news.sport") -> list[int]:
    return [await peer.caller.sender.publish_durable(topic, content) for content in contents]


def _content(delivery: Delivery) -> Any:
    return AgentMessage.decode(delivery.data).payload.content


async def _take(inbox: Inbox, count: int) -> list[Any]:
    """The contents of so many deliveries, which are settled."""
    deliveries = await inbox.take(count)
    await settle_all(deliveries)
    return [_content(delivery) for delivery in deliveries]


@pytest.fixture
async def join(world: World) -> AsyncIterator[Callable[..., Any]]:
    """Join a group from a process of one's own: returns an inbox that takes up to 1,000 deliveries."""
    feeds = []

    async def joined(
        group: str, pattern: str = "news.*", start: Start = "new", want: int = 1000, lease_s: float = LONG_S
    ) -> Inbox:
        member, inbox = await world.join(f"{group}-{len(feeds)}"), Inbox()
        feed = await member.events.consume(EventGroup(group, pattern, start, lease_s), inbox)
        feeds.append(feed)
        inbox.feed = feed  # type: ignore[attr-defined]
        feed.want(want)
        return inbox

    yield joined
    for feed in feeds:
        await feed.aclose()


# --- the log ---------------------------------------------------------------------------------------------


async def test_an_event_is_stored_once_per_id_and_sequences_grow(peer: Peer, join: Callable[..., Any]) -> None:
    one = await peer.caller.sender.publish_durable("news.sport", 1, event_id="goal-1")
    again = await peer.caller.sender.publish_durable("news.sport", 1, event_id="goal-1")
    other = await peer.caller.sender.publish_durable("news.sport", 2, event_id="any id: ü")

    assert one == again < other
    inbox = await join("all", start="first")
    deliveries = await inbox.take(2)
    assert [delivery.seq for delivery in deliveries] == [one, other]
    assert [AgentMessage.decode(each.data).id for each in deliveries] == ["goal-1", "any id: ü"]
    assert {delivery.subject for delivery in deliveries} == {peer.subjects.durable("news.sport")}


async def test_what_can_not_be_published_is_said(peer: Peer) -> None:
    with pytest.raises(InvalidSubjectError, match="not domain"):
        await peer.caller.sender.publish_durable("news", 1)
    with pytest.raises(InvalidSubjectError):
        await peer.caller.sender.publish_durable("news.*", 1)
    with pytest.raises(MessageTooLargeError):
        await peer.caller.sender.publish_durable("news.sport", "x" * (9 * 1024 * 1024))


async def test_who_listens_for_plain_events_hears_durable_ones_unchanged(
    peer: Peer, join: Callable[..., Any]
) -> None:
    plain = Inbox()
    await peer.bus.subscribe(peer.subjects.event("news.*"), plain)
    durable = await join("durable", start="first")

    await peer.caller.sender.publish("news.weather", "plain only")
    await _publish(peer, "both")

    notes = await plain.take(2)
    delivery = await durable.next()
    assert AgentMessage.decode(notes[0].data).payload.content == "plain only"
    assert (notes[1].subject, notes[1].data) == (peer.subjects.event("news.sport"), delivery.data)
    # The plain one is not stored.
    assert (delivery.seq, _content(delivery)) == (1, "both")


async def test_a_group_gets_each_event_once_and_every_group_gets_all(peer: Peer, join: Callable[..., Any]) -> None:
    members = [await join("group", want=10), await join("group", want=10)]
    others = [await join("alone"), await join("audit.write")]

    await _publish(peer, *range(20))

    shared = [await _take(member, 10) for member in members]
    assert sorted(shared[0] + shared[1]) == list(range(20))
    for other in others:
        assert await _take(other, 20) == list(range(20))
    await _publish(peer, "end")
    for inbox in others:
        assert await _take(inbox, 1) == ["end"]


async def test_only_what_matches_is_delivered(peer: Peer, join: Callable[..., Any]) -> None:
    sport, second = await join("sport", "news.sport"), await join("second", "*.sport")

    await _publish(peer, 1, topic="news.weather")
    await _publish(peer, 2, topic="other.sport")
    await _publish(peer, 3, topic="news.sport")

    assert await _take(sport, 1) == [3]
    assert await _take(second, 2) == [2, 3]


async def test_an_event_of_a_member_that_fell_silent_goes_to_another(peer: Peer, join: Callable[..., Any]) -> None:
    silent = await join("group", want=1, lease_s=LEASE_S)
    started = now_s()
    (seq,) = await _publish(peer, "work")
    first = await silent.next()
    heir = await join("group", want=1, lease_s=LEASE_S)

    second = await heir.next()

    assert now_s() - started > LEASE_S / 2
    assert (first.seq, first.lease.delivered, second.seq, second.lease.delivered) == (seq, 1, seq, 2)
    await second.lease.settle(confirmed=True)


async def test_an_extended_lease_does_not_lapse_and_a_settled_event_does_not_return(
    peer: Peer, join: Callable[..., Any]
) -> None:
    inbox = await join("group", lease_s=EXTENDED_S)
    await _publish(peer, "done", "work")
    done, delivery = await inbox.take(2)
    await done.lease.settle()
    for _ in range(10):
        await asyncio.sleep(EXTENDED_S / 8)
        await delivery.lease.extend()

    assert inbox.is_empty


async def test_a_released_event_comes_again_after_its_pause(peer: Peer, join: Callable[..., Any]) -> None:
    inbox = await join("group", lease_s=1.0)
    await _publish(peer, "work")
    started = now_s()
    first = await inbox.next()
    await first.lease.release(1.5)
    # It is held no more: it would come with its lease.
    await first.lease.extend()

    again = await inbox.next()

    assert again.lease.delivered == 2
    assert now_s() - started >= 1.49


@pytest.mark.parametrize("how", ["first", "seq", "time", "datetime", "new"])
async def test_a_new_group_starts_where_it_wants(peer: Peer, join: Callable[..., Any], how: str) -> None:
    await _publish(peer, 0, 1)
    # The server's clock and ours are the same machine's.
    await asyncio.sleep(0.05)
    between = peer.clock.time()
    await asyncio.sleep(0.05)
    third, _ = await _publish(peer, 2, 3)
    start: dict[str, Start] = {
        "first": "first",
        "seq": third,
        "time": between,
        "datetime": datetime.fromtimestamp(between, UTC),
        "new": "new",
    }
    inbox = await join("late", start=start[how])
    await _publish(peer, 4)

    wanted = {"first": [0, 1, 2, 3, 4], "new": [4]}.get(how, [2, 3, 4])
    assert await _take(inbox, len(wanted)) == wanted


async def test_a_group_goes_on_where_it_was_whatever_start_says(peer: Peer, join: Callable[..., Any]) -> None:
    early = await join("group", start="first", want=3)
    await _publish(peer, *range(6))
    deliveries = await early.take(3)
    for delivery in deliveries[:2]:
        await delivery.lease.settle(confirmed=True)
    await early.feed.aclose()
    await deliveries[2].lease.release()
    await _publish(peer, 6)

    seen = []
    for start, count in (("new", 2), (1, 3)):
        later = await join("group", start=start, want=count)
        # What was handed back may come behind what waited.
        seen += await _take(later, count)
        await later.feed.aclose()
    assert sorted(seen) == [2, 3, 4, 5, 6]


async def test_the_newest_pattern_of_a_group_counts(peer: Peer, join: Callable[..., Any]) -> None:
    old = await join("group", "news.sport", start="first")
    await _publish(peer, 0)
    assert await _take(old, 1) == [0]
    await old.feed.aclose()
    new = await join("group", "news.weather", start="first")

    await _publish(peer, 1)
    await _publish(peer, 2, topic="news.weather")

    assert await _take(new, 1) == [2]


async def test_a_forgotten_group_starts_anew(peer: Peer, join: Callable[..., Any]) -> None:
    inbox = await join("audit.write", start="first")
    await _publish(peer, 0, 1)
    assert await _take(inbox, 2) == [0, 1]
    await inbox.feed.aclose()

    await peer.events.forget("audit.write")
    await peer.events.forget("nobody")

    assert await _take(await join("audit.write", start="first"), 2) == [0, 1]


async def test_one_member_gets_waiting_events_in_order(peer: Peer, join: Callable[..., Any]) -> None:
    await asyncio.gather(*(peer.caller.sender.publish_durable("news.sport", i) for i in range(300)))
    inbox = await join("group", start="first", want=7)
    seen = []
    for _ in range(300):
        delivery = await inbox.next()
        await delivery.lease.settle()
        inbox.feed.want(1)
        seen.append(delivery.seq)
    assert seen == sorted(seen)
    assert len(set(seen)) == 300


@pytest.mark.parametrize("start", ["last", 0, -1, True, -1.0, float("nan"), datetime(2026, 1, 1), None])
def test_where_no_subscription_can_start_is_said(start: Any) -> None:
    with pytest.raises(InvalidInputError, match="can't start at") as caught:
        EventGroup("group", "news.*", start)
    assert caught.value.field == "start"


@pytest.mark.parametrize(
    ("name", "pattern"), [("a b", "x.y"), ("", "x.y"), ("a.b.c", "x.y"), ("a", "x"), ("a", ">")]
)
def test_bad_names_and_patterns_are_said(name: str, pattern: str) -> None:
    with pytest.raises(InvalidSubjectError):
        EventGroup(name, pattern)


# --- handlers of agents ----------------------------------------------------------------------------------


class Replica:
    """Runs one durable handler as a replica does, one event at a time unless told otherwise."""

    def __init__(
        self,
        peer: Peer,
        handle: Callable[..., Any],
        group: str,
        slots: int = 1,
        max_attempts: int = 5,
        run_timeout_s: float = 60.0,
        lease_s: float = LONG_S,
    ) -> None:
        retries = Retries(max_attempts)
        turns = EventTurns(group, handle, peer.ports, retries=retries, run_timeout_s=run_timeout_s)
        self.pump = Pump(peer.events, EventGroup(group, "news.*", "first", lease_s), turns.run, slots=slots)


@pytest.fixture
async def serve(world: World) -> AsyncIterator[Callable[..., Any]]:
    """Run a handler of a group in a process of its own."""
    pumps = []

    async def served(handle: Callable[..., Any], group: str = "desk.hear", **options: Any) -> Pump:
        pump = Replica(await world.join(f"replica-{len(pumps)}"), handle, group, **options).pump
        await pump.start()
        pumps.append(pump)
        return pump

    yield served
    for pump in pumps:
        await pump.aclose()


async def _letters(peer: Peer, count: int) -> list[dict[str, Any]]:
    pattern = f"agents.{peer.subjects.environment}.dead.>"

    async def are_there() -> bool:
        return len(await peer.dead.latest(pattern)) >= count

    await until(are_there)
    entries = await peer.dead.latest(pattern)
    assert len(entries) == count
    return [AgentMessage.decode(entry.data).payload.content for entry in entries]


async def test_a_handler_that_raises_gets_the_event_again_with_growing_pauses(
    peer: Peer, serve: Callable[..., Any]
) -> None:
    tried, done = [], Inbox()

    async def shaky(message: AgentMessage) -> None:
        tried.append(now_s())
        if len(tried) < 3:
            raise ValueError("not yet")
        done(message.payload.content)

    await serve(shaky)
    await _publish(peer, "work")

    assert await done.next() == "work"
    # Half of each pause is jitter: 0.25 to 0.5 s, then 0.5 to 1 s.
    assert tried[1] - tried[0] >= 0.24
    assert tried[2] - tried[1] >= 0.49
    assert await _letters(peer, 0) == []


async def test_after_its_last_attempt_an_event_is_buried_by_each_group_that_failed(
    peer: Peer, serve: Callable[..., Any]
) -> None:
    tried, done = [], Inbox()

    async def broken(message: AgentMessage) -> None:
        if message.payload.content == "bad":
            tried.append(message.id)
            raise Retry("never", after_s=0.05)
        done(message.payload.content)

    for group in ("desk.hear", "clerk.hear"):
        await serve(broken, group, max_attempts=2)
    event = await peer.caller.sender.publish_durable("news.sport", "bad", event_id="e-1")
    letters = await _letters(peer, 2)
    await _publish(peer, "good")

    assert [await done.next(), await done.next()] == ["good", "good"]
    assert (event, tried) == (1, ["e-1"] * 4)
    assert {letter["subscription"] for letter in letters} == {"desk.hear", "clerk.hear"}
    letter = letters[0]
    assert letter["taskId"] == "e-1"
    assert letter["subject"] == peer.subjects.durable("news.sport")
    assert letter["outcome"] == "dead_lettered"
    assert letter["error"]["details"]["attempts"] == 2
    assert letter["error"]["message"] == "failed in each of 2 attempts, the last time with Retry: never"
    assert AgentMessage.decode(letter["message"].encode()).payload.content == "bad"


async def test_what_is_terminal_too_slow_or_unreadable_is_buried(peer: Peer, serve: Callable[..., Any]) -> None:
    async def pick(message: AgentMessage) -> None:
        if message.payload.content == "terminal":
            raise Terminal("no such team")
        await asyncio.sleep(60)

    await serve(pick, slots=3, max_attempts=1, run_timeout_s=0.2)
    await _publish(peer, "terminal", "slow")
    await peer.events.append("news.sport", b"\xff no message", msg_id="x")

    reasons = sorted(letter["error"]["message"] for letter in await _letters(peer, 3))

    assert "Invalid JSON" in reasons[0]
    assert "TimeoutError: ran longer than its 0.2 s" in reasons[1]
    assert reasons[2] == "failed with Terminal: no such team, against which no other attempt helps"


async def test_an_event_whose_replica_died_in_each_attempt_is_buried(
    peer: Peer, join: Callable[..., Any], serve: Callable[..., Any]
) -> None:
    silent = await join("desk.hear", start="first", want=2, lease_s=LEASE_S)
    await _publish(peer, "deadly")
    assert [await (await silent.next()).lease.begin() for _ in range(2)] == [1, 2]
    ran: list[Any] = []

    await serve(lambda message: ran.append(message), max_attempts=2, lease_s=LEASE_S)

    (letter,) = await _letters(peer, 1)
    assert "died or fell silent in each of 2 attempts" in letter["error"]["message"]
    assert ran == []


async def test_an_event_whose_handler_waited_for_something_cancelled_is_tried_again_with_pauses(
    peer: Peer, serve: Callable[..., Any]
) -> None:
    tried: list[float] = []

    async def wait_for_it(message: AgentMessage) -> None:
        tried.append(now_s())
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    await serve(wait_for_it, max_attempts=2)
    await _publish(peer, "work")

    (letter,) = await _letters(peer, 1)
    assert "RuntimeError: what the handler waited for was cancelled" in letter["error"]["message"]
    assert len(tried) == 2
    assert tried[1] - tried[0] >= 0.24


async def test_a_long_handler_keeps_its_event_and_a_drained_one_hands_it_back(
    peer: Peer, serve: Callable[..., Any]
) -> None:
    entered, done = Inbox(), Inbox()

    async def slow(message: AgentMessage) -> None:
        entered(message.payload.content)
        await asyncio.sleep(60)

    pump = await serve(slow, lease_s=EXTENDED_S)
    await _publish(peer, "work")
    await entered.next()
    await serve(lambda message: done(message.payload.content), lease_s=EXTENDED_S)
    await asyncio.sleep(1.2 * EXTENDED_S)
    assert done.is_empty

    await pump.drain(0.0)

    assert await done.next() == "work"


# --- subscriptions of programs ---------------------------------------------------------------------------


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A subscription's lease is that of the settings."""
    return replace(settings, lease_s=EXTENDED_S)


@pytest.fixture
async def subscribe(wiring: Wiring) -> AsyncIterator[Callable[..., Any]]:
    """Subscribe as `Squad.subscribe_durable` does."""
    opened = []

    async def subscribed(name: str = "mine", pattern: str = "news.*", start: Start = "new") -> DurableEvents:
        opened.append(await DurableEvents.open(wiring, name, pattern, start))
        return opened[-1]

    yield subscribed
    for events in opened:
        await events.aclose()


async def test_a_subscription_settles_an_event_when_the_next_is_asked_for(
    wiring: Wiring, subscribe: Callable[..., Any]
) -> None:
    events = await subscribe()
    seqs = [await wiring.caller.sender.publish_durable("news.sport", i) for i in range(5)]
    seen = []
    async for event in events:
        seen.append((event.message.payload.content, event.seq, event.attempt))
        if len(seen) == 3:
            # Longer than its lease: it is kept all the same.
            await asyncio.sleep(1.2 * EXTENDED_S)
            break
    await events.aclose()
    assert seen == [(i, seqs[i], 1) for i in range(3)]

    # The third was not settled, so it comes again, to whoever subscribes next.
    later = await subscribe(start="first")
    again = [await later.next(within_s=30) for _ in range(2)]
    await later.settle(confirmed=True)
    await later.aclose()
    last = await subscribe()
    again.append(await last.next(within_s=30))
    assert {event.seq: event.attempt for event in again} == {seqs[2]: 2, seqs[3]: 1, seqs[4]: 1}


async def test_a_subscription_buries_what_nobody_can_read_and_goes_on(
    wiring: Wiring, subscribe: Callable[..., Any]
) -> None:
    events = await subscribe()
    await wiring.ports.events.append("news.sport", b"no message", msg_id="x")
    seq = await wiring.caller.sender.publish_durable("news.sport", "good")

    event = await events.next(within_s=30)

    assert (event.seq, event.message.payload.content) == (seq, "good")
    (letter,) = await wiring.ports.dead.latest(f"agents.{wiring.settings.env}.dead.>")
    content = AgentMessage.decode(letter.data).payload.content
    assert (content["subscription"], content["message"]) == ("mine", "no message")


async def test_a_member_that_does_not_ask_takes_nothing_from_the_others(
    wiring: Wiring, subscribe: Callable[..., Any]
) -> None:
    idle, busy = await subscribe(), await subscribe()
    seqs = [await wiring.caller.sender.publish_durable("news.sport", i) for i in range(10)]

    assert [(await busy.next(within_s=30)).seq for _ in range(10)] == seqs
    await busy.settle(confirmed=True)
    with pytest.raises(TimeoutError):
        await idle.next(within_s=0.1)


async def test_a_subscription_that_hears_nothing_says_so_and_a_closed_one_ends(
    wiring: Wiring, subscribe: Callable[..., Any]
) -> None:
    with pytest.raises(InvalidSubjectError, match="subscription 'desk"):
        await subscribe("desk.hear")
    events = await subscribe()
    with pytest.raises(TimeoutError):
        await events.next(within_s=0.05)
    # Who gave up waiting has not lost what came afterwards.
    await wiring.caller.sender.publish_durable("news.sport", "late")
    assert (await events.next(within_s=30)).message.payload.content == "late"
    await events.settle()
    reading = asyncio.create_task(_all(events))
    await asyncio.sleep(0)
    await events.aclose()
    await events.aclose()
    assert await asyncio.wait_for(reading, 30) == []
    with pytest.raises(TimeoutError, match="closed"):
        await events.next(within_s=30)


async def _all(events: DurableEvents) -> list[int]:
    return [event.seq async for event in events]


# --- the server ------------------------------------------------------------------------------------------


async def test_a_stream_of_an_older_version_is_brought_up_to_date(wiring: Wiring) -> None:
    name = StreamNames(wiring.settings.env).events
    config = (await wiring.connection.api(f"STREAM.INFO.{name}", {}))["config"]
    old = {key: value for key, value in config.items() if key not in ("republish", "max_age")}
    assert "error" not in await wiring.connection.api(f"STREAM.UPDATE.{name}", old)
    heard = Inbox()
    await wiring.ports.bus.subscribe(wiring.ports.subjects.event("news.*"), heard)
    await wiring.caller.sender.publish_durable("news.sport", "not told")

    newer = await Wiring.open(wiring.settings, AgentIdentity(id="newer"), create=True)
    await newer.aclose()
    seq = await wiring.caller.sender.publish_durable("news.sport", "told")

    assert seq == 2
    assert AgentMessage.decode((await heard.next()).data).payload.content == "told"


async def test_no_event_is_lost_over_a_killed_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = Settings(home=home, env="kill", heartbeat_s=0.5, lease_s=LEASE_S)
    first = embedded.ensure(home)
    handled: dict[str, list[int]] = {"a": [], "b": []}
    published: list[int] = []
    half = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(embedded.stop, home)

        async def open_wiring(name: str) -> Wiring:
            opened = await Wiring.open(settings, AgentIdentity(id=name), create=True)
            stack.push_async_callback(opened.aclose)
            return opened

        for i, group in enumerate(("a", "a", "b")):

            async def handle(message: AgentMessage, group: str = group) -> None:
                await asyncio.sleep(0.002)
                handled[group].append(message.payload.content)
                if len(handled[group]) > 100:
                    half.set()

            pump = Replica(peer_of(await open_wiring(f"r{i}")), handle, group, slots=4, lease_s=LEASE_S).pump
            await pump.start()
            stack.push_async_callback(pump.aclose)
        publisher = await open_wiring("publisher")

        async def publish() -> None:
            published.extend([await publisher.caller.sender.publish_durable("news.sport", i) for i in range(1500)])

        publishing = asyncio.create_task(publish())
        await asyncio.wait_for(half.wait(), SOON_S)
        assert not publishing.done()

        kill(first.pid)
        second = await asyncio.to_thread(embedded.ensure, home)
        assert second.pid != first.pid
        await asyncio.wait_for(publishing, SOON_S)

        async def all_are_handled() -> bool:
            return all(set(seen) == set(range(1500)) for seen in handled.values())

        await until(all_are_handled)
        assert published == sorted(set(published))

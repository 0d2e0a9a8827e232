"""Who observes a process hears what happens in it, in order; and nothing that an observer does changes it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from squadron import Agent, Context, Retry, Terminal, topic
from squadron.bridge.place import Place
from squadron.config import Settings
from squadron.runtime.errors import ConfigError
from squadron.runtime.retries import Retries
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.pump import Pump
from squadron.runtime.telemetry.happenings import (
    Buried,
    Happening,
    MessagePut,
    MessageStored,
    TaskEnded,
    TurnBegun,
    TurnEnded,
)
from squadron.runtime.telemetry.observer import Observers, load_observer
from squadron.runtime.wire.envelope import AgentMessage, Routing
from squadron.runtime.wire.groups import EventGroup
from tests.contract.conftest import LEASE_S, Inbox, Peer, Serve, World, until


class Notes:
    """An observer that keeps what it hears, and marks what goes out."""

    def __init__(self) -> None:
        self.heard: list[Happening] = []
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.closed = 0

    def hear(self, happening: Happening) -> None:
        self.heard.append(happening)
        self.tasks.append(asyncio.current_task())
        if isinstance(happening, MessagePut):
            happening.headers["traceparent"] = f"of {happening.id}"

    async def aclose(self) -> None:
        self.closed += 1

    def of(self, *kinds: type) -> list[Any]:
        return [each for each in self.heard if isinstance(each, kinds)]


class Broken(Notes):
    """An observer that raises whenever it can."""

    def hear(self, happening: Happening) -> None:
        super().hear(happening)
        raise RuntimeError("the observer broke")

    async def aclose(self) -> None:
        await super().aclose()
        raise RuntimeError("the observer broke at the end")


class Desk(Agent):
    """Answers, tries again once, gives up, or asks further."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.ran_in: list[asyncio.Task[Any] | None] = []

    @topic("desk.echo")
    async def echo(self, text: str) -> str:
        self.ran_in.append(asyncio.current_task())
        return text

    @topic("desk.again", max_attempts=2)
    async def again(self, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Retry("not yet", after_s=0.01)
        return ctx.attempt

    @topic("desk.never", max_attempts=1)
    async def never(self) -> None:
        raise ValueError("never")

    @topic("desk.refuse")
    async def refuse(self) -> None:
        raise Terminal("no")

    @topic("desk.further")
    async def further(self, ctx: Context) -> str:
        return str((await ctx.ask("desk.echo", {"text": "far"})).unwrap())


async def _settled(notes: Notes, id: str) -> None:
    async def is_told() -> bool:
        return any(each.message.id == id and each.end == "outcome" for each in notes.of(TurnEnded))

    await until(is_told)


async def test_a_task_is_told_of_from_its_sender_to_its_end(serve: Serve, peer: Peer) -> None:
    here, there, desk = Notes(), Notes(), Desk()
    replica = await serve(desk)
    peer.ports.observers.add(here)
    replica.peer.ports.observers.add(there)

    handle = await peer.caller.submit("desk.echo", {"text": "hi"})
    outcome = await peer.caller.outcome(handle)
    await _settled(there, handle.task_id)

    put, stored, ended = here.heard
    assert isinstance(put, MessagePut)
    assert (put.kind, put.id, put.topic, put.parent_id) == ("task", handle.task_id, "desk.echo", None)
    assert put.conversation_id == handle.task_id
    assert put.bytes > 100
    assert stored == MessageStored(id=handle.task_id)
    assert ended == TaskEnded(id=handle.task_id, topic="desk.echo", outcome=outcome)

    begun, over = there.heard
    assert isinstance(begun, TurnBegun)
    assert (begun.agent, begun.topic, begun.served, begun.attempt) == ("desk", "desk.echo", "desk.echo", 1)
    assert begun.message.id == handle.task_id
    assert begun.waited_s >= 0
    assert begun.headers["traceparent"] == f"of {handle.task_id}"
    assert isinstance(over, TurnEnded)
    assert (over.end, over.outcome.kind, over.attempt, over.error) == ("outcome", "result", 1, "")
    assert over.seconds == pytest.approx(outcome.latency_ms / 1000, abs=1e-6)
    # What an observer sets in the context of the handler's task, the handler has.
    assert there.tasks == [desk.ran_in[0]] * 2


async def test_each_attempt_is_told_of_and_why_there_is_another(serve: Serve, peer: Peer) -> None:
    notes = Notes()
    replica = await serve(Desk())
    replica.peer.ports.observers.add(notes)

    handle = await peer.caller.submit("desk.again", {})
    assert (await peer.caller.outcome(handle)).unwrap() == 2
    await _settled(notes, handle.task_id)

    first, second = notes.of(TurnEnded)
    assert [each.attempt for each in notes.of(TurnBegun)] == [1, 2]
    assert (first.end, first.attempt, first.outcome) == ("again", 1, None)
    assert "not yet" in first.error
    assert first.after_s == pytest.approx(0.01)
    assert (second.end, second.attempt) == ("outcome", 2)


@pytest.mark.parametrize(
    ("name", "kind", "buried"), [("desk.never", "dead_lettered", True), ("desk.refuse", "failed", False)]
)
async def test_what_was_given_up_is_told_of(serve: Serve, peer: Peer, name: str, kind: str, buried: bool) -> None:
    notes = Notes()
    replica = await serve(Desk())
    replica.peer.ports.observers.add(notes)

    handle = await peer.caller.submit(name, {})
    outcome = await peer.caller.outcome(handle)
    await _settled(notes, handle.task_id)

    assert notes.of(TurnEnded)[-1].outcome.kind == kind
    expected = [Buried(agent="desk", topic=name, id=handle.task_id, reason=outcome.reason)] if buried else []
    assert notes.of(Buried) == expected


async def test_a_task_that_is_refused_before_it_runs_ends_without_an_attempt(serve: Serve, peer: Peer) -> None:
    notes, replica = Notes(), await serve(Desk())
    replica.peer.ports.observers.add(notes)

    late = AgentMessage.new(
        "task",
        peer.ports.identity,
        {"text": "hi"},
        routing=Routing(timeout=1),
        timestamp=peer.clock.time() - 10,
    )
    await peer.queue.put(peer.subjects.task("desk.echo"), late.encode(), msg_id=late.id)
    await _settled(notes, late.id)

    (ended,) = notes.heard
    assert (ended.outcome.kind, ended.served, ended.attempt, ended.seconds) == ("expired", "desk.echo", 0, 0)


async def test_children_name_their_parent_and_its_conversation(serve: Serve, peer: Peer) -> None:
    notes, replica = Notes(), await serve(Desk())
    replica.peer.ports.observers.add(notes)

    handle = await peer.caller.submit("desk.further", {})
    assert (await peer.caller.outcome(handle)).unwrap() == "far"
    await _settled(notes, handle.task_id)

    (child,) = notes.of(MessagePut)
    assert (child.topic, child.parent_id) == ("desk.echo", handle.task_id)
    assert child.conversation_id == handle.task_id


async def test_events_are_told_of_and_so_is_who_handles_them(world: World, peer: Peer) -> None:
    notes, handled, plain = Notes(), Inbox(), Inbox()
    peer.ports.observers.add(notes)
    turns = EventTurns(
        "desk.hear",
        lambda message: handled(message.payload.content),
        peer.ports,
        pattern="news.*",
        retries=Retries(1, 0.0, 0.0),
        run_timeout_s=5,
    )
    pump = Pump(peer.events, EventGroup("desk.hear", "news.*", "first", LEASE_S), turns.run, slots=1)
    await pump.start()
    listening = await peer.bus.subscribe(peer.subjects.event("news.*"), plain)

    await peer.caller.sender.publish("news.weather", "rain")
    assert (await plain.next()).headers["traceparent"].startswith("of ")
    await peer.caller.sender.publish_durable("news.sport", "goal", event_id="goal-1")
    assert await handled.next() == "goal"

    async def is_told() -> bool:
        return bool(notes.of(TurnEnded))

    await until(is_told)
    assert [each.kind for each in notes.of(MessagePut)] == ["event", "durable"]
    assert len(notes.of(MessageStored)) == 2
    (begun,), (ended,) = notes.of(TurnBegun), notes.of(TurnEnded)
    assert (begun.kind, begun.agent, begun.topic, begun.served) == ("durable", "desk.hear", "news.sport", "news.*")
    assert begun.headers["traceparent"] == "of goal-1"
    assert (ended.end, ended.attempt, ended.outcome) == ("handled", 1, None)
    await pump.aclose()
    await listening.aclose()


async def test_an_observer_that_breaks_changes_nothing_and_is_told_of_once(
    serve: Serve, peer: Peer, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, notes = Broken(), Notes()
    replica = await serve(Desk())
    for place in (peer, replica.peer):
        place.ports.observers.add(broken)
        place.ports.observers.add(notes)

    for text in ("one", "two"):
        assert (await peer.caller.ask("desk.echo", {"text": text})).unwrap() == text

    assert len(broken.heard) == len(notes.heard) >= 9
    # Once in each of the two processes.
    assert capsys.readouterr().out.count("observer.broke") == 2
    await peer.ports.observers.aclose()
    await peer.ports.observers.aclose()
    assert (broken.closed, notes.closed) == (1, 1)
    assert not peer.ports.observers.on


async def test_who_is_removed_hears_nothing_more(serve: Serve, peer: Peer) -> None:
    notes = Notes()
    await serve(Desk())
    peer.ports.observers.add(notes)
    peer.ports.observers.remove(notes)
    peer.ports.observers.remove(notes)

    assert (await peer.caller.ask("desk.echo", {"text": "hi"})).unwrap() == "hi"
    assert notes.heard == []


def test_what_is_no_observer_is_refused() -> None:
    with pytest.raises(ConfigError, match="no observer"):
        Observers().add(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["no_such_module:Notes", "json:no_such_name", "squadron", "json:dumps"])
def test_an_observer_that_cannot_be_made_says_which(path: str) -> None:
    with pytest.raises(ConfigError, match=path) as caught:
        load_observer(path)
    assert "my_package" in caught.value.hint


async def test_the_observers_that_are_set_hear_from_the_first_moment_and_are_closed_at_the_end() -> None:
    from squadron.bridge.memory import MemoryServer
    from squadron.runtime.wire.envelope import AgentIdentity

    path = f"{__name__}:Notes"
    settings = Settings(env="test", observers=f" {path}, {path} ")
    place: Place = MemoryServer("test").place(AgentIdentity(id="one", type="test"), settings)
    await place.start()
    observers = place.ports.observers
    assert len(observers._each) == 2
    notes = observers._each[0]
    await place.aclose()
    assert isinstance(notes, Notes)
    assert notes.closed == 1

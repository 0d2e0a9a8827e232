"""Everybody signs, and everybody checks: over both kinds of ports."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, patch

import pytest

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import on, on_durable, topic
from squadron.actors.runs.entries import Epoch, Started
from squadron.actors.runs.log import RunLog
from squadron.actors.thinking.notes import Notes
from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.control.control import Bridge
from squadron.bridge.control.finding import Finder
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MAX_PAYLOAD_BYTES, MemoryServer
from squadron.bridge.place import Place
from squadron.bridge.status_relay import StatusRelay, own_status
from squadron.config import Settings
from squadron.replay.past_runs import RunArchive
from squadron.runtime.asking.cancel import request_cancel
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.asking.task import claim_id
from squadron.runtime.background import spawn
from squadron.runtime.errors import (
    ConfigError,
    InvalidMessageError,
    SupersededError,
    UnknownLetterError,
    UntrustedError,
)
from squadron.runtime.ports.bus import Note
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.ports.queue import Backlog
from squadron.runtime.registry.learned import MOST_OF_SOURCE
from squadron.runtime.running.context import Context
from squadron.runtime.running.pump import Pump
from squadron.runtime.store.own_journal import OwnJournal, memory_owner
from squadron.runtime.telemetry.happenings import Distrusted
from squadron.runtime.texts import encoded
from squadron.runtime.trust.agent_sender import SENDER_HEADER, AgentSender
from squadron.runtime.trust.carried import CARRIED_HEADER, Carried, carry
from squadron.runtime.trust.principals import Role
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, pack
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Cancelled, DeadLettered, Rejected, Result, outcome_msg_id
from squadron.runtime.wire.route import Route
from squadron.runtime.wire.subjects import OrderedSubject, TicketSubject, token_of
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from squadron.testing import turned_time
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import Inbox, NoReplicas, Peer, Replica, peer_of, until
from tests.trusted import Realm


class Echo(Agent):
    """Says it again."""

    @topic("text.echo", description="Echo a text")
    async def echo(self, ctx: Context, text: str) -> dict[str, Any]:
        return {"text": text, "by": ctx.agent}


Join = Callable[..., Awaitable[Peer]]


@dataclasses.dataclass
class Land:
    """Where everybody has a credential."""

    kind: str
    realm: Realm
    join: Join
    replicas: list[Replica]

    async def serve(self, agent: Agent, *, verify: str = "require", name: str = "", **how: Any) -> Replica:
        """One replica, whose card the bridge tells."""
        spec = AgentSpec.of(type(agent))
        bridge = await self.join("bridge", "bridge")
        peer = await self.join(name or spec.name, "agent", verify=verify)
        replica = Replica(peer, agent, **how)
        await bridge.registry.advertise(spec.card())
        await replica.start(card=False)
        self.replicas.append(replica)
        return replica


@pytest.fixture(params=["memory", "jetstream"])
async def land(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Land]:
    realm = Realm()
    trust = tmp_path / "trust.json"
    trust.write_bytes(realm.document())
    closers: list[Callable[[], Awaitable[None]]] = []
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            stack.enter_context(turned_time())
            server, base = MemoryServer("test"), Settings(env="test", heartbeat_s=HEARTBEAT_S)
        else:
            base = request.getfixturevalue("settings")

        async def join(name: str, role: Role | None, *, verify: str = "require") -> Peer:
            creds = realm.write(tmp_path, name, role) if role else None
            known = {"trust": trust} if role or verify != "off" else {}
            settings = dataclasses.replace(base, nats_user_credentials=creds, verify=verify, **known)
            identity, place = AgentIdentity(id=name, type="test"), None
            if request.param == "memory":
                place = server.place(identity, settings)
                closers.append(place.aclose)
                await place.start()
            else:
                place = await Wiring.open(settings, identity, create=True)
                closers.append(place.aclose)
            made: Place = place
            return peer_of(made)

        made = Land(request.param, realm, join, [])
        yield made
        for replica in made.replicas:
            await replica.aclose()
        for close in reversed(closers):
            await close()


SOON = AskOptions(within_s=10)


async def test_an_ask_is_answered_where_all_is_signed_and_checked(land: Land) -> None:
    await land.serve(Echo())
    ann = await land.join("ann", "client")
    outcome = await ann.caller.ask("text.echo", {"text": "hi"}, SOON)
    assert isinstance(outcome, Result), outcome
    assert outcome.data == {"text": "hi", "by": "echo"}
    assert not ann.ports.guard.refused


async def test_what_is_said_to_others_by_their_protocol_is_not_signed_and_keeps_its_place(land: Land) -> None:
    ann, inbox = await land.join("ann", "client"), Inbox()
    await ann.bus.subscribe("_INBOX.mine", inbox)
    for number, signed in enumerate((True, False, True, False)):
        await ann.bus.publish("_INBOX.mine", b"%d" % number, headers={"A": "b"}, signed=signed)
    notes = [await inbox.next() for _ in range(4)]
    assert [note.data for note in notes] == [b"0", b"1", b"2", b"3"]
    assert [SENDER_HEADER in note.headers for note in notes] == [True, False, True, False]
    assert notes[1].headers == {"A": "b"}


async def test_all_that_is_kept_says_who_put_it_there(land: Land) -> None:
    replica = await land.serve(Echo())
    ann = await land.join("ann", "client")
    handle = await ann.caller.submit("text.echo", {"text": "hi"}, SOON)
    await handle.outcome()
    entry = await ann.lite.last(handle.reply_to)
    card = await ann.records.last(ann.subjects.card("echo"))
    presence = await ann.records.last(ann.subjects.presence("echo", replica.peer.ports.identity.id))
    said = []
    for each in (entry, card, presence):
        assert each is not None
        sender = AgentSender.parse(each.headers[SENDER_HEADER])
        assert sender is not None
        assert sender.subject == each.key
        said.append(sender.name)
    assert said == ["echo", "bridge", "echo"]


class Streamer(Agent):
    """Emits, and waits if it is told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.held = asyncio.Event()

    @topic("text.stream", description="Emit numbers", max_attempts=1)
    async def stream(self, ctx: Context, text: str) -> str:
        self.ran.append(ctx.message.id)
        for number in range(3):
            await ctx.emit(number)
        if text == "wait":
            await self.held.wait()
        if text == "fail":
            raise ValueError("no good")
        return text

    @topic("text.held", description="Wait")
    async def hold(self, ctx: Context, text: str) -> str:
        self.ran.append(ctx.message.id)
        await self.held.wait()
        return text


async def _eventually(is_so: Callable[[], bool]) -> None:
    async def so() -> bool:
        return is_so()

    await until(so)


async def test_chunks_are_of_the_agent_that_serves_the_topic(land: Land) -> None:
    await land.serve(Streamer())
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "agent")
    handle = await ann.caller.submit("text.stream", {"text": "wait"}, SOON)
    forged = {"sequenceNumber": 3, "chunk": "forged", "attempt": 1, "epoch": 9, "run": "r", "isFirst": True}
    data = mallory.ports.pack("stream", forged, correlation_id=handle.task_id)
    await mallory.lite.append(handle.reply_to, data)
    chunks, heard = handle.chunks(), []
    async for chunk in chunks:
        heard.append(chunk)
        if len(heard) == 3:
            land.replicas[0].agent.held.set()  # type: ignore[attr-defined]
    assert heard == [0, 1, 2]
    assert isinstance(await handle.outcome(), Result)
    assert ann.ports.guard.refused["chunk"]


async def test_an_outcome_counts_if_its_agent_signed_it_for_just_this_task(land: Land) -> None:
    await land.serve(Streamer())
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "agent")
    stranger = await land.join("Streamer-0a1b2c3d", None, verify="off")
    handle = await ann.caller.submit("text.stream", {"text": "wait"}, SOON)
    for forger in (mallory, stranger):
        outcome = Result(task_id=handle.task_id, topic=handle.topic, data="forged").to_content()
        ids: dict[str, Any] = {"parent": handle.task_id, "correlation_id": handle.task_id}
        data = forger.ports.pack("result", {"content": outcome}, **ids)
        await forger.lite.append(handle.reply_to, data)
    await _eventually(lambda: ann.ports.guard.refused["outcome"] >= 2)
    assert not handle.done
    land.replicas[0].agent.held.set()  # type: ignore[attr-defined]
    outcome = await handle.outcome()
    assert isinstance(outcome, Result), outcome
    assert outcome.data == "wait"


async def test_an_unsigned_task_ends_as_rejected_with_the_reason_and_is_counted(land: Land) -> None:
    replica = await land.serve(Streamer())
    stranger = await land.join("stranger", None, verify="off")
    told: list[Distrusted] = []

    class Ear:
        def hear(self, happening: object) -> None:
            if isinstance(happening, Distrusted):
                told.append(happening)

        async def aclose(self) -> None: ...

    replica.peer.ports.observers.add(Ear())
    outcome = await stranger.caller.ask("text.stream", {"text": "hi"}, SOON)
    assert isinstance(outcome, Rejected), outcome
    assert "not signed" in outcome.reason
    assert replica.agent.ran == []  # type: ignore[attr-defined]
    assert [(each.kind, each.taken) for each in told] == [("task", False)]


async def test_where_it_is_only_warned_an_unsigned_task_runs_and_is_counted(land: Land) -> None:
    replica = await land.serve(Streamer(), verify="warn")
    stranger = await land.join("stranger", None, verify="off")
    outcome = await stranger.caller.ask("text.stream", {"text": "hi"}, SOON)
    assert isinstance(outcome, Result), outcome
    assert replica.peer.ports.guard.refused == {"task": 1}


async def test_a_task_in_the_name_of_another_is_refused_and_harms_the_other_s_own_in_nothing(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "client")
    handle = await ann.caller.submit("text.stream", {"text": "wait"}, SOON)
    await _eventually(lambda: bool(replica.agent.ran))  # type: ignore[attr-defined]
    # The same id, source and address; then his own name, and ann's address.
    for source in (ann.ports.identity, mallory.ports.identity):
        ids: dict[str, Any] = {"id": handle.task_id, "reply_to": handle.reply_to}
        data = pack("task", source, {"content": {"text": "forged"}}, timestamp=mallory.clock.time(), **ids)
        await mallory.queue.put(mallory.subjects.task("text.stream"), data, msg_id=uuid.uuid4().hex)
    await _eventually(lambda: replica.peer.ports.guard.refused["task"] >= 1)
    replica.agent.held.set()  # type: ignore[attr-defined]
    outcome = await handle.outcome()
    assert isinstance(outcome, Result), outcome
    assert outcome.data == "wait"
    assert replica.agent.ran.count(handle.task_id) == 1  # type: ignore[attr-defined]


async def test_a_task_is_cancelled_by_its_sender_or_an_operator_only(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann = await land.join("ann", "client")
    mallory, boss = await land.join("mallory", "client"), await land.join("boss", "operator")
    handles = [await ann.caller.submit("text.stream", {"text": "wait"}, SOON) for _ in range(2)]
    until_s = ann.clock.time() + 60
    for how in ({"sender": ann.ports.identity.id}, {"operator": True}):
        await request_cancel(mallory.ports, handles[0].task_id, deadline_at_s=until_s, **how)
    await _eventually(lambda: replica.peer.ports.guard.refused["cancel"] >= 2)
    assert not handles[0].done
    assert isinstance(await handles[0].cancel(), Cancelled)
    await request_cancel(boss.ports, handles[1].task_id, deadline_at_s=until_s, operator=True)
    assert isinstance(await handles[1].outcome(), Cancelled)


@pytest.mark.parametrize("own_id", [False, True])
async def test_who_may_not_cancel_a_task_is_told_so_and_its_outcome_comes(land: Land, own_id: bool) -> None:
    replica = await land.serve(Streamer())
    ann, bob = await land.join("ann", "client"), await land.join("bob", "client")
    how = AskOptions(within_s=10, task_id="order-7") if own_id else SOON
    handle = await ann.caller.submit("text.stream", {"text": "wait"}, how)
    theirs = bob.caller.resume(handle.ticket)
    if own_id:
        theirs = await bob.caller.submit("text.stream", {"text": "wait"}, how)
    with pytest.raises(UntrustedError, match="was asked by ann") as told:
        await theirs.cancel()
    assert "operator" in told.value.hint
    assert await ann.lite.last(ann.subjects.lite("cancel", token_of(handle.task_id))) is None
    replica.agent.held.set()  # type: ignore[attr-defined]
    assert isinstance(await handle.outcome(), Result)


@pytest.mark.parametrize("runs", [True, False])
async def test_an_operator_cancels_by_a_ticket(land: Land, runs: bool) -> None:
    replica = await land.serve(Streamer())
    if not runs:
        await replica.handovers.aclose()
        await replica.pump.aclose()
    ann, boss = await land.join("ann", "client"), await land.join("boss", "operator")
    handle = await ann.caller.submit("text.stream", {"text": "wait"}, SOON)
    if runs:
        await _eventually(lambda: bool(replica.agent.ran))  # type: ignore[attr-defined]
    assert isinstance(await boss.caller.resume(handle.ticket).cancel(), Cancelled)
    assert isinstance(await handle.outcome(), Cancelled)
    if not runs:
        # Who takes it later knows it, too.
        agent = Streamer()
        await land.serve(agent)
        await until(lambda: _is_empty(ann, replica))
        assert agent.ran == []


async def _is_empty(peer: Peer, replica: Replica) -> bool:
    return await peer.queue.backlog(replica.mailbox.name) == Backlog()


async def test_what_nobody_believes_under_the_id_of_an_outcome_does_not_keep_it_away(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "client")
    handle = await ann.caller.submit("text.stream", {"text": "wait"}, SOON)
    said = Cancelled(task_id=handle.task_id, topic=handle.topic, reason="cancelled").to_content()
    ids: dict[str, Any] = {"parent": handle.task_id, "correlation_id": handle.task_id}
    msg_id = outcome_msg_id(handle.task_id, handle.reply_to)
    await mallory.lite.append(
        handle.reply_to, mallory.ports.pack("result", {"content": said}, **ids), msg_id=msg_id
    )
    replica.agent.held.set()  # type: ignore[attr-defined]
    assert isinstance(await handle.outcome(), Result)


async def test_two_principals_who_ask_under_one_id_hear_the_outcome_whoever_sent_it(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann, bob = await land.join("ann", "client"), await land.join("bob", "client")
    how = AskOptions(within_s=10, task_id="order-8")
    # Ann is there first, and dies before she has sent it.
    reply_to, deadline = ann.subjects.lite("order-8", "order-8"), Deadline.after(10, ann.clock)
    first = Handle("order-8", "text.stream", reply_to, deadline, ann.caller)
    await claim_id(ann.lite, ann.subjects, first, {"text": "hi"}, keep_s=60)
    for outcome in (
        await bob.caller.ask("text.stream", {"text": "hi"}, how),
        await ann.caller.ask("text.stream", {"text": "hi"}, how),
        await ann.caller.resume(first.ticket).outcome(),
    ):
        assert isinstance(outcome, Result), outcome
    assert replica.agent.ran == ["order-8"]  # type: ignore[attr-defined]


async def test_what_answers_another_of_the_same_id_keeps_a_task_neither_from_running_nor_its_outcome_away(
    land: Land,
) -> None:
    """It counts by one rule for who asked and who runs it."""
    replica = await land.serve(Streamer())
    ann, reply_to = await land.join("ann", "client"), replica.peer.subjects.lite("order-9", "order-9")
    said = Result(task_id="order-9", topic="text.stream", data="of another").to_content()
    ids: dict[str, Any] = {"parent": "order-9", "correlation_id": "order-9"}
    data = replica.peer.ports.pack("result", {"content": said}, metadata={"answers": {"by": "bob"}}, **ids)
    await replica.peer.lite.append(reply_to, data, msg_id=outcome_msg_id("order-9", reply_to))
    outcome = await ann.caller.ask("text.stream", {"text": "hi"}, AskOptions(within_s=10, task_id="order-9"))
    assert isinstance(outcome, Result), outcome
    assert outcome.data == "hi"


async def test_whose_task_can_t_be_read_is_told_so(land: Land) -> None:
    await land.serve(Streamer())
    ann, id = await land.join("ann", "client"), uuid.uuid4().hex
    reply_to = ann.subjects.lite("ann", id)
    handle = Handle(id, "text.stream", reply_to, Deadline.after(10, ann.clock), ann.caller)
    wire = {"id": id, "type": "task", "replyTo": reply_to, "source": {"id": "ann", "type": "test"}}
    await ann.queue.put(ann.subjects.task("text.stream"), encoded(wire), msg_id=id)
    assert isinstance(await handle.outcome(), DeadLettered)


async def test_a_dead_letter_is_put_back_as_it_was_signed(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann, boss = await land.join("ann", "client"), await land.join("boss", "operator")
    mallory = await land.join("mallory", "client")
    outcome = await ann.caller.ask("text.stream", {"text": "fail"}, SOON)
    assert isinstance(outcome, DeadLettered), outcome
    letter = await boss.place.dead_letters.show(outcome.task_id)
    assert letter.carried
    # Put back by who may not, it is refused.
    assert await mallory.place.dead_letters.redrive(letter.id)
    await _eventually(lambda: replica.peer.ports.guard.refused["task"] == 1)
    assert replica.agent.ran == [outcome.task_id]  # type: ignore[attr-defined]


async def test_an_operator_puts_a_letter_back_and_it_runs_with_its_sender_s_signature(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann, boss = await land.join("ann", "client"), await land.join("boss", "operator")
    outcome = await ann.caller.ask("text.stream", {"text": "fail"}, SOON)
    for times in (2, 3):
        letter = await boss.place.dead_letters.show(outcome.task_id)
        before = letter.message
        await boss.place.dead_letters.redrive(letter.id)
        await _eventually(lambda times=times: len(replica.agent.ran) == times)  # type: ignore[misc, attr-defined]

        async def is_buried(before: bytes = before) -> bool:
            with contextlib.suppress(UnknownLetterError):
                return (await boss.place.dead_letters.show(outcome.task_id)).message == before
            return False

        await until(is_buried)
    assert not replica.peer.ports.guard.refused


async def test_a_card_that_a_keeper_did_not_sign_changes_nothing(land: Land) -> None:
    await land.serve(Echo())
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "agent")
    assert ann.registry.find("text.echo") is not None
    card = AgentCard(agent="mallory", topics=(SemanticTopic(name="text.stolen", description="mine"),))
    await mallory.records.append(mallory.subjects.card("mallory"), card.model_dump_json().encode())
    await mallory.records.append(mallory.subjects.card("echo"), b"")
    await mallory.records.append(mallory.subjects.presence("echo", "echo-0a1b2c3d"), b'{"expires_at": 9e9}')
    await _eventually(lambda: ann.ports.guard.refused["card"] >= 2 and ann.ports.guard.refused["presence"] >= 1)
    assert ann.registry.find("text.echo") is not None
    assert ann.registry.find("text.stolen") is None
    assert len(ann.registry.replicas("echo")) == 1


async def test_a_status_of_an_agent_that_it_did_not_sign_is_not_told_on(land: Land) -> None:
    bridge, echo = await land.join("bridge", "bridge"), await land.join("echo", "agent")
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "agent")
    # Who has no credential at all.
    nobody = await land.join("nobody", None, verify="off")
    relay, heard, passed = StatusRelay(bridge.ports), Inbox(), Inbox()
    await relay.start()
    await ann.bus.subscribe(ann.subjects.event("status.*"), heard)
    environment = ann.subjects.environment
    offline, online = (own_status(environment, "echo", event) for event in ("offline", "online"))
    await nobody.bus.subscribe(online, passed)

    def said(peer: Peer, agent: str, event: str) -> bytes:
        return peer.ports.pack(
            "event", {"content": {"agent": agent, "event": f"agent_{event}", "replica": "echo"}}
        )

    try:
        for forger in (mallory, nobody):
            await forger.bus.publish(offline, said(forger, "echo", "offline"))
            await forger.bus.publish(offline, said(echo, "echo", "offline"))
        await _eventually(lambda: bridge.ports.guard.refused["event"] >= 4)
        # An agent speaks of itself alone, under its own name as well.
        await mallory.bus.publish(own_status(environment, "mallory", "offline"), said(mallory, "echo", "offline"))
        await echo.bus.publish(online, said(echo, "echo", "online"))
        note = await heard.next()
        assert note.subject == ann.subjects.event("status.online")
        signed = await ann.ports.guard.verifier.verify(note.subject, note.data, note.headers, at=None)
        assert (signed.by.role, signed.by.name) == ("bridge", "bridge")
        message = AgentMessage.decode(note.data)
        assert message.source.id == "bridge"
        assert message.payload.content == {"agent": "echo", "event": "agent_online", "replica": "echo"}
        # What was signed for one subject is good there once, and on no other.
        real = await passed.next()
        for subject in (online, offline):
            await nobody.bus.publish(subject, real.data, headers=real.headers)
        await _eventually(lambda: bridge.ports.guard.refused["event"] >= 6)
        await echo.bus.publish(offline, said(echo, "echo", "offline"))
        assert (await heard.next()).subject == ann.subjects.event("status.offline")
        assert heard.is_empty
    finally:
        await relay.aclose()


class Diarist(Agent):
    """Remembers what it was told."""

    name = "diarist"

    @topic("diary.write", description="Remember a text")
    async def write(self, ctx: Context, text: str) -> str:
        await ctx.remember(text)
        return text

    @topic("diary.read", description="What was remembered")
    async def recalls(self, ctx: Context) -> list[Any]:
        return await ctx.recall()


async def test_what_others_wrote_among_an_agent_s_memories_it_does_not_recall(land: Land) -> None:
    replica = await land.serve(Diarist())
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "agent")
    nobody = await land.join("nobody", None, verify="off")
    how = dataclasses.replace(SOON, conversation_id="c-1")
    assert (await ann.caller.ask("diary.write", {"text": "true"}, how)).unwrap() == "true"
    key = ann.subjects.lite(memory_owner("diarist"), "c-1")
    [kept] = [entry async for entry in ann.lite.read(key)]
    for forger in (mallory, nobody):
        await forger.lite.append(key, b'"forged"', ttl_s=600)
        # The very bytes and signature of what it wrote itself, on another topic.
        await forger.lite.append(key.replace("c-1", "c-2"), kept.data, ttl_s=600, headers=dict(kept.headers))
    assert (await ann.caller.ask("diary.read", {}, how)).unwrap() == ["true"]
    elsewhere = dataclasses.replace(SOON, conversation_id="c-2")
    assert (await ann.caller.ask("diary.read", {}, elsewhere)).unwrap() == []
    assert replica.peer.ports.guard.refused["own"] >= 4

    notes = Notes(OwnJournal(replica.peer.ports, "diarist", sealed=False), key.replace("memory", "notes"))
    await notes.save("the first")
    await mallory.lite.append(key.replace("memory", "notes"), b"[]", ttl_s=600)
    ended = {END_HEADER: "closed"}
    await mallory.lite.append(key.replace("memory", "notes"), b'["forged"]', ttl_s=600, headers=ended)
    assert [note.text for note in await notes.find()] == ["the first"]
    await notes.save("the second")
    assert [note.text for note in await notes.find()] == ["the second", "the first"]


async def test_what_others_wrote_into_the_log_of_a_run_is_no_part_of_it(land: Land) -> None:
    agent, mallory = await land.join("diarist", "agent"), await land.join("mallory", "agent")
    deadline = Deadline.after(60.0, agent.clock)
    epoch = Epoch(at=1.0, number=1, redriven=0, delivered=1, replica="r", deadline_at=9.0, max_rounds=3)
    first = RunLog(agent.ports, "run-1", deadline, agent="diarist")
    await first.append(epoch, about={})
    forger = RunLog(mallory.ports, "run-1", deadline)
    assert await forger.load() == [epoch]
    forged = epoch.model_copy(update={"number": 2})
    await forger.append(forged, about={})
    assert await RunLog(mallory.ports, "run-1", deadline).load() == [epoch, forged]
    # What is no message at all does not break who goes on, either.
    await mallory.ports.runs.append(agent.subjects.run("run-1"), b"rubbish", ttl_s=600)
    with pytest.raises(SupersededError):
        await first.append(epoch, about={})
    # The next attempt reads its own alone, and goes on behind all.
    log = RunLog(agent.ports, "run-1", deadline, agent="diarist")
    assert await log.load() == [epoch]
    later = epoch.model_copy(update={"number": 3})
    await log.append(later, about={})
    assert await RunLog(agent.ports, "run-1", deadline, agent="diarist").load() == [epoch, later]


async def test_a_run_that_its_agent_did_not_sign_is_not_shown_and_what_others_wrote_is_passed_over(
    land: Land,
) -> None:
    diarist, mallory = await land.join("diarist", "agent"), await land.join("mallory", "agent")
    nobody, ann = await land.join("nobody", None, verify="off"), await land.join("ann", "client")
    deadline, named = Deadline.after(60.0, ann.clock), {"agent": "diarist", "title": "true"}
    epoch = Epoch(at=1.0, number=1, redriven=0, delivered=1, replica="r", deadline_at=9.0, max_rounds=3)
    began = Started(at=1.0, agent="diarist", topic="t.t", task="t", title="true", opening=(), models=("m",))
    await RunLog(diarist.ports, "run-1", deadline, agent="diarist").append(epoch, began, about=named)
    for number, forger in enumerate((mallory, nobody)):
        # Runs that it never began, and words in the log of the one that it did: as its own, and as another's.
        await RunLog(forger.ports, f"run-{number + 2}", deadline).append(epoch, about=named | {"title": "false"})
        for about in (named | {"title": "false"}, {"agent": "mallory", "title": "taken"}):
            log = RunLog(forger.ports, "run-1", deadline)
            await log.load()
            await log.append(epoch.model_copy(update={"number": 7}), about=about)

    for peer in (ann, diarist):
        runs = await RunArchive(peer.caller, "test").list()
        assert [(info.run, info.agent, info.title) for info in runs] == [("run-1", "diarist", "true")]
        assert runs.left_out == 3  # and the one that mallory says it had in run-1
    view = await RunArchive(ann.caller, "test").show("run-1")
    assert (view.attempts, view.entries, view.passed_over) == (1, 2, 4)
    with pytest.raises(ConfigError, match="there is no run"):
        await RunArchive(ann.caller, "test").show("run-2")
    recording = await RunArchive(ann.caller, "test").export("run-1")
    assert recording.main.entries == (epoch, began)
    assert ann.ports.guard.refused["own"] >= 4
    # Who looks at no signature is told what there is.
    assert len(await RunArchive(nobody.caller, "test").list()) == 3


async def test_what_an_agent_kept_counts_once_though_it_is_put_there_again(land: Land) -> None:
    diarist, nobody = await land.join("diarist", "agent"), await land.join("nobody", None, verify="off")
    ann, own = await land.join("ann", "client"), OwnJournal(diarist.ports, "diarist", sealed=False)

    async def put_again(journal: Journal, key: str) -> None:
        first, *_ = [entry async for entry in journal.read(key)]
        sent = {SENDER_HEADER: first.headers[SENDER_HEADER]}
        await journal.append(key, first.data, ttl_s=600, headers=sent)

    key = ann.subjects.lite(memory_owner("diarist"), "c-1")
    for data in (b"old", b"new"):
        await own.append(key, data, ttl_s=600)
    await put_again(nobody.ports.lite, key)
    assert [entry.data async for entry in own.read(key)] == [b"old", b"new", b""]
    newest = await own.last(key)
    assert newest is not None
    assert newest.data == b"new"

    epoch = Epoch(at=1.0, number=1, redriven=0, delivered=1, replica="r", deadline_at=9.0, max_rounds=3)
    log = RunLog(diarist.ports, "run-1", Deadline.after(60.0, ann.clock), agent="diarist")
    for title in ("first", "second"):
        await log.append(epoch, about={"agent": "diarist", "title": title})
    await put_again(nobody.ports.runs, ann.subjects.run("run-1"))
    assert await log.load() == [epoch, epoch]
    assert [info.title for info in await RunArchive(ann.caller, "test").list()] == ["second"]


async def test_a_run_in_a_log_that_another_agent_began_is_counted_and_no_task_is_stopped_by_it(
    land: Land,
) -> None:
    diarist, mallory = await land.join("diarist", "agent"), await land.join("mallory", "agent")
    ann = await land.join("ann", "operator")
    epoch = Epoch(at=1.0, number=1, redriven=0, delivered=1, replica="r", deadline_at=9.0, max_rounds=3)
    # Whose both ends are its own, too.
    for peer in (mallory, diarist, mallory):
        name = "diarist" if peer is diarist else "mallory"
        log = RunLog(peer.ports, "run-1", Deadline.after(60.0, ann.clock))
        await log.load()
        await log.append(epoch, about={"agent": name, "task": "victim"})
        archive = RunArchive(ann.caller, "test")
        runs = await archive.list()
        assert [info.agent for info in runs] == ["mallory"]
    assert runs.left_out == 1
    with pytest.raises(ConfigError, match="several agents"):
        await archive.cancel("run-1")


async def test_runs_are_listed_again_without_another_look_and_nothing_is_told_of_them(land: Land) -> None:
    diarist, nobody = await land.join("diarist", "agent"), await land.join("nobody", None, verify="off")
    ann, about = await land.join("ann", "client"), {"agent": "diarist", "title": "true"}
    epoch = Epoch(at=1.0, number=1, redriven=0, delivered=1, replica="r", deadline_at=9.0, max_rounds=3)
    for run, peer in (("run-1", diarist), ("run-2", nobody)):
        await RunLog(peer.ports, run, Deadline.after(60.0, ann.clock)).append(epoch, about=about)
    archive, guard = RunArchive(ann.caller, "test"), ann.ports.guard
    looks = AsyncMock(wraps=guard.verifier.verify)
    with patch.object(guard.verifier, "verify", looks):
        for _ in range(2):
            runs = await archive.list()
            assert [info.run for info in runs] == ["run-1"]
            assert runs.left_out == 1
            assert looks.await_count == 2
    # Whoever looks on would have it counted for ever.
    assert not guard.refused["own"]


async def test_the_same_bytes_put_again_run_once(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", None, verify="off")
    heard = Inbox()
    await mallory.bus.subscribe(mallory.subjects.task("text.stream"), heard)
    outcome = await ann.caller.ask("text.stream", {"text": "once"}, SOON)
    note = await heard.next()
    sent = {SENDER_HEADER: note.headers[SENDER_HEADER]}
    elsewhere = mallory.subjects.task("text.stream", 7)
    for subject, id in ((note.subject, ""), (note.subject, uuid.uuid4().hex), (elsewhere, uuid.uuid4().hex)):
        await mallory.queue.put(subject, note.data, msg_id=id, headers=sent)

    async def is_settled() -> bool:
        backlog = await ann.queue.backlog(replica.mailbox.name)
        return not backlog.waiting and not backlog.taken

    await until(is_settled)
    assert replica.agent.ran == [outcome.task_id]  # type: ignore[attr-defined]
    assert replica.peer.ports.guard.refused["task"] >= 1


class Clerk(Agent):
    """Keeps order."""

    ordered_by = "conversation"

    def __init__(self) -> None:
        self.ran: list[int] = []

    @topic("desk.note", description="Note a number", max_attempts=1)
    async def note(self, ctx: Context, n: int) -> int:
        self.ran.append(n)
        if n == 13 and len(self.ran) == 1:
            raise ValueError("not today")
        return n


async def _ordered(land: Land, *, verify: str = "require") -> tuple[Clerk, Peer]:
    """A replica of an agent that keeps order."""
    agent, spec = Clerk(), AgentSpec.of(Clerk)
    bridge, peer = await land.join("bridge", "bridge"), await land.join(spec.name, "agent", verify=verify)
    replica = Replica(peer, agent)
    replica.mailbox = dataclasses.replace(replica.mailbox, ordered=True)
    replica.pump = Pump(peer.queue, replica.mailbox, replica.turns.run, slots=4)
    await bridge.registry.advertise(spec.card())
    await replica.start(card=False)
    land.replicas.append(replica)
    return agent, peer


async def test_a_task_in_line_keeps_its_sender_s_signature(land: Land) -> None:
    agent, peer = await _ordered(land)
    ann = await land.join("ann", "client")
    options = AskOptions(within_s=10, conversation_id="c1")
    outcomes = [await ann.caller.ask("desk.note", {"n": n}, options) for n in range(3)]
    assert [each.data for each in outcomes if isinstance(each, Result)] == [0, 1, 2]
    assert agent.ran == [0, 1, 2]
    assert not peer.ports.guard.refused


@pytest.mark.parametrize("verify", ["warn", "require"])
async def test_a_task_that_leaves_no_room_for_a_signature_holds_up_nothing(land: Land, verify: str) -> None:
    agent, peer = await _ordered(land, verify=verify)
    ann, stranger = await land.join("ann", "client"), await land.join("stranger", None, verify="off")
    empty = AgentMessage.new("task", AgentIdentity(id=""), {"n": 0}, conversation_id="c1").encode()
    room = stranger.place.connection.max_payload if land.kind == "jetstream" else MAX_PAYLOAD_BYTES
    task = empty.replace(b'"id":""', b'"id":"%s"' % (b"x" * (room - len(empty))))
    await stranger.queue.put(stranger.subjects.task("desk.note"), task, msg_id="")
    options = AskOptions(within_s=10, conversation_id="c1")
    assert isinstance(await ann.caller.ask("desk.note", {"n": 1}, options), Result)
    assert agent.ran == ([0, 1] if verify == "warn" else [1])
    assert peer.ports.guard.refused == {"task": 1}


async def test_what_a_stranger_puts_in_line_does_not_run(land: Land) -> None:
    agent, peer = await _ordered(land)
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "client")
    heard = Inbox()
    await mallory.bus.subscribe(mallory.subjects.task("desk.note"), heard)
    options = AskOptions(within_s=10, conversation_id="c1")
    assert isinstance(await ann.caller.ask("desk.note", {"n": 1}, options), Result)
    note = await heard.next()
    # Ann's own task, as he would have it that she sent it just now, and as she sent it.
    line = str(OrderedSubject(mallory.subjects.environment, "clerk", "c2", "desk.note"))
    for headers in (
        carry(note.headers, note.subject, at=mallory.clock.time()),
        {CARRIED_HEADER: Carried(note.headers[SENDER_HEADER], "", note.subject, 0.0).encode()},
        {},
    ):
        await mallory.queue.put(line, note.data, msg_id=uuid.uuid4().hex, headers=headers)
    ticket = TicketSubject(mallory.subjects.environment, "clerk", "c2", 0)
    await mallory.queue.put(str(ticket), b"", msg_id="")
    await _eventually(lambda: peer.ports.guard.refused["task"] >= 3)
    assert agent.ran == [1]


async def test_one_that_stood_in_line_is_put_back_and_stands_in_line_again(land: Land) -> None:
    agent, peer = await _ordered(land)
    ann, boss = await land.join("ann", "client"), await land.join("boss", "operator")
    options = AskOptions(within_s=10, conversation_id="c1")
    outcome = await ann.caller.ask("desk.note", {"n": 13}, options)
    assert isinstance(outcome, DeadLettered), outcome
    await boss.place.dead_letters.redrive(outcome.task_id)
    await _eventually(lambda: agent.ran == [13, 13])
    assert not peer.ports.guard.refused


async def test_what_is_for_one_replica_is_handed_over_with_its_signature(land: Land) -> None:
    first = await land.serve(Streamer(), name="streamer")
    second = await land.serve(Streamer(), name="streamer")
    ann = await land.join("ann", "client")
    for replica in (first, second):
        for _ in range(3):
            target = replica.peer.ports.identity.id
            route = AskOptions(within_s=10, route=Route(target=target))
            outcome = await ann.caller.ask("text.stream", {"text": "hi"}, route)
            assert isinstance(outcome, Result), outcome
            assert outcome.source == target
    assert not first.peer.ports.guard.refused
    assert not second.peer.ports.guard.refused


async def test_a_redelivery_hours_later_is_good(land: Land) -> None:
    replica = await land.serve(Streamer())
    ann = await land.join("ann", "client")
    handle = await ann.caller.submit("text.held", {"text": "hi"}, AskOptions(within_s=36_000))
    await _eventually(lambda: bool(replica.agent.ran))  # type: ignore[attr-defined]
    # It is drained, and hands back what it runs.
    await replica.aclose()
    land.replicas.remove(replica)
    if land.kind == "memory":
        await asyncio.sleep(7 * 3600)
    agent = Streamer()
    agent.held.set()
    again = await land.serve(agent)
    outcome = await handle.outcome()
    assert isinstance(outcome, Result), outcome
    assert agent.ran == [handle.task_id]
    assert not again.peer.ports.guard.refused


async def test_priorities_and_queries_are_signed_for_where_they_were_published(land: Land) -> None:
    replica = await land.serve(Echo())
    ann = await land.join("ann", "client")
    high = AskOptions(within_s=10, priority=9)
    assert isinstance(await ann.caller.ask("text.echo", {"text": "hi"}, high), Result)
    assert not replica.peer.ports.guard.refused


async def held() -> dict[str, int]:
    return {}


async def kept() -> tuple[str, ...]:
    return ()


async def test_the_bridge_is_told_what_to_do_by_operators_only_and_its_answers_are_its_own(land: Land) -> None:
    peer = await land.join("bridge", "bridge")
    bridge = Bridge(peer.ports, peer.registry, peer.records, NoReplicas(), held, kept, {}, lease_s=1.5)
    await bridge.start()
    try:
        for name, role, allowed in (
            ("ann", "client", False),
            ("echo", "agent", False),
            ("boss", "operator", True),
        ):
            someone = await land.join(name, role)  # type: ignore[arg-type]
            control = Control(someone.bus, someone.subjects, someone.ports.guard)
            assert (await control.call("ping"))["environment"] == someone.subjects.environment
            with pytest.raises(ConfigError if allowed else UntrustedError):
                await control.call("undeploy", agent="echo")
            # What an agent serves it says itself, and of nobody else; this bridge knows no such call.
            with pytest.raises(InvalidMessageError if name == "echo" else UntrustedError):
                await control.call("offer.echo", operations=[])
            with pytest.raises(UntrustedError):
                await control.call("offer.other", operations=[])
        stranger = await land.join("stranger", None, verify="off")
        with pytest.raises(UntrustedError, match="not signed"):
            await Control(stranger.bus, stranger.subjects).call("undeploy", agent="echo")
    finally:
        await bridge.aclose()


async def test_who_teaches_is_who_signed_whoever_they_say_they_are(land: Land) -> None:
    await land.serve(Echo())
    peer = await land.join("bridge", "bridge")
    finder = Finder(peer.ports, peer.registry, peer.records)
    bridge = Bridge(
        peer.ports, peer.registry, peer.records, NoReplicas(), held, kept, {}, lease_s=1.5, more=finder.verbs
    )
    await bridge.start()
    try:
        mallory = await land.join("mallory", "client")
        control = Control(mallory.bus, mallory.subjects, mallory.ports.guard)
        for number in range(2 * MOST_OF_SOURCE):
            said = {"by": f"user{number}", "source": f"user{number}"}
            await control.call("prefer", intent=f"lie {number}", topic="text.echo", **said)
        lessons = (await control.call("lessons"))["lessons"]["text.echo"]
        assert [each["by"] for each in lessons] == [{"mallory": 1}] * MOST_OF_SOURCE
        with pytest.raises(UntrustedError):
            await control.call("forget")
    finally:
        await bridge.aclose()


async def test_a_bridge_that_is_none_is_not_believed(land: Land) -> None:
    mallory, boss = await land.join("mallory", "agent"), await land.join("boss", "operator")

    def hear(note: Note) -> None:
        spawn(mallory.bus.publish(note.reply, b'{"ok": {}}'), "answers")

    await mallory.bus.subscribe(mallory.subjects.control("*"), hear)
    with pytest.raises(UntrustedError, match="mallory"):
        await Control(boss.bus, boss.subjects, boss.ports.guard).call("status")


async def test_what_the_bridge_answered_to_another_call_is_no_answer(land: Land) -> None:
    bridge, boss = await land.join("bridge", "bridge"), await land.join("boss", "operator")
    stranger = await land.join("stranger", None, verify="off")
    heard: list[Note] = []
    await stranger.bus.subscribe(boss.subjects.event("bridge.said"), heard.append)
    await bridge.bus.publish(
        boss.subjects.event("bridge.said"), b'{"ok": {}, "verb": "scale", "callId": "of somebody else"}'
    )

    async def is_heard() -> bool:
        return bool(heard)

    await until(is_heard)

    def hear(note: Note) -> None:
        again = stranger.bus.publish(note.reply, heard[0].data, headers=dict(heard[0].headers))
        spawn(again, "answers in the bridge's words")

    await stranger.bus.subscribe(boss.subjects.control("scale"), hear)
    with pytest.raises(UntrustedError, match="another call"):
        await Control(boss.bus, boss.subjects, boss.ports.guard).call("scale", agent="echo", to="1")


class Listener(Agent):
    """Hears events."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @topic("text.unused", description="Nothing")
    async def unused(self, ctx: Context, text: str) -> str:
        return text

    @on("news.*")
    async def on_news(self, message: AgentMessage) -> None:
        self.heard.append(message.payload.content)

    @on_durable("ledger.*")
    async def on_ledger(self, message: AgentMessage) -> None:
        self.heard.append(message.payload.content)


async def test_events_are_heard_of_who_signed_them(land: Land) -> None:
    spec, agent = AgentSpec.of(Listener), Listener()
    peer = await land.join(spec.name, "agent")
    host = Host(peer.place, agent, spec, slots=2)
    await peer.queue.declare(host.mailbox)
    await host.start()
    try:
        ann, stranger = await land.join("ann", "client"), await land.join("stranger", None, verify="off")
        for sender, content in ((stranger, "forged"), (ann, "true")):
            await sender.caller.sender.publish("news.today", content)
            await sender.caller.sender.publish_durable("ledger.entry", content)
        await _eventually(lambda: len(agent.heard) >= 2 and peer.ports.guard.refused["event"] >= 2)
        assert agent.heard == ["true", "true"]
    finally:
        await host.stop(1.0)

"""Sealed tasks over both worlds: whoever is not meant finds nothing, and all else works as without seals."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic_core import from_json

from squadron import Agent, Context, LLMAgent, Retry, Terminal, topic
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import ModelTurn, ToolCall
from squadron.actors.thinking.notes import SAVE
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.negotiation import Submit, negotiate
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import InvalidInputError, KeyLostError
from squadron.runtime.lite.reader import LiteMessage
from squadron.runtime.ports.journal import Entry
from squadron.runtime.running.pump import Pump
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.sealed import is_sealed, open_message
from squadron.runtime.store.seals import Seals
from squadron.runtime.telemetry.happenings import Happening
from squadron.runtime.texts import digest_of
from squadron.runtime.trust.ring_file import read_ring
from squadron.runtime.trust.sealing import KeyRing
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Payload
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Cancelled, DeadLettered, Failed, Rejected, Result
from squadron.testing import ScriptedModel
from tests.contract import command
from tests.contract.audit_worlds import archiving, audited, recorded
from tests.contract.conftest import ON_NATS, SIGNED, Peer, Replica, Serve, World, until

#: What nobody but asker and agent may find anywhere. The store is searched for its bytes.
CANARY = "planted-canary-5d1f"
SEALED = AskOptions(sealed=True, within_s=20)
#: More than a message may have, so that it goes to the vault.
LARGE = f"{CANARY} " * 60_000


#: Where everybody signs, who tests is the bridge, which puts no letters back.
UNSIGNED = pytest.mark.skipif(SIGNED, reason="who tests is no operator there")
#: Where who tests may write cards and look at everything.
BOTH = pytest.mark.parametrize("world", ["memory", "jetstream"], indirect=True)


class Ear:
    """An observer that keeps what it hears, as text."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def hear(self, happening: Happening) -> None:
        self.heard.append(repr(happening))

    async def aclose(self) -> None:
        """It has nothing."""


class Clinic(Agent):
    """Has secrets."""

    name = "clinic"

    def __init__(self) -> None:
        self.failing = True
        self.running = asyncio.Event()
        self.seen: list[str] = []

    @topic("clinic.note", sealed=True, backoff_s=(0.01, 0.02))
    async def note(self, text: str, ctx: Context) -> str:
        """Say it again, and part of it before."""
        await ctx.emit({"part": text[:40]})
        await ctx.remember({"said": text[:40]})
        return f"heard {text}"

    @topic("clinic.flaky", sealed=True, backoff_s=(0.01, 0.02))
    async def flaky(self, text: str, ctx: Context) -> str:
        """Goes well at the third attempt."""
        await ctx.emit({"attempt": ctx.attempt, "text": text})
        if ctx.attempt < 3:
            raise Retry(f"not yet: {text}", after_s=0.01)
        return text

    @topic("clinic.broken", sealed=True, max_attempts=2, backoff_s=(0.01, 0.02))
    async def broken(self, text: str) -> str:
        """Fails as long as it is told to."""
        if self.failing:
            raise ValueError(f"can't take {text}")
        return f"at last {text}"

    @topic("clinic.terminal", sealed=True)
    async def terminal(self, text: str) -> str:
        """Fails at once."""
        raise Terminal(f"never {text}")

    @topic("clinic.picky", sealed=True)
    async def picky(self, text: str) -> str:
        """Likes nothing."""
        raise InvalidInputError(f"not {text}", field=text)

    @topic("clinic.slow", sealed=True)
    async def slow(self, text: str) -> str:
        """Never ends by itself."""
        self.running.set()
        await asyncio.sleep(3600)
        return text

    @topic("clinic.flood", sealed=True)
    async def flood(self, text: str, ctx: Context) -> int:
        """Emit more than a message may have."""
        await ctx.emit(text)
        await ctx.emit("small")
        return len(text)

    @topic("clinic.who", sealed=True)
    async def who(self, ctx: Context) -> str:
        """Its replica."""
        self.running.set()
        await asyncio.sleep(0.05)
        return ctx.caller.ports.identity.id  # type: ignore[attr-defined,no-any-return]

    @topic("clinic.open")
    async def open(self, text: str, ctx: Context) -> str:
        """Takes what is sealed, and what is not."""
        return f"{text} {ctx.is_sealed}"

    @topic("clinic.board", sealed=True)
    async def board(self, text: str, ctx: Context) -> dict[str, Any]:
        """Write on a lite topic, and read what stands there."""
        board = ctx.lite("case-1", "boards")
        await board.publish({"text": text}, msg_id="first")
        await ctx.lite("case-1", "boards", readable=True).publish("for all")
        async with board.read(live=False) as messages:
            read = [message.content async for message in messages]
        try:
            await board.publish(text.encode())
        except InvalidInputError as error:
            return {"read": read, "bytes": str(error)}
        return {"read": read}

    @topic("clinic.tell", sealed=True)
    async def tell(self, text: str, how: str, ctx: Context) -> str:
        """Tell everybody."""
        if how == "readable":
            await ctx.publish("clinic.done", {"all": "well"}, readable=True)
            await ctx.publish_durable("clinic.done", {"all": "well"}, readable=True)
        elif how == "durable":
            await ctx.publish_durable("clinic.done", {"text": text})
        else:
            await ctx.publish("clinic.done", {"text": text})
        return "told"

    @topic("clinic.refer", sealed=True)
    async def refer(self, text: str, ctx: Context) -> str:
        """Asks a topic that takes anything."""
        return str((await ctx.ask("clinic.open", {"text": text})).unwrap())

    @topic("clinic.recall", sealed=True)
    async def recalls(self, ctx: Context) -> list[Any]:
        """What it remembers."""
        return await ctx.recall()


@pytest.fixture
async def clinic(serve: Serve) -> Clinic:
    agent = Clinic()
    await serve(agent)
    return agent


async def stored(peer: Peer, pattern: str = "") -> list[Entry]:
    return [entry async for entry in peer.lite.read(pattern or peer.subjects.lite_of())]


async def test_only_the_asker_reads_what_a_sealed_topic_answers(peer: Peer, clinic: Clinic) -> None:
    handle = await peer.caller.submit("clinic.note", {"text": CANARY}, AskOptions(within_s=20))
    assert [chunk async for chunk in handle.chunks()] == [{"part": CANARY}]
    assert (await handle.outcome()).unwrap() == f"heard {CANARY}"
    entries = await stored(peer)
    assert any(b'"sealed"' in entry.data for entry in entries)
    assert not [entry.key for entry in entries if CANARY.encode() in entry.data]
    of_task = [AgentMessage.decode(entry.data) for entry in entries if entry.key == handle.reply_to]
    assert all(is_sealed(message) for message in of_task)
    assert {message.context.metadata.get("sensitive") for message in of_task} == {True}
    # Who has another key reads none of it.
    for message in of_task:
        with pytest.raises(KeyLostError):
            open_message(message, KeyRing.create(), handle.reply_to)


async def test_a_topic_that_is_not_sealed_is_asked_sealed_by_whoever_wants_it(peer: Peer, clinic: Clinic) -> None:
    assert (await peer.caller.ask("clinic.open", {"text": CANARY}, SEALED)).unwrap() == f"{CANARY} True"
    assert (await peer.caller.ask("clinic.open", {"text": "plain"})).unwrap() == "plain False"


async def test_what_a_sealed_task_asks_is_sealed_too(peer: Peer, clinic: Clinic) -> None:
    assert (await peer.caller.ask("clinic.refer", {"text": CANARY})).unwrap() == f"{CANARY} True"
    assert not [entry.key for entry in await stored(peer) if CANARY.encode() in entry.data]


async def test_large_inputs_and_answers_are_sealed_in_the_vault(peer: Peer, clinic: Clinic) -> None:
    kept: list[bytes] = []
    vault = peer.claims.vault
    store = vault.store

    async def watched(data: bytes, **how: Any) -> str:
        kept.append(data)
        return await store(data, **how)

    vault.store = watched  # type: ignore[method-assign]  # it only looks
    outcome = await peer.caller.ask("clinic.note", {"text": LARGE}, AskOptions(within_s=30))
    assert outcome.unwrap() == f"heard {LARGE}"
    assert len(kept) == 1
    assert len(kept[0]) > len(LARGE)
    assert CANARY.encode() not in kept[0]


async def test_large_chunks_are_sealed_in_the_vault(peer: Peer, clinic: Clinic) -> None:
    handle = await peer.caller.submit("clinic.flood", {"text": LARGE}, AskOptions(within_s=30))
    assert [chunk async for chunk in handle.chunks()] == [LARGE, "small"]
    assert (await handle.outcome()).unwrap() == len(LARGE)
    assert not [entry.key for entry in await stored(peer) if CANARY.encode() in entry.data]


async def test_any_replica_opens_what_is_sealed_for_its_agent(peer: Peer, serve: Serve) -> None:
    for name in ("one", "two"):
        await serve(Clinic(), name=name, slots=1)
    handles = [await peer.caller.submit("clinic.who", {}, AskOptions(within_s=30)) for _ in range(8)]
    assert {(await handle.outcome()).unwrap() for handle in handles} == {"one", "two"}


async def test_chunks_of_later_attempts_are_sealed_and_read_in_order(peer: Peer, clinic: Clinic) -> None:
    handle = await peer.caller.submit("clinic.flaky", {"text": CANARY}, AskOptions(within_s=20))
    chunks = [chunk async for chunk in handle.chunks()]
    assert chunks[-1] == {"attempt": 3, "text": CANARY}
    assert (await handle.outcome()).unwrap() == CANARY
    notes = await stored(peer, peer.subjects.lite_of(handle.task_id))
    assert notes
    assert not [entry.key for entry in await stored(peer) if CANARY.encode() in entry.data]


async def test_chunks_of_nested_tasks_are_read_by_who_asked_first(
    peer: Peer, serve: Serve, clinic: Clinic
) -> None:
    class Desk(Agent):
        """Passes on."""

        name = "desk"

        @topic("desk.pass", sealed=True)
        async def passes(self, text: str, ctx: Context) -> str:
            """Pass it on."""
            return str((await ctx.ask("clinic.note", {"text": text})).unwrap())

    await serve(Desk(), name="desk-1")
    handle = await peer.caller.submit("desk.pass", {"text": CANARY}, AskOptions(nested=True, within_s=20))
    events = [event async for event in handle.events()]
    assert [event.chunk.value for event in events if hasattr(event, "chunk")] == [{"part": CANARY}]


async def test_another_process_of_the_asker_resumes_and_a_stranger_is_told_that_he_can_t(
    world: World, peer: Peer, clinic: Clinic
) -> None:
    handle = await peer.caller.submit("clinic.note", {"text": CANARY}, AskOptions(within_s=20))
    ticket = handle.ticket
    assert CANARY not in ticket
    await handle.outcome()
    # Of the same principal, which on a server is by the file of the home.
    same = await world.join("tester-0a1b2c3d")
    assert (await same.caller.resume(ticket).outcome()).unwrap() == f"heard {CANARY}"
    stranger = await world.join("stranger")
    stranger.claims.seals = Seals()
    outcome = await stranger.caller.resume(ticket).outcome()
    assert isinstance(outcome, Failed)
    assert "that key is not here" in outcome.reason
    assert "put the key back" in outcome.reason


async def test_what_a_sealed_task_writes_on_a_lite_topic_is_read_by_its_asker_and_its_agent_alone(
    world: World, peer: Peer, clinic: Clinic
) -> None:
    outcome = await peer.caller.ask("clinic.board", {"text": CANARY}, AskOptions(within_s=20))
    both = [{"text": CANARY}, "for all"]
    assert outcome.unwrap()["read"] == both
    assert "bytes are not sealed" in outcome.unwrap()["bytes"]
    entries = await stored(peer, peer.subjects.lite("boards", "case-1"))
    assert len(entries) == 2
    assert not [entry.key for entry in await stored(peer) if CANARY.encode() in entry.data]
    assert await on_board(peer) == both
    assert await followed(peer) == both
    # Another process of the asker reads it, and a stranger what is for all.
    assert await on_board(await world.join("tester-0a1b2c3d")) == both
    stranger = await world.join("stranger")
    stranger.claims.seals = Seals()
    assert await on_board(stranger) == await followed(stranger) == [None, "for all"]


async def on_board(peer: Peer, id: str = "case-1") -> list[Any]:
    async with peer.caller.lite_topics.topic(id, "boards").read(live=False) as messages:
        return [message.content async for message in messages]


async def followed(peer: Peer) -> list[Any]:
    found: list[Any] = []
    async with peer.caller.lite_topics.follow("boards") as feed:
        await feed.add("case-1", "first")
        async for _, items in feed:
            found += [item.content for item in items if isinstance(item, LiteMessage)]
            if len(found) >= 2:
                return found
    return found


async def test_a_large_message_of_a_lite_topic_is_sealed_in_the_vault(peer: Peer, clinic: Clinic) -> None:
    outcome = await peer.caller.ask("clinic.board", {"text": LARGE}, AskOptions(within_s=30))
    assert outcome.unwrap()["read"] == [{"text": LARGE}, "for all"]
    assert await on_board(peer) == [{"text": LARGE}, "for all"]
    assert not [entry.key for entry in await stored(peer) if CANARY.encode() in entry.data]


async def test_a_sealed_message_of_a_lite_topic_opens_on_no_other(peer: Peer, clinic: Clinic) -> None:
    await peer.caller.ask("clinic.board", {"text": CANARY}, AskOptions(within_s=20))
    sealed, _ = await stored(peer, peer.subjects.lite("boards", "case-1"))
    said = AgentMessage.decode(sealed.data)
    # Its own words: else nobody who looks who signed them hands them out at all.
    moved = said.model_copy(update={"source": AgentIdentity(id=peer.ports.identity.id)})
    not_his = [None] if peer.ports.guard is None else []
    for name, message, shown in (("case-2", said, not_his), ("case-3", moved, [None])):
        await peer.lite.append(peer.subjects.lite("boards", name), message.encode(), ttl_s=60)
        assert await on_board(peer, name) == shown


@pytest.mark.parametrize("how", ["plain", "durable"])
async def test_a_sealed_task_publishes_no_event_but_what_it_says_is_for_all(
    peer: Peer, clinic: Clinic, how: str
) -> None:
    heard: list[bytes] = []
    hear = await peer.bus.subscribe(peer.subjects.event("clinic.done"), lambda note: heard.append(note.data))
    outcome = await peer.caller.ask("clinic.tell", {"text": CANARY, "how": how}, AskOptions(within_s=20))
    assert isinstance(outcome, Rejected)
    assert "a sealed task publishes no clinic.done" in outcome.reason
    assert outcome.details["field"] == "sealed"
    # Those that it may send come after any that it should not have sent.
    outcome = await peer.caller.ask("clinic.tell", {"text": CANARY, "how": "readable"}, AskOptions(within_s=20))
    assert outcome.unwrap() == "told"
    await until(lambda: _told(heard))
    assert {json.dumps(AgentMessage.decode(data).payload.content) for data in heard} == {'{"all": "well"}'}
    await hear.aclose()


async def _told(heard: list[bytes]) -> bool:
    return len(heard) >= 2


@BOTH
@UNSIGNED
async def test_a_dead_letter_of_a_sealed_task_says_nothing_opens_with_the_agent_s_key_and_goes_back(
    peer: Peer, serve: Serve
) -> None:
    clinic = Clinic()
    replica = await serve(clinic)
    outcome = await peer.caller.ask("clinic.broken", {"text": CANARY}, AskOptions(within_s=20))
    assert isinstance(outcome, DeadLettered)
    assert f"can't take {CANARY}" in outcome.reason
    letters = DeadLetters(peer.ports)
    [letter] = await letters.list()
    assert CANARY not in json.dumps(letter.to_dict())
    assert letter.last_error == ""
    assert letter.reason.startswith("ValueError")
    with pytest.raises(KeyLostError):
        await letters.opened(letter)
    whole = await DeadLetters(replica.peer.ports).opened(letter)
    assert json.loads(whole.message)["payload"]["content"] == {"text": CANARY}
    assert whole.last_error == f"ValueError: can't take {CANARY}"
    assert f"can't take {CANARY}" in whole.reason
    clinic.failing = False
    handle = await peer.caller.adopt(
        letter.id, "clinic.broken", from_json(letter.message)["replyTo"], Deadline.after(20, peer.clock)
    )
    await letters.redrive(letter.id)
    await until(lambda: _ended(peer, handle.reply_to, f"at last {CANARY}"))


async def _ended(peer: Peer, key: str, data: str) -> bool:
    ring = await peer.claims.seals.ring()
    for entry in await stored(peer, key):
        message = AgentMessage.decode(entry.data)
        if message.type == "result" and is_sealed(message):
            content = open_message(message, ring, key).payload.content
            if content.get("data") == data:
                return True
    return False


async def test_what_an_agent_rejects_is_told_to_its_asker_and_to_nobody_else(peer: Peer, clinic: Clinic) -> None:
    for name, kind in (("clinic.terminal", Failed), ("clinic.picky", Rejected)):
        outcome = await peer.caller.ask(name, {"text": CANARY}, AskOptions(within_s=20))
        assert isinstance(outcome, kind)
        assert CANARY in outcome.reason
    assert CANARY not in json.dumps([letter.to_dict() for letter in await DeadLetters(peer.ports).list()])
    assert not [entry.key for entry in await stored(peer) if CANARY.encode() in entry.data]


async def test_a_sealed_task_is_cancelled(peer: Peer, clinic: Clinic) -> None:
    handle = await peer.caller.submit("clinic.slow", {"text": CANARY}, AskOptions(within_s=60))
    await clinic.running.wait()
    assert isinstance(await handle.cancel(), Cancelled)


@pytest.fixture
async def before(peer: Peer, serve: Serve) -> Handle:
    """What holds up all tasks of the clinic, until it is cancelled."""
    clinic = Clinic()
    await serve(clinic, slots=1)
    handle = await peer.caller.submit("clinic.slow", {"text": ""}, AskOptions(within_s=60))
    await clinic.running.wait()
    return handle


async def test_a_result_that_is_not_sealed_keeps_no_sealed_task_from_being_run(
    world: World, peer: Peer, before: Handle
) -> None:
    evil = await world.join("evil")
    # Under an id of its own it is looked for before it runs, as what comes again is.
    handle = await peer.caller.submit("clinic.note", {"text": CANARY}, AskOptions(task_id="order-7", within_s=20))
    said = {"success": True, "outcome": "result", "data": "forged"}
    head = {"correlation_id": handle.task_id, "parent": handle.task_id}
    forged = AgentMessage.new("result", AgentIdentity(id="clinic-1"), said, **head)
    await evil.lite.append(handle.reply_to, forged.encode(), ttl_s=60)
    await before.cancel()
    assert (await handle.outcome()).unwrap() == f"heard {CANARY}"


async def test_a_sealed_result_that_nobody_can_open_ends_no_task_that_is_not_sealed(
    world: World, peer: Peer, before: Handle
) -> None:
    evil = await world.join("evil")
    handle = await peer.caller.submit("clinic.open", {"text": "x"}, AskOptions(task_id="order-8", within_s=20))
    forged = AgentMessage.new(
        "result", AgentIdentity(id="clinic-1"), 0, parent="order-8", correlation_id="order-8"
    )
    raw = json.loads(forged.encode())
    raw["payload"] = {"sealed": {"v": 1, "data": "AAAA", "keys": {}}}
    await evil.lite.append(handle.reply_to, json.dumps(raw).encode(), ttl_s=60)
    await before.cancel()
    assert (await handle.outcome()).unwrap() == "x False"


async def test_under_an_id_of_one_s_own_the_note_of_the_id_can_t_be_guessed_by(peer: Peer, clinic: Clinic) -> None:
    options = AskOptions(task_id="order-7", within_s=20)
    first = await peer.caller.ask("clinic.note", {"text": CANARY}, options)
    again = await peer.caller.ask("clinic.note", {"text": CANARY}, options)
    assert first.unwrap() == again.unwrap() == f"heard {CANARY}"
    other = await peer.caller.ask("clinic.note", {"text": "other"}, options)
    assert isinstance(other, Rejected)
    guess = digest_of({"text": CANARY}).encode()
    assert not [entry.key for entry in await stored(peer) if guess in entry.data]


async def test_memory_of_a_sealed_conversation_is_the_agent_s_alone(peer: Peer, clinic: Clinic) -> None:
    options = AskOptions(conversation_id="case-1", within_s=20)
    await peer.caller.ask("clinic.note", {"text": CANARY}, options)
    assert (await peer.caller.ask("clinic.recall", {}, options)).unwrap() == [{"said": CANARY}]
    assert not [entry.key for entry in await stored(peer) if CANARY.encode() in entry.data]


class Scribe(Agent):
    """Keeps the order of a conversation."""

    name = "scribe"
    ordered_by = "conversation"

    def __init__(self) -> None:
        self.written: list[tuple[str, str]] = []

    @topic("scribe.write", sealed=True)
    async def write(self, text: str, ctx: Context) -> str:
        """Write it down."""
        await asyncio.sleep(0.001)
        self.written.append((ctx.message.context.conversation_id, text))
        return text


@BOTH
async def test_sealed_tasks_keep_the_order_of_their_conversation(world: World, peer: Peer) -> None:
    agent, mine = Scribe(), await world.join("scribe-1", agent="scribe")
    replica = Replica(mine, agent, seal_key=world.seal_key("scribe"))
    replica.mailbox = replace(replica.mailbox, ordered=True)
    replica.pump = Pump(mine.queue, replica.mailbox, replica.turns.run, slots=4)
    await replica.start()
    options = [AskOptions(conversation_id=f"c-{number % 2}", within_s=20) for number in range(12)]
    handles = [
        await peer.caller.submit("scribe.write", {"text": f"{CANARY} {number}"}, each)
        for number, each in enumerate(options)
    ]
    assert [(await handle.outcome()).unwrap() for handle in handles] == [f"{CANARY} {n}" for n in range(12)]
    for which in (0, 1):
        said = [text for conversation, text in agent.written if conversation == f"c-{which}"]
        assert said == [f"{CANARY} {number}" for number in range(which, 12, 2)]
    await replica.aclose()


class Counsel(LLMAgent):
    """Thinks about it."""

    name = "counsel"
    takes_notes = True

    @topic("counsel.advise", sealed=True)
    async def advise(self, text: str, ctx: Context) -> str:
        """Give advice."""
        return await self.think(ctx, text)

    @topic("counsel.consult", sealed=True)
    async def consult(self, text: str, ctx: Context) -> str:
        """Ask people."""
        return str(await ctx.ask_person(f"what of {text}?"))

    def make_model(self, spec: str) -> ScriptedModel:
        note = ToolCall("n", SAVE, {"text": f"remember {CANARY}"})
        return ScriptedModel([ModelTurn("", (note,)), f"be calm about {CANARY}", f"still {CANARY}"])


async def test_what_an_agent_thinks_about_a_sealed_task_is_its_own(world: World, peer: Peer, serve: Serve) -> None:
    ear = Ear()
    replica = await serve(Counsel())
    replica.peer.ports.observers.add(ear)
    options = AskOptions(conversation_id="talk-1", model="scripted:test", within_s=30)
    assert (
        await peer.caller.ask("counsel.advise", {"text": CANARY}, options)
    ).unwrap() == f"be calm about {CANARY}"
    # It remembers what was said, and took a note.
    assert (await peer.caller.ask("counsel.advise", {"text": "and now?"}, options)).unwrap() == f"still {CANARY}"
    runs = [entry async for entry in replica.peer.ports.runs.read(peer.subjects.run())]
    assert runs
    found = [entry.key for entry in [*runs, *await stored(replica.peer)] if CANARY.encode() in entry.data]
    assert not found
    assert not [each for each in ear.heard if CANARY in each]
    # Its agent reads the log, and goes on from it; nobody else does.
    of_agent = [entries_of(message) async for _, message in read(replica.peer.ports, runs[0].key)]
    assert any(CANARY in repr(each) for each in of_agent)
    of_others = [entries_of(message) async for _, message in read(replace_seals(replica.peer), runs[0].key)]
    assert not any(of_others)


def replace_seals(peer: Peer) -> Ports:
    claims = copy.copy(peer.claims)
    claims.seals = Seals()
    return replace(peer.ports, claims=claims)


async def test_people_are_not_asked_about_what_is_sealed(peer: Peer, serve: Serve) -> None:
    await serve(Counsel())
    outcome = await peer.caller.ask("counsel.consult", {"text": CANARY}, AskOptions(within_s=20))
    assert isinstance(outcome, Rejected)
    assert "a sealed task asks no people" in outcome.reason
    assert not await stored(peer, peer.subjects.lite_of("people"))


async def test_who_bids_for_a_sealed_task_is_told_no_digest_of_it(peer: Peer, clinic: Clinic) -> None:
    asked: list[bytes] = []
    hear = await peer.bus.subscribe(peer.subjects.negotiate("clinic"), lambda note: asked.append(note.data))
    outcome = await negotiate(
        peer.caller, submit_of(peer), ["clinic.note"], {"text": CANARY}, {"within_s": 20}, bids_within_s=5
    )
    assert outcome.unwrap() == f"heard {CANARY}"
    [call] = [AgentMessage.decode(data) for data in asked if b'"query"' in data]
    assert call.payload.content["digest"] == ""
    await hear.aclose()


def submit_of(peer: Peer) -> Submit:
    async def submit(name: str, content: Any, **options: Any) -> Any:
        return await peer.caller.submit(name, content, AskOptions.of(options))

    return submit


# --- who tries to get round it ---------------------------------------------------------------------------


async def _put(peer: Peer, message: AgentMessage, name: str) -> None:
    await peer.queue.put(peer.subjects.task(name), message.encode(), msg_id=message.id)


def _task(peer: Peer, id: str, content: Any, *, sensitive: bool = False) -> AgentMessage:
    message = AgentMessage.new(
        "task",
        AgentIdentity(id=peer.ports.identity.id),
        payload=Payload(content=content),
        id=id,
        reply_to=peer.subjects.lite(f"{peer.ports.identity.id}-asks", id),
        timestamp=peer.clock.time(),
    )
    context = message.context.model_copy(update={"metadata": {"sensitive": sensitive}})
    return message.model_copy(update={"context": context})


@pytest.mark.parametrize(("name", "sensitive"), [("clinic.note", False), ("clinic.open", True)])
async def test_what_anybody_can_read_is_rejected_where_nobody_is_to(
    peer: Peer, clinic: Clinic, name: str, sensitive: bool
) -> None:
    message = _task(peer, "plain-1", {"text": "for all to read"}, sensitive=sensitive)
    handle = await peer.caller.adopt("plain-1", name, message.reply_to or "", Deadline.after(20, peer.clock))
    await _put(peer, message, name)
    outcome = await handle.outcome()
    assert isinstance(outcome, Rejected)
    assert "takes sealed payloads only" in outcome.reason
    assert "seal it for the key in the agent's card" in outcome.reason


async def test_a_readable_result_does_not_answer_a_sealed_task(peer: Peer, clinic: Clinic) -> None:
    handle = await peer.caller.submit("clinic.slow", {"text": CANARY}, AskOptions(within_s=60))
    content = Result(data="forged").to_content()
    forged = peer.ports.pack("result", {"content": content}, parent=handle.task_id, correlation_id=handle.task_id)
    await peer.lite.append(handle.reply_to, forged, ttl_s=60, msg_id="forged")
    await until(lambda: _passed_over(peer))
    assert not handle.done
    await handle.cancel()


async def _passed_over(peer: Peer) -> bool:
    return peer.caller.passed_over > 0


async def test_a_ciphertext_in_another_envelope_is_rejected(peer: Peer, clinic: Clinic) -> None:
    sent: list[bytes] = []
    put = peer.queue.put

    async def watched(subject: str, data: bytes, **how: Any) -> Any:
        sent.append(data)
        return await put(subject, data, **how)

    peer.queue.put = watched  # type: ignore[method-assign]  # it only looks
    await peer.caller.ask("clinic.note", {"text": CANARY}, AskOptions(within_s=20))
    [data] = sent
    good = AgentMessage.decode(data)
    moved = under_id(good, peer, "moved-1")
    for name, message in (("clinic.note", moved), ("clinic.terminal", under_id(good, peer, "moved-2"))):
        handle = await peer.caller.adopt(message.id, name, message.reply_to or "", Deadline.after(20, peer.clock))
        await _put(peer, message, name)
        outcome = await handle.outcome()
        assert isinstance(outcome, Rejected)
        assert "stands elsewhere than it was sealed for" in outcome.reason


def under_id(message: AgentMessage, peer: Peer, id: str) -> AgentMessage:
    return message.model_copy(update={"id": id, "reply_to": peer.subjects.lite("tester-asks", id)})


# --- keys ------------------------------------------------------------------------------------------------


@BOTH
async def test_who_has_no_key_in_its_card_is_not_asked_sealed_and_the_door_says_so(
    world: World, peer: Peer, serve: Serve
) -> None:
    replica = await serve(Clinic())
    await replica.peer.registry.advertise(replica.spec.card())
    await peer.registry.refresh(float("inf"))
    await until(lambda: _keyless(peer))
    for options in (AskOptions(within_s=5), SEALED):
        outcome = await peer.caller.ask("clinic.note", {"text": CANARY}, options)
        assert isinstance(outcome, Rejected)
        assert "clinic has no key in its card" in outcome.reason
        assert "deploy it" in outcome.reason
        assert outcome.details == {"field": "sealed"}


async def _keyless(peer: Peer) -> bool:
    found = peer.registry.find("clinic.note")
    return found is not None and found.seal_key == ""


@BOTH
@UNSIGNED
async def test_a_key_is_rotated_while_the_agent_runs_and_older_messages_still_open(
    world: World, peer: Peer, serve: Serve
) -> None:
    agent = Clinic()
    replica = await serve(agent)
    before = world.seal_key("clinic")
    assert isinstance(
        await peer.caller.ask("clinic.broken", {"text": CANARY}, AskOptions(within_s=20)), DeadLettered
    )
    world.rotate("clinic")
    after = world.seal_key("clinic")
    assert after != before
    await replica.peer.registry.advertise(replica.spec.card().with_key(after))
    await until(lambda: _has_key(peer, after))
    # A replica that knows the old ring asks for the new one.
    assert (await peer.caller.ask("clinic.note", {"text": CANARY}, AskOptions(within_s=30))).ok
    agent.failing = False
    letters = DeadLetters(peer.ports)
    [letter] = await letters.list()
    await letters.redrive(letter.id)
    await until(lambda: _ended(peer, from_json(letter.message)["replyTo"], f"at last {CANARY}"))


async def _has_key(peer: Peer, key: str) -> bool:
    found = peer.registry.find("clinic.note")
    return found is not None and found.seal_key == key


@BOTH
@UNSIGNED
@pytest.mark.parametrize("own_id", ["", "order-7"])
async def test_a_lost_key_is_told_and_the_letter_waits_for_it(
    world: World, peer: Peer, serve: Serve, own_id: str
) -> None:
    replica = await serve(Clinic())
    ring = await replica.peer.claims.seals.ring()
    replica.peer.claims.seals = Seals()
    options = AskOptions(within_s=30, task_id=own_id)
    outcome = await peer.caller.ask("clinic.note", {"text": CANARY}, options)
    assert isinstance(outcome, DeadLettered), outcome
    assert ring.public.kid in outcome.reason
    assert "put the key back" in outcome.reason
    replica.peer.claims.seals.known = ring
    letters = DeadLetters(peer.ports)
    [letter] = await letters.list()
    await letters.redrive(letter.id)
    await until(lambda: _ended(peer, from_json(letter.message)["replyTo"], f"heard {CANARY}"))


# --- what is left anywhere -------------------------------------------------------------------------------


def files_with(folder: Path, words: bytes) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and words in path.read_bytes()]


@ON_NATS
async def test_on_disk_in_logs_and_with_observers_nothing_is_found(world: World, peer: Peer, serve: Serve) -> None:
    assert world.settings is not None
    ear, agent = Ear(), Clinic()
    replica = await serve(agent)
    peer.ports.observers.add(ear)
    replica.peer.ports.observers.add(ear)
    plain = "plain-canary-77aa"
    with structlog.testing.capture_logs() as logs:
        await peer.caller.ask("clinic.open", {"text": plain})
        for name in ("note", "flaky", "broken", "terminal", "picky", "refer", "board"):
            await peer.caller.ask(f"clinic.{name}", {"text": CANARY}, AskOptions(within_s=20))
        await peer.caller.ask("clinic.note", {"text": LARGE}, AskOptions(within_s=30, task_id="large-1"))
        handle = await peer.caller.submit("clinic.slow", {"text": CANARY}, AskOptions(within_s=60))
        await agent.running.wait()
        await handle.cancel()
    assert not [line for line in logs if CANARY in repr(line)]
    assert ear.heard
    assert not [each for each in ear.heard if CANARY in each]
    store = Path(embedded.ensure(world.settings.home).store_dir)
    # The search finds what is there.
    assert files_with(store, plain.encode())
    assert not files_with(store, CANARY.encode())


@ON_NATS
@UNSIGNED
async def test_the_command_line_opens_a_letter_with_the_agent_s_key(
    world: World, peer: Peer, clinic: Clinic
) -> None:
    assert world.settings is not None
    outcome = await peer.caller.ask("clinic.broken", {"text": CANARY}, AskOptions(within_s=20))
    show, wiring = ("dlq", "show", outcome.task_id), peer.place
    assert isinstance(wiring, Wiring)
    code, out, err = await command.run(wiring, *show)
    assert (code, CANARY in out + err) == (0, False), err
    rings = world.settings.home / "keys" / world.settings.env
    code, out, err = await command.run(wiring, *show, "--key", str(rings / "agents" / "clinic.json"))
    assert code == 0, err
    assert f"can't take {CANARY}" in out
    code, out, err = await command.run(wiring, *show, "--key", str(rings / "client.json"))
    assert code != 0
    assert "that key is not here" in err


@ON_NATS
async def test_a_full_audit_trail_of_sealed_tasks_holds_what_was_stored(
    world: World, peer: Peer, clinic: Clinic
) -> None:
    assert world.settings is not None
    assert isinstance(peer.place, Wiring)
    trail = await audited(peer.place, "full", chunks=True)
    async with archiving(world.settings):
        outcome = await peer.caller.ask("clinic.flaky", {"text": CANARY}, AskOptions(within_s=20))
        assert outcome.unwrap() == CANARY
        await peer.caller.ask("clinic.broken", {"text": CANARY}, AskOptions(within_s=20))
        said = json.dumps(await recorded(trail, 4))
    assert "sealed" in said
    assert CANARY not in said


@ON_NATS
@UNSIGNED
async def test_keys_are_in_files_that_only_their_owner_reads(world: World, peer: Peer, clinic: Clinic) -> None:
    assert world.settings is not None
    await peer.caller.ask("clinic.note", {"text": CANARY}, AskOptions(within_s=20))
    folder = world.settings.home / "keys" / world.settings.env
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    assert files == ["agents/clinic.json", "client.json"]
    assert all((folder / name).stat().st_mode & 0o077 == 0 for name in files)
    assert str(read_ring(folder / "agents/clinic.json").public) == world.seal_key("clinic")


@BOTH
async def test_a_turn_that_breaks_over_a_sealed_task_leaves_none_of_its_words_in_the_log(
    world: World, peer: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await serve(Clinic())
    run, broke = replica.turns._attempt, asyncio.Event()

    async def breaks(*args: Any, **kwargs: Any) -> Any:
        if broke.is_set():
            return await run(*args, **kwargs)
        broke.set()
        raise RuntimeError(f"of our own, with {CANARY}")

    monkeypatch.setattr(replica.turns, "_attempt", breaks)
    with structlog.testing.capture_logs() as logs:
        outcome = await peer.caller.ask("clinic.note", {"text": CANARY}, AskOptions(within_s=30))
    assert outcome.unwrap() == f"heard {CANARY}"
    (line,) = [each for each in logs if each["event"] == "pump.turn_broke"]
    assert line["error"] == "RuntimeError"
    assert "test_sealed.py" in line["at"]
    assert CANARY not in repr(logs)

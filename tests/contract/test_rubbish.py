"""Rubbish where only we write: whoever reads it goes on, with what was there before."""

from __future__ import annotations

import ast
import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Context, topic
from squadron.actors.runs.entries import Epoch
from squadron.actors.runs.log import RunLog
from squadron.actors.thinking.account import AccountLog
from squadron.actors.thinking.notes import Notes
from squadron.bridge.jetstream.lease import NOTE_TTL_S
from squadron.runtime.asking.cancel import Cancellations, cancellable
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.lite.exclusive import ExclusiveCursor, cursor_key
from squadron.runtime.ports.lite_journal import LiteJournal
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.running.once import mark_key
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.store.own_journal import owners_of
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Result
from squadron.runtime.wire.subjects import TicketSubject
from tests.contract.conftest import ON_NATS, SOON_S, Inbox, Peer, Serve, until
from tests.contract.test_fuzz import JUNK

ROOT = Path(__file__).parents[2]
#: What breaks readers of numbers in particular, and of JSON that is almost right.
RUBBISH = (
    *JUNK,
    b"",
    b"-5",
    b"1_0",
    b"9" * 4_300,
    "²".encode(),
    *(
        json.dumps({key: value}).replace('"MARK"', raw).encode()
        for key in ("seq", "epoch", "held", "until", "last", "ttlS", "size", "started_at", "taskId", "topic")
        for value, raw in (("MARK", "1e400"), ("MARK", "NaN"), ("x", ""), ([], ""), (None, ""), (-1, ""))
    ),
)

#: Owners of lite topics that we write for ourselves: where the test of their readers is. `run` is a run's own.
COVERED = {
    "begun": "test_rubbish_on_how_often_work_began_lets_it_begin",
    "begun-": "test_rubbish_on_which_copy_of_a_task_began_lets_it_run",
    "cursor": "test_rubbish_on_an_exclusive_readers_place_is_passed_over",
    "cancel": "test_rubbish_cancels_nothing",
    "memory-": "test_rubbish_in_a_conversations_memory_is_left_out",
    "outcome": "test_rubbish_on_all_subjects_changes_nothing_for_good_messages",
    "talk-": "test_what_others_wrote_there_changes_nothing",
    "notes-": "test_rubbish_in_the_place_of_notes_is_no_note",
    "asked": "test_rubbish_on_what_a_task_id_stands_for_stands_for_nothing",
    "allowance": "test_a_count_that_a_stranger_wrote_is_not_believed",
    "model-account": "test_rubbish_about_a_model_account_holds_nobody_up",
    "model-pause": "test_rubbish_about_a_model_account_holds_nobody_up",
    # After the name of the protocol.
    "-": "test_rubbish_where_a_task_elsewhere_is_noted_has_it_sent",
    "a2a-push-sender": "test_rubbish_where_it_stands_who_sends_is_passed_over",
    "holder": "the one key of that owner",
    "doctor": "nobody reads it: what counts is whether it can be stored",
}


def test_no_lite_topic_of_our_own_is_left_out() -> None:
    named = {owner.removesuffix("clerk") for owner in owners_of("clerk")}
    for path in [each for part in ("runtime", "bridge", "actors") for each in (ROOT / part).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("lite", "lite_of"):
                for argument in node.args:
                    for part in ast.walk(argument):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            named.add(part.value)
    assert named - {" "} == COVERED.keys()


@ON_NATS
async def test_rubbish_on_how_often_work_began_lets_it_begin(peer: Peer) -> None:
    box, inbox = Mailbox("desk", ("desk.task",), 30.0), Inbox()
    await peer.queue.declare(box)
    feed = await peer.queue.consume(box, inbox)
    feed.want(len(RUBBISH) * 3)
    for number, rubbish in enumerate(RUBBISH):
        await peer.queue.put(peer.subjects.task("desk.task"), b"{}", msg_id=f"m{number}")
        delivery = await inbox.next()
        await delivery.lease.begin()
        await delivery.lease.release()
        again = await inbox.next()
        await peer.lite.append(peer.subjects.lite("begun", str(again.seq)), rubbish, ttl_s=NOTE_TTL_S)
        begun = await again.lease.begin()
        assert begun >= 1, rubbish
        await again.lease.release()
        once_more = await inbox.next()
        assert await once_more.lease.begin() == begun + 1, rubbish
        await once_more.lease.settle()
    await feed.aclose()


async def test_rubbish_on_an_exclusive_readers_place_is_passed_over(peer: Peer) -> None:
    key = peer.subjects.lite("owner", "a")
    seqs = [await peer.lite.append(key, b"%d" % number) for number in range(3)]
    for number, rubbish in enumerate(RUBBISH):
        place = cursor_key(peer.subjects, key, f"reader{number}")
        await peer.lite.append(place, rubbish)
        first = await ExclusiveCursor.take(peer.lite, place)
        assert (first.seq, first.epoch) == (0, 1), rubbish
        await first.step(seqs[1])
        await first.release(done=False)
        await peer.lite.append(place, rubbish)

        second = await ExclusiveCursor.take(peer.lite, place)

        assert (second.seq, second.epoch) == (seqs[1], 2), rubbish
        await second.release(done=False)


async def test_rubbish_cancels_nothing(peer: Peer) -> None:
    cancels = Cancellations(peer.ports)
    await cancels.start()
    for number, rubbish in enumerate(RUBBISH):
        await peer.lite.append(peer.subjects.lite("cancel", f"t{number}"), rubbish)
        await peer.bus.publish(peer.subjects.lite("cancel", f"u{number}"), rubbish)
    await cancels.aclose()
    await cancels.start()
    tasks = [cancellable(f"{kind}{number}", "tester") for kind in "tu" for number in range(len(RUBBISH))]
    assert not any(map(cancels.includes, tasks))
    await cancels.aclose()


class Clerk(Agent):
    """Remembers and serves."""

    @topic("clerk.recall")
    async def recall(self, ctx: Context) -> list[Any]:
        """What it remembers, and one thing more."""
        await ctx.remember("good")
        return await ctx.recall(most=1_000)


async def test_rubbish_in_a_conversations_memory_is_left_out(peer: Peer, serve: Serve) -> None:
    await serve(Clerk())
    for rubbish in RUBBISH:
        await peer.lite.append(peer.subjects.lite("memory-clerk", "talk"), rubbish)

    outcome = await peer.caller.ask("clerk.recall", {}, AskOptions(within_s=SOON_S, conversation_id="talk"))

    assert outcome.unwrap()[-1] == "good"


async def test_rubbish_in_the_place_of_notes_is_no_note(peer: Peer) -> None:
    for number, rubbish in enumerate(RUBBISH):
        key = peer.subjects.lite("notes-clerk", f"scope{number}")
        await peer.lite.append(key, rubbish)
        notes = Notes(peer.lite, key, peer.clock.time)
        assert await notes.find() == [], rubbish
        await notes.call("save_note", {"text": "good"})
        assert [note.text for note in await notes.find()] == ["good"], rubbish


async def test_rubbish_about_a_model_account_holds_nobody_up(peer: Peer) -> None:
    key, pauses = peer.subjects.lite("model-account", "x"), peer.subjects.lite("model-pause", "x")
    log, heard = AccountLog(peer.lite, key, pauses, peer.clock), list[float]()
    listening = await log.hear_pauses(heard.append)
    for rubbish in RUBBISH:
        await peer.lite.append(pauses, rubbish, ttl_s=60.0)
        await peer.lite.append(key, rubbish, ttl_s=60.0)
        state = await log.change(lambda state: (state, state))
        assert all(map(math.isfinite, (state.paused_until, *state.next_at.values()))), rubbish
    await log.tell_pause(12.5)

    async def is_heard() -> bool:
        return 12.5 in heard

    await until(is_heard)
    assert all(map(math.isfinite, heard))
    await listening.aclose()


@ON_NATS
@pytest.mark.parametrize("place", ["talk.x", "talk.-1", "*.1", "talk.²", "other.1", "talk.99999999999999999999"])
async def test_a_ticket_that_is_none_is_taken_away_and_holds_up_nobody(peer: Peer, place: str) -> None:
    box = Mailbox("in-order", ("clerk.recall",), 1.0, ordered=True)
    tickets = peer.subjects.tickets("in-order").removesuffix("*.*")
    await peer.queue.declare(box)
    inbox = Inbox()
    feed = await peer.queue.consume(box, inbox)
    feed.want(2)
    for _ in range(5):
        # As a stranger does, who knows no grammar.
        await peer.bus.publish(tickets + place, b"")
    message = AgentMessage.new("task", peer.caller.ports.identity, {}, conversation_id="talk")
    await peer.queue.put(peer.subjects.task("clerk.recall"), message.encode(), msg_id="good")

    delivery = await inbox.next()
    assert AgentMessage.decode(delivery.data).id == message.id
    await delivery.lease.settle()

    async def nothing_left() -> bool:
        return await peer.queue.store.count(peer.subjects.tickets("in-order")) == 0

    await until(nothing_left)
    await feed.aclose()


async def test_letters_that_are_none_are_shown_as_they_are(peer: Peer) -> None:
    letters = DeadLetters(peer.ports)
    contents = [
        {"taskId": "t", "subject": "s", "message": 5},
        {"taskId": "t", "subject": "s", "messageBase64": 5},
        {"taskId": "t", "subject": "s", "message": "\ud800"},
        {"taskId": "t", "subject": "s", "message": "m", "success": False, "error": {"details": {"attempts": []}}},
    ]
    for content in contents:
        data = json.loads(AgentMessage.new("event", peer.caller.ports.identity, 1).encode())
        data["payload"]["content"] = content
        await peer.dead.append(peer.subjects.dead("clerk", f"t{id(content)}"), json.dumps(data).encode())
    huge = {**contents[0], "message": "m", "success": False, "error": {"details": {"attempts": "MARK"}}}
    data["payload"]["content"] = huge
    await peer.dead.append(
        peer.subjects.dead("clerk", "huge"), json.dumps(data).replace('"MARK"', "1e400").encode()
    )
    for number, rubbish in enumerate(RUBBISH):
        await peer.dead.append(peer.subjects.dead("clerk", f"r{number}"), rubbish)

    assert len(await letters.list(most=1_000)) == len(contents) + 1 + len(RUBBISH)


async def test_rubbish_in_an_end_marker_is_an_end(peer: Peer) -> None:
    lite: LiteJournal = peer.caller.ports.lite
    for number, rubbish in enumerate(RUBBISH):
        own = peer.caller.lite_topics.topic(f"t{number}", "owner")
        await own.publish(1)
        reader = own.read()
        assert (await anext(reader)).content == 1
        await lite.end(own.key, rubbish, keep_s=60.0)
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(reader), SOON_S)
        assert reader.end is not None
        assert reader.end.reason == "closed"


async def test_rubbish_as_the_order_to_end_a_topic_gives_it_a_life(peer: Peer) -> None:
    for number, rubbish in enumerate(RUBBISH):
        mine = peer.caller.lite_topics.topic(f"t{number}", "owner")
        await peer.caller.ports.lite.end_at(mine.key, rubbish, at=peer.clock.time() + 600, keep_s=60.0)
        assert await mine.publish(1) > 0


async def test_rubbish_on_what_a_task_id_stands_for_stands_for_nothing(peer: Peer, serve: Serve) -> None:
    await serve(Clerk())
    plain = [each for each in RUBBISH if b'"topic"' not in each]
    for number, rubbish in enumerate(plain):
        await peer.lite.append(peer.subjects.lite(f"id-{number}", "asked"), rubbish)
        asked = await peer.caller.ask("clerk.recall", {}, AskOptions(within_s=SOON_S, task_id=f"id-{number}"))
        assert isinstance(asked, Result), rubbish


async def test_rubbish_on_which_copy_of_a_task_began_lets_it_run(peer: Peer, serve: Serve) -> None:
    await serve(Clerk())
    ports = peer.caller.ports
    for rubbish in RUBBISH:
        message = AgentMessage.new("task", ports.identity, {})
        await peer.lite.append(mark_key(ports.subjects, message), rubbish)
        await peer.queue.put(peer.subjects.task("clerk.recall"), message.encode(), msg_id=message.id)

        async def ended(task_id: str = message.id) -> bool:
            return await peer.lite.last(peer.subjects.lite("outcome", task_id)) is not None

        await until(ended)


async def test_rubbish_in_the_log_of_a_run_is_left_out(peer: Peer) -> None:
    ports = peer.caller.ports
    for rubbish in RUBBISH:
        await ports.runs.append(ports.subjects.run("run-1"), rubbish, ttl_s=60.0)
    deadline = Deadline.after(60.0, ports.clock)
    log = RunLog(ports, "run-1", deadline)
    assert await log.load() == []
    epoch = Epoch(at=1.0, number=1, redriven=0, delivered=1, replica="r", deadline_at=9.0, max_rounds=3)
    await log.append(epoch, about={})
    assert await RunLog(ports, "run-1", deadline).load() == [epoch]


async def test_the_redrive_count_of_a_stranger_is_no_number_of_ours(peer: Peer, serve: Serve) -> None:
    await serve(Clerk())
    for number, count in enumerate((10**400, -(10**400), True, "9" * 4_000, -1, [1] * 100, 1e308)):
        task_id = f"odd-{number}"
        me = peer.caller.ports.identity
        message = AgentMessage.new("task", me, {}, id=task_id, metadata={"redriven": count})
        await peer.queue.put(peer.subjects.task("clerk.recall"), message.encode(), msg_id=task_id)

        async def ended(task_id: str = task_id) -> bool:
            return await peer.lite.last(peer.subjects.lite("outcome", task_id)) is not None

        await until(ended)
        stored = await peer.lite.last(peer.subjects.lite("outcome", task_id))
        assert stored is not None
        result = AgentMessage.decode(stored.data)
        assert (result.payload.content["outcome"], result.metadata) == ("result", None), count


def test_a_ticket_has_tokens_and_a_number_of_digits() -> None:
    good = TicketSubject("test", "box", "talk", 7)
    assert TicketSubject.parse(str(good)) == good

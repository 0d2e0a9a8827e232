"""What a stranger sends who knows the subjects: honest agents do nothing in its name that it has no business with.

V4 and its like are weaknesses by these names; see docs/security.md.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.memory import MemoryServer
from squadron.config import Settings
from squadron.runtime.asking.cancel import is_cancelled, request_cancel
from squadron.runtime.errors import ConfigError
from squadron.runtime.ports.queue import Backlog
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.replies import unfit_reply
from squadron.runtime.wire.subjects import Subjects, token_of
from tests.contract.conftest import Inbox, Peer, Serve, World, first_stored, until


class Desk(Agent):
    """Counts what it ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.go = asyncio.Event()

    @topic("desk.count")
    async def count(self, number: int) -> int:
        self.ran.append(number)
        return number

    @topic("desk.wait")
    async def wait(self, number: int) -> int:
        self.ran.append(number)
        await self.go.wait()
        return number


def task(peer: Peer, number: int, *, id: str, reply_to: str | None = None, sender: str = "", **head: Any) -> bytes:
    """A task as anybody can make it."""
    source = AgentIdentity(id=sender or peer.ports.identity.id)
    head.setdefault("timestamp", peer.clock.time())
    return AgentMessage.new("task", source, {"number": number}, id=id, reply_to=reply_to, **head).encode()


async def put(peer: Peer, data: bytes, *, msg_id: str = "", name: str = "desk.count") -> None:
    await peer.queue.put(peer.subjects.task(name), data, msg_id=msg_id)


async def emptied(peer: Peer, name: str = "desk") -> None:
    async def is_empty() -> bool:
        return await peer.queue.backlog(name) == Backlog()

    await until(is_empty)


async def stored(peer: Peer, key: str) -> list[bytes]:
    return [entry.data async for entry in peer.lite.read(key)]


#: Lite topics that are nobody's to be answered on, or somebody else's.
FOREIGN = [
    ("memory-analyst", "c-1"),
    ("talk-analyst", "c-1"),
    ("notes-analyst", "c-1"),
    ("begun", "17"),
    ("cursor", "abc"),
    ("cancel", "task-1"),
    ("outcome", "task-1"),
    ("people", "q-1"),
    ("parked", "task-1"),
    ("model-account", "openai"),
    ("victim", "task-1"),
    ("victim-asks", "task-1"),
    ("evil", "asked"),
    ("evil", "begun"),
    ("run-0123456789abcdef01234567", "task-1"),
]


@pytest.mark.parametrize(("owner", "id"), FOREIGN, ids=[".".join(each) for each in FOREIGN])
async def test_v4_no_answer_is_written_on_a_lite_topic_that_is_not_the_senders(
    world: World, serve: Serve, owner: str, id: str
) -> None:
    peer, desk = await world.join("evil"), Desk()
    await serve(desk)
    address = peer.subjects.lite(owner, id)
    await put(peer, task(peer, 1, id="task-of-evil", reply_to=address), msg_id="task-of-evil")

    told = await first_stored(peer.lite, peer.subjects.lite("outcome", "task-of-evil"))
    content = told.payload.content
    assert (content["outcome"], content["error"]["details"]["field"]) == ("rejected", "replyTo")
    assert address in content["error"]["message"]
    await emptied(peer)
    assert (desk.ran, await stored(peer, address)) == ([], [])


async def test_v4_poison_is_not_answered_on_a_lite_topic_that_is_not_the_senders(
    world: World, serve: Serve
) -> None:
    peer = await world.join("evil")
    await serve(Desk())
    address = peer.subjects.lite("memory-desk", "c-1")
    await put(peer, task(peer, 1, id="bad", reply_to=address).replace(b'"1.0"', b'"9.9"'), msg_id="bad")
    await emptied(peer)
    assert await stored(peer, address) == []


async def test_v4_the_senders_own_addresses_are_answered(world: World, serve: Serve) -> None:
    peer, desk = await world.join("evil"), Desk()
    await serve(desk)
    addresses = [
        ("shop-17", "shop-17", "t1"),
        ("shop-17-asks", "shop-17", "t2"),
        ("shop", "shop-0a1b2c3d", "t3"),
        ("run-0123456789abcdef01234567", "planner-1", "run-0123456789abcdef01234567-c1-0"),
    ]
    for owner, sender, id in addresses:
        reply_to = peer.subjects.lite(owner, id)
        await put(peer, task(peer, 1, id=id, reply_to=reply_to, sender=sender), msg_id=id)
        assert (await first_stored(peer.lite, reply_to)).payload.content["outcome"] == "result"


def test_v4_who_is_called_like_what_is_internal_gets_nothing_written_there() -> None:
    subjects = Subjects("dev")
    for owner in ("memory-analyst", "talk-a", "notes-a", "cancel", "begun", "people"):
        message = AgentMessage.new("task", AgentIdentity(id=owner), 1, reply_to=subjects.lite(owner, "t"))
        assert "not for outcomes" in unfit_reply(message, subjects)
    # An agent may be called so all the same: its own asks are answered.
    replica = AgentIdentity(id="memory-keeper-0a1b2c3d")
    message = AgentMessage.new("task", replica, 1, reply_to=subjects.lite(f"{replica.id}-asks", "t"))
    assert unfit_reply(message, subjects) == ""


async def test_v4_a_call_for_bids_is_not_answered_on_a_lite_topic_of_another(world: World, serve: Serve) -> None:
    peer, content = await world.join("evil"), {"topic": "desk.count", "inputBytes": 12, "inputDigest": "0" * 64}
    await serve(Desk())
    address = peer.subjects.lite("memory-desk", "c-1")
    call = AgentMessage.new("query", peer.ports.identity, content, reply_to=address)
    await peer.bus.publish(peer.subjects.negotiate("desk"), call.encode())
    fit = peer.subjects.lite("evil", "bids")
    call = AgentMessage.new("query", peer.ports.identity, content, reply_to=fit)
    await peer.bus.publish(peer.subjects.negotiate("desk"), call.encode())
    await first_stored(peer.lite, fit)
    assert await stored(peer, address) == []


async def test_v9_answers_go_to_inboxes_and_into_no_other_system(world: World, serve: Serve) -> None:
    peer, desk, heard = await world.join("evil"), Desk(), Inbox()
    await serve(desk)
    for subject in ("orders.delete", "_INBOX.me.1"):
        await peer.bus.subscribe(subject, heard)
    await put(peer, task(peer, 1, id="t-1", reply_to="orders.delete"), msg_id="t-1")
    await put(peer, task(peer, 2, id="t-2", reply_to="_INBOX.me.1"), msg_id="t-2")
    note = await heard.next()
    assert (note.subject, AgentMessage.decode(note.data).payload.content["data"]) == ("_INBOX.me.1", 2)
    told = await first_stored(peer.lite, peer.subjects.lite("outcome", "t-1"))
    assert told.payload.content["outcome"] == "rejected"
    await emptied(peer)
    assert (desk.ran, heard.is_empty) == ([2], True)


async def test_v9_subjects_of_other_systems_can_be_allowed() -> None:
    chosen = Settings.load({"SQUADRON_REPLY_SUBJECTS": "shop.answers.*, desk.>"})
    place = MemoryServer("dev").place(AgentIdentity(id="x"), chosen)
    allowed = ("shop.answers.1", "desk.a.b", "_INBOX.x", "_INBOX_shop.x")
    assert [place.ports.subjects.is_outside(each) for each in allowed] == [True] * 4
    assert not place.ports.subjects.is_outside("shop.orders.1")
    for bad in (">", "*.x", "agents.dev.>", "$JS.API.>", "a b"):
        with pytest.raises(ConfigError, match="reply_subjects"):
            Settings.load({"SQUADRON_REPLY_SUBJECTS": bad})


def test_a_long_sender_has_addresses_too() -> None:
    subjects, long = Subjects("dev"), "x" * 100
    message = AgentMessage.new("task", AgentIdentity(id=long), 1, reply_to=subjects.lite(token_of(long), "t"))
    assert unfit_reply(message, subjects) == ""


async def test_v8_a_stranger_cancels_nothing_and_the_sender_does(world: World, serve: Serve) -> None:
    asker, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    await serve(desk)
    handle = await asker.caller.submit("desk.wait", {"number": 1})

    async def runs() -> bool:
        return desk.ran == [1]

    await until(runs)
    key, late = evil.subjects.lite("cancel", token_of(handle.task_id)), evil.clock.time() + 600
    forged = [{"until": late}, {"until": late, "by": "evil"}, {"until": late, "by": 7}, {"until": late, "by": ""}]
    for said in forged:
        # The last one also takes the message id by which a cancel used to go.
        await evil.lite.append(key, json.dumps(said).encode(), msg_id=f"{handle.task_id}.cancel")
        await evil.lite.append(key, json.dumps(said).encode())
    assert not await is_cancelled(evil.ports, handle.task_id, "asker")
    waits = await asker.caller.submit("desk.count", {"number": 2})
    await request_cancel(evil.ports, waits.task_id, deadline_at_s=late)
    assert (await waits.outcome()).ok
    desk.go.set()
    assert (await handle.outcome()).unwrap() == 1

    desk.go.clear()
    handle = await asker.caller.submit("desk.wait", {"number": 3})
    await request_cancel(evil.ports, handle.task_id, deadline_at_s=late)
    assert (await handle.cancel()).kind == "cancelled"


async def test_v8_who_has_the_ticket_cancels_and_so_does_an_operator(world: World, serve: Serve) -> None:
    asker, other, desk = await world.join("asker"), await world.join("other"), Desk()
    await serve(desk)
    handle = await asker.caller.submit("desk.wait", {"number": 1})
    assert (await other.caller.resume(handle.ticket).cancel()).kind == "cancelled"
    handle = await asker.caller.submit("desk.wait", {"number": 2})
    await request_cancel(other.ports, handle.task_id, deadline_at_s=other.clock.time() + 600, operator=True)
    assert (await handle.outcome()).kind == "cancelled"
    assert await is_cancelled(other.ports, handle.task_id, "whoever")

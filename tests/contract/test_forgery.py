"""What a stranger sends who knows the subjects: honest agents do nothing in its name that it has no business with.

V4 and its like are weaknesses by these names; see docs/security.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import squadron
from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.memory import MemoryServer
from squadron.bridge.memory.common import DUPLICATE_WINDOW_S
from squadron.bridge.packing.code import Code, pack, unpack
from squadron.config import Settings
from squadron.runtime.asking.cancel import cancellable, is_cancelled, request_cancel
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ClaimLostError, ConfigError, DeployError
from squadron.runtime.ports.queue import Backlog
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Payload
from squadron.runtime.wire.outcome import outcome_msg_id
from squadron.runtime.wire.replies import unfit_reply
from squadron.runtime.wire.subjects import Subjects, token_of
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.contract.conftest import SOON_S, Inbox, Peer, Serve, World, first_stored, stand_in, until


class Desk(Agent):
    """Counts what it ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.go = asyncio.Event()

    @topic("desk.count")
    async def count(self, number: int) -> int:
        self.ran.append(number)
        return number

    @topic("desk.slow", run_timeout_s=600)
    async def slow(self, number: int) -> int:
        return await self.wait(number)

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


#: With roles nobody answers or listens outside at all.
@pytest.mark.parametrize("world", ["memory", "jetstream"], indirect=True)
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
    assert not await is_cancelled(evil.ports, cancellable(handle.task_id, "asker"))
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
    assert await is_cancelled(other.ports, cancellable(handle.task_id, "whoever"))


async def test_v5_nobody_is_answered_under_an_id_of_another(world: World, serve: Serve) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    await serve(desk)
    address = peer.subjects.lite("order-9", "order-9")
    await put(evil, task(evil, 666, id="order-9", reply_to=address), msg_id="order-9")
    told = await first_stored(peer.lite, peer.subjects.lite("outcome", "order-9"))
    assert told.payload.content["error"]["details"] == {"field": "replyTo"}

    # It took the message id that the task would have had, and is no hindrance.
    options = AskOptions(task_id="order-9", within_s=SOON_S)
    assert (await peer.caller.ask("desk.count", {"number": 1}, options)).unwrap() == 1
    assert desk.ran == [1]
    # Nor does it help to be called like the task, or to claim a life before.
    for head in ({"sender": "order-9"}, {"metadata": {"redriven": 1}}):
        await put(evil, task(evil, 667, id="order-9", reply_to=address, **head), msg_id=f"new-{head}"[:9])
    await emptied(peer)
    assert [data for data in await stored(peer, address) if b"667" in data] == []


async def test_v5_whoever_is_first_under_an_id_is_told_to_who_comes_second(world: World, serve: Serve) -> None:
    peer, evil = await world.join("asker"), await world.join("evil")
    await serve(Desk())
    options = AskOptions(task_id="order-9", within_s=SOON_S)
    await evil.caller.ask("desk.count", {"number": 666}, options)
    told = await peer.caller.ask("desk.count", {"number": 1}, options)
    assert (told.kind, told.details) == ("rejected", {"field": "task_id"})
    # What nobody can read stands for nothing, and is written anew.
    await evil.lite.append(evil.subjects.lite("order-10", "asked"), b"rubbish", ttl_s=60)
    options = AskOptions(task_id="order-10", within_s=SOON_S)
    assert (await peer.caller.ask("desk.count", {"number": 2}, options)).unwrap() == 2


def result(peer: Peer, content: Any, *, sender: str, **head: Any) -> bytes:
    said = {"success": True, "outcome": "result", "data": content}
    return AgentMessage.new("result", AgentIdentity(id=sender), said, **head).encode()


async def _is(so: bool) -> bool:
    return so


class Other(Agent):
    """Serves something else."""

    @topic("other.thing")
    async def thing(self) -> None:
        return None


async def test_v6_only_a_result_of_the_task_settles_it(world: World, serve: Serve) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    await serve(desk)
    await serve(Other(), name="other-0a1b2c3d")

    async def other_is_known() -> bool:
        # Who is not may serve the topic.
        return peer.registry.refutes("other-0a1b2c3d", "desk.wait")

    await until(other_is_known)
    handle = await peer.caller.submit("desk.wait", {"number": 1})
    outcome = asyncio.create_task(handle.outcome())
    forged = [
        result(evil, "of nothing", sender="desk-0a1b2c3d"),
        result(evil, "of another", sender="desk-0a1b2c3d", correlation_id="another", parent="another"),
        result(evil, "by another", sender="other-0a1b2c3d", correlation_id=handle.task_id, parent=handle.task_id),
        result(evil, "odd", sender="desk-1", correlation_id="x")
        .replace(b'"context":{', b'"context":[{')
        .replace(b"}},", b"}}],", 1),
    ]
    for data in forged:
        await evil.lite.append(handle.reply_to, data, ttl_s=60)

    async def passed_over() -> bool:
        return peer.caller.passed_over >= 3

    await until(passed_over)
    assert not outcome.done()
    desk.go.set()
    assert (await outcome).unwrap() == 1
    # Who comes later reads all that is stored.
    heir = await world.join("heir")
    assert (await heir.caller.resume(handle.ticket).outcome()).unwrap() == 1


async def test_v6_what_its_asker_takes_for_no_outcome_keeps_no_task_from_being_run(
    world: World, serve: Serve
) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    replica = await serve(desk, slots=1)
    await serve(Other(), name="other-0a1b2c3d")

    async def other_is_known() -> bool:
        registries = (peer.registry, replica.peer.registry)
        return all(each.refutes("other-0a1b2c3d", "desk.wait") for each in registries)

    await until(other_is_known)
    before = await peer.caller.submit("desk.wait", {"number": 0})
    await until(lambda: _is(desk.ran == [0]))
    # Under an id of its own it is looked for before it runs, as what comes again is.
    handle = await peer.caller.submit("desk.count", {"number": 1}, AskOptions(task_id="order-9"))
    head = {"correlation_id": handle.task_id, "parent": handle.task_id}
    for data in (
        result(evil, "by another", sender="other-0a1b2c3d", **head),
        result(evil, "of another", sender="desk-0a1b2c3d", correlation_id="another", parent="another"),
    ):
        await evil.lite.append(handle.reply_to, data, ttl_s=60)
    desk.go.set()
    assert (await before.outcome()).unwrap() == 0
    assert (await handle.outcome()).unwrap() == 1
    assert desk.ran == [0, 1]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_v6_what_is_no_outcome_keeps_none_away_by_its_message_id(
    world: World, serve: Serve, cancelled: bool
) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    replica = await serve(desk)
    await serve(Other(), name="other-0a1b2c3d")

    async def other_is_known() -> bool:
        return all(each.refutes("other-0a1b2c3d", "desk.wait") for each in (peer.registry, replica.peer.registry))

    await until(other_is_known)
    if cancelled:
        # Nobody is there to end it but its asker.
        await replica.handovers.aclose()
        await replica.pump.aclose()
    handle = await peer.caller.submit("desk.wait", {"number": 1})
    head = {"correlation_id": handle.task_id, "parent": handle.task_id}
    msg_id = outcome_msg_id(handle.task_id, handle.reply_to)
    data = result(evil, "by another", sender="other-0a1b2c3d", **head)
    await evil.lite.append(handle.reply_to, data, ttl_s=60, msg_id=msg_id)
    desk.go.set()
    outcome = await (handle.cancel() if cancelled else handle.outcome())
    assert outcome.kind == ("cancelled" if cancelled else "result")


async def test_v6_who_is_not_in_the_registry_may_answer(world: World) -> None:
    peer, foreign = await world.join("asker"), await world.join("foreign")
    card = AgentCard(agent="doubler", topics=(SemanticTopic(name="bare.double"),))
    await peer.registry.advertise(card)
    await stand_in(peer, "doubler", "r1")
    for sender, head in (("doubler", "correlation_id"), ("somebody", "parent")):
        handle = await peer.caller.submit("bare.double", {"x": 1})
        data = result(foreign, 2, sender=sender, **{head: handle.task_id})
        await foreign.lite.append(handle.reply_to, data, ttl_s=60)
        assert (await handle.outcome()).unwrap() == 2


async def test_v7_a_message_id_that_was_taken_keeps_no_outcome_from_being_stored(
    world: World, serve: Serve
) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    await serve(desk)
    handle = await peer.caller.submit("desk.wait", {"number": 1})
    for taken in (f"{handle.task_id}.outcome", "mine.outcome", "mine"):
        await evil.lite.append(evil.subjects.lite("evil", "takes"), b"it", ttl_s=60, msg_id=taken)
    desk.go.set()
    assert (await handle.outcome()).unwrap() == 1
    # Who was not there reads it.
    heir = await world.join("heir")
    assert (await heir.caller.resume(handle.ticket).outcome()).unwrap() == 1
    options = AskOptions(task_id="mine", within_s=SOON_S)
    assert (await peer.caller.ask("desk.count", {"number": 2}, options)).unwrap() == 2
    await first_stored(peer.lite, peer.subjects.lite("mine", "mine"), lambda it: it.type == "result")


async def test_v7_of_two_under_an_id_that_was_taken_one_is_stored(world: World) -> None:
    one, other, evil = [await world.join(name) for name in ("one", "other", "evil")]
    await evil.lite.append(evil.subjects.lite("evil", "takes"), b"it", ttl_s=60, msg_id="t.outcome")
    key = one.subjects.lite("one", "t")
    await one.lite.append(key, b"a chunk", ttl_s=60)
    appends = [each.lite.append(key, each.ports.identity.id.encode(), msg_id="t.outcome") for each in (one, other)]
    seqs = await asyncio.gather(*appends)
    assert seqs[0] == seqs[1]
    assert len(await stored(one, key)) == 2


async def test_v10_a_task_that_names_the_object_of_another_does_not_remove_it(world: World, serve: Serve) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    large = Payload(content={"number": 1}, model="x" * 600_000)
    message = AgentMessage.new("task", peer.ports.identity, payload=large, id="large")
    sealed = await peer.claims.seal(message.encode(), keep_s=600)
    claim = AgentMessage.decode(sealed).payload.model_extra["claim"]  # type: ignore[index]
    await serve(desk)
    for stolen in (claim, {**claim, "salt": None}, {k: claim[k] for k in ("name", "bytes", "sha256")}):
        id = f"evil-{len(desk.ran)}"
        payload = Payload.model_validate({"claim": stolen})
        data = AgentMessage.new("task", evil.ports.identity, payload=payload, id=id)
        await put(evil, data.encode(), msg_id=id)
        await emptied(evil)
    assert desk.ran == [1, 1, 1]
    assert (await peer.claims.open(sealed)).payload.content == {"number": 1}
    # The task's own end takes it along.
    await put(peer, sealed, msg_id="large")
    await emptied(peer)
    with pytest.raises(ClaimLostError):
        await peer.claims.open(sealed)


async def test_v11_the_same_bytes_again_do_not_run_again(world: World, serve: Serve) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    reply_to = peer.subjects.lite("asker", "t-1")
    data = task(peer, 1, id="t-1", reply_to=reply_to)
    # One before the sender's own, several after it.
    await put(evil, data)
    await put(peer, data, msg_id="t-1")
    for msg_id in ("", "evil-1", ""):
        await put(evil, data, msg_id=msg_id)
    await serve(desk)
    assert (await first_stored(peer.lite, reply_to)).payload.content["data"] == 1
    await put(evil, data)
    await emptied(peer)
    assert desk.ran == [1]
    assert len(await stored(peer, reply_to)) == 1


async def test_v11_nor_while_it_runs(world: World, serve: Serve) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    await serve(desk)
    data = task(peer, 1, id="t-1", reply_to=peer.subjects.lite("asker", "t-1"))
    await put(peer, data, msg_id="t-1", name="desk.wait")

    async def runs() -> bool:
        return desk.ran == [1]

    await until(runs)
    for msg_id in ("", "evil-1"):
        await put(evil, data, msg_id=msg_id, name="desk.wait")

    async def is_alone() -> bool:
        return await peer.queue.backlog("desk") == Backlog(0, 1)

    await until(is_alone)
    desk.go.set()
    await emptied(peer)
    assert desk.ran == [1]


#: It takes three minutes, which only turned time has.
@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_v11_nor_when_the_queue_has_forgotten_its_message_id(world: World, serve: Serve) -> None:
    peer, evil, desk = await world.join("asker"), await world.join("evil"), Desk()
    await serve(desk)
    data = task(peer, 1, id="t-1", reply_to=peer.subjects.lite("asker", "t-1"))
    await put(peer, data, msg_id="t-1", name="desk.slow")
    await asyncio.sleep(DUPLICATE_WINDOW_S + 30)
    await put(evil, data, msg_id="t-1", name="desk.slow")
    await asyncio.sleep(30)
    assert desk.ran == [1]
    desk.go.set()
    await emptied(peer)
    assert desk.ran == [1]


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_v11_a_task_without_a_message_id_runs(world: World, serve: Serve) -> None:
    peer, desk = await world.join("asker"), Desk()
    await serve(desk)
    reply_to = peer.subjects.lite("asker", "t-1")
    await put(peer, task(peer, 1, id="t-1", reply_to=reply_to))
    assert (await first_stored(peer.lite, reply_to)).payload.content["data"] == 1
    await emptied(peer)
    assert desk.ran == [1]


class _Runs:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_v1_bytes_that_are_not_of_the_version_are_not_read(tmp_path: Path) -> None:
    code, blob = pack(Desk)
    assert code.import_path == ""
    assert len(code.version) == 64
    evil = pickle.dumps(_Runs(tmp_path / "ran"))
    for version in (code.version, code.version[:32], "", hashlib.sha256(evil).hexdigest()[:32]):
        with pytest.raises(DeployError, match="not that of its version"):
            unpack(Code(version=version), evil)
    with pytest.raises(DeployError, match="not that of its version"):
        unpack(code, blob + b" ")
    assert not (tmp_path / "ran").exists()
    assert unpack(code, blob).__name__ == "Desk"


def test_v1_nothing_else_reads_pickles() -> None:
    root = Path(squadron.__file__).parents[1]
    found = [
        str(path.relative_to(root))
        for room in ("runtime", "actors", "bridge", "squadron")
        for path in (root / room).rglob("*.py")
        if re.search(r"pickle\w*\.loads?\(|Unpickler|marshal\.load|import shelve", path.read_text())
    ]
    # The other one reads what its own parent process has written to it.
    assert found == ["bridge/packing/code.py", "squadron/servers.py"]

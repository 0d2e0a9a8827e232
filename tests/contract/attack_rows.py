"""What somebody tries who has stolen the credential of one agent, and what two accounts make of it.

Each row stands in the table of docs/security.md under the same name; `test_attacks.py` tries them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from squadron.bridge.jetstream.audit_streams import audit_subject
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.status_relay import own_status
from squadron.runtime.ports.bus import Note
from squadron.runtime.ports.journal import Journal
from squadron.runtime.wire.subjects import Subjects, live_of
from tests.contract.attacks import SECRET, Check, Scene

#: One attack: does it, and returns how to see whether it came to something.
_Do = Callable[[Scene], Awaitable[Check]]


def _publishes(subject: Callable[[Scene], str], stream: Callable[[StreamNames], str], data: bytes = b"{}") -> _Do:
    async def do(it: Scene) -> Check:
        await it.send(subject(it), data)
        return it.stored(stream(it.names), subject(it))

    return do


def _calls(call: Callable[[StreamNames], str], query: Any, field: str) -> _Do:
    async def do(it: Scene) -> Check:
        await it.call(call(it.names), query)
        return it.got(field)

    return do


def _reads(stream: Callable[[StreamNames], str], pattern: Callable[[Scene], str]) -> _Do:
    async def do(it: Scene) -> Check:
        return await it.read_all(stream(it.names), pattern(it))

    return do


# --- what reads ----------------------------------------------------------------------------------------


def _hears(pattern: Callable[[Subjects], str], *, then: Callable[[Scene], Awaitable[Any]]) -> _Do:
    async def do(it: Scene) -> Check:
        await it.listen(pattern(it.subjects))
        await then(it)
        return it.learned()

    return do


def _reads_of_the_clerk(key: Callable[[Subjects], str]) -> _Do:
    async def do(it: Scene) -> Check:
        for stream, pattern in it.own_places(key(it.subjects)):
            await it.read_all(stream, pattern)
        return it.learned()

    return do


async def _ann_asks(it: Scene, priority: int = 5) -> None:
    await it.ann.ports.queue.put(it.subjects.task("office.file", priority), it._message("task"), msg_id="")


async def _ann_asks_urgently(it: Scene) -> None:
    await _ann_asks(it, 9)


async def _clerk_answers(it: Scene) -> None:
    await it.bridge.ports.lite.append(it.answers, it._message("result"))


async def _clerk_asks_the_tools(it: Scene) -> None:
    await it.clerk.ports.bus.publish(it.subjects.mcp("files"), SECRET)


async def _tools_answer(it: Scene) -> None:
    for inbox in ("_INBOX.mcp.files.clerk.t", "_INBOX.our-agents.clerk.t"):
        await it.tools.ports.bus.publish(inbox, SECRET)


async def _clerk_prompts(it: Scene) -> None:
    await it.clerk.ports.bus.publish("agents.prompt.pi.acme.main", SECRET)


async def _answers_the_clerk(it: Scene) -> Check:
    told: list[Note] = []
    await it.clerk.ports.bus.subscribe("_INBOX.our-agents.clerk.t", told.append)
    await it.send("_INBOX.our-agents.clerk.t")

    async def look() -> bool:
        return bool(told)

    return look


def _tells_the_tools(subject: Callable[[Subjects], str]) -> _Do:
    async def do(it: Scene) -> Check:
        told: list[Note] = []
        await it.tools.ports.bus.subscribe(subject(it.subjects), told.append)
        await it.send(subject(it.subjects))

        async def look() -> bool:
            return bool(told)

        return look

    return do


async def _ann_reads(it: Scene) -> None:
    await it.ann.ports.lite.last(it.answers)


async def _reads_stored_tasks(it: Scene) -> Check:
    await it.call(f"STREAM.MSG.GET.{it.names.tasks}", {"seq": 1})
    return it.got("message")


# --- what takes ----------------------------------------------------------------------------------------


async def _takes(it: Scene) -> Check:
    await it.call(f"CONSUMER.MSG.NEXT.{it.names.tasks}.clerk", {"batch": 1, "expires": 10**9})
    return it.learned()


async def _settles(it: Scene) -> Check:
    taken: list[Any] = []
    inbox = it.bridge.connection.client.new_inbox()
    await it.bridge.ports.bus.subscribe(inbox, taken.append)
    call = f"$JS.API.CONSUMER.MSG.NEXT.{it.names.tasks}.clerk"
    await it.bridge.connection.publish(call, b"", reply=inbox)
    while not taken:
        await asyncio.sleep(0.005)
    await it.send(taken[0].reply, b"+ACK")
    return it.gone(it.names.tasks)


async def _opens_a_lane(it: Scene) -> Check:
    # As if the bridge had made none yet: its own is the one name that it might be let make.
    name = f"{it.names.tasks}.analyst=p3"
    for there in ("analyst=p3", "clerk=p3"):
        await it.bridge.connection.api(f"CONSUMER.DELETE.{it.names.tasks}.{there}", {})
    config = {"name": "analyst=p3", "durable_name": "analyst=p3", "ack_policy": "explicit"}
    config["filter_subject"] = it.subjects.task("office.file", 3)
    await it.call(f"CONSUMER.CREATE.{name}", {"stream_name": it.names.tasks, "config": config})
    return it.consumer("analyst=p3", there=True)


async def _removes_a_mailbox(it: Scene) -> Check:
    await it.call(f"CONSUMER.DELETE.{it.names.tasks}.clerk")
    return it.consumer("clerk", there=False)


# --- what forges ---------------------------------------------------------------------------------------


async def _controls(it: Scene) -> Check:
    heard = await it.heard_by(it.bridge, it.subjects.control("*"))
    await it.send(it.subjects.control("undeploy"), b'{"agent": "clerk"}')
    return heard


def _writes_for_the_clerk(key: Callable[[Subjects], str], journal: Callable[[Scene], Journal]) -> _Do:
    """Writes where the clerk reads what it keeps; it comes to something if those who read there find it."""

    async def do(it: Scene) -> Check:
        written = key(it.subjects)
        for _, subject in it.own_places(written):
            await it.send(subject, b"{}")

        async def look() -> bool:
            return await journal(it).last(written) is not None

        return look

    return do


async def _tells_a_status(it: Scene) -> Check:
    heard = await it.heard_by(it.ann, it.subjects.event("status.*"))
    content = {"event": "agent_offline", "agent": "clerk", "replica": "clerk-1"}
    told = it.ann.ports.pack("event", {"content": content}, conversation_id="system")
    for subject in (it.subjects.event("status.offline"), it.subjects.durable("status.offline")):
        await it.send(subject, told)
    for agent in ("clerk", "analyst"):
        await it.send(own_status(it.subjects.environment, agent, "offline"), told)
    return heard


# --- what destroys -------------------------------------------------------------------------------------


async def _rolls_up(it: Scene) -> Check:
    await it.send(it.subjects.lite("analyst", "last"), b"", Nats_Rollup="all", Nats_TTL="1s")
    return it.gone(it.names.lite)


def _purges(stream: Callable[[StreamNames], str], verb: str = "PURGE") -> _Do:
    async def do(it: Scene) -> Check:
        await it.call(f"STREAM.{verb}.{stream(it.names)}")
        return it.gone(stream(it.names))

    return do


async def _purges_what_the_clerk_keeps(it: Scene) -> Check:
    key = it.subjects.lite("memory-clerk", "c")
    for stream, subject in it.own_places(key):
        await it.call(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def look() -> bool:
        return await it.clerk.ports.own.last(key) is None

    return look


async def _purges_a_payload(it: Scene) -> Check:
    digest = it.payload.rpartition(".")[2]
    for subject in it.payload_places("C", digest):
        await it.call(f"STREAM.PURGE.OBJ_{it.names.bucket}", {"filter": subject})
    # It knows the name, as all do who may read payloads, and not the key.
    wish = {"name": it.payload, "key": digest}
    await it.send(it.names.forget, json.dumps(wish).encode())
    return it.lost()


async def _spoils_a_payload(it: Scene) -> Check:
    for subject in it.payload_places("C", it.payload.rpartition(".")[2]):
        await it.send(subject, b"and more")
    return it.lost()


async def _rolls_up_payloads(it: Scene) -> Check:
    for place in ("", "analyst."):
        await it.send(f"$O.{it.names.bucket}.C.{place}x", b"", Nats_Rollup="all", Nats_TTL="1s")
    return it.lost()


async def _offers(it: Scene) -> Check:
    heard = await it.heard_by(it.bridge, it.subjects.control("offer.clerk"))
    for verb in ("offer", "offer.clerk"):
        await it.send(it.subjects.control(verb), b'{"agent": "clerk", "operations": []}')
    return heard


async def _copies_all_tasks(it: Scene) -> Check:
    info = await it.bridge.connection.api(f"STREAM.INFO.OBJ_{it.names.bucket}", {})
    update = info["config"] | {"sources": [{"name": it.names.dead}]}
    await it.call(f"STREAM.UPDATE.OBJ_{it.names.bucket}", update)
    return it.got("config")


async def _ends_the_server(it: Scene) -> Check:
    # Header blocks of one byte: nats-server 2.15.1 takes them for whole ones where it stores a message.
    line = f"HPUB {it.subjects.lite('analyst', 'x')} 1 1\r\n".encode()
    await it.thief._send_command(line + b"\n\r\n")
    await it.thief._flush_pending(force_flush=True)

    async def look() -> bool:
        return not it.bridge.connection.is_connected

    return look


# --- what has answers go elsewhere: the server never checks where to ------------------------------------


def _has_answered(
    target: Callable[[Scene], str], comes: Callable[[Scene], Awaitable[Check]], body: bytes = b""
) -> _Do:
    """Put `body` on a lite topic of one's own, and have it read, with `target` as where the answer goes."""

    async def do(it: Scene) -> Check:
        check = await comes(it)
        own = it.subjects.lite("analyst", "own" if body else "nothing")
        if body:
            await it.send(own, body)
            await it.barrier()
        await it.send(f"{it.api}.DIRECT.GET.{it.names.lite}.{own}", b"", reply=target(it))
        return check

    return do


async def _dead_gone(it: Scene) -> Check:
    await it.bridge.ports.dead.append(it.subjects.dead("clerk", "m"), b"{}")
    return it.gone(it.names.dead)


async def _hears_of_a_card(it: Scene) -> Check:
    """Whether Ann takes up a card that is stored nowhere."""

    async def look() -> bool:
        return any(card.agent == "clerk" for card in it.ann.registry.cards())

    return look


_CARD = json.dumps({"agent": "clerk", "description": "", "version": "1", "topics": []}).encode()


def _registry(names: StreamNames) -> str:
    return names.registry


def _stored_in_registry(subject: Callable[[Scene], str]) -> Callable[[Scene], Awaitable[Check]]:
    async def comes(it: Scene) -> Check:
        return it.stored(it.names.registry, subject(it))

    return comes


async def _bridge_hears(it: Scene) -> Check:
    return await it.heard_by(it.bridge, it.subjects.control("*"))


def _card(it: Scene) -> str:
    return it.subjects.card("clerk")


def _blob(it: Scene) -> str:
    return it.subjects.record("blob", "b1")


STOPPED: dict[str, _Do] = {
    "read tasks that wait, by direct gets": _reads(lambda n: n.tasks, lambda it: it.subjects.task("*.*")),
    "read tasks that wait, by their numbers": _reads_stored_tasks,
    "list the subjects of tasks that wait": _calls(
        lambda n: f"STREAM.INFO.{n.tasks}", {"subjects_filter": ">"}, "config"
    ),
    "read dead letters": _reads(lambda n: n.dead, lambda it: it.subjects.dead_of()),
    "read another's memory": _reads_of_the_clerk(lambda s: s.lite_of("memory-clerk")),
    "read the logs of others' runs": _reads_of_the_clerk(lambda s: s.run()),
    "read the audit trail": _reads(lambda n: n.audit, lambda it: audit_subject(it.names)),
    "hear tasks as they are put": _hears(lambda s: s.task("*.*"), then=_ann_asks),
    "hear urgent tasks as they are put": _hears(lambda s: f"{s.task('*.*')}.*", then=_ann_asks_urgently),
    "hear urgent tasks of another's topic": _hears(
        lambda s: f"{s.task('office.file')}.*", then=_ann_asks_urgently
    ),
    "hear answers to others": _hears(lambda s: "_INBOX_client.>", then=_ann_reads),
    "hear what an MCP server on the bus is asked": _hears(lambda s: s.mcp("files"), then=_clerk_asks_the_tools),
    "hear what an MCP server answers another": _hears(lambda s: "_INBOX.mcp.files.clerk.>", then=_tools_answer),
    "hear what a Synadia agent answers another": _hears(lambda s: "_INBOX.our-agents.clerk.>", then=_tools_answer),
    "ask an MCP server on the bus that is none of its": _tells_the_tools(lambda s: s.mcp("files")),
    "prompt a Synadia agent that is none of its": _tells_the_tools(
        lambda s: f"agents.prompt.squadron.squadron-{s.environment}.clerk"
    ),
    "take from another's mailbox": _takes,
    "settle another's delivery": _settles,
    "remove another's mailbox": _removes_a_mailbox,
    "take another's tasks by a lane of one's own": _opens_a_lane,
    "ask what it may not": _publishes(lambda it: it.subjects.task("office.shred"), lambda n: n.tasks),
    "advertise another's card": _publishes(_card, _registry),
    "show another's presence": _publishes(lambda it: it.subjects.presence("clerk", "clerk-1"), _registry),
    "record a deployment": _publishes(lambda it: it.subjects.record("deployment", "clerk"), _registry),
    "put code into the registry": _publishes(_blob, _registry),
    "bury a dead letter of another": _publishes(lambda it: it.subjects.dead("clerk", "m"), lambda n: n.dead),
    "write another's memory": _writes_for_the_clerk(
        lambda s: s.lite("memory-clerk", "d"), lambda it: it.clerk.ports.own
    ),
    "write the log of another's run": _writes_for_the_clerk(
        lambda s: s.run("run-9"), lambda it: it.clerk.ports.runs
    ),
    "show others a run that is none": _writes_for_the_clerk(
        lambda s: s.run("run-9"), lambda it: it.ann.ports.runs
    ),
    "have the bridge take an agent down": _controls,
    "offer operations in another's name": _offers,
    "tell that another is offline": _tells_a_status,
    "purge tasks": _purges(lambda n: n.tasks),
    "purge the registry": _purges(lambda n: n.registry),
    "purge the logs of runs": _purges(lambda n: n.runs),
    "purge another's memory": _purges_what_the_clerk_keeps,
    "purge all large payloads": _purges(lambda n: f"OBJ_{n.bucket}"),
    "purge another's large payload": _purges_a_payload,
    "spoil another's large payload": _spoils_a_payload,
    "empty the large payloads by a header": _rolls_up_payloads,
    "delete a stream": _purges(lambda n: n.tasks, "DELETE"),
    "delete a task by its number": _calls(lambda n: f"STREAM.MSG.DELETE.{n.tasks}", {"seq": 1}, "success"),
    "have a stream copy another": _copies_all_tasks,
    "end the server by a header block of one byte": _ends_the_server,
}

#: What has an answer go elsewhere; the thief may not publish there itself.
STOPPED |= {
    "delete a stream, by an answer": _has_answered(
        lambda it: f"$JS.API.STREAM.DELETE.{it.names.dead}", _dead_gone
    ),
    "delete a stream, by an answer at the prefix": _has_answered(
        lambda it: f"{it.api}.STREAM.DELETE.{it.names.dead}", _dead_gone
    ),
    "advertise a card, by an answer": _has_answered(_card, _stored_in_registry(_card), _CARD),
    "put code into the registry, by an answer": _has_answered(_blob, _stored_in_registry(_blob), b"code"),
    "have an agent deployed, by an answer": _has_answered(
        lambda it: it.subjects.control("deploy"), _bridge_hears, b'{"deployments": []}'
    ),
}

#: What two accounts do not stop: agents are not apart from each other. The cut of the streams by principal is to.
NOT_STOPPED: dict[str, _Do] = {
    "read another's outcomes and chunks": _reads(lambda n: n.lite, lambda it: it.answers),
    "read another's large payloads": _reads(lambda n: f"OBJ_{n.bucket}", lambda it: f"$O.{it.names.bucket}.>"),
    "hear others' answers live": _hears(lambda s: live_of(s.lite_of()), then=_clerk_answers),
    "forge an outcome or a chunk": _publishes(lambda it: it.subjects.lite("ann-asks", "task-9"), lambda n: n.lite),
    "cancel another's task": _publishes(lambda it: it.subjects.lite("cancel", "task-1"), lambda n: n.lite),
    "replay a task that it saw": _publishes(lambda it: it.subjects.task("office.file"), lambda n: n.tasks),
    "purge all lite topics": _purges(lambda n: n.lite),
    "empty the lite topics by a header": _rolls_up,
}

#: What somebody tries who has stolen the credential of a caller of the Synadia Agent Protocol.
BY_A_CALLER: dict[str, _Do] = {
    "hear what another caller of agents is answered": _hears(
        lambda s: "_INBOX.our-agents.clerk.>", then=_tools_answer
    ),
    "hear what other callers prompt": _hears(lambda s: "agents.prompt.pi.acme.*", then=_clerk_prompts),
    "prompt, as a caller, an agent that is none of its": _tells_the_tools(
        lambda s: f"agents.prompt.squadron.squadron-{s.environment}.clerk"
    ),
    "answer a caller in the place of the agent that it prompts": _answers_the_clerk,
}

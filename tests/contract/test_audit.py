"""What is said and done is in the trail, once and in order; nothing that must not be is stored at all."""

from __future__ import annotations

import asyncio
import base64
import zlib
from dataclasses import replace
from typing import Any

import pytest
from nats.aio.client import Client

from squadron import Agent, Context, Terminal, topic
from squadron.bridge.audit.archivist import Archivist
from squadron.bridge.jetstream.audit_streams import audit_stream, intake_stream
from squadron.bridge.jetstream.intake import Caught, Intake
from squadron.bridge.jetstream.queue import subjects_held
from squadron.bridge.jetstream.stream_configs import StreamNames, ask_for
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import SquadronError
from squadron.runtime.redact import STRUCK
from squadron.runtime.store.operating import operating, operator
from squadron.runtime.telemetry.happenings import Operated
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.outcome import Undeliverable
from tests.contract.audit_worlds import archiving, audited, entries, recorded
from tests.contract.conftest import ON_NATS, Serve, World, until


class Desk(Agent):
    """Echoes."""

    @topic("desk.echo")
    async def echo(self, text: str) -> str:
        return text


async def raw_trail(wiring: Wiring) -> bytes:
    """All that the trail's stream holds, unpacked."""
    stream = audit_stream(StreamNames(wiring.settings.env))
    state = (await ask_for(wiring.connection, f"STREAM.INFO.{stream}"))["state"]
    found = b""
    for seq in range(state["first_seq"], state["last_seq"] + 1):
        message = (await ask_for(wiring.connection, f"STREAM.MSG.GET.{stream}", {"seq": seq}))["message"]
        found += zlib.decompress(base64.b64decode(message["data"])) + base64.b64decode(message.get("hdrs", ""))
    return found


@ON_NATS
async def test_each_task_and_its_outcome_are_recorded_once_in_order(world: World, serve: Serve) -> None:
    replica = await serve(Desk())
    wiring = replica.peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        outcomes = [await wiring.caller.ask("desk.echo", {"text": f"text {n}"}) for n in range(20)]
        tasks = await recorded(trail, 20, kind="task")
        results = await recorded(trail, 20, kind="result")
    assert [each["id"] for each in tasks] == [each.task_id for each in outcomes]
    assert [each["message"]["payload"]["content"]["text"] for each in tasks] == [f"text {n}" for n in range(20)]
    assert {each["task"]: each["outcome"] for each in results} == {each.task_id: "result" for each in outcomes}
    assert await entries(trail, kind="gap") == []
    everything = await entries(trail)
    assert [each["n"] for each in everything] == list(range(1, len(everything) + 1))
    found = await trail.verify()
    assert (found.ok, found.last, found.unproven) == (True, len(everything), ())
    assert found.anchors > 0
    # By conversation, task and agent.
    one = outcomes[3].task_id
    assert {each["kind"] for each in await entries(trail, task=one)} >= {"task", "result"}
    assert {each["conversation"] for each in await entries(trail, conversation=one)} == {one}
    assert await entries(trail, agent="nobody") == []


class Ledger(Agent):
    """Fails for good, streams, or waits for ever."""

    @topic("ledger.bad", max_attempts=1)
    async def bad(self) -> None:
        raise Terminal("no such account")

    @topic("ledger.many")
    async def many(self, ctx: Context) -> str:
        for n in range(3):
            await ctx.emit(f"chunk {n}")
        return "all"

    @topic("ledger.poison", max_attempts=1)
    async def poison(self) -> None:
        raise RuntimeError("broken")


PLANTED = "hunter2-is-planted"


@ON_NATS
@pytest.mark.parametrize("mode", ["trail", "full"])
async def test_what_must_not_be_stored_is_not_in_the_raw_store(world: World, serve: Serve, mode: str) -> None:
    wiring = (await serve(Desk())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, mode)
    rules = '{"keys": ["patient"], "patterns": {"case": "C-[0-9]{4}"}}'
    text = f"to jane.doe@example.org, DE89 3704 0044 0532 0130 00 by 4111 1111 1111 1111, Bearer {PLANTED}; C-1234"
    async with archiving(wiring.settings, rules=rules):
        await wiring.caller.ask("desk.echo", {"text": text})
        content = {"password": PLANTED, "Patient-Name": "Jane Doe", "nested": [{"api_key": PLANTED}], "tokens": 7}
        await wiring.caller.sender.publish_durable("desk.said", content)
        await recorded(trail, 1, kind="event")
        await recorded(trail, 1, kind="result")
        stored = await raw_trail(wiring)
    for secret in (PLANTED, "jane.doe", "Jane Doe", "3704 0044", "4111 1111", "C-1234"):
        assert secret.encode() not in stored
    (event,) = await entries(trail, kind="event")
    assert event["hmac"]
    if mode == "trail":
        assert "message" not in event
        assert b"Bearer" not in stored
    else:
        said = event["message"]["payload"]["content"]
        assert said == {
            "password": STRUCK,
            "Patient-Name": STRUCK,
            "nested": [{"api_key": STRUCK}],
            "tokens": 7,
        }
        assert b"to [email], [iban] by [card], Bearer [secret] [case]" in stored


@ON_NATS
async def test_failures_dead_letters_and_chunks_are_recorded_as_asked_for(world: World, serve: Serve) -> None:
    wiring = (await serve(Ledger())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "trail")
    async with archiving(wiring.settings):
        await wiring.caller.ask("ledger.bad", {})
        await wiring.caller.ask("ledger.poison", {})
        await wiring.caller.ask("ledger.many", {})
        found = await recorded(trail, 3, kind="result")
        assert sorted(each["outcome"] for each in found) == ["dead_lettered", "failed", "result"]
        (dead,) = await recorded(trail, 1, kind="dead")
        assert dead["subject"].split(".")[3] == "ledger"
        assert await entries(trail, agent="ledger", kind="dead") == [dead]
        assert await entries(trail, kind="chunk") == []
        await audited(wiring, "trail", chunks=True)

        async def one_is() -> bool:
            await wiring.caller.ask("ledger.many", {})
            return len(await entries(trail, kind="chunk")) > 0

        # As soon as the archivist has looked again.
        await until(one_is)
        chunks = await entries(trail, kind="chunk")
        assert {each["source"] for each in chunks} == {"replica"}
        assert await entries(trail, kind="gap") == []


@ON_NATS
async def test_the_audit_is_switched_off_and_on_and_what_happened_meanwhile_is_a_gap(
    world: World, serve: Serve
) -> None:
    wiring = (await serve(Desk())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        before = await wiring.caller.ask("desk.echo", {"text": "before"})
        await recorded(trail, 1, kind="task")
        await audited(wiring, "off")
        await wiring.caller.ask("desk.echo", {"text": "meanwhile"})
        await audited(wiring, "full")
        after = await wiring.caller.ask("desk.echo", {"text": "after"})
        tasks = await recorded(trail, 2, kind="task")
    assert [each["id"] for each in tasks] == [before.task_id, after.task_id]
    gaps = await entries(trail, kind="gap")
    assert {(each["stream"].rsplit("-", 1)[-1], each["until"] - each["seq"] + 1) for each in gaps} >= {
        ("tasks", 1)
    }
    assert (await trail.verify()).gaps == len(gaps)
    # The mailbox holds nothing that anybody would wait for.
    assert (await wiring.ports.queue.backlog("desk")).waiting == 0


@ON_NATS
async def test_a_task_that_nobody_serves_stays_in_its_queue(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        subject = wiring.ports.subjects.task("nobody.serves")
        await wiring.ports.queue.put(subject, wiring.ports.pack("task", {"content": 1}), msg_id="one")
        await recorded(trail, 1, kind="task")
        held = await subjects_held(wiring.connection, StreamNames(wiring.settings.env).tasks, [subject])
        assert held == {subject: 1}


@ON_NATS
async def test_an_action_is_on_record_before_it_is_done_with_who_did_it(world: World, serve: Serve) -> None:
    wiring = (await serve(Ledger())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "trail")
    heard: list[Any] = []

    class Ear:
        def hear(self, happening: Any) -> None:
            heard.append(happening)

        async def aclose(self) -> None:
            pass

    wiring.ports.observers.add(Ear())
    async with archiving(wiring.settings):
        await wiring.caller.ask("ledger.poison", {})
        (letter,) = await wiring.dead_letters.list()
        await wiring.dead_letters.redrive(letter.id)
        handle = await wiring.caller.submit("nobody.serves", {})
        await handle.cancel()
        await wiring.caller.lite_topics.topic("one", "me").close()
        with pytest.raises(SquadronError):
            async with operating(wiring.ports, "deploy", "clerk", by="jane@desk/1"):
                raise SquadronError("no room")
        actions = [each["action"] for each in await recorded(trail, 5, kind="action")]
    said = [(each["verb"], each["on"], each["by"], "error" in each) for each in actions]
    assert said == [
        ("redrive", letter.id, operator(), False),
        ("cancel", handle.task_id, operator(), False),
        ("close", wiring.ports.subjects.lite("me", "one"), operator(), False),
        ("deploy", "clerk", "jane@desk/1", False),
        ("deploy", "clerk", "jane@desk/1", True),
    ]
    told = [each.verb for each in heard if isinstance(each, Operated)]
    assert told == ["redrive", "cancel", "close"]


@ON_NATS
async def test_plain_events_and_what_is_no_json_are_recorded_as_they_are(world: World, bare: Client) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    sealed = bytes([0xFF, 0xFE, 0x00, 0x80]) * 8
    async with archiving(wiring.settings) as archivist:
        await until(lambda: is_at_work(archivist))
        await wiring.caller.sender.publish("desk.plain", {"text": "plain"})
        await bare.publish(wiring.ports.subjects.task("desk.sealed"), sealed)
        (event,) = await recorded(trail, 1, kind="event")
        (task,) = await recorded(trail, 1, kind="task")
    assert event["message"]["payload"]["content"] == {"text": "plain"}
    assert base64.b64decode(task["message"]["base64"]) == sealed


@ON_NATS
async def test_what_is_only_heard_while_the_audit_is_off_is_not_recorded(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    publish = wiring.caller.sender.publish
    await wiring.caller.sender.publish_durable("desk.said", "before")
    stream = intake_stream(StreamNames(wiring.settings.env))

    async def is_taken_in() -> bool:
        return bool(await subjects_held(wiring.connection, stream, [wiring.ports.subjects.durable("desk.said")]))

    await until(is_taken_in)
    await audited(wiring, "off")
    heard: list[Caught] = []

    class Ear(Intake):
        """Says what was handed to the archivist."""

        async def next(self, most: int, **how: Any) -> list[Caught]:
            came = await super().next(most, **how)
            heard.extend(each for each in came if not each.place)
            return came

    async def one_was_heard() -> bool:
        return bool(heard)

    async with archiving(wiring.settings, intake=Ear) as archivist:
        await until(lambda: is_at_work(archivist))
        await publish("desk.plain", "meanwhile")
        await until(one_was_heard)
        (event,) = await recorded(trail, 1, kind="event")
    # What it took was stored when it was stopped.
    assert event["stream"] == StreamNames(wiring.settings.env).events
    assert await entries(trail) == [event]


async def is_at_work(archivist: Archivist) -> bool:
    """Whether it has taken the intake over."""
    return archivist.count is not None


@ON_NATS
async def test_a_strict_sender_has_stored_each_task_twice_when_it_is_submitted(world: World, serve: Serve) -> None:
    assert world.settings is not None
    await serve(Desk())
    strict = replace(world.settings, audit_strict="yes")
    place = await Wiring.open(strict, AgentIdentity(id="strict", type="client"), create=True)
    try:
        refused = await place.caller.ask("desk.echo", {"text": "no"}, AskOptions(within_s=5.0))
        assert isinstance(refused, Undeliverable)
        assert "filed.sent" in refused.reason
        tasks = StreamNames(strict.env).tasks
        assert await subjects_held(place.connection, tasks, [f"agents.{strict.env}.task.>"]) == {}
        trail = await audited(place, "full")
        handle = await place.caller.submit("desk.echo", {"text": "yes"}, AskOptions(task_id="strict-1"))
        # Nobody archives yet: it is there.
        stream = intake_stream(StreamNames(strict.env))
        held = await subjects_held(place.connection, stream, [f"agents.{strict.env}.filed.sent.>"])
        assert held == {f"agents.{strict.env}.filed.sent.desk.echo": 1}
        async with archiving(strict):
            (sent,) = await recorded(trail, 1, kind="sent")
            (task,) = await recorded(trail, 1, kind="task", task="strict-1")
        assert sent["id"] == task["id"] == handle.task_id
        assert sent["message"] == task["message"]
    finally:
        await place.aclose()


@ON_NATS
async def test_what_is_stored_as_the_archivist_is_stopped_is_anchored(world: World, serve: Serve) -> None:
    wiring = (await serve(Desk())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "trail")
    stored = asyncio.Event()

    class LateIntake(Intake):
        """Hears that a batch is stored after it was stopped."""

        async def append(self, data: bytes, head: str, *, after: int) -> int:
            seq = await super().append(data, head, after=after)
            stored.set()
            await stopped
            return seq

    stopped = asyncio.get_running_loop().create_future()
    async with archiving(wiring.settings, intake=LateIntake):
        await wiring.caller.ask("desk.echo", {"text": "late"})
        await asyncio.wait_for(stored.wait(), 30.0)
        # When the loop comes to it the archivist is cancelled.
        asyncio.get_running_loop().call_soon(stopped.set_result, None)
    verified = await trail.verify()
    assert (verified.ok, verified.anchors) == (True, 1)

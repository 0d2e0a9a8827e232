"""What is said and done is in the trail, once and in order; nothing that must not be is stored at all."""

from __future__ import annotations

import base64
import zlib

from squadron import Agent, topic
from squadron.bridge.jetstream.audit_streams import audit_stream
from squadron.bridge.jetstream.stream_configs import StreamNames, ask_for
from squadron.bridge.jetstream.wiring import Wiring
from tests.contract.audit_worlds import archiving, audited, entries, recorded
from tests.contract.conftest import ON_NATS, Serve, World


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

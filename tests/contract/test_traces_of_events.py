"""Events and people in a trace: who hears what was sent, and how long somebody waits for an answer."""

from __future__ import annotations

from squadron import Agent, Context, on, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.runtime.asking.answering import People
from squadron.runtime.retries import Retries
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.pump import Pump
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.groups import EventGroup
from tests.contract.conftest import LEASE_S, Inbox, Peer, Serve, World, until
from tests.contract.traced import attributes_of, id_of, is_child, links_of, made


class Ear(Agent):
    """Hears plain events."""

    @on("news.*")
    async def hear(self, message: AgentMessage) -> None:
        if message.payload.content == "bad":
            raise ValueError("bad news")


class Shy(Agent):
    """Asks a person."""

    @topic("shy.ask")
    async def ask(self, ctx: Context) -> str:
        return str((await ctx.ask_person("Which colour?")).value)


async def test_events_carry_the_trace_to_who_handles_them(peer: Peer) -> None:
    spans, handled = made(), Inbox()
    spans.trace(peer)

    async def handle(message: AgentMessage) -> None:
        handled(message.payload.content)
        if message.payload.content == "bad":
            raise ValueError("bad news")

    turns = EventTurns(
        "desk.hear", handle, peer.ports, pattern="news.*", retries=Retries(2, 0.01, 0.01), run_timeout_s=5
    )
    pump = Pump(peer.events, EventGroup("desk.hear", "news.*", "first", LEASE_S), turns.run, slots=1)
    await pump.start()
    with spans.provider.get_tracer("program").start_as_current_span("mine"):
        await peer.caller.sender.publish_durable("news.sport", "bad", event_id="bad-1")
    first, second = await spans.have("process news.*", 2)
    put, mine = spans.one("publish news.sport"), spans.one("mine")

    assert is_child(put, mine)
    assert is_child(first, put)
    assert is_child(second, put)
    assert links_of(second) == [("earlier attempt", id_of(first))]
    assert attributes_of(first)["messaging.destination.template"] == "news.*"
    assert attributes_of(first)["messaging.destination.name"] == "news.sport"
    assert attributes_of(second)["squadron.outcome"] == "dead_lettered"
    await pump.aclose()


async def test_a_plain_event_is_handled_in_the_trace_of_who_sent_it(world: World, peer: Peer) -> None:
    spans, there = made(), await world.join("there")
    host = Host(there.place, Ear(), AgentSpec.of(Ear), slots=2)
    await host.start()
    spans.trace(peer, there)

    await peer.caller.sender.publish("news.weather", "rain")
    await peer.caller.sender.publish("news.sport", "bad")
    fine, bad = await spans.have("process news.*", 2)
    if attributes_of(fine)["messaging.destination.name"] == "news.sport":
        fine, bad = bad, fine

    assert is_child(fine, spans.one("publish news.weather"))
    assert is_child(bad, spans.one("publish news.sport"))
    assert attributes_of(fine)["messaging.consumer.group.name"] == "ear.hear"
    assert [attributes_of(each)["squadron.end"] for each in (fine, bad)] == ["handled", "lost"]
    assert attributes_of(bad)["error.type"] == "ValueError"
    await host.stop(1.0)


async def test_waiting_for_a_person_is_a_span_and_what_was_asked_stays_out_of_it(serve: Serve, peer: Peer) -> None:
    spans, replica = made(), await serve(Shy())
    spans.trace(peer, replica.peer)

    handle = await peer.caller.submit("shy.ask", {})
    people = People(peer.ports, peer.caller.lite_topics)
    asked: list[str] = []

    async def is_asked() -> bool:
        asked[:] = [each.query_id for each in await people.questions()]
        return bool(asked)

    await until(is_asked)
    await people.answer(asked[0], "red", by="ana")
    assert (await peer.caller.outcome(handle)).unwrap() == "red"
    (work,) = await spans.have("process shy.ask")
    wait = spans.one("await person")

    assert is_child(wait, work)
    assert attributes_of(wait)["squadron.query"] == asked[0]
    assert [(event.name, (event.attributes or {})["squadron.by"]) for event in wait.events] == [("answer", "ana")]
    assert "colour" not in str([span.attributes for span in spans.spans])

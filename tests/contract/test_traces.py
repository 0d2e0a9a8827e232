"""One trace goes from whoever asks through all that comes of it, and shows what was tried in vain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from squadron import Agent, Context, Retry, topic
from squadron.bridge.otel.traces import Traces
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.ports.queue import EARLIER_TRACE
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.telemetry.turn_log import TurnLog
from squadron.runtime.wire.envelope import AgentMessage, Routing
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.route import Route
from tests.contract.conftest import ON_NATS, Inbox, Peer, Serve
from tests.contract.traced import attributes_of, header_of, id_of, is_child, links_of, made, trace_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Desk(Agent):
    """Answers, tries again, gives up, asks and tells further."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.works = True

    @topic("desk.echo")
    async def echo(self, text: str) -> str:
        self.logged.append(structlog.contextvars.get_contextvars())
        return text

    @topic("desk.again", max_attempts=2)
    async def again(self, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Retry("not yet", after_s=0.01)
        return ctx.attempt

    @topic("desk.never", max_attempts=1)
    async def never(self) -> str:
        if self.works:
            return "at last"
        raise ValueError("never")

    @topic("desk.further")
    async def further(self, ctx: Context) -> str:
        said = str((await ctx.ask("desk.echo", {"text": "far"})).unwrap())
        await ctx.publish("desk.said", said)
        await ctx.lite("notes", owner="desk").publish(said)
        return said

    @topic("desk.thread")
    def thread(self, ctx: Context) -> str:
        return str(ctx.sync.ask("desk.echo", {"text": "from a thread"}).unwrap())


class Full(Agent):
    """Has room for one task, which it never finishes."""

    mailbox_limit = 1

    @topic("desk.full")
    async def work(self) -> None:
        await asyncio.Event().wait()


class Stuck(Agent):
    """Comes to no end the first time."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    @topic("stuck.once")
    async def once(self, ctx: Context) -> int:
        self.begun.set()
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return ctx.attempt


async def test_one_trace_goes_from_the_asker_through_all_that_comes_of_it(serve: Serve, peer: Peer) -> None:
    spans, told = made(), Inbox()
    replica = await serve(Desk())
    spans.trace(peer, replica.peer)
    listening = await peer.bus.subscribe(peer.subjects.event("desk.said"), told)

    handle = await peer.caller.submit("desk.further", {})
    assert (await peer.caller.outcome(handle)).unwrap() == "far"
    (work,) = await spans.have("process desk.further")
    ask, put = spans.one("ask desk.further"), spans.one("publish desk.further")
    child_ask, child = spans.one("ask desk.echo"), spans.one("process desk.echo")
    event = spans.one("publish desk.said")
    (lite,) = [span for span in spans.spans if ".lite." in span.name]

    assert ask.parent is None
    assert is_child(put, ask)
    assert is_child(work, put)
    assert is_child(child_ask, work)
    assert is_child(spans.one("publish desk.echo"), child_ask)
    assert is_child(child, spans.one("publish desk.echo"))
    assert is_child(event, work)
    assert is_child(lite, work)
    assert {trace_of(span) for span in spans.spans} == {trace_of(ask)}
    assert (await told.next()).headers["traceparent"] == header_of(event)
    # The outcome carries the trace, too.
    stored = await peer.lite.last(handle.reply_to)
    assert stored is not None
    assert stored.headers["traceparent"] == header_of(work)
    noted = await peer.lite.last(peer.subjects.lite("desk", "notes"))
    assert noted is not None
    assert noted.headers["traceparent"] == header_of(lite)
    await listening.aclose()


async def test_spans_are_named_and_described_by_the_conventions(serve: Serve, peer: Peer) -> None:
    spans, desk = made(), Desk()
    replica = await serve(desk)
    spans.trace(peer, replica.peer)

    handle = await peer.caller.submit("desk.echo", {"text": "hi"})
    outcome = await peer.caller.outcome(handle)
    (work,) = await spans.have("process desk.echo")
    ask, put = spans.one("ask desk.echo"), spans.one("publish desk.echo")

    assert [each.kind for each in (ask, put, work)] == [SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER]
    sent, done = attributes_of(put), attributes_of(work)
    assert sent == {
        "messaging.system": "nats",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "desk.echo",
        "messaging.message.id": handle.task_id,
        "messaging.client.id": "tester",
        "gen_ai.conversation.id": handle.task_id,
    }
    assert 0 <= done.pop("squadron.waited_s") < 100
    assert done.pop("squadron.seconds") == pytest.approx(outcome.latency_ms / 1000, abs=1e-5)
    assert done == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "desk.echo",
        "messaging.message.id": handle.task_id,
        "messaging.message.conversation_id": handle.task_id,
        "messaging.consumer.group.name": "desk",
        "messaging.client.id": "replica",
        "gen_ai.conversation.id": handle.task_id,
        "squadron.attempt": 1,
        "squadron.end": "outcome",
        "squadron.outcome": "result",
        "squadron.replica": "replica",
    }
    assert attributes_of(ask)["squadron.outcome"] == "result"
    # Log lines within the turn name the trace; others don't.
    assert desk.logged == [{"trace_id": trace_of(work)}]
    assert "trace_id" not in structlog.contextvars.get_contextvars()


async def test_an_attempt_is_linked_to_the_one_before(serve: Serve, peer: Peer) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(peer, replica.peer)

    assert (await peer.caller.ask("desk.again", {})).unwrap() == 2
    first, second = await spans.have("process desk.again", 2)

    put = spans.one("publish desk.again")
    assert is_child(first, put)
    assert is_child(second, put)
    assert first.status.status_code is StatusCode.ERROR
    assert attributes_of(first)["squadron.end"] == "again"
    assert attributes_of(first)["squadron.after_s"] == pytest.approx(0.01)
    assert "not yet" in str(first.status.description)
    assert links_of(first) == []
    assert links_of(second) == [("earlier attempt", id_of(first))]
    assert second.status.status_code is StatusCode.UNSET


async def test_what_another_process_tried_is_linked_to_what_was_sent(serve: Serve, peer: Peer) -> None:
    spans, stuck = made(), Stuck()
    dying = await serve(stuck, name="dying")
    spans.trace(peer)

    handle = await peer.caller.submit("stuck.once", {})
    await stuck.begun.wait()
    heir = await serve(Stuck(), name="heir")
    spans.trace(heir.peer)
    await dying.pump.aclose()
    assert (await peer.caller.outcome(handle)).unwrap() == 2
    (work,) = await spans.have("process stuck.once")

    assert links_of(work) == [("redelivery", id_of(spans.one("publish stuck.once")))]
    assert attributes_of(work)["squadron.attempt"] == 2


async def test_a_dead_letter_is_sent_again_in_a_new_trace_that_leads_to_the_old(serve: Serve, peer: Peer) -> None:
    spans, desk = made(), Desk()
    desk.works = False
    replica = await serve(desk)
    spans.trace(peer, replica.peer)

    outcome = await peer.caller.ask("desk.never", {})
    (old,) = await spans.have("process desk.never")
    assert outcome.kind == "dead_lettered"
    assert attributes_of(old)["error.type"] == "ValueError"
    assert [event.name for event in old.events] == ["dead letter"]

    desk.works = True
    letters = DeadLetters(peer.ports)
    assert (await letters.redrive(outcome.task_id)).ids == (outcome.task_id,)
    *_, new = await spans.have("process desk.never", 2)

    assert new.parent is None
    assert trace_of(new) != trace_of(old)
    assert links_of(new) == [("redriven", id_of(spans.one("publish desk.never")))]
    assert {f"{link.context.trace_id:032x}" for link in new.links} == {trace_of(old)}


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
async def test_the_trace_of_a_foreign_client_goes_on(serve: Serve, peer: Peer, name: str) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(replica.peer)

    task = AgentMessage.new("task", peer.ports.identity, {"text": "hi"}, timestamp=peer.clock.time())
    headers = {name: f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    await peer.queue.put(peer.subjects.task("desk.echo"), task.encode(), msg_id=task.id, headers=headers)
    (work,) = await spans.have("process desk.echo")

    assert trace_of(work) == TRACE
    assert work.parent is not None
    assert f"{work.parent.span_id:016x}" == PARENT
    assert work.context is not None
    assert work.context.trace_state.get("vendor") == "1"


@pytest.mark.parametrize("text", ["", "rubbish", "00-0-0-00", f"00-{'0' * 32}-{PARENT}-01", "ff" * 40])
async def test_a_header_that_is_no_trace_begins_one(serve: Serve, peer: Peer, text: str) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(replica.peer)

    task = AgentMessage.new("task", peer.ports.identity, {"text": "hi"}, timestamp=peer.clock.time())
    headers = {"traceparent": text, EARLIER_TRACE: text}
    await peer.queue.put(peer.subjects.task("desk.echo"), task.encode(), msg_id=task.id, headers=headers)
    (work,) = await spans.have("process desk.echo")

    assert (work.parent, links_of(work)) == (None, [])


async def test_what_is_not_sampled_is_not_sampled_anywhere(serve: Serve, peer: Peer) -> None:
    spans, all_of, replica = made(ALWAYS_OFF), made(ALWAYS_ON), await serve(Desk())
    spans.trace(peer)
    # Its own sampler would take all; whoever asked decides.
    all_of.trace(replica.peer)

    handle = await peer.caller.submit("desk.further", {})
    assert (await peer.caller.outcome(handle)).unwrap() == "far"
    stored = await peer.lite.last(handle.reply_to)
    assert stored is not None
    assert stored.headers["traceparent"].endswith(("-00", "-02"))
    assert (spans.spans, all_of.spans) == ((), ())


async def test_a_task_that_is_refused_has_a_span_that_says_why(serve: Serve, peer: Peer) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(replica.peer)

    sent_at = peer.clock.time() - 10
    routing = Routing(timeout=1)
    task = AgentMessage.new("task", peer.ports.identity, {}, routing=routing, timestamp=sent_at)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    await peer.queue.put(peer.subjects.task("desk.echo"), task.encode(), msg_id=task.id, headers=headers)
    (work,) = await spans.have("process desk.echo")

    assert trace_of(work) == TRACE
    assert attributes_of(work)["squadron.outcome"] == "expired"
    assert attributes_of(work)["error.type"] == "expired"
    assert attributes_of(work)["squadron.attempt"] == 1


async def test_who_asks_in_a_thread_goes_on_with_the_trace(serve: Serve, peer: Peer) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(peer, replica.peer)

    assert (await peer.caller.ask("desk.thread", {})).unwrap() == "from a thread"
    (work,) = await spans.have("process desk.thread")

    assert is_child(spans.one("ask desk.echo"), work)


@ON_NATS
async def test_what_could_not_be_sent_says_so(serve: Serve, peer: Peer) -> None:
    spans = made()
    spans.trace(peer)
    await serve(Desk())

    sending = asyncio.ensure_future(peer.caller.submit("desk.echo", {"text": "hi"}))
    (traces,) = peer.ports.observers._each
    assert isinstance(traces, Traces)
    while not traces._puts:
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    ask, put = spans.one("ask desk.echo"), spans.one("publish desk.echo")

    assert is_child(put, ask)
    for span, error in ((ask, "cancelled"), (put, "not_stored")):
        assert attributes_of(span)["error.type"] == error
        assert span.status.status_code is StatusCode.ERROR


async def test_the_trace_goes_along_when_a_task_is_handed_to_the_replica_it_is_for(
    serve: Serve, peer: Peer
) -> None:
    spans = made()
    one, two = await serve(Desk(), name="one"), await serve(Desk(), name="two")
    spans.trace(peer, one.peer, two.peer)

    for name in ("one", "two") * 4:
        outcome = await peer.caller.ask("desk.echo", {"text": name}, AskOptions(route=Route(target=name)))
        assert (outcome.unwrap(), outcome.source) == (name, name)
    asks = spans.named("ask desk.echo")
    works = await spans.have("process desk.echo", 8)

    assert len({trace_of(span) for span in asks}) == 8
    assert {trace_of(span) for span in works} == {trace_of(span) for span in asks}
    ran = {trace_of(each) for each in works if attributes_of(each)["squadron.end"] == "outcome"}
    assert ran == {trace_of(span) for span in asks}


async def test_the_line_about_the_end_of_a_task_has_its_trace(serve: Serve, peer: Peer) -> None:
    spans, replica = made(), await serve(Desk())
    replica.peer.ports.observers.add(TurnLog())
    spans.trace(peer, replica.peer)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        assert (await peer.caller.ask("desk.never", {})).unwrap() == "at last"
        (work,) = await spans.have("process desk.never")

    (line,) = [each for each in lines if each["event"] == "task.ended"]
    assert line["trace_id"] == trace_of(work)


@pytest.mark.parametrize(
    ("asked", "options", "outcome", "name"),
    [
        ("desk.nobody", AskOptions(within_s=0.01), "undeliverable", "ask desk.nobody"),
        ("desk.echo", AskOptions(within_s=0), "rejected", "ask desk.echo"),
        ("desk.echo", AskOptions(budget=Budget(tokens=0)), "rejected", "ask desk.echo"),
        ("desk.echo", AskOptions(), "rejected", "ask desk.echo"),
        ("desk.full", AskOptions(within_s=0.1), "rejected", "ask desk.full"),
        ("no topic at all", AskOptions(), "rejected", "ask"),
    ],
    ids=["unknown topic", "no time", "no budget", "wrong input", "no room", "no topic"],
)
async def test_an_ask_that_is_refused_at_the_door_has_a_span_that_says_why(
    serve: Serve, peer: Peer, asked: str, options: AskOptions, outcome: str, name: str
) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(peer, replica.peer)
    if asked == "desk.full":
        await serve(Full())
        await peer.caller.submit("desk.full", {})
    with spans.provider.get_tracer("mine").start_as_current_span("mine"):
        refused = await peer.caller.ask(asked, {}, options)

    assert refused.kind == outcome
    (span,) = [each for each in spans.named(name) if each.status.status_code is StatusCode.ERROR]
    assert is_child(span, spans.one("mine"))
    assert attributes_of(span)["squadron.outcome"] == outcome
    assert span.status.description == refused.reason
    assert not [each for each in spans.named(f"publish {asked}") if trace_of(each) == trace_of(span)]


async def test_an_ask_that_is_refused_where_nothing_is_sampled_has_none(serve: Serve, peer: Peer) -> None:
    spans, replica = made(ALWAYS_OFF), await serve(Desk())
    spans.trace(peer, replica.peer)
    assert (await peer.caller.ask("desk.echo", {})).kind == "rejected"
    assert spans.spans == ()

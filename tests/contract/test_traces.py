"""One trace goes from whoever asks through all that comes of it, and shows what was tried in vain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from squadron import Agent, Context, Retry, topic
from squadron.bridge.otel import names
from squadron.bridge.otel.contents import Contents
from squadron.bridge.otel.traces import Traces
from squadron.runtime.ports.queue import EARLIER_TRACE
from squadron.runtime.retries import Retries
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.pump import Pump
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.groups import EventGroup
from tests.contract.conftest import LEASE_S, Inbox, Peer, Serve, until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Spans of all who are traced by it, as they end."""

    def __init__(self, sampler: Sampler) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def trace(self, *peers: Peer, **env: str) -> None:
        for peer in peers:
            tracer = self.provider.get_tracer("test")
            traces = Traces(tracer, replica=peer.ports.identity.id, contents=Contents.of(env))
            peer.ports.observers.add(traces)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    async def have(self, name: str, count: int = 1) -> list[ReadableSpan]:
        async def are_there() -> bool:
            return len(self.named(name)) >= count

        await until(are_there)
        return self.named(name)


def made(sampler: Sampler = ALWAYS_ON) -> Collector:
    return Collector(ParentBased(sampler))


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    return (
        child.parent is not None and child.parent.span_id == id_of(parent) and trace_of(child) == trace_of(parent)
    )


def header_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{trace_of(span)}-{id_of(span):016x}-{span.context.trace_flags:02x}"


def links_of(span: ReadableSpan) -> list[tuple[str, int]]:
    return [(str((link.attributes or {})[names.LINK]), link.context.span_id) for link in span.links]


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
        return str(ctx.ask("desk.echo", {"text": "from a thread"}).unwrap())  # type: ignore[attr-defined]


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
    sent, done = dict(put.attributes or {}), dict(work.attributes or {})
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
    assert (ask.attributes or {})["squadron.outcome"] == "result"
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
    assert (first.attributes or {})["squadron.end"] == "again"
    assert (first.attributes or {})["squadron.after_s"] == pytest.approx(0.01)
    assert "not yet" in str(first.status.description)
    assert links_of(first) == []
    assert links_of(second) == [("earlier attempt", id_of(first))]
    assert second.status.status_code is StatusCode.UNSET


async def test_what_another_process_tried_is_linked_to_what_was_sent(serve: Serve, peer: Peer) -> None:
    spans, other, first = made(), made(), await serve(Desk(), name="first")
    spans.trace(peer)
    other.trace(first.peer)
    # As a replica that dies: its lease ends, and nothing of it is heard.
    hold = asyncio.Event()

    class Stuck(Desk):
        @topic("desk.again", max_attempts=3)
        async def again(self, ctx: Context) -> int:
            if ctx.attempt == 1:
                await hold.wait()
            return ctx.attempt

    await first.aclose()
    dying = await serve(Stuck(), name="dying")
    handle = await peer.caller.submit("desk.again", {})

    async def is_begun() -> bool:
        return bool(dying.delivered)

    await until(is_begun)
    dying.peer.ports.observers._each = ()
    heir = await serve(Stuck(), name="heir")
    spans.trace(heir.peer)
    await dying.pump.aclose()
    assert (await peer.caller.outcome(handle)).unwrap() >= 2
    (work,) = await spans.have("process desk.again")

    assert links_of(work) == [("redelivery", id_of(spans.one("publish desk.again")))]


async def test_a_dead_letter_is_sent_again_in_a_new_trace_that_leads_to_the_old(serve: Serve, peer: Peer) -> None:
    spans, desk = made(), Desk()
    desk.works = False
    replica = await serve(desk)
    spans.trace(peer, replica.peer)

    outcome = await peer.caller.ask("desk.never", {})
    (old,) = await spans.have("process desk.never")
    assert outcome.kind == "dead_lettered"
    assert (old.attributes or {})["error.type"] == "ValueError"
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
    assert stored.headers["traceparent"].endswith("-00")
    assert (spans.spans, all_of.spans) == ((), ())


async def test_a_task_that_is_refused_has_a_span_that_says_why(serve: Serve, peer: Peer) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(replica.peer)

    task = AgentMessage.new("task", peer.ports.identity, {}, timestamp=peer.clock.time(), deadline_ms=1)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    await peer.queue.put(peer.subjects.task("desk.echo"), task.encode(), msg_id=task.id, headers=headers)
    (work,) = await spans.have("process desk.echo")

    assert trace_of(work) == TRACE
    assert (work.attributes or {})["squadron.outcome"] == "expired"
    assert (work.attributes or {})["error.type"] == "expired"
    assert (work.attributes or {})["squadron.attempt"] == 1


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
    assert (first.attributes or {})["messaging.destination.template"] == "news.*"
    assert (first.attributes or {})["messaging.destination.name"] == "news.sport"
    assert (second.attributes or {})["squadron.outcome"] == "dead_lettered"
    await pump.aclose()


async def test_who_asks_in_a_thread_goes_on_with_the_trace(serve: Serve, peer: Peer) -> None:
    spans, replica = made(), await serve(Desk())
    spans.trace(peer, replica.peer)

    assert (await peer.caller.ask("desk.thread", {})).unwrap() == "from a thread"
    (work,) = await spans.have("process desk.thread")

    assert is_child(spans.one("ask desk.echo"), work)


async def test_what_could_not_be_sent_says_so(peer: Peer) -> None:
    spans = made()
    spans.trace(peer)

    outcome = await peer.caller.ask("desk.echo", {"text": "x" * 100, "more": "y" * 2_000_000_000 if False else ""})
    assert not outcome.ok or outcome.ok is False
    (ask,) = await spans.have("ask desk.echo")
    assert (ask.attributes or {})["squadron.outcome"] == outcome.kind

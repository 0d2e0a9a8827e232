"""Negotiations, in memory and on a real nats-server: who bids, who gets the task, and who gets it next."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from squadron import Agent, Bid, Context, Retry, Terminal, bid, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.runtime.asking.negotiation import acceptance, award, call_for_bids, negotiate, see_through
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import InvalidInputError
from squadron.runtime.ports.bus import Note
from squadron.runtime.wire.bids import Bids, Offer
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.outcome import Outcome
from tests.contract.conftest import ON_NATS, SIGNED, SOON_S, Inbox, Peer, World, first_stored, stand_in, until

#: Longer than any test may take: what ends before it did not wait for it.
LONG_S = 3600.0
TEXT = {"text": "a knot"}


class Bidder(Agent):
    """Ties knots, and bids as it is told."""

    bids: Any = None

    def __init__(self, bids: Any = None, **_: Any) -> None:
        self.bids = bids if bids is not None else self.bids
        self.asked: list[tuple[str, int]] = []
        self.tied: list[str] = []
        self.tokens: list[int | None] = []

    async def tie(self, text: str, ctx: Context) -> str:
        """Tie it."""
        self.tied.append(text)
        self.tokens.append(ctx.budget.tokens)
        return f"{type(self).__name__} tied {text}"

    @bid
    async def offer(self, topic: str, size: int) -> Bid | None:
        """What it was told."""
        self.asked.append((topic, size))
        made = self.bids(topic) if callable(self.bids) else self.bids
        if isinstance(made, BaseException):
            raise made
        found: Bid | None = await made if asyncio.iscoroutine(made) else made
        return found


class Sailor(Bidder):
    """Ties well."""

    bids = Bid(confidence=0.9, eta_s=1.0)

    @topic("tie.sailor")
    async def work(self, text: str, ctx: Context) -> str:
        """Tie a knot."""
        return await self.tie(text, ctx)


class Scout(Bidder):
    """Ties as it can."""

    bids = Bid(confidence=0.5, eta_s=1.0)

    @topic("tie.scout")
    async def work(self, text: str, ctx: Context) -> str:
        """Tie a knot."""
        return await self.tie(text, ctx)


class Plain(Agent):
    """Bids from its statistics."""

    @topic("tie.plain", max_attempts=1)
    async def work(self, text: str) -> str:
        """Tie a knot, unless it is a bad one."""
        if text == "bad":
            raise ValueError(text)
        return text


#: Programs of others, and a process of its own, sign nothing.
UNSIGNED = pytest.mark.skipif(SIGNED, reason="they sign nothing")

Run = Callable[..., Awaitable[Host]]


@pytest.fixture
async def host(world: World) -> AsyncIterator[Run]:
    """Run an agent as one replica of its own."""
    running: list[Host] = []

    async def start(agent: Agent, name: str = "") -> Host:
        spec = AgentSpec.of(type(agent))
        peer = await world.join(name or f"{spec.name}-00000001")
        made = Host(peer.place, agent, spec, slots=4)
        await peer.queue.declare(made.mailbox)
        await peer.registry.advertise(spec.card())
        await made.start()
        running.append(made)
        return made

    yield start
    for each in running:
        await each.stop(0.0)


async def _bids(peer: Peer, topics: Any = ("tie.sailor", "tie.scout"), **how: Any) -> Bids:
    return await call_for_bids(peer.caller, topics, TEXT, **{"within_s": SOON_S, **how})


async def _negotiate(peer: Peer, topics: Any = ("tie.sailor", "tie.scout"), **options: Any) -> Outcome:
    within_s = options.pop("bids_within_s", SOON_S)

    async def submit(topic: str, content: Any, **said: Any) -> Any:
        return await peer.caller.submit(topic, content, AskOptions.of(said))

    return await negotiate(
        peer.caller, submit, topics, TEXT, {"within_s": LONG_S, **options}, bids_within_s=within_s
    )


async def _accept(peer: Peer, offer: Offer, content: Any = TEXT, **options: Any) -> Outcome:
    said = {**acceptance(offer, Budget()), "within_s": SOON_S, **options}
    return await peer.caller.ask(offer.topic, content, AskOptions.of(said))


# --- bids --------------------------------------------------------------------------------------------


async def test_each_agent_bids_once_whatever_the_number_of_its_replicas(peer: Peer, host: Run) -> None:
    sailors = [Sailor(), Sailor()]
    for number, sailor in enumerate(sailors):
        await host(sailor, f"sailor-{number}")
    await host(Scout())

    for _ in range(12):
        bids = await _bids(peer)
        assert [each.agent for each in bids.offers] == ["sailor", "scout"]

    assert sum(len(each.asked) for each in sailors) == 12
    assert {each for sailor in sailors for each in sailor.asked} == {("tie.sailor", len(b'{"text":"a knot"}'))}


async def test_the_most_confident_gets_the_task_and_the_others_are_told(peer: Peer, host: Run) -> None:
    await host(Sailor())
    scout = await host(Scout())

    async def is_forgotten() -> bool:
        return len(scout._turns.offers._offered) == 0

    outcome = await _negotiate(peer)

    assert (outcome.unwrap(), outcome.source) == ("Sailor tied a knot", "sailor-00000001")
    await until(is_forgotten)


@pytest.mark.parametrize(
    ("bids", "reason"),
    [
        (lambda _: None, "sailor declines"),
        (Terminal("on shore until noon"), "on shore until noon"),
        (ValueError("planned"), "ValueError: planned"),
        (SystemExit(3), "SystemExit"),
        ("cheap", "returned a str, which is no bid"),
    ],
)
async def test_who_has_no_bid_gives_a_reason(peer: Peer, host: Run, bids: Any, reason: str) -> None:
    await host(Sailor(bids))
    await host(Scout())

    answers = await _bids(peer, within_s=LONG_S)

    assert reason in answers.refusals["tie.sailor"]
    assert [each.agent for each in answers.offers] == ["scout"]
    assert (await _negotiate(peer)).source == "scout-00000001"


async def test_if_all_refuse_nobody_is_sent_anything_and_the_outcome_says_why(peer: Peer, host: Run) -> None:
    sailor, scout = Sailor(Terminal("on shore")), Scout(Terminal("too young"))
    await host(sailor)
    await host(scout)

    outcome = await _negotiate(peer)

    assert outcome.kind == "undeliverable"
    assert outcome.details["refusals"] == {"tie.sailor": "on shore", "tie.scout": "too young"}
    assert "on shore" in outcome.reason
    assert sailor.tied == scout.tied == []


async def test_who_is_not_there_and_whom_the_input_does_not_fit_is_not_waited_for(peer: Peer, host: Run) -> None:
    await host(Sailor())
    topics = ["tie.sailor", "tie.nobody", "tie.gone"]
    gone = await host(_serving("tie.gone")())
    await gone._bidding.aclose()

    bids = await call_for_bids(peer.caller, topics, {"texts": 3}, within_s=LONG_S)
    assert bids.offers == ()
    assert "'text'" in bids.refusals["tie.sailor"] or "texts" in bids.refusals["tie.sailor"]
    assert bids.refusals["tie.nobody"] == "nobody serves it"

    bids = await call_for_bids(peer.caller, topics, TEXT, within_s=LONG_S)
    assert [each.topic for each in bids.offers] == ["tie.sailor"]
    assert "tie-gone gave no bid" in bids.refusals["tie.gone"]


def _serving(name: str) -> type[Agent]:
    class Other(Agent):
        """Serves one more topic."""

        name = "tie-gone"

        @topic("tie.gone")
        async def work(self, text: str) -> str:
            return text

    return Other


async def test_a_pattern_stands_for_all_that_are_served(peer: Peer, host: Run) -> None:
    await host(Sailor())
    await host(Scout())
    # What is there yet.
    await peer.registry.refresh(math.inf)
    assert [each.topic for each in (await _bids(peer, "tie.*")).offers] == ["tie.sailor", "tie.scout"]


async def test_a_bid_that_comes_too_late_does_not_count(peer: Peer, host: Run) -> None:
    bidding, ended = asyncio.Event(), asyncio.Event()

    async def slowly() -> Bid:
        bidding.set()
        await ended.wait()
        return Bid(confidence=1)

    await host(Sailor(lambda _: slowly()))
    await host(Scout())

    bids = await _bids(peer, within_s=3)

    assert bidding.is_set()
    assert bids.refusals == {"tie.sailor": "sailor gave no bid in time"}
    assert [each.agent for each in bids.offers] == ["scout"]
    ended.set()
    assert (await _negotiate(peer)).source == "sailor-00000001"


async def test_two_negotiations_at_once_do_not_mix(world: World, host: Run) -> None:
    for agent in (Sailor(), Scout()):
        await host(agent)
    one, other = await world.join("one"), await world.join("other")

    rounds = await asyncio.gather(*(_bids(each) for each in (one, other, one, other, one)))

    ids = [offer.id for bids in rounds for offer in bids.offers]
    assert len(set(ids)) == len(ids) == 10
    outcomes = await asyncio.gather(*(_accept(one, bids.offers[0]) for bids in rounds))
    assert [each.source for each in outcomes] == ["sailor-00000001"] * 5


async def test_without_a_method_the_statistics_bid(peer: Peer, host: Run) -> None:
    await host(Plain())
    [first] = (await _bids(peer, "tie.plain")).offers
    assert (first.bid.confidence, first.bid.eta_s, first.bid.price_tokens) == (0.5, None, None)

    for _ in range(3):
        assert (await peer.caller.ask("tie.plain", TEXT)).ok
    [good] = (await _bids(peer, "tie.plain")).offers
    await peer.caller.ask("tie.plain", {"text": "bad"})
    # It is told after the outcome.
    [bad] = (await _bids(peer, "tie.plain")).offers

    assert good.bid.confidence == pytest.approx(4 / 5)
    assert good.bid.eta_s is not None
    assert bad.bid.confidence == pytest.approx(4 / 6)


# --- what an accepted bid means ------------------------------------------------------------------------


async def test_a_task_has_the_price_of_its_bid_as_its_budget(peer: Peer, host: Run) -> None:
    sailor = Sailor(Bid(confidence=0.9, price_tokens=700))
    await host(sailor)

    assert (await _negotiate(peer, "tie.sailor", budget=Budget(tokens=5_000))).ok
    assert (await _negotiate(peer, "tie.sailor", budget=Budget(tokens=699))).kind == "undeliverable"

    assert sailor.tokens == [700]


async def test_a_failure_gives_the_task_to_the_next_bid(peer: Peer, host: Run) -> None:
    class Clumsy(Sailor):
        """Fails."""

        name = "sailor"

        async def tie(self, text: str, ctx: Context) -> str:
            self.tied.append(text)
            raise Terminal("two left hands")

    clumsy, scout = Clumsy(), Scout()
    await host(clumsy)
    await host(scout)

    outcome = await _negotiate(peer)

    assert (outcome.unwrap(), outcome.source) == ("Scout tied a knot", "scout-00000001")
    assert clumsy.tied == scout.tied == ["a knot"]
    assert (await _negotiate(peer, "tie.sailor")).reason == "two left hands"


async def test_a_bid_that_is_over_is_rejected(peer: Peer, host: Run) -> None:
    sailor = Sailor(lambda _: Bid(confidence=1, valid_until=time_of(peer) + 0.2))
    await host(sailor)
    [offer] = (await _bids(peer, "tie.sailor")).offers
    await until(lambda: _is(time_of(peer) > (offer.bid.valid_until or 0)))

    # As a caller that does not look at it would send it.
    outcome = await _accept(peer, offer)

    assert outcome.kind == "rejected"
    assert outcome.details["field"] == "metadata.bid"
    assert "ended" in outcome.reason
    assert sailor.tied == []
    assert award(Bids((offer,)), now=time_of(peer)) == []


def time_of(peer: Peer) -> float:
    return peer.clock.time()


async def _is(state: bool) -> bool:
    return state


async def test_a_forged_bid_is_rejected(peer: Peer, host: Run) -> None:
    sailor, scout = Sailor(), Scout()
    await host(sailor)
    await host(scout)
    by_topic = {each.topic: each for each in (await _bids(peer)).offers}
    mine, others = by_topic["tie.sailor"], by_topic["tie.scout"]

    for forged in (replace(mine, id="made-up"), replace(mine, id=others.id)):
        outcome = await _accept(peer, forged)
        assert (outcome.kind, outcome.details["field"]) == ("rejected", "metadata.bid")
    assert (await _accept(peer, mine, {"text": "a rope"})).reason.startswith("the bid was for another input")
    assert sailor.tied == []

    # Its own task was told of the wrong input, and holds it.
    [fresh] = (await _bids(peer, "tie.sailor")).offers
    assert (await _accept(peer, fresh)).ok
    again = await _accept(peer, fresh)
    assert again.kind == "rejected"
    assert "was accepted by the task" in again.reason
    assert sailor.tied == ["a knot"]


async def test_a_task_that_was_accepted_in_time_may_be_tried_again_later(peer: Peer, host: Run) -> None:
    class Slow(Sailor):
        """Needs a second try."""

        name = "sailor"

        async def tie(self, text: str, ctx: Context) -> str:
            if ctx.attempt == 1:
                raise Retry(after_s=0.5)
            return f"tied at attempt {ctx.attempt}"

    await host(Slow(lambda _: Bid(confidence=1, valid_until=time_of(peer) + 0.4)))
    [offer] = (await _bids(peer, "tie.sailor")).offers

    outcome = await _accept(peer, offer)

    assert outcome.unwrap() == "tied at attempt 2"
    assert time_of(peer) > (offer.bid.valid_until or 0)


async def test_of_two_replicas_the_one_that_bid_runs_the_task(peer: Peer, host: Run) -> None:
    for number in range(3):
        await host(Sailor(), f"sailor-{number}")
    for _ in range(6):
        [offer] = (await _bids(peer, "tie.sailor")).offers
        assert (await _accept(peer, offer)).source == offer.replica


async def test_what_the_bids_decide_is_no_option(peer: Peer) -> None:
    for name in ("route", "bid", "task_id"):
        with pytest.raises(InvalidInputError, match=name):
            await _negotiate(peer, **{name: "mine"})


# --- deaths -------------------------------------------------------------------------------------------


@pytest.fixture
async def victim(world: World) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that serves `tie.victim`."""
    assert world.settings is not None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("bidder.py")),
        env=os.environ | world.settings.environ(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    while await process.stdout.readline() != b"ready\n":
        assert process.returncode is None
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


@UNSIGNED
@ON_NATS
async def test_one_that_dies_after_its_bid_loses_it_to_the_next(
    peer: Peer, host: Run, victim: asyncio.subprocess.Process
) -> None:
    await host(Scout())
    bids = await _bids(peer, ["tie.victim", "tie.scout"])
    best, second = award(bids, now=time_of(peer))
    victim.kill()
    await victim.wait()

    said = {**acceptance(best, Budget()), "within_s": LONG_S}
    handle = await peer.caller.submit(best.topic, TEXT, AskOptions.of(said))
    outcome = await see_through(peer.caller, handle, best)

    assert best.replica == "victim-1"
    assert outcome.kind == "undeliverable"
    assert "is gone" in outcome.reason
    assert (await _accept(peer, second)).source == "scout-00000001"


@UNSIGNED
@ON_NATS
async def test_one_that_hangs_is_not_waited_for_longer_than_for_any(
    peer: Peer, host: Run, victim: asyncio.subprocess.Process
) -> None:
    await host(Scout())
    # It is present, and subscribed.
    victim.send_signal(signal.SIGSTOP)

    bids = await _bids(peer, ["tie.victim", "tie.scout"], within_s=3)

    assert [each.agent for each in bids.offers] == ["scout"]
    assert "victim" in bids.refusals["tie.victim"]


@UNSIGNED
@ON_NATS
async def test_who_takes_over_from_a_caller_that_died_sees_the_death_of_the_bidder_too(
    world: World, peer: Peer, victim: asyncio.subprocess.Process
) -> None:
    [offer] = (await _bids(peer, ["tie.victim"])).offers
    journaled = json.dumps(Bids((offer,)).to_json())
    said: Any = {**acceptance(offer, Budget()), "within_s": LONG_S}
    ticket = (await peer.caller.submit(offer.topic, TEXT, AskOptions.of(said))).ticket
    # Of the task.
    await victim.wait()

    async def is_forgotten() -> bool:
        return not peer.registry.replicas("victim")

    await until(is_forgotten)
    heir = await world.join("heir")
    [same] = award(Bids.from_json(json.loads(journaled)), now=time_of(peer))
    outcome = await see_through(heir.caller, heir.caller.resume(ticket), same)

    assert outcome.kind == "undeliverable"
    assert "victim-1, whose bid was accepted, is gone" in outcome.reason


@UNSIGNED
@ON_NATS
async def test_one_that_dies_of_the_task_loses_it_to_the_next(
    peer: Peer, host: Run, victim: asyncio.subprocess.Process
) -> None:
    await host(Scout())
    assert (await _negotiate(peer, ["tie.victim", "tie.scout"])).source == "scout-00000001"
    assert await victim.wait() < 0


# --- any NATS client ------------------------------------------------------------------------------------


def _message(type: str, content: Any, **more: Any) -> bytes:
    """What a client of any language would write."""
    id = uuid.uuid4().hex
    head = {"id": id, "timestamp": time.time(), "version": "1.0", "type": type, "source": {"id": "bare"}}
    return json.dumps(
        {**head, "context": {"conversationId": id}, "payload": {"content": content}, **more}
    ).encode()


@UNSIGNED
@ON_NATS
async def test_a_bare_client_calls_for_bids_by_a_request_and_accepts_one(
    world: World, bare: Client, host: Run
) -> None:
    assert world.settings is not None
    await host(Sailor())
    root = f"agents.{world.settings.env}"

    answer = await bare.request(
        f"{root}.a2a.negotiate.sailor", _message("query", {"topic": "tie.sailor"}), timeout=SOON_S
    )
    event = json.loads(answer.data)
    given = event["payload"]["content"]
    assert (event["type"], given["confidence"], event["source"]["id"]) == ("event", 0.9, "sailor-00000001")

    reply_to = f"{root}.lite.bare.{uuid.uuid4().hex}"
    heard = await bare.subscribe(reply_to)
    accepts = {"target": event["source"]["id"], "metadata": {"bid": given["bid"]}, "replyTo": reply_to}
    await bare.jetstream().publish(f"{root}.task.tie.sailor", _message("task", TEXT, **accepts))
    outcome = json.loads((await heard.next_msg(timeout=SOON_S)).data)["payload"]["content"]
    assert outcome["data"] == "Sailor tied a knot"

    await bare.jetstream().publish(f"{root}.task.tie.sailor", _message("task", TEXT, **accepts))
    outcome = json.loads((await heard.next_msg(timeout=SOON_S)).data)["payload"]["content"]
    assert outcome["outcome"] == "rejected"


@UNSIGNED
@ON_NATS
async def test_a_bare_client_hears_bids_and_refusals_on_a_lite_topic_and_rejects(
    world: World, peer: Peer, bare: Client, host: Run
) -> None:
    assert world.settings is not None
    sailor = await host(Sailor())
    await host(Scout(Terminal("too young")))
    root, reply_to = f"agents.{world.settings.env}", peer.subjects.lite("bare", "bids")

    for agent in ("sailor", "scout", "sailor"):
        asked = "tie.scout" if agent == "scout" else "tie.sailor"
        call = _message("query", {"topic": asked, "bytes": 17}, replyTo=reply_to, id=agent)
        await bare.publish(f"{root}.a2a.negotiate.{agent}", call)

    offered = await first_stored(peer.lite, reply_to, lambda each: each.correlation_id == "sailor")
    refused = await first_stored(peer.lite, reply_to, lambda each: each.correlation_id == "scout")
    assert refused.payload.content == {"reason": "too young"}

    id = offered.payload.content["bid"]
    assert id in sailor._turns.offers._offered
    await bare.publish(
        f"{root}.a2a.negotiate.sailor-00000001", _message("event", {"bid": id, "reason": "too dear"})
    )
    await until(lambda: _is(id not in sailor._turns.offers._offered))


@UNSIGNED
@ON_NATS
async def test_a_bare_client_bids_and_gets_the_task(world: World, peer: Peer, bare: Client, host: Run) -> None:
    assert world.settings is not None
    await host(Sailor())
    root, js = f"agents.{world.settings.env}", bare.jetstream()
    stream = f"squadron-{world.settings.env}-tasks"
    tasks = await js.pull_subscribe(f"{root}.task.tie.bare", durable="bare", stream=stream)
    card = {"agent": "bare", "topics": [{"name": "tie.bare", "description": "Ties by hand."}]}
    await js.publish(f"{root}.registry.card.bare", json.dumps(card).encode())
    alive = json.dumps({"expires_at": time.time() + 60}).encode()
    await js.publish(f"{root}.registry.presence.bare.bare", alive, headers={"Nats-TTL": "60s"})
    calls: list[dict[str, Any]] = []

    async def offer(msg: Any) -> None:
        call = json.loads(msg.data)
        calls.append(call)
        content = {"bid": "bare-bid", "confidence": 0.99, "eta_s": 2, "note": "by hand"}
        await js.publish(call["replyTo"], _message("event", content, correlationId=call["id"]))

    await bare.subscribe(f"{root}.a2a.negotiate.bare", cb=offer)
    await bare.flush()

    running = asyncio.create_task(_negotiate(peer, ["tie.sailor", "tie.bare"], within_s=60.0))
    [delivery] = await tasks.fetch(1, timeout=SOON_S)
    task = json.loads(delivery.data)
    result = _message("result", {"success": True, "data": "by hand"}, correlationId=task["id"])
    await js.publish(task["replyTo"], result)
    await delivery.ack()

    assert (await running).unwrap() == "by hand"
    assert (task["metadata"]["bid"], task["target"]) == ("bare-bid", "bare")
    assert calls[0]["payload"]["content"]["topic"] == "tie.bare"
    assert calls[0]["payload"]["content"]["bytes"] == len(b'{"text":"a knot"}')
    assert calls[0]["payload"]["constraints"]["deadline"] > time.time() * 1000


@pytest.mark.parametrize(
    "answer",
    [
        {"bid": "x"},
        {"bid": "x", "confidence": 7},
        {"bid": "x", "confidence": "high"},
        {"bid": "x", "confidence": 1, "price_tokens": -1},
        {"bid": "x", "confidence": 1, "eta_s": []},
        ["bid"],
        None,
        "no",
    ],
)
async def test_rubbish_for_an_answer_is_a_refusal(world: World, peer: Peer, answer: Any) -> None:
    bids = await _answered_by_hand(world, peer, answer)

    assert bids.offers == ()
    assert bids.refusals["tie.rubbish"].startswith(("rubbish gave no bid that can be read", "rubbish declines"))


async def test_who_answers_the_request_itself_is_heard_too(world: World, peer: Peer) -> None:
    answer = {"bid": "x", "confidence": 1}
    [offer] = (await _answered_by_hand(world, peer, answer, to_inbox=True)).offers
    assert (offer.id, offer.replica, offer.present) == ("x", "rubbish-00000001", True)


async def _answered_by_hand(world: World, peer: Peer, answer: Any, *, to_inbox: bool = False) -> Bids:
    other = await world.join("rubbish-00000001")
    sent: set[asyncio.Task[Any]] = set()

    def reply(note: Note) -> None:
        call = AgentMessage.decode(note.data)
        data = other.ports.pack("event", {"content": answer}, correlation_id=call.id)
        if to_inbox:
            sent.add(asyncio.create_task(other.bus.publish(note.reply, data)))
            return
        sent.add(asyncio.create_task(other.lite.append(call.reply_to or "", data, ttl_s=60)))

    card = {"agent": "rubbish", "topics": [{"name": "tie.rubbish"}]}
    await other.records.append(other.subjects.card("rubbish"), json.dumps(card).encode())
    await stand_in(other, "rubbish", "rubbish-00000001")
    await other.bus.subscribe(other.subjects.negotiate("rubbish"), reply)

    return await _bids(peer, "tie.rubbish", within_s=LONG_S)


async def test_rubbish_for_a_call_changes_nothing_for_good_ones(peer: Peer, host: Run) -> None:
    await host(Sailor())
    subject, lite = peer.subjects.negotiate("sailor"), peer.subjects.lite("rubbish", "calls")
    contents: list[Any] = [None, [], {}, {"topic": 3}, {"topic": "a.b", "bytes": -1}]
    for content in [*contents, {"topic": "a.b", "digest": 1}]:
        await peer.bus.publish(subject, peer.ports.pack("query", {"content": content}, reply_to=lite))
    for data in (b"", b"\xff", b"{}", peer.ports.pack("event", {"content": {"bid": []}})):
        await peer.bus.publish(subject, data)

    assert [each.agent for each in (await _bids(peer, "tie.sailor")).offers] == ["sailor"]
    stored = [entry async for entry in peer.lite.read(lite)]
    assert stored == []


async def test_an_answer_goes_to_no_subject_of_ours_but_a_lite_topic(peer: Peer, host: Run) -> None:
    await host(Sailor())
    heard = Inbox()
    for reply_to in (peer.subjects.event("answers.here"), "_INBOX.answers.here"):
        await peer.bus.subscribe(reply_to, heard)
    call = {"content": {"topic": "tie.sailor"}}
    subject = peer.subjects.negotiate("sailor")
    for reply_to in (peer.subjects.event("answers.here"), "_INBOX.answers.here"):
        await peer.bus.publish(subject, peer.ports.pack("query", call, reply_to=reply_to))

    note = await heard.next()
    assert note.subject == "_INBOX.answers.here"
    assert AgentMessage.decode(note.data).payload.content["confidence"] == 0.9


async def test_what_was_journaled_is_awarded_alike(peer: Peer, host: Run) -> None:
    for agent in (Sailor(), Scout(Terminal("no"))):
        await host(agent)
    bids = await _bids(peer)
    again = Bids.from_json(json.loads(json.dumps(bids.to_json())))
    assert again == bids
    assert award(again, now=time_of(peer)) == award(bids, now=time_of(peer)) == list(bids.offers)


async def test_a_squad_and_a_handler_negotiate() -> None:
    from squadron.testing import MemorySquad

    class Captain(Agent):
        """Has others tie."""

        @topic("ship.moor")
        async def moor(self, text: str, ctx: Context) -> str:
            """Moor the ship."""
            outcome = await ctx.negotiate("tie.*", {"text": text}, within_s=30)
            return f"moored: {outcome.unwrap()}"

        @topic("ship.anchor")
        def anchor(self, text: str, ctx: Context) -> str:
            """Drop the anchor, in a thread."""
            return f"anchored: {ctx.sync.negotiate(['tie.scout'], {'text': text}).unwrap()}"

    async with MemorySquad() as squad:
        await squad.deploy(Captain, Sailor, Scout)
        assert (await squad.ask("ship.moor", "a knot")).unwrap() == "moored: Sailor tied a knot"
        assert (await squad.ask("ship.anchor", "a knot")).unwrap() == "anchored: Scout tied a knot"
        assert (await squad.negotiate("tie.*", TEXT)).source == "sailor-2"

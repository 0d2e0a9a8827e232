"""A replica's side of negotiations: it hears calls for bids, answers them, and is held to what it offered."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, InvalidInputError, SquadronError, Terminal
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.registry.registry import Registry
from squadron.runtime.retries import summary_of, text_of, traceback_of
from squadron.runtime.store.port_set import Ports
from squadron.runtime.texts import digest_of
from squadron.runtime.trust.may_say import speaks_as
from squadron.runtime.wire.bids import MAX_REASON, Bid, CallForBids
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.outcome import LITE_TTL_S, Outcome
from squadron.runtime.wire.replies import unfit_reply
from squadron.runtime.wire.subjects import is_foreign, token_of

if TYPE_CHECKING:
    from squadron.runtime.running.turn import Turns

#: How long a bid that says nothing else may be accepted, in seconds: a negotiation takes about two, and the
#: bids before it may fail first.
VALID_S = 60.0
#: How many bids a replica keeps in mind (about 300 bytes each), and how many calls it answers at once.
MOST_OFFERS, MOST_CALLS = 10_000, 64
#: Of how many results of a topic it knows what they took, and by how much a price is above the dearest of them.
MOST_RESULTS, MARGIN = 100, 2
#: How many topics it keeps account of: one that serves a family may be asked on any number.
MOST_TOPICS = 1_000
#: Outcomes that the handler is to blame for.
FAILURES = frozenset({"failed", "timed_out", "dead_lettered"})

#: What answers for the author: a bid, or the reason why there is none.
Answering = Callable[[CallForBids], Awaitable[Bid | str]]


@dataclass(slots=True)
class _Offered:
    call: CallForBids
    valid_until: float
    #: The task that accepted it.
    task_id: str = ""


class Offers:
    """What this replica has offered: a task that names a bid runs only if it is one of these."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offered: OrderedDict[str, _Offered] = OrderedDict()

    def add(self, call: CallForBids, valid_until: float) -> str:
        """Keep an offer in mind; returns its id, which nobody can guess."""
        id = os.urandom(16).hex()
        self._offered[id] = _Offered(call, valid_until)
        if len(self._offered) > MOST_OFFERS:
            self._offered.popitem(last=False)
        return id

    def withdraw(self, id: str) -> None:
        """It was rejected; unless a task accepted it before."""
        if (offered := self._offered.get(id)) and not offered.task_id:
            del self._offered[id]

    def refusal(self, message: AgentMessage, topic: str) -> str:
        """Why a task can't have the bid that it names; the empty string if it can, or names none."""
        id = (message.metadata or {}).get("bid")
        if id is None:
            return ""
        offered = self._offered.get(id) if isinstance(id, str) else None
        if offered is None:
            return f"the bid {id!r:.80} is not of this replica, or was rejected"
        if offered.call.topic != topic:
            return f"the bid was for {offered.call.topic!r}, and not for {topic!r}"
        if offered.task_id not in ("", message.id):
            return f"the bid was accepted by the task {offered.task_id!r:.80} before"
        now = self._clock.time()
        if not offered.task_id and now >= offered.valid_until:
            return f"the bid ended {now - offered.valid_until:.3g} s ago"
        # What was accepted in time may be tried again later.
        offered.task_id = message.id
        return ""

    def check_input(self, message: AgentMessage) -> None:
        """Hold the input of a task to the one that its bid was for.

        Raises:
            InvalidInputError: it is another.
        """
        offered = self._offered.get(str((message.metadata or {}).get("bid")))
        if offered and offered.call.digest not in ("", digest_of(message.payload.content)):
            hint = "send the input that the bid was asked for, or ask for another bid"
            raise InvalidInputError("the bid was for another input", field="content", hint=hint)


@dataclass(slots=True)
class _Record:
    """What the newest results of one topic took."""

    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_RESULTS))
    tokens: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_RESULTS))
    #: Whether each of the newest tasks had a result.
    good: deque[bool] = field(default_factory=lambda: deque(maxlen=MOST_RESULTS))


class Statistics:
    """What this replica's tasks came to, topic by topic: an agent without a `@bid` method bids from it."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def note(self, outcome: Outcome) -> None:
        """A task has ended here."""
        if not outcome.ok and outcome.kind not in FAILURES:
            return
        record = self._records.setdefault(outcome.topic, _Record())
        self._records.move_to_end(outcome.topic)
        if len(self._records) > MOST_TOPICS:
            self._records.popitem(last=False)
        record.good.append(outcome.ok)
        if outcome.ok:
            record.latencies_s.append(outcome.latency_ms / 1000)
            record.tokens.append(outcome.tokens)

    def bid(self, topic: str, ahead: float) -> Bid:
        """A bid from what is known: an even chance while nothing is (Laplace's rule of succession).

        Args:
            ahead: how often all slots of the agent will be filled with what waits and runs already.
        """
        record = self._records.get(topic, _Record())
        confidence = (sum(record.good) + 1) / (len(record.good) + 2)
        eta_s = None
        if record.latencies_s:
            eta_s = sum(record.latencies_s) / len(record.latencies_s) * (1 + int(ahead))
        # The price is a limit, so it is one only where tokens were used at all.
        dearest = max(record.tokens, default=0)
        return Bid(confidence=confidence, price_tokens=MARGIN * dearest or None, eta_s=eta_s)


class Bidding:
    """Answers the calls for bids that reach this replica, of all that its agent gets.

    Args:
        answer: the agent's own `@bid` method; without, its statistics answer.
        slots: how many tasks the replica runs at once.
    """

    def __init__(
        self, turns: Turns, ports: Ports, registry: Registry, *, slots: int, answer: Answering | None = None
    ) -> None:
        self._turns, self._ports, self._registry, self._slots = turns, ports, registry, slots
        self._answer = answer or self._from_statistics
        self._ears: list[Subscription] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._log = get_logger("squadron.bidding").bind(agent=turns.agent, replica=ports.identity.id)

    async def start(self) -> None:
        """Begin to hear calls: the agent's, of which each reaches one replica, and this replica's own."""
        subjects, bus = self._ports.subjects, self._ports.bus
        agent = self._turns.agent
        self._ears.append(await bus.subscribe(subjects.negotiate(agent), self._hear, group=agent))
        self._ears.append(await bus.subscribe(subjects.negotiate(self._ports.identity.id), self._hear))

    async def aclose(self) -> None:
        """Hear no more calls. May be called twice."""
        while self._ears:
            await self._ears.pop().aclose()
        for call in self._calls:
            call.cancel()

    def _hear(self, note: Note) -> None:
        try:
            message = AgentMessage.decode(note.data)
            call = None if message.type == "event" else CallForBids.of(message, self._ports.clock.time())
        except SquadronError as error:
            # Anybody may write there.
            self._log.info("bidding.unreadable", subject=note.subject, error=str(error))
            return
        self._if_signed(note, message, "" if call is None else call.topic, lambda: self._take(call, message, note))

    def _if_signed(self, note: Note, message: AgentMessage, topic: str, take: Callable[[], None]) -> None:
        guard = self._ports.guard
        if guard is None:
            return take()
        may, least = speaks_as(message.source.id), self._turns.least(topic)
        said = note.subject, note.data, note.headers
        guard.hear("bid", *said, lambda _: take(), at=None, may=may, topic=topic, least=least)

    def _take(self, call: CallForBids | None, message: AgentMessage, note: Note) -> None:
        if call is None:
            return self._rejected(message)
        task = spawn(self._reply(call, message, note.reply), f"bid for {call.topic}")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _rejected(self, message: AgentMessage) -> None:
        content = message.payload.content
        if isinstance(content, dict) and isinstance(content.get("bid"), str):
            self._turns.offers.withdraw(content["bid"])

    async def _reply(self, call: CallForBids, message: AgentMessage, inbox: str) -> None:
        left_s = call.until - self._ports.clock.time()
        if left_s <= 0:
            return
        try:
            async with asyncio.timeout(min(left_s, VALID_S)):
                bid = await self._make(call)
        except TimeoutError:
            # Nobody listens any more.
            self._log.info("bidding.too_late", topic=call.topic, message=message.id)
            return
        content: dict[str, Any] = {"reason": bid[:MAX_REASON]} if isinstance(bid, str) else self._offer(call, bid)
        told = self._ports.pack(
            "event",
            {"content": content},
            conversation_id=message.context.conversation_id,
            parent=message.id,
            correlation_id=message.id,
        )
        try:
            await self._send(told, message, inbox)
        except SquadronError as error:
            # At most once: without it somebody else gets the task.
            self._log.info("bidding.not_sent", topic=call.topic, error=str(error))

    async def _make(self, call: CallForBids) -> Bid | str:
        if not self._turns.serves(call.topic):
            return f"{self._turns.agent} does not serve {call.topic!r}"
        if len(self._calls) > MOST_CALLS:
            return "too many calls for bids at once"
        own = asyncio.current_task()
        try:
            return await self._answer(call)
        except GeneratorExit:
            raise
        except Terminal as refusal:
            return text_of(refusal) or "it declines"
        except BaseException as error:
            # A method that calls sys.exit() would take the replica along.
            if isinstance(error, asyncio.CancelledError) and own is not None and own.cancelling():
                raise
            self._log.error("bidding.broke", topic=call.topic, traceback=traceback_of(error))
            return f"its bid method raised {summary_of(error)}"

    def _offer(self, call: CallForBids, bid: Bid) -> dict[str, Any]:
        if bid.valid_until is None:
            bid = replace(bid, valid_until=self._ports.clock.time() + VALID_S)
        assert bid.valid_until is not None
        return {"bid": self._turns.offers.add(call, bid.valid_until), **bid.to_content()}

    async def _send(self, data: bytes, message: AgentMessage, inbox: str) -> None:
        """To the lite topic, or the foreign subject, that the call names, or else to who waits for an answer."""
        ports, reply_to = self._ports, message.reply_to or inbox
        if unfit := unfit_reply(message, ports.subjects):
            self._log.warning("bidding.unfit_reply", reason=unfit)
        elif ports.subjects.has_lite(reply_to):
            msg_id = f"{token_of(message.id)}.{token_of(ports.identity.id)}.bid"
            await ports.lite.append(reply_to, data, ttl_s=LITE_TTL_S, msg_id=msg_id)
        elif is_foreign(reply_to) and ports.subjects.is_outside(reply_to):
            await ports.bus.publish(reply_to, data)

    async def _from_statistics(self, call: CallForBids) -> Bid:
        agent = self._turns.agent
        try:
            backlog = await self._ports.queue.backlog(agent)
            held = backlog.waiting + backlog.taken
        except BusUnavailableError:
            held = 0
        replicas = max(1, len(self._registry.replicas(agent)))
        return self._turns.statistics.bid(call.topic, held / (replicas * self._slots))

"""A caller's side of negotiations: call for bids, award, accept, and go on to the next bid. See ADR 0024."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from squadron.runtime.asking.believing import check_agent, least_of
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import BIDS_WITHIN_S, AskKeywords, AskOptions
from squadron.runtime.errors import (
    BusUnavailableError,
    InvalidInputError,
    InvalidMessageError,
    SquadronError,
    UntrustedError,
)
from squadron.runtime.lite.reader import LiteReader
from squadron.runtime.ports.journal import Headers
from squadron.runtime.store.port_set import Ports
from squadron.runtime.texts import digest_of, encoded, jsonable
from squadron.runtime.trust.may_say import check_source
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.wire.bids import MAX_REASON, Bid, Bids, CallForBids, Offer
from squadron.runtime.wire.envelope import AgentMessage, pack
from squadron.runtime.wire.limits import MOST_USD, UNLIMITED, Budget, Deadline
from squadron.runtime.wire.outcome import Cancelled, Outcome, Undeliverable
from squadron.runtime.wire.route import Route
from squadron.runtime.wire.spent import MICROS
from squadron.runtime.wire.subjects import check_pattern, matches

#: How often it is looked whether the replica of an accepted bid still lives, in seconds.
WATCH_S = 1.0
#: Options of asking that a bid decides.
_DECIDED = ("bid", "route", "task_id")

#: What sends a task: `Caller.submit` with options, `Context.submit`, or `Squad.submit`.
Submit = Callable[..., Awaitable[Handle]]


async def call_for_bids(
    caller: Caller,
    topics: str | Iterable[str],
    content: Any,
    *,
    within_s: float = BIDS_WITHIN_S,
    deadline: Deadline | None = None,
    tokens: int | None = None,
    usd: float | None = None,
    owner: str = "",
    parent: str | None = None,
    conversation_id: str = "",
    sealed: bool = False,
) -> Bids:
    """Ask the agents that serve these topics what they would do the task for; ends when all have answered.

    Never raises for what agents say or don't: who has no bid has a reason among the refusals.

    Args:
        topics: names, or patterns that stand for all that are served.
        content: the input, which must fit each topic; those that it does not fit are refused here.
        within_s: how long bids are waited for, in seconds.
        deadline: when the task itself must be done.
        tokens, usd: what it may cost; told to who bids.
        owner: of the lite topic that the bids come to; by default of ours.
        sealed: no digest of the input is told, by which it could be guessed.

    Raises:
        InvalidSubjectError: a topic breaks the grammar.
        InvalidInputError: the content is not JSON.
    """
    until = Deadline.after(within_s if deadline is None else deadline.earliest(within_s), caller.ports.clock)
    called = _Round(caller, owner, {"parent": parent, "conversation_id": conversation_id}, sealed)
    try:
        data = jsonable({} if content is None else content)
    except ValueError as error:
        raise InvalidInputError(f"the content is not JSON: {error}", field="content") from None
    for name in _names(caller, topics):
        await called.add(name, data, until, tokens, usd)
    await called.run(until, deadline)
    return called.bids()


def award(
    bids: Bids, *, now: float, time_left_s: float = math.inf, tokens: int | None = None, usd: float | None = None
) -> list[Offer]:
    """The offers in the order in which to try them: most confident first, then the cheapest, then by name.

    Those that are over, take longer than the time that is left, or cost more than the slice are left out. What
    says no price counts as the dearest.

    Args:
        now: in seconds since the epoch.
        tokens, usd: the slice of the budget that the task may have.
    """

    def fits(offer: Offer) -> bool:
        bid = offer.bid
        limits = ((bid.eta_s, time_left_s), (bid.price_tokens, tokens), (bid.price_usd, usd))
        return offer.is_valid(now) and all(None in (it, limit) or it <= limit for it, limit in limits)  # type: ignore[operator]

    def rank(offer: Offer) -> tuple[Any, ...]:
        prices = (math.inf if price is None else price for price in (offer.bid.price_usd, offer.bid.price_tokens))
        return (-offer.bid.confidence, *prices, offer.agent, offer.topic, offer.replica, offer.id)

    return sorted(filter(fits, bids.offers), key=rank)


def acceptance(offer: Offer, budget: Budget) -> AskKeywords:
    """The options of the task that accepts an offer: who runs it, and what it may spend.

    Args:
        budget: what the task may spend in all; the price of the bid can only be less.
    """
    tokens, usd = offer.bid.price_tokens, offer.bid.price_usd
    # A budget of nothing is used up before the task begins.
    slice = Budget(
        tokens=None if tokens is None else max(1, tokens),
        usd=None if usd is None else min(MOST_USD, max(1 / MICROS, usd)),
    )
    return {"route": Route(target=offer.replica), "bid": offer.id, "budget": budget.within(slice)}


async def reject(ports: Ports, offers: Iterable[Offer], reason: str) -> None:
    """Tell those who offered that they won't get the task; best effort."""
    for offer in offers:
        told = ports.pack("event", {"content": {"bid": offer.id, "reason": reason}}, correlation_id=offer.id)
        with contextlib.suppress(SquadronError):
            await ports.bus.publish(ports.subjects.negotiate(offer.replica), told)


async def see_through(caller: Caller, handle: Handle, offer: Offer) -> Outcome:
    """The outcome of a task that accepted an offer; it fails when the replica that gave it is gone."""
    registry = caller.registry
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_S):
                return await handle.outcome()
        if not (offer.present and registry.knows_of() and offer.replica not in registry.replicas(offer.agent)):
            continue
        with contextlib.suppress(BusUnavailableError):
            if isinstance(ended := await caller.cancel(handle), Cancelled):
                reason = f"{offer.replica}, whose bid was accepted, is gone"
                return Undeliverable(task_id=handle.task_id, topic=handle.topic, reason=reason)
            return ended


async def negotiate(
    caller: Caller,
    submit: Submit,
    topics: str | Iterable[str],
    content: Any,
    options: AskKeywords,
    *,
    bids_within_s: float = BIDS_WITHIN_S,
    deadline: Deadline | None = None,
    limit: Budget = UNLIMITED,
) -> Outcome:
    """Call for bids, give the task to the best, on failure to the next; the outcome of the last that was tried.

    Args:
        submit: sends the task; takes topic, content and options.
        options: of asking; who runs it and what of the budget it gets is the bid's.
        deadline: when it must be over, if that is before the options' own time.
        limit: what may be spent, if that is less than the options' own budget.

    Raises:
        InvalidInputError: an option has no meaning here, or can't have that value.
        InvalidSubjectError: a topic breaks the grammar.
    """
    for name in _DECIDED:
        if name in options:
            raise InvalidInputError(f"{name} is decided by the bids", field=name, hint=f"leave {name} out")
    own = AskOptions.of(options)
    clock = caller.ports.clock
    until = Deadline.after(own.within_s if deadline is None else deadline.earliest(own.within_s), clock)
    slice = own.budget.within(limit)
    bids = await call_for_bids(
        caller,
        topics,
        content,
        within_s=bids_within_s,
        deadline=until,
        tokens=slice.tokens,
        usd=slice.usd,
        conversation_id=own.conversation_id,
        sealed=own.sealed,
    )
    order = award(bids, now=clock.time(), time_left_s=until.remaining_s(), tokens=slice.tokens, usd=slice.usd)
    await reject(caller.ports, [each for each in bids.offers if each not in order], "too dear, or too slow")
    outcome: Outcome | None = None
    untried = list(order)
    while untried and not (outcome and (outcome.ok or isinstance(outcome, Cancelled))) and not until.passed:
        offer = untried.pop(0)
        if offer.is_valid(clock.time()):
            said: dict[str, Any] = {**options, **acceptance(offer, own.budget), "within_s": until.remaining_s()}
            outcome = await see_through(caller, await submit(offer.topic, content, **said), offer)
    await reject(caller.ports, untried, "somebody else has done it")
    return outcome or _nobody(bids, order)


def _nobody(bids: Bids, order: Sequence[Offer]) -> Outcome:
    """No task was sent."""
    reasons = dict(bids.refusals)
    for offer in bids.offers:
        reasons[offer.topic] = "its bid ended" if offer in order else "its bid is over, too dear, or too slow"
    said = "; ".join(f"{topic}: {reason}" for topic, reason in sorted(reasons.items())) or "nobody was asked"
    return Undeliverable(reason=f"there is no bid for it: {said}", details={"refusals": reasons})


def _names(caller: Caller, topics: str | Iterable[str]) -> list[str]:
    """Each topic once, in the order given; a pattern stands for those that are served."""
    names: dict[str, None] = {}
    for each in [topics] if isinstance(topics, str) else topics:
        pattern = check_pattern(each)
        served = (topic.name for topic, _ in caller.registry.topics() if not topic.is_pattern)
        found = sorted(name for name in served if matches(pattern, name)) if "*" in pattern else [pattern]
        names |= dict.fromkeys(found)
    return list(names)


@dataclass(slots=True)
class _Called:
    """One agent that is called for one topic."""

    agent: str
    call: CallForBids
    answer: Offer | str | None = None


@dataclass(slots=True)
class _Round:
    """One call for bids: who is called, under the id of the message, and what they answer."""

    caller: Caller
    owner: str
    head: dict[str, Any]
    sealed: bool
    called: dict[str, _Called] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    async def add(self, name: str, data: Any, until: Deadline, tokens: int | None, usd: float | None) -> None:
        """Find who serves a topic, and see whether the input fits."""
        registry = self.caller.registry
        found = registry.find(name) or await registry.wait_for(name, within_s=until.remaining_s())
        agent = next((agent for topic, agent in registry.topics() if topic is found), "")
        if found is None or not agent:
            self.refusals[name] = "nobody serves it"
        elif not registry.replicas(agent):
            self.refusals[name] = f"no replica of {agent} runs"
        else:
            content = from_json(encoded(found.wrap(data)))  # As it will arrive.
            try:
                found.check(content)
            except InvalidInputError as error:
                self.refusals[name] = str(error)
                return
            digest = "" if self.sealed or found.sealed else digest_of(content)
            call = CallForBids(name, len(encoded(content)), digest, tokens=tokens, usd=usd)
            self.called[os.urandom(16).hex()] = _Called(agent, call)

    async def run(self, until: Deadline, deadline: Deadline | None) -> None:
        """Send the calls and hear the answers, until all are there or the time is over."""
        if not self.called:
            return
        topic = self.caller.lite_topics.topic(owner=self.owner or self.caller._owner)
        async with asyncio.TaskGroup() as group, topic.read() as reader:
            sends = [self._send(id, topic.key, until, deadline) for id in self.called]
            tasks = [group.create_task(work) for work in (self._listen(reader, topic.key), *sends)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until.remaining_s()):
                    await self.complete.wait()
            for task in tasks:
                task.cancel()

    async def _send(self, id: str, reply_to: str, until: Deadline, deadline: Deadline | None) -> None:
        ports, called = self.caller.ports, self.called[id]
        data = pack(
            "query",
            ports.identity,
            called.call.to_payload(None if deadline is None else deadline.at_ms),
            id=id,
            timestamp=ports.clock.time(),
            reply_to=reply_to,
            routing={"priority": 5, "timeout": max(1, round(until.remaining_s() * 1000))},
            **self.head,
        )
        try:
            # Ours answer on the lite topic; as a request the server says at once when nobody listens.
            subject = ports.subjects.negotiate(called.agent)
            # Who waits for all of them knows when it is too late, and ends this then.
            answer = await ports.bus.exchange(subject, data, within_s=until.remaining_s() + 1.0)
            with contextlib.suppress(InvalidMessageError):
                await self._hear(id, AgentMessage.decode(answer.data), None, answer.data, answer.headers, None)
        except SquadronError as error:
            self._settle(id, f"{called.agent} gave no bid: {error}")

    async def _listen(self, reader: LiteReader, reply_to: str) -> None:
        with contextlib.suppress(BusUnavailableError):
            async for each in reader:
                if (message := each.message) and (id := message.correlation_id) in self.called:
                    await self._hear(id, message, reply_to, each.data, each.headers, each.time)

    async def _hear(
        self, id: str, message: AgentMessage, key: str | None, data: bytes, headers: Headers, at: float | None
    ) -> None:
        if message.type != "event":
            return
        called, registry, guard = self.called[id], self.caller.registry, self.caller.ports.guard
        if guard is not None:
            topic = called.call.topic

            def may(signed: Signed) -> None:
                check_source(signed, message.source.id)
                check_agent(registry, topic, signed)

            try:
                await guard.admit(
                    "bid", key, data, headers, at=at, may=may, topic=topic, least=least_of(registry, topic)
                )
            except (UntrustedError, BusUnavailableError):
                # Anybody may write there: the agent's own answer may come yet.
                return
        present = message.source.id in registry.replicas(called.agent)
        self._settle(id, _answer(called, message, present))

    def _settle(self, id: str, answer: Offer | str) -> None:
        """The first answer counts."""
        if self.called[id].answer is None:
            self.called[id].answer = answer
            if all(each.answer is not None for each in self.called.values()):
                self.complete.set()

    def bids(self) -> Bids:
        """What was answered."""
        offers, refusals = [], dict(self.refusals)
        for each in self.called.values():
            if isinstance(each.answer, Offer):
                offers.append(each.answer)
            else:
                refusals[each.call.topic] = each.answer or f"{each.agent} gave no bid in time"
        return Bids(tuple(offers), refusals)


def _answer(called: _Called, message: AgentMessage, present: bool) -> Offer | str:
    content = message.payload.content
    if not isinstance(content, dict) or not isinstance(content.get("bid"), str):
        reason = content.get("reason") if isinstance(content, dict) else None
        return str(reason)[:MAX_REASON] if reason else f"{called.agent} declines"
    try:
        return Offer(content["bid"], called.call.topic, called.agent, message.source.id, Bid.of(content), present)
    except InvalidInputError as error:
        return f"{called.agent} gave no bid that can be read: {error}"

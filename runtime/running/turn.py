"""One run of one handler on one message, to exactly one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.cancel import Cancellations
from squadron.runtime.asking.question_records import withdraw_questions
from squadron.runtime.errors import (
    InvalidInputError,
    InvalidMessageError,
    InvalidSubjectError,
    Park,
    SupersededError,
    UntrustedError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.retries import summary_of
from squadron.runtime.running.allowance import Allowance
from squadron.runtime.running.arrival import ALONE_S, STALE_S, Arrival, arrive, deadline_of, mark_when_late
from squadron.runtime.running.bidding import Offers, Statistics
from squadron.runtime.running.context import IN_TIME, TurnContext
from squadron.runtime.running.earlier import NoteBook, open_ledger
from squadron.runtime.running.handler import Handler
from squadron.runtime.running.handover import Courier, hand_back, hand_on
from squadron.runtime.running.judge import died_each_time, judge
from squadron.runtime.running.lapse import lapse
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.running.no_outcome import Again, HandOn, Later, LetGo
from squadron.runtime.running.once import cancelled_with
from squadron.runtime.running.parking import Parking
from squadron.runtime.running.permission import Permission, check_kept
from squadron.runtime.running.poison import Poison
from squadron.runtime.running.proof import answers, check_task, refuse
from squadron.runtime.running.pump import free_slot
from squadron.runtime.running.reports import Reports
from squadron.runtime.running.sealed_task import bury_sealed, open_task, refuse_readable
from squadron.runtime.running.split import Split
from squadron.runtime.running.to_the_end import run_to_the_end
from squadron.runtime.running.told import Told
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.store.put_back import as_put_back
from squadron.runtime.trust.verify_modes import VerifyMode
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import (
    Answer,
    Cancelled,
    DeadLettered,
    Outcome,
    Rejected,
    Result,
    TimedOut,
)
from squadron.runtime.wire.path import circle_in
from squadron.runtime.wire.route import Route
from squadron.runtime.wire.subjects import TaskSubject, matches

#: What a handler has returned before it returns.
_NOTHING = object()


class Turns:
    """Runs the deliveries of one mailbox through the handlers that serve it.

    Args:
        capabilities: what this replica offers to tasks that ask for it.
        split: which version of the agent this replica runs, if there may be two beside each other.
    """

    def __init__(
        self,
        agent: str,
        handlers: Sequence[Handler],
        caller: Caller,
        *,
        capabilities: Collection[str] = (),
        split: Split | None = None,
    ) -> None:
        ports = caller.ports
        self.agent, self._caller, self._ports, self._me = agent, caller, ports, ports.identity.id
        self._letters, self._allowance = DeadLetters(ports), Allowance(ports)
        self._reports = Reports(ports, caller.registry)
        self._parking, self._poison = Parking(ports, agent), Poison(ports, agent, self._reports)
        self._capabilities, self._split = frozenset(capabilities), split or Split(agent, caller.registry)
        self._exact = {handler.topic.name: handler for handler in handlers}
        self._families = [handler for handler in handlers if handler.topic.is_pattern]
        self._cancelled, self._courier = Cancellations(ports), Courier(ports)
        #: What was offered for tasks that may come, and what those that came took.
        self.offers, self.statistics = Offers(ports.clock), Statistics()
        self._log = get_logger("squadron.turn").bind(agent=agent, replica=ports.identity.id)

    async def start(self) -> None:
        """Begin to hear of cancelled tasks; before the first turn.

        Raises:
            ConfigError: a topic is only for some, and here nobody looks who asks.
        """
        for handler in (*self._exact.values(), *self._families):
            check_kept(self._ports, handler.topic)
        await self._cancelled.start()

    async def aclose(self) -> None:
        """Hear nothing more. May be called twice."""
        await self._cancelled.aclose()

    def least(self, topic: str) -> VerifyMode:
        """What the author of a topic wants at least, of messages that nobody signed who may."""
        return "off" if (handler := self._handler(topic)) is None else handler.topic.verify

    def serves(self, topic: str) -> bool:
        """Whether a task on this topic would be run here."""
        return self._handler(topic) is not None

    def _handler(self, topic: str) -> Handler | None:
        exact = self._exact.get(topic)
        return exact or next((h for h in self._families if matches(h.topic.name, topic)), None)

    async def run(self, delivery: Delivery) -> Outcome | None:
        """Take one delivery to its end: the outcome is stored first, and only then is the task settled.

        Returns None when there is nothing to report: it was handed back, or its outcome was stored before.
        """
        try:
            topic = TaskSubject.parse(delivery.subject).topic
            message = AgentMessage.decode(delivery.data)
        except (InvalidMessageError, InvalidSubjectError) as error:
            await self._poison.take(delivery, error)
            return None
        try:
            signed = await check_task(self._ports, self.agent, delivery, message, topic, self.least(topic))
            message = as_put_back(message, delivery.headers)
        except UntrustedError as error:
            return await refuse(self._ports, self.agent, delivery, message, topic, error)
        common: dict[str, Any] = {"task_id": message.id, "topic": topic, "source": self._me, "attempt": 1}
        canaries = self._split.elsewhere(message)
        if canaries and await lapse(self._ports, self._cancelled, message, delivery.lease, common) is None:
            await self._courier.pass_on(delivery, canaries)
            return None
        said = answers(self._ports, delivery, signed)
        arrival = await arrive(self._ports, self._reports, delivery, message, topic, said)
        if arrival is None:
            return None
        if not delivery.lease.first:
            await self._parking.take_up(message)
        handler = self._handler(topic)
        served = handler.topic.name if handler is not None else ""
        told = Told(self._ports, "task", self.agent, message, topic, served, delivery)
        common["version"] = self._split.version
        right = Permission(self._ports, self._allowance, signed, message, topic)
        try:
            ended = await self._attempt(delivery, message, handler, common, told, arrival, right)
            if not isinstance(ended, Outcome):
                await self._elsewhere(delivery, message, ended, told)
                return None
            if not right.is_limited:
                free_slot()
            if await arrival.ended_meanwhile(self._reports, delivery, message, after_s=ALONE_S):
                told.ended("superseded")
                return None
            reported = await self._report(delivery, message, ended, arrival, told)
            await right.charge(reported.spent)
        except BaseException as error:
            told.ended("handed_back", error=summary_of(error))
            raise
        told.ended("outcome", outcome=reported)
        return reported

    async def _elsewhere(
        self, delivery: Delivery, message: AgentMessage, ended: Again | HandOn | Later | LetGo, told: Told
    ) -> None:
        """The task goes on with another replica, or later."""
        match ended:
            case HandOn():
                await self._courier.pass_on(delivery, ended.replicas)
                told.ended("handed_on")
            case Again():
                await delivery.lease.release(ended.after_s)
                told.ended("again", after_s=ended.after_s, error=ended.error)
            case Later():
                await self._parking.park(delivery, message, ended.park)
                told.ended("parked")
            case LetGo():
                told.ended("superseded")

    async def _report(
        self, delivery: Delivery, message: AgentMessage, ended: Outcome, arrival: Arrival, told: Told
    ) -> Outcome:
        """Store the outcome, and then settle the task."""
        if isinstance(ended, Cancelled):
            # Those of earlier attempts, too, and of one that never ran on this replica.
            await withdraw_questions(self._ports, self._caller.lite_topics, message.id)
        if isinstance(ended, DeadLettered):
            await self._bury(delivery, ended, sealed=bool(arrival.readers))
        how: dict[str, Any] = {"task": arrival.task, "answers": arrival.answers, "readers": arrival.readers}
        where = arrival.lite_key, arrival.announce
        reported = await self._reports.store(message, ended, *where, headers=told.outcome_headers, **how)
        if not isinstance(ended, DeadLettered | Rejected):
            # A dead letter may be sent again, with the claim that it carries.
            await self._ports.claims.drop(message)
        await delivery.lease.settle()
        self.statistics.note(reported)
        return reported

    async def _attempt(
        self,
        delivery: Delivery,
        message: AgentMessage,
        handler: Handler | None,
        common: dict[str, Any],
        told: Told,
        arrival: Arrival,
        right: Permission,
    ) -> Outcome | Again | HandOn | Later | LetGo:
        ledger = await open_ledger(self._ports, message, again=not delivery.lease.first)
        common["spent"] = ledger.spent
        registry = self._caller.registry
        if not registry.knows_of(message.seen):
            # Nobody decides on less than its caller saw.
            await registry.catch_up(message.seen)
        if arrival.unfit:
            return Rejected(reason=arrival.unfit, details={"field": "replyTo"}, **common)
        lapsed = await lapse(self._ports, self._cancelled, message, delivery.lease, common)
        if handler is None:
            return lapsed or self._unserved(delivery, common)
        refused = right.forbidden(handler.topic.allow, common) or refuse_readable(handler.topic, message, common)
        if refusal := refused or lapsed or self._refusal(message, ledger, common):
            return refusal
        attempt = common["attempt"] = await delivery.lease.begin()
        # Only now: where many come again at once, it takes longer to note that it begins than a look is good for.
        if arrival.was_here and await arrival.ended_meanwhile(self._reports, delivery, message, after_s=STALE_S):
            return LetGo()
        if attempt > handler.retries.max_attempts:
            return died_each_time(attempt - 1, common)
        if used_up := await right.used_up(ledger, common):
            return used_up
        context = self._context(message, common, arrival.lite_key, ledger)
        context.lease, context.behalf = delivery.lease, right.chain
        began, topic = self._ports.clock.time(), common["topic"]
        notes = NoteBook(self._ports, message, self.agent, topic, ledger, context.deadline, attempt, began)
        if attempt > 1:
            await notes.write("begun")
        told.begun(attempt)
        try:
            ended = await self._run_handler(handler, delivery, context, common)
            if isinstance(ended, LetGo):
                return ended
            if isinstance(ended, Again):
                await notes.write("again", ended.error)
            elif isinstance(ended, Later):
                await notes.write("parked")
            # Whoever reads the outcome can count on all that was emitted before it.
            await context.finish(ended.kind if isinstance(ended, Outcome) else "again")
            if isinstance(ended, Outcome):
                await context.withdraw_questions()
            return ended
        except (asyncio.CancelledError, Exception):
            # Handed back in the middle.
            await notes.write("handed_back")
            raise
        finally:
            arrival.readers = context._readers
            context.close()

    def _unserved(self, delivery: Delivery, common: dict[str, Any]) -> Outcome | HandOn:
        """What becomes of a task on a topic that this version does not serve; a canary's came from who does."""
        if self._split.is_canary:
            reason = f"the canary of {self.agent} does not serve it"
            return Rejected(reason=reason, details={"field": "topic"}, **common)
        return hand_back(self._ports, self._caller.registry, self.agent, delivery, common)

    def _refusal(self, message: AgentMessage, ledger: Ledger, common: dict[str, Any]) -> Outcome | HandOn | None:
        if (route := Route.of(message)) and (reason := route.misfit(self.agent, self._me, self._capabilities)):
            return hand_on(self._caller.registry, self.agent, route, reason, common)
        if exhausted := ledger.left.exhausted:
            details = {"field": exhausted}
            return Rejected(reason=f"the budget of {exhausted} is used up", details=details, **common)
        if unbid := self.offers.refusal(message, common["topic"]):
            return Rejected(reason=unbid, details={"field": "metadata.bid"}, **common)
        return None

    async def _run_handler(
        self, handler: Handler, delivery: Delivery, context: TurnContext, common: dict[str, Any]
    ) -> Outcome | Again | Later | LetGo:
        message = context.message
        turn = asyncio.current_task(self._caller.loop)
        assert turn is not None
        #: Why we stopped it ourselves.
        stopped: list[str] = []

        def stop(why: str) -> None:
            stopped.append(why)
            context.stop()
            turn.cancel()

        started = self._caller.loop.time()
        limit_s = context.deadline.earliest(handler.run_timeout_s)
        context.answer_by = Deadline.after(IN_TIME * limit_s, self._ports.clock)
        # A plain timer: `asyncio.timeout` costs three times as much, for each task.
        late = self._caller.loop.call_later(limit_s, stop, "late")
        marking = mark_when_late(self._ports, delivery, message) if limit_s > ALONE_S else None
        ids, cancel = cancelled_with(message), partial(stop, "cancelled")
        self._cancelled.watch(ids, cancel)
        answer: Any = _NOTHING
        failure: BaseException | None = None
        try:
            if (refused := await open_task(self._ports, context, common)) is not None:
                return refused
            if circle := circle_in(message.path, context.topic, context.message.payload.content):
                return Rejected(reason=circle, details={"field": "path"}, **common)
            self.offers.check_input(context.message)
            answer = await run_to_the_end(handler.run(context.message.payload.content, context), context, turn)
        except asyncio.CancelledError:
            if not stopped:
                if turn.cancelling():
                    raise  # drained: somebody else runs it
                failure = RuntimeError("what the handler waited for was cancelled")
        except GeneratorExit:
            raise  # our own end, not the handler's
        except BaseException as error:
            # A handler that calls sys.exit() would take the replica along; of another one nobody would hear.
            failure = error
        finally:
            late.cancel()
            if marking is not None:
                marking.cancel()
            self._cancelled.unwatch(ids, cancel)
        common |= {"latency_ms": (self._caller.loop.time() - started) * 1000, "spent": context.ledger.spent}
        for _ in stopped:
            turn.uncancel()
        if "cancelled" in stopped:
            await context.cancel_children()
            return Cancelled(reason="cancelled while it ran", **common)
        if stopped and answer is _NOTHING:
            await context.cancel_children()
            return TimedOut(reason=f"ran longer than its {round(limit_s, 3):g} s", **common)
        if failure is not None:
            return await self._failed(failure, handler, delivery, context, common)
        if not isinstance(answer, Answer):
            answer = Answer(answer)
        return Result(data=answer.data, confidence=answer.confidence, reasoning=answer.reasoning, **common)

    async def _failed(
        self,
        failure: BaseException,
        handler: Handler,
        delivery: Delivery,
        context: TurnContext,
        common: dict[str, Any],
    ) -> Outcome | Again | Later | LetGo:
        if isinstance(failure, Park):
            return Later(failure)
        if isinstance(failure, InvalidInputError):
            return await self._invalid(delivery, context, failure, common)
        if isinstance(failure, SupersededError):
            context.log.info("turn.superseded", reason=str(failure))
            return LetGo()
        return judge(failure, handler.retries, common, context)

    def _context(
        self, message: AgentMessage, common: dict[str, Any], lite_key: str, ledger: Ledger
    ) -> TurnContext:
        return TurnContext(
            message,
            agent=self.agent,
            topic=common["topic"],
            attempt=common["attempt"],
            deadline=deadline_of(message, ledger.grant, self._ports.clock),
            ledger=ledger,
            caller=self._caller,
            lite_key=lite_key,
            log=self._log,
        )

    async def _invalid(
        self, delivery: Delivery, context: TurnContext, error: InvalidInputError, common: dict[str, Any]
    ) -> Outcome:
        """Past the door of a caller's own check: its sender is told, and it is kept for a person to look at."""
        outcome = Rejected(reason=str(error), details={"field": error.field}, **common)
        await self._bury(delivery, outcome, sealed=context.is_sealed)
        return outcome

    async def _bury(self, delivery: Delivery, outcome: Outcome, *, sealed: bool) -> None:
        if not sealed:
            return await self._letters.bury(self.agent, delivery, outcome, source=self._ports.identity)
        await bury_sealed(self._ports, self._letters, self.agent, delivery, outcome)

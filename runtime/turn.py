"""One run of one handler on one message, to exactly one outcome."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from pydantic_core import PydanticSerializationError

from squadron.runtime.budget import Budget, Deadline
from squadron.runtime.caller import Caller
from squadron.runtime.context import Context
from squadron.runtime.envelope import AgentMessage
from squadron.runtime.errors import (
    InvalidInputError,
    InvalidMessageError,
    InvalidSubjectError,
    MessageTooLargeError,
    OutcomeError,
    Retry,
    Terminal,
)
from squadron.runtime.letters import DeadLetters
from squadron.runtime.outcome import (
    Answer,
    DeadLettered,
    Expired,
    Failed,
    Outcome,
    Rejected,
    Result,
    TimedOut,
    Undeliverable,
)
from squadron.runtime.ports import Delivery, Journal
from squadron.runtime.subjects import ROOT, LiteSubject, TaskSubject, matches, token_of
from squadron.runtime.topics import SemanticTopic

#: Life of an outcome and of stream chunks on their lite topic, in seconds: long enough for a caller that
#: was restarted to come back for them.
LITE_TTL_S = 3600.0
#: Pause before the second attempt and the longest pause, in seconds; doubled each time, with jitter.
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0

#: How much of an error's text goes into an outcome.
SUMMARY_CHARACTERS = 4_000

#: A subject that can be published to: no wildcards, no empty tokens, no white space, and not the server's own
#: (`$JS.API…`): what a sender may not do there, our replica must not do for it.
_PUBLISHABLE = re.compile(r"(?!\$)[^\s.*>]+(\.[^\s.*>]+)*")


class Handler(Protocol):
    """One served topic: how it describes itself, and how it is run."""

    @property
    def topic(self) -> SemanticTopic: ...

    @property
    def run_timeout_s(self) -> float: ...

    @property
    def max_attempts(self) -> int: ...

    async def run(self, content: Any, context: Context) -> Any:
        """Run the handler on validated input; returns JSON-ready data, or an `Answer`.

        Raises:
            InvalidInputError: the content does not fit.
        """
        ...


class OutputError(Exception):
    """A handler returned what its own annotation does not allow."""


@dataclass(frozen=True, slots=True)
class _Again:
    """Not an outcome: the task is handed back for another attempt."""

    after_s: float


class Turns:
    """Runs the deliveries of one mailbox through the handlers that serve it."""

    def __init__(
        self,
        agent: str,
        handlers: Sequence[Handler],
        caller: Caller,
        dead: Journal,
    ) -> None:
        self.agent, self._caller = agent, caller
        self._letters = DeadLetters(dead, caller.queue, caller.subjects, caller.clock)
        self._exact = {handler.topic.name: handler for handler in handlers}
        self._families = [handler for handler in handlers if handler.topic.is_pattern]
        self._log = structlog.get_logger("squadron.turn").bind(agent=agent, replica=caller.identity.id)

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
            await self._bury_poison(delivery, error)
            return None
        lite_key, announce = self._reply_address(message, topic)
        if delivery.lease.attempt > 1 and (stored := await self._stored(message, lite_key)):
            # The replica before us died after it had stored the outcome, maybe before it had announced it.
            await self._announce(announce, stored)
            await delivery.lease.settle()
            return None
        ended = await self._attempt(delivery, message, topic, lite_key)
        if isinstance(ended, _Again):
            await delivery.lease.release(ended.after_s)
            return None
        if isinstance(ended, DeadLettered):
            await self._letters.bury(self.agent, delivery, ended, source=self._caller.identity)
        ended = await self._report(message, ended, lite_key, announce)
        await delivery.lease.settle()
        return ended

    def _reply_address(self, message: AgentMessage, topic: str) -> tuple[str, str]:
        """The lite topic the outcome is stored on, and the foreign subject it is announced on, if any."""
        subjects = self._caller.subjects
        if message.reply_to is not None:
            with contextlib.suppress(InvalidSubjectError):
                if LiteSubject.parse(message.reply_to).environment == subjects.environment:
                    return message.reply_to, ""
        announce = message.reply_to or subjects.result(topic)
        return subjects.lite("outcome", token_of(message.id)), announce

    async def _stored(self, message: AgentMessage, lite_key: str) -> bytes | None:
        """This task's outcome, if it is stored; another task's on the same lite topic does not count."""
        entry = await self._caller.lite.last(lite_key)
        try:
            last = AgentMessage.decode(entry.data) if entry else None
        except InvalidMessageError:
            return None
        ours = last is not None and last.type == "result" and last.context.parent_message_id == message.id
        return entry.data if entry and ours else None

    async def _announce(self, subject: str, data: bytes) -> None:
        """Tell a foreign subject; ours are written by those they belong to, not by whoever names them."""
        subjects = self._caller.subjects
        foreign = not subject.startswith((f"{ROOT}.", "$")) or subject.startswith(subjects.result(""))
        if foreign and _PUBLISHABLE.fullmatch(subject):
            await self._caller.bus.publish(subject, data)

    async def _attempt(
        self, delivery: Delivery, message: AgentMessage, topic: str, lite_key: str
    ) -> Outcome | _Again:
        attempt = delivery.lease.attempt
        common: dict[str, Any] = {
            "task_id": message.id,
            "topic": topic,
            "source": self._caller.identity.id,
            "attempt": attempt,
        }
        handler = self._handler(topic)
        if handler is None:
            return Undeliverable(reason=f"{self.agent} does not serve {topic!r} any more", **common)
        refusal = self._refusal(message, common)
        if refusal is not None:
            return refusal
        if attempt > handler.max_attempts:
            reason = f"its replica died or fell silent in each of {attempt - 1} attempts"
            return DeadLettered(reason=reason, details={"attempts": attempt - 1}, **common)
        return await self._run_handler(handler, message, common, lite_key)

    def _refusal(self, message: AgentMessage, common: dict[str, Any]) -> Outcome | None:
        clock, routing = self._caller.clock, message.routing
        if routing.timeout is not None and clock.time() > message.timestamp + routing.timeout / 1000:
            reason = f"waited longer than its {routing.timeout / 1000:g} s in the mailbox"
            return Expired(reason=reason, **common)
        names = (self.agent, self._caller.identity.id)
        if routing.exclusions and any(name in routing.exclusions for name in names):
            return Undeliverable(reason=f"the only agent that serves it, {self.agent}, is excluded", **common)
        if exhausted := _budget(message).exhausted:
            details = {"field": exhausted}
            return Rejected(reason=f"the budget of {exhausted} is used up", details=details, **common)
        return None

    async def _run_handler(
        self, handler: Handler, message: AgentMessage, common: dict[str, Any], lite_key: str
    ) -> Outcome | _Again:
        context = self._context(message, common, lite_key)
        started = time.perf_counter()
        limit = asyncio.timeout(context.deadline.earliest(handler.run_timeout_s))
        try:
            async with limit:
                answer = await handler.run(message.payload.content, context)
        except (Exception, SystemExit) as error:
            # A handler that calls sys.exit() would take the replica along.
            common["latency_ms"] = (time.perf_counter() - started) * 1000
            common["tokens"] = context.tokens_spent
            if isinstance(error, TimeoutError) and limit.expired():
                reason = f"ran longer than its {common['latency_ms'] / 1000:.1f} s"
                return TimedOut(reason=reason, **common)
            return self._judge(error, handler, common, context)
        common["latency_ms"] = (time.perf_counter() - started) * 1000
        common["tokens"] = context.tokens_spent
        if not isinstance(answer, Answer):
            answer = Answer(answer)
        return Result(data=answer.data, confidence=answer.confidence, reasoning=answer.reasoning, **common)

    def _context(self, message: AgentMessage, common: dict[str, Any], lite_key: str) -> Context:
        limits = message.payload.constraints
        clock = self._caller.clock
        # Without a deadline of the caller's only the handler's own limit counts.
        at_ms = limits.deadline if limits is not None and limits.deadline is not None else 2**53
        return Context(
            message,
            agent=self.agent,
            topic=common["topic"],
            attempt=common["attempt"],
            deadline=Deadline(at_ms, clock),
            budget=_budget(message),
            caller=self._caller,
            lite_key=lite_key,
            lite_ttl_s=LITE_TTL_S,
            log=self._log,
        )

    def _judge(
        self, error: Exception | SystemExit, handler: Handler, common: dict[str, Any], context: Context
    ) -> Outcome | _Again:
        if isinstance(error, InvalidInputError):
            return Rejected(reason=str(error), details={"field": error.field}, **common)
        summary = f"{type(error).__name__}: {error}"[:SUMMARY_CHARACTERS]
        final = isinstance(error, OutcomeError) and error.outcome is not None and not error.outcome.retryable
        if final or isinstance(error, Terminal | OutputError):
            return Failed(reason=str(error), details={"type": type(error).__name__}, **common)
        if common["attempt"] < handler.max_attempts and not context.deadline.passed:
            asked = error.after_s if isinstance(error, Retry) else None
            after_s = asked if asked is not None else backoff_s(common["attempt"])
            context.log.info("turn.retry", error=summary, after_s=round(after_s, 3))
            return _Again(after_s)
        trace = "".join(traceback.format_exception(error))
        context.log.warning("turn.gave_up", error=summary, traceback=trace)
        details = {
            "attempts": common["attempt"],
            "last_error": summary,
            "traceback_digest": hashlib.sha256(trace.encode()).hexdigest()[:16],
        }
        reason = f"failed in each of {common['attempt']} attempts, the last time with {summary}"
        return DeadLettered(reason=reason, details=details, **common)

    async def _report(self, message: AgentMessage, outcome: Outcome, lite_key: str, announce: str) -> Outcome:
        """Store the outcome and return it; one that can't travel becomes a failure that says so."""
        try:
            await self._store(message, outcome, lite_key, announce)
        except (MessageTooLargeError, PydanticSerializationError) as error:
            reason = f"its {outcome.kind.replace('_', ' ')} can't be sent: {error}"
            details = {"type": type(error).__name__}
            outcome = Failed(
                task_id=outcome.task_id,
                topic=outcome.topic,
                source=outcome.source,
                attempt=outcome.attempt,
                latency_ms=outcome.latency_ms,
                tokens=outcome.tokens,
                reason=reason,
                details=details,
            )
            await self._store(message, outcome, lite_key, announce)
        return outcome

    async def _store(self, message: AgentMessage, outcome: Outcome, lite_key: str, announce: str) -> None:
        result = AgentMessage.new(
            "result",
            self._caller.identity,
            outcome.to_content(),
            conversation_id=message.context.conversation_id,
            parent=message.id,
            correlation_id=message.correlation_id or message.id,
        )
        data = result.encode()
        msg_id = f"{token_of(message.id)}.outcome"
        await self._caller.lite.append(lite_key, data, ttl_s=LITE_TTL_S, msg_id=msg_id)
        await self._announce(announce, data)

    async def _bury_poison(self, delivery: Delivery, error: Exception) -> None:
        """Bytes nobody can read get no second try; they are kept for a person to look at."""
        self._log.warning("turn.poison", subject=delivery.subject, error=str(error))
        await self._letters.bury_poison(self.agent, delivery, error, source=self._caller.identity)
        await delivery.lease.settle()


def _budget(message: AgentMessage) -> Budget:
    limits = message.payload.constraints
    return Budget() if limits is None else Budget(tokens=limits.tokens, hops=limits.hops)


def backoff_s(attempt: int) -> float:
    """Pause after the nth failed attempt: doubling, with half of it jitter."""
    full: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1))
    return full * random.uniform(0.5, 1.0)

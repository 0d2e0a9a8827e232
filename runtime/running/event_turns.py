"""Durable events: stored, and delivered at least once to each group of subscribers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from squadron.runtime.calling import THREAD_GRACE_S, Threads, call
from squadron.runtime.errors import InvalidMessageError, UntrustedError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.retries import Retries, failure_details, summary_of, traceback_of
from squadron.runtime.running.permission import may_publish
from squadron.runtime.running.told import Told
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.guard import May, anybody
from squadron.runtime.trust.may_say import speaks_as
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import DeadLettered
from squadron.runtime.wire.subjects import token_of

#: How often an event is tried before it is buried: nobody waits for it, so it may take longer than a task.
EVENT_MAX_ATTEMPTS = 5


async def bury_event(
    letters: DeadLetters, source: AgentIdentity, group: str, delivery: Delivery, outcome: DeadLettered
) -> None:
    """Store a dead letter for an event that this group gives up, and settle the event for it."""
    owner, _, method = group.partition(".")
    # Each group buries for itself: another one may well have handled the same event.
    token = token_of(f"{outcome.task_id}-{method}" if method else outcome.task_id)
    await letters.bury(owner, delivery, outcome, source=source, token=token, subscription=group)
    await delivery.lease.settle()


async def read_event(letters: DeadLetters, ports: Ports, group: str, delivery: Delivery) -> AgentMessage | None:
    """The event of a delivery; bytes that nobody can read are buried for a person to look at.

    What is not signed by who says it is settled, where that is required.
    """
    message, unreadable = None, ""
    try:
        message = AgentMessage.decode(delivery.data)
    except InvalidMessageError as error:
        unreadable = str(error)
    if ports.guard is not None:
        said = delivery.subject, delivery.data, delivery.headers
        may: May = anybody
        if message is not None:
            speaks = speaks_as(message.source.id)
            may = may_publish(ports, _topic_of(delivery), message.metadata, speaks)
        try:
            how: dict[str, Any] = {"at": delivery.stored_at, "seq": delivery.seq, "topic": _topic_of(delivery)}
            await ports.guard.admit("event", *said, may=may, **how)
        except UntrustedError:
            await delivery.lease.settle()
            return None
    if message is None:
        digest, source = hashlib.sha256(delivery.data).hexdigest()[:32], ports.identity
        outcome = DeadLettered(reason=unreadable, task_id=digest, source=source.id, details={"attempts": 0})
        await bury_event(letters, source, group, delivery, outcome)
    return message


class EventTurns:
    """Runs one durable event handler of an agent on the events of its group."""

    def __init__(
        self,
        group: str,
        handle: Callable[[AgentMessage], Any],
        ports: Ports,
        *,
        pattern: str = "",
        retries: Retries,
        run_timeout_s: float,
    ) -> None:
        self.group, self._handle, self._ports, self._pattern = group, handle, ports, pattern
        self._letters = DeadLetters(ports)
        self._retries, self._run_timeout_s = retries, run_timeout_s
        self._log = get_logger("squadron.event").bind(group=group, replica=ports.identity.id)

    async def run(self, delivery: Delivery) -> None:
        """Take one delivery to its end: handled and settled, handed back for another attempt, or buried."""
        message = await read_event(self._letters, self._ports, self.group, delivery)
        if message is None:
            return
        topic = _topic_of(delivery)
        told = Told(self._ports, "durable", self.group, message, topic, self._pattern, delivery)
        attempt = await delivery.lease.begin()
        if attempt > self._retries.max_attempts:
            reason = f"its replica died or fell silent in each of {attempt - 1} attempts"
            outcome = await self._give_up(delivery, message, attempt, reason, {"attempts": attempt - 1})
            told.ended("outcome", outcome=outcome)
            return
        told.begun(attempt)
        threads, turn = Threads(), asyncio.current_task()
        try:
            await self._run_handler(message, threads)
        except GeneratorExit:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                if turn is not None and turn.cancelling():
                    await threads.ended(THREAD_GRACE_S)
                    told.ended("handed_back")
                    raise  # drained: somebody else handles it
                error = RuntimeError("what the handler waited for was cancelled")
            # A handler that calls sys.exit() would take the replica along; of another one nobody would hear.
            # A thread can't be stopped, and two attempts may not act at once: it has as much time again.
            over = await threads.ended(self._run_timeout_s)
            await self._judge(error, delivery, message, attempt, told, over=over)
        else:
            await delivery.lease.settle()
            told.ended("handled")

    async def _run_handler(self, message: AgentMessage, threads: Threads) -> None:
        limit = asyncio.timeout(self._run_timeout_s)
        try:
            async with limit:
                await call(threads, self._handle, message)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"ran longer than its {self._run_timeout_s:g} s") from None
            raise

    async def _judge(
        self,
        error: BaseException,
        delivery: Delivery,
        message: AgentMessage,
        attempt: int,
        told: Told,
        *,
        over: bool,
    ) -> None:
        summary = summary_of(error)
        helps = over and self._retries.covers(error)
        if helps and attempt < self._retries.max_attempts:
            after_s = self._retries.after_s(attempt, error)
            self._log.info("event.retry", message=message.id, error=summary, after_s=round(after_s, 3))
            await delivery.lease.release(after_s)
            told.ended("again", after_s=after_s, error=summary)
            return
        self._log.warning("event.gave_up", message=message.id, error=summary, traceback=traceback_of(error))
        details = failure_details(error, attempt)
        reason = f"failed in each of {attempt} attempts, the last time with {summary}"
        if not helps:
            reason = f"failed with {summary}, against which no other attempt helps"
        if not over:
            reason = f"failed with {summary}; there can be no other attempt, as its thread still acts"
        outcome = await self._give_up(delivery, message, attempt, reason, details)
        told.ended("outcome", outcome=outcome, error=summary)

    async def _give_up(
        self, delivery: Delivery, message: AgentMessage, attempt: int, reason: str, details: dict[str, Any]
    ) -> DeadLettered:
        outcome = DeadLettered(
            task_id=token_of(message.id),
            topic=_topic_of(delivery),
            source=self._ports.identity.id,
            attempt=attempt,
            reason=reason,
            details=details,
        )
        await bury_event(self._letters, self._ports.identity, self.group, delivery, outcome)
        return outcome


def _topic_of(delivery: Delivery) -> str:
    return ".".join(delivery.subject.split(".")[3:5])

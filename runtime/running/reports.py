"""Where a task's outcome goes, and how it is stored there once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pydantic_core import PydanticSerializationError, from_json

from squadron.runtime.asking.believing import Awaited, believes, check_answer, is_refuted, least_of
from squadron.runtime.errors import ClaimLostError, InvalidMessageError, MessageTooLargeError
from squadron.runtime.ports.journal import Counts, Entry, Headers
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.registry.registry import Registry
from squadron.runtime.running.once import keep_s
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.sealed import input_digest, is_sealed, salt_of
from squadron.runtime.trust.sealing import SealKey
from squadron.runtime.wire import outcome as outcomes
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.id_note import IdNote
from squadron.runtime.wire.outcome import DeadLettered, Failed, Outcome, outcome_msg_id
from squadron.runtime.wire.replies import principal_of, unfit_reply
from squadron.runtime.wire.subjects import is_foreign, token_of


class Reports:
    """One replica's side of answering."""

    def __init__(self, ports: Ports, registry: Registry) -> None:
        self._ports, self._registry = ports, registry

    async def asked(self, delivery: Delivery, message: AgentMessage, topic: str) -> IdNote | None:
        """What a task's id stands for, if this is the task; asked of one that is answered under its id.

        Whoever knows the id could have it answered there otherwise, before its owner asks.

        Raises:
            BusUnavailableError: nobody knows.
        """
        note = await self._ports.lite.last(self._ports.subjects.lite(token_of(message.id), "asked"))
        asked = None if note is None else IdNote.read(note.data)
        if asked is None or (asked.topic, asked.reply_to) != (topic, message.reply_to):
            return None
        try:
            whole = await self._ports.claims.resolve(message, self._ports.subjects.task(topic))
        except (InvalidMessageError, ClaimLostError, MessageTooLargeError):
            # Nobody can say; its asker is told why, and the queue took one alone under the id of the note.
            theirs = principal_of(asked.source) == principal_of(message.source.id)
            return asked if theirs and delivery.headers.get("Nats-Msg-Id") == asked.msg_id else None
        salt = salt_of(whole) if is_sealed(message) else ""
        return asked if asked.input == input_digest(whole.payload.content, salt) else None

    def address(self, message: AgentMessage, topic: str, *, elsewhere: bool = False) -> tuple[str, str]:
        """The lite topic the outcome is stored on, and the foreign subject it is announced on, if any.

        Args:
            elsewhere: not to the message's `replyTo`.
        """
        subjects = self._ports.subjects
        to = None if elsewhere or unfit_reply(message, subjects) else message.reply_to
        if to is not None and subjects.has_lite(to):
            return to, ""
        announce = to or subjects.result(topic)
        return subjects.lite("outcome", token_of(message.id)), announce

    async def stored(self, message: AgentMessage, task: Awaited, lite_key: str) -> bytes | None:
        """This task's outcome, if it is stored; another task's on the same lite topic does not count."""
        newest = await self._ports.lite.last(lite_key)
        if newest is None:
            return None
        if await self._is_outcome(message, task, newest):
            return newest.data
        # Behind it may be chunks of an attempt that lost its lease, or what others share this address for.
        found = None
        async for entry in self._ports.lite.read(lite_key):
            if await self._is_outcome(message, task, entry):
                found = entry.data
        return found

    async def _is_outcome(self, message: AgentMessage, task: Awaited, entry: Entry) -> bool:
        """Whether an entry is this task's outcome: by its agent, or by its sender, who gave it up.

        What its sender would not take for one must not keep it from being run; see `Handle`.
        """
        stored = _outcome_of(message, entry.data)
        if stored is None or is_refuted(self._registry, task.topic, stored.source.id, stored.payload.content):
            return False
        guard = self._ports.guard
        if guard is None:
            return True
        may = partial(check_answer, task, self._registry, raw=from_json(entry.data), me=guard.me)
        least = least_of(self._registry, task.topic)
        return await believes(guard, "outcome", entry, may, topic=task.topic, least=least)

    async def settle_if_stored(
        self, delivery: Delivery, message: AgentMessage, task: Awaited, lite_key: str, announce: str
    ) -> bool:
        """Whether it has ended before: its caller gave it up, or a replica died before it had settled it."""
        stored = await self.stored(message, task, lite_key)
        if stored is None:
            return False
        # Maybe it was not announced.
        await self.announce(announce, stored)
        await delivery.lease.settle()
        return True

    async def announce(self, subject: str, data: bytes, headers: Headers | None = None) -> None:
        """Tell a foreign subject; ours are written by those they belong to, not by whoever names them."""
        subjects = self._ports.subjects
        topic = subject.removeprefix(subjects.result(""))
        if is_foreign(topic) and (topic is not subject or subjects.is_outside(subject)):
            await self._ports.bus.publish(subject, data, headers=headers)

    async def store(
        self,
        message: AgentMessage,
        outcome: Outcome,
        lite_key: str,
        announce: str,
        *,
        task: Awaited | None = None,
        msg_id: str = "",
        headers: Headers | None = None,
        answers: Mapping[str, Any] | None = None,
        readers: Sequence[SealKey] = (),
    ) -> Outcome:
        """Store the outcome and return it; one that can't travel becomes a failure that says so.

        Args:
            task: what an entry of the same message id has to be an outcome of, or it does not count.
            msg_id: of two that are stored under it the second is dropped; by default, that of the task's outcome.
            headers: that go along with it.
            answers: which task it answers, see `proof.answers`.
            readers: for whom it is sealed; for nobody, by default.
        """
        counts = None if task is None else partial(self._is_outcome, message, task)
        msg_id = msg_id or outcome_msg_id(message.id, lite_key, message.redriven)
        where = lite_key, announce, msg_id, counts
        try:
            await self._store(message, outcome, where, headers, answers, readers)
        except (MessageTooLargeError, PydanticSerializationError) as error:
            reason = f"its {outcome.kind.replace('_', ' ')} can't be sent: {error}"
            outcome = Failed(
                task_id=outcome.task_id,
                topic=outcome.topic,
                source=outcome.source,
                attempt=outcome.attempt,
                latency_ms=outcome.latency_ms,
                spent=outcome.spent,
                reason=reason,
                details={"type": type(error).__name__},
            )
            await self._store(message, outcome, where, headers, answers, readers)
        return outcome

    async def _store(
        self,
        message: AgentMessage,
        outcome: Outcome,
        where: tuple[str, str, str, Counts | None],
        headers: Headers | None,
        answers: Mapping[str, Any] | None,
        readers: Sequence[SealKey],
    ) -> None:
        lite_key, announce, msg_id, counts = where
        metadata: dict[str, Any] = {"redriven": message.redriven} if message.redriven else {}
        if answers:
            metadata["answers"] = answers
        ttl_s = keep_s(self._ports, message)
        data = await self._ports.pack_for(
            readers,
            message.reply_to or lite_key,
            "result",
            {"content": outcome.to_content()},
            keep_s=ttl_s,
            conversation_id=message.context.conversation_id,
            parent=message.id,
            correlation_id=message.correlation_id or message.id,
            metadata=metadata or None,
        )
        await self._ports.lite.append(lite_key, data, ttl_s=ttl_s, msg_id=msg_id, headers=headers, counts=counts)
        if announce:
            await self.announce(announce, data, headers)


def _outcome_of(message: AgentMessage, data: bytes) -> AgentMessage | None:
    """The result that ends this task, if that is one."""
    try:
        stored = AgentMessage.decode(data)
        ended = outcomes.from_content(stored.payload.content)
    except (InvalidMessageError, ValueError, TypeError, LookupError, AttributeError):
        return None
    if (stored.metadata or {}).get("refused"):
        # That is told of a message, and does not end the task.
        return None
    if ended.ok and is_sealed(message) != is_sealed(stored):
        return None
    if isinstance(ended, DeadLettered) and ended.details.get("attempts") == 0:
        # Nobody could read the task then; it was put back for who can.
        return None
    ours = stored.type == "result" and stored.context.parent_message_id == message.id
    # Of a dead letter that was put back, the outcome of its earlier life does not count.
    return stored if ours and stored.redriven == message.redriven else None

"""Where a task's outcome goes, and how it is stored there once."""

from __future__ import annotations

from pydantic_core import PydanticSerializationError

from squadron.runtime.errors import InvalidMessageError, MessageTooLargeError
from squadron.runtime.ports.journal import Headers
from squadron.runtime.running.once import keep_s
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Failed, Outcome, outcome_msg_id
from squadron.runtime.wire.subjects import is_foreign, token_of


class Reports:
    """One replica's side of answering."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def address(self, message: AgentMessage, topic: str) -> tuple[str, str]:
        """The lite topic the outcome is stored on, and the foreign subject it is announced on, if any."""
        subjects = self._ports.subjects
        if message.reply_to is not None and subjects.has_lite(message.reply_to):
            return message.reply_to, ""
        announce = message.reply_to or subjects.result(topic)
        return subjects.lite("outcome", token_of(message.id)), announce

    async def stored(self, message: AgentMessage, lite_key: str) -> bytes | None:
        """This task's outcome, if it is stored; another task's on the same lite topic does not count."""
        newest = await self._ports.lite.last(lite_key)
        if newest is None:
            return None
        if _is_outcome_of(message, newest.data):
            return newest.data
        # Behind it may be chunks of an attempt that lost its lease, or what others share this address for.
        found = None
        async for entry in self._ports.lite.read(lite_key):
            if _is_outcome_of(message, entry.data):
                found = entry.data
        return found

    async def announce(self, subject: str, data: bytes, headers: Headers | None = None) -> None:
        """Tell a foreign subject; ours are written by those they belong to, not by whoever names them."""
        if is_foreign(subject.removeprefix(self._ports.subjects.result(""))):
            await self._ports.bus.publish(subject, data, headers=headers)

    async def store(
        self,
        message: AgentMessage,
        outcome: Outcome,
        lite_key: str,
        announce: str,
        *,
        msg_id: str = "",
        headers: Headers | None = None,
    ) -> Outcome:
        """Store the outcome and return it; one that can't travel becomes a failure that says so.

        Args:
            msg_id: of two that are stored under it the second is dropped; by default, that of the task's outcome.
            headers: that go along with it.
        """
        msg_id = msg_id or outcome_msg_id(message.id, lite_key, message.redriven)
        try:
            await self._store(message, outcome, lite_key, announce, msg_id, headers)
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
            await self._store(message, outcome, lite_key, announce, msg_id, headers)
        return outcome

    async def _store(
        self,
        message: AgentMessage,
        outcome: Outcome,
        lite_key: str,
        announce: str,
        msg_id: str,
        headers: Headers | None,
    ) -> None:
        result = self._ports.pack(
            "result",
            {"content": outcome.to_content()},
            conversation_id=message.context.conversation_id,
            parent=message.id,
            correlation_id=message.correlation_id or message.id,
            metadata={"redriven": message.redriven} if message.redriven else None,
        )
        ttl_s = keep_s(self._ports, message)
        data = await self._ports.claims.seal(result, keep_s=ttl_s)
        await self._ports.lite.append(lite_key, data, ttl_s=ttl_s, msg_id=msg_id, headers=headers)
        if announce:
            await self.announce(announce, data, headers)


def _is_outcome_of(message: AgentMessage, data: bytes) -> bool:
    try:
        stored = AgentMessage.decode(data)
    except InvalidMessageError:
        return False
    ours = stored.type == "result" and stored.context.parent_message_id == message.id
    # Of a dead letter that was put back, the outcome of its earlier life does not count.
    return ours and stored.redriven == message.redriven

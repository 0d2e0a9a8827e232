"""What goes out: tasks, events and durable events, each told to the observers of the process."""

from __future__ import annotations

from typing import Any, Literal, Unpack

from squadron.runtime.asking.door import forbidden_here
from squadron.runtime.store.port_set import Ports
from squadron.runtime.telemetry.storing import told_when_stored
from squadron.runtime.wire.behalf import BEHALF
from squadron.runtime.wire.envelope import AgentMessage, Head
from squadron.runtime.wire.subjects import check_topic, token_of


class Sender:
    """One process's way onto the bus."""

    def __init__(self, ports: Ports) -> None:
        self._ports, self._observers = ports, ports.observers

    def put(
        self,
        kind: Literal["task", "durable", "event"],
        topic: str,
        data: bytes,
        *,
        id: str,
        conversation_id: str = "",
        parent_id: str | None = None,
    ) -> dict[str, str] | None:
        """Tell of a message that is about to go out; returns the headers that go with it."""
        if not self._observers.on:
            return None
        from squadron.runtime.telemetry.happenings import MessagePut

        put = MessagePut(
            kind=kind,
            id=id,
            topic=topic,
            conversation_id=conversation_id or id,
            parent_id=parent_id,
            bytes=len(data),
        )
        self._observers.tell(put)
        return put.headers

    async def publish(
        self, topic: str, content: Any, *, conversation_id: str = "", behalf: tuple[str, ...] = ()
    ) -> None:
        """Send an event to whoever listens now (at most once).

        Args:
            behalf: on whose behalf it is; see `wire.behalf`.

        Raises:
            InvalidSubjectError: `topic` is not `domain.specificity`.
            ForbiddenError: the policy of this process is against it.
        """
        message = self._event(topic, content, behalf, conversation_id=conversation_id)
        subject, data = self._ports.subjects.event(topic), message.encode()
        headers = self.put("event", topic, data, id=message.id, conversation_id=conversation_id)
        await told_when_stored(
            self._observers, message.id, self._ports.bus.publish(subject, data, headers=headers)
        )

    async def publish_durable(
        self,
        topic: str,
        content: Any,
        *,
        event_id: str = "",
        conversation_id: str = "",
        behalf: tuple[str, ...] = (),
    ) -> int:
        """Store an event for every durable subscription (at least once) and return its sequence.

        It is stored when this returns; a server that is away is waited for. Who listens for plain events
        hears it, too.

        Args:
            event_id: stored once within two minutes, whatever the topic; a fresh one by default.
            behalf: on whose behalf it is; see `wire.behalf`.

        Raises:
            InvalidSubjectError: `topic` is not `domain.specificity`.
            ForbiddenError: the policy of this process is against it.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; the same `event_id` again is safe.
        """
        message = self._event(topic, content, behalf, id=event_id, conversation_id=conversation_id)
        data = message.encode()
        headers = self.put("durable", topic, data, id=message.id, conversation_id=conversation_id)
        storing = self._ports.events.append(topic, data, msg_id=token_of(message.id), headers=headers)
        return await told_when_stored(self._observers, message.id, storing)

    def _event(self, topic: str, content: Any, behalf: tuple[str, ...], **head: Unpack[Head]) -> AgentMessage:
        if forbidden := forbidden_here(self._ports, check_topic(topic), behalf):
            raise forbidden
        if behalf:
            head["metadata"] = {BEHALF: list(behalf)}
        head.setdefault("timestamp", self._ports.clock.time())
        return AgentMessage.new("event", self._ports.identity, content, **head)

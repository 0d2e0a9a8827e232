"""What a handler publishes: on lite topics, and as events; of a sealed task nothing for all by accident."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.lite.topic import LiteTopic
from squadron.runtime.running.in_turn import InTurn


class Publishes(InTurn):
    """The part of `Context` that publishes."""

    #: On whose behalf the task is, its verified sender at last; see `wire.behalf`.
    behalf: tuple[str, ...]

    def lite(
        self,
        id: str | None = None,
        owner: str | None = None,
        *,
        ttl_s: float | timedelta | None = None,
        readable: bool = False,
    ) -> LiteTopic:
        """A lite topic to publish on and read from, of this process unless it names another owner.

        What a sealed task publishes there is sealed for who asked and for this agent.

        Args:
            readable: anybody may read what is published there, though the task is sealed.

        See `LiteTopics.topic`.
        """
        readers = self._readers
        if readable or not readers:
            return self._caller.lite_topics.topic(id, owner, ttl_s=ttl_s)
        # The ring is there: it opened the task.
        own = self._caller.ports.claims.seals.known
        readers += () if own is None or own.public in readers else (own.public,)
        return self._caller.lite_topics.topic(id, owner, ttl_s=ttl_s, readers=readers)

    async def publish(
        self, topic: str, content: Any, *, conversation_id: str = "", readable: bool = False
    ) -> None:
        """Send an event to whoever listens now (at most once).

        Args:
            readable: anybody may read it, though the task is sealed.

        Raises:
            InvalidSubjectError: `topic` is not `domain.specificity`.
            InvalidInputError: the task is sealed, and the event is not said to be `readable`.
        """
        self._check_event(topic, readable)
        await self._caller.sender.publish(topic, content, conversation_id=conversation_id, behalf=self.behalf)

    async def publish_durable(
        self,
        topic: str,
        content: Any,
        *,
        event_id: str = "",
        conversation_id: str = "",
        readable: bool = False,
    ) -> int:
        """Store an event for durable subscriptions (at least once) and return its sequence.

        See `Caller.publish_durable`. An attempt that is run again publishes again, unless it gives an `event_id`.

        Args:
            readable: anybody may read it, though the task is sealed.

        Raises:
            InvalidInputError: the task is sealed, and the event is not said to be `readable`.
        """
        self._check_event(topic, readable)
        return await self._caller.sender.publish_durable(
            topic, content, event_id=event_id, conversation_id=conversation_id, behalf=self.behalf
        )

    def _check_event(self, topic: str, readable: bool) -> None:
        self._check_loop()
        if self.is_sealed and not readable:
            # Who hears it is not known: a client may listen, and a group may begin tomorrow.
            raise InvalidInputError(
                f"a sealed task publishes no {topic}: there is nobody to seal an event for, as anybody may listen",
                field="sealed",
                hint="ask who is to know, which is sealed; or, if it tells nothing of the task, say readable=True",
            )

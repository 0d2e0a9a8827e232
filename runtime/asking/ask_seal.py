"""How one task is sealed: for whom, and what its answers need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from squadron.runtime.errors import ConfigError, UnsealedError
from squadron.runtime.store.sealed import MOST_READERS
from squadron.runtime.store.seals import Seals
from squadron.runtime.trust.sealing import SealKey, b64
from squadron.runtime.wire.topics import SemanticTopic


@dataclass(frozen=True, slots=True)
class AskSeal:
    """How a task is sealed.

    Attributes:
        to: the key of the agent that serves its topic.
        answer_to: the key of who asks.
        salt: goes into digests of the input that others see, so that nobody can guess it by them; of an id of the
            caller's own the same in each process.
    """

    to: SealKey
    answer_to: SealKey
    salt: str

    @classmethod
    async def of(cls, seals: Seals, topic: SemanticTopic, task_id: str) -> AskSeal:
        """Find out how to seal a task for the agent that serves a topic.

        Args:
            task_id: an id of the caller's own, if it has one.

        Raises:
            ConfigError: the agent has no key, or this process has none; says what to do.
            BusUnavailableError: who has the keys of this process can't be reached.
        """
        agent = topic.mailbox or "who serves it"
        if not topic.seal_key:
            raise ConfigError(
                f"{topic.name} can't be asked sealed: {agent} has no key in its card",
                hint="deploy it with this release; a method of a Ray actor that is bound to a topic has no key",
            )
        try:
            to = SealKey.parse(topic.seal_key)
        except UnsealedError:
            raise ConfigError(f"the key in the card of {agent} is none", hint="deploy it anew") from None
        ring = await seals.ring()
        return cls(to, ring.public, b64(ring.subkey(f"asked {task_id}") if task_id else os.urandom(16)))

    def to_payload(self, others: Sequence[str]) -> dict[str, Any]:
        """What a task says of its answers; it is sealed with its content.

        Args:
            others: public keys of those who see its chunks as well.
        """
        keys = list(dict.fromkeys((str(self.answer_to), *others)))[:MOST_READERS]
        return {"answerKeys": keys, "salt": self.salt}

"""A sealed task: how it is opened, why it does not open or should have been sealed, and how it is buried."""

from __future__ import annotations

from typing import Any

from squadron.runtime.errors import KeyLostError, UnsealedError
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.context import TurnContext
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.store.own_journal import seal_own
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.sealed import is_sealed, is_sensitive, readers_of
from squadron.runtime.texts import encoded
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import DeadLettered, Outcome, Rejected
from squadron.runtime.wire.subjects import token_of
from squadron.runtime.wire.topics import SemanticTopic


def refuse_readable(topic: SemanticTopic, message: AgentMessage, common: dict[str, Any]) -> Outcome | None:
    """The outcome of a task that everybody can read, though its topic or its sender says that nobody may."""
    if not (topic.sealed or is_sensitive(message)) or is_sealed(message):
        return None
    reason = (
        f"{common['topic']} takes sealed payloads only, and this one can be read by anybody: seal it for the key "
        "in the agent's card; clients of ours do so by themselves"
    )
    return Rejected(reason=reason, details={"field": "payload"}, **common)


async def open_task(ports: Ports, context: TurnContext, common: dict[str, Any]) -> Outcome | None:
    """Have a context hold its whole message, and know for whom answers are sealed; an outcome if it does not open.

    Raises:
        InvalidMessageError, ClaimLostError, MessageTooLargeError, BusUnavailableError: see `Claims.resolve`.
    """
    message = context.message
    try:
        whole = await ports.claims.resolve(message, ports.subjects.task(context.topic))
        if is_sealed(message):
            context._readers = readers_of(whole)
        context.message = whole
    except KeyLostError as error:
        context.log.error("turn.key_lost", kid=error.kid, error=str(error))
        # Who finds the key puts it back.
        details = {"type": "KeyLostError", "attempts": common["attempt"], "kid": error.kid}
        return DeadLettered(reason=str(error), details=details, **common)
    except UnsealedError as error:
        context.log.warning("turn.not_opened", error=str(error))
        return Rejected(reason=f"it was not taken: {error}", details={"field": error.field}, **common)
    return None


async def bury_sealed(
    ports: Ports, letters: DeadLetters, agent: str, delivery: Delivery, outcome: Outcome
) -> None:
    """Keep a sealed task that `agent` gave up: the letter tells what is told to everybody, and its agent the rest.

    Raises:
        BusUnavailableError: not acknowledged in time; burying it again is one letter.
    """
    key = ports.subjects.dead(agent, token_of(outcome.task_id))
    sealed = await seal_own(ports.claims.seals, key, encoded(outcome.to_content()))
    await letters.bury(agent, delivery, outcome.withheld(), source=ports.identity, sealed=sealed)

"""Whether somebody still goes on with a task."""

from __future__ import annotations

from squadron.runtime.errors import InvalidSubjectError, SquadronError
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import DeadLettered, Rejected, from_content
from squadron.runtime.wire.subjects import check_token, token_of


async def is_over(ports: Ports, agent: str, task: str) -> bool:
    """Whether a task of this agent has an outcome, or was given up: its run has nobody who could end it.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    try:
        letter = ports.subjects.dead(check_token(agent, "agent"), task)
    except InvalidSubjectError:
        # Anybody may write there.
        return False
    if await ports.dead.last(letter) is not None:
        return True
    # Whoever asked has a lite topic for the outcome, under a name of its own.
    kept = await ports.lite.latest(ports.subjects.lite_of().removesuffix("*") + token_of(task))
    return any(_ends(task, entry.data) for entry in kept)


def _ends(task: str, data: bytes) -> bool:
    try:
        message = AgentMessage.decode(data)
        outcome = from_content(message.payload.content)
    except SquadronError:
        return False
    # What has a dead letter may have been put back since.
    final = not isinstance(outcome, DeadLettered | Rejected)
    return final and message.type == "result" and message.context.parent_message_id == task

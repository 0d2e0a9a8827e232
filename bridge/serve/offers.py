"""What agents that stand for a server elsewhere offer: a replica finds out, the bridge deploys them with it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.operations import Operation
from squadron.actors.remote.remote_agent import RemoteAgent
from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.control.callers import offering
from squadron.bridge.packing.code import Code, pack, unpack
from squadron.bridge.place import Place
from squadron.runtime.errors import ConfigError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.steady import Steady
from squadron.runtime.wire.deployment import Deployment
from squadron.runtime.wire.limits import Clock

#: Least time between two changes of one agent, in seconds: its replicas take some to start. And the longest, for a
#: server whose list never stays.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 600.0
#: Changes an agent by what it is now, with nobody else writing between.
Alter = Callable[[str, Callable[[Deployment], Deployment | None]], Awaitable[None]]
#: How often a replica looks at what its server tells at most, and when it asks a bridge again that was away, in
#: seconds.
LOOK_PAUSE_S, RETRY_S = 1.0, 10.0

_log = get_logger("squadron.offers")


class TakenOffers:
    """Deploys agents with what their servers can do now; a list that changes all the time is followed less often.

    Each change starts the replicas of an agent anew, so one comes no sooner after another than `FIRST_PAUSE_S`.
    That doubles, up to `LONGEST_PAUSE_S`, as long as the next one comes before twice the pause is over.

    Args:
        alter: that of the bridge.
    """

    def __init__(self, clock: Clock, alter: Alter) -> None:
        self._clock, self._alter = clock, alter
        #: By agent: when something else was last taken, by the clock, and the pause after it.
        self._last: dict[str, tuple[float, float]] = {}

    async def take(self, agent: str, operations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Deploy an agent with the operations that its server has now; it is as it was if they are the same.

        What comes too soon after another change is not taken: the answer's `again_after_s` says when it would be.

        Raises:
            ConfigError: no such agent is deployed, or it stands for no server.
            InvalidAgentError: these are no operations, none at all, or some of another domain.
        """
        answer: dict[str, Any] = {"agent": agent, "changed": False}

        def with_these(deployment: Deployment) -> Deployment | None:
            if (new := _offering(deployment, operations)) is None:
                return None
            # By now: another offer may have been taken while this one waited for its turn.
            now, (at, pause_s) = self._clock.time(), self._last.get(agent, (-math.inf, FIRST_PAUSE_S))
            if now < at + pause_s:
                answer["again_after_s"] = at + pause_s - now
                return None
            answer["changed"] = True
            return new

        await self._alter(agent, with_these)
        if answer["changed"]:
            now, (at, pause_s) = self._clock.time(), self._last.get(agent, (-math.inf, FIRST_PAUSE_S))
            is_restless = now < at + 2 * pause_s
            self._last[agent] = (now, min(2 * pause_s, LONGEST_PAUSE_S) if is_restless else FIRST_PAUSE_S)
            _log.info("bridge.offer_taken", agent=agent, operations=len(operations))
        return answer


def _offering(deployment: Deployment, operations: Sequence[Mapping[str, Any]]) -> Deployment | None:
    """An agent with these operations; None if it has them."""
    code = Code(**deployment.code)
    if not code.made_of:
        raise ConfigError(f"{deployment.agent} stands for no server", hint="what it serves stands in its class")
    kind: Any = unpack(code, b"").__bases__[0]
    wanted: type[RemoteAgent] = kind.remade(code.made_of, operations)
    packed, _ = pack(wanted)
    if packed == code:
        return None
    return deployment.model_copy(update={"card": AgentSpec.of(wanted).card(), "code": packed.to_dict()})


def peers_of(deployment: Deployment) -> tuple[str, ...]:
    """Whom of another protocol an agent asks over NATS, as its rights have it."""
    code = Code(**deployment.code)
    if not code.made_of:
        return ()
    kind: Any = unpack(code, b"")
    return (peer,) if (peer := kind.peer()) else ()


def give_ports(agent: Agent, place: Place) -> None:
    """Let an agent that stands for others on the same NATS reach them."""
    if isinstance(agent, RemoteAgent):
        agent.ports = place.ports


async def offer_changes(agent: Agent, place: Place) -> None:
    """In a replica: tell the bridge each time the server can do something else. Ends at once for other agents."""
    if not isinstance(agent, RemoteAgent):
        return
    ports = place.ports
    control = Control(ports.bus, ports.subjects, ports.guard)
    operations, clock, due = agent.current(), asyncio.get_running_loop().time, math.inf
    async with Steady(agent.changes()) as changes:
        while True:
            try:
                async with asyncio.timeout(None if due == math.inf else max(0.0, due - clock())):
                    operations = tuple(await anext(changes))
            except TimeoutError:
                due = clock()
            except StopAsyncIteration:
                return
            if operations == agent.current():
                due = math.inf
            elif due == math.inf or due <= clock():
                due = clock() + await _offer(control, agent.name, operations)
            # A server may say each moment that its list is another one.
            await asyncio.sleep(LOOK_PAUSE_S)


async def _offer(control: Control, agent: str, operations: Sequence[Operation]) -> float:
    """Tell the bridge; returns in how many seconds it is to be told again, if it has not taken this."""
    try:
        answer = await control.call(offering(agent), operations=[each.to_dict() for each in operations])
    except SquadronError as error:
        # It serves what it did.
        _log.warning("replica.offer_not_taken", agent=agent, error=str(error))
        return RETRY_S if error.retryable else math.inf
    return float(answer.get("again_after_s", math.inf))

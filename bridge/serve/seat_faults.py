"""Why agents of groups could not start in a process that runs: Serve knows of the process alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from squadron.runtime.wire.deployment import AgentState, Deployment

#: How long a fault counts, in seconds, unless it is told again: a seat is tried anew within `SEAT_AGAIN_S` of each
#: failure, which itself may take a while.
FAULT_FOR_S = 30.0


class SeatFaults:
    """The latest fault of each agent in each process, by the version of its code."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._faults: dict[tuple[str, str], tuple[str, str, float]] = {}

    def tell(self, agent: str, version: str, fault: str, process: str) -> None:
        """An agent could not start in a process, or, if that is empty, it did."""
        if fault:
            self._faults[agent, process] = version, fault, self._clock() + FAULT_FOR_S
        else:
            self._faults.pop((agent, process), None)

    def keep(self, deployments: Iterable[Deployment]) -> None:
        """Forget those of other agents, of other code, and of processes that tell no more."""
        wanted = {each.agent: each.code["version"] for each in deployments if each.group}
        for (agent, process), (version, _, until) in list(self._faults.items()):
            if wanted.get(agent) != version or self._clock() >= until:
                del self._faults[agent, process]

    def of(self, deployment: Deployment) -> list[str]:
        """Why it does not run, one for each process where it does not."""
        version = deployment.code["version"]
        return [
            fault
            for (agent, _), (of, fault, until) in self._faults.items()
            if agent == deployment.agent and of == version and self._clock() < until
        ]


def with_faults(state: AgentState, faults: Sequence[str]) -> AgentState:
    """How an agent is doing that does not run in some of its group's processes; where it does, it goes on."""
    running = max(0, state.running - len(faults))
    status = "UNHEALTHY" if running else "DEPLOY_FAILED"
    return state.model_copy(update={"status": status, "message": faults[-1], "running": running})

"""Who starts, heals, scales and stops the replicas of agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from squadron.runtime.wire.deployment import AgentState, Deployment


class Replicas(Protocol):
    """Who starts, heals, scales and stops the replicas of agents."""

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        """Run exactly these agents; what changed only in numbers is changed in place, without restarts.

        Raises:
            DeployError: the cluster refused the whole declaration.
        """
        ...

    async def states(self, wanted: Sequence[Deployment]) -> dict[str, AgentState]:
        """How each agent is doing, by name, and whether it runs by another declaration than is wanted."""
        ...

    async def capacity(self) -> int:
        """How many replicas the cluster's memory holds at most, over all agents."""
        ...

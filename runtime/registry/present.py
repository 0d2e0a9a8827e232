"""Who is present: replicas by agent, as they were heard of last."""

from __future__ import annotations

from squadron.runtime.registry.presence import Presence


class Present:
    """Replicas that count as living. `len` is how many there are, of all agents."""

    def __init__(self) -> None:
        self._replicas: dict[str, dict[str, Presence]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, agent: str) -> bool:
        return agent in self._replicas

    def of(self, agent: str) -> dict[str, Presence]:
        """Those of one agent."""
        return self._replicas.get(agent, {})

    def put(self, agent: str, replica: str, presence: Presence) -> None:
        """Count one in, or take up what it told now."""
        replicas = self._replicas.setdefault(agent, {})
        self._count += replica not in replicas
        replicas[replica] = presence

    def remove(self, agent: str, replica: str) -> bool:
        """Count one out; whether it was counted in."""
        replicas = self.of(agent)
        if replicas.pop(replica, None) is None:
            return False
        self._count -= 1
        if not replicas:
            del self._replicas[agent]
        return True

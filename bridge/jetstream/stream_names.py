"""Names of the streams: text that needs no connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamNames:
    """Names of the streams of one environment.

    No two are the same, of whatever environments and agents: names of both may hold any `-`, and none holds a `=`.
    So what an agent has of its own is told by the `=`, and ends what is before it; of the others the last part,
    which holds no `-`, says what they are.
    """

    environment: str

    @property
    def tasks(self) -> str:
        return f"squadron-{self.environment}-tasks"

    @property
    def lite(self) -> str:
        return f"squadron-{self.environment}-lite"

    @property
    def registry(self) -> str:
        return f"squadron-{self.environment}-registry"

    @property
    def dead(self) -> str:
        return f"squadron-{self.environment}-dead"

    @property
    def runs(self) -> str:
        return f"squadron-{self.environment}-runs"

    def own(self, agent: str) -> str:
        """What an agent keeps for itself, where agents are cut from each other."""
        return f"squadron-{self.environment}=own-{agent}"

    def line(self, agent: str) -> str:
        """What stands in line for an ordered agent, where agents are cut from each other."""
        return f"squadron-{self.environment}=line-{agent}"

    def former(self, name: str) -> str:
        """How a stream of an agent was called before; another environment's may be called so."""
        return name.replace("=", "-")

    @property
    def bucket(self) -> str:
        """The object store of large payloads; its stream is `OBJ_` and this, as NATS wants it (ADR-20)."""
        return f"squadron-{self.environment}-claims"

    @property
    def forget(self) -> str:
        """The subject where the bridge is told which large payload is not needed any more."""
        return f"agents.{self.environment}.forget"

    @property
    def events(self) -> str:
        return f"squadron-{self.environment}-events"

    @property
    def audit(self) -> str:
        """The trail."""
        return f"squadron-{self.environment}-audit"

    @property
    def intake(self) -> str:
        """What the archivist has yet to record."""
        return f"squadron-{self.environment}-intake"

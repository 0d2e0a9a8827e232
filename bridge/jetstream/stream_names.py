"""Names of the streams: text that needs no connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamNames:
    """Names of the streams of one environment."""

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

    @property
    def bucket(self) -> str:
        """The object store of large payloads; its stream is `OBJ_` and this, as NATS wants it (ADR-20)."""
        return f"squadron-{self.environment}-claims"

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

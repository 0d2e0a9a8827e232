"""A sign of life, and how often it is given."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: An agent that was not heard of for so many heartbeats is dead (Synadia Agent Protocol 0.3, liveness).
MISSED_HEARTBEATS = 3
#: All replicas of an environment together give so many signs of life a second at most: beyond that, each gives
#: them more seldom. Each one costs every process that follows the registry some 40 us (`make bench-discovery`).
MOST_BEATS_PER_S = 500.0
#: What is believed of a life at most, in seconds: then it is asked for.
LONGEST_LIFE_S = 3600.0


class Presence(BaseModel):
    """One replica's sign of life. `expires_at` is in seconds since the epoch, 0 says farewell.

    It lives as long as the journal keeps it; `expires_at` counts for one that was stored without a life.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    expires_at: float = Field(allow_inf_nan=False)
    #: When it was told, by the clock of its host, in seconds since the epoch.
    at: float = Field(default=0.0, allow_inf_nan=False)
    #: Digest of the code it runs, and which release of ours runs it.
    version: str = ""
    #: Whether it is of the canary, which takes no task but those that others bring it.
    canary: bool = False
    release: str = ""
    pid: int = 0
    node: str = ""
    #: What this replica offers to tasks that ask for it.
    capabilities: tuple[str, ...] = ()

    @classmethod
    def read(cls, data: bytes) -> Presence | None:
        """What was stored; None if that is something else."""
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            return None

    def life_s(self, otherwise: float) -> float:
        """How long it lasts by its own word, whatever clock its host has; `otherwise` if it doesn't say."""
        return min(self.expires_at - self.at, LONGEST_LIFE_S) if 0 < self.at < self.expires_at else otherwise

    def is_due(self, now: float, beat_s: float) -> bool:
        """Whether it wants to be renewed: in time for what it was written with, though beats may be longer now."""
        return self.at + min(beat_s, self.life_s(math.inf) / MISSED_HEARTBEATS) <= now


def beat_s(heartbeat_s: float, replicas: int) -> float:
    """Seconds between two signs of life where there are so many replicas, and `heartbeat_s` is the least."""
    return max(heartbeat_s, replicas / MOST_BEATS_PER_S)

"""A sign of life."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
    release: str = ""
    pid: int = 0
    node: str = ""
    #: What this replica offers to tasks that ask for it.
    capabilities: tuple[str, ...] = ()

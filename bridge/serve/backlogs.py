"""The bridge's figures, as the autoscaling policies in Serve's controller see them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray

from squadron.bridge.serve.ray_names import NAMESPACE, bridge_name
from squadron.runtime.background import spawn

#: How often the bridge is asked at most, in seconds, for all agents of an environment at once.
ASK_EVERY_S = 0.25
#: How long it may take to answer, in seconds: it waits for other figures than those that are here, five at most.
ANSWERS_WITHIN_S = 10.0
#: Figures that nobody has told again for so long, in seconds, are no longer known.
STAND_S = 20.0


class Backlogs:
    """The bridge's latest figures for one environment, shared by the policies of all its agents."""

    _shared: dict[str, Backlogs] = {}  # noqa: RUF012 - one per environment and controller process

    def __init__(self, environment: str) -> None:
        self._environment = environment
        self._figures: dict[str, dict[str, int | None]] = {}
        self._seen, self._asked_at, self._heard_at = "", 0.0, 0.0
        self._asking: asyncio.Task[None] | None = None
        self._bridge: Any = None

    @classmethod
    def of(cls, environment: str) -> Backlogs:
        """The shared instance for an environment."""
        return cls._shared.setdefault(environment, cls(environment))

    def figures(self, agent: str) -> dict[str, int | None] | None:
        """What was last heard of an agent; asks anew in the background, because a policy must not block."""
        now = time.monotonic()
        if now - self._asked_at >= ASK_EVERY_S and (self._asking is None or self._asking.done()):
            self._asked_at = now
            self._asking = spawn(self._ask(), "backlogs")
        return self._figures.get(agent) if now - self._heard_at < STAND_S else None

    async def _ask(self) -> None:
        try:
            if self._bridge is None:
                name = bridge_name(self._environment)
                self._bridge = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                if hasattr(self._bridge, "figures"):
                    self._seen, self._figures = await self._bridge.figures.remote(self._seen)
                else:
                    # A bridge of an older release, until it is renewed.
                    self._figures = await self._bridge.backlogs.remote()
            self._heard_at = time.monotonic()
        except (ValueError, TimeoutError, ray.exceptions.RayError):
            # The bridge is being restarted; the last figures stand for a while.
            self._bridge = None

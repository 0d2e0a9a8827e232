"""How many replicas an agent gets: Serve's autoscaler asks this policy.

Serve pickles the policy's module by value, again and again; what must be shared is in `backlogs`.
"""

from __future__ import annotations

import math
import time
from typing import Any

#: A backlog must stand for so long, in seconds, before more replicas are started for it: a start costs about
#: that much CPU time, and most bursts are over sooner. From zero it is not waited.
UPSCALE_AFTER_S = 2.0


class BacklogPolicy:
    """As many replicas as the tasks held would fill, within the bounds; a pinned number wins.

    Of a group, which goes by its application's name, the bridge tells how many processes its agents need.

    Serve applies bounds and the delay of scaling down on top.
    """

    def __init__(self, environment: str, agent: str, slots: int) -> None:
        from squadron.bridge.serve.backlogs import Backlogs

        self._backlogs, self._agent, self._slots = Backlogs.of(environment), agent, slots
        self._short_since: float | None = None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        figures = self._backlogs.figures(self._agent)
        if figures is None:
            return context.target_num_replicas, {}
        pinned = figures["pinned"]
        if pinned is not None:
            return pinned, {}
        held = figures["held"]
        if held is None:
            # Not known, which is not nothing.
            return context.target_num_replicas, {}
        return self._damped(math.ceil(held / self._slots), context.target_num_replicas), {}

    def _damped(self, wanted: int, present: int) -> int:
        now = time.monotonic()
        if wanted <= present or present == 0:
            self._short_since = None
            return wanted
        self._short_since = self._short_since or now
        return wanted if now - self._short_since >= UPSCALE_AFTER_S else present

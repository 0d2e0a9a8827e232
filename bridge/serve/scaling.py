"""How many replicas an agent gets: Serve's autoscaler asks this policy.

Serve pickles the policy's module by value, again and again; what must be shared is in `backlogs`.
"""

from __future__ import annotations

import math
import time
from typing import Any


class BacklogPolicy:
    """As many replicas as the tasks held would fill, within the bounds; a pinned number wins.

    Of a group, which goes by its application's name, the bridge tells how many processes its agents need.

    Serve applies the bounds on top.
    """

    def __init__(self, environment: str, agent: str, slots: int) -> None:
        from squadron.bridge.serve.backlogs import Backlogs
        from squadron.bridge.serve.damping import Damping

        self._backlogs, self._agent, self._slots = Backlogs.of(environment), agent, slots
        self._damping = Damping()

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        figures = self._backlogs.figures(self._agent) or {"pinned": None, "held": None}
        target = context.target_num_replicas
        pinned, held, used = figures["pinned"], figures["held"], figures.get("used") or 0
        if pinned is None and held is not None:
            needed, running = math.ceil(held / self._slots), context.current_num_replicas
            return self._damping.replicas(needed, running, target, time.monotonic(), used), {}
        # Pinned, or not known, which is not nothing. Later it goes by what is needed from then on.
        self._damping.forget()
        return target if pinned is None else pinned, {}

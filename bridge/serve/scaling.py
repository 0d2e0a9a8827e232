"""How many replicas an agent gets: Serve's autoscaler asks this policy.

Serve pickles the policy's module by value, again and again; what must be shared is in `backlogs`.
"""

from __future__ import annotations

import math
from typing import Any


class BacklogPolicy:
    """As many replicas as the tasks held would fill, within the bounds; a pinned number wins.

    Serve applies bounds and delays on top.
    """

    def __init__(self, environment: str, agent: str, slots: int) -> None:
        from squadron.bridge.serve.backlogs import Backlogs

        self._backlogs, self._agent, self._slots = Backlogs.of(environment), agent, slots

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        figures = self._backlogs.figures(self._agent)
        if figures is None:
            return context.target_num_replicas, {}
        pinned = figures["pinned"]
        if pinned is not None:
            return pinned, {}
        return math.ceil((figures["held"] or 0) / self._slots), {}

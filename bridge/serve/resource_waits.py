"""Which agents wait for resources, and not just for processes that are starting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from squadron.bridge.serve.declaration import waits_for
from squadron.runtime.wire.deployment import AgentState, Deployment

#: How long nothing is said, in seconds: a replica that starts has taken already what no node has free then. It
#: needs 1 to 3 s on 2 cores, and some more on a busy machine.
START_TAKES_S = 10.0


class ResourceWaits:
    """Since when each agent has fewer replicas than it is to have, and no node has what one more needs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def told(self, wanted: Deployment, state: AgentState, free: Iterable[Mapping[str, float]]) -> str:
        """What its replicas wait for, in words; empty unless they have done so for longer than a start takes.

        Args:
            free: what each living node has left.
        """
        if not (words := waits_for(wanted, state, free)):
            self.over(wanted)
            return ""
        since = self._since.setdefault(wanted.known_as, self._clock())
        return words if self._clock() - since > START_TAKES_S else ""

    def over(self, wanted: Deployment) -> None:
        """It has all that it needs."""
        self._since.pop(wanted.known_as, None)

    def keep(self, deployments: Iterable[Deployment]) -> None:
        """Forget those of other agents: who is deployed again begins anew."""
        known = {version.known_as for each in deployments for version in each.versions}
        self._since = {name: since for name, since in self._since.items() if name in known}

"""When the number of replicas follows what is needed, and when it waits."""

from __future__ import annotations

import math
from collections import deque

#: A shortage must stand for so long, in seconds, before more replicas are started for it: a start costs about
#: that much CPU time, and most bursts are over sooner. From zero it is not waited.
OUT_AFTER_S = 1.0
#: For so long, in seconds, none are added to those that are starting: a start takes CPU from those that run, and
#: what piles up because of that is soon taken by the new ones.
STARTING_S = 20.0
#: But for a backlog that would fill so many times as many as there are to be: that is not what a start piles up.
FAR_MORE = 4
#: With nothing at all to do for so long, in seconds, replicas go: an idle one costs little, a start much.
IDLE_S = 30.0
#: With something to do, as many go as were too many at each moment of so many seconds. At a border the numbers
#: that are needed vary for as long as some tasks take, and those of agents on models take ten seconds and more.
IN_AFTER_S = 300.0


class Damping:
    """Of one agent: how many replicas it gets, by how many it needed when. It knows no bounds."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: what there is now was needed until now."""
        self._short_since: float | None = None
        self._added_at, self._busy_at = -math.inf, 0.0
        self._used = 0
        #: The most that were needed since each moment, largest and oldest first.
        self._peaks: deque[tuple[float, int]] = deque()

    def replicas(self, needed: int, running: int, target: int, now: float, used: int = 0) -> int:
        """How many there are to be.

        Args:
            needed: how many the tasks held would fill.
            running, target: how many there are, and are to be until now.
            now: in seconds, of a clock that only goes on.
            used: changes when tasks have ended: short ones are over between two looks at what is held.
        """
        if used != self._used:
            self._used = used
            # None is started for what is over.
            needed = max(needed, min(1, target))
        peak = self._peak(needed, target, now)
        if needed > target:
            return self._more(needed, running, target, now)
        self._short_since = None
        if now - self._busy_at >= IDLE_S:
            return 0
        return min(peak, target)

    def _more(self, needed: int, running: int, target: int, now: float) -> int:
        if running < target and now - self._added_at < STARTING_S and needed < FAR_MORE * target:
            self._short_since = None
            return target
        if self._short_since is None:
            self._short_since = now
        if target > 0 and now - self._short_since < OUT_AFTER_S:
            return target
        # Who had none knew little of what is needed.
        self._added_at = now if target > 0 else -math.inf
        return needed

    def _peak(self, needed: int, target: int, now: float) -> int:
        if not self._peaks:
            self._peaks.append((now, target))
            self._busy_at = now
        if needed > 0:
            self._busy_at = now
        while self._peaks and self._peaks[-1][1] <= needed:
            self._peaks.pop()
        self._peaks.append((now, needed))
        while self._peaks[0][0] < now - IN_AFTER_S:
            self._peaks.popleft()
        return self._peaks[0][1]

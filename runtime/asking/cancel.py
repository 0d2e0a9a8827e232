"""Cancelled tasks: known to every replica, whether they wait or run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.subjects import live_of, token_of

#: How long a cancellation is kept beyond the task's own deadline, in seconds: clocks differ.
KEPT_BEYOND_S = 60.0


class Cancellations:
    """What was cancelled in this environment: heard live, and read anew when something may have been missed.

    Each is one entry on the lite topic `cancel.{task}`, so that a task which still waits is found cancelled by
    whichever replica takes it, whenever that is.
    """

    def __init__(self, ports: Ports) -> None:
        self._lite, self._bus = ports.lite, ports.bus
        self._subjects, self._clock = ports.subjects, ports.clock
        #: Token of a cancelled task → when it may be forgotten.
        self._cancelled: dict[str, float] = {}
        #: Token of a task → who stops when it is cancelled: itself, and what it asked for.
        self._running: dict[str, list[Callable[[], None]]] = {}
        self._prune_at = 1024
        self._hearing: Subscription | None = None

    async def start(self) -> None:
        """Begin to listen; what was cancelled before is known when this returns."""
        self._hearing = await self._bus.subscribe(live_of(self._subjects.lite_of("cancel")), self._hear)
        self._bus.on_reconnect(self.refresh)
        await self.refresh()

    async def refresh(self) -> None:
        """Read what may have been missed."""
        if self._hearing is None:
            return
        for entry in await self._lite.latest(self._subjects.lite_of("cancel")):
            self._hear(Note(entry.key, entry.data))

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            await hearing.aclose()

    def _hear(self, note: Note) -> None:
        token = note.subject.rsplit(".", 1)[-1]
        try:
            until = float(json.loads(note.data)["until"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return
        if not math.isfinite(until):
            # It would never be forgotten.
            return
        self._cancelled[token] = until
        if len(self._cancelled) > self._prune_at:
            now = self._clock.time()
            self._cancelled = {each: at for each, at in self._cancelled.items() if at > now}
            self._prune_at = max(1024, 2 * len(self._cancelled))
        for stop in tuple(self._running.get(token, ())):
            stop()

    def includes(self, task_id: str) -> bool:
        """Whether this task was cancelled."""
        return bool(self._cancelled) and self._cancelled.get(token_of(task_id), 0.0) > self._clock.time()

    def watch(self, task_ids: Iterable[str], stop: Callable[[], None]) -> None:
        """Call `stop` when one of these tasks is cancelled."""
        for task_id in task_ids:
            self._running.setdefault(token_of(task_id), []).append(stop)

    def unwatch(self, task_ids: Iterable[str], stop: Callable[[], None]) -> None:
        """Who would stop does not run any more."""
        for token in map(token_of, task_ids):
            left = [each for each in self._running.pop(token, ()) if each is not stop]
            if left:
                self._running[token] = left


async def is_cancelled(ports: Ports, task_id: str) -> bool:
    """Whether somebody has cancelled this task, as the server knows it.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    return await ports.lite.last(ports.subjects.lite("cancel", token_of(task_id))) is not None


async def request_cancel(ports: Ports, task_id: str, *, deadline_at_s: float) -> None:
    """Ask whoever runs this task, now or later, to stop; stored when this returns.

    Args:
        deadline_at_s: when the task ends anyway, in seconds since the epoch.

    Raises:
        BusUnavailableError: not acknowledged in time.
    """
    now = ports.clock.time()
    until = max(now, deadline_at_s) + KEPT_BEYOND_S
    key = ports.subjects.lite("cancel", token_of(task_id))
    data = json.dumps({"until": until}).encode()
    await ports.lite.append(key, data, ttl_s=until - now, msg_id=f"{token_of(task_id)}.cancel")

"""Cancelled tasks: known to every replica, whether they wait or run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from functools import partial

from squadron.runtime.asking.believing import believes
from squadron.runtime.errors import UntrustedError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.guard import May
from squadron.runtime.trust.may_say import KEEPERS, check_role
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.wire.replies import principal_of
from squadron.runtime.wire.subjects import live_of, token_of, told_there

#: How long a cancellation is kept beyond the task's own deadline, in seconds: clocks differ.
KEPT_BEYOND_S = 60.0
#: Stands for whoever looks after the environment, in the place of a sender.
OPERATOR = None
#: The token of a task's id, and the principal of its sender.
Cancellable = tuple[str, str]


class Cancellations:
    """What was cancelled in this environment: heard live, and read anew when something may have been missed.

    Each is an entry on the lite topic `cancel.{task}`, so that a task which still waits is found cancelled by
    whichever replica takes it, whenever that is. It says who cancels: it counts if that is the task's sender or an
    operator.
    """

    def __init__(self, ports: Ports) -> None:
        self._lite, self._bus, self._guard = ports.lite, ports.bus, ports.guard
        self._subjects, self._clock = ports.subjects, ports.clock
        #: Token of a cancelled task, and who cancelled it → when it may be forgotten.
        self._cancelled: dict[tuple[str, str | None], float] = {}
        #: Token of a task that runs → its sender, and who stops with it: itself, and what it asked for.
        self._running: dict[str, list[tuple[str, Callable[[], None]]]] = {}
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
        async for entry in self._lite.read(self._subjects.lite_of("cancel")):
            if self._guard is None or await believes(self._guard, "cancel", entry, _may(entry.data)):
                self._take(entry.key, entry.data)

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            await hearing.aclose()

    def _hear(self, note: Note) -> None:
        subject = told_there(note.subject)
        if self._guard is None:
            return self._take(subject, note.data)
        said, may = (subject, note.data, note.headers), _may(note.data)
        take = partial(self._take, subject, note.data)
        # It is stored as well.
        self._guard.hear("cancel", *said, lambda _: take(), at=self._clock.time(), may=may)

    def _take(self, subject: str, data: bytes) -> None:
        token, said = subject.rsplit(".", 1)[-1], _read(data)
        if said is None:
            return
        by, until = said
        self._cancelled[token, by] = until
        if len(self._cancelled) > self._prune_at:
            now = self._clock.time()
            self._cancelled = {each: at for each, at in self._cancelled.items() if at > now}
            self._prune_at = max(1024, 2 * len(self._cancelled))
        for sender, stop in tuple(self._running.get(token, ())):
            if by in (sender, OPERATOR):
                stop()

    def includes(self, task: Cancellable) -> bool:
        """Whether this task was cancelled by who may do so."""
        if not self._cancelled:
            return False
        now, (token, sender) = self._clock.time(), task
        return any(self._cancelled.get((token, by), 0.0) > now for by in (sender, OPERATOR))

    def watch(self, tasks: Iterable[Cancellable], stop: Callable[[], None]) -> None:
        """Call `stop` when one of these tasks is cancelled by who may do so."""
        for token, sender in tasks:
            self._running.setdefault(token, []).append((sender, stop))

    def unwatch(self, tasks: Iterable[Cancellable], stop: Callable[[], None]) -> None:
        """Who would stop does not run any more."""
        for token, _ in tasks:
            left = [each for each in self._running.pop(token, ()) if each[1] is not stop]
            if left:
                self._running[token] = left


def cancellable(task_id: str, sender: str) -> Cancellable:
    """A task, and who may cancel it beside operators: its sender, in any of its processes."""
    return token_of(task_id), principal_of(sender)


def _may(data: bytes) -> May:
    """Whether who signed a cancellation is who it says, or looks after the environment."""
    said = _read(data)

    def may(signed: Signed) -> None:
        if said is None or said[0] is OPERATOR:
            check_role(signed.by, *KEEPERS)
        elif signed.by.name != said[0]:
            raise UntrustedError(f"{signed.by.name} cancels in the name of {said[0][:80]}")

    return may


def _read(data: bytes) -> tuple[str | None, float] | None:
    """Who cancels, and until when that is to be kept in mind; None if it is not of that shape."""
    try:
        raw = json.loads(data)
        until, by = float(raw["until"]), OPERATOR if raw.get("operator") is True else principal_of(raw["by"])
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None
    # An endless one would never be forgotten.
    return (by, until) if math.isfinite(until) else None


async def is_cancelled(ports: Ports, task: Cancellable) -> bool:
    """Whether this task's sender, or an operator, has cancelled it, as the server knows it.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    token, principal = task
    async for entry in ports.lite.read(ports.subjects.lite("cancel", token)):
        if (said := _read(entry.data)) is None or said[0] not in (principal, OPERATOR):
            continue
        if ports.guard is None or await believes(ports.guard, "cancel", entry, _may(entry.data)):
            return True
    return False


def cancels_as_operator(ports: Ports, task_id: str, sender: str) -> bool:
    """Whether a task is another's, and cancelled by us as who looks after the environment.

    Raises:
        UntrustedError: it is another's, and nobody would believe it of us.
    """
    me, guard = ports.principal, ports.guard
    if me is not None and me.covers(sender):
        return False
    if me is not None and me.role in KEEPERS:
        return True
    if guard is not None and guard.requires:
        raise UntrustedError(
            f"{ports.identity.id} can't cancel the task {task_id!r}: it was asked by {principal_of(sender)}",
            hint=f"cancel it with a credential of {principal_of(sender)}, or with an operator's",
        )
    return False


async def request_cancel(
    ports: Ports, task_id: str, *, deadline_at_s: float, sender: str = "", operator: bool = False
) -> None:
    """Ask whoever runs this task, now or later, to stop; stored when this returns.

    Args:
        deadline_at_s: when the task ends anyway, in seconds since the epoch.
        sender: the task's, in whose name it is cancelled; by default this process.
        operator: it is cancelled by somebody who looks after the environment, whoever sent it.

    Raises:
        BusUnavailableError: not acknowledged in time.
    """
    now = ports.clock.time()
    until = max(now, deadline_at_s) + KEPT_BEYOND_S
    key = ports.subjects.lite("cancel", token_of(task_id))
    said = {"until": until, "by": sender or ports.identity.id} | ({"operator": True} if operator else {})
    # An id that nobody can take first; sent again after an answer that was lost it is stored once.
    await ports.lite.append(key, json.dumps(said).encode(), ttl_s=until - now, msg_id=os.urandom(16).hex())

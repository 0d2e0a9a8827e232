"""One log line for each message whose work ended here: all failures, and of what went well what one can read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from squadron.runtime.logs import get_logger
from squadron.runtime.telemetry.happenings import Happening, TurnEnded

#: Of one topic the first so many successes of a second are logged, and then one in so many: at a thousand tasks a
#: second this is 15 lines, and 0.9 µs a task (a line takes 30 µs, measured).
FIRST_EACH_S, THEN_ONE_IN = 5, 100

_log = get_logger("squadron.tasks")


class TurnLog:
    """An observer that logs `task.ended` and `event.ended`.

    A line stands for itself and for those left out since the one before, of the same topic: `sampled` counts them
    all. Whoever traces binds `trace_id` for the time of a turn (`structlog.contextvars`), and so the line has it.
    """

    def __init__(self, now: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        """Make one.

        Args:
            now: seconds since the epoch, by the clock of the replica.
            steady: seconds that never go back, by which lines are counted.
        """
        self._now, self._steady = now, steady
        self._samples: dict[str, _Sample] = {}

    def hear(self, happening: Happening) -> None:
        """Log it, if it is an end."""
        if type(happening) is not TurnEnded or happening.end not in ("outcome", "handled"):
            return
        outcome = happening.outcome
        failed = outcome is not None and not outcome.ok
        if (sample := self._samples.get(happening.served)) is None:
            sample = self._samples[happening.served] = _Sample()
        if sample.passes(self._steady(), always=failed):
            said = _said(happening, self._now())
            if (stands_for := sample.told()) > 1:
                said["sampled"] = stands_for
            log = _log.warning if failed else _log.info
            log("task.ended" if happening.kind == "task" else "event.ended", **said)

    async def aclose(self) -> None:
        """Nothing is kept that could be lost."""


class _Sample:
    """How many of one topic there were in this second, and how many were left out since the last line."""

    __slots__ = ("_count", "_left_out", "_second")

    def __init__(self) -> None:
        self._second, self._count, self._left_out = -1, 0, 0

    def passes(self, at: float, *, always: bool) -> bool:
        if (second := int(at)) != self._second:
            self._second, self._count = second, 0
        if always:
            return True
        self._count += 1
        if self._count <= FIRST_EACH_S or self._count % THEN_ONE_IN == 0:
            return True
        self._left_out += 1
        return False

    def told(self) -> int:
        """How many the line stands for that is written now."""
        left_out, self._left_out = self._left_out, 0
        return left_out + 1


def _said(ended: TurnEnded, now: float) -> dict[str, Any]:
    message, outcome = ended.message, ended.outcome
    waited_s = max(0.0, message.waited_s(now) - ended.seconds)
    said: dict[str, Any] = {
        "agent": ended.agent,
        "topic": ended.topic,
        "message": message.id,
        "conversation": message.context.conversation_id,
        "attempt": ended.attempt,
        "outcome": outcome.kind if outcome is not None else ended.end,
        "waited_ms": round(1000 * waited_s, 1),
        "ran_ms": round(1000 * ended.seconds, 1),
    }
    if outcome is not None and outcome.tokens:
        said["tokens"] = outcome.tokens
    if error := ended.error or (outcome.reason if outcome is not None else ""):
        said["error"] = error
    return said

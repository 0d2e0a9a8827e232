"""What one replica counts: an observer that is always on, and adds to plain lists."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from squadron.bridge.metrics.families import (
    COUNTED,
    LONGEST_LABEL,
    MODEL_SECONDS,
    MOST_MODELS,
    MOST_TOPICS,
    OTHER,
    SECONDS,
    VERSION,
    Cell,
)
from squadron.runtime.telemetry.happenings import (
    Buried,
    CallAdmitted,
    Distrusted,
    Happening,
    PersonAnswered,
    PersonAsked,
    RunGrew,
    TurnBegun,
    TurnEnded,
)
from squadron.runtime.wire.spent import Spent


class Names:
    """The values that one label has: beyond `most` of them all others are one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    def of(self, value: str) -> str:
        """The value to count under."""
        known = self._known.get(value)
        if known is None:
            if len(self._known) >= self._most:
                return OTHER
            known = self._known[value] = value[:LONGEST_LABEL]
        return known


class Counting:
    """Counts what happens in the process of one agent; `told` is all of it since the process began.

    The price is that of some entries in dicts for each task: see `make bench`.
    """

    def __init__(self, *, two_versions: Callable[[], bool] = lambda: False) -> None:
        """Make one; `two_versions` tells whether the agent has a canary now: then each is counted for itself."""
        self._two_versions = two_versions
        self._cells: dict[Cell, list[float]] = {}
        #: Cells by the topic as it is served, since these are looked for for each task.
        self._waits: dict[str, list[float]] = {}
        self._turns: dict[str, list[float]] = {}
        self._topics, self._models, self._accounts = Names(MOST_TOPICS), Names(MOST_MODELS), Names(MOST_MODELS)
        #: How late the event loop was at the last heartbeat, in seconds.
        self.lag_s = 0.0
        self._takes: dict[type, Callable[[Any], None]] = {
            TurnBegun: self._begun,
            TurnEnded: self._ended,
            Buried: self._buried,
            Distrusted: lambda it: self._add(("distrusted", it.kind)),
            RunGrew: self._grew,
            CallAdmitted: self._admitted,
            PersonAsked: lambda _: self._add(("asked",)),
            PersonAnswered: lambda _: self._add(("answered",)),
        }

    def hear(self, happening: Happening) -> None:
        """Count one happening."""
        take = self._takes.get(type(happening))
        if take is not None:
            take(happening)

    async def aclose(self) -> None:
        """Nothing to do: the last heartbeat has told all."""

    async def reconnected(self) -> None:
        """The connection to NATS came back."""
        self._add(("reconnects",))

    def told(self) -> dict[str, Any]:
        """What a heartbeat carries: all that was counted since the process began, and never less than before."""
        cells = [[*cell, _trimmed(numbers)] for cell, numbers in self._cells.items()]
        return {"v": VERSION, "cells": cells, "lagS": round(self.lag_s, 4)}

    # --- adding ------------------------------------------------------------------------------------------

    def _add(self, cell: Cell, count: float = 1) -> None:
        numbers = self._cells.get(cell)
        if numbers is None:
            self._cells[cell] = [count]
        else:
            numbers[0] += count

    def _histogram(self, kind: str, label: str) -> list[float]:
        cell, buckets = (kind, label), COUNTED[kind][1]
        return self._cells.setdefault(cell, [0.0] * (len(buckets) + 2))

    def _of_topic(self, kind: str, served: str, known: dict[str, list[float]]) -> list[float]:
        numbers = self._histogram(kind, self._topics.of(served))
        if len(known) < MOST_TOPICS:
            known[served] = numbers
        return numbers

    # --- what happens ------------------------------------------------------------------------------------

    def _begun(self, it: TurnBegun) -> None:
        # A later attempt has waited for the earlier ones, too.
        if it.attempt == 1 and it.kind == "task":
            numbers = self._waits.get(it.served) or self._of_topic("wait", it.served, self._waits)
            numbers[0] += it.waited_s
            numbers[bisect_left(SECONDS, it.waited_s) + 1] += 1

    def _ended(self, it: TurnEnded) -> None:
        topic = self._topics.of(it.served)
        if it.kind == "durable":
            self._add(("events", topic, it.end if it.outcome is None else it.outcome.kind))
            return
        if it.attempt:
            numbers = self._turns.get(it.served) or self._of_topic("turn", it.served, self._turns)
            numbers[0] += it.seconds
            numbers[bisect_left(SECONDS, it.seconds) + 1] += 1
        if it.outcome is not None:
            self._add(("tasks", topic, it.outcome.kind))
            if self._two_versions():
                self._add(("versions", it.outcome.version, it.outcome.kind))
        elif it.end == "again":
            self._add(("retries", topic))

    def _buried(self, _: Buried) -> None:
        self._add(("buried",))

    def _admitted(self, it: CallAdmitted) -> None:
        account = self._accounts.of(it.account)
        self._add(("admitted", account))
        self._add(("admission", account), it.waited_s)

    def _grew(self, it: RunGrew) -> None:
        for entry in it.entries:
            if entry.kind == "thought":
                self._thought(entry)
            elif entry.kind == "failed":
                model = self._models.of(entry.model)
                self._add(("calls", model, "failed"))
                self._spend(model, Spent.of_wire(entry.spent))

    def _thought(self, entry: Any) -> None:
        usage, model = entry.turn.usage, self._models.of(entry.turn.model or "unknown")
        self._add(("calls", model, "ok"))
        numbers = self._histogram("thought", model)
        numbers[0] += entry.seconds
        numbers[bisect_left(MODEL_SECONDS, entry.seconds) + 1] += 1
        # No token stands in two of them, so that a sum over the types is right.
        for type, count in (
            ("input", usage.input - usage.cache_read - usage.cache_write),
            ("cache_read", usage.cache_read),
            ("cache_write", usage.cache_write),
            ("output", usage.output - usage.reasoning),
            ("reasoning", usage.reasoning),
        ):
            if count > 0:
                self._add(("tokens", model, type), count)
        self._add(("usd_micros", model), Spent.of_wire(entry.spent).usd_micros)

    def _spend(self, model: str, spent: Spent) -> None:
        """What a call cost that gave no turn: nobody told of which type its tokens were."""
        if spent.tokens:
            self._add(("tokens", model, "unknown"), spent.tokens)
        if spent.usd_micros:
            self._add(("usd_micros", model), spent.usd_micros)


class Countings:
    """Counts for each of several agents in one process; what names no agent is not counted."""

    def __init__(self) -> None:
        self._of: dict[str, Counting] = {}

    def hear(self, happening: Happening) -> None:
        """Count one happening."""
        if agent := getattr(happening, "agent", ""):
            if agent not in self._of:
                self._of[agent] = Counting()
            self._of[agent].hear(happening)

    async def aclose(self) -> None:
        """Nothing to do."""

    def told(self) -> dict[str, dict[str, Any]]:
        """What each has counted."""
        return {agent: counting.told() for agent, counting in self._of.items()}


def _trimmed(numbers: list[float]) -> list[float]:
    """Without the empty buckets at the end; times to the microsecond."""
    last = max((index for index, number in enumerate(numbers) if number), default=0)
    return [number if isinstance(number, int) else round(number, 6) for number in numbers[: last + 1]]


def widths() -> dict[str, tuple[int, int]]:
    """Of each kind how many labels it has, and the most numbers."""
    return {kind: (labels, len(buckets) + 2 if buckets else 1) for kind, (labels, buckets) in COUNTED.items()}

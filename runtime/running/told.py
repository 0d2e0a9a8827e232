"""What observers are told of one delivery: that an attempt begins, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Literal

from squadron.runtime.ports.bus import Carrier
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.sealed import is_sealed
from squadron.runtime.telemetry.happenings import TurnBegun, TurnEnd, TurnEnded
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Outcome


class Told:
    """One delivery, as observers hear of it; see `TurnBegun` and `TurnEnded`."""

    __slots__ = (
        "_agent",
        "_attempt",
        "_began",
        "_carrier",
        "_ended",
        "_kind",
        "_message",
        "_ports",
        "_sealed",
        "_served",
        "_topic",
        "outcome_headers",
    )

    def __init__(
        self,
        ports: Ports,
        kind: Literal["task", "durable", "event"],
        agent: str,
        message: AgentMessage,
        topic: str,
        served: str,
        carrier: Carrier,
    ) -> None:
        self._ports, self._kind, self._agent = ports, kind, agent
        self._message, self._topic, self._served, self._carrier = message, topic, served, carrier
        self._attempt, self._began, self._ended = 0, 0.0, False
        self._sealed = is_sealed(message)
        #: What observers want to go along with the outcome.
        self.outcome_headers: dict[str, str] | None = None

    def begun(self, attempt: int) -> None:
        """Tell that an attempt begins, in the asyncio task of its handler."""
        if not self._ports.observers.on:
            return
        self._attempt, self._began = attempt, asyncio.get_running_loop().time()
        waited_s = self._message.waited_s(self._ports.clock.time())
        self.outcome_headers = {}
        # By position, in both: names cost half a microsecond more, for each task.
        self._ports.observers.tell(
            TurnBegun(
                self._kind,
                self._agent,
                self._topic,
                self._served,
                self._message,
                attempt,
                waited_s,
                self._carrier,
                self.outcome_headers,
            )
        )

    def ended(
        self, end: TurnEnd, *, outcome: Outcome | None = None, after_s: float = 0.0, error: str = ""
    ) -> None:
        """Tell how it ended; what goes wrong afterwards changes nothing."""
        if self._ended or not self._ports.observers.on:
            return
        self._ended = True
        if self._sealed:
            # They hear how it ended, and not what was said.
            outcome, error = outcome and outcome.withheld(), error.partition(":")[0]
        if outcome is not None and self._kind == "task":
            # Without the time that it took to store it.
            seconds = outcome.latency_ms / 1000
        else:
            seconds = asyncio.get_running_loop().time() - self._began if self._attempt else 0.0
        self._ports.observers.tell(
            TurnEnded(
                self._kind,
                self._agent,
                self._topic,
                self._served,
                self._message,
                end,
                outcome,
                self._attempt,
                seconds,
                after_s,
                error,
                self._carrier,
            )
        )

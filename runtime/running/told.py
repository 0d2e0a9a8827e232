"""What observers are told of one delivery: that an attempt begins, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Literal

from squadron.runtime.ports.queue import Delivery
from squadron.runtime.store.port_set import Ports
from squadron.runtime.telemetry.happenings import TurnBegun, TurnEnd, TurnEnded
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Outcome


class Told:
    """One delivery, as observers hear of it; see `TurnBegun` and `TurnEnded`."""

    __slots__ = ("_agent", "_attempt", "_began", "_ended", "_kind", "_message", "_ports", "_served", "_topic")

    def __init__(
        self,
        ports: Ports,
        kind: Literal["task", "durable"],
        agent: str,
        message: AgentMessage,
        topic: str,
        served: str,
    ) -> None:
        self._ports, self._kind, self._agent = ports, kind, agent
        self._message, self._topic, self._served = message, topic, served
        self._attempt, self._began, self._ended = 0, 0.0, False

    def begun(self, delivery: Delivery, attempt: int) -> None:
        """Tell that an attempt begins, in the asyncio task of its handler."""
        if not self._ports.observers.on:
            return
        self._attempt, self._began = attempt, asyncio.get_running_loop().time()
        self._ports.observers.tell(
            TurnBegun(
                kind=self._kind,
                agent=self._agent,
                topic=self._topic,
                served=self._served,
                message=self._message,
                attempt=attempt,
                waited_s=max(0.0, self._ports.clock.time() - self._message.timestamp),
                carrier=delivery.carrier,
            )
        )

    def ended(
        self, end: TurnEnd, *, outcome: Outcome | None = None, after_s: float = 0.0, error: str = ""
    ) -> None:
        """Tell how it ended; what goes wrong afterwards changes nothing."""
        if self._ended or not self._ports.observers.on:
            return
        self._ended = True
        seconds = asyncio.get_running_loop().time() - self._began if self._attempt else 0.0
        if outcome is not None and self._kind == "task":
            # Without the time that it took to store it.
            seconds = outcome.latency_ms / 1000
        self._ports.observers.tell(
            TurnEnded(
                kind=self._kind,
                agent=self._agent,
                topic=self._topic,
                served=self._served,
                message=self._message,
                end=end,
                outcome=outcome,
                attempt=self._attempt,
                seconds=seconds,
                after_s=after_s,
                error=error,
            )
        )

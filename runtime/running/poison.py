"""Deliveries that nobody can read: they get no second try, and their sender need not wait in vain."""

from __future__ import annotations

import json

from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.reports import Reports
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import DeadLettered
from squadron.runtime.wire.subjects import token_of


async def bury_poison(ports: Ports, agent: str, delivery: Delivery, error: Exception) -> None:
    """Answer as far as id and address can be read, and keep the bytes for a person to look at."""
    await _answer(ports, delivery, error)
    await DeadLetters(ports).bury_poison(agent, delivery, error, source=ports.identity)
    await delivery.lease.settle()


async def _answer(ports: Ports, delivery: Delivery, error: Exception) -> None:
    try:
        raw = json.loads(delivery.data)
        id, reply_to = raw["id"], raw["replyTo"]
        now = ports.clock.time()
        message = AgentMessage.new("task", ports.identity, id=id, reply_to=reply_to, timestamp=now)
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    outcome = DeadLettered(reason=str(error), task_id=message.id, details={"attempts": 0})
    reports = Reports(ports)
    lite_key, announce = reports.address(message, "poison.message")
    # Not as the task's own outcome: the same message may be put back, and served.
    await reports.store(message, outcome, lite_key, announce, msg_id=f"{token_of(message.id)}.poison")

"""The agents that are killed: each handler writes into a ledger when it starts and when it ends."""

from __future__ import annotations

import asyncio

from squadron import Agent, Context, topic
from tests.chaos.ledger import Ledger

#: More than any run kills: a task ends as a result or shows up as lost, never as given up.
MAX_ATTEMPTS = 100


class Worker(Agent):
    """Squares numbers, slowly. Three replicas have room for a thousand tasks at once."""

    name = "worker"
    slots = 340
    min_replicas = max_replicas = 3

    def __init__(self) -> None:
        self._ledgers: dict[str, Ledger] = {}

    @topic("chaos.square", max_attempts=MAX_ATTEMPTS)
    async def square(self, number: int, work_s: float, ledger: str, ctx: Context) -> int:
        """Square a number."""
        if ledger not in self._ledgers:
            self._ledgers[ledger] = Ledger(ledger)
        lines, facts = self._ledgers[ledger], {"task": ctx.message.id, "attempt": ctx.attempt}
        lines.write("start", **facts)
        try:
            await asyncio.sleep(work_s)
        except asyncio.CancelledError:
            lines.write("cut", **facts)
            raise
        lines.write("end", **facts)
        return number * number


class Renewed(Worker):
    """New code under the same name."""


class Impatient(Worker):
    """Gives its turns half a second when it has to go."""

    grace_s = 0.5


class Clerk(Worker):
    """Eight tasks at a time."""

    name = "clerk"
    slots = 8
    min_replicas = max_replicas = 1


class Team(Worker):
    """What replaces the clerk to work off what has piled up."""

    name = "clerk"
    slots = 256
    min_replicas = max_replicas = 2

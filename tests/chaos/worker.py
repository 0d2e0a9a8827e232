"""The agents that are killed: each handler writes into a ledger when it starts and when it ends."""

from __future__ import annotations

import asyncio

from squadron import Agent, Context, topic
from tests.chaos.ledger import Ledger

#: More than any run kills: a task ends as a result or shows up as lost, never as given up.
MAX_ATTEMPTS = 100


class Squarer(Agent):
    """Squares numbers, slowly, and keeps a ledger of it."""

    def __init__(self) -> None:
        self._ledgers: dict[str, Ledger] = {}

    async def work(self, number: int, work_s: float, ledger: str, ctx: Context) -> int:
        """One turn."""
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


class Worker(Squarer):
    """Three replicas have room for a thousand tasks at once."""

    name = "worker"
    slots = 340
    min_replicas = max_replicas = 3

    @topic("chaos.square", max_attempts=MAX_ATTEMPTS)
    async def square(self, number: int, work_s: float, ledger: str, ctx: Context) -> int:
        """Square a number."""
        return await self.work(number, work_s, ledger, ctx)


class Renewed(Worker):
    """New code under the same name."""


class Narrow(Worker):
    """Does a few at a time."""

    slots = 20
    min_replicas = max_replicas = 1


class Impatient(Worker):
    """Gives its turns half a second when it has to go."""

    grace_s = 0.5


class Clerk(Squarer):
    """Eight tasks at a time."""

    name = "clerk"
    slots = 8
    min_replicas = max_replicas = 1

    @topic("desk.square")
    async def square(self, number: int, work_s: float, ledger: str, ctx: Context) -> int:
        """Square a number."""
        return await self.work(number, work_s, ledger, ctx)


class Team(Clerk):
    """What replaces the clerk to work off what has piled up."""

    slots = 256
    min_replicas = max_replicas = 2

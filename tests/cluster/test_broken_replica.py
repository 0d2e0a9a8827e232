"""A replica whose own background work broke looks alive, but takes nothing more: it is replaced."""

from __future__ import annotations

import asyncio
import os

from squadron import Agent, Squad, topic
from tests.cluster.conftest import until


class Saboteur(Agent):
    """Breaks what brings it its tasks."""

    grace_s = 1.0

    @topic("saboteur.pid")
    async def pid(self) -> int:
        """Tell the process id."""
        return os.getpid()

    @topic("saboteur.strike")
    async def strike(self) -> int:
        """Break the pull of this replica with an error that nobody expects; tell its process id."""
        for task in asyncio.all_tasks():
            if task.get_name() == "pull saboteur":
                feed = task.get_coro().cr_frame.f_locals["self"]
                feed._unopened, feed._look = None, True
                feed._work.set()
        return os.getpid()


async def test_a_replica_whose_pull_broke_is_replaced(squad: Squad) -> None:
    await squad.deploy(Saboteur)
    victim = (await squad.ask("saboteur.strike")).unwrap()

    async def another_takes_them() -> bool:
        return bool((await squad.ask("saboteur.pid", within_s=120)).unwrap() != victim)

    # Until Serve asks for its health it may take what it had asked for.
    await until(another_takes_them, within_s=120)

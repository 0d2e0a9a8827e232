"""A replica that can't hear NATS any more, whatever is tried, is replaced, and its tasks are done by another."""

from __future__ import annotations

import asyncio
import os

import pytest

from squadron import Agent, Context, Squad, topic
from squadron.bridge.jetstream.link.connect import Connection
from tests.cluster.conftest import until


class Hermit(Agent):
    """Hears nothing any more when it is told so."""

    grace_s = 1.0

    @topic("hermit.pid")
    async def pid(self) -> int:
        """Tell the process id."""
        return os.getpid()

    @topic("hermit.retire", run_timeout_s=300)
    async def retire(self, who: int, ctx: Context) -> int:
        """The process `who` goes deaf over this and never ends it; any other ends it at once."""
        if os.getpid() == who:
            _deafen(ctx._caller.ports.bus._connection)
            await asyncio.sleep(300)
        return os.getpid()


def _deafen(connection: Connection) -> None:
    """Throw away all that comes, and let nobody do anything about it."""

    async def nothing(_: object) -> None:
        return

    connection.client._ps.parse = nothing
    connection.client._process_op_err = nothing
    connection._watching.cancel()


@pytest.mark.slow
async def test_a_replica_that_stays_deaf_is_replaced_and_its_tasks_are_done(squad: Squad) -> None:
    await squad.deploy(Hermit)
    victim = (await squad.ask("hermit.pid")).unwrap()
    # By the health check, which fails for the third time after `deaf_after_s` and three seconds; not by a lease,
    # which it goes on to extend: it hears nothing, but can speak.
    outcome = await squad.ask("hermit.retire", {"who": victim}, within_s=90)
    assert outcome.ok, outcome
    assert outcome.unwrap() != victim
    assert outcome.attempt == 2
    assert (await squad.ask("hermit.pid")).unwrap() == outcome.unwrap()

    async def gone() -> bool:
        try:
            os.kill(victim, 0)
        except ProcessLookupError:
            return True
        return False

    await until(gone)

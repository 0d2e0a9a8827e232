"""What an ask costs beside many mailboxes and many tasks that wait, against one on a server that has neither.

`python -m benchmarks.crowd`. Rounds of both servers take turns, and only their ratios count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks import machine
from benchmarks.per_ask import Cost, Teller, declare, serve_teller
from benchmarks.processes import TEXT, workers
from benchmarks.targets import Target, verdict
from squadron import Settings
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity

#: Asks of a round.
ASKS = 2_000
#: How many wait, and how many mailboxes there are, step by step.
WAITING, MAILBOXES = (100_000, 1_000_000), (100, 1_000)
#: Target: the CPU of an ask, over that on the other server. "Flat" is what a round can't tell from 1.
MOST_TIMES = 1.1
#: What is put or declared at once.
PUT_AT_ONCE, DECLARED_AT_ONCE = 500, 4


@dataclass
class Side:
    """One server with two replicas that answer, and a client of theirs."""

    place: Wiring
    replicas: list[int]
    server: int

    @classmethod
    async def open(cls, home: str, stack: AsyncExitStack) -> Self:
        """Start all of it; it ends with the stack."""
        settings = Settings.load({}, home=Path(home), log_level="ERROR")
        stack.callback(embedded.stop, settings.home)
        place = await Wiring.open(settings, AgentIdentity(id="bench"), create=True)
        stack.push_async_callback(place.aclose)
        await declare(place, Teller)
        replicas = await stack.enter_async_context(workers(serve_teller, settings, as_on_ray=True))
        found = embedded.find(settings.home)
        assert found is not None
        return cls(place, replicas, found.pid)

    async def _ask(self) -> None:
        (await self.place.caller.ask("bench.tell", {"text": TEXT})).unwrap()

    async def cost(self) -> tuple[float, float]:
        """CPU of an ask in µs, in all and of the server."""
        cost = Cost()
        await cost.measure(self._ask, ASKS, self.replicas, self.server)
        (client,), (replicas,), (server,) = cost.client_us, cost.workers_us, cost.server_us
        return client + replicas + server, server

    async def wait(self, first: int, last: int) -> None:
        """Have tasks wait for an agent that has no replica."""
        queue = self.place.ports.queue
        await queue.declare(Mailbox("full", ("full.do",)))
        subject = self.place.ports.subjects.task("full.do")
        for number in range(first, last, PUT_AT_ONCE):
            ids = range(number, min(last, number + PUT_AT_ONCE))
            await asyncio.gather(*(queue.put(subject, TEXT.encode(), msg_id=str(each)) for each in ids))

    async def declare(self, first: int, last: int) -> None:
        """Have mailboxes of agents that have no replica."""
        number = first
        while number < last:
            ids = range(number, min(last, number + DECLARED_AT_ONCE))
            boxes = (Mailbox(f"other-{each}", (f"other{each}.do",)) for each in ids)
            try:
                await asyncio.gather(*(self.place.ports.queue.declare(each) for each in boxes))
            except BusUnavailableError:
                # A server that makes many consumers takes its time; again is safe.
                continue
            number = ids.stop


async def _compare(what: str, bare: Side, full: Side, rounds: int) -> Target:
    times, server = [], []
    for number in range(rounds + 1):
        # The first only warms up; then one or the other begins.
        sides = (bare, full) if number % 2 else (full, bare)
        costs = {id(side): await side.cost() for side in sides}
        (all_bare, server_bare), (all_full, server_full) = costs[id(bare)], costs[id(full)]
        if number:
            times.append(all_full / all_bare)
            server.append(server_full / server_bare)
    print(f"{what}: the server takes {statistics.median(server):.1f} times as much")
    return Target(f"CPU of an ask, {what}, over one beside none", times, MOST_TIMES, at_most=True)


async def _measure(rounds: int) -> list[Target]:
    targets = []
    async with AsyncExitStack() as stack:
        homes = [stack.enter_context(tempfile.TemporaryDirectory(prefix="sq-bench-")) for _ in range(2)]
        bare, full = [await Side.open(home, stack) for home in homes]
        for before, count in itertools.pairwise((0, *WAITING)):
            await full.wait(before, count)
            targets.append(await _compare(f"{count:,} tasks wait elsewhere", bare, full, rounds))
        for before, count in itertools.pairwise((0, *MAILBOXES)):
            await full.declare(before, count)
            targets.append(await _compare(f"{count:,} mailboxes, and those", bare, full, rounds))
    return targets


def main() -> int:
    """Run this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    configure_logs("ERROR")
    arguments, before = parser.parse_args(), machine.busy_percent()
    targets = asyncio.run(_measure(arguments.rounds))
    print(machine.business(before), *targets, sep="\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main())

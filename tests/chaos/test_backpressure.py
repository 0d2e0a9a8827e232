"""A burst at a slow agent: it waits in the mailbox, not in the replica."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import psutil
import pytest

from squadron import Settings, Squad
from squadron.runtime.asking.handle import Handle
from tests.chaos.ledger import read
from tests.chaos.processes import replica_pids
from tests.chaos.worker import Clerk, Team

#: Submits under way at once.
WINDOW = 500
#: How much a replica may grow, in bytes, whatever waits for it: imports on first use, fragmentation.
MOST_GROWTH_BYTES = 40_000_000
#: How long one task keeps a slot of the slow agent, in seconds.
SLOW_S = 1.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tasks", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_a_burst_at_a_slow_agent_loses_nothing_and_stays_out_of_its_memory(
    tasks: int, settings: Settings, joined: Squad, tmp_path: Path
):
    await joined.deploy(Clerk)
    replica = psutil.Process((await replica_pids(joined, "clerk"))[0])
    ledger = str(tmp_path / "handlers")
    assert (await joined.ask("desk.square", {"number": 1, "work_s": 0.01, "ledger": ledger})).ok
    before = replica.memory_info().rss
    window, most = asyncio.Semaphore(WINDOW), 0

    async def send(number: int) -> Handle:
        nonlocal most
        async with window:
            if number % WINDOW == 0:
                most = max(most, replica.memory_info().rss)
            # Those that the slow agent gets are slow; how many that are is its own matter.
            work_s = SLOW_S if number < tasks // 10 else 0.0
            content = {"number": number, "work_s": work_s, "ledger": ledger}
            return await joined.submit("desk.square", content, within_s=500)

    handles = await asyncio.gather(*map(send, range(tasks)))
    status = next(each for each in (await joined.status())["agents"] if each["agent"] == "clerk")
    # What runs, what is asked for just before a slot is free, and outcomes that are being stored.
    assert status["taken"] <= 3 * Clerk.slots
    most = max(most, replica.memory_info().rss)
    assert most - before < MOST_GROWTH_BYTES
    await joined.deploy(Team)
    ended = Counter([(await handle.outcome()).kind for handle in handles])
    assert ended == {"result": tasks}
    lines = read(Path(ledger))
    starts = [line for line in lines if line["what"] == "start"]
    assert len({line["task"] for line in starts}) == tasks + 1
    assert len({(line["task"], line["attempt"]) for line in starts}) == len(starts)
    # One whose lease lapsed, as on a machine that stalls, begins anew; none does that has ended.
    ended_at = {line["task"]: line["at"] for line in reversed(lines) if line["what"] == "end"}
    assert not [line for line in starts if line["at"] > ended_at[line["task"]]]
    await joined.undeploy("clerk")

"""Workers, the archivist and the server are killed while tasks are under way: the trail's account is exact."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.stream_configs import StreamNames, ask_for
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.outcome import Outcome
from tests.conftest import kill
from tests.contract.audit_worker import Death, persist
from tests.contract.audit_worker import main as archive
from tests.contract.audit_worlds import audited, entries
from tests.contract.conftest import at_last
from tests.contract.test_archivist import PROCESSES

TASKS, WORKERS, KILLS = 300, 2, 9


class Clicker(Agent):
    """Takes a moment for each."""

    name = "counter"

    @topic("chaos.count")
    async def count(self, n: int) -> int:
        await asyncio.sleep(0.02)
        return n


def work(settings: Settings) -> None:
    """A replica without Ray, until it is killed."""
    persist(lambda: _work(settings))


async def _work(settings: Settings) -> None:
    wiring = await Wiring.open(settings, AgentIdentity(id=f"counter-{os.getpid()}", type="counter"))
    spec = AgentSpec.of(Clicker)
    turns = Turns(spec.name, spec.handlers(Clicker()), wiring.caller)
    mailbox = Mailbox(spec.name, ("chaos.count",), settings.lease_s)
    pump = Pump(wiring.ports.queue, mailbox, turns.run, slots=8)
    await turns.start()
    await pump.start()
    await asyncio.Event().wait()


class Cast:
    """The processes that can be killed; whoever was is started anew."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mains: list[tuple[Any, tuple[Any, ...]]] = [
            *[(work, (settings,))] * WORKERS,
            (archive, (settings, Death("never"))),
        ]
        self._running = [self._start(n) for n in range(len(self._mains))]

    def _start(self, n: int) -> Any:
        main, args = self._mains[n]
        process = PROCESSES.Process(target=main, args=args)
        process.start()
        return process

    def kill(self, n: int) -> None:
        """One of them, or, beyond their number, the server."""
        if n >= len(self._running):
            server = embedded.find(self._settings.home)
            assert server is not None
            kill(server.pid)
            embedded.ensure(self._settings.home)
            return
        self._running[n].kill()
        self._running[n].join()
        self._running[n] = self._start(n)

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.join()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_missing_from_the_trail_but_its_gaps_whoever_is_killed(tmp_path: Path, seed: int) -> None:
    settings, dice = Settings(home=tmp_path / "home", env="chaos", lease_s=1.0), random.Random(seed)
    wiring = await Wiring.open(settings, AgentIdentity(id="caller", type="client"), create=True)
    cast = None
    try:
        trail = await audited(wiring, "full")
        spec = AgentSpec.of(Clicker)
        await wiring.ports.queue.declare(Mailbox(spec.name, ("chaos.count",), settings.lease_s))
        await wiring.registry.advertise(spec.card())
        wiring.registry.heartbeat_s = 200.0
        await wiring.registry.renew(spec.name, "stand-in")
        cast = Cast(settings)
        asking = asyncio.create_task(_ask_all(wiring))
        # One of each at least, the rest by the dice.
        for n in dice.sample(range(WORKERS + 2), WORKERS + 2) + dice.choices(range(WORKERS + 2), k=KILLS - 4):
            await asyncio.sleep(dice.uniform(0.1, 0.8))
            await asyncio.to_thread(cast.kill, n)
        outcomes = await asking
        kinds = Counter(each.kind for each in outcomes)
        assert kinds["result"] > TASKS // 2, kinds
        call = f"STREAM.INFO.{StreamNames('chaos').tasks}"
        # The server may have been killed last, when all had been answered.
        last = (await at_last(lambda: ask_for(wiring.connection, call)))["state"]["last_seq"]
        await _recorded_up_to(trail, last)
        tasks, gaps = await entries(trail, kind="task"), await entries(trail, kind="gap")
        seen = Counter(each["seq"] for each in tasks)
        missing = {
            seq for gap in gaps if gap["stream"].endswith("-tasks") for seq in range(gap["seq"], gap["until"] + 1)
        }
        # Each number of the queue once: recorded, or known to be missing.
        assert max(seen.values()) == 1
        assert set(seen).isdisjoint(missing)
        assert set(seen) | missing == set(range(1, last + 1))
        # Each outcome that was heard is there, and no stored entry twice.
        results = await entries(trail, kind="result")
        assert {each.task_id for each in outcomes if each.kind == "result"} <= {each["task"] for each in results}
        assert max(Counter(each["seq"] for each in results).values()) == 1
        found = await trail.verify()
        assert found.ok, found
        # Where the two names of a lost task meet: an outcome tells of it.
        assert len(missing) <= TASKS // 10
    finally:
        if cast is not None:
            cast.stop()
        await wiring.aclose()
        embedded.stop(settings.home)


async def _ask_all(wiring: Wiring) -> list[Outcome]:
    gate = asyncio.Semaphore(32)

    async def ask(n: int) -> Outcome:
        async with gate:
            return await wiring.caller.ask("chaos.count", {"n": n}, AskOptions(within_s=60.0, task_id=f"n-{n}"))

    return await asyncio.gather(*map(ask, range(TASKS)))


async def _recorded_up_to(trail: Any, last: int) -> None:
    """Wait until the archivist has come to the queue's last number, and nothing more comes."""
    async with asyncio.timeout(60.0):
        while True:
            with contextlib.suppress(Exception):
                tasks = await entries(trail, kind="task")
                if tasks and tasks[-1]["seq"] >= last and not (await trail.status())["waiting"]:
                    return
            await asyncio.sleep(0.5)

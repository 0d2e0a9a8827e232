"""The archivist can die at any point: whoever goes on records nothing twice, and leaves nothing out unsaid."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from squadron.bridge.audit.history import AuditTrail, behind
from squadron.bridge.jetstream.audit_streams import intake_stream
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.stream_configs import StreamNames, ask_for
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.wire.envelope import AgentIdentity
from tests.conftest import kill
from tests.contract.audit_worker import Death, Point, main
from tests.contract.audit_worlds import archiving, audited, entries, recorded
from tests.contract.conftest import ON_NATS, World, until

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.contract.audit_worker"])
POINTS: tuple[Point, ...] = get_args(Point)[1:]


@contextlib.contextmanager
def dying(settings: Settings, death: Death) -> Iterator[Any]:
    """An archivist that dies there, or at the end."""
    process = PROCESSES.Process(target=main, args=(settings, death))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


async def put(wiring: Wiring, *numbers: int) -> None:
    """Store a task and an outcome for each number."""
    for n in numbers:
        data = wiring.ports.pack("task", {"content": n}, id=f"task-{n}")

        async def is_put(data: bytes = data, id: str = f"task-{n}") -> bool:
            await wiring.ports.queue.put(wiring.ports.subjects.task("desk.count"), data, msg_id=id)
            return True

        # Under its id it is stored once, over an absence of the server, too.
        await until(is_put)
        outcome = wiring.ports.pack("result", {"content": {"outcome": "result"}}, correlation_id=f"task-{n}")
        await wiring.ports.lite.append(
            wiring.ports.subjects.lite("desk", f"task-{n}"), outcome, msg_id=f"{n}.outcome", ttl_s=3600
        )


async def check(trail: AuditTrail, count: int) -> None:
    """All of it is there once, in order, and proven; and no gap is told of."""
    tasks, results = await recorded(trail, count, kind="task"), await recorded(trail, count, kind="result")
    assert [each["id"] for each in tasks] == [f"task-{n}" for n in range(count)]
    assert [each["task"] for each in results] == [f"task-{n}" for n in range(count)]
    assert await entries(trail, kind="gap") == []
    found = await trail.verify()
    assert found.ok, found


@ON_NATS
@pytest.mark.parametrize("point", POINTS)
async def test_whoever_goes_on_after_a_kill_records_nothing_twice_and_leaves_nothing_out(
    world: World, point: Point
) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    with dying(wiring.settings, Death(point)) as process:
        numbers = iter(range(1_000))
        count = 0
        while process.is_alive():
            await put(wiring, next(numbers))
            count += 1
            await asyncio.sleep(0.02)
    assert process.exitcode == -signal.SIGKILL
    await put(wiring, *range(count, count + 5))
    async with archiving(wiring.settings):
        await check(trail, count + 5)


@ON_NATS
async def test_of_two_archivists_one_works_and_the_other_takes_over_when_it_dies(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    with dying(wiring.settings, Death("never")) as first:
        await put(wiring, *range(5))
        await recorded(trail, 5, kind="task")
        async with archiving(wiring.settings) as second:
            await put(wiring, *range(5, 10))
            await recorded(trail, 10, kind="result")
            assert second.count is None
            first.kill()
            await put(wiring, *range(10, 15))
            await check(trail, 15)
            assert second.count is not None


@ON_NATS
async def test_two_archivists_that_begin_at_once_make_one_chain(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings), archiving(wiring.settings), archiving(wiring.settings):
        await put(wiring, *range(50))
        await check(trail, 50)


@ON_NATS
async def test_how_far_the_trail_is_behind_and_its_gaps_are_known_to_whoever_looks(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    names = StreamNames(wiring.settings.env)
    assert await behind(wiring.connection, names) is None
    trail = await audited(wiring, "full")
    await put(wiring, *range(5))

    async def all_came() -> bool:
        return (await behind(wiring.connection, names) or (0, 0))[0] >= 10

    async def is_taken_up() -> bool:
        return (await behind(wiring.connection, names) or (1, 0))[0] == 0

    # Nobody records yet.
    await until(all_came)
    async with archiving(wiring.settings):
        await recorded(trail, 5, kind="task")
        await until(is_taken_up)
        assert await behind(wiring.connection, names) == (0, 0)
    await put(wiring, *range(5, 10))
    await until(all_came)
    # What the intake loses before it is recorded is a gap, and stays one for those who record next.
    intake = intake_stream(names)
    last = (await ask_for(wiring.connection, f"STREAM.INFO.{intake}"))["state"]["last_seq"]
    await ask_for(wiring.connection, f"STREAM.MSG.DELETE.{intake}", {"seq": last - 1})
    for _ in range(2):
        async with archiving(wiring.settings):
            await recorded(trail, 1, kind="gap")
            await until(is_taken_up)
    assert await behind(wiring.connection, names) == (0, len(await entries(trail, kind="gap")))


async def test_the_trail_goes_on_over_a_killed_server_and_what_is_lost_is_a_gap(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", env="kill", heartbeat_s=0.5)
    wiring = await Wiring.open(settings, AgentIdentity(id="caller", type="test"), create=True)
    try:
        trail = await audited(wiring, "full")
        async with archiving(settings):
            await put(wiring, *range(20))
            server = embedded.find(settings.home)
            assert server is not None
            kill(server.pid)
            embedded.ensure(settings.home)
            await put(wiring, *range(20, 40))
            # What a source missed comes when the server attaches it again, within ten seconds.
            results = await recorded(trail, 40, kind="result")
            tasks = await entries(trail, kind="task")
            gaps = await entries(trail, kind="gap")
            assert [each["task"] for each in results] == [f"task-{n}" for n in range(40)]
            missing = sum(each["until"] - each["seq"] + 1 for each in gaps if each["stream"].endswith("tasks"))
            assert len({each["id"] for each in tasks}) == len(tasks) == 40 - missing
            assert (await trail.verify()).ok
    finally:
        await wiring.aclose()
        embedded.stop(settings.home)

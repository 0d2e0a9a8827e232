"""Exclusive reading: after a takeover the old reader is handed nothing more, whatever it slept through."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from squadron import Settings
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import BusUnavailableError, FencedError
from squadron.runtime.lite import exclusive
from squadron.runtime.lite.exclusive import KEPT_STEPS, ExclusiveCursor, cursor_key
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.wire.envelope import AgentIdentity
from tests.conftest import freeze
from tests.contract.conftest import ON_NATS, SOON_S, Peer, World, until


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover does not take so long; for readers that are all in this process."""
    monkeypatch.setattr(exclusive, "FRESH_S", 0.2)
    monkeypatch.setattr(exclusive, "TAKEOVER_S", 0.25)


QUICK = pytest.mark.usefixtures("quick")


@pytest.fixture
def key(peer: Peer) -> str:
    return peer.subjects.lite("owner", "a")


@pytest.fixture
def place(peer: Peer, key: str) -> str:
    return cursor_key(peer.subjects, key, "reader")


async def _fill(lite: Journal, key: str, count: int) -> list[int]:
    return [await lite.append(key, b"%d" % i) for i in range(count)]


def _reading(lite: Journal, key: str, cursor: ExclusiveCursor) -> AsyncGenerator[Entry, None]:
    return cursor.guard(lite.read(key, from_seq=cursor.seq or 1))


async def test_a_reader_that_ended_is_followed_by_one_that_goes_on(peer: Peer, key: str, place: str) -> None:
    seqs = await _fill(peer.lite, key, 4)
    first = await ExclusiveCursor.take(peer.lite, place)
    reading = _reading(peer.lite, key, first)
    assert [(await anext(reading)).seq for _ in range(2)] == seqs[:2]
    await first.release(done=True)

    second = await ExclusiveCursor.take(peer.lite, place)
    read = [entry.seq async for entry in _reading(peer.lite, key, second)]

    assert read == seqs[2:]
    assert (first.epoch, second.epoch) == (1, 2)


@QUICK
async def test_the_message_that_was_handed_out_last_may_come_twice(peer: Peer, key: str, place: str) -> None:
    seqs = await _fill(peer.lite, key, 4)
    reading = _reading(peer.lite, key, await ExclusiveCursor.take(peer.lite, place))
    assert [(await anext(reading)).seq for _ in range(2)] == seqs[:2]

    second = await ExclusiveCursor.take(peer.lite, place)

    assert [entry.seq async for entry in _reading(peer.lite, key, second)] == seqs[1:]


@QUICK
async def test_after_a_takeover_the_old_reader_is_handed_nothing_more(world: World, key: str, place: str) -> None:
    one, other = await world.join("one"), await world.join("other")
    await _fill(one.lite, key, 4)
    old = await ExclusiveCursor.take(one.lite, place)
    reading = _reading(one.lite, key, old)
    await anext(reading)

    new = await ExclusiveCursor.take(other.lite, place)

    with pytest.raises(FencedError, match="taken over"):
        await anext(reading)
    with pytest.raises(FencedError):
        await old.release(done=True)
    assert len([entry async for entry in _reading(other.lite, key, new)]) == 4


async def test_readers_of_other_names_and_topics_are_not_disturbed(peer: Peer, key: str, place: str) -> None:
    await _fill(peer.lite, key, 2)
    one = _reading(peer.lite, key, await ExclusiveCursor.take(peer.lite, place))
    await anext(one)

    for other in (
        cursor_key(peer.subjects, key, "other"),
        cursor_key(peer.subjects, peer.subjects.lite("owner", "b"), "reader"),
    ):
        assert (await ExclusiveCursor.take(peer.lite, other)).seq == 0

    await anext(one)


@QUICK
async def test_of_many_that_take_over_at_once_one_goes_on(peer: Peer, place: str) -> None:
    cursors = await asyncio.gather(*(ExclusiveCursor.take(peer.lite, place) for _ in range(8)))
    ended = await asyncio.gather(*(cursor.step(1) for cursor in cursors), return_exceptions=True)

    assert len({cursor.epoch for cursor in cursors}) == 8
    assert [type(end) for end in ended].count(FencedError) == 7
    newest = max(cursors, key=lambda cursor: cursor.epoch)
    assert ended[cursors.index(newest)] is None


async def test_steps_leave_little_behind(peer: Peer, place: str) -> None:
    cursor = await ExclusiveCursor.take(peer.lite, place)
    for seq in range(1, 2 * KEPT_STEPS + 2):
        await cursor.step(seq)
    assert len([entry async for entry in peer.lite.read(place)]) <= KEPT_STEPS

    await cursor.release(done=True)

    assert len([entry async for entry in peer.lite.read(place)]) == 1
    assert (await ExclusiveCursor.take(peer.lite, place)).seq == 2 * KEPT_STEPS + 2


class Late:
    """A journal whose acknowledgements come late, or get lost."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.released: asyncio.Event | None = None
        self.stored = asyncio.Event()
        self.losing = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def append(self, key: str, data: bytes, **options: Any) -> int:
        seq = await self._journal.append(key, data, **options)
        self.stored.set()
        if self.released is not None:
            await self.released.wait()
        if self.losing:
            self.losing -= 1
            raise BusUnavailableError("the acknowledgement was lost")
        return seq


@QUICK
async def test_a_permission_that_was_slept_through_counts_no_more(peer: Peer, place: str) -> None:
    """The server permitted it, but before the answer was read another reader took over."""
    late = Late(peer.lite)
    old = await ExclusiveCursor.take(late, place)  # type: ignore[arg-type]
    late.released = asyncio.Event()
    late.stored.clear()
    stepping = asyncio.create_task(old.step(7))
    await late.stored.wait()
    new = await ExclusiveCursor.take(peer.lite, place)

    late.released.set()

    with pytest.raises(FencedError):
        await asyncio.wait_for(stepping, SOON_S)
    assert new.seq == 7
    await new.step(7)


@QUICK
async def test_a_lost_acknowledgement_is_not_taken_for_another_reader(peer: Peer, place: str) -> None:
    late = Late(peer.lite)
    cursor = await ExclusiveCursor.take(late, place)  # type: ignore[arg-type]
    late.losing = 1

    await cursor.step(7)
    await cursor.step(8)

    await cursor.release(done=False)
    assert (await ExclusiveCursor.take(peer.lite, place)).seq == 8


async def read_in_a_process(home: str, environment: str) -> None:
    """Runs in a process of its own: reads exclusively, slowly, with all messages at hand; tells what it gets."""
    settings = Settings(home=Path(home), env=environment)
    wiring = await Wiring.open(settings, AgentIdentity(id="old", type="test"))
    key = wiring.ports.subjects.lite("owner", "a")
    buffered = [entry async for entry in wiring.ports.lite.read(key)]
    asked_at = 0.0

    async def at_hand() -> AsyncIterator[Entry]:
        for entry in buffered:
            if entry is buffered[-1]:
                # Whoever is to stop it may be late.
                os.kill(os.getpid(), signal.SIGSTOP)
            yield entry

    def now() -> float:
        nonlocal asked_at
        asked_at = time.monotonic()
        return asked_at

    # The last that asks, before a message is handed out, is who looks whether its permission still counts.
    asyncio.get_running_loop().time = now  # type: ignore[method-assign]
    cursor = await ExclusiveCursor.take(wiring.ports.lite, cursor_key(wiring.ports.subjects, key, "reader"))
    try:
        async for entry in cursor.guard(at_hand()):
            late = b" late" * (time.monotonic() - asked_at > exclusive.FRESH_S)
            os.write(1, entry.data + late + b"\n")
            await asyncio.sleep(0.002)
    except FencedError:
        os.write(1, b"fenced\n")
    await wiring.aclose()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


@ON_NATS
@pytest.mark.parametrize(
    "handed_out_before", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (20, 21, 40))]
)
async def test_a_reader_that_was_stopped_and_goes_on_is_fenced(
    peer: Peer, settings: Settings, key: str, place: str, handed_out_before: int, tmp_path: Path
) -> None:
    count, said = 200, tmp_path / "said"
    await _fill(peer.lite, key, count)
    code = "import asyncio, sys; from tests.contract.test_exclusive import *; "
    code += f"asyncio.run(read_in_a_process({str(settings.home)!r}, {settings.env!r}))"
    with said.open("wb") as file:
        old = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=file)

    async def handed_out_enough() -> bool:
        return said.read_bytes().count(b"\n") >= handed_out_before

    async def stopped() -> bool:
        return _is_stopped(old.pid)

    await until(handed_out_enough)
    freeze(old.pid)
    await until(stopped)
    before = said.read_bytes()

    new = await ExclusiveCursor.take(peer.lite, place)
    read = [int(entry.data) async for entry in _reading(peer.lite, key, new)]
    os.kill(old.pid, signal.SIGCONT)
    await asyncio.wait_for(old.wait(), SOON_S)
    after = said.read_bytes().removeprefix(before).splitlines()

    # What it had been handed already when it was stopped it may tell late: nothing can hinder that.
    assert [line for line in after if not line.endswith(b" late")] == [b"fenced"]
    handed_out = [int(line.removesuffix(b" late")) for line in before.splitlines()]
    assert handed_out == list(range(len(handed_out)))
    # Where the old one was: at the last message it was handed, or just before the next one.
    assert read in (list(range(len(handed_out) - 1, count)), list(range(len(handed_out), count)))


async def leave_open(home: str, environment: str, exclusive: str | None, *, held: bool) -> None:
    """Runs in a process of its own: reads one message, and leaves the reader open."""
    settings = Settings(home=Path(home), env=environment)
    wiring = await Wiring.open(settings, AgentIdentity(id="untidy", type="test"))
    topic = wiring.caller.lite_topics.topic("lk", "me")
    await topic.publish(1)
    reader = topic.read(exclusive=exclusive)
    os.write(1, b"%d\n" % (await anext(reader)).content)
    await wiring.aclose()
    if held:
        _left_open.append(reader)


_left_open: list[Any] = []


@ON_NATS
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("exclusive", ["gw", None])
async def test_a_reader_that_is_left_open_prints_nothing_at_exit(
    peer: Peer, settings: Settings, exclusive: str | None, held: bool
) -> None:
    program = f"""
import asyncio
from tests.contract.test_exclusive import leave_open
asyncio.run(leave_open({str(settings.home)!r}, {settings.env!r}, {exclusive!r}, held={held}))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )

    async with asyncio.timeout(3 * SOON_S):
        out, err = await process.communicate()

    assert (out, err, process.returncode) == (b"1\n", b"", 0)

"""The one writer of a run: of two that end it at once the first does, and who is cut off has stored it or not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest

from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.entries import Epoch, Finished, Started
from squadron.actors.runs.log import RunLog, entries_of, read
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.bridge.memory import MemoryServer
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError, Retry
from squadron.runtime.ports.journal import Journal
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.limits import Budget, Deadline
from squadron.testing import turned_time

RUN = "run-1"
STARTED = Started(at=0.0, agent="a", topic="a.b", task="t", title="x", opening=(), models=("m",))


class LateJournal:
    """A journal in memory; what it stores is acknowledged after `acks_s` seconds, or never if that is None."""

    def __init__(self, inner: Journal) -> None:
        self.inner = inner
        self.acks_s: float | None = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def append(self, key: str, *args: Any, **options: Any) -> int:
        seq = await self.inner.append(key, *args, **options)
        if self.acks_s is None:
            raise BusUnavailableError("no acknowledgement")
        await asyncio.sleep(self.acks_s)
        return seq


class Place:
    """A recorder on a journal whose acknowledgements are late."""

    def __init__(self) -> None:
        ports = MemoryServer("test").place(AgentIdentity(id="one", type="test"), Settings(env="test")).ports
        self.journal = LateJournal(ports.runs)
        self.ports = replace(ports, runs=cast("Journal", self.journal))
        self.state, books = RunState(RUN, Toolbox()), RunBooks(RUN, "t", Ledger(Budget()))
        log = RunLog(self.ports, RUN, Deadline.after(60, ports.clock))
        self.recorder = Recorder(log, self.state, books, None, lambda _: None)

    async def kinds(self) -> list[str]:
        """What is stored."""
        messages = read(self.ports, self.ports.subjects.run(RUN))
        return [entry.kind async for _, message in messages for entry in entries_of(message)]


def epoch(number: int) -> Epoch:
    return Epoch(
        at=0.0, number=number, task="t", redriven=0, delivered=number, replica="r", deadline_at=60.0, max_rounds=3
    )


async def test_a_run_has_one_end_whoever_ends_it_at_once() -> None:
    place = Place()
    recorder, state = place.recorder, place.state
    await recorder.replay()
    await recorder.store(epoch(1), STARTED)

    # The loop as its model has finished, and a tool that comes to nothing.
    ends = [Finished(at=1.0, stopped="finished", value=1), Finished(at=1.0, stopped="failed", error="no")]
    await asyncio.gather(*(recorder.store(end) for end in ends))
    assert state.finished == ends[0]

    # Whoever has it go on ends it anew.
    await recorder.store(epoch(2))
    await recorder.store(ends[1])
    assert await place.kinds() == ["epoch", "started", "finished", "epoch", "finished"]
    assert state.finished == ends[1]


async def cut(storing: Coroutine[Any, Any, None], after_s: float) -> None:
    """Cancel it in the middle."""
    task = asyncio.create_task(storing)
    await asyncio.sleep(after_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_cut_off_while_it_is_stored_is_taken_in_and_the_run_goes_on() -> None:
    # As a person's answer whose question the model takes back in the same moment.
    with turned_time():
        place = Place()
        await place.recorder.replay()
        await place.recorder.store(epoch(1), STARTED)
        place.journal.acks_s = 1.0
        end = Finished(at=1.0, stopped="finished", value=1)

        await cut(place.recorder.store(end), 0.5)
        assert place.state.finished == end
        # It does not take itself for superseded.
        await place.recorder.store(epoch(2))
        assert await place.kinds() == ["epoch", "started", "finished", "epoch"]


async def test_what_is_cut_off_while_the_server_is_away_and_is_stored_is_known_as_ours() -> None:
    with turned_time():
        place = Place()
        await place.recorder.replay()
        await place.recorder.store(epoch(1), STARTED)
        place.journal.acks_s = None
        await cut(place.recorder.store(Finished(at=1.0, stopped="finished", value=1)), 0.1)
        place.journal.acks_s = 0.0

        # Nobody else goes on with it; whoever comes next finds it in the log.
        with pytest.raises(Retry, match="cut off"):
            await place.recorder.store(Finished(at=2.0, stopped="time", value=2))
        assert await place.kinds() == ["epoch", "started", "finished"]


async def test_what_is_cut_off_and_was_not_stored_has_no_effect() -> None:
    with turned_time():
        place = Place()
        await place.recorder.replay()
        await place.recorder.store(epoch(1), STARTED)
        async with place.recorder.lock:
            await cut(place.recorder.store(Finished(at=1.0, stopped="finished", value=1)), 0.1)
        await place.recorder.store(end := Finished(at=2.0, stopped="time", value=2))
        assert place.state.finished == end
        assert await place.kinds() == ["epoch", "started", "finished"]

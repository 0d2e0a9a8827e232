"""The one writer of a run: of two that end it at once the first does."""

from __future__ import annotations

import asyncio

from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.entries import Epoch, Finished, Started
from squadron.actors.runs.log import RunLog, entries_of, read
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.bridge.memory import MemoryServer
from squadron.config import Settings
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.limits import Budget, Deadline

RUN = "run-1"


def epoch(number: int) -> Epoch:
    return Epoch(
        at=0.0, number=number, task="t", redriven=0, delivered=number, replica="r", deadline_at=60.0, max_rounds=3
    )


async def test_a_run_has_one_end_whoever_ends_it_at_once() -> None:
    ports = MemoryServer("test").place(AgentIdentity(id="one", type="test"), Settings(env="test")).ports
    state, books = RunState(RUN, Toolbox()), RunBooks(RUN, "t", Ledger(Budget()))
    recorder = Recorder(RunLog(ports, RUN, Deadline.after(60, ports.clock)), state, books, None, lambda _: None)
    await recorder.replay()
    started = Started(at=0.0, agent="a", topic="a.b", task="t", title="x", opening=(), models=("m",))
    await recorder.store(epoch(1), started)

    # The loop as its model has finished, and a tool that comes to nothing.
    ends = [Finished(at=1.0, stopped="finished", value=1), Finished(at=1.0, stopped="failed", error="no")]
    await asyncio.gather(*(recorder.store(end) for end in ends))
    assert state.finished == ends[0]

    # Whoever has it go on ends it anew.
    await recorder.store(epoch(2))
    await recorder.store(ends[1])
    stored = [entry async for _, message in read(ports, ports.subjects.run(RUN)) for entry in entries_of(message)]
    assert [entry.kind for entry in stored] == ["epoch", "started", "finished", "epoch", "finished"]
    assert state.finished == ends[1]

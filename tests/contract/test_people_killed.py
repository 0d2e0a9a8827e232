"""Questions outlive whoever asks and whoever answers: real processes, killed by SIGKILL, on a real nats-server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from squadron.config import Settings
from squadron.runtime.asking.answering import People
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.asking.people import put_question
from squadron.runtime.asking.question_records import read_questions
from squadron.runtime.running.parking import PARKED
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.question import Question
from tests.contract.conftest import ON_NATS, Peer, until
from tests.docs import ROOT, blocks

#: Python starts in under a second, and on a busy machine in several.
WITHIN_S = 40.0


class Process:
    """One of them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        """The next thing that it tells."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            while line := (await self._process.stdout.readline()).decode():
                if line.startswith("> "):
                    return line[2:].strip()
        raise AssertionError("it has ended")

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class BareProcess(Process):
    """A program of the docs, which tells only what it is to tell."""

    async def line(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            return (await self._process.stdout.readline()).decode().strip()


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(settings: Settings) -> AsyncIterator[Start]:
    """Start a replica, or a person with answers."""
    started: list[Process] = []

    async def begin(*arguments: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.contract.people_process", *arguments),
            cwd=ROOT,
            env=os.environ | settings.environ(),
            stdout=asyncio.subprocess.PIPE,
        )
        started.append(Process(process))
        return started[-1]

    yield begin
    for each in started:
        await each.kill()


async def _until_waiting(peer: Peer, kind: str) -> str:
    found: list[str] = []

    async def is_there() -> bool:
        waiting = await People(peer.ports, peer.caller.lite_topics).questions()
        found[:] = [each.query_id for each in waiting if each.question.kind == kind]
        return bool(found)

    await until(is_there, WITHIN_S)
    return found[0]


@ON_NATS
async def test_asker_and_answerer_are_killed_and_each_question_is_asked_once(peer: Peer, start: Start) -> None:
    asker = await start("replica")
    assert await asker.line() == "there"
    handle = await peer.caller.submit("kill.buy", None, AskOptions(within_s=300))
    first = await _until_waiting(peer, "question")
    # Sees it, and dies before an answer is given.
    watcher = await start("person", "nobody")
    assert await watcher.line() == "asked"
    await watcher.kill()
    await asker.kill()

    # Nobody is there who asked: it is answered all the same, and the answer waits.
    ana = await start("person", "ana", "M")
    assert [await ana.line(), await ana.line()] == ["asked", "answered"]
    await ana.kill()
    second = await start("replica")
    assert await second.line() == "there"
    approval = await _until_waiting(peer, "approval")
    await second.kill()
    third = await start("replica")
    ben = await start("person", "ben", "yes")
    assert await ben.line() == "asked"
    assert await third.line() == "there"

    outcome = await handle.outcome()
    assert outcome.unwrap() == {"size": "M", "by": "ana", "paid": "accept", "attempt": 3}
    records = await read_questions(peer.ports)
    assert set(records) == {first, approval}
    runs = [
        each.content["attempt"] async for each in peer.caller.lite_topics.topic("runs", "kill").read(live=False)
    ]
    assert runs == [1, 2, 3]


@ON_NATS
async def test_a_parked_task_outlives_replica_and_bridge_and_costs_no_attempt(peer: Peer, start: Start) -> None:
    first, bridge = await start("replica"), await start("bridge")
    assert [await first.line(), await bridge.line()] == ["there", "there"]
    handle = await peer.caller.submit("kill.park", None, AskOptions(within_s=300))
    size = await _until_parked(peer, 1)
    # The note comes first, then the server is told: who dies in between has used its one attempt.
    assert await first.line() == "parked"
    # Nobody is there who ran it, or would wake it, when the answer comes.
    await first.kill()
    await bridge.kill()
    people = People(peer.ports, peer.caller.lite_topics)
    await people.answer(size, "M", by="ana")
    bridge = await start("bridge")
    assert await bridge.line() == "there"
    second = await start("replica")
    assert await second.line() == "there"

    # Parked again, for the approval; now the bridge dies alone, before and after the answer.
    approval = await _until_parked(peer, 2)
    await bridge.kill()
    await people.answer(approval, by="ben")
    again = await start("bridge")
    assert await again.line() == "there"
    outcome = await handle.outcome()
    assert outcome.unwrap() == {"size": "M", "by": "ana", "paid": "accept", "attempt": 1}
    assert set(await read_questions(peer.ports)) == {size, approval}


async def _until_parked(peer: Peer, asked: int) -> str:
    """The question that waits, once so many were asked and the task is parked for the last."""
    found: list[str] = []

    async def is_parked() -> bool:
        records = list((await read_questions(peer.ports)).values())
        notes = [entry.data for entry in await peer.lite.latest(peer.subjects.lite_of(PARKED))]
        found[:] = [each.query_id for each in records if any(each.query_id.encode() in note for note in notes)]
        return len(records) == asked and bool(found)

    await until(is_parked, WITHIN_S)
    return found[0]


@ON_NATS
async def test_the_bare_client_of_the_protocol_page_answers(
    peer: Peer, settings: Settings, tmp_path: Path
) -> None:
    [block] = blocks("python", "answer")
    text = block.text.replace("agents.dev.", f"agents.{settings.env}.")
    (tmp_path / "answer.py").write_text(text.replace("squadron-dev-", f"squadron-{settings.env}-"))
    program = BareProcess(
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(tmp_path / "answer.py")),
            env=os.environ | settings.environ(),
            stdout=asyncio.subprocess.PIPE,
        )
    )
    try:
        assert await program.line() == "listening"
        fields = {"size": {"type": "string", "enum": ["S", "M"]}}
        deadline_ms = Deadline.after(300, peer.clock).at_ms
        schema = {"type": "object", "properties": fields}
        question = Question(message="Which size?", schema=schema, deadline_ms=deadline_ms)
        asked = await put_question(peer.caller, question, "q1", about="run-1")
        reply = await asked.answer()
        assert (reply.action, reply.value, reply.by) == ("accept", "S", "a bare client")
        assert await program.line() == "mine counts"
    finally:
        await program.kill()

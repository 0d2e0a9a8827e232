"""What is known of the attempts at a plain task, while it goes on and after its end: `squadron trace TASK`."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Context, Retry, topic
from squadron.actors.runs.moments import Bar
from squadron.actors.runs.task_trace import lanes_of_task
from squadron.actors.runs.timeline import Lane, spanning
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.earlier import AttemptNote, notes_of
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.wire.spent import Spent
from tests.contract.conftest import ON_NATS, Peer, Serve, World, until
from tests.contract.frail import Frail

SECRET = "sk-abcdefgh12345678"


class Press(Agent):
    """Prints, at times."""

    def __init__(self) -> None:
        self.stuck, self.free = asyncio.Event(), asyncio.Event()

    @topic("press.print", max_attempts=3)
    async def print(self, ctx: Context, failures: int) -> str:
        """Fails so often."""
        ctx.charge(tokens=10 * ctx.attempt, usd=0.001)
        if ctx.attempt <= failures:
            raise Retry(f"jam {ctx.attempt}, with the key {SECRET}", after_s=0.05)
        return "printed"

    @topic("press.hold")
    async def hold(self, ctx: Context) -> str:
        """Stays until it may go on."""
        self.stuck.set()
        await self.free.wait()
        return f"held at attempt {ctx.attempt}"


async def submit(peer: Peer, name: str, content: Any, task_id: str = "mine") -> Any:
    return await peer.caller.submit(name, content, AskOptions.of({"task_id": task_id, "within_s": 60}))


def told(lanes: list[Lane]) -> list[tuple[str, str, list[str], int]]:
    return [(lane.name, lane.outcome, [bar.kind for bar in lane.bars], lane.tokens) for lane in lanes]


def is_one_line_of_time(lanes: list[Lane]) -> bool:
    """Whether the bars follow one another without a gap: what one lane ends with, the next begins with."""
    bars: list[Bar] = [bar for lane in lanes for bar in lane.bars]
    return all(before.ended == pytest.approx(after.began, abs=0.05) for before, after in itertools.pairwise(bars))


async def test_each_attempt_is_told_with_its_waits_and_its_cost(peer: Peer, serve: Serve) -> None:
    await serve(Press(), name="press-1")
    handle = await submit(peer, "press.print", {"failures": 2})
    outcome = await handle.outcome()

    lanes = await lanes_of_task(peer.ports, "mine")

    assert told(lanes) == [
        ("attempt 1", "tried_again", ["wait", "vain"], 10),
        ("attempt 2", "tried_again", ["pause", "vain"], 20),
        ("attempt 3", "result", ["pause", "work"], 30),
    ]
    assert sum(lane.tokens for lane in lanes) == outcome.spent.tokens == 60
    assert sum(lane.usd for lane in lanes) == pytest.approx(outcome.spent.usd) == 0.003
    assert lanes[0].note == "Retry: jam 1, with the key [secret], by press-1"
    assert is_one_line_of_time(lanes)
    text = spanning("task mine", lanes).text(80)
    assert SECRET not in text
    assert "tried again · Retry:" in text
    notes = [entry.data async for entry in peer.lite.read(peer.subjects.lite("mine", "attempts"))]
    assert len(notes) == 4
    assert not any(SECRET.encode() in note for note in notes)


async def test_a_task_that_its_first_attempt_ends_leaves_no_note(peer: Peer, serve: Serve) -> None:
    await serve(Press(), name="press-1")
    await (await submit(peer, "press.print", {"failures": 0})).outcome()

    assert await notes_of(peer.ports, "mine") == []
    assert told(await lanes_of_task(peer.ports, "mine")) == [("test", "result", ["wait", "work"], 10)]


async def test_a_task_that_goes_on_shows_what_it_is_at(peer: Peer, serve: Serve) -> None:
    press = Press()
    replica = await serve(press, name="press-1")
    handle = await submit(peer, "press.hold", {})
    await press.stuck.wait()
    assert told(await lanes_of_task(peer.ports, "mine")) == [("asked", "", ["open"], 0)]
    # Drained in the middle: the next one takes it up.
    await replica.aclose()
    after = Press()
    await serve(after, name="press-2")
    await after.stuck.wait()

    lanes = await lanes_of_task(peer.ports, "mine")

    assert told(lanes) == [
        ("attempt 1", "handed_back", ["wait", "vain"], 0),
        ("attempt 2", "", ["wait", "open"], 0),
    ]
    assert lanes[-1].bars[-1].ended is None
    after.free.set()
    assert (await handle.outcome()).data == "held at attempt 2"


async def test_the_second_life_of_a_dead_letter_counts_its_attempts_anew(peer: Peer, serve: Serve) -> None:
    await serve(Press(), name="press-1")
    await (await submit(peer, "press.print", {"failures": 3})).outcome()
    letters = DeadLetters(peer.ports)
    await letters.redrive("mine")

    async def is_buried_again() -> bool:
        ends = [lane for lane in await lanes_of_task(peer.ports, "mine") if lane.outcome == "dead_lettered"]
        return len(ends) == 2

    await until(is_buried_again)
    names = [(lane.name, lane.outcome) for lane in await lanes_of_task(peer.ports, "mine")]
    life = [("attempt 1", "tried_again"), ("attempt 2", "tried_again"), ("attempt 3", "dead_lettered")]
    assert names == [*life, *life, ("buried", "")]


async def test_an_attempt_that_waits_for_a_person_did_not_fail(peer: Peer) -> None:
    now = peer.clock.time()
    notes = [("parked", 1, now - 9, "")]
    for kind, attempt, began, error in notes:
        note = {
            "kind": kind,
            "attempt": attempt,
            "began": began,
            "asked": now - 10,
            "error": error,
            "replica": "r",
        }
        await peer.lite.append(peer.subjects.lite("mine", "attempts"), json.dumps(note).encode(), ttl_s=60)

    [worked, waits] = await lanes_of_task(peer.ports, "mine")

    assert (worked.outcome, [bar.kind for bar in worked.bars]) == ("", ["wait", "work"])
    assert not worked.failed
    assert (waits.name, [bar.kind for bar in waits.bars]) == ("then", ["person"])


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff", b"[]", b"null", b"[" * 5000, b'{"attempt": true}', b'{"attempt": NaN}'),
        *(b'{"attempt": 1e300}', b'{"attempt": -1}', b'{"attempt": "1"}', b'{"kind": 7, "attempt": 0.5}'),
    ],
)
async def test_what_is_no_note_tells_of_no_attempt(peer: Peer, data: bytes) -> None:
    await peer.lite.append(peer.subjects.lite("mine", "attempts"), data, ttl_s=60)

    assert await notes_of(peer.ports, "mine") == []
    assert await lanes_of_task(peer.ports, "mine") == []


async def test_a_note_with_odd_fields_is_read_as_far_as_it_goes(peer: Peer) -> None:
    odd = {"kind": [], "attempt": 2, "began": 1e200, "asked": "then", "life": None, "spent": 3, "error": {}}
    await peer.lite.append(peer.subjects.lite("mine", "attempts"), json.dumps(odd).encode(), ttl_s=60)

    [note] = await notes_of(peer.ports, "mine")

    assert note == AttemptNote("", 2, 0.0, note.at, 0.0, spent=Spent())
    assert [lane.name for lane in await lanes_of_task(peer.ports, "mine")] == ["attempt 1", "attempt 2", "then"]


async def _kill_one(world: World, number: int) -> None:
    """Have a replica begin the task, and die of it by SIGKILL."""
    assert world.settings is not None
    environ = os.environ | world.settings.environ() | {"FRAIL": str(number), "SQUADRON_LEASE_S": "1.5"}
    script = str(Path(__file__).with_name("frail.py"))
    process = await asyncio.create_subprocess_exec(sys.executable, script, env=environ)
    assert await process.wait() == -9


async def _ask_the_frail(world: World, peer: Peer, deaths: int) -> Any:
    """Ask a task that kills so many replicas, one after the other."""
    first = asyncio.create_task(_kill_one(world, 1))

    async def is_served() -> bool:
        return peer.registry.find("frail.work") is not None

    await until(is_served, within_s=60.0)
    handle = await submit(peer, "frail.work", {"text": "x"})
    await first
    for number in range(2, deaths + 1):
        await _kill_one(world, number)
    return handle


@ON_NATS
async def test_an_attempt_whose_replica_was_killed_is_told_as_lost(world: World, peer: Peer, serve: Serve) -> None:
    handle = await _ask_the_frail(world, peer, deaths=2)
    await serve(Frail(), name="frail-3")
    assert (await handle.outcome()).attempt == 3

    lanes = await lanes_of_task(peer.ports, "mine")

    assert told(lanes) == [
        # Nobody told when the first began.
        ("attempt 1", "lost", ["lost"], 0),
        ("attempt 2", "lost", ["lost"], 0),
        ("attempt 3", "result", ["work"], 7),
    ]
    assert lanes[0].note == "its replica died or fell silent"
    assert lanes[1].note == "its replica died or fell silent, frail-2"
    assert is_one_line_of_time(lanes)


@ON_NATS
async def test_a_task_that_kills_each_replica_is_told_with_all_its_deaths(
    world: World, peer: Peer, serve: Serve
) -> None:
    handle = await _ask_the_frail(world, peer, deaths=3)
    await serve(Frail(), name="frail-4")
    assert (await handle.outcome()).kind == "dead_lettered"

    lanes = await lanes_of_task(peer.ports, "mine")

    names = [(lane.name, lane.outcome) for lane in lanes]
    assert names == [
        ("attempt 1", "lost"),
        ("attempt 2", "lost"),
        ("attempt 3", "dead_lettered"),
        ("buried", ""),
    ]
    assert "died or fell silent in each of 3 attempts" in lanes[2].note


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e308", "-1", '"1"'])
@pytest.mark.parametrize("name", ["latency", "attempt", "timestamp"])
async def test_an_outcome_with_odd_numbers_is_told_without_them(peer: Peer, name: str, number: str) -> None:
    content: dict[str, Any] = {"success": True, "outcome": "result", "attempt": 1}
    wire = json.loads(peer.ports.pack("result", {"content": content}, parent="mine"))
    if name == "timestamp":
        # The last that is read; what is larger is no message.
        wire["timestamp"], number = 2**53, "1"
    else:
        content[name] = "ODD"
        wire["payload"]["content"] = content
    data = json.dumps(wire).replace('"ODD"', number).encode()
    await peer.lite.append(peer.subjects.lite("stranger", "mine"), data, ttl_s=60)

    lanes = await lanes_of_task(peer.ports, "mine")

    assert [lane.outcome for lane in lanes] == ["result"]
    assert len(spanning("mine", lanes).text()) < 1000

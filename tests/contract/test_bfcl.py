"""Gold trajectories of a public benchmark, by supervisors that are killed: the back ends end as they should.

A model that knows the answers speaks the real wire, each user turn is a goal of its own, and the back ends are
agents. Every task loses its supervisor at a random entry of one of its logs, by SIGKILL, and so do the runs that
this one thinks at the time.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.runs.entries import Entry
from squadron.actors.runs.log import entries_of, read
from squadron.actors.runs.session import run_id
from squadron.actors.thinking.model import ModelTurn
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.outcome import Outcome
from tests.bfcl import BfclTask, Desk, bfcl_tasks, next_turn, state_of
from tests.contract.conftest import Replica, at_last, peer_of, until
from tests.contract.killed_supervisors import Fate, Supervisors
from tests.contract.run_worker import Death
from tests.llm_servers import ScriptedAnthropicServer

#: Processes that think, and tasks at once.
SUPERVISORS, AT_ONCE = 3, 2
#: More than a run needs that is killed again and again by its neighbours, in seconds.
PLENTY_S = 600.0
#: A gold call that breaks the types of its own back end: no card lets it through.
ILL_TYPED = {"multi_turn_base_173"}
SEED = 2026


def chosen(count: int) -> list[BfclTask]:
    """So many tasks, the same ones each time, of all back ends."""
    playable = [task for task in bfcl_tasks() if task.id not in ILL_TYPED]
    return random.Random(SEED).sample(playable, count)


def ids_of(task: BfclTask) -> list[str]:
    return [f"{task.id}-{turn}" for turn in range(len(task.gold))]


def fates_of(tasks: Sequence[BfclTask], folder: Path) -> Fate:
    """One death for each task: in one of its turns, at one of the entries that this one will have."""
    rng = random.Random(SEED)
    deaths = {}
    for task in tasks:
        turn = rng.randrange(len(task.gold))
        # A call has five: the question, the turn, that it is sent, that it was, and its end. Besides there are the
        # first one, and three of the round that finishes.
        entries = 4 + 5 * len(task.gold[turn])
        deaths[run_id(ids_of(task)[turn])] = Death(rng.randint(1, entries), rng.random() < 0.5)
    return Fate(deaths, folder)


@dataclass
class Play:
    """Tasks that are played, and what came of them."""

    settings: Settings
    tasks: Sequence[BfclTask]
    fate: Fate
    desk: Desk = field(init=False)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._by_id = {task.id: task for task in self.tasks}
        self.desk = Desk(self._by_id)

    def decide(self, body: dict[str, Any]) -> ModelTurn:
        found = re.search(r"\[(\w+)/(\d+)\]", str(body["messages"][0]["content"]))
        assert found is not None
        id, turn = found[1], int(found[2])
        self.asked[f"{id}-{turn}"] += 1
        said = sum(message["role"] == "assistant" for message in body["messages"])
        return next_turn(self._by_id[id], turn, said)

    async def run(self) -> None:
        """Play them all; whoever thinks and dies is replaced."""
        async with AsyncExitStack() as stack:
            identity = AgentIdentity(id="client", type="test")
            wiring = await at_last(lambda: Wiring.open(self.settings, identity, create=True))
            stack.push_async_callback(wiring.aclose)
            for agent in self.desk.agents():
                replica = Replica(peer_of(wiring), agent, lease_s=10.0)
                await replica.start()
                for part in (replica.turns, replica.pump, replica.handovers):
                    stack.push_async_callback(part.aclose)
            server = stack.enter_context(ScriptedAnthropicServer(self.decide))
            environ = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": server.base_url}
            await stack.enter_async_context(Supervisors(self.settings, self.fate, environ, SUPERVISORS))
            await until(partial(_is_served, wiring))
            room = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for task in self.tasks:
                    group.create_task(self._converse(wiring, task, room))
            for id in self.outcomes:
                key = wiring.ports.subjects.run(run_id(id))
                found = [entries_of(message) async for _, message in read(wiring.ports, key)]
                self.entries[id] = [entry for entries in found for entry in entries]

    async def _converse(self, wiring: Wiring, task: BfclTask, room: asyncio.Semaphore) -> None:
        async with room:
            topics = [f"{name}.*" for name in task.back_ends]
            for turn, id in enumerate(ids_of(task)):
                options = AskOptions(
                    task_id=id, conversation_id=task.id, within_s=PLENTY_S, model="anthropic:claude-sonnet-5-5"
                )
                content = {"goal": task.goal(turn), "topics": topics}
                self.outcomes[id] = await wiring.caller.ask("goal.pursue", content, options)

    def check(self) -> None:
        """Each task came to its gold state by its gold calls, and a death had at most one paid again."""
        for task in self.tasks:
            for turn, id in enumerate(ids_of(task)):
                self._check_run(id, rounds=len(task.gold[turn]) + 1)
            assert self.desk.done[task.id] == task.calls, task.id
            opened = self.desk.opened.get(task.id) or task.opened()
            assert state_of(opened) == task.solved(), task.id

    def _check_run(self, id: str, *, rounds: int) -> None:
        outcome, kinds = self.outcomes[id], Counter(entry.kind for entry in self.entries[id])
        assert outcome.ok, (id, outcome.reason)
        assert (outcome.unwrap()["stopped"], outcome.unwrap()["rounds"]) == ("finished", rounds), id
        again = kinds["epoch"] - 1
        assert rounds <= self.asked[id] <= kinds["asking"] <= rounds + again, (id, kinds, self.asked[id])
        assert (kinds["thought"], outcome.spent.rounds) == (rounds, kinds["asking"]), (id, kinds, outcome.spent)


async def _is_served(wiring: Wiring) -> bool:
    return wiring.registry.find("goal.pursue") is not None


async def play(settings: Settings, folder: Path, count: int) -> Play:
    tasks = chosen(count)
    made = Play(settings, tasks, fates_of(tasks, folder))
    await made.run()
    made.check()
    # Where more was stored together, a log may be over before.
    assert len(made.fate.died) >= 0.75 * count
    return made


async def test_gold_trajectories_come_to_their_end_states_although_supervisors_are_killed(
    settings: Settings, tmp_path: Path
) -> None:
    await play(settings, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(3_000)
async def test_sixty_gold_trajectories_do_as_well(settings: Settings, tmp_path: Path) -> None:
    played = await play(settings, tmp_path, 60)
    assert len(played.fate.died) >= 54
    assert {name for task in played.tasks for name in task.back_ends} == {
        type(a).__name__ for a in played.desk.agents()
    }

"""Squadron's side: the agents, and the ways to ask them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.processes import REPLICAS, TEXT, Call
from squadron import Agent, Settings, Squad, topic

#: So many tasks sleep so long, in seconds, on one replica that has a slot for each.
SLEEPERS, SLEEP_S = 128, 0.05


class Echo(Agent):
    """Says it again."""

    name = "bench-echo"
    slots = 64
    min_replicas = max_replicas = REPLICAS

    @topic("bench.echo")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


class Sleeper(Agent):
    """Waits, as for a model's answer."""

    name = "bench-sleeper"
    slots = SLEEPERS
    min_replicas = max_replicas = 1

    @topic("bench.sleep")
    async def sleep(self, for_s: float) -> None:
        """Do nothing for a while."""
        await asyncio.sleep(for_s)


@asynccontextmanager
async def ask(settings: Settings) -> AsyncIterator[Call]:
    """A durable ask, and its durable outcome."""
    async with Squad.connect(settings) as squad:

        async def call() -> object:
            return (await squad.ask("bench.echo", {"text": TEXT})).unwrap()

        yield call


@asynccontextmanager
async def ask_sleeper(settings: Settings) -> AsyncIterator[Call]:
    """The same for a task that takes its time."""
    async with Squad.connect(settings) as squad:

        async def call() -> object:
            return (await squad.ask("bench.sleep", {"for_s": SLEEP_S})).unwrap()

        yield call

"""Handlers of plain events: what they raise ends them alone, and a replica that goes waits for them."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from squadron import Agent, Context, on, topic
from squadron.runtime.wire.outcome import Result
from squadron.testing import MemorySquad, now_s


class Listener(Agent):
    """Hears of things."""

    grace_s = 10.0

    def __init__(self) -> None:
        self.story: list[Any] = []
        self.heard = asyncio.Event()

    @on("bad.plain")
    def leave(self, message: object) -> None:
        self.story.append("plain")
        sys.exit(1)

    @on("bad.async")
    async def leave_too(self, message: object) -> None:
        self.story.append("async")
        sys.exit(1)

    @on("bad.interrupt")
    async def interrupt(self, message: object) -> None:
        self.story.append("interrupt")
        raise KeyboardInterrupt

    @on("bad.cancelled")
    async def await_what_is_cancelled(self, message: object) -> None:
        self.story.append("cancelled")
        task = asyncio.ensure_future(asyncio.sleep(1))
        task.cancel()
        await task

    @on("long.*")
    async def take_time(self, message: Any) -> None:
        self.story.append("begun")
        self.heard.set()
        try:
            await asyncio.sleep(message.payload.content)
        except asyncio.CancelledError:
            self.story.append("cancelled")
            raise
        self.story.append("ended")

    @topic("listener.ping")
    async def ping(self) -> str:
        return "pong"

    async def on_stop(self) -> None:
        self.story.append("stopped")


@pytest.mark.parametrize("how", ["plain", "async", "interrupt", "cancelled"])
async def test_what_an_event_handler_raises_ends_nothing_but_itself_and_is_logged(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = Listener()
    async with MemorySquad() as squad:
        await squad.deploy(listener)
        await squad.publish(f"bad.{how}", {})
        await asyncio.sleep(1)

        assert isinstance(await squad.ask("listener.ping"), Result)
    assert listener.story == [how, "stopped"]
    assert "event.handler_failed" in capsys.readouterr().err


async def test_a_replica_that_goes_lets_its_event_handlers_end_first() -> None:
    listener = Listener()
    async with MemorySquad() as squad:
        await squad.deploy(listener)
        await squad.publish("long.enough", 9)
        await listener.heard.wait()
        await squad.undeploy(Listener)

        assert listener.story == ["begun", "ended", "stopped"]


async def test_an_event_handler_that_takes_longer_than_the_grace_is_cancelled_before_on_stop() -> None:
    listener = Listener()
    async with MemorySquad() as squad:
        await squad.deploy(listener)
        await squad.publish("long.much", 3600)
        await listener.heard.wait()
        before_s = now_s()
        await squad.undeploy(Listener)

        assert listener.story == ["begun", "cancelled", "stopped"]
        assert now_s() - before_s < 3600


class Leaver(Agent):
    """Takes nothing along."""

    @topic("leaver.ping")
    async def ping(self) -> str:
        return "pong"

    async def on_stop(self) -> None:
        sys.exit(1)


async def test_an_agent_that_exits_as_it_is_stopped_ends_nobody_else() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Leaver)
        await squad.undeploy(Leaver)
        await squad.deploy(Leaver)
        assert isinstance(await squad.ask("leaver.ping"), Result)


class Chain(Agent):
    """Asks itself, so many times deep, and keeps a thread for each."""

    slots = 64

    @topic("chain.ask", max_attempts=1)
    def ask(self, left: int, context: Context) -> int:
        return 0 if left == 0 else 1 + int(context.sync.ask("chain.ask", {"left": left - 1}).unwrap())


async def test_plain_handlers_that_ask_each_other_do_not_starve() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Chain)
        assert (await squad.ask("chain.ask", {"left": 40})).unwrap() == 40

"""An id of the caller's own is one task, whoever asks under it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.marks import topic
from squadron.runtime.caller import Ask
from squadron.runtime.errors import BusUnavailableError
from tests.contract.conftest import SOON_S, Peer, Serve, World


class Counter(Agent):
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    @topic("counter.ask")
    async def ask(self) -> int:
        self.asked += 1
        await self.go.wait()
        return self.asked


async def test_two_processes_that_ask_under_one_id_hear_of_one_task(
    world: World, peer: Peer, serve: Serve
) -> None:
    counter = Counter()
    await serve(counter)
    other = await world.join("other")
    named = Ask(task_id="mine", within_s=SOON_S)
    waiting = [
        asyncio.create_task(asker.caller.outcome(await asker.caller.submit("counter.ask", {}, named)))
        for asker in (peer, other)
    ]

    counter.go.set()

    assert [outcome.unwrap() for outcome in await asyncio.gather(*waiting)] == [1, 1]
    # Who comes when all is over hears the same.
    assert (await other.caller.ask("counter.ask", {}, named)).unwrap() == 1
    assert counter.asked == 1


async def test_a_server_that_goes_while_a_caller_begins_to_listen_is_waited_for(
    peer: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter()
    counter.go.set()
    await serve(counter)
    subscribe, failures = peer.bus.subscribe, [BusUnavailableError("connection reset")]

    async def fails_once(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await subscribe(*args, **options)

    monkeypatch.setattr(peer.bus, "subscribe", fails_once)

    outcome = await peer.caller.ask("counter.ask", {}, Ask(task_id="mine", within_s=SOON_S))

    assert outcome.unwrap() == 1
    assert not failures

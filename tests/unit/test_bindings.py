"""Bindings of the bridge on ports in memory: what is bound, unbound and taken up again, whatever comes between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import DEFAULT, AsyncMock

import pytest

from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.bridge.serve import bindings
from squadron.bridge.serve.bindings import Bindings
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import BusUnavailableError, ConfigError, RouteConflictError, SquadronError
from squadron.runtime.wire.envelope import AgentIdentity
from tests.unit.test_bridge import eventually


class Named:
    """An actor of a name, as a handle of it looks from outside."""

    def __init__(self, name: str) -> None:
        self.name, self.called, self.may_end = name, asyncio.Event(), asyncio.Event()
        self.may_end.set()
        self.say = self

    async def remote(self, **content: Any) -> Any:
        self.called.set()
        await self.may_end.wait()
        return [self.name, content]


class Home:
    """All that outlives a bridge, who asks, and the actors that there are."""

    def __init__(self) -> None:
        self.server, self.actors = MemoryServer(), dict[str, Named]()
        self.places: list[Place] = []
        self.open: list[Bindings] = []

    async def place(self, name: str) -> Place:
        place = self.server.place(AgentIdentity(id=name), Settings(heartbeat_s=0.01))
        await place.start()
        self.places.append(place)
        return place

    async def bridge(self) -> Bindings:
        made = Bindings(await self.place("bridge"))
        await made.start()
        self.open.append(made)
        return made

    def actor(self, name: str) -> Named:
        return self.actors.setdefault(name, Named(name))

    async def is_bound(self, pattern: str) -> bool:
        return await self.server.queue.knows(bindings._name(pattern))


@pytest.fixture
async def home(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Home]:
    made = Home()
    monkeypatch.setattr(bindings, "_reference", lambda target: {"name": target.name})
    monkeypatch.setattr(bindings, "_found", lambda reference: made.actors[reference["name"]])
    yield made
    for each in made.open:
        await each.aclose()
        await each.aclose()
    for place in made.places:
        await place.aclose()


async def _bind(bound: Bindings, pattern: str, target: Named) -> None:
    await bound.bind(pattern, target, "say", slots=2, description="says it")


async def test_what_is_bound_again_while_an_earlier_call_still_runs_is_served(home: Home) -> None:
    bound, asker = await home.bridge(), await home.place("asker")
    slow = home.actor("slow")
    slow.may_end.clear()
    await _bind(bound, "math.add", slow)
    asking = asyncio.create_task(asker.caller.ask("math.add", {"n": 1}, AskOptions(within_s=30)))
    await eventually(slow.called.is_set)

    unbinding = asyncio.create_task(bound.unbind("math.add"))
    await eventually(lambda: not bound.routes())
    binding = asyncio.create_task(_bind(bound, "math.add", home.actor("new")))
    # It has every chance to go on before the call ends.
    await asyncio.wait([binding], timeout=0.05)
    slow.may_end.set()
    await asyncio.gather(unbinding, binding)

    assert (await asking).unwrap() == ["slow", {"n": 1}]
    assert (await asker.caller.ask("math.add", {"n": 2}, AskOptions(within_s=30))).unwrap() == ["new", {"n": 2}]
    await bound.unbind("math.add")
    assert not await home.is_bound("math.add")


async def test_of_two_who_bind_a_pattern_at_once_one_is_told_that_it_is_taken(home: Home) -> None:
    bound = await home.bridge()
    told = await asyncio.gather(
        *(_bind(bound, "math.add", home.actor(name)) for name in ("one", "two")), return_exceptions=True
    )
    assert [type(each) for each in told] == [type(None), RouteConflictError]
    assert len(bound.routes()) == 1


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("verb", ["bind", "unbind"])
async def test_a_bridge_that_is_killed_over_a_binding_leaves_no_mailbox_that_nobody_can_have_taken_away(
    home: Home, monkeypatch: pytest.MonkeyPatch, verb: str, writes: int
) -> None:
    killed, left = await home.bridge(), [writes]
    if verb == "unbind":
        await _bind(killed, "math.add", home.actor("one"))

    def until_then(write: Any) -> Any:
        async def written(on: Any, *args: Any, **how: Any) -> Any:
            if ".presence." not in str(on):
                if not left[0]:
                    raise BusUnavailableError("it is dead")
                left[0] -= 1
            return await write(on, *args, **how)

        return written

    records, queue = killed._wiring.records, killed._wiring.ports.queue
    for of, does in ((records, "append"), (records, "erase"), (queue, "declare"), (queue, "remove")):
        monkeypatch.setattr(of, does, until_then(getattr(of, does)))
    with contextlib.suppress(SquadronError):
        await (_bind(killed, "math.add", home.actor("one")) if verb == "bind" else killed.unbind("math.add"))
    await killed.aclose()

    successor = await home.bridge()
    with contextlib.suppress(ConfigError):
        await successor.unbind("math.add")
    assert not await home.is_bound("math.add")
    await _bind(successor, "math.*", home.actor("two"))


async def test_what_could_not_be_bound_is_not_there_and_can_be_bound_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, asker = await home.bridge(), await home.place("asker")
    for of, write in ((bound._wiring.records, "append"), (bound._wiring.ports.queue, "declare")):
        with monkeypatch.context() as failing:
            failing.setattr(of, write, AsyncMock(side_effect=BusUnavailableError("it is full")))
            with pytest.raises(BusUnavailableError, match="full"):
                await _bind(bound, "math.add", home.actor("one"))
        assert bound.routes() == []
        await _bind(bound, "math.add", home.actor("two"))
        assert (await asker.caller.ask("math.add", {}, AskOptions(within_s=30))).unwrap() == ["two", {}]
        await bound.unbind("math.add")


async def test_a_binding_whose_target_is_gone_can_be_taken_away_or_bound_anew(home: Home) -> None:
    await _bind(await home.bridge(), "math.add", home.actor("one"))
    home.actors.clear()
    await _bind(await home.bridge(), "math.add", home.actor("two"))
    home.actors.clear()

    successor = await home.bridge()
    await successor.unbind("math.add")

    assert not await home.is_bound("math.add")
    with pytest.raises(ConfigError, match="not bound"):
        await successor.unbind("math.add")


async def test_a_binding_whose_target_comes_after_the_bridge_is_served_then(home: Home) -> None:
    first, asker = await home.bridge(), await home.place("asker")
    for pattern, name in (("math.add", "one"), ("math.double", "two")):
        await _bind(first, pattern, home.actor(name))
    late = home.actors.pop("one")

    successor = await home.bridge()
    assert [each["pattern"] for each in successor.routes()] == ["math.double"]
    await first.aclose()
    home.actors["one"] = late

    await eventually(lambda: len(successor.routes()) == 2)
    assert (await asker.caller.ask("math.add", {}, AskOptions(within_s=30))).unwrap() == ["one", {}]


async def test_who_fails_to_bind_anew_what_waits_for_its_target_leaves_it_waiting(home: Home) -> None:
    first, asker = await home.bridge(), await home.place("asker")
    await _bind(first, "math.add", home.actor("one"))
    late = home.actors.pop("one")
    await first.aclose()
    place = await home.place("bridge")
    successor = Bindings(place)
    home.open.append(successor)
    await successor.start()
    does = place.ports.queue.declare
    declare = AsyncMock(side_effect=[BusUnavailableError("no leader"), *[DEFAULT] * 999], wraps=does)
    place.ports.queue.declare = declare  # type: ignore[method-assign]

    with pytest.raises(BusUnavailableError):
        await _bind(successor, "math.add", home.actor("two"))

    home.actors["one"] = late
    await eventually(lambda: len(successor.routes()) == 1)
    assert (await asker.caller.ask("math.add", {}, AskOptions(within_s=30))).unwrap() == ["one", {}]


async def test_a_binding_that_the_server_refused_when_the_bridge_started_is_served_later(home: Home) -> None:
    first, asker = await home.bridge(), await home.place("asker")
    await _bind(first, "math.add", home.actor("one"))
    await first.aclose()
    place = await home.place("bridge")
    for of, write in ((place.ports.queue, "declare"), (place.records, "append"), (place.ports.queue, "consume")):
        does = getattr(of, write)
        setattr(of, write, AsyncMock(side_effect=[BusUnavailableError("no leader"), *[DEFAULT] * 999], wraps=does))

    successor = Bindings(place)
    home.open.append(successor)
    await successor.start()
    assert successor.routes() == []

    await eventually(successor.routes)
    assert (await asker.caller.ask("math.add", {}, AskOptions(within_s=30))).unwrap() == ["one", {}]


async def test_what_was_to_go_and_could_not_goes_later(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = await home.bridge()
    await _bind(bound, "math.add", home.actor("one"))
    with monkeypatch.context() as failing:
        failing.setattr(
            bound._wiring.ports.queue, "remove", AsyncMock(side_effect=BusUnavailableError("no leader"))
        )
        with pytest.raises(BusUnavailableError, match="no leader"):
            await bound.unbind("math.add")
        assert await home.is_bound("math.add")

    async with asyncio.timeout(30):
        while await home.is_bound("math.add"):
            await asyncio.sleep(0.005)


async def test_what_the_server_lost_of_a_binding_is_made_anew(home: Home) -> None:
    bound, records = await home.bridge(), home.server.records
    await _bind(bound, "math.add", home.actor("one"))
    key = home.server.subjects.record("binding", bindings._name("math.add"))
    await records.erase(key)
    home.server.queue._mailboxes.clear()

    bound.to_restore = True

    async with asyncio.timeout(30):
        while not await home.is_bound("math.add") or await records.last(key) is None:
            await asyncio.sleep(0.005)

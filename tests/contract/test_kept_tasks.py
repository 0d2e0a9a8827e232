"""Tasks that came through a door: found again by whoever asked, through any process, and by nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.gateways.kept_tasks import KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.wire.outcome import Cancelled, Rejected, Result, TimedOut, Undeliverable
from tests.contract.conftest import Peer, Serve, World, until
from tests.contract.gateway_process import SECRET

ANN, BOB = Visitor("client:ann"), Visitor("client:bob")
DOUBLE = ("work.double", {"n": 21}, AskOptions(within_s=20))


class Doubler(Agent):
    """Doubles."""

    name = "doubler"

    @topic("work.double", description="Double.")
    async def double(self, n: int) -> int:
        RUNS.append(n)
        return 2 * n


class Waiter(Agent):
    """Waits until it is cancelled."""

    name = "waiter"

    @topic("work.wait", description="Wait.")
    async def wait(self) -> None:
        await asyncio.Event().wait()


class Patient(Agent):
    """Answers when it is told to."""

    name = "patient"

    def __init__(self) -> None:
        self.go = asyncio.Event()

    @topic("work.slow", description="Wait, and say it.")
    async def slow(self, n: int) -> int:
        await self.go.wait()
        return n

    @topic("work.sealed", description="As before, sealed.", sealed=True)
    async def sealed(self, n: int) -> int:
        return await self.slow(n)


RUNS: list[int] = []


def kept(peer: Peer, door: str = "mcp") -> KeptTasks:
    return KeptTasks(peer.place, SECRET, door)


async def over(tasks: KeptTasks, id: str) -> KeptTask:
    found: list[KeptTask] = []

    async def is_over() -> bool:
        found[:] = [await tasks.find(ANN, id)]
        return found[0].outcome is not None

    await until(is_over)
    return found[0]


async def test_any_process_finds_it_with_its_outcome(world: World, peer: Peer, serve: Serve) -> None:
    await serve(Doubler())
    sent = await kept(peer).submit(ANN, *DOUBLE, about={"tool": "double"})
    found = await over(kept(await world.join("another")), sent.id)
    assert found.outcome is not None
    assert found.outcome.unwrap() == 42
    assert found.about == {"tool": "double"}
    assert found.created_at == sent.created_at <= found.news_at


async def test_nobody_else_finds_it_and_no_other_door(peer: Peer, serve: Serve) -> None:
    await serve(Doubler())
    sent = await kept(peer).submit(ANN, *DOUBLE)
    for tasks, visitor in ((kept(peer), BOB), (kept(peer, "a2a"), ANN)):
        with pytest.raises(UnknownTaskError):
            await tasks.find(visitor, sent.id)
        assert await tasks.listed(visitor) == []
    assert [each.id for each in await kept(peer).listed(ANN)] == [sent.id]


@pytest.mark.parametrize("id", ["", "-", "x" * 10_000, "a.b-c", "*", ">", "ü-1", "v1-\n"])
async def test_an_id_that_is_none_is_unknown(peer: Peer, id: str) -> None:
    with pytest.raises(UnknownTaskError):
        await kept(peer).find(ANN, id)
    with pytest.raises(UnknownTaskError):
        await kept(peer).find(ANN, f"{kept(peer).owner_of(ANN)}-{id}")


async def test_under_one_key_it_is_one_task(world: World, peer: Peer, serve: Serve) -> None:
    await serve(Doubler())
    RUNS.clear()
    first, again = kept(peer), kept(await world.join("another"))
    sent = await first.submit(ANN, *DOUBLE, id=first.id_for(ANN, "order-7"))
    assert (await sent.handle.outcome()).unwrap() == 42
    repeated = await again.submit(ANN, *DOUBLE, id=again.id_for(ANN, "order-7"))
    assert (await repeated.handle.outcome()).unwrap() == 42
    assert repeated.id == sent.id
    assert first.id_for(BOB, "order-7") != sent.id
    assert RUNS == [21]


async def test_what_was_refused_is_over_at_once(peer: Peer, serve: Serve) -> None:
    await serve(Doubler())
    sent = await kept(peer).submit(ANN, "work.double", {"n": "many"}, AskOptions(within_s=20))
    assert isinstance(sent.outcome, Rejected)


async def test_what_was_refused_is_found_as_refused_and_sent_again_it_is_as_any_other(
    world: World, peer: Peer, serve: Serve
) -> None:
    tasks, later = kept(peer), kept(await world.join("another"))
    id = tasks.id_for(ANN, "early")
    await tasks.submit(ANN, *DOUBLE, id=id)
    found = await later.find(ANN, id)
    assert isinstance(found.outcome, Undeliverable)
    assert "work.double" in found.outcome.reason
    await serve(Doubler())
    await peer.registry.refresh(float("inf"))
    await tasks.submit(ANN, *DOUBLE, id=id)
    again = await over(later, id)
    assert again.outcome is not None
    assert again.outcome.unwrap() == 42


@pytest.mark.parametrize("n", [2, "many"])
async def test_what_is_refused_under_the_key_of_a_task_leaves_that_as_it_is(
    world: World, peer: Peer, serve: Serve, n: Any
) -> None:
    patient = Patient()
    await serve(patient)
    tasks, later = kept(peer), kept(await world.join("another"))
    id = tasks.id_for(ANN, "order-6")
    await tasks.submit(ANN, "work.slow", {"n": 1}, AskOptions(within_s=20), id=id, about={"said": 1})
    for _ in range(2):
        again = await later.submit(ANN, "work.slow", {"n": n}, AskOptions(within_s=20), id=id, about={"said": 2})
        assert isinstance(again.outcome, Rejected)
        found = await later.find(ANN, id)
        assert (found.outcome, found.about) == (None, {"said": 1})
    patient.go.set()
    ended = await over(later, id)
    assert ended.outcome is not None
    assert ended.outcome.unwrap() == 1


async def test_a_result_that_is_not_sealed_is_none_of_a_sealed_task(
    world: World, peer: Peer, serve: Serve
) -> None:
    patient = Patient()
    await serve(patient)
    tasks, later = kept(peer), kept(await world.join("another"))
    sent = await tasks.submit(ANN, "work.sealed", {"n": 1}, AskOptions(within_s=20))
    ids = {"parent": sent.id, "correlation_id": sent.id}
    forged = peer.ports.pack("result", {"content": Result(data="forged").to_content()}, **ids)
    await peer.lite.append(sent.handle.reply_to, forged, ttl_s=60, msg_id="forged")
    assert [(await each.find(ANN, sent.id)).outcome for each in (tasks, later)] == [None, None]
    patient.go.set()
    ended = await over(tasks, sent.id)
    assert ended.outcome is not None
    assert ended.outcome.unwrap() == 1


async def test_one_that_was_noted_and_never_sent_comes_to_an_end(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    tasks = kept(peer)
    monkeypatch.setattr(peer.caller, "submit", dies)
    id = tasks.id_for(ANN)
    with pytest.raises(RuntimeError):
        await tasks.submit(ANN, "work.double", {"n": 1}, AskOptions(within_s=0.2), id=id)
    assert isinstance((await over(tasks, id)).outcome, TimedOut)


@pytest.mark.parametrize("keyed", [False, True])
async def test_one_that_was_sent_and_could_not_be_noted_is_stopped_unless_it_was_noted_before(
    peer: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    sent: list[Handle] = []
    submit, tasks = peer.caller.submit, kept(peer)

    async def submitted(*args: Any, **options: Any) -> Handle:
        sent.append(await submit(*args, **options))
        return sent[0]

    async def away(*_: object, **__: object) -> None:
        raise BusUnavailableError("away")

    await serve(Waiter())
    monkeypatch.setattr(peer.caller, "submit", submitted)
    monkeypatch.setattr(tasks, "_note", away)
    with pytest.raises(BusUnavailableError):
        await tasks.submit(
            ANN, "work.wait", {}, AskOptions(within_s=20), id=tasks.id_for(ANN, "order-8") if keyed else ""
        )
    assert [each.done for each in sent] == [not keyed]
    assert isinstance(await sent[0].cancel(), Cancelled)


async def test_a_visitor_who_leaves_while_it_is_stored_leaves_it_whole(
    peer: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(Doubler())
    begun, go_on, submit, tasks = asyncio.Event(), asyncio.Event(), peer.caller.submit, kept(peer)

    async def slow(*args: Any, **options: Any) -> Handle:
        begun.set()
        await go_on.wait()
        return await submit(*args, **options)

    monkeypatch.setattr(peer.caller, "submit", slow)
    id = tasks.id_for(ANN, "order-9")
    leaving = asyncio.ensure_future(tasks.submit(ANN, *DOUBLE, id=id))
    await begun.wait()
    leaving.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    found = await over(tasks, id)
    assert found.outcome is not None
    assert found.outcome.unwrap() == 42

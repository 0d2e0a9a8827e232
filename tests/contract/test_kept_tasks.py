"""Tasks that came through a door: found again by whoever asked, through any process, and by nobody else."""

from __future__ import annotations

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.gateways.kept_tasks import KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.wire.outcome import Rejected, TimedOut
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

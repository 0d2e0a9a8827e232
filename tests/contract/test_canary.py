"""Two versions of an agent beside each other: who gets which task, and that none is lost when one of them goes."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Context, on, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.ports.bus import Note
from squadron.runtime.running import handover
from squadron.runtime.wire.canary_share import CanaryShare
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Outcome, Rejected, Result
from squadron.runtime.wire.route import Route
from tests.contract.canary_worker import Press
from tests.contract.conftest import ON_NATS, Peer, World, until

#: What a test does with many tasks may take so long on a busy machine.
WITHIN_S = 60.0


class Scribe(Agent):
    """Writes down what it is told, and when."""

    name = "scribe"
    ordered_by = ""

    def __init__(self) -> None:
        self.wrote: list[Any] = []
        self.heard: list[str] = []

    @topic("scribe.write")
    async def write(self, ctx: Context, number: int) -> int:
        """Write a number."""
        self.wrote.append((ctx.message.context.conversation_id, number))
        await asyncio.sleep(0.005)
        return number

    @on("news.one")
    async def one_hears(self, message: AgentMessage) -> None:
        """One of all replicas hears it."""
        self.heard.append("one")

    @on("news.all", everyone=True)
    async def all_hear(self, message: AgentMessage) -> None:
        """Each replica hears it."""
        self.heard.append("all")


class Slim(Agent):
    """A version that has lost a topic, run all the same."""

    name = "scribe"

    @topic("scribe.read")
    async def read(self) -> int:
        """Read a number."""
        return 1


class OrderedScribe(Scribe):
    """Does so in order."""

    name = "orderly"
    ordered_by = "conversation"


class Sealed(Agent):
    """Is told in confidence."""

    name = "sealed"

    @topic("sealed.keep", sealed=True)
    async def keep(self, secret: str) -> str:
        """Keep a secret."""
        return secret[::-1]


class Site:
    """An agent whose two versions run here, and what its card says of them."""

    def __init__(self, world: World, bridge: Peer, spec: AgentSpec) -> None:
        self.world, self.bridge, self.spec = world, bridge, spec
        self.hosts: list[Host] = []

    async def run(
        self, agent: Agent, name: str, *, version: str, canary: bool = False, spec: AgentSpec | None = None
    ) -> Host:
        peer = await self.world.join(name, agent=self.spec.name)
        # Ten minutes of presence, so that no test depends on heartbeats.
        peer.registry.heartbeat_s = 200.0
        ordered = type(agent).ordered_by != ""
        host = Host(
            peer.place,
            agent,
            spec or self.spec,
            slots=4,
            ordered=ordered,
            canary=canary,
            facts={"version": version},
        )
        if not canary:
            await self.bridge.queue.declare(host.mailbox)
        await host.start()
        self.hosts.append(host)
        return host

    async def split(self, weight: int | None, *, version: str = "new") -> None:
        share = None if weight is None else CanaryShare(version=version, weight=weight)
        card = self.spec.card().with_key(self.world.seal_key(self.spec.name))
        await self.bridge.registry.advertise(card.model_copy(update={"canary": share}))
        for host in self.hosts:
            await host.place.registry.catch_up(self.bridge.registry.news)


Make = Callable[[type[Agent]], Awaitable[Site]]


@pytest.fixture
async def make(world: World) -> AsyncIterator[Make]:
    sites: list[Site] = []

    async def made(agent: type[Agent]) -> Site:
        bridge = await world.join("bridge", bridge=True)
        sites.append(Site(world, bridge, AgentSpec.of(agent)))
        return sites[-1]

    yield made
    for site in sites:
        for host in site.hosts:
            await host.stop(1.0)


async def write_all(client: Peer, conversations: int, each: int) -> list[tuple[str, Outcome]]:
    """Ask all at once; returns the conversation and the outcome of each task."""
    asked = [
        (f"talk-{number % conversations}", {"number": number // conversations})
        for number in range(conversations * each)
    ]
    handles = []
    for conversation, content in asked:
        ask = AskOptions(conversation_id=conversation, within_s=WITHIN_S)
        handles.append(await client.caller.submit("scribe.write", content, ask))
    outcomes = await asyncio.gather(*map(client.caller.outcome, handles))
    return [(conversation, outcome) for (conversation, _), outcome in zip(asked, outcomes, strict=True)]


async def test_a_share_is_that_of_all_conversations_and_grows_without_taking_any_back() -> None:
    ids = [f"conversation-{number}" for number in range(20_000)]
    tenth, half = ({id for id in ids if CanaryShare(version="v", weight=each).takes(id)} for each in (10, 50))
    assert abs(len(tenth) / len(ids) - 0.1) < 0.01
    assert abs(len(half) / len(ids) - 0.5) < 0.02
    assert tenth < half
    assert not any(CanaryShare(version="v", weight=0).takes(id) for id in ids)
    assert all(CanaryShare(version="v", weight=100).takes(id) for id in ids)


async def test_each_conversation_is_worked_on_by_one_version_as_its_id_says(
    world: World, peer: Peer, make: Make
) -> None:
    site = await make(Scribe)
    stable, canary = Scribe(), Scribe()
    await site.run(stable, "scribe-1", version="old")
    await site.run(canary, "scribe-2", version="new", canary=True)
    await site.split(30)

    ended = await write_all(peer, 40, 3)

    share = CanaryShare(version="new", weight=30)
    assert all(outcome.ok for _, outcome in ended)
    for conversation, outcome in ended:
        assert outcome.version == ("new" if share.takes(conversation) else "old")
    by_version = Counter(outcome.version for _, outcome in ended)
    assert len(canary.wrote) == by_version["new"] > 0
    assert len(stable.wrote) == by_version["old"] > 0

    # Ended, it gets nothing more, though it is still there.
    await site.split(None)
    assert {outcome.version for _, outcome in await write_all(peer, 40, 1)} == {"old"}


@pytest.mark.parametrize("world", ["memory", "jetstream", "restricted"], indirect=True)
async def test_both_versions_of_an_ordered_agent_keep_the_order_of_each_conversation(
    peer: Peer, make: Make
) -> None:
    site = await make(OrderedScribe)
    stable, canary = OrderedScribe(), OrderedScribe()
    await site.run(stable, "scribe-1", version="old")
    await site.run(canary, "scribe-2", version="new", canary=True)
    await site.split(50)

    ended = await write_all(peer, 8, 4)

    share = CanaryShare(version="new", weight=50)
    assert all(outcome.ok for _, outcome in ended)
    for agent, is_canary in ((stable, False), (canary, True)):
        by_talk = defaultdict(list)
        for conversation, number in agent.wrote:
            assert share.takes(conversation) == is_canary
            by_talk[conversation].append(number)
        assert by_talk
        assert all(numbers == [0, 1, 2, 3] for numbers in by_talk.values())


async def test_without_a_living_replica_of_the_canary_its_tasks_are_done_by_who_serves(
    peer: Peer, make: Make
) -> None:
    site = await make(Scribe)
    await site.run(Scribe(), "scribe-1", version="old")
    await site.split(100)
    assert {outcome.version for _, outcome in await write_all(peer, 10, 1)} == {"old"}


async def deaf_canary(site: Site) -> list[Note]:
    """A replica of the canary that is present, and whose event loop is blocked: what came to it, unanswered."""
    peer = await site.world.join("deaf", agent=site.spec.name)
    peer.registry.heartbeat_s = 200.0
    heard: list[Note] = []
    await peer.bus.subscribe(peer.subjects.hand("deaf"), heard.append)
    await peer.registry.renew(site.spec.name, "deaf", canary=True, version="new")
    for host in site.hosts:
        await host.place.registry.catch_up(peer.registry.news)
    return heard


def talks(count: int, weight: int, *, canary: bool) -> list[AskOptions]:
    """So many tasks that are for the canary, or are not, each of another conversation."""
    share = CanaryShare(version="new", weight=weight)
    ids = (f"talk-{number}" for number in itertools.count())
    those = (id for id in ids if share.takes(id) == canary)
    return [AskOptions(conversation_id=id, within_s=WITHIN_S) for id in itertools.islice(those, count)]


async def test_tasks_that_wait_for_a_canary_to_answer_hold_no_slot_of_the_version_that_serves(
    peer: Peer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "TAKE_WITHIN_S", 600.0)
    site = await make(Scribe)
    await site.run(Scribe(), "scribe-1", version="old")
    heard = await deaf_canary(site)
    await site.split(50)
    for each in talks(4, 50, canary=True):
        await peer.caller.submit("scribe.write", {"number": 1}, each)

    async def all_slots_are_asked_for() -> bool:
        return len(heard) == 4

    await until(all_slots_are_asked_for, WITHIN_S)
    (other,) = talks(1, 50, canary=False)
    outcome = await peer.caller.ask("scribe.write", {"number": 1}, other)
    assert (outcome.ok, outcome.version) == (True, "old")
    assert len(heard) == 4


async def test_a_canary_that_did_not_answer_is_not_asked_by_each_task_anew(
    peer: Peer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "TAKE_WITHIN_S", 0.2)
    monkeypatch.setattr(handover, "SILENT_S", 1000.0)
    site = await make(Scribe)
    await site.run(Scribe(), "scribe-1", version="old")
    heard = await deaf_canary(site)
    await site.split(50)
    submit = partial(peer.caller.submit, "scribe.write", {"number": 1})
    waiting = [await submit(each) for each in talks(60, 50, canary=True)]
    served = [await submit(each) for each in talks(60, 50, canary=False)]
    for handle in served:
        assert (await peer.caller.outcome(handle)).version == "old"
    # By those that had a slot, and that had freed theirs for others, before one had waited in vain.
    assert 0 < len(heard) <= 8

    await site.split(None)
    for handle in waiting:
        assert (await peer.caller.outcome(handle)).version == "old"
    assert len(heard) <= 8


async def test_what_a_canary_does_not_serve_is_rejected_there_and_goes_no_more_back_and_forth(
    peer: Peer, make: Make
) -> None:
    site = await make(Scribe)
    await site.run(Scribe(), "stable", version="old")
    await site.run(Slim(), "slim", version="new", canary=True, spec=AgentSpec.of(Slim))
    await site.split(100)

    outcome = await peer.caller.ask("scribe.write", {"number": 1}, AskOptions(within_s=WITHIN_S))

    assert isinstance(outcome, Rejected)
    assert "the canary of scribe does not serve it" in outcome.reason


async def test_a_task_for_one_replica_is_done_by_that_whatever_the_share(peer: Peer, make: Make) -> None:
    site = await make(Scribe)
    await site.run(Scribe(), "scribe-1", version="old")
    await site.run(Scribe(), "scribe-2", version="new", canary=True)
    for weight, target, version in ((100, "scribe-1", "old"), (0, "scribe-2", "new")):
        await site.split(weight)
        options = AskOptions(route=Route(target=target), within_s=WITHIN_S)
        outcome = await peer.caller.ask("scribe.write", {"number": 1}, options)
        assert (outcome.version, outcome.ok) == (version, True)


async def test_events_for_one_go_to_the_version_that_serves_and_those_for_all_to_both(
    peer: Peer, make: Make
) -> None:
    site = await make(Scribe)
    stable, canary = Scribe(), Scribe()
    await site.run(canary, "scribe-2", version="new", canary=True)
    await site.run(stable, "scribe-1", version="old")
    await site.split(100)
    for _ in range(5):
        await peer.caller.sender.publish("news.one", {})
    await peer.caller.sender.publish("news.all", {})

    async def all_came() -> bool:
        return Counter(stable.heard) == {"one": 5, "all": 1} and canary.heard == ["all"]

    await until(all_came)


async def test_what_is_sealed_is_opened_by_either_version(peer: Peer, make: Make) -> None:
    site = await make(Sealed)
    await site.run(Sealed(), "sealed-1", version="old")
    await site.run(Sealed(), "sealed-2", version="new", canary=True)
    for weight, version in ((0, "old"), (100, "new")):
        await site.split(weight)
        outcome = await peer.caller.ask("sealed.keep", {"secret": "abc"}, AskOptions(within_s=WITHIN_S))
        assert outcome.unwrap() == "cba"
        assert outcome.version == version


@pytest.mark.parametrize("world", ["restricted"], indirect=True)
async def test_the_credential_of_an_agent_is_enough_for_its_canary(peer: Peer, make: Make) -> None:
    site = await make(Scribe)
    await site.run(Scribe(), "scribe-1", version="old")
    await site.run(Scribe(), "scribe-2", version="new", canary=True)
    await site.split(50)
    ended = await write_all(peer, 10, 1)
    assert {outcome.version for _, outcome in ended} == {"old", "new"}


def worker(world: World, id: str) -> subprocess.Popen[str]:
    """A replica of the canary in a process of its own, once it takes tasks."""
    assert world.settings is not None
    environ = {
        **os.environ,
        "SQUADRON_ENV": world.settings.env,
        "SQUADRON_HOME": str(world.settings.home),
        "SQUADRON_HEARTBEAT_S": str(world.settings.heartbeat_s),
        "SQUADRON_LEASE_S": str(world.settings.lease_s),
    }
    if world.settings.nats_url:
        environ["SQUADRON_NATS_URL"] = world.settings.nats_url
    module = Path(__file__).with_name("canary_worker.py")
    process = subprocess.Popen([sys.executable, str(module), id], env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Before it stands what a replica logs.
    assert "ready\n" in process.stdout
    return process


@ON_NATS
@pytest.mark.parametrize("end", ["abort", "promote"])
async def test_replicas_of_a_canary_are_killed_and_it_is_ended_under_load_and_each_task_has_its_one_result(
    world: World, peer: Peer, make: Make, end: str
) -> None:
    site = await make(Press)
    stable = await site.run(Press(), "press-1", version="old")
    workers = [await asyncio.to_thread(worker, world, f"press-canary-{number}") for number in range(2)]
    try:
        await site.split(50)
        ask = AskOptions(within_s=WITHIN_S)
        handles = [await peer.caller.submit("press.print", {"page": page}, ask) for page in range(160)]
        outcomes = [asyncio.ensure_future(peer.caller.outcome(handle)) for handle in handles]

        async def some_ended() -> bool:
            return sum(each.done() for each in outcomes) >= 20

        await until(some_ended, WITHIN_S)
        # In the middle of its tasks, and of those that wait in its hands.
        workers[0].kill()
        await until(lambda: _ended(outcomes, 50), WITHIN_S)
        workers[1].kill()
        # What it had in its hands comes back when its leases have ended, to whoever serves now.
        await site.split(None)
        if end == "promote":
            await site.run(Press(), "press-2", version="new")
            await stable.stop(5.0)
            site.hosts.remove(stable)
        done = await asyncio.gather(*outcomes)
    finally:
        for each in workers:
            each.kill()
            each.wait()

    assert all(isinstance(outcome, Result) for outcome in done), Counter(type(each).__name__ for each in done)
    assert [outcome.unwrap() for outcome in done] == list(range(160))
    # Both had worked on some, and on the outcome of each there is only one word.
    assert {"old", "new"} <= {outcome.version for outcome in done}

    async def nothing_is_left() -> bool:
        # What was done and not yet settled is settled when its lease has ended.
        backlog = await peer.queue.backlog("press")
        return (backlog.waiting, backlog.taken) == (0, 0)

    await until(nothing_is_left, WITHIN_S)


async def _ended(outcomes: list[asyncio.Future[Outcome]], count: int) -> bool:
    return sum(each.done() for each in outcomes) >= count

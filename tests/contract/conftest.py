"""One world of ports per test: in memory, and on a real nats-server. The same tests run over both."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import nats
import pytest
from nats.aio.client import Client

from squadron.actors.agent import Agent, AgentSpec
from squadron.bridge.auth.roles import Role
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.bridge.seal_rings import AgentRings
from squadron.config import Settings
from squadron.runtime.asking.caller import Caller
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import UnreliableBus
from squadron.runtime.ports.events import EventLog
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.lite_journal import LiteJournal
from squadron.runtime.ports.queue import Delivery, Mailbox, Queue
from squadron.runtime.ports.vault import Vault
from squadron.runtime.registry.registry import Registry
from squadron.runtime.running.bidding import Bidding
from squadron.runtime.running.handover import Handovers
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns
from squadron.runtime.store.claims import Claims
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.seals import LoadRing
from squadron.runtime.trust.sealing import KeyRing
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.replies import principal_of
from squadron.runtime.wire.subjects import Subjects, token_of
from squadron.testing import now_s, turned_time
from tests.conftest import HEARTBEAT_S
from tests.conftest import LEASE_S as LEASE_S_OF_TESTS
from tests.contract.restricted import RestrictedServer
from tests.trusted import Realm

#: Longest wait for what must happen; it is over at once when it does. A process starts in a second, and in more
#: than thirty on a machine that many others use.
SOON_S = 120.0
#: Lease of an agent's mailbox.
LEASE_S = 1.5

T = TypeVar("T")


class NoReplicas:
    """A cluster that runs whatever it is told."""

    async def apply(self, deployments: Any) -> None: ...

    async def states(self, wanted: Any) -> dict[str, Any]:
        return {}

    async def capacity(self) -> int:
        return 8


@dataclass
class Peer:
    """One participant: all ports, seen by one process."""

    ports: Ports
    records: Journal
    registry: Registry
    caller: Caller
    place: Place
    #: Dead letters as an operator sees them.
    letters: Journal

    @property
    def subjects(self) -> Subjects:
        return self.ports.subjects

    @property
    def clock(self) -> Clock:
        return self.ports.clock

    @property
    def bus(self) -> UnreliableBus:
        return self.ports.bus

    @property
    def queue(self) -> Queue:
        return self.ports.queue

    @property
    def events(self) -> EventLog:
        return self.ports.events

    @property
    def lite(self) -> LiteJournal:
        return self.ports.lite

    @property
    def dead(self) -> Journal:
        return self.ports.dead

    @property
    def claims(self) -> Claims:
        return self.ports.claims

    @property
    def vault(self) -> Vault:
        return self.claims.vault


def peer_of(place: Place) -> Peer:
    """The ports of one process."""
    return Peer(place.ports, place.records, place.registry, place.caller, place, place.ports.dead)


class Join(Protocol):
    """How a participant comes: as a client, as the bridge, or as a replica of `agent`."""

    async def __call__(self, name: str, *, agent: str = "", bridge: bool = False) -> Peer: ...


@dataclass
class World:
    """Where the participants of one test meet."""

    kind: str
    join: Join
    #: The settings of the real server; None in memory.
    settings: Settings | None = None
    #: The same for whoever joins by hand: with a credential of its name, where everybody signs.
    settings_of: Callable[[str], Settings] | None = None
    #: The public key of an agent, as its card has it, and how it is given another one.
    seal_key: Callable[[str], str] = lambda _: ""
    rotate: Callable[[str], object] = lambda _: None
    _closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


#: Set by `test_signed_suite`: everybody signs, and believes nothing else.
SIGNED = os.environ.get("SQUADRON_TEST_SIGNED") == "yes"


class Everybody:
    """Credentials for whoever joins, if this run is a signed one; each may do all that the bridge may, but for the
    one called `operator`.
    """

    def __init__(self, folder: Path) -> None:
        self._realm, self._folder = Realm(), folder
        self._trust = folder / "trust.json"
        self._trust.write_bytes(self._realm.document())

    def settings(self, base: Settings, name: str) -> Settings:
        if not SIGNED:
            return base
        principal = principal_of(token_of(name))
        role: Role = "operator" if principal == "operator" else "bridge"
        path = self._folder / f"{role}-{principal}.creds"
        creds = path if path.exists() else self._realm.write(self._folder, principal, role)
        return replace(base, trust=self._trust, nats_user_credentials=creds, verify="require")


async def memory_world(everybody: Everybody | None = None) -> World:
    server, settings = MemoryServer("test"), Settings(env="test", heartbeat_s=HEARTBEAT_S)

    async def join(name: str, *, agent: str = "", bridge: bool = False) -> Peer:
        own = everybody.settings(settings, name) if everybody else settings
        place = server.place(AgentIdentity(id=name, type="test"), own, principal=agent)
        await place.start()
        world._closers.append(place.aclose)
        return peer_of(place)

    world = World("memory", join, seal_key=lambda agent: str(server.ring_of(agent).public), rotate=server.rotate)
    return world


async def _jetstream_world(settings: Settings, everybody: Everybody) -> World:
    rings = AgentRings(settings)

    async def join(name: str, *, agent: str = "", bridge: bool = False) -> Peer:
        own, identity = everybody.settings(settings, name), AgentIdentity(id=name, type="test")
        w = await Wiring.open(own, identity, create=True, ring=ring_of(agent) if agent else None)
        world._closers.append(w.aclose)
        return peer_of(w)

    def ring_of(agent: str) -> LoadRing:
        async def load() -> KeyRing:
            return rings.ring(agent)

        return load

    settings_of = partial(everybody.settings, settings)
    world = World("jetstream", join, settings, settings_of, rings.seal_key, rings.rotate)
    return world


async def _restricted_world(server: RestrictedServer) -> World:
    async def join(name: str, *, agent: str = "", bridge: bool = False) -> Peer:
        # Who tests looks at letters, or at all that passes, too.
        other: Role = "operator" if name in ("tester", "other", "operator") else "client"
        role: Role = "bridge" if bridge else "agent" if agent else other
        principal = agent or role
        wiring = await server.open(role, principal, id=name)
        world._closers.append(wiring.aclose)
        return replace(peer_of(wiring), letters=first.ports.dead)

    # With the settings of the bridge a test looks, or does, from where everything is allowed.
    rings = AgentRings(server.settings("bridge", "bridge"))
    looks = server.settings("bridge", "bridge")
    world = World("restricted", join, looks, seal_key=rings.seal_key, rotate=rings.rotate)
    # It makes the streams.
    first = await server.open("bridge", "bridge")
    world._closers.append(first.aclose)
    return world


#: Modules whose tests run with the rights of roles in `make test`, too.
CORE_OF_RESTRICTED = ("test_streams", "test_one_outcome")

#: For what only a real server can show.
ON_NATS = pytest.mark.parametrize("world", ["jetstream"], indirect=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of a world runs over memory and over a server; those of agents also with the rights of roles."""
    given = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "world" not in metafunc.fixturenames or "world" in given:
        return
    kinds: list[Any] = ["memory", "jetstream"]
    # A module with a way of its own to serve has no roles.
    if "serve" in metafunc.fixturenames and not hasattr(metafunc.module, "serve"):
        is_core = metafunc.module.__name__.rpartition(".")[2] in CORE_OF_RESTRICTED
        kinds.append(pytest.param("restricted", marks=[] if is_core else [pytest.mark.slow]))
    metafunc.parametrize("world", kinds, indirect=True)


@pytest.fixture
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """Ports of one kind, in an environment that no other test uses."""
    everybody = Everybody(tmp_path_factory.mktemp("everybody"))
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            stack.enter_context(turned_time())
            made = await memory_world(everybody)
        elif request.param == "restricted":
            restricted = RestrictedServer(tmp_path, "test", heartbeat_s=HEARTBEAT_S, lease_s=LEASE_S_OF_TESTS)
            restricted.start()
            stack.callback(restricted.stop)
            made = await _restricted_world(restricted)
        else:
            made = await _jetstream_world(request.getfixturevalue("settings"), everybody)
        yield made
        for close in reversed(made._closers):
            await close()
        if made.kind == "restricted":
            # What is refused is told by nothing but a wait that ends.
            assert not restricted.violations()


@pytest.fixture
async def peer(world: World) -> Peer:
    """One participant."""
    return await world.join("tester")


@pytest.fixture
async def bare(world: World) -> AsyncIterator[Client]:
    """A NATS client that knows nothing of us."""
    assert world.settings is not None
    if world.settings.nats_url:
        login = {"user": world.settings.nats_user, "password": world.settings.nats_password}
        client = await nats.connect(world.settings.nats_url, **login)
    else:
        endpoint = embedded.ensure(world.settings.home)
        client = await nats.connect(endpoint.url, token=endpoint.token)
    yield client
    await client.close()


class Replica:
    """What a Serve replica does, without Serve."""

    def __init__(
        self,
        peer: Peer,
        agent: Agent,
        *,
        slots: int = 8,
        lease_s: float = LEASE_S,
        bridge: Peer | None = None,
        seal_key: str = "",
    ) -> None:
        self.peer, self.agent, self._bridge, self._seal_key = peer, agent, bridge or peer, seal_key
        self.spec = AgentSpec.of(type(agent))
        capabilities = agent.capabilities
        handlers = self.spec.handlers(agent)
        turns = Turns(self.spec.name, handlers, peer.caller, capabilities=capabilities)
        patterns = tuple(each.topic.name for each in self.spec.topics)
        self.mailbox = Mailbox(self.spec.name, patterns, lease_s)
        self.turns = turns
        self.pump = Pump(peer.queue, self.mailbox, self._run, slots=slots)
        self.handovers = Handovers(peer.ports, self.pump)
        self.bidding = Bidding(turns, peer.ports, peer.registry, slots=slots, answer=self.spec.bidder(agent))
        #: How often what it was delivered had been delivered then.
        self.delivered: list[int] = []

    async def _run(self, delivery: Delivery) -> Outcome | None:
        self.delivered.append(delivery.lease.delivered)
        return await self.turns.run(delivery)

    async def start(self, *, card: bool = True) -> None:
        await at_last(lambda: self._bridge.queue.declare(self.mailbox))
        if card:
            await at_last(lambda: self._bridge.registry.advertise(self.spec.card().with_key(self._seal_key)))
        # Ten minutes of presence, so that no test depends on heartbeats.
        self.peer.registry.heartbeat_s = 200.0
        facts = {"capabilities": sorted(self.agent.capabilities)}
        await self.peer.registry.renew(self.spec.name, self.peer.caller.ports.identity.id, **facts)
        await self.turns.start()
        await at_last(self.pump.start)
        await self.handovers.start()
        await self.bidding.start()

    async def aclose(self) -> None:
        await self.bidding.aclose()
        await self.handovers.aclose()
        await self.pump.aclose()
        await self.turns.aclose()


Serve = Callable[..., Awaitable[Replica]]


@pytest.fixture
async def serve(world: World) -> AsyncIterator[Serve]:
    """Run an agent as one replica of its own."""
    running: list[Replica] = []

    async def start(agent: Agent, *, name: str = "replica", slots: int = 8, lease_s: float = LEASE_S) -> Replica:
        bridge = await world.join("bridge", bridge=True) if world.kind == "restricted" else None
        agent_name = AgentSpec.of(type(agent)).name
        peer = await world.join(name, agent=agent_name)
        seal_key = world.seal_key(agent_name)
        replica = Replica(peer, agent, slots=slots, bridge=bridge, seal_key=seal_key, lease_s=lease_s)
        await replica.start()
        running.append(replica)
        return replica

    yield start
    for replica in running:
        await replica.aclose()


class Inbox:
    """A sink that can be waited on."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self, item: Any) -> None:
        self._arrived.put_nowait(item)

    async def next(self, within_s: float = SOON_S) -> Any:
        return await asyncio.wait_for(self._arrived.get(), within_s)

    async def take(self, count: int) -> list[Any]:
        return [await self.next() for _ in range(count)]

    @property
    def is_empty(self) -> bool:
        return self._arrived.empty()


async def stand_in(peer: Peer, agent: str, replica: str) -> None:
    """Have a replica be there that is none, for ten minutes, so that no test depends on heartbeats."""
    peer.registry.heartbeat_s = 200.0
    await peer.registry.renew(agent, replica)


async def until(is_so: Callable[[], Awaitable[bool]], within_s: float = SOON_S) -> None:
    """Wait for a state that nobody announces; a server that is away for the moment does not tell of it."""
    deadline = now_s() + within_s
    while True:
        with contextlib.suppress(BusUnavailableError):
            if await is_so():
                return
        assert now_s() < deadline, "it never came to that"
        await asyncio.sleep(0.005)


async def at_last(make: Callable[[], Awaitable[T]]) -> T:
    """Make it, however often the server is away, or too busy to answer in time."""
    while True:
        with contextlib.suppress(BusUnavailableError):
            return await make()
        await asyncio.sleep(0.005)


async def until_listening(port: int) -> None:
    """Wait until somebody listens on a port of this machine."""

    async def is_there() -> bool:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    await until(is_there)


async def first_stored(
    lite: Journal, key: str, fits: Callable[[AgentMessage], bool] = lambda _: True
) -> AgentMessage:
    """The first message of a lite topic that fits, as soon as it is stored."""
    found: list[AgentMessage] = []

    async def is_there() -> bool:
        stored = [AgentMessage.decode(entry.data) async for entry in lite.read(key)]
        found.extend(filter(fits, stored))
        return bool(found)

    await until(is_there)
    return found[0]


async def settle_all(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        await delivery.lease.settle()

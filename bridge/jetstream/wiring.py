"""All ports of one process on one connection: clients, replicas and the bridge use the same wiring."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Self

from squadron.bridge.jetstream.bus import CoreBus
from squadron.bridge.jetstream.events import JetStreamEventLog
from squadron.bridge.jetstream.filing import Filing
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.link.at_home import JS_API, OF_ALL, user_of
from squadron.bridge.jetstream.link.connect import HEADER_BYTES, Connection
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.queue import JetStreamQueue
from squadron.bridge.jetstream.stream_configs import StreamNames, ensure_streams, streams_exist
from squadron.bridge.jetstream.vault import JetStreamVault
from squadron.bridge.place import Place
from squadron.bridge.seal_rings import own_ring
from squadron.bridge.trusting import Trusting
from squadron.config import Settings
from squadron.runtime.errors import BridgeUnavailableError, BusUnavailableError
from squadron.runtime.ports.lite_journal import LiteJournal
from squadron.runtime.ports.queue import Store
from squadron.runtime.running.ordered import OrderedQueue
from squadron.runtime.store.claims import Claims
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.seals import AGAIN_S, LoadRing, Seals
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.subjects import Subjects

if TYPE_CHECKING:
    from squadron.bridge.jetstream.keeping import Keeping
    from squadron.runtime.trust.guard import Guard


class SystemClock:
    """The wall clock."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()


def _seals(settings: Settings, trusting: Trusting, ring: LoadRing | None) -> Seals:
    if ring is not None:
        return Seals(ring, again_s=AGAIN_S)
    return Seals(own_ring(settings, "" if trusting.me is None else trusting.me.name))


# What only some need: the bridge, an agent with a stream of its own, one that takes tasks in order.


async def _make_own(connection: Connection, names: StreamNames, guard: Guard | None, agent: str) -> None:
    from squadron.bridge.jetstream.own_streams import make_own

    await make_own(connection, names, guard, agent)


def _line_of(connection: Connection, subjects: Subjects, agent: str, *, keeper: bool) -> Store:
    from squadron.bridge.jetstream.line_queue import LineQueue

    return LineQueue(connection, subjects, agent, keeper=keeper)


def _keeping(connection: Connection, vault: JetStreamVault, ports: Ports) -> Keeping:
    from squadron.bridge.jetstream.keeping import Keeping

    return Keeping(connection, vault, ports)


class Wiring(Place):
    """One process's place on a NATS server. Open it with `Wiring.open`, close it with `aclose`."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        identity: AgentIdentity,
        trusting: Trusting = Trusting(),  # noqa: B008  # a value
        ring: LoadRing | None = None,
    ) -> None:
        names = StreamNames(settings.env)
        subjects, clock = Subjects(settings.env, settings.outside), SystemClock()
        records = JetStreamJournal(connection, names.registry)
        self.connection = connection
        strict, keeper = settings.audit_strict == "yes", settings.nats_own == OF_ALL
        guard = trusting.guard(settings, records, subjects, clock.time)
        own_of = partial(_make_own, connection, names, guard) if keeper else None
        queue = JetStreamQueue(connection, subjects, strict=strict, make_own=own_of)
        lite: LiteJournal = JetStreamJournal(connection, names.lite)
        is_apart = connection.api_prefix != JS_API
        vault = JetStreamVault(connection, names, user_of(settings) if is_apart else "")
        line_of = partial(_line_of, connection, subjects, keeper=keeper)
        own, runs = lite, JetStreamJournal(connection, names.runs)
        if settings.nats_own and not keeper:
            from squadron.bridge.jetstream.own_streams import OwnStream

            own = runs = OwnStream(connection, names, settings.nats_own)
        if trusting.signer is not None:
            connection.client.sign = trusting.signer.sign
        ports = Ports(
            identity=identity,
            subjects=subjects,
            clock=clock,
            bus=CoreBus(connection),
            queue=OrderedQueue(queue, subjects, clock, line_of if is_apart or keeper else None),
            events=JetStreamEventLog(connection, subjects),
            lite=lite,
            dead=JetStreamJournal(connection, names.dead),
            own=own,
            runs=runs,
            own_is_apart=own is runs,
            claims=Claims(
                vault,
                over_bytes=min(settings.claim_over_bytes, connection.max_payload - HEADER_BYTES),
                most_bytes=settings.max_message_bytes,
                seals=_seals(settings, trusting, ring),
            ),
            file_action=Filing(connection, names).file,
            guard=guard,
            principal=trusting.me,
            policy=trusting.policy,
        )
        self._keeping = _keeping(connection, vault, ports) if keeper else None
        super().__init__(ports, records, settings, trusting)

    @classmethod
    async def open(
        cls,
        settings: Settings,
        identity: AgentIdentity,
        *,
        create: bool = False,
        ring: LoadRing | None = None,
    ) -> Self:
        """Connect and be ready to ask.

        Args:
            create: start the embedded server if none is configured, and make the streams.
            ring: where its keys come from; by default a file, see `own_ring`.

        Raises:
            ConfigError: nothing runs here, or the credentials are wrong.
            BusUnavailableError: the server can't be reached.
            BridgeUnavailableError: the environment was never brought up on this server.
        """
        trusting = Trusting.of(settings, time.time)
        identity = trusting.named(identity)
        connection = await connect(settings, name=identity.id, start_embedded=create)
        wiring = cls(connection, settings, identity, trusting, ring)
        try:
            names = StreamNames(settings.env)
            if create:
                make = partial(ensure_streams, connection, names, settings.stream_replicas)
                try:
                    await make(apart=settings.nats_own == OF_ALL)
                except BusUnavailableError:
                    # Servers that have just started have no leader yet, and drop what they are asked.
                    await make(apart=settings.nats_own == OF_ALL)
            elif not await streams_exist(connection, names):
                raise BridgeUnavailableError(
                    f"environment {settings.env!r} was never started on this server",
                    hint="start it with `squadron up`, or name another with SQUADRON_ENV",
                )
            await wiring.start()
            if wiring._keeping is not None:
                await wiring._keeping.start()
        except BaseException:
            # What it has begun would go on to ask a connection that is closed.
            await wiring.aclose()
            raise
        return wiring

    async def disconnect(self) -> None:
        """Close the connection."""
        if self._keeping is not None:
            await self._keeping.aclose()
        await self.connection.aclose()

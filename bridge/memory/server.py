"""A server in memory: what it keeps outlives the processes, each of which has a line of its own to it."""

from __future__ import annotations

from dataclasses import replace

from squadron.bridge.memory.bus import MemoryBus
from squadron.bridge.memory.common import LoopClock
from squadron.bridge.memory.events import MemoryEventLog
from squadron.bridge.memory.journal import MemoryJournal
from squadron.bridge.memory.line import Line
from squadron.bridge.memory.queue import MemoryQueue
from squadron.bridge.memory.vault import MemoryVault
from squadron.bridge.place import Place
from squadron.bridge.seal_rings import own_ring
from squadron.bridge.trusting import Trusting
from squadron.config import Settings
from squadron.runtime.running.ordered import OrderedQueue
from squadron.runtime.store.claims import Claims
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.seals import Seals
from squadron.runtime.trust.sealing import KeyRing
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.replies import principal_of
from squadron.runtime.wire.subjects import Subjects


class MemoryPlace(Place):
    """One process's place on a server in memory. Get it from `MemoryServer.place`, close it with `aclose`."""

    def __init__(
        self, line: Line, ports: Ports, records: MemoryJournal, settings: Settings, trusting: Trusting
    ) -> None:
        super().__init__(ports, records, settings, trusting)
        self.line = line

    async def disconnect(self) -> None:
        """Nothing is heard, and nothing can be said, any more."""
        self.line.leave()


class MemoryServer:
    """All that a server keeps for one environment, whoever comes and goes."""

    def __init__(self, environment: str = "dev", clock: Clock | None = None) -> None:
        self.subjects, self.clock = Subjects(environment), clock or LoopClock()
        self.bus, self.vault = MemoryBus(), MemoryVault()
        self.queue = MemoryQueue(self.bus)
        self.lite, self.dead = MemoryJournal(self.bus), MemoryJournal(self.bus)
        self.runs = MemoryJournal(self.bus, self.clock.time)
        self.records = MemoryJournal(self.bus, self.clock.time)
        self.events = MemoryEventLog(self.bus, self.subjects)
        self._lines: list[Line] = []
        #: The keys of all principals: nothing of it is in a file.
        self._rings: dict[str, KeyRing] = {}
        self._is_cut = False

    def ring_of(self, principal: str) -> KeyRing:
        """The keys of a principal, made if there are none."""
        return self._rings.setdefault(principal, KeyRing.create())

    def rotate(self, principal: str) -> KeyRing:
        """Give a principal a new key; what was sealed for its old ones still opens."""
        self._rings[principal] = self.ring_of(principal).rotated()
        return self._rings[principal]

    def place(self, identity: AgentIdentity, settings: Settings, *, principal: str = "") -> MemoryPlace:
        """A place for one more process, not yet started.

        Args:
            principal: whose keys it has, if that is not the one that its name tells.
        """
        line = Line()
        if self._is_cut:
            line.cut()
        self._lines.append(line)
        trusting, records = Trusting.of(settings, self.clock.time), self.records.over(line)
        if trusting.signer is not None:
            line.sign = trusting.signer.sign
        whose = principal or principal_of(identity.id)

        async def ring() -> KeyRing:
            return self.ring_of(whose)

        subjects = replace(self.subjects, outside=settings.outside)
        ports = Ports(
            identity=trusting.named(identity),
            subjects=subjects,
            clock=self.clock,
            bus=self.bus.over(line),
            queue=OrderedQueue(self.queue.over(line), subjects, self.clock),
            events=self.events.over(line),
            lite=self.lite.over(line),
            dead=self.dead.over(line),
            own=self.lite.over(line),
            runs=self.runs.over(line),
            claims=Claims(
                self.vault.over(line),
                over_bytes=settings.claim_over_bytes,
                most_bytes=settings.max_message_bytes,
                seals=Seals(ring if settings.seal_keys is None else own_ring(settings, whose)),
            ),
            guard=trusting.guard(settings, records, self.subjects, self.clock.time),
            principal=trusting.me,
            policy=trusting.policy,
        )
        return MemoryPlace(line, ports, records, settings, trusting)

    def cut(self) -> None:
        """Cut the lines of all processes, and of those that come. May be called twice."""
        self._is_cut = True
        for line in self._lines:
            line.cut()

    def heal(self) -> None:
        """Connect them again; may be called when nothing is cut."""
        self._is_cut = False
        for line in self._lines:
            line.heal()

"""The bridge's side: hears what replicas counted, adds it up, and looks up what else there is to show."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from squadron.bridge.metrics.families import OTHER, VERSION, Cells
from squadron.bridge.metrics.figures import Figures, Gauge
from squadron.bridge.metrics.sums import Sums, read_cells
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    InvalidMessageError,
    InvalidSubjectError,
    MessageTooLargeError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.journal import Journal
from squadron.runtime.registry.presence import LONGEST_LIFE_S, MISSED_HEARTBEATS
from squadron.runtime.retries import summary_of
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.amounts import is_amount
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import check_token

#: Agents whose figures stand apart: anybody on the bus may send heartbeats.
MOST_AGENTS = 1_000
#: What every agent shows from its first heartbeat on: an alert on the growth of a counter that comes into being as
#: something goes wrong does not see it.
_FROM_THE_START: Cells = {("buried",): (0,), ("reconnects",): (0,)}
#: How long the figures of an agent are kept of which nothing is heard, in seconds: 30 days.
KEPT_S = 30 * 24 * 3600.0
#: Between two looks there is so many times as long as one takes, as NATS and Serve have other things to do; but no
#: longer than this, in seconds, for alerts to be of use.
PAUSE, LONGEST_PAUSE_S = 10, 30.0


@dataclass(frozen=True, slots=True)
class _Load:
    """How one replica is doing, and when it said so, by the loop's clock."""

    slots: float
    busy: float
    lag_s: float
    heard_at: float
    #: When it is heard of next.
    beat_s: float
    #: How many tasks ended there.
    ended: float

    def is_silent(self, now: float, beats: int = MISSED_HEARTBEATS) -> bool:
        """Whether it has missed so many heartbeats."""
        return self.heard_at + beats * self.beat_s < now


class Census:
    """The figures of one environment. `figures` may be asked for from any thread.

    Counters are shown once they are stored, so that a bridge that starts anew shows no less than the one before it
    did: a counter that falls counts for a reset, and all of it once more.
    """

    def __init__(
        self,
        ports: Ports,
        records: Journal,
        look_up: Callable[[], Awaitable[Iterable[Gauge]]],
        *,
        heartbeat_s: float,
    ) -> None:
        """Make one; it does nothing before `load`.

        Args:
            records: the journal of the registry.
            look_up: the gauges that cost a question to others.
        """
        self._ports, self._records, self._look_up, self._beat_s = ports, records, look_up, heartbeat_s
        self._sums: dict[str, Sums] = {}
        self._unstored: set[str] = set()
        self._loads: dict[tuple[str, str], _Load] = {}
        #: By agent, how often a replica told of tasks that had ended since its last heartbeat.
        self.uses: Counter[str] = Counter()
        self._shown: dict[str, Cells] = {}
        self._looked_up: tuple[Gauge, ...] = ()
        self._reconnects, self._lag_s = 0, 0.0
        self._sinks: list[Callable[[Figures], None]] = []
        self._hearing: Subscription | None = None
        self._working: list[asyncio.Task[None]] = []
        self._log = get_logger("squadron.metrics")

    async def load(self) -> None:
        """Take up what is stored.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        self._loop = asyncio.get_running_loop()
        for entry in await self._records.latest(self._ports.subjects.registry("metrics")):
            agent = entry.key.rsplit(".", 1)[-1]
            try:
                sums = Sums.decode(entry.data, self._loop.time())
            except InvalidMessageError as error:
                self._log.warning("metrics.bad_record", agent=agent, error=str(error))
                continue
            self._sums[agent], self._shown[agent] = sums, {**_FROM_THE_START, **sums.total()}

    async def start(self) -> None:
        """Begin to hear, and to look; once, after `load`."""
        self._ports.bus.on_reconnect(self._reconnected)
        self._hearing = await self._ports.bus.subscribe(self._ports.subjects.event("status.*"), self._hear)
        self._working = [
            spawn(self._keep_storing(), "metrics", lasting=True),
            spawn(self._keep_looking(), "gauges", lasting=True),
        ]

    async def aclose(self) -> None:
        """Stop, with all stored that was heard if the server takes it. May be called twice."""
        if self._hearing is not None:
            await self._hearing.aclose()
        await cancel_all(self._working)
        if self._hearing is not None:
            self._hearing = None
            await self.store()

    def store_all(self) -> None:
        """Have all stored anew: the server has lost what it had."""
        self._unstored.update(self._sums)

    def each_beat(self, sink: Callable[[Figures], None]) -> None:
        """Call `sink` with the figures once per heartbeat."""
        self._sinks.append(sink)

    # --- what replicas tell --------------------------------------------------------------------------

    def _hear(self, note: Note) -> None:
        try:
            content: Any = AgentMessage.decode(note.data).payload.content
            told = content["metrics"]
            agent, replica = check_token(content["agent"], "agent"), check_token(content["replica"], "replica")
            agent, replica = self.take(agent, replica, told)
            slots, busy, lag_s = map(_amount, (content["slots"], content["inFlight"], told["lagS"]))
            # Where there are thousands, each is heard of more seldom.
            beat_s = min(max(self._beat_s, _amount(content.get("beatS", 0))), LONGEST_LIFE_S)
            ended = sum(map(_amount, (content.get("outcomes") or {}).values()))
            load = _Load(slots, busy, lag_s, self._loop.time(), beat_s, ended)
            before = self._loads.get((agent, replica))
            if agent in self._sums and ended != (before.ended if before else 0):
                self.uses[agent] += 1
            if content["event"] == "agent_offline":
                self._loads.pop((agent, replica), None)
            else:
                self._loads[agent, replica] = load
        except (InvalidMessageError, InvalidSubjectError, LookupError, TypeError, ValueError):
            # Anybody may publish there; the bridge itself tells of replicas that fell silent.
            return

    def take(self, agent: str, replica: str, told: Mapping[str, Any]) -> tuple[str, str]:
        """Take in what a replica told; returns as whose, as there may be too many agents to tell apart.

        Raises:
            InvalidMessageError: it is something else.
        """
        if told["v"] != VERSION:
            raise InvalidMessageError(f"version {told['v']} of metrics is not known")
        cells = read_cells(told["cells"])
        if agent not in self._sums and len(self._sums) >= MOST_AGENTS:
            agent, replica = OTHER, f"{agent}.{replica}"
        is_new = agent not in self._sums
        if self._sums.setdefault(agent, Sums()).take(replica, cells, self._loop.time()) or is_new:
            self._unstored.add(agent)
        return agent, replica

    async def _reconnected(self) -> None:
        self._reconnects += 1
        for sums in self._sums.values():
            sums.wait_on(self._loop.time())

    # --- what is shown -------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """All that there is to show now."""
        return Figures(dict(self._shown), (*self._looked_up, *self._of_loads()))

    def tasks_of(self, agent: str, topic: str) -> tuple[dict[str, int], float]:
        """How tasks of an agent's topic ended, by kind of outcome, and what one of its tasks costs in USD."""
        cells, of_topic, all_tasks, usd_micros = self._shown.get(agent, {}), dict[str, int](), 0.0, 0.0
        for (kind, *labels), numbers in cells.items():
            if kind == "tasks":
                all_tasks += numbers[0]
                if labels[0] == topic:
                    of_topic[labels[1]] = int(numbers[0])
            elif kind == "usd_micros":
                usd_micros += numbers[0]
        return of_topic, usd_micros / 1e6 / max(1.0, all_tasks)

    def versions_of(self, agent: str) -> dict[str, dict[str, int]]:
        """How tasks ended while an agent had a canary, by version of its code and kind of outcome."""
        found: dict[str, dict[str, int]] = {}
        for (kind, *labels), numbers in self._shown.get(agent, {}).items():
            if kind == "versions":
                found.setdefault(labels[0], {})[labels[1]] = int(numbers[0])
        return found

    def _of_loads(self) -> list[Gauge]:
        """How busy replicas are that were heard of lately."""
        now = self._loop.time()
        agents: dict[str, list[_Load]] = {}
        for (agent, _), load in list(self._loads.items()):
            if not load.is_silent(now):
                agents.setdefault(agent, []).append(load)
        gauges: list[Gauge] = [
            ("squadron_bridge_nats_reconnects", (), self._reconnects),
            ("squadron_bridge_loop_lag_seconds", (), self._lag_s),
        ]
        for agent, loads in agents.items():
            busy = sum(each.busy for each in loads)
            gauges += [
                ("squadron_slots", (agent, "busy"), busy),
                ("squadron_slots", (agent, "free"), sum(each.slots for each in loads) - busy),
                ("squadron_replicas", (agent, "present"), len(loads)),
                ("squadron_loop_lag_seconds", (agent,), max(each.lag_s for each in loads)),
            ]
        return gauges

    async def store(self) -> None:
        """Store what is new, and show it then."""
        for agent in list(self._unstored):
            sums = self._sums[agent]
            key, data = self._ports.subjects.record("metrics", agent), sums.encode()
            total = {**_FROM_THE_START, **sums.total()}
            self._unstored.discard(agent)
            try:
                await self._records.append(key, data, ttl_s=KEPT_S)
            except BusUnavailableError:
                self._unstored.add(agent)
                continue
            except MessageTooLargeError as error:
                # Shown all the same; after a restart of the bridge these begin anew.
                self._log.warning("metrics.not_stored", agent=agent, error=str(error))
            self._shown[agent] = total

    async def _keep_storing(self) -> None:
        while True:
            due = self._loop.time() + self._beat_s
            await asyncio.sleep(self._beat_s)
            self._lag_s = max(0.0, self._loop.time() - due)
            loads = self._loads.items()
            self._loads = {name: each for name, each in loads if not each.is_silent(due, 10 * MISSED_HEARTBEATS)}
            try:
                await self.store()
                figures = self.figures()
                for sink in self._sinks:
                    sink(figures)
            except Exception as error:
                self._log.warning("metrics.not_shown", error=summary_of(error))

    async def _keep_looking(self) -> None:
        while True:
            began = self._loop.time()
            try:
                self._looked_up = tuple(await self._look_up())
            except Exception as error:
                # The last ones stand until there are new ones; how old they are is one of them.
                self._log.info("metrics.no_gauges", error=summary_of(error))
            took_s = self._loop.time() - began
            await asyncio.sleep(max(self._beat_s, min(PAUSE * took_s, LONGEST_PAUSE_S)))


def _amount(value: Any) -> float:
    if not is_amount(value):
        raise InvalidMessageError("what stands for an amount is none")
    return value

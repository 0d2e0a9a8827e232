"""One replica of an agent: pulls its mailbox, hears its events, shows its presence. Neither Ray nor NATS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import DurableMark, EventMark
from squadron.actors.remote.remote_agent import RemoteAgent
from squadron.bridge.metrics.counting import Counting
from squadron.bridge.place import Place
from squadron.bridge.status_relay import own_status
from squadron.config import API_PREFIX
from squadron.runtime.background import CANCEL_OTHERS_AGAIN_S, cancel_all, spawn
from squadron.runtime.calling import THREAD_GRACE_S, Threads, call
from squadron.runtime.errors import BusUnavailableError, InvalidMessageError, SquadronError, UntrustedError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.retries import summary_of, traceback_of
from squadron.runtime.running.bidding import Bidding
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.handover import Handovers
from squadron.runtime.running.permission import may_publish
from squadron.runtime.running.pump import BROUGHT_ONLY, Pump
from squadron.runtime.running.split import Split
from squadron.runtime.running.told import Told
from squadron.runtime.running.turn import Turns
from squadron.runtime.trust.may_say import speaks_as
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.outcome import VERSION_CHARACTERS
from squadron.runtime.wire.subjects import token_of

#: Looks between two heartbeats at how late the event loop is: what blocks it for longer than one of them is seen.
LAG_LOOKS = 4
#: How long what began is given to end when a start failed, in seconds: `on_stop` is code of others.
UNDO_WITHIN_S = 10.0


class Host:
    """Runs one instance of an agent on a place of its own; `facts` go into its presence."""

    def __init__(
        self,
        place: Place,
        agent: Agent,
        spec: AgentSpec,
        *,
        slots: int,
        ordered: bool = False,
        canary: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Make one; it does nothing before `start`.

        Args:
            canary: it runs a version that is tried beside the one that serves; see `Split`.
        """
        self.place, self.agent, self.spec = place, agent, spec
        self._slots, self._canary = slots, canary
        self._facts = {**(facts or {}), **({"canary": True} if canary else {})}
        patterns = tuple(topic.name for topic in spec.card().topics)
        self.mailbox = Mailbox(self.spec.name, patterns, place.settings.lease_s, ordered=ordered)
        version = str(self._facts.get("version", ""))[:VERSION_CHARACTERS]
        self._split = Split(spec.name, place.registry, version=version, canary=canary)
        self._counting = Counting(two_versions=self._split.is_on)
        self._ears: list[Subscription] = []
        self._events: set[asyncio.Task[None]] = set()
        self._heart: asyncio.Task[None] | None = None
        self._log = get_logger("squadron.replica").bind(agent=self.spec.name, replica=self.id)

    @property
    def id(self) -> str:
        """Name of the replica."""
        return self.place.ports.identity.id

    async def start(self) -> None:
        """Start the agent and take its work; it is present when this returns.

        If that fails, or is cancelled, all that had begun has ended when this raises, and `on_stop` was
        called: where agents share a process, another start may follow in it.
        """
        ports = self.place.ports
        ports.observers.add(self._counting)
        ports.bus.on_reconnect(self._counting.reconnected)
        if isinstance(self.agent, RemoteAgent):
            self.agent.ports = ports
        try:
            await self.agent.on_start()
            self._make_parts()
        except BaseException:
            await self._undo(self._stop_agent())
            raise
        try:
            await self._begin()
        except BaseException:
            await self._undo(self.stop(0.0))
            raise

    async def _undo(self, stopping: Coroutine[Any, Any, None]) -> None:
        """Why it failed is told, and nothing of what is done about it."""
        try:
            async with asyncio.timeout(UNDO_WITHIN_S):
                await stopping
        except (Exception, asyncio.CancelledError) as error:
            self._log.warning("replica.not_undone", error=summary_of(error))

    def _make_parts(self) -> None:
        """All that takes its work, none of which is open yet."""
        ports, spec = self.place.ports, self.spec
        # What it is capable of may be known only now.
        capabilities = self.agent.capabilities
        own = spec.name, spec.handlers(self.agent), self.place.caller
        self._turns = Turns(*own, capabilities=capabilities, split=self._split)
        supply = BROUGHT_ONLY if self._canary else ports.queue
        self._pump = Pump(supply, self.mailbox, self._turns.run, slots=self._slots)
        self._bidding = Bidding(
            self._turns, ports, self.place.registry, slots=self._slots, answer=spec.bidder(self.agent)
        )
        # Of events there are no shares: one of the version that serves gets each, unless all are to hear it.
        durable = () if self._canary else spec.durable_events
        self._event_pumps = [self._event_pump(method, mark) for method, mark in durable]
        self._handovers = Handovers(ports, self._pump)

    async def _begin(self) -> None:
        await self._turns.start()
        for method, mark in self.spec.events:
            if mark.everyone or not self._canary:
                self._ears.append(await self._subscribe(method, mark))
        if self.mailbox.patterns:
            await self._pump.start()
            await self._handovers.start()
            if not self._canary:
                await self._bidding.start()
        for pump in self._event_pumps:
            await pump.start()
        await self._renew()
        await self._tell("online")
        self._heart = spawn(self._beat(), "heartbeat", lasting=True)
        self._log.info("replica.online", version=self._facts.get("version"), topics=self.mailbox.patterns)

    async def _subscribe(self, method: str, mark: EventMark) -> Subscription:
        def hear(note: Note) -> None:
            task = spawn(self._handle_event(method, mark, note), f"event {note.subject}")
            self._events.add(task)
            task.add_done_callback(self._events.discard)

        group = "" if mark.everyone else f"{self.spec.name}-{method}"
        pattern = self.place.ports.subjects.event(mark.pattern)
        return await self.place.ports.bus.subscribe(pattern, hear, group=group)

    def _event_pump(self, method: str, mark: DurableMark) -> Pump:
        name = f"{self.spec.name}.{token_of(method)}"
        group = EventGroup(name, mark.pattern, mark.start, self.place.settings.lease_s)
        turns = EventTurns(
            group.name,
            getattr(self.agent, method),
            self.place.ports,
            pattern=mark.pattern,
            retries=mark.retries,
            run_timeout_s=mark.run_timeout_s,
        )
        return Pump(self.place.ports.events, group, turns.run, slots=self._slots)

    async def _handle_event(self, method: str, mark: EventMark, note: Note) -> None:
        try:
            message = AgentMessage.decode(note.data)
        except InvalidMessageError as error:
            self._log.warning("event.unreadable", subject=note.subject, error=str(error))
            return
        if not await self._is_trusted(note, message):
            return
        threads, own = Threads(), asyncio.current_task()
        name, topic = f"{self.spec.name}.{method}", ".".join(note.subject.split(".")[3:])
        told = Told(self.place.ports, "event", name, message, topic, mark.pattern, note)
        told.begun(1)
        try:
            await call(threads, getattr(self.agent, method), message)
            told.ended("handled")
        except GeneratorExit:
            raise
        except BaseException as error:
            # A handler that calls sys.exit() would take the replica along.
            if isinstance(error, asyncio.CancelledError) and own is not None and own.cancelling():
                await threads.ended(THREAD_GRACE_S)
                told.ended("lost")
                raise
            told.ended("lost", error=summary_of(error))
            about = {"subject": note.subject, "message": message.id, "traceback": traceback_of(error)}
            self._log.error("event.handler_failed", **about)

    async def _is_trusted(self, note: Note, message: AgentMessage) -> bool:
        guard, said = self.place.ports.guard, (note.subject, note.data, note.headers)
        if guard is None:
            return True
        try:
            # The server tells durable events here, too, as they were stored.
            topic, speaks = ".".join(note.subject.split(".")[3:]), speaks_as(message.source.id)
            may = may_publish(self.place.ports, topic, message.metadata, speaks)
            await guard.admit("event", *said, at=None, may=may, topic=topic)
        except (UntrustedError, BusUnavailableError):
            return False
        return True

    async def _renew(self) -> None:
        facts = {**self._facts, "capabilities": sorted(self.agent.capabilities)}
        await self.place.registry.renew(self.spec.name, self.id, **facts)

    async def _tell(self, event: str) -> None:
        """Publish `agents.{env}.event.status.{online|heartbeat|offline}`, or have it told on there."""
        ports, statistics = self.place.ports, self._pump.statistics()
        content = {
            "event": f"agent_{event}",
            "agent": self.spec.name,
            "replica": self.id,
            "slots": statistics.slots,
            "inFlight": statistics.in_flight,
            "outcomes": statistics.outcomes,
            "beatS": self.place.registry.beat_s,
            "metrics": self._counting.told(),
        }
        told = ports.pack("event", {"content": content}, conversation_id="system")
        # Where agents are apart each speaks of itself alone.
        is_apart = self.place.settings.nats_api_prefix == API_PREFIX
        own = own_status(ports.subjects.environment, self.spec.name, event)
        await ports.bus.publish(own if is_apart else ports.subjects.event(f"status.{event}"), told)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            beat_s, lag_s = self.place.registry.beat_s, 0.0
            for _ in range(LAG_LOOKS):
                due = loop.time() + beat_s / LAG_LOOKS
                await asyncio.sleep(beat_s / LAG_LOOKS)
                lag_s = max(lag_s, loop.time() - due)
            self._counting.lag_s = lag_s
            try:
                await self._renew()
                await self._tell("heartbeat")
            except Exception as error:
                # The next one tells again; a replica that is deaf for long fails its health check.
                self._log.info("replica.no_heartbeat", error=summary_of(error))

    async def stop(self, grace_s: float) -> None:
        """Give what runs so many seconds to end, hand back the rest, and say farewell. Once, after `start`."""
        try:
            # It stays present while it finishes what runs.
            await self.halt(grace_s)
            with contextlib.suppress(SquadronError):
                await self.place.registry.depart(self.spec.name, self.id)
                await self._tell("offline")
        finally:
            await self._stop_agent()

    async def _stop_agent(self) -> None:
        try:
            await self.agent.on_stop()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            # Whoever stops it has more to close, whatever it raises.
            self._log.error("replica.stop_failed", traceback=traceback_of(error))

    async def halt(self, grace_s: float) -> None:
        """Take nothing more, and be silent once what runs has ended, or so many seconds are over."""
        await self._bidding.aclose()
        await self._handovers.aclose()
        for ear in self._ears:
            await ear.aclose()
        drains = (pump.drain(grace_s) for pump in (self._pump, *self._event_pumps))
        await asyncio.gather(*drains, self._finish_events(grace_s))
        await self._turns.aclose()
        if self._heart is not None:
            self._heart.cancel()

    async def _finish_events(self, within_s: float) -> None:
        """Wait for the handlers of plain events, which are lost if they are cut short; then cancel them."""
        if self._events:
            await asyncio.wait(self._events, timeout=within_s)
        await cancel_all(list(self._events), again_s=CANCEL_OTHERS_AGAIN_S)

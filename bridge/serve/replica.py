"""One replica of an agent, inside a Ray Serve replica: pulls its mailbox and shows its presence."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import structlog
from ray import serve
from ray.serve import Application

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import DurableMark, EventMark
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.packing.code import Code, unpack
from squadron.config import Settings
from squadron.runtime.background import Health, spawn
from squadron.runtime.calling import Threads, call
from squadron.runtime.errors import DeployError, InvalidMessageError, SquadronError
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.retries import summary_of, traceback_of
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.handover import Handovers
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, pack
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.subjects import token_of

#: Ray namespace of everything of ours.
NAMESPACE = "squadron"
#: How long a replica looks for the bridge, in seconds: a killed bridge is back in about two.
FIND_BRIDGE_WITHIN_S = 30.0


def bridge_name(environment: str) -> str:
    """Name of the environment's bridge actor in Ray."""
    return f"squadron-bridge-{environment}"


async def fetch_settings(environment: str) -> Settings:
    """The settings the environment was brought up with; only the bridge holds them, credentials included.

    Raises:
        DeployError: the bridge can't be found.
    """
    give_up_at = time.monotonic() + FIND_BRIDGE_WITHIN_S
    while True:
        try:
            bridge = ray.get_actor(bridge_name(environment), namespace=NAMESPACE)
            settings: Settings = await bridge.settings.remote()
            return settings
        except (ValueError, ray.exceptions.RayActorError) as error:
            if time.monotonic() > give_up_at:
                raise DeployError(f"no bridge for environment {environment!r}: {error}") from None
            await asyncio.sleep(0.2)


class AgentReplica:
    """What Ray Serve runs for an agent. It takes no Serve requests: work comes from the mailbox."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, environment: str, agent: str, code: dict[str, str], slots: int, grace_s: float, ordered_by: str = ""
    ) -> None:
        try:
            await self._begin(environment, agent, Code(**code), slots, grace_s, ordered_by)
        except Exception as error:
            # Ray logs it and tells of it as it is, with all that led to it, and knows nothing of secrets.
            raise DeployError(traceback_of(error).rstrip()) from None

    async def _begin(
        self, environment: str, agent: str, code: Code, slots: int, grace_s: float, ordered_by: str
    ) -> None:
        # What imports have left, of Ray above all, lives as long as the process; each full collection of garbage
        # would look at all of it again, and stop the replica for 0.2 s.
        gc.freeze()
        self._health = Health.begin()
        settings: Settings = await fetch_settings(environment)
        configure_logs(settings.log_level)
        # Sync handlers run in threads: one for each slot.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(slots, "handler"))
        self._name, self._code, self._grace_s = agent, code, grace_s
        self._identity = AgentIdentity(id=f"{agent}-{uuid.uuid4().hex[:8]}", type=agent)
        self._log = structlog.get_logger("squadron.replica").bind(agent=agent, replica=self._identity.id)
        self._wiring = await Wiring.open(settings, self._identity)
        spec = AgentSpec.of(await self._load())
        self._agent: Agent = spec.agent_class()
        await self._agent.on_start()
        self._turns = Turns(
            agent,
            spec.handlers(self._agent),
            self._wiring.caller,
            capabilities=self._agent.capabilities,
        )
        await self._turns.start()
        patterns = tuple(topic.topic.name for topic in spec.topics)
        mailbox = Mailbox(agent, patterns, settings.lease_s, ordered=ordered_by != "")
        self._pump = Pump(self._wiring.ports.queue, mailbox, self._turns.run, slots=slots)
        self._event_pumps = [self._event_pump(method, mark, slots) for method, mark in spec.durable_events]
        self._ears: list[Subscription] = []
        self._events: set[asyncio.Task[None]] = set()
        self._stopped = False
        await self._listen(spec)
        self._handovers = Handovers(self._wiring.ports, self._pump)
        if spec.topics:
            await self._pump.start()
            await self._handovers.start()
        for pump in self._event_pumps:
            await pump.start()
        await self._renew()
        await self._tell("online")
        self._heart = spawn(self._beat(), "heartbeat", lasting=True)
        self._log.info("replica.online", version=self._code.version, topics=mailbox.patterns)

    async def _load(self) -> type[Agent]:
        blob = b""
        if not self._code.import_path:
            entry = await self._wiring.records.last(self._wiring.ports.subjects.record("blob", self._code.version))
            if entry is None:
                raise DeployError(f"the code of {self._name} ({self._code.version}) is not in the registry")
            blob = entry.data
        return unpack(self._code, blob)

    async def _listen(self, spec: AgentSpec) -> None:
        for method, mark in spec.events:
            self._ears.append(await self._subscribe(method, mark))

    async def _subscribe(self, method: str, mark: EventMark) -> Subscription:
        handler = getattr(self._agent, method)

        def hear(note: Note) -> None:
            task = spawn(self._handle_event(handler, note), f"event {note.subject}")
            self._events.add(task)
            task.add_done_callback(self._events.discard)

        group = "" if mark.everyone else f"{self._name}-{method}"
        pattern = self._wiring.ports.subjects.event(mark.pattern)
        return await self._wiring.ports.bus.subscribe(pattern, hear, group=group)

    def _event_pump(self, method: str, mark: DurableMark, slots: int) -> Pump:
        wiring = self._wiring
        group = EventGroup(f"{self._name}.{token_of(method)}", mark.pattern, mark.start, wiring.settings.lease_s)
        turns = EventTurns(
            group.name,
            getattr(self._agent, method),
            wiring.ports,
            retries=mark.retries,
            run_timeout_s=mark.run_timeout_s,
        )
        return Pump(wiring.ports.events, group, turns.run, slots=slots)

    async def _handle_event(self, handler: Any, note: Note) -> None:
        try:
            message = AgentMessage.decode(note.data)
        except InvalidMessageError as error:
            self._log.warning("event.unreadable", subject=note.subject, error=str(error))
            return
        try:
            await call(Threads(), handler, message)
        except Exception as error:
            told = {"subject": note.subject, "message": message.id, "traceback": traceback_of(error)}
            self._log.error("event.handler_failed", **told)

    async def _renew(self) -> None:
        facts = {
            "version": self._code.version,
            "pid": os.getpid(),
            "node": platform.node(),
            "capabilities": sorted(self._agent.capabilities),
        }
        await self._wiring.registry.renew(self._name, self._identity.id, **facts)

    async def _tell(self, event: str) -> None:
        """Publish `agents.{env}.event.status.{online|heartbeat|offline}`."""
        statistics = self._pump.statistics()
        content = {
            "event": f"agent_{event}",
            "agent": self._name,
            "replica": self._identity.id,
            "slots": statistics.slots,
            "inFlight": statistics.in_flight,
            "outcomes": statistics.outcomes,
        }
        told = pack("event", self._identity, {"content": content}, conversation_id="system")
        await self._wiring.ports.bus.publish(self._wiring.ports.subjects.event(f"status.{event}"), told)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._wiring.settings.heartbeat_s)
            try:
                await self._renew()
                await self._tell("heartbeat")
            except Exception as error:
                # The next one tells again; a replica that is deaf for long fails its health check.
                self._log.info("replica.no_heartbeat", error=summary_of(error))

    async def check_health(self) -> None:
        """Ray Serve asks every second; a replica that is broken, or has been deaf for long, is replaced."""
        if self._health.fault:
            raise RuntimeError(f"{self._identity.id}: {self._health.fault}")
        silent_s = self._wiring.connection.silent_s
        if silent_s > self._wiring.settings.deaf_after_s:
            raise RuntimeError(f"{self._identity.id} has not heard from NATS for {silent_s:.0f} s")

    async def __call__(self) -> dict[str, Any]:
        """Serve wants a callable; nobody needs to call it."""
        return {"agent": self._name, "replica": self._identity.id}

    async def __del__(self) -> None:
        """Ray Serve awaits this when the replica is to go: finish what runs, hand back the rest."""
        if getattr(self, "_stopped", True):
            return
        self._stopped = True
        await self._handovers.aclose()
        for ear in self._ears:
            await ear.aclose()
        # It stays present while it finishes what runs.
        await asyncio.gather(*(pump.drain(self._grace_s) for pump in (self._pump, *self._event_pumps)))
        await self._turns.aclose()
        self._heart.cancel()
        with contextlib.suppress(SquadronError):
            await self._wiring.registry.depart(self._name, self._identity.id)
            await self._tell("offline")
        try:
            await self._agent.on_stop()
        except Exception as error:
            self._log.error("replica.stop_failed", traceback=traceback_of(error))
        await self._wiring.aclose()


def build(args: dict[str, Any]) -> Application:
    """Serve's `import_path`: the application of one agent type.

    Args:
        args: environment, agent, code, slots, grace_s, ordered_by; anything else only marks a new version.
    """
    fields = {name: args[name] for name in ("environment", "agent", "code", "slots", "grace_s", "ordered_by")}
    make: Any = serve.deployment(name=args["agent"])
    application: Application = make(AgentReplica).bind(**fields)
    return application

"""What runs in the process of a replica: it pulls the mailbox of its agent and shows its presence."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any

from squadron.actors.agent import Agent, AgentSpec
from squadron.bridge.control.deployed import is_kept
from squadron.bridge.health.release import release
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.otel.exporters import lines_of
from squadron.bridge.packing.code import Code, unpack
from squadron.bridge.serve.gateway_agent import GatewayAgent
from squadron.bridge.serve.login import ReplicaLogin, fetch_ring
from squadron.bridge.serve.offers import give_ports, offer_changes
from squadron.config import Settings
from squadron.runtime.background import Health, spawn
from squadron.runtime.errors import DeployError
from squadron.runtime.logs import configure_logs, load_structlog_alone
from squadron.runtime.telemetry.turn_log import TurnLog
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.subjects import token_of

#: Objects made before garbage is looked for; Python's own 700 cost an eighth of a plain task's time, and cycles of
#: so many hold some MB at most.
GARBAGE = 10_000


def settle(threads: int) -> None:
    """Make the most of a process that runs agents and nothing else: before the first of them begins, on its loop.

    Args:
        threads: for sync handlers, one for each slot; none is started before it is needed.
    """
    load_structlog_alone()
    # What imports have left, of Ray above all, lives as long as the process; each full collection of garbage
    # would look at all of it again, and stop the replica for 0.2 s.
    gc.freeze()
    # Tasks leave next to no cycles behind, but 64 under way are looked at again after every 700 objects.
    gc.set_threshold(GARBAGE)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads, "handler"))


def keep_logs(settings: Settings, identity: AgentIdentity) -> None:
    """Log in the name of this process."""
    configure_logs(settings.log_level, *lines_of(identity, settings.env))


class AgentProcess:
    """An agent at work, until it is stopped.

    What is different where several agents share a process: `keep_logs`, which is called once the settings are
    known, and `opening`, in which the connection is made.
    """

    def __init__(
        self,
        keep_logs: Callable[[Settings, AgentIdentity], None] = keep_logs,
        opening: AbstractAsyncContextManager[Any] = nullcontext(),  # noqa: B008  # it has no state
    ) -> None:
        self._stopped, self._keep_logs, self._opening = True, keep_logs, opening

    async def begin(
        self,
        environment: str,
        agent: str,
        code: Code,
        slots: int,
        grace_s: float,
        ordered_by: str,
        *,
        canary: bool = False,
    ) -> None:
        """Connect, and take tasks. If that fails, or is cancelled, nothing of it is left.

        Raises:
            DeployError: its code is not to be had.
        """
        self._health = Health.begin()
        self._login = ReplicaLogin(environment, agent)
        self._name, self._code, self._grace_s = agent, code, grace_s
        try:
            async with self._opening:
                settings = await self._login.open()
                identity = AgentIdentity(id=f"{agent}-{uuid.uuid4().hex[:8]}", type=agent)
                self._keep_logs(settings, identity)
                ring = partial(fetch_ring, environment, agent)
                self._wiring = await Wiring.open(settings, identity, ring=ring)
            try:
                await self._serve(slots, ordered=ordered_by != "", canary=canary)
            except BaseException:
                await self._wiring.aclose()
                raise
        except BaseException:
            self._login.close()
            raise
        self._stopped = False

    async def _serve(self, slots: int, *, ordered: bool, canary: bool) -> None:
        self._wiring.ports.observers.add(TurnLog())
        spec = AgentSpec.of(await self._load())
        await self._login.join([f"{self._name}.{token_of(name)}" for name, _ in spec.durable_events], self._wiring)
        instance = spec.agent_class()
        give_ports(instance, self._wiring)
        self._host = Host(
            self._wiring,
            instance,
            spec,
            slots=slots,
            ordered=ordered,
            canary=canary,
            facts={
                "version": self._code.version,
                "release": release(),
                "pid": os.getpid(),
                "node": platform.node(),
            },
        )
        if isinstance(self._host.agent, GatewayAgent):
            self._host.agent.place = self._wiring
        await self._host.start()
        self._offering = spawn(offer_changes(self._host.agent, self._wiring), "offers", lasting=True)
        self._login_kept = spawn(self._login.keep(self._wiring), "login", lasting=True)

    async def _load(self) -> type[Agent]:
        blob = b""
        if not self._code.import_path:
            entry = await self._wiring.records.last(self._wiring.ports.subjects.record("blob", self._code.version))
            if entry is None:
                raise DeployError(f"the code of {self._name} ({self._code.version}) is not in the registry")
            if not await is_kept(self._wiring.ports.guard, entry):
                hint = "deploy it as an operator; see `squadron doctor`"
                raise DeployError(f"the code of {self._name} was not signed by who may deploy", hint=hint)
            blob = entry.data
        # In a thread: it imports what the agent needs, for seconds, and neighbours in a group have tasks.
        return await asyncio.to_thread(self._unpack, blob, asyncio.get_running_loop())

    def _unpack(self, blob: bytes, loop: asyncio.AbstractEventLoop) -> type[Agent]:
        # Modules that ask for a loop when they are imported get that on which the agent runs, as on its own thread.
        asyncio.set_event_loop(loop)
        try:
            return unpack(self._code, blob)
        finally:
            asyncio.set_event_loop(None)

    def check_health(self) -> None:
        """Tell what ails it.

        Raises:
            RuntimeError: it is broken, or has been deaf for long.
        """
        if self._health.fault:
            raise RuntimeError(f"{self._wiring.ports.identity.id}: {self._health.fault}")
        silent_s = self._wiring.connection.silent_s
        if silent_s > self._wiring.settings.deaf_after_s:
            raise RuntimeError(f"{self._wiring.ports.identity.id} has not heard from NATS for {silent_s:.0f} s")

    @property
    def id(self) -> str:
        """Of the replica, on the bus."""
        return self._wiring.ports.identity.id

    async def stop(self) -> None:
        """Finish what runs, hand back the rest. May be called twice, and before it has begun."""
        if self._stopped:
            return
        self._stopped = True
        self._offering.cancel()
        await self._host.stop(self._grace_s)
        self._login_kept.cancel()
        await self._wiring.aclose()
        self._login.close()

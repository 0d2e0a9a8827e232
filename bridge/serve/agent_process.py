"""What runs in the process of a replica: it pulls the mailbox of its agent and shows its presence."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from squadron.actors.agent import Agent, AgentSpec
from squadron.bridge.control.deployed import is_kept
from squadron.bridge.health.release import release
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.otel.exporters import lines_of
from squadron.bridge.packing.code import Code, unpack
from squadron.bridge.serve.login import ReplicaLogin, fetch_ring
from squadron.runtime.background import Health, spawn
from squadron.runtime.errors import DeployError
from squadron.runtime.logs import configure_logs
from squadron.runtime.telemetry.turn_log import TurnLog
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.subjects import token_of

#: Objects made before garbage is looked for; Python's own 700 cost an eighth of a plain task's time, and cycles of
#: so many hold some MB at most.
GARBAGE = 10_000


class AgentProcess:
    """An agent at work, until it is stopped."""

    def __init__(self) -> None:
        self._stopped = True

    async def begin(
        self, environment: str, agent: str, code: Code, slots: int, grace_s: float, ordered_by: str
    ) -> None:
        """Connect, and take tasks.

        Raises:
            DeployError: its code is not to be had.
        """
        # What imports have left, of Ray above all, lives as long as the process; each full collection of garbage
        # would look at all of it again, and stop the replica for 0.2 s.
        gc.freeze()
        # Tasks leave next to no cycles behind, but 64 under way are looked at again after every 700 objects.
        gc.set_threshold(GARBAGE)
        self._health = Health.begin()
        self._login = ReplicaLogin(environment, agent)
        settings = await self._login.open()
        # Sync handlers run in threads: one for each slot.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(slots, "handler"))
        self._name, self._code, self._grace_s = agent, code, grace_s
        identity = AgentIdentity(id=f"{agent}-{uuid.uuid4().hex[:8]}", type=agent)
        configure_logs(settings.log_level, *lines_of(identity, settings.env))
        self._wiring = await Wiring.open(settings, identity, ring=partial(fetch_ring, environment, agent))
        self._wiring.ports.observers.add(TurnLog())
        spec = AgentSpec.of(await self._load())
        await self._login.join([f"{agent}.{token_of(name)}" for name, _ in spec.durable_events], self._wiring)
        self._host = Host(
            self._wiring,
            spec.agent_class(),
            spec,
            slots=slots,
            ordered=ordered_by != "",
            facts={
                "version": self._code.version,
                "release": release(),
                "pid": os.getpid(),
                "node": platform.node(),
            },
        )
        await self._host.start()
        self._login_kept = spawn(self._login.keep(self._wiring), "login", lasting=True)
        self._stopped = False

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
        return unpack(self._code, blob)

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
        await self._host.stop(self._grace_s)
        self._login_kept.cancel()
        await self._wiring.aclose()
        self._login.close()

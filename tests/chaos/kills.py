"""Who is killed, when, and when they are back; always SIGKILL, and always a process of this home."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import psutil

from squadron import Settings, Squad
from squadron.bridge.jetstream.link import embedded
from tests.chaos.ledger import Ledger
from tests.chaos.processes import ClientProcess, ray_processes, replica_pids

#: What Ray calls a process of each role.
TITLES = {
    "replica": "ray::ServeReplica:",
    "bridge": "ray::BridgeActor",
    "controller": "ray::ServeController",
}
ROLES = (*TITLES, "nats", "client")
#: How long the nats-server stays away, in seconds, and how long all is quiet after somebody is back.
AWAY_S, QUIET_S = (0.5, 2.0), (0.2, 1.0)
#: When those that are killed together are not back by then, in seconds, somebody never will be.
BACK_WITHIN_S = 90.0


class Kills:
    """Kills by a seed, and waits until the killed are back; each kill stands in the ledger `kills`."""

    def __init__(self, settings: Settings, squad: Squad, client: ClientProcess, folder: Path, seed: int) -> None:
        self._settings, self._squad, self._client = settings, squad, client
        self._random, self._log = random.Random(seed), Ledger(folder / "kills")

    async def one_at_a_time(self) -> None:
        """Each role once, in an order of the seed; the next one when the last one is back."""
        for role in self._random.sample(ROLES, len(ROLES)):
            await self._back({role: await self.kill(role)})
            await asyncio.sleep(self._random.uniform(*QUIET_S))

    async def together(self) -> None:
        """One of each role at the same instant."""
        victims = {role: await self._victim(role) for role in self._random.sample(ROLES, len(ROLES))}
        for role, victim in victims.items():
            self._kill(role, victim)
        await self._back({role: victim.pid for role, victim in victims.items()})

    async def kill(self, role: str) -> int:
        """Kill one process of the role; returns its id."""
        victim = await self._victim(role)
        self._kill(role, victim)
        return victim.pid

    def _kill(self, role: str, victim: psutil.Process) -> None:
        victim.kill()
        self._log.write("kill", role=role, victim=victim.pid)

    async def _victim(self, role: str) -> psutil.Process:
        """One that lives; of one that just came back this process may not know yet.

        Raises:
            AssertionError: there is none.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BACK_WITHIN_S):
                while not (alive := self._alive(role)):
                    await asyncio.sleep(0.1)
                return self._random.choice(sorted(alive, key=lambda process: process.pid))
        raise AssertionError(f"no {role} lives")

    def _alive(self, role: str) -> list[psutil.Process]:
        if role == "client":
            return [psutil.Process(self._client.pid)]
        if role == "nats":
            server = embedded.find(self._settings.home)
            return [psutil.Process(server.pid)] if server else []
        alive = list(ray_processes(self._settings, TITLES[role]))
        if role == "replica":
            # Serve may have started one that it lost sight of when its controller was killed: that one is idle.
            present = {each.pid for each in self._squad._wiring.registry.replicas("worker").values()}
            return [process for process in alive if process.pid in present]
        return alive

    async def _back(self, gone: dict[str, int]) -> None:
        async with asyncio.timeout(BACK_WITHIN_S):
            if "client" in gone:
                self._client.start()
            if "nats" in gone:
                await asyncio.sleep(self._random.uniform(*AWAY_S))
                await asyncio.to_thread(embedded.ensure, self._settings.home)
                self._log.write("back", role="nats")
            for role in gone.keys() - {"nats"}:
                await self._up(role, gone[role])
                self._log.write("back", role=role)

    async def _up(self, role: str, victim: int) -> None:
        while not await self._is_up(role, victim):
            await asyncio.sleep(0.1)

    async def _is_up(self, role: str, victim: int) -> bool:
        if all(process.pid == victim for process in self._alive(role)):
            return False
        if role == "client":
            return self._client.has_begun()
        if role == "replica":
            return len(await replica_pids(self._squad)) == 3
        # Whoever asks earlier asks the dead one, and waits for its answer.
        return role != "bridge" or (await self._squad.status())["pid"] != victim

"""The credential of one replica: made by the bridge for its agent, good for an hour, made anew before it ends."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from squadron.bridge.auth.minting import LIFE_S
from squadron.bridge.daemons import write_private
from squadron.bridge.jetstream.link.at_home import with_credentials
from squadron.bridge.jetstream.link.relogin import log_in_again
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.serve.ray_names import NAMESPACE, bridge_name
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError, DeployError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of
from squadron.runtime.trust.jwts import credentials
from squadron.runtime.trust.keys import Key
from squadron.runtime.trust.ring_handing import take_ring
from squadron.runtime.trust.sealing import KeyRing

#: How long a replica looks for the bridge, in seconds: a killed bridge is back in about two.
FIND_BRIDGE_WITHIN_S = 30.0
#: When a credential is made anew, as parts of its life: not for all replicas of an agent in the same moment.
RENEWED_AT = (0.5, 0.75)
#: Pause between two tries, as a part of its life: some ten of them fit into what is left.
TRIED_AGAIN = 0.02

_log = get_logger("squadron.login")


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the bridge gives a replica: the settings of the environment, and a JWT for the key that it showed.

    Without a `token` users are not made here, and the settings hold the login that all share.
    """

    settings: Settings
    token: str = ""
    life_s: float = LIFE_S


class ReplicaLogin:
    """Who a replica is to NATS. Its seed stays in its process, and in a private file of its own."""

    def __init__(self, environment: str, agent: str) -> None:
        self._environment, self._agent = environment, agent
        self._key = Key.create("U")
        self._groups: tuple[str, ...] = ()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._life_s = 0.0

    async def open(self) -> Settings:
        """The settings to connect with.

        Raises:
            DeployError: the bridge can't be found, or knows no such agent.
        """
        admission = await self._admitted()
        settings = admission.settings
        settings = replace(settings, nats_own=self._agent if settings.nats_own else "")
        if not admission.token:
            return settings
        self._folder = tempfile.TemporaryDirectory(prefix="squadron-")
        self._take(admission)
        return with_credentials(settings, self._file, self._agent)

    async def join(self, groups: Sequence[str], wiring: Wiring) -> None:
        """Be a member of these groups of durable events from now on."""
        if groups and self._folder is not None:
            self._groups = tuple(groups)
            await self._renew(wiring)

    async def keep(self, wiring: Wiring) -> None:
        """Have it made anew for as long as the process lives; ends at once where there is nothing to renew."""
        while self._folder is not None:
            await asyncio.sleep(self._life_s * random.uniform(*RENEWED_AT))
            while True:
                try:
                    await self._renew(wiring)
                    break
                except (SquadronError, OSError) as error:
                    _log.warning("login.not_renewed", error=summary_of(error))
                    await asyncio.sleep(self._life_s * TRIED_AGAIN)

    def close(self) -> None:
        """Leave nothing behind."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "replica.creds"

    def _take(self, admission: Enrolled) -> None:
        write_private(self._file, credentials(admission.token, self._key).decode())
        self._life_s = admission.life_s

    async def _renew(self, wiring: Wiring) -> None:
        self._take(await self._admitted())
        # The server ends a connection with the credential that it was made with.
        await log_in_again(wiring.connection)
        await wiring.renewed()

    async def _admitted(self) -> Enrolled:
        try:
            admission: Enrolled = await call_bridge(
                self._environment, "admit", self._agent, self._key.public, self._groups
            )
        except ray.exceptions.RayTaskError as error:
            raise DeployError(f"{self._agent} gets no credential: {error.cause}") from None
        return admission


async def fetch_ring(environment: str, agent: str) -> KeyRing:
    """The keys of an agent, which the bridge has; on the way they are sealed for a key of this call alone.

    Raises:
        BusUnavailableError: the bridge can't be found.
    """
    own = await asyncio.to_thread(KeyRing.create)
    try:
        handed = await call_bridge(environment, "hand_ring", agent, str(own.public))
    except DeployError as error:
        raise BusUnavailableError(f"the keys of {agent} can't be had: {error}") from None
    return take_ring(handed, agent, own)


async def call_bridge(environment: str, method: str, *args: Any) -> Any:
    """What a method of the environment's bridge returns, from any process of the cluster.

    Raises:
        DeployError: the bridge can't be found.
    """
    give_up_at = time.monotonic() + FIND_BRIDGE_WITHIN_S
    while True:
        try:
            bridge = ray.get_actor(bridge_name(environment), namespace=NAMESPACE)
            return await getattr(bridge, method).remote(*args)
        except (ValueError, ray.exceptions.RayActorError) as error:
            if time.monotonic() > give_up_at:
                raise DeployError(f"no bridge for environment {environment!r}: {error}") from None
            await asyncio.sleep(0.2)

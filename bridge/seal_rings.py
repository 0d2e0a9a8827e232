"""Which key ring a process has: files of the home, one for each principal, and one for each agent.

Those of agents are made by the bridge and stay with it; a replica is given its ring by a call.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from squadron.config import Settings
from squadron.runtime.errors import ConfigError
from squadron.runtime.logs import get_logger
from squadron.runtime.store.seals import LoadRing
from squadron.runtime.trust.ring_file import read_ring, ring_in, rotate_ring
from squadron.runtime.trust.sealing import KeyRing
from squadron.runtime.wire.subjects import check_token

_log = get_logger("squadron.seals")

#: Whose ring it is that says nothing of itself: all clients of one home read each other's answers.
_ANYBODY = "client"


def own_ring(settings: Settings, principal: str = "") -> LoadRing:
    """Loads the ring of this process: the file that the settings name, or that of its principal in the home."""
    given, own = settings.seal_keys, _own(settings, principal)

    async def load() -> KeyRing:
        # One that is named has to be there: who mistypes is told, and gets no new one.
        if given is not None:
            return await asyncio.to_thread(read_ring, given)
        return await asyncio.to_thread(ring_in, own)

    return load


def rotate_own(settings: Settings, principal: str = "") -> KeyRing:
    """Give the ring of such a process a new key in front; one that runs takes it when it starts anew.

    Raises:
        ConfigError: it can't be read or written.
    """
    if settings.seal_keys is None:
        ring_in(_own(settings, principal))
    return rotate_ring(settings.seal_keys or _own(settings, principal))


class AgentRings:
    """The rings of all agents of an environment, as the bridge has them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def path(self, agent: str) -> Path:
        """The file of an agent's ring.

        Raises:
            InvalidSubjectError: that is no name of an agent.
        """
        return _folder(self._settings) / "agents" / f"{check_token(agent, 'agent')}.json"

    def ring(self, agent: str) -> KeyRing:
        """An agent's ring, made if it has none.

        Raises:
            ConfigError: its file can't be read or written.
        """
        return ring_in(self.path(agent))

    def seal_key(self, agent: str) -> str:
        """The public key by which others seal for an agent, as its card has it; empty if it can't have one."""
        try:
            return str(self.ring(agent).public)
        except ConfigError as error:
            # It takes readable tasks all the same; who wants to seal is told.
            _log.error("seal.no_key", agent=agent, error=str(error))
            return ""

    def rotate(self, agent: str) -> KeyRing:
        """Give an agent a new key in front of the others.

        Raises:
            ConfigError: as `ring`.
        """
        self.ring(agent)
        return rotate_ring(self.path(agent))


def _own(settings: Settings, principal: str) -> Path:
    return _folder(settings) / f"{principal or _ANYBODY}.json"


def _folder(settings: Settings) -> Path:
    return settings.home / "keys" / settings.env

"""The bus is cut and healed, in memory and by taking a real server away: nothing is heard, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from squadron import Settings
from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.runtime.asking.caller import Ask
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.outcome import Undeliverable
from squadron.testing import turned_time
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import Inbox, until
from tests.contract.own_server import OwnServer

LEASE_S = 1.5


@dataclass
class Site:
    """A server that can be out of reach, and who is there."""

    cut: Callable[[], None]
    heal: Callable[[], None]
    place: Callable[[str], Place]
    opened: contextlib.AsyncExitStack

    async def join(self, name: str) -> Place:
        place = self.place(name)
        self.opened.push_async_callback(place.aclose)
        return place


@pytest.fixture(params=["memory", "jetstream"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    yield None  # type: ignore[misc]

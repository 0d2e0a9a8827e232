"""What all tests share: a clean environment, one private nats-server, and a place on its bus."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
import structlog

from squadron.bridge.daemons import is_alive
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.serve.ahead import stand_in
from squadron.config import VARIABLES, Settings
from squadron.runtime.logs import settle_logs
from squadron.runtime.wire.envelope import AgentIdentity

#: All tests run on a loop whose time can be turned; see `turned_time`.
from squadron.testing import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories

#: Beats faster than in earnest, so that a lapse of three is soon seen.
HEARTBEAT_S = 0.5
#: A lease that ends soon, so that a redelivery is soon seen.
LEASE_S = 0.6

# How long an example takes says nothing on a machine that does other things, too.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")

# Many tests import Ray, in each of the processes that collect them.
stand_in()

# A shell that has us in the background has us ignore Ctrl-C, and all that tests start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_PREFIXES = ("SQUADRON_", "NATS_", "RAY_", "OPENAI_", "ANTHROPIC_", "AZURE_OPENAI_")


def kill(pid: int) -> None:
    """SIGKILL, carried out: until it is, a process of threads still answers, and is found."""
    victim = psutil.Process(pid)
    victim.kill()
    while is_alive(victim):
        time.sleep(0.005)


def freeze(pid: int) -> None:
    """SIGSTOP, carried out: until it is, a process of threads still answers."""
    victim = psutil.Process(pid)
    victim.suspend()
    give_up_at = time.monotonic() + 30
    while any(psutil.Process(each.id).status() != psutil.STATUS_STOPPED for each in victim.threads()):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Nothing of the developer's shell decides how a test ends: no server, no key, no setting of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_PREFIXES) or name in VARIABLES.values():
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def default_logs() -> Iterator[None]:
    """A command under test sends all logs to its standard error, which is closed when it has ended."""
    yield
    # One that logged nothing would do so at the next line, whoever catches that.
    settle_logs()
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def nats_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of one real nats-server for the whole run."""
    home = tmp_path_factory.mktemp("squadron")
    embedded.ensure(home)
    yield home
    # Nobody needs what it has stored, and it takes up to five seconds to put that in order.
    if (server := embedded.find(home)) is not None:
        kill(server.pid)
    embedded.stop(home)


@pytest.fixture
def settings(nats_home: Path) -> Settings:
    """Settings of an environment that no other test uses."""
    environment = f"t{uuid.uuid4().hex[:12]}"
    return Settings(home=nats_home, env=environment, heartbeat_s=HEARTBEAT_S, lease_s=LEASE_S)


@pytest.fixture
async def wiring(settings: Settings) -> AsyncIterator[Wiring]:
    """An open place on the bus, in an environment of its own."""
    opened = await Wiring.open(settings, AgentIdentity(id="tester", type="test"), create=True)
    yield opened
    await opened.aclose()

"""The credential of one agent is stolen: what two accounts stop, what they do not, and that each attack is one.

On an open server, where everybody is the same user, each of them comes to something: so it is no attack on air.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from squadron.bridge.auth.roles import API_PREFIX, inbox_prefix
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.attack_rows import BY_A_CALLER, NOT_STOPPED, STOPPED
from tests.contract.attacks import Check, Scene
from tests.contract.conftest import until
from tests.contract.own_server import OwnServer
from tests.contract.restricted import PASSWORD, RestrictedServer

Do = Callable[[Scene], Awaitable[Check]]
PAGE = Path(__file__).parents[2] / "docs" / "security.md"


async def _thief(url: str, **login: str) -> Client:
    async def hear(_: Exception) -> None:
        """Refusals are told like this; the thief takes no notice."""

    return await nats.connect(url, error_cb=hear, allow_reconnect=False, **login)


@contextlib.asynccontextmanager
async def two_accounts(folder: Path, thief: str) -> AsyncIterator[Scene]:
    """A scene where everybody has the rights of a role, the thief those of this user."""
    server = RestrictedServer(folder, "test")
    server.admit("agent", "analyst", asks=("office.file",), serves=("math.add",))
    server.admit("foreign", "caller", peers=("prompts:clerk.squadron-test",))
    clerks = {"serves": ("office.file",), "peers": ("mcp:files", "synadia:pi.acme")}
    server.admit("agent", "clerk", **clerks)
    server.admit("gateway", "tools", peers=("mcp:files",))
    server.start()
    bridge = await server.open("bridge", "bridge")
    ann = await server.open("client", "client", id="ann")
    login = {"user": thief, "password": PASSWORD, "inbox_prefix": inbox_prefix(thief)}
    await bridge.ports.queue.declare(Mailbox("clerk", ("office.file",), 30.0))
    clerk = await server.open("agent", "clerk", **clerks)
    tools = await server.open("gateway", "tools", peers=("mcp:files",))
    scene = Scene(await _thief(server.server.url, **login), API_PREFIX, bridge, ann, clerk, tools)
    await scene.set()
    yield scene
    await _close(scene)
    server.stop()


@pytest.fixture
async def restricted(tmp_path: Path) -> AsyncIterator[Scene]:
    """Two accounts, and the credential of an agent is stolen."""
    async with two_accounts(tmp_path, "analyst") as scene:
        yield scene


@pytest.fixture
async def by_a_caller(tmp_path: Path) -> AsyncIterator[Scene]:
    """Two accounts, and the credential of a caller of the Synadia Agent Protocol is stolen."""
    async with two_accounts(tmp_path, "caller") as scene:
        yield scene


@pytest.fixture
async def open_to_all(tmp_path: Path) -> AsyncIterator[Scene]:
    """One account, and nobody is refused anything."""
    server = OwnServer(tmp_path)
    server.start()
    settings = Settings(nats_url=server.url, env="test")
    bridge = await Wiring.open(settings, AgentIdentity(id="bridge"), create=True)
    # As where there are two accounts.
    own = replace(settings, nats_inbox_prefix=inbox_prefix("client"))
    ann = await Wiring.open(own, AgentIdentity(id="ann"))
    clerk = await Wiring.open(settings, AgentIdentity(id="clerk"))
    tools = await Wiring.open(settings, AgentIdentity(id="tools"))
    scene = Scene(await _thief(server.url), "$JS.API", bridge, ann, clerk, tools)
    await scene.set()
    yield scene
    await _close(scene)
    server.stop()


async def _close(scene: Scene) -> None:
    await scene.tools.aclose()
    await scene.clerk.aclose()
    await scene.ann.aclose()
    await scene.bridge.aclose()
    await scene.thief.close()


@pytest.mark.parametrize("name", STOPPED)
async def test_two_accounts_stop_whoever_would(restricted: Scene, name: str) -> None:
    came = await STOPPED[name](restricted)
    await restricted.barrier()

    assert not await came()


@pytest.mark.parametrize("name", BY_A_CALLER)
async def test_two_accounts_stop_a_caller_of_agents_who_would(by_a_caller: Scene, name: str) -> None:
    came = await BY_A_CALLER[name](by_a_caller)
    own = by_a_caller.subjects.lite_of("caller")
    await by_a_caller.barrier(f"DIRECT.GET.{by_a_caller.names.lite}.{own}")

    assert not await came()


@pytest.mark.parametrize("name", NOT_STOPPED)
async def test_two_accounts_do_not_stop_whoever_would(restricted: Scene, name: str) -> None:
    await until(await NOT_STOPPED[name](restricted))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STOPPED, *BY_A_CALLER, *NOT_STOPPED])
async def test_on_an_open_server_nobody_is_stopped_who_would(open_to_all: Scene, name: str) -> None:
    await until(await (STOPPED | BY_A_CALLER | NOT_STOPPED)[name](open_to_all))


def test_the_page_on_security_has_each_attack_and_what_becomes_of_it() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    told = {row[0]: row[1] for row in rows if len(row) == 3}

    stopped = STOPPED | BY_A_CALLER
    assert {name: told.get(name, "").startswith("**not**") for name in (*stopped, *NOT_STOPPED)} == {
        **dict.fromkeys(stopped, False),
        **dict.fromkeys(NOT_STOPPED, True),
    }
    assert set(told) >= {*stopped, *NOT_STOPPED}

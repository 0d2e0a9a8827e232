"""A home with an authority: its processes sign by themselves, and who is let in, or out, is so for all at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from squadron import Agent, Context, Settings, topic
from squadron.bridge.auth.authority import Authority
from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.control.control import Bridge
from squadron.bridge.health.gathering import gather
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.at_home import as_user
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ConfigError
from squadron.runtime.trust.agent_sender import SENDER_HEADER, AgentSender
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.outcome import Result
from tests.contract.conftest import SOON_S, NoReplicas, Peer, Replica, peer_of

Join = Callable[..., Awaitable[Peer]]


class Porter(Agent):
    """Carries what it is given."""

    @topic("porter.carry")
    async def carry(self, ctx: Context, what: str) -> str:
        return f"{what}, carried"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    authority = Authority.create(tmp_path, "dev")
    authority.add("dev", "agent", "porter")
    authority._save()
    yield tmp_path
    embedded.stop(tmp_path)


@pytest.fixture
async def join(home: Path) -> AsyncIterator[Join]:
    async with contextlib.AsyncExitStack() as rest:

        async def opened(name: str) -> Peer:
            settings = as_user(Settings.load({"SQUADRON_VERIFY": "require"}, home=home), name)
            wiring = await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=name == "bridge")
            rest.push_async_callback(wiring.aclose)
            return peer_of(wiring)

        yield opened


async def _serve(join: Join) -> tuple[Peer, Replica]:
    bridge = await join("bridge")
    replica = Replica(await join("porter"), Porter(), bridge=bridge)
    await replica.start()
    return bridge, replica


async def _carried(peer: Peer, within_s: float = SOON_S) -> object:
    return await peer.caller.ask("porter.carry", {"what": "a bag"}, AskOptions(within_s=within_s))


async def test_processes_of_a_home_sign_what_they_send_and_believe_each_other(join: Join) -> None:
    bridge, replica = await _serve(join)
    try:
        client = await join("client")
        assert isinstance(await _carried(client), Result)
        said = {}
        for key in (bridge.subjects.card("porter"), bridge.subjects.presence("porter", "porter")):
            entry = await bridge.records.last(key)
            assert entry is not None
            sender = AgentSender.parse(entry.headers[SENDER_HEADER])
            assert sender is not None
            said[key] = (sender.name, sender.account)
        # The bridge is in the account of the streams.
        assert [name for name, _ in said.values()] == ["bridge", "porter"]
        assert len({account for _, account in said.values()}) == 2
        assert not client.ports.guard.refused
        assert not replica.peer.ports.guard.refused
    finally:
        await replica.aclose()


async def test_the_bridge_is_called_from_the_other_account_and_its_answer_is_believed(
    home: Path, join: Join
) -> None:
    peer, operator = await join("bridge"), await join("operator")

    async def none_held() -> dict[str, int]:
        return {}

    async def all_kept() -> tuple[str, ...]:
        return ()

    bridge = Bridge(peer.ports, peer.registry, peer.records, NoReplicas(), none_held, all_kept, {}, lease_s=1.5)
    await bridge.start()
    try:
        control = Control(operator.bus, operator.subjects, operator.ports.guard)
        assert (await control.bridge() or {})["environment"] == operator.subjects.environment
        with pytest.raises(ConfigError, match="no agent 'porter'"):
            await control.call("undeploy", agent="porter")
        assert not operator.ports.guard.refused
        facts = await gather(Settings.load({"SQUADRON_VERIFY": "require"}, home=home), watch_s=0)
        assert facts.bridge is not None
        assert facts.bridge["environment"] == "dev", "the doctor signs its calls as well"
    finally:
        await bridge.aclose()


async def test_a_role_gets_another_key_while_all_goes_on(home: Path, join: Join) -> None:
    _, replica = await _serve(join)
    try:
        old = await join("client")
        assert isinstance(await _carried(old), Result)
        with Authority.open(home) as authority:
            authority.rotate("dev", "client")
        embedded.reload(home)
        new = await join("client")
        # Who meets a new key looks who counts now; and no pull was lost, so nothing was delivered to nobody.
        assert isinstance(await _carried(new), Result)
        assert replica.delivered[-1] == 1
        assert isinstance(await _carried(old), Result)
    finally:
        await replica.aclose()


async def test_what_somebody_sends_whose_credential_was_revoked_is_refused(home: Path, join: Join) -> None:
    """By who checks, too: what the server has taken in the last moment, it has taken."""
    _, replica = await _serve(join)
    try:
        client = await join("client")
        assert isinstance(await _carried(client), Result)
        with Authority.open(home) as authority:
            authority.revoke("dev", "client")
        # The server is not told yet.
        give_up_at = time.monotonic() + SOON_S
        while "revoked" not in str(outcome := await _carried(client, within_s=5)):
            assert time.monotonic() < give_up_at, outcome
    finally:
        await replica.aclose()

"""Everybody signs, and everybody checks: over both kinds of ports."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from squadron.runtime.trust.agent_sender import SENDER_HEADER, AgentSender
from squadron.runtime.trust.principals import Role
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.outcome import Result
from squadron.testing import turned_time
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import Peer, Replica, peer_of
from tests.trusted import Realm


class Echo(Agent):
    """Says it again."""

    @topic("text.echo", description="Echo a text")
    async def echo(self, ctx: Context, text: str) -> dict[str, Any]:
        return {"text": text, "by": ctx.agent}


Join = Callable[..., Awaitable[Peer]]


@dataclasses.dataclass
class Land:
    """Where everybody has a credential."""

    realm: Realm
    join: Join
    replicas: list[Replica]

    async def serve(self, agent: Agent, *, verify: str = "require", name: str = "", **how: Any) -> Replica:
        """One replica, whose card the bridge tells."""
        spec = AgentSpec.of(type(agent))
        bridge = await self.join("bridge", "bridge")
        peer = await self.join(name or spec.name, "agent", verify=verify)
        replica = Replica(peer, agent, **how)
        await bridge.registry.advertise(spec.card())
        await replica.start(card=False)
        self.replicas.append(replica)
        return replica


@pytest.fixture(params=["memory", "jetstream"])
async def land(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Land]:
    realm = Realm()
    trust = tmp_path / "trust.json"
    trust.write_bytes(realm.document())
    closers: list[Callable[[], Awaitable[None]]] = []
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            stack.enter_context(turned_time())
            server, base = MemoryServer("test"), Settings(env="test", heartbeat_s=HEARTBEAT_S)
        else:
            base = request.getfixturevalue("settings")

        async def join(name: str, role: Role | None, *, verify: str = "require") -> Peer:
            creds = realm.write(tmp_path, name, role) if role else None
            known = {"trust": trust} if role or verify != "off" else {}
            settings = dataclasses.replace(base, nats_user_credentials=creds, verify=verify, **known)
            identity, place = AgentIdentity(id=name, type="test"), None
            if request.param == "memory":
                place = server.place(identity, settings)
                closers.append(place.aclose)
                await place.start()
            else:
                place = await Wiring.open(settings, identity, create=True)
                closers.append(place.aclose)
            made: Place = place
            return peer_of(made)

        made = Land(realm, join, [])
        yield made
        for replica in made.replicas:
            await replica.aclose()
        for close in reversed(closers):
            await close()


SOON = AskOptions(within_s=10)


async def test_an_ask_is_answered_where_all_is_signed_and_checked(land: Land) -> None:
    await land.serve(Echo())
    ann = await land.join("ann", "client")
    outcome = await ann.caller.ask("text.echo", {"text": "hi"}, SOON)
    assert isinstance(outcome, Result), outcome
    assert outcome.data == {"text": "hi", "by": "echo"}
    assert not ann.ports.guard.refused


async def test_all_that_is_kept_says_who_put_it_there(land: Land) -> None:
    replica = await land.serve(Echo())
    ann = await land.join("ann", "client")
    handle = await ann.caller.submit("text.echo", {"text": "hi"}, SOON)
    await handle.outcome()
    entry = await ann.lite.last(handle.reply_to)
    card = await ann.records.last(ann.subjects.card("echo"))
    presence = await ann.records.last(ann.subjects.presence("echo", replica.peer.ports.identity.id))
    said = []
    for each in (entry, card, presence):
        assert each is not None
        sender = AgentSender.parse(each.headers[SENDER_HEADER])
        assert sender is not None
        assert sender.subject == each.key
        said.append(sender.name)
    assert said == ["echo", "bridge", "echo"]

"""The Synadia door where everybody signs: its official client with a credential, on a server in operator mode."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from synadia_ai.agents import Agent as SynadiaClient
from synadia_ai.agents import Agents, Envelope, Identity, ResponseChunk
from synadia_ai.agents.errors import ProtocolError
from synadia_ai.agents.heartbeat import HEARTBEAT_SUBJECT
from synadia_ai.agents.identity import signer_from_creds_file, signer_from_seed

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.auth.minting import user_token
from squadron.bridge.gateways.synadia import prompts
from squadron.bridge.gateways.synadia.synadia_agents import HEARTBEAT_S
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.errors import UntrustedError
from squadron.runtime.running.context import Context
from squadron.runtime.trust.agent_sender import SENDER_HEADER
from squadron.runtime.trust.jwts import credentials, issue
from squadron.runtime.trust.keys import Key
from squadron.runtime.trust.principals import Role
from squadron.runtime.trust.signer import Signer
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.conftest import Peer, Replica, peer_of
from tests.contract.gateway_process import opened_gateway
from tests.contract.own_server import OwnServer
from tests.contract.test_synadia_door import STALL_S, raw
from tests.trusted import Realm

_NO_LIMITS = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn"), -1) | {"wildcards": True}
_STORE = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


class Sworn(Agent):
    """Answers those that it may."""

    name = "sworn"

    @topic("sworn.behalf")
    async def behalf(self, text: str, ctx: Context) -> str:
        return " ".join(ctx.behalf) or "nobody"


class Keeper(Agent):
    """Answers only some."""

    name = "keeper"

    @topic("sworn.secret", allow=["client:ann", "gateway:web"])
    async def secret(self, text: str) -> str:
        return text


@dataclass
class Sworns:
    """A server in operator mode, whose account vouches for all keys of a realm, and for one of a stranger."""

    realm: Realm
    folder: Path
    url: str
    stranger: Key

    def creds(self, name: str, role: Role, by: Key | None = None) -> Path:
        user, path = Key.create("U"), self.folder / f"{role}-{name}.creds"
        signing = by or self.realm.keys[role]
        token = user_token(user.public, name, signing, self.realm.account.public, scoped=False)
        path.write_bytes(credentials(token, user))
        return path

    async def place(self, name: str, role: Role, **more: Any) -> Wiring:
        settings = Settings(
            env="test",
            nats_url=self.url,
            nats_user_credentials=self.creds(name, role),
            trust=self.folder / "trust.json",
            home=self.folder,
            **({"verify": "require"} | more),
        )
        return await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=role == "bridge")


def _conf(realm: Realm, stranger: Key) -> str:
    operator, system = Key.create("O"), Key.create("A")
    signing = [*(key.public for key in realm.keys.values()), stranger.public]
    limits = {"limits": _NO_LIMITS | _STORE, "signing_keys": signing}
    of_accounts = ((system, {"limits": _NO_LIMITS}), (realm.account, limits))
    preload = {
        key.public: issue("account", key.public, operator, name="a", nats=said) for key, said in of_accounts
    }
    told = issue("operator", operator.public, operator, name="o", nats={"system_account": system.public})
    return (
        f'operator: "{told}"\nsystem_account: "{system.public}"\nresolver: MEMORY\n'
        f"resolver_preload: {json.dumps(preload)}\n"
    )


@pytest.fixture
async def sworn(tmp_path: Path) -> AsyncIterator[Sworns]:
    realm, stranger = Realm(), Key.create("A")
    (tmp_path / "trust.json").write_bytes(realm.document())
    server = OwnServer(tmp_path, _conf(realm, stranger))
    server.start()
    yield Sworns(realm, tmp_path, server.url, stranger)
    server.stop()


@pytest.fixture
async def gate(sworn: Sworns) -> AsyncIterator[Peer]:
    async with contextlib.AsyncExitStack() as rest:
        named: list[tuple[str, Role]] = [
            ("b", "bridge"),
            ("sworn", "agent"),
            ("keeper", "agent"),
            ("web", "gateway"),
        ]
        places = [await sworn.place(name, role) for name, role in named]
        for each in places:
            rest.push_async_callback(each.aclose)
        bridge, agent, keeper, web = places
        for served, place in ((Sworn(), agent), (Keeper(), keeper)):
            replica = Replica(peer_of(place), served, bridge=peer_of(bridge))
            await replica.start()
            rest.push_async_callback(replica.aclose)
        await web.registry.refresh(float("inf"))
        await rest.enter_async_context(opened_gateway(web, "synadia"))
        yield peer_of(web)


class Caller:
    """The official client with a credential of its own."""

    def __init__(self, connection: Client, agents: Agents) -> None:
        self.connection, self._agents = connection, agents

    async def agent(self, session: str) -> SynadiaClient:
        return next(each for each in await self._agents.discover(stall=STALL_S) if each.session_name == session)

    async def heard(self, session: str, prompt: str | Envelope) -> list[str]:
        agent = await self.agent(session)
        return [each.text async for each in agent.prompt(prompt) if isinstance(each, ResponseChunk)]


Callers = Callable[..., Any]


@pytest.fixture
async def caller(sworn: Sworns, gate: Peer) -> AsyncIterator[Callers]:
    connections = []

    async def connected(name: str, role: Role = "client", *, by: Key | None = None, signs: bool = True) -> Caller:
        path = sworn.creds(name, role, by)
        connection = await nats.connect(sworn.url, user_credentials=str(path))
        connections.append(connection)
        # As any command of ours does that is run with the credential: so it can be looked up.
        own = Signer.load(path, time.time)
        await gate.records.append(gate.subjects.record("key", own.user), own.token.encode())
        identity = Identity(signer=signer_from_creds_file(str(path)), name=name) if signs else None
        return Caller(connection, Agents(nc=connection, identity=identity))

    yield connected
    for each in connections:
        await each.close()


async def test_who_answers_is_registered_signed_and_signatures_are_asked_for(
    gate: Peer, caller: Callers, sworn: Sworns
) -> None:
    ann = await caller("ann")
    found = await ann.agent("sworn-behalf")
    assert found.info.id_sig_verified
    assert found.info.identity == f"{sworn.realm.account.public}.{gate.place.signer.user}"
    assert found.info.prompt_endpoint.min_sender_trust == "signed"


async def test_a_heartbeat_is_signed(gate: Peer, caller: Callers) -> None:
    ann = await caller("ann")
    beats = await ann.connection.subscribe(HEARTBEAT_SUBJECT)
    await ann.connection.flush()
    # It beats when it opens, and, for agents that it did not know yet, with the next beat.
    async with opened_gateway(gate.place, "synadia"):
        beat = await beats.next_msg(timeout=2 * HEARTBEAT_S)
    assert json.loads(beat.headers[SENDER_HEADER])["sub"] == beat.subject


async def test_a_prompt_is_asked_on_behalf_of_who_signed_it(gate: Peer, caller: Callers) -> None:
    assert await (await caller("ann")).heard("sworn-behalf", "who?") == ["client:ann gateway:web"]


async def test_who_may_not_ask_a_topic_is_refused_before_anything_is_stored(gate: Peer, caller: Callers) -> None:
    assert await (await caller("ann")).heard("sworn-secret", "psst") == ["psst"]
    with pytest.raises(ProtocolError, match="403: client:bob may not ask"):
        await (await caller("bob")).heard("sworn-secret", "psst")


async def test_a_key_that_nobody_vouches_for_is_refused(gate: Peer, caller: Callers, sworn: Sworns) -> None:
    with pytest.raises(ProtocolError, match="403: nobody who is trusted vouches for it"):
        await (await caller("mallory", by=sworn.stranger)).heard("sworn-behalf", "hi")


async def test_a_prompt_without_a_signature_is_refused(gate: Peer, caller: Callers) -> None:
    anyone = await caller("anyone", signs=False)
    agent = await anyone.agent("sworn-behalf")
    first, *_ = await raw(anyone.connection, agent.prompt_subject, b"hi")
    assert first.headers["Nats-Service-Error-Code"] == "401"
    assert SENDER_HEADER not in first.headers, "answers are never signed"


async def test_a_prompt_that_was_heard_before_or_was_altered_is_refused(
    gate: Peer, caller: Callers, sworn: Sworns
) -> None:
    ann = await caller("ann", signs=False)
    subject = (await ann.agent("sworn-behalf")).prompt_subject
    signer = Signer.load(sworn.folder / "client-ann.creds", time.time)
    headers = signer.sign(subject, b"hi", None)
    assert not (await raw(ann.connection, subject, b"hi", headers))[0].headers
    for body, reason in ((b"hi", "heard before"), (b"ho", "not as it was signed")):
        again = headers if body == b"hi" else signer.sign(subject, b"hi", None)
        first, *_ = await raw(ann.connection, subject, body, again)
        assert first.headers["Nats-Service-Error-Code"] == "401"
        assert reason in first.headers["Nats-Service-Error"]


async def test_a_task_is_heard_again_by_whoever_asked_for_it_and_by_nobody_else(
    gate: Peer, caller: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As one that takes a while: of others the id is not told.
    monkeypatch.setattr(prompts, "TOGETHER_S", 0.0)
    ann, bob = await caller("ann"), await caller("bob")
    heard = await ann.connection.subscribe("_INBOX.agents.>")
    await ann.heard("sworn-behalf", "who?")
    told: dict[str, Any] = {}
    while told.get("type") != "squadron/task":
        told = json.loads((await heard.next_msg(timeout=10)).data)
    again = Envelope.model_validate({"prompt": "again", "taskId": told["data"]["taskId"]})
    assert await ann.heard("sworn-behalf", again) == ["client:ann gateway:web"]
    with pytest.raises(ProtocolError, match="404: there is no task"):
        await bob.heard("sworn-behalf", again)


async def test_a_credential_that_may_ask_for_nobody_else_serves_no_door(sworn: Sworns) -> None:
    bridge, place = await sworn.place("b", "bridge"), await sworn.place("ann", "client")
    try:
        with pytest.raises(UntrustedError, match="may act on behalf of nobody"):
            async with opened_gateway(place, "synadia"):
                pass
    finally:
        await place.aclose()
        await bridge.aclose()


async def test_where_nobody_is_asked_who_they_are_a_key_of_the_server_signs_as_well(tmp_path: Path) -> None:
    user = Key.create("U")
    logins = [{"nkey": user.public}, {"user": "squad", "password": "of a test"}]
    server = OwnServer(tmp_path, f"authorization: {json.dumps({'users': logins})}\n")
    server.start()
    async with contextlib.AsyncExitStack() as rest:
        rest.callback(server.stop)
        settings = Settings(
            env="test", nats_url=server.url, nats_user="squad", nats_password="of a test", home=tmp_path
        )
        place = await Wiring.open(settings, AgentIdentity(id="web", type="test"), create=True)
        rest.push_async_callback(place.aclose)
        replica = Replica(peer_of(place), Sworn())
        await replica.start()
        rest.push_async_callback(replica.aclose)
        await rest.enter_async_context(opened_gateway(place, "synadia"))
        connection = await nats.connect(server.url, nkeys_seed_str=user.seed.decode())
        rest.push_async_callback(connection.close)
        identity = Identity(signer=signer_from_seed(user.seed.decode()))
        me = Caller(connection, Agents(nc=connection, identity=identity))
        # Its account is `$G`, which has no key.
        assert await me.heard("sworn-behalf", "who?") == ["nobody"]

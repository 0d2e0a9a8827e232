"""What each role does with the rights that it has: as a user of a server, and by a JWT."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Settings, on_durable, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.auth.roles import API_PREFIX, inbox_prefix, template
from squadron.bridge.auth.server_conf import claims
from squadron.bridge.health.examining import examine
from squadron.bridge.health.gathering import gather
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import Note
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.trust.jwts import credentials, issue
from squadron.runtime.trust.keys import Key
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from tests.contract.conftest import until
from tests.contract.own_server import OwnServer
from tests.contract.restricted import RestrictedServer


class Clerk(Agent):
    """Files."""

    @topic("office.file")
    async def file(self, text: str) -> str:
        return text.upper()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RestrictedServer]:
    made = RestrictedServer(tmp_path, "test", heartbeat_s=0.5)
    made.admit("operator", "olga")
    made.admit("observer", "console")
    made.start()
    yield made
    made.stop()


async def test_an_operator_sees_all_that_the_doctor_looks_at_on_two_accounts(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    facts = await gather(server.settings("operator", "olga"), watch_s=0.05)
    await bridge.aclose()

    # There is no bridge that would answer: only the account of the streams is made.
    assert set(facts.unknown) <= {"bridge", "agents"}
    assert facts.account == ""
    assert not server.violations()
    assert "one account" not in {each.name: each for each in examine(facts)}["least privilege"].found


async def test_an_observer_sees_who_is_there_and_asks_nothing(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.registry.advertise(AgentSpec.of(Clerk).card())
    await bridge.registry.renew("clerk", "clerk-1")
    console = await server.open("observer", "console")

    async def known() -> bool:
        return [card.agent for card in console.registry.cards()] == ["clerk"]

    await until(known)
    with pytest.raises(BusUnavailableError):
        await console.ports.queue.put(console.ports.subjects.task("office.file"), b"{}", msg_id="")
    await console.aclose()
    await bridge.aclose()


class Ledger(Agent):
    """Keeps books: in order, and of durable events."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @topic("book.add")
    async def add(self, number: int) -> int:
        return number + 1

    @on_durable("sale.*")
    async def sold(self, message: AgentMessage) -> None:
        self.heard.append(str(message.payload.content))


async def test_a_replica_takes_tasks_in_order_and_durable_events_and_asks_others(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    spec = AgentSpec.of(Ledger)
    patterns = tuple(each.name for each in spec.card().topics)
    await bridge.ports.queue.declare(Mailbox("ledger", patterns, 1.5, ordered=True))
    await bridge.registry.advertise(spec.card())
    groups = ("ledger.sold",)
    place = await server.open("agent", "ledger", id="ledger-0a1b2c3d", groups=groups, ordered=True)
    ledger = Ledger()
    host = Host(place, ledger, spec, slots=4, ordered=True)
    await host.start()
    client = await server.open("client", "client")

    asked = [
        client.caller.ask("book.add", {"number": number}, AskOptions(conversation_id="c", within_s=20, priority=9))
        for number in range(3)
    ]
    assert [outcome.unwrap() for outcome in await asyncio.gather(*asked)] == [1, 2, 3]
    await client.caller.sender.publish_durable("sale.made", "a book")

    async def heard() -> bool:
        return ledger.heard == ["a book"]

    await until(heard)
    await host.stop(1)
    for each in (client, place, bridge):
        await each.aclose()
    assert not server.violations()


async def test_what_a_replica_tells_of_itself_is_told_on_by_the_bridge_to_everybody(
    server: RestrictedServer,
) -> None:
    bridge = await server.open("bridge", "bridge")
    client, told = await server.open("client", "client"), list[tuple[str, dict[str, Any]]]()

    def hear(note: Note) -> None:
        message = AgentMessage.decode(note.data)
        told.append((message.source.id, message.payload.content))

    await client.ports.bus.subscribe(client.ports.subjects.event("status.*"), hear)
    spec = AgentSpec.of(Clerk)
    await bridge.ports.queue.declare(Mailbox("clerk", ("office.file",), 1.5))
    await bridge.registry.advertise(spec.card())
    place = await server.open("agent", "clerk", id="clerk-0a1b2c3d", serves=("office.file",))
    host = Host(place, Clerk(), spec, slots=1)
    await host.start()
    await host.stop(1)

    async def both() -> bool:
        return {content["event"] for _, content in told} >= {"agent_online", "agent_offline"}

    await until(both)
    assert {(source, content["replica"]) for source, content in told} == {("bridge", "clerk-0a1b2c3d")}
    for each in (client, place, bridge):
        await each.aclose()
    assert not server.violations()


def _jwt_server(folder: Path) -> tuple[OwnServer, Key, Key, Key]:
    """A server that knows users by their JWTs: it, both accounts, and the key that vouches for agents."""
    operator, system, streams, agents, role = (Key.create(kind) for kind in "OAAAA")  # type: ignore[arg-type]
    exports, imports = claims(streams.public)
    unlimited = {
        "subs": -1,
        "data": -1,
        "payload": -1,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
    }
    store = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    vouches = {"kind": "user_scope", "key": role.public, "role": "agent", "template": template("agent", "test")}
    accounts = {
        system.public: issue("account", system.public, operator, name="SYS", nats={}),
        streams.public: issue(
            "account", streams.public, operator, name="SQ", nats={"limits": unlimited | store, **exports}
        ),
        agents.public: issue(
            "account",
            agents.public,
            operator,
            name="AGENTS",
            nats={"limits": unlimited, "signing_keys": [vouches], **imports},
        ),
    }
    root = issue("operator", operator.public, operator, name="squadron", nats={"system_account": system.public})
    conf = {"operator": root, "system_account": system.public, "resolver": "MEMORY", "resolver_preload": accounts}
    lines = "\n".join(f"{name}: {json.dumps(value)}" for name, value in conf.items() if name != "resolver")
    return OwnServer(folder, f"{lines}\nresolver: MEMORY\n"), streams, agents, role


def _creds(folder: Path, name: str, account: Key, issuer: Key, nats: dict[str, Any]) -> Path:
    user, path = Key.create("U"), folder / f"{name}.creds"
    told = {"issuer_account": account.public, **nats} if issuer is not account else nats
    path.write_bytes(credentials(issue("user", user.public, issuer, name=name, nats=told), user))
    return path


async def test_the_template_of_a_signing_key_gives_a_replica_the_rights_of_its_name(tmp_path: Path) -> None:
    server, streams, agents, role = _jwt_server(tmp_path)
    server.start()
    whole = {"subs": -1, "data": -1, "payload": -1}
    settings = Settings(nats_url=server.url, env="test")
    as_bridge = replace(settings, nats_user_credentials=_creds(tmp_path, "bridge", streams, streams, whole))
    bridge = await Wiring.open(as_bridge, AgentIdentity(id="bridge"), create=True)
    await bridge.ports.queue.declare(Mailbox("clerk", ("office.file",), 1.5))
    await bridge.registry.advertise(AgentSpec.of(Clerk).card())
    as_clerk = replace(
        settings,
        nats_user_credentials=_creds(tmp_path, "clerk", agents, role, {"tags": ["serves:office.file"]}),
        nats_api_prefix=API_PREFIX,
        nats_inbox_prefix=inbox_prefix("clerk"),
    )
    place = await Wiring.open(as_clerk, AgentIdentity(id="clerk-1"))
    host = Host(place, Clerk(), AgentSpec.of(Clerk), slots=4)
    await host.start()

    assert (await bridge.caller.ask("office.file", {"text": "a"}, AskOptions(within_s=20))).unwrap() == "A"
    with pytest.raises(BusUnavailableError):
        await place.ports.dead.append(place.ports.subjects.dead("another", "m"), b"{}")

    await host.stop(1)
    await place.aclose()
    await bridge.aclose()
    server.stop()
    violations = [line for line in (tmp_path / "nats.log").read_text().splitlines() if " Violation" in line]
    assert [line for line in violations if ".dead.another." not in line] == []

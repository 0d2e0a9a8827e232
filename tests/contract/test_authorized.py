"""Who may ask what, and how much: over both kinds of ports, with principals that sign."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import on, on_durable, topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall
from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.control.control import Bridge
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.config import Settings
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ConfigError, ForbiddenError
from squadron.runtime.running.context import Context
from squadron.runtime.telemetry.happenings import Distrusted
from squadron.runtime.trust.principals import Role
from squadron.runtime.wire.behalf import BEHALF
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, pack
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.outcome import DeadLettered, Outcome, Rejected, Result
from squadron.testing import ScriptedModel, turned_time
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import NoReplicas, Peer, Replica, peer_of, until
from tests.trusted import Realm

SOON = AskOptions(within_s=10)
Join = Callable[..., Awaitable[Peer]]


def _told(outcome: Outcome) -> dict[str, Any]:
    return {"kind": outcome.kind, "reason": outcome.reason, "data": getattr(outcome, "data", None)}


class Vault(Agent):
    """Keeps things."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    @topic("vault.open", description="Open it", allow=["client:ann", "agent:*", "gateway:web"], max_attempts=1)
    async def unlock(self, ctx: Context, text: str) -> dict[str, Any]:
        self.ran.append(text)
        if text == "fail":
            raise ValueError("no good")
        return {"behalf": list(ctx.behalf)}

    @topic("vault.look", description="Look at it")
    async def look(self, ctx: Context, text: str) -> dict[str, Any]:
        self.ran.append(text)
        ctx.charge(tokens=60, usd=0.5)
        return {"tokens": ctx.budget.tokens, "usd": ctx.budget.usd}


class Middle(Agent):
    """Passes on what it is asked."""

    @topic("pass.once", description="Ask the vault")
    async def once(self, ctx: Context, text: str) -> dict[str, Any]:
        return _told(await ctx.ask("vault.open", {"text": text}))

    @topic("pass.news", description="Tell the news")
    async def news(self, ctx: Context, text: str) -> None:
        await ctx.publish_durable("news.sport", text)

    @topic("pass.twice", description="Ask who asks the vault")
    async def twice(self, ctx: Context, text: str) -> dict[str, Any]:
        return _told(await ctx.ask("pass.thrice", {"text": text}))


class Second(Agent):
    """Passes on what it is asked, too."""

    @topic("pass.thrice", description="Ask the vault")
    async def thrice(self, ctx: Context, text: str) -> dict[str, Any]:
        return _told(await ctx.ask("vault.open", {"text": text}))


@dataclasses.dataclass
class Realms:
    """Where everybody has a credential."""

    join: Join
    folder: Path
    replicas: list[Replica]

    async def serve(self, agent: Agent, *, name: str = "", **how: Any) -> Replica:
        spec = AgentSpec.of(type(agent))
        bridge = await self.join("bridge", "bridge")
        replica = Replica(await self.join(name or spec.name, "agent", **how), agent)
        await bridge.registry.advertise(spec.card())
        await replica.start(card=False)
        self.replicas.append(replica)
        return replica

    def policy(self, **said: Any) -> Path:
        path = self.folder / "policy.json"
        path.write_text(json.dumps(said))
        return path


@pytest.fixture(params=["memory", "jetstream"])
async def realms(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Realms]:
    realm, trust = Realm(), tmp_path / "trust.json"
    trust.write_bytes(realm.document())
    closers: list[Callable[[], Awaitable[None]]] = []
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            stack.enter_context(turned_time())
            server, base = MemoryServer("test"), Settings(env="test", heartbeat_s=HEARTBEAT_S)
        else:
            base = request.getfixturevalue("settings")

        async def join(
            name: str, role: Role | None, *, verify: str = "require", policy: Path | None = None
        ) -> Peer:
            creds = realm.write(tmp_path, name, role) if role else None
            known = {"trust": trust} if role or verify != "off" else {}
            how = {"nats_user_credentials": creds, "verify": verify, "policy": policy, **known}
            settings, identity = dataclasses.replace(base, **how), AgentIdentity(id=name, type="test")
            place: Place
            if request.param == "memory":
                place = server.place(identity, settings)
                closers.append(place.aclose)
                await place.start()
            else:
                place = await Wiring.open(settings, identity, create=True)
                closers.append(place.aclose)
            return peer_of(place)

        made = Realms(join, tmp_path, [])
        yield made
        for replica in made.replicas:
            await replica.aclose()
        for close in reversed(closers):
            await close()


def _is_refused(outcome: Outcome, field: str, reason: str) -> None:
    assert isinstance(outcome, Rejected), outcome
    assert outcome.details["field"] == field, outcome
    assert reason in outcome.reason


async def put(peer: Peer, topic: str, content: Any, *, type: str = "task", **metadata: Any) -> Outcome:
    """Send a task as somebody would who has no door of ours, and wait for its outcome."""
    id = f"task-{peer.ports.identity.id}-{len(metadata)}-{content}"
    reply_to = peer.subjects.lite(f"{peer.ports.principal.name}-asks", "own")  # type: ignore[union-attr]
    deadline = peer.caller.resume(
        json.dumps(
            {"task": id, "topic": topic, "replyTo": reply_to, "deadline": int(1000 * peer.clock.time()) + 9000}
        )
    ).deadline
    said = {"content": {"text": content}}
    how = {"id": id, "reply_to": reply_to, "metadata": metadata or None, "timestamp": peer.clock.time()}
    data = pack(type, peer.ports.identity, said, **how)  # type: ignore[arg-type]
    subject = peer.subjects.task(topic)
    handle = Handle(id, topic, reply_to, deadline, peer.caller)
    await peer.queue.put(subject, data, msg_id=id)
    return await peer.caller.outcome(handle)


async def test_who_is_in_the_list_asks_and_nobody_else(realms: Realms) -> None:
    vault = await realms.serve(Vault())
    ann, bob = await realms.join("ann", "client"), await realms.join("bob", "client")
    outcome = await ann.caller.ask("vault.open", {"text": "ann"}, SOON)
    assert isinstance(outcome, Result), outcome
    assert outcome.data == {"behalf": ["client:ann"]}
    # Told at the door: nothing is sent.
    refused = await bob.caller.ask("vault.open", {"text": "bob"}, SOON)
    _is_refused(refused, "allow", "client:bob may not ask vault.open, which is for client:ann")
    assert not refused.source
    assert vault.delivered == [1]
    # By name, by role, and neither.
    helper = await realms.join("helper", "agent")
    assert isinstance(await helper.caller.ask("vault.open", {"text": "helper"}, SOON), Result)
    for role in ("operator", "foreign", "gateway"):
        other = await realms.join("ann", role)
        _is_refused(await other.caller.ask("vault.open", {"text": role}, SOON), "allow", f"{role}:ann")
    assert vault.agent.ran == ["ann", "helper"]  # type: ignore[attr-defined]


async def test_who_has_no_door_is_refused_where_it_would_run_and_it_is_counted_and_filed(realms: Realms) -> None:
    vault = await realms.serve(Vault())
    told: list[Distrusted] = []

    class Ear:
        def hear(self, happening: object) -> None:
            if isinstance(happening, Distrusted):
                told.append(happening)

        async def aclose(self) -> None: ...

    vault.peer.ports.observers.add(Ear())
    bob = await realms.join("bob", "client")
    outcome = await put(bob, "vault.open", "in")
    _is_refused(outcome, "allow", "client:bob may not ask vault.open")
    assert outcome.source
    assert vault.agent.ran == []  # type: ignore[attr-defined]
    assert vault.peer.ports.guard.refused == {"right": 1}
    (refusal,) = told
    assert (refusal.kind, "client:bob" in refusal.reason) == ("right", True)
    # A query is a task.
    _is_refused(await put(bob, "vault.open", "query", type="query"), "allow", "client:bob")


async def test_a_policy_forbids_what_a_card_allows_and_never_the_other_way_round(realms: Realms) -> None:
    policy = realms.policy(
        rules=[
            {"topics": ["vault.look"], "allow": ["client:team-*"]},
            {"topics": ["vault.*"], "allow": ["client:*"]},
            {"topics": ["*.*"], "allow": []},
        ]
    )
    vault = await realms.serve(Vault(), policy=policy)
    for name, role, topic_name, forbidden in (
        ("team-eve", "client", "vault.look", ""),
        ("ann", "client", "vault.look", "rules.0"),
        ("ann", "client", "vault.open", ""),
        ("helper", "agent", "vault.open", "rules.1"),
        ("bob", "client", "vault.open", "allow"),
    ):
        peer = await realms.join(name, role)  # type: ignore[arg-type]
        outcome = await put(peer, topic_name, f"{name} {topic_name}")
        if forbidden:
            _is_refused(outcome, forbidden, f"{role}:{name} may not ask {topic_name}")
        else:
            assert isinstance(outcome, Result), outcome
    # Who has the policy, too, is told at the door.
    ann = await realms.join("ann", "client", policy=policy)
    before = len(vault.delivered)
    _is_refused(await ann.caller.ask("vault.look", {"text": "x"}, SOON), "rules.0", "client:ann")
    assert len(vault.delivered) == before


async def test_a_chain_of_three_is_carried_and_each_of_them_has_to_be_allowed(realms: Realms) -> None:
    vault = await realms.serve(Vault())
    await realms.serve(Middle())
    await realms.serve(Second())
    ann, bob = await realms.join("ann", "client"), await realms.join("bob", "client")
    outcome = await ann.caller.ask("pass.twice", {"text": "ann"}, SOON)
    assert isinstance(outcome, Result), outcome
    inner = outcome.data["data"]["data"]
    assert inner == {"behalf": ["client:ann", "agent:middle", "agent:second"]}
    for way in ("pass.once", "pass.twice"):
        outcome = await bob.caller.ask(way, {"text": "bob"}, SOON)
        assert isinstance(outcome, Result), outcome
        told = outcome.data if way == "pass.once" else outcome.data["data"]
        assert told["kind"] == "rejected"
        assert "client:bob may not ask vault.open" in told["reason"]
    assert vault.agent.ran == ["ann"]  # type: ignore[attr-defined]


class Thinker(Supervisor):
    """The supervisor, with a mind that opens the vault for whoever asks."""

    name = "supervisor"

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return ScriptedModel([self._think] * 3)

    def _think(self, request: ModelRequest) -> ModelTurn:
        if request.messages[-1].role == "user":
            return ModelTurn("I open.", (ToolCall("c", "vault__open", {"text": "of a run"}),))
        return ModelTurn("", (ToolCall("f", "finish", {"answer": request.messages[-1].content}),))


async def test_a_run_may_no_more_than_who_asked_for_it(realms: Realms) -> None:
    vault = await realms.serve(Vault())
    await realms.serve(Thinker())
    asked = AskOptions(within_s=60)
    for name, ran in (("bob", []), ("ann", ["of a run"])):
        client = await realms.join(name, "client")
        outcome = await client.caller.ask("goal.pursue", {"goal": "open the vault"}, asked)
        assert isinstance(outcome, Result), outcome
        assert vault.agent.ran == ran  # type: ignore[attr-defined]
        said = "client:bob may not ask vault.open" if name == "bob" else "agent:supervisor"
        assert said in outcome.data["answer"]


async def test_to_name_another_gives_no_rights_and_clients_name_nobody(realms: Realms) -> None:
    vault = await realms.serve(Vault())
    mallory, web = await realms.join("mallory", "foreign"), await realms.join("web", "gateway")
    helper, other = await realms.join("helper", "agent"), await realms.join("other", "gateway")
    ann = await realms.join("ann", "client")
    named = f"metadata.{BEHALF}"
    for peer in (mallory, ann):
        outcome = await put(peer, "vault.open", "x", **{BEHALF: ["client:ann"]})
        _is_refused(outcome, named, "may act on behalf of nobody")
    _is_refused(await put(other, "vault.open", "x", **{BEHALF: ["client:ann"]}), "allow", "gateway:other")
    _is_refused(await put(web, "vault.open", "x", **{BEHALF: ["client:bob"]}), "allow", "client:bob")
    for content, wrong in enumerate(({"a": 1}, [1], ["ann"], ["client:*"], ["client:ann"] * 65)):
        _is_refused(await put(helper, "vault.open", f"{content}", **{BEHALF: wrong}), named, named)
    assert vault.agent.ran == []  # type: ignore[attr-defined]
    for who, why in (("client:ann", ""), ("client:bob", "client:bob")):
        outcome = await web.caller.ask("vault.open", {"text": who}, AskOptions(within_s=10, on_behalf_of=who))
        if why:
            _is_refused(outcome, "allow", why)
        else:
            assert isinstance(outcome, Result), outcome
            assert outcome.data == {"behalf": ["client:ann", "gateway:web"]}
    outcome = await ann.caller.ask("vault.look", {"text": "x"}, AskOptions(within_s=10, on_behalf_of="client:bob"))
    _is_refused(outcome, named, "client:ann may act on behalf of nobody")


async def test_a_rate_is_of_each_principal_and_of_all_replicas_together(realms: Realms) -> None:
    policy = realms.policy(limits=[{"who": ["client:*"], "topics": ["vault.*"], "tasks_per_minute": 2}])
    one = await realms.serve(Vault(), policy=policy)
    two = await realms.serve(Vault(), policy=policy)
    ann, eve = await realms.join("ann", "client"), await realms.join("eve", "client")
    outcomes = await asyncio.gather(*(ann.caller.ask("vault.look", {"text": f"{i}"}, SOON) for i in range(8)))
    kinds = sorted(outcome.kind for outcome in outcomes)
    assert kinds == ["rejected"] * 6 + ["result"] * 2
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            _is_refused(outcome, "limits.0", "client:ann may ask no more of it: tasks_per_minute is 2")
    refused = sum(each.peer.ports.guard.refused["right"] for each in (one, two))
    assert refused == 6
    assert isinstance(await eve.caller.ask("vault.look", {"text": "eve"}, SOON), Result)


async def test_what_a_principal_may_spend_ends_for_the_day_and_no_task_gets_more(realms: Realms) -> None:
    limit = {"who": ["client:ann"], "tokens_per_task": 80, "tokens_per_day": 100, "usd_per_day": 20}
    await realms.serve(Vault(), policy=realms.policy(limits=[limit]))
    ann, eve = await realms.join("ann", "client"), await realms.join("eve", "client")
    left = []
    for i in range(2):
        outcome = await ann.caller.ask("vault.look", {"text": f"{i}"}, SOON)
        assert isinstance(outcome, Result), outcome
        left.append(outcome.data["tokens"])

        async def is_charged(i: int = i) -> bool:
            entries = await ann.lite.latest(ann.subjects.lite_of("allowance"))
            return any(json.loads(each.data)["tokens"] == 60 * (i + 1) for each in entries)

        await until(is_charged)
    # 80 of the first task less 60; of the second one 40 less 60.
    assert left == [20, 0]
    outcome = await ann.caller.ask("vault.look", {"text": "2"}, SOON)
    _is_refused(outcome, "limits.0", "tokens_per_day is 100")
    outcome = await eve.caller.ask(
        "vault.look", {"text": "eve"}, AskOptions(within_s=10, budget=Budget(tokens=500))
    )
    assert isinstance(outcome, Result)
    assert outcome.data["tokens"] == 440


async def test_a_gateway_s_caller_pays_for_what_it_asks(realms: Realms) -> None:
    policy = realms.policy(limits=[{"who": ["client:*"], "tasks_per_minute": 1}])
    await realms.serve(Vault(), policy=policy)
    web = await realms.join("web", "gateway")
    kinds = []
    for who in ("client:ann", "client:ann", "client:eve", ""):
        options = AskOptions(within_s=10, on_behalf_of=who)
        kinds.append((await web.caller.ask("vault.look", {"text": who}, options)).kind)
    assert kinds == ["result", "rejected", "result", "result"]


@pytest.mark.parametrize("tasks", [0, 1_000_000])
async def test_a_count_that_a_stranger_wrote_is_not_believed(realms: Realms, tasks: int) -> None:
    policy = realms.policy(limits=[{"who": ["client:ann"], "tasks_per_minute": 2}])
    await realms.serve(Vault(), policy=policy)
    ann = await realms.join("ann", "client")
    assert isinstance(await ann.caller.ask("vault.look", {"text": "1"}, SOON), Result)
    (entry,) = await ann.lite.latest(ann.subjects.lite_of("allowance"))
    await ann.lite.append(entry.key, json.dumps({**json.loads(entry.data), "tasks": tasks}).encode())
    assert isinstance(await ann.caller.ask("vault.look", {"text": "2"}, SOON), Result)
    _is_refused(await ann.caller.ask("vault.look", {"text": "3"}, SOON), "limits.0", "tasks_per_minute")


async def test_what_an_operator_puts_back_has_the_rights_of_who_sent_it(realms: Realms) -> None:
    vault = await realms.serve(Vault())
    ann, boss = await realms.join("ann", "client"), await realms.join("boss", "operator")
    outcome = await ann.caller.ask("vault.open", {"text": "fail"}, SOON)
    assert isinstance(outcome, DeadLettered), outcome
    assert await boss.place.dead_letters.redrive(outcome.task_id)

    async def ran_twice() -> bool:
        return vault.agent.ran == ["fail", "fail"]  # type: ignore[attr-defined]

    await until(ran_twice)
    assert not vault.peer.ports.guard.refused


class Listener(Agent):
    """Hears of news."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @on("news.*")
    async def hear(self, message: AgentMessage) -> None:
        self.heard.append(message.payload.content)

    @on_durable("news.*")
    async def keep(self, message: AgentMessage) -> None:
        self.heard.append(message.payload.content)


async def test_events_are_of_those_whom_the_policy_lets_publish_them(realms: Realms) -> None:
    policy = realms.policy(rules=[{"topics": ["news.*"], "allow": ["client:ann"]}])
    ann, bob = await realms.join("ann", "client"), await realms.join("bob", "client")
    peer, listener = await realms.join("listener", "agent", policy=policy), Listener()
    host = Host(peer.place, listener, AgentSpec.of(Listener), slots=2)
    await host.start()
    try:
        for who in (bob, ann):
            name = who.ports.principal.name  # type: ignore[union-attr]
            await who.caller.sender.publish("news.sport", name)
            await who.caller.sender.publish_durable("news.sport", f"{name} durable")

        async def heard_all() -> bool:
            # Of durable events plain handlers hear, too.
            return sorted(listener.heard) == ["ann", "ann durable", "ann durable"]

        await until(heard_all)

        async def refused_all() -> bool:
            # One plain, and one durable twice.
            return peer.ports.guard.refused == {"event": 3}

        await until(refused_all)
    finally:
        await host.stop(1.0)


async def test_an_event_of_a_handler_is_on_behalf_of_who_asked(realms: Realms) -> None:
    policy = realms.policy(rules=[{"topics": ["news.*"], "allow": ["client:ann", "agent:*"]}])
    await realms.serve(Middle())
    peer, listener = await realms.join("listener", "agent", policy=policy), Listener()
    host = Host(peer.place, listener, AgentSpec.of(Listener), slots=2)
    await host.start()
    try:
        for name in ("bob", "ann"):
            client = await realms.join(name, "client")
            assert isinstance(await client.caller.ask("pass.news", {"text": name}, SOON), Result)

        async def heard_all() -> bool:
            return listener.heard == ["ann", "ann"] and peer.ports.guard.refused == {"event": 2}

        await until(heard_all)
        bob = await realms.join("bob", "client", policy=policy)
        with pytest.raises(ForbiddenError, match=r"client:bob may not ask news\.sport"):
            await bob.caller.sender.publish("news.sport", "never sent")
    finally:
        await host.stop(1.0)


async def test_control_verbs_are_no_topics(realms: Realms) -> None:
    policy = realms.policy(rules=[{"topics": ["*.*"], "allow": []}])
    peer = await realms.join("bridge", "bridge", policy=policy)

    async def held() -> dict[str, int]:
        return {}

    async def kept() -> tuple[str, ...]:
        return ()

    bridge = Bridge(peer.ports, peer.registry, peer.records, NoReplicas(), held, kept, {}, lease_s=1.5)
    await bridge.start()
    try:
        boss = await realms.join("boss", "operator", policy=policy)
        control = Control(boss.bus, boss.subjects, boss.ports.guard)
        assert (await control.call("ping"))["environment"] == boss.subjects.environment
        with pytest.raises(ConfigError):
            await control.call("undeploy", agent="nobody")
    finally:
        await bridge.aclose()


async def test_a_list_that_nobody_can_hold_to_keeps_a_replica_from_starting(realms: Realms) -> None:
    peer = await realms.join("vault", "agent", verify="off")
    with pytest.raises(ConfigError, match=r"vault\.open is for client:ann, .* SQUADRON_VERIFY"):
        await Replica(peer, Vault()).start()


async def test_where_it_is_only_warned_of_all_run_and_are_counted(realms: Realms) -> None:
    policy = realms.policy(limits=[{"who": ["*:*"], "tasks_per_minute": 1}])
    vault = await realms.serve(Vault(), verify="warn", policy=policy)
    bob = await realms.join("bob", "client", verify="warn")
    for i in range(2):
        assert isinstance(await bob.caller.ask("vault.open", {"text": f"{i}"}, SOON), Result)
    # Each is not in the list; the second comes too soon.
    assert vault.peer.ports.guard.refused == {"right": 3}


class Plain(Agent):
    """Tells how it was asked."""

    @topic("plain.outer", description="Ask inside")
    async def outer(self, ctx: Context) -> Any:
        return (await ctx.ask("plain.inner")).data

    @topic("plain.inner", description="Tell how it was asked")
    async def inner(self, ctx: Context) -> Any:
        return [sorted(ctx.message.metadata or {}), list(ctx.behalf)]


async def test_nothing_is_said_of_anybody_where_nobody_looks(realms: Realms) -> None:
    peer = await realms.join("plain", None, verify="off")
    replica = Replica(peer, Plain())
    await replica.start()
    realms.replicas.append(replica)
    asker = await realms.join("asker", None, verify="off")
    outcome = await asker.caller.ask("plain.outer", None, SOON)
    assert isinstance(outcome, Result), outcome
    metadata, behalf = outcome.data
    assert "path" in metadata
    assert BEHALF not in metadata
    assert behalf == []

"""Agents of the Synadia Agent Protocol as topics: those of its official host, on a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from synadia_ai.agent_service import AgentService, RequestRejectedError
from synadia_ai.agents.envelope import Attachment
from synadia_ai.agents.messages import ResponseChunk

from squadron.actors.remote import synadia_peers
from squadron.actors.remote.synadia_remote import SynadiaRemote, operations_of, peers_on
from squadron.bridge.jetstream.link import embedded
from squadron.runtime.asking.answering import People
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ServerUnavailableError, Terminal
from squadron.runtime.streams.writer import Chunk
from squadron.runtime.wire.outcome import Outcome
from tests.contract.conftest import ON_NATS, Peer, Replica, World, until
from tests.contract.gateway_process import opened_gateway
from tests.contract.test_synadia_door import Prompted

pytestmark = ON_NATS

SOON = AskOptions(within_s=20)
Hosted = Callable[..., Awaitable[AgentService]]


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    assert world.settings is not None
    endpoint = embedded.ensure(world.settings.home)
    connection = await nats.connect(endpoint.url, token=endpoint.token)
    yield connection
    await connection.close()


async def answers(envelope: Any, stream: Any) -> None:
    """What the hosts of these tests do."""
    match envelope.prompt.split():
        case ["count", to]:
            for number in range(int(to)):
                await stream.send(f"{number} ")
        case ["fail"]:
            raise ValueError("out of paper")
        case ["reject", code]:
            raise RequestRejectedError(int(code), "not like this")
        case ["ask"]:
            await stream.send(f"you said {(await stream.ask('Which size?', timeout=20)).prompt}")
        case ["look"]:
            back = [Attachment.from_bytes(each.filename, each.to_bytes()[::-1]) for each in envelope.attachments]
            await stream.send(ResponseChunk(text="turned around", attachments=back))
        case _:
            await stream.send(f"echo {envelope.prompt}")


@pytest.fixture
async def host(client: Client, world: World) -> AsyncIterator[Hosted]:
    """Runs agents by the protocol's own host, of an owner that no other test has."""
    assert world.settings is not None
    running: list[AgentService] = []

    async def start(agent: str = "echo", session: str = "main", **more: Any) -> AgentService:
        service = AgentService(
            agent=agent,
            owner=world.settings.env,
            session_name=session,
            nc=client,
            description=f"The {agent}.",
            **more,
        )
        service.on_prompt(answers)
        await service.start()
        running.append(service)
        return service

    yield start
    for each in running:
        with contextlib.suppress(Exception):
            await each.stop()


Stands = Callable[[], Awaitable[Replica]]


@pytest.fixture
async def stands(world: World) -> AsyncIterator[Stands]:
    """An agent of ours for those that are there."""
    running: list[Replica] = []

    async def start() -> Replica:
        assert world.settings is not None
        peer = await world.join(f"synadia{len(running)}", agent="synadia")
        server = {"owner": world.settings.env}
        peers = peers_on(peer.ports, **server)
        made = SynadiaRemote.serving("synadia", server, operations_of(await peers.now(), "synadia"))
        agent = made()
        agent.ports = peer.ports
        await agent.on_start()
        replica = Replica(peer, agent)
        await replica.start()
        running.append(replica)
        return replica

    yield start
    for each in running:
        await each.aclose()
        await each.agent.on_stop()


@pytest.fixture
async def asked(host: Hosted, stands: Stands, peer: Peer, world: World) -> Callable[..., Awaitable[Outcome]]:
    await host()
    await stands()
    await peer.registry.refresh(float("inf"))

    async def ask(prompt: str, **more: Any) -> Outcome:
        assert world.settings is not None
        return await peer.caller.ask(f"synadia.echo-{world.settings.env}-main", {"prompt": prompt, **more}, SOON)

    return ask


Ask = Callable[..., Awaitable[Outcome]]


async def test_an_agent_of_others_is_found_and_asked_like_any_other(asked: Ask, peer: Peer, world: World) -> None:
    assert world.settings is not None
    topic = peer.registry.find(f"synadia.echo-{world.settings.env}-main")
    assert topic is not None
    assert (topic.description, topic.tags) == ("The echo.", ("synadia",))
    assert (await asked("hi")).unwrap() == {"text": "echo hi", "attachments": []}


async def test_what_it_says_is_a_stream_and_then_the_result(asked: Ask, peer: Peer, world: World) -> None:
    assert world.settings is not None
    handle = await peer.caller.submit(f"synadia.echo-{world.settings.env}-main", {"prompt": "count 3"}, SOON)
    assert [each.value async for each in handle.events() if isinstance(each, Chunk)] == ["0 ", "1 ", "2 "]
    assert (await handle.outcome()).unwrap()["text"] == "0 1 2 "


async def test_attachments_go_there_and_come_back(asked: Ask) -> None:
    given = {"filename": "a.bin", "content": "AP8="}
    said = (await asked("look", attachments=[given])).unwrap()
    assert said == {"text": "turned around", "attachments": [{"filename": "a.bin", "content": "/wA="}]}


async def test_what_it_asks_people_answer(asked: Ask, peer: Peer) -> None:
    asking = asyncio.create_task(asked("ask"))
    people = People(peer.ports, peer.caller.lite_topics)
    async with people.follow() as news:
        question = (await anext(news)).asked
        assert question.question.message.endswith("asks: Which size?")
        await people.answer(question.query_id, {"answer": "M"}, by="client:test")
        assert (await asking).unwrap()["text"] == "you said M"


async def test_errors_keep_their_meaning(asked: Ask) -> None:
    for said, reason in (("fail", "500: handler error"), ("reject 409", "409: not like this")):
        outcome = await asked(said)
        assert outcome.kind == "failed"
        assert reason in outcome.reason
    assert (await asked("hi", size=3)).kind == "rejected"
    # More than it takes, which it says itself.
    assert (await asked("x" * 2_000_000)).kind == "rejected"


async def test_who_comes_and_who_leaves_is_told(host: Hosted, peer: Peer, world: World) -> None:
    assert world.settings is not None
    first = await host("one", heartbeat_interval_s=1)
    agent = SynadiaRemote.serving("synadia", {"owner": world.settings.env}, await _there(peer, world))()
    agent.ports = peer.ports
    await agent.on_start()
    changes = aiter(agent.changes())
    assert [each.topic.name for each in await anext(changes)] == [f"synadia.one-{world.settings.env}-main"]
    # Its first heartbeat is heard, and not waited for 30 s.
    await host("two", heartbeat_interval_s=1)
    async with asyncio.timeout(15):
        assert len(await anext(changes)) == 2
    await first.stop()
    # While its heart has beaten of late, it may only be slow.
    assert len(await agent.operations_now()) == 2
    agent._peers._beats = {subject: at - synadia_peers.AWAY_S for subject, at in agent._peers._beats.items()}
    async with asyncio.timeout(15):
        while [each.name for each in await agent.operations_now() if ".one." in each.name]:
            agent._peers._beats = {s: at for s, at in agent._peers._beats.items() if ".one." not in s}
    await agent.on_stop()


async def _there(peer: Peer, world: World) -> Any:
    assert world.settings is not None
    return operations_of(await peers_on(peer.ports, owner=world.settings.env).now(), "synadia")


async def test_our_own_are_not_found_again(world: World, peer: Peer, serve: Any) -> None:
    await serve(Prompted())
    door = await world.join("gateway")
    await door.registry.refresh(float("inf"))
    async with opened_gateway(door.place, "synadia"):
        owners = {each.owner for each in await peers_on(peer.ports).now()}
    assert f"squadron-{peer.subjects.environment}" not in owners


async def test_a_task_whose_replica_dies_is_prompted_by_the_next(
    host: Hosted, stands: Stands, peer: Peer, world: World
) -> None:
    assert world.settings is not None
    prompts: list[str] = []
    go_on = asyncio.Event()

    async def slowly(envelope: Any, stream: Any) -> None:
        prompts.append(envelope.prompt)
        if len(prompts) == 1:
            await go_on.wait()
        await stream.send(f"attempt {len(prompts)}")

    (await host(max_concurrent_prompts=4)).on_prompt(slowly)
    first = await stands()
    await peer.registry.refresh(float("inf"))
    handle = await peer.caller.submit(f"synadia.echo-{world.settings.env}-main", {"prompt": "slow"}, SOON)
    await until(lambda: _is(len(prompts) == 1))
    # As one that was killed it neither ends its task nor gives it back.
    await first.peer.place.disconnect()
    await stands()
    assert (await handle.outcome()).unwrap()["text"] == "attempt 2"
    go_on.set()


async def _is(so: bool) -> bool:
    return so


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"no JSON", "none of the protocol"),
        (b"[]", "none of the protocol"),
        (b'{"data": 1}', "none of the protocol"),
    ],
)
async def test_an_answer_that_makes_no_sense_ends_the_call(
    peer: Peer, client: Client, said: bytes, error: str
) -> None:
    subject = f"agents.prompt.x.{peer.subjects.environment}.y"

    async def hear(message: Any) -> None:
        await client.publish(message.reply, said)

    await client.subscribe(subject, cb=hear)
    await client.flush()
    with pytest.raises(Terminal, match=error):
        async for _ in peers_on(peer.ports).prompt(subject, b"hi"):
            pass


async def test_who_is_not_there_or_falls_silent_is_tried_again(
    peer: Peer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = f"agents.prompt.x.{peer.subjects.environment}.y"
    with pytest.raises(ServerUnavailableError, match="nobody answers"):
        async for _ in peers_on(peer.ports).prompt(subject, b"hi"):
            pass
    monkeypatch.setattr(synadia_peers, "SILENT_S", 0.2)
    await client.subscribe(subject)
    await client.flush()
    with pytest.raises(ServerUnavailableError, match="says nothing"):
        async for _ in peers_on(peer.ports).prompt(subject, b"hi"):
            pass

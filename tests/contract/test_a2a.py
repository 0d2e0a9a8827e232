"""Agents as A2A agents: the official client asks them, over both bindings."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from a2a.client import Client, ClientConfig, create_client
from a2a.client.errors import A2AClientError
from a2a.helpers.proto_helpers import get_data_parts, new_data_part, new_text_part
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import A2AError

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.gateways.a2a.a2a_card import SCHEMAS
from squadron.bridge.gateways.a2a.a2a_parts import content_of, parts_of
from squadron.bridge.gateways.a2a.a2a_tasks import OUTCOME, QUESTION_SCHEMA, TOPIC
from squadron.bridge.gateways.http_guard import GuardRules
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import Context
from squadron.runtime.wire.topics import SemanticTopic
from tests.contract.conftest import ON_NATS, Peer, Serve, World, until
from tests.contract.gateway_process import gateway_command, opened_gateway
from tests.contract.nats_cluster import free_port

BINDINGS = pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
#: Tokens of two visitors.
ANN, BOB = "a" * 32, "b" * 32


class Known:
    """Whose a token is."""

    async def visitor(self, token: str) -> Visitor | None:
        name = {ANN: "ann", BOB: "bob"}.get(token)
        return None if name is None else Visitor(f"client:{name}")


class Scribe(Agent):
    """Adds, counts, asks."""

    def __init__(self) -> None:
        self.ran = 0
        self.cancelled = 0

    @topic("scribe.add", tags=["sums"], examples=["2 and 2"])
    async def add(self, a: int, b: int) -> dict[str, int]:
        """Add two numbers."""
        self.ran += 1
        return {"sum": a + b}

    @topic("scribe.shout")
    async def shout(self, text: str) -> str:
        """Make a text loud."""
        return text.upper()

    @topic("scribe.count")
    async def count(self, ctx: Context, to: int) -> str:
        """Count, aloud."""
        for number in range(to):
            await ctx.emit(f"{number}")
        return "done"

    @topic("scribe.fail")
    async def fail(self) -> str:
        """Never works."""
        raise Terminal("out of ink")

    @topic("scribe.wait")
    async def wait(self) -> str:
        """Wait for long."""
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "never"

    @topic("scribe.measure")
    async def measure(self, ctx: Context) -> str:
        """Ask for a size."""
        schema = {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]}
        reply = await ctx.ask_person("Which size?", schema=schema)
        return f"size {reply.content['size']}"


@contextlib.asynccontextmanager
async def _client(
    url: str, binding: str = "JSONRPC", *, streaming: bool = False, token: str = ""
) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(timeout=30, headers=headers) as http:
        config = ClientConfig(httpx_client=http, streaming=streaming, supported_protocol_bindings=[binding])
        client = await create_client(f"{url}/a2a/scribe", config)
        yield client


def _message(skill: str, *parts: pb.Part, **rest: Any) -> pb.SendMessageRequest:
    fields = {"message_id": uuid.uuid4().hex} | rest
    message = pb.Message(role=pb.Role.ROLE_USER, parts=parts, **fields)
    if skill:
        message.metadata.update({TOPIC: f"scribe.{skill}"})
    return pb.SendMessageRequest(message=message)


async def _said(client: Client, request: pb.SendMessageRequest) -> list[Any]:
    """What comes of a message, each as what it is."""
    found = []
    async for response in client.send_message(request):
        kind = response.WhichOneof("payload")
        found.append(getattr(response, str(kind)))
    return found


async def _task(client: Client, request: pb.SendMessageRequest) -> pb.Task:
    (task,) = await _said(client, request)
    assert isinstance(task, pb.Task)
    return task


@pytest.fixture
async def scribe(world: World, serve: Serve) -> Scribe:
    agent = Scribe()
    await serve(agent)
    return agent


@BINDINGS
async def test_a_message_is_a_task_and_its_result_an_artifact(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, _client(url, binding) as client:
        task = await _task(client, _message("add", new_data_part({"a": 2, "b": 3}), context_id="talk-1"))
        assert task.status.state == pb.TaskState.TASK_STATE_COMPLETED, task
        assert task.context_id == "talk-1"
        assert get_data_parts(task.artifacts[0].parts) == [{"sum": 5}]
        assert task.metadata[OUTCOME] == "result"
        shouted = await _task(client, _message("shout", new_text_part("hi")))
        assert shouted.artifacts[0].parts[0].text == "HI"
        again = await client.get_task(pb.GetTaskRequest(id=task.id))
        assert again.artifacts == task.artifacts
        assert get_data_parts(again.history[0].parts) == [{"a": 2, "b": 3}]
        listed = await client.list_tasks(pb.ListTasksRequest(page_size=1))
        assert (listed.total_size, len(listed.tasks), listed.next_page_token) == (2, 1, "1")


@BINDINGS
async def test_a_message_that_is_sent_again_is_the_same_task(peer: Peer, scribe: Scribe, binding: str) -> None:
    request = _message("add", new_data_part({"a": 1, "b": 1}))
    async with opened_gateway(peer.place, "a2a") as url, _client(url, binding) as client:
        first = await _task(client, request)
        second = await _task(client, request)
        assert first.id == second.id
    assert scribe.ran == 1


@BINDINGS
async def test_each_end_has_its_state(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, _client(url, binding) as client:
        failed = await _task(client, _message("fail", new_data_part({})))
        assert failed.status.state == pb.TaskState.TASK_STATE_FAILED
        assert "out of ink" in failed.status.message.parts[0].text
        rejected = await _task(client, _message("add", new_data_part({"a": 1})))
        assert rejected.status.state == pb.TaskState.TASK_STATE_REJECTED
        assert "'b'" in rejected.status.message.parts[0].text


@BINDINGS
async def test_a_stream_tells_chunks_and_then_the_result(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, _client(url, binding, streaming=True) as client:
        told = await _said(client, _message("count", new_data_part({"to": 3})))
    assert isinstance(told[0], pb.Task)
    artifacts = [each for each in told if isinstance(each, pb.TaskArtifactUpdateEvent)]
    assert [each.artifact.parts[0].text for each in artifacts] == ["0", "1", "2", "done"]
    assert [each.append for each in artifacts] == [False, True, True, False]
    assert artifacts[-1].last_chunk
    assert told[-1].status.state == pb.TaskState.TASK_STATE_COMPLETED


@BINDINGS
async def test_a_question_waits_for_the_next_message_of_the_task(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, _client(url, binding) as client:
        asks = await _task(client, _message("measure", new_data_part({})))
        assert asks.status.state == pb.TaskState.TASK_STATE_INPUT_REQUIRED
        assert asks.status.message.parts[0].text == "Which size?"
        assert "size" in asks.status.message.metadata[QUESTION_SCHEMA]["properties"]
        done = await _task(client, _message("", new_text_part("M"), task_id=asks.id))
        assert done.status.state == pb.TaskState.TASK_STATE_COMPLETED
        assert done.artifacts[0].parts[0].text == "size M"
        with pytest.raises((A2AError, A2AClientError)):
            await _task(client, _message("", new_text_part("L"), task_id=asks.id))


@BINDINGS
async def test_a_task_is_taken_up_at_another_gateway_and_cancelled(
    world: World, peer: Peer, scribe: Scribe, binding: str
) -> None:
    request = _message("wait", new_data_part({}))
    request.configuration.return_immediately = True
    async with opened_gateway(peer.place, "a2a") as url, _client(url, binding) as client:
        task = await _task(client, request)
        assert task.status.state == pb.TaskState.TASK_STATE_WORKING
    # The first gateway is gone, and nothing of it is needed.
    other = await world.join("other")
    async with opened_gateway(other.place, "a2a") as url, _client(url, binding, streaming=True) as client:
        told: list[Any] = []

        async def follow() -> None:
            async for response in client.subscribe(pb.SubscribeToTaskRequest(id=task.id)):
                told.append(response)  # noqa: PERF401 - as they come

        following = asyncio.ensure_future(follow())

        async def is_followed() -> bool:
            return bool(told)

        await until(is_followed)
        cancelled = await client.cancel_task(pb.CancelTaskRequest(id=task.id))
        assert cancelled.status.state == pb.TaskState.TASK_STATE_CANCELED
        await following
        assert told[-1].status_update.status.state == pb.TaskState.TASK_STATE_CANCELED
        # To cancel it again changes nothing.
        again = await client.cancel_task(pb.CancelTaskRequest(id=task.id))
        assert again.status.state == pb.TaskState.TASK_STATE_CANCELED
    assert scribe.cancelled == 1


async def test_who_leaves_a_stream_does_not_stop_the_task(peer: Peer, scribe: Scribe) -> None:
    async with opened_gateway(peer.place, "a2a") as url, _client(url, streaming=True) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await _said(client, _message("wait", new_data_part({})))
        (task,) = (await client.list_tasks(pb.ListTasksRequest())).tasks
        assert task.status.state == pb.TaskState.TASK_STATE_WORKING
        await client.cancel_task(pb.CancelTaskRequest(id=task.id))


async def test_a_card_says_what_there_is(peer: Peer, scribe: Scribe) -> None:
    async with opened_gateway(peer.place, "a2a") as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/a2a")).json() == {"agents": [{"name": "scribe", "url": f"{url}/a2a/scribe"}]}
        card = (await http.get("/a2a/scribe/.well-known/agent-card.json")).json()
        assert (await http.get("/.well-known/agent-card.json")).json() == card
        assert card["description"] == "Adds, counts, asks."
        assert {each["protocolBinding"] for each in card["supportedInterfaces"]} == {"JSONRPC", "HTTP+JSON"}
        add = next(each for each in card["skills"] if each["id"] == "scribe.add")
        assert (add["tags"], add["examples"]) == (["sums"], ["2 and 2"])
        (schemas,) = (each for each in card["capabilities"]["extensions"] if each["uri"] == SCHEMAS)
        assert schemas["params"]["scribe.add"]["input"]["required"] == ["a", "b"]
        assert (await http.get("/a2a/nobody/.well-known/agent-card.json")).status_code == 404


async def test_the_tasks_of_another_are_not_there(peer: Peer, scribe: Scribe) -> None:
    async with opened_gateway(peer.place, "a2a", rules=GuardRules(verifier=Known())) as url:
        async with _client(url, token=ANN) as client:
            task = await _task(client, _message("shout", new_text_part("hi")))
        async with _client(url, token=BOB) as client:
            with pytest.raises((A2AError, A2AClientError)):
                await client.get_task(pb.GetTaskRequest(id=task.id))
            assert not (await client.list_tasks(pb.ListTasksRequest())).tasks
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.post("/a2a/scribe", json={})).status_code == 401
            assert (await http.get("/a2a")).status_code == 401
            assert (await http.get("/.well-known/agent-card.json")).status_code == 404


async def test_what_makes_no_sense_is_told_and_is_no_fault(peer: Peer, scribe: Scribe) -> None:
    async with opened_gateway(peer.place, "a2a") as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        for body in ({}, [], {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": 3}}, "x"):
            for path in ("/a2a/scribe", "/a2a/scribe/v1/message:send", "/a2a/scribe/v1/tasks/x:cancel"):
                sent = await http.post(path, json=body, headers={"A2A-Version": "1.0"})
                assert sent.status_code < 500, (path, body, sent.text)
    async with opened_gateway(peer.place, "a2a") as url, _client(url) as client:
        for request in (_message("gone", new_text_part("x")), _message("", new_text_part("x"))):
            with pytest.raises((A2AError, A2AClientError), match="skill"):
                await _task(client, request)


@pytest.mark.parametrize("value", [3, 2.5, 2**53 + 1, "text", {"a": [1, None, True]}, None, []], ids=repr)
def test_numbers_come_through_as_they_were(value: Any) -> None:
    message = pb.Message(parts=parts_of({"value": value}))
    taken = content_of(message, SemanticTopic(name="a.b"))["value"]
    assert taken == (str(value) if value == 2**53 + 1 else value)
    assert type(taken) is type(value) or value == 2**53 + 1


@ON_NATS
async def test_a_message_that_is_sent_again_after_its_gateway_was_killed_is_the_same_task(
    peer: Peer, serve: Serve
) -> None:
    scribe = Scribe()
    await serve(scribe)
    port, request = free_port(), _message("measure", new_data_part({}))
    async with (
        gateway_command(peer.place.settings, port, "--a2a") as process,
        _client(f"http://127.0.0.1:{port}") as client,
    ):
        first = await _task(client, request)
        process.kill()
        await process.wait()
    async with gateway_command(peer.place.settings, port, "--a2a"), _client(f"http://127.0.0.1:{port}") as client:
        again = await _task(client, request)
        assert (again.id, again.status.state) == (first.id, pb.TaskState.TASK_STATE_INPUT_REQUIRED)
        done = await _task(client, _message("", new_text_part("L"), task_id=first.id))
    assert done.artifacts[0].parts[0].text == "size L"

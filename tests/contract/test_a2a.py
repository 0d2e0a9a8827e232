"""Agents as A2A agents: the official client asks them, over both bindings."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
from a2a.client.errors import A2AClientError
from a2a.helpers.proto_helpers import get_data_parts, new_data_part, new_text_part
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import A2AError
from a2a.utils.signing import InvalidSignaturesError, create_signature_verifier
from google.protobuf.json_format import ParseDict
from jwt import PyJWK
from nacl.signing import VerifyKey

from squadron.bridge.gateways.a2a.a2a_parts import content_of, parts_of
from squadron.bridge.gateways.a2a.contract_net import CONTRACT_NET
from squadron.bridge.gateways.http_guard import GuardRules
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.wire.a2a_names import ACTION, OUTCOME, QUESTION_SCHEMA, SCHEMAS
from squadron.runtime.wire.topics import SemanticTopic
from tests.contract.a2a_scribe import Scribe, a2a_client, a2a_message, all_said, only_task
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


@pytest.fixture
async def scribe(world: World, serve: Serve) -> Scribe:
    agent = Scribe()
    await serve(agent)
    return agent


@BINDINGS
async def test_a_message_is_a_task_and_its_result_an_artifact(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding) as client:
        task = await only_task(client, a2a_message("add", new_data_part({"a": 2, "b": 3}), context_id="talk-1"))
        assert task.status.state == pb.TaskState.TASK_STATE_COMPLETED, task
        assert task.context_id == "talk-1"
        assert get_data_parts(task.artifacts[0].parts) == [{"sum": 5}]
        assert task.metadata[OUTCOME] == "result"
        shouted = await only_task(client, a2a_message("shout", new_text_part("hi")))
        assert shouted.artifacts[0].parts[0].text == "HI"
        again = await client.get_task(pb.GetTaskRequest(id=task.id))
        assert again.artifacts == task.artifacts
        assert get_data_parts(again.history[0].parts) == [{"a": 2, "b": 3}]


@BINDINGS
async def test_a_message_that_is_sent_again_is_the_same_task(peer: Peer, scribe: Scribe, binding: str) -> None:
    request = a2a_message("add", new_data_part({"a": 1, "b": 1}))
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding) as client:
        first = await only_task(client, request)
        second = await only_task(client, request)
        assert first.id == second.id
    assert scribe.ran == 1


@BINDINGS
async def test_each_end_has_its_state(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding) as client:
        failed = await only_task(client, a2a_message("fail", new_data_part({})))
        assert failed.status.state == pb.TaskState.TASK_STATE_FAILED
        assert "out of ink" in failed.status.message.parts[0].text
        rejected = await only_task(client, a2a_message("add", new_data_part({"a": 1})))
        assert rejected.status.state == pb.TaskState.TASK_STATE_REJECTED
        assert "'b'" in rejected.status.message.parts[0].text


@BINDINGS
async def test_a_stream_tells_chunks_and_then_the_result(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding, streaming=True) as client:
        told = await all_said(client, a2a_message("count", new_data_part({"to": 3})))
    assert isinstance(told[0], pb.Task)
    # What was told before the stream was opened stands in the task that it begins with.
    before = [part.text for artifact in told[0].artifacts for part in artifact.parts]
    artifacts = [each for each in told if isinstance(each, pb.TaskArtifactUpdateEvent)]
    assert before + [each.artifact.parts[0].text for each in artifacts] == ["0", "1", "2", "done"]
    assert [each.append for each in artifacts] == [False, True, True, False][len(before) :]
    assert artifacts[-1].last_chunk
    assert told[-1].status.state == pb.TaskState.TASK_STATE_COMPLETED


@BINDINGS
async def test_a_question_waits_for_the_next_message_of_the_task(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding) as client:
        asks = await only_task(client, a2a_message("measure", new_data_part({})))
        assert asks.status.state == pb.TaskState.TASK_STATE_INPUT_REQUIRED
        assert asks.status.message.parts[0].text == "Which size?"
        assert "size" in asks.status.message.metadata[QUESTION_SCHEMA]["properties"]
        done = await only_task(client, a2a_message("", new_text_part("M"), task_id=asks.id))
        assert done.status.state == pb.TaskState.TASK_STATE_COMPLETED
        assert done.artifacts[0].parts[0].text == "size M"
        with pytest.raises((A2AError, A2AClientError)):
            await only_task(client, a2a_message("", new_text_part("L"), task_id=asks.id))


@BINDINGS
async def test_a_question_is_declined_or_left_to_nobody(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding) as client:
        for action, part in (("decline", new_text_part("too dear")), ("cancel", new_data_part({}))):
            asks = await only_task(client, a2a_message("measure", new_data_part({})))
            answer = a2a_message("", part, task_id=asks.id)
            answer.message.metadata.update({ACTION: action})
            done = await only_task(client, answer)
            assert done.artifacts[0].parts[0].text == f"{action}: {'too dear' if action == 'decline' else ''}"
        asks = await only_task(client, a2a_message("measure", new_data_part({})))
        answer = a2a_message("", new_text_part("x"), task_id=asks.id)
        answer.message.metadata.update({ACTION: "perhaps"})
        with pytest.raises((A2AError, A2AClientError), match="decline"):
            await only_task(client, answer)


async def test_a_text_answers_what_asks_for_a_number(peer: Peer, scribe: Scribe) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url) as client:
        asks = await only_task(client, a2a_message("number", new_data_part({})))
        with pytest.raises((A2AError, A2AClientError), match="number"):
            await only_task(client, a2a_message("", new_text_part("many"), task_id=asks.id))
        done = await only_task(client, a2a_message("", new_text_part("2.5"), task_id=asks.id))
        assert get_data_parts(done.artifacts[0].parts) == [{"n": 2.5}]


@BINDINGS
async def test_who_comes_later_sees_what_was_emitted_before(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding, streaming=True) as client:
        task = (await all_said(client, a2a_message("tell", new_data_part({}))))[0]
        got = await client.get_task(pb.GetTaskRequest(id=task.id))
        assert got.status.state == pb.TaskState.TASK_STATE_INPUT_REQUIRED
        assert [part.WhichOneof("content") for part in got.artifacts[0].parts] == ["text", "data"]
        told = await all_said(client, a2a_message("", new_text_part("true"), task_id=task.id))
        # Whether "three" came before the first look or after it: it is told once.
        news = [each.artifact for each in told[1:-2]]
        parts = [*told[0].artifacts[0].parts, *(part for each in news for part in each.parts)]
        assert parts[:2] == list(got.artifacts[0].parts)
        assert [part.text for part in parts[2:]] == ["three"]
        assert all(each.append for each in told[1:-2])
        (listed,) = (await client.list_tasks(pb.ListTasksRequest(include_artifacts=True))).tasks
        assert [each.artifact_id for each in listed.artifacts] == ["stream", "result"]
        assert len(listed.artifacts[0].parts) == 3


async def test_pages_of_the_list_stay_where_they_are_when_tasks_come(peer: Peer, scribe: Scribe) -> None:
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url) as client:
        ids = [(await only_task(client, a2a_message("shout", new_text_part("x")))).id for _ in range(5)]
        first = await client.list_tasks(pb.ListTasksRequest(page_size=2))
        assert first.total_size == 5
        late = (await only_task(client, a2a_message("shout", new_text_part("late")))).id
        second = await client.list_tasks(pb.ListTasksRequest(page_size=2, page_token=first.next_page_token))
        third = await client.list_tasks(pb.ListTasksRequest(page_size=2, page_token=second.next_page_token))
        told = [each.id for page in (first, second, third) for each in page.tasks]
        assert told == ids[::-1]
        assert late not in told
        assert third.next_page_token == ""
        with pytest.raises((A2AError, A2AClientError), match="page"):
            await client.list_tasks(pb.ListTasksRequest(page_token="2"))


@BINDINGS
async def test_a_task_is_taken_up_at_another_gateway_and_cancelled(
    world: World, peer: Peer, scribe: Scribe, binding: str
) -> None:
    request = a2a_message("wait", new_data_part({}))
    request.configuration.return_immediately = True
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding) as client:
        task = await only_task(client, request)
        assert task.status.state == pb.TaskState.TASK_STATE_WORKING
        # Nobody waits for it, so it costs this process nothing.
        assert list(peer.place.caller._awaited()) == []
    # The first gateway is gone, and nothing of it is needed.
    other = await world.join("other")
    async with opened_gateway(other.place, "a2a") as url, a2a_client(url, binding, streaming=True) as client:
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
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, streaming=True) as client:
        said = client.send_message(a2a_message("wait", new_data_part({})))
        await anext(said)
        await said.aclose()
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
        schemas, contract_net = card["capabilities"]["extensions"]
        assert (schemas["uri"], contract_net["uri"]) == (SCHEMAS, CONTRACT_NET)
        assert schemas["params"]["scribe.add"]["input"]["required"] == ["a", "b"]
        assert (await http.get("/a2a/nobody/.well-known/agent-card.json")).status_code == 404


async def test_a_card_is_signed_by_the_key_of_the_gateway(world: World, peer: Peer, scribe: Scribe) -> None:
    other = await world.join("other")
    async with (
        opened_gateway(peer.place, "a2a") as url,
        opened_gateway(other.place, "a2a") as second,
        httpx.AsyncClient() as http,
    ):
        (key,) = (await http.get(f"{url}/.well-known/jwks.json")).json()["keys"]
        assert (await http.get(f"{second}/.well-known/jwks.json")).json() == {"keys": [key]}
        told = (await http.get(f"{url}/a2a/scribe/.well-known/agent-card.json")).json()
        checked = create_signature_verifier(lambda kid, jku: PyJWK(key) if kid == key["kid"] else "", ["EdDSA"])
        card = ParseDict(told, pb.AgentCard())
        checked(card)
        # By the rules of the standards alone: JWS over the canonical form, which is that of sorted ASCII here.
        _, signature = told.pop("signatures")
        payload = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        signed = f"{signature['protected']}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}".encode()
        raw = base64.urlsafe_b64decode(signature["signature"] + "==")
        VerifyKey(base64.urlsafe_b64decode(key["x"] + "==")).verify(signed, raw)
        card.name = "somebody else"
        with pytest.raises(InvalidSignaturesError):
            checked(card)


async def test_the_tasks_of_another_are_not_there(peer: Peer, scribe: Scribe) -> None:
    async with opened_gateway(peer.place, "a2a", rules=GuardRules(verifier=Known())) as url:
        async with a2a_client(url, token=ANN) as client:
            task = await only_task(client, a2a_message("shout", new_text_part("hi")))
        async with a2a_client(url, token=BOB) as client:
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
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url) as client:
        for request in (a2a_message("gone", new_text_part("x")), a2a_message("", new_text_part("x"))):
            with pytest.raises((A2AError, A2AClientError), match="skill"):
                await only_task(client, request)


@pytest.mark.parametrize(
    ("schema", "value", "taken"),
    [
        ({"type": "number"}, 2.0, float),
        ({"type": "integer"}, 2, int),
        ({"type": ["integer", "number"]}, 2, int),
        ({"anyOf": [{"type": "null"}, {"type": "number"}]}, 2.0, float),
        ({"$ref": "#/$defs/Loop"}, 2.0, float),
        ({}, 2, int),
    ],
    ids=["number", "integer", "both", "any-of", "ref", "nothing"],
)
def test_a_number_is_whole_where_its_schema_has_it_so(schema: dict[str, Any], value: Any, taken: type) -> None:
    loop = {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/Loop"}]}
    fields = {"a": schema, "many": {"type": "array", "items": schema}, "deep": {"properties": {"b": schema}}}
    of = SemanticTopic(name="a.b", input_schema={"properties": fields, "$defs": {"Loop": loop}})
    content = content_of(pb.Message(parts=parts_of({"a": value, "many": [value], "deep": {"b": value}})), of)
    assert content == {"a": value, "many": [value], "deep": {"b": value}}
    assert {type(content["a"]), type(content["many"][0]), type(content["deep"]["b"])} == {taken}


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
    port, request = free_port(), a2a_message("measure", new_data_part({}))
    async with (
        gateway_command(peer.place.settings, port, "--a2a") as process,
        a2a_client(f"http://127.0.0.1:{port}") as client,
    ):
        first = await only_task(client, request)
        process.kill()
        await process.wait()
    async with (
        gateway_command(peer.place.settings, port, "--a2a"),
        a2a_client(f"http://127.0.0.1:{port}") as client,
    ):
        again = await only_task(client, request)
        assert (again.id, again.status.state) == (first.id, pb.TaskState.TASK_STATE_INPUT_REQUIRED)
        done = await only_task(client, a2a_message("", new_text_part("L"), task_id=first.id))
    assert done.artifacts[0].parts[0].text == "size L"

"""A2A clients that want to be told: receivers over a kill of the gateway, and URLs that lead to what is ours."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from a2a.client.errors import A2AClientError
from a2a.helpers.proto_helpers import new_data_part, new_text_part
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import A2AError

from squadron.bridge.gateways.a2a import push_sender
from squadron.bridge.gateways.a2a.push_targets import (
    PushLostError,
    PushRefusedError,
    PushTargets,
    is_public,
)
from tests.contract.a2a_scribe import Scribe, a2a_client, a2a_message, only_task
from tests.contract.conftest import ON_NATS, Peer, Serve, World, until
from tests.contract.gateway_process import gateway_command, opened_gateway
from tests.contract.nats_cluster import free_port
from tests.contract.test_rubbish import RUBBISH
from tests.contract.webhook import Webhook, webhook

BINDINGS = pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
LOCAL = ("127.0.0.1",)


@pytest.fixture
async def scribe(world: World, serve: Serve) -> Scribe:
    agent = Scribe()
    await serve(agent)
    return agent


def _config(hook: Webhook, **rest: Any) -> pb.TaskPushNotificationConfig:
    return pb.TaskPushNotificationConfig(url=hook.url, **rest)


async def _told(hook: Webhook, *states: str) -> None:
    async def is_told() -> bool:
        return hook.states == [f"TASK_STATE_{each}" for each in states]

    await until(is_told)


@BINDINGS
async def test_who_wants_to_be_told_hears_of_questions_and_the_end(
    peer: Peer, scribe: Scribe, binding: str
) -> None:
    async with (
        webhook() as hook,
        opened_gateway(peer.place, "a2a", push_to=LOCAL) as url,
        a2a_client(url, binding) as client,
    ):
        request = a2a_message("measure", new_data_part({}))
        said = pb.AuthenticationInfo(scheme="Bearer", credentials="of-the-receiver")
        request.configuration.task_push_notification_config.CopyFrom(
            _config(hook, id="mine", token="tok", authentication=said)
        )
        asks = await only_task(client, request)
        await _told(hook, "INPUT_REQUIRED")
        await only_task(client, a2a_message("", new_text_part("M"), task_id=asks.id))
        await _told(hook, "INPUT_REQUIRED", "COMPLETED")
        headers, artifact = hook.came[1]
        assert artifact["artifactUpdate"]["artifact"]["parts"][0]["text"] == "size M"
        assert headers["authorization"] == "Bearer of-the-receiver"
        assert headers["x-a2a-notification-token"] == "tok"
        assert headers["content-type"] == "application/a2a+json"


@BINDINGS
async def test_receivers_are_added_listed_and_removed(peer: Peer, scribe: Scribe, binding: str) -> None:
    async with (
        webhook() as hook,
        opened_gateway(peer.place, "a2a", push_to=LOCAL) as url,
        a2a_client(url, binding) as client,
    ):
        request = a2a_message("wait", new_data_part({}))
        request.configuration.return_immediately = True
        task = await only_task(client, request)
        said = pb.AuthenticationInfo(scheme="Bearer", credentials="of-the-receiver")
        for id in ("one", "two"):
            made = await client.create_task_push_notification_config(
                _config(hook, task_id=task.id, id=id, token="tok", authentication=said)
            )
            assert (made.id, made.task_id, made.url) == (id, task.id, hook.url)
        wanted = pb.GetTaskPushNotificationConfigRequest(task_id=task.id, id="one")
        got = await client.get_task_push_notification_config(wanted)
        # What the receiver knows us by is told to nobody.
        assert (got.authentication.scheme, got.authentication.credentials, got.token) == ("Bearer", "", "")
        listing = pb.ListTaskPushNotificationConfigsRequest(task_id=task.id)
        assert {each.id for each in (await client.list_task_push_notification_configs(listing)).configs} == {
            "one",
            "two",
        }
        gone = pb.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="one")
        await client.delete_task_push_notification_config(gone)
        await client.delete_task_push_notification_config(gone)
        with pytest.raises((A2AError, A2AClientError)):
            await client.get_task_push_notification_config(wanted)
        await client.cancel_task(pb.CancelTaskRequest(id=task.id))
        await _told(hook, "CANCELED")


async def test_who_comes_when_all_is_over_is_told_how_it_ended(peer: Peer, scribe: Scribe) -> None:
    async with (
        webhook() as hook,
        opened_gateway(peer.place, "a2a", push_to=LOCAL) as url,
        a2a_client(url) as client,
    ):
        task = await only_task(client, a2a_message("shout", new_text_part("hi")))
        await client.create_task_push_notification_config(_config(hook, task_id=task.id, id="late"))
        await _told(hook, "COMPLETED")


async def test_news_that_do_not_arrive_are_sent_again(
    peer: Peer, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_sender, "PAUSES_S", (0.01, 0.01))
    async with (
        webhook() as hook,
        opened_gateway(peer.place, "a2a", push_to=LOCAL) as url,
        a2a_client(url) as client,
    ):
        hook.answers = [503, 503]
        request = a2a_message("fail", new_data_part({}))
        request.configuration.task_push_notification_config.CopyFrom(_config(hook))
        await only_task(client, request)
        await _told(hook, "FAILED")


async def test_of_two_gateways_one_tells(world: World, peer: Peer, scribe: Scribe) -> None:
    other = await world.join("other")
    async with (
        webhook() as hook,
        opened_gateway(peer.place, "a2a", push_to=LOCAL) as url,
        opened_gateway(other.place, "a2a", push_to=LOCAL) as second,
        a2a_client(url) as client,
        a2a_client(second) as late,
    ):
        for each in (client, late):
            request = a2a_message("shout", new_text_part("hi"))
            request.configuration.task_push_notification_config.CopyFrom(_config(hook))
            await only_task(each, request)
        await _told(hook, "COMPLETED", "COMPLETED")


async def test_rubbish_where_it_stands_who_sends_is_passed_over(
    peer: Peer, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_sender, "RENEW_S", 0.05)
    monkeypatch.setattr(push_sender, "LAPSE_S", 0.2)
    place = peer.subjects.lite("a2a-push-sender", "holder")
    for rubbish in RUBBISH:
        await peer.lite.append(place, rubbish)
        entry = await peer.lite.last(place)
        assert not push_sender._is_free(entry)
    async with (
        webhook() as hook,
        opened_gateway(peer.place, "a2a", push_to=LOCAL) as url,
        a2a_client(url) as client,
    ):
        request = a2a_message("shout", new_text_part("hi"))
        request.configuration.task_push_notification_config.CopyFrom(_config(hook))
        await only_task(client, request)
        await _told(hook, "COMPLETED")


@ON_NATS
async def test_who_wants_to_be_told_is_told_though_the_gateway_is_killed(peer: Peer, serve: Serve) -> None:
    scribe = Scribe()
    await serve(scribe)
    ports = free_port(), free_port()
    options = ("--a2a", "--push-to", "127.0.0.1")
    async with webhook() as hook:
        async with (
            gateway_command(peer.place.settings, ports[0], *options) as process,
            a2a_client(f"http://127.0.0.1:{ports[0]}") as client,
        ):
            request = a2a_message("measure", new_data_part({}))
            request.configuration.task_push_notification_config.CopyFrom(_config(hook))
            asks = await only_task(client, request)
            await _told(hook, "INPUT_REQUIRED")
            process.kill()
            await process.wait()
        async with (
            gateway_command(peer.place.settings, ports[1], *options),
            a2a_client(f"http://127.0.0.1:{ports[1]}") as client,
        ):
            await only_task(client, a2a_message("", new_text_part("L"), task_id=asks.id))

            async def is_told() -> bool:
                return hook.states[-1] == "TASK_STATE_COMPLETED"

            await until(is_told, within_s=40)
            artifacts = [body["artifactUpdate"]["artifact"] for _, body in hook.came if "artifactUpdate" in body]
            assert artifacts[-1]["parts"][0]["text"] == "size L"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("2606:4700::1111", True),
    ],
)
def test_an_address_is_public_if_what_is_behind_it_is(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "https://127.0.0.1/x",
        "https://2130706433/x",
        "https://[::1]/x",
        "https://localhost/x",
        "https://user:secret@example.com/x",
        "file:///etc/passwd",
        "https:///x",
        "gopher://example.com",
        "not a url",
        "https://example.com/" + "x" * 3000,
        "",
    ],
    ids=lambda url: url[:30],
)
async def test_a_url_that_leads_to_us_is_refused(url: str) -> None:
    targets = PushTargets()
    try:
        with pytest.raises(PushRefusedError):
            await targets.check(url)
        with pytest.raises(PushRefusedError):
            await targets.post(url, b"{}", {})
    finally:
        await targets.aclose()


async def test_a_name_that_leads_elsewhere_a_moment_later_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async with webhook() as hook:
        port = hook.url.rpartition(":")[2].partition("/")[0]
        looked_up, answers = list[str](), ["93.184.216.34", "127.0.0.1"]

        def rebound(host: Any, port: Any, *rest: Any, **named: Any) -> list[Any]:
            looked_up.append(str(host))
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), int(port)))]

        monkeypatch.setattr(socket, "getaddrinfo", rebound)
        targets = PushTargets()
        try:
            await targets.check(f"https://rebound.example:{port}/news")
            with pytest.raises(PushRefusedError, match="not public"):
                await targets.post(f"https://rebound.example:{port}/news", b"{}", {})
        finally:
            await targets.aclose()
        # Once for each look: the connection goes to the address that was looked at, and to no other name.
        assert looked_up == ["rebound.example", "rebound.example"]
        assert hook.came == []


async def test_a_request_goes_to_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled = list[str]()

    async def dial(self: Any, host: str, *rest: Any, **named: Any) -> Any:
        dialled.append(host)
        raise OSError("far away")

    monkeypatch.setattr("anyio.connect_tcp", lambda remote_host, **named: dial(None, remote_host))
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, *rest, **named: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))],
    )
    targets = PushTargets()
    try:
        with pytest.raises(PushLostError):
            await targets.post("https://somewhere.example/news", b"{}", {})
    finally:
        await targets.aclose()
    assert dialled == ["93.184.216.34"]


async def test_nothing_is_followed_that_an_answer_points_to() -> None:
    async with webhook() as hook, webhook() as other:
        hook.answers, hook.location = [302, 307], other.url
        targets = PushTargets(LOCAL)
        try:
            for status in (302, 307):
                with pytest.raises(PushRefusedError, match=str(status)):
                    await targets.post(hook.url, b"{}", {})
        finally:
            await targets.aclose()
        assert other.came == []


@BINDINGS
async def test_a_receiver_that_is_not_public_is_refused_before_a_task_is_there(
    peer: Peer, scribe: Scribe, binding: str
) -> None:
    async with (
        webhook() as hook,
        opened_gateway(peer.place, "a2a") as url,
        a2a_client(url, binding) as client,
    ):
        request = a2a_message("add", new_data_part({"a": 1, "b": 1}))
        request.configuration.task_push_notification_config.CopyFrom(_config(hook))
        with pytest.raises((A2AError, A2AClientError)):
            await only_task(client, request)
        assert scribe.ran == 0

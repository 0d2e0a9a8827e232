"""Ten thousand requests that nobody should send: each is answered, none by a 500, and nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
from collections import Counter

import psutil
import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.gateways.http_guard import GuardRules
from squadron.bridge.gateways.visitors import Visitor
from tests.contract.conftest import ON_NATS, Serve, World
from tests.contract.gateway_process import opened_gateway

pytestmark = [ON_NATS, pytest.mark.slow, pytest.mark.timeout(600)]

REQUESTS, AT_ONCE = 10_000, 20
TOKEN = "the-token-of-the-one-visitor"
#: What may be left when all is done, in MB: caches of libraries fill up, what grows by request would be far more.
MOST_GROWTH_MB = 60


class Echo(Agent):
    """Echoes."""

    name = "echo"

    @topic("echo.say", description="Echo.")
    async def say(self, text: str) -> str:
        return text


class One:
    """One visitor."""

    async def visitor(self, token: str) -> Visitor | None:
        return Visitor("client:ann") if token == TOKEN else None


METHODS = [
    *("tools/call", "tools/list", "resources/read", "resources/list", "prompts/get", "tasks/get", "tasks/update"),
    *("tasks/cancel", "tasks/list", "initialize", "ping", "server/discover", "completion/complete", "x" * 300, ""),
]
VALUES = [
    None,
    True,
    -1,
    2**70,
    1e308,
    "",
    "a" * 5000,
    "\ud800",
    "\x00",
    [],
    {},
    [[[]]],
    {"a": {"b": {}}},
    "../../etc",
]


def _value(dice: random.Random, depth: int = 0) -> object:
    if depth < 3 and dice.random() < 0.3:
        return {str(_value(dice, 3))[:50]: _value(dice, depth + 1) for _ in range(dice.randrange(4))}
    return dice.choice(VALUES)


def _body(dice: random.Random) -> bytes:
    meta = {
        "io.modelcontextprotocol/protocolVersion": dice.choice(["2026-07-28", "2025-11-25", "1", _value(dice)]),
        "io.modelcontextprotocol/clientCapabilities": dice.choice(
            [{}, {"extensions": {"io.modelcontextprotocol/tasks": {}}}, _value(dice)]
        ),
        "progressToken": _value(dice),
    }
    names = ["echo__say", "nothing", _value(dice)]
    params = {
        "name": dice.choice(names),
        "arguments": dice.choice([{"text": "hi"}, _value(dice)]),
        "uri": dice.choice(["squadron://lite/people/x", "x://y", _value(dice)]),
        "taskId": dice.choice(["v1-2", _value(dice)]),
        "requestState": _value(dice),
        "inputResponses": _value(dice),
        "_meta": dice.choice([meta, meta, _value(dice)]),
    }
    chosen = {key: value for key, value in params.items() if dice.random() < 0.7}
    body = {"jsonrpc": "2.0", "id": dice.choice([1, "a", _value(dice)]), "method": dice.choice(METHODS)}
    whole: object = dice.choice([body | {"params": chosen}, body | {"params": _value(dice)}, [body], _value(dice)])
    data = json.dumps(whole).encode()
    if dice.random() < 0.2:
        at = dice.randrange(len(data))
        data = data[:at] + dice.randbytes(3) + data[at + dice.randrange(5) :]
    return data


def _mcp(dice: random.Random) -> tuple[str, dict[str, str], bytes]:
    """A path, headers and a body."""
    path = dice.choice(
        ["/mcp"] * 30 + ["/", "/livez", "/readyz", "/.well-known/x", "/mcp/../../x", "/%00", "/mcp?x=%ff"]
    )
    headers = {
        "Accept": dice.choice(["application/json, text/event-stream"] * 20 + ["*/*", "text/html", ""]),
        "Mcp-Protocol-Version": dice.choice(["2026-07-28"] * 12 + ["2025-11-25", "", "\xff", "9" * 100]),
        "Mcp-Method": dice.choice([*METHODS, *["tools/call"] * 9]),
        "Mcp-Name": dice.choice(["echo__say", "", "v1-2"]),
        "Mcp-Session-Id": dice.choice([""] * 6 + ["x", "0" * 32, "a" * 2000]),
    }
    return path, headers, _body(dice)


A2A_METHODS = [
    *("SendMessage", "SendStreamingMessage", "GetTask", "ListTasks", "CancelTask", "SubscribeToTask"),
    *("CreateTaskPushNotificationConfig", "GetTaskPushNotificationConfig", "ListTaskPushNotificationConfigs"),
    *("DeleteTaskPushNotificationConfig", "GetExtendedAgentCard", "x" * 300, ""),
]
A2A_PATHS = [
    *("/message:send", "/message:stream", "/tasks", "/tasks/v1-2", "/tasks/x:cancel", "/tasks/x:subscribe"),
    *("/tasks/x/pushNotificationConfigs", "/extendedAgentCard", "/tasks/%00", "/tasks?pageSize=a&pageToken=1.x"),
]


def _a2a(dice: random.Random) -> tuple[str, dict[str, str], bytes]:
    """A path, headers and a body."""
    parts = [{"text": "hi"}, {"data": {"text": "x"}}, {"raw": "AA=="}, {"url": "file:///x"}, _value(dice)]
    message = {
        "messageId": dice.choice(["m", _value(dice)]),
        "role": dice.choice(["ROLE_USER", "user", _value(dice)]),
        "parts": dice.choice([dice.sample(parts, dice.randrange(4)), _value(dice)]),
        "contextId": dice.choice(["", "c", _value(dice)]),
        "taskId": dice.choice(["", "", "v1-2", _value(dice)]),
        "extensions": dice.choice([[], ["urn:squadron:a2a:contract-net:1"], _value(dice)]),
        "metadata": dice.choice([{}, {"squadron/topic": "echo.say"}, {"squadron/proposal": "x"}, _value(dice)]),
    }
    push = {"url": dice.choice(["https://127.0.0.1/x", "gopher://x", "https://[", _value(dice)]), "id": "p"}
    params = {
        "message": dice.choice([message, message, message, _value(dice)]),
        "configuration": dice.choice([{}, {"taskPushNotificationConfig": push}, _value(dice)]),
        "id": dice.choice(["v1-2", _value(dice)]),
        "taskId": _value(dice),
        "pageSize": _value(dice),
        "pageToken": _value(dice),
        **dice.choice([{}, push]),
    }
    chosen = {key: value for key, value in params.items() if dice.random() < 0.8}
    if dice.random() < 0.5:
        path, whole = f"/a2a/{dice.choice(['echo'] * 9 + ['nobody'])}/v1{dice.choice(A2A_PATHS)}", chosen
    else:
        path, whole = (
            dice.choice(["/a2a/echo"] * 9 + ["/a2a", "/a2a/%ff", "/a2a/echo/../x"]),
            {
                "jsonrpc": dice.choice(["2.0"] * 9 + [_value(dice)]),
                "id": dice.choice([1, "a", _value(dice)]),
                "method": dice.choice(A2A_METHODS),
                "params": dice.choice([chosen, chosen, chosen, _value(dice)]),
            },
        )
    data = json.dumps(dice.choice([whole] * 9 + [_value(dice)])).encode()
    if dice.random() < 0.1:
        at = dice.randrange(len(data))
        data = data[:at] + dice.randbytes(3) + data[at + dice.randrange(5) :]
    headers = {
        "A2A-Version": dice.choice(["1.0"] * 20 + ["0.3", "", "\xff", "9" * 100]),
        "A2A-Extensions": dice.choice([""] * 9 + ["urn:x, urn:y", "," * 1000]),
    }
    return path, headers, data


RUBBISH = {"mcp": _mcp, "a2a": _a2a}


def _request(dice: random.Random, host: str, door: str) -> bytes:
    path, own, body = RUBBISH[door](dice)
    verb = dice.choice(["POST"] * 30 + ["GET", "DELETE", "PUT", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW"])
    if verb == "GET" and (path.startswith("/mcp") or "subscribe" in path):
        verb = "PUT"  # a stream that is as long as its client wants
    headers = {
        "Host": dice.choice([host] * 40 + ["evil.example", ""]),
        "Authorization": dice.choice([f"Bearer {TOKEN}"] * 40 + ["Bearer x", "Basic x", ""]),
        "Content-Type": dice.choice(
            ["application/json"] * 40 + ["text/plain", "application/json; charset=utf-7", ""]
        ),
        "Origin": dice.choice([""] * 40 + ["null", "https://evil.example", "http://["]),
        "X-Much": dice.choice([""] * 30 + ["x" * 20_000]),
    }
    headers |= own
    length = dice.choice([len(body)] * 20 + [0, 10**12])
    lines = [f"{verb} {path} HTTP/1.1", f"Content-Length: {length}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value or name == "Host"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def _send(data: bytes, port: int) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(20):
            answer = await reader.read(1 << 20)
    except ConnectionError:
        return 0, b""
    finally:
        writer.close()
    found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return (int(found[1]) if found else 0), answer


@pytest.mark.parametrize("name", ["mcp", "a2a"])
async def test_ten_thousand_requests_that_make_no_sense_leave_nothing(
    world: World, serve: Serve, name: str
) -> None:
    await serve(Echo())
    door = await world.join("gateway")
    await door.registry.refresh(float("inf"))
    rules = GuardRules(verifier=One(), per_second=1e6, at_once=1e6)
    dice, statuses, me = random.Random(7), Counter[int](), psutil.Process(os.getpid())
    async with opened_gateway(door.place, name, rules=rules, within_s=5.0) as url:
        host, port = url.removeprefix("http://"), int(url.rpartition(":")[2])

        async def some(count: int) -> None:
            for _ in range(count // AT_ONCE):
                sent = [_request(dice, host, name) for _ in range(AT_ONCE)]
                for (status, answer), asked in zip(
                    await asyncio.gather(*(_send(each, port) for each in sent)), sent, strict=True
                ):
                    statuses[status] += 1
                    assert status not in (500, 502), asked
                    assert b"Traceback" not in answer, asked
                    assert b"/site-packages/" not in answer, asked

        await some(REQUESTS // 5)
        gc.collect()
        before, tasks = me.memory_info().rss, len(asyncio.all_tasks())
        await some(REQUESTS - REQUESTS // 5)
        gc.collect()
        assert (me.memory_info().rss - before) / 1e6 < MOST_GROWTH_MB
        # Sessions that were begun have a few each until they are idle for long; nothing else may be left.
        assert len(asyncio.all_tasks()) - tasks < REQUESTS / 10
    assert {200, 400, 401, 403, 415, 421, 431} <= statuses.keys(), statuses

"""What gets past the guard of a gateway, and what it answers to the rest."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squadron.bridge.gateways.door_secret import DoorSecret
from squadron.bridge.gateways.fronting import GatewayOptions, gateway_in
from squadron.bridge.gateways.http_guard import MOST_HEADER_BYTES, MOST_UNDER_WAY, GuardRules, HttpGuard, Rates
from squadron.bridge.gateways.http_server import HttpServer, check_bind, most_connections
from squadron.bridge.gateways.open_questions import OpenQuestions
from squadron.bridge.gateways.running_gateways import announced, running_gateways, stop_gateways
from squadron.bridge.gateways.visitors import Visitors, check_delegate
from squadron.config import Settings
from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.secret import Secret
from squadron.runtime.trust.principals import Principal
from squadron.testing import MemorySquad
from tests.trusted import Realm

TOKEN = secrets.token_urlsafe()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says who is there and what they sent."""
    message = await receive() if scope["method"] == "POST" else {"body": b""}
    body = json.dumps({"who": scope["state"]["visitor"].principal, "body": message["body"].decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def ask(
    guard: HttpGuard,
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
    path: str = "/mcp",
    parts: tuple[bytes, ...] = (b"{}",),
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of one answer."""
    given = {"host": "127.0.0.1:8811", "content-type": "application/json"} | (headers or {})
    raw = [(name.encode(), value.encode()) for name, value in given.items() if value]
    waiting = [
        {"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("127.0.0.1", 1)}
    await guard(scope, receive, send)
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, json.loads(sent[1]["body"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:99", "[::1]:8811", "agents.example.org"])
async def test_a_request_for_one_of_our_names_gets_in(host: str) -> None:
    status, _, body = await ask(HttpGuard(app, GuardRules(hosts=("agents.example.org",))), {"host": host})
    assert (status, body) == (200, {"who": "client:local", "body": "{}"})


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "evil.example:8811", "localhost."])
async def test_a_name_that_was_made_resolve_here_does_not(host: str) -> None:
    assert (await ask(HttpGuard(app, GuardRules()), {"host": host}))[0] == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("file://", 403),
        ("http://[", 403),
        ("http://localhost.evil.example", 403),
    ],
)
async def test_pages_of_other_origins_may_not_ask(origin: str, status: int) -> None:
    assert (await ask(HttpGuard(app, GuardRules()), {"origin": origin}))[0] == status


@pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data", "application/x-www-form-urlencoded"])
async def test_nothing_that_a_form_could_send_is_taken(kind: str) -> None:
    assert (await ask(HttpGuard(app, GuardRules()), {"content-type": kind}))[0] == 415


async def test_a_body_has_a_limit_whether_it_is_announced_or_comes_in_parts() -> None:
    guard = HttpGuard(app, GuardRules(max_bytes=10))
    assert (await ask(guard, {"content-length": "11"}))[0] == 413
    assert (await ask(guard, parts=(b"123456", b"78901")))[0] == 413
    assert (await ask(guard, {"content-length": "ten"}))[0] == 400
    assert (await ask(guard, parts=(b"123456", b"7890")))[0] == 200


async def test_headers_have_a_limit() -> None:
    assert (await ask(HttpGuard(app, GuardRules()), {"x-much": "x" * MOST_HEADER_BYTES}))[0] == 431


async def test_a_visitor_is_who_holds_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANN_TOKEN", TOKEN)
    where = "https://agents.example.org/.well-known/oauth-protected-resource/mcp"
    guard = HttpGuard(app, GuardRules(verifier=Visitors.of(["ann=env:ANN_TOKEN"]), metadata_url=where))
    status, told, _ = await ask(guard)
    assert status == 401
    assert told["www-authenticate"] == f'Bearer resource_metadata="{where}"'
    assert (await ask(guard, {"authorization": "Bearer wrong"}))[0] == 401
    assert (await ask(guard, {"authorization": f"Basic {TOKEN}"}))[0] == 401
    assert (await ask(guard, {"authorization": f"Bearer {TOKEN}"}))[2]["who"] == "client:ann"
    monkeypatch.setenv("ANN_TOKEN", "another one, from this moment on")
    assert (await ask(guard, {"authorization": f"Bearer {TOKEN}"}))[0] == 401
    assert (await ask(guard, method="GET", path="/readyz"))[0] == 200


async def test_who_guesses_tokens_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANN_TOKEN", TOKEN)
    guard = HttpGuard(app, GuardRules(verifier=Visitors.of(["ann=env:ANN_TOKEN"])))
    answers = [(await ask(guard, {"authorization": f"Bearer {n}"}))[0] for n in range(30)]
    assert answers[0] == 401
    assert answers[-1] == 429


async def test_a_principal_has_a_rate() -> None:
    guard = HttpGuard(app, GuardRules(per_second=0.01, at_once=2))
    answers = [await ask(guard) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert int(answers[2][1]["retry-after"]) >= 1


async def test_whoever_opens_a_gateway_says_which_rate_that_is(tmp_path: Path) -> None:
    async with MemorySquad(turned=False, home=tmp_path) as squad:
        front = GatewayOptions(doors=("mcp",), port=1, rate=3.0).front(squad._place, OpenQuestions(squad._place))
    guard = HttpGuard(app, front.rules)
    answers = [(await ask(guard))[0] for _ in range(8)]
    assert answers[:6] == [200] * 6
    assert 429 in answers[6:]


def test_a_rate_comes_back_with_time() -> None:
    now = [0.0]
    rates = Rates(2.0, 1.0, lambda: now[0])
    assert rates.wait_s("a") == 0
    assert rates.wait_s("a") == 0.5
    assert rates.wait_s("b") == 0
    now[0] = 0.5
    assert rates.wait_s("a") == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ann", "no NAME=PLACE"),
        ("ann=letmein", "as it is"),
        ("a b=env:ANN_TOKEN", "no NAME=PLACE"),
        ("ann=env:SHORT", "fewer than"),
        ("ann=env:MISSING", "no such variable"),
    ],
)
def test_a_token_that_can_t_be_is_refused_and_not_shown(
    given: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANN_TOKEN", TOKEN)
    monkeypatch.setenv("SHORT", "letmein")
    with pytest.raises(ConfigError, match=says) as refused:
        Visitors.of([given])
    assert "letmein" not in str(refused.value)


def test_two_visitors_with_one_token_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANN_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match="same token"):
        Visitors.of(["ann=env:ANN_TOKEN", "bob=env:ANN_TOKEN"])


def test_who_may_speak_for_nobody_can_t_tell_visitors_apart() -> None:
    check_delegate(None, tokens=True)
    check_delegate(Principal("ann", "client", "U"), tokens=False)
    check_delegate(Principal("web", "gateway", "U"), tokens=True)
    with pytest.raises(UntrustedError, match="on behalf of nobody"):
        check_delegate(Principal("ann", "client", "U"), tokens=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "agents.example.org"])
def test_nobody_listens_where_strangers_come_by_without_tokens_and_a_name(host: str) -> None:
    with pytest.raises(ConfigError, match="can be reached by others"):
        check_bind(host, authenticated=False, public_url="https://agents.example.org")
    with pytest.raises(ConfigError, match="needs the URL"):
        check_bind(host, authenticated=True, public_url="")
    check_bind(host, authenticated=True, public_url="https://agents.example.org")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_neither(host: str) -> None:
    check_bind(host, authenticated=False, public_url="")


async def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="can't listen"):
            async with HttpServer(app, "127.0.0.1", taken.getsockname()[1], asyncio.Event()):
                pass


def test_only_credentials_of_a_gateway_are_those_of_a_gateway(tmp_path: Path) -> None:
    realm = Realm()
    (trust := tmp_path / "trust.json").write_bytes(realm.document())
    settings = replace(Settings.load({}), trust=trust)
    assert gateway_in(realm.write(tmp_path, "doors", "gateway"), settings) == "doors"
    with pytest.raises(ConfigError, match="ann, whose role is client") as refused:
        gateway_in(realm.write(tmp_path, "ann", "client"), settings)
    assert "auth add gateway" in refused.value.hint
    with pytest.raises(ConfigError, match="doors"):
        gateway_in(Realm().write(tmp_path, "doors", "gateway"), settings)
    with pytest.raises(ConfigError, match="holds no credentials"):
        gateway_in(trust, settings)


def test_the_secret_of_a_home_is_made_once_and_is_for_its_user_only(tmp_path: Path) -> None:
    one, other = (DoorSecret.of(tmp_path, Secret()) for _ in range(2))
    assert one.key("x") == other.key("x") != one.key("y")
    assert (tmp_path / "gateways" / "secret").stat().st_mode & 0o077 == 0


def test_a_secret_that_was_given_must_be_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOOR", "short")
    with pytest.raises(ConfigError, match="fewer than 32"):
        DoorSecret.of(tmp_path, Secret("env:DOOR"))


def test_a_gateway_is_known_as_long_as_it_runs(tmp_path: Path) -> None:
    with announced(tmp_path, "dev", ["mcp"], "http://127.0.0.1:8811"):
        (found,) = running_gateways(tmp_path, "dev")
        assert (found.pid, found.doors) == (os.getpid(), ("mcp",))
        assert running_gateways(tmp_path, "de") == []
    assert running_gateways(tmp_path, "dev") == []


def test_a_stop_ends_the_process_and_what_a_kill_left_is_taken_away(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from squadron.bridge.gateways.running_gateways import announced\n"
        "with announced(pathlib.Path(sys.argv[1]), 'dev', ['mcp'], ''):\n"
        "    print('there', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        assert [each.kind for each in stop_gateways(tmp_path, "dev")] == ["gateway"]
    assert process.returncode != 0
    assert list((tmp_path / "gateways").glob("*.json")) == []


@pytest.mark.parametrize(
    ("soft", "hard", "then", "most"),
    [
        (1024, resource.RLIM_INFINITY, MOST_UNDER_WAY + 200, MOST_UNDER_WAY),
        (1024, 4096, 4096, 3896),
        (20_000, 20_000, 20_000, 19_800),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY, MOST_UNDER_WAY),
        (100, 100, 100, 1),
    ],
)
def test_as_many_files_are_opened_as_there_may_be_visitors_or_else_fewer_are_let_in(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, then: int, most: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    assert most_connections() == most
    assert limits[-1] == (then, hard)

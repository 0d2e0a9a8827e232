"""The console's door and what is behind it, over HTTP and a real nats-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from squadron import Settings
from squadron.console.board import MOST_WAITING, Board, frame
from squadron.console.serving import Served, serving
from squadron.console.web_app import PlainResponse
from squadron.runtime.errors import ConfigError
from squadron.views.console_place import ConsolePlace
from tests.contract.console_world import Clerk, ConsoleWorld, console_world

WRITES = {"x-squadron-console": "1", "content-type": "application/json"}


@pytest.fixture
async def office(settings: Settings) -> AsyncIterator[ConsoleWorld]:
    async with console_world(settings, Clerk) as made:
        yield made


@pytest.fixture
async def console(office: ConsoleWorld) -> AsyncIterator[Served]:
    async with serving(office.squad, host="127.0.0.1", port=0, read_only=False, by="ana") as served:
        yield served


def client_of(served: Served, **headers: str) -> httpx.AsyncClient:
    token = served.login.rpartition("=")[2]
    return httpx.AsyncClient(
        base_url=served.url, headers={"authorization": f"Bearer {token}"} | headers, timeout=30
    )


async def test_nobody_comes_in_without_the_token_and_everybody_may_ask_for_health(console: Served) -> None:
    async with httpx.AsyncClient(base_url=console.url) as stranger:
        assert (await stranger.get("/")).headers["location"] == "/login"
        for path in ("/api/state", "/api/feed", "/metrics", "/api/whoami"):
            assert (await stranger.get(path)).status_code == 401
        wrong = {"authorization": "Bearer wrong"}
        assert (await stranger.get("/api/state", headers=wrong)).status_code == 401
        assert (await stranger.get("/healthz")).json() == {"ok": True}
        assert (await stranger.get("/readyz")).json() == {"ok": True, "troubles": {}}
        answer = await stranger.post("/login", content="wrong", headers=WRITES)
        assert answer.status_code == 401


async def test_the_link_gives_a_cookie_that_no_script_and_no_other_site_gets(console: Served) -> None:
    async with httpx.AsyncClient(base_url=console.url) as browser:
        answer = await browser.get(console.login)
        assert answer.status_code == 303
        said = answer.headers["set-cookie"].lower()
        assert "httponly" in said
        assert "samesite=strict" in said
        # The cookie is a session of its own, not the token.
        assert console.login.rpartition("=")[2].lower() not in said
        assert (await browser.get("/api/whoami")).json() == {"by": "ana", "read_only": False}


async def test_writes_of_other_pages_and_other_names_are_refused(console: Served, office: ConsoleWorld) -> None:
    path, to = "/api/agents/clerk/scale", {"to": "2"}
    async with client_of(console) as program:
        refused = [
            await program.post(path, json=to),
            await program.post(path, json=to, headers=WRITES | {"origin": "https://evil.example"}),
            await program.post(path, json=to, headers=WRITES | {"sec-fetch-site": "cross-site"}),
            await program.post(path, json=to, headers=WRITES | {"sec-fetch-site": "same-site"}),
        ]
        assert [each.status_code for each in refused] == [403] * 4
        assert (await program.get("/api/state", headers={"host": "evil.example"})).status_code == 421
        form = WRITES | {"content-type": "text/plain"}
        assert (await program.post(path, content='{"to": "2"}', headers=form)).status_code == 400
        assert len(office.ids("clerk")) == 1
        assert (await program.post(path, json=to, headers=WRITES)).json() == {"agent": "clerk", "scale": "2"}
        assert len(office.ids("clerk")) == 2


async def test_each_answer_forbids_what_is_inline_and_to_be_framed(console: Served) -> None:
    async with client_of(console) as program:
        for path in ("/", "/login", "/static/app.js", "/api/state", "/nowhere"):
            headers = (await program.get(path)).headers
            assert "script-src 'self'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"


async def test_a_read_only_console_shows_all_and_changes_nothing(office: ConsoleWorld) -> None:
    async with (
        serving(office.squad, host="127.0.0.1", port=0, read_only=True, by="ana") as served,
        client_of(served, **WRITES) as program,
    ):
        assert "clerk" in (await program.get("/api/state")).json()["agents"]
        for path in ("agents/clerk/scale", "agents/clerk/canary", "agents/clerk/undeploy", "ask", "letters/drop"):
            assert (await program.post(f"/api/{path}", json={"to": "3"})).status_code == 403
    assert len(office.ids("clerk")) == 1


async def test_a_public_interface_needs_a_token_that_was_chosen(office: ConsoleWorld, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match="can be reached by others"):
            await stack.enter_async_context(
                serving(office.squad, host="0.0.0.0", port=0, read_only=False, by="ana")
            )
        short = tmp_path / "token"
        short.write_text("short")
        with pytest.raises(ConfigError, match="too short"):
            await stack.enter_async_context(
                serving(office.squad, host="0.0.0.0", port=0, read_only=False, by="ana", token_file=short)
            )


async def test_its_address_is_told_as_long_as_it_runs(office: ConsoleWorld) -> None:
    async with serving(office.squad, host="127.0.0.1", port=0, read_only=False, by="ana") as served:
        found = ConsolePlace.find(office.squad.settings)
        assert found is not None
        assert found.url == served.url
        assert f'<a href="{served.url}">' in office.squad._repr_html_()
        port = int(served.url.rpartition(":")[2])
        second = serving(office.squad, host="127.0.0.1", port=port, read_only=False, by="ana")
        with pytest.raises(ConfigError, match="can't be used"):
            await second.__aenter__()
    assert ConsolePlace.find(office.squad.settings) is None


async def frames(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    event = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))


async def test_the_feed_begins_with_all_and_goes_on_with_changes(console: Served, office: ConsoleWorld) -> None:
    async with client_of(console) as program, program.stream("GET", "/api/feed") as answer:
        heard = frames(answer)
        kind, rows = await anext(heard)
        assert kind == "all"
        assert rows["console"]["read_only"] is False
        changed = asyncio.Event()

        async def listen() -> Any:
            async for _, change in heard:
                agent = change.get("set", {}).get("clerk", {}) if change["section"] == "agents" else {}
                if agent.get("scale") == "3":
                    return agent
                changed.set()

        async with asyncio.timeout(20):
            listening = asyncio.create_task(listen())
            await changed.wait()
            await office.squad.scale("clerk", 3)
            agent = await listening
        assert (agent["running"], agent["bounds"]) == (3, "1..4")


async def test_a_topic_is_asked_and_what_does_not_fit_is_told_with_its_field(console: Served) -> None:
    async with client_of(console, **WRITES) as program:
        shown = (await program.get("/api/topics/clerk.stamp")).json()
        assert shown["examples"] == ["stamp a letter"]
        assert "text" in shown["input_schema"]["properties"]
        asked = {"topic": "clerk.stamp", "content": {"text": "a"}, "within_s": 20}
        lines = [json.loads(line) for line in (await program.post("/api/ask", json=asked)).text.splitlines()]
        assert [next(iter(line)) for line in lines] == ["task", "chunk", "outcome"]
        assert lines[-1]["outcome"]["data"] == "a stamped 1 times"
        wrong = await program.post("/api/ask", json=asked | {"content": {"copies": 1}})
        assert (wrong.status_code, wrong.json()["error"]["field"]) == (400, "text")
        for bad in (b"[]", b"{", b"\xff"):
            assert (await program.post("/api/ask", content=bad)).status_code == 400
        assert (await program.post("/api/agents/nobody/scale", json={"to": "1"})).status_code == 400
        assert (await program.post("/api/agents/clerk/scale", json={"to": "many"})).status_code == 400
        for to in ("many", "101", "9" * 5000, 0.5):
            wrong = await program.post("/api/agents/clerk/canary", json={"to": to})
            assert (wrong.status_code, wrong.json()["error"]["field"]) == (400, "to")
        none = await program.post("/api/agents/clerk/canary", json={"to": "abort"})
        assert (none.status_code, "has no canary" in none.json()["error"]["message"]) == (400, True)
        assert (await program.get("/api/letters/clerk/none")).status_code == 404
        assert (await program.get("/api/runs/run-none")).status_code == 400


def test_a_slow_onlooker_is_shown_everything_anew_and_holds_up_nobody() -> None:
    board = Board()
    slow, quick = board.enter(), board.enter()

    async def look() -> None:
        await slow.next()
        await quick.next()
        told = b""
        for number in range(MOST_WAITING + 2):
            board.put("agents", {"a": number})
            told = await quick.next()
        assert b"change" in told
        assert (await slow.next()).startswith(b"event: all")

    asyncio.run(look())


def test_a_thousand_agents_and_ten_thousand_topics_are_one_small_change() -> None:
    board = Board()
    onlooker = board.enter()

    async def look() -> None:
        board.put("topics", {f"a.t{i}": {"topic": f"a.t{i}", "description": "x" * 80} for i in range(10_000)})
        board.put("agents", {f"a{i}": {"agent": f"a{i}", "waiting": 0} for i in range(1000)})
        whole = await onlooker.next()
        assert len(whole) < 3_000_000
        board.put("agents", {f"a{i}": {"agent": f"a{i}", "waiting": int(i == 5)} for i in range(1000)})
        assert len(await onlooker.next()) < 200

    asyncio.run(look())


async def test_what_has_no_json_reaches_a_browser_as_null() -> None:
    board = Board()
    board.rows = {"events": {"one": {"at": float("nan"), "content": [float("inf"), {"why": ValueError("odd")}]}}}

    [_, line] = frame("all", board.rows).decode().strip().split("\n")
    body = bytes(PlainResponse(board.rows).body)

    rows = {"events": {"one": {"at": None, "content": [None, {"why": "odd"}]}}}
    assert json.loads(line.removeprefix("data: ")) == json.loads(body) == rows

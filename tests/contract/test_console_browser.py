"""The console in a real browser, over a real nats-server: each control is clicked, and its effect is asserted."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from squadron import Settings
from squadron.actors.agent import AgentSpec
from squadron.console.looking_round import Lookout
from squadron.console.serving import Served, serving
from tests.contract.console_world import Clerk, ConsoleWorld, Till, console_world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
playwright = pytest.importorskip("playwright.async_api", reason="no playwright: pip install -e '.[dev]'")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
    pytest.mark.timeout(240),
]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
#: Where screenshots are kept, if anywhere.
PICTURES = os.environ.get("CONSOLE_PICTURES", "")
Page = Any


@pytest.fixture
async def office(settings: Settings) -> AsyncIterator[ConsoleWorld]:
    async with console_world(settings) as made:
        yield made


@pytest.fixture
async def console(office: ConsoleWorld) -> AsyncIterator[Served]:
    async with serving(office.squad, host="127.0.0.1", port=0, read_only=False, by="ana") as served:
        yield served


@pytest.fixture
async def page(console: Served) -> AsyncIterator[Page]:
    async with playwright.async_playwright() as starter:
        browser = await starter.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context(viewport={"width": 1440, "height": 860})
        opened = await context.new_page()
        opened.set_default_timeout(60_000)
        faults: list[str] = []
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        await opened.goto(console.login)
        await opened.wait_for_selector("[data-key=clerk]")
        yield opened
        await browser.close()
        # A breach of the content security policy is such an error, too.
        assert faults == []


async def until(holds: Callable[[], Awaitable[Any]] | Callable[[], Any], *, within_s: float = 60.0) -> Any:
    async with asyncio.timeout(within_s):
        while True:
            found = holds()
            if found := await found if isinstance(found, Awaitable) else found:
                return found
            await asyncio.sleep(0.05)


async def picture(page: Page, name: str) -> None:
    if PICTURES:
        await page.screenshot(path=Path(PICTURES) / f"{name}.png")


def deed(page: Page, name: str, inside: str = ".drawer") -> Any:
    return page.locator(f"{inside} [data-deed={name}]").first


async def test_replicas_are_set_from_the_row_and_from_the_drawer(page: Page, office: ConsoleWorld) -> None:
    await until(lambda: len(office.ids("clerk")) == 1)
    await deed(page, "more", "[data-key=clerk]").click()
    await until(lambda: len(office.ids("clerk")) == 2)
    await page.locator("[data-key=clerk] .tag", has_text="pinned 2").wait_for()
    await deed(page, "less", "[data-key=clerk]").click()
    await until(lambda: len(office.ids("clerk")) == 1)
    await page.locator("[data-key=clerk] .clip").click()
    await page.get_by_label("Pin at", exact=True).fill("3")
    await deed(page, "pin").click()
    await until(lambda: len(office.ids("clerk")) == 3)
    await picture(page, "agents")
    await page.get_by_label("At least").fill("2")
    await page.get_by_label("At most").fill("3")
    await deed(page, "bounds").click()
    await until(lambda: len(office.ids("clerk")) == 2)
    await page.locator(".drawer .tag", has_text="2..3 auto").wait_for()
    await deed(page, "auto").click()
    await page.locator(".drawer .tag", has_text="1..4 auto").wait_for()
    await until(lambda: len(office.ids("clerk")) == 1)


async def test_times_and_counts_are_told_in_words_that_fit(page: Page) -> None:
    told = await page.evaluate(
        """async () => {
            const { counted, seconds } = await import("/static/parts.js");
            return [59.97, 119.7, 3599.6, 7199, 86399].map(seconds).concat(
                [0, 1, 1200].map((many) => counted(many, "agent")));
        }"""
    )
    assert told[:5] == ["1 m 0 s", "2 m 0 s", "1 h 0 m", "2 h 0 m", "1 d"]
    assert told[5:] == ["0 agents", "1 agent", "1,200 agents"]


async def test_an_agent_is_redeployed_drained_and_undeployed(page: Page, office: ConsoleWorld) -> None:
    await page.locator("[data-key=clerk] .clip").click()
    before = await until(lambda: office.ids("clerk"))
    await deed(page, "redeploy").click()
    await until(lambda: office.ids("clerk") and office.ids("clerk") != before)
    await deed(page, "drain").click()
    await until(lambda: office.ids("clerk") == [])
    await page.locator(".drawer .tag", has_text="pinned 0").wait_for()
    # Nothing is done before it is confirmed.
    await deed(page, "undeploy").click()
    await page.locator(".confirm button", has_text="Cancel").click()
    assert "clerk" in [each["agent"] for each in (await office.squad.status())["agents"]]
    await deed(page, "undeploy").click()
    await deed(page, "confirm", ".confirm").click()
    await page.locator("[data-key=clerk]").wait_for(state="detached")


async def test_both_versions_of_an_agent_are_shown_beside_each_other(page: Page, office: ConsoleWorld) -> None:
    packed = await office.squad._pack(AgentSpec.of(Clerk))
    canary = packed.model_copy(update={"code": {"version": "f" * 64}, "weight": 20})
    await office.squad._control.call("deploy_canary", deployments=[canary.model_dump(mode="json")])
    await page.locator("[data-key=clerk] .clip").click()
    await page.locator("[data-version=canary]", has_text="20 %").wait_for()
    assert "80 %" in await page.locator("[data-version=stable]").inner_text()
    await picture(page, "canary")

    await page.get_by_label("Share in percent").fill("35")
    await deed(page, "weight").click()
    await page.locator("[data-version=canary]", has_text="35 %").wait_for()
    assert "65 %" in await page.locator("[data-version=stable]").inner_text()
    # Nothing is done before it is confirmed.
    await deed(page, "abort").click()
    await page.locator(".confirm button", has_text="Cancel").click()
    assert (await agent_of(office, "clerk"))["canary"]["weight"] == 35
    await deed(page, "abort").click()
    await deed(page, "confirm", ".confirm").click()
    await page.locator("[data-version=canary]").wait_for(state="detached")
    assert (await agent_of(office, "clerk"))["version"] == packed.code["version"]


async def test_a_canary_is_promoted_and_serves_alone(page: Page, office: ConsoleWorld) -> None:
    packed = await office.squad._pack(AgentSpec.of(Clerk))
    canary = packed.model_copy(update={"code": {"version": "f" * 64}, "weight": 20})
    await office.squad._control.call("deploy_canary", deployments=[canary.model_dump(mode="json")])
    before = await until(lambda: office.ids("clerk"))
    await page.locator("[data-key=clerk] .clip").click()
    await deed(page, "promote").click()
    await deed(page, "confirm", ".confirm").click()
    await until(lambda: office.ids("clerk") and office.ids("clerk") != before)
    await page.locator("[data-version=canary]").wait_for(state="detached")
    row = await agent_of(office, "clerk")
    assert (row["version"], row["canary"]) == ("f" * 64, None)


async def agent_of(office: ConsoleWorld, name: str) -> dict[str, Any]:
    return next(each for each in (await office.squad.status())["agents"] if each["agent"] == name)


async def test_a_topic_is_asked_by_the_form_of_its_schema(page: Page) -> None:
    await page.keyboard.press("2")
    await page.locator("[data-key='clerk.stamp']").click()
    await page.locator("#ask-text").fill("a letter")
    await page.locator("#ask-copies").fill("3")
    await page.locator("#ask-urgent").check()
    await page.locator(".schema-form button[type=submit]").click()
    await page.locator(".answer pre.data", has_text="a letter stamped 3 times, at once").wait_for()
    assert "inking" in await page.locator(".answer .chunks").inner_text()
    await picture(page, "topics")


async def test_a_question_is_answered_on_its_page(page: Page, office: ConsoleWorld) -> None:
    handle = await office.squad.submit("shop.order", "red", within_s=60)
    await page.locator("nav a", has_text="Questions").click()
    await page.locator(".question", has_text="Which size in red?").wait_for()
    await picture(page, "questions")
    await page.locator(".question select").select_option("M")
    await page.locator(".question button[type=submit]").click()
    assert (await handle.outcome()).unwrap() == "red, size M"
    await page.locator(".question").wait_for(state="detached")
    handle = await office.squad.submit("shop.order", "blue", within_s=60)
    await page.locator(".question", has_text="blue").wait_for()
    await deed(page, "decline", ".question").click()
    assert (await handle.outcome()).unwrap() == "nothing"


async def test_dead_letters_are_redriven_and_dropped(page: Page, office: ConsoleWorld) -> None:
    Till.change = False
    try:
        lost = [await office.squad.ask("till.pay", {"amount": each}) for each in (5, 6, 7)]
        assert {each.kind for each in lost} == {"dead_lettered"}
        await page.locator("nav a", has_text="Dead letters").click()
        first = page.locator(f"[data-key='till/{lost[0].task_id}']")
        await first.click()
        await page.locator(".drawer pre", has_text="no change").first.wait_for()
        await picture(page, "letters")
        Till.change = True
        await deed(page, "redrive").click()
        await first.wait_for(state="detached")
        await page.locator(f"[data-key='till/{lost[1].task_id}']").click()
        await deed(page, "drop").click()
        await deed(page, "confirm", ".confirm").click()
        await page.locator(f"[data-key='till/{lost[1].task_id}']").wait_for(state="detached")
        await deed(page, "redrive-all", ".bar").click()
        await deed(page, "confirm", ".confirm").click()
        await page.locator(".empty", has_text="No dead letters").wait_for()
        assert await office.squad.dead_letters.list() == ()
    finally:
        Till.change = False


async def test_a_lite_topic_is_followed_live_published_on_and_closed(page: Page, office: ConsoleWorld) -> None:
    room = office.squad.lite("room-1", "chat", ttl_s=600)
    await room.publish({"text": "hello"})
    await page.locator("nav a", has_text="Lite topics").click()
    await page.locator("[data-key='chat/room-1']").click()
    await page.locator(".stream li", has_text="hello").wait_for()
    await room.publish({"text": "again"})
    await page.locator(".stream li", has_text="again").wait_for()
    await page.get_by_label("Publish").fill("from the page")
    await page.locator(".say button").click()
    await page.locator(".stream li", has_text="from the page").wait_for()
    await picture(page, "lite")
    await deed(page, "close").click()
    await deed(page, "confirm", ".confirm").click()
    await page.locator(".drawer .badge", has_text="closed").wait_for()


async def test_messages_bids_and_nodes_are_shown(page: Page, office: ConsoleWorld) -> None:
    await page.locator("nav a", has_text="Events").click()
    assert (await office.squad.negotiate("clerk.stamp", {"text": "x"}, within_s=20)).ok
    await page.locator(".row", has_text="clerk.stamp").first.wait_for()
    await picture(page, "events")
    await page.locator("nav a", has_text="Negotiations").click()
    await page.locator(".card", has_text="clerk.stamp").locator(".tag", has_text="awarded").wait_for()
    await page.locator("nav a", has_text="Nodes").click()
    await page.locator(".card", has_text="127.0.0.1").wait_for()
    await picture(page, "nodes")


async def test_tabs_share_one_feed_and_keys_and_themes_work(page: Page, console: Served) -> None:
    other = await page.context.new_page()
    await other.goto(f"{console.url}/#/nodes")
    await other.locator("#connection", has_text="live").wait_for()
    told = await page.evaluate("fetch('/metrics').then(answer => answer.text())")
    assert "squadron_console_onlookers 1\n" in told
    await page.keyboard.press("t")
    first = await page.evaluate("document.documentElement.dataset.theme")
    await page.keyboard.press("t")
    assert {first, await page.evaluate("document.documentElement.dataset.theme")} == {"dark", "light"}
    await page.keyboard.press("j")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await page.locator(".drawer").wait_for()
    await page.keyboard.press("Escape")
    await page.locator(".drawer").wait_for(state="detached")
    await page.set_viewport_size({"width": 420, "height": 800})
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await picture(page, "narrow")


async def test_a_thousand_agents_and_ten_thousand_topics_are_a_few_rows_in_the_page(
    office: ConsoleWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"status": "RUNNING", "running": 2, "target": 2, "slots": 16, "in_flight": 3, "waiting": 4, "failed": 0}
    one |= {
        "rates": [1.0, 2.0, 3.0],
        "failing": 0,
        "age_s": 0.1,
        "scale": "1..4",
        "bounds": "1..4",
        "version": "1",
    }
    one |= {"serves": [], "topics": [], "replicas": [], "outcomes": {}, "message": ""}

    looks = itertools.count()

    async def agents(_: Lookout) -> dict[str, Any]:
        number = next(looks)
        return {f"agent-{i}": one | {"agent": f"agent-{i}", "waiting": number + i} for i in range(1000)}

    async def topics(_: Lookout) -> dict[str, Any]:
        about = {"agent": "agent-1", "description": "Does what it says, and says what it does.", "tags": ["many"]}
        return {f"many.topic-{i}": about | {"topic": f"many.topic-{i}"} for i in range(10_000)}

    monkeypatch.setattr(Lookout, "_agents", agents)
    monkeypatch.setattr(Lookout, "_topics", topics)
    async with (
        serving(office.squad, host="127.0.0.1", port=0, read_only=True, by="ana") as served,
        playwright.async_playwright() as starter,
    ):
        browser = await starter.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = await browser.new_page(viewport={"width": 1440, "height": 860})
        await opened.goto(served.login)
        await opened.locator("nav a", has_text="1,000").wait_for()
        assert await opened.locator(".space .row").count() < 60
        await opened.locator("nav a", has_text="10,000").click()
        await opened.locator("[data-key='many.topic-0']").wait_for()
        assert await opened.locator(".space .row").count() < 60
        taken_ms = await opened.evaluate(
            """async () => {
                const box = document.querySelector(".rows"), frame = () => new Promise(requestAnimationFrame);
                const began = performance.now();
                for (let i = 1; i <= 60; i++) { box.scrollTop = box.scrollHeight * i / 60; await frame(); }
                return (performance.now() - began) / 60;
            }"""
        )
        await opened.locator("[data-key='many.topic-9999']").wait_for()
        await opened.locator(".search").fill("topic-4242")
        await opened.locator("[data-key='many.topic-4242']").wait_for()
        assert await opened.locator(".space .row").count() == 1
        await browser.close()
    with capsys.disabled():
        sys.stdout.write(f"\n10,000 topics: {taken_ms:.1f} ms from one place of the list to another\n")

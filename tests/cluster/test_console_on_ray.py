"""The console's controls in a real browser, on a real Ray."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from squadron import Agent, Squad, topic
from squadron.console.serving import serving
from tests.cluster.conftest import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
playwright = pytest.importorskip("playwright.async_api", reason="no playwright: pip install -e '.[dev]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
    pytest.mark.timeout(300),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class Weigher(Agent):
    """Weighs texts."""

    min_replicas, max_replicas = 1, 3

    @topic("weigher.weigh")
    async def weigh(self, text: str) -> int:
        """How long a text is."""
        return len(text)


async def replicas(squad: Squad) -> set[str]:
    """The replicas that take tasks, as their presence tells."""
    found = [each for each in (await squad.status())["agents"] if each["agent"] == "weigher"]
    return {it["id"] for each in found for it in each["replicas"]}


async def test_each_control_of_an_agent_has_its_effect_on_ray(squad: Squad) -> None:
    await squad.deploy(Weigher)

    async def are(count: int) -> set[str]:
        found = await replicas(squad)
        return found if len(found) == count else set()

    async with (
        serving(squad, host="127.0.0.1", port=0, read_only=False, by="ana") as served,
        playwright.async_playwright() as starter,
    ):
        browser = await starter.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page: Any = await browser.new_page(viewport={"width": 1440, "height": 860})
        page.set_default_timeout(30_000)
        await page.goto(served.login)
        await page.locator("[data-key=weigher] [data-deed=more]").click()
        await until(lambda: are(2))
        await page.locator("[data-key=weigher] .tag", has_text="pinned 2").wait_for()
        await page.locator("[data-key=weigher] [data-deed=less]").click()
        before = await until(lambda: are(1))
        await page.locator("[data-key=weigher] .clip").click()
        await page.locator(".drawer [data-deed=redeploy]").click()

        async def are_others() -> bool:
            return bool(found := await are(1)) and not found & before

        await until(are_others)
        assert (await squad.ask("weigher.weigh", {"text": "abc"}, within_s=30)).unwrap() == 3
        await page.locator(".drawer [data-deed=drain]").click()

        async def are_gone() -> bool:
            return not await replicas(squad)

        await until(are_gone)
        await page.locator(".drawer [data-deed=auto]").click()
        await until(lambda: are(1))
        await page.locator("nav a", has_text="Nodes").click()
        await page.locator(".card .tag", has_text="head").wait_for()
        await page.locator("nav a", has_text="Agents").click()
        await page.locator("[data-key=weigher] .clip").click()
        await page.locator(".drawer [data-deed=undeploy]").click()
        await page.locator(".confirm [data-deed=confirm]").click()

        async def is_undeployed() -> bool:
            return "weigher" not in [each["agent"] for each in (await squad.status())["agents"]]

        await until(is_undeployed)
        await browser.close()

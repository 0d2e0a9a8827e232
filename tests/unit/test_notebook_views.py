"""What a notebook shows, drawn without a notebook."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from squadron import Agent, topic
from squadron.notebook import MOST_SAMPLES, AgentHistory, LiveRun, Sample
from squadron.runtime.errors import BridgeUnavailableError
from squadron.testing import MemorySquad


class Clerk(Agent):
    """Knows the names of things."""

    @topic("names.list")
    async def all(self) -> list[str]:
        """List all names."""
        return ["ray", "skate"]


PLAN = [
    [{"id": "all", "intent": "list all names"}],
    [{"finish": "Done.", "deliverables": {"all": {"$from": "all"}}}],
]


async def test_a_run_grows_into_a_tree_of_its_rounds_and_calls(capsys: pytest.CaptureFixture[str]) -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Clerk)
        with LiveRun() as live:
            (await squad.run("list the names", plan=PLAN, on_event=live)).unwrap()

    assert "names.list" in repr(live)
    assert repr(live).count("round ") >= 2
    assert "<script" not in live._repr_html_()
    assert "names.list" in live._repr_html_()


class _Telling:
    """Stands in for the bridge, which a squad in memory has none of."""

    def __init__(self) -> None:
        self.looks = 0

    async def status(self) -> dict[str, Any]:
        self.looks += 1
        if self.looks == 2:
            raise BridgeUnavailableError("it is being restarted")
        row = {"agent": "clerk", "waiting": self.looks, "taken": 2, "running": 1, "target": 3}
        return {"agents": [row, {**row, "agent": "other", "waiting": None}]}


async def test_a_history_holds_what_was_known_and_nothing_for_when_nobody_could_tell() -> None:
    telling = _Telling()
    async with AgentHistory(telling, "clerk") as history:  # type: ignore[arg-type]
        while telling.looks < 4:
            await asyncio.sleep(0.1)
        history.mark("now")

    assert [each["waiting"] for each in history.to_dicts()][:3] == [1, 3, 4]
    assert all((each.replicas, each.wanted) == (1, 3) for each in history.samples)
    above, below = history.figure().axes
    assert above.get_title(loc="left") == "clerk"
    assert [text.get_text() for text in above.texts] == ["now"]
    assert {line.get_label() for line in below.lines} >= {"replicas", "wanted"}
    assert history._repr_png_().startswith(b"\x89PNG")


async def test_a_history_of_hours_keeps_its_first_sample_and_its_size() -> None:
    telling = _Telling()
    history = AgentHistory(telling, "clerk")  # type: ignore[arg-type]
    history.samples = [Sample(float(at), at, 0, 1, 1) for at in range(MOST_SAMPLES)]

    await history._look()

    assert history.samples[0].at_s == 0.0
    assert len(history.samples) == MOST_SAMPLES // 2 + 1

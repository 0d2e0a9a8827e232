"""People on a real cluster: asked by agents on Ray, answered by the command line, the bridge killed in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from squadron import Agent, Context, Settings, Squad, topic
from squadron.runtime.running.parking import PARKED
from tests.cluster.conftest import until


class Shop(Agent):
    """One task at a time, and none while people think."""

    slots = 1
    max_replicas = 1

    @topic("shop.order")
    async def order(self, ctx: Context) -> dict[str, Any]:
        """Order something."""
        sizes = {"type": "object", "properties": {"size": {"enum": ["S", "M"], "type": "string"}}}
        size = await ctx.ask_person("Which size?", schema=sizes | {"required": ["size"]}, park=True)
        paid = await ctx.ask_approval("shop.rest", {}, park=True)
        return {"size": size.value, "paid": paid.action, "reason": paid.reason, "attempt": ctx.attempt}

    @topic("shop.rest")
    async def rest(self) -> str:
        """Needs the slot."""
        return "rested"


async def _squadron(settings: Settings, *arguments: str) -> Any:
    """The installed command, and the JSON that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("squadron")), *arguments, "--json"),
        env=os.environ | settings.environ(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def _parked(squad: Squad) -> str:
    """The question that the parked task waits for."""

    async def is_parked() -> str:
        notes = await squad._wiring.ports.lite.latest(squad._wiring.ports.subjects.lite_of(PARKED))
        waiting = [each.query_id for each in await squad.questions()]
        return next((id for id in waiting if any(id.encode() in note.data for note in notes)), "")

    return str(await until(is_parked))


async def test_a_parked_task_is_answered_from_the_command_line_with_the_bridge_killed_in_between(
    squad: Squad, settings: Settings
) -> None:
    await squad.deploy(Shop)
    handle = await squad.submit("shop.order", within_s=300)
    size = await _parked(squad)
    assert (await squad.ask("shop.rest", within_s=60)).unwrap() == "rested"
    [asked] = await _squadron(settings, "asks")
    assert (asked["query"], asked["message"]) == (size, "Which size?")
    os.kill((await squad.status())["pid"], signal.SIGKILL)
    told = await _squadron(settings, "answer", size[:10], "size=M", "--by", "ana")
    assert told == {"query": size, "action": "accept", "content": {"size": "M"}, "by": "ana"}
    # The bridge that Ray starts again finds the note and the answer.
    pay = await _parked(squad)
    assert pay != size
    await _squadron(settings, "answer", pay, "--decline", "--reason", "too dear")
    wanted = {"size": "M", "paid": "decline", "reason": "too dear", "attempt": 1}
    assert (await handle.outcome()).unwrap() == wanted
    assert await _squadron(settings, "asks") == []

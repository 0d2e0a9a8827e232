"""The trail of a real cluster: switched on while agents run, kept by an actor that is killed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import ray

from squadron import Agent, Settings, Squad, topic
from squadron.runtime.store.operating import operator
from tests.cluster.conftest import until


class Parrot(Agent):
    """Says it again."""

    @topic("parrot.say")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


async def test_the_audit_is_switched_by_who_comes_and_goes_on_over_a_killed_archivist(
    squad: Squad, settings: Settings
) -> None:
    await squad.deploy(Parrot)

    async def recorded(**wanted: Any) -> list[dict[str, Any]]:
        return [each async for each in squad.audit.query(**wanted)]

    async with Squad.up(replace(settings, audit="trail")):
        first = await squad.ask("parrot.say", {"text": "one"})
        await until(lambda: recorded(task=first.task_id, kind="result"))
        archivist = ray.get_actor("squadron-archivist-dev", namespace="squadron")
        os.kill(await archivist.ping.remote(), signal.SIGKILL)
        second = await squad.ask("parrot.say", {"text": "two"})
        await squad.scale("parrot", 2)
        await until(lambda: recorded(task=second.task_id, kind="result"))
        await until(lambda: _has(recorded, "scale"))
        actions = [each["action"] for each in await recorded(kind="action")]
        assert [(each["verb"], each["on"], each["by"]) for each in actions] == [
            ("audit", "trail", operator()),
            ("scale", "parrot", operator()),
        ]
        assert await recorded(kind="gap") == []
        assert (await squad.audit.verify()).ok
    async with Squad.up(replace(settings, audit="off")):
        assert (await squad.audit.status())["mode"] == "off"


async def _has(recorded: Any, verb: str) -> bool:
    return verb in [each["action"]["verb"] for each in await recorded(kind="action")]

"""The shell example of the docs, run as it stands: bash on one side, an agent on the other."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.config import Settings
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import Context
from tests.contract.conftest import ON_NATS, Serve
from tests.docs import ROOT

pytestmark = ON_NATS


class Shell(Agent):
    """Answers a shell."""

    name = "shell-answers"

    @topic("shell.say")
    async def say(self, text: str, ctx: Context) -> str:
        await ctx.emit("so")
        return text

    @topic("shell.fail", max_attempts=1)
    async def fail(self) -> str:
        raise Terminal("the oven is cold")


async def ask(settings: Settings, *arguments: str) -> tuple[int | None, list[dict[str, Any]]]:
    process = await asyncio.create_subprocess_exec(
        "bash",
        str(ROOT / "docs/examples/ask.sh"),
        *arguments,
        env=os.environ | {"SQUADRON_HOME": str(settings.home), "SQUADRON_ENV": settings.env},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("text", ["hi", "ein Käse, 🧀", 'with "quotes" and "type":"result"'])
async def test_a_shell_asks_and_hears_chunks_and_the_result(settings: Settings, serve: Serve, text: str) -> None:
    await serve(Shell())
    code, messages = await ask(settings, "shell.say", json.dumps({"text": text}, ensure_ascii=False))
    assert code == 0
    assert [each["type"] for each in messages] == ["stream", "stream", "result"]
    assert messages[0]["payload"]["chunk"] == "so"
    assert messages[-1]["payload"]["content"]["data"] == text


async def test_a_shell_hears_how_a_task_ended_otherwise(settings: Settings, serve: Serve) -> None:
    await serve(Shell())
    code, messages = await ask(settings, "shell.fail", "{}")
    assert code == 1
    assert messages[-1]["payload"]["content"]["outcome"] == "failed"
    assert "the oven is cold" in messages[-1]["payload"]["content"]["error"]["message"]

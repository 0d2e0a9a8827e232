"""`squadron run` against HTTP servers that speak the providers' wire formats: the closed loop, end to end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, topic
from squadron.actors.thinking.model import ModelTurn, ToolCall, Usage
from tests.llm_servers import ScriptedAnthropicServer, ScriptedOpenAIServer


class Words(Agent):
    """Counts words."""

    @topic("words.count", examples=["how many words has this text?"])
    async def count(self, text: str) -> int:
        """Count the words of a text."""
        if text == "secret":
            raise PermissionError("may not be read")
        return len(text.split())


def script(seen: list[str]) -> list[Callable[[dict[str, Any]], ModelTurn]]:
    """Two calls at once, of which one is refused; then, having seen both answers, the end."""

    def first(body: dict[str, Any]) -> ModelTurn:
        assert "words__count" in json.dumps(body["tools"])
        good = ToolCall("a", "words__count", {"text": "one two three"})
        bad = ToolCall("b", "words__count", {"no": 1})
        return ModelTurn("I count both.", (good, bad), Usage(11, 7))

    def second(body: dict[str, Any]) -> ModelTurn:
        seen.append(json.dumps(body["messages"]))
        return ModelTurn("There are three words, and one text could not be read.", usage=Usage(5, 9))

    return [first, second]


PROVIDERS = {
    "openai:test-model": (ScriptedOpenAIServer, "OPENAI", "/v1"),
    "anthropic:test-model": (ScriptedAnthropicServer, "ANTHROPIC", ""),
}


@pytest.mark.parametrize("model", PROVIDERS)
async def test_a_run_completes_the_loop_on_the_wire_format_of(model, squad, settings):
    await squad.deploy(Words)
    server_class, prefix, _ = PROVIDERS[model]
    seen: list[str] = []
    with server_class(script(seen)) as server:
        keys = {f"{prefix}_API_KEY": "key-of-this-shell", f"{prefix}_BASE_URL": server.base_url}
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("squadron")), "run", "How many words do these texts have?"),
            *("--model", model, "--json", "--within", "60"),
            env=os.environ | settings.environ() | keys,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    report = json.loads(out.decode().strip().splitlines()[-1])
    assert "There are three words" in json.dumps(report)
    assert len(server.requests) == 2
    assert all(request.body["stream"] for request in server.requests)
    # What the agents answered, good and bad, is what the model saw.
    assert "three words" not in seen[0]
    assert re.search(
        r"Result of words\.count, call r1c1-[0-9a-f]{6}:\\n<(untrusted-[0-9a-f]{8})>\\n3\\n</\1>", seen[0]
    )
    assert "Additional properties" in seen[0]
    assert "key-of-this-shell" not in err.decode()

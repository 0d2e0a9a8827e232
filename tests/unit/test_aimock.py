"""Our models against aimock, a mock of all providers by somebody else, which thinks and signs what it thought."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from squadron.actors.thinking.model import ChatMessage, ModelRequest
from squadron.runtime.errors import ModelError
from tests.llm_playing import ANTHROPIC, CHAT, PROVIDERS, TOOLS, Provider

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_keys")]

PACKAGE = "@copilotkit/aimock@1.43"
CALL = {"id": "call_w", "name": "weather", "arguments": '{"city": "Zürich"}'}
THOUGHT = {"reasoning": "Which city?", "reasoningSignature": "c2lnbmF0dXJl"}
FIXTURES = [
    {
        "match": {"userMessage": "weather", "hasToolResult": False},
        "response": {"content": "I look.", "toolCalls": [CALL], **THOUGHT}
        | {"usage": {"input_tokens": 120, "output_tokens": 30}},
    },
    {"match": {"userMessage": "weather", "hasToolResult": True}, "response": {"content": "Sunny.", **THOUGHT}},
    {
        "match": {"userMessage": "too much"},
        "response": {
            "error": {"message": "slow down", "type": "rate_limit_error"},
            "status": 429,
            "retryAfter": 3,
        },
    },
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("aimock needs npm, and there is none")
    home: Path = tmp_path_factory.mktemp("aimock")
    install = [npm, "install", "--no-fund", "--no-audit", "--prefix", str(home), PACKAGE]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"npm can't install {PACKAGE}: {installed.stderr[-500:]}")
    (home / "fixtures.json").write_text(json.dumps({"fixtures": FIXTURES}))
    command = [str(home / "node_modules/.bin/llmock"), "--port", "0", "--fixtures", str(home / "fixtures.json")]
    with subprocess.Popen([*command, "--strict"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = (re.search(r"listening on (\S+)", line) for line in server.stdout)
        yield next(match.group(1) for match in found if match)
        server.terminate()


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda one: one.name)
async def test_a_loop_of_thought_and_tools_over_aimock(provider: Provider, address: str) -> None:
    model = provider.model(
        "some-model", api_key="k", base_url=address if provider is ANTHROPIC else f"{address}/v1"
    )
    heard: list[str] = []
    chat = [ChatMessage("user", "the weather?")]
    turn = await model.think(ModelRequest(tuple(chat), tuple(TOOLS)), heard.append)
    assert (turn.text, turn.stop, turn.usage.input, turn.usage.output) == ("I look.", "tools", 120, 30)
    assert [(call.name, call.arguments) for call in turn.tool_calls] == [("weather", {"city": "Zürich"})]
    assert "".join(heard) == "I look."
    chat += [turn.as_message(), ChatMessage("tool", "sunny", tool_call_id=turn.tool_calls[0].id)]
    second = await model.think(ModelRequest(tuple(chat), tuple(TOOLS)))
    assert (second.text, second.stop) == ("Sunny.", "end")
    assert second.usage.total > 0  # it tells nothing here, or zero
    with pytest.raises(ModelError) as caught:
        await model.think(ModelRequest((ChatMessage("user", "too much"),)))
    assert (caught.value.kind, caught.value.retry_after_s) == ("limit", 3.0)
    await model.aclose()
    # Its journal keeps no thoughts, so what goes out is looked at here, and that each was sent once there.
    sent = json.dumps(model._wire.body("some-model", model.name, ModelRequest(tuple(chat)), None))
    assert "Which city?" in sent
    assert (THOUGHT["reasoningSignature"] in sent) is (provider is ANTHROPIC)
    path = {ANTHROPIC: "/messages", CHAT: "/completions"}.get(provider, "/responses")
    assert (await asyncio.to_thread(_asked, address)).count(path) == 3


def _asked(address: str) -> list[str]:
    with urllib.request.urlopen(f"{address}/__aimock/journal") as answer:
        return [f"/{entry['path'].rpartition('/')[2]}" for entry in json.load(answer)]

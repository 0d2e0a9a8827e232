"""What takes seconds to import on a busy machine is not loaded on the loop that keeps the leases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_WATCH = """
import asyncio, importlib.abc, json, sys, threading

loaded_on = {}

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("openai", "anthropic", "mcp", "clerks"):
            loaded_on[name] = threading.current_thread() is threading.main_thread()

sys.meta_path.insert(0, Watch())
"""

_MODELS = """
from squadron import Context, LLMAgent, Supervisor, topic
from squadron.testing import MemorySquad

class Thinker(LLMAgent):
    @topic("load.think")
    async def ask_model(self, ctx: Context) -> str:
        return await self.think(ctx, "hello")

async def main():
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Thinker, Supervisor)
        asks = [squad.ask("load.think", model=f"openai-chat:{number}") for number in range(2)]
        outcomes = await asyncio.gather(*asks, squad.run("do it", model="anthropic:m"))
    print(json.dumps([loaded_on, [str(outcome) for outcome in outcomes]]))

asyncio.run(main())
"""

_BRIDGE_AND_REPLICAS = """
from squadron import Settings
from squadron.actors.remote.mcp_agent import load_mcp
from squadron.bridge.memory import MemoryServer
from squadron.bridge.packing.code import Code
from squadron.bridge.serve.agent_process import AgentProcess
from squadron.bridge.serve.bridge_process import BridgeProcess
from squadron.runtime.wire.envelope import AgentIdentity

async def main():
    bridge = BridgeProcess()
    bridge._settings = Settings(embeddings="openai:tiny")
    bridge.wiring = MemoryServer().place(AgentIdentity(id="bridge"), bridge._settings)
    await bridge._search()
    replica = AgentProcess()
    replica._code = Code(version="v1", import_path="clerks:Clerk")
    assert (await replica._load()).__name__ == "Clerk"
    await load_mcp()
    assert sys.modules["clerks"].here is asyncio.get_running_loop()
    print(json.dumps(loaded_on))

asyncio.run(main())
"""


def test_an_sdk_is_loaded_in_a_thread_and_its_model_is_asked() -> None:
    env = os.environ | {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
    env |= {"OPENAI_BASE_URL": "http://127.0.0.1:9", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", _WATCH + _MODELS], env=env, capture_output=True, text=True, check=True, timeout=120
    )
    on_the_loop, outcomes = json.loads(done.stdout.splitlines()[-1])
    assert on_the_loop == {"openai": False, "anthropic": False}
    assert all("http://127.0.0.1:9 failed" in outcome for outcome in outcomes), outcomes


def test_what_the_bridge_and_replicas_import_late_is_loaded_in_a_thread(tmp_path: Path) -> None:
    agent = "class Clerk(Agent):\n    @topic('a.b')\n    async def b(self) -> int: ..."
    # As modules do that make a client when they are imported.
    asks = "import asyncio\n\nhere = asyncio.get_event_loop()"
    (tmp_path / "clerks.py").write_text(f"{asks}\n\nfrom squadron import Agent, topic\n\n{agent}\n")
    env = os.environ | {"OPENAI_API_KEY": "k", "PYTHONPATH": str(tmp_path)}
    program = [sys.executable, "-c", _WATCH + _BRIDGE_AND_REPLICAS]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"openai": False, "mcp": False, "clerks": False}

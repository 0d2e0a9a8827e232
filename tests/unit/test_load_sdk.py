"""The library of a provider takes seconds to load on a busy machine: not on the loop that keeps the leases."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_PROGRAM = """
import asyncio, importlib.abc, json, sys, threading

loaded_on = {}

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("openai", "anthropic"):
            loaded_on[name] = threading.current_thread() is threading.main_thread()

sys.meta_path.insert(0, Watch())

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


def test_an_sdk_is_loaded_in_a_thread_and_its_model_is_asked() -> None:
    env = os.environ | {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
    env |= {"OPENAI_BASE_URL": "http://127.0.0.1:9", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=env, capture_output=True, text=True, check=True, timeout=120
    )
    on_the_loop, outcomes = json.loads(done.stdout.splitlines()[-1])
    assert on_the_loop == {"openai": False, "anthropic": False}
    assert all("http://127.0.0.1:9 failed" in outcome for outcome in outcomes), outcomes

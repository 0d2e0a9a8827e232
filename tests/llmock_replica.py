"""One replica that asks a model as fast as it may: a process of its own, started by `test_account_processes`.

    python -m tests.llmock_replica NAME BASE_URL FOR_S CALLERS LIMITS

Prints how many calls were answered, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from squadron.actors.thinking.account import Accounts, limits_from
from squadron.actors.thinking.model import ChatMessage, ModelRequest
from squadron.actors.thinking.providers import OpenAIModel
from squadron.actors.thinking.tries import think_patiently
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.errors import ModelError
from squadron.runtime.wire.envelope import AgentIdentity
from tests.llmock import OPTIONS, Told

#: Of about 1,500 tokens as llmock counts them: what it may answer, and 500 of input.
REQUEST = ModelRequest((ChatMessage("user", "How many moons has Mars? " * 80),), max_tokens=1_000)


async def main(name: str, base_url: str, for_s: float, callers: int, limits: str) -> None:
    place = await Wiring.open(Settings.load(), AgentIdentity(id=name, type="test"))
    ports = place.ports
    accounts = Accounts(ports, limits_from(limits), who=name)
    model = OpenAIModel("gpt-x", api_key="k", base_url=base_url, **OPTIONS)
    answered, tries, ends_at = 0, 0, time.monotonic() + for_s

    async def ask() -> None:
        nonlocal answered, tries
        while (left_s := ends_at - time.monotonic()) > 0:
            told = Told()
            try:
                await think_patiently(
                    [model],
                    REQUEST,
                    books=told,
                    within_s=left_s,
                    account=accounts,
                    on_text=told.on_text,
                    on_event=told.on_event,
                )
                answered += 1
            except ModelError:
                # There was no room in the time that was left.
                await asyncio.sleep(min(1.0, max(0.0, ends_at - time.monotonic())))
            tries += told.tries

    await asyncio.gather(*(ask() for _ in range(callers)))
    await accounts.aclose()
    await model.aclose()
    await place.aclose()
    sys.stdout.write(json.dumps({"answered": answered, "tries": tries}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))

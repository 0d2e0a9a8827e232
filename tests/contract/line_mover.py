"""Bridges that declare an ordered mailbox, and die by SIGKILL after the next step that changes something."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity

IN_ORDER = Mailbox("scribe", ("scroll.write",), 30.0, ordered=True)
#: Calls by which a stream or a consumer becomes another one, if the server does as it is told.
CHANGING = (
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.DELETE",
    "STREAM.MSG.DELETE",
    "STREAM.PURGE",
    "CONSUMER.DELETE",
)


async def declare() -> None:
    """Declare it; comes to its end if nothing had to be changed any more."""
    place = await Wiring.open(Settings.load(), AgentIdentity(id="bridge", type="test"), create=True)
    connection: Any = place.connection
    ask, api = connection.ask, connection.api

    async def ask_and_die(subject: str, *args: Any, **how: Any) -> Any:
        answer = await ask(subject, *args, **how)
        if subject.startswith("agents."):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    async def call_and_die(call: str, *args: Any) -> dict[str, Any]:
        before = await api(call.replace("UPDATE", "INFO"), {}) if "STREAM.UPDATE" in call else {}
        answer: dict[str, Any] = await api(call, *args)
        # A stream that is there already is made once more all the same, or told what it has.
        changed = answer.get("did_create", not call.startswith("STREAM.CREATE"))
        if before:
            changed = before["config"] != answer["config"]
        if call.startswith(CHANGING) and "error" not in answer and changed:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    connection.ask, connection.api = ask_and_die, call_and_die
    await place.ports.queue.declare(IN_ORDER)
    await place.aclose()


def main() -> int:
    """How many died until one came to its end. They are forked from here: a start of Python takes a second."""
    for died in range(200):
        if (child := os.fork()) == 0:
            asyncio.run(declare())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return died
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("it never came to its end")


if __name__ == "__main__":
    print(main())  # noqa: T201 - what the test waits for

"""One environment for the whole folder, brought up by the command line and joined over NATS.

So the test's process is no part of what is killed: it has no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from squadron import Settings, Squad
from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.wire.envelope import AgentMessage
from tests.chaos.accounts import Account
from tests.chaos.client import Plan
from tests.chaos.processes import ROOT, ClientProcess

#: Brings the command line up in this interpreter, also where it is not installed.
_COMMAND = "from squadron.cli import main; main()"


# Not for the session: other folders have an environment of their own, and two are much for a small machine.
@pytest.fixture(scope="package")
def settings() -> Iterator[Settings]:
    """Settings of the folder's environment: all defaults, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="sq-chaos-") as home:
        chosen = Settings.load({}, home=Path(home))
        squadron_command(chosen, "up")
        yield chosen
        squadron_command(chosen, "down")


def squadron_command(settings: Settings, *command: str) -> None:
    """Run a command of ours in the environment, to its good end."""
    ended = subprocess.run(
        [sys.executable, "-c", _COMMAND, *command],
        cwd=ROOT,
        env=os.environ | settings.environ(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="package")
async def joined(settings: Settings) -> AsyncIterator[Squad]:
    """The environment, joined over NATS."""
    async with Squad.connect(settings) as squad:
        yield squad


Start = Callable[[Plan], ClientProcess]


@pytest.fixture
def start_client(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts a client on `tmp_path`; it is ended with the test."""
    clients = []

    def start(plan: Plan) -> ClientProcess:
        clients.append(ClientProcess(settings, tmp_path, plan))
        clients[-1].start()
        return clients[-1]

    yield start
    for client in clients:
        client.kill()


async def until_empty(squad: Squad, *, within_s: float = 120.0) -> None:
    """Wait until no mailbox holds anything, waiting or taken."""
    async with asyncio.timeout(within_s):
        while any(agent["waiting"] or agent["taken"] for agent in (await squad.status())["agents"]):
            await asyncio.sleep(0.1)


Books = Callable[[], Awaitable[Account]]


@pytest.fixture
async def books(settings: Settings, joined: Squad, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Books:
    """Closes the books of the test: they add up, and the mailbox is empty. Returns them for more questions."""
    lite, subjects = joined._wiring.ports.lite, joined._wiring.ports.subjects
    since = await lite.append(subjects.lite("chaos", "began"), b"", ttl_s=3600)

    async def close() -> Account:
        await until_empty(joined)
        stored: Counter[str] = Counter()
        async for entry in lite.read(f"agents.{settings.env}.lite.*.*", from_seq=since + 1):
            # Not all that is kept there is a message.
            with contextlib.suppress(InvalidMessageError):
                message = AgentMessage.decode(entry.data)
                if message.type == "result":
                    stored[message.context.parent_message_id or ""] += 1
        account = Account.of(tmp_path)
        account.assert_exact(stored)
        with capsys.disabled():
            sys.stdout.write(f"\n{account.summary()}\n")
        return account

    return close

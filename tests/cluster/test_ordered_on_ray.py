"""An agent ordered by conversation on real Ray and NATS: three replicas, one of them killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from squadron import Agent, Context, Squad, topic
from tests.cluster.conftest import until

CONVERSATIONS, TASKS = 8, 12


class Scribe(Agent):
    """Writes each start and end of a task into one file that all replicas share."""

    ordered_by = "conversation"
    slots = 4
    min_replicas = 3
    max_replicas = 3

    @topic("scribe.write")
    def write(self, ledger: str, number: int, nap_s: float, ctx: Context) -> int:
        """Write down that it began, take a nap, and write down that it ended."""
        line = f"{ctx.message.context.conversation_id} {number} {os.getpid()}\n"
        self._append(ledger, f"start {line}")
        time.sleep(nap_s)
        self._append(ledger, f"end {line}")
        return os.getpid()

    @staticmethod
    def _append(ledger: str, line: str) -> None:
        # One write of a short line at the end of a file is never mixed with another.
        with Path(ledger).open("a") as file:
            file.write(line)


async def test_order_holds_over_replicas_and_the_death_of_one(squad: Squad, tmp_path: Path) -> None:
    await squad.deploy(Scribe)
    ledger = tmp_path / "ledger"
    ledger.touch()
    asking = []
    for number in range(TASKS):
        for each in range(CONVERSATIONS):
            content = {"ledger": str(ledger), "number": number, "nap_s": random.uniform(0.05, 0.2)}
            handle = await squad.submit("scribe.write", content, conversation_id=f"c{each}", within_s=90)
            asking.append(asyncio.create_task(handle.outcome()))

    async def at_work_when_a_third_is_done() -> int:
        is_done = _read(ledger).count("end ") >= CONVERSATIONS * TASKS // 3
        return _running(ledger) if is_done else 0

    victim = await until(at_work_when_a_third_is_done, every_s=0.01)
    os.kill(victim, signal.SIGKILL)
    outcomes = await asyncio.gather(*asking)

    assert [outcome.kind for outcome in outcomes] == ["result"] * (CONVERSATIONS * TASKS)
    assert max(outcome.attempt for outcome in outcomes) == 2
    _check(_read(ledger), victim)


def _read(ledger: Path) -> str:
    return ledger.read_text()


def _running(ledger: Path) -> int:
    """The replica that began the latest of the tasks under way; 0 if none is."""
    open_tasks: dict[str, int] = {}
    for step, conversation, _, pid in map(str.split, _read(ledger).splitlines()):
        if step == "start":
            open_tasks[conversation] = int(pid)
        else:
            open_tasks.pop(conversation, None)
    return [0, *open_tasks.values()][-1]


def _check(text: str, victim: int) -> None:
    inside: dict[str, tuple[int, int]] = {}
    last: dict[str, tuple[int, int]] = {}
    ended: dict[str, list[int]] = {}
    most = 0
    for step, conversation, number, pid in map(str.split, text.splitlines()):
        if step == "start":
            left = inside.get(conversation)
            # What the killed replica began, another begins anew; nothing else may begin meanwhile.
            assert left in (None, (int(number), victim)), f"{conversation}: two at once"
            inside[conversation] = int(number), int(pid)
        else:
            assert inside.pop(conversation) == (int(number), int(pid))
            # Killed just after this line, before the outcome was stored: another does it again.
            if last.get(conversation) != (int(number), victim):
                ended.setdefault(conversation, []).append(int(number))
            last[conversation] = int(number), int(pid)
        most = max(most, len(inside))
    assert ended == {f"c{each}": list(range(TASKS)) for each in range(CONVERSATIONS)}
    assert most >= 3, "conversations wait for each other"

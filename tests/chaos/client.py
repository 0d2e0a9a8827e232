"""A client that may be killed at any instant: `python -m tests.chaos.client FOLDER`.

What it sent and what it heard stands in its ledger; the next one takes up the tasks that have no outcome there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from squadron import Squad
from squadron.runtime.asking.handle import Handle
from squadron.runtime.errors import SquadronError
from tests.chaos.ledger import Ledger, read

#: How long it tries to reach the environment, in seconds: everything may have been killed.
CONNECT_WITHIN_S = 30.0


@dataclass(frozen=True)
class Plan:
    """What a client is to do; travels as a file.

    It keeps `in_flight` tasks under way until it is told to stop or has sent `count`. Each works for
    `least_s` to `most_s` seconds.
    """

    seed: int = 0
    in_flight: int = 1000
    count: int | None = None
    least_s: float = 0.005
    most_s: float = 4.0
    within_s: float = 120.0
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def task_id(self, number: int) -> str:
        """The id of the nth task: who sends it again sends the same task."""
        return f"{self.run}-{number}"

    def content(self, number: int, folder: Path) -> dict[str, Any]:
        """The input of the nth task."""
        work_s = random.Random(f"{self.seed} {number}").uniform(self.least_s, self.most_s)
        return {"number": number, "work_s": round(work_s, 4), "ledger": str(folder / "handlers")}

    def store(self, folder: Path) -> None:
        """Leave it for the client."""
        (folder / "plan").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """What `store` left."""
        return cls(**json.loads((folder / "plan").read_text()))


class Client:
    """One life of the client."""

    def __init__(self, squad: Squad, folder: Path) -> None:
        self._squad, self._folder, self._plan = squad, folder, Plan.load(folder)
        lines = read(folder / "client")
        self._sent = {line["number"] for line in lines if line["what"] == "sent"}
        self._tickets = {line["number"]: line["ticket"] for line in lines if line["what"] == "ticket"}
        self._ended = {line["number"] for line in lines if line["what"] == "outcome"}
        self._log = Ledger(folder / "client")

    async def run(self) -> None:
        """Take up what was sent, send more until told to stop, and hear the outcome of each."""
        window = asyncio.Semaphore(self._plan.in_flight)
        self._log.write("began", ended=len(self._ended), resumed=len(self._sent - self._ended))
        async with asyncio.TaskGroup() as group:
            for number in self._numbers():
                await window.acquire()
                if number not in self._sent and self._is_stopped(number):
                    break
                group.create_task(self._see_through(number, window))
        self._log.write("done")

    def _numbers(self) -> Iterator[int]:
        yield from sorted(self._sent - self._ended)
        yield from itertools.count(max(self._sent, default=-1) + 1)

    def _is_stopped(self, number: int) -> bool:
        return number == self._plan.count or (self._folder / "stop").exists()

    async def _see_through(self, number: int, window: asyncio.Semaphore) -> None:
        handle = await self._handle(number)
        outcome = await handle.outcome()
        self._log.write(
            "outcome",
            number=number,
            kind=outcome.kind,
            data=getattr(outcome, "data", None),
            attempt=outcome.attempt,
            source=outcome.source,
            reason=outcome.reason,
        )
        window.release()

    async def _handle(self, number: int) -> Handle:
        if number in self._tickets:
            return self._squad.resume(self._tickets[number])
        if number not in self._sent:
            self._log.write("sent", number=number)
        plan = self._plan
        handle = await self._squad.submit(
            "chaos.square",
            plan.content(number, self._folder),
            within_s=plan.within_s,
            task_id=plan.task_id(number),
        )
        self._log.write("ticket", number=number, ticket=handle.ticket)
        return handle


async def connected() -> Squad:
    """A squad, as soon as the environment can be reached."""
    give_up_at = time.monotonic() + CONNECT_WITHIN_S
    while True:
        try:
            return await Squad.connect()
        except SquadronError:
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(0.1)


async def main(folder: Path) -> None:
    """Live until all is done."""
    squad = await connected()
    await Client(squad, folder).run()
    await squad.aclose()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

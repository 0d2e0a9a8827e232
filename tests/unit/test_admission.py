"""Room in bounded mailboxes, as one publisher counts it."""

from __future__ import annotations

from typing import Any, cast

from squadron.runtime.asking.admission import Admission
from squadron.runtime.ports.queue import Backlog, Queue
from squadron.runtime.wire.topics import SemanticTopic

TOPIC = SemanticTopic(name="bench.work", description="", mailbox="bench", mailbox_limit=6, when_full="reject")


class Still:
    """No time passes."""

    def time(self) -> float:
        return 0.0


class Slow:
    """A queue that shows nothing of what is put until it is told."""

    def __init__(self) -> None:
        self.shown = 0

    async def backlog(self, name: str) -> Backlog:
        return Backlog(waiting=self.shown)


async def test_what_a_look_can_not_see_yet_takes_up_room() -> None:
    queue = Slow()
    admission = Admission(cast("Queue", cast("Any", queue)), Still())

    assert [await admission.enter(TOPIC, str(i), within_s=1) for i in range(8)] == [True] * 6 + [False] * 2

    for i in range(6):
        admission.entered(str(i))
    queue.shown = 6
    assert not await admission.enter(TOPIC, "9", within_s=1)
    queue.shown = 5
    assert await admission.enter(TOPIC, "10", within_s=1)

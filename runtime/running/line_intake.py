"""The intake of an ordered mailbox: what comes is put in line, side by side but for those of one conversation."""

from __future__ import annotations

import asyncio
from collections import deque

from pydantic_core import from_json

from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError, SquadClosedError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.queue import SERIAL_AT_ONCE, Delivery, Feed
from squadron.runtime.retries import traceback_of
from squadron.runtime.running.waiting_lines import WaitingLines
from squadron.runtime.wire.subjects import token_of

#: Pause before the mailbox is read anew after something could not be put in line, in seconds.
AGAIN_S = 0.25


def _read(delivery: Delivery) -> tuple[str, str]:
    """The tokens of a task's conversation and of its id; what nobody can read is alone in a conversation."""
    try:
        # Not as a whole envelope, which whoever runs it reads: that costs ten times as much, and here it is all
        # tasks of an agent.
        said = from_json(delivery.data, cache_strings="keys")
        id, conversation = said["id"], said["context"]["conversationId"]
        return token_of(conversation or id), token_of(id)
    except (ValueError, LookupError, TypeError):
        return str(delivery.seq), ""


class LineIntake:
    """Reads a serial mailbox and puts each task in the line of its conversation.

    Of one conversation each is in line before the next is put; those of others don't wait for it. If one can't be
    put, nothing that came behind it may overtake it. So all that is held is let go, and the mailbox is read anew,
    which gives out again what was not settled, in its order.

    Args:
        since: what was stored later, in seconds since the epoch, went no other way than this.
    """

    def __init__(self, lines: WaitingLines, since: float) -> None:
        self._lines, self._since = lines, since
        self._feed: Feed | None = None
        #: What has come and is not in line yet, by conversation, and who puts it there.
        self._held: dict[str, deque[tuple[Delivery, str]]] = {}
        self._putting: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._log = get_logger("squadron.ordered").bind(mailbox=lines.mailbox.name)

    async def open(self) -> None:
        """Begin to read."""
        await self._open()
        self._watch = spawn(self._read_anew(), f"intake {self._lines.mailbox.name}", lasting=True)

    async def _open(self) -> None:
        self._lost.clear()
        self._feed = await self._lines.intake.consume(self._lines.mailbox, self._came)
        self._feed.want(SERIAL_AT_ONCE)

    def _came(self, delivery: Delivery) -> None:
        if self._lost.is_set():
            return
        conversation, id = _read(delivery)
        if (held := self._held.get(conversation)) is not None:
            return held.append((delivery, id))
        held = self._held[conversation] = deque([(delivery, id)])
        task = spawn(self._put(conversation, held), f"intake of {conversation}")
        self._putting.add(task)
        task.add_done_callback(self._putting.discard)

    async def _put(self, conversation: str, held: deque[tuple[Delivery, str]]) -> None:
        try:
            while held and not self._lost.is_set():
                joined = [
                    await self._join(delivery, conversation, id, behind=at > 0)
                    for at, (delivery, id) in enumerate([*held])
                ]
                if not all(joined):
                    await self._lines.call(conversation)
                for stands in joined:
                    if stands is not None:
                        await held[0][0].lease.settle()
                    held.popleft()
                if self._feed is not None:
                    self._feed.want(len(joined))
        except (BusUnavailableError, SquadClosedError) as error:
            # What was held is delivered again when its lease ends.
            self._log.warning("ordered.later", error=str(error))
            self._lost.set()
        except Exception as error:
            self._log.error("ordered.broke", traceback=traceback_of(error))
            self._lost.set()
        finally:
            del self._held[conversation]

    async def _join(self, delivery: Delivery, conversation: str, id: str, *, behind: bool) -> bool | None:
        """As `WaitingLines.join`; None of what can't stand there, which stays where it is and holds up nobody."""
        fresh = delivery.lease.first and delivery.stored_at > self._since
        try:
            return await self._lines.join(delivery, conversation, id, fresh=fresh, behind=behind)
        except MessageTooLargeError as error:
            self._log.error("ordered.passed_over", subject=delivery.subject, task=id, error=str(error))
            return None

    async def _read_anew(self) -> None:
        while True:
            await self._lost.wait()
            await self._close()
            await asyncio.sleep(AGAIN_S)
            try:
                await self._open()
            except SquadClosedError:
                return
            except BusUnavailableError:
                self._lost.set()

    async def _close(self) -> None:
        if self._feed is not None:
            await self._feed.aclose()
            self._feed = None
        if self._putting:
            await asyncio.wait(self._putting)

    async def aclose(self) -> None:
        """Take nothing new; what was taken is put in line. May be called twice."""
        if self._watch is not None:
            await cancel_all([self._watch])
        await self._close()

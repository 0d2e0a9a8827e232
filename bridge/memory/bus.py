"""`UnreliableBus` in memory."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from squadron.bridge.memory.common import check_size
from squadron.bridge.memory.line import Line
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.wire.subjects import subject_matches


@dataclass(frozen=True, slots=True)
class Headed:
    """What a message in memory came with."""

    headers: Mapping[str, str]


class MemoryBus:
    """`UnreliableBus` in one process."""

    def __init__(self, line: Line | None = None) -> None:
        self._line = line or Line()
        self._subscriptions: list[_MemorySubscription] = []
        self._turns = itertools.count(1)

    def over(self, line: Line) -> Self:
        """The same, as one process sees it over its own line."""
        view = copy.copy(self)
        view._line = line
        return view

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
        signed: bool = True,
    ) -> None:
        check_size(data)
        if signed:
            self._line.send(lambda: self.deliver(self._note(subject, data, reply, headers)))
        else:
            self._line.send(lambda: self.deliver(Note(subject, data, reply, Headed(dict(headers or {})))))

    def _note(self, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None) -> Note:
        return Note(subject, data, reply, Headed(self._line.headers(subject, data, headers)))

    def deliver(self, note: Note) -> int:
        """Hand a note to all who listen; returns how many heard it."""
        heard = [s for s in self._subscriptions if s.line.up and subject_matches(s.pattern, note.subject)]
        groups: dict[str, list[_MemorySubscription]] = {}
        for subscription in heard:
            groups.setdefault(subscription.group or str(id(subscription)), []).append(subscription)
        turn = next(self._turns)
        loop = asyncio.get_running_loop()
        for members in groups.values():
            loop.call_soon(members[turn % len(members)].hear, note)
        return len(groups)

    async def subscribe(self, pattern: str, sink: Callable[[Note], None], *, group: str = "") -> Subscription:
        await self._line.answer()
        subscription = _MemorySubscription(self._subscriptions, self._line, pattern, sink, group)
        self._subscriptions.append(subscription)
        return subscription

    async def request(
        self, subject: str, data: bytes, *, within_s: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        return (await self.exchange(subject, data, within_s=within_s, headers=headers)).data

    async def exchange(
        self, subject: str, data: bytes, *, within_s: float, headers: Mapping[str, str] | None = None
    ) -> Note:
        answer: asyncio.Future[Note | None] = asyncio.get_running_loop().create_future()
        inbox = f"_INBOX.{id(answer)}"

        def hear(note: Note | None) -> None:
            if not answer.done():
                answer.set_result(note)

        listening = await self.subscribe(inbox, hear)
        lost = partial(hear, None)
        self._line.on_cut(lost)
        try:
            if not self.deliver(self._note(subject, data, inbox, headers)):
                raise BusUnavailableError(f"nobody listens on {subject}")
            async with asyncio.timeout(within_s):
                if (answered := await answer) is None:
                    raise BusUnavailableError(f"no answer on {subject}: the connection was lost meanwhile")
                return answered
        except TimeoutError:
            raise BusUnavailableError(f"no answer on {subject} within {within_s:g} s") from None
        finally:
            self._line.off_cut(lost)
            await listening.aclose()

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        self._line.on_heal(sink)


class _MemorySubscription:
    def __init__(
        self,
        among: list[_MemorySubscription],
        line: Line,
        pattern: str,
        sink: Callable[[Note], object],
        group: str,
    ) -> None:
        self._among, self.line, self.pattern, self._sink, self.group = among, line, pattern, sink, group

    def hear(self, note: Note) -> None:
        if self.line.up and self in self._among:
            self._sink(note)

    async def aclose(self) -> None:
        if self in self._among:
            self._among.remove(self)

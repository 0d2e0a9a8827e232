"""Lite topics as they are told live: one subscription for each owner, for outcomes and for who reads streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.lite_journal import LiteJournal
from squadron.runtime.wire.subjects import LiteSubject, Subjects


@dataclass(eq=False, slots=True)
class _Listener:
    """Who reads one lite topic over the subscription of its owner."""

    sink: Callable[[Entry], None]
    lost: Callable[[], None] | None
    close: Callable[[_Listener], None]

    async def aclose(self) -> None:
        self.close(self)


class Hearing:
    """What is stored on the lite topics of some owners, each entry once: to a second subscription it came twice.

    Args:
        sink: is told of every entry.
    """

    def __init__(self, lite: LiteJournal, subjects: Subjects, sink: Callable[[Entry], None]) -> None:
        self._lite, self._subjects, self._sink = lite, subjects, sink
        self._subscriptions: dict[str, asyncio.Future[Subscription]] = {}
        #: Owners that nobody waits for any more, but whose lite topics are still read.
        self._unwanted: set[str] = set()
        #: By lite topic.
        self._readers: dict[str, list[_Listener]] = {}
        #: Subscriptions that are being ended.
        self._ending: set[asyncio.Task[None]] = set()

    async def hear(self, owner: str) -> None:
        """Hear the lite topics of an owner, from now on at the latest; again is fine.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        self._unwanted.discard(owner)
        subscribing = self._subscriptions.get(owner)
        if subscribing is None:
            pattern = self._subjects.lite_of(owner)
            following = self._lite.follow(pattern, self._tell, lost=self._lost)
            subscribing = self._subscriptions[owner] = asyncio.ensure_future(following)
            subscribing.add_done_callback(partial(self._subscribed, owner))
        await asyncio.shield(subscribing)

    def hears(self, owner: str) -> bool:
        """Whether the lite topics of an owner are heard already, so that there is nothing to wait for."""
        subscribing = self._subscriptions.get(owner)
        if subscribing is None or not subscribing.done() or owner in self._unwanted:
            return False
        return not subscribing.cancelled() and subscribing.exception() is None

    def _subscribed(self, owner: str, subscribing: asyncio.Future[Subscription]) -> None:
        """What failed is tried anew by whoever hears next, be it that nobody waited for it any more."""
        failed = subscribing.cancelled() or subscribing.exception() is not None
        if failed and self._subscriptions.get(owner) is subscribing:
            del self._subscriptions[owner]

    async def follow(
        self, key: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        """As `Journal.follow` of one lite topic; where its owner is heard already, the server tells it once."""
        owner = LiteSubject.parse(key).owner
        if owner not in self._subscriptions:
            return await self._lite.follow(key, sink, lost=lost)

        def close(reader: _Listener) -> None:
            with contextlib.suppress(KeyError, ValueError):
                self._readers[key].remove(reader)
                if not self._readers[key]:
                    del self._readers[key]
            if owner in self._unwanted:
                self.forget(owner)

        reader = _Listener(sink, lost, close)
        # Before it waits: as long as there is a reader the subscription stays.
        self._readers.setdefault(key, []).append(reader)
        try:
            await asyncio.shield(self._subscriptions[owner])
        except BaseException:
            await reader.aclose()
            raise
        return reader

    def _tell(self, entry: Entry) -> None:
        for reader in self._readers.get(entry.key, ()):
            reader.sink(entry)
        self._sink(entry)

    def _lost(self) -> None:
        for readers in self._readers.values():
            for reader in readers:
                if reader.lost is not None:
                    reader.lost()

    def forget(self, owner: str) -> None:
        """Nobody waits for this owner any more; does not wait for a server that is away.

        As long as somebody reads one of its lite topics it is heard all the same.
        """
        if any(LiteSubject.parse(key).owner == owner for key in self._readers):
            self._unwanted.add(owner)
            return
        self._unwanted.discard(owner)
        if subscribing := self._subscriptions.pop(owner, None):
            ending = spawn(_end(subscribing), f"forget {owner}")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        """Hear nothing more; who still reads is told by the connection, when that is closed."""
        for ending in self._ending:
            # With the connection all of them end.
            ending.cancel()
        if self._readers:
            return
        for each in list(self._subscriptions.values()):
            if each.done() and not each.cancelled() and each.exception() is None:
                await each.result().aclose()


async def _end(subscribing: Awaitable[Subscription]) -> None:
    with contextlib.suppress(BusUnavailableError):
        await (await subscribing).aclose()

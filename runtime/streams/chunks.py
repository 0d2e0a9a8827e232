"""Reading a stream: chunks by number, without a gap, of the newest epoch only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    ClaimLostError,
    InvalidMessageError,
    InvalidSubjectError,
    MessageTooLargeError,
    StreamGapError,
)
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.store.claims import Claims
from squadron.runtime.streams.trail import Follow, Trail
from squadron.runtime.streams.writer import AGAIN_S, WINDOW, Chunk, Nested, Restarted, epoch_of
from squadron.runtime.wire.envelope import redriven_in
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.subjects import LiteSubject

#: Chunks of nested tasks that wait for a reader; their readers wait with more.
MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class Child:
    """A task that was asked meanwhile, and whose chunks are wanted as well."""

    task_id: str
    topic: str
    lite_topic: str


Event = Chunk | Restarted | Child


class Order:
    """Puts the chunks of one stream in order: those of an epoch by number, and none of an older epoch.

    Attributes:
        epoch: the newest that was seen; 0 before the first.
        next: the number that is handed out next; all before it were.
        final: whether the final message of the epoch was reached.
    """

    def __init__(self) -> None:
        self.epoch, self.next, self.final = 0, 0, False
        #: Whether the producer is one that ends each stream with a final message.
        self.counts = False
        self._attempt, self._run = 0, ""
        #: Messages whose turn has not come, by number, and the number of the final one, if it is among them.
        self._early: dict[int, Mapping[str, Any]] = {}
        self._last = -1

    def take(self, payload: Mapping[str, Any]) -> list[Event]:
        """What is to be handed out now that this came."""
        number, attempt = payload.get("sequenceNumber", -1), payload.get("attempt", 1)
        epoch, run = payload.get("epoch", attempt), payload.get("run", "")
        if not (type(number) is type(attempt) is type(epoch) is int and isinstance(run, str)):
            # Of a foreign producer, who knows no numbers of ours.
            number, attempt, epoch, run = -1, self._attempt or 1, self.epoch or 1, self._run
        first, events = payload.get("isFirst") is True, list[Event]()
        if epoch > self.epoch or (epoch == self.epoch and run != self._run and first):
            if self.epoch:
                events.append(Restarted(attempt, epoch))
            # A foreign producer may count from 1.
            self._begin(attempt, epoch, run, number if first or "epoch" not in payload else 0)
        elif epoch < self.epoch or run != self._run:
            return events
        self.counts = self.counts or "epoch" in payload
        if number < 0:
            return [*events, *self._read(payload, number)]
        if number < self.next or number in self._early:
            return events
        if payload.get("isFinal") is True:
            self._last = number
        if number == self.next and not self._early:
            # As nearly all come.
            self.next += 1
            return [*events, *self._read(payload, number)]
        self._early[number] = payload
        while (ready := self._early.pop(self.next, None)) is not None:
            self.next += 1
            events += self._read(ready, self.next - 1)
        return events

    def _begin(self, attempt: int, epoch: int, run: str, number: int) -> None:
        self.epoch, self._attempt, self._run = epoch, attempt, run
        self.next, self.final, self._last = max(0, number), False, -1
        self._early.clear()

    def _read(self, payload: Mapping[str, Any], number: int) -> list[Event]:
        self.final = self.final or payload.get("isFinal") is True
        if "chunk" in payload:
            return [Chunk(payload["chunk"], number, self._attempt, self.epoch)]
        with contextlib.suppress(TypeError, LookupError, InvalidSubjectError):
            child = payload["child"]
            return [Child(str(child["taskId"]), str(child["topic"]), str(LiteSubject.parse(child["liteTopic"])))]
        return []

    @property
    def is_whole(self) -> bool:
        """Whether nothing came early, so that nothing is missing."""
        return not self._early

    @property
    def missing(self) -> range:
        """The numbers that are left out before the first that came early; empty if none came early."""
        return range(self.next, min(self._early, default=self.next))

    @property
    def lost(self) -> bool:
        """Whether what is missing is lost, unless it is in the store: its producer is past it."""
        # The final message is sent when all is acknowledged, any other when all is that is WINDOW before it.
        return self._last > self.next or max(self._early, default=0) - self.next >= WINDOW


class StreamReader:
    """Reads one stream from its start to the result that ends it.

    Args:
        live: whether to wait for what is not stored yet.
        until: when to stop waiting.
        is_end: whether a message of type result is the task's own outcome.
        counts: whether an entry is by who may write it; all are, by default.
        sealed: chunks that anybody can read are none of its.
        follow: see `Trail`.
    """

    def __init__(
        self,
        lite: Journal,
        claims: Claims,
        key: str,
        *,
        live: bool = True,
        until: Deadline | None = None,
        is_end: Callable[[Entry], bool] = lambda _: True,
        counts: Callable[[Entry], Awaitable[bool]] | None = None,
        sealed: bool = False,
        follow: Follow | None = None,
    ) -> None:
        self._counts, self._sealed = counts, sealed
        self._lite, self._claims, self._key, self._until, self._is_end = lite, claims, key, until, is_end
        self._trail = Trail(lite, key, live=live, until=until, follow=follow)
        self._order = Order()
        #: All before this sequence was handed out; what is missing is looked for from here on.
        self._complete_to = 0

    def wind_up(self) -> None:
        """End with what is stored now."""
        self._trail.wind_up()

    async def read_alone(self, entry: Entry) -> dict[str, Any] | None:
        """What one entry says, whatever comes before it; None if it is no chunk of this stream, or a claim."""
        raw = _read(entry.data)
        if raw is None or raw["type"] != "stream" or "claim" in raw["payload"]:
            return None
        if self._counts is not None and not await self._counts(entry):
            return None
        payload = await self._payload(raw, entry)
        return payload if payload is not None and "chunk" in payload else None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Chunks, restarts and children in order.

        Raises:
            StreamGapError: a chunk is neither heard nor stored, and will not come any more.
        """
        order = self._order
        async with aclosing(self._trail.entries()) as entries:
            async for entry in entries:
                raw = _read(entry.data)
                if raw is None or (self._counts is not None and not await self._counts(entry)):
                    continue
                if raw["type"] == "result":
                    if not self._is_end(entry):
                        continue
                    if "sealed" in raw["payload"] and (opened := await self._opened(entry)):
                        raw["payload"] = opened
                    async for event in self._rest(raw):
                        yield event
                    return
                payload = raw["payload"]
                if self._is_hidden(payload) and (payload := await self._payload(raw, entry)) is None:
                    continue
                for event in order.take(payload):
                    yield event
                if order.is_whole:
                    self._complete_to = entry.seq
                elif order.lost:
                    async for event in self._repaired():
                        yield event
                    if order.lost:
                        raise self._gap()

    async def _rest(self, result: dict[str, Any]) -> AsyncGenerator[Event, None]:
        """What is missing when the result is there."""
        order, epoch = self._order, _epoch_of_result(result)
        # Its producer stored a final message before it.
        no_final = order.counts and not order.final and epoch == order.epoch
        # If an older attempt came first after all, the newer one was not done, and has lost nothing.
        if no_final or (order.missing and epoch in (0, order.epoch)):
            async for event in self._repaired():
                yield event
            if order.missing or (no_final and not order.final):
                raise self._gap()

    async def _repaired(self) -> AsyncGenerator[Event, None]:
        """What the store has of what is missing."""
        async with aclosing(self._lite.read(self._key, from_seq=self._complete_to + 1)) as entries:
            async for entry in entries:
                raw = _read(entry.data)
                if raw is None or raw["type"] != "stream":
                    continue
                if self._counts is not None and not await self._counts(entry):
                    continue
                if (payload := await self._payload(raw, entry)) is not None:
                    for event in self._order.take(payload):
                        yield event

    def _gap(self) -> StreamGapError:
        order = self._order
        first, last = order.next, order.missing[-1] if order.missing else -1
        which = f"{first} to {last}" if last > first else f"{first}" if last == first else f"{first} and on"
        return StreamGapError(
            f"{self._key}: of epoch {order.epoch} the chunks {which} are lost",
            lite_topic=self._key,
            epoch=order.epoch,
            first=first,
            last=last,
            hint="its outcome may be there all the same",
        )

    async def _payload(self, raw: dict[str, Any], entry: Entry) -> dict[str, Any] | None:
        """The payload of a chunk; None if it can't be had, or is none of this stream."""
        payload: dict[str, Any] = raw["payload"]
        if "claim" in payload or "sealed" in payload:
            return await self._opened(entry)
        return None if self._sealed else payload

    def _is_hidden(self, payload: Mapping[str, Any]) -> bool:
        """Whether a payload does not count as it is."""
        return self._sealed or "claim" in payload or "sealed" in payload

    async def _opened(self, entry: Entry) -> dict[str, Any] | None:
        """The payload that is sealed, or waits in the vault; None if it can't be had."""
        while True:
            try:
                message = await self._claims.open(entry.data, self._key, got_at=entry.got_at)
            except (InvalidMessageError, ClaimLostError, MessageTooLargeError):
                return None
            except BusUnavailableError:
                if self._until is None or self._until.passed:
                    raise
                await asyncio.sleep(AGAIN_S)
            else:
                return message.payload.model_dump(by_alias=True, exclude_unset=True)


class Family:
    """Reads a stream, and those of the tasks that were asked meanwhile, as one.

    Args:
        read: makes the reader of a lite topic.
    """

    def __init__(self, read: Callable[[str], StreamReader]) -> None:
        self._read = read
        self._waiting: asyncio.Queue[Chunk | Restarted | Nested | Exception | None] = asyncio.Queue(MOST_WAITING)

    async def events(self, own: AsyncGenerator[Event, None]) -> AsyncGenerator[Chunk | Restarted | Nested, None]:
        """The stream's own events, and the chunks of all below it up to its end.

        Raises:
            StreamGapError: a chunk of one of them is lost.
        """
        following: asyncio.Task[None] | None = None
        try:
            async for event in own:
                if isinstance(event, Child):
                    # From here on there are several to wait for.
                    following = spawn(self._all(_chain(event, own)), "follow the children")
                    break
                yield event
            while following is not None and (item := await self._waiting.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            if following is not None:
                await cancel_all([following])
            await own.aclose()

    async def _all(self, events: AsyncGenerator[Event, None]) -> None:
        await self._follow(events, (), "")
        await self._waiting.put(None)

    async def _follow(self, events: AsyncGenerator[Event, None], path: tuple[str, ...], topic: str) -> None:
        children: dict[str, tuple[StreamReader, asyncio.Task[None]]] = {}
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Child):
                        if event.lite_topic not in children:
                            children[event.lite_topic] = self._follow_child(event, path)
                        continue
                    if isinstance(event, Restarted):
                        # What the outdated attempt asked for is of no interest any more.
                        await cancel_all([task for _, task in children.values()])
                        children.clear()
                    if isinstance(event, Chunk) and path:
                        await self._waiting.put(Nested(path, topic, event))
                    elif not path:
                        await self._waiting.put(event)
            for reader, _ in children.values():
                reader.wind_up()
            await asyncio.gather(*(task for _, task in children.values()))
        except Exception as error:
            await self._waiting.put(error)
        finally:
            await cancel_all([task for _, task in children.values()])

    def _follow_child(self, child: Child, path: tuple[str, ...]) -> tuple[StreamReader, asyncio.Task[None]]:
        reader = self._read(child.lite_topic)
        following = self._follow(reader.events(), (*path, child.task_id), child.topic)
        return reader, spawn(following, f"follow {child.task_id}")


async def _chain(first: Event, others: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    yield first
    async for event in others:
        yield event


def _read(data: bytes) -> dict[str, Any] | None:
    """A stream or result message; None if it is neither."""
    # Not as an `AgentMessage`: that costs five times as much, and nothing else of it is looked at.
    with contextlib.suppress(ValueError, TypeError, LookupError):
        raw: dict[str, Any] = from_json(data, cache_strings="keys")
        if raw["type"] in ("stream", "result") and isinstance(raw["payload"], dict):
            return raw
    return None


def _epoch_of_result(raw: dict[str, Any]) -> int:
    """The epoch of the attempt that ended well; 0 if it is not told."""
    with contextlib.suppress(TypeError, LookupError, AttributeError):
        content = raw["payload"]["content"]
        if content["success"] is True:
            return epoch_of(redriven_in(raw.get("metadata")), content["attempt"])
    return 0

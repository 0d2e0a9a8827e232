"""Lite topics: subjects that exist from their first publish and end by themselves. See ADR 0013."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import PydanticSerializationError

from squadron.runtime.background import spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    FencedError,
    InvalidInputError,
    SquadClosedError,
    StorageFullError,
)
from squadron.runtime.lite.believed import TakeEntry, taken_by
from squadron.runtime.lite.exclusive import ExclusiveCursor, cursor_key
from squadron.runtime.lite.quotas import IN_ALL, PER_OWNER, Quotas
from squadron.runtime.ports.journal import Headers
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.store.operating import operating
from squadron.runtime.store.port_set import Ports
from squadron.runtime.telemetry.storing import told_when_stored
from squadron.runtime.texts import encoded
from squadron.runtime.trust.sealing import SealKey
from squadron.runtime.wire.start import LiteStart, check_lite_start
from squadron.runtime.wire.subjects import check_token, life_of, token_of

if TYPE_CHECKING:
    from squadron.runtime.lite.feed import LiteFeed
    from squadron.runtime.lite.reader import LiteReader

#: Idle life of a topic that was given none, in seconds: a day. The longest is that of the stream's entries.
DEFAULT_TTL_S, LONGEST_TTL_S = 24 * 3600.0, 30 * 24 * 3600.0
#: A life is renewed at most so often, in seconds, and ends so much later than it was asked to.
RENEW_S = 1.0
#: How often, once in `RENEW_S`, a full server is asked to store that a topic was closed: for an hour.
MARK_TRIES = 3600
#: How long an end marker is kept for readers who come late, in seconds: a day.
END_KEPT_S = 24 * 3600.0
#: How often `close` tries to be right behind the last message, while others go on to publish.
CLOSE_TRIES = 10


@dataclass(slots=True)
class _Life:
    ttl_s: float
    renewed_at: float
    #: It will be looked whether the topic still has it.
    to_check: bool = False


class LiteTopics:
    """The lite topics as one process uses them: renews their lives, keeps the quotas."""

    def __init__(self, ports: Ports, *, per_owner: int = PER_OWNER, in_all: int = IN_ALL) -> None:
        self._ports = ports
        self.identity, self.lite, self.clock = ports.identity, ports.lite, ports.clock
        self._subjects, self._observers = ports.subjects, ports.observers
        self._quotas = Quotas(ports.lite, ports.subjects, ports.clock, per_owner=per_owner, in_all=in_all)
        #: Of the topics that were published on from here.
        self._lives: dict[str, _Life] = {}
        self._prune_at = 1024
        self._background: set[asyncio.Task[None]] = set()

    def topic(
        self,
        id: str | None = None,
        owner: str | None = None,
        *,
        ttl_s: float | timedelta | None = None,
        readers: tuple[SealKey, ...] = (),
    ) -> LiteTopic:
        """The lite topic `id` of `owner`; nothing happens on the wire.

        Args:
            id: a token; a fresh one by default.
            owner: a token; this process's own by default.
            ttl_s: its life after each use, from 1 second to 30 days, in seconds or as a timedelta; by default the
                one it has, or a day.
            readers: for whom what is published there is sealed; by default anybody reads it.

        Raises:
            InvalidSubjectError: `id` or `owner` is not a token.
            InvalidInputError: `ttl_s` is not a time, or out of its range.
        """
        ttl_s = _check_ttl(ttl_s)
        owner = token_of(self.identity.id) if owner is None else owner
        id = os.urandom(16).hex() if id is None else id
        return LiteTopic(self, self._subjects.lite(owner, id), owner, id, ttl_s, readers)

    @property
    def taken(self) -> TakeEntry:
        """How a message is taken; see `taken_by`."""
        return partial(taken_by, self._ports)

    def follow(self, owner: str | None = None) -> LiteFeed:
        """Many lite topics of one owner over one subscription; enter it with `async with`.

        Args:
            owner: a token; this process's own by default.

        Raises:
            InvalidSubjectError: `owner` is not a token.
        """
        from squadron.runtime.lite.feed import LiteFeed

        owner = token_of(self.identity.id) if owner is None else check_token(owner, "owner")
        used: Callable[[str], None] = lambda id: self.touch(self.topic(id, owner))  # noqa: E731
        return LiteFeed(self.lite, self._subjects, owner, self.clock, used, self.taken)

    async def take(self, topic: LiteTopic, name: str) -> ExclusiveCursor:
        """Become the only reader `name` of a topic."""
        place = cursor_key(self._subjects, topic.key, name)
        return await ExclusiveCursor.take(self.lite, place, f"{name!r} of {topic.owner}/{topic.id}")

    async def packed(self, topic: LiteTopic, content: Any) -> bytes:
        """A message of a topic as it can travel; see `LiteTopic.publish`."""
        if isinstance(content, bytes):
            if topic.readers:
                hint = "publish a JSON value; or, if they tell nothing of the task, on ctx.lite(…, readable=True)"
                raise InvalidInputError("bytes are not sealed, and this task is", field="content", hint=hint)
            return content
        payload = {"content": content}
        if not topic.readers:
            return self._ports.pack("event", payload)
        return await self._ports.pack_for(topic.readers, topic.key, "event", payload, keep_s=LONGEST_TTL_S)

    async def publish(self, topic: LiteTopic, data: bytes, msg_id: str | None) -> int:
        """Store one message and see that its topic lives on; see `LiteTopic.publish`."""
        if not self._observers.on:
            return await self._publish(topic, data, msg_id, None)
        from squadron.runtime.telemetry.happenings import MessagePut

        put = MessagePut(
            kind="lite", id=os.urandom(16).hex(), topic=topic.key, conversation_id="", bytes=len(data)
        )
        self._observers.tell(put)
        storing = self._publish(topic, data, msg_id, put.headers)
        return await told_when_stored(self._observers, put.id, storing)

    async def _publish(self, topic: LiteTopic, data: bytes, msg_id: str | None, headers: Headers | None) -> int:
        if not self._due(topic):
            self._check_later(topic.key)
            return await self.lite.append(topic.key, data, msg_id=msg_id, headers=headers)
        life = self._lives.get(topic.key)
        if life is not None and self.clock.time() < life.renewed_at + life.ttl_s:
            return await self._store(topic, data, msg_id, topic.ttl_s or life.ttl_s, headers)
        # With room for one more it need not be known whether it is new: one too many counts until the next count.
        is_clear = topic.ttl_s is not None and self._quotas.has_room(topic.owner)
        if not is_clear and (order := await self.lite.last(life_of(topic.key))) is not None:
            return await self._store(topic, data, msg_id, topic.ttl_s or _ttl_in(order.data), headers)
        with await self._quotas.room(topic.owner):
            return await self._store(topic, data, msg_id, topic.ttl_s or DEFAULT_TTL_S, headers)

    def _due(self, topic: LiteTopic) -> bool:
        life = self._lives.get(topic.key)
        if life is None or topic.ttl_s not in (None, life.ttl_s):
            return True
        return self.clock.time() >= life.renewed_at + RENEW_S

    async def _store(
        self, topic: LiteTopic, data: bytes, msg_id: str | None, ttl_s: float, headers: Headers | None
    ) -> int:
        life = self._remember(topic.key, ttl_s)
        try:
            order, at = self._order(ttl_s)
            ids: dict[str, Any] = {"msg_id": msg_id, "headers": headers}
            return await self.lite.append_and_end(topic.key, data, order, at=at, keep_s=END_KEPT_S, **ids)
        except BaseException:
            if self._lives.get(topic.key) is life:
                del self._lives[topic.key]
            raise

    async def _order_end(self, key: str, ttl_s: float, expect_seq: int | None = None) -> None:
        order, at = self._order(ttl_s)
        await self.lite.end_at(key, order, at=at, keep_s=END_KEPT_S, expect_seq=expect_seq)

    def _order(self, ttl_s: float) -> tuple[bytes, float]:
        return encoded({"end": "expired", "ttlS": ttl_s}), self.clock.time() + ttl_s + RENEW_S

    def _remember(self, key: str, ttl_s: float) -> _Life:
        now = self.clock.time()
        life = self._lives[key] = _Life(ttl_s, now)
        if len(self._lives) > self._prune_at:
            self._lives = {each: of for each, of in self._lives.items() if of.renewed_at + of.ttl_s > now}
            self._prune_at = max(1024, 2 * len(self._lives))
        return life

    def _check_later(self, key: str) -> None:
        """A message goes out without an order: somebody may have closed the topic right before."""
        life = self._lives[key]
        if not life.to_check:
            life.to_check = True
            asyncio.get_running_loop().call_later(RENEW_S, self._check, key, life)

    def _check(self, key: str, life: _Life) -> None:
        # Another life came with an order of its own.
        if self._lives.get(key, life) is life:
            self._in_background(self._give_life(key, life.ttl_s))

    async def _give_life(self, key: str, ttl_s: float) -> None:
        with contextlib.suppress(BusUnavailableError, SquadClosedError, FencedError):
            if await self.lite.last(life_of(key)) is None:
                last = await self.lite.last(key)
                if last is not None and END_HEADER not in last.headers:
                    await self._order_end(key, ttl_s, expect_seq=0)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = spawn(work, "lite topics")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def touch(self, topic: LiteTopic) -> None:
        """The topic was read: one that has a life lives on. Works in the background, and may fail."""
        if self._due(topic):
            self._in_background(self._renew(topic))

    async def _renew(self, topic: LiteTopic) -> None:
        # Fenced: it was renewed, or ended, by somebody else meanwhile.
        with contextlib.suppress(BusUnavailableError, SquadClosedError, FencedError):
            order = await self.lite.last(life_of(topic.key))
            if order is not None:
                ttl_s = topic.ttl_s or _ttl_in(order.data)
                await self._order_end(topic.key, ttl_s, order.seq)
                self._remember(topic.key, ttl_s)

    async def close(self, topic: LiteTopic) -> None:
        """End the topic now; see `LiteTopic.close`."""
        async with operating(self._ports, "close", topic.key):
            await self._close(topic)

    async def _close(self, topic: LiteTopic) -> None:
        order = await self.lite.last(life_of(topic.key))
        await self._mark_end(topic.key)
        self._lives.pop(topic.key, None)
        if order is not None:
            # Not a newer one: somebody may have begun the topic anew already.
            await self.lite.erase(life_of(topic.key), through_seq=order.seq)

    async def _mark_end(self, key: str) -> None:
        for tries_left in reversed(range(CLOSE_TRIES)):
            last = await self.lite.last(key)
            if last is not None and END_HEADER in last.headers:
                return
            seq = 0 if last is None else last.seq
            end: dict[str, Any] = {"end": "closed"}
            try:
                if tries_left:
                    # With the last message's place, a reader who comes late knows whether it has read all.
                    await self.lite.end(key, encoded(end | {"last": seq}), keep_s=END_KEPT_S, expect_seq=seq)
                else:
                    await self.lite.end(key, encoded(end), keep_s=END_KEPT_S)
            except FencedError:
                continue
            except StorageFullError:
                # Its messages are gone all the same; who reads it is told as soon as there is room for that.
                self._in_background(self._mark_later(key, encoded(end | {"last": seq})))
            return

    async def _mark_later(self, key: str, end: bytes) -> None:
        # Fenced: somebody began the topic anew.
        with contextlib.suppress(FencedError):
            for _ in range(MARK_TRIES):
                await asyncio.sleep(RENEW_S)
                with contextlib.suppress(BusUnavailableError):
                    await self.lite.end(key, end, keep_s=END_KEPT_S, expect_seq=0)
                    return


class LiteTopic:
    """One lite topic, as this process uses it; made by `squad.lite` and `Context.lite`.

    It is there from its first message on, and ends when it was not used for its life, or is closed. All its
    messages end with it; the next publish begins a new topic under the same name.

    Attributes:
        key: its subject.
        owner, id: the last two tokens of it.
        ttl_s: how long it lives after each use, in seconds; None is what it has, or a day.
        readers: for whom what is published here is sealed; nobody: anybody reads it.
    """

    def __init__(
        self,
        topics: LiteTopics,
        key: str,
        owner: str,
        id: str,
        ttl_s: float | None,
        readers: tuple[SealKey, ...] = (),
    ) -> None:
        self.key, self.owner, self.id, self.ttl_s = key, owner, id, ttl_s
        self._topics, self.readers = topics, readers

    def __repr__(self) -> str:
        return f"LiteTopic({self.key})"

    async def publish(self, content: Any, *, msg_id: str = "") -> int:
        """Store one message and return its sequence; it is stored when this returns.

        Args:
            content: any JSON value, sent as an `event` message; bytes are stored as they are, and not sealed.
            msg_id: any text; stored here once under it in two minutes, and a server that is away is waited for.

        Raises:
            InvalidInputError: `content` is not JSON, or bytes where it is to be sealed.
            QuotaExceededError: the topic would be new, and there are as many as allowed.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; the same `msg_id` again is safe.
        """
        try:
            data = await self._topics.packed(self, content)
        except PydanticSerializationError as error:
            hint = "publish a JSON value, or bytes"
            raise InvalidInputError(f"the content is not JSON: {error}", field="content", hint=hint) from None
        # The store knows ids of all topics together, and none that breaks a header.
        return await self._topics.publish(self, data, token_of(f"{self.key} {msg_id}") if msg_id else None)

    def read(self, start: LiteStart = "first", *, live: bool = True, exclusive: str | None = None) -> LiteReader:
        """The topic's messages in order, none lost and none twice; iterate over it with `async for`.

        Reading takes nothing away: each reader has its own place. After the loop `LiteReader.end` says whether the
        topic ended.

        Args:
            start: "first", "last" (the newest that is there), "new" (what comes), a sequence (that one and later:
                to go on, one more than the last one read), a time (an aware datetime, or a float of seconds since
                the epoch), or `Tail(n)`.
            live: wait for more, until the topic ends; else stop at what is there.
            exclusive: a name of 1 to 64 characters. Of all who read the topic under it only the one who came last
                is handed anything; the next message makes the others raise `FencedError`. It goes on where the one
                before was, whose last message may come twice; `start` counts for the first.

        Raises:
            InvalidInputError: `start` is not a place in a topic, or `exclusive` not a name.
        """
        from squadron.runtime.lite.reader import LiteReader, LiteReading

        if exclusive is not None and not (isinstance(exclusive, str) and 1 <= len(exclusive) <= 64):
            hint = "text of 1 to 64 characters"
            raise InvalidInputError(f"{exclusive!r} is not the name of a reader", field="exclusive", hint=hint)
        start, topics = check_lite_start(start), self._topics
        reading = LiteReading(
            topics.lite,
            self.key,
            start,
            live=live,
            clock=topics.clock,
            used=lambda: topics.touch(self),
            take=None if exclusive is None else lambda: topics.take(self, exclusive),
            taken=topics.taken,
        )
        return LiteReader(reading)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the topic now, with all its messages; who reads it is told. May be called twice.

        On a full server the messages go at once, and it is told when there is room, within the hour.

        Raises:
            BusUnavailableError: not acknowledged in time; closing it again is safe.
        """
        await self._topics.close(self)


def _check_ttl(ttl_s: float | timedelta | None) -> float | None:
    if ttl_s is None:
        return None
    given_s = ttl_s.total_seconds() if isinstance(ttl_s, timedelta) else ttl_s
    if isinstance(given_s, int | float) and not isinstance(given_s, bool) and 1 <= given_s <= LONGEST_TTL_S:
        return given_s
    hint = f"from 1 to {LONGEST_TTL_S:.0f} seconds, or a timedelta"
    raise InvalidInputError(f"a lite topic can't live for {ttl_s!r}", field="ttl_s", hint=hint)


def _ttl_in(order: bytes) -> float:
    """The idle life that an order to end a topic carries; anybody may have written it."""
    try:
        return min(max(1.0, float(json.loads(order)["ttlS"])), LONGEST_TTL_S)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return DEFAULT_TTL_S

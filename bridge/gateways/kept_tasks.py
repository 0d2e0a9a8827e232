"""Tasks that outlive the request which asked for them: whoever asked finds them again, through any process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from squadron.bridge.gateways.door_secret import DoorSecret
from squadron.bridge.gateways.telling_ids import TellingIds
from squadron.bridge.gateways.visitors import Visitor, behalf_of
from squadron.bridge.place import Place
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.background import to_its_end
from squadron.runtime.errors import InvalidMessageError, SquadronError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import LITE_TTL_S, Outcome, from_content
from squadron.runtime.wire.subjects import MAX_TOKEN

#: Ends the owner of the lite topics on which a visitor's tasks are noted, beside that of their outcomes.
_NOTED = "-noted"
#: How long it may take to cancel a task that could not be noted, in seconds.
CANCEL_WITHIN_S = 5.0
#: Whose names are at hand, of those who came last; each costs 10 µs to make.
NAMES = 1_000


class UnknownTaskError(SquadronError):
    """No task goes by this id, for this visitor: it never did, its life is over, or it is somebody else's."""


@dataclass(frozen=True, slots=True)
class KeptTask:
    """A task that was asked through a door.

    Attributes:
        created_at: in seconds since the epoch; 0 if that was not noted.
        about: what the door noted of it, as JSON.
        news_at: when it ended, or else was noted, in seconds since the epoch.
        outcome: None as long as it goes on.
    """

    id: str
    handle: Handle
    created_at: float
    about: Mapping[str, Any] = field(default_factory=dict)
    news_at: float = 0.0
    outcome: Outcome | None = None


class KeptTasks:
    """The tasks of all visitors, in the lite topics of each.

    An id begins with what stands for its visitor, made by the gateway's secret, and so does the owner of the lite
    topic of its outcome: nobody can name a task of somebody else's, nor guess one (more than 100 bits).

    Args:
        door: a name for each protocol, which sees none of the others' tasks.
    """

    def __init__(self, place: Place, secret: DoorSecret, door: str) -> None:
        self._place, self._secret, self._door = place, secret, door
        self._owner = lru_cache(NAMES)(lambda who: f"v{secret.name_for(f'tasks of {door}', who)}")
        self._telling = TellingIds(secret.key(f"ids of {door}"))

    def owner_of(self, visitor: Visitor) -> str:
        """The owner of the lite topics of a visitor's tasks."""
        return self._owner(visitor.principal)

    def id_for(self, visitor: Visitor, key: str = "") -> str:
        """A fresh id, or the one for a key of the visitor's own: asked again under that, it is one task."""
        nonce = secrets.token_hex(16)
        if key:
            keyed = self._secret.key(f"keys of {self._door}")
            nonce = hmac.digest(keyed, f"{visitor.principal} {key}".encode(), hashlib.sha256).hex()[:32]
        return f"{self.owner_of(visitor)}-{nonce}"

    async def submit(
        self,
        visitor: Visitor,
        topic: str,
        content: Any,
        options: AskOptions,
        *,
        id: str = "",
        about: Mapping[str, Any] | None = None,
    ) -> KeptTask:
        """Note a task and send it; both are stored when this returns, or its handle is done: it was refused.

        Args:
            id: of `id_for`; a fresh one by default.
            about: what to note of it, as JSON.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        ports, owner = self._place.ports, self.owner_of(visitor)
        fresh_id = "" if id else self.id_for(visitor)
        behalf = options.on_behalf_of or behalf_of(visitor, ports.principal)
        options = replace(options, task_id=id, on_behalf_of=behalf)
        id = id or fresh_id
        deadline = Deadline.after(options.within_s, ports.clock)
        handle, now = self._handle(owner, id, topic, deadline, sealed=options.sealed), ports.clock.time()
        noted_about = dict(about or {})
        said: dict[str, Any] = {"ticket": handle.ticket, "createdAt": now, "about": noted_about}
        keep_s = options.within_s + LITE_TTL_S
        sending = self._place.caller.submit(topic, content, options, owner=owner, fresh_id=fresh_id)
        # A visitor who leaves meanwhile does not leave one without the other.
        noting = self._note(owner, id, said, keep_s)
        noted, sent = await to_its_end(_both(noting, sending, fresh=bool(fresh_id)))
        refused = await sent.outcome() if sent.done else None
        if refused is not None and not refused.ok:
            # Nobody else stores what was refused right here.
            said["refused"] = refused.to_content()
            await self._note(owner, id, said, keep_s, over=await self._let_in(owner, id, noted))
        return KeptTask(id, sent, now, noted_about, now, refused)

    async def send(self, visitor: Visitor, topic: str, content: Any, options: AskOptions) -> KeptTask:
        """Send a task and note nothing, as its id says all: half of the work of `submit`.

        It is found again where its topic is named, and it is not listed. It is stored when this returns, or its
        handle is done.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        ports, owner = self._place.ports, self.owner_of(visitor)
        id = self._telling.make(owner, topic, Deadline.after(options.within_s, ports.clock).at_ms)
        if (behalf := behalf_of(visitor, ports.principal)) != options.on_behalf_of:
            options = replace(options, on_behalf_of=behalf)
        sent = await self._place.caller.submit(topic, content, options, owner=owner, fresh_id=id)
        now, refused = ports.clock.time(), await sent.outcome() if sent.done else None
        if refused is not None and not refused.ok:
            # Nobody else stores what was refused right here.
            said = {"ticket": sent.ticket, "createdAt": now, "about": {}, "refused": refused.to_content()}
            await self._note(owner, id, said, options.within_s + LITE_TTL_S)
        return KeptTask(id, sent, now, {}, now, refused)

    async def _note(
        self, owner: str, id: str, said: Mapping[str, Any], keep_s: float, *, over: bytes | None = None
    ) -> int:
        """Note a task; the last note counts. `over` is one that is noted again instead."""
        noted = self._place.ports.pack("event", {"content": said})
        data = over or await self._place.ports.claims.seal(noted, keep_s=keep_s)
        # Under an id of its own: a task may be sent again after it was refused.
        msg_id = f"{id}.{secrets.token_hex(8)}"
        return await self._place.ports.lite.append(self._note_of(owner, id), data, ttl_s=keep_s, msg_id=msg_id)

    async def _let_in(self, owner: str, id: str, until: int) -> bytes | None:
        """The note that stood under an id `until` this one, unless it says of a refusal, too: it may run on."""
        ports = self._place.ports
        before = [each async for each in ports.lite.read(self._note_of(owner, id)) if each.seq < until]
        try:
            message = await ports.claims.open(before[-1].data, got_at=before[-1].got_at)
            return None if "refused" in message.payload.content else before[-1].data
        except (InvalidMessageError, TypeError, LookupError):
            return None

    async def find(self, visitor: Visitor, id: str, topic: str = "") -> KeptTask:
        """A task of this visitor's, with its outcome if that is stored.

        Args:
            topic: of a task that was sent without a note.

        Raises:
            UnknownTaskError: there is none of this id.
            BusUnavailableError: the server can't be reached.
        """
        owner, unknown = self.owner_of(visitor), UnknownTaskError(f"there is no task {id[:100]!r}")
        begins, _, rest = id.partition("-")
        # Before anything is looked up.
        if not hmac.compare_digest(begins.encode("utf-8", "replace"), owner.encode()) or not rest.isalnum():
            raise unknown
        if len(id) > MAX_TOKEN or not id.isascii():
            raise unknown
        try:
            return await self.of_id(id)
        except UnknownTaskError:
            if (deadline_ms := self._telling.deadline_of(id, topic)) is None:
                raise
        deadline = Deadline(deadline_ms, self._place.ports.clock)
        if deadline.remaining_s() < -LITE_TTL_S:
            raise unknown
        return await self._now(KeptTask(id, self._handle(owner, id, topic, deadline), 0.0))

    def _handle(self, owner: str, id: str, topic: str, deadline: Deadline, *, sealed: bool = False) -> Handle:
        place, known = self._place, self._place.registry.find(topic)
        sealed = sealed or (known is not None and known.sealed)
        return Handle(id, topic, place.ports.subjects.lite(owner, id), deadline, place.caller, sealed=sealed)

    async def of_id(self, id: str) -> KeptTask:
        """A task whoever asked for it: only for an id that does not come from a visitor, or was looked at before.

        Raises:
            UnknownTaskError: there is none of this id.
            BusUnavailableError: the server can't be reached.
        """
        entry = await self._place.ports.lite.last(self._note_of(id.partition("-")[0], id))
        if entry is None:
            raise UnknownTaskError(f"there is no task {id[:100]!r}")
        return await self._read(entry, id)

    async def listed(self, visitor: Visitor) -> list[KeptTask]:
        """All tasks of this visitor's that are kept, the newest first.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        owner, lite = self.owner_of(visitor), self._place.ports.lite
        notes = await lite.latest(self._place.ports.subjects.lite_of(f"{owner}{_NOTED}"))
        found = []
        for note in notes:
            try:
                found.append(await self._read(note, note.key.rsplit(".", 1)[-1]))
            except UnknownTaskError:
                continue
        return sorted(found, key=lambda task: (-task.created_at, task.id))

    async def _read(self, entry: Entry, id: str) -> KeptTask:
        ports = self._place.ports
        try:
            message = await ports.claims.open(entry.data, got_at=entry.got_at)
            said = message.payload.content
            handle = self._place.caller.resume(said["ticket"])
            owner = id.partition("-")[0]
            if handle.task_id != id or handle.reply_to != ports.subjects.lite(owner, id):
                raise InvalidMessageError("it is of another task")
            created, about = float(said["createdAt"]), dict(said["about"])
            if (refused := said.get("refused")) is not None:
                outcome = from_content(refused, task_id=id, topic=handle.topic)
                return KeptTask(id, handle, created, about, entry.time, outcome)
        except (InvalidMessageError, ValueError, TypeError, LookupError):
            # Anybody on the bus may write there.
            raise UnknownTaskError(f"there is no task {id!r}") from None
        return await self._now(KeptTask(id, handle, created, about, entry.time))

    async def _now(self, task: KeptTask) -> KeptTask:
        """A task as it stands, with its outcome if that is stored."""
        noted = task.handle
        handle = await self._place.caller.adopt(
            task.id, noted.topic, noted.reply_to, noted.deadline, sealed=noted.sealed
        )
        # Who runs it hears of its end from its sender alone, which may have been another gateway.
        handle.sender = noted.sender
        if not handle.done and not handle.deadline.passed:
            return replace(task, handle=handle)
        last, outcome = await self._place.ports.lite.last(handle.reply_to), await handle.outcome()
        news_at = task.news_at if last is None else last.time
        return replace(task, handle=handle, news_at=news_at, outcome=outcome)

    def _note_of(self, owner: str, id: str) -> str:
        return self._place.ports.subjects.lite(f"{owner}{_NOTED}", id)


async def _both(noting: Awaitable[int], sending: Awaitable[Handle], *, fresh: bool) -> tuple[int, Handle]:
    """A task noted and sent, at once, for one after the other takes twice the time: nobody is told of it before.

    A note of one that never was sent reads as a task that came to nothing by its deadline. One that was sent and
    could not be noted is cancelled, for nobody would ever hear of it; not one whose id may have been noted before.
    """
    noted, sent = await asyncio.gather(noting, sending, return_exceptions=True)
    if isinstance(sent, BaseException):
        raise sent
    if isinstance(noted, BaseException):
        if fresh:
            with contextlib.suppress(SquadronError, TimeoutError):
                async with asyncio.timeout(CANCEL_WITHIN_S):
                    await sent.cancel()
        raise noted
    return noted, sent

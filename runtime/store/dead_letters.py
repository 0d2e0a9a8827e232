"""Dead letters: messages that were given up, kept with the reason until somebody puts them back or drops them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from squadron.runtime.errors import (
    CutLetterError,
    InvalidMessageError,
    InvalidSubjectError,
    MessageTooLargeError,
    SquadronError,
    UnknownLetterError,
    UntrustedError,
)
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Delivery, sent_with
from squadron.runtime.store.letter_bytes import LONGEST_ID, bytes_in, fields_of, id_in
from squadron.runtime.store.letter_list import LetterList
from squadron.runtime.store.operating import operating
from squadron.runtime.store.own_journal import open_own
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.put_back import PUT_BACK, put_back
from squadron.runtime.trust.carried import CARRIED_HEADER, carry
from squadron.runtime.trust.may_say import only_agent
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, pack
from squadron.runtime.wire.outcome import DeadLettered, Outcome, from_content
from squadron.runtime.wire.subjects import TaskSubject, check_pattern, matches, token_of

#: How much of a message is kept that is too large for a letter, in characters or, if it is no text, bytes.
CUT_AT = 100_000
#: How many candidates an error names.
_NAMED = 5

#: Called with how many letters are done and how many there are.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up.

    Attributes:
        id: the task's id; of what nobody could read, a digest.
        agent: whose mailbox it was in.
        subject: where it was put, and is put back to.
        reason: why it was given up, in words.
        attempts: how often it was tried; 0 if nobody could read it.
        last_error: type and text of the last exception; may be empty, as its digest may.
        traceback_digest: the same for the same traceback.
        buried_at: seconds since the epoch.
        message: the bytes as they came.
        carried: how it came into the mailbox if it was signed, see `Carried`; else empty.
        sealed: how it ended, if the task was sealed: for the agent alone. The other words say less then.
        complete: whether these are all of them: of a message too large for a letter only the beginning is kept.
        key: where the letter lies in the journal.
        seq: which entry of the journal it is.
    """

    id: str
    agent: str
    subject: str
    reason: str
    attempts: int
    last_error: str
    traceback_digest: str
    buried_at: float
    message: bytes
    carried: str
    sealed: Any
    complete: bool
    key: str
    seq: int

    @property
    def topic(self) -> str:
        """The topic it was sent to."""
        return ".".join(self.subject.split(".")[3:5])

    @property
    def token(self) -> str:
        """Its other name: the id if that is a token and was read for sure, else a digest."""
        return self.key.rpartition(".")[2]

    def is_called(self, prefix: str) -> bool:
        """Whether its id or its token begins so."""
        return self.id.startswith(prefix) or self.token.startswith(prefix)

    @classmethod
    def read(cls, entry: Entry) -> DeadLetter:
        """A letter as the journal has it; what is no letter is shown as it is, to be dropped."""
        agent, token = entry.key.split(".")[3:5]
        place: dict[str, Any] = {"agent": agent, "key": entry.key, "seq": entry.seq}
        try:
            event = AgentMessage.decode(entry.data)
            content, outcome = event.payload.content, from_content(event.payload.content)
            return cls(
                id=str(content["taskId"]),
                subject=str(content["subject"]),
                reason=outcome.reason,
                attempts=int(outcome.details.get("attempts", outcome.attempt)),
                last_error=str(outcome.details.get("last_error", "")),
                traceback_digest=str(outcome.details.get("traceback_digest", "")),
                buried_at=event.timestamp,
                message=bytes_in(content),
                carried=str(content.get("carried", "")),
                sealed=content.get("sealed"),
                complete="messageBytes" not in content,
                **place,
            )
        except (SquadronError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            return cls(
                id=token,
                subject="",
                reason=f"this is no dead letter: {type(error).__name__}: {error}",
                attempts=0,
                last_error="",
                traceback_digest="",
                buried_at=0.0,
                message=entry.data,
                carried="",
                sealed=None,
                complete=False,
                **place,
            )

    def to_dict(self) -> dict[str, Any]:
        """The letter as JSON: `message` if that is text, else `message_base64`."""
        names = ("id", "agent", "topic", "subject", "reason", "attempts", "last_error", "traceback_digest")
        plain = {name: getattr(self, name) for name in (*names, "buried_at", "complete")}
        try:
            return plain | {"message": self.message.decode()}
        except UnicodeDecodeError:
            return plain | {"message_base64": base64.b64encode(self.message).decode()}


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a redrive did: the ids that are back in their mailboxes, and why the others lie where they were."""

    ids: tuple[str, ...]
    left: Mapping[str, SquadronError]


class DeadLetters:
    """The dead letters of one environment.

    All verbs can be narrowed to one `agent`, those over many letters also to a `topic`, which may be a pattern.
    An id may be shortened as long as one letter only begins so.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._journal, self._queue, self._claims = ports.dead, ports.queue, ports.claims
        self._subjects, self._clock, self._observers = ports.subjects, ports.clock, ports.observers

    # --- burying -------------------------------------------------------------------------------------

    async def bury(
        self,
        agent: str,
        delivery: Delivery,
        outcome: Outcome,
        *,
        source: AgentIdentity,
        token: str = "",
        **about: Any,
    ) -> None:
        """Keep a message that `agent` gave up; it is stored when this returns. Settling it is the caller's.

        Args:
            source: who buries it.
            token: what the letter lies under, if not the task's id.
            about: more fields of the letter's content.

        Raises:
            BusUnavailableError: not acknowledged in time; burying it again is one letter.
        """
        content = outcome.to_content() | {"subject": delivery.subject, "taskId": outcome.task_id, **about}
        place = delivery.place or delivery.subject
        if carried := carry(delivery.headers, place, at=delivery.stored_at):
            content["carried"] = carried[CARRIED_HEADER]
        token = token or token_of(outcome.task_id)
        key = self._subjects.dead(agent, token)
        # The place in the queue: what was put back and fails again is another letter.
        msg_id = f"{agent}.{token}.dead.{delivery.seq}"

        async def append(message: dict[str, Any]) -> None:
            letter = pack("event", source, {"content": content | message}, timestamp=self._clock.time())
            # The trace goes along: who sends it again is led to what came of it before.
            await self._journal.append(key, letter, msg_id=msg_id, headers=sent_with(delivery.headers))

        try:
            await append(fields_of(delivery.data))
        except MessageTooLargeError:
            # As text in JSON bytes may grow sixfold; a letter that is cut off is better than none.
            await append({"taskId": outcome.task_id[:LONGEST_ID], **fields_of(delivery.data, CUT_AT)})
        if self._observers.on:
            from squadron.runtime.telemetry.happenings import Buried

            topic = outcome.topic or ".".join(delivery.subject.split(".")[3:5])
            told = Buried(agent=agent, topic=topic, id=outcome.task_id, reason=outcome.reason)
            self._observers.tell(told)

    async def bury_poison(
        self, agent: str, delivery: Delivery, error: Exception, *, source: AgentIdentity
    ) -> None:
        """Keep what nobody can serve; its id is its own if that can be read.

        The same bytes on the same subject are one letter, as often as they come; an id alone is not, for who
        sends such things may give all of them the same.
        """
        digest = hashlib.sha256(delivery.subject.encode() + b"\n" + delivery.data).hexdigest()[:32]
        outcome = DeadLettered(task_id=id_in(delivery.data) or digest, reason=str(error), details={"attempts": 0})
        await self.bury(agent, delivery, outcome, source=source, token=digest)

    # --- looking -------------------------------------------------------------------------------------

    async def list(self, *, topic: str = "", agent: str = "", most: int = 100) -> LetterList:
        """The newest letters, at most so many, newest first.

        Raises:
            InvalidSubjectError: `topic` is not a pattern of topics, or `agent` not a name.
        """
        newest: dict[str, DeadLetter] = {}
        async for letter in self._read(topic, agent):
            newest.pop(letter.key, None)
            newest[letter.key] = letter
            if len(newest) > most:
                del newest[next(iter(newest))]
        return LetterList(reversed(newest.values()))

    async def show(self, id: str, *, agent: str = "") -> DeadLetter:
        """One letter.

        Raises:
            UnknownLetterError: there is none, or it is not clear which.
        """
        if not id:
            raise UnknownLetterError("an empty id names no dead letter")
        pattern = self._subjects.dead_of(agent).removesuffix(">") + token_of(id)
        found = {entry.key: DeadLetter.read(entry) for entry in await self._journal.latest(pattern)}
        if not found:
            found = {each.key: each async for each in self._read("", agent) if each.is_called(id)}
            found = {key: each for key, each in found.items() if each.id == id} or found
        if len(found) == 1:
            return next(iter(found.values()))
        if not found:
            raise UnknownLetterError(f"there is no dead letter {id!r}", hint="see `squadron dlq list`")
        named = ", ".join(f"{each.token} of {each.agent}" for each in [*found.values()][:_NAMED])
        raise UnknownLetterError(
            f"{id!r} may be any of {len(found)} dead letters", hint=f"be clearer, or name the agent: {named}"
        )

    async def opened(self, letter: DeadLetter) -> DeadLetter:
        """A letter with the whole message, and if that was sealed with all that was said of its end.

        Raises:
            KeyLostError: it is sealed for an agent whose keys this process has not (`Settings.seal_keys`).
            InvalidMessageError, ClaimLostError, MessageTooLargeError, BusUnavailableError: see `Claims.resolve`.
        """
        message = AgentMessage.decode(letter.message)
        whole = await self._claims.resolve(message, self._subjects.task(letter.topic))
        letter = replace(letter, message=whole.encode())
        if letter.sealed is None:
            return letter
        said = from_content(from_json(await open_own(self._claims.seals, letter.key, letter.sealed)))
        last_error, digest = (str(said.details.get(name, "")) for name in ("last_error", "traceback_digest"))
        return replace(letter, reason=said.reason, last_error=last_error, traceback_digest=digest)

    async def _read(self, topic: str, agent: str) -> AsyncIterator[DeadLetter]:
        """All entries that fit, oldest first; of a key the last one counts."""
        if topic:
            check_pattern(topic)
        async for entry in self._journal.read(self._subjects.dead_of(agent)):
            letter = DeadLetter.read(entry)
            if not topic or (letter.topic.count(".") == 1 and matches(topic, letter.topic)):
                yield letter

    # --- moving --------------------------------------------------------------------------------------

    async def redrive(
        self, *ids: str, all: bool = False, topic: str = "", agent: str = "", on_progress: Progress | None = None
    ) -> Redriven:
        """Put messages back where they came from, under their ids and with all their attempts; oldest first.

        Their timestamp becomes now, and their deadline moves along. A letter is erased once the queue has its
        message; one that could not be erased may be redriven again: within two minutes that counts once.

        Args:
            all: every letter that fits `topic` and `agent`; those that can't be put back stay where they are.
            on_progress: called with each letter that is done.

        Raises:
            UnknownLetterError: an id names no letter, or several; nothing was moved.
            CutLetterError: only the beginning of a message was kept; nothing was moved.
            InvalidSubjectError, MessageTooLargeError, UntrustedError: one can't be put back; those before it were.
            BusUnavailableError: the rest lies where it was.
        """
        keys = await self._keys(ids, all, topic, agent, whole=True)
        async with operating(self._ports, "redrive", _chosen(keys), all=all, topic=topic, agent=agent):
            return await self._redrive_each(keys, all, on_progress)

    async def _redrive_each(self, keys: Mapping[str, int], all: bool, on_progress: Progress | None) -> Redriven:
        done: list[str] = []
        left: dict[str, SquadronError] = {}
        for number, key in enumerate(keys, 1):
            # Read when its turn comes: all messages at once may be more than fits into memory.
            if entry := await self._journal.last(key):
                letter = DeadLetter.read(entry)
                try:
                    await self._put_back(letter, entry)
                    done.append(letter.id)
                except (CutLetterError, InvalidSubjectError, MessageTooLargeError, UntrustedError) as error:
                    if not all:
                        raise
                    left[letter.id] = error
            if on_progress is not None:
                on_progress(number, len(keys))
        return Redriven(tuple(done), left)

    async def _put_back(self, letter: DeadLetter, entry: Entry) -> None:
        _check_whole(letter)
        if TaskSubject.parse(letter.subject).environment != self._subjects.environment:
            raise InvalidSubjectError(f"{letter.subject!r} is in another environment")
        if (guard := self._ports.guard) is not None:
            # Who puts it back vouches for what the letter says of it.
            by = only_agent(letter.agent)
            await guard.admit("letter", entry.key, entry.data, entry.headers, at=entry.time, may=by)
        data, headers = put_back(letter.message, letter.carried, entry.headers, self._clock.time())
        # By the letter, not by the id alone: a stranger may have sent one id to two topics.
        msg_id = f"{token_of(letter.id)}{PUT_BACK}{letter.seq}"
        await self._queue.put(letter.subject, data, msg_id=msg_id, headers=headers)
        # Not what came since: the message may have been given up again by now.
        await self._journal.erase(letter.key, through_seq=letter.seq)

    async def drop(
        self, *ids: str, all: bool = False, topic: str = "", agent: str = "", on_progress: Progress | None = None
    ) -> int:
        """Erase letters for good; returns how many.

        Args:
            all: every letter that fits `topic` and `agent`.
            on_progress: called with each letter that is done.

        Raises:
            UnknownLetterError: an id names no letter, or several; nothing was dropped.
        """
        keys = await self._keys(ids, all, topic, agent)
        async with operating(self._ports, "drop", _chosen(keys), all=all, topic=topic, agent=agent):
            await self._drop_each(keys, on_progress)
        return len(keys)

    async def _drop_each(self, keys: Mapping[str, int], on_progress: Progress | None) -> None:
        for number, (key, seq) in enumerate(keys.items(), 1):
            if entry := await self._journal.last(key):
                with contextlib.suppress(InvalidMessageError):
                    # What it left in the vault goes with it.
                    await self._claims.drop(AgentMessage.decode(DeadLetter.read(entry).message))
            await self._journal.erase(key, through_seq=seq)
            if on_progress is not None:
                on_progress(number, len(keys))

    async def _keys(
        self, ids: Sequence[str], all: bool, topic: str, agent: str, *, whole: bool = False
    ) -> dict[str, int]:
        """Keys of the chosen letters, oldest first, each with its newest entry."""
        if all:
            return {letter.key: letter.seq async for letter in self._read(topic, agent)}
        letters = [await self.show(id, agent=agent) for id in ids]
        if whole:
            for letter in letters:
                _check_whole(letter)
        return {letter.key: letter.seq for letter in sorted(letters, key=lambda letter: letter.seq)}


def _chosen(keys: Mapping[str, int]) -> str:
    """The letters by name, and how many more than 100: a message has its bounds."""
    return ",".join(key.rpartition(".")[2] for key in [*keys][:100]) + (f" of {len(keys)}" * (len(keys) > 100))


def _check_whole(letter: DeadLetter) -> None:
    if not letter.complete:
        raise CutLetterError(
            f"only a part of the message of {letter.id} was kept ({len(letter.message)} bytes)",
            hint="have it sent anew, and drop the letter",
        )

"""A task on its way, as the one who asked holds it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from squadron.runtime.asking.ask_seal import AskSeal
from squadron.runtime.asking.believing import (
    Awaited,
    believes,
    check_agent,
    check_answer,
    is_refuted,
    learn_who,
    least_of,
)
from squadron.runtime.asking.plain import wake, woken
from squadron.runtime.background import spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    InvalidMessageError,
    SquadClosedError,
    SquadronError,
    UnsealedError,
)
from squadron.runtime.ports.journal import Entry
from squadron.runtime.steady import AHEAD, Steady
from squadron.runtime.store.operating import operating
from squadron.runtime.streams.chunks import Family, StreamReader
from squadron.runtime.streams.trail import AGAIN_S
from squadron.runtime.streams.writer import Chunk, Ended, Nested, Restarted
from squadron.runtime.trust.guard import Guard, May
from squadron.runtime.trust.may_say import only
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.wire import outcome as outcomes
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Failed, Outcome, TimedOut
from squadron.runtime.wire.spent import NOT_TOLD
from squadron.runtime.wire.subjects import token_of

if TYPE_CHECKING:
    from squadron.runtime.asking.caller import Caller


class Handle:
    """A task on its way: wait for its outcome, or follow what it emits meanwhile."""

    def __init__(
        self, task_id: str, topic: str, reply_to: str, deadline: Deadline, caller: Caller, *, sealed: bool = False
    ) -> None:
        self.task_id, self.topic, self.reply_to, self.deadline = task_id, topic, reply_to, deadline
        self._caller, self._lite = caller, caller.ports.lite
        #: In whose name it is cancelled: whoever has the ticket of a task may do so.
        self.sender = caller.ports.identity.id
        #: By which the queue knows that it has this task.
        self.msg_id = token_of(task_id)
        #: Whether only its asker can read what it comes to, and how it is sealed, if it is sent from here.
        self.sealed = sealed
        self.seal: AskSeal | None = None
        #: SHA-256 of the task as it was sent; empty if it may have been sent before, or elsewhere.
        self.digest = ""
        #: Why an agent did not take a task of this id, be it ours or not.
        self._refused = ""
        self._outcome: Outcome | None = None
        self._listeners: list[Callable[[Outcome], None]] = []
        #: When to read the lite topic for it, on the loop's clock, and the pause before the next time.
        self._look_at, self._look_again_s = 0.0, 0.0
        self._looked_to = 0
        #: Fetches the outcome, when it came as a claim.
        self._opening: asyncio.Task[None] | None = None
        #: One future for each who waits: if one of them is cancelled, the others wait on.
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        #: Whether something else than the outcome was heard, and as what the outcome was.
        self._emits = False
        self._heard_as: Entry | None = None

    def __repr__(self) -> str:
        return f"<task {self.task_id} of {self.topic}: {self._outcome.kind if self._outcome else 'under way'}>"

    @property
    def done(self) -> bool:
        """Whether its outcome is known here."""
        return self._outcome is not None

    @property
    def ticket(self) -> str:
        """The handle as text: `resume` it in another process, or in this one after a crash."""
        fields = {"task": self.task_id, "topic": self.topic, "replyTo": self.reply_to, "source": self.sender}
        sealed = {"sealed": True} if self.sealed else {}
        return json.dumps(fields | {"deadline": self.deadline.at_ms} | sealed)

    async def cancel(self) -> Outcome:
        """Have the task stopped, and what it asked of others; returns its one outcome.

        That is `Cancelled`, unless the task ended otherwise before. One that waits never runs; one that runs is
        cancelled (`asyncio.CancelledError`), or in a thread finds `Context.cancelled` set.

        Raises:
            BusUnavailableError: the server can't be reached.
            UntrustedError: where signatures are required, it is another's; an operator cancels it.
        """
        async with operating(self._caller.ports, "cancel", self.task_id, topic=self.topic):
            return await self._caller.cancel(self)

    def _settle(self, outcome: Outcome, *, refused: bool = False) -> None:
        """The task ended, or was `refused` before it was sent; only the first outcome counts."""
        if self._outcome is None:
            self._outcome = outcome
            if (observers := self._caller.ports.observers).on:
                told = outcome.withheld() if self.sealed else outcome
                from squadron.runtime.telemetry.happenings import TaskEnded

                observers.tell(TaskEnded(id=self.task_id, topic=self.topic, outcome=told, refused=refused))
            for tell in self._listeners:
                tell(outcome)
            self._wake_all()

    def _when_known(self, tell: Callable[[Outcome], None]) -> None:
        """Call `tell` with the outcome as soon as it is known here, be it now; it must not block or raise."""
        self._listeners.append(tell)
        if self._outcome is not None:
            tell(self._outcome)

    def _close(self) -> None:
        """Nothing more is heard here: who waits for the outcome gets a `SquadClosedError`."""
        self._closed = True
        self._wake_all()

    def _wake_all(self) -> None:
        for waiter in self._waiters:
            wake(waiter)

    def _check_open(self) -> None:
        if self._closed:
            raise SquadClosedError(
                f"the squad was closed before {self.topic} had an outcome; the task goes on",
                hint="keep handle.ticket; another squad takes it: squad.resume(ticket)",
            )

    async def outcome(self) -> Outcome:
        """Wait for the task's one outcome; `TimedOut` when its deadline passes first. May be called again."""
        return await self._caller.outcome(self)

    async def _settled(self) -> Outcome:
        """Wait until the outcome was heard, or the deadline passed.

        Raises:
            SquadClosedError: the squad was closed before.
        """
        while self._outcome is None:
            self._check_open()
            await woken(self)
            if self._outcome is None and self.deadline.passed and not self._closed:
                await self._look()
                self._settle(self._too_late())
        return self._outcome

    def _too_late(self) -> Outcome:
        return TimedOut(
            task_id=self.task_id,
            topic=self.topic,
            reason="no outcome before the caller's deadline; it may still come on the lite topic"
            + (f"; one of this id was refused: {self._refused}" if self._refused else ""),
            spent=NOT_TOLD,
            details={"lite_topic": self.reply_to},
        )

    async def _look(self) -> None:
        """Read the lite topic for an outcome whose live message was missed, if the server can be reached."""
        with contextlib.suppress(BusUnavailableError):
            await self._look_for_sure()

    async def _look_for_sure(self) -> None:
        """Read the lite topic for an outcome; if there is none when this returns, none is stored.

        Raises:
            BusUnavailableError: that can't be said.
        """
        entry = await self._lite.last(self.reply_to)
        found = entry is not None and await self._hear_stored(entry)
        if entry is not None and not found:
            # The task goes on, or a replica that lost its lease did so when the outcome was stored.
            async with aclosing(self._lite.read(self.reply_to, from_seq=self._looked_to + 1)) as entries:
                async for entry in entries:
                    self._looked_to = entry.seq
                    if found := await self._hear_stored(entry):
                        break
        await self._opened()
        if found and not self.done:
            raise BusUnavailableError(f"the outcome of {self.task_id} is stored, and can't be read now")

    async def _hear_stored(self, entry: Entry) -> bool:
        if (guard := self._caller.ports.guard) is not None:
            await learn_who(guard, entry)
        return self._hear(entry)

    def _hear(self, heard: Entry, *, now: bool = False) -> bool:
        """Take in one message of the lite topic; says whether it was the outcome, all else is left to `chunks`.

        What is told `now` is judged by our own clock: who tells it says when it was stored. An outcome that came
        as a claim settles the handle a moment later, when it was fetched.
        """
        data = heard.data
        if b'"result"' not in data:
            if not self._emits:
                self._emits = True
                self._wake_all()
            return False
        # Not as an `AgentMessage`: that costs three times as much, and nothing else of it is looked at.
        try:
            raw = from_json(data, cache_strings="keys")
            payload, source = raw["payload"], str(raw["source"]["id"])
            if raw["type"] != "result" or not self._is_answered(raw, source):
                return False
            if self._caller.ports.guard is not None and not self._is_believed(heard, raw, now):
                return False
            self._heard_as = heard
            if "content" in payload:
                content = payload["content"]
                ids = {"task_id": self.task_id, "topic": self.topic, "source": source}
                outcome = outcomes.from_content(content, **ids)
                if self.sealed and outcome.ok:
                    # Who could not open the task says no more than that.
                    self._caller.pass_over(self, "it is not sealed, and the task was", source)
                    return False
                self._settle(outcome)
            elif "sealed" in payload and (opened := self._unsealed(raw, source)) is not None:
                self._settle(opened)
            elif not self.done and (self._opening is None or self._opening.done()):
                message = AgentMessage.decode(data)
                self._opening = spawn(self._open(message), f"open {self.task_id}")
        except (ValueError, TypeError, LookupError, AttributeError, InvalidMessageError):
            return False
        return True

    def _unsealed(self, raw: dict[str, Any], source: str) -> Outcome | None:
        """The outcome in a sealed result; None if it has to be waited for.

        Raises:
            UnsealedError, ValueError, TypeError, LookupError, AttributeError: see `Claims.open_now`.
        """
        try:
            payload = self._caller.ports.claims.open_now(raw, self.reply_to)
        except UnsealedError as error:
            self._caller.pass_over(self, str(error), source)
            raise
        self.sealed = True
        ids = {"task_id": self.task_id, "topic": self.topic, "source": source}
        return None if payload is None else outcomes.from_content(payload["content"], **ids)

    def _is_believed(self, heard: Entry, raw: dict[str, Any], now: bool) -> bool:
        """Whether a result is signed by who may answer; what is not known yet is heard again when it is."""
        guard = self._caller.ports.guard
        assert guard is not None
        at = self._caller.ports.clock.time() if now else heard.time
        believed: list[bool] = []

        def take(_: Signed | None) -> None:
            believed.append(True)
            if waiting and now:
                self._caller._hear(heard)

        waiting = False
        said, registry = (self.reply_to, heard.data, heard.headers), self._caller.registry
        task, least = Awaited(self.topic, self.sender, self.digest), least_of(registry, self.topic)
        may = partial(check_answer, task, registry, raw=raw)
        guard.hear("outcome", *said, take, at=at, may=may, topic=self.topic, least=least)
        waiting = True
        refused = (raw.get("metadata") or {}).get("refused") is True
        if believed and refused and guard.mode(self.topic, least) == "require":
            # Of one that was forged under our id we would hear the same.
            error = raw["payload"]["content"].get("error")
            self._refused = str(error.get("message") if isinstance(error, dict) else "for no reason told")[:500]
            return False
        return bool(believed)

    def _is_answered(self, raw: dict[str, Any], source: str) -> bool:
        """Whether a result is of this task, and by nobody who is known to have no say in it."""
        task = self.task_id
        if raw.get("correlationId") != task and raw["context"].get("parentMessageId") != task:
            self._caller.pass_over(self, "it is of another task", source)
            return False
        if is_refuted(self._caller.registry, self.topic, source, raw["payload"].get("content")):
            self._caller.pass_over(self, "its source serves other topics", source)
            return False
        return True

    async def _open(self, message: AgentMessage) -> None:
        try:
            whole = await self._whole(message)
            ids = {"task_id": self.task_id, "topic": self.topic, "source": whole.source.id}
            self._settle(outcomes.from_content(whole.payload.content, **ids))
        except (BusUnavailableError, SquadClosedError):
            return
        except SquadronError as error:
            reason = f"it ended, but its outcome can't be read: {error}"
            details = {"type": type(error).__name__}
            lost: dict[str, Any] = {"reason": reason, "details": details, "spent": NOT_TOLD}
            self._settle(Failed(task_id=self.task_id, topic=self.topic, **lost))

    async def _opened(self) -> None:
        if self._opening is not None:
            await asyncio.shield(self._opening)

    async def _whole(self, message: AgentMessage) -> AgentMessage:
        """The message with what it claims; goes on over an absence of the server, until the deadline."""
        while True:
            try:
                return await self._caller.ports.claims.resolve(message, self.reply_to)
            except BusUnavailableError:
                if self.deadline.passed:
                    raise
                await asyncio.sleep(self.deadline.earliest(AGAIN_S))

    def chunks(self) -> Steady[Any]:
        """What the task emits, in order and from the start; ends with the task.

        A task that is run again after a crash starts its stream anew: only the newest attempt's chunks go on.
        Who stops waiting for a chunk loses none.

        Raises:
            StreamGapError: a chunk is lost for good.
            BusUnavailableError: the task has ended before, and its chunks can't be read now.
        """
        return Steady(self._chunks(), ahead=AHEAD)

    async def _chunks(self) -> AsyncGenerator[Any, None]:
        async with aclosing(self._reader(self.reply_to).events()) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    yield event.value
        await self._ended()

    def events(self) -> Steady[Chunk | Restarted | Nested | Ended]:
        """As `chunks`, but tells of restarts and of the end, which comes last, and numbers the chunks.

        If the task was submitted as `nested`, the chunks of the tasks that it asks come as well.

        Raises:
            StreamGapError: a chunk is lost for good.
            BusUnavailableError: the task has ended before, and its chunks can't be read now.
        """
        return Steady(self._events(), ahead=AHEAD)

    async def _events(self) -> AsyncGenerator[Chunk | Restarted | Nested | Ended, None]:
        chunks = 0
        async with aclosing(Family(self._reader).events(self._reader(self.reply_to).events())) as events:
            async for event in events:
                chunks = 0 if isinstance(event, Restarted) else chunks + isinstance(event, Chunk)
                yield event
        yield Ended(await self._ended(), chunks)

    def _reader(self, lite_topic: str) -> StreamReader:
        # Of a task that has ended nothing more will come: what is stored is all.
        live, guard = not self.done, self._caller.ports.guard
        may, follow = only("agent", "bridge"), None
        if lite_topic == self.reply_to:
            may, follow = partial(check_agent, self._caller.registry, self.topic), self._caller.hearing.follow
        return StreamReader(
            self._lite,
            self._caller.ports.claims,
            lite_topic,
            live=live,
            until=self.deadline if live else None,
            is_end=self._hear if lite_topic == self.reply_to else lambda _: True,
            sealed=self.sealed,
            counts=None if guard is None else partial(self._counts, guard, may),
            follow=follow,
        )

    async def _counts(self, guard: Guard, may: May, entry: Entry) -> bool:
        if b'"result"' in entry.data and entry.key == self.reply_to:
            # That is for `_hear` to say.
            await learn_who(guard, entry)
            return True
        least = least_of(self._caller.registry, self.topic)
        return await believes(guard, "chunk", entry, may, topic=self.topic, least=least)

    async def _ended(self) -> Outcome:
        """The outcome, when nothing more is to be read."""
        await self._opened()
        if self._outcome is None:
            self._check_open()
        self._settle(self._too_late())
        assert self._outcome is not None
        return self._outcome

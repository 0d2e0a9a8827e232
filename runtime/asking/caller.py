"""Asking others: a task goes out on a topic, its one outcome comes back on a lite topic of ours."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from squadron.runtime.asking.admission import RETRY_AFTER_S, Admission
from squadron.runtime.asking.ask_seal import AskSeal
from squadron.runtime.asking.cancel import cancels_as_operator, request_cancel
from squadron.runtime.asking.door import forbidden_here, hopeless_anywhere
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.hearing import Hearing
from squadron.runtime.asking.options import NO_OPTIONS, AskOptions
from squadron.runtime.asking.sender import Sender
from squadron.runtime.asking.task import claim_id, lay_out_task, nobody_serves, not_sent, noted_of
from squadron.runtime.background import spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    ConfigError,
    InvalidInputError,
    InvalidMessageError,
    InvalidSubjectError,
    MessageTooLargeError,
)
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Entry
from squadron.runtime.registry.registry import Registry
from squadron.runtime.store.claims import INPUT_KEEP_S
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.sealed import input_digest
from squadron.runtime.telemetry.storing import told_when_stored
from squadron.runtime.texts import encoded, jsonable
from squadron.runtime.wire.behalf import joined
from squadron.runtime.wire.envelope import LAST_MS
from squadron.runtime.wire.id_note import IdNote
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import LITE_TTL_S, Cancelled, Outcome, Rejected, outcome_msg_id
from squadron.runtime.wire.path import Parent
from squadron.runtime.wire.replies import asks_of
from squadron.runtime.wire.spent import NOT_TOLD
from squadron.runtime.wire.subjects import LiteSubject, token_of

T = TypeVar("T")

_log = get_logger("squadron.caller")

#: While an outcome is awaited its lite topic is read anew after so long, doubling up to the second figure:
#: the live message may have been lost. At most so many are read in one step, in seconds.
FIRST_LOOK_S, LONGEST_LOOK_S = 2.0, 15.0
LOOK_STEP_S, LOOKS_PER_STEP = 0.25, 100
#: How long a task that was cancelled may take to say so, in seconds. One that waits has nobody to say it.
CANCEL_WITHIN_S = 1.0


class Caller:
    """One process's side of asking: sends tasks, hears outcomes, has one subscription per owner."""

    def __init__(self, ports: Ports, registry: Registry, lite_topics: LiteTopics | None = None) -> None:
        self.ports, self.registry = ports, registry
        self.lite_topics = lite_topics or LiteTopics(ports)
        self.sender = Sender(ports)
        self._admission = Admission(ports.queue, ports.clock)
        #: Not the owner of this process's own lite topics: who follows those hears no replies.
        self._owner = asks_of(ports.identity.id)
        #: Tasks under an id of the caller's own that are being sent, by reply address.
        self._sending: dict[str, asyncio.Event] = {}
        #: Several hold one task if they asked under its id: each waits as long as it said.
        self._waiting: dict[str, list[Handle]] = {}
        #: Once it is stored: what the server dropped is no outcome, and of what is published in the account of the
        #: streams nothing else is heard outside it.
        self.hearing = Hearing(ports.lite, ports.subjects, self._hear)
        self._looking: asyncio.Task[None] | None = None
        #: Results that came on lite topics of ours and settled nothing.
        self.passed_over = 0

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop it runs in; kept, because asking for it costs a system call each time."""
        return asyncio.get_running_loop()

    async def start(self) -> None:
        """Be ready to hear outcomes."""
        await self.hearing.hear(self._owner)
        self.ports.bus.on_reconnect(self._look_again)
        self._looking = spawn(self._keep_looking(), "outcomes", lasting=True)

    async def aclose(self) -> None:
        """Stop hearing outcomes: who waits is told. Tasks go on, their outcomes stay on the lite topics."""
        if self._looking is not None:
            self._looking.cancel()
        for handle in self._awaited():
            handle._close()
        await self.hearing.aclose()

    async def _insist(self, until: Deadline, call: Callable[..., Awaitable[T]], *args: Any, **how: Any) -> T:
        """Await a call that may be made again, and again while the server is away."""
        while True:
            try:
                return await call(*args, **how)
            except BusUnavailableError:
                if until.passed:
                    raise
                await asyncio.sleep(until.earliest(0.25))

    def forget(self, owner: str) -> None:
        """No more outcomes under this owner are expected here; does not wait for a server that is away."""
        if owner != self._owner:
            self.hearing.forget(owner)

    def _awaited(self) -> Iterator[Handle]:
        return itertools.chain.from_iterable(self._waiting.values())

    def _hear(self, entry: Entry) -> None:
        # Each of them is to hear it.
        heard = [handle._hear(entry, now=True) for handle in self._waiting.get(entry.key, ())]
        if any(heard):
            self._waiting.pop(entry.key, None)

    async def _look_again(self) -> None:
        for handle in list(self._awaited()):
            if not handle.deadline.passed:
                await handle._look()

    async def _keep_looking(self) -> None:
        """Read the lite topics of tasks whose outcome is late: the live message may have been lost."""
        while True:
            await asyncio.sleep(LOOK_STEP_S)
            late = (handle for handle in self._awaited() if handle._look_at <= self.loop.time())
            for handle in list(itertools.islice(late, LOOKS_PER_STEP)):
                if handle.deadline.passed:
                    # Nobody came for it in time; who comes yet is heard of again.
                    self.leave(handle)
                    continue
                if handle._look_at:
                    await handle._look()
                handle._look_again_s = min(2 * handle._look_again_s or FIRST_LOOK_S, LONGEST_LOOK_S)
                handle._look_at = self.loop.time() + handle._look_again_s

    async def ask(self, topic: str, content: Any, options: AskOptions | None = None) -> Outcome:
        """Send a task and wait for its one outcome; never raises for what happens to the task."""
        return await self.outcome(await self.submit(topic, content, options))

    async def outcome(self, handle: Handle) -> Outcome:
        """Wait for a task that was submitted, here or by somebody else; may be called again if cancelled."""
        if handle.sealed:
            await self.ports.claims.seals.ring()
        if not handle.done and handle not in self._waiting.get(handle.reply_to, ()):
            self._waiting.setdefault(handle.reply_to, []).append(handle)
            with contextlib.suppress(BusUnavailableError):
                await self._insist(handle.deadline, self.hearing.hear, LiteSubject.parse(handle.reply_to).owner)
            await handle._look()
        try:
            return await handle._settled()
        finally:
            if handle.done:
                self.leave(handle)

    def leave(self, handle: Handle) -> None:
        """Nothing more is expected for this handle here; its task goes on."""
        if others := [each for each in self._waiting.get(handle.reply_to, ()) if each is not handle]:
            self._waiting[handle.reply_to] = others
            return
        self._waiting.pop(handle.reply_to, None)
        *_, owner, id = handle.reply_to.split(".")
        if owner == id:
            # Under an id of its own it has a subscription of its own.
            self.forget(owner)

    def pass_over(self, handle: Handle, why: str, source: str) -> None:
        """A result on a handle's lite topic does not settle it."""
        self.passed_over += 1
        _log.debug("result.passed_over", task=handle.task_id, topic=handle.topic, source=source, why=why)

    def resume(self, ticket: str) -> Handle:
        """The handle of a task that was submitted under a `Handle.ticket`, by whichever process.

        Raises:
            InvalidMessageError: that is no ticket.
        """
        try:
            fields = json.loads(ticket)
            deadline = Deadline(int(fields["deadline"]), self.ports.clock)
            if not 0 <= deadline.at_ms <= LAST_MS:
                raise ValueError("its deadline is no time")
            LiteSubject.parse(str(fields["replyTo"]))
            handle = Handle(str(fields["task"]), str(fields["topic"]), fields["replyTo"], deadline, self)
            handle.sender, handle.sealed = str(fields.get("source", handle.sender)), fields.get("sealed") is True
            return handle
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, InvalidSubjectError) as error:
            raise InvalidMessageError(f"{repr(ticket)[:80]} is no ticket: {error}", field="ticket") from None

    async def adopt(
        self, task_id: str, topic: str, reply_to: str, deadline: Deadline, *, sealed: bool = False
    ) -> Handle:
        """The handle of a task that somebody else may have sent; it is done if its outcome is stored."""
        handle = Handle(task_id, topic, reply_to, deadline, self, sealed=sealed)
        await handle._look()
        return handle

    async def cancel(self, handle: Handle) -> Outcome:
        """Have a task stopped; returns its one outcome, which is `Cancelled` unless it ended otherwise before.

        Raises:
            BusUnavailableError: the server can't be reached.
            UntrustedError: see `request_cancel`.
        """
        if not handle.done:
            await self.request_cancel(handle)
            try:
                async with asyncio.timeout(CANCEL_WITHIN_S):
                    return await self.outcome(handle)
            except TimeoutError:
                await self._settle_cancelled(handle)
        return await handle._settled()

    async def request_cancel(self, handle: Handle) -> None:
        """Ask whoever runs a task, now or later, to stop; does not wait for it.

        Raises:
            UntrustedError: it is another's, and only that one or an operator may cancel it; nothing was stored.
        """
        task_id, sender, until_s = handle.task_id, handle.sender, handle.deadline.at_ms / 1000
        operator = cancels_as_operator(self.ports, task_id, sender)
        await request_cancel(self.ports, task_id, deadline_at_s=until_s, sender=sender, operator=operator)

    async def _settle_cancelled(self, handle: Handle) -> None:
        """Nobody runs it, so nobody else ends it. What was stored first is the outcome, be it ours or not.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        # It may have ended so long ago that the server does not know the message id any more.
        await handle._look_for_sure()
        if not handle.done:
            from squadron.runtime.asking.question_records import withdraw_questions

            ids: dict[str, Any] = {"parent": handle.task_id, "correlation_id": handle.task_id}
            outcome = Cancelled(task_id=handle.task_id, topic=handle.topic, reason="cancelled", spent=NOT_TOLD)
            data = self.ports.pack("result", {"content": outcome.to_content()}, **ids)
            msg_id = outcome_msg_id(handle.task_id, handle.reply_to)
            await withdraw_questions(self.ports, self.lite_topics, handle.task_id)
            counts = handle._hear_stored
            await self.ports.lite.append(handle.reply_to, data, ttl_s=LITE_TTL_S, msg_id=msg_id, counts=counts)
            await handle._look()
        if handle.done:
            self.leave(handle)

    async def submit(
        self,
        topic: str,
        content: Any,
        options: AskOptions | None = None,
        *,
        parent: Parent | None = None,
        owner: str = "",
        once: bool = False,
        fresh_id: str = "",
    ) -> Handle:
        """Send a task; it is durable when this returns, or the handle is settled: the call itself was wrong.

        Args:
            owner: of the lite topic of its outcome, which whoever takes over finds; by default of ours.
            once: its id is of the owner's own making, and it may be sent again under it, however late.
            fresh_id: an id in place of that in the options, made up just now: it can't stand for another task.
        """
        ask = options or NO_OPTIONS
        task_id = fresh_id or ask.task_id or os.urandom(16).hex()
        # Under an id of the caller's own it is the same task in any process, so its lite topic is the same, too.
        replies = owner or (token_of(task_id) if ask.task_id else self._owner)
        reply_to = self.ports.subjects.lite(replies, token_of(task_id))
        deadline = Deadline.after(ask.within_s, self.ports.clock)
        handle = Handle(task_id, topic, reply_to, deadline, self)
        while sending := self._sending.get(reply_to):
            # Under the same id, and this moment: it may yet be cancelled.
            await sending.wait()
        is_sent = reply_to in self._waiting
        self._waiting.setdefault(reply_to, []).append(handle)
        if ask.task_id:
            self._sending[reply_to] = asyncio.Event()
        try:
            behalf = joined(() if parent is None else parent.behalf, ask.on_behalf_of)
            content = await self._admit(handle, {} if content is None else jsonable(content), ask, behalf)
            if isinstance(content, Outcome):
                handle._settle(content, refused=True)
            else:
                # Ours is heard since the start.
                if replies != self._owner and not self.hearing.hears(replies):
                    await self._insist(deadline, self.hearing.hear, replies)
                if ask.task_id and not once:
                    await self._claim(handle, content, ask)
            if not handle.done and not is_sent:
                await self._send(handle, content, ask, parent, once=once, behalf=behalf)
        except (BusUnavailableError, ConfigError, MessageTooLargeError, ValueError) as error:
            handle._settle(not_sent(handle, error), refused=True)
        except BaseException:
            # Nobody has the handle.
            self.leave(handle)
            raise
        finally:
            self._admission.entered(task_id)
            if sending := self._sending.pop(reply_to, None):
                sending.set()
        if handle.done:
            self.leave(handle)
        return handle

    async def _send(
        self, handle: Handle, content: Any, ask: AskOptions, parent: Parent | None, **told: Any
    ) -> None:
        head: dict[str, Any] = {"parent": parent, "seen": self.registry.news, **told}
        wire = lay_out_task(self.ports.identity, content, ask, handle, timestamp=self.ports.clock.time(), **head)
        if handle.seal is None:
            data = await self.ports.claims.seal(encoded(wire), keep_s=INPUT_KEEP_S)
        else:
            place, claims = self.ports.subjects.task(handle.topic), self.ports.claims
            data = await claims.seal_for((handle.seal.to,), wire, place, keep_s=INPUT_KEEP_S)
        if self.ports.principal is not None and self.ports.guard is not None and not ask.task_id:
            handle.digest = hashlib.sha256(data).hexdigest()
        subject, msg_id = self.ports.subjects.task(handle.topic, ask.priority), handle.msg_id
        headers = self.sender.put(
            "task",
            handle.topic,
            data,
            id=handle.task_id,
            conversation_id=ask.conversation_id,
            parent_id=None if parent is None else parent.id,
        )
        # The same id is stored once.
        put = self._insist(handle.deadline, self.ports.queue.put, subject, data, msg_id=msg_id, headers=headers)
        await told_when_stored(self.ports.observers, handle.task_id, put)

    async def _claim(self, handle: Handle, content: Any, ask: AskOptions) -> None:
        """Settle a handle under an id of the caller's own if it stands for another task, or has ended before."""
        keep_s = ask.within_s + LITE_TTL_S
        taken = await self._insist(
            handle.deadline, claim_id, self.ports.lite, self.ports.subjects, handle, content, keep_s=keep_s
        )
        if taken:
            ids, details = (handle.task_id, handle.topic), {"field": "task_id"}
            refused = Rejected(task_id=ids[0], topic=ids[1], reason=taken, details=details)
            return handle._settle(refused, refused=True)
        # Somebody may have asked under this id before, longer ago than the queue remembers it.
        await handle._look()

    async def _let_in(self, handle: Handle, ask: AskOptions) -> IdNote | None:
        """What was noted of a task that was let in before, under an id of the caller's own: it is that one."""
        if not ask.task_id:
            return None
        return await self._insist(handle.deadline, noted_of, self.ports.lite, self.ports.subjects, handle)

    async def _admit(self, handle: Handle, content: Any, ask: AskOptions, behalf: tuple[str, ...]) -> Any:
        """The content as it is to be sent, or the outcome of a call that is refused."""
        topic, deadline = handle.topic, handle.deadline
        common: dict[str, Any] = {"task_id": handle.task_id, "topic": topic}
        if hopeless := hopeless_anywhere(topic, ask, common):
            return hopeless
        found = self.registry.find(topic) or await self.registry.wait_for(topic, within_s=deadline.remaining_s())
        if found is None:
            asked = await self._let_in(handle, ask)
            is_same = asked is not None and not ask.sealed and asked.input == input_digest(content)
            return content if is_same else nobody_serves(self.registry, topic, common)
        if forbidden := forbidden_here(self.ports, topic, behalf, found.allow):
            return Rejected(reason=str(forbidden), details={"field": forbidden.field}, **common)
        handle.sealed = ask.sealed or found.sealed
        # A bare value goes to the only field that the topic takes.
        content = found.wrap(content)
        try:
            found.check(content)
        except InvalidInputError as error:
            return Rejected(reason=str(error), details={"field": error.field}, **common)
        within_s = deadline.remaining_s()
        if found.mailbox_limit and not await self._admission.enter(found, handle.task_id, within_s=within_s):
            reason = f"the mailbox of {topic} holds its {found.mailbox_limit} tasks already"
            details = {"field": "mailbox", "retry_after_s": RETRY_AFTER_S}
            if await self._let_in(handle, ask) is None:
                return Rejected(reason=reason, details=details, **common)
        if handle.sealed:
            handle.seal = await AskSeal.of(self.ports.claims.seals, found, ask.task_id)
        return content

"""What a handler may know and do beside its input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, Unpack
from weakref import WeakSet

from pydantic_core import from_json

from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.negotiation import negotiate
from squadron.runtime.asking.options import BIDS_WITHIN_S, AskKeywords, AskOptions
from squadron.runtime.calling import Threads
from squadron.runtime.errors import UntrustedError, WrongLoopError
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.ports.queue import Lease
from squadron.runtime.running.asks_people import AsksPeople
from squadron.runtime.running.ledger import ONCE, Ledger
from squadron.runtime.running.publishes import Publishes
from squadron.runtime.running.sync_context import SyncContext
from squadron.runtime.store.own_journal import OwnJournal, memory_owner
from squadron.runtime.streams.writer import StreamWriter
from squadron.runtime.texts import whole
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Budget, Deadline
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.path import Parent, step_of
from squadron.runtime.wire.spent import Spent
from squadron.runtime.wire.subjects import token_of

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

T = TypeVar("T")

#: Life of a conversation's memory after its last entry, in seconds: a working week.
MEMORY_TTL_S = 7 * 24 * 3600.0
#: Part of its time after which a turn should come to its end by itself: what is left is for telling of it.
IN_TIME = 0.95


class Context(AsksPeople, Publishes):
    """One turn's view: the message, its deadline and budget, and the ways to talk.

    Attributes:
        message: the task as it came in.
        topic: the topic it was asked on (for agents that serve a family).
        attempt: which delivery of the task this is, from 1.
        deadline: when the caller stops waiting.
        ledger: the books of this task.
        log: a structlog logger with message, conversation, topic, agent and attempt bound.
        threads: what acts in threads for it.
    """

    def __init__(
        self,
        message: AgentMessage,
        *,
        agent: str,
        topic: str,
        attempt: int,
        deadline: Deadline,
        ledger: Ledger,
        caller: Caller,
        lite_key: str,
        log: FilteringBoundLogger,
    ) -> None:
        self.message, self.topic, self.attempt = message, topic, attempt
        self.deadline, self.ledger, self._log = deadline, ledger, log
        self._agent, self._caller = agent, caller
        self._lite_key, self.behalf = lite_key, ()
        self._writer: StreamWriter | None = None
        self._stopped = self._ended = False
        #: Where the replica's loop runs, and what a handler in another thread waits for.
        self._thread = threading.get_ident()
        self._waits: set[Future[Any]] = set()
        self.threads = Threads()
        self._asked = 0
        #: What was asked from here; who has an outcome and is not waited for any more drops out by itself.
        self._children: WeakSet[Handle] | None = None

    @property
    def _own(self) -> OwnJournal:
        return OwnJournal(self._caller.ports, self._agent, self.is_sealed)

    @property
    def budget(self) -> Budget:
        """What may still be spent: what came with the task, less what was spent and what its tasks were given."""
        return self.ledger.left

    @cached_property
    def log(self) -> FilteringBoundLogger:
        """A structlog logger with message, conversation, topic and attempt bound to the agent's own."""
        return self._log.bind(
            message=self.message.id,
            conversation=self.message.context.conversation_id,
            topic=self.topic,
            attempt=self.attempt,
        )

    async def emit(self, chunk: Any) -> None:
        """Send one chunk (any JSON value) to whoever follows this task, now or later.

        Returns before it is stored, and waits only while too many are not; the outcome comes after all of them.

        Raises:
            MessageTooLargeError: larger than any message may be.
            BusUnavailableError: a large one could not be stored.
        """
        self._check_loop()
        await self._stream().write(chunk)

    def _stream(self) -> StreamWriter:
        if self._writer is None:
            ports = self._caller.ports
            self._writer = StreamWriter(ports, self._lite_key, self.message, self.attempt, self._readers)
            if self._ended:
                self._writer.close()
        return self._writer

    async def ask(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> Outcome:
        """Ask another agent and wait; never longer than this task's own deadline. Takes what `submit` takes."""
        return await (await self.submit(topic, content, **options)).outcome()

    @cached_property
    def sync(self) -> SyncContext:
        """The same for a plain `def` handler: every call blocks its thread until it is done."""
        return SyncContext(self, self._wait)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if threading.get_ident() == self._thread:
            work.close()
            raise WrongLoopError("ctx.sync would hold up the replica's event loop", hint="await the same of ctx")
        future = asyncio.run_coroutine_threadsafe(work, self._caller.loop)
        self._waits.add(future)
        if self._stopped:
            future.cancel()
        try:
            return future.result()
        finally:
            self._waits.discard(future)

    def _check_loop(self) -> None:
        if threading.get_ident() != self._thread:
            raise WrongLoopError(
                "ctx was awaited on another event loop than its replica's, as with asyncio.run",
                hint="in a plain `def` handler call ctx.sync.ask(…), or make the handler async",
            )

    async def submit(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> Handle:
        """Ask another agent without waiting; takes the options of `Squad.ask`.

        What is not said travels along from this task: conversation, priority, model and parameters. Deadline and
        budget can only be tighter than its own.

        What a sealed task asks is sealed as well.

        What it may spend is set aside: the `budget` given, as far as it is left, or half of what is left. When its
        outcome is known here, what it really spent is charged, and the rest comes back. What never comes stays
        charged.

        Raises:
            InvalidInputError: there is no such option, or it can't have that value.
        """
        return await self._submit("", topic, content, options)

    async def negotiate(
        self,
        topics: str | Iterable[str],
        content: Any = None,
        /,
        *,
        bids_within_s: float = BIDS_WITHIN_S,
        **options: Unpack[AskKeywords],
    ) -> Outcome:
        """Have agents bid for a task, and ask the best, on failure the next; see `Squad.negotiate`."""
        return await negotiate(
            self._caller,
            self.submit,
            topics,
            content,
            {"sealed": self.is_sealed, **options},
            bids_within_s=bids_within_s,
            deadline=self.deadline,
            limit=self.budget,
        )

    async def _submit(
        self, owner: str, topic: str, content: Any, options: AskKeywords, reserved: str = ""
    ) -> Handle:
        self._check_loop()
        own = AskOptions.of(options)
        self._asked += 1
        # Of the same id it is the same task, in a later attempt, too; any other is asked once.
        key = reserved or own.task_id or f"{ONCE}{self.attempt}.{self._asked}"
        budget = own.budget if reserved else self.ledger.grant_to(key, own.budget)
        message = self.message
        said = {
            "priority": message.routing.priority,
            "conversation_id": message.context.conversation_id,
            "model": message.payload.model,
            "parameters": message.payload.parameters,
            **options,
            "within_s": self.deadline.earliest(own.within_s),
            "budget": budget,
            "nested": own.nested or message.nested,
            "sealed": own.sealed or self.is_sealed,
        }
        handle = await self._caller.submit(
            topic, content, AskOptions.of(said), parent=self._parent, owner=owner, once=bool(owner)
        )
        handle._when_known(lambda outcome: self.ledger.settle_task(key, outcome))
        self._children = self._children or WeakSet()
        self._children.add(handle)
        if message.nested and not handle.done:
            await self._stream().point_to(handle.task_id, handle.topic, handle.reply_to)
        return handle

    @cached_property
    def _parent(self) -> Parent:
        message = self.message
        path = (*message.path, step_of(self.topic, message.payload.content))
        readers = tuple(map(str, self._readers)) if message.nested else ()
        return Parent(message.id, path, message.source.id, self.behalf, readers)

    @property
    def cancelled(self) -> bool:
        """Whether the work is to stop: somebody cancelled the task, or its time is up.

        An async handler gets `asyncio.CancelledError`; one in a thread can't be interrupted and should look here.
        """
        return self._stopped

    def charge(self, tokens: int = 0, *, usd: float = 0.0, rounds: int = 1) -> None:
        """Note what a call of a model cost; it counts against the budget and is told in the outcome.

        Args:
            tokens: input and output.
            rounds: how many calls it were.

        Raises:
            InvalidInputError: an amount is below zero, or no number.
        """
        check = Budget(tokens=tokens, usd=usd, rounds=rounds)
        self.ledger.charge(Spent(*(coin or 0 for coin in check.coins)))

    async def remember(self, item: Any) -> None:
        """Add one JSON value to this agent's memory of the conversation; any replica can recall it.

        If this task is sealed, nobody else can read it.
        """
        self._check_loop()
        await self._own.append(self._memory_key, json.dumps(whole(item)).encode(), ttl_s=MEMORY_TTL_S)

    async def recall(self, *, most: int = 50) -> list[Any]:
        """The newest `most` items this agent remembers of the conversation, oldest first."""
        self._check_loop()
        items = []
        async for entry in self._own.read(self._memory_key):
            # What is no JSON, or can't travel, was not remembered here.
            with contextlib.suppress(ValueError):
                if END_HEADER not in entry.headers:
                    items.append(from_json(entry.data))
        return items[max(0, len(items) - most) :]

    @property
    def _memory_key(self) -> str:
        conversation = token_of(self.message.context.conversation_id)
        return self._caller.ports.subjects.lite(memory_owner(self._agent), conversation)


class TurnContext(Context):
    """The same as the turn that runs has it, and agents of the house.

    Attributes:
        lease: the right to work on the task; None where nobody gave one.
    """

    lease: Lease | None = None

    @cached_property
    def thinking(self) -> set[str]:
        """Runs that go on in this turn: a handler may think several thoughts at once."""
        return set()

    @cached_property
    def answer_by(self) -> Deadline:
        """When this attempt should end by itself: so it is heard before its caller gives up or it is stopped.

        It is set when the handler starts; until then it is the caller's deadline.
        """
        return self.deadline

    @property
    def agent(self) -> str:
        """The agent whose turn it is, by the name under which it is deployed."""
        return self._agent

    @property
    def caller(self) -> Caller:
        """The asking side itself, for discovery and for waiting on handles."""
        return self._caller

    @property
    def own(self) -> OwnJournal:
        """Where the agent keeps what is its own."""
        return self._own

    async def submit_for(
        self, owner: str, topic: str, content: Any, *, reserved: str = "", **options: Unpack[AskKeywords]
    ) -> Handle:
        """As `submit`, with an owner of the lite topics that outcomes come back on; see `Caller.submit`.

        Args:
            reserved: the key under which the ledger set its `budget` aside already (`Ledger.grant_to`): it goes
                out as it is, and is settled under this key.
        """
        return await self._submit(owner, topic, content, options, reserved)

    async def adopt(self, task_id: str, topic: str, reply_to: str, deadline: Deadline) -> Handle:
        """Take up a task that an earlier attempt sent: it is cancelled with this one. See `Caller.adopt`."""
        handle = await self._caller.adopt(task_id, topic, reply_to, deadline, sealed=self.is_sealed)
        self._children = self._children or WeakSet()
        self._children.add(handle)
        return handle

    async def finish(self, end: str) -> None:
        """End what was emitted, if anything was, before the outcome is stored; see `StreamWriter.finish`."""
        self._ended = True
        if self._writer is not None:
            await self._writer.finish(end)

    def close(self) -> None:
        """Nothing is emitted any more, and nothing begins in a thread."""
        self._ended = True
        self.threads.close()
        if self._writer is not None:
            self._writer.close()

    def stop(self) -> None:
        """Tell a handler in a thread that it should stop; what it waits for by `sync` is cancelled."""
        self._stopped = True
        for future in tuple(self._waits):
            future.cancel()

    async def cancel_children(self) -> None:
        """Ask all tasks that were asked from here to stop; does not wait for them."""

        async def ask(handle: Handle) -> None:
            # What somebody else had asked under the same id goes on.
            with contextlib.suppress(UntrustedError):
                await self._caller.request_cancel(handle)

        await asyncio.gather(*(ask(handle) for handle in self._children or () if not handle.done))

    async def withdraw_questions(self) -> None:
        """The task has ended: nobody waits for answers any more."""
        if self._questions is not None:
            await self._questions.withdraw()

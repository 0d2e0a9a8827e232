"""What a run does in the world: tasks and tools go out, and what comes of them is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from squadron.actors.runs.books import Books
from squadron.actors.runs.built_in import ASK_PERSON, AskPerson, read_arguments
from squadron.actors.runs.entries import Dispatch, End, Ended, Entry, Finished, Sending, Sent, Withdrawn
from squadron.actors.runs.prepare import Ready, Unsendable
from squadron.actors.runs.queries import Queries
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.references import BadReferenceError, task_id
from squadron.actors.runs.state import Call, RunState
from squadron.actors.thinking.model import Attachment, ToolDefinition
from squadron.runtime.asking.handle import Handle
from squadron.runtime.errors import Retry, Terminal
from squadron.runtime.running.context import TurnContext
from squadron.runtime.texts import whole
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Outcome, Result
from squadron.runtime.wire.subjects import token_of

#: Share of the remaining time that a call gets, so that a stuck one leaves time to reason again.
CALL_SHARE = 0.8
#: How long an end waits for others to be stored with it, in seconds: about as long as storing it takes.
TOGETHER_S = 0.002


class Tool(Protocol):
    """A tool that the agent itself runs.

    Attributes:
        may_repeat: whether it may be run again when nobody knows how far it came.
        within_s: how long it may run, in seconds.
    """

    definition: ToolDefinition
    may_repeat: bool
    within_s: float

    async def run(self, arguments: Any) -> Any:
        """Run it; returns JSON-ready data, or an `Attachment` or a list of them, which the model gets to see.

        Raises:
            Retry: it did nothing; the next attempt at the task is to run it again.
            Terminal: the whole run comes to nothing.
            Exception: it failed, which the model is told.
        """
        ...


#: Answers a call on the spot, with what is to be stored for it.
Answer = Callable[[Call], Awaitable[Sequence[Entry]]]


@dataclass
class Actions:
    """One attempt's hands: what it began, and what it took up from the attempts before.

    Attributes:
        answers: built-in tools by name.
        failure: what ends this attempt: nothing new begins in it.
    """

    ctx: TurnContext
    recorder: Recorder
    books: Books
    group: asyncio.TaskGroup
    queries: Queries

    def __post_init__(self) -> None:
        self.answers: Mapping[str, Answer] = {}
        self.failure: Retry | None = None
        self._handles: dict[str, dict[int, Handle]] = {}
        self._ends: asyncio.Queue[End] = asyncio.Queue()
        self._working = [self.group.create_task(self._collect())]

    @property
    def _state(self) -> RunState:
        return self.recorder.state

    def close(self) -> None:
        """Stop what goes on here; nothing that comes is stored any more."""
        for task in self._working:
            task.cancel()

    async def begin(self, calls: Sequence[Call]) -> None:
        """Answer or send calls that the model made: all are made ready before any is sent."""
        ends, ready, asked = list[End](), list[tuple[Call, Ready]](), list[tuple[Call, bool]]()
        for call in calls:
            try:
                if call.said.problem:
                    raise ValueError(call.said.problem)
                if call.said.name in self.answers and self._state.toolbox.has(call.said.name):
                    await self.recorder.store(*await self.answers[call.said.name](call))
                    continue
                if call.said.name == ASK_PERSON and self._state.toolbox.has(ASK_PERSON):
                    read_arguments(AskPerson, self._state.results.fill(call.said.arguments))
                    asked.append((call, False))
                    continue
                made = self._state.prepared(call)
                if self.queries.needed(call, made):
                    asked.append((call, True))
                    continue
                if circling := self._state.repeats.refusal(made.topic, made.comparable):
                    raise ValueError(circling)
                ready.append((call, made))
            except (ValueError, BadReferenceError) as error:
                ends.append(refusal(call, str(error)))
        dispatches = self._dispatches(ready)
        for call, made in ready:
            ends += _unsendable(call, made)
        deadline_ms = self._deadline_ms()
        entries: list[Entry] = [
            self.queries.entry(call, approval=approval, deadline_ms=deadline_ms) for call, approval in asked
        ]
        if dispatches:
            entries.append(Sending(at=self._now(), round=calls[0].round, calls=dispatches))
        if ends:
            entries.append(Ended(at=self._now(), ends=tuple(ends)))
        if entries:
            await self.recorder.store(*entries)
        self._ask([call for call, _ in asked])
        await self._send([call for call, _ in ready])

    def _ask(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._working.append(self.group.create_task(self.queries.ask(call)))

    def _deadline_ms(self) -> int:
        within_s = CALL_SHARE * max(0.0, self._state.deadline_at - self._now())
        return round(1000 * (self._now() + within_s))

    def _dispatches(self, ready: Sequence[tuple[Call, Ready]]) -> tuple[Dispatch, ...]:
        deadline_ms = self._deadline_ms()
        count = sum(len(made.contents) for _, made in ready if not made.own)
        share = self.books.share(count).to_wire() if count else {}
        dispatches = []
        for call, made in ready:
            dispatches.append(
                Dispatch(
                    call=call.id,
                    kind="tool" if made.own else "topic",
                    topic=made.topic,
                    tasks=len(made.contents),
                    deadline_ms=deadline_ms,
                    share={} if made.own else share,
                )
            )
        return tuple(dispatches)

    async def take_up(self, *, send: bool) -> None:
        """Go on with what earlier attempts began and did not see the end of.

        Args:
            send: also what may not have gone out.
        """
        running = self._state.running
        for call in running:
            if call.out[0].kind == "topic":
                await asyncio.gather(*(self._adopt(call, index) for index in call.open))
        if send:
            self._ask(self._state.asks)
            await self._send([call for call in running if not call.sent], again=True)

    async def _adopt(self, call: Call, index: int) -> None:
        dispatch, task = call.out[0], task_id(self._state.run, call.id, index)
        address = self.ctx.caller.ports.subjects.lite(self._state.run, token_of(task))
        deadline = Deadline(dispatch.deadline_ms, self.ctx.caller.ports.clock)
        handle = await self.ctx.adopt(task, dispatch.topic, address, deadline)
        if handle.done or call.sent:
            self._gather(call, index, handle)

    async def _send(self, calls: Sequence[Call], *, again: bool = False) -> None:
        sent, tasks = list[Call](), list[tuple[Call, int]]()
        for call in calls:
            if call.out[0].kind == "tool":
                self._working.append(self.group.create_task(self._run_tool(call, again=again)))
                continue
            known = self._handles.get(call.id, {})
            tasks += [(call, index) for index in call.open if index not in known]
            sent.append(call)
        # All at once: each waits for two answers of the server.
        handles = await asyncio.gather(*(self._submit(call, index) for call, index in tasks))
        for (call, index), handle in zip(tasks, handles, strict=True):
            self._gather(call, index, handle)
        if sent:
            await self.recorder.store(Sent(at=self._now(), calls=tuple(call.id for call in sent)))

    async def _submit(self, call: Call, index: int) -> Handle:
        dispatch, ready = call.out
        task = task_id(self._state.run, call.id, index)
        within_s = max(0.0, dispatch.deadline_ms / 1000 - self._now())
        return await self.ctx.submit_for(
            self._state.run,
            dispatch.topic,
            ready.contents[index],
            reserved=task,
            budget=self.books.share_of(dispatch),
            within_s=within_s,
            task_id=task,
        )

    def _gather(self, call: Call, index: int, handle: Handle) -> None:
        self._handles.setdefault(call.id, {})[index] = handle
        self._working.append(self.group.create_task(self._await(call, index, handle)))

    async def _await(self, call: Call, index: int, handle: Handle) -> None:
        outcome = await handle.outcome()
        self._ends.put_nowait(end_of(call, index, outcome))

    async def _run_tool(self, call: Call, *, again: bool) -> None:
        dispatch, ready = call.out
        tool: Tool = self._state.toolbox.own[dispatch.topic]  # type: ignore[assignment]
        common: dict[str, Any] = {"call": call.id, "topic": dispatch.topic}
        if again and not tool.may_repeat:
            reason = "it was interrupted while it ran; it may have acted, so it is not run again"
            return self._ends.put_nowait(End(outcome="failed", reason=reason, **common))
        started = self.ctx.caller.loop.time()
        try:
            async with asyncio.timeout(tool.within_s) as limit:
                data = await tool.run(ready.contents[0])
            attachments = attached(data)
            shown = [each.name or each.media_type for each in attachments] if attachments else data
            end = End(outcome="result", data=shown, attachments=attachments, **common)
        except Retry as error:
            self.failure = error
            await self.recorder.store(Withdrawn(at=self._now(), calls=(call.id,)))
            raise
        except Terminal as error:
            return await self.recorder.store(Finished(at=self._now(), stopped="failed", error=str(error)))
        except TimeoutError as error:
            why = f"ran longer than its {tool.within_s:g} s" if limit.expired() else f"TimeoutError: {error}"
            end = End(outcome="timed_out" if limit.expired() else "failed", reason=why, **common)
        except asyncio.CancelledError:
            if self._stopping():
                raise
            end = End(outcome="failed", reason="what it waited for was cancelled", **common)
        except (Exception, SystemExit) as error:
            # The model can often do something about it: other arguments, another way.
            end = End(outcome="failed", reason=whole(f"{type(error).__name__}: {error}"), **common)
        took = round(1000 * (self.ctx.caller.loop.time() - started), 3)
        self._ends.put_nowait(end.model_copy(update={"latency_ms": took}))

    @staticmethod
    def _stopping() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _collect(self) -> None:
        """Store what comes, as much of it at once as is there."""
        while True:
            ends = [await self._ends.get()]
            if len(self._state.running) > 1:
                # Calls that were sent together end together: one entry for all costs less than one for each.
                await asyncio.sleep(TOGETHER_S)
            while not self._ends.empty():
                ends.append(self._ends.get_nowait())
            await self.recorder.store(Ended(at=self._now(), ends=tuple(ends)))

    async def cancel(self, calls: Collection[str]) -> None:
        """Ask what these calls sent to stop; their ends are told as any other."""
        handles = [each for call in calls for each in self._handles.get(call, {}).values() if not each.done]
        await asyncio.gather(*(handle.cancel() for handle in handles))

    def _now(self) -> float:
        return self.ctx.caller.ports.clock.time()


def _unsendable(call: Call, ready: Ready) -> Iterable[End]:
    for index, content in enumerate(ready.contents):
        if isinstance(content, Unsendable):
            yield End(call=call.id, index=index, topic=ready.topic, outcome="rejected", reason=content.reason)


def attached(data: Any) -> tuple[Attachment, ...]:
    """The attachments that a tool returned, if it returned nothing else."""
    given = data if isinstance(data, list) else [data]
    return tuple(given) if all(isinstance(each, Attachment) for each in given) else ()


def refusal(call: Call, reason: str) -> End:
    """The end of a call that is not carried out."""
    return End(call=call.id, topic=call.said.name, outcome="rejected", reason=reason)


def answer(call: Call, data: Any) -> End:
    """The end of a call that is answered on the spot."""
    return End(call=call.id, topic=call.said.name, outcome="result", data=data)


def end_of(call: Call, index: int, outcome: Outcome) -> End:
    """How a task ended, as the log keeps it."""
    rest: dict[str, Any] = {}
    if isinstance(outcome, Result):
        rest = {"data": outcome.data, "confidence": outcome.confidence, "reasoning": outcome.reasoning}
    return End(
        call=call.id,
        index=index,
        topic=outcome.topic,
        outcome=outcome.kind,
        reason=outcome.reason,
        source=outcome.source,
        attempt=outcome.attempt,
        latency_ms=outcome.latency_ms,
        spent=outcome.spent.to_wire(),
        **rest,
    )

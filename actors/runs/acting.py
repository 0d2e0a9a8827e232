"""What a run does in the world: tasks and tools go out, and what comes of them is stored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squadron.actors.runs.bidding_calls import BiddingCalls, Wanted
from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.built_in import ASK_PERSON, CALL_FOR_BIDS
from squadron.actors.runs.call import Call
from squadron.actors.runs.ends import answer, attached, end_of, refusal, unsendable
from squadron.actors.runs.entries import CallEnd, CallsEnded, Dispatch, Entry, Finished, Sending, Sent, Withdrawn
from squadron.actors.runs.prepare import Ready, candidates
from squadron.actors.runs.queries import Queries
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.references import BadReferenceError, task_id
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Tool
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.negotiation import acceptance, see_through
from squadron.runtime.asking.options import AskKeywords
from squadron.runtime.background import to_its_end
from squadron.runtime.errors import BudgetError, InvalidInputError, Park, Retry, Terminal, UnansweredError
from squadron.runtime.retries import summary_of
from squadron.runtime.running.context import TurnContext
from squadron.runtime.texts import whole
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.subjects import token_of

#: Share of the remaining time that a call gets, so that a stuck one leaves time to reason again.
CALL_SHARE = 0.8
#: Longest time to take a call back, in seconds: two reconnects. After a longer outage it counts as interrupted.
WITHDRAW_S = 5.0
#: Why a tool that nobody may repeat has no end.
INTERRUPTED = "it was interrupted while it ran; it may have acted, so it is not run again"
#: How long an end waits for others to be stored with it, in seconds: about as long as storing it takes.
TOGETHER_S = 0.002


#: Answers a call on the spot, with what is to be stored for it.
OnTheSpot = Callable[[Call], Awaitable[Sequence[Entry]]]


@dataclass
class Actions:
    """One attempt's hands: what it began, and what it took up from the attempts before.

    Attributes:
        answers: built-in tools by name.
        bidding: how others are asked to bid for calls.
        failing: a tool ends this attempt, and nothing new begins in it.
    """

    ctx: TurnContext
    recorder: Recorder
    books: RunBooks
    group: asyncio.TaskGroup
    queries: Queries

    def __post_init__(self) -> None:
        self.answers: Mapping[str, OnTheSpot] = {}
        self.failing = False
        self._handles: dict[str, dict[int, Handle]] = {}
        #: What came and is not stored yet.
        self._ends, self._came = list[CallEnd](), asyncio.Event()
        self._working = list[asyncio.Task[None]]()
        self._start(self._collect())
        self.bidding = BiddingCalls(self.ctx, self.books, self._state.run)
        #: What goes on here for a call that is no task of others, and calls that the model wants no more.
        self._own_work: dict[str, asyncio.Task[None]] = {}
        self._unwanted: set[str] = set()
        #: Calls whose next bid is about to be tried.
        self._going_on: set[asyncio.Task[None]] = set()

    @property
    def _state(self) -> RunState:
        return self.recorder.state

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._working.append(self.group.create_task(work))
        return self._working[-1]

    def close(self) -> None:
        """Stop what goes on here; nothing that comes is stored any more."""
        for task in self._working:
            task.cancel()

    async def begin(self, calls: Sequence[Call]) -> None:
        """Answer or send calls that the model made: all are made ready before any is sent."""
        ends, ready, entries = list[CallEnd](), list[tuple[Call, Ready]](), list[Entry]()
        wanted = list[Wanted]()
        for call in calls:
            try:
                if call.said.problem:
                    raise ValueError(call.said.problem)
                if call.said.name in self.answers and self._state.toolbox.has(call.said.name):
                    await self.recorder.decide(*await self.answers[call.said.name](call))
                    continue
                if call.said.name == ASK_PERSON and self._state.toolbox.has(ASK_PERSON):
                    self.queries.check_may_ask()
                    entries.append(self.queries.entry(call, deadline_ms=self._deadline_ms()))
                    continue
                if call.said.name == CALL_FOR_BIDS and self._state.toolbox.has(CALL_FOR_BIDS):
                    wanted.append((call, self._candidates(call)))
                    continue
                made = self._state.prepared(call)
                if circling := self._state.repeats.refusal(made.topic, made.comparable):
                    raise ValueError(circling)
                if not made.contents:
                    # A for_each over nothing has no task whose end would end it.
                    ends.append(answer(call, []))
                elif self.queries.needed(call, made):
                    entries.append(self.queries.entry(call, approval=True, deadline_ms=self._deadline_ms()))
                else:
                    ready.append((call, made))
            except (ValueError, BadReferenceError, InvalidInputError) as error:
                ends.append(refusal(call, str(error)))
        deadline_ms = self._deadline_ms()
        # Shares are those of the moment in which they are set aside.
        async with self.recorder.lock:
            ready, refused = self._affordable(ready)
            ends += refused
            for call, made in ready:
                ends += unsendable(call, made)
            if ends:
                entries.append(CallsEnded(at=self._now(), ends=tuple(ends)))
            if dispatches := self._dispatches(ready):
                entries.insert(0, Sending(at=self._now(), calls=dispatches))
            if entries:
                await self.recorder.decide_locked(*entries)
        self._ask([call for call in calls if call.asks])
        await self._send([call for call, _ in ready])
        if wanted:
            bids = await self.bidding.bids(wanted, deadline_ms)
            async with self.recorder.lock:
                await self.recorder.decide_locked(*self.bidding.awards(wanted, bids, deadline_ms))
            await self._send([call for call, _ in wanted if call.open])
            for call, _ in wanted:
                self.after_try(call)

    def _candidates(self, call: Call) -> dict[str, Any]:
        contents = candidates(call.said, self._state.toolbox, self._state.results)
        for topic, content in contents.items():
            if self.queries.needed(call, Ready(topic, [content])):
                raise ValueError(f"a person has to approve what goes to {topic}: call it by itself")
            if circling := self._state.repeats.refusal(topic, [content]):
                raise ValueError(circling)
        return contents

    def after_try(self, call: Call) -> None:
        """Of a call that agents have bid for a task has ended: the next one is tried, or it is over."""
        if call.next_try is not None:
            task = self._start(self._go_on(call))
            self._going_on.add(task)
            task.add_done_callback(self._going_on.discard)
        elif not call.running and call.award is not None:
            self._start(self.bidding.reject_others(call))

    async def _go_on(self, call: Call) -> None:
        while True:
            async with self.recorder.lock:
                index = call.next_try
                if self._state.finished is not None or index is None or call.award is None:
                    break
                share = self.books.share(1)
                entry = self.bidding.attempt(call, call.award, index, share, self._deadline_ms())
                await self.recorder.store_locked(entry)
        await self._send([call] if call.open else [])

    def _ask(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._own_work[call.id] = self._start(self.queries.ask(call))

    def _deadline_ms(self) -> int:
        within_s = CALL_SHARE * max(0.0, self._state.deadline_at - self._now())
        return round(1000 * (self._now() + within_s))

    def _affordable(self, ready: Sequence[tuple[Call, Ready]]) -> tuple[list[tuple[Call, Ready]], list[CallEnd]]:
        """The calls that may go out, in their order, and the ends of those that the budget has no tasks for."""
        kept, ends, tasks = list[tuple[Call, Ready]](), list[CallEnd](), 0
        for call, made in ready:
            count = 0 if made.own else len(made.contents)
            if count and (why := self.books.refusal(count, tasks)):
                ends.append(refusal(call, why))
            else:
                kept.append((call, made))
                tasks += count
        return kept, ends

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
                    digest=made.digest,
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
            if call.open and call.out[0].kind == "topic":
                await asyncio.gather(*(self._adopt(call, index, keep=not send) for index in call.open))
        if send:
            self._ask(self._state.asks)
            await self._send([call for call in running if call.open and not call.sent], again=True)
            for call in running:
                self.after_try(call)

    async def _adopt(self, call: Call, index: int, *, keep: bool) -> None:
        dispatch, task = call.out[0], task_id(self._state.run, call.id, index)
        address = self.ctx.caller.ports.subjects.lite(self._state.run, token_of(task))
        deadline = Deadline(dispatch.deadline_ms, self.ctx.caller.ports.clock)
        handle = await self.ctx.adopt(task, dispatch.topic, address, deadline)
        if handle.done or call.sent or keep:
            self._gather(call, index, handle)

    async def _send(self, calls: Sequence[Call], *, again: bool = False) -> None:
        sent, tasks = list[Call](), list[tuple[Call, int]]()
        for call in calls:
            if call.out[0].kind == "tool":
                self._own_work[call.id] = self._start(self._run_tool(call, again=again))
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
        budget, offer = self.books.share_of(dispatch), call.award.offer(index) if call.award else None
        how: AskKeywords = {"budget": budget} if offer is None else acceptance(offer, budget)
        how |= {"within_s": within_s, "task_id": task}
        content = ready.contents[index - dispatch.first]
        return await self.ctx.submit_for(self._state.run, dispatch.topic, content, reserved=task, **how)

    def _gather(self, call: Call, index: int, handle: Handle) -> None:
        self._handles.setdefault(call.id, {})[index] = handle
        self._start(self._await(call, index, handle))

    async def _await(self, call: Call, index: int, handle: Handle) -> None:
        offer = call.award.offer(index) if call.award else None
        if offer is None:
            outcome = await handle.outcome()
        else:
            outcome = await see_through(self.ctx.caller, handle, offer)
        self._end(end_of(call, index, outcome))

    async def _run_tool(self, call: Call, *, again: bool) -> None:
        dispatch, ready = call.out
        common: dict[str, Any] = {"call": call.id, "topic": dispatch.topic}
        if dispatch.topic not in self._state.toolbox.own:
            # The agent is another one since its last attempt.
            return self._end(CallEnd(outcome="failed", reason="it has no such tool now", **common))
        tool: Tool = self._state.toolbox.own[dispatch.topic]  # type: ignore[assignment]
        if again and not tool.may_repeat:
            return self._end(CallEnd(outcome="failed", reason=INTERRUPTED, **common))
        started = self.ctx.caller.loop.time()
        try:
            async with asyncio.timeout(tool.within_s) as limit:
                data = await tool.run(ready.contents[0])
            attachments = attached(data)
            shown = [each.name or each.media_type for each in attachments] if attachments else data
            end = CallEnd(outcome="result", data=shown, attachments=attachments, **common)
        except (Retry, Park):
            self.failing = True
            # To its end, also if another tool ends the attempt in the same moment.
            await to_its_end(self._withdraw(call))
            raise
        except (UnansweredError, BudgetError) as error:
            end = CallEnd(outcome="failed", reason=str(error), **common)
        except Terminal as error:
            self._end(CallEnd(outcome="failed", reason=str(error), **common))
            await self._store_ends(Finished(at=self._now(), stopped="failed", error=str(error)))
            return
        except TimeoutError as error:
            why = f"ran longer than its {tool.within_s:g} s" if limit.expired() else f"TimeoutError: {error}"
            end = CallEnd(outcome="timed_out" if limit.expired() else "failed", reason=why, **common)
        except asyncio.CancelledError:
            if call.id in self._unwanted:
                end = CallEnd(outcome="cancelled", reason="it was stopped", **common)
            elif self._stopping():
                raise
            else:
                end = CallEnd(outcome="failed", reason="what it waited for was cancelled", **common)
        except (Exception, SystemExit) as error:
            # The model can often do something about it: other arguments, another way.
            end = CallEnd(outcome="failed", reason=whole(summary_of(error)), **common)
        took = round(1000 * (self.ctx.caller.loop.time() - started), 3)
        self._end(end.model_copy(update={"latency_ms": took}))

    async def _withdraw(self, call: Call) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHDRAW_S):
                # With what came by now: the attempt ends here, and nobody else would store it.
                await self._store_ends(Withdrawn(at=self._now(), calls=(call.id,)))
                while self._ends:
                    await self._store_ends()

    @staticmethod
    def _stopping() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def _end(self, end: CallEnd) -> None:
        self._ends.append(end)
        self._came.set()

    async def _collect(self) -> None:
        """Store what comes, as much of it at once as is there."""
        while True:
            await self._came.wait()
            if len(self._state.running) > 1:
                # Calls that were sent together end together: one entry for all costs less than one for each.
                await asyncio.sleep(TOGETHER_S)
            for id in await self._store_ends():
                self.after_try(self._state.calls[id])

    async def _store_ends(self, *more: Entry) -> set[str]:
        """Store what came, and what is decided by it; returns the calls of which something ended."""
        async with self.recorder.lock:
            ends, self._ends = tuple(self._ends), []
            self._came.clear()
            entries = (CallsEnded(at=self._now(), ends=ends), *more) if ends else more
            if entries:
                await self.recorder.store_locked(*entries)
        return {end.call for end in ends}

    async def cancel(self, calls: Collection[str]) -> None:
        """Stop what these calls began, be it tasks, tools or questions; their ends are told as any other."""
        # What is about to go out gets a handle first.
        await asyncio.gather(*self._going_on)
        await self.recorder.look()
        asking = [call for id in calls if (call := self._state.calls[id]).asks]
        self._unwanted.update(calls)
        for id in calls:
            if work := self._own_work.get(id):
                work.cancel()
        if asking:
            await self.queries.withdraw(asking)
            async with self.recorder.lock:
                # One whose answer was being stored meanwhile has its end.
                ends = tuple(
                    CallEnd(call=call.id, topic=call.said.name, outcome="cancelled", reason="it was withdrawn")
                    for call in asking
                    if not call.ends
                )
                if ends:
                    await self.recorder.decide_locked(CallsEnded(at=self._now(), ends=ends))
        handles = [each for call in calls for each in self._handles.get(call, {}).values() if not each.done]
        await asyncio.gather(*(handle.cancel() for handle in handles))

    def _now(self) -> float:
        return self.ctx.caller.ports.clock.time()

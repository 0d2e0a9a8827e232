"""The loop: ask the model, do what it says, tell it what came of that, until there is an answer or a limit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from squadron.actors.runs.acting import Actions
from squadron.actors.runs.built_in import (
    CANCEL,
    DISCOVER,
    FINISH,
    WAIT_FOR,
    CancelCalls,
    DiscoverTopics,
    Finish,
    WaitFor,
    read_arguments,
)
from squadron.actors.runs.call import Call
from squadron.actors.runs.ends import answer, refusal
from squadron.actors.runs.entries import CallsEnded, Entry, Finished, Nudge, Offered, Waiting
from squadron.actors.runs.mind import Mind
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.references import BadReferenceError
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import MAX_OFFERED
from squadron.actors.thinking.model import ModelTurn
from squadron.runtime.errors import BudgetError, ModelError, RunOverError, Terminal
from squadron.runtime.wire.topics import SemanticTopic

#: How a run ended: with the goal achieved or given up, at a limit, because its model failed for good, or because
#: round after round brought nothing new.
Stopped = Literal["finished", "gave_up", "rounds", "time", "budget", "model", "length", "stuck"]
#: How long a run that only waits for people holds its slot, in seconds: some answer at once.
PARK_AFTER_S = 5.0
#: How many rounds in a row may bring no result that was not there before; a call that ends for the third time in
#: the same way is refused already.
MOST_STALE_ROUNDS = 4
#: What is said to a turn that says nothing and calls nothing; another one right after it is as good as no answer.
SAID_NOTHING = "You said nothing and called no tool. Go on, or give your answer in words."
#: Longest wait for calls that the model named, in seconds, where it does not say.
WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The run is over; `value` is what its task returns."""

    value: Any
    stopped: Stopped = "finished"


class Aim(Protocol):
    """What a run is for, and when it is there."""

    async def find(self, intent: str) -> Sequence[SemanticTopic]:
        """Topics that fit an intent, the best first."""
        ...

    def judge(self, state: RunState, turn: ModelTurn) -> Conclusion | str:
        """What a turn without calls comes to: the end, or what to say to the model about it.

        Raises:
            Terminal: it will come to nothing.
        """
        ...

    def finish(self, state: RunState, asked: Finish) -> Conclusion:
        """The end that the model asked for, with its references resolved."""
        ...

    def stop(self, state: RunState, stopped: Stopped, why: str) -> Any:
        """What the task returns when the run ends at a limit.

        Raises:
            Terminal: without an answer there is nothing to return.
        """
        ...


class Loop:
    """One attempt at one run."""

    def __init__(self, recorder: Recorder, mind: Mind, aim: Aim, actions: Actions) -> None:
        self._recorder, self._mind, self._aim, self._actions = recorder, mind, aim, actions
        actions.answers = {
            DISCOVER: self._discover,
            WAIT_FOR: self._wait_for,
            CANCEL: self._cancel,
        }

    @property
    def _state(self) -> RunState:
        return self._recorder.state

    async def run(self) -> Finished:
        """Go on until the run is over; returns its last entry."""
        await self._actions.take_up(send=self._state.finished is None)
        while self._state.finished is None:
            if self._actions.failing:
                # The tool raises what ends it, as soon as its call is taken back.
                await self._mind.ctx.caller.loop.create_future()
            try:
                await self._step()
            except RunOverError:
                await self._stop("time", "its time is up")
            except BudgetError as error:
                await self._stop("budget", str(error))
            except ModelError as error:
                late = self._now() >= self._state.deadline_at
                why = f"the model gave no answer: {error}"
                await self._stop("time" if late else "model", "its time is up" if late else why)
            except Terminal as error:
                await self._recorder.decide(Finished(at=self._now(), stopped="failed", error=str(error)))
        # What still runs is not needed any more.
        await self._actions.cancel([call.id for call in self._state.running])
        await self._actions.queries.withdraw(self._state.asks)
        return self._state.finished

    async def _step(self) -> None:
        """Whatever comes next, by the state alone: so it does not matter who comes to it."""
        await self._recorder.look()
        state = self._state
        if unbegun := state.unbegun:
            if others := [call for call in unbegun if not self._ends_run(call)]:
                return await self._actions.begin(others)
            # Last, because what a turn gathered may be in what it hands over.
            if any(call.round == unbegun[0].round for call in state.outstanding):
                return await self._wait()
            return await self._finish(unbegun[0])
        if state.is_silent and not state.transcript.has_news:
            if state.outstanding:
                return await self._wait()
            assert state.last is not None
            return await self._judge(state.last.turn)
        # A question that was put stands, whatever became of who put it.
        if not state.put and (wait_s := self._wait_s()) is not None:
            return await self._wait(wait_s)
        assert state.epoch is not None
        if state.round >= state.epoch.max_rounds:
            return await self._stop("rounds", f"{state.round} rounds are the limit")
        if not state.put and state.repeats.rounds_without_news >= MOST_STALE_ROUNDS:
            return await self._stop("stuck", f"{MOST_STALE_ROUNDS} rounds in a row brought nothing new")
        await self._mind.think()

    def _ends_run(self, call: Call) -> bool:
        return call.said.name == FINISH and self._state.toolbox.has(FINISH) and not call.said.problem

    def _wait_s(self) -> float | None:
        """How long to wait for calls that run before the model is asked again, in seconds; None for not at all."""
        state, now = self._state, self._now()
        if not state.outstanding:
            return None
        if state.waiting is not None:
            named = [state.calls[id] for id in state.waiting.calls]
            left_s = state.waiting.until - now
            return left_s if left_s > 0 and any(call.running or call.asks for call in named) else None
        assert state.started is not None
        gather, ended = state.started.gather, state.ended_since
        total = ended + len(state.outstanding)
        enough = {"all": total, "quorum": total // 2 + 1}.get(str(gather.after))
        if ended >= min(total, int(gather.after) if enough is None else enough):
            return None
        if gather.within_s is None:
            return state.deadline_at - now
        left_s = max(call.sent_at for call in state.outstanding) + gather.within_s - now
        if left_s > 0:
            return left_s
        return None if ended else state.deadline_at - now

    async def _wait(self, within_s: float = math.inf) -> None:
        state = self._state
        left_s = state.deadline_at - self._now()
        if self._mind.left_s() <= 0:
            raise RunOverError("its time is up")
        # A parked run takes no time of the attempt: only the whole run's counts.
        wait_s = min(left_s, within_s)
        if state.running or not state.asks or wait_s <= PARK_AFTER_S:
            await self._recorder.changed(min(wait_s, self._mind.left_s()))
            return
        until = self._now() + wait_s
        if await self._recorder.changed(PARK_AFTER_S):
            return
        if park := self._actions.queries.park(state.asks, until=until):
            # Nothing else goes on: the slot is free for others until somebody answers, or it is time to go on.
            raise park

    async def _judge(self, turn: ModelTurn) -> None:
        judged = self._aim.judge(self._state, turn)
        if isinstance(judged, str):
            return await self._recorder.decide(Nudge(at=self._now(), text=judged))
        await self._recorder.decide(Finished(at=self._now(), stopped=judged.stopped, value=judged.value))

    async def _finish(self, call: Call) -> None:
        try:
            asked = read_arguments(Finish, self._state.results.fill(call.said.arguments))
        except (ValueError, BadReferenceError) as error:
            return await self._recorder.decide(CallsEnded(at=self._now(), ends=(refusal(call, str(error)),)))
        end = self._aim.finish(self._state, asked)
        await self._recorder.decide(Finished(at=self._now(), stopped=end.stopped, value=end.value))

    async def _stop(self, stopped: Stopped, why: str) -> None:
        await self._recorder.look()
        try:
            value = self._aim.stop(self._state, stopped, why)
        except Terminal as error:
            finished = Finished(at=self._now(), stopped=stopped, error=str(error))
            return await self._recorder.decide(finished)
        await self._recorder.decide(Finished(at=self._now(), stopped=stopped, value=value))

    # --- built-in tools ------------------------------------------------------------------------------

    async def _discover(self, call: Call) -> Sequence[Entry]:
        wanted = read_arguments(DiscoverTopics, self._state.results.fill(call.said.arguments))
        found = await self._aim.find(wanted.intent)
        toolbox = self._state.toolbox
        fresh = toolbox.fitting(found)
        left_out = {name: why for name, why in toolbox.left_out.items() if name not in self._state.left_out}
        if fresh or left_out:
            await self._recorder.decide(Offered(at=self._now(), cards=tuple(fresh), left_out=left_out))
        tools = {each.topic.name: each for each in toolbox.offered}
        told = [tools[topic.name] for topic in found if topic.name in tools]
        data: list[dict[str, Any]] = [
            {"tool": each.definition.name, "description": each.card.about} for each in told
        ]
        if full := [topic.name for topic in fresh if topic.name not in tools]:
            why = f"all {MAX_OFFERED} places are taken by tools that you called"
            data.append({"not_offered": full, "why": why})
        return (CallsEnded(at=self._now(), ends=(answer(call, data),)),)

    async def _wait_for(self, call: Call) -> Sequence[Entry]:
        asked = read_arguments(WaitFor, call.said.arguments)
        named = self._named(asked.calls)
        until = min(self._state.deadline_at, self._now() + (asked.most_s or WAIT_S))
        said = "You are asked again when they have ended, or the time is over."
        return (
            CallsEnded(at=self._now(), ends=(answer(call, said),)),
            Waiting(at=self._now(), calls=tuple(named), until=until),
        )

    async def _cancel(self, call: Call) -> Sequence[Entry]:
        named = self._named(read_arguments(CancelCalls, call.said.arguments).calls)
        await self._actions.cancel(named)
        said = "They are stopped, but for what runs in a thread, which goes on to its end unheard."
        return (CallsEnded(at=self._now(), ends=(answer(call, said),)),)

    def _named(self, names: Sequence[str]) -> list[str]:
        ids = [self._state.results.id_of(name) for name in names]
        for name, id in zip(names, ids, strict=True):
            if id not in self._state.calls:
                raise ValueError(f"there is no call {name!r}")
        return ids

    def _now(self) -> float:
        return self._mind.ctx.caller.ports.clock.time()


def was_told(state: RunState) -> bool:
    """Whether the turn before the newest one was told that it said nothing."""
    return state.nudged == (state.round - 1, SAID_NOTHING)


def raised_of(errors: BaseExceptionGroup[Any]) -> BaseException:
    """Of what a task group raised, that which counts: the first that is no cancellation."""
    flat = [raised_of(error) if isinstance(error, BaseExceptionGroup) else error for error in errors.exceptions]
    return next((error for error in flat if not isinstance(error, asyncio.CancelledError)), flat[0])

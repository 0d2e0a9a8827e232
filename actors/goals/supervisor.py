"""The agent that pursues goals: dispatch, gather, reason again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.goal import (
    DISCOVER,
    FINISH,
    BadReferenceError,
    DiscoverTopics,
    Dispatch,
    Finish,
    Notebook,
    RecordedTurn,
    Toolbox,
    answer_many,
    answer_one,
    outcome_fields,
    prepare,
    read_arguments,
    result_message,
)
from squadron.actors.goals.planner import OfflinePlanner, Plan
from squadron.actors.goals.run_report import CallReport, RunReport, Stopped, count_tasks
from squadron.actors.thinking.llm import (
    OFFLINE,
    Emitter,
    all_at_once,
    open_model,
    sampling_of,
    spec_of,
    think_patiently,
    with_unique_ids,
)
from squadron.actors.thinking.model import ChatMessage, Model, ModelTurn, ToolCall
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.handle import Handle
from squadron.runtime.errors import FencedError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.outcome import Outcome, Rejected
from squadron.runtime.wire.subjects import matches, token_of
from squadron.runtime.wire.topics import SemanticTopic

_RECORDED = TypeAdapter(RecordedTurn)

OWN_TOPIC = "goal.pursue"
#: Longest run, in seconds; the handler's own limit lies above it, so that a run ends with a report.
MAX_WITHIN_S, RUN_TIMEOUT_S = 3600.0, 3660.0
#: Life of a run's journal, in seconds: three attempts of the longest run, and some.
JOURNAL_TTL_S = 4 * 3600.0
#: Shares of the remaining time: for a run that has no more than its caller, since the report must arrive too, and
#: for a call, so that a stuck one leaves time to reason again.
REPORT_IN_TIME, CALL_SHARE = 0.95, 0.8
#: How many topics one search by intent offers.
FOUND = 12
#: Outcome events kept in the report's timeline, so that it stays far below NATS' `max_payload`; all are
#: emitted, and the report's `calls` count all.
MAX_TIMELINE = 1_000

SYSTEM_PROMPT = """You pursue a goal by calling tools. Most tools are agents on a network; each call is a task.

- All calls of one turn run in parallel: put everything that does not depend on each other into one turn.
- Each result has the id of its call. Never copy data from results into arguments: anywhere in the arguments of any
  tool, whatever type its schema names, {{"$from": "CALL_ID"}} is replaced by the result of that earlier call,
  and {{"$from": "CALL_ID#/a/0/b"}} by the part of it at that JSON pointer (RFC 6901); long results you see cut.
- for_each calls one tool for every item of a list, in parallel; it is the way to handle many things.
- discover_topics finds tools that you were not offered.
- Calls can fail; you are told why. Try another way, or go on without and say so in the answer.
- Call finish when the goal is reached, or when it can't be. Hand over data as deliverables by reference.

You have at most {rounds} turns and {seconds:.0f} seconds.{plan}"""


#: As `runtime.wire.subjects.check_pattern` has it, but where a schema shows it.
Pattern = Annotated[str, Field(pattern=r"^([A-Za-z0-9_-]{1,64}|\*)\.([A-Za-z0-9_-]{1,64}|\*)$")]


class Supervisor(Agent):
    """Ray restarts what crashed; a Supervisor decides what to do next.

    It puts a goal and the topics that fit it to a model, runs the calls that the model makes in parallel, tells
    it what came of them, and goes on until the goal is reached or a limit is. Its runs survive a crash.
    """

    name: ClassVar[str] = "supervisor"

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        """The model of a run; tests override it.

        Raises:
            Terminal: `spec` names none, or there is no key for it.
        """
        return OfflinePlanner(plan) if spec == OFFLINE else open_model(spec)

    @topic(
        OWN_TOPIC,
        run_timeout_s=RUN_TIMEOUT_S,
        examples=["find out what our reviews complain about and draft an answer to each"],
        tags=["goal", "plan", "orchestrate", "delegate"],
    )
    async def pursue(
        self,
        ctx: TurnContext,
        goal: Annotated[str, Field(min_length=1)],
        topics: tuple[Pattern, ...] = (),
        plan: Plan | None = None,
        max_rounds: Annotated[int, Field(ge=1, le=100)] = 12,
        within_s: Annotated[float, Field(gt=0, le=MAX_WITHIN_S)] = 300.0,
    ) -> RunReport:
        """Pursue a goal that needs several agents: plan, delegate in parallel, gather, and report.

        `topics` limits it to these topics or patterns. `plan` is what the offline planner carries out; an LLM
        takes it as a proposal.
        """
        async with aclosing(self.make_model(spec_of(ctx), plan)) as model:
            return await _Run(ctx, goal, model, topics, within_s).pursue(plan, max_rounds)


class _RunJournal:
    """What a run must not do twice. Attempts that overlap write to the same journal; the first one counts."""

    def __init__(self, caller: Caller, run: str) -> None:
        self._caller, self._run = caller, run
        self._key = caller.ports.subjects.lite(run, "journal")
        self._seq, self.taken_over = 0, False
        self.started_at = caller.ports.clock.time()
        self.turns: dict[int, RecordedTurn] = {}

    async def load(self) -> None:
        """Take over what another attempt wrote."""
        self.taken_over = True
        async for stored in self._caller.ports.lite.read(self._key):
            self._seq = stored.seq
            with suppress(ValidationError):  # Anybody may write there.
                entry = _RECORDED.validate_json(stored.data)
                self.started_at = entry.started_at
                self.turns.setdefault(entry.round, entry)

    async def record(self, entry: RecordedTurn) -> RecordedTurn:
        """Keep a turn, before anything comes of it; returns the one that counts for its round."""
        data, lite = _RECORDED.dump_json(entry), self._caller.ports.lite
        try:
            self._seq = await lite.append(self._key, data, ttl_s=JOURNAL_TTL_S, expect_seq=self._seq)
        except FencedError:
            await self.load()
        return self.turns.setdefault(entry.round, entry)

    async def mark_sent(self, call_id: str) -> None:
        """All tasks of a call are with the bus."""
        await self._caller.ports.lite.append(self._sent_key(call_id), b"{}", ttl_s=JOURNAL_TTL_S)

    async def was_sent(self, call_id: str) -> bool:
        """Whether an earlier attempt came to `mark_sent`."""
        return await self._caller.ports.lite.last(self._sent_key(call_id)) is not None

    def _sent_key(self, call_id: str) -> str:
        return self._caller.ports.subjects.lite(self._run, token_of(f"sent-{call_id}"))


class _Run:
    """One attempt at one goal."""

    def __init__(self, ctx: TurnContext, goal: str, model: Model, topics: Sequence[str], within_s: float) -> None:
        self._ctx, self._goal, self._model, self._topics = ctx, goal, model, topics
        self._caller, self._within_s = ctx.caller, within_s
        # The same on every attempt, because the message is; a message put back is another life, and another run.
        life = f"{ctx.message.id} {ctx.message.redriven}" if ctx.message.redriven else ctx.message.id
        self._id = f"run-{hashlib.sha256(life.encode()).hexdigest()[:24]}"
        self._journal = _RunJournal(self._caller, self._id)
        self._toolbox = Toolbox(topics, never={ctx.topic, OWN_TOPIC})
        self._notebook = Notebook()
        self._calls: list[CallReport] = []
        self._timeline: list[dict[str, Any]] = []
        self._emitter = Emitter(ctx, lambda text: self._event("text", delta=text))
        self._rounds, self._tokens, self._text = 0, 0, ""
        self._finished: Finish | None = None

    @property
    def _at_s(self) -> float:
        return round(self._caller.ports.clock.time() - self._journal.started_at, 3)

    def _event(self, event: str, **fields: Any) -> dict[str, Any]:
        return {"event": event, "at_s": self._at_s, **fields}

    def _note(self, event: str, **fields: Any) -> None:
        told = self._event(event, **fields)
        if event != "outcome" or len(self._timeline) < MAX_TIMELINE:
            self._timeline.append(told)
        self._emitter.send(told)

    async def pursue(self, plan: Plan | None, max_rounds: int) -> RunReport:
        if self._ctx.attempt > 1:
            await self._journal.load()
        left_s = REPORT_IN_TIME * self._ctx.deadline.remaining_s()
        self._within_s = min(self._within_s, self._at_s + left_s)
        self._toolbox.offer(self._find(self._goal))
        proposal = f"\nA proposal, which you may change: {to_json(plan).decode()}" if plan else ""
        system = SYSTEM_PROMPT.format(rounds=max_rounds, seconds=self._within_s, plan=proposal)
        messages = [ChatMessage("system", system), ChatMessage("user", self._goal)]
        try:
            async with self._emitter:
                shown: dict[str, Any] = {
                    "goal": self._goal,
                    "model": self._model.name,
                    "topics": self._toolbox.topics,
                }
                self._note("started", run=self._id, **shown, **self._toolbox.news())
                stopped = await self._loop(messages, max_rounds)
                self._note("finished", stopped=stopped, rounds=self._rounds)
        finally:
            self._caller.forget(self._id)
        return self._report(stopped)

    async def _loop(self, messages: list[ChatMessage], max_rounds: int) -> Stopped:
        for number in range(1, max_rounds + 1):
            if number not in self._journal.turns and self._no_tokens:
                return "budget"
            turn = await self._think(number, messages)
            if turn is None:
                return "time"
            if not turn.tool_calls:
                self._finished = Finish(answer=turn.text)
                return "finished"
            if self._no_tokens and not any(call.name == FINISH for call in turn.tool_calls):
                return "budget"
            messages.append(turn.as_message())
            messages += await self._act(turn.tool_calls)
            if self._finished is not None:
                return "finished" if self._finished.achieved else "gave_up"
        return "rounds"

    @property
    def _no_tokens(self) -> bool:
        return self._ctx.budget.exhausted == "tokens"

    async def _think(self, number: int, messages: Sequence[ChatMessage]) -> ModelTurn | None:
        """The model's turn of this round, from the journal if it is there; None when the time is up."""
        recorded = self._journal.turns.get(number)
        replayed = recorded is not None
        if recorded is None:
            if self._at_s >= self._within_s:
                return None
            loop = asyncio.get_running_loop()
            started = loop.time()
            tools, sampling = self._toolbox.definitions(), sampling_of(self._ctx)
            try:
                async with asyncio.timeout(self._within_s - self._at_s) as limit:
                    turn = await think_patiently(self._model, messages, tools, self._emitter.text, sampling)
            except TimeoutError:
                if limit.expired():
                    return None
                raise
            used = {call.id for message in messages for call in message.tool_calls}
            turn, offered = with_unique_ids(turn, used), tuple(self._toolbox.topics)
            seconds = round(loop.time() - started, 3)
            entry = RecordedTurn(number, turn, offered, seconds, self._journal.started_at)
            recorded = await self._journal.record(entry)
        self._toolbox.offer(self._known(name) for name in recorded.offered)
        turn = recorded.turn
        self._rounds, self._text = number, turn.text or self._text
        self._tokens += turn.tokens
        self._ctx.charge(turn.tokens)
        shown = {"text": turn.text, "seconds": recorded.seconds, "tokens": turn.tokens}
        self._note("thought", round=number, **shown, **({"replayed": True} if replayed else {}))
        return turn

    def _report(self, stopped: Stopped) -> RunReport:
        end = self._finished
        if end is None:
            end = Finish(answer=self._text, deliverables=self._notebook.results)
            end.answer = (
                f"Stopped by the limit of {stopped}: {len(end.deliverables)} results gathered. {end.answer}"
            )
        return RunReport(
            answer=end.answer if isinstance(end.answer, str) else to_json(end.answer).decode(),
            deliverables=end.deliverables,
            model=self._model.name,
            rounds=self._rounds,
            stopped=stopped,
            tasks=count_tasks(self._calls),
            calls=self._calls,
            tokens=self._tokens,
            seconds=self._at_s,
            timeline=self._timeline,
        )

    def _find(self, intent: str) -> list[SemanticTopic]:
        """Served topics that fit an intent, the best first; of those a run is limited to, all."""
        registry = self._caller.registry
        served = [found for found, _ in registry.topics()]
        hits = [hit.topic for hit in registry.discover(intent, most=len(served))]
        if not self._topics:
            return hits[:FOUND]
        named = [self._known(name) for name in self._topics if "*" not in name and registry.find(name)]
        found = {one.name: one for one in [*hits, *named, *served]}.values()
        return [one for one in found if any(matches(p, one.name) for p in self._topics)]

    def _known(self, name: str) -> SemanticTopic:
        """A topic by name; a member of a family is described as the family is."""
        found = self._caller.registry.find(name)
        return found.model_copy(update={"name": name}) if found else SemanticTopic(name=name)

    async def _act(self, calls: Sequence[ToolCall]) -> list[ChatMessage]:
        # All are made ready before any is sent: within a turn nothing depends on what is faster.
        ends = [call for call in calls if call.name == FINISH and not call.problem]
        ready = [self._prepare(call) for call in calls if call not in ends]
        sent = await all_at_once(self._dispatch(one) for one in ready if isinstance(one, Dispatch))
        told = [*sent, *(one for one in ready if isinstance(one, ChatMessage))]
        # Last, because what a turn gathered may be in what it hands over.
        told += [self._finish(call) for call in ends]
        answers = {message.tool_call_id: message for message in told}
        return [answers[call.id] for call in calls]

    def _prepare(self, call: ToolCall) -> Dispatch | ChatMessage:
        """Make a call ready; a message is its answer already."""
        try:
            if call.problem:
                raise ValueError(call.problem)
            if call.name == DISCOVER:
                return self._discover(call)
            return prepare(call, self._toolbox, self._notebook)
        except (ValueError, BadReferenceError) as error:
            return self._refuse(call, error)

    def _discover(self, call: ToolCall) -> ChatMessage:
        wanted = read_arguments(DiscoverTopics, self._notebook.fill(call.arguments))
        names = self._toolbox.offer(self._find(wanted.intent))
        for what, cards in self._toolbox.news().items():
            self._note(what, topics=cards)
        found = [tool for tool in self._toolbox.definitions() if tool.name in names]
        told = [{"tool": tool.name, "description": tool.description} for tool in found]
        self._notebook.keep(call.id, told)
        return result_message(call.id, DISCOVER, told)

    def _finish(self, call: ToolCall) -> ChatMessage:
        try:
            self._finished = read_arguments(Finish, self._notebook.fill(call.arguments))
        except (ValueError, BadReferenceError) as error:
            return self._refuse(call, error)
        return result_message(call.id, FINISH, "done")

    def _refuse(self, call: ToolCall, error: Exception) -> ChatMessage:
        refusal = Rejected(topic=call.name, reason=str(error))
        self._note("outcome", round=self._rounds, call=call.id, **outcome_fields(refusal))
        return answer_one(self._notebook, call.id, call.name, refusal)

    async def _dispatch(self, ready: Dispatch) -> ChatMessage:
        call, count = ready.call, len(ready.contents)
        report = CallReport(id=call.id, round=self._rounds, topic=ready.topic, tasks=count, started_s=self._at_s)
        self._calls.append(report)
        self._note("dispatched", round=self._rounds, call=call.id, topic=ready.topic, tasks=count)
        sent_before = self._journal.taken_over and await self._journal.was_sent(call.id)
        tasks = await all_at_once(self._send(ready, index, sent_before) for index in range(count))
        if not sent_before:
            await self._journal.mark_sent(call.id)
        outcomes = await all_at_once(self._gather(call, task) for task in tasks)
        report.ended_s, report.outcomes = self._at_s, dict(Counter(one.kind for one in outcomes))
        if ready.items is None:
            return answer_one(self._notebook, call.id, ready.topic, outcomes[0])
        return answer_many(self._notebook, call.id, ready.topic, ready.items, outcomes)

    async def _send(self, ready: Dispatch, index: int, sent_before: bool) -> Handle | Outcome:
        """Dispatch one task, unless an earlier attempt did; its outcome if that is known at once."""
        content, task_id = ready.contents[index], f"{self._id}-{ready.call.id}-{index}"
        if isinstance(content, Outcome):
            return content
        within_s = CALL_SHARE * (self._within_s - self._at_s)
        if self._journal.taken_over:
            address = self._caller.ports.subjects.lite(self._id, token_of(task_id))
            deadline = Deadline.after(within_s, self._caller.ports.clock)
            handle = await self._caller.adopt(task_id, ready.topic, address, deadline)
            if handle.done or sent_before:
                return handle
        return await self._ctx.submit_for(self._id, ready.topic, content, within_s=within_s, task_id=task_id)

    async def _gather(self, call: ToolCall, task: Handle | Outcome) -> Outcome:
        outcome = task if isinstance(task, Outcome) else await task.outcome()
        # Agents tell in their own outcomes what they spent: it counts against our budget, but is not ours.
        self._tokens += outcome.tokens
        self._ctx.budget = self._ctx.budget.spend(tokens=outcome.tokens)
        self._note("outcome", round=self._rounds, call=call.id, **outcome_fields(outcome))
        return outcome

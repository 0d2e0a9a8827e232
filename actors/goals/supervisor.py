"""The agent that pursues goals: dispatch, gather, reason again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field
from pydantic_core import to_json

from squadron.actors.decorators import topic
from squadron.actors.goals.evidence import lessons_of
from squadron.actors.goals.planner import OfflinePlanner, Plan
from squadron.actors.goals.reranking import MOST_SHOWN, reranked
from squadron.actors.goals.run_report import RunReport, report_of
from squadron.actors.runs.built_in import BUILT_IN, Finish
from squadron.actors.runs.emitter import Emitter
from squadron.actors.runs.entries import Gather
from squadron.actors.runs.log import started_of
from squadron.actors.runs.loop import SAID_NOTHING, Conclusion, Stopped, was_told
from squadron.actors.runs.session import Beginning, Session, run_id
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.choice import (
    OFFLINE,
    SAME,
    chain_of,
    load_sdk,
    open_model,
    rerank_spec,
    sampling_of,
    spec_of,
)
from squadron.actors.thinking.fence import FENCE_RULE
from squadron.actors.thinking.model import ChatMessage, Model, ModelTurn
from squadron.actors.thinking.thinker import Thinker
from squadron.runtime.asking.searching import search, teach
from squadron.runtime.background import spawn
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.approvals import Approvals
from squadron.runtime.wire.subjects import matches
from squadron.runtime.wire.topics import SemanticTopic

OWN_TOPIC = "goal.pursue"
#: Longest run, in seconds: a week, since people may be asked. The handler's own limit lies above it, so that a run
#: ends with a report.
MAX_WITHIN_S = 7 * 24 * 3600.0
RUN_TIMEOUT_S = MAX_WITHIN_S + 60.0
#: Share of the remaining time for a run that has no more than its caller, since the report must arrive too.
REPORT_IN_TIME = 0.95
#: How many topics one search by intent offers.
FOUND = 12

SYSTEM_PROMPT = """You pursue a goal by calling tools. Most tools are agents on a network; each call is a task.

- All calls of one turn run in parallel: put everything that does not depend on each other into one turn.
- Each result names the id of its call. Never copy data from results into arguments: anywhere in the arguments of
  any tool, whatever type its schema names, {"$from": "CALL_ID"} is replaced by the result of that earlier call,
  and {"$from": "CALL_ID#/a/0/b"} by the part of it at that JSON pointer (RFC 6901); long results you see cut.
- for_each calls one tool for every item of a list, in parallel; it is the way to handle many things.
- call_for_bids has the agents behind several tools that can do the same bid for a task; the best one does it.
- You may be asked again while calls still run. Go on with what you know, wait_for those you need, and cancel_calls
  that you don't need any more.
- discover_topics finds tools that you were not offered.
- ask_person puts a question to a person, when only they can know or decide; and some calls go out only when a
  person has approved them.
- Calls can fail; you are told why. Try another way, or go on without and say so in the answer.
- Call finish when the goal is reached, or when it can't be. Hand over data as deliverables by reference.

"""


#: As `runtime.wire.subjects.check_pattern` has it, but where a schema shows it.
Pattern = Annotated[str, Field(pattern=r"^([A-Za-z0-9_-]{1,64}|\*)\.([A-Za-z0-9_-]{1,64}|\*)$")]


class Supervisor(Thinker):
    """Ray restarts what crashed; a Supervisor decides what to do next.

    It puts a goal and the topics that fit it to a model, runs the calls that the model makes in parallel, tells
    it what came of them, and goes on until the goal is reached or a limit is. Its runs survive a crash.
    """

    name: ClassVar[str] = "supervisor"
    #: What it tells the bridge of topics that its runs have called.
    _teaching: ClassVar[set[asyncio.Task[None]]] = set()

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        """The model of a run; override it for models of your own.

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
        gather: Gather | None = None,
        approve: tuple[Pattern, ...] = (),
        trust: tuple[Pattern, ...] = (),
        resume: Annotated[str, Field(pattern=r"^(run-[0-9a-f]{24})?$")] = "",
    ) -> RunReport:
        """Pursue a goal that needs several agents: plan, delegate in parallel, gather, and report.

        `topics` limits it to these topics or patterns. `plan` is what the offline planner carries out; an LLM
        takes it as a proposal. `gather` says when the model is asked again while calls still run. `resume` names
        a run that has ended, and goes on from there with new limits. People are asked before a call of a topic in
        `approve` goes out, or of one whose card says so, unless it is in `trust`.
        """
        terms = Terms(topics=topics, plan=plan, gather=gather, approve=approve, trust=trust, model=spec_of(ctx))
        terms = await self._terms_of(ctx, resume, terms) if resume else terms
        async with AsyncExitStack() as stack:

            async def opened(specs: Sequence[str]) -> list[Model]:
                models = list[Model]()
                for spec in specs:
                    await load_sdk(spec)
                    models.append(self.make_model(spec, terms.plan))
                    stack.push_async_callback(models[-1].aclose)
                return models

            given = self.given_model
            chain = [given] if given is not None else await opened(chain_of(terms.model))
            summary_models = await self.models_for_summaries(ctx, chain, opened)
            emitter = await stack.enter_async_context(
                Emitter(ctx, lambda text: {"event": "text", "at_s": emitter.at_s(), "delta": text})
            )
            # A plan goes step by step: it has nothing to say before a round has ended.
            waits = terms.gather is None or isinstance(chain[0], OfflinePlanner)
            session = Session(
                ctx=ctx,
                # The same on every attempt, because the message is.
                run=resume or run_id(ctx.message.id),
                toolbox=Toolbox(tuple(BUILT_IN), allowed=terms.topics, never={ctx.topic, OWN_TOPIC}),
                chain=chain,
                summary_models=summary_models,
                emitter=emitter,
                max_rounds=max_rounds,
                within_s=min(within_s, REPORT_IN_TIME * ctx.deadline.remaining_s()),
                sampling=sampling_of(ctx),
                gather=Gather() if waits or terms.gather is None else terms.gather,
                again=bool(resume),
                approvals=Approvals(ask=terms.approve, trust=terms.trust),
            )
            reranker = await self._reranker(ctx, chain, opened)
            pursuit = Pursuit(ctx, goal, terms, session.toolbox, reranker)
            state, finished = await session.pursue(pursuit, pursuit.begin)
            self._teach(ctx, state)
            return report_of(state, finished, emitter.timeline)

    def _teach(self, ctx: TurnContext, state: RunState) -> None:
        if not ctx.is_sealed:
            # Nobody waits for it: a run is over when it is over.
            self._teaching.add(task := spawn(teach(ctx.caller.ports, lessons_of(state)), "lessons"))
            task.add_done_callback(self._teaching.discard)

    async def _reranker(
        self, ctx: TurnContext, chain: Sequence[Model], make: Callable[[Sequence[str]], Awaitable[Sequence[Model]]]
    ) -> Model | None:
        """The model that puts what is found into order; None for none."""
        spec = rerank_spec()
        if not spec or chain[0].name.startswith(f"{OFFLINE}:"):
            return None
        if spec == SAME or self.given_model is not None:
            return chain[0]
        try:
            return (await make([spec]))[0]
        except Terminal as error:
            # No run fails for want of an order.
            ctx.log.warning("rerank.no_model", model=spec, error=str(error))
            return None

    async def _terms_of(self, ctx: TurnContext, run: str, given: Terms) -> Terms:
        """The terms of a run that goes on: those that it began with, and what is said on top of them."""
        started = await started_of(ctx.caller.ports, ctx.agent, run)
        began = Terms.model_validate(started.terms if started is not None else {})
        return Terms(
            topics=given.topics or began.topics,
            plan=given.plan or began.plan,
            gather=given.gather or began.gather,
            approve=(*began.approve, *given.approve),
            trust=(*began.trust, *given.trust),
            model=ctx.message.payload.model or began.model or given.model,
        )


class Terms(BaseModel):
    """What a task says beside its goal and its limits; kept with the run, for who has it go on."""

    topics: tuple[str, ...] = ()
    plan: Plan | None = None
    gather: Gather | None = None
    approve: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    model: str = ""


class Pursuit:
    """What a goal adds to the loop; see `Aim`."""

    def __init__(
        self,
        ctx: TurnContext,
        goal: str,
        terms: Terms,
        toolbox: Toolbox,
        reranker: Model | None = None,
    ) -> None:
        self._reranker = reranker
        self._ctx, self._goal, self._terms, self._toolbox = ctx, goal, terms, toolbox
        self._topics = terms.topics

    async def begin(self) -> Beginning:
        """What the model is told first. It has no figure that changes: providers find what they have cached."""
        plan = self._terms.plan
        proposal = f"\nA proposal, which you may change: {to_json(plan).decode()}" if plan else ""
        system = ChatMessage("system", f"{SYSTEM_PROMPT}{FENCE_RULE}{proposal}")
        offered = self._toolbox.fitting(await self.find(self._goal))
        opening = [system, ChatMessage("user", self._goal)]
        return Beginning(
            title=self._goal,
            opening=opening,
            topics=offered,
            terms=self._terms.model_dump(mode="json", by_alias=True),
        )

    async def find(self, intent: str) -> list[SemanticTopic]:
        """Served topics that fit an intent, the best first; of those a run is limited to, all."""
        registry = self._ctx.caller.registry
        if not self._topics:
            if self._reranker is None:
                return await self._search(intent, FOUND)
            hits = await self._search(intent, MOST_SHOWN)
            return (await reranked(self._ctx, self._reranker, intent, hits))[:FOUND]
        served = [found for found, _ in registry.topics()]
        hits = await self._search(intent, len(served), least=0.0)
        named = [self._known(name) for name in self._topics if "*" not in name and registry.find(name)]
        found = {one.name: one for one in [*hits, *named, *served]}.values()
        return [one for one in found if any(matches(p, one.name) for p in self._topics)]

    async def _search(self, intent: str, most: int, least: float | None = None) -> list[SemanticTopic]:
        caller = self._ctx.caller
        if self._ctx.is_sealed:
            # A sealed goal is for nobody else, nor is what it has this run look for.
            hits = caller.registry.discover(intent, most=most, least=least)
        else:
            hits = await search(caller.ports, caller.registry, intent, most=most, least=least)
        return [hit.topic for hit in hits]

    def _known(self, name: str) -> SemanticTopic:
        """A topic by name; a member of a family is described as the family is."""
        found = self._ctx.caller.registry.find(name)
        return found.model_copy(update={"name": name}) if found else SemanticTopic(name=name)

    def judge(self, state: RunState, turn: ModelTurn) -> Conclusion | str:
        """A turn without calls is the answer, unless it has no words or the tokens ran out in the middle of it."""
        cut = turn.stop in ("length", "overflow")
        if not turn.text.strip():
            if not cut and not was_told(state):
                return SAID_NOTHING
            stopped: Stopped = "length" if cut else "model"
            return Conclusion(self.stop(state, stopped, "the model gave no answer: it said nothing"), stopped)
        return Conclusion(Finish(answer=turn.text).model_dump(), "length" if cut else "finished")

    def finish(self, state: RunState, asked: Finish) -> Conclusion:
        return Conclusion(asked.model_dump(), "finished" if asked.achieved else "gave_up")

    def stop(self, state: RunState, stopped: Stopped, why: str) -> Any:
        """All that was gathered, so that nothing that was paid for is lost."""
        if stopped == "model" and not state.turns:
            raise Terminal(why)
        said = state.last.turn.text if state.last is not None else ""
        answer = f"Stopped: {why}. {len(state.results.values)} results gathered. {said}".strip()
        return Finish(answer=answer, deliverables=state.results.values, achieved=False).model_dump()

"""A fixed plan in place of an LLM: for machines without a key, and for runs that must be the same each time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from squadron.actors.runs.built_in import BUILT_IN, DISCOVER, FINISH, FOR_EACH
from squadron.actors.runs.references import as_reference
from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn, ToolCall, ToolDefinition
from squadron.runtime.registry.search import Index, terms

#: A tool that shares less than this part of an intent's words is taken only if a search finds no better one.
GOOD_COVER = 0.5
#: How many topics are asked when there is no plan.
BEST_FEW = 3
#: Inputs that a goal in plain words can be put into.
GOAL_FIELDS = frozenset(
    [
        "claim",
        "content",
        "goal",
        "intent",
        "message",
        "prompt",
        "query",
        "question",
        "request",
        "statement",
        "subject",
        "task",
        "text",
        "topic",
    ]
)
#: Longest quote of one result in a digest, in characters: a few lines each.
QUOTED_CHARS = 600

#: A call as a run names it, where a plan has an id of its own; what is in the fence of a result (see `telling`).
_RUNS_ID = re.compile(r"\br\d+c\d+-[0-9a-f]{6}\b")
_FENCED = re.compile(r"^<untrusted-[^>]*>\n(.*?)\n</untrusted-", re.MULTILINE | re.DOTALL)

INTRODUCTION = "I am the offline planner: I follow a fixed plan, I am not an LLM."

Reference = TypedDict("Reference", {"$from": str})
Reference.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


class Step(BaseModel):
    """One call: the topic that fits `intent` best is asked, once or `for_each` item of a list.

    `arguments` may hold `{"$from": "ID#/POINTER"}` for the result of a step of an earlier round and, with
    `for_each`, `{"$item": "/POINTER"}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")
    intent: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    for_each: list[Any] | Reference | None = None


class PlanEnd(BaseModel):
    """The end of a plan: the answer, and data to hand over by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finish: str | Reference
    deliverables: dict[str, Any] = Field(default_factory=dict)


def _kind_of(raw: Any) -> str:
    return "finish" if isinstance(raw, PlanEnd) or (isinstance(raw, Mapping) and "finish" in raw) else "step"


class _ByEnd:
    """A schema that tells the two kinds apart as we do, so that a validator names the very field that is wrong."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        step, finish = handler(core)["oneOf"]
        return {"if": {"required": ["finish"]}, "then": finish, "else": step}


PlanStep = Annotated[
    Annotated[Step, Tag("step")] | Annotated[PlanEnd, Tag("finish")], Discriminator(_kind_of), _ByEnd()
]
Round = Annotated[list[PlanStep], Field(min_length=1)]


def _check_plan(plan: list[Round]) -> list[Round]:
    """Hold a plan against what a single step can't know: the order of things."""
    earlier: set[str] = set()
    for number, steps in enumerate(plan):
        here: set[str] = set()
        for place, step in enumerate(steps):
            where = f"round {number}, step {place}"
            if isinstance(step, PlanEnd):
                if number < len(plan) - 1 or place < len(steps) - 1:
                    raise ValueError(f"{where}: finish must be the last step of the last round")
                unknown = references([step.finish, step.deliverables]) - earlier - here
            else:
                if step.id in earlier | here:
                    raise ValueError(f"{where}: the id {step.id!r} is used twice")
                here.add(step.id)
                unknown = references([step.arguments, step.for_each]) - earlier
            if unknown:
                raise ValueError(f"{where}: no earlier round has a step {sorted(unknown)[0]!r}")
        earlier |= here
    return plan


#: Rounds one after the other, the steps of a round in parallel; a `PlanEnd` may stand at the very end.
Plan = Annotated[list[Round], Field(min_length=1), AfterValidator(_check_plan)]


def references(template: Any) -> set[str]:
    """The call ids that a template refers to."""
    key, value = as_reference(template)
    if key:
        return {str(value).partition("#")[0]} if key == "$from" else set()
    parts = template.values() if isinstance(template, dict) else template
    if not isinstance(template, dict | list):
        return set()
    return set().union(*(references(part) for part in parts))


@dataclass
class _Progress:
    """What the conversation says about the run so far: the planner itself keeps nothing."""

    goal: str = ""
    turns: int = 0
    made: dict[str, ToolCall] = field(default_factory=dict)
    answers: dict[str, ChatMessage] = field(default_factory=dict)

    @classmethod
    def read(cls, messages: Sequence[ChatMessage]) -> _Progress:
        seen = cls()
        for message in messages:
            if message.role == "user" and not seen.goal:
                seen.goal = message.content
            elif message.role == "assistant":
                seen.turns += 1
                seen.made |= {call.id: call for call in message.tool_calls}
            elif message.role == "tool":
                seen.answers[message.tool_call_id] = message
        return seen

    def failed(self, call_id: str) -> str:
        """Why a call has no result at all; empty if it has one."""
        answer = self.answers.get(call_id)
        if answer is None or not answer.is_error:
            return ""
        head = _RUNS_ID.sub(call_id, answer.content.partition("\n")[0])
        # The head of a result says it all; of a failure it says only its kind.
        return head if head.startswith("Result ") else f"{head} {_fenced(answer.content)}"

    def failures(self) -> list[str]:
        """Why calls have no result, for all that have none."""
        return [why for call_id in self.made if (why := self.failed(call_id))]

    @property
    def succeeded(self) -> bool:
        """Whether anything came of what was asked of others."""
        asked = [call.id for call in self.made.values() if call.name != DISCOVER]
        return not asked or any(one in self.answers and not self.failed(one) for one in asked)


class OfflinePlanner:
    """A `Model` that carries out a plan; without one it puts the goal to the best few topics that take a text."""

    def __init__(self, plan: Plan | None = None) -> None:
        self._rounds = [[step for step in steps if isinstance(step, Step)] for steps in plan or []]
        last = plan[-1][-1] if plan else None
        self._finish = last if isinstance(last, PlanEnd) else None

    @property
    def name(self) -> str:
        """Always `offline:planner`."""
        return "offline:planner"

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """The next turn of the plan, from what the messages say was done already; costs no tokens."""
        seen, tools = _Progress.read(request.messages), request.tools
        turn = self._follow(seen, tools) if self._rounds or self._finish else _guess(seen, tools)
        if not seen.turns:
            turn = ModelTurn(f"{INTRODUCTION} {turn.text}", turn.tool_calls)
        if turn.text and on_text is not None:
            on_text(turn.text)
        return turn

    async def aclose(self) -> None:
        """Nothing to close. May be called twice."""

    def _follow(self, seen: _Progress, tools: Sequence[ToolDefinition]) -> ModelTurn:
        for number, steps in enumerate(self._rounds, 1):
            pending = [step for step in steps if step.id not in seen.made]
            if pending:
                return self._dispatch(number, pending, seen, tools)
        return self._end(seen)

    def _dispatch(
        self, number: int, pending: list[Step], seen: _Progress, tools: Sequence[ToolDefinition]
    ) -> ModelTurn:
        calls = []
        for step in pending:
            for needed in sorted(references([step.arguments, step.for_each])):
                if why := seen.failed(needed):
                    return self._end(seen, f"Step {step.id!r} needs the result of step {needed!r}. {why}")
            search = f"{step.id}.{DISCOVER}"
            tool, cover = _best(step.intent, tools)
            if cover < GOOD_COVER and search not in seen.made:
                calls.append(ToolCall(search, DISCOVER, {"intent": step.intent}))
            elif not tool:
                return self._end(seen, f"Nobody serves step {step.id!r}: {step.intent}.")
            else:
                calls.append(_call(step, tool))
        doing = ", ".join(f"{call.id} ({call.name})" for call in calls)
        return ModelTurn(f"Round {number} of {len(self._rounds)}: {doing}", tuple(calls))

    def _end(self, seen: _Progress, broken: str = "") -> ModelTurn:
        """PlanEnd as the plan says, without what there is not, and say what went wrong."""
        wanted = self._finish or PlanEnd(finish=_digest(seen))
        needed = references([wanted.finish, wanted.deliverables])
        gone = {one for one in needed if one not in seen.answers or seen.failed(one)}
        deliverables = {name: value for name, value in wanted.deliverables.items() if not references(value) & gone}
        missing = [name for name in wanted.deliverables if name not in deliverables]
        notes = [why for why in seen.failures() if why not in broken]
        notes += [f"Not delivered: {', '.join(missing)}."] if missing else []
        answer = wanted.finish
        if broken:
            answer = f"The plan could not be carried out to its end. {broken}"
        elif references(answer) & gone:
            answer = "The plan was carried out, but the step that was to give the answer failed."
        if isinstance(answer, str):
            answer = _with_notes(answer, notes)
        elif notes:
            deliverables["problems"] = notes
        achieved = not broken and not references(wanted.finish) & gone and seen.succeeded
        end = {"answer": answer, "deliverables": deliverables, "achieved": achieved}
        call = ToolCall(FINISH, FINISH, end)
        return ModelTurn(broken or "The plan is over.", (call,))


def _best(intent: str, tools: Sequence[ToolDefinition]) -> tuple[str, float]:
    """The tool that fits an intent best (empty if none shares a word), and which part of its words it has."""
    ranked = _rank(intent, tools)
    if not ranked:
        return "", 0.0
    words = set(terms(intent))
    return ranked[0].name, len(words & set(_document(ranked[0]))) / len(words)


def _rank(intent: str, tools: Sequence[ToolDefinition]) -> list[ToolDefinition]:
    topics = [tool for tool in tools if tool.name not in BUILT_IN]
    scores = Index(_document(tool) for tool in topics).scores(intent)
    ranked = sorted(zip(scores, topics, strict=True), key=lambda row: (-row[0], row[1].name))
    return [tool for score, tool in ranked if score > 0]


def _document(tool: ToolDefinition) -> list[str]:
    found = _FENCED.search(tool.description)
    described = found[1] if found else tool.description
    return terms(" . ".join([tool.name, described, *tool.input_schema.get("properties", {})]))


def _call(step: Step, tool: str) -> ToolCall:
    if step.for_each is None:
        return ToolCall(step.id, tool, step.arguments)
    arguments = {"topic": tool, "items": step.for_each}
    # Without arguments the item itself is what each call gets.
    return ToolCall(step.id, FOR_EACH, arguments | ({"arguments": step.arguments} if step.arguments else {}))


def _guess(seen: _Progress, tools: Sequence[ToolDefinition]) -> ModelTurn:
    """No plan was given: put the goal to topics that take nothing but a text, then tell what they said."""
    if seen.made:
        answer = _with_notes(_digest(seen), seen.failures())
        return ModelTurn(
            "That is all I can do.", (ToolCall(FINISH, FINISH, {"answer": answer, "achieved": seen.succeeded}),)
        )
    fitting = [(tool, name) for tool in _rank(seen.goal, tools) if (name := _text_input(tool))]
    if not fitting:
        why = (
            "No plan was given, and no topic that shares a word with the goal takes just a text, so I can't "
            "pursue it. Configure an LLM (OPENAI_API_KEY, ANTHROPIC_API_KEY or SQUADRON_MODEL), or give a plan in "
            "Python."
        )
        return ModelTurn(why, (ToolCall(FINISH, FINISH, {"answer": f"{INTRODUCTION} {why}", "achieved": False}),))
    calls = [
        ToolCall(f"guess-{number}", tool.name, {name: seen.goal})
        for number, (tool, name) in enumerate(fitting[:BEST_FEW], 1)
    ]
    asked = ", ".join(call.name for call in calls)
    return ModelTurn(f"No plan was given, so I put the goal as it is to {asked}.", tuple(calls))


def _text_input(tool: ToolDefinition) -> str:
    """The one required input of a tool, if a goal can be put into it."""
    required = tool.input_schema.get("required", [])
    if len(required) != 1 or required[0] not in GOAL_FIELDS:
        return ""
    described = tool.input_schema.get("properties", {}).get(required[0], {})
    return str(required[0]) if described.get("type") == "string" else ""


def _digest(seen: _Progress) -> str:
    lines = [
        f"- {call.name}: {_quote(seen.answers[call.id].content)}"
        for call in seen.made.values()
        if call.name != DISCOVER and call.id in seen.answers and not seen.failed(call.id)
    ]
    head = "What the topics answered, as it came (no LLM has read it):" if lines else "No topic answered."
    return "\n".join([head, *lines])


def _with_notes(answer: str, notes: Sequence[str]) -> str:
    return "\n".join([answer, "Not everything worked:", *(f"- {note}" for note in notes)]) if notes else answer


def _fenced(content: str) -> str:
    """What stands in the fence of a result: after a line about it, and perhaps before one that says it is cut."""
    found = _FENCED.search(content)
    return found[1] if found else content.partition("\n")[2]


def _quote(content: str) -> str:
    body = _fenced(content)
    try:
        value = json.loads(body)
    except ValueError:  # it was cut
        value = body
    text = " ".join((value if isinstance(value, str) else body).split())
    return text if len(text) <= QUOTED_CHARS else f"{text[:QUOTED_CHARS]}…"

"""Tasks of the Berkeley Function Calling Leaderboard, and their back ends as agents; see `tests/data/bfcl`."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.thinking.model import ModelTurn, ToolCall, Usage
from squadron.runtime.running.context import Context

DATA = Path(__file__).parent / "data" / "bfcl"
#: Back end → its module.
_MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}


@cache
def back_ends() -> dict[str, type[Any]]:
    """The classes of the back ends, by name."""
    sys.path.insert(0, str(DATA))
    try:
        home = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
        return {name: getattr(importlib.import_module(f"{home}.{each}"), name) for name, each in _MODULES.items()}
    finally:
        sys.path.remove(str(DATA))


@dataclass(frozen=True)
class Gold:
    """One call of a gold trajectory."""

    back_end: str
    method: str
    arguments: Mapping[str, Any]

    def make(self, back_ends: Mapping[str, Any]) -> Any:
        """Make it; back ends keep and change what they are given."""
        return getattr(back_ends[self.back_end], self.method)(**copy.deepcopy(dict(self.arguments)))


@dataclass(frozen=True)
class BfclTask:
    """What a user wants, turn by turn, and the calls that do it."""

    id: str
    questions: tuple[str, ...]
    gold: tuple[tuple[Gold, ...], ...]
    config: Mapping[str, Any]
    back_ends: tuple[str, ...]

    @property
    def calls(self) -> list[Gold]:
        return [call for turn in self.gold for call in turn]

    def opened(self) -> dict[str, Any]:
        """Its back ends, as they are before the first turn."""
        made = {name: back_ends()[name]() for name in self.back_ends}
        for name, one in made.items():
            one._load_scenario(copy.deepcopy(self.config.get(name, {})))
        return made

    def solved(self) -> dict[str, dict[str, Any]]:
        """The state that the gold calls come to, made directly."""
        made = self.opened()
        for call in self.calls:
            call.make(made)
        return state_of(made)

    def goal(self, turn: int) -> str:
        return f"[{self.id}/{turn}] {self.questions[turn]}"


def state_of(made: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the leaderboard itself compares: the public attributes of each back end."""
    return {
        name: {key: value for key, value in vars(one).items() if not key.startswith("_")}
        for name, one in made.items()
    }


@cache
def bfcl_tasks() -> tuple[BfclTask, ...]:
    """All tasks whose back ends are here."""
    name = "BFCL_v4_multi_turn_base.json"
    asked = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    solved = [json.loads(line) for line in (DATA / "possible_answer" / name).read_text().splitlines()]
    gold = {each["id"]: each["ground_truth"] for each in solved}
    return tuple(_task(each, gold[each["id"]]) for each in asked if {*each["involved_classes"]} <= {*_MODULES})


def _task(asked: dict[str, Any], turns: list[list[str]]) -> BfclTask:
    involved = tuple(asked["involved_classes"])
    return BfclTask(
        id=asked["id"],
        questions=tuple("\n".join(said["content"] for said in turn) for turn in asked["question"]),
        gold=tuple(tuple(_gold(call, involved) for call in turn) for turn in turns),
        config=asked["initial_config"],
        back_ends=involved,
    )


def _gold(source: str, involved: Iterable[str]) -> Gold:
    """A call as the leaderboard writes it, in Python: `cd(folder='document')`."""
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    method = call.func.id
    (owner,) = (name for name in involved if hasattr(back_ends()[name], method))
    given = [ast.literal_eval(each) for each in call.args]
    named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    signature = inspect.signature(getattr(back_ends()[owner], method))
    bound = signature.bind(None, *given, **named).arguments
    return Gold(owner, method, {key: value for key, value in bound.items() if key != "self"})


def next_turn(task: BfclTask, turn: int, said: int) -> ModelTurn:
    """What a model that knows the answer says, when it spoke so often in this turn."""
    gold = task.gold[turn]
    if said < len(gold):
        call = gold[said]
        asked = ToolCall(f"gold_{said}", f"{call.back_end}__{call.method}", dict(call.arguments))
    else:
        asked = ToolCall("end", "finish", {"answer": f"{len(gold)} calls made"})
    return ModelTurn("", (asked,), Usage(100, 20))


@dataclass
class Desk:
    """The back ends of all conversations, and what each was asked to do, in order."""

    tasks: Mapping[str, BfclTask]
    opened: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: defaultdict[str, list[Gold]] = field(default_factory=lambda: defaultdict(list))

    def run(self, conversation: str, call: Gold) -> Any:
        """One call, on the state of its conversation."""
        if conversation not in self.opened:
            self.opened[conversation] = self.tasks[conversation].opened()
        self.done[conversation].append(call)
        return call.make(self.opened[conversation])

    def agents(self) -> list[Agent]:
        """One for each back end; its methods are its topics."""
        return [_agent(self, name) for name in _MODULES]


def _agent(desk: Desk, back_end: str) -> Agent:
    methods = {
        name: method
        for name, method in inspect.getmembers(back_ends()[back_end], inspect.isfunction)
        if not name.startswith("_")
    }
    handlers = {name: _handler(desk, back_end, name, method) for name, method in methods.items()}
    made: Agent = type(back_end, (Agent,), {"__doc__": back_end, "__module__": __name__, **handlers})()
    return made


def _handler(desk: Desk, back_end: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    async def handle(self: Agent, ctx: Context, **arguments: Any) -> Any:
        # What was left out is left out: so the call is the one that was asked.
        given = {key: value for key, value in arguments.items() if key in ctx.message.payload.content}
        return desk.run(ctx.message.context.conversation_id, Gold(back_end, name, given))

    signature = inspect.signature(method)
    own, *rest = signature.parameters.values()
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    handle.__name__, handle.__doc__ = name, method.__doc__
    handle.__signature__ = signature.replace(parameters=[own, context, *rest])  # type: ignore[attr-defined]
    types = {key: hint for key, hint in get_type_hints(method).items() if key != "return"}
    handle.__annotations__ = {"ctx": Context, **types}
    return topic(f"{back_end}.{name}", description=(method.__doc__ or name).strip().splitlines()[0])(handle)

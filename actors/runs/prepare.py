"""A call of the model, made ready to go out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from squadron.actors.runs.built_in import FOR_EACH, AskForBids, ForEach, read_arguments
from squadron.actors.runs.references import BadReferenceError, Results, describe
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.model import ToolCall
from squadron.runtime.texts import encoded

#: Most items of one `for_each`: their results travel in messages and are held in memory.
MAX_ITEMS = 2_000


@dataclass(frozen=True, slots=True)
class Unsendable:
    """An item of a `for_each` for which no task can be made, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that can go out: one content per task.

    `items` is what a `for_each` goes over, None for a plain call; `own` says that the agent itself runs it.
    """

    topic: str
    contents: list[Any]
    items: list[Any] | None = None
    own: bool = False

    @property
    def comparable(self) -> list[Any]:
        """What it is compared by with other calls; JSON."""
        return [str(each) if isinstance(each, Unsendable) else each for each in self.contents]

    @property
    def digest(self) -> str:
        """What it is known by beside its topic, SHA-256 in hex."""
        return hashlib.sha256(encoded(self.comparable)).hexdigest()


def prepare(call: ToolCall, toolbox: Toolbox, results: Results) -> Ready:
    """Find what a call is for, and resolve its references.

    Raises:
        BadReferenceError: a reference leads nowhere.
        ValueError: there is no such tool, or its arguments don't fit.
    """
    if call.name in toolbox.own:
        return Ready(call.name, [results.fill(call.arguments)], own=True)
    if call.name != FOR_EACH or not toolbox.has(FOR_EACH):
        offered = toolbox.find(call.name)
        return Ready(offered.topic.name, [offered.card.shape.restore(results.fill(call.arguments))])
    items = results.fill(call.arguments.get("items"))
    asked = read_arguments(ForEach, call.arguments | {"items": items})
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise ValueError(f"items must be a list of at most {MAX_ITEMS}, this is {describe(items)}")
    offered, contents = toolbox.find(asked.topic), list[Any]()
    for item in items:
        try:
            contents.append(offered.card.shape.restore(results.fill(asked.arguments, item=item)))
        except BadReferenceError as error:
            contents.append(Unsendable(str(error)))
    return Ready(offered.topic.name, contents, items)


def candidates(call: ToolCall, toolbox: Toolbox, results: Results) -> dict[str, Any]:
    """Topics that are to bid for a call, and what each of them would get.

    Raises:
        BadReferenceError: a reference leads nowhere.
        ValueError: there is no such tool, or the arguments don't fit.
    """
    asked = read_arguments(AskForBids, call.arguments)
    arguments = results.fill(asked.arguments)
    offered = [toolbox.find(name) for name in asked.tools]
    return {each.topic.name: each.card.shape.restore(arguments) for each in offered}

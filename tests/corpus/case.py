"""What a case of the corpus is: a source as somebody would write it, what is asked of it, and how that ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: How a class comes to a deploy: from a file that runs as a script, cells of a notebook, a module of a project, or
#: a module that is installed on every node. The first three travel by value, the last by name.
Way = Literal["script", "notebook", "module", "installed"]
WAYS: tuple[Way, ...] = ("script", "notebook", "module", "installed")

#: What a source starts with, unless it has an import of squadron itself.
PREAMBLE = "from squadron import Agent, Answer, Context, Retry, Terminal, on, on_durable, topic\n"

#: Any data will do.
ANYTHING: Any = object()


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One task, and its end.

    Attributes:
        content: the input; a function gets the data of the ask before this one, and returns the input.
        topic: which topic; the agent's only one by default.
        gives: the data of the result.
        ends: kind of the outcome, if it is not a result.
        says: what stands in its reason.
        chunks: what is emitted before the end.
        raw: whether the input is put into the mailbox as it is, past the check at the caller's door.
        event: whether the content is published as a durable event on `topic` instead; the next ask comes when it
            was handled.
    """

    content: Any | Callable[[Any], Any] = None
    topic: str = ""
    gives: Any = ANYTHING
    ends: str = "result"
    says: str = ""
    chunks: list[Any] | None = None
    raw: bool = False
    event: bool = False


def ask(content: Any = None, gives: Any = ANYTHING, **more: Any) -> Ask:
    """`ask({"n": 2}, 4)`: the input, and the data of the result."""
    return Ask(content=content, gives=gives, **more)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One small agent.

    Attributes:
        name: a sentence, unique in the corpus; it is the test's id.
        source: the file that has the agent; `# %%` parts the cells of a notebook.
        asks: tasks for one replica of it, one after the other.
        refused: instead of asks: what the error says when the class is deployed.
        refused_by_value: the same, if only by value; by name the asks hold.
        files: other files of the project.
        at: path of the source within the project.
        agent: an expression for the class.
        ways: how it is deployed; each in turn by default.
        by_value: whether even the installed one travels by value, as what is made by a function does.
        wrong: why it is known to fail; nobody may mend it without striking this out.
    """

    name: str
    source: str
    asks: tuple[Ask, ...] = ()
    refused: str = ""
    refused_by_value: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    at: str = "agents.py"
    agent: str = "Desk"
    ways: tuple[Way, ...] = WAYS
    by_value: bool = False
    wrong: str = ""


def case(name: str, source: str, *asks: Ask, **more: Any) -> Case:
    """`case("a sentence", source, ask(…), ask(…))`."""
    return Case(name=name, source=source, asks=asks, **more)


def brief(name: str, source: str, *asks: Ask, **more: Any) -> Case:
    """As `case`, but once by value and once by name: for what does not depend on where the class comes from."""
    return Case(name=name, source=source, asks=asks, **{"ways": ("script", "installed"), **more})

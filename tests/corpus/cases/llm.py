"""Agents that ask a model: their tools and answers, as people write them; the model plays a script."""

from tests.corpus.case import Case, ask
from tests.corpus.case import brief as case

#: An agent whose model calls one tool and then says what it was told.
TOLD = """
from squadron import Context, topic
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.thinking.model import ModelTurn, ToolCall
from squadron.testing import ScriptedModel

NAME, ARGUMENTS = {call}

def last_words(request):
    # What stands in the fence.
    return ModelTurn("\\n".join(request.messages[-1].content.split("\\n")[2:-1]))

class Base(LLMAgent):
    \"\"\"You do as you are told.\"\"\"

    def make_model(self, spec: str) -> ScriptedModel:
        return ScriptedModel([ModelTurn("", (ToolCall("1", NAME, ARGUMENTS),)), last_words])

    @topic("desk.one")
    async def one(self, text: str, ctx: Context) -> str:
        return await self.think(ctx, text)

{body}
"""


def _tool(name: str, call: str, body: str, gives: str) -> Case:
    return case(name, TOLD.format(call=call, body=body), ask("x", gives))


CASES = [
    _tool(
        "a tool with a dataclass and an enum",
        '"count", {"order": {"id": 2}, "mood": "good"}',
        '''
from dataclasses import dataclass
from enum import Enum

class Mood(Enum):
    GOOD = "good"

@dataclass
class Order:
    id: int
    parts: tuple[int, ...] = ()

class Desk(Base):
    @tool
    def count(self, order: Order, mood: Mood = Mood.GOOD) -> Order:
        """Counts."""
        assert mood is Mood.GOOD
        return Order(order.id, (1, 2))
''',
        '{"id": 2, "parts": [1, 2]}',
    ),
    _tool(
        "an async tool under a decorator",
        '"add", {"a": 1, "b": 2}',
        '''
import functools

def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

class Desk(Base):
    @tool
    @logged
    async def add(self, a: int, b: int = 0) -> int:
        """Adds."""
        return a + b
''',
        "3",
    ),
    _tool(
        "a tool that raises is told to the model",
        '"add", {"a": 1}',
        '''
class Desk(Base):
    @tool
    def add(self, a: int) -> int:
        """Adds."""
        raise ValueError("not today")
''',
        "ValueError: not today",
    ),
    _tool(
        "a tool that hands back what JSON has no word for",
        '"now", {}',
        '''
from datetime import date
from decimal import Decimal

class Desk(Base):
    @tool
    def now(self) -> dict:
        """What day it is."""
        return {"on": date(2026, 1, 2), "price": Decimal("1.10"), "tags": {"a"}}
''',
        '{"on": "2026-01-02", "price": "1.10", "tags": ["a"]}',
    ),
    case(
        "an answer that is a dataclass of the script",
        """
        from dataclasses import dataclass, field
        from squadron import Context, topic
        from squadron.actors.llm.llm_agent import LLMAgent
        from squadron.actors.thinking.model import ModelTurn
        from squadron.testing import ScriptedModel

        @dataclass
        class Verdict:
            good: bool
            why: list[str] = field(default_factory=list)

        class Desk(LLMAgent):
            def make_model(self, spec: str) -> ScriptedModel:
                return ScriptedModel([ModelTurn('{"good": true}')])

            @topic("desk.one")
            async def one(self, text: str, ctx: Context) -> Verdict:
                return await self.think_as(ctx, text, Verdict)
        """,
        ask("x", {"good": True, "why": []}),
    ),
    *(
        case(
            name,
            f"""
            from squadron import Context, topic
            from squadron.actors.llm.llm_agent import LLMAgent
            from squadron.actors.llm.tools import tool

            class Desk(LLMAgent):
                @topic("desk.one")
                async def one(self, text: str, ctx: Context) -> str:
                    return await self.think(ctx, text)

                @tool
                {source}
            """,
            refused=said,
        )
        for name, source, said in (
            ("a tool without a docstring", "def add(self, a: int) -> int: return a", "Desk.add"),
            (
                "a tool without a type",
                'def add(self, a) -> int: "Adds."',
                "Desk.add: parameter 'a' has no type",
            ),
            (
                "a tool with a name that no provider takes",
                'def größe_von(self, a: int) -> int: "Measures."',
                "größe_von",
            ),
        )
    ),
]

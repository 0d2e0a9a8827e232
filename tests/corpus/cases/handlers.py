"""Shapes of handlers: async and sync, generators, parameters of all kinds, and what they do while they run."""

from tests.corpus.case import ask
from tests.corpus.case import brief as case

CASES = [
    case(
        "an async handler",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n + 1
        """,
        ask({"n": 1}, 2),
        ask(1, 2),
        ask({"n": "1"}, ends="rejected", says="n"),
        ask({}, ends="rejected", says="required"),
        ask({"n": 1, "m": 2}, ends="rejected", says="m"),
        ask('{"n": 1}', 2, raw=True),
        ask('{"n": "one"}', ends="rejected", says="n", raw=True),
        ask("[1, 2]", ends="rejected", raw=True),
        ask("null", ends="rejected", raw=True),
    ),
    case(
        "a plain handler runs in a thread",
        """
        import threading

        class Desk(Agent):
            @topic("desk.one")
            def one(self) -> bool:
                return threading.current_thread() is threading.main_thread()
        """,
        ask({}, False),
    ),
    case(
        "an async generator of text is a text",
        """
        from collections.abc import AsyncIterator

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, words: list[str]) -> AsyncIterator[str]:
                for word in words:
                    yield word
        """,
        ask({"words": ["a", "ö", "🙂"]}, "aö🙂", chunks=["a", "ö", "🙂"]),
        ask({"words": [""]}, "", chunks=[""]),
        ask({"words": []}, "", chunks=[]),
    ),
    case(
        "an async generator of numbers is a list",
        """
        from typing import AsyncGenerator

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> AsyncGenerator[int, None]:
                for i in range(n):
                    yield i
        """,
        ask(3, [0, 1, 2], chunks=[0, 1, 2]),
        ask(0, [], chunks=[]),
    ),
    case(
        "a plain generator is streamed from a thread",
        """
        import threading
        from collections.abc import Generator, Iterator

        class Desk(Agent):
            @topic("desk.one")
            def one(self, n: int) -> Iterator[int]:
                for i in range(n):
                    yield i

            @topic("desk.two")
            def two(self, words: list[str]) -> Generator[str, None, None]:
                yield from words

            @topic("desk.three")
            def three(self) -> Iterator[bool]:
                yield threading.current_thread() is threading.main_thread()

            @topic("desk.four")
            def four(self):
                yield {"n": 1}
        """,
        ask(3, [0, 1, 2], topic="desk.one", chunks=[0, 1, 2]),
        ask(0, [], topic="desk.one", chunks=[]),
        ask(["a", "b"], "ab", topic="desk.two", chunks=["a", "b"]),
        ask({}, [False], topic="desk.three"),
        ask({}, [{"n": 1}], topic="desk.four"),
    ),
    case(
        "a plain generator that raises, returns and cleans up",
        """
        from collections.abc import Iterator

        class Desk(Agent):
            closed = 0

            @topic("desk.one", max_attempts=1)
            def one(self, context: Context) -> Iterator[int]:
                try:
                    yield 1
                    raise ValueError("half way")
                finally:
                    self.closed += 1

            @topic("desk.two")
            def two(self) -> Iterator[int]:
                yield 1
                return 2

            @topic("desk.three")
            def three(self) -> Iterator[int]:
                try:
                    yield 1
                    yield "two"
                    yield 3
                finally:
                    self.closed += 1

            @topic("desk.four")
            async def four(self) -> int:
                return self.closed
        """,
        ask({}, ends="dead_lettered", says="half way", topic="desk.one", chunks=[1]),
        ask({}, [1], topic="desk.two"),
        ask({}, ends="failed", says="desk.three", topic="desk.three", chunks=[1]),
        ask({}, 2, topic="desk.four"),
    ),
    case(
        "generators of odd kinds of text",
        """
        from collections.abc import AsyncIterator
        from enum import StrEnum
        from typing import Annotated, Literal, NewType
        from pydantic import Field

        Word = NewType("Word", str)

        class Kind(StrEnum):
            TEA = "tea"

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> AsyncIterator[Kind]:
                yield Kind.TEA
                yield Kind.TEA

            @topic("desk.two")
            async def two(self) -> AsyncIterator[Literal["a"]]:
                yield "a"
                yield "a"

            @topic("desk.three")
            async def three(self) -> AsyncIterator[str | None]:
                yield "a"
                yield "b"

            @topic("desk.four")
            async def four(self) -> AsyncIterator[Word]:
                yield Word("a")
                yield Word("b")

            @topic("desk.five")
            async def five(self) -> AsyncIterator[Annotated[str, Field(max_length=1)]]:
                yield "a"
                yield "b"
        """,
        ask({}, topic="desk.one", chunks=["tea", "tea"]),
        ask({}, topic="desk.two", chunks=["a", "a"]),
        ask({}, topic="desk.three", chunks=["a", "b"]),
        ask({}, topic="desk.four", chunks=["a", "b"]),
        ask({}, topic="desk.five", chunks=["a", "b"]),
    ),
    case(
        "an async generator of models",
        """
        from collections.abc import AsyncIterable
        from pydantic import BaseModel

        class Step(BaseModel):
            at: int

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> AsyncIterable[Step]:
                for i in range(n):
                    yield Step(at=i)
        """,
        ask(2, [{"at": 0}, {"at": 1}], chunks=[{"at": 0}, {"at": 1}]),
    ),
    case(
        "an async generator without a type",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self):
                yield "a"
                yield 1
                yield None
        """,
        ask({}, ["a", 1, None], chunks=["a", 1, None]),
    ),
    case(
        "an async generator whose chunk does not fit",
        """
        from collections.abc import AsyncIterator

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> AsyncIterator[int]:
                yield 1
                yield "two"
        """,
        ask({}, ends="failed", says="desk.one", chunks=[1]),
    ),
    case(
        "an async generator that raises after two chunks starts anew",
        """
        from collections.abc import AsyncIterator

        class Desk(Agent):
            @topic("desk.one", backoff_s=(0, 0))
            async def one(self, context: Context) -> AsyncIterator[int]:
                yield 1
                yield context.attempt
                if context.attempt == 1:
                    raise ConnectionError("lost")
                yield 3
        """,
        ask({}, [1, 2, 3]),
    ),
    case(
        "a handler that takes and gives nothing",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> None:
                pass
        """,
        ask({}, None),
        ask(None, None),
        ask("null", None, raw=True),
        ask({"n": 1}, ends="rejected"),
    ),
    case(
        "a handler without a return type gives what it likes",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, what: str):
                return {"what": [what, 1, None]}
        """,
        ask("x", {"what": ["x", 1, None]}),
    ),
    case(
        "a handler without a docstring, and one with much",
        '''
        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                """Über „alles“ — and\ttabs.

                :param none: nothing
                """
                return 1
        ''',
        ask({}, 1),
    ),
    case(
        "keyword-only parameters",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, a: int, *, b: int, c: int = 3) -> list[int]:
                return [a, b, c]
        """,
        ask({"a": 1, "b": 2}, [1, 2, 3]),
        ask({"a": 1}, ends="rejected", says="b"),
    ),
    case(
        "positional-only parameters are refused",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, a: int, /, b: int) -> int:
                return a
        """,
        refused="Desk.one: parameter 'a' must be passable by name",
    ),
    case(
        "a positional-only self is fine",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, /, a: int) -> int:
                return a
        """,
        ask(1, 1),
    ),
    case(
        "starred parameters are refused",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, *numbers: int) -> int:
                return sum(numbers)
        """,
        refused="Desk.one: parameter 'numbers' must be passable by name",
    ),
    case(
        "any fields",
        """
        from typing import Any

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, a: int = 0, **rest: Any) -> dict[str, Any]:
                return {"a": a, **rest}
        """,
        ask({"b": [1]}, {"a": 0, "b": [1]}),
        ask({}, {"a": 0}),
        ask({"": 1, "größe": 2, "a b": 3}, {"a": 0, "": 1, "größe": 2, "a b": 3}),
    ),
    case(
        "any fields of one type",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, **prices: int) -> dict[str, int]:
                return prices
        """,
        ask({"tea": 3}, {"tea": 3}),
        ask({"tea": "three"}, ends="rejected"),
    ),
    case(
        "a parameter without a type is refused",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n) -> int:
                return n
        """,
        refused="Desk.one: parameter 'n' has no type",
    ),
    case(
        "a default of another type than the parameter's",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int = None) -> bool:
                return n is None
        """,
        ask({}, True),
        ask({"n": 3}, False),
    ),
    case(
        "a mutable default is not shared between tasks",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, seen: list[int] = []) -> list[int]:
                seen.append(1)
                return seen
        """,
        ask({}, [1]),
        ask({}, [1]),
    ),
    case(
        "a sentinel as default keeps its identity",
        """
        from typing import Any

        NOT_GIVEN: Any = object()

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int | None = NOT_GIVEN) -> str:
                return "not given" if n is NOT_GIVEN else f"{n}"
        """,
        ask({}, "not given"),
        ask({"n": None}, "None"),
    ),
    case(
        "defaults that JSON has no word for",
        """
        from datetime import datetime, timedelta, timezone
        from decimal import Decimal
        from pathlib import Path

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self,
                at: datetime = datetime(2026, 1, 2, tzinfo=timezone.utc),
                for_: timedelta = timedelta(seconds=90),
                price: Decimal = Decimal("1.50"),
                tags: frozenset[str] = frozenset({"a"}),
                raw: bytes = b"x",
                path: Path = Path("/tmp"),
            ) -> list[str]:
                return [type(each).__name__ for each in (at, for_, price, tags, raw)]
        """,
        ask({}, ["datetime", "timedelta", "Decimal", "frozenset", "bytes"]),
    ),
    case(
        "an infinite default",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, most: float = float("inf")) -> bool:
                return most == float("inf")
        """,
        ask({}, True),
        ask({"most": 1.5}, False),
    ),
    case(
        "pydantic fields as defaults",
        """
        from typing import Annotated
        from pydantic import Field

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self,
                seen: list[int] = Field(default_factory=list),
                n: int = Field(3, ge=0, description="how many"),
                m: Annotated[int, Field(le=9)] = 1,
            ) -> list[int]:
                return [*seen, n, m]
        """,
        ask({}, [3, 1]),
        ask({"n": -1}, ends="rejected", says="n"),
        ask({"m": 10}, ends="rejected", says="m"),
    ),
    case(
        "a field with an alias as parameter",
        """
        from typing import Annotated
        from pydantic import Field

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, from_: Annotated[int, Field(alias="from")], to: int = 0) -> list[int]:
                return [from_, to]
        """,
        ask({"from": 1, "to": 2}, [1, 2]),
        ask({"to": 2}, ends="rejected", says="from"),
    ),
    case(
        "the context by any name, at any place",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, ctx: Context, n: int) -> str:
                return f"{ctx.topic} {n}"

            @topic("desk.two")
            def two(self, n: int, *, context: Context) -> str:
                return f"{context.topic} {n}"
        """,
        ask(1, "desk.one 1", topic="desk.one"),
        ask(2, "desk.two 2", topic="desk.two"),
        ask({"n": 1, "ctx": {}}, ends="rejected", topic="desk.one"),
    ),
    case(
        "a context that may be missing",
        """
        from typing import Optional

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int, context: Context | None = None) -> str:
                return f"{context.topic if context else None} {n}"

            @topic("desk.two")
            async def two(self, n: int, context: Optional[Context] = None) -> str:
                return f"{context.topic if context else None} {n}"
        """,
        ask(1, "desk.one 1", topic="desk.one"),
        ask(2, "desk.two 2", topic="desk.two"),
    ),
    case(
        "an annotated context",
        """
        from typing import Annotated

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int, context: Annotated[Context, "the turn"]) -> str:
                return f"{context.topic} {n}"
        """,
        ask(1, "desk.one 1"),
    ),
    case(
        "a context of the module's full name",
        """
        import squadron as sq

        class Desk(sq.Agent):
            @sq.topic("desk.one")
            async def one(self, n: int, context: "sq.Context") -> str:
                return f"{context.topic} {n}"
        """,
        ask(1, "desk.one 1"),
    ),
    case(
        "a context only for type checkers is refused by name",
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from squadron import Agent, topic
        if TYPE_CHECKING:
            from squadron import Context

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, context: Context) -> str:
                return context.topic
        """,
        refused="Desk.one: name 'Context' is not defined",
    ),
    case(
        "a field called context",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, context: str, turn: Context) -> str:
                return f"{context} {turn.topic}"
        """,
        ask({"context": "x"}, "x desk.one"),
    ),
    case(
        "a handler that emits and returns",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, context: Context) -> int:
                await context.emit("half")
                await context.emit({"done": 0.5})
                return 1
        """,
        ask({}, 1, chunks=["half", {"done": 0.5}]),
    ),
    case(
        "a handler that asks another of its agent",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int, context: Context) -> int:
                return (await context.ask("desk.two", {"n": n})).unwrap() + 1

            @topic("desk.two")
            async def two(self, n: int) -> int:
                return 10 * n
        """,
        ask(2, 21, topic="desk.one"),
    ),
    case(
        "a handler that runs much at once",
        """
        import asyncio

        class Desk(Agent):
            async def _one(self, n: int) -> int:
                await asyncio.sleep(0)
                return n

            @topic("desk.one")
            async def one(self, n: int) -> int:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._one(i)) for i in range(n)]
                return sum(task.result() for task in tasks)

            @topic("desk.two")
            def two(self, n: int) -> int:
                return asyncio.run(self._one(n))
        """,
        ask(10, 45, topic="desk.one"),
        ask(10, 10, topic="desk.two"),
    ),
    case(
        "a handler with an answer",
        """
        from pydantic import BaseModel

        class Note(BaseModel):
            text: str

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> Answer:
                return Answer(Note(text="ö"), confidence=0.5, reasoning="looked")

            @topic("desk.two")
            async def two(self) -> Note:
                return Answer(Note(text="ö"), confidence=0.5)
        """,
        ask({}, {"text": "ö"}, topic="desk.one"),
        ask({}, {"text": "ö"}, topic="desk.two"),
    ),
    case(
        "a lambda as handler",
        """
        class Desk(Agent):
            one = topic("desk.one")(lambda self: 1)
        """,
        ask({}, 1),
    ),
    case(
        "a handler that was put on later",
        """
        class Desk(Agent):
            pass

        async def one(self, n: int) -> int:
            return n

        Desk.one = topic("desk.one")(one)
        """,
        ask(1, 1),
    ),
    case(
        "a plain handler that hands back a coroutine",
        """
        class Desk(Agent):
            async def _one(self, n: int) -> int:
                return n + 1

            @topic("desk.one")
            def one(self, n: int) -> int:
                return self._one(n)
        """,
        ask(1, 2),
    ),
    case(
        "a handler for two topics",
        """
        class Desk(Agent):
            @topic("desk.one")
            @topic("desk.two")
            async def one(self) -> int:
                return 1
        """,
        refused="one",
    ),
    case(
        "a family of topics",
        """
        class Desk(Agent):
            @topic("desk.*")
            async def any(self, context: Context, n: int = 0) -> str:
                return context.topic

            @topic("desk.two")
            async def two(self, n: int = 0) -> str:
                return "exactly"
        """,
        ask({}, "desk.seven", topic="desk.seven"),
        ask({}, "exactly", topic="desk.two"),
    ),
    case(
        "a handler that takes a task and an event",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n

            @on("news.*")
            async def hear(self, message) -> None:
                pass

            @on_durable("orders.*")
            def book(self, message) -> None:
                pass
        """,
        ask(1, 1),
    ),
    case(
        "a plain handler that asks, emits and remembers",
        """
        class Desk(Agent):
            @topic("desk.one")
            def one(self, n: int, context: Context) -> int:
                context.sync.emit({"n": n})
                context.sync.remember(n)
                handle = context.sync.submit("desk.two", {"n": n})
                return handle.outcome().unwrap() + context.sync.ask("desk.two", {"n": n}).unwrap()

            @topic("desk.two")
            async def two(self, n: int) -> int:
                return 10 * n

            @topic("desk.three", max_attempts=1)
            async def three(self, context: Context) -> int:
                return context.sync.ask("desk.two", {"n": 1}).unwrap()
        """,
        ask(2, 40, topic="desk.one", chunks=[{"n": 2}]),
        ask({}, ends="failed", says="loop", topic="desk.three"),
    ),
    case(
        "durable events, handled by all kinds of methods",
        """
        import functools

        def logged(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper

        class Desk(Agent):
            def __init__(self) -> None:
                self.seen = []

            @on_durable("a.*")
            async def a(self, message) -> None:
                self.seen.append(["async", message.payload.content])

            @on_durable("b.*")
            def b(self, message) -> None:
                self.seen.append(["plain", message.payload.content])

            @on_durable("c.*")
            @logged
            async def c(self, message) -> None:
                self.seen.append(["decorated", message.payload.content])

            @on_durable("d.*", max_attempts=1)
            def d(self, message) -> None:
                raise KeyboardInterrupt

            @topic("desk.seen")
            async def all(self) -> list:
                return self.seen
        """,
        ask(1, topic="a.x", event=True),
        ask({"n": 2}, topic="b.x", event=True),
        ask("3", topic="c.x", event=True),
        ask(4, topic="d.x", event=True),
        ask({}, [["async", 1], ["plain", {"n": 2}], ["decorated", "3"]], topic="desk.seen"),
    ),
    case(
        "time that a handler has used up",
        """
        import asyncio

        class Desk(Agent):
            @topic("desk.one", run_timeout_s=0.05)
            async def one(self) -> int:
                await asyncio.sleep(30)
                return 1

            @topic("desk.two", run_timeout_s=0.05)
            def two(self, context: Context) -> int:
                while not context.cancelled:
                    pass
                return 1
        """,
        ask({}, ends="timed_out", topic="desk.one"),
        ask({}, ends="timed_out", topic="desk.two"),
    ),
]

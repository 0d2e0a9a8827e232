"""Ways of writing that are rarer, and come all the same."""

from __future__ import annotations

import sys

from tests.corpus.case import Case, ask, brief, case

CASES: list[Case] = [
    brief(
        "an agent that can be entered, called, awaited and counted",
        """
        class Desk(Agent):
            entered = False

            async def __aenter__(self):
                self.entered = True
                return self

            async def __aexit__(self, *args):
                return True

            def __call__(self, n: int) -> int:
                return n + 1

            def __await__(self):
                raise RuntimeError("nobody awaits an agent")

            def __len__(self) -> int:
                return 0

            def __eq__(self, other: object) -> bool:
                raise RuntimeError("nobody compares agents")

            @topic("desk.one")
            async def one(self) -> list:
                async with self as desk:
                    return [desk.entered, self(1), len(self)]
        """,
        ask({}, [True, 2, 0]),
    ),
    case(
        "locks, events and queues of asyncio in the module",
        """
        import asyncio

        LOCK, EVENT, ROOM, QUEUE = asyncio.Lock(), asyncio.Event(), asyncio.Semaphore(2), asyncio.Queue()

        class Desk(Agent):
            held = asyncio.Lock()

            @topic("desk.one")
            async def one(self, n: int) -> int:
                async with LOCK, self.held, ROOM:
                    await QUEUE.put(n)
                    EVENT.set()
                    await EVENT.wait()
                    return await QUEUE.get()
        """,
        ask(3, 3),
        ask(4, 4),
    ),
    brief(
        "the tools of asyncio",
        """
        import asyncio

        async def double(n: int) -> int:
            await asyncio.sleep(0)
            return 2 * n

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> list[int]:
                async with asyncio.TaskGroup() as group, asyncio.timeout(30):
                    tasks = [group.create_task(double(i)) for i in range(n)]
                gathered = await asyncio.gather(double(n), asyncio.to_thread(abs, -n))
                return [task.result() for task in tasks] + gathered

            @topic("desk.two")
            def two(self, n: int) -> list[int]:
                return asyncio.create_task(double(n)) if False else asyncio.run(double(n))

            @topic("desk.three")
            async def three(self, n: int):
                return asyncio.ensure_future(double(n))

            @topic("desk.four")
            async def four(self) -> int:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
                return 1
        """,
        ask(3, [0, 2, 4, 6, 3], topic="desk.one"),
        ask(3, ends="failed", says="desk.two", topic="desk.two"),
        ask(3, ends="failed", says="desk.three", topic="desk.three"),
        ask({}, ends="dead_lettered", says="TimeoutError", topic="desk.four"),
    ),
    case(
        "context managers of its own",
        """
        import contextlib
        from collections.abc import AsyncIterator, Iterator

        LOG: list[str] = []

        @contextlib.asynccontextmanager
        async def opened(name: str) -> AsyncIterator[str]:
            LOG.append(f"open {name}")
            try:
                yield name
            finally:
                LOG.append(f"close {name}")

        @contextlib.contextmanager
        def kept() -> Iterator[None]:
            LOG.append("keep")
            yield
            LOG.append("let go")

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> list[str]:
                async with contextlib.AsyncExitStack() as stack:
                    name = await stack.enter_async_context(opened("a"))
                    with kept(), contextlib.suppress(ZeroDivisionError):
                        LOG.append(f"in {name}")
                        1 / 0
                return LOG

            @topic("desk.two")
            @kept()
            def two(self) -> str:
                return LOG[-1]
        """,
        ask({}, ["open a", "keep", "in a", "let go", "close a"], topic="desk.one"),
        ask({}, "keep", topic="desk.two"),
    ),
    brief(
        "generators that clean up, delegate and end early",
        """
        from collections.abc import AsyncGenerator, Generator

        LOG: list[str] = []

        class Desk(Agent):
            async def pieces(self, n: int) -> AsyncGenerator[str, None]:
                try:
                    for i in range(n):
                        yield str(i)
                finally:
                    LOG.append("cleaned")

            @topic("desk.one")
            async def one(self, n: int) -> AsyncGenerator[str, None]:
                try:
                    async for piece in self.pieces(n):
                        yield piece
                        if piece == "2":
                            return
                finally:
                    yield "!"

            @topic("desk.two")
            def two(self) -> Generator[int, None, str]:
                got = yield from (i * i for i in range(3))
                yield -1 if got is None else got
                return "not seen"

            @topic("desk.three", max_attempts=1)
            async def three(self) -> AsyncGenerator[int, None]:
                try:
                    yield 1
                    raise ValueError("broke")
                finally:
                    LOG.append("three")

            @topic("desk.log")
            async def log(self) -> list[str]:
                return LOG[-1:]
        """,
        ask(9, "012!", topic="desk.one", chunks=["0", "1", "2", "!"]),
        ask({}, [0, 1, 4, -1], topic="desk.two"),
        ask({}, ends="dead_lettered", says="broke", topic="desk.three", chunks=[1]),
        ask({}, ["three"], topic="desk.log"),
    ),
    brief(
        "match, walrus, star expressions and except star",
        """
        from dataclasses import dataclass
        from typing import Any

        @dataclass
        class Point:
            x: int
            y: int

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, it: Any) -> str:
                match it:
                    case {"x": int(x), "y": int(y)} if (far := x * x + y * y) > 10:
                        return f"far {far}"
                    case [first, *rest]:
                        return f"{first} and {len(rest)}"
                    case str() | None:
                        return "text or nothing"
                    case _:
                        return "?"

            @topic("desk.two")
            async def two(self, at: Point) -> list[int]:
                match at:
                    case Point(x=0, y=y):
                        return [y]
                    case Point(x, y):
                        first, *others = x, y
                        return [*others, first]

            @topic("desk.three")
            async def three(self) -> list[str]:
                caught = []
                try:
                    raise ExceptionGroup("many", [ValueError("a"), ExceptionGroup("in", [KeyError("b")])])
                except* ValueError as group:
                    caught += [str(each) for each in group.exceptions]
                except* KeyError as group:
                    caught.append(type(group.exceptions[0]).__name__)
                return caught
        """,
        ask({"it": {"x": 3, "y": 4}}, "far 25", topic="desk.one"),
        ask({"it": [1, 2, 3]}, "1 and 2", topic="desk.one"),
        ask({"it": None}, "text or nothing", topic="desk.one"),
        ask({"at": {"x": 0, "y": 2}}, [2], topic="desk.two"),
        ask({"at": {"x": 1, "y": 2}}, [2, 1], topic="desk.two"),
        ask({}, ["a", "ExceptionGroup"], topic="desk.three"),
    ),
    case(
        "handlers made in a loop",
        """
        def made(n: int):
            async def handler(self, more: int = n) -> list[int]:
                return [n, more, step()]
            handler.__name__ = handler.__qualname__ = f"give_{n}"
            return topic(f"desk.give{n}")(handler)

        calls = 0

        def step() -> int:
            global calls
            calls += 1
            return calls

        class Desk(Agent):
            for n in (1, 2):
                locals()[f"give_{n}"] = made(n)
            late = [lambda n=n: n for n in (5, 6)]

            @topic("desk.late")
            async def later(self) -> list[int]:
                return [each() for each in self.late]
        """,
        ask({}, [1, 1, 1], topic="desk.give1"),
        ask({"more": 7}, [2, 7, 2], topic="desk.give2"),
        ask({}, [5, 6], topic="desk.late"),
    ),
    brief(
        "a decorator that counts, and one that warns",
        """
        import functools
        import typing_extensions
        import warnings

        def counted(function):
            calls = 0

            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                nonlocal calls
                calls += 1
                return f"{calls}: {await function(*args, **kwargs)}"

            return wrapper

        class Desk(Agent):
            @topic("desk.one")
            @counted
            async def one(self, text: str) -> str:
                return text

            @topic("desk.two")
            @typing_extensions.override
            async def two(self) -> int:
                with warnings.catch_warnings(record=True):
                    warnings.warn("old", DeprecationWarning)
                return 2
        """,
        ask("a", "1: a", topic="desk.one"),
        ask("b", "2: b", topic="desk.one"),
        ask({}, 2, topic="desk.two"),
    ),
    brief(
        "handlers that call each other as plain methods",
        """
        class Base(Agent):
            @topic("desk.base")
            async def base(self, n: int) -> int:
                return n + 1

        class Desk(Base):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return await self.base(n) + await Desk.base(self, n)

            @topic("desk.base")
            async def base(self, n: int) -> int:
                return 10 * await super().base(n)
        """,
        ask(1, 40, topic="desk.one"),
        ask(1, 20, topic="desk.base"),
    ),
    case(
        "models that hold themselves and each other",
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from pydantic import BaseModel
        from squadron import Agent, topic

        class Tree(BaseModel):
            name: str
            parts: list[Tree] = []

        @dataclass
        class Chain:
            n: int
            next: Chain | None = None

        class Person(BaseModel):
            name: str
            pets: list[Pet] = []

        class Pet(BaseModel):
            owner: Person | None = None

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, tree: Tree) -> Tree:
                return Tree(name="root", parts=[tree])

            @topic("desk.two")
            async def two(self, chain: Chain) -> Chain:
                return Chain(0, chain)

            @topic("desk.three")
            async def three(self, person: Person) -> dict[str, Person]:
                return {person.name: person}
        """,
        ask(
            {"tree": {"name": "a", "parts": [{"name": "b"}]}},
            {"name": "root", "parts": [{"name": "a", "parts": [{"name": "b", "parts": []}]}]},
            topic="desk.one",
        ),
        ask({"tree": {"name": "a", "parts": [{}]}}, ends="rejected", says="name", topic="desk.one"),
        ask({"chain": {"n": 1}}, {"n": 0, "next": {"n": 1, "next": None}}, topic="desk.two"),
        ask(
            {"person": {"name": "a", "pets": [{}]}},
            {"a": {"name": "a", "pets": [{"owner": None}]}},
            topic="desk.three",
        ),
    ),
    brief(
        "unions told apart by a function, by literals and by order",
        """
        from typing import Annotated, Any, Literal
        from pydantic import BaseModel, Discriminator, Field, Tag

        class Cat(BaseModel):
            kind: Literal["cat", "kitten"]
            lives: int = 9

        class Dog(BaseModel):
            kind: Literal["dog"]
            barks: bool = True

        def kind_of(value: Any) -> str:
            return "short" if isinstance(value, str) else "long"

        Short = Annotated[str, Tag("short")]
        Long = Annotated[list[str], Tag("long")]

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, pet: Annotated[Cat | Dog, Field(discriminator="kind")]) -> Cat | Dog:
                return pet

            @topic("desk.two")
            async def two(self, text: Annotated[Short | Long, Discriminator(kind_of)]) -> str:
                return type(text).__name__

            @topic("desk.three")
            async def three(self, it: int | bool | float | str | None) -> str:
                return type(it).__name__
        """,
        ask({"pet": {"kind": "kitten"}}, {"kind": "kitten", "lives": 9}, topic="desk.one"),
        ask({"pet": {"kind": "dog"}}, {"kind": "dog", "barks": True}, topic="desk.one"),
        ask({"pet": {"kind": "cow"}}, ends="rejected", topic="desk.one"),
        ask({"text": "a"}, "str", topic="desk.two"),
        ask({"text": ["a"]}, "list", topic="desk.two"),
        ask({"it": True}, "bool", topic="desk.three"),
        ask({"it": 1}, "int", topic="desk.three"),
        ask({"it": 1.5}, "float", topic="desk.three"),
        ask({"it": "1"}, "str", topic="desk.three"),
        ask({"it": None}, "NoneType", topic="desk.three"),
    ),
    brief(
        "old names of types",
        """
        from typing import Any, DefaultDict, Deque, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple, Union

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self,
                some: List[int],
                by: Dict[str, List[int]],
                pair: Tuple[int, str],
                either: Union[int, str],
                maybe: Optional[str],
                seen: Set[int] = set(),
                more: Sequence[str] = (),
                rest: Mapping[str, Any] = {},
            ) -> Dict[str, Tuple[int, ...]]:
                return {"all": (*some, *by.get("a", ()), pair[0], *seen)}
        """,
        ask(
            {"some": [1], "by": {"a": [2]}, "pair": [3, "x"], "either": "x", "maybe": None, "seen": [4]},
            {"all": [1, 2, 3, 4]},
        ),
        ask({"some": [1], "by": {}, "pair": [3, "x"], "either": 1}, ends="rejected", says="maybe"),
    ),
    brief(
        "containers of the collections module",
        """
        import collections
        from collections import ChainMap, Counter, OrderedDict, defaultdict, deque, namedtuple

        Pair = namedtuple("Pair", "a b")

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, words: list[str]) -> Counter[str]:
                return Counter(words)

            @topic("desk.two")
            async def two(self, by: defaultdict[str, list[int]], last: deque[int]) -> OrderedDict[str, int]:
                by["new"].append(1)
                return OrderedDict(n=len(by), last=last.pop())

            @topic("desk.three")
            async def three(self, pair: Pair) -> Pair:
                return pair._replace(b=pair.a)

            @topic("desk.four")
            async def four(self):
                return {"range": list(range(3)), "keys": list({"a": 1}), "pair": Pair(1, 2), "seen": {1}}

            @topic("desk.five")
            async def five(self) -> list[str]:
                return {"a": 1}.keys()
        """,
        ask({"words": ["a", "b", "a"]}, {"a": 2, "b": 1}, topic="desk.one"),
        ask({"by": {"a": [1]}, "last": [1, 2]}, {"n": 2, "last": 2}, topic="desk.two"),
        ask({"pair": [1, 2]}, [1, 1], topic="desk.three"),
        ask({}, {"range": [0, 1, 2], "keys": ["a"], "pair": [1, 2], "seen": [1]}, topic="desk.four"),
        ask({}, ["a"], topic="desk.five"),
    ),
    brief(
        "types that pydantic has",
        """
        from datetime import date
        from typing import Annotated
        from pydantic import AwareDatetime, ByteSize, Field, HttpUrl, Json, UUID4, conlist

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self, url: HttpUrl, size: ByteSize, raw: Json[list[int]], some: conlist(int, max_length=2) = [1]
            ) -> list:
                return [url.host, int(size), raw, some]

            @topic("desk.two")
            async def two(self, at: AwareDatetime) -> AwareDatetime:
                return at
        """,
        ask(
            {"url": "https://a.example/x", "size": "1KiB", "raw": "[1]"},
            ["a.example", 1024, [1], [1]],
            topic="desk.one",
        ),
        ask({"url": "no", "size": 1, "raw": "[1]"}, ends="rejected", says="url", topic="desk.one"),
        ask({"url": "https://a.example", "size": 1, "raw": "[x"}, ends="rejected", says="raw", topic="desk.one"),
        ask({"at": "2026-01-02T03:04:05+02:00"}, "2026-01-02T03:04:05+02:00", topic="desk.two"),
        ask({"at": "2026-01-02T03:04:05"}, ends="rejected", says="at", topic="desk.two"),
    ),
    brief(
        "classes derived from builtin types",
        """
        class Name(str):
            @property
            def loud(self) -> str:
                return self.upper()

        class Cents(int):
            pass

        class Bag(list):
            pass

        class Row(dict):
            pass

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> str:
                return Name("a")

            @topic("desk.two")
            async def two(self):
                return {"cents": Cents(3), "bag": Bag([Name("b")]), "row": Row(a=Cents(1))}

            @topic("desk.three")
            async def three(self) -> list[int]:
                return Bag([Cents(1)])
        """,
        ask({}, "a", topic="desk.one"),
        ask({}, {"cents": 3, "bag": ["b"], "row": {"a": 1}}, topic="desk.two"),
        ask({}, [1], topic="desk.three"),
    ),
    brief(
        "a dataclass that refuses what it is made of",
        """
        from dataclasses import dataclass

        @dataclass
        class Order:
            count: int

            def __post_init__(self) -> None:
                if self.count < 1:
                    raise ValueError("at least one")

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> int:
                return order.count

            @topic("desk.two", max_attempts=1)
            async def two(self) -> Order:
                return Order(0)
        """,
        ask({"order": {"count": 2}}, 2, topic="desk.one"),
        ask({"order": {"count": 0}}, ends="rejected", says="at least one", topic="desk.one"),
        ask({}, ends="dead_lettered", says="at least one", topic="desk.two"),
    ),
    brief(
        "any fields, of a typed dict, are refused by name",
        """
        from typing_extensions import NotRequired, TypedDict, Unpack

        class Options(TypedDict):
            size: int
            name: NotRequired[str]

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, **options: Unpack[Options]) -> dict:
                return dict(options)
        """,
        refused="Unpack",
    ),
    brief(
        "annotations with notes that mean nothing to pydantic",
        """
        from typing import Annotated, Final

        Text = Annotated[str, "a note", ("of", "any"), len]

        class Desk(Agent):
            LIMIT: Final = 3
            other: Final[int] = 4

            @topic("desk.one")
            async def one(self, a: Text, b: Annotated[Text | None, object()] = None) -> Annotated[list[Text], "x"]:
                return [a, b or "-", str(self.LIMIT + self.other)]
        """,
        ask({"a": "x"}, ["x", "-", "7"]),
    ),
    brief(
        "an enum as default, as key and in a literal",
        """
        import enum
        from typing import Literal

        class Mood(enum.StrEnum):
            GOOD = enum.auto()
            BAD = enum.auto()

        class Level(enum.IntEnum):
            LOW = 1
            HIGH = 2

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self,
                mood: Mood = Mood.GOOD,
                level: Level = Level.LOW,
                only: Literal[Mood.BAD, "x", 3, None] = None,
                by: dict[Mood, Level] = {Mood.BAD: Level.HIGH},
            ) -> dict[Mood, list]:
                return {mood: [level, only, by.get(Mood.BAD), mood is Mood.GOOD]}
        """,
        ask({}, {"good": [1, None, 2, True]}),
        ask({"mood": "bad", "level": 2, "only": "bad", "by": {}}, {"bad": [2, "bad", None, False]}),
        ask({"only": 4}, ends="rejected", says="only"),
        ask({"mood": "GOOD"}, ends="rejected", says="mood"),
    ),
    brief(
        "a hundred parameters",
        "class Desk(Agent):\n    @topic('desk.one')\n    async def one(self, "
        + ", ".join(f"a{n}: int = {n}" for n in range(100))
        + ") -> int:\n        given = dict(locals())\n        return sum(given[f'a{n}'] for n in range(100))\n",
        ask({}, 4950),
        ask({"a99": 0}, 4851),
        ask({"a100": 0}, ends="rejected", says="a100"),
    ),
    brief(
        "docstrings, examples and tags of all kinds",
        '''
        class Desk(Agent):
            f"""This is {'no'} docstring."""

            @topic("desk.one", description="", examples=["🙂 {x} %s </b>", ""], tags=["עברית", "a b", ""])
            async def one(self, n: int) -> int:
                r"""\\d+ {n} %s
                    indented

                \\t:param n: a number \\u202e
                """
                return n

            @topic("desk.two")
            async def two(self) -> int:
                """ """
                return 2
        ''',
        ask(1, 1, topic="desk.one"),
        ask({}, 2, topic="desk.two"),
    ),
    brief(
        "what a program does beside its answer",
        """
        import logging
        import os
        import random
        import subprocess
        import sys
        import tempfile
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path

        logger = logging.getLogger(__name__)

        class Desk(Agent):
            @topic("desk.one")
            def one(self, n: int) -> list:
                print("out", n, file=sys.stderr)
                logger.warning("told %s", n)
                os.environ["DESK_WAS_HERE"] = "1"
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "größe.txt")
                    path.write_text("x" * n)
                    size = path.stat().st_size
                with ThreadPoolExecutor(2) as pool:
                    doubled = list(pool.map(lambda i: 2 * i, range(n)))
                said = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True).stdout
                return [size, doubled, said.strip(), random.Random(n).random() < 1]
        """,
        ask(3, [3, [0, 2, 4], "7", True]),
    ),
    case(
        "a logger, a pattern, a table and a partial in the module",
        """
        import functools
        import logging
        import operator
        import re
        import types

        log = logging.getLogger("desk")
        WORD = re.compile(r"\\w+")
        TABLE = types.MappingProxyType({"a": 1})
        add_two = functools.partial(operator.add, 2)
        first = operator.itemgetter(0)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, text: str) -> list:
                log.debug("asked")
                return [WORD.findall(text), add_two(1), first("xyz"), TABLE["a"]]
        """,
        ask("a b", [["a", "b"], 3, "x", 1]),
    ),
    brief(
        "an agent with a name that is none",
        """
        class Desk(Agent):
            name = ""

            @topic("desk.one")
            async def one(self) -> int:
                return 1
        """,
        ask({}, 1),
    ),
    brief(
        "an agent with a name of emoji",
        """
        class Desk(Agent):
            name = "🙂"

            @topic("desk.one")
            async def one(self) -> int:
                return 1
        """,
        refused="🙂",
    ),
    brief(
        "a topic without a name",
        """
        class Desk(Agent):
            @topic("")
            async def one(self) -> int:
                return 1
        """,
        refused="''",
    ),
    brief(
        "a type variable with a bound, and one with choices",
        """
        from typing import TypeVar
        from pydantic import BaseModel

        class Item(BaseModel):
            id: int

        Bound = TypeVar("Bound", bound=Item)
        Choice = TypeVar("Choice", int, str)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, item: Bound, key: Choice) -> list:
                return [item.id, key]
        """,
        ask({"item": {"id": 1}, "key": "a"}, [1, "a"]),
        ask({"item": {}, "key": 1}, ends="rejected", says="id"),
        ask({"item": {"id": 1}, "key": 1.5}, ends="rejected", says="key"),
    ),
    brief(
        "a handler that never returns, by its type",
        """
        from typing import NoReturn

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> NoReturn:
                raise Terminal("as promised")
        """,
        ask({}, ends="failed", says="as promised"),
    ),
]

if sys.version_info >= (3, 12):
    CASES += [
        case(
            "types and generics of Python 3.12",
            """
            from dataclasses import dataclass
            from pydantic import BaseModel

            type Ids = list[int]
            type Nested = int | list[Nested]
            type Pair[T] = tuple[T, T]

            class Box[T](BaseModel):
                held: T

            @dataclass
            class Slot[T]:
                held: T

            def first[T](some: list[T]) -> T:
                return some[0]

            class Desk(Agent):
                @topic("desk.one")
                async def one(self, ids: Ids, pair: Pair[str], box: Box[int], slot: Slot[str]) -> Box[Ids]:
                    return Box[Ids](held=[first(ids), len(pair), box.held, len(slot.held)])

                @topic("desk.two")
                async def two(self, nested: Nested) -> Nested:
                    return [nested]
            """,
            ask(
                {"ids": [5], "pair": ["a", "b"], "box": {"held": 1}, "slot": {"held": "abc"}},
                {"held": [5, 2, 1, 3]},
                topic="desk.one",
            ),
            ask({"nested": [1, [2]]}, [[1, [2]]], topic="desk.two"),
        ),
    ]

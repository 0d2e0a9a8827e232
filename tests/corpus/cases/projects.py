"""Projects: layouts, imports, and what stands in a module beside the class."""

from tests.corpus.case import ask, case

ONE = """
class Desk(Agent):
    @topic("desk.one")
    async def one(self, n: int) -> int:
        return n + 1
"""

#: At the indentation of the sources below.
CLIENT = """
            import threading

            class Client:
                def __init__(self):
                    self.lock = threading.Lock()

            held = Client()
""".strip()

CASES = [
    case("a module called as one of ours is", ONE, ask(1, 2), at="runtime.py"),
    case("a module called as the bus is", ONE, ask(1, 2), at="nats_agents.py"),
    case(
        "a sibling module",
        """
        import helper
        from helper import Greeting, shout

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, name: str) -> str:
                return shout(Greeting(name).text) + helper.MARK
        """,
        ask("Zoë", "HELLO, ZOË!"),
        files={
            "helper.py": """
                from dataclasses import dataclass
                MARK = "!"

                @dataclass
                class Greeting:
                    name: str

                    @property
                    def text(self):
                        return f"Hello, {self.name}"

                def shout(text):
                    return _upper(text)

                def _upper(text):
                    return text.upper()
                """,
        },
    ),
    case(
        "a package with relative imports",
        """
        from . import tools
        from .models.order import Order
        from .tools import price_of as price

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> int:
                return price(order) + tools.FEE
        """,
        ask({"order": {"id": 2}}, 201),
        at="shop/agents.py",
        files={
            "shop/__init__.py": "VERSION = 1",
            "shop/tools.py": "FEE = 1\ndef price_of(order): return order.id * 100",
            "shop/models/__init__.py": "",
            "shop/models/order.py": "from pydantic import BaseModel\nclass Order(BaseModel):\n    id: int",
        },
        ways=("module", "installed"),
    ),
    case(
        "a package without __init__",
        """
        from place.tools import FEE

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return FEE
        """,
        ask({}, 1),
        at="place/agents.py",
        files={"place/tools.py": "FEE = 1"},
        ways=("module", "installed"),
    ),
    case(
        "a package that hands its agent on",
        """
        from pack.inner.agents import Desk as Desk
        VERSION = "squadron of one"
        """,
        ask(1, 2),
        at="pack/__init__.py",
        files={"pack/inner/__init__.py": "", "pack/inner/agents.py": "from squadron import Agent, topic\n" + ONE},
        ways=("module", "installed"),
    ),
    case(
        "an agent in the __init__ of its package",
        """
        from .tools import FEE

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return FEE
        """,
        ask({}, 1),
        at="desks/__init__.py",
        files={"desks/tools.py": "FEE = 1"},
        ways=("module", "installed"),
    ),
    case(
        "an agent that another module defines",
        "from squadron import Agent\nfrom elsewhere import Desk",
        ask(1, 2),
        files={"elsewhere.py": "from squadron import Agent, topic\n" + ONE},
    ),
    case(
        "a base class in another module",
        """
        from base import Base

        class Desk(Base):
            factor = 3
        """,
        ask(2, 6),
        files={
            "base.py": """
                from squadron import Agent, topic

                class Base(Agent):
                    factor = 1

                    @topic("desk.one")
                    async def one(self, n: int) -> int:
                        return n * self.factor
                """,
        },
    ),
    case(
        "a base class in another module, with text annotations",
        """
        from base import Base

        class Desk(Base):
            pass
        """,
        ask({"order": {"id": 2}}, {"id": 2}),
        files={
            "base.py": """
                from __future__ import annotations
                from dataclasses import dataclass
                from squadron import Agent, Context, topic

                class Base(Agent):
                    @topic("desk.one")
                    async def one(self, order: Order, context: Context) -> Order:
                        return order

                @dataclass
                class Order:
                    id: int
                """,
        },
    ),
    case(
        "names by a star",
        """
        from constants import *

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return FEE + bonus()
        """,
        ask({}, 3),
        files={"constants.py": "FEE = 1\ndef bonus(): return 2\n_hidden = 3"},
    ),
    case(
        "modules that import each other",
        """
        import other

        LIMIT = 5

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return other.check(n)
        """,
        ask(7, 5),
        ways=("module", "installed"),
        files={"other.py": "import agents\ndef check(n): return min(n, agents.LIMIT)"},
    ),
    case(
        "modules that import each other, and their classes",
        """
        from shop import orders

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: orders.Order) -> orders.Order:
                return orders.priced(order)
        """,
        ask({"order": {"id": 2}}, {"id": 2, "price": {"cents": 200}}),
        files={
            "shop/__init__.py": "",
            "shop/orders.py": """
                from __future__ import annotations
                from dataclasses import dataclass
                from shop import prices

                @dataclass
                class Order:
                    id: int
                    price: prices.Price | None = None

                def priced(order: Order) -> Order:
                    return Order(order.id, prices.of(order))
                """,
            "shop/prices.py": """
                from __future__ import annotations
                from dataclasses import dataclass
                from shop import orders

                @dataclass
                class Price:
                    cents: int

                def of(order: orders.Order) -> Price:
                    assert isinstance(order, orders.Order)
                    return Price(order.id * 100)
                """,
        },
    ),
    case(
        "an import within a handler",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> str:
                import json
                from collections import Counter
                return json.dumps(Counter("aab"))
        """,
        ask({}, '{"a": 2, "b": 1}'),
    ),
    case(
        "an import of a sibling within a handler",
        """
        class Desk(Agent):
            @topic("desk.one", max_attempts=1)
            async def one(self) -> int:
                from lazy import FEE
                return FEE
        """,
        ask({}, 1),
        files={"lazy.py": "FEE = 1"},
    ),
    case(
        "imports of the project within functions, in all forms",
        """
        from shop.orders import Order

        class Desk(Agent):
            @topic("desk.package")
            async def package(self) -> int:
                import shop.prices
                return shop.prices.FEE

            @topic("desk.part")
            def part(self) -> list[int]:
                from shop import prices
                import shop.prices as again
                return [prices.FEE, again.FEE]

            @topic("desk.chain")
            async def chain(self) -> int:
                def inner() -> int:
                    from shop.chain import first
                    return first()
                return inner()

            @topic("desk.same")
            async def same(self) -> bool:
                from shop import orders
                return orders.Order is Order and isinstance(orders.made(), Order)

            @topic("desk.bare")
            async def bare(self) -> str:
                import bare.inner
                return bare.inner.NAME

            @topic("desk.missing")
            async def missing(self) -> str:
                try:
                    import shop.nowhere
                except ImportError:
                    return "it is not there"
        """,
        ask({}, 3, topic="desk.package"),
        ask({}, [3, 3], topic="desk.part"),
        ask({}, 7, topic="desk.chain"),
        ask({}, True, topic="desk.same"),
        ask({}, "inner", topic="desk.bare"),
        ask({}, "it is not there", topic="desk.missing"),
        files={
            "shop/__init__.py": "",
            "shop/prices.py": "FEE = 3",
            "shop/orders.py": """
                class Order:
                    pass

                def made() -> Order:
                    return Order()
                """,
            "shop/chain.py": """
                def first() -> int:
                    from .last import last
                    return last() + 1
                """,
            "shop/last.py": """
                def last() -> int:
                    from . import deep
                    return deep.FEE
                """,
            "shop/deep.py": "FEE = 6",
            "bare/inner.py": "NAME = 'inner'",
        },
    ),
    case(
        "a module that can't travel, imported by what is never called",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, much: bool = False) -> int:
                if much:
                    import locks
                    import breaks
                return 1
        """,
        ask({}, 1),
        files={"locks.py": "import threading\nLOCK = threading.Lock()", "breaks.py": "raise RuntimeError('no')"},
    ),
    case(
        "a type of a sibling module that only the annotation names",
        """
        import models

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: models.Order, moods: list[models.Mood]) -> models.Order:
                return order
        """,
        ask({"order": {"id": 1}, "moods": ["good"]}, {"id": 1}),
        files={
            "models.py": """
                import enum
                from dataclasses import dataclass
                from typing import NewType

                Id = NewType("Id", int)

                class Mood(enum.Enum):
                    GOOD = "good"

                @dataclass
                class Order:
                    id: Id
                """,
        },
    ),
    case(
        "a guarded main",
        """
        import sys

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return helper(n)

        def helper(n: int) -> int:
            return n + STEP

        STEP = 1

        if __name__ == "__main__" and "never" in sys.argv:
            raise SystemExit(1)
        """,
        ask(1, 2),
    ),
    case(
        "cells of a notebook, one of them run again",
        """
        from dataclasses import dataclass
        STEP = 1
        # %%
        @dataclass
        class Note:
            n: int
        # %%
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, note: Note) -> Note:
                return Note(note.n + step())
        # %%
        STEP = 2

        def step() -> int:
            return STEP
        """,
        ask({"note": {"n": 1}}, {"n": 3}),
        ways=("notebook",),
    ),
    *(
        case(
            f"the cell of a type run again, and not the agent's ({what})",
            f"""
            from dataclasses import dataclass
            from typing import Annotated

            @dataclass
            class Note:
                n: int
            # %%
            class Desk(Agent):
                @topic("desk.one")
                async def one(self, note: {what}) -> int:
                    return 1
            # %%
            @dataclass
            class Note:
                n: int
                more: str = "more"
            """,
            *asks,
            ways=("notebook",),
            refused=refused,
        )
        for what, asks, refused in (
            ("Note", (), "Note was defined again after Desk"),
            ("Annotated[list[Note] | None, 1]", (), "Note was defined again after Desk"),
            # Names are looked up when it is deployed.
            ("'Note'", (ask({"note": {"n": 1, "more": "x"}}, 1),), ""),
        )
    ),
    case(
        "the cell of a type and then the agent's run again",
        """
        class Note(dict):
            pass
        # %%
        from dataclasses import dataclass

        @dataclass
        class Note:
            n: int
        # %%
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, note: Note) -> Note:
                return Note(note.n)
        """,
        ask({"note": {"n": 1}}, {"n": 1}),
        ways=("notebook",),
    ),
    case(
        "a counter in the module",
        """
        count = 0

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                global count
                count += 1
                return count

            @topic("desk.two")
            async def two(self) -> int:
                return count
        """,
        ask({}, 1, topic="desk.one"),
        ask({}, 2, topic="desk.one"),
        ask({}, 2, topic="desk.two"),
    ),
    case(
        "a table in the module that a function of another one fills",
        """
        import registry

        @registry.register("double")
        def double(n):
            return 2 * n

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return registry.KNOWN["double"](n)
        """,
        ask(2, 4),
        files={
            "registry.py": """
                KNOWN = {}

                def register(name):
                    def decorate(function):
                        KNOWN[name] = function
                        return function
                    return decorate
                """,
        },
    ),
    case(
        "a cached helper",
        """
        import functools

        @functools.lru_cache(maxsize=8)
        def square(n: int) -> int:
            return n * n

        @functools.cache
        def table() -> dict[str, int]:
            return {"a": 1}

        class Desk(Agent):
            @functools.lru_cache
            def kept(self, n: int) -> int:
                return n

            @topic("desk.one")
            async def one(self, n: int) -> int:
                return square(n) + table()["a"] + self.kept(0)
        """,
        ask(2, 5),
        ask(2, 5),
    ),
    case(
        "cached methods of a class",
        """
        import functools

        class Desk(Agent):
            @functools.lru_cache
            def kept(self, n: int) -> int:
                return n

            @staticmethod
            @functools.cache
            def table(n: int) -> dict[str, int]:
                return {"a": n}

            @classmethod
            @functools.cache
            def name_of(cls) -> str:
                return cls.__name__

            @functools.cached_property
            def client(self) -> list[int]:
                return [1]

            @topic("desk.one")
            async def one(self, n: int) -> list:
                return [self.kept(n), self.table(n)["a"], self.name_of(), self.client]
        """,
        ask(2, [2, 2, "Desk", [1]]),
    ),
    case(
        "a cached helper that has been called",
        """
        import functools

        @functools.lru_cache(typed=True)
        def square(n: int) -> int:
            return n * n

        square(2)
        square.__doc__ = "Squares."

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> list:
                return [square(n), square.cache_info().currsize, square.cache_parameters()["typed"]]
        """,
        ask(2, [4, 1, True]),
        ways=("script", "module"),
    ),
    case(
        "a function that goes by the type of its argument",
        """
        import functools

        @functools.singledispatch
        def text(it: object) -> str:
            return "object"

        @text.register
        def _(it: int) -> str:
            return "int"

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> str:
                return text(n) + text("x")
        """,
        ask(1, "intobject"),
    ),
    case(
        "a method that goes by the type of its argument",
        """
        import functools

        class Desk(Agent):
            @functools.singledispatchmethod
            def text(self, it: object) -> str:
                return "object"

            @text.register
            def _(self, it: int) -> str:
                return "int"

            @topic("desk.one")
            async def one(self, n: int) -> str:
                return self.text(n)
        """,
        ask(1, "int"),
    ),
    case(
        "a context variable",
        """
        from contextvars import ContextVar

        user: ContextVar[str] = ContextVar("user", default="nobody")

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> str:
                return user.get()
        """,
        ask({}, "nobody"),
    ),
    *(
        case(
            f"{what} in the module",
            f"""
            {setup}

            class Desk(Agent):
                @topic("desk.one")
                async def one(self) -> bool:
                    return held is not None
            """,
            ask({}, True),
            refused_by_value="held",
        )
        for what, setup in (
            ("a lock", "import threading; held = threading.Lock()"),
            ("an open file", "import sys; held = open(sys.executable, 'rb')"),
            ("a socket", "import socket; held = socket.socket()"),
            ("a thread's own data", "import threading; held = threading.local()"),
            ("a generator", "held = (i for i in range(3))"),
            ("a queue", "import queue; held = queue.Queue()"),
            ("a pool", "from concurrent.futures import ThreadPoolExecutor; held = ThreadPoolExecutor(1)"),
            ("a database", "import sqlite3; held = sqlite3.connect(':memory:')"),
            ("a client that holds a lock", CLIENT),
        )
    ),
    case(
        "a lock of a class",
        """
        import threading

        class Desk(Agent):
            guard = threading.Lock()

            @topic("desk.one")
            def one(self) -> bool:
                with self.guard:
                    return True
        """,
        ask({}, True),
        refused_by_value="guard",
    ),
    case(
        "a lock in a closure",
        """
        import threading

        def make():
            lock = threading.Lock()

            def locked():
                with lock:
                    return True

            return locked

        locked = make()

        class Desk(Agent):
            @topic("desk.one")
            def one(self) -> bool:
                return locked()
        """,
        ask({}, True),
        refused_by_value="'lock' is a",
    ),
    case(
        "what stands in the module and travels well",
        """
        import logging
        import re
        import string
        import weakref
        from collections import namedtuple
        from functools import partial
        from operator import itemgetter
        from types import SimpleNamespace

        log = logging.getLogger(__name__)
        word = re.compile(r"\\w+")
        double = partial(lambda n, by: n * by, by=2)
        first = itemgetter(0)
        square = lambda n: n * n
        settings = SimpleNamespace(step=1)
        Pair = namedtuple("Pair", "a b")
        EMPTY = Pair(0, 0)
        TABLE = {"double": double, "square": square}

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, text: str) -> list:
                log.debug("%s", text)
                n = len(word.findall(text))
                return [double(n), first([n]), square(n), settings.step, EMPTY.b, TABLE["square"](3), string.digits[1]]
        """,
        ask("one two three", [6, 3, 9, 1, 0, 9, "1"]),
    ),
    case(
        "what a module has and no handler needs",
        """
        import sys
        import threading

        unused = threading.Lock()
        stream = sys.stderr

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return 1
        """,
        ask({}, 1),
    ),
    case(
        "an exception of the project",
        """
        class Broken(Exception):
            def __init__(self, part: str, *, code: int) -> None:
                super().__init__(f"{part} is broken ({code})")
                self.part, self.code = part, code

        class Desk(Agent):
            @topic("desk.one", max_attempts=2, backoff_s=(0, 0))
            async def one(self, again: bool) -> str:
                try:
                    raise Broken("wheel", code=3)
                except Broken as error:
                    if again:
                        raise
                    return f"{error.part} {error.code}"

            @topic("desk.two", retry_on=(Broken,))
            async def two(self) -> int:
                raise ValueError("not that")
        """,
        ask(False, "wheel 3", topic="desk.one"),
        ask(True, ends="dead_lettered", says="Broken: wheel is broken (3)", topic="desk.one"),
        ask({}, ends="failed", says="not that", topic="desk.two"),
    ),
    case(
        "an abstract base, a protocol and a registry of classes",
        """
        from abc import ABC, abstractmethod
        from typing import Protocol, runtime_checkable

        @runtime_checkable
        class Shape(Protocol):
            def area(self) -> float: ...

        class Figure(ABC):
            known: dict[str, type["Figure"]] = {}

            def __init_subclass__(cls) -> None:
                Figure.known[cls.__name__] = cls

            @abstractmethod
            def area(self) -> float: ...

        class Square(Figure):
            def area(self) -> float:
                return 4.0

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, name: str) -> float:
                figure = Figure.known[name]()
                assert isinstance(figure, Shape) and isinstance(figure, Figure)
                return figure.area()
        """,
        ask("Square", 4.0),
    ),
    case(
        "a type that checks its instances by itself",
        """
        class Meta(type):
            def __instancecheck__(cls, it: object) -> bool:
                return isinstance(it, int)

        class Even(metaclass=Meta):
            pass

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> bool:
                return isinstance(n, Even)
        """,
        ask(1, True),
    ),
    case(
        "the class's own name in its code",
        """
        class Desk(Agent):
            step = 2

            @topic("desk.one")
            async def one(self, n: int) -> int:
                return Desk.add(n) + __class__.step

            @staticmethod
            def add(n: int) -> int:
                return n + Desk.step

            @classmethod
            def make(cls) -> "Desk":
                return cls()
        """,
        ask(1, 5),
    ),
    case(
        "more than a deploy takes",
        """
        import os
        DATA = os.urandom(5_000_000)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return len(DATA)
        """,
        ask({}, 5_000_000),
        refused_by_value="load large data in on_start",
    ),
    case(
        "the words of a file beside the module",
        """
        from pathlib import Path

        TEXT = (Path.cwd() / "words.txt").read_text()

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return len(TEXT.split())
        """,
        ask({}, 3),
        files={"words.txt": "one two three"},
        ways=("script", "notebook", "module"),
    ),
]

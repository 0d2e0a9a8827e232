"""Classes: inheritance, overrides, decorators, closures, and what `__init__` and `on_start` do."""

from tests.corpus.case import WAYS, ask
from tests.corpus.case import brief as case

CASES = [
    case(
        "an ordinary decorator on an async handler",
        """
        import functools

        def logged(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper

        class Desk(Agent):
            @topic("desk.one")
            @logged
            async def one(self, n: int) -> int:
                return n + 1
        """,
        ask(1, 2),
    ),
    case(
        "an ordinary decorator over the mark",
        """
        import functools

        def logged(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper

        class Desk(Agent):
            @logged
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n + 1
        """,
        ask(1, 2),
    ),
    case(
        "an ordinary decorator on an async generator",
        """
        import functools
        from collections.abc import AsyncIterator

        def logged(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper

        class Desk(Agent):
            @topic("desk.one")
            @logged
            async def one(self, n: int) -> AsyncIterator[int]:
                for i in range(n):
                    yield i
        """,
        ask(2, [0, 1], chunks=[0, 1]),
    ),
    case(
        "an async decorator",
        """
        import functools

        def doubled(function):
            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                return 2 * await function(*args, **kwargs)
            return wrapper

        class Desk(Agent):
            @topic("desk.one")
            @doubled
            async def one(self, n: int) -> int:
                return n
        """,
        ask(2, 4),
    ),
    case(
        "a decorator with arguments, typed by ParamSpec",
        """
        import functools
        from collections.abc import Awaitable, Callable
        from typing import ParamSpec, TypeVar

        P = ParamSpec("P")
        R = TypeVar("R")

        def times(n: int) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
            def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
                @functools.wraps(function)
                async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
                    for _ in range(n - 1):
                        await function(*args, **kwargs)
                    return await function(*args, **kwargs)
                return wrapper
            return decorate

        class Desk(Agent):
            def __init__(self) -> None:
                self.count = 0

            @topic("desk.one")
            @times(3)
            async def one(self) -> int:
                self.count += 1
                return self.count
        """,
        ask({}, 3),
    ),
    case(
        "a decorator that hides the signature is refused by name",
        """
        def careless(function):
            def wrapper(self, *args, **kwargs):
                return function(self, *args, **kwargs)
            return wrapper

        class Desk(Agent):
            @topic("desk.one")
            @careless
            async def one(self, n: int) -> int:
                return n
        """,
        refused="Desk.one: parameter 'args'",
    ),
    case(
        "a decorator that is a class",
        """
        import functools

        class Counted:
            def __init__(self, function):
                functools.update_wrapper(self, function)
                self.function = function

            def __get__(self, instance, owner=None):
                return self if instance is None else functools.partial(self.function, instance)

        class Desk(Agent):
            @topic("desk.one")
            @Counted
            async def one(self, n: int) -> int:
                return n
        """,
        refused="Desk.one",
    ),
    case(
        "a cached handler",
        """
        import functools

        class Desk(Agent):
            @topic("desk.one")
            @functools.lru_cache
            def one(self, n: int) -> int:
                return n
        """,
        ask(1, 1),
    ),
    case(
        "a partial as handler",
        """
        import functools

        def one(self, n: int, factor: int) -> int:
            return n * factor

        class Desk(Agent):
            one = topic("desk.one")(functools.partialmethod(one, factor=2))
        """,
        refused="Desk.one",
    ),
    case(
        "a callable object as handler",
        """
        class Doubler:
            def __call__(self, n: int) -> int:
                return 2 * n

        class Desk(Agent):
            one = topic("desk.one")(Doubler())
        """,
        refused="Desk.one",
    ),
    case(
        "a static method under the mark",
        """
        class Desk(Agent):
            @staticmethod
            @topic("desk.one")
            def one(n: int) -> int:
                return n
        """,
        ask(1, 1),
    ),
    case(
        "a static method over the mark",
        """
        class Desk(Agent):
            @topic("desk.one")
            @staticmethod
            def one(n: int) -> int:
                return n
        """,
        ask(1, 1),
    ),
    case(
        "a class method under the mark",
        """
        class Desk(Agent):
            @classmethod
            @topic("desk.one")
            def one(cls, n: int) -> int:
                return n
        """,
        ask(1, 1),
    ),
    case(
        "a class method over the mark",
        """
        class Desk(Agent):
            @topic("desk.one")
            @classmethod
            def one(cls, n: int) -> int:
                return n
        """,
        ask(1, 1),
    ),
    case(
        "a property as handler",
        """
        class Desk(Agent):
            @topic("desk.one")
            @property
            def one(self) -> int:
                return 1
        """,
        refused="property",
    ),
    case(
        "an inherited handler",
        """
        class Base(Agent):
            factor = 2

            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n * self.factor

        class Desk(Base):
            factor = 3
        """,
        ask(2, 6),
    ),
    case(
        "an override with the mark",
        """
        class Base(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n

        class Desk(Base):
            @topic("desk.one")
            async def one(self, n: int, m: int = 1) -> int:
                return await super().one(n) + m
        """,
        ask({"n": 1}, 2),
        ask({"n": 1, "m": 2}, 3),
    ),
    case(
        "an override without the mark",
        """
        class Base(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n

        class Desk(Base):
            async def one(self, n: int) -> int:
                return await super().one(n) + 1
        """,
        ask(1, 2),
    ),
    case(
        "an override that is nothing is left out",
        """
        class Base(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n

            @topic("desk.two")
            async def two(self, n: int) -> int:
                return n

        class Desk(Base):
            one = None
        """,
        ask(1, 1, topic="desk.two"),
        ask(1, ends="undeliverable", topic="desk.one"),
    ),
    case(
        "a handler of a mixin",
        """
        class Loud:
            @topic("desk.loud")
            async def loud(self, text: str) -> str:
                return self.shape(text)

        class Desk(Loud, Agent):
            def shape(self, text: str) -> str:
                return text.upper()
        """,
        ask("x", "X"),
    ),
    case(
        "two bases that meet in a diamond",
        """
        class Base(Agent):
            async def base(self) -> list[str]:
                return ["base"]

        class Left(Base):
            async def base(self) -> list[str]:
                return ["left", *await super().base()]

        class Right(Base):
            async def base(self) -> list[str]:
                return ["right", *await super().base()]

        class Desk(Left, Right):
            @topic("desk.one")
            async def one(self) -> list[str]:
                return await self.base()
        """,
        ask({}, ["left", "right", "base"]),
    ),
    case(
        "an abstract agent and a concrete one",
        """
        from abc import ABC, abstractmethod

        class Base(Agent, ABC):
            @abstractmethod
            async def work(self, n: int) -> int: ...

            @topic("desk.one")
            async def one(self, n: int) -> int:
                return await self.work(n)

        class Desk(Base):
            async def work(self, n: int) -> int:
                return n + 1
        """,
        ask(1, 2),
    ),
    case(
        "an abstract agent can't be served",
        """
        from abc import ABC, abstractmethod

        class Desk(Agent, ABC):
            @abstractmethod
            async def work(self) -> int: ...

            @topic("desk.one")
            async def one(self) -> int:
                return await self.work()
        """,
        refused="work",
    ),
    case(
        "an agent that needs arguments can't be served",
        """
        class Desk(Agent):
            def __init__(self, url: str) -> None:
                self.url = url

            @topic("desk.one")
            async def one(self) -> str:
                return self.url
        """,
        refused="url",
    ),
    case(
        "an agent whose arguments have defaults",
        """
        class Desk(Agent):
            def __init__(self, url: str = "here", *rest: int, **more: int) -> None:
                super().__init__()
                self.url = url

            @topic("desk.one")
            async def one(self) -> str:
                return self.url
        """,
        ask({}, "here"),
    ),
    case(
        "state that on_start makes",
        """
        import threading

        class Desk(Agent):
            async def on_start(self) -> None:
                self.lock, self.seen = threading.Lock(), 0

            @topic("desk.one")
            def one(self) -> int:
                with self.lock:
                    self.seen += 1
                    return self.seen
        """,
        ask({}, 1),
        ask({}, 2),
    ),
    case(
        "a plain on_start",
        """
        class Desk(Agent):
            def on_start(self) -> None:
                self.ready = True

            def on_stop(self) -> None:
                self.ready = False

            @topic("desk.one")
            async def one(self) -> bool:
                return self.ready
        """,
        refused="on_start",
    ),
    case(
        "a generic agent",
        """
        from typing import Generic, TypeVar

        T = TypeVar("T")

        class Base(Agent, Generic[T]):
            kind: type

            @topic("desk.one")
            async def one(self, n: int) -> str:
                return self.kind.__name__

        class Desk(Base[int]):
            kind = int
        """,
        ask(1, "int"),
    ),
    case(
        "a generic handler whose type nobody set",
        """
        from typing import Generic, TypeVar

        T = TypeVar("T")

        class Base(Agent, Generic[T]):
            @topic("desk.one")
            async def one(self, thing: T) -> T:
                return thing

        class Desk(Base[int]):
            pass
        """,
        ask({"thing": [1]}, [1]),
    ),
    case(
        "an agent that is a dataclass",
        """
        from dataclasses import dataclass, field

        @dataclass
        class Desk(Agent):
            seen: list[int] = field(default_factory=list)

            @topic("desk.one")
            async def one(self, n: int) -> list[int]:
                self.seen.append(n)
                return self.seen
        """,
        ask(1, [1]),
        ask(2, [1, 2]),
    ),
    case(
        "an agent with slots, a metaclass and hooks",
        """
        class Meta(type):
            made: list[str] = []

            def __new__(mcs, name, bases, names, **options):
                made = super().__new__(mcs, name, bases, names)
                made.tag = options.get("tag", "none")
                return made

            def __init__(cls, name, bases, names, **options):
                super().__init__(name, bases, names)

        class Desk(Agent, metaclass=Meta, tag="x"):
            __slots__ = ("n",)

            def __init__(self) -> None:
                self.n = 1

            @topic("desk.one")
            async def one(self) -> str:
                return f"{self.tag} {self.n}"
        """,
        ask({}, "x 1"),
    ),
    case(
        "a subclass hook that registers",
        """
        class Base(Agent):
            known: list[str] = []

            def __init_subclass__(cls, **options) -> None:
                super().__init_subclass__(**options)
                cls.known.append(cls.__name__)

        class Desk(Base):
            @topic("desk.one")
            async def one(self) -> list[str]:
                return sorted(set(self.known))
        """,
        ask({}, ["Desk"]),
    ),
    case(
        "an agent with an attribute hook",
        """
        class Desk(Agent):
            def __getattr__(self, name: str) -> str:
                if name.startswith("__"):
                    raise AttributeError(name)
                return f"made {name}"

            @topic("desk.one")
            async def one(self) -> str:
                return self.anything
        """,
        ask({}, "made anything"),
    ),
    case(
        "descriptors, properties and cached properties",
        """
        from functools import cached_property

        class Unit:
            def __set_name__(self, owner, name):
                self.name = name

            def __get__(self, instance, owner=None):
                return self if instance is None else f"unit {self.name}"

        class Desk(Agent):
            unit = Unit()

            @property
            def plain(self) -> str:
                return "plain"

            @cached_property
            def kept(self) -> str:
                return "kept"

            @topic("desk.one")
            async def one(self) -> list[str]:
                return [self.unit, self.plain, self.kept, self.kept]
        """,
        ask({}, ["unit unit", "plain", "kept", "kept"]),
    ),
    case(
        "a property that raises is not looked at",
        """
        class Desk(Agent):
            @property
            def client(self) -> str:
                raise RuntimeError("not started")

            @topic("desk.one")
            async def one(self) -> int:
                return 1
        """,
        ask({}, 1),
    ),
    case(
        "a class that a function makes",
        """
        def make(factor: int) -> type[Agent]:
            class Desk(Agent):
                @topic("desk.one")
                async def one(self, n: int) -> int:
                    return factor * n

            return Desk
        """,
        ask(2, 14),
        agent="make(7)",
        by_value=True,
        ways=WAYS,
    ),
    case(
        "a class that a function makes, with types of its own",
        """
        from dataclasses import dataclass
        from enum import Enum

        def make() -> type[Agent]:
            class Mood(Enum):
                GOOD = "good"

            @dataclass
            class Note:
                text: str
                mood: Mood = Mood.GOOD

            class Desk(Agent):
                @topic("desk.one")
                async def one(self, note: Note) -> Note:
                    assert isinstance(note, Note)
                    assert note.mood is Mood.GOOD
                    return note

            return Desk
        """,
        ask({"note": {"text": "x"}}, {"text": "x", "mood": "good"}),
        agent="make()",
        by_value=True,
        ways=WAYS,
    ),
    case(
        "a class that type makes",
        """
        async def one(self, n: int) -> int:
            return n

        Desk = type("Desk", (Agent,), {"one": topic("desk.one")(one)})
        """,
        ask(1, 1),
    ),
    case(
        "a class within a class",
        """
        class Office:
            class Desk(Agent):
                @topic("desk.one")
                async def one(self, n: int) -> int:
                    return n
        """,
        ask(1, 1),
        agent="Office.Desk",
    ),
    case(
        "a class decorator that hands back the class",
        """
        def tagged(cls):
            cls.tag = "x"
            return cls

        @tagged
        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> str:
                return self.tag
        """,
        ask({}, "x"),
    ),
    case(
        "a class decorator that hands back another class of the same name",
        """
        def tagged(cls):
            return type(cls.__name__, (cls,), {"tag": "x", "__module__": cls.__module__})

        @tagged
        class Desk(Agent):
            tag = ""

            @topic("desk.one")
            async def one(self) -> str:
                return self.tag
        """,
        ask({}, "x"),
    ),
    case(
        "two agents in one file",
        """
        class Base(Agent):
            factor = 1

        class First(Base):
            @topic("first.one")
            async def one(self, n: int) -> int:
                return n * self.factor

        class Desk(Base):
            factor = 2

            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n * self.factor * First.factor
        """,
        ask(2, 4),
    ),
    case(
        "an agent that serves nothing",
        """
        class Desk(Agent):
            async def one(self, n: int) -> int:
                return n
        """,
        refused="desk serves nothing",
    ),
    case(
        "no agent at all",
        """
        class Desk:
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n
        """,
        refused="is not an agent",
    ),
    case(
        "an instance instead of a class",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n
        """,
        refused="is not an agent",
        agent="Desk()",
    ),
    case(
        "the same topic twice",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return 1

            @topic("desk.one")
            async def two(self) -> int:
                return 2
        """,
        refused="would both get the same task",
    ),
]

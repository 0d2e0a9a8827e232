"""Types of parameters and results: what travels with the agent, and becomes a schema at the other end."""

from functools import partial

from tests.corpus.case import ask, brief

#: A notebook stands for scripts, too: in both a type is one of `__main__`.
case = partial(brief, ways=("notebook", "module", "installed"))

CASES = [
    case(
        "a dataclass as parameter and result",
        """
        from dataclasses import dataclass, field

        @dataclass
        class Order:
            id: int
            notes: list[str] = field(default_factory=list)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> Order:
                assert isinstance(order, Order)
                return Order(order.id + 1, [*order.notes, "seen"])
        """,
        ask({"order": {"id": 1}}, {"id": 2, "notes": ["seen"]}),
        ask(lambda order: {"order": order}, {"id": 3, "notes": ["seen", "seen"]}),
        ask({"order": {}}, ends="rejected", says="id"),
        ask('{"order": {"id": "x"}}', ends="rejected", says="id", raw=True),
    ),
    case(
        "a frozen dataclass with slots, order and keyword-only fields",
        """
        from dataclasses import KW_ONLY, dataclass, field

        @dataclass(frozen=True, slots=True, order=True)
        class Point:
            x: int
            _: KW_ONLY
            y: int = 0
            hidden: int = field(default=7, repr=False, compare=False)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, points: list[Point]) -> Point:
                return max(points)
        """,
        ask({"points": [{"x": 1}, {"x": 1, "y": 2}]}, {"x": 1, "y": 2, "hidden": 7}),
    ),
    case(
        "a dataclass that only the code of a handler uses",
        """
        from dataclasses import asdict, dataclass, field, fields, replace

        @dataclass
        class Point:
            x: int
            y: list[int] = field(default_factory=list)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> dict:
                point = replace(Point(n), x=n + 1)
                return {**asdict(point), "fields": [each.name for each in fields(point)]}
        """,
        ask(1, {"x": 2, "y": [], "fields": ["x", "y"]}),
    ),
    case(
        "dataclasses within dataclasses, inherited, of each other",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field
        from squadron import Agent, topic

        @dataclass
        class Base:
            id: int

        @dataclass
        class Node(Base):
            children: list[Node] = field(default_factory=list)
            parent: Base | None = None

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, node: Node) -> int:
                return node.id + sum(child.id for child in node.children)
        """,
        ask({"node": {"id": 1, "children": [{"id": 2}, {"id": 3, "children": []}]}}, 6),
        ask({"node": {"id": 1, "children": [{}]}}, ends="rejected", says="id"),
    ),
    case(
        "a dataclass with InitVar, ClassVar and __post_init__",
        """
        from dataclasses import InitVar, dataclass, field
        from typing import ClassVar

        @dataclass
        class Price:
            unit: ClassVar[str] = "EUR"
            cents: int
            factor: InitVar[int] = 1
            total: int = field(init=False, default=0)

            def __post_init__(self, factor: int) -> None:
                self.total = self.cents * factor

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, price: Price) -> str:
                return f"{price.total} {price.unit}"
        """,
        ask({"price": {"cents": 3, "factor": 2}}, "6 EUR"),
    ),
    case(
        "a dataclass as default and in a default",
        """
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Options:
            deep: bool = False

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, options: Options = Options(), more: tuple[Options, ...] = (Options(True),)) -> int:
                return int(options.deep) + len(more)
        """,
        ask({}, 1),
        ask({"options": {"deep": True}, "more": []}, 1),
    ),
    case(
        "a pydantic dataclass",
        """
        from pydantic import Field
        from pydantic.dataclasses import dataclass

        @dataclass
        class Order:
            id: int = Field(ge=1)
            tags: list[str] = Field(default_factory=list)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> Order:
                return order
        """,
        ask({"order": {"id": 1}}, {"id": 1, "tags": []}),
        ask({"order": {"id": 0}}, ends="rejected", says="id"),
    ),
    case(
        "enums of all kinds keep their identity",
        """
        from enum import Enum, Flag, IntEnum, StrEnum, auto

        class Mood(Enum):
            GOOD = "good"
            FINE = "good"
            BAD = "bad"

            @property
            def loud(self) -> str:
                return self.value.upper()

        class Level(IntEnum):
            LOW = auto()
            HIGH = auto()

        class Kind(StrEnum):
            TEA = auto()

        class Right(Flag):
            READ = auto()
            WRITE = auto()

        class Old(str, Enum):
            YES = "yes"

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self, mood: Mood, level: Level = Level.LOW, kind: Kind = Kind.TEA, old: Old = Old.YES
            ) -> list[str]:
                assert mood is Mood.GOOD and Mood.FINE is Mood.GOOD
                assert level is Level.HIGH and kind is Kind.TEA and old is Old.YES
                assert Right.READ | Right.WRITE == Right(3)
                return [mood.loud, level.name, kind, old.value]

            @topic("desk.two")
            async def two(self) -> tuple[Mood, Level, Kind, Old]:
                return Mood.BAD, Level.HIGH, Kind.TEA, Old.YES
        """,
        ask({"mood": "good", "level": 2}, ["GOOD", "HIGH", "tea", "yes"], topic="desk.one"),
        ask({"mood": "GOOD"}, ends="rejected", says="mood", topic="desk.one"),
        ask({}, ["bad", 2, "tea", "yes"], topic="desk.two"),
    ),
    case(
        "enums whose members are dataclasses, tuples and None",
        """
        from dataclasses import dataclass
        from enum import Enum

        @dataclass(frozen=True)
        class Size:
            x: int

        class Shape(Enum):
            SMALL = Size(1)
            LARGE = Size(2)

        class Pair(Enum):
            A = (1, 2)
            NONE = None

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, name: str) -> list[int]:
                return [Shape[name].value.x, *Pair.A.value]
        """,
        ask("LARGE", [2, 1, 2]),
    ),
    case(
        "new types",
        """
        from typing import NewType

        UserId = NewType("UserId", int)
        AdminId = NewType("AdminId", UserId)

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, user: UserId, admins: list[AdminId]) -> UserId:
                return UserId(user + len(admins))
        """,
        ask({"user": 1, "admins": [1, 2]}, 3),
        ask({"user": "x", "admins": []}, ends="rejected", says="user"),
    ),
    case(
        "type aliases",
        """
        from typing import Annotated, TypeAlias, Union
        from pydantic import Field

        Number: TypeAlias = int | float
        Names = list[str]
        Score = Annotated[float, Field(ge=0, le=1)]
        Json = Union[int, str, dict[str, "Json"], list["Json"]]

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: Number, names: Names, score: Score = 0.5) -> dict[str, Number]:
                return {name: n for name in names}
        """,
        ask({"n": 1.5, "names": ["a"]}, {"a": 1.5}),
        ask({"n": 1, "names": ["a"]}, {"a": 1}),
        ask({"n": 1, "names": [], "score": 2}, ends="rejected", says="score"),
    ),
    case(
        "a typed dict, needed and not needed keys",
        """
        from typing_extensions import NotRequired, TypedDict

        class Order(TypedDict):
            id: int
            note: NotRequired[str]

        class Partial(TypedDict, total=False):
            a: int

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order, more: Partial) -> Order:
                return {**order, "id": order["id"] + len(more)}
        """,
        ask({"order": {"id": 1}, "more": {}}, {"id": 1}),
        ask({"order": {"id": 1, "note": "x"}, "more": {"a": 1}}, {"id": 2, "note": "x"}),
        ask({"order": {"note": "x"}, "more": {}}, ends="rejected", says="id"),
    ),
    case(
        "a named tuple",
        """
        from collections import namedtuple
        from typing import NamedTuple

        class Point(NamedTuple):
            x: int
            y: int = 0

            def flipped(self) -> "Point":
                return Point(self.y, self.x)

        Pair = namedtuple("Pair", "a b")

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, point: Point) -> Point:
                assert Pair(1, b=2)._asdict() == {"a": 1, "b": 2}
                return point.flipped()
        """,
        ask({"point": [1, 2]}, [2, 1]),
        ask(lambda point: {"point": point}, [1, 2]),
        ask({"point": ["x"]}, ends="rejected"),
    ),
    case(
        "generic models and dataclasses",
        """
        from dataclasses import dataclass
        from typing import Generic, TypeVar
        from pydantic import BaseModel

        T = TypeVar("T")
        S = TypeVar("S", bound=str)

        class Page(BaseModel, Generic[T]):
            items: list[T]
            next: int | None = None

        @dataclass
        class Box(Generic[T]):
            thing: T

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, page: Page[int], box: Box[str]) -> Page[str]:
                return Page[str](items=[box.thing * n for n in page.items])
        """,
        ask({"page": {"items": [1, 2]}, "box": {"thing": "x"}}, {"items": ["x", "xx"], "next": None}),
        ask({"page": {"items": ["x"]}, "box": {"thing": "x"}}, ends="rejected"),
    ),
    case(
        "a union, an optional, a literal",
        """
        from typing import Literal, Optional, Union

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self,
                what: Union[int, str, None],
                much: Optional[list[Optional[int]]] = None,
                how: Literal["fast", 1, True, None] = "fast",
            ) -> list[str]:
                return [type(what).__name__, repr(much), repr(how)]
        """,
        ask({"what": 1}, ["int", "None", "'fast'"]),
        ask({"what": "1", "much": [1, None]}, ["str", "[1, None]", "'fast'"]),
        ask({"what": None, "how": None}, ["NoneType", "None", "None"]),
        ask({"what": 1.5}, ends="rejected", says="what"),
        ask({"what": 1, "how": "slow"}, ends="rejected", says="how"),
    ),
    case(
        "a union of models told apart by a field",
        """
        from typing import Annotated, Literal
        from pydantic import BaseModel, Field

        class Cat(BaseModel):
            kind: Literal["cat"] = "cat"
            lives: int = 9

        class Dog(BaseModel):
            kind: Literal["dog"] = "dog"
            good: bool = True

        Pet = Annotated[Cat | Dog, Field(discriminator="kind")]

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, pet: Pet) -> list[Cat | Dog]:
                return [pet, Dog()]
        """,
        ask({"pet": {"kind": "cat"}}, [{"kind": "cat", "lives": 9}, {"kind": "dog", "good": True}]),
        ask({"pet": {"kind": "cow"}}, ends="rejected"),
    ),
    case(
        "a union of dataclasses of the same shape",
        """
        from dataclasses import dataclass

        @dataclass
        class Ok:
            value: int

        @dataclass
        class Bad:
            error: str

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> Ok | Bad:
                return Ok(n) if n > 0 else Bad("too small")
        """,
        ask(1, {"value": 1}),
        ask(0, {"error": "too small"}),
    ),
    case(
        "a model and its aliases",
        """
        from pydantic import BaseModel, ConfigDict, Field
        from pydantic.alias_generators import to_camel

        class Item(BaseModel):
            unit_price: int = Field(alias="unitPrice")

        class Order(BaseModel):
            model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
            order_id: int
            all_items: list[Item] = []

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> Order:
                return order.model_copy(update={"order_id": order.order_id + 1})
        """,
        ask(
            {"order": {"orderId": 1, "allItems": [{"unitPrice": 2}]}},
            {"orderId": 2, "allItems": [{"unitPrice": 2}]},
        ),
        ask(lambda order: {"order": order}, {"orderId": 3, "allItems": [{"unitPrice": 2}]}),
    ),
    case(
        "a model that is to be written by its field names",
        """
        from pydantic import BaseModel, ConfigDict, Field

        class Order(BaseModel):
            model_config = ConfigDict(serialize_by_alias=False, validate_by_name=True, validate_by_alias=True)
            id: int = Field(alias="_id")

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> Order:
                return Order(_id=n)
        """,
        ask(1),
    ),
    case(
        "a dataclass and a typed dict with aliases",
        """
        from dataclasses import dataclass
        from typing import Annotated
        from pydantic import ConfigDict, Field, with_config
        from pydantic.alias_generators import to_camel
        from typing_extensions import TypedDict

        @with_config(ConfigDict(alias_generator=to_camel))
        class Order(TypedDict):
            order_id: int

        @dataclass
        class Note:
            text_of: Annotated[str, Field(alias="textOf")]

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order, note: Note) -> tuple[Order, Note]:
                return order, note
        """,
        ask({"order": {"orderId": 1}, "note": {"textOf": "x"}}, [{"orderId": 1}, {"textOf": "x"}]),
    ),
    case(
        "data of the promised shape instead of the promised type",
        """
        from dataclasses import dataclass
        from pydantic import BaseModel

        @dataclass
        class Note:
            id: int
            text: str = ""

        class Order(BaseModel):
            id: int
            note: Note | None = None

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> Note:
                return {"id": 1}

            @topic("desk.two")
            async def two(self) -> Order:
                return {"id": 1, "note": {"id": 2}}

            @topic("desk.three")
            async def three(self) -> list[Order]:
                return [{"note": None}]
        """,
        ask({}, {"id": 1, "text": ""}, topic="desk.one"),
        ask({}, {"id": 1, "note": {"id": 2, "text": ""}}, topic="desk.two"),
        ask({}, ends="failed", says="desk.three", topic="desk.three"),
    ),
    case(
        "a single parameter that is an object",
        """
        from pydantic import BaseModel

        class Order(BaseModel):
            id: int

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> int:
                return order.id

            @topic("desk.two")
            async def two(self, tags: list[str]) -> int:
                return len(tags)
        """,
        ask({"order": {"id": 1}}, 1, topic="desk.one"),
        ask({"id": 1}, ends="rejected", says="order", topic="desk.one"),
        ask(["a", "b"], 2, topic="desk.two"),
        ask({"tags": []}, 0, topic="desk.two"),
    ),
    case(
        "aliases that differ for reading and writing",
        """
        from pydantic import AliasChoices, AliasPath, BaseModel, Field

        class Order(BaseModel):
            id: int = Field(validation_alias="idIn", serialization_alias="idOut")
            first: int = Field(0, validation_alias=AliasChoices("first", AliasPath("all", 0)))

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> Order:
                return order
        """,
        ask({"order": {"idIn": 1, "first": 2}}, {"idOut": 1, "first": 2}),
    ),
    case(
        "a computed field, a serializer, an excluded field",
        """
        from pydantic import BaseModel, Field, computed_field, field_serializer

        class Order(BaseModel):
            cents: int
            secret: str = Field("s", exclude=True)

            @computed_field
            @property
            def euros(self) -> float:
                return self.cents / 100

            @field_serializer("cents")
            def _as_text(self, cents: int) -> str:
                return f"{cents} ct"

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, cents: int) -> Order:
                return Order(cents=cents)
        """,
        ask(150, {"cents": "150 ct", "euros": 1.5}),
    ),
    case(
        "models with validators, private fields, extra fields and a root",
        """
        from pydantic import BaseModel, ConfigDict, PrivateAttr, RootModel, field_validator, model_validator

        class Tags(RootModel[list[str]]):
            pass

        class Order(BaseModel):
            model_config = ConfigDict(extra="allow", frozen=True)
            tags: Tags
            _seen: int = PrivateAttr(default=0)

            @field_validator("tags")
            @classmethod
            def _not_empty(cls, tags: Tags) -> Tags:
                if not tags.root:
                    raise ValueError("at least one")
                return tags

            @model_validator(mode="after")
            def _whole(self) -> "Order":
                return self

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> Order:
                return order
        """,
        ask({"order": {"tags": ["a"], "more": 1}}, {"tags": ["a"], "more": 1}),
        ask({"order": {"tags": []}}, ends="rejected", says="at least one"),
    ),
    case(
        "a secret is not shown",
        """
        from pydantic import BaseModel, SecretStr

        class Login(BaseModel):
            user: str
            password: SecretStr

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, login: Login) -> Login:
                assert login.password.get_secret_value() == "hush"
                return login
        """,
        ask({"login": {"user": "eve", "password": "hush"}}, {"user": "eve", "password": "**********"}),
    ),
    case(
        "a strict model",
        """
        from datetime import date
        from pydantic import BaseModel, ConfigDict

        class Order(BaseModel):
            model_config = ConfigDict(strict=True)
            id: int
            tags: tuple[str, ...] = ()
            on: date | None = None

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> Order:
                return order
        """,
        ask({"order": {"id": 1}}, {"id": 1, "tags": [], "on": None}),
        ask({"order": {"id": 1, "tags": ["a"], "on": "2026-01-02"}}, {"id": 1, "tags": ["a"], "on": "2026-01-02"}),
    ),
    case(
        "a subclass of the promised model is what was promised",
        """
        from pydantic import BaseModel

        class Base(BaseModel):
            id: int

        class More(Base):
            secret: str = "hush"

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> Base:
                return More(id=n)

            @topic("desk.two")
            async def two(self, n: int) -> list[Base]:
                return [More(id=n)]
        """,
        ask(1, {"id": 1}, topic="desk.one"),
        ask(1, [{"id": 1}], topic="desk.two"),
    ),
    case(
        "models defined after their use",
        """
        from __future__ import annotations
        from pydantic import BaseModel
        from squadron import Agent, topic

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> list[Order]:
                return [order, *order.parts]

        class Order(BaseModel):
            id: int
            parts: list[Order] = []
        """,
        ask(
            {"order": {"id": 1, "parts": [{"id": 2}]}},
            [
                {"id": 1, "parts": [{"id": 2, "parts": []}]},
                {"id": 2, "parts": []},
            ],
        ),
    ),
    case(
        "annotations as text",
        """
        from pydantic import BaseModel

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: "Order", n: "int" = 1) -> "list[Order]":
                return [order] * n

        class Order(BaseModel):
            id: int
        """,
        ask({"order": {"id": 1}}, [{"id": 1}]),
    ),
    case(
        "types with text annotations, within each other",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field
        from enum import Enum
        from typing import NamedTuple
        from pydantic import BaseModel
        from typing_extensions import TypedDict
        from squadron import Agent, topic

        class Mood(Enum):
            GOOD = "good"

        @dataclass
        class Leaf:
            mood: Mood
            many: list[Mood] = field(default_factory=list)

        class Pair(NamedTuple):
            leaf: Leaf
            n: int

        class Row(TypedDict):
            pair: Pair
            mood: Mood | None

        class Page(BaseModel):
            rows: list[Row]
            by_mood: dict[Mood, Leaf] = {}

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, page: Page) -> Page:
                assert page.rows[0]["pair"].leaf.mood is Mood.GOOD
                return page
        """,
        ask(
            {"page": {"rows": [{"pair": [{"mood": "good"}, 1], "mood": None}]}},
            {"rows": [{"pair": [{"mood": "good", "many": []}, 1], "mood": None}], "by_mood": {}},
        ),
        ask({"page": {"rows": [{"pair": [{"mood": "bad"}, 1], "mood": None}]}}, ends="rejected"),
    ),
    case(
        "parameters of generics in the module",
        """
        from collections.abc import Callable, Coroutine
        from typing import Any, Generic, ParamSpec, TypeVar

        T = TypeVar("T")
        P = ParamSpec("P")

        class Result(Generic[T]):
            def __init__(self, value: T) -> None:
                self.value = value

        def wrapped(function: Callable[P, T]) -> Callable[P, Result[T]]:
            def inner(*args: P.args, **kwargs: P.kwargs) -> Result[T]:
                return Result[T](function(*args, **kwargs))
            return inner

        @wrapped
        def add(a: int, b: int) -> int:
            return a + b

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return add(n, b=1).value
        """,
        ask(1, 2),
    ),
    case(
        "sets of tuples, deques that are bounded, enums in a model",
        """
        from collections import deque
        from enum import Enum
        from pydantic import BaseModel

        class Phase(Enum):
            READY = "query_ready"

        class Artifact(BaseModel):
            phase: Phase
            history: list[Phase] = []

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, pairs: set[tuple[int, int]], artifact: Artifact) -> Artifact:
                assert pairs == {(1, 2), (3, 4)}
                assert artifact.phase is Phase.READY
                return artifact

            @topic("desk.two")
            async def two(self) -> set[tuple[int, int]]:
                return {(1, 2)}
        """,
        ask(
            {"pairs": [[1, 2], [3, 4]], "artifact": {"phase": "query_ready", "history": ["query_ready"]}},
            {"phase": "query_ready", "history": ["query_ready"]},
            topic="desk.one",
        ),
        ask({}, [[1, 2]], topic="desk.two"),
    ),
    case(
        "a type only for type checkers is refused by name",
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from squadron import Agent, topic
        if TYPE_CHECKING:
            from decimal import Decimal

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, price: Decimal) -> str:
                return str(price)
        """,
        refused="Desk.one: name 'Decimal' is not defined",
    ),
    case(
        "a name only for type checkers in the code of a handler",
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from squadron import Agent, topic
        if TYPE_CHECKING:
            from decimal import Decimal

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, price: float) -> str:
                exact: Decimal = self.exact(price)
                return str(exact)

            def exact(self, price: float) -> Decimal:
                return price
        """,
        ask(1.5, "1.5"),
    ),
    case(
        "a local type with text annotations is refused by name",
        """
        from __future__ import annotations
        from pydantic import BaseModel
        from squadron import Agent, topic

        def make() -> type[Agent]:
            class Note(BaseModel):
                text: str

            class Desk(Agent):
                @topic("desk.one")
                async def one(self, note: Note) -> Note:
                    return note

            return Desk
        """,
        refused="name 'Note' is not defined",
        agent="make()",
    ),
    case(
        "an arbitrary class as parameter is refused by name",
        """
        class Client:
            pass

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, client: Client) -> int:
                return 1
        """,
        refused="Client",
    ),
    case(
        "a protocol, a callable or a type as parameter is refused by name",
        """
        from collections.abc import Callable
        from typing import Protocol

        class Speaks(Protocol):
            def say(self) -> str: ...

        def make(kind: object) -> type[Agent]:
            class Desk(Agent):
                @topic("desk.one")
                async def one(self, what: kind) -> int:
                    return 1

            return Desk
        """,
        refused="Desk.one",
        agent="make(Speaks)",
    ),
    case(
        "a callable as parameter is refused by name",
        """
        from collections.abc import Callable

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, what: Callable[[int], int]) -> int:
                return 1
        """,
        refused="Desk.one",
    ),
    case(
        "a result of a type that has no schema is refused by name",
        """
        import threading

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> threading.Thread:
                return threading.current_thread()
        """,
        refused="Desk.one",
    ),
    case(
        "a typed dict of the standard library",
        """
        from typing import TypedDict

        class Order(TypedDict):
            id: int

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, order: Order) -> int:
                return order["id"]
        """,
        refused="typing_extensions.TypedDict",
    ),
    case(
        "a type of its own that says how pydantic reads it",
        """
        from pydantic import GetCoreSchemaHandler
        from pydantic_core import core_schema

        class Colour:
            def __init__(self, name: str) -> None:
                self.name = name

            @classmethod
            def __get_pydantic_core_schema__(cls, source, handler: GetCoreSchemaHandler):
                made = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
                return core_schema.json_or_python_schema(
                    json_schema=made,
                    python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), made]),
                    serialization=core_schema.plain_serializer_function_ser_schema(
                        lambda colour: colour.name, return_schema=core_schema.str_schema()
                    ),
                )

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, colour: Colour) -> Colour:
                return Colour(colour.name.upper())
        """,
        ask("red", "RED"),
    ),
    case(
        "abstract containers",
        """
        from collections import Counter, OrderedDict, defaultdict, deque
        from collections.abc import Iterable, Mapping, Sequence

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, a: Sequence[int], b: Mapping[str, int], c: Iterable[int]) -> dict[str, int]:
                return {**b, "a": sum(a), "c": sum(c)}

            @topic("desk.two")
            async def two(self, words: list[str]) -> Counter[str]:
                return Counter(words)

            @topic("desk.three")
            async def three(self) -> dict[str, list[int]]:
                groups = defaultdict(list)
                groups["a"].append(1)
                return groups

            @topic("desk.four")
            async def four(self) -> deque[int]:
                return deque([1, 2], maxlen=2)

            @topic("desk.five")
            async def five(self) -> OrderedDict[str, int]:
                return OrderedDict(b=1, a=2)
        """,
        ask({"a": [1], "b": {"x": 1}, "c": [1, 2]}, {"x": 1, "a": 1, "c": 3}, topic="desk.one"),
        ask({"words": ["a", "b", "a"]}, {"a": 2, "b": 1}, topic="desk.two"),
        ask({}, {"a": [1]}, topic="desk.three"),
        ask({}, [1, 2], topic="desk.four"),
        ask({}, {"b": 1, "a": 2}, topic="desk.five"),
    ),
    case(
        "a generator expression as result",
        """
        from collections.abc import Iterable, Iterator

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> list[int]:
                return [i for i in range(n)]

            @topic("desk.two")
            async def two(self, n: int) -> Iterable[int]:
                return (i for i in range(n))

            @topic("desk.three")
            async def three(self, n: int) -> dict[str, int]:
                return {"n": n}.items() and {"n": n}
        """,
        ask(2, [0, 1], topic="desk.one"),
        ask(2, [0, 1], topic="desk.two"),
        ask(2, {"n": 2}, topic="desk.three"),
    ),
]

"""Values: big and odd numbers, text of all kinds, times, bytes, sets, much and nothing."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from tests.corpus.case import ask
from tests.corpus.case import brief as case

#: Hands back what it got, whatever that is.
ECHO = """
from typing import Any

class Desk(Agent):
    @topic("desk.one")
    async def one(self, it: Any) -> Any:
        return it
"""


def nested(depth: int) -> list:
    """Lists in lists."""
    made: list = []
    for _ in range(depth):
        made = [made]
    return made


CASES = [
    case(
        "values that JSON has",
        ECHO,
        *(
            ask({"it": value}, value)
            for value in (
                *(None, True, False, 0, 1, -1, 0.0, -0.0, 1.5, 1e-300, 1e300, 5e-324, 0.1),
                *("", " ", [], {}, [[]], {"": ""}, [None], {"a": {"b": [1, {"c": None}]}}),
            )
        ),
    ),
    case(
        "big whole numbers",
        ECHO,
        *(
            ask({"it": n}, n)
            for n in (2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, -(10**400))
        ),
    ),
    case(
        "big whole numbers as numbers",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> int:
                return n + 1
        """,
        ask({"n": 2**63}, 2**63 + 1),
        ask({"n": 10**400}, 10**400 + 1),
        ask({"n": 1.0}, 2),
        ask({"n": True}, ends="rejected"),
        ask({"n": 1.5}, ends="rejected"),
        ask('{"n": 1e3}', 1001, raw=True),
    ),
    case(
        "text is no number, and a number no text",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: float, s: str, b: bool) -> str:
                return f"{n!r} {s!r} {b!r}"
        """,
        ask({"n": 1, "s": "x", "b": True}, "1.0 'x' True"),
        ask({"n": "1", "s": "x", "b": True}, ends="rejected", says="n"),
        ask({"n": 1, "s": 1, "b": True}, ends="rejected", says="s"),
        ask({"n": 1, "s": "x", "b": 1}, ends="rejected", says="b"),
        ask({"n": 1, "s": "x", "b": "yes"}, ends="rejected", says="b"),
        ask({"n": True, "s": "x", "b": True}, ends="rejected", says="n"),
    ),
    case(
        "what JSON has no number for is refused as input",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: float) -> bool:
                return True
        """,
        ask({"n": float("nan")}, ends="rejected"),
        ask({"n": float("inf")}, ends="rejected"),
        ask('{"n": null}', ends="rejected", raw=True),
    ),
    case(
        "what JSON has no number for is not a number that may be missing",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: float | None = None) -> bool:
                return n is None
        """,
        ask({"n": None}, True),
        ask({"n": float("nan")}, ends="rejected"),
    ),
    case(
        "what JSON has no number for is no result",
        """
        from pydantic import BaseModel

        class Score(BaseModel):
            value: float

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, text: str) -> float:
                return float(text)

            @topic("desk.two")
            async def two(self, text: str) -> list[Score]:
                return [Score(value=float(text))]
        """,
        ask("1.5", 1.5, topic="desk.one"),
        ask("-0.0", -0.0, topic="desk.one"),
        ask("nan", ends="failed", says="desk.one", topic="desk.one"),
        ask("-inf", ends="failed", says="desk.one", topic="desk.one"),
        ask("inf", ends="failed", says="desk.two", topic="desk.two"),
    ),
    case(
        "chunks that JSON has no number for",
        """
        from collections.abc import AsyncIterator

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> AsyncIterator[float]:
                yield 1.0
                yield float("nan")
        """,
        ask({}, ends="failed", says="desk.one", chunks=[1.0]),
    ),
    case(
        "text of all kinds",
        ECHO,
        *(
            ask({"it": text}, text)
            for text in (
                "äöüß",
                "日本語",
                "עברית",
                "👩‍👩‍👧‍👦🙂",
                "e\u0301",
                "\u202eabc",
                "a\x00b",
                "\x01\x1f\x7f\x80",
                "\n\r\t\u2028\u2029",
                "\ufeff",
                "\uffff",
                '"\\/{}[]',
                "</script>",
                "${x} {y} %s",
            )
        ),
    ),
    case(
        "half of a surrogate pair",
        """
        from dataclasses import dataclass
        from typing import Annotated, Any
        from pydantic import Field

        @dataclass
        class Said:
            text: str

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> str:
                return "a\\ud83d"

            @topic("desk.two")
            async def two(self) -> Any:
                return {"\\ud83d": ["\\ude42"]}

            @topic("desk.three", max_attempts=1)
            async def three(self, context: Context) -> int:
                await context.emit("a\\ud83d")
                return 1

            @topic("desk.four")
            async def four(self):
                yield "\\ud83d"
                yield "\\ude42"

            @topic("desk.five", max_attempts=1)
            async def five(self) -> int:
                raise ValueError("a\\ud83d")

            @topic("desk.six", description="What \\ud83d says", examples=["\\ud83d"], tags=["\\ud83d"])
            async def six(self, it: Annotated[str, Field(description="\\ud83d")] = "\\ud83d") -> int:
                raise Terminal("no: \\ud83d")

            @topic("desk.seven")
            async def seven(self) -> Answer:
                return Answer("\\ud83d\\ude42", reasoning="\\ud83d")

            @topic("desk.eight")
            async def eight(self) -> list[Said]:
                return [Said("a\\ud83d")]

            @topic("desk.nine")
            async def nine(self, context: Context) -> list[Any]:
                await context.remember("\\ud83d")
                asked = await context.ask("desk.echo", {"it": "b\\ud83d\\ude42"})
                return [*await context.recall(), asked.unwrap()]

            @topic("desk.echo")
            async def echo(self, it: Any) -> Any:
                return it
        """,
        ask({}, "a\ufffd", topic="desk.one"),
        ask({}, {"\ufffd": ["\ufffd"]}, topic="desk.two"),
        ask({}, 1, topic="desk.three", chunks=["a\ufffd"]),
        ask({}, "\ufffd\ufffd", topic="desk.four", chunks=["\ufffd", "\ufffd"]),
        ask({}, ends="dead_lettered", says="ValueError: a\ufffd", topic="desk.five"),
        ask({}, ends="failed", says="no: \ufffd", topic="desk.six"),
        ask({}, "🙂", topic="desk.seven"),
        ask({"it": "a\ud83d"}, ends="failed", says="no: \ufffd", topic="desk.six"),
        ask({}, [{"text": "a\ufffd"}], topic="desk.eight"),
        ask({}, ["\ufffd", "b🙂"], topic="desk.nine"),
    ),
    case(
        "half of a surrogate pair as input",
        ECHO,
        ask({"it": "a\ud83d"}, "a\ufffd"),
        ask({"it": {"\ud83d": ["\ud83d\ude42"]}}, {"\ufffd": ["🙂"]}),
        ask('{"it": "a\\ud83d"}', ends="dead_lettered", raw=True),
        ask('{"it": "a\\ud83d\\ude42"}', "a🙂", raw=True),
    ),
    case(
        "keys of all kinds",
        ECHO,
        ask(
            {"it": {"a.b": 1, "$ref": "#/x", "__class__": 2, "ä": 3, " ": 4, "\n": 5, "type": "object"}},
            {
                "a.b": 1,
                "$ref": "#/x",
                "__class__": 2,
                "ä": 3,
                " ": 4,
                "\n": 5,
                "type": "object",
            },
        ),
        ask({"it": {1: "a", None: "b"}}, {"1": "a", "None": "b"}),
    ),
    case(
        "a dict with keys that are no text",
        """
        from datetime import date
        from enum import Enum

        class Mood(Enum):
            GOOD = "good"

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, by: dict[int, str]) -> dict[int, str]:
                return {key + 1: value for key, value in by.items()}

            @topic("desk.two")
            async def two(self) -> dict[date, int]:
                return {date(2026, 1, 2): 1}

            @topic("desk.three")
            async def three(self) -> dict[Mood, dict[bool, int]]:
                return {Mood.GOOD: {True: 1}}

            @topic("desk.four")
            async def four(self) -> dict[tuple[int, int], int]:
                return {(1, 2): 3}
        """,
        ask({"by": {"1": "a"}}, {"2": "a"}, topic="desk.one"),
        ask({"by": {"x": "a"}}, ends="rejected", topic="desk.one"),
        ask({}, {"2026-01-02": 1}, topic="desk.two"),
        ask({}, {"good": {"true": 1}}, topic="desk.three"),
        ask({}, {"1,2": 3}, topic="desk.four"),
    ),
    case(
        "a megabyte of text goes there and back",
        ECHO,
        ask({"it": "ä" * 500_000}, "ä" * 500_000),
        ask({"it": list(range(100_000))}, list(range(100_000))),
    ),
    case(
        "a chunk of a megabyte",
        """
        from collections.abc import AsyncIterator

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, n: int) -> AsyncIterator[str]:
                for _ in range(n):
                    yield "x" * 1_000_000
        """,
        ask(2, "x" * 2_000_000),
    ),
    case("lists in lists", ECHO, ask({"it": nested(100)}, nested(100))),
    case(
        "lists in lists, deeper than JSON is read",
        """
        from typing import Any

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, depth: int) -> Any:
                made: list = []
                for _ in range(depth):
                    made = [made]
                return made
        """,
        ask(300, ends="failed", says="desk.one"),
    ),
    case(
        "input of lists in lists, deeper than JSON is read",
        ECHO,
        ask({"it": nested(300)}, ends="rejected"),
    ),
    case(
        "a result that contains itself",
        """
        from typing import Any

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> Any:
                made: list = []
                made.append(made)
                return made
        """,
        ask({}, ends="failed", says="desk.one"),
    ),
    case(
        "times of all kinds",
        """
        from datetime import date, datetime, time, timedelta

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, at: datetime, on: date, by: time, lasts: timedelta) -> dict[str, datetime]:
                assert type(on) is date
                return {"end": at + lasts}
        """,
        ask(
            {"at": "2026-01-02T03:04:05Z", "on": "2026-01-02", "by": "12:30:00", "lasts": "PT90S"},
            {"end": "2026-01-02T03:05:35Z"},
        ),
        ask(
            {
                "at": datetime(2026, 1, 2, tzinfo=UTC),
                "on": date(2026, 1, 2),
                "by": "12:30",
                "lasts": timedelta(days=1, milliseconds=5),
            },
            {"end": "2026-01-03T00:00:00.005000Z"},
        ),
        ask(
            {"at": "2026-01-02T03:04:05", "on": "2026-01-02", "by": "12:30", "lasts": "P1D"},
            {
                "end": "2026-01-03T03:04:05",
            },
        ),
        ask({"at": "soon", "on": "2026-01-02", "by": "12:30", "lasts": "P1D"}, ends="rejected", says="at"),
    ),
    case(
        "decimals, ids, paths, addresses and patterns",
        """
        import re
        from decimal import Decimal
        from ipaddress import IPv4Address
        from pathlib import Path
        from uuid import UUID

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, price: Decimal, id: UUID, path: Path, host: IPv4Address) -> list[str]:
                return [type(each).__name__ for each in (price, id, host)]

            @topic("desk.two")
            async def two(self, price: Decimal, id: UUID) -> tuple[Decimal, UUID, Path, re.Pattern]:
                return price * 2, id, Path("/a b"), re.compile("a+")
        """,
        ask(
            {
                "price": Decimal("1.10"),
                "id": UUID(int=1),
                "path": "/tmp",
                "host": "127.0.0.1",
            },
            ["Decimal", "UUID", "IPv4Address"],
            topic="desk.one",
        ),
        ask({"price": 1.5, "id": "x", "path": "", "host": ""}, ends="rejected", says="id", topic="desk.one"),
        ask(
            {"price": "1.10", "id": "00000000-0000-0000-0000-000000000001"},
            ["2.20", "00000000-0000-0000-0000-000000000001", "/a b", "a+"],
            topic="desk.two",
        ),
        ask(lambda last: {"price": last[0], "id": last[1]}, topic="desk.two"),
    ),
    case(
        "a decimal that is no number",
        """
        from decimal import Decimal

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, price: Decimal) -> Decimal:
                return price

            @topic("desk.two")
            async def two(self) -> Decimal:
                return Decimal("NaN")
        """,
        ask({"price": "NaN"}, ends="rejected", topic="desk.one"),
        ask({}, ends="failed", topic="desk.two"),
    ),
    case(
        "sets and tuples",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, some: set[int], pair: tuple[int, str], more: frozenset[str] = frozenset()) -> set[int]:
                return some | {pair[0]}

            @topic("desk.two")
            async def two(self) -> tuple[int, ...]:
                return ()

            @topic("desk.three")
            async def three(self) -> tuple[int, str]:
                return (1, "a")
        """,
        ask({"some": {1}, "pair": (1, "a")}, [1], topic="desk.one"),
        ask({"some": [], "pair": [2, "a"]}, [2], topic="desk.one"),
        ask({"some": [1], "pair": [1]}, ends="rejected", says="pair", topic="desk.one"),
        ask({"some": [1, 1], "pair": [1, "a"]}, ends="rejected", topic="desk.one"),
        ask({}, [], topic="desk.two"),
        ask({}, [1, "a"], topic="desk.three"),
    ),
    case(
        "bytes that are text",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, raw: bytes) -> bytes:
                return raw + b"!"
        """,
        ask({"raw": "ä"}, "ä!"),
        ask({"raw": b"a"}, "a!"),
    ),
    case(
        "bytes that are no text",
        """
        from typing import Any

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> bytes:
                return b"\\xff\\x00"

            @topic("desk.two")
            async def two(self) -> Any:
                return {"raw": b"\\xff"}

            @topic("desk.three", max_attempts=1)
            async def three(self, context: Context) -> int:
                await context.emit(b"\\xff")
                return 1
        """,
        ask({}, ends="failed", says="desk.one", topic="desk.one"),
        ask({}, ends="failed", says="desk.two", topic="desk.two"),
        ask({}, ends="dead_lettered", topic="desk.three"),
    ),
    case(
        "bytes as base64",
        """
        from pydantic import Base64Bytes

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, raw: Base64Bytes) -> str:
                return raw.hex()
        """,
        ask({"raw": "/wA="}, "ff00"),
    ),
    case(
        "results that are not JSON",
        """
        from typing import Any

        class Thing:
            pass

        class Desk(Agent):
            @topic("desk.object")
            async def object(self) -> Any:
                return Thing()

            @topic("desk.function")
            async def function(self) -> Any:
                return len

            @topic("desk.complex")
            async def complex(self) -> Any:
                return 1j

            @topic("desk.within")
            async def within(self) -> dict[str, Any]:
                return {"a": [Thing()]}

            @topic("desk.error")
            async def error(self) -> Any:
                return ValueError("x")
        """,
        *(
            ask({}, ends="failed", says=f"desk.{name} returned what it does not promise", topic=f"desk.{name}")
            for name in ("object", "function", "within", "error")
        ),
    ),
    case(
        "results that are not what was promised",
        """
        from typing import Literal

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return "1.5"

            @topic("desk.two")
            async def two(self) -> None:
                return 1

            @topic("desk.three")
            async def three(self) -> Literal["a"]:
                return "b"

            @topic("desk.four")
            async def four(self) -> list[int]:
                return [1, None]
        """,
        *(
            ask({}, ends="failed", says=f"desk.{name}", topic=f"desk.{name}")
            for name in ("one", "two", "three", "four")
        ),
    ),
    case(
        "numbers of numpy",
        """
        import numpy as np

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> float:
                return np.float64(1.5)

            @topic("desk.two")
            async def two(self) -> int:
                return np.int64(2)

            @topic("desk.three")
            async def three(self) -> list[float]:
                return np.array([1.0, 2.0]).tolist()

            @topic("desk.four")
            async def four(self) -> list[float]:
                return np.array([1.0, 2.0])

            @topic("desk.five")
            async def five(self) -> dict:
                return {"n": np.float32(0.5), "m": np.bool_(True)}
        """,
        ask({}, 1.5, topic="desk.one"),
        ask({}, 2, topic="desk.two"),
        ask({}, [1.0, 2.0], topic="desk.three"),
        ask({}, [1.0, 2.0], topic="desk.four"),
        ask({}, ends="failed", says="desk.five", topic="desk.five"),
    ),
    case(
        "constrained values",
        """
        from typing import Annotated
        from annotated_types import Len
        from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, StringConstraints

        def upper(text: str) -> str:
            return text.upper()

        class Desk(Agent):
            @topic("desk.one")
            async def one(
                self,
                n: PositiveInt,
                code: Annotated[str, StringConstraints(pattern=r"^[a-z]+$", max_length=3), AfterValidator(upper)],
                some: Annotated[list[int], Len(1, 2)] = [1],
                even: Annotated[int, Field(multiple_of=2)] = 2,
            ) -> str:
                return code
        """,
        ask({"n": 1, "code": "ab"}, "AB"),
        ask({"n": 0, "code": "ab"}, ends="rejected", says="n"),
        ask({"n": 1, "code": "AB"}, ends="rejected", says="code"),
        ask({"n": 1, "code": "abcd"}, ends="rejected", says="code"),
        ask({"n": 1, "code": "a", "some": []}, ends="rejected", says="some"),
        ask({"n": 1, "code": "a", "even": 3}, ends="rejected", says="even"),
    ),
    case(
        "a pattern that only Python knows",
        r"""
        from typing import Annotated
        from pydantic import StringConstraints

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, code: Annotated[str, StringConstraints(pattern=r"^\d+\Z")]) -> str:
                return code
        """,
        refused="unrecognized escape sequence",
    ),
]

"""What handlers raise, and how their tasks end."""

from tests.corpus.case import Ask, Case, ask
from tests.corpus.case import brief as case


def _raises(name: str, statement: str, *asks: Ask, setup: str = "", attempts: int = 1) -> Case:
    return case(
        name,
        f"""
        import asyncio
        {setup}

        class Desk(Agent):
            @topic("desk.async", max_attempts={attempts}, backoff_s=(0, 0))
            async def a(self, context: Context) -> int:
                {statement}
                return context.attempt

            @topic("desk.plain", max_attempts={attempts}, backoff_s=(0, 0))
            def b(self, context: Context) -> int:
                {statement}
                return context.attempt

            @topic("desk.next")
            async def c(self) -> int:
                return 1
        """,
        *asks,
        ask({}, 1, topic="desk.next"),
    )


def _both(ends: str, says: str) -> tuple[Ask, Ask]:
    return (
        ask({}, ends=ends, says=says, topic="desk.async"),
        ask({}, ends=ends, says=says, topic="desk.plain"),
    )


ODD = """
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError("no words")
            __repr__ = __str__
"""
MANY = """
        class Many(Exception):
            def __init__(self, a, b, *, c):
                self.a = a
"""
LOCKED = """
        import threading
        class Locked(Exception):
            def __init__(self):
                super().__init__(threading.Lock())
"""
BASE = """
        class Stop(BaseException):
            pass
"""

CASES = [
    _raises("a terminal error", "raise Terminal('no such customer')", *_both("failed", "no such customer")),
    _raises(
        "an error that asks for another attempt",
        "if context.attempt < 3: raise Retry('not yet', after_s=0)",
        ask({}, 3, topic="desk.async"),
        ask({}, 3, topic="desk.plain"),
        attempts=5,
    ),
    _raises(
        "a common error", "raise ZeroDivisionError('as always')", *_both("dead_lettered", "ZeroDivisionError")
    ),
    _raises("an error class instead of an instance", "raise ValueError", *_both("dead_lettered", "ValueError")),
    _raises("no error at all", "raise 'text'", *_both("dead_lettered", "exceptions must derive")),
    _raises(
        "a failed assertion", "assert context is None, 'what'", *_both("dead_lettered", "AssertionError: what")
    ),
    _raises("an error whose words can't be had", "raise Odd()", *_both("dead_lettered", "Odd"), setup=ODD.strip()),
    _raises(
        "an error with arguments of its own",
        "raise Many(1, 2, c=3)",
        *_both("dead_lettered", "Many"),
        setup=MANY.strip(),
    ),
    _raises(
        "an error that holds a lock", "raise Locked()", *_both("dead_lettered", "Locked"), setup=LOCKED.strip()
    ),
    _raises(
        "an error of a megabyte", "raise ValueError('x' * 1_000_000)", *_both("dead_lettered", "ValueError: xxx")
    ),
    _raises(
        "an error with half a surrogate pair",
        "raise ValueError('a' + chr(0xd83d))",
        *_both("dead_lettered", "ValueError: a\ufffd"),
    ),
    _raises(
        "a group of errors",
        "raise ExceptionGroup('many', [ValueError('one'), TypeError('two')])",
        *_both("dead_lettered", "many"),
    ),
    _raises(
        "the end of an iterator",
        "next(iter([]))",
        ask({}, ends="dead_lettered", says="StopIteration", topic="desk.async"),
        ask({}, ends="dead_lettered", says="StopIteration", topic="desk.plain"),
    ),
    _raises(
        "the end of an async iterator", "raise StopAsyncIteration", *_both("dead_lettered", "StopAsyncIteration")
    ),
    _raises("a cancellation of its own", "raise asyncio.CancelledError", *_both("dead_lettered", "cancelled")),
    _raises("a time-out of its own", "raise TimeoutError('slow')", *_both("dead_lettered", "TimeoutError: slow")),
    _raises("an exit", "raise SystemExit(3)", *_both("dead_lettered", "SystemExit")),
    _raises("an interrupt", "raise KeyboardInterrupt", *_both("failed", "KeyboardInterrupt")),
    _raises("an error that is no Exception", "raise Stop('here')", *_both("failed", "here"), setup=BASE.strip()),
    _raises(
        "a recursion without end",
        "f = lambda g: g(g); f(f)",
        *_both("dead_lettered", "RecursionError"),
    ),
    _raises("a lack of memory", "raise MemoryError", *_both("dead_lettered", "MemoryError")),
    _raises("a broken text", "b'\\xff'.decode()", *_both("dead_lettered", "UnicodeDecodeError")),
    _raises(
        "a validation that fails within",
        "from pydantic import TypeAdapter; TypeAdapter(int).validate_python('x')",
        *_both("dead_lettered", "ValidationError"),
    ),
    _raises(
        "an input error of its own",
        "from squadron import InvalidInputError; raise InvalidInputError('no such order', field='id')",
        *_both("rejected", "no such order"),
    ),
    _raises(
        "an outcome that is unwrapped in vain",
        "raise Terminal('it') from ValueError('cause')",
        *_both("failed", "it"),
    ),
    case(
        "the error of another agent's outcome",
        """
        class Desk(Agent):
            @topic("desk.one", max_attempts=1)
            async def one(self, context: Context) -> int:
                return (await context.ask("desk.two")).unwrap()

            @topic("desk.two")
            async def two(self) -> int:
                raise Terminal("no such order")

            @topic("desk.three", max_attempts=1)
            async def three(self, context: Context) -> int:
                return (await context.ask("nobody.here")).unwrap()
        """,
        ask({}, ends="failed", says="no such order", topic="desk.one"),
        ask({}, ends="dead_lettered", says="nobody", topic="desk.three"),
    ),
    case(
        "an error while it is cleaned up",
        """
        class Desk(Agent):
            @topic("desk.one", max_attempts=1)
            async def one(self) -> int:
                try:
                    raise ValueError("first")
                finally:
                    raise KeyError("second")

            @topic("desk.two", max_attempts=1)
            async def two(self) -> int:
                try:
                    raise ValueError("first")
                finally:
                    return 1
        """,
        ask({}, ends="dead_lettered", says="KeyError", topic="desk.one"),
        ask({}, 1, topic="desk.two"),
    ),
    case(
        "a task that is left behind",
        """
        import asyncio

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                async def late() -> None:
                    raise ValueError("nobody hears it")
                self.task = asyncio.create_task(late())
                await asyncio.sleep(0)
                return 1
        """,
        ask({}, 1),
        ask({}, 1),
    ),
    case(
        "a plain handler that waits for an ask",
        """
        import asyncio

        class Desk(Agent):
            @topic("desk.one", max_attempts=1)
            def one(self, context: Context) -> int:
                return asyncio.run(context.ask("desk.two")).unwrap()

            @topic("desk.two")
            async def two(self) -> int:
                return 2
        """,
        ask({}, ends="failed", says="ctx.sync.ask", topic="desk.one"),
        ask({}, 2, topic="desk.two"),
    ),
    case(
        "a handler that forgets to await",
        """
        class Desk(Agent):
            @topic("desk.one", max_attempts=1)
            async def one(self) -> int:
                return self.two()

            async def two(self) -> int:
                return 2
        """,
        ask({}, ends="failed", says="desk.one"),
    ),
]

"""Names: of agents, topics, handlers and fields, that mean something elsewhere, or nothing anywhere."""

from tests.corpus.case import Case, ask
from tests.corpus.case import brief as case

#: Fields that are called as options, members or builtins are.
FIELDS = (
    *("timeout", "model", "task_id", "topic", "content", "within_s", "priority", "owner", "message", "agent"),
    *("type", "id", "input", "format", "list", "dict", "print", "object", "str", "cls", "args", "kwargs", "root"),
    *("schema", "copy", "json", "validate", "construct", "fields", "parse_obj", "name", "description", "data"),
    *(
        "größe",
        "名前",
        "x" * 200,
        "A",
        "camelCase",
        "UPPER",
        "n1",
        "async_",
        "None_",
        "call",
        "run",
        "value",
        "error",
    ),
    *("model_name", "parent", "replyTo", "properties", "required", "default", "title", "items", "ref", "self_"),
)


def _field(name: str) -> Case:
    return case(
        f"a field called {name[:20]}",
        f"""
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, {name}: int, other: int = 0) -> dict[str, int]:
                return {{"got": {name}, "other": other}}

            @topic("desk.two")
            def two(self, {name}: int) -> int:
                return {name}
        """,
        ask({name: 1}, {"got": 1, "other": 0}, topic="desk.one"),
        ask({name: "x"}, ends="rejected", says=name, topic="desk.one"),
        ask({}, ends="rejected", says=name, topic="desk.two"),
        ask({name: 2}, 2, topic="desk.two"),
        # Each costs as much as another case; the way back is the same for all.
        ways=("script",),
    )


CASES = [
    case(
        "fields that are called as options, members or builtins are",
        f"""
        from typing import Any

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, {", ".join(f"{name}: int = 0" for name in FIELDS)}) -> dict[str, Any]:
                return {{name: value for name, value in locals().items() if value == 7}}
        """,
        *(ask({name: 7}, {name: 7}) for name in FIELDS),
        *(ask({name: "x"}, ends="rejected", says=name) for name in FIELDS[:8]),
    ),
    *(_field(name) for name in ("timeout", "model", "task_id", "self_", "root", "größe", "model_fields")),
    case(
        "any fields, called as options are",
        """
        from typing import Any

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, **fields: Any) -> dict[str, Any]:
                return fields
        """,
        ask(
            {"context": 2, "cls": 3, "model_config": 4, "_x": 5, "__class__": 6, "fields": 7},
            {
                "context": 2,
                "cls": 3,
                "model_config": 4,
                "_x": 5,
                "__class__": 6,
                "fields": 7,
            },
        ),
        ask({"self": 1}, ends="rejected", says="self"),
    ),
    case(
        "any fields, beside a context",
        """
        from typing import Any

        class Desk(Agent):
            @topic("desk.one")
            async def one(self, context: Context, **fields: Any) -> list[str]:
                return [context.topic, *sorted(fields)]
        """,
        ask({"a": 1}, ["desk.one", "a"]),
        ask({"context": "x"}, ends="rejected", says="context"),
    ),
    case(
        "a handler that passes a field on which is called as an option is",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self, within_s: int, context: Context) -> int:
                handle = await context.submit("desk.two", {"within_s": within_s})
                return (await handle.outcome()).unwrap()

            @topic("desk.two")
            async def two(self, within_s: int) -> int:
                return within_s + 1
        """,
        ask({"within_s": 1}, 2, topic="desk.one"),
    ),
    *(
        case(
            f"a field called {name} is refused by name",
            f"""
            class Desk(Agent):
                @topic("desk.one")
                async def one(self, {name}: int) -> int:
                    return 1
            """,
            refused=f"Desk.one: {said}",
        )
        for name, said in (
            ("_private", "parameter '_private'"),
            ("model_config", "parameter 'model_config'"),
            ("model_dump", "Field 'model_dump'"),
            ("__class__", "parameter '__class__'"),
        )
    ),
    case(
        "self under another name",
        """
        class Desk(Agent):
            def __init__(this) -> None:
                this.n = 1

            @topic("desk.one")
            async def one(this, self_: int) -> int:
                return this.n + self_
        """,
        ask({"self_": 1}, 2),
    ),
    case(
        "a handler with a private and a mangled name",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def _one(self) -> int:
                return self.__n()

            @topic("desk.two")
            async def __two(self) -> int:
                return 2

            def __n(self) -> int:
                return 1
        """,
        ask({}, 1, topic="desk.one"),
        ask({}, 2, topic="desk.two"),
    ),
    *(
        case(
            f"a handler called {name}",
            f"""
            class Desk(Agent):
                @topic("desk.one")
                async def {name}(self, n: int) -> int:
                    return n
            """,
            refused=name,
        )
        for name in ("name", "slots", "capabilities", "on_start", "num_cpus", "__init__", "__call__")
        if name != "__call__"
    ),
    case(
        "handlers called as builtins, topics and the module are",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def list(self, n: int) -> int:
                return n

            @topic("desk.two")
            async def topic(self, n: int) -> int:
                return n

            async def agents(self) -> int:
                return 1
        """,
        ask(1, 1, topic="desk.one"),
        ask(1, 1, topic="desk.two"),
    ),
    case(
        "a class with a name in another script",
        """
        class Größe(Agent):
            @topic("desk.one")
            async def länge(self, größe: int) -> int:
                \"\"\"Misst – 測る.\"\"\"
                return größe
        """,
        refused="größe",
        agent="Größe",
    ),
    case(
        "a class with a name in another script, and a name of its own",
        """
        class Größe(Agent):
            name = "measure"

            @topic("measure.length")
            async def länge(self, größe: int) -> int:
                \"\"\"Misst – 測る.\"\"\"
                return größe
        """,
        ask({"größe": 3}, 3),
        agent="Größe",
    ),
    case(
        "a class with a private name",
        """
        class _Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return 1
        """,
        ask({}, 1),
        agent="_Desk",
    ),
    case(
        "a class that is called as ours are",
        """
        import squadron

        class Agent(squadron.Agent):
            @squadron.topic("desk.one")
            async def one(self) -> int:
                return 1

        class Context:
            pass
        """,
        ask({}, 1),
        agent="Agent",
    ),
    case(
        "a topic that breaks the grammar",
        """
        class Desk(Agent):
            @topic("desk")
            async def one(self) -> int:
                return 1
        """,
        refused="'desk'",
    ),
    case(
        "a topic in another script",
        """
        class Desk(Agent):
            @topic("größe.länge")
            async def one(self) -> int:
                return 1
        """,
        refused="größe",
    ),
    case(
        "the mark without a name",
        """
        class Desk(Agent):
            @topic
            async def one(self) -> int:
                return 1
        """,
        refused="one",
    ),
    case(
        "a module that is called as one of the standard library is",
        """
        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return 1
        """,
        ask({}, 1),
        at="my_types.py",
    ),
    case(
        "a package with a name in another script",
        """
        from .größen import METER

        class Desk(Agent):
            @topic("desk.one")
            async def one(self) -> int:
                return METER
        """,
        ask({}, 100),
        at="maße/agents.py",
        files={"maße/__init__.py": "", "maße/größen.py": "METER = 100"},
        ways=("module", "installed"),
    ),
]

"""The house rules that no linter knows: sizes of files and functions, names, and no stubs."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("runtime", "actors", "bridge", "squadron") for path in (ROOT / folder).rglob("*.py")
)
#: The layers below the face are symbolic links into the top-level folders.
SOURCES = [path for path in SOURCES if not any(parent.is_symlink() for parent in path.parents)]
#: Each source by its place in the repository: its text.
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in SOURCES}
MOST_LINES, MOST_FUNCTION_LINES = 400, 60
NAMED = (ast.Name, ast.Attribute)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
STUB = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|NotImplementedError)\b")


@functools.cache
def trees() -> dict[str, ast.Module]:
    """What the sources are parsed to. It takes a second: not for each process that collects tests."""
    return {name: ast.parse(text) for name, text in TEXTS.items()}


def test_there_are_sources_to_check():
    assert len(SOURCES) > 50


def test_a_file_is_one_noun_and_a_function_fits_on_a_screen():
    faults = []
    for name, text in TEXTS.items():
        if text.count("\n") > MOST_LINES:
            faults.append(f"{name} has more than {MOST_LINES} lines")
        if text and not ast.get_docstring(trees()[name]):
            faults.append(f"{name} does not say what it is")
        faults += [f"{name}: {stub}" for stub in STUB.findall(text)]
        for node in ast.walk(trees()[name]):
            if isinstance(node, FUNCTION) and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES:
                faults.append(f"{name}: {node.name} has more than {MOST_FUNCTION_LINES} lines")
    assert faults == []


def test_what_is_public_has_a_docstring():
    faults = []
    for name, tree in trees().items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTION)) and not node.name.startswith("_"):
                marks = {getattr(mark, "id", "") for mark in node.decorator_list}
                if "overload" not in marks and not ast.get_docstring(node):
                    faults.append(f"{name}: {node.name} has no docstring")
    assert faults == []


#: Adapters have the names of their ports.
ADAPTERS = {"bridge/memory", "bridge/jetstream"}


def _found_twice(names: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Each name that stands in several places, and where."""
    where: dict[str, list[str]] = defaultdict(list)
    for name, place in names:
        where[name].append(place)
    return {name: places for name, places in where.items() if len(places) > 1}


def test_no_two_classes_share_a_name():
    classes = [
        (node.name, name)
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    assert _found_twice(classes) == {}


def test_no_two_modules_share_a_name_nor_one_with_a_room_that_it_is_not_in():
    modules = [path.relative_to(ROOT) for path in SOURCES]
    names = [
        (path.parent.name if path.stem == "__init__" else path.stem, str(path))
        for path in modules
        # A room may be named after what it is about.
        if str(path.parent) not in ADAPTERS and path.stem != path.parent.name
    ]
    assert _found_twice(names) == {}


#: Tasks that are awaited by whoever started them, so that what they raise is heard of there: file and function.
AWAITED = {
    ("squadron/replay/player.py", "_attempt"),
    ("squadron/replay/what_if.py", "__init__"),
    ("actors/runs/acting.py", "_start"),
    ("actors/thinking/lessee.py", "_in_time"),
    ("runtime/background.py", "spawn"),
    ("runtime/background.py", "to_its_end"),
    ("runtime/asking/hearing.py", "hear"),
    ("runtime/running/context.py", "_wait"),
    ("bridge/jetstream/link/dial.py", "connect"),
    ("bridge/control/control.py", "_once"),
    ("bridge/control/finding.py", "_vector"),
    ("squadron/client/subscriptions.py", "__anext__"),
    ("runtime/steady.py", "__anext__"),
    ("squadron/client/stream.py", "_submitted"),
    ("squadron/client/portal.py", "_hand_in"),
    ("bridge/health/probes.py", "respond"),
}
STARTS_A_TASK = {"create_task", "ensure_future", "run_coroutine_threadsafe"}


def _unwatched(tree: ast.AST) -> list[tuple[str, int]]:
    """Function and line of each start of a task that is in no task group."""
    found: list[tuple[str, int]] = []

    def look(node: ast.AST, function: str, groups: frozenset[str]) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.AsyncWith):
            made = [item for item in node.items if ast.unparse(item.context_expr).endswith("TaskGroup()")]
            groups |= {ast.unparse(item.optional_vars) for item in made if item.optional_vars}
        if isinstance(node, ast.Call):
            *owner, name = ast.unparse(node.func).rsplit(".", 1)
            if name in STARTS_A_TASK and not groups.issuperset(owner or {""}):
                found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            look(child, function, groups)

    look(tree, "", frozenset())
    return found


def test_each_background_task_is_watched():
    """By `runtime.background.spawn`; those that their starters await are named above, and none that is gone."""
    assert {(name, function) for name, tree in trees().items() for function, _ in _unwatched(tree)} == AWAITED


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("async def f():\n    t = asyncio.create_task(g())", 1),
        ("async def f():\n    t = self._loop.create_task(g())", 1),
        ("async def f():\n    t = ensure_future(g())", 1),
        ("async def f():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(g())", 0),
        ("async def f():\n    async with asyncio.TaskGroup() as group:\n        asyncio.create_task(g())", 1),
        ("async def f():\n    t = spawn(g(), 'g')", 0),
    ],
)
def test_a_task_that_nobody_watches_is_found(source, count):
    assert len(_unwatched(ast.parse(source))) == count


def test_no_log_line_is_given_the_frames_of_an_error():
    """As text, without secrets, by `traceback_of`: whoever renders frames may show their locals."""
    faults = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value) if isinstance(node.func.value, NAMED) else ""
                if (owner.endswith("log") and node.func.attr == "exception") or any(
                    each.arg == "exc_info" for each in node.keywords
                ):
                    faults.append(f"{name}, line {node.lineno}")
    assert faults == []


#: Where modules are named: what decides or tells of the past may name what is gone.
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *(ROOT / "docs").glob("*.md")]
#: `squadron.x.y`, `runtime.x.Name`, `bridge/x.py` or `bridge/x/`, in backticks.
DOTTED = re.compile(r"`((?:squadron|runtime|actors|bridge)(?:\.\w+)+)[^\w.`]?[^`\n]*`")
SLASHED = re.compile(r"`(\w+(?:/\w+)*/(?:\w+\.py)?)`")
ROOMS = [ROOT, *(ROOT / folder for folder in ("runtime", "actors", "bridge", "squadron", "docs"))]


def _is_there(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something that a module has."""
    place, parts = ROOT / "squadron", name.removeprefix("squadron.").split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    module = place / "__init__.py"
    if parts and (place / f"{parts[0]}.py").is_file():
        module = place / f"{parts.pop(0)}.py"
    # What it has may have more, which is looked for only as a word.
    return module.is_file() and all(re.search(rf"\b{part}\b", module.read_text()) for part in parts)


def _stale(text: str, near: Path) -> list[str]:
    """Names of modules and files in a text that lead nowhere."""
    gone = [name for name in DOTTED.findall(text) if not _is_there(name)]
    # An example in capitals stands for any.
    paths = [path for path in SLASHED.findall(text) if not re.search(r"\b[A-Z]+\b", path)]
    return gone + [path for path in paths if not any((room / path).exists() for room in [*ROOMS, near])]


def test_each_module_that_is_named_is_there():
    stale = {str(path.relative_to(ROOT)): _stale(path.read_text(), path.parent) for path in [*SOURCES, *PAGES]}
    assert {place: names for place, names in stale.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("see `squadron.runtime.wire.subjects.check_pattern`", 0),
        ("see `runtime.wire.subjects.check_pattern`", 0),
        ("see `runtime.subjects.check_pattern`", 1),
        ("see `runtime.wire.subjects.check_no_such`", 1),
        ("see `runtime/running/turn.py` and `running/turn.py`, in `bridge/serve/`", 0),
        ("see `runtime/turn.py`", 1),
        ("see `bridge/gone/`", 1),
        ("see `bridge/gateways/NAME/`", 0),
    ],
)
def test_a_module_that_is_not_there_is_found(text, count):
    assert len(_stale(text, ROOT)) == count


def test_no_schema_has_another_document_fetched():
    """By `validator_of`: schemas come from strangers."""
    made = re.compile(r"jsonschema_rs\.(Draft202012Validator|validator_for)\(")
    assert [name for name, text in TEXTS.items() if made.search(text)] == ["runtime/wire/topics.py"]


#: Whoever prints by another door has to see to it that nobody's words move a cursor.
PRINTS = re.compile(
    r"\bstd(?:out|err)\.write|\btyper\.(?:echo|secho|prompt|confirm)\(?|\bclick\.|(?<![.\w])(?:print|Console)\("
)
#: The door itself, and what prints our own version before there is one.
DOOR = {"squadron/cli/frame.py", "squadron/cli/app.py"}


def test_all_that_commands_print_goes_through_one_door():
    assert {
        name for name, text in TEXTS.items() if name.startswith("squadron/cli/") and PRINTS.search(text)
    } == DOOR

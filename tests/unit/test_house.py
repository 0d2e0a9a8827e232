"""The house rules that no linter knows: sizes of files and functions, names, and no stubs."""

from __future__ import annotations

import ast
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
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


def test_there_are_sources_to_check():
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_noun_and_a_function_fits_on_a_screen(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    tree = ast.parse(text)
    assert not text or ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{node.name} has {length} lines"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
            "_"
        ):
            marks = {getattr(mark, "id", "") for mark in node.decorator_list}
            assert "overload" in marks or ast.get_docstring(node), f"{node.name} has no docstring"


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
        (node.name, str(path.relative_to(ROOT)))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
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
    ("runtime/asking/caller.py", "_subscribe"),
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_background_task_is_watched(path):
    """By `runtime.background.spawn`; one that its starter awaits is named above."""
    name = str(path.relative_to(ROOT))
    unwatched = [
        (function, line)
        for function, line in _unwatched(ast.parse(path.read_text()))
        if (name, function) not in AWAITED
    ]
    assert not unwatched


def test_who_awaits_its_tasks_still_starts_some():
    started = {
        (str(path.relative_to(ROOT)), function)
        for path in SOURCES
        for function, _ in _unwatched(ast.parse(path.read_text()))
    }
    assert started >= AWAITED


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_log_line_is_given_the_frames_of_an_error(path):
    """As text, without secrets: whoever renders frames may show their locals."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            logs = isinstance(node.func.value, ast.Name | ast.Attribute) and ast.unparse(node.func.value).endswith(
                "log"
            )
            assert not (logs and node.func.attr == "exception"), f"line {node.lineno}: use traceback_of"
            assert not any(each.arg == "exc_info" for each in node.keywords), (
                f"line {node.lineno}: use traceback_of"
            )


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


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_that_is_named_is_there(path):
    assert _stale(path.read_text(), path.parent) == []


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_schema_has_another_document_fetched(path):
    """By `validator_of`: schemas come from strangers."""
    if path != ROOT / "runtime/wire/topics.py":
        assert "jsonschema_rs.Draft202012Validator(" not in path.read_text()
        assert "jsonschema_rs.validator_for(" not in path.read_text()

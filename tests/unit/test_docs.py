"""The documentation holds what it says: code runs, links lead somewhere, tables are those of the code."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import squadron
from squadron import config
from squadron.config import VARIABLES, Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.registry.presence import Presence
from squadron.runtime.store.claims import claim_of
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import KINDS, from_content
from squadron.runtime.wire.topics import AgentCard
from tests.docs import PAGES, ROOT, Block, anchors, blocks, links

README, DOCS = ROOT / "README.md", ROOT / "docs"
#: Blocks are marked so: run here, run on a cluster, or run there in the roles of the protocol page.
MARKS = {"unit", "cluster", "ask", "serve", "answer"}


def _name(value: Any) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_block_is_run_by_some_test(block: Block) -> None:
    assert block.mark in MARKS


@pytest.mark.parametrize("block", blocks("python", "unit"), ids=str)
def test_code_that_needs_no_servers_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    # What a deploy would refuse is refused here.
    script.write_text(
        f"{block.text}\n"
        "from squadron.actors.agent import Agent, AgentSpec\n"
        "for each in list(globals().values()):\n"
        "    if isinstance(each, type) and issubclass(each, Agent) and each.__module__ == '__main__':\n"
        "        AgentSpec.of(each)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_a_whole_example_by_line_30() -> None:
    first = next(block for block in blocks("python") if block.page == README)
    assert first.mark == "cluster"
    assert first.line + first.text.count("\n") + 1 <= 30
    assert len(README.read_text().splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_anchors_exist(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reachable_from_the_readme() -> None:
    seen, waiting = set[Path](), [README]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        local = (link.partition("#")[0] for link in links(page) if "://" not in link)
        waiting += [(page.parent / path).resolve() for path in local if path]
    assert set(PAGES) <= seen


def test_the_configuration_page_is_that_of_the_code() -> None:
    tree = ast.parse(inspect.getsource(config.Settings)).body[0]
    assert isinstance(tree, ast.ClassDef)
    described = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (DOCS / "configuration.md").read_text().splitlines()
        if line.startswith("| `") and line.count(" | ") == 3
    ]
    defaults = Settings.load({})
    expected = []
    for name, variable in VARIABLES.items():
        value = getattr(defaults, name)
        shown = "the user's data directory" if name == "home" else f"`{value}`" if value else "none"
        expected.append([f"`{name}`", f"`{variable}`", shown, described[name]])
    assert rows == expected


@pytest.mark.parametrize("block", blocks("json", "message"), ids=str)
def test_messages_of_the_protocol_page_decode(block: Block) -> None:
    message = AgentMessage.decode(block.text.encode())
    assert json.loads(message.encode()) == json.loads(block.text)
    if message.type == "result" and claim_of(message) is None:
        assert from_content(message.payload.content).kind == message.payload.content.get("outcome", "result")


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_entries_of_the_protocol_page_are_of_the_shape_we_read(block: Block) -> None:
    shapes: dict[str, Any] = {"message": AgentMessage, "card": AgentCard, "presence": Presence}
    raw = json.loads(block.text)
    entry = shapes[block.mark].model_validate(raw)
    assert raw.keys() <= entry.model_dump(by_alias=True).keys()


def test_the_protocol_page_lists_all_outcomes() -> None:
    text = (DOCS / "protocol.md").read_text()
    table = text[text.index("| `outcome`") : text.index("## Lite topics")]
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no|) ?\|$", table, re.MULTILINE)
    assert [kind for kind, _ in rows if kind != "outcome"] == list(KINDS)
    assert all((again == "yes") is KINDS[kind].retryable for kind, again in rows if kind in KINDS)


def test_tests_that_the_docs_name_are_there() -> None:
    defined = set[str]()
    for file in ROOT.glob("tests/**/test_*.py"):
        defined |= set(re.findall(r"def (test_\w+)", file.read_text()))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named
    assert named <= defined


def test_decisions_are_numbered_dated_and_listed() -> None:
    decisions = sorted((DOCS / "decisions").glob("0*.md"))
    index = (DOCS / "decisions" / "README.md").read_text()
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        assert re.search(r"^\| date \| \d{4}-\d\d-\d\d \|$", text, re.MULTILINE)
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
        assert f"({page.name})" in index


@pytest.mark.parametrize(
    "command",
    [
        *("up", "down", "status", "deploy", "undeploy", "scale", "topics", "ask", "negotiate", "run", "demo"),
        *("dlq list", "dlq show", "dlq redrive", "dlq drop", "asks", "answer", "runs list", "runs show"),
        *("runs resume", "runs cancel", "metrics grafana", "metrics alerts"),
    ],
)
def test_commands_and_options_that_the_docs_show_exist(command: str) -> None:
    from typer.main import get_command

    from squadron.cli.app import app

    found: Any = get_command(app)
    for name in command.split():
        found = found.get_command(None, name)
    options = {option for parameter in found.params for option in parameter.opts}
    text = "\n".join(page.read_text() for page in PAGES)
    shown = re.findall(rf"squadron {command}\b[^\n`]*", text)
    assert shown
    used = {
        option for line in shown for option in re.findall(r"(?<= )--[a-z-]+", line.split("#")[0].split("|")[0])
    }
    assert used - {"--help"} <= options


def test_examples_in_docstrings_are_valid_code() -> None:
    examples = 0
    for file in [*ROOT.glob("runtime/**/*.py"), *ROOT.glob("actors/**/*.py"), *ROOT.glob("squadron/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for code in _examples(ast.get_docstring(node) or ""):
                    compile(code, str(file), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                    assert _no_options(code) == set(), file
                    examples += 1
    assert examples >= 3


def _no_options(code: str) -> set[str | None]:
    """Keywords that an example gives to an ask, and that are no options of it."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    asks = [call for call in calls if getattr(call.func, "attr", "") in ("ask", "submit", "stream")]
    return {each.arg for ask in asks for each in ask.keywords} - {each.name for each in fields(AskOptions)}


def _examples(docstring: str) -> list[str]:
    """Parts of a docstring that begin with a line of code."""
    found = []
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        if re.match(r" *(async with|class) .*:$", line) and (number == 0 or not lines[number - 1].strip()):
            indent = len(line) - len(line.lstrip())
            part = [line]
            for rest in lines[number + 1 :]:
                if rest.strip() and len(rest) - len(rest.lstrip()) <= indent:
                    break
                part.append(rest)
            found.append(textwrap.dedent("\n".join(part)))
    return found


def test_the_readme_and_the_package_say_the_same_in_one_sentence() -> None:
    sentence = " ".join(README.read_text().split("\n\n")[1].split())
    assert "Ray runs the agents, NATS carries their messages, a supervisor steers them." in sentence
    assert "Ray runs the agents, NATS carries their messages, a supervisor steers them." in str(squadron.__doc__)

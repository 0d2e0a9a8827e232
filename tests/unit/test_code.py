"""An agent class travels: by name if it is installed everywhere, else by value, to where nothing of it is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from squadron.bridge.packing.code import MAX_BLOB_BYTES, Code, load_agent, pack, unpack
from squadron.bridge.packing.lazy import imports_of
from squadron.demo.agents import Inventory
from squadron.runtime.errors import DeployError, InvalidAgentError, MessageTooLargeError

_PACK = """
import json, pathlib, sys
from squadron.bridge.packing.code import pack
from squadron.bridge.packing.lazy import imports_of
{imports}
code, blob = pack({name})
pathlib.Path(sys.argv[1]).write_bytes(blob)
print(json.dumps(code.to_dict()))
"""

#: Runs in an empty folder: nothing of the project can be imported there.
_RUN = """
import asyncio, json, pathlib, sys
from squadron.actors.agent import AgentSpec
from squadron.bridge.packing.code import Code, unpack
from squadron.bridge.packing.lazy import imports_of
loaded = unpack(Code(**json.loads(sys.argv[2])), pathlib.Path(sys.argv[1]).read_bytes())
spec = AgentSpec.of(loaded)
handler = spec.handlers(loaded())[0]
answer = asyncio.run(handler.run({"name": "Zoë"}, None))
print(json.dumps([spec.name, handler.topic.description, answer]))
"""

_HELPER = """
from dataclasses import dataclass
GREETING = "Hello"
@dataclass
class Greeting:
    name: str
    def say(self):
        return f"{GREETING}, {self.name}!"
"""

_AGENT = """
from __future__ import annotations
import typing
from squadron import Agent, topic
import helper
from helper import Greeting

class Greeter(Agent):
    @topic("greet.one")
    async def one(self, name: str) -> str:
        \"\"\"Greets.\"\"\"
        return Greeting(name).say() + helper.GREETING

    class Inner(Agent):
        @topic("greet.inner")
        async def one(self, name: str) -> str:
            return name
"""


def _python(program: str, *arguments: str, cwd: Path, script: bool = False) -> str:
    if script:
        (cwd / "script.py").write_text(program)
        command = [sys.executable, "script.py"]
    else:
        command = [sys.executable, "-c", program]
    done = subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a module that has an agent, and a sibling that it needs."""
    folder = tmp_path / "project"
    (folder / "package").mkdir(parents=True)
    (folder / "helper.py").write_text(_HELPER)
    (folder / "greeter.py").write_text(_AGENT)
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "tools.py").write_text(_HELPER)
    relative = _AGENT.replace("import helper\n", "from . import tools as helper\n").replace(
        "helper import", ".tools import"
    )
    (folder / "package" / "greeter.py").write_text(relative)
    return folder


def _travel(project: Path, imports: str, name: str, *, script: bool = False) -> tuple[dict[str, str], Any]:
    empty = project.parent / "elsewhere"
    empty.mkdir(exist_ok=True)
    blob = str(project.parent / "blob")
    code = _python(_PACK.format(imports=imports, name=name), blob, cwd=project, script=script)
    return json.loads(code), json.loads(_python(_RUN, blob, code, cwd=empty))


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        ("import greeter", "greeter.Greeter"),
        ("from greeter import Greeter", "Greeter"),
        ("import package.greeter", "package.greeter.Greeter"),
    ],
)
def test_a_class_of_a_project_travels_with_its_sibling_modules(project: Path, imports: str, name: str) -> None:
    code, (agent, description, answer) = _travel(project, imports, name)

    assert code["import_path"] == ""
    assert (agent, description, answer) == ("greeter", "Greets.", "Hello, Zoë!Hello")


@pytest.mark.parametrize("script", [True, False], ids=["script", "no file, as in a notebook"])
def test_a_class_of_main_travels_with_its_sibling_modules(project: Path, script: bool) -> None:
    code, (agent, _, answer) = _travel(
        project, _AGENT.replace("from __future__ import annotations\n", ""), "Greeter", script=script
    )

    assert code["import_path"] == ""
    assert (agent, answer) == ("greeter", "Hello, Zoë!Hello")


def test_an_installed_class_goes_by_its_path() -> None:
    code, blob = pack(Inventory)

    assert code.import_path == "squadron.demo.agents:Inventory"
    assert blob == b""
    assert unpack(Code(**code.to_dict()), b"") is Inventory
    assert pack(Inventory)[0].version == code.version


def test_a_class_that_did_not_change_keeps_its_version(project: Path) -> None:
    program = """
import greeter
from squadron.bridge.packing.code import pack
from squadron.bridge.packing.lazy import imports_of
print(*(pack(greeter.Greeter)[0].version for _ in "ab"))
"""

    one, other = _python(program, cwd=project).split()

    assert one == other


def _failed(project: Path, body: str) -> str:
    held = _AGENT.replace("class Greeter(Agent):\n", f"{body}\nclass Greeter(Agent):\n    held = HELD\n")
    (project / "bad.py").write_text(held)
    program = """
from squadron.bridge.packing.code import pack
from squadron.bridge.packing.lazy import imports_of
from squadron.runtime.errors import SquadronError
import bad
try:
    pack(bad.Greeter)
except SquadronError as error:
    print(type(error).__name__, error)
"""
    return _python(program, cwd=project)


def test_a_class_that_holds_a_lock_or_a_socket_is_refused_with_a_way_out(project: Path) -> None:
    for body in ("import threading\nHELD = threading.Lock()", "import socket\nHELD = socket.socket()"):
        said = _failed(project, body)
        assert said.startswith(InvalidAgentError.__name__), body
        assert "on_start" in said


def test_a_class_that_is_too_large_is_refused_with_a_way_out(project: Path) -> None:
    said = _failed(project, f"import os\nHELD = os.urandom({MAX_BLOB_BYTES + 1})")

    assert said.startswith(MessageTooLargeError.__name__)
    assert "on_start" in said


def test_a_class_that_is_no_agent_is_refused() -> None:
    with pytest.raises(InvalidAgentError):
        pack(dict)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "blob"),
    [
        (Code("v", "squadron.demo.agents:Missing"), b""),
        (Code("v", "no_such_module:Agent"), b""),
        (Code("v", "squadron.demo.agents"), b""),
        (Code(hashlib.sha256(b"not a pickle").hexdigest()), b"not a pickle"),
        (Code(hashlib.sha256().hexdigest()), b""),
    ],
)
def test_code_that_can_not_be_loaded_is_a_deploy_error(code: Code, blob: bytes) -> None:
    with pytest.raises(DeployError, match="can't be loaded"):
        unpack(code, blob)


def test_imports_are_read_in_a_function_of_any_size() -> None:
    """Past 255 constants or names the bytecode has a step more in front of each."""
    lines = [f"    print(x{number}, {number}.5)" for number in range(300)]
    source = "\n".join(["def long():", *lines, "    from gamma import delta", "    import epsilon.zeta"])
    made: dict[str, Any] = {}
    exec(source, made)

    assert set(imports_of(made["long"])) == {"gamma", "gamma.delta", "epsilon.zeta"}


def test_the_same_code_is_the_same_version_in_each_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from squadron import Agent, topic\n"
        "class Helper:\n    'Helps.'\n"
        "class Worker(Agent):\n"
        "    @topic('work.do')\n"
        "    async def do(self, n: int) -> str:\n        'Work.'\n        return str(Helper()) + str(n)\n"
    )
    program = (
        "from squadron.bridge.packing.code import load_agent, pack\n"
        "print(pack(load_agent('mine:Worker'))[0].version)"
    )

    def version() -> str:
        return subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    first = version()
    assert version() == first
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("Helps", "Helps more"))
    assert version() != first


@pytest.mark.parametrize("path", ["letters.py:Letters", "agents/letters.py:Letters", "letters.py", "letters"])
def test_a_file_in_the_place_of_a_module_is_told_how_it_is_named(path: str) -> None:
    with pytest.raises(InvalidAgentError, match="is not module:Class") as caught:
        load_agent(path)

    assert caught.value.hint.startswith("for example letters:" if ".py" in path else "for example my_agents:")

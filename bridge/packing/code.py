"""How an agent class travels: by name if it is installed everywhere, else by value."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import operator
import os
import platform
import site
import sys
import sysconfig
from dataclasses import asdict, dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import cloudpickle

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import TOOL, TOPIC, marked
from squadron.actors.remote.remote_agent import RemoteAgent
from squadron.bridge.packing.held_secrets import HeldSecretError, check_bytes, check_held
from squadron.bridge.packing.lazy import find
from squadron.bridge.packing.pickling import dumps, travels
from squadron.runtime.errors import DeployError, InvalidAgentError, MessageTooLargeError
from squadron.runtime.logs import settle_logs
from squadron.runtime.wire.deployment import RuntimeEnv, this_python

#: Largest class that travels by value; the embedded server takes messages of 8 MB.
MAX_BLOB_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Code:
    """Where a replica finds an agent class: an import path, or a blob named by its digest.

    Attributes:
        made_of: of an agent that stands for a server elsewhere, what the imported class is to be made for.
    """

    version: str
    import_path: str = ""
    made_of: str = ""
    #: Which Python compiled it, like `3.11`, where it travels by value: another one can't run its bytecode.
    python: str = ""

    def to_dict(self) -> dict[str, str]:
        """As it travels in a deployment's arguments."""
        # Said only where it counts: an agent that was declared by an earlier release stays as it is.
        return {name: value for name, value in asdict(self).items() if value or name != "python"}


def load_agent(path: str) -> type[Agent]:
    """Import `module:Class`.

    Raises:
        InvalidAgentError: there is no such module or class, or it is not an agent.
    """
    module_name, _, name = path.partition(":")
    is_file = module_name.endswith(".py")
    if not name or is_file or not all(part.isidentifier() for part in module_name.split(".")):
        stem = Path(module_name).stem if is_file else "my_agents"
        raise InvalidAgentError(f"{path!r} is not module:Class", hint=f"for example {stem}:{name or 'Analyst'}")
    settle_logs()
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        missing = error.name in (module_name, module_name.partition(".")[0])
        hint = "run it from the folder the module is in" if missing else f"install {error.name}"
        raise InvalidAgentError(f"{path}: {error}", hint=hint) from None
    except AttributeError:
        raise InvalidAgentError(f"module {module_name!r} has no {name!r}") from None
    return AgentSpec.of(found).agent_class


def pack(agent_class: type[Agent]) -> tuple[Code, bytes]:
    """Make an agent class ready to travel; the bytes are empty if it goes by name.

    The class and all loaded modules of its own project (those below the folder it was imported from) travel
    by value, so that a notebook cell or a file in the working directory works on any node.

    Raises:
        InvalidAgentError: it holds something that can't travel, such as a lock or an open file.
        MessageTooLargeError: more than `MAX_BLOB_BYTES`.
    """
    AgentSpec.of(agent_class)
    module = sys.modules.get(agent_class.__module__)
    if issubclass(agent_class, RemoteAgent) and agent_class.current():
        return _made(agent_class), b""
    path = f"{agent_class.__module__}:{agent_class.__qualname__}"
    # `__main__` is another module on every node, and in a notebook it has no file at all.
    if module and module.__name__ != "__main__" and _is_installed(module) and "<locals>" not in path:
        return Code(version=_digest(Path(str(module.__file__)).read_bytes()), import_path=path), b""
    blob = _pickle(agent_class, module)
    if len(blob) > MAX_BLOB_BYTES:
        raise MessageTooLargeError(
            f"{agent_class.__name__} takes {len(blob):,} bytes with what it refers to",
            hint="load large data in on_start instead of a module variable",
        )
    return Code(version=_digest(blob), python=this_python()), blob


def check_env(name: str, env: RuntimeEnv) -> None:
    """Look at the environment that an agent is to have: it is recorded, as code is.

    Raises:
        InvalidAgentError: it holds a secret.
    """
    try:
        check_held(env.env_vars)
        check_bytes(env.model_dump_json().encode())
    except HeldSecretError as error:
        hint = "who reads the registry would read it: see docs/security.md#secrets for where secrets belong"
        raise InvalidAgentError(f"{name}: runtime_env: {error}", field="runtime_env", hint=hint) from None


def _made(agent_class: type[RemoteAgent]) -> Code:
    base = agent_class.__bases__[0]
    module, made_of = sys.modules[base.__module__], agent_class.made_of()
    version = _digest(Path(str(module.__file__)).read_bytes() + made_of.encode())
    return Code(version, f"{base.__module__}:{base.__qualname__}", made_of)


def _pickle(agent_class: type[Agent], module: ModuleType | None) -> bytes:
    for attribute in (TOPIC, TOOL):
        for each in marked(agent_class, attribute):
            # Names that stand only in annotations would be left behind (`from __future__ import annotations`).
            function = getattr(each.function, "__func__", each.function)
            function.__annotations__ = get_type_hints(function, include_extras=True)
            for hint in function.__annotations__.values():
                _check_newest(agent_class, hint)
    if module is None:
        return dumps(agent_class, {})[0]
    root, lazy = _root(module), dict[str, ModuleType]()
    while True:
        # What is imported only when the code runs comes along, and what that imports then.
        blob, imported = dumps(agent_class, {**_project_modules(root), **lazy}, lazy)
        found = find(imported - lazy.keys(), lambda spec: _is_ours(spec, root))
        around = {**_project_modules(root), **lazy, **found}
        new = {name: one for name, one in found.items() if travels(one, around)}
        if new.keys() <= lazy.keys():
            return blob
        lazy |= new


def _check_newest(agent_class: type[Agent], hint: Any) -> None:
    """In a notebook a cell may have been run again: the agent's methods would take the class from before."""
    for part in get_args(hint):
        _check_newest(agent_class, part)
    if not isinstance(hint, type) or hint.__module__ != "__main__":
        return
    newest = getattr(sys.modules["__main__"], hint.__qualname__, None)
    if isinstance(newest, type) and newest is not hint and newest.__qualname__ == hint.__qualname__:
        agent = agent_class.__qualname__
        raise InvalidAgentError(
            f"{hint.__qualname__} was defined again after {agent}, which takes the one from before",
            hint=f"define {agent} again, too: in a notebook, run its cell",
        )


def _root(module: ModuleType) -> Path:
    """The folder of the project."""
    if not getattr(module, "__file__", None):
        return Path.cwd()  # a notebook, or a prompt
    depth = module.__name__.count(".") + (1 if hasattr(module, "__path__") else 0)
    return Path(str(module.__file__)).resolve().parents[depth]


def _is_ours(spec: ModuleSpec, root: Path) -> bool:
    # A package without an `__init__` has folders instead of a file.
    file = spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or ()), None)
    return file is not None and not file.startswith(_libraries()) and root in Path(file).resolve().parents


def _project_modules(root: Path) -> dict[str, ModuleType]:
    return {
        name: each
        for name, each in list(sys.modules.items())
        if name != "__main__" and not _is_installed(each) and root in _file(each).parents
    }


def _file(module: ModuleType) -> Path:
    return Path(getattr(module, "__file__", None) or "/").resolve()


def _is_installed(module: ModuleType) -> bool:
    name, file = module.__name__, getattr(module, "__file__", None)
    if not file or name == "squadron" or name.startswith("squadron."):
        return True
    # As it stands first: following the links of a thousand modules cost more than all else of a deploy.
    return file.startswith(_libraries()) or str(Path(file).resolve()).startswith(_libraries())


@cache
def _libraries() -> tuple[str, ...]:
    """The folders of installed packages, as they are told and as they are, each with a slash."""
    folders = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(f"{path}{os.sep}" for each in folders for path in {each, str(Path(each).resolve())})


def _digest(data: bytes) -> str:
    # All of it: who could find other bytes of the same digest could run them.
    return hashlib.sha256(data).hexdigest()


def unpack(code: Code, blob: bytes) -> type[Agent]:
    """The class that was packed.

    Raises:
        DeployError: it can't be imported here, or its bytes can't be read or are not those of the version.
    """
    if not code.import_path and not hmac.compare_digest(_digest(blob), code.version):
        # To read a pickle is to run it, and anybody may have written what stands in the registry.
        raise DeployError(
            f"the agent's code is not that of its version {code.version[:16]} (SHA-256): it was not read",
            hint="deploy it anew; if it comes again, somebody else writes into the registry",
        )
    try:
        if not code.import_path:
            loaded: Any = cloudpickle.loads(blob)
        else:
            module, _, name = code.import_path.partition(":")
            loaded = operator.attrgetter(name)(importlib.import_module(module))
        if code.made_of:
            loaded = loaded.remade(code.made_of)
    except Exception as error:
        raise DeployError(
            f"the agent's code can't be loaded on {platform.node()} (Python {platform.python_version()}): "
            f"{type(error).__name__}: {error}",
            hint="what it imports must be installed on the cluster's nodes",
        ) from error
    return AgentSpec.of(loaded).agent_class

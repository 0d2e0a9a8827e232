"""Modules of a project that code imports only when it runs: they travel along, for nobody has them there."""

from __future__ import annotations

import dis
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, resolve_name
from types import CodeType, FunctionType, ModuleType
from typing import Any


def imports_of(function: FunctionType) -> Iterator[str]:
    """Full names of the modules that a function imports, and of what may be modules."""
    package = function.__globals__.get("__package__") or ""
    for level, name, parts in _imports_in(function.__code__):
        try:
            module = resolve_name("." * level + name, package) if level else name
        except ImportError:
            continue  # it would fail anywhere
        yield module
        yield from (f"{module}.{part}" for part in parts)


def _imports_in(code: CodeType) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    # A number over 255 takes a step more, which stands in front of the one that it is for.
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for level, parts, step in zip(steps, steps[1:], steps[2:], strict=False):
        if step.opname == "IMPORT_NAME":
            yield level.argval or 0, step.argval, parts.argval or ()
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _imports_in(inner)


def find(names: set[str], is_ours: Callable[[ModuleSpec], bool]) -> dict[str, ModuleType]:
    """Those of the names that are modules of the project, imported, with the packages that they are in."""
    found: dict[str, ModuleType] = {}
    for name in sorted(names):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            try:
                # The top first: to look for `torch.nn` is to import torch.
                spec = find_spec(part)
                if spec is None or part == "__main__" or not is_ours(spec):
                    break
                found[part] = importlib.import_module(part)
            except Exception:
                break  # it is not there, or can't be imported here either: who needs it is told when it runs
    return found


class Together:
    """Pickles as an agent class; where it is loaded, these modules can be imported from then on."""

    def __init__(self, agent_class: type, modules: dict[str, ModuleType]) -> None:
        self._parts = agent_class, modules

    def __reduce__(self) -> Any:
        return _loaded, self._parts


def _loaded(agent_class: type, modules: dict[str, ModuleType]) -> type:
    sys.modules.update(modules)
    return agent_class

"""Serve's controller builds our applications itself, where it would start a process for each: see ADR 0009.

Ours are built of what was declared alone, in some milliseconds, and load no code of agents. Those of others are
built as ever.
"""

from __future__ import annotations

import logging
from types import FunctionType
from typing import Any

from squadron.bridge.serve.declaration import IMPORT_PATH

#: How the import paths of our applications begin.
_OURS = f"{IMPORT_PATH}:"

_log = logging.getLogger("ray.serve")


def build_here() -> None:
    """Serve's controller calls it when it starts (`RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH`).

    It replaces what is private to Serve (Ray 2.60). Where that is another, all is built as ever.
    """
    try:
        from ray.serve._private import application_state

        serve: Any = application_state
        serve.build_serve_application = Building(serve.build_serve_application)
    except (ImportError, AttributeError) as error:
        _log.warning(f"applications are built in processes of their own: {error}")


class Building:
    """Stands where Serve has the Ray task that builds an application."""

    def __init__(self, task: Any) -> None:
        self._task, function = task, task._function
        # It would set up a log of its own, and here it is the controller that has one.
        own = {**function.__globals__, "configure_component_logger": lambda **_: None}
        self._build = FunctionType(function.__code__, own, function.__name__, None, function.__closure__)

    def options(self, **how: Any) -> _Call:
        """What `task.options` does."""
        return _Call(self._task, self._build, how)


class _Call:
    def __init__(self, task: Any, build: Any, how: dict[str, Any]) -> None:
        self._task, self._build, self._how = task, build, how

    def remote(self, import_path: str, *rest: Any) -> Any:
        """A reference to what was built, or is being built."""
        if import_path.startswith(_OURS) and not self._how.get("runtime_env"):
            import ray

            try:
                *_, fault = built = self._build(import_path, *rest)
                if fault is None:
                    return ray.put(built)
            except Exception as error:
                fault = repr(error)
            # What is loaded here may be of a release before.
            _log.warning(f"{import_path} is built in a process of its own: {fault}")
        return self._task.options(**self._how).remote(import_path, *rest)

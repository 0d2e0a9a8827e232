"""Who builds an application: Serve's controller, if it is one of ours; else a Ray task, as ever."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from squadron.bridge.serve.building import Building
from squadron.bridge.serve.declaration import IMPORT_PATH


def configure_component_logger(**_: Any) -> None:
    raise AssertionError("the controller has a log")


def build(import_path: str, version: str) -> tuple[None, str | None, str | None]:
    configure_component_logger(component_name="controller")
    if version == "broken":
        raise RuntimeError("it can't be built here")
    if version == "wrong":
        return None, None, "it is not as it was declared"
    return None, f"{import_path} {version} built here", None


class Task:
    """What `ray.remote` makes of a function, as far as Serve uses it."""

    _function = staticmethod(build)

    def options(self, **how: Any) -> Task:
        self.how = how
        return self

    def remote(self, import_path: str, version: str) -> str:
        return f"{import_path} {version} by a task with {self.how}"


@pytest.fixture(autouse=True)
def _put(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(put=lambda value: value))


@pytest.mark.parametrize("builder", ["build", "build_group"])
def test_the_controller_builds_ours_itself_and_keeps_its_log(builder: str) -> None:
    built = Building(Task()).options(runtime_env={}).remote(f"{IMPORT_PATH}:{builder}", "v1")

    assert built == (None, f"{IMPORT_PATH}:{builder} v1 built here", None)


@pytest.mark.parametrize(
    ("import_path", "version", "runtime_env"),
    [
        ("shop.app:app", "v1", {}),
        # It would not be found here.
        (f"{IMPORT_PATH}:build", "v1", {"pip": ["shop"]}),
        (f"{IMPORT_PATH}:build", "broken", {}),
        (f"{IMPORT_PATH}:build", "wrong", {}),
    ],
)
def test_all_else_is_built_by_a_task(import_path: str, version: str, runtime_env: dict[str, Any]) -> None:
    how = {"runtime_env": runtime_env}

    assert Building(Task()).options(**how).remote(import_path, version) == (
        f"{import_path} {version} by a task with {how}"
    )

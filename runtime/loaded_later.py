"""What is loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import Any


class LoadedLater:
    """A module, or something in one, that is imported when something of it is used, or when it is called."""

    def __init__(self, module: str, name: str = "") -> None:
        self._module, self._name = module, name

    def _load(self) -> Any:
        module = importlib.import_module(self._module)
        return getattr(module, self._name) if self._name else module

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._load(), attribute)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._load()(*arguments, **options)

"""The only folder that speaks NATS."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Later:
    """A module that is loaded when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


class _JetStreamLater:
    """Finds nats-py's own JetStream, to be loaded when something of it is used."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, _: ModuleType | None = None) -> ModuleSpec | None:
        """Where that is; None for all else."""
        spec = PathFinder.find_spec(name, path) if name == "nats.js" else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def _load_client() -> None:
    """Load nats-py's client without what we don't use, which takes longer than all the rest of it.

    That is its JetStream, and aiohttp: it imports that for NATS over WebSocket, which `Settings` refuses. Who else
    has nats-py in this process can use both all the same.
    """
    if "nats.aio.client" in sys.modules:
        return
    sys.meta_path.insert(0, _JetStreamLater)
    try:
        _load_transport()
        importlib.import_module("nats.aio.client")
    finally:
        sys.meta_path.remove(_JetStreamLater)


def _load_transport() -> None:
    if {"aiohttp", "nats.aio.transport"} & sys.modules.keys():
        return
    # What is None here can't be imported, and nats-py takes it that it is not installed.
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        transport: Any = importlib.import_module("nats.aio.transport")
    finally:
        del sys.modules["aiohttp"]
    transport.aiohttp = _Later("aiohttp")


_load_client()

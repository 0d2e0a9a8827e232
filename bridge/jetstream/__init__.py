"""The only folder that speaks NATS."""

from __future__ import annotations

import importlib
import sys
from typing import Any


class _Later:
    """A module that is loaded when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def _load_transport() -> None:
    """Load nats-py without aiohttp, which takes longer than all the rest of it.

    It imports that for NATS over WebSocket, which `Settings` refuses; who else has nats-py in this process can use
    it all the same.
    """
    if {"aiohttp", "nats.aio.transport"} & sys.modules.keys():
        return
    # What is None here can't be imported, and nats-py takes it that it is not installed.
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        transport: Any = importlib.import_module("nats.aio.transport")
    finally:
        del sys.modules["aiohttp"]
    transport.aiohttp = _Later("aiohttp")


_load_transport()

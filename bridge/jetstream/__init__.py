"""The only folder that speaks NATS."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from squadron.runtime.loaded_later import LoadedLater


def _load_client() -> None:
    """Load nats-py's client without what we don't use, which takes longer than all the rest of it.

    That is its JetStream, and aiohttp: it imports that for NATS over WebSocket, which `Settings` refuses. Who else
    has nats-py in this process can use both all the same.
    """
    if "nats.aio.client" in sys.modules:
        return
    # The client imports it, and looks into it when something of it is used. Not importlib's `LazyLoader`: whoever
    # imports `nats.js.errors` first would have each of its errors twice.
    sys.modules["nats.js"] = ModuleType("nats.js")
    try:
        _load_transport()
        importlib.import_module("nats.aio.client")
    finally:
        del sys.modules["nats.js"]
    nats: Any = sys.modules["nats"]
    nats.js = LoadedLater("nats.js")


def _load_transport() -> None:
    if {"aiohttp", "nats.aio.transport"} & sys.modules.keys():
        return
    # What is None here can't be imported, and nats-py takes it that it is not installed.
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        transport: Any = importlib.import_module("nats.aio.transport")
    finally:
        del sys.modules["aiohttp"]
    transport.aiohttp = LoadedLater("aiohttp")


_load_client()

"""Calls of a bridge that does not answer."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from squadron.bridge.control import bridge_calls
from squadron.bridge.control.bridge_calls import Control
from squadron.runtime.errors import BridgeUnavailableError, BusUnavailableError
from squadron.runtime.wire.subjects import Subjects


class NobodyThere:
    """A bus on which no bridge answers."""

    async def exchange(self, subject: str, *_: Any, **__: Any) -> Any:
        raise BusUnavailableError(f"nobody answers on {subject}")


async def test_who_waits_for_a_bridge_is_told_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_calls, "CALL_WITHIN_S", 0.6)
    monkeypatch.setattr(bridge_calls, "TELL_AFTER_S", 0.0)
    bus: Any = NobodyThere()

    with capture_logs() as logs, pytest.raises(BridgeUnavailableError):
        await Control(bus, Subjects("dev")).call("status")

    (told,) = [line for line in logs if line["event"] == "bridge.away"]
    assert told["error"] == "nobody answers on agents.dev.bridge.status"

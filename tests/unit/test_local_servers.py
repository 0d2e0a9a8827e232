"""The local servers of a squad, as it starts and stops them."""

from __future__ import annotations

from pathlib import Path

import pytest

from squadron.bridge.jetstream.link import embedded
from squadron.config import Settings
from squadron.servers import Servers


async def test_what_was_started_is_stopped_though_nobody_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(step: str) -> None:
        raise BrokenPipeError(step)

    stopped: list[Path] = []
    monkeypatch.setattr(embedded, "stop", stopped.append)
    servers = Servers(Settings(home=tmp_path), tell)
    servers.started.add("nats")

    with pytest.raises(BrokenPipeError):
        await servers.stop()

    assert stopped == [tmp_path]

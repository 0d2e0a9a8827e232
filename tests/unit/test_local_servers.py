"""The local servers of a squad, as it starts and stops them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from squadron import Squad
from squadron.bridge.jetstream.link import embedded
from squadron.config import Settings
from squadron.runtime.errors import BridgeUnavailableError
from squadron.servers import Servers, coming_up, is_coming_up


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


async def test_who_comes_just_before_the_environment_is_up_tries_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, up = Settings(home=tmp_path), contextlib.ExitStack()
    tries: list[bool] = []

    async def join(chosen: Settings) -> str:
        tries.append(is_coming_up(chosen))
        up.close()
        if len(tries) == 1:
            raise BridgeUnavailableError("no bridge yet")
        return "joined"

    monkeypatch.setattr(Squad, "_join", join)
    with up:
        up.enter_context(coming_up(settings))
        assert str(await Squad.connect(settings)) == "joined"
    assert tries == [True, False]

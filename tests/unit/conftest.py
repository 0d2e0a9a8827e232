"""Models over doubles of their providers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.llm_playing import PROVIDERS, Played, Provider


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for variable in list(os.environ):
        if variable.startswith(("OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Anthropic's SDK looks for a signed-in profile


@pytest.fixture(params=PROVIDERS, ids=lambda provider: provider.name)
def provider(request: pytest.FixtureRequest, no_keys: None) -> Provider:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def play(provider: Provider) -> AsyncIterator[Callable[..., Played]]:
    open_now: list[Played] = []

    def start(turns: Any, *, times: Any = None, model: str = "", **options: Any) -> Played:
        server = provider.server(turns, **options).__enter__()
        llm = provider.model(model, api_key="sk-test", base_url=server.base_url, **(times or {}))
        open_now.append(Played(server, llm))
        return open_now[-1]

    yield start
    for played in open_now:
        await played.model.aclose()
        await played.model.aclose()  # may be called twice
        played.server.__exit__(None, None, None)

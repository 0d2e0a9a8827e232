"""What is taken of the records of Synadia's agents, which strangers write."""

from __future__ import annotations

import json
from typing import Any

import pytest

from squadron.actors.remote.synadia_peers import SynadiaPeer


@pytest.mark.parametrize(
    "endpoint",
    [
        {"name": "prompt", "subject": "agents.dev.task.work.double"},
        {"name": "prompt", "subject": "$JS.API.STREAM.PURGE.squadron-dev-tasks"},
        {"name": "prompt", "subject": "agents.prompt.a.b.>"},
        {"name": "prompt", "subject": "agents.prompt.a.b"},
        {"name": "prompt"},
        {"name": "status", "subject": "agents.prompt.a.b.c"},
        "prompt",
    ],
)
def test_a_stranger_can_not_have_us_publish_where_it_likes(endpoint: Any) -> None:
    record = {"name": "agents", "endpoints": [endpoint], "metadata": {}}
    assert SynadiaPeer.of(json.dumps(record).encode()) is None


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b'{"name": "agents"}', b'{"name":' * 5000])
def test_what_is_no_record_is_passed_over(data: bytes) -> None:
    assert SynadiaPeer.of(data) is None

"""`squadron auth check`: what it says of who asks what, and how it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from squadron.cli import frame
from squadron.cli.app import app
from squadron.runtime.wire.topics import ScoredTopic, SemanticTopic


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is served, and a policy."""
    topics = [SemanticTopic(name="vault.open", allow=("client:ann", "agent:*")), SemanticTopic(name="news.*")]

    @contextlib.asynccontextmanager
    async def connected(_: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(topics=lambda: [ScoredTopic(topic=each, agent="a", score=0) for each in topics])

    monkeypatch.setattr(frame, "connected", connected)
    policy, trust = tmp_path / "policy.toml", tmp_path / "trust.json"
    policy.write_text(
        '[[rules]]\ntopics = ["news.*"]\nallow = ["client:*"]\n'
        '[[limits]]\nwho = ["client:ann"]\ntasks_per_minute = 6\nusd_per_day = 2\n'
    )
    trust.write_text("{}")
    monkeypatch.setenv("SQUADRON_POLICY", str(policy))
    monkeypatch.setenv("SQUADRON_TRUST", str(trust))
    monkeypatch.setenv("SQUADRON_VERIFY", "require")


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ("auth", "check", *arguments))


def test_it_says_allowed_by_which_rule_and_how_much() -> None:
    ended = call("client:ann", "vault.open")
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == "allowed: allowed by allow\nlimits.0: tasks_per_minute 6, usd_per_day 2.0\n"
    assert call("agent:any", "vault.open").exit_code == 0
    assert call("client:eve", "news.today").stdout == "allowed: allowed by rules.0\n"


def test_it_says_refused_and_for_whom() -> None:
    ended = call("client:bob", "vault.open")
    assert (ended.exit_code, ended.stdout) == (
        1,
        "refused: client:bob may not ask vault.open, which is for client:ann, agent:*\n",
    )
    ended = call("agent:helper", "vault.open", "--for", "client:bob", "--json")
    assert ended.exit_code == 1
    assert json.loads(ended.stdout) == {
        "principal": "agent:helper",
        "topic": "vault.open",
        "on_behalf_of": ["client:bob"],
        "allowed": False,
        "by": "allow",
        "reason": "client:bob may not ask vault.open, which is for client:ann, agent:*",
        "limits": [],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ann", "vault.open"), "ROLE:NAME"),
        (("client:*", "vault.open"), "ROLE:NAME"),
        (("client:ann", "vault"), "domain.specificity"),
        (("client:ann", "vault.shut"), "nobody serves"),
    ],
)
def test_what_can_t_be_asked_is_bad_usage(arguments: tuple[str, str], said: str) -> None:
    ended = call(*arguments)
    assert ended.exit_code == 2
    assert said in ended.stderr


def test_it_tells_where_nobody_holds_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUADRON_VERIFY", "warn")
    assert "nobody holds to it" in call("client:ann", "vault.open").stderr

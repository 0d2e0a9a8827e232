"""What the checks make of facts; how the facts come about is tested on real servers."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from squadron.bridge.health.diagnosis import Diagnosis
from squadron.bridge.health.examining import CHECKS, examine
from squadron.bridge.health.facts import (
    AccountFacts,
    AgentFacts,
    AuditFacts,
    BusFacts,
    ConsumerFacts,
    DeadFacts,
    Facts,
    Fault,
    ReplicaFacts,
    StorageFacts,
    StreamFacts,
    WireFacts,
)
from squadron.runtime.ports.queue import SERIAL_AT_ONCE
from squadron.runtime.wire.deployment import Scale
from tests.docs import ROOT

NOW = 1_795_219_200.0
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
WELL = Facts(
    now=NOW,
    heartbeat_s=5.0,
    release="0.1.0",
    bus=BusFacts("127.0.0.1:4222", "2.15.1"),
    wire=WireFacts(tls=False, local=True),
    ahead_s=0.0,
    storage=StorageFacts(10, 1000),
    streams=(StreamFacts("squadron-dev-tasks", 1, 1),),
    consumers=(),
    cut_off=0,
    free_bytes=10**12,
    bridge={"environment": "dev", "agents": [], "release": "0.1.0"},
    agents=(),
    replicas=(),
    unserved={},
    account="",
    accounts=(),
    audit=AuditFacts("trail", True, 10_000, 1_234),
    dead=DeadFacts({}),
    stale_runs=(),
    questions=(),
)


def found(**facts: Any) -> dict[str, Diagnosis]:
    """What is not well, by the name of its check."""
    return {each.name: each for each in examine(dataclasses.replace(WELL, **facts)) if each.level != "ok"}


def agent(**facts: Any) -> AgentFacts:
    return AgentFacts(
        **{"name": "a", "patterns": ("a.b",), "scale": Scale(minimum=1, maximum=2), "slots": 1, **facts}
    )


def test_a_system_that_is_well_has_a_line_for_each_check() -> None:
    assert [(each.name, each.level) for each in examine(WELL)] == [(check.name, "ok") for check in CHECKS]


def test_every_check_has_its_row_in_the_docs_and_every_row_its_check() -> None:
    table = PAGE[PAGE.index("## What the doctor checks") : PAGE.index("## Liveness")]
    rows = re.findall(r"^\| ([\w ]+) \|", table, re.MULTILINE)
    assert rows == ["check", *(check.name for check in CHECKS)]


def test_the_symptoms_name_checks_that_there_are() -> None:
    symptoms = PAGE[PAGE.index("## Symptoms") : PAGE.index("## What the doctor checks")]
    named = {
        name.strip()
        for names in re.findall(r"`squadron doctor` \(([^)]+)\)", symptoms)
        for name in names.split(",")
    }
    assert len(named) > 10
    assert named <= {check.name for check in CHECKS}


def test_each_check_is_brought_about_by_a_test() -> None:
    contract = ROOT / "tests" / "contract"
    tests = "".join((contract / name).read_text() for name in ("test_sick_systems.py", "test_tls.py"))
    assert [
        check.name for check in CHECKS if f'"{check.name}"' not in tests and f"{check.name}:" not in tests
    ] == []


def test_without_nats_only_nats_and_the_bridge_are_spoken_of() -> None:
    facts = Facts(now=NOW, heartbeat_s=5.0, release="0.1.0", bus=BusFacts(fault=Fault("gone", "start it")))
    fails = [each for each in examine(facts) if each.level == "fail"]

    assert (fails[0].name, fails[0].found) == ("nats answers", "gone")
    assert {each.name for each in fails} == {"nats answers", "bridge"}
    assert [each.name for each in examine(facts)][-1] == "not looked at"


def test_what_could_not_be_looked_at_says_why() -> None:
    told = found(dead=None, unknown={"dead": "no answer in 3 s"})

    assert told["not looked at"].found == "dead letters (dead: no answer in 3 s)"


@pytest.mark.parametrize(
    ("facts", "name", "level", "said"),
    [
        ({"bus": BusFacts("h:1", "2.10.3")}, "nats answers", "fail", "older than 2.12"),
        ({"jetstream": Fault("off")}, "jetstream", "fail", "off"),
        ({"storage": StorageFacts(960, 1000)}, "storage", "fail", "holds"),
        ({"ahead_s": 3.0}, "clocks", "warn", "3.0 s ahead of the nats-server"),
        ({"ahead_s": -7.0}, "clocks", "fail", "7.0 s behind"),
        ({"free_bytes": 2 * 10**9}, "disk of the store", "warn", "2.0 GB are free"),
        ({"streams": (StreamFacts("s", 0, 0, has_leader=False),)}, "streams", "fail", "s has no leader"),
        ({"streams": (StreamFacts("s", 96, 1, most_bytes=100),)}, "streams", "fail", "s holds"),
        ({"cut_off": 2}, "slow consumers", "warn", "cut 2 connections"),
        ({"bridge": {}}, "bridge", "fail", "does not answer"),
        ({"bridge": {"losses": []}}, "bridge", "warn", "Ray does not tell it"),
        (
            {"bridge": {"losses": [{"at": "t", "streams": ["x"]}]}},
            "bridge",
            "warn",
            "lost its store, last at t: x",
        ),
        ({"agents": (agent(status="UNHEALTHY"),)}, "agents", "fail", "no reason given"),
        ({"audit": AuditFacts("full", False, 7)}, "audit trail", "fail", "nobody records: 7 messages wait"),
        ({"audit": AuditFacts("full", True, 10_001)}, "audit trail", "warn", "10,001 messages wait"),
        ({"accounts": (AccountFacts("openai-1", 0.0, NOW + 30),)}, "provider limits", "warn", "wait for 30 s"),
        ({"unserved": {f"a.{n}": 1 for n in range(7)}}, "topics", "fail", "2 more topics"),
    ],
)
def test_what_is_not_well_is_told(facts: dict[str, Any], name: str, level: str, said: str) -> None:
    told = [each for each in examine(dataclasses.replace(WELL, **facts)) if each.level != "ok"]

    assert {each.name for each in told} == {name}
    assert told[-1].level == level
    assert said in told[-1].found


@pytest.mark.parametrize(
    "facts",
    [
        # An ordered mailbox has as many under way as its one reader takes at once.
        {"consumers": (ConsumerFacts("s", "line", 9, SERIAL_AT_ONCE, SERIAL_AT_ONCE, redelivered=0),)},
        # A burst that its replicas have soon done, a backlog that shrinks, one that may have more replicas.
        {"agents": (agent(waiting=2, grown=2, replicas=2),)},
        {"agents": (agent(waiting=50, grown=-5, replicas=2),)},
        {"agents": (agent(waiting=50, grown=5, replicas=1),)},
        {"agents": (agent(lapsed=2, replicas=1),)},
        {"dead": DeadFacts({"a": 9}, NOW)},
        # The bridge stands in for an agent at 0; a replica of an older release tells no clock.
        {"replicas": (ReplicaFacts("a", "bridge", NOW - 60, NOW - 60, NOW),)},
        {"replicas": (ReplicaFacts("a", "a-1", 0.0, NOW - 1, NOW + 14),)},
        {"ahead_s": 0.4},
    ],
)
def test_what_is_as_it_should_be_is_not_told(facts: dict[str, Any]) -> None:
    assert found(**facts) == {}

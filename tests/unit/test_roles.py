"""The lists of roles, as text; that Squadron runs with them, and what they stop, is tried on servers."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import pytest

from squadron.bridge.auth.roles import (
    API_PREFIX,
    FINDS,
    KEY,
    MCP_ID,
    NAME,
    PEER_INBOXES,
    PROMPTED,
    ROLES,
    SERVED,
    SERVICE,
    SYNADIA_INBOXES,
    SYNADIA_PEER,
    Role,
    inbox_prefix,
    rights,
    template,
)
from squadron.bridge.auth.server_conf import AGENTS, STREAMS, Login, accounts, claims
from squadron.bridge.jetstream.audit_streams import action_subject, sent_subject
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.status_relay import STATUS, own_status
from squadron.runtime.errors import ConfigError, InvalidSubjectError
from squadron.runtime.wire.subjects import Subjects, is_foreign

OTHERS: list[Role] = [role for role in ROLES if role != "bridge"]


def covers(pattern: str, subject: str) -> bool:
    """Whether a list with this pattern allows that subject (the rules of NATS)."""
    ours, theirs = pattern.split("."), subject.split(".")
    for number, token in enumerate(ours):
        if token == ">":
            return len(theirs) > number
        if number >= len(theirs) or token not in ("*", theirs[number]):
            return False
    return len(ours) == len(theirs)


@pytest.mark.parametrize("role", OTHERS)
def test_nobody_may_answer_or_hear_at_anothers_prefix_nor_call_jetstream_in_the_account_of_the_streams(
    role: Role,
) -> None:
    made = rights(role, "one", "dev")
    assert made is not None

    assert not any(covers(each, f"{inbox_prefix('two')}.x") for each in (*made.publish, *made.subscribe))
    assert not any(covers(each, "$JS.API.STREAM.DELETE.x") for each in made.publish)
    assert f"{inbox_prefix('one')}.>" in made.subscribe
    foreign = {"gateway": [f"{SYNADIA_INBOXES}.>", f"{PEER_INBOXES}.>"], "operator": ["$SRV.INFO.agents"]}
    foreign["foreign"] = ["$SYS.REQ.USER.INFO"]
    begins = {each.split(".")[0] for each in made.publish if each not in foreign.get(role, [])}
    assert begins <= {"agents", "$SQ", "$O", "$JS"}
    # Of one environment only.
    assert not any(covers(each, Subjects("prod").task("a.b")) for each in (*made.publish, *made.subscribe))


@pytest.mark.parametrize("role", OTHERS)
def test_nobody_makes_or_deletes_streams_or_writes_the_trail(role: Role) -> None:
    made = rights(role, "one", "dev")
    assert made is not None
    names = StreamNames("dev")

    for stream in (names.tasks, names.lite, names.registry, names.dead, names.runs, f"OBJ_{names.bucket}"):
        for verb in ("CREATE", "UPDATE", "DELETE", "SNAPSHOT", "RESTORE"):
            assert not any(covers(each, f"{API_PREFIX}.STREAM.{verb}.{stream}") for each in made.publish)
    assert not any(covers(each, "agents.dev.audit") for each in made.publish)


def test_a_client_files_what_it_did_where_the_trail_takes_it_up() -> None:
    made = rights("client", "ann", "dev")
    assert made is not None

    for subject in (
        action_subject(StreamNames("dev"), "cancel"),
        sent_subject("dev", Subjects("dev").task("a.b")),
    ):
        assert any(covers(each, subject) for each in made.publish)


@pytest.mark.parametrize("role", OTHERS)
def test_nobody_but_the_bridge_tells_how_replicas_fare(role: Role) -> None:
    made = rights(role, "one", "dev")
    assert made is not None

    def may(subject: str) -> bool:
        allowed, denied = ([*map(covers, lists, [subject] * len(lists))] for lists in (made.publish, made.never))
        return any(allowed) and not any(denied)

    events = [f"agents.dev.{kind}.status.{event}" for kind in ("event", "durable") for event in STATUS]
    assert not any(map(may, events))
    assert not may(own_status("dev", "two", "offline"))
    assert may(own_status("dev", "one", "offline")) is (role == "agent")
    assert may("agents.dev.event.news.sport") is (role not in ("observer", "foreign"))
    for lists in (made.permissions()["publish"], template(role, "dev")["pub"]):
        assert lists.get("deny", []) == [*made.never]


def test_topics_that_may_be_asked_are_named() -> None:
    made = rights("client", "ann", "dev", asks=["math.*"])
    assert made is not None

    assert any(covers(each, "agents.dev.task.math.add.p9") for each in made.publish)
    assert not any(covers(each, "agents.dev.task.office.file") for each in made.publish)


@pytest.mark.parametrize("role", OTHERS)
def test_a_template_is_the_same_list_with_the_name_left_open(role: Role) -> None:
    made = rights(role, "ann", "dev", key="UANN")
    assert made is not None
    lists = template(role, "dev")

    filled = [each.replace(NAME, "ann").replace(KEY, "UANN") for each in lists["pub"]["allow"]]
    assert [each for each in filled if "{{" not in each] == list(made.publish)
    heard = [each.replace(NAME, "ann").replace(SERVED, "*.*") for each in lists["sub"]["allow"]]
    assert [each for each in heard if "{{" not in each] == list(made.subscribe)


@pytest.mark.parametrize("role", ["agent", "gateway", "foreign"])
def test_a_template_leaves_open_whom_of_other_protocols_one_is_or_asks(role: Role) -> None:
    made = rights(role, "ann", "dev", peers=["mcp:files", "synadia:pi.acme", "prompts:echo.acme"])
    assert made is not None
    lists = template(role, "dev")
    put_in = ((MCP_ID, "files"), (SYNADIA_PEER, "pi.acme"), (SERVICE, "agents"), (NAME, "ann"), (SERVED, "*.*"))
    put_in += ((PROMPTED, "echo.acme"), (FINDS, "agents"))
    without = rights(role, "ann", "dev")
    assert without is not None
    for verb, subjects, less in (
        ("pub", made.publish, without.publish),
        ("sub", made.subscribe, without.subscribe),
    ):
        filled = {reduce(lambda text, end: text.replace(*end), put_in, each) for each in lists[verb]["allow"]}
        assert set() < {*subjects} - {*less} <= filled


def test_an_agent_hears_tasks_of_what_it_serves_and_of_nothing_else() -> None:
    made = rights("agent", "analyst", "dev", serves=["math.*"])
    assert made is not None

    assert any(covers(each, "agents.dev.task.math.add.p9") for each in made.subscribe)
    assert any(covers(each, "agents.dev.query.math.add.p9") for each in made.subscribe)
    assert not any(covers(each, "agents.dev.task.office.file.p9") for each in made.subscribe)
    assert not any(covers(each, "agents.dev.query.office.file.p9") for each in made.subscribe)
    # Its mailbox brings it what has no priority.
    assert not any(covers(each, "agents.dev.task.math.add") for each in made.subscribe)


def test_the_prefix_of_the_api_is_no_place_that_honest_agents_answer_at() -> None:
    assert not is_foreign(f"{API_PREFIX}.STREAM.PURGE.x")


def test_what_is_no_role_or_name_is_told() -> None:
    wrong: Any = "king"
    with pytest.raises(ConfigError, match="king"):
        rights(wrong, "one", "dev")
    with pytest.raises(ConfigError, match="bridge"):
        template("bridge", "dev")
    with pytest.raises(InvalidSubjectError, match="name"):
        rights("client", "*", "dev")
    with pytest.raises(InvalidSubjectError):
        rights("client", "ann", "dev", asks=["everything"])


def test_a_configuration_has_each_user_in_its_account() -> None:
    logins = [
        Login("bridge", rights("bridge", "bridge", "dev"), "one"),
        Login("ann", rights("client", "ann", "dev"), nkey="UABC"),
    ]
    made = json.loads(accounts(logins).removeprefix("accounts: "))

    assert made[STREAMS]["users"] == [{"user": "bridge", "password": "one"}]
    (ann,) = made[AGENTS]["users"]
    assert (ann["nkey"], "password" in ann) == ("UABC", False)
    assert ann["permissions"]["publish"]["allow"]
    assert "password" not in repr(logins)


def test_as_claims_the_accounts_are_joined_at_the_same_subjects() -> None:
    exports, imports = claims("ASTREAMS")

    assert [each["subject"] for each in exports["exports"]] == [each["subject"] for each in imports["imports"]]
    local = {each["subject"]: each.get("local_subject") for each in imports["imports"]}
    assert {subject: to for subject, to in local.items() if to} == {"$JS.API.>": f"{API_PREFIX}.>"}

"""Who may ask what, by lists and rules alone: what a policy may say, and what a chain may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.actors.decorators import TOPIC, topic
from squadron.config import Settings
from squadron.runtime.errors import ConfigError, ForbiddenError, InvalidAgentError
from squadron.runtime.running.allowance import Count
from squadron.runtime.trust.principals import ROLES, Principal
from squadron.runtime.wire.behalf import BEHALF, DELEGATES, chain_of
from squadron.runtime.wire.policy import NO_POLICY, Policy, check_who, fits
from squadron.runtime.wire.topics import SemanticTopic

NAMES = ("ann", "team-a", "team-b", "team")
PRINCIPALS = [f"{role}:{name}" for role in ROLES for name in NAMES]
WHO = st.builds("{}:{}".format, st.sampled_from(["*", *ROLES]), st.sampled_from(["*", "team-*", "t*", *NAMES]))
ALLOW = st.lists(WHO, max_size=3)
TOPICS = st.sampled_from(["a.b", "a.c", "d.e"])
PATTERNS = st.sampled_from(["a.b", "a.*", "*.b", "*.*"])
RULE = st.fixed_dictionaries({"topics": st.lists(PATTERNS, min_size=1, max_size=2), "allow": ALLOW})
POLICIES = st.lists(RULE, max_size=4).map(lambda rules: Policy.model_validate({"rules": rules}))


@given(POLICIES, ALLOW, TOPICS, st.lists(st.sampled_from(PRINCIPALS), min_size=1, max_size=5))
def test_a_chain_has_the_rights_of_its_weakest_link_and_no_more(
    policy: Policy, allow: list[str], name: str, chain: list[str]
) -> None:
    alone = [policy.rule_on([who], name, allow).allowed for who in chain]
    assert policy.rule_on(chain, name, allow).allowed == all(alone)


@given(
    POLICIES,
    ALLOW,
    TOPICS,
    st.sampled_from(PRINCIPALS),
    st.one_of(st.none(), st.lists(st.sampled_from(PRINCIPALS))),
)
def test_whatever_a_message_says_of_itself_it_has_no_more_rights_than_who_signed_it(
    policy: Policy, allow: list[str], name: str, signer: str, named: list[str] | None
) -> None:
    role, _, own = signer.partition(":")
    author = Principal(own, role, "U")  # type: ignore[arg-type]
    try:
        chain = chain_of({BEHALF: named}, author)
    except ForbiddenError:
        assert role not in DELEGATES
        return
    assert chain[-1] == signer
    assert set(chain) == {signer, *(named or ())}
    if policy.rule_on(chain, name, allow).allowed:
        assert policy.rule_on([signer], name, allow).allowed


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda it: st.lists(it) | st.dictionaries(st.text(), it),
    )
)
def test_what_names_no_principals_is_refused_and_breaks_nothing(metadata: object) -> None:
    author = Principal("helper", "agent", "U")
    assert chain_of(metadata if not isinstance(metadata, dict) else {}, author) == ("agent:helper",)
    if metadata in (None, []):
        assert chain_of({BEHALF: metadata}, author) == ("agent:helper",)
    else:
        with pytest.raises(ForbiddenError) as caught:
            chain_of({BEHALF: metadata}, author)
        assert caught.value.field == f"metadata.{BEHALF}"


@pytest.mark.parametrize(
    ("who", "pattern", "is_so"),
    [
        ("client:ann", "client:ann", True),
        ("client:ann", "client:*", True),
        ("client:ann", "*:ann", True),
        ("client:ann", "*:*", True),
        ("client:ann", "agent:ann", False),
        ("client:anna", "client:ann", False),
        ("client:team-a", "client:team-*", True),
        ("client:team", "client:team-*", False),
    ],
)
def test_a_pattern_stands_for_a_role_a_name_or_both(who: str, pattern: str, is_so: bool) -> None:
    assert fits(who, [check_who(pattern)]) is is_so


@pytest.mark.parametrize(
    "bad", ["", "ann", "client", "client:", ":ann", "boss:ann", "client:*ann", "client:a*b", "client:a b", 7]
)
def test_what_is_no_pattern_of_principals_is_refused_with_what_to_write(bad: str) -> None:
    with pytest.raises(ValueError, match="ROLE:NAME like 'client:ann'"):
        check_who(bad)
    with pytest.raises(InvalidAgentError, match="ROLE:NAME") as caught:
        topic("a.b", allow=[bad])
    assert caught.value.field == "allow"


@pytest.mark.parametrize("bad", [[], "client:ann", ()])
def test_a_list_that_names_nobody_is_refused(bad: object) -> None:
    with pytest.raises(InvalidAgentError, match="names nobody"):
        topic("a.b", allow=bad)  # type: ignore[arg-type]


def test_the_list_travels_in_the_card_and_an_old_card_is_for_everybody() -> None:
    @topic("a.b", allow=["client:ann", "agent:*"])
    def handler() -> None:
        """Does nothing."""

    assert getattr(handler, TOPIC).allow == ("client:ann", "agent:*")
    described = SemanticTopic(name="a.b", allow=("client:ann",))
    assert SemanticTopic.model_validate_json(described.model_dump_json()).allow == ("client:ann",)
    assert SemanticTopic.model_validate({"name": "a.b"}).allow == ()
    with pytest.raises(ValueError, match="ROLE:NAME"):
        SemanticTopic.model_validate({"name": "a.b", "allow": ["anybody"]})


def test_the_first_rule_that_has_the_topic_counts() -> None:
    policy = Policy.model_validate(
        {"rules": [{"topics": ["a.b"], "allow": ["client:ann"]}, {"topics": ["*.*"], "allow": []}]}
    )
    assert policy.rule_on(["client:ann"], "a.b").by == "rules.0"
    assert policy.rule_on(["client:ann"], "a.b", ["client:*"]).by == "allow, rules.0"
    refused = policy.rule_on(["client:ann"], "a.c")
    assert (refused.allowed, refused.by) == (False, "rules.1")
    assert refused.reason.endswith("for nobody")
    assert policy.rule_on(["client:ann"], "a.b", ["agent:*"]).by == "allow"
    assert NO_POLICY.rule_on(["client:ann"], "a.b").reason == "nothing forbids it"


TOML = """
[[rules]]
topics = ["vault.*"]
allow = ["client:ann", "agent:*"]

[[limits]]
who = ["client:*"]
tasks_per_minute = 60
usd_per_day = 5
"""


def test_a_policy_is_read_from_toml_and_json_alike(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(TOML)
    policy = Policy.load(tmp_path / "p.toml")
    (tmp_path / "p.json").write_text(policy.model_dump_json())
    assert Policy.load(tmp_path / "p.json") == policy
    assert [number for number, _ in policy.limits_of("client:ann", "any.topic")] == [0]
    assert not [*policy.limits_of("agent:ann", "any.topic")]


@pytest.mark.parametrize(
    ("said", "field", "fix"),
    [
        ({"rules": [{"topics": ["a.b"], "allow": ["ann"]}]}, "rules.0.allow.0", "ROLE:NAME"),
        ({"rules": [{"topics": ["a"], "allow": []}]}, "rules.0.topics.0", "domain.specificity"),
        ({"rules": [{"topics": [], "allow": []}]}, "rules.0.topics", "at least 1"),
        ({"rules": [{"topics": ["a.b"]}]}, "rules.0.allow", "required"),
        ({"rules": [{"topics": ["a.b"], "allow": [], "deny": []}]}, "rules.0.deny", "not permitted"),
        ({"limits": [{"who": []}]}, "limits.0.who", "at least 1"),
        ({"limits": [{"who": ["*:*"], "tasks_per_minute": 0}]}, "limits.0.tasks_per_minute", "greater than"),
        ({"limits": [{"who": ["*:*"], "tasks_per_minute": True}]}, "limits.0.tasks_per_minute", "integer"),
        ({"limits": [{"who": ["*:*"], "usd_per_day": -1}]}, "limits.0.usd_per_day", "greater than 0"),
        ({"allow": []}, "allow", "not permitted"),
    ],
)
def test_a_policy_that_is_wrong_says_where_and_what_to_write(
    tmp_path: Path, said: object, field: str, fix: str
) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=fix) as caught:
        Policy.load(path)
    assert f"field {field!r}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"rules": 1}', "[" * 100_000])
def test_what_is_no_policy_is_no_crash(tmp_path: Path, text: str) -> None:
    for name in ("p.json", "p.toml"):
        (tmp_path / name).write_text(text)
        if (name, text) != ("p.toml", ""):
            with pytest.raises(ConfigError):
                Policy.load(tmp_path / name)
    with pytest.raises(ConfigError):
        Policy.load(tmp_path / "none.json")


def test_a_policy_takes_somebody_who_looks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SQUADRON_VERIFY"):
        Settings(policy=tmp_path / "p.toml")


def test_a_count_leaks_with_time_and_begins_anew_with_the_day() -> None:
    count = Count(at=86_400.0 * 3 + 10, tasks=10.0, day=3, tokens=5, usd_micros=7)
    later = count.at_time(86_400.0 * 3 + 40, per_minute=6)
    assert (later.tasks, later.tokens, later.usd_micros) == (7.0, 5, 7)
    tomorrow = count.at_time(86_400.0 * 4, per_minute=6)
    assert (tomorrow.tasks, tomorrow.day, tomorrow.tokens, tomorrow.usd_micros) == (0.0, 4, 0, 0)
    # A clock that goes back takes nothing away.
    assert count.at_time(86_400.0 * 3, per_minute=6).tasks == 10.0
    assert Count.read(count.encode()) == count


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"at": -1}', b'{"more": 1}', b'{"tokens": 1e400}', b'{"at": "x"}']
)
def test_what_is_no_count_is_none(data: bytes) -> None:
    assert Count.read(data) is None

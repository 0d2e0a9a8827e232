"""The grammar of wire addresses: what is built parses back, and a bad token is named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.runtime.errors import InvalidSubjectError
from squadron.runtime.wire.subjects import (
    MAX_TOKEN,
    LiteSubject,
    OrderedSubject,
    Subjects,
    TaskSubject,
    TicketSubject,
    check_pattern,
    check_queued,
    check_token,
    check_topic,
    matches,
    overlap,
    token_of,
)

TOKEN = st.from_regex(rf"[A-Za-z0-9_-]{{1,{MAX_TOKEN}}}", fullmatch=True)
TOPIC = st.builds("{}.{}".format, TOKEN, TOKEN)
PATTERN = st.builds("{}.{}".format, TOKEN | st.just("*"), TOKEN | st.just("*"))


@given(subject=st.builds(TaskSubject, TOKEN, TOPIC, st.integers(0, 9)))
def test_every_task_subject_parses_back(subject: TaskSubject) -> None:
    assert TaskSubject.parse(str(subject)) == subject


@given(subject=st.builds(LiteSubject, TOKEN, TOKEN, TOKEN))
def test_every_lite_subject_parses_back(subject: LiteSubject) -> None:
    assert LiteSubject.parse(str(subject)) == subject


def test_an_agent_and_a_replica_are_called_for_bids_by_their_names() -> None:
    assert Subjects("dev").negotiate("analyst") == "agents.dev.a2a.negotiate.analyst"
    with pytest.raises(InvalidSubjectError, match="agent"):
        Subjects("dev").negotiate("analyst.*")


def test_the_examples_of_the_protocol() -> None:
    subjects = Subjects("prod")

    assert subjects.task("analysis.sentiment") == "agents.prod.task.analysis.sentiment"
    assert subjects.task("analysis.sentiment", 9) == "agents.prod.task.analysis.sentiment.p9"
    assert subjects.result("generation.code") == "agents.prod.result.generation.code"
    assert subjects.event("status.heartbeat") == "agents.prod.event.status.heartbeat"
    assert subjects.lite("owner", "id") == "agents.prod.lite.owner.id"


def test_the_normal_lane_has_no_token_but_may_be_spelled_out() -> None:
    assert str(TaskSubject("e", "a.b", 5)) == "agents.e.task.a.b"
    assert TaskSubject.parse("agents.e.task.a.b.p5") == TaskSubject("e", "a.b", 5)


def test_a_query_is_a_task_by_another_name() -> None:
    assert TaskSubject.parse("agents.e.query.a.b.p3") == TaskSubject("e", "a.b", 3)


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        ("agents.e.task.a", "agents.e.task.a"),
        ("agents.e.event.a.b", "agents.e.event.a.b"),
        ("people.e.task.a.b", "people.e.task.a.b"),
        ("agents.e.task.a.b.c.d", "agents.e.task.a.b.c.d"),
        ("agents.e.task.a.b.p10", "'p10'"),
        ("agents.e.task.a.b.x5", "'x5'"),
        ("agents.e.task.a.b.p٣", "'p٣'"),
        ("agents..task.a.b", "environment ''"),
        ("agents.e.task.ä.b", "'ä'"),
        ("agents.e.task.a.*", "'*'"),
        ("", "''"),
    ],
)
def test_what_is_not_a_task_subject_is_named(subject: str, named: str) -> None:
    with pytest.raises(InvalidSubjectError, match=re.escape(named)):
        TaskSubject.parse(subject)


@pytest.mark.parametrize(
    "subject", ["agents.e.lite.a", "agents.e.task.a.b", "agents.e.lite.a.b.c", "agents.e.lite.a.>"]
)
def test_what_is_not_a_lite_subject_is_refused(subject: str) -> None:
    with pytest.raises(InvalidSubjectError):
        LiteSubject.parse(subject)


@pytest.mark.parametrize("bad", ["", "a b", "a.b", "*", ">", "ä", "a\n", "x" * (MAX_TOKEN + 1), None, 7])
def test_a_bad_token_is_named_with_what_it_was_to_be(bad: object) -> None:
    with pytest.raises(InvalidSubjectError, match="owner " + re.escape(repr(bad))):
        check_token(bad, "owner")  # type: ignore[arg-type]


def test_builders_refuse_what_would_leave_their_place() -> None:
    with pytest.raises(InvalidSubjectError):
        Subjects("a.b")
    subjects = Subjects("e")
    for build in (
        lambda: subjects.lite("a.b", "c"),
        lambda: subjects.lite("a", "*"),
        lambda: subjects.lite_of("a.>"),
        lambda: subjects.record("deployment", "a.b"),
    ):
        with pytest.raises(InvalidSubjectError):
            build()


@pytest.mark.parametrize("bad", ["a", "a.b.c", ".b", "a.", "", "a.b ", "a.*", None, 7])
def test_a_bad_topic_is_refused(bad: object) -> None:
    with pytest.raises(InvalidSubjectError):
        check_topic(bad)  # type: ignore[arg-type]


@given(topic=TOPIC)
def test_a_topic_is_a_pattern_that_matches_itself_only(topic: str) -> None:
    assert check_topic(topic) == check_pattern(topic) == topic
    assert matches(topic, topic)
    assert not matches(topic, f"{topic}x")
    for pattern in (f"*.{topic.split('.')[1]}", f"{topic.split('.')[0]}.*", "*.*"):
        assert matches(check_pattern(pattern), topic)


@given(one=PATTERN, other=PATTERN, topic=TOPIC)
def test_patterns_that_share_a_topic_overlap(one: str, other: str, topic: str) -> None:
    assert overlap(one, other) == overlap(other, one)
    assert overlap(one, one)
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)


@given(anything=st.text())
def test_any_id_has_one_token(anything: str) -> None:
    token = token_of(anything)

    assert check_token(token, "token") == token_of(anything) == token_of(token)


def test_a_task_in_line_is_read_back_and_knows_where_it_was_published():
    subject = "agents.prod.ordered.clerk.c-1.note.take"
    place = OrderedSubject.parse(subject)
    assert str(place) == subject
    assert (place.mailbox, place.conversation, place.task) == ("clerk", "c-1", "agents.prod.task.note.take")


def test_a_ticket_is_read_back():
    subject = "agents.prod.ticket.clerk.c-1.17"
    assert TicketSubject.parse(subject) == TicketSubject("prod", "clerk", "c-1", 17)
    assert str(TicketSubject.parse(subject)) == subject


@pytest.mark.parametrize(
    "subject",
    [
        "agents.prod.ordered.clerk.c-1.note",
        "agents.prod.ticket.clerk.c-1.last",
        "agents.prod.event.note.take",
        "agents.prod.task.note",
        "agents",
        "",
    ],
)
def test_what_no_work_queue_holds_is_refused(subject):
    with pytest.raises(InvalidSubjectError):
        check_queued(subject)


def test_answers_go_to_inboxes_and_to_where_a_server_leads_them_to_another_account() -> None:
    subjects = Subjects("dev")
    for inbox in ("_INBOX.a.b", "_INBOX_ann.a", "_R_.oJPXYM.0I0NE8", "_GR_.a.b"):
        assert subjects.is_outside(inbox)
    for other in ("_R_", "shop.orders", "_RATES.a"):
        assert not subjects.is_outside(other)

"""Questions and replies as values: what a form can show, what fits, and which calls people approve."""

from __future__ import annotations

import enum
import json
import pickle
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import APPROVAL_BY_AUTHOR, topic
from squadron.runtime.errors import InvalidInputError, InvalidSubjectError
from squadron.runtime.wire.approvals import Approvals, needs_approval
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Constraints, Payload
from squadron.runtime.wire.question import DEFAULT_BY, TEXT_SCHEMA, Proposal, Question, Reply, schema_of
from squadron.runtime.wire.topics import AgentCard, SemanticTopic

AT_MS = 1_795_219_200_000


def _schema(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


def _sent(question: Question) -> AgentMessage:
    payload = Payload(content=question.to_content(), constraints=Constraints(deadline=question.deadline_ms))
    sent = AgentMessage.new("query", AgentIdentity(id="x"), payload=payload)
    return AgentMessage.decode(sent.encode())


@pytest.mark.parametrize(
    "field",
    [
        {"type": "string"},
        {"type": "string", "format": "email", "maxLength": 9},
        {"type": "string", "enum": ["a", "b"]},
        {"type": "string", "oneOf": [{"const": "a", "title": "A"}]},
        {"type": "number", "minimum": 0},
        {"type": "integer"},
        {"type": "boolean", "default": True},
        {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
    ],
)
def test_a_field_that_mcp_elicitation_knows_is_taken(field: dict[str, Any]) -> None:
    assert Question(message="?", schema=_schema(x=field), deadline_ms=AT_MS).schema["properties"]["x"] == field


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"type": "string"}, "schema"),
        ({}, "schema"),
        (_schema(x={"type": "object"}), "schema.x"),
        (_schema(x={"type": "array", "items": {"type": "object"}}), "schema.x"),
        (_schema(x={"$ref": "#/$defs/X", "type": "string"}), "schema.x"),
        (_schema(x={"anyOf": [{"type": "string"}, {"type": "integer"}]}), "schema.x"),
        (_schema(x=3), "schema.x"),
        (_schema(x={"type": "string"}) | {"required": ["y"]}, "schema.y"),
        (_schema(x={"type": "string", "minLength": "no number"}), "schema"),
    ],
)
def test_what_no_form_of_plain_fields_shows_is_refused(schema: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        Question(message="?", schema=schema, deadline_ms=AT_MS)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"message": ""}, "message"),
        ({"deadline_ms": -1}, "deadline"),
        ({"deadline_ms": 1.5}, "deadline"),
        ({"kind": "approval"}, "proposal"),
        ({"kind": "quiz"}, "proposal"),
        ({"proposal": Proposal("a.b", {})}, "proposal"),
        ({"default": Reply("accept", {})}, "default"),
        ({"default": Reply("accept", {"answer": 3})}, "default"),
    ],
)
def test_a_question_that_nobody_could_answer_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        Question(**{"message": "?", "deadline_ms": AT_MS, **given})
    assert error.value.field == field


class _Size(enum.Enum):
    S = "S"
    M = "M"


class _Order(BaseModel):
    size: _Size
    colour: Literal["red", "blue"] = "red"
    count: int = Field(default=1, ge=1)
    note: str | None = None


def test_a_model_with_plain_fields_is_a_schema() -> None:
    question = Question(message="?", schema=schema_of(_Order), deadline_ms=AT_MS)
    assert question.schema["required"] == ["size"]
    assert question.schema["properties"]["size"]["enum"] == ["S", "M"]
    assert question.schema["properties"]["note"]["type"] == "string"
    question.check(Reply("accept", {"size": "M", "count": 2}))
    for bad in ({"size": "L"}, {"size": "S", "count": 0}, {"size": "S", "note": 3}):
        with pytest.raises(InvalidInputError):
            question.check(Reply("accept", bad))


def test_without_a_schema_a_text_is_wanted() -> None:
    assert schema_of(None) == TEXT_SCHEMA
    with pytest.raises(InvalidInputError) as error:
        schema_of(str)  # type: ignore[arg-type]
    assert error.value.field == "schema"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(message=st.text(min_size=1).filter(lambda text: bool(text.strip())), arguments=_JSON, default=st.booleans())
def test_a_question_is_read_as_it_was_sent(message: str, arguments: Any, default: bool) -> None:
    proposal = Proposal("mail.send", arguments, {"type": "object"})
    reply = Reply("accept" if default else "decline")
    for sent in (
        Question(message=message, deadline_ms=AT_MS),
        Question.approval(proposal, why=message, deadline_ms=AT_MS, default=reply),
    ):
        read = Question.of_message(_sent(sent))
        assert read.to_content() == json.loads(_sent(sent).encode())["payload"]["content"]
        assert (read.digest, read.deadline_ms) == (Question.of_message(_sent(read)).digest, AT_MS)


@given(content=_JSON)
def test_what_is_no_question_and_no_reply_is_a_typed_error(content: Any) -> None:
    payload = Payload(content=content, constraints=Constraints(deadline=AT_MS))
    message = AgentMessage.new("query", AgentIdentity(id="x"), payload=payload)
    for read in (lambda: Question.of_message(message), lambda: Reply.of_content(content)):
        with pytest.raises(InvalidInputError):
            read()


def test_the_digest_is_that_of_what_is_asked_and_not_of_until_when() -> None:
    one = Question(message="?", deadline_ms=AT_MS)
    assert one.digest == Question(message="?", deadline_ms=AT_MS + 1, default=Reply("decline")).digest
    assert one.digest != Question(message="!", deadline_ms=AT_MS).digest
    assert one.digest != Question(message="?", schema=_schema(x={"type": "string"}), deadline_ms=AT_MS).digest
    assert Proposal("a.b", {"x": 1, "y": 2}).digest == Proposal("a.b", {"y": 2, "x": 1}).digest
    assert Proposal("a.b", {"x": 1}).digest != Proposal("a.c", {"x": 1}).digest


def test_a_question_travels_between_processes() -> None:
    question = Question(message="?", deadline_ms=AT_MS)
    question.check(Reply("accept", {"answer": "x"}))
    back = pickle.loads(pickle.dumps(question))
    assert back == question
    back.check(Reply("accept", {"answer": "x"}))


def test_a_bare_value_is_the_only_field_or_the_reason_of_a_no() -> None:
    question = Question(message="?", deadline_ms=AT_MS)
    assert question.fields("x") == {"answer": "x"}
    assert question.fields("too dear", "decline") == {"reason": "too dear"}
    two = Question(message="?", schema=_schema(x={"type": "string"}, y={"type": "string"}), deadline_ms=AT_MS)
    with pytest.raises(InvalidInputError):
        two.fields("x")


def test_what_counts_at_the_deadline_says_that_nobody_said_it() -> None:
    assert Question(message="?", deadline_ms=AT_MS).at_deadline() == Reply("cancel", by=DEFAULT_BY)
    question = Question(message="?", deadline_ms=AT_MS, default=Reply("accept", {"answer": "x"}))
    assert question.at_deadline() == Reply("accept", {"answer": "x"}, DEFAULT_BY)


# --- which calls people approve -----------------------------------------------------------------------

ASKS, PLAIN = SemanticTopic(name="bank.pay", approval="It costs money."), SemanticTopic(name="bank.look")


@pytest.mark.parametrize(
    ("topic", "rules", "always", "needs"),
    [
        (ASKS, Approvals(), (), True),
        (PLAIN, Approvals(), (), False),
        (PLAIN, Approvals(ask=("bank.*",)), (), True),
        (PLAIN, Approvals(ask=("*.*",)), (), True),
        (PLAIN, Approvals(ask=("mail.*",)), (), False),
        (ASKS, Approvals(trust=("bank.pay",)), (), False),
        (PLAIN, Approvals(ask=("*.*",), trust=("bank.look",)), (), False),
        (ASKS, Approvals(), ("bank.pay",), False),
        (ASKS, Approvals(), ("bank.look",), True),
        (PLAIN, Approvals(ask=("*.*",)), ("bank.look",), False),
    ],
)
def test_a_call_is_approved_by_its_card_and_the_rules_of_the_run(
    topic: SemanticTopic, rules: Approvals, always: tuple[str, ...], needs: bool
) -> None:
    assert needs_approval(topic, rules, always) is needs


def test_a_rule_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(InvalidSubjectError):
        Approvals(ask=("everything",))


class _Bank(Agent):
    name = "bank"

    @topic("bank.pay", approval="It costs money.")
    async def pay(self) -> None: ...

    @topic("bank.move", approval=True)
    async def move(self) -> None: ...

    @topic("bank.look")
    async def look(self) -> None: ...


def test_what_an_author_wants_approved_is_on_the_card() -> None:
    card = AgentCard.model_validate_json(AgentSpec.of(_Bank).card().model_dump_json())
    said = {each.name: each.approval for each in card.topics}
    assert said == {"bank.pay": "It costs money.", "bank.move": APPROVAL_BY_AUTHOR, "bank.look": ""}

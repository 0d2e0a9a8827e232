"""Histories that are broken are taken as they can be: no conversation stays broken for ever."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from squadron.actors.thinking.model import ChatMessage, ToolCall
from squadron.actors.thinking.repair import CUT_BEFORE, INTERRUPTED, repaired
from squadron.actors.thinking.window import grouped
from tests.conversations import broken_conversations, conversations

ASKED = ChatMessage("user", "hello")


def calling(*ids: str, **more: object) -> ChatMessage:
    return ChatMessage("assistant", "", tuple(ToolCall(id, "look_up") for id in ids), **more)  # type: ignore[arg-type]


def told(id: str, text: str = "found") -> ChatMessage:
    return ChatMessage("tool", text, tool_call_id=id)


@given(broken_conversations())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_was_lost_each_call_has_its_one_result_and_the_user_begins(messages: list[ChatMessage]) -> None:
    whole = repaired(messages)
    spoken = [m for m in whole if m.role != "system"]
    assert not spoken or spoken[0].role == "user"
    for group in grouped(whole):
        assert group[0].role != "tool"
        assert [m.tool_call_id for m in group[1:]] == [call.id for call in group[0].tool_calls]
    assert repaired(whole) == whole
    assert repaired(list(messages)) == whole


@given(conversations(pending=False))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_good_conversation_stays_as_it_is(messages: list[ChatMessage]) -> None:
    whole = repaired(messages)
    assert whole == messages
    assert all(one is other for one, other in zip(whole, messages, strict=True))


@given(broken_conversations())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_that_was_said_is_lost_but_results_without_a_call(messages: list[ChatMessage]) -> None:
    whole = repaired(messages)
    said = [m for m in messages if m.role != "tool" and (m.content.strip() or m.tool_calls)]
    assert [m for m in whole if m.role != "tool" and m.content != CUT_BEFORE] == said
    called = {call.id for m in messages for call in m.tool_calls}
    results = {m.tool_call_id for m in messages if m.role == "tool"}
    assert {m.tool_call_id for m in whole if m.role == "tool" and m.content != INTERRUPTED} == called & results


def test_a_call_that_a_crash_left_open_is_closed() -> None:
    whole = repaired([ASKED, calling("a", "b"), told("b"), ASKED])
    assert whole[2] == ChatMessage("tool", INTERRUPTED, tool_call_id="a", is_error=True)
    assert whole[3:] == [told("b"), ASKED]


def test_a_result_whose_call_is_gone_is_dropped_and_so_is_a_second_one() -> None:
    assert repaired([ASKED, told("a"), ASKED]) == [ASKED, ASKED]
    assert repaired([ASKED, calling("a"), told("a"), told("a", "again")]) == [ASKED, calling("a"), told("a")]


def test_results_that_were_put_elsewhere_come_back_to_their_calls() -> None:
    late = [ASKED, calling("a"), ChatMessage("user", "a question between"), told("a")]
    assert repaired(late) == [ASKED, calling("a"), told("a"), late[2]]
    early = [ASKED, told("a"), calling("a", blocks=({"type": "thinking"},))]
    assert repaired(early) == [ASKED, early[2], told("a")]


def test_calls_that_share_an_id_keep_their_own_results() -> None:
    messages = [ASKED, calling("1"), told("1", "first"), calling("1"), told("1", "second")]
    assert repaired(messages) == messages
    lost = [ASKED, calling("1"), calling("1"), told("1", "second")]
    assert [m.content for m in repaired(lost) if m.role == "tool"] == [INTERRUPTED, "second"]


def test_a_call_twice_in_one_message_is_one_call_without_blocks_that_say_otherwise() -> None:
    whole = repaired([ASKED, calling("a", "a", blocks=({"type": "tool_use"},)), told("a")])
    assert whole == [ASKED, calling("a"), told("a")]


def test_a_history_whose_beginning_was_cut_off_begins_with_the_user() -> None:
    system = ChatMessage("system", "be brief")
    answer = ChatMessage("assistant", "as I said")
    assert repaired([system, answer, ASKED]) == [system, ChatMessage("user", CUT_BEFORE), answer, ASKED]


def test_what_says_nothing_is_left_out() -> None:
    blank = [ChatMessage("user", " "), ChatMessage("assistant", "\n")]
    assert repaired([*blank, ASKED, *blank]) == [ASKED]
    assert repaired([]) == []

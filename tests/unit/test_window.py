"""What of a conversation goes to the model: properties over generated conversations, and what each step does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squadron.actors.thinking.fence import Fence
from squadron.actors.thinking.model import Attachment, ChatMessage, ToolCall
from squadron.actors.thinking.summarize import extract
from squadron.actors.thinking.tokens import conversation_tokens, message_tokens, text_tokens
from squadron.actors.thinking.window import (
    CLEARED_CHARS,
    KEPT_GROUPS,
    SHARE,
    SHARE_ONCE_OVERFLOWED,
    Fitted,
    Summary,
    fit,
    grouped,
    shortened,
)
from squadron.runtime.errors import ModelError
from tests.conversations import conversations, texts

FENCE = Fence.of("a run")
Case = tuple[list[ChatMessage], int]


@st.composite
def cases(draw: st.DrawFn, *, pending: bool = True) -> Case:
    """A conversation, and a window that is too small for it, or not quite, or nearly."""
    messages = draw(conversations(pending=pending))
    return messages, int(conversation_tokens(messages, "o200k") * draw(st.floats(0.2, 1.4)) / SHARE)


#: No limits of time: the machine may be busy.
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run_of(rounds: int, result: str | Callable[[int], str], *, blocks: bool = False) -> list[ChatMessage]:
    """A run with one call a round, and its results."""
    messages = [ChatMessage("system", "Be brief."), ChatMessage("user", "the goal")]
    thought = ({"type": "thinking", "thinking": "hm " * 100, "signature": "s" * 40},) if blocks else ()
    model = "m" if blocks else ""
    for n in range(rounds):
        call = ToolCall(f"c{n}", "look_up", {"n": n})
        messages.append(ChatMessage("assistant", f"round {n}", (call,), blocks=thought, model=model))
        text = result if isinstance(result, str) else result(n)
        messages.append(ChatMessage("tool", f"{n}: {text}", tool_call_id=f"c{n}"))
    return messages


def references_of(messages: Sequence[ChatMessage]) -> dict[str, str]:
    return {m.tool_call_id: f'{{"$from": "{m.tool_call_id}"}}' for m in messages if m.role == "tool"}


def fitted(messages: Sequence[ChatMessage], window: int, summaries: Sequence[Summary] = (), **more: Any) -> Fitted:
    """As a run does it: what is to be summarized is, by extraction, and kept with the run."""
    kept = list(summaries)
    for _ in range(3):
        done = fit(
            messages,
            window_tokens=window,
            family="o200k",
            summaries=kept,
            references=references_of(messages),
            **more,
        )
        if done.to_summarize is None:
            if isinstance(summaries, list):
                summaries[:] = kept
            return done
        kept.append(extract(done.to_summarize, FENCE))
    raise AssertionError("it is summarized again and again")


def open_calls(messages: Sequence[ChatMessage]) -> set[str]:
    answered = {m.tool_call_id for m in messages}
    return {call.id for m in messages for call in m.tool_calls} - answered


def origins(shown: Sequence[ChatMessage], given: Sequence[ChatMessage]) -> list[tuple[ChatMessage, ChatMessage]]:
    """What is shown but a summary, each with what it was: in the same order, or this fails."""
    left, pairs = iter(given), list[tuple[ChatMessage, ChatMessage]]()
    for message in shown:
        if not is_summary(message) or message in given:
            pairs.append((message, next(each for each in left if _same(message, each))))
    return pairs


def _same(shown: ChatMessage, given: ChatMessage) -> bool:
    if shown.role == "tool":
        return given.role == "tool" and shown.tool_call_id == given.tool_call_id
    if shown.role == "user" and " are left out " in shown.content:
        return given.role == "user" and given.content.startswith(shown.content.split("\n[…")[0])
    return replace(shown, blocks=()) == replace(given, blocks=())


def is_summary(message: ChatMessage) -> bool:
    return message.role == "user" and "was summarized to save room" in message.content


@given(cases())
@few
def test_it_fits_or_says_with_a_type_that_it_does_not(case: Case) -> None:
    done, window = _fitted_or_wider(case)
    assert done.tokens == conversation_tokens(done.messages, "o200k")
    assert done.tokens <= int(SHARE * window)


@given(conversations())
@few
def test_what_fits_goes_as_it_is(messages: list[ChatMessage]) -> None:
    room = conversation_tokens(messages, "o200k")
    done = fitted(messages, int(room / SHARE) + 100, reserved_tokens=50)
    assert done.messages == tuple(messages)
    assert all(shown is given for shown, given in zip(done.messages, messages, strict=True))
    assert done.steps == ()


@given(cases())
@few
def test_each_result_directly_follows_its_call_one_to_one_and_the_user_begins(case: Case) -> None:
    check_form(_fitted_or_wider(case)[0], case[0])


@given(cases())
@few
def test_a_run_keeps_its_form_while_it_grows_and_is_summarized_again(case: Case) -> None:
    messages, window = case
    groups, summaries = grouped(messages), list[Summary]()
    for until in range(2, len(groups) + 1):
        so_far = list(itertools.chain(*groups[:until]))
        with contextlib.suppress(ModelError):
            done = fitted(so_far, window, summaries)
            check_form(done, so_far)
            assert done.tokens <= int(SHARE * window)


def check_form(done: Fitted, messages: Sequence[ChatMessage]) -> None:
    assert next(m for m in done.messages if m.role != "system").role == "user"
    for group in grouped(done.messages):
        called = [call.id for call in group[0].tool_calls]
        told = [message.tool_call_id for message in group[1:]]
        assert group[0].role != "tool"
        assert told == [id for id in called if id in told]
        assert set(called) - set(told) <= open_calls(messages)


@given(cases())
@few
def test_what_survives_is_a_subsequence_with_results_shortened_and_a_summary(case: Case) -> None:
    messages = case[0]
    done, _ = _fitted_or_wider(case)
    for shown, was in origins(done.messages, messages):
        if shown.role == "tool":
            assert (shown.tool_call_id, shown.is_error) == (was.tool_call_id, was.is_error)
            whole = shown == was
            assert whole or "save room" in shown.content or "left out" in shown.content
        elif shown.role == "user":
            assert shown == was or "left out" in shown.content
        else:
            assert shown in (was, replace(was, blocks=()))


@given(cases())
@few
def test_the_system_part_the_goal_and_the_newest_groups_stay(case: Case) -> None:
    messages = case[0]
    done, _ = _fitted_or_wider(case)
    groups, shown = grouped(messages), grouped(done.messages)
    for group in groups:
        if group[0].role == "system":
            assert group in shown
    assert next(group for group in groups if group[0].role == "user") in shown
    if "cut" not in done.steps:
        for old, new in zip(groups[-KEPT_GROUPS:], shown[-KEPT_GROUPS:], strict=True):
            assert [replace(m, blocks=()) for m in new] == [replace(m, blocks=()) for m in old]


@given(cases())
@few
def test_fitting_again_changes_nothing(case: Case) -> None:
    done, window = _fitted_or_wider(case)
    again = fitted(done.messages, window)
    assert again.messages == done.messages
    assert again.steps == ()


@given(cases())
@few
def test_the_same_arguments_give_the_same_conversation(case: Case) -> None:
    summaries: list[Summary] = []
    once, window = _fitted_or_wider(case, summaries)
    assert fitted(list(case[0]), window, list(summaries)) == once


@given(cases())
@few
def test_opaque_blocks_are_whole_or_gone_and_whole_in_the_open_tool_loop(case: Case) -> None:
    messages = case[0]
    done, _ = _fitted_or_wider(case)
    last_user = max(n for n, m in enumerate(messages) if m.role == "user")
    # All after the last word of the user is one tool loop, until the assistant calls nothing more.
    loop = messages[last_user + 1 :] if messages[-1].role == "tool" else []
    for shown, was in origins(done.messages, messages):
        assert shown.blocks == was.blocks or (shown.blocks == () and not any(was is m for m in loop))


@given(st.lists(st.integers(20, 400), min_size=8, max_size=20), st.floats(0.3, 0.6), st.integers(1, 200))
@few
def test_nothing_before_the_last_summary_changes_when_a_group_is_added(
    lengths: list[int], share: float, added: int
) -> None:
    messages = run_of(len(lengths), lambda n: "word " * lengths[n])
    window, summaries = int(conversation_tokens(messages, "o200k") * share / SHARE), list[Summary]()
    done, window = _fitted_or_wider((messages, window), summaries)
    call = ToolCall("new", "look_up", {})
    longer = [*messages, ChatMessage("assistant", "", (call,)), ChatMessage("tool", "w " * added, (), "new")]
    made = list(summaries)
    after, wider = _fitted_or_wider((longer, window), made)
    # Otherwise nothing was summarized, or the group was one too many, and all before it is summarized anew.
    if summaries and made == summaries and wider == window:
        assert is_summary(done.messages[2])
        assert after.messages[:3] == done.messages[:3]


@given(cases())
@few
def test_every_reference_that_is_shown_is_one_of_the_run(case: Case) -> None:
    messages = case[0]
    done, _ = _fitted_or_wider(case)
    known = references_of(messages)
    stubs = [m for m in done.messages if m.role == "tool" and "was cleared to save room" in m.content]
    assert all(known[m.tool_call_id] in m.content for m in stubs)
    for message in done.messages:
        if is_summary(message):
            listed = message.content.partition("can be passed on: ")[2]
            assert set(listed.split(", ")) <= {*known.values(), ""}


@given(cases())
@few
def test_calls_without_a_result_survive(case: Case) -> None:
    messages = case[0]
    done, _ = _fitted_or_wider(case)
    assert open_calls(done.messages) == open_calls(messages)


@given(cases(pending=False), st.data())
@few
def test_calls_that_wait_for_somebody_survive(case: Case, data: st.DataObject) -> None:
    calls = [call.id for m in case[0] for call in m.tool_calls]
    waiting = data.draw(st.sets(st.sampled_from(calls), max_size=2)) if calls else set()
    done, _ = _fitted_or_wider(case, pending=waiting)
    assert waiting <= {call.id for m in done.messages for call in m.tool_calls}
    assert waiting <= {m.tool_call_id for m in done.messages}


def _fitted_or_wider(case: Case, summaries: Sequence[Summary] = (), **more: Any) -> tuple[Fitted, int]:
    """As it fits into the case's window, or else into the next wider one that has room for what must stay."""
    messages, window = case
    while True:
        try:
            return fitted(messages, window, summaries, **more), window
        except ModelError as error:
            if error.kind != "overflow":
                raise
            window = window * 5 // 4 + 50


def test_at_first_only_old_long_results_are_cleared_and_name_their_reference() -> None:
    messages = run_of(8, "word " * 400)
    done = fitted(messages, 3_000)
    assert done.steps == ("cleared",)
    results = [m for m in done.messages if m.role == "tool"]
    assert [len(m.content) > CLEARED_CHARS for m in results] == [False] * 5 + [True] * 3
    assert '{"$from": "c4"}' in results[4].content
    assert "call again" in fit(messages, window_tokens=3_000, family="o200k").messages[3].content


def test_attachments_of_old_results_are_cleared_with_them() -> None:
    messages = run_of(6, "short")
    pictures = (Attachment("image/png", data="AAAA"),) * 3
    messages[3] = replace(messages[3], attachments=pictures)
    done = fitted(messages, 2_000)
    assert done.messages[3].attachments == ()
    assert done.messages[3].content.startswith("0: short\n[3 attachments were cleared")


def test_thinking_goes_before_anything_is_summarized_but_not_in_the_open_tool_loop() -> None:
    closed = run_of(4, "word", blocks=True)
    messages = [*closed, ChatMessage("assistant", "done", blocks=closed[2].blocks, model="m")]
    messages += [ChatMessage("user", "and now?"), *run_of(2, "more", blocks=True)[2:]]
    done = fitted(messages, 900)
    assert done.steps == ("thoughts dropped",)
    at = messages.index(ChatMessage("user", "and now?"))
    assert not any(m.blocks for m in done.messages[:at])
    assert done.messages[at:] == tuple(messages[at:])


def test_a_turn_that_was_paused_goes_back_as_it_is() -> None:
    messages = run_of(3, "word " * 200, blocks=True)
    messages += [ChatMessage("user", "and now?"), ChatMessage("assistant", "so far", blocks=messages[2].blocks)]
    done = fitted(messages, 900)
    assert "thoughts dropped" in done.steps
    assert [bool(m.blocks) for m in done.messages if m.role == "assistant"][-1]
    assert not any(m.blocks for m in done.messages[:-1])


def test_a_nudge_does_not_close_the_tool_loop_that_it_follows() -> None:
    messages = [*run_of(2, "word " * 300, blocks=True), ChatMessage("user", "go on")]
    done = fitted(messages, 1_000)
    assert "thoughts dropped" not in done.steps
    assert [m.blocks for m in done.messages if m.role == "assistant"] == [messages[2].blocks] * 2


def test_then_the_middle_is_summarized_once_for_many_rounds() -> None:
    messages, summaries, window = run_of(12, "word " * 150), list[Summary](), 1_500
    lengths = list[int]()
    for until in range(4, len(messages) + 1, 2):
        done = fitted(messages[:until], window, summaries)
        lengths.append(done.tokens)
        assert done.messages[:2] == tuple(messages[:2])
        assert done.messages[-6:] == tuple(messages[max(2, until - 6) : until][-6:]) or until < 8
    assert 1 <= len(summaries) <= 3
    assert max(lengths) <= SHARE * window
    assert is_summary(done.messages[2])
    assert '{"$from": "c0"}' in done.messages[2].content


def test_a_summary_stands_only_for_what_it_was_made_of() -> None:
    messages, summaries = run_of(12, "word " * 150), list[Summary]()
    fitted(messages, 1_500, summaries)
    changed = [*messages]
    changed[3] = replace(changed[3], content="something else")
    asked = fit(changed, window_tokens=1_500, family="o200k", summaries=summaries)
    assert "summarized" not in asked.steps
    assert asked.to_summarize is not None


def test_the_next_summary_takes_the_place_of_the_one_before() -> None:
    messages, summaries = run_of(30, "word " * 150), list[Summary]()
    for until in range(4, len(messages) + 1, 2):
        done = fitted(messages[:until], 1_500, summaries)
    assert len(summaries) > 1
    assert [is_summary(m) for m in done.messages].count(True) == 1
    # Of the first rounds something is left, although they were summarized twice and more.
    assert "look_up" in done.messages[2].content


def test_a_call_that_was_open_when_it_was_summarized_around_gets_its_result() -> None:
    messages, summaries = run_of(12, "word " * 150), list[Summary]()
    open_call = messages.pop(7)
    fitted(messages, 1_500, summaries)
    messages.insert(7, open_call)
    done = fit(messages, window_tokens=1_500, family="o200k", summaries=summaries)
    assert open_call in done.messages
    assert "summarized" in done.steps


def test_a_call_that_waits_for_a_person_stays_though_it_has_a_word_for_a_result() -> None:
    messages, summaries = run_of(12, "word " * 150), list[Summary]()
    messages[5] = replace(messages[5], content="Call c1 is still running.")
    done = fitted(messages, 1_500, summaries, pending={"c1"})
    assert done.messages[:2] == tuple(messages[:2])
    assert is_summary(done.messages[2])
    assert done.messages[3:5] == tuple(messages[4:6])
    # When it is over, the next summary takes it in.
    assert fitted(messages, 1_500, summaries).messages == done.messages
    messages += run_of(20, "word " * 150)[2:]
    assert messages[4] not in fitted(messages, 1_500, summaries).messages


def test_results_that_are_told_late_are_cut_when_others_can_save_no_more() -> None:
    messages = [*run_of(3, "short"), ChatMessage("user", "HEAD " + "late " * 3_000 + "TAIL")]
    done = fitted(messages, 1_000)
    assert done.steps == ("cut",)
    assert done.messages[:-1] == tuple(messages[:-1])
    assert done.messages[-1].content.startswith("HEAD late")
    assert done.messages[-1].content.endswith("late TAIL")


def test_the_goal_may_be_a_later_message() -> None:
    earlier = [ChatMessage("user", "long ago " * 50), ChatMessage("assistant", "yes " * 100)] * 4
    messages = [ChatMessage("system", "s"), *earlier, *run_of(6, "word " * 150)[1:]]
    goal = 1 + len(earlier)
    done = fitted(messages, 1_500, goal=goal)
    assert messages[goal] in done.messages
    assert "long ago" not in "".join(m.content for m in done.messages if not is_summary(m))
    assert done.messages[1] == next(m for m in done.messages if is_summary(m))


def test_at_last_the_largest_results_are_cut_head_and_tail() -> None:
    messages = run_of(1, "")
    messages[3] = replace(messages[3], content="HEAD " + "word " * 4_000 + "TAIL")
    done = fitted(messages, 1_000)
    assert done.steps == ("cut",)
    assert done.messages[3].content.startswith("HEAD word")
    assert done.messages[3].content.endswith("word TAIL")
    assert "characters are left out" in done.messages[3].content
    assert done.tokens > 0.8 * SHARE * 1_000


def test_for_a_little_a_result_is_cut_and_no_summary_paid_for() -> None:
    messages = run_of(6, "short " * 12)
    messages[-1] = replace(messages[-1], content="word " * 4_000)
    done = fit(messages, window_tokens=2_500, family="o200k")
    assert (done.to_summarize, done.steps) == (None, ("cut",))
    assert done.messages[:-1] == tuple(messages[:-1])


def test_several_results_are_cut_to_the_same_size_and_small_ones_not() -> None:
    call = tuple(ToolCall(f"c{n}", "look_up", {}) for n in range(3))
    sizes = (3_000, 2_000, 50)
    messages = [ChatMessage("user", "goal"), ChatMessage("assistant", "", call)]
    messages += [ChatMessage("tool", "word " * n, tool_call_id=f"c{k}") for k, n in enumerate(sizes)]
    done = fitted(messages, 1_500)
    sizes = [message_tokens(m, "o200k") for m in done.messages[2:]]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert done.messages[4] == messages[4]


def test_what_can_not_be_made_to_fit_is_not_summarized_in_vain() -> None:
    messages = [ChatMessage("user", "goal " * 3_000), *run_of(12, "word " * 150)[2:]]
    with pytest.raises(ModelError, match="can't be shortened") as raised:
        fit(messages, window_tokens=2_000, family="o200k")
    assert raised.value.kind == "overflow"


def test_room_for_tools_and_the_answer_is_kept_free() -> None:
    messages = run_of(8, "word " * 400)
    assert fitted(messages, 10_000).steps == ()
    done = fitted(messages, 10_000, reserved_tokens=6_000)
    assert done.tokens <= SHARE * 10_000 - 6_000
    with pytest.raises(ModelError):
        fitted(messages, 10_000, reserved_tokens=20_000)


def test_after_an_overflow_it_is_shorter_though_it_seemed_to_fit() -> None:
    messages = run_of(8, "word " * 400)
    window = 6_000
    assert fitted(messages, window).steps == ()
    again = fitted(messages, window, overflowed=True)
    assert again.steps[:1] == ("cleared",)
    assert again.tokens <= SHARE_ONCE_OVERFLOWED * window


@given(texts(2_000), st.integers(0, 400))
@few
def test_a_shortened_text_has_its_head_and_its_tail_and_its_size(text: str, most: int) -> None:
    short = shortened(text, most, "o200k")
    note = text_tokens("\n[… 99999 characters are left out here …]\n", "o200k")
    assert text_tokens(short, "o200k") <= max(most, note)
    if short != text:
        head, tail = short.split("\n[… ")[0], short.split(" …]\n")[-1]
        assert text.startswith(head)
        assert text.endswith(tail)


def test_groups_are_what_belongs_together() -> None:
    messages = run_of(2, "x")
    assert [len(group) for group in grouped(messages)] == [1, 1, 2, 2]
    assert tuple(itertools.chain(*grouped(messages))) == tuple(messages)

"""Questions to people: asked once, answered once, found again after a death, gone when nobody waits any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.runtime.asking.answering import OpenQuestion, People
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.asking.people import LONGEST_QUESTION_S, Asked, TurnQuestions, put_question
from squadron.runtime.asking.question_records import read_question
from squadron.runtime.errors import (
    InvalidInputError,
    QuestionClosedError,
    UnansweredError,
    UnknownQuestionError,
)
from squadron.runtime.running.context import Context
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.question import Proposal, Question, Reply
from tests.contract.conftest import SOON_S, Peer, Serve, World, until

SIZES = {"type": "object", "properties": {"size": {"type": "string", "enum": ["S", "M"]}}, "required": ["size"]}


def _question(peer: Peer, message: str = "Which size?", *, within_s: float = 60.0, **rest: Any) -> Question:
    deadline_ms = Deadline.after(within_s, peer.clock).at_ms
    return Question(message=message, deadline_ms=deadline_ms, **{"schema": SIZES, **rest})


async def _ask(peer: Peer, query_id: str = "q1", **rest: Any) -> Asked:
    return await put_question(peer.caller, _question(peer, **rest), query_id, about="run-1")


def _people(peer: Peer) -> People:
    return People(peer.ports, peer.caller.lite_topics)


async def _waiting(peer: Peer, count: int = 1) -> list[OpenQuestion]:
    found: list[OpenQuestion] = []

    async def there() -> bool:
        found[:] = await _people(peer).questions()
        return len(found) == count

    await until(there)
    return found


async def _by_hand(peer: Peer, query_id: str, content: Any, *, msg_id: str | None = None) -> None:
    """What any client may publish on the question's subject."""
    data = peer.ports.pack("result", {"content": content}, correlation_id=query_id)
    await peer.lite.append(peer.subjects.lite("people", query_id), data, msg_id=msg_id)


async def test_a_question_is_listed_answered_and_then_listed_no_more(world: World, peer: Peer) -> None:
    other = await world.join("answerer")
    asked = await _ask(peer)
    [found] = await _people(other).questions()
    assert (found.query_id, found.asker, found.about) == ("q1", "tester", "run-1")
    assert (found.question.message, found.question.schema) == ("Which size?", SIZES)
    waiting = asyncio.create_task(asked.answer())
    await _people(other).answer("q1", {"size": "M"}, by="ana")

    reply = await waiting
    assert (reply.action, reply.value, reply.by) == ("accept", "M", "ana")
    assert await _people(other).questions() == []


async def test_the_question_and_its_answer_are_what_the_protocol_says(peer: Peer) -> None:
    proposal = Proposal("mail.send", {"to": "ana"}, {"type": "object"})
    question = Question.approval(
        proposal, deadline_ms=Deadline.after(60, peer.clock).at_ms, default=Reply("decline")
    )
    await put_question(peer.caller, question, "q1", about="run-1", conversation_id="c-1")
    await _people(peer).answer("q1", by="ana")
    key = peer.subjects.lite("people", "q1")
    first, second = [entry async for entry in peer.lite.read(key)]

    asked, answer = AgentMessage.decode(first.data), AgentMessage.decode(second.data)
    assert (asked.type, asked.id, asked.reply_to, asked.correlation_id) == ("query", "q1", key, "run-1")
    assert asked.context.conversation_id == "c-1"
    assert asked.payload.constraints is not None
    assert asked.payload.constraints.deadline == question.deadline_ms
    assert asked.payload.content == {
        "kind": "approval",
        "message": "May mail.send be called?",
        "schema": dict(question.schema),
        "proposal": {
            "topic": "mail.send",
            "arguments": {"to": "ana"},
            "schema": {"type": "object"},
            "digest": proposal.digest,
        },
        "default": {"action": "decline", "content": {}},
    }
    assert (answer.type, answer.correlation_id) == ("result", "q1")
    assert answer.payload.content == {"action": "accept", "content": {}, "by": "ana"}
    # A day beyond the deadline.
    assert all(86_400 <= int(entry.headers["Nats-TTL"].rstrip("s")) <= 86_461 for entry in (first, second))


async def test_asked_again_under_its_id_it_is_the_same_question_with_the_answer_that_it_has(
    world: World, peer: Peer
) -> None:
    first = await _ask(peer)
    again = await _ask(await world.join("another"), within_s=500.0)
    assert again.question.deadline_ms == first.question.deadline_ms
    await _people(peer).answer("q1", "S", by="ana")
    late = await _ask(await world.join("a third"), within_s=500.0)
    replies = [await each.answer() for each in (first, again, late)]
    assert [reply.value for reply in replies] == ["S", "S", "S"]


async def test_an_id_stands_for_one_question(peer: Peer) -> None:
    await _ask(peer)
    with pytest.raises(InvalidInputError) as error:
        await _ask(peer, message="Which colour?")
    assert error.value.field == "query_id"


async def test_content_that_does_not_fit_is_refused_at_the_door(peer: Peer) -> None:
    await _ask(peer)
    for content in ({"size": "XXL"}, {}, {"size": 3}):
        with pytest.raises(InvalidInputError) as error:
            await _people(peer).answer("q1", content, by="ana")
        assert error.value.field == "size"
    assert (await read_question(peer.ports, "q1")).results == []


@pytest.mark.parametrize(
    "content",
    [
        {"action": "accept", "content": {"size": "XXL"}, "by": "x"},
        {"action": "maybe", "content": {"size": "S"}},
        {"action": "accept", "content": "S"},
        "S",
        None,
    ],
)
async def test_what_a_stranger_sends_that_does_not_fit_is_skipped(peer: Peer, content: Any) -> None:
    asked = await _ask(peer)
    waiting = asyncio.create_task(asked.answer())
    # Even under the id of the answer, which would keep the next one out.
    await _by_hand(peer, "q1", content, msg_id="q1.answer")
    await _people(peer).answer("q1", "S", by="ana")
    assert (await waiting).by == "ana"


async def test_rubbish_on_its_subject_changes_nothing(peer: Peer) -> None:
    key = peer.subjects.lite("people", "q1")
    for data in (b"", b"\xff", b"[]", b'{"type": "query"}', peer.ports.pack("query", {"content": {"message": 1}})):
        await peer.lite.append(key, data)
        await peer.lite.append(peer.subjects.lite("people", "q2"), data)
    asked = await _ask(peer)
    waiting = asyncio.create_task(asked.answer())
    await peer.lite.append(key, b"rubbish")
    [found] = await _people(peer).questions()
    await _people(peer).answer(found.query_id, "M", by="ana")
    assert (await waiting).value == "M"


async def test_the_first_of_two_answers_counts_and_the_second_is_told_whose(world: World, peer: Peer) -> None:
    asked = await _ask(peer)
    names = ["ana", "ben", "cleo", "dan"]
    people = {name: _people(await world.join(name)) for name in names}

    async def answer(name: str) -> str:
        try:
            return (await people[name].answer("q1", "S", by=name)).by
        except QuestionClosedError as error:
            return f"{error.by}" if error.action == "accept" else error.action

    heard = await asyncio.gather(*map(answer, names))
    # All were told the same, and the asker as well.
    assert set(heard) == {(await asked.answer()).by}


@pytest.mark.parametrize(
    ("default", "action"), [(Reply("accept", {"size": "S"}), "accept"), (Reply("decline"), "decline")]
)
async def test_at_the_deadline_the_default_counts_for_all_who_ask(
    world: World, peer: Peer, default: Reply, action: str
) -> None:
    asked = await _ask(peer, within_s=1.0, default=default)
    reply = await asked.answer()
    assert (reply.action, reply.by, dict(reply.content)) == (action, "default", dict(default.content))
    # An answer that comes now does not count, whoever sends it, and is refused where it can be.
    await _by_hand(peer, "q1", {"action": "accept", "content": {"size": "M"}, "by": "late"})
    with pytest.raises(QuestionClosedError):
        await _people(peer).answer("q1", "M", by="late")
    again = await _ask(await world.join("another"), within_s=60, default=default)
    assert await again.answer() == reply


async def test_without_a_default_the_deadline_is_a_typed_error_each_time(world: World, peer: Peer) -> None:
    asked = await _ask(peer, within_s=1.0)
    for each in (asked, asked, await _ask(await world.join("another"))):
        with pytest.raises(UnansweredError):
            await each.answer()


async def test_an_answer_that_came_in_time_counts_however_late_its_asker_comes(world: World, peer: Peer) -> None:
    await _ask(peer, within_s=4, default=Reply("decline"))
    await _people(peer).answer("q1", "M", by="ana")
    await asyncio.sleep(4.1)
    again = await _ask(await world.join("another"), default=Reply("decline"))
    assert (await again.answer()).by == "ana"


async def test_a_late_answer_of_a_bare_client_does_not_count_though_nobody_had_stored_the_default(
    world: World, peer: Peer
) -> None:
    await _ask(peer, within_s=1.0, default=Reply("decline"))
    await asyncio.sleep(1.1)
    await _by_hand(peer, "q1", {"action": "accept", "content": {"size": "M"}, "by": "late"}, msg_id="q1.answer")
    again = await _ask(await world.join("another"), default=Reply("decline"))
    assert (await again.answer()).by == "default"


async def test_an_answer_that_is_late_by_the_servers_clock_is_told_so_and_not_sent_for_ever(peer: Peer) -> None:
    await _ask(peer, within_s=1.0)
    await asyncio.sleep(1.1)

    class Behind:
        """The clock of an answerer that is late."""

        def time(self) -> float:
            return peer.clock.time() - 60

    slow = People(replace(peer.ports, clock=Behind()), peer.caller.lite_topics)
    assert [each.query_id for each in await slow.questions()] == ["q1"]
    with pytest.raises(QuestionClosedError):
        await slow.answer("q1", "M", by="ana")
    assert len((await read_question(peer.ports, "q1")).results) == 1


async def test_nobody_answers_as_the_default(peer: Peer) -> None:
    await _ask(peer)
    with pytest.raises(InvalidInputError) as error:
        await _people(peer).answer("q1", "S", by="default")
    assert error.value.field == "by"


async def test_a_question_is_found_by_the_beginning_of_its_id(peer: Peer) -> None:
    await _ask(peer, "abcd")
    await _ask(peer, "abxy")
    people = _people(peer)
    for wrong in ("ab", "zz", ""):
        with pytest.raises(UnknownQuestionError):
            await people.answer(wrong, "S", by="ana")
    await people.answer("abc", "S", by="ana")
    assert [each.query_id for each in await people.questions()] == ["abxy"]


async def test_a_question_is_withdrawn_and_its_asker_and_answerers_are_told(peer: Peer) -> None:
    asked = await _ask(peer)
    waiting = asyncio.create_task(asked.answer())
    await asyncio.sleep(0)
    await asked.withdraw()
    with pytest.raises(UnansweredError):
        await waiting
    with pytest.raises(QuestionClosedError):
        await _people(peer).answer("q1", "S", by="ana")
    assert await _people(peer).questions() == []
    # Asked anew it waits again, and what was said before the end counts no more.
    again = await _ask(peer)
    await _people(peer).answer("q1", "M", by="ana")
    assert (await again.answer()).value == "M"


async def test_asked_anew_within_the_window_of_message_ids_it_takes_an_answer_all_the_same(peer: Peer) -> None:
    asked = await _ask(peer)
    # Does not count, and takes the id of the first answer.
    await _by_hand(peer, "q1", "no", msg_id="q1.answer")
    await asked.withdraw()
    again = await _ask(peer)
    await _people(peer).answer("q1", "M", by="ana")
    assert (await again.answer()).value == "M"


async def test_an_answered_question_is_not_withdrawn(peer: Peer) -> None:
    asked = await _ask(peer)
    await _people(peer).answer("q1", "M", by="ana")
    await asked.withdraw()
    assert (await asked.answer()).value == "M"


async def test_who_follows_sees_what_waits_what_comes_and_what_becomes_of_it(world: World, peer: Peer) -> None:
    await _ask(peer, "old")
    await _people(peer).answer("old", "S", by="ana")
    await _ask(peer, "one")
    news = _people(await world.join("screen")).follow()
    heard = [await anext(news)]
    two = await _ask(peer, "two")
    heard.append(await anext(news))
    await _people(peer).answer("one", "M", by="ben")
    heard.append(await anext(news))
    await two.withdraw()
    heard.append(await anext(news))
    await news.aclose()
    told = [(each.what, each.asked.query_id, each.reply and each.reply.by) for each in heard]
    assert told == [
        ("asked", "one", None),
        ("asked", "two", None),
        ("answered", "one", "ben"),
        ("withdrawn", "two", None),
    ]


async def test_who_listens_for_events_is_told_once(peer: Peer) -> None:
    heard: asyncio.Queue[AgentMessage] = asyncio.Queue()
    subject = peer.subjects.event("people.asked")
    await peer.bus.subscribe(subject, lambda note: heard.put_nowait(AgentMessage.decode(note.data)))
    await _ask(peer)
    async with asyncio.timeout(SOON_S):
        told = (await heard.get()).payload.content
    assert (told["query"], told["kind"], told["message"], told["about"]) == (
        "q1",
        "question",
        "Which size?",
        "run-1",
    )


async def test_a_question_too_large_for_a_message_travels_as_a_claim(peer: Peer) -> None:
    arguments = {"text": "x" * 700_000}
    deadline_ms = Deadline.after(60, peer.clock).at_ms
    question = Question.approval(Proposal("mail.send", arguments, {"type": "object"}), deadline_ms=deadline_ms)
    asked = await put_question(peer.caller, question, "q1")
    [found] = await _people(peer).questions()
    assert found.question.proposal is not None
    assert found.question.proposal.arguments == arguments
    edited = {"text": "y" * 700_000}
    await _people(peer).answer("q1", {"arguments": edited}, by="ana")
    assert (await asked.answer()).arguments == edited


async def test_a_question_has_an_end_that_the_store_can_keep(peer: Peer) -> None:
    with pytest.raises(InvalidInputError) as error:
        await _ask(peer, within_s=LONGEST_QUESTION_S + 60)
    assert error.value.field == "within_s"


# --- approvals ---------------------------------------------------------------------------------------

MAIL = {
    "type": "object",
    "properties": {"to": {"type": "string"}},
    "required": ["to"],
    "additionalProperties": False,
}


async def _ask_approval(peer: Peer) -> Asked:
    deadline_ms = Deadline.after(60, peer.clock).at_ms
    question = Question.approval(Proposal("mail.send", {"to": "ana"}, MAIL), deadline_ms=deadline_ms)
    return await put_question(peer.caller, question, "q1")


async def test_arguments_that_an_answer_edits_are_checked_anew(peer: Peer) -> None:
    asked = await _ask_approval(peer)
    bad = {"arguments": {"to": "ben", "cc": "all"}}
    with pytest.raises(InvalidInputError):
        await _people(peer).answer("q1", bad, by="ana")
    await _by_hand(peer, "q1", {"action": "accept", "content": bad, "by": "a stranger"})
    await _people(peer).answer("q1", {"arguments": {"to": "ben"}}, by="ana")
    reply = await asked.answer()
    assert (reply.arguments, reply.by) == ({"to": "ben"}, "ana")


async def test_an_approval_says_with_which_arguments_and_whether_for_all(peer: Peer) -> None:
    asked = await _ask_approval(peer)
    await _people(peer).answer("q1", {"always": True}, by="ana")
    reply = await asked.answer()
    assert (reply.accepted, reply.always, reply.arguments) == (True, True, {"to": "ana"})


async def test_a_refusal_carries_its_reason(peer: Peer) -> None:
    asked = await _ask_approval(peer)
    await _people(peer).answer("q1", "not on a Friday", action="decline", by="ana")
    reply = await asked.answer()
    assert (reply.accepted, reply.always, reply.reason) == (False, False, "not on a Friday")


# --- handlers ----------------------------------------------------------------------------------------


class Shop(Agent):
    """Asks people what it does not know."""

    name = "shop"
    runs = 0

    @topic("shop.order", run_timeout_s=3600)
    async def order(self, ctx: Context) -> list[Any]:
        """Order something."""
        Shop.runs += 1
        size, colour = await asyncio.gather(
            ctx.ask_person("Which size?", schema=SIZES), ctx.ask_person("Which colour?", default="red")
        )
        return [size.value, colour.value, size.by]

    @topic("shop.sync", run_timeout_s=3600)
    def order_in_a_thread(self, ctx: Context) -> Any:
        """Order something."""
        return ctx.sync.ask_person("Which colour?").value

    @topic("shop.sell", run_timeout_s=3600)
    async def sell(self, ctx: Context) -> Any:
        """Sell something."""
        reply = await ctx.ask_approval("shop.order", {"n": 1}, why="It costs money.")
        return [reply.action, reply.arguments, reply.reason]

    @topic("shop.twice", run_timeout_s=3600)
    async def twice(self, ctx: Context) -> list[Any]:
        """Ask the same twice, and one of them last in another attempt."""
        order = ["A?", "B?", "A?"] if ctx.attempt == 1 else ["A?", "A?", "B?"]
        replies = [await ctx.ask_person(each) for each in order]
        if ctx.attempt == 1:
            raise RuntimeError("the first attempt fails")
        return [reply.value for reply in replies]

    @topic("shop.unanswered", run_timeout_s=3600)
    async def unanswered(self, ctx: Context) -> Any:
        """Nobody answers."""
        return (await ctx.ask_person("Anybody?", within_s=1)).value

    @topic("shop.moody", run_timeout_s=3600)
    async def moody(self, ctx: Context) -> Any:
        """Give up waiting."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await ctx.ask_person("Anybody?")
        return "went on without"


async def _answer_all(peer: Peer, count: int, answer: Callable[[OpenQuestion], Any]) -> None:
    for each in await _waiting(peer, count):
        await _people(peer).answer(each.query_id, answer(each), by="ana")


async def test_a_handler_asks_two_questions_at_once_and_gets_the_answer_to_each(peer: Peer, serve: Serve) -> None:
    await serve(Shop())
    handle = await peer.caller.submit("shop.order", None, AskOptions(within_s=600))
    await _answer_all(peer, 2, lambda each: "M" if "size" in each.question.message else "blue")
    assert (await handle.outcome()).unwrap() == ["M", "blue", "ana"]


async def test_a_plain_handler_asks_from_its_thread(peer: Peer, serve: Serve) -> None:
    await serve(Shop())
    handle = await peer.caller.submit("shop.sync", None, AskOptions(within_s=600))
    await _answer_all(peer, 1, lambda _: "green")
    assert (await handle.outcome()).unwrap() == "green"


async def test_a_handler_asks_for_approval(peer: Peer, serve: Serve) -> None:
    await serve(Shop())
    handle = await peer.caller.submit("shop.sell", None, AskOptions(within_s=600))
    [asked] = await _waiting(peer)
    assert asked.question.message == "May shop.order be called? It costs money."
    await _people(peer).answer(asked.query_id, "too dear", action="decline", by="ana")
    assert (await handle.outcome()).unwrap() == ["decline", None, "too dear"]


async def test_a_second_attempt_finds_its_questions_again_in_whatever_order_it_asks(
    peer: Peer, serve: Serve
) -> None:
    await serve(Shop())
    handle = await peer.caller.submit("shop.twice", None, AskOptions(within_s=600))
    given = []
    for text in ("first", "second", "third"):
        [asked] = await _waiting(peer)
        given.append((asked.question.message, text))
        await _people(peer).answer(asked.query_id, text, by="ana")
    assert [message for message, _ in given] == ["A?", "B?", "A?"]
    # Nobody is asked anew.
    assert (await handle.outcome()).unwrap() == ["first", "third", "second"]


async def test_a_question_that_nobody_answers_fails_the_task_at_once(peer: Peer, serve: Serve) -> None:
    await serve(Shop())
    outcome = await peer.caller.ask("shop.unanswered", None, AskOptions(within_s=600))
    assert (outcome.kind, outcome.attempt, outcome.details["type"]) == ("failed", 1, "UnansweredError")


async def test_a_question_is_withdrawn_when_its_task_has_ended_without_the_answer(
    peer: Peer, serve: Serve
) -> None:
    await serve(Shop())
    outcome = await peer.caller.ask("shop.moody", None, AskOptions(within_s=600))
    assert outcome.unwrap() == "went on without"
    assert await _people(peer).questions() == []


class _StuckCaller(Caller):
    """Tells nobody of a question, and does not come back from it."""

    async def publish_durable(self, topic: str, content: Any, **options: Any) -> int:
        await asyncio.Event().wait()
        return 0


async def test_a_question_that_is_cut_off_right_after_it_was_stored_is_withdrawn_as_well(peer: Peer) -> None:
    stuck = _StuckCaller(peer.ports, peer.registry)
    questions = TurnQuestions(stuck, AgentMessage.new("task", AgentIdentity(id="x"), None))
    asking = asyncio.create_task(questions.ask(_question(peer)))
    await _waiting(peer)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await questions.withdraw()
    assert await _people(peer).questions() == []


async def test_cancelling_a_task_withdraws_its_questions_and_no_others(peer: Peer, serve: Serve) -> None:
    await serve(Shop())
    await _ask(peer, "other")
    handle = await peer.caller.submit("shop.order", None, AskOptions(within_s=600))
    await _waiting(peer, 3)
    assert (await handle.cancel()).kind == "cancelled"
    assert [each.query_id for each in await _people(peer).questions()] == ["other"]


async def test_cancelling_a_task_that_nobody_runs_any_more_withdraws_what_it_asked(
    peer: Peer, serve: Serve
) -> None:
    replica = await serve(Shop())
    handle = await peer.caller.submit("shop.order", None, AskOptions(within_s=600))
    await _waiting(peer, 2)
    await replica.pump.aclose()
    assert len(await _people(peer).questions()) == 2
    assert (await handle.cancel()).kind == "cancelled"
    assert await _people(peer).questions() == []


async def test_a_drained_turn_leaves_its_questions_to_who_takes_over(peer: Peer, serve: Serve) -> None:
    Shop.runs = 0
    first = await serve(Shop(), name="first")
    handle = await peer.caller.submit("shop.order", None, AskOptions(within_s=600))
    before = await _waiting(peer, 2)
    await first.pump.aclose()
    assert await _waiting(peer, 2) == before
    await _answer_all(peer, 2, lambda each: "M" if "size" in each.question.message else "blue")
    await serve(Shop(), name="second")
    assert (await handle.outcome()).unwrap() == ["M", "blue", "ana"]
    assert Shop.runs == 2

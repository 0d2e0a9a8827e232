"""The closed loop: dispatch in parallel, gather, reason again, survive failures, limits and crashes."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.mind import with_unique_ids
from squadron.actors.runs.references import BadReferenceError, Results, at_pointer, call_id
from squadron.actors.runs.telling import SHOWN_CHARS
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.fence import CARD
from squadron.actors.thinking.model import (
    ChatMessage,
    Model,
    ModelRequest,
    ModelTurn,
    ToolCall,
    ToolDefinition,
    Usage,
)
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ModelError, Retry, SupersededError, Terminal
from squadron.runtime.running.context import TurnContext
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.outcome import Answer, Failed, Outcome, Rejected, Result
from squadron.runtime.wire.topics import SemanticTopic
from squadron.testing import MemorySquad
from squadron.testing.scripted_model import ScriptedModel, ScriptedTurn

Turn = ScriptedTurn


class Squad(MemorySquad):
    """One that pursues goals."""

    @property
    def client(self) -> Caller:
        return self._wiring.caller

    async def pursue(self, goal: str = "count the words", ask: AskOptions | None = None, **fields: Any) -> Outcome:
        return await self.client.ask("goal.pursue", {"goal": goal, **fields}, ask or AskOptions(within_s=20))


@pytest.fixture
async def squad() -> AsyncIterator[Squad]:
    async with Squad() as made:
        yield made


class Scripted(Supervisor):
    """The supervisor, with a script for a mind."""

    name = "supervisor"

    def __init__(self, *turns: Turn) -> None:
        self.model: Any = ScriptedModel(turns)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model  # type: ignore[no-any-return]


class Words(Agent):
    """Does things with words."""

    def __init__(self, *, together: int = 1) -> None:
        self.asked: Counter[str] = Counter()
        self.called = asyncio.Event()
        self._barrier = asyncio.Barrier(together)

    @topic("words.split", tags=["count"])
    async def split(self, text: str) -> list[dict[str, str]]:
        """Split a text into words."""
        return [{"word": word} for word in text.split()]

    @topic("words.length", tags=["count"])
    async def length(self, word: str) -> int:
        """How long a word is; waits for as many other calls as it was told."""
        self.asked[word] += 1
        self.called.set()
        await self._barrier.wait()
        if word == "bad":
            raise Terminal("I don't like this word")
        return len(word)

    @topic("words.judge", tags=["count"])
    async def judge(self, word: str) -> Answer:
        """Whether a word is nice, and how sure that is."""
        return Answer({"nice": True}, confidence=0.75, reasoning="it sounds\nnice")

    @topic("words.hang", tags=["count"])
    async def hang(self, text: str) -> None:
        """Never counts to the end."""
        await asyncio.Event().wait()


class Weather(Agent):
    """Knows the sky."""

    @topic("sky.forecast", tags=["weather"])
    async def forecast(self, city: str) -> str:
        """Tell tomorrow's weather of a city."""
        return f"rain in {city}"


def call(id: str, name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id, name, arguments)


def turn(*calls: ToolCall, text: str = "", tokens: int = 0) -> ModelTurn:
    return ModelTurn(text, calls, Usage(tokens))


def finish(answer: Any = "done", **deliverables: Any) -> ModelTurn:
    return turn(call("end", "finish", answer=answer, deliverables=deliverables))


def answers(seen: Sequence[ChatMessage]) -> dict[str, ChatMessage]:
    return {message.tool_call_id: message for message in seen if message.role == "tool"}


def fenced(message: ChatMessage) -> str:
    """What stands in the fence of a result."""
    found = re.search(r"<(untrusted-[0-9a-f]{8})>\n(.*?)\n</\1>", message.content, re.DOTALL)
    assert found is not None, message.content
    return found[2]


def last_answers(supervisor: Scripted) -> dict[str, ChatMessage]:
    return answers(supervisor.model.seen[-1].messages)


def report_of(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Result), outcome
    return dict(outcome.data)


# -- the loop


async def test_calls_of_a_turn_and_tasks_of_a_for_each_all_run_at_once(squad: Squad) -> None:
    # Given an agent that answers nobody before five are there
    await squad.deploy(Words(together=5))
    fan_out = call(
        "b", "for_each", topic="words__length", items=["x", "yy", "zzz"], arguments={"word": {"$item": ""}}
    )
    calls = [call("a", "words__length", word="one"), fan_out, call("c", "words__length", word="three")]
    await squad.deploy(Scripted(turn(*calls), finish(a={"$from": "a"}, b={"$from": "b"}, c={"$from": "c"})))

    report = report_of(await squad.pursue())

    assert report["deliverables"] == {"a": 3, "b": [1, 2, 3], "c": 5}
    assert report["tasks"] == {"dispatched": 5, "outcomes": {"result": 5}}
    assert report["stopped"] == "finished"
    assert report["rounds"] == 2


async def test_over_no_items_a_for_each_comes_to_an_empty_list(squad: Squad) -> None:
    supervisor = Scripted(
        turn(call("all", "for_each", topic="words__length", items=[])), finish(all={"$from": "all"})
    )
    await squad.deploy(Words())
    await squad.deploy(supervisor)
    assert report_of(await squad.pursue())["deliverables"] == {"all": []}
    assert fenced(last_answers(supervisor)["all"]) == "[]"


async def test_results_are_passed_on_by_reference(squad: Squad) -> None:
    words = Words()
    await squad.deploy(words)

    def pass_on(request: ModelRequest) -> ModelTurn:
        shown = re.search(r"call (r1c1-[0-9a-f]+):", answers(request.messages)["s"].content)
        assert shown is not None
        return turn(
            call(
                "n", "for_each", topic="words.length", items={"$from": "s"}, arguments={"word": {"$item": "/word"}}
            ),
            call("d", "for_each", topic="words__length", items={"$from": shown[1]}),
            # As text it counts only with the id that has the nonce of the run.
            call("t", "words__length", word=json.dumps({"$from": f"{shown[1]}#/0/word"})),
            call("q", "words__length", word='{"$from": "s#/0/word"}'),
        )

    supervisor = Scripted(
        turn(call("s", "words__split", text="actors do not share")),
        pass_on,
        finish({"$from": "s#/3/word"}, sizes={"$from": "n"}, same={"all": [{"$from": "d"}, {"$from": "n#/0"}]}),
    )
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue())

    assert report["answer"] == "share"
    assert report["deliverables"] == {"sizes": [6, 2, 3, 5], "same": {"all": [[6, 2, 3, 5], 6]}}
    assert words.asked["actors"] == 3
    assert words.asked['{"$from": "s#/0/word"}'] == 1
    assert json.loads(fenced(last_answers(supervisor)["n"])) == [6, 2, 3, 5]


async def test_a_for_each_over_nothing_comes_to_an_empty_list(squad: Squad) -> None:
    await squad.deploy(Words())
    supervisor = Scripted(turn(call("n", "for_each", topic="words__length", items=[])), finish(n={"$from": "n"}))
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue())

    assert report["deliverables"] == {"n": []}
    assert fenced(last_answers(supervisor)["n"]) == "[]"


async def test_failures_are_told_to_the_model_and_the_run_goes_on(squad: Squad) -> None:
    await squad.deploy(Words())
    items = [{"word": "good"}, {"word": "bad"}, {}]
    supervisor = Scripted(
        turn(
            call("bad", "words__length", word="bad"),
            call("schema", "words__length", words="x"),
            call("ref", "words__length", word={"$from": "later"}),
            call("tool", "words__sing", word="x"),
            ToolCall("json", "words__length", problem="the arguments are not valid JSON"),
            ToolCall("end", "finish", problem="the arguments are not valid JSON"),
            call("items", "for_each", topic="words__length", items="many"),
            call("no", "for_each", topic="words__sing", items=[]),
            call("part", "for_each", topic="words__length", items=items, arguments={"word": {"$item": "/word"}}),
            call("none", "for_each", topic="words__length", items=["bad"], arguments={"word": {"$item": ""}}),
        ),
        turn(call("again", "words__length", word={"$from": "bad"}), call("x", "finish", answer={"$from": "?"})),
        finish(part={"$from": "part"}),
    )
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue())

    first = answers(supervisor.model.seen[1].messages)
    assert {id for id, message in first.items() if message.is_error} == set(first) - {"part"}
    assert " ended as failed:\n" in first["bad"].content
    assert fenced(first["bad"]) == "I don't like this word"
    assert "rejected" in first["schema"].content
    assert "takes word: string" in first["schema"].content
    assert "no call has a result yet" in first["ref"].content
    assert "offered are discover_topics, for_each," in first["tool"].content
    assert "words__length" in first["tool"].content
    assert "not valid JSON" in first["json"].content
    assert "not valid JSON" in first["end"].content
    assert "field 'items" in first["items"].content
    assert "1 of 3 items without failure" in first["part"].content
    second = last_answers(supervisor)
    assert "call 'bad' has no result: failed: I don't like this word" in second["again"].content
    assert "known are " in second["x"].content
    assert "'r1c9-" in second["x"].content
    assert report["deliverables"]["part"][0] == 4
    assert report["deliverables"]["part"][1] == {
        "failed": "failed",
        "reason": "I don't like this word",
        "input": {"word": "bad"},
    }
    assert report["deliverables"]["part"][2]["failed"] == "rejected"
    assert report["tasks"] == {"dispatched": 6, "outcomes": {"failed": 3, "rejected": 2, "result": 1}}


async def test_confidence_and_reasoning_reach_the_model(squad: Squad) -> None:
    await squad.deploy(Words())
    supervisor = Scripted(turn(call("j", "words__judge", word="x")), finish())
    await squad.deploy(supervisor)

    await squad.pursue()

    told = last_answers(supervisor)["j"].content
    assert re.match("Result of words.judge, call r1c1-[0-9a-f]{6}, confidence 0.75:\n<untrusted-", told)
    assert json.loads(fenced(last_answers(supervisor)["j"])) == {"nice": True}
    assert re.search("\nIts reasons:\n<(untrusted-[0-9a-f]{8})>\nit sounds\nnice\n</\\1>$", told)


async def test_a_long_result_is_cut_for_the_model_and_whole_by_reference(squad: Squad) -> None:
    await squad.deploy(Words())
    text = "word " * 2000
    supervisor = Scripted(turn(call("s", "words__split", text=text)), finish(all={"$from": "s"}))
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue())

    shown = last_answers(supervisor)["s"].content
    assert len(shown) < SHOWN_CHARS + 500
    assert "a list of 2000 items, the first is an object with the keys 'word'" in shown
    assert f'{{"$from": "{report["calls"][0]["id"]}"}}' in shown
    assert len(report["deliverables"]["all"]) == 2000


async def test_a_turn_without_calls_is_the_answer(squad: Squad) -> None:
    await squad.deploy(Scripted(turn(text="42")))

    report = report_of(await squad.pursue())

    assert (report["answer"], report["stopped"], report["rounds"]) == ("42", "finished", 1)


# -- which topics are offered


async def test_topics_are_offered_by_intent_and_never_its_own(squad: Squad) -> None:
    await squad.deploy(Words())
    await squad.deploy(Weather())
    supervisor = Scripted(finish())
    await squad.deploy(supervisor)

    await squad.pursue("pursue the goal to count the words, plan and delegate")

    tools: tuple[ToolDefinition, ...] = supervisor.model.seen[0].tools
    names = [tool.name for tool in tools]
    built_in = list(BUILT_IN)
    assert names[: len(built_in)] == built_in
    assert set(names[len(built_in) :]) == {"words__split", "words__length", "words__judge", "words__hang"}
    split = next(tool for tool in tools if tool.name == "words__split")
    assert split.description == CARD.around("Split a text into words.\nTags: count")
    assert list(split.input_schema["properties"]) == ["text"]


async def test_discover_topics_adds_what_it_finds(squad: Squad) -> None:
    await squad.deploy(Words())
    await squad.deploy(Weather())
    supervisor = Scripted(
        turn(call("early", "sky__forecast", city="Kiel"), call("d", "discover_topics", intent="weather tomorrow")),
        turn(call("f", "sky__forecast", city="Kiel")),
        finish(f={"$from": "f"}),
    )
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue())

    assert answers(supervisor.model.seen[1].messages)["early"].is_error
    assert '"tool": "sky__forecast"' in answers(supervisor.model.seen[1].messages)["d"].content
    assert report["deliverables"] == {"f": "rain in Kiel"}


async def test_topics_can_be_limited_to_names_and_patterns(squad: Squad) -> None:
    await squad.deploy(Words())
    await squad.deploy(Weather())
    supervisor = Scripted(turn(call("d", "discover_topics", intent="split a text, count words")), finish())
    await squad.deploy(supervisor)

    await squad.pursue("count the words", topics=["sky.*", "words.length"])

    offered = {tool.name for tool in supervisor.model.seen[1].tools}
    assert offered == {"words__length", "sky__forecast", *BUILT_IN}


async def test_a_malformed_pattern_is_rejected_with_its_place(squad: Squad) -> None:
    await squad.deploy(Scripted(finish()))

    outcome = await squad.pursue(topics=["ok.ok", "not a topic"])

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == "topics.1"


def test_tool_names_fit_providers_and_stay_unique() -> None:
    long = SemanticTopic(name=f"{'d' * 64}.{'s' * 64}")
    one, other = SemanticTopic(name="a__b.c"), SemanticTopic(name="a.b__c")
    box = Toolbox()

    box.offer([long, one, other])

    names = [each.definition.name for each in box.offered]
    assert len(set(names)) == 3
    assert all(len(name) <= 64 for name in names)
    assert [box.find(name).topic.name for name in names] == [long.name, "a__b.c", "a.b__c"]
    assert box.find("a.b__c").topic == other
    # A family can't be called, and what is offered is not offered again.
    assert box.fitting([SemanticTopic(name="family.*"), other, SemanticTopic(name="new.one")]) == [
        SemanticTopic(name="new.one")
    ]
    box.offer([other, long, one])
    assert [each.definition.name for each in box.offered] == names


# -- limits


async def test_the_limit_of_rounds_ends_in_a_report_with_what_was_gathered(squad: Squad) -> None:
    await squad.deploy(Words())
    await squad.deploy(Scripted(*(turn(call(f"c{n}", "words__length", word="x" * n)) for n in range(1, 9))))

    report = report_of(await squad.pursue(max_rounds=3))

    assert (report["stopped"], report["rounds"]) == ("rounds", 3)
    assert report["deliverables"] == {call_id(report["run"], n, 0): n for n in (1, 2, 3)}
    assert "3 results gathered" in report["answer"]


async def test_a_stuck_call_leaves_time_to_reason_again(squad: Squad) -> None:
    await squad.deploy(Words())
    supervisor = Scripted(
        turn(call("h", "words__hang", text="x"), call("l", "words__length", word="x")), finish("without it")
    )
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue(within_s=10.0))

    assert report["answer"] == "without it"
    assert re.match(r"Call r1c1-[0-9a-f]{6} ended as timed_out:", last_answers(supervisor)["h"].content)
    assert report["tasks"]["outcomes"] == {"timed_out": 1, "result": 1}


class _Asleep(ScriptedModel):
    async def think(self, *args: Any, **options: Any) -> ModelTurn:
        if self.seen:
            await asyncio.Event().wait()
        return await super().think(*args, **options)


async def test_the_limit_of_time_ends_in_a_report_with_what_was_gathered(squad: Squad) -> None:
    await squad.deploy(Words())
    supervisor = Scripted()
    supervisor.model = _Asleep([turn(call("l", "words__length", word="four"))])
    await squad.deploy(supervisor)

    # The caller's own deadline counts as well, and the report arrives before it.
    report = report_of(await squad.pursue(within_s=300, ask=AskOptions(within_s=10.0)))

    assert report["stopped"] == "time"
    assert report["deliverables"] == {call_id(report["run"], 1, 0): 4}


async def test_the_budget_of_tokens_ends_in_a_report(squad: Squad) -> None:
    await squad.deploy(Words())
    one = turn(call("l", "words__length", word="four"), tokens=9_000)
    supervisor = Scripted(one, finish("never asked for"))
    await squad.deploy(supervisor)

    outcome = await squad.pursue(ask=AskOptions(within_s=20, budget=Budget(tokens=10_000)))

    report = report_of(outcome)
    assert report["stopped"] == "budget"
    assert report["deliverables"] == {call_id(report["run"], 1, 0): 4}
    assert report["tokens"] == outcome.tokens == 9_000
    # A call that can't be paid is not made.
    assert len(supervisor.model.seen) == 1


# -- the model's troubles


class _Moody(ScriptedModel):
    def __init__(self, turns: Sequence[Turn], *, refusals: int, retryable: bool) -> None:
        super().__init__(turns)
        self.refusals, self.retryable = refusals, retryable

    async def think(self, *args: Any, **options: Any) -> ModelTurn:
        if self.refusals:
            self.refusals -= 1
            raise ModelError("overloaded", kind="passing" if self.retryable else "request")
        return await super().think(*args, **options)


@pytest.mark.parametrize(
    ("refusals", "retryable", "kind", "left"),
    [(2, True, "result", 0), (9, True, "failed", 6), (1, False, "failed", 0)],
)
async def test_a_passing_problem_of_the_model_is_waited_out_and_a_lasting_one_told(
    squad: Squad, refusals: int, retryable: bool, kind: str, left: int
) -> None:
    supervisor = Scripted()
    supervisor.model = _Moody([finish()], refusals=refusals, retryable=retryable)
    await squad.deploy(supervisor)

    handle = await squad.client.submit("goal.pursue", {"goal": "count the words"}, AskOptions(within_s=20))
    events = [event async for event in handle.chunks()]
    outcome = await handle.outcome()

    assert outcome.kind == kind
    assert supervisor.model.refusals == left
    assert outcome.ok or "overloaded" in outcome.reason
    failed = [event for event in events if event["event"] == "try_failed"]
    assert [event["number"] for event in failed] == list(range(1, refusals - left + 1))
    assert all(event["model"] == "scripted:test" and "overloaded" in event["reason"] for event in failed)


async def test_a_model_that_fails_for_good_after_a_turn_ends_the_run_with_all_that_was_gathered(
    squad: Squad,
) -> None:
    await squad.deploy(Words())
    supervisor = Scripted()
    supervisor.model = _Moody([turn(call("l", "words__length", word="four"))], refusals=0, retryable=False)
    await squad.deploy(supervisor)

    # The script is over after the first turn, which no patience mends.
    report = report_of(await squad.pursue())

    assert (report["stopped"], report["rounds"]) == ("model", 1)
    assert report["deliverables"] == {call_id(report["run"], 1, 0): 4}
    assert "the script is over" in report["answer"]


async def test_a_model_without_a_key_fails_with_the_way_out(squad: Squad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    await squad.deploy(Supervisor())

    outcome = await squad.pursue(ask=AskOptions(within_s=20, model="openai:gpt-x"))

    assert isinstance(outcome, Failed)
    assert "OPENAI_API_KEY" in outcome.reason


def test_call_ids_that_come_twice_are_told_apart() -> None:
    twice = turn(call("call_0", "x"), call("call_0", "y"), call("", "z"), call("a#b", "w"))

    ids = [one.id for one in with_unique_ids(twice, {"call_0", "call_0-2"}).tool_calls]

    assert ids == ["call_0-3", "call_0-4", "call", "a_b"]


# -- what is told meanwhile


async def test_progress_is_emitted_in_order_and_kept_in_the_timeline(squad: Squad) -> None:
    await squad.deploy(Words())
    fan_out = call("f", "for_each", topic="words__length", items=["a", "bad"], arguments={"word": {"$item": ""}})
    await squad.deploy(Scripted(turn(fan_out, text="let me see", tokens=7), finish()))

    handle = await squad.client.submit("goal.pursue", {"goal": "count the words"}, AskOptions(within_s=20))
    events = [event async for event in handle.chunks()]

    kinds = [event["event"] for event in events]
    assert kinds == [
        "started",
        "offered",
        "text",
        "thought",
        "dispatched",
        "outcome",
        "outcome",
        "thought",
        "finished",
    ]
    assert all(event["at_s"] >= 0 for event in events)
    started, offered, text, thought, dispatched, *outcomes = events[:7]
    assert started["model"] == "scripted:test"
    assert "words.length" in offered["topics"]
    assert text["delta"] == "let me see"
    assert (thought["round"], thought["text"], thought["tokens"]) == (1, "let me see", 7)
    assert thought["model"] == "scripted:test"
    assert (dispatched["topic"], dispatched["tasks"]) == ("words.length", 2)
    assert {event["kind"]: event.get("reason") for event in outcomes} == {
        "result": None,
        "failed": "I don't like this word",
    }
    assert {event["source"] for event in outcomes} == {"words-1"}
    report = report_of(await squad.client.outcome(handle))
    id = call_id(report["run"], 1, 0)
    assert started["run"] == report["run"]
    assert dispatched["call"] == id
    assert {event["task_id"] for event in outcomes} == {f"{report['run']}-{id}-0", f"{report['run']}-{id}-1"}
    assert report["timeline"] == [event for event in events if event["event"] != "text"]
    (told,) = report["calls"]
    assert (told["id"], told["round"], told["topic"], told["tasks"]) == (id, 1, "words.length", 2)
    assert told["outcomes"] == {"result": 1, "failed": 1}
    assert 0 <= told["started_s"] <= told["ended_s"] <= report["seconds"]


# -- another attempt takes over


class _CrashError(Retry):
    pass


def crash(*_: object) -> ModelTurn:
    raise _CrashError("the supervisor's replica dies here")


async def test_a_second_attempt_asks_the_model_nothing_twice_and_runs_no_task_twice(
    squad: Squad, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that an outcome which is stored already is found only by who looks before waiting
    monkeypatch.setattr("squadron.runtime.asking.caller.FIRST_LOOK_S", 60.0)
    words = Words()
    await squad.deploy(words)
    fan_out = call("f", "for_each", topic="words__length", items=["a", "bb"], arguments={"word": {"$item": ""}})
    first, second = turn(fan_out, tokens=5), turn(call("l", "words__length", word="ccc"), tokens=5)
    supervisor = Scripted(first, second, crash, finish(f={"$from": "f"}, l={"$from": "l"}))
    await squad.deploy(supervisor)

    outcome = await squad.pursue()

    report = report_of(outcome)
    # It came further, so that it had to be begun again does not count against it.
    assert (outcome.attempt, report["attempts"]) == (1, 2)
    assert report["deliverables"] == {"f": [1, 2], "l": 3}
    assert words.asked == {"a": 1, "bb": 1, "ccc": 1}
    assert report["seconds"] < 5
    assert len(supervisor.model.seen) == 4
    # What the model is shown after the crash is what it would have been shown without.
    assert supervisor.model.seen[3].messages == supervisor.model.seen[2].messages
    # The call whose end nobody heard is charged as it was estimated.
    assert report["tokens"] > 10
    assert [event["event"] for event in report["timeline"]].count("thought") == 3
    assert [event["attempt"] for event in report["timeline"] if event["event"] == "resumed"] == [2]


async def test_a_task_still_under_way_after_a_crash_is_waited_for_and_not_sent_again(
    squad: Squad, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a duplicate window that is over before the crash, as it is for a task of many minutes
    monkeypatch.setattr("squadron.bridge.memory.common.DUPLICATE_WINDOW_S", 0.0)
    monkeypatch.setattr("squadron.runtime.asking.caller.FIRST_LOOK_S", 0.01)
    words = Words(together=2)
    await squad.deploy(words)
    one = turn(call("slow", "words__length", word="slow"))
    first = Scripted(one)
    await squad.deploy(first)
    handle = await squad.client.submit("goal.pursue", {"goal": "count the words"}, AskOptions(within_s=20))
    await words.called.wait()
    # And it has noted that it was sent: all that can run runs before this second is over
    await asyncio.sleep(1)
    # When its replica dies and another takes over
    await squad.kill("supervisor")
    second = Scripted(finish(slow={"$from": "slow"}))
    await squad.deploy(second)
    async for event in handle.chunks():
        if event["event"] == "resumed":
            break
    # And only then the task comes to its end
    await squad.client.ask("words.length", {"word": "other"})

    report = report_of(await squad.client.outcome(handle))

    assert report["deliverables"] == {"slow": 4}
    assert words.asked["slow"] == 1
    assert len(first.model.seen) == len(second.model.seen) == 1


async def test_of_two_attempts_at_once_the_older_one_stops(squad: Squad) -> None:
    # Given an attempt that lost its lease while its model was thinking
    words = Words()
    await squad.deploy(words)
    thinking, go_on = asyncio.Event(), asyncio.Event()
    slow = Scripted(turn(call("mine", "words__length", word="mine")), finish("mine"))
    script = slow.model.think

    async def think(*args: Any, **options: Any) -> ModelTurn:
        thinking.set()
        await go_on.wait()
        return await script(*args, **options)  # type: ignore[no-any-return]

    slow.model.think = think
    message = AgentMessage.new("task", AgentIdentity(id="client"), {"goal": "count the words"}, id="m1")
    slow_run = asyncio.create_task(slow.pursue(_context(squad, message, 1), "count the words"))
    await thinking.wait()
    # When another attempt is done before it
    quick = Scripted(turn(call("yours", "words__length", word="yours")), finish("yours"))
    report = await quick.pursue(_context(squad, message, 2), "count the words")
    go_on.set()

    with pytest.raises(SupersededError):
        await slow_run

    assert (report.answer, report.attempts) == ("yours", 2)
    assert words.asked == {"yours": 1}
    # It paid for the answer that it was waiting for, and for nothing more.
    assert (len(slow.model.seen), len(quick.model.seen)) == (1, 2)


async def test_a_goal_that_was_put_back_goes_on_in_the_same_run_and_keeps_what_was_done(squad: Squad) -> None:
    words = Words()
    await squad.deploy(words)
    reports = []
    for redriven in (0, 1, 2):
        # Given that it ends at its limit of rounds each time
        supervisor = Scripted(turn(call("l", "words__length", word="a" * (redriven + 1))))
        message = AgentMessage.new(
            "task",
            AgentIdentity(id="client"),
            {"goal": "count the words"},
            id="m1",
            metadata={"redriven": redriven} if redriven else None,
        )
        reports.append(await supervisor.pursue(_context(squad, message, 2), "count the words", max_rounds=1))
        assert len(supervisor.model.seen) == 1

    assert len({report.run for report in reports}) == 1
    assert [report.rounds for report in reports] == [1, 2, 3]
    assert list(reports[-1].deliverables.values()) == [1, 2, 3]
    assert words.asked == {"a": 1, "aa": 1, "aaa": 1}


def _context(squad: Squad, message: AgentMessage, attempt: int) -> TurnContext:
    turns = Turns("supervisor", [], squad.client)
    common = {"topic": "goal.pursue", "attempt": attempt}
    lite_key = squad.client.ports.subjects.lite("client", message.id)
    return turns._context(message, common, lite_key, Ledger(Budget()))


# -- references


@pytest.mark.parametrize(
    ("pointer", "value"),
    [("", {"a/b": [1, {"~": 2}], "": 3}), ("/a~1b/1/~0", 2), ("/", 3), ("/a~1b/0", 1)],
)
def test_json_pointers_are_rfc_6901(pointer: str, value: Any) -> None:
    assert at_pointer({"a/b": [1, {"~": 2}], "": 3}, pointer) == value


@pytest.mark.parametrize("pointer", ["a", "/x", "/a/01", "/a/-", "/a/2", "/a/-1", "/a/0/0", "/a/²"])
def test_a_pointer_that_leads_nowhere_says_what_is_there(pointer: str) -> None:
    with pytest.raises(BadReferenceError, match=r"must be empty or begin|leads nowhere: at .* there is"):
        at_pointer({"a": [0, 1]}, pointer)


def test_what_a_reference_puts_in_is_data_and_not_searched_again() -> None:
    results = Results("run-1")
    results.keep("evil", {"$from": "secret"})
    results.keep("secret", 1)

    assert results.fill({"x": [{"$from": "evil"}]}) == {"x": [{"$from": "secret"}]}
    assert results.fill({"$item": ""}, item={"$from": "secret"}) == {"$from": "secret"}


@pytest.mark.parametrize(
    "plain", ["$from", "{not json}", '{"$from": "a", "b": 1}', {"$from": "a", "b": 1}, None, 3]
)
def test_what_only_looks_like_a_reference_stays(plain: Any) -> None:
    assert Results("run-1").fill(plain) == plain


def test_item_has_no_meaning_outside_for_each() -> None:
    with pytest.raises(BadReferenceError, match="for_each"):
        Results("run-1").fill({"$item": ""})


# -- runs that ended, and go on


@pytest.mark.parametrize("stop", ["length", "overflow"])
async def test_an_answer_that_is_cut_off_is_said_to_be(squad: Squad, stop: Any) -> None:
    await squad.deploy(Scripted(ModelTurn("I was about to", stop=stop)))

    report = report_of(await squad.pursue())

    assert (report["stopped"], report["answer"]) == ("length", "I was about to")


async def test_a_run_that_ended_goes_on_in_another_task_with_new_limits(squad: Squad) -> None:
    words = Words()
    await squad.deploy(words)
    await squad.deploy(Scripted(turn(call("l", "words__length", word="four")), finish("never")))
    first = report_of(await squad.pursue(max_rounds=1))
    await squad.deploy(Scripted(finish("now", l={"$from": "l"})))

    report = report_of(await squad.pursue(resume=first["run"]))

    assert (first["stopped"], report["stopped"]) == ("rounds", "finished")
    assert (report["run"], report["rounds"], report["deliverables"]) == (first["run"], 2, {"l": 4})
    assert words.asked == {"four": 1}


@pytest.mark.parametrize(
    ("last", "role"),
    [
        (ModelTurn("I was about to", stop="length"), "user"),
        (turn(call("f", "finish", answer="no way", achieved=False)), "tool"),
    ],
)
async def test_a_run_that_ended_with_an_answer_is_asked_to_go_on(squad: Squad, last: ModelTurn, role: str) -> None:
    await squad.deploy(Scripted(last))
    first = report_of(await squad.pursue())
    supervisor = Scripted(finish("whole"))
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue(resume=first["run"]))

    assert report["answer"] == "whole"
    told = supervisor.model.seen[0].messages[-1]
    assert told.role == role
    assert f"o on: the run had ended: {first['stopped']}" in told.content


async def test_a_run_that_there_is_not_can_not_go_on(squad: Squad) -> None:
    await squad.deploy(Scripted(finish()))

    missing = await squad.pursue(resume=f"run-{0:024x}")
    wrong = await squad.pursue(resume="that one")

    assert isinstance(missing, Failed)
    assert "there is no run 'run-000" in missing.reason
    assert isinstance(wrong, Rejected)
    assert wrong.details["field"] == "resume"


async def test_a_run_that_is_under_way_is_left_to_its_task(squad: Squad) -> None:
    words = Words(together=2)
    await squad.deploy(words)
    await squad.deploy(Scripted(turn(call("l", "words__length", word="four")), finish(l={"$from": "l"})))
    handle = await squad.client.submit("goal.pursue", {"goal": "count the words"}, AskOptions(within_s=60))
    run = next(iter([event["run"] async for event in _until(handle.chunks(), "dispatched") if "run" in event]))

    other = await squad.pursue(resume=run)
    await squad.client.ask("words.length", {"word": "other"})

    assert isinstance(other, Failed)
    assert "is still under way" in other.reason
    assert report_of(await handle.outcome())["deliverables"] == {"l": 4}


async def _until(events: AsyncIterator[dict[str, Any]], last: str) -> AsyncIterator[dict[str, Any]]:
    async for event in events:
        yield event
        if event["event"] == last:
            return


@pytest.mark.parametrize(("tokens", "stopped"), [(1_000, "budget"), (30_000, "finished")])
async def test_a_task_that_goes_on_with_a_run_has_a_budget_of_its_own(
    squad: Squad, tokens: int, stopped: str
) -> None:
    await squad.deploy(Words())
    await squad.deploy(Scripted(turn(call("l", "words__length", word="four"), tokens=9_000)))
    wide = AskOptions(within_s=20, budget=Budget(tokens=50_000))
    first = report_of(await squad.pursue(max_rounds=1, ask=wide))
    await squad.deploy(
        Scripted(turn(call("f", "finish", answer="now", deliverables={"l": {"$from": "l"}}), tokens=7))
    )

    outcome = await squad.pursue(resume=first["run"], ask=AskOptions(within_s=20, budget=Budget(tokens=tokens)))

    report = report_of(outcome)
    assert report["stopped"] == stopped
    assert list(report["deliverables"].values()) == [4]
    # Its caller pays for what it spent itself; the report tells of the whole run.
    own = 7 if stopped == "finished" else 0
    assert (outcome.tokens, report["tokens"]) == (own, 9_000 + own)


async def test_a_run_that_goes_on_and_brings_nothing_new_is_stopped(squad: Squad) -> None:
    await squad.deploy(Words())
    again = [turn(call(f"c{number}", "words__length", word="four")) for number in range(12)]
    supervisor = Scripted(*again)
    await squad.deploy(supervisor)

    report = report_of(await squad.pursue())

    assert report["stopped"] == "stuck"
    assert "brought nothing new" in report["answer"]
    # Twice it was asked; from the third time on the call was refused with the reason.
    assert report["tasks"]["dispatched"] == 2
    assert report["rounds"] == 6


async def test_a_supervisor_falls_back_to_the_next_model_of_its_chain_and_says_so(squad: Squad) -> None:
    class Busy(ScriptedModel):
        async def think(self, *args: Any, **options: Any) -> ModelTurn:
            raise ModelError("overloaded", kind="passing", retry_after_s=1e6)

    class Chained(Supervisor):
        name = "supervisor"

        def make_model(self, spec: str, plan: Plan | None) -> Model:
            if spec == "busy:model":
                return Busy([], name=spec)
            return ScriptedModel([finish("from the other")], name=spec)

    await squad.deploy(Words())
    await squad.deploy(Chained())

    report = report_of(await squad.pursue(ask=AskOptions(within_s=20, model="busy:model, scripted:test")))

    assert (report["answer"], report["model"]) == ("from the other", "scripted:test")
    fallback = next(event for event in report["timeline"] if event["event"] == "fallback")
    assert (fallback["from"], fallback["to"], fallback["round"]) == ("busy:model", "scripted:test", 1)


@pytest.mark.parametrize(
    ("chain", "why"), [("a:x,", "a part of it is empty"), ("a:x, a:x", "'a:x' is there twice")]
)
async def test_a_chain_that_can_not_be_meant_is_refused(squad: Squad, chain: str, why: str) -> None:
    await squad.deploy(Supervisor())

    outcome = await squad.pursue(ask=AskOptions(within_s=20, model=chain))

    assert isinstance(outcome, Failed)
    assert why in outcome.reason

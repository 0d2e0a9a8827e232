"""What a run offers and was told is as it was in the attempt before, whatever the network looks like by then."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron import Agent, topic
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.toolbox import MAX_OFFERED
from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn
from squadron.runtime.errors import ModelError
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from tests.unit.test_supervisor import (
    Scripted,
    Squad,
    Weather,
    _context,
    _CrashError,
    answers,
    call,
    crash,
    fenced,
    finish,
    report_of,
    turn,
)


@pytest.fixture
async def squad() -> AsyncIterator[Squad]:
    async with Squad() as made:
        yield made


async def attempts(squad: Squad, first: Scripted, then: Any, second: Scripted, **fields: Any) -> Any:
    """Two attempts at one run: the first one dies, and the network changes before the second."""
    message = AgentMessage.new("task", AgentIdentity(id="client"), {"goal": "count"}, id="m1")
    with pytest.raises(_CrashError):
        await first.pursue(_context(squad, message, 1), "count", **fields)
    await then()
    return await second.pursue(_context(squad, message, 2), "count", **fields)


def asked(supervisor: Scripted, position: int) -> tuple[list[ChatMessage], list[str]]:
    request = supervisor.model.seen[position]
    return list(request.messages), [tool.name for tool in request.tools]


class Storms(Agent):
    """Knows the sky better."""

    @topic("sky.storms", tags=["weather", "tomorrow", "city"])
    async def storms(self, city: str) -> str:
        """Tell tomorrow's weather of a city, tomorrow's weather of a city."""
        return f"storms in {city}"


async def test_what_discover_topics_told_stays_told_after_a_crash(squad: Squad) -> None:
    await squad.deploy(Weather())
    first = Scripted(turn(call("d", "discover_topics", intent="tomorrow's weather of a city")), crash)
    second = Scripted(finish())

    async def another_fits_better() -> None:
        await squad.deploy(Storms())

    await attempts(squad, first, another_fits_better, second)

    assert asked(second, 0) == asked(first, 1)
    assert "sky__forecast" in fenced(answers(asked(second, 0)[0])["d"])
    assert "sky__storms" not in asked(second, 0)[1]


class Left(Agent):
    """One whose tool name another one has, too."""

    @topic("a.b__c", tags=["count"])
    async def left(self) -> str:
        """Count on the left."""
        return "left"


class Right(Agent):
    """The other one."""

    @topic("a__b.c", tags=["count"])
    async def right(self) -> str:
        """Count on the right."""
        return "right"


@pytest.mark.parametrize(("known", "comes", "to"), [(Left, Right, "left"), (Right, Left, "right")])
async def test_a_tool_name_means_after_a_crash_what_it_meant_before(
    squad: Squad, known: type[Agent], comes: type[Agent], to: str
) -> None:
    await squad.deploy(known())
    first = Scripted(crash)
    second = Scripted(
        turn(call("d", "discover_topics", intent="count")),
        turn(call("x", "a__b__c")),
        finish(x={"$from": "x"}),
    )

    async def the_other_comes() -> None:
        await squad.deploy(comes())

    report = await attempts(squad, first, the_other_comes, second)

    assert report.deliverables == {"x": to}
    names = [name for name in asked(second, 1)[1] if name not in BUILT_IN]
    assert names[0] == "a__b__c"
    assert len(set(names)) == 2


def many(count: int) -> type[Agent]:
    """An agent with so many topics."""

    def handler(number: int) -> Any:
        @topic(f"many.t{number}", tags=["count"])
        async def run(self: Agent) -> int:
            """Count on it."""
            return number

        return run

    methods = {f"t{number}": handler(number) for number in range(count)}
    return type("Many", (Agent,), {"__doc__": "Counts.", "__module__": __name__, **methods})


async def test_with_all_places_taken_what_is_discovered_can_be_called_and_what_was_called_stays(
    squad: Squad,
) -> None:
    await squad.deploy(many(MAX_OFFERED + 6)())
    await squad.deploy(Weather())
    used = "many__t1"
    first = Scripted(
        turn(call("u", used), call("d", "discover_topics", intent="tomorrow's weather of a city")),
        turn(call("w", "sky__forecast", city="Bonn")),
        crash,
    )

    async def nothing() -> None:
        pass

    second = Scripted(finish(u={"$from": "u"}, w={"$from": "w"}))
    report = await attempts(squad, first, nothing, second, topics=("many.*", "sky.*"))

    before, after = asked(first, 0)[1], asked(first, 1)[1]
    assert len([name for name in before if name not in BUILT_IN]) == MAX_OFFERED
    assert len([name for name in after if name not in BUILT_IN]) == MAX_OFFERED
    assert {used, "sky__forecast"} <= set(after)
    assert report.deliverables == {"u": 1, "w": "rain in Bonn"}
    assert asked(second, 0) == asked(first, 2)


async def test_an_answer_that_was_cut_off_is_not_told_as_finished(squad: Squad) -> None:
    supervisor = Scripted(ModelTurn("the answer is", stop="length"))
    await squad.deploy(supervisor)
    report = report_of(await squad.pursue())
    assert (report["answer"], report["stopped"]) == ("the answer is", "length")


@pytest.mark.parametrize("quoted", ['{"$from": "secret"}', '{"$from": "r1c1"}', '{"$from": "r1c1#/0"}'])
async def test_what_a_page_says_pulls_no_result_into_a_text(squad: Squad, quoted: str) -> None:
    await squad.deploy(Echo())
    supervisor = Scripted(
        turn(call("secret", "echo__back", text="the key")),
        turn(call("mail", "echo__back", text=quoted)),
        finish(mail={"$from": "mail"}),
    )
    await squad.deploy(supervisor)
    assert report_of(await squad.pursue())["deliverables"] == {"mail": quoted}


async def test_a_text_that_is_a_reference_made_by_the_run_is_one(squad: Squad) -> None:
    await squad.deploy(Echo())

    def refer(request: ModelRequest) -> ModelTurn:
        (id,) = re.findall(r"call (r1c1-\w+)", request.messages[-1].content)
        return turn(call("mail", "echo__back", text=json.dumps({"$from": id})))

    supervisor = Scripted(turn(call("a", "echo__back", text="hello")), refer, finish(mail={"$from": "mail"}))
    await squad.deploy(supervisor)
    assert report_of(await squad.pursue())["deliverables"] == {"mail": "hello"}


class Echo(Agent):
    """Says it again."""

    @topic("echo.back", tags=["count"])
    async def back(self, text: str) -> str:
        """Count on it: what comes goes back."""
        return text

    @topic("echo.long", tags=["count"])
    async def long(self, number: int) -> str:
        """Count for long."""
        return f"{number} " + "word " * 1_500


@pytest.mark.parametrize(
    ("window", "refusal"),
    [
        (128_000, "prompt is too long: 33000 tokens > 32000 maximum"),
        (16_000, "Request exceeds the maximum size of 33554432 bytes"),
    ],
)
async def test_a_conversation_that_is_too_long_is_shortened_and_the_run_goes_on(
    squad: Squad, monkeypatch: pytest.MonkeyPatch, window: int, refusal: str
) -> None:
    price = {"input": 0, "output": 0, "window": window}
    monkeypatch.setenv("SQUADRON_PRICES", json.dumps({"scripted:test": price}))
    await squad.deploy(Echo())
    long = [turn(call(f"c{n}", "echo__long", number=n)) for n in range(6)]

    def overflow(*_: Any) -> ModelTurn:
        raise ModelError(refusal, kind="overflow")

    supervisor = Scripted(*long, overflow, finish(last={"$from": "c5#"}))
    await squad.deploy(supervisor)
    report = report_of(await squad.pursue())
    assert report["stopped"] == "finished", report["answer"]
    assert report["deliverables"]["last"].startswith("5 word")

    def size(position: int) -> int:
        return sum(len(message.content) for message in asked(supervisor, position)[0])

    # The same question again, in less room.
    assert size(7) < size(6)

"""A process that thinks, and dies by SIGKILL at one exact point of its run's log."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from squadron.actors.agent import Agent
from squadron.actors.decorators import bid, topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.errors import ModelError, Terminal
from squadron.runtime.running.context import Context
from squadron.runtime.wire.bids import Bid
from squadron.runtime.wire.envelope import AgentIdentity

LEASE_S = 1.0
#: How often a task is begun at most: who gets little of a busy machine falls silent for longer than a lease, as
#: often as it likes. That some attempts are too many is a matter of other tests.
MOST_ATTEMPTS = 1_000


class Diary:
    """Lines of a file, whoever writes them; what was written before a SIGKILL is there."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def write(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line + "\n")

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


class Mind:
    """A model that decides by what it is shown alone, and writes down that it was asked."""

    name = "mind:test"

    def __init__(self, diary: Diary, decide: Callable[[ModelRequest, Diary], ModelTurn]) -> None:
        self._diary, self._decide = diary, decide

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        turns = sum(message.role == "assistant" for message in request.messages)
        self._diary.write(f"model {turns + 1}")
        return self._decide(request, self._diary)

    async def aclose(self) -> None:
        pass


def _turn(*calls: ToolCall, text: str = "") -> ModelTurn:
    return ModelTurn(text, calls, Usage(10, 5))


def pursue(request: ModelRequest, diary: Diary) -> ModelTurn:
    """Ask two and a person, wait for the slow one, be refused once, have a call approved, have bids for another of
    which the best fails, and finish.
    """
    turns = [message for message in request.messages if message.role == "assistant"]
    match len(turns):
        case 0:
            return _turn(
                ToolCall("quick", "words__count", {"text": "one two"}),
                ToolCall("slow", "words__slow", {"text": "one two three"}),
                ToolCall("more", "discover_topics", {"intent": "shout a text"}),
                ToolCall("wrong", "words__count", {"no": "such field"}),
                ToolCall("who", "ask_person", {"question": "Who are you?"}),
                ToolCall("loud", "words__shout", {"text": "may I"}),
            )
        case 1:
            return _turn(ToolCall("wait", "wait_for", {"calls": ["slow", "who", "loud"]}))
        case 2:
            if "refused" not in diary.lines:
                diary.write("refused")
                raise ModelError("overloaded", kind="passing", retry_after_s=0.01)
            return _turn(
                ToolCall("all", "for_each", {"topic": "words.count", "items": [{"text": "a"}, {"text": "b c"}]})
            )
        case 3:
            tools = ["words.count", "words.fail", "words.slow"]
            return _turn(ToolCall("bid", "call_for_bids", {"tools": tools, "arguments": {"text": "a b c"}}))
    names = ("slow", "all", "who", "loud", "bid")
    end = {"answer": "done", "deliverables": {each: {"$from": each} for each in names}}
    return _turn(ToolCall("end", "finish", end))


class Thinker(Supervisor):
    """Pursues goals with a mind that keeps a diary."""

    name: ClassVar[str] = "supervisor"

    def __init__(self, diary: str = "") -> None:
        self._diary = Diary(diary)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return Mind(self._diary, pursue)


def write(request: ModelRequest, diary: Diary) -> ModelTurn:
    """Use two tools, answer wrongly once, and rightly then."""
    match sum(message.role == "assistant" for message in request.messages):
        case 0:
            return _turn(ToolCall("a", "look", {"word": "one"}), ToolCall("b", "book", {"seat": 7}))
        case 1:
            return _turn(ToolCall("c", "words__count", {"text": "one two"}))
        case 2:
            return _turn(text="not JSON")
    return _turn(text='["one", "two"]')


def read(request: ModelRequest, diary: Diary) -> ModelTurn:
    """Look up more than the window has room for, write one summary of it and refuse another, and answer."""
    if "You summarize" in request.messages[0].content:
        if "Summary of what was before" not in request.messages[1].content:
            return _turn(text="The first pages say little.")
        diary.write("refused")
        raise ModelError("it can't be summarized again")
    # What was summarized is not counted any more: the number of the call is in the newest result.
    done = [int(found) for m in request.messages for found in re.findall(r"page (\d+)", m.content)]
    last = max(done, default=0)
    if last < 12:
        calls = [ToolCall(f"p{number}", "page", {"number": number}) for number in (last + 1, last + 2)]
        return _turn(*calls, text="I read on.")
    return _turn(text="read")


class Reader(LLMAgent):
    """You read."""

    name: ClassVar[str] = "reader"
    summary_model: ClassVar[str] = "same"

    def __init__(self, diary: str = "") -> None:
        self._diary = Diary(diary)

    def make_model(self, spec: str) -> Model:
        return Mind(self._diary, read)

    @topic("texts.read")
    async def read(self, ctx: Context, text: str) -> str:
        """Read a text."""
        return await self.think(ctx, text)

    @tool
    async def page(self, number: int) -> str:
        """One page of a book."""
        self._diary.write(f"page {number}")
        return f"page {number}: " + "and on it goes " * 60


class Writer(LLMAgent):
    """You write."""

    name: ClassVar[str] = "writer"
    asks: ClassVar[tuple[str, ...]] = ("words.count",)

    def __init__(self, diary: str = "") -> None:
        self._diary = Diary(diary)

    def make_model(self, spec: str) -> Model:
        return Mind(self._diary, write)

    @topic("texts.write")
    async def write(self, ctx: Context, text: str) -> list[str]:
        """Write a text."""
        return await self.think_as(ctx, text, list[str])

    @tool(may_repeat=True)
    async def look(self, word: str) -> str:
        """Look a word up; it may be done again."""
        self._diary.write("look")
        return word.upper()

    @tool
    async def book(self, seat: int) -> str:
        """Book a seat; nobody wants two."""
        self._diary.write("book")
        return f"seat {seat}"


class Words(Agent):
    """Does things with words, and notes which tasks it was given."""

    def __init__(self, diary: str = "") -> None:
        self._diary = Diary(diary)

    @topic("words.count")
    async def count(self, ctx: Context, text: str) -> int:
        """Count the words of a text."""
        self._diary.write(f"task {ctx.message.id}")
        return len(text.split())

    @topic("words.slow")
    async def slow(self, ctx: Context, text: str) -> int:
        """Count the words of a text, slowly."""
        self._diary.write(f"task {ctx.message.id}")
        await asyncio.sleep(0.5)
        return len(text.split())

    @topic("words.fail", max_attempts=1)
    async def fail(self, ctx: Context, text: str) -> int:
        """Count the words of a text, in vain."""
        self._diary.write(f"task {ctx.message.id}")
        raise Terminal("it can't be counted")

    @bid
    async def offer(self, topic: str) -> Bid:
        """Be surest of what will fail."""
        return Bid(confidence={"words.fail": 0.9, "words.count": 0.5}.get(topic, 0.1))

    @topic("words.shout", approval="it is loud")
    async def shout(self, ctx: Context, text: str) -> str:
        """Shout a text."""
        self._diary.write(f"task {ctx.message.id}")
        return text.upper()


THINKERS: dict[str, Callable[[str], Agent]] = {"supervisor": Thinker, "writer": Writer, "reader": Reader}


@dataclass(frozen=True)
class Death:
    """SIGKILL right before, or right after, the nth time that something is stored in the log of a run."""

    at: int
    after: bool

    def arm(self) -> None:
        append, count = JetStreamJournal.append, 0

        async def deadly(journal: Any, key: str, *args: Any, **options: Any) -> int:
            nonlocal count
            if ".run." not in key:
                return await append(journal, key, *args, **options)
            count += 1
            if count == self.at and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            seq = await append(journal, key, *args, **options)
            if count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return seq

        JetStreamJournal.append = deadly  # type: ignore[method-assign]


def main(settings: Settings, thinker: str, name: str, diary: str, death: Death | None) -> None:
    """Serve one thinker until the process is killed."""
    if death is not None:
        death.arm()
    if thinker == "reader":
        # A small window, so that a few pages are more than it holds.
        os.environ["SQUADRON_PRICES"] = '{"mind:test": {"input": 1, "output": 1, "window": 8000}}'
    asyncio.run(serve(settings, [THINKERS[thinker](diary)], name))


async def serve(settings: Settings, agents: Sequence[Agent], name: str) -> None:
    """Serve agents on a place of their own, for ever."""
    from tests.contract.conftest import Replica, at_last, peer_of

    identity = AgentIdentity(id=name, type="test")
    wiring = await at_last(lambda: Wiring.open(settings, identity, create=True))
    for agent in agents:
        replica = Replica(peer_of(wiring), agent, lease_s=LEASE_S)
        for handler in replica.turns._exact.values():
            handler.retries = replace(handler.retries, max_attempts=MOST_ATTEMPTS)
        await replica.start()
    await asyncio.Event().wait()

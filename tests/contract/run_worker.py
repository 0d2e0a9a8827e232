"""A process that thinks, and dies by SIGKILL at one exact point of its run's log."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """Ask two, wait for the slower one, be refused once, call for bids of which the best one fails, and finish."""
    turns = [message for message in request.messages if message.role == "assistant"]
    match len(turns):
        case 0:
            return _turn(
                ToolCall("quick", "words__count", {"text": "one two"}),
                ToolCall("slow", "words__slow", {"text": "one two three"}),
                ToolCall("more", "discover_topics", {"intent": "shout a text"}),
                ToolCall("wrong", "words__count", {"no": "such field"}),
            )
        case 1:
            return _turn(ToolCall("wait", "wait_for", {"calls": ["slow"]}))
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
    end = {
        "answer": "done",
        "deliverables": {"slow": {"$from": "slow"}, "all": {"$from": "all"}, "bid": {"$from": "bid"}},
    }
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

    @topic("words.shout")
    async def shout(self, text: str) -> str:
        """Shout a text."""
        return text.upper()


THINKERS: dict[str, Callable[[str], Agent]] = {"supervisor": Thinker, "writer": Writer}


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
    asyncio.run(serve(settings, [THINKERS[thinker](diary)], name))


async def serve(settings: Settings, agents: Sequence[Agent], name: str) -> None:
    """Serve agents on a place of their own, for ever."""
    from tests.contract.conftest import Replica, peer_of

    wiring = await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=True)
    for agent in agents:
        replica = Replica(peer_of(wiring), agent, lease_s=LEASE_S)
        await replica.start()
    await asyncio.Event().wait()

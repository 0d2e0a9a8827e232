"""A supervisor that is killed while its model thinks: what the model said before comes back to it word for word.

The doubles of the providers answer 400 when a thought is missing, is another, or has lost its place.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.runs.entries import Entry
from squadron.actors.runs.log import entries_of, read
from squadron.actors.runs.session import run_id
from squadron.actors.thinking.model import ModelTurn, ToolCall, Usage
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.streams.writer import Chunk, Restarted
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.outcome import Outcome
from tests.contract.conftest import Replica, at_last, peer_of, until
from tests.contract.killed_supervisors import Fate, Supervisors
from tests.contract.run_worker import Death
from tests.llm_playing import ANTHROPIC, BACKGROUND, RESPONSES, Provider

#: Rounds of a run.
ROUNDS = 3
SPECS = {
    ANTHROPIC.name: "anthropic:claude-sonnet-5-5",
    RESPONSES.name: "openai-responses:gpt-5.6",
    BACKGROUND.name: "openai-background:gpt-5.6",
}
#: How long a run may take, in seconds, and many in which somebody dies: two seconds each on an idle machine. It is
#: the run that tells what hangs.
RUN_S, DEATHS_S = 280.0, 3_000
#: The event with which the first text of an answer in the background comes: three about the answer, six about a
#: thought in four pieces, and the beginning of the message come before.
FIRST_TEXT = 3 + 6 + 1
#: What the model says in all, and what it uses for that.
SAID, TOKENS = "I count.", ROUNDS * 120


def entries_in(provider: Provider) -> int:
    """How often something is stored in the log of a run at most: at first, then five times for one call, six for
    two that don't end together, and three times in the round that finishes.
    """
    return 1 + 5 + 6 + 3 + (ROUNDS if provider is BACKGROUND else 0)


class Words(Agent):
    """Counts words."""

    @topic("words.count")
    async def count(self, text: str) -> int:
        """Count the words of a text."""
        return len(text.split())


def decide(body: dict[str, Any]) -> ModelTurn:
    """Count one text, then two, then finish."""
    told = json.dumps(body)
    match told.count('"function_call_output"') + told.count('"tool_result"'):
        case 0:
            calls = [ToolCall("a", "words__count", {"text": "one"})]
            return ModelTurn("I count.", tuple(calls), Usage(100, 20))
        case 1:
            calls = [ToolCall(id, "words__count", {"text": id}) for id in ("b", "c")]
            return ModelTurn("", tuple(calls), Usage(100, 20))
    return ModelTurn("", (ToolCall("end", "finish", {"answer": "three"}),), Usage(100, 20))


def thoughts_in(body: dict[str, Any]) -> list[str]:
    """What the model had thought, as a request gives it back."""
    blocks = [block for message in body.get("messages", []) for block in _blocks(message)]
    signed = [block["signature"] for block in blocks if block["type"] == "thinking"]
    sealed = [item["encrypted_content"] for item in body.get("input", []) if item.get("type") == "reasoning"]
    return signed + sealed


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else []


def thoughts_of(entries: Sequence[Entry]) -> list[str]:
    """What the model thought, as the log keeps it."""
    blocks = [block for entry in entries if entry.kind == "thought" for block in entry.turn.blocks]
    kept = [block.get("signature") or block.get("encrypted_content") for block in blocks]
    return [each for each in kept if each]


@dataclass
class Stage:
    """A client, an agent, supervisors that die, and the provider that they ask."""

    wiring: Wiring
    server: Any
    supervisors: Supervisors
    spec: str

    async def pursue(self, id: str) -> Outcome:
        return await (await self.submit(id)).outcome()

    async def submit(self, id: str) -> Handle:
        options = AskOptions(task_id=id, within_s=RUN_S, model=self.spec)
        return await self.wiring.caller.submit(
            "goal.pursue", {"goal": f"count words for {id}.", "topics": ["words.count"]}, options
        )

    async def check(self, id: str, outcome: Outcome) -> Counter[str]:
        """It came to its end with all that its model thought; returns how often its log has each kind of entry."""
        assert outcome.ok, (id, outcome.reason)
        assert (outcome.unwrap()["stopped"], outcome.unwrap()["rounds"]) == ("finished", ROUNDS), (id, outcome)
        key = self.wiring.ports.subjects.run(run_id(id))
        log = [entries_of(message) async for _, message in read(self.wiring.ports, key)]
        entries = [entry for each in log for entry in each]
        bodies = [each.body for each in self.server.requests if f"for {id}." in json.dumps(each.body)]
        thoughts = thoughts_of(entries)
        assert len(thoughts) == ROUNDS
        assert thoughts_in(bodies[-1]) == thoughts[:-1], id
        kinds = Counter(entry.kind for entry in entries)
        assert ROUNDS <= len(bodies) <= kinds["asking"] <= ROUNDS + kinds["epoch"] - 1, (id, kinds)
        assert outcome.spent.rounds == kinds["asking"], id
        return kinds


@pytest.fixture(params=[ANTHROPIC, RESPONSES, BACKGROUND], ids=lambda each: each.name)
def provider(request: pytest.FixtureRequest) -> Provider:
    return request.param  # type: ignore[no-any-return]


@asynccontextmanager
async def staged(settings: Settings, provider: Provider, fate: Fate) -> AsyncIterator[Stage]:
    identity = AgentIdentity(id="client", type="test")
    wiring = await at_last(lambda: Wiring.open(settings, identity, create=True))
    words = Replica(peer_of(wiring), Words(), lease_s=10.0)
    await words.start()
    with provider.server(decide, thought="Hm, let me see.") as server:
        environ = {f"{provider.prefix}_API_KEY": "k", f"{provider.prefix}_BASE_URL": server.base_url}
        async with Supervisors(settings, fate, environ) as supervisors:

            async def served() -> bool:
                return wiring.registry.find("goal.pursue") is not None

            await until(served)
            yield Stage(wiring, server, supervisors, SPECS[provider.name])
    for part in (words.handovers, words.pump, words.turns, wiring):
        await part.aclose()


async def die_at(settings: Settings, provider: Provider, folder: Path, deaths: Sequence[Death]) -> None:
    """A run for each death, one after the other."""
    ids = [f"{'after' if death.after else 'before'}-{death.at}" for death in deaths]
    fate = Fate({run_id(id): death for id, death in zip(ids, deaths, strict=True)}, folder)
    async with staged(settings, provider, fate) as stage:
        for id, death in zip(ids, deaths, strict=True):
            kinds = await stage.check(id, await stage.pursue(id))
            # Before the first entry nobody had begun, and after the last one there is nothing left to do. The
            # first three are stored at once.
            last = Death(kinds.total() - 2, after=True)
            went_on = run_id(id) in fate.died and death not in (Death(1, after=False), last)
            assert kinds["epoch"] == (2 if went_on else 1), id
    assert len(fate.died) >= 0.8 * len(deaths)


async def test_thoughts_come_back_word_for_word_after_a_sigkill(
    settings: Settings, provider: Provider, tmp_path: Path
) -> None:
    await die_at(settings, provider, tmp_path, [Death(3, after=True), Death(entries_in(provider) - 2, after=True)])


async def test_who_waits_for_a_supervisor_that_ended_by_itself_is_told_at_once(
    settings: Settings, tmp_path: Path
) -> None:
    async def wait_in_vain() -> None:
        async with Supervisors(settings, Fate({}, tmp_path), {}) as supervisors:
            while not supervisors.pids:
                await asyncio.sleep(0.01)
            os.kill(supervisors.pids[0], signal.SIGTERM)
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await wait_in_vain()

    assert caught.group_contains(AssertionError, match="ended by itself")


@pytest.mark.slow
@pytest.mark.timeout(DEATHS_S)
async def test_thoughts_come_back_wherever_it_dies(settings: Settings, provider: Provider, tmp_path: Path) -> None:
    deaths = [Death(at, after) for at in range(1, entries_in(provider) + 1) for after in (False, True)]
    await die_at(settings, provider, tmp_path, deaths)


@pytest.mark.parametrize("provider", [ANTHROPIC, RESPONSES], indirect=True, ids=lambda each: each.name)
async def test_a_supervisor_that_dies_while_its_model_speaks_asks_that_again_and_nothing_else(
    settings: Settings, provider: Provider, tmp_path: Path
) -> None:
    async with staged(settings, provider, Fate({}, tmp_path)) as stage:
        answers = 0

        def kill(event: int) -> None:
            nonlocal answers
            answers += event == 0
            if (answers, event) == (2, 4):
                os.kill(stage.supervisors.pids[0], signal.SIGKILL)

        stage.server.before_event = kill
        kinds = await stage.check("spoken", await stage.pursue("spoken"))

        assert stage.supervisors.killed == 1
        assert len(stage.server.requests) == kinds["asking"] == ROUNDS + 1
        assert (kinds["thought"], kinds["epoch"]) == (ROUNDS, 2)


async def killed_while_it_speaks(stage: Stage, meanwhile: Callable[[], None]) -> tuple[str, Outcome]:
    """A run whose first turn was read in part when its supervisor died; `meanwhile` is called then.

    Returns what whoever read along has in the end, and what came of it.
    """
    heard = threading.Event()

    def kill(event: int) -> None:
        if event == FIRST_TEXT + 1 and not stage.supervisors.killed:
            assert heard.wait(60), "nobody read anything"
            os.kill(stage.supervisors.pids[0], signal.SIGKILL)
            meanwhile()

    stage.server.before_event = kill
    handle, text = await stage.submit("spoken"), ""
    async for event in handle.events():
        if isinstance(event, Restarted):
            text = ""
        elif isinstance(event, Chunk) and event.value["event"] == "text":
            text += event.value["delta"]
            heard.set()
    assert stage.supervisors.killed == 1
    return text, await handle.outcome()


@pytest.mark.parametrize("provider", [BACKGROUND], indirect=True, ids=lambda each: each.name)
async def test_a_call_in_the_background_outlives_who_made_it(
    settings: Settings, provider: Provider, tmp_path: Path
) -> None:
    async with staged(settings, provider, Fate({}, tmp_path)) as stage:

        def think_on() -> None:
            # It is still in the middle when it is taken up.
            while not stage.server.asked_for:
                time.sleep(0.02)

        text, outcome = await killed_while_it_speaks(stage, think_on)
        kinds = await stage.check("spoken", outcome)

        assert len(stage.server.requests) == kinds["asking"] == kinds["accepted"] == ROUNDS
        assert [each.split()[:2] for each in stage.server.asked_for] == [["GET", "resp_1"]]
        assert (kinds["thought"], kinds["epoch"], kinds["failed"]) == (ROUNDS, 2, 0)
        assert text == SAID
        assert (outcome.spent.tokens, outcome.unwrap()["tokens"]) == (TOKENS, TOKENS)


@pytest.mark.parametrize("provider", [BACKGROUND], indirect=True, ids=lambda each: each.name)
async def test_a_call_that_its_provider_forgot_is_charged_and_made_again(
    settings: Settings, provider: Provider, tmp_path: Path
) -> None:
    async with staged(settings, provider, Fate({}, tmp_path)) as stage:
        text, outcome = await killed_while_it_speaks(stage, stage.server.answers.clear)
        kinds = await stage.check("spoken", outcome)

        assert len(stage.server.requests) == kinds["asking"] == ROUNDS + 1
        assert (kinds["thought"], kinds["epoch"], kinds["failed"]) == (ROUNDS, 2, 1)
        assert text == SAID
        assert outcome.spent.tokens == outcome.unwrap()["tokens"] > TOKENS

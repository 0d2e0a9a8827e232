"""What a run sends again is read from the provider's cache, whatever came between."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from squadron import Context, topic
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.runs.entries import Thought
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import Model, ModelTurn, ToolCall, Usage
from squadron.actors.thinking.providers import AnthropicModel
from squadron.testing import MemorySquad
from tests.llm_playing import CHAT, RESPONSES, Provider
from tests.llm_prompt_cache import LEAST, LIFE_S, LOOK_BACK, MARK, Counted, PromptCache, check_marks
from tests.llm_schemas import RequestError
from tests.llm_servers import ScriptedAnthropicServer


def text(chars: int, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": "a word " * (chars // 7), **more}


def asked(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "claude", "messages": [{"role": "user", "content": list(blocks)}], **more}


def test_the_double_reads_what_it_wrote_and_writes_what_is_new() -> None:
    now = [0.0]
    cache = PromptCache(now_s=lambda: now[0])
    first, more = text(20_000), text(5_000)

    written = cache.count(asked(first, cache_control=MARK))
    read = cache.count(asked(first, more, cache_control=MARK))
    now[0] = LIFE_S - 1
    again = cache.count(asked(first, {**more, "cache_control": MARK}))
    now[0] = 3 * LIFE_S

    assert written.read == written.plain == 0
    assert read == Counted(written.written, sum(read) - written.written, 0)
    assert again == Counted(sum(read), 0, 0)
    assert cache.count(asked(first, more, cache_control=MARK)).read == 0
    assert cache.count(asked(first, more)) == Counted(0, 0, sum(read))
    assert cache.count(asked(text(5_000), cache_control=MARK)).written == 0  # fewer than it keeps
    assert sum(written) > LEAST


def test_the_double_looks_back_so_far_and_no_further() -> None:
    cache, first = PromptCache(), text(20_000)
    between = [text(70) for _ in range(LOOK_BACK)]
    whole = sum(cache.count(asked(first, cache_control=MARK)))

    assert cache.count(asked(first, *between[1:], cache_control=MARK)).read == whole
    cache = PromptCache()
    cache.count(asked(first, cache_control=MARK))
    assert cache.count(asked(first, *between, cache_control=MARK)).read == 0


@pytest.mark.parametrize("other", [{"model": "claude-2"}, {"tools": [{"name": "a"}]}, {"tool_choice": "none"}])
def test_the_double_reads_nothing_behind_what_is_other(other: dict[str, Any]) -> None:
    cache, body = PromptCache(), asked(text(20_000), cache_control=MARK)
    cache.count(body)

    assert cache.count(body | other).read == 0
    assert cache.count(body).read == sum(cache.count(body))


@pytest.mark.parametrize(
    "body",
    [
        asked(*[text(70, cache_control=MARK) for _ in range(5)]),
        asked(*[text(70, cache_control=MARK) for _ in range(4)], text(70), cache_control=MARK),
        asked({"type": "thinking", "thinking": "", "cache_control": MARK}),
        asked(text(70, cache_control={"type": "for ever"})),
    ],
)
def test_marks_that_the_api_refuses_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        check_marks(body)


def reading(calls: int) -> Callable[[dict[str, Any]], ModelTurn]:
    """A model that makes so many calls in each of four turns."""

    def answer(body: dict[str, Any]) -> ModelTurn:
        done = json.dumps(body).count("I read on.")
        if done == 4:
            return ModelTurn("It is done.")
        pages = [ToolCall(f"c{done}-{at}", "page__read", {"number": done * 100 + at}) for at in range(calls)]
        return ModelTurn("I read on.", tuple(pages))

    return answer


async def usages_of(model: Model, calls: int) -> list[Usage]:
    """What the log of a run has of each of its requests."""
    async with MemorySquad(turned=False) as squad:
        await squad.script("page.read", *[f"page {number}" for number in range(4 * calls)])
        await squad.deploy(Supervisor(), model=model)
        goal = {"goal": "Read all pages. " + "Mind the brief. " * 2_000, "topics": ["page.read"]}
        report = (await squad.ask("goal.pursue", goal, within_s=60)).unwrap()
        ports = squad._wiring.ports
        log = [message async for _, message in read(ports, ports.subjects.run(report["run"]))]
    await model.aclose()
    return [entry.turn.usage for each in log for entry in entries_of(each) if isinstance(entry, Thought)]


@pytest.mark.parametrize("calls", [1, 8, 30])
async def test_each_request_of_a_run_reads_all_of_the_one_before(calls: int) -> None:
    with ScriptedAnthropicServer(reading(calls), cache=PromptCache()) as server:
        usages = await usages_of(AnthropicModel("claude-sonnet-5-5", api_key="k", base_url=server.base_url), calls)

    assert [usage.cache_read for usage in usages] == [0, *(usage.input for usage in usages[:-1])]
    assert all(usage.input == usage.cache_read + usage.cache_write for usage in usages)
    assert len(usages) == 5


@pytest.mark.parametrize("provider", [CHAT, RESPONSES], ids=lambda provider: provider.name)
async def test_openai_is_sent_each_request_with_the_one_before_in_front(provider: Provider) -> None:
    with provider.server(reading(8)) as server:
        usages = await usages_of(provider.model(api_key="k", base_url=server.base_url), 8)

    assert len(server.requests) == len(usages) == 5
    for before, after in pairwise(request.body for request in server.requests):
        said = "input" if "input" in before else "messages"
        assert after | {said: None} == before | {said: None}
        assert json.dumps(after[said]).startswith(json.dumps(before[said])[:-1])


class Clerk(LLMAgent):
    """Knows a long book of rules."""

    instructions = "Mind the rules of the house. " * 1_000

    @topic("clerk.ask")
    async def ask(self, text: str, ctx: Context) -> str:
        """Ask the clerk."""
        return await self.think(ctx, text)


async def test_the_instructions_of_an_agent_are_read_in_its_next_task() -> None:
    cache = PromptCache()
    with ScriptedAnthropicServer([ModelTurn("Yes."), ModelTurn("No.")], cache=cache) as server:
        model = AnthropicModel("claude-sonnet-5-5", api_key="k", base_url=server.base_url)
        async with MemorySquad(turned=False) as squad:
            await squad.deploy(Clerk(), model=model)
            for question in ("May I?", "Must I?"):
                (await squad.ask("clerk.ask", {"text": question}, within_s=60)).unwrap()
        await model.aclose()
    again = cache.count(server.requests[1].body | {"messages": [{"role": "user", "content": "Shall I?"}]})
    assert again.read > 0.95 * sum(again)

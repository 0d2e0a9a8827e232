"""What a run costs at list prices, with its provider's cache and without.

The supervisor talks to a double of Anthropic's API over the SDK. The double keeps a cache by Anthropic's rules,
from the bytes that it gets, and tells what it read and wrote as Anthropic does. What is told here is what the log
of the run holds of that; "without" are the same tokens, charged as plain input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from benchmarks.targets import Target, ratios
from squadron import Agent, ModelTurn, ToolCall, Usage, topic
from squadron.actors.runs.entries import Entry, Thought
from squadron.actors.thinking.catalog import cost_of
from squadron.actors.thinking.providers import DEFAULT_ANTHROPIC_MODEL, AnthropicModel
from tests.llm_prompt_cache import PromptCache
from tests.llm_servers import ScriptedAnthropicServer

if TYPE_CHECKING:
    from benchmarks.llm_runs import Place

#: Requests of the run, of which the first has some 8,000 tokens and the last some 60,000: characters of the goal,
#: pages that are read in each round, characters of a page, and of what the model says beside its calls.
ROUNDS, GOAL_CHARS, PAGES, PAGE_CHARS, SAID_CHARS = 12, 12_000, 2, 4_800, 400
#: The default model, and one that takes a tenth for what is read, as most did before.
PRICED = (f"anthropic:{DEFAULT_ANTHROPIC_MODEL}", "anthropic:claude-sonnet-4-5")


class Library(Agent):
    """Has pages to read."""

    name = "bench-library"
    slots = 64

    @topic("library.page")
    async def page(self, number: int) -> str:
        """Read a page."""
        return _filled(f"On line {number} of the page stands a word. ", PAGE_CHARS)


@dataclass
class CostFigures:
    """Tokens as the log has them, request by request, and what they cost in US dollars, by model."""

    usages: list[Usage] = field(default_factory=list)
    with_cache: dict[str, list[float]] = field(default_factory=dict)
    without: dict[str, list[float]] = field(default_factory=dict)
    least: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Self:
        """The figures of the run whose log this is."""
        usages = [entry.turn.usage for entry in entries if isinstance(entry, Thought)]
        assert len(usages) == ROUNDS, f"{len(usages)} rounds"
        plain = [replace(usage, cache_read=0, cache_write=0) for usage in usages]
        # Nobody can do with less than to read what was sent before, and to write what is new.
        read = [0, *(before.input for before, _ in pairwise(usages))]
        least = [
            replace(usage, cache_read=old, cache_write=usage.input - old)
            for usage, old in zip(usages, read, strict=True)
        ]
        return cls(usages, *({name: [_usd(name, each)] for name in PRICED} for each in (usages, plain, least)))

    @property
    def targets(self) -> list[Target]:
        cheaper = ratios(self.with_cache[PRICED[0]], self.without[PRICED[0]])
        return [Target(f"{ROUNDS} rounds: cost with cache / without", cheaper, 0.3, at_most=True)]

    @property
    def rows(self) -> dict[str, list[float]]:
        """What is printed beside the target."""
        ends = {"first": self.usages[0], "last": self.usages[-1]}
        rows = {f"tokens of the {which} request": [float(usage.input)] for which, usage in ends.items()}
        rows |= {"tokens of an answer": [float(usage.output) for usage in self.usages]}
        for name in PRICED:
            model = name.partition(":")[2]
            rows |= {f"{model}: without caching, US dollars": self.without[name]}
            rows |= {f"{model}: with caching / without": ratios(self.with_cache[name], self.without[name])}
            rows |= {f"{model}: least that can be / without": ratios(self.least[name], self.without[name])}
        return rows


async def measure_cost(place: Place) -> CostFigures:
    """Play the run, and read what its log has of it."""
    await place.serve(Library())
    with ScriptedAnthropicServer(_read_on, cache=PromptCache()) as server:
        model = AnthropicModel(DEFAULT_ANTHROPIC_MODEL, api_key="none", base_url=server.base_url)
        await place.pursue(model, "Read all pages. " + _filled("Mind what the brief says. ", GOAL_CHARS))
        await model.aclose()
    return CostFigures.of([entry for _, entries in await place.log() for entry in entries])


def _read_on(body: dict[str, Any]) -> ModelTurn:
    done = sum(message["role"] == "assistant" for message in body["messages"])
    said = _filled("I have read that, and go on. ", SAID_CHARS)
    if done == ROUNDS - 1:
        return ModelTurn(said, (ToolCall("end", "finish", {"answer": "All pages are read."}),))
    numbers = range(done * PAGES, (done + 1) * PAGES)
    return ModelTurn(said, tuple(ToolCall(f"c{n}", "library__page", {"number": n}) for n in numbers))


def _filled(sentence: str, chars: int) -> str:
    return sentence * (chars // len(sentence))


def _usd(name: str, usages: Sequence[Usage]) -> float:
    costs = [cost_of(name, usage) for usage in usages]
    assert all(costs), f"no price of {name} is known"
    return sum(cost or 0 for cost in costs) / 1e6

"""A supervisor looks for topics as everybody does: the bridge finds them, and learns what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.reranking import MOST_TOKENS
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.thinking.account import Accounts
from squadron.actors.thinking.embedding import Embedder, LocalEmbedder
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.actors.thinking.tries import Grant
from squadron.bridge.control.control import Bridge
from squadron.bridge.control.finding import Finder
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ModelError, Terminal
from squadron.runtime.wire.limits import Budget
from squadron.testing.scripted_model import ScriptedModel
from tests.contract.conftest import ON_NATS, NoReplicas, Peer, Serve, World, until
from tests.contract.test_finding import LOADED_S
from tests.llmock import client

PLENTY = AskOptions(within_s=60.0)
DONE = ModelTurn("", (ToolCall("end", "finish", {"answer": "done"}),), Usage(10))


def looks_for(intent: str, *calls: ToolCall) -> ScriptedModel:
    """A model that looks for an intent, makes these calls, and is done."""
    look = ToolCall("d", "discover_topics", {"intent": intent})
    return ScriptedModel([ModelTurn("", (look,), Usage(10)), ModelTurn("", calls, Usage(10)), DONE])


class Chief(Supervisor):
    """The supervisor, with a model of ours."""

    name = "supervisor"

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model  # type: ignore[no-any-return]


class Two(Chief):
    """The same, with another model for orders."""

    name = "supervisor"

    def __init__(self, model: Any = None, orders: Any = None) -> None:
        super().__init__(model)
        self.orders = orders

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        made: Model = self.orders if spec == "openai-chat:any" else self.model
        return made


class Sky(Agent):
    """Knows the sky."""

    @topic("sky.forecast")
    async def forecast(self) -> str:
        """Weather of the coming days."""
        return "rain"

    @topic("sky.stars")
    async def stars(self) -> str:
        """Positions of the stars at night."""
        raise Terminal("clouds")


@pytest.fixture
async def peer(world: World) -> Peer:
    return await world.join("bridge", bridge=True)


@pytest.fixture
async def finder(peer: Peer) -> AsyncIterator[Finder]:
    """A bridge that finds by words, until it is given an embedder."""

    async def none() -> dict[str, int]:
        return {}

    async def kept() -> list[str]:
        return []

    made = Finder(peer.ports, peer.registry, peer.records)
    here = (peer.ports, peer.registry, peer.records, NoReplicas(), none, kept, {})
    bridge = Bridge(*here, lease_s=1.5, more=made.verbs)
    await bridge.start()
    yield made
    await bridge.aclose()


def with_embedder(finder: Finder, embedder: Embedder) -> asyncio.Task[None]:
    finder._embedder = embedder
    return asyncio.ensure_future(finder.keep())


async def offered(model: ScriptedModel) -> list[str]:
    built_in = {tool.name for tool in model.seen[0].tools} - {"sky__forecast", "sky__stars"}
    return [tool.name for tool in model.seen[-1].tools if tool.name not in built_in]


@ON_NATS
async def test_a_supervisor_finds_by_meaning(peer: Peer, finder: Finder, serve: Serve) -> None:
    await serve(Sky(), name="sky")
    keeping = with_embedder(finder, LocalEmbedder())

    async def has_vectors() -> bool:
        return (await finder.search("umbrella", least=0.0))["by"] != "words"

    await until(has_vectors, LOADED_S)
    model = looks_for("brauche ich einen Regenschirm?", ToolCall("f", "sky__forecast", {}))
    await serve(Chief(model))
    outcome = await peer.caller.ask("goal.pursue", {"goal": "sei vorbereitet"}, PLENTY)
    keeping.cancel()

    assert outcome.unwrap()["tasks"]["outcomes"] == {"result": 1}
    assert "sky__forecast" in [tool.name for tool in model.seen[-1].tools]


async def test_what_a_run_looked_for_and_called_is_evidence_for_and_against(
    peer: Peer, finder: Finder, serve: Serve
) -> None:
    await serve(Sky(), name="sky")
    calls = (ToolCall("f", "sky__forecast", {}), ToolCall("s", "sky__stars", {}), ToolCall("x", "no__such", {}))
    await serve(Chief(looks_for("weather of the days, positions of stars", *calls)))
    await peer.caller.ask("goal.pursue", {"goal": "plan a picnic"}, PLENTY)

    async def learned() -> bool:
        return len((await finder.lessons())["lessons"]) == 2

    await until(learned)
    told = (await finder.lessons())["lessons"]
    signs = {name: (each["intent"], each["weight"] > 0) for name, (each,) in told.items()}
    intent = "weather of the days, positions of stars"
    assert signs == {"sky.forecast": (intent, True), "sky.stars": (intent, False)}


async def test_nothing_fits_is_an_answer_for_a_supervisor_too(peer: Peer, finder: Finder, serve: Serve) -> None:
    await serve(Sky(), name="sky")
    model = looks_for("knit a pullover for my aunt of wool until the party, and then wash the dishes at night")
    await serve(Chief(model))
    await peer.caller.ask("goal.pursue", {"goal": "be nice"}, PLENTY)

    assert await offered(model) == []


class Reranks:
    """A model that thinks as its script says, and answers what it is asked about an order as it is told."""

    name = "function:reranks"

    def __init__(self, order: str | Exception, script: ScriptedModel) -> None:
        self.order, self.script, self.asked = order, script, list[ModelRequest]()

    async def think(self, request: ModelRequest, on_text: Any = None) -> ModelTurn:
        if request.tools:
            return await self.script.think(request, on_text)
        self.asked.append(request)
        if isinstance(self.order, Exception):
            raise self.order
        return ModelTurn(self.order, usage=Usage(input=70, output=7))

    async def aclose(self) -> None:
        pass


INTENT = "positions of the stars and the weather of coming days at night"


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ("[2]", ["sky__forecast"]),
        ("Here: [2, 1, 9]", ["sky__forecast", "sky__stars"]),
        ("[]", []),
        ("the second", ["sky__stars", "sky__forecast"]),
        ("[77]", ["sky__stars", "sky__forecast"]),
        ("[2 1]", ["sky__forecast", "sky__stars"]),
        ("[02,,1,]", ["sky__forecast", "sky__stars"]),
        ("[ , ]", ["sky__stars", "sky__forecast"]),
        (ModelError("no"), ["sky__stars", "sky__forecast"]),
        (KeyError("choices"), ["sky__stars", "sky__forecast"]),
    ],
    ids=["one", "both", "none", "no list", "no such number", "no JSON", "nearly", "no numbers", "fails", "raises"],
)
async def test_a_model_orders_what_is_found_and_if_it_cannot_the_order_stays(
    peer: Peer, finder: Finder, serve: Serve, monkeypatch: pytest.MonkeyPatch, order: Any, told: list[str]
) -> None:
    monkeypatch.setenv("SQUADRON_RERANK", "same")
    await serve(Sky(), name="sky")
    model = Reranks(order, looks_for(INTENT))
    await serve(Chief(model))
    outcome = await peer.caller.ask("goal.pursue", {"goal": "be nice to somebody"}, PLENTY)

    assert [tool.name for tool in model.script.seen[-1].tools if tool.name.startswith("sky__")] == told
    assert len(model.asked) == 1
    assert sum(len(message.content) for message in model.asked[0].messages) < 4 * MOST_TOKENS
    assert outcome.ok
    # What an order costs is the run's: 20 for its two turns.
    cost = outcome.spent.tokens - 20
    if isinstance(order, KeyError):
        # What a call cost of which nobody knows anything is what was set aside.
        assert 100 < cost < MOST_TOKENS
    else:
        assert cost == (0 if isinstance(order, Exception) else 77)


@pytest.mark.parametrize("budget", [Budget(tokens=MOST_TOKENS - 1), Budget(rounds=2)])
async def test_a_budget_with_no_room_for_an_order_has_none_made(
    peer: Peer, finder: Finder, serve: Serve, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    monkeypatch.setenv("SQUADRON_RERANK", "same")
    await serve(Sky(), name="sky")
    model = Reranks("[1]", looks_for(INTENT))
    await serve(Chief(model))
    asked = AskOptions(within_s=60.0, budget=budget)
    await peer.caller.ask("goal.pursue", {"goal": "be nice to somebody"}, asked)

    assert model.asked == []


async def test_a_limit_in_dollars_has_no_order_made_by_a_model_without_a_price(
    peer: Peer, finder: Finder, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUADRON_RERANK", "openai-chat:any")
    monkeypatch.setenv("SQUADRON_PRICES", '{"scripted:test": {"input": 0.1, "output": 0.1}}')
    await serve(Sky(), name="sky")
    script, orders = looks_for(INTENT), Reranks("[1]", looks_for(INTENT))
    await serve(Two(script, orders))
    asked = AskOptions(within_s=60.0, budget=Budget(usd=1.0))
    outcome = await peer.caller.ask("goal.pursue", {"goal": "be nice to somebody"}, asked)

    assert outcome.ok
    assert len(script.seen) > 1
    assert orders.asked == []


async def test_an_order_is_asked_for_on_the_account_of_its_model(
    peer: Peer, finder: Finder, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUADRON_RERANK", "same")
    admitted, admit = list[bool](), Accounts.admit

    async def counted(self: Accounts, model: Model, request: ModelRequest, **how: Any) -> Grant:
        admitted.append(bool(request.tools))
        return await admit(self, model, request, **how)

    monkeypatch.setattr(Accounts, "admit", counted)
    await serve(Sky(), name="sky")
    model = Reranks("[2]", looks_for(INTENT))
    await serve(Chief(model))
    await peer.caller.ask("goal.pursue", {"goal": "be nice to somebody"}, PLENTY)

    assert admitted.count(False) == len(model.asked) == 1


@ON_NATS
@pytest.mark.parametrize("fault", ["none", "500", "truncated"])
async def test_a_provider_orders_and_breaks(
    peer: Peer, finder: Finder, serve: Serve, monkeypatch: pytest.MonkeyPatch, llmock: LLMock, fault: str
) -> None:
    monkeypatch.setenv("SQUADRON_RERANK", "openai-chat:any")
    await serve(Sky(), name="sky")
    script, orders = looks_for(INTENT), client(llmock, "openai-chat")
    llmock.reply("[2]")
    if fault == "500":
        llmock.fail(500)
    elif fault == "truncated":
        llmock.truncate(after_chunks=0)

    await serve(Two(script, orders))
    outcome = await peer.caller.ask("goal.pursue", {"goal": "be nice to somebody"}, PLENTY)

    found = [tool.name for tool in script.seen[-1].tools if tool.name.startswith("sky__")]
    assert outcome.ok
    assert found == (["sky__forecast"] if fault == "none" else ["sky__stars", "sky__forecast"])
    assert len(llmock.requests) == 1

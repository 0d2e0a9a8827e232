"""The bridge finds topics for everybody: by words, by meaning, and by what was learned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from squadron.actors.thinking.embedding import Embedder, LocalEmbedder, open_embedder
from squadron.bridge.control.control import Bridge
from squadron.bridge.control.finding import Finder
from squadron.client.bridge_calls import Control
from squadron.runtime.asking.searching import search
from squadron.runtime.errors import ConfigError, InvalidInputError
from squadron.runtime.registry.learned import MOST_OF_SOURCE
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import NoReplicas, Peer, World, until

ABOUT = {
    "sky.forecast": "Weather of the coming days.",
    "bank.transfer": "Send money to an account.",
    "text.translate": "Put a text into French.",
}
CARDS = [
    AgentCard(agent=name.partition(".")[0], topics=(SemanticTopic(name=name, description=about),))
    for name, about in ABOUT.items()
]

Starts = Callable[[Embedder | None], Awaitable[tuple[Finder, Control]]]


@pytest.fixture
async def peer(world: World) -> AsyncIterator[Peer]:
    peer = await world.join("bridge", bridge=True)

    async def beat() -> None:
        for card in CARDS:
            await peer.registry.renew(card.agent, f"{card.agent}-1")

    async def keep_beating() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await beat()

    for card in CARDS:
        await peer.registry.advertise(card)
    await beat()
    beating = asyncio.ensure_future(keep_beating())
    yield peer
    beating.cancel()


@pytest.fixture
async def starts(peer: Peer) -> AsyncIterator[Starts]:
    tasks: list[asyncio.Task[None]] = []
    bridges: list[Bridge] = []

    async def held() -> dict[str, int]:
        return {}

    async def kept() -> list[str]:
        return []

    async def start(embedder: Embedder | None) -> tuple[Finder, Control]:
        finder = Finder(peer.ports, peer.registry, peer.records, embedder)
        await finder.load()
        here = (peer.ports, peer.registry, peer.records, NoReplicas(), held, kept, {})
        bridges.append(Bridge(*here, lease_s=1.5, more=finder.verbs))
        await bridges[-1].start()
        tasks.append(asyncio.ensure_future(finder.keep()))
        return finder, Control(peer.ports.bus, peer.ports.subjects)

    yield start
    for task in tasks:
        task.cancel()
    for bridge in bridges:
        await bridge.aclose()


async def _names(peer: Peer, intent: str, **options: Any) -> list[str]:
    return [one.topic.name for one in await search(peer.ports, peer.registry, intent, **options)]


async def test_a_client_asks_the_bridge_and_is_told_why(peer: Peer, starts: Starts) -> None:
    await starts(None)
    found = await search(peer.ports, peer.registry, "send some money")

    assert [one.topic.name for one in found] == ["bank.transfer"]
    assert 0 < found[0].score < 1
    assert found[0].why[0].startswith("words")
    assert await _names(peer, "send some money", least=0.99) == []


async def test_without_a_bridge_words_decide_in_the_client(peer: Peer) -> None:
    assert await _names(peer, "send some money") == ["bank.transfer"]


@pytest.mark.parametrize(
    ("intent", "right"),
    [
        ("will I need an umbrella tomorrow?", "sky.forecast"),
        ("Wie wird das Wetter am Wochenende?", "sky.forecast"),
        ("pagar el alquiler a mi casero", "bank.transfer"),
    ],
)
async def test_an_intent_that_shares_no_word_is_found_by_its_meaning(
    peer: Peer, starts: Starts, intent: str, right: str
) -> None:
    await starts(LocalEmbedder())

    async def found() -> bool:
        found = await search(peer.ports, peer.registry, intent)
        return [one.topic.name for one in found][:1] == [right]

    await until(found)
    best = (await search(peer.ports, peer.registry, intent))[0]
    assert best.why[0].startswith("meaning")


class Counting(LocalEmbedder):
    """The real one, which tells of what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def embed(self, texts: Any) -> list[list[float]]:
        self.asked += texts
        return await super().embed(texts)


async def test_vectors_are_made_once_and_the_next_bridge_reads_them(peer: Peer, starts: Starts) -> None:
    first, second = Counting(), Counting()
    await starts(first)

    async def all_made() -> bool:
        return len(await peer.records.latest(peer.ports.subjects.registry("vectors"))) == len(CARDS)

    await until(all_made)
    assert len(first.asked) == len(CARDS)
    after = Finder(peer.ports, peer.registry, peer.records, second)
    keeping = asyncio.ensure_future(after.keep())

    async def found() -> bool:
        return (await after.search("umbrella"))["by"] == second.name

    await until(found)
    keeping.cancel()
    assert second.asked == ["umbrella"]


async def test_what_led_to_a_topic_is_learned_kept_told_and_cleared(peer: Peer, starts: Starts) -> None:
    _, control = await starts(None)
    assert await _names(peer, "pay my landlord") == []
    await control.call("prefer", intent="pay my landlord", topic="bank.transfer")

    found = await search(peer.ports, peer.registry, "the landlord wants to be paid")
    assert [one.topic.name for one in found] == ["bank.transfer"]
    assert "1 intents that led to it" in found[0].why
    told = (await control.call("lessons"))["lessons"]
    assert [each["intent"] for each in told["bank.transfer"]] == ["pay my landlord"]
    successor = Finder(peer.ports, peer.registry, peer.records)
    await successor.load()
    assert (await successor.search("landlord"))["found"][0]["name"] == "bank.transfer"

    await control.call("prefer", intent="Pay my landlord", topic="bank.transfer", good=False)
    assert await _names(peer, "landlord") == []
    await control.call("prefer", intent="pay my landlord", topic="bank.transfer")
    assert (await control.call("forget"))["forgotten"] == ["bank.transfer"]
    assert await _names(peer, "landlord") == []
    with pytest.raises(InvalidInputError, match="nobody serves"):
        await control.call("prefer", intent="x", topic="no.where")


async def test_one_caller_teaches_a_topic_no_more_than_a_few_intents(peer: Peer, starts: Starts) -> None:
    finder, _ = await starts(None)
    for number in range(50):
        await finder.prefer(f"forecast{number} umbrella", "bank.transfer", source="mallory")

    assert len((await finder.lessons("bank.transfer"))["lessons"]["bank.transfer"]) == MOST_OF_SOURCE


async def test_among_equals_who_is_not_busy_comes_first(peer: Peer) -> None:
    topics = (SemanticTopic(name="a.same", description="count sheep"), SemanticTopic(name="b.same"))
    for agent, topic in zip(("busy", "idle"), topics, strict=True):
        same = topic.model_copy(update={"description": "count sheep"})
        await peer.registry.advertise(AgentCard(agent=agent, topics=(same,)))
        await peer.registry.renew(agent, f"{agent}-1")
    finder = Finder(peer.ports, peer.registry, peer.records, load=lambda agent: float(agent == "busy"))

    found = (await finder.search("count the sheep"))["found"]
    assert [each["agent"] for each in found] == ["idle", "busy"]


@pytest.mark.parametrize("spec", ["wikipedia", "openai:", "anthropic:x"])
async def test_an_embedder_that_there_is_not_is_refused_with_those_there_are(spec: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_embedder(spec)

    assert "'local'" in refused.value.hint

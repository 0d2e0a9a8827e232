"""The bridge finds topics for everybody: by words, by meaning, and by what was learned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from squadron.actors.thinking.embedding import Embedder, LocalEmbedder, open_embedder
from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.control.control import Bridge
from squadron.bridge.control.finding import Finder, TrackRecord
from squadron.runtime.asking.searching import search
from squadron.runtime.errors import ConfigError, InvalidInputError
from squadron.runtime.registry.learned import MOST_OF_SOURCE
from squadron.runtime.registry.ranker import TopicKey
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import ON_NATS, NoReplicas, Peer, World, stand_in, until
from tests.contract.vector_server import vectors_served

ABOUT = {
    "sky.forecast": "Weather of the coming days.",
    "bank.transfer": "Send money to an account.",
    "text.translate": "Put a text into French.",
}
CARDS = [
    AgentCard(agent=name.partition(".")[0], topics=(SemanticTopic(name=name, description=about),))
    for name, about in ABOUT.items()
]

#: Longest time in which the encoder is read from a busy disk.
LOADED_S = 60.0

Starts = Callable[..., Awaitable[tuple[Finder, Control]]]


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

    async def start(embedder: Embedder | None, **options: Any) -> tuple[Finder, Control]:
        finder = Finder(peer.ports, peer.registry, peer.records, embedder, **options)
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


@ON_NATS
async def test_meaning_comes_from_any_server_that_speaks_openais_api_and_words_decide_without_it(
    peer: Peer, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vectors_served(monkeypatch) as server:
        finder, _ = await starts(open_embedder("openai:tiny"))

        async def found() -> bool:
            return (await _names(peer, "will I need an umbrella tomorrow?"))[:1] == ["sky.forecast"]

        await until(found, within_s=LOADED_S)

        async def each_once() -> bool:
            texts = [text for asked in server.asked for text in asked["input"]]
            return all(sum(about in text for text in texts) == 1 for about in ABOUT.values())

        await until(each_once, within_s=LOADED_S)
        server.fault, intent = "slow", "send a letter to France"
        asked_before = len(server.asked)
        finder_found = [await finder.search(intent) for _ in range(2)]
        assert [each["by"] for each in finder_found] == ["words"] * 2
        # One is made, for all that wait.
        assert len(server.asked) == asked_before + 1
        server.go.set()

        async def meant() -> bool:
            return (await finder.search(intent))["by"] == "openai:tiny"

        await until(meant)
        assert len(server.asked) == asked_before + 1

        server.fault = "refused"
        assert (await _names(peer, "send some money"))[:1] == ["bank.transfer"]
        assert await _names(peer, "shall I take a raincoat?") == []


@pytest.mark.parametrize(
    ("intent", "right"),
    [
        ("will I need an umbrella tomorrow?", "sky.forecast"),
        ("Wie wird das Wetter am Wochenende?", "sky.forecast"),
        ("enviar dinero a mi casero", "bank.transfer"),
    ],
)
async def test_an_intent_that_shares_no_word_is_found_by_its_meaning(
    peer: Peer, starts: Starts, intent: str, right: str
) -> None:
    await starts(LocalEmbedder())

    async def found() -> bool:
        found = await search(peer.ports, peer.registry, intent)
        return [one.topic.name for one in found][:1] == [right]

    await until(found, LOADED_S)
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

    await until(all_made, LOADED_S)
    assert len(first.asked) == len(CARDS)
    after = Finder(peer.ports, peer.registry, peer.records, second)
    keeping = asyncio.ensure_future(after.keep())

    async def found() -> bool:
        return (await after.search("umbrella"))["by"] == second.name

    await until(found, LOADED_S)
    keeping.cancel()
    assert second.asked == ["umbrella"]


async def _vectors_of(peer: Peer) -> dict[str, str]:
    """What is stored of each topic."""
    entries = await peer.records.latest(peer.ports.subjects.registry("vectors"))
    return {entry.key: entry.data.decode() for entry in entries}


async def test_stored_vectors_that_are_none_are_made_anew(peer: Peer) -> None:
    finder = Finder(peer.ports, peer.registry, peer.records, LocalEmbedder())
    keeping = asyncio.ensure_future(finder.keep())

    async def all_made() -> bool:
        return len(await _vectors_of(peer)) == len(CARDS)

    await until(all_made, LOADED_S)
    keeping.cancel()
    made = await _vectors_of(peer)
    rubbish = ["no JSON", '{"vectors": "AAAA"}', "[]"]
    for key, data in zip(made, rubbish, strict=True):
        await peer.records.append(key, data.encode())
    after = asyncio.ensure_future(Finder(peer.ports, peer.registry, peer.records, LocalEmbedder()).keep())

    async def are_back() -> bool:
        return await _vectors_of(peer) == made

    await until(are_back, LOADED_S)
    assert not after.done()
    after.cancel()


async def test_vectors_of_another_length_break_nothing_and_words_decide(peer: Peer) -> None:
    class Shrinking(LocalEmbedder):
        shrunk = False

        async def embed(self, texts: Any) -> list[list[float]]:
            vectors = await super().embed(texts)
            return [each[:8] for each in vectors] if self.shrunk else vectors

    embedder = Shrinking()
    finder = Finder(peer.ports, peer.registry, peer.records, embedder)
    keeping = asyncio.ensure_future(finder.keep())

    async def by_meaning() -> bool:
        found = await finder.search("a payment")
        return bool(found["found"]) and found["found"][0]["name"] == "bank.transfer"

    await until(by_meaning, LOADED_S)
    embedder.shrunk = True
    found = await finder.search("send some money")
    assert (found["by"], found["found"][0]["name"]) == ("words", "bank.transfer")
    bank = SemanticTopic(name="bank.transfer", description="Brew a cup of coffee.")
    await peer.registry.advertise(AgentCard(agent="bank", topics=(bank,)))
    # What it meant before counts no more, though there are no new vectors of it.
    found = await finder.search("a payment", least=-1.0)
    assert found["by"] != "words"
    assert "bank.transfer" not in [each["name"] for each in found["found"]]
    assert not keeping.done()
    keeping.cancel()


@ON_NATS
async def test_a_card_that_nobody_made_vectors_for_is_found_by_its_words(peer: Peer) -> None:
    finder = Finder(peer.ports, peer.registry, peer.records, LocalEmbedder())
    keeping = asyncio.ensure_future(finder.keep())

    async def by_meaning() -> bool:
        return (await finder.search("umbrella"))["by"] != "words"

    await until(by_meaning, LOADED_S)
    keeping.cancel()
    coffee = SemanticTopic(name="coffee.brew", description="Brew a cup of coffee.")
    await peer.registry.advertise(AgentCard(agent="foreign", topics=(coffee,)))
    await stand_in(peer, "foreign", "foreign-1")

    first = (await finder.search("brew me some coffee"))["found"][0]
    assert (first["name"], [why.partition(" ")[0] for why in first["why"]]) == ("coffee.brew", ["words"])


async def test_what_led_to_a_topic_is_learned_kept_told_and_cleared(peer: Peer, starts: Starts) -> None:
    _, control = await starts(None)
    assert await _names(peer, "pay my landlord") == []
    await control.call("prefer", intent="pay my landlord", topic="bank.transfer")

    found = await search(peer.ports, peer.registry, "the landlord wants to be paid")
    assert [one.topic.name for one in found] == ["bank.transfer"]
    assert "1 intent that led to it" in found[0].why
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


async def test_what_led_to_one_topic_of_a_family_led_to_the_family(peer: Peer, starts: Starts) -> None:
    _, control = await starts(None)
    family = SemanticTopic(name="legal.*", description="Questions of law.")
    await peer.registry.advertise(AgentCard(agent="sky", topics=(family,)))
    told = await control.call("prefer", intent="my landlord wants to throw me out", topic="legal.tenancy")

    assert told["topic"] == "legal.*"
    assert await _names(peer, "thrown out by the landlord") == ["legal.*"]
    assert list((await control.call("lessons", topic="legal.*"))["lessons"]) == ["legal.*"]
    with pytest.raises(InvalidInputError, match="nobody serves"):
        await control.call("prefer", intent="x", topic=5)


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
        await stand_in(peer, agent, f"{agent}-1")
    finder = Finder(peer.ports, peer.registry, peer.records, load=lambda agent: float(agent == "busy"))

    found = (await finder.search("count the sheep"))["found"]
    assert [each["agent"] for each in found] == ["idle", "busy"]


#: Of two that say the same of themselves, what is said of how the first fares.
WORSE = {
    "fails": TrackRecord({"result": 5, "failed": 5}),
    "costs": TrackRecord({"result": 9}, usd=0.2),
    "is refused": TrackRecord({"result": 9, "rejected": 90, "cancelled": 9}),
}


@pytest.mark.parametrize(("how", "first"), [("fails", "bob"), ("costs", "bob"), ("is refused", "ann")])
async def test_among_equals_who_succeeds_and_is_cheap_comes_first(peer: Peer, how: str, first: str) -> None:
    for agent in ("ann", "bob"):
        card = AgentCard(agent=agent, topics=(SemanticTopic(name=f"{agent}.same", description="count sheep"),))
        await peer.registry.advertise(card)
        await stand_in(peer, agent, f"{agent}-1")
    records = {TopicKey("ann.same", "ann"): WORSE[how]}
    finder = Finder(peer.ports, peer.registry, peer.records, record=lambda key: records.get(key, TrackRecord()))

    found = (await finder.search("count the sheep"))["found"]
    assert found[0]["agent"] == first
    told = (await finder.track("ann.same"))["agents"]["ann"]
    assert (told["outcomes"], told["usd"], told["replicas"]) == (dict(WORSE[how].outcomes), WORSE[how].usd, 1)


async def test_nothing_fits_is_an_answer_of_the_bridge_and_of_a_client_alone(peer: Peer, starts: Starts) -> None:
    intent = "my aunt emigrated to Canada before the coming war, by ship, with two trunks and a parrot"
    assert await _names(peer, intent) == []
    assert await _names(peer, intent, least=0.0) == ["sky.forecast"]
    await starts(None)
    assert await _names(peer, intent) == []
    assert await _names(peer, intent, least=0.0) == ["sky.forecast"]


async def test_a_card_that_changes_is_found_by_what_it_says_now(peer: Peer, starts: Starts) -> None:
    await starts(None)
    assert await _names(peer, "send money") == ["bank.transfer"]
    await peer.registry.advertise(CARDS[1].model_copy(update={"topics": (SemanticTopic(name="bank.hours"),)}))

    assert await _names(peer, "send money") == []
    assert await _names(peer, "bank hours") == ["bank.hours"]


async def test_where_learning_is_off_nothing_is_learned_and_what_was_counts_for_nothing(
    peer: Peer, starts: Starts
) -> None:
    before = Finder(peer.ports, peer.registry, peer.records)
    await before.prefer("pay my landlord", "bank.transfer", source="ann")
    _, control = await starts(None, learns=False)

    assert await _names(peer, "the landlord") == []
    with pytest.raises(ConfigError, match="nothing is learned"):
        await control.call("prefer", intent="a tent", topic="sky.forecast")
    assert (await control.call("track", topic="sky.forecast"))["learns"] is False
    assert list((await control.call("lessons"))["lessons"]) == ["bank.transfer"]


async def test_a_crowd_of_lies_of_one_source_weighs_no_more_than_a_few_and_one_no_takes_one_back(
    peer: Peer, starts: Starts
) -> None:
    finder, _ = await starts(None)
    for number in range(40):
        await finder.prefer(f"umbrella {number}", "bank.transfer", source="mallory")
    for who in ("ann", "bob", "eve"):
        await finder.prefer("umbrella 39", "bank.transfer", good=False, source=who)
        await finder.prefer("take an umbrella", "sky.forecast", source=who)

    lessons = (await finder.lessons())["lessons"]
    assert len(lessons["bank.transfer"]) <= MOST_OF_SOURCE
    assert next(each for each in lessons["bank.transfer"] if each["intent"] == "umbrella 39")["weight"] < 0
    assert (await _names(peer, "take the umbrella"))[0] == "sky.forecast"


@pytest.mark.parametrize("spec", ["wikipedia", "openai:", "anthropic:x"])
async def test_an_embedder_that_there_is_not_is_refused_with_those_there_are(spec: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_embedder(spec)

    assert "'local'" in refused.value.hint

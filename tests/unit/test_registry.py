"""Who serves what, and who is alive: advertised, found, lapsed, gone."""

from __future__ import annotations

import asyncio

import pytest

from squadron.bridge.memory import MemoryBus, MemoryJournal
from squadron.runtime.registry.presence import MOST_BEATS_PER_S
from squadron.runtime.registry.registry import ROUNDED_S, STAND_IN, Registry
from squadron.runtime.wire.subjects import Subjects
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.unit.test_budget import HandClock

BEAT_S = 5.0


class Town:
    """Some registries that share one journal, one bus and one clock that is turned by hand."""

    def __init__(self) -> None:
        self.bus, self.clock, self.subjects = MemoryBus(), HandClock(), Subjects("t")
        self.journal = MemoryJournal(self.bus, self.clock.time)

    async def registry(self) -> Registry:
        made = Registry(self.journal, self.bus, self.subjects, self.clock, heartbeat_s=BEAT_S)
        await made.start()
        return made


@pytest.fixture
def town() -> Town:
    return Town()


def _card(agent: str, *topics: str) -> AgentCard:
    return AgentCard(
        agent=agent, topics=tuple(SemanticTopic(name=name, description=f"{name}!") for name in topics)
    )


async def _heard() -> None:
    """What was published is heard in the next rounds of the loop."""
    for _ in range(3):
        await asyncio.sleep(0)


def _lapses_of(registry: Registry) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    registry.on_lapse(lambda agent, replica: told.append((agent, replica)))
    return told


async def _serve(registry: Registry, agent: str, *topics: str) -> None:
    await registry.advertise(_card(agent, *topics))
    await registry.renew(agent, f"{agent}-1")
    await _heard()


async def test_what_one_advertises_another_finds_and_a_late_joiner_too(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await _serve(one, "analyst", "analysis.sentiment")
    late = await town.registry()

    for registry in (one, other, late):
        found = registry.find("analysis.sentiment")
        assert found is not None
        assert found.description == "analysis.sentiment!"
        assert [card.agent for card in registry.cards()] == ["analyst"]
        assert registry.find("analysis.tone") is None


async def test_what_is_withdrawn_is_gone_for_everybody(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await _serve(one, "analyst", "analysis.sentiment")
    await one.withdraw("analyst")
    await _heard()

    for registry in (one, other, await town.registry()):
        assert registry.find("analysis.sentiment") is None
        assert registry.discover("sentiment") == []
        assert registry.topics() == []


async def test_a_new_card_takes_the_place_of_the_old_one(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await _serve(one, "analyst", "analysis.sentiment")
    assert other.discover("tone") == []
    await _serve(one, "analyst", "analysis.tone")

    assert other.find("analysis.sentiment") is None
    assert [hit.topic.name for hit in other.discover("tone")] == ["analysis.tone"]


async def test_a_card_without_a_living_replica_is_not_served(town: Town) -> None:
    registry = await town.registry()
    await registry.advertise(_card("ghost", "haunt.house"))

    assert registry.find("haunt.house") is None
    assert registry.discover("haunt") == []
    assert not registry.is_live("ghost")


async def test_an_agent_is_alive_until_three_heartbeats_were_missed(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await _serve(one, "analyst", "analysis.sentiment")

    lapsed = _lapses_of(other)

    town.clock.now += 3 * BEAT_S - 0.01
    await other.look()
    assert other.find("analysis.sentiment") is not None
    assert list(other.replicas("analyst")) == ["analyst-1"]
    assert lapsed == []

    town.clock.now += 0.02 + ROUNDED_S
    await other.look()
    assert other.find("analysis.sentiment") is None
    assert other.discover("sentiment") == []
    assert other.replicas("analyst") == {}
    assert lapsed == [("analyst", "analyst-1")]
    await other.look()
    assert len(lapsed) == 1  # told once


async def test_a_heartbeat_in_time_keeps_it_alive(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await _serve(one, "analyst", "analysis.sentiment")
    for _ in range(5):
        town.clock.now += 2 * BEAT_S
        await one.renew("analyst", "analyst-1", pid=7, node="here")
        await _heard()

    assert other.find("analysis.sentiment") is not None
    assert other.replicas("analyst")["analyst-1"].pid == 7


async def test_where_there_are_thousands_each_tells_more_seldom_and_lives_as_much_longer(town: Town) -> None:
    one, crowd = await town.registry(), 4000
    for number in range(crowd):
        await one.renew("crowd", f"crowd-{number}")
    await _serve(one, "analyst", "analysis.sentiment")
    other = await town.registry()
    lapsed = _lapses_of(other)

    # Each looks by itself, too, once a second.
    beat_s = one.beat_s
    assert beat_s == other.beat_s == (crowd + 1) / MOST_BEATS_PER_S > BEAT_S
    town.clock.now += 3 * BEAT_S + ROUNDED_S + 0.01
    await other.look()
    # The crowd told when it was small, that it lives three short beats.
    assert len(lapsed) > crowd / 2
    assert other.is_live("analyst")
    town.clock.now += 3 * beat_s - 3 * BEAT_S
    await other.look()
    assert not other.is_live("analyst")
    assert other.beat_s == BEAT_S


async def test_a_presence_is_due_once_its_beat_is_over(town: Town) -> None:
    one = await town.registry()
    assert one.is_due("analyst", STAND_IN)
    await one.renew("analyst", STAND_IN)
    await _heard()
    assert not one.is_due("analyst", STAND_IN)
    town.clock.now += BEAT_S
    assert one.is_due("analyst", STAND_IN)


async def test_who_gives_signs_of_life_for_many_gives_them_seldom_and_each_lasts_for_longer(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await one.renew("analyst", STAND_IN, least_s=10 * BEAT_S)
    await _heard()
    town.clock.now += 9 * BEAT_S
    await other.look()
    assert not one.is_due("analyst", STAND_IN, least_s=10 * BEAT_S)
    assert other.is_live("analyst")
    town.clock.now += BEAT_S
    assert one.is_due("analyst", STAND_IN, least_s=10 * BEAT_S)
    town.clock.now += 21 * BEAT_S
    await other.look()
    assert not other.is_live("analyst")


async def test_a_farewell_counts_at_once_and_is_not_a_lapse(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await _serve(one, "analyst", "analysis.sentiment")
    await one.depart("analyst", "analyst-1")
    await _heard()

    assert other.find("analysis.sentiment") is None
    lapsed = _lapses_of(other)
    town.clock.now += 10 * BEAT_S
    await other.look()
    assert lapsed == []


async def test_one_replica_of_two_is_enough(town: Town) -> None:
    registry = await town.registry()
    await _serve(registry, "analyst", "analysis.sentiment")
    await registry.renew("analyst", "analyst-2")
    await registry.depart("analyst", "analyst-1")

    assert registry.is_live("analyst")
    assert list(registry.replicas("analyst")) == ["analyst-2"]


async def test_the_stand_in_keeps_an_agent_found_but_is_no_replica(town: Town) -> None:
    registry = await town.registry()
    await registry.advertise(_card("sleeper", "sleep.tight"))
    await registry.renew("sleeper", STAND_IN)

    assert registry.find("sleep.tight") is not None
    assert registry.replicas("sleeper") == {}
    lapsed = _lapses_of(registry)
    town.clock.now += 10 * BEAT_S
    await registry.look()
    assert lapsed == []
    assert registry.find("sleep.tight") is None


async def test_a_family_is_found_by_any_of_its_topics_but_the_exact_one_wins(town: Town) -> None:
    registry = await town.registry()
    await _serve(registry, "all", "book.*", "book.burn")

    for topic, found in (("book.read", "book.*"), ("book.burn", "book.burn")):
        served = registry.find(topic)
        assert served is not None
        assert served.name == found
    assert registry.find("film.watch") is None


async def test_a_dead_namesake_does_not_hide_a_family_that_lives(town: Town) -> None:
    registry = await town.registry()
    await _serve(registry, "all", "book.*")
    await registry.advertise(_card("dead", "book.read"))

    found = registry.find("book.read")
    assert found is not None
    assert found.name == "book.*"


async def test_a_dead_agent_does_not_hide_a_living_one_with_the_same_topic(town: Town) -> None:
    """As after a rename, when the old agent went without withdrawing its card."""
    registry = await town.registry()
    await _serve(registry, "new", "book.read")
    await registry.advertise(_card("old", "book.read"))

    assert registry.find("book.read") is not None


async def test_the_nearest_names_are_offered(town: Town) -> None:
    registry = await town.registry()
    await _serve(registry, "analyst", "analysis.sentiment", "analysis.summary", "weather.forecast")

    assert registry.nearest("analysis.sentimnet")[0] == "analysis.sentiment"
    assert registry.nearest("zzzz.qqqq") == []
    assert len(registry.nearest("analysis.s", most=1)) == 1
    await _serve(registry, "many", *(f"many.topic_{number}" for number in range(200)))
    assert registry.nearest("analysis.sentimnet")[0] == "analysis.sentiment"
    assert registry.nearest("many.topic17")[0] == "many.topic_17"
    await registry.depart("analyst", "analyst-1")
    assert "analysis.sentiment" not in registry.nearest("analysis.sentimnet")


async def test_discovery_is_ranked_limited_and_names_the_agent(town: Town) -> None:
    registry = await town.registry()
    await _serve(registry, "analyst", "analysis.sentiment", "analysis.tone")
    await _serve(registry, "clerk", "license.classify")

    hits = registry.discover("analysis of the tone")

    assert [(hit.topic.name, hit.agent) for hit in hits] == [
        ("analysis.tone", "analyst"),
        ("analysis.sentiment", "analyst"),
    ]
    assert hits[0].score > hits[1].score > 0
    assert len(registry.discover("analysis", most=1)) == 1


async def test_waiting_for_a_topic_ends_when_it_appears_or_never_does(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    waiting = [asyncio.create_task(other.wait_for("book.read", within_s=5)) for _ in range(3)]
    await asyncio.sleep(0)
    await _serve(one, "reader", "book.read")

    for found in await asyncio.gather(*waiting):
        assert found is not None
        assert found.name == "book.read"
    assert await other.wait_for("film.watch", within_s=0.01) is None


async def test_entries_of_somebody_who_does_not_know_the_format_are_passed_over(town: Town) -> None:
    registry = await town.registry()
    await town.journal.append(town.subjects.card("odd"), b"not json")
    await town.journal.append(town.subjects.presence("odd", "r"), b"{}")
    await _serve(registry, "reader", "book.read")
    late = await town.registry()

    for each in (registry, late):
        assert [card.agent for card in each.cards()] == ["reader"]


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"{}",
        b"\xff",
        b'{"agent": "other", "topics": []}',
        b'{"agent": "reader", "topics": [{"name": "not a topic"}]}',
        b'{"agent": "a b"}',
    ],
)
async def test_what_is_no_card_neither_removes_nor_shadows_one(town: Town, data: bytes) -> None:
    one, other = await town.registry(), await town.registry()
    await _serve(one, "reader", "book.read")
    await town.journal.append(town.subjects.card("reader"), data)
    await town.journal.append(town.subjects.card("evil"), data)
    await town.journal.append(town.subjects.presence("reader", "reader-1"), data)
    await _heard()

    for each in (one, other):
        assert each.find("book.read") is not None
        assert [card.agent for card in each.cards()] == ["reader"]
    assert (await town.registry()).cards() == []


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "1e400"])
async def test_a_presence_without_an_end_is_none(town: Town, figure: str) -> None:
    registry = await town.registry()
    await registry.advertise(_card("reader", "book.read"))
    await town.journal.append(town.subjects.presence("reader", "r"), f'{{"expires_at": {figure}}}'.encode())
    await _heard()

    assert not registry.is_live("reader")


@pytest.mark.parametrize("tail", ["card", "presence.agent", "card.a.b", "presence.a.b.c", "other.x"])
async def test_keys_of_an_unexpected_length_are_passed_over(town: Town, tail: str) -> None:
    registry = await town.registry()
    await town.journal.append(f"agents.t.registry.{tail}", b"{}")
    await _serve(registry, "reader", "book.read")

    assert (await town.registry()).find("book.read") is not None
    assert registry.find("book.read") is not None


async def test_a_closed_registry_hears_nothing_more(town: Town) -> None:
    one, other = await town.registry(), await town.registry()
    await other.aclose()
    await other.aclose()
    await _serve(one, "reader", "book.read")

    assert other.find("book.read") is None

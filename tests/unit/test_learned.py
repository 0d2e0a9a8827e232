"""What is learned from use: no source alone can have topics found by what they are not for, or no longer found."""

from __future__ import annotations

from typing import Any, cast

from squadron.bridge.control.finding import Finder
from squadron.bridge.memory import MemoryServer
from squadron.bridge.serve.bridge_process import BridgeProcess
from squadron.config import Settings
from squadron.runtime.registry.learned import HALF_LIFE_S, MOST_LESSONS, MOST_OF_SOURCE, MOST_TAUGHT, Learned
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.topics import AgentCard, SemanticTopic


def _taught_by_many(count: int = MOST_LESSONS) -> Learned:
    learned = Learned()
    for number in range(count):
        learned.note(f"intent {number}", "a.topic", f"user{number}", 0.0)
    return learned


def test_a_source_takes_the_place_of_a_few_lessons_at_most() -> None:
    learned = _taught_by_many()
    for number in range(100):
        learned.note(f"lie {number}", "a.topic", "mallory", 1.0)

    found = learned.examples("a.topic", 1.0)
    assert len(found) == MOST_LESSONS
    assert sum(each.startswith("lie") for each in found) == MOST_OF_SOURCE


def test_a_source_takes_back_a_few_lessons_at_most() -> None:
    learned = _taught_by_many()
    for number in range(MOST_LESSONS):
        learned.note(f"intent {number}", "a.topic", "mallory", 0.0, good=False)

    assert len(learned.examples("a.topic", 0.0)) == MOST_LESSONS - MOST_OF_SOURCE
    # The next bridge sees it the same way.
    after = Learned()
    after.load("a.topic", learned.dump("a.topic"), 0.0)
    assert sorted(after.examples("a.topic", 0.0)) == sorted(learned.examples("a.topic", 0.0))


def test_a_source_teaches_so_many_topics_and_then_loses_what_it_taught_first() -> None:
    learned = Learned()
    for number in range(MOST_TAUGHT + 10):
        learned.note("pay my landlord", f"a.topic{number}", "mallory", 0.0)

    taught = [number for number in range(MOST_TAUGHT + 10) if learned.examples(f"a.topic{number}", 0.0)]
    assert taught == list(range(10, MOST_TAUGHT + 10))


def test_what_nobody_said_again_for_months_counts_for_nothing_and_is_shed() -> None:
    learned = _taught_by_many(3)
    assert len(learned.examples("a.topic", HALF_LIFE_S)) == 3
    late = 4 * HALF_LIFE_S
    assert learned.examples("a.topic", late) == ()
    learned.note("something new", "a.topic", "ann", late)
    assert [each["intent"] for each in learned.told("a.topic", late)] == ["something new"]


async def test_the_next_bridge_knows_what_was_learned_before_anybody_can_teach_it() -> None:
    server, settings = MemoryServer(), Settings(learn="yes")
    place = server.place(AgentIdentity(id="bridge"), settings)
    await place.registry.advertise(AgentCard(agent="a", topics=(SemanticTopic(name="a.topic"),)))
    await place.registry.renew("a", "a-1")
    earlier = Finder(place.ports, place.registry, place.records)
    for number in range(3):
        await earlier.prefer(f"intent {number}", "a.topic", source=f"user{number}")
    bridge = BridgeProcess()
    bridge._settings, bridge.wiring = settings, cast("Any", place)

    verbs = (await bridge._search()).verbs
    await verbs["prefer"]("intent 3", "a.topic", source="user3")

    after = Finder(place.ports, place.registry, place.records)
    await after.load()
    assert len((await after.lessons("a.topic"))["lessons"]["a.topic"]) == 4

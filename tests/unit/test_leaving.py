"""All that users are handed and can close is left by `with`, too; and what it buffers is bounded."""

from __future__ import annotations

from typing import Any

import pytest

from squadron import Context, Squad
from squadron.client import blocking, subscriptions
from squadron.client.subscriptions import Events
from squadron.runtime.asking.handle import Handle
from squadron.runtime.lite.feed import LiteFeed
from squadron.runtime.lite.reader import LiteReader, LiteReading
from squadron.runtime.lite.topic import LiteTopic
from squadron.runtime.ports.bus import Note
from squadron.runtime.steady import Steady
from squadron.runtime.wire.envelope import AgentIdentity, pack
from squadron.testing import MemorySquad

READERS = [Events, subscriptions.DurableEvents, Steady, LiteReader, LiteReading, LiteFeed, LiteTopic]
PLAIN = [
    each
    for each in vars(blocking).values()
    if isinstance(each, type) and each.__module__ == blocking.__name__ and hasattr(each, "close")
]


@pytest.mark.parametrize("kind", [Squad, MemorySquad, *READERS])
def test_what_is_closed_with_await_is_left_by_async_with(kind: Any) -> None:
    assert hasattr(kind, "__aenter__")
    assert hasattr(kind, "__aexit__")


@pytest.mark.parametrize("kind", PLAIN)
def test_what_blocks_is_left_by_with(kind: Any) -> None:
    assert hasattr(kind, "__enter__")
    assert hasattr(kind, "__exit__")


def _shown(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_handles_and_contexts_show_people_what_is_theirs_and_no_more() -> None:
    theirs = {"cancel", "chunks", "done", "events", "outcome", "ticket"}
    assert _shown(Handle) == theirs
    assert _shown(blocking.SyncHandle) == theirs
    own = {
        "ask_person",
        "ask_approval",
        "budget",
        "cancelled",
        "charge",
        "emit",
        "is_sealed",
        "lite",
        "log",
        "recall",
        "remember",
        "sync",
    }
    assert _shown(Context) == {"ask", "submit", "negotiate", "publish", "publish_durable", *own}


def test_there_are_plain_ones() -> None:
    assert len(PLAIN) >= 5


async def test_a_lite_topic_that_is_left_has_ended_and_a_subscription_hears_nothing_more() -> None:
    async with MemorySquad() as squad:
        async with squad.lite("one", "me") as topic, topic.read() as reader:
            await topic.publish("hello")
            assert b"hello" in (await anext(reader)).data
        assert [each async for each in squad.lite("one", "me").read("first", live=False)] == []

        async with await squad.subscribe("news.*") as events:
            await squad.publish("news.sport", 1)
            assert (await events.next(within_s=30)).payload.content == 1
        await squad.publish("news.sport", 2)
        with pytest.raises(TimeoutError):
            await events.next(within_s=30)


async def test_a_subscription_that_nobody_reads_holds_the_newest_and_counts_the_rest() -> None:
    events = Events(most_held=3)
    for number in range(5):
        events.hear(Note("agents.test.event.news.x", pack("event", AgentIdentity(id="x"), {"content": number})))

    assert events.dropped == 2
    assert (await anext(events)).payload.content == 2
    await events.aclose()
    assert [each.payload.content async for each in events] == [3, 4]


async def test_a_subscription_that_is_closed_holds_nothing_that_comes_late() -> None:
    events = Events(most_held=2)
    await events.aclose()
    for number in range(3):
        events.hear(Note("agents.test.event.news.x", pack("event", AgentIdentity(id="x"), {"content": number})))

    assert [each async for each in events] == []
    assert events.dropped == 0

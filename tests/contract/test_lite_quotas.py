"""How many lite topics there may be: who would make one too many is refused, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from squadron.runtime.errors import QuotaExceededError, SquadronError
from squadron.runtime.lite import quotas
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.wire.subjects import life_of
from tests.contract.conftest import Peer

Limited = Callable[..., LiteTopics]


@pytest.fixture
def limited(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Limited:
    """The lite topics of one process, with quotas of its own; what others do shows soon."""
    monkeypatch.setattr(quotas, "COUNT_S", 0.2)

    def make(**limits: int) -> LiteTopics:
        return LiteTopics(peer.ports, **limits)

    return make


async def test_an_owner_has_no_more_topics_than_it_may(limited: Limited) -> None:
    topics = limited(per_owner=10)
    made = [topics.topic(f"t{n}", "greedy", ttl_s=60) for n in range(10)]
    for each in made:
        await each.publish(1)

    with pytest.raises(QuotaExceededError) as caught:
        await topics.topic("over", "greedy").publish(1)
    assert (caught.value.owner, caught.value.limit) == ("greedy", 10)
    assert "lite_topics_per_owner" in caught.value.hint
    # It says so over a process border, too.
    again = SquadronError.from_dict(caught.value.to_dict())
    assert isinstance(again, QuotaExceededError)
    assert (again.owner, again.limit) == ("greedy", 10)

    # Nothing was stored; what is there already goes on, and so do others.
    assert [message async for message in topics.topic("over", "greedy").read(live=False)] == []
    await made[0].publish(2)
    await topics.topic("a", "modest").publish(1)


async def test_an_environment_has_no_more_topics_than_it_may(limited: Limited) -> None:
    topics = limited(in_all=8)
    for n in range(8):
        await topics.topic("a", f"owner{n}").publish(1)

    with pytest.raises(QuotaExceededError) as caught:
        await topics.topic("a", "another").publish(1)
    assert (caught.value.owner, caught.value.limit) == ("", 8)


async def test_what_ended_makes_room(limited: Limited) -> None:
    topics = limited(per_owner=1)
    first = topics.topic("first", "o")
    await first.publish(1)
    with pytest.raises(QuotaExceededError):
        await topics.topic("second", "o").publish(1)
    await first.close()

    async with asyncio.timeout(30):
        while True:
            try:
                await topics.topic("second", "o").publish(1)
                break
            except QuotaExceededError:
                await asyncio.sleep(0.05)


async def test_a_topic_of_another_process_may_be_used_when_there_is_no_room(limited: Limited) -> None:
    one, other = limited(per_owner=1), limited(per_owner=1)
    await one.topic("a", "o", ttl_s=60).publish(1)

    await other.topic("a", "o").publish(2)
    with pytest.raises(QuotaExceededError):
        await other.topic("b", "o").publish(1)


async def test_two_processes_find_out_of_each_other(limited: Limited) -> None:
    """A quarter of what is left is used before the next count: together they stay near the limit."""
    ours = [limited(per_owner=40), limited(per_owner=40)]
    made = 0
    for n in range(60):
        for which, topics in enumerate(ours):
            try:
                await topics.topic(f"t{which}-{n}", "o").publish(1)
                made += 1
            except QuotaExceededError:
                pass

    assert 40 <= made <= 50


async def test_many_at_once_stay_within_the_limit(limited: Limited) -> None:
    topics = limited(per_owner=50)
    made = await asyncio.gather(
        *(topics.topic(f"t{n}", "o").publish(1) for n in range(80)), return_exceptions=True
    )

    refused = [each for each in made if isinstance(each, QuotaExceededError)]
    assert len(refused) + sum(isinstance(each, int) for each in made) == 80
    assert len(refused) == 30


async def test_topics_of_the_runtime_itself_count_for_nobody(limited: Limited, peer: Peer) -> None:
    topics = limited(per_owner=1, in_all=1)
    for owner in ("outcome", "cancel", "memory-clerk"):
        for n in range(3):
            await peer.lite.append(peer.subjects.lite(owner, f"t{n}"), b"{}", ttl_s=60)

    seq = await topics.topic("a", "o").publish(1)

    assert seq > 0
    order = await peer.lite.last(life_of(peer.subjects.lite("o", "a")))
    assert order is not None
    assert order.headers[END_HEADER] == "expired"

"""One subscription for the lite topics of an owner, and who comes and goes while it is made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from squadron.runtime.asking.hearing import Hearing
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.wire.subjects import Subjects


class _Journal:
    """Makes subscriptions when it is told to."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.closed: list[str] = []
        self.may = asyncio.Event()
        self.fails = False

    async def follow(self, key: str, sink: Any, *, lost: Any = None) -> Any:
        self.made.append(key)
        await self.may.wait()
        if self.fails:
            raise BusUnavailableError("it is away")
        journal = self

        class Subscription:
            async def aclose(self) -> None:
                journal.closed.append(key)

        return Subscription()


@pytest.fixture
def journal() -> _Journal:
    return _Journal()


@pytest.fixture
def hearing(journal: _Journal) -> Hearing:
    lite: Any = journal
    return Hearing(lite, Subjects("dev"), lambda _: None)


async def _soon() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_subscription_stays_for_who_began_to_read_while_it_was_made(
    hearing: Hearing, journal: _Journal
) -> None:
    hears = asyncio.create_task(hearing.hear("ann"))
    await _soon()
    follows = asyncio.create_task(hearing.follow(Subjects("dev").lite("ann", "one"), lambda _: None))
    await _soon()
    hearing.forget("ann")
    journal.may.set()
    await hears
    reader = await follows
    await _soon()
    assert journal.closed == []

    await reader.aclose()
    await _soon()
    assert len(journal.closed) == len(journal.made) == 1


async def test_a_subscription_that_failed_is_made_anew_though_nobody_waited_for_it(
    hearing: Hearing, journal: _Journal
) -> None:
    hears = asyncio.create_task(hearing.hear("ann"))
    await _soon()
    hears.cancel()
    journal.fails = True
    journal.may.set()
    await _soon()
    journal.fails = False

    await hearing.hear("ann")
    assert len(journal.made) == 2

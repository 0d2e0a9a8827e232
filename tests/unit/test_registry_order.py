"""A registry whose journal tells and answers late: the newest entry counts, and nobody is forgotten too soon."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.bridge.memory import MemoryBus, MemoryJournal
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Entry
from squadron.runtime.registry.registry import STAND_IN, Registry
from squadron.runtime.wire.subjects import Subjects
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.unit.test_budget import HandClock

SUBJECTS = Subjects("t")


class _Ear:
    async def aclose(self) -> None:
        return


class HeldJournal(MemoryJournal):
    """What it tells, and what it answers to a read, is on its way until it is let through."""

    def __init__(self) -> None:
        super().__init__(MemoryBus(), HandClock().time)
        self.told: deque[Entry] = deque()
        self.answers: deque[asyncio.Future[None]] = deque()
        self.holds, self.away = False, False
        self._ears: list[tuple[Callable[[Entry], None], Callable[[], None]]] = []

    async def append(self, key: str, data: bytes, **options: object) -> int:
        seq = await super().append(key, data, **options)  # type: ignore[arg-type]
        self.told.append(Entry(seq, key, data, time=float(seq)))
        return seq

    async def follow(
        self, pattern: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        assert lost is not None
        self._ears.append((sink, lost))
        return _Ear()

    async def latest(self, pattern: str) -> list[Entry]:
        stored = await super().latest(pattern)
        if self.holds:
            self.answers.append(asyncio.get_running_loop().create_future())
            await self.answers[-1]
        return [replace(each, time=float(each.seq)) for each in stored]

    async def last(self, key: str) -> Entry | None:
        if self.away:
            raise BusUnavailableError("away")
        found = await super().last(key)
        return found and replace(found, time=float(found.seq))

    def tell(self) -> None:
        """Let the next entry be heard."""
        if self.told:
            self._ears[0][0](self.told.popleft())

    def lose(self) -> None:
        """Break the connection: what is on its way is not heard any more."""
        self.told.clear()
        for _, lost in self._ears:
            lost()

    def answer(self) -> None:
        """Let the oldest read have its answer."""
        if self.answers:
            self.answers.popleft().set_result(None)


def _card(number: int) -> AgentCard:
    return AgentCard(agent="reader", topics=(SemanticTopic(name="book.read", description=str(number)),))


async def _registry(journal: MemoryJournal, clock: HandClock | None = None) -> Registry:
    made = Registry(journal, MemoryBus(), SUBJECTS, clock or HandClock(), heartbeat_s=5.0)
    await made.start()
    return made


class Play:
    """Steps in any order; after each, what is seen must not be older than what was seen before."""

    def __init__(self, journal: HeldJournal, registry: Registry) -> None:
        self.journal, self.registry = journal, registry
        self.written, self.newest, self.seen, self.gone = 0, 0, 0, False
        self.reads: set[asyncio.Task[None]] = set()

    async def step(self, what: str) -> None:
        self.written += 1
        match what:
            case "theirs":
                self.newest = self.written
                await self.journal.append(SUBJECTS.card("reader"), _card(self.written).model_dump_json().encode())
            case "ours":
                self.newest = self.written
                await self.registry.advertise(_card(self.written))
            case "withdraw":
                self.newest = 0
                await self.registry.withdraw("reader")
            case "read":
                self.reads.add(asyncio.create_task(self.registry.refresh(math.inf)))
            case _:
                getattr(self.journal, what)()
        await _turns_of_the_loop()
        self.look()

    def look(self) -> int:
        found = self.registry.find("book.read")
        version = int(found.description) if found else 0
        if version:
            assert version > self.seen if self.gone else version >= self.seen
            self.seen = version
        self.gone = not version
        return version

    async def end(self) -> None:
        """All that is on its way arrives, and what was lost is read."""
        self.journal.holds = False
        while self.journal.told or self.journal.answers:
            await self.step("tell")
            await self.step("answer")
        await asyncio.gather(*self.reads)
        await self.registry.catch_up()
        assert self.look() == self.newest
        assert self.registry.knows_of()


async def _turns_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


STEPS = ["theirs", "ours", "withdraw", "tell", "read", "answer", "lose"]


@given(st.lists(st.sampled_from(STEPS), max_size=30))
def test_an_older_card_never_replaces_a_newer_one_in_whatever_order_they_come(steps: list[str]) -> None:
    async def play() -> None:
        journal = HeldJournal()
        registry = await _registry(journal)
        await registry.renew("reader", STAND_IN)
        journal.holds = True
        stage = Play(journal, registry)
        for step in steps:
            await stage.step(step)
        await stage.end()
        await registry.aclose()

    asyncio.run(play())


async def test_a_note_that_is_heard_during_a_read_counts() -> None:
    journal = HeldJournal()
    registry = await _registry(journal)
    await registry.renew("reader", STAND_IN)
    stage = Play(journal, registry)
    for step in ("theirs", "read"):
        journal.holds = step == "read"
        await stage.step(step)
    journal.answer()  # the presences, before the cards are read
    await _turns_of_the_loop()
    for step in ("theirs", "tell", "tell", "tell", "answer"):
        await stage.step(step)

    assert stage.look() == stage.newest
    await stage.end()
    await registry.aclose()


async def test_a_presence_that_seems_overdue_is_asked_for_before_it_is_forgotten() -> None:
    """As when the event loop was late: the renewals wait to be heard."""
    journal, clock = HeldJournal(), HandClock()
    registry = await _registry(journal, clock)
    await registry.advertise(_card(1))
    await registry.renew("reader", "reader-1")
    other = await _registry(journal, clock)
    clock.now += 60
    await other.renew("reader", "reader-1")

    assert registry.find("book.read") is not None
    await registry.look()
    assert registry.find("book.read") is not None
    assert registry.replicas("reader")["reader-1"].expires_at == clock.now + 15
    for each in (registry, other):
        await each.aclose()


async def test_nobody_is_forgotten_while_the_journal_cannot_be_asked() -> None:
    journal, clock = HeldJournal(), HandClock()
    registry = await _registry(journal, clock)
    await registry.advertise(_card(1))
    await registry.renew("reader", "reader-1")
    clock.now += 60
    journal.away = True

    with pytest.raises(BusUnavailableError):
        await registry.look()
    assert registry.find("book.read") is not None
    await registry.aclose()


async def test_a_presence_that_was_stored_without_a_life_ends_by_what_it_says() -> None:
    journal, clock = HeldJournal(), HandClock()
    registry = await _registry(journal, clock)
    presence = f'{{"expires_at": {clock.now + 15}}}'.encode()
    await journal.append(SUBJECTS.presence("reader", "theirs"), presence)
    journal.tell()
    for passed_s, lives in ((16.5, True), (14.0, False)):
        clock.now += passed_s
        await registry.look()
        assert registry.is_live("reader") == lives
    await registry.aclose()


async def test_the_dead_leave_nothing_behind() -> None:
    clock = HandClock()
    journal = MemoryJournal(MemoryBus(), clock.time)
    registry, other = [await _registry(journal, clock) for _ in range(2)]
    for number in range(300):
        await other.renew("reader", f"reader-{number}")
        await other.depart("writer", f"writer-{number}")
    await other.withdraw("reader")
    await _turns_of_the_loop()
    assert len(registry.replicas("reader")) == 300
    clock.now += 20
    await other.renew("reader", "reader-1")
    await _turns_of_the_loop()

    for each in (registry, other):
        await each.look()
        assert list(each.replicas("reader")) == ["reader-1"]
        held = {name: value for name, value in vars(each).items() if isinstance(value, dict) and len(value) > 1}
        assert not held
        await each.aclose()


async def test_who_was_told_of_less_than_another_reads_it_first() -> None:
    journal = HeldJournal()
    ahead, behind = [await _registry(journal) for _ in range(2)]
    await journal.append(SUBJECTS.card("reader"), _card(1).model_dump_json().encode())
    await journal.append(SUBJECTS.presence("reader", "reader-1"), b'{"expires_at": 1e9}')
    while journal.told:
        journal.tell()  # only the first hears of it

    assert ahead.news
    assert not behind.knows_of(ahead.news)
    assert behind.find("book.read") is None
    await behind.catch_up(ahead.news)
    assert behind.find("book.read") is not None
    for each in (ahead, behind):
        await each.aclose()


async def test_what_changed_long_ago_is_no_news() -> None:
    journal, clock = HeldJournal(), HandClock()
    registry = await _registry(journal, clock)
    await journal.append(SUBJECTS.card("reader"), _card(1).model_dump_json().encode())
    journal.tell()
    assert registry.news
    clock.now += 60
    assert not registry.news
    await registry.aclose()


async def test_who_waits_for_a_topic_waits_for_a_view_without_gaps() -> None:
    journal = HeldJournal()
    registry = await _registry(journal)
    registry.grace_s = 0.001
    journal.lose()
    journal.holds = True
    await journal.append(SUBJECTS.card("reader"), _card(1).model_dump_json().encode())
    await journal.append(SUBJECTS.presence("reader", "r"), b'{"expires_at": 1e9}')
    journal.lose()
    waiting = asyncio.create_task(registry.wait_for("book.read", within_s=60))
    for _ in range(2):
        await _turns_of_the_loop()
        assert not waiting.done()
        journal.answer()

    assert await waiting is not None
    await registry.aclose()

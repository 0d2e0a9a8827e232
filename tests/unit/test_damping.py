"""How many replicas there are to be, by what is needed over time: the clock is turned by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from squadron.bridge.serve.damping import IDLE_S, IN_AFTER_S, OUT_AFTER_S, STARTING_S, Damping

#: Serve asks as often, in seconds.
TICK_S = 0.1


class Scaled:
    """An agent whose replicas take some time to start, and its autoscaler."""

    def __init__(self, present: int, *, start_s: float = 3.0, most: int = 100) -> None:
        self.now, self.target, self.running = 1000.0, present, present
        self.changes: list[int] = []
        self._damping, self._start_s, self._most = Damping(), start_s, most
        self._starts: list[float] = []
        #: What Serve was told last of its use.
        self.used = 0

    def tick(self, needed: int) -> None:
        self.now += TICK_S
        self.running = min(self.target, self.running + sum(at <= self.now for at in self._starts))
        self._starts = [at for at in self._starts if at > self.now]
        wanted = self._damping.replicas(needed, self.running, self.target, self.now, self.used)
        if (wanted := min(wanted, self._most)) != self.target:
            self._starts += [self.now + self._start_s] * (wanted - self.target)
            self.changes.append(wanted)
            self.target, self.running = wanted, min(self.running, wanted)

    def spend(self, seconds: float, needed: int) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.tick(needed)


def _crowd(chance: random.Random, per_s: float, task_s: float, slots: Callable[[], int]) -> Iterator[int]:
    """How many tasks are held at each tick: they come at random, and each slot does one at a time."""
    waiting, ends, now = 0, list[float](), 0.0
    comes_at = chance.expovariate(per_s)
    while True:
        now += TICK_S
        ends = [at for at in ends if at > now]
        while comes_at <= now:
            waiting += 1
            comes_at += chance.expovariate(per_s)
        begun = min(waiting, max(0, slots() - len(ends)))
        waiting -= begun
        ends += [now + task_s] * begun
        yield waiting + len(ends)


def test_a_shortage_that_stands_is_mended_at_once_for_all_that_is_needed() -> None:
    agent = Scaled(1)
    agent.spend(OUT_AFTER_S - 2 * TICK_S, 4)
    assert agent.changes == []
    agent.spend(4 * TICK_S, 4)
    assert agent.changes == [4]


def test_from_none_it_is_not_waited() -> None:
    agent = Scaled(0)
    agent.tick(3)
    assert agent.changes == [3]


def test_a_burst_that_is_soon_over_starts_nothing() -> None:
    agent = Scaled(1)
    for _ in range(20):
        agent.spend(OUT_AFTER_S / 2, 8)
        agent.spend(OUT_AFTER_S / 2, 1)
    assert agent.changes == []


def test_what_piles_up_while_replicas_start_is_theirs_unless_they_take_too_long() -> None:
    agent = Scaled(1, start_s=5.0)
    agent.spend(OUT_AFTER_S + 2 * TICK_S, 2)
    agent.spend(4.0, 7)
    agent.spend(5.0, 2)
    assert agent.changes == [2]

    stuck = Scaled(1, start_s=1000.0)
    stuck.spend(OUT_AFTER_S + 2 * TICK_S, 2)
    stuck.spend(STARTING_S + 2 * OUT_AFTER_S, 7)
    assert stuck.changes == [2, 7]


def test_a_backlog_that_grows_slowly_and_far_beyond_what_is_starting_has_more_started() -> None:
    agent = Scaled(1, start_s=1000.0)
    agent.spend(OUT_AFTER_S + 2 * TICK_S, 2)
    agent.spend(OUT_AFTER_S + 2 * TICK_S, 50)
    assert agent.changes == [2, 50]


def test_one_with_nothing_to_do_goes_to_none_after_a_while() -> None:
    agent = Scaled(4)
    agent.spend(5.0, 4)
    agent.spend(IDLE_S - 1.0, 0)
    assert agent.changes == []
    agent.spend(2.0, 0)
    assert agent.target == 0


def test_one_asked_now_and_then_stays_though_its_tasks_are_over_between_two_looks() -> None:
    agent = Scaled(4)
    for _ in range(round(IN_AFTER_S / 5.0) + 10):
        agent.used += 1
        agent.spend(5.0, 0)
    assert agent.changes == [1]
    agent.spend(IDLE_S + TICK_S, 0)
    assert agent.changes == [1, 0]


def test_none_is_started_for_a_task_that_is_over() -> None:
    agent = Scaled(0)
    agent.used += 1
    agent.spend(5.0, 0)
    assert agent.changes == []


def test_as_many_go_as_were_too_many_all_the_time() -> None:
    agent = Scaled(4)
    agent.spend(10.0, 4)
    for _ in range(round(IN_AFTER_S / 10.0) + 1):
        agent.spend(1.0, 2)
        agent.spend(9.0, 1)
    assert agent.changes == [2]


def test_after_a_pin_none_go_before_it_was_seen_that_they_are_too_many() -> None:
    agent = Scaled(4)
    agent.spend(600.0, 4)
    agent._damping.forget()
    agent.spend(IN_AFTER_S - 1.0, 1)
    assert agent.changes == []
    agent.spend(2.0, 1)
    assert agent.changes == [1]


def test_a_steady_load_at_the_border_has_steady_replicas_whatever_its_tasks_take() -> None:
    slots = 8
    for task_s in (0.1, 1.0, 10.0):
        for share in (0.5, 0.8, 1.0, 1.2, 1.6):
            agent = Scaled(1, most=4)
            crowd = _crowd(
                random.Random(1), share * slots / task_s, task_s, lambda agent=agent: agent.running * slots
            )
            for _ in range(6000):
                agent.tick(-(-next(crowd) // slots))
            # To what is needed, and maybe down where it was too much for what had piled up, but never up again.
            is_down = [after < before for before, after in itertools.pairwise([1, *agent.changes])]
            assert is_down == sorted(is_down), (task_s, share, agent.changes)
            assert len(is_down) <= 3, (task_s, share, agent.changes)

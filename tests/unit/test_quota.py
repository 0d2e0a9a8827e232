"""The arithmetic of a provider account's limits, whatever the order in which replicas book, use and give back."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squadron.actors.thinking.account import limits_from, scope_of
from squadron.actors.thinking.quota import AHEAD_S, BURST_S, LISTED_S, AccountState, Allotment, Booking, Limits
from squadron.runtime.errors import ConfigError

LIMITS = Limits(rpm=120, tpm=6_000)


class Provider:
    """A bucket per kind that holds a minute's worth, as providers fill them."""

    def __init__(self, limits: Limits) -> None:
        self.rates, self.now = limits.rates, 0.0
        self.left = {kind: 60 * rate for kind, rate in self.rates.items()}
        self.most = dict(self.left)

    def use(self, now: float, cost: dict[str, float]) -> None:
        for kind, rate in self.rates.items():
            self.left[kind] = min(self.most[kind], self.left[kind] + (now - self.now) * rate) - cost[kind]
            assert self.left[kind] >= -1e-6, f"{kind} was refused"
        self.now = now


class Replica:
    def __init__(self, who: str) -> None:
        self.who, self.allotment = who, Allotment()

    def try_call(self, state: AccountState, now: float, tokens: float, wanted: float) -> tuple[AccountState, bool]:
        cost = {"requests": 1.0, "tokens": tokens}
        if not self.allotment.covers(cost) or self.allotment.until < now:
            more = {kind: units * wanted for kind, units in cost.items()}
            booking = Booking(self.who, cost, more, dict(self.allotment.left))
            state, allotment = state.book(booking, LIMITS, now)
            assert allotment is not None
            self.allotment = allotment
        if self.allotment.ready_at() > now:
            return state, False
        self.allotment.take(cost)
        return state, True


STEPS = st.tuples(
    st.integers(0, 4),  # who
    st.sampled_from(["call", "call", "call", "leave", "pause"]),
    st.floats(0, 3),  # after how long
    st.integers(1, 900),  # tokens
    st.integers(1, 20),  # calls that wait there
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=120))
def test_whatever_replicas_do_the_provider_never_refuses(steps: list[tuple[int, str, float, int, int]]) -> None:
    state, now, provider = AccountState(), 1000.0, Provider(LIMITS)
    provider.now = now
    replicas = [Replica(f"r{number}") for number in range(5)]
    for who, what, after_s, tokens, waiting in steps:
        now += after_s
        replica = replicas[who]
        match what:
            case "call":
                state, called = replica.try_call(state, now, tokens, waiting)
                if called:
                    assert now >= state.paused_until
                    provider.use(now, {"requests": 1.0, "tokens": tokens})
            case "leave":
                state = state.leave(Booking(replica.who, back=dict(replica.allotment.left)), LIMITS, now)
                replica.allotment = Allotment()
                assert replica.who not in state.lessees
            case _:
                state = state.pause(now + 1.0, LIMITS.rates)
                for each in replicas:
                    each.allotment = Allotment()
        assert AccountState.decode(state.encode(), now) == state


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(1, 50), st.floats(0, 1)), min_size=1, max_size=60))
def test_no_unit_is_booked_twice_and_nobody_waits_for_less_than_all_before_him(
    bookings: list[tuple[int, float, float]],
) -> None:
    state, now, ends = AccountState(), 1000.0, -math.inf
    for who, requests, after_s in bookings:
        now += after_s
        booking = Booking(f"r{who}", {"requests": requests}, {"requests": 4 * requests})
        state, allotment = state.book(booking, Limits(rpm=600), now)

        assert allotment is not None
        assert allotment.left["requests"] >= requests
        # It begins where the one before ended, or after a rest with a burst.
        assert allotment.at["requests"] == pytest.approx(max(ends, now - BURST_S))
        ends = allotment.at["requests"] + allotment.left["requests"] / 10


def test_what_would_come_too_late_is_not_booked() -> None:
    state, _ = AccountState().book(Booking("a", {"requests": 600.0}), Limits(rpm=600), 1000.0)
    after, allotment = state.book(Booking("b", {"requests": 1.0}, deadline=1050.0), Limits(rpm=600), 1000.0)

    assert allotment is None
    assert after == state


def test_replicas_that_want_more_than_there_is_get_equal_parts_of_it() -> None:
    state, parts = AccountState(), dict[str, float]()
    for turn in range(2):
        for who in "abc":
            booking = Booking(who, {"requests": 1.0}, {"requests": 100.0})
            state, allotment = state.book(booking, Limits(rpm=600), 1000.0 + turn)
            assert allotment is not None
            parts[who] = allotment.left["requests"]

    assert set(parts.values()) == {math.ceil(10 * AHEAD_S / 3)}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 6), st.floats(0, 20)), max_size=80))
def test_places_are_never_more_than_the_limit_and_come_back_from_the_dead(
    steps: list[tuple[int, int, int, float]],
) -> None:
    limits, state, now = Limits(concurrency=7), AccountState(), 1000.0
    running: dict[str, tuple[float, int]] = {}
    for who, ended, waiting, after_s in steps:
        now += after_s
        name = f"r{who}"
        # Who was silent for too long counts as dead, with all its calls.
        running = {each: seen for each, seen in running.items() if seen[0] + LISTED_S > now}
        under_way = max(0, running.get(name, (0.0, 0))[1] - ended)
        state, allotment = state.book(Booking(name, running=under_way, waiting=waiting), limits, now)
        assert allotment is not None
        assert allotment.places is not None
        running[name] = (now, max(under_way, min(under_way + waiting, allotment.places)))
        assert sum(count for _, count in running.values()) <= 7


def test_limits_are_read_and_what_is_wrong_is_named() -> None:
    text = '{"anthropic:claude-sonnet": {"rpm": 50, "input_tpm": 4e5}, "anthropic": {"concurrency": 4}}'
    limits = limits_from(text)

    assert scope_of("anthropic:claude-sonnet-5-5", limits) == (
        "anthropic:claude-sonnet",
        Limits(rpm=50, input_tpm=400_000),
    )
    assert scope_of("anthropic:claude-opus-5-5", limits) == ("anthropic", Limits(concurrency=4))
    assert scope_of("openai:gpt-x", limits) == ("openai:gpt-x", Limits())
    assert limits_from("  ") == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"openai": 5}', "openai"),
        ('{"openai": {"rpmm": 5}}', "rpmm"),
        ('{"openai": {"rpm": 0}}', "rpm"),
        ('{"openai": {"rpm": true}}', "rpm"),
        ('{"openai": {"tpm": "many"}}', "tpm"),
        ('{"openai": {"concurrency": 1.5}}', "concurrency"),
    ],
)
def test_a_bad_limit_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        limits_from(text)


@pytest.mark.parametrize("stored", [b"", b"[1]", b"[{},0,{}", b'[{"a":"x"},0,{}]', b"\xff", b"[[],0,{}]"])
def test_a_state_that_cannot_be_read_is_as_if_nothing_had_been_used(stored: bytes) -> None:
    assert AccountState.decode(stored, 0.0) == AccountState()


def test_a_stored_pause_that_is_longer_than_any_is_none() -> None:
    lessees = {"one": (1_790_000_060.0, 2)}
    odd = AccountState({"tokens": 1_790_000_003.0}, lessees=lessees).pause(3_580_000_000.0, {"requests": 1.0})
    odd = dataclasses.replace(odd, next_at=odd.next_at | {"tokens": 1_790_000_003.0})

    known = AccountState.decode(odd.encode(), 1_790_000_000.0)

    assert known == AccountState({"tokens": 1_790_000_003.0}, lessees=lessees)

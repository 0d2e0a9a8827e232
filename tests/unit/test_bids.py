"""Bids without a bus: what a bid may say, who may bid, and who gets the task."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron import Agent, Bid, bid, topic
from squadron.actors.agent import AgentSpec
from squadron.runtime.asking.negotiation import acceptance, award
from squadron.runtime.errors import InvalidAgentError, InvalidInputError
from squadron.runtime.running.bidding import MARGIN, MOST_OFFERS, MOST_TOPICS, Offers, Statistics
from squadron.runtime.wire.bids import Bids, CallForBids, Offer
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.outcome import Cancelled, Failed, Result

NOW = 1000.0


class Clock:
    """Time that stands still until it is set."""

    now = NOW

    def time(self) -> float:
        return self.now


def _offer(name: str = "a", confidence: float = 0.5, **said: Any) -> Offer:
    return Offer(f"id-{name}", f"tie.{name}", name, f"{name}-1", Bid(confidence=confidence, **said))


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("confidence", [-0.1, 1.1, math.nan, math.inf, "1", True, None]),
        ("price_tokens", [-1, 1.5, "7", True]),
        ("price_usd", [-0.01, math.inf, "7", True]),
        ("eta_s", [-1, math.nan, [], False]),
        ("valid_until", [-1, math.inf, "soon"]),
    ],
)
def test_a_bid_names_the_field_that_is_wrong(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidInputError, match=field) as caught:
            Bid(**{"confidence": 1, field: value})
        assert caught.value.field == field
        assert caught.value.hint


PRICES = st.none() | st.integers(0, 1000)
OFFERS = st.lists(
    st.builds(
        Offer,
        st.text(max_size=4),
        st.sampled_from(["tie.a", "tie.b"]),
        st.sampled_from("abc"),
        st.sampled_from(["r1", "r2"]),
        st.builds(
            Bid,
            confidence=st.sampled_from([0.0, 0.5, 1.0]),
            price_tokens=PRICES,
            price_usd=st.none() | st.floats(0, 5),
            eta_s=st.none() | st.floats(0, 100),
            valid_until=st.none() | st.floats(NOW - 10, NOW + 10),
        ),
    ),
    unique_by=lambda offer: offer.id,
)


@given(OFFERS, st.none() | st.integers(0, 1000), st.none() | st.floats(0, 5), st.floats(0, 100))
def test_an_award_is_the_policy_whatever_the_order_of_the_answers(
    offers: list[Offer], tokens: int | None, usd: float | None, left_s: float
) -> None:
    limits: dict[str, Any] = {"now": NOW, "time_left_s": left_s, "tokens": tokens, "usd": usd}
    order = award(Bids(tuple(offers)), **limits)

    for offer in offers:
        bid, dear = offer.bid, False
        dear |= tokens is not None and bid.price_tokens is not None and bid.price_tokens > tokens
        dear |= usd is not None and bid.price_usd is not None and bid.price_usd > usd
        late = bid.eta_s is not None and bid.eta_s > left_s
        over = bid.valid_until is not None and bid.valid_until <= NOW
        assert (offer in order) is not (dear or late or over)
    for first, second in itertools.pairwise(order):
        one, other = first.bid, second.bid
        assert one.confidence >= other.confidence
        if one.confidence == other.confidence:
            assert (one.price_usd or 0) <= (math.inf if other.price_usd is None else other.price_usd)
    again = award(Bids(tuple(reversed(offers))), **limits)
    assert again == order


@given(OFFERS)
def test_bids_survive_a_journal(offers: list[Offer]) -> None:
    bids = Bids(tuple(offers), {"tie.c": "no"})
    assert Bids.from_json(json.loads(json.dumps(bids.to_json()))) == bids


def test_the_most_confident_comes_first_then_the_cheapest_then_the_name() -> None:
    offers = [
        _offer("d", 0.5, price_tokens=5),
        _offer("unpriced", 0.9),
        _offer("dear", 0.9, price_tokens=70),
        _offer("b", 0.5, price_tokens=5),
        _offer("cheap", 0.9, price_tokens=7),
        _offer("slow", 1.0, eta_s=61),
        _offer("over", 1.0, valid_until=NOW),
        _offer("costly", 1.0, price_tokens=101),
    ]
    order = award(Bids(tuple(offers)), now=NOW, time_left_s=60, tokens=100)
    assert [each.agent for each in order] == ["cheap", "dear", "unpriced", "b", "d"]


def test_an_acceptance_spends_no_more_than_the_price_nor_than_there_is() -> None:
    free, cheap, dear = (_offer(price_tokens=price) for price in (0, 50, 500))
    assert acceptance(_offer(), Budget(tokens=100))["budget"] == Budget(tokens=100)
    assert acceptance(cheap, Budget(tokens=100, hops=3))["budget"] == Budget(tokens=50, hops=3)
    assert acceptance(dear, Budget(tokens=100))["budget"] == Budget(tokens=100)
    # None at all would be used up before it begins.
    assert acceptance(free, Budget())["budget"] == Budget(tokens=1)


# --- who bids -----------------------------------------------------------------------------------------


def test_a_method_that_can_not_bid_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidAgentError, match="nobody tells a bid its 'colour'") as caught:

        @bid
        async def offer(self: Any, topic: str, colour: str) -> None: ...

    assert caught.value.field == "colour"
    assert "time_left_s" in caught.value.hint
    with pytest.raises(InvalidAgentError, match="passable by name"):

        @bid
        async def by_place(self: Any, *topics: str) -> None: ...

    with pytest.raises(InvalidAgentError, match="yields"):

        @bid
        async def many(self: Any) -> Any:
            yield 1

    with pytest.raises(InvalidAgentError, match="can't bid"):
        bid(property(lambda self: None))  # type: ignore[type-var]


def test_an_agent_bids_by_one_method_and_only_if_it_serves() -> None:
    class Two(Agent):
        """Undecided."""

        @topic("two.work")
        async def work(self) -> str:
            return ""

        @bid
        async def one(self) -> None: ...

        @bid
        async def other(self) -> None: ...

    with pytest.raises(InvalidAgentError, match=r"bids by one and by other"):
        AgentSpec.of(Two)

    class Idle(Agent):
        """Serves nothing."""

        from squadron import on

        @on("a.b")
        async def hear(self, message: object) -> None: ...

        @bid
        async def offer(self) -> None: ...

    with pytest.raises(InvalidAgentError, match="serves no topic"):
        AgentSpec.of(Idle)


def test_an_override_is_told_what_it_has_parameters_for() -> None:
    class Base(Agent):
        """Bids."""

        @topic("base.work")
        async def work(self) -> str:
            return ""

        @bid
        async def offer(self, topic: str) -> Bid | None:
            return None

    class Keen(Base):
        """Bids otherwise."""

        async def offer(self, size: int, note: str = "", **more: Any) -> Bid | None:
            return None

    class Still(Base):
        """Bids from statistics again."""

        offer = None  # type: ignore[assignment]

    assert AgentSpec.of(Base).bid == ("offer", ("topic",))
    assert AgentSpec.of(Keen).bid == ("offer", ("topic", "size", "digest", "time_left_s", "tokens", "usd"))
    assert AgentSpec.of(Still).bid is None


async def test_a_plain_def_bids_in_a_thread() -> None:
    class Plain(Agent):
        """No async."""

        @topic("plain.work")
        async def work(self) -> str:
            return ""

        @bid
        def offer(self, size: int, tokens: int | None) -> Bid | None:
            return Bid(confidence=1, price_tokens=tokens) if size < 100 else None

    bidder = AgentSpec.of(Plain).bidder(Plain())
    assert bidder is not None
    assert await bidder(CallForBids("plain.work", 10, tokens=7)) == Bid(confidence=1, price_tokens=7)
    assert await bidder(CallForBids("plain.work", 100)) == "plain declines"


# --- what a replica keeps -------------------------------------------------------------------------------


def _task(id: str = "t", **metadata: Any) -> AgentMessage:
    return AgentMessage.new("task", AgentIdentity(id="me"), {"x": 1}, id=id, metadata=metadata or None)


def test_a_replica_is_held_to_what_it_offered_and_to_nothing_else() -> None:
    clock = Clock()
    offers = Offers(clock)
    id = offers.add(CallForBids("tie.a"), NOW + 10)

    assert offers.refusal(_task(), "tie.a") == ""
    assert "not of this replica" in offers.refusal(_task(bid="made up"), "tie.a")
    assert "not of this replica" in offers.refusal(_task(bid=["no text"]), "tie.a")
    assert "was for 'tie.a'" in offers.refusal(_task(bid=id), "tie.b")
    clock.now = NOW + 10
    assert "ended 0 s ago" in offers.refusal(_task(bid=id), "tie.a")
    clock.now = NOW + 9
    assert offers.refusal(_task(bid=id), "tie.a") == ""
    clock.now = NOW + 99
    assert offers.refusal(_task(bid=id), "tie.a") == ""
    assert "accepted by the task 't'" in offers.refusal(_task("u", bid=id), "tie.a")
    offers.withdraw(id)
    assert offers.refusal(_task(bid=id), "tie.a") == ""


def test_a_rejected_offer_is_forgotten() -> None:
    offers = Offers(Clock())
    id = offers.add(CallForBids("tie.a"), NOW + 10)
    offers.withdraw(id)
    offers.withdraw(id)
    assert "was rejected" in offers.refusal(_task(bid=id), "tie.a")


def test_statistics_know_what_the_newest_tasks_took() -> None:
    statistics = Statistics()
    assert statistics.bid("tie.a", 0) == Bid(confidence=0.5)
    for latency_ms, tokens in ((1000.0, 10), (3000.0, 30)):
        statistics.note(Result(topic="tie.a", latency_ms=latency_ms, tokens=tokens))
    statistics.note(Cancelled(topic="tie.a", latency_ms=9e9))
    assert statistics.bid("tie.a", 0.9) == Bid(confidence=3 / 4, price_tokens=MARGIN * 30, eta_s=2.0)
    # Two rounds of others come first.
    assert statistics.bid("tie.a", 2.5).eta_s == 6.0
    for _ in range(200):
        statistics.note(Failed(topic="tie.a"))
    assert statistics.bid("tie.a", 0).confidence == pytest.approx(1 / 102)
    assert statistics.bid("tie.b", 0) == Bid(confidence=0.5)


def test_what_a_replica_keeps_in_mind_is_bounded() -> None:
    statistics, offers = Statistics(), Offers(Clock())
    for number in range(MOST_TOPICS + 2):
        statistics.note(Failed(topic=f"family.{number}"))
        statistics.note(Failed(topic="family.often"))
    assert statistics.bid("family.0", 0).confidence == 0.5
    assert statistics.bid(f"family.{MOST_TOPICS}", 0).confidence == pytest.approx(1 / 3)
    assert statistics.bid("family.often", 0).confidence < 0.01

    ids = [offers.add(CallForBids("tie.a"), NOW + 10) for _ in range(MOST_OFFERS + 1)]
    assert "not of this replica" in offers.refusal(_task(bid=ids[0]), "tie.a")
    assert offers.refusal(_task(bid=ids[1]), "tie.a") == ""

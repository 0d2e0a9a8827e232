"""Budgets bind over a fan-out, over retries and from any client: what is spent below is known above."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from nats.aio.client import Client

from squadron import Agent, Budget, Context, Retry, Spent, topic
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.wire.outcome import DeadLettered, Failed, Outcome, Rejected, TimedOut
from squadron.runtime.wire.path import MOST_DEPTH
from tests.contract.conftest import ON_NATS, SOON_S, Peer, Serve, World


class Firm(Agent):
    """Tasks that spend, and ask others who spend."""

    slots = 40

    def __init__(self) -> None:
        self.charged = 0
        self.seen: list[Budget] = []
        self.entered, self.go = asyncio.Event(), asyncio.Event()
        self.asked = asyncio.Event()
        self.asked.set()

    def _charge(self, context: Context, tokens: int, **also: Any) -> None:
        self.charged += tokens
        context.charge(tokens, **also)

    @topic("firm.leaf")
    async def leaf(self, tokens: int, context: Context) -> int:
        """Spends as it is told, as far as it may."""
        left = context.budget
        self.seen.append(left)
        await self.asked.wait()
        self._charge(context, tokens if left.tokens is None else min(tokens, left.tokens), usd=0.001)
        return tokens

    @topic("firm.fan")
    async def fan(self, children: int, tokens: int, context: Context) -> list[str]:
        """Asks many at once, each of which would spend so much."""
        self._charge(context, 10)
        # None ends before the last is asked: its change would be there for those that come after it.
        self.asked.clear()
        asked = [await context.submit("firm.leaf", tokens) for _ in range(children)]
        self.asked.set()
        return [(await each.outcome()).kind for each in asked]

    @topic("firm.chain")
    async def chain(self, depth: int, tokens: int, context: Context) -> int:
        """Passes it on until somebody spends."""
        if not depth:
            return int((await context.ask("firm.leaf", tokens)).unwrap())
        return int((await context.ask("firm.chain", {"depth": depth - 1, "tokens": tokens})).unwrap())

    @topic("firm.shaky")
    async def shaky(self, tokens: int, context: Context) -> int | None:
        """Spends, and asks for another try; returns what is left for that."""
        if context.attempt > 1:
            return context.budget.tokens
        self._charge(context, tokens)
        await context.ask("firm.leaf", 100)
        raise Retry("not yet", after_s=0.05)

    @topic("firm.gate")
    async def gate(self, tokens: int, context: Context) -> int | None:
        """Spends, and waits until it may go on, or is drained."""
        left = context.budget.tokens
        if context.attempt == 1:
            self._charge(context, tokens)
            self.entered.set()
        await self.go.wait()
        return left

    @topic("firm.impatient")
    async def impatient(self, context: Context) -> list[Any]:
        """Asks for what does not come in time."""
        late = await context.ask("closed.shop", within_s=1.0, budget=Budget(tokens=400))
        return [late.kind, context.budget.tokens]

    @topic("firm.leave")
    async def leave(self, context: Context) -> str:
        """Asks, and does not wait."""
        context.charge(7)
        await context.submit("closed.shop", budget=Budget(tokens=400))
        return "left"

    @topic("firm.careful")
    async def careful(self, tokens: int, context: Context) -> None:
        """Sets aside what a call may cost before it makes it."""
        self.charged += 1
        context.ledger.reserve("call", Spent(tokens=tokens, rounds=1))

    @topic("firm.again")
    async def again(self, number: int, step: int, context: Context, pad: str = "") -> Any:
        """Asks itself, with the next number."""
        outcome = await context.ask("firm.other", {"number": number + step, "step": step, "pad": pad}, within_s=20)
        return outcome.unwrap() if outcome.ok else outcome.reason

    @topic("firm.other")
    async def other(self, number: int, step: int, context: Context, pad: str = "") -> Any:
        outcome = await context.ask("firm.again", {"number": number, "step": step, "pad": pad}, within_s=20)
        return outcome.unwrap() if outcome.ok else outcome.reason


@pytest.fixture
async def firm(serve: Serve) -> Firm:
    agent = Firm()
    await serve(agent, name="firm", slots=100)
    return agent


@pytest.fixture
async def client(world: World, firm: Firm) -> Peer:
    return await world.join("client")


async def _ask(client: Peer, topic: str, budget: Budget, content: Any) -> Outcome:
    return await client.caller.ask(topic, content, AskOptions(within_s=20, budget=budget))


async def test_eight_tasks_at_once_do_not_spend_more_than_there_is(client: Peer, firm: Firm) -> None:
    outcome = await _ask(client, "firm.fan", Budget(tokens=1000), {"children": 8, "tokens": 900})

    assert outcome.unwrap() == ["result"] * 8
    # They got half of what was left, one after another: 495, 248, 124…
    assert [each.tokens for each in firm.seen] == [495, 248, 124, 62, 31, 15, 8, 4]
    assert outcome.tokens == firm.charged == 997
    assert outcome.spent == Spent(tokens=997, usd_micros=8000, rounds=9, tasks=8)


async def test_what_is_spent_far_below_is_known_at_the_top(client: Peer, firm: Firm) -> None:
    outcome = await _ask(client, "firm.chain", Budget(), {"depth": 2, "tokens": 900})

    assert outcome.unwrap() == 900
    assert outcome.spent == Spent(tokens=900, usd_micros=1000, rounds=1, tasks=3)


async def test_each_passing_on_leaves_a_half_and_one_task_less(client: Peer, firm: Firm) -> None:
    budget = Budget(tokens=1000, usd=0.8, tasks=9)
    outcome = await _ask(client, "firm.chain", budget, {"depth": 1, "tokens": 900})

    assert outcome.ok
    # Of nine tasks one is the next itself, and of the other eight it gets half; so again below.
    assert firm.seen == [Budget(tokens=250, usd=0.2, tasks=2)]
    assert outcome.spent == Spent(tokens=250, usd_micros=1000, rounds=1, tasks=2)


async def test_who_asks_for_more_tasks_than_it_may_is_refused(client: Peer, firm: Firm) -> None:
    outcome = await _ask(client, "firm.fan", Budget(tasks=3), {"children": 5, "tokens": 1})

    # 3 - 1 = 2, of which the first gets 1; one is left for the second.
    assert outcome.unwrap() == ["result", "result", "rejected", "rejected", "rejected"]
    assert outcome.spent.tasks == 2


async def test_what_an_earlier_attempt_spent_is_gone_for_the_next(client: Peer, firm: Firm) -> None:
    outcome = await _ask(client, "firm.shaky", Budget(tokens=1000), 300)

    assert (outcome.unwrap(), outcome.attempt) == (600, 2)
    assert outcome.spent == Spent(tokens=400, usd_micros=1000, rounds=2, tasks=1)


async def test_when_an_attempt_has_spent_all_there_is_no_other(client: Peer, firm: Firm) -> None:
    outcome = await _ask(client, "firm.shaky", Budget(tokens=1000), 1000)

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == "tokens"
    assert outcome.tokens == 1000


async def test_what_a_drained_replica_had_spent_is_known_to_its_heir(world: World, serve: Serve) -> None:
    leaving = Firm()
    old = await serve(leaving, name="old")
    client = await world.join("client")
    options = AskOptions(within_s=20, budget=Budget(tokens=1000))
    asked = await client.caller.submit("firm.gate", 300, options)
    await leaving.entered.wait()
    await old.pump.drain(0.0)
    heir = Firm()
    heir.go.set()
    await serve(heir, name="new")

    outcome = await asked.outcome()

    assert (outcome.unwrap(), outcome.attempt, outcome.tokens) == (700, 2, 300)


async def test_a_call_that_can_not_be_paid_fails_with_the_limit_and_is_not_tried_again(
    client: Peer, firm: Firm
) -> None:
    outcome = await _ask(client, "firm.careful", Budget(tokens=1000), 1001)

    assert isinstance(outcome, Failed)
    assert outcome.details == {"type": "BudgetError", "field": "tokens"}
    assert firm.charged == outcome.attempt == 1
    assert outcome.spent == Spent()


class Shop(Agent):
    """Is closed."""

    @topic("closed.shop")
    async def shop(self) -> None:
        raise AssertionError("it is closed")


async def test_what_never_came_stays_charged(client: Peer, firm: Firm, serve: Serve) -> None:
    closed = await serve(Shop(), name="shop")
    await closed.pump.aclose()

    outcome = await _ask(client, "firm.impatient", Budget(tokens=1000), {})

    assert outcome.unwrap() == ["timed_out", 600]
    assert outcome.tokens == 400


async def test_what_still_runs_when_its_parent_ends_is_charged_at_its_share(
    client: Peer, firm: Firm, serve: Serve
) -> None:
    closed = await serve(Shop(), name="shop")
    await closed.pump.aclose()

    outcome = await _ask(client, "firm.leave", Budget(tokens=1000), {})

    assert (outcome.unwrap(), outcome.spent) == ("left", Spent(tokens=407, rounds=1, tasks=1))


@pytest.mark.parametrize("pad", ["", "x" * 700_000], ids=["small", "claimed"])
async def test_who_asks_itself_for_the_same_again_is_told_the_way(client: Peer, firm: Firm, pad: str) -> None:
    outcome = await _ask(client, "firm.again", Budget(), {"number": 7, "step": 0, "pad": pad})

    assert "itself for the same again: firm.again → firm.other → firm.again" in outcome.unwrap()
    assert outcome.spent.tasks == 2


async def test_who_asks_itself_for_something_else_each_time_is_stopped_by_depth(client: Peer, firm: Firm) -> None:
    outcome = await _ask(client, "firm.again", Budget(), {"number": 7, "step": 1})

    assert f"passed on {MOST_DEPTH} times" in outcome.unwrap()
    assert outcome.spent.tasks == MOST_DEPTH


# --- from any NATS client --------------------------------------------------------------------------------


async def _ask_by_hand(
    bare: Client, client: Peer, topic: str, content: Any, constraints: dict[str, Any]
) -> dict[str, Any]:
    inbox = bare.new_inbox()
    answers = await bare.subscribe(inbox)
    message = {
        "id": inbox.rsplit(".")[-1],
        "timestamp": time.time(),
        "version": "1.0",
        "type": "task",
        "source": {"id": "curl", "type": "human"},
        "context": {"conversationId": "c1", "metadata": {}},
        "payload": {"content": content, "constraints": constraints},
        "replyTo": inbox,
    }
    await bare.publish(client.subjects.task(topic), json.dumps(message).encode())
    answer = json.loads((await answers.next_msg(timeout=SOON_S)).data)
    content = answer["payload"]["content"]
    assert isinstance(content, dict)
    return content


@ON_NATS
async def test_a_bare_client_sets_limits_and_is_told_what_was_spent(
    bare: Client, client: Peer, firm: Firm
) -> None:
    limits = {"tokens": 1000, "cost": 0.5, "rounds": 40, "tasks": 600, "hops": 3}

    content = await _ask_by_hand(bare, client, "firm.fan", {"children": 8, "tokens": 900}, limits)

    assert content["data"] == ["result"] * 8
    assert content["tokens"] == firm.charged <= 1000
    assert content["spent"] == {"tokens": firm.charged, "cost": 0.008, "rounds": 9, "tasks": 8}
    assert firm.seen[0] == Budget(tokens=495, usd=0.25, rounds=20, tasks=300, hops=2)


@ON_NATS
@pytest.mark.parametrize(
    ("limits", "field"),
    [({"tokens": 0}, "tokens"), ({"cost": -1}, "usd"), ({"tasks": -1}, "tasks"), ({"time": 0}, "seconds")],
)
async def test_a_bare_client_that_has_nothing_left_is_told_of_what(
    bare: Client, client: Peer, limits: dict[str, Any], field: str
) -> None:
    content = await _ask_by_hand(bare, client, "firm.leaf", {"tokens": 1}, limits)

    assert (content["outcome"], content["error"]["details"]["field"]) == ("rejected", field)


@ON_NATS
async def test_the_time_of_work_ends_it_before_its_deadline(bare: Client, client: Peer, firm: Firm) -> None:
    content = await _ask_by_hand(bare, client, "firm.gate", {"tokens": 3}, {"time": 200})

    assert content["outcome"] == TimedOut.kind
    assert content["tokens"] == 3


@ON_NATS
async def test_a_limit_that_is_none_is_named(bare: Client, client: Peer) -> None:
    content = await _ask_by_hand(bare, client, "firm.leaf", {"tokens": 1}, {"cost": "much"})

    assert content["outcome"] == DeadLettered.kind
    assert "payload.constraints.cost" in content["error"]["message"]

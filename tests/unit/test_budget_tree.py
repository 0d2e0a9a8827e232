"""Whatever the fan-out, the depth and the order in which things end: budgets bind, and the books agree."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from squadron import Agent, Budget, Context, Retry, Spent, Terminal, topic
from squadron.runtime.errors import BudgetError
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.outcome import Failed, Result, TimedOut
from squadron.runtime.wire.spent import NOT_TOLD
from squadron.testing import MemorySquad
from squadron.testing import run as run_turned

COINS = ("tokens", "usd", "rounds", "tasks")
LIMITS = st.none() | st.integers(0, 2_000)
BUDGETS = st.builds(
    lambda tokens, micros, rounds, tasks: Budget().with_coins(tokens, micros, rounds, tasks),
    LIMITS,
    LIMITS,
    st.none() | st.integers(0, 20),
    st.none() | st.integers(0, 20),
)
SPENDINGS = st.builds(Spent, st.integers(0, 600), st.integers(0, 600), st.integers(0, 3), st.just(0))


# --- the books alone: turns in any order, with late and wrong ends ----------------------------------------


@dataclass
class Turn:
    """One turn of a simulated tree: its books, and what it spent itself."""

    parent: Turn | None
    key: str
    grant: Budget
    ledger: Ledger
    children: list[Turn] = field(default_factory=list)
    own: Spent = field(default_factory=Spent)
    #: Spent by calls whose price was underestimated, beyond what was reserved.
    errors: Spent = field(default_factory=Spent)
    ended: bool = False
    #: What stands in the log of its run, and is replayed by the next attempt.
    log: list[Callable[[Ledger], None]] = field(default_factory=list)
    is_logged: bool = False

    @property
    def real(self) -> Spent:
        """What it and all below really spent, whoever knows of it."""
        return sum((child.real + Spent(tasks=1) for child in self.children), self.own)

    @property
    def estimate_errors(self) -> Spent:
        return sum((child.estimate_errors for child in self.children), self.errors)

    def family(self) -> Iterator[Turn]:
        yield self
        for child in self.children:
            yield from child.family()


def _fits(spent: Spent, budget: Budget, beyond: Spent) -> bool:
    limits = zip(spent.coins, budget.coins, beyond.coins, strict=True)
    return all(limit is None or used <= limit + more for used, limit, more in limits)


class Tree:
    """What may happen, chosen by hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        grant = data.draw(BUDGETS, "root")
        self.root = Turn(None, "", grant, Ledger(grant))
        self._keys = 0

    def step(self) -> None:
        alive = [turn for turn in self.root.family() if not turn.ended]
        turn = self._data.draw(st.sampled_from(alive))
        act = self._data.draw(
            st.sampled_from([self._call, self._ask, self._share, self._send, self._end, self._again])
        )
        act(turn)

    def _key(self) -> str:
        self._keys += 1
        return f"k{self._keys}"

    def _call(self, turn: Turn) -> None:
        """A model is called: an estimate is reserved, and reality may be a little more, or less, or unknown."""
        key, estimate = self._key(), self._data.draw(SPENDINGS, "estimate")
        try:
            turn.ledger.reserve(key, estimate)
        except BudgetError:
            return
        over = self._data.draw(st.integers(0, 5), "over")
        real = self._data.draw(st.sampled_from([estimate, Spent(tokens=estimate.tokens // 2), NOT_TOLD]))
        if real.told and over:
            real += Spent(tokens=over)
        turn.own += real if real.told else estimate
        turn.errors += Spent(tokens=over if real.told else 0)
        turn.ledger.settle(key, real)

    def _grant(self, turn: Turn, asked: Budget) -> None:
        key = self._key()
        given = turn.ledger.grant_to(key, asked)
        if not given.exhausted:
            turn.children.append(Turn(turn, key, given, Ledger(given)))

    def _ask(self, turn: Turn) -> None:
        self._grant(turn, self._data.draw(st.just(Budget()) | BUDGETS, "asked"))

    def _share(self, turn: Turn) -> None:
        count = self._data.draw(st.integers(1, 6), "children")
        share = turn.ledger.slice(count)
        for _ in range(count):
            self._grant(turn, share)

    def _send(self, turn: Turn) -> None:
        """A run sends calls: shares are stored in its log, and set aside by that."""
        count = self._data.draw(st.integers(1, 6), "calls")
        share = turn.ledger.slice(count)
        for _ in range(0 if share.exhausted else count):
            key = self._key()
            self._write(turn, partial(Ledger.restore, key=key, given=share))
            turn.children.append(Turn(turn, key, share, Ledger(share), is_logged=True))

    def _write(self, turn: Turn, entry: Callable[[Ledger], None]) -> None:
        turn.log.append(entry)
        entry(turn.ledger)

    def _again(self, turn: Turn) -> None:
        """It is handed back, and another attempt takes over its books."""
        ledger = Ledger(turn.grant)
        ledger.take_over(turn.ledger.carried())
        for entry in turn.log:
            entry(ledger)
        assert ledger.spent == turn.ledger.spent
        turn.ledger = ledger

    def _end(self, turn: Turn) -> None:
        if turn.parent is None:
            return
        turn.ended = True
        truth = self._data.draw(st.sampled_from([Result, Failed]))(source="x", spent=turn.ledger.spent)
        late = TimedOut(spent=NOT_TOLD)
        for end in self._data.draw(st.sampled_from([[truth], [], [late], [late, truth]]), "ends"):
            if turn.is_logged:
                spent = end.spent + Spent(tasks=bool(end.source))
                self._write(turn.parent, partial(Ledger.settle, key=turn.key, spent=spent, logged=True))
            else:
                turn.parent.ledger.settle_task(turn.key, end)

    def check(self) -> None:
        for turn in self.root.family():
            assert _fits(turn.ledger.spent, turn.grant, turn.estimate_errors)
            # What the books say is never less than what was really spent below, as far as there is a limit.
            limits = zip(turn.grant.coins, turn.real.coins, strict=True)
            assert all(limit is None or used <= limit + turn.estimate_errors.tokens for limit, used in limits)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_grants_and_spendings_never_exceed_what_was_granted(data: st.DataObject) -> None:
    tree = Tree(data)
    for _ in range(data.draw(st.integers(1, 25))):
        tree.step()
        tree.check()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_books_replayed_from_a_log_are_the_same(data: st.DataObject) -> None:
    grant = data.draw(BUDGETS)
    first, replayed, log = Ledger(grant), Ledger(grant), list[tuple[str, Budget | Spent]]()
    for number in range(data.draw(st.integers(1, 12))):
        key, spent = f"k{number}", data.draw(SPENDINGS)
        share = first.grant_to(key, data.draw(BUDGETS))
        if share.exhausted:
            continue
        first.restore(key, share)
        log.append((key, share))
        if data.draw(st.booleans()):
            first.settle(key, spent)
            log.append((key, spent))
    for key, entry in log:
        if isinstance(entry, Spent):
            replayed.settle(key, entry, logged=True)
        else:
            replayed.restore(key, entry)

    assert replayed.spent == first.spent
    assert replayed.carried() == first.carried() == {}


# --- the same with real turns over a squad in memory ------------------------------------------------------

PLANS = st.recursive(
    st.fixed_dictionaries({"spend": st.integers(0, 300)}),
    lambda inner: st.fixed_dictionaries(
        {
            "spend": st.integers(0, 300),
            "asks": st.lists(inner, max_size=4),
            "at_once": st.booleans(),
            "share": st.booleans(),
            "end": st.sampled_from(["ok", "ok", "terminal", "retry"]),
            "pause_ms": st.integers(0, 20),
        }
    ),
    max_leaves=12,
)


class Node(Agent):
    """Spends and asks as a plan says, and writes down what it got and spent beside all books."""

    slots = 64

    def __init__(self) -> None:
        self.charged = 0
        self.sent = 0
        #: Message id of a task → what it was granted, what it spent itself, and the ids of those it asked.
        self.granted: dict[str, int] = {}
        self.own: dict[str, int] = {}
        self.asked: dict[str, list[str]] = {}

    @topic("tree.node", max_attempts=2)
    async def node(self, plan: dict[str, Any], context: Context) -> int:
        me, parent = context.message.id, context.message.context.parent_message_id
        limits = context.message.payload.constraints
        assert limits is not None
        if context.attempt == 1:
            self.granted[me] = limits.budget.tokens or 0
            self.asked.setdefault(parent or "", []).append(me)
            self.sent += parent is not None
        left = context.budget.tokens
        assert left is not None
        spend = min(plan["spend"], left)
        self.charged += spend
        self.own[me] = self.own.get(me, 0) + spend
        context.charge(spend)
        await asyncio.sleep(plan.get("pause_ms", 0) / 1000)
        asks = plan.get("asks", [])
        options: dict[str, Any] = {"budget": context.budget.share(len(asks))} if plan.get("share") else {}
        asking = (context.ask("tree.node", {"plan": each}, **options) for each in asks)
        if plan.get("at_once"):
            await asyncio.gather(*asking)
        else:
            for each in asking:
                await each
        match plan.get("end"):
            case "terminal":
                raise Terminal("as planned")
            case "retry" if context.attempt == 1:
                raise Retry("as planned", after_s=0.01)
        return spend

    def real(self, id: str) -> int:
        """What a task and all below it spent."""
        return self.own.get(id, 0) + sum(self.real(child) for child in self.asked.get(id, ()))


async def _play(plan: dict[str, Any], tokens: int) -> None:
    node = Node()
    async with MemorySquad() as squad:
        await squad.deploy(node)
        outcome = await squad.ask("tree.node", {"plan": plan}, budget=Budget(tokens=tokens), within_s=600)
    if not tokens:
        assert outcome.details["field"] == "tokens"
        return
    for id, granted in node.granted.items():
        assert node.real(id) <= granted
    assert outcome.spent.tokens == outcome.tokens == node.charged <= tokens
    assert outcome.spent.tasks == node.sent


@settings(max_examples=40, deadline=None)
@given(plan=PLANS, tokens=st.integers(0, 1_500))
def test_in_a_tree_of_real_turns_the_root_knows_to_the_token_what_was_spent(
    plan: dict[str, Any], tokens: int
) -> None:
    run_turned(_play(plan, tokens))

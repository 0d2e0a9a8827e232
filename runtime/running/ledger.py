"""The books of one task: what it was granted, what it has handed out, and what was spent."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from squadron.runtime.errors import BudgetError
from squadron.runtime.wire.limits import UNLIMITED, Budget, least
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.spent import NOTHING, Spent

#: The limits that can be spent, as `Budget` names them and in the order of their coins.
_FIELDS = ("tokens", "usd", "rounds", "tasks")
#: What a task takes by itself.
ONE_TASK = Spent(tasks=1)
#: Keys that begin so stand for what never comes again: they go over to the next attempt as a sum.
ONCE = "#"
#: Most keys that go over to the next attempt one by one: their entry stays below 100 KB. Further ones go as a sum.
MOST_CARRIED = 500


class Ledger:
    """What a task may still spend: `left = grant - charged - reserved`, coin by coin.

    Reserve before the money goes out, under a key; settle with what was really spent, and the change comes back.
    What is never settled stays charged. Nothing here does I/O, tells the time or draws lots: the same calls in the
    same order make the same books. Any thread may call.

    So the sum of what is reserved and spent never exceeds the grant, unless something spent more than was reserved
    for it.

    Args:
        grant: what came with the task.
    """

    def __init__(self, grant: Budget) -> None:
        self.grant = grant
        #: A handler in a thread charges while the loop settles.
        self._lock = threading.Lock()
        #: Sum of all that follows.
        self._used = NOTHING
        self._charged = NOTHING
        self._reserved: dict[str, Spent] = {}
        self._settled: dict[str, Spent] = {}
        #: Keys that somebody else writes down and replays, so that they need no carrying over.
        self._logged: set[str] = set()

    @property
    def left(self) -> Budget:
        """What may still be spent or reserved; hops as they came."""
        return self.grant.minus(self._used)

    @property
    def spent(self) -> Spent:
        """What was spent, of which is a part what is reserved and not settled yet: nobody else may count on it."""
        return self._used

    def narrow(self, most: Budget) -> None:
        """Let no more be spent than this, with what was spent before."""
        self.grant = self.grant.within(most)

    def slice(self, shares: int) -> Budget:
        """A share for each of so many tasks, with one more left for the task itself.

        If there is nothing to give, be it of tasks or of hops, the share is `exhausted`.
        """
        left = self.left
        share = left.share(shares)
        if left.tasks is not None and left.tasks < shares:
            share = replace(share, tasks=-1)
        return share if left.hops is None else replace(share, hops=max(-1, left.hops - 1))

    def charge(self, spent: Spent) -> None:
        """Write down what was spent without a reservation; what is already spent is never refused."""
        with self._lock:
            self._charged += replace(spent, told=True)
            self._used += replace(spent, told=True)

    def reserve(self, key: str, amount: Spent) -> None:
        """Set an amount aside; under a key that is known already, in the place of what it stood for.

        Raises:
            BudgetError: there is not as much left; nothing has changed then.
        """
        with self._lock:
            left = self.grant.minus(self._used - self._of(key))
            for name, limit, wanted in zip(_FIELDS, left.coins, amount.coins, strict=True):
                if limit is not None and wanted > limit:
                    raise _short(name, wanted, limit)
            self._put(self._reserved, key, amount)

    def grant_to(self, key: str, asked: Budget) -> Budget:
        """Set aside what a task asked from here may spend, with one task for itself, and return that.

        Of each coin it gets what was asked for, as far as it is left, or half of what is left if nothing was said.
        A budget with a limit that is exhausted says that there is nothing to give; nothing is set aside then.
        """
        with self._lock:
            given = self._affordable(key, asked)
            if not given.exhausted:
                # The same task asked again while it runs: it has what it was given first.
                share, before = _share(given), self._reserved.get(key)
                self._put(self._reserved, key, share if before is None else share.at_least(before))
        return given

    def restore(self, key: str, given: Budget) -> None:
        """Set aside again what a log says was granted under a key; never refused, since it is gone already."""
        with self._lock:
            self._put(self._reserved, key, _share(given))
            self._logged.add(key)

    def _affordable(self, key: str, asked: Budget) -> Budget:
        if self.grant is asked is UNLIMITED:
            return UNLIMITED
        coins, gone = list[int | None](), self._used - self._of(key)
        for name, limit, used, wanted in zip(_FIELDS, self.grant.coins, gone.coins, asked.coins, strict=True):
            if limit is None:
                coins.append(wanted)
                continue
            # One task is the one that is asked.
            left = max(0, limit - used) if name != "tasks" else max(-1, limit - used - 1)
            coins.append(left - max(0, left) // 2 if wanted is None else min(wanted, left))
        hops = None if self.grant.hops is None else max(-1, self.grant.hops - 1)
        return replace(asked, hops=least(hops, asked.hops)).with_coins(*coins)

    def settle(self, key: str, spent: Spent, *, logged: bool = False) -> None:
        """Charge what was really spent under a key, and give back the rest; a later truth corrects an earlier one.

        If nobody told what was spent, what was reserved stays charged. A key that was never reserved is charged:
        so a log replays what was settled before, without a refusal.

        Args:
            logged: whoever settles it writes it down and does so again on the next attempt: it is not carried.
        """
        with self._lock:
            if not spent.told:
                spent = replace(spent.at_least(self._of(key)), told=True)
            self._put(self._settled, key, spent)
            if logged:
                self._logged.add(key)

    def settle_task(self, key: str, outcome: Outcome) -> None:
        """Settle what a task was granted with its outcome: what it spent, and itself if it ever was sent."""
        # Only what is refused on the spot has no source.
        self.settle(key, outcome.spent + ONE_TASK if outcome.source else outcome.spent)

    def _of(self, key: str) -> Spent:
        return self._reserved.get(key) or self._settled.get(key) or NOTHING

    def _put(self, book: dict[str, Spent], key: str, amount: Spent) -> None:
        # It is in one of the books at most.
        before = self._reserved.pop(key, None) or self._settled.pop(key, None)
        if before is not amount:
            self._used += amount if before is None else amount - before
        book[key] = amount

    # --- from one attempt to the next ----------------------------------------------------------------

    def carried(self) -> dict[str, Any]:
        """What the next attempt of the task takes over, as JSON; empty if nothing was spent."""
        keyed = {key: one for key, one in {**self._settled, **self._reserved}.items() if key not in self._logged}
        single = dict([each for each in keyed.items() if not each[0].startswith(ONCE)][:MOST_CARRIED])
        rest = sum((one for key, one in keyed.items() if key not in single), self._charged)
        if not keyed and rest == NOTHING:
            return {}
        return {"charged": rest.to_wire(), "keys": {key: one.to_wire() for key, one in single.items()}}

    def take_over(self, carried: Any) -> None:
        """Begin with what an earlier attempt spent, as `carried` gave it; what can't be read counts as nothing."""
        if not isinstance(carried, Mapping):
            return
        self.charge(Spent.of_wire(carried.get("charged")))
        keys = carried.get("keys")
        for key, spent in keys.items() if isinstance(keys, Mapping) else ():
            self.settle(str(key), replace(Spent.of_wire(spent), told=True))


def _share(given: Budget) -> Spent:
    """What a budget that was given to a task takes: all of it, and the task itself."""
    if given is UNLIMITED:
        return ONE_TASK
    return Spent(*(limit or 0 for limit in given.coins)) + ONE_TASK


def _short(name: str, wanted: int, limit: int) -> BudgetError:
    unit = 1_000_000 if name == "usd" else 1
    return BudgetError(
        f"the budget of {name} leaves {limit / unit:g}, and {wanted / unit:g} are needed",
        field=name,
        hint=f"ask with a larger budget: Budget({name}=…)",
    )

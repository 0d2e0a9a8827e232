"""Which entries of the registry count: what a keeper says of an agent, and what a replica says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from squadron.runtime.errors import UntrustedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.trust.guard import Guard, Kind, May
from squadron.runtime.trust.may_say import KEEPERS, only, only_agent
from squadron.runtime.trust.signature_check import Signed


@dataclass(frozen=True, slots=True)
class Newest:
    """Where the newest entry of a key stands in the journal, and when that stored it."""

    seq: int
    time: float


class SignedEntries:
    """Lets entries pass that were signed by who may; all of them where nothing is checked."""

    def __init__(self, guard: Guard | None) -> None:
        self._guard = guard
        #: When the newest that passed was signed, by key: an older one was stored again.
        self._signed_at: dict[str, float] = {}

    def hear(self, entry: Entry, take: Callable[[Entry], None]) -> None:
        """Have an entry taken now, or when it is known who signed it, or never."""
        if self._guard is None:
            return take(entry)
        kind, may = self._rule(entry)
        signed = entry.key, entry.data, entry.headers
        self._guard.hear(kind, *signed, lambda _: take(entry), at=entry.time, may=may)

    async def passes(self, entry: Entry) -> bool:
        """Whether an entry counts.

        Raises:
            BusUnavailableError: nobody says who signed it.
        """
        if self._guard is None:
            return True
        kind, may = self._rule(entry)
        try:
            await self._guard.admit(kind, entry.key, entry.data, entry.headers, at=entry.time, may=may)
        except UntrustedError:
            return False
        return True

    def _rule(self, entry: Entry) -> tuple[Kind, May]:
        kind: Kind = "card"
        of_role = only(*KEEPERS)
        match entry.key.split("."):
            case [_, _, _, "presence", agent, _]:
                kind, of_role = "presence", only_agent(agent)

        def may(signed: Signed) -> None:
            of_role(signed)
            if signed.at < self._signed_at.get(entry.key, 0.0):
                raise UntrustedError("a newer one was there before it: it was stored again")
            self._signed_at[entry.key] = signed.at

        return kind, may

    def forget(self, key: str) -> None:
        """An entry is over, and none of its key comes any more."""
        self._signed_at.pop(key, None)

"""What was heard a while ago, by its nonce."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

#: Most that are kept, of some 200 bytes each; beyond, the oldest is forgotten.
MOST_NONCES = 200_000


class Nonces:
    """Signatures that were taken in the last `life_s` seconds, each with its place; `now` is in seconds."""

    def __init__(self, life_s: float, now: Callable[[], float], *, most: int = MOST_NONCES) -> None:
        self._life_s, self._now, self._most = life_s, now, most
        self._taken: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def is_again(self, user: str, nonce: str, place: int) -> bool:
        """Whether it was taken before, from another place; what is heard live has the place 0 and comes once."""
        taken = self._taken.get((user, nonce))
        return taken is not None and (not place or taken[1] != place)

    def take(self, user: str, nonce: str, place: int) -> None:
        """Note one; once its signature was found to be good, or else a forger could take that of another."""
        now = self._now()
        while self._taken:
            until, _ = next(iter(self._taken.values()))
            if until > now and len(self._taken) < self._most:
                break
            self._taken.popitem(last=False)
        self._taken[user, nonce] = now + self._life_s, place

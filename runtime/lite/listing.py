"""Which lite topics there are."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.amounts import is_amount
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import LiteSubject, life_of


@dataclass(frozen=True, slots=True)
class LiteInfo:
    """One lite topic in a list; times are in seconds since the epoch.

    Attributes:
        seq, time, bytes: of its newest message; `kind` is what that is: the type of its envelope, or "data".
        ends_at: when it ends if nobody uses it; 0 if it has no idle life.
        ended: "closed" or "expired" if all that is left is the mark of its end.
    """

    owner: str
    id: str
    seq: int
    time: float
    bytes: int
    kind: str
    ends_at: float = 0.0
    ended: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


async def list_lite(ports: Ports, owner: str = "", *, everything: bool = False) -> list[LiteInfo]:
    """The lite topics of an owner, or all, the newest message first.

    The newest message of each is read: of a million topics that takes some seconds.

    Args:
        everything: also those without an idle life: outcomes of tasks, and what the runtime keeps for itself.

    Raises:
        InvalidSubjectError: `owner` is not a token.
        BusUnavailableError: the server can't be reached.
    """
    pattern = ports.subjects.lite_of(owner)
    orders = {entry.key: entry for entry in await ports.lite.latest(life_of(pattern))}
    found = []
    for entry in await ports.lite.latest(pattern):
        order = orders.get(life_of(entry.key))
        if everything or order is not None:
            found.append(_info(entry, order))
    return sorted(found, key=lambda each: -each.seq)


def _info(entry: Entry, order: Entry | None) -> LiteInfo:
    subject = LiteSubject.parse(entry.key)
    ended = entry.headers.get(END_HEADER, "")
    kind: str = "data"
    with contextlib.suppress(InvalidMessageError):
        kind = "end" if ended else AgentMessage.decode(entry.data).type
    ends_at = 0.0 if order is None else order.time + _ttl_s(order.data)
    about = (entry.seq, entry.time, len(entry.data), kind)
    return LiteInfo(subject.owner, subject.id, *about, ends_at=ends_at, ended=ended)


def _ttl_s(order: bytes) -> float:
    try:
        ttl_s = json.loads(order)["ttlS"]
    except (ValueError, TypeError, LookupError, RecursionError):
        # Anybody may write there.
        return 0.0
    return ttl_s if is_amount(ttl_s) else 0.0

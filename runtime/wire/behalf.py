"""On whose behalf something is asked: the principals before its sender, in the signed body.

Each of them has to be allowed what the sender asks, so that to name one can only lessen what the sender may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from squadron.runtime.errors import ForbiddenError
from squadron.runtime.trust.principals import Principal, Role
from squadron.runtime.wire.path import MOST_DEPTH
from squadron.runtime.wire.policy import PRINCIPAL

#: Field of the metadata.
BEHALF = "onBehalfOf"
#: Who may act on behalf of others: they take tasks, or calls from outside. Others speak for themselves.
DELEGATES: tuple[Role, ...] = ("agent", "gateway", "bridge")


def name_of(principal: Principal) -> str:
    """A principal as it is written: `client:ann`."""
    return f"{principal.role}:{principal.name}"


def chain_of(metadata: Any, author: Principal) -> tuple[str, ...]:
    """Everybody on whose behalf a message is, the oldest first, and at last who signed it.

    Raises:
        ForbiddenError: its author may name nobody, or what it names are no principals.
    """
    named = metadata.get(BEHALF) if isinstance(metadata, dict) else None
    if named is None or named == []:
        return (name_of(author),)
    field = f"metadata.{BEHALF}"
    if author.role not in DELEGATES:
        raise ForbiddenError(f"{name_of(author)} may act on behalf of nobody", field=field)
    if not isinstance(named, list) or len(named) > MOST_DEPTH:
        raise ForbiddenError(f"{field} is no list of at most {MOST_DEPTH} principals", field=field)
    for each in named:
        if not isinstance(each, str) or PRINCIPAL.fullmatch(each) is None:
            raise ForbiddenError(f"{field}: {str(each)[:80]!r} is no principal like client:ann", field=field)
    me = name_of(author)
    return (*dict.fromkeys(each for each in named if each != me), me)


def joined(chain: Sequence[str], *others: str) -> tuple[str, ...]:
    """A chain with others behind it, each at its first place only."""
    return tuple(dict.fromkeys((*chain, *filter(None, others))))

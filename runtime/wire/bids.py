"""Bids: what a call for bids asks, what an agent answers, and what its caller keeps of the answers.

The acts are those of the FIPA contract net (SC00029H): call for proposals, propose or refuse, accept or reject.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.amounts import is_amount
from squadron.runtime.wire.envelope import MAX_NAME, AgentMessage
from squadron.runtime.wire.subjects import check_topic

#: Longest reason of a refusal that is kept, in characters.
MAX_REASON = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Bid:
    """What an agent would do a task for; what is None it does not say.

    Attributes:
        confidence: how sure it is to do it well, from 0 to 1.
        price_tokens: the most tokens that it will use, with all that it asks of others.
        price_usd: the most that it will cost, in US dollars.
        eta_s: how long it will take, in seconds.
        valid_until: the latest start, in seconds since the epoch; by default a minute from now.

    Raises:
        InvalidInputError: a field has a value that it can't have.
    """

    confidence: float
    price_tokens: int | None = None
    price_usd: float | None = None
    eta_s: float | None = None
    valid_until: float | None = None

    def __post_init__(self) -> None:
        if not is_amount(self.confidence, most=1):
            raise _bad("confidence", self.confidence, "a number from 0 to 1")
        if self.price_tokens is not None and (type(self.price_tokens) is not int or self.price_tokens < 0):
            raise _bad("price_tokens", self.price_tokens, "a whole number of tokens, 0 or more")
        for name, value in (("price_usd", self.price_usd), ("eta_s", self.eta_s)):
            if value is not None and not is_amount(value):
                raise _bad(name, value, "a number, 0 or more")
        if self.valid_until is not None and not is_amount(self.valid_until):
            raise _bad("valid_until", self.valid_until, "seconds since the epoch")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The bid in a message; fields that we don't know are left out.

        Raises:
            InvalidInputError: a field is missing, or has a value that it can't have.
        """
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        if "confidence" not in known:
            raise _bad("confidence", None, "a number from 0 to 1")
        return cls(**known)

    def to_content(self) -> dict[str, Any]:
        """As it travels."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _bad(name: str, value: object, hint: str) -> InvalidInputError:
    return InvalidInputError(f"{name} of a bid can't be {value!r:.80}", field=name, hint=hint)


@dataclass(frozen=True, slots=True)
class CallForBids:
    """What somebody asks bids for.

    Attributes:
        topic: what the task will be asked on.
        size: how large its input is, in bytes of JSON.
        digest: of that input; empty if its caller does not say, and then the bid is for any input.
        until: when nobody listens for bids any more, in seconds since the epoch.
        time_left_s: how long the task may take, in seconds.
        tokens, usd: what it may cost.
    """

    topic: str
    size: int = 0
    digest: str = ""
    until: float = math.inf
    time_left_s: float | None = None
    tokens: int | None = None
    usd: float | None = None

    @classmethod
    def of(cls, message: AgentMessage, now: float) -> Self:
        """The call in a message.

        Raises:
            InvalidInputError: it is none; `field` says where.
            InvalidSubjectError: its topic breaks the grammar.
        """
        content, limits, timeout = message.payload.content, message.payload.constraints, message.routing.timeout
        if message.type != "query" or not isinstance(content, dict):
            raise InvalidInputError("this is no call for bids", field="payload.content", hint='{"topic": …}')
        size, digest = content.get("bytes", 0), content.get("digest", "")
        if type(size) is not int or size < 0 or not isinstance(digest, str) or len(digest) > MAX_NAME:
            hint = "bytes is a whole number, digest a text"
            raise InvalidInputError("a call for bids has no such input", field="payload.content", hint=hint)
        deadline = limits.deadline if limits else None
        return cls(
            check_topic(content.get("topic", "")),
            size,
            digest,
            message.timestamp + timeout / 1000 if timeout else math.inf,
            None if deadline is None else max(0.0, deadline / 1000 - now),
            limits.tokens if limits else None,
            limits.cost if limits else None,
        )

    def to_payload(self, deadline_ms: int | None) -> dict[str, Any]:
        """As it travels; the time that is left goes as the task's deadline, in unix milliseconds."""
        limits = {"deadline": deadline_ms, "tokens": self.tokens, "cost": self.usd}
        constraints = {name: value for name, value in limits.items() if value is not None}
        return {
            "content": {"topic": self.topic, "bytes": self.size, "digest": self.digest},
            "constraints": constraints,
        }


@dataclass(frozen=True, slots=True)
class Offer:
    """A bid that was given: under which id, for which topic, by which agent and replica.

    `present` says whether the registry knew the replica: only then its death can be seen.
    """

    id: str
    topic: str
    agent: str
    replica: str
    bid: Bid
    present: bool = True

    def is_valid(self, now: float) -> bool:
        """Whether it may still be accepted, at `now` in seconds since the epoch."""
        return self.bid.valid_until is None or now < self.bid.valid_until


@dataclass(frozen=True, slots=True)
class Bids:
    """All answers to one call: who offers, and why the others refuse, by topic."""

    offers: tuple[Offer, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for a journal."""
        return {"offers": [asdict(each) for each in self.offers], "refusals": dict(self.refusals)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` made."""
        offers = (Offer(**{**each, "bid": Bid(**each["bid"])}) for each in data["offers"])
        return cls(tuple(offers), dict(data["refusals"]))

"""What goes along when a message is put once more by somebody else: in line, to another replica, out of a letter.

The message stays as its sender signed it. Who carries it signs, too, over where he puts it, and his nonce ends in
the digest of the header `Squadron-Carried`: so his one signature covers that as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from squadron.runtime.errors import UntrustedError
from squadron.runtime.trust.agent_sender import SENDER_HEADER, text_of

CARRIED_HEADER = "Squadron-Carried"
#: Longest that is looked at, in characters: two headers of a sender and what is said of them.
_MOST = 8192


@dataclass(frozen=True, slots=True)
class Carried:
    """How a message came to who carries it.

    Attributes:
        sender, carried: its headers of these names; `carried` is empty if its sender put it there himself.
        subject: where it was.
        at: when it was stored there, in seconds since the epoch.
        id: under which message id.
        redriven: how often it was put back after it was dead-lettered; 0 if it is not put back now.
        put_at: when it was put back, in seconds since the epoch.
        put_as: the message id that it is put under now.
    """

    sender: str
    carried: str
    subject: str
    at: float
    id: str = ""
    redriven: int = 0
    put_at: float = 0.0
    put_as: str = ""

    def encode(self) -> str:
        """The header's value."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, value: str) -> Self:
        """Read a header's value.

        Raises:
            UntrustedError: it is none.
        """
        try:
            if len(value) > _MOST:
                raise ValueError("too long")
            made = cls(**json.loads(value))
            texts = (made.sender, made.carried, made.subject, made.id, made.put_as)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a text is none")
            if not all(type(time) in (int, float) and math.isfinite(time) for time in (made.at, made.put_at)):
                raise TypeError("a time is none")
            if type(made.redriven) is not int or not 0 <= made.redriven < 1_000_000:
                raise TypeError("redriven is no count")
        except (ValueError, TypeError, RecursionError) as error:
            raise UntrustedError(f"{CARRIED_HEADER} is malformed: {str(error)[:80]}") from None
        return made

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the message had where it was."""
        headers = {SENDER_HEADER: self.sender, CARRIED_HEADER: self.carried, "Nats-Msg-Id": self.id}
        return {name: value for name, value in headers.items() if value}


def digest_of_carried(value: str) -> str:
    """How a carrier's nonce ends: 43 characters."""
    return text_of(hashlib.sha256(value.encode()).digest())


def carry(
    headers: Mapping[str, Any], subject: str, *, at: float, put_as: str = "", **facts: Any
) -> dict[str, str]:
    """The header that takes a message's signature along; none if it has no signature.

    Args:
        headers, subject, at: of the message where it was.
        put_as: the message id that it is put under.
        facts: what else `Carried` holds.
    """
    if SENDER_HEADER not in headers:
        return {}
    facts = {"id": headers.get("Nats-Msg-Id", ""), **facts}
    sender, carried = headers[SENDER_HEADER], headers.get(CARRIED_HEADER, "")
    return {CARRIED_HEADER: Carried(sender, carried, subject, at, put_as=put_as, **facts).encode()}

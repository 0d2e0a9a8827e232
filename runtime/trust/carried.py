"""What goes along when a message is put once more by somebody else: in line, to another replica, out of a letter.

The message stays as its sender signed it. Who carries it signs, too, over where he puts it, and his nonce ends in
the digest of the header `Squadron-Carried`: so his one signature covers that as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Self

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
        redriven: how often it was put back after it was dead-lettered; 0 if it is not put back now.
        put_at: when it was put back, in seconds since the epoch.
    """

    sender: str
    carried: str
    subject: str
    at: float
    redriven: int = 0
    put_at: float = 0.0

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
            if not all(isinstance(text, str) for text in (made.sender, made.carried, made.subject)):
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
        return {SENDER_HEADER: self.sender} | ({CARRIED_HEADER: self.carried} if self.carried else {})

    def origin(self) -> Carried:
        """How it came to the first who carried it, with how often it was put back since.

        Raises:
            UntrustedError: what was said of it before is malformed.
        """
        first, redriven = self, self.redriven
        while first.carried:
            first = Carried.parse(first.carried)
            redriven = max(redriven, first.redriven)
        return replace(first, redriven=redriven)


def digest_of_carried(value: str) -> str:
    """How a carrier's nonce ends: 43 characters."""
    return text_of(hashlib.sha256(value.encode()).digest())


def carry(headers: Mapping[str, str], subject: str, *, at: float) -> dict[str, str]:
    """The header that takes a message's signature along; none if it has no signature.

    Args:
        headers, subject: of the message where it was.
        at: when it was stored there, in seconds since the epoch.
    """
    if SENDER_HEADER not in headers:
        return {}
    return {CARRIED_HEADER: Carried(headers[SENDER_HEADER], headers.get(CARRIED_HEADER, ""), subject, at).encode()}

"""The header `Agent-Sender`: who says a message, and the signature over it, as Synadia's agents have it.

A signature stands for these bytes, which any NATS client can put together (`docs/security.md`):

    AGENT-SENDER-V1\\n{account}\\n{user}\\n{subject}\\n{ts}\\n{nonce}\\n{SHA-256 of the payload in hex}\\n
"""

from __future__ import annotations

import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Self

from pydantic_core import from_json

from squadron.runtime.errors import UntrustedError
from squadron.runtime.trust.keys import kind_of

#: Name of the header; case-sensitive, as all of NATS.
SENDER_HEADER = "Agent-Sender"
#: Longest header that is looked at, in bytes (Synadia Agent Protocol).
MAX_HEADER_BYTES = 2048

_ACCOUNT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}|\$G")
_NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z")
#: One signature, one text: the last letter stands for two bits, and no other four may be set.
_SIGNATURE = re.compile(r"[A-Za-z0-9_-]{85}[AQgw]")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
#: A line of what is signed can't hold one.
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f]")
#: A header as our signers write it, without escapes: then this finds at once what JSON and the rules above would.
_USUAL = re.compile(
    r'\{"v":1,"account":"([A-Z2-7]+)","user":"([A-Z2-7]+)","name":"([ !#-[\]-~]*)","sub":"([!#-[\]-~]*)",'
    rf'"ts":"({_TS.pattern})","nonce":"({_NONCE.pattern})","sig":"({_SIGNATURE.pattern})"\}}',
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class AgentSender:
    """Who says it.

    Attributes:
        account, user: public keys.
        name: of the principal, as the sender says; what counts is that of the user's JWT.
        subject: what it was published on.
        ts: when it was signed, RFC 3339 in UTC.
        nonce: told once.
        signature: 64 bytes.
        at: `ts` in seconds since the epoch.
    """

    account: str
    user: str
    name: str
    subject: str
    ts: str
    nonce: str
    signature: bytes = b""
    at: float = 0.0

    def signed(self, digest: str) -> bytes:
        """What the signature is over; `digest` is the SHA-256 of the payload, in hex."""
        return signed_bytes(self.account, self.user, self.subject, self.ts, self.nonce, digest)

    def encode(self) -> str:
        """The header's value."""
        fields = {"v": 1, "account": self.account, "user": self.user, "name": self.name, "sub": self.subject}
        fields |= {"ts": self.ts, "nonce": self.nonce, "sig": text_of(self.signature)}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def parse(cls, value: str, *, names: bool = False) -> Self | None:
        """Read a header's value; one of another version, or without a signature, counts as none.

        Args:
            names: whether the account may be a name, as on servers whose accounts have no keys.

        Raises:
            UntrustedError: it is none, and says which field is wrong.
        """
        if len(value if value.isascii() else value.encode(errors="replace")) > MAX_HEADER_BYTES:
            raise UntrustedError(f"{SENDER_HEADER} is longer than {MAX_HEADER_BYTES} bytes")
        if (usual := _USUAL.fullmatch(value)) is not None:
            account, user, name, subject, ts, nonce, signature = usual.groups()
            if kind_of(account) == "A" and kind_of(user) == "U" and (at := _instant(ts)) is not None:
                return cls(account, user, name, subject, ts, nonce, _signature(signature), at)
        try:
            fields = from_json(value, cache_strings="keys")
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise UntrustedError(f"{SENDER_HEADER} is no JSON object, or there are several")
        if type(fields.get("v")) is not int or fields["v"] != 1 or "sig" not in fields:
            return None
        get = fields.get
        account, user, name, subject = get("account", ""), get("user", ""), get("name", ""), get("sub", "")
        ts, nonce, signature = get("ts", ""), get("nonce", ""), get("sig", "")
        for text in (account, user, name, subject, ts, nonce, signature):
            if type(text) is not str:
                raise UntrustedError(f"{SENDER_HEADER}: a field is no text")
        at = _instant(ts) if _TS.fullmatch(ts) else None
        wrong = (
            (kind_of(account) != "A" and not (names and _ACCOUNT_NAME.fullmatch(account)) and "account")
            or (kind_of(user) != "U" and "user")
            or (_BREAKS.search(subject) is not None and "sub")
            or (at is None and "ts")
            or (_NONCE.fullmatch(nonce) is None and "nonce")
            or (_SIGNATURE.fullmatch(signature) is None and "sig")
        )
        if wrong:
            raise UntrustedError(f"{SENDER_HEADER}: field {wrong!r} is malformed")
        return cls(account, user, name, subject, ts, nonce, _signature(signature), at or 0.0)


def signed_bytes(account: str, user: str, subject: str, ts: str, nonce: str, digest: str) -> bytes:
    """What a signature is over."""
    return f"AGENT-SENDER-V1\n{account}\n{user}\n{subject}\n{ts}\n{nonce}\n{digest}\n".encode()


def time_text(at: float) -> str:
    """A time as the header has it, in milliseconds; `at` is in seconds since the epoch."""
    second, micros = divmod(round(at * 1e6), 1_000_000)
    return f"{_second(second)}.{micros // 1000:03}Z"


@lru_cache(maxsize=8)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()[:19]


def text_of(data: bytes) -> str:
    """Base64url without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_URL_SAFE).decode()


def _signature(text: str) -> bytes:
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "==")


def _instant(ts: str) -> float | None:
    try:
        return datetime.fromisoformat(ts).timestamp()
    except (ValueError, OverflowError):
        return None

"""Checking who said a message: the signature, when it was made, and whose word stands behind the key."""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from squadron.runtime.errors import UntrustedError
from squadron.runtime.trust.agent_sender import SENDER_HEADER, AgentSender
from squadron.runtime.trust.carried import CARRIED_HEADER, Carried, digest_of_carried
from squadron.runtime.trust.keys import is_signed_by
from squadron.runtime.trust.nonces import Nonces
from squadron.runtime.trust.principals import Principal, TrustDocument

#: How far from now a message may be signed that is heard live, in seconds (Synadia Agent Protocol).
LIVE_WITHIN_S = 30.0
#: How far from when it was stored a message may be signed, in seconds: as far as clocks may differ (Kerberos).
#: What is stored twice in that time is told apart by its place or its outcome (`running.arrival`).
STORED_WITHIN_S = 300.0
#: How many carriers a message may have: it was put back, put under its own message id, and stands in line.
MOST_CARRIERS = 3
#: Credentials that are remembered, and how long it is remembered that one is not known, in seconds.
MOST_USERS, UNKNOWN_FOR_S = 4096, 2.0
#: How often it is looked whether the trust document has changed, in seconds: who is revoked is so within it.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Signed:
    """A message whose signature is good.

    Attributes:
        by: who put it where it is.
        at: when that was signed, in seconds since the epoch.
        digest: SHA-256 of its bytes, in hex.
        carried: how it came to who carries it; None if that is its sender.
        origin: as its sender signed it, likewise.
        nonce: told once by who put it there.
    """

    by: Principal
    at: float
    digest: str
    carried: Carried | None = None
    origin: Signed | None = None
    nonce: str = ""

    @property
    def author(self) -> Principal:
        """Who said it, whoever carries it."""
        return self.by if self.origin is None else self.origin.author

    @property
    def carriers(self) -> list[tuple[Principal, Carried]]:
        """Who carries it and how it came there, the last one first."""
        if self.carried is None or self.origin is None:
            return []
        return [(self.by, self.carried), *self.origin.carriers]


class UnknownUserError(UntrustedError):
    """The credential that signed it was never seen; `user` is its public key."""

    def __init__(self, user: str) -> None:
        super().__init__(f"nobody knows the credential {user}")
        self.user = user


class SignatureCheck:
    """Checks messages against a trust document.

    Args:
        fetch: the JWT of a user, by its public key; None if there is none.
        now: the clock, in seconds since the epoch.
        changed: the document that is to be taken from now on; None if it is the same. Must be quick.
    """

    def __init__(
        self,
        document: TrustDocument,
        fetch: Callable[[str], Awaitable[bytes | None]],
        now: Callable[[], float] = time.time,
        changed: Callable[[], TrustDocument | None] = lambda: None,
    ) -> None:
        self.document, self._fetch, self._now, self._changed = document, fetch, now, changed
        self._look_at = 0.0
        self._known: OrderedDict[str, Principal] = OrderedDict()
        #: Until when it is not asked for again.
        self._unknown: OrderedDict[str, float] = OrderedDict()
        # As long as a signature is good, be it early or late.
        self._heard, self._stored = Nonces(2 * LIVE_WITHIN_S, now), Nonces(2 * STORED_WITHIN_S, now)

    def _look(self) -> None:
        """Take a document that has changed: keys are rotated, and credentials revoked, while this runs."""
        self._look_at = self._now() + LOOK_S
        if (document := self._changed()) is not None:
            self.document = document
            self._known.clear()
            self._unknown.clear()

    def _principal(self, user: str, at: float) -> Principal:
        if self._now() >= self._look_at:
            self._look()
        known = self.document.users.get(user) or self._known.get(user)
        if known is None or (0 < known.expires_at <= at and not self.asked(user)):
            # It may have a newer JWT.
            raise UnknownUserError(user)
        known.check_time(at, self.document.revoked)
        return known

    def asked(self, user: str) -> bool:
        """Whether it was asked for a moment ago."""
        return self._unknown.get(user, 0.0) > self._now()

    async def learn(self, user: str) -> None:
        """Look who a credential is; nothing if that was done a moment ago, or there is no answer.

        Raises:
            BusUnavailableError: the server does not say.
        """
        if self.asked(user):
            return
        token = await self._fetch(user)
        self._unknown[user] = self._now() + UNKNOWN_FOR_S
        self._shorten(self._unknown)
        if token is not None:
            # Somebody new may have come with the key of a role that is new, too.
            self._look()
            try:
                principal = self.document.principal(token.decode("ascii", "replace"))
            except UntrustedError:
                return
            if principal.user == user:
                self._known[user] = principal
                self._shorten(self._known)

    async def learn_signer(self, headers: Mapping[str, str]) -> None:
        """Look who signed a message, if that is not known.

        Raises:
            UntrustedError: its header is malformed.
            BusUnavailableError: the server does not say.
        """
        value = headers.get(SENDER_HEADER)
        sender = None if value is None else AgentSender.parse(value)
        if sender is not None and sender.user not in self._known and sender.user not in self.document.users:
            await self.learn(sender.user)

    @staticmethod
    def _shorten(kept: OrderedDict[str, Any]) -> None:
        while len(kept) > MOST_USERS:
            kept.popitem(last=False)

    async def verify(
        self,
        subject: str | None,
        data: bytes,
        headers: Mapping[str, str],
        *,
        at: float | None,
        seq: int | None = None,
    ) -> Signed:
        """`check`, and look up the credentials that are not known.

        Raises:
            UntrustedError: it is not as somebody signed it who is trusted.
            BusUnavailableError: a credential can't be looked up.
        """
        for _ in range(MOST_CARRIERS + 1):
            try:
                return self.check(subject, data, headers, at=at, seq=seq)
            except UnknownUserError as error:
                if self.asked(error.user):
                    raise
                await self.learn(error.user)
        return self.check(subject, data, headers, at=at, seq=seq)

    def check(
        self,
        subject: str | None,
        data: bytes,
        headers: Mapping[str, str],
        *,
        at: float | None,
        seq: int | None = None,
    ) -> Signed:
        """Who said a message.

        Args:
            subject: where it was heard, or is stored; None if its data say what they are for.
            at: when it was stored there, by the server's clock, in seconds since the epoch; None if it is heard
                live, which it may be once.
            seq: its place there: at another one it was stored again. None if that does not matter.

        Raises:
            UnknownUserError: somebody signed it whose credential is to be learned first.
            UntrustedError: it is not as somebody signed it who is trusted.
        """
        return self._check(subject, hashlib.sha256(data).hexdigest(), headers, at, seq, MOST_CARRIERS)

    def check_carrier(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Signed:
        """Who carries what is heard live, whoever said it.

        Raises:
            UnknownUserError, UntrustedError: as `check`.
        """
        return self._check(subject, hashlib.sha256(data).hexdigest(), headers, None, None, -1)

    def _check(
        self,
        subject: str | None,
        digest: str,
        headers: Mapping[str, str],
        at: float | None,
        seq: int | None,
        left: int,
    ) -> Signed:
        value = headers.get(SENDER_HEADER)
        sender = None if value is None else AgentSender.parse(value)
        if sender is None:
            raise UntrustedError("it is not signed")
        self._check_time(sender, at)
        if subject not in (None, sender.subject) and not _is_told_on(sender.subject, subject):
            raise UntrustedError(f"it is signed for {sender.subject[:80]}")
        carried = self._carried(sender, headers)
        nonces = self._heard if at is None else None if seq is None else self._stored
        if nonces is not None and nonces.is_again(sender.user, sender.nonce, seq or 0):
            raise UntrustedError("it was heard before")
        if not is_signed_by(sender.user, sender.signed(digest), sender.signature):
            raise UntrustedError("it is not as it was signed")
        by = self._principal(sender.user, self._now() if at is None else at)
        if sender.account != self.document.account_of(by.role):
            raise UntrustedError("it is signed for another account")
        origin = None
        if carried is not None and left >= 0:
            if not left:
                raise UntrustedError(f"it was carried more than {MOST_CARRIERS} times")
            origin = self._check(carried.subject, digest, carried.headers, carried.at, None, left - 1)
        if nonces is not None:
            nonces.take(sender.user, sender.nonce, seq or 0)
        return Signed(by, sender.at, digest, carried, origin, sender.nonce)

    def _check_time(self, sender: AgentSender, at: float | None) -> None:
        most, other, what = (
            (LIVE_WITHIN_S, self._now(), "now") if at is None else (STORED_WITHIN_S, at, "when it was stored")
        )
        apart = other - sender.at
        if abs(apart) > most:
            when = "before" if apart > 0 else "after"
            raise UntrustedError(
                f"it was signed {abs(apart):.0f} s {when} {what}: sent again, or a clock is wrong"
            )

    @staticmethod
    def _carried(sender: AgentSender, headers: Mapping[str, str]) -> Carried | None:
        value = headers.get(CARRIED_HEADER)
        if not value:
            return None
        if not sender.nonce.endswith(digest_of_carried(value)):
            raise UntrustedError(f"its {CARRIED_HEADER} is not as it was signed")
        return Carried.parse(value)


#: Where an agent keeps the logs of its runs that has a stream of its own.
_OWN_LOG = re.compile(r"([^.]+\.[^.]+)\.own\.[^.]+(\.run\.[^.]+)")


def _is_told_on(published_on: str, subject: str) -> bool:
    """Whether a server has on `subject` what was published elsewhere: it stores queries as tasks, tells durable
    events as events, and logs of runs where all look at them.
    """
    queried, stored = subject.replace(".task.", ".query.", 1), subject.replace(".event.", ".durable.", 1)
    own = _OWN_LOG.fullmatch(published_on)
    return published_on in (queried, stored) or (own is not None and own[1] + own[2] == subject)

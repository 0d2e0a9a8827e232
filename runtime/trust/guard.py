"""What is done about messages that nobody signed who may: told of, or refused."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, UntrustedError
from squadron.runtime.logs import get_logger
from squadron.runtime.trust.signature_check import SignatureCheck, Signed, UnknownUserError
from squadron.runtime.trust.verify_modes import VerifyMode, VerifyModes

#: Refusals that are logged and recorded each second; the others are only counted: who forges must not fill disks.
TOLD_PER_S = 10

#: What is told apart among the messages that are checked.
Kind = Literal[
    "task",
    "outcome",
    "chunk",
    "event",
    "cancel",
    "card",
    "presence",
    "record",
    "control",
    "answer",
    "hand",
    "letter",
    "right",
    "bid",
    "question",
    "lite",
    "own",
]
#: Whether who signed it may say it; raises an `UntrustedError` if not.
May = Callable[[Signed], None]

_log = get_logger("squadron.trust")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that is not as somebody signed it who may.

    Attributes:
        taken: whether it was taken all the same.
        loud: whether it is to be recorded; of many in one second only some are.
    """

    kind: Kind
    subject: str
    reason: str
    taken: bool
    loud: bool


def anybody(_: Signed) -> None:
    """Whoever signed it may."""


class Guard:
    """Checks what is taken: by its mode what fails is refused, or only told of, or it is not looked at.

    What is of a topic goes by that topic's mode, all else by the strictest. `least` is the mildest mode that the
    topic's author wants.

    Args:
        me: the principal of this process; empty if it has none.
    """

    def __init__(self, verifier: SignatureCheck, modes: VerifyModes, me: str = "") -> None:
        self.verifier, self.modes, self.me = verifier, modes, me
        #: How many were refused, or would have been, by kind.
        self.refused: Counter[str] = Counter()
        self._sinks: list[Callable[[Refusal], None]] = []
        self._second, self._told = 0, 0

    @property
    def requires(self) -> bool:
        """Whether anything is refused here that nobody signed who may."""
        return self.modes.strictest == "require"

    def mode(self, topic: str = "", least: VerifyMode = "off") -> VerifyMode:
        """What is done about messages of a topic, or about those of none."""
        return self.modes.of(topic, least) if topic else self.modes.strictest

    def on_refusal(self, sink: Callable[[Refusal], None]) -> None:
        """Call `sink` with each refusal. It must not block or raise."""
        self._sinks.append(sink)

    def refuse(
        self, kind: Kind, subject: str, error: UntrustedError, *, topic: str = "", least: VerifyMode = "off"
    ) -> None:
        """Count, log and tell of a message that failed.

        Raises:
            UntrustedError: the same, if it is refused.
        """
        requires = self.mode(topic, least) == "require"
        self.refused[kind] += 1
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._told = second, 0
        self._told += 1
        loud = self._told <= TOLD_PER_S
        refusal = Refusal(kind, subject[:200], str(error), taken=not requires, loud=loud)
        if loud:
            about = {"kind": kind, "subject": refusal.subject, "reason": refusal.reason}
            _log.warning("trust.refused" if requires else "trust.would_refuse", **about)
        for sink in self._sinks:
            sink(refusal)
        if requires:
            raise error

    async def admit(
        self,
        kind: Kind,
        subject: str | None,
        data: bytes,
        headers: Mapping[str, str],
        *,
        at: float | None,
        may: May = anybody,
        seq: int | None = None,
        topic: str = "",
        least: VerifyMode = "off",
    ) -> Signed | None:
        """Check a message; see `SignatureCheck.check`. None if it is not looked at, or failed and is taken.

        Raises:
            UntrustedError: it failed, and is refused.
            BusUnavailableError: a credential can't be looked up.
        """
        if self.mode(topic, least) == "off":
            return None
        try:
            signed = await self.verifier.verify(subject, data, headers, at=at, seq=seq)
            may(signed)
            return signed
        except UntrustedError as error:
            self.refuse(kind, subject or "", error, topic=topic, least=least)
            return None

    def hear(
        self,
        kind: Kind,
        subject: str,
        data: bytes,
        headers: Mapping[str, str],
        sink: Callable[[Signed | None], None],
        *,
        at: float | None,
        may: May = anybody,
        carrier: bool = False,
        topic: str = "",
        least: VerifyMode = "off",
    ) -> None:
        """`admit` for who can't wait: `sink` is called at once, when the credential is known, or never.

        Args:
            carrier: only of who carries it; who said it is checked later.
        """
        if self.mode(topic, least) == "off":
            sink(None)
            return
        try:
            if carrier:
                signed = self.verifier.check_carrier(subject, data, headers)
            else:
                signed = self.verifier.check(subject, data, headers, at=at)
            may(signed)
        except UnknownUserError as error:
            if not self.verifier.asked(error.user):
                how: dict[str, Any] = {"at": at, "may": may, "carrier": carrier, "topic": topic, "least": least}
                again = partial(self.hear, kind, subject, data, headers, sink, **how)
                spawn(self._hear_later(error.user, again), f"learns who {error.user} is")
                return
            with contextlib.suppress(UntrustedError):
                self.refuse(kind, subject, error, topic=topic, least=least)
                sink(None)
            return
        except UntrustedError as error:
            with contextlib.suppress(UntrustedError):
                self.refuse(kind, subject, error, topic=topic, least=least)
                sink(None)
            return
        sink(signed)

    async def _hear_later(self, user: str, again: Callable[[], None]) -> None:
        try:
            await self.verifier.learn(user)
        except BusUnavailableError as error:
            _log.info("trust.not_known", user=user, error=str(error))
            return
        again()

"""Whether who signed a task may ask it, and how much: looked at where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squadron.runtime.errors import ConfigError, ForbiddenError
from squadron.runtime.running.allowance import Allowance
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.guard import May
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.wire.behalf import chain_of, name_of
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Rejected
from squadron.runtime.wire.spent import Spent
from squadron.runtime.wire.topics import SemanticTopic


class Permission:
    """What one task may: on whose behalf it is, and what is left to those.

    Args:
        signed: how it was signed; None where that is not looked at.

    Attributes:
        chain: on whose behalf it is, who signed it at last; nobody until that was found to be allowed.
    """

    def __init__(
        self, ports: Ports, allowance: Allowance, signed: Signed | None, message: AgentMessage, topic: str
    ) -> None:
        self._ports, self._allowance, self._signed = ports, allowance, signed
        self._message, self._topic = message, topic
        self.chain: tuple[str, ...] = ()

    def forbidden(self, allow: tuple[str, ...], common: dict[str, Any]) -> Rejected | None:
        """How it ends if one of those on whose behalf it is may not ask it; `allow` is that of its topic."""
        if self._signed is None:
            return None
        self.chain = (name_of(self._signed.author),)
        try:
            chain = chain_of(self._message.metadata, self._signed.author)
            ruling = self._ports.policy.rule_on(chain, self._topic, allow)
            if not ruling.allowed:
                raise ForbiddenError(ruling.reason, field=ruling.by)
        except ForbiddenError as error:
            return self._refuse(error, common)
        self.chain = chain
        return None

    @property
    def is_limited(self) -> bool:
        """Whether the next task is to know what this one has spent."""
        return bool(self._ports.policy.limits)

    async def used_up(self, ledger: Ledger, common: dict[str, Any]) -> Rejected | None:
        """How it ends if whose task it is has nothing left; else its first attempt is counted, and its books are
        narrowed.

        Raises:
            BusUnavailableError: nobody knows; it is delivered again.
        """
        if not self.is_limited:
            return None
        is_first = common["attempt"] == 1
        try:
            ledger.narrow(await self._allowance.take(self._payers, self._topic, first=is_first))
        except ForbiddenError as error:
            return self._refuse(error, common)
        if exhausted := ledger.left.exhausted:
            reason = f"its attempts have spent what it may of {exhausted}"
            return Rejected(reason=reason, details={"field": exhausted}, **common)
        return None

    async def charge(self, spent: Spent) -> None:
        """Write down what it has spent, for whose it is."""
        if self.is_limited and (spent.tokens or spent.usd_micros):
            await self._allowance.charge(self._payers, self._topic, spent)

    @property
    def _payers(self) -> tuple[str, ...]:
        """Whose limits count: of who asked, and of those for whom a gateway asks. What an agent asks for its tasks
        is a part of what those cost."""
        is_gateway = self.chain and self.chain[-1].startswith("gateway:")
        return self.chain if is_gateway else self.chain[-1:]

    def _refuse(self, error: ForbiddenError, common: dict[str, Any]) -> Rejected | None:
        """Count and file it; where that is only warned of, it runs all the same."""
        guard = self._ports.guard
        if guard is None:
            return None
        try:
            guard.refuse("right", self._ports.subjects.task(self._topic), error, topic=self._topic)
        except ForbiddenError:
            return Rejected(reason=str(error), details={"field": error.field}, **common)
        return None


def check_kept(ports: Ports, topic: SemanticTopic) -> None:
    """Check that what a topic says of who may ask it can be held to here.

    Raises:
        ConfigError: nobody looks who asks.
    """
    if ports.guard is not None:
        return
    hint = "set SQUADRON_TRUST, NATS_CREDS and SQUADRON_VERIFY=require, or leave it out"
    if topic.allow:
        raise ConfigError(
            f"{topic.name} is for {', '.join(topic.allow)} only (allow), and here nobody looks who asks", hint=hint
        )
    if topic.verify != "off":
        raise ConfigError(f"{topic.name} has verify={topic.verify!r}, and here nobody looks who signs", hint=hint)


def may_publish(ports: Ports, topic: str, metadata: Mapping[str, Any] | None, speaks: May) -> May:
    """Who may publish an event: whose it says it is, if the policy has nothing against it."""

    def may(signed: Signed) -> None:
        speaks(signed)
        if not ports.policy.rules:
            return
        ruling = ports.policy.rule_on(chain_of(metadata, signed.author), topic)
        if not ruling.allowed:
            raise ForbiddenError(ruling.reason, field=ruling.by)

    return may

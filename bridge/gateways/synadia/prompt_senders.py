"""Who sends a prompt: a signature is checked, and where signatures count it says on whose behalf the task is."""

from __future__ import annotations

import hashlib
import time
from typing import Literal

from squadron.bridge.gateways.synadia.prompt_wire import PromptError
from squadron.bridge.gateways.visitors import ANYBODY, Visitor, behalf_of
from squadron.runtime.errors import UntrustedError
from squadron.runtime.ports.bus import Note
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.agent_sender import SENDER_HEADER, AgentSender
from squadron.runtime.trust.keys import is_signed_by
from squadron.runtime.trust.nonces import Nonces
from squadron.runtime.trust.signature_check import LIVE_WITHIN_S
from squadron.runtime.wire.behalf import joined, name_of
from squadron.runtime.wire.topics import SemanticTopic

#: What the protocol calls those whom an agent hears: all, or who signs.
Trust = Literal["any", "signed"]


class PromptSenders:
    """Tells who sent a prompt, and whether they may.

    A wrong signature is refused whatever the settings. Whose it is counts only where `verify` is on: with
    `require` nobody is heard whom the trust document does not vouch for.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._nonces = Nonces(2 * LIVE_WITHIN_S, time.time)

    @property
    def trust(self) -> Trust:
        """What callers are told that they need."""
        return "signed" if self._requires else "any"

    @property
    def _requires(self) -> bool:
        return self._ports.guard is not None and self._ports.guard.requires

    async def visitor(self, note: Note) -> Visitor:
        """Whoever sent it.

        Raises:
            PromptError: its signature is malformed or wrong, or it takes one that somebody vouches for.
            BusUnavailableError: a credential can't be looked up.
        """
        is_signed, guard = self._is_signed(note), self._ports.guard
        if guard is None:
            return ANYBODY
        try:
            signed = await guard.admit("task", note.subject, note.data, note.headers, at=None)
        except UntrustedError as error:
            if not is_signed:
                raise PromptError(401, "a signature is required: header Agent-Sender") from None
            raise PromptError(403, f"nobody who is trusted vouches for it: {error.args[0]}") from None
        return ANYBODY if signed is None else Visitor(name_of(signed.by))

    def _is_signed(self, note: Note) -> bool:
        """Whether it is signed, by whomever, and as it should be."""
        value = note.headers.get(SENDER_HEADER)
        try:
            sender = None if value is None else AgentSender.parse(value, names=True)
        except UntrustedError as error:
            raise PromptError(400, str(error.args[0])) from None
        if sender is None:
            return False
        if sender.subject != note.subject or abs(time.time() - sender.at) > LIVE_WITHIN_S:
            raise PromptError(401, "it is signed for another subject, or another time")
        if not is_signed_by(sender.user, sender.signed(hashlib.sha256(note.data).hexdigest()), sender.signature):
            raise PromptError(401, "it is not as it was signed")
        if self._nonces.is_again(sender.user, sender.nonce, 0):
            raise PromptError(401, "it was heard before")
        self._nonces.take(sender.user, sender.nonce, 0)
        return True

    def check_may_ask(self, visitor: Visitor, topic: SemanticTopic) -> None:
        """Refuse what the agent would refuse by policy, before anything is stored.

        Raises:
            PromptError: this visitor may not ask this topic.
        """
        me = self._ports.principal
        if not self._requires or me is None:
            return
        chain = joined((behalf_of(visitor, me), name_of(me)))
        ruling = self._ports.policy.rule_on(chain, topic.name, topic.allow)
        if not ruling.allowed:
            raise PromptError(403, ruling.reason)

"""What nobody can read, or serve: no handler sees it."""

from __future__ import annotations

import json

from squadron.runtime.errors import UntrustedError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.proof import answers, check_signed
from squadron.runtime.running.reports import Reports
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import DeadLettered
from squadron.runtime.wire.subjects import token_of

_log = get_logger("squadron.turn")


class Poison:
    """Bytes nobody can read get no second try; they are kept for a person to look at."""

    def __init__(self, ports: Ports, agent: str, reports: Reports) -> None:
        self._ports, self._agent, self._reports, self._letters = ports, agent, reports, DeadLetters(ports)

    async def take(self, delivery: Delivery, error: Exception) -> None:
        """Answer, bury and settle what was delivered; only settle what has to be signed, and was not.

        Raises:
            BusUnavailableError: it could not be stored; it is delivered again.
        """
        try:
            signed = await check_signed(self._ports, delivery)
        except UntrustedError:
            return await delivery.lease.settle()
        await self._answer(delivery, error, signed)
        names = {"agent": self._agent, "replica": self._ports.identity.id, "subject": delivery.subject}
        _log.warning("turn.poison", error=str(error), **names)
        await self._letters.bury_poison(self._agent, delivery, error, source=self._ports.identity)
        await delivery.lease.settle()

    async def _answer(self, delivery: Delivery, error: Exception, signed: Signed | None) -> None:
        """Of what can't be served, id and address may still be readable: its sender need not wait in vain."""
        try:
            raw = json.loads(delivery.data)
            id, reply_to = raw["id"], raw["replyTo"]
            now = self._ports.clock.time()
            sender = AgentIdentity(id=raw["source"]["id"])
            message = AgentMessage.new("task", sender, id=id, reply_to=reply_to, timestamp=now)
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        outcome = DeadLettered(reason=str(error), task_id=message.id, details={"attempts": 0})
        lite_key, announce = self._reports.address(message, "poison.message")
        # Not as the task's own outcome: the same message may be put back, and served.
        msg_id, said = f"{token_of(message.id)}.poison", answers(self._ports, delivery, signed)
        await self._reports.store(message, outcome, lite_key, announce, msg_id=msg_id, answers=said)

"""The contract net as an extension of A2A: what would an agent do a task for, and then it is that which does it.

The acts are those of FIPA (SC00029H), in data parts of messages that name the extension. A call (`cfp`) is
answered with a message, whose proposals are sealed: whoever accepts one brings it back with the task, to any
gateway.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from typing import Any

from a2a.helpers.proto_helpers import get_data_parts
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import InvalidParamsError
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from squadron.bridge.gateways.a2a.a2a_parts import parts_of
from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.asking.negotiation import acceptance, call_for_bids, reject
from squadron.runtime.asking.options import BIDS_WITHIN_S, AskKeywords
from squadron.runtime.errors import SquadronError
from squadron.runtime.wire.bids import MAX_REASON, Bid, Offer
from squadron.runtime.wire.limits import Budget, Deadline
from squadron.runtime.wire.topics import SemanticTopic
from squadron.runtime.wire.whole_numbers import exact

#: The extension, as the card declares it.
CONTRACT_NET = "urn:squadron:a2a:contract-net:1"
#: Where a task says which proposal it accepts.
PROPOSAL = "squadron/proposal"
#: Longest that bids are waited for, in seconds.
MOST_WITHIN_S = 30.0
#: Proposals that are rejected at once.
MOST_REJECTED = 100


class ContractNet:
    """Calls for bids of visitors."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._box = SecretBox(front.secret.key("proposals of A2A"))

    def is_act(self, message: pb.Message) -> bool:
        """Whether a message is one of the contract net, and no task."""
        if CONTRACT_NET not in message.extensions:
            return False
        data = get_data_parts(message.parts)
        return len(data) == 1 and isinstance(data[0], dict) and "act" in data[0]

    async def answer(self, message: pb.Message, topic: SemanticTopic, visitor: Visitor) -> pb.Message:
        """What is said to an act.

        Raises:
            InvalidParamsError: there is no such act, or something of it is not as it has to be.
        """
        (said,) = get_data_parts(message.parts)
        match said["act"]:
            case "cfp":
                content = await self._proposals(said, topic, visitor, message.context_id)
            case "reject-proposal":
                content = await self._rejected(said, topic, visitor)
            case _:
                raise InvalidParamsError("an act is cfp or reject-proposal; to accept one send the task with it")
        return pb.Message(
            message_id=f"{message.message_id}-answer",
            context_id=message.context_id,
            role=pb.Role.ROLE_AGENT,
            parts=parts_of(content),
            extensions=[CONTRACT_NET],
        )

    def accepted(self, message: pb.Message, topic: SemanticTopic, visitor: Visitor, budget: Budget) -> AskKeywords:
        """The options of a task, which may accept a proposal.

        Args:
            budget: what it may spend, whatever the proposal says.

        Raises:
            InvalidParamsError: it is no proposal that this visitor was given for the topic.
        """
        if PROPOSAL not in message.metadata:
            return {"budget": budget}
        return acceptance(self._opened(message.metadata[PROPOSAL], topic, visitor), budget)

    async def _proposals(
        self, said: dict[str, Any], topic: SemanticTopic, visitor: Visitor, context_id: str
    ) -> dict[str, Any]:
        content = exact(topic.wrap(said.get("input", {})), topic.input_schema)
        limits = {"tokens": _limit(said, "tokens"), "usd": _limit(said, "usd")}
        within_s = min(_limit(said, "withinS") or BIDS_WITHIN_S, MOST_WITHIN_S)
        tokens = limits["tokens"]
        bids = await call_for_bids(
            self._front.place.caller,
            [topic.name],
            content,
            within_s=within_s,
            deadline=Deadline.after(self._front.within_s, self._front.place.ports.clock),
            tokens=None if tokens is None else int(tokens),
            usd=limits["usd"],
            conversation_id=context_id,
        )
        proposals = [{"proposal": self._sealed(each, visitor), **each.bid.to_content()} for each in bids.offers]
        return {"act": "propose", "proposals": proposals, "refusals": dict(bids.refusals)}

    async def _rejected(self, said: dict[str, Any], topic: SemanticTopic, visitor: Visitor) -> dict[str, Any]:
        given = said.get("proposals")
        if not isinstance(given, list) or len(given) > MOST_REJECTED:
            raise InvalidParamsError(f"proposals is a list of at most {MOST_REJECTED}")
        offers = [self._opened(each, topic, visitor) for each in given]
        await reject(self._front.place.ports, offers, str(said.get("reason") or "")[:MAX_REASON])
        return {"act": "reject-proposal", "rejected": len(offers)}

    def _sealed(self, offer: Offer, visitor: Visitor) -> str:
        said = json.dumps({"offer": asdict(offer), "visitor": visitor.principal}).encode()
        return base64.urlsafe_b64encode(self._box.encrypt(said)).decode()

    def _opened(self, proposal: Any, topic: SemanticTopic, visitor: Visitor) -> Offer:
        try:
            said = json.loads(self._box.decrypt(base64.urlsafe_b64decode(str(proposal))))
            offer = Offer(**{**said["offer"], "bid": Bid(**said["offer"]["bid"])})
        except (CryptoError, SquadronError, ValueError, TypeError, LookupError):
            raise InvalidParamsError("that is no proposal of ours") from None
        if said["visitor"] != visitor.principal or offer.topic != topic.name:
            raise InvalidParamsError("that is no proposal of ours for this skill")
        return offer


def _limit(said: dict[str, Any], name: str) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e15:
        raise InvalidParamsError(f"{name} is a number above 0")
    return float(value)

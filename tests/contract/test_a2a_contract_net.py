"""The contract net over A2A: an agent says what it would do a task for, and does it for that."""

from __future__ import annotations

from typing import Any

import pytest
from a2a.client.errors import A2AClientError
from a2a.helpers.proto_helpers import get_data_parts, new_data_part
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import A2AError

from squadron.actors.agent import Agent
from squadron.actors.decorators import bid, topic
from squadron.bridge.gateways.a2a.contract_net import CONTRACT_NET, PROPOSAL
from squadron.bridge.gateways.http_guard import GuardRules
from squadron.runtime.running.context import Context
from squadron.runtime.wire.bids import Bid
from tests.contract.a2a_scribe import a2a_client, a2a_message, all_said, only_task
from tests.contract.conftest import Peer, Serve, World
from tests.contract.gateway_process import opened_gateway
from tests.contract.test_a2a import ANN, BOB, Known


class Scribe(Agent):
    """Bids for what is short."""

    @topic("scribe.copy")
    async def copy(self, ctx: Context, pages: int) -> dict[str, Any]:
        """Copy pages."""
        return {"pages": pages, "tokens": ctx.budget.tokens}

    @bid
    async def offer(self, topic: str, size: int) -> Bid | None:
        """What is long is not for us."""
        return Bid(confidence=0.75, price_tokens=100, eta_s=2.0) if size < 40 else None


@pytest.fixture
async def scribe(world: World, serve: Serve) -> Scribe:
    agent = Scribe()
    await serve(agent)
    return agent


def _act(said: dict[str, Any]) -> pb.SendMessageRequest:
    request = a2a_message("copy", new_data_part(said))
    request.message.extensions.append(CONTRACT_NET)
    return request


def _accepting(proposal: str, pages: int) -> pb.SendMessageRequest:
    request = a2a_message("copy", new_data_part({"pages": pages}))
    request.message.metadata.update({PROPOSAL: proposal})
    return request


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
async def test_a_proposal_is_called_for_and_accepted(
    world: World, peer: Peer, scribe: Scribe, binding: str
) -> None:
    call = {"act": "cfp", "input": {"pages": 3}, "withinS": 5}
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url, binding, streaming=True) as client:
        (answer,) = await all_said(client, _act(call))
        assert isinstance(answer, pb.Message)
        (said,) = get_data_parts(answer.parts)
        assert (said["act"], said["refusals"]) == ("propose", {})
        (proposal,) = said["proposals"]
        assert (proposal["confidence"], proposal["price_tokens"], proposal["eta_s"]) == (0.75, 100, 2)
    # Another gateway knows it as well.
    other = await world.join("other")
    async with opened_gateway(other.place, "a2a") as url, a2a_client(url, binding) as client:
        done = await only_task(client, _accepting(proposal["proposal"], 3))
        # For no more than was said.
        assert get_data_parts(done.artifacts[0].parts) == [{"pages": 3, "tokens": 100}]
        again = await only_task(client, _accepting(proposal["proposal"], 3))
        assert again.status.state == pb.TaskState.TASK_STATE_REJECTED, again


async def test_who_has_no_bid_says_why(peer: Peer, scribe: Scribe) -> None:
    call = {"act": "cfp", "input": {"pages": 10**12, "x": "y" * 40}}
    async with opened_gateway(peer.place, "a2a") as url, a2a_client(url) as client:
        (answer,) = await all_said(client, _act(call))
        (said,) = get_data_parts(answer.parts)
        assert said["proposals"] == []
        assert list(said["refusals"]) == ["scribe.copy"]


async def test_a_proposal_is_rejected_and_is_nobody_elses(peer: Peer, scribe: Scribe) -> None:
    async with (
        opened_gateway(peer.place, "a2a", rules=GuardRules(verifier=Known())) as url,
        a2a_client(url, token=ANN) as ann,
        a2a_client(url, token=BOB) as bob,
    ):
        (answer,) = await all_said(ann, _act({"act": "cfp", "input": {"pages": 1}}))
        proposals = [each["proposal"] for each in get_data_parts(answer.parts)[0]["proposals"]]
        for request in (
            _accepting(proposals[0], 1),
            _act({"act": "reject-proposal", "proposals": proposals}),
            _accepting("made up", 1),
        ):
            with pytest.raises((A2AError, A2AClientError), match="proposal"):
                await all_said(bob, request)
        (answer,) = await all_said(ann, _act({"act": "reject-proposal", "proposals": proposals}))
        assert get_data_parts(answer.parts) == [{"act": "reject-proposal", "rejected": 1}]
        with pytest.raises((A2AError, A2AClientError), match="act"):
            await all_said(ann, _act({"act": "dance"}))

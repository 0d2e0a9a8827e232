"""An environment on Ray whose bridge is in the account of the streams, and whose users have roles in the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from squadron import Agent, Context, Squad, topic
from tests.cluster.conftest import until
from tests.contract.restricted import RestrictedServer

pytestmark = pytest.mark.slow


class Notary(Agent):
    """Signs, and tells how far it is."""

    @topic("notary.sign")
    async def sign(self, text: str, context: Context) -> str:
        await context.emit("reading")
        return f"{text}, signed"

    @topic("notary.ponder")
    async def ponder(self) -> None:
        await asyncio.Event().wait()


async def test_an_operator_deploys_and_a_client_asks_and_nobody_is_refused_what_it_needs(
    cluster: Squad, tmp_path: Path
) -> None:
    server = RestrictedServer(tmp_path, "accounts", home=cluster.settings.home, heartbeat_s=1.0)
    server.start()
    try:
        async with (
            Squad.up(server.settings("bridge", "bridge")),
            Squad.connect(server.settings("operator", "operator")) as operator,
            Squad.connect(server.settings("client", "client")) as client,
        ):
            await operator.deploy(Notary)
            await _ask(client)
            assert not server.violations()
            # It calls again and again; the server tells that it refuses.
            undeploying = asyncio.create_task(client.undeploy("notary"))
            await until(_refused(server))
            undeploying.cancel()
            assert all("bridge.undeploy" in line for line in server.violations())
            await operator.undeploy("notary")
    finally:
        server.stop()


async def _ask(client: Squad) -> None:
    async def answers() -> bool:
        return (await client.ask("notary.sign", {"text": "it"}, within_s=5)).kind == "result"

    await until(answers)
    handle = await client.submit("notary.sign", {"text": "deed"})
    assert [chunk async for chunk in handle.chunks()] == ["reading"]
    assert (await handle.outcome()).unwrap() == "deed, signed"
    pondering = await client.submit("notary.ponder")
    assert (await pondering.cancel()).kind == "cancelled"
    # On a lane that was never used, with a payload that goes to the bucket.
    asked = await client.ask("notary.sign", {"text": "x" * 1_000_000}, priority=9)
    assert len(asked.unwrap()) > 1_000_000


def _refused(server: RestrictedServer) -> Callable[[], Awaitable[bool]]:
    async def looks() -> bool:
        return bool(server.violations())

    return looks

"""What waits for a connection is signed when it goes: an outage makes no signature old."""

from __future__ import annotations

from pathlib import Path

from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.config import Settings
from squadron.runtime.trust.agent_sender import SENDER_HEADER
from tests.contract.conftest import Inbox, until
from tests.contract.own_server import OwnServer


async def test_what_is_sent_while_the_server_is_away_is_signed_when_it_is_back(tmp_path: Path) -> None:
    server = OwnServer(tmp_path, jetstream="off")
    server.start()
    settings = Settings(home=tmp_path, nats_url=server.url)
    sender, hearer = await connect(settings, name="sender"), await connect(settings, name="hearer")
    signed: list[str] = []

    def sign(subject: str, data: bytes, headers: dict[str, str] | None) -> dict[str, str]:
        signed.append(subject)
        return {**(headers or {}), SENDER_HEADER: f"{len(signed)}"}

    try:
        sender.client.sign = sign
        heard = Inbox()
        await hearer.listen("agents.test.>", heard)
        await hearer.flush()
        server.stop()

        async def is_away(connection: Connection = sender) -> bool:
            return not connection.client.is_connected

        await until(is_away)
        for number in range(3):
            await sender.publish(f"agents.test.{number}", b"x")
        await sender.publish("$JS.ACK.x", b"+ACK")
        assert signed == []
        server.start()
        await until(lambda: _is(len(signed) == 3), within_s=30)
        assert signed == [f"agents.test.{number}" for number in range(3)]

        async def is_heard() -> bool:
            await sender.publish("agents.test.now", b"x")
            return not heard.is_empty

        await until(is_heard, within_s=30)
        note: Heard = await heard.next()
        assert int(note.headers[SENDER_HEADER]) >= 1
    finally:
        await sender.aclose()
        await hearer.aclose()
        server.stop()


async def _is(so: bool) -> bool:
    return so

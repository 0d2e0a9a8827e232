"""An environment on Ray where everything is signed and checked."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest

from squadron import Agent, Rejected, Result, Settings, Squad, topic
from squadron.runtime.errors import UntrustedError
from squadron.servers import stop_local
from tests.trusted import Realm


class Scribe(Agent):
    """Writes."""

    @topic("signed.write")
    async def write(self, text: str) -> str:
        """Write a text."""
        return text


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_agents_on_ray_work_where_everything_is_signed_and_checked() -> None:
    with tempfile.TemporaryDirectory(prefix="sq-tests-") as home:
        realm, folder = Realm(), Path(home)
        trust = folder / "trust.json"
        trust.write_bytes(realm.document())
        base = Settings.load({}, home=folder, heartbeat_s=1.0, env="signed")
        creds = {name: realm.write(folder, name, name) for name in ("bridge", "operator", "client")}  # type: ignore[arg-type]

        def of(name: str) -> Settings:
            return dataclasses.replace(base, trust=trust, verify="require", nats_user_credentials=creds[name])

        try:
            async with Squad.up(of("bridge")):
                async with Squad.connect(of("operator")) as boss:
                    await boss.deploy(Scribe)
                async with Squad.connect(of("client")) as ann:
                    outcome = await ann.ask("signed.write", {"text": "hi"}, within_s=60)
                    assert isinstance(outcome, Result), outcome
                    assert outcome.data == "hi"
                    with pytest.raises(UntrustedError):
                        await ann.undeploy("scribe")
                async with Squad.connect(base) as stranger:
                    refused = await stranger.ask("signed.write", {"text": "hi"}, within_s=20)
                    assert isinstance(refused, Rejected), refused
        finally:
            stop_local(base)

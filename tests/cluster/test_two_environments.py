"""Two environments on one Ray, the second on a nats-server of its own that loses its store."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import ray  # before the squad comes up: a program that has imported it joins the cluster

from squadron import Agent, Settings, Squad, topic
from squadron.bridge.serve.cluster import ServeReplicas, _client
from squadron.runtime.errors import SquadronError
from tests.cluster.conftest import until
from tests.contract.own_server import OwnServer


class Herald(Agent):
    """Calls it out."""

    @topic("herald.call")
    async def call(self, text: str) -> str:
        return text.upper()


async def _answers(squad: Squad) -> bool:
    with contextlib.suppress(SquadronError):
        return bool((await squad.ask("herald.call", {"text": "x"}, within_s=5)).kind == "result")
    return False


def _declare(old: dict[str, Any]) -> None:
    """What a bridge of another environment does that read the declarations before somebody wrote a newer one."""
    from ray.serve.schema import ServeDeploySchema

    declared = ServeReplicas._declared(_client()) | {old["name"]: old}
    config = {"proxy_location": "Disabled", "applications": list(declared.values())}
    _client().deploy_apps(ServeDeploySchema.model_validate(config))


async def test_an_environment_takes_back_what_another_wrote_over_and_outlives_its_store(
    cluster: Squad, tmp_path: Path
) -> None:
    server = OwnServer(tmp_path)
    server.start()
    home = cluster.settings.home
    chosen = Settings.load({}, home=home, nats_url=server.url, env="second", heartbeat_s=1.0)
    try:
        async with Squad.up(chosen) as squad:
            assert ray.is_initialized()
            # No server of ours was started, and yet it did not run before.
            assert (squad.brought_up, squad.started_here) == (True, False)
            async with Squad.up(chosen) as again:
                assert not again.brought_up
            await squad.deploy(Herald)
            (name,) = [name for name in ServeReplicas._declared(_client()) if name.startswith("second.")]
            before = ServeReplicas._declared(_client())[name]
            assert await _answers(squad)
            await squad.scale(name.partition(".")[2], "0..3")

            def bounds() -> tuple[int, int]:
                scaling = ServeReplicas._declared(_client())[name]["deployments"][0]["autoscaling_config"]
                return scaling["min_replicas"], scaling["max_replicas"]

            assert await asyncio.to_thread(bounds) == (0, 3)
            await asyncio.to_thread(_declare, before)

            async def is_back() -> bool:
                return await asyncio.to_thread(bounds) == (0, 3)

            await until(is_back)
            # What is declared is taken for what is wanted: else it would be declared again for ever.
            log: list[Any] = []

            async def settled() -> bool:
                details = await asyncio.to_thread(_client().get_serve_details)
                log.append(details["applications"][name]["last_deployed_time_s"])
                return len(log) >= 4 and len(set(log[-4:])) == 1

            await until(settled, every_s=1.0)

            server.lose_store()

            await until(lambda: _answers(squad))
            status = await squad.status()
            assert len(status["losses"]) == 1
            assert [each["agent"] for each in status["agents"]] == [name.partition(".")[2]]
            await squad.drain(30)
    finally:
        server.stop()

"""The bridge: Ray-native code on the bus, and a bridge that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import Any

import nats
import numpy
import pytest
import ray
import ray.data
from ray import serve

from squadron import Agent, Squad, on_ray, topic
from squadron.bridge.jetstream.link import embedded
from squadron.runtime.errors import (
    BridgeUnavailableError,
    ClaimLostError,
    InvalidInputError,
    RouteConflictError,
    SquadronError,
)
from squadron.runtime.wire.envelope import AgentMessage
from tests.cluster.conftest import until


class Echo(Agent):
    """Says it again."""

    @topic("echo.say")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text

    @topic("echo.late")
    async def late(self, text: str, after_s: float) -> str:
        """Say it again, later."""
        await asyncio.sleep(after_s)
        return text


class Imager(Agent):
    """Makes large arrays."""

    @topic("image.make")
    async def make(self, side: int) -> dict[str, Any]:
        """Make a square of ones."""
        return await asyncio.to_thread(on_ray.put, numpy.ones((side, side)))


@ray.remote(num_cpus=0)
class Calculator:
    """A plain Ray actor that knows nothing of us."""

    def add(self, a: float, b: float) -> float:
        return a + b

    def fail(self) -> None:
        raise ValueError("no")


@pytest.fixture
def bridge(cluster: Squad):
    return ray.get_actor("squadron-bridge-dev", namespace="squadron")


async def test_a_plain_ray_actor_serves_a_topic_until_it_is_unbound(squad, bridge):
    calculator = Calculator.options(name="calculator", lifetime="detached").remote()
    try:
        await asyncio.to_thread(on_ray.bind, "math.add", calculator, "add", description="Add two numbers.")
        outcome = await squad.ask("math.add", {"a": 1, "b": 2})
        assert outcome.unwrap() == 3
        assert squad.discover("add numbers")[0].topic.name == "math.add"
        routes = await bridge.routes.remote()
        assert ("math.add", "ray:add") in {(route["pattern"], route["kind"]) for route in routes}
        with pytest.raises(RouteConflictError, match="overlaps"):
            await asyncio.to_thread(on_ray.bind, "math.*", calculator, "fail")
        await asyncio.to_thread(on_ray.unbind, "math.add")
        assert (await squad.ask("math.add", {"a": 1, "b": 2})).kind == "undeliverable"
    finally:
        ray.kill(calculator)


async def test_a_serve_handle_serves_a_topic(squad):
    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Doubler:
        def __call__(self, number: int) -> int:
            return 2 * number

    handle = await asyncio.to_thread(serve.run, Doubler.bind(), name="doubler", route_prefix=None)
    try:
        await asyncio.to_thread(on_ray.bind, "math.double", handle)
        assert (await squad.ask("math.double", {"number": 4})).unwrap() == 8
        await asyncio.to_thread(on_ray.unbind, "math.double")
    finally:
        await asyncio.to_thread(serve.delete, "doubler")


async def test_a_ray_task_without_a_connection_asks_through_the_bridge_though_it_is_killed(squad, bridge):
    await squad.deploy(Echo)

    @ray.remote(num_cpus=0)
    def job() -> str:
        return ray.get(on_ray.ask("echo.late", {"text": "hi", "after_s": 4.0}, priority=7)).unwrap()

    async def under_way() -> bool:
        return bool((await squad.status())["agents"][0]["taken"])

    asked = job.remote()
    await until(under_way)
    os.kill((await squad.status())["pid"], signal.SIGKILL)
    assert await asked == "hi"
    with pytest.raises(BridgeUnavailableError, match="no bridge of environment 'nowhere'"):
        on_ray.ask("echo.say", {"text": "hi"}, env="nowhere")


async def test_each_row_of_a_data_set_is_asked_and_keeps_its_columns(squad):
    await squad.deploy(Echo)

    def asked() -> list[dict[str, Any]]:
        rows = ray.data.from_items([{"text": f"row {n}"} for n in range(50)])
        return rows.map_batches(
            on_ray.AskEach, fn_constructor_args=("echo.say",), batch_size=10, concurrency=1, num_cpus=0
        ).take_all()

    rows = await asyncio.to_thread(asked)
    assert {(row["text"], row["data"], row["outcome"]) for row in rows} == {
        (f"row {n}", f"row {n}", "result") for n in range(50)
    }


async def test_an_array_is_handed_over_in_rays_store_and_outlives_who_made_it(squad):
    await squad.deploy(Imager)
    claim = (await squad.ask("image.make", {"side": 1_000})).unwrap()
    assert claim | {"ray": ""} == {"ray": "", "shape": [1_000, 1_000], "dtype": "float64", "nbytes": 8_000_000}
    os.kill((await squad.status())["agents"][0]["replicas"][0]["pid"], signal.SIGKILL)
    array = await asyncio.to_thread(on_ray.get, claim)
    # In the store's own memory, where nobody may write.
    assert array.sum() == 1_000_000
    assert (array.flags.writeable, array.flags.owndata) == (False, False)
    with pytest.raises(ClaimLostError, match="keep_s"):
        await asyncio.to_thread(on_ray.get, await asyncio.to_thread(on_ray.put, array, keep_s=0.0))
    with pytest.raises(InvalidInputError, match=r"on_ray\.put"):
        on_ray.get({"shape": [1]})


async def test_a_killed_bridge_comes_back_with_its_deployments_and_bindings(squad, bridge):
    await squad.deploy(Echo)
    calculator = Calculator.options(name="calculator-2", lifetime="detached").remote()
    await asyncio.to_thread(on_ray.bind, "math.sum", calculator, "add")
    before = await squad.status()
    os.kill(before["pid"], signal.SIGKILL)
    # Agents pull straight from their mailboxes: they go on while the bridge is away.
    assert (await squad.ask("echo.say", {"text": "still here"})).unwrap() == "still here"

    async def back() -> bool:
        try:
            return (await squad.status())["pid"] != before["pid"]
        except SquadronError:
            return False

    await until(back)
    after = await squad.status()
    assert _pids(before) == _pids(after)
    assert (await squad.ask("math.sum", {"a": 2, "b": 2})).unwrap() == 4
    await asyncio.to_thread(on_ray.unbind, "math.sum")
    ray.kill(calculator)


def _pids(status) -> list[int]:  # type: ignore[no-untyped-def]
    return [replica["pid"] for replica in status["agents"][0]["replicas"]]


async def test_a_serve_application_of_somebody_else_is_left_alone(squad):
    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        def __call__(self) -> str:
            return "mine"

    handle = serve.run(Other.bind(), name="other", route_prefix=None)
    await squad.deploy(Echo)
    await squad.undeploy("echo")
    assert await handle.remote() == "mine"
    serve.delete("other")


async def test_a_hand_written_message_of_a_bare_nats_client_is_served(squad, settings):
    await squad.deploy(Echo)
    endpoint = embedded.find(settings.home)
    client = await nats.connect(endpoint.url, token=endpoint.token)
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    raw = (
        b'{"id":"hand-1","timestamp":%d,"version":"1.0","type":"task","source":{"id":"me","type":"script"},'
        b'"replyTo":"%s","context":{"conversationId":"c1","metadata":{}},'
        b'"payload":{"content":{"text":"by hand"}},"routing":{"priority":7}}'
    ) % (int(asyncio.get_running_loop().time()) + 2_000_000_000, inbox.encode())
    await client.publish("agents.dev.task.echo.say", raw)
    answer = AgentMessage.decode((await answers.next_msg(timeout=10)).data)
    assert answer.type == "result"
    assert answer.correlation_id == "hand-1"
    assert answer.payload.content["data"] == "by hand"
    await client.close()


async def test_the_users_own_nats_server_and_ray_cluster_are_used_when_they_are_named(cluster, tmp_path, caplog):
    caplog.set_level(logging.INFO, "squadron")
    config = tmp_path / "nats.conf"
    ports = tmp_path / "ports"
    ports.mkdir()
    config.write_text(
        f'listen: "127.0.0.1:-1"\nports_file_dir: "{ports}"\n'
        f'authorization {{ user: me, password: "s3cret" }}\njetstream {{ store_dir: "{tmp_path}/js" }}\n'
    )
    server = await asyncio.create_subprocess_exec(str(embedded.find_binary()), "-c", str(config))
    try:
        found = await until(lambda: _ports(ports))
        # A password does not travel to a Ray of one's own: the place where it is does.
        kept = tmp_path / "nats-url"
        kept.write_text(found.replace("nats://", "nats://me:s3cret@"))
        address = ray.get_runtime_context().gcs_address
        await cluster.deploy(Echo)
        async with Squad.up(home=tmp_path, env="dev-eu", nats_url=f"file:{kept}", ray_address=address) as squad:
            await squad.deploy(Echo)
            assert [each.message for each in caplog.records] == ["connect", "join Ray", "start bridge"]
            assert (await squad.ask("echo.say", {"text": "own server"})).unwrap() == "own server"
            (node,) = await squad.nodes()
            assert (node["alive"], node["bridge"], node["replicas"]) == (True, True, {"echo": 1})
            status = await squad.status()
            assert status["environment"] == "dev-eu"
            assert "s3cret" not in str(status)
        # Closing it leaves the user's servers alone.
        assert server.returncode is None
        assert (await cluster.status())["environment"] == "dev"
        # Nor does it touch the agents of an environment whose name begins alike.
        assert (await cluster.ask("echo.say", {"text": "mine"})).unwrap() == "mine"
        await cluster.drain()
        # Who comes after it was taken down is told so at once, though its agents gave a sign of life a moment ago.
        own = {"NATS_URL": f"file:{kept}", "RAY_ADDRESS": address}
        where = ("--home", str(tmp_path), "--env", "dev-eu")
        down = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from squadron.cli import main; main()", *where, "down"), env=os.environ | own
        )
        assert await down.wait() == 0
        with pytest.raises(BridgeUnavailableError, match="has no bridge"):
            await Squad.connect(home=tmp_path, env="dev-eu", nats_url=f"file:{kept}")
    finally:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor("squadron-bridge-dev-eu", namespace="squadron"))
        server.kill()
        await server.wait()


async def _ports(folder) -> str:  # type: ignore[no-untyped-def]
    import json

    for file in folder.glob("*.ports"):
        return str(json.loads(file.read_text())["nats"][0])
    return ""

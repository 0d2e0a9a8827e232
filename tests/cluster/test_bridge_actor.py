"""The bridge: Ray-native code on the bus, and a bridge that is killed."""

from __future__ import annotations

import asyncio
import os
import signal

import nats
import pytest
import ray
from ray import serve

from squadron import Agent, Squad, topic
from squadron.bridge.jetstream.link import embedded
from squadron.runtime.errors import SquadronError
from squadron.runtime.wire.envelope import AgentMessage
from tests.cluster.conftest import until


class Echo(Agent):
    """Says it again."""

    @topic("echo.say")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


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
        await bridge.bind.remote("math.add", calculator, "add", description="Add two numbers.")
        outcome = await squad.ask("math.add", {"a": 1, "b": 2})
        assert outcome.unwrap() == 3
        assert squad.discover("add numbers")[0].topic.name == "math.add"
        routes = await bridge.routes.remote()
        assert ("math.add", "ray:add") in {(route["pattern"], route["kind"]) for route in routes}
        with pytest.raises(SquadronError, match="overlaps"):
            await bridge.bind.remote("math.*", calculator, "fail")
        await bridge.unbind.remote("math.add")
        assert (await squad.ask("math.add", {"a": 1, "b": 2})).kind == "undeliverable"
    finally:
        ray.kill(calculator)


async def test_a_ray_task_without_a_connection_uses_the_bus_through_the_bridge(squad, bridge):
    await squad.deploy(Echo)

    @ray.remote(num_cpus=0)
    def job() -> tuple[str, list[bytes]]:
        there = ray.get_actor("squadron-bridge-dev", namespace="squadron")
        outcome = ray.get(there.ask.remote("echo.say", {"text": "hi"}, priority=7))
        ray.get(there.append.remote("job", "one", b"stored"))
        return outcome.unwrap(), [data for _, data in ray.get(there.read.remote("job", "one"))]

    assert await job.remote() == ("hi", [b"stored"])


async def test_a_killed_bridge_comes_back_with_its_deployments_and_bindings(squad, bridge):
    await squad.deploy(Echo)
    calculator = Calculator.options(name="calculator-2", lifetime="detached").remote()
    await bridge.bind.remote("math.sum", calculator, "add")
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
    await bridge.unbind.remote("math.sum")
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


async def test_the_users_own_nats_server_and_ray_cluster_are_used_when_they_are_named(cluster, tmp_path):
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
            assert (await squad.ask("echo.say", {"text": "own server"})).unwrap() == "own server"
            status = await squad.status()
            assert status["environment"] == "dev-eu"
            assert "s3cret" not in str(status)
            await squad.drain()
        # Closing it leaves the user's servers alone.
        assert server.returncode is None
        assert (await cluster.status())["environment"] == "dev"
        # Nor does it touch the agents of an environment whose name begins alike.
        assert (await cluster.ask("echo.say", {"text": "mine"})).unwrap() == "mine"
        await cluster.drain()
    finally:
        ray.kill(ray.get_actor("squadron-bridge-dev-eu", namespace="squadron"))
        server.kill()
        await server.wait()


async def _ports(folder) -> str:  # type: ignore[no-untyped-def]
    import json

    for file in folder.glob("*.ports"):
        return str(json.loads(file.read_text())["nats"][0])
    return ""

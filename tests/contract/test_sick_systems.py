"""Each sickness that the doctor knows is brought about on a real nats-server, and is found there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.actors.runs.entries import Epoch
from squadron.actors.runs.log import RunLog
from squadron.actors.thinking.account import Accounts
from squadron.actors.thinking.model import ChatMessage, ModelRequest
from squadron.actors.thinking.providers import OpenAIModel
from squadron.actors.thinking.quota import Limits
from squadron.actors.thinking.tries import think_patiently
from squadron.bridge.control.control import Bridge
from squadron.bridge.health.diagnosis import Diagnosis
from squadron.bridge.health.examining import CHECKS, examine
from squadron.bridge.health.facts import BusFacts, Facts, StreamFacts
from squadron.bridge.health.gathering import Gathering, gather
from squadron.bridge.health.release import release
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.queue import subjects_held
from squadron.bridge.jetstream.stream_configs import StreamNames, Streams, ask_for
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.people import put_question
from squadron.runtime.errors import BusUnavailableError, ModelError, StorageFullError
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.registry.presence import Presence
from squadron.runtime.registry.registry import Registry
from squadron.runtime.wire.deployment import AgentState, Deployment, Scale
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.question import Question
from tests.conftest import freeze
from tests.contract.audit_worlds import archiving, audited, recorded
from tests.contract.conftest import Inbox, until
from tests.contract.nats_cluster import Cluster
from tests.contract.own_server import OwnServer
from tests.llm_servers import HttpError, ScriptedOpenAIServer
from tests.llmock import Told


class Reader(Agent):
    """Reads books."""

    @topic("book.read")
    async def read(self, text: str) -> str:
        return text


async def look(settings: Settings, **options: Any) -> dict[str, Diagnosis]:
    """What the doctor finds, the worst of each name."""
    diagnoses = examine(await gather(settings, **({"watch_s": 0.05} | options)))
    assert {each.name for each in diagnoses} <= {each.name for each in CHECKS} | {"not looked at"}
    worst = sorted(diagnoses, key=lambda each: ("ok", "warn", "fail").index(each.level))
    return {each.name: each for each in worst}


async def record(wiring: Wiring, scale: str = "1..2", agent: type[Agent] = Reader) -> None:
    """What the bridge writes when an agent is deployed, and its mailbox."""
    spec = AgentSpec.of(agent)
    bounds = Scale(minimum=1, maximum=2)
    deployment = Deployment(
        card=spec.card(),
        code={"version": "x"},
        slots=1,
        grace_s=1,
        bounds=bounds,
        scale=Scale.parse(scale, bounds),
    )
    key = wiring.ports.subjects.record("deployment", spec.name)
    await wiring.records.append(key, deployment.model_dump_json().encode())
    await wiring.ports.queue.declare(Mailbox(spec.name, deployment.patterns, wiring.settings.lease_s))


async def put(wiring: Wiring, topic: str, count: int = 1) -> None:
    for _ in range(count):
        message = AgentMessage.new("task", wiring.ports.identity, {"text": "x"})
        await wiring.ports.queue.put(wiring.ports.subjects.task(topic), message.encode(), msg_id=message.id)


class HeldReplicas:
    """A cluster that says of its agents what it is told to say; the real one is looked at in `tests/cluster`."""

    def __init__(self, state: AgentState) -> None:
        self.state = state

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        """Nothing runs here."""

    async def capacity(self) -> int:
        return 50

    async def states(self, wanted: Sequence[Deployment]) -> dict[str, AgentState]:
        if self.state.status == "AWAY":
            await asyncio.sleep(3600)
        return {each.agent: self.state for each in wanted}


@contextlib.asynccontextmanager
async def bridge(wiring: Wiring, state: str = "RUNNING", message: str = "", **facts: Any) -> AsyncIterator[Bridge]:
    """The real bridge, over a cluster that is none."""
    names = StreamNames(wiring.settings.env)
    held = functools.partial(subjects_held, wiring.connection, names.tasks, [f"agents.{names.environment}.task.>"])
    replicas = HeldReplicas(AgentState(status=state, message=message, running=1, target=1))
    streams = Streams(wiring.connection, names)
    made = Bridge(
        wiring.ports,
        wiring.registry,
        wiring.records,
        replicas,
        held,
        streams.keep,
        {"release": release(), **facts},
        lease_s=wiring.settings.lease_s,
    )
    await made.start()
    yield made
    await made.aclose()


@contextlib.asynccontextmanager
async def hosted(wiring: Wiring, agent: Agent | None = None, **facts: Any) -> AsyncIterator[Host]:
    """A replica, as Serve would run it."""
    agent = agent or Reader()
    host = Host(wiring, agent, AgentSpec.of(type(agent)), slots=1, facts={"release": release(), **facts})
    await host.start()
    yield host
    await host.stop(0.0)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Start a nats-server of its own, and return the settings for it."""
    servers = []

    def start(extra: str = "", *, jetstream: str = "", user: str = "") -> Settings:
        folder = tmp_path / uuid.uuid4().hex[:8]
        folder.mkdir()
        server = OwnServer(folder, extra, jetstream=jetstream)
        server.start()
        servers.append(server)
        url = server.url.replace("://", f"://{user}@") if user else server.url
        return Settings(home=tmp_path, nats_url=url, env="sick")

    yield start
    for server in servers:
        server.stop()


# --- the server --------------------------------------------------------------------------------------


async def test_a_healthy_system_has_nothing_to_tell(wiring: Wiring) -> None:
    await record(wiring)
    async with hosted(wiring), bridge(wiring):
        found = await look(wiring.settings)

    assert {name: each for name, each in found.items() if each.level != "ok"} == {}
    assert found.keys() == {each.name for each in CHECKS}


async def test_no_server_is_told(tmp_path: Path) -> None:
    found = await look(Settings(home=tmp_path, nats_url="nats://127.0.0.1:1"))

    assert "127.0.0.1:1 can't be reached" in found["nats answers"].found
    assert found["nats answers"].level == "fail"


async def test_a_server_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    endpoint = embedded.ensure(tmp_path)
    wiring = await _open(Settings(home=tmp_path, env="sick"))
    try:
        # It hangs when somebody looks at it, and then for who only wants to begin.
        freeze(endpoint.pid)
        known = {"now": 0.0, "heartbeat_s": 5.0, "release": "1", "bus": BusFacts("h", "2.15.1"), "unknown": {}}
        halfway = examine(Facts(**await Gathering(wiring, known, within_s=0.2, watch_s=0.0).all()))
        found = await look(wiring.settings)
    finally:
        os.kill(endpoint.pid, signal.SIGCONT)
        await wiring.aclose()
        embedded.stop(tmp_path)

    fails = {each.name: each.found for each in halfway if each.level == "fail"}
    assert "no leader" in fails["jetstream"]
    assert fails.keys() == {"jetstream", "bridge"}
    assert found["nats answers"].level == "fail"


async def test_refused_credentials_are_told(serve: Callable[..., Settings]) -> None:
    settings = serve('authorization { user: eve, password: "right" }', user="eve:wrong")

    found = await look(settings)

    assert "refused the credentials" in found["nats answers"].found
    assert "NATS_URL" in found["nats answers"].fix


ACCOUNT = "accounts {{\nA: {{\n{}\nusers: [{{user: a, password: b}}]\n}}\n}}\n"


async def test_that_one_account_keeps_nobody_from_anything_is_told_and_no_fault(wiring: Wiring) -> None:
    privilege = (await look(wiring.settings))["least privilege"]

    assert (privilege.level, "one account" in privilege.found) == ("ok", True)
    assert "two accounts" in privilege.fix


async def test_an_account_without_jetstream_is_told(serve: Callable[..., Settings]) -> None:
    found = await look(serve(ACCOUNT.format(""), user="a:b"))

    assert found["jetstream"].level == "fail"
    assert "not enabled for account" in found["jetstream"].found
    assert found["bridge"].level == "fail"
    assert "topics" in found["not looked at"].found


async def test_a_server_without_jetstream_is_told(serve: Callable[..., Settings]) -> None:
    found = await look(serve(jetstream="off"))

    assert found["jetstream"].found == "the nats-server has no JetStream"
    assert found["jetstream"].level == "fail"


async def test_a_cluster_without_a_leader_is_told(serve: Callable[..., Settings]) -> None:
    routes = '["nats://127.0.0.1:1", "nats://127.0.0.1:2"]'
    settings = serve(f'server_name: one\ncluster {{ name: c, listen: "127.0.0.1:-1", routes: {routes} }}')

    found = await look(settings, within_s=1.0)

    assert "it has no leader" in found["jetstream"].found
    assert "more than half" in found["jetstream"].fix


async def _open(settings: Settings) -> Wiring:
    return await Wiring.open(settings, AgentIdentity(id="tester", type="test"), create=True)


async def _fill(wiring: Wiring, until: Callable[[int], bool] = lambda _: False) -> None:
    """Store in the dead letters until there is no room, or enough was stored."""
    stored = 0
    with contextlib.suppress(StorageFullError):
        while not until(stored):
            await wiring.ports.dead.append(wiring.ports.subjects.dead("filler", "x"), b"x" * 20_000)
            stored += 20_000
    for size in (1_000, 10, 0) if not until(stored) else ():
        with contextlib.suppress(StorageFullError):
            while True:
                await wiring.ports.dead.append(wiring.ports.subjects.dead("filler", "x"), b"x" * size)


async def test_a_store_that_is_full_is_told(serve: Callable[..., Settings]) -> None:
    wiring = await _open(serve(jetstream="max_file: 1MB"))
    await _fill(wiring)

    found = await look(wiring.settings)
    await wiring.aclose()

    assert found["storage"].level == "fail"
    assert "nothing can be stored" in found["storage"].found
    assert "more storage" in found["storage"].fix


async def test_an_account_that_has_used_most_of_its_storage_is_told(serve: Callable[..., Settings]) -> None:
    wiring = await _open(serve(ACCOUNT.format("jetstream: {max_file: 2MB, max_mem: 1MB}"), user="a:b"))
    await _fill(wiring, lambda stored: stored > 1_700_000)

    found = await look(wiring.settings)
    await wiring.aclose()

    assert found["storage"].level == "warn"
    assert "of 2.1 MB" in found["storage"].found


async def test_a_stream_near_its_limit_is_told_and_so_is_one_that_is_gone(wiring: Wiring) -> None:
    name = StreamNames(wiring.settings.env).tasks
    present = await ask_for(wiring.connection, f"STREAM.INFO.{name}")
    await ask_for(wiring.connection, f"STREAM.UPDATE.{name}", present["config"] | {"max_msgs": 10})
    await put(wiring, "book.read", 9)
    await ask_for(wiring.connection, f"STREAM.DELETE.{StreamNames(wiring.settings.env).events}")

    facts = await gather(wiring.settings, watch_s=0.0)
    streams = [each for each in examine(facts) if each.name == "streams"]

    assert [(each.level, each.found) for each in streams] == [
        ("warn", f"{name} holds 9 of 10 messages"),
        ("fail", f"{StreamNames(wiring.settings.env).events} is missing"),
    ]
    assert f"nats stream edit {name}" in streams[0].fix


@pytest.mark.slow
async def test_a_stream_whose_server_is_gone_has_no_leader(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        wiring = await _open_at_last(Settings(home=tmp_path, nats_url=cluster.urls[0], env="sick"))
        home = {each.name: await cluster.server_of(wiring, each.name) for each in (await _streams(wiring))}
        await wiring.aclose()
        gone = home[StreamNames("sick").tasks]
        cluster.kill(gone)
        lost = {name for name, server in home.items() if server == gone}
        left = next(url for number, url in enumerate(cluster.urls) if f"n{number}" != gone)

        async def is_told() -> bool:
            facts = await gather(Settings(home=tmp_path, nats_url=left, env="sick"), watch_s=0.0)
            told = {each.found.split()[0] for each in examine(facts) if "has no leader" in each.found}
            return told == lost

        # Of those who are left one has to become the leader of all, which JetStream takes its time for.
        await until(is_told, within_s=60.0)


@pytest.mark.slow
async def test_a_cluster_that_lost_two_of_its_three_servers_is_told(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        settings = Settings(home=tmp_path, nats_url=cluster.urls[2], env="sick")
        wiring = await _open_at_last(settings)
        await wiring.aclose()
        well = await look(settings)
        assert well["jetstream"].level == "ok"
        for name in ("n0", "n1"):
            cluster.kill(name)

        async def is_told() -> bool:
            return (await look(settings, within_s=1.0))["jetstream"].level == "fail"

        # The one that is left is the leader until it has heard from nobody for a while.
        await until(is_told, within_s=60.0)
        found = await look(settings, within_s=1.0)

    assert found["nats answers"].level == "ok"
    assert "it has no leader" in found["jetstream"].found
    assert "more than half" in found["jetstream"].fix


async def _open_at_last(settings: Settings) -> Wiring:
    """A cluster that has a leader may need a moment yet."""
    opened = list[Wiring]()

    async def is_ready() -> bool:
        with contextlib.suppress(BusUnavailableError):
            opened.append(await _open(settings))
        return bool(opened)

    await until(is_ready, within_s=60.0)
    return opened[0]


async def _streams(wiring: Wiring) -> tuple[StreamFacts, ...]:
    found = (await gather(wiring.settings, watch_s=0.0)).streams
    assert found is not None
    return tuple(each for each in found if each.messages >= 0)


async def test_a_stream_that_takes_no_batches_is_told(wiring: Wiring) -> None:
    stream = StreamNames(wiring.settings.env).lite
    config = (await ask_for(wiring.connection, f"STREAM.INFO.{stream}"))["config"]
    # As a release made it that did not ask for them, or a server before 2.14.
    await ask_for(wiring.connection, f"STREAM.UPDATE.{stream}", config | {"allow_batched": False})

    found = (await look(wiring.settings))["streams"]

    assert found.level == "ok"
    assert found.found == f"{stream} takes no fast batches: each chunk of a stream is acknowledged alone"


async def test_messages_that_are_delivered_again_are_told(wiring: Wiring) -> None:
    await record(wiring)
    await put(wiring, "book.read")
    arrived = Inbox()
    feed = await wiring.ports.queue.consume(Mailbox("reader", ("book.read",), wiring.settings.lease_s), arrived)
    feed.want(1)
    await arrived.next()
    # Its lease runs out, as with a handler that blocks the event loop.
    feed.want(1)
    again = await arrived.next()
    assert again.lease.delivered == 2

    found = await look(wiring.settings)
    await again.lease.settle(confirmed=True)
    await feed.aclose()

    assert found["slow consumers"].level == "warn"
    assert found["slow consumers"].found == "reader: 1 messages under way were delivered more than once"


async def test_a_consumer_that_is_given_no_more_is_told(wiring: Wiring) -> None:
    await record(wiring)
    stream = StreamNames(wiring.settings.env).tasks
    info = await ask_for(wiring.connection, f"CONSUMER.INFO.{stream}.reader")
    config = info["config"] | {"max_ack_pending": 2, "ack_wait": 60_000_000_000}
    request = {"stream_name": stream, "config": config, "action": "update"}
    await ask_for(wiring.connection, f"CONSUMER.CREATE.{stream}.reader", request)
    await put(wiring, "book.read", 4)
    arrived = Inbox()
    feed = await wiring.ports.queue.consume(Mailbox("reader", ("book.read",), 60.0), arrived)
    feed.want(4)
    first, second = await arrived.next(), await arrived.next()

    found = await look(wiring.settings)
    for each in (first, second):
        await each.lease.settle(confirmed=True)
    await feed.aclose()

    assert found["slow consumers"].found == "reader: 2 messages are taken and not settled; no more are given out"


async def test_who_is_cut_off_for_reading_too_slowly_is_told(tmp_path: Path) -> None:
    endpoint = embedded.ensure(tmp_path)
    settings = Settings(home=tmp_path, env="sick")
    try:
        wiring = await _open(settings)
        host, _, port = endpoint.url.removeprefix("nats://").partition(":")
        deaf = socket.create_connection((host, int(port)))
        login = json.dumps({"auth_token": endpoint.token, "verbose": False})
        deaf.sendall(f"CONNECT {login}\r\nSUB flood 1\r\nPING\r\n".encode())
        # Never read from: the server keeps 64 MB for it, and then cuts it off.
        for _ in range(14):
            await wiring.connection.publish("flood", b"x" * 7_000_000)
            await wiring.connection.flush()

        async def is_told() -> bool:
            return (await look(settings))["slow consumers"].level == "warn"

        await until(is_told)
        found = await look(settings)
        deaf.close()
        await wiring.aclose()
    finally:
        embedded.stop(tmp_path)

    assert "has cut 1 connections" in found["slow consumers"].found


class ShiftedClock:
    """The clock of a host that is wrong."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def time(self) -> float:
        return time.time() + self._ahead_s


@pytest.mark.parametrize(("ahead_s", "said"), [(90.0, "90.0 s ahead of"), (-90.0, "90.0 s behind")])
async def test_a_clock_that_is_wrong_is_told(wiring: Wiring, ahead_s: float, said: str) -> None:
    ports, clock = wiring.ports, ShiftedClock(ahead_s)
    far = Registry(wiring.records, ports.bus, ports.subjects, clock, heartbeat_s=wiring.settings.heartbeat_s)
    await far.renew("reader", "reader-1", node="host-7")

    found = await look(wiring.settings)

    assert found["clocks"].level == "fail"
    heard = re.match(r"host-7, with reader-1, is ([\d.]+) s", found["clocks"].found)
    assert heard is not None
    assert float(heard[1]) == pytest.approx(90, abs=5)
    assert said.split(" s ")[1] in found["clocks"].found
    assert "NTP" in found["clocks"].fix


FULL_DISK = """
    import asyncio, pathlib, sys
    from squadron import Settings
    from squadron.bridge.health.examining import examine
    from squadron.bridge.health.gathering import gather
    from squadron.bridge.jetstream.link import embedded

    async def main():
        home = pathlib.Path(sys.argv[1])
        embedded.ensure(home)
        try:
            for each in examine(await gather(Settings(home=home, env="sick"), watch_s=0.0)):
                print(f"{each.level} {each.name}: {each.found}")
        finally:
            embedded.stop(home)

    asyncio.run(main())
"""


async def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path) -> None:
    """On a disk of 64 MB, in a name space of its own: that needs no root, but a kernel that allows it."""
    mounted = f"mount -t tmpfs -o size=64m none {tmp_path}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, mounted], capture_output=True, check=False).returncode:
        pytest.skip("unshare and mount are not allowed here")
    command = f'{mounted} && exec "{sys.executable}" -c "$SCRIPT" {tmp_path}'
    environ = os.environ | {"SCRIPT": textwrap.dedent(FULL_DISK)}
    process = await asyncio.create_subprocess_exec(*inside, command, env=environ, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()

    assert re.search(r"^fail disk of the store: 0\.\d GB are free", out.decode(), re.MULTILINE)


# --- agents ------------------------------------------------------------------------------------------


async def test_a_bridge_that_is_away_is_told(wiring: Wiring) -> None:
    found = await look(wiring.settings)

    assert found["bridge"].level == "fail"
    assert found["bridge"].fix == "squadron up"


async def test_a_bridge_that_ray_does_not_answer_is_told(wiring: Wiring) -> None:
    await record(wiring)
    async with bridge(wiring, "AWAY"):
        found = await look(wiring.settings, within_s=2.0)

    assert found["bridge"].found == "it answers, but Ray does not tell it how the agents are"
    assert found["topics"].level == "ok"


async def test_a_server_that_lost_its_store_is_told(tmp_path: Path) -> None:
    server = OwnServer(tmp_path)
    server.start()
    wiring = await _open(Settings(home=tmp_path, nats_url=server.url, env="sick"))
    async with bridge(wiring):
        server.lose_store()

        async def is_told() -> bool:
            return "the nats-server lost its store" in (await look(wiring.settings))["bridge"].found

        await until(is_told)
    await wiring.aclose()
    server.stop()


async def test_releases_that_differ_are_told(wiring: Wiring) -> None:
    await record(wiring)
    async with hosted(wiring, release="0.0.1"), bridge(wiring, release="0.0.2"):
        found = await look(wiring.settings)

    assert found["releases"].level == "warn"
    assert "the bridge has 0.0.2, tester has 0.0.1" in found["releases"].found
    assert release() in found["releases"].found


async def test_tasks_that_nobody_serves_are_told(wiring: Wiring) -> None:
    await record(wiring)
    await put(wiring, "book.burn", 3)
    async with hosted(wiring):
        found = await look(wiring.settings)

    assert found["topics"].level == "fail"
    assert found["topics"].found == "3 tasks wait on book.burn, which no agent serves"
    assert "squadron deploy" in found["topics"].fix


async def test_tasks_of_an_agent_that_has_no_replica_are_told(wiring: Wiring) -> None:
    await record(wiring)
    await put(wiring, "book.read", 2)
    found = await look(wiring.settings)

    assert found["agents"].found == "2 tasks of reader wait, and it has no replica"
    assert found["topics"].level == "ok"


async def test_an_agent_that_can_not_start_is_told(wiring: Wiring) -> None:
    await record(wiring)
    async with bridge(wiring, "DEPLOY_FAILED", "Traceback\nValueError: no such model"):
        found = await look(wiring.settings)

    assert found["agents"].level == "fail"
    assert found["agents"].found == "reader is DEPLOY_FAILED: ValueError: no such model"


async def test_an_agent_that_is_held_at_zero_with_a_backlog_is_told(wiring: Wiring) -> None:
    await record(wiring, "0")
    await put(wiring, "book.read", 2)
    found = await look(wiring.settings)

    assert found["pinned at 0"].found == "2 tasks of reader wait, and it is held at 0 replicas"
    assert found["pinned at 0"].fix == "squadron scale reader=auto"
    assert found["agents"].level == "ok"


class Slow(Agent):
    """Takes its time."""

    @topic("slow.work")
    async def work(self, text: str) -> None:
        await asyncio.sleep(3600)


async def test_a_backlog_that_grows_at_the_most_replicas_is_told(wiring: Wiring) -> None:
    await record(wiring, "1..1", Slow)
    async with hosted(wiring, Slow()):
        await put(wiring, "slow.work", 3)
        putting = asyncio.create_task(put(wiring, "slow.work", 10_000))
        found = await look(wiring.settings, watch_s=0.5)
        putting.cancel()

    assert "its 1 replicas are the most it may have" in found["backlogs"].found
    assert "squadron scale slow=1..2" in found["backlogs"].fix


async def test_replicas_that_die_again_and_again_are_told(wiring: Wiring) -> None:
    await record(wiring)
    async with bridge(wiring) as made:
        for number in range(3):
            # As a process that is killed: it was there, and says nothing more.
            await made.registry.renew("reader", f"reader-{number}")

        async def are_gone() -> bool:
            return made.registry.lapsed("reader") == 3

        await until(are_gone)
        found = await look(wiring.settings)

    assert found["restarts"].found == "3 replicas of reader died or went deaf in the last minutes"


async def test_a_replica_that_has_fallen_silent_is_told_before_it_lapses(wiring: Wiring) -> None:
    now = time.time()
    gone = Presence(expires_at=now + 0.3, at=now, release=release())
    key = wiring.ports.subjects.presence("reader", "reader-1")
    await wiring.records.append(key, gone.model_dump_json().encode(), ttl_s=60.0)

    async def is_told() -> bool:
        return (await look(wiring.settings))["silent replicas"].level == "warn"

    await until(is_told)
    assert "reader-1 has been silent" in (await look(wiring.settings))["silent replicas"].found


# --- work --------------------------------------------------------------------------------------------


async def test_an_audit_trail_that_nobody_writes_is_told(wiring: Wiring) -> None:
    trail = await audited(wiring, "trail")
    async with archiving(wiring.settings):
        await put(wiring, "book.read", 3)
        await recorded(trail, 3)
        assert (await look(wiring.settings))["audit trail"].level == "ok"
    await put(wiring, "book.read", 5)

    async def is_told() -> bool:
        told = (await look(wiring.settings))["audit trail"]
        return told.level == "fail" and "nobody records" in told.found

    await until(is_told)


async def test_that_the_trail_can_not_be_looked_at_is_told_and_not_that_it_is_off(wiring: Wiring) -> None:
    trail = await audited(wiring, "trail")
    trail.anchor_file.mkdir(parents=True)

    found = await look(wiring.settings)

    assert "audit trail" not in found
    assert "audit: ConfigError" in found["not looked at"].found


async def test_a_provider_that_said_429_is_told(wiring: Wiring) -> None:
    request = ModelRequest((ChatMessage("user", "hello"),), max_tokens=100)
    accounts = Accounts(wiring.ports, {"openai": Limits(rpm=60)})
    used_up = HttpError(429, "the quota is used up", headers={"retry-after": "60"})
    with ScriptedOpenAIServer([used_up]) as server:
        model, told = OpenAIModel("gpt-x", api_key="k", base_url=server.base_url), Told()
        with pytest.raises(ModelError):
            # A minute's pause is longer than there is time.
            await think_patiently(
                [model],
                request,
                books=told,
                within_s=20.0,
                on_text=told.on_text,
                on_event=told.on_event,
                account=accounts,
            )
        await model.aclose()

    async def is_told() -> bool:
        return (await look(wiring.settings))["provider limits"].level == "warn"

    await until(is_told)
    found = await look(wiring.settings)
    await accounts.aclose()

    assert re.match(r"openai-\w+ said 429: no calls for another \d+ s", found["provider limits"].found)
    assert "SQUADRON_MODEL_LIMITS" in found["provider limits"].fix


class Clumsy(Agent):
    """Fails."""

    @topic("clumsy.work", max_attempts=1)
    async def work(self, text: str) -> None:
        raise ValueError("no")


async def test_many_dead_letters_are_told(wiring: Wiring) -> None:
    await record(wiring, agent=Clumsy)
    async with hosted(wiring, Clumsy()):
        await put(wiring, "clumsy.work", 11)

        async def are_told() -> bool:
            return "11 of clumsy" in (await look(wiring.settings))["dead letters"].found

        await until(are_told)
    found = await look(wiring.settings)
    assert found["dead letters"].level == "warn"
    assert "squadron dlq redrive" in found["dead letters"].fix


async def test_a_run_that_nobody_goes_on_with_is_told(wiring: Wiring) -> None:
    # What a process leaves that is killed, when its caller is gone, too.
    deadline = Deadline.after(0.3, wiring.ports.clock)
    log = RunLog(wiring.ports, "run-1", deadline)
    await log.load()
    epoch = Epoch(
        at=time.time(), number=1, redriven=0, delivered=1, replica="r", deadline_at=time.time(), max_rounds=3
    )
    about = {"agent": "planner", "task": "t", "deadline": time.time() + 0.3}
    await log.append(epoch, about=about)

    async def is_told() -> bool:
        return (await look(wiring.settings))["runs"].level == "warn"

    await until(is_told)
    found = await look(wiring.settings)
    assert found["runs"].found == "1 stopped without an end: run-1 (planner)"
    assert "squadron runs show run-1" in found["runs"].fix


async def test_a_question_that_waits_for_long_is_told(wiring: Wiring) -> None:
    question = Question(
        message="Which size?",
        deadline_ms=Deadline.after(7200, wiring.ports.clock).at_ms,
        schema={"type": "object", "properties": {"size": {"type": "string"}}},
    )
    await put_question(wiring.caller, question, "query-1", about="run-1")
    facts = await gather(wiring.settings, watch_s=0.0)
    # The same, looked at in an hour.
    later = examine(dataclasses.replace(facts, now=facts.now + 3600))

    [told] = [each for each in later if each.name == "questions"]
    assert told.found == "1 wait for people, the oldest for 60 min: query-1 (tester)"
    assert "squadron answer query-1" in told.fix
    [fine] = [each for each in examine(facts) if each.name == "questions"]
    assert (fine.level, fine.found) == ("ok", "1 wait for people")

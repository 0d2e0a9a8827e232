"""The bridge on ports in memory: records what it is told, takes up what is recorded, tells what lapses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Self

import pytest

from squadron.bridge.control.control import Bridge
from squadron.bridge.memory import (
    Line,
    MemoryJournal,
    MemoryQueue,
    MemoryServer,
)
from squadron.bridge.place import Place
from squadron.config import Settings
from squadron.runtime.asking.people import put_question
from squadron.runtime.errors import BusUnavailableError, DeployError, SquadronError
from squadron.runtime.ports.bus import Note
from squadron.runtime.ports.queue import Backlog, Mailbox, Queue
from squadron.runtime.registry.registry import ROUNDED_S, Registry
from squadron.runtime.running.ordered import OrderedQueue
from squadron.runtime.wire.deployment import AgentState, Deployment, Scale
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.question import Question
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.unit.test_budget import HandClock

#: The bridge's rounds of upkeep follow the heartbeat; real time, while lapses follow the clock below.
BEAT_S = 0.01


class HeldReplicas:
    """A cluster that only remembers what it was told to run."""

    def __init__(self) -> None:
        self.applied: list[list[Deployment]] = []
        #: What somebody set at its own door.
        self.by_hand: dict[str, Scale] = {}
        self.refuses, self.looks = "", 0

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        if self.refuses:
            raise DeployError(self.refuses)
        self.applied.append(list(deployments))

    async def capacity(self) -> int:
        return 50

    async def states(self, wanted: Sequence[Deployment]) -> dict[str, AgentState]:
        self.looks += 1
        now = self.applied[-1] if self.applied else []
        running = AgentState(status="RUNNING", running=1, target=1)
        return {
            each.application: running.model_copy(
                update={"drifted": agent not in wanted, "set_by_hand": self.by_hand.get(each.application)}
            )
            for agent in now
            for each in agent.versions
        }


class FaultyStore(MemoryQueue):
    """Mailboxes on a server that may refuse: everybody, so that there is but one."""

    def over(self, line: Line) -> Self:
        return self

    def __init__(self) -> None:
        super().__init__()
        #: So many declarations are refused; and whether nobody knows anything.
        self.refuses, self.leaderless = 0, False

    async def declare(self, mailbox: Mailbox) -> None:
        if self.refuses:
            self.refuses -= 1
            raise BusUnavailableError("refused")
        await super().declare(mailbox)

    async def backlog(self, name: str) -> Backlog:
        if self.leaderless:
            raise BusUnavailableError("no leader")
        return await super().backlog(name)


class FullJournal(MemoryJournal):
    """A journal whose storage may be full."""

    full = False

    def over(self, line: Line) -> Self:
        return self

    async def append(self, key: str, data: bytes, **how: Any) -> int:
        if self.full:
            raise BusUnavailableError("insufficient resources")
        return await super().append(key, data, **how)


class Site:
    """Everything that outlives a bridge: journal, mailboxes, cluster."""

    def __init__(self) -> None:
        self.clock, self.replicas = HandClock(), HeldReplicas()
        self._server = server = MemoryServer("t", self.clock)
        self.bus, self.subjects, self.lite = server.bus, server.subjects, server.lite
        self.store, self.records = FaultyStore(), FullJournal(server.bus, self.clock.time)
        server.queue, server.records = self.store, self.records
        self.queue: Queue = OrderedQueue(self.store, self.subjects, self.clock)
        self.held: dict[str, int] = {}
        self.lost: list[str] = []
        self.blind, self.failed_looks, self.kept = False, 0, 0
        self.bridges: list[Bridge] = []
        self.places: list[Place] = []

    async def place(self) -> Place:
        identity = AgentIdentity(id="bridge", type="bridge")
        place = self._server.place(identity, Settings(env="t", heartbeat_s=BEAT_S))
        await place.registry.start()
        self.places.append(place)
        return place

    async def registry(self) -> Registry:
        return (await self.place()).registry

    async def bridge(self) -> Bridge:
        place = await self.place()
        ports = replace(place.ports, queue=self.queue)

        async def held() -> dict[str, int]:
            if self.blind:
                self.failed_looks += 1
                raise BusUnavailableError("no leader")
            return self.held

        async def keep() -> list[str]:
            self.kept += 1
            lost, self.lost = self.lost, []
            return lost

        bridge = Bridge(
            ports, place.registry, self.records, self.replicas, held, keep, {"nats": "here"}, lease_s=2.0
        )
        await bridge.start()
        self.bridges.append(bridge)
        return bridge

    async def call(self, verb: str, data: bytes | None = None, **arguments: Any) -> Any:
        """One control call over the bus, as a client makes it."""
        raw = await self.bus.request(
            self.subjects.control(verb), json.dumps(arguments).encode() if data is None else data, within_s=30
        )
        answer = json.loads(raw)
        if "error" in answer:
            raise SquadronError.from_dict(answer["error"])
        return answer["ok"]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    for bridge in made.bridges:
        await bridge.aclose()
    for place in made.places:
        await place.aclose()


def deployment_of(agent: str = "reader", *topics: str, version: str = "v1", **changes: Any) -> dict[str, Any]:
    own = Scale(minimum=1, maximum=4)
    card = AgentCard(agent=agent, topics=tuple(SemanticTopic(name=name) for name in topics or ("book.read",)))
    deployment = Deployment(
        card=card, code={"version": version}, slots=2, grace_s=1, lease_s=3, bounds=own, scale=own
    )
    return deployment.model_dump(mode="json") | changes


async def eventually(is_so: Any) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_a_deployed_agent_runs_is_advertised_and_has_a_mailbox(site: Site) -> None:
    await site.bridge()
    other = await site.registry()

    answer = await site.call("deploy", deployments=[deployment_of()])
    assert answer == {"agents": {"reader": "v1"}, "replaced": {}}

    assert [each.agent for each in site.replicas.applied[-1]] == ["reader"]
    await eventually(lambda: other.find("book.read"))
    await site.queue.put(site.subjects.task("book.read"), b"x", msg_id="1")
    assert await site.queue.backlog("reader") == Backlog(1, 0)


async def test_status_tells_everything_a_person_wants_to_see(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.queue.put(site.subjects.task("book.read"), b"x", msg_id="1")
    await bridge.registry.renew("reader", "reader-1", pid=7, node="here")

    status = await site.call("status")

    assert (status["environment"], status["nats"]) == ("t", "here")
    (agent,) = status["agents"]
    assert agent["agent"] == "reader"
    assert (agent["topics"], agent["status"], agent["running"], agent["scale"]) == (
        ["book.read"],
        "RUNNING",
        1,
        "1..4",
    )
    assert (agent["waiting"], agent["taken"], agent["slots"], agent["version"]) == (1, 0, 2, "v1")
    assert [(it["id"], it["pid"]) for it in agent["replicas"]] == [("reader-1", 7)]


async def test_scaling_is_recorded_and_changes_nothing_else(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])

    for to, pinned in (("3", 3), ("0", 0), ("0..9", None), ("auto", None)):
        answer = await site.call("scale", agent="reader", to=to)
        assert answer == {"agent": "reader", "scale": "1..4" if to == "auto" else to}
        (now,) = site.replicas.applied[-1]
        assert str(now.scale) == answer["scale"]
        assert now.code == {"version": "v1"}
        assert bridge.backlogs()["reader"]["pinned"] == pinned


async def test_new_code_does_not_undo_a_scale_that_was_set_by_hand(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("scale", agent="reader", to="3")

    await site.call("deploy", deployments=[deployment_of(version="v2")])

    (now,) = site.replicas.applied[-1]
    assert (str(now.scale), now.code["version"]) == ("3", "v2")


async def test_an_undeployed_agent_is_gone_but_its_waiting_tasks_are_kept(site: Site) -> None:
    await site.bridge()
    other = await site.registry()
    await site.call("deploy", deployments=[deployment_of()])
    await eventually(lambda: other.find("book.read"))
    await site.queue.put(site.subjects.task("book.read"), b"x", msg_id="1")

    assert await site.call("undeploy", agent="reader") == {"agent": "reader"}

    assert site.replicas.applied[-1] == []
    await eventually(lambda: other.find("book.read") is None)
    assert (await site.call("status"))["agents"] == []
    await site.call("deploy", deployments=[deployment_of()])
    assert await site.queue.backlog("reader") == Backlog(1, 0)


async def test_the_next_bridge_takes_up_what_is_recorded(site: Site) -> None:
    first = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("deploy", deployments=[deployment_of("writer", "book.write")])
    await site.call("undeploy", agent="writer")
    await site.call("scale", agent="reader", to="2")
    await first.aclose()
    await first.aclose()
    site.replicas.applied.clear()
    site.queue = MemoryQueue()

    await site.bridge()

    await eventually(lambda: site.replicas.applied)
    (reader,) = site.replicas.applied[-1]
    assert (reader.agent, str(reader.scale)) == ("reader", "2")
    await site.queue.put(site.subjects.task("book.read"), b"x", msg_id="1")
    assert await site.queue.backlog("reader") == Backlog(1, 0)
    late = await site.registry()
    await eventually(lambda: late.find("book.read"))


async def test_a_record_that_nobody_can_read_does_not_stop_the_bridge(site: Site) -> None:
    await site.records.append(site.subjects.record("deployment", "odd"), b'{"card": 1}')
    await site.records.append(site.subjects.record("deployment", "gone"), b"")
    await site.bridge()

    assert (await site.call("status"))["agents"] == []


async def test_an_agent_whose_list_nobody_can_hold_to_is_not_deployed(site: Site) -> None:
    await site.bridge()
    topics = (SemanticTopic(name="book.read", allow=("client:ann",)),)
    card = AgentCard(agent="reader", topics=topics).model_dump(mode="json")

    with pytest.raises(SquadronError, match=r"book\.read is for client:ann only.*SQUADRON_VERIFY") as caught:
        await site.call("deploy", deployments=[deployment_of(card=card)])

    assert type(caught.value).__name__ == "ConfigError"
    assert site.replicas.applied == []


async def test_code_of_another_python_is_refused_at_the_door_in_one_line(site: Site) -> None:
    await site.bridge()
    code = {"version": "v", "python": "2.7"}

    with pytest.raises(SquadronError, match=r"compiled by Python 2\.7, and the cluster runs 3\.\d+") as caught:
        await site.call("deploy", deployments=[deployment_of(code=code)])

    assert type(caught.value).__name__ == "ConfigError"
    assert "\n" not in str(caught.value)
    assert site.replicas.applied == []


@pytest.mark.parametrize("pattern", ["book.read", "book.*", "*.read"])
async def test_a_topic_that_is_taken_is_a_route_conflict_and_changes_nothing(site: Site, pattern: str) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])

    with pytest.raises(SquadronError, match="reader") as caught:
        await site.call("deploy", deployments=[deployment_of("rival", pattern)])

    assert type(caught.value).__name__ == "RouteConflictError"
    assert [each.agent for each in site.replicas.applied[-1]] == ["reader"]
    assert len((await site.call("status"))["agents"]) == 1


@pytest.mark.parametrize(
    ("verb", "data", "kind", "said"),
    [
        ("dance", b"{}", "InvalidMessageError", "one of deploy, undeploy"),
        ("deploy", b"not json", "InvalidMessageError", "deploy"),
        ("deploy", b"[]", "InvalidMessageError", "deploy"),
        ("deploy", b"{}", "InvalidMessageError", "deployment"),
        ("deploy", b'{"deployments": [{}]}', "InvalidMessageError", "card"),
        ("deploy", b'{"deployments": [7]}', "InvalidMessageError", "deployments"),
        ("scale", b'{"agent": "nobody", "to": "1"}', "NotThereError", "nobody"),
        ("scale", b'{"agent": "reader", "to": "many"}', "ConfigError", "is not a scale"),
        ("scale", b'{"agent": "reader", "to": "51"}', "ConfigError", "holds about 50"),
        ("scale", b'{"agent": "reader", "to": 3}', "", ""),
        ("scale", b'{"agent": "reader"}', "InvalidMessageError", "to"),
        ("undeploy", b'{"agent": "nobody"}', "NotThereError", "deployed are reader"),
        ("ping", b'{"extra": 1}', "InvalidMessageError", "extra"),
        ("deploy", b"\xff", "InvalidMessageError", "deploy"),
    ],
)
async def test_a_call_that_can_not_be_answered_gets_a_typed_error(
    site: Site, verb: str, data: bytes, kind: str, said: str
) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])

    with pytest.raises(SquadronError) as caught:
        await site.call(verb, data)

    if kind:
        assert type(caught.value).__name__ == kind
        assert said in str(caught.value)
    assert (await site.call("ping"))["environment"] == "t"


async def test_an_empty_call_is_fine_where_nothing_is_needed(site: Site) -> None:
    await site.bridge()

    assert (await site.call("ping", b""))["environment"] == "t"


async def test_what_the_cluster_refuses_is_told_and_may_be_tried_again(site: Site) -> None:
    await site.bridge()
    site.replicas.refuses = "no room"
    with pytest.raises(DeployError, match="no room"):
        await site.call("deploy", deployments=[deployment_of()])
    site.replicas.refuses = ""

    await site.call("deploy", deployments=[deployment_of(version="v2")])

    assert [each.code["version"] for each in site.replicas.applied[-1]] == ["v2"]


async def test_a_replica_that_fell_silent_is_told_offline_once(site: Site) -> None:
    bridge = await site.bridge()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await site.bus.subscribe(site.subjects.event("status.*"), lambda note: heard.put_nowait(note.data))
    await site.call("deploy", deployments=[deployment_of()])
    await bridge.registry.renew("reader", "reader-1")
    await bridge.registry.renew("reader", "reader-2")
    await bridge.registry.depart("reader", "reader-2")

    site.clock.now += 3 * BEAT_S + 2 * ROUNDED_S

    event = AgentMessage.decode(await asyncio.wait_for(heard.get(), 30))
    assert event.type == "event"
    assert event.payload.content == {
        "event": "agent_offline",
        "agent": "reader",
        "replica": "reader-1",
        "reason": "heartbeat lapsed",
    }
    await site.call("ping")
    assert heard.empty()


async def test_the_bridge_stands_in_for_an_agent_that_is_scaled_to_zero(site: Site) -> None:
    await site.bridge()
    other = await site.registry()
    await site.call("deploy", deployments=[deployment_of()])
    await eventually(lambda: other.find("book.read"))
    for _ in range(3):
        site.clock.now += 2.5 * BEAT_S
        await eventually(lambda: other._present.of("reader")["bridge"].expires_at > site.clock.now + 2.9 * BEAT_S)

    assert other.find("book.read") is not None
    assert other.replicas("reader") == {}


async def test_what_waits_for_people_needs_no_replica(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of("reader", "book.read")])
    site.held = {site.subjects.task("book.read"): 3}
    await eventually(lambda: bridge.backlogs()["reader"]["held"] == 3)
    note = {"token": "1.1", "queries": ["q1"], "agent": "reader", "until": site.clock.time() + 60}
    place = await site.place()
    deadline_ms = round((site.clock.time() + 60) * 1000)
    asked = await put_question(place.caller, Question(message="?", deadline_ms=deadline_ms), "q1")
    await site.lite.append(site.subjects.lite("parked", "task-1"), json.dumps(note).encode())
    await eventually(lambda: bridge.backlogs()["reader"]["held"] == 2)
    # Once it can go on it does.
    await asked.withdraw()
    await eventually(lambda: bridge.backlogs()["reader"]["held"] == 3)


async def test_backlogs_count_every_lane_of_every_topic_for_the_autoscaler(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of("reader", "book.*")])
    await site.call("deploy", deployments=[deployment_of("writer", "film.make")])
    site.held = {
        site.subjects.task("book.read"): 2,
        site.subjects.task("book.burn", 9): 3,
        site.subjects.task("other.thing"): 50,
        "agents.t.nonsense": 7,
    }

    await eventually(lambda: bridge.backlogs()["reader"]["held"] == 5)

    assert bridge.backlogs() == {"reader": {"held": 5, "pinned": None}, "writer": {"held": 0, "pinned": None}}


async def test_of_agents_that_hold_nothing_no_mailbox_is_asked_for_metrics(site: Site) -> None:
    bridge = await site.bridge()
    await site.call(
        "deploy", deployments=[deployment_of("reader", "book.read"), deployment_of("writer", "film.make")]
    )
    site.held = {site.subjects.task("book.read"): 2}
    await eventually(lambda: bridge.backlogs().get("reader") == {"held": 2, "pinned": None})
    asked: list[str] = []

    async def backlog(name: str) -> Backlog:
        asked.append(name)
        return Backlog(1, 1)

    bridge._ports.queue.backlog = backlog  # type: ignore[method-assign]
    told = {each["agent"]: (each["waiting"], each["taken"]) for each in await bridge.agents(asks_all=False)}
    assert told == {"reader": (1, 1), "writer": (0, 0)}
    assert asked == ["reader"]
    assert {each["waiting"] for each in (await site.call("status"))["agents"]} == {1}


async def test_the_autoscaler_hears_of_other_figures_and_waits_while_they_are_the_same(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of("reader", "book.read")])
    await eventually(lambda: bridge.backlogs() == {"reader": {"held": 0, "pinned": None}})
    seen, figures = await bridge.figures.after("")
    while figures != bridge.backlogs():
        seen, figures = await bridge.figures.after(seen)

    waiting = asyncio.create_task(bridge.figures.after(seen))
    await eventually(bridge.figures._changed._waiters.__len__)
    assert not waiting.done()
    site.held = {site.subjects.task("book.read"): 2}

    later, figures = await waiting
    while figures["reader"]["held"] != 2:
        later, figures = await bridge.figures.after(later)
    assert later != seen
    assert figures == {"reader": {"held": 2, "pinned": None}}
    await site.call("scale", agent="reader", to="3")
    while figures["reader"]["pinned"] != 3:
        later, figures = await bridge.figures.after(later)


async def test_with_hundreds_of_agents_the_cluster_is_looked_at_less_often(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of(f"reader-{n}", f"book{n}.read") for n in range(90)])
    looks, rounds = site.replicas.looks, site.kept
    await eventually(lambda: site.kept >= rounds + 30)
    assert 0 < site.replicas.looks - looks <= (site.kept - rounds) // 3 + 1


async def test_an_ordered_agent_counts_for_the_autoscaler_as_what_can_run_at_once(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of(ordered_by="conversation")])
    line = "agents.t.ordered.reader"
    site.held = {
        site.subjects.task("book.read"): 2,
        f"{line}.c-1.book.read": 40,
        f"{line}.c-2.book.read": 1,
        "agents.t.ticket.reader.c-1.7": 1,
        "agents.t.ticket.reader.c-2.9": 1,
        "agents.t.ticket.gone.c-2.8": 1,
    }

    await eventually(lambda: bridge.backlogs()["reader"]["held"] == 4)


async def test_an_ordered_agent_has_its_mailbox_of_tickets_until_it_is_undeployed(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of(ordered_by="conversation")])
    store = site.queue.store
    assert await store.knows("reader=tickets")

    await site.call("undeploy", agent="reader")
    async with asyncio.timeout(30):
        while await store.knows("reader=tickets") or await store.knows("reader"):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", ["card", "deployment"])
async def test_what_somebody_else_wrote_over_is_put_right(site: Site, kind: str) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    key = f"agents.t.registry.{kind}.reader"
    before = await site.records.last(key)

    await site.records.append(key, b"rubbish")

    async with asyncio.timeout(30):
        while (now := await site.records.last(key)) is None or before is None or now.data != before.data:
            await asyncio.sleep(0.005)


async def test_a_bridge_starts_over_records_that_nobody_can_use(site: Site) -> None:
    first = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await first.aclose()
    rival = json.dumps(deployment_of("rival", "book.*")).encode()
    for key, data in (
        ("deployment.odd", b"rubbish"),
        ("deployment.rival", rival),
        ("deployment.spaced", json.dumps(deployment_of()).replace('"reader"', '"a b"').encode()),
        ("deployment.bare", json.dumps(deployment_of("bare", "bare.topic", code={})).encode()),
        ("leaving.a b", b"{}"),
    ):
        await site.records.append(f"agents.t.registry.{key}", data)

    await site.bridge()

    assert [each["agent"] for each in (await site.call("status"))["agents"]] == ["reader"]


@pytest.mark.parametrize(
    "reply", ["$JS.API.STREAM.DELETE.x", "agents.t.task.book.read", "a.*", "a..b", "r" * 5000]
)
async def test_the_bridge_answers_nowhere_that_is_not_the_askers(site: Site, reply: str) -> None:
    await site.bridge()
    heard: list[Any] = []
    await site.bus.subscribe(">", heard.append)

    site.bus.deliver(Note(site.subjects.control("ping"), b"", reply))
    await site.call("ping")

    assert [note.subject for note in heard if note.subject == reply] == []

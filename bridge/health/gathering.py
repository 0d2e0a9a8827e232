"""Facts of a system, gathered once; half of it may be down: each step has its time, and says why if it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

from squadron.actors.runs.shelf import Runs
from squadron.actors.thinking.quota import AccountState
from squadron.bridge.audit.history import AuditTrail
from squadron.bridge.health.facts import (
    AccountFacts,
    AgentFacts,
    AuditFacts,
    BusFacts,
    ConsumerFacts,
    DeadFacts,
    Facts,
    Fault,
    ReplicaFacts,
    StorageFacts,
    StreamFacts,
    WaitingFacts,
)
from squadron.bridge.health.release import release
from squadron.bridge.health.tls_facts import wire_of
from squadron.bridge.jetstream.audit_streams import read_policy
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.at_home import JS_API, as_user
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.queue import subjects_held
from squadron.bridge.jetstream.stream_configs import NO_LEADER, STREAM_NOT_FOUND, StreamNames, ask_for, find
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.trusting import Trusting
from squadron.config import Settings
from squadron.runtime.asking.answering import People
from squadron.runtime.asking.bridge_answer import read_answer
from squadron.runtime.errors import BusUnavailableError, InvalidSubjectError, SquadronError
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.ports.journal import Entry
from squadron.runtime.registry.presence import Presence
from squadron.runtime.registry.registry import STAND_IN
from squadron.runtime.retries import summary_of
from squadron.runtime.wire.deployment import Deployment
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.subjects import TaskSubject, matches

#: How long each step may take, in seconds: JetStream's API answers within milliseconds where it is well.
STEP_WITHIN_S = 5.0
#: Seconds between the two looks at the backlogs.
WATCH_S = 1.0
#: JetStream is asked for so many consumers at a time (its own limit), of so many pages at most.
_PAGE, _MOST_PAGES = 256, 40
#: Runs that are looked at: each costs a request or two.
_MOST_RUNS = 100

T = TypeVar("T")


async def gather(settings: Settings, *, within_s: float = STEP_WITHIN_S, watch_s: float = WATCH_S) -> Facts:
    """All that can be found out of an environment; never raises for what is down, and ends.

    Args:
        within_s: how long each step may take, in seconds; most are taken at once.
        watch_s: how long backlogs are watched for growth, in seconds.
    """
    known: dict[str, Any] = {
        "now": time.time(),
        "heartbeat_s": settings.heartbeat_s,
        "release": release(),
        "unknown": {},
    }
    identity = AgentIdentity(id=f"doctor-{uuid.uuid4().hex[:12]}", type="client")
    try:
        settings = as_user(settings)
        trusting = Trusting.of(settings, time.time)
        identity = trusting.named(identity)
        connection = await connect(settings, name=identity.id)
    except SquadronError as error:
        return Facts(**known, bus=BusFacts(fault=Fault(str(error.args[0]), error.hint)))
    wiring = Wiring(connection, settings, identity, trusting)
    try:
        known["bus"] = BusFacts(connection.server, connection.version)
        return Facts(**await Gathering(wiring, known, within_s, watch_s).all())
    finally:
        # It was never started: there is only the connection to close.
        await connection.aclose()


class Gathering:
    """One round of looking, over a wiring that is not started: each answer is the server's, none is a copy's."""

    def __init__(self, wiring: Wiring, known: dict[str, Any], within_s: float, watch_s: float) -> None:
        self._wiring, self._known, self._within_s, self._watch_s = wiring, known, within_s, watch_s
        self._ports, self._connection = wiring.ports, wiring.connection
        self._subjects, self._names = wiring.ports.subjects, StreamNames(wiring.settings.env)

    async def all(self) -> dict[str, Any]:
        """What is known, and what else could be found out, as `Facts` takes it; ends, whatever hangs."""
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "wire": lambda: wire_of(self._connection.client, self._wiring.settings),
            "account": self._account,
            "bridge": self._bridge,
            "free_bytes": self._free_bytes,
            "cut_off": self._cut_off,
        }
        if (fault := await self._jetstream()) is None:
            steps |= {
                "ahead_s": self._ahead_s,
                "storage": self._storage,
                "streams": self._streams,
                "consumers": self._consumers,
                "replicas": self._replicas,
                "audit": self._audit,
                "accounts": self._accounts,
                "dead": self._dead,
                "stale_runs": self._stale_runs,
                "questions": self._questions,
                "deployments": self._deployments,
                "first": self._held,
            }
        self._known["jetstream"] = fault
        began = time.monotonic()
        await self._take(steps)
        if fault is None:
            await asyncio.sleep(max(0.0, self._watch_s - (time.monotonic() - began)))
            await self._take({"held": self._held})
        self._judge_agents()
        return self._known

    async def _take(self, steps: Mapping[str, Callable[[], Awaitable[Any]]]) -> None:
        results = await asyncio.gather(*(self._step(name, step) for name, step in steps.items()))
        self._known.update(dict(zip(steps, results, strict=True)))

    async def _step(self, name: str, step: Callable[[], Awaitable[T]]) -> T | None:
        """What a step finds, or None, with the reason noted."""
        try:
            async with asyncio.timeout(self._within_s):
                return await step()
        except TimeoutError:
            self._known["unknown"][name] = f"no answer in {self._within_s:g} s"
        except (SquadronError, OSError, ValueError, LookupError, TypeError) as error:
            self._known["unknown"][name] = summary_of(error)
        return None

    # --- the server ----------------------------------------------------------------------------------

    async def _jetstream(self) -> Fault | None:
        hint = "enable JetStream on the nats-server (`jetstream { store_dir: … }`), and for this account"
        more_servers = "more than half of the servers of the NATS cluster must run: start those that are down"
        try:
            request = self._connection.request(f"{self._connection.api_prefix}.INFO", b"", within_s=self._within_s)
            error = json.loads((await request).data).get("error")
        except BusUnavailableError as failed:
            if "nobody answers" in str(failed):
                return Fault("the nats-server has no JetStream", hint)
            return Fault(f"JetStream gives no answer in {self._within_s:g} s: it has no leader", more_servers)
        if error is None:
            return None
        if error.get("err_code") == NO_LEADER:
            return Fault(f"JetStream refuses: it has no leader ({error.get('description')})", more_servers)
        return Fault(f"JetStream refuses: {error.get('description')}", hint)

    async def _account(self) -> str:
        if self._wiring.settings.nats_api_prefix != JS_API:
            return ""
        with contextlib.suppress(BusUnavailableError):
            answer = await self._connection.request("$SYS.REQ.USER.INFO", b"", within_s=self._within_s)
            return str(json.loads(answer.data)["data"]["account"])
        return ""

    async def _ahead_s(self) -> float | None:
        asked_at = time.time()
        info = await find(self._connection, f"STREAM.INFO.{self._names.registry}", missing=STREAM_NOT_FOUND)
        if info is None:
            return None
        there, heard_at = datetime.fromisoformat(info["ts"]).timestamp(), time.time()
        ahead_s = (asked_at + heard_at) / 2 - there
        # It was told somewhere between the question and the answer.
        return ahead_s if abs(ahead_s) > (heard_at - asked_at) / 2 else 0.0

    async def _storage(self) -> StorageFacts:
        account = await ask_for(self._connection, "INFO")
        used, most = account["storage"], max(0, account["limits"]["max_storage"])
        if not most and (local := await self._monitor("jsz")) is not None:
            used, most = local["storage"], local["config"]["max_storage"]
        try:
            # Whether something can be stored shows when something is; it is gone after a second.
            key = self._subjects.lite("doctor", self._ports.identity.id)
            await self._ports.lite.append(key, self._ports.pack("event", {"content": None}), ttl_s=1.0)
        except SquadronError as error:
            return StorageFacts(used, most, Fault(str(error.args[0]), error.hint))
        return StorageFacts(used, most)

    async def _monitor(self, page: str) -> dict[str, Any] | None:
        """A monitoring page of the local nats-server; None of any other, whose pages we don't know."""
        if self._wiring.settings.nats_url is not None:
            return None
        return await asyncio.to_thread(self._fetch, page)

    def _fetch(self, page: str) -> dict[str, Any] | None:
        if (endpoint := embedded.find(self._wiring.settings.home)) is None:
            return None
        with urlopen(f"{endpoint.monitor_url}/{page}", timeout=self._within_s) as answer:
            told: dict[str, Any] = json.load(answer)
            return told

    async def _cut_off(self) -> int | None:
        told = await self._monitor("varz")
        return None if told is None else int(told["slow_consumers"])

    async def _free_bytes(self) -> int | None:
        settings = self._wiring.settings
        return free_bytes(settings.home) if settings.nats_url is None else None

    async def _streams(self) -> tuple[StreamFacts, ...]:
        names = self._names
        streams = (names.tasks, names.lite, names.registry, names.dead, names.runs, names.events)
        return tuple(await asyncio.gather(*map(self._stream, (*streams, f"OBJ_{names.bucket}"))))

    async def _stream(self, name: str) -> StreamFacts:
        try:
            async with asyncio.timeout(self._within_s / 2):
                info = await find(self._connection, f"STREAM.INFO.{name}", missing=STREAM_NOT_FOUND)
        except (BusUnavailableError, TimeoutError):
            # JetStream itself answered a moment ago.
            return StreamFacts(name, 0, 0, has_leader=False)
        if info is None:
            return StreamFacts(name, -1, -1)
        config, state, cluster = info["config"], info["state"], info.get("cluster")
        return StreamFacts(
            name,
            state["bytes"],
            state["messages"],
            max(0, config.get("max_bytes", 0)),
            max(0, config.get("max_msgs", 0)),
            cluster is None or bool(cluster.get("leader")),
            name == self._names.lite and not config.get("allow_batched"),
        )

    async def _consumers(self) -> tuple[ConsumerFacts, ...]:
        found = []
        for stream in (self._names.tasks, self._names.events):
            for page in range(_MOST_PAGES):
                listed = await ask_for(self._connection, f"CONSUMER.LIST.{stream}", {"offset": page * _PAGE})
                found += [ConsumerFacts.of(stream, info) for info in listed["consumers"] or ()]
                if (page + 1) * _PAGE >= listed["total"]:
                    break
        return tuple(found)

    # --- agents --------------------------------------------------------------------------------------

    async def _bridge(self) -> dict[str, Any]:
        try:
            bus = self._ports.bus
            raw = await bus.request(self._subjects.control("ping"), b"", within_s=self._within_s)
        except BusUnavailableError:
            return {}
        told: dict[str, Any] = read_answer(raw).get("ok", {})
        with contextlib.suppress(BusUnavailableError, TimeoutError):
            # Ray may be away where the bridge answers.
            async with asyncio.timeout(self._within_s / 2):
                raw = await bus.request(self._subjects.control("status"), b"", within_s=self._within_s)
                told |= read_answer(raw).get("ok", {})
        return told

    async def _replicas(self) -> tuple[ReplicaFacts, ...]:
        found = []
        for entry in await self._wiring.records.latest(self._subjects.registry("presence")):
            with contextlib.suppress(ValueError):
                agent, replica = entry.key.split(".")[4:6]
                it = Presence.model_validate_json(entry.data)
                if it.expires_at > 0:
                    times = (it.at, entry.time, it.expires_at)
                    found.append(ReplicaFacts(agent, replica, *times, it.node, it.release))
        return tuple(found)

    async def _deployments(self) -> list[Deployment]:
        found = []
        for entry in await self._wiring.records.latest(self._subjects.registry("deployment")):
            with contextlib.suppress(ValueError, InvalidSubjectError):
                found.append(Deployment.model_validate_json(entry.data))
        return found

    async def _held(self) -> dict[str, int]:
        """Tasks by topic."""
        counts: Counter[str] = Counter()
        pattern = f"agents.{self._subjects.environment}.task.>"
        for subject, count in (await subjects_held(self._connection, self._names.tasks, [pattern])).items():
            with contextlib.suppress(InvalidSubjectError):
                counts[TaskSubject.parse(subject).topic] += count
        return dict(counts)

    def _judge_agents(self) -> None:
        """Put together what was found of each agent."""
        deployments, first = self._known.pop("deployments", None), self._known.pop("first", None)
        held, replicas = self._known.pop("held", None), self._known.get("replicas")
        if deployments is None or first is None or held is None or replicas is None:
            return
        taken: Counter[str] = Counter()
        for consumer in self._known.get("consumers") or ():
            if consumer.stream == self._names.tasks:
                taken[consumer.name.partition("=")[0]] += consumer.taken
        told = {each["agent"]: each for each in (self._known.get("bridge") or {}).get("agents", ())}
        present = Counter(each.agent for each in replicas if each.id != STAND_IN)
        agents, served = [], set[str]()
        for each in deployments:
            mine = {topic for topic in held.keys() | first if any(matches(one, topic) for one in each.patterns)}
            served |= mine
            now = sum(held.get(topic, 0) for topic in mine)
            state = told.get(each.agent, {})
            agents.append(
                AgentFacts(
                    name=each.agent,
                    patterns=each.patterns,
                    scale=each.scale,
                    slots=each.slots,
                    waiting=max(0, now - taken[each.agent]),
                    grown=now - sum(first.get(topic, 0) for topic in mine),
                    replicas=present[each.agent],
                    status=state.get("status", ""),
                    message=state.get("message", ""),
                    lapsed=state.get("lapsed", 0),
                )
            )
        self._known["agents"] = tuple(agents)
        self._known["unserved"] = self._unserved(held, served, {each.agent for each in replicas})

    def _unserved(self, held: Mapping[str, int], served: set[str], alive: set[str]) -> dict[str, int]:
        """What waits for nobody: no agent is deployed for it, nor does one without a deployment serve it."""
        # A binding, or a replica in another language, has a mailbox and a sign of life, but no deployment.
        others = [
            each
            for each in self._known.get("consumers") or ()
            if each.name.partition("=")[0] in alive and each.filters
        ]
        return {
            topic: count
            for topic, count in held.items()
            if topic not in served and not any(matches(one, topic) for each in others for one in each.filters)
        }

    # --- work ----------------------------------------------------------------------------------------

    async def _audit(self) -> AuditFacts:
        if await read_policy(self._connection, self._names) is None:
            return AuditFacts()
        told = await AuditTrail(self._connection, self._names, self._wiring.settings.home).status()
        return AuditFacts(told["mode"], told["archivist"], told["waiting"], told.get("entries", 0))

    async def _accounts(self) -> tuple[AccountFacts, ...]:
        return tuple(
            _account(entry, self._known["now"])
            for entry in await self._ports.lite.latest(self._subjects.lite_of("model-account"))
        )

    async def _dead(self) -> DeadFacts:
        info = await find(self._connection, f"STREAM.INFO.{self._names.dead}", missing=STREAM_NOT_FOUND)
        if info is None:
            return DeadFacts({})
        counts: Counter[str] = Counter()
        for subject, count in (
            await subjects_held(self._connection, self._names.dead, [self._subjects.dead_of()])
        ).items():
            counts[subject.split(".")[3]] += count
        return DeadFacts(dict(counts), datetime.fromisoformat(info["state"]["last_ts"]).timestamp())

    async def _stale_runs(self) -> tuple[WaitingFacts, ...]:
        runs = await Runs(self._ports).list(most=_MOST_RUNS)
        return tuple(WaitingFacts(each.run, each.agent, each.updated) for each in runs if each.state == "stale")

    async def _questions(self) -> tuple[WaitingFacts, ...]:
        found = await People(self._ports, LiteTopics(self._ports)).questions()
        return tuple(WaitingFacts(each.query_id, each.asker, each.asked_at) for each in found)


def free_bytes(home: Path) -> int:
    """Room on the disk where the local nats-server keeps its store, in bytes."""
    return shutil.disk_usage(next(path for path in (home / "nats", home, *home.parents) if path.exists())).free


def _account(entry: Entry, now: float) -> AccountFacts:
    state = AccountState.decode(entry.data, now)
    return AccountFacts(entry.key.rpartition(".")[2], state.paused_until, max(state.next_at.values(), default=0.0))

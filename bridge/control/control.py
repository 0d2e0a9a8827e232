"""What the bridge does, on ports alone: keeps deployments, mailboxes and presence, and answers control calls."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import uuid
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from squadron.bridge.control.callers import admit, arguments_of, offering
from squadron.bridge.control.deployed import Deployed, asked_for, beside, check_deployable, checked, with_canary
from squadron.bridge.control.describing import Endings, described, not_deployed, replaced_by
from squadron.bridge.control.on_record import on_record
from squadron.bridge.control.scaling_figures import LatestFigures, runnable
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import ConfigError, InvalidMessageError, SquadronError
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.queue import Backlog
from squadron.runtime.ports.replicas import Replicas
from squadron.runtime.registry.registry import Registry
from squadron.runtime.retries import summary_of, traceback_of
from squadron.runtime.running.parking import Waker
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.deployment import CANARY, AgentState, Deployment, Scale
from squadron.runtime.wire.subjects import is_foreign

#: One round of upkeep looks at so many agents on the cluster: each costs Serve's controller and the bridge 0.4 ms
#: of CPU (measured with 200), which once a second would be a tenth of a core.
LOOKED_AT = 30

#: How many calls are remembered by their id; a client asks again within seconds.
CALLS_KEPT = 256
#: How many losses of the server's store are told.
LOSSES_KEPT = 8

#: What answers a call: given its arguments by name.
Verb = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


class Bridge:
    """The one writer of an environment's deployments. All its state is in the journal: a restart loses nothing.

    Open with `start`; it then answers the control verbs deploy, undeploy, scale, redeploy, status and ping.
    """

    def __init__(
        self,
        ports: Ports,
        registry: Registry,
        records: Journal,
        replicas: Replicas,
        held: Callable[[], Awaitable[Mapping[str, int]]],
        keep_streams: Callable[[], Awaitable[Sequence[str]]],
        facts: Mapping[str, Any],
        *,
        lease_s: float,
        seal_key: Callable[[str], str] = lambda _: "",
        endings: Callable[[str], Endings] = lambda _: {},
        uses: Callable[[], Mapping[str, int]] = dict,
        more: Mapping[str, Verb] | None = None,
    ) -> None:
        """Make one; it does nothing before `start`.

        Args:
            held: the messages that mailboxes hold, by subject.
            keep_streams: makes what the store lacks, and returns what of it was lost since the last call.
            facts, more: what `ping` tells besides; further calls that it answers, by their verbs.
            seal_key: the public key by which others seal for an agent.
            endings: how an agent's tasks ended while it had a canary.
            uses: by agent, a number that changes whenever tasks of it have ended.
        """
        self._ports, self._replicas = ports, replicas
        self._held, self._keep_streams, self._facts = held, keep_streams, dict(facts)
        self._subjects, self._registry, self._more = ports.subjects, registry, more or {}
        ours = (ports.queue, records, registry, ports.subjects)
        self._deployed = Deployed(*ours, lease_s=lease_s, guard=ports.guard, seal_key=seal_key)
        self._deployments = self._deployed.agents
        self._states: dict[str, AgentState] = {}
        self._endings, self._uses = endings, uses
        #: Tasks held by each agent, at the last look.
        self._held_by: dict[str, int] = {}
        #: What the autoscaler waits for.
        self.figures = LatestFigures()
        #: What was last known of each mailbox.
        self._backlogs: dict[str, Backlog] = {}
        #: When the server came back with an empty store, and which streams it had lost.
        self._losses: deque[dict[str, Any]] = deque(maxlen=LOSSES_KEPT)
        #: The latest calls by their id, so that one which is asked again is not done again.
        self._calls: OrderedDict[str, asyncio.Task[dict[str, Any]]] = OrderedDict()
        self._waker = Waker(ports, LiteTopics(ports))
        self._writing, self._log = asyncio.Lock(), get_logger("squadron.bridge")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ears: list[Subscription] = []

    @property
    def registry(self) -> Registry:
        return self._registry

    async def start(self) -> None:
        """Take up what is recorded and begin to answer."""
        await self._keep_streams()
        await self._deployed.load()
        await self._waker.start()
        self._registry.on_lapse(lambda *gone: self._spawn(self._tell_offline(*gone), "tells offline"))
        # What is recorded is declared by the upkeep, which goes on when Serve refuses or is away.
        self._spawn(self._keep_up(), "upkeep", lasting=True)
        self._spawn(self.figures.keep(self._sample, self.backlogs), "backlogs", lasting=True)
        for pattern, sink in (
            *((self._subjects.control(verb), self._hear) for verb in ("*", offering("*"))),
            (self._subjects.registry("card"), self._hear_record),
            (self._subjects.registry("deployment"), self._hear_record),
        ):
            self._ears.append(await self._ports.bus.subscribe(pattern, sink))

    def _spawn(self, work: Any, name: str, *, lasting: bool = False) -> None:
        task = spawn(work, f"bridge {name}", lasting=lasting)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Stop answering. Agents run on. May be called twice."""
        await self._waker.aclose()
        for ear in self._ears:
            await ear.aclose()
        await cancel_all(list(self._tasks))

    # --- control calls -------------------------------------------------------------------------------

    def _hear(self, note: Note) -> None:
        self._spawn(self._answer(note), f"answers {note.subject}")

    async def _answer(self, note: Note) -> None:
        verb, call_id = note.subject.split(".", 3)[-1], ""
        try:
            arguments = arguments_of(note, verb)
            call_id = str(arguments.pop("callId", ""))
            await admit(note, verb, arguments, self._ports.guard)
            answer: dict[str, Any] = {"ok": await self._once(call_id or uuid.uuid4().hex, verb, arguments)}
        except SquadronError as error:
            answer = {"error": error.to_dict()}
        except (TypeError, ValueError, RecursionError) as error:
            answer = {"error": InvalidMessageError(f"{verb}: {error}").to_dict()}
        except Exception as error:
            self._log.error("bridge.control_broke", verb=verb, traceback=traceback_of(error))
            answer = {"error": SquadronError(summary_of(error)).to_dict()}
        # What it answers is signed with it: from one account to another its subject becomes another one.
        answer |= {"verb": verb, "callId": call_id}
        if is_foreign(note.reply) and self._ports.subjects.is_outside(note.reply):
            await self._ports.bus.publish(note.reply, json.dumps(answer).encode())

    async def _once(self, call_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do a call, or wait for it if it was asked before under the same id."""
        changing = (self.deploy, self.undeploy, self.deploy_canary, self.canary, self.scale, self.redeploy)
        own = (*changing, self.status, self.ping)
        verbs: dict[str, Verb] = {each.__name__: each for each in own} | dict(self._more)
        if (verb := verb.partition(".")[0]) not in verbs:
            raise InvalidMessageError(f"{verb!r} is not a call", hint=f"one of {', '.join(verbs)}")
        by, task = str(arguments.pop("by", "")), self._calls.get(call_id)
        if task is None:
            work = on_record(self._ports, verb, arguments, by, verbs[verb](**arguments))
            task = self._calls[call_id] = asyncio.ensure_future(work)
            if len(self._calls) > CALLS_KEPT:
                self._calls.popitem(last=False)
        return await asyncio.shield(task)

    async def ping(self) -> dict[str, Any]:
        """Who answers: process id, environment, addresses, and when the server's store was lost."""
        here = {"pid": os.getpid(), "environment": self._subjects.environment, "losses": [*self._losses]}
        return here | self._facts

    async def deploy(self, deployments: list[dict[str, Any]]) -> dict[str, Any]:
        """Run agents, or change how they run; returns at once, `status` tells how it goes.

        All or none: a conflict of one leaves the others as they are.

        Raises:
            RouteConflictError: another agent serves one of the topics.
            ConfigError: a topic is only for some, and here nobody looks who asks.
            DeployError: the cluster refused them.
        """
        wanted = asked_for(deployments, canary=False)
        # Whether a topic is taken is not to be told from a copy with gaps.
        await self._registry.catch_up()
        async with self._writing:
            replaced = replaced_by(wanted, self._deployments)
            await self._put(*wanted)
        if replaced:
            self._log.info("bridge.replaced", was=replaced)
        return {"agents": {each.agent: each.code["version"] for each in wanted}, "replaced": replaced}

    async def alter(self, agent: str, change: Callable[[Deployment], Deployment | None]) -> None:
        """Deploy an agent, if it is there, as `change` makes it of how it is now: nobody else writes meanwhile."""
        await self._registry.catch_up()
        async with self._writing:
            if (wanted := change(self._find(agent))) is not None:
                await self._put(wanted)

    async def _put(self, *wanted: Deployment) -> None:
        now, cards = self._ports.clock.time(), self._registry.cards()
        await self._change(*checked(self._ports, self._deployments, wanted, cards, now))
        await self._deployed.keep_code()

    async def deploy_canary(self, deployments: list[dict[str, Any]], force: bool = False) -> dict[str, Any]:
        """Run other versions of agents beside those that serve, each with its `weight`; returns at once.

        Raises:
            ConfigError: nothing runs of an agent, or the two versions can't be beside each other.
            IncompatibleVersionError: it takes or gives something else, and is not forced.
            RouteConflictError, DeployError: as `deploy`.
        """
        wanted = asked_for(deployments, canary=True)
        await self._registry.catch_up()
        async with self._writing:
            agents = [beside(self._find(each.agent), each, force=force) for each in wanted]
            for each in wanted:
                check_deployable(self._ports, each, self._registry.cards())
            await self._change(*agents)
            await self._deployed.keep_code()
        return {"agents": {each.agent: each.code["version"] for each in wanted}}

    async def canary(self, agent: str, to: str) -> dict[str, Any]:
        """Give a canary another share of the tasks (`to` in percent), `promote` it, or `abort` it."""
        await self._registry.catch_up()
        async with self._writing:
            changed = with_canary(self._find(agent), to, self._ports.clock.time())
            check_deployable(self._ports, changed, self._registry.cards())
            await self._change(changed)
            await self._deployed.keep_code()
        return {"agent": agent, "version": changed.versions[-1].code["version"]}

    async def _change(self, *wanted: Deployment) -> None:
        """All or none: if anything fails, mailboxes, records and cards are made what they were.

        Journal before mailboxes and cluster: what there is of an agent is known to the next bridge.
        """
        before = {each.agent: self._deployments.get(each.agent) for each in wanted}
        self._deployments.update({each.agent: each for each in wanted})
        try:
            await self._deployed.write_all("deployment", before)
            await self._deployed.write_all("mailbox", before)
            await self._replicas.apply(list(self._deployments.values()))
            await self._deployed.write_all("card", before)
        except BaseException:
            for agent, was in before.items():
                self._deployments.pop(agent)
                if was is not None:
                    self._deployments[agent] = was
            # Backwards: a topic that went from one to the next can only come back this way. What the cluster was
            # told is found by the upkeep, and so is what can't be written now.
            for kind in ("mailbox", "deployment", "card"):
                self._deployed.note(kind, *reversed(before))
            with contextlib.suppress(SquadronError):
                await self._deployed.put_right()
            raise

    async def undeploy(self, agent: str) -> dict[str, Any]:
        """Stop an agent after its running turns; what waits in its mailbox is kept for its return."""
        async with self._writing:
            was = self._find(agent)
            del self._deployments[agent]
            self._deployed.leaving.add(agent)
            try:
                # First of all that its mailbox is to go: without its record nobody would know of that.
                await self._deployed.try_to_write("leaving", agent)
                await self._deployed.write("deployment", agent)
            except BaseException:
                self._deployments[agent] = was
                self._deployed.leaving.discard(agent)
                # It may have gone all the same.
                self._deployed.note("deployment", agent)
                self._deployed.note("leaving", agent)
                raise
            await self._deployed.try_to_write("card", agent)
            await self._replicas.apply(list(self._deployments.values()))
        return {"agent": agent}

    def _find(self, agent: str) -> Deployment:
        if (deployment := self._deployments.get(agent)) is None:
            raise not_deployed(agent, self._deployments)
        return deployment

    async def scale(self, agent: str, to: str) -> dict[str, Any]:
        """Set an agent's replicas to `N`, `MIN..MAX` or `auto`; in place, no replica is restarted for it."""
        async with self._writing:
            deployment = self._find(agent)
            scale = Scale.parse(to, deployment.bounds)
            capacity = await self._replicas.capacity()
            if scale.minimum > capacity:
                raise ConfigError(
                    f"{scale.minimum} replicas of {agent} are more than the cluster has memory for",
                    hint=f"it holds about {capacity}; add nodes first",
                )
            await self._change(deployment.model_copy(update={"scale": scale}))
        return {"agent": agent, "scale": str(scale)}

    async def redeploy(self, agent: str) -> dict[str, Any]:
        """Start all replicas of an agent anew, with the same code; running turns end on the old ones first."""
        async with self._writing:
            generation = (deployment := self._find(agent)).generation + 1
            await self._change(deployment.model_copy(update={"generation": generation}))
        return {"agent": agent, "generation": generation}

    async def status(self) -> dict[str, Any]:
        """Everything a person wants to see: agents, replicas, backlogs, addresses."""
        return {**await self.ping(), "agents": await self.agents()}

    async def agents(self, *, asks_all: bool = True) -> list[dict[str, Any]]:
        """How each agent is doing; unless it `asks_all`, what the last sample saw empty counts as empty."""
        self._states = await self._replicas.states(list(self._deployments.values()))
        held = self._held_by if self.figures.known and not asks_all else {}
        empty = {name for name, count in held.items() if not count} - self._waker.parked().keys()
        return [await self._describe(each, name in empty) for name, each in sorted(self._deployments.items())]

    async def _describe(self, each: Deployment, is_empty: bool) -> dict[str, Any]:
        # Of what stands in line in order a sample sees only the heads.
        known = Backlog() if is_empty and not each.ordered_by else await self._backlog(each.agent)
        return described(each, self._states, known, self._registry, self._endings(each.agent))

    async def _backlog(self, name: str) -> Backlog | None:
        try:
            self._backlogs[name] = await self._ports.queue.backlog(name)
        except SquadronError as error:
            # JetStream has no leader, say: what was last known is told, and not that there is nothing.
            self._log.info("bridge.no_backlog", agent=name, error=str(error))
        return self._backlogs.get(name)

    # --- upkeep --------------------------------------------------------------------------------------

    def backlogs(self) -> dict[str, dict[str, int | None]]:
        """For the autoscaler: tasks held per application, None if not known, and a pinned number of replicas."""
        return self.figures.made_of(self._deployments, self._held_by, self._uses())

    async def _sample(self) -> None:
        self._held_by = runnable(await self._held(), self._deployments, self._waker.parked())

    async def _keep_up(self) -> None:
        """Keep what runs as it is recorded, stand in for agents at zero, and tell when a replica fell silent."""
        due = 0
        for number in itertools.count():
            try:
                await self._look_after_streams()
                if number >= due:
                    await self._reconcile()
                    due = number + len(self._deployments) // LOOKED_AT
                await self._deployed.stand_in(self._states)
            except Exception as error:
                # The bus or the controller is away for a moment; the next round finds out what changed.
                self._log.warning("bridge.upkeep", error=summary_of(error))
            await asyncio.sleep(min(1.0, self._registry.heartbeat_s))

    async def _look_after_streams(self) -> None:
        """After the server came back without its store, all that this process still knows is written anew."""
        async with self._writing:
            if lost := await self._keep_streams():
                loss = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "streams": list(lost)}
                self._losses.append(loss)
                self._log.error("bridge.store_lost", **loss)
                self._deployed.note_all()
                await self._tell("status.store_lost", {"event": "store_lost", **loss})
            await self._deployed.put_right()

    def _hear_record(self, note: Note) -> None:
        kind, agent = note.subject.split(".")[3:5]
        self._deployed.overwritten(kind, agent, note.data)

    async def _reconcile(self) -> None:
        """Declare anew what the cluster was told otherwise, but for scales that were set at its own door."""
        async with self._writing:
            self._states = await self._replicas.states(list(self._deployments.values()))
            await self._deployed.take_over(self._states)
            declared = {name for name, state in self._states.items() if state.status != "DELETING"}
            wanted = {each.known_as for agent in self._deployments.values() for each in agent.versions}
            if declared != wanted or any(state.drifted for state in self._states.values()):
                await self._replicas.apply(list(self._deployments.values()))
            for name in [
                each for each in self._deployed.leaving if not {each, CANARY + each} & self._states.keys()
            ]:
                if name not in self._deployments:
                    if self._registry.replicas(name):
                        continue  # it finishes what runs, in a process that others share
                    await self._ports.queue.remove(name)
                self._deployed.leaving.discard(name)
                await self._deployed.write("leaving", name)

    async def _tell_offline(self, agent: str, replica: str) -> None:
        content = {"event": "agent_offline", "agent": agent, "replica": replica, "reason": "heartbeat lapsed"}
        await self._tell("status.offline", content)

    async def _tell(self, event: str, content: dict[str, Any]) -> None:
        told = self._ports.pack("event", {"content": content}, conversation_id="system")
        await self._ports.bus.publish(self._subjects.event(event), told)

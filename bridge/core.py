"""What the bridge does, on ports alone: keeps deployments, mailboxes and presence, and answers control calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
from pydantic import ValidationError

from squadron.runtime.background import spawn
from squadron.runtime.caller import Caller
from squadron.runtime.deployment import AgentState, Deployment, Scale
from squadron.runtime.envelope import AgentMessage
from squadron.runtime.errors import (
    ConfigError,
    DeployError,
    InvalidMessageError,
    InvalidSubjectError,
    RouteConflictError,
    SquadronError,
)
from squadron.runtime.ports import Journal, Mailbox, Note, Queue, Replicas, Subscription
from squadron.runtime.registry import STAND_IN, Registry
from squadron.runtime.subjects import (
    TaskSubject,
    TicketSubject,
    check_token,
    is_foreign,
    matches,
    overlap,
)

#: How often backlogs are sampled for the autoscaler, in seconds: Serve's control loop ticks every 0.1 s, and
#: a sample is one API call whatever the number of agents.
SAMPLE_S = 0.25

#: How many calls are remembered by their id; a client asks again within seconds.
CALLS_KEPT = 256

#: Serve's words for an agent that takes tasks, or soon will.
_ALIVE = frozenset({"RUNNING", "DEPLOYING", "UPDATING", "NOT_STARTED", "AUTOSCALING", "HEALTHY"})


async def _awaited(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return await work


class Bridge:
    """The one writer of an environment's deployments. All its state is in the journal: a restart loses nothing.

    Open with `start`; it then answers the control verbs deploy, undeploy, scale, status and ping.
    """

    def __init__(
        self,
        caller: Caller,
        queue: Queue,
        records: Journal,
        replicas: Replicas,
        held: Callable[[], Awaitable[Mapping[str, int]]],
        facts: Mapping[str, Any],
        *,
        lease_s: float,
    ) -> None:
        self._caller, self._queue, self._records, self._replicas = caller, queue, records, replicas
        self._held, self._facts, self._lease_s = held, dict(facts), lease_s
        self._subjects, self._registry = caller.subjects, caller.registry
        self._deployments: dict[str, Deployment] = {}
        self._states: dict[str, AgentState] = {}
        self._backlogs: dict[str, int] = {}
        #: Undeployed agents whose replicas may still finish turns: until then they need their mailbox.
        self._leaving: set[str] = set()
        #: The latest calls by their id, so that one which is asked again is not done again.
        self._calls: OrderedDict[str, asyncio.Task[dict[str, Any]]] = OrderedDict()
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ears: list[Subscription] = []
        #: Records that are not as this bridge wrote them: kind and agent.
        self._overwritten: set[tuple[str, str]] = set()
        self._log = structlog.get_logger("squadron.bridge")

    @property
    def registry(self) -> Registry:
        return self._registry

    async def start(self) -> None:
        """Take up what is recorded and begin to answer."""
        for entry in await self._records.latest(self._subjects.registry("deployment")):
            if entry.data:
                try:
                    deployment = Deployment.model_validate_json(entry.data)
                except (ValidationError, InvalidSubjectError) as error:
                    self._log.error("bridge.bad_record", key=entry.key, error=str(error))
                    continue
                self._deployments[deployment.agent] = deployment
        for entry in await self._records.latest(self._subjects.registry("leaving")):
            with contextlib.suppress(InvalidSubjectError):
                self._leaving.add(check_token(entry.key.rsplit(".", 1)[-1], "agent"))
        for deployment in list(self._deployments.values()):
            try:
                await self._queue.declare(self._mailbox(deployment))
            except RouteConflictError as error:
                # Not written by a bridge: the others must come up all the same.
                self._log.error("bridge.bad_record", key=deployment.agent, error=str(error))
                del self._deployments[deployment.agent]
                continue
            await self._registry.advertise(deployment.card)
        self._registry.on_lapse(lambda *gone: self._spawn(self._tell_offline(*gone), "tells offline"))
        # What is recorded is declared by the upkeep, which goes on when Serve refuses or is away.
        self._spawn(self._keep_up(), "upkeep", lasting=True)
        self._spawn(self._keep_sampling(), "backlogs", lasting=True)
        for pattern, sink in (
            (self._subjects.control("*"), self._hear),
            (self._subjects.registry("card"), self._hear_record),
            (self._subjects.registry("deployment"), self._hear_record),
        ):
            self._ears.append(await self._caller.bus.subscribe(pattern, sink))

    def _spawn(self, work: Any, name: str, *, lasting: bool = False) -> None:
        task = spawn(work, f"bridge {name}", lasting=lasting)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Stop answering. Agents run on. May be called twice."""
        for ear in self._ears:
            await ear.aclose()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- control calls -------------------------------------------------------------------------------

    def _hear(self, note: Note) -> None:
        self._spawn(self._answer(note), f"answers {note.subject}")

    async def _answer(self, note: Note) -> None:
        verb = note.subject.rsplit(".", 1)[-1]
        try:
            arguments = json.loads(note.data or b"{}")
            if not isinstance(arguments, dict):
                raise InvalidMessageError(f"{verb}: not a JSON object")
            answer = {"ok": await self._once(arguments.pop("callId", uuid.uuid4().hex), verb, arguments)}
        except SquadronError as error:
            answer = {"error": error.to_dict()}
        except (TypeError, ValueError, RecursionError) as error:
            answer = {"error": InvalidMessageError(f"{verb}: {error}").to_dict()}
        except Exception as error:
            self._log.exception("bridge.control_broke", verb=verb)
            answer = {"error": SquadronError(f"{type(error).__name__}: {error}").to_dict()}
        if is_foreign(note.reply):
            await self._caller.bus.publish(note.reply, json.dumps(answer).encode())

    async def _once(self, call_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do a call, or wait for it if it was asked before under the same id."""
        verbs: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "deploy": self.deploy,
            "undeploy": self.undeploy,
            "scale": self.scale,
            "status": self.status,
            "ping": self.ping,
        }
        if verb not in verbs:
            raise InvalidMessageError(f"{verb!r} is not a call", hint=f"one of {', '.join(verbs)}")
        task = self._calls.get(call_id)
        if task is None:
            task = self._calls[call_id] = asyncio.ensure_future(_awaited(verbs[verb](**arguments)))
            if len(self._calls) > CALLS_KEPT:
                self._calls.popitem(last=False)
        return await asyncio.shield(task)

    async def ping(self) -> dict[str, Any]:
        """Who answers: process id, environment, addresses."""
        return {"pid": os.getpid(), "environment": self._subjects.environment, **self._facts}

    async def deploy(self, deployments: list[dict[str, Any]]) -> dict[str, Any]:
        """Run agents, or change how they run; returns at once, `status` tells how it goes.

        All or none: a conflict of one leaves the others as they are.

        Raises:
            RouteConflictError: another agent serves one of the topics.
            DeployError: the cluster refused them.
        """
        wanted = [Deployment.model_validate(each) for each in deployments]
        # Whether a topic is taken is not to be told from a copy with gaps.
        await self._registry.catch_up()
        async with self._writing:
            for i, each in enumerate(wanted):
                before = self._deployments.get(each.agent)
                if before is not None and before.scale != before.bounds:
                    # Somebody set the scale by hand; new code does not undo that.
                    wanted[i] = each.model_copy(update={"scale": before.scale})
                self._check_routes(each, wanted[:i])
            for each in wanted:
                await self._queue.declare(self._mailbox(each))
            await self._write(*wanted)
            for each in wanted:
                await self._registry.advertise(each.card)
                await self._registry.renew(each.agent, STAND_IN)
        return {"agents": {each.agent: each.code["version"] for each in wanted}}

    def _mailbox(self, deployment: Deployment) -> Mailbox:
        ordered = deployment.ordered_by != ""
        return Mailbox(deployment.agent, deployment.patterns, self._lease_s, ordered=ordered)

    def _check_routes(self, wanted: Deployment, others: Sequence[Deployment]) -> None:
        cards = [*self._registry.cards(), *(other.card for other in others)]
        for card in cards:
            if card.agent == wanted.agent:
                continue
            for mine in wanted.patterns:
                for theirs in card.topics:
                    if overlap(mine, theirs.name):
                        raise RouteConflictError(
                            f"{mine!r} of {wanted.agent} overlaps {theirs.name!r} of {card.agent}",
                            hint=f"undeploy {card.agent}, or name the topics apart",
                        )

    async def _write(self, *deployments: Deployment) -> None:
        """Journal first: what was acknowledged is taken up again by the next bridge."""
        before = dict(self._deployments)
        for each in deployments:
            await self._record(each.agent, each)
        try:
            await self._replicas.apply(list(self._deployments.values()))
        except DeployError:
            for each in deployments:
                await self._record(each.agent, before.get(each.agent))
            raise

    async def _record(self, agent: str, deployment: Deployment | None) -> None:
        key = self._subjects.record("deployment", agent)
        if deployment is None:
            await self._records.erase(key)
            self._deployments.pop(agent, None)
        else:
            await self._records.append(key, deployment.model_dump_json().encode())
            self._deployments[agent] = deployment

    async def undeploy(self, agent: str) -> dict[str, Any]:
        """Stop an agent after its running turns; what waits in its mailbox is kept for its return."""
        async with self._writing:
            if agent not in self._deployments:
                raise ConfigError(f"no agent {agent!r} is deployed", hint=self._known())
            await self._records.append(self._subjects.record("leaving", agent), b"{}")
            self._leaving.add(agent)
            await self._record(agent, None)
            await self._registry.withdraw(agent)
            await self._registry.depart(agent, STAND_IN)
            await self._replicas.apply(list(self._deployments.values()))
        return {"agent": agent}

    def _known(self) -> str:
        names = ", ".join(sorted(self._deployments))
        return f"deployed are {names}" if names else "nothing is deployed"

    async def scale(self, agent: str, to: str) -> dict[str, Any]:
        """Set an agent's replicas to `N`, `MIN..MAX` or `auto`; in place, no replica is restarted for it."""
        async with self._writing:
            deployment = self._deployments.get(agent)
            if deployment is None:
                raise ConfigError(f"no agent {agent!r} is deployed", hint=self._known())
            scale = Scale.parse(to, deployment.bounds)
            capacity = await self._replicas.capacity()
            if scale.minimum > capacity:
                raise ConfigError(
                    f"{scale.minimum} replicas of {agent} are more than the cluster has memory for",
                    hint=f"it holds about {capacity}; add nodes first",
                )
            await self._write(deployment.model_copy(update={"scale": scale}))
        return {"agent": agent, "scale": str(scale)}

    async def status(self) -> dict[str, Any]:
        """Everything a person wants to see: agents, replicas, backlogs, addresses."""
        self._states = await self._replicas.states()
        agents = [await self._describe(each) for _, each in sorted(self._deployments.items())]
        return {**await self.ping(), "agents": agents}

    async def _describe(self, deployment: Deployment) -> dict[str, Any]:
        state = self._states.get(deployment.agent, AgentState(status="NOT_STARTED"))
        backlog = await self._queue.backlog(deployment.agent)
        present = self._registry.replicas(deployment.agent)
        return {
            "agent": deployment.agent,
            "topics": list(deployment.patterns),
            "status": state.status,
            "message": state.message,
            "running": state.running,
            "target": state.target,
            "scale": str(deployment.scale),
            "slots": deployment.slots,
            "version": deployment.code["version"],
            "waiting": backlog.waiting,
            "taken": backlog.taken,
            "replicas": [{"id": name, **it.model_dump()} for name, it in present.items()],
        }

    # --- upkeep --------------------------------------------------------------------------------------

    def backlogs(self) -> dict[str, dict[str, int | None]]:
        """For the autoscaler: tasks held per agent, and the pinned number of replicas if there is one."""
        return {
            name: {
                "held": self._backlogs.get(name, 0),
                "pinned": each.scale.minimum if each.scale.pinned else None,
            }
            for name, each in self._deployments.items()
        }

    async def _keep_sampling(self) -> None:
        while True:
            try:
                held = await self._held()
            except SquadronError as error:
                self._log.info("bridge.no_sample", error=str(error))
            else:
                counts: dict[str, int] = dict.fromkeys(self._deployments, 0)
                for subject, count in held.items():
                    for name in self._served_by(subject):
                        counts[name] += count
                self._backlogs = counts
            await asyncio.sleep(SAMPLE_S)

    def _served_by(self, subject: str) -> list[str]:
        if subject.split(".")[2] == "ticket":
            # Of a conversation in order only the head can be run, however many stand in line behind it.
            name = TicketSubject.parse(subject).mailbox
            return [name] if name in self._deployments else []
        try:
            topic = TaskSubject.parse(subject).topic
        except InvalidSubjectError:
            return []
        return [
            name
            for name, each in self._deployments.items()
            if any(matches(pattern, topic) for pattern in each.patterns)
        ]

    async def _keep_up(self) -> None:
        """Keep what runs as it is recorded, stand in for agents at zero, and tell when a replica fell silent."""
        while True:
            try:
                self._states = await self._replicas.states()
                await self._reconcile()
                await self._rewrite()
                for name in list(self._deployments):
                    if self._states.get(name, AgentState(status="")).status in _ALIVE:
                        await self._registry.renew(name, STAND_IN)
            except Exception as error:
                # The bus or the controller is away for a moment; the next round finds out what changed.
                self._log.warning("bridge.upkeep", error=str(error))
            await asyncio.sleep(min(1.0, self._registry.heartbeat_s))

    def _hear_record(self, note: Note) -> None:
        kind, agent = note.subject.split(".")[3:5]
        deployment = self._deployments.get(agent)
        if deployment is not None:
            ours = deployment if kind == "deployment" else deployment.card
            if note.data != ours.model_dump_json().encode():
                self._overwritten.add((kind, agent))

    async def _rewrite(self) -> None:
        """Put right what somebody else wrote over: the next bridge and whoever comes later read it."""
        async with self._writing:
            while self._overwritten:
                kind, agent = self._overwritten.pop()
                deployment = self._deployments.get(agent)
                if deployment is not None and kind == "deployment":
                    await self._record(agent, deployment)
                elif deployment is not None:
                    await self._registry.advertise(deployment.card)

    async def _reconcile(self) -> None:
        async with self._writing:
            declared = {name for name, state in self._states.items() if state.status != "DELETING"}
            if declared != self._deployments.keys():
                await self._replicas.apply(list(self._deployments.values()))
            for name in self._leaving - self._states.keys():
                if name not in self._deployments:
                    await self._queue.remove(name)
                await self._records.erase(self._subjects.record("leaving", name))
                self._leaving.discard(name)

    async def _tell_offline(self, agent: str, replica: str) -> None:
        content = {"event": "agent_offline", "agent": agent, "replica": replica, "reason": "heartbeat lapsed"}
        message = AgentMessage.new("event", self._caller.identity, content, conversation_id="system")
        await self._caller.bus.publish(self._subjects.event("status.offline"), message.encode())

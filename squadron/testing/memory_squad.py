"""A squad in memory: the real codec and the real rules, and no server."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import structlog

from squadron.actors.agent import Agent, AgentSpec, specs_of
from squadron.actors.thinking.model import Model
from squadron.actors.thinking.thinker import Thinker
from squadron.bridge.host import Host
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.client.talking import Talking
from squadron.config import Settings
from squadron.runtime.errors import DeployError, InvalidAgentError, SquadClosedError
from squadron.runtime.retries import summary_of
from squadron.runtime.running.parking import Waker
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.testing.misuse import NotServedError
from squadron.testing.people_script import PeopleScript
from squadron.testing.script import Script, ScriptSpec
from squadron.testing.turned import turned_time


@dataclass
class _Deployed:
    """One agent: what makes its replicas, and those that run."""

    spec: AgentSpec
    makers: list[Callable[[], Agent]]
    hosts: list[Host] = field(default_factory=list)

    async def stop(self, grace_s: float | None = None) -> None:
        """Have all replicas finish what runs, within the agent's own time if none is given."""
        async with contextlib.AsyncExitStack() as rest:
            for host in self.hosts:
                rest.push_async_callback(host.place.aclose)
                rest.push_async_callback(host.stop, self.spec.agent_class.grace_s if grace_s is None else grace_s)


class MemorySquad(Talking):
    """A squad for tests: it talks as `Squad` does, and agents run here, over a server in memory.

        async with MemorySquad() as squad:
            await squad.deploy(Analyst)
            outcome = await squad.ask("analysis.sentiment", {"text": "I love it"})

    What is sent goes through the same bytes, leases, retries and dead letters as over NATS. The clock is turned:
    when nothing else is left to do, time goes to the next timer, so that nobody waits for a retry or a lease.

    Args:
        turned: False for a clock that waits, as handlers need that talk to something outside.
        settings: fields of `Settings`; `env` is "test" and `model` "offline" by default.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(self, *, turned: bool = True, **settings: Any) -> None:
        # Nothing of the environment decides how a test ends.
        chosen = Settings.load({}, **{"env": "test", "model": "offline", **settings})
        self._server = MemoryServer(chosen.env)
        self._own = self._server.place(AgentIdentity(id="tester", type="client"), chosen)
        super().__init__(self._own)
        self._turned, self._open = turned, contextlib.AsyncExitStack()
        self._is_open = False
        self._agents: dict[str, _Deployed] = {}
        self._numbers = itertools.count(1)

    @property
    def _wiring(self) -> Place:
        if self._closed or not self._is_open:
            said = f"the squad is {'closed' if self._closed else 'not open'}"
            raise SquadClosedError(said, hint="async with MemorySquad() as squad: …")
        return self._place

    # --- opening and closing -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._is_open or self._closed:
            raise SquadClosedError("a squad is opened once", hint="make another: MemorySquad()")
        if self._turned:
            self._open.enter_context(turned_time())
        if not structlog.is_configured():
            # Else every replica that starts is told on standard output. Afterwards all is as it was.
            self._open.callback(structlog.reset_defaults)
            structlog.configure(
                wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
                logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            )
        await self._own.start()
        waker = Waker(self._own.ports, self._own.caller.lite_topics)
        await waker.start()
        self._open.push_async_callback(waker.aclose)
        self._is_open = True
        return self

    async def aclose(self) -> None:
        """End everything; what the server held is gone. May be called twice."""
        if self._closed:
            return
        # Whoever leaves says farewell.
        self._server.heal()
        self._closed = True
        async with self._open as rest:
            rest.push_async_callback(self._own.aclose)
            for heard in list(self._heard):
                rest.push_async_callback(heard.aclose)
            for each in self._agents.values():
                rest.push_async_callback(each.stop, 0.0)

    # --- agents --------------------------------------------------------------------------------------

    async def deploy(self, *agents: type[Agent] | Agent, replicas: int = 1, model: Model | None = None) -> None:
        """Run agents here; each takes tasks when this returns. The same name again replaces what runs.

        Args:
            agents: classes, or instances, of which each is one replica.
            replicas: how many of each class.
            model: what they think with, whatever a task names: a `ScriptedModel`, for example. It is the same for
                all of them, and stays open.

        Raises:
            InvalidAgentError: a class can't be served, two have one name, or one that does not think is given a
                model; says what to change.
            RouteConflictError: another agent serves one of the topics.
            DeployError: `on_start` of an agent raised.
        """
        kinds = [each if isinstance(each, type) else type(each) for each in agents]
        wanted = {kind: _Deployed(spec, []) for kind, spec in specs_of(kinds).items()}
        for each, kind in zip(agents, kinds, strict=True):
            if replicas < 1 or (replicas > 1 and each is not kind):
                what = "a class" if each is kind else "one instance"
                raise InvalidAgentError(
                    f"{wanted[kind].spec.name}: {replicas} replicas of {what}",
                    hint="deploy the class, or an instance for each replica",
                )
            if model is not None and not issubclass(kind, Thinker):
                raise InvalidAgentError(
                    f"{wanted[kind].spec.name} does not think with a model",
                    hint="give a model to LLMAgents and Supervisors, and deploy others apart",
                )
            makers = [kind] * replicas if isinstance(each, type) else [partial(_itself, each)]
            wanted[kind].makers += [partial(_thinking, maker, model) for maker in makers]
        await self._run(*wanted.values())

    async def script(self, topic: str, *replies: Any, description: str = "") -> Script:
        """Serve a topic with replies, each given once, in order. The same topic again replaces the script.

        A task beyond the last reply fails, and says so. See `Script.asked` for what was asked.

        Args:
            replies: data; an `Answer`; an exception, which is raised as in a handler, so that the next attempt
                gets the next reply; `Failed(reason=…)`; or a function, sync or async, that makes any of these of
                the content.
            description: what the topic is good for, for those who discover it.

        Raises:
            InvalidSubjectError: the topic breaks the grammar.
            RouteConflictError: an agent serves it.
            ScriptError: no handler can reply that.
        """
        script = Script(topic, replies, description)
        spec = ScriptSpec.playing(script)
        await self._run(_Deployed(spec, [spec.agent_class]))
        return script

    def people(self, *replies: Any) -> PeopleScript:
        """Have people answer what agents ask them, each reply once, in order; what was asked is in `asked`.

        Args:
            replies: the fields of the question, or the bare value of the only one, as `answer` takes them, None
                for a yes; a `Reply`, as `Reply("decline", {"reason": "too dear"})`; or a function that makes any
                of these of the question.
        """
        _ = self._wiring
        people = PeopleScript(self.follow_questions(), self.answer, replies)
        self._open.push_async_callback(people.aclose)
        return people

    async def _run(self, *wanted: _Deployed) -> None:
        place = self._wiring
        made: list[list[Host]] = []
        for each in wanted:
            try:
                made.append([self._host(each.spec, make()) for make in each.makers])
            except Exception as error:
                raise DeployError(f"{each.spec.name} can't be made: {summary_of(error)}") from error
            await place.ports.queue.declare(made[-1][0].mailbox)
        for each, hosts in zip(wanted, made, strict=True):
            before = self._agents.get(each.spec.name)
            self._agents[each.spec.name] = each
            if before is not None:
                await before.stop()
            seal_key = str(self._server.ring_of(each.spec.name).public)
            await place.registry.advertise(each.spec.card().with_key(seal_key))
            for host in hosts:
                try:
                    await host.place.start()
                    await host.start()
                except Exception as error:
                    await host.place.aclose()
                    raise DeployError(f"{each.spec.name} could not start: {summary_of(error)}") from error
                each.hosts.append(host)
        # What follows here counts on it.
        await place.registry.refresh(math.inf)

    def _host(self, spec: AgentSpec, agent: Agent) -> Host:
        identity, kind = AgentIdentity(id=f"{spec.name}-{next(self._numbers)}", type=spec.name), spec.agent_class
        place = self._server.place(identity, self.settings, principal=spec.name)
        return Host(place, agent, spec, slots=kind.slots, ordered=kind.ordered_by != "")

    async def undeploy(self, agent: type[Agent] | str) -> None:
        """Stop an agent after its running turns; what waits in its mailbox is kept for its return.

        Raises:
            NotServedError: no such agent runs here.
        """
        gone = self._find(agent)
        del self._agents[gone.spec.name]
        await gone.stop()
        await self._wiring.registry.withdraw(gone.spec.name)
        await self._wiring.ports.queue.remove(gone.spec.name)

    async def kill(self, agent: Agent | type[Agent] | str) -> str:
        """Have one replica of an agent die on the spot, as by SIGKILL; returns its name.

        It settles nothing, stores nothing and says no farewell: what it worked on is delivered again when its
        lease has lapsed, to whoever runs then. Nobody starts another in its place but `deploy`.

        Args:
            agent: the instance that was deployed, or a class or name, of which the oldest replica dies.

        Raises:
            NotServedError: none runs here.
        """
        found = self._find(type(agent) if isinstance(agent, Agent) else agent)
        host = next((each for each in found.hosts if not isinstance(agent, Agent) or each.agent is agent), None)
        if host is None:
            raise NotServedError(
                f"no such replica of {found.spec.name!r} is left", hint="deploy it with replicas=2"
            )
        found.hosts.remove(host)
        # From here on nobody hears what it says.
        await host.place.disconnect()
        await host.halt(0.0)
        await host.place.aclose()
        return host.id

    def _find(self, agent: type[Agent] | str) -> _Deployed:
        name = agent if isinstance(agent, str) else AgentSpec.of(agent).name
        if name not in self._agents:
            raise NotServedError(
                f"no agent {name!r} is deployed", hint=f"there is {', '.join(sorted(self._agents)) or 'none'}"
            )
        return self._agents[name]

    # --- what breaks ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut the bus: until `heal` nobody hears anything, and what needs the server waits or raises."""
        _ = self._wiring
        self._server.cut()

    def heal(self) -> None:
        """Connect everybody again: what was missed is read, and what was not settled is delivered again."""
        _ = self._wiring
        self._server.heal()


def _itself(agent: Agent) -> Agent:
    return agent


def _thinking(make: Callable[[], Agent], model: Model | None) -> Agent:
    agent = make()
    if model is not None and isinstance(agent, Thinker):
        agent.given_model = model
    return agent

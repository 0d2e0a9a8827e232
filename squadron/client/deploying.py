"""The half of a squad that runs agents: deploy, scale, look, drain."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from squadron.actors.thinking.credentials import remember_keys
from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.place import Place
from squadron.client.talking import Talking
from squadron.runtime.errors import ConfigError, DeployError
from squadron.runtime.html_table import table
from squadron.runtime.logs import get_logger
from squadron.runtime.wire.canary_share import check_share

if TYPE_CHECKING:
    from squadron.actors.agent import Agent, AgentSpec
    from squadron.client.declared import Change, DeclaredSquad
    from squadron.runtime.wire.deployment import Deployment

#: How long a deploy may take, in seconds: on 2 cores a replica needs 1 to 3 s, a cold import more.
DEPLOY_WITHIN_S = 120.0
_log = get_logger("squadron.squad")

#: A deploy is looked after at this step, in seconds.
_DEPLOY_LOOK_S = 0.2


class Fleet(Talking):
    """The agents of one environment, through its bridge."""

    def __init__(self, wiring: Place) -> None:
        super().__init__(wiring)
        self._deployed: set[str] = set()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._place.registry.cards())} agents"
        return f"<squad of environment {self.settings.env!r}: {state}>"

    def _repr_html_(self) -> str:
        if self._closed or not (cards := self._place.registry.cards()):
            return f"<p>{escape(repr(self))}</p>"
        rows = [
            (
                card.agent,
                len(self._place.registry.replicas(card.agent)),
                "\n".join(each.name for each in card.topics),
            )
            for card in sorted(cards, key=lambda card: card.agent)
        ]
        return f"<p>{escape(repr(self))}</p>{table(('agent', 'replicas', 'topics'), rows)}"

    @property
    def _control(self) -> Control:
        return Control(self._wiring.ports.bus, self._wiring.ports.subjects, self._wiring.ports.guard)

    async def deploy(
        self,
        *agents: type[Agent] | str,
        canary: int | None = None,
        force: bool = False,
        group: str | None = None,
        within_s: float = DEPLOY_WITHIN_S,
        on_progress: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> None:
        """Run agents, and wait until they take tasks; the same name again replaces the code in place.

        Args:
            agents: classes, or import paths `module:Class`.
            canary: run them beside those that serve, with this share of the tasks in percent: a conversation stays
                with one of both. See `canary` for how it goes on.
            force: a canary may take or give something else than callers know.
            group: have them share processes with the other agents of that group, instead of where their classes
                say; empty has each in processes of its own. Of a canary it is that of what serves.
            within_s: how long to wait for all of them, in seconds.
            on_progress: called with the agents' status while waiting.

        Raises:
            InvalidAgentError: a class can't be served, or not in that group, or two have one name; says what to
                change.
            RouteConflictError: another agent serves one of the topics.
            DeployError: a replica could not start, or not in time; carries the reason.
            ConfigError: the two versions can't be beside each other, or a canary is given a group.
            InvalidShareError: `canary` is no share.
            IncompatibleVersionError: a canary takes or gives something else; says what.
        """
        from squadron.actors.agent import specs_of
        from squadron.bridge.packing import code

        classes = [code.load_agent(each) if isinstance(each, str) else each for each in agents]
        weight = None if canary is None else check_share(canary, "canary")
        if weight is not None and group is not None:
            hint = "deploy it with its group once it serves"
            raise ConfigError("a canary goes into the group of what serves, once it is promoted", hint=hint)
        wanted = [await self._pack(each, group) for each in specs_of(classes).values()]
        wanted = [each.model_copy(update={"weight": weight}) for each in wanted]
        await self._run(wanted, within_s, on_progress, force=force)

    async def _run(
        self,
        deployments: Sequence[Deployment],
        within_s: float,
        on_progress: Callable[[list[dict[str, Any]]], None] | None,
        *,
        force: bool = False,
    ) -> None:
        """Run these, each by itself or as a canary; together if they are all the one or the other."""
        _check(deployments)
        # Before the answer, which need not reach whoever is interrupted.
        self._deployed.update(each.agent for each in deployments)
        for verb, how in (("deploy", {}), ("deploy_canary", {"force": force})):
            is_canary = verb == "deploy_canary"
            some = [each for each in deployments if (each.weight is not None) == is_canary]
            if some:
                asked = [each.model_dump(mode="json") for each in some]
                answer = await self._control.call(verb, deployments=asked, **how)
                for agent, was in answer.get("replaced", {}).items():
                    # Names are the whole squad's: it may be somebody else's agent.
                    _log.warning("squad.replaced", agent=agent, was=was)
                await self._await_running(answer["agents"], within_s, on_progress, canary=is_canary)

    async def canary(self, agent: str, to: int | Literal["promote", "abort"], *, wait: bool = True) -> None:
        """Give an agent's canary another share of the tasks, have it serve instead, or have it gone.

        What it works on it finishes, and what it has not begun is done by whoever serves then: no task is lost.
        One that is promoted goes when its code runs in the place of what served.

        Args:
            to: the share in percent, `promote` or `abort`.
            wait: until a version that is promoted serves alone.

        Raises:
            ConfigError: the agent has no canary, or it serves already.
            InvalidShareError: that is no share.
            DeployError: a replica of the promoted version could not start, or not in time.
        """
        wish = to if to in ("promote", "abort") else str(check_share(to, "to"))
        answer = await self._control.call("canary", agent=agent, to=wish)
        if to == "promote" and wait:
            await self._await_running({agent: str(answer["version"])}, DEPLOY_WITHIN_S, None)

    async def apply(
        self,
        declared: DeclaredSquad | str | Path,
        *,
        prune: bool = False,
        dry_run: bool = False,
        within_s: float = DEPLOY_WITHIN_S,
        on_progress: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> list[Change]:
        """Make what runs as a file declares it; returns what was changed. Applied again, it changes nothing.

        Args:
            declared: the file, or what was read of it.
            prune: undeploy what it does not name.
            dry_run: only tell what would be changed.
            within_s: how long to wait for all that is new, in seconds.
            on_progress: called with the agents' status while waiting.

        Raises:
            ConfigError: the file is wrong, or for another environment; says where.
            InvalidAgentError, RouteConflictError, DeployError, IncompatibleVersionError: as `deploy`.
        """
        from squadron.bridge.packing import code
        from squadron.client.declared import DeclaredSquad, beside, changes_of

        if not isinstance(declared, DeclaredSquad):
            declared = DeclaredSquad.load(Path(declared))
        if declared.environment not in ("", self.settings.env):
            raise ConfigError(
                f"the file is for environment {declared.environment!r}, and this is {self.settings.env!r}",
                hint=f"--env {declared.environment}, or take the line out to have it for any",
            )
        specs = declared.specs(code.load_agent)
        scaled = {name: each.scale for name, (_, each) in specs.items() if each.scale}
        wanted = {name: each.applied(await self._pack(spec)) for name, (spec, each) in specs.items()}
        _check(wanted.values())
        running = await self._declared_now()
        for name, (_, told) in specs.items():
            if told.canary is not None and name in running:
                wanted[name] = beside(running[name], wanted[name], told.canary)
        changes = changes_of(wanted, running, scaled=[*scaled], prune=prune)
        if dry_run:
            return changes
        new = [each for each in changes if each.what in ("add", "change") and set(each.fields) != {"scale"}]
        if new:
            await self._run([wanted[each.agent].versions[-1] for each in new], within_s, on_progress)
        for name in (each.agent for each in changes if "scale" in each.fields and each.what == "change"):
            # By name of its own: code that is new does not undo what somebody set by hand, but this does.
            await self.scale(name, str(wanted[name].scale))
        for each in changes:
            if each.what == "remove":
                await self.undeploy(each.agent)
        return changes

    async def _declared_now(self) -> dict[str, Deployment]:
        """The agents as they are to run now, as the bridge recorded them."""
        from squadron.runtime.wire.deployment import Deployment

        pattern = self._wiring.ports.subjects.registry("deployment")
        found = [Deployment.model_validate_json(each.data) for each in await self._wiring.records.latest(pattern)]
        return {each.agent: each for each in found}

    async def _supervise(self) -> None:
        await super()._supervise()
        if self.settings.ray_address is None:
            await asyncio.to_thread(remember_keys, self.settings.home)

    async def _pack(self, spec: AgentSpec, group: str | None = None) -> Deployment:
        from squadron.bridge.packing import code
        from squadron.runtime.wire.deployment import Deployment, RuntimeEnv, Scale

        agent_class = spec.agent_class
        packed, blob = code.pack(agent_class)
        if blob:
            await self._wiring.records.append(self._wiring.ports.subjects.record("blob", packed.version), blob)
        bounds = Scale(minimum=agent_class.min_replicas, maximum=agent_class.max_replicas)
        return Deployment(
            card=spec.card(),
            code=packed.to_dict(),
            class_path=packed.import_path or f"{agent_class.__module__}:{agent_class.__qualname__}",
            slots=agent_class.slots,
            grace_s=agent_class.grace_s,
            num_cpus=agent_class.num_cpus,
            num_gpus=agent_class.num_gpus,
            resources=dict(agent_class.resources),
            runtime_env=RuntimeEnv(**agent_class.runtime_env),
            group=agent_class.group if group is None else group,
            ordered_by=agent_class.ordered_by,
            bounds=bounds,
            scale=bounds,
        )

    async def _await_running(
        self,
        wanted: dict[str, str],
        within_s: float,
        on_progress: Callable[[list[dict[str, Any]]], None] | None,
        *,
        canary: bool = False,
    ) -> None:
        give_up_at = asyncio.get_running_loop().time() + within_s
        while True:
            agents = [each for each in (await self.status())["agents"] if each["agent"] in wanted]
            if canary:
                agents = [each["canary"] for each in agents if each["canary"]]
            if on_progress is not None:
                on_progress(agents)
            for each in agents:
                if each["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                    reason = each["message"].strip().splitlines() or ["no reason given"]
                    raise DeployError(
                        f"{each['agent']} could not start: {reason[-1]}",
                        hint="`squadron status` has the traceback; deploy it anew, or "
                        + (f"squadron canary {each['agent']} --abort" if canary else "undeploy it"),
                    )
            waiting = [each["agent"] for each in agents if not _runs(each, wanted[each["agent"]])]
            if len(agents) == len(wanted) and not waiting:
                return
            if asyncio.get_running_loop().time() > give_up_at:
                raise DeployError(
                    f"{', '.join(waiting) or 'agents'} did not start within {within_s:g} s",
                    hint="see `squadron status`",
                )
            await asyncio.sleep(_DEPLOY_LOOK_S)

    async def undeploy(self, agent: str) -> None:
        """Stop an agent after its running turns; what waits in its mailbox is kept for its return."""
        await self._control.call("undeploy", agent=agent)
        self._deployed.discard(agent)

    async def scale(self, agent: str, to: str | int) -> str:
        """Set replicas to a number, `MIN..MAX` or `auto`, in place; returns the new scale.

        Raises:
            ConfigError: no such agent, or not a scale.
        """
        answer = await self._control.call("scale", agent=agent, to=str(to))
        return str(answer["scale"])

    async def redeploy(self, agent: str) -> None:
        """Start all replicas of an agent anew with the same code; running turns end first, nothing is lost.

        Raises:
            ConfigError: no such agent.
        """
        await self._control.call("redeploy", agent=agent)

    async def nodes(self) -> list[dict[str, Any]]:
        """The nodes of the Ray cluster: name, address, whether it lives, what it has and what of that is free,
        whether the bridge is there, and how many replicas of each agent."""
        answer = await self._control.call("nodes")
        return list(answer["nodes"])

    async def rotate_key(self, agent: str) -> str:
        """Give an agent a new key for sealed payloads; returns its id. What was sealed before still opens.

        Raises:
            ConfigError: no such agent, or the bridge can't write its keys.
        """
        answer = await self._control.call("rotate_key", agent=agent)
        return str(answer["key"])

    async def prefer(self, intent: str, topic: str, *, good: bool = True) -> None:
        """Have the environment learn that an intent led to a topic, and whether it went well; see `search`.

        Raises:
            InvalidInputError: nobody serves the topic.
        """
        await self._control.call("prefer", intent=intent, topic=topic, good=good)

    async def lessons(self, topic: str = "", *, clear: bool = False) -> dict[str, list[dict[str, Any]]]:
        """What was learned of a topic, or of all: intents, what they weigh, and who said so.

        Args:
            clear: forget it.
        """
        answer = await self._control.call("lessons", topic=topic)
        if clear:
            await self._control.call("forget", topic=topic)
        found: dict[str, list[dict[str, Any]]] = answer["lessons"]
        return found

    async def track(self, topic: str) -> dict[str, Any]:
        """How tasks of a topic ended, what one costs and what speaks against asking now, by agent (`agents`); and
        whether the environment learns from use (`learns`)."""
        return await self._control.call("track", topic=topic)

    async def status(self) -> dict[str, Any]:
        """Agents, replicas, backlogs and addresses, as `squadron status --json` prints them."""
        return await self._control.call("status")

    async def metrics(self) -> str:
        """All metrics as they are now, in the text format of Prometheus; see `docs/metrics.md`."""
        import gzip

        answer = await self._control.call("metrics")
        return gzip.decompress(base64.b64decode(answer["gzip"])).decode()

    async def drain(self, within_s: float = 60.0) -> None:
        """Take every agent out of service: running turns end, what waits is kept for their return.

        Raises:
            DeployError: some replicas were still there after `within_s` seconds.
        """
        names = [agent["agent"] for agent in (await self.status())["agents"]]
        for name in names:
            await self.undeploy(name)
        give_up_at = asyncio.get_running_loop().time() + within_s
        while any(self._wiring.registry.replicas(name) for name in names):
            if asyncio.get_running_loop().time() > give_up_at:
                raise DeployError(f"agents did not stop within {within_s:g} s")
            await asyncio.sleep(_DEPLOY_LOOK_S)


def _check(deployments: Iterable[Deployment]) -> None:
    from squadron.bridge.packing.code import check_env

    for each in deployments:
        each.check_group()
        check_env(each.agent, each.runtime_env)


def _runs(agent: dict[str, Any], version: str) -> bool:
    versions = {replica["version"] for replica in agent["replicas"]}
    if versions - {version}:
        return False
    asleep = agent["scale"].split("..")[0] == "0"
    # A canary that was promoted works until this does.
    return agent["status"] == "RUNNING" and (bool(versions) or asleep) and not agent.get("canary")

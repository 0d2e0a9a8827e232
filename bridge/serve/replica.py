"""One replica of an agent, as Ray Serve sees it.

Serve imports this to build the application, in its controller or in a process of its own, before any replica
starts: what an agent needs to run is loaded where it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

if TYPE_CHECKING:
    from ray.serve.schema import ReplicaRank

    from squadron.bridge.serve.agent_process import AgentProcess
    from squadron.bridge.serve.group_process import GroupProcess


class AgentReplica:
    """What Ray Serve runs for an agent. It takes no Serve requests: work comes from the mailbox."""

    _process: AgentProcess | None = None

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        environment: str,
        agent: str,
        code: dict[str, str],
        slots: int,
        grace_s: float,
        ordered_by: str = "",
        canary: bool = False,
    ) -> None:
        from squadron.bridge.packing.code import Code
        from squadron.bridge.serve.agent_process import AgentProcess, settle
        from squadron.runtime.errors import DeployError
        from squadron.runtime.retries import traceback_of

        self._agent, self._process = agent, AgentProcess()
        settle(slots)
        try:
            await self._process.begin(environment, agent, Code(**code), slots, grace_s, ordered_by, canary=canary)
        except Exception as error:
            # Ray logs it and tells of it as it is, with all that led to it, and knows nothing of secrets.
            raise DeployError(traceback_of(error).rstrip()) from None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls it with what we declare beside the bounds; it is of use to the bridge only."""

    async def check_health(self) -> None:
        """Ray Serve asks every second; a replica that is broken, or has been deaf for long, is replaced."""
        if self._process is not None:
            self._process.check_health()

    async def __call__(self) -> dict[str, Any]:
        """Serve wants a callable; nobody needs to call it."""
        return {"agent": self._agent, "replica": self._process.id if self._process is not None else ""}

    async def __del__(self) -> None:
        """Ray Serve awaits this when the replica is to go: finish what runs, hand back the rest."""
        if self._process is not None:
            await self._process.stop()


class GroupReplica:
    """What Ray Serve runs for a group of agents: each of them has a seat in it, and a mailbox of its own."""

    _process: GroupProcess | None = None

    async def __init__(self, environment: str, group: str) -> None:  # type: ignore[misc]  # Serve awaits it
        from squadron.bridge.serve.group_process import GroupProcess

        self._group, self._process = group, GroupProcess(environment, group)
        self._process.begin()

    async def reconfigure(self, user_config: dict[str, Any], rank: ReplicaRank) -> None:
        """Serve calls it when the group's agents or their scales change, and when this process's rank does."""
        assert self._process is not None
        self._process.seat(user_config["seats"], rank.rank)

    async def check_health(self) -> None:
        """Ray Serve asks every second. A seat that is broken is made anew here; this is about the process."""
        if self._process is not None:
            self._process.check_health()

    async def __call__(self) -> dict[str, Any]:
        """Serve wants a callable; nobody needs to call it."""
        return {"group": self._group}

    async def __del__(self) -> None:
        """Ray Serve awaits this when the process is to go: all seats finish what runs, and hand back the rest."""
        if self._process is not None:
            await self._process.stop()


def build(args: dict[str, Any]) -> Application:
    """Serve's `import_path`: the application of one agent type.

    Args:
        args: environment, agent, code, slots, grace_s, ordered_by, and of a canary that it is one; anything else
            only marks a new version.
    """
    fields = {name: args[name] for name in ("environment", "agent", "code", "slots", "grace_s", "ordered_by")}
    fields["canary"] = args.get("canary", False)
    make: Any = serve.deployment(name=args["agent"])
    application: Application = make(AgentReplica).bind(**fields)
    return application


def build_group(args: dict[str, Any]) -> Application:
    """Serve's `import_path`: the application of one group of agents.

    Args:
        args: environment and group; anything else only marks a new version.
    """
    make: Any = serve.deployment(name=args["group"])
    application: Application = make(GroupReplica).bind(args["environment"], args["group"])
    return application

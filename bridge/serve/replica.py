"""One replica of an agent, as Ray Serve sees it.

Serve imports this in a process of its own to build the application, before any replica starts: what an agent
needs to run is loaded where it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

if TYPE_CHECKING:
    from squadron.bridge.serve.agent_process import AgentProcess


class AgentReplica:
    """What Ray Serve runs for an agent. It takes no Serve requests: work comes from the mailbox."""

    _process: AgentProcess | None = None

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, environment: str, agent: str, code: dict[str, str], slots: int, grace_s: float, ordered_by: str = ""
    ) -> None:
        from squadron.bridge.packing.code import Code
        from squadron.bridge.serve.agent_process import AgentProcess
        from squadron.runtime.errors import DeployError
        from squadron.runtime.retries import traceback_of

        self._agent, self._process = agent, AgentProcess()
        try:
            await self._process.begin(environment, agent, Code(**code), slots, grace_s, ordered_by)
        except Exception as error:
            # Ray logs it and tells of it as it is, with all that led to it, and knows nothing of secrets.
            raise DeployError(traceback_of(error).rstrip()) from None

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


def build(args: dict[str, Any]) -> Application:
    """Serve's `import_path`: the application of one agent type.

    Args:
        args: environment, agent, code, slots, grace_s, ordered_by; anything else only marks a new version.
    """
    fields = {name: args[name] for name in ("environment", "agent", "code", "slots", "grace_s", "ordered_by")}
    make: Any = serve.deployment(name=args["agent"])
    application: Application = make(AgentReplica).bind(**fields)
    return application

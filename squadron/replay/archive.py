"""The runs of an environment, and what can be done with those that are over."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from squadron.actors.runs.shelf import Runs
from squadron.runtime.store.port_set import Ports

if TYPE_CHECKING:
    from squadron.replay.recording import Recording


class RunArchive(Runs):
    """As `Runs`; a run can be exported, and replayed."""

    def __init__(self, ports: Ports, env: str) -> None:
        super().__init__(ports)
        self._env = env

    async def export(self, id: str) -> Recording:
        """A run, and the runs of the agents that it called, as they are stored; without secrets.

            recording = await squad.runs.export("run-3f2a")
            recording.save("run.jsonl")

        Raises:
            ConfigError: there is none, or more than one.
            BusUnavailableError: the server can't be reached.
        """
        # Only who replays pays for it.
        from squadron.replay.export import export

        try:
            code = version("squadron")
        except PackageNotFoundError:
            code = ""
        return await export(self._ports, id, env=self._env, code=code)

"""The runs of an environment, and what can be done with those that are over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from squadron.actors.runs.shelf import Runs
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ConfigError
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.outcome import Outcome

if TYPE_CHECKING:
    from squadron.actors.agent import Agent
    from squadron.actors.thinking.model import Model
    from squadron.replay.player import RunReplay
    from squadron.replay.recording import Recording


class ReplayChanges(TypedDict, total=False):
    """What `PastRun.replay` may change; see `Changes`."""

    model: str
    goal: str
    prompt: str
    from_round: int
    outcomes: Mapping[str, Any]
    gather: Mapping[str, Any] | None
    max_rounds: int | None


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run as it is recorded.

        run = await squad.runs.get("run-3f2a")
        assert (await run.replay()).equal
        other = await run.replay(model="anthropic:claude-sonnet-4-5")
        print(run.diff(other))

    Attributes:
        recording: all that is known of it.
        replays: of an exact replay, what came of it, for this run and each that it called.
    """

    recording: Recording
    replays: tuple[RunReplay, ...] = ()
    _caller: Caller | None = None

    @property
    def equal(self) -> bool:
        """Whether the code of today does what is recorded; only of what an exact replay returned.

        Raises:
            ConfigError: it is no exact replay.
        """
        if not self.replays:
            raise ConfigError("this run is no exact replay", hint="call `replay()` without changes first")
        return all(each.equal for each in self.replays)

    async def replay(
        self,
        *,
        agent: str | type[Agent] = "",
        models: Sequence[Model] = (),
        live: bool = False,
        **changes: Unpack[ReplayChanges],
    ) -> PastRun:
        """Run it anew; it is not touched itself.

        Without a change all that came from outside comes from the recording, and the code of today is held against
        it (`equal`, `replays`). With one the run goes on otherwise from where the change takes effect, as a run of
        its own: models are asked, and calls that are in the recording are answered from there.

        Args:
            agent: of an exact replay, the class whose tools count, as they are now.
            models: who is asked, in the place of a model by name.
            live: calls that are not in the recording go out to the agents of this squad, and may have effects.
                Else they are refused.
            changes: see `Changes`.

        Raises:
            ConfigError: a change does not fit the run, an argument does not fit the others, or there is nobody
                for live calls.
            RecordingError: the recording is not whole.
        """
        from squadron.replay.exact import play_all
        from squadron.replay.fork import Changes
        from squadron.replay.what_if import what_if

        if not changes and not models:
            if live:
                raise ConfigError("a replay without a change calls nobody", hint="`live` is of one with a change")
            replays = await asyncio.to_thread(play_all, self.recording, agent)
            return PastRun(self.recording, tuple(replays), self._caller)
        if agent:
            raise ConfigError("a replay with a change runs no tools", hint="`agent` is of one without a change")
        wanted = Changes.of(changes)
        if live and self._caller is None:
            raise ConfigError("there is no squad to call", hint="get the run from one: squad.runs.get(…)")
        ask = self._ask if live else None
        return PastRun(await what_if(self.recording, wanted, models=models, live=ask), (), self._caller)

    async def _ask(self, topic: str, content: Any, within_s: float, budget: Budget) -> Outcome:
        assert self._caller is not None
        of = f"replay-{self.recording.header.run}"
        options = AskOptions(within_s=within_s, budget=budget, conversation_id=of)
        return await (await self._caller.submit(topic, content, options)).outcome()

    @property
    def topics(self) -> list[str]:
        """The topics that its model may call."""
        from squadron.actors.runs.entries import Offered

        offered = (entry for entry in self.recording.main.entries if isinstance(entry, Offered))
        return sorted({card.name for entry in offered for card in entry.cards})

    def diff(self, other: PastRun) -> str:
        """How another run differs, round by round, as a unified diff; empty if it does not."""
        from squadron.replay.outline import diff

        return diff(self.recording, other.recording)

    def save(self, path: str | Path) -> None:
        """Write it into a file, for `squadron replay` and `squadron.testing.replay`."""
        self.recording.save(path)

    def __str__(self) -> str:
        from squadron.replay.outline import outline

        return "\n".join(outline(self.recording).lines)


class RunArchive(Runs):
    """As `Runs`; a run can be exported, and replayed."""

    def __init__(self, caller: Caller, env: str) -> None:
        super().__init__(caller.ports)
        self._caller, self._env = caller, env

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
            code = version("squadron-ray")
        except PackageNotFoundError:
            code = ""
        return await export(self._ports, id, env=self._env, code=code)

    async def get(self, id: str | os.PathLike[str]) -> PastRun:
        """A run that can be replayed: by its id or the beginning of it, or from a file (as a `Path`).

        Raises:
            ConfigError: there is none, or more than one.
            RecordingError: the file is no whole recording.
            BusUnavailableError: the server can't be reached.
        """
        from squadron.replay.recording import Recording

        recording = await self.export(id) if isinstance(id, str) else Recording.load(Path(id))
        return PastRun(recording, (), self._caller)

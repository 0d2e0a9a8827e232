"""All runs of a recording, replayed exactly."""

from __future__ import annotations

from squadron.actors.agent import Agent, AgentSpec
from squadron.bridge.packing.code import load_agent
from squadron.replay.player import RunReplay, play, tools_in
from squadron.replay.recording import Recording
from squadron.runtime.errors import ConfigError


def play_all(recording: Recording, agent: str | type[Agent] = "") -> list[RunReplay]:
    """Replay each run of a recording; takes no longer than its decisions. Needs no event loop.

    Args:
        agent: a class, or its `module:Class`, whose tools count in the runs of that agent, as they are now.

    Raises:
        RecordingError: it is not whole.
        InvalidAgentError: there is no such class.
        ConfigError: none of them is a run of it.
    """
    kind = load_agent(agent) if isinstance(agent, str) and agent else agent
    name = AgentSpec.of(kind).name if isinstance(kind, type) else ""
    agents = {each.started.agent for each in recording.runs}
    if name and name not in agents:
        raise ConfigError(f"no run here is of {name!r}", hint=f"they are of {', '.join(sorted(agents))}")
    return [play(each, tools_in(kind) if name and each.started.agent == name else None) for each in recording.runs]

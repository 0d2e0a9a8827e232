"""Agents that a command line names: all of them are deployed, or nothing is done to any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squadron.client.squad import Squad


async def named_agents(squad: Squad, names: Iterable[str]) -> list[dict[str, Any]]:
    """The status of each of these agents.

    Raises:
        ConfigError: one of them is not deployed; says which are, and what looks like it.
    """
    from squadron.bridge.control.describing import not_deployed

    agents = {each["agent"]: each for each in (await squad.status())["agents"]}
    if unknown := [name for name in names if name not in agents]:
        raise not_deployed(unknown[0], agents)
    return [agents[name] for name in names]

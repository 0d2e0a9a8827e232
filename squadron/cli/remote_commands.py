"""What `add`, `list` and `remove` of servers elsewhere share, whichever protocol they speak."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from squadron.cli import frame

if TYPE_CHECKING:
    from squadron.cli.progress import Watch
    from squadron.client.remote_servers import RemoteServer
    from squadron.client.squad import Squad


async def add_servers(
    ctx: typer.Context, adding: Mapping[str, Callable[[Squad, Watch], Awaitable[Sequence[str]]]]
) -> list[dict[str, Any]]:
    """Add servers, by what they are called here; tells the agent and the topics of each."""
    from squadron.cli.progress import watching

    added = []
    async with frame.connected(frame.settings_of(ctx)) as squad:
        with watching(f"Adding {', '.join(adding)}") as watch:
            for name, add in adding.items():
                watch.phase("deploy")
                topics = list(await add(squad, watch))
                added.append({"name": name, "agent": topics[0].partition(".")[0], "topics": topics})
    return added


def tell_added(added: Sequence[Mapping[str, Any]], told: Any, *, as_json: bool) -> int:
    """Print `told` as JSON, or a line for each that was added."""
    if as_json:
        frame.print_json(told)
        return frame.OK
    for one in added:
        frame.tell(f"{one['agent']} serves {', '.join(one['topics'])}")
    return frame.OK


def named(server: RemoteServer, prefix: str) -> dict[str, Any]:
    """A server as JSON, with what it is called here."""
    return {"name": server.agent.removeprefix(prefix), **server.to_dict()}


async def list_added(
    ctx: typer.Context,
    kind: str,
    key: str,
    line_of: Callable[[RemoteServer], str],
    *,
    prefix: str = "",
    as_json: bool,
) -> int:
    """List the servers of one protocol.

    Args:
        kind: the class of agents that stand for them.
        key: under which JSON has them.
        line_of: what is told of one.
        prefix: of the names of those agents.
    """
    async with frame.connected(frame.settings_of(ctx)) as squad:
        found = [each for each in await squad.remote_servers() if each.kind == kind]
    if as_json:
        frame.print_json({key: [named(each, prefix) for each in found]})
        return frame.OK
    for each in found:
        frame.out().print(line_of(each), markup=False, soft_wrap=True)
    if not found:
        frame.tell("Nothing was added.")
    return frame.OK


async def take_away(ctx: typer.Context, name: str, agent_of: Callable[[str], str], as_json: bool) -> int:
    """Undeploy the agent that stands for a server; `agent_of` tells it by the server's name."""
    async with frame.connected(frame.settings_of(ctx)) as squad:
        found = await squad.remote_server(agent_of(name))
        await squad.undeploy(found.agent)
    if as_json:
        frame.print_json({"removed": name, "agent": found.agent})
    else:
        frame.tell(f"{found.agent} stops.")
    return frame.OK

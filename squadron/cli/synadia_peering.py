"""synadia add, list, remove: agents of the Synadia Agent Protocol as topics."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.cli.remote_commands import add_servers, list_added, take_away, tell_added

Name = Annotated[str, typer.Option("--name", help="How the agent that stands for them is called here.")]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(no_args_is_help=True)
    group.command()(add)
    group.command("list")(list_agents)
    group.command()(remove)
    app.add_typer(
        group, name="synadia", help="Agents of the Synadia Agent Protocol, as topics: add, list, remove."
    )


def add(
    ctx: typer.Context,
    name: Name = "synadia",
    agent: Annotated[str, typer.Option("--agent", help="Only agents of this kind.", metavar="AGENT")] = "",
    owner: Annotated[str, typer.Option("--owner", help="Only those of this owner.", metavar="OWNER")] = "",
    within: Annotated[float, typer.Option("--within", help="How long to wait, in seconds.", min=1)] = 120.0,
    as_json: Json = False,
) -> None:
    """Have agents of the Synadia Agent Protocol on this NATS as topics; who comes later is one as well."""
    frame.execute(_add(ctx, name, agent, owner, within, as_json), as_json=as_json)


async def _add(ctx: typer.Context, name: str, agent: str, owner: str, within_s: float, as_json: bool) -> int:
    chosen: dict[str, Any] = {"agent": agent, "owner": owner, "within_s": within_s}
    added = await add_servers(
        ctx, {name: lambda squad, watch: squad.synadia(name, **chosen, on_progress=watch.agents)}
    )
    return tell_added(added, {"agent": name, "topics": added[0]["topics"]}, as_json=as_json)


def list_agents(ctx: typer.Context, as_json: Json = False) -> None:
    """List what was added."""
    listed = list_added(ctx, "SynadiaRemote", "agents", lambda each: "\n".join(each.topics), as_json=as_json)
    frame.execute(listed, as_json=as_json)


def remove(ctx: typer.Context, name: Name = "synadia", as_json: Json = False) -> None:
    """Have them gone: calls that run end first."""
    frame.execute(take_away(ctx, name, str, as_json), as_json=as_json)

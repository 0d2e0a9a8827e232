"""a2a add, list, remove: skills of A2A agents elsewhere as topics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.cli.remote_commands import add_servers, list_added, take_away, tell_added
from squadron.runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from squadron.client.remote_servers import RemoteServer

Name = Annotated[str, typer.Argument(metavar="NAME", help="How the agent is called here.")]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(no_args_is_help=True)
    for command in (add, remove):
        group.command()(command)
    group.command("list")(list_agents)
    app.add_typer(group, name="a2a", help="A2A agents elsewhere, whose skills are topics.")


def add(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the agent, or of its card.")],
    name: Annotated[str, typer.Option("--name", help="How it is called here (default: as its card has it).")] = "",
    header: Annotated[
        list[str] | None,
        typer.Option("--header", help="Of each request, as 'Authorization=Bearer ${TOKEN}'.", metavar="KEY=VALUE"),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="The keys that its card has to be signed by (JWKS).", metavar="FILE"),
    ] = None,
    within: Annotated[float, typer.Option("--within", help="How long to wait, in seconds.", min=1)] = 120.0,
    as_json: Json = False,
) -> None:
    """Have the skills of an A2A agent as topics: a2a_NAME.SKILL. The same name again replaces what was."""
    options = {"name": name, "header": header or [], "keys": keys, "within_s": within}
    frame.execute(_add(ctx, url, options, as_json), as_json=as_json)


async def _add(ctx: typer.Context, url: str, options: dict[str, Any], as_json: bool) -> int:
    from squadron.cli.mcp_servers import pairs_of

    more: dict[str, Any] = {"headers": pairs_of("--header", options["header"]), "within_s": options["within_s"]}
    more["keys"] = _keys(options["keys"]) if options["keys"] is not None else {}
    added = await add_servers(
        ctx, {url: lambda squad, watch: squad.a2a(url, name=options["name"], **more, on_progress=watch.agents)}
    )
    return tell_added(added, {name: added[0][name] for name in ("agent", "topics")}, as_json=as_json)


def _keys(path: Path) -> dict[str, Any]:
    from squadron.actors.remote.a2a_server import keys_in

    try:
        return keys_in(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} can't be read: {type(error).__name__}", field="keys") from None


def list_agents(ctx: typer.Context, as_json: Json = False) -> None:
    """List the A2A agents that were added."""
    from squadron.actors.remote.a2a_server import PREFIX

    def line_of(each: RemoteServer) -> str:
        return f"{each.agent.removeprefix(PREFIX)}  {each.server['url']}  {', '.join(each.topics)}"

    frame.execute(list_added(ctx, "A2aAgent", "agents", line_of, prefix=PREFIX, as_json=as_json), as_json=as_json)


def remove(ctx: typer.Context, name: Name, as_json: Json = False) -> None:
    """Take an agent away: tasks that run end first."""
    from squadron.actors.remote.a2a_server import agent_for

    frame.execute(take_away(ctx, name, agent_for, as_json), as_json=as_json)

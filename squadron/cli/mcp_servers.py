"""mcp add, list, show, remove: tools of MCP servers as topics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.cli.remote_commands import add_servers, list_added, named, take_away, tell_added
from squadron.runtime.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from squadron.actors.remote.mcp_server import McpServer
    from squadron.client.remote_servers import RemoteServer

Name = Annotated[str, typer.Argument(metavar="NAME", help="How the server is called here.")]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(no_args_is_help=True)
    for command in (add, show, remove):
        group.command()(command)
    group.command("list")(list_servers)
    app.add_typer(group, name="mcp", help="MCP servers, whose tools are topics: add, list, show, remove.")


def add(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="How the server is called here.", show_default=False)
    ] = None,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="What starts it.", show_default=False)
    ] = None,
    url: Annotated[str, typer.Option("--url", help="Where it listens, if it speaks HTTP.", metavar="URL")] = "",
    bus: Annotated[str, typer.Option("--bus", help="Its name on NATS, if it is there.", metavar="ID")] = "",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="A variable of the command; a secret as KEY=env:NAME.", metavar="KEY=VALUE"),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", help="Of each request, as 'Authorization=Bearer ${TOKEN}'.", metavar="KEY=VALUE"),
    ] = None,
    oauth: Annotated[
        list[str] | None,
        typer.Option(
            "--oauth",
            help="To get access tokens: issuer=URL, clientId=ID, clientSecret=env:NAME, refreshToken=file:PATH.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    cwd: Annotated[str, typer.Option("--cwd", help="Folder to start the command in.", metavar="DIR")] = "",
    file: Annotated[
        Path | None,
        typer.Option("--from", help="A host's file with mcpServers: all of them, or NAME.", metavar="FILE"),
    ] = None,
    within: Annotated[float, typer.Option("--within", help="How long to wait, in seconds.", min=1)] = 120.0,
    as_json: Json = False,
) -> None:
    """Have the tools of an MCP server as topics: mcp_NAME.TOOL. The same name again replaces what was."""
    given = {"url": url, "bus": bus, "cwd": cwd, "env": env, "header": header, "oauth": oauth}
    frame.execute(_add(ctx, name or "", command or [], given, file, within, as_json), as_json=as_json)


async def _add(
    ctx: typer.Context,
    name: str,
    command: list[str],
    given: dict[str, Any],
    file: Path | None,
    within_s: float,
    as_json: bool,
) -> int:
    servers = {name: _server(name, command, given)} if file is None else _of_file(file, name, command, given)

    def adding(each: str, server: McpServer) -> Any:
        words = [server.command, *server.args] if server.command else []
        where = {"command": words, "url": server.url, "bus": server.bus, "cwd": server.cwd}
        more = {"env": server.env, "headers": server.headers, "within_s": within_s}
        more["oauth"] = server.oauth.model_dump() if server.oauth is not None else None
        return lambda squad, watch: squad.mcp(each, **where, **more, on_progress=watch.agents)

    added = await add_servers(ctx, {each: adding(each, server) for each, server in servers.items()})
    return tell_added(added, {"added": added}, as_json=as_json)


def _server(name: str, command: list[str], given: dict[str, Any]) -> McpServer:
    from squadron.actors.remote.mcp_server import McpServer, agent_of

    if not name:
        raise InvalidInputError("the server needs a name", field="name", hint="squadron mcp add NAME -- COMMAND")
    agent_of(name)
    said: dict[str, Any] = {name: given[name] for name in ("url", "bus", "cwd")}
    said |= {"command": command[0], "args": command[1:]} if command else {}
    said |= {"env": pairs_of("--env", given["env"]), "headers": pairs_of("--header", given["header"])}
    said |= {"oauth": pairs_of("--oauth", given["oauth"])} if given["oauth"] else {}
    return McpServer.of(said)


def _of_file(file: Path, name: str, command: list[str], given: dict[str, Any]) -> dict[str, McpServer]:
    from squadron.actors.remote.mcp_server import servers_in

    if command or any(given.values()):
        raise ConfigError("--from takes all from the file", hint="squadron mcp add NAME --from FILE")
    found = servers_in(file)
    if name and name not in found:
        raise InvalidInputError(f"{file} has no server {name!r}", field="name", hint=f"it has {', '.join(found)}")
    return {name: found[name]} if name else found


def pairs_of(option: str, given: list[str] | None) -> dict[str, str]:
    """What an option says that takes KEY=VALUE and may be repeated.

    Raises:
        InvalidInputError: one of them is not KEY=VALUE.
    """
    pairs = {}
    for each in given or []:
        key, equals, value = each.partition("=")
        if not key or not equals:
            # What was given may be a secret.
            raise InvalidInputError(
                f"{option} takes KEY=VALUE", field=option.lstrip("-"), hint=f"{option} KEY=env:NAME"
            )
        pairs[key.strip()] = value
    return pairs


def list_servers(ctx: typer.Context, as_json: Json = False) -> None:
    """List the MCP servers that were added."""
    from squadron.actors.remote.mcp_server import PREFIX, McpServer

    def line_of(each: RemoteServer) -> str:
        where = McpServer.of(each.server).where
        return f"{each.agent.removeprefix(PREFIX)}  {len(each.topics)} topics  {where}"

    frame.execute(list_added(ctx, "McpAgent", "servers", line_of, prefix=PREFIX, as_json=as_json), as_json=as_json)


def show(ctx: typer.Context, name: Name, as_json: Json = False) -> None:
    """Show how a server is reached, and its topics."""
    frame.execute(_show(ctx, name, as_json), as_json=as_json)


async def _show(ctx: typer.Context, name: str, as_json: bool) -> int:
    from squadron.actors.remote.mcp_server import PREFIX, McpServer, agent_of

    async with frame.connected(frame.settings_of(ctx)) as squad:
        found = await squad.remote_server(agent_of(name))
        said = {each.topic.name: each.topic.description for each in squad.topics()}
    if as_json:
        frame.print_json(
            {**named(found, PREFIX), "descriptions": {name: said.get(name, "") for name in found.topics}}
        )
        return frame.OK
    server = McpServer.of(found.server)
    lines = [server.where, *(f"{key}={value}" for key, value in {**server.env, **server.headers}.items()), ""]
    lines += [f"{name}  {said.get(name, '').partition(chr(10))[0]}" for name in found.topics]
    for line in lines:
        frame.out().print(line, markup=False, soft_wrap=True)
    return frame.OK


def remove(ctx: typer.Context, name: Name, as_json: Json = False) -> None:
    """Take a server away: calls that run end first."""
    from squadron.actors.remote.mcp_server import agent_of

    frame.execute(take_away(ctx, name, agent_of, as_json), as_json=as_json)

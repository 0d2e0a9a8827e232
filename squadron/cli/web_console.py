"""console: the page on which everything is seen and steered, served here until Ctrl-C."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from squadron.cli import frame
from squadron.cli.environment import Json

#: The port beside that of Ray's dashboard (8265).
PORT = 8266


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("console")(web_console)


def web_console(
    ctx: typer.Context,
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="0 takes one that is free.", min=0, max=65535)] = PORT,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nothing can be changed from the page.")] = False,
    browse: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token that lets in; else one is made.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="HOST or HOST:PORT by which it is reached, too, as behind a proxy."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the web console: agents, topics, runs, questions, dead letters, lite topics, events, nodes.

    The printed link logs a browser in. With --json one line with the address and the file of the token.
    """
    options = _Options(host, port, read_only, browse, token_file, tuple(name or ()))
    frame.execute(_serve(ctx, options, as_json), as_json=as_json)


class _Options:
    def __init__(
        self, host: str, port: int, read_only: bool, browse: bool, token_file: Path | None, names: tuple[str, ...]
    ) -> None:
        self.host, self.port, self.read_only, self.browse = host, port, read_only, browse
        self.token_file, self.names = token_file, names


async def _serve(ctx: typer.Context, options: _Options, as_json: bool) -> int:
    from squadron.client.talking import user_name
    from squadron.console.serving import check_host, serving

    check_host(options.host, options.token_file)
    async with (
        frame.connected(frame.settings_of(ctx)) as squad,
        serving(
            squad,
            host=options.host,
            port=options.port,
            read_only=options.read_only,
            by=user_name(),
            token_file=options.token_file,
            names=options.names,
        ) as served,
    ):
        if as_json:
            frame.print_json(served.to_dict())
        else:
            mode = ", read-only" if served.read_only else ""
            frame.tell(f"Console of {squad.settings.env}{mode}: {served.url}")
            frame.tell(f"Log in by this link: {served.login}")
            frame.tell("Ctrl-C ends it.")
        if options.browse:
            await asyncio.to_thread(typer.launch, served.login)
        await asyncio.Event().wait()
    return frame.OK

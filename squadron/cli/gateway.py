"""gateway: agents for clients of other protocols, over HTTP, NATS or the standard streams."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.config import Settings
from squadron.runtime.errors import ConfigError
from squadron.runtime.secret import HINT, Secret
from squadron.runtime.wire.subjects import check_pattern, check_token

if TYPE_CHECKING:
    from squadron.bridge.gateways.doors import Door, Front
    from squadron.bridge.jetstream.wiring import Wiring

#: Where it listens when nobody says; no well-known service does.
DEFAULT_PORT = 8811
#: A body may hold a message as base64, which is a third larger, and JSON around it. It is whole in memory before
#: it is known whether anybody wants it: so it has a limit of its own, in bytes.
_BASE64, _MOST_BODY = 1.4, 16 * 1024 * 1024


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(gateway)


def gateway(
    ctx: typer.Context,
    mcp: Annotated[bool, typer.Option("--mcp", help="Serve the Model Context Protocol at /mcp.")] = False,
    a2a: Annotated[bool, typer.Option("--a2a", help="Serve A2A 1.0.")] = False,
    synadia: Annotated[bool, typer.Option("--synadia", help="Answer the Synadia Agent Protocol on NATS.")] = False,
    stdio: Annotated[
        bool, typer.Option("--stdio", help="MCP on the standard streams, for a host that starts this command.")
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="Port to listen on; 0 is any.", min=0, max=65535)
    ] = DEFAULT_PORT,
    agents: Annotated[
        list[str] | None, typer.Option("--agent", help="Serve this agent only; may be repeated.", metavar="NAME")
    ] = None,
    topics: Annotated[
        list[str] | None,
        typer.Option("--topic", help="Serve these topics only; may be repeated.", metavar="PATTERN"),
    ] = None,
    lite: Annotated[
        list[str] | None,
        typer.Option(
            "--lite", help="Let all visitors read this owner's lite topics; may be repeated.", metavar="OWNER"
        ),
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            "--token",
            help="A visitor's bearer token, as ann=env:ANN_TOKEN or ann=file:PATH; may be repeated.",
            metavar="NAME=PLACE",
        ),
    ] = None,
    public_url: Annotated[
        str, typer.Option("--public-url", help="The URL that visitors use, if it is another one.", metavar="URL")
    ] = "",
    secret: Annotated[
        str,
        typer.Option(
            "--secret",
            help="What processes of one gateway on several machines share (default: a file in the home).",
            metavar="PLACE",
        ),
    ] = "",
    within: Annotated[
        float, typer.Option("--within", help="How long a task may take, in seconds.", min=1, max=86400)
    ] = 300.0,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print what an MCP host needs to be told, and leave.")
    ] = False,
) -> None:
    """Serve agents to clients of other protocols, until Ctrl-C or `squadron down`."""
    doors = [name for name, wanted in (("mcp", mcp or stdio), ("a2a", a2a), ("synadia", synadia)) if wanted]
    options: dict[str, Any] = {"host": host, "port": port, "public_url": public_url.rstrip("/"), "secret": secret}
    options |= {"agents": agents or [], "topics": topics or [], "tokens": tokens or []}
    options |= {"lite": lite or [], "within_s": within}
    if print_config:
        frame.execute(_print_config(ctx, doors, stdio, options))
    frame.execute(_serve(ctx, doors, stdio, options))


async def _print_config(ctx: typer.Context, doors: list[str], stdio: bool, options: dict[str, Any]) -> int:
    if "mcp" not in doors:
        raise ConfigError("--print-config is for MCP hosts", hint="squadron gateway --mcp --print-config")
    from squadron.bridge.gateways.mcp.host_config import host_config

    frame.print_json(host_config(frame.settings_of(ctx), stdio=stdio, options=options))
    return frame.OK


async def _serve(ctx: typer.Context, names: list[str], stdio: bool, options: dict[str, Any]) -> int:
    settings = frame.settings_of(ctx)
    if not names:
        raise ConfigError("no door was named", hint="squadron gateway --mcp, --a2a, --synadia, or several")
    if stdio and len(names) > 1:
        raise ConfigError("--stdio serves one MCP client, and nothing else", hint="squadron gateway --stdio")
    from squadron.bridge.gateways.doors import load_door
    from squadron.bridge.gateways.http_server import check_bind

    needs_http = not stdio and any(name != "synadia" for name in names)
    if needs_http:
        check_bind(options["host"], authenticated=bool(options["tokens"]), public_url=options["public_url"])
    openers = [load_door(name) for name in names]
    async with contextlib.AsyncExitStack() as rest:
        front, wiring = await _front(settings, options, rest)
        doors = [await opener(front) for opener in openers]
        for door in doors:
            await rest.enter_async_context(door.running())
        if stdio:
            return await _on_streams(doors[0], front)
        if needs_http:
            return await _on_http(doors, names, front, wiring, options)
        return await _on_nats(names, front)


async def _front(
    settings: Settings, options: dict[str, Any], rest: contextlib.AsyncExitStack
) -> tuple[Front, Wiring]:
    """What the doors are given; closed with `rest`.

    Raises:
        ConfigError: an option is wrong.
        NotRunning: there is nothing to serve from.
    """
    from urllib.parse import urlsplit

    from squadron.bridge.gateways.door_secret import DoorSecret
    from squadron.bridge.gateways.doors import Front
    from squadron.bridge.gateways.http_guard import GuardRules
    from squadron.bridge.gateways.open_questions import OpenQuestions
    from squadron.bridge.gateways.visitors import Visitors, check_delegate

    visitors = Visitors.of(options["tokens"])
    secret = Secret(options["secret"])
    if secret and not secret.place:
        raise ConfigError("--secret was given as it is, where others can read it", hint=HINT)
    public = options["public_url"]
    there = urlsplit(public)
    if public and (there.scheme not in ("http", "https") or not there.netloc):
        raise ConfigError(f"--public-url {public!r} is no URL", hint="for example https://agents.example.org")
    topics = tuple(check_pattern(each) for each in options["topics"])
    wiring = await _connected(settings)
    rest.push_async_callback(wiring.aclose)
    check_delegate(wiring.ports.principal, tokens=bool(visitors))
    questions = OpenQuestions(wiring)
    questions.start()
    rest.push_async_callback(questions.aclose)
    rules = GuardRules(
        hosts=(there.netloc.lower(),) if public else (),
        verifier=visitors or None,
        max_bytes=min(int(settings.max_message_bytes * _BASE64), _MOST_BODY),
    )
    front = Front(
        place=wiring,
        secret=DoorSecret.of(settings.home, secret),
        questions=questions,
        topics=topics,
        agents=tuple(options["agents"]),
        lite=tuple(check_token(each, "owner") for each in options["lite"]),
        url=public or f"http://{options['host']}:{options['port']}",
        within_s=options["within_s"],
        rules=rules,
    )
    return front, wiring


async def _connected(settings: Settings) -> Wiring:
    from squadron.bridge.jetstream.link.at_home import as_user
    from squadron.bridge.jetstream.wiring import Wiring
    from squadron.runtime.errors import SquadronError
    from squadron.runtime.wire.envelope import AgentIdentity

    try:
        me = AgentIdentity(id=f"gateway-{os.urandom(6).hex()}", type="gateway")
        return await Wiring.open(as_user(settings), me)
    except SquadronError as error:
        raise frame.NotRunning(str(error.args[0]), hint=error.hint) from None


async def _on_streams(door: Door, front: Front) -> int:
    from squadron.bridge.gateways.running_gateways import announced

    settings = front.place.settings
    with announced(settings.home, settings.env, ["mcp"], ""):
        await door.serve_stdio()  # type: ignore[attr-defined]
    return frame.OK


async def _on_http(
    doors: list[Door], names: list[str], front: Front, wiring: Wiring, options: dict[str, Any]
) -> int:
    from squadron.bridge.gateways.doors import gateway_app
    from squadron.bridge.gateways.http_server import HttpServer
    from squadron.bridge.gateways.running_gateways import announced

    settings = front.place.settings
    app = gateway_app(doors, front, lambda: wiring.connection.is_connected)
    async with HttpServer(app, options["host"], options["port"], front.leaving) as server:
        with announced(settings.home, settings.env, names, options["public_url"] or server.url):
            frame.tell(f"Serving {', '.join(names)} at {options['public_url'] or server.url}; Ctrl-C ends it.")
            await server.serve()
    return frame.OK


async def _on_nats(names: list[str], front: Front) -> int:
    import asyncio

    from squadron.bridge.gateways.running_gateways import announced

    settings = front.place.settings
    with announced(settings.home, settings.env, names, ""):
        frame.tell(f"Serving {', '.join(names)} on NATS; Ctrl-C ends it.")
        await asyncio.Event().wait()
    return frame.OK

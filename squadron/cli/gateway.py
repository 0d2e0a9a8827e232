"""gateway: agents for clients of other protocols, over HTTP, NATS or the standard streams."""

from __future__ import annotations

import contextlib
import gc
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.config import Settings
from squadron.runtime.errors import ConfigError

if TYPE_CHECKING:
    from squadron.bridge.gateways.doors import Door, Front
    from squadron.bridge.gateways.fronting import GatewayOptions
    from squadron.bridge.jetstream.wiring import Wiring

#: Objects made before garbage is looked for, as in replicas.
_GARBAGE = 10_000
#: Where it listens when nobody says; no well-known service does.
DEFAULT_PORT = 8811

_Lite = Annotated[
    list[str] | None,
    typer.Option(
        "--lite", help="Let all visitors read this owner's lite topics; may be repeated.", metavar="OWNER"
    ),
]
_PushTo = Annotated[
    list[str] | None,
    typer.Option(
        "--push-to",
        help="Let A2A clients have news sent to this host, though it is not public; may be repeated.",
        metavar="HOST[:PORT]",
    ),
]
_Tokens = Annotated[
    list[str] | None,
    typer.Option(
        "--token",
        help="A visitor's bearer token, as ann=env:ANN_TOKEN or ann=file:PATH; may be repeated.",
        metavar="NAME=PLACE",
    ),
]
_SecretPlace = Annotated[
    str,
    typer.Option(
        "--secret",
        help="What processes of one gateway on several machines share (default: a file in the home).",
        metavar="PLACE",
    ),
]
_Rate = Annotated[
    float, typer.Option("--rate", help="Requests a second of one visitor; twice as many after a pause.", min=1)
]


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
    lite: _Lite = None,
    push_to: _PushTo = None,
    tokens: _Tokens = None,
    public_url: Annotated[
        str, typer.Option("--public-url", help="The URL that visitors use, if it is another one.", metavar="URL")
    ] = "",
    secret: _SecretPlace = "",
    within: Annotated[
        float, typer.Option("--within", help="How long a task may take, in seconds.", min=1, max=86400)
    ] = 300.0,
    rate: _Rate = 200.0,
    serve: Annotated[
        int, typer.Option("--serve", help="Run it on the cluster, as so many replicas.", metavar="N", min=0)
    ] = 0,
    credentials: Annotated[
        str,
        typer.Option(
            "--credentials",
            help="With --serve: the file of a user of the role gateway, at the same path on each machine.",
            metavar="PATH",
        ),
    ] = "",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print what an MCP host needs to be told, and leave.")
    ] = False,
) -> None:
    """Serve agents to clients of other protocols, until Ctrl-C or `squadron down`."""
    doors = [name for name, wanted in (("mcp", mcp or stdio), ("a2a", a2a), ("synadia", synadia)) if wanted]
    options: dict[str, Any] = {"host": host, "port": port, "public_url": public_url.rstrip("/"), "secret": secret}
    options |= {"agents": agents or [], "topics": topics or [], "tokens": tokens or []}
    options |= {"lite": lite or [], "push_to": push_to or [], "within_s": within, "rate": rate}
    if print_config:
        frame.execute(_print_config(ctx, doors, stdio, options))
    if serve:
        frame.execute(_deploy(ctx, doors, stdio, {**options, "credentials": credentials}, serve))
    if credentials:
        raise typer.BadParameter(
            "only replicas need it: set SQUADRON_USER or NATS_CREDS", param_hint="--credentials"
        )
    frame.execute(_serve(ctx, doors, stdio, options), fast=True)


async def _deploy(
    ctx: typer.Context, names: list[str], stdio: bool, options: dict[str, Any], replicas: int
) -> int:
    from squadron.bridge.gateways.doors import load_door
    from squadron.bridge.gateways.fronting import GatewayOptions
    from squadron.bridge.serve.gateway_agent import GATEWAY, GatewayAgent
    from squadron.cli.progress import watching

    settings = frame.settings_of(ctx)
    if stdio:
        raise ConfigError("--stdio serves one client, and no replica has its streams", hint="leave --serve out")
    options["credentials"] = _gateway_file(settings, options["credentials"])
    chosen = GatewayOptions(doors=tuple(names), **options)
    chosen.check(settings)
    for name in names:
        load_door(name)
    agent = GatewayAgent.opening(chosen, replicas)
    async with frame.connected(settings) as squad:
        with watching(f"Opening {', '.join(names)}") as watch:
            watch.phase("deploy")
            await squad.deploy(agent, on_progress=watch.agents)
    frame.tell(f"Serving {', '.join(names)} at {chosen.url}; `squadron undeploy {GATEWAY}` ends it.")
    return frame.OK


def _gateway_file(settings: Settings, given: str) -> str:
    """The credentials that replicas of a gateway connect with, as a path; empty where there are none."""
    from pathlib import Path

    from squadron.bridge.gateways.fronting import gateway_in
    from squadron.bridge.jetstream.link.at_home import as_user

    if given:
        gateway_in(Path(given), settings)
        return str(Path(given).absolute())
    if as_user(settings).nats_user_credentials is not None:
        raise ConfigError(
            "replicas have the rights of an agent, who reads no runs and hears no prompts: a gateway has its own",
            hint="squadron auth add gateway doors, and name its file: --credentials PATH",
        )
    return ""


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
    from squadron.bridge.gateways.fronting import GatewayOptions

    chosen = GatewayOptions(doors=tuple(names), **options)
    if not stdio:
        chosen.check(settings)
    openers = [load_door(name) for name in names]
    async with contextlib.AsyncExitStack() as rest:
        wiring = await _connected(settings)
        rest.push_async_callback(wiring.aclose)
        front, doors = await rest.enter_async_context(chosen.running(wiring, openers))
        # What was loaded stays as long as the process: not to be looked at again whenever garbage is. That may be
        # sooner from here on: requests leave cycles behind.
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        if stdio:
            return await _on_streams(doors[0], front)
        if chosen.needs_http:
            return await _on_http(doors, chosen, front, wiring)
        return await _on_nats(names, front)


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


async def _on_http(doors: list[Door], chosen: GatewayOptions, front: Front, wiring: Wiring) -> int:
    from squadron.bridge.gateways.doors import gateway_app
    from squadron.bridge.gateways.http_server import HttpServer
    from squadron.bridge.gateways.running_gateways import announced

    settings = front.place.settings
    app = gateway_app(doors, front, lambda: wiring.connection.is_connected)
    async with HttpServer(app, chosen.host, chosen.port, front.leaving) as server:
        url = chosen.public_url or server.url
        with announced(settings.home, settings.env, chosen.doors, url):
            frame.tell(f"Serving {', '.join(chosen.doors)} at {url}; Ctrl-C ends it.")
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

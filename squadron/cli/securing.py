"""Certificates, for the local nats-server (`up --tls`) or your own (`auth tls`), and keys that seal."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.cli.named_agents import named_agents
from squadron.config import Settings
from squadron.runtime.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(rotate_key)


def tls(
    ctx: typer.Context,
    hosts: Annotated[
        list[str] | None,
        typer.Argument(metavar="HOST...", help="Names and addresses by which clients reach the server."),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option("--client", help="Make one for a client of this name; the server then looks for such."),
    ] = None,
    days: Annotated[int, typer.Option("--days", help="How long they are good.")] = 397,
    as_json: Json = False,
) -> None:
    """Make certificates by the CA of this home, for a nats-server of your own and for its clients.

    Prints what the server's configuration takes, and what clients set. The CA is made at first.
    """
    frame.execute(_tls(ctx, hosts or [], client or [], days, as_json), as_json=as_json)


async def _tls(ctx: typer.Context, hosts: list[str], clients: list[str], days: int, as_json: bool) -> int:
    settings = frame.settings_of(ctx)
    if not hosts and not clients:
        raise ConfigError("for whom?", hint="squadron auth tls HOST… [--client NAME]")
    made = await asyncio.to_thread(_made, settings, hosts, clients, days)
    if as_json:
        frame.print_json(made)
        return frame.OK
    if server := made["server"]:
        frame.tell("Beside `jetstream { … }` in the configuration of the server, which gets these files:")
        frame.write(server["conf"])
    for each in made["clients"] or [{"environ": {"NATS_CA": made["ca"]}}]:
        frame.tell(f"{each.get('name', 'A client')} sets, and writes tls:// in NATS_URL:")
        for variable, value in each["environ"].items():
            frame.write(f"{variable}={value}\n")
    frame.tell("The CA's key stays here: who has it is believed to be the server.")
    return frame.OK


def _made(settings: Settings, hosts: list[str], clients: list[str], days: int) -> dict[str, Any]:
    from squadron.bridge.auth.certificates import CertificateAuthority
    from squadron.bridge.jetstream.link.at_home import TlsFiles

    with CertificateAuthority.open(settings.home) as authority:
        made: dict[str, Any] = {"ca": str(authority.path), "server": None, "clients": []}
        if hosts:
            server = authority.for_server(hosts, days=days)
            own = {"cert_file": str(server.cert), "key_file": str(server.key), "min_version": "1.2"}
            conf = own | ({"ca_file": made["ca"], "verify": True} if clients else {})
            # JSON is a part of the language of these configurations.
            text = f"tls: {json.dumps(conf, indent=2)}\n"
            made["server"] = {"hosts": hosts, "ends_at": server.ends_at, "conf": text}
        for name in clients:
            each = authority.for_client(name, days=days)
            environ = TlsFiles(authority.path, each.cert, each.key).environ()
            made["clients"].append({"name": name, "ends_at": each.ends_at, "environ": environ})
    return made


def choose_tls(settings: Settings, tls: bool, mutual: bool) -> None:
    """Have TLS for the local nats-server, or not, from its next start on.

    Raises:
        ConfigError: it runs in another way, or it is none of ours.
    """
    from squadron.bridge.auth.certificates import secure_embedded, unsecure_embedded
    from squadron.bridge.jetstream.link import embedded
    from squadron.bridge.jetstream.link.at_home import embedded_tls

    if settings.nats_url is not None:
        raise ConfigError(
            "--tls is for the local nats-server, and NATS_URL names another",
            hint="make certificates for that: squadron auth tls HOST",
        )
    server, _ = embedded_tls(settings.home)
    if (bool(server), server.ca is not None) == (tls, mutual):
        return
    if embedded.find(settings.home) is not None:
        raise ConfigError(
            f"the server of {settings.home} runs {_wire(bool(server), server.ca is not None)}",
            hint="stop it first: squadron down",
        )
    # Also from mutual TLS to that of the server alone.
    unsecure_embedded(settings.home)
    if tls:
        secure_embedded(settings.home, mutual=mutual)


def _wire(tls: bool, mutual: bool) -> str:
    return "with mutual TLS" if mutual else "with TLS" if tls else "without TLS"


def rotate_key(
    ctx: typer.Context,
    agents: Annotated[
        list[str] | None, typer.Argument(metavar="AGENT...", help="As `squadron status` has it.")
    ] = None,
    own: Annotated[bool, typer.Option("--own", help="Our own key, for which answers to us are sealed.")] = False,
    as_json: Json = False,
) -> None:
    """Give agents, or ourselves, new keys for sealed payloads; what was sealed for the old ones still opens."""
    frame.execute(_rotate_key(ctx, agents or [], own, as_json), as_json=as_json)


async def _rotate_key(ctx: typer.Context, agents: list[str], own: bool, as_json: bool) -> int:
    if not agents and not own:
        raise ConfigError("whose key?", hint="squadron rotate-key AGENT…, or --own")
    settings, keys = frame.settings_of(ctx), dict[str, str]()
    if agents:
        async with frame.connected(settings) as squad:
            await named_agents(squad, agents)
            keys = {agent: await squad.rotate_key(agent) for agent in agents}
    if own:
        keys["own"] = await asyncio.to_thread(_rotate_own, settings)
    if as_json:
        frame.print_json(keys)
    else:
        for agent, key in keys.items():
            frame.tell(f"{agent} is sealed for by {key} from here on")
    return frame.OK


def _rotate_own(settings: Settings) -> str:
    from squadron.bridge.jetstream.link.at_home import as_user
    from squadron.bridge.seal_rings import rotate_own
    from squadron.bridge.trusting import Trusting

    me = Trusting.of(as_user(settings), time.time).me
    return str(rotate_own(settings, "" if me is None else me.name).public)

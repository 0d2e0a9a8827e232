"""auth: who may use the environment's server, and by which credentials."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.cli.securing import tls
from squadron.config import Settings
from squadron.runtime.errors import ConfigError

_ROLES = ("bridge", "agent", "client", "operator", "observer", "gateway", "foreign")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: What `export` gives beside the credentials of a user.
_DOCUMENTS = ("server", "trust", "accounts", "agent-keys")


def _roles(incomplete: str) -> list[str]:
    return [each for each in _ROLES if each.startswith(incomplete)]


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    from squadron.bridge.auth.authority import Authority

    try:
        given = (ctx.find_root().params.get(name) for name in ("env", "home"))
        settings = Settings.load(**dict(zip(("env", "home"), given, strict=True)))
        return [each for each in Authority.load(settings.home).users(settings.env) if each.startswith(incomplete)]
    except ConfigError:
        return []


def _exported(ctx: typer.Context, incomplete: str) -> list[str]:
    return [each for each in _DOCUMENTS if each.startswith(incomplete)] + _names(ctx, incomplete)


RoleName = Annotated[str, typer.Argument(metavar="ROLE", help=", ".join(_ROLES), autocompletion=_roles)]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="As `squadron auth list` has it.", autocompletion=_names)
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(no_args_is_help=True)
    # Named here: a function called `list` would hide the type.
    commands = (init, add, rotate, revoke, export, tls)
    for name, command in (("list", list_users), *((each.__name__, each) for each in commands)):
        group.command(name)(command)
    app.add_typer(group, name="auth", help="Credentials: who may use the server, and what in. Revoked at once.")


def init(ctx: typer.Context, as_json: Json = False) -> None:
    """Make an authority in this home: its server then lets in who has a credential, with the rights of a role.

    What is stored stays. The servers of the home must not run.
    """
    frame.execute(_init(ctx, as_json), as_json=as_json)


async def _init(ctx: typer.Context, as_json: bool) -> int:
    from squadron.bridge.auth.authority import Authority
    from squadron.bridge.jetstream.link import embedded
    from squadron.bridge.jetstream.link.at_home import authority_of

    settings = frame.settings_of(ctx)
    if await asyncio.to_thread(embedded.find, settings.home) is not None:
        raise ConfigError(f"the server of {settings.home} runs", hint="stop it first: squadron down")
    authority = await asyncio.to_thread(Authority.create, settings.home, settings.env)
    facts: dict[str, Any] = {"authority": str(authority_of(settings.home)), "environment": settings.env}
    facts |= {"users": list(authority.users(settings.env))}
    if as_json:
        frame.print_json(facts)
    else:
        frame.tell(f"{facts['authority']} vouches for {', '.join(facts['users'])} of {settings.env}.")
        frame.tell("Keep a copy of it where only you can read it. Next: squadron up · squadron auth add ROLE NAME")
    return frame.OK


def add(
    ctx: typer.Context,
    role: RoleName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is; of an agent, the agent's name.")],
    expires: Annotated[
        str, typer.Option("--expires", help="How long it is good, like 12h or 90d; else without an end.")
    ] = "",
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="A group of durable events that it is in, NAME or AGENT.METHOD."),
    ] = None,
    serves: Annotated[
        list[str] | None,
        typer.Option("--serves", help="A topic of an agent, or a pattern like math.*; else any."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            help="mcp:ID or synadia:AGENT.OWNER: an agent asks those, a gateway answers as that MCP server, "
            "and a foreign program is prompted as those agents; prompts:AGENT.OWNER: it prompts those.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let somebody in, at once and without a restart; prints where its credentials are."""
    tags = {"groups": group or [], "serves": serves or [], "peers": peer or []}
    frame.execute(_add(ctx, role, name, expires, tags, as_json), as_json=as_json)


async def _add(
    ctx: typer.Context,
    role: str,
    name: str,
    expires: str,
    tags: dict[str, list[str]],
    as_json: bool,
) -> int:
    from squadron.bridge.auth.authority import Authority

    settings, for_s = frame.settings_of(ctx), _seconds(expires)
    with Authority.open(settings.home) as authority:
        user, path = authority.add(settings.env, role, name, **tags, for_s=for_s)
    if as_json:
        frame.print_json(
            {**_told(name, user), "credentials": str(path), "environ": _environ(name, user.role, str(path))}
        )
    else:
        frame.tell(f"{name} is in, as {role}. Whoever is to be it sets:")
        for variable, value in _environ(name, user.role, str(path)).items():
            frame.write(f"{variable}={value}\n")
    return frame.OK


def list_users(ctx: typer.Context, as_json: Json = False) -> None:
    """List who was let in. Replicas are not among them: the bridge lets them in, for an hour each time."""
    frame.execute(_list(ctx, as_json), as_json=as_json)


async def _list(ctx: typer.Context, as_json: bool) -> int:
    from rich.table import Table

    from squadron.bridge.auth.authority import Authority

    settings = frame.settings_of(ctx)
    users = Authority.load(settings.home).users(settings.env)
    told = [_told(name, user) for name, user in users.items()]
    if as_json:
        frame.print_json(told)
        return frame.OK
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("NAME", "ROLE", "SINCE (UTC)", "UNTIL (UTC)", "KEY"):
        table.add_column(column, no_wrap=True)
    for each in told:
        until = "expired" if each["expired"] else _when(each["expires_at"]) or "for ever"
        table.add_row(each["name"], each["role"], _when(each["issued_at"]), until, each["user"])
    frame.out().print(table)
    return frame.OK


def rotate(
    ctx: typer.Context,
    role: RoleName,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Make no key: have the newest alone vouch, and end what others did.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have a new key vouch for a role, and make its credentials anew; the old ones are good until --drop-old."""
    frame.execute(_rotate(ctx, role, drop_old, as_json), as_json=as_json)


async def _rotate(ctx: typer.Context, role: str, drop_old: bool, as_json: bool) -> int:
    from squadron.bridge.auth.authority import Authority

    settings = frame.settings_of(ctx)
    with Authority.open(settings.home) as authority:
        renewed = authority.rotate(settings.env, role, drop_old=drop_old)
    live = await _reload(settings)
    if as_json:
        frame.print_json({"role": role, "renewed": renewed, "dropped_old": drop_old, "reloaded": live})
    elif drop_old:
        frame.tell(f"Only the newest key vouches for {role} now.")
    else:
        frame.tell(
            f"Anew: {', '.join(renewed) or 'nobody'}. When all have theirs: squadron auth rotate {role} --drop-old"
        )
    return frame.OK


def revoke(ctx: typer.Context, name: Name, as_json: Json = False) -> None:
    """Let somebody in no more: its connections end at once. Takes a name, or the public key of a credential."""
    frame.execute(_revoke(ctx, name, as_json), as_json=as_json)


async def _revoke(ctx: typer.Context, name: str, as_json: bool) -> int:
    from squadron.bridge.auth.authority import Authority

    settings = frame.settings_of(ctx)
    with Authority.open(settings.home) as authority:
        user = authority.revoke(settings.env, name)
    live = await _reload(settings)
    if as_json:
        frame.print_json({"revoked": name, "user": user, "reloaded": live})
    else:
        frame.tell(f"{name} is out.")
    return frame.OK


async def _reload(settings: Settings) -> bool:
    from squadron.bridge.jetstream.link import embedded

    live = await asyncio.to_thread(embedded.reload, settings.home)
    if not live:
        frame.tell("No server of this home runs. One of your own wants it anew: squadron auth export server")
    return live


def export(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="server|trust|accounts|agent-keys|NAME",
            help="What a plain nats-server is told; the trust document; the JWTs of operator and accounts; what "
            "the bridge makes credentials of replicas with; or the credentials of a user.",
            autocompletion=_exported,
        ),
    ],
) -> None:
    """Print what others need, on stdout. `agent-keys` and credentials are secrets."""
    frame.execute(_export(ctx, what))


async def _export(ctx: typer.Context, what: str) -> int:
    from squadron.bridge.auth.authority import Authority
    from squadron.bridge.jetstream.link.at_home import credentials_of

    settings = frame.settings_of(ctx)
    authority = Authority.load(settings.home)
    match what:
        case "server":
            text = authority.server_conf()
        case "trust":
            text = json.dumps(authority.trust(settings.env), indent=1) + "\n"
        case "accounts":
            text = json.dumps(authority.tokens(), indent=1) + "\n"
        case "agent-keys":
            text = authority.agent_keys(settings.env).to_json() + "\n"
        case name if name in authority.users(settings.env):
            text = await asyncio.to_thread(credentials_of(settings.home, settings.env, name).read_text)
        case _:
            known = ", ".join((*_DOCUMENTS, *authority.users(settings.env)))
            raise ConfigError(f"there is no {what!r} to export", hint=f"one of {known}")
    frame.write_whole(text)
    return frame.OK


def _environ(name: str, role: str, path: str) -> dict[str, str]:
    from squadron.bridge.auth.roles import API_PREFIX, inbox_prefix
    from squadron.bridge.jetstream.link.at_home import OF_ALL

    if role == "bridge":
        return {"NATS_CREDS": path, "SQUADRON_NATS_OWN": OF_ALL}
    own = {"SQUADRON_NATS_OWN": name} if role == "agent" else {}
    prefixes = {"SQUADRON_NATS_API": API_PREFIX, "SQUADRON_NATS_INBOX": inbox_prefix(name)}
    return {"NATS_CREDS": path, **prefixes, **own}


def _told(name: str, user: Any) -> dict[str, Any]:
    facts = {each: getattr(user, each) for each in ("role", "user", "issued_at", "expires_at")}
    more = {"groups": list(user.groups), "serves": list(user.serves) if user.role == "agent" else []}
    more["peers"] = list(user.peers)
    return {"name": name, **facts, **more, "expired": 0 < user.expires_at <= time.time()}


def _when(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") if at else ""


def _seconds(text: str) -> float:
    if not text:
        return 0.0
    if (found := re.fullmatch(r"(\d{1,9})([smhd])", text)) is None or int(found[1]) == 0:
        raise ConfigError(f"--expires: {text!r} can't be used", hint="a number and a unit, like 12h or 90d")
    return float(found[1]) * _UNITS[found[2]]

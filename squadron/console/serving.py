"""The console at a port: where it listens, who may come in, and how its address is told."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from squadron.bridge.daemons import private_dir, write_private
from squadron.bridge.health.probes import Probes
from squadron.client.squad import Squad
from squadron.config import Settings
from squadron.console.web_app import console_app
from squadron.runtime.background import spawn
from squadron.runtime.errors import ConfigError
from squadron.views.console_place import ConsolePlace

#: How long connections may take to end when it stops, in seconds: feeds never end by themselves.
STOP_WITHIN_S = 1
#: Shortest token that is taken, in characters: of letters and digits 95 bits.
LEAST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Served:
    """A console that is served: its address, and the link that logs a browser in."""

    url: str
    login: str
    token_file: str
    read_only: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; without the link, which is a credential."""
        return {"console": self.url, "token_file": self.token_file, "read_only": self.read_only}


def check_host(host: str, token_file: Path | None) -> None:
    """Refuse to listen where others are without a token that somebody chose for it.

    Raises:
        ConfigError: the interface is public.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and token_file is None:
        raise ConfigError(
            f"{host} can be reached by others, and no token was chosen for them",
            hint="give --token-file, and put TLS in front; or leave --host at 127.0.0.1",
        )


def own_token(settings: Settings, token_file: Path | None) -> tuple[str, Path]:
    """The console's token, and the file in which it lies; without a file of the user's one is made in the home.

    Raises:
        ConfigError: the file can't be read, or holds less than 16 characters.
    """
    path = token_file or private_dir(settings.home / "console") / "token"
    try:
        token = path.read_text().strip()
    except OSError as error:
        if token_file is not None:
            raise ConfigError(f"{path} can't be read: {error.strerror}", hint="see --token-file") from None
        token = secrets.token_urlsafe(32)
        write_private(path, token)
    if len(token) < LEAST_TOKEN:
        hint = f"at least {LEAST_TOKEN} characters that nobody guesses: openssl rand -hex 24"
        raise ConfigError(f"the token in {path} is too short", hint=hint)
    return token, path


def _tokens(settings: Settings, own: str) -> Iterable[str]:
    """Ours, and that of the local Ray: who may use its dashboard may use this."""
    yield own
    if settings.ray_address is None:
        with contextlib.suppress(OSError):
            yield (settings.home / "ray" / "token").read_text().strip()


def _listen(host: str, port: int, settings: Settings) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        there = ConsolePlace.find(settings)
        hint = f"a console runs already, at {there.url}; " if there is not None else ""
        hint += "choose another --port, or 0 for any that is free"
        # Not `error.strerror`: asyncio and socket put the address into it, which stands here already.
        why = os.strerror(error.errno) if error.errno is not None else str(error)
        raise ConfigError(f"port {port} of {host} can't be used: {why}", hint=hint) from None


@contextlib.asynccontextmanager
async def serving(
    squad: Squad,
    *,
    host: str,
    port: int,
    read_only: bool,
    by: str,
    token_file: Path | None = None,
    names: Iterable[str] = (),
) -> AsyncIterator[Served]:
    """Serve the console meanwhile.

    Args:
        port: 0 takes any that is free.
        by: in whose name questions are answered.
        token_file: holds the token; by default one is made in the home.
        names: under which it is reached besides, `host` or `host:port`, as behind a proxy.

    Raises:
        ConfigError: the interface is public and there is no token, or the port is taken.
        BusUnavailableError: the server can't be reached.
    """
    settings = squad.settings
    check_host(host, token_file)
    own, path = own_token(settings, token_file)
    listener = _listen(host, port, settings)
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    hosts = {f"{each}:{port}" for each in (shown, "127.0.0.1", "localhost", "[::1]")} | set(names)
    probes = Probes(squad._wiring.connection, squad._wiring.ports.subjects)  # type: ignore[attr-defined]

    async def ready() -> Mapping[str, str]:
        return {name: each.trouble for name, each in (await probes.ready()).items()}

    app = console_app(squad, ready, tokens=lambda: _tokens(settings, own), hosts=hosts, read_only=read_only, by=by)
    url = f"http://{shown}:{port}"
    place = ConsolePlace(url, os.getpid(), read_only)
    async with _serving(app, listener):
        try:
            place.write(settings)
            yield Served(url, f"{url}/login?token={own}", str(path), read_only)
        finally:
            place.forget(settings)


@contextlib.asynccontextmanager
async def _serving(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    import uvicorn

    quiet: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
    }
    config = uvicorn.Config(app, lifespan="on", timeout_graceful_shutdown=STOP_WITHIN_S, **quiet)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    # Whoever runs us minds signals: so not by `serve`, which would.
    await server.startup(sockets=[listener])
    if server.should_exit:
        raise ConfigError("the console did not start", hint="see what was logged before")
    work = spawn(server.main_loop(), "console", lasting=True)
    try:
        yield
    finally:
        server.should_exit = True
        await work
        await server.shutdown(sockets=[listener])

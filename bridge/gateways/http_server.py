"""An HTTP server in the event loop of whoever runs it, on loopback unless visitors are told apart."""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from squadron.bridge.gateways.http_guard import MOST_UNDER_WAY, App
from squadron.runtime.background import spawn
from squadron.runtime.errors import ConfigError

if TYPE_CHECKING:
    import asyncio

#: How long requests that are under way may go on after a stop, in seconds.
LEAVE_WITHIN_S = 3
#: Largest part of a request before its body, in bytes; the guard tells sooner and politely.
_HEAD_BYTES = 64 * 1024

#: Open files of a gateway that are no visitor's: modules, the bus, what it fetches.
_OTHER_FILES = 200


def most_connections() -> int:
    """How many connections this process can hold: each is an open file, of which many systems give it 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_UNDER_WAY + _OTHER_FILES
    has, may = (wanted if each == resource.RLIM_INFINITY else each for each in (soft, hard))
    if has < (more := min(may, wanted)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        has = more
    return max(1, has - _OTHER_FILES)


def check_bind(host: str, *, authenticated: bool, public_url: str) -> None:
    """Refuse to listen where strangers come by, unless it is known who they are and under which name they come.

    Raises:
        ConfigError: it is not loopback, and there are no tokens, or no public URL.
    """
    if _is_loopback(host):
        return
    if not authenticated:
        raise ConfigError(
            f"--host {host} can be reached by others, and nobody would have to say who they are",
            hint="give each visitor a token: --token NAME=env:VARIABLE; or listen on 127.0.0.1",
        )
    if not public_url:
        raise ConfigError(
            f"--host {host} needs the URL that visitors use, for requests under other names are refused",
            hint="for example --public-url https://agents.example.org",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpServer:
    """One listening socket and what is served there, as long as it is entered; `leaving` is set when it ends."""

    def __init__(self, app: App, host: str, port: int, leaving: asyncio.Event, *, shared: bool = False) -> None:
        """Make one.

        Args:
            shared: whether other processes of this user listen on the same port: the system shares visitors out.
        """
        self._app, self._host, self._port, self._leaving = app, host, port, leaving
        self._shared = shared
        self._server: Any = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens, as `http://127.0.0.1:8811`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def __aenter__(self) -> HttpServer:
        """Listen.

        Raises:
            ConfigError: the address can't be had.
        """
        import uvicorn

        class InOurLoop(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                # Signals are for whoever runs the loop.
                yield

        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # By its name: of other sockets asyncio doesn't turn off Nagle's algorithm, which costs 40 ms an answer.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((self._host, self._port))
            # Who comes before the server looks waits, instead of being refused.
            listening.listen(1024)
        except (OSError, OverflowError) as error:
            listening.close()
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"can't listen on {self._host}:{self._port}: {why}", hint="another --port, or 0 for any"
            ) from None
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LEAVE_WITHIN_S,
            # Whoever comes beyond that is told so (503), instead of being left to wait.
            limit_concurrency=most_connections(),
            h11_max_incomplete_event_size=_HEAD_BYTES,
            http="h11",
            ws="none",
        )
        self._server = InOurLoop(config)
        self._serving = spawn(self._server.serve(sockets=[listening]), "gateway", lasting=True)
        return self

    async def serve(self) -> None:
        """Go on until the server ends, or this is cancelled."""
        assert self._serving is not None
        await self._serving

    async def __aexit__(self, *_: object) -> None:
        """Take no more requests, and let those under way end."""
        self._leaving.set()
        if self._serving is not None and not self._serving.done():
            self._server.should_exit = True
            with contextlib.suppress(Exception):
                await self._serving

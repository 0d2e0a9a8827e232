"""Opening a connection: to which server, with what credentials, and what to tell when it fails."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import ParseResult, unquote

import nats.errors
import structlog

from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.connect import RECONNECT_WAIT_S, Connection
from squadron.bridge.jetstream.link.lasting_client import LastingClient
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError, ConfigError, SquadronError
from squadron.runtime.redact import keep_secret
from squadron.runtime.retries import summary_of

#: How long the first connection may take, in seconds; afterwards reconnecting goes on for ever.
CONNECT_WITHIN_S = 5.0
#: The server is pinged this often, in seconds, and given up when it owes three answers, after six seconds: a host
#: that is gone closes nothing. A ping costs the server some microseconds. nats-py's default is four minutes.
PING_INTERVAL_S, MOST_PINGS_OWED = 2, 2

_log = structlog.get_logger("squadron.nats")


async def connect(settings: Settings, *, name: str, start_embedded: bool = False) -> Connection:
    """Connect to the user's server, or to the embedded one (started first if `start_embedded`).

    Raises:
        ConfigError: nothing runs here, or the credentials are wrong; says what to do.
        BusUnavailableError: the server can't be reached.
    """
    url, token = await _address(settings, start_embedded)
    connection = Connection(_Client(settings.nats_inbox_prefix), settings.nats_api_prefix)
    options: dict[str, Any] = {"inbox_prefix": settings.nats_inbox_prefix}
    if token:
        options["token"] = token
    keep_secret(token, settings.nats_password)
    if settings.nats_url and settings.nats_user:
        options |= {"user": settings.nats_user, "password": settings.nats_password}
    if settings.nats_user_credentials:
        options["user_credentials"] = str(settings.nats_user_credentials)
    if settings.nats_nkey_seed_file:
        options["nkeys_seed"] = str(settings.nats_nkey_seed_file)
    if settings.nats_tls_ca or settings.nats_tls_cert:
        options["tls"] = _tls(settings)

    trouble = _Trouble(url)
    connecting = asyncio.create_task(_connect(connection, url, name, trouble, options), name="nats connect")
    try:
        await asyncio.wait({connecting, trouble.final}, timeout=CONNECT_WITHIN_S, return_when="FIRST_COMPLETED")
        if not connecting.done():
            raise trouble.error()
        await connecting
    except BaseException as error:
        connecting.cancel()
        # Not closed before it has ended: nats-py would go on opening what was closed. It may have gone
        # through all the same: `wait_for` of CPython 3.11 forgets a cancel that comes with what it waits for.
        try:
            await asyncio.gather(connecting, return_exceptions=True)
        finally:
            await connection.aclose()
        if isinstance(error, nats.errors.Error | OSError | ValueError):
            raise trouble.error(error) from None
        raise
    trouble.connected = True
    return connection


async def _connect(
    connection: Connection, url: str, name: str, trouble: _Trouble, options: dict[str, Any]
) -> None:
    await connection.client.connect(
        servers=[part.strip() for part in url.split(",")],
        name=name,
        connect_timeout=2,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # it is slept, so a fraction is fine
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=MOST_PINGS_OWED,
        # Ours are built and checked in `runtime.wire.subjects`.
        skip_subject_validation=True,
        error_cb=trouble.hear,
        disconnected_cb=connection.disconnected,
        reconnected_cb=connection.reconnected,
        **options,
    )
    await connection.open()


class _Uri(ParseResult):
    """A server's URL whose credentials are percent-encoded, as nats.go and the command line `nats` have it."""

    @property
    def username(self) -> str | None:
        return _decoded(super().username)

    @property
    def password(self) -> str | None:
        return _decoded(super().password)


def _decoded(part: str | None) -> str | None:
    if part is None:
        return None
    keep_secret(part, unquote(part))
    return unquote(part)


class _Client(LastingClient):
    @staticmethod
    def _parse_server_uri(connect_url: str) -> _Uri:
        # nats-py itself sends them as they are written.
        return _Uri(*LastingClient._parse_server_uri(connect_url))


class _Trouble:
    """What nats-py tells while it tries: it goes on for ever, so somebody else must say when it is hopeless."""

    def __init__(self, url: str) -> None:
        # A URL may hold a password; only the host is shown.
        self._host = url.rsplit("@", 1)[-1]
        self._servers = len(url.split(","))
        self._heard: list[Exception] = []
        self.final: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connected = False

    async def hear(self, error: Exception) -> None:
        """Take in one error. Must never raise: an exception here ends nats-py's read loop."""
        if self.connected:
            _log.warning("nats.error", error=summary_of(error))
            return
        self._heard.append(error)
        tried_all = len(self._heard) >= 2 * self._servers
        if (tried_all or self._is_refusal(error)) and not self.final.done():
            self.final.set_result(None)

    @staticmethod
    def _is_refusal(error: Exception) -> bool:
        return "authorization" in str(error).lower()

    def error(self, last: Exception | None = None) -> SquadronError:
        """What to tell the user."""
        heard = [*self._heard, *([last] if last else [])]
        if any(self._is_refusal(each) for each in heard):
            return ConfigError(
                f"NATS at {self._host} refused the credentials", hint="check NATS_URL, NATS_CREDS or NATS_NKEY"
            )
        detail = (str(heard[-1]) or type(heard[-1]).__name__) if heard else f"no answer in {CONNECT_WITHIN_S:g} s"
        return BusUnavailableError(
            f"NATS at {self._host} can't be reached: {detail}", hint="is the server running, and NATS_URL right?"
        )


async def _address(settings: Settings, start_embedded: bool) -> tuple[str, str]:
    if settings.nats_url:
        return settings.nats_url, ""
    seek = embedded.ensure if start_embedded else embedded.find
    endpoint = await asyncio.to_thread(seek, settings.home)
    if endpoint is None:
        raise ConfigError(
            "no squad is running here", hint="start one with `squadron up`, or set NATS_URL to reach another"
        )
    return endpoint.url, endpoint.token


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.nats_tls_ca and str(settings.nats_tls_ca))
        if settings.nats_tls_cert:
            key = settings.nats_tls_key and str(settings.nats_tls_key)
            context.load_cert_chain(str(settings.nats_tls_cert), key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS files: {error}", hint="check NATS_CA, NATS_CERT and NATS_KEY") from None
    return context

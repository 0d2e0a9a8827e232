"""Opening a connection: to which server, with what credentials, and what to tell when it fails."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import ParseResult, unquote

import nats.errors

from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.at_home import TlsFiles, tls_files
from squadron.bridge.jetstream.link.connect import RECONNECT_WAIT_S, Connection
from squadron.bridge.jetstream.link.lasting_client import LastingClient
from squadron.bridge.jetstream.link.tls import explain_tls, no_tls, tls_context
from squadron.config import Settings
from squadron.nats_urls import check_nats_url
from squadron.runtime.errors import BusUnavailableError, ConfigError, SquadronError, TlsError
from squadron.runtime.logs import get_logger
from squadron.runtime.redact import keep_secret
from squadron.runtime.retries import summary_of
from squadron.runtime.secret import Secret, resolved

#: How long the first connection may take, in seconds; afterwards reconnecting goes on for ever.
CONNECT_WITHIN_S = 5.0
#: The server is pinged this often, in seconds, and given up when it owes three answers, after six seconds: a host
#: that is gone closes nothing. A ping costs the server some microseconds. nats-py's default is four minutes.
PING_INTERVAL_S, MOST_PINGS_OWED = 2, 2

_log = get_logger("squadron.nats")


async def connect(settings: Settings, *, name: str, start_embedded: bool = False) -> Connection:
    """Connect to the user's server, or to the embedded one (started first if `start_embedded`).

    Raises:
        ConfigError: nothing runs here, or the credentials are wrong; says what to do.
        BusUnavailableError: the server can't be reached.
    """
    url, token = await _address(settings, start_embedded)
    address = functools.partial(resolved, settings.nats_url or "")
    files = tls_files(settings)
    if files:
        tls_context(files)  # what can't be read is told at once
    client = _Client(address, settings.nats_inbox_prefix, files)
    connection = Connection(client, settings.nats_api_prefix)
    options: dict[str, Any] = {"inbox_prefix": settings.nats_inbox_prefix}
    if token:
        options["token"] = token
    keep_secret(token)
    if settings.nats_url and settings.nats_user:
        # Looked up for each connection that is made: it may have been changed since the last one.
        options |= {"user": settings.nats_user, "password": _looked_up(settings.nats_password)}
    if settings.nats_user_credentials:
        options["user_credentials"] = str(settings.nats_user_credentials)
    if settings.nats_nkey_seed_file:
        options["nkeys_seed"] = str(settings.nats_nkey_seed_file)

    trouble = _Trouble(url, client)
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
    """Reads its address anew before it gives its credentials: they may have been changed since.

    Its files of TLS are read anew for each connection, too.

    Args:
        address: the servers' URLs, as they are now.
        files: what is taken for TLS; if there are any, no connection goes without.
    """

    def __init__(self, address: Callable[[], str], inbox_prefix: str, files: TlsFiles) -> None:
        super().__init__(inbox_prefix)
        self._address, self.files = address, files
        self._context: ssl.SSLContext | None = None

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Asked for before each handshake."""
        try:
            self._context = tls_context(self.files)
        except TlsError as error:
            if self._context is None:
                raise
            # With those it had: the next attempt looks again.
            _log.warning("nats.tls", error=summary_of(error))
        return self._context

    @property
    def wants_certificates(self) -> bool:
        """Whether the server says that it looks for certificates of its clients."""
        return bool(self._server_info.get("tls_verify"))

    def _connect_command(self) -> bytes:
        server = self._current_server
        # nats-py goes on in the clear if the server, or who stands before it, says nothing of TLS.
        wanted = bool(self.files) or (server is not None and server.uri.scheme == "tls")
        if wanted and not self.peer_certificate:
            raise no_tls(_shown(server.uri) if server is not None else "")
        if server is not None and server.uri.username is not None:
            try:
                now = [self._parse_server_uri(part.strip()) for part in self._address().split(",")]
                server.uri = next((uri for uri in now if _host(uri) == _host(server.uri)), server.uri)
            except (SquadronError, ValueError) as error:
                # With those it had: the next attempt looks again.
                _log.warning("nats.credentials", error=summary_of(error))
        return super()._connect_command()

    @staticmethod
    def _parse_server_uri(connect_url: str) -> _Uri:
        # nats-py itself sends them as they are written.
        return _Uri(*LastingClient._parse_server_uri(connect_url))


def _looked_up(secret: Secret) -> Callable[[], str]:
    """The secret as it is now, or as it was when it could last be read: nats-py would give up over an error.

    Raises:
        ConfigError: it can't be read at all.
    """
    last = secret.value()

    def now() -> str:
        nonlocal last
        try:
            last = secret.value()
        except ConfigError as error:
            _log.warning("nats.credentials", error=summary_of(error))
        return last

    return now


def _host(uri: ParseResult) -> tuple[str | None, int | None]:
    return uri.hostname, uri.port


def _shown(uri: ParseResult) -> str:
    return f"{uri.hostname}:{uri.port}"


class _Trouble:
    """What nats-py tells while it tries: it goes on for ever, so somebody else must say when it is hopeless."""

    def __init__(self, url: str, client: _Client) -> None:
        self._client = client
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
        for each in heard:
            files, wants = self._client.files, self._client.wants_certificates
            if (told := explain_tls(each, self._host, files, wants_ours=wants)) is not None:
                return told
        detail = (str(heard[-1]) or type(heard[-1]).__name__) if heard else f"no answer in {CONNECT_WITHIN_S:g} s"
        return BusUnavailableError(
            f"NATS at {self._host} can't be reached: {detail}", hint="is the server running, and NATS_URL right?"
        )


async def _address(settings: Settings, start_embedded: bool) -> tuple[str, str]:
    if settings.nats_url:
        url = resolved(settings.nats_url)
        check_nats_url(url)
        return url, ""
    ensure = functools.partial(embedded.ensure, trusted=settings.nats_server_sha256)
    endpoint = await asyncio.to_thread(ensure if start_embedded else embedded.find, settings.home)
    if endpoint is None:
        raise ConfigError(
            "no squad is running here", hint="start one with `squadron up`, or set NATS_URL to reach another"
        )
    return endpoint.url, endpoint.token

"""One connection to NATS, with the care that nats-py needs: see `docs/decisions/0002-nats-py.md`."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from squadron.bridge.jetstream import embedded
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError, ConfigError, MessageTooLargeError, SquadronError

NANOSECONDS = 1_000_000_000
#: How long a server may take to answer an API call or to acknowledge a publish, in seconds.
API_WITHIN_S = 5.0
#: How long the first connection may take, in seconds; afterwards reconnecting goes on for ever.
CONNECT_WITHIN_S = 5.0
#: A dead connection is found after this many seconds without an answer to a ping, times two. nats-py's
#: default is four minutes, in which a connection whose read loop died looks alive.
PING_INTERVAL_S = 10

#: Pause between attempts to reconnect, in seconds.
RECONNECT_WAIT_S = 0.25

#: How long an acknowledgement may wait for others, in seconds: each send costs a system call and wakes the server.
SOON_S = 0.005

#: Status of the answer that a server gives for want of anybody else (ADR-4 of NATS).
_NO_RESPONDERS = "503"
#: How a batch of direct gets ends: that was all, or there is none.
_BATCH_ENDS = ("204", "404")

_log = structlog.get_logger("squadron.nats")


class _Handover(asyncio.Queue[Msg]):
    """Stands where nats-py has a subscription's queue, and hands each message on at once."""

    def __init__(self, sink: Callable[[Msg], None]) -> None:
        super().__init__()
        self._sink = sink

    def put_nowait(self, item: Msg) -> None:
        try:
            self._sink(item)
        except Exception:
            _log.exception("nats.sink_raised", subject=item.subject)


def _give_up(answer: asyncio.Future[Msg]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


class Connection:
    """A NATS connection that reconnects for ever and tells when it did."""

    def __init__(self, client: Client) -> None:
        self.client = client
        #: When it was made, or came back, in seconds since the epoch.
        self.connected_at = time.time()
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._inbox = client.new_inbox()
        self._tokens = map(str, itertools.count())
        self._questions: dict[str, asyncio.Future[Msg]] = {}
        self._soon: list[tuple[str, bytes]] = []

    @property
    def is_connected(self) -> bool:
        """Whether messages flow; a dead read loop counts as not connected, whatever nats-py says."""
        reading = getattr(self.client, "_reading_task", None)
        return bool(self.client.is_connected) and not (reading is not None and reading.done())

    @property
    def server(self) -> str:
        """`host:port` of the server, without credentials."""
        url = self.client.connected_url
        return url.netloc.rsplit("@", 1)[-1] if url is not None else ""

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` each time the connection came back."""
        self._on_reconnect.append(sink)

    def off_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` no more."""
        self._on_reconnect.remove(sink)

    async def reconnected(self) -> None:
        """Tell everybody who asked. Must not raise or wait: nats-py awaits it in its reconnect path."""
        self.connected_at = time.time()
        for answer in self._questions.values():
            # The answer, if there was one, went to the old connection.
            if not answer.done():
                answer.set_exception(nats.errors.Error("the connection was lost meanwhile"))
        for sink in self._on_reconnect:
            self._background_task(self._tell(sink), "reconnected")

    async def _tell(self, sink: Callable[[], Awaitable[None]]) -> None:
        try:
            await sink()
        except Exception as error:
            _log.warning("nats.after_reconnect", error=str(error))

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        headers: dict[str, str] | None = None,
        within_s: float = API_WITHIN_S,
    ) -> Msg:
        """One question, one answer.

        Raises:
            BusUnavailableError: nobody there, no answer in time, or the connection is down.
            MessageTooLargeError: larger than the server takes.
        """
        self._check_size(data, headers)
        token = next(self._tokens)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Msg] = loop.create_future()
        self._questions[token] = answer
        # A plain timer: `asyncio.timeout` costs three times as much, for each message.
        giving_up = loop.call_later(within_s, _give_up, answer)
        try:
            await self.client.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
            msg = await answer
        except (TimeoutError, nats.errors.Error, OSError) as error:
            detail = str(error) or type(error).__name__
            raise BusUnavailableError(f"no answer on {subject} within {within_s:g} s: {detail}") from None
        finally:
            giving_up.cancel()
            del self._questions[token]
        if msg.headers and msg.headers.get("Status") == _NO_RESPONDERS:
            raise BusUnavailableError(f"nobody answers on {subject}")
        return msg

    def _hear_answer(self, msg: Msg) -> None:
        answer = self._questions.get(msg.subject.rsplit(".", 1)[-1])
        if answer is not None and not answer.done():
            answer.set_result(msg)

    async def open(self) -> None:
        """Be ready for answers; once, after connecting."""
        await self.listen(f"{self._inbox}.*", self._hear_answer)

    async def listen(self, subject: str, sink: Callable[[Msg], None], *, group: str = "") -> Subscription:
        """Hand each message on `subject` to `sink`, straight from the read loop.

        nats-py itself puts a queue and a task between the two, which costs about 40 µs for each message.
        What `sink` raises is logged: in the read loop it would end the connection.
        """
        subscription = await self.client.subscribe(
            subject, queue=group, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        early, subscription._pending_queue = subscription._pending_queue, _Handover(sink)
        while not early.empty():
            subscription._pending_queue.put_nowait(early.get_nowait())
        return subscription

    def _check_size(self, data: bytes, headers: dict[str, str] | None) -> None:
        # nats-py leaves the headers out of its check, and the server closes the connection over them.
        size = len(data)
        if headers:
            lines = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
            size += len(b"NATS/1.0\r\n\r\n") + lines
        if size > self.client.max_payload:
            raise MessageTooLargeError(
                f"{size:,} bytes are more than the server's {self.client.max_payload:,}",
                hint="send a reference instead, or raise the server's max_payload",
            )

    async def request_many(self, subject: str, data: bytes) -> list[Msg]:
        """One direct get of a batch: the entries, until the server says that it is over (ADR-31 of NATS).

        Raises:
            BusUnavailableError: the end did not come in time, or nobody answers.
        """
        answers: list[Msg] = []
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def collect(msg: Msg) -> None:
            headers = msg.headers or {}
            if "Nats-Sequence" in headers:
                answers.append(msg)
            elif not ended.done():
                ended.set_result(headers.get("Status", ""))

        inbox = self.client.new_inbox()
        try:
            subscription = await self.listen(inbox, collect)
            try:
                await self.client.publish(subject, data, reply=inbox)
                status = await asyncio.wait_for(ended, API_WITHIN_S)
            finally:
                await subscription.unsubscribe()
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusUnavailableError(f"no answer on {subject}: {error or type(error).__name__}") from None
        if status not in _BATCH_ENDS:
            raise BusUnavailableError(f"{subject} answered with status {status!r}")
        return answers

    async def publish(
        self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send without waiting for anything.

        Raises:
            BusUnavailableError: the connection is closed, or down for so long that its buffer is full.
            MessageTooLargeError: larger than the server takes.
        """
        self._check_size(data, headers)
        try:
            await self.client.publish(subject, data, reply=reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailableError(f"can't send on {subject}: {error}") from None

    def publish_soon(self, subject: str, data: bytes) -> None:
        """Send within `SOON_S`, together with what else is to be sent by then."""
        if not self._soon:
            asyncio.get_running_loop().call_later(
                SOON_S, lambda: self._background_task(self._publish_soon(), "soon")
            )
        self._soon.append((subject, data))

    async def _publish_soon(self) -> None:
        soon, self._soon = self._soon, []
        for subject, data in soon:
            try:
                await self.publish(subject, data)
            except BusUnavailableError as error:
                _log.info("nats.not_sent", subject=subject, error=str(error))

    async def confirm_soon(self) -> None:
        """Send what is to be sent soon, and wait until the server has worked it off.

        Raises:
            BusUnavailableError: it did not say so in time.
        """
        soon, self._soon = self._soon, []
        await asyncio.gather(*(self.request(subject, data) for subject, data in soon))

    def _background_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"nats {name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def flush(self) -> None:
        """Wait until the server has taken all that was sent.

        Shielded: nats-py answers the pong of a cancelled flush with an exception that ends its read loop.
        """
        await asyncio.shield(self.client.flush())

    async def api(self, call: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One JetStream API call; the answer may hold an `error`."""
        answer = await self.request(f"$JS.API.{call}", json.dumps(payload).encode())
        decoded: dict[str, Any] = json.loads(answer.data)
        return decoded

    async def aclose(self) -> None:
        """Send what is buffered and close. May be called twice."""
        if self.client.is_closed:
            return
        await self._publish_soon()
        try:
            await asyncio.wait_for(self.flush(), 1.0)
        except (TimeoutError, nats.errors.Error, OSError):
            _log.debug("nats.close_unflushed")
        await self.client.close()


async def connect(settings: Settings, *, name: str, start_embedded: bool = False) -> Connection:
    """Connect to the user's server, or to the embedded one (started first if `start_embedded`).

    Raises:
        ConfigError: nothing runs here, or the credentials are wrong; says what to do.
        BusUnavailableError: the server can't be reached.
    """
    url, token = await _address(settings, start_embedded)
    connection = Connection(Client())
    options: dict[str, Any] = {"token": token} if token else {}
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
        await connection.client.close()
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
        max_outstanding_pings=2,
        # Ours are built and checked in `runtime.subjects`.
        skip_subject_validation=True,
        error_cb=trouble.hear,
        reconnected_cb=connection.reconnected,
        **options,
    )
    await connection.open()


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
            _log.warning("nats.error", error=str(error) or type(error).__name__)
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

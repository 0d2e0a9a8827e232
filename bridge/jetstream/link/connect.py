"""One connection to NATS, with the care that nats-py needs: see `docs/decisions/0002-nats-py.md`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import nats
import nats.errors
from nats.aio.subscription import Subscription
from pydantic_core import from_json

from squadron.bridge.jetstream.link.lasting_client import Handover, Heard, LastingClient
from squadron.runtime.background import spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    InvalidSubjectError,
    MessageTooLargeError,
    SquadClosedError,
    SquadronError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of
from squadron.runtime.texts import encoded

NANOSECONDS = 1_000_000_000
#: How long a server may take to answer an API call or to acknowledge a publish, in seconds.
API_WITHIN_S = 5.0
#: How often it is looked for questions whose time is up, in seconds.
SWEEP_S = 0.1
#: Pause between attempts to reconnect, in seconds.
RECONNECT_WAIT_S = 0.25
#: In characters, of up to four bytes: a server closes over lines of more than 4,096 bytes (`max_control_line`).
MAX_SUBJECT = 1_000
#: Room for headers in what the server takes as one message: ids, time to live, trace.
HEADER_BYTES = 4096
#: How long an acknowledgement may wait for others, in seconds: each send costs a system call and wakes the server.
SOON_S = 0.005
#: Status of the answer that a server gives for want of anybody else (ADR-4 of NATS).
_NO_RESPONDERS = "503"
#: How a batch of direct gets ends: that was all, or there is none.
_BATCH_ENDS = ("204", "404")

T = TypeVar("T")
Headers = dict[str, str] | None
#: What an answer is made into if another one follows: the question stays open.
NOT_YET: Any = object()

_log = get_logger("squadron.nats")


class _Question(NamedTuple):
    """Who waits for an answer, to what, until when on the loop's clock, and what is made of the answer."""

    answer: asyncio.Future[Any]
    subject: str
    until: float
    read: Callable[[Heard, str], Any] = lambda heard, _: heard


class Connection:
    """A NATS connection that reconnects for ever and tells when it did; calls JetStream at `api_prefix`."""

    def __init__(self, client: LastingClient, api_prefix: str = "$JS.API") -> None:
        self.client, self.api_prefix = client, api_prefix
        # Kept, because asking for it costs a system call each time (CPython 3.11 looks at the process id).
        self._loop = asyncio.get_running_loop()
        #: When it was made, or came back, in seconds since the epoch.
        self.connected_at = time.time()
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._on_disconnect: list[Callable[[], None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._inbox = client.new_inbox()
        self._tokens = map(str, itertools.count())
        self._questions: dict[str, _Question] = {}
        self._sweeping = self._closed = False
        self._soon: list[tuple[str, bytes]] = []
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether messages flow; a dead read loop counts as not connected, whatever nats-py says."""
        return bool(self.client.is_connected) and not self.client.fault

    @property
    def silent_s(self) -> float:
        """Seconds since the last round trip to the server; there is one every `PING_INTERVAL_S`."""
        return self.client.silent_s

    @property
    def server(self) -> str:
        """`host:port` of the server, without credentials."""
        url = self.client.connected_url
        return url.netloc.rsplit("@", 1)[-1] if url is not None else ""

    @property
    def version(self) -> str:
        """The server's version, like `2.15.1`."""
        return str(self.client._server_info.get("version", ""))

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes in one message, headers included."""
        return int(self.client.max_payload)

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` each time the connection came back."""
        self._on_reconnect.append(sink)

    def off_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` no more; one that was never to be called is fine."""
        if sink in self._on_reconnect:
            self._on_reconnect.remove(sink)

    def on_disconnect(self, sink: Callable[[], None]) -> None:
        """Call `sink` each time the connection is lost, before there is a new one. It must not raise."""
        self._on_disconnect.append(sink)

    def off_disconnect(self, sink: Callable[[], None]) -> None:
        """Call `sink` no more; one that was never to be called is fine."""
        if sink in self._on_disconnect:
            self._on_disconnect.remove(sink)

    async def disconnected(self) -> None:
        """End the wait for answers: they went to the old connection. Must not raise or wait, as the next."""
        for sink in list(self._on_disconnect):
            sink()
        self._give_up_all()

    def _give_up_all(self) -> None:
        for token in list(self._questions):
            self._give_up(token, "the connection was lost meanwhile")

    async def reconnected(self) -> None:
        """Tell everybody who asked. Must not raise or wait: nats-py awaits it in its reconnect path."""
        self.connected_at = time.time()
        self._give_up_all()
        self.client.flush_now()
        for sink in self._on_reconnect:
            self._background_task(self._tell(sink), "reconnected")

    async def _tell(self, sink: Callable[[], Awaitable[None]]) -> None:
        try:
            await sink()
        except Exception as error:
            _log.warning("nats.after_reconnect", error=summary_of(error))

    def ask(
        self,
        subject: str,
        data: bytes,
        read: Callable[[Heard, str], T],
        *,
        headers: Headers = None,
        within_s: float = API_WITHIN_S,
    ) -> asyncio.Future[T]:
        """Send one question; the future is what `read` makes of its answer (and the subject).

        It fails with what `read` raises, and otherwise as `request` does.

        Raises:
            MessageTooLargeError: larger than the server takes.
            InvalidSubjectError: the subject is longer than the server takes.
        """
        return self.ask_many(subject, [("", data, headers)], read, within_s=within_s)

    def ask_many(
        self,
        subject: str,
        messages: Sequence[tuple[str, bytes, Headers]],
        read: Callable[[Heard, str], T],
        *,
        within_s: float = API_WITHIN_S,
        signed: bool = True,
    ) -> asyncio.Future[T]:
        """As `ask`, with one question in several messages, each with what its reply subject ends with."""
        for _, data, headers in messages:
            self._check(subject, data, headers, signed=signed)
        answer: asyncio.Future[T] = self._loop.create_future()
        token = next(self._tokens)
        reply = f"{self._inbox}.{token}"
        self._questions[token] = _Question(answer, subject, self._loop.time() + within_s, read)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)
        try:
            for ending, data, headers in messages:
                self.client.post(subject, data, reply=reply + ending, headers=headers, signed=signed)
        except nats.errors.Error as error:
            self._give_up(token, str(error))
        return answer

    async def request(
        self, subject: str, data: bytes, *, headers: Headers = None, within_s: float = API_WITHIN_S
    ) -> Heard:
        """One question, one answer.

        Raises:
            BusUnavailableError: nobody there, no answer in time, or the connection is down.
            MessageTooLargeError: larger than the server takes.
            InvalidSubjectError: the subject is longer than the server takes.
        """
        await self.client.give_way()
        return await self.ask(subject, data, lambda heard, _: heard, headers=headers, within_s=within_s)

    def _give_up(self, token: str, why: str) -> None:
        question = self._questions.pop(token)
        if not question.answer.done():
            question.answer.set_exception(self.error(f"no answer on {question.subject}: {why}"))
            # Whoever asked may be gone by now, as at the end of a program.
            question.answer.exception()

    def error(self, message: str) -> SquadronError:
        """What to raise when nothing comes: the server may be back later, what was closed here is not."""
        if self._closed:
            return SquadClosedError("the connection to NATS was closed here", hint="open a squad anew")
        return BusUnavailableError(message)

    def _sweep(self) -> None:
        """End the waits whose time is up; a timer for each would cost more than all else that a question needs."""
        now = self._loop.time()
        for token in [token for token, question in self._questions.items() if question.until <= now]:
            self._give_up(token, "none within its time")
        self._sweeping = bool(self._questions)
        if self._sweeping:
            self._loop.call_later(SWEEP_S, self._sweep)

    def _hear_answer(self, msg: Heard) -> None:
        token = msg.subject[len(self._inbox) + 1 :].partition(".")[0]
        question = self._questions.pop(token, None)
        if question is None:
            return
        answer, subject, _, read = question
        if answer.done():
            return
        # On a stored entry somebody may have put a header of this name.
        if not msg.data and msg.headers.get("Status") == _NO_RESPONDERS and "Nats-Sequence" not in msg.headers:
            answer.set_exception(BusUnavailableError(f"nobody answers on {subject}"))
            return
        try:
            result = read(msg, subject)
        except Exception as error:
            return answer.set_exception(error)
        if result is not NOT_YET:
            return answer.set_result(result)
        self._questions[token] = question

    async def open(self) -> None:
        """Be ready for answers; once, after connecting."""
        self._watching = spawn(self.client.watch(), "nats watch", lasting=True)
        await self.listen(f"{self._inbox}.>", self._hear_answer)

    async def listen(self, subject: str, sink: Callable[[Heard], None], *, group: str = "") -> Subscription:
        """Hand each message on `subject` to `sink`, straight from the read loop.

        nats-py itself puts a queue and a task between the two, which costs about 40 µs for each message.
        What `sink` raises is logged: in the read loop it would end the connection.

        Raises:
            SquadClosedError: this connection was closed.
        """
        if self._closed:
            raise self.error("")
        subscription = await self.client.subscribe(
            subject, queue=group, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        early, subscription._pending_queue = subscription._pending_queue, Handover(sink)
        while not early.empty():
            msg = early.get_nowait()
            sink(Heard(msg.subject, msg.reply, msg.data, msg.headers))
        return subscription

    def _check(self, subject: str, data: bytes, headers: Headers, *, signed: bool) -> None:
        if self._closed:
            raise self.error("")
        if len(subject) > MAX_SUBJECT:
            raise InvalidSubjectError(f"a subject of {len(subject):,} characters is too long")
        size = len(data) + (self.client.signature_bytes if signed else 0)
        if size < self.client.max_payload - HEADER_BYTES:
            return
        # nats-py leaves the headers out of its check, and the server closes the connection over them.
        if headers:
            lines = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
            size += len(b"NATS/1.0\r\n\r\n") + lines
        if size > self.client.max_payload:
            raise MessageTooLargeError(
                f"{size:,} bytes are more than the server's {self.client.max_payload:,}",
                hint="send a reference instead, or raise the server's max_payload",
            )

    async def request_many(self, subject: str, data: bytes) -> list[Heard]:
        """One direct get of a batch: the entries, until the server says that it is over (ADR-31 of NATS).

        If the connection is lost on the way, those that came are the answer: they come in order.

        Raises:
            BusUnavailableError: the end did not come in time, or nobody answers.
        """
        answers: list[Heard] = []

        def collect(msg: Heard, _: str) -> Any:
            if "Nats-Sequence" not in msg.headers:
                return msg.headers.get("Status", "")
            answers.append(msg)
            return NOT_YET

        try:
            status = await self.ask(subject, data, collect)
        except BusUnavailableError:
            if answers:
                return answers
            raise
        if status not in _BATCH_ENDS:
            raise BusUnavailableError(f"{subject} answered with status {status!r}")
        return answers

    async def publish(
        self, subject: str, data: bytes, *, reply: str = "", headers: Headers = None, signed: bool = True
    ) -> None:
        """Send without waiting for anything.

        Raises:
            BusUnavailableError: the connection is closed, or down for so long that its buffer is full.
            MessageTooLargeError: larger than the server takes.
            InvalidSubjectError: the subject is longer than the server takes.
        """
        self._check(subject, data, headers, signed=signed)
        await self.client.give_way()
        try:
            self.client.post(subject, data, reply=reply, headers=headers, signed=signed)
        except nats.errors.Error as error:
            raise self.error(f"can't send on {subject}: {error}") from None

    def publish_soon(self, subject: str, data: bytes) -> None:
        """Send within `SOON_S`, together with what else is to be sent by then."""
        if not self._soon:
            self._loop.call_later(SOON_S, self._publish_soon)
        self._soon.append((subject, data))

    def _publish_soon(self) -> None:
        soon, self._soon = self._soon, []
        for subject, data in soon:
            try:
                self.client.post(subject, data)
            except nats.errors.Error as error:
                _log.info("nats.not_sent", subject=subject, error=summary_of(error))

    async def confirm_soon(self) -> None:
        """Send what is to be sent soon, and wait until the server has worked it off.

        Raises:
            BusUnavailableError: it did not say so in time.
        """
        soon, self._soon = self._soon, []
        await asyncio.gather(*(self.request(subject, data) for subject, data in soon))

    def _background_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = spawn(work, f"nats {name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def flush(self) -> None:
        """Wait until the server has taken all that was sent; raises BusUnavailableError if it does not say so."""
        try:
            await self.client.flush()
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise self.error(f"not all was taken: {error or type(error).__name__}") from None

    async def api(self, call: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One JetStream API call; the answer may hold an `error`."""
        answer = await self.request(f"{self.api_prefix}.{call}", encoded(payload))
        decoded: dict[str, Any] = from_json(answer.data, cache_strings="keys")
        return decoded

    async def aclose(self) -> None:
        """Send what is buffered and close; whoever waits for an answer is told. May be called twice."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        if self.client.is_closed:
            return
        self._publish_soon()
        try:
            async with asyncio.timeout(1.0):
                await self.flush()
        except (TimeoutError, BusUnavailableError, SquadClosedError):
            _log.debug("nats.close_unflushed")
        finally:
            # Also when this is cancelled meanwhile.
            try:
                await self.client.close()
            except OSError as error:
                # The server is away, and there was something to be sent yet.
                _log.debug("nats.close_unsent", error=summary_of(error))
            # Whoever waits for a flush or an answer.
            self.client._give_up_pongs(nats.errors.ConnectionClosedError())
            await self.disconnected()

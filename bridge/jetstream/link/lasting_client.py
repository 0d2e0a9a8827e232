"""nats-py's client, with the ways in which it goes deaf mended: see `docs/decisions/0002-nats-py.md`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_FLUSH_TIMEOUT, DEFAULT_PENDING_SIZE, Client

from squadron.bridge.jetstream.link.wire_parser import WireParser
from squadron.runtime.background import cancel_all
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import traceback_of
from squadron.runtime.trust.agent_sender import SENDER_HEADER

#: How often the client's own tasks are looked at, in seconds: none ends without being replaced, unless it broke.
WATCH_S = 1.0

#: How long at most, in seconds, a message waits for others to be sent with it, as long as each turn of the event
#: loop brings some: each write costs system calls here, at the server, and at whoever hears of it.
GATHER_S = 0.001

#: Longest header that we sign with, in bytes: its subject has 1,000 characters at most.
SIGNATURE_BYTES = 1_400
#: Subject, payload and headers → the headers that are sent.
Sign = Callable[[str, bytes, dict[str, str] | None], dict[str, str]]

_log = get_logger("squadron.nats")


class Heard:
    """A message that came. Its headers are parsed when they are looked at: most never are."""

    __slots__ = ("_headers", "data", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, headers: bytes | dict[str, str] | None) -> None:
        self.subject, self.reply, self.data = subject, reply, data
        self._headers = headers or {}

    @property
    def headers(self) -> dict[str, str]:
        """The headers, the last of each name, with `Status` and `Description` if it has a status line (ADR-4)."""
        if isinstance(self._headers, bytes):
            self._headers = _parse(self._headers)
        return self._headers

    @property
    def raw_headers(self) -> bytes:
        """The headers as they came; empty if there are none, or if they were looked at."""
        return self._headers if isinstance(self._headers, bytes) else b""


class HeadersOf(Mapping[str, str]):
    """The headers of a message that was heard, which are still unparsed until somebody looks."""

    __slots__ = ("_heard",)

    def __init__(self, heard: Heard) -> None:
        self._heard = heard

    def __getitem__(self, name: str) -> str:
        return self._heard.headers[name]

    # As `Mapping` has it, which asks by way of an exception.
    def get(self, name: str, default: Any = None) -> Any:
        return self._heard.headers.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._heard.headers)

    def __len__(self) -> int:
        return len(self._heard.headers)


def _parse(raw: bytes) -> dict[str, str]:
    # The server checks none of it.
    first, *lines = raw.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    _, _, status = first.partition(" ")
    if status:
        headers["Status"], _, description = status.partition(" ")
        if description:
            headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            # Who signed it must be said once.
            headers[name] = "" if name == SENDER_HEADER and name in headers else value.strip()
    return headers


class Handover(asyncio.Queue[Any]):
    """Stands where nats-py has a subscription's queue: what would be queued goes to `sink` at once."""

    def __init__(self, sink: Callable[[Heard], None]) -> None:
        super().__init__()
        self.sink = sink


class LastingClient(Client):
    """Outlives what others send, and knows when it last heard the server. Use `watch` beside it."""

    def __init__(self, inbox_prefix: str = "_INBOX") -> None:
        """Make one; answers to it come below `inbox_prefix`."""
        super().__init__()
        # nats-py learns it when it connects, and is asked for inboxes before.
        self._inbox_prefix = bytearray(inbox_prefix.encode())
        self._ps = WireParser(self, self._take)
        self._heard_at = time.monotonic()
        self._loop, self._flush_due = asyncio.get_running_loop(), False
        #: Makes the headers of what is sent on a subject; None signs nothing.
        self.sign: Sign | None = None
        #: What is signed when it leaves, not before: the connection may be away until then.
        self._unsigned: list[tuple[str, bytes, str, dict[str, str] | None, bool]] = []

    @property
    def silent_s(self) -> float:
        """Seconds since the server's last answer to a ping: a round trip, whatever the flags say."""
        return time.monotonic() - self._heard_at

    @property
    def peer(self) -> str:
        """The address at the other end; empty if there is none."""
        return str((self._about_wire("peername") or ("",))[0])

    @property
    def peer_certificate(self) -> dict[str, Any]:
        """The server's certificate, as `ssl` tells it; empty if the wire is plain."""
        wire = self._about_wire("ssl_object")
        return (wire.getpeercert() or {}) if wire is not None else {}

    def _about_wire(self, what: str) -> Any:
        writer = getattr(self._transport, "_io_writer", None)
        return writer.get_extra_info(what) if writer is not None else None

    @property
    def signature_bytes(self) -> int:
        """How many bytes at most a signature adds to a message."""
        return 0 if self.sign is None else SIGNATURE_BYTES

    @property
    def fault(self) -> str:
        """Which of the tasks that keep it alive has ended; the empty string if none."""
        vital: dict[str, asyncio.Task[Any] | None] = {}
        if self.is_connected:
            vital = {
                "read loop": self._reading_task,
                "flusher": self._flusher_task,
                "pings": self._ping_interval_task,
            }
        elif self.is_reconnecting:
            vital = {"reconnecting": self._reconnection_task}
        return ", ".join(name for name, task in vital.items() if task is not None and task.done())

    def post(
        self,
        subject: str,
        data: bytes,
        *,
        reply: str = "",
        headers: dict[str, str] | None = None,
        signed: bool = True,
    ) -> None:
        """What `publish` does, without its checks and in a third of its time; sent within `GATHER_S`.

        Subject, reply and headers must be well-formed. While the connection is away it is kept for later.

        Raises:
            nats.errors.Error: the connection is closed or closing, or away for so long that no more is kept.
        """
        if self._status != Client.CONNECTED:
            self._check_kept(len(data))
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush, 1, self._loop.time() + GATHER_S)
        if self.sign is not None:
            # All of them wait there, so that none overtakes another.
            self._unsigned.append((subject, data, reply, headers, signed))
            self._pending_data_size += len(data)
            return
        command = _command(subject, data, reply, headers)
        self._pending.append(command)
        self._pending_data_size += len(command)

    def _check_kept(self, size: int) -> None:
        """Refuse what is not kept for later either; raises as `post`."""
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise nats.errors.ConnectionDrainingError
        if not self.is_connected and size + self._pending_data_size > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError

    def _flush(self, had: int, until: float) -> None:
        """Write what is to be sent, unless the last turn of the loop brought more than one: so may the next."""
        held = len(self._pending) + len(self._unsigned)
        if held > had and self._loop.time() < until:
            self._loop.call_soon(self._flush, held, until)
            return
        self._flush_due = False
        self.flush_now()

    def flush_now(self) -> None:
        """Write what is to be sent at once; what finds the connection lost is kept for the one that comes."""
        if not (self._pending or self._unsigned):
            return
        if self.is_connected and self._transport is not None and not self._is_lost:
            if self._unsigned:
                self._sign_all()
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(pending)

    def _sign_all(self) -> None:
        unsigned, self._unsigned = self._unsigned, []
        for subject, data, reply, headers, signed in unsigned:
            # What begins so is for the server itself.
            if signed and self.sign is not None and not subject.startswith("$"):
                headers = self.sign(subject, data, headers)
            self._pending.append(_command(subject, data, reply, headers))

    @property
    def _is_lost(self) -> bool:
        """Whether the socket is gone, which nats-py learns of when it reads next."""
        # asyncio would throw away whatever is written, and log each time.
        writer = getattr(self._transport, "_io_writer", None)
        return writer is not None and writer.transport.is_closing()

    async def give_way(self) -> None:
        """Wait while the server does not take what was written: who publishes much calls it now and then."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and writer.transport.get_write_buffer_size() > DEFAULT_PENDING_SIZE:
            # If the connection is lost meanwhile, what is sent next is kept for the one that comes.
            with contextlib.suppress(OSError):
                await writer.drain()

    async def reconnect(self) -> None:
        """Give up the connection, and make another; nothing to do while that goes on."""
        await self._process_op_err(nats.errors.StaleConnectionError())

    async def watch(self) -> None:
        """Find out, until closed, when it is dead without knowing it, and make it reconnect. Never raises."""
        while not self.is_closed:
            await asyncio.sleep(WATCH_S)
            try:
                if fault := self.fault:
                    _log.warning("nats.revived", ended=fault)
                    # A client that believes that it is reconnecting does nothing more.
                    self._status = Client.CONNECTED
                    await self._process_op_err(nats.errors.StaleConnectionError())
            except Exception as error:
                _log.error("nats.watch", traceback=traceback_of(error))

    def _connect_command(self) -> bytes:
        wire = getattr(getattr(self._transport, "_io_writer", None), "transport", None)
        if wire is not None and wire.get_extra_info("ssl_object") is not None:
            # nats-py tells the reader nothing of the transport that TLS has put there: it would hold back no
            # server that sends more than is read, and have asyncio complain of each end.
            wire.get_protocol().connection_made(wire)
        return super()._connect_command()

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected:
            writer = getattr(self._transport, "_io_writer", None)
            if writer is not None:
                # A close waits until all is sent, which a server that hangs never takes.
                writer.transport.abort()
            await super()._process_op_err(e)
            # Not before a reconnect that is cancelled by this has ended: it may wait for a pong of its own, would
            # take the error for an answer, and go on beside the one that begins now.
            asyncio.get_running_loop().call_soon(self._give_up_pongs, e)

    def _give_up_pongs(self, error: Exception) -> None:
        """Whoever waits for a flush need not wait for its time to end."""
        pongs, self._pongs = self._pongs, []
        for pong in pongs:
            if not pong.done():
                pong.set_exception(error)
                # Most pings have nobody who waits; asyncio would complain of that.
                pong.exception()

    async def _process_pong(self) -> None:
        self._heard_at = time.monotonic()
        if self._pongs and self._pongs[0].done():
            # Somebody gave up on it; setting its result would raise, and end the read loop.
            self._pongs[0] = asyncio.Future()
        await super()._process_pong()

    async def flush(self, timeout: float = DEFAULT_FLUSH_TIMEOUT) -> None:
        """Wait until the server has taken all that was sent; raises as nats-py's, and is cancelled as any other.

        Raises:
            FlushTimeoutError: it did not say so in `timeout` seconds.
        """
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        try:
            await super().flush(timeout)  # type: ignore[arg-type]
        finally:
            # It forgets a cancel that comes with the pong, or with an error (`wait_for` of CPython 3.11).
            if task.cancelling() > cancels:
                raise asyncio.CancelledError

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # One that forgot its cancel would take what is closed for lost, and connect again for ever.
        reconnecting = self._reconnection_task
        if reconnecting is not None and reconnecting is not asyncio.current_task():
            await cancel_all([reconnecting])
        await super()._close(status, do_cbs)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes a ping past what is to be sent before it; its pong would say that all of it has arrived.
        self.flush_now()
        await super()._send_ping(future)

    async def _process_err(self, err_msg: str) -> None:
        """Only tell: nats-py would close for good, and the server closes by itself if it means it so."""
        await self._error_cb(nats.errors.Error(f"nats: {err_msg}"))

    def _take(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> bool:
        """Hand a message to its sink, if it has one."""
        subscription = self._subs.get(sid)
        if subscription is None or not isinstance(subscription._pending_queue, Handover):
            return False
        # The server does not check that a subject is UTF-8. One that is not fits no grammar of ours.
        msg = Heard(subject.decode(errors="replace"), reply.decode(errors="replace"), data, headers)
        try:
            subscription._pending_queue.sink(msg)
        except Exception as error:
            # It must not end the read loop.
            _log.error("nats.sink_raised", subject=msg.subject, traceback=traceback_of(error))
        return True


def _command(subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> bytes:
    if not headers:
        return b"".join((f"PUB {subject} {reply} {len(data)}\r\n".encode(), data, b"\r\n"))
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    line = f"HPUB {subject} {reply} {len(head)} {len(head) + len(data)}\r\n".encode()
    return b"".join((line, head, data, b"\r\n"))

"""nats-py's client, with the ways in which it goes deaf mended: see `docs/decisions/0002-nats-py.md`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol import parser

#: How often the client's own tasks are looked at, in seconds: none ends without being replaced, unless it broke.
WATCH_S = 1.0

#: What ends a word of the protocol. nats-py also takes a form feed for it, which the server lets through in a
#: subject: it would lose its place, reconnect, get the same stored message again, and so for ever.
_WORD, _GAP = rb"([^ \t\r\n]+)", rb"[ \t]+"

#: Headers with nothing in them that has to be mended or left out, and one of them.
_PLAIN_HEADERS = re.compile(rb"(?:[!-9;-~]+: [!-~](?:[ -~]*[!-~])?\r\n)+\r\n")
_HEADER = re.compile(r"([!-9;-~]+): ([^\r]+)\r\n")

_log = structlog.get_logger("squadron.nats")


class Handover(asyncio.Queue[Msg]):
    """Stands where nats-py has a subscription's queue, and hands each message on at once."""

    def __init__(self, sink: Callable[[Msg], None]) -> None:
        super().__init__()
        self._sink = sink

    def put_nowait(self, item: Msg) -> None:
        """Give it to the sink, which can't end the read loop by what it raises."""
        try:
            self._sink(item)
        except Exception:
            _log.exception("nats.sink_raised", subject=item.subject)


class LastingClient(Client):
    """Outlives what others send, and knows when it last heard the server. Use `watch` beside it."""

    def __init__(self) -> None:
        super().__init__()
        _mend_parser()
        self._heard_at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the server's last answer to a ping: a round trip, whatever the flags say."""
        return time.monotonic() - self._heard_at

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

    def flush_now(self) -> None:
        """Write what is to be sent at once; left to itself, nats-py does so in another turn of the loop."""
        if self._pending and self.is_connected and self._transport is not None:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(pending)

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
            except Exception:
                _log.exception("nats.watch")

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected:
            writer = getattr(self._transport, "_io_writer", None)
            if writer is not None:
                # A close waits until all is sent, which a server that hangs never takes.
                writer.transport.abort()
            await super()._process_op_err(e)
            self._give_up_pongs(e)

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

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes a ping past what is to be sent before it; its pong would say that all of it has arrived.
        self.flush_now()
        await super()._send_ping(future)

    async def _process_err(self, err_msg: str) -> None:
        """Only tell: nats-py would close for good, and the server closes by itself if it means it so."""
        await self._error_cb(nats.errors.Error(f"nats: {err_msg}"))

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            # The server checks none of it.
            return None

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """In half of nats-py's time, if they are as servers write them; most messages have some."""
        if _PLAIN_HEADERS.fullmatch(raw):
            return dict(_HEADER.findall(raw.decode("ascii")))
        parsed: dict[str, str] = Client._parse_header_lines(raw)
        return parsed

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # Nor that a subject is UTF-8. One that is not fits no grammar of ours, and is refused by it.
        return Msg(
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )


def _mend_parser() -> None:
    head = _WORD + _GAP + _WORD + _GAP + rb"(" + _WORD + _GAP + rb")?"
    parser.MSG_RE = re.compile(rb"\AMSG" + _GAP + head + rb"(\d+)\r\n")
    parser.HMSG_RE = re.compile(rb"\AHMSG" + _GAP + head + rb"(\d+)" + _GAP + rb"(\d+)\r\n")

"""nats-py's parser, with messages read where they lie: its own moves all that is left for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nats.protocol.parser import Parser

#: What ends a word of the protocol. nats-py also takes a form feed for it, which the server lets through in a
#: subject: it would lose its place, reconnect, get the same stored message again, and so for ever.
_WORD, _GAP = rb"([^ \t\r\n]+)", rb"[ \t]+"
_HEAD = _GAP + _WORD + _GAP + rb"(\d+)" + _GAP + rb"(?:" + _WORD + _GAP + rb")?"
_MSG = re.compile(rb"MSG" + _HEAD + rb"(\d+)\r\n")
_HMSG = re.compile(rb"HMSG" + _HEAD + rb"(\d+)" + _GAP + rb"(\d+)\r\n")
_H, _END = ord("H"), b"\r\n"

#: Subscription, subject, reply subject, payload, and headers if there are any → whether somebody took it.
Take = Callable[[int, bytes, bytes, bytes, bytes | None], bool]


class WireParser(Parser):
    """Hands messages to `take`, and those that it does not want, and all else, to the client as nats-py does."""

    def __init__(self, client: Any, take: Take) -> None:
        self._take, self._life = take, 0
        super().__init__(client)

    def reset(self) -> None:
        """Begin anew, on another connection."""
        super().reset()
        self._life += 1

    async def parse(self, data: bytes = b"") -> None:
        """Take in what came; what is not whole yet waits for the rest.

        Raises:
            ProtocolError: that is none of the protocol.
        """
        if self.buf:
            self.buf += data
            if len(self.buf) < self.needed:
                return
            data = bytes(self.buf)
            self.buf.clear()
        at, life, self.needed = 0, self._life, 0
        while at < len(data):
            has_headers = data[at] == _H
            found = (_HMSG if has_headers else _MSG).match(data, at)
            if found is None:
                # Another line, of which there are few.
                if (end := data.find(_END, at) + len(_END)) < len(_END):
                    break
                await super().parse(data[at:end])
            else:
                subject, sid, reply, *sizes = found.groups()
                begin, end = found.end(), found.end() + int(sizes[-1]) + len(_END)
                if end > len(data):
                    self.needed = end - at
                    break
                body = begin + int(sizes[0]) if has_headers else begin
                headers = data[begin:body] if has_headers else None
                message = int(sid), subject, reply or b"", data[body : end - len(_END)], headers
                if not self._take(*message):
                    await self.nc._process_msg(*message)
            if self._life != life:
                # The rest is of a connection that was lost meanwhile.
                return
            at = end
        self.buf += data[at:]

"""The connection of one process to the server in memory: it breaks and comes back as a real one does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, SquadClosedError
from squadron.runtime.logs import get_logger

#: How long somebody waits for an answer while the line is cut, in seconds, as on a real connection; and whoever
#: repeats itself until it is understood: reads, and entries that have an id.
ANSWER_WITHIN_S, PERSIST_S = 5.0, 20.0

_log = get_logger("squadron.memory")


class Line:
    """Between one process and the server. While it is cut nothing is heard, and what needs an answer waits.

    What needs none is sent when it is healed, as a NATS client does.
    """

    def __init__(self) -> None:
        self._cut = self._left = False
        self._healed = asyncio.Event()
        self._unsent: list[Callable[[], object]] = []
        self._on_cut: list[Callable[[], None]] = []
        self._on_heal: list[Callable[[], Awaitable[None]]] = []
        #: Makes the headers of what this process sends; None signs nothing.
        self.sign: Callable[[str, bytes, dict[str, str] | None], dict[str, str]] | None = None
        #: Of the server: it goes on to deliver.
        self.resumed: list[Callable[[], None]] = []

    @property
    def up(self) -> bool:
        """Whether messages flow."""
        return not self._cut and not self._left

    def headers(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> dict[str, str]:
        """The headers of a message as it leaves the process: signed, if it signs."""
        given = dict(headers or {})
        return given if self.sign is None else self.sign(subject, data, given)

    async def answer(self, within_s: float = ANSWER_WITHIN_S) -> None:
        """Wait until the server can be asked.

        Raises:
            BusUnavailableError: not in time.
            SquadClosedError: the process has left.
        """
        while not self.up:
            if self._left:
                raise SquadClosedError("this process has left the bus", hint="open a squad anew")
            try:
                async with asyncio.timeout(within_s):
                    await self._healed.wait()
            except TimeoutError:
                raise BusUnavailableError("no answer: the bus is cut") from None

    def send(self, act: Callable[[], object]) -> None:
        """Do now what the server does when it hears it; or, while the line is cut, when it is healed."""
        if self.up:
            act()
        elif not self._left:
            self._unsent.append(act)

    def on_cut(self, sink: Callable[[], None]) -> None:
        """Call `sink` each time the line is cut."""
        self._on_cut.append(sink)

    def off_cut(self, sink: Callable[[], None]) -> None:
        """Call `sink` no more; one that was never to be called is fine."""
        if sink in self._on_cut:
            self._on_cut.remove(sink)

    def on_heal(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` each time the line is healed: something may have been missed."""
        self._on_heal.append(sink)

    def cut(self) -> None:
        """Break the connection. May be called twice."""
        if not self.up:
            return
        self._cut = True
        self._healed.clear()
        for sink in list(self._on_cut):
            sink()

    def heal(self) -> None:
        """Connect again; nothing if it is not cut, or for a process that left."""
        if self._left or not self._cut:
            return
        self._cut = False
        self._healed.set()
        unsent, self._unsent = self._unsent, []
        for act in unsent:
            act()
        for resume in self.resumed:
            resume()
        for sink in self._on_heal:
            spawn(self._tell(sink), "reconnected")

    async def _tell(self, sink: Callable[[], Awaitable[None]]) -> None:
        try:
            await sink()
        except Exception as error:
            _log.warning("memory.after_reconnect", error=str(error))

    def leave(self) -> None:
        """The process goes, or died: whatever it says from here on nobody hears."""
        self._left = True
        self._unsent.clear()
        # Whoever waits in there is told, and whoever waits to hear something.
        self._healed.set()
        for sink in list(self._on_cut):
            sink()

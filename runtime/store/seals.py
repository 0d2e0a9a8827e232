"""What one process seals with and opens: the key ring of its principal, and a box for each reader."""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from squadron.runtime.errors import BusUnavailableError, KeyLostError
from squadron.runtime.trust.sealing import Box, KeyRing, SealKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Where a ring comes from: a file, or the bridge.
LoadRing = Callable[[], Awaitable[KeyRing]]
#: Boxes that are kept: one for each reader and kind of message.
_KEPT = 1024
#: A ring is looked up again when a message names a key that is not in it, from the bridge at most once in so many
#: seconds, and for the same key once in so many: anybody may name any key.
AGAIN_S, LOST_FOR_S = 2.0, 60.0


async def _new_ring() -> KeyRing:
    return KeyRing.create()


class Seals:
    """The keys of one process; nothing is looked up before something is sealed or opened.

    Args:
        load: where its ring comes from; by default it is made anew, and ends with the process.
        again_s: pause before it is looked up again, in seconds.
    """

    def __init__(self, load: LoadRing = _new_ring, *, again_s: float = 0.0) -> None:
        self._load, self._again_s = load, again_s
        #: The ring, if it was looked up.
        self.known: KeyRing | None = None
        self._boxes: OrderedDict[tuple[int, bytes, tuple[SealKey, ...]], Box] = OrderedDict()
        self._loading, self._loaded_at, self._loads = asyncio.Lock(), -again_s, 0
        #: When the ring that is known was asked for, by `time.monotonic`.
        self._asked_at = -math.inf
        #: Keys that were not found, and until when they are not looked for again, on the loop's clock.
        self._lost: OrderedDict[str, float] = OrderedDict()

    async def ring(self) -> KeyRing:
        """The ring of this process.

        Raises:
            ConfigError: its file can't be read.
            BusUnavailableError: who has it can't be reached.
        """
        if self.known is None:
            async with self._loading:
                if self.known is None:
                    await self._look_up()
        assert self.known is not None
        return self.known

    async def _look_up(self) -> None:
        # It takes 0.3 s, once.
        await asyncio.to_thread(importlib.import_module, "cryptography.hazmat.primitives.hpke")
        self._loaded_at = asyncio.get_running_loop().time()
        self._loads += 1
        asked_at = time.monotonic()
        self.known = await self._load()
        self._asked_at = asked_at

    async def look_again(self, lost: KeyLostError, got_at: float = math.inf) -> None:
        """Look the ring up anew: its key may have been rotated.

        Args:
            got_at: when this process got what is to be opened, by `time.monotonic`. A ring looked up since then
                has all keys that it may be sealed for: so one look serves a reader for all that it got before.

        Raises:
            KeyLostError: the same, if who has the ring can't be reached, or was asked for it before.
        """
        now, loads = asyncio.get_running_loop().time, self._loads
        if now() < self._lost.get(lost.kid, 0.0):
            raise lost
        if got_at < self._asked_at:
            self._remember(lost)
            raise lost
        async with self._loading:
            if self._loads > loads:
                # Somebody else did, since.
                return
            await asyncio.sleep(max(0.0, self._loaded_at + self._again_s - now()))
            try:
                await self._look_up()
            except BusUnavailableError:
                raise lost from None
        if self.known is not None and lost.kid not in self.known.kids:
            self._remember(lost)

    def _remember(self, lost: KeyLostError) -> None:
        self._lost[lost.kid] = asyncio.get_running_loop().time() + LOST_FOR_S
        if len(self._lost) > _KEPT:
            self._lost.popitem(last=False)

    def unwrap(self, wraps: Mapping[str, str], info: bytes) -> AESGCM:
        """A content key by the ring, which has been looked up; see `KeyRing.unwrap`.

        Raises:
            KeyLostError, UnsealedError: as `KeyRing.unwrap`.
        """
        assert self.known is not None
        return self.known.unwrap(wraps, info)

    def box(self, readers: Sequence[SealKey], info: bytes) -> Box:
        """A box for these readers; the same again for the same, so that a key is wrapped once.

        Of a process that was forked it is another one: two that count alike would use a nonce twice.
        """
        which = os.getpid(), info, tuple(readers)
        if (box := self._boxes.get(which)) is None:
            box = self._boxes[which] = Box(readers, info)
            if len(self._boxes) > _KEPT:
                self._boxes.popitem(last=False)
        return box

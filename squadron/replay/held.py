"""What the code stores in a replay, held against the recording entry by entry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from squadron.actors.runs.acting import Actions
from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.entries import Asking, CallsEnded, Entry, Epoch, Finished, Sending, Sent
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.thinking.model import ModelRequest
from squadron.replay.difference import Difference, between, between_requests, parts_of, same
from squadron.replay.doubles import RecordedMind, forever
from squadron.replay.tape import Tape


@dataclass
class ReplayNotes:
    """What is noted in a replay, over all attempts.

    Attributes:
        known: what models were asked when it was recorded; see `RecordedRun.requests`.
        digests: False where what is asked and sent need not be what it was.
        late: where something came from outside, up to which place it was seen before the next decision.
        requests: what models are asked now.
        decided: what the code asks and sends, as it would store it now.
        waves: places before which something came from outside, and where that began.
    """

    known: Mapping[tuple[int, int], Sequence[str]]
    digests: bool = True
    late: dict[int, int] = field(default_factory=dict)
    requests: dict[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    decided: list[Entry] = field(default_factory=list)
    waves: dict[int, int] = field(default_factory=dict)


class CatchingUp(asyncio.Lock):
    """Who has waited for it finds all that was stored meanwhile."""

    def __init__(self, catch_up: Callable[[], None]) -> None:
        super().__init__()
        self._catch_up = catch_up

    async def acquire(self) -> Literal[True]:
        await super().acquire()
        self._catch_up()
        return True


class ReplayRecorder(Recorder):
    """Holds what the code stores against the tape, and takes from there what came from outside.

    What came from outside is taken as soon as its turn on the tape has come. Nobody can tell from a log whether
    the code had seen all of it already when it decided what comes next: `late` says up to where it had.
    """

    def __init__(self, tape: Tape, state: RunState, books: RunBooks, notes: ReplayNotes) -> None:
        super().__init__(None, state, books, None, lambda _: None)  # type: ignore[arg-type]
        self._tape, self._notes = tape, notes
        self.actions: Actions | None = None
        self._moved = asyncio.Event()
        #: Where what came from outside began.
        self._wave = 0
        self.lock = CatchingUp(self.catch_up)
        self.over: asyncio.Future[Difference | None] = asyncio.get_running_loop().create_future()
        #: What is about to be asked.
        self.request: ModelRequest | None = None

    async def replay(self) -> None:
        """Take in what this attempt found in the log."""
        for entry in self._tape.past:
            self._take(entry)
        self._announce()

    async def store_locked(self, *entries: Entry) -> None:
        """Hold entries against the tape; what is not there ends the replay."""
        for entry in entries:
            if isinstance(entry, Sent) or self._is_known(entry) or self._is_second_end(entry):
                continue
            coming = self._tape.next
            if (key := _next_bid(entry, self.state)) and key != _next_bid(coming, self.state) and self._comes(key):
                # Who tries the next bid and who asks the model are two: this one comes later, and decides again.
                return await self._wait_for(key)
            if self._tape.cut and not isinstance(entry, Epoch):
                await self._end(None)
            elif coming is None or not same(coming, entry, digests=self._notes.digests):
                await self._end(self._difference(coming, entry))
            if isinstance(coming, Asking) and self.request is not None:
                self._notes.requests[coming.round, coming.number] = parts_of(self.request)
            if isinstance(entry, Asking | Sending):
                self._notes.decided.append(entry)
            self._next()
            self._wave = self._tape.at
            self.catch_up(self._notes.late.get(self._tape.at))
        self._announce()
        self._check_over()

    def _comes(self, key: tuple[str, int]) -> bool:
        return any(_next_bid(entry, self.state) == key for entry in self._tape.coming(Sending))

    async def _wait_for(self, key: tuple[str, int]) -> None:
        """Let others store meanwhile; the lock is held again when this returns."""
        self.lock.release()
        try:
            while _next_bid(self._tape.next, self.state) != key:
                self._moved.clear()
                await self._moved.wait()
        finally:
            await self.lock.acquire()

    async def _end(self, difference: Difference | None) -> None:
        if not self.over.done():
            self.over.set_result(difference)
        await forever()

    def _check_over(self) -> None:
        # Who has finished comes to an end by itself.
        if self._tape.cut and self.state.finished is None and not self.over.done():
            self.over.set_result(None)

    def _next(self) -> None:
        entry = self._tape.next
        assert entry is not None
        self._tape.go_on()
        self._take(entry)
        self._moved.set()

    def _is_known(self, entry: Entry) -> bool:
        """Whether the tape had these ends already: the code comes to them, too."""
        if not isinstance(entry, CallsEnded):
            return False
        for end in entry.ends:
            known = self.state.calls[end.call].ends.get(end.index)
            if known is None:
                return False
            one, other = (CallsEnded(at=0, ends=(each,)) for each in (known, end))
            if not same(one, other, digests=self._notes.digests):
                return False
        return True

    def _is_second_end(self, entry: Entry) -> bool:
        return isinstance(entry, Finished) and self.state.finished is not None

    def catch_up(self, until: int | None = None) -> None:
        """Take what came from outside before the next thing that the code decides; at most up to a place."""
        began, ended = self._tape.at, set[str]()
        while self._tape.from_outside(self.state) and (until is None or self._tape.at < until):
            entry = self._tape.next
            self._next()
            if isinstance(entry, CallsEnded):
                ended |= {end.call for end in entry.ends}
        if self._tape.at == began:
            return
        self._notes.waves[self._tape.at] = self._wave
        self._announce()
        if self.actions is not None:
            for id in ended:
                self.actions.after_try(self.state.calls[id])
        self._check_over()

    async def changed(self, within_s: float | None) -> bool:
        """Wait until something is stored; what is late comes one by one."""
        at = self._tape.at
        self.catch_up(at + 1)
        return self._tape.at != at or await super().changed(within_s)

    def _difference(self, recorded: Entry | None, now: Entry) -> Difference:
        if isinstance(recorded, Asking) and isinstance(now, Asking) and self.request is not None:
            asked = (recorded.round, recorded.number, recorded.model) == (now.round, now.number, now.model)
            if asked:
                where = f"round {now.round}, call {now.number} of the model"
                known = self._notes.known.get((recorded.round, recorded.number))
                return between_requests(where, known, parts_of(self.request), (recorded.digest, now.digest))
        return between(recorded, now)


def _next_bid(entry: Entry | None, state: RunState) -> tuple[str, int] | None:
    """The call and the index of a task that is tried after another one was in vain; None for any other entry."""
    if not isinstance(entry, Sending) or len(entry.calls) != 1:
        return None
    only = entry.calls[0]
    return (only.call, only.first) if only.first and state.calls[only.call].award is not None else None


class NotingMind(RecordedMind):
    """Tells the recorder what the model is asked, not only that it is."""

    async def note(self, asked: Asking, request: ModelRequest) -> None:
        assert isinstance(self.recorder, ReplayRecorder)
        self.recorder.request = request
        await super().note(asked, request)

"""What the code stores in a replay, held against the recording entry by entry."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from squadron.actors.runs.acting import Actions
from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import Asking, CallsEnded, Entry, Epoch, Finished, Sending, Sent
from squadron.actors.runs.mind import Mind
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.thinking.model import ModelRequest
from squadron.actors.thinking.tries import Account
from squadron.replay.difference import Difference, between, between_requests, parts_of, same
from squadron.replay.doubles import RecordedAccount, forever
from squadron.replay.tape import Tape


@dataclass
class ReplayNotes:
    """What is noted in a replay, over all attempts.

    Attributes:
        known: what models were asked when it was recorded; see `RecordedRun.requests`.
        digests: False where what is asked and sent need not be what it was.
        requests: what models are asked now.
        decided: what the code asks and sends, as it would store it now.
    """

    known: Mapping[tuple[int, int], Sequence[str]]
    digests: bool = True
    requests: dict[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    decided: list[Entry] = field(default_factory=list)


#: The call whose next bid is tried by whoever runs here; empty for the loop.
_BIDDER: ContextVar[str] = ContextVar("bidder", default="")


class ReplayActions(Actions):
    """Tries the next bids when the tape does; what tasks and tools come to is on the tape."""

    async def _go_on(self, call: Call) -> None:
        _BIDDER.set(call.id)
        await super()._go_on(call)

    async def _collect(self) -> None:
        await forever()


class Turnstile(asyncio.Lock):
    """Whoever has it is the one who stores the next entry, and finds all that was stored before that."""

    def __init__(self, recorder: ReplayRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    async def acquire(self) -> Literal[True]:
        while True:
            await super().acquire()
            if self._recorder.has_turn():
                return True
            self.release()
            await self._recorder.moves()


class ReplayRecorder(Recorder):
    """Holds what the code stores against the tape, and takes from there what came from outside.

    Each decision finds what the recorded one had found: what the loop looks at is what `Entry.seen` tells, and who
    decides with the lock held has seen all that stands before.
    """

    def __init__(self, tape: Tape, state: RunState, books: RunBooks, notes: ReplayNotes) -> None:
        super().__init__(None, state, books, None, lambda _: None)  # type: ignore[arg-type]
        self._tape, self._notes = tape, notes
        self.actions: Actions | None = None
        self.account = RecordedAccount(tape)
        self._moved = asyncio.Event()
        self.lock = Turnstile(self)
        self.over: asyncio.Future[Difference | None] = asyncio.get_running_loop().create_future()
        #: What is about to be asked.
        self.request: ModelRequest | None = None

    async def replay(self) -> None:
        """Take in what this attempt found in the log."""
        for entry in self._tape.past:
            self._take(entry)
        await super().look()
        self._announce()

    async def look(self) -> None:
        """Have the loop find what it found then."""
        until = self._tape.seen
        while True:
            self._catch_up(until)
            if (until is not None and self._tape.at >= until) or not self._tape.next_bid(self.state):
                return await super().look()
            await self.moves()

    async def store(self, *entries: Entry) -> None:
        """As `Recorder.store`; that tasks are stored is on the tape."""
        if not all(isinstance(entry, Sent) for entry in entries):
            await super().store(*entries)

    async def decide(self, *entries: Entry) -> None:
        """As `Recorder.decide`; what comes before it and was not seen is taken in first."""
        while True:
            self._catch_up()
            if not self._tape.next_bid(self.state):
                return await super().decide(*entries)
            await self.moves()

    async def store_locked(self, *entries: Entry) -> None:
        """Hold entries against the tape; what is not there ends the replay."""
        for entry in entries:
            if isinstance(entry, Finished) and self.state.finished is not None:
                continue
            coming = self._tape.next
            if self._tape.cut and not isinstance(entry, Epoch):
                await self._end(None)
            elif coming is None or not same(coming, entry, digests=self._notes.digests):
                await self._end(self._difference(coming, entry))
            if isinstance(coming, Asking) and self.request is not None:
                self._notes.requests[coming.round, coming.number] = parts_of(self.request)
            if isinstance(entry, Asking | Sending):
                self._notes.decided.append(entry)
            self._next()
        self._announce()
        self._check_over()

    def has_turn(self) -> bool:
        """Whether whoever asks is the one who stores the next entry; takes in what came from outside before it."""
        bidder, decided = _BIDDER.get(), next(self._tape.decisions(), None)
        if bidder and self.state.calls[bidder].next_try is None:
            # It only sees that it has nothing to do, and the loop may wait for that before it looks.
            return True
        # A loop that stores its end was refused what else it wanted the lock for: by what it had seen then.
        self._catch_up(decided.seen if not bidder and isinstance(decided, Finished) else None)
        if self._tape.cut:
            return True
        if bidder and self.state.finished is not None:
            return True
        return self._tape.next_bid(self.state) == bidder

    async def moves(self) -> None:
        """Wait until the replay has come past another entry."""
        self._moved.clear()
        await self._moved.wait()

    async def answered(self) -> Entry | None:
        """What the next entry is when all is taken in that came while the model thought."""
        while True:
            self._catch_up()
            if not self._tape.next_bid(self.state):
                return self._tape.next
            await self.moves()

    async def changed(self, within_s: float | None) -> bool:
        """All is there that the next decision had seen: if the code waits, then until it is time for that."""
        self._catch_up(self._tape.seen)
        return False if self._tape.pass_time() else await forever()

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

    def _catch_up(self, until: int | None = None) -> None:
        """Take what came from outside before the next thing that is decided here; at most up to a place."""
        began, ended = self._tape.at, set[str]()
        while self._tape.from_outside(self.state) and (until is None or self._tape.at < until):
            entry = self._tape.next
            self._next()
            if isinstance(entry, CallsEnded):
                ended |= {end.call for end in entry.ends}
        if self._tape.at == began:
            return
        self._announce()
        if self.actions is not None:
            # Of a call that was not sent yet only a recording can tell that is not as it was.
            for id in ended & self.state.calls.keys():
                self.actions.after_try(self.state.calls[id])
        self._check_over()

    def _difference(self, recorded: Entry | None, now: Entry) -> Difference:
        if isinstance(recorded, Asking) and isinstance(now, Asking) and self.request is not None:
            asked = (recorded.round, recorded.number, recorded.model) == (now.round, now.number, now.model)
            if asked:
                where = f"round {now.round}, call {now.number} of the model"
                known = self._notes.known.get((recorded.round, recorded.number))
                return between_requests(where, known, parts_of(self.request), (recorded.digest, now.digest))
        return between(recorded, now)


class NotingMind(Mind):
    """Tells the recorder what the model is asked, not only that it is."""

    def account(self) -> Account:
        assert isinstance(self.recorder, ReplayRecorder)
        return self.recorder.account

    async def note(self, asked: Asking, request: ModelRequest) -> None:
        assert isinstance(self.recorder, ReplayRecorder)
        self.recorder.request = request
        await super().note(asked, request)

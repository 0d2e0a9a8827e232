"""What runs in a process that the agents of one group share: a seat for each, with an `AgentProcess` of its own.

Seats share memory, the event loop and the threads, and nothing else: each has its connection, its credential, its
mailbox and its presence. What breaks in one is mended there; what ends the process ends all, and Serve starts it
anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

import ray

from squadron.bridge.packing.code import Code
from squadron.bridge.serve.agent_process import AgentProcess, keep_logs, settle
from squadron.bridge.serve.login import call_bridge
from squadron.config import Settings
from squadron.runtime.background import spawn
from squadron.runtime.errors import SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of, traceback_of
from squadron.runtime.wire.envelope import AgentIdentity

#: How long after a failure an agent is started again, in seconds. Serve takes as long with a process.
SEAT_AGAIN_S = 5.0
#: How often it is looked whether a seat is well, in seconds, as Serve looks after processes.
LOOK_S = 1.0
#: Beyond its grace a seat that is to go has so long, in seconds, as Serve gives a process.
BEYOND_GRACE_S = 10.0
#: Threads for sync handlers, of all seats together; one is started when none is free.
THREADS = 1024
#: Connections that are made at once: each is some 30 ms of work, and one that waits for long is given up.
OPENED_AT_ONCE = 4

_log = get_logger("squadron.group")


class Seat:
    """One agent in a shared process: started, watched, and started again when it broke."""

    def __init__(
        self, group: GroupProcess, agent: str, declared: Mapping[str, Any], *, is_faulty: bool = False
    ) -> None:
        """Make one, and start it.

        Args:
            is_faulty: the bridge was told of a fault of the one that it replaces.
        """
        self.declared, self.is_faulty = declared, is_faulty
        self._group, self._agent = group, agent
        self._code = Code(**declared["code"])
        self._leave, self._is_beginning = asyncio.Event(), False
        #: What the bridge is told, one thing after the other; and the last of them.
        self._line = asyncio.Lock()
        self._telling: asyncio.Task[None] | None = None
        #: Set when it takes tasks for the first time.
        self.begun = asyncio.Event()
        self.running = spawn(self._run(), f"seat of {agent}")

    async def _run(self) -> None:
        while not self._leave.is_set():
            process = AgentProcess(self._group.keep_logs, self._group.opening)
            try:
                await self._begin(process)
            except GeneratorExit:
                raise
            except BaseException as error:
                own = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and own is not None and own.cancelling():
                    raise
                # Whatever its code raises, be it SystemExit, is no reason for its neighbours to end.
                self._tell(traceback_of(error).rstrip())
                await self._pause(SEAT_AGAIN_S)
                continue
            self.begun.set()
            if self.is_faulty:
                self._tell("")
            fault = ""
            try:
                fault = await self._watch(process)
            finally:
                await self._end(process)
            if fault:
                self._tell(fault)
                await self._pause(SEAT_AGAIN_S)

    async def _begin(self, process: AgentProcess) -> None:
        told, self._is_beginning = self.declared, True
        how = (told["slots"], told["grace_s"], told["ordered_by"])
        try:
            await process.begin(self._group.environment, self._agent, self._code, *how)
        finally:
            self._is_beginning = False

    def _tell(self, fault: str) -> None:
        """Tell the bridge, which may be away for a while: the seat is looked after meanwhile."""
        self.is_faulty = bool(fault)
        if fault:
            _log.error("seat.not_started", agent=self._agent, group=self._group.name, traceback=fault)
        self._telling = spawn(self._tell_bridge(fault), f"tells of {self._agent}")

    async def _tell_bridge(self, fault: str) -> None:
        told = self._agent, self._code.version, fault, self._group.id
        async with self._line:
            with contextlib.suppress(SquadronError, ray.exceptions.RayError):
                await call_bridge(self._group.environment, "tell_seat", *told)

    async def _watch(self, process: AgentProcess) -> str:
        """Why it broke; nothing if it is to leave."""
        while not self._leave.is_set():
            try:
                process.check_health()
            except RuntimeError as error:
                _log.warning("seat.broke", agent=self._agent, group=self._group.name, error=summary_of(error))
                return summary_of(error)
            await self._pause(LOOK_S)
        return ""

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leave.wait()

    async def _end(self, process: AgentProcess) -> None:
        try:
            async with asyncio.timeout(self.declared["grace_s"] + BEYOND_GRACE_S):
                await process.stop()
        except TimeoutError:
            self._group.give_up(f"{self._agent} did not end")

    async def leave(self) -> None:
        """Finish what runs, hand back the rest."""
        if self._is_beginning and not self._leave.is_set():
            self.running.cancel()
        self._leave.set()
        await asyncio.wait([self.running])


class GroupProcess:
    """The seats of one process."""

    def __init__(self, environment: str, group: str) -> None:
        self.environment, self.name, self.id = environment, group, uuid.uuid4().hex[:8]
        self._seats: dict[str, Seat] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._fault, self._logs_kept = "", False

    def begin(self) -> None:
        """Be ready for seats."""
        settle(THREADS)
        self.opening = asyncio.Semaphore(OPENED_AT_ONCE)

    def keep_logs(self, settings: Settings, _: AgentIdentity) -> None:
        """Log in the name of the group, from the first seat on; lines of an agent name it."""
        if not self._logs_kept:
            self._logs_kept = True
            keep_logs(settings, AgentIdentity(id=f"{self.name}-{self.id}", type=self.name))

    def seat(self, declared: Mapping[str, Mapping[str, Any]], rank: int) -> None:
        """Have seats for those of these agents that are to have one in a process of this rank, and no others.

        An agent that is to run `most` times has its seats in the processes of the lowest ranks.
        """
        wanted = {
            agent: {name: value for name, value in each.items() if name != "most"}
            for agent, each in declared.items()
            if rank < each["most"]
        }
        for agent in self._seats.keys() - wanted.keys():
            self._spawn_leaving(self._seats.pop(agent), None)
        for agent, each in wanted.items():
            before = self._seats.get(agent)
            if before is None or before.declared != each:
                is_faulty = before is not None and before.is_faulty
                self._seats[agent] = seat = Seat(self, agent, each, is_faulty=is_faulty)
                if before is not None:
                    self._spawn_leaving(before, seat)

    def _spawn_leaving(self, seat: Seat, successor: Seat | None) -> None:
        task = spawn(self._let_leave(seat, successor), "seat leaves")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    @staticmethod
    async def _let_leave(seat: Seat, successor: Seat | None) -> None:
        if successor is not None:
            # New code takes tasks before the old is stopped; if it can't start, the old goes on.
            begun = spawn(successor.begun.wait(), "successor begins")
            await asyncio.wait([begun, successor.running], return_when=asyncio.FIRST_COMPLETED)
            begun.cancel()
        await seat.leave()

    def give_up(self, reason: str) -> None:
        """Have Serve start this process anew."""
        self._fault = self._fault or reason

    def check_health(self) -> None:
        """Tell what ails the process; seats see to themselves.

        Raises:
            RuntimeError: it is broken.
        """
        if self._fault:
            raise RuntimeError(f"group {self.name}: {self._fault}")
        if ended := [agent for agent, seat in self._seats.items() if seat.running.done()]:
            raise RuntimeError(f"group {self.name}: nobody looks after {', '.join(ended)}")

    async def stop(self) -> None:
        """End all seats, at once. May be called twice."""
        seats, self._seats = self._seats, {}
        await asyncio.gather(*(seat.leave() for seat in seats.values()), *self._leaving)

"""The processes of a benchmark: each way has one client process, and two workers where it needs some.

A client measures only when it is told to, so that one process after the other has the machine.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore
from typing import Any

import uvloop

from squadron import Settings

#: All ways have as many workers, actors or replicas, and all carry this.
REPLICAS, TEXT = 2, "x" * 1024
#: To be there, on a busy machine; a call that takes longer than the other is a fault, not a slow call.
READY_WITHIN_S, CALL_WITHIN_S = 120.0, 30.0
#: As in `bridge/serve/agent_process.py`, which would bring Ray along.
GARBAGE = 10_000

#: One call, from the request to its answer.
Call = Callable[[], Awaitable[object]]
#: A way to call an echo: opens the client's side in the process it is entered in.
Way = Callable[[Settings], AbstractAsyncContextManager[Call]]
#: A worker's side: answers as long as it is entered.
Worker = Callable[[Settings], AbstractAsyncContextManager[None]]

# Not forked: who starts one has threads, of Ray and of NATS.
_SPAWN = multiprocessing.get_context("spawn")


async def latencies_ms(call: Call, count: int) -> list[float]:
    """`count` calls, one after the other."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


async def per_second(call: Call, at_once: int, for_s: float) -> float:
    """Calls that end per second while `at_once` are under way."""
    started = time.perf_counter()
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - started < for_s:
            await call()
            done += 1

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return done / (time.perf_counter() - started)


async def burst_ms(call: Call, count: int) -> float:
    """`count` calls sent at once, until the last one's answer."""
    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(count)))
    return (time.perf_counter() - started) * 1000


class Client:
    """What is told to the client process of one way; every method blocks until it has measured."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._answer()

    def _answer(self) -> Any:
        if not self._pipe.poll(READY_WITHIN_S):
            raise TimeoutError(f"a client does not answer within {READY_WITHIN_S:g} s")
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _tell(self, *what: Any) -> Any:
        self._pipe.send(what)
        return self._answer()

    def latencies_ms(self, count: int) -> list[float]:
        """See the function of that name."""
        taken: list[float] = self._tell(latencies_ms, count)
        return taken

    def per_second(self, at_once: int, for_s: float) -> float:
        """See the function of that name."""
        return float(self._tell(per_second, at_once, for_s))

    def burst_ms(self, count: int) -> float:
        """See the function of that name."""
        return float(self._tell(burst_ms, count))


@contextmanager
def client(way: Way, settings: Settings) -> Iterator[Client]:
    """Run the client process of a way; it is ready to call when this is entered."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_be_client, args=(theirs, way, settings))
    process.start()
    theirs.close()
    try:
        yield Client(ours)
    finally:
        # The end of the pipe is the end of the client, also when this process is killed.
        ours.close()
        process.join(CALL_WITHIN_S)
        process.kill()


def _be_client(pipe: Connection, way: Way, settings: Settings) -> None:
    async def work() -> None:
        async with way(settings) as call:
            pipe.send("ready")
            while True:
                # In a thread: between two measurements the connections must stay alive.
                measure, *arguments = await asyncio.to_thread(pipe.recv)
                pipe.send(await measure(call, *arguments))

    try:
        asyncio.run(work())
    except EOFError:
        return
    except Exception as error:
        pipe.send(RuntimeError(f"{way.__name__}: {type(error).__name__}: {error}"))


@asynccontextmanager
async def workers(
    worker: Worker, settings: Settings, count: int = REPLICAS, *, as_on_ray: bool = False
) -> AsyncIterator[list[int]]:
    """Run `count` processes of a worker; all of them are ready when this is entered, with their process ids.

    Args:
        as_on_ray: with Ray's event loop, and as little looking for garbage as in a replica.
    """
    ready = _SPAWN.Semaphore(0)
    processes = [
        _SPAWN.Process(target=_be_worker, args=(ready, worker, settings, as_on_ray), daemon=True)
        for _ in range(count)
    ]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            if not await asyncio.to_thread(ready.acquire, True, READY_WITHIN_S):
                raise TimeoutError(f"{worker.__name__} did not start")
        yield [process.pid or 0 for process in processes]
    finally:
        for process in processes:
            process.kill()


def _be_worker(ready: Semaphore, worker: Worker, settings: Settings, as_on_ray: bool) -> None:
    async def work() -> None:
        async with worker(settings):
            if as_on_ray:
                gc.freeze()
                gc.set_threshold(GARBAGE)
            ready.release()
            parent = multiprocessing.parent_process()
            assert parent is not None
            await asyncio.to_thread(parent.join)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if as_on_ray else None) as runner:
        runner.run(work())

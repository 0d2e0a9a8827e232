"""`Squad` for plain scripts: the same calls without `await`, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from squadron.flow import Events
from squadron.runtime.envelope import AgentMessage
from squadron.runtime.handle import Handle
from squadron.runtime.outcome import Outcome
from squadron.runtime.topics import ScoredTopic

if TYPE_CHECKING:
    from squadron.squad import Squad

T = TypeVar("T")


class SyncSquad:
    """Made by `with Squad.up() as squad:`; every call blocks until it is done."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread, squad: Squad) -> None:
        self._loop, self._thread, self._squad = loop, thread, squad

    @classmethod
    def open(cls, open_squad: Callable[[], Coroutine[Any, Any, Squad]]) -> Self:
        """Start the loop's thread and open the squad on it."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="squadron", daemon=True)
        thread.start()
        try:
            squad = asyncio.run_coroutine_threadsafe(open_squad(), loop).result()
        except BaseException:
            loop.call_soon_threadsafe(loop.stop)
            raise
        return cls(loop, thread, squad)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def close(self) -> None:
        """Leave; see `Squad.aclose`. May be called twice."""
        if self._thread.is_alive():
            self._wait(self._squad.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def deploy(self, *agents: Any, **options: Any) -> None:
        """See `Squad.deploy`."""
        self._wait(self._squad.deploy(*agents, **options))

    def undeploy(self, agent: str) -> None:
        """See `Squad.undeploy`."""
        self._wait(self._squad.undeploy(agent))

    def scale(self, agent: str, to: str | int) -> str:
        """See `Squad.scale`."""
        return self._wait(self._squad.scale(agent, to))

    def status(self) -> dict[str, Any]:
        """See `Squad.status`."""
        return self._wait(self._squad.status())

    def ask(self, topic: str, content: Any = None, /, **options: Any) -> Outcome:
        """See `Squad.ask`."""
        return self._wait(self._squad.ask(topic, content, **options))

    def stream(self, topic: str, content: Any = None, /, **options: Any) -> Generator[Any, None, Outcome]:
        """See `Squad.stream`; a plain iterator over the chunks, which returns the outcome at its end."""
        stream = self._squad.stream(topic, content, **options)
        chunks: AsyncIterator[Any] = stream.__aiter__()
        while True:
            try:
                yield self._wait(_next(chunks))
            except StopAsyncIteration:
                return self._wait(stream.outcome())

    def submit(self, topic: str, content: Any = None, /, **options: Any) -> Handle:
        """See `Squad.submit`; wait with `outcome`."""
        return self._wait(self._squad.submit(topic, content, **options))

    def resume(self, ticket: str) -> Handle:
        """See `Squad.resume`."""
        return self._squad.resume(ticket)

    def cancel(self, handle: Handle) -> Outcome:
        """See `Handle.cancel`."""
        return self._wait(handle.cancel())

    def outcome(self, handle: Handle) -> Outcome:
        """See `Squad.outcome`."""
        return self._wait(self._squad.outcome(handle))

    def subscribe(self, pattern: str) -> Generator[AgentMessage, None, None]:
        """See `Squad.subscribe`; a plain iterator, active when this returns; `close()` it to stop listening."""
        return self._follow(self._wait(self._squad.subscribe(pattern)))

    def _follow(self, events: Events) -> Generator[AgentMessage, None, None]:
        messages = aiter(events)
        try:
            while True:
                yield self._wait(_next(messages))
        finally:
            self._wait(events.aclose())

    def publish(self, topic: str, content: Any, **options: Any) -> None:
        """See `Squad.publish`."""
        self._wait(self._squad.publish(topic, content, **options))

    def discover(self, intent: str, *, most: int = 8) -> list[ScoredTopic]:
        """See `Squad.discover`."""
        return self._wait(_call(self._squad.discover, intent, most=most))

    def topics(self) -> list[ScoredTopic]:
        """See `Squad.topics`."""
        return self._wait(_call(self._squad.topics))

    def keep_running(self) -> None:
        """See `Squad.keep_running`."""
        self._squad.keep_running()

    def run(self, goal: str, **options: Any) -> Outcome:
        """See `Squad.run`."""
        return self._wait(self._squad.run(goal, **options))

    def drain(self, within_s: float = 60.0) -> None:
        """See `Squad.drain`."""
        self._wait(self._squad.drain(within_s))


async def _next(chunks: AsyncIterator[Any]) -> Any:
    return await chunks.__anext__()


async def _call(function: Callable[..., T], *args: Any, **options: Any) -> T:
    return function(*args, **options)

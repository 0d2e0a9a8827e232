"""`Squad` for plain scripts: the same calls without `await`, on an event loop in a thread of its own."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

from squadron.client.blocking_audit import SyncAuditTrail
from squadron.client.blocking_runs import SyncRuns
from squadron.client.blocking_servers import SyncRemoteServers
from squadron.client.blocking_shelves import SyncDeadLetters
from squadron.client.portal import Portal
from squadron.client.stream import Stream
from squadron.client.subscriptions import DurableEvent
from squadron.runtime.asking.answering import OpenQuestion, QuestionNews
from squadron.runtime.asking.blocking_handle import BlockingHandle
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskKeywords
from squadron.runtime.closing import Closing
from squadron.runtime.lite.feed import LiteFeed, LiteItems
from squadron.runtime.lite.listing import LiteInfo
from squadron.runtime.lite.reader import End, LiteMessage, LiteReader
from squadron.runtime.lite.topic import LiteTopic
from squadron.runtime.streams.writer import Chunk, Ended, Nested, Restarted
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.question import Reply
from squadron.runtime.wire.start import LiteStart
from squadron.runtime.wire.topics import ScoredTopic
from squadron.views.listener import Missed
from squadron.views.passing import Passing
from squadron.views.talk_map import TalkMap

if TYPE_CHECKING:
    from squadron.client.declared import Change
    from squadron.client.squad import Squad

T = TypeVar("T")


class SyncSquad(SyncRemoteServers):
    """Made by `with Squad.up() as squad:`; every call blocks until it is done.

    Any thread may call, where no event loop runs. Calls that are under way when the squad is closed end with
    `SquadClosedError`, as do those that come later, and those of a forked process.
    """

    _squad: Squad

    def __init__(self) -> None:
        self._portal = Portal()

    def start(self, open_squad: Callable[[], Coroutine[Any, Any, Squad]]) -> None:
        """Start the loop's thread and open the squad on it; whatever interrupts this, nothing is left.

        Raises:
            BlockingCallError: an event loop runs in this thread.
        """

        async def opening() -> None:
            self._squad = await open_squad()
            self._portal.at_end(self._squad.aclose)  # even if nobody takes it any more

        try:
            self._portal.start()
            self._wait(opening())
        except BaseException:
            self.close()
            raise

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._portal.wait(work)

    def close(self) -> None:
        """Leave; see `Squad.aclose`. May be called twice."""
        self._portal.close()

    def deploy(self, *agents: Any, **options: Any) -> None:
        """See `Squad.deploy`."""
        self._wait(self._squad.deploy(*agents, **options))

    def apply(self, declared: Any, **options: Any) -> list[Change]:
        """See `Squad.apply`."""
        return self._wait(self._squad.apply(declared, **options))

    def undeploy(self, agent: str) -> None:
        """See `Squad.undeploy`."""
        self._wait(self._squad.undeploy(agent))

    def scale(self, agent: str, to: str | int) -> str:
        """See `Squad.scale`."""
        return self._wait(self._squad.scale(agent, to))

    def canary(self, agent: str, to: int | Literal["promote", "abort"]) -> None:
        """See `Squad.canary`."""
        self._wait(self._squad.canary(agent, to))

    def redeploy(self, agent: str) -> None:
        """See `Squad.redeploy`."""
        self._wait(self._squad.redeploy(agent))

    def nodes(self) -> list[dict[str, Any]]:
        """See `Squad.nodes`."""
        return self._wait(self._squad.nodes())

    def rotate_key(self, agent: str) -> str:
        """See `Squad.rotate_key`."""
        return self._wait(self._squad.rotate_key(agent))

    def status(self) -> dict[str, Any]:
        """See `Squad.status`."""
        return self._wait(self._squad.status())

    def metrics(self) -> str:
        """See `Squad.metrics`."""
        return self._wait(self._squad.metrics())

    def ask(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> Outcome:
        """See `Squad.ask`."""
        return self._wait(self._squad.ask(topic, content, **options))

    def negotiate(self, topics: str | Iterable[str], content: Any = None, /, **options: Any) -> Outcome:
        """See `Squad.negotiate`."""
        return self._wait(self._squad.negotiate(topics, content, **options))

    def stream(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> SyncStream:
        """See `Squad.stream`; a plain iterator over the chunks."""
        return SyncStream(self._squad.stream(topic, content, **options), self._portal)

    def submit(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> SyncHandle:
        """See `Squad.submit`."""
        return SyncHandle(self._wait(self._squad.submit(topic, content, **options)), self._portal)

    def resume(self, ticket: str) -> SyncHandle:
        """See `Squad.resume`."""
        return SyncHandle(self._squad.resume(ticket), self._portal)

    def subscribe(self, pattern: str) -> SyncItems[AgentMessage]:
        """See `Squad.subscribe`; a plain iterator, active when this returns; `close()` it to stop listening."""
        return SyncItems(self._wait(self._squad.subscribe(pattern)), self._portal)

    def lite(self, id: str | None = None, owner: str | None = None, **options: Any) -> SyncLiteTopic:
        """See `Squad.lite`."""
        return SyncLiteTopic(self._squad.lite(id, owner, **options), self._portal)

    def lite_topics(self, owner: str = "", *, everything: bool = False) -> list[LiteInfo]:
        """See `Squad.lite_topics`."""
        return self._wait(self._squad.lite_topics(owner, everything=everything))

    def follow(self, owner: str | None = None) -> SyncLiteFeed:
        """See `Squad.follow`: `with squad.follow() as feed`."""
        return SyncLiteFeed(self._squad.follow(owner), self._portal)

    def publish(self, topic: str, content: Any, **options: Any) -> None:
        """See `Squad.publish`."""
        self._wait(self._squad.publish(topic, content, **options))

    def listen(self, *, contents: bool = False) -> SyncItems[Passing | Missed]:
        """See `Squad.listen`; a plain iterator, `close()` it to stop listening."""
        return SyncItems(self._wait(self._squad.listen(contents=contents)), self._portal)

    def map(self, seconds: float = 5.0) -> TalkMap:
        """See `Squad.map`."""
        return self._wait(self._squad.map(seconds))

    def publish_durable(self, topic: str, content: Any, **options: Any) -> int:
        """See `Squad.publish_durable`."""
        return self._wait(self._squad.publish_durable(topic, content, **options))

    def subscribe_durable(self, name: str, pattern: str, **options: Any) -> SyncItems[DurableEvent]:
        """See `Squad.subscribe_durable`; a plain iterator, `close()` it to hand back what is not settled."""
        events = self._wait(self._squad.subscribe_durable(name, pattern, **options))
        return SyncItems(events, self._portal)

    def forget_subscription(self, name: str) -> None:
        """See `Squad.forget_subscription`."""
        self._wait(self._squad.forget_subscription(name))

    def discover(self, intent: str, *, most: int = 8, least: float | None = None) -> list[ScoredTopic]:
        """See `Squad.discover`."""
        return self._wait(_call(self._squad.discover, intent, most=most, least=least))

    def search(self, intent: str, *, most: int = 8, least: float | None = None) -> list[ScoredTopic]:
        """See `Squad.search`."""
        return self._wait(self._squad.search(intent, most=most, least=least))

    def prefer(self, intent: str, topic: str, *, good: bool = True) -> None:
        """See `Squad.prefer`."""
        self._wait(self._squad.prefer(intent, topic, good=good))

    def track(self, topic: str) -> dict[str, Any]:
        """See `Squad.track`."""
        return self._wait(self._squad.track(topic))

    def lessons(self, topic: str = "", *, clear: bool = False) -> dict[str, list[dict[str, Any]]]:
        """See `Squad.lessons`."""
        return self._wait(self._squad.lessons(topic, clear=clear))

    def topics(self) -> list[ScoredTopic]:
        """See `Squad.topics`."""
        return self._wait(_call(self._squad.topics))

    def questions(self) -> list[OpenQuestion]:
        """See `Squad.questions`."""
        return self._wait(self._squad.questions())

    def question(self, query_id: str) -> OpenQuestion:
        """See `Squad.question`."""
        return self._wait(self._squad.question(query_id))

    def follow_questions(self) -> SyncItems[QuestionNews]:
        """See `Squad.follow_questions`; a plain iterator."""
        return SyncItems(self._squad.follow_questions(), self._portal)

    def answer(self, query_id: str, content: Any = None, /, **options: Any) -> Reply:
        """See `Squad.answer`."""
        return self._wait(self._squad.answer(query_id, content, **options))

    def keep_running(self) -> None:
        """See `Squad.keep_running`."""
        self._squad.keep_running()

    @property
    def dead_letters(self) -> SyncDeadLetters:
        """See `Squad.dead_letters`."""
        return SyncDeadLetters(self._squad.dead_letters, self._wait)

    @property
    def audit(self) -> SyncAuditTrail:
        """See `Squad.audit`."""
        return SyncAuditTrail(self._squad.audit, self._wait, lambda items: SyncItems(items, self._portal))

    @property
    def runs(self) -> SyncRuns:
        """See `Squad.runs`."""
        return SyncRuns(self._squad.runs, self._wait)

    def resume_run(self, id: str, **options: Any) -> Outcome:
        """See `Squad.resume_run`."""
        return self._wait(self._squad.resume_run(id, **options))

    def run(self, goal: str, **options: Any) -> Outcome:
        """See `Squad.run`."""
        return self._wait(self._squad.run(goal, **options))

    def drain(self, within_s: float = 60.0) -> None:
        """See `Squad.drain`."""
        self._wait(self._squad.drain(within_s))


class SyncItems(Closing, Iterator[T]):
    """What an async iterator hands out, as a plain one; blocks until the next item is there.

    If Ctrl-C, or what else a signal's handler raises, interrupts that, the next call goes on waiting for the same
    item. Any thread may call; each item goes to one of them. It is closed when nobody holds it any more.
    """

    def __init__(self, items: AsyncIterator[T], portal: Portal) -> None:
        self._items, self._portal = items, portal
        self._turn = threading.Lock()
        self._next: concurrent.futures.Future[T] | None = None

    def __next__(self) -> T:
        # A process that was forked has nobody who brings the item, or leaves the lock.
        self._portal.check()
        with self._turn:
            if self._next is None:
                self._next = self._portal.begin(_next(self._items))
            concurrent.futures.wait([self._next])
            ended, self._next = self._next, None
        try:
            return self._portal.result(ended)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Ask for no more; who waits is told that nothing comes. May be called twice."""
        # All that are handed out here can be closed.
        self._portal.finish(self._items.aclose())  # type: ignore[attr-defined]

    def __del__(self) -> None:
        self.close()


class SyncHandle(BlockingHandle):
    """See `Handle`; every call blocks until it is done."""

    def __init__(self, handle: Handle, portal: Portal) -> None:
        super().__init__(handle, portal.wait)
        self._portal = portal

    def chunks(self) -> SyncItems[Any]:
        """See `Handle.chunks`; a plain iterator."""
        return SyncItems(self._handle.chunks(), self._portal)

    def events(self) -> SyncItems[Chunk | Restarted | Nested | Ended]:
        """See `Handle.events`; a plain iterator, whose last item is the end."""
        return SyncItems(self._handle.events(), self._portal)


class SyncStream(SyncItems[Any]):
    """See `Stream`; a plain iterator over the chunks."""

    def __init__(self, stream: Stream, portal: Portal) -> None:
        super().__init__(aiter(stream), portal)
        self._stream = stream

    def events(self) -> SyncItems[Chunk | Restarted | Nested | Ended]:
        """See `Stream.events`; a plain iterator, whose last item is the end."""
        return SyncItems(self._stream.events(), self._portal)

    def outcome(self) -> Outcome:
        """See `Stream.outcome`."""
        outcome: Outcome = self._portal.wait(self._stream.outcome())
        return outcome


class SyncLiteReader(SyncItems[LiteMessage]):
    """See `LiteReader`; a plain iterator over the messages."""

    def __init__(self, reader: LiteReader, portal: Portal) -> None:
        super().__init__(reader, portal)
        self._reader = reader

    @property
    def end(self) -> End | None:
        """How the topic ended; None if it did not."""
        return self._reader.end


class SyncLiteTopic(Closing):
    """See `LiteTopic`; every call blocks until it is done."""

    def __init__(self, topic: LiteTopic, portal: Portal) -> None:
        self.key, self.owner, self.id, self.ttl_s = topic.key, topic.owner, topic.id, topic.ttl_s
        self._topic, self._portal, self._wait = topic, portal, portal.wait

    def __repr__(self) -> str:
        return f"SyncLiteTopic({self.key})"

    def publish(self, content: Any, **options: Any) -> int:
        """See `LiteTopic.publish`."""
        return int(self._wait(self._topic.publish(content, **options)))

    def read(
        self, start: LiteStart = "first", *, live: bool = True, exclusive: str | None = None
    ) -> SyncLiteReader:
        """See `LiteTopic.read`; a plain iterator over the messages."""
        return SyncLiteReader(self._topic.read(start, live=live, exclusive=exclusive), self._portal)

    def close(self) -> None:
        """See `LiteTopic.close`."""
        self._wait(self._topic.close())


class SyncLiteFeed:
    """See `LiteFeed`; a plain iterator over `(id, items)`; every call blocks until it is done."""

    def __init__(self, feed: LiteFeed, portal: Portal) -> None:
        self._feed, self._portal, self._wait = feed, portal, portal.wait

    def __enter__(self) -> Self:
        self._wait(self._feed.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.finish(self._feed.aclose())

    def add(self, id: str, start: LiteStart = "new") -> None:
        """See `LiteFeed.add`."""
        self._wait(self._feed.add(id, start))

    def remove(self, id: str) -> None:
        """See `LiteFeed.remove`."""
        self._wait(_call(self._feed.remove, id))

    def add_all(self, start: Literal["new", "first"] | int = "new") -> None:
        """See `LiteFeed.add_all`."""
        self._wait(_call(self._feed.add_all, start))

    def __iter__(self) -> SyncItems[tuple[str, LiteItems]]:
        return SyncItems(aiter(self._feed), self._portal)


async def _next(chunks: AsyncIterator[T]) -> T:
    return await chunks.__anext__()


async def _call(function: Callable[..., T], *args: Any, **options: Any) -> T:
    return function(*args, **options)

"""What a handler in a thread may do: the same as in the loop, and each call blocks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Unpack

from squadron.runtime.asking.blocking_handle import BlockingHandle
from squadron.runtime.asking.options import AskKeywords
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.question import Reply

if TYPE_CHECKING:
    from squadron.runtime.running.context import Context


class SyncContext:
    """What a plain `def` handler can't await; see `Context`.

    When the task is cancelled or its time is up, whatever waits here raises `concurrent.futures.CancelledError`.
    """

    def __init__(self, context: Context, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._context, self._wait = context, wait

    def ask(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> Outcome:
        """See `Context.ask`."""
        outcome: Outcome = self._wait(self._context.ask(topic, content, **options))
        return outcome

    def submit(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> BlockingHandle:
        """See `Context.submit`."""
        return BlockingHandle(self._wait(self._context.submit(topic, content, **options)), self._wait)

    def ask_person(self, message: str, **options: Any) -> Reply:
        """See `Context.ask_person`."""
        reply: Reply = self._wait(self._context.ask_person(message, **options))
        return reply

    def ask_approval(self, topic: str, arguments: Any, **options: Any) -> Reply:
        """See `Context.ask_approval`."""
        reply: Reply = self._wait(self._context.ask_approval(topic, arguments, **options))
        return reply

    def negotiate(self, topics: str | Iterable[str], content: Any = None, /, **options: Any) -> Outcome:
        """See `Context.negotiate`."""
        outcome: Outcome = self._wait(self._context.negotiate(topics, content, **options))
        return outcome

    def publish(self, topic: str, content: Any, **options: Any) -> None:
        """See `Context.publish`."""
        self._wait(self._context.publish(topic, content, **options))

    def publish_durable(self, topic: str, content: Any, **options: Any) -> int:
        """See `Context.publish_durable`."""
        seq: int = self._wait(self._context.publish_durable(topic, content, **options))
        return seq

    def emit(self, chunk: Any) -> None:
        """See `Context.emit`."""
        self._wait(self._context.emit(chunk))

    def remember(self, item: Any) -> None:
        """See `Context.remember`."""
        self._wait(self._context.remember(item))

    def recall(self, *, most: int = 50) -> list[Any]:
        """See `Context.recall`."""
        items: list[Any] = self._wait(self._context.recall(most=most))
        return items

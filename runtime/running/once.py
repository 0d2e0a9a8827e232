"""A task that its sender may send again after a crash, and that is to run once all the same."""

from __future__ import annotations

from squadron.runtime.asking.cancel import Cancellable, cancellable
from squadron.runtime.errors import FencedError
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.store.port_set import Ports
from squadron.runtime.texts import digest_of
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import LITE_TTL_S
from squadron.runtime.wire.replies import principal_of
from squadron.runtime.wire.subjects import Subjects, token_of


async def is_copy(ports: Ports, delivery: Delivery, message: AgentMessage) -> bool:
    """Whether the same task stands in the queue twice, and it is the other one's to run.

    The queue takes an id once within two minutes; who takes up a run later sends again what may not have gone out.
    So the first copy that is begun leaves a mark with its place in the queue.

    Raises:
        BusUnavailableError: nobody knows.
    """
    key = mark_key(ports.subjects, message)
    mark = f"{delivery.seq}.{message.redriven}".encode()
    try:
        await ports.lite.append(key, mark, ttl_s=keep_s(ports, message), expect_seq=0)
        return False
    except FencedError:
        begun = await ports.lite.last(key)
    # A mark of an earlier life, or of nobody's making, does not count.
    return begun is not None and begun.data != mark and begun.data.endswith(b".%d" % message.redriven)


def mark_key(subjects: Subjects, message: AgentMessage) -> str:
    """Where the mark of this very task stands: whoever sends another one under its id leaves a mark of its own."""
    whose = digest_of([principal_of(message.source.id), message.reply_to, message.type])[:16]
    return subjects.lite(token_of(message.id), f"begun-{whose}")


def keep_s(ports: Ports, message: AgentMessage) -> float:
    """How long what a task came to is kept, in seconds: where its sender may come late, past its deadline."""
    limits = message.payload.constraints
    if not message.once or limits is None or limits.deadline is None:
        return LITE_TTL_S
    return max(0.0, limits.deadline / 1000 - ports.clock.time()) + LITE_TTL_S


def cancelled_with(message: AgentMessage) -> tuple[Cancellable, ...]:
    """The tasks with which this one is cancelled: itself, and who asked for it, if that one outlives its replica.

    Who asked may be cancelled while its replica is dead, when nobody is there to tell the tasks that it sent.
    """
    parent = message.context.parent_message_id
    own = cancellable(message.id, message.source.id)
    asker = (message.metadata or {}).get("parentSource")
    if not message.once or not parent or not isinstance(asker, str):
        return (own,)
    return own, cancellable(parent, asker)

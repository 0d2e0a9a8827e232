"""What goes out when a task is asked for, and what is kept of it under an id of the caller's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import BusUnavailableError, ConfigError, FencedError, MessageTooLargeError
from squadron.runtime.ports.journal import Journal
from squadron.runtime.registry.registry import Registry
from squadron.runtime.store.sealed import input_digest
from squadron.runtime.wire.behalf import BEHALF
from squadron.runtime.wire.envelope import AgentIdentity, lay_out
from squadron.runtime.wire.id_note import IdNote
from squadron.runtime.wire.outcome import Outcome, Rejected, Undeliverable
from squadron.runtime.wire.path import Parent
from squadron.runtime.wire.spent import NOT_TOLD
from squadron.runtime.wire.subjects import Subjects, token_of

if TYPE_CHECKING:
    from squadron.runtime.asking.handle import Handle


def lay_out_task(
    identity: AgentIdentity,
    content: Any,
    ask: AskOptions,
    handle: Handle,
    *,
    parent: Parent | None,
    behalf: tuple[str, ...],
    seen: float,
    timestamp: float,
    once: bool,
) -> dict[str, Any]:
    """A task as it is sent, before it is sealed if its handle says so.

    Args:
        parent: the task that it is asked from, if it is.
        behalf: on whose behalf it is asked; see `wire.behalf`.
        seen: the journal's time of the newest change of the registry that its caller saw, or 0; who runs it sees
            as much.
        timestamp: now, in seconds since the epoch.
        once: it may be sent again under the same id, however late; who runs it makes sure that it runs once.
    """
    limits = {"deadline": handle.deadline.at_ms, **ask.budget.to_wire()}
    payload: dict[str, Any] = {"content": content, "constraints": limits}
    if ask.model is not None:
        payload["model"] = ask.model
    if ask.parameters is not None:
        payload["parameters"] = dict(ask.parameters)
    if handle.seal is not None:
        payload |= handle.seal.to_payload(() if parent is None else parent.readers)
    metadata: dict[str, Any] = {"nested": True} if ask.nested else {}
    if once:
        metadata["once"] = True
    if ask.bid:
        metadata["bid"] = ask.bid
    if seen:
        metadata["seen"] = seen
    if behalf:
        metadata[BEHALF] = list(behalf)
    if parent is not None:
        metadata["path"] = list(parent.path)
        if once:
            # With that task it is cancelled, by who may cancel that.
            metadata["parentSource"] = parent.source
    return lay_out(
        "task",
        identity,
        payload,
        id=handle.task_id,
        conversation_id=ask.conversation_id,
        parent=None if parent is None else parent.id,
        reply_to=handle.reply_to,
        target=ask.route.target or None,
        routing=_routing(ask),
        metadata=metadata or None,
        timestamp=timestamp,
        sensitive=handle.seal is not None,
    )


def _routing(ask: AskOptions) -> dict[str, Any]:
    start_within_s = ask.within_s if ask.start_within_s is None else ask.start_within_s
    routing: dict[str, Any] = {"priority": ask.priority, "timeout": max(1, round(start_within_s * 1000))}
    if ask.route.capabilities:
        routing["capabilities"] = list(ask.route.capabilities)
    if ask.route.exclusions:
        routing["exclusions"] = list(ask.route.exclusions)
    return routing


async def claim_id(lite: Journal, subjects: Subjects, handle: Handle, content: Any, *, keep_s: float) -> str:
    """Note what a task id stands for; returns why it can't stand for this task, or the empty string.

    The first who asks under an id says what it stands for and where its outcome goes, in whichever process and
    under whichever owner; it is kept for `keep_s` seconds.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    task_id, topic = handle.task_id, handle.topic
    # Apart from the outcome, in a place of the id's own: readers of a task's stream never see it.
    key = subjects.lite(token_of(task_id), "asked")
    digest = input_digest(content, "" if handle.seal is None else handle.seal.salt)
    # The queue takes a message id once, whoever it is from: this one nobody can take first.
    mine = IdNote(topic, digest, handle.reply_to, os.urandom(16).hex(), handle.sender)
    place = 0
    while True:
        asked: IdNote | None = mine
        try:
            await lite.append(key, mine.encode(), ttl_s=keep_s, expect_seq=place)
        except FencedError:
            # Somebody was first, maybe we: an answer may get lost.
            entry = await lite.last(key)
            asked = None if entry is None else IdNote.read(entry.data)
            # Anybody may write there; what nobody can read stands for nothing.
            place = 0 if entry is None else entry.seq
        if asked is None:
            continue
        handle.msg_id, handle.sender = asked.msg_id or token_of(task_id), asked.source or handle.sender
        if asked.topic != topic:
            return f"the task id {task_id!r} stands for {asked.topic!r}, and not for {topic!r}"
        if asked.input != digest:
            return f"the task id {task_id!r} stands for {topic!r} with another input"
        # The queue takes an id once, so that here nothing would ever come.
        taken = asked.reply_to != handle.reply_to
        return f"the task id {task_id!r} is taken under another owner" if taken else ""


async def noted_of(lite: Journal, subjects: Subjects, handle: Handle) -> IdNote | None:
    """What a task id stands for, if that is a task of this topic whose outcome goes to this place.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    entry = await lite.last(subjects.lite(token_of(handle.task_id), "asked"))
    asked = None if entry is None else IdNote.read(entry.data)
    fits = asked is not None and (asked.topic, asked.reply_to) == (handle.topic, handle.reply_to)
    return asked if fits else None


def nobody_serves(registry: Registry, topic: str, common: dict[str, Any]) -> Outcome:
    """How a task ends whose topic nobody serves."""
    nearest = registry.nearest(topic)
    advice = f"did you mean {', '.join(nearest)}?" if nearest else "see `squadron topics`"
    return Undeliverable(reason=f"nobody serves {topic!r}; {advice}", details={"nearest": nearest}, **common)


def not_sent(handle: Handle, error: Exception) -> Outcome:
    """How a task ends that could not be put."""
    ids: dict[str, Any] = {"task_id": handle.task_id, "topic": handle.topic}
    if isinstance(error, BusUnavailableError):
        # It may have arrived all the same.
        return Undeliverable(reason=str(error), spent=NOT_TOLD, **ids)
    if isinstance(error, ConfigError):
        return Rejected(reason=str(error), details={"field": "sealed"}, **ids)
    reason = str(error) if isinstance(error, MessageTooLargeError) else f"not JSON: {error}"
    return Rejected(reason=reason, details={"field": "content"}, **ids)

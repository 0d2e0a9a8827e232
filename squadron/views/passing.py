"""One message as it passed on the bus: what it is, whom it is of, and what it belongs to."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.ports.bus import Note
from squadron.runtime.redact import scrub, scrub_all
from squadron.runtime.registry.registry import Registry
from squadron.runtime.running.earlier import are_notes, read_note
from squadron.runtime.wire.amounts import LAST_S, is_amount
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import matches

#: What a message is to a person. "again" tells of an attempt that failed and is not the last, "inner"
#: is what the runtime tells itself.
PassingKind = Literal[
    "task",
    "result",
    "event",
    "query",
    "answer",
    "chunk",
    "lite",
    "bids?",
    "bid",
    "again",
    "cancel",
    "dead",
    "bridge",
    "inner",
]
#: Of so many tasks it is remembered what they were when their results pass.
TASKS_KEPT = 10_000
#: Larger contents are not shown, in bytes.
MOST_CONTENT = 64 * 1024
#: How often it is looked who serves what, in seconds.
LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Passing:
    """One message that passed. Texts are as their senders wrote them, but for secrets: escape what you print.

    Attributes:
        at: when it was sent, in seconds since the epoch; if it does not say, when it was heard.
        kind: what it is; see `PassingKind`.
        topic: of a task or event, or of the task whose result it is; owner and id of a lite topic.
        id: of the task that it is or is about; else of the message.
        parent: of a task, the one that it is asked from.
        sender: the replica or client that sent it; `sender_type` is its agent, or "client".
        agent: who serves the topic, or sent the result.
        outcome: of a result.
        said: a few facts in words: how long it took, why it failed.
        bytes: of the message as it travelled.
        content: what it holds, if that was asked for.
    """

    kind: PassingKind
    subject: str
    at: float = 0.0
    topic: str = ""
    id: str = ""
    conversation: str = ""
    parent: str = ""
    sender: str = ""
    sender_type: str = ""
    agent: str = ""
    outcome: str = ""
    said: str = ""
    bytes: int = 0
    content: Any = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, without what it does not have."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value or name in ("kind", "bytes")}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages are wanted; what is empty asks for nothing.

    Attributes:
        conversation, topic, agent: an id or its beginning, a pattern such as `analysis.*`, a name or a replica's.
        inner: also heartbeats, and what the runtime tells itself.
        chunks: also what tasks emit.
    """

    conversation: str = ""
    topic: str = ""
    agent: str = ""
    inner: bool = False
    chunks: bool = False

    def wants(self, it: Passing) -> bool:
        """Whether this message is one of them."""
        if (it.kind == "inner" and not self.inner) or (it.kind == "chunk" and not (self.chunks or self.inner)):
            return False
        if self.conversation and not it.conversation.startswith(self.conversation):
            return False
        if self.topic and (it.topic.count(".") != 1 or not matches(self.topic, it.topic)):
            return False
        whom = (it.agent, it.sender_type, it.sender)
        return not self.agent or self.agent in whom


class Reader:
    """Reads what passes; knows of a result which task it is of, if that passed, too.

    Args:
        registry: knows who serves what.
        contents: whether to keep them.
    """

    def __init__(self, registry: Registry, *, contents: bool = False) -> None:
        self._registry, self._contents = registry, contents
        self._tasks: OrderedDict[str, Passing] = OrderedDict()
        #: Who serves what, as of a monotonic time: to look is too much for each message.
        self._served, self._looked_at = dict[str, str](), -math.inf

    def read(self, note: Note) -> Passing:
        """What a message is. Never raises: anybody may send anything."""
        tokens = note.subject.split(".")
        kind, rest = (tokens[2], tokens[3:]) if len(tokens) > 3 else ("", [])
        heard_at = time.time()
        bare = Passing("inner", note.subject, heard_at, topic=".".join([kind, *rest]), bytes=len(note.data))
        match kind:
            case "task" | "query" | "event" | "result" | "lite" | "a2a":
                try:
                    message = AgentMessage.decode(note.data)
                except InvalidMessageError:
                    odd, task = _odd(bare, kind, rest, note.data), self._tasks.get(rest[0] if rest else "")
                    if odd.kind == "again" and task is not None:
                        return replace(odd, parent=task.parent, conversation=task.conversation)
                    return odd
                if is_amount(message.timestamp, LAST_S):
                    bare = replace(bare, at=message.timestamp)
                return self._of(message, bare, kind, rest)
            case "dead" if len(rest) > 1:
                return replace(bare, kind="dead", topic="", agent=rest[0], id=rest[1], said="a dead letter")
            case "bridge" if rest[0] not in ("ping", "status", "metrics", "nodes"):
                return replace(bare, kind="bridge", topic="", said=rest[0])
        return bare

    def _of(self, message: AgentMessage, bare: Passing, kind: str, rest: list[str]) -> Passing:
        it = replace(
            bare,
            id=message.id,
            conversation=message.context.conversation_id,
            parent=message.context.parent_message_id or "",
            sender=message.source.id,
            sender_type=message.source.type,
            topic=".".join(rest[:2]),
            content=self._content(message, bare.bytes),
        )
        match kind:
            case "task" | "query":
                it = replace(it, kind="task", agent=self._agent_of(it.topic))
                self._remember(it)
                return it
            case "event":
                beats = it.topic == "status.heartbeat"
                return replace(it, kind="inner" if beats else "event", agent=it.sender_type)
            case "a2a" if message.type == "query":
                it = replace(it, kind="bids?", topic=rest[-1], agent=rest[-1])
                self._remember(it)
                return it
            case "a2a":
                return replace(it, kind="inner")
            case "result":
                return self._result(message, it)
        return self._lite(message, it, rest)

    def _remember(self, it: Passing) -> None:
        self._tasks[it.id] = replace(it, content=None)
        if len(self._tasks) > TASKS_KEPT:
            self._tasks.popitem(last=False)

    def _lite(self, message: AgentMessage, it: Passing, rest: list[str]) -> Passing:
        """A message on a lite topic: mostly the outcome of a task, or a chunk of it."""
        content = message.payload.content
        match message.type:
            case "result" if rest[0] == "people":
                action = content.get("action") if isinstance(content, Mapping) else None
                return replace(it, kind="answer", id=rest[-1], topic="people", said=_text(action))
            case "query" | "event" if rest[0] == "people":
                return replace(it, kind="query", id=rest[-1], topic="people", said="a question to people")
            case "result" if rest[0] == "outcome":
                return replace(it, kind="inner")
            case "event" if (call := self._tasks.get(it.parent)) is not None and call.kind == "bids?":
                reason = content.get("reason") if isinstance(content, Mapping) else ""
                return replace(it, kind="bid", topic=call.topic, agent=it.sender_type, said=scrub(_text(reason)))
            case "result":
                return self._result(message, it)
            case "stream":
                id = message.correlation_id or it.parent or rest[-1]
                task = self._tasks.get(id)
                topic = task.topic if task is not None else ""
                # Else it says that the stream has ended, or whose chunks are to be seen as well.
                kind: PassingKind = "chunk" if "chunk" in (message.payload.model_extra or {}) else "inner"
                return replace(it, kind=kind, id=id, parent="", topic=topic, agent=it.sender_type)
        return replace(it, kind="lite", topic="/".join(rest))

    def _result(self, message: AgentMessage, it: Passing) -> Passing:
        content = message.payload.content if isinstance(message.payload.content, Mapping) else {}
        task = self._tasks.get(it.parent)
        said = []
        if is_amount(latency := content.get("latency")):
            said.append(_duration(latency))
        if is_amount(attempt := content.get("attempt")) and attempt > 1:
            said.append(f"attempt {attempt:.0f}")
        if isinstance(error := content.get("error"), Mapping):
            said.append(scrub(_text(error.get("message"))))
        return replace(
            it,
            kind="result",
            id=it.parent or it.id,
            parent=task.parent if task is not None else "",
            topic=task.topic if task is not None else "",
            agent=it.sender_type,
            outcome=_text(content.get("outcome")),
            said=" · ".join(said),
        )

    def _content(self, message: AgentMessage, size: int) -> Any:
        if not self._contents or size > MOST_CONTENT:
            return None
        payload = message.payload
        content = payload.content if payload.content is not None else (payload.model_extra or {}).get("chunk")
        return scrub_all(content)

    def _agent_of(self, topic: str) -> str:
        # One that is not known may be of an agent that was deployed a moment ago.
        age_s = time.monotonic() - self._looked_at
        if age_s > LOOK_S or (topic not in self._served and age_s > LOOK_S / 20):
            self._served = {each.name: agent for each, agent in self._registry.topics()}
            self._looked_at = time.monotonic()
        if (exact := self._served.get(topic)) is not None:
            return exact
        families = (agent for name, agent in self._served.items() if "*" in name and matches(name, topic))
        return next(families, "") if topic.count(".") == 1 else ""


def _odd(bare: Passing, kind: str, rest: list[str], data: bytes) -> Passing:
    """What is no envelope: of a foreign client, or a note that the runtime writes to itself."""
    match kind, rest:
        case "lite", ["cancel", task]:
            return replace(bare, kind="cancel", id=task, topic="", said="is asked to stop")
        case "lite", ["cursor" | "parked" | "outcome" | "begun", _] | [_, "asked" | "begun"]:
            return bare
        case "lite", [_, id] if id.startswith("begun-"):
            return bare
        case "lite", [task, id] if are_notes(id):
            note = read_note(data, bare.at)
            if note.kind != "again":
                return bare
            said = (
                f"attempt {note.attempt} failed: {note.error}" if note.error else f"attempt {note.attempt} failed"
            )
            it = replace(bare, sender=note.replica, sender_type=note.agent, agent=note.agent)
            return replace(it, kind="again", id=task, topic=note.topic, said=said)
        case "lite", [owner, id]:
            return replace(bare, kind="lite", topic=f"{owner}/{id}", said="no envelope")
        case "task" | "event" | "result", [_, _, *_]:
            unreadable: PassingKind = "task" if kind == "task" else "event" if kind == "event" else "result"
            return replace(bare, kind=unreadable, topic=".".join(rest[:2]), said="unreadable")
    return bare


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"

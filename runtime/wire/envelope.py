"""`AgentMessage` 1.0: the envelope of everything that travels.

Pydantic, camelCase on the wire and snake_case in Python; unknown fields survive a round trip. The shape is
that of the NATS pub/sub agent architecture (`docs/protocol.md`).
"""

from __future__ import annotations

import math
import os
import time
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticSerializationError

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.texts import encoded
from squadron.runtime.wire.amounts import MOST_EXACT
from squadron.runtime.wire.limits import MOST_SECONDS, MOST_USD, UNLIMITED, Budget
from squadron.runtime.wire.path import path_in
from squadron.runtime.wire.spent import MOST
from squadron.runtime.wire.subjects import NORMAL_PRIORITY

N = TypeVar("N", int, float)

MessageType = Literal["task", "result", "event", "query", "stream"]
#: Longest id or address, in characters: they are copied into each answer, and a subject must fit a server's line.
MAX_NAME = 1_000
#: Nobody puts a task back so often; a stranger's number may have thousands of digits.
MOST_REDRIVEN = 1_000_000
#: Who waited for longer than this, in seconds, was sent by a clock that is not ours: a year.
LONGEST_WAIT_S = 365 * 24 * 3600.0
#: What JSON carries exactly in a number, as a time: the year 287,396. Later ones can't be reckoned with.
LAST_MS = MOST_EXACT
#: What most tasks have for constraints, which is nothing that can be spent.
_NO_AMOUNT = {"deadline"}
PROTOCOL_VERSION: Literal["1.0"] = "1.0"


class Wire(BaseModel):
    """Base of all that travels: frozen, camelCase, and polite to fields it does not know."""

    # `defer_build`: most processes read a few of these shapes, and some read none.
    # `cache_strings`: ids are new in each message, so keeping them for the next only pushes out what comes again.
    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="allow",
        frozen=True,
        cache_strings="keys",
        defer_build=True,
    )

    def encode(self) -> bytes:
        """As UTF-8 JSON: exactly the fields that were set, so a null of somebody else's stays."""
        try:
            return self.__pydantic_serializer__.to_json(self, by_alias=True, exclude_unset=True)
        except PydanticSerializationError:
            # It may be half a surrogate pair only.
            return encoded(self.model_dump(by_alias=True, exclude_unset=True))


class AgentIdentity(Wire):
    """Who sent a message."""

    id: str
    type: str = "agent"


class MessageContext(Wire):
    """What the message belongs to."""

    conversation_id: str = Field(max_length=MAX_NAME)
    parent_message_id: str | None = None
    history: list[Any] | None = None
    max_history: int | None = Field(default=None, ge=0)
    metadata: dict[str, Any] = Field(default_factory=dict)


class Constraints(Wire):
    """What the work may cost. `deadline` is unix milliseconds, `time` milliseconds of work, `cost` US dollars."""

    time: float | None = Field(default=None, allow_inf_nan=False)
    tokens: int | None = None
    cost: float | None = Field(default=None, allow_inf_nan=False)
    rounds: int | None = None
    tasks: int | None = None
    hops: int | None = None
    deadline: int | None = Field(default=None, ge=0, le=LAST_MS)

    @property
    def budget(self) -> Budget:
        """The same as a budget: who has overspent has nothing left, and what is beyond all measure is cut."""
        if self.model_fields_set <= _NO_AMOUNT:
            return UNLIMITED
        return Budget(
            tokens=_clamped(self.tokens, 0, MOST),
            hops=_clamped(self.hops, -1, MOST),
            usd=_clamped(self.cost, 0.0, MOST_USD),
            rounds=_clamped(self.rounds, 0, MOST),
            tasks=_clamped(self.tasks, -1, MOST),
            seconds=None if self.time is None else _clamped(self.time / 1000, 0.0, MOST_SECONDS),
        )


def _clamped(value: N | None, least: N, most: N) -> N | None:
    return None if value is None else max(least, min(value, most))


class Payload(Wire):
    """The content itself; stream messages carry `sequenceNumber`, `isFirst`, `isFinal`, `chunk` instead."""

    content: Any = None
    model: str | None = None
    parameters: dict[str, Any] | None = None
    constraints: Constraints | None = None


class Routing(Wire):
    """Hints for delivery; `timeout` is how long the message may wait, in milliseconds."""

    priority: int = Field(default=NORMAL_PRIORITY, ge=0, le=9)
    capabilities: list[str] | None = None
    exclusions: list[str] | None = None
    timeout: float | None = Field(default=None, gt=0)


class Head(TypedDict, total=False):
    """What may be said of a message of our own, beside its type, source and payload; see `pack`."""

    id: str
    conversation_id: str
    parent: str | None
    reply_to: str | None
    correlation_id: str | None
    target: str | None
    metadata: dict[str, Any] | None
    timestamp: float | None
    sensitive: bool


class AgentMessage(Wire):
    """One message. `timestamp` is in seconds since the epoch."""

    id: str = Field(min_length=1, max_length=MAX_NAME)
    timestamp: float = Field(ge=0, le=MOST_EXACT)
    version: Literal["1.0"] = PROTOCOL_VERSION
    type: MessageType
    source: AgentIdentity
    target: str | None = None
    reply_to: str | None = Field(default=None, max_length=MAX_NAME)
    correlation_id: str | None = Field(default=None, max_length=MAX_NAME)
    context: MessageContext
    payload: Payload
    routing: Routing = Field(default_factory=Routing)
    metadata: dict[str, Any] | None = None

    @classmethod
    def new(
        cls,
        type: MessageType,
        source: AgentIdentity,
        content: Any = None,
        *,
        payload: Payload | None = None,
        routing: Routing | None = None,
        **head: Unpack[Head],
    ) -> Self:
        """The message that `pack` makes of this, checked.

        Raises:
            pydantic.ValidationError: a field does not fit.
            pydantic_core.PydanticSerializationError: the content is not JSON.
        """
        body = {"content": content} if payload is None else payload.model_dump(by_alias=True, exclude_unset=True)
        hints = None if routing is None else routing.model_dump(by_alias=True, exclude_unset=True)
        return cls.model_validate_json(pack(type, source, body, routing=hints, **head))

    @property
    def redriven(self) -> int:
        """How often this task was put back after it was dead-lettered."""
        return redriven_in(self.metadata)

    @property
    def path(self) -> tuple[str, ...]:
        """The steps that led to this task, oldest first; see `wire.path`."""
        return path_in(self.metadata)

    @property
    def nested(self) -> bool:
        """Whether readers of this task's stream are to see those of the tasks that it asks."""
        return (self.metadata or {}).get("nested") is True

    @property
    def once(self) -> bool:
        """Whether its sender may send it again after a crash, so that who runs it makes sure that it runs once."""
        return (self.metadata or {}).get("once") is True

    @property
    def seen(self) -> float:
        """Up to when its sender knows what is served, by the registry's clock; 0 if it does not say."""
        at = (self.metadata or {}).get("seen")
        return at if isinstance(at, float) and math.isfinite(at) else 0.0

    def waited_s(self, now: float) -> float:
        """How long ago it was sent, in seconds; 0 where its sender has no clock that agrees with ours."""
        waited_s = now - self.timestamp
        return waited_s if 0 <= waited_s <= LONGEST_WAIT_S else 0.0

    def put_back(self, redriven: int, now: float) -> Self:
        """The message as it is when it was put back so often, the last time `now`, in seconds since the epoch."""
        changes: dict[str, Any] = {"timestamp": now, "metadata": {**(self.metadata or {}), "redriven": redriven}}
        limits = self.payload.constraints
        if limits is not None and limits.deadline is not None:
            later_ms = round(1000 * (now - self.timestamp))
            limits = limits.model_copy(update={"deadline": min(max(0, limits.deadline + later_ms), LAST_MS)})
            changes["payload"] = self.payload.model_copy(update={"constraints": limits})
        return self.model_copy(update=changes)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a message.

        Raises:
            InvalidMessageError: not JSON, not our shape, or another protocol version; `field` says where.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            where = f"field {field!r}: " if field else ""
            raise InvalidMessageError(f"{where}{first['msg']}", field=field) from None


def redriven_in(metadata: Any) -> int:
    """How often a task was put back, by its metadata; what is no such count stands for never."""
    count = metadata.get("redriven", 0) if isinstance(metadata, dict) else 0
    return count if type(count) is int and 0 <= count < MOST_REDRIVEN else 0


def pack(
    type: MessageType,
    source: AgentIdentity,
    payload: dict[str, Any],
    *,
    routing: dict[str, Any] | None = None,
    **head: Unpack[Head],
) -> bytes:
    """A message of our own, encoded; see `lay_out`, and `Ports.pack` of who has ports.

    Raises:
        pydantic_core.PydanticSerializationError: something in it is not JSON.
    """
    return encoded(lay_out(type, source, payload, routing=routing, **head))


def lay_out(
    type: MessageType,
    source: AgentIdentity,
    payload: dict[str, Any],
    *,
    id: str = "",
    conversation_id: str = "",
    parent: str | None = None,
    reply_to: str | None = None,
    correlation_id: str | None = None,
    target: str | None = None,
    routing: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    timestamp: float | None = None,
    sensitive: bool = False,
) -> dict[str, Any]:
    """A message of our own as on the wire, of values that are known to be right: the one place that lays it out.

    It gets a fresh id, and the time of the wall clock, where none is given.

    Args:
        payload, routing: as on the wire, in camelCase.
        sensitive: nobody else may read it (`context.metadata.sensitive`).
    """
    id = id or os.urandom(16).hex()
    context: dict[str, Any] = {"conversationId": conversation_id or id}
    if parent is not None:
        context["parentMessageId"] = parent
    context["metadata"] = {"sensitive": True} if sensitive else {}
    wire: dict[str, Any] = {
        "id": id,
        "timestamp": time.time() if timestamp is None else timestamp,
        "version": PROTOCOL_VERSION,
        "type": type,
        "source": {"id": source.id, "type": source.type},
        "target": target,
        "replyTo": reply_to,
        "correlationId": correlation_id,
        "context": context,
        "payload": payload,
        "routing": routing or {"priority": NORMAL_PRIORITY},
        "metadata": metadata,
    }
    for name in ("target", "replyTo", "correlationId", "metadata"):
        if wire[name] is None:
            del wire[name]
    return wire

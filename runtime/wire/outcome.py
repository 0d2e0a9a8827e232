"""The one typed end that every task has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from squadron.runtime.errors import OutcomeError
from squadron.runtime.html_table import table
from squadron.runtime.redact import scrub, scrub_all
from squadron.runtime.wire.amounts import is_amount
from squadron.runtime.wire.spent import NOTHING, Spent
from squadron.runtime.wire.subjects import token_of

#: Life of an outcome and of stream chunks on their lite topic, in seconds: long enough for a caller that
#: was restarted to come back for them.
LITE_TTL_S = 3600.0
#: So much of a digest of code goes into outcomes and metrics: of a million versions no two begin alike (48 bits).
VERSION_CHARACTERS = 12


def outcome_msg_id(task_id: str, lite_key: str, redriven: int = 0) -> str:
    """Message id of a task's outcome on its lite topic: of two that are stored under it, the second is dropped.

    A server counts ids by stream, so that the topic is in it: another's task of the same id has its outcome, too.
    A dead letter that was put back `redriven` times may have one more each time.
    """
    return f"{token_of(f'{lite_key} {task_id}')}.outcome" + (f".{redriven}" if redriven else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a task ended. `reason` says it in words, `details` in fields.

    `latency_ms` is the time in the handler, `attempt` the delivery that ended it, `source` the replica, and
    `version` how the digest of its code begins. `spent` is what the task spent with all that it asked of others,
    in all its attempts; `tokens` are those of it.
    """

    #: Name on the wire.
    kind: ClassVar[str] = "outcome"
    #: Whether the same call may end better when it is made again.
    retryable: ClassVar[bool] = False

    task_id: str = ""
    topic: str = ""
    source: str = ""
    version: str = ""
    attempt: int = 1
    latency_ms: float = 0.0
    tokens: int = 0
    spent: Spent = NOTHING
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens != self.spent.tokens:
            # Who tells one of them told both.
            if self.spent.tokens:
                object.__setattr__(self, "tokens", self.spent.tokens)
            else:
                object.__setattr__(self, "spent", replace(self.spent, tokens=self.tokens))
        # All reasons leave by here: to callers, lite topics, journals, logs and dead letters.
        if self.reason:
            object.__setattr__(self, "reason", scrub(self.reason))
        if self.details:
            object.__setattr__(self, "details", scrub_all(dict(self.details)))

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return False

    def _repr_html_(self) -> str:
        content = self.to_content()
        said = json.dumps(content["data"], ensure_ascii=False, indent=1, default=str) if self.ok else self.reason
        rows = [("how it ended", self.kind.replace("_", " ")), ("data" if self.ok else "reason", said)]
        rows += [("details", str(self.details))] if self.details else []
        rows += [("topic", self.topic), ("replica", self.source)]
        rows += [("version", self.version[:8])] if self.version else []
        rows += [("attempt", str(self.attempt)), ("in the handler", f"{self.latency_ms:,.1f} ms")]
        return table((), rows + ([("tokens", f"{self.tokens:,}")] if self.tokens else []))

    def withheld(self) -> Outcome:
        """The same end without what was said in it, for those whom a sealed task is not for."""
        kind = str(self.details.get("type") or str(self.details.get("last_error", "")).partition(":")[0])
        details = {name: self.details[name] for name in ("attempts",) if name in self.details}
        details |= {"type": kind} if kind else {}
        reason = f"{kind or self.kind}: what it says is sealed"
        names = ("task_id", "topic", "source", "version", "attempt", "latency_ms", "spent")
        return type(self)(**{name: getattr(self, name) for name in names}, reason=reason, details=details)

    def unwrap(self) -> Any:
        """The result's data.

        Raises:
            OutcomeError: the task ended otherwise; carries this outcome.
        """
        raise OutcomeError(f"{self.topic} {self.kind.replace('_', ' ')}: {self.reason}", outcome=self)

    def to_content(self) -> dict[str, Any]:
        """The `payload.content` of a result message (`success`, `data`, `tokens`, `latency`, `error`…)."""
        content: dict[str, Any] = {
            "success": self.ok,
            "outcome": self.kind,
            "tokens": self.tokens,
            "latency": round(self.latency_ms, 3),
            "attempt": self.attempt,
        }
        if self.version:
            content["version"] = self.version
        if any(self.spent.coins[1:]) or not self.spent.told:
            content["spent"] = self.spent.to_wire()
        if not self.ok:
            content["error"] = {"message": self.reason, "details": dict(self.details)}
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Outcome):
    """The handler returned."""

    kind: ClassVar[str] = "result"
    data: Any = None
    confidence: float | None = None
    reasoning: str | None = None

    @property
    def ok(self) -> bool:
        return True

    def unwrap(self) -> Any:
        return self.data

    def withheld(self) -> Outcome:
        return Result(
            task_id=self.task_id,
            topic=self.topic,
            source=self.source,
            version=self.version,
            attempt=self.attempt,
            latency_ms=self.latency_ms,
            spent=self.spent,
        )

    def to_content(self) -> dict[str, Any]:
        # dataclass(slots=True) makes a new class, so the zero-argument super() would miss.
        content = Outcome.to_content(self)
        content["data"] = self.data
        if self.confidence is not None:
            content["confidence"] = self.confidence
        if self.reasoning is not None:
            content["reasoning"] = self.reasoning
        return content


# Those that add no field are no dataclasses of their own: to make one takes 2 ms, in each process.
class Failed(Outcome):
    """The handler said that no attempt can help (`Terminal`), or its output broke its own schema."""

    __slots__ = ()
    kind: ClassVar[str] = "failed"


class TimedOut(Outcome):
    """The handler ran out of its time, or the caller's deadline passed with no outcome."""

    __slots__ = ()
    kind: ClassVar[str] = "timed_out"
    retryable: ClassVar[bool] = True


class Expired(Outcome):
    """The task waited in its mailbox past its queue deadline and was never started."""

    __slots__ = ()
    kind: ClassVar[str] = "expired"
    retryable: ClassVar[bool] = True


class Undeliverable(Outcome):
    """Nobody serves the topic; `details["nearest"]` names the closest that are served."""

    __slots__ = ()
    kind: ClassVar[str] = "undeliverable"
    retryable: ClassVar[bool] = True


class Rejected(Outcome):
    """Refused at the door: schema, budget, size; `details["field"]` says where."""

    __slots__ = ()
    kind: ClassVar[str] = "rejected"


class Cancelled(Outcome):
    """Somebody asked for it to stop."""

    __slots__ = ()
    kind: ClassVar[str] = "cancelled"


class DeadLettered(Outcome):
    """Every attempt failed; the message lies in the dead-letter stream with its last error."""

    __slots__ = ()
    kind: ClassVar[str] = "dead_lettered"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler may return instead of bare data, to say how sure it is and why."""

    data: Any
    confidence: float | None = None
    reasoning: str | None = None


KINDS: dict[str, type[Outcome]] = {
    cls.kind: cls for cls in (Result, Failed, TimedOut, Expired, Undeliverable, Rejected, Cancelled, DeadLettered)
}


#: What most tasks have spent.
_NO_TOKENS = {"tokens": 0}


def from_content(content: Any, *, task_id: str = "", topic: str = "", source: str = "") -> Outcome:
    """Read an outcome back from a result message's `payload.content`.

    A foreign agent may send only `{success, data}`, or bare data: both are understood.
    """
    if not isinstance(content, Mapping) or "success" not in content:
        return Result(task_id=task_id, topic=topic, source=source, data=content)
    default = "result" if content["success"] else "failed"
    kind = KINDS.get(str(content.get("outcome", default)), KINDS[default])
    common: dict[str, Any] = {
        "task_id": task_id,
        "topic": topic,
        "source": source,
        "version": str(content.get("version", "")),
        "attempt": int(attempt) if is_amount(attempt := content.get("attempt")) else 1,
        "latency_ms": latency if is_amount(latency := content.get("latency")) else 0.0,
    }
    # A foreign agent that says nothing of it has spent no more than its tokens.
    if (spent := content["spent"] if "spent" in content else {"tokens": content.get("tokens")}) != _NO_TOKENS:
        common["spent"] = Spent.of_wire(spent)
    if error := content.get("error"):
        told = error if isinstance(error, Mapping) else {"message": str(error)}
        details = told.get("details")
        common["reason"] = str(told.get("message", ""))
        common["details"] = details if isinstance(details, Mapping) else {}
    if kind is Result:
        return Result(
            data=content.get("data"),
            confidence=content.get("confidence"),
            reasoning=content.get("reasoning"),
            **common,
        )
    return kind(**common)

"""Everything that can go wrong, as one tree under `SquadronError`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from squadron.runtime.redact import scrub, scrub_all


def _rebuild(cls: type[SquadronError], args: tuple[Any, ...], state: dict[str, Any]) -> SquadronError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class SquadronError(Exception):
    """Base of all our errors: a message, and a hint that says what to do, both without secrets.

    Survives pickle with its fields, because errors cross process borders.
    """

    #: Whether the same call may succeed when it is made again.
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(scrub(str(message)))
        self.hint = scrub(hint)

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else type(self).__name__
        return f"{message} ({self.hint})" if self.hint else message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)

    def to_dict(self) -> dict[str, Any]:
        """The error as it travels: `type`, `message`, `hint`, and its own fields if they are plain values."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, str | int | float)}
        told: dict[str, Any] = scrub_all({"type": type(self).__name__, "message": str(self.args[0]), **plain})
        return told

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SquadronError:
        """The error that a peer sent; an unknown type becomes a plain `SquadronError`."""
        known = {sub.__name__: sub for sub in _descendants(SquadronError)}
        kind = known.get(str(raw.get("type")), SquadronError)
        error = kind.__new__(kind)
        # Fields that did not travel get their defaults.
        parameters = inspect.signature(kind).parameters.values()
        fields = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        fields |= {name: raw[name] for name in fields if name in raw}
        SquadronError.__init__(error, str(raw.get("message", "")), hint=str(raw.get("hint", "")))
        error.__dict__.update(fields)
        return error


def _descendants(cls: type[SquadronError]) -> set[type[SquadronError]]:
    return {cls}.union(*(_descendants(sub) for sub in cls.__subclasses__()))


class ConfigError(SquadronError):
    """A setting is missing or wrong; the message names it."""


class NotThereError(ConfigError):
    """What is to be changed is not there: no such agent is deployed, or it has no canary."""


class InvalidShareError(ConfigError):
    """A share of tasks is none, or stands where there is none; `field` names it."""

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class TlsError(ConfigError):
    """No connection by TLS; `field` names the setting to look at.

    `reason` is `plain` (the server has no TLS), `unknown_ca`, `expired`, `not_yet_valid`, `wrong_name`,
    `no_certificate` (it wants one of the client), `refused` (it does not take the client's), `files`, or `failed`
    for anything else.
    """

    def __init__(self, message: str, *, field: str = "", reason: str = "failed", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field, self.reason = field, reason


class InvalidSubjectError(SquadronError):
    """A subject or one of its tokens breaks the grammar; the message names the token."""


class InvalidMessageError(SquadronError):
    """Bytes on a subject are not an `AgentMessage`; `field` says where."""

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class UnsealedError(InvalidMessageError):
    """A sealed message does not open: it was changed, cut, or stands elsewhere than it was sealed for."""


class KeyLostError(UnsealedError):
    """A message is sealed for a key that is not here; `kid` is the key's id."""

    def __init__(self, message: str, *, field: str = "payload.sealed", kid: str = "", hint: str = "") -> None:
        super().__init__(message, field=field, hint=hint)
        self.kid = kid


class InvalidInputError(SquadronError):
    """The content does not fit the topic's input schema; `field` says where."""

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class InvalidAgentError(SquadronError):
    """A class can't be served as an agent: no handler, an untyped parameter, a name twice… `field` names the
    attribute, if it is one.
    """

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class WrongLoopError(SquadronError):
    """A context was used on another event loop than its replica's, or blocked that one."""


class MessageTooLargeError(SquadronError):
    """The encoded message is larger than the server, or the setting `max_message_bytes`, allows."""


class ClaimLostError(SquadronError):
    """A payload that travelled as a claim check is not there any more, or not all of it."""


class StreamGapError(SquadronError):
    """Chunks of a stream are lost for good: those with the numbers `first` to `last` of its `epoch`.

    `last` is -1 if nobody knows how many there were.
    """

    def __init__(
        self, message: str, *, lite_topic: str = "", epoch: int = 1, first: int = 0, last: int = -1, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.lite_topic, self.epoch, self.first, self.last = lite_topic, epoch, first, last


class FencedError(SquadronError):
    """Somebody else already wrote past the expected sequence."""


class QuotaExceededError(SquadronError):
    """There are as many lite topics as may be: `limit` of them, of `owner` or, if that is empty, in all."""

    def __init__(self, message: str, *, owner: str = "", limit: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.owner, self.limit = owner, limit


class BusUnavailableError(SquadronError):
    """NATS can't be reached, or did not acknowledge in time."""

    retryable = True


class SquadClosedError(SquadronError):
    """What was to be used was closed in this process, or belongs to the one that forked it.

    Not a `BusUnavailableError`: waiting and trying again can't help.
    """


class BlockingCallError(SquadronError):
    """A call that blocks was made in a thread whose event loop runs, and would hold it up."""


class UntrustedError(SquadronError):
    """It is not signed, not by whom it should be, or not as it was signed; nothing was done for it."""


class ForbiddenError(UntrustedError):
    """Who signed it is known, and may not ask that, or not so much; `field` is what forbids it: `allow`, a rule or
    a limit of the policy, or `metadata.onBehalfOf`.
    """

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class StorageFullError(BusUnavailableError):
    """The storage of JetStream, or of one of its streams, is full: nothing is stored until something is freed."""


class BridgeUnavailableError(SquadronError):
    """No bridge answers for this environment."""

    retryable = True


class ServerUnavailableError(SquadronError):
    """A server that an agent stands for can't be reached, or went away over a call."""

    retryable = True


class ClusterUnavailableError(SquadronError):
    """Ray can't be started or reached."""


class DeployError(SquadronError):
    """Ray Serve could not run the agent; the message carries its reason."""


class IncompatibleVersionError(DeployError):
    """A version of an agent does not fit those who ask the one beside it; the message says what changed."""


class RouteConflictError(SquadronError):
    """Two mailboxes would serve the same topic."""


class UnknownLetterError(SquadronError):
    """No dead letter goes by this id, or several do."""


class CutLetterError(SquadronError):
    """Of a dead letter's message only the beginning was kept: it can't be put back."""


class UnknownQuestionError(SquadronError):
    """No question waits under this id, or several do."""


class QuestionClosedError(SquadronError):
    """A question can't be answered any more: it was withdrawn, it is past its deadline, or `by` was first.

    `action` is the answer that was given then.
    """

    def __init__(self, message: str, *, by: str = "", action: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.by, self.action = by, action


class ModelError(SquadronError):
    """The LLM provider refused or broke off.

    Attributes:
        kind: "passing" (overload, network, a stream that broke), "limit" (too many requests), "overflow" (the
            conversation is too long), "refusal", "key" (missing, wrong, or without credit), or "request".
        retry_after_s: when the provider says that the call may work, in seconds.
        tokens: what it had used until then, input and output, if it told.
        began: whether it had said something already, or may have when it was cut.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        kind: str = "request",
        retry_after_s: float | None = None,
        tokens: int = 0,
        began: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind, self.retry_after_s, self.tokens, self.began = kind, retry_after_s, tokens, began

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """Whether the same call may work later."""
        return self.kind in ("passing", "limit")


class RunOverError(SquadronError, TimeoutError):
    """The time of a run is up: its model is not asked any more."""


class RecordingError(SquadronError):
    """A file is no recording, or not a whole one.

    Attributes:
        line: where, from 1; 0 if it is the file as such.
    """

    def __init__(self, message: str, *, hint: str = "", line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message, hint=hint)
        self.line = line


class SupersededError(SquadronError):
    """Another attempt at the same work has taken over: this one does nothing more, and has no outcome of its own.

    Raised in a handler it lets the task go: whoever took over ends it.
    """


class OutcomeError(SquadronError):
    """Raised by `Outcome.unwrap()` when a task ended in anything but a result."""

    def __init__(self, message: str, *, outcome: Any = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.outcome = outcome


class Retry(SquadronError):  # noqa: N818 - an instruction, not an error
    """Raise it in a handler: try this task again after `after_s` seconds."""

    def __init__(self, message: str = "try again", *, after_s: float = 1.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class Park(SquadronError):  # noqa: N818 - an instruction, not an error
    """Raise it in a handler: run this task again when one of these questions to people is answered.

    Until then, or until `deadline_ms` (since the epoch), it holds no slot. The handler is run again from its top;
    that counts as the same attempt.
    """

    def __init__(
        self, message: str = "waits for people", *, queries: Sequence[str] = (), deadline_ms: int = 0
    ) -> None:
        super().__init__(message)
        self.queries, self.deadline_ms = tuple(queries), deadline_ms


class Terminal(SquadronError):  # noqa: N818 - an instruction, not an error
    """Raise it in a handler: this task fails now, no attempt can help."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class BudgetError(Terminal):
    """What may still be spent does not suffice: no attempt can help. `field` names the limit: "tokens", "usd",
    "rounds" or "tasks".
    """

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        SquadronError.__init__(self, message, hint=hint)
        self.field = field


class UnansweredError(Terminal):
    """Nobody answered a question before its deadline, and it has no default; or it was withdrawn.

    In a handler that fails the task: another attempt would find the same question, as unanswered.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

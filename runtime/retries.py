"""When a failed task is tried again, and how long it waits for that."""

from __future__ import annotations

import hashlib
import random
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squadron.runtime.errors import OutcomeError, Retry, SquadronError
from squadron.runtime.redact import scrub
from squadron.runtime.texts import whole

#: Pause before the second attempt and the longest pause, in seconds; doubled each time, with jitter.
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
#: How much of an error's text goes into an outcome, in characters.
SUMMARY_CHARACTERS = 4_000
#: How many places in the user's code are told of an error, and what is not the user's code.
PLACES = 3
_FOREIGN = tuple({str(Path(__file__).parents[1]), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))})
#: How often a task is tried before it is dead-lettered: a crash and a hiccup are both survived.
DEFAULT_MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Retries:
    """A topic's way with failures: up to `max_attempts` starts, with exponential backoff between `first_s` and
    `longest_s` seconds, for exceptions of the types in `on`.
    """

    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    first_s: float = FIRST_BACKOFF_S
    longest_s: float = LONGEST_BACKOFF_S
    on: tuple[type[BaseException], ...] = (Exception, SystemExit)

    def covers(self, error: BaseException) -> bool:
        """Whether another attempt may help against this error."""
        if isinstance(error, Retry):
            return True
        if isinstance(error, OutcomeError):
            return error.outcome is None or error.outcome.retryable
        if isinstance(error, SquadronError) and not error.retryable:
            return False
        return isinstance(error, self.on)

    def after_s(self, attempt: int, error: BaseException) -> float:
        """Pause after the nth failed attempt, in seconds; what `Retry` asks for wins."""
        if isinstance(error, Retry):
            return error.after_s
        return backoff_s(attempt, self.first_s, self.longest_s)


def backoff_s(attempt: int, first_s: float = FIRST_BACKOFF_S, longest_s: float = LONGEST_BACKOFF_S) -> float:
    """Pause after the nth failed attempt: doubling, with half of it jitter."""
    # A large exponent would overflow; long before, the limit is reached.
    full = min(longest_s, first_s * 2.0 ** min(attempt - 1, 60))
    return full * random.uniform(0.5, 1.0)


def text_of(error: BaseException) -> str:
    """An error's words, as they can travel: without secrets and lone surrogates, and cut."""
    try:
        text = str(error)
    except Exception as unreadable:
        text = f"its words can't be had: {type(unreadable).__name__}"
    words: str = whole(scrub(text))
    return words[:SUMMARY_CHARACTERS]


def summary_of(error: BaseException) -> str:
    """An error's type and words."""
    return f"{type(error).__name__}: {text_of(error)}"


def traceback_of(error: BaseException) -> str:
    """An error's traceback as text that can travel."""
    words: str = whole(scrub("".join(traceback.format_exception(error))))
    return words


def places_of(error: BaseException) -> str:
    """Where an error comes from, in one line: the last places in the user's own code, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_FOREIGN)] or frames
    return ", ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in own[-PLACES:])


def failure_details(error: BaseException, attempts: int) -> dict[str, Any]:
    """What a dead letter keeps of the last error; `traceback_digest` is the same for the same traceback."""
    digest = hashlib.sha256(traceback_of(error).encode()).hexdigest()[:16]
    return {"attempts": attempts, "last_error": summary_of(error), "traceback_digest": digest}

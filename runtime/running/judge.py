"""What becomes of a task whose handler raised, or never came to its end."""

from __future__ import annotations

from typing import Any

from squadron.runtime.errors import BudgetError, Terminal
from squadron.runtime.retries import Retries, failure_details, places_of, summary_of, text_of, traceback_of
from squadron.runtime.running.context import TurnContext
from squadron.runtime.running.handler import OutputError
from squadron.runtime.running.no_outcome import Again
from squadron.runtime.wire.outcome import DeadLettered, Failed, Outcome
from squadron.runtime.wire.spent import NOT_TOLD


def judge(error: BaseException, retries: Retries, common: dict[str, Any], context: TurnContext) -> Outcome | Again:
    """The outcome, or another attempt if one may help and there is time for it."""
    summary = summary_of(error)
    attempt = common["attempt"]
    if isinstance(error, Terminal | OutputError) or not retries.covers(error):
        kind = type(error).__name__
        details = {"type": kind} | ({"field": error.field} if isinstance(error, BudgetError) else {})
        return Failed(reason=text_of(error) or kind, details=details, **common)
    after_s = retries.after_s(attempt, error)
    if attempt < retries.max_attempts and after_s < context.deadline.remaining_s():
        told = type(error).__name__ if context.is_sealed else summary
        context.log.info("turn.retry", error=told, after_s=round(after_s, 3))
        return Again(after_s, summary)
    if context.is_sealed:
        # Where it was, and nothing of what was in its hands.
        context.log.warning("turn.gave_up", error=type(error).__name__, at=places_of(error))
    else:
        context.log.warning("turn.gave_up", error=summary, traceback=traceback_of(error))
    details = failure_details(error, attempt)
    reason = f"failed in each of {attempt} attempts, the last time with {summary}"
    if attempt < retries.max_attempts:
        reason = f"no time is left for attempt {attempt + 1}; the last failed with {summary}"
    return DeadLettered(reason=reason, details=details, **common)


def died_each_time(attempts: int, common: dict[str, Any]) -> DeadLettered:
    """The outcome of a task that has had all its attempts, none of which came to an end."""
    reason = f"its replica died or fell silent in each of {attempts} attempts"
    common |= {"attempt": attempts, "spent": NOT_TOLD}
    return DeadLettered(reason=reason, details={"attempts": attempts}, **common)

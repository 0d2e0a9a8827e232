"""What may ail the work itself: what was given up, what waits for people, for a provider, or for nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from squadron.bridge.health.diagnosis import Diagnosis
from squadron.bridge.health.facts import Facts, WaitingFacts

#: A wait for a provider that people are told of, in seconds: below it calls are only spread over the minute.
LONG_WAIT_S = 10.0
#: So many messages wait for the audit trail where the archivist is too slow, as in the alert.
MANY_UNRECORDED = 10_000
#: So many dead letters are no accident.
MANY_LETTERS = 10
#: How long a question may wait before people are told by other ways, in seconds: a coffee break.
LONG_QUESTION_S = 600.0
#: How many are named.
_NAMED = 3


def check_audit(facts: Facts) -> Iterator[Diagnosis]:
    """Nobody records, or whoever does is far behind: what waits for longer than a week is lost to the trail."""
    audit = facts.audit
    if audit is None or audit.mode == "off":
        return
    waits = f"{audit.waiting:,} messages wait for the archivist"
    if not audit.has_archivist:
        fix = "squadron up: the bridge starts it anew; why it ended stands in its log: squadron audit status"
        yield Diagnosis("audit trail", "fail", f"nobody records: {waits}", fix)
    elif audit.waiting > MANY_UNRECORDED:
        yield Diagnosis("audit trail", "warn", waits, "squadron audit status; SQUADRON_AUDIT=trail records less")


def check_accounts(facts: Facts) -> Iterator[Diagnosis]:
    """Has no more quota for now."""
    fix = "wait, ask the provider for more, or fall back: --model A,B; limits are set by SQUADRON_MODEL_LIMITS"
    for each in facts.accounts or ():
        if (paused_s := each.paused_until - facts.now) > 0:
            found = f"{each.name} said 429: no calls for another {paused_s:.0f} s"
            yield Diagnosis("provider limits", "warn", found, fix)
        elif (wait_s := each.next_at - facts.now) > LONG_WAIT_S:
            yield Diagnosis("provider limits", "warn", f"calls of {each.name} wait for {wait_s:.0f} s", fix)


def check_dead_letters(facts: Facts) -> Iterator[Diagnosis]:
    """Many messages were given up."""
    dead = facts.dead
    if dead is None or (total := sum(dead.by_agent.values())) < MANY_LETTERS:
        return
    most = sorted(dead.by_agent.items(), key=lambda each: -each[1])[:_NAMED]
    at = datetime.fromtimestamp(dead.last_at, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    found = f"{total:,}, the last at {at} UTC; " + ", ".join(f"{count:,} of {agent}" for agent, count in most)
    yield Diagnosis(
        "dead letters", "warn", found, "squadron dlq list; once it is mended: squadron dlq redrive --all"
    )


def check_runs(facts: Facts) -> Iterator[Diagnosis]:
    """Nobody works on a run any more that has not ended."""
    if stale := facts.stale_runs:
        found = f"{len(stale)} stopped without an end: {_names(stale)}"
        yield Diagnosis(
            "runs", "warn", found, f"squadron runs show {stale[0].id}; squadron runs resume {stale[0].id}"
        )


def check_questions(facts: Facts) -> Iterator[Diagnosis]:
    """Has waited for an answer for long."""
    long = [each for each in facts.questions or () if facts.now - each.since > LONG_QUESTION_S]
    if long:
        minutes = (facts.now - long[0].since) / 60
        found = f"{len(long)} wait for people, the oldest for {minutes:.0f} min: {_names(long)}"
        yield Diagnosis("questions", "warn", found, f"squadron asks; squadron answer {long[0].id[:8]}")


def _names(waiting: Sequence[WaitingFacts]) -> str:
    names = [f"{each.id[:24]} ({each.title})" for each in waiting[:_NAMED]]
    return ", ".join(names + ["…"] * (len(waiting) > _NAMED))

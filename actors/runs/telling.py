"""What came of calls, as the model reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from squadron.actors.runs.entries import CallEnd
from squadron.actors.runs.references import describe
from squadron.actors.thinking.fence import Fence
from squadron.runtime.wire.spent import Spent

#: Longest result shown to the model, in characters: about 2,000 tokens, so that a dozen rounds of several
#: calls fit into any current context window. The rest is within reach by reference.
SHOWN_CHARS = 8_000
#: Longest account of the reasons for a result, in characters: a paragraph or two.
REASONS_CHARS = 2_000


def result_text(
    call: str, name: str, value: Any, fence: Fence, *, about: str = "", reasons: str | None = None
) -> str:
    """A result: a line about it, then its JSON (a text as it is), cut if it is long, fenced as data.

    Args:
        reasons: why whoever was called thinks so.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    cut = ""
    if len(text) > SHOWN_CHARS:
        cut = (
            f"\n[Cut. In full it is {describe(value)}, {len(text)} characters. Pass on all of it as "
            f'{{"$from": "{call}"}}, a part as {{"$from": "{call}#/POINTER"}}.]'
        )
        text = f"{text[:SHOWN_CHARS]}…"
    why = f"\nIts reasons:\n{fence.around(reasons, most=REASONS_CHARS)}" if reasons else ""
    return f"Result of {name}, call {call}{about}:\n{fence.around(text)}{cut}{why}"


def why_all(ends: Sequence[CallEnd]) -> str:
    """Why a call failed; where several were tried one after the other, why each of them did."""
    if len(ends) == 1:
        return ends[0].reason
    return "; ".join(f"{end.topic}: {end.outcome}, {end.reason}" for end in ends)


def failure_text(call: str, kind: str, reason: str, fence: Fence) -> str:
    """A failure; its reason may quote what came from outside."""
    return f"Call {call} ended as {kind}:\n{fence.around(reason)}"


def still_running(call: str, tasks: int, ended: int) -> str:
    """A call whose end is not known yet."""
    part = f", {ended} of its {tasks} tasks have ended" if tasks > 1 else ""
    return f"Call {call} is still running{part}. You will be told what comes of it."


def waits_for_a_person(call: str) -> str:
    """A call that a person is to approve or answer first."""
    return f"Call {call} waits for a person's answer. You will be told what comes of it."


def about_end(end: CallEnd) -> str:
    """How sure an agent is of its result."""
    return f", confidence {end.confidence:g}" if end.confidence is not None else ""


def gathered(items: Sequence[Any], ends: Mapping[int, CallEnd]) -> list[Any]:
    """The results of a `for_each` in the order of its items."""
    return [
        ends[index].data
        if ends[index].outcome == "result"
        else {"failed": ends[index].outcome, "reason": ends[index].reason, "input": item}
        for index, item in enumerate(items)
    ]


def shown_end(end: CallEnd) -> dict[str, Any]:
    """An end in the timeline: all about it but its data."""
    shown: dict[str, Any] = {"topic": end.topic, "kind": end.outcome, "source": end.source}
    shown |= {"latency_ms": end.latency_ms, "attempt": end.attempt}
    spent = Spent.of_wire(end.spent)
    rest = {"reason": end.reason, "tokens": spent.tokens, "usd": spent.usd}
    return shown | {name: value for name, value in rest.items() if value}

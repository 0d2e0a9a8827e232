"""A run in a few lines, so that two of them can be laid side by side."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass

from squadron.actors.runs.built_in import FINISH
from squadron.actors.runs.call import Call
from squadron.replay.fork import folded
from squadron.replay.recording import Recording
from squadron.runtime.wire.spent import Spent

#: Longest quote of arguments, of a turn, and of the answer, in characters.
ARGUMENTS_CHARS, TEXT_CHARS, ANSWER_CHARS = 120, 200, 2_000


@dataclass(frozen=True, slots=True)
class Outline:
    """One run as lines.

    Attributes:
        rounds: the lines of each round.
        end: how it ended, its answer, and what it cost.
    """

    run: str
    rounds: tuple[tuple[str, ...], ...]
    end: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """All of it."""
        return [line for round in self.rounds for line in round] + list(self.end)

    def blocks(self, rounds: int) -> list[str]:
        """A block of text for each of so many rounds, and one for the end."""
        missing = [""] * (rounds - len(self.rounds))
        return [*("\n".join(round) for round in self.rounds), *missing, "\n".join(self.end)]


def outline(recording: Recording) -> Outline:
    """The main run of a recording in a few lines."""
    state = folded(recording.main)
    rounds = []
    for number, thought in sorted(state.turns.items()):
        lines = [f"round {number}  {thought.turn.model}  {_money(Spent.of_wire(thought.spent))}".rstrip()]
        text = " ".join(thought.turn.text.split())
        lines += [f"  {text[:TEXT_CHARS]}"] if text else []
        lines += [f"  {_call(call)}" for call in state.calls.values() if call.round == number]
        rounds.append(tuple(lines))
    finished, value = state.finished, state.finished.value if state.finished is not None else None
    answer = value.get("answer") if isinstance(value, dict) and "answer" in value else value
    said = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    end = [f"ended: {finished.stopped}" if finished is not None else "under way"]
    end += [f"error: {finished.error}"] if finished is not None and finished.error else []
    end += [f"answer: {line}" for line in said[:ANSWER_CHARS].splitlines()] if answer is not None else []
    end.append(f"in all: {state.round} rounds, {len(state.calls)} calls, {_money(state.spent) or '0 tokens'}")
    return Outline(recording.header.run, tuple(rounds), tuple(end))


def _call(call: Call) -> str:
    arguments = json.dumps(call.said.arguments, ensure_ascii=False)
    ends = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in call.outcomes.items())
    reasons = sorted({end.reason for end in call.ends.values() if end.reason})
    why = f": {reasons[0]}" if reasons else ""
    if call.outcomes == {"result": 1}:
        why = " " + json.dumps(next(iter(call.ends.values())).data, ensure_ascii=False)[:ARGUMENTS_CHARS]
    came = "" if call.said.name == FINISH else f" -> {ends or 'no end'}{why}"
    return f"{call.said.name} {arguments[:ARGUMENTS_CHARS]}{came}"


def _money(spent: Spent) -> str:
    parts = [f"{spent.tokens:,} tokens"] if spent.tokens else []
    return ", ".join([*parts, *([f"${spent.usd:.4f}"] if spent.usd else [])])


def diff(first: Recording, second: Recording) -> str:
    """How a second run differs from a first one, as a unified diff; empty if it does not."""
    before, after = outline(first), outline(second)
    return "\n".join(difflib.unified_diff(before.lines, after.lines, before.run, after.run, lineterm=""))

"""Where a what-if leaves its recording: the log up to there, with what is changed, as a new attempt finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.entries import Asking, CallEnd, CallsEnded, Entry, Epoch, Gather, Started
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.model import ToolDefinition
from squadron.replay.recording import LAPSED, RecordedRun
from squadron.runtime.errors import ConfigError, RecordingError
from squadron.runtime.texts import jsonable
from squadron.runtime.wire.outcome import KINDS


class Changes(BaseModel):
    """What is to be otherwise.

    Attributes:
        model: who is asked from there on; the recorded models if empty.
        goal: in the place of what the run was to do; from the beginning.
        prompt: in the place of the system prompt; from the beginning.
        from_round: the first round that is asked anew; the earliest that the changes allow, if 0.
        outcomes: call → what it came to: JSON data, or `{"failed": "why"}` with any kind of outcome. A call is
            named by its id or the beginning of it (`r1c2`), a task of many by its index behind a slash (`r1c2/0`).
        gather: when the model is asked again, as in `squad.run`; from the beginning.
        max_rounds: the last round there may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    goal: str = ""
    prompt: str = ""
    from_round: int = Field(default=0, ge=0)
    outcomes: Annotated[Mapping[str, Any], AfterValidator(jsonable)] = {}
    gather: Gather | None = None
    max_rounds: int | None = Field(default=None, ge=1)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Changes as they were given.

        Raises:
            ConfigError: one of them is none.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"{where}: {first['msg']}", hint="docs/replay.md has the changes there are"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """What is changed, as plain JSON."""
        told: dict[str, Any] = {
            "model": self.model,
            "goal": self.goal,
            "prompt": self.prompt,
            "outcomes": dict(self.outcomes),
        }
        told |= {"gather": self.gather.model_dump(exclude_defaults=True) if self.gather else None}
        told |= {"max_rounds": self.max_rounds}
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True, slots=True)
class Fork:
    """The part of a log that stands.

    Attributes:
        round: the first round that is asked anew.
        entries: those before it, with the changes in them.
        ends: how the calls ended that still ran then: call, index → end.
    """

    round: int
    entries: tuple[Entry, ...]
    ends: Mapping[tuple[str, int], CallEnd]


def fork(recorded: RecordedRun, changes: Changes) -> Fork:
    """Cut a run where changes take effect.

    Raises:
        ConfigError: a change names what is not there, or comes too late for its effect.
        RecordingError: it does not begin with an attempt, and with what that was for.
    """
    entries, state = list(recorded.entries), folded(recorded)
    changed = {_task(state, name): value for name, value in changes.outcomes.items()}
    # The round that follows each of them is the first that can tell.
    latest = min((_after(entries, call, index) for call, index in changed), default=state.round + 1)
    if changes.goal or changes.prompt or changes.gather:
        latest = 1
    round = changes.from_round or (latest if changed or latest == 1 else 1)
    if not 1 <= round <= max(state.round, 1):
        raise ConfigError(f"{recorded.run} has no round {round}", hint=f"it has rounds 1 to {state.round}")
    if round > latest:
        why = f"what is changed was known in round {latest}, before round {round}"
        raise ConfigError(why, hint=f"replay from round {latest}, or leave --from-round out")
    if changes.max_rounds is not None and changes.max_rounds < round:
        why = f"it goes on in round {round}, which is past the last there may be, {changes.max_rounds}"
        raise ConfigError(why, hint="let there be more rounds, or replay from an earlier one")
    at = next((n for n, entry in enumerate(entries) if _asks(entry, round)), len(entries))
    ends = {(end.call, end.index): end for entry in entries[at:] for end in _ends(entry)}
    for (call, index), value in changed.items():
        ends[call, index] = _changed(state.calls[call].ends[index], value)
    kept = tuple(_rewritten(entry, changes, ends) for entry in entries[:at])
    kinds = [type(entry) for entry in kept]
    if kinds[:2] != [Epoch, Started] or kinds.count(Started) > 1:
        raise RecordingError(f"{recorded.run} does not say how it began", hint=LAPSED)
    return Fork(round, kept, ends)


def folded(recorded: RecordedRun) -> RunState:
    """The whole of a run as its log tells it."""
    tools = (tool for entry in recorded.entries if isinstance(entry, Epoch) for tool in entry.tools)
    state = RunState(recorded.run, Toolbox(tuple(BUILT_IN), [_Defined(tool) for tool in tools]))
    for entry in recorded.entries:
        state.apply(entry)
    return state


@dataclass(frozen=True, slots=True)
class _Defined:
    """A tool of the agent's own, of which no more is known."""

    definition: ToolDefinition


def _asks(entry: Entry, round: int) -> bool:
    return isinstance(entry, Asking) and entry.round >= round


def _ends(entry: Entry) -> tuple[CallEnd, ...]:
    return entry.ends if isinstance(entry, CallsEnded) else ()


def _task(state: RunState, name: str) -> tuple[str, int]:
    """The task that `r1c2` or `r1c2/0` names."""
    named, _, index = name.partition("/")
    found = [id for id in state.calls if id == named or id.partition("-")[0] == named]
    found = found or [call.id for call in state.calls.values() if call.said.id == named]
    if len(found) != 1 or not (index or "0").isdecimal():
        raise ConfigError(f"there is no call {name!r}", hint=f"there are {', '.join(state.calls) or 'none'}")
    task = found[0], int(index or "0")
    ends = state.calls[task[0]].ends
    if task[1] not in ends or (not index and len(ends) > 1):
        hint = f"it has ended tasks {', '.join(f'{named}/{each}' for each in ends)}" if ends else "it has none"
        raise ConfigError(f"{name!r} names no task that has ended", hint=hint)
    return task


def _after(entries: list[Entry], call: str, index: int) -> int:
    """The first round in which the model could know how a task ended."""
    known, last = False, 0
    for entry in entries:
        known = known or any((end.call, end.index) == (call, index) for end in _ends(entry))
        if isinstance(entry, Asking):
            if known:
                return entry.round
            last = entry.round
    return last + 1


def _changed(end: CallEnd, value: Any) -> CallEnd:
    """An end that came out otherwise."""
    plain = end.model_copy(update={"attachments": (), "confidence": None, "reasoning": None})
    if isinstance(value, dict) and len(value) == 1 and (kind := next(iter(value))) in KINDS.keys() - {"result"}:
        return plain.model_copy(update={"outcome": kind, "data": None, "reason": str(value[kind])})
    return plain.model_copy(update={"outcome": "result", "data": value, "reason": ""})


def _rewritten(entry: Entry, changes: Changes, ends: Mapping[tuple[str, int], CallEnd]) -> Entry:
    if isinstance(entry, CallsEnded) and changes.outcomes:
        return entry.model_copy(update={"ends": tuple(ends.get((end.call, end.index), end) for end in entry.ends)})
    if not isinstance(entry, Started):
        return entry
    opening = list(entry.opening)
    if changes.goal:
        opening[-1] = replace(opening[-1], content=changes.goal)
    if changes.prompt:
        opening[0] = replace(opening[0], content=changes.prompt)
    said: dict[str, Any] = {"opening": tuple(opening), "title": changes.goal or entry.title}
    said |= {"gather": changes.gather} if changes.gather is not None else {}
    return entry.model_copy(update=said)

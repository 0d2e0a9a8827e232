"""Where the code of today does not do what is recorded, so that a person can read it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squadron.actors.runs.entries import Entry
from squadron.actors.thinking.model import ModelRequest
from squadron.replay.recording import dumped
from squadron.runtime.texts import encoded

#: Of each kind of entry, what may differ from one time to the next, or is decided outside: times, what providers
#: and agents spent and how long they took, what is estimated with prices and tokenizers, whose versions change.
_OUTSIDE: Mapping[str, frozenset[str]] = {
    "epoch": frozenset(
        ["redriven", "delivered", "replica", "deadline_at", "max_rounds", "grant", "sampling", "output_schema"]
    ),
    "offered": frozenset(["left_out"]),
    "asking": frozenset(["tokens", "usd_micros"]),
    "failed": frozenset(["reason", "spent", "limit", "retry_after_s"]),
    "refused": frozenset(["retry_after_s"]),
    "thought": frozenset(["spent", "seconds"]),
    "query": frozenset(["deadline_ms"]),
    "waiting": frozenset(["until"]),
}
#: The same of what stands in entries that hold several.
_OUTSIDE_PARTS: Mapping[str, frozenset[str]] = {
    "calls": frozenset(["deadline_ms"]),
    "ends": frozenset(["latency_ms", "spent"]),
}
#: Lines of context around each change in a diff.
CONTEXT = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a replay left its recording.

    Attributes:
        what: it in a sentence.
        recorded, now: both sides as text, of many lines.
    """

    what: str
    recorded: str
    now: str

    @property
    def diff(self) -> str:
        """Both sides as a unified diff."""
        before, after = self.recorded.splitlines(), self.now.splitlines()
        return "\n".join(difflib.unified_diff(before, after, "recorded", "now", lineterm="", n=CONTEXT))

    def __str__(self) -> str:
        return f"{self.what}\n{self.diff}"


def comparable(entry: Entry) -> dict[str, Any]:
    """What of an entry the code decides, given all that came from outside."""
    shown = dumped((entry,))[0]
    shown.pop("at", None)
    shown.pop("seen", None)
    for name in _OUTSIDE.get(entry.kind, ()):
        shown.pop(name, None)
    for part, names in _OUTSIDE_PARTS.items():
        if isinstance(each := shown.get(part), list):
            shown[part] = [_without(one, names) for one in each]
    return shown


def _without(value: Any, names: frozenset[str]) -> Any:
    return {name: part for name, part in value.items() if name not in names} if isinstance(value, dict) else value


def same(recorded: Entry, now: Entry, *, digests: bool = True) -> bool:
    """Whether the code decided as it did then; what an older log does not tell is as good as equal.

    Args:
        digests: False where what is asked and sent need not be the same.
    """
    first, second = comparable(recorded), comparable(now)
    calls = zip(first.get("calls", ()), second.get("calls", ()), strict=False)
    for before, after in [(first, second), *(calls if first["kind"] == second["kind"] == "sending" else ())]:
        if not digests or "digest" not in before or not before["digest"]:
            before.pop("digest", None)
            after.pop("digest", None)
    # What is a tuple here is a list there.
    return bool(encoded(first) == encoded(second))


def between(recorded: Entry | None, now: Entry | None) -> Difference:
    """The difference of two entries; None is where one side has none."""
    if recorded is None:
        assert now is not None
        what = f"the code goes on with {now.kind!r}, and the recording has nothing more"
    elif now is None:
        what = f"the recording goes on with {recorded.kind!r}, and the code does nothing more"
    elif recorded.kind != now.kind:
        what = f"the code goes on with {now.kind!r}, the recording with {recorded.kind!r}"
    elif now.kind == "epoch":
        what = "the agent has other tools than it had"
    else:
        what = f"the code has another {now.kind!r} than the recording"
    return Difference(what, _text(recorded), _text(now))


def _text(entry: Entry | None) -> str:
    return readable(comparable(entry)) if entry is not None else ""


def readable(value: Any) -> str:
    """JSON over many lines; texts that have lines are shown with them."""
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\\n", "\n    ")


def parts_of(request: ModelRequest) -> tuple[str, ...]:
    """What a model is asked, in parts of which most are the same the next time: its digest is over the same."""
    parts = [{"message": message} for message in request.messages] + [{"tool": tool} for tool in request.tools]
    return tuple(encoded(part).decode() for part in [*parts, {"max_tokens": request.max_tokens}])


def between_requests(
    where: str, recorded: Sequence[str] | None, now: Sequence[str], digests: tuple[str, str]
) -> Difference:
    """The difference of two requests to a model."""
    what = f"{where}: the model is asked something else than it was"
    if recorded is None:
        return Difference(f"{what} (what it was, was not recorded)", digests[0], digests[1])
    sides = ["\n".join(readable(json.loads(part)) for part in parts) for parts in (recorded, now)]
    return Difference(what, *sides)

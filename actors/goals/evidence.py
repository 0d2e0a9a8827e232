"""What a run tells of topics: which of them what was looked for led to, and how their tasks ended."""

from __future__ import annotations

from squadron.actors.runs.built_in import DISCOVER
from squadron.actors.runs.state import RunState
from squadron.runtime.asking.searching import Experience

#: Topics that one run teaches of, those that it called first.
MOST_LESSONS = 16
#: Ends that speak for a topic, and against it: what was cancelled, refused or left undone does neither.
WELL, BADLY = frozenset({"result"}), frozenset({"failed", "dead_lettered", "timed_out"})


def lessons_of(state: RunState) -> list[Experience]:
    """For each topic that a run called: the intent that last found it, or the goal, and whether it went well."""
    assert state.started is not None
    tools = {each.topic.name: each.definition.name for each in state.toolbox.offered}
    intents: dict[str, str] = {}
    score: dict[tuple[str, str], int] = {}
    for call in state.calls.values():
        if call.said.name == DISCOVER:
            for tool in _found(call.ends[0].data) if 0 in call.ends else ():
                intents[tool] = str(call.said.arguments.get("intent", ""))
            continue
        # A call that was refused before it went out says nothing of its topic.
        for end in call.ends.values() if call.dispatch is not None else ():
            about = (intents.get(tools.get(end.topic, "")) or state.started.title, end.topic)
            score[about] = score.get(about, 0) + (end.outcome in WELL) - (end.outcome in BADLY)
    told = [Experience(intent, topic, good=sum_ > 0) for (intent, topic), sum_ in score.items() if sum_]
    return told[:MOST_LESSONS]


def _found(data: object) -> list[str]:
    """The tools that an answer to a search names."""
    told = data if isinstance(data, list) else []
    return [str(each["tool"]) for each in told if isinstance(each, dict) and "tool" in each]

"""What is learned from use: intents that led to a topic, and how it went. They count as examples of the topic."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

#: Intents that are kept of a topic, and of these how many of one source: nobody alone can have a topic found by
#: what it is not for.
MOST_LESSONS, MOST_OF_SOURCE = 20, 4
#: Topics that a source may teach, in all: who teaches more loses what it taught first.
MOST_TAUGHT = 500
#: After so long a lesson counts half, in seconds: 30 days. Below this weight it counts for nothing.
HALF_LIFE_S, LEAST_WEIGHT = 30 * 24 * 3600.0, 0.1
#: Longest intent that is kept, in characters.
MOST_CHARS = 400


@dataclass
class Lesson:
    """One intent and whom it went well (1) or badly (-1) for, with when, in seconds since the epoch."""

    intent: str
    by: dict[str, tuple[int, float]] = field(default_factory=dict)

    def weight(self, now: float) -> float:
        """The sum of what sources say, each one once, older ones less."""
        return sum(sign * _faded(now - at) for sign, at in self.by.values())

    def matters(self, now: float) -> bool:
        """Whether anybody said something of it lately. What is contested stays: who has said no has said it, and
        can't say no to one after the other."""
        return sum(_faded(now - at) for _, at in self.by.values()) >= LEAST_WEIGHT


def _faded(age_s: float) -> float:
    return math.exp2(-max(0.0, age_s) / HALF_LIFE_S)


class Learned:
    """Lessons by topic: bounded, decayed, and of no source more than a few."""

    def __init__(self) -> None:
        self._lessons: dict[str, dict[str, Lesson]] = {}
        self._taught: dict[str, dict[tuple[str, str], None]] = {}

    def note(self, intent: str, topic: str, source: str, now: float, *, good: bool = True) -> None:
        """An intent led to a topic, and it went well or not. The newest word of a source about both counts."""
        intent = " ".join(intent.split())[:MOST_CHARS]
        if not intent:
            return
        word = intent.lower()
        lessons = self._lessons.setdefault(topic, {})
        lessons.setdefault(word, Lesson(intent)).by[source] = (1 if good else -1, now)
        taught = self._taught.setdefault(source, {})
        taught.pop((topic, word), None)
        taught[topic, word] = None
        own = [each for each in taught if each[0] == topic]
        over = [*own[: max(0, len(own) - MOST_OF_SOURCE)], *list(taught)[: max(0, len(taught) - MOST_TAUGHT)]]
        for about, said in dict.fromkeys(over):
            self._take_back(source, about, said)
        self._shed(topic, now)

    def _take_back(self, source: str, topic: str, word: str) -> None:
        self._taught[source].pop((topic, word), None)
        if (lesson := self._lessons.get(topic, {}).get(word)) is not None:
            lesson.by.pop(source, None)
            if not lesson.by:
                del self._lessons[topic][word]

    def _shed(self, topic: str, now: float) -> None:
        lessons = self._lessons[topic]
        order = sorted(lessons, key=lambda word: -abs(lessons[word].weight(now)))
        for at, word in enumerate(order):
            if at >= MOST_LESSONS or not lessons[word].matters(now):
                for source in lessons.pop(word).by:
                    self._taught[source].pop((topic, word), None)

    def examples(self, topic: str, now: float) -> tuple[str, ...]:
        """Intents that went well, those that weigh most first."""
        weighed = [(one.weight(now), one.intent) for one in self._lessons.get(topic, {}).values()]
        return tuple(intent for weight, intent in sorted(weighed, reverse=True) if weight >= LEAST_WEIGHT)

    def told(self, topic: str, now: float) -> list[dict[str, Any]]:
        """Each lesson of a topic, as data: its intent, weight and sources."""
        found = []
        for one in self._lessons.get(topic, {}).values():
            by = {source: sign for source, (sign, _) in one.by.items()}
            found.append({"intent": one.intent, "weight": round(one.weight(now), 3), "by": by})
        return found

    def forget(self, topic: str) -> None:
        """Clear what was learned of a topic."""
        for word, lesson in self._lessons.pop(topic, {}).items():
            for source in lesson.by:
                self._taught[source].pop((topic, word), None)

    @property
    def topics(self) -> list[str]:
        """Those of which something was learned."""
        return [topic for topic, lessons in self._lessons.items() if lessons]

    def dump(self, topic: str) -> list[dict[str, Any]]:
        """What is stored of a topic."""
        return [{"intent": one.intent, "by": one.by} for one in self._lessons.get(topic, {}).values()]

    def load(self, topic: str, stored: list[dict[str, Any]], now: float) -> None:
        """Take up what was stored of a topic."""
        for each in stored:
            for source, (sign, at) in each["by"].items():
                self.note(str(each["intent"]), topic, str(source), min(float(at), now), good=sign > 0)

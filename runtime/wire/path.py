"""The way that a task came: who asked whom before it, so that a circle is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from squadron.runtime.texts import digest_of
from squadron.runtime.wire.subjects import MAX_TOKEN

#: How many tasks may have led to one: deeper than any plan that people follow, and its steps stay below 10 KB.
MOST_DEPTH = 64
#: Topics of a way that are told, at its beginning and at its end.
_TOLD = 4
#: Hexadecimal digits of the digest of an input: 64 bits tell the inputs of one path apart.
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Parent:
    """The task that another one is asked from.

    Attributes:
        id, source: its own, and who sent it.
        path: ends with its own step.
        behalf: whose wish it is, its sender included, as far as that is known.
        readers: public keys of those who see its stream, and with that the chunks of this one.
    """

    id: str
    path: tuple[str, ...]
    source: str = ""
    behalf: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()


def step_of(topic: str, content: Any) -> str:
    """One step of a path: the topic that was asked, and what."""
    return f"{topic}#{digest_of(content)[:_DIGITS]}"


def path_in(metadata: Any) -> tuple[str, ...]:
    """The steps that led to a task, oldest first, by its metadata; what is no path stands for none."""
    raw = metadata.get("path") if isinstance(metadata, dict) else None
    if not isinstance(raw, list):
        return ()
    longest = 2 * MAX_TOKEN + 2 + _DIGITS
    return tuple(step for step in raw[-MOST_DEPTH:] if isinstance(step, str) and len(step) <= longest)


def topics_of(path: Sequence[str]) -> list[str]:
    """The topics of a path."""
    return [step.partition("#")[0] for step in path]


def circle_in(path: Sequence[str], topic: str, content: Any) -> str:
    """Why a task that came this way is not to run, or the empty string.

    It is a circle if the same was asked on the same topic before, and too deep after `MOST_DEPTH` steps.
    """
    if not path:
        return ""
    topics = topics_of(path)
    way = [*topics, topic]
    told = " → ".join(way if len(way) <= 2 * _TOLD else [*way[:_TOLD], "…", *way[-_TOLD:]])
    if len(path) >= MOST_DEPTH:
        return f"it was passed on {len(path)} times, which is the most: {told}"
    if topic in topics and step_of(topic, content) in path:
        return f"it asks itself for the same again: {told}"
    return ""

"""The port of those who rank topics by an intent in plain words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from squadron.runtime.wire.topics import SemanticTopic


class Scored(Protocol):
    """Whatever has a score."""

    @property
    def score(self) -> float: ...


Offer = TypeVar("Offer", bound=Scored)


class TopicKey(NamedTuple):
    """Which topic it is: more than one agent has a name only while a card is left behind by one that died."""

    name: str
    agent: str


class Ranked(NamedTuple):
    """A topic and how well it fits: 0 not at all, towards 1 the better; the scale is that of its ranker."""

    score: float
    key: TopicKey


def offered(found: Sequence[Offer], least: float | None, fits: float) -> list[Offer]:
    """Of what was found, the best first, that which is offered.

    Args:
        least: the lowest score that is offered; None offers all, or nothing if the best one does not reach `fits`.
    """
    if least is None:
        return list(found) if found and found[0].score >= fits else []
    return [one for one in found if one.score >= least]


class Ranker(Protocol):
    """Ranks topics by how well they fit an intent. What changes is put and dropped one by one, at a cost that does
    not grow with the number of topics."""

    def put(self, key: TopicKey, topic: SemanticTopic) -> None:
        """Take a topic in, instead of what this key stood for before."""

    def drop(self, key: TopicKey) -> None:
        """Forget a topic; one that is not known is no error."""

    def rank(self, intent: str, most: int, keep: Callable[[TopicKey], bool]) -> list[Ranked]:
        """The topics that `keep` lets pass, the best `most` of them first; those that don't fit at all are left
        out."""

"""Which calls a person has to approve before a model's wish comes true."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from squadron.runtime.wire.subjects import check_pattern, matches
from squadron.runtime.wire.topics import SemanticTopic


@dataclass(frozen=True, slots=True)
class Approvals:
    """What one run says of it, beside the cards of the topics.

    Attributes:
        ask: topics and patterns whose calls are approved first, whatever their cards say; `*.*` is all.
        trust: those that need nobody, whatever their cards say; who starts a run answers for it. It wins.

    Raises:
        InvalidSubjectError: one breaks the grammar.
    """

    ask: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.ask, *self.trust):
            check_pattern(pattern)


def needs_approval(topic: SemanticTopic, rules: Approvals, always: Collection[str] = ()) -> bool:
    """Whether a person has to approve a call of this topic, by its card and by the rules of the run.

    Args:
        topic: as it is called; of a family, with the name of its member.
        always: topics that a person has approved for the rest of this run.
    """
    if topic.name in always or any(matches(pattern, topic.name) for pattern in rules.trust):
        return False
    return bool(topic.approval) or any(matches(pattern, topic.name) for pattern in rules.ask)

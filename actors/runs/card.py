"""How a topic's card is shown to a model: whoever wrote it is a stranger, so what it says is data."""

from __future__ import annotations

from squadron.actors.thinking.fence import CARD
from squadron.actors.thinking.shapes import MOST_DESCRIBED, InputShape, cut
from squadron.actors.thinking.wording import Bare
from squadron.runtime.wire.topics import SemanticTopic


class ShownCard:
    """Description and schema of a topic as a tool has them.

    All words are in the description, fenced: those of the schema, too. The fence is the same in all runs, so that
    tools are, which come first in what providers cache.

    Attributes:
        shape: turns arguments back into those that the topic takes.
        about: the words, not fenced.
        changes: what a reader of the card would miss.

    Raises:
        ValueError: its input schema can't be offered.
    """

    def __init__(self, topic: SemanticTopic) -> None:
        self.shape = InputShape(topic.input_schema)
        bare = Bare(self.shape.schema)
        self.schema, given = bare.schema, "\n".join(["Input:", *bare.words] if bare.words else [])
        tags = f"\nTags: {', '.join(topic.tags)}" if topic.tags else ""
        good_for = f"{topic.tool_description}{tags}".strip()
        whole = "\n".join(filter(None, [good_for, given]))
        # Where there is no room for all, none of the two takes more than half of it from the other.
        room = max(_ROOM - len(given) - 1, _ROOM // 2)
        self.about = cut("\n".join(filter(None, [cut(good_for, room), given])), _ROOM)
        self.description = CARD.around(self.about, most=MOST_DESCRIBED) if self.about else topic.name
        changed = [*self.shape.changes, *bare.changes]
        self.changes = [f"its input is offered {', '.join(changed)}"] if changed else []
        if whole and self.description != CARD.around(whole):
            self.changes.append("its description is cut")


#: Characters that a description has for words.
_ROOM = MOST_DESCRIBED - len(CARD.around(""))

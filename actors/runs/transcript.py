"""The conversation of a run, as its log tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from squadron.actors.thinking.model import ChatMessage, ModelTurn


@dataclass
class Transcript:
    """What was said up to now. Results wait in it until the model is asked again.

    Each call of a turn is answered right behind it, as providers insist, be it only by the word that it runs on;
    what it came to is then told later, as a message of the user's.
    """

    messages: list[ChatMessage] = field(default_factory=list)
    #: Provider's ids of the last turn's calls that are not answered yet, by their ids in the run.
    _open: dict[str, str] = field(default_factory=dict)
    #: What came of calls and is not told yet, by their ids in the run: text, and whether they failed.
    news: dict[str, ChatMessage] = field(default_factory=dict)
    _nudges: list[str] = field(default_factory=list)

    def turn(self, turn: ModelTurn, ids: Iterable[str]) -> None:
        """The model's turn; `ids` are those of its calls in the run."""
        self.messages.append(turn.as_message())
        self._open = {id: call.id for id, call in zip(ids, turn.tool_calls, strict=True)}

    def end(self, id: str, told: ChatMessage) -> None:
        """What came of a call; `told` says it as a `tool` message would."""
        self.news[id] = told

    def nudge(self, text: str) -> None:
        """Something to say to the model."""
        self._nudges.append(text)

    @property
    def has_news(self) -> bool:
        """Whether the model would hear something that it has not been told."""
        return bool(self.news or self._nudges)

    def asked(self, running: Mapping[str, str]) -> list[ChatMessage]:
        """The conversation as the model would be asked now: it knows all that was stored.

        Args:
            running: of calls that still run, what is said of them, by their ids in the run.
        """
        messages, news = list(self.messages), dict(self.news)
        for id, wire_id in self._open.items():
            told = news.pop(id, None) or ChatMessage("tool", running.get(id, "It was not run."))
            messages.append(replace(told, tool_call_id=wire_id))
        late = [told.content for told in news.values()]
        if late or self._nudges:
            attachments = tuple(each for told in news.values() for each in told.attachments)
            messages.append(ChatMessage("user", "\n\n".join([*late, *self._nudges]), attachments=attachments))
        return messages

    def ask(self, running: Mapping[str, str]) -> None:
        """The model is asked."""
        self.messages = self.asked(running)
        self._open, self.news, self._nudges = {}, {}, []

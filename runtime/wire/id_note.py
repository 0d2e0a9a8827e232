"""What a task id of a caller's own stands for: noted once, beside the task, by the first who asks under it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class IdNote:
    """The note, as it is kept on the lite topic `TASK.asked`.

    Attributes:
        input: SHA-256 of the input.
        reply_to: where the outcome goes.
        msg_id: `Nats-Msg-Id` of the task; the empty string, in a note of a release before 0.2, stands for its id.
        source: who sends it, and may cancel it.
    """

    topic: str
    input: str
    reply_to: str
    msg_id: str = ""
    source: str = ""

    def encode(self) -> bytes:
        """As JSON."""
        fields = {"topic": self.topic, "input": self.input, "replyTo": self.reply_to}
        return json.dumps(fields | {"msgId": self.msg_id, "source": self.source}).encode()

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Read a note; None if it is none, since anybody may write there."""
        try:
            raw = json.loads(data)
            fields = raw["topic"], raw["input"], raw["replyTo"], raw.get("msgId", ""), raw.get("source", "")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None
        return cls(*fields) if all(isinstance(each, str) for each in fields) else None

"""What is done about messages that nobody signed who may: for all of an environment, and for some topics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self, cast

VerifyMode = Literal["off", "warn", "require"]
#: From the mildest to the strictest.
MODES: tuple[VerifyMode, ...] = ("off", "warn", "require")
_PATTERN = re.compile(r"(\*|[A-Za-z0-9_-]+)\.(\*|[A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class VerifyModes:
    """The modes of one process.

    Attributes:
        base: where no pattern fits.
        topics: patterns of topics with their modes; the first that fits counts.
    """

    base: VerifyMode
    topics: tuple[tuple[str, VerifyMode], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `require`, or `warn,clinic.*=require,demo.*=off`.

        Raises:
            ValueError: it is nothing of that.
        """
        base, *rest = [each.strip() for each in text.split(",")]
        topics = list[tuple[str, VerifyMode]]()
        for each in rest:
            pattern, _, mode = (part.strip() for part in each.partition("="))
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(f"{pattern!r} is no pattern of a topic")
            topics.append((pattern, _mode(mode)))
        return cls(_mode(base), tuple(topics))

    def __str__(self) -> str:
        return ",".join((self.base, *(f"{pattern}={mode}" for pattern, mode in self.topics)))

    def of(self, topic: str, least: VerifyMode = "off") -> VerifyMode:
        """That of a topic, but nothing milder than `least`, which its author says."""
        mine = self.base
        if self.topics:
            mine = next((mode for pattern, mode in self.topics if _fits(pattern, topic)), mine)
        return mine if least == "off" else max(mine, least, key=MODES.index)

    @property
    def strictest(self) -> VerifyMode:
        """That of what is of no one topic: cards, presences, cancels, letters, calls of the bridge. A topic is no
        safer than these."""
        return max(self.base, *(mode for _, mode in self.topics), key=MODES.index) if self.topics else self.base


def _mode(text: str) -> VerifyMode:
    if text.lower() not in MODES:
        raise ValueError(f"{text!r} is not off, warn or require")
    return cast("VerifyMode", text.lower())


def _fits(pattern: str, topic: str) -> bool:
    words, names = pattern.split("."), topic.split(".")
    return len(words) == len(names) and all(word in ("*", name) for word, name in zip(words, names, strict=True))

"""The documentation as the tests read it: pages, code blocks, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(r"^```(\w*) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the word after it that says how it is tested, and where it begins."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str, mark: str | None = None) -> list[Block]:
    """All blocks in a language, or those with a mark."""
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2], match[3])
        for page, text in ((page, page.read_text()) for page in PAGES)
        for match in _FENCE.finditer(text)
        if match[1] == language and mark in (None, match[2])
    ]


def links(page: Path) -> list[str]:
    """Targets of a page's links, those in code left out."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text())))


def anchors(page: Path) -> set[str]:
    """What a page's headings can be linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

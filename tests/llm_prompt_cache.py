"""Anthropic's prompt cache as its guide describes it, over the bytes that really came in."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.llm_schemas import require

Json = dict[str, Any]
#: Most marks of a request, how far each looks back, counting itself, and how long what was written lives unread.
MOST_MARKS, LOOK_BACK, LIFE_S = 4, 20, 300.0
#: Fewest tokens that are kept: of all models the most. Characters of a token, as Claude 4.8 and 5 read mixed text.
LEAST, TOKEN_CHARS = 4096, 2.24
MARK = {"type": "ephemeral"}
#: What can't bear a mark.
UNMARKED = ("thinking", "redacted_thinking")


def tokens_in(chars: int) -> int:
    """Tokens of so many characters, more or less."""
    return round(chars / TOKEN_CHARS)


class Counted(NamedTuple):
    """Tokens of one request: all of it is the sum."""

    read: int
    written: int
    plain: int


class _Block(NamedTuple):
    """Digest and tokens of a request up to the end of one block."""

    digest: str
    tokens: int


@dataclass
class PromptCache:
    """What was written at marks, by digest, and until when; `now_s` is its clock."""

    now_s: Callable[[], float] = time.monotonic
    _until: dict[str, float] = field(default_factory=dict)

    def count(self, body: Json) -> Counted:
        """Take a request in, and tell what of it was read, written, and neither."""
        blocks, marks, now = list(_blocks(body)), _marks(body), self.now_s()
        seen = {at for mark in marks for at in range(max(0, mark - LOOK_BACK + 1), mark + 1)}
        hit = max((at for at in seen if self._until.get(blocks[at].digest, 0.0) > now), default=-1)
        kept = {at for at in marks if blocks[at].tokens >= LEAST}
        for at in kept | {hit} - {-1}:
            self._until[blocks[at].digest] = now + LIFE_S
        read = blocks[hit].tokens if hit >= 0 else 0
        written = max(0, blocks[max(kept)].tokens - read) if kept else 0
        return Counted(read, written, blocks[-1].tokens - read - written)


def check_marks(body: Json) -> None:
    """Refuse what the API refuses of the marks of a request.

    Raises:
        RequestError: there are too many, one is malformed, or is where none may be.
    """
    for each in [body, *(part for _, part in _parts(body))]:
        require(each.get("cache_control", MARK) == MARK, "cache_control: invalid")
        markable = each.get("type") not in UNMARKED or "cache_control" not in each
        require(markable, f"cache_control: not permitted in a {each.get('type')!r} block")
    require(
        len(_marks(body)) <= MOST_MARKS, f"A maximum of {MOST_MARKS} blocks with cache_control may be provided"
    )


def _marks(body: Json) -> list[int]:
    """Where the marks are; that of a whole request is at the last block that can bear one."""
    parts = [part for _, part in _parts(body)]
    marks = {at for at, part in enumerate(parts) if "cache_control" in part}
    if "cache_control" in body:
        marks.add(max(at for at, part in enumerate(parts) if part.get("type") not in UNMARKED))
    return sorted(marks)


def _parts(body: Json) -> list[tuple[str, Json]]:
    """All blocks in the order in which they are cached, each with where it stands."""
    parts = [("tools", tool) for tool in body.get("tools", ())]
    parts += [("system", block) for block in _as_blocks(body.get("system", []))]
    return parts + [(each["role"], block) for each in body["messages"] for block in _as_blocks(each["content"])]


def _as_blocks(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _blocks(body: Json) -> Iterator[_Block]:
    # What else a request says of thinking and tools has the messages read anew.
    about = json.dumps([body.get(key) for key in ("tool_choice", "thinking", "output_config")])
    digest, chars = hashlib.sha256(body["model"].encode()), 0
    for where, part in _parts(body):
        if where == "user":
            digest.update(about.encode())
        # A mark is no part of what is compared.
        written = json.dumps([where, {key: value for key, value in part.items() if key != "cache_control"}])
        digest.update(written.encode())
        chars += len(written)
        yield _Block(digest.copy().hexdigest(), tokens_in(chars))

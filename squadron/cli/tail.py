"""tail: messages as they pass, a line each."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.texts import one_line, printable

if TYPE_CHECKING:
    from rich.text import Text

    from squadron.views.listener import Missed
    from squadron.views.passing import Filter, Passing

#: What is shown of an id, in characters: as much as tells some thousands apart.
ID_CHARS = 8
_OF_RUN = re.compile(r"run-([0-9a-f]{4})[0-9a-f]*-(r[0-9]{1,4}c[0-9]{1,4})-")
#: Longest content, in characters: a screenful.
CONTENT_CHARS = 2_000
#: So many messages are written at once.
LINES_AT_ONCE = 256
STYLES = {
    "task": "cyan",
    "result": "green",
    "event": "blue",
    "query": "bold yellow",
    "answer": "yellow",
    "again": "yellow",
    "cancel": "red",
    "dead": "bold red",
    "bridge": "magenta",
    "inner": "dim",
    "chunk": "dim",
}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(tail)


def tail(
    ctx: typer.Context,
    conversation: Annotated[
        str, typer.Option("--conversation", "-c", metavar="ID", help="Only this one; its beginning will do.")
    ] = "",
    topic: Annotated[
        str, typer.Option("--topic", "-t", metavar="PATTERN", help="Only this topic; analysis.* is fine, too.")
    ] = "",
    agent: Annotated[
        str, typer.Option("--agent", "-a", metavar="NAME", help="Only what this agent or replica gets or sends.")
    ] = "",
    contents: Annotated[bool, typer.Option("--contents", help="Show contents, too, without secrets.")] = False,
    chunks: Annotated[bool, typer.Option("--chunks", help="Show what tasks emit while they run, too.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show heartbeats and what the runtime tells itself, too.")
    ] = False,
    most: Annotated[int | None, typer.Option("--limit", "-n", help="End after so many messages.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Follow messages as they pass, from now on: tasks, results, events, questions. It sends nothing."""
    from squadron.views.passing import Filter

    wanted = Filter(conversation, topic, agent, everything, chunks)
    frame.execute(_tail(ctx, wanted, contents, most, as_json), as_json=as_json)


async def _tail(ctx: typer.Context, wanted: Filter, contents: bool, most: int | None, as_json: bool) -> int:
    from squadron.runtime.wire.subjects import check_pattern
    from squadron.views.listener import Missed
    from squadron.views.passing import Passing

    if wanted.topic:
        check_pattern(wanted.topic)
    write, left = _write_json if as_json else _write_lines, float("inf") if most is None else most
    async with frame.connected(frame.settings_of(ctx)) as squad, await squad.listen(contents=contents) as passing:
        frame.tell("Listening; Ctrl-C ends it.")
        async for first in passing:
            items = (first, *passing.ready(LINES_AT_ONCE))
            shown = list[Passing | Missed]()
            for each in items:
                if isinstance(each, Missed):
                    shown.append(each)
                elif wanted.wants(each):
                    shown.append(each)
                    left -= 1
                    if left <= 0:
                        break
            if shown:
                # In a thread: a terminal that is stopped must not stop the connection.
                await asyncio.to_thread(write, shown)
            if left <= 0:
                break
    return frame.OK


def _write_json(items: Sequence[Passing | Missed]) -> None:
    """A line of JSON each, on a terminal, too."""
    from squadron.views.listener import Missed

    for each in items:
        told = {"kind": "missed", "count": each.count} if isinstance(each, Missed) else each.to_dict()
        frame.print_json(told, indent=None)
    sys.stdout.flush()


def _write_lines(items: Sequence[Passing | Missed]) -> None:
    from squadron.views.listener import Missed

    console = frame.out()
    for each in items:
        if isinstance(each, Missed):
            many = (
                f"{each.count:,} messages passed"
                if each.count
                else "the connection was lost; messages may have passed"
            )
            frame.tell(f"… {many} unseen")
            continue
        if sys.stdout.isatty():
            for line in lines_of(each, console.width):
                console.print(line, soft_wrap=True)
        else:
            frame.write_row(*_cells(each))
    sys.stdout.flush()


def _when(it: Passing, timespec: str = "milliseconds") -> str:
    try:
        return datetime.fromtimestamp(it.at).time().isoformat(timespec) if it.at else "?"
    except (ValueError, OverflowError, OSError):
        # Whoever sent it chose the number.
        return "?"


def _cells(it: Passing) -> tuple[str, ...]:
    """For a pipe: nothing cut but contents."""
    texts = (it.kind, it.topic or it.subject, it.id, it.parent, it.sender, it.agent, it.outcome)
    content = () if it.content is None else (one_line(content_text(it.content), CONTENT_CHARS),)
    return _when(it), *texts, str(it.bytes), one_line(it.said, 300), *content


def content_text(content: object) -> str:
    """A content as JSON in one line, or as it stands if it is a text; of a result what it came to."""
    if isinstance(content, dict) and content.get("success") is True and "data" in content:
        content = content["data"]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)


def _short(id: str) -> str:
    """As much of an id as tells it apart: all tasks of a run begin with its id, and go on with the call."""
    if (call := _OF_RUN.match(id)) is not None:
        return f"{call[1]}-{call[2]}"
    return id[:ID_CHARS]


def lines_of(it: Passing, width: int) -> list[Text]:
    """One message as a line of a terminal so wide, and one of its content if that is known."""
    from rich.text import Text

    wide = width >= 120
    # A result of a task that went out before we listened has no topic.
    topic = one_line(it.topic or ("?" if it.kind == "result" else it.subject), 36 if wide else 20)
    ids = " ← ".join(printable(_short(id), "") for id in (it.id, it.parent) if id)
    way = " → ".join(one_line(each, 24) for each in dict.fromkeys((it.sender_type, it.agent)) if each)
    of = [f"of {printable(it.conversation[:ID_CHARS], '')}"] if wide and it.conversation not in ("", it.id) else []
    facts = [part for part in (it.outcome.replace("_", " ") if it.outcome != "result" else "", it.said) if part]
    rest = " · ".join([*facts, *([way] if way else []), _size(it.bytes), *of])
    style = "red" if it.outcome not in ("", "result") else STYLES.get(it.kind, "")
    line = Text.assemble(
        (f"{_when(it, 'milliseconds' if wide else 'seconds'):<{12 if wide else 8}} ", "dim"),
        (f"{it.kind:<6} ", style),
        f"{topic:<{36 if wide else 20}} ",
        (f"{ids:<19}  ", "dim"),
    )
    line.append(one_line(rest, max(8, width - line.cell_len)), style if style == "red" else "")
    if it.content is None:
        return [line]
    indent = " " * (20 if wide else 9)
    return [line, Text(f"{indent}{one_line(content_text(it.content), width - len(indent))}", "dim")]


def _size(count: int) -> str:
    return (
        f"{count} B"
        if count < 1000
        else f"{count / 1000:.1f} kB"
        if count < 1_000_000
        else f"{count / 1e6:.1f} MB"
    )

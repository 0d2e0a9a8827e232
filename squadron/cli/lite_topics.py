"""lite: the lite topics there are, what stands in them, and writing to them."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.errors import ConfigError, InvalidInputError, InvalidSubjectError
from squadron.runtime.texts import one_line, printable

if TYPE_CHECKING:
    from squadron.client.squad import Squad
    from squadron.runtime.lite.listing import LiteInfo
    from squadron.runtime.lite.reader import LiteMessage
    from squadron.runtime.lite.topic import LiteTopic
    from squadron.runtime.wire.start import LiteStart

Topic = Annotated[str, typer.Argument(metavar="OWNER/ID", help="As `squadron lite list` has it.")]
#: Longest content on a terminal that is shown as one line, in characters.
CONTENT_CHARS = 4_000


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(no_args_is_help=True)
    # Named here: a function called `list` would hide the type.
    for name, command in (("list", list_topics), ("read", read), ("publish", publish), ("close", close)):
        group.command(name)(command)
    app.add_typer(group, name="lite", help="Lite topics, one for each session: list, read, publish, close.")


def list_topics(
    ctx: typer.Context,
    owner: Annotated[str, typer.Argument(help="Only those of this owner.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Also outcomes of tasks, and what the runtime keeps for itself.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Longest list.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List lite topics that have an idle life, the newest message first."""
    frame.execute(_list(ctx, owner, everything, limit, as_json), as_json=as_json)


async def _list(ctx: typer.Context, owner: str, everything: bool, limit: int, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        found = await squad.lite_topics(owner, everything=everything)
    topics = found[:limit]
    if as_json:
        frame.print_json([each.to_dict() for each in topics])
    elif not topics:
        frame.tell(
            "No lite topics." if everything else "No lite topics with an idle life; --all shows the others."
        )
    elif sys.stdout.isatty():
        _show_table(topics)
    else:
        for each in topics:
            frame.write_row(*_row(each))
    if len(found) > limit:
        frame.tell(f"These are the newest {limit} of {len(found):,}; --limit shows more.")
    return frame.OK


def _row(each: LiteInfo) -> tuple[str, ...]:
    life = f"{max(0.0, each.ends_at - time.time()):.0f} s" if each.ends_at else "-"
    name, state = f"{each.owner}/{each.id}", each.ended or "open"
    return name, state, str(each.seq), frame.when(each.time), life, str(each.bytes), each.kind


def _show_table(topics: Sequence[LiteInfo]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    # It alone gives way on a narrow terminal; what is cut there stands whole in a pipe.
    table.add_column("TOPIC")
    right = ("LAST", "ENDS IN", "BYTES")
    for name in ("STATE", "LAST", "AT (UTC)", "ENDS IN", "BYTES", "KIND"):
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for each in topics:
        name, state, *cells = _row(each)
        shown = Text(name, no_wrap=True, overflow="ellipsis")
        table.add_row(shown, Text(state, "green" if state == "open" else "dim"), *map(Text, cells))
    frame.out().print(table)


# --- reading and writing -----------------------------------------------------------------------------


def read(
    ctx: typer.Context,
    topic: Topic,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more, until it ends or Ctrl-C.")
    ] = False,
    start: Annotated[
        str,
        typer.Option(
            "--from", metavar="PLACE", help="first, last, new, a sequence, -N for the newest N, or a time."
        ),
    ] = "first",
    as_json: Json = False,
) -> None:
    """Print the messages of a lite topic; takes nothing away from other readers."""
    frame.execute(_read(ctx, topic, follow, start, as_json), as_json=as_json)


async def _read(ctx: typer.Context, name: str, follow: bool, start: str, as_json: bool) -> int:
    place = start_of(start)
    owner, id = owner_and_id(name)
    async with (
        frame.connected(frame.settings_of(ctx)) as squad,
        _topic(squad, owner, id).read(place, live=follow) as reader,
    ):
        async for message in reader:
            # In a thread: a terminal that is stopped must not stop the connection.
            await asyncio.to_thread(_write, message, as_json)
        end = reader.end
    if end is not None and not as_json:
        frame.tell(f"{name} {end.reason}{', and some may have ended unread' if end.missed else ''}.")
    return frame.OK


def _topic(squad: Squad, owner: str, id: str) -> LiteTopic:
    return squad.lite(id, owner)


def _write(message: LiteMessage, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = {"seq": message.seq, "time": message.time, "missed": message.missed}
        if message.message is None:
            told["data"] = base64.b64encode(message.data).decode()
        else:
            told |= {"type": message.message.type, "source": message.message.source.id}
            told |= {"content": content_of(message)}
        # A line each, on a terminal, too.
        frame.print_json(told, indent=None)
    else:
        if message.missed:
            frame.tell("… some before this one may have ended unread")
        frame.write_row(str(message.seq), frame.when(message.time), text_of(message))
    sys.stdout.flush()


def content_of(message: LiteMessage) -> Any:
    """What an envelope holds; of what a task emits that is the chunk."""
    if message.message is not None and message.message.type == "stream":
        return (message.message.payload.model_extra or {}).get("chunk", message.content)
    return message.content


def text_of(message: LiteMessage) -> str:
    """What a message holds, as one line that moves no cursor."""
    if message.message is None:
        return one_line(repr(message.data), CONTENT_CHARS)
    content = content_of(message)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return one_line(text, CONTENT_CHARS) if sys.stdout.isatty() else printable(text, "")


def publish(
    ctx: typer.Context,
    topic: Topic,
    content: Annotated[str, typer.Argument(metavar="JSON|-", help="The message; - reads it from stdin.")],
    ttl: Annotated[
        float | None, typer.Option("--ttl", help="How long the topic lives after each use, in seconds.", min=1)
    ] = None,
    msg_id: Annotated[
        str, typer.Option("--msg-id", metavar="ID", help="Stored once under it within two minutes.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Store one message on a lite topic, which begins with its first, and print its sequence."""
    frame.execute(_publish(ctx, topic, content, ttl, msg_id, as_json), as_json=as_json)


async def _publish(
    ctx: typer.Context, name: str, text: str, ttl_s: float | None, msg_id: str, as_json: bool
) -> int:
    from squadron.cli.talk import read_stdin

    owner, id = owner_and_id(name)
    if text == "-":
        content = await asyncio.to_thread(read_stdin, wait=not sys.stdin.isatty())
    else:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            hint = f"a text is JSON in quotes: '{json.dumps(text)}'"
            raise InvalidInputError(f"that is not JSON: {error}", field="content", hint=hint) from None
    async with frame.connected(frame.settings_of(ctx)) as squad:
        seq = await squad.lite(id, owner, ttl_s=ttl_s).publish(content, msg_id=msg_id)
    if as_json:
        frame.print_json({"owner": owner, "id": id, "seq": seq})
    else:
        frame.write(f"{seq}\n")
    return frame.OK


def close(
    ctx: typer.Context,
    topic: Topic,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """End a lite topic now, with all its messages; asks before it does."""
    frame.execute(_close(ctx, topic, yes, as_json), as_json=as_json)


async def _close(ctx: typer.Context, name: str, yes: bool, as_json: bool) -> int:
    owner, id = owner_and_id(name)
    if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError("its messages end with it, and there is no terminal to ask on", hint="add --yes")
    async with frame.connected(frame.settings_of(ctx)) as squad:
        # In a thread: Ctrl-C has to reach the loop.
        if not yes and not await asyncio.to_thread(frame.confirm, f"End {name} with all its messages?"):
            return frame.ENDED_OTHERWISE
        await squad.lite(id, owner).close()
    if as_json:
        frame.print_json({"closed": f"{owner}/{id}"})
    else:
        frame.tell(f"Closed {name}.")
    return frame.OK


def owner_and_id(name: str) -> tuple[str, str]:
    """The two parts of a topic's name: `OWNER/ID`, or its subject.

    Raises:
        InvalidSubjectError: it is neither.
    """
    from squadron.runtime.wire.subjects import LiteSubject, check_token

    if name.startswith("agents."):
        subject = LiteSubject.parse(name)
        return subject.owner, subject.id
    owner, slash, id = name.partition("/")
    if not slash:
        raise InvalidSubjectError(f"{name!r} is not OWNER/ID", hint="see `squadron lite list`")
    return check_token(owner, "owner"), check_token(id, "id")


def start_of(text: str) -> LiteStart:
    """Where to begin to read, as it was typed.

    Raises:
        InvalidInputError: that is no place.
    """
    from squadron.runtime.wire.start import Tail

    match text:
        case "first":
            return "first"
        case "last":
            return "last"
        case "new":
            return "new"
    if re.fullmatch(r"-[0-9]{1,9}", text):
        return Tail(int(text[1:]))
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    try:
        at = datetime.fromisoformat(text)
        # Without a zone it is meant as people's clocks have it, which know no time beyond the first or last year.
        return at if at.tzinfo is not None else at.astimezone()
    except (ValueError, OverflowError):
        hint = "first, last, new, a sequence, -20 for the newest 20, or a time as 2026-11-28T17:00"
        raise InvalidInputError(f"--from can't be {text!r}", field="from", hint=hint) from None

"""dlq: the dead letters, and what becomes of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.errors import ConfigError, SquadronError

if TYPE_CHECKING:
    from squadron.runtime.store.dead_letters import DeadLetter

Id = Annotated[str, typer.Argument(metavar="ID", help="As `squadron dlq list` has it, or its beginning.")]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="As `squadron dlq list` has them, or their beginnings."),
]
Topic = Annotated[str, typer.Option("--topic", "-t", help="Only those sent to it; analysis.* is fine, too.")]
Name = Annotated[str, typer.Option("--agent", "-a", help="Only those in its mailbox.")]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        help="The keys of its agent (JSON): opens a letter of a sealed task.",
        dir_okay=False,
        resolve_path=True,
    ),
]
All = Annotated[bool, typer.Option("--all", help="All that --topic and --agent leave.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(no_args_is_help=True)
    # Named here: a function called `list` would hide the type.
    for name, command in (("list", list_letters), ("show", show), ("redrive", redrive), ("drop", drop)):
        group.command(name)(command)
    app.add_typer(group, name="dlq", help="Dead letters, messages that were given up: list, show, redrive, drop.")


# --- looking -----------------------------------------------------------------------------------------


def list_letters(
    ctx: typer.Context,
    topic: Topic = "",
    agent: Name = "",
    limit: Annotated[int, typer.Option("--limit", "-n", help="Longest list.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    frame.execute(_list(ctx, topic, agent, limit, as_json), as_json=as_json)


async def _list(ctx: typer.Context, topic: str, agent: str, limit: int, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        # One more than is shown tells whether there are more.
        found = await squad.dead_letters.list(topic=topic, agent=agent, most=limit + 1)
    letters = found[:limit]
    if as_json:
        frame.print_json([letter.to_dict() for letter in letters])
    elif not letters:
        frame.tell("No dead letters.")
    elif sys.stdout.isatty():
        _show_table(letters)
    else:
        for letter in letters:
            frame.write_row(*_row(letter))
    if len(found) > limit:
        frame.tell(f"These are the newest {limit}; --limit shows more.")
    return frame.OK


def _row(letter: DeadLetter) -> tuple[str, ...]:
    reason = " ".join((letter.last_error or letter.reason).split())
    return (letter.id, letter.agent, letter.topic, str(letter.attempts), frame.when(letter.buried_at), reason)


def _show_table(letters: Sequence[DeadLetter]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("ID", "AGENT", "TOPIC", "ATTEMPTS", "BURIED (UTC)"):
        table.add_column(name, justify="right" if name == "ATTEMPTS" else "left", no_wrap=True)
    # It alone gives way on a narrow terminal.
    table.add_column("LAST ERROR")
    characters = frame.telling_apart([letter.id for letter in letters])
    for id, *cells, reason in map(_row, letters):
        table.add_row(Text(id[:characters]), *map(Text, cells), Text(reason, no_wrap=True, overflow="ellipsis"))
    frame.out().print(table)


def show(ctx: typer.Context, id: Id, agent: Name = "", key: Key = None, as_json: Json = False) -> None:
    """Show one dead letter: why it was given up, and the message itself."""
    frame.execute(_show(ctx, id, agent, key, as_json), as_json=as_json)


async def _show(ctx: typer.Context, id: str, agent: str, key: Path | None, as_json: bool) -> int:
    settings = frame.settings_of(ctx)
    if key is not None:
        settings = replace(settings, seal_keys=key)
    async with frame.connected(settings) as squad:
        letter = await squad.dead_letters.show(id, agent=agent)
        if key is not None:
            letter = await squad.dead_letters.opened(letter)
    if as_json:
        frame.print_json(letter.to_dict())
    else:
        _show_letter(letter)
    return frame.OK


def _show_letter(letter: DeadLetter) -> None:
    from rich.text import Text

    fields = {
        "id": letter.id,
        "agent": letter.agent,
        "subject": letter.subject,
        "reason": letter.reason,
        "attempts": str(letter.attempts),
        "last error": letter.last_error,
        "traceback": letter.traceback_digest,
        "buried": f"{frame.when(letter.buried_at)} UTC",
        "message": f"{len(letter.message)} bytes" + ("" if letter.complete else ", the rest was not kept"),
    }
    console = frame.out()
    for name, value in fields.items():
        if value:
            console.print(Text.assemble((f"{name:<11}", "bold"), value), soft_wrap=True)
    try:
        text = letter.message.decode()
    except UnicodeDecodeError:
        text = repr(letter.message)
    console.print(Text(f"\n{text}"), soft_wrap=True)


# --- moving ------------------------------------------------------------------------------------------


def redrive(
    ctx: typer.Context,
    ids: Ids = None,
    all: All = False,
    topic: Topic = "",
    agent: Name = "",
    as_json: Json = False,
) -> None:
    """Put messages back where they came from, under their ids, with all their attempts before them."""
    frame.execute(_redrive(ctx, ids or [], all, topic, agent, as_json), as_json=as_json)


async def _redrive(ctx: typer.Context, ids: list[str], all: bool, topic: str, agent: str, as_json: bool) -> int:
    _check_choice(ids, all, topic)
    async with frame.connected(frame.settings_of(ctx)) as squad:
        with frame.progress("Putting back", many=all or len(ids) > 1) as on_progress:
            moved = await squad.dead_letters.redrive(
                *ids, all=all, topic=topic, agent=agent, on_progress=on_progress
            )
    if as_json:
        left = {id: error.to_dict() for id, error in moved.left.items()}
        frame.print_json({"redriven": list(moved.ids), "left": left})
    else:
        frame.tell(f"Put {_letters(len(moved.ids))} back.")
        for id, error in moved.left.items():
            frame.complain(SquadronError(f"{id} stays: {error}"))
    return frame.ENDED_OTHERWISE if moved.left else frame.OK


def drop(
    ctx: typer.Context,
    ids: Ids = None,
    all: All = False,
    topic: Topic = "",
    agent: Name = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase dead letters for good; asks before it does."""
    frame.execute(_drop(ctx, ids or [], all, topic, agent, yes, as_json), as_json=as_json)


async def _drop(
    ctx: typer.Context, ids: list[str], all: bool, topic: str, agent: str, yes: bool, as_json: bool
) -> int:
    _check_choice(ids, all, topic)
    if not yes and not _can_ask():
        raise ConfigError("what is dropped is gone, and there is no terminal to ask on", hint="add --yes")
    async with frame.connected(frame.settings_of(ctx)) as squad:
        letters = squad.dead_letters
        # In full, so that the answer is about what is dropped.
        ids = [(await letters.show(id, agent=agent)).token for id in ids]
        if not yes:
            chosen = ", ".join(ids) or "all dead letters" + "".join(f" of {one}" for one in (topic, agent) if one)
            # In a thread: Ctrl-C has to reach the loop.
            if not await asyncio.to_thread(frame.confirm, f"Drop {chosen} for good?"):
                return frame.ENDED_OTHERWISE
        with frame.progress("Dropping", many=all or len(ids) > 1) as on_progress:
            dropped = await letters.drop(*ids, all=all, topic=topic, agent=agent, on_progress=on_progress)
    if as_json:
        frame.print_json({"dropped": dropped})
    else:
        frame.tell(f"Dropped {_letters(dropped)}.")
    return frame.OK


def _check_choice(ids: Sequence[str], all: bool, topic: str) -> None:
    if bool(ids) == all:
        raise ConfigError(
            "say which dead letters", hint="either ids, or --all with or without --topic and --agent"
        )
    if ids and topic:
        raise ConfigError("--topic goes with --all", hint="an id says enough")


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _letters(count: int) -> str:
    return f"{count} dead letter{'s' if count != 1 else ''}"

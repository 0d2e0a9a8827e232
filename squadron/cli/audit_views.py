"""audit: what happened, whether it is as it was recorded, and a copy of it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.errors import SquadronError

if TYPE_CHECKING:
    from squadron.bridge.audit.history import Verified
    from squadron.config import Settings

Conversation = Annotated[str, typer.Option("--conversation", "-c", help="Only those of this conversation.")]
Name = Annotated[str, typer.Option("--agent", "-a", help="Only those that this agent, or a replica of it, sent.")]
Task = Annotated[str, typer.Option("--task", help="Only those of this task, and what it asked of others.")]
Kind = Annotated[
    str, typer.Option("--kind", "-k", help="task, result, event, query, run, dead, cancel, end, action, gap, …")
]
Since = Annotated[str, typer.Option("--since", help="15m, 2h or 3d ago, or a time like 2026-11-28T17:00Z.")]
Anchors = Annotated[
    Path | None, typer.Option("--anchors", help="File of anchors (default: that of the home, if there is one).")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(no_args_is_help=True)
    for command in (tail, query, verify, export, status, archive):
        group.command()(command)
    group.command("import")(restore)
    app.add_typer(group, name="audit", help="The audit trail: what was said, decided and done, and by whom.")


def query(
    ctx: typer.Context,
    conversation: Conversation = "",
    agent: Name = "",
    task: Task = "",
    kind: Kind = "",
    since: Since = "",
    limit: Annotated[int, typer.Option("--limit", "-n", help="So many, the oldest; 0 is all.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """List entries, oldest first; with --json one JSON object in each line."""
    frame.execute(_show(ctx, False, limit, as_json, _wanted(conversation, agent, task, kind, since)))


def tail(
    ctx: typer.Context,
    conversation: Conversation = "",
    agent: Name = "",
    task: Task = "",
    kind: Kind = "",
    as_json: Json = False,
) -> None:
    """Show entries as they are recorded, until Ctrl-C."""
    frame.execute(_show(ctx, True, 0, as_json, _wanted(conversation, agent, task, kind, "")))


def _wanted(conversation: str, agent: str, task: str, kind: str, since: str) -> dict[str, str]:
    return {"conversation": conversation, "agent": agent, "task": task, "kind": kind, "since": since}


async def _show(ctx: typer.Context, live: bool, limit: int, as_json: bool, wanted: dict[str, Any]) -> int:
    from squadron.bridge.audit.history import moment

    wanted["since"] = moment(wanted["since"]) if wanted["since"] else 0.0
    async with frame.connected(frame.settings_of(ctx)) as squad:
        shown = 0
        async for record in squad.audit.follow(**wanted) if live else squad.audit.query(**wanted):
            if as_json:
                frame.print_json(record, indent=None)
            else:
                frame.write_row(_line(record))
            if live:
                sys.stdout.flush()
            shown += 1
            if shown == limit:
                break
    return frame.OK


def _line(record: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(record["at"], UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    match record["kind"]:
        case "gap":
            what = f"{record['seq']} to {record['until']} of {record['stream']} were not recorded"
        case "unreadable":
            what = record["why"]
        case "action":
            action = record["action"] or {}
            what = f"{action.get('verb')} {action.get('on')} by {action.get('by')}" + (
                f": {action['error']}" if action.get("error") else ""
            )
        case _:
            told = ("source", "task", "outcome", "entries")
            facts = [f"{name}={record[name]}" for name in told if record.get(name)]
            what = " ".join([record["subject"].split(".", 2)[-1], *facts])
    return f"{record['n']:>8}  {at}  {record['kind']:<7}  {what}"


def verify(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="An export, instead of this environment's trail.", exists=True, dir_okay=False),
    ] = None,
    anchors: Anchors = None,
    public_key: Annotated[str, typer.Option("--public-key", help="Whose anchors count, in hexadecimal.")] = "",
    as_json: Json = False,
) -> None:
    """Say whether each entry is what was recorded, where it was recorded; exit code 1 if not."""
    frame.execute(_verify(ctx, file, anchors, public_key, as_json), as_json=as_json)


async def _verify(
    ctx: typer.Context, file: Path | None, anchors: Path | None, public_key: str, as_json: bool
) -> int:
    from squadron.bridge.audit.history import verify_file

    if file is not None:
        found = verify_file(file, anchors=anchors, public_key=public_key)
    else:
        async with frame.connected(frame.settings_of(ctx)) as squad:
            found = await squad.audit.verify(anchors=anchors, public_key=public_key)
    if as_json:
        frame.print_json(found.to_dict())
    else:
        _tell(found)
    return frame.OK if found.ok else frame.ENDED_OTHERWISE


def _tell(found: Verified) -> None:
    entries = f"entries {found.first} to {found.last}" if found.last >= found.first > 0 else "no entries"
    gaps = f", {found.gaps} of them gaps" if found.gaps else ""
    frame.tell(f"Looked at {entries}{gaps}, held against {found.anchors} anchors.")
    for fault in found.faults:
        which = f"entry {fault.first}" if fault.first == fault.last else f"entries {fault.first} to {fault.last}"
        frame.complain(SquadronError(f"{which} {fault.what}: {fault.why}"))
    for why in found.unproven:
        frame.tell(f"Not proven: {why}")
    if not found.proven:
        hint = "the key is that of another trail, or the anchors are; see --anchors and --public-key"
        frame.complain(SquadronError("no anchor counts: the trail may be cut, or be a whole other one", hint=hint))
    if found.ok:
        frame.tell("All is as it was recorded.")


def export(
    ctx: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (default: standard output).")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="jsonl, which can be verified and imported, or parquet, for tables.")
    ] = "jsonl",
) -> None:
    """Write the whole trail: as JSONL with what `verify` and `import` need, or as a table of its entries."""
    frame.execute(_export(ctx, output, format))


async def _export(ctx: typer.Context, output: Path | None, format: Any) -> int:
    if output is not None:
        frame.check_file(output, "--output")
    async with frame.connected(frame.settings_of(ctx)) as squad:
        if output is None:
            await squad.audit.export(_OnTerminal() if sys.stdout.isatty() else sys.stdout.buffer, format)
            return frame.OK
        with frame.writing(output, "--output"), _whole(output) as file:
            count = await squad.audit.export(file, format)
    frame.tell(f"Wrote {count} entries to {output}.")
    return frame.OK


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there when all of it is, and else is not: half an export looks like a cut trail."""
    if path.exists() and not path.is_file():
        # A pipe takes it as it comes, and a device stays one.
        with path.open("wb") as file:
            yield file
        return
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class _OnTerminal(io.BytesIO):
    """Whoever exports to a terminal wants to look at it."""

    def write(self, data: Any) -> int:
        frame.write(bytes(data).decode(errors="replace"))
        return len(data)


def restore(
    ctx: typer.Context, file: Annotated[Path, typer.Argument(help="An export.", exists=True, dir_okay=False)]
) -> None:
    """Bring an export into this environment, which must have no trail: to look at it and to verify it there."""
    frame.execute(_restore(ctx, file))


async def _restore(ctx: typer.Context, path: Path) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        with path.open("rb") as file:
            count = await squad.audit.restore(file)
    frame.tell(f"Brought {count} entries in.")
    return frame.OK


def status(ctx: typer.Context, as_json: Json = False) -> None:
    """What is recorded, how much there is, and whether the archivist keeps up."""
    frame.execute(_status(ctx, as_json), as_json=as_json)


async def _status(ctx: typer.Context, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        facts = await squad.audit.status()
    if as_json:
        frame.print_json(facts)
    else:
        for name, value in facts.items():
            frame.write(f"{name.replace('_', ' '):<14} {value}\n")
    return frame.OK


def archive(ctx: typer.Context) -> None:
    """Keep the trail from here, until Ctrl-C: instead of the archivist on the cluster, or in case it dies."""
    frame.execute(_archive(frame.settings_of(ctx)))


async def _archive(settings: Settings) -> int:
    from squadron.bridge.audit.archive import archive as work

    await work(settings)
    return frame.OK

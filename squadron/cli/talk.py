"""ask: have an agent do something."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame, spending
from squadron.cli.environment import Json
from squadron.cli.searched import teach
from squadron.runtime.errors import InvalidInputError, SquadronError, StreamGapError
from squadron.runtime.texts import json_text

if TYPE_CHECKING:
    from squadron.client.squad import Squad
    from squadron.runtime.asking.handle import Handle
    from squadron.runtime.streams.writer import Chunk, Ended, Nested, Restarted
    from squadron.runtime.wire.outcome import Outcome

#: Longest wait for the first byte of piped input, in seconds; a pipe that nobody writes to must not hang us.
STDIN_WITHIN_S = 10.0
#: How long Ctrl-C waits for the task's end, in seconds.
CANCEL_WITHIN_S = 3.0


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(ask)


def ask(
    ctx: typer.Context,
    topic: Annotated[str, typer.Argument(help="For example license.classify; see `squadron topics`.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE...|-]", help="The input; - reads it as JSON from stdin."),
    ] = None,
    within: Annotated[float, typer.Option("--within", help="Longest wait, in seconds.", min=0.01)] = 60.0,
    priority: Annotated[int, typer.Option("--priority", help="0 (last) to 9 (first).", min=0, max=9)] = 5,
    start_within: Annotated[
        float | None, typer.Option("--start-within", help="Longest wait for a replica, in seconds.", min=0.01)
    ] = None,
    task_id: Annotated[
        str, typer.Option("--task-id", help="An id of your own: asked twice, it is one task.", metavar="ID")
    ] = "",
    conversation: Annotated[
        str, typer.Option("--conversation", help="What it belongs to; agents remember by it.", metavar="ID")
    ] = "",
    target: Annotated[str, typer.Option("--target", help="Agent or replica that is to run it.")] = "",
    capabilities: Annotated[
        list[str] | None, typer.Option("--capability", help="What its replica must have; may be given again.")
    ] = None,
    exclusions: Annotated[
        list[str] | None, typer.Option("--exclude", help="Agent or replica that must not; may be given again.")
    ] = None,
    tokens: spending.Tokens = None,
    usd: spending.Usd = None,
    rounds: spending.Rounds = None,
    tasks: spending.Tasks = None,
    hops: spending.Hops = None,
    model: Annotated[
        str | None, typer.Option("--model", help="openai:NAME or anthropic:NAME, for agents that use one.")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", help="For that model, as temperature=0.2; may be given again."),
    ] = None,
    sealed: Annotated[bool, typer.Option("--sealed", help="Nobody but its agent can read it.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print what the task emits while it runs.")] = False,
    as_json: Json = False,
) -> None:
    """Send one task and print its result. A value is read as JSON where the topic wants more than text."""
    # Else Pydantic looks for plugins in all that is installed. Nothing is started here that would inherit it.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from squadron.runtime.wire.route import Route

    options = {
        "within_s": within,
        "start_within_s": start_within,
        "priority": priority,
        "task_id": task_id,
        "conversation_id": conversation,
        "route": Route(target=target, capabilities=tuple(capabilities or ()), exclusions=tuple(exclusions or ())),
        "budget": spending.budget_of(tokens, usd, rounds, tasks, hops),
        "model": model,
        "sealed": sealed,
    }
    frame.execute(_ask(ctx, topic, fields or [], parameters or [], options, stream, as_json), as_json=as_json)


async def _ask(
    ctx: typer.Context,
    topic: str,
    fields: list[str],
    parameters: list[str],
    options: dict[str, Any],
    stream: bool,
    as_json: bool,
) -> int:
    pairs, piped = [field for field in fields if field != "-"], "-" in fields
    check_pairs([*pairs, *parameters])
    if parameters:
        options["parameters"] = with_fields({}, parameters, {})
    settings = frame.settings_of(ctx)
    async with frame.connected(settings) as squad:
        schema = schema_of(squad, topic)
        piped = piped or (not pairs and bool(schema.get("required")) and _is_piped())
        content = with_fields(read_stdin(wait=not sys.stdin.isatty()) if piped else {}, pairs, schema)
        handle = await squad.submit(topic, content, **options)
        shown = Shown(as_json=as_json)
        try:
            if stream:
                await shown.follow(handle)
            outcome = await handle.outcome()
        except asyncio.CancelledError:
            told = await _cancel(handle)
            shown.end_line()
            frame.tell(told)
            raise
        code = show_outcome(outcome, shown.text, as_json)
        if not options["sealed"]:
            await teach(squad, settings, topic, outcome)
    return code


async def _cancel(handle: Handle) -> str:
    """At Ctrl-C nobody waits for the task any more; returns what became of it."""
    with contextlib.suppress(SquadronError, TimeoutError):
        async with asyncio.timeout(CANCEL_WITHIN_S):
            await handle.cancel()
            return "cancelled"
    return "interrupted; the task may go on"


class Shown:
    """What was printed of a stream.

    Attributes:
        text: the texts that the newest attempt emitted.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.text = ""
        self._as_json, self._is_open = as_json, False

    async def follow(self, handle: Handle) -> None:
        """Print what a task emits, as it comes."""
        try:
            async for event in handle.events():
                self._show(event)
        except StreamGapError as error:
            # Its outcome counts all the same.
            self.end_line()
            frame.tell(str(error))
        self.end_line()

    def _show(self, event: Chunk | Restarted | Nested | Ended) -> None:
        from squadron.runtime.streams.writer import Chunk, Restarted

        if isinstance(event, Restarted):
            self._restart(event.attempt)
        elif not isinstance(event, Chunk):
            return
        elif self._as_json:
            frame.print_json({"chunk": event.value})
        elif isinstance(event.value, str):
            self.text += event.value
            self._write(event.value)
        else:
            self.end_line()
            self._write(json_text(event.value) + "\n")

    def _restart(self, attempt: int) -> None:
        self.text = ""
        if self._as_json:
            frame.print_json({"restarted": attempt})
        else:
            self.end_line()
            frame.tell(f"attempt {attempt}: starting over")

    def _write(self, text: str) -> None:
        frame.write_whole(text)
        sys.stdout.flush()
        if text:
            self._is_open = not text.endswith("\n")

    def end_line(self) -> None:
        """What is printed next begins a line."""
        if self._is_open:
            self._write("\n")


def show_outcome(outcome: Outcome, shown: str, as_json: bool) -> int:
    """Print how a task ended, but for the text that was `shown` already; returns the exit code."""
    if as_json:
        who = {"task_id": outcome.task_id, "topic": outcome.topic, "source": outcome.source}
        frame.print_json({**who, **outcome.to_content()})
    elif outcome.ok:
        data = outcome.unwrap()
        # A model's text was streamed already, and is the result as well.
        if not (isinstance(data, str) and data.strip() == shown.strip()):
            text = data if isinstance(data, str) else json_text(data, 2)
            frame.write_whole(text if text.endswith("\n") else f"{text}\n")
    if not outcome.ok:
        from rich.text import Text

        kind = outcome.kind.replace("_", " ")
        frame.err().print(Text.assemble((f"{kind}: ", "bold red"), outcome.reason), soft_wrap=True)
    return frame.OK if outcome.ok else frame.ENDED_OTHERWISE


def schema_of(squad: Squad, topic: str) -> dict[str, Any]:
    """The input schema of a served topic or of the family it belongs to; empty if nobody serves it."""
    from squadron.runtime.wire.subjects import matches

    served = {one.topic.name: one.topic.input_schema for one in squad.topics()}
    family = (schema for name, schema in served.items() if "*" in name and matches(name, topic))
    return served.get(topic) or next(family, {})


def _is_piped() -> bool:
    """Whether somebody feeds us: a pipe or a file, but not what a daemon or a test runner leaves open."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_stdin(*, wait: bool = True) -> Any:
    """The JSON value on stdin.

    Raises:
        InvalidInputError: it is not JSON, or nothing comes (with `wait`).
    """
    if wait and not select.select([sys.stdin], [], [], STDIN_WITHIN_S)[0]:
        raise InvalidInputError(f"nothing came on stdin for {STDIN_WITHIN_S:g} s", hint="give FIELD=VALUE instead")
    try:
        return json.load(sys.stdin)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"stdin is not JSON: {error}") from None


def check_pairs(pairs: Sequence[str]) -> None:
    """Refuse what is not `FIELD=VALUE` before anything is connected.

    Raises:
        InvalidInputError: names the first that is not.
    """
    for pair in pairs:
        name, equals, _ = pair.partition("=")
        if not (name and equals):
            hint = 'for example text="I love it"; JSON is read from stdin, with -'
            raise InvalidInputError(f"{pair!r} is not FIELD=VALUE", hint=hint)


def with_fields(content: Any, pairs: Sequence[str], schema: dict[str, Any]) -> Any:
    """The content with fields of the command line set in it.

    Raises:
        InvalidInputError: there are fields, but the content is not an object.
    """
    if not pairs:
        return content
    if not isinstance(content, dict):
        raise InvalidInputError("fields can be added to a JSON object only, and stdin holds none")
    from squadron.runtime.wire.spoken import read_field

    given = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        given[name] = read_field(text, schema, name)
    return content | given

"""asks and answer: what waits for people, and what they say to it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.dlq import _can_ask
from squadron.cli.environment import Json
from squadron.cli.talk import check_pairs, read_stdin, with_fields
from squadron.runtime.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from squadron.runtime.asking.answering import OpenQuestion, QuestionNews
    from squadron.runtime.wire.question import Question


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (asks, answer):
        app.command()(command)


# --- looking -----------------------------------------------------------------------------------------


def asks(
    ctx: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay, and tell what is asked and answered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what waits for people, oldest first."""
    frame.execute((_follow if follow else _list)(ctx, as_json), as_json=as_json)


async def _list(ctx: typer.Context, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        found = await squad.questions()
    if as_json:
        frame.print_json([each.to_dict() for each in found])
    elif not found:
        frame.tell("Nothing waits for people.")
    for each in () if as_json else found:
        _show(each)
    return frame.OK


async def _follow(ctx: typer.Context, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        async for news in squad.follow_questions():
            if as_json:
                frame.print_json(news.to_dict())
            elif news.what == "asked":
                _show(news.asked)
            else:
                frame.write_row(f"{news.asked.query_id[:8]}  {_ended(news)}")
            sys.stdout.flush()
    return frame.OK


def _ended(news: QuestionNews) -> str:
    if news.reply is None:
        return news.what
    return f"{news.reply.action} by {news.reply.by or 'somebody'}"


def _until(question: Question) -> str:
    return f"{frame.when(question.deadline_ms / 1000)} UTC"


def _show(asked: OpenQuestion) -> None:
    question = asked.question
    if not sys.stdout.isatty():
        said = " ".join(question.message.split())
        frame.write_row(asked.query_id, question.kind, asked.asker, _until(question), said)
        return
    from rich.padding import Padding
    from rich.text import Text

    from squadron.runtime.wire.topics import describe_input

    console = frame.out()
    about = f"  {asked.asker}, until {_until(question)}"
    console.print(Text.assemble((asked.query_id[:8], "bold cyan"), (about, "dim")))
    console.print(Padding(Text(question.message), (0, 0, 0, 2)))
    if question.proposal is not None:
        arguments = json.dumps(question.proposal.arguments, ensure_ascii=False, indent=2)
        console.print(Padding(Text(arguments, "dim"), (0, 0, 0, 2)))
    fields = describe_input(dict(question.schema))
    console.print(Padding(Text(f"squadron answer {asked.query_id[:8]}  ({fields})", "dim"), (0, 0, 1, 2)))


# --- answering ---------------------------------------------------------------------------------------


def answer(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="As `squadron asks` has it, or its beginning.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE...|-]", help="The answer; - reads it as JSON from stdin."),
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Yes; the default where fields are given.")] = False,
    decline: Annotated[bool, typer.Option("--decline", help="No.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Neither: nobody decides it.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever asked.")] = "",
    always: Annotated[bool, typer.Option("--always", help="Approve this topic for the rest of the run.")] = False,
    by: Annotated[str, typer.Option("--by", help="Who answers (default: you).")] = "",
    as_json: Json = False,
) -> None:
    """Answer a question, or approve a call. Asks for the fields on a terminal if none are given."""
    said = [name for name, is_so in (("accept", accept), ("decline", decline), ("cancel", cancel)) if is_so]
    given = [field for field in fields or () if field != "-"]
    extra: dict[str, Any] = ({"reason": reason} if reason else {}) | ({"always": True} if always else {})
    frame.execute(_answer(ctx, query, said, given, "-" in (fields or ()), extra, by, as_json), as_json=as_json)


async def _answer(
    ctx: typer.Context,
    query: str,
    said: Sequence[str],
    pairs: Sequence[str],
    piped: bool,
    extra: dict[str, Any],
    by: str,
    as_json: bool,
) -> int:
    if len(said) > 1:
        raise ConfigError("an answer is one of --accept, --decline and --cancel")
    check_pairs(pairs)
    content = read_stdin(wait=not sys.stdin.isatty()) if piped else {}
    async with frame.connected(frame.settings_of(ctx)) as squad:
        asked = await squad.question(query)
        question = asked.question
        content = with_fields(content, pairs, _fields_of(question))
        action, is_bare = (said or ["accept"])[0], not (pairs or piped or extra)
        if is_bare and not said:
            if not _can_ask():
                hint = "FIELD=VALUE, --accept, --decline or --cancel"
                raise ConfigError("an answer is missing, and there is no terminal to ask on", hint=hint)
            action, content = await asyncio.to_thread(_converse, question)
        elif is_bare and action == "accept" and question.schema.get("required") and _can_ask():
            content = await asyncio.to_thread(_prompt_fields, question)
        reply = await squad.answer(asked.query_id, {**content, **extra}, action=action, by=by)  # type: ignore[arg-type]
    if as_json:
        frame.print_json({"query": asked.query_id, **reply.to_content()})
    else:
        frame.tell(f"Answered {asked.query_id[:8]}: {reply.action}.")
    return frame.OK


def _fields_of(question: Question) -> dict[str, Any]:
    """How fields of the command line are to be read; of an approval the arguments, too."""
    fields = dict(question.schema.get("properties", {}))
    if question.proposal is not None:
        fields["arguments"] = {"type": ["object", "array", "number", "boolean", "null"]}
    return {**question.schema, "properties": fields}


def _converse(question: Question) -> tuple[str, dict[str, Any]]:
    """Put the question to the person at the terminal."""
    frame.tell(question.message)
    if question.proposal is None:
        return "accept", _prompt_fields(question)
    frame.tell(json.dumps(question.proposal.arguments, ensure_ascii=False, indent=2))
    said = frame.ask("Approve it? yes, no, always, or cancel", default="no").strip().lower()
    words = {"y": "yes", "n": "no", "a": "always", "c": "cancel"}
    said = words.get(said, said)
    if said in ("yes", "always"):
        return "accept", {"always": True} if said == "always" else {}
    if said == "cancel":
        return "cancel", {}
    if said != "no":
        raise InvalidInputError(f"{said!r} is neither yes nor no", field="action")
    reason = frame.ask("Why not?", default="", show_default=False).strip()
    return "decline", {"reason": reason} if reason else {}


def _prompt_fields(question: Question) -> dict[str, Any]:
    """Ask for each field until it fits; what need not be said may be left empty."""
    from squadron.runtime.wire.spoken import read_field

    content: dict[str, Any] = {}
    for name, field in question.schema.get("properties", {}).items():
        is_required = name in question.schema.get("required", ())
        while True:
            default = field.get("default", None if is_required else "")
            shown = default if default is None or isinstance(default, str) else json.dumps(default)
            is_shown = bool(shown) and str(shown).isprintable()
            text = frame.ask(_label(name, field), default=shown, show_default=is_shown, type=str)
            if not text and not is_required:
                break
            content[name] = read_field(text, question.schema, name)
            try:
                question.check_field(name, content[name])
                break
            except InvalidInputError as error:
                frame.tell(str(error.args[0]))
    return content


def _label(name: str, field: Mapping[str, Any]) -> str:
    title = str(field.get("title") or name)
    about = f": {field['description']}" if field.get("description") else ""
    choices = field.get("enum") or [each.get("const") for each in field.get("oneOf", ())]
    return f"{title}{about}" + (f" ({', '.join(map(str, choices))})" if choices else "")

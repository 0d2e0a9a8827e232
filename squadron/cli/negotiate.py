"""negotiate: have the agents of several topics bid for a task, and print what the best makes of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.cli.talk import check_pairs, schema_of, show_outcome, with_fields
from squadron.runtime.errors import InvalidInputError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(negotiate)


def negotiate(
    ctx: typer.Context,
    topics: Annotated[
        list[str], typer.Argument(metavar="TOPIC...", help="Topics that could do it, or patterns as 'review.*'.")
    ],
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", "-f", help="Of the input, as text=hello; may be given again.", metavar="FIELD=VALUE"
        ),
    ] = None,
    within: Annotated[float, typer.Option("--within", help="Longest wait, in seconds.", min=0.01)] = 60.0,
    bids_within: Annotated[
        float, typer.Option("--bids-within", help="Longest wait for bids, in seconds.", min=0.01)
    ] = 2.0,
    tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Most LLM tokens it may spend, all in all.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Have agents bid for a task, give it to the best, on failure to the next, and print the result."""
    from squadron.runtime.wire.limits import Budget

    options = {"within_s": within, "bids_within_s": bids_within, "budget": Budget(tokens=tokens)}
    frame.execute(_negotiate(ctx, topics, fields or [], options, as_json), as_json=as_json)


async def _negotiate(
    ctx: typer.Context, topics: list[str], fields: list[str], options: dict[str, Any], as_json: bool
) -> int:
    from squadron.runtime.wire.subjects import check_pattern, matches

    check_pairs(fields)
    if wrong := next((each for each in topics if "=" in each), ""):
        raise InvalidInputError(f"{wrong!r} is no topic", field="topics", hint=f"a field goes as --field {wrong}")
    for each in topics:
        check_pattern(each)
    async with frame.connected(frame.settings_of(ctx)) as squad:
        served = (one.topic.name for one in squad.topics() for each in topics if matches(each, one.topic.name))
        content = with_fields({}, fields, schema_of(squad, next(served, "")))
        outcome = await squad.negotiate(topics, content, **options)
    return show_outcome(outcome, "", as_json)

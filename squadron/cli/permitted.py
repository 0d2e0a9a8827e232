"""auth check: whether somebody may ask a topic, and by which rule."""

from __future__ import annotations

from typing import Annotated

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.errors import InvalidInputError


def register(app: typer.Typer) -> None:
    """Add the command to `app`, in its group if that is there already."""
    group = next((each.typer_instance for each in app.registered_groups if each.name == "auth"), None)
    if group is None:
        group = typer.Typer(no_args_is_help=True)
        # Without it a group of one command would be that command.
        group.callback()(lambda: None)
        app.add_typer(group, name="auth", help="Who may ask what.")
    group.command()(check)


def check(
    ctx: typer.Context,
    principal: Annotated[str, typer.Argument(metavar="PRINCIPAL", help="Who asks: client:ann, agent:planner.")],
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="What is asked: analysis.sentiment.")],
    on_behalf_of: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="PRINCIPAL", help="On whose behalf, oldest first; several by several."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether somebody may ask a topic, and by which rule: exit code 0 if so, else 1."""
    frame.execute(_check(ctx, principal, topic, on_behalf_of or [], as_json), as_json=as_json)


async def _check(ctx: typer.Context, principal: str, topic: str, behalf: list[str], as_json: bool) -> int:
    from squadron.runtime.wire.behalf import joined
    from squadron.runtime.wire.policy import NO_POLICY, PRINCIPAL, Policy
    from squadron.runtime.wire.subjects import check_topic, matches

    for who in (principal, *behalf):
        if PRINCIPAL.fullmatch(who) is None:
            hint = "ROLE:NAME, like client:ann"
            raise InvalidInputError(f"{who[:80]!r} is no principal", field="principal", hint=hint)
    check_topic(topic)
    settings = frame.settings_of(ctx)
    policy = NO_POLICY if settings.policy is None else Policy.load(settings.policy)
    async with frame.connected(settings) as squad:
        topics = [each.topic for each in squad.topics()]
    exact = next((each for each in topics if each.name == topic), None)
    found = exact or next((each for each in topics if each.is_pattern and matches(each.name, topic)), None)
    if found is None:
        raise InvalidInputError(f"nobody serves {topic!r}", field="topic", hint="see squadron topics")
    ruling = policy.rule_on(joined(behalf, principal), topic, found.allow)
    limits = [
        {"limit": f"limits.{number}", **limit.model_dump(mode="json", exclude_none=True)}
        for number, limit in policy.limits_of(principal, topic)
    ]
    if as_json:
        said = {"principal": principal, "topic": topic, "on_behalf_of": behalf, "allowed": ruling.allowed}
        frame.print_json(said | {"by": ruling.by, "reason": ruling.reason, "limits": limits})
    else:
        word = "allowed" if ruling.allowed else "refused"
        frame.out().print(f"{word}: {ruling.reason}", markup=False, soft_wrap=True)
        for each in limits:
            said = {name: value for name, value in each.items() if name not in ("limit", "who", "topics")}
            told = ", ".join(f"{name} {value}" for name, value in said.items())
            frame.out().print(f"{each['limit']}: {told}", markup=False, soft_wrap=True)
    if settings.verify_modes.of(topic) != "require":
        frame.tell(f"SQUADRON_VERIFY is {settings.verify}: here nobody holds to it.")
    return frame.OK if ruling.allowed else frame.ENDED_OTHERWISE

"""canary: two versions of an agent beside each other, and which of them is to serve."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from squadron.cli import frame
from squadron.cli.named_agents import named_agents
from squadron.runtime.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
#: Kinds of outcome that the code is to blame for.
_FAILURES = ("failed", "timed_out", "dead_lettered")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(canary)


def canary(
    ctx: typer.Context,
    agent: Annotated[str, typer.Argument(help="As `squadron status` names it.")],
    weight: Annotated[
        str, typer.Option("--weight", help="Give it this share of the tasks from now on.", metavar="PERCENT")
    ] = "",
    promote: Annotated[bool, typer.Option("--promote", help="It serves from now on, and alone.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="It goes, and what served before serves on.")] = False,
    as_json: Json = False,
) -> None:
    """Show both versions of an agent that has a canary, or give it another share, promote or abort it.

    A canary comes by `squadron deploy MODULE:AGENT --canary 10%`. No task is lost by any of these.
    """
    if sum((bool(weight), promote, abort)) > 1:
        raise typer.BadParameter("one of --weight, --promote and --abort")
    frame.execute(_canary(ctx, agent, weight, promote, abort, as_json), as_json=as_json)


def percent(text: str) -> int:
    """A share of tasks as people write it: `10` or `10%`.

    Raises:
        ConfigError: it is neither.
    """
    if not re.fullmatch(r"[0-9]{1,3}%?", text) or int(text.rstrip("%")) > 100:
        raise ConfigError(f"{text!r} is no share of tasks", hint="a whole percent from 0 to 100: 10%, for example")
    return int(text.rstrip("%"))


async def _canary(ctx: typer.Context, agent: str, weight: str, promote: bool, abort: bool, as_json: bool) -> int:
    to: int | Literal["promote", "abort"] | None = percent(weight) if weight else None
    if promote or abort:
        to = "promote" if promote else "abort"
    async with frame.connected(frame.settings_of(ctx)) as squad:
        if to is not None:
            await squad.canary(agent, to)
        (found,) = await named_agents(squad, [agent])
    if as_json:
        frame.print_json({"agent": agent, "version": found["version"], "canary": found["canary"]})
    elif found["canary"] is None:
        frame.tell(f"{agent} has no canary; {found['version'][:8]} serves alone.")
    else:
        for line in lines(found):
            frame.tell(line)
    return frame.OK


def lines(agent: Mapping[str, Any]) -> list[str]:
    """Both versions of an agent that has a canary, beside each other."""
    tried = agent["canary"]
    shares = ((agent, "stable", 100 - tried["weight"]), (tried, "canary", tried["weight"]))
    told = []
    for version, name, weight in shares:
        outcomes = tried["outcomes"] if version is tried else tried["stable_outcomes"]
        replicas = f"{version['status']}  {version['running']}/{version['target']} replicas"
        ending = "  goes when stable runs its code" if version is tried and tried["promoted"] else ""
        told.append(f"  {name} {version['version'][:8]}  {weight:>3} %  {replicas}  {_ended(outcomes)}{ending}")
        if version is tried and version["message"] and version["status"] != "RUNNING":
            told.append(f"  {version['message']}")
    return told


def _ended(outcomes: Mapping[str, int]) -> str:
    ended, failed = sum(outcomes.values()), sum(outcomes.get(kind, 0) for kind in _FAILURES)
    if not ended:
        return "no task has ended yet"
    others = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in outcomes.items() if kind != "result")
    return f"{ended} ended{f' ({others})' if others else ''}, {failed / ended:.1%} failed"

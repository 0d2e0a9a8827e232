"""Options for what a task may spend, the same for every command that sends one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from squadron.runtime.wire.limits import Budget

Tokens = Annotated[
    int | None, typer.Option("--tokens", "--max-tokens", help="Most LLM tokens it may spend, all in all.", min=1)
]
Usd = Annotated[
    float | None, typer.Option("--usd", help="Most US dollars it may spend on LLMs, all in all.", min=0)
]
Rounds = Annotated[int | None, typer.Option("--rounds", help="Most calls of LLMs, all in all.", min=0)]
Tasks = Annotated[int | None, typer.Option("--tasks", help="Most tasks asked of others, theirs included.", min=0)]
Hops = Annotated[int | None, typer.Option("--hops", "--max-hops", help="How far it may be passed on.", min=0)]


def budget_of(
    tokens: int | None, usd: float | None, rounds: int | None, tasks: int | None, hops: int | None
) -> Budget:
    """The budget that the options of a command stand for.

    Raises:
        typer.BadParameter: one of them can't be.
    """
    from squadron.runtime.errors import InvalidInputError
    from squadron.runtime.wire.limits import Budget

    try:
        return Budget(tokens=tokens, usd=usd, rounds=rounds, tasks=tasks, hops=hops)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{error.field}") from None

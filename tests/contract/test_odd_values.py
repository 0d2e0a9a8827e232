"""Values that not everybody who writes them reads: their asker is told of them all the same."""

from __future__ import annotations

import math
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from tests.contract.conftest import SOON_S, Peer, Serve


def _nested(levels: int) -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


class Odd(Agent):
    """Gives and takes them."""

    @topic("odd.give")
    async def give(self, levels: int) -> Any:
        return _nested(levels)

    @topic("odd.emit", max_attempts=1)
    async def emit(self, levels: int, context: Context) -> str:
        await context.emit(_nested(levels))
        return "emitted"

    @topic("odd.take")
    async def take(self, value: Any) -> str:
        return "taken"


#: pydantic reads 200 levels, of which a message has some itself, and writes some 50 more.
TOO_DEEP = (199, 201, 230, 252, 300)


@pytest.mark.parametrize("levels", [150, *TOO_DEEP])
async def test_what_is_nested_too_deep_to_be_read_is_told_in_whichever_direction(
    peer: Peer, serve: Serve, levels: int
) -> None:
    await serve(Odd())
    soon = AskOptions(within_s=SOON_S)

    given = await peer.caller.ask("odd.give", {"levels": levels}, soon)
    taken = await peer.caller.ask("odd.take", {"value": _nested(levels)}, soon)
    emitted = await peer.caller.submit("odd.emit", {"levels": levels}, soon)
    chunks = [each async for each in emitted.chunks()]
    emitting = await emitted.outcome()

    if levels in TOO_DEEP:
        assert (given.kind, taken.kind, emitting.kind, chunks) == ("failed", "rejected", "dead_lettered", [])
    else:
        assert (given.unwrap(), taken.unwrap()) == (_nested(levels), "taken")
        assert (emitting.unwrap(), chunks) == ("emitted", [_nested(levels)])


@pytest.mark.parametrize("value", [math.nan, math.inf, "half \ud83d", "\ud83d\ude00", {"a": -math.inf}], ids=ascii)
async def test_what_changes_on_the_wire_is_the_same_task_under_an_id_of_its_own(
    peer: Peer, serve: Serve, value: Any
) -> None:
    await serve(Odd())
    named = AskOptions(task_id="mine", within_s=SOON_S)

    assert (await peer.caller.ask("odd.take", {"value": value}, named)).unwrap() == "taken"
    assert (await peer.caller.ask("odd.take", {"value": value}, named)).unwrap() == "taken"

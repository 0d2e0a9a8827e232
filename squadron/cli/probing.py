"""health: whether an environment can be worked with, for probes of whoever runs it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from squadron.cli import frame
from squadron.cli.ending import vanish
from squadron.cli.environment import Json
from squadron.runtime.errors import SquadronError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(health)


def health(
    ctx: typer.Context,
    within: Annotated[
        float, typer.Option("--within", help="Longest wait for an answer, in seconds.", min=0.01)
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Say whether NATS and the bridge answer: exit code 0 if both do, else 1. What ails them tells the doctor."""
    frame.execute(_health(ctx, within, as_json), as_json=as_json)


async def _health(ctx: typer.Context, within_s: float, as_json: bool) -> int:
    from squadron.bridge.health.probes import Probe, Probes
    from squadron.bridge.jetstream.link.at_home import as_user
    from squadron.bridge.jetstream.link.dial import connect
    from squadron.runtime.wire.subjects import Subjects

    settings, probes = frame.settings_of(ctx), dict[str, Probe]()
    loop, hangs = asyncio.get_running_loop(), False
    began = loop.time()
    try:
        async with asyncio.timeout(within_s):
            connection = await connect(as_user(settings), name="health")
    except TimeoutError:
        probes["nats"], hangs = Probe(False, loop.time() - began, f"NATS did not answer in {within_s:g} s"), True
    except SquadronError as error:
        probes["nats"] = Probe(False, loop.time() - began, str(error.args[0]))
    else:
        probes = await Probes(connection, Subjects(settings.env), within_s=within_s).ready()
        hangs = not probes["nats"].ok
        if not hangs:
            await connection.aclose()
    ok = all(each.ok for each in probes.values())
    if as_json:
        frame.print_json({"ok": ok, **{name: asdict(each) for name, each in probes.items()}})
    else:
        for name, each in probes.items():
            said = f"{1000 * each.seconds:.1f} ms" if each.ok else each.trouble
            frame.out().print(f"{'ok' if each.ok else 'fail':<5}{name:<8}{said}", markup=False, soft_wrap=True)
        if not ok:
            frame.tell("squadron doctor says what to do.")
    if hangs:
        # Not by a close: that would wait for the same server, or for its name, once more.
        vanish(frame.ENDED_OTHERWISE)
    return frame.OK if ok else frame.ENDED_OTHERWISE

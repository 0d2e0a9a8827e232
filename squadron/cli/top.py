"""top: what agents do now, drawn anew each second."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.errors import ConfigError, SquadronError

if TYPE_CHECKING:
    from squadron.cli.top_screen import Screen
    from squadron.client.squad import Squad
    from squadron.views.beats import Beats

#: Longest wait for what `--once` shows, in heartbeats and at least in seconds: of two there is a rate, and they
#: may be late.
ONCE_BEATS, ONCE_S = 3.5, 10.0
#: What a terminal sends for keys that are no letter.
KEYS = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\r": "open", "\n": "open"}
KEYS |= {"\x1b[C": "open", "\x1bOC": "open", "\x1b[D": "close", "\x1bOD": "close", "\x1b": "close"}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(top)


def top(
    ctx: typer.Context,
    sort: Annotated[
        str, typer.Option("--sort", "-s", help="By name, busy, waiting, rate, failed or age.")
    ] = "name",
    interval: Annotated[float, typer.Option("--interval", "-i", help="Seconds between looks.", min=0.2)] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look once: as soon as all replicas were heard twice.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show agents, what waits for them, how fast they work and what fails, from their heartbeats.

    On a terminal: arrows choose, Enter opens, n b w r f a sort, q ends. Elsewhere lines, or with --json a line of
    JSON at each look.
    """
    frame.execute(_top(ctx, sort, interval, once, as_json), as_json=as_json)


async def _top(ctx: typer.Context, sort: str, interval_s: float, once: bool, as_json: bool) -> int:
    from squadron.cli.top_screen import SORTS, Screen
    from squadron.views.beats import Beats

    if sort not in SORTS:
        raise ConfigError(f"--sort can't be {sort!r}", hint=f"one of {', '.join(SORTS)}")
    async with frame.connected(frame.settings_of(ctx)) as squad:
        beats = Beats(heartbeat_s=squad.settings.heartbeat_s)
        async with hearing(squad, beats):
            screen = Screen(squad.settings.env, sort=sort)
            if once:
                await _look_once(squad, beats, screen, as_json)
            elif sys.stdout.isatty() and not as_json:
                await _redraw(squad, beats, screen, interval_s)
            else:
                await _print_lines(squad, beats, screen, interval_s, as_json)
    return frame.OK


@contextlib.asynccontextmanager
async def hearing(squad: Squad, beats: Beats) -> AsyncIterator[None]:
    """Take in all heartbeats meanwhile."""
    from squadron.runtime.background import spawn

    events = await squad.subscribe("status.*")

    async def hear() -> None:
        async for message in events:
            beats.hear(message.payload.content, time.time())

    task = spawn(hear(), "heartbeats")
    try:
        yield
    finally:
        task.cancel()
        await events.aclose()


async def _ask(squad: Squad, beats: Beats, screen: Screen) -> None:
    """Ask the bridge."""
    agents = (await squad.status())["agents"]
    screen.trouble = ""
    screen.update(beats.figures(agents, time.time()))


async def _look(squad: Squad, beats: Beats, screen: Screen) -> None:
    """Ask the bridge; while it is away the last figures stand, and the trouble beside them."""
    try:
        await _ask(squad, beats, screen)
    except SquadronError as error:
        screen.trouble = str(error)


async def _look_once(squad: Squad, beats: Beats, screen: Screen, as_json: bool) -> None:
    until = time.monotonic() + max(ONCE_S, ONCE_BEATS * squad.settings.heartbeat_s)
    if not as_json:
        frame.tell(f"Waiting for two heartbeats, {squad.settings.heartbeat_s:g} s apart…")
    while True:
        # The call has waited for a bridge that comes back: of one that does not there is nothing to show.
        await _ask(squad, beats, screen)
        heard = [beats.beats_of(each.agent) for each in screen.agents]
        enough = all(
            len(counts) >= each.running and min(counts, default=2) >= 2
            for each, counts in zip(screen.agents, heard, strict=True)
        )
        if enough or time.monotonic() > until:
            break
        await asyncio.sleep(0.2)
    if as_json:
        frame.print_json(_as_json(screen))
    elif sys.stdout.isatty():
        frame.out().print(screen.table(frame.out().width))
    else:
        _write_rows(screen)


async def _print_lines(squad: Squad, beats: Beats, screen: Screen, interval_s: float, as_json: bool) -> None:
    while True:
        await _look(squad, beats, screen)
        if as_json:
            frame.print_json(_as_json(screen))
        elif screen.trouble:
            frame.tell(f"{time.strftime('%H:%M:%S')} {screen.trouble}")
        else:
            _write_rows(screen)
        await asyncio.sleep(interval_s)


def _as_json(screen: Screen) -> dict[str, Any]:
    return {"at": time.time(), "agents": [asdict(each) for each in screen.agents], "trouble": screen.trouble}


def _write_rows(screen: Screen) -> None:
    for cells in screen.rows():
        frame.write_row(time.strftime("%H:%M:%S"), *cells)
    sys.stdout.flush()


async def _redraw(squad: Squad, beats: Beats, screen: Screen, interval_s: float) -> None:
    """The live screen, until somebody presses q."""
    from rich.live import Live

    pressed, looked_at = asyncio.Event(), 0.0

    def press(keys: str) -> None:
        for key in split_keys(keys):
            screen.press(key)
        pressed.set()

    with (
        Live(screen, console=frame.out(), screen=True, auto_refresh=False) as live,
        keys(press),
        resizes(pressed.set),
    ):
        while not screen.over:
            if time.monotonic() - looked_at >= interval_s:
                await _look(squad, beats, screen)
                looked_at = time.monotonic()
            pressed.clear()
            # In a thread: a terminal that is stopped must not stop the connection.
            await asyncio.to_thread(live.refresh)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, looked_at + interval_s - time.monotonic())):
                    await pressed.wait()


def split_keys(typed: str) -> list[str]:
    """What was typed at once, key by key: arrows come as several characters."""
    found = []
    while typed:
        arrow = next((code for code in KEYS if len(code) > 1 and typed.startswith(code)), typed[0])
        found.append(KEYS.get(arrow, arrow))
        typed = typed[len(arrow) :]
    return found


@contextlib.contextmanager
def resizes(redraw: Callable[[], object]) -> Iterator[None]:
    """Draw anew at once when the terminal gets another size; in a thread it is seen at the next look."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGWINCH, redraw)
    except (RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


@contextlib.contextmanager
def keys(press: Callable[[str], None]) -> Iterator[None]:
    """Read keys as they are pressed, without showing them; not where input is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import os
    import termios
    import tty

    loop, number = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(number)
    # Ctrl-C and Ctrl-Z work as ever.
    tty.setcbreak(number)
    loop.add_reader(number, lambda: press(os.read(number, 64).decode(errors="ignore")))
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)

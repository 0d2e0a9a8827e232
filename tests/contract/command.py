"""The command line in a process of its own, against an environment of a test."""

from __future__ import annotations

import asyncio
import sys

from squadron.bridge.jetstream.wiring import Wiring


async def start(
    wiring: Wiring, *arguments: str, env: str = "", before: str = "pass"
) -> asyncio.subprocess.Process:
    """Start it; it does `before` first, and goes to `env` instead of the test's own environment."""
    where = ("--home", str(wiring.settings.home), "--env", env or wiring.settings.env)
    # A script in the background has its children ignore Ctrl-C.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"import sys; {heeds}; {before}; from squadron.cli import main; main()"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *where, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(wiring: Wiring, *arguments: str, env: str = "", before: str = "pass") -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = await start(wiring, *arguments, env=env, before=before)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
